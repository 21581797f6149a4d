"""Each check has a criterion that a sound attack meets and a broken one does not; the verdict is one word of them."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mi_ray.plan.controls import Attacked, Control, controls
from mi_ray.study.checks import (
    CHECKS,
    CONTROLS,
    NEED_PASSES,
    OBLIVIOUS,
    STORED,
    Compared,
    Finding,
    against_control,
    gradients_not_zero,
    in_ball,
    in_box,
    logits_not_probabilities,
    randomness_declared,
    verdict,
)
from mi_ray.threat_model import ThreatModel

POINTS, CLASSES = 200, 10


def judged(name: str, own: int, control: int, *, crossed: int = 0, draws: int = 1) -> Finding:
    """A check of two cells that leave `own` and `control` of 200 points; on `crossed` points they are swapped."""
    left, right = np.zeros(POINTS, int), np.zeros(POINTS, int)
    left[:own] = draws
    right[:control] = draws
    right[:crossed], left[POINTS - crossed :] = 0, 0
    right[POINTS - crossed :] = draws * (crossed > 0)
    return against_control(name, Compared(left, right, draws), CLASSES)


def test_max_delta_may_reach_epsilon_and_the_rounding_of_float32() -> None:
    epsilon = 8 / 255
    assert in_ball(float(np.float32(epsilon)), epsilon).state == "passed"
    assert in_ball(epsilon + 9e-7, epsilon).state == "passed"
    assert in_ball(epsilon + 2e-6, epsilon).state == "failed"
    assert in_ball(0.0, 0.0).state == "passed"


@pytest.mark.parametrize(
    ("low", "high", "state"),
    [(0.0, 1.0, "passed"), (0.2, 0.7, "passed"), (-1e-6, 1.0, "failed"), (0.0, 1.01, "failed")],
)
def test_pixels_are_in_the_box_or_not(low: float, high: float, state: str) -> None:
    found = in_box(low, high)
    assert (found.state, found.figures) == (state, {"low": low, "high": high})


@pytest.mark.parametrize(
    ("zero", "total", "state"),
    [(0, 100, "passed"), (1, 100, "passed"), (2, 100, "failed"), (100, 100, "failed"), (0, 0, "passed")],
)
def test_at_most_one_gradient_in_a_hundred_may_be_zero_throughout(zero: int, total: int, state: str) -> None:
    found = gradients_not_zero(zero, total)
    assert (found.state, found.figures["share"]) == (state, zero / max(total, 1))


def test_randomness_that_is_not_declared_fails() -> None:
    assert [randomness_declared(same).state for same in (True, False)] == ["passed", "failed"]


def outputs_of(network: nn.Module, scale: float) -> Any:
    """softmax of a network's output, as the rows hold it: float32."""
    images = torch.rand(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.softmax(scale * network(images), dim=1).numpy()


def network(*last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    linear = nn.Linear(36, CLASSES)
    nn.init.normal_(linear.weight, std=1.0)
    return nn.Sequential(nn.Flatten(), linear, *last)


def test_a_network_that_outputs_probabilities_fails_and_one_of_logits_passes() -> None:
    logits = logits_not_probabilities(outputs_of(network(), 1.0))
    probabilities = logits_not_probabilities(outputs_of(network(nn.Softmax(dim=1)), 1.0))
    assert (logits.state, probabilities.state) == ("passed", "failed")
    assert logits.figures["share"] < 0.05
    assert probabilities.figures["share"] == 1.0


@pytest.mark.parametrize("hard", [1e-3, 1.0, 30.0, 1000.0])
def test_probabilities_are_recognised_whether_they_are_even_or_certain(hard: float) -> None:
    class Hard(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(hard * x, dim=1)

    assert logits_not_probabilities(outputs_of(network(Hard()), 1.0)).state == "failed"


def test_log_probabilities_are_as_good_as_logits() -> None:
    assert logits_not_probabilities(outputs_of(network(nn.LogSoftmax(dim=1)), 1.0)).state == "passed"


def test_one_output_that_cannot_be_a_probability_vector_is_enough() -> None:
    found = outputs_of(network(nn.Softmax(dim=1)), 1.0)
    found[5] = outputs_of(network(), 5.0)[5]
    assert logits_not_probabilities(found).state == "passed"


CRITERIA: list[tuple[str, dict[str, int], str]] = [
    ("epsilon_zero", {"own": 150, "control": 150}, "passed"),
    ("epsilon_zero", {"own": 150, "control": 149}, "failed"),
    ("epsilon_zero", {"own": 150, "control": 150, "crossed": 3}, "failed"),  # as many, but of other points
    *(
        (name, case, state)
        for name in ("more_steps", "more_restarts", "more_eot")
        for case, state in (
            ({"own": 100, "control": 100}, "passed"),
            ({"own": 100, "control": 98}, "passed"),  # one point of accuracy
            ({"own": 100, "control": 97}, "failed"),
            ({"own": 100, "control": 103}, "failed"),  # it has not converged if more steps undo it either
            ({"own": 100, "control": 99, "crossed": 1}, "passed"),
            ({"own": 100, "control": 60}, "failed"),
        )
    ),
    ("monotone_in_epsilon", {"own": 100, "control": 60}, "passed"),
    ("monotone_in_epsilon", {"own": 100, "control": 102}, "passed"),
    ("monotone_in_epsilon", {"own": 100, "control": 103}, "failed"),
    ("large_epsilon", {"own": 100, "control": 0}, "passed"),
    ("large_epsilon", {"own": 100, "control": 20}, "passed"),  # chance
    ("large_epsilon", {"own": 100, "control": 21}, "failed"),
    *(
        (name, case, state)
        for name in ("black_box_not_stronger", "oblivious_not_stronger")
        for case, state in (
            ({"own": 100, "control": 150}, "passed"),
            ({"own": 100, "control": 100}, "passed"),
            ({"own": 100, "control": 99}, "failed"),  # half a point
        )
    ),
    ("random_noise_not_stronger", {"own": 100, "control": 100}, "passed"),
    ("random_noise_not_stronger", {"own": 100, "control": 99}, "failed"),
]


@pytest.mark.parametrize(("name", "case", "state"), CRITERIA)
def test_a_control_is_judged_by_its_criterion(name: str, case: dict[str, int], state: str) -> None:
    found = judged(name, **case)
    assert found.state == state, found
    assert {"accuracy", "control", "points", "share_stronger", "p"} <= found.figures.keys()
    assert found.figures["points"] == POINTS


def test_both_outcomes_of_every_control_are_tried_above() -> None:
    assert {(name, state) for name, _, state in CRITERIA} == {
        (name, state) for name in (*NEED_PASSES, "oblivious_not_stronger") for state in ("passed", "failed")
    }
    assert set(CHECKS) == {*STORED, *NEED_PASSES, "oblivious_not_stronger"}


def test_a_margin_of_two_tenths_of_a_point_is_allowed_where_points_are_that_fine() -> None:
    own, control = np.ones(1000, int), np.ones(1000, int)
    for lost, states in ((2, ("passed", "failed")), (3, ("failed", "failed"))):
        control[:lost] = 0
        found = Compared(own, control, 1)
        names = ("oblivious_not_stronger", "random_noise_not_stronger")
        assert tuple(against_control(name, found, 10).state for name in names) == states


def test_a_significant_gain_fails_even_within_one_point() -> None:
    own, control = np.ones(2000, int), np.ones(2000, int)
    control[:18] = 0  # 0.9 of a point, all in one direction
    found = against_control("more_steps", Compared(own, control, 1), 10)
    assert (found.state, found.figures["p"] < 0.05) == ("failed", True)
    control[:18], control[:4] = 1, 0
    assert against_control("more_steps", Compared(own, control, 1), 10).state == "passed"


def test_one_test_point_may_move_where_it_is_more_than_one_point_of_accuracy() -> None:
    own, control = np.ones(20, int), np.ones(20, int)
    control[0] = 0
    assert against_control("more_steps", Compared(own, control, 1), 10).state == "passed"
    control[1] = 0
    assert against_control("more_steps", Compared(own, control, 1), 10).state == "failed"


def test_the_share_of_points_on_which_a_control_is_stronger_is_reported_with_draws() -> None:
    own, control = np.full(40, 3), np.full(40, 3)
    control[:10], own[10:15] = 1, 0
    found = against_control("oblivious_not_stronger", Compared(own, control, 3), 10)
    assert found.figures["share_stronger"] == 0.25
    assert found.figures["accuracy"] == pytest.approx(35 / 40)
    assert found.figures["control"] == pytest.approx((30 + 10 / 3) / 40)
    assert found.state == "failed"
    assert "25.0 % of points" in found.why


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(KeyError, match="no_such_check"):
        judged("no_such_check", 10, 10)


def test_a_finding_is_plain_json_with_its_figures_and_its_reason() -> None:
    found = judged("large_epsilon", 100, 50).plain()
    assert found["state"] == "failed"
    assert found["why"] == "at epsilon 0.5 25.0 % are left, chance is 10.0 %"
    assert found["control"] == 0.25
    assert all(isinstance(value, (str, float)) for value in found.values())


def findings(**states: Any) -> dict[str, Finding]:
    return {name: Finding(state, "") for name, state in states.items()}


@pytest.mark.parametrize(
    ("states", "attacked", "expected"),
    [
        ({}, False, "passed"),
        ({"in_ball": "passed"}, False, "passed"),
        ({"logits_not_probabilities": "failed"}, False, "failed"),
        ({}, True, "not run"),
        ({"in_ball": "passed", "in_box": "passed", "oblivious_not_stronger": "passed"}, True, "not run"),
        ({"in_ball": "passed", "more_steps": "not run"}, True, "not run"),
        ({"in_ball": "passed", "more_steps": "passed"}, True, "passed"),
        ({"in_ball": "passed", "more_steps": "passed", "large_epsilon": "not run"}, True, "passed"),
        ({"more_steps": "passed", "oblivious_not_stronger": "failed"}, True, "failed"),
        ({"in_ball": "failed"}, True, "failed"),
    ],
)
def test_the_verdict_is_failed_by_one_check_and_passed_only_where_a_control_was_run(
    states: dict[str, str], attacked: bool, expected: str
) -> None:
    assert verdict(findings(**states), attacked) == expected


def held(attack: Attacked, stop: int, last: bool) -> dict[str, Control]:
    return {each.rule.name: each.control for each in controls(CONTROLS, attack, stop, last)}


def test_every_check_has_its_paragraph_which_begins_with_its_criterion() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs/checks.md").read_text(encoding="utf-8").split())
    criteria = {**STORED, **{rule.name: rule.criterion for rule in (*CONTROLS, OBLIVIOUS)}}
    assert set(criteria) == set(CHECKS)
    absent = [name for name, criterion in criteria.items() if f"**{name}.** {criterion}" not in text]
    assert absent == []
    assert set(re.findall(r"\*\*(\w+)\.\*\*", text)) == set(CHECKS)


def test_controls_of_a_trajectory_are_named_once_and_more_steps_at_each_stop() -> None:
    attack = Attacked("pgd", {"steps": [2, 4], "restarts": 1}, ThreatModel(0.1), "steps", None)
    early, late = (held(attack, stop, last) for stop, last in ((2, False), (4, True)))
    assert list(early) == ["more_steps"]
    assert set(late) == {"more_steps", *(rule.name for rule in CONTROLS if rule.of_trajectory)} - {"more_eot"}
    assert (early["more_steps"].values["steps"], late["more_steps"].values["steps"]) == (4, 8)
    assert late["large_epsilon"].method == "pgd"
    assert late["large_epsilon"].values == {"steps": 100, "step_size": 0.01}


def test_the_radius_of_a_control_stays_in_the_pixel_box() -> None:
    attack = Attacked("pgd", {"steps": [2]}, ThreatModel(0.7), "steps", None)
    assert (held(attack, 2, True))["monotone_in_epsilon"].epsilon == 1.0


def test_controls_of_an_adaptive_attack_average_a_few_executions() -> None:
    attack = Attacked("eot_pgd", {"steps": [2], "eot": None}, ThreatModel(0.1), "steps", 30)
    found = held(attack, 2, True)
    assert found["more_eot"].values["eot"] == 60
    assert found["large_epsilon"].method == "eot_pgd"
    names = ("large_epsilon", "black_box_not_stronger", "random_noise_not_stronger")
    assert [found[name].values["eot"] for name in names] == [5, 5, 5]
    few = held(Attacked("eot_pgd", {"steps": [2], "eot": 3}, ThreatModel(0.1), "steps", 3), 2, True)
    assert few["large_epsilon"].values["eot"] == 3


def test_an_attack_whose_steps_are_no_stops_is_held_against_twice_as_many() -> None:
    found = held(Attacked("mine", {"steps": 7}, ThreatModel(0.1), None, None), 0, True)
    assert found["more_steps"].values == {"steps": 14}


def test_chance_alone_fails_no_control_of_a_random_defense() -> None:
    """The same survival, other draws: a control that is weaker by chance, or ahead by a draw, tells nothing."""
    own = np.array([1, 2] * 50)
    weaker, ahead = np.where(np.arange(100) < 4, 3, own), np.where(np.arange(100) < 2, own - 1, own)
    assert against_control("more_steps", Compared(own, weaker, 3, random=True), CLASSES).state == "passed"
    assert against_control("black_box_not_stronger", Compared(own, ahead, 3, random=True), CLASSES).state == "passed"
    fewer = np.where(np.arange(100) < 30, 0, own)
    assert against_control("more_steps", Compared(own, fewer, 3, random=True), CLASSES).state == "failed"
    assert against_control("black_box_not_stronger", Compared(own, fewer, 3, random=True), CLASSES).state == "failed"
