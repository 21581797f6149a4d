"""What an attack is held against, as values of a plan. The rules themselves are the table of checks, study/checks.py.

A control is an attack of its own: it is planned, counted and stored like any other, on the points that checks are made on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from mi_ray.threat_model import Norm, ThreatModel


@dataclass(frozen=True)
class Control:
    """An attack that a check compares with: method, parameters, and the radius of its ball in [0, 1] pixels."""

    method: str
    values: Mapping[str, Any]
    epsilon: float


@dataclass(frozen=True)
class Attacked:
    """The attack that is judged.

    values: its parameters; where one trajectory is read at several stops, those of the stop that is judged.
    stop_parameter: the parameter that says where it is read. executions: N at each of its steps; None where it attacks F
    alone. follows_gradients: whether it can be held against an attack that follows them. diameter: the largest radius that
    its ball can have. minimal: whether it looks for the nearest image, and leaves points alone that it has not fooled.
    of_images: whether it only chooses among images that others made, which are not made again for another ball.
    """

    method: str
    values: Mapping[str, Any]
    threat: ThreatModel
    stop_parameter: str | None
    executions: int | None
    follows_gradients: bool = True
    diameter: float = 1.0
    minimal: bool = False
    of_images: bool = False


@dataclass(frozen=True)
class ControlRule:
    """A check of an attack, as far as a plan has to know it.

    control: what the attack is compared with; None where the check does not apply to it. free: whether it needs no control
    and no passes, and is judged on all points. of_trajectory: whether its verdict is of a whole trajectory, which is judged
    at its last stop, or of each stop. points: on how many points the control is run at most; on all on which checks are
    made where it is None. one_setting: whether the control is run on one setting of each defense alone. by_option: whether
    it is made only where the sweep's `checks.binarization` asks for it, on so many points. of_drawn_points: whether it stands
    on the points being in a drawn order. of_moved: whether it asks how the points that stand were moved. norms: those in which it
    can be made; None for all. What is of a bounded change of pixels is not made of rotations, and what has another attack for
    its control is made where that one attacks.
    """

    name: str
    control: Callable[[Attacked], Control | None] = lambda attack: None
    free: bool = False
    of_trajectory: bool = True
    points: int | None = None
    one_setting: bool = False
    by_option: bool = False
    of_drawn_points: bool = False
    of_moved: bool = False
    norms: tuple[Norm, ...] | None = None

    def knows(self, norm: Norm) -> bool:
        """Whether it can be made of an attack in that norm."""
        return self.norms is None or norm in self.norms


Rule = TypeVar("Rule", bound=ControlRule)


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
        if (rule.of_moved and attack.minimal) or not rule.knows(attack.threat.norm):
            continue
        control = rule.control(attack) if last or not rule.of_trajectory else None
        if control is not None or (rule.free and attack.follows_gradients):
            yield Held(rule, control)
