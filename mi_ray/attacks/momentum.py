"""Iterated gradient signs with momentum (MI-FGSM; Dong et al., 2018), through a random defense as well."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_ray.attacks.base import ATTACKS, Batch, Begun, score
from mi_ray.attacks.eot_pgd import attacked, gradient_cost, log_mean_gradient
from mi_ray.attacks.pgd import StepAttack
from mi_ray.parameters import integer, number
from mi_ray.threat_model import NORMS, Norm


@final
@ATTACKS.register
@dataclass(frozen=True)
class Momentum(StepAttack):
    """Each step follows the sign (in L2 the direction) of g = decay g + ∇/|∇|_1, the gradients of all steps so far.

    ∇ is the gradient of the cross-entropy of the mean answer, with fresh draws of a random defense at each step.
    """

    name: ClassVar[str] = "momentum"
    display_name: ClassVar[str] = "MI-FGSM"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    decay: float = number("weight of the gradients so far", 1.0, low=0.0, high=1.0)
    eot: int | None = integer("executions averaged at each step; the study's N where left out", None, low=1)
    scoring_draws: int = integer("independent draws by which images at a stop are compared", 5, low=1)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """One gradient a step, and `scoring_draws` answers at each stop that is scored."""
        forward, backward = gradient_cost(parts)
        draws = self.scoring_draws if parts else 1
        scoring = len(self.steps) * draws * (1 + sum(parts)) if self.scores(bool(parts)) else 0
        steps = max(self.steps)
        return self.restarts * (steps * forward + scoring), self.restarts * steps * backward

    def path(self, model: nn.Module, batch: Batch, begun: Begun | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Steps of steepest ascent along the gradients so far, each divided by its L1 norm, older ones scaled by `decay`."""
        aim = attacked(model)
        x, steps = self.start(batch, begun)
        total = torch.zeros_like(x)
        for step in steps:
            with batch.bound(aim, step=step + 1):
                gradient = batch.criterion.sign * log_mean_gradient(aim, x, batch.labels)[0]
            size = gradient.abs().flatten(1).sum(1).clamp_min(torch.finfo(x.dtype).tiny)
            total = self.decay * total + gradient / size[:, None, None, None]
            x = batch.stepped(x, self.step_size, total)
            yield x, gradient

    def measure(
        self, model: nn.Module, images: Float[Tensor, "S B C H W"], batch: Batch
    ) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B"]]:
        """Scored by the defense's answers in draws of its own."""
        return score(model, images, batch, self.scoring_draws)
