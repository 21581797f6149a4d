"""Two small actors beside the driver: one that running work tells how far it is, one that keeps trials off each other.

No result depends on either of them: what they forget is shown to nobody, or computed twice.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

News = list[tuple[str, dict[str, Any]]]  # What happened, and facts about it.


@ray.remote(num_cpus=0, max_restarts=-1)
class ProgressActor:
    """Knows how far the running work is: images of trainings, finished epochs, blocks that have begun.

    It is also where the actors of a run of trials wait for one another.
    """

    def __init__(self) -> None:
        self._images: dict[str, int] = {}
        self._news: News = []
        self._stopped: dict[str, str] = {}
        self._come: dict[str, int] = {}
        self._complete: dict[str, asyncio.Event] = {}

    def report(self, key: str, images: int) -> None:
        """Note how many images a classifier's training has gone through, over all epochs."""
        self._images[key] = images

    def tell(self, what: str, facts: dict[str, object]) -> None:
        """Note that something has happened, for instance that an epoch has ended or a block has begun."""
        self._news.append((what, facts))

    def stopped(self, key: str, why: str) -> None:
        """Note that a training has stopped by itself, and why."""
        self._stopped[key] = why

    def why(self, key: str) -> str | None:
        """Why a training stopped by itself. The answer is given once, so that a later training does not get it."""
        return self._stopped.pop(key, None)

    async def await_all(self, run: str, count: int, seconds: float) -> None:
        """Return once that many have called this for the run, or after these seconds; from then on nobody waits."""
        self._come[run] = self._come.get(run, 0) + 1
        complete = self._complete.setdefault(run, asyncio.Event())
        if self._come[run] >= count:
            complete.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(complete.wait(), seconds)
        complete.set()

    def read(self) -> tuple[dict[str, int], News]:
        """Images so far of each classifier, by its key, and what is new since this was last called."""
        news, self._news = self._news, []
        return self._images, news


@ray.remote(num_cpus=0)
class BlockLocks:
    """One lock a block: a trial that needs a block which another one computes waits for it, and then finds it stored."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, asyncio.Event]] = {}
        self._ended: Counter[str] = Counter()

    async def acquire(self, block: str, trial: str) -> None:
        """Wait until nobody holds the block's lock; the trial then holds it until `release`, or until it has ended."""
        before = self._ended[trial]
        while block in self._held:
            await self._held[block][1].wait()
        if self._ended[trial] == before:  # A trial that ended while it waited would never release the lock.
            self._held[block] = trial, asyncio.Event()

    async def release(self, block: str, trial: str) -> None:
        """Let the next trial have the lock. Nothing happens when this trial does not hold it any longer."""
        if block in self._held and self._held[block][0] == trial:
            self._held.pop(block)[1].set()

    async def ended(self, trial: str) -> None:
        """Release all that a trial holds: it has ended, or its actor has died and Tune may begin it again."""
        self._ended[trial] += 1
        for block in [block for block, (holder, _) in self._held.items() if holder == trial]:
            await self.release(block, trial)


def _here() -> Mapping[str, object]:
    """Options that place an actor on the driver's own node, so that it is lost only together with the driver."""
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)}


def start_progress() -> ActorHandle:
    """Start a `ProgressActor` on the driver's own node."""
    return ProgressActor.options(**_here()).remote()  # type: ignore[attr-defined]


def start_locks() -> ActorHandle:
    """Start `BlockLocks` on the driver's own node."""
    return BlockLocks.options(**_here()).remote()  # type: ignore[attr-defined]


def read_progress(progress: ActorHandle) -> tuple[dict[str, int], News]:
    """What a `ProgressActor` knows (see its `read`); nothing while it cannot be reached."""
    with contextlib.suppress(ray.exceptions.RayError):
        return ray.get(progress.read.remote(), timeout=10)
    return {}, []
