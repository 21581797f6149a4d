"""Intervals, survival of several attempts and undominated settings, against known values and brute force."""

from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mi_ray.statistics import (
    Accuracy,
    Estimate,
    accuracy,
    at_matched_clean_interval,
    auc_difference,
    auc_interval,
    cell_summary,
    counts_of,
    cross_fitted,
    detection_auc,
    detection_gap,
    detection_rate,
    detection_rate_interval,
    discordant_p,
    holm,
    hypervolume_interval,
    mean_interval,
    paired_test,
    resampled_accuracies,
    roc,
    spread,
    survival_of_attempts,
    undominated,
    undominated_share,
)


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)],
)
def test_wilson_intervals_are_those_of_newcombe_1998(right: int, total: int, low: float, high: float) -> None:
    found = accuracy([1] * right + [0] * (total - right), draws=1)
    assert found.interval == "wilson"
    assert found.value == pytest.approx(right / total)
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == pytest.approx(high, abs=1e-4)


def test_of_few_right_or_wrong_answers_the_nearer_end_is_the_exact_one() -> None:
    """Clopper and Pearson's, also of Newcombe's 1 of 29, where Wilson's begins at 0.0061."""
    for right, total in ((1, 29), (4, 200)):
        exact = stats.binomtest(right, total).proportion_ci()
        wilson = stats.binomtest(right, total).proportion_ci(method="wilson")
        found = accuracy(np.arange(total) < right, draws=1)
        assert (found.low, found.high) == pytest.approx((exact.low, wilson.high))
        mirrored = accuracy(np.arange(total) >= right, draws=1)
        assert (mirrored.low, mirrored.high) == pytest.approx((1 - wilson.high, 1 - exact.low))


def test_no_interval_of_a_share_is_without_a_width() -> None:
    """Where points are told apart without an exception, or all are right, resamples hold nothing else."""
    low, high = np.arange(12.0), 100 + np.arange(12.0)
    ones, none = np.ones((1, 12)), np.zeros((1, 12))
    (certain,) = at_matched_clean_interval(ones, 1, ones, 1, [0.0], below=(ones[0], 1))
    (never,) = at_matched_clean_interval(ones, 1, none, 1, [0.0], below=(ones[0], 1))
    found = detection_rate_interval(low, high)
    assert (found.value, certain.value, never.value) == (1, 1, 0)
    assert found.low == pytest.approx(certain.low)
    assert certain.low == pytest.approx(1 - never.high)
    assert 0.6 < certain.low < 0.8
    opposite, equal = (auc_difference((low, high), side) for side in ((high, low), (low, high)))
    assert opposite.value == 1
    assert opposite.low < 0.9
    assert equal.value == 0
    assert equal.low == pytest.approx(-equal.high)
    assert equal.high > 0.1


def test_a_thousand_points_at_one_half_give_plus_minus_three_points() -> None:
    found = accuracy([3] * 500 + [0] * 500, draws=3)
    assert found.interval == "wilson"
    assert found.high - found.value == pytest.approx(0.031, abs=5e-4)


def test_points_that_are_sometimes_right_vary_less_than_a_share_of_as_many_points() -> None:
    counts = np.random.default_rng(1).integers(0, 4, 100)
    found, share = accuracy(counts, 3), accuracy([1] * 51 + [0] * 49, 1)
    assert found.interval == "wilson_effective"
    assert found.value == pytest.approx(counts.mean() / 3)
    assert found.low < found.value < found.high
    assert found == accuracy(counts[::-1], 3)
    assert found.high - found.low < 0.8 * (share.high - share.low)


def test_an_effective_size_is_that_at_which_a_share_varies_as_much() -> None:
    counts = np.random.default_rng(2).integers(0, 4, 400)
    found, mean = accuracy(counts, 3), counts.mean() / 3
    size = mean * (1 - mean) / ((counts / 3).var(ddof=1) / 400)
    assert 400 < size < 1200
    errors = stats.t.ppf(0.975, 399)
    # Wilson's ends are where the normal test of a share of so many points gives 5 %.
    for end in (found.low, found.high):
        assert abs(mean - end) == pytest.approx(errors * np.sqrt(end * (1 - end) / size))


def test_points_that_all_agree_leave_the_interval_of_their_draws() -> None:
    found = accuracy(np.full(100, 2), 4)
    assert found.low < 0.5 < found.high
    assert found.high - 0.5 == pytest.approx(stats.t.ppf(0.975, 99) * np.sqrt(0.25 / 400), rel=0.01)


def test_an_accuracy_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        accuracy([], 1)


@pytest.mark.parametrize("draws", [1, 3, 6])
def test_survival_of_attempts_is_the_share_of_subsets_that_are_all_right(draws: int) -> None:
    counts = np.random.default_rng(draws).integers(0, draws + 1, 20)
    for attempts in range(1, draws + 1):
        subsets = list(combinations(range(draws), attempts))
        shares = [np.mean([max(subset) < count for subset in subsets]) for count in counts]
        assert survival_of_attempts(counts, draws, attempts) == pytest.approx(np.mean(shares))


def test_survival_of_one_attempt_is_the_mean_survival_and_of_all_the_share_always_right() -> None:
    counts = np.array([0, 1, 2, 3, 3])
    assert survival_of_attempts(counts, 3, 1) == pytest.approx(accuracy(counts, 3).value)
    assert survival_of_attempts(counts, 3, 3) == pytest.approx(2 / 5)


@pytest.mark.parametrize("attempts", [0, 4])
def test_more_attempts_than_draws_or_none_are_refused(attempts: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to draws=3; got {attempts}"):
        survival_of_attempts([1], 3, attempts)


@pytest.mark.parametrize("level", [-0.05, 0.0, 0.02, 0.3])
@pytest.mark.parametrize("points", [60, 400])
def test_by_a_bound_few_discordant_points_raise_no_more_false_alarms_than_the_level(points: int, level: float) -> None:
    rng, rates = np.random.default_rng(3), (0.04 + max(level, 0.0), 0.04 + max(-level, 0.0))
    drawn = rng.multinomial(points, [*rates, 1 - sum(rates)], 4000)
    each, times = np.unique(drawn, axis=0, return_inverse=True)  # Of 4000 draws a hundred or so differ.
    both = np.array([discordant_p(points, up, down, level) for up, down, _ in each])[times.ravel()]
    assert ((both < 0.05).mean(0) < 0.06).all()
    assert ((both < 0.05).mean(0) > 0.005).all()  # and are found where there are some
    for up, down, _ in drawn[:20]:
        turned = discordant_p(points, down, up, -level)[::-1]
        assert discordant_p(points, up, down, level) == pytest.approx(turned)


def test_a_bound_on_a_difference_is_one_that_a_difference_can_have() -> None:
    with pytest.raises(ValueError, match=r"level must be in \[-1, 1\]; got 1.5"):
        discordant_p(10, 1, 1, 1.5)


@pytest.mark.parametrize(("higher", "lower"), [(12, 3), (5, 5), (0, 7), (1, 0), (30, 22)])
def test_mcnemar_is_the_sign_test_of_the_points_that_differ(higher: int, lower: int) -> None:
    left = np.array([2] * higher + [0] * lower + [2] * 10 + [0] * 4)
    right = np.array([0] * higher + [2] * lower + [2] * 10 + [0] * 4)
    found = paired_test(left, right, 2)
    assert found.method == "mcnemar"
    assert found.p_value == pytest.approx(stats.binomtest(higher, higher + lower).pvalue)
    tail = sum(stats.binom.pmf(k, higher + lower, 0.5) for k in range(higher, higher + lower + 1))
    assert found.p_greater == pytest.approx(tail)
    assert found.p_less == pytest.approx(stats.binom.cdf(higher, higher + lower, 0.5))
    assert found.difference == pytest.approx((higher - lower) / len(left))
    assert (found.left_higher, found.left_lower) == pytest.approx((higher / len(left), lower / len(left)))


def test_on_many_points_the_interval_of_deterministic_cells_is_walds() -> None:
    both, left_alone, right_alone, neither = 794, 150, 86, 570
    left = np.repeat([1, 1, 0, 0], [both, left_alone, right_alone, neither])
    right = np.repeat([1, 0, 1, 0], [both, left_alone, right_alone, neither])
    found = paired_test(left, right, 1)
    half = 1.96 * np.sqrt(left_alone + right_alone - 64**2 / 1600) / 1600
    assert found.difference == pytest.approx(0.04)
    assert (found.low, found.high) == pytest.approx((0.04 - half, 0.04 + half), abs=2e-4)


def test_the_sign_flip_test_is_what_trying_every_flip_gives() -> None:
    rng = np.random.default_rng(0)
    for draws, other in [(3, 3), (4, 6), (1, 5)]:
        left, right = rng.integers(0, draws + 1, 11), rng.integers(0, other + 1, 11)
        differences = left / draws - right / other
        sums = np.array([np.dot(signs, differences) for signs in product([-1, 1], repeat=11)])
        found = paired_test(left, right, draws, other)
        assert found.method == "sign_flip"
        assert found.p_greater == pytest.approx(np.mean(sums >= differences.sum() - 1e-9))
        assert found.p_less == pytest.approx(np.mean(sums <= differences.sum() + 1e-9))
        assert found.p_value == pytest.approx(min(1, 2 * min(found.p_greater, found.p_less)))


def test_how_often_many_small_differences_against_a_few_large_ones_are_a_finding() -> None:
    """What the docstring says of it: where all large ones are missed by chance, no test could know of them."""
    rng, found = np.random.default_rng(7), 0
    for _ in range(1000):
        kind = rng.choice(3, 100, p=[0.02, 0.6, 0.38])
        left, right = np.where(kind == 0, 30, np.where(kind == 1, 14, 15)), np.where(kind == 0, 0, 15)
        found += paired_test(left, right, 30).p_less < 0.05
    assert 0.07 < found / 1000 < 0.15


def test_the_sign_flip_test_agrees_with_scipys_drawn_one() -> None:
    rng = np.random.default_rng(1)
    left, right = rng.binomial(3, 0.55, 200), rng.binomial(3, 0.5, 200)
    drawn = stats.permutation_test(
        (left - right,), np.mean, permutation_type="samples", n_resamples=9999, vectorized=True, batch=1000, rng=rng
    )
    found = paired_test(left, right, 3)
    assert found.p_value == pytest.approx(drawn.pvalue, abs=0.02)
    assert found.difference == pytest.approx(drawn.statistic / 3)


def test_p_values_are_at_most_uniform_without_a_difference_and_small_with_one() -> None:
    rng, null, effect = np.random.default_rng(2), [], []
    for _ in range(400):
        chance = rng.beta(0.5, 0.5, 60)
        left = rng.binomial(3, chance)
        null.append(paired_test(left, rng.binomial(3, chance), 3))
        effect.append(paired_test(left, rng.binomial(3, np.clip(chance - 0.25, 0, 1)), 3))
    for side in ("p_value", "p_greater", "p_less"):
        p = np.array([getattr(found, side) for found in null])
        for level in (0.05, 0.2, 0.5):
            assert level - 0.12 * level - 0.05 <= np.mean(p <= level) <= level + 3 * np.sqrt(level * (1 - level) / 400)
    assert np.mean([found.p_greater < 0.01 for found in effect]) > 0.9
    assert min(found.p_less for found in effect) > 0.5


def test_swapping_the_sides_swaps_the_answer() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.integers(0, 4, 50), rng.integers(0, 6, 50)
    one, other = paired_test(left, right, 3, 5), paired_test(right, left, 5, 3)
    assert one.p_greater == pytest.approx(other.p_less)
    assert one.p_value == pytest.approx(other.p_value)
    assert one.difference == pytest.approx(-other.difference)
    assert (one.low, one.left_higher) == pytest.approx((-other.high, other.left_lower), abs=0.01)


@pytest.mark.parametrize("counts", [[3, 0, 0, 3, 3], [3, 1, 2, 0, 3]])
def test_equal_cells_have_no_difference_and_p_one(counts: list[int]) -> None:
    found = paired_test(counts, counts, 3)
    assert (found.difference, found.p_value, found.p_greater, found.p_less) == (0, 1, 1, 1)
    assert (found.left_higher, found.left_lower) == (0, 0)
    assert found.low <= 0 <= found.high


def test_agreement_on_few_deterministic_points_still_leaves_an_interval() -> None:
    few, many = paired_test([1] * 50, [1] * 50, 1), paired_test([1] * 1000, [1] * 1000, 1)
    assert few.high == -few.low == pytest.approx(1.96 * np.sqrt(2) / 52, abs=1e-4)
    assert many.high < few.high / 10


def test_as_many_right_of_other_draws_are_no_difference() -> None:
    counts = np.array([0, 1, 2, 3, 3])
    assert paired_test(counts, 2 * counts, 3, 6).difference == 0
    assert paired_test([1, 0], [5, 0], 1, 5).method == "mcnemar"


@pytest.mark.parametrize(("left", "right"), [([1, 0], [1, 0, 1]), ([], []), ([[1, 0]], [[1, 0]])])
def test_cells_of_other_points_are_refused(left: Any, right: Any) -> None:
    with pytest.raises(ValueError, match="must have the same points"):
        paired_test(left, right, 1)


@pytest.mark.parametrize(("left", "right"), [([4, 0], [0, 0]), ([0, 0], [-1, 0]), ([0.5, 0], [0, 0])])
def test_counts_that_no_draws_can_give_are_refused(left: Any, right: Any) -> None:
    with pytest.raises(ValueError, match="from 0 to draws=3"):
        paired_test(left, right, 3)


def test_a_thousand_points_and_small_p_values_are_exact() -> None:
    left, right = np.array([3] * 600 + [0] * 400), np.array([2] * 600 + [0] * 400)
    assert paired_test(left, right, 3).p_greater == pytest.approx(0.5**600, rel=1e-6)


def test_holm_multiplies_as_in_his_procedure_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == pytest.approx([1, 1])
    assert holm([0.02]) == pytest.approx([0.02])
    assert holm([]).size == 0
    assert holm([0.01, 0.04, 0.03, 0.005], 2) == pytest.approx(
        [0.02, 0.06, 0.06, 0.01]
    )  # two are true together at most
    for wrong in ([0.1, float("nan")], [0.1, 1.5], [-0.1]):
        with pytest.raises(ValueError, match=r"p-values must be in \[0, 1\]; got (nan|1.5|-0.1)"):
            holm(wrong)


@pytest.mark.parametrize("counts", [[2, 1], [-1, 1], [float("nan"), 1]])
def test_an_accuracy_of_more_than_all_draws_or_of_no_number_is_refused(counts: list[float]) -> None:
    with pytest.raises(ValueError, match="correct draws must be from 0 to draws=1; got"):
        accuracy(counts, 1)


def test_scores_and_values_that_are_no_numbers_are_refused() -> None:
    nothing = float("nan")
    for rate in (detection_rate, detection_auc):
        for pair in (([0.1, nothing], [1, 1]), ([0.1, 0.2], [1, nothing])):
            with pytest.raises(ValueError, match="needs numbers of both sides"):
                rate(*pair)
    with pytest.raises(ValueError, match="none of them NaN; got shape \\[2\\], 1 NaN"):
        mean_interval([nothing, 1])


def test_spread_is_students_interval_over_seeds() -> None:
    values = [0.51, 0.55, 0.53, 0.58]
    found = spread(values)
    assert (found.number, found.mean, found.least, found.most) == (4, pytest.approx(0.5425), 0.51, 0.58)
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_equal_values_have_no_spread_and_one_value_is_refused() -> None:
    found = spread([0.5, 0.5])
    assert (found.deviation, found.low, found.high) == (0, 0.5, 0.5)
    with pytest.raises(ValueError, match="at least two values, one a training seed; got 1"):
        spread([0.5])


def test_the_area_below_the_roc_curve_is_the_auc() -> None:
    rng = np.random.default_rng(0)
    clean, adversarial = rng.normal(size=70).round(1), rng.normal(0.8, size=70).round(1)
    curve = roc(clean, adversarial)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(detection_auc(clean, adversarial))
    assert (curve.fpr[0], curve.tpr[0], curve.fpr[-1], curve.tpr[-1]) == (0, 0, 1, 1)
    at = len(curve.thresholds) // 2
    assert curve.tpr[at] == pytest.approx(np.mean(adversarial >= curve.thresholds[at]))
    assert curve.fpr[at] == pytest.approx(np.mean(clean >= curve.thresholds[at]))


def test_an_auc_is_the_share_of_pairs_that_are_in_order() -> None:
    rng = np.random.default_rng(0)
    clean, adversarial = rng.normal(size=40).round(1), rng.normal(0.5, size=30).round(1)
    pairs = [(high > low) + 0.5 * (high == low) for low, high in product(clean, adversarial)]
    assert detection_auc(clean, adversarial) == pytest.approx(np.mean(pairs))
    for bad in ([], [0.1, float("nan")]):
        with pytest.raises(ValueError, match="needs numbers of both sides"):
            detection_auc(bad, clean)


def test_the_variance_of_an_auc_is_the_jackknifes_over_points() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(size=200)
    adversarial = clean * 0.5 + rng.normal(0.5, size=200)
    found = auc_interval(clean, adversarial)
    left_out = [detection_auc(np.delete(clean, at), np.delete(adversarial, at)) for at in range(200)]
    deviation = np.std(left_out) * np.sqrt(199)
    assert found.value == detection_auc(clean, adversarial)
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 199) * deviation, rel=0.02)
    together, apart = auc_interval(clean, clean + 0.1), auc_interval(clean, rng.permutation(clean) + 0.1)
    assert together.high - together.low < 0.5 * (apart.high - apart.low)


def test_a_cross_fitted_worst_case_is_not_biased_by_the_draws_that_choose() -> None:
    """Seven equally strong attacks: what it reports is what fresh draws of its choice find; a plain minimum is not."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        survival = np.clip(rng.beta(0.5, 0.6, 60) + rng.normal(0, 0.1, (7, 60)), 0, 1)
        right = rng.random((7, 3, 60)) < survival[:, None]
        chosen, reported = cross_fitted(right)
        counts = right.sum(1)
        choices = [counts.argmin(0)[None], chosen]
        truths = [np.take_along_axis(survival, choice, 0).mean() for choice in choices]
        found.append([counts.min(0).mean() / 3, truths[0], reported.mean(), truths[1]])
    percent = [f"{100 * each:.1f} %" for each in np.mean(found, axis=0)]
    said = (Path(__file__).parents[1] / "docs/honest-evaluation.md").read_text(encoding="utf-8")
    says, finds, cross, truth = percent
    fresh = f"it says {says} where fresh draws of its choice find {finds}"
    assert f"{fresh}, and the cross-fitted one {cross} where they find {truth}" in said
    plain, of_plain, fitted, of_fitted = np.mean(found, axis=0)
    assert fitted == pytest.approx(of_fitted, abs=0.005)
    assert plain < of_plain - 0.1
    with pytest.raises(ValueError, match="draws >= 2"):
        cross_fitted(np.ones((2, 1, 5), bool))


def test_two_draws_are_enough_for_a_worst_case_not_to_lie_above_its_strongest_attack() -> None:
    """The first of two attacks is far weaker, and most points are equal under both in the one draw that chooses."""
    rng, cross, strongest, truth = np.random.default_rng(0), [], [], []
    for _ in range(200):
        strong = rng.beta(0.3, 0.3, 100) * 0.7
        survival = np.stack([np.clip(strong + 0.3, 0, 1), strong])
        right = rng.random((2, 2, 100)) < survival[:, None]
        chosen, reported = cross_fitted(right)
        cross.append(reported.mean())
        strongest.append(right[1].mean())
        truth.append(np.take_along_axis(survival, chosen, 0).mean())
    assert np.mean(cross) == pytest.approx(np.mean(truth), abs=0.005)
    assert np.mean(cross) < np.mean(strongest) + 0.02


def test_the_detection_gap_is_the_mean_paired_difference_with_its_t_interval() -> None:
    rng = np.random.default_rng(0)
    clean = rng.normal(size=60)
    adversarial = clean + rng.normal(0.3, 0.1, size=60)
    found = detection_gap(clean, adversarial)
    assert found.value == pytest.approx(adversarial.mean() - clean.mean())
    expected = stats.ttest_rel(adversarial, clean).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.high - found.low < 0.1  # the pairs are kept together: scores themselves spread ten times as much


def test_the_interval_of_a_detection_gap_covers_it_where_few_points_give_way() -> None:
    rng, covered, trials = np.random.default_rng(3), 0, 400
    for _ in range(trials):
        drops = np.where(rng.random(200) < 0.15, rng.uniform(0.5, 1, size=200), 0.0)  # mean 0.15 * 0.75
        found = detection_gap(np.zeros(200), drops)
        covered += found.low <= 0.1125 <= found.high
    assert 0.91 <= covered / trials <= 0.98


def test_one_point_has_a_detection_gap_without_an_interval_and_other_points_are_refused() -> None:
    found = detection_gap([0.1], [0.4])
    assert found.value == pytest.approx(0.3)
    assert np.isnan([found.low, found.high]).all()
    with pytest.raises(ValueError, match=r"same points, \[points\] and at least one; got shapes \[2\] and \[3\]"):
        detection_gap([0.1, 0.2], [0.1, 0.2, 0.3])


@pytest.mark.parametrize("points", [1, 2, 12, 100])
def test_scores_that_are_told_apart_without_exception_leave_an_interval(points: int) -> None:
    for sign in (1, -1):
        found = auc_interval(np.linspace(0, 1, points), sign * 2 + np.linspace(0, 1, points))
        assert found.value == (sign + 1) / 2
        assert found.low <= found.value <= found.high
        assert found.high - found.low > min(0.9, 1.5 / points)
    twelve = auc_interval(np.zeros(12), np.ones(12))
    assert (twelve.high, twelve.low) == (1, pytest.approx(0.82, abs=0.03))


@pytest.mark.parametrize("rounded", [1, 6])
@pytest.mark.parametrize("points", [3, 20, 59, 60, 140])
def test_the_detection_rate_is_the_highest_of_all_thresholds_with_so_few_false_positives(
    points: int, rounded: int
) -> None:
    rng = np.random.default_rng(points)
    clean, adversarial = rng.normal(size=points).round(rounded), rng.normal(1, size=points).round(rounded)
    thresholds = [np.inf, *clean, *adversarial]
    for allowed in (0.05, 0.4):
        honest = [t for t in thresholds if np.sum(clean >= t) <= round(allowed * points, 6)]
        assert detection_rate(clean, adversarial, allowed) == max(np.mean(adversarial >= t) for t in honest)


def test_a_detection_rate_of_scores_that_tell_nothing_is_the_rate_of_false_positives() -> None:
    scores = np.arange(100)
    assert detection_rate(scores, scores) == pytest.approx(0.05)
    assert detection_rate(scores, scores + 1) == pytest.approx(0.06)
    assert (detection_rate(scores, scores + 100), detection_rate(scores, scores - 100)) == (1, 0)
    assert detection_rate(np.zeros(100), np.zeros(100)) == 0  # no threshold flags a few of them


def test_each_resampled_detection_rate_is_that_of_the_resampled_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    clean, adversarial = rng.normal(size=40).round(1), rng.normal(1, size=40).round(1)
    rows = [rng.permutation(np.bincount(rng.integers(0, 40, 40), minlength=40)) for _ in range(5)]
    monkeypatch.setattr("mi_ray.statistics._resamples", lambda points: iter([np.array(rows, float)]))
    rates = [detection_rate(np.repeat(clean, times), np.repeat(adversarial, times)) for times in rows]
    found = detection_rate_interval(clean, adversarial)
    assert len(set(rates)) > 1
    value = detection_rate(clean, adversarial)
    low, high = np.quantile(rates, [0.025, 0.975])
    assert found.value == value
    assert (found.low, found.high) == pytest.approx((min(low, value), max(high, value)), abs=0.01)  # a little wider
    assert found.low <= low
    assert found.high >= high


def test_the_interval_of_a_detection_rate_covers_it_also_for_what_is_not_known_of_the_threshold() -> None:
    rng, covered, trials = np.random.default_rng(5), 0, 150
    truth = stats.norm.sf(stats.norm.isf(0.05) - 1.5)
    for _ in range(trials):
        found = detection_rate_interval(rng.normal(size=200), rng.normal(1.5, size=200))
        covered += found.low <= truth <= found.high
    assert 0.89 <= covered / trials <= 0.99


def test_scores_of_other_points_are_refused() -> None:
    for interval in (auc_interval, detection_rate_interval):
        with pytest.raises(ValueError, match=r"same points, \[points\] and at least one; got shapes \[2\] and \[3\]"):
            interval([0.1, 0.2], [0.1, 0.2, 0.3])
    for rate in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"false positives in \[0, 1\) and at least one clean point; got"):
            detection_rate([0.1], [0.2], rate)
    with pytest.raises(ValueError, match=r"got 0 and 1, or NaN"):
        detection_rate([], [0.2])


def _beaten(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return b[0] >= a[0] and b[1] >= a[1] and (b[0] > a[0] or b[1] > a[1])


def test_undominated_is_what_brute_force_finds_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, levels = rng.integers(1, 12), rng.integers(1, 6)
        clean, adversarial = rng.integers(0, levels, (2, size)) / levels
        settings = list(zip(clean, adversarial, strict=True))
        expected = [not any(_beaten(a, b) for b in settings) for a in settings]
        assert undominated(clean, adversarial).tolist() == expected


def test_undominated_settings_of_several_resamples_are_those_of_each() -> None:
    clean, adversarial = np.random.default_rng(1).integers(0, 4, (2, 30, 7))
    together = undominated(clean, adversarial)
    assert together.tolist() == [undominated(x, y).tolist() for x, y in zip(clean, adversarial, strict=True)]


def _of_ten(accuracies: list[float]) -> Any:
    """Correct draws [settings, 10 points] that have these accuracies."""
    return np.array([[place < round(10 * accuracy) for place in range(10)] for accuracy in accuracies], int)


@pytest.mark.parametrize(
    ("clean", "adversarial", "area"),
    [
        ([0.5], [0.4], 0.2),
        ([0.9, 0.6, 0.3], [0.1, 0.4, 0.5], 0.3 * 0.5 + 0.3 * 0.4 + 0.3 * 0.1),
        ([0.9, 0.9, 0.6], [0.2, 0.5, 0.6], 0.3 * 0.5 + 0.6 * 0.6),
    ],
)
def test_the_hypervolume_of_a_staircase_is_the_area_below_it(
    clean: list[float], adversarial: list[float], area: float
) -> None:
    assert hypervolume_interval(_of_ten(clean), 1, _of_ten(adversarial), 1).value == pytest.approx(area)


def test_the_hypervolume_is_the_share_of_places_that_a_setting_dominates() -> None:
    clean, adversarial = [0.9, 0.7, 0.4, 0.1], [0.1, 0.3, 0.5, 0.8]
    places = (np.stack(np.meshgrid(np.arange(400), np.arange(400)), -1).reshape(-1, 2) + 0.5) / 400
    dominated = ((places[:, :1] <= clean) & (places[:, 1:] <= adversarial)).any(axis=1)
    found = hypervolume_interval(_of_ten(clean), 1, _of_ten(adversarial), 1)
    assert found.value == pytest.approx(dominated.mean(), abs=0.001)


def _at(clean: list[float], adversarial: list[float], level: float) -> float:
    return at_matched_clean_interval(_of_ten(clean), 1, _of_ten(adversarial), 1, [level])[0].value


@pytest.mark.parametrize(
    ("level", "expected"),
    [(0.9, 0.1), (0.8, 0.2), (0.6, 0.4), (0.5, 0.425), (0.2, 0.5), (0.91, np.nan), (0.19, np.nan), (0.9 - 0.1, 0.2)],
)
def test_adversarial_accuracy_at_matched_clean_accuracy_is_read_off_the_curve(level: float, expected: float) -> None:
    assert _at([0.9, 0.2, 0.6], [0.1, 0.5, 0.4], level) == pytest.approx(expected, nan_ok=True)


def test_a_curve_of_one_setting_is_a_point_and_its_end_counts_in_spite_of_rounding() -> None:
    assert _at([0.8], [0.3], 0.9 - 0.1) == 0.3
    assert np.isnan(_at([0.8], [0.3], 0.79))


def test_no_setting_of_a_chosen_curve_is_left_out_for_what_its_points_say() -> None:
    assert _at([0.9, 0.5, 0.1], [0.2, 0.1, 0.5], 0.5) == pytest.approx(0.1)
    assert _at([0.9, 0.5, 0.1], [0.2, 0.1, 0.5], 0.7) == pytest.approx(0.15)


def _curve_counts(seed: int, points: int, draws: int = 3, settings: int = 5) -> tuple[Any, Any]:
    """Correct draws [settings, points] that fall in clean and rise in adversarial accuracy, correlated over settings."""
    rng = np.random.default_rng(seed)
    lam = np.linspace(0, 1, settings)[:, None]
    each = rng.random((2, draws, 1, points))
    chances = np.stack([0.9 - 0.4 * lam, 0.1 + 0.4 * lam])[:, None] + rng.uniform(-0.1, 0.1, points)
    clean, adversarial = (each < chances).sum(axis=1)
    return clean, adversarial


def test_resamples_are_the_same_for_all_settings_and_calls() -> None:
    clean, adversarial = _curve_counts(0, 50)
    together = resampled_accuracies(np.concatenate([clean, adversarial]), 3)
    assert (together[:, :5] == resampled_accuracies(clean, 3)).all()
    assert (together[:, 5:] == resampled_accuracies(adversarial, 3)).all()
    assert together.mean(axis=0)[:5] == pytest.approx(clean.mean(axis=1) / 3, abs=0.01)
    assert together[:, 0].std() == pytest.approx((clean[0] / 3).std() / np.sqrt(50), rel=0.1)


def test_draws_may_differ_between_settings_and_ties_stay_ties() -> None:
    counts = np.random.default_rng(0).integers(0, 4, 40)
    found = resampled_accuracies(np.stack([counts, 2 * counts, counts]), [3, 6, 3])
    assert (found == found[:, :1]).all()


def test_resamples_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, made = _curve_counts(0, 3000)[0], np.random.default_rng(0).integers(0, 3000, (2000, 3000))
    expected = [counts[0, row].mean() / 3 for row in made[[0, 1332, 1333, 1999]]]  # 4,000,000 // 3000 = 1333 at once
    assert resampled_accuracies(counts, 3)[[0, 1332, 1333, 1999], 0] == pytest.approx(expected)


def test_the_variance_of_a_hypervolume_is_the_jackknifes_over_points() -> None:
    clean, adversarial = _curve_counts(1, 100)
    found = hypervolume_interval(clean, 3, adversarial, 3)
    x, y = clean.mean(axis=1) / 3, adversarial.mean(axis=1) / 3
    assert found.value == pytest.approx(np.maximum.accumulate(y) @ -np.diff(x, append=0.0))  # the curve is in order
    left_out = [
        hypervolume_interval(
            *(np.delete(counts, at, axis=1) for counts in (clean,)), 3, np.delete(adversarial, at, axis=1), 3
        )
        for at in range(100)
    ]
    deviation = np.std([each.value for each in left_out]) * np.sqrt(99)
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 99) * deviation, rel=0.03)


def test_a_curve_keeps_the_order_that_it_was_chosen_in_whatever_its_points_say() -> None:
    clean = np.array([[1] * 4 + [0] * 6, [1] * 5 + [0] * 5])  # chosen as .. the better first, and here the worse
    adversarial = np.array([[1] * 2 + [0] * 8, [1] * 3 + [0] * 7])
    found = hypervolume_interval(clean, 1, adversarial, 1)
    assert found.value == pytest.approx((0.4 - 0.5) * 0.2 + 0.5 * 0.3)
    assert found.value < 0.5 * 0.3  # what the two settings dominate


def test_matched_levels_may_be_absolute_and_follow_a_cell_that_is_resampled_with_the_curve() -> None:
    clean, adversarial = _curve_counts(2, 200)
    own = clean.mean(axis=1) / 3
    level = float(own[0]) - 0.1
    fixed = at_matched_clean_interval(clean, 3, adversarial, 3, [level, 0.2])
    moving = at_matched_clean_interval(clean, 3, adversarial, 3, [0.1], below=(clean[0], 3))[0]
    expected = np.interp(level, own[::-1], (adversarial.mean(axis=1) / 3)[::-1])
    assert fixed[0].value == pytest.approx(expected)
    assert moving.value == pytest.approx(expected)
    assert moving.high - moving.low < fixed[0].high - fixed[0].low  # the level's own error cancels
    assert np.isnan([fixed[1].value, fixed[1].low, fixed[1].high]).all()
    assert fixed[1].defined == 0


def test_an_interval_says_in_how_many_resamples_its_number_exists() -> None:
    clean, adversarial = _curve_counts(3, 100)
    end = float(clean[0].mean() / 3)
    found = at_matched_clean_interval(clean, 3, adversarial, 3, [end])[0]
    assert 0.3 < found.defined < 0.7
    assert found.low <= found.high


def test_how_sure_a_frontier_is() -> None:
    rng = np.random.default_rng(0)
    better = (rng.random(200) < 0.8).astype(int)
    worse = better * (rng.random(200) < 0.5)
    tie = np.stack([rng.permutation(better), rng.permutation(better)])
    assert undominated_share(*2 * (np.stack([better, worse]), 1)).tolist() == [1, 0]
    even = undominated_share(tie, 1, np.stack([better, better]), 1)
    assert even == pytest.approx([0.5, 0.5], abs=0.15)


def test_counts_of_other_settings_or_points_are_refused() -> None:
    clean, adversarial = _curve_counts(0, 20)
    with pytest.raises(ValueError, match=r"points, \[settings, points\]; got shapes \[5, 20\] and \[4, 20\]"):
        hypervolume_interval(clean, 3, adversarial[:4], 3)
    with pytest.raises(ValueError, match=r"got shapes \[20\] and \[20\]"):
        undominated_share(clean[0], 3, adversarial[0], 3)
    with pytest.raises(ValueError, match=r"\[settings, points\], at least one of each; got shape \[5, 0\]"):
        resampled_accuracies(clean[:, :0], 3)
    with pytest.raises(ValueError, match="must have the same points"):
        at_matched_clean_interval(clean, 3, adversarial, 3, [0.1], below=(clean[0, :10], 3))


def _records(cell: str, points: list[int], counts: list[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {"cell": cell, "point": points, "selection": [p >= 100 for p in points], "correct_draws": counts}
    )


def test_counts_of_cells_are_matched_by_point_and_leave_selection_points_out() -> None:
    records = pd.concat([_records("a", [3, 1, 100], [3, 1, 0]), _records("b", [1, 3, 101], [2, 0, 0])])
    assert counts_of(records, ["b", "a", "b"]).tolist() == [[2, 0], [1, 3], [2, 0]]


def test_cells_of_other_points_have_no_common_counts() -> None:
    records = pd.concat([_records("a", [1, 2], [1, 1]), _records("b", [1, 4], [1, 1])])
    with pytest.raises(ValueError, match=r"rows of the same points to be compared; these lack some: \['a', 'b'\]"):
        counts_of(records, ["a", "b"])
    with pytest.raises(ValueError, match="these lack some"):
        counts_of(records, ["a", "missing"])
    with pytest.raises(ValueError, match="duplicate"):
        counts_of(pd.concat([records, records]), ["a"])


def test_a_cells_summary_keeps_selection_points_out_of_what_is_reported() -> None:
    counts, chosen = np.array([3, 0, 1, 3]), np.array([False, False, True, True])
    summary = cell_summary(counts, chosen, 3)
    assert (summary["points"], summary["accuracy"], summary["survival"][-1]) == (2, 0.5, 0.5)
    assert (summary["selection_points"], summary["selection_accuracy"]) == (2, pytest.approx(4 / 6))
    assert cell_summary(counts, np.zeros(4, bool), 3)["selection_accuracy"] is None


def test_an_interval_near_an_end_is_no_narrower_for_one_draw_more_that_survives() -> None:
    none, one = accuracy(np.zeros(200), 3), accuracy(np.r_[1, np.zeros(199)], 3)
    assert one.high >= none.high > 0.01
    assert one.low <= one.value <= one.high


def test_random_cells_that_agree_on_every_point_do_not_prove_that_they_are_equal() -> None:
    counts = np.array([1, 2, 3, 0] * 25)
    found = paired_test(counts, counts, 3)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.low < 0 < found.high


def _counts(kind: str, points: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Correct draws [points]: none, all, all points alike, one point that differs, or random ones."""
    one = np.zeros(points, int)
    one[0] = 1
    return {
        "never": np.zeros(points, int),
        "always": np.full(points, draws),
        "alike": np.full(points, draws // 2),
        "one right": one * draws,
        "one draw": one,
        "one wrong": draws * (1 - one),
        "deterministic": draws * rng.integers(0, 2, points),
        "random": rng.integers(0, draws + 1, points),
        "rare": rng.binomial(draws, 0.02, points),
    }[kind]


KINDS = ("never", "always", "alike", "one right", "one draw", "one wrong", "deterministic", "random", "rare")


def _holds(value: float, low: float, high: float) -> None:
    assert low <= value <= high, (value, low, high)


def _within(found: Accuracy | Estimate) -> None:
    """An estimate lies in its interval, which is missing only where the number exists in no resample."""
    if isinstance(found, Estimate) and (found.defined == 0 or np.isnan(found.value)):
        assert np.isnan([found.low, found.high]).all()
    else:
        _holds(found.value, found.low, found.high)


SIZES = [(1, 1), (1, 3), (2, 1), (3, 3), (6, 2), (10, 1), (29, 3), (150, 1), (233, 6)]


@pytest.mark.parametrize("kind", KINDS)
def test_an_interval_of_an_accuracy_contains_it(kind: str) -> None:
    for points, draws in SIZES:
        counts = _counts(kind, points, draws, np.random.default_rng(points))
        _within(accuracy(counts, draws))
        _within(mean_interval(counts / draws))
        summary = cell_summary(counts, np.zeros(points, bool), draws)
        assert 0 <= summary["accuracy_low"] <= summary["accuracy"] <= summary["accuracy_high"] <= 1


def test_wilsons_interval_contains_no_and_every_point_whatever_their_number() -> None:
    for points in range(1, 300):
        for right in (0, 1):
            _within(accuracy(np.full(points, right), 1))


@pytest.mark.parametrize("right", ["never", "always", "one draw", "random"])
@pytest.mark.parametrize("left", KINDS)
def test_an_interval_of_a_difference_contains_it(left: str, right: str) -> None:
    for points, draws in SIZES:
        rng = np.random.default_rng(points)
        counts = _counts(left, points, draws, rng), _counts(right, points, 2 * draws, rng)
        found = paired_test(*counts, draws, 2 * draws)
        assert -1 <= found.low <= found.difference <= found.high <= 1


@pytest.mark.parametrize("adversarial", ["never", "one draw", "random", "always"])
@pytest.mark.parametrize("clean", ["never", "one right", "random", "alike"])
def test_an_interval_of_a_detector_contains_its_number(clean: str, adversarial: str) -> None:
    for points in (1, 2, 7, 60):
        rng = np.random.default_rng(points)
        scores = _counts(clean, points, 5, rng), _counts(adversarial, points, 5, rng)
        apart = [each + 1e-3 * rng.normal(size=points) for each in scores]
        for interval in (auc_interval, detection_rate_interval):
            _within(interval(*scores))
            _within(interval(*apart))


@pytest.mark.parametrize("adversarial", ["never", "always", "one draw", "random"])
@pytest.mark.parametrize("clean", KINDS)
def test_an_interval_of_a_curve_contains_its_number(clean: str, adversarial: str) -> None:
    for points, size in ((1, 1), (1, 3), (3, 3), (40, 1), (40, 3)):
        rng = np.random.default_rng(points)
        names = [(name, "random", name)[:size] for name in (clean, adversarial)]
        each, other = (np.stack([_counts(name, points, 3, rng) for name in side]) for side in names)
        _within(hypervolume_interval(each, 3, other, 3))
        assert ((undominated_share(each, 3, other, 3) >= 0) & (undominated_share(each, 3, other, 3) <= 1)).all()
        own = each.mean(axis=1) / 3
        levels = [0.0, 1.0, 0.5, float(own[0]), float(own[-1] + own[0]) / 2]
        below = [0.0, 0.02, 0.5]
        found = at_matched_clean_interval(each, 3, other, 3, levels)
        for estimate in [*found, *at_matched_clean_interval(each, 3, other, 3, below, below=(each[0], 3))]:
            _within(estimate)


@pytest.mark.parametrize("values", [[0.0, 0.0], [1.0, 1.0], [0.1, 0.1, 0.1], [0.0, 1.0], [0.3, 0.30000000001, 0.7]])
def test_an_interval_of_a_spread_contains_its_mean(values: list[float]) -> None:
    found = spread(values)
    _holds(found.mean, found.low, found.high)


def test_a_mean_without_values_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least one, none of them NaN; got shape \[0\]"):
        mean_interval([])
