"""What a defense is: N random transformations of one input, whose softmax outputs are averaged (paper, Alg. 1)."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mi_ray.networks import OwnNetwork
from mi_ray.parameters import Parameterized, Registry, kind_of
from mi_ray.randomness import Draws, Key, NoDraws
from mi_ray.sample_pool import SamplePool

CHUNK = 5  # So many executions run together, whatever N is, so that N is a prefix of any larger N.
EVALUATE = "evaluate"  # The purpose of the draws that score a defense, which no attack uses.


@dataclass(frozen=True)
class Defense(Parameterized):
    """What turns F and an input into a probability vector. Subclass `RandomTransform`, unless it joins several.

    `components` are the random transformations that it averages; `join` makes its answer of F(x) and their averages.
    abstains: whether it may give no answer. label, colour and marker are how figures name and draw it, the latter two as
    matplotlib takes them. They decide no result; a defense without them is called by its name and drawn in a colour that is
    free.
    """

    label: ClassVar[str] = ""
    colour: ClassVar[str] = ""
    marker: ClassVar[str] = ""
    abstains: ClassVar[bool] = False

    @abstractmethod
    def components(self) -> tuple["RandomTransform", ...]:
        """The random transformations to execute, in order; none for a defense that only looks at F(x)."""

    @abstractmethod
    def join(
        self, undefended: Float[Tensor, "*S B L"], averages: Sequence[Float[Tensor, "*S B L"]]
    ) -> Float[Tensor, "*S B L"]:
        """The defense's probabilities. undefended: F(x). averages: the mean softmax of each component, in order."""

    @classmethod
    @abstractmethod
    def identity(cls) -> dict[str, Any] | None:
        """Parameters at which the defended classifier is F itself; where executions vote, at which all vote for F's label.

        None where there are none, as of what rounds always.
        """

    @classmethod
    def look(cls) -> dict[str, str]:
        """How figures name and draw the defense, as a study's manifest holds it; what the class leaves open is absent."""
        told = {"label": cls.label or cls.name, "colour": cls.colour, "marker": cls.marker}
        return {key: value for key, value in told.items() if value}

    def soft_join(
        self, undefended: Float[Tensor, "*S B L"], averages: Sequence[Float[Tensor, "*S B L"]], temperature: float
    ) -> Float[Tensor, "*S B L"]:
        """`join` with its decisions made smooth, for an adversary's gradient; the same where it decides nothing."""
        return self.join(undefended, averages)

    def abstained(
        self, undefended: Float[Tensor, "*S B L"], averages: Sequence[Float[Tensor, "*S B L"]]
    ) -> Bool[Tensor, "*S B"]:
        """Where it gives no answer; its arguments are those of `join`."""
        return torch.zeros(undefended.shape[:-1], dtype=torch.bool, device=undefended.device)

    def executions_of(self, position: int, executions: int) -> int:
        """How many executions the component at that position takes where the defense is asked for so many.

        One of what draws nothing, since all of its executions are the same.
        """
        return executions if self.components()[position].is_random() else 1

    def is_random(self) -> bool:
        """Whether two runs of it may answer differently."""
        return any(part.is_random() for part in self.components())

    def is_smooth(self) -> bool:
        """Whether the answer follows every small change of the input; the gradient is that of a surrogate where not."""
        return all(part.is_smooth() for part in self.components())

    def check_images(self, height: int, width: int) -> None:
        """Raise ValueError when images of that size cannot be defended with these parameters."""


@dataclass(frozen=True)
class RandomTransform(Defense):
    """A defense that averages F over one random transformation. A subclass writes `transform` and `identity`.

    uses_pool: whether it mixes with samples. draws: whether it draws anything. smooth: whether `transform` can be
    differentiated; where not, `backward_transform` stands for it. votes: whether an execution answers by its label alone, so
    that the answer is the share of votes for each class in place of the mean softmax.
    """

    uses_pool: ClassVar[bool] = False
    draws: ClassVar[bool] = True
    smooth: ClassVar[bool] = True
    votes: ClassVar[bool] = False

    def within(self) -> tuple["RandomTransform", ...]:
        """The transformations that it is made of, where it is made of others."""
        return ()

    def networks(self) -> tuple[OwnNetwork, ...]:
        """Networks of a person's own that it transforms with; what they are decides what it does."""
        return ()

    def network_passes(self, gradient: bool) -> tuple[int, int]:
        """(forward, backward) passes of a copy through these networks. gradient: whether an adversary follows it back."""
        return 0, 0

    def needs_pool(self) -> bool:
        """Whether it mixes with samples, with these parameters."""
        return self.uses_pool

    def is_random(self) -> bool:
        """See `Defense.is_random`."""
        return self.draws

    def is_smooth(self) -> bool:
        """See `Defense.is_smooth`."""
        return self.smooth

    @abstractmethod
    def transform(
        self,
        x: Float[Tensor, "B C H W"],
        draws: Draws,
        predicted: Int64[Tensor, "B"],
        pool: SamplePool | None,
    ) -> Float[Tensor, "E B C H W"]:
        """`draws.executions` transformed copies of each image.

        x: images in [0, 1]; the gradient must reach them. draws: unit uniforms and normals, the only randomness.
        predicted: ŷ, F's own prediction on x. pool: p_s, given where `needs_pool` says so.
        """

    def backward_transform(
        self,
        x: Float[Tensor, "B C H W"],
        draws: Draws,
        predicted: Int64[Tensor, "B"],
        pool: SamplePool | None,
    ) -> Float[Tensor, "E B C H W"] | None:
        """What stands for `transform` in an adversary's gradient, where that hides it (BPDA; Athalye et al., 2018).

        A differentiable function with the same arguments, and the same calls of `draws`, such as the transformation without
        its rounding; None where `transform` can be differentiated.
        """
        return None

    @final
    def copies(
        self,
        x: Float[Tensor, "B C H W"],
        make_draws: Callable[[], Draws],
        predicted: Int64[Tensor, "B"],
        pool: SamplePool | None,
    ) -> Float[Tensor, "E B C H W"]:
        """The transformed copies, whose gradient is that of `backward_transform` where there is one.

        make_draws: makes the same random numbers afresh, for `transform` and again for `backward_transform`.

        Raises ValueError when `transform` returns something else than one tensor of that shape, and when it draws although the
        defense says that it does not.
        """
        fresh = make_draws if self.is_random() else lambda: NoDraws(make_draws(), self.name)
        draws = fresh()
        found = self.transform(x, draws, predicted, pool)
        wanted = [draws.executions, *x.shape]
        if not isinstance(found, Tensor) or list(found.shape) != wanted:
            what = list(found.shape) if isinstance(found, Tensor) else kind_of(found)
            raise ValueError(f"{self.name}.transform must return images {wanted}, executions first; got {what}")
        if not (torch.is_grad_enabled() and x.requires_grad):
            return found
        smooth = self.backward_transform(x, fresh(), predicted, pool)
        return found if smooth is None else smooth + (found - smooth).detach()

    @final
    def components(self) -> tuple["RandomTransform", ...]:
        """The transformation itself, as the only component."""
        return (self,)

    @final
    def join(
        self, undefended: Float[Tensor, "*S B L"], averages: Sequence[Float[Tensor, "*S B L"]]
    ) -> Float[Tensor, "*S B L"]:
        """The average of its one component, as it is."""
        return averages[0]


DEFENSES: Registry[Defense] = Registry("defense")


def chunk_of(component: RandomTransform) -> int:
    """How many executions of a component run together: one alone of what draws nothing."""
    return CHUNK if component.is_random() else 1


@dataclass(frozen=True, eq=False)
class Executions:
    """N executions of one random transformation (Alg. 1), in whole chunks, so that N is a prefix of any larger N.

    pool: p_s, needed where the transformation mixes with samples. key, points: random numbers depend on these alone.
    number: N. begin: executions that are left out, since they were run before; the chunk that holds the last of them runs
    again where it is no whole one.
    """

    component: RandomTransform
    pool: SamplePool | None
    key: Key
    points: Sequence[int]
    number: int
    begin: int = 0

    @property
    def chunk(self) -> int:
        """How many executions run together."""
        return chunk_of(self.component)

    def copies(
        self, x: Float[Tensor, "B C H W"], predicted: Int64[Tensor, "B"]
    ) -> Iterator[Float[Tensor, "E B C H W"]]:
        """Transformed copies of each image, a chunk at a time; the last chunk may hold more than N needs.

        predicted: ŷ. Images in another precision, such as NumPy's doubles, are transformed in single precision. Raises
        ValueError without a needed pool.
        """
        if self.component.needs_pool() and self.pool is None:
            raise ValueError(
                f"{self.component.name} mixes inputs with a sample pool; give pool=SamplePool(…), got None"
            )
        x = x.float() if x.is_floating_point() else x
        key = self.key.at(family=self.component.name)
        for chunk in range(self.begin // self.chunk, -(-self.number // self.chunk)):
            make_draws = partial(Draws, key, self.points, self.chunk, chunk, x.device)
            yield self.component.copies(x, make_draws, predicted, self.pool)

    def chunks(
        self, classifier: nn.Module, x: Float[Tensor, "B C H W"], predicted: Int64[Tensor, "B"]
    ) -> Iterator[Float[Tensor, "E B L"]]:
        """log F of the copies, one pass of F and one graph a chunk: those after the first `begin`, N - begin in all.

        A network whose weights are in the precision of the images, as one in doubles, is given the copies in it too.
        """
        first = next(classifier.parameters(), None)
        another = x.dtype != torch.float32 and first is not None and first.dtype == x.dtype
        for chunk, copies in enumerate(self.copies(x, predicted), self.begin // self.chunk):
            asked = copies.flatten(0, 1)
            logits: Tensor = classifier(asked.to(x.dtype) if another else asked)
            found = F.log_softmax(logits.float(), dim=1).unflatten(0, copies.shape[:2])
            yield found[max(0, self.begin - chunk * self.chunk) : self.number - chunk * self.chunk]

    def log_probabilities(
        self, classifier: nn.Module, x: Float[Tensor, "B C H W"], predicted: Int64[Tensor, "B"]
    ) -> Float[Tensor, "N B L"]:
        """log F of all copies after the first `begin`, which are N where it is 0."""
        return torch.cat(list(self.chunks(classifier, x, predicted)))


def drop(undefended: Float[Tensor, "*S L"], averaged: Float[Tensor, "*S L"]) -> Float[Tensor, "*S"]:
    """F_ŷ(x) - F_D,ŷ(x): how much of its probability F's own label loses; the higher, the more adversarial (Eq. 14)."""
    predicted = undefended.argmax(-1, keepdim=True)
    return (undefended.gather(-1, predicted) - averaged.gather(-1, predicted))[..., 0]


def log_mean(log_probabilities: Float[Tensor, "N *S L"]) -> Float[Tensor, "*S L"]:
    """The logarithm of the mean probability over the first axis, Alg. 1's average; never a softmax of probabilities.

    Attacks differentiate it. What a study stores for several N at once is the same mean as a running sum, in
    `study/batches.py`.
    """
    return torch.logsumexp(log_probabilities, 0) - torch.log(torch.tensor(float(len(log_probabilities))))


def log_votes(log_probabilities: Float[Tensor, "N *S L"]) -> Float[Tensor, "*S L"]:
    """The logarithm of the share of executions that vote for each class, each for the one that it finds most probable.

    A class without a vote has the logarithm of the smallest float. The gradient, which votes have none of, is that of
    `log_mean`.
    """
    shares = votes_of(log_probabilities).float().mean(0)
    smooth = log_mean(log_probabilities)
    return smooth + (shares.clamp_min(torch.finfo(torch.float32).tiny).log() - smooth).detach()


def votes_of(log_probabilities: Float[Tensor, "*S L"]) -> Int64[Tensor, "*S L"]:
    """One for the most probable class, zero for the others."""
    return F.one_hot(log_probabilities.argmax(-1), log_probabilities.shape[-1])


def log_answer(component: RandomTransform, log_probabilities: Float[Tensor, "N *S L"]) -> Float[Tensor, "*S L"]:
    """What the executions of a component come to: the logarithm of their mean, or of their votes."""
    return (log_votes if component.votes else log_mean)(log_probabilities)


Pools = SamplePool | Mapping[str, SamplePool] | None
# What each module is bound to, by its id. Each thread has its own, since batches in flight share a module.
_BOUND: ContextVar[Mapping[int, tuple[Key, Sequence[int]]]] = ContextVar("bound", default=MappingProxyType({}))


class DefendedClassifier(nn.Module):
    """F behind a defense D: images in [0, 1] -> log-probabilities [B, L], differentiable, fresh draws at each call.

    An adaptive adversary is handed this module, an oblivious one F itself; other libraries' attacks can take either.
    Unbound, the draws are keyed by a call counter and the position in the batch, so that a seed repeats a session;
    inside `bind`, by (points, restart, step). ŷ is F's prediction on the input of the call, without gradient.

    classifier: [0, 1] images -> logits. pool: needed by mixup inference; a mapping gives each component its own.
    executions: N (Alg. 1). temperature: set, `forward` answers by the defense's `soft_join`.
    """

    def __init__(
        self,
        classifier: nn.Module,
        defense: Defense,
        pool: Pools = None,
        executions: int = 30,
        seed: int = 0,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        if executions < 1:
            raise ValueError(f"executions must be at least 1; got {executions}")
        self.classifier, self.defense, self.pool, self.executions = classifier, defense, pool, executions
        self.temperature = temperature
        self._seed = seed
        self._calls = 0
        self.train(classifier.training)  # A library that puts a module's mode back must not switch F's.

    @contextmanager
    def bind(self, key: Key, points: Sequence[int]) -> Iterator[None]:
        """Within the block, draws depend on the key and the points alone."""
        token = _BOUND.set({**_BOUND.get(), id(self): (key, points)})
        try:
            yield
        finally:
            _BOUND.reset(token)

    def branch(
        self, which: Literal["whole", "detector", "fallback"], temperature: float | None = None
    ) -> "DefendedClassifier":
        """The same classifier, pool and draws behind what an adversary aims at.

        "whole": the whole defense, its decisions smooth at that temperature; "detector", "fallback": its first or its
        last component alone. All are one and the same for a defense of one component.
        """
        parts = self.defense.components()
        defense: Defense = self.defense
        if which != "whole" and parts:
            defense = parts[0] if which == "detector" else parts[-1]
        return DefendedClassifier(self.classifier, defense, self.pool, self.executions, self._seed, temperature)

    def _pool_of(self, component: RandomTransform, device: torch.device) -> SamplePool | None:
        pool = self.pool.get(component.name) if isinstance(self.pool, Mapping) else self.pool
        if pool is not None and pool.labels.device != device:
            pool.to(device)
        return pool

    def _start(self, x: Tensor) -> tuple[Key, Sequence[int]]:
        self.defense.check_images(*x.shape[-2:])
        bound = _BOUND.get().get(id(self))
        if bound is not None:
            return bound
        self._calls += 1
        return Key(self._seed, "call", step=self._calls), range(len(x))

    def _executions(self, x: Tensor) -> list[Executions]:
        """The executions of each component, by the key that is bound, or by that of one more call where none is."""
        key, points = self._start(x)
        numbers = (self.defense.executions_of(at, self.executions) for at in range(len(self.defense.components())))
        return [
            Executions(component, self._pool_of(component, x.device), key, points, number)
            for component, number in zip(self.defense.components(), numbers, strict=True)
        ]

    def predicted(self, x: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B"]:
        """F's own prediction ŷ, without gradient."""
        with torch.no_grad():
            return self.classifier(x).argmax(1)

    def chunks(self, x: Float[Tensor, "B C H W"]) -> Iterator[Float[Tensor, "E B L"]]:
        """log-probabilities of all executions, E at a time, each chunk with a graph of its own, computed when it is read.

        A gradient that is added up over these needs the memory of one chunk, whatever N is.
        """
        executions = self._executions(x)
        if not executions:
            yield F.log_softmax(self.classifier(x).float(), dim=1)[None]
            return
        predicted = self.predicted(x)
        for each in executions:
            yield from each.chunks(self.classifier, x, predicted)

    def copies(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "N B C H W"]:
        """The transformed copies that the last component classifies, N for each image.

        Raises ValueError for a defense without components.
        """
        executions = self._executions(x)
        if not executions:
            raise ValueError(f"{self.defense.name} makes no copies of its input")
        return torch.cat(list(executions[-1].copies(x, self.predicted(x))))[: executions[-1].number]

    def parts(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B L"], list[Float[Tensor, "N B L"]]]:
        """(log F(x), for each component the log-probabilities of its executions)."""
        executions = self._executions(x)
        undefended = F.log_softmax(self.classifier(x).float(), dim=1)
        predicted = undefended.detach().argmax(1)
        return undefended, [each.log_probabilities(self.classifier, x, predicted) for each in executions]

    def each(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "N B L"]:
        """log-probabilities of every execution, for losses that need them; components one after another."""
        return torch.cat(list(self.chunks(x)))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """The logarithm of the defense's probabilities."""
        if self.defense.components() == (self.defense,):
            (component,) = self.defense.components()
            # In log space a mean is exact where a probability would underflow.
            return log_answer(component, self.each(x))
        undefended, runs = self.parts(x)
        averages = [log_answer(*both).exp() for both in zip(self.defense.components(), runs, strict=True)]
        if self.temperature is None:
            answered = self.defense.join(undefended.exp(), averages)
        else:
            answered = self.defense.soft_join(undefended.exp(), averages, self.temperature)
        return answered.clamp_min(torch.finfo(torch.float32).tiny).log()


def predict(
    classifier: nn.Module,
    defense: Defense,
    x: Float[Tensor, "B C H W"],
    pool: Pools = None,
    executions: int = 30,
    seed: int = 0,
    points: Sequence[int] | None = None,
) -> Float[Tensor, "B L"]:
    """The defense's probabilities, keyed by point: the same (seed, point) gives the same answer in any batch.

    points: the images' indices in their dataset; 0..B-1 when left out. Raises ValueError for another number of them.
    """
    defended = DefendedClassifier(classifier, defense, pool, executions, seed)
    points = range(len(x)) if points is None else points
    if len(points) != len(x):
        raise ValueError(f"points must name each image once; got {len(points)} points for {len(x)} images")
    with torch.no_grad(), defended.bind(Key(seed, EVALUATE), points):
        return defended(x).exp()
