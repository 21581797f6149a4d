"""The attack that only asks: of the images that others made it keeps those that fail, and chooses by draws of its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mi_ray import DefendedClassifier, make_attack, make_defense
from mi_ray.attacks import Batch
from mi_ray.randomness import Key
from mi_ray.threat_model import ThreatModel

EPSILON = 0.06


def handed(x: Tensor, y: Tensor, *images: Tensor) -> Batch:
    """A batch with the images of other attacks."""
    batch = Batch(x, y, ThreatModel(EPSILON), Key(0, "attack", "transfer"), range(len(x)))
    return replace(batch, given=list(images))


@pytest.fixture(scope="module")
def broken(classifier: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    """What PGD makes of the batch on the very classifier."""
    x, y = batch
    found: Tensor = make_attack("pgd", steps=20, step_size=0.02)(classifier, x, y, ThreatModel(EPSILON), seed=0)
    assert (classifier(found).argmax(1) != y).sum() > 2
    return found


def test_a_point_gets_the_image_that_fails_wherever_there_is_one(
    classifier: Any, batch: tuple[Tensor, Tensor], broken: Tensor
) -> None:
    x, y = batch
    half = torch.where((torch.arange(len(x)) % 2 == 0)[:, None, None, None], broken, x)
    rest = torch.where((torch.arange(len(x)) % 2 == 1)[:, None, None, None], broken, x)
    found = make_attack("transfer").run(classifier, handed(x, y, half, rest))
    fails = classifier(broken).argmax(1) != y
    assert torch.equal(found.success[0, 0] == 1, fails)
    assert torch.equal(found.images[0, 0][fails], broken[fails])


def test_from_python_it_takes_images_and_is_refused_without_any(
    classifier: Any, batch: tuple[Tensor, Tensor], broken: Tensor
) -> None:
    (x, y), threat, attack = batch, ThreatModel(EPSILON), make_attack("transfer")
    found = attack(classifier, x, y, threat, given=[x, broken])
    assert ((classifier(found).argmax(1) != y) == (classifier(broken).argmax(1) != y)).all()
    with pytest.raises(ValueError, match="transfer needs images that other attacks made of these"):
        attack(classifier, x, y, threat)
    with pytest.raises(ValueError, match="given must be left out: pgd begins with no other"):
        make_attack("pgd", steps=1)(classifier, x, y, threat, given=[broken])


def test_without_an_image_that_does_harm_the_point_stays_as_it_is(
    classifier: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    found = make_attack("transfer").run(classifier, handed(x, y))
    assert torch.equal(found.images[0, 0], x)
    assert torch.equal(found.success[0, 0] == 1, classifier(x).argmax(1) != y)
    assert (found.zero_gradients == -1).all()  # it follows none


def test_behind_a_random_defense_it_is_chosen_by_draws_that_depend_on_the_point_alone(
    classifier: Any, batch: tuple[Tensor, Tensor], broken: Tensor
) -> None:
    x, y = batch
    model = DefendedClassifier(classifier, make_defense("gaussian_noise", sigma=0.2), executions=5, seed=0)
    whole = handed(x, y, broken)
    found = make_attack("transfer").run(model, whole)
    part = make_attack("transfer").run(model, whole.of(torch.tensor([1, 4, 6])))
    assert torch.equal(part.images[0, 0], found.images[0, 0][[1, 4, 6]])
    assert torch.equal(part.success, found.success[..., [1, 4, 6]])
    assert (5 * found.success).frac().abs().max() < 1e-5  # a share of five draws
