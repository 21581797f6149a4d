"""A study without Ray: its data and plan, records derived from outputs, cells, manifest."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from mi_ray.attacks import ATTACKS
from mi_ray.checks import cell_checks
from mi_ray.classifiers import (
    ARCHITECTURES,
    Precision,
    build_classifier,
    load_factory,
    prepared,
    read_weights,
    set_weights,
)
from mi_ray.config import Sweep
from mi_ray.data import SOURCES, Dataset
from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.defenses.base import CHUNK
from mi_ray.objectives import OBJECTIVES
from mi_ray.parameters import Registry
from mi_ray.plan import Cell, ClassifierWork, Facts, Methods, Plan, Planner, canonical
from mi_ray.records import RECORDS, DamagedFileError, Store, write_cells
from mi_ray.sample_pool import without
from mi_ray.statistics import cell_summary, detection_auc, frontier
from mi_ray.workbench import PoolData, StudyData, Workbench

METHODS = Methods(DEFENSES, ATTACKS, OBJECTIVES, ARCHITECTURES, CHUNK)


@dataclass(frozen=True, eq=False)
class Study:
    """A sweep with everything loaded that decides its results."""

    sweep: Sweep
    dataset: Dataset
    planner: Planner
    pools: Mapping[str, PoolData]
    points: list[int]
    left_out_of_pool: int

    def data(self, store: str, classifiers: Mapping[str, tuple[Mapping[str, Any], bytes]]) -> StudyData:
        """What workers are handed."""
        return StudyData(
            store=store, images=self.dataset.test_images[self.points], labels=self.dataset.test_labels[self.points],
            points=self.points, classes=self.dataset.classes, pools=self.pools, classifiers=classifiers,
            seed=self.sweep.seed, batch=self.sweep.batch, precision=self.sweep.precision,
            device=self.planner.facts.device, attack_labels=self.planner.options.attack_labels,
        )  # fmt: skip


def _source_hash(module: str) -> str:
    found = importlib.import_module(module)
    file = getattr(found, "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else module


def load_plugins(plugins: Iterable[str]) -> None:
    """Import a person's own modules (their code runs). Raises ValueError for one that cannot be imported."""
    for plugin in plugins:
        try:
            importlib.import_module(plugin)
        except ImportError as error:
            raise ValueError(f"plugins must be importable modules; {plugin!r}: {error}") from error


def _sources(sweep: Sweep) -> dict[str, str]:
    """Hashes of a person's own code and weights, by the name that the plan looks them up with."""
    found: dict[str, str] = {}
    registries: list[Registry[Any]] = [DEFENSES, ATTACKS, OBJECTIVES, ARCHITECTURES]
    for registry in registries:
        for name in registry:
            module = registry[name].__module__
            if not module.startswith("mi_ray."):
                found[name] = _source_hash(module)
    for entry in sweep.classifiers:
        if entry.factory is not None and entry.weights is not None:
            load_factory(entry.factory)
            found[entry.factory] = _source_hash(entry.factory.partition(":")[0])
            try:
                found[entry.weights] = hashlib.sha256(Path(entry.weights).read_bytes()).hexdigest()
            except OSError as error:
                raise ValueError(
                    f"classifier {entry.name!r}: weights must be a file; {entry.weights}: {error}"
                ) from error
    return found


def _pools(sweep: Sweep, dataset: Dataset) -> tuple[dict[str, PoolData], int]:
    """The sample pool of each defense that mixes, and how many copies of test images were left out."""
    options, left_out = sweep.resolved_options(), 0
    if options.pool_split == "train":
        images, labels, left_out = without(dataset.train_images, dataset.train_labels, dataset.test_images)
    else:
        images, labels = dataset.test_images, dataset.test_labels
    whole = PoolData(images, labels, options.pool_split, options.pool_augmented)
    classes = {name: DEFENSES[name] for name in DEFENSES}
    pools = {name: whole for name, cls in classes.items() if issubclass(cls, RandomTransform) and cls.uses_pool}
    if options.pool_limit_mi_pl is not None:
        chosen = np.random.default_rng(sweep.seed).permutation(len(labels))[: options.pool_limit_mi_pl]
        pools["mi_pl"] = PoolData(images[chosen], labels[chosen], options.pool_split, options.pool_augmented)
    return pools, left_out


def device_of(sweep: Sweep) -> str:
    """The kind of device that blocks run on: what the sweep says, else by whether its blocks ask for GPUs.

    The machine at hand is not looked at: it may be a cluster's head without a GPU. Raises ValueError when a sweep asks
    for a device that its blocks do not reserve.
    """
    reserved = "cuda" if sweep.resources.block.gpus > 0 else "cpu"
    if sweep.device == "cuda" and reserved == "cpu":
        raise ValueError("device: cuda needs resources.block.gpus above 0, so that Ray gives blocks a GPU; got 0")
    return reserved if sweep.device == "auto" else sweep.device


def _try_own(work: ClassifierWork, height: int, width: int, precision: Precision) -> None:
    """Build a person's own classifier and pass one image. Raises ValueError when that does not work out."""
    entry, weights = work.entry, str(work.entry.weights)
    state = read_weights(Path(weights))
    try:
        classifier = build_classifier(work.description)
    except TypeError as error:
        raise ValueError(
            f"classifier {entry.name!r}: factory {entry.factory} must accept its arguments: {error}"
        ) from error
    set_weights(classifier, state, weights)
    try:
        with torch.no_grad():
            ready = prepared(classifier, torch.device("cpu"), precision)
            shape = list(ready(torch.full((1, 3, height, width), 0.5)).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"classifier {entry.name!r} must take [B, 3, {height}, {width}] images; its network says: {error}"
        ) from error
    if shape != [1, classifier.classes]:
        raise ValueError(
            f"classifier {entry.name!r} must return logits [B, {classifier.classes}], one for each class of the dataset; "
            f"for one image it returned {shape}"
        )


def prepare(sweep: Sweep) -> Study:
    """Load the data, check every name and value of the sweep, and plan. Raises ValueError before any work."""
    load_plugins(sweep.plugins)
    sources = _sources(sweep)
    dataset = SOURCES.make(*sweep.dataset).load()
    pools, left_out = _pools(sweep, dataset)
    made = {id(pool): pool.pool(dataset.classes, torch.device("cpu")) for pool in pools.values()}
    if sweep.resolved_options().pool_split == "train":
        for pool in made.values():
            pool.refuse_evaluated(dataset.test_images)
    height, width = dataset.test_images.shape[1:3]
    facts = Facts(
        dataset=dataset.name, digest=dataset.digest, classes=dataset.classes, side=(height, width),
        train_count=len(dataset.train_labels), test_count=len(dataset.test_labels),
        pools={name: made[id(pool)].digest for name, pool in pools.items()}, device=device_of(sweep), sources=sources,
    )  # fmt: skip
    planner = Planner(sweep, METHODS, facts)
    for work in planner.classifiers:
        if work.entry.weights is not None:
            _try_own(work, height, width, sweep.precision)
    planner.settings()
    points = dataset.points(sweep.points_order(), sweep.seed)[: planner.stored_points]
    return Study(sweep, dataset, planner, pools, points, left_out)


def derive(bench: Workbench, cell: Cell, selection: int, count: int) -> pa.Table:
    """A cell's records from stored outputs: one row a point. Raises DamagedFileError when some are missing."""
    data = bench.data
    defense = DEFENSES.make(*cell.defense)
    undefended = torch.from_numpy(bench.probabilities(cell.undefended, 0, count)[0, 0])
    averages = [
        torch.from_numpy(bench.probabilities(work, 0, count)[: cell.identity["draws"], work.executions.index(n)])
        for work, n in cell.components
    ]
    repeated = undefended.expand(cell.identity["draws"], -1, -1)
    answered = defense.join(repeated, averages)
    labels = np.asarray(data.labels[:count])
    right = (answered.argmax(-1).numpy() == labels).sum(0)
    own, first = undefended.argmax(1, keepdim=True), answered[0]
    attack_label, linf = labels, np.zeros(count, np.float32)
    if cell.inputs.attack is not None:
        _, attack_label, linf = bench.adversarial(cell.inputs, 0, count)
    rows: dict[str, Any] = {
        **{name: np.repeat(value, count) for name, value in cell.identity.items()},
        "correct_draws": right, "point": np.asarray(data.points[:count]), "selection": np.arange(count) < selection,
        "label": labels, "attack_label": attack_label, "predicted_undefended": own[:, 0].numpy(),
        "predicted": first.argmax(1).numpy(), "confidence_undefended": undefended.amax(1).numpy(),
        "confidence": first.amax(1).numpy(),
        "score": (undefended.gather(1, own) - first.gather(1, own))[:, 0].numpy(),
        "probabilities": list(first.numpy()), "linf": linf, "seed": np.repeat(data.seed, count),
        "device": np.repeat(data.device, count), "precision": np.repeat(data.precision if cell.components else "fp32", count),
    }  # fmt: skip
    return pa.table([pa.array(rows[name], RECORDS.field(name).type) for name in RECORDS.names], schema=RECORDS)


def write_records(
    bench: Workbench,
    cells: Iterable[Cell],
    points: tuple[int, int],
    causes: Callable[[Cell], str | None],
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Derive the records that are not stored and return the rows of cells.parquet. points: (selection, count)."""
    selection, count = points
    costs: dict[str, tuple[int, int, float]] = {}
    scores: dict[str, Any] = {}
    rows = []
    for cell in cells:
        row: dict[str, Any] = {**cell.identity, "selected": False, "state": "done"}
        try:
            weights = {"weights": bench.weights(cell.classifier)} if cell.classifier in bench.data.classifiers else {}
            table = _stored_records(bench.store, cell.key, count, weights)
            if table is None:
                table = derive(bench, cell, selection, count)
                bench.store.write_block("records", cell.key, 0, count, table, weights)
            row |= cell_summary(table["correct_draws"], table["selection"], cell.identity["draws"])
            row["checks"] = canonical(cell_checks(table))
            scores[cell.key] = table.filter(pc.invert(table["selection"]))["score"].to_numpy()
            row |= _cost(bench.store, cell, costs)
        except DamagedFileError as error:
            cause = causes(cell)
            row |= {"state": "failed" if cause else "missing", "cause": cause or str(error)}
        rows.append(row)
        advance(1)
    _add_detection(rows, scores)
    return rows


def _add_detection(rows: list[dict[str, Any]], scores: Mapping[str, Any]) -> None:
    """Fill `auc` of each attacked cell: the drop of F_ŷ on its points against that on the clean ones, in place."""
    setting = ("classifier_key", "defense", "defense_params", "executions", "draws")
    clean = {tuple(row[name] for name in setting): row["cell"] for row in rows if row["attack"] == "none"}
    for row in rows:
        own = clean.get(tuple(row[name] for name in setting), "")
        if row["attack"] != "none" and row["defense"] != "none" and row["cell"] in scores and own in scores:
            row["auc"] = detection_auc(scores[own], scores[row["cell"]])


def _stored_records(store: Store, key: str, count: int, weights: Mapping[str, str]) -> pa.Table | None:
    """A cell's stored rows, if they are whole and of these weights; what is not so is removed, to be derived again."""
    blocks = store.blocks("records", key)
    if [(block.start, block.stop) for block in blocks] == [(0, count)]:
        with contextlib.suppress(DamagedFileError):
            table, facts = store.read_block("records", key, blocks[0])
            if facts.get("weights") == weights.get("weights"):
                return table
    for block in blocks:
        store.remove(block.path)
    return None


def _cost(store: Store, cell: Cell, known: dict[str, tuple[int, int, float]]) -> dict[str, Any]:
    """Passes and seconds of the outputs and the attack that a cell stands on (cells share them)."""
    total = [0, 0, 0.0]
    needed = [("outputs", work.key) for work in cell.needs()]
    if cell.inputs.attack is not None:
        needed.append(("adversarial", cell.inputs.attack.key))
    for kind, key in needed:
        if key not in known:
            facts = [store.block_facts(block) for block in store.blocks(kind, key)]  # type: ignore[arg-type]
            known[key] = (
                sum(f["forward_passes"] for f in facts), sum(f["backward_passes"] for f in facts),
                sum(f["seconds"] for f in facts),
            )  # fmt: skip
        total = [a + b for a, b in zip(total, known[key], strict=True)]
    return {"forward_passes": total[0], "backward_passes": total[1], "seconds": total[2]}


def mark_selected(rows: list[dict[str, Any]]) -> None:
    """Fill `clean_accuracy` and `selected` (undominated, judged on selection points where there are some), in place."""
    import pandas as pd

    from mi_ray.records import CELLS

    frame = pa.Table.from_pylist(rows, schema=CELLS).to_pandas()
    table: pd.DataFrame = frontier(frame)
    found = dict(zip(table["cell"], zip(table["clean"], table["undominated"], strict=True), strict=True))
    for row in rows:
        if row["cell"] in found:
            row["clean_accuracy"], row["selected"] = float(found[row["cell"]][0]), bool(found[row["cell"]][1])
        elif row["attack"] == "none" and row["state"] == "done":
            row["clean_accuracy"] = row["accuracy"]


def provenance() -> dict[str, Any]:
    """Versions, machine, and the commit of the program where there is one."""
    packages = ("mi-ray", "torch", "torchvision", "ray", "optuna", "pyarrow", "numpy", "scipy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    folder = str(Path(__file__).parent)
    git = ["git", "-C", folder]
    commit: str | None = None
    dirty = False
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
        dirty = bool(status.stdout.strip())
    except (OSError, subprocess.CalledProcessError):
        commit = None  # installed from a wheel, or no git: the versions say what ran
    return {
        "versions": versions, "python": sys.version.split()[0], "machine": platform.machine(),
        "processor": platform.processor() or platform.machine(), "commit": commit, "dirty": dirty,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def keys_of(plan: Plan) -> dict[str, list[str]]:
    """Every folder of the store that a plan refers to."""
    return {
        "classifiers": sorted(work.key for work in plan.classifiers),
        "adversarial": sorted(work.key for work in plan.attacks),
        "outputs": sorted(work.key for work in plan.outputs),
        "records": sorted(cell.key for cell in plan.cells),
    }


def mark(store: Store, study: Study, plan: Plan, state: str) -> None:
    """Say in the store how far a study is, and what it consists of, for `mi-ray status` and `gc`.

    A search finds its settings as it goes: `open` says that the keys are not all known yet.
    """
    manifest = {
        "name": study.sweep.name, "state": state, "keys": keys_of(plan), "cells": len(plan.cells),
        "open": study.sweep.search is not None, "provenance": provenance(),
    }  # fmt: skip
    store.write_json(f"studies/{study.sweep.name}/manifest.json", manifest)


def write_study(store: Store, study: Study, plan: Plan, rows: list[dict[str, Any]], about: Mapping[str, Any]) -> None:
    """Write study.yaml, cells.parquet and manifest.json; `quick.seal` ends a study once its figures are there too."""
    import yaml

    name = study.sweep.name
    text = yaml.safe_dump(study.sweep.document(), sort_keys=False, allow_unicode=True)
    store.write_bytes(f"studies/{name}/study.yaml", text.encode())
    write_cells(store, name, rows)
    keys = keys_of(plan)
    complete = all(row["state"] == "done" for row in rows)
    manifest = {
        "name": name, "state": "complete" if complete else "incomplete", "keys": keys,
        "provenance": provenance(), "planned": study.planner.cost(plan), "cells": len(rows),
        "points": {"indices": study.points[: study.sweep.points.count], "selection": study.sweep.points.selection},
        "pool": {
            "digests": dict(study.planner.facts.pools), "copies_of_test_images_left_out": study.left_out_of_pool,
        },
        "dataset": {"name": study.dataset.name, "digest": study.dataset.digest}, "seed": study.sweep.seed,
        "device": study.planner.facts.device, "figures": list(study.sweep.figures), **about,
    }  # fmt: skip
    store.write_json(f"studies/{name}/manifest.json", manifest)
