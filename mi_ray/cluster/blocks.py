"""Blocks of points as Ray tasks: attacks, and F's own outputs."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import ray
import torch

from mi_ray.progress import Stage
from mi_ray.study import load_plugins
from mi_ray.work import AttackWork
from mi_ray.workbench import Work, Workbench


@lru_cache(maxsize=1)
def _cached(data_id: str, fetch: Callable[[], Any]) -> Workbench:
    return Workbench(fetch())


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


def workbench(reference: Any, threads: int) -> Workbench:
    """This process's workbench for the study whose data is behind the reference; unpacked once a process."""
    torch.set_num_threads(threads)
    return _cached(reference.hex(), _Fetch(reference))


@ray.remote
def compute_block(reference: list[Any], plugins: Sequence[str], threads: int, work: Work, start: int, stop: int) -> int:
    """Compute and store one block; returns its number of points."""
    load_plugins(plugins)
    bench = workbench(reference[0], threads)
    return bench.compute(work, start, stop)


def run_blocks(
    reference: Any,
    plugins: Sequence[str],
    blocks: Sequence[tuple[Work, int, int]],
    cpus: float,
    gpus: float,
    running: Stage,
) -> dict[int, Exception]:
    """Run blocks as tasks until all are stored or have failed; returns position -> error of those that failed.

    A lost worker's block runs again.
    """
    threads = max(1, int(cpus))
    pending: dict[Any, int] = {}
    for position, (work, start, stop) in enumerate(blocks):
        what = f"attack {work.method}" if isinstance(work, AttackWork) else f"outputs of {(work.component or 'F')[0]}"
        task = compute_block.options(num_cpus=cpus, num_gpus=gpus, max_retries=3, name=f"{what} {start}-{stop}")
        pending[task.remote([reference], plugins, threads, work, start, stop)] = position
    failures: dict[int, Exception] = {}
    while pending:
        done, _ = ray.wait(list(pending), timeout=1.0)
        for finished in done:
            position = pending.pop(finished)
            try:
                running.advance(ray.get(finished))
            except ray.exceptions.RayTaskError as error:
                failures[position] = error.cause if isinstance(error.cause, Exception) else error
            except ray.exceptions.RayError as error:
                failures[position] = error
        running.advance(0)
    return failures
