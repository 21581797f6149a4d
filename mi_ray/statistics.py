"""What rows say: accuracies, paired tests, detection and frontiers, with intervals, as functions of counts and frames.

The sampling unit is the point: what varies over points gives every interval its width, and a bootstrap resamples points,
with a fixed seed, so that equal rows give equal intervals. Counts are correct draws of a point out of `draws`; a
deterministic cell has 0 or `draws` everywhere.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

# Its parts are imported where they are used first. A worker needs none of them, and a plan `special` alone, whose quantiles are
# those of `stats` bit for bit, which takes ten times as long to import.
import scipy

from mi_ray.threat_model import ABSTAINS, WORST_CASE

if TYPE_CHECKING:  # Reading frames imports it; a plan and a worker need not.
    import pandas as pd

COUNTED = ("cell", "point", "selection", "correct_draws")  # what comparisons read of records
CONFIDENCE = 0.95
KEPT = 2_000  # points whose resamples are kept, 8 MB of them
RESAMPLES = 2000
POWER = 0.8  # how often a difference is to be found that a study is said to tell apart
FALSE_POSITIVES = 0.05  # a detector's false-positive rate: the share of clean inputs that it takes for adversarial ones
FEW = 5  # points' worth of right or wrong answers below which their variance over points cannot be trusted
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.float64 | np.int64]


@dataclass(frozen=True)
class Accuracy:
    """An accuracy in [0, 1] with its 95 % interval, which contains it.

    interval: how it was made, "wilson" or "wilson_effective" (`accuracy`).
    """

    value: float
    low: float
    high: float
    interval: str


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval over points, which contains it.

    defined: the share of resamples in which the number exists, where the interval is a bootstrap's. The ends are NaN
    where it exists in none of them, or not on the points themselves.
    """

    value: float
    low: float
    high: float
    defined: float = 1.0


def _around(value: float, low: float, high: float) -> tuple[float, float]:
    """The ends of an interval, moved out to the estimate where they miss it.

    A formula may miss it by a rounding error (Wilson's lower end of 0 % is 2e-18 for some numbers of points), and the
    percentiles of a biased number by more. An error bar cannot have a negative length.
    """
    return min(low, value), max(high, value)


def _estimate(value: float, resampled: Floats, points: int) -> Estimate:
    """An expanded percentile interval of a share of points; resamples in which it does not exist (NaN) are left out and counted.

    Plain percentiles are too narrow by what Student's interval is wider than a normal one, and by n - 1 in place of n; the
    expanded ones (Hesterberg 2015) go as much further out. Near 0 and 1, where resamples hold few other answers or none, the
    interval reaches as far as Wilson's of as many points at least.
    """
    exists = ~np.isnan(resampled)
    if np.isnan(value) or not exists.any():
        return Estimate(value, float("nan"), float("nan"), float(exists.mean()))
    tail = float(scipy.special.ndtr(-_student(points) * math.sqrt(points / max(points - 1, 1))))
    low, high = map(float, np.quantile(resampled[exists], [tail, 1 - tail]))
    if min(value, 1 - value) * points < FEW:
        least, most = _wilson(min(max(value, 0.0), 1.0), points, _student(points))
        low, high = min(low, least), max(high, most)
    return Estimate(value, *_around(value, low, high), float(exists.mean()))


def _normal() -> float:
    """How many standard errors of a known variance a 95 % interval goes to each side."""
    return float(scipy.special.ndtri((1 + CONFIDENCE) / 2))


def _student(points: int) -> float:
    """The same where the variance is estimated from these points; of one point as if there were two."""
    return float(scipy.special.stdtrit(max(points - 1, 1), (1 + CONFIDENCE) / 2))


def _wilson(share: float, points: float, errors: float) -> tuple[float, float]:
    """Wilson's interval (1927) of a share of so many points, which goes so many standard errors to each side.

    Of fewer than `FEW` right answers its lower end is too high, so that it holds a small share 84 times in 100 (Brown, Cai and
    DasGupta 2001): there it is no higher than the exact one (Clopper and Pearson 1934). Of few wrong ones likewise.
    """
    centre, weight = share + errors**2 / (2 * points), 1 + errors**2 / points
    half = errors * math.sqrt(share * (1 - share) / points + errors**2 / (4 * points**2))
    low, high = max(0.0, (centre - half) / weight), min(1.0, (centre + half) / weight)
    right, wrong, tail = share * points, (1 - share) * points, float(scipy.special.ndtr(-errors))
    if 0 < right < FEW:
        low = min(low, float(scipy.special.betaincinv(right, wrong + 1, tail)))
    if 0 < wrong < FEW:
        high = max(high, 1 - float(scipy.special.betaincinv(wrong, right + 1, tail)))
    return _around(share, low, high)


@dataclass(frozen=True)
class _Sizes:
    """Limits of the effective size: the size of a sample in which a share would vary as much as a number in [0, 1] does here.

    points: how many there are. most: the largest effective size, which keeps an interval from collapsing where all points
    agree. edge: the largest one where the number is within `FEW` points' worth of 0 or 1, and its variance cannot be trusted.
    """

    points: int
    most: float
    edge: float


def _wilson_effective(value: float, variance: float, sizes: _Sizes) -> tuple[float, float]:
    """Wilson's interval of a number in [0, 1], with the number of points at which a share would vary as much as it does.

    variance: of the number, estimated over points. The effective size is value (1 - value) / variance (Korn and Graubard
    1998; compared with others by Dean and Pagano 2015), and Student's quantile stands for the normal one, as the variance
    is estimated.
    """
    share = min(max(value, 0.0), 1.0)
    spread_of_one = share * (1 - share)
    size = sizes.most if variance * sizes.most <= spread_of_one else spread_of_one / variance
    if min(share, 1 - share) * sizes.points < FEW:
        size = min(size, sizes.edge) if size else sizes.edge
    return _around(value, *_wilson(share, size, _student(sizes.points)))


def _mean_over_points(values: Numbers, most: float, independent: int) -> Accuracy:
    """The mean over points of values / most, each of which is from 0 to 1, with the interval that `accuracy` describes.

    independent: of how many independent parts each value is the mean, at most.
    """
    points = len(values)
    if not points:
        raise ValueError("an accuracy needs at least one point; got none")
    mean = float(values.mean() / most)
    if np.isin(values, (0, most)).all():
        return Accuracy(mean, *_wilson(mean, points, _normal()), "wilson")
    # Never `var(ddof=1)`, which is NaN of one point: its one value says nothing of how values vary.
    variance = float(values.var() / most**2) / max(points - 1, 1)
    sizes = _Sizes(points, points * independent, points)
    return Accuracy(mean, *_wilson_effective(mean, variance, sizes), "wilson_effective")


def accuracy(correct_draws: npt.ArrayLike, draws: int) -> Accuracy:
    """Mean survival of points under one attempt, with an interval over points, the sampling unit.

    correct_draws: for each point, how many of `draws` independent draws were right. Wilson where every point is either
    always or never right (a deterministic cell among them), else Wilson with the effective number of points: as many as
    would make a share vary as much as the mean survival does over points. That is between the number of points and
    that of their draws, and the former where fewer than five points' worth are right or wrong. Raises ValueError
    without points, and for a count outside of [0, draws].
    """
    counts = np.asarray(correct_draws)
    if not np.all((counts >= 0) & (counts <= draws)):  # Of NaN neither is true.
        raise ValueError(f"correct draws must be from 0 to draws={draws}; got {counts.min()}–{counts.max()}")
    return _mean_over_points(counts, draws, draws)


def mean_interval(values: npt.ArrayLike) -> Estimate:
    """The mean of values over points, [points], with Student's interval. Raises ValueError without points and for NaN.

    One point has no interval: its ends are NaN.
    """
    found = np.asarray(values, float)
    if found.ndim != 1 or not found.size or np.isnan(found).any():
        raise ValueError(
            f"a mean needs values [points], at least one, none of them NaN; got shape {list(found.shape)}, "
            f"{int(np.isnan(found).sum())} NaN"
        )
    mean = float(found.mean())
    if found.size == 1:
        return Estimate(mean, float("nan"), float("nan"), 0.0)
    half = _half_width(found)
    return Estimate(mean, mean - half, mean + half)


def _half_width(values: Floats) -> float:
    """Half of the 95 % t-interval of a mean of at least two values."""
    return _student(len(values)) * float(values.std(ddof=1)) / math.sqrt(len(values))


def cross_fitted(right: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The worst of several attacks at each point without bias, from right [attacks, draws, points], at least two draws.

    Returns (chosen [draws, points], right [draws, points]): each draw is reported under the attack that leaves the fewest
    of the *other* draws right at its point; of equals, which few draws make of many, under the one that leaves the fewest
    of the other draws right over all points, then the first. The least of several counts would be lower than what a fresh
    draw of the same choice finds, since its draws would choose what they report. Raises ValueError for one draw.
    """
    if right.ndim != 3 or right.shape[1] < 2:
        raise ValueError(
            f"a cross-fitted worst case needs right [attacks, draws >= 2, points]; got {list(right.shape)}"
        )
    others = right.sum(1, keepdims=True) - right
    chosen = (others * (others.max() * right.shape[2] + 1) + others.sum(2, keepdims=True)).argmin(0)
    return chosen, np.take_along_axis(right, chosen[None], 0)[0]


def survival_of_attempts(correct_draws: npt.ArrayLike, draws: int, attempts: int) -> float:
    """The share of points that survive `attempts` attempts, from c right of R draws: the mean of C(c, k) / C(R, k).

    Raises ValueError unless 1 <= attempts <= draws.
    """
    right, most = _subsets(correct_draws, draws, attempts)
    return float(np.mean(right / most))


def _subsets(correct_draws: npt.ArrayLike, draws: int, attempts: int) -> tuple[Floats, float]:
    """For each point, in how many sets of `attempts` draws all are right; and how many such sets there are."""
    if not 1 <= attempts <= draws:
        raise ValueError(f"attempts must be from 1 to draws={draws}; got {attempts}")
    from scipy.special import comb

    return comb(np.asarray(correct_draws), attempts), float(comb(draws, attempts))


def detection_auc(clean: npt.ArrayLike, adversarial: npt.ArrayLike) -> float:
    """Area under the ROC curve of a score that is higher on adversarial inputs (paper, Fig. 3a): 0.5 tells nothing.

    It is the chance that an adversarial input's score is above a clean one's, ties counted half. Raises ValueError
    without scores of each, and for scores that are no numbers.
    """
    return float(_placements(*_scores("an AUC", clean, adversarial)).mean())


def detection_rate(clean: npt.ArrayLike, adversarial: npt.ArrayLike, false_positives: float = FALSE_POSITIVES) -> float:
    """The true-positive rate: the share of adversarial inputs that a detector finds at that rate of false positives.

    The score is higher on adversarial inputs. An input is found where its score is greater than that of all clean inputs but
    the `false_positives` of them that may be flagged: the threshold is a clean input's score, and ties with it count as clean.
    Raises ValueError without scores of each, for scores that are no numbers, and for a rate outside [0, 1).
    """
    low, high = _scores("a detection rate", clean, adversarial)
    return float((high > np.sort(low)[::-1][_allowed(len(low), false_positives)]).mean())


def _scores(what: str, clean: npt.ArrayLike, adversarial: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Both sides' scores as numbers. Raises ValueError where one side has none, or NaN among them."""
    low, high = np.asarray(clean, float), np.asarray(adversarial, float)
    if not low.size or not high.size or np.isnan(low).any() or np.isnan(high).any():
        raise ValueError(f"{what} needs numbers of both sides; got {low.size} and {high.size}, or NaN among them")
    return low, high


def _allowed(points: int, false_positives: float) -> int:
    """How many of the clean points may be flagged. Raises ValueError for a rate outside [0, 1), or without points."""
    if not 0 <= false_positives < 1 or not points:
        raise ValueError(
            f"a detection rate needs false positives in [0, 1) and at least one clean point; got {false_positives} and "
            f"{points} points"
        )
    return math.floor(false_positives * points + 1e-9)


@dataclass(frozen=True, eq=False)
class Roc:
    """A ROC curve: false and true positive rates where a score of at least the threshold means "adversarial"."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats


def roc(clean_scores: npt.ArrayLike, adversarial_scores: npt.ArrayLike) -> Roc:
    """The ROC curve of a score that is higher on adversarial inputs (paper, Fig. 3a), from (0, 0) to (1, 1)."""
    from sklearn.metrics import roc_curve

    low, high = np.asarray(clean_scores, float), np.asarray(adversarial_scores, float)
    fpr, tpr, thresholds = roc_curve(np.repeat([0, 1], [len(low), len(high)]), np.concatenate([low, high]))
    return Roc(*(np.asarray(values, float) for values in (fpr, tpr, thresholds)))


def auc_interval(clean_scores: npt.ArrayLike, adversarial_scores: npt.ArrayLike) -> Estimate:
    """`detection_auc` with its interval, which takes a point's clean and adversarial score together.

    The variance is that of the points' placements (DeLong et al. 1988), a point's two added up, and the interval Wilson's
    with the effective size that it gives. At the edge, where scores are told apart almost without exception and
    placements hardly vary, the size is that at which a share varies as Hanley and McNeil (1982) have the AUC vary, as in
    Newcombe's method 5 (2006). So the interval has a width even where all scores are told apart.

    Both scores [points], of the same points in the same order. Raises ValueError for other numbers of points.
    """
    low, high = np.asarray(clean_scores, float), np.asarray(adversarial_scores, float)
    _check_paired(low, high)
    points, value = len(low), detection_auc(low, high)
    placements = _placements(low, high) - _placements(high, low)
    spread_of_one = (points - 1) * ((1 - value) / (2 - value) + value / (1 + value))
    sizes = _Sizes(points, points**2, points**2 / (1 + spread_of_one))
    variance = float(placements.var()) / max(points - 1, 1)
    return Estimate(value, *_wilson_effective(value, variance, sizes))


def auc_difference(left: tuple[npt.ArrayLike, npt.ArrayLike], right: tuple[npt.ArrayLike, npt.ArrayLike]) -> Estimate:
    """The AUC of one detector less that of another on the same points, with its interval (DeLong et al. 1988).

    Where one of the two is near 0 or 1, and placements hardly vary, the interval reaches at least as far as the one that is made
    of the two AUCs' own (Zou and Donner 2008).

    left, right: the clean and the adversarial scores of each, [points] each, in the same order. Raises ValueError for
    other numbers of points.
    """
    sides = [tuple(np.asarray(scores, float) for scores in side) for side in (left, right)]
    for low, high in sides:
        _check_paired(low, sides[0][0])
        _check_paired(low, high)
    influences = [_placements(low, high) - _placements(high, low) for low, high in sides]
    one, other = (auc_interval(*side) for side in sides)
    value, points = one.value - other.value, len(influences[0])
    error = math.sqrt(float((influences[0] - influences[1]).var()) / max(points - 1, 1))
    least, most = value - _normal() * error, value + _normal() * error
    if min(one.value, 1 - one.value, other.value, 1 - other.value) * points < FEW:
        least = min(least, value - math.hypot(one.value - one.low, other.high - other.value))
        most = max(most, value + math.hypot(one.high - one.value, other.value - other.low))
    return Estimate(value, least, most)


def _placements(others: Floats, scores: Floats) -> Floats:
    """Of each score the share of the others that are below it; those that are equal count half."""
    order = np.sort(others)
    at_most, below = np.searchsorted(order, scores, "right"), np.searchsorted(order, scores, "left")
    return np.asarray((below + at_most) / (2 * len(others)), np.float64)


def detection_gap(clean_scores: npt.ArrayLike, adversarial_scores: npt.ArrayLike) -> Estimate:
    """The detection gap DG (Eq. 14, 16): by how much a score is higher on adversarial inputs, with its t-interval.

    Of the score F_ŷ(x) - F_MI,ŷ(x) it is the mean over points of the adversarial input's score minus the clean one's. Both
    scores [points], of the same points in the same order; the ends are NaN for a single point. Raises ValueError for
    other numbers of points.
    """
    low, high = np.asarray(clean_scores, float), np.asarray(adversarial_scores, float)
    _check_paired(low, high)
    return mean_interval(high - low)


def detection_rate_interval(
    clean_scores: npt.ArrayLike, adversarial_scores: npt.ArrayLike, false_positives: float = FALSE_POSITIVES
) -> Estimate:
    """`detection_rate` with its interval; a point's clean and adversarial score are resampled together.

    Each resample has a threshold of its own, so that the interval holds what is not known of it. Both scores [points], of
    the same points in the same order. Raises ValueError for other numbers of points, or a rate outside [0, 1).
    """
    low, high = np.asarray(clean_scores, float), np.asarray(adversarial_scores, float)
    _check_paired(low, high)
    allowed = _allowed(len(low), false_positives)
    order = np.argsort(-low)
    found = []
    for times in _resamples(len(low)):
        threshold = low[order][(np.cumsum(times[:, order], axis=1) > allowed).argmax(axis=1)]
        found.append((times * (high > threshold[:, None])).mean(axis=1))
    return _estimate(detection_rate(low, high, false_positives), np.concatenate(found), len(low))


def _check_paired(left: Numbers, right: Numbers) -> None:
    if left.ndim != 1 or left.shape != right.shape or not left.size:
        raise ValueError(
            "both sides must have the same points, [points] and at least one; "
            f"got shapes {list(left.shape)} and {list(right.shape)}"
        )


def _resamples(points: int) -> Iterator[Floats]:
    """How often each point occurs in each of RESAMPLES resamples, [some resamples, points] at a time.

    The same for every call with as many points, so that cells on the same points are resampled together. A figure calls
    it a hundred times: the resamples of the last number of points are kept where they are small.
    """
    for times in _kept_resamples(points) if points <= KEPT else _drawn_resamples(points):
        yield times.astype(float)


@lru_cache(maxsize=1)
def _kept_resamples(points: int) -> list[npt.NDArray[np.uint16]]:
    return list(_drawn_resamples(points))


def _drawn_resamples(points: int) -> Iterator[npt.NDArray[np.uint16]]:
    rng, at_once = np.random.default_rng(0), max(1, 4_000_000 // points)
    for first in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - first)
        chosen = rng.integers(0, points, (rows, points)) + points * np.arange(rows)[:, None]
        yield np.bincount(chosen.ravel(), minlength=rows * points).reshape(rows, points).astype(np.uint16)


@dataclass(frozen=True)
class PairedTest:
    """Two cells on the same points. Everything is of left minus right, so "greater" says that left is more accurate.

    difference: of the mean survivals, in [-1, 1], with its 95 % interval low, high. p_value: two-sided; p_greater:
    against "left is not more accurate"; p_less: against "left is not less accurate". left_higher, left_lower: shares of
    points on which left survives more, or less, often than right. method: "mcnemar" (exact), or "sign_flip" (exact where
    differences are symmetric about 0).
    """

    difference: float
    low: float
    high: float
    p_value: float
    p_greater: float
    p_less: float
    left_higher: float
    left_lower: float
    points: int
    method: str


def paired_test(
    left_counts: npt.ArrayLike, right_counts: npt.ArrayLike, draws: int, right_draws: int | None = None
) -> PairedTest:
    """Whether two cells on the same points differ in accuracy, by how much, and on how many points.

    left_counts, right_counts: [points] correct draws, of `draws` and of `right_draws` (left out: as many). Where both
    cells are deterministic: the exact McNemar test. Else: the sign-flip test of the points' differences in survival,
    with all 2^points flips counted rather than drawn (a drawn p-value is at least 1 / resamples, too coarse for a
    correction over a table). It is exact where differences are symmetric about 0, and too sure where a few large ones stand
    against many small ones: of 100 points, of which 2 differ by 1 one way and 60 by 1/30 the other in the mean, 11 % are found
    at 5 %. The interval is that of Bonett and Price (2012, adjusted Wald), which is not empty where the two agree on all
    points. Raises ValueError for other points or counts out of range.
    """
    left, right = np.asarray(left_counts), np.asarray(right_counts)
    other = draws if right_draws is None else right_draws
    _check_paired(left, right)
    for counts, most in ((left, draws), (right, other)):
        if counts.min() < 0 or counts.max() > most or np.any(counts != np.round(counts)):
            raise ValueError(
                f"correct draws must be whole numbers from 0 to draws={most}; got {counts.min()}–{counts.max()}"
            )
    unit = math.lcm(draws, other)
    differences = (left * (unit // draws) - right * (unit // other)).astype(np.int64)
    higher, lower = int((differences > 0).sum()), int((differences < 0).sum())
    deterministic = bool(np.isin(left, (0, draws)).all() and np.isin(right, (0, other)).all())
    if deterministic:
        less, greater = (_binomial_p(higher, higher + lower, side) for side in ("less", "greater"))
    else:
        less, greater = _sign_flip_p(differences)
    mean = float(differences.mean() / unit)
    low, high = _around(mean, *_adjusted_wald(differences / unit))
    return PairedTest(
        difference=mean,
        low=low,
        high=high,
        p_value=min(1.0, 2 * min(less, greater)),
        p_greater=greater,
        p_less=less,
        left_higher=higher / len(left),
        left_lower=lower / len(left),
        points=len(left),
        method="mcnemar" if deterministic else "sign_flip",
    )


def discordant_p(points: int, higher: int, lower: int, level: float) -> tuple[float, float]:
    """(p against a true difference of at most `level`, p against one of at least `level`), one-sided, from discordant points.

    higher, lower: of `points` pairs of right and wrong answers, those in which the left alone is right, and the right alone. Each
    is the chance of such a difference of both, or one further away, under the most likely pair of rates whose difference is
    `level` (Tango's (1998) constrained estimate; discordant points as independent Poisson counts). A normal approximation is
    far too sure where few points are discordant. Raises ValueError for a level outside [-1, 1].
    """
    if not -1 <= level <= 1:
        raise ValueError(f"level must be in [-1, 1]; got {level}")
    if level < 0:
        below, above = discordant_p(points, lower, higher, -level)
        return above, below
    linear = higher + lower - level * (2 * points - higher + lower)
    rate = (linear + np.sqrt(linear**2 + 8 * points * lower * level * (1 - level))) / (4 * points)
    rate = max(float(rate), 1e-12)
    rates = points * (rate + level), points * rate
    difference = higher - lower
    return float(scipy.stats.skellam.sf(difference - 1, *rates)), float(scipy.stats.skellam.cdf(difference, *rates))


def _binomial_p(higher: int, different: int, side: Literal["less", "greater"]) -> float:
    return float(scipy.stats.binomtest(higher, different, alternative=side).pvalue) if different else 1.0


def _adjusted_wald(differences: Floats) -> tuple[float, float]:
    """Bonett and Price's interval of a mean difference: Wald's with one point more on which each side is the better.

    They add two points that differ by 1, as all do that differ between deterministic cells. Where draws make smaller
    differences, the two are as large as those that are there (their root mean square), or 1 where fewer than `FEW` are.
    """
    points, squares, differing = len(differences), float(differences @ differences), np.count_nonzero(differences)
    added = squares / differing if differing >= FEW else 1.0
    mean = float(differences.sum()) / (points + 2)
    half = _normal() * math.sqrt(((squares + 2 * added) / (points + 2) - mean**2) / (points + 2))
    return max(-1.0, mean - half), min(1.0, mean + half)


def detectable_difference(points: int, differing: float | None = None, draws: int = 1) -> float:
    """The least difference in accuracy that a study finds in 8 of 10 cases, by two-sided tests at 5 %.

    points: those that are reported. differing: the share of points on which two cells of the same points differ in one
    draw (a paired test); left out, the two cells are independent, of accuracies near one half, where they vary most.
    draws: how many independent draws a point has, where nothing but the draws makes points differ; 1 is the cautious
    answer, that the points themselves do. It is (z_0.975 + z_0.8) times the standard error, whose square is
    differing / (points * draws), or 1/2 / points; a number in [0, 1].
    """
    errors = _normal() + float(scipy.special.ndtri(POWER))
    return min(1.0, errors * math.sqrt((0.5 if differing is None else differing / draws) / points))


def _sign_flip_p(differences: npt.NDArray[np.int64]) -> tuple[float, float]:
    """The p-values of a sum this low and of one this high, where each difference is as likely to have the other sign."""
    sizes = np.abs(differences[differences != 0])
    if not sizes.size:
        return 1.0, 1.0
    unit = np.gcd.reduce(sizes)
    chance = np.ones(1)  # the probability of each sum that the sizes with a positive sign can have
    for size, times in zip(*np.unique(sizes // unit, return_counts=True), strict=True):
        chance = _with_flips(chance, int(size), int(times))
    at = int(differences[differences > 0].sum() // unit)
    return min(1.0, float(chance[: at + 1].sum())), min(1.0, float(chance[at:].sum()))


def _with_flips(chance: Floats, size: int, times: int) -> Floats:
    """The distribution of a sum with size * Binomial(times, 1/2) added to it."""
    length = len(chance) + size * times
    # Sums that differ by a multiple of the size stand in one column, so that adding is a short convolution down it.
    columns = np.pad(chance, (0, -len(chance) % size)).reshape(-1, size)
    binomial = scipy.stats.binom.pmf(np.arange(times + 1), times, 0.5)[:, None]
    added: Floats = scipy.signal.convolve(columns, binomial, method="direct").ravel()[:length]
    return added


def holm(p_values: npt.ArrayLike, at_once: int | None = None) -> Floats:
    """P-values corrected for there being several, after Holm (1979), which controls the family-wise error rate.

    at_once: how many of the hypotheses can be true together, all where it is left out; a smaller number gives a smaller
    correction (Shaffer, 1986). Raises ValueError for what is no p-value.
    """
    p = np.asarray(p_values, float)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p-values must be in [0, 1]; got {p[~((p >= 0) & (p <= 1))][0]}")
    order = np.argsort(p)
    corrected = np.empty_like(p)
    left = np.minimum(np.arange(len(p), 0, -1), len(p) if at_once is None else at_once)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * left))
    return corrected


@dataclass(frozen=True)
class Spread:
    """How values of several training seeds spread.

    number: how many there are. mean, with the ends low and high of its 95 % t-interval, which contains it. deviation:
    the standard deviation (n - 1). least, most: the extremes.
    """

    number: int
    mean: float
    deviation: float
    least: float
    most: float
    low: float
    high: float


def spread(values: npt.ArrayLike) -> Spread:
    """How a number spreads over training seeds, [seeds]. Raises ValueError for fewer than two."""
    found = np.asarray(values, float).ravel()
    if len(found) < 2:
        raise ValueError(f"a spread needs at least two values, one a training seed; got {len(found)}")
    mean, deviation, half = float(found.mean()), float(found.std(ddof=1)), _half_width(found)
    return Spread(len(found), mean, deviation, float(found.min()), float(found.max()), mean - half, mean + half)


def undominated(clean: npt.ArrayLike, adversarial: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which settings no other beats: none is at least as good in both accuracies and better in one.

    clean, adversarial: [..., settings]; settings are compared along the last axis.
    """
    x, y = np.asarray(clean, float), np.asarray(adversarial, float)
    if not x.size:
        return np.ones(x.shape, bool)
    order = np.lexsort((-y, -x), axis=-1)  # best clean first; of equals the best adversarial first
    x, y = (np.take_along_axis(values, order, -1) for values in (x, y))
    highest = np.maximum.accumulate(y, axis=-1)
    found, new = np.ones(x.shape, bool), np.ones(x.shape, bool)
    found[..., 1:] = y[..., 1:] > highest[..., :-1]
    new[..., 1:] = (np.diff(x, axis=-1) != 0) | (np.diff(y, axis=-1) != 0)
    # Settings that tie in both accuracies go together.
    first = np.maximum.accumulate(np.where(new, np.arange(x.shape[-1]), 0), axis=-1)
    keep = np.empty(x.shape, bool)
    np.put_along_axis(keep, order, np.take_along_axis(found, first, -1), -1)
    return keep


def _along(x: Floats, y: Floats, level: Floats) -> Floats:
    """The value y [...] at a level [...] of x on the curve of settings x, y [..., settings]; NaN outside the curve."""
    at, slack = level[..., None], 1e-9  # a level computed as 0.9 - 0.1 is at a setting with 0.8
    below = np.where(x <= at + slack, x, -np.inf)
    above = np.where(x >= at - slack, x, np.inf)
    left, right = below.argmax(-1)[..., None], above.argmin(-1)[..., None]
    reached = np.isfinite(below.max(-1)) & np.isfinite(above.min(-1))
    x0, x1, y0, y1 = (np.take_along_axis(values, side, -1)[..., 0] for values in (x, y) for side in (left, right))
    share = np.divide(level - x0, x1 - x0, out=np.zeros(reached.shape), where=x1 > x0)
    return np.where(reached, y0 + share * (y1 - y0), np.nan)


def resampled_accuracies(counts: npt.ArrayLike, draws: npt.ArrayLike) -> Floats:
    """Accuracies of settings on resampled points, [resamples, settings]; a resample has the same points for all settings.

    counts: [settings, points] correct draws; draws: how many there were, one number or one a setting. Raises
    ValueError for another form.
    """
    right = np.asarray(counts, float)
    if right.ndim != 2 or not right.size:
        raise ValueError(f"counts must be [settings, points], at least one of each; got shape {list(right.shape)}")
    # Sums of whole numbers are exact, so that settings that tie do so in every resample.
    sums = np.concatenate([times @ right.T for times in _resamples(right.shape[1])])
    accuracies: Floats = sums / (right.shape[1] * np.asarray(draws))
    return accuracies


def _both(
    clean_counts: npt.ArrayLike,
    clean_draws: npt.ArrayLike,
    adversarial_counts: npt.ArrayLike,
    adversarial_draws: npt.ArrayLike,
) -> tuple[Floats, Floats]:
    """Clean and adversarial survival, [settings, points] each, in [0, 1]. Raises ValueError where they differ in form."""
    clean, adversarial = np.asarray(clean_counts, float), np.asarray(adversarial_counts, float)
    if clean.shape != adversarial.shape or clean.ndim != 2 or not clean.size:
        raise ValueError(
            "clean and adversarial counts must be of the same settings and points, [settings, points]; "
            f"got shapes {list(clean.shape)} and {list(adversarial.shape)}"
        )
    draws = [np.broadcast_to(each, len(clean))[:, None] for each in (clean_draws, adversarial_draws)]
    return clean / draws[0], adversarial / draws[1]


def hypervolume_interval(
    clean_counts: npt.ArrayLike,
    clean_draws: npt.ArrayLike,
    adversarial_counts: npt.ArrayLike,
    adversarial_draws: npt.ArrayLike,
) -> Estimate:
    """The area below a curve of settings, from (0, 0), with its interval: what they dominate where the curve never rises.

    counts: [settings, points] correct draws on the same points, the settings in the order in which the curve goes
    through them, from the highest clean accuracy to the lowest; draws: one number or one a setting. The order is given,
    since what is sorted by its own result is flattered by it. The variance is that of the points' influences on the area,
    and the interval Wilson's with the effective size that it gives. Raises ValueError where clean and adversarial counts
    differ in form.
    """
    x, y = _both(clean_counts, clean_draws, adversarial_counts, adversarial_draws)
    points = x.shape[1]
    widths = -np.diff(x.mean(axis=1), append=0.0)
    steps = np.diff(y.mean(axis=1), prepend=0.0)
    area = float(widths @ y.mean(axis=1))
    # The area is a sum of products of two means, so that a point moves it by way of either factor.
    variance = float((widths @ y + steps @ x).var()) / max(points - 1, 1)
    answers = [np.broadcast_to(draws, len(x)).sum() for draws in (clean_draws, adversarial_draws)]
    most = points * float(sum(answers))
    return Estimate(area, *_wilson_effective(area, variance, _Sizes(points, most, points)))


def undominated_share(
    clean_counts: npt.ArrayLike,
    clean_draws: npt.ArrayLike,
    adversarial_counts: npt.ArrayLike,
    adversarial_draws: npt.ArrayLike,
) -> Floats:
    """In what share of resamples of points each setting is undominated, [settings]. Arguments as for `hypervolume_interval`.

    A share near one says that a setting is undominated whatever points had been drawn, and a share near one half that
    it ties with another and the points decide.
    """
    _both(clean_counts, clean_draws, adversarial_counts, adversarial_draws)
    sides = (clean_counts, clean_draws), (adversarial_counts, adversarial_draws)
    share: Floats = undominated(*(resampled_accuracies(*side) for side in sides)).mean(axis=0)
    return share


def at_matched_clean_interval(
    clean_counts: npt.ArrayLike,
    clean_draws: npt.ArrayLike,
    adversarial_counts: npt.ArrayLike,
    adversarial_draws: npt.ArrayLike,
    levels: Sequence[float],
    below: tuple[npt.ArrayLike, int] | None = None,
) -> list[Estimate]:
    """Adversarial accuracy at clean accuracies, linear between the settings of a curve that are its neighbours, with intervals.

    NaN where a level is outside the curve: nothing is extrapolated. Other arguments and errors as for `hypervolume_interval`.

    levels: clean accuracies; or, with `below` (the correct draws [points] and draws of a clean cell on the same
    points), how much less than that cell's accuracy, which is resampled too: 0.02 is two points under it. Resamples
    whose curve does not reach a level are left out of its interval: `defined` is the share of the others.
    """
    both = _both(clean_counts, clean_draws, adversarial_counts, adversarial_draws)
    own, resampled = [side.mean(axis=1) for side in both], [resampled_accuracies(side, 1) for side in both]
    starts: tuple[Any, Any] = (0.0, 0.0)
    if below is not None:
        counts, draws = np.asarray(below[0]), below[1]
        _check_paired(counts, both[0][0])
        starts = counts.mean() / draws, resampled_accuracies(counts[None], draws)[:, 0]
    found = []
    for level in levels:
        step = level if below is None else -level
        sides = zip((own, resampled), starts, strict=True)
        value, each = (_along(x, y, np.asarray(start + step)) for (x, y), start in sides)
        found.append(_estimate(float(value), each, both[0].shape[1]))
    return found


THREAT_KEYS = ["classifier_key", "attack", "attack_params", "goal", "norm", "epsilon", "knowledge"]


def of_variant(cells: "pd.DataFrame", variant: str = "") -> "pd.DataFrame":
    """The cells of one variant of a study, by default of the study itself; all of them where it has no variants."""
    if "variants" not in cells or cells["variants"].isna().all():
        return cells
    return cells[[variant in list(names) for names in cells["variants"]]]


def by_threat(table: "pd.DataFrame") -> "Iterator[pd.DataFrame]":
    """The rows of each (classifier, attack, threat model), in order of appearance.

    Worst cases are one attack, though what they are the worst of (and so the adversary's knowledge) may differ.
    """
    keys = table[THREAT_KEYS].astype(object)
    keys.loc[keys["attack"] == WORST_CASE, ["attack_params", "knowledge"]] = ""
    for _, group in table.groupby([keys[name] for name in THREAT_KEYS], sort=False, dropna=False):
        yield group


def counts_of(records: "pd.DataFrame", cells: Sequence[str]) -> npt.NDArray[np.int64]:
    """Correct draws of cells on the reported points, [cells, points], points in increasing order.

    records: rows of records (columns `COUNTED`). Raises ValueError where a cell has no
    rows, or other points than the first.
    """
    reported = records["cell"].isin(list(cells)) & ~records["selection"].astype(bool)
    rows = records.loc[reported, ["cell", "point", "correct_draws"]]
    # Not pivot_table, which would average rows that stand twice instead of refusing them.
    table = rows.pivot(index="cell", columns="point", values="correct_draws").reindex(list(dict.fromkeys(cells)))  # noqa: PD010
    incomplete = table.index[table.isna().any(axis=1)].tolist()
    if incomplete or table.empty:
        raise ValueError(
            f"cells must have rows of the same points to be compared; these lack some: {incomplete or cells}"
        )
    return table.loc[list(cells)].to_numpy(np.int64)


def cell_summary(counts: npt.ArrayLike, selection: npt.ArrayLike, draws: int) -> dict[str, Any]:
    """The columns of cells.parquet that come from a cell's rows.

    counts: [points] correct draws, of `draws`. selection: [points] whether a point only serves to pick settings.
    """
    right, chosen = np.asarray(counts), np.asarray(selection, bool)
    reported = accuracy(right[~chosen], draws)
    return {
        "points": int((~chosen).sum()),
        "accuracy": reported.value,
        "accuracy_low": reported.low,
        "accuracy_high": reported.high,
        "interval": reported.interval,
        "survival": [survival_of_attempts(right[~chosen], draws, k) for k in range(1, draws + 1)],
        "selection_points": int(chosen.sum()),
        "selection_accuracy": float(right[chosen].mean() / draws) if chosen.any() else None,
    }


def coverage(predicted: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, float | None]:
    """The columns of cells.parquet on abstention: the share of points that are answered, and that of right ones among them.

    predicted: [points], `ABSTAINS` where there is no answer. No point answered has no accuracy.
    """
    found = np.asarray(predicted)
    answered = found != ABSTAINS
    right = (found == np.asarray(labels))[answered]
    return {"coverage": float(answered.mean()), "accuracy_answered": float(right.mean()) if answered.any() else None}
