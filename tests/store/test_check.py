"""Looking at a store from outside: a sound one passes, each kind of damage is found, nothing in use is collected."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.studies import Tiny, problems_in

from mi_ray.store.blocks import Store
from mi_ray.store.check import check_store
from mi_ray.store.locks import lock_study
from mi_ray.store.manifest import UNFINISHED, overviews, unreferenced
from mi_ray.store.read import write_cells
from mi_ray.store.schemas import CELLS, SCHEMAS
from mi_ray.study.folder import mark
from mi_ray.study.workbench import Workbench


@pytest.fixture
def store(original: Tiny, tmp_path: Path) -> Store:
    """A copy of the finished store that a test may damage."""
    return Store(shutil.copytree(original.store.root, tmp_path / "store"))


def key_of(one: Tiny, kind: str) -> str:
    return {
        "adversarial": one.plan.attacks[0].key,
        "outputs": one.work().key,
        "records": one.cell("gaussian_noise", attacked=True).key,
    }[kind]


def rewritten(store: Store, one: Tiny, kind: Any, change: Callable[[pa.Table], pa.Table], **facts: Any) -> str:
    """Write a block again with other rows or facts, as sound a file as before; returns its path."""
    key = key_of(one, kind)
    block = store.blocks(kind, key)[0]
    rows, before = store.read_block(kind, key, block)
    store.write_block(kind, key, block.start, block.stop, change(rows), {**before, **facts})
    return block.path


def with_column(name: str, change: Callable[[list[Any]], list[Any]]) -> Callable[[pa.Table], pa.Table]:
    """A change of one column's values."""

    def changed(rows: pa.Table) -> pa.Table:
        field = rows.schema.field(name)
        values = pa.array(change(rows[name].to_pylist()), field.type)
        return rows.set_column(rows.schema.get_field_index(name), field, values)

    return changed


def first(value: Any) -> Callable[[list[Any]], list[Any]]:
    """Replace a column's first value (or, by a function, make it from the old one)."""
    return lambda values: [value(values[0]) if callable(value) else value, *values[1:]]


def test_a_sound_store_has_no_problem_and_every_file_is_looked_at(original: Tiny) -> None:
    problems, files = check_store(original.store)
    assert problems == []
    assert files == len(original.store.files("").keys() - {"mi-ray-store.json"})


@pytest.mark.parametrize("kind", ["adversarial", "outputs", "records"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_block_is_named_once(store: Store, original: Tiny, kind: Any, damage: str) -> None:
    path = store.blocks(kind, key_of(original, kind))[0].path
    file = Path(store.root) / path
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes({"truncate": content[: len(content) // 2], "flip": content, "empty": b""}[damage])
    problems = problems_in(store)
    assert len(problems) == 1
    assert problems[0].startswith(path)


@pytest.mark.parametrize("gone", [False, True])
def test_of_a_damaged_classifier_no_sound_block_is_a_problem(store: Store, gone: bool) -> None:
    (key,) = store.folders("classifiers")
    folder = Path(store.root) / "classifiers" / key
    (folder / "classifier.json").write_bytes(b"{")
    if gone:
        (folder / "model.safetensors").unlink()
    problems = problems_in(store)
    assert problems
    assert [problem for problem in problems if not problem.startswith(f"classifiers/{key}")] == []


def test_points_that_are_stored_twice_must_have_the_same_rows(store: Store, original: Tiny) -> None:
    work = original.work()
    Workbench(original.study.data(store.root, original.bench.data.classifiers)).outputs(work, 0, 40)
    assert problems_in(store) == []
    block = next(each for each in store.blocks("outputs", work.key) if each.stop == 40)
    table, facts = store.read_block("outputs", work.key, block)
    turned = [answer[::-1] for answer in table["probabilities"].to_pylist()]
    changed = table.set_column(table.schema.get_field_index("probabilities"), "probabilities", pa.array(turned))
    store.write_block("outputs", work.key, 0, 40, changed.cast(table.schema), facts)
    assert any("points 0 to 20 must have one row each" in problem for problem in problems_in(store))


@pytest.mark.parametrize(
    ("kind", "column", "change", "words"),
    [
        ("adversarial", "image", first(lambda v: [1.5, *v[1:]]), "pixels must be in [0, 1]"),
        ("adversarial", "image", first(lambda v: [float("nan"), *v[1:]]), "pixels must be finite"),
        ("adversarial", "linf", first(0.2), "max |delta| must be at most epsilon = 0.1; it is 0.2"),
        ("adversarial", "linf", first(float("nan")), "max |delta| must be at most epsilon"),
        ("outputs", "probabilities", first([0.5] * 10), "probabilities must be at least 0 and sum to 1"),
        ("outputs", "probabilities", first([2.0, -1.0] + [0.0] * 8), "probabilities must be at least 0"),
        ("outputs", "probabilities", first([float("nan")] * 10), "probabilities must be at least 0"),
        ("outputs", "probabilities", first([1.0]), "probabilities must have one length"),
        ("records", "predicted", lambda v: [(p + 1) % 10 for p in v], "predicted must be the class with the highest"),
        ("records", "correct_draws", first(3), "correct_draws must be from 0 to draws"),
        ("records", "correct_draws", lambda v: [2 - n for n in v], "correct_draws must agree with label"),
        ("records", "cell", lambda v: ["another"] * len(v), "cell must be"),
        ("records", "epsilon", first(0.5), "epsilon must be the same in all rows"),
        ("records", "point", lambda v: [v[1], *v[1:]], "each point must be there once"),
        ("records", "probabilities", first([1.0]), "probabilities must have one length"),
    ],
)
def test_rows_that_cannot_be_are_found(
    store: Store, original: Tiny, kind: Any, column: str, change: Any, words: str
) -> None:
    path = rewritten(store, original, kind, with_column(column, change))
    problems = problems_in(store)
    assert any(problem.startswith(path) and words in problem for problem in problems), problems


def test_images_may_leave_the_box_only_where_the_attack_says_so(store: Store, original: Tiny) -> None:
    outside = with_column("image", first(lambda v: [1.05, *v[1:]]))
    path = rewritten(store, original, "adversarial", outside, keeps_box=False)
    assert problems_in(store) == []
    rewritten(store, original, "adversarial", outside, keeps_box=True)
    assert problems_in(store) == [f"{path}: pixels must be in [0, 1]"]


@pytest.mark.parametrize("kind", ["adversarial", "outputs", "records"])
def test_a_block_with_too_few_or_no_rows_is_found(store: Store, original: Tiny, kind: Any) -> None:
    for rows, words in (
        (lambda table: table.slice(1), "rows"),
        (lambda table: SCHEMAS[kind].empty_table(), "it has none"),
    ):
        path = rewritten(store, original, kind, rows)
        problems = problems_in(store)
        assert any(problem.startswith(path) and words in problem for problem in problems), problems


def test_a_block_that_does_not_say_what_it_covers_is_found(store: Store, original: Tiny) -> None:
    key = key_of(original, "outputs")
    block = store.blocks("outputs", key)[0]
    rows, facts = store.read_block("outputs", key, block)
    del facts["executions"]
    store.write_block("outputs", key, block.start, block.stop, rows, facts)
    assert problems_in(store) == [f"{block.path}: must say of itself what mi-ray writes; it lacks 'executions'"]


def test_a_record_that_disagrees_with_its_cells_accuracy_is_found(store: Store, original: Tiny) -> None:
    cells = store.read_table("studies/tiny/cells.parquet", CELLS).to_pylist()
    cells[0]["accuracy"] += 0.01
    write_cells(store, "tiny", cells)
    problems = problems_in(store)
    assert len(problems) == 1
    assert f"cell {cells[0]['cell']} must have the accuracy of its records" in problems[0]


def test_swapped_weights_are_found(store: Store, original: Tiny) -> None:
    key = original.plan.classifiers[0].key
    content = bytearray(store.read_bytes(f"classifiers/{key}/model.safetensors"))
    content[-1] ^= 1
    store.write_bytes(f"classifiers/{key}/model.safetensors", bytes(content))
    problems = problems_in(store)
    assert len(problems) == 1
    assert f"classifiers/{key}/model.safetensors must have the SHA-256" in problems[0]


def test_blocks_of_weights_that_are_not_in_the_store_are_found(store: Store, original: Tiny) -> None:
    for kind in ("adversarial", "outputs"):
        path = rewritten(store, original, kind, lambda rows: rows, weights="0" * 64)
        problems = problems_in(store)
        assert f"{path}: must be of the weights of a classifier in the store; it is of {'0' * 64}" in problems
    assert len(problems) == 2


@pytest.mark.parametrize("name", ["classifier.json", "training.parquet", "model.safetensors"])
def test_a_classifier_that_lacks_a_file_is_found(store: Store, original: Tiny, name: str) -> None:
    folder = f"classifiers/{original.plan.classifiers[0].key}"
    store.remove(f"{folder}/{name}")
    assert any(p.startswith(f"{folder} must hold classifier.json") and name in p for p in problems_in(store))


@pytest.mark.parametrize("name", ["manifest.json", "cells.parquet"])
@pytest.mark.parametrize("damage", ["remove", "truncate"])
def test_a_study_without_its_manifest_or_cells_is_found(store: Store, name: str, damage: str) -> None:
    path = f"studies/tiny/{name}"
    content = store.read_bytes(path)
    store.remove(path)
    if damage == "truncate":
        store.write_bytes(path, content[: len(content) // 2])
    problems = problems_in(store)
    assert len(problems) == 1
    assert problems[0].startswith("studies/tiny must hold manifest.json and cells.parquet")


def test_damaged_examples_are_found(store: Store) -> None:
    path = "studies/tiny/examples.parquet"
    store.write_bytes(path, store.read_bytes(path)[:-9])
    assert any(path in problem for problem in problems_in(store))


def test_a_finished_cell_without_its_records_is_found(store: Store, original: Tiny) -> None:
    key = key_of(original, "records")
    store.remove(f"records/{key}")
    assert problems_in(store) == [f"studies/tiny: cell {key} must have 60 rows in records; it has 0"]


def test_a_cell_that_is_listed_twice_is_found(store: Store) -> None:
    cells = store.read_table("studies/tiny/cells.parquet", CELLS).to_pylist()
    write_cells(store, "tiny", [*cells, cells[0]])
    assert problems_in(store) == ["studies/tiny/cells.parquet must name each cell once"]


def test_a_study_that_is_running_has_no_problem_yet(store: Store, original: Tiny) -> None:
    store.remove("studies/tiny/cells.parquet")
    for state in UNFINISHED:
        mark(store, original.study, original.plan, state)
        assert problems_in(store) == []


def test_nothing_that_a_study_refers_to_is_unreferenced(original: Tiny) -> None:
    assert unreferenced(original.store) == []


def test_what_no_study_refers_to_is_listed_with_its_size(store: Store, original: Tiny) -> None:
    store.write_bytes("outputs/orphan/points-00000-00020.parquet", b"12345")
    store.write_bytes("classifiers/orphan/model.safetensors", b"123")
    store.write_bytes("classifiers/orphan/classifier.json", b"{}")
    assert unreferenced(store) == [("classifiers/orphan", 5), ("outputs/orphan", 5)]
    store.remove("studies/tiny")
    loose = dict(unreferenced(store))
    kept = {"/".join(path.split("/")[:2]) for path in store.files("") if "/" in path}
    assert loose.keys() == kept
    assert sum(loose.values()) == sum(size for path, size in store.files("").items() if "/" in path)


def test_what_one_of_two_studies_refers_to_stays(store: Store, original: Tiny) -> None:
    manifest = store.read_json("studies/tiny/manifest.json")
    store.write_json("studies/other/manifest.json", {"keys": {"outputs": [key_of(original, "outputs")]}})
    store.remove("studies/tiny")
    loose = {path for path, _ in unreferenced(store)}
    wanted = {f"{kind}/{key}" for kind, keys in manifest["keys"].items() for key in keys}
    assert loose == wanted - {f"outputs/{key_of(original, 'outputs')}"}


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}"])
def test_nothing_is_collected_while_a_studys_manifest_cannot_be_read(store: Store, content: bytes | None) -> None:
    store.remove("studies/tiny/manifest.json")
    if content is not None:
        store.write_bytes("studies/tiny/manifest.json", content)
    with pytest.raises(ValueError, match=r"studies/tiny/manifest.json must"):
        unreferenced(store)
    assert [state[:2] for state in overviews(store)] == [("tiny", "damaged")]


def test_states_count_cells_and_pieces(store: Store, original: Tiny) -> None:
    cells = len(original.plan.cells)
    ((name, state, *counts, written),) = overviews(store)
    assert (name, state, counts) == ("tiny", "complete", [str(cells), str(cells), "0", "0"])
    assert written.startswith("20")
    mark(store, original.study, original.plan, "running")
    store.remove(f"outputs/{key_of(original, 'outputs')}")
    outputs = len(original.plan.outputs)
    ((_, state, *_),) = overviews(store)
    assert state.startswith("cut short while running; the same command goes on: classifiers")
    with lock_study(store, "tiny", print):
        ((_, state, *_),) = overviews(store)
    state = re.sub(r" \(process \d+.*?\)", "", state)
    assert state == f"running: classifiers 1/1, adversarial 1/1, outputs {outputs - 1}/{outputs}"


def test_states_of_failed_and_missing_cells(store: Store) -> None:
    cells = store.read_table("studies/tiny/cells.parquet", CELLS).to_pylist()
    for row, state in zip(cells, ("failed", "missing", "missing"), strict=False):
        row["state"] = state
    write_cells(store, "tiny", cells)
    ((_, _, total, done, failed, missing, _),) = overviews(store)
    assert (int(total), int(done), failed, missing) == (len(cells), len(cells) - 3, "1", "2")
    assert overviews(Store(Path(store.root) / "new", create=True)) == []


def test_nothing_is_collected_while_a_search_is_not_finished(store: Store, original: Tiny) -> None:
    manifest = store.read_json("studies/tiny/manifest.json")
    store.write_json("studies/tiny/manifest.json", {**manifest, "state": "running", "open": True})
    with pytest.raises(ValueError, match=r"every search must be finished.*tiny is running"):
        unreferenced(store)
