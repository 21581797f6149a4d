"""Projected gradient descent (Madry et al., 2018; paper, Eq. 18), and what all attacks with steps of one length share."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.base import ATTACKS, NOT_FINITE, Adversarial, Attack, Batch, Begun, Defended, scorer
from mi_ray.parameters import flag, integer, integers, number
from mi_ray.threat_model import LONGEST_STEP, NORMS, SMALLEST_STEP, Norm


def all_zero(gradient: Float[Tensor, "B *rest"]) -> Int64[Tensor, "B"]:
    """1 for each point whose whole gradient is zero: a step along it goes nowhere, and masked gradients look like this.

    For a gradient that is not finite it is `NOT_FINITE`, so that whoever adds these up knows without waiting for the device:
    the sign of NaN is 0, and an image that does not move looks robust.
    """
    # A NaN is both the smallest and the largest entry. Two such passes take a tenth of what comparing each entry does.
    flat = gradient.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    return ((low == 0) & (high == 0)).long() + NOT_FINITE * ~(low.isfinite() & high.isfinite())


OneRestart = tuple[Tensor, Tensor, Tensor, Tensor]  # images, loss, success, zero gradients: each with an entry a stop


@dataclass(frozen=True)
class Restarted(Attack):
    """Steps of a fixed length from one or several starts: one run serves every number of steps, every restart is kept.

    A subclass writes what one restart leaves at its stops (`one_restart`).
    """

    stop_parameter: ClassVar[str | None] = "steps"
    steps: tuple[int, ...] = integers("number of steps; a list is read off one trajectory", (10,), low=1, high=100_000)
    step_size: float = number("length of a step in the norm of the ball", 2 / 255, low=SMALLEST_STEP, high=LONGEST_STEP)
    restarts: int = integer("independent random starts", 1, low=1)
    random_start: bool = flag("start uniformly in the ball, not at the clean image", True)

    @property
    def step_length(self) -> float:
        """`step_size`, which is one."""
        return self.step_size

    @abstractmethod
    def one_restart(self, model: nn.Module, batch: Batch, begun: Begun | None) -> OneRestart:
        """(images, loss, success, number of zero gradients until then) of one restart, with one entry for each stop.

        The batch's key names the restart. begun: where it stands; None at its beginning.
        """

    @final
    def stops(self) -> tuple[int, ...]:
        """The numbers of steps at which the trajectory is read."""
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
            self.one_restart(model, batch.at(restart=restart), begun and begun.restart(restart))
            for restart in range(self.restarts)
        ]
        images, loss, success, zero = (torch.stack(column) for column in zip(*found, strict=True))
        return Adversarial(images, loss, success, self.steps, zero)

    def start(self, batch: Batch, begun: Begun | None) -> tuple[Float[Tensor, "B C H W"], range]:
        """(the images at which a restart's path begins, the steps that are left), from the start or from where it stands."""
        if begun is not None:
            return begun.images[0], range(begun.steps, max(self.steps))
        return batch.random_start() if self.random_start else batch.x, range(max(self.steps))


@dataclass(frozen=True)
class StepAttack(Restarted):
    """Steps of a fixed length along one trajectory, whose images at the stops are the result.

    A subclass writes the trajectory (`path`) and how its images are compared (`measure`).
    """

    @abstractmethod
    def path(self, model: nn.Module, batch: Batch, begun: Begun | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """After each step of one restart its images [B, C, H, W], and the gradient [B, ...] that the step followed.

        The batch's key names the restart. begun: where it stands; None at its beginning, and always for an attack that
        cannot go on.
        """

    @abstractmethod
    def measure(
        self, model: nn.Module, images: Float[Tensor, "S B C H W"], batch: Batch
    ) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B"]]:
        """(loss, success) of the images at the stops, as `Adversarial` holds them; asked where `scores` says so."""

    @final
    def scores(self, behind: bool) -> bool:
        """Whether its images are scored: not one restart's on F itself, where nothing is chosen.

        A study has F's output on them anyway. behind: whether a defense stands before F.
        """
        return self.restarts > 1 or behind

    @final
    def one_restart(self, model: nn.Module, batch: Batch, begun: Begun | None) -> OneRestart:
        """The path's own images at the stops, with what `measure` says of them where `scores` asks for it."""
        done, zero = (0, torch.zeros_like(batch.labels)) if begun is None else (begun.steps, begun.zero_gradients[0])
        kept = []
        for step, (found, gradient) in enumerate(self.path(model, batch, begun), start=done + 1):
            zero = zero + all_zero(gradient)
            if step in self.steps:
                kept.append((found, zero))
        images, zeros = (torch.stack(column) for column in zip(*kept, strict=True))
        loss = success = torch.full(images.shape[:2], torch.nan, device=images.device)
        if self.scores(isinstance(model, Defended) and model.defense.components() != ()):
            loss, success = self.measure(model, images, batch)
        return images, loss, success, zeros


@final
@ATTACKS.register
@dataclass(frozen=True)
class Pgd(StepAttack):
    """PGD: uniform random start, steepest ascent on the cross-entropy (by its sign in the max norm), last iterate (Eq. 18)."""

    name: ClassVar[str] = "pgd"
    display_name: ClassVar[str] = "PGD"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    goes_on: ClassVar[bool] = True

    def path(self, model: nn.Module, batch: Batch, begun: Begun | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """At every step x becomes project(x + step_size * sign(gradient of the loss at x)), in float32 (Eq. 18); in L2 the
        gradient is divided by its length instead, and in L1 the hundredth of its entries that is largest moves.
        """
        x, steps = self.start(batch, begun)
        for step in steps:
            x = x.detach().requires_grad_(True)
            with torch.enable_grad(), batch.bound(model, step=step + 1):
                loss = batch.criterion.loss(model(x).float(), batch.labels).sum()
            gradient = torch.autograd.grad(loss, x)[0]
            x = batch.stepped(x.detach(), self.step_size, gradient)
            yield x, gradient

    def measure(
        self, model: nn.Module, images: Float[Tensor, "S B C H W"], batch: Batch
    ) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B"]]:
        """Scored by the model's answer; where the model is random, by a single draw."""
        with torch.no_grad(), batch.bound(model, step=0):
            logits = torch.stack([scorer(model)(iterate).float() for iterate in images])
        return batch.criterion.loss(logits, batch.labels), batch.criterion.reached(logits, batch.labels)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """One forward and one backward a step, and one forward at each stop that is scored."""
        steps, passes = max(self.steps), 1 + sum(parts)
        # Of a defense's answer no gradient reaches ŷ, nor a detector behind a hard decision.
        differentiated = len(parts) != 1
        backward = differentiated + (parts[-1] if parts else 0)
        scored = len(self.steps) if self.scores(bool(parts)) else 0
        return self.restarts * (steps + scored) * passes, self.restarts * steps * backward
