"""What a run leaves on disk: the store, its Parquet schemas, atomic writes, validated reads.

A store is a folder or any pyarrow / fsspec URI. Blocks of points are named by their range in the study's list of
points; ranges of one key never overlap, since what is there is subtracted before work is cut into blocks.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mi_ray.store.files import DamagedFileError, Files, StorageError
from mi_ray.store.schemas import INDEX, RECORDS, SCHEMAS, Kind

FORMAT = 1
MARKER = "mi-ray-store.json"


WAITING = "compacted"  # parts that are written, until the files that they replace are gone
PUBLISHED = "records/compacted"  # parts that are all there is of their cells: what an outside reader finds
INDEX_PATH = f"{WAITING}/index.parquet"

READERS = 8  # files that are read at once
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
            elif self.names("") - {".", ".."}:
                raise ValueError(f"{what} holds something else: {', '.join(sorted(self.names(''))[:3])}")
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
            return Compacted(pa.Table.from_batches([], INDEX))  # `empty_table` would import pandas, which takes 0.3 s.
        return Compacted(self.read_table(INDEX_PATH, INDEX))

    def refresh(self) -> None:
        """Look again at what is compacted: another process may have done it."""
        self.__dict__.pop("compacted", None)
        self._group.cache_clear()

    def blocks(self, kind: Kind, key: str) -> list[Block]:
        """The stored ranges of a key, in order. What is compacted counts, and not what is left of it in small files."""
        if kind == "records" and (place := self.compacted.places.get(key)) is not None:
            return [self.compacted.block(place)]
        return blocks_among(self.files(f"{kind}/{key}"))

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


def blocks_among(paths: Iterable[str]) -> list[Block]:
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
