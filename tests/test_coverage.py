"""That a 95 % interval covers what is true 93 to 97 times in 100, simulated for each kind; nearer to the edge at least so."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mi_ray import statistics
from mi_ray.statistics import (
    Accuracy,
    Estimate,
    PairedTest,
    accuracy,
    at_matched_clean_interval,
    auc_difference,
    auc_interval,
    detectable_difference,
    detection_rate_interval,
    hypervolume_interval,
    mean_interval,
    paired_test,
)
from mi_ray.study.estimate import resolution_line

Made = Accuracy | Estimate | PairedTest
LEAST, MOST = 0.93, 0.97
LAM = np.linspace(0, 1, 5)[:, None]
CLEAN, ADVERSARIAL = 0.9 - 0.4 * LAM, 0.1 + 0.4 * LAM  # chances along a curve of five settings


def coverage(make: Callable[[np.random.Generator], Made], truth: float, trials: int) -> float:
    """How often an interval that is made of simulated points holds the truth."""
    found = [make(np.random.default_rng(trial)) for trial in range(trials)]
    return float(np.mean([each.low <= truth <= each.high for each in found]))


@pytest.mark.parametrize("points", [50, 100, 300, 1000])
@pytest.mark.parametrize("chance", [0.2, 0.35, 0.5, 0.8])
def test_wilson_covers_an_accuracy_of_a_deterministic_cell(points: int, chance: float) -> None:
    """Exact: over every number of right points, by its probability."""
    right = np.arange(points + 1)
    likely = stats.binom.pmf(right, points, chance)
    near = right[likely > 1e-7]
    found = [accuracy(np.arange(points) < number, 1) for number in near]
    covered = sum(likely[n] for n, each in zip(near, found, strict=True) if each.low <= chance <= each.high)
    assert LEAST <= covered <= MOST


@pytest.mark.parametrize("points", [50, 200, 1000])
@pytest.mark.parametrize("expected", [0.02, 0.18, 0.5, 1.5, 2.5, 3.5, 4.5])
def test_of_few_right_points_it_covers_about_as_often_and_of_few_wrong_ones_too(points: int, expected: float) -> None:
    """Exact; Wilson's own covers a share of 0.18 points' worth 84 times in 100. Between whole numbers no interval keeps 95."""
    chance, right = expected / points, np.arange(40)
    likely = stats.binom.pmf(right, points, chance)
    found = [accuracy(np.arange(points) < number, 1) for number in right]
    mirrored = [accuracy(np.arange(points) >= number, 1) for number in right]
    for each, true in ((found, chance), (mirrored, 1 - chance)):
        covered = likely[[made.low <= true <= made.high for made in each]].sum()
        assert covered >= LEAST


# A point's own chance of surviving a draw is from a Beta distribution, so that points are never, always or sometimes right.
SURVIVAL = [(30, 0.5, 0.5, 3), (60, 2, 2, 10), (100, 1, 2, 3), (300, 0.5, 0.5, 3), (300, 1, 3, 10)]


@pytest.mark.parametrize(("points", "a", "b", "draws"), SURVIVAL)
def test_the_interval_of_a_mean_survival_covers_it(points: int, a: float, b: float, draws: int) -> None:
    def make(rng: np.random.Generator) -> Made:
        return accuracy(rng.binomial(draws, rng.beta(a, b, points)), draws)

    assert LEAST <= coverage(make, a / (a + b), 800) <= MOST


@pytest.mark.parametrize(
    ("points", "distance", "shared"), [(30, 0.5, 0), (100, 1.0, 0), (100, 0.5, 0.6), (300, 1.5, 0)]
)
def test_the_interval_of_an_auc_covers_it(points: int, distance: float, shared: float) -> None:
    def make(rng: np.random.Generator) -> Made:
        clean = rng.normal(size=points)
        return auc_interval(clean, distance + shared * clean + np.sqrt(1 - shared**2) * rng.normal(size=points))

    assert LEAST <= coverage(make, float(stats.norm.cdf(distance / np.sqrt(2))), 800) <= MOST


@pytest.mark.parametrize(("points", "draws"), [(50, 3), (150, 1), (150, 3)])
def test_the_interval_of_a_paired_difference_covers_it(
    points: int, draws: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The p-values, which take most of the time, are not asked for here.
    monkeypatch.setattr(statistics, "_sign_flip_p", lambda differences: (1.0, 1.0))
    monkeypatch.setattr(statistics, "_binomial_p", lambda higher, different, side: 1.0)

    def make(rng: np.random.Generator) -> Made:
        chance = rng.beta(0.5, 0.5, points)  # and a quarter less often on the right: 0.125 apart on average
        return paired_test(rng.binomial(draws, chance), rng.binomial(draws, 0.75 * chance), draws)

    assert LEAST <= coverage(make, 0.125, 1500) <= MOST


@pytest.mark.parametrize("points", [30, 100])
def test_students_interval_of_a_skewed_mean_covers_it(points: int) -> None:
    assert LEAST <= coverage(lambda rng: mean_interval(rng.beta(0.5, 3, points)), 1 / 7, 800) <= MOST


def curve_counts(rng: np.random.Generator, points: int, draws: int) -> tuple[Any, Any]:
    """Correct draws [settings, points] along the curve: the same random numbers for all settings, and points that differ."""
    each, harder = rng.random((2, draws, 1, points)), rng.uniform(-0.1, 0.1, points)
    clean, adversarial = (each < np.stack([CLEAN, ADVERSARIAL])[:, None] + harder).sum(axis=1)
    return clean, adversarial


@pytest.mark.parametrize(("points", "draws"), [(50, 3), (100, 1), (100, 3), (300, 3)])
def test_the_interval_of_a_hypervolume_covers_it(points: int, draws: int) -> None:
    def make(rng: np.random.Generator) -> Made:
        clean, adversarial = curve_counts(rng, points, draws)
        return hypervolume_interval(clean, draws, adversarial, draws)

    assert LEAST <= coverage(make, float(ADVERSARIAL[:, 0] @ -np.diff(CLEAN[:, 0], append=0.0)), 800) <= MOST


@pytest.mark.parametrize("points", [50, 100])
def test_the_interval_at_a_matched_clean_accuracy_covers_it(points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 400)
    losses, covered = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3], []
    for trial in range(200):
        clean, adversarial = curve_counts(np.random.default_rng(trial), points, 3)
        found = at_matched_clean_interval(clean, 3, adversarial, 3, losses, below=(clean[0], 3))
        # Adversarial accuracy rises along the curve by what clean accuracy falls.
        covered += [each.low <= 0.1 + loss <= each.high for each, loss in zip(found, losses, strict=True)]
    assert LEAST <= np.mean(covered) <= MOST


@pytest.mark.parametrize("points", [12, 30])
def test_near_the_edge_an_interval_covers_at_least_as_often(points: int) -> None:
    def survival(rng: np.random.Generator) -> Made:
        return accuracy(rng.binomial(3, rng.beta(0.5, 6, points)), 3)

    def auc(rng: np.random.Generator) -> Made:
        return auc_interval(rng.normal(size=points), 2.5 + rng.normal(size=points))

    assert coverage(survival, 0.5 / 6.5, 400) >= LEAST
    assert coverage(auc, float(stats.norm.cdf(2.5 / np.sqrt(2))), 400) >= LEAST


@pytest.mark.parametrize("points", [30, 100])
def test_near_the_edge_what_is_resampled_or_compared_is_covered_as_often(
    points: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 200)
    apart = float(stats.norm.cdf(2.5 / np.sqrt(2)))

    def found(
        rng: np.random.Generator,
    ) -> Made:  # a threshold that 5 % of clean scores pass, which few of the others do not
        clean = rng.normal(size=points)
        return detection_rate_interval(clean, 4.3 + rng.normal(size=points))

    def matched(rng: np.random.Generator) -> Made:  # two in a hundred survive in the middle of the curve
        clean = rng.random((1, points)) < np.array([[0.95], [0.65]])
        adversarial = rng.random((1, points)) < np.array([[0.01], [0.03]])
        (made,) = at_matched_clean_interval(clean, 1, adversarial, 1, [0.15], below=(clean[0], 1))
        return made

    def difference(rng: np.random.Generator) -> Made:
        clean = rng.normal(size=(2, points))
        first, second = ((each, 2.5 + rng.normal(size=points)) for each in clean)
        return auc_difference(first, second)

    true = float(stats.norm.cdf(4.3 - stats.norm.isf(0.05)))
    assert apart > 0.95
    assert coverage(found, true, 300) >= LEAST
    assert coverage(matched, 0.02, 300) >= LEAST
    assert coverage(difference, 0.0, 300) >= LEAST


@pytest.mark.parametrize(("points", "differing", "draws"), [(400, 0.1, 1), (400, 0.3, 1), (400, 0.3, 3)])
def test_a_paired_difference_that_a_study_can_tell_apart_is_found_in_8_of_10(
    points: int, differing: float, draws: int
) -> None:
    gap, rng = detectable_difference(points, differing, draws), np.random.default_rng(0)
    found = 0
    for _ in range(300):
        # In each draw a share of the points differs, and right is better on more of them by the gap.
        units = rng.random((draws, points))
        higher, lower = units < (differing - gap) / 2, units > 1 - (differing + gap) / 2
        right = draws - higher.sum(axis=0)
        left = draws - lower.sum(axis=0)
        found += paired_test(left, right, draws).p_value < 0.05
    assert 0.7 <= found / 300 <= 0.86  # Exact tests find a little less.


def test_a_plan_says_what_a_study_can_tell_apart() -> None:
    said = resolution_line(1000, 1)
    assert "(1,000 reported points): 6.3 points of accuracy between two independent cells near 50 %" in said
    assert said.endswith("2.8 points between two cells on the same points, if 10 % of the points differ")
    assert resolution_line(1000, 3).endswith("differ, down to 1.6 where draws alone make them differ")
    assert detectable_difference(1) == 1  # no difference is greater


def test_a_difference_of_independent_cells_that_a_study_can_tell_apart_is_found_in_8_of_10() -> None:
    points, rng = 1000, np.random.default_rng(0)
    gap = detectable_difference(points)
    assert gap == pytest.approx(0.0626, abs=1e-4)
    left, right = (rng.binomial(points, 0.5 + sign * gap / 2, 4000) / points for sign in (1, -1))
    both = (left + right) / 2
    statistic = (left - right) / np.sqrt(2 * both * (1 - both) / points)
    assert np.mean(np.abs(statistic) > stats.norm.ppf(0.975)) == pytest.approx(0.8, abs=0.03)
