"""Rotations and shifts of the image (Engstrom, Tran, Tsipras, Schmidt and Madry, 2019): all of a grid, or a few at random."""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_ray.attacks.balls import transformed
from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, Bindable, answering, best_restart, score
from mi_ray.parameters import choice, integer
from mi_ray.threat_model import Norm


def spread(number: int) -> list[float]:
    """`number` values from -1 to 1 at equal distances; [0.0] when `number` is 1."""
    return [0.0] if number == 1 else np.linspace(-1, 1, number).tolist()


@final
@ATTACKS.register
@dataclass(frozen=True)
class Spatial(Attack):
    """Of many rotations and shifts of an image the one that fools, of these the one with the highest loss.

    method: `grid` tries every combination of `angles` rotations and `shifts` shifts along each side, 31 x 5 x 5 in the
    paper; `worst_of` tries `k` that are drawn uniformly for each point, 10 there. With `shifts: 1` a grid only turns, with
    `angles: 1` it only shifts. How far both go is the threat model's epsilon, in the norm "spatial".

    No gradient is used: three numbers can be searched, and the loss over them has many local maxima, as the paper shows.
    A random defense is asked once about each transformation. The `shortlist` that did best is then asked about again, by
    draws that no choice was made on yet; the one that fools in most of these is kept, or the image as it was.
    """

    name: ClassVar[str] = "spatial"
    display_name: ClassVar[str] = "Rotation and shift"
    norms: ClassVar[tuple[Norm, ...]] = ("spatial",)
    follows_gradients: ClassVar[bool] = False
    method: Literal["grid", "worst_of"] = choice(
        "which transformations are tried: all of a grid, or k that are drawn for each point",
        ("grid", "worst_of"),
        "worst_of",
    )
    angles: int = integer("rotations of a grid", 31, low=1, high=361)
    shifts: int = integer("shifts of a grid along each of the two sides", 5, low=1, high=33)
    k: int = integer("transformations that worst_of draws for a point", 10, low=1, high=100_000)
    eot: int | None = integer("executions averaged at each try; the study's N where left out", None, low=1)
    shortlist: int = integer(
        "transformations that are compared at the end, behind a random defense", 10, low=1, high=1000
    )
    scoring_draws: int = integer("independent draws by which these are compared", 5, low=1)

    def values(self) -> dict[str, Any]:
        """Its parameters as JSON holds them, without those of the other method, which decide nothing and are in no key."""
        others = {"grid": ("k",), "worst_of": ("angles", "shifts")}[self.method]
        return {key: value for key, value in super().values().items() if key not in others}

    @property
    def tried(self) -> int:
        """How many transformations of each point are tried."""
        return self.angles * self.shifts**2 if self.method == "grid" else self.k

    def stops(self) -> tuple[int, ...]:
        """One: it is read at its end."""
        return (1,)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """One forward pass a try; at the end one a scoring draw of each of the best and of the image itself."""
        draws, compared = (self.scoring_draws, min(self.shortlist, self.tried)) if parts else (1, 1)
        return (self.tried + (1 + compared) * draws) * (1 + sum(parts)), 0

    def transformations(self, batch: Batch) -> Float[Tensor, "T B three"]:
        """What is tried of each point: rotation and shifts as `transformed` takes them, none beyond the batch's epsilon."""
        device = batch.x.device
        if self.method == "grid":
            each = itertools.product(spread(self.angles), spread(self.shifts), spread(self.shifts))
            return (batch.epsilon * torch.tensor([*each], device=device))[:, None].expand(-1, len(batch), -1)
        draws = (batch.at(step=step).draws() for step in range(1, self.k + 1))
        return batch.epsilon * torch.cat([2 * drawn.uniform(3) - 1 for drawn in draws])

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """Ask about one transformation of all points after another, and compare the best of each point."""
        shares, asked = self.transformations(batch), answering(model)
        losses, successes = torch.empty(2, *shares.shape[:2], device=shares.device)
        for step, each in enumerate(shares):
            with torch.no_grad(), batch.bound(asked, step=step + 1):
                answer = asked(transformed(batch.x, each)).float()
            losses[step] = batch.criterion.loss(answer, batch.labels)
            successes[step] = batch.criterion.reached(answer, batch.labels)
        compared = self.shortlist if isinstance(asked, Bindable) else 1
        order = np.lexsort((-losses.cpu().numpy(), -successes.cpu().numpy()), axis=0)[:compared]
        points = torch.arange(len(batch), device=shares.device)
        best = shares[torch.from_numpy(order).to(shares.device), points]
        best = torch.cat([torch.zeros_like(best[:1]), best])
        images = torch.stack([transformed(batch.x, each) for each in best])
        loss, success = score(model, images, batch, self.scoring_draws)
        kept = torch.from_numpy(best_restart(success.cpu().numpy(), loss.cpu().numpy())).to(shares.device), points
        unused = torch.full((1, 1, len(batch)), -1, device=shares.device)
        images, loss, success, best = (found[kept][None, None] for found in (images, loss, success, best))
        return Adversarial(images, loss, success, self.stops(), unused, best)
