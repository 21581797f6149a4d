"""Blocks of points as Ray tasks: attacks, and F's own outputs. What is lost runs again (see `attempts`)."""

import os
import time
from collections import deque
from collections.abc import Callable, Container, Hashable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mi_ray.cluster.actors import read
from mi_ray.cluster.retries import Attempts, Fault, fault_of, given_up
from mi_ray.config import BlockResources
from mi_ray.events import event
from mi_ray.parameters import load_plugins
from mi_ray.plan.work import Work
from mi_ray.progress import Stage
from mi_ray.study.precision import decide
from mi_ray.study.workbench import Engine, Workbench

Item = tuple[Work, int, int]
QUEUED = 4000  # attempts handed to Ray at once: more than any cluster runs, few enough to be looked through each time
ENDED_AT_ONCE = 64


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


def where() -> dict[str, Any]:
    """Which node and process this is, for events."""
    return {"node": ray.get_runtime_context().get_node_id()[:12], "pid": os.getpid()}


@ray.remote(max_retries=0)
def compute_block(
    reference: list[Any], plugins: Sequence[str], engine: Engine, item: Item, told: Any, turn: tuple[int, int]
) -> dict[str, Any]:
    """Compute and store one block; returns what was done, seconds, and where it ran. turn: which attempt."""
    began = time.perf_counter()
    told.tell.remote("block", {"turn": turn, **where()})
    load_plugins(plugins)
    done = workbench(reference[0], engine).compute(*item)
    return {**asdict(done), "seconds": round(time.perf_counter() - began, 3), **where()}


@ray.remote
def decide_precision(reference: list[Any], plugins: Sequence[str], engine: Engine, key: str) -> dict[str, Any]:
    """The decision of `precision: auto` for a classifier: see `precision.decide`."""
    load_plugins(plugins)
    return decide(workbench(reference[0], engine), key)


class Cluster(Protocol):
    """What running blocks needs of a cluster: Ray's (below), or a simulated one."""

    def submit(self, item: Item, turn: tuple[int, int], alone: bool) -> Hashable:
        """Queue an attempt at a block; alone: on a node that runs nothing else."""

    def wait(self, tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """The tasks that have ended, after at most so many seconds."""

    def result(self, task: Any) -> dict[str, Any]:
        """What the task returned; raises what it ended with."""

    def cancel(self, task: Any) -> None:
        """Stop a task by force."""

    def begun(self) -> Sequence[dict[str, Any]]:
        """Attempts that have begun to run since the last call: `turn` and where."""

    def now(self) -> float:
        """Seconds, of a clock that never goes back."""


class RayCluster:
    """Blocks as tasks of the Ray that this process is connected to. told: the board that they tell when they begin."""

    def __init__(self, reference: Any, plugins: Sequence[str], size: BlockResources, study: str, told: Any) -> None:
        self._given = ([reference], plugins, engine_of(size))
        self._options: dict[str, Any] = {"num_cpus": size.cpus, "num_gpus": size.gpus}
        self._study, self._board, self._alone = study, told, dict[Any, float]()

    def submit(self, item: Item, turn: tuple[int, int], alone: bool) -> Hashable:
        """See `Cluster`. The task's name is what Ray's dashboard and `ps` show."""
        work, start, stop = item
        again = f" attempt {turn[1]}" if turn[1] > 1 else ""
        options = {**self._options, "name": f"{self._study}: {work.title} {start}-{stop}{again}"}
        if alone:
            options |= whole_node(self._options["num_gpus"])
        task = compute_block.options(**options).remote(*self._given, item, self._board, turn)
        if alone:
            self._alone[task] = options["num_cpus"]
        return task

    def wait(self, tasks: Sequence[Any], seconds: float) -> Sequence[Any]:
        """See `Cluster`."""
        # A task that asks for a whole node waits for ever when the only one of that size is gone.
        largest = max((node["Resources"].get("CPU", 0) for node in alive()), default=0) if self._alone else 0
        for task in [task for task, cpus in self._alone.items() if task in tasks and cpus > largest > 0]:
            del self._alone[task]
            self.cancel(task)
        return ray.wait(list(tasks), num_returns=min(ENDED_AT_ONCE, len(tasks)), timeout=seconds)[0]

    def result(self, task: Any) -> dict[str, Any]:
        """See `Cluster`."""
        return ray.get(task)

    def cancel(self, task: Any) -> None:
        """See `Cluster`."""
        ray.cancel(task, force=True)

    def begun(self) -> Sequence[dict[str, Any]]:
        """See `Cluster`."""
        return [facts for what, facts in read(self._board)[1] if what == "block"]

    def now(self) -> float:
        """See `Cluster`."""
        return time.monotonic()


def alive() -> list[dict[str, Any]]:
    """The nodes that have CPUs to give."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def whole_node(gpus: float) -> dict[str, Any]:
    """Options that ask for all of the node that has the most memory (another of its size, should it be gone)."""
    node = max(alive(), key=lambda node: node["Resources"].get("memory", 0), default=None)
    if node is None:
        return {}
    have, here = node["Resources"], NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
    return {
        "num_cpus": have["CPU"],
        "num_gpus": have.get("GPU", 0) if gpus else 0,
        "scheduling_strategy": here,
    }


@dataclass
class Ran:
    """What became of blocks: passes of those that are stored, as counted; position -> error of those that were given up."""

    forward: int = 0
    backward: int = 0
    failures: dict[int, Exception] = field(default_factory=dict)


@dataclass
class _Running:
    """An attempt at a block that is queued or running."""

    position: int
    since: float | None = None
    overdue: bool = False


class Blocks:
    """Runs blocks until each is stored or given up."""

    def __init__(
        self, cluster: Cluster, items: Sequence[Item], time_limit: float | None, running: Stage, starved: Container[str]
    ) -> None:
        self.cluster, self.items, self.limit, self.shown = cluster, items, time_limit, running
        self.attempts = [Attempts() for _ in items]
        for (work, _, _), attempts in zip(items, self.attempts, strict=True):
            if work.key in starved:
                attempts.failed("out of memory")
        self.ran = Ran()
        self.pending: dict[Any, _Running] = {}
        self._turns: dict[tuple[int, int], _Running] = {}
        self._queue = deque(range(len(items)))

    def run(self) -> Ran:
        """Run them all."""
        while self.pending or self._queue:
            while self._queue and len(self.pending) < QUEUED:
                self._submit(self._queue.popleft())
            self.step()
        return self.ran

    def step(self, seconds: float = 1.0) -> None:
        """Wait for something to happen, for at most so long, and do what follows from it."""
        ended = self.cluster.wait(list(self.pending), seconds)
        for facts in self.cluster.begun():
            found = self._turns.get(tuple(facts.pop("turn")))
            if found is not None:
                found.since = self.cluster.now()
                self._tell("block begun", found.position, **facts)
        for task in ended:
            self._ended(task)
        if self.limit is not None:
            self._stop_overdue(self.limit)
        self.shown.advance(0)

    def _stop_overdue(self, limit: float) -> None:
        for task, found in self.pending.items():
            if not found.overdue and found.since is not None and self.cluster.now() - found.since > limit:
                found.overdue = True
                self.cluster.cancel(task)

    def _submit(self, position: int) -> None:
        attempts = self.attempts[position]
        attempts.tried += 1
        turn, running = (position, attempts.tried), _Running(position)
        self._turns[turn] = running
        self.pending[self.cluster.submit(self.items[position], turn, attempts.alone)] = running

    def _ended(self, task: Any) -> None:
        found = self.pending.pop(task)
        position = found.position
        self._turns.pop((position, self.attempts[position].tried), None)
        try:
            facts = self.cluster.result(task)
        except ray.exceptions.RayError as error:
            self._failed(position, "time limit" if found.overdue else fault_of(error), error)
        else:
            self.shown.advance(facts.pop("points"))
            self.ran.forward += facts["forward"]
            self.ran.backward += facts["backward"]
            self._tell("block done", position, **facts)

    def _failed(self, position: int, fault: Fault, error: Exception) -> None:
        attempts = self.attempts[position]
        again = attempts.failed(fault)
        why = given_up(fault, error, attempts.faults[fault], self.limit)
        self._tell("block lost" if again else "block failed", position, fault=fault, cause=str(why))
        if again:
            self._submit(position)
        else:
            self.ran.failures[position] = why

    def _tell(self, what: str, position: int, **facts: Any) -> None:
        work, start, stop = self.items[position]
        event(
            what,
            kind=work.kind,
            key=work.key,
            name=work.title,
            points=[start, stop],
            attempt=self.attempts[position].tried,
            alone=self.attempts[position].alone or None,
            **facts,
        )


def run_blocks(
    cluster: Cluster,
    items: Sequence[Item],
    time_limit: float | None,
    running: Stage,
    starved: Container[str] = (),
) -> Ran:
    """Run blocks until all are stored or given up.

    A block whose worker or node was lost runs again; one that ran out of memory (before already: of the works `starved`)
    runs with a node for itself; one that runs beyond `time_limit` seconds is stopped and runs again.
    """
    return Blocks(cluster, items, time_limit, running, starved).run()
