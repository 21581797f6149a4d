"""Auto-PGD: PGD whose steps adapt to its progress (Croce and Hein, 2020, and in L1 2021; AutoAttack)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.balls import Ball, SumBall
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
# For L1 (`_Sparsening`). EVERY: steps between checkpoints, as a share of all steps. DENSEST: the largest share of all entries
# that the first steps move. LESS: the factor by which entries and step sizes shrink. SPARSER: the image of the highest loss is
# sparser where it changes less than this share of the entries that it changed at the checkpoint before. LEAST_STEP: the
# shortest step, as a share of the radius.
EVERY, DENSEST, LESS, SPARSER, LEAST_STEP = 0.04, 0.2, 1.5, 0.95, 0.1
# For L1: multiple of the radius -> the share of a search's evaluations that are made in that ball.
WIDER = {3: 0.3, 2: 0.3}


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


class _Pace(ABC):
    """How long the steps of a search are, what they go along, and when it goes back to the highest loss."""

    @abstractmethod
    def step(
        self,
        step: int,
        current: Float[Tensor, "B C H W"],
        previous: Float[Tensor, "B C H W"],
        gradient: Float[Tensor, "B C H W"],
    ) -> Float[Tensor, "B C H W"]:
        """The images after one more step. step: the number of those before it. previous: where the last one began."""

    @abstractmethod
    def judge(self, rose: Bool[Tensor, "B"], seen: _Seen) -> Bool[Tensor, "B"] | None:
        """Which images go back to the highest loss after a step; None where it is no checkpoint.

        rose: whether the step made the loss higher.
        """


@final
class _Halving(_Pace):
    """Algorithm 1 of Croce and Hein (2020), with momentum. A step size starts at twice the radius.

    At a checkpoint it is halved, and the search goes back, where the loss rose in at most `rho` of the steps since the last
    one, or where the highest loss has not risen although the step size was kept.
    """

    def __init__(self, ball: Ball, begun: _Seen, steps: int, rho: float) -> None:
        self.ball, self.steps, self.rho, self.size = ball, steps, rho, 2 * ball.radii()
        self.window, self.since = max(int(FIRST * steps), 1), 0
        self.rises, self.highest = torch.zeros_like(begun.loss), begun.loss
        self.halved = torch.zeros_like(begun.loss, dtype=torch.bool)

    def step(
        self,
        step: int,
        current: Float[Tensor, "B C H W"],
        previous: Float[Tensor, "B C H W"],
        gradient: Float[Tensor, "B C H W"],
    ) -> Float[Tensor, "B C H W"]:
        """Steepest ascent, and a quarter of the step before (Eq. 1)."""
        ahead = self.ball.ascended(current, self.size[:, None, None, None], gradient)
        share = MOMENTUM if step else 1.0
        return self.ball.projected(current + share * (ahead - current) + (1 - share) * (current - previous))

    def judge(self, rose: Bool[Tensor, "B"], seen: _Seen) -> Bool[Tensor, "B"] | None:
        """At the checkpoints, which come closer and closer, the images whose step size is halved."""
        self.rises, self.since = self.rises + rose, self.since + 1
        if self.since < self.window:
            return None
        self.halved = (self.rises <= self.rho * self.window) | (~self.halved & (self.highest >= seen.loss))
        self.size = torch.where(self.halved, self.size / 2, self.size)
        shorter = self.window - max(int(SHRINK * self.steps), 1)
        self.window, self.since = max(shorter, int(SHORTEST * self.steps), 1), 0
        self.rises, self.highest = torch.zeros_like(seen.loss), seen.loss
        return self.halved


@final
class _Sparsening(_Pace):
    """Algorithm 1 of Croce and Hein (2021), for L1, without momentum: what adapts is how many entries a step moves.

    At first a step is as long as the radius. It moves two thirds of the entries in which the start differs from the clean image
    (of all entries where it does not differ), and at most a fifth of all entries. From each checkpoint on it moves two thirds of
    the entries in which the image of the highest loss differs from the clean one. Where these have become fewer by more than a
    twentieth, the step is as long as the radius again and the search goes back to that image; else the step becomes 1.5 times
    shorter, down to a tenth of the radius.
    """

    def __init__(self, ball: SumBall, begun: _Seen, steps: int) -> None:
        self.ball, self.size = ball, ball.radii()
        self.window, self.since = max(int(EVERY * steps), 1), 0
        everything, moved = ball.centre[0].numel(), self._changed(begun.image)
        self.moved = torch.where(moved > 0, moved, everything)
        self.entries = (self.moved / LESS).clamp(1, max(1, DENSEST * everything))

    def _changed(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        """In how many entries each image differs from the clean one."""
        return (image != self.ball.centre).flatten(1).sum(1).to(image.dtype)

    def step(
        self,
        step: int,
        current: Float[Tensor, "B C H W"],
        previous: Float[Tensor, "B C H W"],
        gradient: Float[Tensor, "B C H W"],
    ) -> Float[Tensor, "B C H W"]:
        """Along the entries of the gradient that are largest."""
        size, entries = (each[:, None, None, None] for each in (self.size, self.entries.floor()))
        return self.ball.spread(current, size, gradient, entries)

    def judge(self, rose: Bool[Tensor, "B"], seen: _Seen) -> Bool[Tensor, "B"] | None:
        """At the checkpoints, all as far apart, the images whose highest loss is at a sparser change than before."""
        self.since += 1
        if self.since < self.window:
            return None
        moved = self._changed(seen.image)
        sparser, radii = moved < SPARSER * self.moved, self.ball.radii()
        self.size = torch.where(sparser, radii, torch.maximum(self.size / LESS, LEAST_STEP * radii))
        self.moved, self.entries, self.since = moved, (moved / LESS).clamp_min(1), 0
        return sparser


Evaluate = Callable[[Tensor, int], tuple[Tensor, Tensor, Tensor]]  # (image, step) -> gradient, loss, fooled


def search(
    evaluate: Evaluate, ball: Ball, start: Float[Tensor, "B C H W"], steps: int, rho: float, evaluated: int = 0
) -> _Seen:
    """Auto-PGD from a start: what it has seen, whose `result` is a point that reaches the goal, if any does.

    Of several such points, or where there is none, `result` is the one with the highest loss. rho: see `_Halving`; unused in
    L1. evaluated: how many points earlier searches have evaluated; `evaluate` is handed each point's number among all.
    """
    gradient, loss, fooled = evaluate(start, evaluated + 1)
    seen = _Seen(start, gradient, loss, start, fooled, loss)
    pace = _Sparsening(ball, seen, steps) if isinstance(ball, SumBall) else _Halving(ball, seen, steps, rho)
    current = previous = start
    for step in range(steps):
        previous, current, before = current, pace.step(step, current, previous, gradient), loss
        gradient, loss, fooled = evaluate(current, evaluated + step + 2)
        seen.add(current, gradient, loss, fooled)
        back = pace.judge(loss > before, seen)
        if back is not None:
            current, gradient = _where(back, seen.image, current), _where(back, seen.gradient, gradient)
    return seen


def narrowing(ball: Ball, evaluations: int) -> Iterator[tuple[Ball, int]]:
    """(a ball, how many points are evaluated in it): the balls that a search goes through one after another, the last its own.

    In L1 three tenths of the points are looked for within three times the radius, and as many within twice (Croce and Hein
    2021, Sec. 3.2): where a change is sparse, what is best in a small ball is often found on the way from a larger one.
    """
    left = evaluations
    for times, share in WIDER.items() if isinstance(ball, SumBall) else ():
        if points := int(share * evaluations):
            left -= points
            yield type(ball)(ball.centre, times * ball.radius), points
    yield ball, left


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
            aims = ranked_others(model(batch.x), batch.labels, self.targets)
        return [partial(towards, labels=batch.labels, targets=targets) for targets in aims]

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

        seen, evaluated = None, 0
        for ball, points in narrowing(batch.ball, self.steps + 1):
            if seen is not None:
                start = ball.projected(seen.image)
            else:
                start = ball.random_start(batch.draws()) if self.random_start else batch.x
            seen = search(evaluate, ball, start, points - 1, self.rho, evaluated)
            evaluated += points
        assert seen is not None
        return seen.result, zero

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """One search for every restart and every class that is aimed at. Raises ValueError where classes are too few."""
        aim = attacked(model, "whole", self.temperature)
        losses = self._losses(model, batch)
        runs = [self._one_run(aim, batch.at(restart=run), losses[run % len(losses)]) for run in range(self._runs())]
        images, zero = (torch.stack(column) for column in zip(*runs, strict=True))
        loss, success = score(model, images, batch, self.scoring_draws)
        return Adversarial(images[:, None], loss[:, None], success[:, None], self.stops(), zero[:, None])
