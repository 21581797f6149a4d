"""Random rotation, random crop and pad (Xie et al., 2018), random crop and resize (Guo et al., 2018).

All on the device and in float by default. `eight_bit` reproduces the released code, which passes through 8-bit
images with truncation; its gradient is that of the identity (straight through).
"""

from dataclasses import dataclass
from math import pi
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mi_ray.defenses.base import DEFENSES, RandomTransform
from mi_ray.parameters import choice, flag, number, pair
from mi_ray.randomness import Draws
from mi_ray.resampling import Interpolation, read_at
from mi_ray.sample_pool import SamplePool


def truncate_to_8_bits(x: Tensor) -> Tensor:
    """The released code's way to an 8-bit image: [0, 1] -> [-1, 1] -> (v + 1) / 2 * 255, truncated. Straight through.

    Its arithmetic in float32 makes 63 of the 256 grey levels fall by one.
    """
    levels = ((2 * x.detach() - 1) + 1) / 2 * 255
    return x + (levels.clamp(0, 255).floor() / 255 - x).detach()


@final
@DEFENSES.register
@dataclass(frozen=True)
class RandomRotation(RandomTransform):
    """Rotation about the centre by an angle ~ U(-d, d), same size (paper, Sec. 4.3)."""

    name: ClassVar[str] = "random_rotation"
    label: ClassVar[str] = "Random rotation"
    colour: ClassVar[str] = "#009E73"
    marker: ClassVar[str] = "^"
    degrees: float = number("largest angle d, in degrees", low=0.0, high=180.0)
    interpolation: Interpolation = choice(
        "how a pixel between pixels is read",
        ("bilinear", "nearest"),
        "bilinear",
        option="rotation_interpolation",
    )
    fill: float = number("value outside the image, in [0, 1]", 0.0, low=0.0, high=1.0)
    eight_bit: bool = flag("pass through an 8-bit image, as the released code", False, option="eight_bit")

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Each execution reads each image through a sampling grid of its own."""
        if self.degrees == 0:
            unturned = truncate_to_8_bits(x) if self.eight_bit else x
            return unturned.expand(draws.executions, *x.shape)
        angle = (2 * draws.uniform(1)[..., 0].flatten() - 1) * (self.degrees * pi / 180)
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        height, width = x.shape[-2:]
        # theta maps an output pixel to where it is read; the aspect keeps a turn a turn where an image is not square.
        theta = torch.stack(
            [
                torch.stack([cos, -sin * height / width, zero], 1),
                torch.stack([sin * width / height, cos, zero], 1),
            ],
            1,
        )
        source = (truncate_to_8_bits(x) if self.eight_bit else x) - self.fill
        copies = source.expand(draws.executions, *x.shape).flatten(0, 1)
        grid = F.affine_grid(theta, list(copies.shape), align_corners=False)
        turned = read_at(copies, grid, self.interpolation)
        return (turned + self.fill).unflatten(0, (draws.executions, len(x)))

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """With d = 0 nothing is turned."""
        return {"degrees": 0.0}


def _refuse_larger(what: str, sides: tuple[int, int], most: int) -> None:
    """Raise ValueError where the larger side is longer than the image's."""
    if sides[1] > most:
        raise ValueError(f"{what} must not exceed the image's side, {most} pixels; got {list(sides)}")


def _square(
    u: Float[Tensor, "E B U"], sides: tuple[int, int], height: int, width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Side, top, left [E, B] of a square in an image, by the first three uniforms, and the others [E, B, U - 3]."""
    low, high = sides
    side = low + (u[..., 0] * (high - low + 1)).long()
    top = (u[..., 1] * (height - side + 1)).long()
    left = (u[..., 2] * (width - side + 1)).long()
    return side, top, left, u[..., 3:]


@dataclass(frozen=True)
class _Crop(RandomTransform):
    crop: tuple[int, int] = pair("smallest and largest side of the random square crop, in pixels", low=1)
    eight_bit: bool = flag("pass through an 8-bit image, as the released code", False, option="eight_bit")

    def check_images(self, height: int, width: int) -> None:
        """Raise ValueError where the largest crop does not fit into the image."""
        _refuse_larger(f"{self.name}.crop", self.crop, min(height, width))

    def _box(self, draws: Draws, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Side, top, left [E, B] of a crop, and two further uniforms [E, B, 2]; side ~ U{lo..hi}, place uniform."""
        return _square(draws.uniform(5), self.crop, height, width)

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """A crop of the whole image, which is 32 pixels wide and high."""
        return {"crop": [32, 32]}


def _shifted_rows(size: int, side: Tensor, read: Tensor, write: Tensor) -> Bool[Tensor, "E B S S"]:
    """One-hot matrices M with (M v)[write + i] = v[read + i] for i < side, zero elsewhere."""
    out = torch.arange(size, device=side.device)
    source = out + (read - write)[..., None]
    inside = (out >= write[..., None]) & (out < (write + side)[..., None])
    return (source[..., None] == out) & inside[..., None]


def _resized_rows(size: int, side: Tensor, start: Tensor) -> Float[Tensor, "E B S S"]:
    """Matrices of bilinear resizing (half-pixel centres, no antialias) of v[start : start + side] to `size`."""
    out = torch.arange(size, device=side.device)
    scale = side[..., None].float() / size
    position = ((out + 0.5) * scale - 0.5).clamp_min(0)
    first = position.floor()
    weight = position - first
    last = side[..., None] - 1
    low = torch.minimum(first.long(), last) + start[..., None]
    high = torch.minimum(first.long() + 1, last) + start[..., None]
    return (low[..., None] == out) * (1 - weight)[..., None] + (high[..., None] == out) * weight[..., None]


def _shrunk_rows(size: int, side: Tensor, start: Tensor) -> Float[Tensor, "E B S S"]:
    """Matrices of bilinear resizing (half-pixel centres, no antialias) of v to `side` values from `start` on, else zero."""
    out = torch.arange(size, device=side.device)
    place = out - start[..., None]
    position = ((place + 0.5) * (size / side[..., None].float()) - 0.5).clamp(0, size - 1)
    first = position.floor()
    weight = position - first
    low = first.long()
    high = (low + 1).clamp_max(size - 1)
    inside = (place >= 0) & (place < side[..., None])
    read = (low[..., None] == out) * (1 - weight)[..., None] + (high[..., None] == out) * weight[..., None]
    return read * inside[..., None]


def _rows_and_columns(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows · x · columnsᵀ for each execution, point and channel: two small matrix products in place of a gather."""
    return rows[:, :, None].to(x) @ x @ columns[:, :, None].to(x).transpose(-1, -2)


@final
@DEFENSES.register
@dataclass(frozen=True)
class RandomPad(_Crop):
    """A random crop of random side, zero-padded back at a random place (after Xie et al., 2018)."""

    name: ClassVar[str] = "random_pad"
    label: ClassVar[str] = "Crop and pad (Xie et al.)"
    colour: ClassVar[str] = "#A6A61B"
    marker: ClassVar[str] = "v"

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Crop and pad as two selection matrices; every kept pixel keeps its value bit for bit."""
        height, width = x.shape[-2:]
        side, top, left, place = self._box(draws, height, width)
        new_top = (place[..., 0] * (height - side + 1)).long()
        new_left = (place[..., 1] * (width - side + 1)).long()
        source = truncate_to_8_bits(x) if self.eight_bit else x
        return _rows_and_columns(
            source, _shifted_rows(height, side, top, new_top), _shifted_rows(width, side, left, new_left)
        )


@final
@DEFENSES.register
@dataclass(frozen=True)
class RandomResize(_Crop):
    """A random crop of random side, resized bilinearly back (after Guo et al., 2018)."""

    name: ClassVar[str] = "random_resize"
    label: ClassVar[str] = "Crop and resize (Guo et al.)"
    colour: ClassVar[str] = "#0072B2"
    marker: ClassVar[str] = "D"

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Crop and resize as two interpolation matrices; with `eight_bit` the result is an 8-bit image too."""
        height, width = x.shape[-2:]
        side, top, left, _ = self._box(draws, height, width)
        source = truncate_to_8_bits(x) if self.eight_bit else x
        resized = _rows_and_columns(source, _resized_rows(height, side, top), _resized_rows(width, side, left))
        if not self.eight_bit:
            return resized
        return resized + ((resized.detach() * 255 + 0.5).floor() / 255 - resized).detach()


@final
@DEFENSES.register
@dataclass(frozen=True)
class ResizePad(RandomTransform):
    """The whole image, resized to a random side and zero-padded back at a random place, as Xie et al. (2018) have it.

    `random_pad` is the paper's reading of it, which crops. Theirs pads to a larger image; here it keeps its size.
    """

    name: ClassVar[str] = "resize_pad"
    label: ClassVar[str] = "Resize and pad (Xie et al.)"
    colour: ClassVar[str] = "#999933"
    marker: ClassVar[str] = "2"
    side: tuple[int, int] = pair("smallest and largest side of the resized image, in pixels", low=1)

    def check_images(self, height: int, width: int) -> None:
        """Raise ValueError where the largest side is larger than the image."""
        _refuse_larger("resize_pad.side", self.side, min(height, width))

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Resizing and placing as two interpolation matrices."""
        height, width = x.shape[-2:]
        side, top, left, _ = _square(draws.uniform(3), self.side, height, width)
        return _rows_and_columns(x, _shrunk_rows(height, side, top), _shrunk_rows(width, side, left))

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """A side of the whole image, which is 32 pixels wide and high."""
        return {"side": [32, 32]}
