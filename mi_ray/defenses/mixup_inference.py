"""Mixup inference: MI-PL, MI-OL and MI-Combined (paper, Sec. 3 and 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from mi_ray.defenses.base import DEFENSES, Defense, RandomTransform, drop
from mi_ray.parameters import Distribution, choice, integer, number, ratio
from mi_ray.randomness import Draws
from mi_ray.sample_pool import SamplePool


def _mix(x: Tensor, other: Tensor, lam: float | Distribution, draws: Draws) -> Tensor:
    """λx + (1-λ)x_s, λ fixed or drawn for each execution (App. B.1)."""
    if isinstance(lam, float):
        return lam * x + (1 - lam) * other
    unit = draws.uniform(1)[..., 0]
    if lam.name == "uniform":
        low, high = lam.values
        unit = low + (high - low) * unit
    else:
        unit = torch.from_numpy(lam.quantile(unit.cpu().double().numpy())).to(unit)
    drawn = unit[..., None, None, None]
    return drawn * x + (1 - drawn) * other


@dataclass(frozen=True)
class _MixupInference(RandomTransform):
    uses_pool: ClassVar[bool] = True
    sampled: ClassVar[Literal["predicted", "other"]]  # The label of x_s: ŷ, or another.
    lam: float | Distribution = ratio("mixup ratio λ, the share of the input")

    @final
    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """λx + (1-λ)x_s (Alg. 1)."""
        assert pool is not None
        return _mix(x, pool.draw(draws, predicted, self.sampled), self.lam, draws)

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """With λ = 1 nothing is mixed in."""
        return {"lam": 1.0}


@final
@DEFENSES.register
@dataclass(frozen=True)
class MiPl(_MixupInference):
    """Mixup inference with the predicted label: x_s from p_s(x | ŷ) (Sec. 3.2.1)."""

    name: ClassVar[str] = "mi_pl"
    label: ClassVar[str] = "MI-PL"
    colour: ClassVar[str] = "#CC79A7"
    marker: ClassVar[str] = "P"
    sampled: ClassVar[Literal["predicted", "other"]] = "predicted"


@final
@DEFENSES.register
@dataclass(frozen=True)
class MiOl(_MixupInference):
    """Mixup inference with other labels: x_s from p_s(x | y_s), y_s uniform on the labels other than ŷ (Sec. 3.2.2)."""

    name: ClassVar[str] = "mi_ol"
    label: ClassVar[str] = "MI-OL"
    colour: ClassVar[str] = "#D55E00"
    marker: ClassVar[str] = "X"
    sampled: ClassVar[Literal["predicted", "other"]] = "other"


@final
@DEFENSES.register
@dataclass(frozen=True)
class MiCombined(Defense):
    """MI-OL where MI-PL judges the input adversarial, F(x) elsewhere (Sec. 4.3).

    The gap is F_ŷ(x) - F_MI-PL,ŷ(x), i.e. -ΔF_ŷ of Eq. 9; gap >= threshold means adversarial. It combines the outputs
    that mi_pl and mi_ol store of their own, so a threshold costs no passes. The released code differs in what it returns for
    an accepted input and in its statistic (max_k F_k(x) - max_k F_MI-PL,k(x)): `accept` and `statistic`.
    """

    name: ClassVar[str] = "mi_combined"
    label: ClassVar[str] = "MI-Combined"
    colour: ClassVar[str] = "#E69F00"
    marker: ClassVar[str] = "h"
    lam_pl: float | Distribution = ratio("mixup ratio of the detector MI-PL")
    lam_ol: float | Distribution = ratio("mixup ratio of the fallback MI-OL")
    threshold: float = number("gap at or above which an input counts as adversarial", low=-1.0, high=1.0)
    accept: Literal["undefended", "pl_average"] = choice(
        "answer for an input judged clean",
        ("undefended", "pl_average"),
        "undefended",
        option="combined_accept",
    )
    statistic: Literal["predicted_class", "maximum"] = choice(
        "which probabilities the gap compares",
        ("predicted_class", "maximum"),
        "predicted_class",
        option="combined_statistic",
    )
    executions_pl: int | None = integer(
        "executions of MI-PL, where they differ from N", None, low=1, option="combined_executions_pl"
    )

    def components(self) -> tuple[RandomTransform, ...]:
        """MI-PL, the detector, and then MI-OL, the fallback."""
        return MiPl(lam=self.lam_pl), MiOl(lam=self.lam_ol)

    def executions_of(self, position: int, executions: int) -> int:
        """As many as the defense is asked for, or `executions_pl` for the detector."""
        return self.executions_pl if position == 0 and self.executions_pl is not None else executions

    def gap(self, undefended: Tensor, detector: Tensor) -> Tensor:
        """The detector's statistic [*S, B]: higher is more adversarial."""
        if self.statistic == "maximum":
            return undefended.amax(-1) - detector.amax(-1)
        return drop(undefended, detector)

    def join(self, undefended: Tensor, averages: Sequence[Tensor]) -> Tensor:
        """MI-OL's average where the gap reaches the threshold, else the accepted answer."""
        detector, fallback = averages
        accepted = undefended if self.accept == "undefended" else detector
        return torch.where((self.gap(undefended, detector) >= self.threshold)[..., None], fallback, accepted)

    def soft_join(self, undefended: Tensor, averages: Sequence[Tensor], temperature: float) -> Tensor:
        """The two answers weighed by sigmoid((gap - threshold) / temperature) in place of the decision."""
        detector, fallback = averages
        accepted = undefended if self.accept == "undefended" else detector
        judged = torch.sigmoid((self.gap(undefended, detector) - self.threshold) / temperature)[..., None]
        return judged * fallback + (1 - judged) * accepted

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """With λ_OL = 1 both answers are F(x), whatever the detector says."""
        return {"lam_pl": 1.0, "lam_ol": 1.0, "threshold": 0.2}
