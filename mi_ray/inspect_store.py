"""Looking at a store from outside: how far its studies are, whether its files are sound, what nothing refers to."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mi_ray.records import CELLS, IDENTITY, TRAINING, Block, DamagedFileError, Kind, Store

KINDS: tuple[Kind, ...] = ("adversarial", "outputs", "records")
BALL = 1e-6  # float32 rounding, as in attacks


def study_states(store: Store) -> list[tuple[str, ...]]:
    """(study, state, cells, done, failed, missing, written) for each study.

    While a study runs, its state counts the pieces of its plan whose files are there.
    """
    found = []
    for name in store.folders("studies"):
        manifest = (
            store.read_json(f"studies/{name}/manifest.json") if store.exists(f"studies/{name}/manifest.json") else {}
        )
        state, written = (
            str(manifest.get("state", "unknown")),
            str(manifest.get("provenance", {}).get("written", "")),
        )
        if state == "running":
            state += " " + _pieces(store, manifest["keys"])
        counts = dict.fromkeys(("done", "failed", "missing"), 0)
        if store.exists(f"studies/{name}/cells.parquet"):
            states = store.read_table(f"studies/{name}/cells.parquet", CELLS)["state"]
            counts |= {row["values"]: row["counts"] for row in pc.value_counts(states).to_pylist()}
        total = manifest.get("cells", sum(counts.values()))
        found.append(
            (
                name,
                state,
                *(str(n) for n in (total, counts["done"], counts["failed"], counts["missing"])),
                written,
            )
        )
    return found


def _pieces(store: Store, keys: dict[str, list[str]]) -> str:
    parts = []
    for kind in ("classifiers", "adversarial", "outputs"):
        there = {path.split("/")[1] for path in store.files(kind)}
        parts.append(f"{kind} {len(there & set(keys[kind]))}/{len(keys[kind])}")
    return ", ".join(parts)


def check_store(store: Store) -> tuple[list[str], int]:
    """(problems, files checked): every file of a store, read whole and held against what it must be."""
    problems: list[str] = []
    files = 0
    for kind in KINDS:
        for key in store.folders(kind):
            blocks = store.blocks(kind, key)
            files += len(blocks)
            problems += _overlaps(kind, key, blocks)
            for block in blocks:
                problems += _checked(store, kind, key, block)
    for key in store.folders("classifiers"):
        files += 3
        problems += _classifier(store, key)
    for name in store.folders("studies"):
        files += 2
        problems += _study(store, name)
    return problems, files


def _overlaps(kind: str, key: str, blocks: list[Block]) -> Iterator[str]:
    for left, right in itertools.pairwise(blocks):
        if right.start < left.stop:
            yield f"{kind}/{key}: points {right.start} to {left.stop} must be stored once; {left.path} and {right.path} hold them"


def _checked(store: Store, kind: Kind, key: str, block: Block) -> Iterator[str]:
    try:
        table, facts = store.read_block(kind, key, block)
        yield from (f"{block.path}: {problem}" for problem in _CONTENT[kind](table, facts, block))
    except DamagedFileError as error:
        yield str(error)


def _probabilities(table: pa.Table) -> Iterator[str]:
    column = table["probabilities"].combine_chunks()
    lengths = pc.list_value_length(column)
    if len(table) and pc.min(lengths).as_py() != pc.max(lengths).as_py():
        yield "probabilities must have one length"
        return
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    if not np.allclose(values.sum(1), 1, atol=1e-3) or values.min() < 0:
        yield "probabilities must be at least 0 and sum to 1"


def _adversarial(table: pa.Table, facts: dict[str, Any], block: Block) -> Iterator[str]:
    expected = (block.stop - block.start) * len(facts["stops"])
    if len(table) == 0 or len(table) % expected:
        yield f"must have a multiple of {expected} rows (points x stops); it has {len(table)}"
    pixels = table["image"].combine_chunks().flatten()
    if pc.min(pixels).as_py() < 0 or pc.max(pixels).as_py() > 1:
        yield "pixels must be in [0, 1]"
    if pc.max(table["linf"]).as_py() > facts.get("epsilon", 1.0) + BALL:
        yield f"max |delta| must be at most epsilon = {facts['epsilon']}; it is {pc.max(table['linf']).as_py()}"


def _outputs(table: pa.Table, facts: dict[str, Any], block: Block) -> Iterator[str]:
    expected = (block.stop - block.start) * len(facts["executions"]) * len(facts["draws"])
    if len(table) != expected:
        yield f"must have {expected} rows (points x executions x draws); it has {len(table)}"
    yield from _probabilities(table)


def _records(table: pa.Table, facts: dict[str, Any], block: Block) -> Iterator[str]:
    if len(table) != block.stop - block.start:
        yield f"must have {block.stop - block.start} rows; it has {len(table)}"
    if pc.count_distinct(table["point"]).as_py() != len(table):
        yield "each point must be there once"
    for name in IDENTITY:
        if pc.count_distinct(table[name]).as_py() != 1:
            yield f"{name} must be the same in all rows"
    if table["cell"][0].as_py() != facts["key"]:
        yield f"cell must be {facts['key']}; it is {table['cell'][0].as_py()}"
    predicted = np.array(table["probabilities"].to_pylist()).argmax(1)
    if (predicted != table["predicted"].to_numpy()).any():
        yield "predicted must be the class with the highest probability"
    if (table["correct_draws"].to_numpy() > table["draws"].to_numpy()).any():
        yield "correct_draws must not exceed draws"
    yield from _probabilities(table)


_CONTENT = {"adversarial": _adversarial, "outputs": _outputs, "records": _records}


def _classifier(store: Store, key: str) -> Iterator[str]:
    import hashlib

    folder = f"classifiers/{key}"
    try:
        about = store.read_json(f"{folder}/classifier.json")
        store.read_table(f"{folder}/training.parquet", TRAINING)
        found = hashlib.sha256(store.read_bytes(f"{folder}/model.safetensors")).hexdigest()
        if found != about["weights_sha256"]:
            yield f"{folder}/model.safetensors must have the SHA-256 that classifier.json names; it has {found}"
    except (DamagedFileError, OSError, KeyError) as error:
        yield f"{folder} must hold classifier.json, model.safetensors and training.parquet: {error}"


def _study(store: Store, name: str) -> Iterator[str]:
    folder = f"studies/{name}"
    try:
        manifest = store.read_json(f"{folder}/manifest.json")
        if manifest["state"] == "running":
            return
        cells = store.read_table(f"{folder}/cells.parquet", CELLS)
        done = cells.filter(pc.equal(cells["state"], "done"))
        for cell, points, selection in zip(
            *(done[c].to_pylist() for c in ("cell", "points", "selection_points")), strict=True
        ):
            stored = sum(block.stop - block.start for block in store.blocks("records", cell))
            if stored != points + selection:
                yield f"{folder}: cell {cell} must have {points + selection} rows in records; it has {stored}"
        if len(set(cells["cell"].to_pylist())) != len(cells):
            yield f"{folder}/cells.parquet must name each cell once"
    except (DamagedFileError, OSError, KeyError) as error:
        yield f"{folder} must hold manifest.json and cells.parquet: {error}"


def unreferenced(store: Store) -> list[tuple[str, int]]:
    """(folder, bytes) of every result that no study's manifest refers to."""
    wanted: set[str] = set()
    for name in store.folders("studies"):
        path = f"studies/{name}/manifest.json"
        if store.exists(path):
            keys = store.read_json(path)["keys"]
            wanted |= {f"{kind}/{key}" for kind, found in keys.items() for key in found}
    loose: dict[str, int] = {}
    for kind in ("classifiers", *KINDS):
        for path, size in store.files(kind).items():
            folder = "/".join(path.split("/")[:2])
            if folder not in wanted:
                loose[folder] = loose.get(folder, 0) + size
    return sorted(loose.items())
