"""What the figures and tables say, computed from rows alone."""

import json
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from helpers.frames import NAMES, cell, failed
from matplotlib.figure import Figure

from mi_ray.figures import fig3b, frontier_table, tables
from mi_ray.figures.panels import cross_out
from mi_ray.store.schemas import CELLS


def pair(
    defense: str, params: dict[str, Any], clean: float, adversarial: float, **changes: Any
) -> list[dict[str, Any]]:
    return [
        cell("mixup", defense, params, "none", clean, **changes),
        cell("mixup", defense, params, "pgd", adversarial, **changes),
    ]


@pytest.fixture
def cells() -> pd.DataFrame:
    failed = cell("other", "none", {}, "none", 0.0, state="failed", points=None, selection_points=None)
    rows = [
        failed,
        *pair("none", {}, 0.9, 0.1, executions=1),
        *pair("mi_ol", {"lam": 0.5}, 0.65, 0.5),
        *pair("mi_ol", {"lam": 0.7}, 0.85, 0.4),
        *pair("mi_ol", {"lam": 0.9}, 0.89, 0.2),
        *pair("mi_pl", {"lam": 0.5}, 0.3, 0.3),
    ]
    return pa.Table.from_pylist(rows, schema=CELLS).to_pandas()


def test_the_table_picks_the_most_robust_setting_within_the_clean_budget(cells: pd.DataFrame) -> None:
    table = frontier_table.facts(cells, NAMES).set_index("defense")
    assert table.loc["mi_ol", "parameters"] == "lam=0.7"
    assert table.loc["mi_ol", "PGD-10, untargeted, ε = 8/255"] == pytest.approx(0.4)
    assert bool(table.loc["mi_ol", "within_budget"])
    assert not table.loc["mi_pl", "within_budget"]


def test_the_setting_is_picked_on_selection_points_and_shown_on_the_others(cells: pd.DataFrame) -> None:
    better = (cells["defense_params"] == json.dumps({"lam": 0.9})) & (cells["attack"] == "pgd")
    cells.loc[better, "selection_accuracy"] = 0.99
    table = frontier_table.facts(cells, NAMES).set_index("defense")
    assert table.loc["mi_ol", "parameters"] == "lam=0.9"
    assert table.loc["mi_ol", "PGD-10, untargeted, ε = 8/255"] == pytest.approx(0.2)


def test_two_attacks_of_one_name_have_a_column_each(cells: pd.DataFrame) -> None:
    pgd = cells[cells["attack"] == "pgd"]
    steps = [
        pgd.assign(attack_params=json.dumps({"steps": 10, "step_size": step}), accuracy=step) for step in (0.01, 0.02)
    ]
    table = frontier_table.facts(pd.concat([cells[cells["attack"] == "none"], *steps], ignore_index=True), NAMES)
    for step in (0.01, 0.02):
        assert set(table[f"PGD-10 (step size {step}), untargeted, ε = 8/255"]) == {step}
    with pytest.raises(ValueError, match="a place each"):
        frontier_table.facts(pd.concat([cells, pgd], ignore_index=True), NAMES)


def test_a_failed_first_cell_does_not_keep_the_table_from_being_written(cells: pd.DataFrame) -> None:
    text, note = (
        frontier_table.shown(frontier_table.facts(cells, NAMES), NAMES),
        frontier_table.footnote(cells, frontier_table.facts(cells, NAMES), NAMES),
    )
    assert "200 points" in note
    assert "| mixup | MI-OL | lam=0.7 | 10 | 85.0 [80.0, 90.0] | 40.0 [35.0, 45.0] ✓ |" in tables.markdown(text, note)
    assert r"PGD-10, untargeted, $\epsilon$ = 8/255 \\" in tables.latex(text, note)


def test_a_failed_check_is_marked_and_named_in_table_and_figure(cells: pd.DataFrame) -> None:
    bad = (cells["defense_params"] == json.dumps({"lam": 0.7})) & (cells["attack"] == "pgd")
    cells.loc[bad, ["verdict", "checks"]] = ["failed", failed("more_steps", "doubled: 40.0 % against 30.0 %")]
    text, note = (
        frontier_table.shown(frontier_table.facts(cells, NAMES), NAMES),
        frontier_table.footnote(cells, frontier_table.facts(cells, NAMES), NAMES),
    )
    column = "PGD-10, untargeted, ε = 8/255"
    assert list(text[column].str[-1]) == ["✓", "✗", "✓"]
    assert "more_steps in 1 (first mixup, MI-OL, PGD-10, untargeted, ε = 8/255: doubled: 40.0 % against 30.0 %)" in note
    assert r"$\times$" in tables.latex(text, note)
    _, said = fig3b.describe(fig3b.facts(cells), NAMES)
    assert "attacked cells: more_steps (1)" in said


def test_a_curve_follows_its_axis_and_far_settings_are_counted_not_drawn(cells: pd.DataFrame) -> None:
    table = fig3b.facts(cells)
    curve = table[(table["defense"] == "mi_ol") & table["curve"]]
    assert [json.loads(text)["lam"] for text in curve["defense_params"]] == [0.5, 0.7, 0.9]
    assert list(table[~table["shown"]]["defense"]) == ["mi_pl"]
    title, note = fig3b.describe(table, NAMES)
    assert title == "digits: PGD-10, untargeted, ε = 8/255"
    assert "chosen on 100 selection points" in note
    assert "settings that give up over 30 points of clean accuracy, not shown: 1" in note


def test_the_figure_has_a_panel_for_each_classifier_and_rings_the_undominated(cells: pd.DataFrame) -> None:
    table = fig3b.facts(cells)
    assert set(table[table["undominated"]]["defense_params"]) == {
        json.dumps({}),
        json.dumps({"lam": 0.5}),
        json.dumps({"lam": 0.7}),
        json.dumps({"lam": 0.9}),
    }
    figure = fig3b.draw(table, NAMES, "title", "note")
    assert [axes.get_title() for axes in figure.axes] == ["mixup"]


def test_further_attacks_are_named_as_not_shown(cells: pd.DataFrame) -> None:
    more = cells[cells["attack"] == "pgd"].assign(goal="targeted", cell=lambda frame: frame["cell"] + "t")
    _, note = fig3b.describe(fig3b.facts(pd.concat([cells, more], ignore_index=True)), NAMES)
    assert "further attacks of the study, not shown: 1" in note


def test_a_point_whose_cell_failed_a_check_is_crossed_out_and_no_other() -> None:
    axes = Figure().subplots()
    cross_out(axes, [1.0, 2.0], [3.0, 4.0], pd.DataFrame({"verdict": ["passed", "failed"]}))
    (crosses,) = axes.collections
    assert crosses.get_offsets().tolist() == [[2.0, 4.0]]
