"""Each check has a criterion that a sound attack meets and a broken one does not; the verdict is one word of them."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from mi_ray.plan.controls import Attacked, Control, controls
from mi_ray.study.battery import Answers
from mi_ray.study.checks import (
    CHECKS,
    NEED_PASSES,
    OPTIONAL,
    RULES,
    STORED,
    WORDS,
    Evidence,
    Finding,
    compared,
    in_ball,
    in_box,
    judge,
    logits_not_probabilities,
    randomness_declared,
    settled,
    verdict,
)
from mi_ray.threat_model import ThreatModel

POINTS, CLASSES = 400, 10


def answers(right: int, *, gain: float = 0.0, first: int = 0, draws: int = 1) -> Answers:
    """`right` of 400 points are right, from the point `first` on; a margin is -1 where right and 1 where wrong, plus gain."""
    found = np.zeros(POINTS, np.int64)
    found[first : first + right] = draws
    return Answers(found, draws, np.where(found > 0, -1.0, 1.0) + gain)


def evidence(**changes: Any) -> Evidence:
    """Of a sound attack: 300 right when clean, 100 under attack and under its control, all moved to the edge."""
    usual: dict[str, Any] = {
        "judged": Answers(answers(100).right, 1, np.where(answers(100).right > 0, -0.2, 1.0)),
        "clean": answers(300),
        "control": Answers(answers(100).right, 1, np.where(answers(100).right > 0, -0.1, 1.0)),
        "moved": np.full(POINTS, 0.1),
        "zero": np.zeros(POINTS, int),
        "gradients": np.full(POINTS, 10),
        "epsilon": 0.1,
        "classes": CLASSES,
        "rival": "its control",
        "wider": 0.5,
    }
    return Evidence(**{**usual, **changes})


def state(name: str, found: Evidence) -> str:
    """What a check says alone, with no other to share its 5 % with."""
    return settled({name: judge(name, found)})[name].state


BROKEN: list[tuple[str, Mapping[str, Any]]] = [
    *((name, {"control": answers(70)}) for name in ("reference", "more_steps", "more_restarts", "more_eot")),
    *((name, {"control": answers(70)}) for name in ("black_box_not_stronger", "random_noise_not_stronger")),
    ("headway", {"judged": answers(100)}),
    ("budget", {"moved": np.full(POINTS, 0.04)}),
    ("gradients_not_zero", {"zero": np.full(POINTS, 2)}),
    ("pushed_back", {"judged": answers(150, first=200)}),
    ("epsilon_zero", {"control": answers(299)}),
    ("elsewhere", {"judged": answers(100, first=200), "checked": 200}),
    ("monotone_in_epsilon", {"control": answers(130)}),
    ("large_epsilon", {"control": answers(80)}),
    ("binarization", {"success": np.repeat([[1.0, 0.0]], [40, 10], axis=1)}),
]
SOUND: dict[str, Mapping[str, Any]] = {
    "epsilon_zero": {"control": answers(300)},
    "monotone_in_epsilon": {"control": answers(40)},
    "elsewhere": {"judged": answers(100, first=150), "checked": 200},
    "large_epsilon": {"control": answers(40)},  # chance
    "binarization": {"success": np.repeat([[1.0, 0.0, np.nan]], [46, 2, 2], axis=1)},
}


@pytest.mark.parametrize(("name", "fault"), BROKEN)
def test_a_check_fails_by_its_fault_and_passes_without_it(name: str, fault: Mapping[str, Any]) -> None:
    sound = SOUND.get(name, {})
    assert state(name, evidence(**sound)) == "passed"
    assert state(name, evidence(**{**sound, **fault})) == "failed"


def test_points_that_fall_to_square_alone_fail_an_attack_although_square_leaves_more() -> None:
    """A mask on some images: of those that stand Square breaks 36, and of those that the attack breaks it leaves 160."""
    judged, rival = answers(200), answers(324, first=36)
    found = judge("black_box_not_stronger", evidence(judged=judged, control=rival))
    assert found.figures["control"] > found.figures["accuracy"]
    assert "9.0 % of the points stand under the attack" in found.why
    assert found.p == pytest.approx(2 * scipy.stats.binom.sf(35, POINTS, 0.03), rel=0.01)  # of two tests
    assert state("black_box_not_stronger", evidence(judged=judged, control=rival)) == "failed"
    few = answers(352, first=8)  # of a sound attack it breaks two points in a hundred
    assert state("black_box_not_stronger", evidence(judged=judged, control=few)) == "passed"
    # Behind a random defense draws make such points too, and the mean alone tells.
    assert state("black_box_not_stronger", evidence(judged=judged, control=rival, random=True)) == "passed"


def test_both_outcomes_of_every_check_are_tried_above() -> None:
    assert {name for name, _ in BROKEN} == {rule.name for rule in RULES} - {"fixed_randomness"}  # two figures, no test
    assert {*CHECKS, *OPTIONAL} == {*STORED, *(rule.name for rule in RULES)}


@pytest.mark.parametrize(("reach", "expected"), [(None, "failed"), (0.3, "failed"), (0.2, "not run"), (0.0, "failed")])
def test_an_attack_whose_steps_do_not_cross_a_large_ball_is_not_held_against_it(
    reach: float | None, expected: str
) -> None:
    assert state("large_epsilon", evidence(control=answers(80), wider=0.5, reach=reach)) == expected


def test_an_attack_that_leaves_no_more_than_chance_in_a_large_ball_passes_however_far_it_gets() -> None:
    assert state("large_epsilon", evidence(control=answers(40), wider=0.5, reach=0.2)) == "passed"


def test_where_the_reference_gains_nothing_it_says_nothing() -> None:
    blind = evidence(judged=answers(300), control=answers(298))
    assert [judge(name, blind).state for name in ("reference", "headway")] == ["not run", "not run"]
    assert "masked" in judge("reference", blind).why


@pytest.mark.parametrize(
    ("checked", "expected"),
    [(0, "not run"), (POINTS, "not run"), (POINTS - 19, "not run"), (POINTS - 20, "passed")],
)
def test_where_controls_are_run_on_nearly_all_points_there_is_no_elsewhere(checked: int, expected: str) -> None:
    found = judge("elsewhere", evidence(checked=checked))
    assert found.state == expected
    assert ("on none of the points, or fewer than 20 are left" in found.why) == (expected == "not run")


def test_where_no_problem_could_be_made_binarization_says_nothing() -> None:
    found = judge("binarization", evidence(success=np.full((1, 50), np.nan)))
    assert (found.state, found.p) == ("not run", None)


def test_a_point_more_is_allowed_and_what_is_significantly_more_is_not() -> None:
    own = answers(100)
    found = {
        lost: settled({"x": compared(own.right, answers(100 - lost).right, 1, "a rival")})["x"]
        for lost in (0, 4, 8, 20)
    }
    assert [found[lost].state for lost in (0, 4, 8, 20)] == ["passed", "passed", "passed", "failed"]
    assert found[20].figures["accuracy"] == 0.25
    assert found[20].figures["control"] == 0.2
    assert found[20].figures["low"] < 0.05 < found[20].figures["high"]
    assert "a rival" in found[20].why


def test_a_rival_that_was_chosen_among_several_must_be_ahead_by_more() -> None:
    own, rival = answers(100).right, answers(88).right
    alone, among = (compared(own, rival, 1, "it", count).p for count in (1, 10))
    assert alone is not None
    assert among == pytest.approx(10 * alone, rel=0.01)


def test_errors_are_controlled_over_all_tests_of_a_cell_together() -> None:
    def cell(*p_values: float) -> list[str]:
        return [
            found.state
            for found in settled({str(k): Finding("passed", "", {}, p) for k, p in enumerate(p_values)}).values()
        ]

    assert cell(0.02) == ["failed"]
    assert cell(0.02, 0.5, 0.5) == ["passed"] * 3
    assert cell(0.001, 0.02, 0.5) == ["failed", "failed", "passed"]
    untested = settled({"a": Finding("not run", "", {}, 1e-9), "b": Finding("failed", "")})
    assert [found.state for found in untested.values()] == ["not run", "failed"]


def test_max_delta_may_reach_epsilon_and_the_rounding_of_float32() -> None:
    epsilon = 8 / 255
    assert in_ball(float(np.float32(epsilon)), ThreatModel(epsilon)).state == "passed"
    assert in_ball(epsilon + 9e-7, ThreatModel(epsilon)).state == "passed"
    assert in_ball(epsilon + 2e-6, ThreatModel(epsilon)).state == "failed"
    assert in_ball(0.0, ThreatModel(0.0)).state == "passed"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, "passed"), (0.2, 0.7, "passed"), (-1e-6, 1.0, "failed"), (0.0, 1.01, "failed")],
)
def test_pixels_are_in_the_box_or_not(low: float, high: float, expected: str) -> None:
    found = in_box(low, high)
    assert (found.state, found.figures) == (expected, {"low": low, "high": high})


@pytest.mark.parametrize(("zero", "expected"), [(0, "passed"), (100, "passed"), (101, "failed")])
def test_at_most_one_gradient_in_ten_on_points_that_stand_may_be_zero(zero: int, expected: str) -> None:
    counts = np.zeros(POINTS, int)
    counts[0] = zero  # of 100 points that stand, 10 gradients each
    counts[150:] = 10  # these are fooled, where a loss may have no gradient
    assert judge("gradients_not_zero", evidence(zero=counts)).state == expected


def test_an_attack_without_gradients_has_none_that_are_zero() -> None:
    assert judge("gradients_not_zero", evidence(gradients=np.zeros(POINTS, int))).state == "not run"


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


def test_of_two_classes_close_logits_are_not_taken_for_probabilities() -> None:
    def softmax(logits: torch.Tensor) -> np.ndarray[Any, Any]:
        return torch.softmax(logits, dim=1).numpy()

    close = torch.linspace(-0.9, 0.9, 40)
    two = logits_not_probabilities(softmax(torch.stack([close / 2, -close / 2], dim=1)))
    assert two.state == "not run"
    assert "cannot be told apart" in two.why
    certain = torch.linspace(0, 1, 40)
    probabilities = torch.stack([certain, 1 - certain], dim=1)
    assert logits_not_probabilities(softmax(probabilities)).state == "failed"
    assert logits_not_probabilities(softmax(3 * torch.stack([close, -close], dim=1))).state == "passed"


def test_log_probabilities_are_as_good_as_logits() -> None:
    assert logits_not_probabilities(outputs_of(network(nn.LogSoftmax(dim=1)), 1.0)).state == "passed"


def test_one_output_that_cannot_be_a_probability_vector_is_enough() -> None:
    found = outputs_of(network(nn.Softmax(dim=1)), 1.0)
    found[5] = outputs_of(network(), 5.0)[5]
    assert logits_not_probabilities(found).state == "passed"


def test_points_that_an_attack_leaves_alone_on_purpose_are_not_held_against_it() -> None:
    linf = np.full(POINTS, 0.1)
    linf[:50] = 0.0  # half of the points that stand: they failed when clean in the attack's own draws
    for leaves, states in ((True, ["passed", "passed"]), (False, ["failed", "failed"])):
        judged = Answers(answers(100).right, 1, np.where(answers(100).right > 0, np.where(linf > 0, -0.2, -1.0), 1.0))
        found = evidence(moved=linf, judged=judged, left_alone=(linf == 0) & leaves)
        assert [state(name, found) for name in ("budget", "headway")] == states


def test_a_share_of_few_points_says_nothing() -> None:
    for standing, said in ((9, "not run"), (10, "failed")):
        right = np.arange(POINTS) < standing
        judged = Answers(right.astype(int), 1, np.where(right, -1.0, 1.0))
        zero = np.ones(POINTS, int)
        found = evidence(moved=np.zeros(POINTS), judged=judged, zero=zero, gradients=zero)
        assert [state(name, found) for name in ("budget", "gradients_not_zero")] == [said, said]


def test_what_is_left_where_draws_are_fixed_stands_beside_what_is_reported() -> None:
    success = np.zeros((2, POINTS))
    success[0, :300], success[1, :340] = 1, 1
    found = judge("fixed_randomness", evidence(success=success))
    assert found.state == "passed"
    assert found.figures == {"fixed": 0.25, "counted": 0.15, "accuracy": 0.25}


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(KeyError, match="no_such_check"):
        judge("no_such_check", evidence())


def test_a_finding_is_plain_json_with_its_figures_and_its_reason() -> None:
    found = judge("large_epsilon", evidence(control=answers(100))).plain()
    assert found["why"] == "at epsilon 0.5 25.0 % of 400 points are left, chance is 10.0 %"
    assert found["control"] == 0.25
    assert found["p"] < 1e-6
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
        ({"in_ball": "passed", "more_steps": "passed"}, True, "not run"),
        ({"reference": "not run", "more_steps": "passed", "black_box_not_stronger": "passed"}, True, "not run"),
        ({"in_ball": "passed", "reference": "passed"}, True, "passed"),
        ({"reference": "passed", "oblivious_not_stronger": "failed"}, True, "failed"),
        ({"in_ball": "failed"}, True, "failed"),
    ],
)
def test_the_verdict_is_failed_by_one_check_and_passed_only_where_the_reference_was_run(
    states: dict[str, str], attacked: bool, expected: str
) -> None:
    assert verdict(findings(**states), attacked) == expected


def held(attack: Attacked, stop: int, last: bool) -> dict[str, Control]:
    return {each.rule.name: each.control for each in controls(RULES, attack, stop, last) if each.control}


def test_every_check_has_its_paragraph_which_begins_with_its_criterion() -> None:
    text = " ".join((Path(__file__).parents[2] / "docs/checks.md").read_text(encoding="utf-8").split())
    assert set(WORDS) == {*CHECKS, *OPTIONAL}
    absent = [name for name, words in WORDS.items() if f"**{name}.** {words.criterion}" not in text]
    assert absent == []
    assert set(re.findall(r"\*\*(\w+)\.\*\*", text)) == {*CHECKS, *OPTIONAL}


def test_controls_of_a_trajectory_are_named_once_and_the_others_at_each_stop() -> None:
    attack = Attacked("pgd", {"steps": [2, 4], "step_size": 0.02, "restarts": 1}, ThreatModel(0.1), "steps", None)
    early, late = (held(attack, stop, last) for stop, last in ((2, False), (4, True)))
    each_stop = {rule.name for rule in RULES if not rule.of_trajectory and not rule.free} - {"fixed_randomness"}
    assert set(early) == each_stop
    assert set(late) == {*NEED_PASSES, *OPTIONAL} - {"more_eot", "fixed_randomness"}
    assert (early["more_steps"].values["steps"], late["more_steps"].values["steps"]) == (4, 8)
    assert early["reference"] == late["reference"]


def test_controls_of_another_radius_are_the_attacks_own_code() -> None:
    values = {"steps": [2], "step_size": 0.02, "restarts": 3, "loss": "odd"}
    found = held(Attacked("mine", values, ThreatModel(0.1), "steps", None), 2, True)
    assert found["large_epsilon"] == Control("mine", {**values, "steps": 100, "step_size": 0.01, "restarts": 1}, 0.5)
    assert found["monotone_in_epsilon"] == Control("mine", {**values, "steps": 2, "step_size": 0.04}, 0.2)
    assert found["epsilon_zero"] == Control("mine", {**values, "steps": 2}, 0.0)


def test_controls_of_another_radius_keep_to_what_a_parameter_may_be() -> None:
    values = {"steps": 7, "step_size": 0.06, "restarts": 3, "eot": 20}
    attack = Attacked(
        "mine", values, ThreatModel(0.1), None, 30, lowest={"restarts": 2, "eot": 10}, highest={"steps": 20}
    )
    large = held(attack, 0, True)["large_epsilon"]
    # A fifth of the steps, each five times as long, go as far.
    assert large == Control("mine", {"steps": 20, "step_size": 0.05, "restarts": 2, "eot": 10}, 0.5)
    found = held(replace(attack, highest={"steps": 20, "step_size": 0.1}), 0, True)
    assert (found["monotone_in_epsilon"].values["step_size"], found["large_epsilon"]) == (0.1, large)
    assert "large_epsilon" not in held(replace(attack, highest={"steps": 7, "step_size": 0.06}), 0, True)


def test_the_radius_of_a_control_stays_in_the_pixel_box() -> None:
    attack = Attacked("pgd", {"steps": [2]}, ThreatModel(0.7), "steps", None)
    assert (held(attack, 2, True))["monotone_in_epsilon"].epsilon == 1.0


def test_controls_of_an_adaptive_attack_average_a_few_executions() -> None:
    attack = Attacked("eot_pgd", {"steps": [2], "eot": None}, ThreatModel(0.1), "steps", 30)
    found = held(attack, 2, True)
    assert found["more_eot"].values["eot"] == 60
    names = ("large_epsilon", "black_box_not_stronger", "random_noise_not_stronger")
    assert [found[name].values["eot"] for name in names] == [5, 5, 5]
    few = held(Attacked("eot_pgd", {"steps": [2], "eot": 3}, ThreatModel(0.1), "steps", 3), 2, True)
    assert few["large_epsilon"].values["eot"] == 3


def test_an_attack_whose_steps_are_no_stops_is_held_against_twice_as_many() -> None:
    found = held(Attacked("mine", {"steps": 7}, ThreatModel(0.1), None, None), 0, True)
    assert found["more_steps"].values == {"steps": 14}


def test_an_attack_by_queries_is_held_against_no_gradient() -> None:
    attack = Attacked("mine", {"queries": [7]}, ThreatModel(0.1), "queries", None, follows_gradients=False)
    assert set(held(attack, 7, True)) == {"more_steps", "epsilon_zero", "monotone_in_epsilon", "large_epsilon"}
    names = {each.rule.name for each in controls(RULES, attack, 7, True)}
    assert not names & {"budget", "pushed_back", "gradients_not_zero"}


@pytest.mark.parametrize("said", ["minimal", "only_found"])
def test_an_attack_that_does_not_move_what_it_has_not_fooled_is_not_asked_how_far(said: str) -> None:
    attack = Attacked("mine", {"steps": 7}, ThreatModel(0.1), None, None)
    names, silent = (
        {each.rule.name for each in controls(RULES, asked, 0, True)}
        for asked in (attack, replace(attack, **{said: True}))
    )
    assert names - silent == {"budget", "headway"}
    assert "reference" in silent
