"""What a GPU computes in place of PyTorch's kernels whose gradients do not repeat there, held against these kernels on a CPU."""

import pytest
import torch
from torch import Tensor

from mi_ray.resampling import Interpolation, Outside, by_matrices, looked_up, read_at, resized

CLOSE = 1e-5


def _agree(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    """Values and gradients of a weighted sum are those of PyTorch's own kernel."""
    weights = torch.randn(theirs.shape)
    found, wanted = (torch.autograd.grad((made * weights).sum(), inputs) for made in (ours, theirs))
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, atol=CLOSE, rtol=0)
    for first, second in zip(found, wanted, strict=True):
        assert second.abs().max() > 0
        torch.testing.assert_close(first, second, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("outside", ["zeros", "border"])
@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("sides", [(8, 8), (7, 11)])
def test_images_are_read_by_look_ups_as_torch_reads_them(
    interpolation: Interpolation, outside: Outside, sides: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.rand(5, 3, *sides, requires_grad=True)
    places = torch.rand(5, 6, 9, 2) * 2.6 - 1.3  # some of them beyond the edges
    places[:, 0, 0], places[:, 0, 1] = -1, 1  # and some on them
    moved = interpolation == "bilinear"  # Which pixel is nearest does not change along a gradient.
    inputs = [x, places.requires_grad_()] if moved else [x]
    ours, theirs = looked_up(x, places, interpolation, outside), read_at(x, places, interpolation, outside)
    _agree(ours, theirs, inputs)


@pytest.mark.parametrize("side", [4, 9, 13, 24])
@pytest.mark.parametrize("sides", [(8, 8), (7, 11)])
def test_images_are_resized_by_products_as_torch_resizes_them(side: int, sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x = torch.rand(5, 3, *sides, requires_grad=True)
    _agree(by_matrices(x, side, side < min(sides)), resized(x, side), [x])
