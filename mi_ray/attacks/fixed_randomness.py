"""What an adversary reaches that may fix a defense's draws, or that counts success while it optimises (DiffBreak, 2025)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import nn

from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch
from mi_ray.attacks.eot_pgd import attacked, gradient_cost, log_mean_gradient
from mi_ray.parameters import integer, number
from mi_ray.threat_model import NORMS, SMALLEST_STEP, Norm


@final
@ATTACKS.register
@dataclass(frozen=True)
class FixedRandomness(Attack):
    """EOT-PGD twice, each judged by draws of its own and not by those that report.

    The first restart meets the same draws at every step, and is successful where it fools the defense under them: the
    adversary who may fix the randomness. The second meets fresh draws at each step, and is successful where an iterate
    fooled the defense in the draws of the step after it: success counted while it optimises. Neither number is the
    accuracy of a defense whose draws nobody knows; both say how much of that hangs on nobody knowing them.
    """

    name: ClassVar[str] = "fixed_randomness"
    display_name: ClassVar[str] = "Fixed randomness"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    needs_defense: ClassVar[bool] = True
    steps: int = integer("steps of each of the two", 20, low=1, high=100_000)
    step_size: float = number("length of a step, as a share of epsilon", 0.25, low=SMALLEST_STEP, high=1.0)
    eot: int | None = integer("executions averaged at each step; the study's N where left out", None, low=1)

    def stops(self) -> tuple[int, ...]:
        """Its number of steps alone."""
        return (self.steps,)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """A gradient and an answer at each step of both."""
        forward, backward = gradient_cost(parts)
        return 2 * self.steps * (forward + 1 + sum(parts)), 2 * self.steps * backward

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """Both trajectories, each from the same random start."""
        aim = attacked(model)
        images, successes = [], []
        for fixed in (True, False):
            x, ever = batch.random_start(), torch.zeros(len(batch), device=batch.x.device)
            for step in range(self.steps):
                with batch.bound(aim, step=1 if fixed else step + 1):
                    gradient = batch.criterion.sign * log_mean_gradient(aim, x, batch.labels)[0]
                x = batch.stepped(x, self.step_size * batch.epsilon, gradient)
                with torch.no_grad(), batch.bound(model, step=1 if fixed else step + 2):
                    reached = batch.criterion.reached(model(x).float(), batch.labels)
                ever = torch.maximum(ever, reached)
            images.append(x)
            successes.append(reached if fixed else ever)
        success = torch.stack(successes)[:, None]
        unused = torch.full_like(success, -1, dtype=torch.int64)
        return Adversarial(torch.stack(images)[:, None], torch.zeros_like(success), success, self.stops(), unused)
