"""What a run leaves on disk: the store, its Parquet schemas, atomic writes, validated reads.

A store is a folder or any pyarrow / fsspec URI. Blocks of points are named by their range in the study's list of
points; ranges of one key never overlap, since what is there is subtracted before work is cut into blocks.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

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
SCHEMAS: dict[str, pa.Schema] = {"adversarial": ADVERSARIAL, "outputs": OUTPUTS, "records": RECORDS}

_DIGEST = b"mi_ray_digest"
_BLOCK = re.compile(r"^points-(\d+)-(\d+)\.parquet$")


class DamagedFileError(ValueError):
    """A stored file is not what its name says; it is never read as data."""


@dataclass(frozen=True)
class Block:
    """A stored range of a study's points, [start, stop) in its list."""

    start: int
    stop: int
    path: str


class Store:
    """A results folder or URI. Paths are relative to it, with forward slashes.

    Raises ValueError when the place cannot be a store: it holds something else, or cannot be written.
    """

    def __init__(self, uri: str | Path, *, create: bool = False) -> None:
        self.uri = str(uri)
        self.local = "://" not in self.uri or self.uri.startswith("file://")
        if "://" not in self.uri:
            self.filesystem: Any = pafs.LocalFileSystem()
            self.root = str(Path(self.uri).resolve())
        else:
            try:
                self.filesystem, self.root = pafs.FileSystem.from_uri(self.uri)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise ValueError(
                    f"a store must be a folder or a URI that pyarrow knows; got {self.uri}: {error}"
                ) from error
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
            raise ValueError(f"a store must be readable and writable; {self.uri}: {error}") from error

    def _full(self, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):  # whatever a file or a study says
            raise ValueError(f"a path in a store must lead into it; got {path!r}")
        return f"{self.root}/{path}" if path else self.root

    def _listed(self, path: str) -> set[str]:
        selector = pafs.FileSelector(self._full(path), allow_not_found=True)
        return {info.base_name for info in self.filesystem.get_file_info(selector)}

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""
        return bool(self.filesystem.get_file_info(self._full(path)).type != pafs.FileType.NotFound)

    def files(self, path: str) -> dict[str, int]:
        """Every file below a folder: path relative to the store -> bytes. Names with a leading dot are left out."""
        selector = pafs.FileSelector(self._full(path), recursive=True, allow_not_found=True)
        infos = [info for info in self.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
        return {
            info.path[len(self.root) :].lstrip("/"): info.size for info in infos if not info.base_name.startswith(".")
        }

    def folders(self, path: str) -> list[str]:
        """The names of the folders in a folder."""
        selector = pafs.FileSelector(self._full(path), allow_not_found=True)
        infos = self.filesystem.get_file_info(selector)
        return sorted(info.base_name for info in infos if info.type == pafs.FileType.Directory)

    def read_bytes(self, path: str) -> bytes:
        """A file's content."""
        with self.filesystem.open_input_stream(self._full(path)) as stream:
            return bytes(stream.read())

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a file whole or not at all: a temporary name and a rename, or one put on an object store."""
        full = self._full(path)
        if not self.local:
            self._put(full, content)
            return
        target = Path(full)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _put(self, full: str, content: bytes) -> None:
        try:
            stream = self.filesystem.open_output_stream(full)
        except FileNotFoundError:  # a file system with real folders; an object store has none
            self.filesystem.create_dir(full.rpartition("/")[0], recursive=True)
            stream = self.filesystem.open_output_stream(full)
        with stream:
            stream.write(content)

    def remove(self, path: str) -> None:
        """Remove a file or a folder, if it is there."""
        info = self.filesystem.get_file_info(self._full(path))
        if info.type == pafs.FileType.Directory:
            self.filesystem.delete_dir(info.path)
        elif info.type == pafs.FileType.File:
            self.filesystem.delete_file(info.path)

    def read_json(self, path: str) -> Any:
        """A JSON file; raises DamagedFileError when it is not."""
        try:
            return json.loads(self.read_bytes(path))
        except ValueError as error:
            raise DamagedFileError(f"{path} must be JSON: {error}") from error

    def write_json(self, path: str, value: Any) -> None:
        """Write JSON atomically."""
        self.write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())

    def write_table(self, path: str, table: pa.Table) -> None:
        """Write a Parquet file atomically, with page checksums and a digest of its rows and metadata."""
        metadata = dict(table.schema.metadata or {})
        table = table.replace_schema_metadata({**metadata, _DIGEST: _digest(table, metadata)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        self.write_bytes(path, sink.getvalue().to_pybytes())

    def read_table(self, path: str, schema: pa.Schema) -> pa.Table:
        """A Parquet file with exactly that schema; raises DamagedFileError for anything else."""
        try:
            with self.filesystem.open_input_file(self._full(path)) as file:
                table = pq.ParquetFile(file, page_checksum_verification=True).read()
            metadata = dict(table.schema.metadata or {})
            written, found = metadata.pop(_DIGEST, None), _digest(table, metadata)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedFileError(f"{path} must be a whole Parquet file: {error}") from error
        if not table.schema.equals(schema):
            raise DamagedFileError(f"{path} must have the columns {schema.names}; it has {table.schema.names}")
        if written != found:
            raise DamagedFileError(f"{path} must have the digest that it was written with: it was changed or damaged")
        return table.replace_schema_metadata(metadata)

    def blocks(self, kind: Kind, key: str) -> list[Block]:
        """The stored ranges of a key, in order."""
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
        try:
            with self.filesystem.open_input_file(self._full(block.path)) as file:
                return dict(json.loads(pq.ParquetFile(file).schema_arrow.metadata[b"mi_ray"]))
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(f"{block.path} must be a whole block: {error}") from error


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
        if opened.exists(path):
            frames.append(opened.read_table(path, CELLS).to_pandas().assign(study=name))
        elif study is not None:
            raise ValueError(
                f"study {study!r} must be in {opened.uri}; known: {', '.join(opened.folders('studies')) or 'none'}"
            )
    return pd.concat(frames, ignore_index=True) if frames else CELLS.empty_table().to_pandas()


def read_records(store: str | Path | Store, study: str | None = None, filters: Any = None) -> pd.DataFrame:
    """One row per (cell, point): a study's, or the whole store's.

    filters: a pyarrow.dataset expression, or pyarrow's list of (column, operator, value).
    Raises DamagedFileError for a file that is not what its name says; `mi-ray check` names all of them.
    """
    opened = store if isinstance(store, Store) else Store(store)
    names: dict[str, str] = {}
    if study is not None:
        cells = read_cells(opened, study)
        names = dict(zip(cells["cell"], cells["classifier"], strict=True))
    expression = pq.filters_to_expression(filters) if isinstance(filters, list) else filters
    by_cell: dict[str, list[str]] = {}
    for path in sorted(opened.files("records")):
        by_cell.setdefault(path.split("/")[1], []).append(path)
    tables = [RECORDS.empty_table()]
    for cell in [cell for cell in by_cell if study is None or cell in names]:
        for block in _blocks(by_cell[cell]):
            rows, _ = opened.read_block("records", cell, block)
            tables.append(rows if expression is None else rows.filter(expression))
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    if names:  # another study may have named the same classifier otherwise when it wrote the rows
        frame["classifier"] = frame["cell"].map(names)
    return frame
