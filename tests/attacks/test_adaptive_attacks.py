"""Attacks through a random defense: exact gradients in the memory of one chunk, closed forms, and who beats whom."""

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mi_ray import ThreatModel, make_attack, make_defense
from mi_ray.attacks import ATTACKS, Batch
from mi_ray.attacks.auto_pgd import search, towards
from mi_ray.attacks.averaged import Averaged, copy_gradients
from mi_ray.attacks.balls import MaxBall
from mi_ray.attacks.criterion import criterion
from mi_ray.attacks.eot_pgd import attacked, evasion_gradient, evasion_loss, log_mean_gradient, mean_gradient, of_label
from mi_ray.attacks.pgd import StepAttack
from mi_ray.attacks.square import SEARCHES, share_at, side, squares
from mi_ray.config import Sweep
from mi_ray.data import to_unit
from mi_ray.defenses import DefendedClassifier, predict
from mi_ray.randomness import Key
from mi_ray.sample_pool import SamplePool
from mi_ray.study.prepare import prepare

EPSILON = 4 / 255
SOME = 24
SHAPE = (3, 8, 8)
DEFENSES = {
    "mi_ol": {"lam": 0.6},
    "mi_pl": {"lam": 0.5},
    "mi_combined": {"lam_pl": 0.5, "lam_ol": 0.6, "threshold": 0.2},
    "gaussian_noise": {"sigma": 0.1},
}
over_goals = pytest.mark.parametrize("goal", ["untargeted", "targeted"])
over_defenses = pytest.mark.parametrize("defense", list(DEFENSES))


def _alternately(names: Sequence[str], defenses: Sequence[str]) -> Any:
    """Every attack and every defense, in half of their pairs; the other half, which repeats what these show, is long."""
    pairs = [(i, j) for i in range(len(names)) for j in range(len(defenses))]
    cases = [pytest.param(names[i], defenses[j], marks=[pytest.mark.long] if (i + j) % 2 else []) for i, j in pairs]
    return pytest.mark.parametrize(("name", "defense"), cases)


LOSSES = ["mean_cross_entropy", "cross_entropy_of_mean"]


def _behind(f: Any, pool: Any, defense: str = "mi_ol", executions: int = 10, **more: Any) -> DefendedClassifier:
    return DefendedClassifier(f, make_defense(defense, **(DEFENSES[defense] | more)), pool, executions)


def _images(count: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))


def _small_pool(classes: int, shape: tuple[int, ...] = SHAPE, low: float = 0.0, high: float = 1.0) -> SamplePool:
    images = torch.rand(8 * classes, *shape, generator=torch.Generator().manual_seed(3))
    return SamplePool(low + (high - low) * images, torch.arange(8 * classes) % classes)


def _survival(f: Any, pool: Any, images: Tensor, y: Tensor, defense: str = "mi_ol") -> float:
    """The share of right answers of the defense over points and three draws of 20 executions."""
    made = make_defense(defense, **DEFENSES[defense])
    right = [predict(f, made, images, pool, 20, seed).argmax(1) == y for seed in range(3)]
    return torch.stack(right).float().mean().item()


@pytest.fixture(scope="module")
def some(digits: Any) -> tuple[Tensor, Tensor]:
    """The first images of the test split and their labels."""
    return to_unit(digits.test_images[:SOME]), torch.from_numpy(digits.test_labels[:SOME])


# Gradients


@pytest.mark.parametrize("defense", ["mi_ol", "mi_pl", "gaussian_noise"])
@over_goals
def test_the_accumulated_gradient_of_the_mean_cross_entropy_is_that_of_all_executions_at_once(
    defense: str, goal: Any, classifier: Any, pool: Any, batch: Any
) -> None:
    (x, y), threat = batch, ThreatModel(EPSILON, goal)
    model, leaf = _behind(classifier, pool, defense, 12), x.clone().requires_grad_(True)
    with model.bind(Key(0, "attack"), range(8)):
        gradient, value, answer = mean_gradient(model, x, lambda found: criterion(threat).loss(found, y))
        every = model.each(leaf)
    loss = criterion(threat).loss(every, y).mean(0)
    torch.testing.assert_close(gradient, torch.autograd.grad(loss.sum(), leaf)[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(answer, every.detach().logsumexp(0))


@pytest.mark.parametrize("lowered", [0.0, 400.0], ids=["ordinary", "underflowing"])
def test_the_accumulated_gradient_of_the_log_mean_is_exact_also_where_every_probability_underflows(
    lowered: float, linear: Any
) -> None:
    f, x, y = linear(4, SHAPE, scale=0.5), _images(6), torch.zeros(6, dtype=torch.int64)
    f.bias[0] -= lowered
    model, leaf = _behind(f, _small_pool(4), executions=13), x.clone().requires_grad_(True)
    with model.bind(Key(0, "attack"), range(6)):
        gradient, value = log_mean_gradient(model, x, y)
        log_p = of_label(model.each(leaf).double(), y)
    assert bool((log_p < -200).all()) == bool((log_p.float().exp() == 0).all()) == (lowered > 0)
    expected = log_p.logsumexp(0) - torch.log(torch.tensor(13.0))
    torch.testing.assert_close(value, expected.detach().float())
    wanted = torch.autograd.grad(expected.sum(), leaf)[0]
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    assert (gradient != 0).flatten(1).any(1).all()


@pytest.mark.parametrize("loss", [*LOSSES, "evade"])
def test_a_chunk_is_made_only_after_the_gradient_of_the_one_before_is_taken(loss: str, linear: Any) -> None:
    f, events = linear(3, SHAPE), list[str]()

    class Chunked(DefendedClassifier):
        def branch(self, *of: Any) -> DefendedClassifier:
            return self

        def chunks(self, x: Tensor) -> Iterator[Tensor]:
            for scale in (0.5, 0.7, 0.9):
                events.append("made")
                found = F.log_softmax(f(scale * x), dim=1)[None]
                found.register_hook(lambda gradient: events.append("used"))
                yield found

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(list(self.chunks(x))).logsumexp(0)

        def parts(self, x: Tensor) -> Any:
            return F.log_softmax(f(x), dim=1), [F.log_softmax(f(x), dim=1)[None]]

    attack = make_attack("eot_pgd", steps=1, loss=loss, random_start=False)
    assert isinstance(attack, StepAttack)
    with torch.no_grad():
        batch = Batch(_images(2), torch.tensor([0, 1]), ThreatModel(0.1), Key(0, ""), [0, 1])
        next(attack.path(Chunked(f, make_defense("mi_ol", lam=0.6)), batch))
    assert events == ["made", "used"] * 3


def test_the_evasion_gradient_is_that_of_the_loss_with_the_gap(classifier: Any, pool: Any, batch: Any) -> None:
    (x, y), threat = batch, ThreatModel(EPSILON)
    detector, leaf = _behind(classifier, pool, "mi_pl", 12), x.clone().requires_grad_(True)
    with detector.bind(Key(0, "attack"), range(8)):
        gradient = evasion_gradient(detector, x, y, criterion(threat), 2.0)
        undefended, (runs,) = detector.parts(leaf)
    loss = evasion_loss(undefended, runs.exp().mean(0), y, criterion(threat), 2.0)
    p, average, at = undefended.exp(), runs.exp().mean(0), torch.arange(8)
    guess = p.argmax(1)
    torch.testing.assert_close(loss, -p[at, y].log() - 2 * (p[at, guess] - average[at, guess]))
    torch.testing.assert_close(gradient, torch.autograd.grad(loss.sum(), leaf)[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.3])
def test_a_joined_defense_is_differentiated_through_its_smooth_answer_and_recomputed(
    temperature: float, classifier: Any, pool: Any, batch: Any
) -> None:
    x, y = batch
    model, leaf = _behind(classifier, pool, "mi_combined", 5), x.clone().requires_grad_(True)
    aim, plain = attacked(model, "whole", temperature), model.branch("whole", temperature)
    kept: dict[nn.Module, int] = {}
    for module in (plain, aim):
        held = list[int]()
        bind: Any = module.bind
        with (
            bind(Key(0, "attack"), range(8)),
            torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t.numel()) or t, lambda t: t),
        ):
            answer = module(leaf)
        kept[module] = sum(held)
        wanted = torch.autograd.grad(of_label(answer[None], y).sum(), leaf)[0]
    with aim.bind(Key(0, "attack"), range(8)):  # type: ignore[operator]
        torch.testing.assert_close(log_mean_gradient(aim, x, y)[0], wanted, rtol=1e-3, atol=1e-5)
    assert kept[aim] < 0.5 * kept[plain]  # what is left are the pictures themselves, not F's activations
    with plain.bind(Key(0, "attack"), range(8)):
        exact = torch.autograd.grad(of_label(plain(leaf)[None], y).sum(), leaf)[0]
    torch.testing.assert_close(wanted, exact, rtol=1e-3, atol=1e-5)


def test_the_two_losses_of_a_joined_defense_are_one(classifier: Any, pool: Any, batch: Any) -> None:
    found = [
        make_attack("eot_pgd", steps=3, loss=loss).craft(
            _behind(classifier, pool, "mi_combined", 5), *batch, ThreatModel(EPSILON)
        )
        for loss in LOSSES
    ]
    torch.testing.assert_close(found[0].images, found[1].images)


# EOT-PGD


@pytest.mark.parametrize("loss", LOSSES)
@over_goals
def test_without_a_defense_eot_pgd_is_pgd(loss: str, goal: Any, classifier: Any, batch: Any) -> None:
    threat = ThreatModel(EPSILON, goal)
    same = {"steps": [2, 5], "step_size": 1 / 255, "random_start": False, "restarts": 2}
    ours = make_attack("eot_pgd", loss=loss, **same).craft(classifier, *batch, threat)
    plain = make_attack("pgd", **same).craft(classifier, *batch, threat)
    assert ((ours.images - plain.images).abs() < 1e-6).float().mean() > 0.999
    torch.testing.assert_close(ours.loss, plain.loss, rtol=1e-3, atol=1e-3)
    assert torch.equal(ours.success, plain.success)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("draws", ["fresh", "fixed"])
def test_behind_mixup_inference_of_two_linear_classes_it_finds_the_closed_form_optimum(
    loss: str, draws: str, linear: Any
) -> None:
    f, x, y = linear(2, SHAPE), _images(4), torch.tensor([0, 1, 1, 0])
    attack = make_attack("eot_pgd", steps=10, step_size=0.02, loss=loss, draws=draws)
    found = attack(_behind(f, _small_pool(2), executions=4), x, y, ThreatModel(0.05))
    away = (f.weight[1 - y] - f.weight[y]).sign().view_as(x)
    torch.testing.assert_close(found, (x + 0.05 * away).clamp(0, 1), rtol=0, atol=1e-6)


class Asked(nn.Module):
    """A linear model that notes which draws it is bound to."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f, self.asked = f, list[tuple[int, int, int]]()

    @contextmanager
    def bind(self, key: Key, points: Sequence[int]) -> Iterator[None]:
        self.asked.append((key.restart, key.step, key.draw))
        yield

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.f(x)
        return found


@pytest.mark.parametrize(
    ("name", "more", "stepping"),
    [
        ("eot_pgd", {"draws": "fresh", "restarts": 2}, [(r, step, 0) for r in (0, 1) for step in (1, 2, 3)]),
        ("eot_pgd", {"draws": "fixed", "restarts": 2}, [(r, 1, 0) for r in (0, 1) for _ in range(3)]),
        ("apgd", {"restarts": 2}, [(r, step, 0) for r in (0, 1) for step in (1, 2, 3, 4)]),
        ("square", {"queries": 3}, [(0, step, 0) for step in (1, 2, 3)]),
        ("random_noise", {"tries": 3}, [(0, step, 0) for step in (1, 2, 3)]),
        ("spatial", {"k": 3}, [(0, step, 0) for step in (1, 2, 3)]),
    ],
)
def test_steps_draw_afresh_unless_fixed_and_success_is_scored_on_draws_that_no_step_used(
    name: str, more: Any, stepping: Any, linear: Any
) -> None:
    model = Asked(linear(4, SHAPE))
    steps = {"steps": 3} if "steps" in ATTACKS[name].parameters() else {}
    attack = make_attack(name, scoring_draws=2, **steps, **more)
    attack.craft(model, _images(2), torch.tensor([0, 1]), ThreatModel(EPSILON, norm=attack.norms[0]))
    assert [ask for ask in model.asked if ask[1] > 0] == stepping
    scoring = [ask for ask in model.asked if ask[1] == 0]
    assert set(scoring) == {(0, 0, 1), (0, 0, 2)}  # shared by all restarts, so that they are compared on equal draws


@_alternately(["eot_pgd", "apgd", "square", "random_noise", "averaged", "spatial"], list(DEFENSES))
def test_success_is_the_share_of_independent_hard_decisions_that_the_image_fools(
    name: str, defense: str, classifier: Any, pool: Any, batch: Any
) -> None:
    x, y = batch
    model = _behind(classifier, pool, defense, 5)
    short = {key: 2 for key in ("steps", "queries", "tries") if key in ATTACKS[name].parameters()}
    threat = ThreatModel(0.1, norm=ATTACKS[name].norms[0])
    found = make_attack(name, scoring_draws=4, **short).craft(model, x, y, threat, 5, range(8))
    fooled, losses = torch.zeros(8), torch.zeros(8)
    for draw in range(1, 5):
        with model.bind(Key(5, "attack", name, draw=draw), range(8)), torch.no_grad():
            answer = model(found.images[0, 0])
        fooled += (answer.argmax(1) != y).float() / 4
        losses += F.nll_loss(answer, y, reduction="none") / 4
    assert torch.equal(found.success[0, 0], fooled)
    torch.testing.assert_close(found.loss[0, 0], losses, rtol=1e-3, atol=1e-4)


def test_through_mi_ol_it_is_at_least_as_strong_as_pgd_on_the_classifier(classifier: Any, pool: Any, some: Any) -> None:
    (x, y), threat = some, ThreatModel(EPSILON)
    walk = {"steps": 8, "step_size": EPSILON / 3}
    oblivious = make_attack("pgd", **walk)(classifier, x, y, threat)
    adaptive = [
        make_attack("eot_pgd", loss=loss, **walk)(_behind(classifier, pool, executions=6), x, y, threat)
        for loss in LOSSES
    ]
    clean, transferred, *through = (_survival(classifier, pool, images, y) for images in (x, oblivious, *adaptive))
    assert max(through) < transferred < clean


def test_attacking_mi_combined_whole_is_at_least_as_strong_as_attacking_a_branch(
    classifier: Any, pool: Any, some: Any
) -> None:
    x, y = some
    model = _behind(classifier, pool, "mi_combined", 5)
    whole, detector, fallback = (
        _survival(
            classifier,
            pool,
            make_attack("eot_pgd", steps=6, step_size=EPSILON / 3, branch=branch)(model, x, y, ThreatModel(EPSILON)),
            y,
            "mi_combined",
        )
        for branch in ("whole", "detector", "fallback")
    )
    assert whole <= min(detector, fallback) + 0.02


def test_a_branch_of_a_joined_defense_is_attacked_as_if_it_stood_alone(classifier: Any, pool: Any, batch: Any) -> None:
    joined = _behind(classifier, pool, "mi_combined", 5)
    for branch, alone in (("detector", "mi_pl"), ("fallback", "mi_ol")):
        attack = make_attack("eot_pgd", steps=2, branch=branch)
        found, wanted = (
            attack.craft(model, *batch, ThreatModel(EPSILON)).images
            for model in (joined, _behind(classifier, pool, alone, 5))
        )
        assert torch.equal(found, wanted)


def test_evading_a_detector_closes_the_gap_that_pgd_leaves(classifier: Any, pool: Any, some: Any) -> None:
    (x, y), threat, walk = some, ThreatModel(8 / 255), {"steps": 8, "step_size": 3 / 255}
    model, at = _behind(classifier, pool, "mi_pl"), torch.arange(SOME)
    gaps, wrong = [], []
    for images in (
        make_attack("pgd", **walk)(classifier, x, y, threat),
        make_attack("eot_pgd", loss="evade", evade_weight=6.0, **walk)(model, x, y, threat),
    ):
        p, average = classifier(images).softmax(1), predict(classifier, model.defense, images, pool, 30, 9)
        guess = p.argmax(1)
        gaps.append((p[at, guess] - average[at, guess]).mean().item())
        wrong.append((guess != y).float().mean().item())
    assert gaps[1] < gaps[0] - 0.02
    assert wrong[1] > 0.8


def test_evade_stores_its_own_loss_and_needs_a_detector(classifier: Any, pool: Any, batch: Any) -> None:
    (x, y), threat, model = batch, ThreatModel(EPSILON), _behind(classifier, pool, "mi_pl", 5)
    attack = make_attack("eot_pgd", steps=2, loss="evade", scoring_draws=1)
    found = attack.craft(model, x, y, threat, 4)
    with model.bind(Key(4, "attack", "eot_pgd", draw=1), range(8)), torch.no_grad():
        undefended, (runs,) = model.parts(found.images[0, 0])
    wanted = evasion_loss(undefended, runs.exp().mean(0), y, criterion(threat), 2.0)
    torch.testing.assert_close(found.loss[0, 0], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="evades a detector; got a model that no defense stands before"):
        attack.craft(classifier, x, y, threat)


# What holds for every attack behind a defense


@_alternately([name for name in ATTACKS if name != "binarization"], ["mi_ol", "mi_combined"])  # It is of F alone.
def test_an_adaptive_result_does_not_depend_on_the_batch(name: str, defense: str, linear: Any) -> None:
    f, x, y = linear(5, SHAPE, scale=0.05), _images(7), torch.arange(7) % 5
    short = {"steps": 3, "queries": 3, "tries": 3, "restarts": 2, "effort": "quick"}
    attack = make_attack(name, **{key: value for key, value in short.items() if key in ATTACKS[name].parameters()})
    model, points = _behind(f, _small_pool(5), defense, 5), [40, 3, 8, 11, 2, 77, 5]

    def run(part: slice) -> Any:
        return attack.craft(model, x[part], y[part], ThreatModel(EPSILON, norm=attack.norms[0]), 6, points[part])

    whole, parts = run(slice(None)), [run(slice(0, 2)), run(slice(2, 7))]
    images, joined = whole.images, torch.cat([part.images for part in parts], dim=2)
    assert ((images - joined).abs() < 1e-6).float().mean() > 0.999
    torch.testing.assert_close(torch.cat([part.loss for part in parts], dim=2), whole.loss, rtol=1e-3, atol=1e-3)
    assert torch.equal(torch.cat([part.zero_gradients for part in parts], dim=2), whole.zero_gradients)


@pytest.mark.parametrize(
    "name", ["eot_pgd", "evade", "evasion", "apgd", "square", "random_noise", "averaged", "spatial"]
)
def test_the_cost_behind_a_defense_is_counted(name: str, linear: Any) -> None:
    f, passes = linear(4, SHAPE), [0, 0]

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            passes[0] += len(x)
            logits: Tensor = f(x)
            if logits.requires_grad:
                logits.register_hook(lambda gradient: passes.__setitem__(1, passes[1] + len(gradient)))
            return logits

    kind, more = ("eot_pgd", {"loss": "evade"}) if name == "evade" else (name, {})
    short = {"steps": 3, "queries": 3, "tries": 3, "restarts": 2}
    attack = make_attack(kind, **{k: v for k, v in short.items() if k in ATTACKS[kind].parameters()}, **more)
    threat = ThreatModel(0.1, norm=attack.norms[0])
    attack.craft(_behind(Counting(), _small_pool(4), "mi_pl", 5), _images(2), torch.tensor([0, 1]), threat)
    forward, backward = attack.cost((5,))  # N = 5, and one pass for ŷ
    assert passes[0] == 2 * forward
    assert passes[1] == 2 * backward  # ŷ has no gradient, and is not counted


def test_a_zero_gradient_is_counted_and_attacks_without_gradients_say_so(linear: Any) -> None:
    f, x, y = linear(4, SHAPE, scale=0.0), _images(3), torch.tensor([0, 1, 2])
    f.bias.copy_(torch.arange(4.0))  # an answer that no pixel moves
    model = _behind(f, _small_pool(4), executions=2)
    for name, more, wanted in (
        ("eot_pgd", {"steps": [1, 4]}, [1, 4]),
        ("evasion", {"steps": [1, 4]}, [1, 4]),
        ("averaged", {"steps": [1, 4]}, [1, 4]),
        ("apgd", {"steps": 4}, [5]),
        ("square", {"queries": [2, 3]}, [-1, -1]),
        ("random_noise", {"tries": [2, 3]}, [-1, -1]),
    ):
        found = make_attack(name, **more).craft(model, x, y, ThreatModel(EPSILON))
        assert found.zero_gradients[0].T.tolist() == [wanted] * 3, name


@pytest.mark.parametrize("name", ["eot_pgd", "evasion", "averaged", "square", "random_noise"])
def test_an_earlier_stop_behind_a_defense_equals_a_run_of_its_own(
    name: str, classifier: Any, pool: Any, batch: Any
) -> None:
    model, parameter = _behind(classifier, pool, executions=5), ATTACKS[name].stop_parameter or ""
    both, alone = (
        make_attack(name, **{parameter: stops}).craft(model, *batch, ThreatModel(EPSILON)) for stops in ([2, 4], [2])
    )
    assert both.stops == (2, 4)
    assert torch.equal(both.images[:, :1], alone.images)
    assert torch.equal(both.success[:, :1], alone.success)


# The paper's averaged attack


def test_averaged_adds_the_full_step_of_the_copies_unscaled_and_may_leave_the_box(linear: Any) -> None:
    f, y, threat = linear(2, SHAPE), torch.tensor([0, 1]), ThreatModel(0.05)
    x = torch.stack([torch.ones(SHAPE), torch.full(SHAPE, 0.5)])
    model = _behind(f, _small_pool(2, low=0.3, high=0.7), executions=6)
    away = (f.weight[1 - y] - f.weight[y]).sign().view_as(x)
    for step in ("common_sign", "own_sign", "summed"):
        attack = make_attack("averaged", steps=20, step_size=0.02, label="given", step=step)
        found = attack.craft(model, x, y, threat).best(20)
        torch.testing.assert_close(found, x + 0.05 * away, rtol=0, atol=1e-6)
        assert not attack.keeps_box
        assert found.max() > 1.04
    clipped = make_attack("averaged", steps=20, step_size=0.02, label="given", clip=True)
    assert clipped.keeps_box
    torch.testing.assert_close(clipped(model, x, y, threat), (x + 0.05 * away).clamp(0, 1), rtol=0, atol=1e-6)


def test_averaged_clips_each_copy_on_its_own(linear: Any) -> None:
    f, x, y = linear(2, SHAPE), torch.ones(1, *SHAPE), torch.tensor([0])
    grey_and_white = SamplePool(
        torch.cat([torch.ones(9, *SHAPE), torch.full((9, *SHAPE), 0.2)]), [0] * 9 + [1] * 9, foreign=True
    )
    model = _behind(f, grey_and_white, executions=8)
    with model.bind(Key(0, "attack", "averaged"), [0]):
        grey = (model.copies(x) < 0.9).float().mean().item()  # the others are white: no copy of those can rise
    found = make_attack("averaged", steps=9, step_size=0.02, label="given", random_start=False).craft(
        model, x, y, ThreatModel(0.05)
    )
    rising = (f.weight[1] > f.weight[0]).view(SHAPE)
    assert 0 < grey < 1
    torch.testing.assert_close(found.best(9)[0] - 1, torch.where(rising, 0.05 * grey, -0.05), rtol=0, atol=1e-6)


@over_defenses
def test_averaged_keeps_the_ball_whatever_the_copies_are(defense: str, classifier: Any, pool: Any, batch: Any) -> None:
    x, y = batch
    for step in ("common_sign", "own_sign"):
        found = make_attack("averaged", steps=4, step_size=0.02, step=step).craft(
            _behind(classifier, pool, defense, 5), x, y, ThreatModel(EPSILON)
        )
        assert (found.images - x).abs().max() <= EPSILON + 1e-6
        assert (found.images != x).any()


def test_as_released_averaged_never_looks_at_the_label_and_with_the_label_it_is_stronger(
    classifier: Any, pool: Any, some: Any
) -> None:
    (x, y), threat = some, ThreatModel(EPSILON)
    model, walk = _behind(classifier, pool, executions=5), {"steps": 10, "step_size": EPSILON / 4}
    guessing, blind = (make_attack("averaged", **walk)(model, x, labels, threat) for labels in (y, (y + 1) % 10))
    assert torch.equal(guessing, blind)
    given = make_attack("averaged", label="given", **walk)(model, x, y, threat)
    through = make_attack("eot_pgd", **walk)(model, x, y, threat)
    weak, better, strong = (_survival(classifier, pool, images, y) for images in (guessing, given, through))
    assert max(strong, better) < weak


def test_equation_24_follows_the_sum_of_the_probabilities_of_all_copies(classifier: Any, pool: Any, batch: Any) -> None:
    x, y = batch
    model = _behind(classifier, pool, executions=7)
    copies = model.copies(x)
    gradients, log_p = copy_gradients(classifier, copies, y.expand(7, 8))
    total = torch.zeros(8, *x.shape[1:])
    for one in copies:
        leaf = one.clone().requires_grad_(True)
        p = classifier(leaf).softmax(1)[torch.arange(8), y]
        total += torch.autograd.grad(p.sum(), leaf)[0]
    summed = Averaged(step="summed")._direction(gradients, log_p)
    clear = total.abs() > 1e-6 * total.abs().max()
    assert torch.equal(summed.sign()[clear], total.sign()[clear])
    mean = Averaged()._direction(gradients, log_p)
    assert (mean.sign() != summed.sign()).float().mean() > 0.01  # which the mean cross-entropy does not
    leaf = copies.clone().requires_grad_(True)
    log_likelihood = F.log_softmax(classifier(leaf.flatten(0, 1)), dim=1).view(7, 8, 10)[:, torch.arange(8), y]
    each = torch.autograd.grad(log_likelihood.mean(0).sum(), leaf)[0]
    torch.testing.assert_close(mean, each.sum(0), rtol=1e-4, atol=1e-6)
    assert torch.equal(Averaged(step="own_sign")._direction(gradients, log_p), gradients)


def test_averaged_draws_its_copies_once_and_refuses_a_model_without_any(classifier: Any, pool: Any, batch: Any) -> None:
    drawn = []

    class Watched(DefendedClassifier):
        def copies(self, x: Tensor) -> Tensor:
            drawn.append(self._start(x))
            return super().copies(x)

    attack = make_attack("averaged", steps=3, restarts=2)
    attack.craft(Watched(classifier, make_defense("mi_ol", lam=0.6), pool, 5), *batch, ThreatModel(EPSILON), 7)
    assert drawn == [(Key(7, "attack", "averaged", restart=restart), range(8)) for restart in (0, 1)]
    with pytest.raises(ValueError, match="copies that a defense makes; got a model without a defense"):
        attack.craft(classifier, *batch, ThreatModel(EPSILON))


# Auto-PGD


@pytest.mark.parametrize(
    ("loss", "goal"), [("ce", "untargeted"), ("ce", "targeted"), ("dlr", "untargeted"), ("targeted_dlr", "untargeted")]
)
def test_on_linear_classes_auto_pgd_finds_the_closed_form_optimum(loss: str, goal: Any, linear: Any) -> None:
    classes = 2 if loss == "ce" else 4
    f, x, y = linear(classes, SHAPE, scale=0.02), _images(4), torch.tensor([0, 1, 0, 1])
    more = {"targets": 3} if loss == "targeted_dlr" else {}
    found = make_attack("apgd", loss=loss, steps=40, **more)(f, x, y, ThreatModel(0.1, goal), seed=1)
    ideal = [(x + 0.1 * (f.weight[k] - f.weight[y]).sign().view_as(x)).clamp(0, 1) for k in range(classes)]
    if loss == "ce":
        raised = torch.stack(ideal)[1 - y, torch.arange(4)]
        torch.testing.assert_close(found, raised, rtol=0, atol=1e-6)
    else:
        beaten = torch.stack([f(images)[:, k] > f(images)[torch.arange(4), y] for k, images in enumerate(ideal)]).any(0)
        assert torch.equal(f(found).argmax(1) != y, beaten)  # it wins exactly where some class can be raised above y
        assert beaten.any()


def test_auto_pgd_lands_on_an_optimum_inside_the_ball_by_halving_its_step() -> None:
    centre, goal = torch.full((2, 1, 1, 4), 0.5), torch.tensor([0.537, 0.41, 0.5003, 0.577]).view(1, 1, 1, 4)
    seen = []

    def evaluate(image: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(step)
        gap = image - goal
        return -gap, -gap.square().flatten(1).sum(1), torch.zeros(2)

    found = search(evaluate, MaxBall(centre, 0.1), centre.clone(), 100, 0.75).result
    assert (found - goal).abs().max() < 0.005  # the first step is 0.2
    assert seen == list(range(1, 102))


def test_auto_pgd_returns_what_fools_before_what_has_a_higher_loss() -> None:
    centre = torch.full((1, 1, 1, 1), 0.5)

    def evaluate(image: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        fooled = (image.flatten(1)[:, 0] < 0.45).float()
        return torch.ones_like(image), image.flatten(1)[:, 0], fooled

    start = torch.full((1, 1, 1, 1), 0.44)
    assert torch.equal(search(evaluate, MaxBall(centre, 0.1), start, 10, 0.75).result, start)


def test_a_step_size_is_halved_where_the_loss_rose_in_just_that_share_of_the_steps() -> None:
    """Nineteen steps have their first checkpoint after four: at three rises of four it is halved, at four it is not."""
    losses = torch.tensor([[0, 1, 0.5, 1.5, 2], [0, 1, 2, 3, 4]])
    seen: list[Tensor] = []

    def evaluate(image: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(image)
        gradient = torch.full_like(image, float(step >= 5))  # it stands still until the checkpoint
        return gradient, losses[:, min(step, 5) - 1], torch.zeros(2)

    centre = torch.full((2, 1, 1, 1), 0.5)
    search(evaluate, MaxBall(centre, 0.4), centre - 0.4, 19, 0.75)
    # From the lower edge of the ball, three quarters of a step of 0.4 and of 0.8.
    torch.testing.assert_close(seen[5].flatten(), torch.tensor([0.4, 0.7]))


def test_the_ratio_is_its_formula_and_ignores_shift_and_scale() -> None:
    z = torch.tensor([[1.0, 5.0, 2.0, 4.0, -3.0]])
    y, t = torch.tensor([3]), torch.tensor([0])
    free, aimed = ThreatModel(0.1), ThreatModel(0.1, "targeted")
    for logits in (z, 3 * z + 7, F.log_softmax(z, dim=1)):
        assert criterion(free).dlr(logits, y).item() == pytest.approx((5 - 4) / (5 - 2))
        assert criterion(aimed).dlr(logits, t).item() == pytest.approx((1 - 5) / (5 - (2 + 1) / 2))
        assert towards(logits, y, t).item() == pytest.approx((1 - 4) / (5 - (2 + 1) / 2))


@pytest.mark.parametrize(
    ("classes", "loss", "goal", "said"),
    [
        (2, "dlr", "untargeted", "needs at least 3 classes; got 2. Use loss: ce"),
        (3, "dlr", "targeted", "needs at least 4 classes; got 3"),
        (3, "targeted_dlr", "untargeted", "needs at least 4 classes; got 3"),
        (5, "targeted_dlr", "targeted", "chooses its own targets; for a targeted goal use loss: dlr"),
    ],
)
def test_a_ratio_that_has_no_meaning_is_refused(classes: int, loss: str, goal: Any, said: str, linear: Any) -> None:
    x, y = _images(2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=said):
        make_attack("apgd", loss=loss, steps=2, targets=2)(linear(classes, SHAPE), x, y, ThreatModel(0.1, goal))


def test_a_sweep_that_asks_for_such_a_ratio_is_refused_before_any_work() -> None:
    attack = {"apgd": {"loss": "targeted_dlr"}, "epsilon": 0.1, "goal": ["untargeted", "targeted"]}
    written = {
        "name": "study",
        "attacks": [attack],
        "defenses": ["none"],
        "points": {"count": 10},
        "classifiers": [{"name": "f", "architecture": {"cnn_small": {"width": 4}}}],
    }
    with pytest.raises(ValueError, match="chooses its own targets"):
        prepare(Sweep.model_validate(written))


def test_targeted_auto_pgd_aims_at_the_likeliest_other_classes_in_turn(linear: Any) -> None:
    f, x = linear(6, SHAPE), _images(3)
    y = f(x).argmax(1)
    found = make_attack("apgd", loss="targeted_dlr", steps=10, targets=3, restarts=2).craft(f, x, y, ThreatModel(0.002))
    assert found.images.shape[:2] == (6, 1)
    for rank, target in enumerate(f(x).argsort(1, descending=True)[:, 1:4].T):
        reached = torch.stack([towards(f(images), y, target) for images in found.images[:, 0]])
        assert torch.equal(reached.argmax(0) % 3, torch.full((3,), rank))
    with pytest.raises(ValueError, match=r"apgd.targets must be below the number of classes, 6; got 9"):
        make_attack("apgd", loss="targeted_dlr", steps=5).craft(f, x, y, ThreatModel(0.3))


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_auto_pgd_is_at_least_as_strong_as_pgd_of_as_many_steps(loss: str, classifier: Any, some: Any) -> None:
    x, y = some
    for epsilon in (2 / 255, EPSILON):
        threat = ThreatModel(epsilon)
        plain = make_attack("pgd", steps=20, step_size=epsilon / 4)(classifier, x, y, threat)
        found = make_attack("apgd", loss=loss, steps=20)(classifier, x, y, threat)
        left, of = (int((classifier(images).argmax(1) == y).sum()) for images in (found, plain))
        assert left <= of + 1  # of 24; PGD ascends the cross-entropy


def _reference(monkeypatch: Any) -> Any:
    """adv-lib's Auto-PGD; what draws its plots is not needed for it."""
    plots: Any = ModuleType("visdom")
    plots.Visdom = object
    monkeypatch.setitem(sys.modules, "visdom", plots)
    return pytest.importorskip("adv_lib.attacks.auto_pgd")


class EnoughError(Exception):
    """A model has been asked as often as a test needs."""


class InFloat64(nn.Module):
    """F in float64, which notes the images that it is asked about, and raises EnoughError when asked more than so many times."""

    def __init__(self, f: Any, times: int) -> None:
        super().__init__()
        self.f, self.asked, self.times = copy.deepcopy(f).double(), list[Tensor](), times

    def forward(self, x: Tensor) -> Tensor:
        if len(self.asked) == self.times:
            raise EnoughError
        self.asked.append(x.detach().clone())
        logits: Tensor = self.f.network((x - self.f.mean) / self.f.std)
        return logits


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_in_float64_auto_pgd_takes_the_steps_of_adversarial_library(
    loss: str, classifier: Any, some: Any, monkeypatch: Any
) -> None:
    reference, x, y = _reference(monkeypatch), some[0].double(), some[1]
    # The library takes the loss before the first step to be 0, and from the second checkpoint on it no longer sees
    # that the highest loss has risen. So the points are compared for which 0 says the same, and as far as there.
    until = 22 + 19 + 1
    theirs, ours, wanted = InFloat64(classifier, until), InFloat64(classifier, until), criterion(ThreatModel(EPSILON))
    of, values = {"ce": wanted.loss, "dlr": wanted.dlr}[loss], list[Tensor]()

    def evaluate(image: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        leaf = image.detach().requires_grad_(True)
        logits = ours(leaf)
        value = of(logits, y)
        values.append(value.detach())
        return torch.autograd.grad(value.sum(), leaf)[0], value.detach(), wanted.reached(logits, y).double()

    radius = torch.full((SOME,), EPSILON, dtype=torch.float64)
    with pytest.raises(EnoughError):
        reference._apgd(theirs, x, y, radius, float("inf"), x_init=x, n_iter=100, loss_function=loss)
    with pytest.raises(EnoughError):
        search(evaluate, MaxBall(x, EPSILON), x, 100, 0.75)
    alike = (values[1] > values[0]) == (values[1] > 0)
    same = (torch.stack(ours.asked) - torch.stack(theirs.asked)).abs().flatten(2).amax(2) < 1e-9
    assert alike.sum() >= 6
    assert same.all(0)[alike].float().mean() > 0.8  # a gradient of nearly zero may turn the step of a point or two


@pytest.mark.long  # The test above has it take the very steps of that library.
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_auto_pgd_is_as_strong_as_that_of_adversarial_library(
    loss: str, classifier: Any, some: Any, monkeypatch: Any
) -> None:
    reference, (x, y) = _reference(monkeypatch), some
    radius = torch.full((SOME,), EPSILON)
    *_, peak, fooling = reference._apgd(
        classifier, x, y, radius, float("inf"), x_init=x, n_iter=100, loss_function=loss
    )
    ours = make_attack("apgd", loss=loss, steps=100, random_start=False)(classifier, x, y, ThreatModel(EPSILON))
    right = [int((classifier(images).argmax(1) == y).sum()) for images in (ours, fooling)]
    assert abs(right[0] - right[1]) <= 1  # of 24
    if loss == "ce":
        assert F.cross_entropy(classifier(ours), y).item() == pytest.approx(peak.mean().item(), rel=0.01)


# Square attack and random noise


def test_on_two_linear_classes_square_finds_the_closed_form_optimum(linear: Any) -> None:
    shape = (3, 3, 3)
    f, x = linear(2, shape), _images(2, shape)
    y = f(x).argmax(1)
    found = make_attack("square", queries=[100, 800]).craft(f, x, y, ThreatModel(0.001))
    assert torch.equal(f(found.best(800)).argmax(1), y)  # An image that is fooled is left as it is.
    away = (f.weight[1 - y] - f.weight[y]).sign().view_as(x)
    torch.testing.assert_close(found.best(800), (x + 0.001 * away).clamp(0, 1), rtol=0, atol=1e-6)
    assert (found.loss[0, 0] < found.loss[0, 1]).all()


def test_a_square_moves_only_its_pixels_to_the_edge_of_the_ball(classifier: Any, batch: Any) -> None:
    x, y = batch[0] * 0.5 + 0.25, batch[1]
    found = make_attack("square", queries=[1, 2]).craft(classifier, x, y, ThreatModel(EPSILON))
    first, second = found.images[0]
    torch.testing.assert_close((first - x).abs(), torch.full_like(x, EPSILON), rtol=0, atol=1e-6)
    assert torch.equal((first - x).sign(), (first - x).sign()[:, :, :1].expand_as(x))  # vertical stripes
    torch.testing.assert_close((second - x).abs(), torch.full_like(x, EPSILON), rtol=0, atol=1e-6)


def test_a_square_that_would_change_nothing_is_turned_over() -> None:
    x = torch.full((2, 3, 6, 6), 0.5)
    best = torch.stack([x[0] + 0.1, x[1] - 0.1])
    up = torch.tensor([[0.2, 0.2, 0.9, 0.9, 0.9]] * 2)  # place, then a sign for each channel
    proposal = SEARCHES["linf"].proposal(MaxBall(x, 0.1), best, 0.4, up)
    inside = squares(up[:, :2], side(0.4, 6, 6), 6, 6).expand_as(x)
    torch.testing.assert_close(proposal[0], torch.where(inside[0], 0.4, 0.6))
    torch.testing.assert_close(proposal[1], torch.where(inside[1], 0.6, 0.4))


def test_squares_are_where_the_uniforms_put_them_and_never_leave_the_image() -> None:
    inside = squares(torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.5, 0.0]]), 3, 6, 8)
    wanted = torch.zeros(3, 1, 6, 8, dtype=torch.bool)
    wanted[0, :, :3, :3], wanted[1, :, 3:, 5:], wanted[2, :, 2:5, :3] = True, True, True
    assert torch.equal(inside, wanted)


def test_the_sides_follow_the_published_schedule() -> None:
    published = {0: 0.8, 11: 0.4, 51: 0.2, 201: 0.1, 501: 0.05, 1001: 0.025, 2001: 0.0125, 8001: 0.8 / 512}
    for query, share in published.items():
        assert side(share_at(query, 0.8), 100, 100) == round((share * 100 * 100) ** 0.5)
    assert side(1.0, 32, 32) == 31
    assert side(share_at(9000, 0.8), 8, 8) == 1


def test_the_margin_is_negative_exactly_where_the_goal_is_reached() -> None:
    answers, labels = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 5
    for goal in ("untargeted", "targeted"):
        threat: Any = ThreatModel(0.1, goal)  # type: ignore[arg-type]
        assert torch.equal(
            criterion(threat).margin(answers, labels) < 0, criterion(threat).reached(answers, labels) == 1
        )


def test_noise_is_in_the_ball_its_best_never_worsens_and_corners_are_corners(classifier: Any, batch: Any) -> None:
    x, y = batch[0] * 0.5 + 0.25, batch[1]
    for where in ("uniform", "corners"):
        found = make_attack("random_noise", tries=[1, 5, 20], where=where).craft(classifier, x, y, ThreatModel(0.1))
        better = (found.success[0, 1:] > found.success[0, :-1]) | (
            (found.success[0, 1:] == found.success[0, :-1]) & (found.loss[0, 1:] >= found.loss[0, :-1])
        )
        assert better.all()
        moved = (found.images[0, -1] - x).abs()
        assert torch.allclose(moved, torch.full_like(x, 0.1), atol=1e-6) == (where == "corners")
        assert moved.max() <= 0.1 + 1e-6


def test_gradients_beat_queries_and_queries_beat_noise(classifier: Any, pool: Any, some: Any) -> None:
    (x, y), threat = some, ThreatModel(EPSILON)
    model = _behind(classifier, pool, executions=5)
    losses = [
        make_attack(name, **more).craft(model, x, y, threat).loss.mean().item()
        for name, more in (
            ("eot_pgd", {"steps": 10, "step_size": EPSILON / 4}),
            ("square", {"queries": 40}),
            ("random_noise", {"tries": 10}),
        )
    ]
    assert losses[0] > losses[1] > losses[2]
