"""What training minimises, one class an objective: those of the paper (Sec. 2.2, 4.1, A.2) and some of others."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.balls import MaxBall
from mi_ray.classifiers import Classifier, prepared
from mi_ray.device import on_device
from mi_ray.parameters import Distribution, Parameterized, Registry, choice, integer, number, plain, ratio


@dataclass(frozen=True)
class Objective(Parameterized):
    """A training loss. A subclass writes `loss` and `cost`.

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


@dataclass(frozen=True)
class _OnePass(Objective):
    def cost(self) -> tuple[int, int]:
        """One forward and one backward pass."""
        return 1, 1


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class Erm(_OnePass):
    """Empirical risk minimisation: the cross-entropy (Vapnik, 2013)."""

    name: ClassVar[str] = "erm"

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """The mean of CE(F(x), y)."""
        return F.cross_entropy(model(x), y)


def _normals(x: Tensor, rng: np.random.Generator) -> Tensor:
    """Standard normals of the shape of the images."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    return on_device(torch.randn(x.shape, generator=generator), x.device)


Pairing = Literal["two_permutations", "one_permutation"]


@dataclass(frozen=True, eq=False)
class _Mix:
    """Which examples of a batch are mixed with which, and how: λ of the first, 1-λ of the second; each [B]."""

    lam: Tensor
    first: Tensor
    second: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """λ v_0 + (1-λ) v_1 of a batch of images or of hidden maps."""
        weight = self.lam.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
        return weight * values[self.first] + (1 - weight) * values[self.second]

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The cross-entropy of the mixed labels."""
        first = F.cross_entropy(logits, y[self.first], reduction="none")
        second = F.cross_entropy(logits, y[self.second], reduction="none")
        return (self.lam * first + (1 - self.lam) * second).mean()


def _ratios(number: int, lam: float | Distribution, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """λ of each example, [number]."""
    if isinstance(lam, float):
        return np.full(number, lam, np.float32)
    if lam.name == "quantiles":
        return lam.quantile(rng.random(number)).astype(np.float32)
    drawn, (first, second) = rng.beta if lam.name == "beta" else rng.uniform, lam.values
    return drawn(first, second, number).astype(np.float32)


ALPHA = 1.0


@dataclass(frozen=True)
class _Mixing(Objective):
    """What mixes examples of a batch. Raises ValueError where both α and λ are set."""

    alpha: float = number("λ ~ Beta(α, α), for each example", ALPHA, low=1e-6)
    lam: float | Distribution | None = ratio(
        "λ of each example in place of Beta(α, α), to match the inference's (App. B.1)", None, unsaid=True
    )
    pairing: Pairing = choice(
        "two independent permutations of the batch (released code), or the batch with one (original mixup)",
        ("two_permutations", "one_permutation"),
        "two_permutations",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lam is not None and self.alpha != ALPHA:
            raise ValueError(
                f"{self.name} takes λ from alpha or from lam, not from both; got alpha {self.alpha:g} and "
                f"lam {plain(self.lam)}"
            )

    def mix(self, x: Tensor, rng: np.random.Generator) -> _Mix:
        """Draw λ for each example, and which examples are paired."""
        drawn = Distribution("beta", (self.alpha, self.alpha)) if self.lam is None else self.lam
        lam = on_device(_ratios(len(x), drawn, rng), x.device)
        second = on_device(rng.permutation(len(x)), x.device)
        first = torch.arange(len(x), device=x.device)
        if self.pairing == "two_permutations":
            first = on_device(rng.permutation(len(x)), x.device)
        return _Mix(lam, first, second)


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class Mixup(_Mixing, _OnePass):
    """mixup (Zhang et al., 2018; paper, Sec. 2.2)."""

    name: ClassVar[str] = "mixup"

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """The cross-entropy of the mixed labels on mixed images."""
        mix = self.mix(x, rng)
        return mix.loss(model(mix.apply(x)), y)


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class ManifoldMixup(_Mixing, _OnePass):
    """Manifold mixup (Verma et al., 2019; paper, App. B.1): mixup of the input or of the output of a random early layer."""

    name: ClassVar[str] = "manifold_mixup"
    layers: int = integer("the input and the outputs of this many first layers are eligible", 2, low=0)

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """The cross-entropy of the mixed labels, where one layer's maps are mixed, drawn for each batch.

        Raises ValueError when the network has not so many layers."""
        layers = list(plain.network.children())
        if self.layers >= len(layers):
            raise ValueError(
                f"manifold_mixup.layers must be below the network's {len(layers)} layers; got {self.layers}"
            )
        mix, chosen = self.mix(x, rng), int(rng.integers(self.layers + 1))
        if chosen == 0:
            return mix.loss(model(mix.apply(x)), y)
        hook = layers[chosen - 1].register_forward_hook(lambda module, inputs, output: mix.apply(output))
        try:
            return mix.loss(model(x), y)
        finally:
            hook.remove()


def _frozen(plain: Classifier, device: torch.device) -> Classifier:
    """The model as an inner attack meets it: in eval mode, batch norms folded, in the precision of the training."""
    return prepared(plain, device, "bf16" if torch.is_autocast_enabled(device.type) else "fp32")


@dataclass(frozen=True)
class _InnerAttack(Objective):
    version: ClassVar[int] = 2  # In 1, the inner attack had fp32 weights, which each pass cast to bfloat16.
    epsilon: float = number("radius of the inner attack, in [0, 1] pixels", 8 / 255, low=0.0, high=1.0)
    step_size: float = number("step of the inner attack, in [0, 1] pixels", 2 / 255, low=1e-6, high=1.0)
    steps: int = integer("steps of the inner attack", 10, low=1)

    def ascended(self, frozen: Classifier, x: Tensor, start: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """PGD (Eq. 18) from a start in the ball: ascends a loss of the logits of a frozen classifier."""
        ball = MaxBall(x, self.epsilon)
        perturbed = ball.projected(start)
        for _ in range(self.steps):
            perturbed = perturbed.detach().requires_grad_(True)
            gradient = torch.autograd.grad(loss(frozen(perturbed)), perturbed)[0]
            perturbed = ball.ascended(perturbed.detach(), self.step_size, gradient)
        return perturbed.detach()


@dataclass(frozen=True)
class _LabelAttack(_InnerAttack):
    inner_labels: Literal["true", "predicted"] = choice(
        "labels that the inner attack leaves: true, or the model's own (released code)",
        ("true", "predicted"),
        "true",
        option="inner_labels",
    )

    def attacked(self, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """Untargeted PGD on the batch, random start, against a frozen copy of the model in eval mode."""
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        frozen = _frozen(plain, x.device)
        if self.inner_labels == "predicted":
            with torch.no_grad():
                y = frozen(x).argmax(1)
        unit = on_device(torch.rand(x.shape, generator=generator), x.device)
        start = x + self.epsilon * (2 * unit - 1)
        return self.ascended(frozen, x, start, lambda logits: F.cross_entropy(logits, y, reduction="sum"))

    def cost(self) -> tuple[int, int]:
        """The passes of the inner attack, and one forward and one backward each for clean and for attacked images."""
        guess = self.inner_labels == "predicted"
        return self.steps + 2 + guess, self.steps + 2


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class AdversarialTraining(_LabelAttack):
    """Adversarial training with clean : adversarial = 1 : 1, in two forwards (Eq. 19; Madry et al., 2018)."""

    name: ClassVar[str] = "adversarial"

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """The mean of CE(F(x), y) and CE(F(x + δ), y)."""
        perturbed = self.attacked(plain, x, y, rng)
        return (F.cross_entropy(model(x), y) + F.cross_entropy(model(perturbed), y)) / 2


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class InterpolatedAt(_Mixing, _LabelAttack):
    """Interpolated adversarial training (Lamb et al., 2019; paper, A.2): mixup of the clean half and of the
    adversarial half with separate draws, both in one forward."""

    name: ClassVar[str] = "interpolated_at"

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """The mean of the two halves' soft-label cross-entropies."""
        perturbed = self.attacked(plain, x, y, rng)
        halves = [(self.mix(images, rng), images) for images in (perturbed, x)]
        first, second = model(torch.cat([mix.apply(images) for mix, images in halves])).chunk(2)
        return (halves[0][0].loss(first, y) + halves[1][0].loss(second, y)) / 2


TRADES_START = 0.001  # standard deviation of the inner attack's start: at the clean image itself its gradient is zero


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class Trades(_InnerAttack):
    """TRADES (Zhang et al., 2019): CE(F(x), y) + β KL(F(x) || F(x')), x' the worst of the ball for that divergence."""

    name: ClassVar[str] = "trades"
    beta: float = number("weight β of the robust term", 6.0, low=0.0)

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """CE(F(x), y) + β KL(F(x) || F(x')), in two forward passes; the inner attack's model is in eval mode."""
        frozen = _frozen(plain, x.device)
        with torch.no_grad():
            clean = F.log_softmax(frozen(x), dim=1)
        start = x + TRADES_START * _normals(x, rng)
        worst = self.ascended(frozen, x, start, lambda logits: _divergence(clean, logits) * len(x))
        logits = model(x)
        return F.cross_entropy(logits, y) + self.beta * _divergence(F.log_softmax(logits, dim=1), model(worst))

    def cost(self) -> tuple[int, int]:
        """The passes of the inner attack with its one on clean images, and two forward and two backward passes."""
        return self.steps + 3, self.steps + 2


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """The batch's mean KL(F(x) || F(x')). clean: log-probabilities of x. logits: of x'."""
    return F.kl_div(F.log_softmax(logits, dim=1), clean, reduction="batchmean", log_target=True)


@final
@OBJECTIVES.register
@dataclass(frozen=True)
class Gaussian(_OnePass):
    """ERM under Gaussian noise, as a classifier is trained that is to be certified (Cohen, Rosenfeld and Kolter, 2019)."""

    name: ClassVar[str] = "gaussian"
    sigma: float = number("standard deviation σ of the noise, in [0, 1] pixels", low=0.0)

    def loss(self, model: nn.Module, plain: Classifier, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """The mean of CE(F(x + N(0, σ²)), y), the noise not clipped, drawn anew for each image."""
        return F.cross_entropy(model(x + self.sigma * _normals(x, rng)), y)
