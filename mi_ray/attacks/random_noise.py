"""Blind noise in the ball: what an attack that uses its model must beat."""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, scorer, without_gradients
from mi_ray.parameters import choice, integer, integers
from mi_ray.threat_model import NORMS, Norm


@final
@ATTACKS.register
@dataclass(frozen=True)
class RandomNoise(Attack):
    """`tries` independent points of the ball; of each image the best so far is kept.

    A point that reaches the goal is better than one that does not; of equals the higher loss. No gradient is used:
    an attack that breaks less than this is broken itself.
    """

    name: ClassVar[str] = "random_noise"
    display_name: ClassVar[str] = "Random noise"
    norms: ClassVar[tuple[Norm, ...]] = NORMS
    follows_gradients: ClassVar[bool] = False
    stop_parameter: ClassVar[str | None] = "tries"
    tries: tuple[int, ...] = integers("points tried; a list is read off one run", (10,), low=1, high=100_000)
    where: Literal["uniform", "corners"] = choice(
        "uniform: anywhere in the ball; corners: each pixel up or down as far as the ball lets, by epsilon in the max norm",
        ("uniform", "corners"),
        "uniform",
    )
    eot: int | None = integer("executions averaged at each try; the study's N where left out", None, low=1)
    scoring_draws: int = integer("independent draws by which images at a stop are compared", 5, low=1)

    def stops(self) -> tuple[int, ...]:
        """The numbers of tries."""
        return self.tries

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """One call of the model for each try and, at each stop, for each scoring draw (F itself takes one draw)."""
        passes, draws = 1 + sum(parts), self.scoring_draws if parts else 1
        return (max(self.tries) + len(self.tries) * draws) * passes, 0

    def _tried(self, batch: Batch) -> Float[Tensor, "B C H W"]:
        """A point of the ball around each image, drawn by the batch's key, perhaps outside the pixel box."""
        unit = batch.ball.uniform(batch.draws(), batch.x.shape[1:])[0]
        return (
            batch.ball.reach(torch.where(unit < 0, -1.0, 1.0))
            if self.where == "corners"
            else batch.x + batch.epsilon * unit
        )

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """Try points one after another, and keep for each image the best so far."""
        best, kept = batch.x, []
        best_loss = best_success = torch.full((len(batch),), -torch.inf, device=batch.x.device)
        for step in range(1, max(self.tries) + 1):
            tried = batch.projected(self._tried(batch.at(step=step)))
            with torch.no_grad(), batch.bound(model, step=step):
                answer = scorer(model)(tried).float()
            loss, success = batch.criterion.loss(answer, batch.labels), batch.criterion.reached(answer, batch.labels)
            better = (success > best_success) | ((success == best_success) & (loss > best_loss))
            best = torch.where(better[:, None, None, None], tried, best)
            best_loss, best_success = torch.where(better, loss, best_loss), torch.where(better, success, best_success)
            if step in self.tries:
                kept.append(best)
        return without_gradients(model, torch.stack(kept), batch, self.tries, self.scoring_draws)
