"""NAME: a defense of yours, named by a sweep beside it with `plugins: [NAME]` and `- NAME: {amplitude: [0.1, 0.2]}`."""

from dataclasses import dataclass

from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.parameters import number


@DEFENSES.register
@dataclass(frozen=True)
class CLASS(RandomTransform):
    """x + b with b ~ U(-a, a), one shift for each image and execution. Change this one."""

    name = "NAME"
    amplitude: float = number("half-width a, in [0, 1] pixels", 0.1, low=0.0)

    def transform(self, x, draws, predicted, pool):  # [B, C, H, W] -> [E, B, C, H, W]
        return x + self.amplitude * (2 * draws.uniform(1)[..., None, None] - 1)

    @classmethod
    def identity(cls):  # the parameters with which nothing is changed
        return {"amplitude": 0.0}
