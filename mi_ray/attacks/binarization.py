"""Whether an attack finds an image that is known to be there: the binarization test (Zimmermann et al., 2022)."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, Defended
from mi_ray.parameters import text
from mi_ray.randomness import Draws
from mi_ray.threat_model import Norm, ThreatModel

# So many points inside the ball, within this share of its radius, are separated from one on its surface.
INNER, SHRUNK = 999, 0.95
CLOSE = 0.999  # The threshold lies so far on the way from the inner points to the one on the surface.
TRIED = 200  # A problem that one of so many uniform points of the ball solves says nothing of an attack.
TOGETHER = 50  # Points whose features are computed at once.
RIDGE = 1e-3  # Of the mean variance of a feature, added to every one: features that never change have none.
NEVER = -1000.0  # Logit of the classes that a problem does not have: losses may need several.


@final
@ATTACKS.register
@dataclass(frozen=True)
class Binarization(Attack):
    """The judged attack on a problem of its own for each image, whose solution is known to exist.

    F's last layer is exchanged for a layer that separates 999 points inside the ball from one on its surface. The attack
    begins at the image, classified as inside, and succeeds where it finds an image that is classified as on the surface.
    Success is NaN where no such layer is found, or where one of 200 random points of the ball solves the problem too. The
    layer is a linear discriminant with a common covariance in place of the paper's logistic regression, so that no
    optimiser decides.
    """

    name: ClassVar[str] = "binarization"
    display_name: ClassVar[str] = "Binarization test"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
    of: str = text("the judged attack with its parameters, as JSON: {name: {parameter: value}}")

    @property
    def wraps(self) -> Attack:
        """The judged attack."""
        try:
            ((name, values),) = json.loads(self.of).items()
        except (ValueError, AttributeError) as error:
            rule = self.parameters()["of"].help
            raise ValueError(f"binarization.of must be {rule}; got {self.of!r}") from error
        made: Attack = ATTACKS.make(name, values)
        return made

    def check(self, threat: ThreatModel, classes: int) -> None:
        """Raise ValueError where the judged attack cannot be run so."""
        self.wraps.admit(threat, classes)

    def stops(self) -> tuple[int, ...]:
        """One: the end of the judged attack."""
        return (1,)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """A look for the last layer, the points of a problem, the judged attack, and an answer to each of its restarts."""
        forward, backward = self.wraps.cost(parts)
        restarts: int = getattr(self.wraps, "restarts", 1)
        return INNER + TRIED + 2 + forward + restarts, backward

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """One problem after another, each with its own last layer. Raises ValueError behind a defense."""
        if isinstance(model, Defended):
            raise ValueError("the binarization test is of attacks on a classifier alone; got one behind a defense")
        attack, last, images = self.wraps, _LastLayer(model, batch.x), batch.x.clone()
        solved = torch.full((len(batch),), torch.nan, device=batch.x.device)
        for place in range(len(batch)):
            one = batch.of(torch.tensor([place], device=batch.x.device))
            problem, valid = _problem(last, replace(one, key=one.key.at(restart=INNER)))
            one = replace(one, labels=torch.zeros_like(one.labels), given=())
            found = attack.run(problem, one).images[:, -1, 0]
            with torch.no_grad():
                reached = problem(found).argmax(1) == 1
            images[place] = found[int(reached.long().argmax())]
            if valid:
                solved[place] = reached.any().float()
        success = solved[None, None]
        unused = torch.full_like(success, -1, dtype=torch.int64)
        return Adversarial(images[None, None], torch.zeros_like(success), success, self.stops(), unused)


class _Problem(nn.Module):
    """F with another last layer: class 1 where an image's features lie beyond the threshold, else 0."""

    def __init__(self, last: "_LastLayer", direction: Tensor, threshold: Tensor) -> None:
        super().__init__()
        self.last, self.direction, self.threshold = last, direction, threshold

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        return self.last.exchanged(x, self.answer)

    def answer(self, features: Float[Tensor, "B K"]) -> Float[Tensor, "B L"]:
        """Logits of as many classes as F has, of which all but two never are the answer."""
        score = (features @ self.direction - self.threshold)[:, None]
        return torch.cat(
            [torch.zeros_like(score), score, score.new_full((len(score), self.last.classes - 2), NEVER)], 1
        )


class _LastLayer(nn.Module):
    """A model as what its last layer is given. Where no linear layer returns its logits, that layer is the identity."""

    def __init__(self, model: nn.Module, x: Float[Tensor, "B C H W"]) -> None:
        super().__init__()
        # A copy, since others may pass through the model meanwhile, and are not to meet another layer.
        self.model = copy.deepcopy(model)
        own: Any = self.model
        own.passes = getattr(model, "passes", None)
        given: list[tuple[nn.Module, Tensor]] = []
        layers = [module for module in self.model.modules() if isinstance(module, nn.Linear)]
        hooks = [each.register_forward_hook(lambda layer, _, found: given.append((layer, found))) for each in layers]
        with torch.no_grad():
            logits = self.model(x)
        for hook in hooks:
            hook.remove()
        same = [layer for layer, found in given if found.shape == logits.shape and torch.equal(found.float(), logits)]
        self.layer, self.classes = (same[-1] if same else None), logits.shape[1]

    def features(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """What the last layer is given, in float32 and without a gradient."""
        kept: list[Tensor] = []

        def keep(features: Tensor) -> Tensor:
            """Zeros for logits."""
            kept.append(features)
            return features.new_zeros(len(features), self.classes)

        with torch.no_grad():
            self.exchanged(x, keep)
        return kept[0]

    def exchanged(self, x: Float[Tensor, "B C H W"], layer: Callable[[Tensor], Tensor]) -> Tensor:
        """What the model answers with this in place of its last layer."""
        if self.layer is None:
            return layer(self.model(x))
        hook = self.layer.register_forward_hook(lambda _, given, found: layer(given[0].float()))
        try:
            found: Tensor = self.model(x)
        finally:
            hook.remove()
        return found


def _problem(last: _LastLayer, one: Batch) -> tuple[_Problem, bool]:
    """(the problem of one image, whether it says anything of an attack)."""
    inside, tried = _around(last, one, INNER, SHRUNK * one.epsilon, 1), _around(last, one, TRIED, one.epsilon, 2)
    signs = Draws(one.key.at(draw=3), one.points, 1, 0, one.x.device).uniform_images(one.x.shape[1:])[0] - 0.5
    surface = last.features(one.projected(one.ball.reach(signs.sign()))).double()[0]
    tiny = torch.finfo(surface.dtype).tiny
    spread = (inside - inside.mean(0)).T @ (inside - inside.mean(0)) / INNER
    ridge = (RIDGE * spread.diagonal().mean()).clamp_min(tiny) * torch.eye(len(spread), device=spread.device)
    direction = torch.linalg.solve(spread + ridge, surface - inside.mean(0))
    direction = direction / (inside @ direction).std().clamp_min(tiny)
    highest, there = (inside @ direction).max(), surface @ direction
    threshold = highest + CLOSE * (there - highest)
    valid = bool(there > highest) and not bool((tried @ direction > threshold).any())
    return _Problem(last, direction.float(), threshold.float()), valid


def _around(last: _LastLayer, one: Batch, number: int, radius: float, draw: int) -> Float[Tensor, "N K"]:
    """Features, in float64, of uniform points around an image."""
    parts = []
    for begin in range(0, number, TOGETHER):
        count = min(TOGETHER, number - begin)
        draws = Draws(one.key.at(step=begin, draw=draw), one.points, count, 0, one.x.device)
        parts.append(last.features((one.x + radius * one.ball.uniform(draws, one.x.shape[1:])[:, 0]).clamp(0, 1)))
    return torch.cat(parts).double()
