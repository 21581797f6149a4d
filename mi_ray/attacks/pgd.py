"""Projected gradient descent (Madry et al., 2018; paper, Eq. 18)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, adversarial_loss, bound, project
from mi_ray.parameters import flag, integer, integers, number
from mi_ray.randomness import Draws, Key
from mi_ray.threat_model import ThreatModel


def signed_steps(
    gradient: Callable[[Tensor, int], Tensor],
    centre: Float[Tensor, "B C H W"],
    start: Float[Tensor, "B C H W"],
    epsilon: float,
    step_size: float,
    steps: int,
) -> Iterator[Float[Tensor, "B C H W"]]:
    """Eq. 18: each iterate of x <- project(x + step_size * sign(gradient(x, step))), float32, `steps` of them."""
    x = start
    for step in range(steps):
        x = project(x + step_size * gradient(x, step).sign(), centre, epsilon)
        yield x


@final
@ATTACKS.register
@dataclass(frozen=True)
class Pgd(Attack):
    """PGD in the max norm: uniform random start, sign steps on the cross-entropy, last iterate (Eq. 18).

    One trajectory serves every number of steps; every restart is kept.
    """

    name: ClassVar[str] = "pgd"
    stop_parameter: ClassVar[str | None] = "steps"
    steps: tuple[int, ...] = integers("number of steps; a list is read off one trajectory", (10,), low=1, high=100_000)
    step_size: float = number("length of a step, in [0, 1] pixels", 2 / 255, low=0.0, high=1.0)
    restarts: int = integer("independent random starts", 1, low=1)
    random_start: bool = flag("start uniformly in the ball, not at the clean image", True)

    def stops(self) -> tuple[int, ...]:
        """The step counts."""
        return self.steps

    def cost(self) -> tuple[int, int]:
        """One forward and one backward a step, and one forward at each stop for its loss."""
        steps = max(self.steps)
        return self.restarts * (steps + len(self.steps)), self.restarts * steps

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        key: Key,
        points: Sequence[int],
    ) -> Adversarial:
        """See `Attack.run`."""
        images, losses = [], []
        for restart in range(self.restarts):
            at = key.at(restart=restart)

            def gradient(iterate: Tensor, step: int, at: Key = at) -> Tensor:
                iterate = iterate.detach().requires_grad_(True)
                with torch.enable_grad(), bound(model, at.at(step=step + 1), points):
                    loss = adversarial_loss(model, iterate, labels, threat).sum()
                return torch.autograd.grad(loss, iterate)[0]

            start = x
            if self.random_start:
                unit = Draws(at, points, 1, 0, x.device).uniform_images(x.shape[1:])[0]
                start = project(x + threat.epsilon * (2 * unit - 1), x, threat.epsilon)
            path = signed_steps(gradient, x, start, threat.epsilon, self.step_size, max(self.steps))
            kept = [iterate for step, iterate in enumerate(path, start=1) if step in self.steps]
            images.append(torch.stack(kept))
            with torch.no_grad(), bound(model, at.at(step=0), points):
                losses.append(torch.stack([adversarial_loss(model, iterate, labels, threat) for iterate in kept]))
        return Adversarial(torch.stack(images), torch.stack(losses), self.steps)
