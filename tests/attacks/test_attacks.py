"""Every registered attack keeps one contract; PGD finds closed-form optima and what foolbox's PGD finds."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage, stats
from torch import Tensor, nn

from mi_ray import ThreatModel, make_attack, make_defense
from mi_ray.attacks import ATTACKS, Adversarial, Attack, Batch, ImagesAttack, OutsideBallError, attack_labels
from mi_ray.attacks.balls import MaxBall
from mi_ray.attacks.images import SCORING_DRAWS
from mi_ray.defenses import DefendedClassifier, predict
from mi_ray.device import NotFiniteError
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool
from mi_ray.study.batches import BlockInput, attack_outputs

EPSILON = 8 / 255
GOALS = ["untargeted", "targeted"]
SHAPE = (3, 8, 8)
# `binarization` runs another attack on a problem of its own: whether that one keeps the contract is asked of it itself.
# One that only chooses among the images of others makes none that could be looked at here; test_transfer.py has it.
OWN = [name for name in ATTACKS if name != "binarization" and not ATTACKS[name].needs_images]
over_attacks = pytest.mark.parametrize("name", OWN)
BALLS = [(name, norm) for name in OWN for norm in ATTACKS[name].norms]
over_balls = pytest.mark.parametrize(("name", "norm"), BALLS)
over_goals = pytest.mark.parametrize("goal", GOALS)


def _cases(sizes: int = 1) -> list[Any]:
    """Every attack in every norm (and size), with one goal here and the other there; the long ones repeat what these show."""
    cases = [(*BALLS[at], goal, size, at) for at in range(len(BALLS)) for goal in range(2) for size in range(sizes)]
    return [
        pytest.param(
            *(name, norm, GOALS[goal], size)[: 3 + (sizes > 1)],
            marks=[pytest.mark.long] if len(ATTACKS[name].norms) > 1 and (at + goal + size) % 2 else [],
        )
        for name, norm, goal, size, at in cases
    ]


# Of images of 3 x 32 x 32: none, a usual radius, and one in which any image can be turned grey; or all rotations and shifts.
RADII: dict[str, tuple[float, float, float]] = {
    "linf": (0.0, EPSILON, 0.5),
    "l2": (0.0, 1.0, 27.7),
    "l1": (0.0, 12.0, 1536.0),
    "spatial": (0.0, 0.5, 1.0),
}


def _example(name: str, length: int = 3, **more: Any) -> Attack:
    """A run of a few steps, or queries; what an attack does not know of `more` is left out."""
    known = ATTACKS[name].parameters()
    count = {"steps": length, "queries": length, "tries": length}
    wanted = {**count, "targets": 2, "effort": "quick", "clip": True, "label": "given"} | more
    return ATTACKS[name].make({key: wanted[key] for key in wanted if key in known})


def _target(name: str, f: Any, shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> nn.Module:
    """What an attack is made against: F, or F behind a defense where it makes no sense without."""
    if not ATTACKS[name].needs_defense:
        return f
    pool = SamplePool(torch.rand(40, *shape, generator=torch.Generator().manual_seed(4)), np.arange(40) % classes)
    return DefendedClassifier(f, make_defense("mi_ol", lam=0.6), pool, executions=5)


def _grey(points: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Random images that also touch both ends of the pixel box."""
    images = torch.rand(points, *shape, generator=torch.Generator().manual_seed(seed))
    images[:, 0, 0, 0], images[:, 0, 0, 1] = 0, 1
    return images


@pytest.fixture(scope="module")
def few(batch: Any) -> tuple[Tensor, Tensor]:
    """Four test images and their labels."""
    x, y = batch
    return x[:4], y[:4]


# The contract


def _by_scipy(image: Tensor, shares: Tensor) -> Tensor:
    """An image [C, H, W] turned anticlockwise by 30 degrees and shifted right and down by a tenth, times these shares."""
    sides = np.array(image.shape[1:])
    angle, shift = np.radians(30 * float(shares[0])), 0.1 * sides * shares[[2, 1]].numpy()
    back = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # rows grow downwards
    middle = (sides - 1) / 2
    made = [
        ndimage.affine_transform(channel, back, middle - back @ (middle + shift), order=1, mode="grid-constant")
        for channel in image.numpy()
    ]
    return torch.from_numpy(np.stack(made))


def _moved(found: Adversarial, x: Tensor, norm: Any) -> Tensor:
    """How far each image has moved, in float64."""
    images = found.best(found.stops[-1])
    if norm == "spatial":
        assert found.shares is not None
        (shares,) = found.shares[:, -1]
        turned = torch.stack([_by_scipy(*each) for each in zip(x, shares, strict=True)])
        torch.testing.assert_close(images, turned, rtol=0, atol=1e-5)
        return shares.double().abs().amax(1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    return torch.linalg.vector_norm((images.double() - x.double()).flatten(1), order, dim=1)


class _Careless(Attack):
    """An attack that does nothing but what it is told to do with what it was handed."""

    name = "careless"

    def __init__(self, does: Callable[[nn.Module, Batch], None]) -> None:
        self.does = does

    def stops(self) -> tuple[int, ...]:
        return (1,)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        return 0, 0

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        self.does(model, batch)
        rows = torch.zeros(1, 1, len(batch))
        return Adversarial(
            batch.x.clone()[None, None], rows, rows, (1,), torch.zeros(1, 1, len(batch), dtype=torch.int64)
        )


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (lambda model, batch: batch.x.detach().mul_(0.5), r"leave batch\.x as it is"),
        (lambda model, batch: batch.labels.add_(1), r"leave batch\.labels as it is"),
        (lambda model, batch: batch.given[1].zero_(), r"leave batch\.given\[1\] as it is"),
        (lambda model, batch: model.train(), "leave the model in evaluation mode"),
    ],
)
def test_what_an_attack_is_handed_stays_as_it_is(does: Any, told: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 3)).eval()
    x, y, threat = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1]), ThreatModel(0.1)
    with pytest.raises(ValueError, match=told):
        _Careless(does).craft(model, x.clone(), y.clone(), threat, given=[x.clone(), x.clone()])
    assert not any(module.training for module in model.modules())
    _Careless(lambda model, batch: None).craft(model, x, y, threat, given=[x])


def test_a_frozen_program_that_says_nothing_of_its_mode_is_attacked() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()))
    x, y = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])
    assert make_attack("pgd", steps=1)(model, x, y, ThreatModel(0.1)).shape == x.shape


def test_a_network_with_branches_of_its_own_is_no_defense(linear: Any) -> None:
    """Attacks know F behind a defense by what it has, and a person's own network may call its layers by the same words."""
    plain, x, y = linear(3, SHAPE), torch.rand(2, *SHAPE), torch.tensor([0, 1])
    forked = nn.Sequential(plain)
    forked.branch = forked.chunks = nn.Identity()  # type: ignore[assignment]
    for name in ("eot_pgd", "square"):
        found = _example(name)(forked, x, y, ThreatModel(EPSILON))
        assert torch.equal(found, _example(name)(plain, x, y, ThreatModel(EPSILON)))


def test_an_answer_that_is_nan_stops_no_search_of_square() -> None:
    asked = list[int]()

    class Sometimes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            asked.append(len(x))
            found = torch.zeros(len(x), 3)
            found[:, 0] = 1
            return found * float("nan") if len(asked) == 2 else found

    x, y = torch.full((2, 3, 8, 8), 0.5), torch.tensor([0, 0])
    with contextlib.suppress(NotFiniteError):
        make_attack("square", queries=20)(Sometimes().eval(), x, y, ThreatModel(0.1))
    assert sum(asked) >= 2 * 20


@pytest.mark.parametrize(("name", "norm", "goal", "size"), _cases(3))
def test_an_attack_stays_in_the_ball_and_in_the_pixel_box(
    name: str, norm: Any, goal: Any, size: int, linear: Any, few: Any
) -> None:
    x, epsilon, f = few[0], RADII[norm][size], linear(10, (3, 32, 32), scale=0.02)
    y = f(x).argmax(1)
    attack, threat = _example(name), ThreatModel(epsilon, goal, norm)
    made = attack.craft(_target(name, f), x, attack_labels(y, 10, threat, 0, range(4)), threat)
    found = made.best(attack.stops()[-1])
    assert found.shape == x.shape
    assert _moved(made, x, norm).max() <= epsilon + 1e-6 * max(1, epsilon)
    assert found.min() >= 0
    assert found.max() <= 1
    assert torch.equal(found, x) == (epsilon == 0)


@pytest.mark.parametrize(("name", "norm", "goal"), _cases())
def test_an_attack_does_harm(name: str, norm: Any, goal: Any, classifier: Any, few: Any) -> None:
    x, y = few
    threat = ThreatModel({"linf": 0.1, "l2": 2.0, "l1": 20.0, "spatial": 1.0}[norm], goal, norm)
    labels = attack_labels(y, 10, threat, 0, range(4))
    attack = _example(name, 10, step_size=min(threat.epsilon / 5, 1.0))
    found = attack.craft(_target(name, classifier), x, labels, threat)
    before, after = (
        F.cross_entropy(classifier(images), labels, reduction="none") for images in (x, found.best(attack.stops()[-1]))
    )
    harm = before - after if goal == "targeted" else after - before
    assert harm.mean() > 0
    assert (found.zero_gradients == -1).all() or (harm > 0).all()  # ten blind tries need not succeed everywhere


@pytest.mark.parametrize(("name", "norm", "goal"), _cases())
def test_splitting_the_points_splits_the_images(name: str, norm: Any, goal: Any, linear: Any) -> None:
    f, x, y, points = _target(name, linear(6, SHAPE), SHAPE, 6), _grey(9), torch.arange(9) % 6, list(range(70, 79))
    threat = ThreatModel(RADII[norm][1], goal, norm)
    whole = _example(name)(f, x, y, threat, points=points)
    near = 1e-5 if norm == "l1" else 1e-6  # A step of 3 in few entries carries the gradient's own rounding into them.
    parts = [_example(name)(f, x[a:b], y[a:b], threat, points=points[a:b]) for a, b in ((0, 1), (1, 4), (4, 9))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=near)


@over_balls
def test_permuted_points_give_permuted_images_and_another_seed_others(
    name: str, norm: Any, classifier: Any, few: Any
) -> None:
    (x, y), order, points = few, torch.tensor([2, 0, 3, 1]), torch.arange(50, 54)
    model, threat = _target(name, classifier), ThreatModel(RADII[norm][1], norm=norm)
    straight, other = (_example(name)(model, x, y, threat, seed=seed, points=points.tolist()) for seed in (1, 2))
    mixed = _example(name)(model, x[order], y[order], threat, seed=1, points=points[order].tolist())
    assert torch.equal(straight[order], mixed)
    assert not torch.equal(straight, other)


@over_attacks
@pytest.mark.usefixtures("unchecked")
def test_labels_are_required(name: str, classifier: Any, batch: Any) -> None:
    attack, x, threat = _example(name), batch[0], ThreatModel(EPSILON, norm=ATTACKS[name].norms[0])
    nothing: Any = None
    with pytest.raises(ValueError, match="needs the true labels y; got None"):
        attack(classifier, x, nothing, threat)
    with pytest.raises(ValueError, match="one label an image; got None"):
        attack.craft(classifier, x, nothing, threat)
    with pytest.raises(ValueError, match="one label an image; got 3"):
        attack.craft(classifier, x, batch[1][:3], threat)


@over_attacks
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "wrong", [lambda x: x * 255, lambda x: x - 0.1, lambda x: x[:, 0]], ids=["above", "below", "three axes"]
)
def test_images_outside_the_pixel_box_are_refused(name: str, wrong: Any, classifier: Any, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"images must be \[B, C, H, W\] in \[0, 1\]; got \["):
        _example(name).craft(classifier, wrong(batch[0]), batch[1], ThreatModel(EPSILON, norm=ATTACKS[name].norms[0]))


@over_balls
def test_the_cost_is_what_an_attack_asks_of_the_classifier(name: str, norm: Any, linear: Any) -> None:
    f, passes = linear(4, SHAPE), [0, 0]

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            passes[0] += len(x)
            logits: Tensor = f(x)
            if logits.requires_grad:
                logits.register_hook(lambda gradient: passes.__setitem__(1, passes[1] + len(gradient)))
            return logits

    attack = _example(name)
    model = _target(name, Counting(), SHAPE, 4)
    threat = ThreatModel(RADII[norm][1], norm=norm)
    attack.craft(model, _grey(5), torch.zeros(5, dtype=torch.int64), threat)
    planned = [5 * cost for cost in attack.cost((5,) if attack.needs_defense else ())]  # N = 5, and ŷ
    if attack.stops_early:
        assert 0 < sum(passes) <= sum(planned)
    else:
        assert passes == planned


def test_what_leaves_the_ball_or_the_box_is_a_bug_and_is_caught() -> None:
    class Escaping(Attack):
        name = "escaping"
        by = 0.0

        def stops(self) -> tuple[int, ...]:
            return (1,)

        def cost(self, passes: int = 1) -> tuple[int, int]:
            return 0, 0

        def run(self, model: Any, batch: Batch) -> Adversarial:
            none = torch.zeros(1, 1, len(batch))
            return Adversarial((batch.x + self.by)[None, None], none, none, (1,), none.long())

    attack, x, y = Escaping(), _grey(2), torch.zeros(2, dtype=torch.int64)
    attack.craft(nn.Identity(), x, y, ThreatModel(EPSILON))
    for by, said in (
        (
            2 * EPSILON,
            r"must stay within epsilon = 0.0\d+ of the clean image in the norm linf; test image [01] is 0.0\d+ away: `batch",
        ),
        (EPSILON, r"must keep pixels in \[0, 1\]; those of test image \d lie in"),
        (-EPSILON, r"must keep pixels in \[0, 1\]; those of test image \d lie in"),
    ):
        Escaping.by = by
        with pytest.raises(OutsideBallError, match=said):
            attack.craft(nn.Identity(), x, y, ThreatModel(EPSILON))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, r"pgd.steps must be .*\[1, 100000\]; got 0"),
        ({"steps": [5, 5]}, r"pgd.steps must be .*distinct.*; got \[5, 5\]"),
        ({"step_size": -1}, r"pgd.step_size must be a number in \[1e-06, 100\]; got -1"),
        ({"restarts": 0}, r"pgd.restarts must be .*; got 0"),
        ({"step": 3}, r"unknown parameter of pgd 'step' \(did you mean 'steps'\?\)"),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_rule_and_the_value(values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_attack("pgd", **values)


# PGD


@over_goals
def test_on_two_linear_classes_pgd_finds_the_closed_form_optimum(goal: Any, linear: Any) -> None:
    f, x, y = linear(2, SHAPE), _grey(6), torch.tensor([0, 1, 0, 1, 1, 0])
    found = make_attack("pgd", steps=20, step_size=EPSILON / 4)(f, x, y, ThreatModel(EPSILON, goal))
    towards = (f.weight[1 - y] - f.weight[y]).sign().view_as(x)
    torch.testing.assert_close(found, (x + EPSILON * towards).clamp(0, 1), rtol=0, atol=1e-6)


def test_one_step_from_the_clean_image_is_the_fast_gradient_sign_method(classifier: Any, batch: Any) -> None:
    x, y = batch
    leaf = x.clone().requires_grad_(True)
    gradient = torch.autograd.grad(F.cross_entropy(classifier(leaf), y, reduction="sum"), leaf)[0]
    found = make_attack("pgd", steps=1, step_size=0.01, random_start=False)(classifier, x, y, ThreatModel(EPSILON))
    torch.testing.assert_close(found, (x + 0.01 * gradient.sign()).clamp(0, 1), rtol=0, atol=1e-7)


def test_the_random_start_is_uniform_in_the_ball_and_in_the_box(linear: Any) -> None:
    attack = make_attack("pgd", steps=1, step_size=1e-6)
    x = torch.full((20, *SHAPE), 0.5)
    x[10:] = 0.0
    moved = attack(linear(3, SHAPE), x, torch.zeros(20, dtype=torch.int64), ThreatModel(0.1)) - x
    assert stats.kstest(moved[:10].flatten(), stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
    assert (moved[10:] <= 1e-6).float().mean() == pytest.approx(0.5, abs=0.05)


def test_an_earlier_stop_of_one_trajectory_equals_a_run_of_its_own(classifier: Any, batch: Any) -> None:
    both = make_attack("pgd", steps=[10, 5], restarts=2).craft(classifier, *batch, ThreatModel(EPSILON))
    assert both.stops == (5, 10)
    for at, steps in enumerate(both.stops):
        alone = make_attack("pgd", steps=steps, restarts=2).craft(classifier, *batch, ThreatModel(EPSILON))
        assert torch.equal(both.images[:, at], alone.images[:, 0])
        assert torch.equal(both.loss[:, at], alone.loss[:, 0])
    assert not torch.equal(both.images[:, 0], both.images[:, 1])


@over_goals
def test_the_stored_loss_is_that_of_the_stored_images(goal: Any, classifier: Any, batch: Any) -> None:
    x, y = batch
    found = make_attack("pgd", steps=[2, 4], restarts=2).craft(classifier, x, y, ThreatModel(EPSILON, goal))
    loss = torch.stack(
        [F.cross_entropy(classifier(images), y, reduction="none") for images in found.images.flatten(0, 1)]
    )
    torch.testing.assert_close(found.loss.flatten(0, 1), -loss if goal == "targeted" else loss)


def test_best_takes_the_most_frequent_success_then_the_highest_loss_then_the_first() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1, 1, 1).expand(4, 1, 3, 1, 1, 1)
    success = torch.tensor([[0.2, 0.4, 0.0], [0.6, 0.4, 0.0], [0.6, 0.2, 0.0], [0.4, 0.0, 0.0]])[:, None]
    loss = torch.tensor([[9.0, 1.0, 2.0], [1.0, 2.0, 2.0], [3.0, 9.0, 1.0], [9.0, 9.0, 2.0]])[:, None]
    best = Adversarial(images, loss, success, (1,), torch.zeros(4, 1, 3, dtype=torch.int64)).best(1)
    assert best.flatten().tolist() == [2.0, 1.0, 0.0]


def test_points_without_any_gradient_are_counted_step_by_step(linear: Any) -> None:
    f = linear(3, SHAPE)

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            bright = (x.flatten(1).mean(1) > 0.5).float()[:, None]  # the output of a dark image does not move
            logits: Tensor = f(x) * bright
            return logits

    x = torch.stack([torch.full(SHAPE, 0.9), torch.full(SHAPE, 0.1)])
    found = make_attack("pgd", steps=[2, 5]).craft(Flat(), x, torch.tensor([0, 1]), ThreatModel(EPSILON))
    assert found.zero_gradients[0].tolist() == [[0, 2], [0, 5]]


def test_the_best_restart_has_the_highest_loss_at_each_stop(classifier: Any, batch: Any) -> None:
    found = make_attack("pgd", steps=[1, 3], restarts=4).craft(classifier, *batch, ThreatModel(0.1))
    for at, stop in enumerate(found.stops):
        best = found.best(stop)
        for point in range(8):
            winner = max(range(4), key=lambda restart: float(found.loss[restart, at, point]))
            assert torch.equal(best[point], found.images[winner, at, point])
    assert len(torch.unique(found.loss[:, 0].argmax(0))) > 1


def test_restarts_are_independent_and_the_first_is_the_same_alone(classifier: Any, batch: Any) -> None:
    three, one = (
        make_attack("pgd", steps=2, restarts=restarts).craft(classifier, *batch, ThreatModel(EPSILON))
        for restarts in (3, 1)
    )
    assert torch.equal(three.images[:1], one.images)
    assert len(torch.unique(three.images.flatten(1), dim=0)) == 3


def test_projection_is_the_nearest_point_of_ball_and_box() -> None:
    centre, x = torch.tensor([0.0, 0.5, 0.5, 0.98]), torch.tensor([-1.0, 0.55, 0.9, 2.0])
    found = MaxBall(centre.view(1, 1, 1, 4), 0.1).projected(x.view(1, 1, 1, 4))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.55, 0.6, 1.0]))


@pytest.mark.filterwarnings("ignore:Please import `gaussian_filter`:DeprecationWarning")
@pytest.mark.parametrize("epsilon", [4 / 255, 16 / 255])
def test_pgd_agrees_with_foolbox(epsilon: float, classifier: Any, digits: Any) -> None:
    import foolbox

    from mi_ray.data import to_unit

    x, y = to_unit(digits.test_images[:30]), torch.from_numpy(digits.test_labels[:30])
    theirs = foolbox.attacks.LinfPGD(abs_stepsize=2 / 255, steps=10, random_start=False).run(
        foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu"), x, y, epsilon=epsilon
    )
    ours = make_attack("pgd", steps=10, step_size=2 / 255, random_start=False)(classifier, x, y, ThreatModel(epsilon))
    assert ((ours - theirs).abs() < 1e-5).float().mean() > 0.99
    right = [(classifier(images).argmax(1) == y).sum().item() for images in (x, ours, theirs)]
    assert right[1] == right[2] < right[0]


# Labels


def test_untargeted_labels_are_the_labels_given() -> None:
    y = torch.tensor([3, 1, 2])
    assert torch.equal(attack_labels(y, 4, ThreatModel(EPSILON), 0, [5, 6, 7]), y)


@pytest.mark.parametrize("classes", [2, 10])
def test_targets_are_uniform_over_the_labels_other_than_the_true_one(classes: int) -> None:
    y = torch.arange(5000) % classes
    found = attack_labels(y, classes, ThreatModel(EPSILON, "targeted"), 0, range(5000))
    assert (found != y).all()
    shift = torch.bincount((found - y) % classes, minlength=classes)
    assert shift[0] == 0
    if classes > 2:
        assert stats.chisquare(shift[1:]).pvalue > 1e-3


def test_targets_are_one_per_point_for_all_attacks_steps_and_epsilons() -> None:
    y, points = torch.arange(6) % 4, [9, 2, 77, 5, 31, 8]
    whole = attack_labels(y, 4, ThreatModel(EPSILON, "targeted"), 3, points)
    narrow = torch.cat(
        [
            attack_labels(y[i : i + 1], 4, ThreatModel("0.5", "targeted", knowledge="adaptive"), 3, points[i : i + 1])
            for i in range(6)
        ]
    )
    assert torch.equal(whole, narrow)
    others = [attack_labels(y, 4, ThreatModel(EPSILON, "targeted"), seed, points).tolist() for seed in range(8)]
    assert len({tuple(other) for other in others}) > 1


@over_attacks
def test_a_targeted_call_works_on_the_drawn_targets(name: str, classifier: Any, few: Any) -> None:
    x, y = few
    threat = ThreatModel(EPSILON, "targeted", ATTACKS[name].norms[0])
    targets = attack_labels(y, 10, threat, 6, range(4))
    attack = _example(name)
    model = _target(name, classifier)
    by_hand = attack.craft(model, x, targets, threat, 6).best(attack.stops()[-1])
    assert torch.equal(attack(model, x, y, threat, seed=6), by_hand)


@pytest.mark.parametrize("which", ["true", "predicted"])
@over_goals
def test_label_guessing_attacks_the_models_own_prediction_where_untargeted(
    which: Any, goal: Any, classifier: Any, batch: Any
) -> None:
    x, points, threat = batch[0], list(range(20, 28)), ThreatModel(EPSILON, goal)
    y = (classifier(x).argmax(1) + torch.tensor([0, 1] * 4)) % 10  # every second image is one that F gets wrong
    found, labels = attack_outputs(
        classifier, make_attack("pgd", steps=2), BlockInput(x, points, 0, 4), y, 10, threat, which
    )
    guessed = which == "predicted" and goal == "untargeted"
    expected = classifier(x).argmax(1) if guessed else attack_labels(y, 10, threat, 0, points)
    assert torch.equal(labels, expected)
    by_hand = [
        make_attack("pgd", steps=2).craft(classifier, x[part], expected[part], threat, 0, points[part]).images
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert torch.equal(found.images, torch.cat(by_hand, dim=2))


# Through a defense


def _through(classifier: Any, pool: Any, batch: Any, moved: int = 0, **more: Any) -> Tensor:
    defended = DefendedClassifier(classifier, make_defense("mi_ol", lam=0.6), pool, executions=5, seed=8)
    for _ in range(moved):
        defended(batch[0])
    return make_attack("pgd", steps=5, step_size=0.02)(defended, *batch, ThreatModel(0.1), **more)


def test_an_attack_through_a_defense_repeats_and_does_not_depend_on_earlier_calls(
    classifier: Any, pool: Any, batch: Any
) -> None:
    first = _through(classifier, pool, batch)
    assert torch.equal(first, _through(classifier, pool, batch, moved=3))
    assert not torch.equal(first, _through(classifier, pool, batch, seed=1))


def test_an_attack_through_a_defense_follows_the_points(linear: Any, pool: Any, batch: Any) -> None:
    f = linear(10, (3, 32, 32), scale=0.02)
    whole = _through(f, pool, batch, points=range(8))
    x, y = batch
    parts = [_through(f, pool, (x[part], y[part]), points=range(8)[part]) for part in (slice(0, 3), slice(3, 8))]
    assert ((torch.cat(parts) - whole).abs() < 1e-6).float().mean() > 0.999


def test_an_attack_through_a_defense_harms_the_defense(classifier: Any, pool: Any, batch: Any) -> None:
    found, y = _through(classifier, pool, batch), batch[1]
    clean, attacked = (
        predict(classifier, make_defense("mi_ol", lam=0.6), x, pool, executions=30, seed=99)[torch.arange(8), y]
        for x in (batch[0], found)
    )
    assert (attacked < clean).float().mean() > 0.8


def test_each_step_and_restart_draws_afresh_by_key(linear: Any) -> None:
    f, asked = linear(3, SHAPE), list[tuple[int, int, tuple[int, ...]]]()

    class Random(nn.Module):
        @contextmanager
        def bind(self, key: Key, points: Sequence[int]) -> Iterator[None]:
            asked.append((key.restart, key.step, tuple(points)))
            noise = Draws(key, points, 1, 0, torch.device("cpu")).uniform(1)
            assert noise.shape == (1, 2, 1)
            yield

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = f(x)
            return logits

    attack = make_attack("pgd", steps=[1, 3], restarts=2)
    attack.craft(Random(), _grey(2), torch.tensor([0, 1]), ThreatModel(EPSILON), points=[4, 5])
    assert sorted(asked) == [(restart, step, (4, 5)) for restart in range(2) for step in range(4)]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"epsilon": 2}, r"epsilon must be in \[0, 1\] .*; got 2"),
        ({"epsilon": -0.1}, r"epsilon must be in \[0, 1\] .*; got -0.1"),
        ({"epsilon": -0.1, "norm": "l2"}, r"epsilon must be at least 0; got -0.1"),
        ({"epsilon": "8/0"}, r"epsilon must be a finite number or a fraction such as 8/255; got '8/0'"),
        ({"epsilon": 0.1, "goal": "both"}, r"goal must be one of untargeted, targeted; got 'both'"),
        ({"epsilon": -0.1, "norm": "l1"}, r"epsilon must be at least 0; got -0.1"),
        ({"epsilon": 0.1, "norm": "l0"}, r"norm must be one of linf, l2, l1, spatial; got 'l0'"),
        ({"epsilon": 0.1, "knowledge": "all"}, r"knowledge must be one of oblivious, black_box, adaptive; got 'all'"),
    ],
)
def test_a_wrong_threat_model_is_refused_with_the_rule_and_the_value(values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ThreatModel(**values)


def test_epsilon_may_be_a_fraction() -> None:
    assert ThreatModel("8/255") == ThreatModel(8 / 255)


def test_labels_may_be_an_array_and_points_must_name_each_image(linear: Any) -> None:
    model, x, y = linear(2, SHAPE), torch.rand(4, *SHAPE), np.array([0, 1, 0, 1])
    attack = ATTACKS.make("pgd", {"steps": 2})
    assert torch.equal(attack(model, x, y, ThreatModel(0.1)), attack(model, x, torch.from_numpy(y), ThreatModel(0.1)))
    with pytest.raises(ValueError, match="points must name each image once; got 3 points for 4 images"):
        attack(model, x, y, ThreatModel(0.1), points=[1, 2, 3])


@pytest.mark.parametrize("parts", [(), (10,), (10, 10)])
def test_the_passes_of_the_least_attack_are_counted_as_those_of_pgd_and_the_draws_that_score_it(
    parts: tuple[int, ...],
) -> None:
    class Steps(ImagesAttack):
        name = "steps"
        passes = (4, 4)

        def images(self, model: Any, batch: Any) -> Tensor:
            return batch.x  # type: ignore[no-any-return]

    assert Steps().cost(parts)[1] == make_attack("pgd", steps=4).cost(parts)[1]
    call = 1 + sum(parts)  # of F, for its own prediction, and of all executions
    assert Steps().cost(parts)[0] == (4 + (SCORING_DRAWS if parts else 1)) * call


def test_pgd_takes_gradients_where_they_are_switched_off(classifier: Any, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    pgd, threat = make_attack("pgd", steps=2, step_size=0.01), ThreatModel(0.03)
    with torch.no_grad():
        found = pgd(classifier, x, y, threat)
    torch.testing.assert_close(found, pgd(classifier, x, y, threat))


def test_a_default_dtype_of_the_callers_changes_no_number_that_is_drawn() -> None:
    key = Key(0, "evaluate", "x")

    def drawn() -> list[Tensor]:
        draws = Draws(key, range(3), 5, 0, torch.device("cpu"))
        return [draws.uniform(2), draws.normal_images((1, 2, 2))]

    before = drawn()
    torch.set_default_dtype(torch.float64)
    try:
        assert all(torch.equal(one, other) for one, other in zip(before, drawn(), strict=True))
    finally:
        torch.set_default_dtype(torch.float32)
