"""What one piece of work computes on one block of points, without Ray and without files.

Arithmetic runs in canonical batches (`batch` points, and `CHUNK` executions of each), so that on one kind of machine a
point's numbers are the same bit for bit whatever block it is computed in. `lanes` of these batches are in flight at once.
"""

import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mi_ray.attacks import Adversarial, Attack, Begun, attack_labels
from mi_ray.attacks.base import scorer
from mi_ray.defenses.base import EVALUATE, DefendedClassifier, Executions, RandomTransform, votes_of
from mi_ray.device import NotFiniteError, refuse_not_finite
from mi_ray.named.programs import Program
from mi_ray.randomness import Key
from mi_ray.sample_pool import SamplePool
from mi_ray.threat_model import ThreatModel

T = TypeVar("T")
R = TypeVar("R")


def batches(total: int, batch: int) -> Iterator[slice]:
    """The canonical batches of a block, which is a whole number of them unless the points end."""
    for start in range(0, total, batch):
        yield slice(start, min(start + batch, total))


@dataclass(frozen=True)
class BlockInput:
    """Images of consecutive points, and how they are gone through.

    points: the images' indices in the test split, which key their randomness together with the seed. batch: points of a
    canonical batch. lanes: how many of these are in flight at once. given: what other attacks made of the images.
    """

    x: Float[Tensor, "P C H W"]
    points: Sequence[int]
    seed: int
    batch: int
    lanes: int = 1
    given: Sequence[Float[Tensor, "P C H W"]] = ()

    def each(self, function: Callable[[slice], R]) -> list[R]:
        """The function of every canonical batch, in order."""
        return side_by_side(function, batches(len(self.x), self.batch), self.lanes, self.x.device)


def undefended_outputs(classifier: nn.Module, block: BlockInput) -> Float[Tensor, "P L"]:
    """The softmax outputs F(x). Raises NotFiniteError where they are not finite."""

    def outputs(part: slice) -> Tensor:
        """F's outputs on one batch."""
        with torch.no_grad():
            return F.softmax(classifier(block.x[part]).float(), dim=1)

    found = torch.cat(block.each(outputs))
    refuse_not_finite("the classifier's outputs", found, 0, block.points)
    return found


class Displaced(nn.Module):
    """F on images that are moved first. delta: [B, C, H, W], one for each image; a batch may hold several copies of these."""

    def __init__(self, classifier: nn.Module, delta: Float[Tensor, "B C H W"]) -> None:
        super().__init__()
        self.classifier, self.delta = classifier, delta

    def forward(self, x: Float[Tensor, "EB C H W"]) -> Float[Tensor, "EB L"]:
        """F(x + δ), copy by copy."""
        moved: Tensor = self.classifier((x.unflatten(0, (-1, len(self.delta))) + self.delta).flatten(0, 1))
        return moved


def component_outputs(
    classifier: nn.Module,
    component: RandomTransform,
    block: BlockInput,
    predicted: Int64[Tensor, "P"],
    pool: SamplePool | None,
    executions: Sequence[int],
    draws: int,
    delta: Float[Tensor, "P C H W"] | None = None,
    purpose: str = EVALUATE,
    counted: tuple[int, Int64[Tensor, "D P L"]] | None = None,
) -> Float[Tensor, "D M P L"]:
    """Mean softmax over the first N executions, for each of `draws` independent draws and each N in `executions`.

    Where executions vote, it is the share of votes. predicted: ŷ on the block's images. delta: what is added to each
    transformed copy of a point, unscaled and not clipped, where F is asked for x̃_0 + δ (Eq. 13). purpose: what the draws
    are for. counted: how many executions of each draw have voted already, fewer than any in `executions`, and their votes.
    Raises NotFiniteError, saying whose it is, where they are not finite.
    """

    def outputs(part: slice) -> Tensor:
        """The outputs of every draw on one batch."""
        runs, asked = [], classifier if delta is None else Displaced(classifier, delta[part])
        begin, votes = counted if counted is not None else (0, None)
        for draw in range(draws):
            key = Key(block.seed, purpose, draw=draw)
            executed = Executions(component, pool, key, block.points[part], max(executions), begin)
            with torch.no_grad():
                chunks = executed.chunks(asked, block.x[part], predicted[part])
                if component.votes:
                    runs.append(vote_shares(chunks, executions, begin, 0 if votes is None else votes[draw, part]))
                else:
                    # Alg. 1's mean for every N at once; `log_mean` is what attacks differentiate.
                    total = torch.cat(list(chunks)).exp().cumsum(0)
                    runs.append(torch.stack([total[n - 1] / n for n in executions]))
        return torch.stack(runs)

    found = torch.cat(block.each(outputs), dim=2)
    try:
        refuse_not_finite(f"the outputs behind {component.name}", found, 2, block.points)
    except NotFiniteError as error:
        keys = (Key(block.seed, purpose, draw=draw) for draw in range(draws))
        runs = (Executions(component, pool, key, block.points, max(executions)) for key in keys)
        with torch.no_grad():
            sound = all(copies.isfinite().all() for run in runs for copies in run.copies(block.x, predicted))
        whose = "the classifier answers so to copies that are finite" if sound else "its transform makes such copies"
        raise NotFiniteError(f"{error}: {whose}") from None
    return found


def vote_shares(
    chunks: Iterable[Float[Tensor, "E B L"]],
    executions: Sequence[int],
    begin: int = 0,
    counted: Int64[Tensor, "B L"] | int = 0,
) -> Float[Tensor, "M B L"]:
    """The share of votes of each class among the first N executions, for each N in `executions`, which rise.

    chunks: log-probabilities of the executions after the first `begin`, whose votes are `counted`. Votes are whole numbers,
    so that no order of counting changes a share. It is NaN where one of the answers so far is.
    """
    found, left, broken = list[Tensor](), list(executions), torch.zeros(())
    for chunk in chunks:
        votes = votes_of(chunk).cumsum(0) + counted
        broken = broken.to(chunk) + chunk.sum((0, 2)).mul(0.0)
        while left and left[0] <= begin + len(chunk):
            number = left.pop(0)
            found.append(votes[number - begin - 1] / number + broken[:, None])
        begin, counted = begin + len(chunk), votes[-1]
    return torch.stack(found)


def attack_outputs(
    model: nn.Module,
    attack: Attack,
    block: BlockInput,
    y: Int64[Tensor, "P"],
    classes: int,
    threat: ThreatModel,
    labels: Literal["true", "predicted"] = "true",
    begun: Begun | None = None,
) -> tuple[Adversarial, Int64[Tensor, "P"]]:
    """Adversarial images of a block and the labels that the attack worked on.

    labels "predicted": an untargeted attack leaves the model's own prediction on the clean image (the released code's
    "label guessing"), so that an image that the model gets wrong is pushed back towards right. begun: where a stored
    trajectory of these points stands, from which the attack goes on.
    """

    def crafted(part: slice) -> tuple[Adversarial, Tensor]:
        """What the attack found on one batch, and the labels that it worked on."""
        x, points = block.x[part], block.points[part]
        own = attack_labels(y[part], classes, threat, block.seed, points)
        if labels == "predicted" and threat.leaves_label:
            own = _predicted(model, x)
        given = [images[part] for images in block.given]
        return attack.craft(model, x, own, threat, block.seed, points, begun and begun.of(part), given), own

    done = block.each(crafted)
    images, loss, success, zeros = (
        torch.cat([getattr(found, name) for found, _ in done], dim=2)
        for name in ("images", "loss", "success", "zero_gradients")
    )
    shares = [found.shares for found, _ in done if found.shares is not None]
    moved = torch.cat(shares, dim=2) if shares else None
    return Adversarial(images, loss, success, attack.stops(), zeros, moved), torch.cat([own for _, own in done])


def _predicted(model: nn.Module, x: Float[Tensor, "B C H W"]) -> Int64[Tensor, "B"]:
    """F's own prediction in fp32, also where the model is F behind a defense: what a study calls ŷ."""
    classifier = model.classifier if isinstance(model, DefendedClassifier) else model
    with torch.no_grad():
        found: Tensor = scorer(classifier)(x)
    return found.argmax(1)


GRAPH = 3  # A backward pass holds about so many times the activations: they, their gradients, one layer's scratch.

SHARE = 0.5  # Where no budget is set, batches in flight may take this share of the memory at hand.

GPU_LANES = 2  # On a GPU one batch's small kernels fill the gaps of the other's.


def activation_bytes(classifier: nn.Module, image: tuple[int, ...], device: torch.device) -> int:
    """Bytes of all activations of one image [C, H, W], as a gradient needs them; measured by one pass.

    They are what the network's layers return. Of a saved program, whose layers are not seen, they are what a gradient keeps.
    """
    x, sizes = torch.full((1, *image), 0.5, device=device), list[int]()
    programs = [module for module in classifier.modules() if isinstance(module, Program)]
    if programs:
        return _kept_for_a_gradient(classifier, x, {at for program in programs for at in program.places()})

    def seen(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel() * output.element_size())

    leaves = [module for module in classifier.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(seen) for module in leaves]
    try:
        with torch.no_grad():
            classifier(x)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sizes)


def _kept_for_a_gradient(classifier: nn.Module, x: Tensor, weights: Set[int]) -> int:
    """Bytes that a forward pass keeps for its gradient, beside the weights. weights: where in memory these are."""
    kept = dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        classifier(x.requires_grad_())
    return sum(size for place, size in kept.items() if place not in weights)


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


_OWN = threading.local()  # Holds the stream of the lane that a thread is.


def _begin(device: torch.device) -> None:
    torch.set_num_threads(1)  # PyTorch keeps this number for each thread.
    _OWN.stream = torch.cuda.Stream(device) if device.type == "cuda" else None


@lru_cache(maxsize=8)
def _lanes(lanes: int, device: torch.device) -> ThreadPoolExecutor:
    """The threads of the lanes. They stay, since on a GPU memory that one stream has freed is of no use to another."""
    return ThreadPoolExecutor(lanes, "lane", _begin, (device,))


def side_by_side(function: Callable[[T], R], parts: Iterable[T], lanes: int, device: torch.device) -> list[R]:
    """The function of each part, in order; `lanes` of them at once, each on one thread and on a GPU in its own stream.

    One thread a part: a result then does not depend on how many threads a worker has. The first error is raised, once
    no part runs any longer.
    """
    if lanes == 1:
        return [function(part) for part in parts]

    def on_its_own(part: T) -> R:
        """The function of one part, in the stream of the lane whose thread runs it."""
        if _OWN.stream is None:
            return function(part)
        _OWN.stream.wait_stream(torch.cuda.default_stream(device))
        with torch.cuda.stream(_OWN.stream):
            found = function(part)
        _OWN.stream.synchronize()
        return found

    running = [_lanes(lanes, device).submit(on_its_own, part) for part in parts]
    _, waiting = wait(running, return_when=FIRST_EXCEPTION)
    for each in waiting:  # One has failed, and what has not begun is not to begin.
        each.cancel()
    wait(running)
    return [each.result() for each in running if not each.cancelled()]
