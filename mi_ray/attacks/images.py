"""The least that a new attack writes: images, made once, and how many passes that takes."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor, nn

from mi_ray.attacks.base import Adversarial, Attack, Batch, without_gradients
from mi_ray.parameters import kind_of

SCORING_DRAWS = 5  # Independent draws of a random model by which the images are scored.


@dataclass(frozen=True)
class ImagesAttack(Attack):
    """An attack without restarts and stops; a subclass writes `images`, and counts its passes in `passes`.

    passes: (forward, backward) passes of the model that `images` makes for one image, without those that score the result. A
    property where they depend on a parameter: `@property def passes(self): return self.steps, self.steps`.
    """

    passes: ClassVar[tuple[int, int]] = (1, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        passes: object = self.passes
        two = isinstance(passes, (tuple, list)) and len(passes) == 2
        if not two or not all(type(part) is int and part >= 0 for part in self.passes):
            raise ValueError(
                f"attack {self.name}: passes must be two whole numbers from 0 on, (forward, backward); got {passes!r}"
            )

    @abstractmethod
    def images(self, model: nn.Module, batch: Batch) -> Float[Tensor, "B C H W"]:
        """Images in the ball around `batch.x` and in [0, 1]: `batch.projected` brings any there.

        `with batch.bound(model, step=step):` fixes the draws of a random model for one step: an attack whose steps all meet the
        same draws fits these alone, and is weak. `batch.criterion.loss(model(x), batch.labels)` is what to make large, and
        `batch.stepped` goes a step along its gradient. Everything random comes from `batch.key` and `batch.points`, as in
        `batch.random_start()`.
        """

    @final
    def stops(self) -> tuple[int, ...]:
        """There is one result."""
        return (1,)

    @final
    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """What `passes` says of one call, and the scoring: one pass of F, or `SCORING_DRAWS` of a random model."""
        call, (forward, backward) = 1 + sum(parts), self.passes
        # Of a defense's answer no gradient reaches ŷ, nor a detector behind a hard decision.
        differentiated = (len(parts) != 1) + (parts[-1] if parts else 0)
        return (forward + (SCORING_DRAWS if parts else 1)) * call, backward * differentiated

    @final
    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """The images, with their loss and success."""
        made: object = self.images(model, batch)
        if not isinstance(made, Tensor) or made.shape != batch.x.shape:
            got = list(made.shape) if isinstance(made, Tensor) else kind_of(made)
            raise ValueError(f"{self.name}.images must return images {list(batch.x.shape)}, as they came; got {got}")
        return without_gradients(model, made[None].detach(), batch, self.stops(), SCORING_DRAWS)
