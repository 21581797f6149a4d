"""The statistics of the checks: their chance of a false alarm and their power, simulated with the very code."""

from typing import Any

import numpy as np
import pytest
import scipy.stats

from mi_ray.study.battery import answers, at_the_edge, headway, loss, more_elsewhere, pushed_back

RUNS = 200
TESTS = 13  # as many as a cell may have, so that Holm's procedure leaves each at least this part of 5 %


def points(rng: np.random.Generator, count: int, draws: int, lost: float) -> tuple[Any, Any]:
    """Right draws under two attacks: equally strong ones, or a control that leaves `lost` less of the points.

    Behind a random defense a fifth of the points are right in some draws; without one, one in twenty depends on the start.
    """
    undecided = 0.05 if draws == 1 else 0.2
    survival = np.where(rng.random(count) < undecided, rng.random(count), rng.random(count) < 0.4)
    broken = np.where(rng.random(count) < lost, 0.0, survival)
    if draws == 1:
        return (rng.random(count) < survival).astype(int), (rng.random(count) < broken).astype(int)
    return rng.binomial(draws, survival), rng.binomial(draws, broken)


def rejected(draws: int, behind: float, count: int = 400, level: float = 0.05 / TESTS) -> float:
    """The share of studies that refuse an attack which leaves `behind` of the points more, where 40 % stand."""
    rng = np.random.default_rng(0)
    standing = 0.05 * 0.5 + 0.95 * 0.4 if draws == 1 else 0.2 * 0.5 + 0.8 * 0.4
    found = [loss(*points(rng, count, draws, behind / standing), draws).p < level for _ in range(RUNS)]
    return float(np.mean(found))


@pytest.mark.parametrize("draws", [1, 3, 30])
def test_of_equally_strong_attacks_hardly_any_is_refused(draws: int) -> None:
    assert rejected(draws, 0.0) <= 0.0125


@pytest.mark.parametrize("draws", [1, 3, 30])
def test_an_attack_that_is_a_point_behind_is_refused_no_more_often_than_the_level(draws: int) -> None:
    assert rejected(draws, 0.01) <= 0.0125


@pytest.mark.parametrize(("draws", "least"), [(1, 0.85), (3, 0.82), (30, 0.96)])
def test_an_attack_that_is_six_points_behind_is_refused(draws: int, least: float) -> None:
    assert rejected(draws, 0.06) >= least


@pytest.mark.parametrize(("draws", "least", "most"), [(1, 0.38, 0.55), (3, 0.42, 0.6), (30, 0.6, 0.75)])
def test_on_the_hundred_points_of_an_own_control_ten_points_are_found_half_of_the_time(
    draws: int, least: float, most: float
) -> None:
    assert least <= rejected(draws, 0.10, count=100) <= most


def test_fifty_points_tell_of_gross_faults_alone() -> None:
    assert rejected(3, 0.10, count=50) < 0.25
    assert rejected(3, 0.20, count=50) > 0.7


def test_a_loss_is_measured_with_its_interval() -> None:
    left, right = np.ones(100, int), np.ones(100, int)
    right[:10] = 0
    found = loss(left, right, 1)
    assert found.test.difference == pytest.approx(0.1)
    assert found.test.low < 0.1 < found.test.high
    assert 1e-3 < found.p < 0.01  # of ten discordant points, all on one side, where a point's worth may be
    assert loss(right, left, 1).p > 0.99


def test_no_difference_at_all_is_no_loss() -> None:
    same = np.array([0, 1, 2, 3] * 10)
    assert loss(same, same, 3).p == 1.0
    assert loss(same, same - (same > 0), 3).p < 1e-3  # as much less at every point that stands


def test_margins_are_of_the_mean_answer() -> None:
    probabilities = np.array([[[0.6, 0.4], [0.1, 0.9]], [[0.2, 0.8], [0.3, 0.7]]], np.float32)
    found = answers(probabilities, np.array([0, 1]))
    assert found.right.tolist() == [1, 2]
    np.testing.assert_allclose(found.margin, [np.log(0.6 / 0.4), np.log(0.2 / 0.8)], rtol=1e-5)
    assert found.accuracy == 0.75


def test_the_edge_is_asked_of_points_that_stand_alone() -> None:
    linf = np.array([0.1, 0.05, 0.02], np.float32)
    assert at_the_edge(np.array([True, True, False]), linf, 0.1) == (0.5, 2)
    assert at_the_edge(np.array([False, False, False]), linf, 0.1) == (0.0, 0)


def test_headway_is_half_of_the_references_gain_where_it_gained() -> None:
    clean, reference = np.full(4, -2.0), np.array([0.0, 0.0, 0.0, -2.5])
    judged = np.array([-0.9, -1.1, 5.0, -2.0])
    found = headway(np.array([True, True, False, True]), clean, judged, reference)
    assert (found.share, found.points) == (0.5, 2)
    assert headway(np.zeros(4, bool), clean, judged, reference).p == 1.0


def test_points_are_pushed_back_when_they_were_wrong_and_are_right() -> None:
    clean, judged = np.array([1.0, 1.0, -1.0, 1.0]), np.array([-1.0, 1.0, -1.0, 2.0])
    found = pushed_back(clean, judged)
    assert (found.share, found.points) == (pytest.approx(1 / 3), 3)
    assert pushed_back(np.full(50, 1.0), np.full(50, -1.0)).p < 1e-9


def elsewhere(draws: int, hidden: float, checked: int = 400, count: int = 1000, level: float = 0.05 / TESTS) -> float:
    """The share of studies that are refused whose attack leaves `hidden` more beyond the checked points."""
    rng, found = np.random.default_rng(0), []
    for _ in range(RUNS):
        right, _ = points(rng, count, draws, 0.0)
        kept = (np.arange(count) >= checked) & (rng.random(count) < hidden / 0.6)  # 60 % are fooled
        found.append(more_elsewhere(np.where(kept, draws, right), draws, checked) < level)
    return float(np.mean(found))


@pytest.mark.parametrize("draws", [1, 3])
def test_points_that_are_not_checked_fare_like_those_that_are(draws: int) -> None:
    assert elsewhere(draws, 0.0) <= 0.0125


@pytest.mark.parametrize("draws", [1, 3])
def test_an_attack_that_is_strong_on_the_checked_points_alone_is_refused(draws: int) -> None:
    assert elsewhere(draws, 0.15) >= 0.9


def test_parts_are_compared_each_with_its_own_spread() -> None:
    few, many = (
        np.array([0, 1] * 52),
        np.array([0, 1] + [1] * 18 * 50),
    )  # With a right and a wrong answer added to each.
    spread = few.var(ddof=1) / len(few), many.var(ddof=1) / len(many)
    freedom = sum(spread) ** 2 / (spread[0] ** 2 / (len(few) - 1) + spread[1] ** 2 / (len(many) - 1))
    allowed = float(many.mean() - few.mean()) - 2 * float(np.sqrt(sum(spread)))  # Two standard errors above it.
    right = np.concatenate([few[2:], many[2:]])
    assert more_elsewhere(right, 1, len(few) - 2, allowed) == pytest.approx(scipy.stats.t.sf(2, freedom), rel=1e-9)


def test_a_part_in_which_all_points_fare_alike_is_not_sure_of_it() -> None:
    assert more_elsewhere(np.repeat([0, 1], [992, 8]), 1, 400) > 0.05 / 9  # 1.3 % beyond, none of 400
    assert more_elsewhere(np.zeros(1000, int), 1, 400) > 0.5
