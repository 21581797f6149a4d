"""Defense settings as Ray Tune trials, seen from the worker: a trial's work, and the actor that does it step by step.

`tuning` is the driver's side. A trial's actor imports this module, and nothing that only proposes or shows trials.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import tune
from ray.actor import ActorHandle
from ray.tune.experiment import Trial as TuneTrial

from mi_ray.cluster.worker import Boxed, lasted, where, workbench
from mi_ray.own_code import OwnModules
from mi_ray.parameters import Method
from mi_ray.plan.work import LAST_PHASE, Cell, OutputWork, Read, Work
from mi_ray.study.results import Item
from mi_ray.study.workbench import Done, Workbench, WorkerLimits

ACCURACIES = ("clean_accuracy", "adversarial_accuracy")
TOGETHER = 30.0  # Seconds that an actor waits for the others of its run.
EVALUATED = LAST_PHASE  # In it the defense answers.
Config = Mapping[str, str | int | float]  # A trial as Ray Tune knows it: its number in a grid, or what Optuna proposes.


@dataclass(frozen=True, eq=False)
class Trial:
    """One defense setting on one classifier, and the work that it needs, in the order in which it is done.

    In a search the setting's adaptive attacks, and F's outputs on their images, are part of the trial, since nobody
    knows the setting before. reads: what the setting's cells are read from, by the inputs that they are on; of a grid, whose
    trials are of works that cells share, they are found from the works where no cell is of that very defense.
    """

    classifier: str
    defense: Method
    works: tuple[Work, ...]
    reads: Mapping[str, Read] = field(default_factory=dict)


def grid_trials(outputs: Sequence[OutputWork], cells: Iterable[Cell] = ()) -> list[Trial]:
    """A trial for each classifier and component of a plan; MI-Combined's cells join what these leave in the store.

    cells: of the same plan, from which it is known at which radii an attack is read that looks for the nearest image.
    """
    reads: dict[str, dict[str, Read]] = {}
    for cell in sorted(cells, key=lambda cell: cell.identity["executions"]):
        if not cell.members:
            reads.setdefault(repr((cell.classifier, cell.defense)), {})[cell.inputs.name] = cell.read
    groups: dict[str, list[OutputWork]] = {}
    for work in outputs:
        if work.component is not None:
            groups.setdefault(repr((work.classifier, work.component)), []).append(work)
    return [
        Trial(g[0].classifier, g[0].component, tuple(g), reads.get(place, {}))
        for place, g in groups.items()
        if g[0].component
    ]


@dataclass(frozen=True)
class Job:
    """What every trial of a study is handed.

    data: the study's. block: points of a block. reported: the range of points on which accuracies are reported.
    resolve: a trial's Tune configuration -> the trial. locks: `BlockLocks`, where trials may need the same block.
    names: classifier key -> its name in the sweep. progress: the `ProgressActor`, by which the actors of the run `run`
    wait for one another; together: how many of them begin at the same time (see `SettingTrainable`). Actors stand in
    lists, in which Ray hands them on as they are.
    """

    data: Boxed
    own: OwnModules
    limits: WorkerLimits
    block: int
    reported: tuple[int, int]
    resolve: Callable[[Config], Trial]
    locks: list[ActorHandle] | None = None
    study: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    progress: list[ActorHandle] | None = None
    together: int = 1
    run: str = ""


class Deferred:
    """A function of a trial's configuration that crosses to another process as bytes, read there when it is first called.

    What it holds may be of a person's own modules, and these are found there once `OwnModules.load` was called.
    """

    def __init__(self, call: Callable[[Config], Trial] | None, content: bytes = b"") -> None:
        self._call, self._content = call, content

    def __call__(self, config: Config) -> Trial:
        """What the function returns."""
        if self._call is None:
            self._call = ray.cloudpickle.loads(self._content)
        return self._call(config)

    def __reduce__(self) -> tuple[Any, ...]:
        return Deferred, (None, self._content if self._call is None else ray.cloudpickle.dumps(self._call))


@dataclass(frozen=True)
class TrialNames:
    """Names Tune's trials for people, logs and TensorBoard; a name can be part of the name of a file."""

    resolve: Callable[[Config], Trial]
    names: Mapping[str, str]

    def __call__(self, running: TuneTrial) -> str:
        """The classifier, the defense with its parameters, and Tune's own number."""
        trial = self.resolve(running.config)
        values = " ".join(f"{key}={value}" for key, value in trial.defense.values.items())
        said = f"{self.names.get(trial.classifier, trial.classifier)} {trial.defense.name} {values}".strip()
        return re.sub(r"[^\w.=+-]+", "_", f"{said} {running.trial_id}")


def phases(trials: Sequence[Trial]) -> list[list[Work]]:
    """The works of trials in the order in which they can be done: each group stands on those before it."""
    works = {work.key: work for trial in trials for work in trial.works}
    return [[work for work in works.values() if work.phase == phase] for phase in range(EVALUATED + 1)]


class SettingTrainable(tune.Trainable):
    """Evaluates one setting: a step computes the missing blocks of one range of points and reports the accuracy so far.

    What is stored is not computed again, so a trial that Tune runs twice costs nothing the second time.

    The actors of a run begin together. When a trial ends, Tune gives its actor to a trial whose own actor is still
    starting, and stops that one: an actor that starts, which takes seconds, while others go through short trials would
    never be used.
    """

    def setup(self, config: Config, job: Job) -> None:
        """Unpack the study's data, then wait for the actors that begin with this one."""
        self._job = job
        job.own.load()
        self._bench = workbench(job.data, job.limits)
        self._start(config)
        if job.progress is not None and job.together > 1:
            with contextlib.suppress(ray.exceptions.RayError):  # Without the others the run is only slower.
                ray.get(job.progress[0].await_all.remote(job.run, job.together, TOGETHER), timeout=2 * TOGETHER)

    def reset_config(self, new_config: Config) -> bool:
        """Go on with another setting; True tells Tune that this actor can, and that no other has to start."""
        self._start(new_config)
        return True

    def _start(self, config: Config) -> None:
        """Find what is missing of the setting, as ranges of points in the order in which they are computed."""
        self._trial = self._job.resolve(config)
        todo: list[Item] = [
            item for work in self._trial.works for item in self._bench.results.missing(work, self._job.block)
        ]
        ranges: dict[tuple[int, int, int], list[Work]] = {}
        for work, start, stop in todo:
            ranges.setdefault((work.phase, start, stop), []).append(work)
        self._todo = sorted(ranges.items(), key=lambda item: item[0])

    def step(self) -> dict[str, Any]:
        """Compute the next missing range, if any, and report the accuracies so far."""
        began, done = time.time(), list[Done]()
        if self._todo:
            (_, start, stop), works = self._todo.pop(0)
            done = [block for work in works for block in self._computed(work, start, stop)]
        spent = {name: sum(getattr(block, name) for block in done) for name in ("forward", "backward", "store")}
        computed = sum(block.points for block in done)
        return {**self._so_far(), **spent, **lasted(began), "computed": computed, "done": not self._todo, **where()}

    def _so_far(self) -> dict[str, float]:
        """The accuracies on the reported points that are stored in full, and the number of these points."""
        first, last = self._job.reported
        # Ranges are computed in order, so all points before the next missing range of the last phase are stored.
        phase, reached, _ = self._todo[0][0] if self._todo else (EVALUATED, last, last)
        stop = min(last, reached) if phase == EVALUATED else first
        if stop <= first:
            return {**dict.fromkeys(ACCURACIES, 0.0), "points": 0}
        return {**accuracies(self._bench, self._trial, (first, stop)), "points": stop - first}

    def _computed(self, work: Work, start: int, stop: int) -> list[Done]:
        """Compute what is missing in a range; nothing is, where another trial has computed it meanwhile."""
        if self._job.locks is None:
            return [self._bench.compute(work, start, stop)]
        locks, block = self._job.locks[0], f"{work.key} {start}"
        ray.get(locks.acquire.remote(block, self.trial_id))
        try:
            items = self._bench.results.missing(work, self._job.block)
            here = [item for item in items if item[1] < stop and start < item[2]]
            if any(item[1] < start or stop < item[2] for item in here):  # Another study has a block of other ends now.
                here = [(work, start, stop)]
            return [self._bench.compute(*item) for item in here]
        finally:
            ray.get(locks.release.remote(block, self.trial_id))

    def __repr__(self) -> str:
        """What Ray's dashboard shows of the actor, which goes through many settings."""
        return f"{self._job.study}: defense trials"

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Save nothing: the blocks in the store are the state."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Load nothing: see `save_checkpoint`."""


def accuracies(bench: Workbench, trial: Trial, part: tuple[int, int]) -> dict[str, float]:
    """A setting's clean accuracy and its lowest adversarial accuracy, each the mean survival over points and draws; NaN where
    it is not asked for.

    part: the range of points.
    """
    found = dict.fromkeys(ACCURACIES, float("nan"))
    clean, adversarial = ACCURACIES
    reads = trial.reads or {name: _read(works) for name, works in _scored(trial).items()}
    for name, read in reads.items():
        stands, _ = bench.results.stands(trial.defense, read, *part, None if name == "clean" else reads.get("clean"))
        accuracy = float(stands.mean())
        if name == "clean":
            found[clean] = accuracy
        else:
            found[adversarial] = accuracy if math.isnan(found[adversarial]) else min(found[adversarial], accuracy)
    return found


def _read(works: Sequence[OutputWork]) -> Read:
    """What the defense's answers on one set of inputs are read from, at the most executions."""
    undefended = works[0].undefended
    assert undefended is not None
    return undefended, [(work, work.executions[-1]) for work in works]


def _scored(trial: Trial) -> dict[str, list[OutputWork]]:
    """The defense's outputs by the inputs that they are on. A counterpart, whose ŷ is of other images, scores nothing."""
    by_inputs: dict[str, list[OutputWork]] = {}
    for work in trial.works:
        if isinstance(work, OutputWork) and work.component is not None and not work.is_counterpart:
            by_inputs.setdefault(work.inputs.name, []).append(work)
    return by_inputs


@dataclass(frozen=True)
class ResolveGrid:
    """Finds a grid's trial by its number: what `Job.resolve` is for."""

    trials: Sequence[Trial]

    def __call__(self, config: Config) -> Trial:
        """The trial of that number."""
        return self.trials[int(config["trial"])]
