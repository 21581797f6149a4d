"""A defense of your own: one class, found by the sweep beside it through its line `plugins: [my_defense]`.

Its parameters become YAML keys with their error messages, axes of the grid and columns of the results; nothing else has
to be told about it. Change this one, and give it another name.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.parameters import number
from mi_ray.randomness import Draws
from mi_ray.sample_pool import SamplePool


@DEFENSES.register
@dataclass(frozen=True)
class Brightness(RandomTransform):
    """x + b with b ~ U(-a, a), one shift of the brightness for each image and execution."""

    name: ClassVar[str] = "brightness"
    label: ClassVar[str] = "Brightness"  # how figures name it; this and the two below may be left out
    colour: ClassVar[str] = "#0072B2"
    marker: ClassVar[str] = "D"
    amplitude: float = number("half-width a, in [0, 1] pixels", low=0.0)

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """Images [B, 3, H, W] become E random versions of each, [E, B, 3, H, W].

        Everything random comes from `draws`, so that the same point gets the same numbers on any machine.
        predicted: the classifier's own label of each image, [B]. pool: other images, for a defense with `uses_pool`.
        """
        shift = self.amplitude * (2 * draws.uniform(1) - 1)  # [E, B, 1]
        return x + shift[..., None, None]

    @classmethod
    def identity(cls) -> dict[str, float]:
        """The parameters with which nothing is changed; a test of every defense uses them."""
        return {"amplitude": 0.0}
