"""Two studies at once in one store that share work: blocks cut otherwise, with more or less in them, stored in any order."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from helpers.studies import DEFENSE_GRID, Tiny, compute, derived, problems_in, stages, tiny

from mi_ray.cluster import trials
from mi_ray.cluster.trials import SettingTrainable
from mi_ray.figures import fig2
from mi_ray.plan.work import Inputs, Work
from mi_ray.store.blocks import Store
from mi_ray.store.excerpt import STEP, _copy_outputs
from mi_ray.study import workbench
from mi_ray.study.estimate import rows_of

ONE = {"defenses": DEFENSE_GRID[:1], "draws": 1}
STOPS = {"pgd": {"step_size": 0.05, "restarts": 1}, "epsilon": 0.1}


def attack(*steps: int) -> list[dict[str, Any]]:
    return [{**STOPS, "pgd": {**STOPS["pgd"], "steps": list(steps)}}]


def pair(folder: Path) -> tuple[Tiny, Tiny]:
    """60 points of N = 1 and 3, at one stop; 40 points of N = 3, at another stop as well."""
    first = tiny(folder, name="first", executions=[1, 3], points={"count": 60}, attacks=attack(2), **ONE)
    second = tiny(folder, name="second", executions=3, points={"count": 40}, attacks=attack(1, 2), **ONE)
    assert first.work().key == second.work().key
    assert first.plan.attacks[0].key == second.plan.attacks[0].key
    return first, second


def planned(one: Tiny, size: int, works: Iterator[Work] | list[Work]) -> list[tuple[Work, int, int]]:
    return [item for work in works for item in one.bench.results.missing(work, size)]


def stored(one: Tiny, work: Work, kind: Any) -> list[tuple[int, int]]:
    return [(block.start, block.stop) for block in one.store.blocks(kind, work.key)]


def answers(one: Tiny) -> Any:
    """What the study reads of the shared outputs, on clean and on attacked images."""
    one.bench.results._outputs.cache_clear()
    of = [one.work(), one.work(attacked=True, stop=2)]
    return np.stack([one.bench.results.probabilities(work, 0, len(one.study.points))[:, -1] for work in of])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a study reads that nobody disturbs, on the first 60 points."""
    one, _ = pair(tmp_path_factory.mktemp("alone"))
    compute(one)
    return answers(one)


@pytest.mark.parametrize("first_stores_last", [True, False])
@pytest.mark.parametrize("sizes", [(20, 20), (20, 40), (40, 20)])
def test_two_studies_that_found_the_same_missing_lose_nothing(
    tmp_path: Path, alone: Any, sizes: tuple[int, int], first_stores_last: bool
) -> None:
    both = pair(tmp_path)
    for (_, firsts), (_, seconds) in zip(*(stages(one.plan) for one in both), strict=True):
        found = [
            planned(one, size, list(works)) for one, size, works in zip(both, sizes, (firsts, seconds), strict=True)
        ]
        order = [1, 0] if first_stores_last else [0, 1]
        for at in order:
            for item in found[at]:
                both[at].bench.compute(*item)
            both[1 - at].bench.results.missing(both[1 - at].work(), sizes[1 - at])  # as a setting's trial that begins
    for one in both:
        assert [row["cause"] for row in derived(one) if row["state"] != "done"] == []
        assert np.array_equal(answers(one), alone[:, :, : len(one.study.points)])
        assert compute(one) == 0
    assert problems_in(both[0].store) == []


def test_a_point_in_two_blocks_counts_once(tmp_path: Path, alone: Any) -> None:
    first, second = pair(tmp_path)
    for _, works in stages(second.plan):
        todo = planned(second, 40, list(works))
        for work, start, stop in todo:
            second.bench.compute(work, start, stop)
    compute(first, 20)
    work = second.work()
    first.bench.outputs(work, 20, 60)  # reaches beyond what the second knows, and into what both have
    assert (20, 60) in stored(first, work, "outputs")
    for one in (first, second):
        assert np.array_equal(answers(one), alone[:, :, : len(one.study.points)])


@pytest.fixture
def beside(tmp_path: Path) -> tuple[Tiny, Tiny]:
    """Two finished studies of 60 and of 40 points, whose blocks overlap since each holds what the other lacks."""
    more = {"defenses": DEFENSE_GRID[:1]}
    both = (
        tiny(tmp_path, name="first", executions=[1, 3], points={"count": 60}, attacks=attack(2), draws=1, **more),
        tiny(tmp_path, name="second", executions=[3], points={"count": 40}, attacks=attack(1, 2), draws=2, **more),
    )
    for (_, firsts), (_, seconds) in zip(*(stages(one.plan) for one in both), strict=True):
        found = [planned(one, 60, list(works)) for one, works in zip(both, (firsts, seconds), strict=True)]
        for one, items in zip(both, found, strict=True):
            for item in items:
                one.bench.compute(*item)
    for one in both:
        assert [row["cause"] for row in derived(one) if row["state"] != "done"] == []
    assert stored(both[0], both[0].plan.attacks[0], "adversarial") == [(0, 40), (0, 60)]
    return both


def test_blocks_of_other_ends_are_read_once_by_every_reader(beside: tuple[Tiny, Tiny]) -> None:
    first, second = beside
    assert problems_in(first.store) == []
    for one, count in ((first, 60), (second, 40)):
        assert [row.left for row in rows_of(one.study, one.plan, one.store)] == [(0, 0)] * 4
        results, inputs = one.bench.results, Inputs(one.plan.attacks[0], 2)
        assert results.pixel_range(inputs) == (0.0, 1.0)
        assert [found.shape for found in results.gradients(inputs, count)] == [(count,), (count,)]
        assert results.success(inputs, count).shape == (1, count)
        work = one.work()
        mean = results.probabilities(work, 0, count)[:, -1].mean(0)
        shown = fig2.outputs(one.store, work.key, one.study.points[:count], 3, work.draws)
        assert shown == pytest.approx(mean, abs=1e-6)
    larger = tiny(first.store.root, name="third", executions=[1], points={"count": 100}, attacks=attack(2), **ONE)
    of_attack = next(row for row in rows_of(larger.study, larger.plan, larger.store) if row.name == "attack")
    assert of_attack.left[1] == 40 * 2


def test_an_excerpt_keeps_blocks_that_overlap_as_they_are(beside: tuple[Tiny, Tiny], tmp_path: Path) -> None:
    first, second = beside
    out, work = Store(tmp_path / "excerpt", create=True), second.work()
    first.store.write_bytes("studies/second/study.yaml", b"points: {count: 40}")
    _copy_outputs(first.store, out, "second", [work.key])
    assert [(block.start, block.stop) for block in out.blocks("outputs", work.key)] == [(0, 40), (0, 60)]
    of_both = [fig2.outputs(store, work.key, second.study.points[:40], 3, 2) for store in (first.store, out)]
    assert of_both[1] == pytest.approx(of_both[0], abs=STEP)


def test_a_trial_computes_its_range_where_another_study_has_stored_a_block_of_other_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair(tmp_path)
    for one in (first, second):
        for _, works in stages(one.plan):
            for item in planned(one, 20, [work for work in works if work.key != first.work().key]):
                one.bench.compute(*item)
    todo = planned(first, 20, [first.work()])
    for item in planned(second, 40, [second.work()]):
        second.bench.compute(*item)
    monkeypatch.setattr(trials, "ray", SimpleNamespace(get=lambda answer: None))
    told = SimpleNamespace(remote=lambda *args: None)
    job = SimpleNamespace(locks=[SimpleNamespace(acquire=told, release=told)], block=20)
    trial = SimpleNamespace(_job=job, _bench=first.bench, trial_id="trial")
    for item in todo:
        SettingTrainable._computed(cast(SettingTrainable, trial), *item)
    assert first.bench.results.probabilities(first.work(), 0, 60).shape[2] == 60


def test_rows_that_differ_where_blocks_overlap_are_told_of(beside: tuple[Tiny, Tiny]) -> None:
    store, work = beside[0].store, beside[0].plan.attacks[0]
    wide = next(block for block in store.blocks("adversarial", work.key) if block.stop == 60)
    table, facts = store.read_block("adversarial", work.key, wide)
    labels = table["attack_label"].to_numpy().copy()
    labels[0] = (labels[0] + 1) % 10
    at = table.schema.get_field_index("attack_label")
    changed = table.set_column(at, "attack_label", pa.array(labels)).cast(table.schema)
    store.write_block("adversarial", work.key, 0, 60, changed, facts)
    assert any("points 0 to 40 must have one row each" in problem for problem in problems_in(store))


def test_a_block_that_was_stored_since_it_was_found_missing_is_not_computed_again(tmp_path: Path) -> None:
    first, second = pair(tmp_path)
    compute(first)
    assert second.bench.compute(second.work(), 0, 20).forward == 0


def test_more_that_is_stored_while_a_block_is_computed_stays(
    tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair(tmp_path)
    for one in (first, second):
        for _, works in stages(one.plan):
            for item in planned(one, 20, [work for work in works if work.key != first.work().key]):
                one.bench.compute(*item)
    of_first, of_second = planned(first, 20, [first.work()]), planned(second, 20, [second.work()])
    real, calls = workbench.component_outputs, []

    def meanwhile(*args: Any, **more: Any) -> Any:
        """The first study stores the same range, and more, while the second computes it."""
        calls.append(args)
        found = real(*args, **more)
        if len(calls) == 1:
            first.bench.compute(*of_first[0])
        return found

    monkeypatch.setattr(workbench, "component_outputs", meanwhile)
    for item in of_second:
        second.bench.compute(*item)
    for item in of_first[1:]:
        first.bench.compute(*item)
    for one in (first, second):
        assert np.array_equal(answers(one), alone[:, :, : len(one.study.points)])


def test_a_listing_that_a_cut_has_made_stale_is_read_again(
    tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = pair(tmp_path)
    compute(first, 60)
    results, work = first.bench.results, first.work()
    real, cut = first.store.blocks, []

    def stale(kind: Any, key: str) -> Any:
        found = real(kind, key)
        if key == work.key and not cut:
            cut.append(found[0])
            results._cut(work, found[0], 20)
        return found

    monkeypatch.setattr(results.store, "blocks", stale)
    assert np.array_equal(answers(first), alone)
    assert stored(first, work, "outputs") == [(0, 20), (20, 60)]


def read(one: Tiny, kind: str) -> Any:
    """What a study reads of the key that all of them share."""
    results, count = one.bench.results, len(one.study.points)
    results._outputs.cache_clear()
    results._best.cache_clear()
    if kind == "outputs":
        return results.probabilities(one.work(), 0, count)
    work = one.plan.attacks[0]
    return np.stack([results.adversarial(Inputs(work, stop), 0, count)[0] for stop in work.stops])


@pytest.mark.parametrize("seed", [1, 3, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(4, 40))])
@pytest.mark.parametrize("kind", ["outputs", "adversarial"])
def test_no_order_of_three_studies_loses_a_row(tmp_path: Path, kind: str, seed: int) -> None:
    drawn = random.Random(seed)
    more = {**ONE, "draws": 2, "executions": [2], "attacks": attack(3)}
    whole = [*pair(tmp_path), tiny(tmp_path, name="third", points={"count": 60}, **more)]
    shared = [one.work() if kind == "outputs" else one.plan.attacks[0] for one in whole]
    assert len({work.key for work in shared}) == 1
    for one in whole if kind == "outputs" else ():
        for _, works in stages(one.plan):
            for item in planned(one, 20, [work for work in works if work.key != shared[0].key]):
                one.bench.compute(*item)
    sizes = [drawn.choice([20, 40, 60]) for _ in whole]
    limits = [drawn.choice([[None], [20, None]]) for _ in whole]
    todo: list[list[Any]] = [[] for _ in whole]
    going = [0, 1, 2]
    while going:
        at = drawn.choice(going)
        if todo[at]:
            whole[at].bench.compute(*todo[at].pop())
        elif limits[at]:
            todo[at] = whole[at].bench.results.missing(shared[at], sizes[at], limits[at].pop(0))
            drawn.shuffle(todo[at])
        else:
            going.remove(at)
    found = [read(one, kind) for one in whole]
    for one, work, before in zip(whole, shared, found, strict=True):
        shutil.rmtree(Path(one.store.root) / kind / work.key)
        for item in planned(one, 60, [work]):
            one.bench.compute(*item)
        assert np.array_equal(read(one, kind), before)
