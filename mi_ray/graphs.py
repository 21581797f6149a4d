"""Compiled graphs of a classifier on a CPU: its forward pass and its gradient at fixed sizes of a batch, weights frozen in.

Each graph is a shared library that torch's AOTInductor writes once a machine. Who finds it there needs no compiler, and does
not import the one that torch has. A library is named by the program that it was made of, so that none is ever out of date.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import stat
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import once_differentiable

from mi_ray.own_code import first_line

FILLED = 0.8  # A batch is filled up to a graph's size from this share of it on, and computed without one below that.
UNUSED_DAYS = 30  # Libraries that nobody has loaded for so long are removed when another one is written.
# One thread, whatever the machine has: how a sum is shared out among threads moves its last bits.
OPTIONS = {
    "freezing": True,
    "cpp.threads": 1,
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "aot_inductor.precompile_headers": False,
}

_MAKING = threading.Lock()  # torch's tracer and compiler serve one thread of a process at a time.

Answer = Callable[[Tensor], Tensor]  # Logits [B, classes] of images [B, C, H, W].
Library = Callable[[Sequence[Tensor]], list[Tensor]]


def compiler() -> str | None:
    """The C++ compiler that graphs are compiled with; None where this machine has none."""
    return shutil.which(os.environ.get("CXX", "g++"))


class Graphs:
    """Answers by a compiled graph where a batch has a size, and whether it is differentiated, that one is for.

    answer: what the graphs are traced from. forward, gradient: the sizes of batches of either kind.
    """

    def __init__(self, answer: Answer, forward: Sequence[int], gradient: Sequence[int]) -> None:
        self.answer = answer
        self._sizes = {False: sorted(forward), True: sorted(gradient)}
        self._made: dict[tuple[bool, torch.Size], Answer] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """The logits; a batch that is nearly a graph's size is filled up with its last image.

        Images in another precision than studies have are computed without graphs, which read memory as they were compiled for.
        """
        differentiated = torch.is_grad_enabled() and x.requires_grad
        count = len(x)
        size = next((size for size in self._sizes[differentiated] if FILLED * size <= count <= size), None)
        if size is None or x.dtype != torch.float32:
            return self.answer(x)
        if count < size:
            x = torch.cat([x, x[-1:].expand(size - count, *x.shape[1:])])
        x = x.contiguous()  # A library reads memory in the order that it was compiled for.
        place = (differentiated, x.shape)
        if place not in self._made:
            with _MAKING:
                if place not in self._made:
                    self._made[place] = self._make(x.detach(), differentiated=differentiated)
        return self._made[place](x)[:count]

    def _make(self, x: Tensor, *, differentiated: bool) -> Answer:
        """The graph for batches of the shape of `x`, with or without its gradient. Raises ValueError where none can be made."""
        try:
            return (_gradient if differentiated else _forward)(self.answer, x)
        except ValueError:
            raise
        except Exception as error:  # torch's compiler has many of its own.
            raise ValueError(
                f"compile: auto has chosen compiled graphs, and torch cannot make one of {list(x.shape)} here: "
                f"{first_line(error)}. Leave `compile` out"
            ) from error


class _Differentiated(torch.autograd.Function):
    """Joins the two libraries of a gradient: what the first keeps is what the second needs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Library, back: Library) -> Tensor:
        logits, *kept = there([x])
        ctx.back = back
        ctx.save_for_backward(*kept)
        return logits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.back([*ctx.saved_tensors, slope.contiguous()])
        return gradient, None, None


def _forward(answer: Answer, x: Tensor) -> Answer:
    """The answer without gradients as a library."""
    from torch.fx.experimental.proxy_tensor import make_fx

    with torch.no_grad():
        graph = make_fx(torch.func.functionalize(lambda x: (answer(x),)))(x)
    library = _library(graph, [x])
    return lambda x: library([x])[0]


def _gradient(answer: Answer, x: Tensor) -> Answer:
    """The answer and the gradient of the image as two libraries."""
    from torch.fx.experimental.proxy_tensor import make_fx

    def joint(x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        found: Any = torch.func.vjp(answer, x)
        logits, pull = found
        return logits, pull(slope)[0]

    with torch.no_grad():
        slope = torch.ones_like(answer(x))
    forward, backward = _halves(make_fx(torch.func.functionalize(joint))(x, slope))
    there = _library(forward, [x])
    back = _library(backward, [*there([x])[1:], slope])
    return lambda x: _Differentiated.apply(x, there, back)


def _halves(joint: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """(image -> logits and what is kept, what is kept and the logits' slope -> the image's gradient) of (image, slope) -> both.

    Kept is whatever the gradient reads that does not depend on the slope, except for weights, which both halves hold.
    """
    nodes = list(joint.graph.nodes)
    image, slope = (node for node in nodes if node.op == "placeholder")
    logits, gradient = nodes[-1].all_input_nodes
    later = {slope}
    for node in nodes:
        if later & set(node.all_input_nodes):
            later.add(node)
    read = dict.fromkeys(each for node in nodes if node in later for each in node.all_input_nodes)
    kept = [node for node in read if node not in later and node.op != "get_attr"]
    return _part(joint, [image], [logits, *kept]), _part(joint, [*kept, slope], [gradient])


def _part(joint: fx.GraphModule, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> fx.GraphModule:
    """The part of a graph that leads from some of its nodes to others."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    needed, ahead = set[fx.Node](), list(outputs)
    while ahead:
        node = ahead.pop()
        if node not in needed and node not in copies:
            needed.add(node)
            ahead += node.all_input_nodes
    for node in joint.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(joint, graph)


@lru_cache(maxsize=1)
def _processor() -> str:
    """What a library may rely on: the instructions of this processor, as far as the system tells them."""
    try:
        told = Path("/proc/cpuinfo").read_text()
    except OSError:
        told = platform.processor()
    kinds = sorted({line for line in told.splitlines() if line.startswith(("flags", "Features", "model name"))})
    return "\n".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *kinds])


def _name(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """The digest of everything that a library depends on: program, weights, shapes, options, processor and torch."""
    shapes = [(str(each.dtype), tuple(each.shape), each.stride()) for each in inputs]
    digest = hashlib.sha256(repr((torch.__version__, _processor(), OPTIONS, graph.code, shapes)).encode())
    for name, tensor in sorted(graph.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _folder() -> Path:
    """The person's own folder of libraries, from which code is loaded.

    Raises ValueError where it belongs to somebody else, or others may write into it.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mi_ray" / "graphs"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"{folder} must belong to you and be writable by nobody else: compiled code is loaded from it")
    return folder


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Run the block while no other process of this machine runs it for the same name; one that dies lets the next one in."""
    with (folder / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _library(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Library:
    """The library of a graph on inputs of these shapes, which is compiled where this machine does not have it."""
    folder, name = _folder(), _name(graph, inputs)
    path = folder / f"{name}.so"
    if not path.exists():
        with _alone(folder, name):
            if not path.exists():
                _compile(graph, inputs, path)
    os.utime(path)
    runner = torch._C._aoti.AOTIModelContainerRunnerCpu(str(path), 1)
    return lambda inputs: runner.run(list(inputs))


def _compile(graph: fx.GraphModule, inputs: Sequence[Tensor], path: Path) -> None:
    """Write a library. Raises ValueError where this machine has no compiler, or it fails."""
    if compiler() is None:
        raise ValueError(
            "compile: auto has chosen compiled graphs, for which every machine needs a C++ compiler; there is no g++ here. "
            "Install one, or leave `compile` out"
        )
    import torch._inductor.cpu_vec_isa

    _remove_unused(path.parent)
    # Small programs that try the processor's instructions, for all graphs.
    with _torch_writes_to(path.parent / "probes"):
        torch._inductor.cpu_vec_isa.valid_vec_isa_list()
    with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as scratch, _torch_writes_to(Path(scratch)):
        with torch.no_grad():
            program = torch.export.export(graph, tuple(inputs))
            package = torch._inductor.aoti_compile_and_package(
                program, package_path=f"{scratch}/graph.pt2", inductor_configs=dict(OPTIONS)
            )
        with zipfile.ZipFile(package) as archive:
            (library,) = (each for each in archive.namelist() if each.endswith(".so"))
            Path(archive.extract(library, scratch)).replace(path)


@contextmanager
def _torch_writes_to(folder: Path) -> Iterator[None]:
    """Run the block with torch's compiler writing into that folder."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _remove_unused(folder: Path) -> None:
    """Remove libraries, locks and what a compiler that was stopped has left, once they are old."""
    oldest = time.time() - UNUSED_DAYS * 86_400
    for each in folder.iterdir():
        with suppress(FileNotFoundError):  # Other processes make and tidy up here too.
            if each.stat().st_mtime < oldest:
                shutil.rmtree(each) if each.is_dir() else each.unlink()
