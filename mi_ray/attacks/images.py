"""The least that a new attack writes: images, made once, and how many passes that takes."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor, nn

from mi_ray.attacks.base import Adversarial, Attack, Batch, without_gradients

SCORING_DRAWS = 5  # Independent draws of a random model by which the images are scored.


@dataclass(frozen=True)
class ImagesAttack(Attack):
    """An attack without restarts and stops; a subclass writes `images`, and counts its passes in `passes`.

    passes: (forward, backward) passes of the model that `images` makes for one image.
    """

    passes: ClassVar[tuple[int, int]] = (1, 1)

    @abstractmethod
    def images(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B C H W"]:
        """Images in the ball around `batch.x` and in [0, 1]: `batch.projected` brings any there.

        `with batch.bound(model):` fixes the draws of a random model, and `batch.criterion.loss(model(x), batch.labels)` is
        what to make large. Everything random comes from `batch.key` and `batch.points`, as in `batch.random_start()`.
        """

    @final
    def stops(self) -> tuple[int, ...]:
        """There is one result."""
        return (1,)

    @final
    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """What `passes` says of one call, and the scoring: one pass of F, or `SCORING_DRAWS` of a random model."""
        call, (forward, backward) = 1 + sum(parts), self.passes
        return (forward + (SCORING_DRAWS if parts else 1)) * call, backward * call

    @final
    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """The images, with their loss and success."""
        return without_gradients(model, self.images(model, batch)[None].detach(), batch, self.stops(), SCORING_DRAWS)
