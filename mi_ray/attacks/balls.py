"""The balls of threat models: all that differs between norms, so that an attack is written once for every norm it knows.

A ball is that of one norm around each clean image, cut by the pixel box. Another norm is another class here. The norm
"spatial" has no ball, as nothing is added to an image: what it allows are the images that `transformed` makes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod, radians
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from mi_ray.randomness import Draws
from mi_ray.resampling import read_at
from mi_ray.threat_model import DEGREES, SHIFT, Norm

SAME = 1e-4  # So far, in pixels of [0, 1], may two machines be apart that transform an image alike.
SPARSE = 100  # One of so many entries of an image is moved by a step in L1.
ROUNDS = 50  # More than the searches of `share_within` were ever seen to need; one that is cut short stays inside.


class Ball(ABC):
    """The images within `radius` of each centre, in the norm of the class, whose pixels are in [0, 1].

    centre: clean images [B, C, H, W] in [0, 1]. radius: in [0, 1] pixels, of all images or of each.
    """

    def __init__(self, centre: Float[Tensor, "B C H W"], radius: float | Float[Tensor, "B 1 1 1"]) -> None:
        self.centre, self.radius = centre, radius

    @final
    def radii(self) -> Float[Tensor, "B"]:
        """The radius of each image."""
        return (
            torch.as_tensor(self.radius, dtype=self.centre.dtype, device=self.centre.device)
            .flatten()
            .expand(len(self.centre))
        )

    @staticmethod
    @abstractmethod
    def distance(difference: Float[Tensor, "*S C H W"]) -> Float[Tensor, "*S"]:
        """The norm of each difference of two images."""

    @staticmethod
    @abstractmethod
    def dual(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        """How much a linear function with that gradient rises by a step of length 1 in the norm."""

    @staticmethod
    @abstractmethod
    def uniform(draws: Draws, shape: Sequence[int]) -> Float[Tensor, "E B C H W"]:
        """Points uniform in the unit ball, without a box. shape: that of one image."""

    @abstractmethod
    def projected(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The nearest images (in L2, which is what a projection means) that the ball holds."""

    @abstractmethod
    def ascended(
        self,
        x: Float[Tensor, "B C H W"],
        size: float | Float[Tensor, "B 1 1 1"],
        gradient: Float[Tensor, "B C H W"],
    ) -> Float[Tensor, "B C H W"]:
        """The images after a step of that size in the norm, in which a linear function with that gradient rises most, projected.

        Where a gradient is zero nothing moves.
        """

    @final
    def reach(self, direction: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The images as far away in these directions as the radius lets, without a projection. No direction may be zero."""
        return self.centre + direction * (self.radius / _each(self.distance(direction)))

    @final
    def random_start(self, draws: Draws) -> Float[Tensor, "B C H W"]:
        """A point uniform in the ball around each image, projected into the pixel box."""
        return self.projected(self.centre + self.radius * self.uniform(draws, self.centre.shape[1:])[0])


def _each(numbers: Shaped[Tensor, "B"]) -> Shaped[Tensor, "B 1 1 1"]:
    """A number an image, for arithmetic with images."""
    return numbers[:, None, None, None]


def unit(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """Each gradient divided by its L2 length; zero where it is zero.

    It is divided by its largest entry first, since squares of very large or very small entries overflow or vanish in float32.
    """
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / _each(gradient.flatten(1).abs().amax(1).clamp_min(tiny))
    return scaled / _each(EuclideanBall.distance(scaled).clamp_min(tiny))


@final
class MaxBall(Ball):
    """The ball of the max norm: every pixel moves on its own."""

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        """(the lowest, the highest image)."""
        return (self.centre - self.radius).clamp_(0, 1), (self.centre + self.radius).clamp_(0, 1)

    @staticmethod
    def distance(difference: Float[Tensor, "*S C H W"]) -> Float[Tensor, "*S"]:
        """The largest change of a pixel."""
        return difference.abs().flatten(-3).amax(-1)

    @staticmethod
    def dual(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        """The sum of all entries' sizes."""
        return gradient.abs().flatten(1).sum(1)

    @staticmethod
    def uniform(draws: Draws, shape: Sequence[int]) -> Float[Tensor, "E B C H W"]:
        """Every pixel uniform in [-1, 1)."""
        return 2 * draws.uniform_images(shape) - 1

    def projected(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Every pixel where it is, or at its own end."""
        return x.clamp(*self._ends)

    def ascended(
        self,
        x: Float[Tensor, "B C H W"],
        size: float | Float[Tensor, "B 1 1 1"],
        gradient: Float[Tensor, "B C H W"],
    ) -> Float[Tensor, "B C H W"]:
        """Along the sign of the gradient (Eq. 18), in one new tensor: memory is what such a step costs."""
        return gradient.sign().mul_(size).add_(x).clamp_(*self._ends)


def share_within(
    length: Float[Tensor, "B N"], room: Float[Tensor, "B N"], radius: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """The largest s for which min(s length, room) has an L2 norm of at most `radius`; infinite where every s does.

    length, room: at least 0; room says how far a pixel can move. Once it is known which pixels are at their end, that is where
    s length reaches room, s follows from a square root. The first s takes none to be there. Each round takes those to be there
    that the last s has moved to their end, which makes s larger, until it no longer changes; so s never exceeds the answer.
    """
    share = radius / length.norm(dim=1).clamp_min(torch.finfo(length.dtype).tiny)
    squares, rooms = length.square(), room.square()
    for _ in range(ROUNDS):
        full = share[:, None] * length >= room
        left = radius**2 - (rooms * full).sum(1)
        free = (squares * ~full).sum(1)
        larger = torch.maximum(share, (left.clamp_min(0) / free).sqrt().nan_to_num(0.0, torch.inf))
        if torch.equal(larger, share):
            break
        share = larger
    return share


def farthest(
    centre: Float[Tensor, "B C H W"],
    direction: Float[Tensor, "B C H W"],
    radius: Float[Tensor, "B"],
    most: float = torch.inf,
) -> Float[Tensor, "B C H W"]:
    """Of the images in the pixel box within an L2 distance of each centre, the one farthest along a direction.

    It is where a linear function with that gradient is highest, and with `most` = 1 the image nearest to
    centre + direction. A pixel moves by its part of the direction, times one number an image of at most `most`, and no
    farther than the box. Where a direction is zero nothing moves.
    """
    length, room = direction.abs(), torch.where(direction > 0, 1 - centre, centre)
    share = share_within(length.flatten(1), room.flatten(1), radius).clamp_max(most)
    moved = torch.minimum((_each(share) * length).nan_to_num(0.0), room)
    return (centre + direction.sign() * moved).clamp_(0, 1)


@final
class EuclideanBall(Ball):
    """The ball of the L2 norm: the root of the sum of squares over all pixels and channels."""

    @staticmethod
    def distance(difference: Float[Tensor, "*S C H W"]) -> Float[Tensor, "*S"]:
        """The root of the sum of squares, added up in float64."""
        return torch.linalg.vector_norm(difference.flatten(-3), dim=-1, dtype=torch.float64).to(difference.dtype)

    @staticmethod
    def dual(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        """The gradient's own length."""
        return EuclideanBall.distance(gradient)

    @staticmethod
    def uniform(draws: Draws, shape: Sequence[int]) -> Float[Tensor, "E B C H W"]:
        """A direction that is uniform, at a distance whose d-th power is uniform."""
        normal, share = draws.normal_images(shape), draws.uniform(1)[..., 0]
        far = share ** (1 / normal[0, 0].numel()) / EuclideanBall.distance(normal)
        return normal * far[..., None, None, None]

    def projected(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The nearest image in ball and box at once, which is not the box's nearest to the ball's nearest one."""
        boxed = x.clamp(0, 1)
        radius = self.radii()
        inside = self.distance(boxed - self.centre) <= radius
        nearest = farthest(self.centre, x - self.centre, radius, most=1.0)
        return torch.where(_each(inside), boxed, nearest)

    def ascended(
        self,
        x: Float[Tensor, "B C H W"],
        size: float | Float[Tensor, "B 1 1 1"],
        gradient: Float[Tensor, "B C H W"],
    ) -> Float[Tensor, "B C H W"]:
        """Along the gradient itself."""
        return self.projected(x + size * unit(gradient))


def sorted_multiplier(
    length: Float[Tensor, "B N"], room: Float[Tensor, "B N"], radius: Float[Tensor, "B"]
) -> Float[Tensor, "B"]:
    """The smallest m of at least 0 for which the sum of min(max(length - m, 0), room) is at most `radius`, in float64.

    length, room: at least 0; room says how far a pixel can move. That sum falls along straight pieces as m rises: a pixel
    counts between length - room, below which it is at its end, and length, above which it does not move. Sorting these ends
    gives the sum at each of them, and so the piece on which it is the radius (Croce and Hein 2021, Prop. 1).
    """
    length, room, radius = length.double(), room.double(), radius.double()[:, None]
    ends, order = torch.cat([length, (length - room).clamp_min(0)], dim=1).sort(dim=1, descending=True)
    moving = torch.where(order < length.shape[1], 1.0, -1.0).double().cumsum(1)  # on the piece below each end
    sums = (moving[:, :-1] * (ends[:, :-1] - ends[:, 1:])).cumsum(1)
    sums = F.pad(sums, (1, 0))
    last = (sums <= radius).sum(1, keepdim=True) - 1
    below = (radius - sums.gather(1, last)) / moving.gather(1, last).clamp_min(1)
    return (ends.gather(1, last) - below).clamp_min(0)[:, 0]


@final
class SumBall(Ball):
    """The ball of the L1 norm: the sum of the sizes of all changes, over pixels and channels."""

    @staticmethod
    def distance(difference: Float[Tensor, "*S C H W"]) -> Float[Tensor, "*S"]:
        """The sum of sizes, added up in float64."""
        return torch.linalg.vector_norm(difference.flatten(-3), 1, dim=-1, dtype=torch.float64).to(difference.dtype)

    @staticmethod
    def dual(gradient: Float[Tensor, "B C H W"]) -> Float[Tensor, "B"]:
        """The size of the largest entry."""
        return MaxBall.distance(gradient)

    @staticmethod
    def uniform(draws: Draws, shape: Sequence[int]) -> Float[Tensor, "E B C H W"]:
        """Exponential numbers, divided by the sum of all of them and one more, each with a sign of its own."""
        drawn = 2 * draws.uniform_images((prod(shape) + 1,)) - 1
        size = -torch.log((1 - drawn.abs()).clamp_min(torch.finfo(drawn.dtype).tiny))
        points = (drawn.sign() * size / size.sum(-1, keepdim=True))[..., :-1]
        return points.unflatten(-1, tuple(shape))

    def projected(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The nearest image in ball and box at once: all changes shorter by one number an image, none below zero, cut by the
        box (Croce and Hein 2021, Prop. 1).

        Where rounding leads away from the centre, the next number towards it is taken: what thousands of pixels are rounded by
        adds up to more than an attack may leave its ball by.
        """
        return self._nearest(x.double() - self.centre.double())

    def _nearest(self, away: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """`projected` of the images so far away from the centre, in float64."""
        length, room = away.abs(), torch.where(away > 0, 1 - self.centre.double(), self.centre.double())
        less = sorted_multiplier(length.flatten(1), room.flatten(1), self.radii())
        moved = torch.minimum((length - _each(less)).clamp_min(0), room)
        found = (self.centre + away.sign() * moved).to(self.centre.dtype)
        too_far = (found.double() - self.centre.double()).abs() > moved
        return torch.where(too_far, found.nextafter(self.centre), found)

    def spread(
        self,
        x: Float[Tensor, "B C H W"],
        size: float | Float[Tensor, "B 1 1 1"],
        gradient: Float[Tensor, "B C H W"],
        entries: float | Float[Tensor, "B 1 1 1"],
    ) -> Float[Tensor, "B C H W"]:
        """The images after a step of L1 length `size` along the `entries` largest entries of the gradient, projected.

        Only entries that are not at their end of the box yet are counted, and further ones are taken where these have less room
        than the step is long. Each moves in proportion to its gradient. Larger entries that are at their end are pushed as well,
        so that the projection leaves them there. The only point that such a step does not leave is then the one where a linear
        function is highest, with its entries of largest gradient at their ends one after another (Croce and Hein 2021, Prop. 2).
        The step of that paper moves all chosen entries equally, and does not leave any point whose moved entries are all chosen.
        """
        tiny = torch.finfo(x.dtype).tiny
        size, entries = (
            torch.as_tensor(given, dtype=x.dtype, device=x.device).view(-1, 1) for given in (size, entries)
        )
        slope = gradient.flatten(1).abs()
        room = torch.where(gradient > 0, 1 - x, x).flatten(1) * (slope != 0)
        order = slope.argsort(dim=1, descending=True, stable=True)
        slopes, rooms = slope.gather(1, order), room.gather(1, order)
        able = rooms > 0
        before = able.cumsum(1) - able.long(), rooms.cumsum(1) - rooms
        slopes = slopes / slopes[:, :1].clamp_min(tiny) * ((before[0] < entries) | (before[1] < size))
        share = (slopes / (slopes * able).sum(1, keepdim=True).clamp_min(tiny)).clamp_max(1)
        pushed = torch.zeros_like(share).scatter(1, order, size * share)
        return self._nearest(x.double() - self.centre.double() + (gradient.sign() * pushed.view_as(x)).double())

    def ascended(
        self,
        x: Float[Tensor, "B C H W"],
        size: float | Float[Tensor, "B 1 1 1"],
        gradient: Float[Tensor, "B C H W"],
    ) -> Float[Tensor, "B C H W"]:
        """Along the hundredth of all entries of the gradient that is largest (as sparse as Tramer and Boneh's, 2019)."""
        return self.spread(x, size, gradient, max(1, x[0].numel() // SPARSE))


BALLS: Mapping[Norm, type[Ball]] = {"linf": MaxBall, "l2": EuclideanBall, "l1": SumBall}


def transformed(x: Float[Tensor, "B C H W"], shares: Float[Tensor, "B three"]) -> Float[Tensor, "B C H W"]:
    """Each image turned about its middle and then shifted (Engstrom et al. 2019); with three zeros it is as it was, bit for bit.

    shares: of each image the rotation, anticlockwise, in units of 30 degrees, and the shifts to the right and down in units
    of a tenth of the width and of the height. A pixel is read once, bilinearly, where the original code turns and shifts in
    two such steps. What comes in from outside is black, as it is there.
    """
    height, width = x.shape[-2:]
    full = torch.tensor([radians(DEGREES), SHIFT * width, SHIFT * height], dtype=torch.float64, device=x.device)
    angle, right, down = (shares * full)[:, :, None, None].unbind(1)
    rows, columns = (torch.arange(size, device=x.device) - (size - 1) / 2 for size in (height, width))
    across, along = columns - right, rows[:, None] - down
    read = torch.stack([angle.cos() * across - angle.sin() * along, angle.sin() * across + angle.cos() * along], dim=-1)
    # From pixels around the middle to places, of which the outer edges of an image are at -1 and 1.
    places = (read * 2 / torch.tensor([width, height], device=x.device)).to(x.dtype)
    found = read_at(x, places).clamp(0, 1)
    return torch.where(_each((shares == 0).all(1)), x, found)


def distance(
    norm: Norm,
    x: Float[Tensor, "B C H W"],
    images: Float[Tensor, "*S B C H W"],
    shares: Float[Tensor, "*S B three"] | None = None,
) -> Float[Tensor, "*S B"]:
    """How far images are from the clean ones x in a norm.

    shares: where the norm is "spatial", the transformation of each image, as `transformed` takes it; the distance is the
    largest of its three shares. An image that this transformation does not make is farther than any that one makes:
    the distance is 1 and the largest difference of a pixel.
    """
    if norm != "spatial":
        return BALLS[norm].distance(images - x)
    assert shares is not None
    made = transformed(x.expand(images.shape).flatten(0, -4), shares.flatten(0, -2)).view(images.shape)
    apart = MaxBall.distance(images - made)
    return torch.where(apart <= SAME, shares.abs().amax(-1), 1 + apart)
