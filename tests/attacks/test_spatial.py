"""Rotations and shifts: what a transformation makes of an image, and what a search among them finds.

What is compared with is worked out here by other means: torch's own rotation by quarters, slices, and SciPy's warp.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from mi_ray import DefendedClassifier, ThreatModel, make_attack, make_defense
from mi_ray.attacks import Adversarial, Batch, OutsideBallError
from mi_ray.attacks.balls import distance, transformed
from mi_ray.attacks.base import score
from mi_ray.attacks.spatial import Spatial
from mi_ray.data import to_unit
from mi_ray.randomness import Key

GRID = {"method": "grid", "angles": 5, "shifts": 3}
Points = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def points(digits: Any) -> Points:
    """Thirty images with their labels."""
    return to_unit(digits.test_images[:30]), torch.from_numpy(digits.test_labels[:30])


def threat(epsilon: float = 1.0) -> ThreatModel:
    """An adversary who turns and shifts."""
    return ThreatModel(epsilon, norm="spatial")


def batch_of(x: Tensor, y: Tensor, epsilon: float = 1.0) -> Batch:
    """What the attack is handed."""
    return Batch(x, y, threat(epsilon), Key(0, "attack", "spatial"), range(len(x)))


def fooled(model: nn.Module, points: Points, epsilon: float = 1.0, **values: Any) -> Tensor:
    """[B] Which points the attack fools, by the model's answer to its images."""
    x, y = points
    found: Tensor = model(make_attack("spatial", **values)(model, x, y, threat(epsilon))).argmax(1) != y
    return found


# What a transformation makes


def test_three_shares_of_rotation_are_a_quarter_turn_anticlockwise() -> None:
    x = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    for quarters in (1, 2, 3):
        found = transformed(x, torch.tensor([[3.0 * quarters, 0, 0]] * 4))
        torch.testing.assert_close(found, torch.rot90(x, quarters, (2, 3)), rtol=0, atol=1e-5)


def test_a_shift_by_whole_pixels_moves_them_and_leaves_black_behind() -> None:
    x = torch.rand(2, 3, 20, 40, generator=torch.Generator().manual_seed(1))
    found = transformed(x, torch.tensor([[0, 1.25, -1.0]] * 2))  # five pixels to the right, two up
    wanted = torch.zeros_like(x)
    wanted[:, :, :-2, 5:] = x[:, :, 2:, :-5]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert (found[..., :4] == 0).all()


def test_an_image_is_turned_first_and_then_shifted() -> None:
    x = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(2))
    both = transformed(x, torch.tensor([[3.0, 1.0, 0]] * 2))
    turned, shifted = torch.tensor([[3.0, 0, 0]] * 2), torch.tensor([[0, 1.0, 0]] * 2)
    torch.testing.assert_close(both, transformed(transformed(x, turned), shifted), rtol=0, atol=1e-5)
    other = transformed(transformed(x, shifted), turned)
    assert (both - other).abs().max() > 0.1


def test_each_image_has_a_transformation_of_its_own_and_none_is_the_image_itself() -> None:
    x = torch.rand(3, 3, 7, 12, generator=torch.Generator().manual_seed(3))
    shares = torch.tensor([[0.4, -0.2, 1.0], [0, 0, 0], [0, 0, -0.7]])
    found = transformed(x, shares)
    assert torch.equal(found[1], x[1])
    for at in range(3):
        assert torch.equal(transformed(x[at, None], shares[at, None])[0], found[at])
    assert (found[[0, 2]] - x[[0, 2]]).abs().amax((1, 2, 3)).min() > 0.05


def test_a_distance_is_the_largest_share_of_an_image_that_is_what_its_transformation_makes() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    shares = torch.tensor([[0.3, -0.6, 0.1], [0, 0, 0.2]])
    images = transformed(x, shares)
    torch.testing.assert_close(distance("spatial", x, images, shares), torch.tensor([0.6, 0.2]))
    images[1, 0, 4, 4] += 0.01
    torch.testing.assert_close(distance("spatial", x, images, shares), torch.tensor([0.6, 1.01]))


# What the search finds


def scipy_fools(model: nn.Module, points: Points, grid: list[tuple[float, float, float]]) -> Tensor:
    """[B] Which points some (degrees anticlockwise, pixels to the right, pixels down) fools."""
    x, y = points
    found = torch.zeros(len(x), dtype=torch.bool)
    middle = (np.array(x.shape[2:]) - 1) / 2
    for degrees, right, down in grid:
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        back = np.array([[cos, sin], [-sin, cos]])
        to = middle - back @ (middle + np.array([down, right]))
        planes = [
            ndimage.affine_transform(plane, back, to, order=1, mode="grid-constant")
            for plane in x.flatten(0, 1).numpy()
        ]
        found |= model(torch.from_numpy(np.stack(planes)).view_as(x)).argmax(1) != y
    return found


def test_a_grid_fools_the_points_that_brute_force_fools(classifier: Any, points: Points) -> None:
    x, y = points
    every = [*product((-15, -7.5, 0, 7.5, 15), (-1.6, 0, 1.6), (-1.6, 0, 1.6))]  # half of 30 degrees and of 3.2 pixels
    wanted = scipy_fools(classifier, points, every)
    assert torch.equal(fooled(classifier, points, 0.5, **GRID), wanted)
    assert (classifier(x).argmax(1) != y).sum() < wanted.sum() < len(x)


def foolbox_fools(model: nn.Module, points: Points, **values: float) -> Tensor:
    """[B] Which points foolbox's grid of up to 15 degrees and 1.6 pixels fools; its pixel is 31/32 of one, between middles."""
    import foolbox

    attack = foolbox.attacks.SpatialAttack(**{"max_translation": 1.6 * 32 / 31, "max_rotation": 15, **values})
    with torch.no_grad():
        _, _, found = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), *points)
    fools: Tensor = found.bool()
    return fools


@pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")
def test_a_grid_fools_the_points_that_foolbox_fools(classifier: Any, points: Points) -> None:
    turned = foolbox_fools(classifier, points, num_rotations=31, num_translations=1, max_translation=0)
    assert torch.equal(fooled(classifier, points, 0.5, method="grid", shifts=1), turned)
    shifted = foolbox_fools(classifier, points, num_rotations=1, num_translations=5, max_rotation=0)
    assert torch.equal(fooled(classifier, points, 0.5, method="grid", angles=1), shifted)
    # Foolbox shifts first and turns then, so that of both at once its images are others, as near to each other as the grid.
    both = foolbox_fools(classifier, points, num_rotations=7, num_translations=5)
    ours = fooled(classifier, points, 0.5, method="grid", angles=7)
    assert (ours != both).float().mean() <= 0.1
    assert both.sum() > max(turned.sum(), shifted.sum())


def test_a_grid_is_at_least_as_strong_as_any_of_its_transformations(classifier: Any, points: Points) -> None:
    attack, whole = make_attack("spatial", **GRID), batch_of(*points)
    assert isinstance(attack, Spatial)
    found, every = attack.run(classifier, whole), attack.transformations(whole)
    assert len(every) == 45
    drawn = torch.randint(45, (10, len(whole)), generator=torch.Generator().manual_seed(5))
    for number in drawn:
        images = transformed(whole.x, every[number, torch.arange(len(whole))])
        loss, success = score(classifier, images[None], whole, 1)
        assert (found.success[0, 0] >= success[0]).all()
        same = found.success[0, 0] == success[0]
        assert (found.loss[0, 0] >= loss[0] - 1e-5)[same].all()


def test_more_draws_and_a_larger_share_on_a_finer_grid_are_never_weaker(classifier: Any, points: Points) -> None:
    few, more = (fooled(classifier, points, 0.7, k=k) for k in (3, 12))
    assert (few <= more).all()
    assert few.sum() < more.sum()
    # With places twice as dense in twice the range every transformation of the smaller grid is one of the larger.
    small, large = (
        fooled(classifier, points, epsilon, method="grid", angles=size, shifts=size)
        for epsilon, size in ((0.4, 3), (0.8, 5))
    )
    assert (small <= large).all()
    assert small.sum() < large.sum()


class Inside(nn.Module):
    """The mean of each channel, wherever it is; or only that of the left half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return 20 * x[..., : self.width].mean((2, 3))


def test_shifts_do_nothing_to_a_network_that_does_not_see_them(points: Points) -> None:
    generator = torch.Generator().manual_seed(6)
    x = torch.zeros(30, 3, 32, 32)
    x[:, :, 6:26, 6:26] = torch.rand(30, 3, 20, 20, generator=generator)  # nothing is shifted out by 3.2 pixels
    y = Inside(32)(x).argmax(1)
    shifts = {"method": "grid", "angles": 1, "shifts": 5}
    assert not fooled(Inside(32), (x, y), **shifts).any()
    halves = Inside(16)(x).argmax(1)
    assert fooled(Inside(16), (x, halves), **shifts).any()


def test_a_grid_of_one_angle_only_shifts_and_one_of_one_shift_only_turns(points: Points) -> None:
    batch = batch_of(*points, 0.5)
    for values, still, moves in (
        ({"angles": 1, "shifts": 3}, [0], [1, 2]),
        ({"angles": 3, "shifts": 1}, [1, 2], [0]),
    ):
        attack = make_attack("spatial", method="grid", **values)
        assert isinstance(attack, Spatial)
        every = attack.transformations(batch)
        assert (every[..., still] == 0).all()
        assert every[..., moves].amin((0, 1)).tolist() == [-0.5] * len(moves)
        assert every[..., moves].amax((0, 1)).tolist() == [0.5] * len(moves)


def test_draws_are_uniform_the_points_own_and_the_same_whatever_k_or_epsilon(points: Points) -> None:
    x, y = points
    attack = Spatial(k=40)
    every = attack.transformations(batch_of(x, y, 0.5))
    assert every.abs().max() <= 0.5
    for of in every.unbind(-1):
        assert abs(float(of.mean())) < 0.02  # 2,400 draws; the standard error is 0.006
        assert abs(float(of.abs().mean()) - 0.25) < 0.01
    part = attack.transformations(batch_of(x, y, 0.5).of(torch.tensor([7, 3])))
    assert torch.equal(part, every[:, [7, 3]])
    assert torch.equal(Spatial(k=4).transformations(batch_of(x, y, 1.0)), 2 * every[:4])


def test_parameters_of_the_other_method_are_not_among_what_decides_a_result() -> None:
    assert Spatial(method="grid", k=3).values() == Spatial(method="grid").values()
    assert Spatial(k=3).values() == Spatial(k=3, angles=7, shifts=1).values() != Spatial().values()
    for attack in (Spatial(method="grid", angles=3), Spatial(k=7)):
        assert make_attack("spatial", **attack.values()).values() == attack.values()


# Behind a defense


def test_behind_a_random_defense_the_choice_is_by_draws_that_no_search_and_no_report_uses(
    classifier: Any, points: Points
) -> None:
    x, y = (each[:12] for each in points)
    model = DefendedClassifier(classifier, make_defense("gaussian_noise", sigma=0.3), executions=2, seed=0)
    attack = Spatial(method="grid", angles=3, shifts=3, shortlist=27, scoring_draws=6)
    batch = batch_of(x, y, 0.25)
    found = attack.run(model, batch)
    images = torch.stack([transformed(x, each) for each in attack.transformations(batch)])
    counted = torch.zeros(27, 12)
    for draw in range(1, 7):
        with torch.no_grad(), model.bind(Key(0, "attack", "spatial", draw=draw), range(12)):
            counted += torch.stack([model(each).argmax(1) != y for each in images]).float() / 6
    torch.testing.assert_close(found.success[0, 0], counted.amax(0))  # all are on the list, so the best of all is kept
    assert 0 < counted.amax(0).mean() < 1
    narrow = replace(attack, shortlist=1).run(model, batch)
    assert (narrow.success <= found.success).all()
    assert (narrow.success < found.success).any()


def test_more_of_the_shortlist_costs_as_many_passes_as_it_says() -> None:
    assert Spatial(method="grid").cost() == (775 + 2, 0)
    assert Spatial(method="grid").cost((5,)) == (6 * (775 + 11 * 5), 0)
    assert Spatial(k=3, scoring_draws=2).cost((1,)) == (2 * (3 + 4 * 2), 0)


# What is refused


class Told(Spatial):
    """Returns what a test says."""

    name = "told"
    change: Callable[[Adversarial], Adversarial] = staticmethod(lambda found: found)

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """The attack's own result, changed."""
        return type(self).change(super().run(model, batch))


def brighter(found: Adversarial) -> Adversarial:
    """An image that no transformation makes."""
    images = found.images.clone()
    images[0, 0, 1] = (images[0, 0, 1] + 0.01).clamp_max(1)
    return replace(found, images=images)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (brighter, OutsideBallError, "must stay within epsilon"),
        (lambda found: replace(found, shares=found.shares * 0.9), OutsideBallError, "must stay within epsilon"),
        (lambda found: replace(found, shares=None), ValueError, r"return shares \[1, 1, 4, 3\].*; got nothing"),
        (lambda found: replace(found, shares=found.shares[..., :2]), ValueError, r"shares \[1, 1, 4, 3\].*4, 2\]"),
    ],
)
def test_an_image_is_held_against_its_transformation_when_it_is_made(
    change: Any, error: type[Exception], said: str, classifier: Any, points: Points
) -> None:
    x, y = (each[:4] for each in points)
    Told.change = staticmethod(lambda found: found)
    Told(k=2).craft(classifier, x, y, threat())
    Told.change = staticmethod(change)
    with pytest.raises(error, match=said):
        Told(k=2).craft(classifier, x, y, threat())


def test_transformations_beyond_epsilon_are_refused(classifier: Any, points: Points) -> None:
    class Farther(Told):
        def transformations(self, batch: Batch) -> Tensor:
            """Twice as far as is allowed."""
            return 2 * super().transformations(batch)

    Told.change = staticmethod(lambda found: found)
    x, y = (each[:20] for each in points)
    with pytest.raises(OutsideBallError, match="must stay within epsilon"):
        Farther(k=5).craft(classifier, x, y, threat(0.5))


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\] \(1 is all rotations and shifts\); got 1.5"):
        threat(1.5)
