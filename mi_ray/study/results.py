"""What is stored of a study, and what a defense answers from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from mi_ray.classifiers import CompileMode, Precision
from mi_ray.defenses import DEFENSES
from mi_ray.plan.work import Cell, OutputWork
from mi_ray.sample_pool import SamplePool
from mi_ray.store.schemas import Array

COST = ("forward_passes", "backward_passes", "seconds")


@dataclass(frozen=True, eq=False)
class PoolData:
    """A sample pool as arrays (uint8 NHWC), so that processes share one copy."""

    images: Array
    labels: Array
    source: Literal["train", "test"]
    augmented: bool
    foreign: bool = False

    def pool(self, classes: int, device: torch.device) -> SamplePool:
        """The pool on a device."""
        made = SamplePool(
            self.images,
            self.labels,
            self.source,
            classes=classes,
            allow_test=self.source == "test",
            augmented=self.augmented,
            foreign=self.foreign,
        )
        return made.to(device)


@dataclass(frozen=True, eq=False)
class StudyData:
    """The arrays and settings that decide every block of a study.

    images: uint8 [P, H, W, 3] of the stored points, in the study's order. points: their indices in the test split.
    pools: digest -> sample pool. classifiers: key -> (description, safetensors). precision: of each classifier's
    gradients and executions. compile: mode of torch.compile, if any.
    """

    store: str
    images: Array
    labels: Array
    points: Sequence[int]
    classes: int
    pools: Mapping[str, PoolData]
    classifiers: Mapping[str, tuple[Mapping[str, Any], bytes]]
    seed: int
    batch: int
    precision: Mapping[str, Precision]
    device: str
    compile: CompileMode | None = None


@runtime_checkable
class StoredOutputs(Protocol):
    """Whoever can read the stored outputs of a piece of work."""

    def probabilities(self, work: OutputWork, start: int, stop: int) -> Array:
        """[draws, N, stop - start, classes]; raises DamagedFileError when some are missing."""


def answers(bench: StoredOutputs, cell: Cell, start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(F's own probabilities [P, L], the defense's [draws, P, L]) on a range of points, from stored outputs.

    Raises DamagedFileError when some are missing.
    """
    defense, draws = DEFENSES.make(*cell.defense), cell.identity["draws"]
    undefended = torch.from_numpy(bench.probabilities(cell.undefended, start, stop)[0, 0])
    averages = [
        torch.from_numpy(bench.probabilities(work, start, stop)[:draws, work.executions.index(n)])
        for work, n in cell.components
    ]
    return undefended, defense.join(undefended.expand(draws, -1, -1), averages)
