"""Projected gradient descent (Madry et al., 2018; paper, Eq. 18), and what every attack by sign steps shares."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.base import (
    ATTACKS,
    Adversarial,
    Attack,
    Begun,
    adversarial_loss,
    bound,
    logits_loss,
    project,
    scorer,
    succeeded,
)
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
    done: int = 0,
) -> Iterator[Float[Tensor, "B C H W"]]:
    """Eq. 18: each iterate of x <- project(x + step_size * sign(gradient(x, step))), float32, until `steps` are done.

    done: how many lead to `start`.
    """
    x = start
    for step in range(done, steps):
        x = project(x + step_size * gradient(x, step).sign(), centre, epsilon)
        yield x


def random_start(
    x: Float[Tensor, "B C H W"], epsilon: float, key: Key, points: Sequence[int]
) -> Float[Tensor, "B C H W"]:
    """A point uniform in the ball around each image, projected into the pixel box; keyed by (key, point)."""
    unit = Draws(key, points, 1, 0, x.device).uniform_images(x.shape[1:])[0]
    return project(x + epsilon * (2 * unit - 1), x, epsilon)


def counted(gradient: Float[Tensor, "B C H W"], zero: Int64[Tensor, "B"]) -> Float[Tensor, "B C H W"]:
    """The gradient; adds 1 to `zero`, in place, for each point whose whole gradient is zero."""
    zero += (gradient == 0).flatten(1).all(1)
    return gradient


@dataclass(frozen=True)
class StepAttack(Attack):
    """Sign steps of a fixed length: one trajectory serves every number of steps; every restart is kept."""

    stop_parameter: ClassVar[str | None] = "steps"
    steps: tuple[int, ...] = integers("number of steps; a list is read off one trajectory", (10,), low=1, high=100_000)
    step_size: float = number("length of a step, in [0, 1] pixels", 2 / 255, low=0.0, high=1.0)
    restarts: int = integer("independent random starts", 1, low=1)
    random_start: bool = flag("start uniformly in the ball, not at the clean image", True)

    @abstractmethod
    def path(
        self,
        model: nn.Module,
        x: Float[Tensor, "B C H W"],
        labels: Int64[Tensor, "B"],
        threat: ThreatModel,
        key: Key,
        points: Sequence[int],
        zero: Int64[Tensor, "B"],
        begun: Begun | None = None,
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """The images after each step of the restart that the key names; `zero` counts zero gradients in place.

        begun: where this restart stands; None at its beginning, and always for an attack that cannot go on.
        """

    @abstractmethod
    def measure(
        self,
        model: nn.Module,
        images: Float[Tensor, "S B C H W"],
        labels: Int64[Tensor, "B"],
        threat: ThreatModel,
        key: Key,
        points: Sequence[int],
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
        return self._followed(None, model, x, labels, threat, key, points)

    @final
    def go_on(
        self,
        begun: Begun,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        key: Key,
        points: Sequence[int],
    ) -> Adversarial:
        """See `Attack.go_on`. Raises ValueError for an attack that cannot, and for a stop that lies behind."""
        if not self.goes_on or min(self.steps) <= begun.steps or len(begun.images) != self.restarts:
            raise ValueError(
                f"{self.name} goes on to stops beyond {begun.steps} steps with its {self.restarts} restarts, if at all; "
                f"got stops {list(self.steps)} and {len(begun.images)} restarts"
            )
        return self._followed(begun, model, x, labels, threat, key, points)

    def _followed(
        self,
        begun: Begun | None,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        key: Key,
        points: Sequence[int],
    ) -> Adversarial:
        images, losses, successes, zeros = [], [], [], []
        for restart in range(self.restarts):
            at, own = key.at(restart=restart), None
            zero = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            if begun is not None:
                own = Begun(begun.steps, begun.images[restart, None], begun.zero_gradients[restart, None])
                zero += own.zero_gradients[0]
            path = self.path(model, x, labels, threat, at, points, zero, own)
            numbered = enumerate(path, start=1 + (begun.steps if begun else 0))
            kept = [(iterate, zero.clone()) for step, iterate in numbered if step in self.steps]
            images.append(torch.stack([iterate for iterate, _ in kept]))
            zeros.append(torch.stack([count for _, count in kept]))
            loss = success = torch.full(images[-1].shape[:2], torch.nan, device=x.device)
            defense: Any = getattr(model, "defense", None)
            if self.scores(defense and defense.components()):
                loss, success = self.measure(model, images[-1], labels, threat, at, points)
            losses.append(loss)
            successes.append(success)
        stacked = torch.stack(images), torch.stack(losses), torch.stack(successes)
        return Adversarial(*stacked, self.steps, torch.stack(zeros))

    def stepped(
        self,
        gradient: Callable[[Tensor, int], Tensor],
        x: Float[Tensor, "B C H W"],
        epsilon: float,
        key: Key,
        points: Sequence[int],
        begun: Begun | None = None,
    ) -> Iterator[Float[Tensor, "B C H W"]]:
        """Sign steps within the ball around x, from the start that the key draws or from where they stand."""
        if begun is not None:
            return signed_steps(gradient, x, begun.images[0], epsilon, self.step_size, max(self.steps), begun.steps)
        start = random_start(x, epsilon, key, points) if self.random_start else x
        return signed_steps(gradient, x, start, epsilon, self.step_size, max(self.steps))


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
        self,
        model: nn.Module,
        x: Tensor,
        labels: Tensor,
        threat: ThreatModel,
        key: Key,
        points: Sequence[int],
        zero: Tensor,
        begun: Begun | None = None,
    ) -> Iterator[Tensor]:
        """See `StepAttack.path`."""

        def gradient(iterate: Tensor, step: int) -> Tensor:
            iterate = iterate.detach().requires_grad_(True)
            with torch.enable_grad(), bound(model, key.at(step=step + 1), points):
                loss = adversarial_loss(model, iterate, labels, threat).sum()
            return counted(torch.autograd.grad(loss, iterate)[0], zero)

        return self.stepped(gradient, x, threat.epsilon, key, points, begun)

    def measure(
        self, model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, key: Key, points: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """One draw, where the model is random."""
        with torch.no_grad(), bound(model, key.at(step=0), points):
            logits = torch.stack([scorer(model)(iterate).float() for iterate in images])
        return logits_loss(logits, labels, threat), succeeded(logits, labels, threat)
