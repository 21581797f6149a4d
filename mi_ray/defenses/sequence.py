"""Several defenses one after another in each execution, and votes in place of the mean of the executions."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

from torch import Tensor

from mi_ray.defenses.base import DEFENSES, RandomTransform
from mi_ray.parameters import methods
from mi_ray.randomness import Draws
from mi_ray.sample_pool import SamplePool


@dataclass(frozen=True)
class _Sequence(RandomTransform):
    """Applies several transformations one after another to every copy of an image, one copy for each execution.

    Each transformation draws the same random numbers as it would by itself, so that a sequence of one equals that one, bit for
    bit; where a defense comes a second time it draws other numbers. ŷ is F's prediction on the input itself for all of them,
    and samples come from one pool.

    Raises ValueError for a defense that is no random transformation, and for a sequence within a sequence.
    """

    uses_pool: ClassVar[bool] = True  # of the class: a sequence may hold what mixes, and then needs a pool
    of: tuple[RandomTransform, ...] = methods("the defenses, in the order in which they transform", DEFENSES)

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in self.of:
            if not isinstance(part, RandomTransform) or part.within():
                raise ValueError(
                    f"{self.name} must be of defenses that transform the input and are none of others; got {part.name}"
                )

    @final
    def within(self) -> tuple[RandomTransform, ...]:
        """See `RandomTransform.within`."""
        return self.of

    @final
    def needs_pool(self) -> bool:
        """See `RandomTransform.needs_pool`."""
        return any(part.needs_pool() for part in self.of)

    @final
    def is_smooth(self) -> bool:
        """See `Defense.is_smooth`."""
        return not self.votes and all(part.is_smooth() for part in self.of)

    @final
    def is_random(self) -> bool:
        """See `Defense.is_random`."""
        return any(part.is_random() for part in self.of)

    def check_images(self, height: int, width: int) -> None:
        """Raise ValueError when one of the defenses cannot take images of that size."""
        for part in self.of:
            part.check_images(height, width)

    @final
    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """The first makes copies of each image; each of the others transforms every copy once."""
        first, *others = self._families()
        copies = first[0].copies(x, partial(draws.of, first[1]), predicted, pool)
        several = predicted.repeat(draws.executions)
        for part, family in others:
            made = part.copies(copies.flatten(0, 1), partial(_folded, draws, family), several, pool)
            copies = made[0].unflatten(0, copies.shape[:2])
        return copies

    def _families(self) -> Iterator[tuple[RandomTransform, str]]:
        """Each defense with the family whose numbers it draws."""
        seen: Counter[str] = Counter()
        for part in self.of:
            seen[part.name] += 1
            yield part, part.name if seen[part.name] == 1 else f"{part.name}#{seen[part.name]}"

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """One defense that leaves the input as it is."""
        return {"of": [{"gaussian_noise": {"sigma": 0.0}}]}


def _folded(draws: Draws, family: str) -> Draws:
    """The numbers of a family for copies that are each transformed once."""
    return draws.of(family).folded()


@final
@DEFENSES.register
@dataclass(frozen=True)
class Chain(_Sequence):
    """Several defenses one after another in each execution: `chain: [random_resize: {crop: [20, 28]}, mi_ol: {lam: 0.5}]`."""

    name: ClassVar[str] = "chain"
    label: ClassVar[str] = "Chain"
    colour: ClassVar[str] = "#882255"
    marker: ClassVar[str] = "d"


@final
@DEFENSES.register
@dataclass(frozen=True)
class Vote(_Sequence):
    """Each execution of one or several defenses votes for a label, and the answer is the share of votes of each class.

    With Gaussian noise alone it is the smoothed classifier that `certify` bounds (Cohen, Rosenfeld and Kolter, 2019).
    An adversary's gradient is that of the mean softmax, since votes have none.
    """

    name: ClassVar[str] = "vote"
    label: ClassVar[str] = "Vote"
    colour: ClassVar[str] = "#332288"
    marker: ClassVar[str] = "p"
    votes: ClassVar[bool] = True
