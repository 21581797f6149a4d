"""What a worker process does for a study: keep a workbench on its data, and compute blocks with it.

Trials import this module and the driver's modules do not stand behind it, so that a worker starts quickly.
"""

import gc
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

import ray
import torch
from ray.actor import ActorHandle

from mi_ray.config import BlockResources
from mi_ray.device import PassCounter, has_bf16
from mi_ray.own_code import OwnModules
from mi_ray.study.precision import Comparison, compare
from mi_ray.study.results import Item, StudyData
from mi_ray.study.workbench import Workbench, WorkerLimits

TOLD_EVERY = 2.0  # Seconds between two words of a block on how far it is.
Boxed = list[ray.ObjectRef]  # A reference in a list, which Ray hands on without fetching what is behind it.


def limits_of(block: BlockResources) -> WorkerLimits:
    """What a worker of that size may use of its machine."""
    share = min(1.0, block.gpus) if block.gpus else min(1.0, block.cpus / (os.cpu_count() or 1))
    return WorkerLimits(max(1, int(block.cpus)), share, block.memory_budget)


_KEPT: dict[tuple[str, WorkerLimits], Workbench] = {}  # This process's workbench, and what it is of.


def workbench(data: Boxed, limits: WorkerLimits) -> Workbench:
    """This process's workbench for the study whose data is behind the reference; it is unpacked once a process."""
    torch.set_num_threads(1)  # Threads work side by side on whole batches: see `batches.side_by_side`.
    name = (data[0].hex(), limits)
    if name not in _KEPT:
        _KEPT.clear()
        gc.collect()  # A workbench and its caches refer to each other, so that only the garbage collector frees them.
        found: StudyData = ray.get(data[0])
        _KEPT[name] = Workbench(found, limits)
    return _KEPT[name]


def where() -> dict[str, object]:
    """Which node and process this is, for events."""
    return {"node": ray.get_runtime_context().get_node_id()[:12], "pid": os.getpid()}


def lasted(began: float) -> dict[str, float]:
    """When something began and ended, in seconds since the epoch, and how long it took, for events."""
    ended = time.time()
    return {"began": round(began, 3), "ended": round(ended, 3), "seconds": round(ended - began, 3)}


@contextmanager
def _telling(passes: PassCounter, progress: ActorHandle, turn: tuple[int, int]) -> Iterator[None]:
    """Tell now and then how many passes a block has taken so far: one of a strong attack takes minutes."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(TOLD_EVERY):
            progress.tell.remote("passes", {"turn": turn, "passes": passes.so_far()})

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    try:
        yield
    finally:
        over.set()
        telling.join()


@ray.remote(max_retries=0)
def compute_block(
    data: Boxed, own: OwnModules, limits: WorkerLimits, item: Item, progress: ActorHandle, turn: tuple[int, int]
) -> Mapping[str, object]:
    """Compute and store one block; returns what was done, the seconds, and where it ran. turn: which attempt this is."""
    began = time.time()
    progress.tell.remote("block", {"turn": turn, **where()})
    own.load()
    bench = workbench(data, limits)
    with _telling(bench.passes, progress, turn):
        done = bench.compute(*item)
    return {**asdict(done), **lasted(began), **where()}


@ray.remote
def compare_precisions(
    data: Boxed, own: OwnModules, limits: WorkerLimits, key: str, epsilon: float
) -> list[Comparison] | None:
    """One piece of what `precision: auto` looks at for a classifier; None where the device has no bfloat16."""
    own.load()
    bench = workbench(data, limits)
    return compare(bench, key, epsilon) if has_bf16(bench.device) else None
