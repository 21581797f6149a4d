"""Auto-PGD: PGD with momentum and a step size that adapts to its progress (Croce and Hein, 2020; AutoAttack)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.balls import Ball
from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, score
from mi_ray.attacks.criterion import SMALL, criterion, ranked
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
from mi_ray.parameters import choice, flag, integer, number
from mi_ray.threat_model import NORMS, Norm, ThreatModel

MOMENTUM = 0.75  # The weight α of the new step in Eq. 1 of Croce and Hein.
FIRST, SHORTEST, SHRINK = 0.22, 0.06, 0.03  # Lengths between checkpoints, as shares of all steps.


def towards(
    logits: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"], targets: Int64[Tensor, "B"]
) -> Float[Tensor, "*S B"]:
    """The targeted ratio that leaves y for one class t: -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)."""
    top = ranked(logits, 4)
    return (of_label(logits, targets) - of_label(logits, labels)) / (top[..., 0] - top[..., 2:].mean(-1) + SMALL)


def ranked_others(logits: Float[Tensor, "B L"], labels: Int64[Tensor, "B"], count: int) -> Int64[Tensor, "count B"]:
    """The `count` most likely classes other than the label. Raises ValueError where there are not so many."""
    if count >= logits.shape[1]:
        raise ValueError(f"apgd.targets must be below the number of classes, {logits.shape[1]}; got {count}")
    return logits.scatter(1, labels[:, None], -torch.inf).topk(count, dim=1).indices.T


@dataclass
class _Seen:
    """What a search keeps of the points that it has evaluated, for each image of its batch.

    image, gradient, loss: the point with the highest loss. result, fooled, result_loss: the point to return, which is one
    that reaches the goal if any does.
    """

    image: Tensor
    gradient: Tensor
    loss: Tensor
    result: Tensor
    fooled: Tensor
    result_loss: Tensor

    def add(self, image: Tensor, gradient: Tensor, loss: Tensor, fooled: Tensor) -> None:
        """Take one more evaluated point of each image into account."""
        higher = loss > self.loss
        self.image, self.gradient = _where(higher, image, self.image), _where(higher, gradient, self.gradient)
        self.loss = torch.where(higher, loss, self.loss)
        better = (fooled > self.fooled) | ((fooled == self.fooled) & (loss > self.result_loss))
        self.result = _where(better, image, self.result)
        self.fooled = torch.where(better, fooled, self.fooled)
        self.result_loss = torch.where(better, loss, self.result_loss)


def _where(chosen: Bool[Tensor, "B"], yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen[:, None, None, None], yes, no)


Evaluate = Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]  # (image, step) -> gradient, loss, fooled


def search(
    evaluate: Evaluate,
    ball: Ball,
    start: Float[Tensor, "B C H W"],
    steps: int,
    rho: float,
) -> Float[Tensor, "B C H W"]:
    """Algorithm 1 of Croce and Hein. Returns of all evaluated points one that reaches the goal, if any does.

    Among equals it is the one with the highest loss. A step size starts at twice the radius. At a checkpoint it is halved, and
    the search goes back to the highest loss, where the loss rose in at most `rho` of the steps since the last one, or
    where the highest loss has not risen although the step size was kept.
    """
    gradient, loss, fooled = evaluate(start, 1)
    seen = _Seen(start, gradient, loss, start, fooled, loss)
    size, current, previous = 2 * ball.radii(), start, start
    window, since = max(int(FIRST * steps), 1), 0
    rises, halved, highest = torch.zeros_like(loss), torch.zeros_like(loss, dtype=torch.bool), loss
    for step in range(steps):
        ahead = ball.ascended(current, size[:, None, None, None], gradient)
        share = MOMENTUM if step else 1.0
        moved = current + share * (ahead - current) + (1 - share) * (current - previous)
        previous, current, before = current, ball.projected(moved), loss
        gradient, loss, fooled = evaluate(current, step + 2)
        seen.add(current, gradient, loss, fooled)
        rises, since = rises + (loss > before), since + 1
        if since == window:
            halved = (rises <= rho * window) | (~halved & (highest >= seen.loss))
            size = torch.where(halved, size / 2, size)
            current, gradient = _where(halved, seen.image, current), _where(halved, seen.gradient, gradient)
            window, since = max(window - max(int(SHRINK * steps), 1), int(SHORTEST * steps), 1), 0
            rises, highest = torch.zeros_like(loss), seen.loss
    return seen.result


@final
@ATTACKS.register
@dataclass(frozen=True)
class Apgd(Attack):
    """Auto-PGD with the losses of AutoAttack: `ce`, `dlr`, or `targeted_dlr`, which aims at several classes in turn.

    Behind a random defense it ascends the loss of the mean answer, or the mean of the executions' losses, with fresh draws
    at each evaluation (AutoAttack's `rand` averages 20; it compares the loss of the last one alone, here their mean).
    MI-Combined is attacked through its answer with the threshold made smooth, as in eot_pgd. DLR is computed from
    log-probabilities, of which it is the same as of logits.
    """

    name: ClassVar[str] = "apgd"
    version: ClassVar[int] = 3  # In 2, it ascended the mean of the executions' losses alone.
    display_name: ClassVar[str] = "APGD"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    loss: Literal["ce", "dlr", "targeted_dlr"] = choice(
        "ce: cross-entropy; dlr: difference-of-logits ratio; targeted_dlr: that ratio towards each of `targets` classes",
        ("ce", "dlr", "targeted_dlr"),
        "ce",
    )
    steps: int = integer("steps; their number sets the schedule of step sizes", 100, low=1, high=100_000)
    restarts: int = integer("independent random starts, for each target of targeted_dlr", 1, low=1)
    targets: int = integer("most likely other classes that targeted_dlr aims at, each a restart of its own", 9, low=1)
    average: Literal["answer", "losses"] = choice(
        "behind a random defense, answer: the loss of the mean answer; losses: the mean of the executions' losses",
        ("answer", "losses"),
        "answer",
    )
    eot: int | None = integer("executions averaged at each step; the study's N where left out", None, low=1)
    rho: float = number("share of rising steps at or below which a step size is halved", 0.75, low=0.0, high=1.0)
    random_start: bool = flag("start uniformly in the ball, not at the clean image", True)
    temperature: float = number(
        "width of the sigmoid that stands for a threshold in the gradient", TEMPERATURE, low=1e-6, high=10.0
    )
    scoring_draws: int = integer("independent draws by which restarts are compared", 5, low=1)

    def check(self, threat: ThreatModel, classes: int) -> None:
        """Raise ValueError where the loss needs more classes, or where a target is given to a loss that chooses its own."""
        if self.loss == "targeted_dlr" and not threat.leaves_label:
            raise ValueError("apgd with loss: targeted_dlr chooses its own targets; for a targeted goal use loss: dlr")
        least = {"ce": 2, "dlr": criterion(threat).dlr_classes, "targeted_dlr": 4}[self.loss]
        if classes < least:
            raise ValueError(f"apgd with loss: {self.loss} needs at least {least} classes; got {classes}. Use loss: ce")
        if self.loss == "targeted_dlr" and self.targets >= classes:
            raise ValueError(f"apgd.targets must be below the number of classes, {classes}; got {self.targets}")

    def stops(self) -> tuple[int, ...]:
        """The number of steps alone: the schedule depends on it, so that no earlier step is a result of its own."""
        return (self.steps,)

    def _runs(self) -> int:
        return self.restarts * (self.targets if self.loss == "targeted_dlr" else 1)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """One forward and one backward pass at the start and at each step, the scoring, and one forward to choose targets."""
        passes, draws = 1 + sum(parts), self.scoring_draws if parts else 1
        choosing = passes if self.loss == "targeted_dlr" else 0
        forward, backward = gradient_cost(parts)
        if self.average == "answer" and len(parts) == 1:
            forward += passes
        forward, backward = (self.steps + 1) * forward, (self.steps + 1) * backward
        return self._runs() * (forward + draws * passes) + choosing, self._runs() * backward

    def _losses(self, model: nn.Module, batch: Batch) -> list[Callable[[Tensor], Tensor]]:
        """The loss of log-probabilities to ascend, one for each class that is aimed at; one loss where none is."""
        if self.loss != "targeted_dlr":
            plain = batch.criterion.loss if self.loss == "ce" else batch.criterion.dlr
            return [partial(plain, labels=batch.labels)]
        with torch.no_grad(), batch.bound(model, step=0):
            answer = ranked_others(model(batch.x), batch.labels, self.targets)
        return [partial(towards, labels=batch.labels, targets=targets) for targets in answer]

    def _one_run(self, aim: nn.Module, batch: Batch, loss_of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """One search: (its images, for each point the number of evaluations whose whole gradient was zero)."""
        zero = torch.zeros(len(batch), dtype=torch.int64, device=batch.x.device)
        mean = answer_gradient if self.average == "answer" and averages(aim) else mean_gradient

        def evaluate(iterate: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
            """(gradient of the loss, the loss, whether the goal is reached) at an image, averaged over executions."""
            with batch.bound(aim, step=step):
                gradient, loss, answer = mean(aim, iterate, loss_of)
            zero.add_(all_zero(gradient))
            return gradient, loss, batch.criterion.reached(answer, batch.labels)

        start = batch.random_start() if self.random_start else batch.x
        return search(evaluate, batch.ball, start, self.steps, self.rho), zero

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """One search for every restart and every class that is aimed at. Raises ValueError where classes are too few."""
        aim = attacked(model, "whole", self.temperature)
        losses = self._losses(model, batch)
        runs = [self._one_run(aim, batch.at(restart=run), losses[run % len(losses)]) for run in range(self._runs())]
        images, zero = (torch.stack(column) for column in zip(*runs, strict=True))
        loss, success = score(model, images, batch, self.scoring_draws)
        return Adversarial(images[:, None], loss[:, None], success[:, None], self.stops(), zero[:, None])
