"""PGD through a random defense: expectation over transformation (Athalye et al., 2018; Tramèr et al., 2020)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mi_ray.attacks.base import ATTACKS, Batch, Begun, Defended, score
from mi_ray.attacks.criterion import Criterion
from mi_ray.attacks.pgd import StepAttack
from mi_ray.parameters import choice, integer, integers, number
from mi_ray.threat_model import LONGEST_STEP, NORMS, SMALLEST_STEP, Norm, ThreatModel

TEMPERATURE = 0.05  # Width of a smooth decision, on the scale of the gap that it judges.


class _Recomputed(nn.Module):
    """F whose activations are not kept for the backward pass but computed again, in the memory of one chunk."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.classifier, x, use_reentrant=False, preserve_rng_state=False)


def joins_several(model: nn.Module) -> bool:
    """Whether the model is F behind a defense whose answer is joined of more than its executions."""
    return isinstance(model, Defended) and model.defense.components() not in ((), (model.defense,))


def averages(model: nn.Module) -> bool:
    """Whether the model is F behind a defense whose answer is the mean of its executions."""
    return isinstance(model, Defended) and model.defense.components() == (model.defense,)


def attacked(model: nn.Module, which: str = "whole", temperature: float = TEMPERATURE) -> nn.Module:
    """What an adversary differentiates: F itself, or the named branch of the defense with its decisions made smooth."""
    if not isinstance(model, Defended):
        return model
    aim = model.branch(which, temperature)
    if joins_several(aim):  # The whole answer has one graph over all executions.
        aim.classifier = _Recomputed(aim.classifier)
    return aim


def gradient_cost(parts: tuple[int, ...]) -> tuple[int, int]:
    """(forward, backward) passes of F for one gradient through a defense whose components take these passes.

    One component: ŷ is detached. Several: the answer has one graph over F and all of them, computed twice.
    """
    passes = 1 + sum(parts)
    return passes * (1 + (len(parts) > 1)), passes - (len(parts) == 1)


def executions(model: nn.Module, x: Float[Tensor, "B C H W"]) -> Iterator[Float[Tensor, "E B L"]]:
    """log-probabilities of every execution, a chunk at a time, each with a graph of its own.

    F without a defense is one execution; so is the answer of a defense that joins several components.
    """
    if not isinstance(model, Defended):
        yield F.log_softmax(model(x).float(), dim=1)[None]
    elif joins_several(model):
        yield model(x)[None]
    else:
        yield from model.chunks(x)


def of_label(log_probabilities: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "*S B"]:
    """The log-probability of each image's label."""
    return log_probabilities.gather(-1, labels.expand(log_probabilities.shape[:-1])[..., None])[..., 0]


def mean_gradient(
    model: nn.Module, x: Float[Tensor, "B C H W"], loss: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B"], Float[Tensor, "B L"]]:
    """(gradient, value) of a loss's mean over executions, and the logarithm of the executions' summed probabilities.

    loss: log-probabilities [E, B, L] -> [E, B].

    The gradient is added up chunk by chunk: it needs the memory of one, whatever the number of executions.
    """
    x = x.detach().requires_grad_(True)
    gradient, values, answers = torch.zeros_like(x, requires_grad=False), [], []
    with torch.enable_grad():
        for found in executions(model, x):
            value = loss(found)
            gradient += torch.autograd.grad(value.sum(), x)[0]
            values.append(value.detach())
            answers.append(found.detach())
    value = torch.cat(values)
    return gradient / len(value), value.mean(0), torch.cat(answers).logsumexp(0)


def log_mean_gradient(
    model: nn.Module, x: Float[Tensor, "B C H W"], labels: Int64[Tensor, "B"]
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B"]]:
    """(gradient, value) of log mean_i p_i, p_i the probability of the label in execution i.

    The gradient is Σ p_i ∇log p_i / Σ p_i. Both sums are kept relative to the largest p_i so far, so that one pass
    over the chunks gives it exactly, also where every p_i underflows.
    """
    x = x.detach().requires_grad_(True)
    weighted, total, count = torch.zeros_like(x, requires_grad=False), x.new_zeros(len(x)), 0
    largest = torch.full_like(total, -torch.inf)
    with torch.enable_grad():
        for found in executions(model, x):
            log_p = of_label(found, labels)
            before, largest = largest, torch.maximum(largest, log_p.detach().amax(0))
            weight, shrink = (log_p.detach() - largest).exp(), (before - largest).exp()
            added = torch.autograd.grad((weight * log_p).sum(), x)[0]
            weighted = weighted * shrink[:, None, None, None] + added
            total = total * shrink + weight.sum(0)
            count += len(log_p)
    return weighted / total[:, None, None, None], largest + total.log() - torch.tensor(float(count)).log()


def mean_answer(model: nn.Module, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
    """The logarithm of the mean probabilities over executions, without a gradient."""
    total, count = torch.full((1, 1), -torch.inf, device=x.device), 0
    with torch.no_grad():
        for found in executions(model, x):
            total = torch.logaddexp(total, found.logsumexp(0))
            count += len(found)
    return total - torch.log(torch.tensor(float(count)))


def answer_gradient(
    model: nn.Module, x: Float[Tensor, "B C H W"], loss: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B"], Float[Tensor, "B L"]]:
    """(gradient, value) of a loss of the mean answer, and that answer's logarithm. loss: log-probabilities [B, L] -> [B].

    The executions are passed twice, first for the answer and then for their gradients, so that any loss of it needs the
    memory of one chunk: d/dx of the loss is Σ_l w_l mean_i ∇p_il / p_l with w the loss's gradient in log p.
    """
    answer = mean_answer(model, x).requires_grad_(True)
    with torch.enable_grad():
        value = loss(answer)
        weights = torch.autograd.grad(value.sum(), answer)[0]
    answer, leaf = answer.detach(), x.detach().requires_grad_(True)
    gradient, count = torch.zeros_like(leaf, requires_grad=False), 0
    with torch.enable_grad():
        for found in executions(model, leaf):
            shares = (found - answer).exp()
            gradient += torch.autograd.grad((weights * shares).sum(), leaf)[0]
            count += len(found)
    return gradient / count, value.detach(), answer


def evasion_loss(
    undefended: Float[Tensor, "*S B L"],
    averaged: Float[Tensor, "*S B L"],
    labels: Int64[Tensor, "B"],
    wanted: Criterion,
    weight: float,
) -> Float[Tensor, "*S B"]:
    """CE(F(x), y) - weight (F_ŷ(x) - F_MI,ŷ(x)); the cross-entropy negated where a target is sought.

    undefended: log F(x). averaged: the mean probabilities of the detector's executions. ŷ: the prediction of F on x.
    """
    predicted = undefended.detach().argmax(-1, keepdim=True)
    gap = (undefended.exp().gather(-1, predicted) - averaged.gather(-1, predicted))[..., 0]
    return wanted.loss(undefended, labels) - weight * gap


def evasion_gradient(
    detector: nn.Module,
    x: Float[Tensor, "B C H W"],
    labels: Int64[Tensor, "B"],
    wanted: Criterion,
    weight: float,
) -> Float[Tensor, "B C H W"]:
    """The gradient of `evasion_loss`, in the memory of one chunk: the loss is linear in every execution."""
    leaf = x.detach().requires_grad_(True)
    classifier: Any = detector.classifier
    with torch.enable_grad():
        undefended = F.log_softmax(classifier(leaf).float(), dim=1)
        alone = evasion_loss(undefended, torch.zeros_like(undefended), labels, wanted, weight)
        gradient = torch.autograd.grad(alone.sum(), leaf)[0]
    predicted = undefended.detach().argmax(1)
    return gradient + weight * mean_gradient(detector, x, lambda found: of_label(found, predicted).exp())[0]


@final
@ATTACKS.register
@dataclass(frozen=True)
class EotPgd(StepAttack):
    """PGD on x through the whole defense, with fresh draws at each step: the adaptive attack to trust first.

    The gradient reaches x through every execution (for mixup inference through λx); ŷ is detached. `loss`:
    mean_cross_entropy is the mean over executions of CE(F(x̃_i), y); cross_entropy_of_mean is CE of the defense's
    answer, -log mean_i F_y(x̃_i), never a softmax of probabilities. They are one where the defense joins several
    components (MI-Combined attacked `whole`): the cross-entropy of its answer with the threshold made smooth;
    activations are then computed twice, so that the memory stays that of one chunk. evade is the adversary of a
    detector: CE(F(x), y) - evade_weight (F_ŷ(x) - F_MI,ŷ(x)), i.e. fool F and keep the gap under any threshold.

    On F itself it is PGD.
    """

    name: ClassVar[str] = "eot_pgd"
    display_name: ClassVar[str] = "EOT-PGD"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    goes_on: ClassVar[bool] = True
    steps: tuple[int, ...] = integers("number of steps; a list is read off one trajectory", (50,), low=1, high=100_000)
    step_size: float = number("length of a step in the norm of the ball", 1 / 255, low=SMALLEST_STEP, high=LONGEST_STEP)
    eot: int | None = integer("executions averaged at each step; the study's N where left out", None, low=1)
    loss: Literal["mean_cross_entropy", "cross_entropy_of_mean", "evade"] = choice(
        "what it ascends: the executions' mean cross-entropy, that of their mean, or F's while a detector is evaded",
        ("mean_cross_entropy", "cross_entropy_of_mean", "evade"),
        "cross_entropy_of_mean",
    )
    draws: Literal["fresh", "fixed"] = choice(
        "fresh: new draws of the defense at each step; fixed: the same at every step", ("fresh", "fixed"), "fresh"
    )
    branch: Literal["whole", "detector", "fallback"] = choice(
        "which part of a defense of several components is attacked", ("whole", "detector", "fallback"), "whole"
    )
    temperature: float = number(
        "width of the sigmoid that stands for a threshold in the gradient; success is by the threshold itself",
        TEMPERATURE,
        low=1e-6,
        high=10.0,
    )
    evade_weight: float = number("weight of the detector's gap in the loss `evade`", 2.0, low=0.0)
    scoring_draws: int = integer("independent draws by which images at a stop are compared", 5, low=1)

    @property
    def by_accuracy(self) -> bool:
        """True, but for the loss `evade`, which fools F and lowers a detector's gap as well."""
        return self.loss != "evade"

    def check(self, threat: ThreatModel, classes: int) -> None:
        """Raise ValueError for an oblivious attack on a detector or on part of a defense: it sees F alone."""
        if threat.knowledge == "oblivious" and self.loss == "evade":
            raise ValueError(
                "eot_pgd with loss: evade evades a detector: it needs `knowledge: adaptive`; got oblivious"
            )
        if threat.knowledge == "oblivious" and self.branch != "whole":
            raise ValueError(
                f"eot_pgd with branch: {self.branch} attacks part of a defense: it needs `knowledge: adaptive`; "
                "got oblivious"
            )

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """One gradient a step (`gradient_cost`; `evade` passes F once more), and `scoring_draws` answers at each stop."""
        passes, draws = 1 + sum(parts), self.scoring_draws if parts else 1
        aim = parts[:1] if self.loss == "evade" or self.branch == "detector" else parts
        forward, backward = gradient_cost(aim[-1:] if self.branch == "fallback" else aim)
        evading = self.loss == "evade"
        steps = max(self.steps)
        scoring = (
            len(self.steps) * draws * (1 + sum(parts[:1]) if evading else passes) if self.scores(bool(parts)) else 0
        )
        return self.restarts * (steps * (forward + evading) + scoring), self.restarts * steps * (backward + evading)

    def _aim(self, model: nn.Module) -> nn.Module:
        if self.loss == "evade" and not isinstance(model, Defended):
            raise ValueError("eot_pgd with loss: evade evades a detector; got a model that no defense stands before")
        return attacked(model, "detector" if self.loss == "evade" else self.branch, self.temperature)

    def _gradient(self, aim: nn.Module, x: Float[Tensor, "B C H W"], batch: Batch) -> Float[Tensor, "B C H W"]:
        """The gradient at x of the loss that is ascended, summed over the executions chunk by chunk."""
        if self.loss == "evade":
            return evasion_gradient(aim, x, batch.labels, batch.criterion, self.evade_weight)
        if self.loss == "mean_cross_entropy":
            return mean_gradient(aim, x, lambda found: batch.criterion.loss(found, batch.labels))[0]
        return batch.criterion.sign * log_mean_gradient(aim, x, batch.labels)[0]

    def path(self, model: nn.Module, batch: Batch, begun: Begun | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """PGD's steps (Eq. 18), each along a gradient that is averaged over executions of the defense."""
        aim = self._aim(model)
        x, steps = self.start(batch, begun)
        for step in steps:
            with batch.bound(aim, step=1 if self.draws == "fixed" else step + 1):
                gradient = self._gradient(aim, x, batch)
            x = batch.stepped(x, self.step_size, gradient)
            yield x, gradient

    def measure(
        self, model: nn.Module, images: Float[Tensor, "S B C H W"], batch: Batch
    ) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B"]]:
        """Success by the hard decision of the whole defense and the loss of its answer; of `evade` by F's and its loss."""
        if self.loss != "evade":
            return score(model, images, batch, self.scoring_draws)
        detector: Any = self._aim(model)
        loss, success = (torch.zeros(images.shape[:2], device=images.device) for _ in range(2))
        for draw in range(1, self.scoring_draws + 1):
            with torch.no_grad(), batch.bound(detector, restart=0, step=0, draw=draw):
                for at, (undefended, (runs,)) in enumerate(map(detector.parts, images)):
                    averaged = runs.exp().mean(0)
                    loss[at] += evasion_loss(undefended, averaged, batch.labels, batch.criterion, self.evade_weight)
                    success[at] = batch.criterion.reached(undefended, batch.labels)
        return loss / self.scoring_draws, success
