"""A barrage of random transforms (Raff et al., 2019): each execution applies k of ten groups, in a random order.

Every transform takes many images at once, each with its own random parameters. What rounds passes the gradient straight
through, so that an adversary differentiates all of it: behind that gradient most of the defense's gain goes (Sitawarin et
al., 2022). Of the paper's groups those members stand here that need no library of image processing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mi_ray.defenses.base import DEFENSES, RandomTransform
from mi_ray.defenses.compression import FROM_YCC, TO_YCC, jpeg, mix_channels, straight_through
from mi_ray.parameters import integer
from mi_ray.randomness import Draws
from mi_ray.sample_pool import SamplePool

UNITS = 5  # uniforms that a group may use for an image
REACH = 2  # pixels to each side that denoising looks at


class Noise(NamedTuple):
    """Random numbers of each pixel, [M, C, H, W]: standard normals, and uniforms in [0, 1)."""

    normal: Tensor
    uniform: Tensor


Images = Float[Tensor, "M C H W"]
Units = Float[Tensor, "M U"]
Group = Callable[[Tensor, Tensor, Noise], Tensor]


def _between(unit: Tensor, low: float, high: float) -> Tensor:
    """A number of each image in [low, high), as [M, 1, 1, 1]."""
    return (low + (high - low) * unit)[:, None, None, None]


def _one_of(unit: Tensor, *choices: Tensor) -> Tensor:
    """Of each image one of several results."""
    which = (unit * len(choices)).long()
    return torch.stack(choices).gather(0, which.view(1, -1, 1, 1, 1).expand(1, *choices[0].shape))[0]


def colour_precision(x: Images, u: Units, noise: Noise) -> Images:
    """From 8 to 200 levels a pixel."""
    levels = _between(u[:, 0], 8, 200).floor()
    return straight_through(x, (x * levels).round() / levels)


def jpeg_noise(x: Images, u: Units, noise: Noise) -> Images:
    """A JPEG file of quality 55 to 95."""
    quality = (55 + 40 * u[:, 0]).floor()
    smooth = jpeg(x, quality, rounded=False)
    return straight_through(smooth, jpeg(x, quality)) if x.requires_grad else jpeg(x, quality)


def _grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """The places of pixels from -1 to 1, columns [1, 1, W] and rows [1, H, 1]."""
    height, width = x.shape[-2:]
    columns = (2 * torch.arange(width, device=x.device) + 1) / width - 1
    rows = (2 * torch.arange(height, device=x.device) + 1) / height - 1
    return columns[None, None, :], rows[None, :, None]


def _read(x: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """The image read at these places [M, H, W], bilinearly, its border continued."""
    grid = torch.stack([columns.expand(len(x), *x.shape[2:]), rows.expand(len(x), *x.shape[2:])], -1)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def swirl(x: Images, u: Units, noise: Noise) -> Images:
    """Turned about a random place, by up to 2 radians there and less farther away."""
    columns, rows = _grid(x)
    at = [_between(u[:, position], -0.5, 0.5)[..., 0] for position in (0, 1)]
    across, down = columns - at[0], rows - at[1]
    angle = _between(u[:, 2], -2, 2)[..., 0] * torch.exp(
        -torch.hypot(across, down) / _between(u[:, 3], 0.2, 0.8)[..., 0]
    )
    cos, sin = angle.cos(), angle.sin()
    return _read(x, at[0] + cos * across - sin * down, at[1] + sin * across + cos * down)


def noise_injection(x: Images, u: Units, noise: Noise) -> Images:
    """Gaussian, uniform or speckle noise, or salt and pepper."""
    size = _between(u[:, 1], 0.01, 0.08)
    even = 2 * noise.uniform - 1
    hit = noise.uniform < size
    salted = torch.where(hit, (noise.normal > 0).to(x), x)
    return _one_of(u[:, 0], x + size * noise.normal, x + 2 * size * even, x + 3 * size * x * noise.normal, salted)


def fft_perturbation(x: Images, u: Units, noise: Noise) -> Images:
    """Up to a fifth of the frequencies lost, and the others up to a tenth stronger or weaker; the mean stays."""
    found = torch.fft.rfft2(x)
    half = found.shape[-1]
    kept = (noise.uniform[..., :half] >= _between(u[:, 0], 0, 0.2)).to(x)
    factor = kept * (1 + _between(u[:, 1], 0, 0.1) * noise.normal[..., :half].clamp(-2, 2))
    factor[..., 0, 0] = 1
    return torch.fft.irfft2(found * factor, s=list(x.shape[-2:]))


def zoom(x: Images, u: Units, noise: Noise) -> Images:
    """A part of 80 to 95 % of the side, enlarged to the whole."""
    columns, rows = _grid(x)
    share = _between(u[:, 0], 0.8, 0.95)[..., 0]
    room = 1 - share
    return _read(
        x,
        share * columns + room * (2 * u[:, 1, None, None] - 1),
        share * rows + room * (2 * u[:, 2, None, None] - 1),
    )


def colour_space(x: Images, u: Units, noise: Noise) -> Images:
    """Luminance and the two differences of colour, each moved by up to 0.05."""
    shift = 0.1 * u[:, :3] - 0.05
    return mix_channels(mix_channels(x, TO_YCC) + shift[..., None, None], FROM_YCC)


def contrast(x: Images, u: Units, noise: Noise) -> Images:
    """Stretched, so that a few of the darkest and of the lightest pixels are clipped, or a gamma from 0.7 to 1.4."""
    ordered = x.flatten(1).sort(1).values
    last = ordered.shape[1] - 1
    ends = torch.stack([0.02 * u[:, 1] * last, (1 - 0.02 * u[:, 2]) * last], 1).long()
    low, high = ordered.gather(1, ends)[:, :, None, None, None].unbind(1)
    stretched = ((x - low) / (high - low).clamp_min(0.1)).clamp(0, 1)
    return _one_of(u[:, 0], stretched, x.clamp(1e-3, 1) ** _between(u[:, 3], 0.7, 1.4))


def grey(x: Images, u: Units, noise: Noise) -> Images:
    """A random mixture of the channels in place of all of them, or of a part of the colours."""
    weights = u[:, :3] + 0.1
    mixed = (x * (weights / weights.sum(1, keepdim=True))[..., None, None]).sum(1, keepdim=True)
    share = torch.where(u[:, 3] < 0.5, 1.0, u[:, 4])[:, None, None, None]
    return (1 - share) * x + share * mixed


def denoising(x: Images, u: Units, noise: Noise) -> Images:
    """A Gaussian blur of up to 1 pixel, the mean of 3 x 3, or the median of 3 x 3."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (REACH,) * 4, mode="replicate")
    spread = _between(u[:, 1], 0.3, 1.0)
    offsets = range(-REACH, REACH + 1)
    weights = {at: torch.exp(-0.5 * (at / spread) ** 2) for at in offsets}
    total = sum(weights.values(), torch.zeros_like(spread))
    across = sum(
        (weights[at] * padded[..., REACH + at : REACH + at + width] for at in offsets), 0 * padded[..., :width]
    )
    blurred = sum((weights[at] * across[..., REACH + at : REACH + at + height, :] for at in offsets), 0 * x)
    near = [
        padded[..., REACH + down : REACH + down + height, REACH + right : REACH + right + width]
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    ]
    around = torch.stack(near)
    return _one_of(u[:, 0], blurred / total**2, around.mean(0), around.median(0).values)


GROUPS: tuple[Group, ...] = (
    colour_precision,
    jpeg_noise,
    swirl,
    noise_injection,
    fft_perturbation,
    zoom,
    colour_space,
    contrast,
    grey,
    denoising,
)


@final
@DEFENSES.register
@dataclass(frozen=True)
class Barrage(RandomTransform):
    """Each execution draws k of ten groups of transforms, and their order (BaRT; Raff et al., 2019).

    The groups: colour precision, JPEG, swirl, noise, frequencies, zoom, colour space, contrast, grey, denoising.
    """

    name: ClassVar[str] = "barrage"
    label: ClassVar[str] = "Barrage (Raff et al.)"
    colour: ClassVar[str] = "#661100"
    marker: ClassVar[str] = "X"
    smooth: ClassVar[bool] = False
    k: int = integer("how many groups an execution applies", 5, low=0, high=len(GROUPS))

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """One after another, each on all copies that have drawn it for their next place. Clipped to [0, 1] in between."""
        copies = x.expand(draws.executions, *x.shape)
        if self.k == 0:
            return copies
        count = len(GROUPS)
        units = draws.uniform(count * (UNITS + 1)).flatten(0, 1)
        noise = Noise(*(make(x.shape[1:]).flatten(0, 1) for make in (draws.normal_images, draws.uniform_images)))
        order, own = units[:, :count].argsort(1), units[:, count:].unflatten(1, (count, UNITS))
        found = copies.flatten(0, 1)
        for place in range(self.k):
            parts, places = [], []
            for number, group in enumerate(GROUPS):
                at = torch.nonzero(order[:, place] == number).flatten()
                if len(at):
                    parts.append(group(found[at], own[at, number], Noise(*(each[at] for each in noise))))
                    places.append(at)
            found = torch.cat(parts)[torch.cat(places).argsort()]
            found = found.clamp(0, 1)
        return found.unflatten(0, copies.shape[:2])

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """With k = 0 nothing is applied."""
        return {"k": 0}
