"""Whether a number can be trusted: checks with a criterion each, stored as passed, failed or not run (docs/checks.md).

`STORED` and `CONTROLS` at the end are the table of all checks: name, criterion, what an attack is held against, and how that
is judged. A new check is one entry there and a paragraph of its name in docs/checks.md. After Carlini et al. (2019), *On
Evaluating Adversarial Robustness*, and Athalye et al. (2018). Everything here is a pure function of counts and values;
`verdicts` gathers what they need.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mi_ray.plan.controls import Attacked, Control, ControlRule
from mi_ray.statistics import paired_test
from mi_ray.threat_model import TOLERANCE

State = Literal["passed", "failed", "not run"]
SIGNIFICANT = 0.05  # The level of a paired one-sided test.
ONE_POINT = (
    0.01  # An accuracy may move by this when the attack is made stronger, or by one test point where that is more.
)
MARGIN = 0.002  # A weaker attack may be ahead by this much.
ZERO_GRADIENTS = 0.01  # No larger share of the gradients may be zero in every pixel.
LARGE_EPSILON, LARGE_STEPS = 0.5, 100  # An attack of this radius and length can turn any image grey.
CHECK_QUERIES, CHECK_TRIES, CHECK_EOT = 100, 20, 5  # The black-box and noise controls are kept this short to be cheap.
Counts = npt.NDArray[Any]


@dataclass(frozen=True)
class Finding:
    """What a check found: its state, why in a sentence, and the figures that it was judged by."""

    state: State
    why: str
    figures: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """The finding as `checks` in cells.parquet holds it: state and reason, with the figures beside them."""
        return {"state": self.state, "why": self.why, **self.figures}


def _judged(holds: bool, why: str, **figures: float) -> Finding:
    """Passed or failed, with the figures rounded to six digits."""
    return Finding(
        "passed" if holds else "failed", why, {key: round(float(value), 6) for key, value in figures.items()}
    )


def in_ball(linf: float, epsilon: float) -> Finding:
    """The largest |delta| is at most epsilon, up to 1e-6 of rounding. Both are in [0, 1] pixels."""
    return _judged(linf <= epsilon + TOLERANCE, f"max |delta| is {linf:.6g}, epsilon {epsilon:.6g}", linf=linf)


def in_box(low: float, high: float) -> Finding:
    """Every pixel of the attacked images is in [0, 1]. low, high: the lowest and the highest of them."""
    return _judged(low >= 0 and high <= 1, f"pixels are in [{low:.4g}, {high:.4g}]", low=low, high=high)


def gradients_not_zero(zero: int, total: int) -> Finding:
    """At most 1 % of the gradients that the attack followed are zero in every pixel, which tells of masked gradients.

    After Athalye, Carlini and Wagner (2018). zero: how many were zero; total: how many were taken.
    """
    share = zero / max(total, 1)
    return _judged(
        share <= ZERO_GRADIENTS, f"{100 * share:.2f} % of {total} gradients are zero throughout", share=share
    )


def logits_not_probabilities(outputs: Counts) -> Finding:
    """The network's output is not itself a probability vector. outputs: softmax of it, [points, classes].

    Softmax keeps differences: where the output was a probability vector p, p is log softmax(p) plus the constant that
    makes it sum to 1. If that is non-negative at all points, the output was taken for logits and is none: its
    cross-entropy cannot leave a narrow band and its gradients are too small by orders of magnitude.
    """
    log_q = np.log(np.clip(outputs.astype(float), 1e-45, None))
    recovered = log_q + (1 - log_q.sum(1, keepdims=True)) / outputs.shape[1]
    share = float((recovered.min(1) >= -TOLERANCE).mean())
    return _judged(share < 1, f"{100 * share:.1f} % of the outputs could be probability vectors", share=share)


def randomness_declared(same: bool) -> Finding:
    """F gives the same output five times, so that all randomness is the defense's, which the attack averages over."""
    return _judged(same, "five forward passes of F agree" if same else "five forward passes of F differ")


@dataclass(frozen=True)
class Compared:
    """Right draws of each point under the judged attack and under its control, on the same points.

    random: whether the defense draws, so that equally strong attacks differ by chance.
    """

    judged: Counts
    control: Counts
    draws: int
    random: bool = False

    def accuracies(self) -> tuple[float, float]:
        """Mean survival under the judged attack and under the control."""
        return float(self.judged.mean() / self.draws), float(self.control.mean() / self.draws)

    @property
    def points(self) -> int:
        """On how many points they are compared."""
        return len(self.judged)

    @property
    def tolerance(self) -> float:
        """By how much an accuracy may move: one percentage point, or one test point where there are fewer than 100."""
        return max(ONE_POINT, 1 / self.points) + 1e-9

    def stronger(self) -> tuple[float, float]:
        """(share of points on which the control leaves fewer right draws, one-sided p that it is stronger)."""
        found = paired_test(self.judged, self.control, self.draws)
        return found.left_higher, found.p_greater

    def weaker(self) -> float:
        """One-sided p that the control leaves more right draws."""
        return float(paired_test(self.judged, self.control, self.draws).p_less)

    def text(self) -> str:
        """The two accuracies in words."""
        own, other = self.accuracies()
        return f"{100 * own:.1f} % against {100 * other:.1f} % on {self.points} points"

    def finding(self, holds: bool, why: str) -> Finding:
        """Whether the check holds, with the figures that every comparison stores."""
        (own, other), (share, p) = self.accuracies(), self.stronger()
        return _judged(holds, why, accuracy=own, control=other, points=self.points, share_stronger=share, p=p)


@dataclass(frozen=True)
class CheckRule(ControlRule):
    """A check that compares an attack with a control: a row of `CONTROLS`.

    criterion: what must hold, in a sentence, as docs/checks.md begins its paragraph. judge: the finding of a comparison,
    given the number of classes and the control in words.
    """

    criterion: str = ""
    judge: Callable[[Compared, int, str], Finding] = lambda found, classes, rival: found.finding(True, rival)


def _doubled(parameter: str) -> Callable[[Attacked], Control | None]:
    """The same attack with twice the value of a parameter, where it has one."""

    def control(attack: Attacked) -> Control | None:
        name = attack.stop_parameter if parameter == "steps" and attack.stop_parameter else parameter
        value = attack.executions if parameter == "eot" else attack.values.get(name)
        if name not in attack.values or value is None:
            return None
        return Control(attack.method, {**attack.values, name: 2 * value}, attack.threat.epsilon)

    return control


def _at_epsilon(scaled: Callable[[float], float]) -> Callable[[Attacked], Control | None]:
    """The same attack in a ball of another radius. A targeted attack is held against its own stronger versions alone: it
    is the untargeted one that an accuracy on true labels should hold against."""

    def control(attack: Attacked) -> Control | None:
        if not attack.threat.leaves_label:
            return None
        return Control(attack.method, attack.values, scaled(attack.threat.epsilon))

    return control


def _few_executions(attack: Attacked) -> dict[str, int]:
    """Executions that a cheap control averages at each step, where there is a defense."""
    return {} if attack.executions is None else {"eot": min(attack.executions, CHECK_EOT)}


def _in_a_large_ball(attack: Attacked) -> Control | None:
    if not attack.threat.leaves_label:
        return None
    values = {"steps": LARGE_STEPS, "step_size": LARGE_EPSILON / 50, **_few_executions(attack)}
    return Control("pgd" if attack.executions is None else "eot_pgd", values, LARGE_EPSILON)


def _without_gradients(method: str, length: str, number: Callable[[], int]) -> Callable[[Attacked], Control | None]:
    """An attack that asks for no gradient, for one that does. number: how long it runs."""

    def control(attack: Attacked) -> Control | None:
        if not attack.threat.leaves_label or attack.method in ("square", "random_noise"):
            return None
        return Control(method, {length: number(), **_few_executions(attack)}, attack.threat.epsilon)

    return control


def _judge_doubled(found: Compared, classes: int, rival: str) -> Finding:
    (own, other), (_, p) = found.accuracies(), found.stronger()
    moved = own - other if found.random else abs(own - other)
    return found.finding(p >= SIGNIFICANT and moved <= found.tolerance, f"doubled: {found.text()}, p = {p:.3g}")


def _judge_epsilon_zero(found: Compared, classes: int, rival: str) -> Finding:
    own, other = found.accuracies()
    same = bool((found.judged == found.control).all())
    return found.finding(same, f"at epsilon 0 the accuracy is {100 * other:.1f} %, clean {100 * own:.1f} %")


def _judge_monotone(found: Compared, classes: int, rival: str) -> Finding:
    own, other = found.accuracies()
    holds = other <= own + found.tolerance and found.weaker() >= SIGNIFICANT
    return found.finding(holds, f"at twice epsilon: {found.text()}")


def _judge_large_epsilon(found: Compared, classes: int, rival: str) -> Finding:
    _, other = found.accuracies()
    why = f"at epsilon 0.5 {100 * other:.1f} % are left, chance is {100 / classes:.1f} %"
    return found.finding(other <= 1 / classes + 1e-9, why)


def _judge_not_stronger(what: str, margin: float, slack_points: int) -> Callable[[Compared, int, str], Finding]:
    """A weaker attack is ahead by no more than the margin, or, where the defense draws, by so many test points."""

    def judge(found: Compared, classes: int, rival: str) -> Finding:
        (own, other), (share, p) = found.accuracies(), found.stronger()
        slack = slack_points / found.points if found.random else 0.0
        why = f"{found.text()} under {rival or what}, which is stronger on {100 * share:.1f} % of points (p = {p:.3g})"
        return found.finding(other >= own - max(margin, slack) - 1e-9, why)

    return judge


# Checks that are read off what is stored, with their criteria.
STORED = {
    "in_ball": "The largest |delta| over all images is at most epsilon, up to 1e-6 of float32 rounding.",
    "in_box": "Every pixel of every attacked image is in [0, 1].",
    "gradients_not_zero": "At most 1 % of the gradients that the attack followed are zero in every pixel.",
    "logits_not_probabilities": "The network's outputs are not themselves probability vectors.",
    "randomness_declared": "F gives the same output five times.",
}
OBLIVIOUS = CheckRule(
    "oblivious_not_stronger",
    control=lambda attack: None,  # Its rival is an attack that the study makes anyway.
    criterion="An adaptive attack leaves no more accuracy than the strongest oblivious attack on the same setting, radius and "
    "goal.",
    judge=_judge_not_stronger("the oblivious control", MARGIN, 0),
)
CONTROLS = (
    CheckRule(
        "more_steps",
        control=_doubled("steps"),
        of_trajectory=False,
        criterion="Twice the steps leave the same accuracy.",
        judge=_judge_doubled,
    ),
    CheckRule(
        "more_restarts",
        control=_doubled("restarts"),
        criterion="Twice the restarts leave the same accuracy.",
        judge=_judge_doubled,
    ),
    CheckRule(
        "more_eot",
        control=_doubled("eot"),
        criterion="Twice the executions in the gradient leave the same accuracy.",
        judge=_judge_doubled,
    ),
    CheckRule(
        "epsilon_zero",
        control=_at_epsilon(lambda epsilon: 0.0),
        against_clean=True,
        criterion="The same attack at epsilon 0 leaves exactly the clean predictions.",
        judge=_judge_epsilon_zero,
    ),
    CheckRule(
        "monotone_in_epsilon",
        control=_at_epsilon(lambda epsilon: min(1.0, 2 * epsilon)),
        criterion="At twice epsilon no more accuracy is left.",
        judge=_judge_monotone,
    ),
    CheckRule(
        "large_epsilon",
        control=_in_a_large_ball,
        criterion="PGD-100 with epsilon 0.5 leaves at most chance, 1/classes.",
        judge=_judge_large_epsilon,
    ),
    CheckRule(
        "black_box_not_stronger",
        control=_without_gradients("square", "queries", lambda: CHECK_QUERIES),
        criterion="The Square attack with 100 queries is not ahead by more than 0.2 points.",
        judge=_judge_not_stronger("the black-box control", MARGIN, 1),
    ),
    CheckRule(
        "random_noise_not_stronger",
        control=_without_gradients("random_noise", "tries", lambda: CHECK_TRIES),
        criterion="The best of 20 uniform points in the ball breaks no more than the attack.",
        judge=_judge_not_stronger("the noise control", 0.0, 1),
    ),
)
_RULES = {rule.name: rule for rule in (*CONTROLS, OBLIVIOUS)}
NEED_PASSES = tuple(rule.name for rule in CONTROLS)
CHECKS = (*STORED, *_RULES)


def against_control(name: str, found: Compared, classes: int, rival: str = "") -> Finding:
    """What a check of `CONTROLS`, or `oblivious_not_stronger`, says of a comparison. Raises KeyError for another name.

    rival: what the control is, in words, where its name does not say it.
    """
    return _RULES[name].judge(found, classes, rival)


def verdict(findings: dict[str, Finding], attacked: bool) -> State:
    """One word for a cell: failed if any check has failed, not run if it is attacked and no control was run, else passed."""
    if any(found.state == "failed" for found in findings.values()):
        return "failed"
    run = any(name in findings and findings[name].state == "passed" for name in NEED_PASSES)
    return "passed" if run or not attacked else "not run"
