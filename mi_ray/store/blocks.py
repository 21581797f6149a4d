"""The store and its blocks: Parquet files that hold the rows of a range of points, verified whenever they are read.

A store is a folder or a URI. A block is named by its range in the study's list of points. What is stored of a key is
subtracted before the rest is cut into blocks, so that ranges overlap only where two studies did so at once; a row is the same
in each of them, and readers take it from one. Records may also lie in *parts*, large
files that hold the rows of many cells (see `compact`); an index then says where each cell is.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from mi_ray.store.files import DamagedFileError, Files, answer, is_passing, is_temporary, refuse_whole_bucket
from mi_ray.store.schemas import INDEX, RECORDS, SCHEMAS, Kind, with_later

FORMAT = 1
MARKER = "mi-ray-store.json"  # the file by which a folder is known as a store

WAITING = "compacted"  # where parts are until the files that they replace are gone
PUBLISHED = "records/compacted"  # where parts are once the replaced files are gone, so that other readers of `records/` find them
INDEX_PATH = f"{WAITING}/index.parquet"

READERS = 8  # how many files are read at once
_DIGEST = b"mi_ray_digest"
Result = TypeVar("Result")

# What a block says of itself in its Parquet metadata, by name: kind, key, start and stop, the weights that it is of,
# device, seed, precision, forward_passes, backward_passes and seconds; an adversarial block also stops, epsilon and
# keeps_box, and of a norm other than the max norm the largest distance of its images under the norm's name; a block
# of outputs executions and draws.
BlockFacts = Mapping[str, Any]
COST = ("forward_passes", "backward_passes", "seconds")  # of these facts, what a block has cost
_BLOCK = re.compile(r"^points-(\d+)-(\d+)\.parquet$")


class Place(NamedTuple):
    """Where the rows of a compacted cell are: a row of the index without the cell's identity (see docs/results.md)."""

    cell: str
    start: int
    stop: int
    facts: str
    part: str
    group: int
    first: int
    rows: int


@dataclass(frozen=True)
class Block:
    """A stored range [start, stop) of a study's list of points.

    path: the file that holds it. place: where in that file the rows are, for a compacted cell.
    """

    start: int
    stop: int
    path: str
    place: Place | None = None


class Store(Files):
    """A results folder or URI.

    create: whether a folder that is empty or not there becomes a store. Raises ValueError when the place cannot be a
    store because it holds something else, or cannot be read or written. `seconds` is how long tables were read and written.
    """

    def __init__(self, uri: str | Path, *, create: bool = False) -> None:
        if create:  # One that an earlier version has made in a whole bucket can be read.
            refuse_whole_bucket(str(uri))
        super().__init__(uri)
        self.seconds = 0.0
        self._group = lru_cache(maxsize=16)(self._read_group)
        if self.local:
            self._open(create)
        else:
            answer(self.uri, lambda: self._open(create))

    def _open(self, create: bool) -> None:
        what = (
            f"a store must be a folder that mi-ray made, or an empty or new one; {self.uri or '(the current folder)'}"
        )
        try:
            if not self.root:
                raise ValueError(f"a store must be in a bucket or folder; {self.uri} names none")
            info = self._infos(self.root)
            if info.type == pafs.FileType.File:
                raise ValueError(f"{what} is a file")
            if self.exists(MARKER):
                found = self.read_json(MARKER)
                written = found.get("format") if isinstance(found, dict) else found
                if written != FORMAT:
                    raise ValueError(f"{what} has format {written!r}; this version reads {FORMAT}")
            elif not create:
                raise ValueError(
                    f"{what} holds no {MARKER}" if info.type != pafs.FileType.NotFound else self._not_there()
                )
            elif others := [name for name in sorted(self.names("") - {".", ".."}) if not is_temporary(name)]:
                raise ValueError(f"{what} holds something else: {', '.join(others[:3])}")
            if create:
                self.write_bytes(MARKER, json.dumps({"format": FORMAT, "made_by": "mi-ray"}).encode())
        except (OSError, pa.ArrowException) as error:
            if is_passing(error):
                raise
            why = (isinstance(error, OSError) and error.strerror) or error
            raise ValueError(f"a store must be readable and writable; {self.uri}: {why}") from error

    def _not_there(self) -> str:
        return f"a store must be a folder that mi-ray made; {self.uri} is not there (a sweep makes one, where its --out says)"

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began

    def write_table(self, path: str, table: pa.Table) -> None:
        """Write a Parquet file, whole or not at all, with page checksums and a digest of its rows and metadata."""
        with self._timed():
            metadata = dict(table.schema.metadata or {})
            table = table.replace_schema_metadata({**metadata, _DIGEST: _digest(table, metadata)})
            sink = pa.BufferOutputStream()
            names = _leaves(table.schema)
            plain = [name for name in names if name.startswith("probabilities")]
            encoding: Any = {"use_dictionary": [n for n in names if n not in plain], "use_byte_stream_split": plain}
            pq.write_table(table, sink, compression="zstd", write_page_checksum=True, **encoding)
            self.write_bytes(path, sink.getvalue().to_pybytes())

    def _parsed(self, path: str, parse: Callable[[pq.ParquetFile], Result], *, whole: bool = True) -> Result:
        """What `parse` makes of a Parquet file.

        whole: whether the file is read in one request, and not in the pieces that `parse` asks for. Raises
        DamagedFileError for a file that is not there or no Parquet file, and OSError when the storage fails, since a file
        that could not be fetched need not be damaged.
        """
        if not whole:
            try:
                with self.filesystem.open_input_file(self._full(path)) as file:
                    return parse(pq.ParquetFile(file, page_checksum_verification=True))
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
                return self._parsed(path, parse)  # Reading it whole tells a damaged file from a failing storage.

        def parsed(content: bytes) -> Result:
            """`parse`, whose errors mean a damaged file and not a failing storage."""
            try:
                return parse(pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True))
            except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
                # The words of such an error help nobody who has not read the source of pyarrow.
                foreign = isinstance(error, (pa.ArrowException, OSError))
                told = "it is none, is cut short or was changed" if foreign else error
                raise DamagedFileError(f"{path} must be a whole Parquet file: {told}") from error

        try:
            return self.read_parsed(path, parsed, (DamagedFileError,))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            told = "it is not there" if isinstance(error, FileNotFoundError) else "it is a folder, or lies in a file"
            raise DamagedFileError(f"{path} must be a whole Parquet file: {told}") from error

    def read_table(self, path: str, schema: pa.Schema) -> pa.Table:
        """The rows of a Parquet file. Raises DamagedFileError when its schema or its digest is another one.

        A file of an earlier version, which lacks columns that came later, has them here, empty.
        """

        def parse(file: pq.ParquetFile) -> tuple[pa.Table, dict[bytes, bytes], bytes | None, bytes]:
            table = file.read()
            metadata = dict(table.schema.metadata or {})
            return table, metadata, metadata.pop(_DIGEST, None), _digest(table, metadata)

        with self._timed():
            stored, metadata, written, found = self._parsed(path, parse)
        table = with_later(stored, schema)
        if not table.schema.equals(schema):
            raise DamagedFileError(f"{path} must have the columns {schema.names}; it has {stored.schema.names}")
        if written != found:
            raise DamagedFileError(f"{path} must have the digest that it was written with: it was changed or damaged")
        return table.replace_schema_metadata(metadata)

    def read_column(self, path: str, name: str) -> pa.ChunkedArray:
        """One column of a Parquet file, to be shown; only its pages' checksums are verified, and not the file's digest."""
        return self._parsed(path, lambda file: file.read(columns=[name])[name], whole=False)

    @cached_property
    def compacted(self) -> "Compacted":
        """Where the compacted records are, as the index said when this object first asked, or since `refresh`.

        Raises DamagedFileError when the index is damaged.
        """
        if not self.exists(INDEX_PATH):
            return Compacted(pa.Table.from_batches([], INDEX))  # `empty_table` would import pandas, which takes 0.3 s.
        return Compacted(self.read_table(INDEX_PATH, INDEX))

    def refresh(self) -> None:
        """Read the index of compacted records again when it is next asked for, since other processes may change it."""
        self.__dict__.pop("compacted", None)
        self._group.cache_clear()

    def blocks(self, kind: Kind, key: str) -> list[Block]:
        """The stored ranges of a key, in order.

        Of a compacted cell that is its range in the index; files of its own that still lie about are passed over.
        """
        if kind == "records" and (place := self.compacted.places.get(key)) is not None:
            return [Block(place.start, place.stop, f"{PUBLISHED}/{place.part}", place)]
        return blocks_among(self.files(f"{kind}/{key}"))

    def write_block(
        self, kind: Kind, key: str, start: int, stop: int, table: pa.Table, facts: Mapping[str, object]
    ) -> None:
        """Write the rows of a range, with what they came from and cost (facts) in the file's metadata."""
        about = {**facts, "kind": kind, "key": key, "start": start, "stop": stop}
        stamped = table.replace_schema_metadata({"mi_ray": json.dumps(about, sort_keys=True)})
        self.write_table(f"{kind}/{key}/points-{start:05d}-{stop:05d}.parquet", stamped)

    def read_block(self, kind: Kind, key: str, block: Block) -> tuple[pa.Table, dict[str, Any]]:
        """The rows of a stored range and its `BlockFacts`. Raises DamagedFileError when they are not what the name says."""
        expected = {"kind": kind, "key": key, "start": block.start, "stop": block.stop}
        if block.place is not None:
            return self.read_place(block.place), {**json.loads(block.place.facts), **expected}
        table = self.read_table(block.path, SCHEMAS[kind])
        try:
            facts = dict(json.loads((table.schema.metadata or {})[b"mi_ray"]))
        except (KeyError, ValueError, TypeError) as error:
            raise DamagedFileError(f"{block.path} must say what it is of: {error}") from error
        if any(facts.get(name) != value for name, value in expected.items()):
            raise DamagedFileError(f"{block.path} must be of {expected}; it says {facts}")
        return table.replace_schema_metadata(None), facts

    def block_facts(self, block: Block) -> dict[str, Any]:
        """The `BlockFacts` of a block with a file of its own, for which only the file's footer is read."""

        def parse(file: pq.ParquetFile) -> dict[str, Any]:
            return dict(json.loads((file.schema_arrow.metadata or {})[b"mi_ray"]))

        try:
            return self._parsed(block.path, parse, whole=False)
        except DamagedFileError as error:
            raise DamagedFileError(f"{block.path} must be a whole block: {error}") from error

    def part_path(self, part: str) -> str:
        """The path of a part, which is beside the records until the files that it replaces are gone."""
        published = f"{PUBLISHED}/{part}"
        return published if self.exists(published) else f"{WAITING}/{part}"

    def read_place(self, place: Place) -> pa.Table:
        """The rows of a compacted cell. Raises DamagedFileError when their row group is damaged."""
        return self.read_group(place.part, place.group).slice(place.first, place.rows)

    def read_group(self, part: str, group: int) -> pa.Table:
        """The rows of a row group. Raises DamagedFileError when their digest is not the one that the index names."""
        return self._group(part, group)

    def _read_group(self, part: str, group: int) -> pa.Table:
        path = self.part_path(part)
        table = self._parsed(path, lambda file: file.read_row_group(group), whole=False).replace_schema_metadata(None)
        if not table.schema.equals(RECORDS) or table_digest(table) != self.compacted.digest(part, group):
            raise DamagedFileError(f"{path}: row group {group} must have the digest that {INDEX_PATH} names")
        return table


@dataclass(frozen=True, eq=False)
class Compacted:
    """The index of compacted records, with a row a cell that says where the cell's rows are."""

    index: pa.Table

    @cached_property
    def places(self) -> dict[str, Place]:
        """Cell -> where its rows are, in the order of the index."""
        columns = (self.index[name].to_pylist() for name in Place._fields)
        return {place.cell: place for place in map(Place, *columns)}

    @cached_property
    def parts(self) -> dict[str, list[str]]:
        """Part -> the digests of its row groups, for each part that the index refers to."""
        metadata = self.index.schema.metadata or {}
        found: dict[str, list[str]] = json.loads(metadata.get(b"parts", b"{}"))
        return found

    def digest(self, part: str, group: int) -> str | None:
        """The digest that a row group was written with; None when the index does not name one."""
        digests = self.parts.get(part, [])
        return digests[group] if group < len(digests) else None


def table_digest(table: pa.Table) -> str:
    """A hash of a table's values."""
    return _digest(table, {}).decode()


def _digest(table: pa.Table, metadata: Mapping[bytes, bytes]) -> bytes:
    """A hash of a table's values and metadata. Page checksums alone would not notice a changed footer."""
    digest = hashlib.blake2b(repr(sorted(metadata.items())).encode(), digest_size=16)
    for name in table.schema.names:
        digest.update(name.encode())
        for part in _content(table[name].combine_chunks()):
            digest.update(part)
    return digest.hexdigest().encode()


def _content(array: pa.Array) -> Iterator[bytes | memoryview]:
    """What a column's hash is of, in parts, since copies of it would take as long as the hash."""
    if pa.types.is_list(array.type):
        yield from _content(pc.list_value_length(array))
        yield from _content(array.flatten())
    elif array.null_count and array.null_count == len(array):  # As most columns are: the JSON of the next case.
        yield b"[" + (b"null, " * len(array))[:-2] + b"]"
    elif array.null_count:
        yield json.dumps(array.to_pylist()).encode()
    elif pa.types.is_string(array.type):
        encoded = array.dictionary_encode()  # Most columns of text repeat one value.
        yield json.dumps(encoded.dictionary.to_pylist()).encode()
        yield from _content(encoded.indices)
    else:
        yield array.to_numpy(zero_copy_only=False).data


def _leaves(schema: pa.Schema) -> list[str]:
    """The names that Parquet gives to columns. All but probabilities repeat values, so that a dictionary of them pays."""
    return [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]


def once(table: pa.Table) -> pa.Table:
    """The rows of several blocks of a key without those that an earlier one has too, as blocks of two studies may overlap."""
    first: dict[Any, int] = {}
    for at, row in enumerate(identities(table)):
        first.setdefault(row, at)
    return table if len(first) == len(table) else table.take(pa.array(first.values(), pa.int64()))


def identities(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """What tells each row of a block of images, outputs or records from all others of its key."""
    names = [name for name in ("point", "draw", "executions", "restart", "steps") if name in table.schema.names]
    return zip(*(table[name].to_pylist() for name in names), strict=True)


def blocks_among(paths: Iterable[str]) -> list[Block]:
    """Those of these files whose names are of blocks, in the order of their ranges."""
    found = []
    for path in paths:
        match = _BLOCK.match(path.rsplit("/", 1)[-1])
        if match:
            found.append(Block(int(match[1]), int(match[2]), path))
    return sorted(found, key=lambda block: (block.start, block.stop))


def missing_ranges(present: Iterable[tuple[int, int]], wanted: tuple[int, int], size: int) -> list[tuple[int, int]]:
    """The ranges within `wanted` that no present range covers, cut into blocks of at most `size` points.

    All ranges are [start, stop).
    """
    start, stop = wanted
    gaps: list[tuple[int, int]] = []
    at = start
    for low, high in sorted(present):
        if low > at:
            gaps.append((at, min(low, stop)))
        at = max(at, high)
    if at < stop:
        gaps.append((at, stop))
    return [(low, min(low + size, high)) for first, high in gaps for low in range(first, high, size)]
