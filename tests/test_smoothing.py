"""What votes certify: bounds worked out by hand, the level that they keep, radii against scipy and against the truth."""

import math
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from torch import Tensor, nn

from mi_ray import make_defense
from mi_ray.smoothing import certified_accuracy, certify, largest_radius, lower_bound, usual_radii
from mi_ray.statistics import accuracy
from mi_ray.study.batches import BlockInput, component_outputs
from mi_ray.threat_model import ABSTAINS

# Where all n votes agree, the bound solves p^n = α; where one of two does, 1 - (1 - p)^2 = α. The quantiles of the normal
# distribution are those of its tables: Φ(0.8416) = 0.8, Φ(1.2816) = 0.9, Φ(1.9600) = 0.975, Φ(2.3263) = 0.99; near
# Φ(1.5) = 0.933193 and Φ(3.8) = 0.999928 they are those values and what is left over the density.
BY_HAND = [  # votes, n, α, bound, radius over σ (None: abstains)
    (2, 2, 0.81, 0.9, 1.281552),
    (3, 3, 0.512, 0.8, 0.841621),
    (4, 4, 0.0016, 0.2, None),
    (2, 2, 0.25, 0.5, None),
    (1, 1, 0.99, 0.99, 2.326348),
    (2, 2, 0.950625, 0.975, 1.959964),
    (1, 2, 0.36, 0.2, None),
    (0, 7, 0.05, 0.0, None),
    (100, 100, 0.001, 10**-0.03, 1.500475),
    (100_000, 100_000, 0.001, 1 - 6.907516e-5, 3.811457),
]


@pytest.mark.parametrize(("votes", "n", "alpha", "bound", "radius"), BY_HAND)
def test_ten_cases_worked_out_by_hand(votes: int, n: int, alpha: float, bound: float, radius: float | None) -> None:
    assert lower_bound(votes, n, alpha).item() == pytest.approx(bound, abs=1e-9)
    found = certify([[0, 9, 1]], [[0, votes, n - votes]], 0.5, alpha)
    assert (found.candidate.item(), found.votes.item()) == (1, votes)
    assert found.predicted.item() == (ABSTAINS if radius is None else 1)
    assert found.radius.item() == pytest.approx(0.0 if radius is None else 0.5 * radius, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("n", [1, 7, 100, 5000])
def test_bounds_and_radii_are_those_of_the_formula_written_out_with_scipy(alpha: float, n: int) -> None:
    for votes in sorted({0, 1, n // 2, n // 2 + 1, 3 * n // 4, n}):
        interval = scipy.stats.binomtest(votes, n, alternative="greater").proportion_ci(1 - alpha, "exact")
        assert lower_bound(votes, n, alpha).item() == pytest.approx(interval.low, abs=1e-9)
        found = certify([[3, 0]], [[votes, n - votes]], 0.25, alpha)
        if interval.low > 0.5:
            assert found.radius.item() == pytest.approx(0.25 * scipy.stats.norm.ppf(interval.low), abs=1e-9)
        else:
            assert (found.predicted.item(), found.radius.item()) == (ABSTAINS, 0.0)


@pytest.mark.parametrize(("p", "n", "alpha"), [(0.6, 40, 0.05), (0.9, 100, 0.01), (0.5, 25, 0.1)])
def test_a_bound_is_above_the_probability_as_rarely_as_its_level_says(p: float, n: int, alpha: float) -> None:
    exact = sum(scipy.stats.binom.pmf(k, n, p) for k in range(n + 1) if lower_bound(k, n, alpha) > p)
    assert exact <= alpha
    assert exact > alpha / 6  # and it is not needlessly low: votes are whole, so that it cannot be α itself
    rng = np.random.default_rng(1)
    share = (lower_bound(rng.binomial(n, p, 40_000), n, alpha) > p).mean()
    assert share == pytest.approx(exact, abs=4 * math.sqrt(alpha / 40_000))


def test_the_whole_procedure_certifies_too_much_at_most_as_often_as_its_level_says() -> None:
    rng, points, alpha = np.random.default_rng(2), 20_000, 0.05
    p = rng.dirichlet([2, 1, 1], points)
    chooses, bounds = (np.stack([rng.multinomial(n, row) for row in p]) for n in (20, 60))
    found = certify(chooses, bounds, 1.0, alpha)
    truth = scipy.stats.norm.ppf(p[np.arange(points), found.candidate])
    wrong = (found.predicted != ABSTAINS) & (found.radius > truth)
    assert wrong.mean() <= alpha
    assert wrong.sum() > 100
    assert ((found.predicted == ABSTAINS) == (found.probability <= 0.5)).all()


def test_votes_that_choose_bound_nothing() -> None:
    """A class that the first votes name is bounded by the others alone, also where these name another."""
    found = certify([[10, 0], [5, 5]], [[1, 99], [100, 0]], 1.0, 0.001)
    assert found.candidate.tolist() == [0, 0]
    assert found.votes.tolist() == [1, 100]
    assert found.predicted.tolist() == [ABSTAINS, 0]


def test_points_with_different_numbers_of_votes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"every point must have as many votes; got \[3, 4\]"):
        certify([[1, 0], [1, 0]], [[3, 0], [3, 1]], 1.0, 0.1)


def test_more_votes_of_the_same_share_give_a_larger_radius_as_far_as_n_can_reach() -> None:
    radii = [certify([[1, 0]], [[9 * n, n]], 1.0, 0.001).radius.item() for n in (10, 100, 1000, 10_000)]
    assert radii == sorted(radii)
    assert radii[-1] < scipy.stats.norm.ppf(0.9)
    for n in (100, 1000):
        assert certify([[1, 0]], [[n, 0]], 0.5, 0.001).radius.item() == pytest.approx(largest_radius(0.5, n, 0.001))
    assert largest_radius(0.5, 5, 0.001) == 0.0
    assert usual_radii(0.5, 5, 0.001) == [0.0]
    assert usual_radii(0.4, 100, 0.001) == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]


def test_certified_accuracy_is_the_share_that_is_right_with_that_radius() -> None:
    right, radius = [True, True, False, True], [0.5, 0.2, 0.9, 0.2]
    shares = [certified_accuracy(right, radius, at).value for at in (0.0, 0.2, 0.2001, 0.5, 0.6)]
    assert shares == [0.75, 0.75, 0.25, 0.25, 0.0]
    found = certified_accuracy(right, radius, 0.2)
    assert (found.low, found.high) == pytest.approx((accuracy([1, 1, 1, 0], 1).low, accuracy([1, 1, 1, 0], 1).high))


class HalfSpaces(nn.Module):
    """Two classes on the two sides of a plane: under Gaussian noise the distance to it is the radius, exactly."""

    def __init__(self, normal: Tensor) -> None:
        super().__init__()
        self.normal = normal

    def forward(self, x: Tensor) -> Tensor:
        distance = ((x - 0.5).flatten(1) * self.normal.flatten()).sum(1)
        return torch.stack([distance, -distance], 1)


def test_on_a_linear_classifier_radii_stay_below_the_distance_to_the_plane_and_come_near_it() -> None:
    generator, sigma, points = torch.Generator().manual_seed(0), 0.3, 60
    normal = torch.randn(3, 4, 4, generator=generator)
    normal /= normal.norm()
    distance = torch.linspace(-0.6, 0.6, points)
    x = 0.5 + distance[:, None, None, None] * normal
    component: Any = make_defense("vote", of=[{"gaussian_noise": {"sigma": sigma}}])
    block = BlockInput(x, range(points), seed=3, batch=20)
    votes = [
        component_outputs(
            HalfSpaces(normal), component, block, torch.zeros(points, dtype=torch.int64), None, [n], 1, purpose=purpose
        )
        for n, purpose in ((100, "choose"), (2000, "bound"))
    ]
    chooses, bounds = ((shares[0, 0] * n).round().numpy() for shares, n in zip(votes, (100, 2000), strict=True))
    found = certify(chooses, bounds, sigma, 0.001)
    sure, truth = np.abs(distance.numpy()) > 0.05, np.abs(distance.numpy())
    assert (found.predicted[sure] == (distance.numpy() < 0)[sure]).all()
    assert (found.radius <= truth).all()
    assert (found.radius > truth - 0.08)[sure].all()
