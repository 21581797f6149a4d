"""A barrage of random transforms (Raff et al., 2019): each execution applies k of ten groups, in a random order.

Every transform takes many images at once, each with its own random parameters. Where a transform rounds, the gradient
passes straight through, so that an adversary can differentiate the whole defense; attacks that do so take most of its gain
away (Sitawarin et al., 2022). Each of the paper's groups has those members here that need no library of image processing.
"""

from collections.abc import Callable, Sequence
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
from mi_ray.resampling import read_at
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


def _each_by(which: Tensor, groups: Sequence[Group], x: Images, u: Tensor, noise: Noise) -> Images:
    """Each image transformed by the group of its number. u: uniforms of each image, or of each image and group."""
    parts, places = [], []
    for number, group in enumerate(groups):
        at = torch.nonzero(which == number).flatten()
        if len(at):
            own = u[at] if u.ndim == 2 else u[at, number]
            parts.append(group(x[at], own, Noise(*(each[at] for each in noise))))
            places.append(at)
    return torch.cat(parts)[torch.cat(places).argsort()]


def _one_of(*groups: Group) -> Group:
    """One of several transforms, which the last uniform of an image chooses."""

    def chosen(x: Images, u: Units, noise: Noise) -> Images:
        """Each image transformed by the one that it has drawn."""
        return _each_by((u[:, -1] * len(groups)).long(), groups, x, u, noise)

    return chosen


def colour_precision(x: Images, u: Units, noise: Noise) -> Images:
    """From 8 to 200 levels a pixel."""
    levels = _between(u[:, 0], 8, 200).floor()
    return straight_through(x, (x * levels).round() / levels)


def jpeg_noise(x: Images, u: Units, noise: Noise) -> Images:
    """Compressed as a JPEG file of quality 55 to 95; the gradient is that of JPEG without its rounding."""
    quality = (55 + 40 * u[:, 0]).floor()
    return straight_through(jpeg(x, quality, rounded=False), jpeg(x, quality)) if x.requires_grad else jpeg(x, quality)


def _grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """The places of pixels from -1 to 1, columns [1, 1, W] and rows [1, H, 1]."""
    height, width = x.shape[-2:]
    columns = (2 * torch.arange(width, device=x.device) + 1) / width - 1
    rows = (2 * torch.arange(height, device=x.device) + 1) / height - 1
    return columns[None, None, :], rows[None, :, None]


def _read(x: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """The image read at these places [M, H, W], bilinearly, its border continued."""
    grid = torch.stack([columns.expand(len(x), *x.shape[2:]), rows.expand(len(x), *x.shape[2:])], -1)
    return read_at(x, grid, outside="border")


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


def _gaussian(x: Images, u: Units, noise: Noise) -> Images:
    return x + _between(u[:, 0], 0.01, 0.08) * noise.normal


def _uniform(x: Images, u: Units, noise: Noise) -> Images:
    return x + _between(u[:, 0], 0.02, 0.16) * (2 * noise.uniform - 1)


def _speckle(x: Images, u: Units, noise: Noise) -> Images:
    return x + _between(u[:, 0], 0.03, 0.24) * x * noise.normal


def _salt(x: Images, u: Units, noise: Noise) -> Images:
    return torch.where(noise.uniform < _between(u[:, 0], 0.01, 0.08), (noise.normal > 0).to(x), x)


def noise_injection(x: Images, u: Units, noise: Noise) -> Images:
    """Gaussian, uniform or speckle noise, or salt and pepper."""
    return _one_of(_gaussian, _uniform, _speckle, _salt)(x, u, noise)


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


def _stretch(x: Images, u: Units, noise: Noise) -> Images:
    reach = _between(u[:, 0], 1.5, 2.5) * x.std((1, 2, 3), keepdim=True).clamp_min(0.03)
    return ((x - x.mean((1, 2, 3), keepdim=True)) / (2 * reach) + 0.5).clamp(0, 1)


def _gamma(x: Images, u: Units, noise: Noise) -> Images:
    return x.clamp(1e-3, 1) ** _between(u[:, 0], 0.7, 1.4)


def contrast(x: Images, u: Units, noise: Noise) -> Images:
    """Stretched, so that 1.5 to 2.5 standard deviations about the mean fill the range, or a gamma from 0.7 to 1.4."""
    return _one_of(_stretch, _gamma)(x, u, noise)


def grey(x: Images, u: Units, noise: Noise) -> Images:
    """A random mixture of the channels in place of all of them, or of a part of the colours."""
    weights = u[:, :3] + 0.1
    mixed = (x * (weights / weights.sum(1, keepdim=True))[..., None, None]).sum(1, keepdim=True)
    share = torch.where(u[:, 3] < 0.5, 1.0, u[:, 4])[:, None, None, None]
    return (1 - share) * x + share * mixed


def _near(x: Images, reach: int, *, across: bool) -> list[Tensor]:
    """The image moved by -reach to reach pixels along one side, its border continued."""
    wide = F.pad(x, (reach, reach, 0, 0) if across else (0, 0, reach, reach), mode="replicate")
    side = x.shape[-1 if across else -2]
    return [wide.narrow(-1 if across else -2, at, side) for at in range(2 * reach + 1)]


def _blur(x: Images, u: Units, noise: Noise) -> Images:
    spread = _between(u[:, 0], 0.3, 1.0)
    weights = [torch.exp(-0.5 * (at / spread) ** 2) for at in range(-REACH, REACH + 1)]
    total = torch.stack(weights).sum(0)
    for across in (True, False):
        x = (
            torch.stack([w * moved for w, moved in zip(weights, _near(x, REACH, across=across), strict=True)]).sum(0)
            / total
        )
    return x


def _mean(x: Images, u: Units, noise: Noise) -> Images:
    return F.avg_pool2d(F.pad(x, (1,) * 4, mode="replicate"), 3, stride=1)


def _median(x: Images, u: Units, noise: Noise) -> Images:
    """The median of 3 x 3 pixels: of the columns' largest minimum, the median of their medians and their least maximum."""
    sorted_columns = _sorted(*_near(x, 1, across=False))
    least, middle, most = (_sorted(*_near(column, 1, across=True)) for column in sorted_columns)
    return _sorted(least[2], middle[1], most[0])[1]


def _sorted(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    middle, most = torch.minimum(high, c), torch.maximum(high, c)
    return torch.minimum(low, middle), torch.maximum(low, middle), most


def denoising(x: Images, u: Units, noise: Noise) -> Images:
    """A Gaussian blur of up to 1 pixel, the mean of 3 x 3, or the median of 3 x 3."""
    return _one_of(_blur, _mean, _median)(x, u, noise)


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
    marker: ClassVar[str] = "+"
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
            found = _each_by(order[:, place], GROUPS, found, own, noise).clamp(0, 1)
        return found.unflatten(0, copies.shape[:2])

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """With k = 0 no group is applied."""
        return {"k": 0}
