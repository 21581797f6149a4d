"""A cluster that is simulated, for the real code that runs blocks: nodes that come and go, memory, hanging work.

Real: `mi_ray.cluster.blocks.Blocks`, its rules, a study's plan cut into blocks by the workbench, and Ray's exceptions.
Simulated, in a time of its own: Ray's placement (first come, first served, on the first node with room; a block that
asks for a whole node waits for an empty one), how long a block takes, memory, and everything that goes wrong.
"""

import heapq
import itertools
import random
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import exceptions

from mi_ray.cluster.worker import Item


@dataclass
class Trouble:
    """What is wrong with a block: how often it kills its worker, hangs or fails, and the memory that it needs."""

    kills: int = 0
    hangs: int = 0
    error: Exception | None = None
    memory: float = 1.0


@dataclass(eq=False)
class Node:
    """cpus: slots; memory: of all that runs on it together."""

    name: str
    cpus: int = 4
    memory: float = 8.0
    running: "list[Task]" = field(default_factory=list)

    def room(self, task: "Task") -> bool:
        """Whether the task can start here now."""
        if task.alone or any(other.alone for other in self.running):
            return not self.running
        return len(self.running) < self.cpus


@dataclass(eq=False)
class Task:
    """An attempt at a block."""

    item: Item
    turn: tuple[int, int]
    alone: bool
    node: Node | None = None
    ended: bool = False
    outcome: dict[str, Any] | Exception = field(default_factory=dict)


class SimulatedCluster:
    """See `mi_ray.cluster.blocks.Cluster`. trouble: position of a block -> what is wrong with it."""

    def __init__(self, nodes: int, seed: int, trouble: dict[int, Trouble] | None = None) -> None:
        self.random, self.trouble, self.time = random.Random(seed), trouble or {}, 0.0
        self.nodes = [Node(f"node-{number}") for number in range(nodes)]
        self._events: list[tuple[float, int, str, Any]] = []
        self._number = itertools.count()
        self._queue, self._begun, self._done = deque[Task](), list[dict[str, Any]](), list[Task]()
        self.log: list[Task] = []  # every attempt that began
        self.stored = Counter[int]()  # position of a block -> how often it was computed to its end
        self.slept = 0.0

    def at(self, when: float, what: str, about: Any = None) -> None:
        """Something that is to happen: "lose" or "join" a node (by number), or the end of a task."""
        heapq.heappush(self._events, (when, next(self._number), what, about))

    def submit(self, item: Item, turn: tuple[int, int], alone: bool) -> Hashable:
        """See `Cluster`."""
        task = Task(item, turn, alone)
        self._queue.append(task)
        return task

    def wait(self, tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """See `Cluster`: time goes on to the next end of a task, or by so many seconds."""
        self._place()
        until = self.time + seconds
        while not self._done and self._events and self._events[0][0] <= until:
            self.time, _, what, about = heapq.heappop(self._events)
            getattr(self, f"_{what}")(about)
            self._place()
        if not self._done:
            self.time = until
        done, self._done = self._done, []
        return done

    def result(self, task: Any) -> dict[str, Any]:
        """See `Cluster`."""
        if isinstance(task.outcome, Exception):
            raise task.outcome
        return dict(task.outcome)

    def cancel(self, task: Any) -> None:
        """See `Cluster`."""
        self._stop(task, exceptions.TaskCancelledError())

    def begun(self) -> Sequence[dict[str, Any]]:
        """See `Cluster`."""
        found, self._begun = self._begun, []
        return found

    def passes(self) -> Sequence[dict[str, Any]]:
        """See `Cluster`: half of a block's points, one pass each, from its begin on."""
        return [{"turn": task.turn, "passes": (task.item[2] - task.item[1]) / 2} for task in self.running()]

    def running(self) -> list[Task]:
        """The attempts that run now."""
        return [task for node in self.nodes for task in node.running]

    def now(self) -> float:
        """See `Cluster`."""
        return self.time

    def _place(self) -> None:
        waiting, self._queue = self._queue, deque()
        free = sum(node.cpus - len(node.running) for node in self.nodes)
        while waiting:
            task = waiting.popleft()
            node = next((node for node in self.nodes if node.room(task)), None) if free > 0 else None
            if node is None:
                self._queue.append(task)
                if free <= 0:
                    self._queue.extend(waiting)
                    return
            else:
                self._start(task, node)
                free -= node.cpus if task.alone else 1

    def _start(self, task: Task, node: Node) -> None:
        task.node = node
        node.running.append(task)
        self.log.append(task)
        self._begun.append({"turn": task.turn, "node": node.name})
        found, attempt = self.trouble.get(task.turn[0], Trouble()), task.turn[1]
        seconds = self.random.uniform(5, 15)
        if attempt <= found.kills:
            self.at(self.time + seconds / 2, "end", (task, exceptions.WorkerCrashedError()))
        elif attempt <= found.kills + found.hangs:
            return  # for ever
        else:
            self.at(self.time + seconds, "end", (task, found.error))
        self.slept += seconds
        self._watch_memory(node)

    def _watch_memory(self, node: Node) -> None:
        """As Ray's memory monitor does: the one that came last is killed."""
        while sum(self.trouble.get(task.turn[0], Trouble()).memory for task in node.running) > node.memory:
            self._stop(node.running[-1], exceptions.OutOfMemoryError("killed by the memory monitor"))

    def _end(self, about: tuple[Task, Exception | None]) -> None:
        task, error = about
        _, start, stop = task.item
        if error is not None:
            self._stop(task, error if isinstance(error, exceptions.RayError) else _task_error(error))
        elif not task.ended:
            self.stored[task.turn[0]] += 1
            self._stop(task, {"points": stop - start, "forward": 1, "backward": 0, "seconds": 1.0})

    def _stop(self, task: Task, outcome: dict[str, Any] | Exception) -> None:
        if task.ended:
            return
        task.ended, task.outcome = True, outcome
        if task.node is not None:
            task.node.running.remove(task)
        else:
            self._queue.remove(task)
        self._done.append(task)

    def _lose(self, number: int) -> None:
        if self.nodes:
            node = self.nodes.pop(number % len(self.nodes))
            for task in list(node.running):
                self._stop(task, exceptions.NodeDiedError("the node died"))

    def _join(self, number: int) -> None:
        self.nodes.append(Node(f"late-{number}"))


def _task_error(cause: Exception) -> Exception:
    """What `ray.get` raises for a task that raised."""
    return exceptions.RayTaskError("compute_block", "the traceback", cause).as_instanceof_cause()
