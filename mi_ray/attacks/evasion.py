"""Evading a detector: images that fool F and that the detector takes for clean ones (Bryniarski et al., 2022)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.base import ATTACKS, Batch, Begun, Defended, scorer
from mi_ray.attacks.criterion import Criterion
from mi_ray.attacks.eot_pgd import attacked, gradient_cost, mean_gradient, of_label
from mi_ray.attacks.pgd import OneRestart, Restarted, all_zero
from mi_ray.parameters import choice, integer, integers, number
from mi_ray.threat_model import LONGEST_STEP, SMALLEST_STEP, Norm, ThreatModel

NOT_FOOLED = 4.0  # More than two gaps, which are in [-1, 1], can differ: fooling F comes before closing the gap.


@dataclass(frozen=True, eq=False)
class Slopes:
    """What is known at the images of a step.

    loss, gap: the gradients of F's own loss and of the detector's gap F_ŷ(x) - F_MI,ŷ(x), by pixel. fooled: whether F's
    answer is what the adversary wants. height: the gap, by the executions of this step.
    """

    loss: Float[Tensor, "B C H W"]
    gap: Float[Tensor, "B C H W"]
    fooled: Bool[Tensor, "B"]
    height: Float[Tensor, "B"]


def slopes(detector: nn.Module, x: Float[Tensor, "B C H W"], labels: Int64[Tensor, "B"], wanted: Criterion) -> Slopes:
    """Both gradients at x, in the memory of one chunk of executions; ŷ is detached.

    labels: of each image the label to leave, or to reach, as `wanted` says.
    """
    leaf, classifier = x.detach().requires_grad_(True), detector.classifier
    assert isinstance(classifier, nn.Module)
    with torch.enable_grad():
        undefended = F.log_softmax(classifier(leaf).float(), dim=1)
        predicted = undefended.detach().argmax(1)
        own = of_label(undefended, predicted).exp()
        loss = torch.autograd.grad(wanted.loss(undefended, labels).sum(), leaf, retain_graph=True)[0]
        rise = torch.autograd.grad(own.sum(), leaf)[0]
    averaged, value, _ = mean_gradient(detector, x, lambda found: of_label(found, predicted).exp())
    return Slopes(loss, rise - averaged, wanted.reached(undefended, labels) > 0, own.detach() - value)


def orthogonal_part(vector: Float[Tensor, "B C H W"], other: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """The part of each image's vector that is orthogonal to the other one; all of it where the other is zero."""
    along = (vector * other).flatten(1).sum(1) / other.square().flatten(1).sum(1).clamp_min(torch.finfo().tiny)
    return vector - along[:, None, None, None] * other


def _selective(found: Slopes) -> Tensor:
    return torch.where(found.fooled[:, None, None, None], -found.gap, found.loss)


def _orthogonal(found: Slopes) -> Tensor:
    return torch.where(found.fooled[:, None, None, None], -orthogonal_part(found.gap, found.loss), found.loss)


Direction = Callable[[Slopes], Tensor]
DIRECTIONS: dict[str, Direction] = {"orthogonal": _orthogonal, "selective": _selective}


class _Shortlist:
    """Of each image of a batch the best of the iterates so far: those that fool F, of these the ones with the smallest gap.

    images: [places, B, C, H, W]. A place that no iterate has taken yet holds the image that the list began with.
    """

    def __init__(self, places: int, x: Float[Tensor, "B C H W"]) -> None:
        self.images = x.repeat(places, 1, 1, 1, 1)
        self._order = torch.full((places, len(x)), torch.inf, device=x.device)
        self._each = torch.arange(len(x), device=x.device)

    def add(self, x: Float[Tensor, "B C H W"], found: Slopes) -> None:
        """An iterate of each image takes the place of the worst one, if it is better."""
        order = found.height + NOT_FOOLED * ~found.fooled
        worst = self._order.argmax(0)
        better = order < self._order[worst, self._each]
        places, rows = worst[better], self._each[better]
        self.images[places, rows], self._order[places, rows] = x[better], order[better]


@final
@ATTACKS.register
@dataclass(frozen=True)
class Evasion(Restarted):
    """Fools F and closes the gap F_ŷ(x) - F_MI,ŷ(x) by which a detector tells adversarial images from clean ones.

    A sum of both losses with one weight for all points (eot_pgd with `loss: evade`) leaves points that do not fool F, or
    points that are detected, since no weight fits all. Here each step does for each image what it lacks (Bryniarski et
    al., 2022, Sec. 4): up F's loss where F is not fooled, and down the gap where it is. update: selective takes the
    gap's gradient as it is; orthogonal takes its part along the gradient of F's loss away, so that a step down leaves F
    fooled to first order. (Bryniarski et al. also take the gap's part away from the steps that fool F; with steps by sign
    that left most points not fooled here.)

    The result at a stop is, of all iterates until then, one that fools F with the smallest gap. The best `shortlist` iterates
    are found by the gaps that the steps measure anyway: those of an iterate are measured in draws of the step that starts from
    it, which it was not fitted to. At a stop they are compared with the last iterate by `scoring_draws` further draws. Where a
    defense has several components, the first is the detector.
    """

    name: ClassVar[str] = "evasion"
    display_name: ClassVar[str] = "Evasion"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    needs_defense: ClassVar[bool] = True
    steps: tuple[int, ...] = integers("number of steps; a list is read off one trajectory", (50,), low=1, high=100_000)
    step_size: float = number("length of a step in the norm of the ball", 1 / 255, low=SMALLEST_STEP, high=LONGEST_STEP)
    update: Literal["orthogonal", "selective"] = choice(
        "how a step closes the gap where F is fooled: orthogonal to the gradient of F's loss, or whatever F's loss does",
        ("orthogonal", "selective"),
        "orthogonal",
    )
    eot: int | None = integer("executions averaged at each step; the study's N where left out", None, low=1)
    shortlist: int = integer("iterates of a point that are compared with its last one at a stop", 2, low=1)
    scoring_draws: int = integer("independent draws by which iterates and restarts are compared", 5, low=1)

    @property
    def by_accuracy(self) -> bool:
        """False: it fools F and is not detected, whatever that does to the accuracy of the defense's answer."""
        return False

    def check(self, threat: ThreatModel, classes: int) -> None:
        """Raise ValueError for an oblivious attack: it would not know the detector."""
        if threat.knowledge == "oblivious":
            raise ValueError("evasion evades a detector: it needs `knowledge: adaptive`; got oblivious")

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """A step is F once forward and twice backward, and the detector's gradient; each iterate that is compared at a
        stop is one pass of F and `scoring_draws` answers of the detector.
        """
        forward, backward = gradient_cost(parts[:1])
        answers = 1 + self.scoring_draws * (1 + sum(parts[:1]))
        compared = sum(min(self.shortlist, stop) + 1 for stop in self.steps)
        steps = max(self.steps)
        return self.restarts * (steps * (1 + forward) + compared * answers), self.restarts * steps * (2 + backward)

    def one_restart(self, model: nn.Module, batch: Batch, begun: Begun | None) -> OneRestart:
        """Of each point the best iterate until each stop, with minus its gap and whether it fools F.

        Raises ValueError for a model that no defense stands before.
        """
        if not isinstance(model, Defended):
            raise ValueError("evasion evades a detector; got a model that no defense stands before")
        detector = attacked(model, "detector")
        x, steps = self.start(batch, begun)
        seen, zero, kept = _Shortlist(self.shortlist, x), torch.zeros_like(batch.labels), []
        for step in steps:
            with batch.bound(detector, step=step + 1):
                found = slopes(detector, x, batch.labels, batch.criterion)
            seen.add(x, found)
            direction = DIRECTIONS[self.update](found)
            x, zero = batch.stepped(x, self.step_size, direction), zero + all_zero(direction)
            if step + 1 in self.steps:
                kept.append((*self._best(detector, torch.cat([seen.images[: step + 1], x[None]]), batch), zero))
        images, loss, success, zeros = (torch.stack(column) for column in zip(*kept, strict=True))
        return images, loss, success, zeros

    def _best(
        self, detector: nn.Module, images: Float[Tensor, "S B C H W"], batch: Batch
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B"], Float[Tensor, "B"]]:
        """(image, minus its gap, 1 where it fools F) of each point, by `scoring_draws` draws that no step has used."""
        classifier: Any = detector.classifier
        gaps, fooled = [], []
        for candidates in images:
            with torch.no_grad():
                undefended = F.log_softmax(scorer(classifier)(candidates).float(), dim=1)
                averaged = torch.stack([*self._answers(detector, candidates, undefended.argmax(1), batch)]).mean(0)
            gaps.append(undefended.exp().amax(1) - averaged)
            fooled.append(batch.criterion.reached(undefended, batch.labels))
        gap, reached = torch.stack(gaps), torch.stack(fooled)
        best = (gap + NOT_FOOLED * (1 - reached)).argmin(0)
        each = torch.arange(len(best), device=best.device)
        return images[best, each], -gap[best, each], reached[best, each]

    def _answers(
        self, detector: Any, x: Float[Tensor, "B C H W"], predicted: Int64[Tensor, "B"], batch: Batch
    ) -> Iterator[Float[Tensor, "B"]]:
        """The detector's mean probability of ŷ in each of the scoring draws."""
        for draw in range(1, self.scoring_draws + 1):
            with batch.bound(detector, restart=0, step=0, draw=draw):
                yield of_label(detector.each(x), predicted).exp().mean(0)
