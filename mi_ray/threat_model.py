"""What an adversary wants, may change and knows (paper, Appendix A.1)."""

from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Literal, get_args

Goal = Literal["untargeted", "targeted"]
Norm = Literal["linf"]
Knowledge = Literal["oblivious", "black_box", "adaptive"]

SMALLEST_STEP = 1e-6  # A step of zero goes nowhere, and an attack that goes nowhere makes every defense look good.
TOLERANCE = 1e-6  # So far may float32 rounding of x + epsilon leave the ball; more than that is a fault.


def parse_number(name: str, value: object) -> float:
    """Read a number that a person wrote: 0.03, "1e-2", or a quotient of two decimal numbers such as "0.5/255".

    Raises ValueError for anything else, for a denominator of zero, and for what is not finite.
    """
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = _quotient(value) if isinstance(value, str) and "/" in value else float(value)
        except (ValueError, ZeroDivisionError, OverflowError):
            number = float("nan")
        if isfinite(number):
            return number
    raise ValueError(f"{name} must be a finite number or a fraction such as 8/255; got {value!r}")


def _quotient(text: str) -> float:
    """The float nearest to a quotient of two decimal numbers. Raises ValueError where the text is none."""
    numerator, denominator = (_exact(part) for part in text.split("/"))
    return float(numerator / denominator)


def _exact(text: str) -> Fraction:
    """A decimal number without rounding. A float looks at it first: an exponent of a billion would take all memory."""
    near = float(text)
    if not isfinite(near):
        raise ValueError(text)
    return Fraction(text) if near else Fraction(0)


@dataclass(frozen=True)
class ThreatModel:
    """An adversary's goal, capability and knowledge.

    epsilon: radius of the ball around the clean image, in [0, 1] pixels; a number or text such as "8/255".
    goal: "untargeted" (any wrong label) or "targeted" (one given label).
    norm: "linf", the only norm of the paper.
    knowledge: "oblivious" (sees the classifier F alone), "black_box" (may ask F behind the defense, and sees its answers
    alone) or "adaptive" (sees F and the defense).

    Raises ValueError when epsilon is outside [0, 1] or a word is not one of those above.
    """

    epsilon: float
    goal: Goal = "untargeted"
    norm: Norm = "linf"
    knowledge: Knowledge = "oblivious"

    def __post_init__(self) -> None:
        epsilon = parse_number("epsilon", self.epsilon)
        if not 0 <= epsilon <= 1:
            raise ValueError(f"epsilon must be in [0, 1] (pixels are in [0, 1]); got {self.epsilon!r}")
        object.__setattr__(self, "epsilon", epsilon)
        for name, allowed in (("goal", Goal), ("norm", Norm), ("knowledge", Knowledge)):
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise ValueError(f"{name} must be one of {choices}; got {getattr(self, name)!r}")

    @property
    def leaves_label(self) -> bool:
        """Whether the goal is to leave a label, whatever comes in its place; else one given label is to be reached."""
        return self.goal == "untargeted"
