"""Compaction: the records of many small files are brought into few large ones, the parts.

Parts are written whole beside the records, then the index that says where each cell is. From then on our readers read
the parts. Then the small files are removed, and then the parts are moved in among the records. So another reader of
`records/` never finds a row twice, and our readers find each row exactly once at any moment. A process that is killed
anywhere leaves a store that `finish`, which every compaction and every sweep begins with, brings to its end.
"""

import contextlib
import itertools
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mi_ray.store.blocks import INDEX_PATH, PUBLISHED, READERS, WAITING, Store, table_digest
from mi_ray.store.files import DamagedFileError
from mi_ray.store.leases import leased, open_slot, refusal
from mi_ray.store.locks import locked
from mi_ray.store.read import cells_table
from mi_ray.store.schemas import IDENTITY, INDEX, RECORDS

GROUP_ROWS = 20_000  # rows of a row group, about: so many are read and verified for one cell
PART_BYTES = 128 * 2**20  # a part that has become larger is closed
AHEAD = 1000  # cells that are read before the first of them is written; memory holds so many at a time
ABANDONED = 24 * 3600.0  # seconds after which a part that no index names is removed, where the storage cannot lock
# A dictionary would hide from the compression that a study's cells are of the same points in the same order, and so would a
# page that ends within a row group, since each page is compressed by itself.
DICTIONARIES = [name for name in RECORDS.names if name != "point"]
PAGE_ROWS = 2**31 - 1
OWN = ("kind", "key", "start", "stop")  # facts of a block that the index says in columns of their own


@dataclass(frozen=True)
class Rows:
    """The rows of one cell, of the positions start to stop of a study's points. facts: their `BlockFacts` as JSON."""

    cell: str
    start: int
    stop: int
    facts: str
    table: pa.Table


class _OpenPart:
    """A part that is being encoded in memory."""

    def __init__(self) -> None:
        self.name = f"part-{uuid.uuid4().hex[:16]}.parquet"
        self.sink = pa.BufferOutputStream()
        encoding: Any = {"use_dictionary": DICTIONARIES, "max_rows_per_page": PAGE_ROWS}
        self.writer = pq.ParquetWriter(self.sink, RECORDS, compression="zstd", write_page_checksum=True, **encoding)
        self.digests: list[str] = []

    def write(self, table: pa.Table) -> int:
        """Add a row group; returns its number."""
        self.writer.write_table(table, row_group_size=len(table))
        self.digests.append(table_digest(table))
        return len(self.digests) - 1


@dataclass
class _Parts:
    """Writes parts, one row group after another.

    group_rows: of a row group, about. index: a row of the index for each cell that has been written. digests: part -> the
    digests of its row groups.
    """

    store: Store
    group_rows: int
    index: list[dict[str, object]] = field(default_factory=list)
    digests: dict[str, list[str]] = field(default_factory=dict)
    _rows: list[Rows] = field(default_factory=list)
    _count: int = 0
    _part: _OpenPart | None = None

    def add(self, rows: Rows) -> None:
        """Take a cell's rows. A row group that is full is encoded, and a part that is full is written."""
        self._rows.append(rows)
        self._count += len(rows.table)
        if self._count >= self.group_rows:
            part = self._close_group()
            if part.sink.tell() >= PART_BYTES:
                self._close_part(part)

    def close(self) -> None:
        """Write the rows that have not filled a row group or a part."""
        if self._rows:
            self._close_group()
        if self._part is not None:
            self._close_part(self._part)

    def _close_group(self) -> _OpenPart:
        self._part = part = self._part or _OpenPart()
        table = pa.concat_tables([rows.table for rows in self._rows]).combine_chunks()
        place = {"part": part.name, "group": part.write(table)}
        first = 0
        for rows in self._rows:
            identity = {name: rows.table[name][0].as_py() for name in IDENTITY}
            at = {"start": rows.start, "stop": rows.stop, "first": first, "rows": len(rows.table)}
            self.index.append({**identity, **place, **at, "facts": rows.facts})
            first += len(rows.table)
        self._rows, self._count = [], 0
        return part

    def _close_part(self, part: _OpenPart) -> None:
        part.writer.close()
        self.digests[part.name] = part.digests
        self.store.write_bytes(f"{WAITING}/{part.name}", part.sink.getvalue().to_pybytes())
        self._part = None


def lock_index(store: Store) -> AbstractContextManager[object]:
    """Let one process at a time change the index, where the storage has locks or leases."""
    if store.local:
        return locked(Path(store.root) / WAITING / ".lock", lambda who: None)
    return nullcontext() if refusal(store) else leased(open_slot(store, ".index.lease"), *[lambda who: None] * 2)


def compact(
    store: Store, advance: Callable[[int], None] = lambda done: None, group_rows: int | None = None
) -> tuple[int, list[str]]:
    """Bring all records that are in files of their own into parts: (cells compacted, why others were left as they are).

    advance: told how many more cells have been looked at. group_rows: of a row group, about; more are stored in fewer bytes, and
    read for one cell. No sweep may write to the store meanwhile. Raises OSError when
    the storage fails; the next call finishes what this one has begun.
    """
    left = list[str]()
    with lock_index(store):
        finish(store)
        cells = [cell for cell in _in_order(store) if cell not in store.compacted.places]
        return write_parts(store, _readable(store, cells, left, advance), group_rows or GROUP_ROWS), left


def _readable(store: Store, cells: Sequence[str], left: list[str], advance: Callable[[int], None]) -> Iterator[Rows]:
    """The rows of those cells that can be compacted; why another one cannot is added to `left`."""
    with ThreadPoolExecutor(READERS) as pool:
        for first in range(0, len(cells), AHEAD):
            for found in pool.map(lambda cell: _whole(store, cell), cells[first : first + AHEAD]):
                if isinstance(found, Rows):
                    yield found
                elif found:
                    left.append(found)
                advance(1)


def write_parts(store: Store, cells: Iterable[Rows], group_rows: int) -> int:
    """Write the rows of cells that are not compacted into parts and name these in the index; returns how many cells."""
    parts = _Parts(store, group_rows)
    for rows in cells:
        parts.add(rows)
    parts.close()
    if parts.index:
        _commit(store, [*store.compacted.index.to_pylist(), *parts.index], {**store.compacted.parts, **parts.digests})
        finish(store)
    return len(parts.index)


def _in_order(store: Store) -> list[str]:
    """The cells that have files of their own, study by study, so that what is read together lies together."""
    there = dict.fromkeys(path.split("/")[1] for path in store.files("records") if not path.startswith(f"{PUBLISHED}/"))
    order: dict[str, None] = {}
    for study in store.folders("studies"):
        with contextlib.suppress(ValueError):  # Damage is for `mi-ray check` to tell; the order decides speed alone.
            order |= {cell: None for cell in cells_table(store, study)["cell"].to_pylist() if cell in there}
    return list(order | there)


def _whole(store: Store, cell: str) -> Rows | str | None:
    """A cell's rows; a sentence why they cannot be compacted; or None where the cell has no rows."""
    blocks = store.blocks("records", cell)
    try:
        read = [store.read_block("records", cell, block) for block in blocks]
    except DamagedFileError as error:
        return str(error)
    if not read or sum(len(table) for table, _ in read) == 0:
        return None
    facts = {json.dumps({k: v for k, v in about.items() if k not in OWN}, sort_keys=True) for _, about in read}
    gap = any(left.stop != right.start for left, right in itertools.pairwise(blocks))
    if gap or len(facts) > 1:
        return f"records/{cell}: its blocks are no single range of one origin"
    return Rows(cell, blocks[0].start, blocks[-1].stop, facts.pop(), pa.concat_tables([table for table, _ in read]))


def _commit(store: Store, rows: Iterable[Mapping[str, object]], parts: Mapping[str, list[str]]) -> None:
    """Write the index. From this moment on our readers read the parts that it names."""
    index = pa.Table.from_pylist([dict(row) for row in rows], schema=INDEX)
    used = set(index["part"].to_pylist())
    told = json.dumps({name: digests for name, digests in parts.items() if name in used}, sort_keys=True)
    store.write_table(INDEX_PATH, index.replace_schema_metadata({"parts": told}))
    store.refresh()


def finish(store: Store) -> None:
    """Bring a compaction that was begun to its end; nothing happens where none was.

    Raises DamagedFileError when the index is damaged (see `remove_damaged_index`).
    """
    store.refresh()
    waiting, published = store.files(WAITING), store.files(PUBLISHED)
    if not waiting and not published:
        return
    parts = store.compacted.parts
    replaced = [f"records/{cell}" for cell in store.folders("records") if cell in store.compacted.places]
    replaced += [path for path in published if path.rpartition("/")[2] not in parts]
    replaced += [
        path
        for path in waiting
        if path != INDEX_PATH and path.rpartition("/")[2] not in parts and (store.local or store.age(path) > ABANDONED)
    ]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(store.remove, replaced))
    for path in waiting:
        name = path.rpartition("/")[2]
        if name in parts:
            store.move(path, f"{PUBLISHED}/{name}")
    if not parts and store.exists(INDEX_PATH):
        store.remove(WAITING)
        store.remove(PUBLISHED)
        store.refresh()


def remove_damaged_index(store: Store) -> None:
    """Where the index is damaged, remove it with all parts: nothing verifies their rows, which are derived again."""
    try:
        store.refresh()
        _ = store.compacted
    except DamagedFileError:
        store.remove(PUBLISHED)
        store.remove(WAITING)
        store.refresh()


def drop_stale(store: Store, weights: Mapping[str, Mapping[str, str]], count: int) -> None:
    """Remove those compacted cells of a study that are of other weights or other points than it needs now.

    What a compaction has begun is finished first. weights: cell -> the facts that its records must have. count: how many
    points they must hold.
    """
    if not store.exists(WAITING) and not store.exists(PUBLISHED):
        return
    with lock_index(store):
        remove_damaged_index(store)
        finish(store)
    places = store.compacted.places
    stale = []
    for place in (places[cell] for cell in weights if cell in places):
        told = json.loads(place.facts).get("weights")
        if (place.start, place.stop) != (0, count) or told != weights[place.cell].get("weights"):
            stale.append(place.cell)
    _drop(store, stale)


def drop_records(store: Store, cell: str) -> None:
    """Remove a cell's records, wherever they are. Where its row group is damaged, that group's other cells go too."""
    if cell in store.compacted.places:
        _drop(store, [cell])
        return
    for block in store.blocks("records", cell):
        store.remove(block.path)


def _drop(store: Store, cells: Sequence[str]) -> None:
    """Write the parts that hold these cells again, without these cells and without damaged row groups."""
    with lock_index(store):
        store.refresh()
        places = store.compacted.places
        gone = {cell for cell in cells if cell in places}
        if not gone:
            return
        touched = {places[cell].part for cell in gone}
        parts = _Parts(store, GROUP_ROWS)
        for place in places.values():
            if place.part in touched and place.cell not in gone:
                with contextlib.suppress(DamagedFileError):  # Its cells are derived again, as every damaged block is.
                    rows = store.read_place(place)
                    parts.add(Rows(place.cell, place.start, place.stop, place.facts, rows))
        parts.close()
        kept = [row for row in store.compacted.index.to_pylist() if row["part"] not in touched]
        _commit(store, [*kept, *parts.index], {**store.compacted.parts, **parts.digests})
        finish(store)


def discard(store: Store, path: str) -> None:
    """Remove a file or folder that `mi-ray check` found damaged, or the rows of a compacted cell.

    Raises OSError when the storage fails.
    """
    kind, _, cell = path.partition("/")
    if path == INDEX_PATH:
        remove_damaged_index(store)
    elif kind == "records" and cell in store.compacted.places:
        drop_records(store, cell)
    else:
        store.remove(path)
