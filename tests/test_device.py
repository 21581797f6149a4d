"""What runs at once changes no row, passes are counted as planned, a trajectory goes on, `precision: auto` decides."""

import asyncio
import copy
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.studies import short_controls
from torch import Tensor

import mi_ray.study.precision
from mi_ray import make_attack, make_defense
from mi_ray.attacks import ATTACKS
from mi_ray.attacks.base import Begun
from mi_ray.attacks.criterion import criterion
from mi_ray.classifiers import build_classifier, prepared, weights_bytes, wrap_classifier
from mi_ray.config import Sweep
from mi_ray.defenses import DefendedClassifier
from mi_ray.device import PassCounter, exact_arithmetic, has_bf16
from mi_ray.plan.work import Plan
from mi_ray.store.blocks import Store
from mi_ray.study.batches import GRAPH, BlockInput, activation_bytes, attack_outputs, lanes_within, side_by_side
from mi_ray.study.estimate import distinct_and_requested, rows_of, together
from mi_ray.study.precision import (
    BOTH,
    CHECKED,
    PIECES,
    Comparison,
    check_passes,
    check_pays,
    checked_points,
    compare,
    decision,
    decision_path,
    decisions,
)
from mi_ray.study.prepare import Study, prepare
from mi_ray.study.workbench import Workbench, WorkerLimits
from mi_ray.threat_model import ThreatModel

CPU = torch.device("cpu")
COMBINED = {"mi_combined": {"lam_pl": 0.5, "lam_ol": 0.4, "threshold": 0.2}}
ADAPTIVE: list[dict[str, Any]] = [
    {"pgd": {"steps": [2]}},
    {"eot_pgd": {"steps": [2, 3]}},
    {"eot_pgd": {"steps": [2], "eot": 12}},
    {"eot_pgd": {"steps": [2], "loss": "mean_cross_entropy"}},
    {"eot_pgd": {"steps": [2], "loss": "evade"}},
    {"evasion": {"steps": [2]}},
    {"eot_pgd": {"steps": [2], "branch": "detector"}},
    {"eot_pgd": {"steps": [2], "branch": "fallback"}},
    {"apgd": {"steps": 3}},
    {"apgd": {"steps": 3, "loss": "targeted_dlr", "targets": 2}},
    {"square": {"queries": [5]}},
    {"averaged": {"steps": [2]}},
    {"random_noise": {"tries": [3]}},
]


def bench_of(
    place: Path, classifier: Any = None, limits: WorkerLimits | None = None, **changes: Any
) -> tuple[Study, Workbench]:
    """A study on digits with an untrained classifier, always the same (or a given one), and its workbench."""
    document: dict[str, Any] = {
        "name": "t",
        "dataset": "digits",
        "points": {"count": 20},
        "batch": 10,
        "executions": [7],
        "draws": 2,
        "checks": "cheap",
        "classifiers": [{"name": "a", "architecture": {"cnn_small": {"width": 2 if classifier is None else 8}}}],
        "attacks": [{"pgd": {"steps": [2, 4], "restarts": 2}, "epsilon": 0.03}],
        "defenses": ["none"],
        **changes,
    }
    study = prepare(Sweep.model_validate(document))
    work = study.planner.classifiers[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = build_classifier(work.description) if classifier is None else classifier
    Store(place, create=True)
    data = study.data(str(place), {work.key: (work.description, weights_bytes(made))})
    return study, Workbench(data, limits or WorkerLimits())


# MI-Combined is of both mixtures of MI-OL and MI-PL, and asks more of an attack than any defense that is of one component.
@pytest.mark.parametrize(
    "defense",
    [COMBINED, *(pytest.param(one, marks=pytest.mark.long) for one in ({"mi_ol": 0.5}, {"random_rotation": 10}))],
)
def test_counted_passes_of_every_attack_and_output_are_the_planned_ones(defense: Any, tmp_path: Path) -> None:
    attacks = [{**method, "epsilon": 0.03, "knowledge": "adaptive"} for method in ADAPTIVE]
    oblivious = [{m: v, "epsilon": 0.03} for m, v in (("apgd", {"steps": 3}), ("square", {"queries": [5]}))]
    few = {"points": {"count": 10}, "executions": [3]}
    study, bench = bench_of(tmp_path / "s", attacks=[*attacks, *oblivious], defenses=[defense], **few)
    plan = study.plan()
    assert len(plan.attacks) >= 11
    for work in plan.attacks:
        done = bench.compute(work, 0, 10)
        planned = tuple(10 * passes for passes in study.planner.costs.of(work))
        if ATTACKS[work.method].stops_early:
            assert 0 < done.forward <= planned[0]
            assert done.backward <= planned[1]
        else:
            assert (done.forward, done.backward) == planned, work
    for output in (*(w for w in plan.outputs if not w.component), *(w for w in plan.outputs if w.component)):
        done = bench.compute(output, 0, 10)
        assert (done.forward, done.backward) == tuple(10 * passes for passes in study.planner.costs.of(output))


def test_passes_are_counted_from_several_threads_and_taken_once() -> None:
    passes, x = PassCounter(), torch.ones(3, requires_grad=True)

    def work() -> None:
        for _ in range(200):
            passes.watch(x)(x * 2).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert passes.take() == (4 * 200 * 3, 4 * 200 * 3)
    assert passes.take() == (0, 0)


def test_a_pass_without_a_gradient_counts_forward_alone_and_a_prepared_copy_starts_at_zero(classifier: Any) -> None:
    fast = prepared(classifier, CPU, "fp32")
    assert fast.passes.take() == (0, 0)
    x = torch.rand(4, 3, 32, 32, requires_grad=True)
    with torch.no_grad():
        fast(x)
    assert fast.passes.take() == (4, 0)
    fast(x).sum().backward()
    assert fast.passes.take() == (4, 4)


def test_a_longer_run_goes_on_along_a_stored_trajectory_to_the_same_rows_and_costs_only_the_rest(
    tmp_path: Path,
) -> None:
    pgd = {"steps": [2, 4, 6], "restarts": 2}
    eot = {"eot_pgd": {"steps": [2, 3], "restarts": 2}, "epsilon": 0.03, "knowledge": "adaptive"}
    more = {**eot, "eot_pgd": {"steps": [2, 3, 5], "restarts": 2}}
    both = {**eot, "eot_pgd": {"steps": [1, 2, 5], "restarts": 2, "loss": "mean_cross_entropy"}}
    defenses = [{"mi_ol": {"lam": 0.5}}]
    long, fresh = bench_of(tmp_path / "fresh", attacks=[{"pgd": pgd, "epsilon": 0.03}, more, both], defenses=defenses)
    early = {**both, "eot_pgd": {**both["eot_pgd"], "steps": [2]}}
    short = [{"pgd": {**pgd, "steps": [2, 4]}, "epsilon": 0.03}, eot, early]
    before, bench = bench_of(tmp_path / "grown", attacks=short, defenses=defenses)
    for work in before.plan().attacks:
        bench.compute(work, 0, 20)
    for work in long.plan().attacks:
        whole = fresh.compute(work, 0, 20)
        ((again, start, stop),) = bench.results.missing(work, 20)
        rest = bench.compute(again, start, stop)
        tables = []
        for one in (fresh, bench):
            (block,) = one.store.blocks("adversarial", work.key)
            tables.append(one.store.read_block("adversarial", work.key, block))
        assert tables[0][0].equals(tables[1][0])
        assert tables[0][1]["stops"] == tables[1][1]["stops"]
        if work.method == "pgd":  # two further steps and one further stop, of two restarts
            assert (rest.forward, rest.backward) == (2 * 3 * 20, 2 * 2 * 20)
            assert tables[1][1]["forward_passes"] == whole.forward
        elif 1 not in work.stops:  # two steps of five, one stop of three; random numbers are keyed by the step
            assert rest.backward == whole.backward * 2 / 5
        else:  # an earlier stop is missing too: the steps before it are done again, and no stop is scored twice
            assert rest.backward == whole.backward
            assert rest.forward < whole.forward


def test_an_attack_that_its_images_alone_do_not_carry_on_is_refused(classifier: Any, batch: Any) -> None:
    x, y = batch
    begun = Begun(2, x[None], torch.zeros(1, len(x), dtype=torch.int64))
    square = make_attack("square", queries=5)
    with pytest.raises(ValueError, match="square must begin at the beginning"):
        square.craft(classifier, x, y, ThreatModel(0.03), begun=begun)
    averaged = make_attack("averaged", steps=5)
    with pytest.raises(ValueError, match="averaged goes on to stops beyond 2 steps with its 1 restarts, if at all"):
        averaged.craft(classifier, x, y, ThreatModel(0.03), begun=begun)
    with pytest.raises(ValueError, match=r"got stops \[1, 5\] and 1 restarts"):
        make_attack("pgd", steps=[1, 5]).craft(classifier, x, y, ThreatModel(0.03), begun=begun)


def test_zero_gradients_of_the_steps_before_are_counted_on(linear: Any) -> None:
    f, x, y = linear(4, (3, 8, 8), scale=0.0), torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    threat = ThreatModel(0.03)
    short = make_attack("pgd", steps=2).craft(f, x, y, threat)
    begun = Begun(2, short.images[:, 0], short.zero_gradients[:, 0])
    assert make_attack("pgd", steps=5).craft(f, x, y, threat, begun=begun).zero_gradients.flatten().tolist() == [
        5,
        5,
        5,
    ]


def test_each_batch_in_flight_has_one_thread_whatever_its_worker_has() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert side_by_side(lambda part: torch.get_num_threads(), range(4), 2, CPU) == [1, 1, 1, 1]
    finally:
        torch.set_num_threads(before)


def test_batches_in_flight_change_no_row(tmp_path: Path) -> None:
    attacks = [
        {"pgd": {"steps": [3]}, "epsilon": 0.03},
        {"eot_pgd": {"steps": [2]}, "epsilon": 0.03, "knowledge": "adaptive"},
    ]
    tables = []
    for threads in (1, 3):
        study, bench = bench_of(
            tmp_path / str(threads),
            limits=WorkerLimits(threads=threads),
            attacks=attacks,
            points={"count": 40},
            defenses=[{"mi_ol": {"lam": 0.5}}],
        )
        assert bench._lanes(study.planner.classifiers[0].key) == threads
        plan = study.plan()
        works = [*plan.attacks, *sorted(plan.outputs, key=lambda work: work.component is not None)]
        for work in works:
            bench.compute(work, 0, 40)
        found = []
        for work in works:
            kind: Any = "outputs" if hasattr(work, "draws") else "adversarial"
            (block,) = bench.store.blocks(kind, work.key)
            found.append(bench.store.read_block(kind, work.key, block)[0])
        tables.append(found)
    assert all(a.equals(b) for a, b in zip(*tables, strict=True))


def test_parts_run_at_once_come_back_in_order_and_their_first_error_is_raised() -> None:
    together = threading.Barrier(3, timeout=30)

    def meet(part: int) -> int:
        together.wait()  # passes only if three run at once
        return part * part

    assert side_by_side(meet, range(6), 3, CPU) == [0, 1, 4, 9, 16, 25]

    def fail(part: int) -> int:
        raise ValueError(f"part {part}")

    with pytest.raises(ValueError, match="part 0"):
        side_by_side(fail, range(3), 2, CPU)


def test_a_defense_bound_in_one_thread_is_not_bound_in_another(classifier: Any, pool: Any, batch: Any) -> None:
    from mi_ray.randomness import Key

    defended = DefendedClassifier(classifier, make_defense("mi_ol", lam=0.5), pool, 5)
    x = batch[0]

    def answer(part: int) -> Tensor:
        with torch.no_grad(), defended.bind(Key(part, "evaluate"), range(len(x))):
            return defended(x)

    alone = [answer(part) for part in range(4)]
    assert not torch.equal(alone[0], alone[1])
    assert all(torch.equal(a, b) for a, b in zip(alone, side_by_side(answer, range(4), 4, CPU), strict=True))
    other = DefendedClassifier(classifier, make_defense("mi_ol", lam=0.6), pool, 5)
    with (
        defended.bind(Key(2, "evaluate"), range(len(x))),
        other.bind(Key(0, "evaluate"), range(len(x))),
        torch.no_grad(),
    ):
        assert torch.equal(defended(x), alone[2])  # one that is bound inside leaves the other bound


def test_a_memory_budget_limits_how_many_batches_are_in_flight_and_never_below_one(classifier: Any) -> None:
    one = activation_bytes(classifier, (3, 32, 32), CPU)
    widths = [(8, 16), (16, 8), (32, 4)]  # channels and side of CnnSmall's maps, width 8: conv, norm, ReLU of each
    maps = sum(3 * channels * side * side for channels, side in widths)
    assert maps * 4 <= one <= 1.1 * maps * 4
    batch = 250 * one
    assert lanes_within(2 * GRAPH * batch, batch, CPU, 8, 1.0) == 2
    assert lanes_within(1, batch, CPU, 8, 1.0) == 1
    assert lanes_within(None, 1, CPU, 4, 1.0) == 4
    assert lanes_within(None, 1, CPU, 1, 1.0) == 1


@pytest.mark.parametrize(
    ("written", "found"), [("auto", None), (1024, 1024), ("2 GiB", 2**31), ("1.5MB", 1_500_000), ("300 kB", 300_000)]
)
def test_a_memory_budget_is_written_with_its_unit(written: Any, found: int | None) -> None:
    from mi_ray.config import BlockResources

    assert BlockResources(memory_budget=written).memory_budget == found
    with pytest.raises(ValueError, match="must be auto, bytes, or a number with B, kB"):
        BlockResources(memory_budget="2 spoons")  # type: ignore[arg-type]


def comparisons(bench: Workbench, key: str) -> list[Comparison]:
    """All comparisons of a classifier, whose pieces are tasks of their own on a cluster."""
    return [each for epsilon in PIECES for each in compare(bench, key, epsilon)]


def test_auto_takes_bf16_where_no_comparison_tells_the_two_apart(tmp_path: Path, classifier: Any) -> None:
    study, bench = bench_of(tmp_path / "s", classifier, points={"count": 60}, batch=30, precision="auto")
    key = study.planner.classifiers[0].key
    found = decision("cpu", checked_points(bench), comparisons(bench, key) if has_bf16(CPU) else None)
    assert found["decision"] == ("bf16" if has_bf16(CPU) else "fp32")
    if has_bf16(CPU):
        assert len(found["comparisons"]) == 7
        assert all(each["passed"] for each in found["comparisons"])
        spread = [each["accuracy_fp32"] for each in found["comparisons"]]
        assert max(spread) > min(spread)  # the block holds points that an attack breaks and points that it does not


def test_auto_takes_fp32_where_bf16_gives_other_answers(tmp_path: Path, classifier: Any, monkeypatch: Any) -> None:
    study, bench = bench_of(tmp_path / "s", classifier, points={"count": 60}, batch=30, precision="auto")
    own = bench.classifier

    class Biased(torch.nn.Module):
        """Prefers one class."""

        def __init__(self, made: torch.nn.Module) -> None:
            super().__init__()
            self.made = made

        def forward(self, x: Tensor) -> Tensor:
            return self.made(x) + 6.0 * torch.eye(10)[3]

    def coarse(key: str, precision: Any) -> torch.nn.Module:
        made = own(key, precision)
        return made if precision == "fp32" else Biased(made)

    monkeypatch.setattr(bench, "classifier", coarse)
    found = decision("cpu", checked_points(bench), comparisons(bench, study.planner.classifiers[0].key))
    assert found["decision"] == "fp32"
    assert any(not each["passed"] for each in found["comparisons"])
    assert "comparisons on 60 points failed" in found["reason"]


def test_auto_compares_gradients_of_both_precisions_and_scores_what_they_made_in_fp32(
    tmp_path: Path, classifier: Any, monkeypatch: Any
) -> None:
    study, bench = bench_of(tmp_path / "s", classifier, points={"count": 20}, precision="auto")
    own, passes = bench.classifier, {precision: PassCounter() for precision in BOTH}

    def watched(key: str, precision: Any) -> Any:
        made = own(key, precision)
        made.passes = passes[precision]
        return made

    monkeypatch.setattr(bench, "classifier", watched)
    assert len(list(comparisons(bench, study.planner.classifiers[0].key))) == 7
    # three epsilons of ten steps; four sets of images with ten executions
    attacked, executed = 3 * 10 * 20, 4 * 10 * 20
    assert passes["bf16"].take() == (attacked + executed, 3 * 10 * 20)
    assert passes["fp32"].take() == (attacked + executed + 2 * 3 * 20, 3 * 10 * 20)  # and what either made is scored


def test_auto_means_fp32_where_its_check_would_take_more_than_a_tenth_of_the_study(
    tmp_path: Path, classifier: Any
) -> None:
    attack = {"pgd": {"steps": [10]}, "epsilon": 0.1}
    sizes = {}
    for steps in (10, 5000):
        changes = {"attacks": [{**attack, "pgd": {"steps": [steps]}}], "defenses": ["none"], "checks": "cheap"}
        study, bench = bench_of(tmp_path / str(steps), classifier, precision="auto", points={"count": 20}, **changes)
        key = study.planner.classifiers[0].key
        sizes[steps] = decisions(bench.store, study)
        # PGD-10 at three epsilons in both precisions, each scored, and ten executions on four sets of images
        assert check_passes(study) == 20 * (2 * 3 * (10 + 10 + 1) + 2 * 4 * 10)
        assert check_pays(study) == (20 * 2 * steps >= 10 * check_passes(study))
        if not check_pays(study):
            assert {cell.identity["cell"] for cell in study.decided(sizes[steps]).plan().cells} == {
                cell.identity["cell"]
                for cell in bench_of(tmp_path / "fp32", classifier, precision="fp32", points={"count": 20}, **changes)[
                    0
                ]
                .plan()
                .cells
            }
    assert sizes == {10: {key: "fp32"}, 5000: {}}


@pytest.fixture
def every_check_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of a few points has its precision checked too."""
    monkeypatch.setattr(mi_ray.study.precision, "LARGEST_SHARE", float("inf"))


@pytest.mark.usefixtures("every_check_pays")
def test_a_stored_decision_is_the_precision_of_the_keys_and_a_damaged_one_is_none(
    tmp_path: Path, classifier: Any
) -> None:
    study, bench = bench_of(tmp_path / "s", classifier, precision="auto", defenses=[{"mi_ol": {"lam": 0.5}}])
    key = study.planner.classifiers[0].key
    assert decisions(bench.store, study) == {}
    keys = {}
    for precision in BOTH:
        bench.store.write_json(decision_path(study, key), {"decision": precision})
        assert decisions(bench.store, study) == {key: precision}
        decided = study.decided(decisions(bench.store, study))
        assert decided.planner.works.precision_of(key) == precision
        explicit, _ = bench_of(
            tmp_path / precision, classifier, precision=precision, defenses=[{"mi_ol": {"lam": 0.5}}]
        )
        keys[precision] = {cell.key for cell in decided.plan().cells}
        assert keys[precision] == {cell.key for cell in explicit.plan().cells}
    assert not keys["fp32"] & keys["bf16"]
    bench.store.write_bytes(decision_path(study, key), b"{")
    assert decisions(bench.store, study) == {}


def test_comparisons_are_made_on_the_first_points_in_both_precisions(tmp_path: Path, classifier: Any) -> None:
    study, bench = bench_of(tmp_path / "s", classifier, points={"count": 20}, precision="auto")
    found = decision("cpu", 20, reversed(comparisons(bench, study.planner.classifiers[0].key)))["comparisons"]
    assert [each["epsilon"] for each in found] == pytest.approx(
        [1 / 255, 4 / 255, 8 / 255, 0, 1 / 255, 4 / 255, 8 / 255]
    )
    assert CHECKED >= 200
    steps = 10 * np.array([each["accuracy_fp32"] for each in found])
    assert np.allclose(2 * steps, np.round(2 * steps))  # twentieths: of 20 points


def test_a_sweep_that_says_so_has_its_networks_compiled_in_that_mode(
    tmp_path: Path, classifier: Any, monkeypatch: Any
) -> None:
    asked = []
    monkeypatch.setattr("torch.nn.Sequential.compile", lambda network, **options: asked.append(options))
    for mode in (None, "default", "reduce-overhead"):
        study, bench = bench_of(tmp_path / str(mode), classifier, compile=mode)
        bench.classifier(study.planner.classifiers[0].key, "fp32")
    assert [options["mode"] for options in asked] == ["default", "reduce-overhead"]


def test_a_compiled_network_answers_as_the_plain_one(batch: Any) -> None:
    """Of one layer: how well torch compiles others is torch's to test, and each kernel takes a compiler ten seconds."""
    plain = wrap_classifier(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10)), (0.5,) * 3, (0.25,) * 3
    )
    compiled = prepared(plain, CPU, "fp32", "default")
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("torch.compile needs a C++ compiler")
    found = compiled(batch[0])
    torch.testing.assert_close(found, plain(batch[0]), rtol=1e-4, atol=1e-4)


def _left(study: Study, plan: Plan, bench: Workbench) -> tuple[int, int]:
    """Passes that are left of attacks, evaluation and checks."""
    rows = rows_of(study, plan, bench.store)[1:]
    return sum(row.left[0] for row in rows), sum(row.left[1] for row in rows)


def _finish(study: Study, plan: Plan, bench: Workbench) -> None:
    """Do all that is missing in a run's order; at each stage what is left falls by what was counted."""
    checked, at_once = plan.checked or None, plan.attacks_at_once(lambda method: ATTACKS[method].goes_on)
    works: list[tuple[Any, Any, int | None]] = []
    for first, attacks, outputs, limit in (
        (at_once, plan.attacks, plan.outputs, None),
        ((), plan.check_attacks(), plan.check_outputs(), checked),
    ):
        works += [("adversarial", first, checked), ("adversarial", attacks, limit)]
        works += [("outputs", [w for w in outputs if (w.component is None) == of_f], limit) for of_f in (True, False)]
    for kind, some, limit in works:
        before, done = _left(study, plan, bench), []
        for work in some:
            done += [bench.compute(*item) for item in bench.results.missing(work, 10, limit)]
        after = _left(study, plan, bench)
        assert before[0] - after[0] == sum(block.forward for block in done), kind
        assert before[1] - after[1] == sum(block.backward for block in done), kind


def test_what_plan_says_is_left_is_what_is_then_counted_also_where_attacks_go_on_along_stored_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_controls(
        monkeypatch, reference=3, large=6
    )  # what their passes are counted as does not depend on how many they are
    attacks = [
        {"pgd": {"steps": [2], "restarts": 2}, "epsilon": 0.03},
        {"eot_pgd": {"steps": [2]}, "epsilon": 0.03, "knowledge": "adaptive"},
    ]
    more = [{"pgd": {"steps": [2, 5], "restarts": 2}, "epsilon": 0.03}, attacks[1]]
    options = {"attack_labels": "predicted"}  # one pass more for each point
    changes: dict[str, Any] = {"defenses": [COMBINED], "checks": {"points": 5}, "options": options, "executions": [3]}
    changes |= {"points": {"count": 10}, "batch": 5}
    study, bench = bench_of(tmp_path / "s", attacks=attacks, **changes)
    plan = study.plan()
    for row in rows_of(study, plan, bench.store)[1:]:
        assert row.left == row.planned, row.name
        assert row.stored == 0
    _finish(study, plan, bench)
    assert _left(study, plan, bench) == (0, 0)
    longer, _ = bench_of(tmp_path / "elsewhere", attacks=more, **changes)
    plan = longer.plan()
    assert _left(longer, plan, bench) != (0, 0)
    _finish(longer, plan, bench)
    assert _left(longer, plan, bench) == (0, 0)
    assert all(row.stored == row.pieces for row in rows_of(longer, plan, bench.store)[1:])


def test_studies_in_one_store_cost_what_they_share_once_and_the_longest_of_their_trajectories(tmp_path: Path) -> None:
    short, _ = bench_of(tmp_path / "a", attacks=[{"pgd": {"steps": [2]}, "epsilon": 0.03}])
    long, _ = bench_of(tmp_path / "b", attacks=[{"pgd": {"steps": [5]}, "epsilon": 0.03}])
    other, _ = bench_of(tmp_path / "c", attacks=[{"pgd": {"steps": [2]}, "epsilon": 0.04}])
    # 20 points: five steps, F on the clean images and on both stops; cell by cell the clean ones twice
    assert distinct_and_requested([short, long]) == (
        (20 * (5 + 3), 20 * 5),
        (20 * (2 + 5 + 2 * 2), 20 * (2 + 5)),
        4,
    )
    assert distinct_and_requested([short, short])[0] == distinct_and_requested([short])[0]
    apart = distinct_and_requested([other])[0][0] + distinct_and_requested([short])[0][0]
    assert distinct_and_requested([short, other])[0] == (apart - 20, 20 * (2 + 2))  # the clean outputs are shared
    told = together([short, long])
    assert told.startswith("together: 2 studies, 4 cells; 220 forward passes requested")
    assert told.endswith("1.4 times fewer, 1.4 with backward passes")


def test_a_block_is_one_trials_at_a_time_and_is_free_again_when_its_holder_ends_or_dies() -> None:
    from mi_ray.cluster.actors import BlockLocks

    async def at_once(taking: Any) -> None:
        await asyncio.wait_for(taking, 5)

    async def story() -> None:
        locks = BlockLocks.__ray_metadata__.modified_class()

        async def waits(block: str, trial: str) -> asyncio.Task[None]:
            taking = asyncio.create_task(locks.acquire(block, trial))
            await asyncio.sleep(0.05)
            assert not taking.done()
            return taking

        await at_once(locks.acquire("a", "first"))
        await at_once(locks.acquire("b", "second"))  # another block is free
        waiting = await waits("a", "second")
        await locks.release("a", "first")
        await at_once(waiting)
        await locks.release("a", "first")  # twice: what the second one holds stays its own
        await locks.ended("first")  # so it does when who held it before ends
        last = await waits("a", "third")
        await locks.ended("second")  # it dies with both blocks
        await at_once(last)
        await at_once(locks.acquire("b", "third"))
        dies, again = await waits("b", "fourth"), await waits("a", "fourth")
        await locks.ended("fourth")  # it dies while it waits
        await locks.release("b", "third")
        await at_once(dies)
        await at_once(locks.acquire("b", "fourth"))  # begun again
        await locks.ended("third")
        await at_once(again)
        await at_once(locks.acquire("a", "fifth"))

    asyncio.run(story())


def test_locks_are_told_of_every_trial_that_has_ended_or_whose_actor_has_died() -> None:
    from mi_ray.cluster.tuning import TrialProgress

    class Locks:
        def __init__(self) -> None:
            self.told: list[str] = []
            self.ended = SimpleNamespace(remote=self.told.append)

    class Trial:
        num_failures = 0

        def __init__(self, trial_id: str) -> None:
            self.trial_id = trial_id

    locks = Locks()
    progress = TrialProgress(None, SimpleNamespace(locks=[locks]), None)
    progress.on_trial_complete(0, [], Trial("done"))
    progress.on_trial_recover(0, [], Trial("begun again"))
    progress.on_trial_error(0, [], Trial("given up"))
    assert locks.told == ["done", "begun again", "given up"]


def test_restarts_are_chosen_by_what_they_are_in_fp32_whatever_the_gradients_are(tmp_path: Path) -> None:
    attacks = [{"pgd": {"steps": [3], "restarts": 3}, "epsilon": 0.03}]
    study, bench = bench_of(tmp_path / "s", attacks=attacks, precision="bf16")
    (work,) = study.plan().attacks
    found, labels = attack_outputs(
        bench.attacked(work),
        make_attack("pgd", steps=[3], restarts=3),
        BlockInput(bench.clean(0, 20), range(20), 0, 10),
        torch.arange(20) % 10,
        10,
        ThreatModel(0.03),
    )
    fine, coarse = (bench.classifier(work.classifier, precision) for precision in BOTH)
    with torch.no_grad():
        answers = [
            [torch.cat([f(part) for part in images[0].split(10)]) for images in found.images] for f in (fine, coarse)
        ]
    losses = [torch.stack([criterion(work.threat).loss(each, labels) for each in of]) for of in answers]
    assert torch.equal(found.loss[:, 0], losses[0])
    assert not torch.equal(found.loss[:, 0], losses[1])
    assert torch.equal(found.success[:, 0], torch.stack([(each.argmax(1) != labels).float() for each in answers[0]]))


def test_one_restart_on_f_is_not_scored_since_the_study_has_fs_output_on_its_images(tmp_path: Path) -> None:
    attacks = [
        {"pgd": {"steps": [2]}, "epsilon": 0.03},
        {"eot_pgd": {"steps": [2]}, "epsilon": 0.03},
        {"eot_pgd": {"steps": [2]}, "epsilon": 0.03, "knowledge": "adaptive"},
    ]
    study, bench = bench_of(tmp_path / "s", attacks=attacks, defenses=[{"mi_ol": {"lam": 0.5}}])
    asked = {}
    for work in study.plan().attacks:
        done = bench.compute(work, 0, 20)
        assert (done.forward, done.backward) == tuple(20 * passes for passes in study.planner.costs.of(work))
        (block,) = bench.store.blocks("adversarial", work.key)
        table, _ = bench.store.read_block("adversarial", work.key, block)
        asked[work.method, work.defense is None] = {table[name].null_count for name in ("loss", "success")}
    assert asked == {("pgd", True): {20}, ("eot_pgd", True): {20}, ("eot_pgd", False): {0}}


def test_a_decision_is_of_the_points_that_it_was_made_on_and_of_how_the_network_is_compiled(tmp_path: Path) -> None:
    paths = set()
    for count, compiled in ((20, None), (100, None), (CHECKED, None), (300, None), (300, "default")):
        study, _ = bench_of(
            tmp_path / f"{count}{compiled}", points={"count": count}, precision="auto", compile=compiled
        )
        paths.add(decision_path(study, study.planner.classifiers[0].key))
    assert len(paths) == 4  # 200 and 300 points: both decide on the first 200


def test_a_part_that_fails_ends_the_others_and_its_error_is_raised() -> None:
    began: list[int] = []

    def part(number: int) -> int:
        began.append(number)
        if number == 1:
            raise ValueError("this one")
        time.sleep(0.05)
        return number

    with pytest.raises(ValueError, match="this one"):
        side_by_side(part, range(50), 2, CPU)
    assert len(began) < 10
    assert side_by_side(lambda number: number, range(5), 2, CPU) == [0, 1, 2, 3, 4]


def test_a_copy_of_a_classifier_counts_for_itself_and_carries_no_counts(classifier: Any) -> None:
    own = copy.deepcopy(classifier)
    own(torch.rand(3, 3, 8, 8))
    other = copy.deepcopy(own)
    other(torch.rand(2, 3, 8, 8))
    assert (own.passes.take()[0], other.passes.take()[0]) == (3, 2)


def test_a_gpu_is_told_to_compute_fp32_as_fp32_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [(torch.backends.cudnn, name) for name in ("allow_tf32", "deterministic", "benchmark")]
    flags += [(torch.backends.cuda.matmul, "allow_tf32")]
    flags += [(torch.utils.deterministic, "fill_uninitialized_memory")]
    before = [getattr(*flag) for flag in flags]
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        exact_arithmetic(CPU)
        assert [getattr(*flag) for flag in flags] == before
        assert not torch.are_deterministic_algorithms_enabled()
        exact_arithmetic(torch.device("cuda"))
        assert [getattr(*flag) for flag in flags] == [False, True, False, False, False]
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        for flag, value in zip(flags, before, strict=True):
            setattr(*flag, value)
