"""Whether a number can be trusted: checks with a criterion each, stored as passed, failed or not run (docs/checks.md).

`STORED` and `RULES` are the tables of all of them: name, criterion and remedy, and of `RULES` what an attack is held against,
if anything, and how that is judged. A new check is one entry there and a paragraph of its name in docs/checks.md. After
Carlini et al. (2019), *On Evaluating Adversarial Robustness*, and Athalye et al. (2018). Everything here is a pure function of
counts and values; `verdicts` gathers what they need, and `battery` holds the statistics.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from mi_ray.plan.controls import Attacked, Control, PlannedRule
from mi_ray.statistics import holm
from mi_ray.store.keys import canonical
from mi_ray.study import battery
from mi_ray.study.battery import Answers
from mi_ray.threat_model import NORMS, TOLERANCE, Norm, ThreatModel, step_of

CheckState = Literal["passed", "failed", "not run"]
BLACK_BOX, LARGE_BALL = "black_box_not_stronger", "large_epsilon"
SIGNIFICANT = 0.05  # The chance of any false alarm among all checks of a cell that are tests.
# No larger share of the gradients may be zero in every pixel. The difference-of-logits ratio is constant, and its gradient zero,
# where the label's logit is the third largest: behind a random defense that is so in a few draws of points that stand (2.6 %
# were measured).
ZERO_GRADIENTS = 0.10
# The check at a large radius: within half the largest distance of two images any image can be turned grey, in 100 steps of a
# fiftieth of the radius. Since steps have a `longest_step`, the radius is at most 50 in L2 and 5000 in L1: that
# is half the largest distance for images of up to 57 x 57 pixels, and for larger ones still far beyond what any network stands.
LARGE_SHARE, LARGE_STEPS, STEP_SHARE = 0.5, 100, 50
QUERIES, TRIES, FEW_EXECUTIONS = 1000, 20, 5  # The black-box and noise controls average few executions.
FIXED_STEPS = 20  # Of each of the two trajectories that may fix the draws, or count success on the way.
# The reference of the norm "spatial": 99 images.
TURNED: Mapping[str, Any] = {"method": "grid", "angles": 11, "shifts": 3}
# For two classes, logits less than 1 apart look like probabilities too; only one as large as this tells them apart.
CONFIDENT = 0.99
FEWEST_STANDING = 10  # points, of which a share says something without a test
FEW_STAND = f"fewer than {FEWEST_STANDING} points stand"
FEWEST = 20  # points that no control is run on, below which they say nothing of the others
SOLVED = 0.95  # A sound attack solves so many of the binarization test's problems at least (98 to 100 % were measured).
# A control that is the attack itself, made stronger or of another radius, is dear.
LIMITED_POINTS, RADIUS_POINTS = 100, 20
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Finding:
    """What a check found: its state, why in a sentence, and the figures that it was judged by.

    p: of a check that is a statistical test, the chance of such figures under a sound attack. It is then failed only by
    `settled`, together with all other checks of its cell.
    """

    state: CheckState
    why: str
    figures: dict[str, float] = field(default_factory=dict)
    p: float | None = None

    def plain(self) -> dict[str, Any]:
        """The finding as `checks` in cells.parquet holds it: state and reason, with the figures beside them."""
        return {"state": self.state, "why": self.why, **self.figures, **({} if self.p is None else {"p": self.p})}


def not_run(why: str) -> Finding:
    """A check that says nothing, with the reason."""
    return Finding("not run", why)


def _judged(holds: bool, why: str, **figures: float) -> Finding:
    """Passed or failed, with the figures rounded to six digits."""
    return Finding("passed" if holds else "failed", why, _rounded(figures))


def _tested(p: float, why: str, **figures: float) -> Finding:
    """A statistical test, which counts as passed until `settled` has looked at all of its cell."""
    return Finding("passed", why, _rounded(figures), float(f"{p:.3g}"))


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {key: round(float(value), 6) for key, value in figures.items()}


def settled(findings: Mapping[str, Finding]) -> dict[str, Finding]:
    """The findings of a cell, the tests among them failed where Holm's (1979) procedure rejects them at 5 % together."""
    tested = {name: found.p for name, found in findings.items() if found.p is not None and found.state != "not run"}
    corrected = dict(zip(tested, holm(list(tested.values())), strict=True)) if tested else {}
    return {
        name: replace(found, state="failed") if corrected.get(name, 1.0) < SIGNIFICANT else found
        for name, found in findings.items()
    }


def in_ball(farthest: float, threat: ThreatModel) -> Finding:
    """The largest distance in the threat model's norm is at most its epsilon, up to rounding."""
    why = f"max {threat.measure.of} is {farthest:.6g}, epsilon {threat.epsilon:.6g}"
    return _judged(farthest <= threat.epsilon + threat.tolerance, why, **{threat.norm: farthest})


def in_box(low: float, high: float) -> Finding:
    """Every pixel of the attacked images is in [0, 1]. low, high: the lowest and the highest of them."""
    return _judged(low >= 0 and high <= 1, f"pixels are in [{low:.4g}, {high:.4g}]", low=low, high=high)


def logits_not_probabilities(outputs: Array) -> Finding:
    """The network's output is not itself a probability vector. outputs: softmax of it, [points, classes].

    Softmax keeps differences: where the output was a probability vector p, p is log softmax(p) plus the constant that
    makes it sum to 1. If that is non-negative at all points, the output was taken for logits and is none: its
    cross-entropy cannot leave a narrow band and its gradients are too small by orders of magnitude.
    """
    log_q = np.log(np.clip(outputs.astype(float), 1e-45, None))
    recovered = log_q + (1 - log_q.sum(1, keepdims=True)) / outputs.shape[1]
    share = float((recovered.min(1) >= -TOLERANCE).mean())
    if share == 1 and outputs.shape[1] == 2 and recovered.max() < CONFIDENT:
        return not_run(
            f"of two classes no output is beyond {recovered.max():.2f}, as a probability or as the softmax of logits that lie "
            "close together: that cannot be told apart"
        )
    return _judged(share < 1, f"{100 * share:.1f} % of the outputs could be probability vectors", share=share)


def randomness_declared(same: bool) -> Finding:
    """F gives the same output five times, so that all randomness is the defense's, which the attack averages over."""
    return _judged(same, "five forward passes of F agree" if same else "five forward passes of F differ")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a check looks at: the judged attack, the clean images and the control, on the same points.

    moved: how far the judged images lie from the clean ones, in the norm of their threat model, [P]. zero, gradients: how
    many of the gradients that the attack took at each point were zero in every pixel, and how many it took, [P]. rival: the
    control in words. wider: the control's radius. success: the share of the control's own draws in which each of its restarts
    reached the goal, [restarts, P]. left_alone: which points the attack has not moved because they failed in all draws of its
    own, [P]. checked: how many of the points, the first, controls are run on. random: whether the defense draws anything.
    reach: how far the control's images lie from the clean ones at the most, where nothing says how long its steps are.
    """

    judged: Answers
    clean: Answers
    control: Answers | None
    moved: Array
    zero: Array
    gradients: Array
    epsilon: float
    classes: int
    rival: str = ""
    wider: float = 0.0
    success: Array | None = None
    left_alone: npt.NDArray[np.bool_] | None = None
    checked: int = 0
    random: bool = False
    reach: float | None = None

    @property
    def stands(self) -> npt.NDArray[np.bool_]:
        """Which points the judged attack has not fooled, by the mean answer."""
        found: npt.NDArray[np.bool_] = self.judged.margin <= 0
        return found

    @property
    def tried(self) -> npt.NDArray[np.bool_]:
        """Which points stand although the attack has not left them alone."""
        return self.stands if self.left_alone is None else self.stands & ~self.left_alone

    @property
    def control_answers(self) -> Answers:
        """The control's answers, where the check has a control."""
        assert self.control is not None
        return self.control


@dataclass(frozen=True)
class CheckRule(PlannedRule):
    """A check of an attack: a row of `RULES`.

    criterion: what must hold, in a sentence, as docs/checks.md begins its paragraph. remedy: what to do where it fails.
    judge: the finding of its evidence.
    """

    criterion: str = ""
    remedy: str = ""
    judge: Callable[[Evidence], Finding] = lambda found: not_run("it is judged elsewhere")


def compared(judged: Array, control: Array, draws: int, rival: str, among: int = 1) -> Finding:
    """Whether an attack leaves significantly more than a point more than a rival, from right draws [P] under each.

    among: how many rivals there were to choose from; the p-value is multiplied by it (Bonferroni).
    """
    found = battery.loss(judged, control, draws)
    own, other = judged.mean() / draws, control.mean() / draws
    p = min(1.0, found.p * among)
    why = (
        f"{100 * own:.1f} % against {100 * other:.1f} % under {rival} on {len(judged)} points: "
        f"{100 * found.test.difference:+.1f} points, 95 % interval [{100 * found.test.low:.1f}, {100 * found.test.high:.1f}], "
        f"p = {p:.2g} that it is no more than one"
    )
    figures = {"accuracy": own, "control": other, "points": len(judged), "share_stronger": found.test.left_higher}
    return _tested(p, why, **figures, low=found.test.low, high=found.test.high)


def _judge_stronger(found: Evidence) -> Finding:
    control = found.control_answers
    return compared(found.judged.right, control.right, found.judged.draws, found.rival)


def _judge_black_box(found: Evidence) -> Finding:
    """`_judge_stronger`, and whether points that the attack leaves fall to its rival: of two tests p is twice the smaller."""
    control, draws = found.control_answers, found.judged.draws
    mean = compared(found.judged.right, control.right, draws, found.rival)
    if found.random:  # By few draws chance alone leaves such points.
        return mean
    alone = battery.broken_alone(found.judged.right, control.right, draws)
    assert mean.p is not None
    why = (
        f"{mean.why}; {100 * alone.share:.1f} % of the points stand under the attack and fall to {found.rival}, p = "
        f"{alone.p:.2g} that it is no more than {100 * battery.ALONE:.0f} %"
    )
    return _tested(min(1.0, 2 * min(mean.p, alone.p)), why, **mean.figures, alone=alone.share)


def _gains(found: Evidence) -> bool:
    """Whether the control leaves significantly less than the clean images: one that does not is blind itself."""
    clean, control = found.clean, found.control_answers
    return battery.loss(clean.right, control.right, clean.draws, allowed=0.0).test.p_greater < SIGNIFICANT


BLIND = (
    "the reference does not leave significantly less than the clean images: the points are too few, or gradients are masked, "
    "and then what tells is black_box_not_stronger and the oblivious attacks"
)


def _judge_reference(found: Evidence) -> Finding:
    return _judge_stronger(found) if _gains(found) else not_run(BLIND)


def _judge_headway(found: Evidence) -> Finding:
    if not _gains(found):
        return not_run(BLIND)
    made = battery.headway(found.tried, found.clean.margin, found.judged.margin, found.control_answers.margin)
    if made.points == 0:
        return not_run("no point stands on which the reference made headway")
    why = (
        f"on {100 * made.share:.0f} % of {made.points} points that stand the attack made more than half of the reference's "
        "gain in margin"
    )
    return _tested(made.p, why, share=made.share, points=made.points)


def _judge_budget(found: Evidence) -> Finding:
    inside, count = battery.at_the_edge(found.tried, found.moved, found.epsilon)
    if count < FEWEST_STANDING or found.epsilon == 0:
        return not_run(FEW_STAND if count < FEWEST_STANDING else "epsilon is 0")
    why = f"of {count} points that stand, {100 * inside:.1f} % were moved by less than 0.99 epsilon"
    return _judged(inside <= battery.INSIDE, why, share=inside, points=count)


def _judge_zero_gradients(found: Evidence) -> Finding:
    zero, total = int(found.zero[found.stands].sum()), int(found.gradients[found.stands].sum())
    if total == 0:
        return not_run("the attack took no gradient on a point that stands, or does not count them")
    if found.stands.sum() < FEWEST_STANDING:
        return not_run(FEW_STAND)
    share = zero / total
    why = f"{100 * share:.2f} % of {total} gradients on points that stand are zero throughout"
    return _judged(share <= ZERO_GRADIENTS, why, share=share)


def _judge_pushed_back(found: Evidence) -> Finding:
    back = battery.pushed_back(found.clean.margin, found.judged.margin)
    if back.points == 0:
        return not_run("no point is wrong when clean")
    why = f"of {back.points} points that are wrong when clean, {100 * back.share:.0f} % are right under attack"
    return _tested(back.p, why, share=back.share, points=back.points)


def _judge_elsewhere(found: Evidence) -> Finding:
    right, draws, checked = found.judged.right, found.judged.draws, found.checked
    if checked == 0 or len(right) - checked < FEWEST:
        return not_run(f"controls are run on none of the points, or fewer than {FEWEST} are left beside them")
    there, here = right[checked:].mean() / draws, right[:checked].mean() / draws
    p = battery.more_elsewhere(right, draws, checked)
    others = len(right) - checked
    why = f"{100 * there:.1f} % are left of {others} points that no control is run on, {100 * here:.1f} % of the others"
    return _tested(p, why, accuracy=there, control=here, points=others)


def _judge_fixed_randomness(found: Evidence) -> Finding:
    """Two figures beside the reported one; no sound attack and no defense can fail by them."""
    assert found.success is not None
    fixed, counted = (1 - found.success).mean(1)
    why = (
        f"{100 * fixed:.1f} % are left where the adversary may fix the draws, {100 * counted:.1f} % where success counts while "
        f"it optimises; reported are {100 * found.judged.accuracy:.1f} % on these {len(found.judged.right)} points"
    )
    return _judged(True, why, fixed=fixed, counted=counted, accuracy=found.judged.accuracy)


def _judge_binarization(found: Evidence) -> Finding:
    assert found.success is not None
    valid = found.success[0][~np.isnan(found.success[0])]
    if len(valid) == 0:
        return not_run("no problem could be made that chance does not solve")
    share = float(valid.mean())
    p = float(scipy.stats.binom.cdf(round(float(valid.sum())), len(valid), SOLVED))
    return _tested(p, f"{100 * share:.0f} % of {len(valid)} problems were solved", share=share, points=len(valid))


def _judge_epsilon_zero(found: Evidence) -> Finding:
    clean, other = found.clean, found.control_answers
    same = bool((clean.right == other.right).all())
    why = f"at epsilon 0 the accuracy is {100 * other.accuracy:.1f} %, clean {100 * clean.accuracy:.1f} %"
    return _judged(same, why, accuracy=clean.accuracy, control=other.accuracy, points=len(clean.right))


def _judge_monotone(found: Evidence) -> Finding:
    wider = found.control_answers
    less = battery.loss(wider.right, found.judged.right, wider.draws)
    why = (
        f"{100 * wider.accuracy:.1f} % are left at twice epsilon, {100 * found.judged.accuracy:.1f} % at epsilon, on "
        f"{len(wider.right)} points"
    )
    return _tested(less.p, why, accuracy=found.judged.accuracy, control=wider.accuracy, points=len(wider.right))


def _judge_large_epsilon(found: Evidence) -> Finding:
    left, chance = found.control_answers.accuracy, 1 / found.classes
    # Steps half as long are enough. An attack that moves no image at all is stuck, and its steps are not too short.
    if left > chance and found.reach is not None and 0 < 2 * found.reach < found.wider:
        return not_run(
            f"the attack, whose steps cannot be made longer, gets no farther than {found.reach:.4g} in a ball of "
            f"{found.wider:.4g}"
        )
    points = len(found.control_answers.right)
    p = float(scipy.stats.binom.sf(np.ceil(left * points - 1e-9) - 1, points, chance))
    why = f"at epsilon {found.wider:.4g} {100 * left:.1f} % of {points} points are left, chance is {100 * chance:.1f} %"
    return _tested(p, why, control=left, points=points)


def _reference(attack: Attacked) -> Control | None:
    """PGD-20 or EOT-PGD-20 for an attack that follows gradients; where the image is turned and shifted, all of a fixed grid."""
    if attack.threat.epsilon == 0:
        return None
    if attack.threat.norm == "spatial":
        return Control("spatial", TURNED, attack.threat.epsilon, own=True)
    return Control("reference", {}, attack.threat.epsilon, own=True) if attack.follows_gradients else None


def _doubled(parameter: str) -> Callable[[Attacked], Control | None]:
    """The same attack with twice the value of a parameter, where it has one; the largest that there may be is enough."""

    def control(attack: Attacked) -> Control | None:
        """The attack with the doubled parameter; None where it has none."""
        name = attack.stop_parameter if parameter == "steps" and attack.stop_parameter else parameter
        value = attack.executions if parameter == "eot" else attack.values.get(name)
        if name not in attack.values or value is None:
            return None
        more = min(2 * value, int(attack.highest.get(name, 2 * value)))
        return Control(attack.method, {**attack.values, name: more}, attack.threat.epsilon) if more > value else None

    return control


def _at_epsilon(factor: float) -> Callable[[Attacked], Control | None]:
    """The same attack in a ball of another radius, its steps as long in proportion. A targeted attack is held against its
    own stronger versions alone: it is the untargeted one that an accuracy on true labels should hold against."""

    def control(attack: Attacked) -> Control | None:
        """The attack in the other ball; None for a targeted one, and for one that chooses among the images of others."""
        if not attack.threat.leaves_label or attack.of_images:
            return None
        values = dict(attack.values)
        if "step_size" in values and factor > 0:
            values |= attack.within({"step_size": step_of(factor * values["step_size"], 1, attack.threat.norm)})
        return Control(attack.method, values, min(attack.diameter, factor * attack.threat.epsilon))

    return control


def _few_executions(attack: Attacked) -> dict[str, int]:
    """Executions that a cheap control averages at each step, where there is a defense."""
    return {} if attack.executions is None else {"eot": min(attack.executions, FEW_EXECUTIONS)}


def _in_a_large_ball(attack: Attacked) -> Control | None:
    """The judged attack's own code with 100 steps of epsilon / 50, once, where it has these parameters.

    One that may not have so many steps has longer ones. None for one whose steps may not be long enough to cross the ball.
    """
    if not attack.threat.leaves_label or attack.of_images:
        return None
    threat = attack.threat
    epsilon = min(STEP_SHARE * threat.measure.longest_step, LARGE_SHARE * attack.diameter)
    wanted = attack.within({"steps": LARGE_STEPS, "restarts": 1, **_few_executions(attack)})
    steps = wanted.get("steps", LARGE_STEPS)
    step = step_of(epsilon * (LARGE_STEPS / steps), STEP_SHARE, threat.norm)
    wanted |= attack.within({"step_size": step})
    crosses = 2 * wanted.get("step_size", step) >= step  # Steps half as long still do.
    return Control(attack.method, {**attack.values, **wanted}, epsilon) if crosses else None


def _without_gradients(method: str, values: Callable[[], Mapping[str, int]]) -> Callable[[Attacked], Control | None]:
    """An attack that asks for no gradient, for one that does. values: how long it runs."""

    def control(attack: Attacked) -> Control | None:
        """The control in the same ball; None for a targeted attack, for one without gradients, and at epsilon 0."""
        if not attack.threat.leaves_label or not attack.follows_gradients or attack.threat.epsilon == 0:
            return None
        return Control(method, {**values(), **_few_executions(attack)}, attack.threat.epsilon, own=True)

    return control


def _of_fixed_randomness(attack: Attacked) -> Control | None:
    """Behind a defense that draws, for an attack that follows its gradients."""
    if attack.executions is None or not attack.follows_gradients or not attack.threat.leaves_label:
        return None
    if attack.threat.epsilon == 0:
        return None
    return Control("fixed_randomness", {"steps": FIXED_STEPS}, attack.threat.epsilon, own=True)


def _of_known_solutions(attack: Attacked) -> Control | None:
    """The judged attack on problems of its own, where it attacks F alone and follows gradients."""
    if attack.executions is not None or not attack.follows_gradients or not attack.threat.leaves_label:
        return None
    if attack.threat.epsilon == 0:
        return None
    return Control("binarization", {"of": canonical({attack.method: attack.values})}, attack.threat.epsilon)


class Words(NamedTuple):
    """A check in sentences: what must hold, and what to do where it fails."""

    criterion: str
    remedy: str


# Checks that are read off what is stored already; `verdicts` has their code.
STORED = {
    "in_ball": Words(
        "The largest distance of an image from its clean one, in the attack's norm, is at most epsilon, up to 1e-6 of "
        "rounding.",
        "The attack leaves its threat model. Mend its projection; the number means nothing before that.",
    ),
    "in_box": Words(
        "Every pixel of every attacked image is in [0, 1].",
        "Let the attack clip its images (`clip: true` for the averaged attack).",
    ),
    "logits_not_probabilities": Words(
        "The network's outputs are not themselves probability vectors.",
        "Take the softmax out of the network: through a second one its gradients are too small.",
    ),
    "randomness_declared": Words(
        "F gives the same output five times.",
        "Put the network into evaluation mode. Randomness belongs into the defense, where attacks average over it.",
    ),
    "oblivious_not_stronger": Words(
        "An adaptive attack leaves no more than a point more than the strongest oblivious attack on the same setting, "
        "radius and goal.",
        "The adaptive attack is broken or too short. Lengthen it, or take `cascade`, and quote neither it nor the "
        "worst case before that.",
    ),
    "peers": Words(
        "No attack of the study of the same knowledge, setting, radius and goal that costs no more passes leaves "
        "significantly less.",
        "Quote the attack that is named here, or the worst case.",
    ),
}
RULES = (
    CheckRule(
        "reference",
        control=_reference,
        of_trajectory=False,
        criterion="The reference attack does not leave significantly less.",
        remedy="The attack is weaker than 20 plain steps, or than 99 rotations and shifts. Mend it, or take `pgd`, "
        "`eot_pgd`, `cascade` or `spatial: grid`.",
        judge=_judge_reference,
    ),
    CheckRule(
        "headway",
        norms=NORMS,
        of_moved=True,
        control=lambda attack: _reference(attack) if attack.threat.leaves_label else None,
        of_trajectory=False,
        criterion="Of the points that stand, 85 % made more than half of the reference's gain in margin.",
        remedy="The attack has hardly moved these points. Take longer or more steps, or a less noisy gradient (a "
        "larger `eot`). One that returns the clean image where it has found nothing says so (`only_found` in docs/plugins.md).",
        judge=_judge_headway,
    ),
    CheckRule(
        "budget",
        norms=NORMS,
        free=True,
        of_moved=True,
        of_trajectory=False,
        criterion="At most a tenth of the points that stand were moved by less than 0.99 epsilon.",
        remedy="The attack is confined to a smaller ball. Look for a mistake in the units of ε or of the step size. One that "
        "looks for the nearest image says so (`minimal` in docs/plugins.md), and so does one that returns the clean image where "
        "it has found nothing (`only_found`).",
        judge=_judge_budget,
    ),
    CheckRule(
        "gradients_not_zero",
        free=True,
        of_trajectory=False,
        criterion="At most a tenth of the gradients that the attack followed on points that stand are zero in every pixel.",
        remedy="The gradient is masked. Use `apgd` with its difference-of-logits loss, `square`, or attack a smooth "
        "version.",
        judge=_judge_zero_gradients,
    ),
    CheckRule(
        "pushed_back",
        free=True,
        of_trajectory=False,
        of_leaving=True,  # On its way to a target a sound attack makes 8 to 10 % of the errors right.
        criterion="At most 2 % of the points that are wrong when clean are right under attack.",
        remedy="The attack leaves the model's own label. Let it leave the true one (`attack_labels: true`).",
        judge=_judge_pushed_back,
    ),
    CheckRule(
        "elsewhere",
        free=True,
        of_trajectory=False,
        of_drawn_points=True,
        of_queries=True,
        criterion="On points that no control is run on, the attack leaves no significantly larger share than on the others.",
        remedy="The attack is strong on the checked points alone. Run `checks: full`, and do not quote it before that.",
        judge=_judge_elsewhere,
    ),
    CheckRule(
        "fixed_randomness",
        norms=NORMS,
        control=_of_fixed_randomness,
        of_trajectory=False,
        points=LIMITED_POINTS,
        criterion="Two figures: what is left where the adversary may fix the defense's draws, and where success counts while it "
        "optimises.",
        remedy="Nothing fails by it. A large gap says that the gain is that nobody knows the defense's draws.",
        judge=_judge_fixed_randomness,
    ),
    CheckRule(
        "more_steps",
        control=_doubled("steps"),
        of_trajectory=False,
        points=LIMITED_POINTS,
        criterion="Twice the steps do not leave significantly less.",
        remedy="Run it with more steps; what is stored is continued, so that only the further ones cost anything.",
        judge=_judge_stronger,
    ),
    CheckRule(
        "more_restarts",
        control=_doubled("restarts"),
        points=LIMITED_POINTS,
        criterion="Twice the restarts do not leave significantly less.",
        remedy="Run it with more restarts, or take `cascade`.",
        judge=_judge_stronger,
    ),
    CheckRule(
        "more_eot",
        control=_doubled("eot"),
        points=LIMITED_POINTS,
        criterion="Twice the executions in the gradient do not leave significantly less.",
        remedy="Raise `eot`, so that the gradient is less a matter of chance.",
        judge=_judge_stronger,
    ),
    CheckRule(
        "epsilon_zero",
        control=_at_epsilon(0.0),
        points=RADIUS_POINTS,
        criterion="The same attack at epsilon 0 leaves exactly the clean predictions.",
        remedy="Something changes images on their way: preprocessing, shifted points, or a rounding to 8 bits.",
        judge=_judge_epsilon_zero,
    ),
    CheckRule(
        "monotone_in_epsilon",
        control=_at_epsilon(2.0),
        points=RADIUS_POINTS,
        criterion="At twice epsilon, with steps twice as long, the attack does not leave significantly more.",
        remedy="The attack is stuck. Start it at random, and give it restarts.",
        judge=_judge_monotone,
    ),
    CheckRule(
        LARGE_BALL,
        norms=NORMS,
        control=_in_a_large_ball,
        points=RADIUS_POINTS,
        criterion="The attack with 100 steps in a ball in which any image can be turned grey leaves at most chance, 1/classes.",
        remedy="Any image can be turned grey there, so the gradient lies. Use `square`, or attack a smooth version.",
        judge=_judge_large_epsilon,
    ),
    CheckRule(
        "random_noise_not_stronger",
        norms=NORMS,
        control=_without_gradients("random_noise", lambda: {"tries": TRIES}),
        of_trajectory=False,
        points=LIMITED_POINTS,
        criterion="The best of 20 uniform points in the ball does not leave significantly less.",
        remedy="Noise is the better attack. Mend this one.",
        judge=_judge_stronger,
    ),
    CheckRule(
        BLACK_BOX,
        norms=("linf", "l2"),
        control=_without_gradients("square", lambda: {"queries": QUERIES, "schedule": QUERIES}),
        of_trajectory=False,
        one_setting=True,
        points=LIMITED_POINTS,
        criterion="The Square attack with 1,000 queries neither leaves significantly less, nor breaks, without a random defense, "
        "significantly more than 3 % of the points alone.",
        remedy="The gradients mislead. Use `square`, or `apgd` with its difference-of-logits loss.",
        judge=_judge_black_box,
    ),
    CheckRule(
        "binarization",
        norms=("linf", "l2"),
        control=_of_known_solutions,
        by_option=True,
        criterion="The attack solves no significantly smaller share than 95 % of problems whose solution is known to exist.",
        remedy="The attack does not find what is there. Look for steps that are too short, a smaller ball, or masked "
        "gradients; `apgd` with its difference-of-logits loss or `square` tells which.",
        judge=_judge_binarization,
    ),
)
_RULES = {rule.name: rule for rule in RULES}
OPTIONAL = tuple(rule.name for rule in RULES if rule.by_option)  # named by the cells that were asked for them alone
NEED_PASSES = tuple(rule.name for rule in RULES if not rule.free and not rule.by_option)
CHECKS = (*STORED, *(name for name in _RULES if name not in OPTIONAL))  # named by every attacked cell
WORDS = {**STORED, **{name: Words(rule.criterion, rule.remedy) for name, rule in _RULES.items()}}


def is_made_in(norm: Norm, name: str) -> bool:
    """Whether a check can be made of an attack in that norm."""
    return name not in _RULES or _RULES[name].knows(norm)


def has_limit(name: str) -> bool:
    """Whether a check's control has a limit of points of its own, as longer runs, other radii, noise and Square have."""
    return _RULES[name].points is not None


def is_dear(name: str) -> bool:
    """Whether a check is made of the first setting of a defense alone, and left out where it would cost too much."""
    return name in _RULES and _RULES[name].one_setting


def judge(name: str, evidence: Evidence) -> Finding:
    """What a check of `RULES` says of its evidence. Raises KeyError for another name."""
    return _RULES[name].judge(evidence)


def verdict(findings: Mapping[str, Finding], attacked: bool) -> CheckState:
    """One word for a cell: failed if any check has failed; passed if it is not attacked or the reference was not stronger;
    else not run."""
    if any(found.state == "failed" for found in findings.values()):
        return "failed"
    held = "reference" in findings and findings["reference"].state == "passed"
    return "passed" if held or not attacked else "not run"
