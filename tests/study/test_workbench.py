"""Blocks of a tiny study without Ray: what is missing, what is computed, what is kept, and the rows that follow."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from helpers.studies import DEFENSE_GRID, Tiny, compute, derived, finish, stages, tiny

import mi_ray.attacks.reference
import mi_ray.study.checks
import mi_ray.study.verdicts
from mi_ray.attacks import ATTACKS
from mi_ray.data import to_unit
from mi_ray.defenses import DEFENSES, DefendedClassifier, RandomTransform, predict
from mi_ray.defenses.base import EVALUATE, Executions
from mi_ray.plan.work import Inputs, Work
from mi_ray.randomness import Key
from mi_ray.store.blocks import Store
from mi_ray.store.files import DamagedFileError
from mi_ray.store.read import read_cells, read_records
from mi_ray.study.batches import BlockInput, component_outputs
from mi_ray.study.folder import keys_of
from mi_ray.study.rows import derive
from mi_ray.study.verdicts import is_deterministic
from mi_ray.study.workbench import Workbench
from mi_ray.threat_model import ThreatModel


def contents(store: Store, kind: Any, key: str) -> pa.Table:
    """All rows of a key in a fixed order."""
    tables = [store.read_block(kind, key, block)[0] for block in store.blocks(kind, key)]
    sorting = [
        (name, "ascending")
        for name in ("point", "draw", "executions", "restart", "steps")
        if name in tables[0].schema.names
    ]
    return pa.concat_tables(tables).sort_by(sorting)


def ranges(one: Tiny, work: Work, kind: Any = "outputs") -> list[tuple[int, int]]:
    return [(block.start, block.stop) for block in one.store.blocks(kind, work.key)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A study with every block; read only."""
    one = tiny(tmp_path_factory.mktemp("done"))
    assert compute(one) == 3 * (len(one.plan.attacks) + len(one.plan.outputs))
    return one


def test_rows_are_the_same_bit_for_bit_whatever_the_blocks_and_their_order(done: Tiny, tmp_path: Path) -> None:
    other = tiny(tmp_path)
    compute(other, 40, backwards=True)
    for kind, works in stages(done.plan):
        for work in works:
            assert ranges(other, work, kind) == [(0, 40), (40, 60)] != ranges(done, work, kind)
            assert contents(other.store, kind, work.key).equals(contents(done.store, kind, work.key))


def test_a_block_is_whole_batches_however_small_it_is_asked_for(tmp_path: Path) -> None:
    one = tiny(tmp_path)
    found = {
        size: [(start, stop) for _, start, stop in one.bench.results.missing(one.work(None), size)]
        for size in (1, 39, 40, 1000)
    }
    assert found[1] == found[39] == [(0, 20), (20, 40), (40, 60)]
    assert (found[40], found[1000]) == ([(0, 40), (40, 60)], [(0, 60)])


def test_nothing_is_missing_when_all_is_there(done: Tiny) -> None:
    assert [
        item for kind, works in stages(done.plan) for w in works for item in done.bench.results.missing(w, 20)
    ] == []


def test_adversarial_rows_hold_every_restart_stop_and_point_inside_the_ball(done: Tiny) -> None:
    work = done.plan.attacks[0]
    rows = contents(done.store, "adversarial", work.key).to_pandas()
    points = done.study.points[:60]
    assert len(rows) == 60 * 2 * 2
    assert set(zip(rows["point"], rows["restart"], rows["steps"], strict=True)) == {
        (point, restart, steps) for point in points for restart in (0, 1) for steps in (1, 3)
    }
    clean = dict(zip(points, to_unit(done.bench.data.images).flatten(1).numpy(), strict=True))
    distance = [np.abs(row.image - clean[row.point]).max() for row in rows.itertuples()]
    np.testing.assert_allclose(rows["linf"], distance, atol=1e-6)
    assert max(distance) <= 0.1 + 1e-6
    labels = dict(zip(points, done.bench.data.labels, strict=True))
    assert [labels[point] for point in rows["point"]] == list(rows["label"]) == list(rows["attack_label"])


def test_stored_attack_is_the_attack_of_the_python_interface(done: Tiny) -> None:
    key, plain = done.plan.attacks[0].classifier, Inputs()
    made = ATTACKS.make("pgd", {"steps": [1, 3], "step_size": 0.05, "restarts": 2})
    x, points = done.bench.images(plain, 0, 20), done.study.points[:20]
    y = torch.from_numpy(np.array(done.bench.data.labels[:20]))
    found = made(done.bench.classifier(key, "fp32"), x, y, ThreatModel(0.1), done.study.sweep.seed, points)
    stored, labels, linf = done.bench.results.adversarial(Inputs(done.plan.attacks[0], 3), 0, 20)
    assert torch.equal(torch.from_numpy(stored), found)
    assert (list(labels), linf.max() <= 0.1 + 1e-6) == (y.tolist(), True)


def test_a_range_that_cuts_through_blocks_is_put_together(done: Tiny) -> None:
    for work in (done.work(), done.work(attacked=True)):
        assert np.array_equal(
            done.bench.results.probabilities(work, 10, 50), done.bench.results.probabilities(work, 0, 60)[:, :, 10:50]
        )
    inputs = done.work(attacked=True).inputs
    assert torch.equal(done.bench.images(inputs, 10, 50), done.bench.images(inputs, 0, 60)[10:50])


def test_outputs_are_what_the_python_interface_predicts(done: Tiny) -> None:
    pool = done.pool()
    for name, attacked in (("gaussian_noise", False), ("mi_pl", True), ("mi_ol", True)):
        work = done.work(name, attacked=attacked)
        assert work.component
        model, x = done.bench.classifier(work.classifier, "fp32"), done.bench.images(work.inputs, 20, 40)
        found = predict(model, DEFENSES.make(*work.component), x, pool, 3, 0, done.study.points[20:40])
        stored = done.bench.results.probabilities(work, 20, 40)
        assert stored.shape == (2, 2, 20, 10)
        np.testing.assert_allclose(stored[0, 1], found.numpy(), atol=1e-6)
        assert not np.allclose(stored[0], stored[1])


def test_records_say_what_the_defense_answered(done: Tiny) -> None:
    pool = done.pool()
    for name, attacked in (("none", False), ("gaussian_noise", True), ("mi_combined", False), ("mi_combined", True)):
        cell = done.cell(name, attacked=attacked)
        rows = derive(done.bench.results, cell, 20, 60).to_pandas()
        model, x = done.bench.classifier(cell.classifier, "fp32"), done.bench.images(cell.inputs, 0, 60)
        answered = predict(model, DEFENSES.make(*cell.defense), x, pool, 3, 0, done.study.points[:60]).numpy()
        own = torch.softmax(model(x), 1).numpy()
        np.testing.assert_allclose(np.stack(rows["probabilities"]), answered, atol=1e-5)
        assert list(rows["predicted"]) == list(answered.argmax(1))
        np.testing.assert_allclose(rows["confidence_undefended"], own.max(1), atol=1e-5)
        drop = own.max(1) - answered[np.arange(60), own.argmax(1)]
        np.testing.assert_allclose(rows["score"], drop, atol=1e-5)
        assert list(rows["point"]) == done.study.points[:60]
        assert list(rows["selection"]) == [True] * 20 + [False] * 40
        assert (rows["linf"].max() > 0.05) == attacked


def test_correct_draws_count_right_answers_over_the_draws(done: Tiny) -> None:
    cell = done.cell("gaussian_noise", attacked=True)
    rows = derive(done.bench.results, cell, 20, 60).to_pandas()
    work, n = cell.components[0]
    answers = done.bench.results.probabilities(work, 0, 60)[:, work.executions.index(n)].argmax(-1)
    assert list(rows["correct_draws"]) == list((answers == np.array(rows["label"])).sum(0))
    assert set(rows["draws"]) == {2}


def copied(one: Tiny, folder: Path) -> Tiny:
    """The same study in a copy of its store."""
    store = Store(shutil.copytree(one.store.root, folder, dirs_exist_ok=True))
    return Tiny(one.study, one.plan, store, Workbench(one.study.data(store.root, one.bench.data.classifiers)))


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A study of one defense and one attack with every block; read only."""
    one = tiny(tmp_path_factory.mktemp("computed"), defenses=DEFENSE_GRID[:1])
    compute(one)
    return one


@pytest.fixture(scope="module")
def finished(computed: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, list[dict[str, Any]]]:
    """The same with its records, and the rows of its cells; read only."""
    one = copied(computed, tmp_path_factory.mktemp("finished"))
    return one, finish(one)


@pytest.fixture
def fresh(computed: Tiny, tmp_path: Path) -> Tiny:
    """The same in a copy that a test may damage."""
    return copied(computed, tmp_path)


def file_of(one: Tiny, work: Work, position: int = 1, kind: str = "outputs") -> Path:
    return Path(one.store.root) / one.store.blocks(kind, work.key)[position].path  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["adversarial", "outputs"])
@pytest.mark.parametrize("damage", ["delete", "truncate", "flip", "empty"])
def test_exactly_the_block_that_was_lost_is_missing(fresh: Tiny, kind: Any, damage: str) -> None:
    work = fresh.plan.attacks[0] if kind == "adversarial" else fresh.work()
    before, path = contents(fresh.store, kind, work.key), file_of(fresh, work, kind=kind)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"truncate": content[:500], "flip": content, "empty": b""}.get(damage, b""))
    if damage == "delete":
        path.unlink()
    assert [(w.key, a, b) for w, a, b in fresh.bench.results.missing(work, 20)] == [(work.key, 20, 40)]
    assert not path.exists()
    assert compute(fresh) == 1
    assert contents(fresh.store, kind, work.key).equals(before)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"executions": [2, 8]}, {"executions": [1, 2, 3, 8], "draws": [0, 1]}),
        ({"draws": 3}, {"executions": [1, 3], "draws": [0, 1, 2]}),
        ({"executions": 1, "draws": 1}, {"executions": [1, 3], "draws": [0, 1]}),
    ],
)
def test_a_block_widened_for_another_study_keeps_what_it_had(fresh: Tiny, changes: Any, kept: dict[str, Any]) -> None:
    work = fresh.work()
    before = contents(fresh.store, "outputs", work.key)
    other = tiny(Path(fresh.store.root), **{"defenses": DEFENSE_GRID[:1], **changes})
    assert other.work().key == work.key
    compute(other)
    facts = [fresh.store.read_block("outputs", work.key, block)[1] for block in fresh.store.blocks("outputs", work.key)]
    assert [{name: f[name] for name in kept} for f in facts] == [kept] * 3
    after = contents(fresh.store, "outputs", work.key)
    had = pa.compute.and_(
        pa.compute.is_in(after["executions"], pa.array([1, 3], pa.int32())), pa.compute.less(after["draw"], 2)
    )
    assert after.filter(had).equals(before)
    assert compute(fresh) == compute(other) == 0


def test_another_stop_is_added_to_the_trajectory(fresh: Tiny) -> None:
    work = fresh.plan.attacks[0]
    before = contents(fresh.store, "adversarial", work.key)
    pgd = {"pgd": {"steps": [2], "step_size": 0.05, "restarts": 2}, "epsilon": 0.1}
    other = tiny(Path(fresh.store.root), defenses=["none"], attacks=[pgd])
    compute(other)
    after = contents(fresh.store, "adversarial", work.key)
    assert set(after["steps"].to_pylist()) == {1, 2, 3}
    assert after.filter(pa.compute.not_equal(after["steps"], 2)).equals(before)
    assert compute(fresh) == 0


def test_a_larger_study_computes_only_the_points_that_are_new(fresh: Tiny) -> None:
    larger = tiny(Path(fresh.store.root), points={"count": 90}, defenses=DEFENSE_GRID[:1])
    todo = [(a, b) for _, a, b in larger.bench.results.missing(larger.work(), 20)]
    assert todo == [(60, 80), (80, 100)]


def test_blocks_beyond_a_smaller_studys_points_are_left_alone_or_cut(tmp_path: Path) -> None:
    large = tiny(tmp_path, points={"count": 80}, defenses=DEFENSE_GRID[:1])
    compute(large, 40)
    before = contents(large.store, "outputs", large.work().key)
    small = tiny(tmp_path, points={"count": 20}, defenses=DEFENSE_GRID[:1], executions=[1, 4])
    assert [(a, b) for _, a, b in small.bench.results.missing(small.work(), 40)] == [(0, 20)]
    assert ranges(large, large.work()) == [(0, 20), (20, 40), (40, 80)]
    assert contents(large.store, "outputs", large.work().key).equals(before)
    compute(small, 40)
    rows = contents(large.store, "outputs", large.work().key).to_pandas()
    wide = set(rows[rows["executions"] == 4]["point"])
    assert wide == set(large.study.points[:20])
    assert len(rows[rows["executions"] == 3]) == 2 * 80
    assert compute(large, 40) == 0
    stops = tiny(
        tmp_path,
        points={"count": 20},
        defenses=["none"],
        attacks=[{"pgd": {"steps": [2], "step_size": 0.05, "restarts": 2}, "epsilon": 0.1}],
    )
    compute(stops, 40)
    assert ranges(large, large.plan.attacks[0], "adversarial") == [(0, 20), (20, 40), (40, 80)]
    assert compute(large, 40) == 0


def test_a_cut_block_shares_out_what_it_cost(tmp_path: Path) -> None:
    large = tiny(tmp_path, points={"count": 40}, defenses=DEFENSE_GRID[:1])
    compute(large, 40)
    small = tiny(tmp_path, points={"count": 20}, defenses=DEFENSE_GRID[:1], draws=3)
    small.bench.results.missing(small.work(), 40)
    passes = [large.store.block_facts(b)["forward_passes"] for b in large.store.blocks("outputs", large.work().key)]
    assert passes == [20 * 2 * 5, 20 * 2 * 5]


def test_a_block_that_overlaps_another_is_removed_and_computed_once(fresh: Tiny) -> None:
    work = fresh.work()
    before = contents(fresh.store, "outputs", work.key)
    fresh.bench.outputs(work, 0, 40)  # as two runs at once with different blocks would leave it
    assert ranges(fresh, work) == [(0, 20), (0, 40), (20, 40), (40, 60)]
    compute(fresh)
    assert ranges(fresh, work) == [(0, 20), (20, 40), (40, 60)]
    assert contents(fresh.store, "outputs", work.key).equals(before)


def test_blocks_of_other_weights_are_computed_again(fresh: Tiny) -> None:
    retrained = tiny(Path(fresh.store.root), weights=1, defenses=DEFENSE_GRID[:1])
    assert compute(retrained) == 3 * (len(fresh.plan.attacks) + len(fresh.plan.outputs))
    facts = [retrained.store.block_facts(block) for block in retrained.store.blocks("outputs", fresh.work().key)]
    assert {f["weights"] for f in facts} == {retrained.bench.results.weights(fresh.work().classifier)}
    assert facts[0]["weights"] != fresh.bench.results.weights(fresh.work().classifier)


def test_outputs_that_lack_what_is_asked_for_are_never_taken_for_it(fresh: Tiny) -> None:
    root = Path(fresh.store.root)
    for changes in ({"draws": 3}, {"executions": [1, 3, 7]}, {"points": {"count": 80}}):
        asks_more = tiny(root, **{"defenses": DEFENSE_GRID[:1], **changes})
        with pytest.raises(DamagedFileError, match="must "):
            asks_more.bench.results.probabilities(asks_more.work(), 0, len(asks_more.study.points[:80]))
    fresh.store.remove(f"adversarial/{fresh.plan.attacks[0].key}")
    with pytest.raises(DamagedFileError, match="must cover points 0 to 20; it has 0"):
        fresh.bench.results.adversarial(Inputs(fresh.plan.attacks[0], 3), 0, 20)


def test_a_stop_that_was_not_stored_is_refused(fresh: Tiny) -> None:
    with pytest.raises(DamagedFileError, match="must hold every point at stop 2"):
        fresh.bench.results.adversarial(Inputs(fresh.plan.attacks[0], 2), 0, 20)


def test_cells_are_written_with_their_states_and_read_again_without_computing(done: Tiny, tmp_path: Path) -> None:
    one = copied(done, tmp_path)
    rows = finish(one)
    assert {row["state"] for row in rows} == {"done"}
    assert len(rows) == len(one.plan.cells) == len(read_cells(one.store, "tiny"))
    frame = read_records(one.store, "tiny")
    assert len(frame) == 60 * len(rows)
    assert not frame.duplicated(["cell", "point"]).any()
    cells = read_cells(one.store, "tiny").set_index("cell")
    reported = frame[~frame["selection"]]
    mean = (reported["correct_draws"] / reported["draws"]).groupby(reported["cell"]).mean()
    np.testing.assert_allclose(mean.sort_index(), cells["accuracy"].sort_index())
    assert ((cells["accuracy_low"] <= cells["accuracy"]) & (cells["accuracy"] <= cells["accuracy_high"])).all()
    assert cells["selected"].any()


def test_a_damaged_record_is_derived_again_from_its_outputs(finished: Any, tmp_path: Path) -> None:
    one, first = copied(finished[0], tmp_path), finished[1]
    key = one.plan.cells[0].key
    before = contents(one.store, "records", key)
    path = Path(one.store.root) / one.store.blocks("records", key)[0].path
    path.write_bytes(path.read_bytes()[:-9])
    assert finish(one) == first
    assert contents(one.store, "records", key).equals(before)


def test_a_cell_without_its_outputs_is_missing_or_failed_with_the_cause(fresh: Tiny) -> None:
    one, lost = fresh, fresh.work()
    one.store.remove(f"outputs/{lost.key}")
    touched = [cell.key for cell in one.plan.cells if lost.key in {work.key for work in cell.needs()}]
    for cause, state in ((None, "missing"), ("out of memory", "failed")):
        seen: list[int] = []
        rows = derived(one, dict.fromkeys(touched, cause).get, seen.append)
        bad = [row for row in rows if row["state"] != "done" and row["attack"] != "worst_case"]
        assert [row["cell"] for row in bad] == touched
        assert {row["state"] for row in bad} == {state}
        assert all((cause or f"outputs/{lost.key} must cover points 0 to 60") in row["cause"] for row in bad)
        assert sum(seen) == len(rows)


def test_a_worst_case_without_a_member_is_missing_or_failed_as_that_member_is(fresh: Tiny) -> None:
    fresh.store.remove(f"outputs/{fresh.work(attacked=True).key}")
    lost = fresh.cell("gaussian_noise", attacked=True).key
    for cause, state in ((None, "missing"), ("out of memory", "failed")):
        rows = [row for row in derived(fresh, {lost: cause}.get) if row["executions"] == 3]
        bad = [row for row in rows if row["state"] != "done"]
        assert [(row["attack"], row["state"]) for row in bad] == [("pgd", state), ("worst_case", state)]
        assert (cause or f"records/{lost} must be there: the worst case is taken over it") in bad[1]["cause"]


def test_rows_of_a_classifier_that_was_trained_again_are_derived_again(finished: Any, tmp_path: Path) -> None:
    store = copied(finished[0], tmp_path).store
    before = read_records(store, study="tiny")
    finish(tiny(store.root, weights=1, defenses=DEFENSE_GRID[:1]), 60)
    after = read_records(store, study="tiny")
    assert sorted(after["cell"].unique()) == sorted(before["cell"].unique())
    assert (after["confidence_undefended"].to_numpy() != before["confidence_undefended"].to_numpy()).mean() > 0.9


def test_a_limit_asks_for_the_first_points_alone(tmp_path: Path) -> None:
    one = tiny(tmp_path, defenses=["none"])
    clean = one.work(None)
    limited = [(start, stop) for _, start, stop in one.bench.results.missing(clean, 20, 40)]
    assert limited == [(0, 20), (20, 40)]
    assert [part[1:] for part in one.bench.results.missing(clean, 60, 40)] == [(0, 40)]
    one.bench.outputs(clean, 0, 40)
    assert one.bench.results.missing(clean, 20, 40) == []
    assert [part[1:] for part in one.bench.results.missing(clean, 20)] == [(40, 60)]


def test_what_is_beyond_a_limit_is_neither_asked_for_nor_widened(fresh: Tiny) -> None:
    work = fresh.work()
    wide = replace(work, executions=(1, 3, 8))
    assert [part[1:] for part in fresh.bench.results.missing(wide, 20, 20)] == [(0, 20)]
    fresh.bench.outputs(fresh.bench.results.missing(wide, 20, 20)[0][0], 0, 20)
    assert [fresh.store.block_facts(block)["executions"] for block in fresh.store.blocks("outputs", work.key)] == [
        [1, 3, 8],
        [1, 3],
        [1, 3],
    ]
    assert compute(fresh) == 0


ADAPTIVE: list[Any] = [
    {"pgd": {"steps": [1, 3], "step_size": 0.05, "restarts": 2}, "epsilon": 0.1},
    {
        "eot_pgd": {"steps": [1, 2], "step_size": 0.05, "eot": 3, "scoring_draws": 1},
        "epsilon": 0.1,
        "knowledge": "adaptive",
    },
    {"averaged": {"steps": 1, "eot": 2, "scoring_draws": 1}, "epsilon": 0.1, "knowledge": "adaptive"},
]
FEW: dict[str, Any] = {"points": {"count": 40, "selection": 20}}  # two blocks, or one of both
ATTACKED: dict[str, Any] = {
    **FEW,
    "attacks": ADAPTIVE,
    "executions": 3,
    "defenses": [{"mi_combined": {"lam_pl": 0.6, "lam_ol": 0.5, "threshold": 0.0}}],
}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A study with adaptive attacks, every block of it; read only."""
    one = tiny(tmp_path_factory.mktemp("attacked"), **ATTACKED)
    compute(one)
    return one


def test_adaptive_attacks_are_the_same_bit_for_bit_whatever_the_blocks_and_their_order(
    attacked: Tiny, tmp_path: Path
) -> None:
    other = tiny(tmp_path, **ATTACKED)
    compute(other, 40, backwards=True)
    assert [work.method for work in other.plan.attacks] == ["pgd", "eot_pgd", "averaged"]
    for kind, works in stages(attacked.plan):
        for work in works:
            assert ranges(other, work, kind) != ranges(attacked, work, kind)
            assert contents(other.store, kind, work.key).equals(contents(attacked.store, kind, work.key))


def test_a_stored_adaptive_attack_is_that_of_the_python_interface(attacked: Tiny) -> None:
    work = next(work for work in attacked.plan.attacks if work.method == "eot_pgd")
    assert work.defense
    made = ATTACKS.make("eot_pgd", {**work.values, "steps": list(work.stops)})
    x, points = attacked.bench.images(Inputs(), 20, 40), attacked.study.points[20:40]
    y = torch.from_numpy(np.array(attacked.bench.data.labels[20:40]))
    model = DefendedClassifier(
        attacked.bench.classifier(work.classifier, "fp32"), DEFENSES.make(*work.defense), attacked.pool(), 3
    )
    found = made(model, x, y, ThreatModel(0.1, knowledge="adaptive"), attacked.study.sweep.seed, points)
    stored, _, linf = attacked.bench.results.adversarial(Inputs(work, 2), 20, 40)
    assert torch.equal(torch.from_numpy(stored), found)
    assert 0.05 < linf.max() <= 0.1 + 1e-6


def test_figures_of_an_attack_are_of_all_its_stored_images(attacked: Tiny) -> None:
    for work, inside in zip(attacked.plan.attacks, (True, True, False), strict=True):
        stop = work.stops[-1]
        low, high = attacked.bench.results.pixel_range(Inputs(work, stop))
        zero, gradients = attacked.bench.results.gradients(Inputs(work, stop), 40)
        rows = contents(attacked.store, "adversarial", work.key).to_pandas()
        rows = rows[rows["steps"] == stop]
        assert (low, high) == (min(0.0, np.stack(rows["image"]).min()), max(1.0, np.stack(rows["image"]).max()))
        assert (low >= 0 and high <= 1) == inside  # as published, the averaged attack may leave the box
        assert (zero.sum(), gradients.sum()) == (rows["zero_gradients"].sum(), len(rows) * stop)
        few = attacked.bench.results.gradients(Inputs(work, stop), 30)[0]  # a study of fewer points, in mid-block
        assert few.tolist() == zero[:30].tolist()
        by_point = rows.groupby("point")["zero_gradients"].sum()
        assert zero.tolist() == [by_point[point] for point in attacked.study.points[:40]]


def test_a_network_with_randomness_of_its_own_is_found_out(attacked: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    key = attacked.plan.classifiers[0].key
    assert is_deterministic(attacked.bench.data, key)
    # On the head of a cluster whose workers alone have GPUs it is asked on the CPU.
    assert is_deterministic(replace(attacked.bench.data, device="cuda"), key)
    whole = attacked.bench.classifier(key, "fp32")
    noisy: Any = lambda *_: lambda x: torch.nn.functional.dropout(whole(x), 0.5)  # noqa: E731
    monkeypatch.setattr(mi_ray.study.results, "prepared", noisy)
    assert not is_deterministic(attacked.bench.data, key)


def test_a_counterpart_mixes_the_clean_image_with_the_samples_of_the_adversarial_one(tmp_path: Path) -> None:
    one = tiny(tmp_path, attacks=ADAPTIVE[:1], defenses=[{"mi_ol": 0.5}], executions=3, counterparts=True)
    compute(one)
    cell = one.cell("mi_ol", attacked=True)
    (work,), (component, _) = cell.counterparts, cell.components[0]
    clean, model = one.bench.images(Inputs(), 0, 60), one.bench.classifier(work.classifier, "fp32")
    predicted = model(one.bench.images(cell.inputs, 0, 60)).argmax(1)
    assert not torch.equal(predicted, model(clean).argmax(1))
    made: Any = DEFENSES.make(*component.component)  # type: ignore[misc]
    found = component_outputs(
        model, made, BlockInput(clean, one.study.points[:60], 0, 20), predicted, one.pool(), (3,), 2
    )
    np.testing.assert_allclose(one.bench.results.probabilities(work, 0, 60), found.numpy(), atol=1e-6)
    alone = next(w for w in one.plan.outputs if w.component and not w.inputs.attack and w.key != work.key)
    same = (predicted == model(clean).argmax(1)).numpy()
    left, right = (one.bench.results.probabilities(w, 0, 60)[0, 0] for w in (work, alone))
    assert np.allclose(left[same], right[same], atol=1e-6)
    assert not np.allclose(left[~same], right[~same], atol=1e-6)


def test_a_whole_perturbation_is_added_to_each_mixture_of_the_clean_image(tmp_path: Path) -> None:
    changes = {"attacks": ADAPTIVE[:1], "defenses": [{"mi_ol": 0.5}], "executions": 7}  # two chunks of executions
    one = tiny(tmp_path, **changes, points={"count": 20, "selection": 5}, counterparts="mechanisms")
    compute(one)
    cell = one.cell("mi_ol", attacked=True, executions=7)
    (work,), points = cell.transferred, one.study.points[:20]
    clean, model = one.bench.images(Inputs(), 0, 20), one.bench.classifier(work.classifier, "fp32")
    attacked, made = one.bench.images(cell.inputs, 0, 20), DEFENSES.make("mi_ol", 0.5)
    assert isinstance(made, RandomTransform)
    for draw in (0, 1):
        executions = Executions(made, one.pool(), Key(0, EVALUATE, draw=draw), points, 7)
        mixtures = torch.cat(list(executions.copies(clean, model(attacked).argmax(1))))[:7]
        expected = torch.stack([model(copy + attacked - clean).softmax(1) for copy in mixtures]).mean(0)
        np.testing.assert_allclose(one.bench.results.probabilities(work, 0, 20)[draw, 0], expected, atol=1e-5)
    (counterpart,) = cell.counterparts
    found, without = (one.bench.results.probabilities(w, 0, 20) for w in (work, counterpart))
    assert np.abs(found - without).max() > 1e-3
    told = {row["cell"]: json.loads(row["work"]) for row in finish(one)}
    assert told[cell.key]["transferred"] == [work.key]
    assert {key for key, said in told.items() if "transferred" in said} == {
        c.key for c in one.plan.cells if c.transferred
    }


def test_the_detection_gap_of_a_cell_is_that_of_its_reported_records(finished: Any) -> None:
    one, rows = finished
    rows = [row for row in rows if row["defense"] == "gaussian_noise" and row["executions"] == 3]
    records = read_records(one.store, study=one.study.sweep.name)
    scores = records[~records["selection"]].pivot(index="point", columns="cell", values="score")
    (clean,) = [row["cell"] for row in rows if row["attack"] == "none"]
    attacked = [row for row in rows if row["attack"] != "none"]
    assert len(attacked) == 3  # two stops, and the worst of them
    for row in attacked:
        assert row["detection_gap"] == pytest.approx((scores[row["cell"]] - scores[clean]).mean(), abs=1e-7)
        assert row["detection_gap_low"] < row["detection_gap"] < row["detection_gap_high"]
    stored = read_cells(one.store, one.study.sweep.name).set_index("cell")["detection_gap"]
    assert stored.notna().sum() == 2 * len(attacked)  # N = 1 too, and neither clean cells nor F itself


CHECKED: dict[str, Any] = {**FEW, "attacks": ADAPTIVE[:2], "defenses": [{"mi_ol": 0.5}], "executions": 3}


@pytest.fixture
def quick_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Controls of a few steps: here it is their blocks that matter."""
    monkeypatch.setattr(mi_ray.attacks.reference, "STEPS", 2)
    for name in ("LARGE_STEPS", "QUERIES", "TRIES", "FIXED_STEPS"):
        monkeypatch.setattr(mi_ray.study.checks, name, 2)


def test_a_study_with_checks_has_the_rows_of_one_without(quick_controls: None, tmp_path: Path) -> None:
    plain, checked = (
        tiny(tmp_path / level, **CHECKED, checks=checks)
        for level, checks in (("plain", "cheap"), ("checked", {"points": 20}))
    )
    rows = {name: finish(one) for name, one in (("plain", plain), ("checked", checked))}
    assert checked.plan.checked == 20
    own = {work.key: work for work in plain.plan.attacks}
    for key, work in own.items():
        asked = next(w for w in checked.plan.check_attacks() if w.key == key).stops
        assert set(work.stops) < set(asked)  # the check went on along the same trajectory
        assert ranges(checked, work, "adversarial") == [(0, 20), (20, 40)]
        stored = [checked.store.block_facts(block)["stops"] for block in checked.store.blocks("adversarial", key)]
        assert stored == [list(asked), list(work.stops)]
        both = contents(checked.store, "adversarial", key)
        mine = pa.compute.is_in(both["steps"], pa.array(work.stops, pa.int32()))
        assert both.filter(mine).equals(contents(plain.store, "adversarial", key))
    for cell in plain.plan.cells:
        assert contents(checked.store, "records", cell.key).equals(contents(plain.store, "records", cell.key))
    judged = ("checks", "verdict", "forward_passes", "backward_passes", "seconds")
    kept = [[{k: v for k, v in row.items() if k not in judged} for row in some] for some in rows.values()]
    assert repr(kept[0]) == repr(kept[1])
    assert {row["verdict"] for row in rows["plain"] if row["attack"] != "none"} == {"not run"}


def test_checks_asked_for_later_widen_the_first_blocks_and_lose_nothing(quick_controls: None, tmp_path: Path) -> None:
    few = {**CHECKED, "attacks": ADAPTIVE[:1], "defenses": ["none"]}
    plain = tiny(tmp_path, **few)
    compute(plain)
    before = {work.key: contents(plain.store, "adversarial", work.key) for work in plain.plan.attacks}
    checked = tiny(tmp_path, **few, checks={"points": 20})
    compute(checked)
    for work in plain.plan.attacks:
        stops = [plain.store.block_facts(block)["stops"] for block in plain.store.blocks("adversarial", work.key)]
        assert stops[0] != stops[1] == list(work.stops)
        after = contents(plain.store, "adversarial", work.key)
        mine = pa.compute.is_in(after["steps"], pa.array(work.stops, pa.int32()))
        assert after.filter(mine).equals(before[work.key])
    assert compute(plain) == compute(checked) == 0


def test_no_step_is_done_twice_where_checks_read_further_stops_off_the_studys_trajectories(
    quick_controls: None, tmp_path: Path
) -> None:
    attacks = [
        {"pgd": {"steps": [2, 5], "step_size": 0.05}, "epsilon": 0.1},  # the checks read 4 and 10
        {"random_noise": {"tries": [2, 3]}, "epsilon": 0.1},  # it cannot go on, so that 4 and 6 are read at once
    ]
    one = tiny(
        tmp_path,
        attacks=attacks,
        defenses=["none"],
        checks={"points": 20, "black_box": "never"},
        options={"attack_labels": "predicted"},
    )
    at_once = one.plan.attacks_at_once(lambda method: ATTACKS[method].goes_on)
    assert [(work.method, work.stops) for work in at_once] == [("pgd", (2, 4, 5)), ("random_noise", (2, 3, 4, 6))]
    compute(one)
    planned = one.study.planner.cost(one.plan)
    for way in ("forward", "backward"):
        stages = ("attack", "evaluation", "checks")
        blocks = [
            one.store.block_facts(block)[f"{way}_passes"]
            for kind in ("adversarial", "outputs")
            for key in keys_of(one.plan)[kind]
            for block in one.store.blocks(kind, key)
        ]
        assert sum(blocks) == sum(planned.get(f"{stage}_{way}", 0) for stage in stages)
