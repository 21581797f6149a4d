"""A study from end to end: train, attack, evaluate, derive the rows, write what the study says about them."""

import os
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import ray
from ray import tune
from rich.console import Console

from mi_ray.classifiers import read_weights
from mi_ray.cluster import trials
from mi_ray.cluster.actors import board, claims, read
from mi_ray.cluster.blocks import RayCluster, decide_precision, engine_of, run_blocks
from mi_ray.cluster.callbacks import Watch
from mi_ray.cluster.connect import connect
from mi_ray.cluster.retries import Attempts, fault_of, given_up, innermost
from mi_ray.cluster.search import ResolveSearch, optuna_search, search_cells, search_space
from mi_ray.cluster.train_loop import finished, fit, take_own
from mi_ray.events import about, event
from mi_ray.plan.work import Cell, ClassifierWork, OutputWork, Plan, Work
from mi_ray.progress import stage
from mi_ray.store.blocks import Store
from mi_ray.store.files import Files, remove_temporary_files, scratch_of
from mi_ray.store.schemas import TRAINING
from mi_ray.study.precision import decision_path, decisions
from mi_ray.study.prepare import Study
from mi_ray.study.report import mark, write_study
from mi_ray.study.rows import mark_selected, write_records
from mi_ray.study.workbench import Workbench

Until = Literal["train", "attack", "sweep"]
MANY = 10_000.0  # CPUs: on a cluster Ray queues what does not fit yet, and the autoscaler sees the queue
CHANCE = 1.5  # times chance: a classifier below it has learnt nothing worth defending
SWEEP = "sweep"  # the key under which a failure of Tune itself is noted
TRAINING_REMEDY = (
    "a worker ran out of memory, and again; raise resources.train.cpus, so that fewer share a node, or lower "
    "training.batch_size (which is another classifier)"
)
DAMAGED_NOTES = "CheckpointManagerInitializationError"  # what Ray Train says of its own list of checkpoints
LOST = "sweep: lost settings"
AGAIN = 3  # times that a search begins anew after settings were lost: what it found before is stored


@dataclass
class Outcome:
    """What a run did: seconds by stage, passes as counted by stage and direction, causes of failure by key."""

    seconds: dict[str, float] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    cells: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the block's duration to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


class Runner:
    """One run of one study against one store. Ray is started when something has to be computed, and not before."""

    def __init__(
        self, study: Study, store: Store, address: str | None, console: Console, watch: Watch | None = None
    ) -> None:
        self.store, self.address, self.console = store, address, console
        self.watch = watch or Watch()
        self._told: Any = None
        self._lost: list[trials.Trial] = []  # whose actors were lost
        self.settle(study.decided(decisions(store, study)))
        self.outcome = Outcome()
        self.scratch = scratch_of(store)

    def settle(self, study: Study) -> None:
        """Take up the study as it is now known: its keys may depend on what `precision: auto` decided."""
        self.study, self.sweep, self.planner = study, study.sweep, study.planner
        self._reference: Any = None
        self._bench: Workbench | None = None

    @property
    def bench(self) -> Workbench:
        """The driver's own workbench, once all classifiers that can be had are in the store."""
        if self._bench is None:
            done = [work for work in self.planner.classifiers if work.key not in self.outcome.failures]
            read = {
                work.key: (
                    work.description,
                    self.store.read_bytes(f"classifiers/{work.key}/model.safetensors"),
                )
                for work in done
            }
            self._bench = Workbench(self.study.data(self.store.root if self.store.local else self.store.uri, read))
        return self._bench

    @property
    def told(self) -> Any:
        """The board that running work tells how far it is."""
        if self._told is None:
            self._told = board()
        return self._told

    def reference(self) -> Any:
        """The study's data in Ray's object store, put there once."""
        if self._reference is None:
            self._reference = ray.put(self.bench.data)
        return self._reference

    def connect(self, need: float) -> None:
        """Start or join Ray, if that has not been done; raise ValueError when it has not what one piece of work needs."""
        with self.outcome.timed("ray"):
            connect(self.address)
        have = ray.cluster_resources()
        resources = self.sweep.resources
        gpus = max(resources.block.gpus, max(e.workers for e in self.sweep.classifiers) * resources.train.gpus)
        for what, needed in (("CPU", need), ("GPU", gpus)):
            if self.address is None and needed > have.get(what, 0):
                raise ValueError(
                    f"one piece of work asks for {needed:g} {what}s at once, this machine has {have.get(what, 0):g}; lower "
                    "resources.block, resources.train or classifiers.N.workers, or give --address of a cluster"
                )
        if self.store.local and len(ray.nodes()) > 1:
            self.console.print(
                f"note: the store {self.store.uri} must be a folder that all nodes share", style="yellow"
            )

    def cpus(self) -> float:
        """How many CPUs may be asked for at once: this machine's, or more than any cluster that grows on demand has."""
        return float(ray.cluster_resources().get("CPU", 0)) if self.address is None else MANY

    def _together(self, resolve: Any, at_once: int) -> int:
        """How many trials begin at the same time: what fits on the nodes that are up and Tune asks for at once."""
        search = self.sweep.search
        waiting = len(resolve.trials) if search is None else min(search.trials, search.round)
        if search is not None and self.address is not None:
            return 1  # Tune asks a searcher for one setting after another; locally see `prepare_environment`
        asked = os.environ.get("TUNE_MAX_PENDING_TRIALS_PG", "")
        size = self.sweep.resources.block
        needs = {what: need for what, need in (("CPU", size.cpus), ("GPU", size.gpus)) if need}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        fit = sum(int(min(node.get(what, 0) / need for what, need in needs.items())) for node in nodes)
        return min(at_once, waiting, fit, int(asked) if asked.isdigit() else fit)

    def train(self) -> None:
        """Bring every classifier that is not in the store into it."""
        todo = [work for work in self.planner.classifiers if not finished(self.store, work.key)]
        for work in self.planner.classifiers:
            if work not in todo:
                self._forget(work.key)  # of a run that was killed between its end and its tidying up
        own = [work for work in todo if work.objective is None]
        for work in own:
            entry = work.entry
            assert entry.weights is not None
            take_own(self.store, work.key, work.description, read_weights(Path(entry.weights)), entry.weights)
        todo = [work for work in todo if work.objective is not None]
        if todo:
            with self.outcome.timed("train"):
                self._fit(todo)
            self._note_chance(todo)
            trained = [work for work in todo if work.key not in self.outcome.failures]
            self.count("training", *(sum(work.cost[way] for work in trained) for way in (0, 1)))

    def decide(self) -> None:
        """Where the sweep says `precision: auto`: have each classifier's precision decided, once, and kept in the store."""
        known = decisions(self.store, self.study)
        todo = [w for w in self.planner.classifiers if w.key not in known and w.key not in self.outcome.failures]
        if self.sweep.precision != "auto" or not todo:
            return
        size = self.sweep.resources.block
        with self.outcome.timed("precision"), stage("precision: auto", len(todo), "classifiers", self.console) as shown:
            self.connect(size.cpus)
            for work in todo:
                task = decide_precision.options(
                    num_cpus=size.cpus, num_gpus=size.gpus, name=f"precision of {work.entry.name}"
                )
                decided = task.remote([self.reference()], self.sweep.plugins, engine_of(size), work.key)
                while not ray.wait([decided], timeout=1.0)[0]:
                    shown.advance(0)  # Ctrl-C is looked at here
                try:
                    found = ray.get(decided)
                except ray.exceptions.RayError as error:
                    self.fail(work.key, f"deciding the precision of {work.entry.name}", error)
                    continue
                self.store.write_json(decision_path(self.study, work.key), found)
                self.console.print(f"{work.entry.name}: {found['decision']} ({found['reason']})", highlight=False)
                shown.advance(1)
        self.settle(self.study.decided(decisions(self.store, self.study)))

    def _note_chance(self, trained: list[ClassifierWork]) -> None:
        """Say which classifiers ended near chance: every number about them is of no use."""
        chance = 1 / self.study.dataset.classes
        for work in trained:
            path = f"classifiers/{work.key}/training.parquet"
            if work.key not in self.outcome.failures:
                accuracy = self.store.read_table(path, TRAINING)["test_accuracy"][-1].as_py()
                if accuracy < CHANCE * chance:
                    self.console.print(
                        f"note: {work.entry.name} ended at {100 * accuracy:.1f} % test accuracy, near chance "
                        f"({100 * chance:.1f} %): train it longer, or lower the lr",
                        style="yellow",
                    )

    def _fit(self, todo: list[ClassifierWork]) -> None:
        resources = self.sweep.resources.train
        need = max(work.entry.workers for work in todo) * resources.cpus
        self.connect(need)
        data = ray.put(
            {
                f"{split}_{what}": getattr(self.study.dataset, f"{split}_{what}")
                for split in ("train", "test")
                for what in ("images", "labels")
            }
        )
        told, attempts = self.told, {work.key: Attempts() for work in todo}
        images = sum(self.planner.images_an_epoch(work.entry) * work.entry.training.epochs for work in todo)
        waiting, running = list(todo), dict[Any, ClassifierWork]()
        free = self.cpus()
        with stage("train", images, "images", self.console) as shown:
            while waiting or running:
                used = sum(work.entry.workers * resources.cpus for work in running.values())
                while waiting and (not running or used + waiting[0].entry.workers * resources.cpus <= free):
                    work = waiting.pop(0)
                    used += work.entry.workers * resources.cpus
                    attempts[work.key].tried += 1
                    running[self._start(work, data, told)] = work
                done, _ = ray.wait(list(running), timeout=1.0)
                for task in done:
                    work = running.pop(task)
                    if self._ended(work, task, attempts[work.key]):
                        waiting.insert(0, work)
                count, news = read(told)
                for row in (facts for what, facts in news if what == "epoch"):
                    self._epoch(row)
                shown.advance(max(0, count - shown.done))

    def _epoch(self, row: dict[str, Any]) -> None:
        name = next(work.entry.name for work in self.planner.classifiers if work.key == row["key"])
        self.watch.epoch(self.sweep.name, name, row)
        event("epoch", name=name, **row)

    def _start(self, work: ClassifierWork, data: Any, told: Any) -> Any:
        resources, entry = self.sweep.resources.train, work.entry
        config = {
            "key": work.key,
            "description": work.description,
            "objective": work.objective,
            "seed": work.seed,
            "training": self.planner.training_of(work),
            "data": data,
            "board": told,
            "plugins": self.sweep.plugins,
            "store": self.store.root if self.store.local else self.store.uri,
            "about": {
                "name": entry.name,
                "objective": work.objective,
                "training": self.planner.training_of(work),
                "workers": entry.workers,
                "seed": work.seed,
                "dataset": self.study.dataset.digest,
            },
        }
        event("training begun", key=work.key, name=entry.name, workers=entry.workers)
        return fit.options(name=f"{self.sweep.name}: train {entry.name}").remote(
            config, entry.workers, resources.cpus, resources.gpus, self.scratch
        )

    def _ended(self, work: ClassifierWork, task: Any, attempts: Attempts) -> bool:
        """Note how a training ended; returns whether it is to go on from its last checkpoint."""
        facts = {"key": work.key, "name": work.entry.name, "attempt": attempts.tried}
        try:
            ray.get(task)
            if not finished(self.store, work.key):
                raise ray.exceptions.WorkerCrashedError
        except ray.exceptions.RayError as error:
            fault = fault_of(error)
            again = attempts.failed(fault)
            if DAMAGED_NOTES in str(error) and attempts.tried <= 2:
                self._forget(work.key)  # killed while it wrote them: it begins anew, which ends with the same weights
                again = True
            why = given_up(fault, error, attempts.faults[fault], memory=TRAINING_REMEDY)
            event("training lost" if again else "training failed", fault=fault, cause=str(why), **facts)
            if not again:
                self.fail(work.key, f"training {work.entry.name}", why)
            return again
        event("training done", **facts)
        self._forget(work.key)
        return False

    def _forget(self, key: str) -> None:
        """Remove a training's checkpoints."""
        scratch = Files(self.scratch)
        scratch.remove(key)
        if not scratch.folders("") and not scratch.files(""):
            scratch.remove("")

    def fail(self, key: str, what: str, error: Exception) -> None:
        """Note why something failed: the last line of the innermost cause."""
        inner = innermost(error)
        lines = [line for line in str(inner).strip().splitlines() if line.strip()] or [type(inner).__name__]
        told = f"{what}: {lines[-1].strip()}"
        if (
            key not in self.outcome.failures and told not in self.outcome.failures.values()
        ):  # one block of many tells enough
            self.console.print(f"failed: {told}", style="red", highlight=False, markup=False)
        self.outcome.failures[key] = told

    def blocks(
        self, name: str, counted: str, works: Sequence[Work], limit: int | None = None, starved: Container[str] = ()
    ) -> None:
        """Compute what is missing of these works on the first `limit` points (all when left out), as Ray tasks."""
        size = self.sweep.resources.block
        ready = [work for work in works if self.possible(work)]
        todo = [item for work in ready for item in self.bench.missing(work.kind, work, size.points, limit)]
        if not todo:
            return
        with self.outcome.timed(name):
            self.connect(size.cpus)
            total = sum(stop - start for _, start, stop in todo)
            with stage(name, total, "points", self.console) as shown:
                ours = RayCluster(self.reference(), self.sweep.plugins, size, self.sweep.name, self.told)
                ran = run_blocks(ours, todo, size.time_limit, shown, starved)
        for position, error in ran.failures.items():
            work = todo[position][0]
            component = work.component if isinstance(work, OutputWork) and name == LOST else None
            what = f"{component.name} {dict(component.values)}" if component else name
            self.fail(work.key, f"{what} on {self.name_of(work.classifier)}", error)
        self.count(counted, ran.forward, ran.backward)

    def count(self, stage_name: str, forward: int, backward: int) -> None:
        """Add passes that were counted as they were done."""
        for direction, passes in (("forward", forward), ("backward", backward)):
            what = f"{stage_name}_{direction}"
            self.outcome.counted[what] = self.outcome.counted.get(what, 0) + passes

    def name_of(self, classifier: str) -> str:
        """The name that the sweep gives a classifier."""
        return next(work.entry.name for work in self.planner.classifiers if work.key == classifier)

    def possible(self, work: Work) -> bool:
        """Whether what the work stands on has not failed."""
        return not work.stands_on() & self.outcome.failures.keys()

    def evaluate(self, plan: Plan) -> Plan:
        """Run what is missing of the defenses' outputs as Tune trials; returns the plan with the cells of a search."""
        ready = [work for work in plan.outputs if self.possible(work)]
        if self.sweep.search is None:
            size = self.sweep.resources.block.points
            missing = {
                trial: [block for work in trial.works for block in self.bench.missing("outputs", work, size)]
                for trial in trials.grid_trials(ready)
            }
            todo = [trial for trial, blocks in missing.items() if blocks]
            if todo:
                points = sum(stop - start for blocks in missing.values() for _, start, stop in blocks)
                space = {"trial": tune.grid_search(list(range(len(todo))))}
                self._tune(f"sweep of {len(todo)} settings", trials.ResolveGrid(todo), points, space, None, 1)
            return plan
        found: list[Cell] = list(plan.cells)
        for work in self.planner.classifiers:
            if work.key in self.outcome.failures:
                continue
            space_of = search_space(self.planner, work)
            resolve_search = ResolveSearch(self.planner, space_of, work.key)
            search = optuna_search(space_of, self.sweep.search, self.sweep.seed)
            name = f"search on {work.entry.name}"
            inputs = len(self.planner.inputs(work)) * len(self.study.points)
            trial_count = self.sweep.search.trials
            proposed = self._tune(name, resolve_search, trial_count * inputs, None, search, trial_count)
            for _ in range(AGAIN):
                if not self._lost:
                    break
                # The sampler was told that they failed: told their results, which are stored now, it proposes others.
                search = optuna_search(space_of, self.sweep.search, self.sweep.seed)
                proposed = self._tune(name, resolve_search, 0, None, search, trial_count)
            for config in proposed:
                found += search_cells(self.planner, work.key, space_of.setting(config))
        return self.planner.plan_of(found)

    def _tune(self, name: str, resolve: Any, total: int, space: Any, search: Any, samples: int) -> Sequence[Any]:
        """Run trials; returns the configurations that ran. total: the points that they will compute, for the bar."""
        size = self.sweep.resources.block
        with self.outcome.timed("sweep"):
            self.connect(size.cpus)
            at_once = self.sweep.resources.trials_at_once or max(1, int(self.cpus() // size.cpus))
            selection = self.sweep.points.selection
            part = (0, selection) if search is not None else (selection, self.sweep.points.count)
            # A grid's trials have no work in common; settings that a search proposes may.
            held = None if search is None else [claims()]
            job = trials.Job(
                [self.reference()],
                self.sweep.plugins,
                engine_of(size),
                size.points,
                part,
                resolve,
                held,
                self.sweep.name,
                {work.key: work.entry.name for work in self.planner.classifiers},
                [self.told],
                self._together(resolve, at_once),
                name,
            )
            ended, passes = list[tuple[Any, Exception | None]](), (0, 0)
            try:
                with stage(name, total, "points", self.console) as shown:
                    ended, passes = trials.run_trials(
                        job,
                        space,
                        search,
                        samples,
                        size.cpus,
                        size.gpus,
                        at_once,
                        shown,
                        size.time_limit,
                        self.watch.tune(self.sweep.name),
                    )
            except (tune.TuneError, OSError, EOFError, RuntimeError) as error:
                self.fail(SWEEP, name, error)  # Tune itself failed; what its trials stored stays
        self.count("evaluation", *passes)
        self._lost, starved = [], set[str]()
        for config, problem in ended:
            if problem is not None and fault_of(problem) != "error":
                self._lost.append(resolve(config))
                if fault_of(problem) == "out of memory":
                    starved |= {work.key for work in self._lost[-1].works}
            elif problem is not None:
                trial = resolve(config)
                self.fail(trial.works[0].key, f"{trial.defense.name} {dict(trial.defense.values)}", problem)
                self.outcome.failures |= dict.fromkeys(
                    (work.key for work in trial.works), self.outcome.failures[trial.works[0].key]
                )
        if self._lost:
            event("trials lost", trials=len(self._lost))
            for works in trials.phases(self._lost):
                self.blocks(LOST, "evaluation", works, starved=starved)
        return [config for config, _ in ended]

    def causes(self, cell: Cell) -> str | None:
        """Why a cell is not there, where something it stands on has failed."""
        needs = [cell.classifier, cell.undefended.key, *(work.key for work, _ in cell.components)]
        if cell.inputs.attack is not None:
            needs.append(cell.inputs.attack.key)
        return next((self.outcome.failures[key] for key in [*needs, SWEEP] if key in self.outcome.failures), None)

    def records(self, plan: Plan) -> None:
        """Derive the rows of every cell and write what the study says about them."""
        with self.outcome.timed("records"), stage("records", len(plan.cells), "cells", self.console) as shown:
            points = self.sweep.points
            rows = write_records(self.bench, plan, (points.selection, points.count), self.causes, shown.advance)
            mark_selected(rows)
        for row in rows:
            told = ("cell", "state", "cause", "classifier", "attack", "defense", "defense_params", "executions", "work")
            event("cell", **{name: row[name] for name in told if row.get(name, "") != ""})
        self.outcome.cells = rows
        done = {"counted_passes": self.outcome.counted, "seconds": self.outcome.seconds}
        write_study(self.store, self.study, plan, rows, {"last_run": done, "failures": self.outcome.failures})

    def attack(self, plan: Plan) -> None:
        """Craft the checks' adversarial examples, then the study's (which read their stops off the same trajectories),
        and pass all of them through F."""
        self.blocks("checks: attacks", "checks", plan.check_attacks(), plan.checked)
        self.blocks("attack", "attack", plan.attacks)
        own = [work for work in plan.outputs if work.component is None]
        self.blocks("outputs of F", "evaluation", own)

    def check(self, plan: Plan) -> None:
        """Evaluate the checks' adversarial examples, and craft those of the settings that a search found."""
        self.blocks("checks: attacks", "checks", plan.check_attacks(), plan.checked)
        outputs = plan.check_outputs()
        for of_f in (True, False):
            some = [work for work in outputs if (work.component is None) == of_f]
            self.blocks("checks: outputs", "checks", some, plan.checked)

    def run(self, until: Until = "sweep") -> Outcome:
        """Do all that is missing, up to a stage."""
        with about(study=self.sweep.name):
            event("study begun", until=until)
            try:
                self._run(until)
            finally:
                self.watch.close()
            remove_temporary_files(self.store)
            event("study done", failed=len(self.outcome.failures), seconds=round(sum(self.outcome.seconds.values()), 3))
        return self.outcome

    def _run(self, until: Until) -> None:
        plan = self.study.plan()
        mark(self.store, self.study, plan, "running")
        self.train()
        if until != "train":
            self.decide()
            plan = self.study.plan()
            mark(self.store, self.study, plan, "running")
            self.attack(plan)
        if until != "sweep":
            mark(self.store, self.study, plan, "trained" if until == "train" else "attacked")
            return
        plan = self.evaluate(plan)
        self.check(plan)
        self.records(plan)
