"""The controls that a plan makes of the table of checks, and the cells that share them."""

from typing import Any

import pytest
from helpers.plans import AVERAGED, BOTH, ON_MI_OL, planned, planner

from mi_ray.plan.work import Check, Plan
from mi_ray.store.keys import canonical
from mi_ray.study.prepare import REGISTRIES

EVERY_CONTROL = {
    "more_steps",
    "more_restarts",
    "more_eot",
    "epsilon_zero",
    "monotone_in_epsilon",
    "large_epsilon",
    "black_box_not_stronger",
    "random_noise_not_stronger",
}


def checks_of(plan: Plan, attack: str, goal: str = "untargeted") -> dict[str, Check]:
    """Check name -> the check of an attack's last stop."""
    found: dict[str, Check] = {}
    for check in plan.checks:
        made = check.judged.inputs.attack or check.control.inputs.attack
        judged = [cell for cell in plan.cells if cell.key in check.cells]
        assert made
        if judged and {(c.identity["attack"], c.identity["goal"]) for c in judged} == {(attack, goal)}:
            found[check.name] = check
    return found


@pytest.mark.parametrize(
    ("attack", "goal", "names"),
    [
        ({"pgd": {"steps": 2}, "epsilon": 0.1}, "untargeted", EVERY_CONTROL - {"more_eot"}),
        ({"pgd": {"steps": 2}, "epsilon": 0.1}, "targeted", {"more_steps", "more_restarts"}),
        (ON_MI_OL["attacks"][0], "untargeted", EVERY_CONTROL),
        (ON_MI_OL["attacks"][0], "targeted", {"more_steps", "more_restarts", "more_eot"}),
        (AVERAGED, "untargeted", EVERY_CONTROL),
        (
            {"square": {"queries": 10}, "epsilon": 0.1},
            "untargeted",
            {"more_steps", "epsilon_zero", "monotone_in_epsilon", "large_epsilon"},
        ),
        (
            {"random_noise": {"tries": 10}, "epsilon": 0.1},
            "untargeted",
            {"more_steps", "epsilon_zero", "monotone_in_epsilon", "large_epsilon"},
        ),
    ],
)
def test_an_attack_is_held_against_the_controls_that_fit_it(attack: Any, goal: str, names: set[str]) -> None:
    (method,) = attack.keys() - {"epsilon", "knowledge"}
    plan = planned(attacks=[{**attack, "goal": goal}], defenses=[{"mi_ol": 0.5}], checks="subset")
    found = checks_of(plan, method, goal)
    assert found.keys() - {"more_restarts"} == names - {"more_restarts"}
    assert ("more_restarts" in found) == ("restarts" in REGISTRIES.attacks[method].parameters())
    for name, check in found.items():
        control = check.control.inputs.attack
        assert control
        expected = {"epsilon_zero": 0.0, "monotone_in_epsilon": 0.2, "large_epsilon": 0.5}.get(name, 0.1)
        assert control.threat.epsilon == expected
        assert control.threat.goal == goal
        assert check.control.defense == check.judged.defense


def test_a_doubled_control_doubles_that_alone() -> None:
    attack = {"eot_pgd": {"steps": 6, "restarts": 2}, "epsilon": 0.1, "knowledge": "adaptive"}
    found = checks_of(planned(attacks=[attack], defenses=[{"mi_ol": 0.5}], executions=[4, 8]), "eot_pgd")
    judged = found["more_steps"].judged.inputs.attack
    assert judged
    for name, doubled in (
        ("more_steps", {"steps": [12]}),
        ("more_restarts", {"restarts": 4}),
        ("more_eot", {"eot": 16}),
    ):
        control = found[name].control.inputs.attack
        assert control
        assert dict(control.values) == {**judged.values, **doubled}
        assert found[name].judged.identity["executions"] == 8
    stepped = found["more_steps"].control.inputs.attack
    assert stepped
    assert stepped.key == judged.key  # one trajectory, read later


def test_defenses_under_an_oblivious_attack_share_the_verdict_of_f() -> None:
    plan = planned(defenses=[{"mi_ol": 0.5}, {"gaussian_noise": 0.1}], executions=[1, 5])
    attacked = {cell.key for cell in plan.cells if cell.inputs.attack}
    assert {check.judged.defense.name for check in plan.checks} == {"none"}
    assert all(set(check.cells) == attacked for check in plan.checks)
    assert len(attacked) == 1 + 2 * 2


def test_an_adaptive_attack_is_judged_on_its_own_defense_at_the_largest_number_of_executions() -> None:
    plan = planned(**{**ON_MI_OL, "checks": "subset", "defenses": [{"mi_ol": [0.5, 0.6]}]}, executions=[1, 5])
    for check in plan.checks:
        judged = [cell for cell in plan.cells if cell.key in check.cells]
        assert {canonical(cell.defense.values) for cell in judged} == {canonical(check.judged.defense.values)}
        assert {cell.identity["executions"] for cell in judged} == {1, 5}
        assert check.judged.identity["executions"] == check.control.identity["executions"] == 5
        assert all(not cell.members for cell in judged)


def test_stops_share_the_checks_of_their_trajectory_and_have_their_own_of_more_steps() -> None:
    plan = planned(attacks=[{"pgd": {"steps": [2, 4]}, "epsilon": 0.1}], defenses=["none"])
    cells = {cell.inputs.stop: cell.key for cell in plan.cells if cell.inputs.attack and not cell.members}
    shared = [check for check in plan.checks if check.name != "more_steps"]
    assert {check.name for check in shared} == EVERY_CONTROL - {"more_eot", "more_steps"}
    assert all(set(check.cells) == set(cells.values()) for check in shared)
    steps = {check.control.inputs.stop: check.cells for check in plan.checks if check.name == "more_steps"}
    assert steps == {4: (cells[2],), 8: (cells[4],)}


@pytest.mark.parametrize(
    ("checks", "checked"),
    [("cheap", 0), ("subset", 100), ("full", 120), ({"points": 30}, 40), ({"points": 500}, 120)],
)
def test_checks_run_on_whole_batches_of_the_first_points(checks: Any, checked: int) -> None:
    made = planner(attacks=BOTH, points={"count": 110}, checks=checks)
    plan = made.plan(made.settings())
    cost = made.cost(plan)
    assert (plan.checked, made.sweep.batch) == (checked, 20)
    assert bool(plan.checks) == bool(checked) == (cost["checks_forward"] > 0) == (cost["checks_backward"] > 0)


def test_checks_change_no_cell_and_no_work_of_the_study() -> None:
    plans = [planned(attacks=BOTH, checks=level) for level in ("cheap", "subset", "full")]
    for plan in plans[1:]:
        assert (plan.cells, plan.outputs, plan.attacks) == (plans[0].cells, plans[0].outputs, plans[0].attacks)
        study = {work.key for work in (*plan.attacks, *plan.outputs)}
        theirs = {work.key for work in (*plan.check_attacks(), *plan.check_outputs())}
        assert theirs - study
        assert theirs & study  # twice the steps are read off the study's own trajectory


def test_a_checks_attack_is_asked_for_with_the_stops_of_the_study() -> None:
    plan = planned(attacks=[{"pgd": {"steps": [2, 4]}, "epsilon": 0.1}], defenses=["none"])
    own = plan.attacks[0].key
    assert [work.stops for work in plan.check_attacks() if work.key == own] == [(2, 4, 8)]
    assert [work.stops for work in plan.attacks] == [(2, 4)]


def test_what_evades_a_detector_is_held_against_no_accuracy() -> None:
    methods = [
        {"eot_pgd": {"steps": 2, "loss": "evade"}},
        {"evasion": {"steps": 2}},
        {"eot_pgd": {"steps": 2, "loss": "cross_entropy_of_mean"}},
    ]
    attacks = [{**method, "epsilon": 0.1, "knowledge": "adaptive", "defenses": ["mi_pl"]} for method in methods]
    plan = planned(attacks=attacks, defenses=[{"mi_pl": {"lam": 0.5}}], checks={"points": 20})
    judged = {check.judged.inputs.attack.values.get("loss") for check in plan.checks if check.judged.inputs.attack}
    assert judged == {"cross_entropy_of_mean"}
