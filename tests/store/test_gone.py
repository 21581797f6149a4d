"""Files that are deleted from a store: nothing is read as if it were whole, `check` and `status` say so, a sweep mends it."""

import fcntl
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from helpers.studies import Tiny, compute, finish, problems_in, tiny

from mi_ray.store.blocks import Store
from mi_ray.store.files import DamagedFileError, UnfinishedStudyWarning
from mi_ray.store.locks import lock_study, locked
from mi_ray.store.manifest import overviews, read_manifest
from mi_ray.store.read import cells_table, read_cells, read_records, write_cells
from mi_ray.study.folder import mark


@pytest.fixture
def store(original: Tiny, tmp_path: Path) -> Store:
    """A copy of the finished study's store."""
    return Store(shutil.copytree(original.store.root, tmp_path / "results"))


def state_of(store: Store) -> str:
    (found,) = overviews(store)
    return found.state


@pytest.mark.parametrize("filters", [None, [("attack", "=", "none")]])
def test_records_that_are_gone_are_an_error_and_not_fewer_rows(store: Store, filters: Any) -> None:
    whole = read_records(store, "tiny", filters)
    cell = whole["cell"].iloc[0]
    store.remove(f"records/{cell}")
    for study in ("tiny", None):
        with pytest.raises(
            DamagedFileError, match=rf"of 1 cells of \d+ they are gone, first {cell}: the same sweep makes"
        ):
            read_records(store, study, filters)
    other = whole[whole["cell"] != cell]["cell"].iloc[0]
    assert len(read_records(store, "tiny", [("cell", "=", other)])) == 60  # what is asked for is whole
    assert any(f"cell {cell} must have 60 rows in records; it has 0" in problem for problem in problems_in(store))
    assert (
        state_of(store)
        == f"complete, but 1 of {len(read_cells(store, 'tiny'))} records gone: the same sweep makes them again"
    )


def test_cells_that_are_not_done_are_told_of(store: Store) -> None:
    rows = cells_table(store, "tiny").to_pylist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_records(store, "tiny")
    for row, state in zip(rows, ("failed", "missing", "missing"), strict=False):
        row |= {"state": state, "cause": "so"}
        store.remove(f"records/{row['cell']}")
    write_cells(store, "tiny", rows)
    with pytest.warns(
        UnfinishedStudyWarning, match=rf"tiny: 3 of {len(rows)} cells have no rows here \(1 failed, 2 missing\)"
    ):
        assert read_records(store, "tiny")["cell"].nunique() == len(rows) - 3


@pytest.mark.parametrize("kind", ["outputs", "adversarial", "classifiers"])
def test_results_that_are_gone_are_seen_by_check_and_status_and_made_again(
    kind: str, original: Tiny, store: Store
) -> None:
    assert problems_in(store) == []
    key = read_manifest(store, "tiny")["keys"][kind][0]
    store.remove(f"{kind}/{key}")
    assert f"studies/tiny: {kind}/{key} must be there, of which its cells came; it is gone" in problems_in(store)
    assert f"but 1 of {len(read_manifest(store, 'tiny')['keys'][kind])} {kind} gone" in state_of(store)


def test_a_block_that_is_gone_is_seen_and_computed_again(tmp_path: Path) -> None:
    one = tiny(tmp_path / "results")
    finish(one)
    before = one.store.files("")
    path = next(path for path in before if path.startswith("outputs/") and path.endswith("00020-00040.parquet"))
    one.store.remove(path)
    folder = path.rpartition("/")[0]
    told = f"studies/tiny: {folder} must be there, of which its cells came; points 20 to 60 are gone"
    assert told in problems_in(one.store)
    assert compute(one) == 1
    assert problems_in(one.store) == []


def test_status_tells_a_run_that_died_from_one_that_runs(original: Tiny, store: Store) -> None:
    one = tiny(store.root, defenses=original.study.sweep.document()["defenses"])
    mark(store, one.study, one.plan, "running")
    assert state_of(store).startswith("cut short while running; the same command goes on: classifiers 1/1")
    with lock_study(store, "tiny", lambda text: None):
        assert state_of(store).startswith("running (process ")
    assert state_of(store).startswith("cut short while running")
    mark(store, one.study, one.plan, "attacked")  # what `mi-ray attack` leaves, which has ended as it should
    assert state_of(store).startswith("attacked: ")


def test_asking_who_runs_a_study_keeps_nobody_from_running_it(store: Store) -> None:
    path = Path(store.root) / ".study-tiny.lock"
    path.touch()  # of a process that was killed
    assert overviews(store)[0].state == "complete"
    with locked(path, lambda who: pytest.fail(who)) as held:
        assert held
        with path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
