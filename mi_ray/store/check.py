"""`mi-ray check`: every file of a store is read and held against what it must be, and damage is named.

Nothing is changed here; a problem says what would have to be removed for a sweep to compute it again.
"""

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mi_ray.store.blocks import INDEX_PATH, PUBLISHED, WAITING, Block, BlockFacts, Store, identities
from mi_ray.store.files import DamagedFileError
from mi_ray.store.manifest import UNFINISHED, read_manifest
from mi_ray.store.schemas import CELLS, CERTIFICATES, CERTIFIED, EXAMPLES, IDENTITY, KEYS, KINDS, TRAINING, Kind
from mi_ray.threat_model import ABSTAINS, TOLERANCE

SAME_ACCURACY = 1e-9  # how far the mean of many rows may be from itself when it is summed in another order


@dataclass(frozen=True)
class Problem:
    """Something that is wrong in a store.

    text: the rule and what was found. path: the file, folder or compacted cell that has to be removed for a sweep to
    compute it again; empty where nothing has to be.
    """

    text: str
    path: str = ""


def check_store(store: Store) -> tuple[list[Problem], int]:
    """Read every file of a store whole: (the problems that were found, how many files were read)."""
    store.refresh()
    problems: list[Problem] = []
    files = 0
    weights = _weights(store)
    for kind in KINDS:
        for key, blocks in _keys(store, kind, problems):
            files += sum(block.place is None for block in blocks)
            problems += _overlaps(store, kind, key, blocks)
            for block in blocks:
                path = f"{kind}/{key}" if block.place is not None else block.path
                problems += (Problem(text, path) for text in _checked(store, kind, key, block, weights))
    files += len(store.files(PUBLISHED)) + len(store.files(WAITING))
    for key in store.folders("classifiers"):
        files += 3
        problems += (Problem(text, f"classifiers/{key}") for text in _classifier(store, key))
    for name in store.folders("studies"):
        found, looked_at = _study(store, name)
        problems += (Problem(text) for text in found)
        files += looked_at
    return list(dict.fromkeys(problems)), files


def _keys(store: Store, kind: Kind, problems: list[Problem]) -> Iterator[tuple[str, list[Block]]]:
    """(key, blocks) of a kind, compacted cells in the order of the index. A compaction that was not finished is a problem."""
    keys = [key for key in store.folders(kind) if f"{kind}/{key}" != PUBLISHED]
    if kind == "records":
        try:
            places = store.compacted.places
        except DamagedFileError as error:
            problems.append(Problem(str(error), INDEX_PATH))
            return
        parts = store.compacted.parts
        unknown = [path for path in store.files(PUBLISHED) if path.rpartition("/")[2] not in parts]
        waiting = [path for path in store.files(WAITING) if path != INDEX_PATH]
        if unknown or waiting or places.keys() & set(keys):
            problems.append(
                Problem(
                    "records: a compaction must be finished before others read them; `mi-ray compact`, "
                    "and every sweep, finishes it"
                )
            )
        keys = [*places, *(key for key in keys if key not in places)]
    yield from ((key, store.blocks(kind, key)) for key in keys)


def _overlaps(store: Store, kind: Kind, key: str, blocks: list[Block]) -> Iterator[Problem]:
    """Points of a key that two blocks hold, as two studies that ran at once may leave them, with rows that differ."""
    for left, right in itertools.combinations(blocks, 2):
        if right.start < left.stop and not _agree(store, kind, key, left, right):
            yield Problem(
                f"{kind}/{key}: points {right.start} to {left.stop} must have one row each; {left.path} and {right.path} "
                "hold others",
                right.path,
            )


def _agree(store: Store, kind: Kind, key: str, *blocks: Block) -> bool:
    """Whether two blocks say the same of what both hold."""
    try:
        left, right = (store.read_block(kind, key, block)[0] for block in blocks)
    except DamagedFileError:
        return True  # `_checked` tells.
    first, second = ({row: at for at, row in enumerate(identities(table))} for table in (left, right))
    both = [row for row in first if row in second]
    mine, theirs = (
        table.take(pa.array([places[row] for row in both], pa.int64()))
        for table, places in ((left, first), (right, second))
    )
    return bool(mine.equals(theirs))


def _weights(store: Store) -> set[str] | None:
    """The SHA-256 of the weights of each classifier: as its classifier.json says it, or, where that is damaged, of the file.

    None where a classifier has neither: any block may be of that one, and then none is of weights that are not there.
    """
    found = set()
    for key in store.folders("classifiers"):
        folder = f"classifiers/{key}"
        try:
            found.add(store.read_json(f"{folder}/classifier.json")["weights_sha256"])
        except (DamagedFileError, FileNotFoundError, KeyError, TypeError):  # `_classifier` tells.
            if not store.exists(f"{folder}/model.safetensors"):
                return None
            found.add(hashlib.sha256(store.read_bytes(f"{folder}/model.safetensors")).hexdigest())
    return found


def _checked(store: Store, kind: Kind, key: str, block: Block, weights: set[str] | None) -> Iterator[str]:
    """What is wrong with a block. weights: those of all classifiers in the store, where these are known."""
    try:
        table, facts = store.read_block(kind, key, block)
        if len(table) == 0:
            yield f"{block.path}: must have rows; it has none"
            return
        if kind != "records" and weights is not None and facts["weights"] not in weights:
            yield f"{block.path}: must be of the weights of a classifier in the store; it is of {facts['weights']}"
        yield from (f"{block.path}: {problem}" for problem in _CONTENT[kind](table, facts, block))
    except DamagedFileError as error:
        yield str(error)
    except (KeyError, TypeError) as error:
        yield f"{block.path}: must say of itself what mi-ray writes; it lacks {error}"


def _probabilities(table: pa.Table) -> Iterator[str]:
    """What is wrong with a column of probabilities."""
    column = table["probabilities"].combine_chunks()
    lengths = pc.list_value_length(column)
    if len(table) and pc.min(lengths).as_py() != pc.max(lengths).as_py():
        yield "probabilities must have one length"
        return
    values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
    if not np.allclose(values.sum(1), 1, atol=1e-3) or not values.min() >= 0:
        yield "probabilities must be at least 0 and sum to 1"


def _adversarial(table: pa.Table, facts: BlockFacts, block: Block) -> Iterator[str]:
    """What is wrong with a block of adversarial images: its number of rows, the box, the ball."""
    expected = (block.stop - block.start) * len(facts["stops"])
    if len(table) % expected:
        yield f"must have a multiple of {expected} rows (points x stops); it has {len(table)}"
    pixels = table["image"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    if not np.isfinite(pixels).all():
        yield "pixels must be finite"
    elif facts["keeps_box"] and not ((pixels >= 0) & (pixels <= 1)).all():
        yield "pixels must be in [0, 1]"
    what, farthest = _farthest(table, facts)
    if not farthest <= facts["epsilon"] + TOLERANCE * max(1.0, facts["epsilon"]):
        yield f"{what} must be at most epsilon = {facts['epsilon']}; it is {farthest}"


def _farthest(table: pa.Table, facts: BlockFacts) -> tuple[str, float]:
    """(what is measured, how far the images are from the clean ones by it), by a block's columns and what it says of itself."""
    if "spatial" in facts:
        shares = table["shares"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        told = float(np.abs(shares).max()) if len(shares) == 3 * len(table) else float("nan")
        return "the largest of the shares", max(told, facts["spatial"])
    # No change of a pixel is larger than the L2 or L1 norm of all of them, of which a block says how large it is.
    return "max |delta|", max(float(table["linf"].to_numpy().max()), *(facts.get(norm, 0.0) for norm in ("l2", "l1")))


def _outputs(table: pa.Table, facts: BlockFacts, block: Block) -> Iterator[str]:
    """What is wrong with a block of outputs: its number of rows, the probabilities."""
    expected = (block.stop - block.start) * len(facts["executions"]) * len(facts["draws"])
    if len(table) != expected:
        yield f"must have {expected} rows (points x executions x draws); it has {len(table)}"
    yield from _probabilities(table)


def _records(table: pa.Table, facts: BlockFacts, block: Block) -> Iterator[str]:
    """What is wrong with the records of a cell: points, identity, and columns that follow from others."""
    if len(table) != block.stop - block.start:
        yield f"must have {block.stop - block.start} rows; it has {len(table)}"
    if pc.count_distinct(table["point"]).as_py() != len(table):
        yield "each point must be there once"
    for name in IDENTITY:
        if pc.count_distinct(table[name]).as_py() != 1:
            yield f"{name} must be the same in all rows"
    if table["cell"][0].as_py() != facts["key"]:
        yield f"cell must be {facts['key']}; it is {table['cell'][0].as_py()}"
    correct, draws = (table[name].to_numpy() for name in ("correct_draws", "draws"))
    if (correct > draws).any() or (correct < 0).any():
        yield "correct_draws must be from 0 to draws"
    wrong = list(_probabilities(table))
    yield from wrong
    if wrong:
        return
    predicted = table["predicted"].to_numpy()
    answered = predicted != ABSTAINS
    if (np.array(table["probabilities"].to_pylist()).argmax(1) != predicted)[answered].any():
        yield "predicted must be the class with the highest probability"
    right = predicted == table["label"].to_numpy()  # In draw 0, which is one of those that correct_draws counts.
    # What a defense that may abstain did not answer rightly when clean is lost, whatever it answers under attack.
    lost_when_clean = facts.get("abstains", False) and table["attack"][0].as_py() != "none"
    if (((correct == 0) & right).any() and not lost_when_clean) or ((correct == draws) & ~right & answered).any():
        yield "correct_draws must agree with label and predicted"


_CONTENT = {"adversarial": _adversarial, "outputs": _outputs, "records": _records}


def _classifier(store: Store, key: str) -> Iterator[str]:
    """What is wrong with the three files of a classifier."""
    folder = f"classifiers/{key}"
    try:
        about = store.read_json(f"{folder}/classifier.json")
        store.read_table(f"{folder}/training.parquet", TRAINING)
        found = hashlib.sha256(store.read_bytes(f"{folder}/model.safetensors")).hexdigest()
        if found != about["weights_sha256"]:
            yield f"{folder}/model.safetensors must have the SHA-256 that classifier.json names; it has {found}"
    except (DamagedFileError, FileNotFoundError, KeyError, TypeError) as error:
        yield f"{folder} must hold classifier.json, model.safetensors and training.parquet: {error}"


def _study(store: Store, name: str) -> tuple[list[str], int]:
    """(what is wrong with a study's own files, how many were read)."""
    folder = f"studies/{name}"
    problems: list[str] = []
    named = {"examples": EXAMPLES, "keys": KEYS, "certificates": CERTIFICATES, "certified": CERTIFIED}
    more = {f"{folder}/{name}.parquet": schema for name, schema in named.items()}
    more = {path: schema for path, schema in more.items() if store.exists(path)}
    looked_at = 2 + len(more)
    try:
        manifest = read_manifest(store, name)
        if manifest["state"] in UNFINISHED:
            return [], looked_at
        sealed = manifest.get("files", {})
        looked_at += sum(not path.endswith(".parquet") for path in sealed)
        problems += _changed(store, {path: sealed[path] for path in sealed if not path.endswith(".parquet")})
        cells = store.read_table(f"{folder}/cells.parquet", CELLS)
        for path, schema in more.items():
            store.read_table(path, schema)
        done = cells.filter(pc.equal(cells["state"], "done")).to_pylist()
        for row in done:
            problems += (f"{folder}: cell {row['cell']} {problem}" for problem in _cell(store, row))
        problems += (f"{folder}: {problem}" for problem in _gone(store, manifest, done))
        if len(set(cells["cell"].to_pylist())) != len(cells):
            problems.append(f"{folder}/cells.parquet must name each cell once")
        if not problems:  # A damaged table has been told already.
            problems += _changed(store, sealed)
    except (DamagedFileError, FileNotFoundError, KeyError) as error:
        problems.append(f"{folder} must hold manifest.json and cells.parquet: {error}")
    return problems, looked_at


def _gone(store: Store, manifest: Mapping[str, Any], done: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What a complete study refers to and the store does not have, as a whole or for some of the points.

    done: the rows of its finished cells, whose inputs cover all of the study's points; those of checks cover the first ones.
    """
    if manifest["state"] != "complete":
        return
    wanted: dict[str, int] = {}
    for row in done:
        work = json.loads(row["work"])
        keys = [work.get("undefended"), *(key for key, _ in work.get("outputs", [])), *work.get("counterparts", [])]
        paths = [f"outputs/{key}" for key in keys if key] + [f"adversarial/{work.get('adversarial')}"]
        wanted |= dict.fromkeys(paths, row["points"] + row["selection_points"])
    for kind in KINDS[:2]:
        for key in manifest["keys"].get(kind, []):
            end = 0
            for block in store.blocks(kind, key):
                end = max(end, block.stop) if block.start <= end else end
            least = wanted.get(f"{kind}/{key}", 1)
            if end < least:
                told = f"points {end} to {least} are gone" if end else "it is gone"
                yield f"{kind}/{key} must be there, of which its cells came; {told}"
    for key in {*manifest["keys"].get("classifiers", [])} - {*store.folders("classifiers")}:
        yield f"classifiers/{key} must be there, of which its cells came; it is gone"


def _changed(store: Store, sealed: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a sealed study's files, given as path -> SHA-256."""
    for path, digest in sealed.items():
        try:
            if hashlib.sha256(store.read_bytes(path)).hexdigest() != digest:
                yield f"{path} must be as it was when the study was complete: it was changed or damaged"
        except FileNotFoundError:
            yield f"{path} must be there, as it was when the study was complete"


def studies_of(store: Store, problems: Iterable[Problem]) -> list[str]:
    """The studies that these problems concern, so far as their manifests can be read."""
    told = list(problems)
    paths = {problem.path for problem in told if problem.path}
    damaged = {"/".join(path.split("/")[:2]) for path in paths}
    found = []
    for name in store.folders("studies"):
        own = (f"studies/{name}/", f"studies/{name}:", f"studies/{name} ")
        concerned = any(problem.text.startswith(own) for problem in told)
        with contextlib.suppress(DamagedFileError):
            keys = read_manifest(store, name)["keys"]
            referred = {f"{kind}/{key}" for kind, some in keys.items() for key in some}
            concerned = concerned or INDEX_PATH in paths or bool(damaged & referred)
        if concerned:
            found.append(name)
    return found


def _cell(store: Store, row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a finished row of cells.parquet, held against the records that it summarises."""
    blocks = store.blocks("records", row["cell"])
    stored, expected = sum(block.stop - block.start for block in blocks), row["points"] + row["selection_points"]
    if stored != expected:
        yield f"must have {expected} rows in records; it has {stored}"
        return
    try:
        tables = [store.read_block("records", row["cell"], block)[0] for block in blocks]
    except DamagedFileError:
        return  # `_checked` tells.
    rows = pa.concat_tables(tables)
    reported = rows.filter(pc.invert(rows["selection"]))["correct_draws"].to_numpy()
    accuracy = float(reported.mean()) / row["draws"] if len(reported) else float("nan")
    if not abs(accuracy - row["accuracy"]) <= SAME_ACCURACY:
        yield f"must have the accuracy of its records, {accuracy:.6f}; cells.parquet says {row['accuracy']:.6f}"
