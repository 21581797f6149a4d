"""What a person reads of a store: a study's cells and its records as pandas frames, filtered before they are loaded."""

import contextlib
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mi_ray.store.blocks import READERS, Block, Place, Store, blocks_among
from mi_ray.store.files import DamagedFileError, UnfinishedStudyWarning
from mi_ray.store.keys import canonical
from mi_ray.store.schemas import CELLS, CERTIFICATES, CERTIFIED, IDENTITY, RECORDS

AHEAD = 2 * READERS  # tables that are read before they are taken
FEW = 1000  # so many cells are looked up one by one; for more of them all files are listed at once

Item = TypeVar("Item")
Condition = tuple[str, str, object]  # (column, operator, value), as pyarrow writes it
# pyarrow's two forms of a filter: an expression, or conditions that must all hold (or a list of such lists, of which
# one must hold).
Filters: TypeAlias = pc.Expression | list[Condition] | list[list[Condition]] | None


TOLD_ANEW = ("classifier", "attack_params")  # columns of records that are read as cells.parquet has them


def cells_path(study: str) -> str:
    """Where the cells of a study are."""
    return f"studies/{study}/cells.parquet"


def studies_of(store: Store) -> list[str]:
    """The studies of a store that have come as far as their cells."""
    return [name for name in store.folders("studies") if store.exists(cells_path(name))]


def write_cells(store: Store, study: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a study's cells.parquet."""
    store.write_table(cells_path(study), pa.Table.from_pylist([dict(row) for row in rows], schema=CELLS))


def read_cells(store: str | Path | Store, study: str | None = None, *, flat: bool = False) -> pd.DataFrame:
    """A frame with a row per cell of a study, or of all studies when none is named.

    Its columns are those of `cells.parquet` (docs/results.md) and `study`. flat: whether each parameter of a defense and
    of an attack has a column too (`defense.lam`, `attack.steps`), and each check one with its state
    (`check.more_steps`); these are empty where a cell has no such parameter or check. A parameter that is a list is a
    tuple there, and a distribution JSON text, so that rows can be grouped by any. Raises ValueError when the store has
    no such study.
    """
    opened = store if isinstance(store, Store) else Store(store)
    studies = studies_of(opened) if study is None else [study]
    frames = [cells_table(opened, name).to_pandas().assign(study=name) for name in studies]
    empty = CELLS.empty_table().to_pandas().assign(study=pd.Series(dtype=object))
    found = pd.concat(frames, ignore_index=True) if frames else empty
    return _flat(found) if flat else found


def read_certificates(store: str | Path | Store, study: str) -> pd.DataFrame:
    """A frame with a row per certificate and point of a study that certifies: `certificates.parquet` (docs/results.md).

    Raises ValueError when the store has no such study, and where the study certifies nothing.
    """
    return _certified(store, study, "certificates.parquet", CERTIFICATES)


def read_certified(store: str | Path | Store, study: str) -> pd.DataFrame:
    """A frame with a row per certificate and radius of a study that certifies: `certified.parquet` (docs/results.md).

    Raises ValueError when the store has no such study, and where the study certifies nothing.
    """
    return _certified(store, study, "certified.parquet", CERTIFIED)


def _certified(store: str | Path | Store, study: str, name: str, schema: pa.Schema) -> pd.DataFrame:
    opened = store if isinstance(store, Store) else Store(store)
    cells_table(opened, study)
    path = f"studies/{study}/{name}"
    if not opened.exists(path):
        raise ValueError(f"study {study!r} must have `certify` in its sweep, or have come as far; there is no {path}")
    found: pd.DataFrame = opened.read_table(path, schema).to_pandas()
    return found.assign(study=study)


def write_certificates(store: Store, study: str, points: pa.Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Write what a study certifies: certificates.parquet and certified.parquet; remove both where it certifies nothing."""
    paths = {"certificates.parquet": points, "certified.parquet": pa.Table.from_pylist([*map(dict, rows)], CERTIFIED)}
    for name, table in paths.items():
        path = f"studies/{study}/{name}"
        if rows:
            store.write_table(path, table)
        elif store.exists(path):
            store.remove(path)


def _flat(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with what their columns of JSON text say in columns of their own."""
    parts = [cells]
    for column, prefix in (("defense_params", "defense"), ("attack_params", "attack"), ("checks", "check")):
        said = [json.loads(text) if isinstance(text, str) else {} for text in cells[column]]
        rows = [{f"{prefix}.{name}": _scalar(value) for name, value in found.items()} for found in said]
        parts.append(pd.DataFrame(rows, index=cells.index))
    return pd.concat(parts, axis=1)


def _scalar(value: object) -> object:
    """A value of JSON text as one entry of a column, by which rows can be grouped: of a check its state."""
    if isinstance(value, dict):
        return value["state"] if "state" in value else canonical(value)
    return tuple(map(_scalar, value)) if isinstance(value, list) else value


def cells_table(store: Store, study: str) -> pa.Table:
    """A study's cells.parquet. Raises ValueError when there is none, and DamagedFileError when it is damaged."""
    path = cells_path(study)
    if not store.exists(path):
        known = store.folders("studies")
        if study in known:
            raise ValueError(
                f"study {study!r} of {store.uri} must have come as far as its cells; {path} is not there, and its sweep writes it"
            )
        raise ValueError(f"study {study!r} must be in {store.uri}; known: {', '.join(known) or 'none'}")
    return store.read_table(path, CELLS)


def read_records(
    store: str | Path | Store,
    study: str | None = None,
    filters: Filters = None,
    columns: Sequence[str] | None = None,
) -> pd.DataFrame:
    """A frame with a row per cell and point of a study, or of the whole store when no study is named.

    Its columns are those of `records` (docs/results.md) and `study`: the name, or, of a whole store, those of all studies
    that have the cell, with commas between. filters: a pyarrow.dataset expression, or pyarrow's list of
    (column, operator, value); only cells that it may let through are read. columns: those that are wanted, in place of all;
    without `probabilities` a frame is made several times faster. No cell is left out in silence: for those that failed or
    were not computed there is an UnfinishedStudyWarning. Raises ValueError when the store has no such study or there is no
    such column, and DamagedFileError for a file that is not what its name says and for rows that are gone (`mi-ray check`
    names all of them).
    """
    known = [*RECORDS.names, "study"]
    if columns is not None and not set(columns) <= set(known):
        missing = ", ".join(name for name in columns if name not in known)
        raise ValueError(f"columns must be among {', '.join(known)}; got {missing}")
    opened = store if isinstance(store, Store) else Store(store)
    opened.refresh()
    for name in studies_of(opened) if study is None else [study]:
        _tell_of_unfinished(name, cells_table(opened, name))
    try:
        return _read_records(opened, study, filters, columns)
    except DamagedFileError:
        before = opened.compacted.index
        opened.refresh()
        if opened.compacted.index.equals(before, check_metadata=True):
            raise
    return _read_records(opened, study, filters, columns)  # The files were compacted while they were read.


def record_tables(store: Store, study: str) -> Iterator[pa.Table]:
    """The records of a study as Arrow tables, some cells at a time, for whoever needs few of their columns of many rows.

    Raises ValueError when the store has no such study, and DamagedFileError for a file that is not what its name says or
    for rows that are gone.
    """
    store.refresh()
    wanted = set(cells_table(store, study)["cell"].to_pylist())
    yield from _stored_rows(store, wanted, set(store.compacted.places), _finished(store, study))


def _read_records(store: Store, study: str | None, filters: Filters, columns: Sequence[str] | None) -> pd.DataFrame:
    filters = None if isinstance(filters, list) and not filters else filters
    expression = pq.filters_to_expression(filters) if isinstance(filters, list) else filters
    names: dict[str, tuple[str, str]] = {}
    wanted: set[str] | None = None
    compacted = _matching(store.compacted.index, filters) if study is None else set(store.compacted.places)
    if study is not None:
        known = cells_table(store, study).select(IDENTITY)
        told = zip(*(known[name].to_pylist() for name in TOLD_ANEW), strict=True)
        names = dict(zip(known["cell"].to_pylist(), told, strict=True))
        wanted = _matching(known, filters)
    kept = RECORDS.names if columns is None else [name for name in RECORDS.names if name in {*columns, "cell"}]
    # A filter may ask for the name though nobody wants to see it.
    named = bool({*TOLD_ANEW} & {*kept}) or expression is not None
    tables = []
    for stored in _stored_rows(store, wanted, compacted, _finished(store, study)):
        rows = stored if study is None or not named else _named(stored, names)
        tables.append((rows if expression is None else rows.filter(expression)).select(kept))
    frame: pd.DataFrame = pa.concat_tables([RECORDS.empty_table().select(kept), *tables]).to_pandas()
    if study is not None:
        frame = frame.assign(study=study)
    else:
        known_by = _studies_by_cell(store)
        frame = frame.assign(study=[known_by.get(cell, "") for cell in frame["cell"]])
    return frame if columns is None else frame[list(columns)]


def _named(rows: pa.Table, names: Mapping[str, tuple[str, str]]) -> pa.Table:
    """Rows with what a study's cells say in place of what the study says that wrote them, which may have named the classifier
    otherwise, and whose program may have told less of an attack.

    names: cell -> the columns `TOLD_ANEW`.
    """
    cells = rows["cell"].to_pylist()
    for at, name in enumerate(TOLD_ANEW):
        column = pa.array([names[cell][at] for cell in cells], RECORDS.field(name).type)
        rows = rows.set_column(rows.schema.get_field_index(name), RECORDS.field(name), column)
    return rows


def _studies_by_cell(store: Store) -> dict[str, str]:
    """The names of the studies that have each cell, with commas between."""
    found: dict[str, list[str]] = {}
    for study in studies_of(store):
        for cell in cells_table(store, study)["cell"].to_pylist():
            found.setdefault(cell, []).append(study)
    return {cell: ", ".join(dict.fromkeys(names)) for cell, names in found.items()}


def _tell_of_unfinished(study: str, cells: pa.Table) -> None:
    """Warn of cells of a study that have no rows because they are not done."""
    states = [state for state in cells["state"].to_pylist() if state in ("failed", "missing")]
    if states:
        counted = ", ".join(f"{states.count(state)} {state}" for state in sorted({*states}))
        warnings.warn(
            f"{study}: {len(states)} of {len(cells)} cells have no rows here ({counted}); read_cells says why, and the same "
            "sweep tries them again",
            UnfinishedStudyWarning,
            stacklevel=3,
        )


def _finished(store: Store, study: str | None) -> dict[str, int]:
    """Cell -> how many rows it must have, of the finished cells of a study, or of all studies."""
    found: dict[str, int] = {}
    for name in studies_of(store) if study is None else [study]:
        cells = cells_table(store, name)
        cells = cells.filter(pc.equal(cells["state"], "done")).select(["cell", "points", "selection_points"])
        for row in cells.to_pylist():
            found[row["cell"]] = (row["points"] or 0) + (row["selection_points"] or 0)
    return found


def _refuse_absent(
    store: Store, finished: Mapping[str, int], wanted: set[str] | None, stored: Mapping[str, int]
) -> None:
    """Raise DamagedFileError when finished cells that are wanted have fewer rows in the store than they had."""
    lost = [
        cell for cell, rows in finished.items() if (wanted is None or cell in wanted) and stored.get(cell, 0) < rows
    ]
    if lost:
        raise DamagedFileError(
            f"every finished cell must have its rows in {store.uri}/records; of {len(lost)} cells of {len(finished)} they are "
            f"gone, first {lost[0]}: the same sweep makes them again, and `mi-ray check {store.uri}` names all that is gone"
        )


def _stored_rows(
    store: Store, wanted: set[str] | None, compacted: set[str], finished: Mapping[str, int]
) -> Iterator[pa.Table]:
    """The rows of the wanted cells, or of all when `wanted` is None.

    compacted: those cells among the compacted ones that a filter may let through. finished: see `_finished`. Raises
    DamagedFileError when some of their rows are not there.
    """
    places = store.compacted.places
    groups: dict[tuple[str, int], list[Place]] = {}
    for cell in compacted if wanted is None else compacted & wanted:
        groups.setdefault((places[cell].part, places[cell].group), []).append(places[cell])
    small = [block for block in _small_blocks(store, wanted) if block[0] not in places]
    stored = {cell: place.rows for cell, place in places.items()}
    for cell, block in small:
        stored[cell] = stored.get(cell, 0) + block.stop - block.start
    _refuse_absent(store, finished, wanted, stored)
    with ThreadPoolExecutor(READERS) as pool:
        yield from _read_ahead(pool, lambda found: _rows_of(store, *found), sorted(groups.items()))
        yield from _read_ahead(pool, lambda found: store.read_block("records", *found)[0], small)


def _read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Item], pa.Table], items: Iterable[Item]
) -> Iterator[pa.Table]:
    """What is read of each item, in order, with a few tables ahead of who takes them.

    A pool's own `map` reads everything at once, and keeps what is not taken yet: a study's rows with all their probabilities.
    """
    coming: deque[Future[pa.Table]] = deque()
    for item in items:
        coming.append(pool.submit(read, item))
        if len(coming) > AHEAD:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def _rows_of(store: Store, group: tuple[str, int], places: Sequence[Place]) -> pa.Table:
    """The rows at these places of one row group, (part, number)."""
    table = store.read_group(*group)
    if sum(place.rows for place in places) == len(table):
        return table
    return pa.concat_tables([table.slice(place.first, place.rows) for place in sorted(places, key=lambda p: p.first)])


def _small_blocks(store: Store, wanted: set[str] | None) -> Iterator[tuple[str, Block]]:
    """(cell, block) of the records that have files of their own, in order."""
    by_cell: dict[str, list[str]] = {}
    if wanted is not None and len(wanted) <= FEW:
        by_cell = {cell: list(store.files(f"records/{cell}")) for cell in wanted}
    else:
        for path in store.files("records"):
            by_cell.setdefault(path.split("/")[1], []).append(path)
    for cell in sorted(by_cell):
        if wanted is None or cell in wanted:
            yield from ((cell, block) for block in blocks_among(by_cell[cell]))


def _matching(cells: pa.Table, filters: Filters) -> set[str]:
    """The cells of which a filter may let rows through, judged by their identity alone."""
    if isinstance(filters, list):
        alone = bool(filters) and isinstance(filters[0][0], str)
        anyof = cast("list[list[Condition]]", [filters] if alone else filters)
        own = [[part for part in allof if part[0] in cells.schema.names] for allof in anyof]
        filters = pq.filters_to_expression(own) if own and all(own) else None
    if filters is not None:
        # A filter that asks for other columns too is an error here, and then all cells have to be read.
        with contextlib.suppress(pa.ArrowInvalid):
            known = cells.select([name for name in cells.schema.names if name in IDENTITY]).drop_null()
            refused = set(known["cell"].to_pylist()) - set(known.filter(filters)["cell"].to_pylist())
            return set(cells["cell"].to_pylist()) - refused
    return set(cells["cell"].to_pylist())
