"""The limit of a pass on a CPU: the best of loops over a folded network, eager, compiled and frozen, against ours.

Ours are the graphs that `compile: auto` has chosen for long studies; what a sweep gets without them is measured beside that.
One process and one thread, whose processor seconds are counted, so that other work on the machine changes a ratio little. The
sides take turns. Compiling is not timed: it takes 10 to 30 seconds a shape.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Row
from benchmarks.sides import BATCH, CPU, FAST, median
from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import Classifier, Precision, load_classifier, prepared, wrap_classifier
from mi_ray.data import Digits, to_unit
from mi_ray.defenses.base import CHUNK
from mi_ray.device import keep_memory
from mi_ray.graphs import Graphs
from mi_ray.study.batches import BlockInput, attack_outputs, undefended_outputs
from mi_ray.threat_model import ThreatModel

EPSILON, STEPS = 4 / 255, 4
LOOPS = ("eager", "compiled", "frozen")  # the sides that ours is held against
Side = Callable[[], Tensor]


class OwnBlock(nn.Module):
    """A residual block with its batch norms before the convolutions, so that only one of the two can be folded into one."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The maps after both convolutions, added to the projected input."""
        active = F.relu(self.norm1(x))
        return self.conv2(F.relu(self.norm2(self.conv1(active)))) + self.shortcut(active)


class Own(nn.Module):
    """What a `factory` may return: a small wide residual network (Zagoruyko & Komodakis, 2016), 0.5 M parameters."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 48, 96, 144)
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.one, self.two, self.three = (
            OwnBlock(i, o, stride) for i, o, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        )
        self.norm, self.linear = nn.BatchNorm2d(widths[3]), nn.Linear(widths[3], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images."""
        maps = F.relu(self.norm(self.three(self.two(self.one(self.stem(x))))))
        return self.linear(maps.mean((2, 3)).view(maps.shape[0], -1))


def own() -> Classifier:
    """A person's own classifier; its weights are random, and its batch norms are of images of digits."""
    torch.manual_seed(0)
    network = Own().train()
    with torch.no_grad():
        network(to_unit(Digits().load().train_images[:200]))
    return wrap_classifier(network.eval(), (0.5,) * 3, (0.25,) * 3)


class Loops:
    """Bare loops over a network in its fast form, and ours, which counts, checks and keys its passes beside that."""

    def __init__(self, plain: Classifier, precision: Precision, points: int) -> None:
        self.fast, self.ours, self.plain = prepared(plain, CPU, precision), prepared(plain, CPU, precision), plain
        self.ours.graphs = Graphs(self.ours.answer, forward=[BATCH * CHUNK], gradient=[BATCH])
        data = Digits().load()
        self.x, self.y = to_unit(data.test_images[:points]), torch.from_numpy(data.test_labels[:points])
        self.type = torch.bfloat16 if precision == "bf16" else torch.float32

    def asked(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """float32 logits of a network in its fast form for images in [0, 1]."""
        normalised = (x - self.fast.mean) / self.fast.std
        return network(normalised.to(self.type)).float()

    def forward(self, batch: int) -> dict[str, Side]:
        """Every way to pass the points through the network."""

        def loop(network: Callable[[Tensor], Tensor]) -> Side:
            def run() -> Tensor:
                with torch.no_grad():
                    return torch.cat([F.softmax(self.asked(network, part), 1) for part in self.x.split(batch)])

            return run

        network = self.fast.network
        block = BlockInput(self.x, range(len(self.x)), 0, batch)
        return {
            "ours": lambda: undefended_outputs(self.ours, block),
            "uncompiled": lambda: undefended_outputs(self.fast, block),
            "eager": loop(network),
            "compiled": loop(torch.compile(network, dynamic=False)),
            "frozen": loop(torch.compile(network, dynamic=False, options={"freezing": True})),
        }

    def gradient(self, batch: int) -> dict[str, Side]:
        """Every way to take PGD's steps."""

        def loop(network: Callable[[Tensor], Tensor]) -> Side:
            def run() -> Tensor:
                parts = zip(self.x.split(batch), self.y.split(batch), strict=True)
                return torch.cat([crafted(network, x, y) for x, y in parts])

            return run

        def crafted(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
            low, high, found = (x - EPSILON).clamp(0, 1), (x + EPSILON).clamp(0, 1), x
            for _ in range(STEPS):
                leaf = found.detach().requires_grad_(True)
                gradient = torch.autograd.grad(F.cross_entropy(self.asked(network, leaf), y, reduction="sum"), leaf)[0]
                found = torch.minimum(torch.maximum(found + EPSILON / 4 * gradient.sign(), low), high)
            return found

        block = BlockInput(self.x, range(len(self.x)), 0, batch)
        attack = ATTACKS.make("pgd", {"steps": [STEPS], "step_size": EPSILON / 4, "random_start": False})

        def ours(classifier: Classifier) -> Tensor:
            return attack_outputs(classifier, attack, block, self.y, 10, ThreatModel(EPSILON))[0].images[0, 0]

        return {
            "ours": lambda: ours(self.ours),
            "uncompiled": lambda: ours(self.fast),
            "eager": loop(self.fast.network),
            "compiled": loop(torch.compile(self.fast.network, dynamic=False)),
        }


def _row(name: str, sides: dict[str, Side], amount: int, score: Callable[[Tensor], Any], turns: int) -> Row:
    """Ours against the fastest of the others in each turn; every side runs once before the first one."""
    answers = {side: score(run()) for side, run in sides.items()}
    spent: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(turns):
        for side, run in sides.items():
            began = time.process_time()
            run()
            spent[side].append(time.process_time() - began)
    others = [side for side in sides if side != "ours"]
    best = min((side for side in others if side in LOOPS), key=lambda side: median(spent[side]))
    ratios = [theirs / ours for ours, theirs in zip(spent["ours"], spent[best], strict=True)]
    apart = max(float(np.abs(answers["ours"] - answers[side]).max()) for side in others)
    ours, theirs = amount / median(spent["ours"]), amount / median(spent[best])
    told = ", ".join(f"{side} {amount / median(spent[side]):,.0f}" for side in others)
    return Row(
        name, f"best loop: {best}", 0.95, ratios, ours, theirs, "passes/s", f"{told}; apart {apart:.2g}", apart < 0.05
    )


NETWORKS: dict[str, Callable[[str], Classifier]] = {
    "0.7 M ResNet": load_classifier,
    "a person's own, 0.5 M": lambda folder: own(),
}
PARTS = [(name, precision) for precision in dict.fromkeys((FAST, "fp32")) for name in NETWORKS]


def rows(part: tuple[str, str], folder: str, turns: int, points: int = 250) -> list[Row]:
    """Both directions of a network in a precision, one of `PARTS`. folder: of our own network of 0.7 M parameters."""
    torch.set_num_threads(1)
    keep_memory()
    name, precision = part
    loops = Loops(NETWORKS[name](folder).requires_grad_(False), precision, points)  # type: ignore[arg-type]

    def right(images: Tensor) -> Any:
        with torch.no_grad():
            return np.array(float((loops.plain(images).argmax(1) == loops.y).float().mean()))

    forward, gradient = loops.forward(BATCH * CHUNK), loops.gradient(BATCH)
    return [
        _row(f"forward, {name}, {precision}", forward, points, lambda p: p.numpy(), turns),
        _row(f"gradient, {name}, {precision}", gradient, STEPS * points, right, turns),
    ]
