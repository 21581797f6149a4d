"""What a process needs in order to compute a block of a study and put it into the store, without Ray.

A `StudyData` travels to every worker once. A `Workbench` unpacks it there, and keeps classifiers, sample pools and images
on the device between blocks.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from mi_ray.attacks import ATTACKS, Attack, Begun
from mi_ray.attacks.balls import distance
from mi_ray.attacks.base import Adversarial
from mi_ray.classifiers import Classifier, Precision
from mi_ray.data import to_unit
from mi_ray.defenses import DEFENSES, DefendedClassifier, RandomTransform
from mi_ray.defenses.base import CHUNK
from mi_ray.device import PassCounter, exact_arithmetic, keep_memory, on_device
from mi_ray.graphs import Graphs
from mi_ray.networks import hand_over
from mi_ray.own_code import places_told
from mi_ray.plan.work import AttackWork, Inputs, OutputWork, Work
from mi_ray.sample_pool import SamplePool
from mi_ray.store.blocks import COST
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import Values
from mi_ray.store.locks import lock_key
from mi_ray.store.schemas import ADVERSARIAL, OUTPUTS, images_column, list_column
from mi_ray.study.batches import (
    BlockInput,
    activation_bytes,
    attack_outputs,
    component_outputs,
    lanes_within,
    undefended_outputs,
)
from mi_ray.study.results import Results, StudyData, holds


@dataclass(frozen=True)
class WorkerLimits:
    """What a worker may use for its blocks. No result depends on it.

    threads: how many the worker runs. share: the part of the device, or of the machine, that is the worker's own.
    memory_budget: bytes for the batches that are computed side by side; None allows what is free.
    """

    threads: int = 1
    share: float = 1.0
    memory_budget: int | None = None


@dataclass(frozen=True)
class Done:
    """A block that was computed and stored: its points, the passes that were counted on the way, and the seconds for which
    it read or wrote the store."""

    points: int
    forward: int
    backward: int
    store: float = 0.0


class OvertakenError(Exception):
    """While a block was computed, another study has stored one of this very range that holds more."""


def hand_back() -> None:
    """Have this process read the files of a person's own networks again, which a workbench has kept it from.

    It may go on with something else than the study, for which other weights have been written into the same files.
    """
    hand_over({})


class Workbench:
    """Computes and stores the blocks of one study in one process. `results` reads what is stored."""

    def __init__(self, data: StudyData, limits: WorkerLimits = WorkerLimits()) -> None:
        self.data, self.limits = data, limits
        self.device = torch.device(data.device)
        self.passes = PassCounter()
        keep_memory()
        exact_arithmetic(self.device)
        hand_over(data.networks)
        self.results = Results(data)
        self.store = self.results.store
        self.classifier = lru_cache(maxsize=8)(self._classifier)
        self.pool = lru_cache(maxsize=None)(self._pool)
        self._lanes = lru_cache(maxsize=None)(self._lanes_of)

    def _classifier(self, key: str, precision: Precision) -> Classifier:
        """A classifier on the device, whose passes are counted here; one of less precision knows the exact one too."""
        made = self.data.prepared(key, self.device, precision, self.data.compile)
        made.passes = self.passes
        made.exact = [self.classifier(key, "fp32")] if precision != "fp32" else []
        if key in self.data.graphs and precision == self.data.precision[key]:
            executions = self.data.batch * CHUNK
            made.graphs = Graphs(made.answer, forward=[executions], gradient=[self.data.batch, executions])
        return made

    def _lanes_of(self, key: str) -> int:
        """How many batches of a classifier are computed side by side; one of a network that is replayed as a CUDA graph.

        PyTorch keeps these graphs for the thread that compiled them, and fails in another one.
        """
        most = self.limits.threads
        if (self.device.type == "cpu" and most == 1) or self.data.compile == "reduce-overhead":
            return 1
        height, width, channels = self.data.images.shape[1:]
        plain = self.data.prepared(key, self.device, "fp32")
        one = activation_bytes(plain, (channels, height, width), self.device)
        batch = one * self.data.batch * CHUNK
        return lanes_within(self.limits.memory_budget, batch, self.device, most, self.limits.share)

    def _pool(self, digest: str) -> SamplePool:
        """The sample pool of that digest on the device."""
        return self.data.pools[digest].pool(self.data.classes, self.device)

    def attacked(self, work: AttackWork) -> nn.Module:
        """What an attack is handed: F to an oblivious one, F behind the defense to an adaptive one."""
        classifier = self.classifier(work.classifier, self.data.precision[work.classifier])
        if work.defense is None:
            return classifier
        pools = {name: self.pool(digest) for name, digest in work.pools.items()}
        return DefendedClassifier(classifier, DEFENSES.make(*work.defense), pools, work.executions, self.data.seed)

    def clean(self, start: int, stop: int) -> Tensor:
        """float32 [stop - start, C, H, W] in [0, 1]: the clean images of a range."""
        return on_device(to_unit(self.data.images[start:stop]), self.device)

    def images(self, inputs: Inputs, start: int, stop: int) -> Tensor:
        """float32 [stop - start, C, H, W] in [0, 1] of the points in a range."""
        if inputs.attack is None:
            return self.clean(start, stop)
        return on_device(self.results.adversarial(inputs, start, stop)[0], self.device)

    def attack(self, work: AttackWork, start: int, stop: int) -> Done:
        """Craft and store a block of adversarial images.

        What is stored of its trajectories is kept, and the attack goes on from there if it is one that can.
        """
        began = time.perf_counter()
        stored, facts = self._trajectory(work, start, stop)
        have = facts.get("stops", [])
        attack = _stopping_at(work, [at for at in work.stops if at not in have])
        begun = self._begun(stored, max((at for at in have if at < min(attack.stops())), default=0))
        x, points = self.clean(start, stop), list(self.data.points[start:stop])
        y = on_device(np.array(self.data.labels[start:stop]), self.device)
        # The labels that F predicted when the trajectories began are stored with them, and need no pass.
        guessed = begun is not None and work.labels == "predicted" and work.threat.goal == "untargeted"
        found, labels = attack_outputs(
            self.attacked(work),
            attack,
            replace(self._block(work, x, points), given=[self.images(each, start, stop) for each in work.given]),
            self._labels_of(stored, len(points)) if guessed else y,
            self.data.classes,
            work.threat,
            "true" if guessed else work.labels,
            begun,
        )
        table = _in_order([stored, _adversarial_table(found, x, y, labels, points)], points)
        about = {"epsilon": work.threat.epsilon, "keeps_box": attack.keeps_box}
        if work.threat.norm != "linf":  # No column tells of any other norm, so that the block does.
            farthest = float(distance(work.threat.norm, x, found.images, found.shares).max())
            about[work.threat.norm] = max(farthest, facts.get(work.threat.norm, 0.0))
        return self._write(work, start, stop, table, began, about, facts)

    def _trajectory(self, work: AttackWork, start: int, stop: int) -> tuple[pa.Table, Mapping[str, Any]]:
        """(rows, facts) of a stored block of this very range, if the attack can go on from it; else nothing."""
        wanted = self.results.block_of(work, start, stop)
        if not ATTACKS[work.method].goes_on or wanted is None:
            return ADVERSARIAL.empty_table(), {}
        try:
            table, facts = self.store.read_block("adversarial", work.key, wanted)
        except DamagedFileError:  # Another study has cut or widened it since.
            return ADVERSARIAL.empty_table(), {}
        return (table, facts) if set(facts["stops"]) < set(work.stops) else (ADVERSARIAL.empty_table(), {})

    def _labels_of(self, stored: pa.Table, count: int) -> Tensor:
        """int64 [count]: the labels that stored trajectories work on, which are the same for all restarts and stops."""
        return on_device(stored["attack_label"].to_numpy()[:count].astype(np.int64), self.device)

    def _begun(self, stored: pa.Table, steps: int) -> Begun | None:
        """Where the stored trajectories stand after that many steps; None at their beginning."""
        if steps == 0:
            return None
        rows = stored.filter(pc.equal(stored["steps"], steps))
        restarts = pc.max(rows["restart"]).as_py() + 1
        height, width, channels = self.data.images.shape[1:]
        images = list_column(rows["image"], channels * height * width).reshape(restarts, -1, channels, height, width)
        zeros = rows["zero_gradients"].to_numpy().reshape(restarts, -1).astype(np.int64)
        return Begun(steps, on_device(np.array(images), self.device), on_device(np.array(zeros), self.device))

    def outputs(self, work: OutputWork, start: int, stop: int) -> Done:
        """Compute and store a block of outputs. F's own are always computed in fp32."""
        began = time.perf_counter()
        x, points = self.images(work.inputs, start, stop), list(self.data.points[start:stop])
        facts: Mapping[str, Any] = {}
        if work.component is None:
            classifier = self.classifier(work.classifier, "fp32")
            found = undefended_outputs(classifier, self._block(work, x, points))[None, None]
        else:
            component = DEFENSES.make(*work.component)
            assert isinstance(component, RandomTransform)
            pool = self.pool(work.pool) if work.pool is not None else None
            assert work.undefended is not None
            counted, facts = self._counted(work, start, stop)
            begun = work.begins_at(facts)
            found = component_outputs(
                self.classifier(work.classifier, self.data.precision[work.classifier]),
                component,
                self._block(work, x, points),
                self._predicted(work, start, stop),
                pool,
                [n for n in work.executions if n not in counted],
                work.draws,
                self.images(work.undefended.inputs, start, stop) - x if work.perturbed else None,
                work.purpose,
                (begun, (counted[begun] * begun).round().long()) if begun else None,
            )
            found = _beside(counted, work.executions, found)
        draws, numbers, count = found.shape[:3]
        table = pa.table(
            [
                np.tile(points, draws * numbers),
                np.repeat(np.arange(draws), numbers * count),
                np.tile(np.repeat(work.executions, count), draws),
                images_column(found.flatten(0, 2).cpu().numpy()),
            ],
            names=OUTPUTS.names,
        ).cast(OUTPUTS)
        return self._write(work, start, stop, table, began, {}, facts)

    def _counted(self, work: OutputWork, start: int, stop: int) -> tuple[dict[int, Tensor], Mapping[str, Any]]:
        """(what a stored block of this very range has of the work's votes, [draws, points, classes] by N; its facts).

        Nothing of what does not vote, and of what has fewer draws than are asked for.
        """
        block = self.results.block_of(work, start, stop)
        if not work.votes or block is None:
            return {}, {}
        try:
            facts = self.store.block_facts(block)
            if not work.begins_at(facts):
                return {}, {}
            own = tuple(n for n in work.executions if n in facts["executions"])
            shares = self.results.probabilities(replace(work, executions=own), start, stop)
        except DamagedFileError:  # Another study has cut or widened it since.
            return {}, {}
        return {n: on_device(shares[:, at], self.device) for at, n in enumerate(own)}, facts

    @places_told
    def compute(self, work: Work, start: int, stop: int) -> Done:
        """Compute and store a block of either kind, unless another study has done so since it was found to be missing."""
        self.passes.take()
        before = self.store.seconds
        facts = self.results.of_range(work, start, stop)
        if facts is not None and holds(facts, work.covers()):
            return Done(stop - start, 0, 0, round(self.store.seconds - before, 4))
        wanted = work if facts is None else work.widened(facts)
        try:
            if isinstance(wanted, AttackWork):
                done = self.attack(wanted, start, stop)
            else:
                assert isinstance(wanted, OutputWork)
                done = self.outputs(wanted, start, stop)
        except OvertakenError:
            return self.compute(work, start, stop)
        return replace(done, store=round(self.store.seconds - before, 4))

    def _block(self, work: Work, x: Tensor, points: Sequence[int]) -> BlockInput:
        """These images as they are gone through for a piece of work."""
        return BlockInput(x, points, self.data.seed, self.data.batch, self._lanes(work.classifier))

    def _predicted(self, work: OutputWork, start: int, stop: int) -> Tensor:
        """ŷ on the work's images: the argmax of F's own stored outputs."""
        assert work.undefended is not None
        probabilities = self.results.probabilities(work.undefended, start, stop)[0, 0]
        return on_device(probabilities.argmax(1), self.device)

    def _write(
        self,
        work: Work,
        start: int,
        stop: int,
        table: pa.Table,
        began: float,
        more: Values,
        before: Values = MappingProxyType({}),
    ) -> Done:
        """Store a block with what it says of itself: what it covers, its weights, its cost, and how it was computed.

        began: when its computing began. more: what it says beyond that. before: the facts of the block that it goes on
        from, whose cost is part of its own. Raises OvertakenError where the store has more of this range by now.
        """
        forward, backward = self.passes.take()
        cost = zip(COST, (forward, backward, time.perf_counter() - began), strict=True)
        facts = {
            **work.covers(),
            "weights": self.results.weights(work.classifier),
            "device": self.data.device,
            **{name: round(spent + before.get(name, 0), 3) for name, spent in cost},
            "seed": self.data.seed,
            "precision": self.data.precision[work.classifier],
            **more,
        }
        with lock_key(self.store, work.key):
            found = self.results.of_range(work, start, stop)
            if found is not None and not holds(facts, {name: found[name] for name in work.covers()}):
                raise OvertakenError
            self.store.write_block(work.kind, work.key, start, stop, table, facts)
        return Done(stop - start, forward, backward)


def _stopping_at(work: AttackWork, stops: Sequence[int]) -> Attack:
    """The attack of a piece of work, read at these stops."""
    parameter = ATTACKS[work.method].stop_parameter
    return ATTACKS.make(work.method, dict(work.values) | ({parameter: list(stops)} if parameter is not None else {}))


def _adversarial_table(found: Adversarial, x: Tensor, y: Tensor, labels: Tensor, points: Sequence[int]) -> pa.Table:
    """Rows of `ADVERSARIAL`: every restart and stop of every point.

    x: clean images. y: true labels [P]. labels: those that the attack worked on [P]. What an attack has not scored is NaN in
    memory and null in the table.
    """
    restarts, stops, count = found.loss.shape
    linf = (found.images - x).abs().flatten(3).amax(3)
    tile = restarts * stops
    shares = None if found.shares is None else found.shares.flatten(0, 2).cpu().numpy()
    return pa.table(
        [
            np.tile(points, tile),
            np.tile(y.cpu().numpy(), tile),
            np.tile(labels.cpu().numpy(), tile),
            np.repeat(np.arange(restarts), stops * count),
            np.tile(np.repeat(found.stops, count), restarts),
            images_column(found.images.flatten(0, 2).cpu().numpy()),
            linf.flatten().cpu().numpy(),
            *(
                pa.array(column.flatten().cpu().numpy(), from_pandas=True)
                for column in (found.loss, found.success, found.zero_gradients)
            ),
            pa.nulls(tile * count) if shares is None else images_column(shares),
        ],
        names=ADVERSARIAL.names,
    ).cast(ADVERSARIAL)


def _beside(counted: Mapping[int, Tensor], executions: Sequence[int], found: Tensor) -> Tensor:
    """Outputs for each N, of which some were stored and the others found: [draws, N, points, classes]."""
    new = iter(found.unbind(1))
    return torch.stack([counted[n] if n in counted else next(new) for n in executions], 1)


def _in_order(tables: Sequence[pa.Table], points: Sequence[int]) -> pa.Table:
    """The rows of one block, sorted by restart, then stop, then the block's order of points."""
    table = pa.concat_tables(tables)
    place = pc.index_in(table["point"], pa.array(points, pa.int32()))
    keys = pa.table([table["restart"], table["steps"], place], names=["restart", "steps", "place"])
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names])
    return table.take(order)
