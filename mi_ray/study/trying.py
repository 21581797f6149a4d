"""What a few passes find of a person's own code before any work: classifiers, defenses and attacks that cannot serve.

Everything here costs a second at most. What shows only on some images is found by the first block that meets it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mi_ray.attacks import Attack, attack_labels
from mi_ray.classifiers import Classifier, Precision, build_classifier, prepared
from mi_ray.config import ClassifierEntry
from mi_ray.data import Dataset, to_unit
from mi_ray.defenses import DefendedClassifier, Defense, RandomTransform
from mi_ray.defenses.base import CHUNK, chunk_of
from mi_ray.objectives import Objective
from mi_ray.own_code import in_a_line, own_code
from mi_ray.parameters import kind_of
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool
from mi_ray.threat_model import ThreatModel

IMAGES = 4  # test images that are passed
BATCH, SMALL = 64, 64  # training images that an objective meets, where their sides are of so many pixels at most
SUMS_TO_ONE = 1e-4  # how far the sum of probabilities in float32, or in bfloat16 once it is rounded, may be from 1
# How far logits may be from those in another batch, as a share of their span; bfloat16 rounds differently.
BESIDE = 0.05
FARTHEST = (-4.0, 5.0)  # Pixels beyond are on another scale: even noise of the width of the range hardly makes such.
ALIKE = 1e-6  # answers to different images that are closer than this are one answer


def try_classifier(
    entry: ClassifierEntry, classifier: Classifier, dataset: Dataset, precision: Precision, *, gradients: bool
) -> None:
    """Pass some test images through a classifier that is not trained here, forwards and backwards.

    gradients: whether any attack of the study follows them. Raises ValueError when the answers cannot serve: of another
    width, not finite, the same to every image or different to the same one, others where fewer images stand beside it,
    probabilities in place of logits, or such that no gradient goes through.
    """
    height, width = dataset.test_images.shape[1:3]
    x = to_unit(dataset.test_images[:IMAGES])
    with own_code(f"classifier {entry.name!r} must answer images [B, 3, {height}, {width}]"):
        ready = prepared(classifier, torch.device("cpu"), precision, folded=False)
        with torch.no_grad():
            again, few = ready(x), ready(x[1:3])
        x.requires_grad_(gradients)
        answers = ready(x)
    _refuse_answers(entry, answers, again, [len(x), dataset.classes])
    if not torch.allclose(few, again[1:3], atol=BESIDE * float(again.max() - again.min())):
        raise ValueError(
            f"classifier {entry.name!r} must answer each image by itself; beside others an image gets other logits than "
            "with fewer beside it (is the batch's own mean taken?)"
        )
    if gradients:
        _refuse_gradient(entry, x, answers)


def doubts(entry: ClassifierEntry, classifier: Classifier, dataset: Dataset) -> list[str]:
    """What may be a mistake about a classifier that is not trained here, and may be meant, a sentence each."""
    seen, found = list[object](), list[str]()
    watch = classifier.network.register_forward_hook(lambda network, inputs, answer: seen.append(answer))
    with own_code(f"classifier {entry.name!r} must answer images"), torch.no_grad():
        logits = classifier(to_unit(dataset.test_images[:IMAGES]))
    watch.remove()
    answer = seen[0] if seen else logits
    if entry.factory and entry.weights is None:
        found.append("no `weights` are given, so that its network has those that its factory gives it")
    if classifier.unsaid:
        taken = " and ".join(f"{name} {getattr(entry, name)[0]:g}" for name in classifier.unsaid)
        found.append(
            f"{taken} of each channel normalise its images, since nothing says another; a network that was trained with "
            "others, or that normalises for itself (mean 0, std 1), answers worse so, and what attacks leave of it is wrong"
        )
    if isinstance(answer, (tuple, list)) and len(answer) > 1:
        found.append(f"its network returns {len(answer)} answers, of which the first is taken for the logits")
    if logits.min() >= 0 and logits.max() <= 1:
        found.append(
            "all that it answers to test images lies in [0, 1], as behind a sigmoid, where logits are asked for"
        )
    return found


def _refuse_answers(entry: ClassifierEntry, answers: Tensor, again: Tensor, shape: list[int]) -> None:
    """Raise ValueError unless these are logits of that shape that tell images apart. again: of the same images once more."""
    must, found = f"classifier {entry.name!r} must return", answers.detach()
    remedy = "; `weights:` of yours give it a head for them" if entry.source and entry.weights is None else ""
    if list(found.shape) != shape:
        raise ValueError(
            f"{must} logits [B, {shape[1]}], one for each class of the dataset; for {shape[0]} images it returned "
            f"{list(found.shape)}{remedy}"
        )
    if not found.isfinite().all():
        raise ValueError(
            f"{must} finite numbers; of {len(found)} test images {int((~found.isfinite()).any(1).sum())} have a NaN or an "
            "infinity among their logits"
        )
    if not torch.equal(found, again):
        raise ValueError(f"{must} the same answer to the same image; two passes differ (is a dropout left on?)")
    if min(shape) > 1 and (found - found[0]).abs().max() < ALIKE:
        raise ValueError(f"{must} an answer to its image; {len(found)} different test images all get the same logits")
    if found.min() >= 0 and (found.sum(1) - 1).abs().max() < SUMS_TO_ONE:
        raise ValueError(f"{must} logits; each of its answers is at least 0 and sums to 1: leave the softmax out")


def _refuse_gradient(entry: ClassifierEntry, x: Tensor, answers: Tensor) -> None:
    """Raise ValueError unless a finite gradient reaches the images."""
    rule = f"classifier {entry.name!r}: a gradient must reach the images, which attacks follow"
    if not answers.requires_grad:
        raise ValueError(f"{rule}; its answers are detached from them (a .detach(), no_grad() or NumPy on the way?)")
    with own_code(rule):
        gradient = torch.autograd.grad(answers.logsumexp(1).sum() - answers[:, 0].sum(), x)[0]
    if not gradient.isfinite().all():
        raise ValueError(f"{rule}; it is NaN or infinite")


def look_problems(defense: Defense) -> Iterator[str]:
    """What of a defense's colour and marker matplotlib does not know, which draws figures once all work is done."""
    from matplotlib.colors import is_color_like
    from matplotlib.markers import MarkerStyle

    look = type(defense)
    if look.colour and not is_color_like(look.colour):
        yield f"colour must be one that matplotlib knows, such as '#1f77b4' or 'teal'; got {look.colour!r}"
    try:
        MarkerStyle(look.marker or "o")
    except (TypeError, ValueError):
        yield f"marker must be one that matplotlib knows, such as 'o'; got {look.marker!r}"


def try_objective(objective: Objective, description: Mapping[str, Any], dataset: Dataset, batch_size: int) -> None:
    """Take the loss of a person's own objective on a batch of training images, of the network that it is to train.

    The images are spread over the split, of which those of one class may stand together. Raises ValueError where the loss can
    train no network.
    """
    most = BATCH if max(dataset.train_images.shape[1:3]) <= SMALL else IMAGES
    places = np.unique(np.linspace(0, len(dataset.train_labels) - 1, min(batch_size, most)).astype(np.int64))
    x = to_unit(np.stack([dataset.train_images[place] for place in places]))
    y = torch.from_numpy(np.array(dataset.train_labels[places]))
    with torch.random.fork_rng(devices=[]), own_code(f"objective {objective.name} must run on training images"):
        problems = list(objective_problems(objective, build_classifier(description).train(), x, y))
    if problems:
        raise ValueError(f"objective {objective.name}: {problems[0]}")


def objective_problems(objective: Objective, f: Classifier, x: Tensor, y: Tensor) -> Iterator[str]:
    """What an objective does not keep of its contract, in words: a finite mean that trains, drawn from `rng` alone."""
    said = objective.cost()
    if (
        not isinstance(said, (tuple, list))
        or len(said) != 2
        or not all(isinstance(each, int) and each >= 0 for each in said)
    ):
        yield f"cost() must be (forward, backward) passes, whole numbers; got {said}"
    losses: list[Any] = []
    for state in range(2):
        torch.manual_seed(state)  # What is keyed does not ask torch's own generator.
        losses.append(objective.loss(f, f, x, y, np.random.default_rng(4)))
    loss = losses[0]
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = list(loss.shape) if isinstance(loss, Tensor) else kind_of(loss)
        yield f"loss must return one number as a tensor, the mean over the batch; got {got}"
        return
    if not loss.isfinite():
        yield f"loss must be finite; on a few images it is {loss.item():g}"
        return
    if loss.item() != losses[1].item():
        yield "the same rng must give the same loss: draw from `rng` alone"
    weights = list(f.parameters())
    found = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else ()
    if not any(gradient is not None and gradient.abs().max() > 0 for gradient in found):
        yield "the loss must have a gradient with respect to the weights (a .detach() or no_grad() on the way?)"


class _StandIn(nn.Module):
    """A small smooth network with fixed weights, for code that has to be run before there is a classifier."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.passes = [0, 0]  # images that were passed through it, and gradients
        self.weight = torch.randn(classes, size, generator=torch.Generator().manual_seed(0)) / size**0.5

    def forward(self, x: Tensor) -> Tensor:
        """Logits, not all of one sign."""
        self.passes[0] += len(x)
        if torch.is_grad_enabled() and x.requires_grad:
            x = x.clone()
            x.register_hook(lambda gradient: self._count(len(gradient)))
        found: Tensor = torch.tanh(x.flatten(1) @ self.weight.T)
        return found

    def _count(self, gradients: int) -> None:
        self.passes[1] += gradients


def try_defense(
    defense: Defense, dataset: Dataset, pools: Callable[[RandomTransform], SamplePool], *, gradients: bool
) -> None:
    """Run a person's own defense on some test images. pools: the pool of a component. gradients: whether it is attacked.

    Raises ValueError when its copies are not of their shape, not finite, or not decided by the keyed draws alone, or when
    attacks follow gradients and none that is finite reaches the images.
    """
    x = to_unit(dataset.test_images[:IMAGES])
    for component in defense.components():
        pool = pools(component) if component.needs_pool() else None
        with own_code(f"defense {component.name} must run on test images"):
            problem = next(transformation_problems(component, x, range(IMAGES), pool, gradients=gradients), None)
        if problem is not None:
            raise ValueError(f"defense {component.name}: transform must {problem}")
    with own_code(f"defense {defense.name}: join must return probabilities"):
        undefended = torch.softmax(_StandIn(x[0].numel(), dataset.classes)(x.detach()), 1)
        joined = defense.join(undefended, [undefended] * len(defense.components()))
    if not isinstance(joined, Tensor) or joined.shape != undefended.shape:
        raise ValueError(f"defense {defense.name}: join must return probabilities {list(undefended.shape)}")


def transformation_problems(
    component: RandomTransform, x: Tensor, points: Sequence[int], pool: SamplePool | None, *, gradients: bool
) -> Iterator[str]:
    """What `transform` must do and does not, in words: pixels that are keyed, by image, and such that gradients go through.

    gradients: whether attacks follow it. Raises ValueError where it returns no copies of these images, or writes into them.
    """
    copies, again = (_copies(component, x, points, pool) for _ in range(2))
    if not copies.isfinite().all():
        yield "return finite numbers; of some test images it makes NaN or infinite pixels"
        return
    if not on_scale(copies):
        kind = f" as {str(copies.dtype).removeprefix('torch.')}"
        yield (
            f"return pixels in [0, 1] or near it, as floating-point numbers; of some test images it makes {copies.min():g} to "
            f"{copies.max():g}{'' if copies.is_floating_point() else kind} (are they in 0 to 255?)"
        )
        return
    if not torch.equal(copies, again):
        yield "take its random numbers from `draws` alone; two runs with the same draws differ"
    elif not torch.allclose(copies[:, 1:2], _copies(component, x[1:2], points[1:2], pool), atol=1e-4):
        yield "treat each image by itself; beside others an image becomes something else than alone"
    if gradients:
        yield from _gradient_problems(component, x, points, pool)


def _gradient_problems(
    component: RandomTransform, x: Tensor, points: Sequence[int], pool: SamplePool | None
) -> Iterator[str]:
    ends = x.clone()
    ends[:, :, 0, :2] = torch.tensor([0.0, 1.0], device=x.device)  # Where a power or a logarithm has no slope.
    ends.requires_grad_()
    try:
        (gradient,) = torch.autograd.grad(_copies(component, ends, points, pool).sum(), ends)
    except Exception as error:  # The code is a person's own, and may raise anything.
        yield f"let a gradient through, or `backward_transform` must; {in_a_line(error)}"
        return
    if not gradient.any():
        yield (
            "let a gradient through, which attacks follow; it is zero in every pixel of all test images (is a value rounded?): "
            "write `backward_transform`"
        )
    elif not gradient.isfinite().all():
        yield (
            "let a finite gradient through, which attacks follow; it is NaN or infinite on test images, or where a pixel is "
            "exactly 0 or 1 (is a value clamped before a power or a logarithm?)"
        )


def on_scale(copies: Tensor) -> bool:
    """Whether copies of images are pixels of about [0, 1], and not of 0 to 255 or whole numbers."""
    low, high = copies.detach().aminmax()
    return copies.is_floating_point() and FARTHEST[0] <= float(low) and float(high) <= FARTHEST[1]


def _copies(component: RandomTransform, x: Tensor, points: Sequence[int], pool: SamplePool | None) -> Tensor:
    """One chunk of copies of these images."""
    predicted = torch.zeros(len(x), dtype=torch.int64)
    with unwritten(x):
        return component.copies(x, lambda: Draws(Key(0, "try"), points, CHUNK, 0, x.device), predicted, pool)


@contextmanager
def unwritten(x: Tensor) -> Iterator[None]:
    """Raise ValueError where the block writes into images that a defense is handed: its next execution would meet them so."""
    before = x.detach().clone()
    yield
    if not torch.equal(x, before):
        raise ValueError(
            "it must leave the images as they are, which it writes into (an operation in place?): take a .clone()"
        )


def try_attack(
    attack: Attack,
    threat: ThreatModel,
    dataset: Dataset,
    defense: Defense | None,
    pools: Callable[[RandomTransform], SamplePool],
) -> None:
    """Run a person's own attack on a stand-in for a classifier. defense, pools: what it goes through, if anything.

    Raises ValueError when it fails, when what it returns is not what an attack returns, leaves the ball or the box, or is
    not decided by the batch's key and points alone.
    """
    x = to_unit(dataset.test_images[:IMAGES])
    y = torch.from_numpy(np.array(dataset.test_labels[:IMAGES]))
    stand_in = _StandIn(x[0].numel(), dataset.classes)
    model: nn.Module = stand_in.eval()
    parts: tuple[int, ...] = ()
    if defense is not None:
        parts = tuple(chunk_of(component) for component in defense.components())
        used = {component.name: pools(component) for component in defense.components() if component.needs_pool()}
        model = DefendedClassifier(model, defense, used, executions=CHUNK)
    must = f"attack {attack.name}: run must"
    given = [x] * attack.takes_images
    labels = attack_labels(y, dataset.classes, threat, 0, range(IMAGES))
    with own_code(f"attack {attack.name} must run on test images"):
        found, again = (attack.craft(model, x, labels, threat, given=given) for _ in range(2))
        said = attack.cost(parts)
    if not torch.equal(found.images, again.images):
        raise ValueError(
            f"{must} take its random numbers from the batch's key and points; two runs of one batch differ"
        )
    made = tuple(passes / (2 * len(x)) for passes in stand_in.passes)
    if any(m > s for m, s in zip(made, said, strict=True)):  # Fewer may be those of an attack that ends early.
        raise ValueError(
            f"attack {attack.name}: its passes (`passes`, or `cost`) must be those of one image, at least {made[0]:g} forward "
            f"and {made[1]:g} backward{' behind ' + defense.name if defense else ''}; it says {tuple(said)}"
        )
