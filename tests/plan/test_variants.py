"""Variants of a study's options in one plan."""

from typing import Any

import pytest
from helpers.plans import EVERY_DEFENSE, planner
from helpers.sweeps import sweep

from mi_ray.plan.work import united
from mi_ray.study.prepare import prepare

EACH: dict[str, Any] = {
    "attacks": [
        {"pgd": {"steps": 2}, "epsilon": "8/255"},
        {"adaptive": {"steps": 2, "eot": 2}, "epsilon": "8/255", "knowledge": "adaptive", "defenses": ["mi_ol"]},
    ],
    "defenses": [{"mi_ol": 0.5}, {"mi_pl": 0.5}, {"random_rotation": 10}, EVERY_DEFENSE[-1]],
    "variants": "each_option",
    "checks": "cheap",
}


@pytest.fixture(scope="module")
def each_option() -> Any:
    """A study that switches every option alone."""
    return prepare(sweep(**EACH))


def test_every_option_of_the_preset_switched_alone_changes_a_cell(each_option: Any) -> None:
    cells = {name: {c.key for c in made.plan(made.settings()).cells} for name, made in each_option.variants.items()}
    unused = [name for name in cells if name and cells[name] == cells[""]]
    assert len(cells) > 12
    # These two only say more of what another option switches on.
    assert unused == ["pool_augmentation", "pool_limit_in_mi_combined"]


def test_a_cell_of_several_variants_is_there_once_and_names_them_all(each_option: Any) -> None:
    plan = each_option.plan()
    apart = {name: made.plan(made.settings()) for name, made in each_option.variants.items()}
    assert len({cell.key for cell in plan.cells}) == len(plan.cells)
    for cell in plan.cells:
        assert list(cell.variants) == [name for name, own in apart.items() if cell.key in {c.key for c in own.cells}]
    for kind in ("outputs", "attacks"):
        found = [work.key for work in getattr(plan, kind)]
        assert len(found) == len(set(found))
        assert set(found) == {work.key for own in apart.values() for work in getattr(own, kind)}
    bare = [cell for cell in plan.cells if cell.defense.name == "none" and cell.inputs.attack is None]
    assert [cell.variants for cell in bare] == [tuple(apart)]


def test_united_plans_ask_for_all_executions_and_draws_that_any_variant_needs() -> None:
    makers = {
        name: planner(defenses=[{"mi_ol": 0.5}], options=options, checks="cheap")
        for name, options in (("", {}), ("few", {"executions": 7}), ("many", {"draws": 5}))
    }
    plan = united({name: made.plan(made.settings()) for name, made in makers.items()})
    component = [work for work in plan.outputs if work.component]
    assert [(work.executions, work.draws) for work in component] == [((7, 30), 5)] * 2
    clean = [cell for cell in plan.cells if cell.components and cell.inputs.attack is None]
    assert [(cell.identity["executions"], cell.identity["draws"], cell.variants) for cell in clean] == [
        (30, 3, ("",)),
        (7, 3, ("few",)),
        (30, 5, ("many",)),
    ]


def test_variants_share_a_check_and_each_of_its_cells_once() -> None:
    makers = {
        name: planner(options=options, defenses=[{"mi_ol": 0.5}])
        for name, options in (("", {}), ("few", {"executions": 7}))
    }
    plans = {name: made.plan(made.settings()) for name, made in makers.items()}
    plan = united(plans)
    assert len(plan.checks) == len(plans[""].checks) == len(plans["few"].checks)
    for check in plan.checks:
        assert len(set(check.cells)) == len(check.cells)
        assert set(check.cells) == {cell.key for cell in plan.cells if cell.inputs.attack}


def test_a_study_without_variants_is_one_set_of_options() -> None:
    study = prepare(sweep(checks="cheap"))
    assert list(study.variants) == [""]
    assert {cell.variants for cell in study.plan().cells} == {("",)}
