"""Where a run's time went: passes, the store, starts of processes, waiting for the driver, and tails with nothing to do.

A place is what one block runs on, such as a core. Each second of each place is counted once, so that the parts add up to the
run's length times its places.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

PARTS = {
    "passes": "passes",
    "store": "reading and writing the store",
    "training": "training with its starts",
    "starts": "starts of processes",
    "waiting": "waiting between blocks",
    "tails": "tails with nothing to do",
    "driver": "the driver alone",
}


@dataclass(frozen=True)
class Span:
    """A piece of work that a process did: seconds since the epoch, and how many of them it read or wrote the store."""

    worker: Hashable
    began: float
    ended: float
    store: float


def spans_of(facts: Mapping[str, Any]) -> list[Span]:
    """The span that a worker tells of a block or of a trial's step; none where it computed nothing."""
    if not facts.get("began"):
        return []
    worker = facts.get("node"), facts.get("pid")
    return [Span(worker, facts["began"], facts["ended"], facts.get("store", 0.0))]


@dataclass
class Spent:
    """Seconds of places by what they were spent on, see `PARTS`, as far as stages have ended."""

    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + max(0.0, seconds)

    def stage(self, spans: Iterable[Span], began: float, ended: float, places: int) -> None:
        """Take up a stage that ran from `began` to `ended`, seconds since the epoch, on so many places.

        The time of a place before a worker's first span counts as starts, between two spans of one as waiting, and after the last
        one as tails. A worker whose first span begins after another's last is taken to have followed it on its place. A place
        that had no worker counts as tails for the whole stage.
        """
        of_places = _on_places(spans)
        for own in of_places:
            self.add("starts", own[0].began - began)
            for before, after in pairwise(own):
                part = "waiting" if before.worker == after.worker else "starts"
                self.add(part, after.began - before.ended)
            self.add("store", sum(span.store for span in own))
            self.add("passes", sum(span.ended - span.began - span.store for span in own))
            self.add("tails", ended - max(span.ended for span in own))
        self.add("tails", max(0, places - len(of_places)) * (ended - began))

    def whole(self) -> float:
        """Seconds of all parts together."""
        return sum(self.seconds.values())

    def beside(self, spans: Iterable[Span]) -> None:
        """Take up blocks that ran in the places which another stage left free, and which it accounts for."""
        for span in spans:
            self.add("store", span.store)
            self.add("passes", span.ended - span.began - span.store)

    def line(self, seconds: float, places: int) -> str:
        """What a run of so many seconds says at its end; what no stage has taken up, the driver has done alone."""
        whole = seconds * places
        parts = {**self.seconds, "driver": max(0.0, whole - self.whole())}
        shares = [f"{100 * parts[name] / whole:.0f} % {told}" for name, told in PARTS.items() if parts.get(name, 0) > 0]
        return f"{seconds:.1f} s on {places} {'place' if places == 1 else 'places'}: {', '.join(_sorted(shares))}"


def _on_places(spans: Iterable[Span]) -> list[list[Span]]:
    """The spans of each place in order: of a worker, and of those that came after it was done."""
    of_worker: dict[Hashable, list[Span]] = {}
    for span in sorted(spans, key=lambda each: each.began):
        of_worker.setdefault(span.worker, []).append(span)
    found: list[list[Span]] = []
    for own in of_worker.values():  # in the order of their first spans
        free = [place for place in found if max(span.ended for span in place) <= own[0].began]
        if free:
            max(free, key=lambda place: place[-1].ended).extend(own)
        else:
            found.append([*own])
    return found


def _sorted(shares: Sequence[str]) -> list[str]:
    """Shares, the largest first; those that round to nothing are left out."""
    told = [share for share in shares if not share.startswith("0 %")]
    return sorted(told, key=lambda share: -int(share.split()[0]))
