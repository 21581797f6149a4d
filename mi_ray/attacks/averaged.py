"""The paper's own adaptive attack: PGD on mixed copies, their mean perturbation added to the image (App. B.2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.attacks.balls import MaxBall
from mi_ray.attacks.base import ATTACKS, Batch, Begun, Defended, score
from mi_ray.attacks.pgd import StepAttack
from mi_ray.parameters import choice, flag, integer
from mi_ray.randomness import Draws

TOGETHER = 5  # How many copies of each image pass F together.


def copy_gradients(
    classifier: nn.Module, copies: Float[Tensor, "N B C H W"], labels: Int64[Tensor, "N B"]
) -> tuple[Float[Tensor, "N B C H W"], Float[Tensor, "N B"]]:
    """(gradient, value) of log F_label at each copy; a few copies at a time, for memory's sake."""
    gradients, values = [], []
    for some, wanted in zip(copies.split(TOGETHER), labels.split(TOGETHER), strict=True):
        leaf = some.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = classifier(leaf.flatten(0, 1)).float()
            log_p = F.log_softmax(logits, dim=1).gather(1, wanted.flatten()[:, None]).view(wanted.shape)
        gradients.append(torch.autograd.grad(log_p.sum(), leaf)[0])
        values.append(log_p.detach())
    return torch.cat(gradients), torch.cat(values)


@final
@ATTACKS.register
@dataclass(frozen=True)
class Averaged(StepAttack):
    """The adaptive attack as its authors released it (Sec. 4.4, App. B.2, Fig. 4); every peculiarity is an option.

    N_A copies λx + (1-λ)x_s are drawn once a point, and the label that x_s leaves out is F's prediction on the clean
    image. PGD moves each copy within the full epsilon-ball around that copy and within the pixel box; the mean of
    the copies' perturbations is added to x, unscaled although the copies hold only λ of x, and not clipped. It is
    weaker than PGD on F; EOT-PGD is the attack to trust. Of MI-Combined the copies are MI-OL's.
    """

    name: ClassVar[str] = "averaged"
    display_name: ClassVar[str] = "Averaged PGD"
    needs_defense: ClassVar[bool] = True
    needs_pool: ClassVar[bool] = True  # Sec. 4.4 and App. B.2 define it for mixtures alone; a sweep runs it on no other
    eot: int | None = integer("N_A, the copies of each image; the study's N where left out", None, low=1)
    label: Literal["copy_prediction", "given"] = choice(
        "label left where untargeted: F's own prediction on each clean copy (as released), or the one handed in",
        ("copy_prediction", "given"),
        "copy_prediction",
    )
    step: Literal["common_sign", "own_sign", "summed"] = choice(
        "sign of the mean cross-entropy gradient, one for all copies (as released); each copy's own sign; or one sign "
        "of the summed gradients of F_label (Eq. 24)",
        ("common_sign", "own_sign", "summed"),
        "common_sign",
    )
    clip: bool = flag("clip the final image to the pixel box; as released it may leave it", False)
    scoring_draws: int = integer("independent draws by which images at a stop are compared", 5, low=1)

    @property
    def keeps_box(self) -> bool:
        """Whether its images stay in [0, 1]: only where the final image is clipped."""
        return self.clip

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """N_A forwards and backwards a step, N_A forwards for the copies' labels, one for ŷ, and the scoring.

        N_A is `eot`, or where that is left out the model's N.
        """
        passes, n = 1 + sum(parts), max(sum(parts), 1) if self.eot is None else self.eot
        guesses = n if self.label == "copy_prediction" else 0
        forward = 1 + guesses + max(self.steps) * n + len(self.steps) * self.scoring_draws * passes
        return self.restarts * forward, self.restarts * max(self.steps) * n

    def _labels(self, classifier: nn.Module, copies: Float[Tensor, "N B C H W"], batch: Batch) -> Int64[Tensor, "N B"]:
        """The label that each copy leaves, or reaches."""
        if not batch.threat.leaves_label or self.label == "given":
            return batch.labels.expand(copies.shape[:2])
        with torch.no_grad():
            return torch.stack([classifier(copy).argmax(1) for copy in copies])

    def _direction(self, gradients: Tensor, log_p: Tensor) -> Tensor:
        """The copies step along the sign of this: one direction for all [B, C, H, W], or one a copy [N, B, C, H, W].

        gradients: of log F_label at each copy. log_p: log F_label itself.
        """
        if self.step == "own_sign":
            return gradients
        if self.step == "common_sign":
            return gradients.mean(0)
        # ∇F = F ∇log F. Dividing by the largest F of a point leaves the sign, and keeps F from underflowing.
        return ((log_p - log_p.amax(0)).exp()[..., None, None, None] * gradients).sum(0)

    def _started(self, copies: Float[Tensor, "N B C H W"], batch: Batch) -> Float[Tensor, "N*B C H W"]:
        """Where each copy begins: uniform in its own ball, or at the copy itself."""
        centre = copies.flatten(0, 1)
        if not self.random_start:
            return centre
        unit = Draws(batch.key, batch.points, len(copies), 0, copies.device).uniform_images(copies.shape[2:])
        return MaxBall(centre, batch.epsilon).projected(centre + batch.epsilon * (2 * unit.flatten(0, 1) - 1))

    def path(self, model: nn.Module, batch: Batch, begun: Begun | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Every copy takes PGD's steps in its own ball, and the copies' mean perturbation is added to the image.

        Raises ValueError for a model that no defense stands before.
        """
        if not isinstance(model, Defended):
            raise ValueError("averaged attacks the copies that a defense makes; got a model without a defense")
        with torch.no_grad(), batch.bound(model, step=0):
            copies = model.copies(batch.x).clamp(0, 1)  # Mixtures are in the box, noise may leave it.
        classifier: Any = model.classifier
        left = self._labels(classifier, copies, batch)
        centre, shape, moved = copies.flatten(0, 1), copies.shape, self._started(copies, batch)
        ball = MaxBall(centre, batch.epsilon)
        for _ in range(max(self.steps)):
            gradients, log_p = copy_gradients(classifier, moved.view(shape), left)
            step = batch.criterion.sign * self.step_size * self._direction(gradients, log_p).sign()
            moved = ball.projected((moved.view(shape) + step).flatten(0, 1))
            found = batch.x + (moved - centre).view(shape).mean(0)
            yield found.clamp(0, 1) if self.clip else found, gradients.transpose(0, 1)

    def measure(
        self, model: nn.Module, images: Float[Tensor, "S B C H W"], batch: Batch
    ) -> tuple[Float[Tensor, "S B"], Float[Tensor, "S B"]]:
        """Scored by the defense's answers and the labels handed in, whatever labels the copies left."""
        return score(model, images, batch, self.scoring_draws)
