"""Every registered defense keeps one contract; each does what its definition says; the paper's identities hold."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

from mi_ray import make_defense
from mi_ray.defenses import DEFENSES, DefendedClassifier, Defense, RandomTransform, predict
from mi_ray.defenses.base import CHUNK, EVALUATE, Executions, log_answer, log_mean
from mi_ray.defenses.geometric import truncate_to_8_bits
from mi_ray.parameters import Parameter
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool

CPU = torch.device("cpu")
KEY = Key(3, "test", "some_family")


def _setting(key: str, parameter: Parameter) -> Any:
    if key == "threshold":
        return -0.05  # a gap that both occurs and does not
    low, high = parameter.low or 0.0, parameter.high
    if parameter.kind == "pair":
        return [20, 28]
    if parameter.kind == "methods":
        return [{"random_rotation": {"degrees": 20}}]
    if parameter.kind == "integer":
        return int(low) + 2
    if parameter.kind == "factory":
        return "mi_ray.denoising:ResidualDenoiser"
    return {"ratio": 0.5, "number": low + 0.3 * ((low + 0.4 if high is None else high) - low)}[parameter.kind]


def _example(name: str, **more: Any) -> Defense:
    """A setting in the middle of each required parameter's range."""
    cls = DEFENSES[name]
    parameters = cls.parameters()
    return cls.make({key: _setting(key, parameters[key]) for key in cls.required()} | more)


def _defended(f: nn.Module, defense: Defense, pool: SamplePool, x: Tensor, **more: Any) -> Tensor:
    return predict(f, defense, x, **{"pool": pool, "executions": 6, "points": range(100, 100 + len(x)), **more})


def _runs(f: nn.Module, component: RandomTransform, x: Tensor, pool: SamplePool, n: int, points: Any) -> Tensor:
    return Executions(component, pool, KEY, points, n).log_probabilities(f, x, f(x).argmax(1))


def _transformed(defense: Any, x: Tensor, executions: int, chunk: int = 0, pool: Any = None) -> Tensor:
    predicted = torch.zeros(len(x), dtype=torch.int64)
    return defense.transform(x, Draws(KEY, range(len(x)), executions, chunk, CPU), predicted, pool)


NAMES = list(DEFENSES)
IDENTITIES = [name for name in NAMES if DEFENSES[name].identity() is not None]
SHOWN = [name for name in NAMES if not DEFENSES[name].abstains]  # every draw shows in the answer, and no decision alone
RANDOM = [name for name in NAMES if _example(name).is_random()]
TRANSFORMS = [name for name in NAMES if issubclass(DEFENSES[name], RandomTransform)]
EIGHT_BIT = [name for name in NAMES if "eight_bit" in DEFENSES[name].parameters()]


def test_the_paper_methods_are_registered() -> None:
    table = {"none", "gaussian_noise", "uniform_noise", "random_rotation", "random_pad", "random_resize"}
    assert table | {"mi_pl", "mi_ol", "mi_combined"} <= set(NAMES)


# The contract


@pytest.mark.parametrize("name", NAMES)
def test_a_defense_returns_probabilities(name: str, classifier: Any, pool: SamplePool, batch: Any) -> None:
    p = _defended(classifier, _example(name), pool, batch[0])
    assert p.shape == (8, 10)
    assert p.min() >= 0
    torch.testing.assert_close(p.sum(1), torch.ones(8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_images_in_another_precision_are_answered_as_in_single_precision(
    name: str, dtype: torch.dtype, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    x = batch[0].to(dtype)
    made = [DefendedClassifier(classifier, _example(name), pool, executions=6, seed=0) for _ in range(2)]
    torch.testing.assert_close(made[0](x), made[1](x.float()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_a_network_in_another_precision_gets_copies_in_it(
    name: str, dtype: torch.dtype, pool: SamplePool, batch: Any
) -> None:
    x = batch[0].to(dtype).requires_grad_()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(x[0].numel(), 10)).to(dtype)
    answer = DefendedClassifier(network, _example(name), pool, executions=6)(x)
    (gradient,) = torch.autograd.grad(answer.sum(), x)
    assert (answer.dtype, gradient.dtype) == (torch.float32, dtype)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_answer(name: str, classifier: Any, pool: SamplePool, batch: Any) -> None:
    first, again = (_defended(classifier, _example(name), pool, batch[0], seed=4) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("name", SHOWN)
def test_another_seed_changes_the_answer_of_random_defenses_alone(
    name: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    first, other = (_defended(classifier, _example(name), pool, batch[0], seed=seed) for seed in (4, 5))
    assert torch.equal(first, other) == (name not in RANDOM)


@pytest.mark.parametrize("name", [name for name in RANDOM if name in SHOWN])
def test_calls_of_a_defended_classifier_draw_afresh_and_a_seed_repeats_them(
    name: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    one, two = (DefendedClassifier(classifier, _example(name), pool, executions=5, seed=1) for _ in range(2))
    first, second = one(batch[0]), one(batch[0])
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack([first, second]), torch.stack([two(batch[0]), two(batch[0])]))


@pytest.mark.parametrize("name", IDENTITIES)
def test_the_identity_setting_returns_the_probabilities_of_f(
    name: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    identity = DEFENSES[name].make(DEFENSES[name].identity())
    p = _defended(classifier, identity, pool, batch[0])
    own = classifier(batch[0]).log_softmax(1)[None]
    expected = log_answer(*identity.components(), own) if len(identity.components()) == 1 else own[0]
    torch.testing.assert_close(p, expected.exp(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name in IDENTITIES])
def test_the_identity_setting_returns_the_input_bit_for_bit(name: str, pool: SamplePool, batch: Any) -> None:
    identity = DEFENSES[name].make(DEFENSES[name].identity())
    copies = _transformed(identity, batch[0], 3, pool=pool)
    assert torch.equal(copies, batch[0].expand(3, 8, 3, 32, 32))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_example_setting_does_change_the_input(name: str, pool: SamplePool, batch: Any) -> None:
    coloured = batch[0] * torch.tensor([1.0, 0.7, 0.4])[:, None, None]
    copies = _transformed(_example(name), coloured, 3, pool=pool)
    assert copies.shape == (3, 8, 3, 32, 32)
    assert ((copies - coloured).abs().amax((0, 2, 3, 4)) > 0.01).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_of_the_input_is_that_of_finite_differences(
    name: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    x, y = batch[0][:3], batch[1][:3]
    temperature = None if name in SHOWN else 0.2  # whether there is an answer is a decision, which an adversary smooths
    defended = DefendedClassifier(classifier, _example(name), pool, executions=5, temperature=temperature)

    def score(images: Tensor) -> Tensor:
        with defended.bind(KEY, range(3)):
            return defended(images)[torch.arange(3), y].exp()

    leaf = x.clone().requires_grad_(True)
    gradient = torch.autograd.grad(score(leaf).sum(), leaf)[0]
    assert (gradient.flatten(1).norm(dim=1) > 0).all()
    direction = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    step = 1e-3
    slope = (score(x + step * direction) - score(x - step * direction)) / (2 * step)
    if not defended.defense.is_smooth():  # The gradient is that of a surrogate.
        assert gradient.isfinite().all()
        return
    torch.testing.assert_close(slope, gradient.flatten(1).norm(dim=1), rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("name", ["total_variation", "bit_depth"])
def test_through_what_the_image_itself_stands_for_the_gradient_is_that_of_the_copies(
    name: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    leaf = batch[0].clone().requires_grad_(True)
    copies = DefendedClassifier(classifier, _example(name), pool, executions=2).copies(leaf)
    weight = torch.randn(copies.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((copies * weight).sum(), leaf)
    torch.testing.assert_close(gradient, weight.sum(0))


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_through_8_bits_the_gradient_is_that_of_the_defense_without_them(name: str, batch: Any) -> None:
    weight = torch.randn(2, 8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for eight_bit in (False, True):
        leaf = batch[0].clone().requires_grad_(True)
        copies = _transformed(_example(name, eight_bit=eight_bit), leaf, 2)
        gradients.append(torch.autograd.grad((copies * weight).sum(), leaf)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_through_8_bits_the_gradient_reaches_the_input_of_a_defended_classifier(
    name: str, classifier: Any, batch: Any
) -> None:
    leaf = batch[0].clone().requires_grad_(True)
    defended = DefendedClassifier(classifier, _example(name, eight_bit=True), executions=5)
    gradient = torch.autograd.grad(defended(leaf)[:, 0].sum(), leaf)[0]
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", RANDOM)
def test_permuted_points_give_permuted_rows_bit_for_bit(
    name: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    order, points = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3]), list(range(40, 48))
    for component in _example(name).components():
        straight = _runs(classifier, component, batch[0], pool, 5, points)
        mixed = _runs(classifier, component, batch[0][order], pool, 5, [points[i] for i in order])
        assert torch.equal(straight[:, order], mixed)


@pytest.mark.parametrize("name", NAMES)
def test_splitting_the_points_splits_the_rows(name: str, classifier: Any, pool: SamplePool, batch: Any) -> None:
    x, defense = batch[0], _example(name)
    whole = _defended(classifier, defense, pool, x, points=range(8))
    for cut in (1, 4):
        parts = [
            _defended(classifier, defense, pool, x[:cut], points=range(cut)),
            _defended(classifier, defense, pool, x[cut:], points=range(cut, 8)),
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RANDOM)
def test_the_company_of_a_point_does_not_change_its_row(
    name: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    x = batch[0].clone()
    before = _defended(classifier, _example(name), pool, x, points=range(8))
    x[1:] = 1 - x[1:]
    after = _defended(classifier, _example(name), pool, x, points=[0, *range(500, 507)])
    assert torch.equal(before[0], after[0])
    assert name not in SHOWN or not torch.equal(before[1:], after[1:])


@pytest.mark.parametrize("name", RANDOM)
def test_fewer_executions_are_a_prefix_of_thirty_bit_for_bit(
    name: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    for component in _example(name).components():
        thirty = _runs(classifier, component, batch[0][:3], pool, 30, range(3))
        assert len(torch.unique(thirty[:, 0], dim=0)) > 15
        for n in (1, 5, 10):
            assert torch.equal(_runs(classifier, component, batch[0][:3], pool, n, range(3)), thirty[:n])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_answer_is_the_mean_softmax_of_the_executions(
    name: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    x, defense = batch[0], _example(name)
    assert isinstance(defense, RandomTransform)
    predicted = classifier(x).argmax(1)
    copies = torch.cat(
        [
            defense.transform(x, Draws(Key(2, EVALUATE, name), range(8), CHUNK, chunk, CPU), predicted, pool)
            for chunk in range(2)
        ]
    )[:7]
    answers = torch.stack([classifier(copy) for copy in copies])
    by_hand = (F.one_hot(answers.argmax(-1), 10).float() if defense.votes else answers.softmax(-1)).mean(0)
    found = _defended(classifier, defense, pool, x, executions=7, seed=2, points=range(8))
    torch.testing.assert_close(found, by_hand, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_gives_every_execution_and_forward_their_log_mean(
    name: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    defended = DefendedClassifier(classifier, _example(name), pool, executions=7)
    with defended.bind(KEY, range(8)):
        each, together = defended.each(batch[0]), defended(batch[0])
    assert each.shape == (defended.defense.executions_of(0, 7), 8, 10)
    voted = F.one_hot(each.argmax(-1), 10).float().mean(0)
    torch.testing.assert_close(together.exp(), voted if defended.defense.votes else each.exp().mean(0))


def test_the_log_mean_survives_probabilities_that_underflow() -> None:
    log_p = torch.tensor([[[-200.0, 0.0]], [[-201.0, 0.0]]])
    expected = np.logaddexp(-200, -201) - np.log(2)
    assert log_mean(log_p)[0, 0].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", [n for n in RANDOM if any(c.needs_pool() for c in _example(n).components())])
def test_a_defense_that_mixes_needs_a_pool(name: str, classifier: Any, batch: Any) -> None:
    with pytest.raises(ValueError, match="give pool=SamplePool"):
        predict(classifier, _example(name), batch[0])


def test_no_execution_is_refused(classifier: Any) -> None:
    with pytest.raises(ValueError, match="executions must be at least 1; got 0"):
        DefendedClassifier(classifier, make_defense("none"), executions=0)


# MI-Combined is a join


def _parts(classifier: Any, pool: SamplePool, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    alone = [
        _defended(classifier, make_defense(name, lam=lam), pool, x) for name, lam in (("mi_pl", 0.5), ("mi_ol", 0.4))
    ]
    return classifier(x).softmax(1), *alone


def _joined(parts: tuple[Tensor, Tensor, Tensor], statistic: str, accept: str, threshold: float | None) -> Any:
    """(probabilities, gap) by loops over points; threshold None: the median gap."""
    undefended, detector, fallback = parts
    gaps = []
    for before, after in zip(undefended, detector, strict=True):
        k = int(before.argmax())
        gaps.append(float(before[k] - after[k] if statistic == "predicted_class" else before.max() - after.max()))
    chosen = float(np.median(gaps)) if threshold is None else threshold
    accepted = undefended if accept == "undefended" else detector
    return torch.stack([fallback[i] if gap >= chosen else accepted[i] for i, gap in enumerate(gaps)]), chosen


@pytest.mark.parametrize("statistic", ["predicted_class", "maximum"])
@pytest.mark.parametrize("accept", ["undefended", "pl_average"])
def test_mi_combined_is_the_join_of_mi_pl_and_mi_ol_alone(
    statistic: str, accept: str, classifier: Any, pool: SamplePool, batch: Any
) -> None:
    parts = _parts(classifier, pool, batch[0])
    expected, threshold = _joined(parts, statistic, accept, None)
    combined = make_defense(
        "mi_combined", lam_pl=0.5, lam_ol=0.4, threshold=threshold, accept=accept, statistic=statistic
    )
    found = _defended(classifier, combined, pool, batch[0])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    fell_back = (found - parts[2]).abs().amax(1) < 1e-6
    assert fell_back.any()
    assert not fell_back.all()


def test_a_gap_at_the_threshold_goes_to_mi_ol() -> None:
    undefended, detector, fallback = (torch.tensor([[p, 1 - p]]) for p in (0.75, 0.5, 0.1))
    at, above = (
        make_defense("mi_combined", lam_pl=0.5, lam_ol=0.5, threshold=threshold) for threshold in (0.25, 0.2500001)
    )
    assert torch.equal(at.join(undefended, [detector, fallback]), fallback)
    assert torch.equal(above.join(undefended, [detector, fallback]), undefended)


def test_the_statistics_differ_where_the_detector_names_another_class() -> None:
    undefended, detector, fallback = (
        torch.tensor([row]) for row in ([0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0])
    )
    of_class, of_maximum = (
        make_defense("mi_combined", lam_pl=0.5, lam_ol=0.5, threshold=0.2, statistic=statistic)
        for statistic in ("predicted_class", "maximum")
    )
    assert torch.equal(of_class.join(undefended, [detector, fallback]), fallback)  # 0.6 - 0.1
    assert torch.equal(of_maximum.join(undefended, [detector, fallback]), undefended)  # 0.6 - 0.9


def test_the_detector_may_have_executions_of_its_own(classifier: Any, pool: SamplePool, batch: Any) -> None:
    combined = make_defense("mi_combined", lam_pl=0.5, lam_ol=0.4, threshold=1.0, accept="pl_average", executions_pl=3)
    found = _defended(classifier, combined, pool, batch[0], executions=10)
    alone = _defended(classifier, make_defense("mi_pl", lam=0.5), pool, batch[0], executions=3)
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


# Noise


def _flat(defense: Any, value: float, executions: int = 60) -> Tensor:
    """The noise on two constant images."""
    x = torch.full((2, 3, 16, 16), value)
    return _transformed(defense, x, executions) - x


def test_gaussian_noise_has_its_moments_and_is_not_clipped() -> None:
    noise = _flat(make_defense("gaussian_noise", sigma=0.1), 0.0)
    assert abs(noise.mean()) < 5 * 0.1 / noise.numel() ** 0.5
    assert noise.std() == pytest.approx(0.1, rel=0.01)
    assert stats.kstest(noise.flatten()[:5000] / 0.1, "norm").pvalue > 1e-3
    assert noise.min() < -0.3
    assert (1 + _flat(make_defense("gaussian_noise", sigma=0.1), 1.0)).max() > 1.3


def test_uniform_noise_has_its_moments_and_is_not_clipped() -> None:
    noise = _flat(make_defense("uniform_noise", amplitude=0.2), 0.0)
    assert abs(noise.mean()) < 5 * 0.2 / 3**0.5 / noise.numel() ** 0.5
    assert noise.std() == pytest.approx(0.2 / 3**0.5, rel=0.01)
    assert stats.kstest(noise.flatten()[:5000], stats.uniform(-0.2, 0.4).cdf).pvalue > 1e-3
    assert -0.2 <= noise.min() < -0.199
    assert 0.199 < noise.max() <= 0.2


@pytest.mark.parametrize(("name", "key"), [("gaussian_noise", "sigma"), ("uniform_noise", "amplitude")])
def test_neighbouring_settings_share_their_noise(name: str, key: str) -> None:
    small, large = (_flat(make_defense(name, **{key: value}), 0.0, 3) for value in (0.1, 0.3))
    torch.testing.assert_close(3 * small, large)


# Geometry, against torchvision and crops written out


@pytest.mark.parametrize("fill", [0.0, 0.5])
@pytest.mark.parametrize("size", [(32, 32), (24, 32)])
def test_bilinear_rotation_is_torchvisions(fill: float, size: tuple[int, int], batch: Any) -> None:
    x = batch[0][..., : size[0], :]
    turned, expected = _turned(x, "bilinear", fill)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-4)


def test_nearest_rotation_is_torchvisions_but_for_pixels_on_an_edge(batch: Any) -> None:
    turned, expected = _turned(batch[0], "nearest", 0.25)
    assert (turned[..., 0, 0] == 0.25).any()
    assert ((turned - expected).abs() < 1e-5).float().mean() > 0.999
    assert ((batch[0] - expected).abs() < 1e-5).float().mean() < 0.8


def _turned(x: Tensor, how: str, fill: float) -> tuple[Tensor, Tensor]:
    # Imported here, since it takes as long as all else that is read before the first test.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import rotate

    defense = make_defense("random_rotation", degrees=40, interpolation=how, fill=fill)
    unit = Draws(KEY, range(len(x)), 4, 0, CPU).uniform(1)[..., 0]
    reference = [
        [rotate(image, 80 * float(u) - 40, InterpolationMode(how)) for image, u in zip(x - fill, row, strict=True)]
        for row in unit
    ]
    # torchvision's own `fill` darkens an edge twice: the image shifted by the fill has none of it.
    return _transformed(defense, x, 4), torch.stack([torch.stack(row) for row in reference]) + fill


def _boxes(points: int, executions: int, low: int, high: int, size: int) -> list[list[list[int]]]:
    """side, top, left, new top, new left of each execution and point, from the same draws."""
    u = Draws(KEY, range(points), executions, 0, CPU).uniform(5).double()
    out = []
    for row in u:
        sides = [low + int(v[0] * (high - low + 1)) for v in row]
        out.append([[s, *(int(w * (size - s + 1)) for w in v[1:])] for s, v in zip(sides, row, strict=True)])
    return out


def _padded(image: Tensor, side: int, top: int, left: int, new_top: int, new_left: int) -> Tensor:
    size, crop = image.shape[-1], image[:, top : top + side, left : left + side]
    return F.pad(crop, (new_left, size - side - new_left, new_top, size - side - new_top))


def _resized(image: Tensor, side: int, top: int, left: int, *_: int) -> Tensor:
    crop = image[None, :, top : top + side, left : left + side]
    return F.interpolate(crop, size=image.shape[-2:], mode="bilinear", align_corners=False, antialias=False)[0]


@pytest.mark.parametrize(
    ("name", "reference", "atol"), [("random_pad", _padded, 0.0), ("random_resize", _resized, 1e-5)]
)
@pytest.mark.parametrize("crop", [(16, 24), (9, 32)])
def test_crops_are_those_of_torch_for_the_boxes_drawn(
    name: str, reference: Callable[..., Tensor], atol: float, crop: tuple[int, int], batch: Any
) -> None:
    found = _transformed(make_defense(name, crop=list(crop)), batch[0], 5)
    boxes = _boxes(8, 5, *crop, 32)
    expected = torch.stack(
        [torch.stack([reference(image, *box) for image, box in zip(batch[0], row, strict=True)]) for row in boxes]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_crops_have_every_side_and_every_place_equally_often() -> None:
    ones = torch.ones(1, 3, 16, 16)
    kept = _transformed(make_defense("random_pad", crop=[12, 15]), ones, 3000)[:, 0, 0]
    rows, columns = kept.amax(2), kept.amax(1)
    sides = rows.sum(1).long()
    assert torch.equal(sides, columns.sum(1).long())
    assert stats.chisquare(torch.bincount(sides)[12:16]).pvalue > 1e-3
    for lines in (rows, columns):
        start = lines[sides == 12].argmax(1)
        assert stats.chisquare(torch.bincount(start, minlength=5)).pvalue > 1e-3


@pytest.mark.parametrize("name", ["random_pad", "random_resize"])
def test_a_crop_larger_than_the_image_is_refused(name: str) -> None:
    defense = make_defense(name, crop=[20, 28])
    defense.check_images(28, 32)
    with pytest.raises(ValueError, match=rf"{name}.crop must not exceed the image's side, 27 pixels; got \[20, 28\]"):
        defense.check_images(32, 27)


def test_exactly_63_of_the_256_grey_levels_fall_by_one() -> None:
    levels = torch.arange(256)
    x = (levels.float() / 255).requires_grad_(True)
    stored = truncate_to_8_bits(x)
    fallen = levels - (stored.detach() * 255).round().long()
    assert torch.bincount(fallen).tolist() == [193, 63]
    assert torch.equal(torch.autograd.grad(stored.sum(), x)[0], torch.ones(256))


@pytest.mark.parametrize("name", EIGHT_BIT)
def test_through_8_bits_inputs_are_truncated(name: str, batch: Any) -> None:
    levels = _transformed(DEFENSES[name].make(DEFENSES[name].identity() | {"eight_bit": True}), batch[0], 2) * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    fallen = (batch[0] * 255 - levels).round()
    assert set(fallen.unique().tolist()) == {0.0, 1.0}


def test_resizing_through_8_bits_gives_an_8_bit_image(batch: Any) -> None:
    levels = _transformed(make_defense("random_resize", crop=[20, 28], eight_bit=True), batch[0], 2) * 255
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)


# Mixup inference


@pytest.mark.parametrize(
    ("lam", "distribution"),
    [
        ({"beta": [2, 3]}, stats.beta(2, 3)),
        ({"uniform": [0.3, 0.8]}, stats.uniform(0.3, 0.5)),
        ({"quantiles": list(stats.norm(0.5, 0.1).ppf(np.linspace(1e-4, 1 - 1e-4, 101)))}, stats.norm(0.5, 0.1)),
    ],
)
@pytest.mark.parametrize("name", ["mi_pl", "mi_ol"])
def test_lam_may_be_drawn_from_a_distribution_once_an_execution(name: str, lam: Any, distribution: Any) -> None:
    black = SamplePool(torch.zeros(4, 3, 2, 2), [0, 1, 2, 3])
    mixed = _transformed(make_defense(name, lam=lam), torch.ones(2, 3, 2, 2), 2000, pool=black)
    assert (mixed == mixed[..., :1, :1, :1]).all()
    assert stats.kstest(mixed[:, 0, 0, 0, 0], distribution.cdf).pvalue > 1e-3
    assert abs(stats.pearsonr(mixed[:, 0, 0, 0, 0], mixed[:, 1, 0, 0, 0]).statistic) < 0.1


@pytest.mark.parametrize(("name", "which"), [("mi_pl", "predicted"), ("mi_ol", "other")])
def test_mixing_is_lam_x_plus_the_rest_of_a_pool_image(name: str, which: Any, pool: SamplePool, batch: Any) -> None:
    predicted = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])
    mixed = make_defense(name, lam=0.3).transform(batch[0], Draws(KEY, range(8), 4, 0, CPU), predicted, pool)
    drawn = pool.draw(Draws(KEY, range(8), 4, 0, CPU), predicted, which)
    torch.testing.assert_close(mixed, 0.3 * batch[0] + 0.7 * drawn)


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("gaussian_noise", {"sigma": -0.1}, r"gaussian_noise.sigma must be a number in \[0, ∞\]; got -0.1"),
        ("gaussian_noise", {"sigma": float("nan")}, r"sigma must be a number .*; got nan"),
        ("mi_ol", {"lam": 1.5}, r"mi_ol.lam must be a number in \[0, 1\], or \{beta.*; got 1.5"),
        ("mi_ol", {"lam": {"quantiles": [0.5, 0.2]}}, r"mi_ol.lam must be .*got \{'quantiles': \[0.5, 0.2\]\}"),
        ("mi_ol", {"lam": {"quantiles": [0.5, 1.2]}}, r"mi_ol.lam must be .*got \{'quantiles': \[0.5, 1.2\]\}"),
        ("mi_ol", {"lam": {"beta": [1, 1, 1]}}, r"mi_ol.lam must be .*got \{'beta': \[1, 1, 1\]\}"),
        ("mi_pl", {"lam": {"beta": [0, 1]}}, r"mi_pl.lam must be .*got \{'beta': \[0, 1\]\}"),
        ("mi_pl", {"lam": {"uniform": [0.5, 1.5]}}, r"mi_pl.lam must be .*got \{'uniform': \[0.5, 1.5\]\}"),
        ("random_pad", {"crop": [24, 16]}, r"random_pad.crop must be .*lo <= hi.*; got \[24, 16\]"),
        ("random_resize", {"crop": [0, 16]}, r"random_resize.crop must be .*in \[1, ∞\]; got \[0, 16\]"),
        ("random_rotation", {"degrees": 181}, r"random_rotation.degrees must be a number in \[0, 180\]; got 181"),
        ("random_rotation", {"degrees": 5, "fill": 2}, r"random_rotation.fill must be .*\[0, 1\]; got 2"),
        ("random_rotation", {"degrees": 5, "interpolation": "cubic"}, r"one of bilinear, nearest; got 'cubic'"),
        ("mi_combined", {"lam_pl": 0.5, "lam_ol": 0.5, "threshold": 2}, r"threshold must be .*\[-1, 1\]; got 2"),
        ("gaussian_noise", {"sigmas": 0.1}, r"unknown parameter of gaussian_noise 'sigmas' \(did you mean 'sigma'"),
        ("mi_combined", {"lam_pl": 0.5}, r"mi_combined needs lam_ol, threshold; got lam_pl"),
        ("mi_old", {}, r"unknown defense 'mi_old' \(did you mean 'mi_ol'\?\); known: .*random_pad"),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_rule_and_the_value(name: str, values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_defense(name, **values)


# The paper's identities, on a classifier that is linear on the simplex (Sec. 3)

L = 5


class Prototypes(nn.Module):
    """Class k's prototype is white on block k: softmax returns the weights of a convex combination exactly."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((1, 3)).log()


def _weighted(weights: Tensor) -> Tensor:
    """The image that mixes the prototypes with these weights [B, L]."""
    return weights[:, None, :, None].expand(-1, 3, -1, 4).contiguous()


def _identity_defended(name: str, lam: float, weights: Tensor, executions: int = 3000) -> Tensor:
    pool = SamplePool(_weighted(torch.eye(L)), list(range(L)))
    return predict(Prototypes(), make_defense(name, lam=lam), _weighted(weights), pool, executions)


@pytest.mark.parametrize("lam", [0.1, 0.4, 0.9])
def test_on_clean_input_mi_pl_returns_one_on_y_and_mi_ol_lambda(lam: float) -> None:
    clean = torch.eye(L)
    torch.testing.assert_close(_identity_defended("mi_pl", lam, clean, 20), clean)
    found = _identity_defended("mi_ol", lam, clean)
    torch.testing.assert_close(found.diagonal(), torch.full((L,), lam))
    others = found[~torch.eye(L, dtype=torch.bool)]
    torch.testing.assert_close(others, torch.full_like(others, (1 - lam) / (L - 1)), rtol=0, atol=0.03)


@pytest.mark.parametrize("lam", [1 / L - 0.04, 1 / L + 0.04])
def test_a_clean_input_survives_mi_ol_in_expectation_iff_lambda_exceeds_one_over_l(lam: float) -> None:
    found = _identity_defended("mi_ol", lam, torch.eye(L), 5000)
    assert (found.argmax(1) == torch.arange(L)).tolist() == [lam > 1 / L] * L


@pytest.mark.parametrize("lam", [0.3, 0.6])
def test_table_1_and_the_equal_detection_gaps_of_equations_14_and_16(lam: float) -> None:
    y, other, g = 0, 3, 0.7  # δ moves 0.7 of the mass from y to another class: G_y = -0.7, G_ŷ = 0.7
    adversarial, clean = torch.eye(L)[[y]], torch.eye(L)[[y]]
    adversarial[0, y] -= g
    adversarial[0, other] += g
    undefended = Prototypes()(_weighted(adversarial)).softmax(1)[0]
    gaps = {}
    for name in ("mi_pl", "mi_ol"):
        attacked, kept = (_identity_defended(name, lam, weights)[0] for weights in (adversarial, clean))
        true_part, other_part = {"mi_pl": (0, 1 - lam), "mi_ol": ((1 - lam) / (L - 1), 0)}[name]
        assert attacked[y].item() == pytest.approx(lam + true_part - lam * g, abs=0.02)
        assert attacked[other].item() == pytest.approx(other_part + lam * g, abs=1e-5)
        drop_adversarial, drop_clean = undefended[other] - attacked[other], 1 - kept[y]
        gaps[name] = (drop_adversarial - drop_clean).item()
    assert gaps["mi_pl"] == pytest.approx(gaps["mi_ol"], abs=1e-5)
    assert gaps["mi_pl"] == pytest.approx(g - lam * g - (1 - lam), abs=1e-5)


def test_a_crop_that_does_not_fit_the_image_is_refused_by_the_python_interface(classifier: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"crop must not exceed the image's side, 32 pixels; got \[20, 40\]"):
        predict(classifier, DEFENSES.make("random_pad", {"crop": [20, 40]}), torch.rand(2, 3, 32, 32))


def test_a_defense_that_judges_by_another_takes_the_sizes_that_the_other_takes() -> None:
    crop = {"random_pad": {"crop": [20, 28]}}
    for made in (
        DEFENSES.make("random_pad", crop["random_pad"]),
        DEFENSES.make("reject", {"of": [crop], "threshold": 0.2}),
        DEFENSES.make("chain", {"of": [crop, {"gaussian_noise": 0.1}]}),
    ):
        made.check_images(32, 32)
        with pytest.raises(ValueError, match="crop"):
            made.check_images(16, 16)
