"""Which attacks an attack is held against, so that its number can be believed. Values only: no torch, no ray.

After Carlini et al. (2019), *On Evaluating Adversarial Robustness*, and Athalye et al. (2018). `plan` makes work of
them, `checks` judges what they found.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mi_ray.threat_model import ThreatModel


@dataclass(frozen=True)
class Control:
    """An attack that a check compares with: method, parameters, radius."""

    method: str
    values: Mapping[str, Any]
    epsilon: float


# Checks whose verdict is of a whole trajectory, and not of one of its stops.
OF_A_TRAJECTORY = (
    "epsilon_zero",
    "more_restarts",
    "more_eot",
    "monotone_in_epsilon",
    "large_epsilon",
    "black_box_not_stronger",
    "random_noise_not_stronger",
)
LARGE_EPSILON, LARGE_STEPS = 0.5, 100
CHECK_QUERIES, CHECK_TRIES, CHECK_EOT = 100, 20, 5  # of the black-box and noise controls; they are cheap on purpose


@dataclass(frozen=True)
class Attacked:
    """The attack that is judged. executions: N at each of its steps, None where it attacks F alone."""

    method: str
    values: Mapping[str, Any]
    threat: ThreatModel
    stop_parameter: str | None
    executions: int | None


def controls(attack: Attacked, stop: int, last: bool) -> Iterator[tuple[str, Control]]:
    """(check, what it compares with) for an attack at a stop; those of a whole trajectory only at its last stop.

    A targeted attack is compared with its own stronger versions alone: it is the untargeted one that an accuracy on
    true labels should hold against.
    """
    values, epsilon, n = dict(attack.values), attack.threat.epsilon, attack.executions
    if attack.stop_parameter is not None:
        values[attack.stop_parameter] = stop
        yield "more_steps", Control(attack.method, {**values, attack.stop_parameter: 2 * stop}, epsilon)
    elif "steps" in values:
        yield "more_steps", Control(attack.method, {**values, "steps": 2 * values["steps"]}, epsilon)
    if not last:
        return
    if "restarts" in values:
        yield "more_restarts", Control(attack.method, {**values, "restarts": 2 * values["restarts"]}, epsilon)
    if n is not None and "eot" in values:
        yield "more_eot", Control(attack.method, {**values, "eot": 2 * n}, epsilon)
    if not attack.threat.leaves_label:
        return
    yield "epsilon_zero", Control(attack.method, values, 0.0)
    yield "monotone_in_epsilon", Control(attack.method, values, min(1.0, 2 * epsilon))
    eot = {} if n is None else {"eot": min(n, CHECK_EOT)}
    large = {"steps": LARGE_STEPS, "step_size": LARGE_EPSILON / 50, **eot}
    yield "large_epsilon", Control("pgd" if n is None else "eot_pgd", large, LARGE_EPSILON)
    for name, other, more in (
        ("black_box_not_stronger", "square", {"queries": CHECK_QUERIES, **eot}),
        ("random_noise_not_stronger", "random_noise", {"tries": CHECK_TRIES, **eot}),
    ):
        if attack.method not in ("square", "random_noise"):
            yield name, Control(other, more, epsilon)
