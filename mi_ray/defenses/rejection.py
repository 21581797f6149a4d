"""Detection as the purpose of a defense: F answers, unless its own label loses too much under a random transformation.

The paper detects adversarial inputs by the drop of F_ŷ under mixup inference (Sec. 3.3, Fig. 3(a)).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from mi_ray.defenses.base import DEFENSES, Defense, RandomTransform, drop
from mi_ray.parameters import methods, number


@final
@DEFENSES.register
@dataclass(frozen=True)
class Reject(Defense):
    """F's own answer, and none where the drop F_ŷ(x) - F_D,ŷ(x) reaches a threshold.

    D is the mean of the executions of one transformation, MI-PL in the paper. All thresholds are read off the same
    executions. An answer that is withheld is shown as equal probabilities. Raises ValueError for several transformations, and
    for what is none.
    """

    name: ClassVar[str] = "reject"
    label: ClassVar[str] = "Reject"
    colour: ClassVar[str] = "#DDAA33"
    marker: ClassVar[str] = "1"
    abstains: ClassVar[bool] = True
    of: tuple[RandomTransform, ...] = methods("the transformation by which an input is judged, such as mi_pl", DEFENSES)
    threshold: float = number("drop at or above which there is no answer", low=-1.0, high=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.of) != 1 or not isinstance(self.of[0], RandomTransform):
            raise ValueError(
                f"reject judges by one random transformation; got {', '.join(part.name for part in self.of)}"
            )

    def check_images(self, height: int, width: int) -> None:
        """Raise ValueError when the transformation cannot take images of that size."""
        self.of[0].check_images(height, width)

    def components(self) -> tuple[RandomTransform, ...]:
        """The detector alone."""
        return self.of

    def abstained(self, undefended: Tensor, averages: Sequence[Tensor]) -> Tensor:
        """Whether the drop reaches the threshold."""
        return drop(undefended, averages[0]) >= self.threshold

    def join(self, undefended: Tensor, averages: Sequence[Tensor]) -> Tensor:
        """F(x), and equal probabilities where it abstains."""
        equal = torch.full_like(undefended, 1 / undefended.shape[-1])
        return torch.where(self.abstained(undefended, averages)[..., None], equal, undefended)

    def soft_join(self, undefended: Tensor, averages: Sequence[Tensor], temperature: float) -> Tensor:
        """Both answers weighed by sigmoid((drop - threshold) / temperature) in place of the decision."""
        judged = torch.sigmoid((drop(undefended, averages[0]) - self.threshold) / temperature)[..., None]
        return judged / undefended.shape[-1] + (1 - judged) * undefended

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """With noise of σ = 0 the drop is 0, which is below the threshold of 1, so that F always answers."""
        return {"of": [{"gaussian_noise": {"sigma": 0.0}}], "threshold": 1.0}
