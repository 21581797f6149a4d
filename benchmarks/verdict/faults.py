"""Attacks that are broken on purpose, each by one fault of a kind that papers and code reviews have found.

A study names this module as a plugin. Every attack here is PGD, or EOT-PGD behind a defense, but for its fault.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mi_ray.attacks import ATTACKS, Batch, Begun
from mi_ray.attacks.balls import MaxBall
from mi_ray.attacks.base import score
from mi_ray.attacks.eot_pgd import attacked, log_mean_gradient
from mi_ray.attacks.pgd import StepAttack
from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.parameters import integer, number
from mi_ray.randomness import Draws
from mi_ray.sample_pool import SamplePool


@dataclass(frozen=True)
class Faulty(StepAttack):
    """EOT-PGD on the logarithm of the mean answer. A subclass changes one of its parts."""

    eot: int | None = integer("executions averaged at each step; the study's N where left out", None, low=1)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """About those of EOT-PGD."""
        passes = 1 + sum(parts)
        twice = 1 + (len(parts) > 1)
        scoring = len(self.steps) * passes if self.scores(bool(parts)) else 0
        steps = max(self.steps)
        backward = passes - (len(parts) == 1)
        return self.restarts * (steps * passes * twice + scoring), self.restarts * steps * backward

    def measure(self, model: nn.Module, images: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scored by the model's answer in one draw."""
        return score(model, images, batch, 1)

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """The direction of a step, which is right here."""
        return batch.criterion.sign * log_mean_gradient(aim, x, batch.labels)[0]

    def labels(self, model: nn.Module, batch: Batch) -> Tensor:
        """The labels that are left."""
        return batch.labels

    def moved(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> Tensor:
        """Where a step along a gradient leads."""
        return batch.projected(x + self.step_size * gradient.sign())

    def draw(self, step: int) -> int:
        """Which of the defense's draws a step meets."""
        return step + 1

    def path(self, model: nn.Module, batch: Batch, begun: Begun | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """PGD's steps with the fault in them."""
        aim = attacked(model)
        x, steps = self.start(batch, begun)
        batch = replace(batch, labels=self.labels(model, batch))
        for step in steps:
            with batch.bound(aim, step=self.draw(step)):
                gradient = self.gradient(aim, x, batch)
            x = self.moved(x, gradient, batch, step)
            yield x, gradient


@dataclass(frozen=True)
class Loss(Faulty):
    """A subclass says what is ascended instead of the cross-entropy."""

    @abstractmethod
    def loss(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """[B] of log-probabilities [B, L]."""

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """The gradient of that loss of the mean answer."""
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            total = self.loss(F.log_softmax(aim(leaf).float(), dim=1), batch.labels).sum()
        return torch.autograd.grad(total, leaf)[0]


@ATTACKS.register
@dataclass(frozen=True)
class SmallBall(Faulty):
    """The ball is smaller than it is said to be, as after a mistake of units."""

    name: ClassVar[str] = "small_ball"
    share: float = number("share of epsilon that is used", 0.4, low=0.0, high=1.0)

    def moved(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> Tensor:
        """A step within the smaller ball."""
        return MaxBall(batch.x, self.share * batch.epsilon).ascended(x, self.step_size, gradient)


@ATTACKS.register
@dataclass(frozen=True)
class ShortSteps(Faulty):
    """Steps ten times too short, from the clean image."""

    name: ClassVar[str] = "short_steps"
    factor: float = number("how much of its length a step keeps", 0.1, low=0.0, high=1.0)

    def moved(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> Tensor:
        """A short step."""
        return batch.projected(x + self.factor * self.step_size * gradient.sign())


@ATTACKS.register
@dataclass(frozen=True)
class OwnLabel(Faulty):
    """It leaves the model's own label, and so pushes back what the model gets wrong."""

    name: ClassVar[str] = "own_label"

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """One answer more, by which the label is known."""
        forward, backward = super().cost(parts)
        return forward + self.restarts * (1 + sum(parts)), backward

    def labels(self, model: nn.Module, batch: Batch) -> Tensor:
        """F's predictions."""
        with torch.no_grad(), batch.bound(model, step=0):
            found: Tensor = model(batch.x).argmax(1)
        return found


@ATTACKS.register
@dataclass(frozen=True)
class SecondSoftmax(Loss):
    """Probabilities are taken for logits."""

    name: ClassVar[str] = "second_softmax"
    scale: float = number("what the probabilities are multiplied by first", 1.0, low=0.0, high=1000.0)

    def loss(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of a softmax of probabilities."""
        return F.cross_entropy(self.scale * log_p.exp(), labels, reduction="none")


@ATTACKS.register
@dataclass(frozen=True)
class Confidence(Loss):
    """It lowers the largest probability, whichever it is of."""

    name: ClassVar[str] = "confidence"

    def loss(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Minus the largest log-probability."""
        return -log_p.amax(1)


@ATTACKS.register
@dataclass(frozen=True)
class HalfPrecision(Loss):
    """The loss underflows: points that the model is sure of have none."""

    name: ClassVar[str] = "half_precision"
    sure: float = number("probability above which the loss is 0", 0.9, low=0.0, high=1.0)

    def loss(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy where it does not underflow."""
        entropy = F.nll_loss(log_p, labels, reduction="none")
        return torch.where(entropy < -torch.log(torch.tensor(self.sure)), torch.zeros_like(entropy), entropy)


@ATTACKS.register
@dataclass(frozen=True)
class RoundedGradient(Faulty):
    """The gradient is taken at a rounded image."""

    name: ClassVar[str] = "rounded_gradient"
    levels: int = integer("grey levels that are left", 4, low=2, high=256)

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """At the image with few grey levels."""
        return super().gradient(aim, (x * (self.levels - 1)).round() / (self.levels - 1), batch)


@ATTACKS.register
@dataclass(frozen=True)
class NoisyGradient(Faulty):
    """Most of the gradient is replaced by noise."""

    name: ClassVar[str] = "noisy_gradient"
    noise: float = number("share of the pixels whose gradient is noise", 0.9, low=0.0, high=1.0)

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """The gradient in some pixels, a random sign in all others."""
        found = super().gradient(aim, x, batch).sign()
        drawn = Draws(batch.key.at(step=int(x.sum().abs() * 1000) % 2**31), batch.points, 2, 0, x.device)
        where, what = drawn.uniform_images(x.shape[1:])
        return torch.where(where < self.noise, torch.where(what < 0.5, -1.0, 1.0), found)


@ATTACKS.register
@dataclass(frozen=True)
class Descends(Faulty):
    """It descends where it should ascend."""

    name: ClassVar[str] = "descends"

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """The wrong way."""
        return -super().gradient(aim, x, batch)


@ATTACKS.register
@dataclass(frozen=True)
class FixedDraw(Faulty):
    """It meets the same draw of a random defense at every step."""

    name: ClassVar[str] = "fixed_draw"

    def draw(self, step: int) -> int:
        """Always the first."""
        return 1


@ATTACKS.register
@dataclass(frozen=True)
class OneChannel(Faulty):
    """Only one channel is changed."""

    name: ClassVar[str] = "one_channel"

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """Zero in all channels but the first."""
        found = super().gradient(aim, x, batch).clone()
        found[:, 1:] = 0
        return found


@ATTACKS.register
@dataclass(frozen=True)
class Transposed(Faulty):
    """Height and width of the gradient are exchanged."""

    name: ClassVar[str] = "transposed"

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """The gradient of another pixel."""
        return super().gradient(aim, x, batch).transpose(2, 3)


@ATTACKS.register
@dataclass(frozen=True)
class NormalisedTwice(Faulty):
    """The gradient is taken at an image that is normalised once more than the model expects."""

    name: ClassVar[str] = "normalised_twice"

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """At (x - 0.5) / 0.5."""
        return super().gradient(aim, (x - 0.5) / 0.5, batch)


@ATTACKS.register
@dataclass(frozen=True)
class Shifted(Faulty):
    """Each point has the label of the next one."""

    name: ClassVar[str] = "shifted_labels"

    def labels(self, model: nn.Module, batch: Batch) -> Tensor:
        """Another point's."""
        return batch.labels.roll(1)


@ATTACKS.register
@dataclass(frozen=True)
class IgnoresDefense(Faulty):
    """It is called adaptive and follows the gradient of F alone."""

    name: ClassVar[str] = "ignores_defense"

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """F's own."""
        alone: Any = getattr(aim, "classifier", aim)
        return super().gradient(alone, x, batch)


@ATTACKS.register
@dataclass(frozen=True)
class StopsEarly(Faulty):
    """It takes a fifth of its steps."""

    name: ClassVar[str] = "stops_early"

    def moved(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> Tensor:
        """Nowhere, most of the time."""
        return super().moved(x, gradient, batch, step) if step % 5 == 0 and step < 10 else x


@ATTACKS.register
@dataclass(frozen=True)
class HalfWay(Faulty):
    """Every image goes back half of its way at the end, as where it was saved in a smaller range."""

    name: ClassVar[str] = "half_way"

    def path(self, model: nn.Module, batch: Batch, begun: Begun | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """PGD's steps, each image pulled back."""
        for x, gradient in super().path(model, batch, begun):
            yield batch.x + 0.5 * (x - batch.x), gradient


@ATTACKS.register
@dataclass(frozen=True)
class NearestClass(Loss):
    """It aims at a random class for few steps, and not away from the label."""

    name: ClassVar[str] = "random_target"

    def loss(self, log_p: Tensor, labels: Tensor) -> Tensor:
        """Towards the class five further on."""
        return log_p.gather(1, (labels[:, None] + 5) % log_p.shape[1])[:, 0]


@ATTACKS.register
@dataclass(frozen=True)
class LastBatchOnly(Faulty):
    """Every second point is left where it started."""

    name: ClassVar[str] = "half_the_points"

    def moved(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> Tensor:
        """A step of every second point."""
        found = super().moved(x, gradient, batch, step)
        still = torch.arange(len(x), device=x.device) % 2 == 0
        return torch.where(still[:, None, None, None], x, found)


@ATTACKS.register
@dataclass(frozen=True)
class GivesBack(Faulty):
    """Points that it has fooled are given back as they were, as where the two sets of images are mixed up."""

    name: ClassVar[str] = "gives_back"

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """One answer more at each step, by which it is known what is fooled."""
        forward, backward = super().cost(parts)
        return forward + self.restarts * max(self.steps) * (1 + sum(parts)), backward

    def path(self, model: nn.Module, batch: Batch, begun: Begun | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """PGD's steps, the images at each of which it has fooled the model taken back."""
        for step, (x, gradient) in enumerate(super().path(model, batch, begun)):
            with torch.no_grad(), batch.bound(model, step=self.draw(step)):
                fooled = model(x).argmax(1) != batch.labels
            yield torch.where(fooled[:, None, None, None], batch.x, x), gradient


@ATTACKS.register
@dataclass(frozen=True)
class Unsigned(Faulty):
    """A step is the gradient itself, of whatever length that is, and not its sign."""

    name: ClassVar[str] = "unsigned"

    def moved(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> Tensor:
        """Along the gradient of the mean loss of a batch."""
        return batch.projected(x + self.step_size * gradient / len(x))


@ATTACKS.register
@dataclass(frozen=True)
class EuclideanStep(Faulty):
    """A step of Euclidean length `step_size`, as it would suit a ball in that norm."""

    name: ClassVar[str] = "euclidean_step"

    def moved(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> Tensor:
        """Along the gradient of unit length."""
        size = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
        return batch.projected(x + self.step_size * gradient / size[:, None, None, None])


@ATTACKS.register
@dataclass(frozen=True)
class Decays(Faulty):
    """Steps become shorter too fast."""

    name: ClassVar[str] = "decays"

    def moved(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> Tensor:
        """Half of the step before."""
        return batch.projected(x + 0.5**step * self.step_size * gradient.sign())


@ATTACKS.register
@dataclass(frozen=True)
class UpperHalf(Faulty):
    """Only the upper half of an image is changed."""

    name: ClassVar[str] = "upper_half"

    def moved(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> Tensor:
        """A step in half of the rows."""
        found = super().moved(x, gradient, batch, step).clone()
        lower = x.shape[2] // 2
        found[:, :, lower:] = batch.x[:, :, lower:]
        return found


@ATTACKS.register
@dataclass(frozen=True)
class OneSided(Faulty):
    """Pixels only become brighter, as where a difference is kept in unsigned numbers."""

    name: ClassVar[str] = "one_sided"

    def moved(self, x: Tensor, gradient: Tensor, batch: Batch, step: int) -> Tensor:
        """A step, and nothing below the clean image."""
        return torch.maximum(super().moved(x, gradient, batch, step), batch.x)


@ATTACKS.register
@dataclass(frozen=True)
class CleanGradient(Faulty):
    """The gradient is always that at the clean image, so that all steps are one."""

    name: ClassVar[str] = "clean_gradient"

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """At the clean image."""
        return super().gradient(aim, batch.x, batch)


@ATTACKS.register
@dataclass(frozen=True)
class WrongNetwork(Faulty):
    """It follows the gradient of another network: the same images turned by a right angle, as where an axis is taken for
    another when a network is read."""

    name: ClassVar[str] = "wrong_network"

    def gradient(self, aim: nn.Module, x: Tensor, batch: Batch) -> Tensor:
        """Of the image turned by a right angle, and not turned back."""
        return super().gradient(aim, x.rot90(1, (2, 3)), batch)


@ATTACKS.register
@dataclass(frozen=True)
class SwapsImages(Faulty):
    """The images of each batch come back in another order, each cut to the ball of the one in whose place it stands."""

    name: ClassVar[str] = "swaps_images"

    def path(self, model: nn.Module, batch: Batch, begun: Begun | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """PGD's steps, each perturbation on the next image."""
        for x, gradient in super().path(model, batch, begun):
            yield batch.projected(batch.x + (x - batch.x).roll(1, 0)), gradient


@DEFENSES.register
@dataclass(frozen=True)
class HiddenShift(RandomTransform):
    """A small brightness shift behind a rounding to 32 grey levels, through which no gradient passes."""

    name: ClassVar[str] = "hidden"
    amplitude: float = number("half-width of the shift, in [0, 1] pixels", 0.05, low=0.0)

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """[E, B, C, H, W], rounded."""
        shift = self.amplitude * (2 * draws.uniform(1) - 1)
        return ((x + shift[..., None, None]) * 31).round() / 31

    @classmethod
    def identity(cls) -> dict[str, float]:
        """No shift; the rounding stays."""
        return {"amplitude": 0.0}


@DEFENSES.register
@dataclass(frozen=True)
class OpenedShift(HiddenShift):
    """The same defense, whose adversary passes the rounding as if it were not there (BPDA): what a sound attack leaves."""

    name: ClassVar[str] = "opened"

    def backward_transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """[E, B, C, H, W], not rounded."""
        return x + (self.amplitude * (2 * draws.uniform(1) - 1))[..., None, None]
