"""Compacted records: the same rows for every reader, whatever stops the compaction, and nothing read that was damaged."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from helpers.commands import sorted_rows
from helpers.studies import DEFENSE_GRID, ONE_GRID, TINY, Tiny, derived, finish, problems_in, tiny

import mi_ray.store.compact
from mi_ray.store.blocks import INDEX_PATH, MARKER, PUBLISHED, WAITING, Store
from mi_ray.store.check import check_store
from mi_ray.store.compact import _OpenPart, compact, discard, drop_records
from mi_ray.store.compact import finish as finish_compaction
from mi_ray.store.files import DamagedFileError, Files
from mi_ray.store.manifest import is_sealed, seal_again, study_state, unreferenced
from mi_ray.store.read import read_records, write_cells
from mi_ray.store.schemas import CELLS, RECORDS

FEW = 7  # cells of a study whose compaction is killed at every step: four row groups, two parts


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of two cells and parts of few, so that a tiny study has several of each."""
    monkeypatch.setattr(mi_ray.store.compact, "GROUP_ROWS", 120)
    monkeypatch.setattr(mi_ray.store.compact, "PART_BYTES", 15_000)


@pytest.fixture
def store(original: Tiny, tmp_path: Path) -> Store:
    """A copy of the finished store."""
    return Store(shutil.copytree(original.store.root, tmp_path / "store"))


@pytest.fixture
def lean(original: Tiny, tmp_path: Path) -> Store:
    """A copy of the finished store with the records of a few cells, and nothing but what the study says of them."""
    shutil.copytree(f"{original.store.root}/studies", tmp_path / "lean/studies")
    for cell in original.plan.cells[:FEW]:
        shutil.copytree(f"{original.store.root}/records/{cell.key}", tmp_path / "lean/records" / cell.key)
    shutil.copy(f"{original.store.root}/{MARKER}", tmp_path / "lean")
    few, store = {cell.key for cell in original.plan.cells[:FEW]}, Store(tmp_path / "lean")
    rows = store.read_table("studies/tiny/cells.parquet", CELLS).to_pylist()
    write_cells(store, "tiny", [row for row in rows if row["cell"] in few])
    return store


def outside(store: Store) -> pd.DataFrame:
    """What a reader that knows nothing of mi_ray finds in records/."""
    return ds.dataset(f"{store.root}/records", format="parquet", schema=RECORDS).to_table().to_pandas()


def there(store: Store) -> pd.DataFrame:
    """The rows that the store has, whatever its studies say that it should have."""
    kept = {*store.compacted.places, *store.folders("records")} - {"compacted"}
    store.refresh()
    write_cells(
        store,
        "tiny",
        [row for row in store.read_table("studies/tiny/cells.parquet", CELLS).to_pylist() if row["cell"] in kept],
    )
    return read_records(store.root)


def test_compacted_records_are_the_same_rows_in_few_files_for_every_reader(store: Store, original: Tiny) -> None:
    cells = len(original.plan.cells)
    assert compact(store) == (cells, [])
    assert len(store.files(PUBLISHED)) > 1
    assert {path.split("/")[1] for path in store.files("records")} == {"compacted"}
    assert list(store.files(WAITING)) == [INDEX_PATH]
    expected = sorted_rows(read_records(original.store))
    assert sorted_rows(read_records(store.root)) == sorted_rows(read_records(store.root, "tiny")) == expected
    assert sorted_rows(outside(store)) == expected
    problems, files = check_store(store)
    assert problems == []
    assert files == len(store.files("").keys() - {"mi-ray-store.json"})
    assert unreferenced(store) == []


@pytest.mark.parametrize(
    "filters",
    [
        [("defense", "=", "gaussian_noise")],
        [("attack", "=", "pgd"), ("point", "in", [1, 5, 800])],
        [[("attack", "=", "none"), ("label", ">", 5)], [("point", "=", 7)]],
        [[("attack", "=", "none")], [("executions", ">", 1), ("predicted", "!=", 3)]],
        pc.field("epsilon") > 0.05,
        (pc.field("knowledge") == "oblivious") & pc.field("selection"),
        pc.field("correct_draws") == 0,
        [("cell", "=", "no such cell")],
    ],
)
def test_filters_find_the_same_rows_in_small_files_and_compacted(store: Store, original: Tiny, filters: Any) -> None:
    compact(store)
    everything = read_records(original.store)
    expression = ds.dataset(original.store.root + "/records", schema=RECORDS)
    import pyarrow.parquet as pq

    wanted = pq.filters_to_expression(filters) if isinstance(filters, list) else filters
    expected = sorted_rows(expression.to_table(filter=wanted).to_pandas())
    assert len(expected) < len(everything)
    for place in (original.store, store):
        for study in (None, "tiny"):
            assert sorted_rows(read_records(place, study, filters)) == expected, (place.root, study)


def test_a_filter_on_what_all_rows_of_a_cell_share_reads_no_other_row_group(
    store: Store, original: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact(store)
    read: list[tuple[str, int]] = []
    inner = Store._read_group

    def noted(self: Store, part: str, group: int) -> Any:
        read.append((part, group))
        return inner(self, part, group)

    monkeypatch.setattr(Store, "_read_group", noted)
    cell = original.plan.cells[0].key
    assert len(read_records(store.root, "tiny", [("cell", "=", cell)])) == 60
    assert len(read) == 1
    assert len(read_records(store.root, "tiny", pc.field("cell") == cell)) == 60
    assert len(read) == 2
    assert len(read_records(store.root, "tiny", [("point", "=", original.study.points[0])])) == len(original.plan.cells)
    assert len(set(read[2:])) == sum(len(digests) for digests in store.compacted.parts.values())


class Killed(BaseException):
    """The process ends here."""


def mutations(monkeypatch: pytest.MonkeyPatch, stop_at: int) -> list[str]:
    """Count what changes files; raise in place of change number `stop_at`, and at every later one."""
    done: list[str] = []
    for name in ("write_bytes", "remove", "move"):
        inner: Callable[..., Any] = getattr(Files, name)

        def counted(self: Files, path: str, *rest: Any, inner: Any = inner, name: str = name) -> Any:
            if len(done) >= stop_at:
                raise Killed
            done.append(f"{name} {path}")
            return inner(self, path, *rest)

        monkeypatch.setattr(Files, name, counted)
    return done


def killed_after_each_change(one: Store, folder: Path, action: Callable[[Store], Any]) -> Iterator[tuple[Store, str]]:
    """A copy of the store for every change to files that the action makes, killed before the next one."""
    with pytest.MonkeyPatch.context() as patch:
        done = mutations(patch, 10**9)
        action(Store(shutil.copytree(one.root, folder / "whole")))
        total = len(done)
    for stop in range(total):
        copied = Store(shutil.copytree(one.root, folder / f"stop{stop}"))
        with pytest.MonkeyPatch.context() as patch:
            done = mutations(patch, stop)
            with pytest.raises(Killed):
                action(copied)
        yield Store(copied.root), f"{stop} of {total}: {done[-1:]}"


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes in one order, so that each stop is a moment of its own."""
    monkeypatch.setattr(mi_ray.store.compact, "READERS", 1)


@pytest.mark.usefixtures("one_thread")
def test_a_compaction_killed_after_any_change_leaves_each_row_once_and_is_finished_by_the_next(
    lean: Store, tmp_path: Path
) -> None:
    expected = sorted_rows(read_records(lean))
    stops = 0
    for left, where in killed_after_each_change(lean, tmp_path, compact):
        stops += 1
        assert sorted_rows(read_records(left.root)) == expected, where
        seen = sorted_rows(outside(left))
        assert len(seen) == len(set(seen)), where
        assert set(seen) <= set(expected), where
        compact(left)
        assert sorted_rows(read_records(left.root)) == sorted_rows(outside(left)) == expected, where
        assert {path.split("/")[1] for path in left.files("records")} == {"compacted"}, where
        assert list(left.files(WAITING)) == [INDEX_PATH], where
    assert stops > FEW  # each small file that goes is such a moment


@pytest.mark.usefixtures("one_thread")
def test_dropping_a_compacted_cell_killed_after_any_change_loses_no_other_row(
    lean: Store, original: Tiny, tmp_path: Path
) -> None:
    compact(lean)
    gone = original.plan.cells[1].key
    everything = read_records(lean)
    others = sorted_rows(everything[everything["cell"] != gone])
    stops = 0
    for left, where in killed_after_each_change(lean, tmp_path, lambda copied: drop_records(copied, gone)):
        stops += 1
        found = sorted_rows(there(left))
        assert found in (others, sorted_rows(everything)), where
        seen = sorted_rows(outside(left))
        assert len(seen) == len(set(seen)), where
        finish_compaction(left)
        drop_records(left, gone)
        assert sorted_rows(there(left)) == sorted_rows(outside(left)) == others, where
    assert stops >= 4


def test_a_sweep_over_compacted_records_derives_nothing_again_and_a_longer_one_replaces_them(
    store: Store, tmp_path: Path
) -> None:
    one = tiny(Path(store.root), **ONE_GRID)
    compact(store)
    before = store.files("records")
    finish(one)
    assert store.files("records") == before
    rows = read_records(store.root, "tiny")
    longer = tiny(Path(store.root), **ONE_GRID, points={"count": 80, "selection": 20})
    finish(longer)
    again = read_records(store.root, "tiny")
    assert (len(rows), len(again)) == (60 * len(one.plan.cells), 80 * len(longer.plan.cells))
    assert sorted_rows(outside(Store(store.root))) == sorted_rows(read_records(store.root))
    assert problems_in(Store(store.root)) == []
    kept = set(Store(store.root).compacted.places)  # e.g. worst cases, whose keys hold the number of points
    assert kept.isdisjoint(cell.key for cell in longer.plan.cells)


def test_cells_that_a_study_adds_later_are_compacted_beside_the_others(store: Store) -> None:
    compact(store)
    finish(tiny(Path(store.root), defenses=DEFENSE_GRID, name="wider"))
    fresh = Store(store.root)
    assert len(fresh.folders("records")) > 1
    expected = sorted_rows(read_records(fresh))
    done, left = compact(fresh)
    assert done > 0
    assert left == []
    assert sorted_rows(read_records(fresh)) == sorted_rows(outside(fresh)) == expected
    assert problems_in(fresh) == []


@pytest.mark.parametrize("where", ["head", "middle", "footer"])
def test_a_damaged_part_is_found_never_read_and_only_its_cells_are_derived_again(
    store: Store, original: Tiny, where: str
) -> None:
    one = tiny(Path(store.root), **ONE_GRID)
    compact(store)
    expected = sorted_rows(read_records(original.store))
    part = Path(store.root) / sorted(store.files(PUBLISHED))[0]
    content = bytearray(part.read_bytes())
    content[{"head": 60, "middle": len(content) // 3, "footer": len(content) - 30}[where]] ^= 1
    part.write_bytes(content)
    fresh = Store(store.root)
    problems = problems_in(fresh)
    try:
        assert sorted_rows(read_records(fresh)) == expected  # e.g. a flip in a statistic that nobody reads
    except DamagedFileError:
        assert problems
        assert all("compacted" in problem for problem in problems)
    one.bench.store.refresh()
    derived(one)
    fresh = Store(store.root)
    assert sorted_rows(read_records(fresh)) == sorted_rows(outside(fresh)) == expected
    assert problems_in(fresh) == []


def test_flips_in_every_part_of_a_part_are_refused_or_harmless(store: Store, original: Tiny) -> None:
    compact(store)
    expected = sorted_rows(read_records(original.store))
    part = Path(store.root) / sorted(store.files(PUBLISHED))[0]
    whole, refused = part.read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 60):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        part.write_bytes(damaged)
        try:
            assert sorted_rows(read_records(store.root)) == expected, place
        except DamagedFileError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_damaged_index_is_found_and_what_it_named_is_derived_again(
    store: Store, original: Tiny, damage: bytes | None
) -> None:
    one = tiny(Path(store.root), **ONE_GRID)
    compact(store)
    index = Path(store.root) / INDEX_PATH
    content = bytearray(index.read_bytes())
    content[len(content) // 3] ^= 1
    index.write_bytes(content if damage is None else damage)
    fresh = Store(store.root)
    with pytest.raises(DamagedFileError, match=INDEX_PATH):
        read_records(fresh)
    assert next(problem.path for problem in check_store(fresh)[0]) == INDEX_PATH
    assert not is_sealed(fresh, "tiny")
    one.bench.store.refresh()
    finish(one)
    fresh = Store(store.root)
    assert sorted_rows(read_records(fresh)) == sorted_rows(outside(fresh)) == sorted_rows(read_records(original.store))
    assert problems_in(fresh) == []


def test_a_damaged_small_file_is_left_where_it_is_and_named(store: Store, original: Tiny) -> None:
    cell = original.plan.cells[2].key
    path = store.blocks("records", cell)[0].path
    store.write_bytes(path, b"PAR1")
    done, left = compact(store)
    assert done == len(original.plan.cells) - 1
    assert len(left) == 1
    assert left[0].startswith(path)
    assert store.read_bytes(path) == b"PAR1"
    discard(store, path)
    assert not store.exists(path)


def test_a_compacted_study_stays_sealed_and_a_lost_part_breaks_the_seal(store: Store) -> None:
    from helpers.sweeps import sweep

    own = sweep(**{**TINY, **ONE_GRID})
    assert study_state(own, store.root) == "finished"
    compact(store)
    assert study_state(own, store.root) == "open"
    seal_again(store, "tiny")
    assert study_state(own, store.root) == "finished"
    store.remove(next(iter(store.files(PUBLISHED))))
    assert study_state(own, store.root) == "open"


def test_rows_are_found_when_the_files_are_compacted_while_they_are_read(
    store: Store, original: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, inner = Store(store.root), Store.read_block
    compacted: list[bool] = []

    def interrupted(self: Store, *rest: Any) -> Any:
        if self is reader and not compacted:
            compacted.append(True)
            compact(store)
        return inner(self, *rest)

    monkeypatch.setattr(Store, "read_block", interrupted)
    assert sorted_rows(read_records(reader, "tiny")) == sorted_rows(read_records(original.store))
    assert compacted


def test_points_that_all_cells_have_in_the_same_order_are_stored_once_a_row_group(original: Tiny) -> None:
    (path,) = {row.path for row in original.store.blocks("records", original.plan.cells[0].key)}
    table = original.store.read_table(path, RECORDS).slice(0, 1)
    order = np.random.default_rng(0).permutation(10_000)[:1500].astype(np.int32)
    one = pa.Table.from_arrays(
        [pa.array(order) if name == "point" else table[name].take([0] * 1500) for name in RECORDS.names], schema=RECORDS
    )
    part = _OpenPart()
    part.write(pa.concat_tables([one] * 67))
    part.writer.close()
    stored = pq.ParquetFile(part.sink.getvalue()).metadata.row_group(0).column(RECORDS.names.index("point"))
    assert stored.total_compressed_size < 1.2 * order.nbytes
