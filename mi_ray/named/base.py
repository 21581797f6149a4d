"""What a named network is: a name that a library, a hub or a file turns into a network with its weights.

A store keeps of it a *blueprint*, JSON values from which the same network is built again without its weights, so that a
worker on another machine needs the library but neither a network connection nor the files.
"""

import importlib
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from mi_ray.own_code import last_line
from mi_ray.parameters import Parameterized, Registry

Blueprint = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A network with its weights, and what its source says of it.

    blueprint: what `NamedNetwork.build` makes the same network from. mean, std: the normalisation that it was trained with,
    of images in [0, 1]; None where its source does not say. side: the side in pixels of the images that it takes.
    """

    network: nn.Module
    blueprint: Blueprint = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    side: int | None = None


@dataclass(frozen=True)
class NamedNetwork(Parameterized):
    """A source of networks by name; a subclass writes `load` and `build`."""

    @abstractmethod
    def load(self, classes: int, arguments: Mapping[str, Any], pretrained: bool) -> LoadedNetwork:
        """The network that the parameters name. classes: how many the dataset has.

        arguments: keyword arguments of the function that builds the network. pretrained: whether it gets its source's
        weights; where not, the caller loads those of a person's own file into it. Raises ValueError, in one line with the
        remedy, where the package, the network connection or a file is missing.
        """

    @classmethod
    @abstractmethod
    def build(cls, blueprint: Blueprint, classes: int) -> nn.Module:
        """The network of a blueprint with initial weights."""


NETWORKS: Registry[NamedNetwork] = Registry("source of networks")


def package(name: str, install: str) -> ModuleType:
    """An optional package. Raises ValueError, saying what to install, where it is absent."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # What a library tells its own developers.
            return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"{name} must be installed: {install} ({last_line(error)})") from error


@contextmanager
def loading(what: str, remedy: str) -> Iterator[None]:
    """Say in one line what could not be loaded, and what to do, whatever a library raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # Each library has errors of its own, and none is of use without the remedy.
        raise ValueError(f"{what} must be loadable: {last_line(error).rstrip('.')}. {remedy}") from error


def existing(path: Path, what: str) -> Path:
    """Return the path of a file. Raises ValueError where no file is there; what: what the file should hold."""
    if not path.is_file():
        raise ValueError(f"{what} must be in the file {path.resolve()}; there is none")
    return path
