"""Passes of worked examples, counted by hand."""

import re
from typing import Any

import pytest
from helpers.plans import ON_MI_OL, WORKED, planned, planner
from helpers.sweeps import classifier, sweep

from mi_ray.attacks import ATTACKS
from mi_ray.plan.cost import Costs
from mi_ray.study.estimate import black_box_lines, bounds_lines, fewer_checks, long_step_lines, places_line
from mi_ray.study.prepare import prepare


def test_counts_of_a_worked_example() -> None:
    plan = planned(**WORKED)
    inputs = 1 + 2 * 2 * 2  # clean, and each stop of each threat model
    settings = 1 + 2 * 3 + 2 * 2 * 2 * 3  # none has one N
    assert len(plan.attacks) == 2 * 2 * 2  # classifiers x epsilons x goals
    assert len(plan.cells) == 2 * (inputs + 2) * settings  # and the worst case at each epsilon
    assert len(plan.outputs) == 2 * inputs * (1 + 3 + 2 + 2)  # F, sigmas, lam_pl, lam_ol


def test_cost_of_a_worked_example_by_distinct_work_and_cell_by_cell() -> None:
    made = planner(**WORKED, points={"count": 30}, draws=1)
    cost = made.cost(made.plan(made.settings()))
    points = 40  # whole batches of 20
    assert cost["attack_forward"] == points * 8 * 50
    assert cost["attack_backward"] == points * 8 * 50
    assert cost["evaluation_forward"] == points * 2 * 9 * (1 + (3 + 2 + 2) * 5)
    evaluated = 1 + 3 * (2 + 1 + 5) + 12 * (2 + 2 * (1 + 5))  # an own pass a cell, and N of each component
    attacked = (1 + 3 * 2 + 12 * 2) * (10 + 50)
    assert cost["naive_forward"] == points * 2 * (9 * evaluated + 4 * attacked)
    assert cost["naive_backward"] == points * 2 * 4 * (1 + 6 + 24) * (10 + 50)


def test_a_grid_like_figure_3b_costs_over_fifty_times_less_than_cell_by_cell() -> None:
    lams = {"linspace": [0.1, 0.9, 9]}
    combined = {"lam_pl": lams, "lam_ol": lams, "threshold": {"linspace": [0.05, 0.5, 10]}}
    made = planner(
        defenses=[{"gaussian_noise": {"sigma": {"linspace": [0.005, 0.05, 10]}}}, {"mi_combined": combined}],
        attacks=[{"pgd": {"steps": [10]}, "epsilon": "8/255"}],
        executions=[1, 5, 10, 20, 30],
    )
    plan = made.plan(made.settings())
    cost = made.cost(plan)
    assert len(plan.cells) == 2 * (1 + 5 * (10 + 9 * 9 * 10))
    assert cost["naive_forward"] / (cost["attack_forward"] + cost["evaluation_forward"]) > 50


def test_training_is_counted_in_passes_over_whole_batches() -> None:
    work = planner(classifiers=classifier(training={"epochs": 3, "batch_size": 100})).classifiers[0]
    assert work.cost == (3 * 12 * 100, 3 * 12 * 100)
    attacked = planner(classifiers=classifier(objective={"adversarial": {"steps": 4}}, training={"epochs": 1}))
    assert attacked.classifiers[0].cost == (20 * 64 * 6, 20 * 64 * 6)


def test_cost_of_checks_is_what_they_need_beyond_the_study() -> None:
    pgd = [{"pgd": {"steps": [2, 4]}, "epsilon": 0.1}]
    made = planner(attacks=pgd, defenses=["none"], checks={"points": 20}, points={"count": 40})
    plan = made.plan(made.settings())
    cost = made.cost(plan)
    controls = {check.name: check.control.inputs.attack for check in plan.checks if check.control is not None}
    assert "black_box_not_stronger" not in controls  # dearer than the study
    forward = 8 - 4  # the same trajectory on to 8 steps
    forward += 2 * (4 + 1)  # twice the restarts, scored at the last stop
    forward += 2 * 4  # epsilon 0 and twice epsilon
    forward += 100  # epsilon 0.5
    forward += 20  # the reference
    forward += made.costs.of(controls["random_noise_not_stronger"])[0]  # type: ignore[arg-type]
    outputs = 7  # F once on the images of each control: 8 steps is one, 4 are the study's own
    assert cost["checks_forward"] == 20 * (forward + outputs)
    assert cost["checks_backward"] == 20 * ((8 - 4) + 2 * 4 + 2 * 4 + 100 + 20)
    assert cost["attack_forward"] == 40 * 4
    assert set(cost) == {
        "training_forward",
        "training_backward",
        "attack_forward",
        "attack_backward",
        "evaluation_forward",
        "checks_forward",
        "checks_backward",
        "naive_forward",
        "naive_backward",
    }


def test_cost_of_an_adaptive_attack_counts_the_executions_of_each_step() -> None:
    made = planner(
        **{
            **ON_MI_OL,
            "attacks": [
                {"eot_pgd": {"steps": 3, "eot": 7, "scoring_draws": 2}, "epsilon": 0.1, "knowledge": "adaptive"}
            ],
        }
    )
    each = 1 + 10  # ŷ, and seven executions in two chunks of five
    cost = made.cost(made.plan(made.settings()))
    assert (cost["attack_forward"], cost["attack_backward"]) == (
        40 * (3 + 2) * each,
        40 * 3 * (each - 1),
    )  # ŷ has no gradient


@pytest.mark.parametrize(
    ("steps", "points", "busy", "gpus"),
    [([5], 10, 12, "3"), ([5], 60, 2, "0.5"), ([5, 20], 10, 12, "3"), ([5], 500, 1, "0.25")],
)
def test_a_plan_says_how_many_blocks_its_attacks_keep_busy(steps: list[int], points: int, busy: int, gpus: str) -> None:
    study = prepare(
        sweep(
            classifiers=classifier(name="a", workers=4),
            points={"count": 120},
            attacks=[{"pgd": {"steps": steps}, "epsilon": 0.1}],
            resources={"block": {"points": points, "cpus": 2, "gpus": 0.25}},
        )
    )
    told = places_line(study, study.plan())
    assert told.startswith("on a cluster: trainings take 4 x 1 CPU side by side; ")
    assert f"attacks keep up to {busy} x 2 CPU and 0.25 GPU ({gpus} GPUs) busy, since the longest block of " in told
    assert f" is 1/{busy} of their passes" in told


def test_one_long_attack_beside_short_ones_bounds_how_many_blocks_are_busy() -> None:
    attacks = [{"pgd": {"steps": [steps]}, "epsilon": epsilon} for steps, epsilon in ((1, 0.1), (1, 0.2), (98, 0.3))]
    study = prepare(
        sweep(
            classifiers=classifier(name="a"),
            points={"count": 100},
            attacks=attacks,
            resources={"block": {"points": 100}},
        )
    )
    assert "attacks keep up to 1 x 1 CPU busy" in places_line(study, study.plan())


def test_a_plan_says_which_of_its_passes_are_bounds() -> None:
    pgd = {"pgd": {"steps": [2, 4]}, "epsilon": 0.1}
    quick = {"cascade": {"effort": "quick"}, "epsilon": 0.1}
    random = {"defenses": ["none", {"gaussian_noise": {"sigma": 0.1}}], "points": {"count": 100}}

    def told(*attacks: dict[str, Any], checks: str = "subset", **changes: Any) -> list[str]:
        return bounds_lines(planned(attacks=list(attacks), checks={"level": checks, "black_box": "never"}, **changes))

    assert told(pgd, defenses=["none"]) == []
    (alone,) = told(quick, defenses=["none"])
    assert alone.startswith("passes of cascade: at most")
    (asked,) = told({**pgd, "knowledge": "adaptive"}, draws=2, **random)
    assert re.match(
        r"passes of checks: at least, since [1-9]\d* checks behind random defenses ask for up to 30 draws", asked
    )
    assert told({**pgd, "knowledge": "adaptive"}, draws=30, **random) == []


def test_a_plan_says_which_steps_are_as_long_as_their_ball_is_wide() -> None:
    def told(*attacks: dict[str, Any]) -> list[str]:
        return long_step_lines(planned(attacks=list(attacks), defenses=["none"]))

    (line,) = told({"pgd": {"steps": [2, 4], "step_size": 0.5}, "epsilon": ["2/255", 0.3]})
    assert line.endswith("of which each ends on its edge: pgd of step_size 0.5 in a ball of radius 0.00784")
    assert told({"pgd": {"steps": 2, "step_size": 0.1}, "epsilon": 0.06}) == []  # one over the middle is usual
    assert told({"pgd": {"steps": 2, "step_size": 0.1}, "epsilon": 0.0}, {"minimum_norm": {}, "epsilon": [0.01]}) == []


@pytest.mark.parametrize(
    ("checks", "told"),
    [
        ({"points": 200}, "`checks: {points: 50}` judges on fewer points, "),
        ({"points": 60}, "`checks: {points: 20}` judges on fewer points, "),
        ({"points": 20}, ""),  # a batch, of which there is no part
        ("full", "`checks: subset`, "),
    ],
)
def test_fewer_checks_are_offered_where_there_can_be_fewer(checks: Any, told: str) -> None:
    assert fewer_checks(sweep(checks=checks, batch=20, points={"count": 300})) == told


@pytest.mark.parametrize(
    ("checks", "epsilon", "told"),
    [
        ("subset", {"epsilon": 0.1}, True),
        ({"black_box": "always"}, {"epsilon": 0.1}, False),
        ("cheap", {"epsilon": 0.1}, False),
        ("subset", {"epsilon": 5.0, "norm": "l1"}, False),  # in which there is none
        ("subset", {"epsilon": 0.1, "goal": "targeted"}, False),  # nor is there with targets
    ],
)
def test_a_plan_that_leaves_the_black_box_out_says_so(checks: Any, epsilon: dict[str, Any], told: bool) -> None:
    attack = {"pgd": {"steps": 2}, **epsilon}
    lines = black_box_lines(planned(attacks=[attack], defenses=["none"], points={"count": 100}, checks=checks))
    assert [line[:40] for line in lines] == ["no attack is held against a black box, w"] * told


@pytest.mark.parametrize(
    ("sigma", "trials", "settings"),
    [({"linspace": [0.1, 0.5, 9]}, 40, 40), ([0.1, 0.2, 0.3], 40, 3 + 1), ([0.1, 0.2, 0.3], 2, 2)],
)
def test_a_search_is_counted_by_its_trials_and_never_beyond_its_settings(
    sigma: Any, trials: int, settings: int
) -> None:
    made = planner(
        attacks=[{"pgd": {"steps": [2, 4]}, "epsilon": 0.1}],
        defenses=["none", {"gaussian_noise": {"sigma": sigma}}, {"random_rotation": {"degrees": 10}}],
        search={"optuna": {"trials": trials}},
        points={"count": 30, "selection": 10},
        executions=[1, 7],
        draws=2,
        checks="cheap",
    )
    inputs, chunks, classifiers = (
        1 + 2,
        10,
        len(made.classifiers),
    )  # clean and two stops; 7 executions are two chunks of 5
    assert made.planned_passes(made.plan(made.settings()[:1])) == 40 * classifiers * (
        (4 + 4) + inputs + trials * inputs * 2 * chunks  # PGD-4 both ways, F's own outputs, all trials
    )
    assert made.search_passes() == (settings * classifiers * 40 * inputs * 2 * chunks, 0)


def test_cell_by_cell_has_the_counterparts_that_a_study_asks_for() -> None:
    naive = {}
    for counterparts in (False, True):
        made = planner(
            attacks=[{"pgd": {"steps": [2]}, "epsilon": 0.1}],
            defenses=[{"mi_ol": {"lam": 0.5}}],
            points={"count": 40},
            executions=5,
            draws=1,
            counterparts=counterparts,
        )
        plan = made.plan(made.settings())
        naive[counterparts] = made.cost(plan)["naive_forward"]
        beside = sum(len(cell.counterparts) for cell in plan.cells if cell.defense.name == "mi_ol")
    assert beside > 0
    assert naive[True] - naive[False] == 40 * 5 * beside


def test_what_was_asked_of_one_setting_is_told_of_no_other() -> None:
    defenses = [
        {"gaussian_noise": {"sigma": [0.1, 0.2]}},
        {"mi_combined": {"lam_pl": 0.6, "lam_ol": 0.5, "threshold": 0.1}},  # of two components, and so of other passes
    ]
    attacks = [{"eot_pgd": {"steps": [2, 4]}, "epsilon": 0.1, "knowledge": "adaptive"}]
    made = planner(attacks=attacks, defenses=defenses, executions=[1, 20], checks={"points": 20})
    plan = made.plan(made.settings())
    works = [*plan.attacks, *plan.check_attacks()]
    assert len({made.costs.of(work) for work in works}) > 3
    assert all(made.costs.of(work) == Costs(ATTACKS, made.costs.chunk).of(work) for work in works)
    assert len({check.clean.key for check in plan.checks}) == 3
    for check in plan.checks:
        assert check.clean.defense == check.judged.defense
        assert check.clean.classifier == check.judged.classifier
        assert check.clean.identity["executions"] == check.judged.identity["executions"]
