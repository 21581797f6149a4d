"""A sweep -> cells -> the distinct work that they need, each piece with a content key.

A key is the hash of everything that decides a result and of nothing else, so that what is stored is never computed
again: one oblivious attack serves every defense; step counts are read off one trajectory; MI-Combined at any threshold
is a join of MI-PL's and MI-OL's outputs; N = 1, 5, 10 are prefixes of N = 30. Values only: no torch, no ray.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mi_ray.config import AttackEntry, ClassifierEntry, Sweep
from mi_ray.parameters import Axis, Registry, expand
from mi_ray.records import RECORDS
from mi_ray.threat_model import ThreatModel

Values = Mapping[str, Any]


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_key(kind: str, facts: Values) -> str:
    """The name of a result: 24 hexadecimal digits of the SHA-256 of what decides it."""
    return hashlib.sha256(canonical({"kind": kind, **facts}).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Methods:
    """The registries that a sweep's names are looked up in, handed in so that this module needs none of them."""

    defenses: Registry[Any]
    attacks: Registry[Any]
    objectives: Registry[Any]
    architectures: Registry[Any]
    chunk: int


@dataclass(frozen=True)
class Facts:
    """What the plan needs to know of the data and the machine.

    pools: component name -> digest of the sample pool that it draws from. plugins: plugin -> hash of its source.
    """

    dataset: str
    digest: str
    classes: int
    side: tuple[int, int]
    train_count: int
    test_count: int
    pools: Mapping[str, str]
    device: str
    sources: Mapping[str, str]


@dataclass(frozen=True)
class ClassifierWork:
    """A classifier to train, or a user's own to take into the store. cost: (forward, backward) passes."""

    key: str
    entry: ClassifierEntry
    description: Values
    objective: tuple[str, Values] | None
    seed: int
    cost: tuple[int, int]


@dataclass(frozen=True)
class AttackWork:
    """One attack on one classifier under one threat model, all requested stops. cost: passes for one point."""

    key: str
    classifier: str
    method: str
    values: Values
    threat: ThreatModel
    stops: tuple[int, ...]
    cost: tuple[int, int]


@dataclass(frozen=True)
class Inputs:
    """A set of images to classify: the clean points, or what an attack made of them at a stop."""

    attack: AttackWork | None = None
    stop: int = 0

    @property
    def name(self) -> str:
        """The key under which workers find the images."""
        return f"{self.attack.key}@{self.stop}" if self.attack else "clean"


@dataclass(frozen=True)
class OutputWork:
    """A classifier's outputs on a set of images: F itself (component None), or a component's mean softmax.

    undefended: F's own outputs on the same images, from which a component takes ŷ.
    """

    key: str
    classifier: str
    inputs: Inputs
    component: tuple[str, Values] | None = None
    undefended: "OutputWork | None" = None
    executions: tuple[int, ...] = (1,)
    draws: int = 1

    def passes(self, chunk: int) -> int:
        """Forward passes for one point."""
        return 1 if self.component is None else self.draws * -(-max(self.executions) // chunk) * chunk


@dataclass(frozen=True)
class Cell:
    """One row of a study's table: a classifier x attack x threat model x defense setting x N.

    outputs: F's own outputs, then each component's with the N that it is read at.
    """

    key: str
    identity: Values
    classifier: str
    inputs: Inputs
    defense: tuple[str, Values]
    undefended: OutputWork
    components: tuple[tuple[OutputWork, int], ...]

    def needs(self) -> Iterator[OutputWork]:
        """The outputs that the cell is derived from."""
        yield self.undefended
        for work, _ in self.components:
            yield work


@dataclass(frozen=True)
class Plan:
    """The distinct work of a study, in the order in which it is done, and its cells."""

    classifiers: tuple[ClassifierWork, ...]
    attacks: tuple[AttackWork, ...]
    outputs: tuple[OutputWork, ...]
    cells: tuple[Cell, ...]


class Planner:
    """Turns a validated sweep into work and cells. Raises ValueError for every name or value that cannot be.

    Everything a person can get wrong in a file is found by `Planner(…)` and `settings()`, before any work.
    """

    def __init__(self, sweep: Sweep, methods: Methods, facts: Facts) -> None:
        self.sweep, self.methods, self.facts = sweep, methods, facts
        self.options = sweep.resolved_options()
        if sweep.points.count > facts.test_count:
            raise ValueError(
                f"points.count must not exceed the test split of {facts.dataset}, {facts.test_count}; "
                f"got {sweep.points.count}"
            )
        whole = -(-sweep.points.count // sweep.batch) * sweep.batch
        self.stored_points = min(whole, facts.test_count)
        order = sweep.points_order()
        self._order = {
            "dataset": facts.digest,
            "order": order,
            **({"seed": sweep.seed} if order == "drawn" else {}),
        }
        self._arithmetic = {"device": facts.device, "precision": sweep.precision, "batch": sweep.batch}
        self.classifiers = tuple(self._classifier(entry) for entry in sweep.classifiers)
        twins: dict[str, str] = {}
        for work in self.classifiers:
            if work.key in twins:
                raise ValueError(
                    f"classifiers must differ; {twins[work.key]!r} and {work.entry.name!r} are the same but for their "
                    "names: give one another seed, or leave it out"
                )
            twins[work.key] = work.entry.name
        self.attacks = tuple(
            work
            for entry in sweep.attacks
            for classifier in self.classifiers
            for work in self._attack(entry, classifier)
        )

    def _classifier(self, entry: ClassifierEntry) -> ClassifierWork:
        base = {"classes": self.facts.classes, "mean": list(entry.mean), "std": list(entry.std)}
        if entry.factory is not None:
            description = {**base, "factory": entry.factory, "arguments": entry.arguments}
            facts = {
                **description,
                **{k: v for k, v in self.facts.sources.items() if k in (entry.factory, entry.weights)},
            }
            return ClassifierWork(content_key("own", facts), entry, description, None, 0, (0, 0))
        assert entry.architecture is not None
        architecture = self.methods.architectures.make(*entry.architecture)
        training = self.sweep.training_options()
        method = self.methods.objectives[entry.objective[0]]
        axes = expand(method, entry.objective[1], lambda name: getattr(training, name))
        if any(len(axis.values) > 1 for axis in axes.values()):
            raise ValueError(
                f"an objective takes one value a parameter; {method.name} got a list: add a classifier instead"
            )
        objective = method.make({name: axis.values[0] for name, axis in axes.items()})
        if entry.training.batch_size > self.facts.train_count:
            raise ValueError(
                f"classifier {entry.name!r}: batch_size must not exceed the {self.facts.train_count} training images; "
                f"got {entry.training.batch_size}"
            )
        description = {**base, "architecture": architecture.name, "arguments": architecture.values()}
        seed = self.sweep.seed if entry.seed is None else entry.seed
        device = "cuda" if self.sweep.resources.train.gpus > 0 else "cpu"
        facts = {
            **description, "version": [architecture.version, objective.version], "dataset": self.facts.digest,
            "objective": [objective.name, objective.values()], "training": self._training(entry), "seed": seed,
            "workers": entry.workers, "device": device, "source": self.facts.sources.get(objective.name),
        }  # fmt: skip
        if architecture.name in self.facts.sources:
            facts["architecture_source"] = self.facts.sources[architecture.name]
        images = entry.training.epochs * self.images_an_epoch(entry)
        forward, backward = (images * passes for passes in objective.cost())
        key = content_key("train", facts)
        return ClassifierWork(key, entry, description, (objective.name, objective.values()), seed, (forward, backward))

    def _training(self, entry: ClassifierEntry) -> dict[str, Any]:
        """The training settings with the learning-rate drops written out."""
        training = entry.training.model_dump(mode="json")
        if training["lr_drops"] is None:
            early = self.sweep.training_options().first_epoch_at_lower_rate == "drop_minus_one"
            halves = (entry.training.epochs // 2, entry.training.epochs * 3 // 4)
            # A training of one or two epochs has no half: its first epoch is at the full rate, always.
            training["lr_drops"] = sorted({drop - early for drop in halves if drop - early > 0})
        return training

    def images_an_epoch(self, entry: ClassifierEntry) -> int:
        """Training images that an epoch goes through: whole global batches, so the last few of the shuffle wait."""
        return self.facts.train_count // entry.training.batch_size * entry.training.batch_size

    def training_of(self, work: ClassifierWork) -> dict[str, Any]:
        """The complete training settings of a classifier."""
        return self._training(work.entry)

    def _attack(self, entry: AttackEntry, classifier: ClassifierWork) -> Iterator[AttackWork]:
        method = self.methods.attacks[entry.method[0]]
        axes = expand(method, entry.method[1], lambda name: getattr(self.options, name))
        for values in product(axes):
            attack = method.make(values)
            for goal, epsilon in itertools.product(entry.goal, entry.epsilon):
                yield self._attack_work(attack, ThreatModel(epsilon, goal), classifier)

    def _attack_work(self, attack: Any, threat: ThreatModel, classifier: ClassifierWork) -> AttackWork:
        deciding = {k: v for k, v in attack.values().items() if k != attack.stop_parameter}
        facts = {
            "classifier": classifier.key, "points": self._order, "method": attack.name, "version": attack.version,
            "values": deciding, "epsilon": threat.epsilon, "goal": threat.goal, "norm": threat.norm,
            "knowledge": threat.knowledge, "labels": self.options.attack_labels, "seed": self.sweep.seed,
            "source": self.facts.sources.get(attack.name), **self._arithmetic,
        }  # fmt: skip
        key = content_key("attack", facts)
        return AttackWork(key, classifier.key, attack.name, attack.values(), threat, attack.stops(), attack.cost())

    def axes(self) -> list[tuple[Any, dict[str, Axis]]]:
        """(defense class, its axes) for each entry of the file, in order."""
        found = []
        for name, written in self.sweep.defenses:
            method = self.methods.defenses[name]
            found.append((method, expand(method, written, lambda option: getattr(self.options, option))))
        return found

    def settings(self) -> list[Any]:
        """Every defense setting of the grid, `none` first, none twice."""
        seen: dict[str, Any] = {}
        for method, axes in [(self.methods.defenses["none"], {}), *self.axes()]:
            for values in product(axes):
                defense = self.checked(method.make(values))
                seen.setdefault(canonical([defense.name, defense.values()]), defense)
        return list(seen.values())

    def checked(self, defense: Any) -> Any:
        """The defense, or ValueError when the dataset's images cannot be defended by it."""
        defense.check_images(*self.facts.side)
        return defense

    def inputs(self, classifier: ClassifierWork) -> list[Inputs]:
        """What a classifier is evaluated on: the clean points first, then each attack at each stop."""
        own = [work for work in self.attacks if work.classifier == classifier.key]
        return [Inputs(), *(Inputs(work, stop) for work in own for stop in work.stops)]

    def _outputs(self, classifier: ClassifierWork, inputs: Inputs, component: Any, n: int, draws: int) -> OutputWork:
        facts: dict[str, Any] = {
            "classifier": classifier.key,
            "inputs": [inputs.attack.key, inputs.stop] if inputs.attack else self._order,
        }  # fmt: skip
        if component is None:  # F's own outputs are always of fp32
            key = content_key("undefended", {**facts, **self._arithmetic, "precision": "fp32"})
            return OutputWork(key, classifier.key, inputs)
        facts |= {
            "component": component.name, "version": component.version, "values": component.values(),
            "pool": self.facts.pools[component.name] if component.uses_pool else None, "seed": self.sweep.seed,
            "chunk": self.methods.chunk, "source": self.facts.sources.get(component.name), **self._arithmetic,
        }  # fmt: skip
        named = (component.name, component.values())
        undefended = self._outputs(classifier, inputs, None, 1, 1)
        return OutputWork(content_key("outputs", facts), classifier.key, inputs, named, undefended, (n,), draws)

    def cells(self, classifier: ClassifierWork, defense: Any) -> Iterator[Cell]:
        """A defense setting's cells on one classifier: each set of inputs, each requested N."""
        components = defense.components()
        requested = self.sweep.executions_of(defense.name) if components else (1,)
        draws = self.sweep.draws_of() if components else 1
        for inputs, n in itertools.product(self.inputs(classifier), requested):
            undefended = self._outputs(classifier, inputs, None, 1, 1)
            parts = []
            for position, component in enumerate(components):
                own_n = defense.executions_of(position, n)
                parts.append((self._outputs(classifier, inputs, component, own_n, draws), own_n))
            facts = {
                "undefended": undefended.key, "parts": [[work.key, own_n] for work, own_n in parts], "draws": draws,
                "defense": defense.name, "version": defense.version, "values": defense.values(), "executions": n,
                "points": self.sweep.points.model_dump(include={"count", "selection"}), "seed": self.sweep.seed,
                **self._arithmetic,
                "columns": RECORDS.names, "source": self.facts.sources.get(defense.name),
            }  # fmt: skip
            identity = self._identity(classifier, inputs, defense, n, draws)
            key = content_key("cell", facts)
            yield Cell(
                key,
                {"cell": key, **identity},
                classifier.key,
                inputs,
                (defense.name, defense.values()),
                undefended,
                tuple(parts),
            )

    def _identity(self, classifier: ClassifierWork, inputs: Inputs, defense: Any, n: int, draws: int) -> dict[str, Any]:
        """Every identity column of the records, but the cell's key."""
        attack = inputs.attack
        params: dict[str, Any] = {}
        if attack is not None:
            params = {**attack.values, "labels": self.options.attack_labels}
            stop_parameter = self.methods.attacks[attack.method].stop_parameter
            if stop_parameter is not None:
                params[stop_parameter] = inputs.stop
        return {
            "dataset": self.facts.dataset, "classifier": classifier.entry.name, "classifier_key": classifier.key,
            "attack": attack.method if attack else "none", "attack_params": canonical(params),
            "goal": attack.threat.goal if attack else "none", "norm": attack.threat.norm if attack else "linf",
            "epsilon": attack.threat.epsilon if attack else 0.0,
            "knowledge": attack.threat.knowledge if attack else "none", "defense": defense.name,
            "defense_params": canonical(defense.values()), "executions": n, "draws": draws,
        }  # fmt: skip

    def plan(self, settings: Iterable[Any]) -> Plan:
        """The cells of these settings on every classifier, and the distinct work that they need."""
        every = list(settings)
        return self.plan_of(
            cell for work in self.classifiers for defense in every for cell in self.cells(work, defense)
        )

    def plan_of(self, wanted: Iterable[Cell]) -> Plan:
        """These cells, none twice, and the distinct work that they need."""
        cells = {cell.key: cell for cell in wanted}
        outputs = merged(work for cell in cells.values() for work in cell.needs())
        distinct = {work.key: work for work in self.classifiers}
        attacks = tuple(
            replace(work, cost=self._made(work, work.stops).cost()) for work in merged_attacks(self.attacks)
        )
        return Plan(tuple(distinct.values()), attacks, outputs, tuple(cells.values()))

    def cost(self, plan: Plan) -> dict[str, int]:
        """Passes: training, attack and evaluation as planned, and evaluation and attack cell by cell ("naive")."""
        points = self.stored_points
        naive_forward = naive_backward = 0
        for cell in plan.cells:
            forward = 1 + sum(work.draws * n for work, n in cell.components)
            if cell.inputs.attack is not None:
                alone = self._made(cell.inputs.attack, (cell.inputs.stop,)).cost()
                forward, naive_backward = forward + alone[0], naive_backward + alone[1] * points
            naive_forward += forward * points
        return {
            "training_forward": sum(work.cost[0] for work in plan.classifiers),
            "training_backward": sum(work.cost[1] for work in plan.classifiers),
            "attack_forward": points * sum(work.cost[0] for work in plan.attacks),
            "attack_backward": points * sum(work.cost[1] for work in plan.attacks),
            "evaluation_forward": points * sum(work.passes(self.methods.chunk) for work in plan.outputs),
            "naive_forward": naive_forward,
            "naive_backward": naive_backward,
        }

    def _made(self, work: AttackWork, stops: tuple[int, ...]) -> Any:
        """The attack, run for these stops."""
        method = self.methods.attacks[work.method]
        values = dict(work.values)
        if method.stop_parameter is not None:
            values[method.stop_parameter] = list(stops)
        return method.make(values)


def product(axes: Mapping[str, Axis]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes' values."""
    for values in itertools.product(*(axis.values for axis in axes.values())):
        yield dict(zip(axes, values, strict=True))


def merged(works: Iterable[OutputWork]) -> tuple[OutputWork, ...]:
    """One piece of work a key, with every N and the most draws that anyone asks for."""
    found: dict[str, OutputWork] = {}
    for work in works:
        known = found.get(work.key, work)
        executions = tuple(sorted({*known.executions, *work.executions}))
        found[work.key] = replace(known, executions=executions, draws=max(known.draws, work.draws))
    return tuple(found.values())


def merged_attacks(works: Iterable[AttackWork]) -> tuple[AttackWork, ...]:
    """One trajectory a key, with every stop that anyone asks for."""
    found: dict[str, AttackWork] = {}
    for work in works:
        known = found.setdefault(work.key, work)
        if max(work.stops) > max(known.stops):
            known = replace(work, stops=known.stops)
        found[work.key] = replace(known, stops=tuple(sorted({*known.stops, *work.stops})))
    return tuple(found.values())


def study_fingerprint(sweep: Sweep, code: Iterable[Path]) -> str:
    """A hash of all that a finished study came from: sweep, overrides, data files, plugin and program sources.

    Cheap (files of data are looked at by size and time), so that a finished study is recognised before anything heavy
    is imported; when it differs, the full plan decides what is missing.
    """
    digest = hashlib.sha256(canonical(sweep.model_dump(mode="json")).encode())
    for path in sorted(code):
        digest.update(path.name.encode() + path.read_bytes())
    folders = list(_texts(sweep.dataset[1])) or ["data"]  # where a dataset with files is looked for by default
    written = folders + [e.weights for e in sweep.classifiers if e.weights]
    for place in sorted(map(Path, written)):
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                digest.update(f"{path}|{path.stat().st_size}|{path.stat().st_mtime_ns}".encode())
    return digest.hexdigest()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
