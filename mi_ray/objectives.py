"""What training minimises: ERM, mixup, adversarial training and interpolated AT (paper, Sec. 2.2, 4.1, A.2)."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.pgd import signed_steps
from mi_ray.classifiers import Classifier, prepared
from mi_ray.parameters import Parameterized, Registry, choice, integer, number
from mi_ray.threat_model import ThreatModel


@dataclass(frozen=True)
class Objective(Parameterized):
    """A training loss. A subclass writes `loss`.

    `model` may be wrapped for data parallelism; `plain` is the classifier inside, for an inner attack. All randomness
    comes from `rng`, which the trainer keys by (seed, epoch, step, worker), so that training resumes exactly.
    """

    @abstractmethod
    def loss(
        self,
        model: nn.Module,
        plain: Classifier,
        x: Float[Tensor, "B C H W"],
        y: Int64[Tensor, "B"],
        rng: np.random.Generator,
    ) -> Float[Tensor, ""]:
        """The mean loss of a batch of augmented images in [0, 1] with their labels."""

    @abstractmethod
    def cost(self) -> tuple[int, int]:
        """(forward, backward) passes for one training image."""


OBJECTIVES: Registry[Objective] = Registry("objective")


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class Erm(Objective):
    """Empirical risk minimisation: the cross-entropy (Vapnik, 2013)."""

    name: ClassVar[str] = "erm"

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """CE(F(x), y)."""
        return F.cross_entropy(model(x), y)

    def cost(self) -> tuple[int, int]:
        """One of each."""
        return 1, 1


Pairing = Literal["two_permutations", "one_permutation"]


@dataclass(frozen=True, eq=False)
class _Mixed:
    """λ x_0 + (1-λ) x_1 with λ ~ Beta(α, α) for each example, and both labels."""

    images: Tensor
    first: Tensor
    second: Tensor
    lam: Tensor

    def loss(self, logits: Tensor) -> Tensor:
        """The cross-entropy of the mixed label."""
        first = F.cross_entropy(logits, self.first, reduction="none")
        second = F.cross_entropy(logits, self.second, reduction="none")
        return (self.lam * first + (1 - self.lam) * second).mean()


def _mixed(x: Tensor, y: Tensor, alpha: float, pairing: Pairing, rng: np.random.Generator) -> _Mixed:
    lam = torch.from_numpy(rng.beta(alpha, alpha, len(x)).astype(np.float32)).to(x.device)
    second = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    first = torch.arange(len(x), device=x.device)
    if pairing == "two_permutations":
        first = torch.from_numpy(rng.permutation(len(x))).to(x.device)
    weight = lam[:, None, None, None]
    return _Mixed(weight * x[first] + (1 - weight) * x[second], y[first], y[second], lam)


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class Mixup(Objective):
    """mixup (Zhang et al., 2018; paper, Sec. 2.2)."""

    name: ClassVar[str] = "mixup"
    alpha: float = number("λ ~ Beta(α, α), for each example", 1.0, low=1e-6)
    pairing: Pairing = choice(
        "two independent permutations of the batch (released code), or the batch with one (original mixup)",
        ("two_permutations", "one_permutation"),
        "two_permutations",
    )

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """Soft-label cross-entropy on mixed images."""
        mixed = _mixed(x, y, self.alpha, self.pairing, rng)
        return mixed.loss(model(mixed.images))

    def cost(self) -> tuple[int, int]:
        """One of each."""
        return 1, 1


@dataclass(frozen=True)
class _InnerAttack(Objective):
    epsilon: float = number("radius of the inner attack, in [0, 1] pixels", 8 / 255, low=0.0, high=1.0)
    step_size: float = number("step of the inner attack, in [0, 1] pixels", 2 / 255, low=0.0, high=1.0)
    steps: int = integer("steps of the inner attack", 10, low=1)
    inner_labels: Literal["true", "predicted"] = choice(
        "labels that the inner attack leaves: true, or the model's own (released code)",
        ("true", "predicted"),
        "true",
        option="inner_labels",
    )

    def attacked(self, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """Untargeted PGD on the batch, random start, against a frozen copy of the model in eval mode.

        The copy has its batch norms folded into its convolutions, which makes its steps shorter.
        """
        threat = ThreatModel(self.epsilon)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        plain = prepared(plain, x.device, "fp32")
        if self.inner_labels == "predicted":
            with torch.no_grad():
                y = plain(x).argmax(1)

        def gradient(iterate: Tensor, step: int) -> Tensor:
            iterate = iterate.detach().requires_grad_(True)
            loss = F.cross_entropy(plain(iterate), y, reduction="sum")
            return torch.autograd.grad(loss, iterate)[0]

        unit = torch.rand(x.shape, generator=generator).to(x.device)
        found = (x + threat.epsilon * (2 * unit - 1)).clamp(0, 1)
        for iterate in signed_steps(gradient, x, found, threat.epsilon, self.step_size, self.steps):
            found = iterate
        return found.detach()


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class Adversarial(_InnerAttack):
    """Adversarial training with clean : adversarial = 1 : 1, in two forwards (Eq. 19; Madry et al., 2018)."""

    name: ClassVar[str] = "adversarial"

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """The mean of CE(F(x), y) and CE(F(x + δ), y)."""
        perturbed = self.attacked(plain, x, y, rng)
        return (F.cross_entropy(model(x), y) + F.cross_entropy(model(perturbed), y)) / 2

    def cost(self) -> tuple[int, int]:
        """The inner attack's, and two of each."""
        guess = self.inner_labels == "predicted"
        return self.steps + 2 + guess, self.steps + 2


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class InterpolatedAt(_InnerAttack):
    """Interpolated adversarial training (Lamb et al., 2019; paper, A.2): mixup of the clean half and of the
    adversarial half with separate draws, both in one forward."""

    name: ClassVar[str] = "interpolated_at"
    alpha: float = number("λ ~ Beta(α, α), for each example", 1.0, low=1e-6)
    pairing: Pairing = choice("as in mixup", ("two_permutations", "one_permutation"), "two_permutations")

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """The mean of the two halves' soft-label cross-entropies."""
        perturbed = self.attacked(plain, x, y, rng)
        halves = [_mixed(images, y, self.alpha, self.pairing, rng) for images in (perturbed, x)]
        first, second = model(torch.cat([half.images for half in halves])).chunk(2)
        return (halves[0].loss(first) + halves[1].loss(second)) / 2

    def cost(self) -> tuple[int, int]:
        """The inner attack's, and two of each (the two halves)."""
        guess = self.inner_labels == "predicted"
        return self.steps + 2 + guess, self.steps + 2
