"""What passes need of the device that they run on: they are counted, memory is kept, arithmetic is exact, NaN is refused.

How many canonical batches run at once is decided in `study/batches.py`; no row depends on that, nor on the memory that is kept.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class NotFiniteError(ValueError):
    """A classifier, a defense or an attack has made a NaN or an infinity, of which no row may come."""


def refuse_not_finite(what: str, values: Tensor, axis: int, points: Sequence[int]) -> None:
    """Raise NotFiniteError, which names the first point that shows it, unless all values are finite.

    what: they are, in words. axis: along which of their axes the points lie. points: the images' indices in their dataset.
    """
    good = values.isfinite().movedim(axis, 0).flatten(1).all(1)
    bad = torch.nonzero(~good).flatten().tolist()
    if bad:
        raise NotFiniteError(
            f"{what} must be finite numbers; they are NaN or infinite at {len(bad)} of {len(good)} images, first at test "
            f"image {points[bad[0]]}"
        )


class PassCounter:
    """Counts images that went through a classifier, forwards and backwards; several threads may add at once."""

    def __init__(self) -> None:
        # Appending to a list is one step for the interpreter, where adding to a number is three.
        self._forward: list[int] = []
        self._backward: list[int] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "PassCounter":
        """A copy of a classifier counts its own passes from zero."""
        return PassCounter()

    def watch(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """Count a forward pass of these images; the function returned has the pass's output count a backward one."""
        count = len(images)
        self._forward.append(count)

        def seen(output: Tensor) -> Tensor:
            if output.requires_grad:
                output.register_hook(lambda gradient: self._backward.append(count))
            return output

        return seen

    def so_far(self) -> int:
        """Passes since `take` was last called, both ways together."""
        return sum(self._forward) + sum(self._backward)

    def take(self) -> tuple[int, int]:
        """(forward, backward) passes since the last call."""
        taken = self._forward, self._backward
        self._forward, self._backward = [], []
        return sum(taken[0]), sum(taken[1])


def keep_memory() -> None:
    """Let this process keep the memory that it frees, in place of giving it back to the system at once.

    An activation takes some megabytes. glibc asks the system for such a block each time, and the system then clears every
    page of it. With another C library than glibc this function does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    for setting in (trim_threshold, mmap_threshold):
        mallopt(setting, 2**31 - 1)


def on_device(values: Any, device: torch.device) -> Tensor:
    """A tensor or array on the device; it reaches a GPU through pinned memory, without waiting until the GPU is idle."""
    tensor = torch.as_tensor(values)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def exact_arithmetic(device: torch.device) -> None:
    """Have a GPU compute fp32 as fp32 (not TF32), and in one order each time. A CPU does both anyway.

    PyTorch warns once a process of what it has in no fixed order, which a network of a person's own may ask for.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing here reads memory before it is written. Type checkers do not see this switch of a module.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself; elsewhere it is emulated, and slower than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
