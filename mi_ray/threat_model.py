"""What an adversary wants, may change and knows (paper, Appendix A.1)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, sqrt
from typing import Literal, get_args

Goal = Literal["untargeted", "targeted"]
Norm = Literal["linf", "l2", "l1", "spatial"]
Knowledge = Literal["oblivious", "black_box", "adaptive"]

MAX_NORM: Norm = "linf"  # The paper's, and the one that is meant where none is named.
# What an image may be moved by where the norm is "spatial" and epsilon is 1 (Engstrom et al. 2019): degrees of a rotation
# about the middle, and the share of a side by which it is shifted along it; either way.
DEGREES, SHIFT = 30.0, 0.1


@dataclass(frozen=True)
class Measure:
    """What there is to know of a norm, by which it is told how far an image is from its clean one.

    written: as the field writes it. of: what a distance is of, in words. diameter: the largest distance between two images
    of so many numbers (pixels times channels), each in [0, 1]. longest_step: what an attack's step may be at most.
    of_pixels: whether it measures a change of pixels, which is added to an image. sums: whether it adds pixels up, so that
    a distance may be above 1.
    """

    written: str
    of: str
    diameter: Callable[[int], float] = lambda numbers: 1.0
    longest_step: float = 1.0
    of_pixels: bool = True
    sums: bool = False


MEASURES: Mapping[Norm, Measure] = {
    "linf": Measure("linf", "|delta|"),
    "l2": Measure("L2", "L2 norm of delta", sqrt, sums=True),
    # A step of 1 turns one number of one pixel from black to white, which is little.
    "l1": Measure("L1", "L1 norm of delta", float, longest_step=100.0, sums=True),
    "spatial": Measure("spatial", "share of 30 degrees and of a tenth of the side", of_pixels=False),
}
NORMS: tuple[Norm, ...] = tuple(norm for norm, measure in MEASURES.items() if measure.of_pixels)
LONGEST_STEP = max(measure.longest_step for measure in MEASURES.values())
SMALLEST_STEP = 1e-6  # A step of zero goes nowhere, and an attack that goes nowhere makes every defense look good.
WORST_CASE = "worst_case"  # The attack of a cell that takes each point at its worst over a study's attacks.
ABSTAINS = -1  # A prediction where a defense gives no answer.
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


def step_of(epsilon: float, share: int, norm: Norm) -> float:
    """A step of a `share`-th of a radius (epsilon / share), not below `SMALLEST_STEP` nor above the norm's longest step."""
    return min(max(epsilon / share, SMALLEST_STEP), MEASURES[norm].longest_step)


@dataclass(frozen=True)
class ThreatModel:
    """An adversary's goal, capability and knowledge.

    epsilon: radius of the ball around the clean image, in [0, 1] pixels; a number or text such as "8/255". Where the norm is
    "spatial", the share of the rotations and shifts that an adversary may choose from.
    goal: "untargeted" (any wrong label) or "targeted" (one given label).
    norm: "linf", the paper's, the largest change of a pixel, which is at most 1; or "l2", the root of the sum of squares
    over all pixels and channels, which is at most the root of their number: 55.4 for images of 3 x 32 x 32, where 0.5 is
    what the field uses; or "l1", the sum of all their sizes, which is at most their number: 3072 there, where 12 is what the
    field uses; or "spatial", the largest of a rotation in units of 30 degrees and of the two shifts in units of a
    tenth of the side: an image may be turned and shifted, and not changed otherwise (Engstrom et al. 2019).
    knowledge: "oblivious" (sees the classifier F alone), "black_box" (may ask F behind the defense, and sees its answers
    alone) or "adaptive" (sees F and the defense).

    Raises ValueError when epsilon is below 0, or above 1 in the max norm or of rotations and shifts, or a word is not one of
    those above.
    """

    epsilon: float
    goal: Goal = "untargeted"
    norm: Norm = MAX_NORM
    knowledge: Knowledge = "oblivious"

    def __post_init__(self) -> None:
        epsilon = parse_number("epsilon", self.epsilon)
        sums = self.norm in [norm for norm, measure in MEASURES.items() if measure.sums]
        if sums and epsilon < 0:
            raise ValueError(f"epsilon must be at least 0; got {self.epsilon!r}")
        if not sums and not 0 <= epsilon <= 1:
            why = "1 is all rotations and shifts" if self.norm == "spatial" else "pixels are in [0, 1]"
            if self.norm != "spatial" and epsilon > 1:
                why += f"; of pixels up to 255 write {epsilon:g}/255"
            raise ValueError(f"epsilon must be in [0, 1] ({why}); got {self.epsilon!r}")
        object.__setattr__(self, "epsilon", epsilon)
        for name, allowed in (("goal", Goal), ("norm", Norm), ("knowledge", Knowledge)):
            if getattr(self, name) not in get_args(allowed):
                choices = ", ".join(get_args(allowed))
                raise ValueError(f"{name} must be one of {choices}; got {getattr(self, name)!r}")

    @property
    def measure(self) -> Measure:
        """What there is to know of its norm."""
        return MEASURES[self.norm]

    @property
    def leaves_label(self) -> bool:
        """Whether the goal is to leave a label, whatever comes in its place; else one given label is to be reached."""
        return self.goal == "untargeted"

    @property
    def tolerance(self) -> float:
        """So far may float32 rounding leave the ball: it grows with the radius where many pixels are added up."""
        return TOLERANCE * max(1.0, self.epsilon)

    def refuse_beyond(self, numbers: int) -> None:
        """Raise ValueError for a radius beyond every image of so many numbers, pixels times channels."""
        diameter = self.measure.diameter(numbers)
        if self.epsilon > diameter:
            raise ValueError(
                f"epsilon must be at most {diameter:.4g} in the norm {self.norm}, the largest distance "
                f"between two images of {numbers} numbers in [0, 1]; got {self.epsilon:g}"
            )
