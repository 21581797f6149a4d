"""How time, memory and room grow with a study's size, one axis at a time: `python -m benchmarks.growth`.

Every size is a study of its own, run by the real command into an empty store: a small network with initial weights on random
images, PGD of two steps, Gaussian noise. Of each run the passes' seconds (the blocks', summed), the processor seconds of the
command that drives them, the most memory of that command and of a worker, and the room of the store are kept. The exponent
is the slope of a line through the logarithms of the larger half of an axis: 1 where a quantity doubles with the size, 0 where
it does not grow. Writes benchmarks/growth.json and growth.png. The machine should have nothing else to do.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from mi_ray.classifiers import build_classifier, weights_bytes

HERE = Path(__file__).parent
BASE = {"points": 500, "settings": 4, "executions": 10, "classes": 10, "side": 32}
AXES = {  # sizes of each axis, beside the base of the others
    "points": (500, 1000, 2000, 4000, 8000),
    "settings": (4, 8, 16, 32, 64),
    "executions": (10, 20, 40, 80),
    "classes": (10, 100, 1000),
    "side": (32, 64, 128, 224),
}
NAMES = {
    "passes": "seconds of passes",
    "driver_seconds": "processor seconds of the driver",
    "driver_memory": "most memory of the driver, MiB",
    "worker_memory": "most memory of a worker, MiB",
    "store": "the store, MiB",
}
DESCRIPTION: dict[str, Any] = {
    "architecture": "cnn_small",
    "arguments": {"width": 4},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
}
MIB = 2**20


def sweep(folder: Path, size: Mapping[str, int]) -> Path:
    """Write the data, the weights and the sweep file of a study of this size; returns the file."""
    side, classes, points = size["side"], size["classes"], size["points"]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (points, side, side, 3), np.uint8)
    labels = np.arange(points) % classes
    pool = max(classes, 100)
    train = {"x_train": rng.integers(0, 256, (pool, side, side, 3), np.uint8), "y_train": np.arange(pool) % classes}
    np.savez(folder / "images.npz", x_test=images, y_test=labels, x_train=train["x_train"], y_train=train["y_train"])
    torch.manual_seed(0)
    network = build_classifier({**DESCRIPTION, "classes": classes})
    (folder / "weights.safetensors").write_bytes(weights_bytes(network))
    made = {
        "name": "growth",
        "dataset": {"npz": {"path": str(folder / "images.npz")}},
        "points": {"count": points},
        "classifiers": [
            {
                "name": "f",
                "architecture": {"cnn_small": DESCRIPTION["arguments"]},
                "weights": str(folder / "weights.safetensors"),
                "mean": DESCRIPTION["mean"],
                "std": DESCRIPTION["std"],
            }
        ],
        "attacks": [{"pgd": {"steps": 2, "step_size": 0.01}, "epsilon": "8/255"}],
        "defenses": [
            "none",
            {"gaussian_noise": {"sigma": [round(0.01 * (i + 1), 2) for i in range(size["settings"])]}},
        ],
        "executions": size["executions"],
        "draws": 1,
        "precision": "fp32",
        "checks": "cheap",
        "resources": {"block": {"points": 100}},
        "figures": ["frontier_table"],
    }
    (folder / "growth.yaml").write_text(yaml.safe_dump(made))
    return folder / "growth.yaml"


class WorkerMemory(threading.Thread):
    """Looks four times a second at what the workers of the study take; `most` is the most that one has taken, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self.ended = 0, threading.Event()

    def run(self) -> None:
        """Look until `ended` is set."""
        page = os.sysconf("SC_PAGE_SIZE")
        while not self.ended.wait(0.25):
            for place in Path("/proc").glob("[0-9]*"):
                try:
                    if (place / "cmdline").read_bytes().startswith(b"ray::growth"):
                        self.most = max(self.most, page * int((place / "statm").read_text().split()[1]))
                except (OSError, IndexError):  # It has ended meanwhile.
                    continue


def measured(size: Mapping[str, int]) -> dict[str, float]:
    """Run the study of this size; returns its numbers by the keys of `NAMES`. Raises RuntimeError where the run fails."""
    with tempfile.TemporaryDirectory() as name:
        folder, memory = Path(name), WorkerMemory()
        file = sweep(folder, size)
        arguments = ["sweep", str(file), "--out", str(folder / "store"), "--log", str(folder / "log.jsonl")]
        memory.start()
        began = time.perf_counter()
        with (folder / "said.txt").open("w") as said:
            # Waited for by hand, since only this call tells what this one process has taken.
            actions = [(os.POSIX_SPAWN_DUP2, said.fileno(), 1), (os.POSIX_SPAWN_DUP2, said.fileno(), 2)]
            command = [sys.executable, "-m", "mi_ray.cli", *arguments]
            started = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
            _, status, used = os.wait4(started, 0)
        wall = time.perf_counter() - began
        memory.ended.set()
        if os.waitstatus_to_exitcode(status) != 0:
            raise RuntimeError(f"the study of {dict(size)} failed:\n{(folder / 'said.txt').read_text()}")
        events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return {
            "wall": wall,
            "passes": sum(each["seconds"] for each in events if each["event"] in ("block done", "trial step")),
            "driver_seconds": used.ru_utime + used.ru_stime,
            "driver_memory": used.ru_maxrss / 1024,
            "worker_memory": memory.most / MIB,
            "store": sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file()) / MIB,
        }


def exponent(sizes: np.ndarray, values: np.ndarray) -> float:
    """The slope of log(value) against log(size) over the larger half of the sizes, at least two of them."""
    first = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[first:]), np.log(np.maximum(values[first:], 1e-9)), 1)[0])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each axis and quantity, with its values from the smallest to the largest size, and the exponent."""
    lines = ["| axis | sizes | quantity | values | exponent |", "| --- | --- | --- | --- | --- |"]
    for axis in AXES:
        own = sorted((row for row in rows if row["axis"] == axis), key=lambda row: row["size"])
        sizes = np.array([row["size"] for row in own], float)
        for key, said in NAMES.items() if len(own) > 1 else ():
            values = np.array([row[key] for row in own])
            shown = ", ".join(f"{value:.3g}" for value in values)
            named = ", ".join(f"{size:.0f}" for size in sizes)
            lines.append(f"| {axis} | {named} | {said} | {shown} | {exponent(sizes, values):.2f} |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """A panel for each axis: every quantity against the size, each as a multiple of what it is at the smallest one."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(AXES), figsize=(3 * len(AXES), 3), layout="constrained", squeeze=False)
    for panel, axis in zip(panels[0], AXES, strict=True):
        own = sorted((row for row in rows if row["axis"] == axis), key=lambda row: row["size"])
        for key, said in NAMES.items() if own else ():
            sizes, values = [row["size"] for row in own], np.array([row[key] for row in own])
            panel.loglog(sizes, values / values[0], "o-", markersize=3, label=said)
        panel.loglog(AXES[axis], np.array(AXES[axis]) / AXES[axis][0], "k:", linewidth=0.8, label="in proportion")
        panel.set_xlabel(axis)
        panel.set_xticks(AXES[axis], [str(size) for size in AXES[axis]])
        panel.minorticks_off()
    panels[0][0].set_ylabel("times the smallest")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize="small")
    figure.savefig(file, dpi=80)


def main() -> None:
    """Measure what growth.json does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "growth.json")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.out.read_text()) if given.out.exists() else []
    for axis in given.axes:
        for size in AXES[axis]:
            if any((row["axis"], row["size"]) == (axis, size) for row in rows):
                continue
            rows.append({"axis": axis, "size": size, **measured({**BASE, axis: size})})
            given.out.write_text(json.dumps(rows, indent=1) + "\n")
            print(f"{axis} {size}: {rows[-1]['wall']:.0f} s", flush=True)
    print(table(rows))
    draw(rows, given.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
