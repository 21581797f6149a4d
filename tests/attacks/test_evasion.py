"""Evading a detector: gradients, what a step does for each point, which iterate is the result, and who beats whom."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mi_ray import ThreatModel, make_attack, make_defense
from mi_ray.attacks.criterion import criterion
from mi_ray.attacks.eot_pgd import evasion_loss
from mi_ray.attacks.evasion import DIRECTIONS, Slopes, _Shortlist, orthogonal_part, slopes
from mi_ray.data import to_unit
from mi_ray.defenses import DefendedClassifier, predict
from mi_ray.randomness import Key
from mi_ray.statistics import detection_auc

THREAT = ThreatModel(8 / 255)


def _behind(f: Any, pool: Any, defense: str = "mi_pl", executions: int = 5) -> DefendedClassifier:
    return DefendedClassifier(f, make_defense(defense, lam=0.5), pool, executions)


def _gap(model: DefendedClassifier, images: Tensor, key: Key) -> Tensor:
    with model.bind(key, range(len(images))), torch.no_grad():
        undefended, (runs,) = model.parts(images)
    at, guess = torch.arange(len(images)), undefended.argmax(1)
    return undefended.exp()[at, guess] - runs.exp().mean(0)[at, guess]


@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
def test_both_gradients_together_are_those_of_the_weighted_loss(
    goal: Any, classifier: Any, pool: Any, batch: Any
) -> None:
    (x, y), wanted = batch, criterion(ThreatModel(8 / 255, goal))
    model, leaf = _behind(classifier, pool, executions=12), x.clone().requires_grad_(True)
    labels = (y + 3) % 10 if goal == "targeted" else y
    with model.bind(Key(0, "attack"), range(8)):
        found = slopes(model, x, labels, wanted)
        undefended, (runs,) = model.parts(leaf)
    loss = evasion_loss(undefended, runs.exp().mean(0), labels, wanted, 3.0)
    expected = torch.autograd.grad(loss.sum(), leaf)[0]
    torch.testing.assert_close(found.loss - 3 * found.gap, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.height, _gap(model, x, Key(0, "attack")))
    assert found.fooled.tolist() == (wanted.reached(undefended, labels) > 0).tolist()


def test_what_is_without_another_vector_is_orthogonal_to_it_and_itself_where_that_is_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 3, 4, 4, generator=generator)
    b[2] = 0
    found = orthogonal_part(a, b)
    assert (found * b).flatten(1).sum(1).abs().max() < 1e-5
    assert torch.equal(found[2], a[2])
    for row in range(2):  # What is taken away is along the other vector.
        taken = (a - found)[row].flatten()
        cosine = torch.nn.functional.cosine_similarity(taken, b[row].flatten(), dim=0)
        assert cosine.abs().item() == pytest.approx(1, abs=1e-5)


def test_each_update_steps_for_what_a_point_lacks() -> None:
    loss, gap = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    found = Slopes(loss.view(2, 1, 1, 2), gap.view(2, 1, 1, 2), torch.tensor([False, True]), torch.tensor([0.1, 0.2]))
    expected = {
        "selective": [[1.0, 0.0], [-1.0, -2.0]],
        "orthogonal": [[1.0, 0.0], [0.0, -2.0]],
    }
    assert DIRECTIONS.keys() == expected.keys()
    for name, direction in DIRECTIONS.items():
        torch.testing.assert_close(direction(found).view(2, 2), torch.tensor(expected[name]))


def test_a_shortlist_keeps_what_fools_with_the_smallest_gap_and_of_the_rest_the_smallest_too() -> None:
    def added(*iterates: tuple[bool, float]) -> set[float]:
        places = _Shortlist(2, torch.full((1, 1, 1, 1), -1.0))
        for number, (fooled, height) in enumerate(iterates):
            empty = torch.zeros(1, 1, 1, 1)
            found = Slopes(empty, empty, torch.tensor([fooled]), torch.tensor([height]))
            places.add(torch.full((1, 1, 1, 1), float(number)), found)
        return set(places.images.flatten().tolist())

    assert added((True, 0.5)) == {-1.0, 0.0}
    assert added((True, 0.5), (True, 0.1), (True, 0.3)) == {1.0, 2.0}
    assert added((True, 1.0), (True, 0.9), (False, -1.0)) == {0.0, 1.0}
    assert added((False, -1.0), (False, 0.2), (True, 1.0), (False, 0.0)) == {0.0, 2.0}


@pytest.mark.parametrize("update", list(DIRECTIONS))
def test_the_result_is_scored_by_draws_of_its_own_and_a_longer_list_can_only_be_better(
    update: str, classifier: Any, pool: Any, batch: Any
) -> None:
    (x, y), model = batch, _behind(classifier, pool)
    few, many = (
        make_attack("evasion", steps=8, update=update, shortlist=places, scoring_draws=2, step_size=2 / 255).craft(
            model, x, y, THREAT, 4
        )
        for places in (1, 8)
    )
    for found in (few, many):
        images = found.images[0, 0]
        fooled = (classifier(images).argmax(1) != y).float()
        gaps = torch.stack([_gap(model, images, Key(4, "attack", "evasion", draw=draw)) for draw in (1, 2)])
        assert torch.equal(found.success[0, 0], fooled)
        torch.testing.assert_close(found.loss[0, 0], -gaps.mean(0), rtol=1e-4, atol=1e-5)
    better = (many.success > few.success) | ((many.success == few.success) & (many.loss >= few.loss - 1e-6))
    assert better.all()
    assert (many.loss > few.loss + 1e-3).any()


def test_it_needs_a_detector(classifier: Any, batch: Any) -> None:
    attack = make_attack("evasion", steps=2)
    with pytest.raises(ValueError, match="evades a detector; got a model that no defense stands before"):
        attack.craft(classifier, *batch, THREAT)
    with pytest.raises(ValueError, match="needs `knowledge: adaptive`"):
        attack(classifier, *batch, THREAT)


@pytest.mark.parametrize("defense", ["mi_pl", "mi_ol"])
def test_at_no_more_passes_more_points_fool_f_undetected_than_with_one_weight_for_all_points(
    defense: str, classifier: Any, pool: Any, digits: Any
) -> None:
    x, y = to_unit(digits.test_images[:40]), torch.from_numpy(digits.test_labels[:40])
    model, walk = _behind(classifier, pool, defense), {"step_size": 2 / 255, "scoring_draws": 2}
    ours = make_attack("evasion", steps=10, **walk)
    low, high = (make_attack("eot_pgd", loss="evade", steps=13, evade_weight=weight, **walk) for weight in (2, 20))
    assert sum(ours.cost((5,))) <= sum(low.cost((5,)))

    def judged(images: Tensor) -> tuple[Tensor, Tensor]:
        """The detector's scores, and whether F is fooled."""
        p, average = classifier(images).softmax(1), predict(classifier, model.defense, images, pool, 30, 9)
        guess = p.argmax(1, keepdim=True)
        return (p.gather(1, guess) - average.gather(1, guess))[:, 0], guess[:, 0] != y

    clean = judged(x)[0]
    limit = clean.sort(descending=True).values[2]  # two of forty clean images are above it
    areas, undetected = {}, {}
    for name, attack in {"low": low, "high": high, "ours": ours}.items():
        scores, fooled = judged(attack(model, x, y, THREAT))
        areas[name] = detection_auc(clean, scores)
        undetected[name] = (fooled & (scores <= limit)).float().mean().item()
    assert undetected["ours"] > max(undetected["low"], undetected["high"]) + 0.1
    assert areas["ours"] < areas["low"] / 2
