"""What an attack is held against, as values of a plan. The rules themselves are the table of checks, study/checks.py.

A control is an attack of its own: it is planned, counted and stored like any other, on the points that checks are made on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from mi_ray.threat_model import Norm, ThreatModel


@dataclass(frozen=True)
class Control:
    """An attack that a check compares with: method, parameters, and the radius of its ball in [0, 1] pixels.

    own: whether it is an attack of the program's own, which leaves the true labels whatever the judged one leaves, and not the
    judged one made stronger or of another radius.
    """

    method: str
    values: Mapping[str, Any]
    epsilon: float
    own: bool = False


@dataclass(frozen=True)
class Attacked:
    """The attack that is judged.

    values: its parameters; where one trajectory is read at several stops, those of the stop that is judged.
    stop_parameter: the parameter that says where it is read. executions: N at each of its steps; None where it attacks F
    alone. follows_gradients: whether it can be held against an attack that follows them. diameter: the largest radius that
    its ball can have. minimal: whether it looks for the nearest image, and leaves points alone that it has not fooled.
    only_found: whether it returns the clean image of such a point, as AutoAttack does. of_images: whether it only chooses among
    images that others made, which are not made again for another ball. lowest, highest: the smallest and the largest value that
    a parameter may have, where it has one.
    """

    method: str
    values: Mapping[str, Any]
    threat: ThreatModel
    stop_parameter: str | None
    executions: int | None
    follows_gradients: bool = True
    diameter: float = 1.0
    minimal: bool = False
    only_found: bool = False
    of_images: bool = False
    lowest: Mapping[str, float] = field(default_factory=dict)
    highest: Mapping[str, float] = field(default_factory=dict)

    def within(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Of these values those of its own parameters, each as near as the parameter may come to it."""
        return {name: self._nearest(name, value) for name, value in wanted.items() if name in self.values}

    def _nearest(self, name: str, value: float) -> float:
        enough = max(value, self.lowest.get(name, value))
        return type(value)(min(enough, self.highest.get(name, enough)))


@dataclass(frozen=True)
class PlannedRule:
    """A check of an attack, as far as a plan has to know it.

    control: the attack that the judged one is compared with; None where the check does not apply to it. free: whether it needs
    no control and no passes, so that it is made on all points. of_queries: whether it is made of attacks without gradients
    too. of_trajectory: whether one verdict, at the last stop, is that of all stops of a trajectory; else each stop has its
    own. points: the most points that the control is run on; None for all points that checks are made on. one_setting:
    whether the control is run on the first setting of each defense alone. by_option: whether it is made only where the
    sweep's `checks.binarization` is above 0, on so many points. of_drawn_points: whether it is valid only for points in a
    drawn (random) order. of_moved: whether it looks at how far points were moved, so that it is not made of an attack that
    looks for the nearest image or returns only what it has found. of_leaving: whether it is made of attacks that leave a label
    alone, and of none that look for a target. norms: those in which it can be made, such as the norms that its control attacks
    in; None for all.
    """

    name: str
    control: Callable[[Attacked], Control | None] = lambda attack: None
    free: bool = False
    of_queries: bool = False
    of_trajectory: bool = True
    points: int | None = None
    one_setting: bool = False
    by_option: bool = False
    of_drawn_points: bool = False
    of_moved: bool = False
    of_leaving: bool = False
    norms: tuple[Norm, ...] | None = None

    def knows(self, norm: Norm) -> bool:
        """Whether it can be made of an attack in that norm."""
        return self.norms is None or norm in self.norms


Rule = TypeVar("Rule", bound=PlannedRule)


@dataclass(frozen=True)
class Held(Generic[Rule]):
    """A rule with the control that an attack is held against by it, unless it needs none."""

    rule: Rule
    control: Control | None


def controls(rules: Iterable[Rule], attack: Attacked, stop: int, last: bool) -> Iterator[Held[Rule]]:
    """What an attack is held against at a stop; by rules of a whole trajectory only at its last stop."""
    if attack.stop_parameter is not None:
        attack = replace(attack, values={**attack.values, attack.stop_parameter: stop})
    for rule in rules:
        if (rule.of_moved and (attack.minimal or attack.only_found)) or not rule.knows(attack.threat.norm):
            continue
        if rule.of_leaving and not attack.threat.leaves_label:
            continue
        control = rule.control(attack) if last or not rule.of_trajectory else None
        if control is not None or (rule.free and (attack.follows_gradients or rule.of_queries)):
            yield Held(rule, control)
