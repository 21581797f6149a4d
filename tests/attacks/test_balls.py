"""The ball of each norm: its projection, its steepest step, its uniform points; and what attacks find in it.

What is compared with is worked out here by other means: bisections in float64, closed forms on linear classifiers, and
other libraries on the same points.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from mi_ray import ThreatModel, make_attack
from mi_ray.attacks import ATTACKS
from mi_ray.attacks.auto_pgd import _Seen, _Sparsening, narrowing, search
from mi_ray.attacks.balls import BALLS, EuclideanBall, SumBall, share_within
from mi_ray.attacks.criterion import criterion
from mi_ray.attacks.square import SEARCHES, bump, pyramid
from mi_ray.data import to_unit
from mi_ray.randomness import Draws, Key
from mi_ray.statistics import paired_test
from mi_ray.threat_model import MEASURES, NORMS, step_of

SHAPE = (3, 8, 8)
CPU = torch.device("cpu")
MARGIN = 0.1  # as in test_other_libraries: two attacks agree within so much
over_norms = pytest.mark.parametrize("norm", NORMS)


def _images(points: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Random images a third of whose pixels are at an end of the box."""
    drawn = 1.5 * torch.rand(points, *shape, generator=torch.Generator().manual_seed(seed)) - 0.25
    return drawn.clamp(0, 1)


def _nearest(x: Tensor, centre: Tensor, radius: float) -> Tensor:
    """The nearest image in the L2 ball and the box: clamp((x + m centre) / (1 + m)) with the m that a bisection finds."""
    x, centre, low, high = x.double(), centre.double(), 0.0, 1e9
    if (x.clamp(0, 1) - centre).norm() <= radius:
        return x.clamp(0, 1)
    for _ in range(100):
        middle = (low + high) / 2
        inside = (((x + middle * centre) / (1 + middle)).clamp(0, 1) - centre).norm() <= radius
        low, high = (low, middle) if inside else (middle, high)
    return ((x + high * centre) / (1 + high)).clamp(0, 1)


def _optimum(centre: Tensor, direction: Tensor, radius: float) -> Tensor:
    """Where a linear function with that gradient is highest in the L2 ball and the box, by a bisection for its multiplier."""
    centre, direction, low, high = centre.double(), direction.double(), 0.0, 1e9
    for _ in range(100):
        middle = (low + high) / 2
        inside = ((centre + middle * direction).clamp(0, 1) - centre).norm() <= radius
        low, high = (middle, high) if inside else (low, middle)
    return (centre + low * direction).clamp(0, 1)


# The ball of L2


@pytest.mark.parametrize("radius", [0.0, 0.01, 1.0, 5.0, 12.0])
@pytest.mark.parametrize("spread", [1e-3, 0.3, 20.0])
def test_an_l2_projection_is_the_nearest_image_of_ball_and_box_at_once(radius: float, spread: float) -> None:
    centre = _images(6)
    x = centre + spread * torch.randn(centre.shape, generator=torch.Generator().manual_seed(1))
    found = EuclideanBall(centre, radius).projected(x)
    wanted = torch.stack([_nearest(one, of, radius) for one, of in zip(x, centre, strict=True)])
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=2e-6)
    assert ((found.double() - centre).flatten(1).norm(dim=1) <= radius + 1e-6 * max(1, radius)).all()


def test_a_ball_and_then_a_box_are_not_the_nearest_image_of_both() -> None:
    centre = torch.tensor([0.9, 0.5]).view(1, 1, 1, 2)
    found = EuclideanBall(centre, 0.5).projected(centre + torch.tensor([1.0, 1.0]).view(1, 1, 1, 2))
    torch.testing.assert_close(found.flatten(), torch.tensor([1.0, 0.5 + (0.25 - 0.01) ** 0.5]))  # not 0.5 + 0.5 / √2


@over_norms
def test_what_a_ball_holds_is_its_own_projection_and_the_centre_that_of_radius_0(norm: Any) -> None:
    centre = _images(5)
    ball = BALLS[norm](centre, 0.7)
    once = ball.projected(centre + torch.randn(centre.shape, generator=torch.Generator().manual_seed(2)))
    torch.testing.assert_close(ball.projected(once), once, rtol=0, atol=1e-6)
    assert torch.equal(BALLS[norm](centre, 0.0).projected(once), centre)


@over_norms
def test_a_step_is_as_long_as_it_says_whatever_the_gradients_size_and_stays_without_one(norm: Any) -> None:
    centre = torch.full((4, *SHAPE), 0.5)
    gradient = torch.randn(centre.shape, generator=torch.Generator().manual_seed(3))
    ball = BALLS[norm](centre, MEASURES[norm].diameter(192))
    for scale in (1e-38, 1e-20, 1.0, 1e30):
        found = ball.ascended(centre, 0.1, scale * gradient)
        torch.testing.assert_close(ball.distance(found - centre), torch.full((4,), 0.1), rtol=1e-4, atol=1e-6)
        rise = ((found - centre) * gradient).flatten(1).sum(1)
        size = gradient.abs().flatten(1)
        dual = {"linf": size.sum(1), "l2": size.norm(dim=1), "l1": size.amax(1)}[norm]
        torch.testing.assert_close(ball.dual(scale * gradient), scale * dual)
        torch.testing.assert_close(rise, 0.1 * dual, rtol=1e-3, atol=0)
    assert torch.equal(ball.ascended(centre, 0.1, torch.zeros_like(centre)), centre)
    sizes = torch.tensor([0.1, 0.2, 0.0, 0.05])
    found = ball.ascended(centre, sizes[:, None, None, None], gradient)
    torch.testing.assert_close(ball.distance(found - centre), sizes, rtol=1e-4, atol=1e-6)


@over_norms
def test_uniform_points_are_uniform_in_the_unit_ball(norm: Any) -> None:
    """A share r^d of them lies within r of the centre, and no direction is preferred."""
    drawn = BALLS[norm].uniform(Draws(Key(0, "test"), range(500), 4, 0, CPU), (1, 2, 2)).flatten(0, 1)
    far = BALLS[norm].distance(drawn)
    assert stats.kstest(far**4, "uniform").pvalue > 1e-3
    assert (drawn.flatten(1).mean(0).abs() < 0.05).all()
    away = BALLS[norm](torch.full((8, *SHAPE), 0.5), 0.25).random_start(Draws(Key(0, "test"), range(8), 1, 0, CPU))
    assert (BALLS[norm].distance(away - 0.5) <= 0.25 + 1e-6).all()
    assert (BALLS[norm].distance(away - 0.5) > 0.2).all()  # of 192 dimensions nearly all of a ball is at its surface


def test_a_share_is_infinite_where_every_pixel_may_go_to_its_end() -> None:
    room = torch.tensor([[0.3, 0.4], [0.3, 0.4], [0.0, 0.0]])
    found = share_within(torch.tensor([[1.0, 2.0]] * 3), room, torch.full((3,), 0.5 + 1e-6))
    assert torch.isinf(found).all()
    torch.testing.assert_close(
        share_within(torch.tensor([[1.0, 2.0]]), room[:1], torch.tensor([0.45])), torch.tensor([0.2]), atol=0.2, rtol=0
    )
    torch.testing.assert_close(
        share_within(torch.tensor([[3.0, 4.0]]), torch.ones(1, 2), torch.tensor([0.5])), torch.tensor([0.1])
    )


# The ball of L1


def _soft(x: Tensor, centre: Tensor, radius: float) -> Tensor:
    """The nearest image in the L1 ball and the box: all changes shorter by a number that a bisection finds, then the box."""

    def shorter(by: float) -> Tensor:
        return (centre + (x - centre).sign() * ((x - centre).abs() - by).clamp_min(0)).clamp(0, 1)

    x, centre = x.double(), centre.double()
    low, high = 0.0, float((x - centre).abs().max())
    if (shorter(0.0) - centre).abs().sum() <= radius:
        return shorter(0.0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if (shorter(middle) - centre).abs().sum() <= radius else (middle, high)
    return shorter(high)


def _filled(centre: Tensor, direction: Tensor, radius: float) -> Tensor:
    """Where a linear function is highest in the L1 ball and the box: pixels go to their ends, the steepest first."""
    found, left = centre.double().flatten(), radius
    for place in direction.abs().flatten().argsort(descending=True).tolist():
        up = bool(direction.flatten()[place] > 0)
        moved = min(left, float(1 - found[place] if up else found[place]))
        found[place] += moved if up else -moved
        left -= moved
    return found.view(centre.shape)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    radius=st.sampled_from([0.0, 1e-4, 0.01, 1.0, 7.3, 40.0, 192.0]),
    spread=st.sampled_from([0.0, 1e-5, 1e-3, 0.3, 20.0]),
    levels=st.sampled_from([0, 4, 255]),
)
def test_an_l1_projection_is_the_nearest_image_of_ball_and_box_at_once(
    seed: int, radius: float, spread: float, levels: int
) -> None:
    """levels: of images that have few grey levels, so that many changes are of one length."""
    centre = _images(3, seed)
    x = centre + spread * torch.randn(centre.shape, generator=torch.Generator().manual_seed(seed + 1))
    if levels:
        centre, x = (centre * levels).round() / levels, (x * levels).round() / levels
    found = SumBall(centre, radius).projected(x)
    wanted = torch.stack([_soft(one, of, radius) for one, of in zip(x, centre, strict=True)])
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6)
    assert ((found.double() - centre.double()).abs().flatten(1).sum(1) <= radius * (1 + 1e-7)).all()
    assert found.min() >= 0
    assert found.max() <= 1


def test_each_image_is_projected_to_a_radius_of_its_own_and_one_without_a_bound_to_the_box_alone() -> None:
    centre = _images(4)
    x = centre + torch.randn(centre.shape, generator=torch.Generator().manual_seed(2))
    radii = torch.tensor([0.0, 2.0, 30.0, torch.inf])
    found = SumBall(centre, radii[:, None, None, None]).projected(x)
    for place, radius in enumerate(radii.tolist()):
        wanted = _soft(x[place], centre[place], radius)
        torch.testing.assert_close(found[place].double(), wanted, rtol=0, atol=1e-6)
    assert torch.equal(found[3], x[3].clamp(0, 1))


@pytest.mark.parametrize("size", [0.3, 4.0, 100.0])
def test_no_l1_step_leads_away_from_the_highest_point_of_a_linear_function(size: float) -> None:
    centre = _images(6)
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))
    best = torch.stack([_filled(one, gradient, 9.5) for one in centre]).float()
    ball = SumBall(centre, 9.5)
    torch.testing.assert_close(ball.ascended(best, size, gradient.expand_as(best)), best, rtol=0, atol=2e-6)


def test_an_l1_step_goes_along_the_hundredth_of_the_gradient_that_is_largest() -> None:
    centre = torch.full((2, 3, 10, 10), 0.5)
    centre[1, 0, 0, 0] = 1.0
    gradient = torch.linspace(2, 1, 300).view(1, 3, 10, 10).expand_as(centre)
    moved = (SumBall(centre, 100.0).ascended(centre, 0.9, gradient) - centre).flatten(1)
    slope = gradient[0].flatten()
    torch.testing.assert_close(moved[0, :3], 0.9 * slope[:3] / slope[:3].sum(), rtol=0, atol=1e-6)
    torch.testing.assert_close(moved[1, 1:4], 0.9 * slope[1:4] / slope[1:4].sum(), rtol=0, atol=1e-6)
    assert moved[0, 3] == moved[1, 0] == 0  # the first of the second is at its end
    assert (moved[:, 4:] == 0).all()


def test_an_l1_step_is_no_shorter_where_few_entries_have_no_room_for_it() -> None:
    centre = torch.full((1, 1, 2, 4), 0.5)
    gradient = torch.full((1, 1, 2, 4), -1.0)
    moved = SumBall(centre, 8.0).ascended(centre, 1.5, gradient) - centre
    torch.testing.assert_close(moved.flatten(), torch.tensor([-0.5] * 3 + [0.0] * 5))


def test_an_l1_step_where_all_that_has_a_slope_is_at_its_end_goes_nowhere() -> None:
    centre = torch.full((1, 1, 2, 4), 0.5)
    x, gradient = centre.clone(), torch.zeros_like(centre)
    x[..., 0, 0], gradient[..., 0, 0] = 1.0, 3.0
    assert torch.equal(SumBall(centre, 0.5).ascended(x, 2.0, gradient), x)
    gradient[..., 1, 1] = 1e-30  # so small that the first one is not pushed without bounds
    found = SumBall(centre, 0.5).ascended(x, 2.0, gradient)
    assert SumBall.distance(found - centre) <= 0.5


def test_the_mean_size_of_a_uniform_point_is_d_of_d_and_one_more() -> None:
    drawn = SumBall.uniform(Draws(Key(0, "test"), range(400), 2, 0, CPU), (1, 3, 3))
    far = SumBall.distance(drawn)
    assert far.mean().item() == pytest.approx(0.9, abs=4 * float(far.std()) / far.numel() ** 0.5)
    shares = drawn.abs().flatten(2).mean((0, 1))
    assert (shares - 0.1).abs().max() < 0.015  # each of nine pixels moves by a tenth in the mean


def test_a_search_in_l1_comes_from_wider_balls_and_evaluates_no_more_points_for_that() -> None:
    x = _images(2)
    for evaluations in (1, 2, 3, 4, 11, 41, 101):
        found = [(ball.radius, points) for ball, points in narrowing(SumBall(x, 2.0), evaluations)]
        assert sum(points for _, points in found) == evaluations
        assert found[-1][0] == 2.0
        assert min(points for _, points in found) >= 1
        assert [radius for radius, _ in found] == [6.0, 4.0, 2.0] or evaluations < 4
        assert [points for _, points in narrowing(EuclideanBall(x, 2.0), evaluations)] == [evaluations]


# What attacks find in it


GRADIENTS = {
    "pgd": {"steps": 30, "step_size": 1.0},
    "eot_pgd": {"steps": 30, "step_size": 1.0},
    "momentum": {"steps": 30, "step_size": 1.0},
}
OTHERS = {"square": {"queries": 600, "schedule": 600}, "minimum_norm": {"steps": 60}}
FOUND = [  # every registered attack that makes sense on F alone, on each of its norms
    (name, norm)
    for name in ATTACKS
    if not ATTACKS[name].needs_defense and not ATTACKS[name].needs_images and name not in ("binarization",)
    for norm in ATTACKS[name].norms
    if norm in NORMS
]
# Of the gain of the optimum; all others find all of it. A search over windows of three pixels and more does not on weights that
# are noise, and APGD in L1 comes near it ever more slowly, as the steepest entries are nearly as steep as one another.
LEAST = {("random_noise", norm): 0.01 for norm in NORMS} | {("minimum_norm", norm): 0.99 for norm in NORMS}
LEAST |= {("square", "linf"): 0.82, ("square", "l2"): 0.4, ("apgd", "l1"): 0.995}
# Both radii and both goals for every attack in every norm; the other two of four cases repeat what these show.
PAIRS = [("small", "untargeted"), ("large", "targeted"), ("small", "targeted"), ("large", "untargeted")]
CASES = [
    pytest.param(*found, *pair, marks=[pytest.mark.long] if at // 2 != number % 2 else [])
    for number, found in enumerate(FOUND)
    for at, pair in enumerate(PAIRS)
]


@pytest.mark.parametrize(("name", "norm", "radius", "goal"), CASES)
def test_on_two_linear_classes_an_attack_finds_the_closed_form_optimum(
    name: str, norm: Any, radius: str, goal: Any, linear: Any
) -> None:
    f, x, y = linear(2, SHAPE), _images(6), torch.zeros(6, dtype=torch.int64)
    epsilon = {"linf": (0.01, 0.4), "l2": (0.1, 4.0), "l1": (0.3, 20.0)}[norm][radius == "large"]
    labels = y if goal == "untargeted" else 1 - y
    away = (f.weight[1] - f.weight[0]).view(SHAPE)
    best = (
        (x + epsilon * away.sign()).clamp(0, 1)
        if norm == "linf"
        else torch.stack([{"l2": _optimum, "l1": _filled}[norm](one, away, epsilon) for one in x]).float()
    )
    lead = f(best)[:, 1] - f(best)[:, 0]
    f.bias.data[0] += lead.max() + 0.1  # so that no image is fooled, and none left alone because it is
    values = {**GRADIENTS, **OTHERS}.get(name, {})
    if norm == "l1":
        values = {**values, "step_size": epsilon / 2} if "step_size" in values else values
    attack = make_attack(name, **values)
    threat = ThreatModel(epsilon, goal, norm)
    found = attack.craft(f, x, labels, threat).best(attack.stops()[-1])
    gain, most = (((images - x) * away).flatten(1).sum(1) for images in (found, best))
    assert (gain >= LEAST.get((name, norm), 0.998) * most).all(), gain / most
    assert (gain <= most * (1 + 1e-4) + 1e-5).all()


def test_pgd_with_long_steps_finds_the_optimum_itself(linear: Any) -> None:
    f, x = linear(2, SHAPE), _images(6)
    away = (f.weight[1] - f.weight[0]).view(SHAPE)
    found = make_attack("pgd", steps=40, step_size=1.0)(
        f, x, torch.zeros(6, dtype=torch.int64), ThreatModel(2.0, norm="l2")
    )
    best = torch.stack([_optimum(one, away, 2.0) for one in x]).float()
    torch.testing.assert_close(found, best, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["square", "cascade", "evasion", "binarization"])
def test_what_would_need_a_search_of_its_own_is_refused_in_l1(name: str, classifier: Any, batch: Any) -> None:
    attack = make_attack(name, **({"of": '{"pgd": {}}'} if name == "binarization" else {}))
    with pytest.raises(ValueError, match=rf"norm must be one in which {name} attacks, linf, l2; got l1"):
        attack.craft(classifier, *batch, ThreatModel(12, norm="l1"))


@pytest.mark.parametrize(("norm", "longest"), [("linf", 1.0), ("l2", 1.0), ("l1", 100.0)])
def test_a_step_is_no_longer_than_its_norm_lets(norm: Any, longest: float, classifier: Any, batch: Any) -> None:
    x, y = batch
    threat = ThreatModel(1.0, norm=norm)
    make_attack("pgd", steps=1, step_size=longest).admit(threat, 10)
    if longest < 100:
        with pytest.raises(ValueError, match=rf"pgd.step_size must be at most 1 in the norm {norm}; got 2"):
            make_attack("pgd", steps=1, step_size=2)(classifier, x, y, threat)
    assert step_of(1e6, 4, norm) == longest


def test_an_attack_says_which_norms_it_knows(classifier: Any, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"norm must be one in which averaged attacks, linf; got l2"):
        make_attack("averaged").craft(classifier, *batch, ThreatModel(0.5, norm="l2"))


# Square


def test_a_bump_is_a_hill_above_a_hollow_as_the_attacks_paper_has_it() -> None:
    hill = torch.tensor([[1 / 9, 1 / 9 + 1 / 4, 1 / 9], [0, 0, 0], [0, 0, 0]])
    assert hill.shape == (3, 3)
    found = pyramid(3, 3)  # M is 1 in the middle and 0 around it: 1 / 1 + 1 / 4, and 1 / 4
    torch.testing.assert_close(found, torch.tensor([[0.25] * 3, [0.25, 1.25, 0.25], [0.25] * 3]))
    for length in (1, 2, 3, 5, 8):
        made = bump(length)
        assert made.norm().item() == pytest.approx(1.0, abs=1e-6)
        assert (made[: length // 2] > 0).all()
        assert (made[length // 2 :] < 0).all()


def test_a_window_takes_the_budget_of_another_and_the_unused_one_and_leaves_the_rest_alone() -> None:
    x = torch.full((3, *SHAPE), 0.5)
    ball, unit = EuclideanBall(x, 0.3), torch.tensor([[0.0, 0.0, 0.99, 0.99, 0.9, 0.9, 0.1, 0.9]] * 3)
    best = x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    found = SEARCHES["l2"].proposal(ball, best, 0.1, unit)
    torch.testing.assert_close(ball.distance(found - x), torch.full((3,), 0.3), rtol=1e-5, atol=0)
    untouched = torch.ones(8, 8, dtype=torch.bool)
    untouched[:3, :3] = untouched[5:, 5:] = False  # windows of three pixels a side
    torch.testing.assert_close(found[..., untouched], best[..., untouched])
    assert torch.equal(found[..., 5:, 5:], x[..., 5:, 5:])  # emptied
    middle = (found - x)[:, :, 0, 1]
    assert (middle[:, [0, 2]] > middle[:, 1:2]).all()  # signs of the channels


def test_a_search_in_l2_begins_at_the_surface_and_its_best_never_worsens(classifier: Any, batch: Any) -> None:
    x, y = batch[0] * 0.5 + 0.25, batch[1]
    threat = ThreatModel(1.0, norm="l2")
    found = make_attack("square", queries=[1, 5, 50]).craft(classifier, x, y, threat)
    torch.testing.assert_close(EuclideanBall.distance(found.images[0] - x), torch.ones(3, 8), rtol=1e-4, atol=0)
    margins = torch.stack([criterion(threat).margin(classifier(images), y) for images in found.images[0]])
    assert (margins[1:] <= margins[:-1] + 1e-5).all()
    assert (margins[-1] < margins[0]).any()


# Other libraries on the same points


@pytest.fixture(scope="module")
def fifty_more(digits: Any) -> tuple[Tensor, Tensor]:
    return to_unit(digits.test_images[:150]), torch.from_numpy(digits.test_labels[:150])


def _agree(f: Any, y: Tensor, theirs: Tensor, ours: Tensor) -> None:
    """Some points stand, some do not, and the paired interval of the difference lies within MARGIN."""
    right = [(f(images).argmax(1) == y).long().numpy() for images in (theirs, ours)]
    assert 0.05 < right[1].mean() < 0.9, right[1].mean()
    test = paired_test(right[0], right[1], draws=1)
    assert test.low > -MARGIN, test
    assert test.high < MARGIN, test


RADIUS = 0.4  # of digits, at which the network of the tests keeps a part


@pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")
def test_l2_pgd_makes_the_images_of_foolbox_where_the_box_is_far(classifier: Any, fifty_more: Any) -> None:
    import foolbox

    x = 0.4 + 0.2 * fifty_more[0][:40]
    y = classifier(x).argmax(1)
    attack = foolbox.attacks.L2PGD(abs_stepsize=0.1, steps=10, random_start=False)
    theirs = attack.run(foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu"), x, y, epsilon=0.5)
    ours = make_attack("pgd", steps=10, step_size=0.1, random_start=False)(
        classifier, x, y, ThreatModel(0.5, norm="l2")
    )
    assert ((ours - theirs).abs() < 1e-4).float().mean() > 0.99
    assert torch.equal(classifier(ours).argmax(1), classifier(theirs).argmax(1))


@pytest.mark.long  # Its images are those of foolbox in the test above.
@pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")
def test_l2_pgd_leaves_what_foolbox_and_torchattacks_leave(classifier: Any, fifty_more: Any) -> None:
    import foolbox
    import torchattacks

    x, y = fifty_more
    ours = make_attack("pgd", steps=20, step_size=RADIUS / 5)(classifier, x, y, ThreatModel(RADIUS, norm="l2"))
    first = foolbox.attacks.L2PGD(abs_stepsize=RADIUS / 5, steps=20)
    _agree(
        classifier,
        y,
        first.run(foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu"), x, y, epsilon=RADIUS),
        ours,
    )
    second = torchattacks.PGDL2(classifier, eps=RADIUS, alpha=RADIUS / 5, steps=20, random_start=True)
    _agree(classifier, y, second(x, y), ours)


@pytest.mark.long  # Its steps are those of adv-lib in a test below, and its optimum on linear classes is held above.
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_l2_apgd_leaves_what_adv_lib_leaves(loss: str, classifier: Any, fifty_more: Any, adv_lib: ModuleType) -> None:
    x, y = fifty_more
    theirs = adv_lib.apgd(classifier, x, y, RADIUS, 2, n_iter=20, loss_function=loss)
    ours = make_attack("apgd", steps=20, loss=loss)(classifier, x, y, ThreatModel(RADIUS, norm="l2"))
    _agree(classifier, y, theirs, ours)


@pytest.mark.long  # A quarter of a minute; its projection, its rule of step sizes and its optimum are held by other tests here.
def test_l1_apgd_and_pgd_leave_what_apgd_of_adv_lib_leaves(
    classifier: Any, fifty_more: Any, adv_lib: ModuleType
) -> None:
    x, y = fifty_more
    theirs = adv_lib.apgd(classifier, x, y, 3.0, 1, n_iter=30, loss_function="ce", use_large_reps=True)
    threat = ThreatModel(3.0, norm="l1")
    _agree(classifier, y, theirs, make_attack("apgd", steps=30)(classifier, x, y, threat))
    _agree(classifier, y, theirs, make_attack("pgd", steps=30, step_size=1.0)(classifier, x, y, threat))


@pytest.mark.long
def test_targeted_l2_apgd_leaves_what_adv_lib_leaves(classifier: Any, fifty_more: Any, adv_lib: ModuleType) -> None:
    x, y = fifty_more
    right = classifier(x).argmax(1) == y  # of an image that is wrong when clean theirs may seek the true label
    x, y = x[right], y[right]
    theirs = adv_lib.apgd_targeted(classifier, x, y, RADIUS, 2, n_iter=20, num_targets=9)
    ours = make_attack("apgd", steps=20, loss="targeted_dlr", targets=9)(
        classifier, x, y, ThreatModel(RADIUS, norm="l2")
    )
    _agree(classifier, y, theirs, ours)


@pytest.mark.long
def test_l2_square_leaves_what_torchattacks_leaves(classifier: Any, fifty_more: Any) -> None:
    import torchattacks

    x, y = fifty_more
    ours = make_attack("square", queries=1000, schedule=1000)(classifier, x, y, ThreatModel(2 * RADIUS, norm="l2"))
    theirs = torchattacks.Square(classifier, norm="L2", eps=2 * RADIUS, n_queries=1000, n_restarts=1, loss="margin")
    _agree(classifier, y, theirs(x, y), ours)


class EnoughError(Exception):
    """A model has been asked as often as a test needs."""


def test_in_float64_l2_apgd_takes_the_steps_of_adv_lib_where_the_box_is_far(
    classifier: Any, fifty_more: Any, adv_lib: ModuleType
) -> None:
    """As far as its second checkpoint, for the points whose first step raises the loss, as for the max norm."""
    import copy

    reference = importlib.import_module("adv_lib.attacks.auto_pgd")
    x, y, until = 0.4 + 0.2 * fifty_more[0][:12].double(), fifty_more[1][:12], 22 + 19 + 1
    f = copy.deepcopy(classifier).double()
    wanted, seen, values = criterion(ThreatModel(0.5)), ([], []), []  # type: tuple[Any, tuple[list[Tensor], list[Tensor]], list[Tensor]]

    def model(at: int) -> Callable[[Tensor], Tensor]:
        def asked(image: Tensor) -> Tensor:
            if len(seen[at]) == until:
                raise EnoughError
            seen[at].append(image.detach().clone())
            logits: Tensor = f.network((image - f.mean) / f.std)
            return logits

        return asked

    def evaluate(image: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        leaf = image.detach().requires_grad_(True)
        logits = model(0)(leaf)
        value = wanted.loss(logits, y)
        values.append(value.detach())
        return torch.autograd.grad(value.sum(), leaf)[0], value.detach(), wanted.reached(logits, y).double()

    radius = torch.full((len(x),), 0.5, dtype=torch.float64)
    with pytest.raises(EnoughError):
        search(evaluate, EuclideanBall(x, 0.5), x, 100, 0.75)
    with pytest.raises(EnoughError):
        reference._apgd(model(1), x, y, radius, 2, x_init=x, n_iter=100, loss_function="ce")
    alike = (values[1] > values[0]) == (values[1] > 0)
    same = (torch.stack(seen[0]) - torch.stack(seen[1])).abs().flatten(2).amax(2) < 1e-6
    assert alike.float().mean() > 0.5
    assert same.all(0)[alike].float().mean() > 0.8


def test_in_l1_a_search_goes_back_with_a_whole_step_where_its_best_change_became_sparser_and_else_its_step_is_shorter() -> (
    None
):
    """Algorithm 1 of Croce and Hein (2021), its rule at a checkpoint."""
    centre = torch.full((2, 1, 4, 4), 0.5)
    ball = SumBall(centre, 2.0)
    moved = centre.clone()
    moved[:, 0, 0] += 0.1  # four entries of each image
    nothing, gradient = torch.zeros(2), torch.zeros_like(centre)
    seen = _Seen(moved, gradient, nothing, moved, nothing > 0, nothing)
    pace = _Sparsening(ball, seen, steps=10)
    best = moved.clone()
    best[0, 0, 0, 1:] = 0.5  # the first image's best change has one entry now
    seen.image = best
    back = pace.judge(nothing > 0, seen)
    assert back is not None
    assert back.tolist() == [True, False]
    assert pace.size.tolist() == pytest.approx([2.0, 2.0 / 1.5])
    assert pace.entries.tolist() == pytest.approx([1.0, 4 / 1.5])


def test_the_search_in_l2_starts_from_five_by_five_bumps_each_up_or_down() -> None:
    x = torch.full((2, 3, 32, 32), 0.5)
    ball = EuclideanBall(x, 1.0)
    draws = Draws(Key(0, "attack"), [4, 9], 1, 0, torch.device("cpu"))
    moved = SEARCHES["l2"].first(ball, draws) - x
    assert torch.allclose(moved.flatten(1).norm(dim=1), torch.ones(2), atol=1e-5)
    edge = moved.clone()
    edge[..., 1:31, 1:31] = 0  # what five bumps of 6 pixels leave of 32 stays as it is
    assert not edge.any()
    tiles = moved[..., 1:31, 1:31].unfold(2, 6, 6).unfold(3, 6, 6).reshape(-1, 6, 6)
    height = tiles[0].norm()
    ups = [bool(torch.allclose(tile, height * bump(6), atol=1e-5)) for tile in tiles]
    downs = [bool(torch.allclose(tile, -height * bump(6), atol=1e-5)) for tile in tiles]
    assert all(up != down for up, down in zip(ups, downs, strict=True))
    assert 30 < sum(ups) < 120  # of 150, each with a chance of one half
