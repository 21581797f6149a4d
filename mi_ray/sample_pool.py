"""p_s(x, y): the clean images that mixup inference mixes into its input (paper, Sec. 3.1)."""

import hashlib
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from mi_ray.data import flip_and_crop
from mi_ray.data.disk_images import DiskImages, Pictures, chosen, image_hash
from mi_ray.randomness import Draws


def _as_uint8(images: Any) -> Tensor:
    """uint8 NHWC or float [0, 1] NCHW -> uint8 NCHW. Raises ValueError for anything else."""
    tensor = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images)
    if tensor.ndim == 4 and tensor.dtype == torch.uint8 and tensor.shape[-1] in (1, 3):
        return tensor.permute(0, 3, 1, 2).contiguous()
    if tensor.ndim == 4 and tensor.is_floating_point() and tensor.min() >= 0 and tensor.max() <= 1:
        return tensor.mul(255).round().to(torch.uint8)
    raise ValueError(
        "pool images must be uint8 [N, H, W, C] or float [N, C, H, W] in [0, 1]; "
        f"got {tensor.dtype} {list(tensor.shape)}"
    )


def image_hashes(images: Tensor) -> list[bytes]:
    """One hash of the pixels for each image of a uint8 [N, C, H, W] tensor."""
    return [image_hash(image) for image in images.cpu().numpy()]


def _hashes(images: Any) -> list[bytes]:
    """`image_hashes` of images as a pool takes them."""
    return images.hashes if isinstance(images, DiskImages) else image_hashes(_as_uint8(images))


class SamplePool:
    """Clean labelled images from which x_s is drawn, kept on the device as uint8 and sorted by class.

    images: uint8 [N, H, W, C], or float [0, 1] [N, C, H, W] (rounded to 8 bits). labels: [N] in 0..classes-1.
    source: "train". The test split would put the image under attack into its own defense, as the paper's released
        code does; it is refused unless `allow_test` is set.
    augmented: each drawn image is flipped and cropped (padding 4) at random, as the released code does.
    foreign: the pool is of another dataset, so that "another label" has no meaning: all images are drawn from.

    Raises ValueError for a refused source, or images or labels of another form.
    """

    def __init__(
        self,
        images: Any,
        labels: Any,
        source: Literal["train", "test"] = "train",
        *,
        classes: int | None = None,
        allow_test: bool = False,
        augmented: bool = False,
        foreign: bool = False,
    ) -> None:
        if source != "train" and not (source == "test" and allow_test):
            raise ValueError(
                "a sample pool must be of the train split, since a pool of the test split holds the image under "
                f"attack; got source={source!r}. Allowed: 'train', or 'test' with the option pool_split: test"
            )
        pixels = images if isinstance(images, DiskImages) else _as_uint8(images)
        label = torch.as_tensor(np.asarray(labels)).long().reshape(-1)
        if len(pixels) != len(label) or len(label) == 0 or label.min() < 0:
            raise ValueError(f"a pool needs one label >= 0 an image; got {len(pixels)} images, {len(label)} labels")
        self.source, self.augmented, self.foreign = source, augmented, foreign
        self.classes = int(label.max()) + 1 if classes is None else classes
        order = torch.argsort(label, stable=True)
        # What stays on disk is read when it is drawn.
        if isinstance(pixels, DiskImages):
            self.images: Tensor | DiskImages = pixels.take(order.numpy())
        else:
            self.images = pixels[order].contiguous()
        self.labels = label[order]
        self.counts = torch.bincount(self.labels, minlength=self.classes)
        self.starts = torch.cumsum(self.counts, 0) - self.counts
        if len(self.counts) > self.classes:
            raise ValueError(f"pool labels must be below classes={self.classes}; got {int(label.max())}")
        if not foreign and (self.counts == 0).any():
            absent = torch.nonzero(self.counts == 0).flatten().tolist()
            raise ValueError(f"a pool must hold an image of each class; none of class {absent[:10]}")

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pool's images, labels and options, by which content keys tell pools apart."""
        digest = hashlib.sha256(f"{self.augmented}{self.foreign}{self.classes}{list(self.images.shape)}".encode())
        whole = self.images
        digest.update(b"".join(whole.hashes) if isinstance(whole, DiskImages) else whole.cpu().numpy().tobytes())
        digest.update(self.labels.cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device) -> "SamplePool":
        """Move the images to a device, in place; returns the pool."""
        if isinstance(self.images, Tensor):
            self.images = self.images.to(device)
        self.labels = self.labels.to(device)
        self.counts, self.starts = self.counts.to(device), self.starts.to(device)
        return self

    def holds(self, images: Any) -> int:
        """How many of these images (as in the constructor) are in the pool, pixel for pixel."""
        own = set(self.images.hashes if isinstance(self.images, DiskImages) else image_hashes(self.images))
        return sum(image in own for image in _hashes(images))

    def refuse_evaluated(self, images: Any) -> None:
        """Raise ValueError when the pool holds an evaluated point: it would be mixed into its own defense."""
        held = self.holds(images)
        if held:
            raise ValueError(f"a sample pool must hold no evaluated point; it holds {held}")

    def draw(
        self, draws: Draws, predicted: Int64[Tensor, "B"], which: Literal["predicted", "other"]
    ) -> Float[Tensor, "E B C H W"]:
        """x_s for each execution and point, with replacement.

        which: "predicted" draws the class ŷ (MI-PL); "other" draws a class uniformly over the others, then an image
        uniformly in the class (MI-OL). predicted: ŷ [B]. The same two uniforms an execution serve every setting.
        """
        u = draws.uniform(2).to(torch.float64)
        if self.foreign:
            index = (u[..., 1] * len(self)).long()
        else:
            klass = predicted.expand(u.shape[:2])
            if which == "other":
                other = (u[..., 0] * (self.classes - 1)).long()
                klass = other + (other >= klass)
            index = self.starts[klass] + (u[..., 1] * self.counts[klass]).long()
        images = self._taken(index)
        if self.augmented:
            images = flip_and_crop(images, draws.uniform(3), padding=4, flip=True)
        return images.float().div(255)

    def _taken(self, index: Int64[Tensor, "E B"]) -> Shaped[Tensor, "E B C H W"]:
        """The images at these places; of those on disk each is read once."""
        if isinstance(self.images, Tensor):
            return self.images[index.to(self.images.device)]
        places, back = np.unique(index.cpu().numpy(), return_inverse=True)
        read = torch.from_numpy(self.images[places]).permute(0, 3, 1, 2)
        return read.to(self.labels.device)[torch.from_numpy(back.reshape(index.shape)).to(self.labels.device)]


def without(images: Pictures, labels: npt.NDArray[Any], evaluated: Pictures) -> tuple[Any, Any, int]:
    """Leave out of a split every exact copy of an evaluated point: (images, labels, number left out); uint8 NHWC."""
    taken = set(_hashes(evaluated))
    keep = np.array([image not in taken for image in _hashes(images)])
    return chosen(images, np.flatnonzero(keep)), labels[keep], int((~keep).sum())


def augmented_once(images: npt.NDArray[np.uint8], seed: int) -> npt.NDArray[np.uint8]:
    """A copy of a pool's images, uint8 [N, H, W, C], each flipped and cropped once, as it is anew in `SamplePool.draw`.

    The released code does so: it fills its pool from a loader that augments, and draws from what it was handed.
    """
    units, found = np.random.default_rng([seed, len(images)]).random((len(images), 3)), []
    # Some at a time: the copies of all at once would need an index of 8 bytes for each value.
    for first in range(0, len(images), 1000):
        some = torch.from_numpy(images[first : first + 1000]).permute(0, 3, 1, 2)
        copies = flip_and_crop(some, torch.from_numpy(units[first : first + 1000]), padding=4, flip=True)
        found.append(copies.permute(0, 2, 3, 1).numpy())
    return np.ascontiguousarray(np.concatenate(found))
