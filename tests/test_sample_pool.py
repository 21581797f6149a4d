"""The sample pool: what it refuses, and from what it draws."""

from typing import Any

import numpy as np
import pytest
import torch
from helpers.sweeps import sweep
from scipy import stats
from torch import Tensor

from mi_ray.data import flip_and_crop, to_unit
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool, augmented_once, without
from mi_ray.study.prepare import prepare

COUNTS = [3, 1, 5, 2]  # images of each class
LABELS = np.array([3, 0, 2, 2, 0, 1, 2, 3, 0, 2, 2])


def _coloured(labels: Any) -> Any:
    """uint8 [N, 4, 4, 3]: every image its own number in channel 0, its class in channel 1."""
    images = np.zeros((len(labels), 4, 4, 3), np.uint8)
    images[..., 0] = np.arange(len(labels))[:, None, None]
    images[..., 1] = np.asarray(labels)[:, None, None]
    return images


def _pool(**more: Any) -> SamplePool:
    return SamplePool(_coloured(LABELS), LABELS, **more)


def _drawn(pool: SamplePool, which: Any, predicted: int, executions: int = 4000) -> tuple[Tensor, Tensor]:
    """(class, image number) of each draw for one point."""
    draws = Draws(Key(0, "test"), [17], executions, 0, torch.device("cpu"))
    images = pool.draw(draws, torch.tensor([predicted]), which)
    assert images.shape == (executions, 1, 3, 4, 4)
    pixels = (images[:, 0, :, 0, 0] * 255).round().long()
    return pixels[:, 1], pixels[:, 0]


@pytest.mark.parametrize("predicted", range(4))
def test_mi_pl_draws_only_the_predicted_class_and_uniformly_in_it(predicted: int) -> None:
    classes, numbers = _drawn(_pool(), "predicted", predicted)
    assert set(classes.tolist()) == {predicted}
    seen = torch.bincount(numbers, minlength=len(LABELS))
    assert torch.equal(seen > 0, torch.from_numpy(LABELS) == predicted)
    if COUNTS[predicted] > 1:
        assert stats.chisquare(seen[seen > 0]).pvalue > 1e-3


@pytest.mark.parametrize("predicted", range(4))
def test_mi_ol_never_draws_the_predicted_class_and_the_others_equally_often(predicted: int) -> None:
    classes, numbers = _drawn(_pool(), "other", predicted)
    seen = torch.bincount(classes, minlength=4)
    assert seen[predicted] == 0
    assert stats.chisquare(seen[seen > 0]).pvalue > 1e-3
    for other in set(range(4)) - {predicted}:
        inside = torch.bincount(numbers[classes == other], minlength=len(LABELS))
        assert (inside[torch.from_numpy(LABELS) == other] > 0).all()
        if COUNTS[other] > 1:
            assert stats.chisquare(inside[inside > 0]).pvalue > 1e-3


def test_draws_are_with_replacement_and_differ_between_points_and_executions() -> None:
    draws = Draws(Key(0, "test"), range(40), 5, 0, torch.device("cpu"))
    images = _pool().draw(draws, torch.full((40,), 2), "other")
    numbers = (images[..., 0, 0, 0] * 255).round()
    assert len(torch.unique(numbers, dim=0)) > 1
    assert len(torch.unique(numbers, dim=1)) <= 5
    assert len(torch.unique(numbers.T, dim=0)) > 10


def test_drawn_images_are_pool_images_in_the_unit_range(digits: Any, pool: SamplePool) -> None:
    draws = Draws(Key(0, "test"), range(3), 5, 0, torch.device("cpu"))
    images = pool.draw(draws, torch.tensor([0, 4, 9]), "predicted")
    whole = to_unit(digits.train_images)
    for point, label in enumerate((0, 4, 9)):
        allowed = whole[digits.train_labels == label].flatten(1)
        for image in images[:, point].flatten(1):
            assert (allowed == image).all(1).any()


def test_a_foreign_pool_draws_from_all_images_whatever_is_predicted() -> None:
    foreign = _pool(foreign=True)
    for which in ("predicted", "other"):
        seen = torch.bincount(_drawn(foreign, which, 9)[1], minlength=len(LABELS))
        assert stats.chisquare(seen).pvalue > 1e-3


def test_a_foreign_pool_need_not_hold_every_class() -> None:
    assert len(SamplePool(_coloured(LABELS), LABELS, classes=10, foreign=True)) == len(LABELS)


def test_an_augmented_pool_flips_half_and_shifts_by_up_to_four() -> None:
    images = np.zeros((1, 16, 16, 3), np.uint8)
    images[0, 8, 6] = 255
    augmented = SamplePool(images, [0], augmented=True)
    draws = Draws(Key(0, "test"), [0], 3000, 0, torch.device("cpu"))
    spots = torch.nonzero(augmented.draw(draws, torch.tensor([0]), "predicted")[:, 0, 0])
    assert len(spots) == 3000
    rows, columns = torch.bincount(spots[:, 1], minlength=16), torch.bincount(spots[:, 2], minlength=16)
    assert torch.nonzero(rows).flatten().tolist() == list(range(4, 13))
    assert stats.chisquare(rows[4:13]).pvalue > 1e-3
    # the spot is in column 6, or in column 9 when flipped
    expected = np.zeros(16)
    for centre in (6, 9):
        expected[centre - 4 : centre + 5] += 3000 / 18
    assert stats.chisquare(columns[2:14], expected[2:14]).pvalue > 1e-3


def test_the_test_split_is_refused_unless_it_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"must be of the train split.*got source='test'"):
        _pool(source="test")
    assert _pool(source="test", allow_test=True).source == "test"


@pytest.mark.usefixtures("unchecked")
def test_another_source_is_refused_even_when_the_test_split_is_allowed() -> None:
    with pytest.raises(ValueError, match="got source='validation'"):
        _pool(source="validation", allow_test=True)


def test_evaluated_points_in_the_pool_are_counted_and_refused() -> None:
    pool, images = _pool(), _coloured(LABELS)
    fresh = np.full((2, 4, 4, 3), 200, np.uint8)
    pool.refuse_evaluated(fresh)
    evaluated = np.concatenate([fresh, images[[4, 7, 7]]])
    assert pool.holds(evaluated) == 3
    assert pool.holds(to_unit(evaluated)) == 3
    with pytest.raises(ValueError, match="must hold no evaluated point; it holds 3"):
        pool.refuse_evaluated(evaluated)


def test_one_changed_grey_level_makes_another_image() -> None:
    images = _coloured(LABELS)
    images[:, 3, 3, 2] += 1
    assert _pool().holds(images) == 0


def test_a_pool_of_digits_holds_no_test_image(digits: Any, pool: SamplePool) -> None:
    pool.refuse_evaluated(digits.test_images)


def test_without_leaves_out_exact_copies_alone() -> None:
    images = _coloured(LABELS)
    near = images[[0]].copy()
    near[0, 0, 0, 0] ^= 1
    kept, labels, left_out = without(images, LABELS, np.concatenate([images[[2, 5]], near]))
    assert left_out == 2
    assert np.array_equal(kept, np.delete(images, [2, 5], axis=0))
    assert np.array_equal(labels, np.delete(LABELS, [2, 5]))


def test_a_missing_class_is_refused_by_number() -> None:
    keep = LABELS != 1
    with pytest.raises(ValueError, match=r"an image of each class; none of class \[1\]"):
        SamplePool(_coloured(LABELS)[keep], LABELS[keep])
    with pytest.raises(ValueError, match=r"none of class \[4, 5\]"):
        _pool(classes=6)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (LABELS[:-1], "one label >= 0 an image; got 11 images, 10 labels"),
        (LABELS - 1, "one label >= 0 an image"),
        (LABELS + 1, r"none of class \[0\]"),
    ],
)
def test_wrong_labels_are_refused(labels: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SamplePool(_coloured(LABELS), labels)


def test_labels_above_the_number_of_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="must be below classes=3; got 3"):
        _pool(classes=3)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((11, 4, 4, 3), np.int64),
        np.zeros((11, 4, 4), np.uint8),
        np.zeros((11, 3, 4, 4), np.uint8),
        np.full((11, 3, 4, 4), 1.5, np.float32),
        np.full((11, 3, 4, 4), -0.1, np.float32),
    ],
    ids=["int64", "three axes", "channels first", "above 1", "below 0"],
)
def test_images_of_another_form_are_refused(images: Any) -> None:
    with pytest.raises(ValueError, match=r"pool images must be uint8 \[N, H, W, C\] or float .* in \[0, 1\]; got"):
        SamplePool(images, LABELS)


def test_float_images_and_bytes_make_the_same_pool_and_one_digest() -> None:
    images = _coloured(LABELS)
    pools = [SamplePool(images, LABELS), SamplePool(to_unit(images), LABELS), _pool(augmented=True)]
    assert pools[0].digest == pools[1].digest != pools[2].digest
    assert torch.equal(pools[0].images, pools[1].images)


def test_a_frozen_copy_is_each_image_flipped_and_cropped_once_and_the_same_for_a_seed() -> None:
    images = np.random.default_rng(0).integers(1, 256, (1203, 6, 6, 3), dtype=np.uint8)
    found = augmented_once(images, 3)
    assert (found.shape, found.dtype) == (images.shape, np.uint8)
    assert (found == augmented_once(images, 3)).all()
    assert (found != augmented_once(images, 4)).any()
    # Every copy is one of the 2 * 81 that its image has: found by trying all.
    shifts, flips = (np.arange(9) + 0.5) / 9, np.array([0.25, 0.75])
    units = torch.tensor(np.stack(np.meshgrid(shifts, shifts, flips), -1).reshape(-1, 3))
    for at in (0, 999, 1000, 1202):
        image = torch.from_numpy(images[at]).permute(2, 0, 1).expand(len(units), 3, 6, 6)
        every = flip_and_crop(image, units, padding=4, flip=True)
        assert (every == torch.from_numpy(found[at]).permute(2, 0, 1)).flatten(1).all(1).sum() >= 1
    moved = (found != images).any(axis=(1, 2, 3)).mean()
    assert 0.95 < moved < 1  # one of 162 stays as it is


def test_a_limited_pool_that_nothing_draws_from_is_not_made() -> None:
    few = {"pool_limit_mi_pl": 5}
    combined = {"mi_combined": {"lam_pl": 0.5, "lam_ol": 0.5, "threshold": 0.1}}
    prepare(sweep(options=few, defenses=[{"mi_ol": {"lam": 0.5}}]))
    prepare(sweep(options={**few, "pool_limit_in_mi_combined": False}, defenses=[combined]))
    for drawn in (combined, {"mi_pl": {"lam": 0.5}}, {"chain": {"of": ["flip_crop", {"mi_pl": {"lam": 0.5}}]}}):
        with pytest.raises(ValueError, match="a pool must hold an image of each class"):
            prepare(sweep(options=few, defenses=[drawn]))
