"""Every count of passes: of a piece of work, of what a stored block of it lacks, of a plan, and of the same cell by cell.

A pass is one image that goes through a classifier, forwards or backwards. `mi-ray plan` shows these numbers, and a test
holds them equal to the passes that are counted as they happen.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mi_ray.parameters import Registry
from mi_ray.plan.work import AttackWork, Cell, OutputWork, Passes, Plan, Work
from mi_ray.store.keys import canonical


def total(pairs: Iterable[Passes]) -> Passes:
    """The sum, in both directions."""
    listed = list(pairs)
    return sum(forward for forward, _ in listed), sum(backward for _, backward in listed)


def times(passes: Passes, count: int) -> Passes:
    """Of that many points."""
    return passes[0] * count, passes[1] * count


def in_whole(number: int, unit: int) -> int:
    """At least so many in whole units: executions in chunks, points in canonical batches, so that any number of them is a
    prefix of every larger one."""
    return -(-number // unit) * unit


@dataclass(frozen=True)
class Costs:
    """What work costs. attacks: the registry, whose methods know their own passes. chunk: executions that run together."""

    attacks: Registry[Any]
    chunk: int
    _told: dict[Any, Passes] = field(
        default_factory=dict, repr=False, compare=False
    )  # what methods have said of themselves

    def of(self, work: Work, stops: tuple[int, ...] = ()) -> Passes:
        """(forward, backward) passes for one point; of an attack run for these stops, its own when left out."""
        if isinstance(work, AttackWork):
            return self._attack(work, stops or work.stops)
        assert isinstance(work, OutputWork)
        if work.component is None:
            return 1, 0
        return work.draws * in_whole(max(work.executions), self.chunk_of(work.random)), 0

    def chunk_of(self, random: bool) -> int:
        """How many executions of a component run together: one alone of what draws nothing."""
        return self.chunk if random else 1

    def _attack(self, work: AttackWork, stops: tuple[int, ...]) -> Passes:
        method, values = self.attacks[work.method], dict(work.values)
        if method.stop_parameter is not None:
            values[method.stop_parameter] = list(stops)
        setting = (method, canonical(values), work.parts, len(work.given))
        if setting not in self._told:
            self._told[setting] = self._of_method(work, method.make(values))
        forward, backward = self._told[setting]
        return forward + (work.labels == "predicted"), backward  # one pass says which label F predicts

    @staticmethod
    def _of_method(work: AttackWork, attack: Any) -> Passes:
        """What an attack says that it costs, the images that it begins with included."""
        found = attack.cost(work.parts)
        if not (isinstance(found, tuple) and [type(passes) for passes in found] == [int, int]):
            raise ValueError(f"attack {work.method}: cost must return (forward, backward) passes; got {found!r}")
        return found[0] + len(work.given) * attack.cost_of_an_image(work.parts), found[1]

    def lacking(self, work: Work, have: Mapping[str, Any]) -> Passes:
        """Passes for one point of a stored block, which says of itself what it has, until it has all that is asked for.

        An attack that can go on from its stored images does so; other work is computed again.
        """
        if all(set(values) <= set(have.get(name, ())) for name, values in work.covers().items()):
            return 0, 0
        if isinstance(work, OutputWork) and (begun := work.begins_at(have)):
            chunk = self.chunk_of(work.random)
            last = max(set(work.executions) - set(have["executions"]))
            return work.draws * (in_whole(last, chunk) - begun // chunk * chunk), 0
        if isinstance(work, AttackWork) and self.attacks[work.method].goes_on:
            absent = tuple(at for at in work.stops if at not in have["stops"])
            before = max((at for at in have["stops"] if at < min(absent)), default=0)
            return self._beyond(work, absent, before)
        return self.of(work)

    def _beyond(self, work: AttackWork, stops: tuple[int, ...], before: int) -> Passes:
        """Passes to these stops from where a trajectory was scored already."""
        whole = self.of(work, stops)
        if not before:
            return whole
        begun, last, both = (self.of(work, at) for at in ((before,), (stops[-1],), (before, stops[-1])))
        scoring = (both[0] - last[0], both[1] - last[1])
        return whole[0] - begun[0] + scoring[0], whole[1] - begun[1] + scoring[1]

    def cell_by_cell(self, cells: Iterable[Cell]) -> Passes:
        """What these cells would cost for one point if each were computed alone, from nothing ("naive")."""
        found = []
        for cell in (cell for cell in cells if not cell.members):
            beside = [(work, cell.identity["executions"]) for work in (*cell.counterparts, *cell.transferred)]
            found.append((1 + sum(work.draws * n for work, n in (*cell.components, *beside)), 0))
            if cell.inputs.attack is not None:
                found.append(self.of(cell.inputs.attack, (cell.inputs.stop,)))
        return total(found)

    def of_checks(self, plan: Plan) -> Passes:
        """What the checks cost beside the study, each control on its points; what the study needs anyway is the study's."""
        own = {work.key: work.cost for work in plan.attacks}
        known = {work.key for work in plan.outputs}
        points = plan.checked_points()
        found = []
        for work in plan.check_attacks():
            whole, had = self.of(work), own.get(work.key, (0, 0))
            found.append(times((whole[0] - had[0], whole[1] - had[1]), points[work.key]))
        found += [times(self.of(work), points[work.key]) for work in plan.check_outputs() if work.key not in known]
        return total(found)

    def of_plan(self, plan: Plan, points: int) -> dict[str, int]:
        """Passes of a plan on that many points: training, attack, evaluation and checks, and attack and evaluation cell
        by cell ("naive")."""
        training = total(work.cost for work in plan.classifiers)
        attack = times(total(work.cost for work in plan.attacks), points)
        evaluation = times(total(self.of(work) for work in plan.outputs), points)
        checks, naive = self.of_checks(plan), times(self.cell_by_cell(plan.cells), points)
        votes = times(total(self.of(work) for work in plan.votes()), points)
        certified = {"certification_forward": votes[0]} if plan.certificates else {}
        return {
            **certified,
            "training_forward": training[0],
            "training_backward": training[1],
            "attack_forward": attack[0],
            "attack_backward": attack[1],
            "evaluation_forward": evaluation[0],
            "checks_forward": checks[0],
            "checks_backward": checks[1],
            "naive_forward": naive[0],
            "naive_backward": naive[1],
        }
