"""Where running work tells the driver how far it is, and trials meet. No result depends on it: what it forgets is not shown."""

import asyncio
import contextlib
from collections import Counter
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy


@ray.remote(num_cpus=0, max_restarts=-1)
class Board:
    """Images that trainings have gone through, their finished epochs, why they stopped, and which blocks have begun."""

    def __init__(self) -> None:
        self._images: dict[str, int] = {}
        self._news: list[tuple[str, dict[str, Any]]] = []
        self._stopped: dict[str, str] = {}
        self._come: dict[str, int] = {}
        self._complete: dict[str, asyncio.Event] = {}

    def report(self, key: str, images: int) -> None:
        """A classifier has gone through that many images, over all epochs."""
        self._images[key] = images

    def tell(self, what: str, facts: dict[str, Any]) -> None:
        """Something happened: an epoch ended, a block began."""
        self._news.append((what, facts))

    def stopped(self, key: str, why: str) -> None:
        """A training stopped by itself."""
        self._stopped[key] = why

    def why(self, key: str) -> str | None:
        """Why a training stopped by itself, once."""
        return self._stopped.pop(key, None)

    async def await_all(self, run: str, count: int, seconds: float) -> None:
        """Return once that many have asked for this run, or after these seconds: then nobody waits any longer."""
        self._come[run] = self._come.get(run, 0) + 1
        complete = self._complete.setdefault(run, asyncio.Event())
        if self._come[run] >= count:
            complete.set()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(complete.wait(), seconds)
        complete.set()

    def read(self) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
        """Images so far, over all classifiers, and what is new since it was last read."""
        news, self._news = self._news, []
        return sum(self._images.values()), news


def here() -> NodeAffinitySchedulingStrategy:
    """Places an actor on the driver's own node, so that it is lost only with the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def board() -> Any:
    """A board on the driver's own node."""
    return Board.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]


def read(of: Any) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
    """What a board says; nothing while it cannot be reached."""
    with contextlib.suppress(ray.exceptions.RayError):
        return ray.get(of.read.remote(), timeout=10)
    return 0, []


@ray.remote(num_cpus=0)
class Claims:
    """Who computes which piece of work now: a trial that needs the same piece waits for it."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[str, asyncio.Event]] = {}
        self._ended: Counter[str] = Counter()

    async def take(self, piece: str, trial: str) -> None:
        """Wait until nobody holds the piece; the trial then holds it until `release`, or until it has ended."""
        before = self._ended[trial]
        while piece in self._held:
            await self._held[piece][1].wait()
        if self._ended[trial] == before:  # else it waited in vain: nobody would release the piece
            self._held[piece] = trial, asyncio.Event()

    async def release(self, piece: str, trial: str) -> None:
        """Let the next one have the piece; nothing when the trial does not hold it any longer."""
        if piece in self._held and self._held[piece][0] == trial:
            self._held.pop(piece)[1].set()

    async def ended(self, trial: str) -> None:
        """A trial has ended, or its actor has died and Tune may begin it again: it holds and awaits nothing any longer."""
        self._ended[trial] += 1
        for piece in [piece for piece, (holder, _) in self._held.items() if holder == trial]:
            await self.release(piece, trial)


def claims() -> Any:
    """Claims on the driver's own node."""
    return Claims.options(scheduling_strategy=here()).remote()  # type: ignore[attr-defined]
