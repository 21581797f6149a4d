"""The sides that are compared: each is one way to do a piece of work, ours or another library's.

A side is a class. It is made once, which loads the weights and is not timed, and then called with the arguments of each timed
run. `part` is (own, of): this process takes the share `own`, from 0, of the points where a side runs in `of` processes.
"""

import copy
import math
import random
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import load_classifier, prepared
from mi_ray.data import Digits, to_unit
from mi_ray.defenses import DEFENSES, DefendedClassifier
from mi_ray.device import has_bf16, keep_memory
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool
from mi_ray.study.batches import BlockInput, attack_outputs, component_outputs
from mi_ray.threat_model import ThreatModel

BATCH = 50
CPU = torch.device("cpu")
FAST = "bf16" if has_bf16(CPU) else "fp32"  # what `precision: auto` may take here


class Side:
    """The data and classifier that every side starts from."""

    def __init__(self, classifier: str, part: tuple[int, int], threads: int) -> None:
        torch.set_num_threads(threads)
        # Without gradients of the weights, which some libraries would otherwise compute too.
        self.f = load_classifier(classifier).requires_grad_(False)
        self.part = part
        data = Digits().load()
        self.x, self.y = to_unit(np.asarray(data.test_images)), torch.from_numpy(data.test_labels)
        self.pool = SamplePool(data.train_images, data.train_labels)

    def points(self, count: int) -> list[int]:
        """This process's share: whole batches, so that every side's arithmetic meets the same shapes."""
        own, of = self.part
        batches = [list(range(start, min(start + BATCH, count))) for start in range(0, count, BATCH)]
        share = -(-len(batches) // of)
        return [point for batch in batches[own * share : (own + 1) * share] for point in batch]

    def batches(self, points: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of these points, a batch at a time."""
        for start in range(0, len(points), BATCH):
            some = points[start : start + BATCH]
            yield self.x[some], self.y[some]


class Ours(Side):
    """mi_ray as one of its workers runs it: one thread, and the network folded for the faster precision."""

    def __init__(self, classifier: str, part: tuple[int, int], threads: int, precision: str = FAST) -> None:
        super().__init__(classifier, part, 1)
        keep_memory()
        self.fast = prepared(self.f, CPU, precision)  # type: ignore[arg-type]


class OurPgd(Ours):
    """PGD through `attack_outputs`, as a block computes it: crafted, measured and checked."""

    def __call__(self, count: int, steps: int, epsilon: float) -> np.ndarray:
        points = self.points(count)
        attack = ATTACKS.make("pgd", {"steps": [steps], "step_size": epsilon / 4, "random_start": False})
        found, _ = attack_outputs(
            self.fast, attack, BlockInput(self.x[points], points, 0, BATCH), self.y[points], 10, ThreatModel(epsilon)
        )
        return found.images[0, 0].numpy()


class BarePgd(Ours):
    """What no PGD can beat: its loop alone, on the folded, channels_last network in the faster precision."""

    def __call__(self, count: int, steps: int, epsilon: float) -> np.ndarray:
        out = []
        for x, y in self.batches(self.points(count)):
            low, high = (x - epsilon).clamp(0, 1), (x + epsilon).clamp(0, 1)
            found = x
            for _ in range(steps):
                found = found.detach().requires_grad_(True)
                gradient = torch.autograd.grad(F.cross_entropy(self.fast(found), y, reduction="sum"), found)[0]
                found = torch.minimum(torch.maximum(found.detach() + epsilon / 4 * gradient.sign(), low), high)
            out.append(found)
        return torch.cat(out).numpy()


class TorchattacksPgd(Side):
    """PGD as torchattacks writes it."""

    def __call__(self, count: int, steps: int, epsilon: float) -> np.ndarray:
        import torchattacks

        attack = torchattacks.PGD(self.f, eps=epsilon, alpha=epsilon / 4, steps=steps, random_start=False)
        return torch.cat([attack(x, y).detach() for x, y in self.batches(self.points(count))]).numpy()


class FoolboxPgd(Side):
    """PGD as foolbox writes it."""

    def __call__(self, count: int, steps: int, epsilon: float) -> np.ndarray:
        import foolbox

        model = foolbox.PyTorchModel(self.f, bounds=(0, 1))
        attack = foolbox.attacks.LinfPGD(abs_stepsize=epsilon / 4, steps=steps, random_start=False)
        found = [attack(model, x, y, epsilons=epsilon)[1] for x, y in self.batches(self.points(count))]
        return torch.cat(found).detach().numpy()


class AdvLibPgd(Side):
    """adv_lib.attacks.pgd_linf, with an empty module for visdom, which its logger imports and this attack does not use."""

    def __call__(self, count: int, steps: int, epsilon: float) -> np.ndarray:
        sys.modules.setdefault("visdom", types.ModuleType("visdom"))
        from adv_lib.attacks import pgd_linf

        options: dict[str, Any] = {
            "ε": epsilon,
            "steps": steps,
            "restarts": 1,
            "loss_function": "ce",
            "random_init": False,
        }
        found = [
            pgd_linf(self.f, x, y, absolute_step_size=epsilon / 4, **options)
            for x, y in self.batches(self.points(count))
        ]
        return torch.cat(found).detach().numpy()


class OurMiOl(Ours):
    """MI-OL with N = 30 through `component_outputs`."""

    def __call__(self, count: int, executions: int) -> np.ndarray:
        points = self.points(count)
        x = self.x[points]
        with torch.no_grad():
            predicted = self.fast(x).argmax(1)
        component: Any = DEFENSES.make("mi_ol", {"lam": 0.5})
        found = component_outputs(
            self.fast, component, BlockInput(x, points, 0, BATCH), predicted, self.pool, [executions], 1
        )
        return found[0, 0].numpy()


class LoopMiOl(Side):
    """MI-OL the paper's way: a loop over points and executions, one image at a time, in fp32.

    The same keyed samples as ours are mixed in, drawn beforehand, so that the two must agree.
    """

    def __call__(self, count: int, executions: int) -> np.ndarray:
        out = []
        component: Any = DEFENSES.make("mi_ol", {"lam": 0.5})
        with torch.no_grad():
            for point in self.points(count):
                x = self.x[point : point + 1]
                predicted, total = self.f(x).argmax(1), torch.zeros(10)
                for chunk in range(-(-executions // 5)):
                    draws = Draws(Key(0, "evaluate", "mi_ol"), [point], 5, chunk, CPU)
                    for mixed in component.transform(x, draws, predicted, self.pool):
                        total += F.softmax(self.f(mixed), dim=1)[0]
                out.append(total / executions)
        return torch.stack(out).numpy()


TRANSFORMS: dict[str, dict[str, Any]] = {
    "random_rotation": {"degrees": 30.0},
    "random_pad": {"crop": [20, 28]},
    "random_resize": {"crop": [20, 28]},
}


class OurTransforms(Ours):
    """The batched transforms of a defense, without the passes that they feed."""

    def __call__(self, name: str, count: int, executions: int) -> np.ndarray:
        component: Any = DEFENSES.make(name, TRANSFORMS[name])
        total = 0.0
        points = self.points(count)
        for start in range(0, len(points), BATCH):
            some = points[start : start + BATCH]
            for chunk in range(executions // 5):
                draws = Draws(Key(0, "evaluate", name), some, 5, chunk, CPU)
                total += float(component.transform(self.x[some], draws, self.y[some], None).mean())
        return np.array(total * BATCH / len(points) / (executions // 5))


class PilTransforms(Side):
    """torchvision's transforms on PIL images, one by one, as the released code does."""

    def __call__(self, name: str, count: int, executions: int) -> np.ndarray:
        from torchvision.transforms import functional as V

        total, rng, points = 0.0, random.Random(0), self.points(count)  # noqa: S311
        for point in points:
            for _ in range(executions):
                image = V.to_pil_image(self.x[point])
                if name == "random_rotation":
                    turned = V.rotate(image, rng.uniform(-30, 30), V.InterpolationMode.BILINEAR)
                else:
                    side = rng.randint(20, 28)
                    cut = V.crop(image, rng.randint(0, 32 - side), rng.randint(0, 32 - side), side, side)
                    if name == "random_resize":
                        turned = V.resize(cut, [32, 32])
                    else:
                        left, top = rng.randint(0, 32 - side), rng.randint(0, 32 - side)
                        turned = V.pad(cut, [left, top, 32 - side - left, 32 - side - top])
                total += float(V.to_tensor(turned).mean())
        return np.array(total / len(points) / executions)


class OurForward(Ours):
    """The forward passes that the executions of a defense take."""

    def __call__(self, count: int, executions: int) -> np.ndarray:
        with torch.no_grad():
            for x, _ in self.batches(self.points(count)):
                chunk = x.repeat(5, 1, 1, 1)
                for _ in range(executions // 5):
                    self.fast(chunk)
        return np.zeros(1)


class OurDraws(Ours):
    """The keyed random numbers alone, of the defense that needs the most: one normal a value."""

    def __call__(self, count: int, executions: int) -> np.ndarray:
        points = self.points(count)
        for start in range(0, len(points), BATCH):
            for chunk in range(executions // 5):
                Draws(Key(0, "evaluate", "x"), points[start : start + BATCH], 5, chunk, CPU).normal_images((3, 32, 32))
        return np.zeros(1)


class OurEot(Ours):
    """EOT-PGD with N_A = 30 through MI-OL."""

    def __call__(self, count: int, steps: int, epsilon: float) -> np.ndarray:
        points = self.points(count)
        defended = DefendedClassifier(self.fast, DEFENSES.make("mi_ol", {"lam": 0.5}), self.pool, 30)
        values = {"steps": [steps], "step_size": epsilon / 4, "eot": 30, "scoring_draws": 1}
        found, _ = attack_outputs(
            defended,
            ATTACKS.make("eot_pgd", values),
            BlockInput(self.x[points], points, 0, BATCH),
            self.y[points],
            10,
            ThreatModel(epsilon, knowledge="adaptive"),
        )
        return found.images[0, 0].numpy()


class FoolboxEot(Side):
    """foolbox's LinfPGD on its expectation-over-transformation wrapper around one execution of MI-OL."""

    def __call__(self, count: int, steps: int, epsilon: float) -> np.ndarray:
        import foolbox

        warnings.simplefilter("ignore")
        one = DefendedClassifier(self.f, DEFENSES.make("mi_ol", {"lam": 0.5}), self.pool, 5)
        wrapped = foolbox.models.ExpectationOverTransformationWrapper(foolbox.PyTorchModel(one, (0, 1)), n_steps=6)
        attack = foolbox.attacks.LinfPGD(abs_stepsize=epsilon / 4, steps=steps, random_start=True)
        found = [attack(wrapped, x, y, epsilons=epsilon)[1] for x, y in self.batches(self.points(count))]
        return torch.cat(found).detach().numpy()


class Score(Side):
    """Which images of a side are classified correctly in fp32, by F or by F behind MI-OL with N = 30."""

    def __call__(self, images: np.ndarray, behind: bool) -> np.ndarray:
        x, y = torch.from_numpy(images), self.y[: len(images)]
        model: nn.Module = self.f
        if behind:
            model = DefendedClassifier(self.f, DEFENSES.make("mi_ol", {"lam": 0.5}), self.pool, 30)
        with torch.no_grad():
            return torch.cat(
                [(model(a).argmax(1) == b).float() for a, b in zip(x.split(50), y.split(50), strict=True)]
            ).numpy()


class BareTraining(Side):
    """Training written out in plain PyTorch, same precision and augmentation: ERM, or interpolated AT.

    compiled: by inductor, the training step's passes and those of the inner attack. A call goes on where the one before it
    ended, so that nothing is compiled twice.
    """

    def __init__(self, classifier: str, part: tuple[int, int], threads: int, compiled: bool = False) -> None:
        super().__init__(classifier, part, threads)
        self.compiled, self.begun = compiled, dict[str, tuple[nn.Module, torch.optim.Optimizer]]()

    def model_of(self, objective: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The network as the last call for this objective left it, with its optimizer."""
        if objective not in self.begun:
            model = copy.deepcopy(self.f).train().requires_grad_(True).to(memory_format=torch.channels_last)
            if self.compiled:
                model.network.compile(dynamic=False)
            self.begun[objective] = model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        return self.begun[objective]

    def __call__(self, objective: str, images: int, batch: int) -> np.ndarray:
        model, optimizer = self.model_of(objective)
        pixels, labels = torch.as_tensor(np.asarray(self.pool.images)), self.pool.labels
        rng = np.random.default_rng(0)
        losses = []
        for _ in range(images // batch):
            index = torch.from_numpy(rng.permutation(len(labels))[:batch])
            x, y = _crop_and_flip(pixels[index].float().div(255), rng), labels[index]
            with torch.autocast("cpu", torch.bfloat16, enabled=FAST == "bf16"):
                loss = F.cross_entropy(model(x), y) if objective == "erm" else self.interpolated(model, x, y, rng)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).float().numpy()

    def interpolated(self, model: nn.Module, x: Tensor, y: Tensor, rng: np.random.Generator) -> Tensor:
        """Interpolated AT's loss (Lamb et al., 2019) with an inner PGD-10 on the model in eval mode."""
        model.eval()
        attacked = (x + 8 / 255 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
        for _ in range(10):
            attacked = attacked.detach().requires_grad_(True)
            gradient = torch.autograd.grad(F.cross_entropy(model(attacked), y, reduction="sum"), attacked)[0]
            moved = attacked.detach() + 2 / 255 * gradient.sign()
            attacked = torch.minimum(torch.maximum(moved, x - 8 / 255), x + 8 / 255).clamp(0, 1)
        model.train()
        mixed, pairs = [], []
        for images in (attacked.detach(), x):
            lam = torch.from_numpy(rng.beta(1, 1, len(x)).astype(np.float32))
            first, second = (torch.from_numpy(rng.permutation(len(x))) for _ in range(2))
            share = lam.view(-1, 1, 1, 1)
            mixed.append(share * images[first] + (1 - share) * images[second])
            pairs.append((lam, y[first], y[second]))
        halves = model(torch.cat(mixed)).chunk(2)
        losses = [
            (lam * F.cross_entropy(half, a, reduction="none") + (1 - lam) * F.cross_entropy(half, b, reduction="none"))
            for half, (lam, a, b) in zip(halves, pairs, strict=True)
        ]
        return torch.cat(losses).mean()


def _crop_and_flip(x: Tensor, rng: np.random.Generator) -> Tensor:
    padded = F.pad(x, (4, 4, 4, 4))
    tops, lefts, flips = rng.integers(0, 9, len(x)), rng.integers(0, 9, len(x)), rng.random(len(x)) < 0.5
    crops = [image[:, t : t + 32, s : s + 32] for image, t, s in zip(padded, tops, lefts, strict=True)]
    return torch.stack([crop.flip(-1) if flip else crop for crop, flip in zip(crops, flips, strict=True)])


def median(values: list[float]) -> float:
    """The middle value; of an even number the geometric mean of the two, since these are ratios."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return math.sqrt(low * high)
