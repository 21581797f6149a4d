"""Defense settings as Ray Tune trials, one block of points a step; Optuna proposes them where a sweep asks for a search."""

import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
from ray import tune
from ray.tune.search import Searcher

from mi_ray.cluster.blocks import where, workbench
from mi_ray.defenses import DEFENSES, Defense
from mi_ray.events import event
from mi_ray.parameters import Method, load_plugins
from mi_ray.plan.work import OutputWork, Work
from mi_ray.progress import Stage
from mi_ray.study.workbench import Done, Engine, Workbench

if TYPE_CHECKING:  # a trial's actor, which imports this file, proposes nothing
    pass

SEARCH_TRIES = 2  # times that Tune starts a lost setting of a search again
OBJECTIVES = ("clean_accuracy", "adversarial_accuracy")


@dataclass(frozen=True, eq=False)
class Trial:
    """One defense setting on one classifier, and the work that it needs, in the order in which it is done.

    Adaptive attacks of a search, and F's outputs on their images, are among it, since nobody knows the setting before.
    """

    classifier: str
    defense: Method
    works: tuple[Work, ...]


def grid_trials(outputs: Sequence[OutputWork]) -> list[Trial]:
    """A trial for each (classifier, component) of a plan: MI-Combined's cells join what these leave in the store."""
    groups: dict[str, list[OutputWork]] = {}
    for work in outputs:
        if work.component is not None:
            groups.setdefault(repr((work.classifier, work.component)), []).append(work)
    return [Trial(g[0].classifier, g[0].component, tuple(g)) for g in groups.values() if g[0].component]


@dataclass(frozen=True)
class Job:
    """What every trial of a study is handed. resolve: a trial's Tune configuration -> the trial.

    claims: the `Claims` actor, in a list, where trials may need the same piece of work.
    names: classifier key -> its name in the sweep.
    board: in a list. together: how many trials begin at the same time, as a run of that name (see `SettingTrainable`).
    """

    reference: list[Any]
    plugins: Sequence[str]
    engine: Engine
    block: int
    reported: tuple[int, int]
    resolve: Callable[[Mapping[str, Any]], Trial]
    claims: list[Any] | None = None
    study: str = ""
    names: Mapping[str, str] = field(default_factory=dict)
    board: list[Any] | None = None
    together: int = 1
    run: str = ""


@dataclass(frozen=True)
class TrialNames:
    """Tune's trial -> its name for people, logs and TensorBoard; part of a file name."""

    resolve: Callable[[Mapping[str, Any]], Trial]
    names: Mapping[str, str]

    def __call__(self, running: Any) -> str:
        """The name."""
        trial = self.resolve(running.config)
        values = " ".join(f"{key}={value}" for key, value in trial.defense.values.items())
        said = f"{self.names.get(trial.classifier, trial.classifier)} {trial.defense.name} {values}".strip()
        return re.sub(r"[^\w.=+-]+", "_", f"{said} {running.trial_id}")


TOGETHER = 30.0  # seconds that an actor waits for the others of its run
EVALUATED = 2  # the last phase of a trial


def phases(lost: Sequence[Trial]) -> list[list[Work]]:
    """The works of trials in the order in which they can be done: each group stands on those before it."""
    works = {work.key: work for trial in lost for work in trial.works}
    return [[work for work in works.values() if work.phase == phase] for phase in range(EVALUATED + 1)]


class SettingTrainable(tune.Trainable):
    """Evaluates one setting: a step computes the missing blocks of one range of points and reports the accuracy so far.

    What is stored is not computed again, so a trial that Tune runs twice costs nothing the second time.

    The actors begin together. When a trial ends, Tune gives its actor to a trial whose own is still starting, and stops
    that one: an actor that starts, which takes seconds, while others go through short trials would never be used.
    """

    def setup(self, config: dict[str, Any], job: Job) -> None:
        """Unpack the study's data, then wait for the actors that begin with this one."""
        self._job = job
        load_plugins(job.plugins)
        self._bench = workbench(job.reference[0], job.engine)
        self._start(config)
        if job.board is not None and job.together > 1:
            with contextlib.suppress(ray.exceptions.RayError):  # it is only slower
                ray.get(job.board[0].await_all.remote(job.run, job.together, TOGETHER), timeout=2 * TOGETHER)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on with another setting."""
        self._start(new_config)
        return True

    def _start(self, config: dict[str, Any]) -> None:
        self._trial = self._job.resolve(config)
        todo = [item for work in self._trial.works for item in self._bench.missing(work.kind, work, self._job.block)]
        ranges: dict[tuple[int, int, int], list[Any]] = {}
        for work, start, stop in todo:
            ranges.setdefault((work.phase, start, stop), []).append(work)
        self._todo = sorted(ranges.items(), key=lambda item: item[0])

    def step(self) -> dict[str, Any]:
        """Compute the next missing range, if any, and report the accuracies so far."""
        done: list[Done] = []
        if self._todo:
            (_, start, stop), works = self._todo.pop(0)
            done = [block for work in works for block in self._computed(work, start, stop)]
        # Ranges come in order: all points before the next missing one are stored, once attacks and F's outputs are.
        first, last = self._job.reported
        phase, reached = self._todo[0][0][:2] if self._todo else (EVALUATED, last)
        so_far = (first, min(last, reached if phase == EVALUATED else first))
        found = dict.fromkeys(OBJECTIVES, 0.0)
        if so_far[1] > first:
            found = accuracies(self._bench, self._trial, so_far)
        points = max(0, so_far[1] - first)
        spent = {name: sum(getattr(block, name) for block in done) for name in ("forward", "backward")}
        computed = sum(block.points for block in done)
        return {**found, **spent, "points": points, "computed": computed, "done": not self._todo, **where()}

    def _computed(self, work: Work, start: int, stop: int) -> list[Done]:
        """Compute a block, unless another trial computes it meanwhile."""
        if self._job.claims is None:
            return [self._bench.compute(work, start, stop)]
        claims, piece = self._job.claims[0], f"{work.key} {start}"
        ray.get(claims.take.remote(piece, self.trial_id))
        try:
            missing = self._bench.missing(work.kind, work, self._job.block)
            return [self._bench.compute(*item) for item in missing if start <= item[1] and item[2] <= stop]
        finally:
            ray.get(claims.release.remote(piece, self.trial_id))

    def __repr__(self) -> str:
        """What Ray's dashboard shows of the actor, which goes through many settings."""
        return f"{self._job.study}: defense trials"

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the blocks in the store are the state."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see `save_checkpoint`."""


def accuracies(bench: Workbench, trial: Trial, part: tuple[int, int]) -> dict[str, float]:
    """Clean accuracy and the lowest adversarial accuracy of a setting on a range of points: mean survival over draws."""
    defense, labels = DEFENSES.make(*trial.defense), np.asarray(bench.data.labels[slice(*part)])
    found: dict[str, float] = {OBJECTIVES[0]: float("nan"), OBJECTIVES[1]: 1.0}
    by_inputs: dict[str, list[OutputWork]] = {}
    for work in (w for w in trial.works if isinstance(w, OutputWork) and w.component is not None):
        if work.is_counterpart:
            continue
        by_inputs.setdefault(work.inputs.name, []).append(work)
    for name, works in by_inputs.items():
        probabilities = joined(bench, defense, works, part)
        accuracy = float((probabilities.argmax(-1) == labels).mean())
        if name == "clean":
            found[OBJECTIVES[0]] = accuracy
        else:
            found[OBJECTIVES[1]] = min(found[OBJECTIVES[1]], accuracy)
    return found


def joined(bench: Workbench, defense: Defense, works: Sequence[OutputWork], part: tuple[int, int]) -> Any:
    """[draws, points, classes]: a defense's probabilities on one set of inputs, from stored outputs."""
    import torch

    components = [work for work in works if work.component is not None]
    base = next((work.undefended for work in components if work.undefended), works[0])
    undefended = torch.from_numpy(bench.probabilities(base, *part)[:, 0])
    averages = [torch.from_numpy(bench.probabilities(work, *part)[:, -1]) for work in components]
    if averages:
        undefended = undefended.expand(len(averages[0]), -1, -1)
    return defense.join(undefended, averages).numpy()


@dataclass(frozen=True)
class ResolveGrid:
    """A trial's number -> the trial."""

    trials: Sequence[Trial]

    def __call__(self, config: Mapping[str, Any]) -> Trial:
        """See `Job.resolve`."""
        return self.trials[config["trial"]]


class _Advance(tune.Callback):
    """Shows each computed block as progress and counts its forward passes; stops a trial whose step hangs.

    limit: seconds for each block of a step, which computes one range of points on each of the trial's inputs.
    """

    def __init__(self, running: Stage, job: Job, limit: float | None) -> None:
        self._running, self._job, self._limit = running, job, limit
        self.forward = self.backward = 0
        self._since = dict[Any, tuple[float, int]]()

    def __getstate__(self) -> dict[str, Any]:
        """Tune writes its callbacks down in order to restore a run, which we never do: nothing to keep."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Count what a step did and show it."""
        self.forward += int(result.get("forward", 0))
        self.backward += int(result.get("backward", 0))
        self._running.advance(int(result.get("computed", 0)))
        if trial in self._since:
            self._since[trial] = (time.monotonic(), self._since[trial][1])
        self._tell(
            "trial step",
            trial,
            points=result["points"],
            computed=result["computed"],
            seconds=round(result["time_this_iter_s"], 3),
            pid=result.get("pid"),
            node=result.get("node"),
        )

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._since[trial] = (time.monotonic(), len(self._job.resolve(trial.config).works))
        self._tell("trial begun", trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._over(trial)
        self._tell("trial done", trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._over(trial)
        self._tell("trial lost", trial, attempt=trial.num_failures)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._over(trial)
        self._tell("trial failed", trial, attempt=trial.num_failures)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Stop the trials that are beyond the time limit of their blocks."""
        self._running.advance(0)
        now, limit = time.monotonic(), self._limit or float("inf")
        for trial, (since, works) in list(self._since.items()):
            if now - since > limit * works and trial.temporary_state.ray_actor is not None:
                trial.max_failures = 0  # its blocks run as tasks, where each has its own limit
                self._since.pop(trial)
                ray.kill(trial.temporary_state.ray_actor)

    def _over(self, trial: Any) -> None:
        self._since.pop(trial, None)
        if self._job.claims is not None:
            self._job.claims[0].ended.remote(trial.trial_id)

    def _tell(self, what: str, trial: Any, **facts: Any) -> None:
        event(what, **{"name": str(trial), "attempt": trial.num_failures + 1, **facts})


def run_trials(
    job: Job,
    space: Mapping[str, Any] | None,
    search: Searcher | None,
    samples: int,
    cpus: float,
    gpus: float,
    at_once: int,
    running: Stage,
    limit: float | None = None,
    callbacks: Sequence[tune.Callback] = (),
) -> tuple[list[tuple[Mapping[str, Any], Exception | None]], tuple[int, int]]:
    """Run Tune to its end: (each trial's configuration and its error, if it failed; passes counted, both ways)."""
    counting = _Advance(running, job, limit)
    # The trial's own actor does the work, so it takes the block's resources; a reused actor keeps the classifier.
    trainable = tune.with_resources(tune.with_parameters(SettingTrainable, job=job), {"cpu": cpus, "gpu": gpus})
    trainable.__name__ = trainable.__qualname__ = SettingTrainable.__name__  # what Ray's dashboard and `ps` show
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "60")  # its snapshots are not what resumes a study
    # What its own loggers write for each setting would lie in the scratch folder, and nobody reads it; nor shall it be missed.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="mi-ray-tune-") as scratch:
        results = tune.Tuner(
            trainable,
            param_space=dict(space) if space else None,
            tune_config=tune.TuneConfig(
                num_samples=samples,
                search_alg=search,
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=TrialNames(job.resolve, job.names),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                verbose=0,
                callbacks=[counting, *callbacks],
                # A setting that is lost is not tried again here: its blocks then run as tasks, by their rules. A search is
                # told a result of each, so that a lost one begins again.
                failure_config=tune.FailureConfig(max_failures=0 if search is None else SEARCH_TRIES),
            ),
        ).fit()
    return [(result.config or {}, result.error) for result in results], (counting.forward, counting.backward)
