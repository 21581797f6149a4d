"""Records of many small files in few large ones, as safely as they were written.

The parts are written whole beside the records, then the index that says where each cell is: from then on every reader of
ours reads the parts. Then the small files go, then the parts take their place among the records. So an outside reader of
`records/` finds a row at most once at any moment, and ours find each row exactly once; a kill at any point leaves a store
that `finish` (each later compaction, and each sweep) brings to its end.
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
from mi_ray.store.locks import locked
from mi_ray.store.read import cells_table
from mi_ray.store.schemas import IDENTITY, INDEX, RECORDS

GROUP_ROWS = 20_000  # rows of a row group, about: what is read and verified for one cell
PART_BYTES = 128 * 2**20  # a part is closed when it is larger
ABANDONED = 24 * 3600.0  # seconds after which a part that no index names is nobody's, where the storage cannot lock
OWN = ("kind", "key", "start", "stop")  # facts of a block that its place in the index says


@dataclass(frozen=True)
class Rows:
    """The rows of one cell: positions start to stop of a study's points."""

    cell: str
    start: int
    stop: int
    facts: str
    table: pa.Table


@dataclass
class _Parts:
    """Parts as they are written, one row group after another, and their rows of the index."""

    store: Store
    index: list[dict[str, Any]] = field(default_factory=list)
    digests: dict[str, list[str]] = field(default_factory=dict)
    _rows: list[Rows] = field(default_factory=list)
    _count: int = 0
    _name: str = ""
    _sink: Any = None
    _writer: Any = None

    def add(self, rows: Rows) -> None:
        """Take a cell's rows; whole groups are encoded, whole parts are written."""
        self._rows.append(rows)
        self._count += len(rows.table)
        if self._count >= GROUP_ROWS:
            self._close_group()
            if self._sink.tell() >= PART_BYTES:
                self._close_part()

    def close(self) -> None:
        """Write what is left."""
        if self._rows:
            self._close_group()
        if self._writer is not None:
            self._close_part()

    def _close_group(self) -> None:
        if self._writer is None:
            self._name, self._sink = f"part-{uuid.uuid4().hex[:16]}.parquet", pa.BufferOutputStream()
            self._writer = pq.ParquetWriter(self._sink, RECORDS, compression="zstd", write_page_checksum=True)
            self.digests[self._name] = []
        table = pa.concat_tables([rows.table for rows in self._rows]).combine_chunks()
        self._writer.write_table(table, row_group_size=len(table))
        place = {"part": self._name, "group": len(self.digests[self._name])}
        self.digests[self._name].append(table_digest(table))
        first = 0
        for rows in self._rows:
            identity = {name: rows.table[name][0].as_py() for name in IDENTITY}
            at = {"start": rows.start, "stop": rows.stop, "first": first, "rows": len(rows.table)}
            self.index.append({**identity, **place, **at, "facts": rows.facts})
            first += len(rows.table)
        self._rows, self._count = [], 0

    def _close_part(self) -> None:
        self._writer.close()
        self.store.write_bytes(f"{WAITING}/{self._name}", self._sink.getvalue().to_pybytes())
        self._writer = self._sink = None


def locked_index(store: Store) -> AbstractContextManager[Any]:
    """One process at a time changes the index, where the storage can lock."""
    return locked(Path(store.root) / WAITING / ".lock", lambda who: None) if store.local else nullcontext()


def compact(store: Store, advance: Callable[[int], None] = lambda done: None) -> tuple[int, list[str]]:
    """Bring all whole records that are in files of their own into parts; (cells compacted, why others were left).

    No sweep may write to the store meanwhile. Raises OSError when the storage fails; what it was doing is then finished,
    or begun again, by the next call.
    """
    left = list[str]()
    with locked_index(store):
        finish(store)
        order = [cell for cell in _in_order(store) if cell not in store.compacted.places]
        with ThreadPoolExecutor(READERS) as pool:
            return bring(store, _sound(_ahead(pool, lambda cell: _whole(store, cell), order), left, advance)), left


def _sound(found: Iterable[Rows | str | None], left: list[str], advance: Callable[[int], None]) -> Iterator[Rows]:
    """The rows among what was found; why a cell has none goes to `left`."""
    for rows in found:
        if isinstance(rows, Rows):
            yield rows
        elif rows:
            left.append(rows)
        advance(1)


def bring(store: Store, found: Iterable[Rows]) -> int:
    """Write the rows of cells that are not compacted into parts, and make these what counts; how many cells that were."""
    parts = _Parts(store)
    for rows in found:
        parts.add(rows)
    parts.close()
    if parts.index:
        _commit(store, [*store.compacted.index.to_pylist(), *parts.index], {**store.compacted.parts, **parts.digests})
        finish(store)
    return len(parts.index)


def _ahead(pool: ThreadPoolExecutor, work: Callable[[str], Any], items: Sequence[str]) -> Iterator[Any]:
    """`pool.map` that runs a bounded stretch ahead, so that memory holds few results at a time."""
    for first in range(0, len(items), 1000):
        yield from pool.map(work, items[first : first + 1000])


def _in_order(store: Store) -> list[str]:
    """The cells that have files of their own: those of each study in its order, so that neighbours are read together."""
    there = dict.fromkeys(path.split("/")[1] for path in store.files("records") if not path.startswith(f"{PUBLISHED}/"))
    order: dict[str, None] = {}
    for study in store.folders("studies"):
        with contextlib.suppress(ValueError):  # `mi-ray check` names what is damaged; the order decides speed alone
            order |= {cell: None for cell in cells_table(store, study)["cell"].to_pylist() if cell in there}
    return list(order | there)


def _whole(store: Store, cell: str) -> Rows | str | None:
    """A cell's rows as one range; why not, where they are none; None where there is nothing."""
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


def _commit(store: Store, rows: Iterable[Mapping[str, Any]], parts: Mapping[str, list[str]]) -> None:
    """Write the index: the moment from which on the parts are what counts."""
    index = pa.Table.from_pylist([dict(row) for row in rows], schema=INDEX)
    used = set(index["part"].to_pylist())
    told = json.dumps({name: digests for name, digests in parts.items() if name in used}, sort_keys=True)
    store.write_table(INDEX_PATH, index.replace_schema_metadata({"parts": told}))
    store.refresh()


def finish(store: Store) -> None:
    """Bring what an earlier compaction has begun to its end; nothing where there is nothing.

    Raises DamagedFileError when the index is not whole (see `heal`).
    """
    store.refresh()
    waiting, published = store.files(WAITING), store.files(PUBLISHED)
    if not waiting and not published:
        return
    parts = store.compacted.parts
    leftover = [f"records/{cell}" for cell in store.folders("records") if cell in store.compacted.places]
    leftover += [path for path in published if path.rpartition("/")[2] not in parts]
    leftover += [
        path
        for path in waiting
        if path != INDEX_PATH and path.rpartition("/")[2] not in parts and (store.local or store.age(path) > ABANDONED)
    ]
    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(store.remove, leftover))
    for path in waiting:
        name = path.rpartition("/")[2]
        if name in parts:
            store.move(path, f"{PUBLISHED}/{name}")
    if not parts and store.exists(INDEX_PATH):
        store.remove(WAITING)
        store.remove(PUBLISHED)
        store.refresh()


def heal(store: Store) -> None:
    """Remove all that is compacted where its index is damaged: rows that nobody can vouch for are derived again."""
    try:
        store.refresh()
        _ = store.compacted
    except DamagedFileError:
        store.remove(PUBLISHED)
        store.remove(WAITING)
        store.refresh()


def drop_stale(store: Store, weights: Mapping[str, Mapping[str, str]], count: int) -> None:
    """Before a study derives its records: finish what is begun, and drop compacted cells that are not what it needs.

    weights: cell -> the weights that its records must be of. count: the points that they must hold.
    """
    if not store.exists(WAITING) and not store.exists(PUBLISHED):
        return
    with locked_index(store):
        heal(store)
        finish(store)
    places = store.compacted.places
    stale = []
    for cell in (cell for cell in weights if cell in places):
        row = store.compacted.row(places[cell])
        told = json.loads(row["facts"]).get("weights")
        if (row["start"], row["stop"]) != (0, count) or told != weights[cell].get("weights"):
            stale.append(cell)
    _drop(store, stale)


def drop_records(store: Store, cell: str) -> None:
    """Remove a cell's records, wherever they are; of a damaged row group of a part all cells go."""
    place = store.compacted.places.get(cell)
    if place is None:
        for block in store.blocks("records", cell):
            store.remove(block.path)
        return
    _drop(store, [cell])


def _drop(store: Store, cells: Sequence[str]) -> None:
    """Write the parts that hold these cells again without them, and without what is damaged in them."""
    with locked_index(store):
        store.refresh()
        gone = {cell for cell in cells if cell in store.compacted.places}
        if not gone:
            return
        rows = store.compacted.index.to_pylist()
        touched = {row["part"] for row in rows if row["cell"] in gone}
        kept = [row for row in rows if row["part"] not in touched]
        parts = _Parts(store)
        for row in rows:
            if row["part"] not in touched or row["cell"] in gone:
                continue
            try:
                table = store.read_group(row["part"], row["group"]).slice(row["first"], row["rows"])
            except DamagedFileError:
                continue  # its cells are derived again, as every damaged block is
            parts.add(Rows(row["cell"], row["start"], row["stop"], row["facts"], table))
        parts.close()
        _commit(store, [*kept, *parts.index], {**store.compacted.parts, **parts.digests})
        finish(store)


def discard(store: Store, path: str) -> None:
    """Remove a file or folder that `mi-ray check` found damaged; compacted rows where they are.

    Raises OSError when the storage fails.
    """
    kind, _, cell = path.partition("/")
    if path == INDEX_PATH:
        heal(store)
    elif kind == "records" and cell in store.compacted.places:
        drop_records(store, cell)
    else:
        store.remove(path)
