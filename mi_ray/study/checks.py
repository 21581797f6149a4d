"""Whether a number can be trusted: checks with a criterion each, stored as passed, failed or not run (docs/checks.md).

After Carlini et al. (2019), *On Evaluating Adversarial Robustness*. Pure functions of counts and rows; `controls` says
which attacks an attack is held against, `verdicts` gathers what these need.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mi_ray.statistics import paired_test
from mi_ray.threat_model import TOLERANCE

State = Literal["passed", "failed", "not run"]
SIGNIFICANT = 0.05  # level of a paired one-sided test
ONE_POINT = 0.01  # by how much an accuracy may move when the attack is made stronger; one test point where that is more
MARGIN = 0.002  # by how much a weaker attack may be ahead
ZERO_GRADIENTS = 0.01  # largest share of gradients that may be zero throughout
FREE = ("in_ball", "in_box", "gradients_not_zero", "logits_not_probabilities", "randomness_declared")
NEED_PASSES = (
    "epsilon_zero",
    "more_steps",
    "more_restarts",
    "more_eot",
    "monotone_in_epsilon",
    "large_epsilon",
    "black_box_not_stronger",
    "random_noise_not_stronger",
)
CHECKS = (*FREE, *NEED_PASSES, "oblivious_not_stronger")
Counts = npt.NDArray[Any]


@dataclass(frozen=True)
class Finding:
    """What a check found: its state, why in a sentence, and the figures that it was judged by."""

    state: State
    why: str
    figures: dict[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"state": self.state, "why": self.why, **self.figures}


def _judged(holds: bool, why: str, **figures: float) -> Finding:
    return Finding(
        "passed" if holds else "failed", why, {key: round(float(value), 6) for key, value in figures.items()}
    )


def in_ball(linf: float, epsilon: float) -> Finding:
    """The largest |delta| is at most epsilon (+1e-6 of rounding)."""
    return _judged(linf <= epsilon + TOLERANCE, f"max |delta| is {linf:.6g}, epsilon {epsilon:.6g}", linf=linf)


def in_box(low: float, high: float) -> Finding:
    """Every pixel of the attacked images is in [0, 1]."""
    return _judged(low >= 0 and high <= 1, f"pixels are in [{low:.4g}, {high:.4g}]", low=low, high=high)


def gradients_not_zero(zero: int, total: int) -> Finding:
    """At most 1 % of the gradients that the attack followed are zero throughout (masked gradients, Athalye et al.)."""
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
    """F gives the same output five times: all randomness is the defense's, which the attack averages over."""
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

    def stronger(self) -> tuple[float, float]:
        """(share of points on which the control leaves fewer right draws, one-sided p that it is stronger)."""
        found = paired_test(self.judged, self.control, self.draws)
        return found.left_higher, found.p_greater

    def weaker(self) -> float:
        """One-sided p that the control leaves more right draws."""
        return float(paired_test(self.judged, self.control, self.draws).p_less)


def against_control(name: str, found: Compared, classes: int, rival: str = "") -> Finding:
    """The verdict of one of `NEED_PASSES` or of `oblivious_not_stronger`. Raises KeyError for another name.

    rival: what the control is, in words, where its name does not say it.
    """
    own, other = found.accuracies()
    points = len(found.judged)
    share, p = found.stronger()
    tolerance = max(ONE_POINT, 1 / points) + 1e-9
    figures = {"accuracy": own, "control": other, "points": points, "share_stronger": share, "p": p}
    text = f"{100 * own:.1f} % against {100 * other:.1f} % on {points} points"
    if name == "epsilon_zero":
        same = bool((found.judged == found.control).all())
        return _judged(same, f"at epsilon 0 the accuracy is {100 * other:.1f} %, clean {100 * own:.1f} %", **figures)
    if name in ("more_steps", "more_restarts", "more_eot"):
        moved = own - other if found.random else abs(own - other)
        holds = p >= SIGNIFICANT and moved <= tolerance
        return _judged(holds, f"doubled: {text}, p = {p:.3g}", **figures)
    if name == "monotone_in_epsilon":
        holds = other <= own + tolerance and found.weaker() >= SIGNIFICANT
        return _judged(holds, f"at twice epsilon: {text}", **figures)
    if name == "large_epsilon":
        holds = other <= 1 / classes + 1e-9
        return _judged(
            holds, f"at epsilon 0.5 {100 * other:.1f} % are left, chance is {100 / classes:.1f} %", **figures
        )
    margin = {"black_box_not_stronger": MARGIN, "oblivious_not_stronger": MARGIN, "random_noise_not_stronger": 0.0}
    what = {"black_box_not_stronger": "black-box", "oblivious_not_stronger": "oblivious"}.get(name, "noise")
    why = f"{text} under {rival or f'the {what} control'}, which is stronger on {100 * share:.1f} % of points (p = {p:.3g})"
    slack = 1 / points if found.random and name in NEED_PASSES else 0.0
    return _judged(other >= own - max(margin[name], slack) - 1e-9, why, **figures)


def verdict(findings: dict[str, Finding], attacked: bool) -> State:
    """One word for a cell: failed if any check failed; not run if it is attacked and no control was run; else passed."""
    if any(found.state == "failed" for found in findings.values()):
        return "failed"
    run = any(name in findings and findings[name].state == "passed" for name in NEED_PASSES)
    return "passed" if run or not attacked else "not run"
