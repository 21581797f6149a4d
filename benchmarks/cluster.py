"""The comparisons that need Ray: training through Ray Train, a sweep through Ray Tune, two workers against one."""

import contextlib
import functools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.measure import CORES, Row, Runner
from benchmarks.sides import FAST
from mi_ray.config import Sweep
from mi_ray.data import Digits
from mi_ray.plan.work import OutputWork
from mi_ray.store.blocks import Store
from mi_ray.store.schemas import CELLS, TRAINING
from mi_ray.study.prepare import prepare
from mi_ray.study.workbench import Workbench

SMALL = {"resnet_small": {"width": 48}}  # 691,834 parameters
LARGE: dict[str, Any] = {"mi_resnet50": {}}  # 4,752,586


def _classifier(
    name: str, architecture: Any, epochs: int = 1, objective: Any = "erm", **training: Any
) -> dict[str, Any]:
    options = {"epochs": epochs, "batch_size": 64, "lr": 0.02, "flip": False, "precision": FAST, **training}
    return {"name": name, "architecture": architecture, "objective": objective, "training": options}


def _study(name: str, classifiers: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "dataset": "digits",
        "classifiers": classifiers,
        "checks": "cheap",
        "draws": 1,
        "attacks": [{"pgd": {"steps": [1]}, "epsilon": "4/255"}],
        "defenses": ["none"],
        "points": {"count": 50},
        "figures": ["frontier_table"],
        **more,
    }


def _run(
    verb: str, folder: Path, study: dict[str, Any], store: str = "results", *options: str
) -> tuple[float, dict[str, Any]]:
    """(seconds in all, manifest) of one command in a process of its own."""
    file = folder / f"{study['name']}.yaml"
    file.write_text(yaml.safe_dump(study))
    began = time.perf_counter()
    command = [sys.executable, "-m", "mi_ray.cli", verb, str(file), "--out", str(folder / store), *options]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{study['name']}: {done.stdout}\n{done.stderr}")
    manifest = json.loads((folder / store / "studies" / study["name"] / "manifest.json").read_text())
    return time.perf_counter() - began, manifest


@functools.cache
def classifiers(folder: Path) -> tuple[str, str]:
    """Train the two networks on digits until some points survive an attack; their folders, in which a later run finds them."""
    study = _study("train", [_classifier("small", SMALL, 5), _classifier("large", LARGE, 2)])
    folder.mkdir(parents=True, exist_ok=True)
    _, manifest = _run("train", folder, study)
    names = {}
    for key in manifest["keys"]["classifiers"]:
        about = json.loads((folder / "results" / "classifiers" / key / "classifier.json").read_text())
        names[about["name"]] = str((folder / "results" / "classifiers" / key).resolve())
    return names["small"], names["large"]


def training(folder: Path, small: str, *, quick: bool) -> list[Row]:
    """A training step through Ray Train with one worker against the bare PyTorch loop, eager and compiled."""
    bare, rows = Runner("BareTraining", small, threads=1), []
    compiled = Runner("BareTraining", small, threads=1, compiled=True)
    data = Digits().load()
    np.savez(
        folder / "few.npz",
        x_train=data.train_images[:256],
        y_train=data.train_labels[:256],
        x_test=data.test_images[:100],
        y_test=data.test_labels[:100],
    )
    inner = {"interpolated_at": {"epsilon": "8/255", "step_size": "2/255", "steps": 10}}
    for name, objective, epochs in (("erm", "erm", 7), ("interpolated_at", inner, 3 if quick else 4)):
        study = _study(name, [_classifier(name, SMALL, epochs, objective, lr=0.01)])
        study["dataset"] = {"npz": str(folder / "few.npz")}
        for loop in (bare, compiled):
            loop(name, 128, 64)  # warms up, and compiles
        _, manifest = _run("train", folder, study)
        (key,) = manifest["keys"]["classifiers"]
        table = Store(folder / "results").read_table(f"classifiers/{key}/training.parquet", TRAINING).to_pandas()
        later = table.iloc[1:]  # the first epoch warms up
        ours = list(later["images"] / later["seconds"])
        for loop, rival, target in ((bare, "bare loop", 0.97), (compiled, "bare loop, compiled", 0.95)):
            turns = [loop(name, int(images), 64) for images in later["images"]]
            theirs = [images / seconds for images, (seconds, _) in zip(later["images"], turns, strict=True)]
            last = float(later["loss"].iloc[-1]), float(np.mean([losses for _, losses in turns]))
            told = f"mean loss of the last epoch {last[0]:.2f}, of the bare loop {last[1]:.2f} (other weights and random numbers)"
            ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
            figures = float(np.median(ours)), float(np.median(theirs))
            equal = bool(np.isfinite(last).all())
            rows.append(Row(f"training step, {name}", rival, target, ratios, *figures, "images/s", told, equal))
    compiled.close()
    bare.close()
    return rows


@contextlib.contextmanager
def _watched() -> Iterator[dict[str, int]]:
    """The greatest resident memory of any Ray worker while the block lasts, less the pages that processes share."""
    found, stop = {"peak": 0}, threading.Event()

    def look() -> None:
        while not stop.wait(0.2):
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError, ValueError):
                    if (process / "cmdline").read_bytes().startswith(b"ray::"):
                        fields = (process / "statm").read_text().split()
                        found["peak"] = max(found["peak"], (int(fields[1]) - int(fields[2])) * 4096)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def tune(folder: Path, small: str, *, quick: bool) -> list[Row]:
    """A grid of settings as Ray Tune trials, against the same work one after another in one process.

    The trials run one at a time and then one a core. A row of the former begins when the first trial has ended, since the start
    of its actor is the same for few settings and for many. A last row has the peak memory of a worker.
    """
    count, seconds, logs = 40 if quick else 200, dict[int, float](), dict[int, Path]()
    for at_once in (1, CORES):
        study = _study(
            "tune",
            [_classifier("small", SMALL, 5)],
            points={"count": 50},
            executions=[5],
            defenses=["none", {"mi_ol": {"lam": {"linspace": [0.1, 0.9, count]}}}],
            resources={"trials_at_once": at_once, "block": {"cpus": 1, "points": 50}},
            precision=FAST,
        )
        _put(small, folder / f"tune-{at_once}")
        logs[at_once] = folder / f"tune-{at_once}.jsonl"
        with _watched() as seen:
            _, manifest = _run("sweep", folder, study, f"tune-{at_once}", "--log", str(logs[at_once]))
        seconds[at_once] = manifest["last_run"]["seconds"]["sweep"]
    store, trials, alone = _one_after_another(folder / "alone", study, Path(small))
    rows = []
    walls = {
        f"{count} settings, {at_once} at a time": (at_once, wall, 1.10, alone) for at_once, wall in seconds.items()
    }
    after = f"{count} settings, 1 at a time, after the first"
    walls[after] = (1, _after_the_first(logs[1]), 1.05, alone * (count - 1) / count)
    for what, (at_once, wall, target, alone) in walls.items():
        same = _same_rows(Store(folder / f"tune-{at_once}"), store, trials)
        rows.append(
            Row(
                f"Ray Tune, {what}",
                "the sum in one process",
                target,
                [wall / alone],
                wall,
                alone,
                "s",
                f"{same} of {len(trials)} outputs equal bit for bit",
                same == len(trials),
                True,
            )
        )
    rows.append(
        Row(
            "peak memory of a worker",
            "1.5 GB",
            1.0,
            [seen["peak"] / 1.5e9],
            seen["peak"] / 1e6,
            1500,
            "MB",
            "resident, less shared pages",
            seen["peak"] > 0,
            True,
        )
    )
    return rows


def _after_the_first(log: Path) -> float:
    """Seconds from the end of the first trial to the end of the last one, by a run's log."""
    lines = map(json.loads, log.read_text().splitlines())
    ends = [datetime.fromisoformat(line["time"]) for line in lines if line["event"] == "trial done"]
    return (max(ends) - min(ends)).total_seconds()


def _one_after_another(folder: Path, study: dict[str, Any], weights: Path) -> tuple[Store, list[OutputWork], float]:
    """(store, works, seconds) of the settings of a study, computed one after another in this process.

    weights: the folder of its trained classifier. The attack and F's own outputs come first, outside the time.
    """
    import torch

    torch.set_num_threads(1)
    loaded = prepare(Sweep.model_validate(study))
    plan, store = loaded.plan(), Store(folder, create=True)
    content = (weights / "model.safetensors").read_bytes()
    key = plan.classifiers[0].key
    bench = Workbench(loaded.data(str(folder), {key: (plan.classifiers[0].description, content)}))
    works: list[Any] = [*plan.attacks, *(w for w in plan.outputs if w.component is None)]
    for work in works:
        bench.compute(work, 0, 50)
    trials = [work for work in plan.outputs if work.component is not None]
    began = time.perf_counter()
    for work in trials:
        bench.compute(work, 0, 50)
    return store, trials, time.perf_counter() - began


def _same_rows(first: Store, second: Store, works: list[OutputWork]) -> int:
    same = 0
    for work in works:
        tables = []
        for store in (first, second):
            (block,) = store.blocks(work.kind, work.key)
            tables.append(store.read_block(work.kind, work.key, block)[0])
        same += tables[0].equals(tables[1])
    return same


def workers(folder: Path, small: str, *, quick: bool) -> list[Row]:
    """Blocks of an attack on two workers against one worker with one thread."""
    count, found = (400 if quick else 500), {}
    for cores in (1, CORES):
        study = _study(
            f"workers-{cores}",
            [_classifier("small", SMALL, 5)],
            points={"count": count},
            seed=1,
            precision=FAST,
            attacks=[{"pgd": {"steps": [20]}, "epsilon": "4/255"}],
            # A worker that asks for more than half of the machine is alone on it.
            resources={"block": {"cpus": 1 if cores > 1 else CORES - 0.5, "points": 50}},
        )
        study["classifiers"][0]["seed"] = 0
        _put(small, folder / f"workers-{cores}")
        _, manifest = _run("attack", folder, study, f"workers-{cores}")
        store = Store(folder / f"workers-{cores}")
        (key,) = manifest["keys"]["adversarial"]
        blocks = [store.read_block("adversarial", key, block) for block in store.blocks("adversarial", key)]
        found[cores] = (sum(f["seconds"] for _, f in blocks), [table for table, _ in blocks], manifest)
    walls = {cores: _wall(Store(folder / f"workers-{cores}"), found[cores][2]) for cores in found}
    same = all(a.equals(b) for a, b in zip(found[1][1], found[CORES][1], strict=True))
    return [
        Row(
            f"{CORES} workers",
            "one worker, one thread",
            1.8,
            [walls[1] / walls[CORES]],
            count / walls[CORES],
            count / walls[1],
            "points/s",
            "rows equal bit for bit" if same else "rows differ",
            same,
        )
    ]


def study(folder: Path, small: str, *, quick: bool) -> list[Row]:
    """A whole study, from the command to its figures, against its counted passes in bare loops on all cores."""
    points, settings = (200, 5) if quick else (400, 12)
    document = _study(
        "study",
        [_classifier("small", SMALL, 5)],
        points={"count": points},
        precision=FAST,
        executions=[30],
        draws=3,
        attacks=[{"pgd": {"steps": [20]}, "epsilon": "4/255"}],
        defenses=["none", {"mi_ol": {"lam": {"linspace": [0.2, 0.8, settings]}}}],
        resources={"block": {"cpus": 1, "points": 100}},
    )
    _put(small, folder / "study")
    wall, manifest = _run("sweep", folder, document, "study")
    counted = manifest["last_run"]["counted_passes"]
    forward, backward = (sum(n for what, n in counted.items() if what.endswith(way)) for way in ("forward", "backward"))
    loops = {name: Runner(name, small, workers=CORES, threads=1) for name in ("OurForward", "BarePgd")}
    images, steps = 100 * CORES, 4
    for_forward, for_gradients = [], []
    for turn in range(4):
        seconds = loops["OurForward"](images, 30)[0], loops["BarePgd"](images, steps, 4 / 255)[0]
        if turn:  # The first one warms up.
            for_forward.append(seconds[0] / (30 * images))
            for_gradients.append(seconds[1] / (steps * images))
    for loop in loops.values():
        loop.close()
    bare = [(forward - backward) * f + backward * g for f, g in zip(for_forward, for_gradients, strict=True)]
    states = [
        row["state"] for row in Store(folder / "study").read_table("studies/study/cells.parquet", CELLS).to_pylist()
    ]
    stages = ", ".join(f"{name} {took:.0f}" for name, took in manifest["last_run"]["seconds"].items())
    told = f"{states.count('done')} of {len(states)} cells; seconds by stage: {stages}"
    ratios, all_done = [wall / each for each in bare], states.count("done") == len(states)
    return [
        Row(
            "study, wall",
            "its passes in bare loops",
            1.25,
            ratios,
            wall,
            float(np.median(bare)),
            "s",
            told,
            all_done,
            True,
        )
    ]


def _put(classifier: str, store: Path) -> None:
    """A store that holds the classifier already."""
    Store(store, create=True)
    shutil.copytree(classifier, store / "classifiers" / Path(classifier).name)


def _wall(store: Store, manifest: dict[str, Any]) -> float:
    """Seconds from the first block's start to the last one's end, by what the blocks say of themselves."""
    (key,) = manifest["keys"]["adversarial"]
    spans = []
    for block in store.blocks("adversarial", key):
        ended = (Path(store.root) / block.path).stat().st_mtime
        spans.append((ended - store.block_facts(block)["seconds"], ended))
    return max(end for _, end in spans) - min(start for start, _ in spans)
