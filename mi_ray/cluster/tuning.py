"""Defense settings as Ray Tune trials, seen from the driver: a sweep's grid, or the settings that Optuna proposes."""

import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from mi_ray.cluster.actors import start_locks
from mi_ray.cluster.blocks import Beside, Steps, compute_missing, computing, finish
from mi_ray.cluster.optuna_study import study_name
from mi_ray.cluster.retries import fault_of
from mi_ray.cluster.search import ResolveSearch, optuna_search, search_cells, search_space
from mi_ray.cluster.session import TUNE, Session
from mi_ray.cluster.spent import Span, spans_of
from mi_ray.cluster.trials import (
    Config,
    Deferred,
    Job,
    ResolveGrid,
    SettingTrainable,
    Trial,
    TrialNames,
    grid_trials,
    phases,
)
from mi_ray.cluster.worker import limits_of
from mi_ray.config import OptunaSearch
from mi_ray.events import event
from mi_ray.own_code import own_modules
from mi_ray.plan.work import Cell, ClassifierWork, Plan
from mi_ray.progress import Stage, stage

LOST = "sweep: lost settings"
BLOCKS = "sweep: settings as blocks"
SEARCH_TRIES = 2  # Times that Tune starts a lost setting of a search again.
AGAIN = 3  # Times that a search begins anew after settings were lost: what it found before is stored.
Result = Mapping[str, float | str]  # What a step of a trial reports, with what Tune adds.


@dataclass(frozen=True)
class Request:
    """What one run of Ray Tune is to do.

    name: for people. resolve: a trial's configuration -> the trial. points, passes: what the trials will compute, for the
    progress; no passes where nobody knows the settings before. samples: how many trials, of a grid how often. space: a
    grid; search: what proposes settings.
    """

    name: str
    resolve: Callable[[Config], Trial]
    points: int
    passes: float = 0.0
    samples: int = 1
    space: Mapping[str, object] | None = None
    search: Searcher | None = None


@dataclass(frozen=True)
class Tuned:
    """What became of a run of Ray Tune: the configurations that ran, and the trials whose actors were lost."""

    configs: Sequence[Config]
    lost: Sequence[Trial]


def evaluate_defenses(session: Session, plan: Plan) -> Plan:
    """Compute the defenses' outputs that are not stored; returns the plan, with the cells that a search has found."""
    settings = session.sweep.search
    if settings is None:
        _evaluate_grid(session, plan)
        return plan
    found = list(plan.cells)
    for work in session.planner.classifiers:
        if work.key not in session.outcome.failures:
            found += _search(session, work, settings)
    return session.planner.plan_of(found)


def _evaluate_grid(session: Session, plan: Plan) -> None:
    """Run a trial for every setting of the plan of which something is missing.

    A trial computes in one place. Where there are fewer settings than places, the others would have nothing to do: there
    the settings' blocks run as tasks. Trials of what blocks have computed report it to whoever follows the run, and are left
    out where nobody does, since their processes take seconds to start.
    """
    size, costs = session.sweep.resources.block, session.study.planner.costs
    todo, points, passes = list[Trial](), 0, 0.0
    there = [cell for cell in plan.cells if session.cause_of(cell) is None]
    for trial in grid_trials([work for work in plan.outputs if session.possible(work)], there):
        missing = [block for work in trial.works for block in session.bench.results.missing(work, size.points)]
        computed = session.callbacks.listens and session.unreported & {work.key for work in trial.works}
        points += sum(stop - start for _, start, stop in missing)
        passes += sum((stop - start) * sum(costs.of(work)) for work, start, stop in missing)
        todo += [trial] if missing or computed else []
    if todo:
        session.connect(size.cpus)
    if len(todo) < session.places():
        finish(_as_blocks(session, todo))
        failed, heard = session.outcome.failures.keys(), session.callbacks.listens
        todo, points, passes = [t for t in todo if heard and not failed & {work.key for work in t.works}], 0, 0.0
    if todo:
        space = {"trial": tune.grid_search(list(range(len(todo))))}
        _run(session, Request(f"sweep of {len(todo)} settings", ResolveGrid(todo), points, passes, space=space))


def _as_blocks(session: Session, trials: Sequence[Trial], beside: Beside | None = None) -> Steps:
    for works in phases(trials):
        yield from computing(session, BLOCKS, "evaluation", works, beside=beside)


def evaluating(session: Session, plan: Plan, beside: Beside) -> Steps:
    """Compute settings of a grid as blocks, beside something else; trials report it later, where somebody listens."""
    if beside.over:
        return
    trials = grid_trials([work for work in plan.outputs if session.possible(work)])
    missing = session.bench.results.missing
    points = session.sweep.resources.block.points
    session.unreported |= {work.key for trial in trials for work in trial.works if missing(work, points)}
    yield from _as_blocks(session, trials, beside)


def _search(session: Session, classifier: ClassifierWork, settings: OptunaSearch) -> list[Cell]:
    """Have Optuna propose settings for a classifier and evaluate them; returns their cells."""
    planner, space = session.planner, search_space(session.planner, classifier)
    resolve = ResolveSearch(planner, space, classifier.key)
    points = settings.trials * len(planner.inputs(classifier)) * len(session.study.points)
    found, seed = Tuned((), ()), session.sweep.seed
    shown = study_name(session.sweep.name, classifier.entry.name, session.store.address, seed)
    for again in range(1 + AGAIN):
        # A sampler that was told that settings have failed would propose others than one that knows their results,
        # which are stored by now: after a loss the search begins anew, and goes through what is stored in no time.
        search = optuna_search(space, settings, seed, shown, lambda line: session.tell(line, "yellow"))
        name = f"search on {classifier.entry.name}"
        found = _run(session, Request(name, resolve, 0 if again else points, samples=settings.trials, search=search))
        if not found.lost:
            break
    return [cell for each in found.configs for cell in search_cells(planner, classifier.key, space.setting(each))]


def _run(session: Session, request: Request) -> Tuned:
    """Run trials to their end; what those leave whose actors were lost is computed as blocks, by the rules of blocks."""
    size, points = session.sweep.resources.block, session.sweep.points
    began = time.time()
    with session.outcome.timed("sweep"):
        session.connect(size.cpus)
        at_once = session.sweep.resources.trials_at_once or max(1, int(session.cpus() // size.cpus))
        job = Job(
            data=[session.data()],
            own=own_modules(session.sweep.plugins),
            limits=limits_of(size),
            block=size.points,
            # A search is told accuracies on its own points, and never on those that are reported.
            reported=(points.selection, points.count) if request.search is None else (0, points.selection),
            resolve=Deferred(request.resolve),
            # The trials of a grid have no block in common; settings that a search proposes may.
            locks=None if request.search is None else [start_locks()],
            study=session.sweep.name,
            names={work.key: work.entry.name for work in session.planner.classifiers},
            progress=[session.progress],
            together=begin_together(session, request, at_once),
            run=request.name,
        )
        ended: Sequence[tuple[Config, Exception | None]] = ()
        starting = f"starting {job.together} workers" if job.together > 1 else "starting a worker"
        with stage(request.name, request.points, "points", session.console, starting, request.passes) as shown:
            progress = TrialProgress(shown, job, size.time_limit, by_passes=request.passes > 0)
            try:
                ended = _fit(session, request, job, at_once, progress)
            except (tune.TuneError, OSError, EOFError, RuntimeError) as error:
                session.fail(TUNE, request.name, error)  # Tune itself has failed; what its trials stored stays.
    session.outcome.spent.stage(progress.spans, began, time.time(), session.places())
    session.outcome.count("evaluation", progress.forward, progress.backward)
    lost = _lost(session, request, ended)
    return Tuned([config for config, _ in ended], lost)


def _lost(session: Session, request: Request, ended: Sequence[tuple[Config, Exception | None]]) -> list[Trial]:
    """Compute what is missing of the trials whose actors were lost, which are returned, and note the other failures."""
    lost, starved = list[Trial](), set[str]()
    for config, error in ended:
        if error is None:
            continue
        trial, fault = request.resolve(config), fault_of(error)
        if fault != "error":
            lost.append(trial)
            starved |= {work.key for work in trial.works} if fault == "out of memory" else set()
            continue
        first = trial.works[0].key
        session.fail(first, f"{trial.defense.name} {dict(trial.defense.values)}", error)
        session.outcome.failures |= {work.key: session.outcome.failures[first] for work in trial.works}
    if lost:
        event("trials lost", trials=len(lost))
        for works in phases(lost):
            compute_missing(session, LOST, "evaluation", works, starved=starved)
    return lost


def begin_together(session: Session, request: Request, at_once: int) -> int:
    """How many trials begin at the same time: what fits on the nodes that are up and what Tune asks for at once."""
    search = session.sweep.search
    if search is not None and session.address is not None:
        return 1  # On a cluster Tune asks a searcher for one setting after another (see `prepare_environment`).
    asked = os.environ.get("TUNE_MAX_PENDING_TRIALS_PG", "")
    waiting = len(getattr(request.resolve, "trials", ())) if search is None else min(search.trials, search.round)
    size = session.sweep.resources.block
    needs = {what: need for what, need in (("CPU", size.cpus), ("GPU", size.gpus)) if need}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fit = sum(int(min(node.get(what, 0) / need for what, need in needs.items())) for node in nodes)
    return min(at_once, waiting, fit, int(asked) if asked.isdigit() else fit)


class TrialProgress(tune.Callback):
    """A callback of Tune's that shows each computed block as progress, counts its passes, and stops a trial that hangs.

    limit: seconds for each block of a step, which computes one range of points on each of the trial's inputs. by_passes:
    whether the stage knows how many passes there will be.
    """

    def __init__(self, shown: Stage, job: Job, limit: float | None, *, by_passes: bool = False) -> None:
        self._shown, self._job, self._limit, self._by_passes = shown, job, limit, by_passes
        self.forward = self.backward = 0
        self.spans: list[Span] = []
        self.trials: list[TuneTrial] = []  # of this run, in the order in which they were made
        self._since = dict[TuneTrial, tuple[float, int]]()

    def __getstate__(self) -> dict[str, object]:
        """Keep nothing: Tune writes its callbacks down in order to restore a run, which we never do."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: Result, **info: object
    ) -> None:
        """Count what a step did and show it."""
        forward, backward = (int(result.get(name, 0)) for name in ("forward", "backward"))
        self.forward += forward
        self.backward += backward
        self.spans += spans_of(result)
        self._shown.begin(float(result["time_this_iter_s"]))
        self._shown.advance(int(result.get("computed", 0)), forward + backward if self._by_passes else None)
        if trial in self._since:
            self._since[trial] = (time.monotonic(), self._since[trial][1])
        self._note(
            "trial step",
            trial,
            points=result["points"],
            computed=result["computed"],
            seconds=round(float(result["time_this_iter_s"]), 3),
            pid=result.get("pid"),
            node=result.get("node"),
            store=result.get("store"),
        )

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        """Begin the time of the trial's first step."""
        self._since[trial] = (time.monotonic(), len(self._job.resolve(trial.config).works))
        self._note("trial begun", trial)

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        """Note that a trial has come to its end."""
        self._over("trial done", trial)

    def on_trial_recover(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        """Note that a trial's actor was lost, and that Tune begins it again."""
        self._over("trial lost", trial, attempt=trial.num_failures)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        """Note that Tune has given a trial up."""
        self._over("trial failed", trial, attempt=trial.num_failures)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: object) -> None:
        """Look at Ctrl-C, and stop the trials that are beyond the time limit of their blocks."""
        self.trials = list(trials)
        self._shown.advance(0)
        now, limit = time.monotonic(), self._limit or float("inf")
        for trial, (since, works) in list(self._since.items()):
            if now - since > limit * works and trial.temporary_state.ray_actor is not None:
                # Tune does not restart it: what it lacks runs as tasks, each with a limit of its own.
                trial.max_failures = 0
                self._since.pop(trial)
                ray.kill(trial.temporary_state.ray_actor)

    def _over(self, what: str, trial: TuneTrial, **facts: object) -> None:
        self._since.pop(trial, None)
        if self._job.locks is not None:
            self._job.locks[0].ended.remote(trial.trial_id)
        self._note(what, trial, **facts)

    def _note(self, what: str, trial: TuneTrial, **facts: object) -> None:
        event(what, **{"name": str(trial), "attempt": trial.num_failures + 1, **facts})


def _fit(
    session: Session, request: Request, job: Job, at_once: int, progress: TrialProgress
) -> list[tuple[Config, Exception | None]]:
    """Run Ray Tune to its end; returns each trial's configuration, and its error if it has failed."""
    size = session.sweep.resources.block
    # The trial's own actor does the work, so it takes the block's resources; a reused actor keeps the classifier.
    needs = {"cpu": size.cpus, "gpu": size.gpus}
    trainable = tune.with_resources(tune.with_parameters(SettingTrainable, job=job), needs)
    trainable.__name__ = trainable.__qualname__ = SettingTrainable.__name__  # What Ray's dashboard and `ps` show.
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "60")  # Its snapshots are not what resumes a study.
    # What Tune's own loggers write for each setting would lie in the scratch folder, where nobody reads it.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # It would miss those logs.
    with tempfile.TemporaryDirectory(prefix="mi-ray-tune-") as scratch:
        results = tune.Tuner(
            trainable,
            param_space=dict(request.space) if request.space else None,
            tune_config=tune.TuneConfig(
                num_samples=request.samples,
                search_alg=request.search,
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=TrialNames(job.resolve, job.names),
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,
                verbose=0,
                callbacks=[progress, *session.callbacks.tune(session.sweep.name)],
                # A lost setting of a grid is not tried again here, since its blocks then run as tasks. A search has to
                # be told a result of each setting.
                failure_config=tune.FailureConfig(max_failures=0 if request.search is None else SEARCH_TRIES),
            ),
        ).fit()
    # A result has no configuration where its actor died before it had said anything; the trial itself always has one.
    return [(trial.config, result.error) for trial, result in zip(progress.trials, results, strict=True)]
