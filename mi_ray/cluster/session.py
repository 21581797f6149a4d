"""One run's Ray, progress, failures and counts: what every stage of a study is handed."""

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.actor import ActorHandle
from rich.console import Console

from mi_ray.cluster.actors import read_progress, start_progress
from mi_ray.cluster.callbacks import Callbacks
from mi_ray.cluster.connect import connect
from mi_ray.cluster.retries import innermost
from mi_ray.cluster.spent import Spent
from mi_ray.config import BlockResources
from mi_ray.own_code import told_of
from mi_ray.plan.work import Cell, Certificate, Work
from mi_ray.store.blocks import Store
from mi_ray.store.files import scratch_of
from mi_ray.study.prepare import Study
from mi_ray.study.workbench import Workbench, hand_back

MANY = 10_000.0  # CPUs: on a cluster Ray queues what does not fit yet, and the autoscaler sees the queue.
TUNE = "sweep"  # The key under which a failure of Ray Tune itself is noted, which takes all cells with it.
CellsWritten = Callable[[Store, str], None]  # Called with the store and the study's name.


CHANCE = 1.5  # Times chance: a classifier below it has learnt nothing worth defending.


class Failure(NamedTuple):
    """What has failed, in words, and why. training: whether it is the training of a classifier."""

    what: str
    cause: str
    training: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.cause}"


@dataclass
class Outcome:
    """What a run did: seconds by stage, passes as counted by stage and direction, causes of failure by key of the work.

    cells, certified: the rows of cells.parquet and of certified.parquet, where the run has come as far. spent: where its time
    went.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    cells: list[dict[str, Any]] = field(default_factory=list)
    certified: list[dict[str, Any]] = field(default_factory=list)
    spent: Spent = field(default_factory=Spent)
    _timed: float = 0.0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's duration to a stage, without that of stages which begin and end inside it: these have their own."""
        began, inside = time.perf_counter(), self._timed
        try:
            yield
        finally:
            whole = time.perf_counter() - began
            self.seconds[stage] = self.seconds.get(stage, 0.0) + whole - (self._timed - inside)
            self._timed = inside + whole

    def count(self, stage: str, forward: int, backward: int) -> None:
        """Add passes to a stage that were counted as they were made."""
        for direction, passes in (("forward", forward), ("backward", backward)):
            what = f"{stage}_{direction}"
            self.counted[what] = self.counted.get(what, 0) + passes


def no_place(block: BlockResources, nodes: Sequence[Mapping[str, Any]]) -> str | None:
    """That no node of a cluster has what a block needs now, in words; None where one has. nodes: as `ray.nodes` tells them."""
    needs = {what: need for what, need in (("CPU", block.cpus), ("GPU", block.gpus)) if need}
    there = [node["Resources"] for node in nodes if node["Alive"]]
    if not needs or any(all(node.get(what, 0) >= need for what, need in needs.items()) for node in there):
        return None
    told = " and ".join(f"{need:g} {what}{'' if need == 1 else 's'}" for what, need in needs.items())
    return f"note: no node of the cluster has {told} now, as resources.block asks for: blocks wait until one joins"


class Session:
    """One run of one study against one store. Ray is started when something has to be computed, and not before."""

    def __init__(
        self,
        study: Study,
        store: Store,
        address: str | None,
        console: Console,
        callbacks: Callbacks | None = None,
        cells_written: CellsWritten = lambda store, study: None,
    ) -> None:
        self.store, self.address, self.console = store, address, console
        self.cells_written = cells_written
        self.callbacks = callbacks or Callbacks()
        self.outcome = Outcome()
        self.scratch = scratch_of(store)
        self.untrained = set[str]()  # Keys of the classifiers that a training still has to bring.
        # Keys of what blocks have computed of settings whose trials are still to report it.
        self.unreported = set[str]()
        self._progress: ActorHandle | None = None
        self._told: dict[str, list[dict[str, Any]]] = {}
        self.take_up(study)

    def take_up(self, study: Study) -> None:
        """Go on with this plan of the study, whose keys may have changed once `precision: auto` has decided, and without what was
        kept of the one before: classifiers that were not there then may be there now."""
        self.study, self.sweep, self.planner = study, study.sweep, study.planner
        self._data: ray.ObjectRef | None = None
        self._bench: Workbench | None = None

    @property
    def bench(self) -> Workbench:
        """The driver's own workbench, with the classifiers that are in the store when it is made."""
        if self._bench is None:
            gc.collect()  # What was before stands in its own caches, with images and classifiers.
            without = self.outcome.failures.keys() | self.untrained
            done = [work for work in self.planner.classifiers if work.key not in without]
            classifiers = {
                work.key: (work.description, self.store.read_bytes(f"classifiers/{work.key}/model.safetensors"))
                for work in done
            }
            self._bench = Workbench(self.study.data(self.store.address, classifiers))
        return self._bench

    @property
    def progress(self) -> ActorHandle:
        """The actor that running work tells how far it is."""
        if self._progress is None:
            self._progress = start_progress()
        return self._progress

    def close(self) -> None:
        """End what this run alone has: its actor, where a Ray of the caller's own goes on, and the weights of denoisers."""
        hand_back()
        if self._progress is not None and ray.is_initialized():
            ray.kill(self._progress)
            self._progress = None

    def read(self, what: str) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """How many images each training has gone through, and what running work has told of one kind since this was asked."""
        images, news = read_progress(self.progress)
        for kind, facts in news:
            self._told.setdefault(kind, []).append(facts)
        return images, self._told.pop(what, [])

    def data(self) -> ray.ObjectRef:
        """The study's data in Ray's object store, where it is put once for all workers."""
        if self._data is None:
            self._data = ray.put(self.bench.data)
        return self._data

    def connect(self, cpus: float, gpus: float = 0.0) -> None:
        """Start or join Ray, unless that is done already.

        cpus, gpus: what one piece of work needs at once. Raises ValueError when this machine does not have it, nor what a block
        needs, though blocks may come much later.
        """
        with self.outcome.timed("ray"):
            connect(self.address)
        have = ray.cluster_resources()
        block = self.sweep.resources.block
        for what, needed in (("CPU", max(cpus, block.cpus)), ("GPU", max(gpus, block.gpus))):
            if self.address is None and needed > have.get(what, 0):
                raise ValueError(
                    f"one piece of work asks for {needed:g} {what}s at once, this machine has {have.get(what, 0):g}; lower "
                    "resources.block, resources.train or classifiers.N.workers, or give --address of a cluster"
                )
        if self.address is not None and (why := no_place(block, ray.nodes())):
            self.tell(why, "yellow")  # Ray waits without a word, for ever where none joins.
        if self.store.local and len(ray.nodes()) > 1:
            self.tell(f"note: the store {self.store.uri} must be a folder that all nodes share", "yellow")

    def cpus(self) -> float:
        """How many CPUs may be asked for at once: this machine's, or more than any cluster that grows on demand has."""
        return float(ray.cluster_resources().get("CPU", 0)) if self.address is None else MANY

    def places(self) -> int:
        """How many blocks run at once on what this machine or the cluster has now; those of a machine before Ray starts."""
        have = ray.cluster_resources() if ray.is_initialized() else {"CPU": os.cpu_count() or 1}
        size = self.sweep.resources.block
        needs = {what: need for what, need in (("CPU", size.cpus), ("GPU", size.gpus)) if need}
        return max(1, int(min(have.get(what, 0) / need for what, need in needs.items())))

    def tell(self, text: str, style: str | None = None) -> None:
        """Print a line for people."""
        self.console.print(text, style=style, highlight=False, markup=False)

    def tell_near_chance(self, what: str, accuracy: float, remedy: str) -> None:
        """Print that an accuracy on clean images is near chance, if it is: every number about that classifier is of no use."""
        chance = 1 / self.study.dataset.classes
        if accuracy < CHANCE * chance:
            told = f"{100 * accuracy:.1f} % test accuracy, near chance ({100 * chance:.1f} %)"
            self.tell(f"note: {what} {told}: {remedy}", "yellow")

    def fail(self, key: str, what: str, error: Exception, *, training: bool = False) -> None:
        """Note why something failed, which is what the innermost cause says, and print it unless it is known."""
        failure = Failure(what, told_of(innermost(error)), training)
        # Of many blocks that fail alike, one line tells enough.
        if key not in self.outcome.failures and failure not in self.outcome.failures.values():
            self.tell(f"failed: {failure}", "red")
        self.outcome.failures[key] = failure

    def name_of(self, classifier: str) -> str:
        """The name that the sweep gives to the classifier of a key."""
        return next(work.entry.name for work in self.planner.classifiers if work.key == classifier)

    def possible(self, work: Work) -> bool:
        """Whether nothing that the work stands on has failed or is still to be trained."""
        return not work.stands_on() & (self.outcome.failures.keys() | self.untrained)

    def cause_of(self, cell: Cell) -> str | None:
        """Why a cell is not there, where something that it stands on has failed."""
        reads = [cell.read, *([] if cell.clean is None else [cell.clean.read])]
        outputs = [work for own, parts in reads for work in (own, *(work for work, _ in parts))]
        needs = [cell.classifier, *(stored.key for work in outputs for stored in work.stored)]
        if cell.inputs.attack is not None:
            needs += [cell.inputs.attack.key, *sorted(cell.inputs.attack.stands_on())]
        return self._cause([*needs, TUNE])

    def cause_of_certificate(self, certificate: Certificate) -> str | None:
        """Why a certificate is not there, where something that it stands on has failed."""
        return self._cause([certificate.classifier, *(work.key for work in certificate.needs())])

    def _cause(self, needs: Sequence[str]) -> str | None:
        return next((str(self.outcome.failures[key]) for key in needs if key in self.outcome.failures), None)
