"""Keyed randomness: the random numbers of a point depend on the point and on what they are for, and on nothing else.

Every number comes from a stream keyed by (seed, purpose, family, draw, restart, step, chunk, call, point), never by
the worker, the block or the order. Draws are unit uniforms and normals; a hyperparameter scales them afterwards, so
that neighbours on a frontier share them and differ only by what is studied.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mi_ray.device import on_device

_ODD = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, which takes neighbouring points to seeds that are far apart.


@dataclass(frozen=True)
class Key:
    """What random numbers are drawn for; any other key gives other numbers.

    seed: the study's. purpose: such as "evaluate" or "attack". family: the method that draws. draw: which of the independent
    repetitions of N executions it is. restart, step: where in its run an attack is.
    """

    seed: int
    purpose: str
    family: str = ""
    draw: int = 0
    restart: int = 0
    step: int = 0

    def at(self, **changes: int | str) -> "Key":
        """A key that differs from this one in the given parts."""
        return replace(self, **changes)  # type: ignore[arg-type]


class Draws:
    """The random numbers of one chunk of executions for a batch of points.

    Successive calls draw from different streams; a call's numbers for one point do not depend on the other points.
    """

    def __init__(self, key: Key, points: Sequence[int], executions: int, chunk: int, device: torch.device) -> None:
        self.key, self.points, self.executions, self.chunk, self.device = (
            key,
            points,
            executions,
            chunk,
            device,
        )
        self._calls = 0

    def _generators(self, device: torch.device) -> list[torch.Generator]:
        k = self.key
        text = f"{k.seed}|{k.purpose}|{k.family}|{k.draw}|{k.restart}|{k.step}|{self.chunk}|{self._calls}"
        base = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
        self._calls += 1
        # The CPU generator keeps the low 32 bits of its seed. base + point * odd is injective in the point there, so
        # two points never share a stream within a call.
        return [torch.Generator(device).manual_seed((base + int(point) * _ODD) % 2**63) for point in self.points]

    def of(self, family: str) -> "Draws":
        """The numbers that another family of methods draws for the same executions and points."""
        return Draws(self.key.at(family=family), self.points, self.executions, self.chunk, self.device)

    def folded(self) -> "Draws":
        """The same numbers for one execution of executions · points images, execution by execution."""
        return _Folded(self)

    def uniform(self, size: int) -> Tensor:
        """[executions, points, size] uniforms in [0, 1); the same numbers on every kind of device."""
        columns = [
            torch.rand(self.executions, size, generator=generator, dtype=torch.float32)
            for generator in self._generators(torch.device("cpu"))
        ]
        return on_device(torch.stack(columns, dim=1), self.device)

    def uniform_images(self, shape: Sequence[int]) -> Tensor:
        """[executions, points, *shape] uniforms in [0, 1), drawn on the device."""
        return self._images(shape, torch.Tensor.uniform_)

    def normal_images(self, shape: Sequence[int]) -> Tensor:
        """[executions, points, *shape] standard normals, drawn on the device."""
        return self._images(shape, torch.Tensor.normal_)

    def _images(self, shape: Sequence[int], fill: "torch._C._TensorBase | object") -> Tensor:
        out = torch.empty(len(self.points), self.executions, *shape, dtype=torch.float32, device=self.device)
        for row, generator in zip(out, self._generators(self.device), strict=True):
            fill(row, generator=generator)  # type: ignore[operator]
        return out.transpose(0, 1)


class NoDraws(Draws):
    """What is handed to a transformation that says it draws nothing: drawing raises ValueError."""

    def __init__(self, like: Draws, name: str) -> None:
        super().__init__(like.key, like.points, like.executions, like.chunk, like.device)
        self._name = name

    def of(self, family: str) -> Draws:
        """See `Draws.of`."""
        return NoDraws(super().of(family), self._name)

    def _generators(self, device: torch.device) -> list[torch.Generator]:
        raise ValueError(f"defense {self._name} says `draws = False` and must not draw; its transform does")


class _Folded(Draws):
    """The numbers of other draws, whose executions have become points."""

    def __init__(self, inner: Draws) -> None:
        super().__init__(inner.key, [*inner.points] * inner.executions, 1, inner.chunk, inner.device)
        self._inner = inner

    def of(self, family: str) -> Draws:
        """See `Draws.of`."""
        return _Folded(self._inner.of(family))

    def uniform(self, size: int) -> Tensor:
        """See `Draws.uniform`."""
        return self._inner.uniform(size).flatten(0, 1)[None]

    def _images(self, shape: Sequence[int], fill: "torch._C._TensorBase | object") -> Tensor:
        return self._inner._images(shape, fill).flatten(0, 1)[None]


def draw_points(seed: int, total: int) -> list[int]:
    """All indices 0..total-1 in the order in which a study with that seed evaluates them: a seeded permutation."""
    generator = torch.Generator().manual_seed(
        int.from_bytes(hashlib.blake2b(f"{seed}|points".encode(), digest_size=8).digest(), "little") % 2**63
    )
    order: list[int] = torch.randperm(total, generator=generator).tolist()
    return order
