"""Total variation: an image is made anew from some of its pixels, as smooth as they let it be (Guo et al., 2018)."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_ray.defenses.base import DEFENSES, RandomTransform
from mi_ray.parameters import integer, number
from mi_ray.randomness import Draws
from mi_ray.sample_pool import SamplePool

STEP = 8**-0.5  # of both variables; their product times the squared norm of the differences, 8, must not exceed 1


def _differences(z: Tensor) -> tuple[Tensor, Tensor]:
    """What the next pixel below, and to the right, has more; 0 at the end."""
    down, right = torch.zeros_like(z), torch.zeros_like(z)
    down[..., :-1, :] = z[..., 1:, :] - z[..., :-1, :]
    right[..., :-1] = z[..., 1:] - z[..., :-1]
    return down, right


def _adjoint(down: Tensor, right: Tensor) -> Tensor:
    """The adjoint of `_differences`, which is minus the divergence."""
    found = -down - right
    found[..., 1:, :] += down[..., :-1, :]
    found[..., 1:] += right[..., :-1]
    return found


def minimised(
    x: Float[Tensor, "*S H W"], kept: Bool[Tensor, "*S H W"], weight: float, steps: int
) -> Float[Tensor, "*S H W"]:
    """The image z with the least |z - x|² / 2 over the kept pixels + weight · (isotropic) total variation of z.

    The primal-dual method of Chambolle and Pock (2011), which is near the minimum after some tens of steps.
    """
    z = torch.where(kept, x, 0.5)
    ahead, share = z, STEP * kept
    down, right = torch.zeros_like(z), torch.zeros_like(z)
    for _ in range(steps):
        below, beside = _differences(ahead)
        down, right = down + STEP * below, right + STEP * beside
        length = (torch.hypot(down, right) / weight).clamp_min(1)
        down, right = down / length, right / length
        before, z = z, (z - STEP * _adjoint(down, right) + share * x) / (1 + share)
        ahead = 2 * z - before
    return z


@final
@DEFENSES.register
@dataclass(frozen=True)
class TotalVariation(RandomTransform):
    """Pixels are dropped at random, and the image with the least total variation that fits the others is taken.

    Guo et al. (2018) have λ = 0.03 and drop one half of the pixels. The minimum is found by many small steps; an adversary's
    gradient is that of the identity, as in Athalye et al. (2018), who broke it so.
    """

    name: ClassVar[str] = "total_variation"
    label: ClassVar[str] = "Total variation (Guo et al.)"
    colour: ClassVar[str] = "#6699CC"
    marker: ClassVar[str] = "x"
    smooth: ClassVar[bool] = False
    weight: float = number("weight λ of the total variation", 0.03, low=0.0)
    keep: float = number("share of the pixels that is kept", 0.5, low=0.0, high=1.0)
    steps: int = integer("steps of the minimisation", 20, low=1, high=10_000)

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Whether a pixel is kept is drawn once for its three channels."""
        copies = x.expand(draws.executions, *x.shape)
        if self.weight == 0 and self.keep == 1:
            return copies
        kept = draws.uniform_images((1, *x.shape[2:])) < self.keep
        with torch.no_grad():
            return minimised(copies, kept.expand(copies.shape), max(self.weight, 1e-12), self.steps)

    def backward_transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """The image itself."""
        return x.expand(draws.executions, *x.shape)

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """With every pixel kept and λ = 0 nothing changes."""
        return {"weight": 0.0, "keep": 1.0}
