"""The distinct work of a study as values: what is to be computed, under which key, and which cells need it.

A key is the hash of everything that decides a result and of nothing else. No torch, no ray.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

from mi_ray.config import ClassifierEntry
from mi_ray.parameters import Method
from mi_ray.store.keys import Values
from mi_ray.store.schemas import Kind
from mi_ray.threat_model import ThreatModel

# What an untargeted attack leaves: the true labels, or those that F predicts.
AttackLabels = Literal["true", "predicted"]
Passes = tuple[int, int]  # forward and backward passes of F
Until = Literal["train", "attack", "sweep"]  # the stage after which a run stops
LAST_PHASE = 3  # See `Work.phase`.
Purpose = Literal["evaluate", "choose", "bound"]  # of draws: a defense's score, a certificate's class, its bound
EVALUATE: Purpose = "evaluate"


@dataclass(frozen=True)
class ClassifierWork:
    """A classifier to train, or a user's own to take into the store. cost: (forward, backward) passes."""

    key: str
    entry: ClassifierEntry
    description: Values
    objective: Method | None
    seed: int
    cost: Passes


@dataclass(frozen=True)
class Work(ABC):
    """A piece of work that is computed and stored block by block: an attack, or a classifier's outputs.

    kind: the folder of the store that its blocks are in. phase: when it is done among the works of one defense setting;
    what it stands on has a smaller one.
    """

    kind: ClassVar[Kind]
    key: str
    classifier: str

    @property
    @abstractmethod
    def title(self) -> str:
        """What a person calls it, in Ray's dashboard and in events."""

    @property
    @abstractmethod
    def phase(self) -> int:
        """0: attacks. 1: attacks that begin with their images. 2: F's own outputs. 3: a defense's outputs, which take the
        predictions of F from those."""

    @abstractmethod
    def covers(self) -> dict[str, list[int]]:
        """What rows a block of it must hold for each point, by the column that tells them apart."""

    @abstractmethod
    def widened(self, facts: Mapping[str, Any]) -> "Work":
        """The work with what a stored block of it has (facts) beside what is asked for, so that nothing stored is lost."""

    def stands_on(self) -> set[str]:
        """The keys of everything that must be there before it can be computed, its own among them."""
        return {self.key, self.classifier}


@dataclass(frozen=True)
class AttackWork(Work):
    """One attack on one classifier under one threat model, all requested stops. cost: passes for one point.

    labels: whether an untargeted attack leaves the true label or F's own prediction. defense: what an adaptive attack
    is made against, with the digest of each component's sample pool and N; None for an oblivious one. parts: passes of
    each component in one call. by_accuracy: whether lost accuracy is what it is judged by. given: the images that it begins
    with. radii: of an attack that looks for the nearest image, in which the threat model sets no limit, the epsilons at which
    the study reads it.
    """

    kind: ClassVar[Kind] = "adversarial"
    method: str
    values: Values
    threat: ThreatModel
    stops: tuple[int, ...]
    cost: Passes
    labels: AttackLabels = "true"
    defense: Method | None = None
    pools: Values = field(default_factory=dict)
    executions: int = 1
    parts: tuple[int, ...] = ()
    by_accuracy: bool = True
    given: tuple["Inputs", ...] = ()
    radii: tuple[float, ...] = ()

    @property
    def title(self) -> str:
        """See `Work.title`."""
        return f"attack {self.method}"

    @property
    def phase(self) -> int:
        """See `Work.phase`."""
        return 1 if self.given else 0

    def stands_on(self) -> set[str]:
        """The images that it begins with, and what those stand on."""
        theirs = [inputs.attack.stands_on() for inputs in self.given if inputs.attack is not None]
        return super().stands_on().union(*theirs)

    def covers(self) -> dict[str, list[int]]:
        """Every stop."""
        return {"stops": list(self.stops)}

    def widened(self, facts: Mapping[str, Any]) -> "AttackWork":
        """See `Work.widened`."""
        return replace(self, stops=tuple(sorted({*self.stops, *facts["stops"]})))


@dataclass(frozen=True)
class Inputs:
    """A set of images to classify: the clean points, or what an attack made of them at a stop.

    within: of an attack that looks for the nearest image, the radius at which it is read: an image that is farther away is
    the clean one.
    """

    attack: AttackWork | None = None
    stop: int = 0
    within: float | None = None

    @property
    def name(self) -> str:
        """The key under which workers find the images."""
        if self.attack is None:
            return "clean"
        return f"{self.attack.key}@{self.stop}" + ("" if self.within is None else f" within {self.within!r}")

    @property
    def threat(self) -> ThreatModel:
        """The threat model of attacked images."""
        assert self.attack is not None
        return self.attack.threat if self.within is None else replace(self.attack.threat, epsilon=self.within)


@dataclass(frozen=True)
class OutputWork(Work):
    """A classifier's outputs on a set of images: F itself (component None), or a component's mean softmax.

    undefended: F's own outputs, from which a component takes ŷ. They are of the same images, except for a counterpart: that is
    of clean images, mixed with the samples that their adversarial versions are mixed with. pool: digest of the sample pool, if
    it needs one. perturbed: whether a counterpart has the whole perturbation added to each mixture: x̃_0 + δ of Eq. 13.
    purpose: what the draws are for. votes: whether executions vote, so that further ones are added to the stored counts.
    random: whether the component draws anything. joined: where the images are read within a radius, the outputs on all of the
    attack's images and those on the clean ones; each point takes one of the two, so that a radius needs no further passes.
    """

    kind: ClassVar[Kind] = "outputs"
    inputs: Inputs
    component: Method | None = None
    undefended: "OutputWork | None" = None
    executions: tuple[int, ...] = (1,)
    draws: int = 1
    pool: str | None = None
    perturbed: bool = False
    purpose: Purpose = EVALUATE
    votes: bool = False
    random: bool = True
    joined: tuple["OutputWork", ...] = ()

    @property
    def stored(self) -> tuple["OutputWork", ...]:
        """What is computed and stored: the outputs themselves, or those that they are joined of."""
        return self.joined or (self,)

    def drawn(self, draws: int, executions: int) -> "OutputWork":
        """The same outputs of so many draws, read at so many executions alone."""
        joined = tuple(each.drawn(draws, executions) for each in self.joined)
        return replace(self, draws=draws, executions=(executions,), joined=joined)

    @property
    def title(self) -> str:
        """See `Work.title`."""
        return f"outputs of {self.component.name if self.component else 'F'}"

    @property
    def phase(self) -> int:
        """See `Work.phase`."""
        return 2 if self.component is None else LAST_PHASE

    def begins_at(self, have: Mapping[str, Any]) -> int:
        """How many executions of each draw a stored block has already counted, from which the absent ones go on; 0 where
        they cannot. have: what the block says of itself."""
        if not self.votes or not set(range(self.draws)) <= set(have.get("draws", ())):
            return 0
        absent = set(self.executions) - set(have["executions"])
        return max((n for n in have["executions"] if n < min(absent, default=0)), default=0)

    @property
    def is_counterpart(self) -> bool:
        """Whether it is of other images than those that ŷ is taken from; it is drawn in Fig. 2 and scores nothing."""
        return self.undefended is not None and self.undefended.inputs != self.inputs

    def covers(self) -> dict[str, list[int]]:
        """Every number of executions, of every draw."""
        return {"executions": list(self.executions), "draws": list(range(self.draws))}

    def widened(self, facts: Mapping[str, Any]) -> "OutputWork":
        """See `Work.widened`."""
        executions = tuple(sorted({*self.executions, *facts["executions"]}))
        return replace(self, executions=executions, draws=max(self.draws, len(facts["draws"])))

    def stands_on(self) -> set[str]:
        """Its images and F's own outputs too, and the images whose perturbation it takes."""
        used = [self.inputs, *([self.undefended.inputs] if self.perturbed and self.undefended is not None else [])]
        attacks = [{inputs.attack.key, *inputs.attack.stands_on()} for inputs in used if inputs.attack is not None]
        undefended = set() if self.undefended is None else {self.undefended.key}
        return super().stands_on().union(undefended, *attacks)


# F's own outputs on some images, and each component's with the N that they are read at.
Read = tuple[OutputWork, Sequence[tuple[OutputWork, int]]]


@dataclass(frozen=True)
class Cell:
    """One row of a study's table: a classifier x attack x threat model x defense setting x N.

    undefended: F's own outputs. components: each component's outputs with the N that they are read at. members: the
    cells of which it is the worst case, point by point (it has no outputs of its own then). variants: the sets of
    options under which the study asks for it ("" is the study itself). counterparts: each component's outputs on the
    clean images mixed with the same samples. transferred: the same with the whole perturbation added (Eq. 13). clean: of an
    attacked cell whose defense may give no answer, the setting's cell on the clean points: what it does not answer rightly
    there is lost before any attack.
    """

    key: str
    identity: Values
    classifier: str
    inputs: Inputs
    defense: Method
    undefended: OutputWork
    components: tuple[tuple[OutputWork, int], ...]
    counterparts: tuple[OutputWork, ...] = ()
    transferred: tuple[OutputWork, ...] = ()
    members: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("",)
    clean: "Cell | None" = None

    @property
    def read(self) -> Read:
        """What its answers are read from."""
        return self.undefended, self.components

    @property
    def cross_fitted(self) -> bool:
        """Whether it is a worst case whose draws are each reported under the attack that the others choose."""
        return bool(self.members) and self.identity["draws"] > 1

    def needs(self) -> Iterator[OutputWork]:
        """The outputs that the cell is derived from, or that are asked for with it."""
        if not self.members:
            yield from self.undefended.stored
        for work, _ in self.components:
            yield from work.stored
        yield from self.counterparts
        yield from self.transferred
        if self.clean is not None:
            yield from self.clean.needs()


@dataclass(frozen=True)
class Certificate:
    """What is certified of one classifier under one σ (Cohen, Rosenfeld and Kolter, 2019).

    identity: the columns by which rows of certificates know it. chooses, bounds: n0 votes that choose a point's class, and n
    others that bound its probability. radii: at which certified accuracy is reported; by σ and n where it is None.
    """

    identity: Values
    classifier: str
    chooses: OutputWork
    bounds: OutputWork
    radii: tuple[float, ...] | None = None

    def needs(self) -> tuple[OutputWork, OutputWork]:
        """The outputs that it is derived from."""
        return self.chooses, self.bounds


@dataclass(frozen=True)
class Check:
    """A check of an attack: the judged cell against `control`, the same cell under another attack, on the first `points`.

    clean: the same cell on the clean images. control: None where the check is judged by the cell alone. cells: keys of all
    cells that share its verdict: those whose inputs are of the judged attack.
    """

    name: str
    judged: Cell
    clean: Cell
    control: Cell | None
    cells: tuple[str, ...]
    points: int


W = TypeVar("W", bound=Work)


@dataclass(frozen=True)
class Plan:
    """The distinct work of a study, in the order in which it is done, and its cells.

    checks: what judges the attacks. Their controls' attacks and outputs are no part of `attacks`, `outputs`. certificates:
    what is certified; nor are their outputs.
    """

    classifiers: tuple[ClassifierWork, ...]
    attacks: tuple[AttackWork, ...]
    outputs: tuple[OutputWork, ...]
    cells: tuple[Cell, ...]
    checks: tuple[Check, ...] = ()
    certificates: tuple[Certificate, ...] = ()

    def votes(self) -> tuple[OutputWork, ...]:
        """The outputs that certificates are derived from."""
        return merged(work for certificate in self.certificates for work in certificate.needs())

    @property
    def checked(self) -> int:
        """On how many points the controls are run that are run on most; 0 where there are none."""
        return max((check.points for check in self.checks if check.control is not None), default=0)

    def checked_points(self) -> dict[str, int]:
        """On how many points the checks need each attack and each outputs of their controls, by the work's key."""
        found: dict[str, int] = {}
        for check in self.checks:
            for work in _of_control(check):
                found[work.key] = max(found.get(work.key, 0), check.points)
        return found

    def by_points(self, works: Iterable[W]) -> list[tuple[int, list[W]]]:
        """Works of checks by the number of points that the checks need them on, most first."""
        points = self.checked_points()
        found: dict[int, list[W]] = {}
        for work in works:
            found.setdefault(points[work.key], []).append(work)
        return sorted(found.items(), reverse=True)

    def check_attacks(self) -> tuple[AttackWork, ...]:
        """The checks' own attacks, each with all that the study reads off the same trajectory."""
        own = [work for check in self.checks for work in _of_control(check) if isinstance(work, AttackWork)]
        keys = {work.key for work in own}
        return merged_attacks([*(work for work in self.attacks if work.key in keys), *own])

    def attacks_at_once(self, goes_on: Callable[[str], bool]) -> tuple[AttackWork, ...]:
        """The study's attacks that are run for stops of their checks as well, on their checks' points, so that no step is
        done twice.

        A check may read further stops off a trajectory of the study. Those beyond the study's last stop are left for later: the
        attack then goes on from its stored images. Those before it are computed at once, and so are all stops of a method that
        cannot go on. goes_on: whether the method of that name can.
        """
        theirs = {work.key: work for work in self.check_attacks()}
        found = []
        for own in self.attacks:
            stops = theirs[own.key].stops if own.key in theirs else own.stops
            if goes_on(own.method):
                stops = tuple(stop for stop in stops if stop <= max(own.stops))
            if set(stops) != set(own.stops):
                found.append(replace(theirs[own.key], stops=stops))
        return tuple(found)

    def check_outputs(self) -> tuple[OutputWork, ...]:
        """The checks' own outputs."""
        own = merged(work for check in self.checks for work in _of_control(check) if isinstance(work, OutputWork))
        known = {work.key: work for work in self.outputs}
        return merged([*(known[work.key] for work in own if work.key in known), *own])


def _of_control(check: Check) -> Iterator[Work]:
    """The work of a check's control: its attack, after those whose images it begins with, and the outputs of its cell."""
    if check.control is not None:
        attack = check.control.inputs.attack
        if attack is not None:
            yield from (inputs.attack for inputs in attack.given if inputs.attack is not None)
            yield attack
        yield from check.control.needs()


def united(plans: Mapping[str, Plan]) -> Plan:
    """The plans of a study's variants, by name, as one: what several ask for is there once."""
    first = next(iter(plans.values()))
    cells: dict[str, Cell] = {}
    checks: dict[tuple[str, str, str], Check] = {}
    for name, plan in plans.items():
        for cell in plan.cells:
            own = replace(cell, variants=(name,))
            known = cells.get(cell.key)
            cells[cell.key] = own if known is None else replace(known, variants=(*known.variants, name))
        for check in plan.checks:
            place = (check.name, check.judged.key, check.control.key if check.control else "")
            shared = checks.get(place, check).cells
            points = max(check.points, checks.get(place, check).points)
            checks[place] = replace(check, cells=tuple(dict.fromkeys((*shared, *check.cells))), points=points)
    attacks = merged_attacks(work for plan in plans.values() for work in plan.attacks)
    outputs = merged(work for plan in plans.values() for work in plan.outputs)
    # What is certified depends on no option: it is of the study itself.
    return replace(first, attacks=attacks, outputs=outputs, cells=tuple(cells.values()), checks=tuple(checks.values()))


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
