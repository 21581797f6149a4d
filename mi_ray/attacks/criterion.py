"""What an adversary's goal means for an attack: the label that it works on, the loss that it ascends, its success."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from mi_ray.randomness import Draws, Key
from mi_ray.threat_model import ThreatModel


class Criterion(ABC):
    """What an adversary is after: that a label is left, or that one is reached.

    Its methods take logits or log-probabilities [*S, B, L] and one label an image [B].
    """

    sign: ClassVar[int]  # Whether log p_label is to rise (1) or to fall (-1).
    dlr_classes: ClassVar[int]  # How many classes the difference-of-logits ratio needs.

    @abstractmethod
    def labels(self, y: Int64[Tensor, "B"], classes: int, seed: int, points: Sequence[int]) -> Int64[Tensor, "B"]:
        """The label that an attack works on. y: the true labels. points: the images' indices in their dataset."""

    @abstractmethod
    def reached(self, logits: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "*S B"]:
        """1 where the prediction is what the adversary wants, else 0."""

    @final
    def loss(self, logits: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "*S B"]:
        """What to maximise: the cross-entropy of a label that is to be left, minus that of one that is to be reached."""
        repeated = labels.expand(logits.shape[:-1])
        entropy = F.cross_entropy(logits.flatten(0, -2), repeated.flatten(), reduction="none").view(repeated.shape)
        return -self.sign * entropy

    @final
    def margin(self, logits: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "*S B"]:
        """What to minimise: by how much the adversary's goal is missed in logits; below 0 where it is reached."""
        return -self.sign * lead(logits, labels)

    @abstractmethod
    def dlr(self, logits: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "*S B"]:
        """The difference-of-logits ratio, to maximise; it does not change with a shift or a positive scale of logits.

        Raises ValueError where there are fewer classes than `dlr_classes` (Croce and Hein, 2020, Eqs. 6 and 7).
        """


def lead(logits: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "*S B"]:
    """By how much the label's logit exceeds the largest other one."""
    own = F.one_hot(labels, logits.shape[-1]).bool()
    return logits.masked_fill(~own, -torch.inf).amax(-1) - logits.masked_fill(own, -torch.inf).amax(-1)


def ranked(logits: Float[Tensor, "*S B L"], count: int) -> Float[Tensor, "*S B count"]:
    """The `count` largest logits, in falling order. Raises ValueError where there are fewer classes."""
    if logits.shape[-1] < count:
        raise ValueError(
            f"the difference-of-logits ratio needs at least {count} classes; got {logits.shape[-1]}. Use loss: ce"
        )
    return logits.topk(count, dim=-1).values


SMALL = 1e-12  # Keeps the ratio finite where the largest logits tie.


@final
class Leave(Criterion):
    """An untargeted adversary, who is after any label but the true one."""

    sign: ClassVar[int] = -1
    dlr_classes: ClassVar[int] = 3

    def labels(self, y: Int64[Tensor, "B"], classes: int, seed: int, points: Sequence[int]) -> Int64[Tensor, "B"]:
        """The true labels themselves."""
        return y

    def reached(self, logits: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "*S B"]:
        """1 where the prediction has left the label."""
        return (logits.argmax(-1) != labels).float()

    def dlr(self, logits: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "*S B"]:
        """-(z_y - max_{i≠y} z_i) / (z_(1) - z_(3))."""
        top = ranked(logits, self.dlr_classes)
        return -lead(logits, labels) / (top[..., 0] - top[..., 2] + SMALL)


@final
class Reach(Criterion):
    """A targeted adversary, who is after one label of each image, drawn uniformly from those other than the true one."""

    sign: ClassVar[int] = 1
    dlr_classes: ClassVar[int] = 4

    def labels(self, y: Int64[Tensor, "B"], classes: int, seed: int, points: Sequence[int]) -> Int64[Tensor, "B"]:
        """One target a point, drawn once for all attacks, step counts and epsilons of a study."""
        u = Draws(Key(seed, "target"), points, 1, 0, y.device).uniform(1)[0, :, 0].double()
        other = (u * (classes - 1)).long()
        return other + (other >= y).long()

    def reached(self, logits: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "*S B"]:
        """1 where the prediction is the target."""
        return (logits.argmax(-1) == labels).float()

    def dlr(self, logits: Float[Tensor, "*S B L"], labels: Int64[Tensor, "B"]) -> Float[Tensor, "*S B"]:
        """Towards a target t: (z_t - max_{i≠t} z_i) / (z_(1) - (z_(3) + z_(4)) / 2)."""
        top = ranked(logits, self.dlr_classes)
        return lead(logits, labels) / (top[..., 0] - top[..., 2:].mean(-1) + SMALL)


def criterion(threat: ThreatModel) -> Criterion:
    """What the goal of a threat model means for an attack."""
    return Leave() if threat.leaves_label else Reach()
