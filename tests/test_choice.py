"""Which settings are chosen by their result, on which points, and that all that shows them asks the same function."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import mi_ray.figures
from mi_ray.choice import FRONTIER_KEYS, choosing, chosen_on, curve, frontier, one_each, picked
from mi_ray.statistics import by_threat, of_variant


def _cell(defense: str, attack: str, accuracy_: float, selection: float | None, **other: Any) -> dict[str, Any]:
    return {
        "cell": f"{defense}-{attack}{other}",
        "classifier": "f",
        "classifier_key": "k",
        "defense": defense,
        "defense_params": "{}",
        "executions": 30,
        "draws": 3,
        "attack": attack,
        "attack_params": "{}",
        "goal": "untargeted",
        "norm": "linf",
        "epsilon": 0.03,
        "knowledge": "oblivious",
        "state": "done",
        "accuracy": accuracy_,
        "accuracy_low": accuracy_ - 0.1,
        "accuracy_high": accuracy_ + 0.1,
        "selection_accuracy": selection,
        "selection_points": 0 if selection is None else 50,
        **other,
    }


def _cells(selection: bool, **other: Any) -> pd.DataFrame:
    # a is the best of both on the reported points, b on the selection points
    accuracies = {"a": (0.9, 0.6, 0.7, 0.2), "b": (0.8, 0.5, 0.8, 0.3), "c": (0.7, 0.1, 0.6, 0.1)}
    rows = []
    for name, (clean, attacked, clean_chosen, attacked_chosen) in accuracies.items():
        rows.append(_cell(name, "none", clean, clean_chosen if selection else None))
        rows.append(_cell(name, "pgd", attacked, attacked_chosen if selection else None, **other))
    return pd.DataFrame(rows).astype({"selection_accuracy": float})


@pytest.mark.parametrize(("selection", "winner"), [(True, "b"), (False, "a")])
def test_a_frontier_is_picked_on_selection_points_where_there_are_some(selection: bool, winner: str) -> None:
    table = frontier(_cells(selection)).set_index("defense")
    assert table.index[table["undominated"]].tolist() == [winner]


def test_a_frontier_reports_other_points_than_it_picks_on() -> None:
    row = frontier(_cells(True)).set_index("defense").loc["b"]
    assert (row["clean"], row["adversarial"]) == (0.8, 0.5)
    assert (row["clean_low"], row["adversarial_high"]) == pytest.approx((0.7, 0.6))
    assert (row["clean_to_choose"], row["adversarial_to_choose"]) == (0.8, 0.3)


def test_a_frontier_compares_within_one_attack_and_threat_only() -> None:
    cells = pd.concat([_cells(False), _cells(False, goal="targeted").query("attack != 'none'")])
    cells.loc[(cells["defense"] == "a") & (cells["goal"] == "targeted"), "accuracy"] = 0.0
    table = frontier(cells)
    best = {goal: set(part.loc[part["undominated"], "defense"]) for goal, part in table.groupby("goal")}
    assert best == {"untargeted": {"a"}, "targeted": {"a", "b"}}


def test_a_frontier_leaves_out_cells_that_are_not_done() -> None:
    cells = _cells(False)
    cells.loc[(cells["defense"] == "a") & (cells["attack"] == "pgd"), "state"] = "failed"
    table = frontier(cells)
    assert set(table["defense"]) == {"b", "c"}
    assert set(FRONTIER_KEYS) <= set(table.columns)


def test_a_frontier_names_both_cells_of_a_setting() -> None:
    row = frontier(_cells(False)).set_index("defense").loc["b"]
    assert (row["cell"], row["clean_cell"]) == ("b-pgd{}", "b-none{}")


def test_a_frontier_is_of_one_variant() -> None:
    cells = _cells(False).assign(variants=[["", "other"]] * 2 + [[""]] * 2 + [["other"]] * 2)
    assert set(frontier(cells)["defense"]) == {"a", "b"}
    assert set(frontier(cells, "other")["defense"]) == {"a", "c"}
    assert len(of_variant(cells.assign(variants=None))) == len(of_variant(_cells(False))) == 6


def test_worst_cases_are_one_attack_whatever_the_adversary_knew() -> None:
    worst = [_cell("none", "worst_case", 0.1, None), _cell("a", "worst_case", 0.3, None, knowledge="adaptive")]
    threats = [set(group["defense"]) for group in by_threat(pd.concat([_cells(False), pd.DataFrame(worst)]))]
    assert threats == [{"a", "b", "c"}, {"a", "b", "c"}, {"none", "a"}]
    adaptive = _cells(False, knowledge="adaptive").query("attack != 'none'")
    assert len(list(by_threat(pd.concat([_cells(False), adaptive])))) == 3


def test_selection_points_choose_and_all_points_where_there_are_none() -> None:
    assert choosing([True, False, False]).tolist() == [True, False, False]
    assert choosing([False, False]).tolist() == [True, True]
    assert chosen_on(500) == "500 selection points"
    assert "optimistic" in chosen_on(0)
    assert frontier(_cells(True))["choosing_points"].unique().tolist() == [50]
    assert frontier(_cells(False))["choosing_points"].unique().tolist() == [0]


def test_a_cell_without_selection_accuracy_makes_all_settings_be_chosen_on_the_reported_points() -> None:
    cells = _cells(True)
    cells.loc[0, "selection_accuracy"] = np.nan
    table = frontier(cells)
    assert (table["choosing_points"] == 0).all()
    assert table["clean_to_choose"].tolist() == table["clean"].tolist()


def _study(settings: dict[str, list[tuple[float, ...]]], attacks: tuple[str, ...] = ("pgd", "apgd")) -> pd.DataFrame:
    """Cells of settings, defense -> (clean, then one accuracy an attack) on selection points; 0.5 of each on the others."""
    rows = []
    for defense, found in settings.items():
        for number, accuracies in enumerate(found):
            for attack, value in zip(("none", *attacks), accuracies, strict=False):
                cell = f"{defense}{number}-{attack}"
                rows.append(_cell(defense, attack, 0.5, value, defense_params=f"{number}", cell=cell))
    return pd.DataFrame(rows)


def _picks(cells: pd.DataFrame) -> dict[str, tuple[str, bool]]:
    """defense -> (number of the setting, whether it is within the budget); the same under every attack that it has."""
    found = picked(frontier(cells)).groupby("defense")[["defense_params", "within_budget"]].agg(["unique", "size"])
    assert all(len(values) == 1 for values in found["defense_params", "unique"])
    chosen = zip(found["defense_params", "unique"], found["within_budget", "unique"], strict=True)
    return {name: (str(a[0]), bool(b[0])) for name, (a, b) in zip(found.index, chosen, strict=True)}


BARE = [(0.9, 0.1, 0.1)]


def test_the_setting_of_the_highest_worst_case_within_the_budget_is_picked_for_all_attacks() -> None:
    settings = {"none": BARE, "a": [(0.85, 0.6, 0.2), (0.82, 0.4, 0.3), (0.7, 0.9, 0.9)]}
    assert _picks(_study(settings)) == {"none": ("0", True), "a": ("1", True)}


def test_a_setting_at_the_end_of_the_budget_is_within_it() -> None:
    settings = {"none": BARE, "a": [(0.85, 0.2, 0.2), (0.9 - 0.1, 0.3, 0.3)]}
    assert _picks(_study(settings))["a"] == ("1", True)


def test_of_equal_worst_cases_the_higher_mean_decides_then_clean_accuracy_then_the_order_of_the_study() -> None:
    assert _picks(_study({"none": BARE, "a": [(0.9, 0.3, 0.0), (0.85, 0.4, 0.0)]}))["a"] == ("1", True)
    assert _picks(_study({"none": BARE, "a": [(0.85, 0.3, 0.0), (0.9, 0.3, 0.0)]}))["a"] == ("1", True)
    assert _picks(_study({"none": BARE, "a": [(0.85, 0.3, 0.0), (0.85, 0.3, 0.0)]}))["a"] == ("0", True)


def test_where_none_is_within_the_budget_the_highest_clean_accuracy_is_picked_and_marked() -> None:
    assert _picks(_study({"none": BARE, "a": [(0.5, 0.5, 0.5), (0.7, 0.1, 0.1)]}))["a"] == ("1", False)
    assert _picks(_study({"a": [(0.2, 0.5, 0.5), (0.7, 0.1, 0.1)]}))["a"] == ("0", True)


def test_a_setting_of_which_an_attack_failed_does_not_compete_with_those_that_withstood_it() -> None:
    cells = _study({"none": BARE, "a": [(0.85, 0.6, 0.1), (0.85, 0.3, 0.3)]})
    cells.loc[cells["cell"] == "a0-apgd", "state"] = "failed"
    assert _picks(cells)["a"] == ("1", True)


def test_a_curve_is_chosen_and_ordered_by_what_chooses_and_not_by_what_is_reported() -> None:
    cells = _study({"a": [(0.7, 0.3), (0.9, 0.1), (0.8, 0.2), (0.6, 0.2)]}, ("pgd",))
    reported = {"a0": 0.9, "a1": 0.1, "a2": 0.5, "a3": 1.0}
    cells["accuracy"] = [reported[cell.split("-")[0]] for cell in cells["cell"]]
    table = frontier(cells)
    assert table.loc[curve(table), "defense_params"].tolist() == ["1", "2", "0"]


@pytest.mark.parametrize(("selection", "least", "most"), [(True, -0.012, 0.012), (False, 0.03, 0.1)])
def test_what_is_picked_among_equals_is_reported_as_they_are_where_other_points_choose(
    selection: bool, least: float, most: float
) -> None:
    """Sixty studies of the same settings stand in one table, as classifiers of their own, of which each has its own pick."""
    rng, one = np.random.default_rng(0), _study({"none": [(0.9, 0.1)], "a": [(0.9, 0.4)] * 20}, ("pgd",))
    cells = pd.concat([one.assign(classifier=f"f{at}", classifier_key=f"k{at}") for at in range(60)], ignore_index=True)
    right = np.where(cells["attack"] == "none", 0.9, np.where(cells["defense"] == "none", 0.1, 0.4))
    cells["accuracy"] = rng.binomial(200, right) / 200
    cells["selection_accuracy"] = rng.binomial(100, right) / 100 if selection else np.nan
    found = picked(frontier(cells))
    excess = found.loc[found["defense"] == "a", "adversarial"] - 0.4
    assert len(excess) == 60
    assert least < excess.mean() < most


def test_no_figure_and_no_table_chooses_settings_by_itself() -> None:
    for file in Path(mi_ray.figures.__path__[0]).glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        used |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not used & {"undominated_settings", "selection_accuracy", "clean_selection"}, file
        assert "undominated" not in {
            alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
        }, file


def test_a_table_says_that_it_chose_only_where_a_defense_has_several_settings() -> None:
    cells = pd.DataFrame(
        {"classifier": "f", "defense": ["none", "mi_ol"], "defense_params": "{}", "executions": [1, 30]}
    ).assign(attack="pgd")
    assert one_each(cells, 0) == "Of each defense its one setting"
    several = pd.concat([cells, cells.assign(executions=[1, 10])])
    assert "optimistic" in one_each(several, 0)
    assert "most attacks" not in one_each(several, 0)
    worst = several.assign(attack="worst_case")
    assert "most attacks" not in one_each(pd.concat([several, worst.head(2)]), 0)  # It is no attack of its own.
    further = pd.concat([several, several.assign(attack="cascade").head(2)])
    assert "among those that most attacks were made on and that are within 10 points" in one_each(further, 0)
