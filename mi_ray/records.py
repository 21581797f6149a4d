"""What a run leaves on disk: the store, its Parquet schemas, atomic writes, validated reads.

A store is a folder or any pyarrow / fsspec URI. Blocks of points are named by their range in the study's list of
points; ranges of one key never overlap, since what is there is subtracted before work is cut into blocks.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mi_ray.storage import DamagedFileError as DamagedFileError  # what every reader of a store may meet
from mi_ray.storage import Files, StorageError

FORMAT = 1
MARKER = "mi-ray-store.json"
Kind = Literal["adversarial", "outputs", "records"]

_IDENTITY = [
    ("cell", pa.string()), ("dataset", pa.string()), ("classifier", pa.string()), ("classifier_key", pa.string()),
    ("attack", pa.string()), ("attack_params", pa.string()), ("goal", pa.string()), ("norm", pa.string()),
    ("epsilon", pa.float64()), ("knowledge", pa.string()), ("defense", pa.string()), ("defense_params", pa.string()),
    ("executions", pa.int32()), ("draws", pa.int32()),
]  # fmt: skip
IDENTITY = [name for name, _ in _IDENTITY]

ADVERSARIAL = pa.schema([
    ("point", pa.int32()), ("label", pa.int32()), ("attack_label", pa.int32()), ("restart", pa.int32()),
    ("steps", pa.int32()), ("image", pa.list_(pa.float32())), ("linf", pa.float32()), ("loss", pa.float32()),
    ("success", pa.float32()), ("zero_gradients", pa.int32()),
])  # fmt: skip
OUTPUTS = pa.schema([
    ("point", pa.int32()), ("draw", pa.int32()), ("executions", pa.int32()),
    ("probabilities", pa.list_(pa.float32())),
])  # fmt: skip
RECORDS = pa.schema([
    *_IDENTITY, ("correct_draws", pa.int32()), ("point", pa.int32()), ("selection", pa.bool_()), ("label", pa.int32()),
    ("attack_label", pa.int32()), ("predicted_undefended", pa.int32()), ("predicted", pa.int32()),
    ("confidence_undefended", pa.float32()), ("confidence", pa.float32()), ("score", pa.float32()),
    ("probabilities", pa.list_(pa.float32())), ("linf", pa.float32()), ("seed", pa.int64()), ("device", pa.string()),
    ("precision", pa.string()),
])  # fmt: skip
CELLS = pa.schema([
    *_IDENTITY, ("state", pa.string()), ("cause", pa.string()), ("points", pa.int32()),
    ("accuracy", pa.float64()), ("accuracy_low", pa.float64()), ("accuracy_high", pa.float64()),
    ("interval", pa.string()),
    ("survival", pa.list_(pa.float64())), ("auc", pa.float64()), ("checks", pa.string()), ("verdict", pa.string()),
    ("clean_accuracy", pa.float64()),
    ("selection_points", pa.int32()), ("selection_accuracy", pa.float64()), ("selected", pa.bool_()),
    ("forward_passes", pa.int64()), ("backward_passes", pa.int64()), ("seconds", pa.float64()),
    ("variants", pa.list_(pa.string())), ("work", pa.string()),
])  # fmt: skip
EXAMPLES = pa.schema([("point", pa.int32()), ("label", pa.int32()), ("image", pa.list_(pa.float32()))])
TRAINING = pa.schema([
    ("epoch", pa.int32()), ("lr", pa.float64()), ("loss", pa.float64()), ("train_accuracy", pa.float64()),
    ("test_accuracy", pa.float64()), ("images", pa.int64()), ("seconds", pa.float64()),
])  # fmt: skip
# Where a compacted cell is: row group `group` of `part`, `rows` rows from `first` on.
INDEX = pa.schema([
    *_IDENTITY, ("start", pa.int32()), ("stop", pa.int32()), ("facts", pa.string()), ("part", pa.string()),
    ("group", pa.int32()), ("first", pa.int32()), ("rows", pa.int32()),
])  # fmt: skip
WAITING = "compacted"  # parts that are written, until the files that they replace are gone
PUBLISHED = "records/compacted"  # parts that are all there is of their cells: what an outside reader finds
INDEX_PATH = f"{WAITING}/index.parquet"
SCHEMAS: dict[str, pa.Schema] = {"adversarial": ADVERSARIAL, "outputs": OUTPUTS, "records": RECORDS}

READERS = 8  # files that are read at once
FEW = 1000  # cells that are looked up one by one, instead of listing all
_DIGEST = b"mi_ray_digest"
Result = TypeVar("Result")
_BLOCK = re.compile(r"^points-(\d+)-(\d+)\.parquet$")


@dataclass(frozen=True)
class Block:
    """A stored range of a study's points, [start, stop) in its list. place: of a compacted cell, its row in the index."""

    start: int
    stop: int
    path: str
    place: int | None = None


class Store(Files):
    """A results folder or URI. Paths are relative to it, with forward slashes.

    Raises ValueError when the place cannot be a store: it holds something else, or cannot be written.
    """

    def __init__(self, uri: str | Path, *, create: bool = False) -> None:
        super().__init__(uri)
        self._group = lru_cache(maxsize=16)(self._read_group)
        self._open(create)

    def _open(self, create: bool) -> None:
        what = f"a store must be a folder that mi-ray made, or an empty or new one; {self.uri}"
        try:
            info = self.filesystem.get_file_info(self.root)
            if info.type == pafs.FileType.File:
                raise ValueError(f"{what} is a file")
            if self.exists(MARKER):
                found = self.read_json(MARKER)
                written = found.get("format") if isinstance(found, dict) else found
                if written != FORMAT:
                    raise ValueError(f"{what} has format {written!r}; this version reads {FORMAT}")
            elif not create:
                raise ValueError(f"{what} holds no {MARKER}")
            elif self._listed("") - {".", ".."}:
                raise ValueError(f"{what} holds something else: {', '.join(sorted(self._listed(''))[:3])}")
            if create:
                self.write_bytes(MARKER, json.dumps({"format": FORMAT, "made_by": "mi-ray"}).encode())
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, StorageError) and not error.lasting:
                raise
            raise ValueError(f"a store must be readable and writable; {self.uri}: {error}") from error

    def write_table(self, path: str, table: pa.Table) -> None:
        """Write a Parquet file atomically, with page checksums and a digest of its rows and metadata."""
        metadata = dict(table.schema.metadata or {})
        table = table.replace_schema_metadata({**metadata, _DIGEST: _digest(table, metadata)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        self.write_bytes(path, sink.getvalue().to_pybytes())

    def _parsed(self, path: str, parse: Callable[[pq.ParquetFile], Result], *, whole: bool = True) -> Result:
        """What `parse` makes of a Parquet file; whole: read in one request, else by the parts that it asks for.

        Raises DamagedFileError for a file that is none or is not there, and OSError when the storage fails: a file that
        could not be fetched is not a damaged one.
        """
        if not whole:
            try:
                with self.filesystem.open_input_file(self._full(path)) as file:
                    return parse(pq.ParquetFile(file, page_checksum_verification=True))
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
                return self._parsed(path, parse)  # the file or the storage: reading it whole tells which

        def parsed(content: bytes) -> Result:
            """Its own errors are not taken for the storage's."""
            try:
                return parse(pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True))
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                raise DamagedFileError(f"{path} must be a whole Parquet file: {error}") from error

        try:
            return self.read_parsed(path, parsed, (DamagedFileError,))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise DamagedFileError(f"{path} must be a whole Parquet file: {error}") from error

    def read_table(self, path: str, schema: pa.Schema) -> pa.Table:
        """A Parquet file with exactly that schema; raises DamagedFileError for anything else."""

        def parse(file: pq.ParquetFile) -> tuple[pa.Table, dict[bytes, bytes], bytes | None, bytes]:
            table = file.read()
            metadata = dict(table.schema.metadata or {})
            return table, metadata, metadata.pop(_DIGEST, None), _digest(table, metadata)

        table, metadata, written, found = self._parsed(path, parse)
        if not table.schema.equals(schema):
            raise DamagedFileError(f"{path} must have the columns {schema.names}; it has {table.schema.names}")
        if written != found:
            raise DamagedFileError(f"{path} must have the digest that it was written with: it was changed or damaged")
        return table.replace_schema_metadata(metadata)

    def read_column(self, path: str, name: str) -> pa.ChunkedArray:
        """One column of a Parquet file, verified by its pages' checksums alone: to look at, not to compute with."""
        return self._parsed(path, lambda file: file.read(columns=[name])[name], whole=False)

    @cached_property
    def compacted(self) -> "Compacted":
        """The records that were compacted, as this object first found them; see `refresh`.

        Raises DamagedFileError when their index is not whole.
        """
        if not self.exists(INDEX_PATH):
            return Compacted(INDEX.empty_table())
        return Compacted(self.read_table(INDEX_PATH, INDEX))

    def refresh(self) -> None:
        """Look again at what is compacted: another process may have done it."""
        self.__dict__.pop("compacted", None)
        self._group.cache_clear()

    def blocks(self, kind: Kind, key: str) -> list[Block]:
        """The stored ranges of a key, in order. What is compacted counts, and not what is left of it in small files."""
        if kind == "records" and (place := self.compacted.places.get(key)) is not None:
            return [self.compacted.block(place)]
        return _blocks(self.files(f"{kind}/{key}"))

    def write_block(
        self, kind: Kind, key: str, start: int, stop: int, table: pa.Table, facts: Mapping[str, Any]
    ) -> None:
        """Write the rows of a range, with what they are of (facts) in the file's metadata."""
        about = {**facts, "kind": kind, "key": key, "start": start, "stop": stop}
        stamped = table.replace_schema_metadata({"mi_ray": json.dumps(about, sort_keys=True)})
        self.write_table(f"{kind}/{key}/points-{start:05d}-{stop:05d}.parquet", stamped)

    def read_block(self, kind: Kind, key: str, block: Block) -> tuple[pa.Table, dict[str, Any]]:
        """The rows and facts of a stored range; raises DamagedFileError when it is not what its name says."""
        if block.place is not None:
            row = self.compacted.row(block.place)
            rows = self._group(row["part"], row["group"]).slice(row["first"], row["rows"])
            return rows, {
                **json.loads(row["facts"]),
                "kind": kind,
                "key": key,
                "start": block.start,
                "stop": block.stop,
            }
        table = self.read_table(block.path, SCHEMAS[kind])
        try:
            facts = dict(json.loads((table.schema.metadata or {})[b"mi_ray"]))
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedFileError(f"{block.path} must say what it is of: {error}") from error
        expected = {"kind": kind, "key": key, "start": block.start, "stop": block.stop}
        if any(facts.get(name) != value for name, value in expected.items()):
            raise DamagedFileError(f"{block.path} must be of {expected}; it says {facts}")
        return table.replace_schema_metadata(None), facts

    def block_facts(self, block: Block) -> dict[str, Any]:
        """What a stored block says of itself, read from the file's footer alone."""

        def parse(file: pq.ParquetFile) -> dict[str, Any]:
            return dict(json.loads((file.schema_arrow.metadata or {})[b"mi_ray"]))

        try:
            return self._parsed(block.path, parse, whole=False)
        except DamagedFileError as error:
            raise DamagedFileError(f"{block.path} must be a whole block: {error}") from error

    def part_path(self, part: str) -> str:
        """Where a part of the compacted records is: among the records, or beside them until what it replaces is gone."""
        published = f"{PUBLISHED}/{part}"
        return published if self.exists(published) else f"{WAITING}/{part}"

    def read_group(self, part: str, group: int) -> pa.Table:
        """A row group of a part. Raises DamagedFileError when it has not the digest that the index names."""
        return self._group(part, group)

    def _read_group(self, part: str, group: int) -> pa.Table:
        path = self.part_path(part)
        table = self._parsed(path, lambda file: file.read_row_group(group), whole=False).replace_schema_metadata(None)
        if not table.schema.equals(RECORDS) or table_digest(table) != self.compacted.digest(part, group):
            raise DamagedFileError(f"{path}: row group {group} must have the digest that {INDEX_PATH} names")
        return table


@dataclass(frozen=True, eq=False)
class Compacted:
    """Where the rows of each compacted cell are: a row of the index a cell."""

    index: pa.Table

    @cached_property
    def places(self) -> dict[str, int]:
        """Cell -> its row in the index."""
        return {cell: place for place, cell in enumerate(self.index["cell"].to_pylist())}

    @cached_property
    def _columns(self) -> dict[str, list[Any]]:
        names = ("cell", "start", "stop", "facts", "part", "group", "first", "rows")
        return {name: self.index[name].to_pylist() for name in names}

    @cached_property
    def parts(self) -> dict[str, list[str]]:
        """The digests of the row groups of each part that the index refers to."""
        metadata = self.index.schema.metadata or {}
        found: dict[str, list[str]] = json.loads(metadata.get(b"parts", b"{}"))
        return found

    def row(self, place: int) -> dict[str, Any]:
        """A row of the index, without the cell's identity."""
        return {name: values[place] for name, values in self._columns.items()}

    def block(self, place: int) -> Block:
        """A compacted cell as a block; its path is where the part is to be read from outside."""
        row = self.row(place)
        return Block(row["start"], row["stop"], f"{PUBLISHED}/{row['part']}", place)

    def digest(self, part: str, group: int) -> str | None:
        """The digest of a row group, as it was written."""
        digests = self.parts.get(part, [])
        return digests[group] if group < len(digests) else None


def table_digest(table: pa.Table) -> str:
    """A hash of a table's values."""
    return _digest(table, {}).decode()


def _digest(table: pa.Table, metadata: Mapping[bytes, bytes]) -> bytes:
    """A hash of a table's values and metadata: page checksums do not cover a file's footer."""
    digest = hashlib.blake2b(repr(sorted(metadata.items())).encode(), digest_size=16)
    for name in table.schema.names:
        digest.update(name.encode() + _content(table[name].combine_chunks()))
    return digest.hexdigest().encode()


def _content(array: pa.Array) -> bytes:
    if pa.types.is_list(array.type):
        return _content(pc.list_value_length(array)) + _content(array.flatten())
    if array.null_count:
        return json.dumps(array.to_pylist()).encode()
    if pa.types.is_string(array.type):
        encoded = array.dictionary_encode()  # most columns of text repeat one value
        return json.dumps(encoded.dictionary.to_pylist()).encode() + _content(encoded.indices)
    return bytes(array.to_numpy(zero_copy_only=False).tobytes())


def _blocks(paths: Iterable[str]) -> list[Block]:
    """The files among these that are blocks, in the order of their ranges; any other name is not ours to read."""
    found = []
    for path in paths:
        match = _BLOCK.match(path.rsplit("/", 1)[-1])
        if match:
            found.append(Block(int(match[1]), int(match[2]), path))
    return sorted(found, key=lambda block: (block.start, block.stop))


def missing_ranges(present: Iterable[tuple[int, int]], wanted: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """The parts of [start, stop) that no present range covers, cut into blocks of at most `size`."""
    start, stop = wanted
    gaps: list[tuple[int, int]] = []
    at = start
    for low, high in sorted(present):
        if low > at:
            gaps.append((at, min(low, stop)))
        at = max(at, high)
    if at < stop:
        gaps.append((at, stop))
    return [(low, min(low + size, high)) for first, high in gaps for low in range(first, high, size) if low < stop]


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
    tables = [rows if expression is None else rows.filter(expression)
              for rows in _stored_rows(store, wanted, _matching(store.compacted.index, filters))]  # fmt: skip
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
            yield from ((cell, block) for block in _blocks(by_cell[cell]))


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
