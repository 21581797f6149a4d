"""The nearest image that reaches the goal: the fast minimum-norm attack (FMN; Pintor, Roli, Brendel and Biggio, 2021)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import cos, pi
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.auto_pgd import ranked_others
from mi_ray.attacks.balls import BALLS, unit
from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, Bindable, score
from mi_ray.attacks.eot_pgd import (
    TEMPERATURE,
    answer_gradient,
    attacked,
    averages,
    gradient_cost,
    mean_gradient,
    of_label,
)
from mi_ray.attacks.pgd import all_zero
from mi_ray.parameters import integer, number
from mi_ray.threat_model import NORMS, Norm

LAST_SHARE = 0.01  # The last step is this share of the first one.
LAST_GAMMA = 0.001  # By this share the radius changes at last.
START = 1e-3  # The largest distance of a run's random start from the image, in the norm; it makes restarts differ.
# What is scored of each point: the image itself, what was found, and points beyond it along the same line, where a random
# defense that was fooled by luck is fooled for certain.
SCALES = (0.0, 1.0, 1.03, 1.1, 1.2, 1.4, 1.8)


# Of log-probabilities: by how much the goal is missed; below 0 where it is reached.
Margin = Callable[[Tensor], Tensor]


def _lead_over(
    answer: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"], others: Int64[Tensor, "B"]
) -> Float[Tensor, "*S B"]:
    """By how much the label's log-probability exceeds that of one other class."""
    return of_label(answer, labels) - of_label(answer, others)


class _Nearest:
    """Of each image the nearest iterate that reached the goal; until one does, the iterate that missed it by least."""

    def __init__(self, batch: Batch) -> None:
        self.image = batch.x
        self.distance = torch.full((len(batch),), torch.inf, device=batch.x.device)
        self._margin = self.distance.clone()

    @property
    def found(self) -> Bool[Tensor, "B"]:
        """For which images one was found."""
        return self.distance.isfinite()

    def add(self, x: Float[Tensor, "B C H W"], distance: Float[Tensor, "B"], margin: Float[Tensor, "B"]) -> None:
        """Take an iterate of each image into account. margin: by how much it misses the goal; below 0 where it does not."""
        reached = margin < 0
        better = torch.where(reached, distance < self.distance, ~self.found & (margin < self._margin))
        self.image = torch.where(better[:, None, None, None], x, self.image)
        self.distance = torch.where(better & reached, distance, self.distance)
        self._margin = torch.where(better, margin, self._margin)


@final
@ATTACKS.register
@dataclass(frozen=True)
class MinimumNorm(Attack):
    """FMN: one run finds how far the nearest adversarial image is, and so the accuracy at every epsilon at once.

    Each step goes along the gradient of the margin, by default of that over each of the likeliest other classes in turn
    (the published attack aims at all at once, and left up to five points more of digits than APGD of the same radius),
    and is projected to a ball around the image. Its radius is the distance to a linear boundary until the goal is
    reached; then it shrinks by a share γ where the last image reached the goal and grows by that share where it did not.
    Steps and γ fall along a cosine. Behind a random defense margin and gradient are those of the mean answer, with fresh
    draws at each step; in the end the images along the line through what was found are scored by draws of their own, and
    the nearest is kept that fails in all of them, else the one that fails most often.

    In a sweep it runs in no ball at all: each of the entry's epsilons is a cell that reads the same run, in which the points
    whose image is no farther than epsilon are as that image, and all others are clean. It tells nothing between: at an epsilon
    beyond the distance of a point an attack of that radius may do more to a random defense.
    """

    name: ClassVar[str] = "minimum_norm"
    display_name: ClassVar[str] = "FMN"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    minimal: ClassVar[bool] = True
    steps: int = integer("steps; their number sets the schedule", 100, low=1, high=100_000)
    first_step: float = number("L2 length of the first step, in [0, 1] pixels", 1.0, low=1e-6, high=1000.0)
    gamma: float = number("share by which the radius changes at first", 0.05, low=1e-6, high=0.5)
    targets: int = integer(
        "most likely other classes that an untargeted run aims at, each on its own; 0 for any class at once, as published",
        3,
        low=0,
    )
    restarts: int = integer("independent starts next to the image, for each of the targets", 1, low=1)
    eot: int | None = integer("executions averaged at each step; the study's N where left out", None, low=1)
    temperature: float = number(
        "width of the sigmoid that stands for a threshold in the gradient", TEMPERATURE, low=1e-6, high=10.0
    )
    scoring_draws: int = integer("independent draws by which images along the line are compared", 5, low=1)

    def stops(self) -> tuple[int, ...]:
        """The number of steps alone: the schedule depends on it."""
        return (self.steps,)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """A gradient at each step, through a defense of one component an answer before it, and the scoring of the line."""
        passes, draws = 1 + sum(parts), self.scoring_draws if parts else 1
        forward, backward = gradient_cost(parts)
        steps = self.steps * (forward + (passes if len(parts) == 1 else 0))
        forward = self._runs() * (steps + len(SCALES) * draws * passes)
        return forward + (passes if self.targets else 0), self._runs() * self.steps * backward

    def _runs(self) -> int:
        return self.restarts * max(self.targets, 1)

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """Every run. The loss of an image is minus its distance, so that the best of those that succeed is the nearest."""
        margins = self._margins(model, batch)
        runs = [self._one_run(model, batch.at(restart=run), margins[run % len(margins)]) for run in range(self._runs())]
        images, loss, success, zero = (torch.stack(column)[:, None] for column in zip(*runs, strict=True))
        return Adversarial(images, loss, success, self.stops(), zero)

    def _margins(self, model: nn.Module, batch: Batch) -> list[Margin]:
        """What the runs make small, in turn: how far the goal is missed, or how far the true label leads each target."""
        plain: list[Margin] = [partial(batch.criterion.margin, labels=batch.labels)]
        if self.targets == 0:
            return plain
        with torch.no_grad(), batch.bound(model, step=0):
            answer = model(batch.x).float()
        if not batch.threat.leaves_label:
            return plain
        targets = ranked_others(answer, batch.labels, min(self.targets, answer.shape[1] - 1))
        return [partial(_lead_over, labels=batch.labels, others=others) for others in targets]

    def _one_run(self, model: nn.Module, batch: Batch, margin: Margin) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(images, minus their distance, share of the scoring draws that they fool, zero gradients) of one run."""
        nearest, zero = self._searched(attacked(model, "whole", self.temperature), batch, margin)
        line = torch.stack([batch.projected(batch.x + scale * (nearest.image - batch.x)) for scale in SCALES])
        _, success = score(model, line, batch, self.scoring_draws if isinstance(model, Bindable) else 1)
        chosen = success.argmax(0)  # of equals the first, which is the nearest
        each = torch.arange(len(batch), device=chosen.device)
        # Where no image of the line succeeds even once, the one that came nearest to the goal is kept.
        chosen = torch.where(success.amax(0) > 0, chosen, SCALES.index(1.0))
        images = line[chosen, each]
        return images, -batch.ball.distance(images - batch.x), success[chosen, each], zero

    def _searched(self, aim: nn.Module, batch: Batch, margin: Margin) -> tuple[_Nearest, Int64[Tensor, "B"]]:
        """What the steps found, and at how many of them the whole gradient was zero."""
        ball, nearest = BALLS[batch.threat.norm], _Nearest(batch)
        mean = answer_gradient if averages(aim) else mean_gradient
        zero, radius = torch.zeros_like(batch.labels), torch.full_like(nearest.distance, torch.inf)
        x = batch.projected(ball(batch.x, START).random_start(batch.draws()))
        for step in range(self.steps):
            falling = (1 + cos(pi * step / self.steps)) / 2
            gamma = LAST_GAMMA + (self.gamma - LAST_GAMMA) * falling
            with batch.bound(aim, step=step + 1):
                gradient, rise, _ = mean(aim, x, lambda answer: -margin(answer))
            zero += all_zero(gradient)
            distance = ball.distance(x - batch.x)
            nearest.add(x, distance, -rise)
            to_boundary = distance + rise.abs() / ball.dual(gradient).clamp_min(torch.finfo(x.dtype).tiny)
            farther = torch.where(nearest.found, radius * (1 + gamma), to_boundary)
            shorter = torch.minimum(radius * (1 - gamma), nearest.distance)
            radius = torch.where(rise > 0, shorter, farther).clamp_max(batch.epsilon)
            size = self.first_step * (LAST_SHARE + (1 - LAST_SHARE) * falling)
            x = ball(batch.x, radius[:, None, None, None]).projected(x + size * unit(gradient))
        return nearest, zero
