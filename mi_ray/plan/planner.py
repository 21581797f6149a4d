"""A sweep -> cells -> the distinct work that they need, each piece with a content key.

A key is the hash of everything that decides a result and of nothing else, so that what is stored is never computed
again: one oblivious attack serves every defense; step counts are read off one trajectory; MI-Combined at any threshold
is a join of MI-PL's and MI-OL's outputs; N = 1, 5, 10 are prefixes of N = 30. Values only: no torch, no ray.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mi_ray.config import ADAPTIVE, AttackEntry, Options, Sweep
from mi_ray.parameters import Axis, Method, expand, plain, product
from mi_ray.plan.cells import CellMaker
from mi_ray.plan.checking import CheckPlanner
from mi_ray.plan.cost import in_whole
from mi_ray.plan.keyed import Facts, KeyedWork, Registries
from mi_ray.plan.work import AttackWork, Cell, Certificate, ClassifierWork, Inputs, Passes, Plan, merged, merged_attacks
from mi_ray.store.keys import canonical
from mi_ray.threat_model import ThreatModel


class Planner:
    """Turns a validated sweep into work and cells. Raises ValueError for every name or value that cannot be.

    Everything a person can get wrong in a file is found by `Planner(…)` and `settings()`, before any work.
    """

    def __init__(self, sweep: Sweep, registries: Registries, facts: Facts, options: Options | None = None) -> None:
        self.sweep, self.registries, self.facts = sweep, registries, facts
        self.options = sweep.resolved_options() if options is None else options
        self.works = KeyedWork(sweep, registries, facts, self.options)
        self._maker = CellMaker(self.works)
        self.costs = self.works.costs
        if sweep.points.count > facts.test_count:
            raise ValueError(
                f"points.count must not exceed the test split of {facts.dataset}, {facts.test_count}; "
                f"got {sweep.points.count}"
            )
        whole = in_whole(sweep.points.count, sweep.batch)
        self.stored_points = min(whole, facts.test_count)
        self.classifiers = tuple(self.works.classifier(entry) for entry in sweep.classifiers)
        twins: dict[str, str] = {}
        for work in self.classifiers:
            if work.key in twins:
                raise ValueError(
                    f"classifiers must differ; {twins[work.key]!r} and {work.entry.name!r} are the same but for their "
                    "names: give one another seed, or leave it out"
                )
            twins[work.key] = work.entry.name
        self._by_key = {work.key: work for work in self.classifiers}
        self._through = [self._asked_through(place, entry) for place, entry in enumerate(sweep.attacks)]
        self._checker = CheckPlanner(self._maker, self.classifiers, self.stored_points)
        self.attacks = tuple(
            work
            for entry in sweep.attacks
            for classifier in self.classifiers
            if entry.knowledge == "oblivious" and _applies(entry.classifiers, classifier)
            for work in self._attack(entry, classifier, None)
        )

    def _attack(self, entry: AttackEntry, classifier: ClassifierWork, defense: Any | None) -> Iterator[AttackWork]:
        """The attacks of an entry: on the classifier alone, or on it behind a defense."""
        with _place(f"attacks[{self.sweep.attacks.index(entry)}]"):
            self._refuse_entry(entry)
            axes = expand(self.method(entry), entry.method.values, self._option)
            for values in product(axes):
                yield from self._attacks_of(entry, self.method(entry).make(values), classifier, defense)

    def _refuse_entry(self, entry: AttackEntry) -> None:
        """Raise ValueError where the attack of an entry cannot be made as the entry says."""
        method = self.method(entry)
        if entry.images and not method.takes_images:
            able = ", ".join(name for name in self.registries.attacks if self.registries.attacks[name].takes_images)
            raise ValueError(f"{method.name} begins with no images of other attacks; `images` is for {able}")
        if method.needs_images and not entry.images:
            raise ValueError(
                f"{method.name} needs images of other attacks: `images: [{{pgd: {{steps: 50}}, classifier: other}}]`"
            )
        if method.needs_defense and entry.knowledge == "oblivious":
            raise ValueError(f"{method.name} attacks a defense: it needs `knowledge: adaptive`; got oblivious")
        if method.follows_gradients and entry.knowledge == "black_box":
            raise ValueError(
                f"{method.name} follows gradients, which `knowledge: black_box` does not see; got black_box"
            )

    def _attacks_of(
        self, entry: AttackEntry, attack: Any, classifier: ClassifierWork, defense: Any | None
    ) -> Iterator[AttackWork]:
        """One setting of an entry's attack for each goal and radius; where it is the nearest image, for all radii at once."""
        for goal, epsilon in itertools.product(entry.goal, entry.epsilon):
            threat = ThreatModel(epsilon, goal, entry.norm, entry.knowledge)
            threat.refuse_beyond(self.facts.numbers)
            attack.admit(threat, self.facts.classes)
            if attack.minimal and epsilon == entry.epsilon[0]:
                yield replace(self.works.nearest(attack, threat, classifier, defense), radii=entry.epsilon)
            elif not attack.minimal:
                given = tuple(self._given(entry, threat, classifier))
                yield self.works.attack(attack, threat, classifier, defense, given)

    def _given(self, entry: AttackEntry, threat: ThreatModel, classifier: ClassifierWork) -> Iterator[Inputs]:
        """The images that an attack begins with: of oblivious attacks of the same radius and goal, each at its last stop."""
        by_name = {work.entry.name: work for work in self.classifiers}
        for listed in entry.images:
            attack = self.registries.attacks.make(*listed.method)
            if attack.needs_images or attack.needs_defense:
                raise ValueError(
                    f"images must be of an attack on a classifier alone that begins with none itself; got {attack.name}"
                )
            oblivious = replace(threat, knowledge="oblivious")
            attack.admit(oblivious, self.facts.classes)
            of = classifier if listed.classifier is None else by_name[listed.classifier]
            yield self.works.read(attack, oblivious, of, None)

    def method(self, entry: AttackEntry) -> Any:
        """The attack that an entry names, which for `adaptive` is the variant's own."""
        name = entry.method.name
        return self.registries.attacks[self.options.adaptive_attack if name == ADAPTIVE else name]

    def adaptive(self, classifier: ClassifierWork, defense: Any) -> list[AttackWork]:
        """The adaptive attacks that the sweep asks for against one defense setting; none against no defense."""
        every = (self._adaptive(position, classifier, defense) for position in range(len(self.sweep.attacks)))
        return list(itertools.chain.from_iterable(every))

    def _adaptive(self, position: int, classifier: ClassifierWork, defense: Any) -> Iterator[AttackWork]:
        """What one attack of the file, by its position, attacks through a defense setting of a classifier."""
        entry, through = self.sweep.attacks[position], self._through[position]
        if entry.knowledge == "oblivious" or not _applies(entry.classifiers, classifier) or not defense.components():
            return
        if through is None or any(each.means(defense) for each in through):
            yield from self._through_defense(entry, classifier, defense)

    def asked(self) -> list[tuple[ClassifierWork, Any]]:
        """Each classifier with each setting of the grid that is asked for on it."""
        return [(work, each) for each, on in self._settings() for work in self.classifiers if work.key in on]

    def idle(self) -> list[tuple[int, AttackEntry]]:
        """The attacks of the file, with their positions, that have nothing to go through in this study."""
        behind = self.asked()
        return [
            (position, entry)
            for position, entry in enumerate(self.sweep.attacks)
            if entry.knowledge != "oblivious" and not any(any(self._adaptive(position, *place)) for place in behind)
        ]

    def _through_defense(self, entry: AttackEntry, classifier: ClassifierWork, defense: Any) -> Iterator[AttackWork]:
        """The adaptive attacks of an entry through one defense setting; none through one that they are not made for."""
        if not self.method(entry).needs_pool or any(part.needs_pool() for part in defense.components()):
            for work in self._attack(entry, classifier, defense):
                # One that is caught has not won: it has to evade as well.
                if not (defense.abstains and work.by_accuracy):
                    yield work

    def _option(self, name: str) -> object:
        """The study's value of a named option, for parameters that the file leaves out."""
        return getattr(self.options, name)

    def _asked_through(self, place: int, entry: AttackEntry) -> list["_Asked"] | None:
        """The settings that an entry's `defenses` names; None where it leaves them out."""
        if entry.defenses is None:
            return None
        with _place(f"attacks[{place}].defenses"):
            return [*map(self._setting, entry.defenses)]

    def _setting(self, written: Method) -> "_Asked":
        """The settings that `mi_ol`, or `{mi_ol: {lam: [0.5, 0.6]}}`, in an attack's `defenses` means."""
        method = self.registries.defenses[written.name]
        asked = {} if written.values == {} else method.as_mapping(written.values)
        known = method.parameters()
        axes = {key: known[key].axis(f"{written.name}.{key}", value, self._option) for key, value in asked.items()}
        return _Asked(written.name, axes)

    def axes(self, classifier: ClassifierWork | None = None) -> list[tuple[Any, dict[str, Axis]]]:
        """(defense class, its axes) for each entry of the file, in order; those for one classifier if it is given."""
        found = []
        for place, entry in enumerate(self.sweep.defenses):
            if classifier is not None and not _applies(entry.classifiers, classifier):
                continue
            name, written = entry.method
            with _place(f"defenses[{place}]"):
                method = self.registries.defenses[name]
                found.append((method, expand(method, written, self._option)))
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
        bare: list[tuple[Any, dict[str, Axis]]] = [(self.registries.defenses["none"], {})]
        for place, ((method, axes), keys) in enumerate(zip(bare + self.axes(), [every, *on], strict=True), -1):
            for values in product(axes):
                with _place(f"defenses[{place}]"):
                    defense = self.checked(method.make(values))
                name = canonical([defense.name, defense.values()])
                seen[name] = (defense, seen.get(name, (defense, frozenset()))[1] | keys)
        for entry, through in zip(self.sweep.attacks, self._through, strict=True):
            on_any = {work.key for work in self.classifiers if _applies(entry.classifiers, work)}
            known = [defense for defense, on in seen.values() if on & on_any]
            for absent in (text for each in through or () for text in each.absent(known)):
                raise ValueError(f"an attack's defenses must be settings of the study on what it attacks; {absent}")
            for defense in known if entry.knowledge != "oblivious" else ():
                named = any(each.means(defense) for each in through or ())
                if named and not any(self._through_defense(entry, self.classifiers[0], defense)):
                    raise ValueError(
                        f"an attack's defenses must be ones that it can be made on; {entry.method.name} on {defense.name}: an "
                        "attack on one that abstains has to evade it (`evasion`, or `eot_pgd` with `loss: evade`), and "
                        "`averaged` needs one with a sample pool"
                    )
        return list(seen.values())

    def checked(self, defense: Any) -> Any:
        """The defense, or ValueError when the dataset's images cannot be defended by it."""
        defense.check_images(*self.facts.side)
        return defense

    def inputs(self, classifier: ClassifierWork, defense: Any | None = None) -> list[Inputs]:
        """What a defense on a classifier is evaluated on: the clean points first, then each attack at each stop."""
        own = [work for work in self.attacks if work.classifier == classifier.key]
        own += self.adaptive(classifier, defense) if defense is not None else []
        read = ((work, stop, radius) for work in own for stop in work.stops for radius in work.radii or (None,))
        return [Inputs(), *(Inputs(*each) for each in read)]

    def cells(self, classifier: ClassifierWork, defense: Any) -> list[Cell]:
        """A defense setting's cells on one classifier: each set of inputs, each requested N, and the worst cases."""
        found = [
            self._maker.cell(classifier, inputs, defense, n)
            for inputs in self.inputs(classifier, defense)
            for n in self.works.executions_to_compute(defense)
        ]
        return [*found, *self._maker.worst_cases(found)]

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
        attacked = [*self.attacks, *attacked]
        given = [inputs.attack for work in attacked for inputs in work.given if inputs.attack is not None]
        # What stands on images of others comes after all that does not.
        attacks = sorted(self._costed([*attacked, *given]), key=lambda work: work.phase)
        plan = Plan(self.classifiers, tuple(attacks), outputs, tuple(cells.values()), certificates=self.certificates())
        return replace(plan, checks=self._checker.checks(plan))

    def certificates(self) -> tuple[Certificate, ...]:
        """What the sweep has certified of each classifier; nothing where it does not ask."""
        asked = self.sweep.certify
        if asked is None:
            return ()
        on = [work for work in self.classifiers if _applies(asked.classifiers, work)]
        return tuple(self.works.certificate(work, sigma, asked) for work in on for sigma in asked.sigma)

    def _costed(self, works: Iterable[AttackWork]) -> tuple[AttackWork, ...]:
        return tuple(replace(work, cost=self.costs.of(work)) for work in merged_attacks(works))

    def cost(self, plan: Plan) -> dict[str, int]:
        """Passes of a plan of this study; see `Costs.of_plan`."""
        return self.costs.of_plan(plan, self.stored_points)

    def search_passes(self) -> Passes:
        """An estimate, as no setting is known before it is proposed: the number of trials times the mean cost of one setting of
        each defense on all classifiers, checks included."""
        assert self.sweep.search is not None
        axes = [(method, found) for method, found in self.axes() if method.name != "none"]
        bare, *_ = self.settings()
        samples = [bare, *(self.checked(method.make(next(product(found)))) for method, found in axes)]
        every, alone = (self._passes(self.plan(settings)) for settings in (samples, [bare]))
        tried = self.sweep.search.trials
        if all(axis.span is None for _, found in axes for axis in found.values()):
            tried = min(tried, len(self.settings()) - 1)  # The same setting again is computed once.
        return tried * (every[0] - alone[0]) // max(1, len(axes)), tried * (every[1] - alone[1]) // max(1, len(axes))

    def _passes(self, plan: Plan) -> Passes:
        """Attack, evaluation and checks."""
        cost = self.cost(plan)
        forward = sum(cost[f"{what}_forward"] for what in ("attack", "evaluation", "checks"))
        return forward, cost["attack_backward"] + cost["checks_backward"]

    def planned_passes(self, plan: Plan) -> int:
        """Attack, evaluation and checks, both ways together; of a search all settings that it may propose, at their
        largest N on the clean points and on the attacks on F."""
        planned = sum(self._passes(plan)) + self.cost(plan).get("certification_forward", 0)
        if self.sweep.search is None:
            return planned
        n = max(max(self.sweep.requested_executions(entry.method.name, self.options)) for entry in self.sweep.defenses)
        each = self.stored_points * self.sweep.requested_draws(self.options) * in_whole(n, self.registries.chunk)
        inputs = sum(len(self.inputs(work)) for work in self.classifiers)
        return planned + self.sweep.search.trials * inputs * each


@contextmanager
def _place(entry: str) -> Iterator[None]:
    """Name the entry of the sweep file in the error of what cannot be made of it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{entry}: {error}") from error


@dataclass(frozen=True)
class _Asked:
    """The settings of a defense that have one of these values of each of these parameters."""

    name: str
    axes: Mapping[str, Axis]

    def means(self, defense: Any) -> bool:
        """Whether a setting is one of them."""
        return defense.name == self.name and all(
            getattr(defense, key) in axis.values for key, axis in self.axes.items()
        )

    def absent(self, settings: Iterable[Any]) -> Iterator[str]:
        """What none of these settings is or has, in words."""
        of_it = [defense for defense in settings if defense.name == self.name]
        meant = [defense for defense in of_it if self.means(defense)]
        for key, axis in self.axes.items() if of_it else ():
            for value in axis.values:
                if not any(getattr(defense, key) == value for defense in meant):
                    has = ", ".join(dict.fromkeys(canonical(plain(getattr(defense, key))) for defense in of_it))
                    yield f"got {self.name} with {key} = {canonical(plain(value))}, and the study has {has}"
        if not of_it:
            yield f"got {self.name}"


def _applies(names: tuple[str, ...] | None, classifier: ClassifierWork) -> bool:
    return names is None or classifier.entry.name in names
