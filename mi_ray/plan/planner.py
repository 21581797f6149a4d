"""A sweep -> cells -> the distinct work that they need, each piece with a content key.

A key is the hash of everything that decides a result and of nothing else, so that what is stored is never computed
again: one oblivious attack serves every defense; step counts are read off one trajectory; MI-Combined at any threshold
is a join of MI-PL's and MI-OL's outputs; N = 1, 5, 10 are prefixes of N = 30. Values only: no torch, no ray.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mi_ray.config import ADAPTIVE, AttackEntry, ClassifierEntry, Options, Sweep
from mi_ray.parameters import Axis, Method, Registry, expand
from mi_ray.plan.controls import Attacked, Control, ControlRule, controls
from mi_ray.plan.cost import Costs, whole_chunks
from mi_ray.plan.work import (
    WORST_CASE,
    AttackWork,
    Cell,
    Check,
    ClassifierWork,
    Inputs,
    OutputWork,
    Plan,
    merged,
    merged_attacks,
)
from mi_ray.store.keys import canonical, content_key
from mi_ray.store.schemas import RECORDS
from mi_ray.threat_model import ThreatModel


@dataclass(frozen=True)
class Registries:
    """What a sweep's names are looked up in, and the checks' controls: handed in, so that this folder needs none of them."""

    defenses: Registry[Any]
    attacks: Registry[Any]
    objectives: Registry[Any]
    architectures: Registry[Any]
    chunk: int
    checks: Sequence[ControlRule]


@dataclass(frozen=True)
class Facts:
    """What the plan needs to know of the data and the machine.

    pools: component name -> digest of the sample pool that it draws from. plugins: plugin -> hash of its source.
    decided: classifier key -> the precision that `precision: auto` found good for it, where that is known.
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
    decided: Mapping[str, str] = field(default_factory=dict)


class Planner:
    """Turns a validated sweep into work and cells. Raises ValueError for every name or value that cannot be.

    Everything a person can get wrong in a file is found by `Planner(…)` and `settings()`, before any work.
    """

    def __init__(self, sweep: Sweep, registries: Registries, facts: Facts, options: Options | None = None) -> None:
        self.sweep, self.registries, self.facts = sweep, registries, facts
        self.options = sweep.resolved_options() if options is None else options
        self.costs = Costs(registries.attacks, registries.chunk)
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
        self.classifiers = tuple(self._classifier(entry) for entry in sweep.classifiers)
        twins: dict[str, str] = {}
        for work in self.classifiers:
            if work.key in twins:
                raise ValueError(
                    f"classifiers must differ; {twins[work.key]!r} and {work.entry.name!r} are the same but for their "
                    "names: give one another seed, or leave it out"
                )
            twins[work.key] = work.entry.name
        self._by_key = {work.key: work for work in self.classifiers}
        self.attacks = tuple(
            work
            for entry in sweep.attacks
            for classifier in self.classifiers
            if entry.knowledge == "oblivious" and _applies(entry.classifiers, classifier)
            for work in self._attack(entry, classifier, None)
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
        architecture = self.registries.architectures.make(*entry.architecture)
        training = self.sweep.training_options()
        method = self.registries.objectives[entry.objective.name]
        axes = expand(method, entry.objective.values, lambda name: getattr(training, name))
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
            **description,
            "version": [architecture.version, objective.version],
            "dataset": self.facts.digest,
            "objective": [objective.name, objective.values()],
            "training": self._training(entry),
            "seed": seed,
            "workers": entry.workers,
            "device": device,
            "source": self.facts.sources.get(objective.name),
        }
        if architecture.name in self.facts.sources:
            facts["architecture_source"] = self.facts.sources[architecture.name]
        images = entry.training.epochs * self.images_an_epoch(entry)
        forward, backward = (images * passes for passes in objective.cost())
        key = content_key("train", facts)
        return ClassifierWork(
            key, entry, description, Method(objective.name, objective.values()), seed, (forward, backward)
        )

    def precision_of(self, classifier: str) -> Literal["fp32", "bf16"]:
        """Of a classifier's gradients and executions; where `auto` has not decided yet, what it is expected to decide."""
        if self.sweep.precision != "auto":
            return self.sweep.precision
        return "fp32" if self.facts.decided.get(classifier) == "fp32" else "bf16"

    def check_facts(self) -> dict[str, Any]:
        """What decides the outcome of the check behind `precision: auto`, beside the classifier."""
        return {"points": self._order, "seed": self.sweep.seed, "device": self.facts.device, "batch": self.sweep.batch}

    def _arithmetic(self, classifier: str) -> dict[str, Any]:
        """What decides the last bits of a result. `auto` shares results with the precision that it decides on."""
        found = {"device": self.facts.device, "precision": self.precision_of(classifier), "batch": self.sweep.batch}
        return found if self.sweep.compile is None else {**found, "compile": self.sweep.compile}

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

    def _attack(self, entry: AttackEntry, classifier: ClassifierWork, defense: Any | None) -> Iterator[AttackWork]:
        """The attacks of an entry: on the classifier alone, or on it behind a defense."""
        method, written = self._method(entry), entry.method.values
        if method.needs_defense and entry.knowledge == "oblivious":
            raise ValueError(f"{method.name} attacks a defense: it needs `knowledge: adaptive`; got oblivious")
        axes = expand(method, written, lambda option: getattr(self.options, option))
        for values in product(axes):
            attack = method.make(values)
            for goal, epsilon in itertools.product(entry.goal, entry.epsilon):
                threat = ThreatModel(epsilon, goal, knowledge=entry.knowledge)
                attack.check(threat, self.facts.classes)
                yield self._attack_work(attack, threat, classifier, defense)

    def _method(self, entry: AttackEntry) -> Any:
        name = entry.method.name
        return self.registries.attacks[self.options.adaptive_attack if name == ADAPTIVE else name]

    def adaptive(self, classifier: ClassifierWork, defense: Any) -> list[AttackWork]:
        """The adaptive attacks that the sweep asks for against one defense setting; none against no defense."""
        return [
            work
            for entry in self.sweep.attacks
            if entry.knowledge == "adaptive" and _applies(entry.classifiers, classifier) and defense.components()
            if entry.defenses is None or defense.name in entry.defenses
            if any(part.uses_pool for part in defense.components()) or not self._method(entry).needs_pool
            for work in self._attack(entry, classifier, defense)
        ]

    def _attack_work(
        self, attack: Any, threat: ThreatModel, classifier: ClassifierWork, defense: Any | None
    ) -> AttackWork:
        n = None if defense is None else attack.executions or max(self.sweep.executions_of(defense.name, self.options))
        if "eot" in attack.values():
            attack = replace(attack, eot=n)  # written out; on F alone it means nothing
        labels = self.options.attack_labels if threat.leaves_label else "true"  # a target is no guess
        deciding = {k: v for k, v in attack.values().items() if k != attack.stop_parameter}
        facts = {
            "classifier": classifier.key,
            "points": self._order,
            "method": attack.name,
            "version": attack.version,
            "values": deciding,
            "epsilon": threat.epsilon,
            "goal": threat.goal,
            "norm": threat.norm,
            "knowledge": threat.knowledge,
            "labels": labels,
            "seed": self.sweep.seed,
            "source": self.facts.sources.get(attack.name),
            **self._arithmetic(classifier.key),
        }
        behind: dict[str, Any] = {}
        parts: tuple[int, ...] = ()
        if defense is not None and n is not None:
            pools = {part.name: self.facts.pools[part.name] for part in defense.components() if part.uses_pool}
            behind = {"defense": Method(defense.name, defense.values()), "pools": pools, "executions": n}
            each = (defense.executions_of(at, n) for at, _ in enumerate(defense.components()))
            parts = tuple(whole_chunks(executions, self.registries.chunk) for executions in each)
            sources = [self.facts.sources.get(part.name) for part in (defense, *defense.components())]
            versions = [part.version for part in (defense, *defense.components())]
            facts |= {
                **behind,
                "defense_versions": versions,
                "defense_sources": sources,
                "chunk": self.registries.chunk,
            }
        key = content_key("attack", facts)
        work = AttackWork(
            key,
            classifier.key,
            attack.name,
            attack.values(),
            threat,
            attack.stops(),
            (0, 0),
            labels,
            **behind,
            parts=parts,
            by_accuracy=attack.by_accuracy,
        )
        return replace(work, cost=self.costs.of(work))

    def axes(self, classifier: ClassifierWork | None = None) -> list[tuple[Any, dict[str, Axis]]]:
        """(defense class, its axes) for each entry of the file, in order; those for one classifier if it is given."""
        found = []
        for entry in self.sweep.defenses:
            if classifier is not None and not _applies(entry.classifiers, classifier):
                continue
            name, written = entry.method
            method = self.registries.defenses[name]
            found.append((method, expand(method, written, lambda option: getattr(self.options, option))))
        return found

    def settings(self) -> list[Any]:
        """Every defense setting of the grid, `none` first, none twice."""
        return [defense for defense, _ in self._settings()]

    def _settings(self) -> list[tuple[Any, frozenset[str]]]:
        """(defense setting, keys of the classifiers that it is asked for on), `none` on all of them first."""
        every = frozenset(self._by_key)
        seen: dict[str, tuple[Any, frozenset[str]]] = {}
        on = [
            frozenset(work.key for work in self.classifiers if _applies(entry.classifiers, work))
            for entry in self.sweep.defenses
        ]
        for (method, axes), keys in zip(
            [(self.registries.defenses["none"], {}), *self.axes()], [every, *on], strict=True
        ):
            for values in product(axes):
                defense = self.checked(method.make(values))
                name = canonical([defense.name, defense.values()])
                seen[name] = (defense, seen.get(name, (defense, frozenset()))[1] | keys)
        return list(seen.values())

    def checked(self, defense: Any) -> Any:
        """The defense, or ValueError when the dataset's images cannot be defended by it."""
        defense.check_images(*self.facts.side)
        return defense

    def inputs(self, classifier: ClassifierWork, defense: Any | None = None) -> list[Inputs]:
        """What a defense on a classifier is evaluated on: the clean points first, then each attack at each stop."""
        own = [work for work in self.attacks if work.classifier == classifier.key]
        own += self.adaptive(classifier, defense) if defense is not None else []
        return [Inputs(), *(Inputs(work, stop) for work in own for stop in work.stops)]

    def _undefended(self, classifier: ClassifierWork, inputs: Inputs) -> OutputWork:
        """F's own outputs: always of fp32."""
        facts = {
            "classifier": classifier.key,
            "inputs": self._inputs(inputs),
            **self._arithmetic(classifier.key),
            "precision": "fp32",
        }
        return OutputWork(content_key("undefended", facts), classifier.key, inputs)

    def _inputs(self, inputs: Inputs) -> Any:
        return [inputs.attack.key, inputs.stop] if inputs.attack else self._order

    def _outputs(
        self,
        classifier: ClassifierWork,
        inputs: Inputs,
        component: Any,
        n: int,
        draws: int,
        judged_by: Inputs | None = None,
    ) -> OutputWork:
        """A component's outputs; judged_by: the inputs from which ŷ is taken, where they are others."""
        pool = self.facts.pools[component.name] if component.uses_pool else None
        facts: dict[str, Any] = {
            "classifier": classifier.key,
            "inputs": self._inputs(inputs),
            "component": component.name,
            "version": component.version,
            "values": component.values(),
            "pool": pool,
            "seed": self.sweep.seed,
            "chunk": self.registries.chunk,
            "source": self.facts.sources.get(component.name),
            **self._arithmetic(classifier.key),
        }
        if judged_by is not None:
            facts["judged_by"] = self._inputs(judged_by)
        method = Method(component.name, component.values())
        undefended = self._undefended(classifier, judged_by or inputs)
        return OutputWork(content_key("outputs", facts), classifier.key, inputs, method, undefended, (n,), draws, pool)

    def cells(self, classifier: ClassifierWork, defense: Any) -> list[Cell]:
        """A defense setting's cells on one classifier: each set of inputs, each requested N, and the worst cases."""
        found = [
            self._cell(classifier, inputs, defense, n)
            for inputs in self.inputs(classifier, defense)
            for n in self._requested(defense)
        ]
        return [*found, *self._worst_cases(found)]

    def _requested(self, defense: Any) -> tuple[int, ...]:
        return self.sweep.executions_of(defense.name, self.options) if defense.components() else (1,)

    def _cell(self, classifier: ClassifierWork, inputs: Inputs, defense: Any, n: int) -> Cell:
        components = defense.components()
        draws = self.sweep.draws_of(self.options) if components else 1
        undefended = self._undefended(classifier, inputs)
        parts, counterparts = [], []
        for position, component in enumerate(components):
            own_n = defense.executions_of(position, n)
            parts.append((self._outputs(classifier, inputs, component, own_n, draws), own_n))
            if self.sweep.counterparts and inputs.attack is not None and component.uses_pool:
                counterparts.append(self._outputs(classifier, Inputs(), component, own_n, draws, inputs))
        facts = {
            "undefended": undefended.key,
            "parts": [[work.key, own_n] for work, own_n in parts],
            "draws": draws,
            "defense": defense.name,
            "version": defense.version,
            "values": defense.values(),
            "executions": n,
            **self._row_facts(classifier.key),
            "source": self.facts.sources.get(defense.name),
        }
        key = content_key("cell", facts)
        identity = {"cell": key, **self._identity(classifier, inputs, defense, n, draws)}
        return Cell(
            key,
            identity,
            classifier.key,
            inputs,
            Method(defense.name, defense.values()),
            undefended,
            tuple(parts),
            tuple(counterparts),
        )

    def _row_facts(self, classifier: str) -> dict[str, Any]:
        points = self.sweep.points.model_dump(include={"count", "selection"})
        return {"points": points, "seed": self.sweep.seed, **self._arithmetic(classifier), "columns": RECORDS.names}

    def _worst_cases(self, cells: list[Cell]) -> Iterator[Cell]:
        """For each epsilon and N under which a setting is attacked in several ways: the worst of them, point by point."""
        groups: dict[tuple[float, int], dict[str, Cell]] = {}
        for cell in cells:
            if cell.inputs.attack is not None:
                group = groups.setdefault((cell.identity["epsilon"], cell.identity["executions"]), {})
                group[cell.key] = cell  # an attack that two entries ask for is one
        for group in groups.values():
            if len(group) > 1:
                keys = sorted(group)  # of attacks that are equally bad at a point, whatever order the file has them in
                members = [group[key] for key in keys]
                key = content_key("worst", {"members": keys, **self._row_facts(members[0].classifier)})
                knowledge = {cell.identity["knowledge"] for cell in members}
                identity = {
                    **members[0].identity,
                    "cell": key,
                    "attack": WORST_CASE,
                    "attack_params": "{}",
                    "goal": "any",
                    "knowledge": "adaptive" if "adaptive" in knowledge else "oblivious",
                }
                yield replace(
                    members[0], key=key, identity=identity, components=(), counterparts=(), members=tuple(keys)
                )

    def _identity(self, classifier: ClassifierWork, inputs: Inputs, defense: Any, n: int, draws: int) -> dict[str, Any]:
        """Every identity column of the records, but the cell's key."""
        attack = inputs.attack
        params: dict[str, Any] = {}
        if attack is not None:
            params = {**attack.values, "labels": attack.labels}
            stop_parameter = self.registries.attacks[attack.method].stop_parameter
            if stop_parameter is not None:
                params[stop_parameter] = inputs.stop
        return {
            "dataset": self.facts.dataset,
            "classifier": classifier.entry.name,
            "classifier_key": classifier.key,
            "attack": attack.method if attack else "none",
            "attack_params": canonical(params),
            "goal": attack.threat.goal if attack else "none",
            "norm": attack.threat.norm if attack else "linf",
            "epsilon": attack.threat.epsilon if attack else 0.0,
            "knowledge": attack.threat.knowledge if attack else "none",
            "defense": defense.name,
            "defense_params": canonical(defense.values()),
            "executions": n,
            "draws": draws,
        }

    def plan(self, settings: Iterable[Any]) -> Plan:
        """The cells of these settings, each on the classifiers that it is asked for on, and the work that they need."""
        asked = {canonical([defense.name, defense.values()]): on for defense, on in self._settings()}
        every = [(d, asked.get(canonical([d.name, d.values()]), frozenset(self._by_key))) for d in settings]
        return self.plan_of(
            cell
            for work in self.classifiers
            for defense, on in every
            if work.key in on
            for cell in self.cells(work, defense)
        )

    def plan_of(self, wanted: Iterable[Cell]) -> Plan:
        """These cells, none twice, and the distinct work that they need."""
        cells = {cell.key: cell for cell in wanted}
        outputs = merged(work for cell in cells.values() for work in cell.needs())
        attacked = [cell.inputs.attack for cell in cells.values() if cell.inputs.attack is not None]
        plan = Plan(self.classifiers, self._costed([*self.attacks, *attacked]), outputs, tuple(cells.values()))
        if self.sweep.checks.level == "cheap":
            return plan
        whole = -(-self.sweep.checks.points // self.sweep.batch) * self.sweep.batch
        checked = self.stored_points if self.sweep.checks.level == "full" else min(whole, self.stored_points)
        return replace(plan, checks=tuple(self._checks(plan)), checked=checked)

    def _costed(self, works: Iterable[AttackWork]) -> tuple[AttackWork, ...]:
        return tuple(replace(work, cost=self.costs.of(work)) for work in merged_attacks(works))

    def _checks(self, plan: Plan) -> Iterator[Check]:
        """The controls of each attack, judged on the cell that the attack was made for, at the largest N.

        An oblivious attack was made for F, so it is judged on F's own cell, and every defense that is evaluated on its
        images shares the verdict.
        """
        by_inputs: dict[tuple[str, int], list[Cell]] = {}
        for cell in plan.cells:
            if cell.inputs.attack is not None and not cell.members:
                by_inputs.setdefault((cell.inputs.attack.key, cell.inputs.stop), []).append(cell)
        for (key, stop), cells in by_inputs.items():
            judged = max(cells, key=lambda cell: (cell.defense.name == "none", cell.identity["executions"]))
            attack = judged.inputs.attack
            assert attack is not None
            if not attack.by_accuracy:
                continue
            classifier = self._by_key[attack.classifier]
            defense = self.registries.defenses.make(*judged.defense)
            last = stop == max(stops for other, stops in by_inputs if other == key)
            for held in controls(self.registries.checks, self._attacked(attack), stop, last):
                work = self._control(attack, classifier, held.control)
                sharing = [
                    cell.key
                    for (other, at), some in by_inputs.items()
                    if other == key and (at == stop or held.rule.of_trajectory)
                    for cell in some
                ]
                n = judged.identity["executions"]
                answer = self._cell(classifier, Inputs(work, work.stops[-1]), defense, n)
                compared = self._cell(classifier, Inputs(), defense, n) if held.rule.against_clean else judged
                yield Check(held.rule.name, compared, answer, tuple(sharing))

    def _attacked(self, attack: AttackWork) -> Attacked:
        stop_parameter = self.registries.attacks[attack.method].stop_parameter
        executions = attack.executions if attack.defense is not None else None
        return Attacked(attack.method, attack.values, attack.threat, stop_parameter, executions)

    def _control(self, attack: AttackWork, classifier: ClassifierWork, control: Control) -> AttackWork:
        made = self.registries.attacks.make(control.method, control.values)
        behind = None if attack.defense is None else self.registries.defenses.make(*attack.defense)
        threat = replace(attack.threat, epsilon=control.epsilon)
        return self._attack_work(made, threat, classifier, behind)

    def cost(self, plan: Plan) -> dict[str, int]:
        """Passes of a plan of this study; see `Costs.of_plan`."""
        return self.costs.of_plan(plan, self.stored_points)

    def planned_passes(self, plan: Plan) -> int:
        """Attack, evaluation and checks, both ways together; of a search all settings that it may propose, at their
        largest N on the clean points and on the attacks on F."""
        cost = self.cost(plan)
        planned = sum(cost[f"{what}_forward"] for what in ("attack", "evaluation", "checks"))
        planned += sum(cost[f"{what}_backward"] for what in ("attack", "checks"))
        if self.sweep.search is None:
            return planned
        n = max(max(self.sweep.executions_of(entry.method.name, self.options)) for entry in self.sweep.defenses)
        each = self.stored_points * self.sweep.draws_of(self.options) * whole_chunks(n, self.registries.chunk)
        inputs = sum(len(self.inputs(work)) for work in self.classifiers)
        return planned + self.sweep.search.trials * inputs * each


def _applies(names: tuple[str, ...] | None, classifier: ClassifierWork) -> bool:
    return names is None or classifier.entry.name in names


def product(axes: Mapping[str, Axis]) -> Iterator[dict[str, Any]]:
    """Every combination of the axes' values."""
    for values in itertools.product(*(axis.values for axis in axes.values())):
        yield dict(zip(axes, values, strict=True))
