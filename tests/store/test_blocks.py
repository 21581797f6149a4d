"""The store: schemas, atomic writes, validated reads, damaged files, ranges of points, reading rows and cells."""

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from helpers.studies import Tiny

from mi_ray.store.blocks import MARKER, Store, missing_ranges, table_digest
from mi_ray.store.files import DamagedFileError, UnfinishedStudyWarning
from mi_ray.store.read import AHEAD, _read_ahead, read_cells, read_records, write_cells
from mi_ray.store.schemas import ADVERSARIAL, CELLS, LATER, OUTPUTS, RECORDS, SCHEMAS, TRAINING

ALL_SCHEMAS = {**SCHEMAS, "cells": CELLS, "training": TRAINING}


def table(schema: pa.Schema, rows: int = 4, **constants: Any) -> pa.Table:
    """Rows with different values in every column; constants replace whole columns."""
    columns: list[pa.Array] = []
    for position, field in enumerate(schema):
        numbers = np.arange(rows) + position
        values: Any = numbers.tolist()
        if pa.types.is_string(field.type):
            values = [f"text {n} ε" for n in numbers]
        elif pa.types.is_boolean(field.type):
            values = (numbers % 2 == 0).tolist()
        elif pa.types.is_list(field.type):
            text = pa.types.is_string(field.type.value_type)
            values = [[f"ε {n}", ""] if text else [0.25, float(n), -1.5] for n in numbers]
        columns.append(pa.array([constants[field.name]] * rows if field.name in constants else values, field.type))
    return pa.table(columns, schema=schema)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", create=True)


def one_block(store: Store, kind: Any = "outputs", start: int = 0, stop: int = 4) -> Path:
    """A stored block's file."""
    store.write_block(kind, "key", start, stop, table(SCHEMAS[kind], stop - start), {"executions": [5], "draws": [0]})
    return Path(store.root) / store.blocks(kind, "key")[0].path


def read_one(store: Store, kind: Any = "outputs", key: str = "key") -> tuple[pa.Table, dict[str, Any]]:
    return store.read_block(kind, key, store.blocks(kind, key)[0])


@pytest.mark.parametrize("name", list(ALL_SCHEMAS))
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_every_schema_survives_a_round_trip(store: Store, name: str, rows: int) -> None:
    written = table(ALL_SCHEMAS[name], rows)
    store.write_table("t.parquet", written)
    read = store.read_table("t.parquet", ALL_SCHEMAS[name])
    assert read.equals(written)
    assert read.schema.equals(ALL_SCHEMAS[name])


def test_absent_values_survive_a_round_trip(store: Store) -> None:
    rows = [{"cell": "a", "accuracy": 0.5, "selected": True}, {"cell": "b", "cause": "a reason", "points": 3}]
    write_cells(store, "s", rows)
    read = store.read_table("studies/s/cells.parquet", CELLS).to_pylist()
    assert [{key: value for key, value in row.items() if value is not None} for row in read] == rows


@pytest.mark.parametrize("schema", [CELLS, ADVERSARIAL], ids=["cells", "adversarial"])
def test_a_table_of_an_earlier_version_has_the_columns_that_came_later_and_they_are_empty(
    schema: pa.Schema, store: Store
) -> None:
    later = [name for name in schema.names if name in LATER[schema]]
    assert later
    earlier = pa.schema([field for field in schema if field.name not in later])
    store.write_table("studies/s/cells.parquet", table(earlier, 3))
    read = store.read_table("studies/s/cells.parquet", schema)
    assert read.schema.equals(schema)
    assert read.select(earlier.names).equals(table(earlier, 3))
    assert all(read[name].null_count == 3 for name in later)
    if schema is CELLS:
        assert list(read_cells(store, "s").columns) == [*CELLS.names, "study"]
    for wrong in (earlier.remove(0), pa.schema(list(reversed(schema)))):
        store.write_table("studies/s/cells.parquet", table(wrong, 3))
        with pytest.raises(DamagedFileError, match="must have the columns"):
            store.read_table("studies/s/cells.parquet", schema)


@pytest.mark.parametrize("kind", list(SCHEMAS))
def test_a_block_comes_back_with_its_rows_and_facts(store: Store, kind: Any) -> None:
    one_block(store, kind, 8, 12)
    rows, facts = read_one(store, kind)
    assert rows.equals(table(SCHEMAS[kind]))
    assert facts == {"kind": kind, "key": "key", "start": 8, "stop": 12, "executions": [5], "draws": [0]}
    assert store.block_facts(store.blocks(kind, "key")[0]) == facts


def test_probabilities_alone_have_no_dictionary_which_would_take_more_room_than_they_do(original: Tiny) -> None:
    for kind, alone in (("outputs", {"probabilities"}), ("adversarial", set())):
        key = original.store.folders(kind)[0]
        block = original.store.blocks(kind, key)[0]  # type: ignore[arg-type]
        columns = pq.read_metadata(Path(original.store.root) / block.path).row_group(0)
        named = [columns.column(at) for at in range(columns.num_columns)]
        assert {one.path_in_schema.split(".")[0] for one in named if not one.has_dictionary_page} == alone


def test_facts_cannot_pretend_to_be_of_another_range(store: Store) -> None:
    store.write_block("outputs", "key", 0, 4, table(OUTPUTS), {"start": 100, "key": "other"})
    assert read_one(store)[1] == {"kind": "outputs", "key": "key", "start": 0, "stop": 4}


def test_blocks_are_listed_in_the_order_of_their_ranges(store: Store) -> None:
    for start, stop in ((100_000, 100_004), (4, 8), (20, 24), (0, 4)):
        store.write_block("outputs", "key", start, stop, table(OUTPUTS), {})
    assert [(b.start, b.stop) for b in store.blocks("outputs", "key")] == [(0, 4), (4, 8), (20, 24), (100_000, 100_004)]
    assert store.blocks("outputs", "no such key") == []


@pytest.mark.parametrize(("kind", "every"), [("outputs", 3), ("records", 11)])
def test_no_flipped_bit_in_a_block_is_read_as_other_data(store: Store, kind: Any, every: int) -> None:
    path = one_block(store, kind)
    rows, facts = read_one(store, kind)
    block, whole, seen = store.blocks(kind, "key")[0], path.read_bytes(), set()
    for place in range(0, len(whole), every):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            found = store.read_block(kind, "key", block)
        except DamagedFileError:
            seen.add("refused")
            continue
        assert found[0].equals(rows), place
        assert found[1] == facts, place
        seen.add("harmless")  # e.g. a statistic in the footer, which nobody reads
    assert "refused" in seen


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_block_is_refused(store: Store, share: float) -> None:
    path = one_block(store)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DamagedFileError, match=r"outputs/key/points-00000-00004.parquet must be a whole Parquet file"):
        read_one(store)
    with pytest.raises(DamagedFileError, match="must be a whole block"):
        store.block_facts(store.blocks("outputs", "key")[0])


def test_a_block_of_another_schema_is_refused(store: Store) -> None:
    path = one_block(store)
    pq.write_table(table(ADVERSARIAL), path)
    with pytest.raises(DamagedFileError, match=r"must have the columns .*'draw'"):
        read_one(store)


def test_a_block_with_the_right_columns_that_mi_ray_did_not_write_is_refused(store: Store) -> None:
    path = one_block(store)
    pq.write_table(table(OUTPUTS), path)
    with pytest.raises(DamagedFileError, match="must have the digest"):
        read_one(store)
    with pytest.raises(DamagedFileError, match="must be a whole block"):
        store.block_facts(store.blocks("outputs", "key")[0])


def test_a_table_without_facts_is_no_block(store: Store) -> None:
    store.write_table("outputs/key/points-00000-00004.parquet", table(OUTPUTS))
    with pytest.raises(DamagedFileError, match="must say what it is of"):
        read_one(store)


@pytest.mark.parametrize(
    "renamed",
    [
        "outputs/key/points-00004-00008.parquet",
        "outputs/key/points-00000-00005.parquet",
        "outputs/other/points-00000-00004.parquet",
    ],
)
def test_a_block_renamed_to_another_range_or_key_is_refused(store: Store, renamed: str) -> None:
    path = one_block(store)
    (Path(store.root) / renamed).parent.mkdir(exist_ok=True)
    path.rename(Path(store.root) / renamed)
    with pytest.raises(DamagedFileError, match=r"must be of .* it says"):
        read_one(store, key=renamed.split("/")[1])


def test_a_block_moved_to_another_kind_with_the_same_columns_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = one_block(store)
    monkeypatch.setitem(SCHEMAS, "records", OUTPUTS)
    shutil.copytree(path.parent, Path(store.root) / "records" / "key")
    with pytest.raises(DamagedFileError, match=r"must be of {'kind': 'records'"):
        read_one(store, "records")


def test_leftover_temporary_and_foreign_files_are_ignored_by_every_reader(store: Store) -> None:
    path = one_block(store, "records")
    for name in (
        ".points-00004-00008.parquet.1a2b.tmp",
        ".points-00004-00008.parquet",
        "notes.parquet",
        "points-4.txt",
    ):
        shutil.copy(path, path.parent / name)
    assert [block.start for block in store.blocks("records", "key")] == [0]
    assert len(read_records(store)) == 4
    assert not any("/." in name for name in store.files(""))


@pytest.mark.parametrize("of_one_study", [True, False])
def test_columns_that_are_wanted_are_those_of_the_whole_frame(original: Tiny, of_one_study: bool) -> None:
    study = original.study.sweep.name if of_one_study else None
    whole = read_records(original.store, study)
    for columns in (["correct_draws", "point"], ["classifier", "study"], ["probabilities"]):
        part = read_records(original.store, study, columns=columns)
        pd.testing.assert_frame_equal(part, whole[columns])
    with pytest.raises(ValueError, match=r"columns must be among .*point.*; got accuracy"):
        read_records(original.store, study, columns=["point", "accuracy"])


def test_tables_are_read_in_order_and_a_few_ahead_of_who_takes_them() -> None:
    asked: list[int] = []

    def read(number: int) -> pa.Table:
        asked.append(number)
        return pa.table({"n": [number]})

    with ThreadPoolExecutor(1) as pool:
        coming = _read_ahead(pool, read, range(100))
        first = next(coming)
        pool.submit(int).result()  # What was asked for before is done by now.
        assert len(asked) == AHEAD + 1
        assert [table["n"][0].as_py() for table in (first, *coming)] == list(range(100))


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file_and_no_trace(
    store: Store, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = one_block(store)
    before = path.read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space left"):
        store.write_block("outputs", "key", 0, 4, table(OUTPUTS, draw=7), {})
    with pytest.raises(OSError, match="No space left"):
        store.write_json("studies/s/manifest.json", {})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert list((Path(store.root) / "studies" / "s").iterdir()) == []


def test_a_second_write_replaces_the_first_whole(store: Store) -> None:
    one_block(store)
    store.write_block("outputs", "key", 0, 4, table(OUTPUTS, draw=7), {})
    assert read_one(store)[0]["draw"].to_pylist() == [7] * 4


def test_remove_takes_files_and_folders_and_forgives_what_is_not_there(store: Store) -> None:
    path = one_block(store)
    store.remove("outputs/key/points-00000-00004.parquet")
    assert not path.exists()
    one_block(store)
    store.remove("outputs/key")
    store.remove("outputs/key")
    assert store.folders("outputs") == []


def test_json_that_is_none_is_damaged(store: Store) -> None:
    store.write_bytes("a.json", b"{half")
    with pytest.raises(DamagedFileError, match=r"a.json must be JSON"):
        store.read_json("a.json")


def test_missing_ranges_are_what_nothing_covers_cut_into_blocks() -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        start, length, size = int(rng.integers(0, 6)), int(rng.integers(0, 20)), int(rng.integers(1, 7))
        ends = [sorted(map(int, rng.integers(0, 30, 2))) for _ in range(int(rng.integers(0, 4)))]
        present = [(low, high) for low, high in ends]
        covered = {point for low, high in present for point in range(low, high)}
        found = missing_ranges(present, (start, start + length), size)
        points = [point for low, high in found for point in range(low, high)]
        assert points == [point for point in range(start, start + length) if point not in covered]
        assert all(0 < high - low <= size for low, high in found)


def test_missing_ranges_of_nothing_stored_are_whole_blocks() -> None:
    assert missing_ranges([], (0, 10), 4) == [(0, 4), (4, 8), (8, 10)]
    assert missing_ranges([(4, 8)], (0, 12), 100) == [(0, 4), (8, 12)]


def test_a_store_is_made_in_a_new_and_in_an_empty_folder_and_opened_again(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "new" / "deep", tmp_path / "empty"):
        Store(place, create=True)
        Store(place, create=True)
        assert json.loads((Path(Store(place).root) / MARKER).read_text())["format"] == 1


def test_a_relative_store_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("results", create=True)
    monkeypatch.chdir("/")
    store.write_bytes("a", b"1")
    assert (tmp_path / "results" / "a").exists()


def test_a_place_that_cannot_be_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    refused = {
        "other": "holds something else: thesis.tex",
        "file": "is a file",
        "file/below": "readable and writable",
    }
    for name, words in refused.items():
        with pytest.raises(ValueError, match=words):
            Store(tmp_path / name, create=True)
    with pytest.raises(ValueError, match=f"holds no {MARKER}"):
        Store(tmp_path / "other")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "other", "thesis.tex"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b'{"format": 2}', "has format 2; this version reads 1"), (b"[]", r"has format \[\]"), (b"{", "must be JSON")],
)
def test_a_store_of_another_format_is_refused_and_left_alone(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / MARKER).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        Store(tmp_path, create=True)
    assert (tmp_path / MARKER).read_bytes() == content


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a store must be readable and writable; /proc/mi-ray"):
        Store("/proc/mi-ray", create=True)
    Store(tmp_path, create=True)

    def denied(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "fsync", denied)
    with pytest.raises(ValueError, match=r"readable and writable.*Permission denied"):
        Store(tmp_path, create=True)
    assert Store(tmp_path).exists(MARKER)


def test_a_place_that_is_full_for_now_is_no_wrong_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):  # exit code 1, and the same command goes on
        Store(tmp_path / "results", create=True)


def test_what_a_command_leaves_that_is_killed_while_it_makes_a_store_keeps_no_other_from_making_it(
    tmp_path: Path,
) -> None:
    (tmp_path / f".{MARKER}.0123abcd.tmp").write_text("{")
    assert Store(tmp_path, create=True).exists(MARKER)


def test_a_uri_of_no_known_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="a folder or a URI that pyarrow or fsspec knows; got nonsense://bucket"):
        Store("nonsense://bucket/x", create=True)


UNFINISHED = "ignore::mi_ray.store.files.UnfinishedStudyWarning"


def records_of(store: Store, cell: str, classifier: str, rows: int = 4, epsilon: float = 0.1) -> None:
    made = table(RECORDS, rows, cell=cell, classifier=classifier, epsilon=epsilon)
    store.write_block("records", cell, 0, rows, made, {})


@pytest.fixture
def two_studies(store: Store) -> Store:
    for cell, epsilon in (("c1", 0.1), ("c2", 0.2), ("c3", 0.3)):
        records_of(store, cell, "first name", epsilon=epsilon)
    write_cells(
        store, "one", [{"cell": c, "classifier": "mine", "state": "done", "accuracy": 0.5} for c in ("c1", "c2")]
    )
    write_cells(store, "two", [{"cell": "c3", "classifier": "yours", "state": "failed", "cause": "why"}])
    return store


@pytest.mark.filterwarnings(UNFINISHED)
def test_a_studys_rows_carry_its_own_name_of_the_classifier(two_studies: Store) -> None:
    frame = read_records(two_studies.root, study="one")
    assert set(frame["study"]) == {"one"}
    assert {"one", "two"} <= set(", ".join(read_records(two_studies)["study"]).split(", "))
    assert len(frame) == 8
    assert set(frame["cell"]) == {"c1", "c2"}
    assert set(frame["classifier"]) == {"mine"}
    assert list(frame.columns) == [*RECORDS.names, "study"]
    assert set(read_records(two_studies)["classifier"]) == {"first name"}


@pytest.mark.filterwarnings(UNFINISHED)
@pytest.mark.parametrize("filters", [[("epsilon", ">", 0.15)], pc.field("epsilon") > 0.15])
def test_rows_are_filtered_as_pyarrow_does(two_studies: Store, filters: Any) -> None:
    assert sorted(set(read_records(two_studies, filters=filters)["cell"])) == ["c2", "c3"]
    assert set(read_records(two_studies, study="one", filters=filters)["cell"]) == {"c2"}


@pytest.mark.filterwarnings(UNFINISHED)
def test_a_study_is_filtered_by_its_own_name_of_the_classifier(two_studies: Store) -> None:
    for filters in ([("classifier", "=", "mine")], pc.field("classifier") == "mine", []):
        assert set(read_records(two_studies, "one", filters)["cell"]) == {"c1", "c2"}, filters
    assert read_records(two_studies, "one", [("classifier", "=", "first name")]).empty
    assert len(read_records(two_studies, filters=[("classifier", "=", "first name")])) == 12


def test_cells_of_one_study_and_of_the_whole_store(two_studies: Store) -> None:
    assert list(read_cells(two_studies, "one")["cell"]) == ["c1", "c2"]
    everything = read_cells(str(two_studies.root))
    assert dict(zip(everything["cell"], everything["study"], strict=True)) == {"c1": "one", "c2": "one", "c3": "two"}


def test_flat_cells_have_each_parameter_and_check_in_a_column_of_its_own(store: Store) -> None:
    params: list[dict[str, Any]] = [{"lam": 0.5}, {"lam": {"beta": [1, 1]}}, {"crop": [20, 28]}, {}]
    attacks: list[dict[str, Any]] = [{}, {"steps": 10, "labels": "true"}, {"steps": 50, "labels": "true"}, {}]
    checks = {"more_steps": {"state": "failed", "why": "so"}, "in_ball": {"state": "passed", "why": "it is"}}
    rows = [
        {
            **dict.fromkeys(CELLS.names),
            "cell": f"c{at}",
            "defense_params": json.dumps(defense),
            "attack_params": json.dumps(attack),
            "checks": json.dumps(checks) if at == 1 else None,
        }
        for at, (defense, attack) in enumerate(zip(params, attacks, strict=True))
    ]
    write_cells(store, "s", rows)
    plain, found = read_cells(store, "s"), read_cells(store, "s", flat=True)
    new = ["defense.lam", "defense.crop", "attack.steps", "attack.labels", "check.more_steps", "check.in_ball"]
    assert list(found.columns) == [*plain.columns, *new]
    pd.testing.assert_frame_equal(found[plain.columns], plain)
    assert found["defense.lam"].tolist()[:2] == [0.5, '{"beta":[1,1]}']
    assert found["defense.crop"][2] == (20, 28)
    assert found["attack.steps"].fillna(0).tolist() == [0, 10, 50, 0]
    assert found["check.more_steps"].dropna().to_dict() == {1: "failed"}
    assert found.groupby(["defense.crop"]).size().to_dict() == {(20, 28): 1}
    assert found.isna().sum()[new].tolist() == [2, 3, 2, 2, 3, 3]


def test_a_whole_stores_rows_leave_no_cell_out_in_silence(two_studies: Store) -> None:
    with pytest.warns(UnfinishedStudyWarning, match=r"two: 1 of 1 cells have no rows here \(1 failed\)"):
        read_records(two_studies)


def test_rows_say_of_their_attack_what_the_cells_of_the_study_say(store: Store) -> None:
    """The program that wrote them may have told less of it."""
    records_of(store, "c1", "f")
    write_cells(store, "s", [{"cell": "c1", "classifier": "f", "state": "done", "attack_params": '{"images": 1}'}])
    found = read_records(store, "s", [("attack_params", "=", '{"images": 1}')])
    assert len(found) == 4
    assert set(found["attack_params"]) == {'{"images": 1}'}
    assert len(read_records(store, "s", columns=["point", "attack_params"])) == 4


def test_an_unknown_study_is_refused_with_the_known_ones(two_studies: Store) -> None:
    for read in (read_cells, read_records):
        with pytest.raises(ValueError, match=r"study 'three' must be in .*; known: one, two"):
            read(two_studies, "three")


def test_an_empty_store_has_empty_frames_with_all_columns(store: Store) -> None:
    with_study = [*CELLS.names, "study"]
    assert list(read_cells(store).columns) == list(read_cells(store, flat=True).columns) == with_study
    frame = read_records(store)
    assert list(frame.columns) == [*RECORDS.names, "study"]
    assert isinstance(frame, pd.DataFrame)
    assert frame.empty


@pytest.mark.filterwarnings(UNFINISHED)
@pytest.mark.parametrize("damage", ["truncate", "flip", "schema", "rename"])
def test_damaged_records_are_never_read_as_rows(two_studies: Store, damage: str) -> None:
    path = Path(two_studies.root) / "records" / "c1" / "points-00000-00004.parquet"
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[40] ^= 1
        path.write_bytes(content)
    elif damage == "schema":
        pq.write_table(table(OUTPUTS), path)
    else:
        shutil.copy(Path(two_studies.root) / "records" / "c2" / path.name, path)
    with pytest.raises(DamagedFileError, match=r"records/c1/points-00000-00004.parquet"):
        read_records(two_studies, "one")
    assert len(read_records(two_studies, "two")) == 4


@pytest.mark.parametrize("form", ["file", "mock"])
def test_a_store_behind_a_uri_behaves_like_a_folder(tmp_path: Path, form: str) -> None:
    uri = {"file": f"file://{tmp_path}/remote", "mock": "mock:///remote"}[form]
    store = Store(uri, create=True)
    records_of(store, "c1", "f")
    write_cells(store, "s", [{"cell": "c1", "classifier": "mine"}])
    assert [(b.start, b.stop) for b in store.blocks("records", "c1")] == [(0, 4)]
    assert read_one(store, "records", "c1")[0].num_rows == 4
    assert set(read_records(store, "s")["classifier"]) == {"mine"}
    assert (store.folders("studies"), store.exists("studies/s/cells.parquet")) == (["s"], True)
    store.write_bytes("records/c1/points-00000-00004.parquet", b"PAR1")
    with pytest.raises(DamagedFileError, match="must be a whole Parquet file"):
        read_records(store, "s")
    store.remove("records/c1")
    assert store.files("records") == {}


def test_a_file_uri_is_written_atomically_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(f"file://{tmp_path}/remote", create=True)
    path = one_block(store)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        one_block(store)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert read_one(Store(f"file://{tmp_path}/remote"))[0].num_rows == 4
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("")
    with pytest.raises(ValueError, match="holds something else: x"):
        Store(f"file://{tmp_path}/other", create=True)


def test_a_file_that_storage_cannot_read_is_not_called_bad_json(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: object) -> None:
        raise DamagedFileError("a.json cannot be read: input/output error")

    monkeypatch.setattr(store, "read_parsed", unreadable)
    with pytest.raises(DamagedFileError, match="input/output error"):
        store.read_json("a.json")


def test_a_digest_is_the_one_by_which_earlier_versions_know_the_same_rows() -> None:
    columns = {
        "text": pa.array(["a", "é", "a"]),
        "empty": pa.array([None] * 3, pa.string()),
        "whole": pa.array([1, None, 3], pa.int32()),
        "real": pa.array([0.5, float("nan"), -0.0]),
        "truth": pa.array([True, False, True]),
        "several": pa.array([[1.0], [], [2.0, 3.0]], pa.list_(pa.float32())),
        "holes": pa.array([[1.0], None, [2.0]], pa.list_(pa.float32())),
        "words": pa.array([["x"], ["y", "x"], []]),
    }
    whole = pa.table(columns)
    tables = [whole, whole.slice(1), whole.slice(0, 0), pa.concat_tables([whole.slice(2), whole.slice(0, 2)])]
    assert [table_digest(table) for table in tables] == [
        "9a096c7a7e1c606e6cbd0fbe25052259",
        "4c452a216b882eee0a9b635606073fe8",
        "ad8ae51286b366a27755dffa21ad575d",
        "364a49dd6ce843bc778a300a28f01756",
    ]
