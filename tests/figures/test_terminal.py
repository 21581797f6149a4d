"""The command line's tables: what they are made of, and how they read in a terminal."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from helpers.browsed import write_browsed_study
from helpers.frames import NAMES, cell, failed
from rich.console import Console, RenderableType

from mi_ray.figures.comparing import compared, names_of_both
from mi_ray.figures.terminal import (
    comparison_table,
    frontier_facts,
    passes_summary,
    plan_table,
    states_table,
    study_summary,
    verdict_facts,
)
from mi_ray.store.blocks import Store
from mi_ray.store.read import cells_table, write_cells


def printed(*parts: RenderableType, width: int = 160) -> list[str]:
    """The lines that a terminal without colours shows, a wide one where nothing is said."""
    console = Console(file=io.StringIO(), width=width)
    for part in parts:
        console.print(part)
    written = console.file
    assert isinstance(written, io.StringIO)
    return [" ".join(line.split()) for line in written.getvalue().splitlines()]


@pytest.fixture
def cells() -> pd.DataFrame:
    worst = {"goal": "any", "attack_params": "{}"}
    rows = []
    for defense, lam, clean, attacked in (("none", None, 0.9, 0.0), ("mi_ol", 0.5, 0.8, 0.4), ("mi_ol", 0.6, 0.7, 0.3)):
        params = {} if lam is None else {"lam": lam}
        adaptive = "none" if lam is None else "adaptive"
        rows += [
            cell("mixup", defense, params, "none", clean, checks="{}", verdict="not run"),
            cell("mixup", defense, params, "pgd", attacked, checks=failed("in_box", "so") if lam else "{}"),
            cell("mixup", defense, params, "square", attacked, checks="{}", verdict="failed"),
            cell("mixup", defense, params, "worst_case", attacked / 2, knowledge=adaptive, checks="{}", **worst),
        ]
    return pd.DataFrame(rows)


def test_the_first_attack_and_the_worst_case_are_shown_with_no_defense_for_comparison(cells: pd.DataFrame) -> None:
    first, worst = frontier_facts(cells)
    assert set(first["attack"]) == {"pgd"}
    assert set(worst["attack"]) == {"worst_case"}
    assert first[["defense_params", "undominated"]].to_numpy().tolist() == [['{"lam": 0.5}', True], ["{}", True]]
    assert worst["adversarial"].tolist() == [0.2, 0.0]


def test_no_defense_that_was_attacked_in_one_way_stands_beside_the_worst_cases_with_that_attack(
    cells: pd.DataFrame,
) -> None:
    bare = cells["defense"] == "none"
    worst = frontier_facts(cells[~(bare & cells["attack"].isin(["square", "worst_case"]))])[1]
    assert worst[["defense", "adversarial"]].to_numpy().tolist() == [["mi_ol", 0.2], ["none", 0.0]]
    both = frontier_facts(cells[~(bare & (cells["attack"] == "worst_case"))])[
        1
    ]  # of two attacks neither is the worst by point
    assert both["defense"].tolist() == ["mi_ol"]
    failed_cells = cells["state"].where(~(bare & cells["attack"].isin(["square", "worst_case"])), "failed")
    assert frontier_facts(cells.assign(state=failed_cells))[1]["defense"].tolist() == ["mi_ol"]
    own = cells[~(bare & cells["attack"].isin(["square", "worst_case"]))]
    lost = cells[bare & (cells["attack"] == "worst_case")].assign(state="failed")
    both = pd.concat(
        [frame.assign(variants=[[name]] * len(frame)) for frame, name in ((own, ""), (lost, "as_published"))],
        ignore_index=True,
    )
    assert frontier_facts(both)[1]["defense"].tolist() == [
        "mi_ol",
        "none",
    ]  # What fails under other options is no loss here.


def test_a_dominated_classifier_without_a_defense_is_shown_all_the_same(cells: pd.DataFrame) -> None:
    cells.loc[(cells["defense"] == "mi_ol") & (cells["attack"] == "none"), ["accuracy", "selection_accuracy"]] = 0.95
    first = frontier_facts(cells)[0]
    assert first[["defense", "undominated"]].to_numpy().tolist() == [["none", False], ["mi_ol", True]]


def test_a_summary_has_a_table_for_each_frontier_and_says_what_the_checks_say(cells: pd.DataFrame) -> None:
    lines = printed(*study_summary(cells, NAMES))
    assert "Frontier of mixup: PGD-10, untargeted, ε = 8/255" in lines
    assert "Defense Parameters N Clean % Adversarial %" in lines
    assert "MI-OL lam=0.5 10 80.0 [75.0, 85.0] 40.0 [35.0, 45.0] ✓" in lines
    refused = printed(*study_summary(cells.assign(verdict="failed"), NAMES))
    assert "MI-OL lam=0.5 10 80.0 [75.0, 85.0] 40.0 [35.0, 45.0] ✗" in refused
    assert "Frontier of mixup: Worst case, ε = 8/255" in lines
    assert lines[-2] == "checks of 9 attacked cells: 6 passed, 3 failed (docs/checks.md)"
    assert lines[-1] == "failed: in_box in 2"


def test_cells_that_are_not_done_are_not_judged(cells: pd.DataFrame) -> None:
    assert verdict_facts(cells) == ({"passed": 6, "failed": 3}, {"in_box": 2})
    missing = cells.assign(state=["missing" if attack == "pgd" else "done" for attack in cells["attack"]])
    assert verdict_facts(missing) == ({"passed": 3, "failed": 3}, {})


def test_passes_are_set_beside_those_of_this_run_and_of_cell_by_cell() -> None:
    planned = {"attack_forward": 1000, "attack_backward": 900, "evaluation_forward": 500, "naive_forward": 6000}
    lines = printed(*passes_summary(planned, {"attack_forward": 1200}))
    assert "attack 1,000 1,200 900 0" in lines
    assert "checks 0 0 0 0" in lines
    text = " ".join(lines)
    assert "cell by cell: 6,000 forward passes, 4.0 times the distinct ones" in text


class Work(NamedTuple):
    name: str
    pieces: int
    stored: int
    planned: tuple[int, int]
    left: tuple[int, int]


def test_a_plan_and_the_states_of_a_store_are_tables_of_what_is_given() -> None:
    works: Iterable[Work] = [Work("attack", 2, 1, (3000, 2000), (1500, 1000))]
    assert printed(plan_table("[quick] (results)", works)) == [
        "[quick] (results)",
        "Work Pieces Stored Forward Backward Forward left Backward left",
        "attack 2 1 3,000 2,000 1,500 1,000",
    ]
    assert printed(states_table([("quick", "complete", "4", "4", "0", "0", "2025"), ("bad", "damaged")])) == [
        "Study State Cells Done Failed Missing Written",
        "quick complete 4 4 0 0 2025",
        "bad damaged",
    ]


def test_a_studys_name_is_whole_in_a_narrow_terminal() -> None:
    name = "a_study_of_mixup_inference_behind_everything_else"
    lines = printed(states_table([(name, "complete", "4", "4", "0", "0", "2025-01-01 10:00")]), width=80)
    assert "".join(line.split()[0] for line in lines[1:]) == name
    assert "…" not in "".join(lines)


COMPARED: dict[str, Any] = {
    **{"classifier": "m", "attack": "apgd", "attack_params": '{"steps": 9, "loss": "dlr"}', "goal": "targeted"},
    **{
        "norm": "linf",
        "epsilon": 8 / 255,
        "knowledge": "adaptive",
        "defense": "mi_ol",
        "defense_params": '{"eight": true}',
    },
    **{"executions": 1, "left": 0.5, "right": 0.4, "same_cell": False, "apart": "", "points": 50, "reported": 50},
    **{"difference": -0.1, "low": -0.3, "high": 0.1, "p_value": 0.5},
}


def test_a_comparison_says_where_few_points_are_common() -> None:
    few, all_ = (
        "\n".join(printed(comparison_table(pd.DataFrame([{**COMPARED, "points": n}]), "a", "b", NAMES)))
        for n in (9, 50)
    )
    assert "at the least 9 of 50" in few
    assert "at the least" not in all_


def test_a_comparison_names_attacks_and_settings_as_tables_do() -> None:
    worst = {"attack": "worst_case", "attack_params": "{}", "goal": "any", "apart": "worst of other attacks"}
    rows = [
        COMPARED,
        {**COMPARED, "defense_params": '{"eight": false}', "goal": "untargeted", "same_cell": True},
        {**COMPARED, **worst, "difference": float("nan"), "p_value": float("nan")},
        {**COMPARED, "attack": "none", "attack_params": "{}", "goal": "none", "epsilon": 0.0, "knowledge": "none"},
    ]
    assert printed(comparison_table(pd.DataFrame(rows), "a" * 60, "b" * 60, NAMES)) == [
        f"A: {'a' * 60}",
        f"B: {'b' * 60}",
        "B less A, points of accuracy with 95 % intervals, paired by point",
        "Classifier Attack Defense N A % B % B - A p Points",
        "m adaptive APGD-9 (dlr), targeted, ε = 8/255 MI-OL eight=True 1 50.0 40.0 -10.0 [-30.0, +10.0] 0.5 50",
        "m adaptive APGD-9 (dlr), untargeted, ε = 8/255 MI-OL eight=False 1 50.0 40.0 the same cell – 50",
        "m Worst case, ε = 8/255 MI-OL eight=True 1 50.0 40.0 worst of other attacks – 50",
        "m Clean MI-OL eight=True 1 50.0 40.0 -10.0 [-30.0, +10.0] 0.5 50",
    ]


def test_worst_cases_of_other_attacks_have_no_difference(tmp_path: Path) -> None:
    store = Store(tmp_path / "results", create=True)
    for name, seed in (("one", 0), ("two", 1)):
        write_browsed_study(store, name, seed)
    rows = cells_table(store, "two").to_pylist()
    write_cells(
        store, "two", [row for row in rows if (row["classifier"], row["attack_params"]) != ("left", '{"steps": 20}')]
    )
    found = compared(store, "one", "two")
    worst = found[found["attack"] == "worst_case"]
    assert set(worst.loc[worst["classifier"] == "left", "apart"]) == {"worst of other attacks"}
    assert set(worst.loc[worst["classifier"] == "right", "apart"]) == {""}
    assert (found["difference"].isna() == (found["apart"] != "")).all()
    assert names_of_both(store, "one", "two").defense("mi_ol") == "MI-OL"
