"""What throws details of an image away: JPEG, few grey levels, no colour (Guo et al., 2018; Xu et al., 2018).

All on the device, many images at once. What is rounded has no gradient: an adversary's is that of the same arithmetic
without the rounding (BPDA; Athalye et al., 2018).
"""

from dataclasses import dataclass
from functools import cache
from math import cos, pi, sqrt
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mi_ray.defenses.base import DEFENSES, RandomTransform
from mi_ray.parameters import integer, number
from mi_ray.randomness import Draws
from mi_ray.sample_pool import SamplePool

SIDE = 8  # of the blocks of JPEG, in pixels
# Tables K.1 and K.2 of the standard (ITU-T T.81): the steps of luminance and of chrominance at quality 50.
LUMINANCE = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""
CHROMINANCE = """
17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
""" + " ".join(["99"] * 32)
# Rows: what red, green and blue give to luminance and to the two differences of colour (JFIF), and back.
TO_YCC = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
FROM_YCC = [[1.0, 0.0, 1.402], [1.0, -0.344136, -0.714136], [1.0, 1.772, 0.0]]


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """(the discrete cosine transform of a block [64, 64], the two tables [2, 64]) on a device."""
    scale = [sqrt((1 if row == 0 else 2) / SIDE) for row in range(SIDE)]
    angles = [[pi * row * (2 * column + 1) / (2 * SIDE) for column in range(SIDE)] for row in range(SIDE)]
    cosines = torch.tensor([[scale[row] * cos(angle) for angle in angles[row]] for row in range(SIDE)])
    tables = [[float(step) for step in text.split()] for text in (LUMINANCE, CHROMINANCE)]
    return torch.kron(cosines, cosines).to(device), torch.tensor(tables, device=device)


def mix_channels(x: Float[Tensor, "*S 3 H W"], matrix: list[list[float]]) -> Float[Tensor, "*S 3 H W"]:
    """Each channel of the result is the sum of the image's three, weighed by a row of the matrix."""
    red, green, blue = x.unbind(-3)
    return torch.stack([a * red + b * green + c * blue for a, b, c in matrix], -3)


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """A value with the gradient of x, where that has one."""
    return value.detach() + (x - x.detach()) if x.requires_grad else value


def _steps(quality: Float[Tensor, "M"]) -> Float[Tensor, "M 2 64"]:
    """The steps of both tables at a quality from 1 to 100, as libjpeg scales them."""
    _, tables = _constants(quality.device)
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality).floor()
    return ((tables * scale[:, None, None] + 50) / 100).floor().clamp(1, 255)


def _quantised(plane: Tensor, steps: Float[Tensor, "M 64"], *, rounded: bool) -> Tensor:
    """A plane [M, H, W] around 0, its sides multiples of 8, whose coefficients are rounded to whole steps."""
    transform = _constants(plane.device)[0].to(plane)
    count, height, width = plane.shape
    blocks = plane.view(count, height // SIDE, SIDE, width // SIDE, SIDE).transpose(2, 3)
    found = blocks.flatten(3) @ transform.T
    if rounded:
        wide = steps[:, None, None]
        found = straight_through(found, (found / wide).round() * wide)
    return (found @ transform).view(blocks.shape).transpose(2, 3).reshape(count, height, width)


def _doubled(plane: Float[Tensor, "M H W"]) -> Float[Tensor, "M H 2*W"]:
    """Twice as many columns: each is three quarters of its own and one of the next nearest, as decoders enlarge colours."""
    wide = F.pad(plane, (1, 1), mode="replicate")
    halves = [0.75 * plane + 0.25 * near for near in (wide[..., :-2], wide[..., 2:])]
    return torch.stack(halves, -1).flatten(-2)


def jpeg(x: Float[Tensor, "M 3 H W"], quality: Float[Tensor, "M"], *, rounded: bool = True) -> Float[Tensor, "M 3 H W"]:
    """Images in [0, 1] as JPEG files of these qualities give them back, colours at half the resolution (4:2:0).

    rounded: whether anything is rounded or clipped; without, only colours lose anything. Entropy coding loses nothing, so
    that it is left out.
    """
    height, width = x.shape[-2:]
    whole = 2 * SIDE
    pixels = straight_through(x, (x.clamp(0, 1) * 255).round() / 255) * 255 if rounded else x * 255
    padded = F.pad(pixels, (0, -width % whole, 0, -height % whole), mode="replicate")
    luminance, *colours = mix_channels(padded, TO_YCC).unbind(1)
    steps = _steps(quality)
    planes = [_quantised(luminance - 128, steps[:, 0], rounded=rounded) + 128]
    for colour in colours:
        half = F.avg_pool2d(colour[:, None], 2)[:, 0]
        coded = _quantised(half, steps[:, 1], rounded=rounded)
        planes.append(_doubled(_doubled(coded).transpose(1, 2)).transpose(1, 2))
    decoded = mix_channels(torch.stack(planes, 1), FROM_YCC)[..., :height, :width]
    return (straight_through(decoded, decoded.clamp(0, 255).round()) if rounded else decoded) / 255


@final
@DEFENSES.register
@dataclass(frozen=True)
class Jpeg(RandomTransform):
    """The image as a JPEG file of some quality gives it back (Dziugaite et al., 2016; Guo et al., 2018)."""

    name: ClassVar[str] = "jpeg"
    label: ClassVar[str] = "JPEG"
    colour: ClassVar[str] = "#44AA99"
    marker: ClassVar[str] = "<"
    draws: ClassVar[bool] = False
    smooth: ClassVar[bool] = False
    quality: int = integer("quality of the file", low=1, high=100)

    def _coded(self, x: Tensor, draws: Draws, *, rounded: bool) -> Tensor:
        quality = torch.full((len(x),), float(self.quality), device=x.device)
        return jpeg(x, quality, rounded=rounded).expand(draws.executions, *x.shape)

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """All executions are the same."""
        return self._coded(x, draws, rounded=True)

    def backward_transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Without rounding it is linear: colours at half the resolution."""
        return self._coded(x, draws, rounded=False)

    @classmethod
    def identity(cls) -> None:
        """There are none: it rounds at any quality."""


@final
@DEFENSES.register
@dataclass(frozen=True)
class BitDepth(RandomTransform):
    """Pixels rounded to 2^bits levels (feature squeezing; Xu et al., 2018; Guo et al., 2018)."""

    name: ClassVar[str] = "bit_depth"
    label: ClassVar[str] = "Bit depth"
    colour: ClassVar[str] = "#117733"
    marker: ClassVar[str] = ">"
    draws: ClassVar[bool] = False
    smooth: ClassVar[bool] = False
    bits: int = integer("bits of a pixel", low=1, high=8)

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """The nearest of the levels that are equally far apart from 0 to 1."""
        most = 2**self.bits - 1
        return ((x.clamp(0, 1) * most).round() / most).expand(draws.executions, *x.shape)

    def backward_transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """The image itself."""
        return x.expand(draws.executions, *x.shape)

    @classmethod
    def identity(cls) -> None:
        """There are none: it rounds at any depth."""


@final
@DEFENSES.register
@dataclass(frozen=True)
class Greyscale(RandomTransform):
    """An image whose colours are mixed with its luminance, (1 - a) x + a grey."""

    name: ClassVar[str] = "greyscale"
    label: ClassVar[str] = "Greyscale"
    colour: ClassVar[str] = "#777777"
    marker: ClassVar[str] = "H"
    draws: ClassVar[bool] = False
    amount: float = number("share a of the grey image", 1.0, low=0.0, high=1.0)

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Luminance as television has it, of the weights 0.299, 0.587 and 0.114."""
        grey = mix_channels(x, [TO_YCC[0]] * 3)
        return ((1 - self.amount) * x + self.amount * grey).expand(draws.executions, *x.shape)

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """With a = 0 nothing is mixed in."""
        return {"amount": 0.0}
