"""How two sides are measured: their processes take turns, and a row says what came out."""

import importlib
import multiprocessing
import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.sides import median

CORES = os.cpu_count() or 1
SPAWN = multiprocessing.get_context("spawn")


def _serve(
    pipe: Connection, name: str, classifier: str, part: tuple[int, int], threads: int, more: dict[str, Any]
) -> None:
    """Make a side in this process, and run it with each tuple of arguments that arrives, until None arrives."""
    module, _, kind = name.partition(":")
    side = getattr(importlib.import_module(module), kind)(classifier, part, threads, **more)
    pipe.send(_peak())
    while (arguments := pipe.recv()) is not None:
        result = side(*arguments)
        pipe.send((result, _peak()))


def _peak() -> int:
    """Bytes of the greatest resident memory of this process.

    They are read from /proc, since getrusage would report the parent's where the parent had more.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


class Runner:
    """A side in `workers` processes, each on its share of the points and with its share of the cores."""

    def __init__(self, kind: str, classifier: str, workers: int = 1, threads: int = CORES, **more: Any) -> None:
        self.pipes: list[Connection] = []
        self.processes = []
        for own in range(workers):
            here, there = SPAWN.Pipe()
            arguments = (there, f"benchmarks.sides:{kind}", classifier, (own, workers), threads, more)
            process = SPAWN.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
        self.idle = [pipe.recv() for pipe in self.pipes]
        self.peaks = self.idle

    @property
    def memory(self) -> int:
        """Bytes that its processes together took at most beyond what they had before the first run."""
        return sum(peak - idle for peak, idle in zip(self.peaks, self.idle, strict=True))

    def __call__(self, *arguments: Any) -> tuple[float, np.ndarray]:
        """(seconds until the last process is done, their results one after another)."""
        began = time.perf_counter()
        for pipe in self.pipes:
            pipe.send(arguments)
        found = [pipe.recv() for pipe in self.pipes]
        seconds = time.perf_counter() - began
        self.peaks = [peak for _, peak in found]
        return seconds, np.concatenate([np.atleast_1d(result) for result, _ in found])

    def close(self) -> None:
        """End the processes."""
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


@dataclass
class Row:
    """One comparison: the ratio of each turn, and the median figures of both sides in the given unit.

    target: the least acceptable ratio, or None where a number is only reported; most: whether it is the greatest instead;
    check: what was compared to see that both sides did the same work; equal: whether they did.
    """

    name: str
    against: str
    target: float | None
    ratios: list[float]
    ours: float
    theirs: float
    unit: str
    check: str
    equal: bool
    most: bool = False
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the median meets the target and the results agreed; None where there is no target."""
        if self.target is None:
            return None
        middle = median(self.ratios)
        return self.equal and (middle <= self.target if self.most else middle >= self.target)


def measure(sides: dict[str, Runner], turns: list[tuple[Any, ...]]) -> dict[str, list[tuple[float, np.ndarray]]]:
    """Run the sides one after another with the arguments of each turn; each side's (seconds, result) of all turns."""
    found: dict[str, list[tuple[float, np.ndarray]]] = {name: [] for name in sides}
    for arguments in turns:
        for name, side in sides.items():
            found[name].append(side(*arguments))
    return found
