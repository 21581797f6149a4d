"""No defense: the row that every other is compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor

from mi_ray.defenses.base import DEFENSES, Defense, RandomTransform


@final
@DEFENSES.register
@dataclass(frozen=True)
class Undefended(Defense):
    """F(x) as it is: deterministic, and one pass."""

    name: ClassVar[str] = "none"
    label: ClassVar[str] = "No defense"
    colour: ClassVar[str] = "#000000"
    marker: ClassVar[str] = "*"

    def components(self) -> tuple[RandomTransform, ...]:
        """None: nothing is executed."""
        return ()

    def join(self, undefended: Tensor, averages: Sequence[Tensor]) -> Tensor:
        """The answer is F(x)."""
        return undefended

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """It has no parameters, and is always F itself."""
        return {}
