"""A dataset, where one comes from, and how its pixels become a network's input."""

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, Shaped, UInt8
from torch import Tensor

from mi_ray.data.disk_images import DiskImages, Pictures
from mi_ray.parameters import Parameterized, Registry
from mi_ray.randomness import draw_points

Images = UInt8[np.ndarray, "N H W 3"]
Labels = Int64[np.ndarray, "N"]
MOST_CLASSES = 100_000  # A label beyond is no class: a network would have an output for each.


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits of RGB images, uint8 [N, H, W, 3], with labels in 0..classes-1; images may stay on disk."""

    name: str
    classes: int
    train_images: Pictures
    train_labels: Int64[np.ndarray, "train"]
    test_images: Pictures
    test_labels: Int64[np.ndarray, "test"]

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(images) != len(labels):
                raise ValueError(
                    f"{self.name}: {split} images must be uint8 [N, H, W, 3] with one label each; got {images.dtype} "
                    f"{list(images.shape)} with {len(labels)} labels"
                )
            if len(labels) == 0:
                raise ValueError(f"{self.name}: the {split} split must hold images; it is empty")
            if labels.min() < 0 or labels.max() >= self.classes:
                raise ValueError(
                    f"{self.name}: {split} labels must be in 0..{self.classes - 1}; got {labels.min()} to {labels.max()}"
                )
        if self.classes < 2:
            raise ValueError(f"{self.name}: labels must be of at least 2 classes; all are {self.train_labels[0]}")
        if self.classes > MOST_CLASSES:
            raise ValueError(
                f"{self.name}: labels must be the numbers of classes, from 0 on and below {MOST_CLASSES:,}; got labels up to "
                f"{self.classes - 1}"
            )
        sizes = [list(images.shape[1:3]) for images in (self.train_images, self.test_images)]
        if sizes[0] != sizes[1]:
            raise ValueError(f"{self.name}: train and test images must have one size; got {sizes[0]} and {sizes[1]}")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all images and labels of both splits, by which content keys tell datasets apart."""
        digest = hashlib.sha256(f"{self.classes}".encode())
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(b"".join(array.hashes) if isinstance(array, DiskImages) else np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def points(self, order: Literal["drawn", "first"], seed: int) -> list[int]:
        """All test indices in the order in which a study evaluates them: drawn by seed, or as they stand."""
        total = len(self.test_labels)
        return draw_points(seed, total) if order == "drawn" else list(range(total))


def to_unit(images: npt.NDArray[np.uint8]) -> Float[Tensor, "N C H W"]:
    """uint8 [N, H, W, C] -> float32 [N, C, H, W] in [0, 1]: the one conversion from pixels, used everywhere."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float().div(255).contiguous()


def batches(seed: int, epoch: int, total: int, batch: int, rank: int, world: int) -> Iterator[tuple[int, Any]]:
    """(step, this worker's indices of the step's batch) for each step of an epoch.

    The images are shuffled by (seed, epoch), and each of `world` workers gets an equal share of every batch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(total)
    for step in range(total // batch):
        yield step, order[step * batch : (step + 1) * batch][rank::world]


def flip_and_crop(
    images: Shaped[Tensor, "*S C H W"], u: Float[Tensor, "*S 3"], padding: int, flip: bool
) -> Shaped[Tensor, "*S C H W"]:
    """Training augmentation, batched: a crop of the zero-padded image and a horizontal flip with probability 1/2.

    u: three unit uniforms an image, for its row, its column and its flip.
    """
    height, width = images.shape[-2:]
    shift = (u[..., :2] * (2 * padding + 1)).long() - padding
    rows = torch.arange(height, device=images.device) + shift[..., 0, None]
    columns = torch.arange(width, device=images.device) + shift[..., 1, None]
    if flip:
        columns = torch.where(u[..., 2, None] < 0.5, columns, width - 1 - columns)
    inside = ((rows >= 0) & (rows < height))[..., :, None] & ((columns >= 0) & (columns < width))[..., None, :]
    grid = rows.clamp(0, height - 1)[..., :, None] * width + columns.clamp(0, width - 1)[..., None, :]
    flat = images.flatten(-2)
    taken = flat.gather(-1, grid.flatten(-2)[..., None, :].expand_as(flat)).view_as(images)
    return taken * inside[..., None, :, :]


@dataclass(frozen=True)
class Source(Parameterized):
    """Where a dataset comes from. A subclass writes `load`."""

    @abstractmethod
    def load(self) -> Dataset:
        """The dataset. Raises ValueError, with the remedy, when it is absent or damaged."""


SOURCES: Registry[Source] = Registry("dataset")


def whole_labels(what: str, found: npt.NDArray[Any]) -> Labels:
    """Labels as int64 [N]. Raises ValueError, naming where they are from, unless each is one whole number from 0 on."""
    flat = found.reshape(-1) if found.size == len(found) else found
    if flat.ndim != 1 or not (np.issubdtype(flat.dtype, np.integer) or np.issubdtype(flat.dtype, np.floating)):
        raise ValueError(f"{what} must hold one whole number for each image; got {found.dtype} {list(found.shape)}")
    if not len(flat):
        raise ValueError(f"{what} must hold one whole number for each image; it is empty")
    wrong = np.flatnonzero(~(np.isfinite(flat) & (flat >= 0) & (flat == np.floor(flat))))
    if len(wrong):
        value = "none" if np.isnan(flat[wrong[0]]) else flat[wrong[0]]
        raise ValueError(f"{what} must hold one whole number from 0 on for each image; image {wrong[0]} has {value}")
    return flat.astype(np.int64)
