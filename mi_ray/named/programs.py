"""Networks that torch has saved as a whole, code and weights in one file: TorchScript and `torch.export`.

What a store keeps of one is the file itself, as a tensor of its bytes, so that a worker needs no other file.
"""

import io
import warnings
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from mi_ray.named.base import NETWORKS, Blueprint, LoadedNetwork, NamedNetwork, existing, loading
from mi_ray.parameters import text

Reader = Callable[[io.BytesIO], nn.Module]


class Program(nn.Module):
    """A saved network whose state is the bytes of its file; it runs once they are loaded."""

    program: Tensor

    def __init__(self, size: int, read: Reader) -> None:
        super().__init__()
        self.register_buffer("program", torch.zeros(size, dtype=torch.uint8))
        self._read = read
        # In a list, so that torch does not take its weights for a part of the state.
        self._running: list[nn.Module] = []

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take the bytes of a file, and read the network in it."""
        found = super().load_state_dict(state_dict, strict, assign)
        network = self._read(io.BytesIO(self.program.cpu().numpy().tobytes()))
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        self._running = [network]
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """What moves a module to a device moves the running network; the bytes of its file have no other type."""
        for network in self._running:
            network._apply(fn)
        return self

    def places(self) -> list[int]:
        """Where in memory the weights of the running network are."""
        return [each.data_ptr() for network in self._running for each in (*network.parameters(), *network.buffers())]

    def forward(self, x: Tensor) -> Tensor:
        """What the saved network answers."""
        found: Tensor = self._running[0](x)
        return found


@dataclass(frozen=True)
class _Saved(NamedNetwork):
    written_by: ClassVar[str]  # the function of torch that writes such files
    path: str = text("the file")

    @classmethod
    @abstractmethod
    def read(cls, content: io.BytesIO) -> nn.Module:
        """The network in a file, on the CPU."""

    def load(self, classes: int, arguments: Mapping[str, Any], pretrained: bool) -> LoadedNetwork:
        """From the file, which says nothing of normalisation or size."""
        if arguments or not pretrained:
            raise ValueError(f"{self.name} has its network and weights in one file; leave `arguments`, `weights` out")
        content = existing(Path(self.path), f"{self.name}'s network").read_bytes()
        if not zipfile.is_zipfile(io.BytesIO(content)):
            raise ValueError(f"{self.name} must name a file of {self.written_by}; {self.path} is none, or is cut short")
        blueprint = {"bytes": len(content)}
        network = self.build(blueprint, classes)
        with loading(f"{self.name}'s {self.path}", f"It must be a file of {self.name} that runs on the CPU"):
            network.load_state_dict({"program": torch.frombuffer(bytearray(content), dtype=torch.uint8)})
        return LoadedNetwork(network, blueprint)

    @classmethod
    def build(cls, blueprint: Blueprint, classes: int) -> nn.Module:
        """See `NamedNetwork.build`."""
        return Program(blueprint["bytes"], cls.read)


@final
@NETWORKS.register
@dataclass(frozen=True)
class TorchScript(_Saved):
    """The network in a file of `torch.jit.save`."""

    name: ClassVar[str] = "torchscript"
    written_by: ClassVar[str] = "torch.jit.save"

    @classmethod
    def read(cls, content: io.BytesIO) -> nn.Module:
        """See `_Saved.read`. The network is set to eval mode."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch would rather see torch.export.
            found: nn.Module = torch.jit.load(content, map_location="cpu")
        return found.eval()


@final
@NETWORKS.register
@dataclass(frozen=True)
class Exported(_Saved):
    """The network in a file of `torch.export.save`, exported in eval mode for batches of any size. Reading it may run code."""

    name: ClassVar[str] = "exported"
    written_by: ClassVar[str] = "torch.export.save"

    @classmethod
    def read(cls, content: io.BytesIO) -> nn.Module:
        """See `_Saved.read`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(content).module(check_guards=False)
