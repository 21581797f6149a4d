"""Each piece of a study's work with its content key: the hash of everything that decides its result and of nothing else.

What is stored under a key is never computed again, whichever sweep asked for it first. Values only: no torch, no ray.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from mi_ray.config import Certify, ClassifierEntry, Options, Sweep
from mi_ray.parameters import Method, Registry, expand
from mi_ray.plan.controls import PlannedRule
from mi_ray.plan.cost import Costs, in_whole
from mi_ray.plan.work import (
    EVALUATE,
    AttackLabels,
    AttackWork,
    Certificate,
    ClassifierWork,
    Inputs,
    OutputWork,
    Purpose,
)
from mi_ray.store.keys import Values, content_key
from mi_ray.threat_model import ThreatModel

FOLDED_VERSION = 1  # Of the fast form of a person's own networks: one that computes otherwise has another number.
GRAPHS_VERSION = 1  # Of compiled graphs, likewise.


@dataclass(frozen=True)
class Registries:
    """What a sweep's names are looked up in, and the checks' controls: handed in, so that this folder needs none of them."""

    defenses: Registry[Any]
    attacks: Registry[Any]
    objectives: Registry[Any]
    architectures: Registry[Any]
    chunk: int
    checks: Sequence[PlannedRule]


@dataclass(frozen=True)
class Facts:
    """What the plan needs to know of the data and the machine.

    pools: component name -> digest of the sample pool that it draws from; under "defense/component" that of a component
    which draws from another within a defense. sources: name of a person's method, factory or weights file -> hash of its
    source or content.
    decided: classifier key -> the precision that `precision: auto` found good for it, where that is known.
    folded: key of a person's own classifier -> the precisions in which it is computed in its fast form.
    given: name of a classifier that its source gives whole -> (its description, the digest of its weights).
    graphs: keys of the classifiers for which `compile: auto` has chosen compiled graphs.
    networks: (factory, weights file) of a network within a defense -> hash of the factory's source and of the weights.
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
    folded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    given: Mapping[str, tuple[Values, str]] = field(default_factory=dict)
    graphs: frozenset[str] = frozenset()
    networks: Mapping[tuple[str, str | None], str] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """Of how many numbers an image consists: its pixels in three channels."""
        return 3 * self.side[0] * self.side[1]


def _stops(attack: Any) -> tuple[int, ...]:
    """Where an attack's trajectory is read. Raises ValueError where a person's own attack gives no rising whole numbers."""
    stops: tuple[int, ...] = attack.stops()
    if not (isinstance(stops, tuple) and stops and [*stops] == sorted({at for at in stops if isinstance(at, int)})):
        raise ValueError(f"attack {attack.name}: stops must return a tuple of rising whole numbers; got {stops!r}")
    return stops


class KeyedWork:
    """Says of the classifiers, attacks and outputs of one sweep what they are and what decides them."""

    def __init__(self, sweep: Sweep, registries: Registries, facts: Facts, options: Options) -> None:
        self.sweep, self.registries, self.facts, self.options = sweep, registries, facts, options
        self.costs = Costs(registries.attacks, registries.chunk)
        self.called: dict[str, str] = {}  # key of a classifier -> its name in the sweep
        self._of_plugins: set[str] = set()  # keys of classifiers of an architecture of a plugin's
        # Of every key that was made: its kind, and what decides it.
        self.ingredients: dict[str, tuple[str, Values]] = {}
        order = sweep.points_order()
        self._order = {
            "dataset": facts.digest,
            "order": order,
            **({"seed": sweep.seed} if order == "drawn" else {}),
        }

    def _key(self, kind: str, ingredients: Values) -> str:
        """A content key, whose ingredients are kept for whoever asks why it is another one than before."""
        key = content_key(kind, ingredients)
        self.ingredients[key] = (kind, ingredients)
        return key

    def _of_architecture(self, entry: ClassifierEntry) -> tuple[Any, dict[str, Any]]:
        """The architecture of an entry, and the description that its network is built from."""
        assert entry.architecture is not None
        architecture = self.registries.architectures.make(*entry.architecture)
        return architecture, {
            **entry.answers_of(self.facts.classes),
            "architecture": architecture.name,
            "arguments": architecture.values(),
        }

    def _untrained(self, entry: ClassifierEntry) -> ClassifierWork:
        """A classifier that comes with its weights. A weights file is in the key by its hash, and a factory's by its path too."""
        if entry.given_whole:
            description, weights = self.facts.given[entry.name]
            ingredients = {**description, "weights": weights, **self._own(entry.factory)}
        elif entry.factory is not None:
            base = entry.answers_of(self.facts.classes)
            description = {**base, "factory": entry.factory, "arguments": entry.arguments}
            ingredients = {**description, **self._own(entry.factory, entry.weights)}
        else:
            architecture, description = self._of_architecture(entry)
            ingredients = {
                **description,
                "weights": self.facts.sources[str(entry.weights)],
                "version": architecture.version,
            }
            ingredients |= self._source_of(architecture.name)
        return ClassifierWork(self._key("own", ingredients), entry, dict(description), None, 0, (0, 0))

    def _own(self, *names: str | None) -> dict[str, str]:
        """Hashes of those of these factories and files of weights that a person's own classifier has."""
        sources = self.facts.sources
        return {name: sources[name] for name in names if name is not None and name in sources}

    def _source_of(self, architecture: str) -> dict[str, str]:
        """The hash of the code of a person's own architecture: other code computes other answers from the same weights."""
        sources = self.facts.sources
        return {"architecture_source": sources[architecture]} if architecture in sources else {}

    def classifier(self, entry: ClassifierEntry) -> ClassifierWork:
        """The classifier of an entry, to train or to take into the store. Raises ValueError for what cannot be."""
        work = self._classifier(entry.written_out())
        self.called[work.key] = entry.name
        if work.description.get("architecture") in self.facts.sources:
            self._of_plugins.add(work.key)
        return work

    def _objective(self, entry: ClassifierEntry) -> Any:
        """What the training of an entry minimises. Raises ValueError for what is none, and for one with an axis."""
        training, method = self.sweep.training_options(), self.registries.objectives[entry.objective.name]
        axes = expand(method, entry.objective.values, lambda name: getattr(training, name))
        if any(len(axis.values) > 1 for axis in axes.values()):
            raise ValueError(
                f"an objective takes one value a parameter; {method.name} got a list: add a classifier instead"
            )
        return method.make({name: axis.values[0] for name, axis in axes.items()})

    def _classifier(self, entry: ClassifierEntry) -> ClassifierWork:
        if entry.given_whole or entry.factory is not None or entry.weights is not None:
            return self._untrained(entry)
        architecture, description = self._of_architecture(entry)
        try:
            objective = self._objective(entry)
        except ValueError as error:
            raise ValueError(f"classifier {entry.name!r}: {error}") from error
        if entry.training.batch_size > self.facts.train_count:
            raise ValueError(
                f"classifier {entry.name!r}: batch_size must not exceed the {self.facts.train_count} training images; "
                f"got {entry.training.batch_size}"
            )
        seed = self.sweep.seed if entry.seed is None else entry.seed
        device = "cuda" if self.sweep.resources.train.gpus > 0 else "cpu"
        ingredients = {
            **description,
            "version": [architecture.version, objective.version],
            "dataset": self.facts.digest,
            "objective": [objective.name, objective.values()],
            "training": self.training(entry),
            "seed": seed,
            "workers": entry.workers,
            "device": device,
            "source": self.facts.sources.get(objective.name),
        }
        threads = max(1, int(self.sweep.resources.train.cpus))
        if device == "cpu" and threads > 1:  # The sums of a step are added up in another order, so that weights differ.
            ingredients["threads"] = threads
        ingredients |= self._source_of(architecture.name)
        images = entry.training.epochs * self.images_an_epoch(entry)
        forward, backward = (images * passes for passes in objective.cost())
        key = self._key("train", ingredients)
        return ClassifierWork(
            key, entry, description, Method(objective.name, objective.values()), seed, (forward, backward)
        )

    def precision_of(self, classifier: str) -> Literal["fp32", "bf16"]:
        """The precision of a classifier's gradients and executions; until `auto` has decided, the expected one."""
        if self.sweep.precision != "auto":
            return self.sweep.precision
        return "fp32" if self.facts.decided.get(classifier) == "fp32" else "bf16"

    def check_ingredients(self) -> dict[str, Any]:
        """What decides the outcome of the check behind `precision: auto`, beside the classifier."""
        return {"points": self._order, "seed": self.sweep.seed, "device": self.facts.device, "batch": self.sweep.batch}

    def arithmetic(self, classifier: str, precision: str | None = None) -> dict[str, Any]:
        """What decides the last bits of a result. `auto` shares results with the precision that it decides on.

        precision: of the whole result; left out, the classifier's own, while F's own answers stay in fp32.
        """
        own = precision or self.precision_of(classifier)
        found = {"device": self.facts.device, "precision": own, "batch": self.sweep.batch}
        # `compile: auto` makes graphs for executions and for gradients alone. F's own answers, which are always in fp32, are
        # computed without one, so that their keys do not name it.
        compiled = self.compiled(classifier) if precision is None or self.sweep.compile != "auto" else None
        return {**found, **({} if compiled is None else {"compile": compiled}), **self.form(classifier, own)}

    def compiled(self, classifier: str) -> str | None:
        """What a key says of how a classifier is compiled: the mode of torch.compile, or the graphs that `auto` has chosen."""
        if self.sweep.compile != "auto":
            return self.sweep.compile
        return f"graphs {GRAPHS_VERSION}" if classifier in self.facts.graphs else None

    def form(self, classifier: str, precision: str) -> dict[str, Any]:
        """What a key says of the fast form of a person's own classifier; nothing of one that is computed as it is.

        Networks of our own architectures always had that form, so that their keys do not name it.
        """
        forms = [each for each in self.facts.folded.get(classifier, ()) if each in {"fp32", precision}]
        # Those of a plugin's were computed in that form once, which was not always theirs.
        return {"folded": [FOLDED_VERSION, *forms]} if forms or classifier in self._of_plugins else {}

    def training(self, entry: ClassifierEntry) -> dict[str, Any]:
        """The training settings with the learning-rate drops written out."""
        training = entry.training.model_dump(mode="json")
        if training["lr_drops"] is None:
            early = self.sweep.training_options().first_epoch_at_lower_rate == "drop_minus_one"
            halves = (entry.training.epochs // 2, entry.training.epochs * 3 // 4)
            # A drop before epoch 1 is left out: the first one is at the full rate, however short the training.
            training["lr_drops"] = sorted({drop - early for drop in halves if drop - early > 0})
        return training

    def images_an_epoch(self, entry: ClassifierEntry) -> int:
        """Training images that an epoch goes through: whole global batches, so the last few of the shuffle wait."""
        return self.facts.train_count // entry.training.batch_size * entry.training.batch_size

    def executions_to_compute(self, defense: Any) -> tuple[int, ...]:
        """The numbers N that a defense is computed at: those that are requested, or one execution of what draws nothing."""
        return self.sweep.requested_executions(defense.name, self.options) if defense.is_random() else (1,)

    def attack(
        self,
        attack: Any,
        threat: ThreatModel,
        classifier: ClassifierWork,
        defense: Any | None,
        given: tuple[Inputs, ...] = (),
        labels: AttackLabels | None = None,
    ) -> AttackWork:
        """An attack on a classifier alone, or on it behind a defense. given: images it begins with. labels: those that it leaves
        if it is untargeted; None: as the option says."""
        n = None if defense is None else attack.executions or self.executions_to_compute(defense)[-1]
        if "eot" in attack.values():
            attack = replace(attack, eot=n)  # written out; on F alone it means nothing
        labels = (labels or self.options.attack_labels) if threat.leaves_label else "true"  # a target is no guess
        deciding = {k: v for k, v in attack.values().items() if k != attack.stop_parameter}
        ingredients = {
            "classifier": classifier.key,
            "points": self._order,
            "method": attack.name,
            "version": attack.revision,
            "values": deciding,
            "epsilon": threat.epsilon,
            "goal": threat.goal,
            "norm": threat.norm,
            "knowledge": threat.knowledge,
            "labels": labels,
            "seed": self.sweep.seed,
            "source": self.facts.sources.get(attack.name),
            **self.arithmetic(classifier.key),
        }
        if attack.wraps is not None:
            ingredients["wraps"] = [attack.wraps.revision, self.facts.sources.get(attack.wraps.name)]
        if given:
            ingredients["given"] = [self._inputs(inputs) for inputs in given]
        behind: dict[str, Any] = {}
        parts: tuple[int, ...] = ()
        if defense is not None and n is not None:
            behind, more = self._behind(defense, n)
            ingredients |= {**behind, **more}
            parts = self._passes_of(defense, n)
        key = self._key("attack", ingredients)
        work = AttackWork(
            key,
            classifier.key,
            attack.name,
            attack.values(),
            threat,
            _stops(attack),
            (0, 0),
            labels,
            **behind,
            parts=parts,
            by_accuracy=attack.by_accuracy,
            given=given,
        )
        return replace(work, cost=self.costs.of(work))

    def _passes_of(self, defense: Any, n: int) -> tuple[int, ...]:
        """The passes of each component of a defense in one call with N executions."""
        chunks = (self.costs.chunk_of(part.is_random()) for part in defense.components())
        return tuple(in_whole(defense.executions_of(at, n), chunk) for at, chunk in enumerate(chunks))

    def read(
        self,
        attack: Any,
        threat: ThreatModel,
        classifier: ClassifierWork,
        defense: Any | None,
        labels: AttackLabels | None = None,
        given: tuple[Inputs, ...] = (),
    ) -> Inputs:
        """What an attack leaves of the images at its last stop under a threat model. labels, given: as `attack` has them."""
        if not attack.minimal:
            work = self.attack(attack, threat, classifier, defense, given, labels)
            return Inputs(work, work.stops[-1])
        work = self.nearest(attack, threat, classifier, defense)
        return Inputs(work, work.stops[-1], threat.epsilon)

    def nearest(self, attack: Any, threat: ThreatModel, classifier: ClassifierWork, defense: Any | None) -> AttackWork:
        """An attack that looks for the nearest image, in the ball of all images, so that one run serves every radius."""
        everything = replace(threat, epsilon=threat.measure.diameter(self.facts.numbers))
        return self.attack(attack, everything, classifier, defense)

    def _behind(self, defense: Any, n: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """(what an attack through a defense is made against, what decides that beside it)."""
        pools = {part.name: self._pool(defense.name, part) for part in defense.components() if part.needs_pool()}
        every = (defense, *defense.components())
        deciding = {
            "defense_versions": [part.version for part in every],
            "defense_sources": [self.facts.sources.get(part.name) for part in every],
            "chunk": self.registries.chunk,
            **self._made_of(*defense.components()),
        }
        return {"defense": Method(defense.name, defense.values()), "pools": pools, "executions": n}, deciding

    def _made_of(self, *components: Any) -> dict[str, Any]:
        """What a key says of the transformations within components, and of a person's own networks that they have: nothing
        where there are none."""
        parts = [part for component in components for part in component.within()]
        every = [[part.name, part.version, self.facts.sources.get(part.name)] for part in parts]
        own = [self.facts.networks[network] for part in (*components, *parts) for network in part.networks()]
        return {**({"within": every} if every else {}), **({"networks": own} if own else {})}

    def undefended(self, classifier: ClassifierWork, inputs: Inputs) -> OutputWork:
        """F's own outputs: always of fp32."""
        ingredients = {
            "classifier": classifier.key,
            "inputs": self._inputs(inputs),
            **self.arithmetic(classifier.key, "fp32"),
        }
        joined = tuple(self.undefended(classifier, each) for each in _joined(inputs))
        return OutputWork(self._key("undefended", ingredients), classifier.key, inputs, joined=joined)

    def _pool(self, defense: str, component: Any) -> str:
        """The digest of the pool that a component draws from within a defense."""
        return self.facts.pools.get(f"{defense}/{component.name}") or self.facts.pools[component.name]

    def _inputs(self, inputs: Inputs) -> Any:
        if inputs.attack is None:
            return self._order
        return [inputs.attack.key, inputs.stop, *([] if inputs.within is None else [inputs.within])]

    def outputs(
        self,
        classifier: ClassifierWork,
        inputs: Inputs,
        component: Any,
        n: int,
        draws: int,
        judged_by: Inputs | None = None,
        within: str = "",
        purpose: Purpose = EVALUATE,
    ) -> OutputWork:
        """A component's outputs.

        judged_by: the inputs from which ŷ is taken, where they are others. within: the name of the defense that the
        component is a part of. purpose: what the draws are for.
        """
        pool = self._pool(within, component) if component.needs_pool() else None
        ingredients: dict[str, Any] = {
            "classifier": classifier.key,
            "inputs": self._inputs(inputs),
            "component": component.name,
            "version": component.version,
            "values": component.values(),
            "pool": pool,
            "seed": self.sweep.seed,
            "chunk": self.registries.chunk,
            "source": self.facts.sources.get(component.name),
            **self.arithmetic(classifier.key),
        }
        ingredients |= self._made_of(component)
        if judged_by is not None:
            ingredients["judged_by"] = self._inputs(judged_by)
        if purpose != EVALUATE:
            ingredients["purpose"] = purpose
        each = partial(self.outputs, classifier, component=component, n=n, draws=draws, within=within, purpose=purpose)
        joined = tuple(each(some) for some in _joined(inputs))
        return OutputWork(
            self._key("outputs", ingredients),
            classifier.key,
            inputs,
            Method(component.name, component.values()),
            self.undefended(classifier, judged_by or inputs),
            (n,),
            draws,
            pool,
            purpose=purpose,
            votes=component.votes,
            random=component.is_random(),
            joined=joined,
        )

    def certificate(self, classifier: ClassifierWork, sigma: float, asked: Certify) -> Certificate:
        """What a certificate of F under Gaussian noise is derived from: votes that choose a class, and votes that bound it."""
        smoothed = self.registries.defenses.make("vote", {"of": [{"gaussian_noise": {"sigma": sigma}}]})
        chooses = self.outputs(classifier, Inputs(), smoothed, asked.n0, 1, purpose="choose")
        bounds = self.outputs(classifier, Inputs(), smoothed, asked.n, 1, purpose="bound")
        numbers = {"sigma": sigma, "n0": asked.n0, "n": asked.n, "alpha": asked.alpha}
        points = self.sweep.points.model_dump(include={"count", "selection"})
        ingredients = {"chooses": chooses.key, "bounds": bounds.key, **numbers, "points": points}
        identity = {
            "certificate": self._key("certificate", ingredients),
            "dataset": self.facts.dataset,
            "classifier": classifier.entry.name,
            "classifier_key": classifier.key,
            **numbers,
        }
        return Certificate(identity, classifier.key, chooses, bounds, asked.radii)

    def perturbed(self, counterpart: OutputWork) -> OutputWork:
        """The same outputs with the whole perturbation added to each mixture (Eq. 13)."""
        key = self._key("outputs", {"counterpart": counterpart.key, "perturbed": True})
        return replace(counterpart, key=key, perturbed=True)


def _joined(inputs: Inputs) -> tuple[Inputs, ...]:
    """The images of which some within a radius consist: all that the attack made, and the clean ones."""
    return () if inputs.within is None else (replace(inputs, within=None), Inputs())
