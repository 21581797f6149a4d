"""The classifiers of a study: every one that is not in the store yet is trained with Ray Train, several at once."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import ray

from mi_ray.cluster.actors import read_progress
from mi_ray.cluster.retries import Retries, fault_of, given_up
from mi_ray.cluster.session import Session
from mi_ray.cluster.train_loop import MEASURED, TrainingConfig, TrainingValues, finished, fit, write_classifier
from mi_ray.events import event
from mi_ray.plan.work import ClassifierWork
from mi_ray.progress import Stage, stage
from mi_ray.store.files import Files
from mi_ray.store.schemas import TRAINING
from mi_ray.study.given import given_classifier

CHANCE = 1.5  # Times chance: a classifier below it has learnt nothing worth defending.
REMEDY = (
    "a worker ran out of memory, and again; raise resources.train.cpus, so that fewer share a node, or lower "
    "training.batch_size (which is another classifier)"
)
DAMAGED_NOTES = "CheckpointManagerInitializationError"  # What Ray Train says of its own list of checkpoints.


def train(session: Session) -> None:
    """Bring every classifier that is not in the store into it."""
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
    began = time.time()
    with session.outcome.timed("train"):
        _Trainings(session, todo).run()
    session.outcome.spent.add("training", (time.time() - began) * session.places())
    trained = [work for work in todo if work.key not in session.outcome.failures]
    _tell_of_chance(session, trained)
    session.outcome.count("training", *(sum(work.cost[way] for work in trained) for way in (0, 1)))


def _tell_of_chance(session: Session, trained: Sequence[ClassifierWork]) -> None:
    """Say which classifiers ended near chance, since every number about them is of no use."""
    chance = 1 / session.study.dataset.classes
    for work in trained:
        rows = session.store.read_table(f"classifiers/{work.key}/training.parquet", TRAINING)
        accuracy = rows["test_accuracy"][-1].as_py()
        if accuracy < CHANCE * chance:
            session.tell(
                f"note: {work.entry.name} ended at {100 * accuracy:.1f} % test accuracy, near chance "
                f"({100 * chance:.1f} %): train it longer, or lower the lr",
                "yellow",
            )


def _remove_checkpoints(session: Session, key: str) -> None:
    """Remove a training's checkpoints, and their folder with the last of them."""
    scratch = Files(session.scratch)
    scratch.remove(key)
    if not scratch.folders("") and not scratch.files(""):
        scratch.remove("")


class _Trainings:
    """Runs trainings until each is in the store or given up, as many at once as there are CPUs for."""

    def __init__(self, session: Session, todo: Sequence[ClassifierWork]) -> None:
        self.session, self.todo = session, todo
        self.size = session.sweep.resources.train
        self.waiting = list(todo)
        self.running = dict[ray.ObjectRef, ClassifierWork]()
        self.retries = {work.key: Retries() for work in todo}

    def run(self) -> None:
        """Run them all."""
        session, planner = self.session, self.session.planner
        session.connect(max(self._cpus(work) for work in self.todo))
        dataset = session.study.dataset
        data = ray.put(
            {
                "train_images": np.asarray(dataset.train_images),
                "train_labels": dataset.train_labels,
                "test_images": dataset.test_images[:MEASURED],
                "test_labels": dataset.test_labels[:MEASURED],
            }
        )
        self._images = {w.key: planner.works.images_an_epoch(w.entry) * w.entry.training.epochs for w in self.todo}
        self._passes = {work.key: float(sum(work.cost)) for work in self.todo}
        images, passes = sum(self._images.values()), sum(self._passes.values())
        free = session.cpus()
        workers = sum(work.entry.workers for work in self.todo)
        starting = f"starting {workers} training worker{'s' if workers > 1 else ''}"
        with stage("train", images, "images", session.console, starting, passes) as shown:
            while self.waiting or self.running:
                self._fill(free, data)
                done, _ = ray.wait(list(self.running), timeout=1.0)
                for task in done:
                    work = self.running.pop(task)
                    if self._is_to_go_on(work, task):
                        self.waiting.insert(0, work)
                self._show(shown)

    def _cpus(self, work: ClassifierWork) -> float:
        return float(work.entry.workers * self.size.cpus)

    def _fill(self, free: float, data: ray.ObjectRef) -> None:
        """Start waiting trainings, in order, while there are CPUs for the next one; one runs whatever it needs."""
        used = sum(self._cpus(work) for work in self.running.values())
        while self.waiting and (not self.running or used + self._cpus(self.waiting[0]) <= free):
            work = self.waiting.pop(0)
            used += self._cpus(work)
            self.retries[work.key].tried += 1
            self.running[self._start(work, data)] = work

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
            "plugins": session.sweep.plugins,
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
        task = fit.options(name=f"{session.sweep.name}: train {entry.name}")
        return task.remote(config, entry.workers, self.size.cpus, self.size.gpus, session.scratch)

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
        if DAMAGED_NOTES in str(error) and retries.tried <= 2:
            # It was killed while Ray Train wrote its list: the training begins anew, and ends with the same weights.
            _remove_checkpoints(self.session, work.key)
            again = True
        why = given_up(fault, error, retries.faults[fault], memory=REMEDY)
        event("training lost" if again else "training failed", fault=fault, cause=str(why), **facts)
        if not again:
            self.session.fail(work.key, f"training {work.entry.name}", why)
        return again

    def _show(self, shown: Stage) -> None:
        """Bring the progress and the curves up to date with what the workers have told."""
        count, news = read_progress(self.session.progress)
        passed = sum(
            self._passes[key] * images / self._images[key] for key, images in count.items() if key in self._images
        )
        for facts in (facts for what, facts in news if what == "epoch"):
            self._note_epoch(facts.pop("key"), facts)
        shown.advance(max(0, sum(count.values()) - shown.done), max(0.0, passed - shown.passed))

    def _note_epoch(self, key: str, row: Mapping[str, float]) -> None:
        name = self.session.name_of(key)
        self.session.callbacks.epoch(self.session.sweep.name, name, row)
        event("epoch", name=name, key=key, **row)
