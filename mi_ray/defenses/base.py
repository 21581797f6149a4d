"""What a defense is: N random transformations of one input, whose softmax outputs are averaged (paper, Alg. 1)."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.parameters import Parameterized, Registry
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool

CHUNK = 5  # executions that run together; N is a prefix of whole chunks, whatever N is
EVALUATE = "evaluate"  # the purpose of the draws that score a defense; an attack never uses it


@dataclass(frozen=True)
class Defense(Parameterized):
    """F and an input -> a probability vector. Subclass `RandomTransform`, unless the defense joins several.

    `components` are the random transformations that it averages; `join` makes its answer of F(x) and their averages.
    """

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
    def identity(cls) -> dict[str, Any]:
        """Parameters at which the defended classifier is F itself."""

    def executions_of(self, position: int, executions: int) -> int:
        """N of the component at that position, where the defense is asked for N executions."""
        return executions

    def check_images(self, height: int, width: int) -> None:
        """Raise ValueError when images of that size cannot be defended with these parameters."""


@dataclass(frozen=True)
class RandomTransform(Defense):
    """A defense that averages F over one random transformation. A subclass writes `transform` and `identity`."""

    uses_pool: ClassVar[bool] = False

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
        predicted: ŷ, F's own prediction on x. pool: p_s, given where `uses_pool` is set.
        """

    @final
    def components(self) -> tuple["RandomTransform", ...]:
        """The transformation itself."""
        return (self,)

    @final
    def join(
        self, undefended: Float[Tensor, "*S B L"], averages: Sequence[Float[Tensor, "*S B L"]]
    ) -> Float[Tensor, "*S B L"]:
        """The average, as it is."""
        return averages[0]


DEFENSES: Registry[Defense] = Registry("defense")


def chunk_log_probabilities(
    classifier: nn.Module,
    component: RandomTransform,
    x: Float[Tensor, "B C H W"],
    predicted: Int64[Tensor, "B"],
    pool: SamplePool | None,
    draws: Draws,
) -> Float[Tensor, "E B L"]:
    """log F of one chunk of transformed copies: one pass of E * B images. Raises ValueError without a needed pool."""
    if component.uses_pool and pool is None:
        raise ValueError(f"{component.name} mixes inputs with a sample pool; give pool=SamplePool(…), got None")
    copies = component.transform(x, draws, predicted, pool)
    logits: Tensor = classifier(copies.flatten(0, 1))
    return F.log_softmax(logits.float(), dim=1).unflatten(0, copies.shape[:2])


def execute(
    classifier: nn.Module,
    component: RandomTransform,
    x: Float[Tensor, "B C H W"],
    predicted: Int64[Tensor, "B"],
    pool: SamplePool | None,
    key: Key,
    points: Sequence[int],
    executions: int,
) -> Float[Tensor, "N B L"]:
    """log-probabilities of the first N executions; whole chunks are run, so that N is a prefix of any larger N."""
    chunks = [
        chunk_log_probabilities(
            classifier,
            component,
            x,
            predicted,
            pool,
            Draws(key.at(family=component.name), points, CHUNK, chunk, x.device),
        )
        for chunk in range(-(-executions // CHUNK))
    ]
    return torch.cat(chunks)[:executions]


def log_mean(log_probabilities: Float[Tensor, "N *S L"]) -> Float[Tensor, "*S L"]:
    """log of the mean probability over the first axis; never a softmax of probabilities."""
    return torch.logsumexp(log_probabilities, 0) - torch.log(torch.tensor(float(len(log_probabilities))))


class DefendedClassifier(nn.Module):
    """F behind a defense D: images in [0, 1] -> log-probabilities [B, L], differentiable, fresh draws at each call.

    An adaptive adversary is handed this module, an oblivious one F itself; other libraries' attacks can take either.
    Unbound, the draws are keyed by a call counter and the position in the batch, so that a seed repeats a session;
    inside `bind`, by (points, restart, step).

    classifier: [0, 1] images -> logits. pool: needed by mixup inference. executions: N (Alg. 1).
    """

    def __init__(
        self,
        classifier: nn.Module,
        defense: Defense,
        pool: SamplePool | None = None,
        executions: int = 30,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if executions < 1:
            raise ValueError(f"executions must be at least 1; got {executions}")
        self.classifier, self.defense, self.pool, self.executions = classifier, defense, pool, executions
        self._seed = seed
        self._calls = 0
        self._bound: tuple[Key, Sequence[int]] | None = None

    @contextmanager
    def bind(self, key: Key, points: Sequence[int]) -> Iterator[None]:
        """Within the block, draws depend on the key and the points alone."""
        self._bound = (key, points)
        try:
            yield
        finally:
            self._bound = None

    def _key(self, batch: int) -> tuple[Key, Sequence[int]]:
        if self._bound is not None:
            return self._bound
        self._calls += 1
        return Key(self._seed, "call", step=self._calls), range(batch)

    def _run(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.defense.check_images(*x.shape[-2:])
        if self.pool is not None and self.pool.images.device != x.device:
            self.pool.to(x.device)
        key, points = self._key(len(x))
        undefended = F.log_softmax(self.classifier(x).float(), dim=1)
        predicted = undefended.detach().argmax(1)
        runs = [
            execute(
                self.classifier,
                component,
                x,
                predicted,
                self.pool,
                key,
                points,
                self.defense.executions_of(position, self.executions),
            )
            for position, component in enumerate(self.defense.components())
        ]
        return undefended, runs

    def each(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "N B L"]:
        """log-probabilities of every execution, for losses that need them; components one after another."""
        undefended, runs = self._run(x)
        return torch.cat(runs) if runs else undefended[None]

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """log of the defense's probabilities."""
        undefended, runs = self._run(x)
        averages = [log_mean(run).exp() for run in runs]
        if self.defense.components() == (self.defense,):
            return log_mean(runs[0])  # exact in log space, where a probability would underflow
        return self.defense.join(undefended.exp(), averages).clamp_min(torch.finfo(torch.float32).tiny).log()


def predict(
    classifier: nn.Module,
    defense: Defense,
    x: Float[Tensor, "B C H W"],
    pool: SamplePool | None = None,
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
