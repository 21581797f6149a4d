"""Certified accuracy from below, attacks from above: the truth of a vote at a radius lies between the two.

A certificate holds for every perturbation, so that no attack may leave less of the same hard vote than is certified, but for
the sampling of both sides: a certificate is wrong with a chance of α, and an evaluation has finitely many votes.
"""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mi_ray import ThreatModel, make_attack, make_defense
from mi_ray.classifiers import build_classifier
from mi_ray.defenses import DefendedClassifier
from mi_ray.objectives import OBJECTIVES
from mi_ray.smoothing import Certified, certify
from mi_ray.study.batches import BlockInput, component_outputs
from mi_ray.threat_model import Norm

pytestmark = pytest.mark.skipif(
    "l2" not in get_args(Norm), reason="certificates are of the L2 norm; attacks have none yet"
)
SIGMA, POINTS, N0, N, ALPHA = 0.25, 40, 30, 300, 0.001
RADII = (0.1, 0.5)


@pytest.fixture(scope="module")
def smoothed(digits: Any, describe: Any) -> tuple[nn.Module, Tensor, Tensor, Certified]:
    """A network that was trained under noise, reported points with their labels, and what is certified of them."""
    torch.manual_seed(0)
    network = build_classifier(describe(width=8)).train()
    x, y = (torch.as_tensor(np.array(values)) for values in (digits.train_images, digits.train_labels))
    x, y, rng = x.permute(0, 3, 1, 2).float() / 255, y.long(), np.random.default_rng(0)
    solver, objective = torch.optim.SGD(network.parameters(), 0.1, 0.9), OBJECTIVES.make("gaussian", {"sigma": SIGMA})
    for _ in range(6):
        for some in torch.randperm(len(x)).split(64):
            solver.zero_grad()
            objective.loss(network, network, x[some], y[some], rng).backward()
            solver.step()
    network.eval().requires_grad_(False)
    images = torch.as_tensor(np.array(digits.test_images[:POINTS])).permute(0, 3, 1, 2).float() / 255
    labels = torch.as_tensor(np.array(digits.test_labels[:POINTS])).long()
    chooses, bounds = _votes(network, images, N0, "choose"), _votes(network, images, N, "bound")
    return network, images, labels, certify(chooses, bounds, SIGMA, ALPHA)


def _votes(network: nn.Module, x: Tensor, n: int, purpose: str) -> Any:
    component: Any = make_defense("vote", of=[{"gaussian_noise": {"sigma": SIGMA}}])
    block, none = BlockInput(x, range(POINTS), seed=1, batch=20), torch.zeros(len(x), dtype=torch.int64)
    shares = component_outputs(network, component, block, none, None, [n], 1, purpose=purpose)
    return (shares[0, 0] * n).round().long().numpy()


def test_at_every_radius_an_attack_leaves_at_least_what_is_certified(smoothed: Any) -> None:
    network, x, y, certified = smoothed
    vote = DefendedClassifier(
        network, make_defense("vote", of=[{"gaussian_noise": {"sigma": SIGMA}}]), executions=8, seed=2
    )
    right = certified.predicted == y.numpy()
    assert right.mean() > 0.6
    shares = []
    for radius in RADII:
        threat = ThreatModel(epsilon=radius, norm="l2", knowledge="adaptive")
        attack = make_attack("eot_pgd", steps=10, step_size=radius / 4)
        attacked = attack(vote, x, y, threat, seed=3)
        assert (attacked - x).flatten(1).norm(dim=1).max() <= radius + 1e-5
        votes = _votes(network, attacked, N, "evaluate")
        stands = votes.argmax(1) == y.numpy()
        held = right & (certified.radius >= radius)
        assert (
            held & ~stands
        ).sum() <= 1  # of 40 certificates one in a thousand may be wrong, and votes near one half too
        assert held.mean() <= stands.mean() + 1 / POINTS
        shares.append((held.mean(), stands.mean()))
    assert shares[0][0] > 0.3  # something is certified,
    assert shares[-1][1] < right.mean()  # and the attack breaks something


def test_a_certificate_that_claims_too_much_is_found_out(smoothed: Any) -> None:
    """The check has teeth: with radii twice as long the attack breaks points that they hold."""
    network, x, y, certified = smoothed
    vote = DefendedClassifier(
        network, make_defense("vote", of=[{"gaussian_noise": {"sigma": SIGMA}}]), executions=8, seed=2
    )
    radius = 1.0
    attack = make_attack("eot_pgd", steps=20, step_size=radius / 5)
    attacked = attack(vote, x, y, ThreatModel(epsilon=radius, norm="l2", knowledge="adaptive"), seed=3)
    stands = _votes(network, attacked, N, "evaluate").argmax(1) == y.numpy()
    held = (certified.predicted == y.numpy()) & (2.5 * certified.radius >= radius)
    assert (held & ~stands).sum() > 3
