"""Transforms of other papers, against other libraries' and against what their definitions say."""

import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from mi_ray import make_defense
from mi_ray.defenses import barrage
from mi_ray.defenses.compression import jpeg, mix_channels
from mi_ray.defenses.total_variation import minimised
from mi_ray.randomness import Draws, Key

CPU = torch.device("cpu")
KEY = Key(3, "test", "some_family")


def _transformed(defense: Any, x: Tensor, executions: int) -> Tensor:
    labels = torch.zeros(len(x), dtype=torch.int64)
    return defense.copies(x, lambda: Draws(KEY, range(len(x)), executions, 0, CPU), labels, None)


def _pictures(count: int = 6, side: int = 32, grey: bool = False) -> Tensor:
    """Smooth coloured pictures of 8 bits."""
    coarse = torch.rand(count, 1 if grey else 3, 6, 6, generator=torch.Generator().manual_seed(4))
    fine = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False).clamp(0, 1)
    return ((fine * 255).round() / 255).expand(-1, 3, -1, -1).contiguous()


def _by_pillow(x: Tensor, quality: int, mode: str) -> Tensor:
    from PIL import Image

    found = []
    for image in x:
        pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(file, "JPEG", quality=quality, subsampling=2)
        read = torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)
        found.append(read.float() / 255)
    return torch.stack(found)


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 95])
def test_a_grey_jpeg_is_pillows_but_where_a_coefficient_is_rounded_to_the_other_side(quality: int) -> None:
    x = _pictures(grey=True)
    off = 255 * (_transformed(make_defense("jpeg", quality=quality), x, 1)[0] - _by_pillow(x, quality, "L")).abs()
    assert (off < 1.5).float().mean() > 0.95  # Pillow computes in whole numbers
    assert off.mean() < 0.5


@pytest.mark.parametrize("quality", [30, 75, 95])
@pytest.mark.parametrize("side", [32, 28])
def test_a_coloured_jpeg_is_pillows_but_where_something_is_rounded_to_the_other_side(quality: int, side: int) -> None:
    x = _pictures(side=side)
    found, theirs = _transformed(make_defense("jpeg", quality=quality), x, 1)[0], _by_pillow(x, quality, "RGB")
    assert (found - theirs).abs().mean() < 0.3 * (x - theirs).abs().mean()
    assert torch.equal((found * 255).round() / 255, found)


def test_the_qualities_of_a_batch_are_each_images_own_and_fewer_bits_lose_more() -> None:
    x, qualities = _pictures(), torch.tensor([5.0, 20.0, 50.0, 75.0, 90.0, 100.0])
    found = jpeg(x, qualities)
    for at, quality in enumerate(qualities):
        assert torch.equal(found[at], jpeg(x[at : at + 1], quality[None])[0])
    lost = [(jpeg(x, torch.full((6,), float(quality))) - x).abs().mean().item() for quality in (5, 20, 50, 90)]
    assert lost == sorted(lost, reverse=True)


def test_a_jpeg_without_rounding_loses_nothing_of_a_grey_image_and_is_the_gradient() -> None:
    x = _pictures(grey=True)
    torch.testing.assert_close(jpeg(x, torch.full((6,), 10.0), rounded=False), x, rtol=0, atol=1e-4)
    leaf = _pictures().requires_grad_(True)
    found = _transformed(make_defense("jpeg", quality=10), leaf, 2)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((found * weight).sum(), leaf)
    plain = _pictures().requires_grad_(True)
    linear = jpeg(plain, torch.full((6,), 10.0), rounded=False).expand(found.shape)
    torch.testing.assert_close(gradient, torch.autograd.grad((linear * weight).sum(), plain)[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_is_the_nearest_of_its_levels_and_straight_through(bits: int) -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    found = _transformed(make_defense("bit_depth", bits=bits), x, 1)[0]
    levels = torch.linspace(0, 1, 2**bits)
    nearest = levels[(x.detach()[..., None] - levels).abs().argmin(-1)]
    torch.testing.assert_close(found.detach(), nearest)
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], torch.ones_like(x))
    exact = _pictures()
    if bits == 8:
        torch.testing.assert_close(
            _transformed(make_defense("bit_depth", bits=8), exact, 1)[0], exact, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("amount", [0.25, 1.0])
def test_greyscale_is_torchvisions_and_a_part_of_it_a_mixture(amount: float) -> None:
    from torchvision.transforms.functional import rgb_to_grayscale

    x = _pictures()
    expected = (1 - amount) * x + amount * rgb_to_grayscale(x, 3)
    torch.testing.assert_close(
        _transformed(make_defense("greyscale", amount=amount), x, 2)[1], expected, rtol=0, atol=1e-3
    )


def test_flips_and_crops_are_those_of_the_numbers_drawn() -> None:
    x, defense = _pictures(), make_defense("flip_crop", padding=3)
    u = Draws(KEY, range(6), 4, 0, CPU).uniform(3)
    found, flipped = _transformed(defense, x, 4), 0
    padded = F.pad(x, (3, 3, 3, 3))
    for execution in range(4):
        for point in range(6):
            top, left = (int(unit * 7) for unit in u[execution, point, :2])
            flips = bool(u[execution, point, 2] >= 0.5)
            source = padded[point].flip(-1) if flips else padded[point]
            assert torch.equal(found[execution, point], source[:, top : top + 32, left : left + 32])
            flipped += flips
    assert 4 < flipped < 20
    unflipped = _transformed(make_defense("flip_crop", padding=0, flip=False), x, 2)
    assert torch.equal(unflipped, x.expand(2, *x.shape))


def test_resize_and_pad_is_torchs_for_the_boxes_drawn() -> None:
    x = _pictures()
    found = _transformed(make_defense("resize_pad", side=[14, 30]), x, 4)
    u, sides = Draws(KEY, range(6), 4, 0, CPU).uniform(3), set()
    for execution in range(4):
        for point in range(6):
            side = 14 + int(u[execution, point, 0] * 17)
            top, left = (int(unit * (32 - side + 1)) for unit in u[execution, point, 1:])
            small = F.interpolate(x[point][None], size=(side, side), mode="bilinear", align_corners=False)[0]
            expected = F.pad(small, (left, 32 - side - left, top, 32 - side - top))
            torch.testing.assert_close(found[execution, point], expected, rtol=0, atol=1e-5)
            sides.add(side)
    assert len(sides) > 8
    with pytest.raises(
        ValueError, match=r"resize_pad.side must not exceed the image's side, 32 pixels; got \[20, 40\]"
    ):
        make_defense("resize_pad", side=[20, 40]).check_images(32, 32)
    for height, width in ((40, 32), (32, 40)):
        with pytest.raises(ValueError, match="32 pixels"):
            make_defense("resize_pad", side=[20, 40]).check_images(height, width)


# Total variation


def _objective(z: Tensor, x: Tensor, kept: Tensor, weight: float) -> float:
    down, right = torch.zeros_like(z), torch.zeros_like(z)
    down[..., :-1, :], right[..., :-1] = z.diff(dim=-2), z.diff(dim=-1)
    return float(((z - x)[kept] ** 2).sum() / 2 + weight * torch.sqrt(down**2 + right**2 + 1e-12).sum())


@pytest.mark.parametrize("weight", [0.03, 0.2])
def test_the_image_made_anew_is_near_the_minimum_that_another_method_finds(weight: float) -> None:
    generator = torch.Generator().manual_seed(2)
    x = _pictures(1, 12)[0, 0].double() + 0.1 * torch.randn(12, 12, generator=generator).double()
    kept = torch.rand(12, 12, generator=generator) < 0.6
    z = x.clone().requires_grad_(True)
    solver = torch.optim.LBFGS(
        [z], max_iter=250, history_size=50, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )

    def closure() -> Tensor:
        solver.zero_grad()
        down, right = F.pad(z.diff(dim=-2), (0, 0, 0, 1)), F.pad(z.diff(dim=-1), (0, 1))
        loss = ((z - x)[kept] ** 2).sum() / 2 + weight * torch.sqrt(down**2 + right**2 + 1e-9).sum()
        loss.backward()
        return loss

    solver.step(closure)
    least = _objective(z.detach(), x, kept, weight)
    exact, quick = (_objective(minimised(x, kept, weight, steps), x, kept, weight) for steps in (1000, 60))
    assert exact == pytest.approx(least, rel=2e-3)
    assert quick < 1.05 * least
    assert _objective(torch.where(kept, x, 0.5), x, kept, weight) > 1.3 * least


def test_dropped_pixels_of_a_flat_image_come_back_and_another_draw_drops_others() -> None:
    flat = torch.full((2, 3, 16, 16), 0.7)
    found = _transformed(make_defense("total_variation", steps=400), flat, 2)
    torch.testing.assert_close(found, flat.expand_as(found), rtol=0, atol=0.01)
    made = _transformed(make_defense("total_variation"), _pictures(), 2)
    assert (made[0] - made[1]).abs().max() > 0.01
    assert (made - _pictures()).abs().mean() < 0.06


# The barrage


def _drawn(executions: int, points: int) -> tuple[Tensor, Tensor, barrage.Noise]:
    draws = Draws(KEY, range(points), executions, 0, CPU)
    units = draws.uniform(10 * (barrage.UNITS + 1)).flatten(0, 1)
    noise = [make((3, 32, 32)).flatten(0, 1) for make in (draws.normal_images, draws.uniform_images)]
    return units[:, :10].argsort(1), units[:, 10:].unflatten(1, (10, barrage.UNITS)), barrage.Noise(*noise)


@pytest.mark.parametrize("k", [1, 4, 10])
def test_a_barrage_applies_the_first_k_groups_of_its_order_one_after_another(k: int) -> None:
    x = _pictures()
    found = _transformed(make_defense("barrage", k=k), x, 3).flatten(0, 1)
    order, units, noise = _drawn(3, 6)
    for at, image in enumerate(x.repeat(3, 1, 1, 1)):
        made = image[None]
        for number in order[at, :k].tolist():
            own = barrage.Noise(*(each[at : at + 1] for each in noise))
            made = barrage.GROUPS[number](made, units[at : at + 1, number], own).clamp(0, 1)
        torch.testing.assert_close(found[at], made[0], rtol=0, atol=0.02)  # a rounding may fall to the other side
        assert (found[at] - made[0]).abs().mean() < 1e-3


def test_every_group_comes_equally_often_at_every_place() -> None:
    order, _, _ = _drawn(300, 2)
    for place in (0, 4, 9):
        assert stats.chisquare(torch.bincount(order[:, place], minlength=10)).pvalue > 1e-3


@pytest.mark.parametrize("group", barrage.GROUPS, ids=lambda group: group.__name__)
def test_a_group_changes_images_a_little_each_by_its_own_numbers(group: barrage.Group) -> None:
    x = (0.2 + 0.6 * _pictures(1)).expand(60, 3, 32, 32)
    _, units, noise = _drawn(10, 6)
    made = group(x, units[:, 0], noise)
    assert made.shape == x.shape
    assert made.isfinite().all()
    changed = (made - x).abs().mean((1, 2, 3))
    assert (changed > 1e-4).float().mean() > 0.9
    assert changed.mean() < 0.2
    assert len(changed.unique()) > 5
    alone = group(x[7:8], units[7:8, 0], barrage.Noise(*(each[7:8] for each in noise)))
    torch.testing.assert_close(made[7:8], alone, rtol=0, atol=1e-2)


@pytest.mark.parametrize("group", barrage.GROUPS, ids=lambda group: group.__name__)
def test_a_gradient_goes_through_every_group(group: barrage.Group) -> None:
    jitter = 0.01 * torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(6))  # no two pixels are the same
    x = (0.2 + 0.6 * _pictures() + jitter).double().requires_grad_(True)
    _, units, noise = _drawn(1, 6)
    made = group(x, units[:, 1].double(), barrage.Noise(*(each.double() for each in noise)))
    weight = torch.randn(made.shape, generator=torch.Generator().manual_seed(3)).double()
    (gradient,) = torch.autograd.grad((made * weight).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    if group in (barrage.colour_precision, barrage.jpeg_noise):  # rounded: straight through
        return
    step = 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5)).double()
    with torch.no_grad():
        moved = group(x + step, units[:, 1].double(), barrage.Noise(*(each.double() for each in noise)))
    change = ((moved - made) * weight).sum()
    assert change.item() == pytest.approx((gradient * step).sum().item(), rel=1e-3, abs=1e-9)


def test_the_median_of_nine_is_numpys() -> None:
    x = _pictures(2)
    _, units, noise = _drawn(1, 2)
    around = F.pad(x, (1,) * 4, mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)
    assert torch.equal(barrage._median(x, units[:, 0], noise), around.median(-1).values)


def test_mixing_channels_there_and_back_is_nothing() -> None:
    x = _pictures()
    back = mix_channels(mix_channels(x, barrage.TO_YCC), barrage.FROM_YCC)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)
