"""Square attack, by queries alone (Andriushchenko, Croce, Flammarion and Hein, 2020): Alg. 2 in the max norm, Alg. 3 in L2."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mi_ray.attacks.balls import Ball
from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, Bindable, answering, without_gradients
from mi_ray.parameters import integer, integers, number
from mi_ray.randomness import Draws
from mi_ray.threat_model import Norm

TILES = 5  # So many bumps side by side are where the search in L2 starts.
NARROWEST = 3  # The side of its smallest windows; all sides are odd, so that a bump has a centre pixel.
BLOCK = 100  # The random numbers of so many queries are drawn together.
WHOLE = 10_000  # The queries of the run whose schedule is published.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # After so many of its queries the share halves.


def share_at(query: int, p_init: float, schedule: int = WHOLE) -> float:
    """The share of the pixels that a query's square covers, which halves by the schedule of so many queries."""
    return p_init / 2 ** sum(query * WHOLE // schedule > after for after in HALVINGS)


def side(share: float, height: int, width: int) -> int:
    """The side of a square that covers a share of the pixels, in pixels."""
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


def pyramid(height: int, width: int) -> Float[Tensor, "height width"]:
    """A hill of rectangles around the middle, the k-th of which adds 1 / k^2 to all pixels that it holds (Sec. 3.3)."""
    down, across = (torch.arange(length) - length // 2 for length in (height, width))
    ring, last = torch.maximum(down.abs()[:, None], across.abs()), max(height, width) // 2
    added = 1 / torch.arange(1.0, last + 2).square()
    return added.flip(0).cumsum(0).flip(0)[ring]


def bump(length: int) -> Float[Tensor, "length length"]:
    """A hill above a hollow, with an L2 norm of 1: what the search in L2 adds to a window (Eq. 3 of the attack's paper)."""
    found = torch.cat([pyramid(length // 2, length), -pyramid(length - length // 2, length)])
    return found / found.norm()


class Search(ABC):
    """How the images that are asked about are made in one norm."""

    @abstractmethod
    def first(self, ball: Ball, draws: Draws) -> Float[Tensor, "B C H W"]:
        """The images to begin with, on the surface of the ball but for the pixel box."""

    @abstractmethod
    def numbers(self, channels: int) -> int:
        """How many unit uniforms a proposal takes."""

    @abstractmethod
    def proposal(
        self, ball: Ball, best: Float[Tensor, "B C H W"], share: float, unit: Float[Tensor, "B n"]
    ) -> Float[Tensor, "B C H W"]:
        """The best images so far with one square of each changed, which covers that share of the pixels."""


@final
class SquaresOfMaxNorm(Search):
    """Squares of plus and minus epsilon, from vertical stripes of the same."""

    def first(self, ball: Ball, draws: Draws) -> Float[Tensor, "B C H W"]:
        """Each column of each channel up or down by epsilon."""
        channels, width = ball.centre.shape[1], ball.centre.shape[3]
        up_or_down = signs(draws.uniform(channels * width)[0])
        return (ball.centre + ball.radius * up_or_down.view(-1, channels, 1, width)).clamp(0, 1)

    def numbers(self, channels: int) -> int:
        """Two that place the square, and one for the sign of each channel."""
        return 2 + channels

    def proposal(
        self, ball: Ball, best: Float[Tensor, "B C H W"], share: float, unit: Float[Tensor, "B n"]
    ) -> Float[Tensor, "B C H W"]:
        """One square of each image set to the edge of its ball; one that would change nothing to the opposite edge."""
        height, width = best.shape[-2:]
        inside = squares(unit[:, :2], side(share, height, width), height, width)
        sign = signs(unit[:, 2:])[..., None, None]
        proposal, opposite = (
            torch.where(inside, (ball.centre + by * ball.radius * sign).clamp(0, 1), best) for by in (1, -1)
        )
        idle = (proposal == best).flatten(1).all(1)[:, None, None, None]
        return torch.where(idle, opposite, proposal)


@final
class WindowsOfL2(Search):
    """Windows that take the budget of another window and what is left over, from a grid of bumps."""

    def first(self, ball: Ball, draws: Draws) -> Float[Tensor, "B C H W"]:
        """A grid of bumps, each up or down, on the surface of the ball."""
        count, channels, height, width = ball.centre.shape
        length = max(min(height, width) // TILES, 1)
        down, across = height // length, width // length
        sign = signs(draws.uniform(channels * down * across)[0]).view(count, channels, down, across)
        tiles = torch.kron(sign, bump(length).to(sign.device))
        top, left = (height - down * length) // 2, (width - across * length) // 2
        whole = F.pad(tiles, (left, width - across * length - left, top, height - down * length - top))
        return ball.reach(whole).clamp(0, 1)

    def numbers(self, channels: int) -> int:
        """Two that place each of the two windows, one that says whether the bump is turned on its side, and a sign a channel."""
        return 5 + channels

    def proposal(
        self, ball: Ball, best: Float[Tensor, "B C H W"], share: float, unit: Float[Tensor, "B n"]
    ) -> Float[Tensor, "B C H W"]:
        """A bump added to what a window has, as high as the budget of both windows and the unused one let (Alg. 3).

        The other window is emptied. Each channel spends its own windows' budget and its part of the unused one.
        """
        height, width = best.shape[-2:]
        length = min(max(round((share * height * width) ** 0.5), NARROWEST), height, width)
        length -= length % 2 == 0
        moved, tiny = best - ball.centre, torch.finfo(best.dtype).tiny
        window, emptied = (squares(unit[:, at : at + 2], length, height, width) for at in (0, 2))
        unused = (ball.radius**2 - moved.square().sum((1, 2, 3), keepdim=True)).clamp_min(0) / best.shape[1]
        budget = (unused + (moved.square() * (window | emptied)).sum((2, 3), keepdim=True)).sqrt()
        kept = moved * window
        kept = kept / _length(kept).clamp_min(tiny)
        pattern = torch.stack([bump(length), bump(length).T]).to(best.device)[(unit[:, 4] < 0.5).long()]
        added = torch.zeros_like(moved[:, :1]).masked_scatter_(window, pattern)
        risen = kept + signs(unit[:, 5:])[..., None, None] * added
        spent = torch.where(window | emptied, risen * (budget / _length(risen).clamp_min(tiny)), moved)
        return (ball.centre + spent).clamp(0, 1)


def _length(difference: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C 1 1"]:
    """The L2 norm of each channel."""
    return difference.square().sum((2, 3), keepdim=True).sqrt()


SEARCHES: Mapping[Norm, Search] = {"linf": SquaresOfMaxNorm(), "l2": WindowsOfL2()}


@final
@ATTACKS.register
@dataclass(frozen=True)
class Square(Attack):
    """Random search over squares: it sees outputs only, so it is blind to whatever hides a gradient.

    In the max norm it starts from vertical stripes of plus and minus epsilon, and a query sets one square to plus or minus
    epsilon, each channel on its own. In L2 it starts from a grid of bumps, and a query moves the budget of one window to
    another. What a query changes stays where the margin falls. The margin of a random defense is that of one call of
    the model, whose outputs are averaged over `eot` executions, with fresh draws at each query. The schedule of side
    lengths is scaled to `schedule` queries, as AutoAttack scales it to its budget; fewer queries are then a prefix of
    more. On F itself an image that is fooled is left as it is and costs no more queries.
    """

    name: ClassVar[str] = "square"
    display_name: ClassVar[str] = "Square"
    norms: ClassVar[tuple[Norm, ...]] = ("linf", "l2")
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
        """At most one call of the model for each query and, at each stop, for each scoring draw (F itself takes one draw)."""
        passes, draws = 1 + sum(parts), self.scoring_draws if parts else 1
        return (max(self.queries) + len(self.queries) * draws) * passes, 0

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """Ask the model about one proposal after another, and keep of each image what lowers the margin.

        The model answers in fp32. Where it has no randomness, an image whose margin fell below 0 is asked about no more.
        """
        asked, search = answering(model), SEARCHES[batch.threat.norm]
        best, kept = search.first(batch.ball, batch.draws()), []
        least, open_ = (
            torch.full((len(batch),), torch.inf, device=best.device),
            torch.arange(len(batch), device=best.device),
        )
        for query in range(max(self.queries)):
            if query % BLOCK == 0:
                drawn = Draws(batch.key.at(step=query + 1), batch.points, BLOCK, 1, best.device)
                units = drawn.uniform(search.numbers(batch.x.shape[1]))
            if len(open_):
                some, proposal = batch.of(open_), best[open_]
                if query > 0:
                    share = share_at(query - 1, self.p_init, self.schedule)
                    proposal = search.proposal(some.ball, proposal, share, units[query % BLOCK][open_])
                with torch.no_grad(), some.bound(asked, step=query + 1):
                    found = some.criterion.margin(asked(proposal).float(), some.labels)
                better = found < least[open_]
                best[open_[better]], least[open_[better]] = proposal[better], found[better]
                if not isinstance(asked, Bindable):
                    open_ = open_[~(found < 0)]  # An answer that is NaN fools nobody.
            if query + 1 in self.queries:
                kept.append(best.clone())
        return without_gradients(model, torch.stack(kept), batch, self.queries, self.scoring_draws)
