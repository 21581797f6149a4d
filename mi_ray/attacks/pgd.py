"""Projected gradient descent (Madry et al., 2018; paper, Eq. 18), and what all attacks with steps of one length share."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, Begun, scorer
from mi_ray.parameters import flag, integer, integers, number


def all_zero(gradient: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B"]:
    """1 for each point whose whole gradient is zero: a step along it goes nowhere, and masked gradients look like this."""
    return (gradient == 0).flatten(1).all(1).long()


@dataclass(frozen=True)
class StepAttack(Attack):
    """Steps of a fixed length: one trajectory serves every number of steps, and every restart is kept.

    A subclass writes the trajectory (`path`) and how its images are compared (`measure`).
    """

    stop_parameter: ClassVar[str | None] = "steps"
    steps: tuple[int, ...] = integers("number of steps; a list is read off one trajectory", (10,), low=1, high=100_000)
    step_size: float = number("length of a step, in [0, 1] pixels", 2 / 255, low=0.0, high=1.0)
    restarts: int = integer("independent random starts", 1, low=1)
    random_start: bool = flag("start uniformly in the ball, not at the clean image", True)

    @abstractmethod
    def path(
        self, model: nn.Module, batch: Batch, zero: Int64[Tensor, "B"], begun: Begun | None = None
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """The images after each step of the restart that the batch's key names.

        zero: counts, in place, at how many steps a point's whole gradient was zero. begun: where this restart stands;
        None at its beginning, and always for an attack that cannot go on.
        """

    @abstractmethod
    def measure(
        self, model: nn.Module, images: Float[Tensor, "S B C H W"], batch: Batch
    ) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B"]]:
        """(loss, success) of the images at the stops, as `Adversarial` holds them; asked where `scores` says so."""

    @final
    def scores(self, parts: object) -> bool:
        """Whether its images are scored: not one restart's on F itself, where nothing is chosen.

        A study has F's output on them anyway. parts: the defense that the model has, if any.
        """
        return self.restarts > 1 or bool(parts)

    @final
    def stops(self) -> tuple[int, ...]:
        """The step counts."""
        return self.steps

    @final
    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """Every restart from its beginning."""
        return self._all_restarts(model, batch, None)

    @final
    def go_on(self, begun: Begun, model: nn.Module, batch: Batch) -> Adversarial:
        """Every restart from where it stands.

        Raises ValueError for an attack that cannot go on, for another number of restarts, and for a stop that lies
        behind.
        """
        if not self.goes_on or min(self.steps) <= begun.steps or len(begun.images) != self.restarts:
            raise ValueError(
                f"{self.name} goes on to stops beyond {begun.steps} steps with its {self.restarts} restarts, if at all; "
                f"got stops {list(self.steps)} and {len(begun.images)} restarts"
            )
        return self._all_restarts(model, batch, begun)

    def _all_restarts(self, model: nn.Module, batch: Batch, begun: Begun | None) -> Adversarial:
        found = [
            self._one_restart(model, batch.at(restart=restart), begun and begun.restart(restart))
            for restart in range(self.restarts)
        ]
        images, loss, success, zero = (torch.stack(column) for column in zip(*found, strict=True))
        return Adversarial(images, loss, success, self.steps, zero)

    def _one_restart(
        self, model: nn.Module, batch: Batch, begun: Begun | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(images, loss, success, zero gradients so far) at each stop."""
        zero = torch.zeros(len(batch), dtype=torch.int64, device=batch.x.device)
        if begun is not None:
            zero += begun.zero_gradients[0]
        numbered = enumerate(self.path(model, batch, zero, begun), start=1 + (begun.steps if begun else 0))
        kept = [(iterate, zero.clone()) for step, iterate in numbered if step in self.steps]
        images, zeros = (torch.stack(column) for column in zip(*kept, strict=True))
        loss = success = torch.full(images.shape[:2], torch.nan, device=images.device)
        defense: Any = getattr(model, "defense", None)
        if self.scores(defense and defense.components()):
            loss, success = self.measure(model, images, batch)
        return images, loss, success, zeros

    def start(self, batch: Batch, begun: Begun | None) -> tuple[Float[Tensor, "B C H W"], range]:
        """(where a trajectory is, the steps that are left): at its start, or where it stands."""
        if begun is not None:
            return begun.images[0], range(begun.steps, max(self.steps))
        return batch.random_start() if self.random_start else batch.x, range(max(self.steps))


@final
@ATTACKS.register
@dataclass(frozen=True)
class Pgd(StepAttack):
    """PGD in the max norm: uniform random start, sign steps on the cross-entropy, last iterate (Eq. 18)."""

    name: ClassVar[str] = "pgd"
    display_name: ClassVar[str] = "PGD"
    goes_on: ClassVar[bool] = True

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """One forward and one backward a step, and one forward at each stop that is scored."""
        steps, passes = max(self.steps), 1 + sum(parts)
        # Of a defense's answer no gradient reaches ŷ, nor a detector behind a hard decision.
        differentiated = len(parts) != 1
        backward = differentiated + (parts[-1] if parts else 0)
        scored = len(self.steps) if self.scores(parts) else 0
        return self.restarts * (steps + scored) * passes, self.restarts * steps * backward

    def path(
        self, model: nn.Module, batch: Batch, zero: Int64[Tensor, "B"], begun: Begun | None = None
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """x <- project(x + step_size * sign(gradient of the loss at x)), in float32, for every step."""
        x, steps = self.start(batch, begun)
        for step in steps:
            x = x.detach().requires_grad_(True)
            with torch.enable_grad(), batch.bound(model, step=step + 1):
                loss = batch.criterion.loss(model(x).float(), batch.labels)
            gradient = torch.autograd.grad(loss.sum(), x)[0]
            zero += all_zero(gradient)
            x = batch.projected(x.detach() + self.step_size * gradient.sign())
            yield x

    def measure(
        self, model: nn.Module, images: Float[Tensor, "S B C H W"], batch: Batch
    ) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B"]]:
        """By one draw, where the model is random."""
        with torch.no_grad(), batch.bound(model, step=0):
            logits = torch.stack([scorer(model)(iterate).float() for iterate in images])
        return batch.criterion.loss(logits, batch.labels), batch.criterion.reached(logits, batch.labels)
