"""How long `mi-ray status` and a filtered `read_records` take on a large study: 100,000 cells x 20 blocks.

    python benchmarks/scale.py FOLDER [--cells 100000] [--blocks 20] [--points 1] [--files]

Makes a synthetic store in FOLDER (removed at the end unless --keep), in which every cell has `blocks` x `points` rows that
`mi-ray check` accepts. With --files it writes each block in a file of its own, measures, runs the real compaction and
measures again: 100,000 x 20 are two million files. Without, the rows go through the second half of the compaction, which
is the same code, and no small file is ever made.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from mi_ray.store.blocks import Store
from mi_ray.store.compact import GROUP_ROWS, Rows, compact, write_parts
from mi_ray.store.manifest import write_manifest
from mi_ray.store.read import read_cells, read_records, write_cells
from mi_ray.store.schemas import RECORDS

CLASSES = 10
CHECKS = {
    name: {"state": "passed", "why": "as it should be", "accuracy": 0.5} for name in ("more_steps", "in_box", "noise")
}


def identity(number: int) -> dict[str, Any]:
    """One cell of a grid of classifiers x attacks x defense settings."""
    setting, attack = number // 10, number % 10
    return {
        "cell": f"{number:024x}",
        "dataset": "cifar10",
        "classifier": f"f{number // 50_000}",
        "classifier_key": f"{number // 50_000:024x}",
        "attack": "pgd" if attack else "none",
        "attack_params": json.dumps({"steps": attack, "step_size": 0.0078}),
        "goal": "untargeted",
        "norm": "linf",
        "epsilon": round(attack / 255, 6),
        "knowledge": "oblivious",
        "defense": "gaussian_noise",
        "defense_params": json.dumps({"sigma": round(setting / 1e5, 6)}),
        "executions": 30,
        "draws": 3,
    }


def rows_of(number: int, count: int) -> pa.Table:
    """The rows of one cell."""
    rng = np.random.default_rng(number)
    probabilities = rng.dirichlet(np.ones(CLASSES), count).astype(np.float32)
    predicted = probabilities.argmax(1)
    label = np.where(rng.random(count) < 0.7, predicted, (predicted + 1) % CLASSES)
    right = predicted == label
    values: dict[str, Any] = {
        **{name: [value] * count for name, value in identity(number).items()},
        "correct_draws": np.where(right, 3, 0),
        "point": np.arange(count),
        "selection": np.zeros(count, bool),
        "label": label,
        "attack_label": label,
        "predicted_undefended": predicted,
        "predicted": predicted,
        "confidence_undefended": probabilities.max(1),
        "confidence": probabilities.max(1),
        "score": np.zeros(count, np.float32),
        "probabilities": list(probabilities),
        "linf": np.zeros(count, np.float32),
        "seed": [0] * count,
        "device": ["cpu"] * count,
        "precision": ["fp32"] * count,
    }
    return pa.table([pa.array(values[name], RECORDS.field(name).type) for name in RECORDS.names], schema=RECORDS)


def tables(cells: int, count: int) -> Iterator[tuple[int, pa.Table]]:
    """(number, rows) of every cell."""
    for number in range(cells):
        yield number, rows_of(number, count)


def write_study(store: Store, cells: int, count: int, accuracies: dict[int, float]) -> None:
    """What the study says about itself."""
    rows = [
        {
            **identity(number),
            "state": "done",
            "points": count,
            "accuracy": accuracies[number],
            "accuracy_low": 0.0,
            "accuracy_high": 1.0,
            "interval": "wilson",
            "survival": [accuracies[number]] * 3,
            "auc": 0.5,
            "checks": json.dumps(CHECKS),
            "verdict": "passed",
            "selection_points": 0,
            "variants": [""],
            "work": json.dumps({"adversarial": f"{number % 10:024x}", "outputs": [[f"{number:024x}", 30]]}),
        }
        for number in range(cells)
    ]
    write_cells(store, "scale", rows)
    keys: dict[str, list[str]] = {kind: [] for kind in ("classifiers", "adversarial", "outputs")}
    keys["records"] = [row["cell"] for row in rows]
    write_manifest(store, "scale", "complete", keys, {"cells": cells})


def timed(what: str, call: Callable[[], Any]) -> Any:
    """Run, print how long it took by the clock and in seconds of a core, and hand on the result."""
    began, used = time.perf_counter(), cpu_seconds()
    found = call()
    print(f"{what:<50} {time.perf_counter() - began:8.2f} s {cpu_seconds() - used:8.2f} s of a core", flush=True)
    return found


def cpu_seconds() -> float:
    """What this process and those that it started and that have ended have used."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(store: Store, cells: int, count: int) -> None:
    """The times that a person waits, each from a fresh look at the store."""
    line = [sys.executable, "-m", "mi_ray.cli", "status", store.root]
    done = timed(
        "mi-ray status (a process from its start)", lambda: subprocess.run(line, check=True, capture_output=True)
    )
    assert f"{cells}" in done.stdout.decode()
    one, setting = identity(cells // 2)["cell"], identity(cells // 3)
    alike = [(name, "=", setting[name]) for name in ("classifier", "defense", "defense_params")]
    for what, filters, expected in (
        ("read_records of one cell", [("cell", "=", one)], count),
        ("read_records of one setting under 10 attacks", alike, 10 * count),
        ("read_records of 1 % of the cells", [("defense_params", "in", _settings(cells))], cells // 100 * count),
        ("read_records of one point of every cell", [("point", "=", 0)], cells),
    ):
        found = timed(what, partial(read_records, store.root, "scale", filters))
        assert len(found) == expected, (what, len(found), expected)
    timed("read_cells", lambda: read_cells(store.root, "scale"))
    dataset = ds.dataset(f"{store.root}/records", format="parquet", schema=RECORDS)
    assert timed("pyarrow.dataset: count of rows", dataset.count_rows) == cells * count


def _settings(cells: int) -> list[str]:
    first = cells // 20
    return [json.dumps({"sigma": round(setting / 1e5, 6)}) for setting in range(first, first + cells // 1000)]


def main() -> None:
    """Make the store, measure, and remove it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, usual in (("cells", 100_000), ("blocks", 20), ("points", 1)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--files", action="store_true")
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    store, count, accuracies = Store(options.folder / "store", create=True), options.blocks * options.points, {}

    def written() -> Iterator[Rows]:
        for number, table in tables(options.cells, count):
            accuracies[number] = float((table["correct_draws"].to_numpy() / 3).mean())
            yield Rows(identity(number)["cell"], 0, count, '{"weights": "w"}', table)

    def write_files() -> None:
        for rows in written():
            for start in range(0, count, options.points):
                part = rows.table.slice(start, options.points)
                store.write_block("records", rows.cell, start, start + options.points, part, json.loads(rows.facts))

    if options.files:
        setattr(os, "fsync", lambda descriptor: None)  # noqa: B010 - a made-up store need not survive a power cut, and it takes 10 ms a file
        timed(f"writing {options.cells * options.blocks:,} files", write_files)
    else:
        timed(f"writing {options.cells:,} cells compacted", lambda: write_parts(store, written(), GROUP_ROWS))
    write_study(store, options.cells, count, accuracies)
    if options.files:
        measure(store, options.cells, count)
        done, left = timed("compact", lambda: compact(store))
        assert (done, left) == (options.cells, [])
    measure(store, options.cells, count)
    sizes = store.files("")
    print(f"{len(sizes):,} files, {sum(sizes.values()) / 2**20:,.0f} MiB")
    if not options.keep:
        shutil.rmtree(options.folder / "store")


if __name__ == "__main__":
    main()
