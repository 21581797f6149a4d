"""The statistics of the checks: how one attack is held against another on the same points, as functions of arrays.

`checks` says which attack is held against which, and words what is found. Margins are of a cell's mean answer p:
max over k ≠ y of log p_k, minus log p_y, so that a point is fooled where its margin is above 0.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy

from mi_ray.statistics import PairedTest, discordant_p, paired_test

ALLOWED = 0.01  # An attack may leave one percentage point more than what it is held against.
# Of the points that stand, which are those that the attack has not fooled: at most a share of INSIDE may be moved by less than
# EDGE epsilon, and on a share of HALF_WAY the attack should gain more than MOVED times what the reference gains in margin.
EDGE, INSIDE = 0.99, 0.10
MOVED, HALF_WAY = 0.5, 0.85
ALONE = (
    0.03  # So many points may stand under an attack and fall to one without gradients, which breaks other points too.
)
RIGHTED = 0.02  # At most this share of the points that are wrong when clean should be right under attack.
SMALLEST = 1e-30  # Probabilities are raised to this before their logarithm is taken: in float32 one may be 0.
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Answers:
    """What a cell's defense answers on some points. right: [P], right draws out of `draws`. margin: [P]."""

    right: Counts
    draws: int
    margin: Floats

    @property
    def accuracy(self) -> float:
        """Mean survival."""
        return float(self.right.mean() / self.draws)


def answers(probabilities: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> Answers:
    """What a defense's probabilities [draws, P, L] say of points with these labels [P]."""
    log_p = np.log(np.clip(probabilities.mean(0, dtype=np.float64), SMALLEST, None))
    own = np.arange(len(labels)), labels
    of_label = log_p[own].copy()
    log_p[own] = -np.inf
    right = (probabilities.argmax(-1) == labels).sum(0)
    return Answers(right, len(probabilities), log_p.max(1) - of_label)


@dataclass(frozen=True)
class Loss:
    """By how much an attack leaves more accuracy than what it is held against, on the same points.

    test: of the judged attack's survival minus the control's. p: one-sided, that this is not above `ALLOWED`.
    """

    test: PairedTest
    p: float


def loss(judged: Counts, control: Counts, draws: int, allowed: float = ALLOWED) -> Loss:
    """How much more the judged attack leaves than its control, from right draws [P] of `draws` under each.

    Where every point is right in all draws or in none, p is that of `discordant_p`. Else it is the larger one of Student's t
    against `allowed` and of the exact sign-flip test.
    """
    test = paired_test(judged, control, draws)
    if test.method == "mcnemar":
        higher, lower = int((judged > control).sum()), int((judged < control).sum())
        return Loss(test, discordant_p(len(judged), higher, lower, allowed)[0])
    differences = (judged - control) / draws
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    if spread == 0.0:
        return Loss(test, test.p_greater)
    t = (float(differences.mean()) - allowed) / (spread / np.sqrt(len(differences)))
    return Loss(test, max(float(scipy.stats.t.sf(t, len(differences) - 1)), test.p_greater))


def more_elsewhere(judged: Counts, draws: int, checked: int, allowed: float = ALLOWED) -> float:
    """Whether an attack leaves more accuracy on the points that no control is run on: a one-sided p-value.

    The null hypothesis is that it leaves at most `allowed` more after the first `checked` points than on these. judged: right
    draws [P] of `draws`, in the order in which the points were drawn, so that both parts are random samples. Welch's test, with
    a right and a wrong answer added to each part, so that a part whose points all agree has a variance too.
    """
    parts = [np.append(part / draws, (0.0, 1.0)) for part in (judged[checked:], judged[:checked])]
    found = scipy.stats.ttest_ind(parts[0] - allowed, parts[1], equal_var=False, alternative="greater")
    return float(found.pvalue)


@dataclass(frozen=True)
class Share:
    """A share of points, and the one-sided p-value that it is no worse than a sound attack's."""

    share: float
    points: int
    p: float


def at_the_edge(stands: Flags, distance: npt.NDArray[np.float32], epsilon: float) -> tuple[float, int]:
    """(share of the points that stand which were moved by less than 0.99 epsilon, how many stand)."""
    moved = distance[stands]
    return (float((moved < EDGE * epsilon).mean()) if len(moved) else 0.0), len(moved)


def headway(stands: Flags, clean: Floats, judged: Floats, reference: Floats) -> Share:
    """On how many of the points that stand the attack made more than half of the reference's gain in margin.

    All [P]. Points on which the reference gained nothing say nothing.
    """
    gain = reference - clean
    asked = stands & (gain > 0)
    made = int((judged - clean > MOVED * gain)[asked].sum())
    count = int(asked.sum())
    p = float(scipy.stats.binom.cdf(made, count, HALF_WAY)) if count else 1.0
    return Share(made / count if count else 1.0, count, p)


def broken_alone(judged: Counts, control: Counts, draws: int) -> Share:
    """On how many points the judged attack fails in all draws and the control wins in all; right draws [P] of `draws` of each.

    Where gradients mislead on a part of the points alone, as behind a mask that only some images meet, the control breaks these
    and the mean of all points may hide them. Of a random defense with few draws chance makes such points too.
    """
    broken, count = int(((judged == draws) & (control == 0)).sum()), len(judged)
    return Share(broken / count, count, float(scipy.stats.binom.sf(broken - 1, count, ALONE)))


def pushed_back(clean: Floats, judged: Floats) -> Share:
    """How many of the points that were wrong when clean are right under attack. Margins [P]."""
    wrong = clean > 0
    back, count = int((judged[wrong] <= 0).sum()), int(wrong.sum())
    p = float(scipy.stats.binom.sf(back - 1, count, RIGHTED)) if count else 1.0
    return Share(back / count if count else 0.0, count, p)
