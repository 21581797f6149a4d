"""What votes under Gaussian noise certify: randomised smoothing (Cohen, Rosenfeld and Kolter, 2019).

The smoothed classifier g answers with the class that F names most often for x + N(0, σ²). Where that class has probability
p > 1/2, no perturbation of an L2 norm below σ Φ⁻¹(p) changes the answer of g (their Theorem 1). p is not known: n votes bound
it from below at a level α, and n0 other votes choose the class, so that no vote both chooses and bounds (their CERTIFY).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy

from mi_ray.statistics import Accuracy, accuracy
from mi_ray.threat_model import ABSTAINS

# The distance, in units of σ, of the radii at which certified accuracy is reported where a sweep names none.
QUARTER = 0.25
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Certified:
    """What is certified of points, one entry each.

    candidate: the class that n0 votes choose. votes: how many of n others it has. probability: the lower bound of its
    probability. predicted: the class, or `ABSTAINS`. radius: in the L2 norm of pixels in [0, 1]; 0 where it abstains.
    """

    candidate: Ints
    votes: Ints
    probability: Floats
    predicted: Ints
    radius: Floats


def lower_bound(votes: npt.ArrayLike, n: int, alpha: float) -> Floats:
    """The one-sided lower bound of Clopper and Pearson (1934) of a probability, by so many votes of n.

    It is above the probability with a chance of at most alpha: the α-quantile of Beta(votes, n - votes + 1); 0 without votes.
    """
    counts = np.asarray(votes, np.float64)
    bound = scipy.special.betaincinv(np.maximum(counts, 1), n - counts + 1, alpha)
    return np.where(counts > 0, bound, 0.0)


def certify(chooses: npt.ArrayLike, bounds: npt.ArrayLike, sigma: float, alpha: float) -> Certified:
    """What votes certify of each point. chooses, bounds: [points, classes] votes, n0 and n in all for each point.

    Of classes that are chosen equally often the first is taken. Raises ValueError where points have different numbers of votes.
    """
    first, second = np.asarray(chooses, np.int64), np.asarray(bounds, np.int64)
    totals = second.sum(1)
    if len(set(totals.tolist())) != 1:
        raise ValueError(f"every point must have as many votes; got {sorted(set(totals.tolist()))}")
    candidate = first.argmax(1)
    votes = second[np.arange(len(second)), candidate]
    probability = lower_bound(votes, int(totals[0]), alpha)
    certain = probability > 0.5
    radius = np.where(certain, sigma * scipy.special.ndtri(np.where(certain, probability, 0.5)), 0.0)
    return Certified(candidate, votes, probability, np.where(certain, candidate, ABSTAINS), radius)


def largest_radius(sigma: float, n: int, alpha: float) -> float:
    """The radius of a point all of whose votes agree: σ Φ⁻¹(α^(1/n)); 0 where so few votes certify nothing."""
    return float(sigma * scipy.special.ndtri(max(alpha ** (1 / n), 0.5)))


def usual_radii(sigma: float, n: int, alpha: float) -> list[float]:
    """0 and every further quarter of σ that n votes can reach."""
    steps = int(largest_radius(sigma, n, alpha) / (QUARTER * sigma))
    return [round(at * QUARTER * sigma, 12) for at in range(steps + 1)]


def certified_accuracy(right: npt.ArrayLike, radius: npt.ArrayLike, at: float) -> Accuracy:
    """The share of points that are right and whose radius is at least so large, with Wilson's 95 % interval over points.

    right: whether the certified class is the true one; no point is that abstains.
    """
    held = np.asarray(right, bool) & (np.asarray(radius, np.float64) >= at)
    return accuracy(held.astype(np.int64), 1)
