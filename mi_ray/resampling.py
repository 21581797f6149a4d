"""Images that are read at other places or made larger or smaller, with gradients that repeat bit for bit.

PyTorch's own kernels do on a CPU. On a GPU their backward passes add up what reaches a pixel in the order in which threads
come by, so that the last bits of a gradient, and in the end an attack's images, would differ from run to run. There the same
interpolation is written as what PyTorch computes in one order: four look-ups, whose gradients are sorted by pixel before they
are added, and products of matrices.
"""

from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

Interpolation = Literal["bilinear", "nearest"]
Outside = Literal["zeros", "border"]


def read_at(
    x: Float[Tensor, "M C H W"],
    places: Float[Tensor, "M R S two"],
    interpolation: Interpolation = "bilinear",
    outside: Outside = "zeros",
) -> Float[Tensor, "M C R S"]:
    """Each image read at its places, as `torch.nn.functional.grid_sample` reads it with `align_corners=False`.

    places: column and row of what is read, from -1 at one outer edge of the image to 1 at the other. outside: what stands
    beyond the edges, black or the border continued.
    """
    if x.is_cuda:
        return looked_up(x, places, interpolation, outside)
    return F.grid_sample(x, places, mode=interpolation, padding_mode=outside, align_corners=False)


def looked_up(
    x: Float[Tensor, "M C H W"],
    places: Float[Tensor, "M R S two"],
    interpolation: Interpolation,
    outside: Outside,
) -> Float[Tensor, "M C R S"]:
    """What `read_at` returns, on every device: the pixels around each place by their numbers, weighted by how near they are."""
    height, width = x.shape[-2:]
    columns = _nearby(places[..., 0], width, interpolation, outside)
    rows = _nearby(places[..., 1], height, interpolation, outside)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    first = torch.arange(len(x), device=x.device)[:, None, None] * (height * width)
    read = torch.zeros((), dtype=x.dtype, device=x.device)
    for (row, down), (column, across) in product(rows, columns):
        read = read + pixels[first + row * width + column] * (down * across)[..., None]
    return read.permute(0, 3, 1, 2)


def _nearby(
    place: Float[Tensor, "M R S"], size: int, interpolation: Interpolation, outside: Outside
) -> list[tuple[Int[Tensor, "M R S"], Float[Tensor, "M R S"]]]:
    """Which pixels of a side of that size are read for these places from -1 to 1, with their weights."""
    at = ((place + 1) * size - 1) / 2
    if outside == "border":
        at = at.clamp(0, size - 1)
    if interpolation == "nearest":
        read = [(at.round(), torch.ones_like(at))]
    else:
        before = at.floor()
        read = [(pixel, 1 - (at - pixel).abs()) for pixel in (before, before + 1)]
    return [(pixel.clamp(0, size - 1).long(), weight * ((pixel >= 0) & (pixel < size))) for pixel, weight in read]


def resized(x: Float[Tensor, "B C H W"], side: int) -> Float[Tensor, "B C S S"]:
    """Images of another side: bilinear, and averaged where they shrink (PyTorch's `antialias`)."""
    shrinks = side < min(x.shape[-2:])
    if x.is_cuda:
        return by_matrices(x, side, shrinks)
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=shrinks)


def by_matrices(x: Float[Tensor, "B C H W"], side: int, shrinks: bool) -> Float[Tensor, "B C S S"]:
    """What `resized` returns, on every device: each side as a product with what PyTorch makes of unit vectors."""
    down, across = (
        F.interpolate(
            torch.eye(size, device=x.device, dtype=x.dtype)[None, None],
            (side, size),
            mode="bilinear",
            align_corners=False,
            antialias=shrinks,
        )[0, 0]
        for size in x.shape[-2:]
    )
    return down @ x @ across.T
