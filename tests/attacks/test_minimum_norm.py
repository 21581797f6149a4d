"""FMN: distances against closed forms and adv-lib, its curve against attacks of fixed radii, and one run for every epsilon."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.plans import planned, planner
from helpers.studies import Tiny, finish, problems_in, tiny
from helpers.sweeps import classifier as entry
from torch import Tensor, nn

from mi_ray import ThreatModel, make_attack
from mi_ray.attacks.balls import BALLS
from mi_ray.attacks.base import Batch
from mi_ray.attacks.minimum_norm import _Nearest
from mi_ray.classifiers import weights_bytes
from mi_ray.data import to_unit
from mi_ray.figures import epsilon_curve
from mi_ray.figures.names import Names
from mi_ray.plan.work import Inputs
from mi_ray.randomness import Key
from mi_ray.store.read import read_cells, read_records
from mi_ray.threat_model import MEASURES, NORMS

SHAPE = (3, 8, 8)
GRIDS = {"linf": (0.005, 0.01, 0.02, 0.03), "l2": (0.15, 0.3, 0.5, 0.8), "l1": (1.0, 2.0, 4.0, 8.0)}
over_norms = pytest.mark.parametrize("norm", NORMS)


def _distances(found: Tensor, x: Tensor, norm: Any, fooled: Tensor) -> Tensor:
    """How far the images that fool are from the clean ones; infinite for the others."""
    return torch.where(fooled, BALLS[norm].distance(found - x), torch.inf)


def _fill(lead: Tensor, slope: Tensor, room: Tensor) -> Tensor:
    """How far in L1 images must move for a linear function to rise by `lead`: the steepest pixels go to their ends first."""
    order = slope.flatten(1).argsort(dim=1, descending=True)
    slope, room = slope.flatten(1).gather(1, order), room.flatten(1).gather(1, order)
    left = (lead[:, None] - ((slope * room).cumsum(1) - slope * room)).clamp_min(0)
    return torch.minimum(left / slope, room).sum(1)


def _everything(norm: Any, x: Tensor, goal: Any = "untargeted") -> ThreatModel:
    return ThreatModel(MEASURES[norm].diameter(x[0].numel()), goal, norm)


# Distances


@over_norms
@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
def test_on_two_linear_classes_the_distance_is_the_margin_over_the_dual_norm(norm: Any, goal: Any, linear: Any) -> None:
    f = linear(2, SHAPE)
    x = 0.4 + 0.2 * torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0))  # the box is far
    y = f(x).argmax(1)
    found = make_attack("minimum_norm", steps=60)(f, x, y, _everything(norm, x, goal))
    away = (f.weight[1] - f.weight[0]).view(SHAPE)
    lead = (f(x)[:, 1] - f(x)[:, 0]).abs()
    wanted = lead / {"linf": away.abs().sum(), "l2": away.norm(), "l1": away.abs().max()}[norm]
    if norm == "l1":  # in which a pixel meets its end soon, and the next steepest goes on
        up = (away > 0) == (y == 0)[:, None, None, None]
        wanted = _fill(lead, away.abs().expand_as(x), torch.where(up, 1 - x, x))
    moved = _distances(found, x, norm, f(found).argmax(1) != y)
    assert (moved >= wanted * (1 - 1e-4)).all()
    assert (moved <= 1.01 * wanted + 1e-5).all(), moved / wanted


def test_at_the_end_of_the_box_the_distance_is_that_of_the_nearest_image_that_there_is(linear: Any) -> None:
    """The smallest L2 radius whose best image reaches the goal, found by a bisection over `farthest`."""
    from mi_ray.attacks.balls import farthest

    f, y = linear(2, SHAPE), torch.zeros(6, dtype=torch.int64)
    x = (1.5 * torch.rand(6, *SHAPE, generator=torch.Generator().manual_seed(0)) - 0.25).clamp(0, 1)
    away = (f.weight[1] - f.weight[0]).view(SHAPE)
    f.bias.data[0] += (f(x)[:, 1] - f(x)[:, 0]).max() + 1.0  # far from the boundary, so that many pixels meet their end
    low, high = torch.zeros(6), torch.full((6,), 13.0)
    for _ in range(50):
        middle = (low + high) / 2
        reached = f(farthest(x, away.expand_as(x), middle)).argmax(1) == 1
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    found = make_attack("minimum_norm", steps=100)(f, x, y, _everything("l2", x))
    moved = _distances(found, x, "l2", f(found).argmax(1) == 1)
    assert (moved <= 1.02 * high + 1e-5).all(), moved / high
    assert (moved >= high * (1 - 1e-4)).all()


def test_an_image_that_is_wrong_when_clean_is_at_distance_0(classifier: Any, digits: Any) -> None:
    x = to_unit(digits.test_images[:20])
    wrong = (classifier(x).argmax(1) + 1) % 10
    found = make_attack("minimum_norm", steps=5).craft(classifier, x, wrong, _everything("l2", x))
    assert torch.equal(found.images[0, 0], x)
    assert (found.loss == 0).all()
    assert (found.success == 1).all()


def test_the_nearest_iterate_that_reached_the_goal_is_kept_and_until_one_does_what_missed_it_by_least() -> None:
    x, labels = torch.zeros(1, 3, 2, 2), torch.zeros(1, dtype=torch.int64)
    nearest = _Nearest(Batch(x, labels, ThreatModel(0.1), Key(0, "attack"), [0]))
    kept = []
    for number, (distance, margin) in enumerate(
        [(1, 0.4), (2, 0.2), (1, 0.3), (3, -0.1), (1, 0.1), (2, -0.01), (4, -2)], 1
    ):
        nearest.add(torch.full_like(x, number), torch.tensor([float(distance)]), torch.tensor([margin]))
        kept.append((int(nearest.image[0, 0, 0, 0]), float(nearest.distance)))
    missed = torch.inf
    assert kept == [(1, missed), (2, missed), (2, missed), (4, 3), (4, 3), (6, 2), (6, 2)]


def test_the_loss_is_minus_the_distance_and_more_restarts_are_no_farther(classifier: Any, digits: Any) -> None:
    x, y = to_unit(digits.test_images[:10]), torch.from_numpy(digits.test_labels[:10])
    threat = _everything("l2", x)
    one, two = (
        make_attack("minimum_norm", steps=20, targets=1, restarts=n).craft(classifier, x, y, threat) for n in (1, 2)
    )
    torch.testing.assert_close(-two.loss, BALLS["l2"].distance(two.images - x))
    assert torch.equal(two.images[:1], one.images)
    assert not torch.equal(two.images[0], two.images[1])
    nearest, plain = (BALLS["l2"].distance(found.best(20) - x) for found in (two, one))
    assert (nearest <= plain).all()


# In L1, where their projection does not look at the box, less is compared, and a step takes three times as long.
@pytest.mark.parametrize("norm", ["linf", "l2", pytest.param("l1", marks=pytest.mark.long)])
def test_as_published_it_finds_the_distances_of_adv_lib_where_the_box_is_far(
    norm: Any, classifier: Any, digits: Any, adv_lib: Any
) -> None:
    """In L2 adv-lib projects to the ball and clips, so that on digits, which are black, it finds nothing on half of them."""
    x = 0.4 + 0.2 * to_unit(digits.test_images[:24])
    y = classifier(x).argmax(1)
    ours = make_attack("minimum_norm", steps=60, targets=0)(classifier, x, y, _everything(norm, x))
    theirs = adv_lib.fmn(classifier, x, y, {"linf": float("inf"), "l2": 2, "l1": 1}[norm], steps=60)
    near, far = (_distances(images, x, norm, classifier(images).argmax(1) != y).numpy() for images in (ours, theirs))
    assert np.isfinite(near).all()
    assert np.isfinite(far).all()
    assert (near <= 1.02 * far).mean() > 0.95
    if norm == "l1":  # A pixel of even these images meets its end, which their projection does not look at.
        return
    assert np.median(near / far) == pytest.approx(1, abs=0.005)
    assert (far <= 1.02 * near).mean() > 0.95


@pytest.mark.parametrize(
    "norm", ["linf", pytest.param("l2", marks=pytest.mark.long)]
)  # The same code, at twice the cost.
def test_its_curve_is_nowhere_more_than_an_image_above_that_of_attacks_of_fixed_radii(
    norm: Any, classifier: Any, digits: Any
) -> None:
    x, y = to_unit(digits.test_images[:24]), torch.from_numpy(digits.test_labels[:24])
    found = make_attack("minimum_norm", steps=30)(classifier, x, y, _everything(norm, x))
    moved = _distances(found, x, norm, classifier(found).argmax(1) != y)
    curve = [(moved > epsilon).float().mean().item() for epsilon in GRIDS[norm]]
    assert curve[0] > 0.5
    assert curve[-1] < 0.5
    for epsilon, left in zip(GRIDS[norm], curve, strict=True):
        fixed = make_attack("apgd", steps=30)(classifier, x, y, ThreatModel(epsilon, norm=norm))
        assert left <= (classifier(fixed).argmax(1) == y).float().mean() + 1 / len(x) + 1e-6, epsilon


def test_behind_a_random_defense_the_image_on_the_line_is_one_that_fails_for_certain(
    classifier: Any, pool: Any, digits: Any
) -> None:
    from mi_ray import DefendedClassifier, make_defense, predict

    x, y = to_unit(digits.test_images[:24]), torch.from_numpy(digits.test_labels[:24])
    defense = make_defense("gaussian_noise", sigma=0.2)
    model = DefendedClassifier(classifier, defense, pool, executions=5)
    found = make_attack("minimum_norm", steps=20, targets=1).craft(model, x, y, _everything("l2", x))
    images, success = found.best(20), found.success[0, 0]
    answers = [predict(classifier, defense, images, pool, 5, seed=seed).argmax(1) != y for seed in range(10)]
    failed = torch.stack(answers).float().mean(0)
    assert (success == 1).float().mean() > 0.6
    assert failed[success == 1].mean() > 0.85  # draws that it has not seen; at the boundary itself it would be a half


# A study


POINTS = 24
FMN = {"minimum_norm": {"steps": 20, "targets": 2}}
STUDY: dict[str, Any] = {
    "points": {"count": POINTS, "selection": 6},
    "classifiers": entry(architecture={"cnn_small": 8}, mean=[0.5, 0.4, 0.3], std=[0.25, 0.3, 0.2]),
    "attacks": [
        {**FMN, "norm": "l2", "epsilon": [0.2, 0.4, 0.6, 0.9]},
        {**FMN, "norm": "l2", "epsilon": [0.4, 0.9], "knowledge": "adaptive"},
        {"pgd": {"steps": 20, "step_size": 0.1}, "norm": "l2", "epsilon": 0.4},
    ],
    "defenses": ["none", {"gaussian_noise": 0.05}],
    "executions": 3,
    "draws": 2,
    "checks": "cheap",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, classifier: nn.Module) -> Tiny:
    """A finished study; read only."""
    one = tiny(tmp_path_factory.mktemp("nearest"), weights=weights_bytes(classifier), **STUDY)
    finish(one, POINTS)
    return one


def test_one_run_serves_every_epsilon_and_no_epsilon_costs_a_pass() -> None:
    def cost(*radii: float) -> dict[str, int]:
        made = planner(attacks=[{**FMN, "epsilon": list(radii)}], defenses=[{"gaussian_noise": 0.1}], checks="cheap")
        return made.cost(made.plan(made.settings()))

    one, many = cost(0.03), cost(0.01, 0.02, 0.03, 0.04, 0.05)
    work = ("attack_forward", "attack_backward", "evaluation_forward")
    assert [one[name] for name in work] == [many[name] for name in work]
    assert many["naive_backward"] == 5 * one["naive_backward"]
    plan = planned(attacks=[{**FMN, "epsilon": [0.01, 0.02]}], defenses=["none"], checks="cheap")
    assert len(plan.attacks) == 1
    assert [cell.identity["epsilon"] for cell in plan.cells] == [0.0, 0.01, 0.02]
    again = planned(attacks=[{**FMN, "epsilon": [0.02, 0.5]}], defenses=["none"], checks="cheap")
    assert {work.key for work in again.attacks} == {work.key for work in plan.attacks}
    assert {cell.key for cell in plan.cells} & {cell.key for cell in again.cells} == {
        plan.cells[0].key,
        plan.cells[2].key,
    }


def test_a_cell_has_what_its_images_within_epsilon_answer_and_the_clean_answers_elsewhere(finished: Tiny) -> None:
    results, bench = finished.bench.results, finished.bench
    clean = to_unit(bench.data.images[:POINTS]).numpy()
    within = [cell for cell in finished.plan.cells if cell.inputs.within is not None and not cell.members]
    assert len(within) == 2 * 4 + 2
    for cell in within:
        whole = Inputs(cell.inputs.attack, cell.inputs.stop)
        far = results.distances(whole, POINTS) > cell.identity["epsilon"]
        images, _, _ = results.adversarial(cell.inputs, 0, POINTS)
        np.testing.assert_array_equal(images[far], clean[far])
        np.testing.assert_array_equal(images[~far], results.adversarial(whole, 0, POINTS)[0][~far])
        with torch.no_grad():
            answers = bench.classifier(cell.classifier, "fp32")(torch.from_numpy(images)).softmax(1)
        own, _ = results.answers(cell.defense, cell.undefended, cell.components, 0, POINTS)
        torch.testing.assert_close(own, answers, rtol=1e-3, atol=1e-5)
        assert results.distances(cell.inputs, POINTS).max() <= cell.identity["epsilon"] + 1e-6


def test_rows_are_a_curve_that_falls_and_every_file_is_sound(finished: Tiny) -> None:
    cells = read_cells(finished.store, "tiny")
    assert set(cells["state"]) == {"done"}
    bare = cells[(cells["attack"] == "minimum_norm") & (cells["defense"] == "none")].sort_values("epsilon")
    assert bare["epsilon"].tolist() == [0.2, 0.4, 0.6, 0.9]
    assert bare["accuracy"].is_monotonic_decreasing
    clean = cells[(cells["attack"] == "none") & (cells["defense"] == "none")]["accuracy"].iloc[0]
    assert bare["accuracy"].iloc[-1] < bare["accuracy"].iloc[0] < clean
    pgd = cells[(cells["attack"] == "pgd") & (cells["defense"] == "none")]["accuracy"].iloc[0]
    assert bare["accuracy"].iloc[1] <= pgd + 0.05  # of few steps
    assert problems_in(finished.store) == []
    rows = read_records(finished.store, study="tiny")
    assert len(rows) == POINTS * len(cells)
    for _, row in bare.iterrows():
        found = json.loads(row["checks"])
        assert found["in_ball"]["state"] == "passed"
        assert found["in_ball"]["l2"] <= row["epsilon"] + 1e-6
        assert found["budget"]["state"] == "not run"  # an image that is not fooled is left alone
        assert json.loads(row["work"])["within"] == row["epsilon"]
    table = epsilon_curve.facts(cells, Names())
    curve = table[table["curve"].str.startswith("minimum_norm-20") & (table["defense"] == "none")]
    assert curve["epsilon"].tolist() == [0.0, 0.2, 0.4, 0.6, 0.9]


@pytest.mark.long  # Checks of a whole study, for which one cell of `study/test_l2.py` stands.
def test_each_epsilon_is_held_against_the_reference_at_that_epsilon(tmp_path: Path, classifier: nn.Module) -> None:
    attacks = [{**FMN, "norm": "l2", "epsilon": [0.3, 0.6]}]
    one = tiny(
        tmp_path,
        weights=weights_bytes(classifier),
        **{**STUDY, "attacks": attacks, "defenses": ["none"], "checks": {"points": 60, "black_box": "never"}},
    )
    held = {(check.judged.identity["epsilon"], check.name): check for check in one.plan.checks}
    assert {epsilon for epsilon, _ in held} == {0.3, 0.6}
    assert {held[epsilon, "reference"].control.identity["epsilon"] for epsilon in (0.3, 0.6)} == {0.3, 0.6}  # type: ignore[union-attr]
    assert not {name for _, name in held} & {"budget", "headway"}
    longer = {held[epsilon, "more_steps"].control.inputs.attack.key for epsilon in (0.3, 0.6)}  # type: ignore[union-attr]
    assert len(longer) == 1  # one longer run for both
    finish(one)
    cells = read_cells(one.store, "tiny")
    attacked = cells[cells["attack"] == "minimum_norm"]
    for text in attacked["checks"]:
        told = json.loads(text)
        names = ("reference", "more_steps", "epsilon_zero", "monotone_in_epsilon", "random_noise_not_stronger")
        assert {told[name]["state"] for name in names} == {"passed"}
    assert set(attacked["verdict"]) == {"passed"}
