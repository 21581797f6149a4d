"""TODO."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mi_ray.store.blocks import READERS, Block, Store, blocks_among
from mi_ray.store.files import DamagedFileError as DamagedFileError
from mi_ray.store.schemas import CELLS, IDENTITY, RECORDS

FEW = 1000  # cells that are looked up one by one, instead of listing all


def _study_path(study: str, name: str) -> str:
    return f"studies/{study}/{name}"


def write_cells(store: Store, study: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a study's cells.parquet."""
    store.write_table(
        _study_path(study, "cells.parquet"), pa.Table.from_pylist([dict(row) for row in rows], schema=CELLS)
    )


def read_cells(store: str | Path | Store, study: str | None = None) -> pd.DataFrame:
    """One row per cell of a study (of all studies when none is named): identity, state, accuracy and its interval.

    Raises ValueError for a study that is not in the store.
    """
    opened = store if isinstance(store, Store) else Store(store)
    studies = opened.folders("studies") if study is None else [study]
    frames = []
    for name in studies:
        path = _study_path(name, "cells.parquet")
        if study is not None or opened.exists(path):
            frames.append(cells_table(opened, name).to_pandas().assign(study=name))
    return pd.concat(frames, ignore_index=True) if frames else CELLS.empty_table().to_pandas()


def cells_table(store: Store, study: str) -> pa.Table:
    """A study's cells.parquet. Raises ValueError when there is none, and DamagedFileError when it is damaged."""
    path = _study_path(study, "cells.parquet")
    if not store.exists(path):
        known = ", ".join(store.folders("studies")) or "none"
        raise ValueError(f"study {study!r} must be in {store.uri}; known: {known}")
    return store.read_table(path, CELLS)


def read_records(store: str | Path | Store, study: str | None = None, filters: Any = None) -> pd.DataFrame:
    """One row per (cell, point): a study's, or the whole store's.

    filters: a pyarrow.dataset expression, or pyarrow's list of (column, operator, value).
    Raises DamagedFileError for a file that is not what its name says; `mi-ray check` names all of them.
    """
    opened = store if isinstance(store, Store) else Store(store)
    opened.refresh()
    try:
        return _read_records(opened, study, filters)
    except DamagedFileError:
        before = opened.compacted.index
        opened.refresh()
        if opened.compacted.index.equals(before, check_metadata=True):
            raise
    return _read_records(opened, study, filters)  # the files were compacted while they were read


def _read_records(store: Store, study: str | None, filters: Any) -> pd.DataFrame:
    names: dict[str, str] | None = None
    known: pa.Table | None = None
    if study is not None:
        known = cells_table(store, study).select(IDENTITY)
        names = dict(zip(known["cell"].to_pylist(), known["classifier"].to_pylist(), strict=True))
        known = known.drop_columns("classifier")  # another study may have named it otherwise when it wrote the rows
    expression = pq.filters_to_expression(filters) if isinstance(filters, list) else filters
    wanted = None if known is None else _matching(known, filters)
    tables = [
        rows if expression is None else rows.filter(expression)
        for rows in _stored_rows(store, wanted, _matching(store.compacted.index, filters))
    ]
    frame: pd.DataFrame = pa.concat_tables([RECORDS.empty_table(), *tables]).to_pandas()
    if names is not None:
        frame["classifier"] = frame["cell"].map(names)
    return frame


def _stored_rows(store: Store, wanted: set[str] | None, compacted: set[str]) -> Iterator[pa.Table]:
    """The rows of the wanted cells (None: of all), those of `compacted` where they are compacted."""
    places = store.compacted.places
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in compacted if wanted is None else compacted & wanted:
        row = store.compacted.row(places[cell])
        groups.setdefault((row["part"], row["group"]), []).append(row)
    small = [block for block in _small_blocks(store, wanted) if block[0] not in places]
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(lambda found: _rows_of(store, *found), sorted(groups.items()))
        yield from pool.map(lambda found: store.read_block("records", *found)[0], small)


def _rows_of(store: Store, group: tuple[str, int], rows: list[dict[str, Any]]) -> pa.Table:
    table = store.read_group(*group)
    if sum(row["rows"] for row in rows) == len(table):
        return table
    return pa.concat_tables([table.slice(row["first"], row["rows"]) for row in sorted(rows, key=lambda r: r["first"])])


def _small_blocks(store: Store, wanted: set[str] | None) -> Iterator[tuple[str, Block]]:
    """(cell, block) of the records in files of their own, in order; a few cells are looked up one by one."""
    by_cell: dict[str, list[str]] = {}
    if wanted is not None and len(wanted) <= FEW:
        by_cell = {cell: list(store.files(f"records/{cell}")) for cell in wanted}
    else:
        for path in store.files("records"):
            by_cell.setdefault(path.split("/")[1], []).append(path)
    for cell in sorted(by_cell):
        if wanted is None or cell in wanted:
            yield from ((cell, block) for block in blocks_among(by_cell[cell]))


def _matching(cells: pa.Table, filters: Any) -> set[str]:
    """The cells whose rows a filter may let through, judged by what all rows of a cell have in common."""
    if isinstance(filters, list):
        anyof = [filters] if filters and isinstance(filters[0][0], str) else filters
        own = [[part for part in allof if part[0] in cells.schema.names] for allof in anyof]
        filters = pq.filters_to_expression(own) if own and all(own) else None
    if filters is not None:
        # A filter that asks for more than that lets every cell through: its rows have to be looked at.
        with contextlib.suppress(pa.ArrowInvalid):
            known = cells.select([name for name in cells.schema.names if name in IDENTITY]).drop_null()
            refused = set(known["cell"].to_pylist()) - set(known.filter(filters)["cell"].to_pylist())
            return set(cells["cell"].to_pylist()) - refused
    return set(cells["cell"].to_pylist())
