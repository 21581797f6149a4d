"""Additive noise (Tabacof and Valle, 2016)."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from mi_ray.defenses.base import DEFENSES, RandomTransform
from mi_ray.parameters import number
from mi_ray.randomness import Draws
from mi_ray.sample_pool import SamplePool


@final
@DEFENSES.register
@dataclass(frozen=True)
class GaussianNoise(RandomTransform):
    """x + N(0, σ²), not clipped (Tables 4 and 5, whose σ are on a [-1, 1] scale: half of them here)."""

    name: ClassVar[str] = "gaussian_noise"
    label: ClassVar[str] = "Gaussian noise"
    colour: ClassVar[str] = "#56B4E9"
    marker: ClassVar[str] = "o"
    sigma: float = number("standard deviation σ, in [0, 1] pixels (the paper's 0.04 is 0.02 here)", low=0.0)

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Unit normals are drawn and then scaled, so that neighbouring σ share their noise."""
        return x + self.sigma * draws.normal_images(x.shape[1:])

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """With σ = 0 nothing is added."""
        return {"sigma": 0.0}


@final
@DEFENSES.register
@dataclass(frozen=True)
class UniformNoise(RandomTransform):
    """x + U(-a, a), not clipped (in the paper's released code only)."""

    name: ClassVar[str] = "uniform_noise"
    label: ClassVar[str] = "Uniform noise"
    colour: ClassVar[str] = "#999999"
    marker: ClassVar[str] = "s"
    amplitude: float = number("half-width a, in [0, 1] pixels", low=0.0)

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Unit uniforms are drawn and then scaled, so that neighbouring a share their noise."""
        return x + self.amplitude * (2 * draws.uniform_images(x.shape[1:]) - 1)

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """With a = 0 nothing is added."""
        return {"amplitude": 0.0}
