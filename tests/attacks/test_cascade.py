"""The cascade and what it is made of: each stage on the points that stand, images kept by draws that report nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from helpers.studies import compute, derived, tiny
from torch import Tensor, nn

from mi_ray import ThreatModel, make_attack, make_defense
from mi_ray.attacks import ATTACKS, Adversarial, Attack, Batch
from mi_ray.attacks.cascade import Cascade, Stage, of_stage
from mi_ray.attacks.eot_pgd import answer_gradient, log_mean_gradient, mean_answer
from mi_ray.attacks.square import Square, share_at
from mi_ray.data import to_unit
from mi_ray.defenses import DefendedClassifier, RandomTransform
from mi_ray.defenses.base import Executions
from mi_ray.parameters import integer
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool

EPSILON = 0.06


def behind(f: Any, pool: Any, name: str = "mi_ol", executions: int = 4, **values: Any) -> DefendedClassifier:
    """F behind a defense."""
    return DefendedClassifier(f, make_defense(name, **(values or {"lam": 0.6})), pool, executions)


def batch_of(x: Tensor, y: Tensor, epsilon: float = EPSILON) -> Batch:
    return Batch(x, y, ThreatModel(epsilon), Key(0, "attack", "cascade"), range(len(x)))


@dataclass(frozen=True)
class Told(Attack):
    """PGD that notes which points it is handed."""

    name: ClassVar[str] = "told"
    handed: ClassVar[list[list[int]]] = []
    steps: int = integer("steps", 3, low=1)

    def stops(self) -> tuple[int, ...]:
        """Its steps."""
        return (self.steps,)

    def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
        """None."""
        return 0, 0

    def run(self, model: nn.Module, batch: Batch) -> Adversarial:
        """PGD."""
        Told.handed.append(list(batch.points))
        return make_attack("pgd", steps=self.steps, step_size=batch.epsilon / 8).run(model, batch)


@dataclass(frozen=True)
class Noted(Cascade):  # type: ignore[misc]
    """A cascade of two stages that note their points."""

    def stages(self, threat: ThreatModel, classes: int, parts: int) -> Iterator[Stage]:
        """PGD twice."""
        return (Stage(Told(steps)) for steps in (1, 8))


def test_each_stage_is_handed_the_points_that_stand_and_none_that_is_wrong_when_clean(
    classifier: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    y = y.clone()
    y[0] = (classifier(x[:1]).argmax(1) + 1) % 10  # wrong when clean
    Told.handed.clear()
    found = Noted().run(classifier, batch_of(x, y, 0.035))
    first, second = Told.handed
    assert 0 not in first
    assert set(second) <= set(first)
    assert len(second) < len(first)
    assert torch.equal(found.images[0, 0, 0], x[0])
    fooled = classifier(found.images[0, 0]).argmax(1) != y
    assert torch.equal(found.success[0, 0] == 1, fooled)


@dataclass(frozen=True)
class OnTrial(Cascade):  # type: ignore[misc]
    """PGD that is tried with so many steps, and run with more where those improve an image."""

    tried: ClassVar[int] = 0

    def stages(self, threat: ThreatModel, classes: int, parts: int) -> Iterator[Stage]:
        """The trial and what it is of, after a stage of its own."""
        yield Stage(Told(8))
        yield Stage(Told(self.tried), trial=True)
        yield Stage(Told(12))
        yield Stage(Told(2))


@pytest.mark.parametrize("tried", [1, 10])
def test_what_is_on_trial_is_run_on_the_points_alone_whose_image_the_trial_improved(
    tried: int, classifier: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    Told.handed.clear()
    OnTrial.tried = tried
    OnTrial().run(classifier, batch_of(x, y, 0.008))
    first, trial, *after = Told.handed
    if tried == 1:  # One step is worse than eight, everywhere: nothing but the last stage follows.
        assert after == [trial]
    else:
        whole, last = after
        assert len(whole) > 0
        assert set(whole) <= set(trial) <= set(first)
        assert set(last) <= set(trial)


@pytest.mark.parametrize("name", ["none", "mi_ol", "mi_combined"])
def test_the_cascade_leaves_no_more_than_its_first_stage_and_costs_no_more_than_it_says(
    name: str, classifier: Any, pool: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    values = {"mi_combined": {"lam_pl": 0.5, "lam_ol": 0.6, "threshold": 0.1}}.get(name, {})
    model = classifier if name == "none" else behind(classifier, pool, name, **values)
    counted: list[int] = []
    hook = classifier.register_forward_pre_hook(lambda _, given: counted.append(len(given[0])))
    cascade = make_attack("cascade", effort="quick")
    found = cascade.craft(model, x, y, ThreatModel(EPSILON), 0, range(len(x)))
    hook.remove()
    parts = () if name == "none" else tuple(5 for _ in model.defense.components())
    assert sum(counted) <= cascade.cost(parts)[0] * len(x)
    single = make_attack("eot_pgd", steps=20, step_size=EPSILON / 4).craft(
        model, x, y, ThreatModel(EPSILON), 0, range(len(x))
    )
    answers = [F.one_hot(model(images).argmax(1), 10) for images in (found.best(1), single.best(20))]
    left = [float((each.argmax(1) == y).float().mean()) for each in answers]
    assert left[0] <= left[1] + 0.2


def test_more_scoring_draws_settle_a_point_by_more_of_them_and_cost_what_is_said(
    classifier: Any, pool: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    model = behind(classifier, pool, "gaussian_noise", sigma=0.2)
    few, many = Cascade(effort="quick"), Cascade(effort="quick", scoring_draws=10)
    kept = {made: made.craft(model, x, y, ThreatModel(0.02), 0, range(len(x))) for made in (few, many)}
    for made, found in kept.items():
        draws = made.scoring_draws
        torch.testing.assert_close(found.success * draws, (found.success * draws).round())
    assert (kept[many].success == 1).sum() < (kept[few].success == 1).sum()  # Fewer by luck.
    assert many.cost_of_an_image((5,)) == 2 * few.cost_of_an_image((5,))
    images = len(few.all_stages(ThreatModel(0.0), 10, 1)) + 1  # one of each stage, and the clean one
    assert many.cost((5,))[0] - few.cost((5,))[0] == images * 5 * 6
    # What was made before it could be chosen keeps its key.
    assert "scoring_draws" not in few.values()
    assert many.values()["scoring_draws"] == 10


def test_images_that_are_handed_in_are_tried_before_anything_is_computed(
    classifier: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    strong = make_attack("pgd", steps=20, step_size=0.01)(classifier, x, y, ThreatModel(EPSILON))
    fooled = classifier(strong).argmax(1) != y
    assert fooled.any()
    Told.handed.clear()
    given = replace(batch_of(x, y), given=[x, strong])
    found = Noted().run(classifier, given)
    assert not set(Told.handed[0] if Told.handed else []) & set(torch.nonzero(fooled)[:, 0].tolist())
    assert torch.equal(
        found.images[0, 0][fooled], torch.where((classifier(x).argmax(1) != y)[:, None, None, None], x, strong)[fooled]
    )


def test_at_epsilon_0_the_clean_images_come_back(classifier: Any, pool: Any, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    found = make_attack("cascade", effort="quick").craft(behind(classifier, pool), x, y, ThreatModel(0.0))
    assert torch.equal(found.images[0, 0], x)


def test_the_stages_of_each_effort_and_defense() -> None:
    def names(effort: Any, parts: int) -> list[str]:
        return [stage.attack.name for stage in Cascade(effort=effort).stages(ThreatModel(0.1), 10, parts)]

    assert names("quick", 0) == ["eot_pgd", "apgd"]
    assert names("standard", 1) == ["eot_pgd", "eot_pgd", "apgd", "apgd", "apgd", "square", "square"]
    assert names("standard", 2)[1:4] == ["eot_pgd"] * 3  # whole, fallback, detector
    assert {stage.attack.name for stage in Cascade().stages(ThreatModel(0.1), 3, 0)} == {"eot_pgd", "apgd", "square"}
    # What a quick cascade computes did not change when Square got a trial, and so its key must not.
    assert [Cascade(effort=effort).revision for effort in ("quick", "standard", "thorough")] == [2, 3, 3]
    once, every = Cascade(effort="thorough"), ThreatModel(0.1)
    for cascade, most in ((Cascade(), 1000), (once, 5000)):  # a search by queries, after a trial with a fifth of them
        searches = [stage.attack for stage in cascade.stages(every, 10, 0) if isinstance(stage.attack, Square)]
        assert [search.queries for search in searches] == [(most // 5,), (most,)]
    assert len(once.all_stages(every, 10, 0)) == 2 * len(list(once.stages(every, 10, 0)))
    towards = [stage.attack for stage in Cascade().stages(ThreatModel(0.1, "targeted"), 10, 0)]
    assert all(getattr(attack, "loss", "") != "targeted_dlr" for attack in towards)


def test_the_gradient_of_any_loss_of_the_mean_answer_is_exact(
    classifier: Any, pool: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    model, key = behind(classifier, pool, executions=7), Key(0, "attack")

    def loss(log_p: Tensor) -> Tensor:
        top = log_p.topk(3, 1).values
        return (top[:, 0] - log_p.gather(1, y[:, None])[:, 0]) / (top[:, 0] - top[:, 2] + 0.1)

    leaf = x.clone().requires_grad_(True)
    with model.bind(key, range(len(x))):
        whole = model(leaf)
    expected = torch.autograd.grad(loss(whole).sum(), leaf)[0]
    with model.bind(key, range(len(x))):
        gradient, value, answer = answer_gradient(model, x, loss)
    torch.testing.assert_close(answer, whole.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value, loss(whole).detach(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-4 * float(expected.abs().max()))
    with model.bind(key, range(len(x))):
        of_label = log_mean_gradient(model, x, y)[0]
    with model.bind(key, range(len(x))):
        same = answer_gradient(model, x, lambda log_p: log_p.gather(1, y[:, None])[:, 0])[0]
    torch.testing.assert_close(same, of_label, rtol=1e-2, atol=1e-4 * float(of_label.abs().max()))
    torch.testing.assert_close(mean_answer(classifier, x), F.log_softmax(classifier(x), 1), rtol=1e-4, atol=1e-4)


def test_square_leaves_fooled_images_alone_and_its_schedule_follows_its_budget(
    classifier: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    asked: list[int] = []
    hook = classifier.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    found = Square(queries=(10, 60), schedule=60).run(classifier, batch_of(x, y, 0.2))
    hook.remove()
    *queries, _, _ = asked  # the last two score the stops
    assert queries[0] == len(x)
    assert queries == sorted(queries, reverse=True)
    assert queries[-1] < len(x)
    early, late = (classifier(images).argmax(1) != y for images in found.images[0])
    assert bool((late | ~early).all())
    assert torch.equal(found.images[0, 0][early], found.images[0, 1][early])
    whole = [share_at(query, 0.8) for query in range(0, 10_000, 100)]
    assert [share_at(query, 0.8, 100) for query in range(100)] == whole


def test_momentum_adds_up_the_gradients_of_all_steps(classifier: Any, batch: tuple[Tensor, Tensor]) -> None:
    x, y = batch
    values: dict[str, Any] = {"steps": 4, "step_size": 0.01, "random_start": False}
    found = make_attack("momentum", **values)(classifier, x, y, ThreatModel(EPSILON))
    image, total = x, torch.zeros_like(x)
    for _ in range(4):
        leaf = image.clone().requires_grad_(True)
        gradient = torch.autograd.grad(F.cross_entropy(classifier(leaf), y, reduction="sum"), leaf)[0]
        total = total + gradient / gradient.abs().flatten(1).sum(1)[:, None, None, None]
        image = (image + 0.01 * total.sign()).clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
    assert (found - image).abs().max() < 0.021  # a sign may turn where a sum is next to nothing
    assert float(((found - image).abs() < 1e-6).float().mean()) > 0.999
    plain = make_attack("momentum", **values, decay=0.0)(classifier, x, y, ThreatModel(EPSILON))
    pgd = make_attack("pgd", **values)(classifier, x, y, ThreatModel(EPSILON))
    assert float(((plain - pgd).abs() < 1e-6).float().mean()) > 0.999


@dataclass(frozen=True)
class Rounding(RandomTransform):
    """A rounding that hides the gradient, and names what stands for it."""

    name: ClassVar[str] = "rounding"
    named: ClassVar[bool] = True

    def transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor:
        """[5, B, C, H, W], shifted and rounded."""
        return ((x + 0.1 * draws.uniform(1)[..., None, None]) * 15).round() / 15

    def backward_transform(self, x: Tensor, draws: Draws, predicted: Tensor, pool: SamplePool | None) -> Tensor | None:
        """The shift alone."""
        return x + 0.1 * draws.uniform(1)[..., None, None] if self.named else None

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """None."""
        return {}


@dataclass(frozen=True)
class Hidden(Rounding):
    """The same without a word of it."""

    named: ClassVar[bool] = False


def test_a_defense_that_hides_its_gradient_may_name_a_backward_pass(
    classifier: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    left = {}
    for kind in (Rounding(), Hidden()):
        model: nn.Module = DefendedClassifier(classifier, kind, None, 5)
        attack = make_attack("eot_pgd", steps=10, step_size=0.01, random_start=False)
        images = attack(model, x, y, ThreatModel(EPSILON))
        left[type(kind).__name__] = float((model(images).argmax(1) == y).float().mean())
        moved = (images - x).abs().max()
        assert (moved > 0) == kind.named
    assert left["Rounding"] < left["Hidden"]
    with torch.no_grad():  # What is answered is the rounding itself.
        executed = Executions(Rounding(), None, Key(0, "x"), range(len(x)), 5)
        copies = next(executed.copies(x, y))
    torch.testing.assert_close(copies * 15, (copies * 15).round())


@dataclass(frozen=True)
class Masked(Cascade):  # type: ignore[misc]
    """PGD, Square on trial, and a stage that notes on which points the trial was better."""

    def stages(self, threat: ThreatModel, classes: int, parts: int) -> Iterator[Stage]:
        """Few steps and few queries."""
        yield Stage(make_attack("eot_pgd", steps=5, step_size=threat.epsilon / 4))
        yield Stage(Square(queries=(40,), schedule=40, scoring_draws=1), trial=True)
        yield Stage(Told(1))


def test_where_gradients_are_masked_a_search_by_queries_is_not_given_up_after_its_trial(
    classifier: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    gone_on = {}
    for kind in (Rounding(), Hidden()):
        Told.handed.clear()
        Masked().run(DefendedClassifier(classifier, kind, None, 5), batch_of(x, y, 0.03))
        gone_on[type(kind).__name__] = sum(map(len, Told.handed))
    assert gone_on["Hidden"] > gone_on["Rounding"]


def test_attacks_say_what_they_are() -> None:
    without = {name for name in ATTACKS if not ATTACKS[name].follows_gradients}
    assert without == {"square", "random_noise", "spatial", "transfer"}
    assert {name for name in ATTACKS if ATTACKS[name].takes_images} == {"cascade", "transfer"}
    assert {name for name in ATTACKS if ATTACKS[name].needs_images} == {"transfer"}
    assert {name for name in ATTACKS if ATTACKS[name].stops_early} == {"cascade", "square"}


def test_who_may_fix_the_draws_or_counts_every_iterate_is_at_least_as_successful(
    classifier: Any, pool: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    model = behind(classifier, pool, "gaussian_noise", 3, sigma=0.3)
    made = make_attack("fixed_randomness", steps=8)
    found = made.craft(model, x, y, ThreatModel(EPSILON, knowledge="adaptive"))
    fixed, counted = found.success[:, 0]
    assert set(fixed.tolist()) | set(counted.tolist()) <= {0.0, 1.0}
    with model.bind(Key(0, "attack", "fixed_randomness").at(step=1), range(len(x))):
        assert torch.equal((model(found.images[0, 0]).argmax(1) != y).float(), fixed)
    with model.bind(Key(0, "attack", "fixed_randomness").at(step=9), range(len(x))):
        last = (model(found.images[1, 0]).argmax(1) != y).float()
    assert bool((counted >= last).all())


def test_every_stage_and_every_round_begins_at_a_point_of_its_own(
    classifier: Any, batch: tuple[Tensor, Tensor]
) -> None:
    x, y = batch
    starts = [of_stage(batch_of(x, y), number).random_start() for number in range(3)] + [batch_of(x, y).random_start()]
    assert len({tuple(start.flatten().tolist()) for start in starts}) == 4


@pytest.mark.parametrize("defense", [{"mi_ol": {"lam": 0.5}}, {"random_rotation": {"degrees": 10}}])
def test_images_are_offered_to_no_point_where_none_stands(defense: Any, tmp_path: Path) -> None:
    one = tiny(
        tmp_path,
        points={"count": 6},
        batch=1,
        checks="cheap",
        executions=1,
        draws=1,
        attacks=[
            {
                "cascade": {"effort": "quick"},
                "epsilon": 0.05,
                "knowledge": "adaptive",
                "images": [{"pgd": {"steps": 2}}],
            }
        ],
        defenses=[defense],
    )
    assert compute(one, 6) > 0
    assert {row["state"] for row in derived(one)} == {"done"}


def test_another_version_of_an_attack_within_another_asks_for_another_version_of_that() -> None:
    """Their keys have no word of what they run: whoever raises a version here raises `Cascade`'s and `Reference`'s, and these."""
    within = {name: ATTACKS[name].version for name in ("eot_pgd", "apgd", "square")}
    assert within == {"eot_pgd": 2, "apgd": 3, "square": 3}
    assert {name: ATTACKS[name].version for name in ("cascade", "reference")} == {"cascade": 2, "reference": 2}


def test_its_bound_holds_for_a_batch_of_one_point_that_no_stage_settles(classifier: Any, digits: Any) -> None:
    cascade = make_attack("cascade", effort="quick")
    x = to_unit(digits.test_images[:20])
    label = classifier(x).argmax(1)
    at = int(classifier(x).softmax(1).amax(1).argmax())
    classifier.passes.take()
    found = cascade.craft(classifier, x[at : at + 1], label[at : at + 1], ThreatModel(1e-6), 0, [at])
    forward, backward = classifier.passes.take()
    assert float(found.success[0, 0, 0]) == 0
    assert (forward, backward) == cascade.cost()
