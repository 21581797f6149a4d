"""What a GPU has to show. `check`: its rows are the CPU's within bounds. `bench`: how fast its passes are, against what.

Blocks are computed as a worker computes them, without Ray, so that torch and the libraries behind it are all that is needed.
Where there is no GPU one line says so. `--device cpu` runs the same on a small network, to see that this script works.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import (
    Classifier,
    CompileMode,
    Precision,
    build_classifier,
    classifier_from_bytes,
    prepared,
    weights_bytes,
)
from mi_ray.data import Digits, to_unit
from mi_ray.defenses import DEFENSES, DefendedClassifier
from mi_ray.device import exact_arithmetic, on_device
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool
from mi_ray.study.batches import BlockInput, attack_outputs, component_outputs, side_by_side, undefended_outputs
from mi_ray.threat_model import ThreatModel

CPU = torch.device("cpu")
EPSILON = 4 / 255
GRAPHS: CompileMode = "reduce-overhead"
SECONDS = 140.0  # What has not begun by then is left out, so that the command takes less than three minutes.
PARTS = {
    "check": ("exact", "draws", "outputs", "attacks", "repeats", "pinned", "traced", "processes", "graphs"),
    "bench": ("peaks", "passes", "attacks", "eot", "copies", "processes", "compiled"),
}
Row = dict[str, Any]


@dataclass
class Report:
    """Rows as they are found: each is printed and written at once, so that a run that is cut off has left what it had."""

    out: Path
    about: dict[str, Any]
    limit: float = SECONDS
    rows: list[Row] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def add(self, what: str, **values: Any) -> None:
        """Take a row up."""
        self.rows.append({"what": what, **values})
        print(f"{time.perf_counter() - self.began:6.1f} s  {self.rows[-1]}", flush=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        seconds = round(time.perf_counter() - self.began, 1)
        self.out.write_text(json.dumps({**self.about, "seconds": seconds, "rows": self.rows}, indent=1) + "\n")

    def part(self, name: str, function: Callable[[], None]) -> None:
        """Run a part; an error in it is a row, and the parts behind it still run."""
        if self.late(name):
            return
        try:
            function()
        except Exception as error:
            self.add(name, passed=False, error=f"{type(error).__name__}: {str(error)[:300]}")

    def late(self, name: str) -> bool:
        """Whether no time is left for something, which a row then says."""
        late = time.perf_counter() - self.began > self.limit
        if late:
            self.add(name, left_out=f"it had not begun after {self.limit:.0f} seconds")
        return late

    def markdown(self) -> str:
        """All rows as one table."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
        for row in self.rows:
            lines.append(f"| {' | '.join(_text(row.get(name, '')) for name in names)} |")
        return "\n".join(lines)


def _text(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


class Lab:
    """A trained network and points on one device, and a worker's ways to compute with them.

    description, content: the network's, as a store has them. points: how many images of the test split.
    """

    def __init__(self, description: dict[str, Any], content: bytes, device: torch.device, points: int) -> None:
        self.description, self.content, self.device = description, content, device
        self.plain = classifier_from_bytes(description, content).requires_grad_(False)
        data = Digits().load()
        self.x = on_device(to_unit(data.test_images[:points]), device)
        self.y = on_device(torch.from_numpy(data.test_labels[:points]), device)
        self.pool = SamplePool(data.train_images, data.train_labels).to(device)
        self.points = list(range(points))
        exact_arithmetic(device)

    @cached_property
    def cpu(self) -> "Lab":
        """The same on the CPU."""
        return Lab(self.description, self.content, CPU, len(self.points))

    def fast(self, precision: Precision, mode: CompileMode | None = None) -> Classifier:
        """The network as a worker has it."""
        return prepared(self.plain, self.device, precision, mode)

    def block(self, count: int, batch: int = 50, lanes: int = 1, start: int = 0) -> BlockInput:
        """Consecutive points as a worker goes through them."""
        return BlockInput(self.x[start : start + count], self.points[start : start + count], 0, batch, lanes)

    def executed(
        self, f: Classifier, name: str, values: dict[str, Any], block: BlockInput, predicted: Tensor
    ) -> Tensor:
        """[points, classes] on the CPU: the mean answer of ten executions of a defense."""
        component: Any = DEFENSES.make(name, values)
        made = component_outputs(f, component, block, on_device(predicted, self.device), self.pool, [10], 1)
        return made[0, 0].cpu()

    def attacked(self, f: nn.Module, name: str, values: dict[str, Any], block: BlockInput) -> Tensor:
        """[points, C, H, W] on the CPU: what an attack makes of a block."""
        knowledge: Any = "adaptive" if isinstance(f, DefendedClassifier) else "oblivious"
        labels = self.y[block.points[0] : block.points[0] + len(block.points)]
        threat = ThreatModel(EPSILON, knowledge=knowledge)
        found, _ = attack_outputs(f, ATTACKS.make(name, values), block, labels, 10, threat)
        return found.images[0, 0].cpu()

    def right(self, images: Tensor) -> float:
        """The share of images that the plain network gets right in fp32 on the CPU; they begin with the first point."""
        with torch.no_grad():
            found = torch.cat([self.cpu.plain(part).argmax(1) for part in images.split(100)])
        return float((found == self.cpu.y[: len(images)]).float().mean())


def pgd(steps: int) -> dict[str, Any]:
    """PGD that starts at the clean image, since uniforms of images come from each device's own generator."""
    return {"steps": [steps], "step_size": EPSILON / 4, "random_start": False}


def trained(device: torch.device, *, small: bool, epochs: int = 8) -> tuple[dict[str, Any], bytes]:
    """(description, weights) of a network that was trained on digits for a few seconds."""
    name, width = ("cnn_small", 8) if small else ("resnet_small", 48)
    scale = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    description = {"architecture": name, "arguments": {"width": width}, "classes": 10, **scale}
    torch.manual_seed(0)
    model = build_classifier(description).to(device).train()
    data = Digits().load()
    x, y = to_unit(np.asarray(data.train_images)).to(device), torch.from_numpy(data.train_labels).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for index in torch.randperm(len(x)).to(device).split(64):
            optimizer.zero_grad(set_to_none=True)
            # Smoothed, since of a point that is certain beyond fp32's last digit rounding alone decides the gradient.
            F.cross_entropy(model(x[index]), y[index], label_smoothing=0.1).backward()
            optimizer.step()
    return description, weights_bytes(model.eval())


# What is checked


class Checks:
    """Rows of a device against the CPU's, and of a device against its own. bound: the largest `found` that passes."""

    def __init__(self, lab: Lab, report: Report) -> None:
        self.lab, self.report = lab, report
        with torch.no_grad():
            self.predicted = lab.cpu.plain(lab.cpu.x).argmax(1)

    def row(self, what: str, found: float, bound: float, note: str = "") -> None:
        """Take up whether what was found is within its bound."""
        self.report.add(what, found=float(found), bound=float(bound), passed=bool(found <= bound), note=note)

    def same(self, what: str, first: Tensor, second: Tensor, note: str = "") -> None:
        """Two tensors must be equal bit for bit."""
        self.row(what, float((first != second).sum()), 0, note or "values that differ")

    def near(self, what: str, ours: Tensor, cpu: Tensor, bound: float) -> None:
        """Probabilities must be near the CPU's, and predictions differ on at most two points in a hundred."""
        self.row(what, float((ours - cpu).abs().max()), bound, "largest difference of a probability")
        differ = float((ours.argmax(1) != cpu.argmax(1)).float().mean())
        self.row(f"{what}: predictions", differ, 0.02, "share that differ")

    def outputs(self) -> None:
        """F's outputs and those of defenses whose draws are the same on every device."""
        lab, count = self.lab, len(self.lab.points)
        bounds: dict[Precision, float] = {"fp32": 5e-4, "bf16": 0.1}
        for precision, bound in bounds.items():
            ours, cpu = (undefended_outputs(each.fast(precision), each.block(count)).cpu() for each in (lab, lab.cpu))
            self.near(f"F, {precision}", ours, cpu, bound)
        exact, own = lab.fast("fp32"), lab.cpu.fast("fp32")
        for name, values in DRAWN.items():
            ours = lab.executed(exact, name, values, lab.block(count), self.predicted)
            self.near(
                f"{name}, N = 10", ours, lab.cpu.executed(own, name, values, lab.cpu.block(count), self.predicted), 1e-3
            )

    def draws(self) -> None:
        """Unit uniforms are the same numbers everywhere; normals and uniforms of images have the device's own streams."""
        key = Key(0, "evaluate", "mi_ol")
        first, second = (Draws(key, [3, 70], 5, 0, device).uniform(4).cpu() for device in (self.lab.device, CPU))
        self.same("draws: unit uniforms", first, second)
        normal = Draws(key, range(20), 5, 0, self.lab.device).normal_images((3, 32, 32))
        self.row("draws: mean of normals", float(normal.mean().abs()), 0.01)
        self.row("draws: spread of normals", float((normal.std() - 1).abs()), 0.01)

    def attacks(self) -> None:
        """PGD and EOT-PGD: the ball, the box, the gradient's direction and what is left standing."""
        lab, count = self.lab, 100
        for precision in ("fp32", "bf16"):
            ours, cpu = (
                each.attacked(each.fast(precision), "pgd", pgd(10), each.block(count)) for each in (lab, lab.cpu)
            )
            left = abs(lab.right(ours) - lab.right(cpu))
            self.row(
                f"PGD-10, {precision}: accuracy left", left, 0.03, f"{lab.right(ours):.3f} / CPU {lab.right(cpu):.3f}"
            )
            over = float((ours - lab.cpu.x[:count]).abs().max()) - EPSILON
            self.row(f"PGD-10, {precision}: beyond the ball", over, 1e-6)
        one, own = (each.attacked(each.fast("fp32"), "pgd", pgd(1), each.block(count)) for each in (lab, lab.cpu))
        self.row("PGD-1, fp32: pixels that moved elsewhere", float((one != own).float().mean()), 0.01)
        values = {"steps": [2], "step_size": EPSILON / 4, "eot": 10, "scoring_draws": 1, "random_start": False}
        left_behind = []
        for each in (lab, lab.cpu):
            defended = DefendedClassifier(each.fast("fp32"), DEFENSES.make("mi_ol", {"lam": 0.5}), each.pool, 10)
            left_behind.append(each.attacked(defended, "eot_pgd", values, each.block(50)))
        moved = float((left_behind[0] != left_behind[1]).float().mean())
        self.row("EOT-PGD-2, fp32: pixels that moved elsewhere", moved, 0.02)

    def repeats(self) -> None:
        """The same rows again, in other blocks, and with two batches in flight."""
        lab = self.lab
        for precision in ("fp32", "bf16"):
            f = lab.fast(precision)
            whole = lab.attacked(f, "pgd", pgd(4), lab.block(100))
            self.same(f"PGD-4, {precision}: again", whole, lab.attacked(f, "pgd", pgd(4), lab.block(100)))
            halves = [lab.attacked(f, "pgd", pgd(4), lab.block(50, start=at)) for at in (0, 50)]
            self.same(f"PGD-4, {precision}: in two blocks", whole, torch.cat(halves))
            lanes = lab.attacked(f, "pgd", pgd(4), lab.block(100, lanes=2))
            self.same(f"PGD-4, {precision}: two batches in flight", whole, lanes)
        f, block = lab.fast("fp32"), lab.block(20)
        values = {"steps": [2], "step_size": EPSILON / 4, "eot": 10, "scoring_draws": 1, "random_start": False}
        for name, own in (("random_rotation", {"degrees": 20}), ("barrage", {"k": 2})):
            defended = DefendedClassifier(f, DEFENSES.make(name, own), lab.pool, 10)
            first, again = (lab.attacked(defended, "eot_pgd", values, block) for _ in range(2))
            self.same(f"EOT-PGD-2 through {name}: again", first, again)
        enlarging = lab.fast("fp32")
        enlarging.side = 48
        first, again = (lab.attacked(enlarging, "pgd", pgd(4), block) for _ in range(2))
        self.same("PGD-4, images made larger for the network: again", first, again)

    def exact(self) -> None:
        """fp32 is fp32: TF32 would be a hundred times less exact."""
        a, b = (torch.randn(512, 512, device=self.lab.device) for _ in range(2))
        product = (a.double() @ b.double()).float()
        self.row("fp32: error of a product", float((a @ b - product).abs().max() / product.abs().max()), 1e-5)
        x, w = torch.randn(8, 64, 16, 16, device=self.lab.device), torch.randn(64, 64, 3, 3, device=self.lab.device)
        wanted = F.conv2d(x.double(), w.double()).float()
        error = float((F.conv2d(x, w) - wanted).abs().max() / wanted.abs().max())
        self.row("fp32: error of a convolution", error, 5e-5)

    def pinned(self) -> None:
        """Copies that do not wait have the values that they were given, whatever becomes of the original."""
        wrong = 0
        for number in range(50):
            values = torch.full((50, 3, 32, 32), float(number))
            copied = on_device(values, self.lab.device)
            values.fill_(-1)
            wrong += int((copied != number).sum()) if self.lab.device.type == "cuda" else 0
        self.row("pinned copies: values that changed afterwards", wrong, 0)

    def traced(self) -> None:
        """A network of a person's own, folded after torch.fx has traced it."""
        own = Classifier(self.lab.plain.network, [0.5] * 3, [0.25] * 3, 10).eval()
        ours, cpu = (prepared(own, each, "fp32", folded=True) for each in (self.lab.device, CPU))
        first = F.softmax(ours(self.lab.x[:50]), 1).cpu()
        self.near("a traced network, fp32", first, F.softmax(cpu(self.lab.cpu.x[:50]), 1), 5e-4)

    def processes(self) -> None:
        """Two processes on one device make the rows of one."""
        with shares(self.lab, 2) as at_once:
            found = torch.cat([images for _, images in at_once("fp32", 4, 100)])
        own = self.lab.attacked(self.lab.fast("fp32"), "pgd", pgd(4), self.lab.block(100))
        self.same("PGD-4, fp32: in two processes", found, own)

    def graphs(self) -> None:
        """Compiled networks, replayed as CUDA graphs where there are any: their rows and their gradients."""
        lab = self.lab
        f = lab.fast("fp32", GRAPHS)
        began = time.perf_counter()
        first = undefended_outputs(f, lab.block(100)).cpu()
        took = f"{time.perf_counter() - began:.0f} s to compile"
        self.near(
            f"compiled, fp32: F ({took})", first, undefended_outputs(lab.fast("fp32"), lab.block(100)).cpu(), 1e-4
        )
        with torch.no_grad():
            kept = f(lab.x[:50])
            before = kept.clone()
            f(lab.x[50:100])
        self.same("compiled, fp32: an answer that is kept", kept.cpu(), before.cpu())
        made = lab.attacked(f, "pgd", pgd(4), lab.block(100))
        self.same("compiled, fp32: PGD-4 again", made, lab.attacked(f, "pgd", pgd(4), lab.block(100)))
        plain = lab.attacked(lab.fast("fp32"), "pgd", pgd(4), lab.block(100))
        self.row("compiled, fp32: PGD-4, accuracy left", abs(lab.right(made) - lab.right(plain)), 0.03)


DRAWN: dict[str, dict[str, Any]] = {
    "mi_ol": {"lam": 0.5},
    "mi_pl": {"lam": 0.5},
    "random_rotation": {"degrees": 20},
    "random_pad": {"crop": [20, 28]},
    "random_resize": {"crop": [22, 30]},
}


def _child(
    pipe: Any, description: dict[str, Any], content: bytes, device: str, points: int, part: tuple[int, int]
) -> None:
    """A process that attacks its share of the points whenever it is told to, until it is told None."""
    lab = Lab(description, content, torch.device(device), points)
    networks: dict[Precision, Classifier] = {}
    pipe.send("ready")
    while (told := pipe.recv()) is not None:
        precision, steps, count = told
        f = networks.setdefault(precision, networks.get(precision) or lab.fast(precision))
        size = count // part[1]
        began = time.perf_counter()
        images = lab.attacked(f, "pgd", pgd(steps), lab.block(size, start=part[0] * size))
        pipe.send((time.perf_counter() - began, images))


@contextmanager
def shares(lab: Lab, processes: int) -> Iterator[Callable[[Precision, int, int], list[tuple[float, Tensor]]]]:
    """PGD in several processes at once on one device: a function of the precision, the steps and the points."""
    from torch.multiprocessing import get_context

    spawn, children = get_context("spawn"), []
    for own in range(processes):
        here, there = spawn.Pipe()
        given = (there, lab.description, lab.content, str(lab.device), len(lab.points), (own, processes))
        child = spawn.Process(target=_child, args=given, daemon=True)
        child.start()
        children.append((here, child))
    for pipe, _ in children:
        pipe.recv()

    def at_once(precision: Precision, steps: int, count: int) -> list[tuple[float, Tensor]]:
        for pipe, _ in children:
            pipe.send((precision, steps, count))
        return [pipe.recv() for pipe, _ in children]

    yield at_once
    for pipe, child in children:
        pipe.send(None)
        child.join()


# How fast it is


def seconds(sides: dict[str, Callable[[], object]], device: torch.device, turns: int = 5) -> dict[str, float]:
    """The median time of each side, which take turns; each has run once before."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                found[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in found.items()}


def flops_of(network: Classifier, x: Tensor) -> float:
    """Floating-point operations of one image's forward pass: two a multiply-add of convolutions and linear layers."""
    total = 0.0

    def seen(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        weight: Any = module.weight
        total += 2 * output[0].numel() * weight[0].numel()

    hooks = [m.register_forward_hook(seen) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        network(x[:1])
    for hook in hooks:
        hook.remove()
    return total


class Replayed:
    """A function of one tensor as a CUDA graph, the least that a device can be told; without CUDA the function itself."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.function, self.x = function, x.clone()
        self.graph: Any = None
        if x.is_cuda:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    function(self.x)
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.answer = function(self.x)

    def __call__(self, x: Tensor) -> Tensor:
        """The function's answer, which the next call writes over."""
        if self.graph is None:
            return self.function(x)
        self.x.copy_(x)
        self.graph.replay()
        return self.answer


def lanes_of(mode: CompileMode | None) -> int:
    """How many batches a worker has in flight: see `Workbench`."""
    return 2 if mode is None else 1


class Bench:
    """Rates of passes and attacks; a row's ratio is above 1 where ours is the faster side."""

    def __init__(self, lab: Lab, report: Report, *, quick: bool) -> None:
        self.lab, self.report, self.quick = lab, report, quick
        self.flops = flops_of(lab.cpu.plain, lab.cpu.x)
        self.peak: dict[str, float] = {}

    def peaks(self) -> None:
        """What a large product of matrices reaches here, which shares of the peak refer to."""
        side = 512 if self.quick else 8192
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            a = torch.randn(side, side, device=self.lab.device, dtype=dtype)
            took = seconds({"it": partial(torch.matmul, a, a)}, self.lab.device)["it"]
            self.peak[precision] = 2 * side**3 / took
            self.report.add(
                f"product of matrices, {side}, {precision}", ours=self.peak[precision] / 1e12, unit="TFLOP/s"
            )

    def passes(self, mode: CompileMode | None = None) -> None:
        """Forward passes and gradients a second as blocks make them, against bare loops over the same network."""
        sizes: tuple[int, ...] = (10, 20) if self.quick else (50, 250, 1000)
        for precision in ("fp32", "bf16"):
            f, bare = self.lab.fast(precision, mode), self.lab.fast(precision)
            for batch in sizes[:2] if mode is not None else sizes:
                if self.report.late(f"passes, {precision}, batch {batch}, compile {mode}"):
                    continue
                self._forward(f, bare, precision, batch, mode)
                self._gradient(f, bare, precision, batch, mode)

    def compiled(self) -> None:
        """The same of compiled networks, which are CUDA graphs on a GPU; it takes longest, and comes last."""
        self.passes(GRAPHS)

    def _images(self, batch: int) -> Tensor:
        """Four batches of images."""
        return self.lab.x.repeat(-(-4 * batch // len(self.lab.x)), 1, 1, 1)[: 4 * batch]

    def _forward(self, f: Classifier, bare: Classifier, precision: str, batch: int, mode: CompileMode | None) -> None:
        x = self._images(batch)
        block = BlockInput(x, range(len(x)), 0, batch, lanes_of(mode))

        @torch.no_grad()
        def asked(part: Tensor) -> Tensor:
            return F.softmax(bare(part), 1)

        sides: dict[str, Callable[[], object]] = {
            "ours": lambda: undefended_outputs(f, block),
            "bare loop": lambda: [asked(part) for part in x.split(batch)],
        }
        if mode is None:  # A graph of one's own beside those of a compiled network ended in a launch failure.
            replayed = Replayed(asked, x[:batch])
            sides["bare loop, CUDA graph"] = lambda: [replayed(part) for part in x.split(batch)]
        self._told(f"forward, {precision}, batch {batch}", sides, len(x), self.flops, precision, mode)

    def _gradient(self, f: Classifier, bare: Classifier, precision: str, batch: int, mode: CompileMode | None) -> None:
        x, steps = self._images(batch), 5
        y = self.lab.y.repeat(-(-len(x) // len(self.lab.y)))[: len(x)]
        block, attack = BlockInput(x, range(len(x)), 0, batch, lanes_of(mode)), ATTACKS.make("pgd", pgd(steps))

        def asked(part: Tensor) -> Tensor:
            leaf = part.detach().requires_grad_(True)
            loss = F.cross_entropy(bare(leaf), y[: len(part)], reduction="sum")
            return torch.autograd.grad(loss, leaf)[0].sign()

        def loop(gradient: Callable[[Tensor], Tensor]) -> None:
            for part in x.split(batch):
                low, high, found = (part - EPSILON).clamp(0, 1), (part + EPSILON).clamp(0, 1), part
                for _ in range(steps):
                    found = torch.minimum(torch.maximum(found + EPSILON / 4 * gradient(found), low), high)

        sides: dict[str, Callable[[], object]] = {
            "ours": lambda: attack_outputs(f, attack, block, y, 10, ThreatModel(EPSILON)),
            "bare loop": lambda: loop(asked),
        }
        if mode is None:
            replayed = Replayed(asked, x[:batch])
            sides["bare loop, CUDA graph"] = lambda: loop(replayed)
        self._told(f"gradient, {precision}, batch {batch}", sides, steps * len(x), 2 * self.flops, precision, mode)

    def _told(
        self,
        what: str,
        sides: dict[str, Callable[[], object]],
        amount: int,
        flops: float,
        precision: str,
        mode: CompileMode | None,
    ) -> None:
        """A row for each side that ours is held against, with the share of the peak that ours reaches."""
        took = seconds(sides, self.lab.device)
        ours = amount / took["ours"]
        share = ours * flops / self.peak.get(precision, float("nan"))
        for against in list(sides)[1:]:
            self.report.add(
                f"{what}{'' if mode is None else ', compiled'}",
                ours=ours,
                against=against,
                theirs=amount / took[against],
                ratio=took[against] / took["ours"],
                unit="passes/s",
                share_of_peak=share,
            )

    def attacks(self) -> None:
        """PGD-10 against foolbox and torchattacks, each at the faster of two batch sizes, with what it leaves standing."""
        count, steps = (40, 2) if self.quick else (400, 10)
        for batch in (50, 400):
            block = self.lab.block(count, batch, 2)
            ours: dict[str, Callable[[], Tensor]] = {
                f"ours, {precision}": partial(self.lab.attacked, self.lab.fast(precision), "pgd", pgd(steps), block)
                for precision in ("fp32", "bf16")
            }
            plain = self.lab.plain.to(self.lab.device)
            theirs = {name: self._peer(make(plain, steps), batch, count) for name, make in peers().items()}
            self._against(f"PGD-{steps}, batch {batch}", ours, theirs, count)

    def _peer(self, attack: Callable[[Tensor, Tensor], Tensor], batch: int, count: int) -> Callable[[], Tensor]:
        """Another library's attack on the first points, batch by batch."""
        x, y = self.lab.x[:count], self.lab.y[:count]
        return lambda: torch.cat([attack(a, b).detach() for a, b in zip(x.split(batch), y.split(batch), strict=True)])

    def _against(
        self, what: str, ours: dict[str, Callable[[], Tensor]], theirs: dict[str, Callable[[], Tensor]], count: int
    ) -> None:
        sides = {**ours, **theirs}
        took = seconds(dict(sides), self.lab.device, 3)
        left = {name: self.lab.right(side().cpu()) for name, side in sides.items()}
        for own in ours:
            for peer in [*theirs] or ["(none installed)"]:
                self.report.add(
                    f"{what}, {own}",
                    ours=count / took[own],
                    against=peer,
                    theirs=count / took[peer] if peer in took else float("nan"),
                    ratio=took[peer] / took[own] if peer in took else float("nan"),
                    unit="points/s",
                    left=f"{100 * left[own]:.1f} / {100 * left.get(peer, float('nan')):.1f} %",
                )

    def eot(self) -> None:
        """EOT-PGD with N_A = 30 through MI-OL against foolbox's wrapper and torchattacks' EOTPGD."""
        count, steps, n = (20, 1, 5) if self.quick else (100, 2, 30)
        values = {"steps": [steps], "step_size": EPSILON / 4, "eot": n, "scoring_draws": 1}
        ours: dict[str, Callable[[], Tensor]] = {}
        defense = DEFENSES.make("mi_ol", {"lam": 0.5})
        for precision in ("fp32", "bf16"):
            defended = DefendedClassifier(self.lab.fast(precision), defense, self.lab.pool, n)
            block = self.lab.block(count, 50, 2)
            ours[f"ours, {precision}"] = partial(self.lab.attacked, defended, "eot_pgd", values, block)
        one = DefendedClassifier(self.lab.plain.to(self.lab.device), defense, self.lab.pool, 5)
        theirs = {name: self._peer(make(one, steps), 50, count) for name, make in eot_peers(n // 5).items()}
        self._against(f"EOT-PGD-{steps}, N_A = {n}", ours, theirs, count)

    def copies(self) -> None:
        """Pinned copies that do not wait, against pageable ones, and what a lane beside another hides of both."""
        values = torch.rand(250, 3, 32, 32)
        sides: dict[str, Callable[[], object]] = {
            "pinned": lambda: [on_device(values, self.lab.device) for _ in range(20)],
            "pageable": lambda: [values.to(self.lab.device) for _ in range(20)],
        }
        took = seconds(sides, self.lab.device)
        amount = 20 * values.nbytes / 2**30
        self.report.add(
            "copies of a chunk's images",
            ours=amount / took["pinned"],
            against="pageable",
            theirs=amount / took["pageable"],
            ratio=took["pageable"] / took["pinned"],
            unit="GiB/s",
        )
        x, f = self.lab.x[:100], self.lab.fast("fp32")
        parts = x.split(25)

        def asked(part: Tensor) -> Tensor:
            with torch.no_grad():
                return f(part)

        sides = {str(lanes): partial(side_by_side, asked, parts, lanes, self.lab.device) for lanes in (1, 2)}
        lanes = seconds(sides, self.lab.device)
        self.report.add("two batches in flight", ratio=lanes["1"] / lanes["2"], against="one at a time", unit="")

    def processes(self) -> None:
        """Two processes on one device, half of the points each, against one with all of them."""
        count, steps = (40, 2) if self.quick else (400, 10)
        wall: dict[int, float] = {}
        for number in (1, 2):
            with shares(self.lab, number) as at_once:
                wall[number] = seconds({"it": partial(at_once, "bf16", steps, count)}, self.lab.device, 3)["it"]
        self.report.add(
            f"PGD-{steps}, bf16, two processes on one device",
            ours=count / wall[2],
            against="one process",
            theirs=count / wall[1],
            ratio=wall[1] / wall[2],
            unit="points/s",
        )


def peers() -> dict[str, Callable[..., Any]]:
    """The libraries that are installed: name -> (network, steps) -> an attack of (images, labels)."""
    found: dict[str, Callable[..., Any]] = {}
    try:
        import foolbox

        def by_foolbox(network: nn.Module, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
            attack = foolbox.attacks.LinfPGD(abs_stepsize=EPSILON / 4, steps=steps, random_start=False)
            model = foolbox.PyTorchModel(network, bounds=(0, 1), device=next(network.parameters()).device)
            return lambda x, y: attack(model, x, y, epsilons=EPSILON)[1]

        found["foolbox"] = by_foolbox
    except ImportError as error:
        print(f"foolbox is not installed ({error})")
    try:
        import torchattacks

        found["torchattacks"] = lambda network, steps: torchattacks.PGD(
            network, eps=EPSILON, alpha=EPSILON / 4, steps=steps, random_start=False
        )
    except ImportError as error:
        print(f"torchattacks is not installed ({error})")
    return found


def eot_peers(calls: int) -> dict[str, Callable[..., Any]]:
    """The same for EOT-PGD with so many calls a step of a model that executes a defense five times."""
    found: dict[str, Callable[..., Any]] = {}
    known = peers()
    if "foolbox" in known:
        import foolbox

        def by_foolbox(network: nn.Module, steps: int) -> Callable[[Tensor, Tensor], Tensor]:
            device = next(network.parameters()).device
            inner = foolbox.PyTorchModel(network, (0, 1), device=device)
            wrapped = foolbox.models.ExpectationOverTransformationWrapper(inner, n_steps=calls)
            attack = foolbox.attacks.LinfPGD(abs_stepsize=EPSILON / 4, steps=steps, random_start=True)
            return lambda x, y: attack(wrapped, x, y, epsilons=EPSILON)[1]

        found["foolbox EOT"] = by_foolbox
    if "torchattacks" in known:
        import torchattacks

        found["torchattacks EOTPGD"] = lambda network, steps: torchattacks.EOTPGD(
            network, eps=EPSILON, alpha=EPSILON / 4, steps=steps, eot_iter=calls
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `check` or `bench` and write its rows. Exit code 1 where something did not pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("check", "bench"))
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--out", type=Path, help="the JSON file; build/gpu-check.json or build/gpu-bench.json when left out"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="what has not begun by then is left out")
    parser.add_argument("--only", default="", help="parts, separated by commas; all when left out")
    options = parser.parse_args(arguments)
    parts = [part for part in options.only.split(",") if part] or PARTS[options.what]
    if unknown := set(parts) - set(PARTS[options.what]):
        parser.error(f"--only takes {', '.join(PARTS[options.what])}; got {', '.join(sorted(unknown))}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"skipped: torch {torch.__version__} sees no GPU here")
        return 0
    device, small = torch.device(options.device), options.device == "cpu"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, a small network"
    out = options.out or Path(f"build/gpu-{options.what}.json")
    report = Report(out, {"what": options.what, "device": name, "torch": str(torch.__version__)}, options.seconds)
    exact_arithmetic(device)
    if small:
        torch.set_num_threads(1)  # Threads wait for one another where the machine does other work too.
    lab = Lab(*trained(device, small=small), device, 100 if small else 400)
    made = Checks(lab, report) if options.what == "check" else Bench(lab, report, quick=small)
    for part in parts:
        report.part(part, getattr(made, part))
    if torch.cuda.device_count() < 2:
        print("NCCL: not checked, since this machine has fewer than two GPUs")
    print(
        f"\n{name}, torch {torch.__version__}, {time.perf_counter() - report.began:.0f} s\n\n{report.markdown()}\n\n{out}"
    )
    return int(any(row.get("passed") is False for row in report.rows))


if __name__ == "__main__":
    raise SystemExit(main())
