"""Test-time augmentation: the flips and crops of training, when an image is classified."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from mi_ray.data import flip_and_crop
from mi_ray.defenses.base import DEFENSES, RandomTransform
from mi_ray.parameters import flag, integer
from mi_ray.randomness import Draws
from mi_ray.sample_pool import SamplePool


@final
@DEFENSES.register
@dataclass(frozen=True)
class FlipCrop(RandomTransform):
    """A crop of the zero-padded image, at a random place, and a horizontal flip of every second one, as in training."""

    name: ClassVar[str] = "flip_crop"
    label: ClassVar[str] = "Flip and crop"
    colour: ClassVar[str] = "#AA4499"
    marker: ClassVar[str] = "8"
    padding: int = integer("pixels of zero padding on each side, from which the crop is taken", 4, low=0)
    flip: bool = flag("whether every second one is flipped", True)

    def check_images(self, height: int, width: int) -> None:
        """Raise ValueError for more padding than an image has pixels, of which most crops would show nothing."""
        if self.padding > min(height, width):
            raise ValueError(
                f"flip_crop.padding must not exceed the image's side, {min(height, width)} pixels; got {self.padding}"
            )

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """The same two numbers place a crop whether anything is flipped or not."""
        copies = x.expand(draws.executions, *x.shape)
        return flip_and_crop(copies, draws.uniform(3), self.padding, self.flip)

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Without padding and flips every crop is the image."""
        return {"padding": 0, "flip": False}
