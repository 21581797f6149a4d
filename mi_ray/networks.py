"""Networks of a person's own: their factory, whose code runs, and their weights, which are read as tensors alone."""

import threading
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, TypeGuard, cast

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from mi_ray.own_code import import_own, own_code
from mi_ray.parameters import kind_of

WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before the name of every tensor
DIFFERING = 5  # tensors that are named where weights are of another architecture


def load_factory(factory: str) -> Callable[..., object]:
    """The callable that `package.module:function` names; importing it runs the user's own code.

    Raises ValueError when there is no such module or callable.
    """
    module, _, function = factory.partition(":")
    rule = f"factory must be an importable package.module:function; got {factory!r}"
    found = getattr(import_own(rule, module), function, None)
    if not callable(found):
        raise ValueError(f"{rule}; in the module {function} is {'not there' if found is None else 'no function'}")
    return cast("Callable[..., object]", found)


def network_of(factory: str, arguments: Mapping[str, object] = MappingProxyType({})) -> nn.Module:
    """The network that a factory returns for these arguments. Raises ValueError when it returns something else."""
    found = load_factory(factory)(**arguments)
    if not isinstance(found, nn.Module):
        raise ValueError(f"factory {factory} returned {kind_of(found)}, and no torch.nn.Module")
    return found


def state_bytes(network: nn.Module) -> bytes:
    """The weights of a network as safetensors: the same weights give the same bytes."""
    # Cloned, since safetensors refuses tensors that share memory, as tied weights do.
    state = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    return bytes(save_tensors(state))


def unwrapped(state: Mapping[str, Tensor], own: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """(weights by the names that the network itself gives them, the prefix that torch's wrappers have put before all).

    own: the network's names, which may begin with such a prefix themselves.
    """
    found, prefix = dict(state), ""
    for name in WRAPPERS * 2:  # A wrapped network may be wrapped again.
        if found.keys().isdisjoint(own) and found and all(key.startswith(name) for key in found):
            found, prefix = {key.removeprefix(name): value for key, value in found.items()}, prefix + name
    return found, prefix


def _difference(own: Tensor | None, stored: Tensor | None) -> str:
    """How a stored tensor differs from the network's own."""
    if own is None:
        return "the network has none"
    if stored is None:
        return "not in the file"
    if stored.shape == own.shape:
        return ", not ".join(str(value.dtype).removeprefix("torch.") for value in (stored, own))
    return f"{list(stored.shape)}, not {list(own.shape)}"


def fit_weights(network: nn.Module, state: Mapping[str, Tensor], must: str) -> None:
    """Put weights into a network, strictly but for the names of torch's wrappers. must: what they are to be, in words.

    Raises ValueError, which begins with `must`, when they are of another architecture.
    """
    own = network.state_dict()
    state = unwrapped(state, own.keys())[0]
    wrong = [key for key in own if key not in state or not _takes(key, own[key], state[key])]
    wrong += [key for key in state if key not in own]
    if wrong:
        named = [f"{key} ({_difference(own.get(key), state.get(key))})" for key in wrong[:DIFFERING]]
        raise ValueError(
            f"{must}, {len(own)} tensors; {len(wrong)} differ: {', '.join(named)}"
            f"{', …' if len(wrong) > DIFFERING else ''}"
        )
    network.load_state_dict(state)


def _takes(key: str, own: Tensor, stored: Tensor) -> bool:
    """Whether a network's tensor takes a stored one: of its shape, and of numbers that it can hold.

    Precision may differ. Whole numbers for floating-point ones are those of a quantised network, which mean something else;
    the other way round nothing may be lost, but of the number of batches that a norm has seen, which decides nothing.
    """
    if own.shape != stored.shape or own.is_complex() != stored.is_complex():
        return False
    if own.is_floating_point() == stored.is_floating_point():
        return True
    if own.is_floating_point():
        return stored.dtype == torch.bool
    return key.endswith("num_batches_tracked") or torch.equal(stored.to(own.dtype).to(stored.dtype), stored)


def _is_state(content: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether something is a state dict: tensors by their names."""
    if not isinstance(content, dict) or not content:
        return False
    return all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from torch.save.

    The latter is read with weights_only=True: no code runs. Raises ValueError for a file that cannot be read,
    holds something else than tensors by their names, or numbers that are not finite.
    """
    state = next(iter(_states(path).values()))
    # Of floating-point numbers of a byte torch cannot say itself whether they are finite.
    small = {key for key, value in state.items() if value.is_floating_point() and value.element_size() == 1}
    broken = [key for key, value in state.items() if not (value.float() if key in small else value).isfinite().all()]
    if broken:
        raise ValueError(
            f"{path} must hold finite numbers; NaN or infinite in {len(broken)} tensors, first {broken[0]}"
        )
    return state


def left_unread(path: Path) -> list[str]:
    """Names of the state dicts in a file beside the one that `read_weights` takes, as of the mean of a training's weights.

    Raises ValueError like it.
    """
    return list(_states(path))[1:]


def _states(path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts of a file by their names, first the one that is taken; of a plain one the name is empty."""
    rule = f"weights must be a safetensors file or a state dict of torch.save; {path}"
    content: object
    try:
        with warnings.catch_warnings():  # of torch, about the form of a file that is refused anyway
            warnings.simplefilter("ignore")
            if path.suffix == ".safetensors":
                content = load_file(path)
            else:
                content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{rule}: {error.strerror or 'it cannot be read'}") from error
    except EOFError as error:
        raise ValueError(f"{rule} is empty, or ends too early") from error
    except Exception as error:  # pickle's own error types too, when a file holds more than tensors
        raise ValueError(f"{rule} is neither, or holds more than tensors, such as code, which is never run") from error
    if _is_state(content):
        return {"": content}
    # A checkpoint of a training holds them one level down, beside such things as the epoch.
    parts = {str(key): part for key, part in content.items() if _is_state(part)} if isinstance(content, dict) else {}
    if "state_dict" in parts:
        return {"state_dict": parts.pop("state_dict"), **parts}
    if len(parts) != 1:
        told = f"state dicts under {', '.join(parts)}: save one of them alone" if parts else "no tensors by their names"
        raise ValueError(f"{rule} holds {told}; save network.state_dict(), and not the network")
    return parts


class OwnNetwork(NamedTuple):
    """A network of a person's own, that is no classifier: the factory that builds it, and the file with its weights.

    Without a file the weights are those that the factory gives it; what it draws of them is always the same.
    """

    factory: str
    weights: str | None = None

    def read(self) -> nn.Module:
        """The network as the factory and the file give it: in eval mode, in float32 on the CPU, no weight with a gradient.

        Raises ValueError where it cannot be had.
        """
        network = self._built()
        if self.weights is not None:
            must = f"{self.weights} must hold the weights of {self.factory}"
            fit_weights(network, read_weights(Path(self.weights)), must)
        return _frozen(network)

    def _built(self) -> nn.Module:
        load_factory(self.factory)
        with own_code(f"factory {self.factory} must return a network"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return network_of(self.factory)

    def on(self, device: torch.device) -> nn.Module:
        """The network on a device, with the weights that `hand_over` has given; without them, as it is read.

        It is built once a process and device, and again when its file has changed. Raises ValueError like `read`.
        """
        with _LOCK:
            return _loaded(self, _HANDED.get(self), None if self in _HANDED else self._written(), device)

    def _written(self) -> tuple[int, int] | None:
        """When its file was written, and its size; None where there is none."""
        file = None if self.weights is None else Path(self.weights)
        if file is None or not file.is_file():
            return None
        return file.stat().st_mtime_ns, file.stat().st_size


_HANDED: dict[OwnNetwork, bytes] = {}
_LOCK = threading.Lock()  # Batches side by side ask for one network at once, and building it draws numbers.


def hand_over(networks: Mapping[OwnNetwork, bytes]) -> None:
    """Have this process take these weights, as safetensors, for these networks, and read no file of them.

    A worker is in another folder than the person, and perhaps on another machine, where there is no such file.
    """
    _HANDED.clear()
    _HANDED.update(networks)


@lru_cache(maxsize=8)
def _loaded(own: OwnNetwork, handed: bytes | None, written: object, device: torch.device) -> nn.Module:
    """handed: its weights, where they were handed over. written: what its file says of itself, where it is read."""
    if handed is None:
        return own.read().to(device)
    network = own._built()
    fit_weights(network, load_tensors(handed), f"the weights at hand must be those of {own.factory}")
    return _frozen(network).to(device)


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False).float()
