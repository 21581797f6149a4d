"""The controls that a plan makes of the table of checks, and the cells that share them."""

import json
from typing import Any

import pytest
from helpers.plans import AVERAGED, BOTH, ON_MI_OL, planned, planner

from mi_ray.plan.work import AttackWork, Check, Plan
from mi_ray.store.keys import canonical
from mi_ray.study.prepare import REGISTRIES

FREE = {"budget", "gradients_not_zero", "pushed_back", "elsewhere"}  # which have no control to run
EVERY_CONTROL = {
    "reference",
    "headway",
    "more_steps",
    "more_restarts",
    "more_eot",
    "epsilon_zero",
    "monotone_in_epsilon",
    "large_epsilon",
    "black_box_not_stronger",
    "random_noise_not_stronger",
    "fixed_randomness",
}
BEHIND = {"more_eot", "fixed_randomness"}  # of attacks through a defense alone


def attack_of(check: Check) -> AttackWork:
    """The attack of a check's control."""
    assert check.control is not None
    assert check.control.inputs.attack is not None
    return check.control.inputs.attack


def checks_of(plan: Plan, attack: str, goal: str = "untargeted") -> dict[str, Check]:
    """Check name -> the check of an attack's last stop."""
    found: dict[str, Check] = {}
    for check in plan.checks:
        judged = [cell for cell in plan.cells if cell.key in check.cells]
        if judged and {(c.identity["attack"], c.identity["goal"]) for c in judged} == {(attack, goal)}:
            found[check.name] = check
    return found


@pytest.mark.parametrize(
    ("attack", "goal", "names"),
    [
        ({"pgd": {"steps": 2}, "epsilon": 0.1}, "untargeted", EVERY_CONTROL - BEHIND),
        ({"pgd": {"steps": 2}, "epsilon": 0.1}, "targeted", {"reference", "more_steps", "more_restarts"}),
        (ON_MI_OL["attacks"][0], "untargeted", EVERY_CONTROL),
        (ON_MI_OL["attacks"][0], "targeted", {"reference", "more_steps", "more_restarts", "more_eot"}),
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
    plan = planned(attacks=[{**attack, "goal": goal}], defenses=[{"mi_ol": 0.5}], checks="full")
    found = checks_of(plan, method, goal)
    free = FREE if REGISTRIES.attacks[method].follows_gradients else {"elsewhere"}
    free = free - {"pushed_back"} if goal == "targeted" else free
    assert found.keys() - {"more_restarts"} == (names | free) - {"more_restarts"}
    assert ("more_restarts" in found) == ("restarts" in REGISTRIES.attacks[method].parameters())
    for name, check in found.items():
        if check.control is None:
            assert name in FREE
            continue
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
        control = attack_of(found[name])
        assert dict(control.values) == {**judged.values, **doubled}
        assert found[name].judged.identity["executions"] == 8
    assert attack_of(found["more_steps"]).key == judged.key  # one trajectory, read later


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
        assert check.judged.identity["executions"] == check.clean.identity["executions"] == 5
        assert check.control is None or check.control.identity["executions"] == 5
        assert all(not cell.members for cell in judged)


def test_stops_share_the_checks_of_their_trajectory_and_have_their_own_of_more_steps() -> None:
    plan = planned(attacks=[{"pgd": {"steps": [2, 4]}, "epsilon": 0.1}], defenses=["none"])
    cells = {cell.inputs.stop: cell.key for cell in plan.cells if cell.inputs.attack and not cell.members}
    rules = {rule.name: rule for rule in REGISTRIES.checks}
    shared = [check for check in plan.checks if rules[check.name].of_trajectory]
    assert {check.name for check in shared} == {rule.name for rule in rules.values() if rule.of_trajectory} - {
        "more_eot",
        "binarization",
    }
    assert all(set(check.cells) == set(cells.values()) for check in shared)
    references = {attack_of(check).key for check in plan.checks if check.name == "reference"}
    assert len(references) == 1  # both stops are held against the same one
    steps = {
        check.control.inputs.stop: check.cells for check in plan.checks if check.name == "more_steps" and check.control
    }
    assert steps == {4: (cells[2],), 8: (cells[4],)}


@pytest.mark.parametrize(
    ("checks", "checked"),
    [("cheap", 0), ("subset", 400), ("full", 500), ({"points": 30}, 40), ({"points": 900}, 500)],
)
def test_checks_run_on_whole_batches_of_the_first_points(checks: Any, checked: int) -> None:
    made = planner(attacks=BOTH, points={"count": 490}, checks=checks)
    plan = made.plan(made.settings())
    cost = made.cost(plan)
    assert (plan.checked, made.sweep.batch) == (checked, 20)
    assert bool(plan.check_attacks()) == bool(checked) == (cost["checks_forward"] > 0) == (cost["checks_backward"] > 0)
    points = {check.name: check.points for check in plan.checks if check.control is not None}
    if checked == 400:
        assert {points[name] for name in ("reference", "headway")} == {400}
        assert {points[name] for name in ("more_steps", "more_eot", "random_noise_not_stronger")} == {100}
        assert {points[name] for name in ("epsilon_zero", "monotone_in_epsilon", "large_epsilon")} == {20}
    assert {check.points for check in plan.checks if check.control is None} == {500}


def test_the_black_box_is_run_as_far_as_all_checks_cost_no_more_than_the_study() -> None:
    def planned_by(**checks: Any) -> tuple[int, dict[str, int]]:
        made = planner(attacks=BOTH, points={"count": 400}, draws=10, checks=checks)
        plan = made.plan(made.settings())
        dear = {check.points for check in plan.checks if check.name == "black_box_not_stronger"}
        return max(dear, default=0), made.cost(plan)

    points, cost = planned_by()
    study = cost["attack_forward"] + cost["attack_backward"] + cost["evaluation_forward"]
    assert 20 <= points <= 100
    assert cost["checks_forward"] + cost["checks_backward"] <= study
    assert planned_by(black_box="always")[0] == 100
    assert planned_by(black_box="never")[0] == 0


def test_known_solutions_are_sought_where_a_sweep_asks_for_it_and_by_attacks_on_f_alone() -> None:
    attacks = [{"pgd": {"steps": [2, 4]}, "epsilon": 0.1}, ON_MI_OL["attacks"][0]]
    plans = {
        count: planned(attacks=attacks, defenses=[{"mi_ol": 0.5}], checks={"binarization": count}) for count in (0, 8)
    }
    assert not [check for check in plans[0].checks if check.name == "binarization"]
    (check,) = (check for check in plans[8].checks if check.name == "binarization")
    control = attack_of(check)
    assert (control.method, control.defense) == ("binarization", None)
    assert json.loads(control.values["of"]) == {"pgd": {**check.judged.inputs.attack.values, "steps": 4}}
    cells = {cell.key: cell for cell in plans[8].cells}
    assert {cells[key].defense.name for key in check.cells} == {"none", "mi_ol"}
    assert {work.key for work in plans[8].attacks} == {work.key for work in plans[0].attacks}


def test_the_black_box_is_run_on_one_setting_of_each_defense() -> None:
    attack = {"eot_pgd": {"steps": 2}, "epsilon": 0.1, "knowledge": "adaptive"}
    plan = planned(
        attacks=[attack], defenses=[{"mi_ol": [0.5, 0.6]}, {"random_rotation": {"degrees": [5, 10]}}], checks="full"
    )
    settings = [check.judged.defense for check in plan.checks if check.name == "black_box_not_stronger"]
    assert [(name, values.get("lam", values.get("degrees"))) for name, values in settings] == [
        ("mi_ol", 0.5),
        ("random_rotation", 5.0),
    ]


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
    assert {check.name for check in plan.checks} >= {"reference", "budget"}
    assert judged == {"cross_entropy_of_mean"}


def test_controls_of_the_programs_own_leave_true_labels_whatever_the_attack_leaves() -> None:
    options = {"attack_labels": "predicted"}
    for attacks in ([{"pgd": {"steps": 2}, "epsilon": 0.1}], ON_MI_OL["attacks"]):
        plan = planned(attacks=attacks, defenses=[{"mi_ol": 0.5}], checks="full", options=options)
        found = checks_of(plan, next(iter(attacks[0])))
        labels = {name: attack_of(check).labels for name, check in found.items() if check.control is not None}
        of_its_own = {"reference", "headway", "random_noise_not_stronger", "black_box_not_stronger", "fixed_randomness"}
        assert {name for name, left in labels.items() if left == "true"} == of_its_own & labels.keys()
        assert labels.keys() - of_its_own >= {"more_steps", "epsilon_zero", "large_epsilon"}


def test_no_control_asks_for_a_value_that_the_attacks_parameters_do_not_allow() -> None:
    # Its steps are at most 1, a hundred of which would not get across the largest ball of L1 if they were lengths. They are
    # shares of epsilon, which a plan does not know, so that the check is left out.
    attacks = [{"fixed_randomness": {"step_size": 0.8}, "epsilon": 5, "norm": "l1", "knowledge": "adaptive"}]
    found = checks_of(planned(attacks=attacks, defenses=[{"mi_ol": 0.5}], checks="full"), "fixed_randomness")
    assert attack_of(found["monotone_in_epsilon"]).values["step_size"] == 1
    assert "large_epsilon" not in found


@pytest.mark.parametrize("order", ["drawn", "first"])
def test_other_points_tell_of_the_controls_points_where_both_are_drawn_alone(order: str) -> None:
    plan = planned(
        attacks=[{"pgd": {"steps": [2]}, "epsilon": 0.1}], points={"count": 60, "order": order}, defenses=["none"]
    )
    names = {check.name for check in plan.checks}
    assert ("elsewhere" in names) == (order == "drawn")
    assert "pushed_back" in names


@pytest.mark.parametrize(("steps", "control"), [(60_000, [100_000]), (100_000, None)])
def test_a_control_asks_for_no_more_than_there_may_be(steps: int, control: Any) -> None:
    found = checks_of(planned(attacks=[{"pgd": {"steps": steps}, "epsilon": 0.1}], defenses=["none"]), "pgd")
    longer = found["more_steps"].control if "more_steps" in found else None
    assert (longer and longer.inputs.attack and dict(longer.inputs.attack.values)["steps"]) == control
