"""Blocks of points as Ray tasks: attacks, and F's own outputs."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import ray
import torch

from mi_ray.config import BlockResources
from mi_ray.precision import decide
from mi_ray.progress import Stage
from mi_ray.study import load_plugins
from mi_ray.work import AttackWork
from mi_ray.workbench import Done, Engine, Work, Workbench


def engine_of(block: BlockResources) -> Engine:
    """What a worker of that size may use of its machine."""
    share = min(1.0, block.gpus) if block.gpus else min(1.0, block.cpus / (os.cpu_count() or 1))
    return Engine(max(1, int(block.cpus)), share, block.memory_budget)


@lru_cache(maxsize=1)
def _cached(data_id: str, engine: Engine, fetch: Callable[[], Any]) -> Workbench:
    return Workbench(fetch(), engine)


class _Fetch:
    """Fetches the study's data on a miss; equal to any other, so that the cache looks at the id alone."""

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def __call__(self) -> Any:
        return ray.get(self.reference)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Fetch)

    def __hash__(self) -> int:
        return 0


def workbench(reference: Any, engine: Engine) -> Workbench:
    """This process's workbench for the study whose data is behind the reference; unpacked once a process."""
    torch.set_num_threads(1)  # threads work side by side on whole batches: see `engine.side_by_side`
    return _cached(reference.hex(), engine, _Fetch(reference))


@ray.remote
def compute_block(
    reference: list[Any], plugins: Sequence[str], engine: Engine, work: Work, start: int, stop: int
) -> Done:
    """Compute and store one block; returns what was done."""
    load_plugins(plugins)
    return workbench(reference[0], engine).compute(work, start, stop)


@ray.remote
def decide_precision(reference: list[Any], plugins: Sequence[str], engine: Engine, key: str) -> dict[str, Any]:
    """The decision of `precision: auto` for a classifier: see `precision.decide`."""
    load_plugins(plugins)
    return decide(workbench(reference[0], engine), key)


@dataclass
class Ran:
    """What became of blocks: passes of those that are stored, as counted; position -> error of those that failed."""

    forward: int = 0
    backward: int = 0
    failures: dict[int, Exception] = field(default_factory=dict)


def run_blocks(
    reference: Any,
    plugins: Sequence[str],
    blocks: Sequence[tuple[Work, int, int]],
    size: BlockResources,
    running: Stage,
) -> Ran:
    """Run blocks as tasks until all are stored or have failed. A lost worker's block runs again."""
    engine = engine_of(size)
    pending: dict[Any, int] = {}
    for position, (work, start, stop) in enumerate(blocks):
        what = f"attack {work.method}" if isinstance(work, AttackWork) else f"outputs of {(work.component or 'F')[0]}"
        task = compute_block.options(
            num_cpus=size.cpus, num_gpus=size.gpus, max_retries=3, name=f"{what} {start}-{stop}"
        )
        pending[task.remote([reference], plugins, engine, work, start, stop)] = position
    ran = Ran()
    while pending:
        done, _ = ray.wait(list(pending), timeout=1.0)
        for finished in done:
            position = pending.pop(finished)
            try:
                block = ray.get(finished)
                running.advance(block.points)
                ran.forward, ran.backward = ran.forward + block.forward, ran.backward + block.backward
            except ray.exceptions.RayTaskError as error:
                ran.failures[position] = error.cause if isinstance(error.cause, Exception) else error
            except ray.exceptions.RayError as error:
                ran.failures[position] = error
        running.advance(0)
    return ran
