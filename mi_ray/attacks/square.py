"""Square attack in the max norm, by queries alone (Andriushchenko, Croce, Flammarion and Hein, 2020)."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, Bindable, answering, without_gradients
from mi_ray.parameters import integer, integers, number
from mi_ray.randomness import Draws

BLOCK = 100  # The random numbers of so many queries are drawn together.
WHOLE = 10_000  # The queries of the run whose schedule is published.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # After so many of its queries the share halves.


def side(query: int, p_init: float, height: int, width: int, schedule: int = WHOLE) -> int:
    """The side of the square at a query, in pixels: a share of the pixels that halves by the schedule of so many queries."""
    share = p_init / 2 ** sum(query * WHOLE // schedule > after for after in HALVINGS)
    return min(max(round((share * height * width) ** 0.5), 1), max(min(height, width) - 1, 1))


def squares(corner: Float[Tensor, "B two"], length: int, height: int, width: int) -> Bool[Tensor, "B 1 height width"]:
    """The pixels of one square for each image; corner: unit uniforms that place it within the image."""
    room = torch.tensor([height - length + 1, width - length + 1], device=corner.device)
    top, left = (corner * room).long().unbind(1)
    rows = torch.arange(height, device=corner.device) - top[:, None]
    columns = torch.arange(width, device=corner.device) - left[:, None]
    inside = ((rows >= 0) & (rows < length))[:, :, None] & ((columns >= 0) & (columns < length))[:, None]
    return inside[:, None]


def signs(unit: Tensor) -> Tensor:
    """-1 or 1 with equal chances, as unit uniforms decide."""
    return torch.where(unit < 0.5, -1.0, 1.0)


@final
@ATTACKS.register
@dataclass(frozen=True)
class Square(Attack):
    """Random search over squares: it sees outputs only, so it is blind to whatever hides a gradient.

    It starts from vertical stripes of plus and minus epsilon. A query sets one square to plus or minus epsilon,
    each channel on its own, and stays where the margin falls. The margin of a random defense is that of one call of
    the model, whose outputs are averaged over `eot` executions, with fresh draws at each query. The schedule of side
    lengths is scaled to `schedule` queries, as AutoAttack scales it to its budget; fewer queries are then a prefix of
    more. On F itself an image that is fooled is left as it is and costs no more queries.
    """

    name: ClassVar[str] = "square"
    display_name: ClassVar[str] = "Square"
    version: ClassVar[int] = 3  # In 2, every run followed the schedule of one of 10,000 queries.
    follows_gradients: ClassVar[bool] = False
    stops_early: ClassVar[bool] = True
    stop_parameter: ClassVar[str | None] = "queries"
    queries: tuple[int, ...] = integers("calls of the model; a list is read off one run", (1000,), low=1, high=100_000)
    p_init: float = number("share of the pixels that the first squares cover", 0.8, low=0.0, high=1.0)
    eot: int | None = integer("executions averaged at each query; the study's N where left out", None, low=1)
    schedule: int = integer(
        "queries over which the side lengths shrink: the number of queries that the run is meant to have",
        WHOLE,
        low=1,
        high=100_000,
    )
    scoring_draws: int = integer("independent draws by which images at a stop are compared", 5, low=1)

    def stops(self) -> tuple[int, ...]:
        """The numbers of queries."""
        return self.queries

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """At most one forward pass a query, and at each stop one a scoring draw, of which there is one on F itself."""
        passes, draws = 1 + sum(parts), self.scoring_draws if parts else 1
        return (max(self.queries) + len(self.queries) * draws) * passes, 0

    def _proposal(
        self, x: Tensor, best: Tensor, query: int, unit: Float[Tensor, "B n"], epsilon: float
    ) -> Float[Tensor, "B C H W"]:
        """The best image so far with one square of each image set to the edge of its ball.

        unit: uniforms that place the square, and then one for the sign of each channel. A square that would change
        nothing is set to the opposite edge.
        """
        height, width = x.shape[-2:]
        inside = squares(unit[:, :2], side(query, self.p_init, height, width, self.schedule), height, width)
        sign = signs(unit[:, 2:])[..., None, None]
        proposal, opposite = (torch.where(inside, (x + by * epsilon * sign).clamp(0, 1), best) for by in (1, -1))
        idle = (proposal == best).flatten(1).all(1)[:, None, None, None]
        return torch.where(idle, opposite, proposal)

    def _stripes(self, batch: Batch) -> Float[Tensor, "B C H W"]:
        """The first images: each column of each channel up or down by epsilon."""
        channels, width = batch.x.shape[1], batch.x.shape[3]
        up_or_down = signs(Draws(batch.key, batch.points, 1, 0, batch.x.device).uniform(channels * width)[0])
        return (batch.x + batch.epsilon * up_or_down.view(-1, channels, 1, width)).clamp(0, 1)

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """Ask the model about one proposal after another, and keep of each image what lowers the margin.

        The model answers in fp32. Where it has no randomness, an image whose margin fell below 0 is asked about no more.
        """
        asked = answering(model)
        best, kept = self._stripes(batch), []
        least, open_ = (
            torch.full((len(batch),), torch.inf, device=best.device),
            torch.arange(len(batch), device=best.device),
        )
        for query in range(max(self.queries)):
            if query % BLOCK == 0:
                drawn = Draws(batch.key.at(step=query + 1), batch.points, BLOCK, 1, best.device)
                units = drawn.uniform(2 + batch.x.shape[1])
            if len(open_):
                some, proposal = batch.of(open_), best[open_]
                if query > 0:
                    proposal = self._proposal(some.x, proposal, query - 1, units[query % BLOCK][open_], batch.epsilon)
                with torch.no_grad(), some.bound(asked, step=query + 1):
                    found = some.criterion.margin(asked(proposal).float(), some.labels)
                better = found < least[open_]
                best[open_[better]], least[open_[better]] = proposal[better], found[better]
                if not isinstance(asked, Bindable):
                    open_ = open_[found >= 0]
            if query + 1 in self.queries:
                kept.append(best.clone())
        return without_gradients(model, torch.stack(kept), batch, self.queries, self.scoring_draws)
