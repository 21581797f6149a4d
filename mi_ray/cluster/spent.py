"""Where a run's time went: passes, the store, starts of processes, waiting for the driver, and tails with nothing to do.

A place is what one block runs on, such as a core. Each second of each place is counted once, so that the parts add up to the
run's length times its places.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    _workers: set[Hashable] = field(default_factory=set)  # that stages have had

    def add(self, part: str, seconds: float) -> None:
        """Add seconds to a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + max(0.0, seconds)

    def stage(self, spans: Iterable[Span], began: float, ended: float, places: int) -> None:
        """Take up a stage that ran from `began` to `ended`, seconds since the epoch, on so many places.

        The time of a place before the first span of a worker that no earlier stage had counts as starts, before any other span
        as waiting, and after the last one as tails. A place that had no worker counts as tails for the whole stage.
        """
        spans = sorted(spans, key=lambda each: each.began)
        of_places = _on_places(spans, places)
        new = {span.worker: span for span in reversed(spans) if span.worker not in self._workers}
        self._workers.update(new)
        for own in of_places:
            since = began
            for span in own:
                self.add("starts" if new.get(span.worker) is span else "waiting", span.began - since)
                self.add("store", span.store)
                self.add("passes", span.ended - span.began - span.store)
                since = span.ended
            self.add("tails", ended - since)
        self.add("tails", (places - len(of_places)) * (ended - began))

    def whole(self) -> float:
        """Seconds of all parts together."""
        return sum(self.seconds.values())

    def beside(self, spans: Iterable[Span]) -> None:
        """Take up blocks that ran in the places which another stage left free, and which it accounts for."""
        for span in spans:
            self._workers.add(span.worker)
            self.add("store", span.store)
            self.add("passes", span.ended - span.began - span.store)

    def line(self, seconds: float, places: int) -> str:
        """What a run of so many seconds says at its end; what no stage has taken up, the driver has done alone."""
        whole = seconds * places
        parts = {**self.seconds, "driver": max(0.0, whole - self.whole())}
        shares = [f"{100 * parts[name] / whole:.0f} % {told}" for name, told in PARTS.items() if parts.get(name, 0) > 0]
        return f"{seconds:.1f} s on {places} {'place' if places == 1 else 'places'}: {', '.join(_sorted(shares))}"


def _on_places(spans: Sequence[Span], places: int) -> list[list[Span]]:
    """The spans of each place in order, on no more places than there are. spans: in the order in which they began.

    A worker keeps its place until its last span is over, and one that begins afterwards may follow it there. Only where there
    are more workers than places, of which now one works and now another, does a span take a place whose worker goes on later:
    the one that was free the shortest. Where the clocks of two nodes differ none may be free, and it takes the one that is free
    first.
    """
    last = {span.worker: span for span in spans}
    found: list[list[Span]] = []
    for span in spans:
        free = [own for own in found if own[-1].ended <= span.began]
        left = [own for own in free if own[-1].worker == span.worker or own[-1] is last[own[-1].worker]]
        if not left and len(found) < places:
            found.append([span])
        elif free:
            max(left or free, key=lambda own: (own[-1].worker == span.worker, own[-1].ended)).append(span)
        else:
            min(found, key=lambda own: own[-1].ended).append(span)
    return found


def _sorted(shares: Sequence[str]) -> list[str]:
    """Shares, the largest first; those that round to nothing are left out."""
    told = [share for share in shares if not share.startswith("0 %")]
    return sorted(told, key=lambda share: -int(share.split()[0]))
