"""Blocks of points as Ray tasks: attacks, and outputs of F and of defenses. What is lost runs again (see `retries`)."""

import time
from collections import deque
from collections.abc import Callable, Container, Generator, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mi_ray.cluster.retries import Fault, Retries, fault_of, given_up
from mi_ray.cluster.session import Session
from mi_ray.cluster.spent import Span, spans_of
from mi_ray.cluster.worker import compute_block, limits_of
from mi_ray.device import NotFiniteError
from mi_ray.events import event
from mi_ray.own_code import own_modules
from mi_ray.plan.work import OutputWork, Work
from mi_ray.progress import Stage, stage
from mi_ray.study.results import Item

QUEUED = 4000  # Attempts handed to Ray at once: more than any cluster runs, few enough to look through each time.
ENDED_AT_ONCE = 64  # Tasks whose end is taken up in one step, after which progress is shown and Ctrl-C looked at.


# Which attempt it is: the position of the block among all blocks, and the number of the attempt.
Turn = tuple[int, int]


class Cluster(Protocol):
    """What running blocks needs of a cluster: Ray's (below), or a simulated one."""

    def submit(self, item: Item, turn: Turn, alone: bool) -> Hashable:
        """Queue an attempt at a block and return its task; alone: on a node that runs nothing else meanwhile."""

    def wait(self, tasks: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """The tasks that have ended, after at most so many seconds."""

    def result(self, task: Hashable) -> dict[str, Any]:
        """What the task returned; raises what it ended with."""

    def cancel(self, task: Hashable) -> None:
        """Stop a task by force."""

    def begun(self) -> Sequence[dict[str, Any]]:
        """The attempts that have begun to run since the last call, each with its `turn` and where it runs."""

    def passes(self) -> Sequence[dict[str, Any]]:
        """What attempts have told since the last call of the passes that they have taken so far, each with its `turn`."""

    def now(self) -> float:
        """Seconds, of a clock that never goes back."""


class RayCluster:
    """Blocks as tasks of the Ray that this process is connected to. `Cluster` says what each method is for."""

    def __init__(self, session: Session) -> None:
        size = session.sweep.resources.block
        self._given = ([session.data()], own_modules(session.sweep.plugins), limits_of(size))
        self._options: dict[str, Any] = {"num_cpus": size.cpus, "num_gpus": size.gpus}
        self._study, self._progress, self._read = session.sweep.name, session.progress, session.read
        self._alone = dict[ray.ObjectRef, float]()

    def submit(self, item: Item, turn: Turn, alone: bool) -> ray.ObjectRef:
        """Submit a task whose name, which Ray's dashboard and `ps` show, says what it computes."""
        work, start, stop = item
        again = f" attempt {turn[1]}" if turn[1] > 1 else ""
        options = {**self._options, "name": f"{self._study}: {work.title} {start}-{stop}{again}"}
        if alone:
            options |= whole_node(self._options["num_gpus"])
        task = compute_block.options(**options).remote(*self._given, item, self._progress, turn)
        if alone:
            self._alone[task] = options["num_cpus"]
        return task

    def wait(self, tasks: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """Wait, after cancelling the tasks that ask for a whole node of a size which no node has any longer."""
        largest = max((node["Resources"].get("CPU", 0) for node in alive()), default=0) if self._alone else 0
        for task in [task for task, cpus in self._alone.items() if task in tasks and cpus > largest > 0]:
            del self._alone[task]
            self.cancel(task)
        return ray.wait(list(tasks), num_returns=min(ENDED_AT_ONCE, len(tasks)), timeout=seconds)[0]

    def result(self, task: Hashable) -> dict[str, Any]:
        """Get the task's result from Ray."""
        self._alone.pop(task, None)
        return ray.get(task)

    def cancel(self, task: Hashable) -> None:
        """Kill the worker process that runs the task."""
        ray.cancel(task, force=True)

    def begun(self) -> Sequence[dict[str, Any]]:
        """Ask the progress actor, which tasks tell that they have begun."""
        return self._read("block")[1]

    def passes(self) -> Sequence[dict[str, Any]]:
        """Ask the progress actor, which tasks tell of their passes every few seconds."""
        return self._read("passes")[1]

    def now(self) -> float:
        """Python's monotonic clock."""
        return time.monotonic()


def alive() -> list[dict[str, Any]]:
    """The nodes that have CPUs to give."""
    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]


def whole_node(gpus: float) -> dict[str, Any]:
    """Options that ask for all of the node that has the most memory, or of another of its size should it be gone."""
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
    """What became of blocks.

    forward, backward: passes, as counted, of those that are stored. spans: when each of them ran. failures: position ->
    error of those given up.
    """

    forward: int = 0
    backward: int = 0
    spans: list[Span] = field(default_factory=list)
    failures: dict[int, Exception] = field(default_factory=dict)


# Work that goes on a step at a time; before each step it yields the tasks that it waits for.
Steps = Generator[Sequence[Hashable], None, None]


def finish(steps: Steps) -> None:
    """Go through all steps of some work, each of which waits by itself."""
    for _ in steps:
        pass


@dataclass
class Beside:
    """What blocks may have of a cluster while something else has the first claim on it.

    places: so many of them at once. over: no more of them begin, since what they run beside has ended or has changed.
    """

    places: int = 0
    over: bool = False

    def room(self) -> int:
        """How many blocks may be with the cluster now."""
        return 0 if self.over else min(self.places, QUEUED)


@dataclass
class _Running:
    """An attempt at a block that is queued or running.

    since: when it began to run, None while it is queued. passes: so many it has taken, as far as it has told. overdue:
    whether it was stopped at the time limit. useless: whether it was dropped from the queue, since its work has failed
    for good.
    """

    position: int
    since: float | None = None
    passes: float = 0.0
    overdue: bool = False
    useless: bool = False


class Blocks:
    """Runs blocks until each is stored or given up.

    A block whose worker or node was lost runs again; one that ran out of memory, or whose work is among `starved`
    because it did so before, runs with a node for itself; one that runs beyond `time_limit` seconds is stopped and runs
    again. passes: of a work's point, by which the time that is left is told.
    """

    def __init__(
        self,
        cluster: Cluster,
        items: Sequence[Item],
        time_limit: float | None,
        shown: Stage,
        starved: Container[str] = (),
        passes: Callable[[Work], float] = lambda work: 1.0,
    ) -> None:
        self._passes = passes
        self.cluster, self.items, self.limit, self.shown = cluster, items, time_limit, shown
        self.retries = [Retries() for _ in items]
        for (work, _, _), retries in zip(items, self.retries, strict=True):
            if work.key in starved:
                retries.failed("out of memory")
        self.ran = Ran()
        self.pending: dict[Hashable, _Running] = {}
        self._turns: dict[Turn, _Running] = {}
        self._queue = deque(range(len(items)))
        self._hopeless = set[str]()
        self._beside: Beside | None = None

    def run(self) -> Ran:
        """Run them all."""
        finish(self.steps())
        return self.ran

    def steps(self, beside: Beside | None = None) -> Steps:
        """Run them all, or, beside something else, until that is over; before each step, the tasks that are waited for."""
        self._beside = beside
        while self.pending or (self._queue and not (beside and beside.over)):
            while self._queue and len(self.pending) < (QUEUED if beside is None else beside.room()):
                self._submit(self._queue.popleft())
            yield list(self.pending)
            self.step(1.0 if beside is None else 0.0)
            if beside is not None and any(retries.alone for retries in self.retries):
                beside.over = True  # It is to have a whole node, and waits until no training has one.

    def step(self, seconds: float = 1.0) -> None:
        """Wait for something to happen, for at most so long, and do what follows from it."""
        ended = self.cluster.wait(list(self.pending), seconds) if self.pending else ()
        for facts in self.cluster.begun():
            found = self._turns.get(tuple(facts.pop("turn")))
            if found is not None:
                found.since = self.cluster.now()
                self.shown.begin()
                self._note("block begun", found.position, **facts)
        for task in ended:
            self._ended(task)
        self._take_up_passes()
        if self.limit is not None:
            self._stop_overdue(self.limit)
        self.shown.advance(0)

    def _take_up_passes(self) -> None:
        """Show how far the blocks are that run, none further than its planned passes, which may be too few."""
        for facts in self.cluster.passes():
            found = self._turns.get(tuple(facts["turn"]))
            if found is not None and found.since is not None:  # Else it is a late word of another stage's block.
                work, start, stop = self.items[found.position]
                found.passes = min(facts["passes"], (stop - start) * self._passes(work))
        self.shown.under_way = sum(found.passes for found in self.pending.values())

    def _stop_overdue(self, limit: float) -> None:
        for task, found in self.pending.items():
            if not found.overdue and found.since is not None and self.cluster.now() - found.since > limit:
                found.overdue = True
                self.cluster.cancel(task)

    def _submit(self, position: int) -> None:
        if self._beside is not None and self.retries[position].alone:
            return
        if self.items[position][0].key in self._hopeless:
            return
        retries = self.retries[position]
        retries.tried += 1
        turn, running = (position, retries.tried), _Running(position)
        self._turns[turn] = running
        self.pending[self.cluster.submit(self.items[position], turn, retries.alone)] = running

    def _ended(self, task: Hashable) -> None:
        found = self.pending.pop(task)
        self.shown.under_way -= found.passes
        position = found.position
        self._turns.pop((position, self.retries[position].tried), None)
        try:
            facts = self.cluster.result(task)
        except ray.exceptions.RayError as error:
            if not found.useless:
                self._failed(position, "time limit" if found.overdue else fault_of(error), error)
        else:
            points = facts.pop("points")
            self.shown.advance(points, points * self._passes(self.items[position][0]))
            self.ran.forward += facts["forward"]
            self.ran.backward += facts["backward"]
            self.ran.spans += spans_of(facts)
            self._note("block done", position, **facts)

    def _failed(self, position: int, fault: Fault, error: Exception) -> None:
        retries = self.retries[position]
        again = retries.failed(fault)
        why = given_up(fault, error, retries.faults[fault], self.limit)
        self._note("block lost" if again else "block failed", position, fault=fault, cause=str(why))
        if again:
            self._submit(position)
        else:
            self.ran.failures[position] = why
            if isinstance(why, NotFiniteError):
                self._give_up(self.items[position][0].key)

    def _give_up(self, key: str) -> None:
        """Begin no further block of a work of which one has shown that it comes to nothing."""
        self._hopeless.add(key)
        for task, found in self.pending.items():
            if self.items[found.position][0].key == key and found.since is None:
                found.useless = True
                self.cluster.cancel(task)

    def _note(self, what: str, position: int, **facts: object) -> None:
        work, start, stop = self.items[position]
        event(
            what,
            kind=work.kind,
            key=work.key,
            name=work.title,
            points=[start, stop],
            attempt=self.retries[position].tried,
            alone=self.retries[position].alone or None,
            **facts,
        )


def compute_missing(
    session: Session,
    name: str,
    counted: str,
    works: Sequence[Work],
    limit: int | None = None,
    starved: Container[str] = (),
) -> None:
    """Do all of `computing` at once."""
    finish(computing(session, name, counted, works, limit, starved))


def computing(
    session: Session,
    name: str,
    counted: str,
    works: Sequence[Work],
    limit: int | None = None,
    starved: Container[str] = (),
    beside: Beside | None = None,
) -> Steps:
    """Compute what is not stored of these works, as Ray tasks, leaving out what stands on work that has failed.

    name: of the stage, in the progress, the seconds and the failures. counted: the stage that its passes belong to.
    limit: how many of the study's points are wanted, all when left out. starved: see `Blocks`. beside: what they may
    have of the cluster, where they run beside something else; no step waits then.
    """
    if beside is not None and beside.over:
        return
    size, costs = session.sweep.resources.block, session.study.planner.costs

    def passes(work: Work) -> float:
        return float(sum(costs.of(work)))

    # The longest first: one that is begun last would run while all other places have nothing left to do.
    ready = sorted((work for work in works if session.possible(work)), key=passes, reverse=True)
    todo = [item for work in ready for item in session.bench.results.missing(work, size.points, limit)]
    if not todo:
        return
    began = time.time()
    # The seconds of what runs beside a stage are that stage's.
    with session.outcome.timed(name) if beside is None else nullcontext():
        session.connect(size.cpus)
        points = sum(stop - start for _, start, stop in todo)
        weight = sum((stop - start) * passes(work) for work, start, stop in todo)
        with stage(name, points, "points", session.console, "starting workers", weight) as shown:
            blocks = Blocks(RayCluster(session), todo, size.time_limit, shown, starved, passes)
            yield from blocks.steps(beside)
    ran = blocks.ran
    if beside is None:
        session.outcome.spent.stage(ran.spans, began, time.time(), session.places())
    else:
        session.outcome.spent.beside(ran.spans)
    for position, error in ran.failures.items():
        work = todo[position][0]
        # What is computed here of a defense itself are the settings that trials have lost.
        component = work.component if isinstance(work, OutputWork) and counted == "evaluation" else None
        what = f"{component.name} {dict(component.values)}" if component else name
        session.fail(work.key, f"{what} on {session.name_of(work.classifier)}", error)
    session.outcome.count(counted, ran.forward, ran.backward)
