"""What rows say: accuracies, paired tests, detection and frontiers, with intervals, as functions of counts and frames.

The sampling unit is the point: every bootstrap resamples points, with a fixed seed, so that equal rows give equal
intervals. Counts are correct draws of a point out of `draws`; a deterministic cell has 0 or `draws` everywhere.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy  # its parts are imported where they are used first: a worker needs none of them

CONFIDENCE = 0.95
RESAMPLES = 2000
FALSE_POSITIVES = 0.05  # share of clean inputs that a detector may take for adversarial ones
FEW = 5  # points' worth of right or wrong answers below which a bootstrap of their mean cannot be trusted
Floats = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.float64 | np.int64]


@dataclass(frozen=True)
class Accuracy:
    """An accuracy in [0, 1] with its 95 % interval, which contains it. interval: how it was made, "wilson" or "bootstrap"."""

    value: float
    low: float
    high: float
    interval: str


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval over points, which contains it.

    defined: the share of resamples in which the number exists. The ends are NaN where it exists in none of them, or
    not on the points themselves.
    """

    value: float
    low: float
    high: float
    defined: float = 1.0


def _around(value: float, low: float, high: float) -> tuple[float, float]:
    """The ends of an interval, moved out to the estimate where they miss it.

    A formula may miss it by a rounding error (Wilson's lower end of 0 % is 2e-18 for some numbers of points), and the
    percentiles of a biased number, such as a hypervolume, by more. An error bar cannot have a negative length.
    """
    return min(low, value), max(high, value)


def _bounds(value: float, resampled: Floats) -> tuple[float, float]:
    """The ends of the middle 95 % of resamples, moved out to the value where they miss it."""
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return _around(value, float(low), float(high))


def _estimate(value: float, resampled: Floats) -> Estimate:
    """A percentile interval; resamples in which the number does not exist (NaN) are left out and counted."""
    exists = ~np.isnan(resampled)
    if np.isnan(value) or not exists.any():
        return Estimate(value, float("nan"), float("nan"), float(exists.mean()))
    return Estimate(value, *_bounds(value, resampled[exists]), float(exists.mean()))


def _resampled_means(values: Numbers, scale: float) -> Floats:
    """The means of values / scale over resampled points, [RESAMPLES].

    Only how often each value occurs among the resampled points matters, so that one multinomial draw makes a resample.
    """
    found, times = np.unique(values, return_counts=True)
    resampled = np.random.default_rng(0).multinomial(len(values), times / len(values), RESAMPLES)
    return np.asarray(resampled @ found / (len(values) * scale), np.float64)


def _mean_over_points(values: Numbers, most: float) -> Accuracy:
    """The mean over points of values / most, each of which is from 0 to 1, with the interval that `accuracy` describes."""
    if values.size == 0:
        raise ValueError("an accuracy needs at least one point; got none")
    mean = float(values.mean() / most)
    low, high = _wilson(mean, len(values))
    if np.isin(values, (0, most)).all():
        return Accuracy(mean, low, high, "wilson")
    drawn = _bounds(mean, _resampled_means(values, most))
    if min(mean, 1 - mean) * len(values) < FEW:  # so few that most resamples hold none, and the bootstrap collapses
        return Accuracy(mean, min(low, drawn[0]), max(high, drawn[1]), "wilson")
    return Accuracy(mean, *drawn, "bootstrap")


def _wilson(mean: float, points: int) -> tuple[float, float]:
    """Wilson's interval of a share of points; the share may be a mean survival, which varies less than it assumes."""
    z = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))
    centre, weight = (mean + z * z / (2 * points)), 1 + z * z / points
    half = z * math.sqrt(mean * (1 - mean) / points + z * z / (4 * points * points))
    return _around(mean, max(0.0, (centre - half) / weight), min(1.0, (centre + half) / weight))


def accuracy(correct_draws: npt.ArrayLike, draws: int) -> Accuracy:
    """Mean survival of points under one attempt, with an interval over points, the sampling unit.

    correct_draws: for each point, how many of `draws` independent draws were right. Wilson where every point is
    either always or never right (a deterministic cell among them), else a percentile bootstrap over points with a
    fixed seed, and the wider of both where fewer than five points' worth are right or wrong. Raises ValueError without points.
    """
    return _mean_over_points(np.asarray(correct_draws), draws)


def mean_interval(values: npt.ArrayLike) -> Estimate:
    """The mean of values over points, [points], with its interval. Raises ValueError without points."""
    found = np.asarray(values, float)
    if found.ndim != 1 or not found.size:
        raise ValueError(f"a mean needs values [points], at least one; got shape {list(found.shape)}")
    return _estimate(
        float(found.mean()), np.concatenate([times @ found / found.size for times in _resamples(found.size)])
    )


def survival_of_attempts(correct_draws: npt.ArrayLike, draws: int, attempts: int) -> float:
    """The share of points that survive `attempts` attempts, from c right of R draws: the mean of C(c, k) / C(R, k).

    Raises ValueError unless 1 <= attempts <= draws.
    """
    right, most = _subsets(correct_draws, draws, attempts)
    return float(np.mean(right / most))


def survival_interval(correct_draws: npt.ArrayLike, draws: int, attempts: int) -> Accuracy:
    """`survival_of_attempts` with its interval over points, made as that of `accuracy`, which is one attempt's.

    Raises ValueError without points, or unless 1 <= attempts <= draws.
    """
    return _mean_over_points(*_subsets(correct_draws, draws, attempts))


def _subsets(correct_draws: npt.ArrayLike, draws: int, attempts: int) -> tuple[Floats, float]:
    """For each point, in how many sets of `attempts` draws all are right; and how many such sets there are."""
    if not 1 <= attempts <= draws:
        raise ValueError(f"attempts must be from 1 to draws={draws}; got {attempts}")
    from scipy.special import comb

    return comb(np.asarray(correct_draws), attempts), float(comb(draws, attempts))


def detection_auc(clean: npt.ArrayLike, adversarial: npt.ArrayLike) -> float:
    """Area under the ROC curve of a score that is higher on adversarial inputs (paper, Fig. 3a): 0.5 tells nothing."""
    from sklearn.metrics import roc_auc_score

    low, high = np.asarray(clean, float), np.asarray(adversarial, float)
    return float(roc_auc_score(np.repeat([0, 1], [len(low), len(high)]), np.concatenate([low, high])))


def detection_rate(clean: npt.ArrayLike, adversarial: npt.ArrayLike, false_positives: float = FALSE_POSITIVES) -> float:
    """The true-positive rate: the share of adversarial inputs that a detector finds at that rate of false positives.

    The score is higher on adversarial inputs. The threshold is the lowest at which no more than `false_positives` of the
    clean inputs are at or above it, never one between two of them, so that it is a rate that a threshold really has.
    """
    low, high = np.sort(np.asarray(clean, float))[::-1], np.asarray(adversarial, float)
    return float((high > low[_allowed(len(low), false_positives)]).mean())


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
    """`detection_auc` with its interval; a point's clean and adversarial score are resampled together.

    Both scores [points], of the same points in the same order. Raises ValueError for other numbers of points.
    """
    low, high = np.asarray(clean_scores, float), np.asarray(adversarial_scores, float)
    _check_paired(low, high)
    order = np.argsort(low)
    # Where each adversarial score falls among the clean ones: those below it, and those not above it.
    below, upto = np.searchsorted(low[order], high, "left"), np.searchsorted(low[order], high, "right")
    found = []
    for times in _resamples(len(low)):
        above = np.pad(np.cumsum(times[:, order], axis=1), ((0, 0), (1, 0)))
        found.append(((above[:, below] + above[:, upto]) * times).sum(axis=1) / (2 * len(low) ** 2))
    return _estimate(detection_auc(low, high), np.concatenate(found))


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
    return _estimate(detection_rate(low, high, false_positives), np.concatenate(found))


def _check_paired(left: Numbers, right: Numbers) -> None:
    if left.ndim != 1 or left.shape != right.shape or not left.size:
        raise ValueError(
            "both sides must have the same points, [points] and at least one; "
            f"got shapes {list(left.shape)} and {list(right.shape)}"
        )


def _resamples(points: int) -> Iterator[Floats]:
    """How often each point occurs in each of RESAMPLES resamples, [some resamples, points] at a time.

    The same for every call with as many points, so that cells on the same points are resampled together.
    """
    rng, at_once = np.random.default_rng(0), max(1, 4_000_000 // points)
    for first in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - first)
        chosen = rng.integers(0, points, (rows, points)) + points * np.arange(rows)[:, None]
        yield np.bincount(chosen.ravel(), minlength=rows * points).reshape(rows, points).astype(float)


@dataclass(frozen=True)
class PairedTest:
    """Two cells on the same points. Everything is of left minus right, so "greater" says that left is more accurate.

    difference: of the mean survivals, in [-1, 1], with its 95 % interval low, high (interval: "adjusted_wald" or
    "bootstrap"). p_value: two-sided; p_greater: against "left is not more accurate"; p_less: against "left is not less
    accurate". left_higher, left_lower: shares of points on which left survives more, or less, often than right.
    method: "mcnemar" (exact) or "sign_flip" (exact).
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
    interval: str


def paired_test(
    left_counts: npt.ArrayLike, right_counts: npt.ArrayLike, draws: int, right_draws: int | None = None
) -> PairedTest:
    """Whether two cells on the same points differ in accuracy, by how much, and on how many points.

    left_counts, right_counts: [points] correct draws, of `draws` and of `right_draws` (left out: as many). Where both
    cells are deterministic: the exact McNemar test, and the interval of Bonett and Price (2012, adjusted Wald), which
    is not empty where the two agree on all points. Else: the sign-flip test of the points' differences in survival,
    with all 2^points flips counted rather than drawn (a drawn p-value is at least 1 / resamples, too coarse for a
    correction over a table), and a bootstrap over points. Raises ValueError for other points or counts out of range.
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
    agree = not differences.any()
    mean = float(differences.mean() / unit)
    if deterministic:
        less, greater = (_binomial_p(higher, higher + lower, side) for side in ("less", "greater"))
        low, high = _around(mean, *_adjusted_wald(higher, lower, len(left)))
    else:
        less, greater = _sign_flip_p(differences)
        bootstrapped = _bounds(mean, _resampled_means(differences, unit))
        low, high = _adjusted_wald(0, 0, len(left)) if agree else bootstrapped
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
        interval="adjusted_wald" if deterministic or agree else "bootstrap",
    )


def _binomial_p(higher: int, different: int, side: Literal["less", "greater"]) -> float:
    return float(scipy.stats.binomtest(higher, different, alternative=side).pvalue) if different else 1.0


def _adjusted_wald(higher: int, lower: int, points: int) -> tuple[float, float]:
    """Bonett and Price's interval of a difference of paired proportions: Wald's with one point more on each side."""
    up, down = (higher + 1) / (points + 2), (lower + 1) / (points + 2)
    half = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt((up + down - (up - down) ** 2) / (points + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


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


def holm(p_values: npt.ArrayLike) -> Floats:
    """P-values corrected for there being several, after Holm (1979): the chance of any false finding stays in bounds."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
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
    mean, deviation = float(found.mean()), float(found.std(ddof=1))
    half = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)) * deviation / math.sqrt(len(found))
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


def hypervolume(clean: npt.ArrayLike, adversarial: npt.ArrayLike, reference: tuple[float, float] = (0.0, 0.0)) -> float:
    """The area that settings dominate, above a reference point of (clean, adversarial) accuracy; both are maximised."""
    return float(_area(np.asarray(clean, float), np.asarray(adversarial, float), reference))


def _area(clean: Floats, adversarial: Floats, reference: tuple[float, float]) -> Floats:
    """`hypervolume` along the last axis, summed in steps down in clean accuracy, each as tall as the best setting so far."""
    order = np.argsort(-clean, axis=-1)
    x = np.maximum(np.take_along_axis(clean, order, -1) - reference[0], 0)
    y = np.maximum(np.take_along_axis(adversarial, order, -1) - reference[1], 0)
    widths = -np.diff(x, axis=-1, append=0.0)
    area: Floats = np.asarray((np.maximum.accumulate(y, axis=-1) * widths).sum(axis=-1))
    return area


def at_matched_clean(clean: npt.ArrayLike, adversarial: npt.ArrayLike, level: float) -> float:
    """Adversarial accuracy at a clean accuracy, linear between neighbours on the curve of undominated settings.

    NaN where the level is outside the curve: nothing is extrapolated.
    """
    x, y = np.asarray(clean, float), np.asarray(adversarial, float)
    return float(_along(x, y, undominated(x, y), np.asarray(level))) if x.size else float("nan")


def _along(x: Floats, y: Floats, keep: npt.NDArray[np.bool_], level: Floats) -> Floats:
    """The value y [...] at a level [...] of x on the curve of the settings to keep; NaN outside the curve.

    x, y, keep: [..., settings].
    """
    at, slack = level[..., None], 1e-9  # a level computed as 0.9 - 0.1 is at a setting with 0.8
    below = np.where(keep & (x <= at + slack), x, -np.inf)
    above = np.where(keep & (x >= at - slack), x, np.inf)
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
) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """Clean and adversarial accuracies [settings], and both again on resampled points [resamples, settings]."""
    clean, adversarial = np.asarray(clean_counts), np.asarray(adversarial_counts)
    if clean.shape != adversarial.shape or clean.ndim != 2:
        raise ValueError(
            "clean and adversarial counts must be of the same settings and points, [settings, points]; "
            f"got shapes {list(clean.shape)} and {list(adversarial.shape)}"
        )
    draws = np.concatenate([np.broadcast_to(each, len(clean)) for each in (clean_draws, adversarial_draws)])
    counts = np.concatenate([clean, adversarial])
    resampled = np.split(resampled_accuracies(counts, draws), 2, axis=1)
    own = np.split(counts.sum(axis=1) / (counts.shape[1] * draws), 2)
    return (own[0], own[1]), (resampled[0], resampled[1])


def hypervolume_interval(
    clean_counts: npt.ArrayLike,
    clean_draws: npt.ArrayLike,
    adversarial_counts: npt.ArrayLike,
    adversarial_draws: npt.ArrayLike,
    reference: tuple[float, float] = (0.0, 0.0),
) -> Estimate:
    """`hypervolume` of settings with its interval: each resample of points is the same for all settings.

    counts: [settings, points] correct draws on the same points; draws: one number or one a setting. Raises ValueError
    where clean and adversarial counts differ in form.
    """
    own, resampled = _both(clean_counts, clean_draws, adversarial_counts, adversarial_draws)
    return _estimate(float(_area(*own, reference)), _area(*resampled, reference))


@dataclass(frozen=True, eq=False)
class Undominated:
    """Which settings are undominated, in what share of resamples each is, and how many are, with an interval."""

    settings: npt.NDArray[np.bool_]
    share: Floats
    number: Estimate


def undominated_interval(
    clean_counts: npt.ArrayLike,
    clean_draws: npt.ArrayLike,
    adversarial_counts: npt.ArrayLike,
    adversarial_draws: npt.ArrayLike,
) -> Undominated:
    """How sure it is which settings are undominated. Arguments and errors as for `hypervolume_interval`.

    A share near one says that a setting is undominated whatever points had been drawn, and a share near one half that
    it ties with another and the points decide.
    """
    own, resampled = _both(clean_counts, clean_draws, adversarial_counts, adversarial_draws)
    keep, each = undominated(*own), undominated(*resampled)
    return Undominated(keep, each.mean(axis=0), _estimate(float(keep.sum()), each.sum(axis=1).astype(float)))


def at_matched_clean_interval(
    clean_counts: npt.ArrayLike,
    clean_draws: npt.ArrayLike,
    adversarial_counts: npt.ArrayLike,
    adversarial_draws: npt.ArrayLike,
    levels: Sequence[float],
    below: tuple[npt.ArrayLike, int] | None = None,
) -> list[Estimate]:
    """`at_matched_clean` at each level with its interval. Other arguments and errors as for `hypervolume_interval`.

    levels: clean accuracies; or, with `below` (the correct draws [points] and draws of a clean cell on the same
    points), how much less than that cell's accuracy, which is resampled too: 0.02 is two points under it. Resamples
    whose curve does not reach a level are left out of its interval: `defined` is the share of the others.
    """
    own, resampled = _both(clean_counts, clean_draws, adversarial_counts, adversarial_draws)
    starts: tuple[Any, Any] = (0.0, 0.0)
    if below is not None:
        counts, draws = np.asarray(below[0]), below[1]
        _check_paired(counts, np.asarray(clean_counts)[0])
        starts = counts.mean() / draws, resampled_accuracies(counts[None], draws)[:, 0]
    sides = [(*side, undominated(*side), start) for side, start in zip((own, resampled), starts, strict=True)]
    found = []
    for level in levels:
        step = level if below is None else -level
        value, each = (_along(x, y, keep, np.asarray(start + step)) for x, y, keep, start in sides)
        found.append(_estimate(float(value), each))
    return found


FRONTIER_KEYS = ["classifier", "classifier_key", "defense", "defense_params", "executions", "draws"]
THREAT_KEYS = ["classifier_key", "attack", "attack_params", "goal", "epsilon", "knowledge"]


def of_variant(cells: pd.DataFrame, variant: str = "") -> pd.DataFrame:
    """The cells of one variant of a study, by default of the study itself; all of them where it has no variants."""
    if "variants" not in cells or cells["variants"].isna().all():
        return cells
    return cells[[variant in list(names) for names in cells["variants"]]]


def by_threat(table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """The rows of each (classifier, attack, threat model), in order of appearance.

    Worst cases are one attack, though what they are the worst of (and so the adversary's knowledge) may differ.
    """
    keys = table[THREAT_KEYS].astype(object)
    keys.loc[keys["attack"] == "worst_case", ["attack_params", "knowledge"]] = ""
    for _, group in table.groupby([keys[name] for name in THREAT_KEYS], sort=False, dropna=False):
        yield group


def counts_of(records: pd.DataFrame, cells: Sequence[str]) -> npt.NDArray[np.int64]:
    """Correct draws of cells on the reported points, [cells, points], points in increasing order.

    records: rows of records (columns cell, point, selection, correct_draws). Raises ValueError where a cell has no
    rows, or other points than the first.
    """
    rows = records[records["cell"].isin(list(cells)) & ~records["selection"].astype(bool)]
    # Not pivot_table, which would average rows that stand twice instead of refusing them.
    table = rows.pivot(index="cell", columns="point", values="correct_draws").reindex(list(dict.fromkeys(cells)))  # noqa: PD010
    incomplete = table.index[table.isna().any(axis=1)].tolist()
    if incomplete or table.empty:
        raise ValueError(
            f"cells must have rows of the same points to be compared; these lack some: {incomplete or cells}"
        )
    return table.loc[list(cells)].to_numpy(np.int64)


def frontier(cells: pd.DataFrame, variant: str = "") -> pd.DataFrame:
    """One row per (setting, attack): its clean and its adversarial cell side by side, and whether it is undominated.

    cells: rows of cells.parquet of one study, of which those of one variant are compared. Columns `clean`,
    `clean_low`, `clean_high`, `adversarial`, … are of the reported points; `cell` and `clean_cell` name the two cells.
    `undominated` compares within (classifier, attack, threat model), on the selection points where the study has some,
    so that what is picked by its result is reported on other points.
    """
    own = of_variant(cells, variant)
    done = own[own["state"] == "done"]
    clean = done[done["attack"] == "none"].set_index(FRONTIER_KEYS)
    attacked = done[done["attack"] != "none"]
    names = {
        "accuracy": "",
        "accuracy_low": "_low",
        "accuracy_high": "_high",
        "selection_accuracy": "_selection",
    }
    left = clean[["cell", *names]].rename(columns={k: f"clean{v}" for k, v in [("cell", "_cell"), *names.items()]})
    right = attacked.rename(columns={k: f"adversarial{v}" for k, v in names.items()})
    table = right.merge(left, left_on=FRONTIER_KEYS, right_index=True, how="inner").reset_index(drop=True)
    table["undominated"] = False
    for group in by_threat(table):
        on = "_selection" if group["adversarial_selection"].notna().all() else ""
        keep = undominated(group[f"clean{on}"].to_numpy(), group[f"adversarial{on}"].to_numpy())
        table.loc[group.index, "undominated"] = keep
    return table


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
