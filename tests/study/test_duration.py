"""How long a study takes: what runs side by side, what starts cost, and that nothing left takes no time."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.studies import Tiny

from mi_ray.attacks import ATTACKS
from mi_ray.config import AttackEntry, Resources
from mi_ray.study.duration import (
    A_CELL,
    COMMAND_STARTS,
    DRAWING,
    ONE_WORKER_STARTS,
    SETTINGS_START,
    WORKERS_START,
    _copy,
    _copying,
    _fit,
    _length,
    _rate,
    busy_places,
    duration,
    side_by_side,
)
from mi_ray.study.prepare import prepare


@pytest.mark.parametrize(
    ("pieces", "cores", "ends", "idle", "of_all"),
    [
        ([], 2, 0, 0, 0),
        ([(1, 5), (1, 30)], 2, 30, 25, 25),
        ([(1, 30)], 2, 30, 0, 30),  # one alone: what is idle beside it is of use only where another is there already
        ([(1, 5), (1, 30), (1, 20)], 2, 30, 5, 5),  # the third begins when the first is done
        ([(1, 5), (1, 30), (1, 20)], 1, 55, 0, 0),
        ([(2, 5), (1, 3), (1, 3)], 2, 8, 0, 0),
        ([(4, 7), (4, 2)], 2, 9, 0, 0),  # more than there is: one after another
    ],
)
def test_pieces_run_in_order_as_many_at_once_as_there_are_cores_for(
    pieces: list[tuple[float, float]], cores: int, ends: float, idle: float, of_all: float
) -> None:
    assert side_by_side(pieces, cores) == (ends, idle)
    assert side_by_side(pieces, cores, since_start=True) == (ends, of_all)


def test_what_runs_beside_trainings_takes_no_time_of_its_own(original: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    (work,) = original.plan.classifiers
    alone = [(SimpleNamespace(entry=SimpleNamespace(workers=1)), 40.0)]
    several = SimpleNamespace(classifiers=[work, work], cells=[], attacks=[], outputs=[])
    one = SimpleNamespace(classifiers=[work], cells=[], attacks=[], outputs=[])

    def length(plan: Any, others: float, **options: str) -> float:
        study: Any = SimpleNamespace(
            sweep=SimpleNamespace(resources=original.study.sweep.resources, precision=options.get("precision", "fp32"))
        )
        monkeypatch.setattr("mi_ray.study.duration.busy_places", lambda study, plan: 2)
        return _length(study, plan, alone, 0.0, others) - ONE_WORKER_STARTS - COMMAND_STARTS - SETTINGS_START - DRAWING  # type: ignore[arg-type]

    assert length(one, 60.0) == 40 + 30  # its own passes follow its training
    assert length(several, 60.0) == 40 + 15  # half of them are of a classifier that is there
    assert length(several, 200.0) == 40 + 77.5  # of the 100 that could, 45 find room
    assert length(several, 60.0, precision="auto") == 40 + 30  # nothing has a key before all are there


def test_a_plan_counts_starts_trainings_side_by_side_and_passes_on_as_many_places_as_have_some(
    original: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, rates = original.plan, {"forward": 100.0, "gradient": 50.0, "train": 10_000.0}
    monkeypatch.setattr("mi_ray.study.duration._measured", lambda study, works: [rates for _ in works])
    monkeypatch.setattr("mi_ray.study.duration._copying", lambda study, works, known: 0.0)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    fixed = COMMAND_STARTS + SETTINGS_START + DRAWING + A_CELL * len(plan.cells)

    def told(works: Any, attacks: list[tuple[int, int]], others: list[tuple[int, int]]) -> str:
        return duration(original.study, plan, works, attacks, others).line().partition("what is left is ")[2]

    assert told([], [(0, 0)], [(0, 0)]).startswith(
        "0 seconds of passes on one core, and takes about 0 seconds on the 2"
    )
    # 300 forward passes of which 100 belong to gradients take 2 s and 2 s. The attacks of 60 points are one block.
    assert busy_places(original.study, plan) == 1
    assert told([], [(300, 100)], []).startswith(
        f"4 seconds of passes on one core, and takes about {fixed + 4:.0f} seconds"
    )
    assert told([], [], [(300, 100)]).startswith(
        f"4 seconds of passes on one core, and takes about {fixed + 2:.0f} seconds"
    )
    early = {each.method for each in plan.attacks}
    for stops_early, words in ((True, "up to"), (False, "about")):
        for name in early:
            monkeypatch.setattr(ATTACKS[name], "stops_early", stops_early)
        assert f"takes {words} " in told([], [(300, 100)], [(200, 100)])
        assert "takes about " in told([], [(200, 100)], [(300, 100)])  # Most of what is left is of something else.
    (work,) = plan.classifiers
    alone = work.cost[1] / 10_000
    ends = fixed + 2 + (ONE_WORKER_STARTS if work.entry.workers == 1 else WORKERS_START) + alone / work.entry.workers
    told_of = told([work], [], [(300, 100)])
    assert told_of.startswith(f"{_in_words(4 + alone)} of passes on one core, and takes about {_in_words(ends)} on")


@pytest.mark.parametrize(
    ("gpus", "each", "most"),
    [(0, 1, float("inf")), (4, 0, float("inf")), (4, 1, 4), (4, 2, 2), (2, 0.4, 4), (1, 0.1, 10), (1, 1 / 93, 93)],
)
def test_pieces_on_gpus_are_as_many_as_fit_on_each(gpus: int, each: float, most: float) -> None:
    assert _fit(gpus, each) == most


def test_a_plan_for_one_gpu_has_one_place_however_many_cores_there_are(
    original: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("mi_ray.study.duration.busy_places", lambda study, plan: 16)

    def length(gpus: float, trainings: int = 0) -> float:
        given = {"block": {"gpus": gpus}, "train": {"gpus": gpus}}
        study: Any = SimpleNamespace(sweep=SimpleNamespace(resources=Resources.model_validate(given), precision="fp32"))
        plan: Any = SimpleNamespace(classifiers=[None] * 2, cells=[], attacks=[], outputs=[])
        works: Any = [(SimpleNamespace(entry=SimpleNamespace(workers=1)), 100.0)] * trainings
        starts = COMMAND_STARTS + SETTINGS_START + DRAWING + (ONE_WORKER_STARTS if trainings else 0)
        return _length(study, plan, works, 160.0 * (not trainings), 0.0) - starts

    assert (length(0), length(1), length(0.5)) == (10, 160, 80)
    assert (length(0, trainings=2), length(1, trainings=2)) == (100, 200 + ONE_WORKER_STARTS)


def _in_words(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def test_a_plan_counts_the_time_in_which_each_defense_makes_its_copies(
    original: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = {"eot_pgd": {"steps": 2, "eot": 3}, "epsilon": 0.1, "knowledge": "adaptive"}
    behind_each = prepare(original.study.sweep.model_copy(update={"attacks": (AttackEntry.model_validate(attack),)}))
    study, plan, measured = original.study, original.plan, list[str]()
    monkeypatch.setattr(
        "mi_ray.study.duration._copy", lambda study, component: measured.append(component.name) or (0.001, 0.004)
    )
    behind = [work for work in plan.outputs if work.component is not None]
    copies = sum(study.planner.costs.of(work)[0] for work in behind) * study.planner.stored_points
    known: dict[str, tuple[float, float]] = {}
    assert _copying(study, plan.outputs, known) == pytest.approx(0.001 * copies)
    through = [work for work in behind_each.plan().attacks if work.defense is not None]
    assert through
    forward, backward = (sum(study.planner.costs.of(work)[way] for work in through) for way in (0, 1))
    assert _copying(study, through, known) == pytest.approx(
        study.planner.stored_points * (0.001 * (forward - backward) + 0.004 * backward)
    )
    assert measured == sorted({*measured}) != []


def test_a_copy_is_timed_with_and_without_a_gradient(original: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mi_ray.study.duration.COPY_SECONDS", 0.001)
    behind = {work.component.name: work.component for work in original.plan.outputs if work.component is not None}
    for component in behind.values():
        for part in original.study.planner.registries.defenses.make(*component).components():
            assert all(0 < seconds < 1 for seconds in _copy(original.study, part))


def test_a_defense_that_raises_while_it_is_timed_is_named(original: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    (work, *_) = [work for work in original.plan.outputs if work.component is not None]
    part = original.study.planner.registries.defenses.make(*work.component).components()[0]  # type: ignore[misc]

    def raises(*args: object) -> None:
        raise IndexError("too far")

    monkeypatch.setattr(type(part), "copies", raises)
    with pytest.raises(
        ValueError, match=rf"^defense {part.name} must run on random images.*too far.*test_duration\.py"
    ):
        _copy(original.study, part)


@pytest.mark.parametrize(("cuda", "rate"), [(False, 500.0), (True, 5.0)])
def test_rates_on_a_cpu_are_of_the_threads_own_seconds(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, rate: float
) -> None:
    """A step takes 0.02 s of its thread, and 2 s pass in it, since other programs have the cores."""
    steps, waits = list[int](), list[int]()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(len(steps)))
    monkeypatch.setattr("mi_ray.study.duration.time.thread_time", lambda: 0.02 * len(steps))
    monkeypatch.setattr("mi_ray.study.duration.time.perf_counter", lambda: 2.0 * len(steps))
    assert _rate(lambda: steps.append(1), 10, 0.1) == pytest.approx(rate)
    assert waits == [*range(1, len(steps) + 1)] * cuda  # a GPU is waited for after each step
