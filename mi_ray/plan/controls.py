"""What an attack is held against, as values of a plan. The rules themselves are the table of checks, study/checks.py.

A control is an attack of its own: it is planned, counted and stored like any other, on the points that checks are made on.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from mi_ray.threat_model import ThreatModel


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
    alone.
    """

    method: str
    values: Mapping[str, Any]
    threat: ThreatModel
    stop_parameter: str | None
    executions: int | None


@dataclass(frozen=True)
class ControlRule:
    """A check that needs passes of its own, as far as a plan has to know it.

    control: what the attack is compared with; None where the check does not apply to it. of_trajectory: whether its
    verdict is of a whole trajectory, which is judged at its last stop, or of each stop. against_clean: whether the control
    must leave what the clean images leave, and not what the attack leaves.
    """

    name: str
    control: Callable[[Attacked], Control | None]
    of_trajectory: bool = True
    against_clean: bool = False


Rule = TypeVar("Rule", bound=ControlRule)


@dataclass(frozen=True)
class Held(Generic[Rule]):
    """A rule with the control that an attack is held against by it."""

    rule: Rule
    control: Control


def controls(rules: Iterable[Rule], attack: Attacked, stop: int, last: bool) -> Iterator[Held[Rule]]:
    """What an attack is held against at a stop; by rules of a whole trajectory only at its last stop."""
    if attack.stop_parameter is not None:
        attack = replace(attack, values={**attack.values, attack.stop_parameter: stop})
    for rule in rules:
        control = rule.control(attack) if last or not rule.of_trajectory else None
        if control is not None:
            yield Held(rule, control)
