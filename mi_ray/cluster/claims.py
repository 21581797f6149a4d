"""Who computes what now. A process of its own, which trials wait for: it imports nothing that they do.

So it is told by the driver which trials have ended, and knows them by their names: to take an actor's handle, by which it
could see that for itself, loads the actor's class, and with it torch and Ray Tune.
"""

import asyncio
from collections import Counter
from typing import Any

import ray

from mi_ray.cluster.board import here


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
