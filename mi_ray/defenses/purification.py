"""Purification: a denoiser of a person's own, or one step of a diffusion model, before F (Nie et al., 2022)."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mi_ray.defenses.base import DEFENSES, RandomTransform
from mi_ray.denoising import denoised
from mi_ray.networks import OwnNetwork
from mi_ray.own_code import in_a_line, own_code
from mi_ray.parameters import choice, factory, integer, number, text
from mi_ray.randomness import Draws
from mi_ray.sample_pool import SamplePool

TRIED = 2  # images that a denoiser is tried on
ALONE = 1e-4  # how far a pixel may be from what it is without other images beside its own
BEYOND = 1.0  # how far outside of [0, 1] a pixel may lie: farther out, it is of another scale


@final
@DEFENSES.register
@dataclass(frozen=True)
class Purify(RandomTransform):
    """Noise is added to an image and a denoiser of yours takes it away again, several times over.

    The denoiser maps images in [0, 1] to images of the same shape; where its `forward` has a parameter `sigma`, it is told
    the noise's σ for each image. What it returns is not clipped, so that no gradient is lost at the ends of the scale. It is
    in eval mode and in float32, draws nothing itself, and treats each image alone.

    Of several steps, the exact gradient keeps the image before each and computes each again on its way back (Chen et al.,
    2016), so that they need the memory of one, for one more pass each. The identity stands for denoisers in BPDA (Athalye et
    al., 2018). Raises ValueError for images of a size that the denoiser does not take, or where it breaks these rules.
    """

    name: ClassVar[str] = "purify"
    label: ClassVar[str] = "Purification"
    colour: ClassVar[str] = "#88CCEE"
    marker: ClassVar[str] = "3"
    factory: str = factory("function of yours that builds the denoiser; its code runs")
    noise: float = number("standard deviation σ of the noise before each step, in [0, 1] pixels; 0 is none", low=0.0)
    weights: str | None = text(
        "file with the denoiser's weights, .safetensors or of `torch.save`; those of the factory when left out", None
    )
    steps: int = integer("passes through the denoiser, one after another", 1, low=0, high=1000)
    gradient: Literal["exact", "identity"] = choice(
        "what an adversary's gradient goes through: the denoiser, or the identity in its place",
        ("exact", "identity"),
        "exact",
    )

    def networks(self) -> tuple[OwnNetwork, ...]:
        """The denoiser, unless it is never asked."""
        return (OwnNetwork(self.factory, self.weights),) if self.steps else ()

    def network_passes(self, gradient: bool) -> tuple[int, int]:
        """(forward, backward) passes of a copy: one a step each way.

        Where an exact gradient goes back through several steps, each step is computed again, so that no more than one is kept.
        """
        if not gradient or not self.is_smooth():
            return self.steps, 0
        return self.steps * (2 if self.steps > 1 else 1), self.steps

    def is_random(self) -> bool:
        """Noise is all that it draws."""
        return self.noise > 0 and self.steps > 0

    def is_smooth(self) -> bool:
        """Not where the identity stands for it."""
        return self.gradient == "exact" or self.steps == 0

    def check_images(self, height: int, width: int) -> None:
        """Try the denoiser on a few images of that size. Raises ValueError for one that cannot serve."""
        for own in self.networks():
            _try(own.on(torch.device("cpu")), self.factory, self.noise, self.is_smooth(), (height, width))

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Each step draws noise of its own, as unit normals that are scaled, so that neighbouring σ share it."""
        copies = x.expand(draws.executions, *x.shape)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.is_smooth()):
            for own in self.networks():
                network = own.on(x.device)
                for _ in range(self.steps):
                    if self.noise:
                        copies = copies + self.noise * draws.normal_images(x.shape[1:])
                    copies = self._denoised(network, copies)
        return copies

    def _denoised(self, network: nn.Module, copies: Float[Tensor, "E B C H W"]) -> Float[Tensor, "E B C H W"]:
        """The copies after one pass of the denoiser."""
        images, again = copies.flatten(0, 1), self.steps > 1 and torch.is_grad_enabled() and copies.requires_grad
        if again:
            found = checkpoint(denoised, network, images, self.noise, use_reentrant=False, preserve_rng_state=False)
        else:
            found = denoised(network, images, self.noise)
        return found.unflatten(0, copies.shape[:2])

    def backward_transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor | None:
        """The image itself, where the identity stands for the denoiser."""
        return None if self.is_smooth() else x.expand(draws.executions, *x.shape)

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """No step."""
        return {"factory": "torch.nn:Identity", "noise": 0.0, "steps": 0}


@lru_cache(maxsize=64)
def _try(network: nn.Module, name: str, sigma: float, exact: bool, side: tuple[int, int]) -> None:
    """Raise ValueError unless a denoiser keeps its rules on images of noise. exact: whether gradients go through it."""
    must = f"purify: the denoiser of {name} must"
    x = torch.rand(TRIED, 3, *side, generator=torch.Generator().manual_seed(0)).requires_grad_(exact)
    with (
        torch.set_grad_enabled(exact),
        own_code(f"{must} run on images [B, 3, {side[0]}, {side[1]}]"),
    ):
        found, again, alone = (denoised(network, images, sigma) for images in (x, x, x[1:]))
    if not found.isfinite().all():
        raise ValueError(f"{must} return finite numbers; of some images it makes NaN or infinite pixels")
    if not torch.equal(found, again):
        raise ValueError(
            f"{must} return the same for the same image; two passes differ: noise is drawn by purify, by key"
        )
    if not torch.allclose(found[1:], alone, atol=ALONE):
        raise ValueError(f"{must} treat each image by itself; beside another an image becomes something else")
    low, high = found.min().item(), found.max().item()
    if low < -BEYOND or high > 1 + BEYOND:
        raise ValueError(f"{must} return images in [0, 1]; of such images it makes pixels from {low:.3g} to {high:.3g}")
    if exact:
        _refuse_gradient(must, found, x)


def _refuse_gradient(must: str, found: Tensor, x: Tensor) -> None:
    """Raise ValueError unless a finite gradient goes back through a denoiser."""
    why = "it detaches them" if not found.requires_grad else None
    if why is None:
        try:
            gradient = torch.autograd.grad(found, x, torch.ones_like(found))[0]
        except RuntimeError as error:
            why = in_a_line(error)
        else:
            why = None if gradient.isfinite().all() else "it is NaN or infinite"
    if why is not None:
        raise ValueError(f"{must} let a gradient through to its images, or `gradient: identity` stands for it; {why}")
