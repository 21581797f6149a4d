"""The fixed attack that every other attack is held against (docs/checks.md): nobody tunes it, so nobody can weaken it."""

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch
from mi_ray.attacks.eot_pgd import EotPgd
from mi_ray.parameters import integer
from mi_ray.threat_model import NORMS, Norm, step_of

STEPS = 20


@final
@ATTACKS.register
@dataclass(frozen=True)
class Reference(Attack):
    """PGD-20 with steps of epsilon / 4 on F, and EOT-PGD-20 on the logarithm of the mean answer behind a defense.

    Its random start is its own; behind a defense each step meets the draws that every other attack meets at that step, so that
    both are told apart by what they do and not by their luck.
    """

    name: ClassVar[str] = "reference"
    display_name: ClassVar[str] = "Reference PGD"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    eot: int | None = integer("executions averaged at each step; the study's N where left out", None, low=1)

    def _made(self, epsilon: float, norm: Norm) -> EotPgd:
        return EotPgd(steps=(STEPS,), step_size=step_of(epsilon, 4, norm), eot=self.eot, scoring_draws=1)

    def stops(self) -> tuple[int, ...]:
        """Its number of steps alone."""
        return (STEPS,)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """Those of EOT-PGD with as many steps."""
        return self._made(0.0, "linf").cost(parts)

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """EOT-PGD with its fixed parameters; on F itself this is PGD."""
        return self._made(batch.epsilon, batch.threat.norm).run(model, batch)
