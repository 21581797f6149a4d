"""The classifiers of a study: every one that is not in the store yet is trained with Ray Train, several at once."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import cast

import ray

from mi_ray.cluster.blocks import Beside, Steps
from mi_ray.cluster.retries import Retries, fault_of, given_up
from mi_ray.cluster.session import Session
from mi_ray.cluster.train_loop import (
    RUN,
    TrainingConfig,
    TrainingValues,
    finished,
    fit_task,
    handed,
    write_classifier,
)
from mi_ray.events import event
from mi_ray.own_code import own_modules
from mi_ray.plan.work import ClassifierWork
from mi_ray.progress import Stage, stage
from mi_ray.store.files import Files
from mi_ray.store.locks import lock_trainings
from mi_ray.store.schemas import TRAINING
from mi_ray.study.given import given_classifier

REMEDY = (
    "a worker ran out of memory, also while no other training ran; use nodes with more memory, raise resources.train.cpus, so "
    "that fewer workers share a node, or lower training.batch_size (which is another classifier)"
)


OfTrained = Callable[[Beside], Steps]  # Begins what is to be done of the classifiers that are trained.


def train(session: Session, of_trained: OfTrained | None = None) -> None:
    """Bring every classifier that is not in the store into it.

    of_trained: what is done meanwhile, in the places that trainings leave free, as soon as one classifier is there.
    """
    left = [work for work in session.planner.classifiers if not finished(session.store, work.key)]
    for work in session.planner.classifiers:
        if work not in left:
            # A run that was killed between the end of a training and its tidying up may have left checkpoints.
            _remove_checkpoints(session, work.key)
    for work in left:
        if work.objective is None:
            made = given_classifier(work.entry, session.study.dataset.classes, session.sweep.seed, work.description)
            origin = work.entry.weights or work.entry.factory or str(work.entry.source)
            write_classifier(session.store, work.key, made, {"weights_from": Path(origin).name}, [])
    todo = [work for work in left if work.objective is not None]
    if not todo:
        return
    with lock_trainings(session.store, [work.key for work in todo], session.tell) as give_back:
        # Another study, which was waited for, may have trained some of them.
        todo = [work for work in todo if not finished(session.store, work.key)]
        if todo:
            _train(todo, session, of_trained, give_back)


def _train(
    todo: Sequence[ClassifierWork], session: Session, of_trained: OfTrained | None, give_back: Callable[[str], None]
) -> None:
    """Train these classifiers, and give back the lock on each as soon as it is trained."""
    began, spent = time.time(), session.outcome.spent
    before = spent.whole()
    session.untrained = {work.key for work in todo}
    with session.outcome.timed("train"):
        trained = _Trainings(session, todo, _Meanwhile(session, of_trained), give_back).run()
    session.take_up(session.study)
    meanwhile = spent.whole() - before
    spent.add("training", (time.time() - began) * session.places() - meanwhile)
    _tell_of_chance(session, trained)
    session.outcome.count("training", *(sum(work.cost[way] for work in trained) for way in (0, 1)))


def _tell_of_chance(session: Session, trained: Sequence[ClassifierWork]) -> None:
    """Say which classifiers ended near chance, since every number about them is of no use."""
    for work in trained:
        rows = session.store.read_table(f"classifiers/{work.key}/training.parquet", TRAINING)
        accuracy = rows["test_accuracy"][-1].as_py()
        session.tell_near_chance(f"{work.entry.name} ended at", accuracy, "train it longer, or lower the lr")


def _remove_checkpoints(session: Session, key: str) -> None:
    """Remove a training's checkpoints, and their folder with the last of them, in which others may begin one meanwhile."""
    scratch = Files(session.scratch)
    scratch.remove(key)
    scratch.remove(key + RUN)
    if scratch.local:
        with suppress(OSError):
            Path(scratch.root).rmdir()


class _Meanwhile:
    """What is done of the classifiers that are trained while others still are.

    It begins anew with each classifier more, since what has to be done of that one may come first.
    """

    def __init__(self, session: Session, of_trained: OfTrained | None) -> None:
        self._session, self._of_trained = session, of_trained
        self._steps: Steps | None = None
        self._beside, self._due = Beside(), False
        self.tasks: Sequence[Hashable] = ()  # What it waits for.

    def begin(self) -> None:
        """Begin as soon as what was begun before has come to the end of its running blocks."""
        self._due = self._of_trained is not None
        self._beside.over = True

    def step(self, places: int) -> None:
        """Go on with what has happened. places: how many blocks may run now."""
        if self._steps is None and self._due and places and self._of_trained is not None:
            self._session.take_up(self._session.study)
            self._due, self._beside = False, Beside()
            self._steps = self._of_trained(self._beside)
        self._beside.places = places
        tasks = None if self._steps is None else next(self._steps, None)
        if tasks is None:
            self._steps = None
        self.tasks = tasks or ()

    def close(self) -> None:
        """Give up what runs, as where something else has failed."""
        if self._steps is not None:
            self._steps.close()

    def end(self) -> None:
        """Let the blocks that run come to their end; none begins any more."""
        self._due, self._beside.over = False, True
        while self._steps is not None:
            if self.tasks:
                ray.wait(list(self.tasks), timeout=1.0)
            self.step(0)


class _Trainings:
    """Runs trainings until each is in the store or given up, as many at once as there are CPUs for."""

    def __init__(
        self,
        session: Session,
        todo: Sequence[ClassifierWork],
        meanwhile: _Meanwhile,
        give_back: Callable[[str], None],
    ) -> None:
        self.session, self.todo, self.meanwhile, self.give_back = session, todo, meanwhile, give_back
        self.size = session.sweep.resources.train
        self.waiting = list(todo)
        self.trained = list[ClassifierWork]()
        self.images = dict[str, int]()  # by key: those that each training has gone through, of `_wanted`
        self._wanted, self._passes = dict[str, int](), dict[str, float]()
        self.running = dict[ray.ObjectRef, ClassifierWork]()
        self.retries = {work.key: Retries() for work in todo}

    def run(self) -> Sequence[ClassifierWork]:
        """Run them all; returns those that ended well."""
        session, planner = self.session, self.session.planner
        session.connect(
            max(self._cpus(work) for work in self.todo),
            max(work.entry.workers * self.size.gpus for work in self.todo),
        )
        data = ray.put(handed(session.study.dataset))
        self._wanted = {w.key: planner.works.images_an_epoch(w.entry) * w.entry.training.epochs for w in self.todo}
        self._passes = {work.key: float(sum(work.cost)) for work in self.todo}
        images, passes = sum(self._wanted.values()), sum(self._passes.values())
        free = session.cpus()
        workers = sum(work.entry.workers for work in self.todo)
        starting = f"starting {workers} training worker{'s' if workers > 1 else ''}"
        if any(work.key not in session.untrained | session.outcome.failures.keys() for work in planner.classifiers):
            self.meanwhile.begin()
        with (
            closing(self.meanwhile),
            stage("train", images, "images", session.console, starting, passes) as shown,
        ):
            while self.waiting or self.running:
                self._fill(free, data)
                done, _ = ray.wait([*self.running, *self.meanwhile.tasks], timeout=1.0)
                for task in done:
                    self._ended(task)
                self.meanwhile.step(self._free_places())
                self._show(shown)
            self.meanwhile.end()
        return self.trained

    def _ended(self, task: ray.ObjectRef) -> None:
        """Take up the end of an attempt at a training; a block's is no affair of trainings."""
        work = self.running.pop(task, None)
        if work is None:
            return
        if self._is_to_go_on(work, task):
            # One that is to run alone waits for all others, none of which need wait for it.
            self.waiting.insert(len(self.waiting) if self.retries[work.key].alone else 0, work)
            return
        self.session.untrained.discard(work.key)
        self.give_back(work.key)
        if work.key not in self.session.outcome.failures:
            self.trained.append(work)
        self.meanwhile.begin()

    def _free_places(self) -> int:
        """How many blocks have room beside the trainings that run.

        None has while a training waits for its turn, while one of several workers has not gone through an image yet, since its
        workers may still have to be placed, and while one that ran out of memory is to run alone.
        """
        placed = all(work.entry.workers == 1 or self.images.get(work.key) for work in self.running.values())
        if self.waiting or not placed or any(self.retries[work.key].alone for work in self.running.values()):
            return 0
        have, block = ray.cluster_resources(), self.session.sweep.resources.block
        workers = sum(work.entry.workers for work in self.running.values())
        takes = (("CPU", self.size.cpus, block.cpus), ("GPU", self.size.gpus, block.gpus))
        return max(0, int(min((have.get(what, 0) - workers * each) / need for what, each, need in takes if need)))

    def _cpus(self, work: ClassifierWork) -> float:
        return float(work.entry.workers * self.size.cpus)

    def _fill(self, free: float, data: ray.ObjectRef) -> None:
        """Start waiting trainings, in order, while there is room for the next one; one runs whatever it needs."""
        while self.waiting and self._has_room(self.waiting[0], free):
            work = self.waiting.pop(0)
            self.retries[work.key].tried += 1
            self.running[self._start(work, data)] = work

    def _has_room(self, work: ClassifierWork, free: float) -> bool:
        """Whether a training may begin beside what runs: none does beside one that ran out of memory before."""
        running = list(self.running.values())
        if any(self.retries[each.key].alone for each in (work, *running)):
            return not running and not self.meanwhile.tasks
        return not running or sum(self._cpus(each) for each in (work, *running)) <= free

    def _start(self, work: ClassifierWork, data: ray.ObjectRef) -> ray.ObjectRef:
        session, entry = self.session, work.entry
        assert work.objective is not None
        training = cast(TrainingValues, session.planner.works.training(work.entry))
        config: TrainingConfig = {
            "key": work.key,
            "description": work.description,
            "objective": work.objective,
            "seed": work.seed,
            "training": training,
            "data": data,
            "progress": session.progress,
            "own": own_modules(session.sweep.plugins),
            "cpus": self.size.cpus,
            "gpus": self.size.gpus,
            "scratch": session.scratch,
            "store": session.store.address,
            "about": {
                "name": entry.name,
                "objective": work.objective,
                "training": training,
                "workers": entry.workers,
                "seed": work.seed,
                "dataset": session.study.dataset.digest,
            },
        }
        event("training begun", key=work.key, name=entry.name, workers=entry.workers)
        task = fit_task(f"{session.sweep.name}: train {entry.name}", entry.workers, self.size.cpus, self.size.gpus)
        return task.remote(config, entry.workers)

    def _is_to_go_on(self, work: ClassifierWork, task: ray.ObjectRef) -> bool:
        """Note how an attempt at a training ended; returns whether it is to go on from its last checkpoint."""
        retries = self.retries[work.key]
        facts = {"key": work.key, "name": work.entry.name, "attempt": retries.tried}
        try:
            ray.get(task)
            if not finished(self.session.store, work.key):
                raise ray.exceptions.WorkerCrashedError
        except ray.exceptions.RayError as error:
            return self._failed(work, error, facts)
        event("training done", **facts)
        _remove_checkpoints(self.session, work.key)
        return False

    def _failed(self, work: ClassifierWork, error: Exception, facts: dict[str, object]) -> bool:
        retries = self.retries[work.key]
        fault = fault_of(error)
        again = retries.failed(fault)
        why = given_up(fault, error, retries.faults[fault], memory=REMEDY)
        event("training lost" if again else "training failed", fault=fault, cause=str(why), **facts)
        if not again:
            self.session.fail(work.key, f"training {work.entry.name}", why, training=True)
        return again

    def _show(self, shown: Stage) -> None:
        """Bring the progress and the curves up to date with what the workers have told."""
        self.images, epochs = self.session.read("epoch")
        count = self.images
        passed = sum(
            self._passes[key] * images / self._wanted[key] for key, images in count.items() if key in self._wanted
        )
        for facts in epochs:
            self._note_epoch(facts.pop("key"), facts)
        shown.advance(max(0, sum(count.values()) - shown.done), max(0.0, passed - shown.passed))

    def _note_epoch(self, key: str, row: Mapping[str, float]) -> None:
        name = self.session.name_of(key)
        self.session.callbacks.epoch(self.session.sweep.name, name, row)
        event("epoch", name=name, key=key, **row)
