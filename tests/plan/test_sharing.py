"""What cells share: one trajectory, one run of executions, joins, and settings that are asked for twice."""

from dataclasses import replace
from typing import Any

import pytest
from helpers.plans import EVERY_DEFENSE, TRAINED, WORKED, baseline, keys, planned, planner

from mi_ray.attacks import ATTACKS
from mi_ray.parameters import Axis
from mi_ray.plan.cost import Costs, in_whole
from mi_ray.plan.planner import product
from mi_ray.study.prepare import REGISTRIES


def test_step_counts_are_one_attack_with_several_stops_and_cells_for_each() -> None:
    plan = planned(attacks=[{"pgd": {"steps": [10, 50]}, "epsilon": 0.1}])
    assert [(work.stops, work.cost) for work in plan.attacks] == [
        ((10, 50), (50, 50))
    ]  # not scored: F's output on the images says it
    steps = {cell.identity["attack_params"] for cell in plan.cells if cell.inputs.attack and not cell.members}
    assert len(steps) == 2
    assert {cell.inputs.name for cell in plan.cells} == {"clean", *(f"{plan.attacks[0].key}@{n}" for n in (10, 50))}


@pytest.mark.parametrize("order", [[[10], [50]], [[50], [10]], [[10, 50], [10]]])
def test_step_counts_asked_for_in_different_entries_are_still_one_trajectory(order: list[list[int]]) -> None:
    entries = [{"pgd": {"steps": steps}, "epsilon": 0.1} for steps in order]
    together = planned(attacks=[{"pgd": {"steps": [10, 50]}, "epsilon": 0.1}])
    apart = planned(attacks=entries)
    assert [(work.key, work.stops, work.cost) for work in apart.attacks] == [
        (work.key, work.stops, work.cost) for work in together.attacks
    ]
    assert keys(apart) == keys(together)


def test_mi_combined_adds_no_work_to_mi_pl_and_mi_ol_and_thresholds_share_outputs() -> None:
    alone = [{"mi_pl": {"lam": [0.4, 0.5]}}, {"mi_ol": {"lam": [0.3, 0.4]}}]
    combined = {"mi_combined": {"lam_pl": [0.4, 0.5], "lam_ol": [0.3, 0.4], "threshold": {"linspace": [0, 1, 6]}}}
    without, with_it = planned(defenses=alone), planned(defenses=[*alone, combined])
    assert with_it.outputs == without.outputs
    assert keys(planned(defenses=[combined]))["outputs clean"] == keys(without)["outputs clean"]
    assert keys(planned(defenses=[combined]))["outputs attacked"] == keys(without)["outputs attacked"]
    assert len(with_it.cells) == len(without.cells) + 2 * 2 * 2 * 6  # clean and attacked


def test_numbers_of_executions_and_draws_are_asked_of_one_piece_of_work() -> None:
    plan = planned(defenses=[{"mi_ol": 0.5}], executions=[1, 5, 30], draws=2)
    component = [work for work in plan.outputs if work.component]
    assert [(work.executions, work.draws) for work in component] == [((1, 5, 30), 2)] * 2
    assert [Costs(ATTACKS, 5).of(work) for work in component] == [(60, 0), (60, 0)]
    assert [Costs(ATTACKS, 5).of(work) for work in plan.outputs if not work.component] == [(1, 0), (1, 0)]


def test_the_detectors_own_number_of_executions_is_read_beside_the_fallbacks() -> None:
    plan = planned(defenses=[EVERY_DEFENSE[-1]], preset="as_published")
    assert {work.component.name: work.executions for work in plan.outputs if work.component} == {
        "mi_pl": (5,),
        "mi_ol": (15,),
    }
    assert {tuple(n for _, n in cell.components) for cell in plan.cells if cell.components} == {(5, 15)}


@pytest.mark.parametrize(
    "grown",
    [
        {"defenses": [*EVERY_DEFENSE, {"uniform_noise": {"amplitude": [0.1, 0.2]}}]},
        {"defenses": [{"gaussian_noise": {"sigma": {"linspace": [0.1, 0.5, 5]}}}, *EVERY_DEFENSE]},
        {"attacks": [{"pgd": {"steps": [2, 4]}, "epsilon": ["8/255", 0.1], "goal": ["untargeted", "targeted"]}]},
        {"executions": [10, 20, 30]},
        {"classifiers": [*TRAINED, {"name": "second", "architecture": {"cnn_small": 4}}]},
    ],
)
def test_extending_a_grid_keeps_every_old_key(grown: dict[str, Any]) -> None:
    old, new = baseline(), keys(planned(**grown))
    assert all(old[kind] <= new[kind] for kind in old)
    assert any(old[kind] < new[kind] for kind in old)


def test_none_is_always_there_first_and_settings_named_twice_are_dropped() -> None:
    twice = [{"gaussian_noise": 0.1}, {"gaussian_noise": {"sigma": [0.1, 0.2]}}, "none"]
    settings = planner(defenses=twice).settings()
    assert [(s.name, s.values()) for s in settings] == [
        ("none", {}),
        ("gaussian_noise", {"sigma": 0.1}),
        ("gaussian_noise", {"sigma": 0.2}),
    ]
    plan = planned(defenses=twice)
    assert len({cell.key for cell in plan.cells}) == len(plan.cells) == 2 * 3


def test_cells_carry_every_identity_column_as_canonical_text() -> None:
    cell = next(c for c in planned().cells if c.defense.name == "mi_combined" and c.inputs.attack)
    assert cell.identity["cell"] == cell.key
    assert cell.identity["attack_params"] == (
        '{"labels":"true","random_start":true,"restarts":1,"step_size":0.00784313725490196,"steps":2}'
    )
    assert '"threshold":0.1' in cell.identity["defense_params"]
    clean = next(c for c in planned().cells if c.inputs.attack is None)
    assert (clean.identity["attack"], clean.identity["epsilon"], clean.identity["knowledge"]) == ("none", 0.0, "none")


def test_points_are_stored_in_whole_batches_within_the_split() -> None:
    stored = [planner(points={"count": n}, batch=b).stored_points for n, b in ((40, 20), (41, 20), (1, 50), (490, 300))]
    assert stored == [40, 60, 50, 500]


def test_product_is_every_combination_in_order() -> None:
    axes = {"a": Axis((1, 2)), "b": Axis(("x", "y"))}
    assert [tuple(values.values()) for values in product(axes)] == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_planning_twice_gives_the_same_plan() -> None:
    assert planned(**WORKED) == planned(**WORKED)


def test_counterparts_are_clean_mixtures_with_the_samples_of_the_adversarial_input() -> None:
    few = {"defenses": [{"mi_ol": 0.5}, {"gaussian_noise": 0.1}, EVERY_DEFENSE[-1]], "checks": "cheap"}
    plain, with_them = planned(**few), planned(**few, counterparts=True)
    assert [cell.key for cell in plain.cells] == [cell.key for cell in with_them.cells]
    for cell in with_them.cells:
        mixes = cell.inputs.attack is not None and cell.defense.name in ("mi_ol", "mi_combined")
        assert len(cell.counterparts) == (len(cell.components) if mixes else 0)
        for (work, n), counterpart in zip(cell.components, cell.counterparts, strict=False):
            assert (counterpart.component, counterpart.executions) == (work.component, (n,))
            assert counterpart.inputs.attack is None
            assert counterpart.undefended == cell.undefended  # its ŷ decides which samples are drawn
    clean = {work.key for cell in with_them.cells if not cell.inputs.attack for work, _ in cell.components}
    extra = {work.key for work in with_them.outputs} - {work.key for work in plain.outputs}
    assert extra == {work.key for cell in with_them.cells for work in cell.counterparts}
    assert not extra & clean


def test_mechanisms_ask_for_each_counterpart_with_the_whole_perturbation_too_and_move_no_other_key() -> None:
    few = {"defenses": [{"mi_ol": 0.5}, {"gaussian_noise": 0.1}, EVERY_DEFENSE[-1]], "checks": "cheap"}
    clean, both = planned(**few, counterparts=True), planned(**few, counterparts="mechanisms")
    assert [cell.key for cell in clean.cells] == [cell.key for cell in both.cells]
    assert not any(cell.transferred for cell in clean.cells)
    for cell in both.cells:
        assert len(cell.transferred) == len(cell.counterparts)
        for whole, counterpart in zip(cell.transferred, cell.counterparts, strict=True):
            assert replace(whole, key=counterpart.key, perturbed=False) == counterpart
            assert cell.inputs.attack is not None
            assert cell.inputs.attack.key in whole.stands_on() - counterpart.stands_on()
    extra = {work.key for work in both.outputs} - {work.key for work in clean.outputs}
    assert extra == {work.key for cell in both.cells for work in cell.transferred}
    passes = [planner(**few).cost(plan)["evaluation_forward"] for plan in (clean, both)]
    counterparts = {work.key: work for cell in both.cells for work in cell.counterparts}
    each = [work.draws * in_whole(work.executions[-1], REGISTRIES.chunk) for work in counterparts.values()]
    assert passes[1] - passes[0] == planner(**few).stored_points * sum(each) > 0
