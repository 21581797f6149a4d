"""How passes run fast without changing what they compute: batches in flight, passes counted, memory kept.

Arithmetic happens in canonical batches. What is here decides how many of them run at once, never their shape, so that
no row depends on it.
"""

import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
R = TypeVar("R")
GRAPH = 3  # a backward pass holds about the activations, their gradients and one layer's scratch
SHARE = 0.5  # of the memory at hand that batches in flight may take where no budget is set
GPU_LANES = 2  # on a GPU one batch's small kernels fill the gaps of the other's


class Passes:
    """Counts images that went through a classifier, forwards and backwards; several threads may add at once."""

    def __init__(self) -> None:
        # Appending to a list is one step for the interpreter, where adding to a number is three.
        self._forward: list[int] = []
        self._backward: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Passes":
        """A copy of a classifier counts its own."""
        return Passes()

    def watch(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """Count a forward pass of these images; the function returned has the pass's output count a backward one."""
        count = len(images)
        self._forward.append(count)

        def seen(output: Tensor) -> Tensor:
            if output.requires_grad:
                output.register_hook(lambda gradient: self._backward.append(count))
            return output

        return seen

    def take(self) -> tuple[int, int]:
        """(forward, backward) passes since the last call."""
        taken = self._forward, self._backward
        self._forward, self._backward = [], []
        return sum(taken[0]), sum(taken[1])


def keep_memory() -> None:
    """Let this process keep the memory that it frees, in place of giving it back to the system at once.

    An activation is some megabytes: glibc maps such a block anew each time, and the system clears every page of it
    again. Does nothing where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    for setting in (trim_threshold, mmap_threshold):
        mallopt(setting, 2**31 - 1)


def on_device(values: Any, device: torch.device) -> Tensor:
    """A tensor or array on the device. To a GPU by pinned memory, so that nothing waits for what the GPU still does."""
    tensor = torch.as_tensor(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def activation_bytes(classifier: nn.Module, image: tuple[int, ...], device: torch.device) -> int:
    """Bytes of all activations of one image [C, H, W], as a gradient needs them; measured by one pass."""
    sizes: list[int] = []

    def seen(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    leaves = [module for module in classifier.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(seen) for module in leaves]
    try:
        with torch.no_grad():
            classifier(torch.full((1, *image), 0.5, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sizes)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on the device, or in this machine's memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def lanes_within(budget: int | None, batch_bytes: int, device: torch.device, threads: int, share: float) -> int:
    """How many canonical batches may be in flight: at least 1, at most one a thread (on a GPU `GPU_LANES`).

    budget: bytes for all of them; where it is None, half of what is free times this worker's share of the device.
    batch_bytes: activations of one batch.
    """
    most = GPU_LANES if device.type == "cuda" else max(1, threads)
    if most == 1:
        return 1
    have = SHARE * share * free_memory(device) if budget is None else budget
    return max(1, min(most, math.floor(have / max(1, GRAPH * batch_bytes))))


def exact_arithmetic(device: torch.device) -> None:
    """Have a GPU compute fp32 as fp32 (not TF32), and convolutions the same way each time. A CPU does both anyway."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


_OWN = threading.local()  # a lane's stream


def _begin(device: torch.device) -> None:
    torch.set_num_threads(1)  # a thread has its own number
    _OWN.stream = torch.cuda.Stream(device) if device.type == "cuda" else None


@lru_cache(maxsize=8)
def _lanes(lanes: int, device: torch.device) -> ThreadPoolExecutor:
    """Threads that stay: on a GPU the memory that one stream has freed is of no use to another one."""
    return ThreadPoolExecutor(lanes, "lane", _begin, (device,))


def side_by_side(function: Callable[[T], R], parts: Iterable[T], lanes: int, device: torch.device) -> list[R]:
    """The function of each part, in order; `lanes` of them at once, each on one thread and on a GPU in its own stream.

    One thread a part: a result then does not depend on how many threads a worker has. The first error is raised, once
    no part runs any longer.
    """
    if lanes == 1:
        return [function(part) for part in parts]

    def on_its_own(part: T) -> R:
        """What a lane's thread runs."""
        if _OWN.stream is None:
            return function(part)
        _OWN.stream.wait_stream(torch.cuda.default_stream(device))
        with torch.cuda.stream(_OWN.stream):
            found = function(part)
        _OWN.stream.synchronize()
        return found

    running = [_lanes(lanes, device).submit(on_its_own, part) for part in parts]
    _, waiting = wait(running, return_when=FIRST_EXCEPTION)
    for each in waiting:  # one has failed: what has not begun never does
        each.cancel()
    wait(running)
    return [each.result() for each in running if not each.cancelled()]
