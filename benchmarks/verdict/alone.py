"""A study of one small network, from its training to its verdicts, in this process: starting Ray would cost more than that.

Everything that decides a result is the program's own: what is planned, computed, stored and judged, and by which code.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import Classifier, build_classifier
from mi_ray.cluster.train_loop import TrainingValues, augmented, finished, learning_rate, write_classifier
from mi_ray.data import batches
from mi_ray.objectives import OBJECTIVES
from mi_ray.plan.work import ClassifierWork, Work
from mi_ray.run import load_sweeps
from mi_ray.store.blocks import Store
from mi_ray.study.given import given_classifier
from mi_ray.study.prepare import Study, prepare
from mi_ray.study.rows import Row, write_records
from mi_ray.study.verdicts import MORE_DRAWS
from mi_ray.study.workbench import Workbench


def trained(study: Study, work: ClassifierWork) -> Classifier:
    """A classifier as one worker of the program trains it, or the given one of a person's own."""
    if work.objective is None:
        return given_classifier(work.entry, study.dataset.classes, study.sweep.seed, work.description)
    training = cast(TrainingValues, study.planner.works.training(work.entry))
    torch.manual_seed(work.seed)
    made, objective = build_classifier(work.description), OBJECTIVES.make(*work.objective)
    momentum, decay = training["momentum"], training["weight_decay"]
    optimizer = torch.optim.SGD(made.parameters(), training["lr"], momentum, weight_decay=decay)
    images = torch.from_numpy(np.array(study.dataset.train_images)).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(np.array(study.dataset.train_labels))
    made.train()
    for epoch in range(training["epochs"]):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, epoch)
        for step, chosen in batches(work.seed, epoch, len(labels), training["batch_size"], 0, 1):
            rng = np.random.default_rng([work.seed, epoch, step, 0])
            loss = objective.loss(made, made, augmented(images[chosen], training, rng), labels[chosen], rng)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        made.passes.take()
    return made.eval()


class Judge:
    """Computes studies in one store, one after another; what one has stored serves the next."""

    def __init__(self, place: Path) -> None:
        self.store = Store(place, create=True)

    def judged(self, sweep: Mapping[str, Any]) -> list[Row]:
        """The rows of the study's cells, with their verdicts, once everything of it and of its checks is computed."""
        study = prepare(load_sweeps([sweep])[0])
        plan, bench = study.plan(), self._bench(study)
        size = study.sweep.resources.block.points
        for points, attacks in plan.by_points(plan.attacks_at_once(lambda method: ATTACKS[method].goes_on)):
            _compute(bench, attacks, size, points)
        _compute(bench, plan.attacks, size)
        _compute(bench, sorted(plan.outputs, key=lambda work: work.phase), size)
        counts = (study.sweep.points.selection, study.sweep.points.count)
        records = write_records(bench.results, plan, counts, lambda cell: None, lambda done: None)
        for points, attacks in plan.by_points(plan.check_attacks()):
            _compute(bench, attacks, size, points)
        of_checks = plan.by_points(plan.check_outputs())
        for of_f in (True, False):
            for points, outputs in of_checks:
                _compute(bench, [work for work in outputs if (work.component is None) == of_f], size, points)
        for _ in MORE_DRAWS:
            asked = records.open_draws()
            for points, outputs in asked.items():
                _compute(bench, outputs, size, points)
            if not asked:
                break
        return records.judged()

    def right(self, row: Row) -> Any:
        """Right draws of a cell at each of its reported points, int64 [points], in the points' order."""
        (block,) = self.store.blocks("records", row["cell"])
        table, _ = self.store.read_block("records", row["cell"], block)
        return table["correct_draws"].to_numpy()[~table["selection"].to_numpy()]

    def _bench(self, study: Study) -> Workbench:
        made = {}
        for work in study.planner.classifiers:
            if not finished(self.store, work.key):
                write_classifier(self.store, work.key, trained(study, work), {"name": work.entry.name}, [])
            weights = self.store.read_bytes(f"classifiers/{work.key}/model.safetensors")
            made[work.key] = (work.description, weights)
        return Workbench(study.data(self.store.address, made))


def _compute(bench: Workbench, works: Iterable[Work], size: int, limit: int | None = None) -> None:
    for work in works:
        for item in bench.results.missing(work, size, limit):
            bench.compute(*item)
