"""A table like the paper's Table 2: a row for each classifier and defense, a column for each attack.

Of each defense it shows the setting that `mi_ray.choice.picked` chooses: the highest worst-case adversarial accuracy
among those that give up at most `CLEAN_BUDGET` of clean accuracy (the paper compares at similar clean accuracy too).
"""

from typing import Any

import pandas as pd

from mi_ray.choice import CLEAN_BUDGET, FRONTIER_KEYS, frontier, one_each, picked
from mi_ray.figures.names import Names, parameters
from mi_ray.figures.reading import check_each_once, may_stand_for_worst, read_study
from mi_ray.figures.saving import save_table
from mi_ray.figures.tables import percent
from mi_ray.figures.verdict_marks import checks_footnote, mark
from mi_ray.statistics import of_variant
from mi_ray.store.blocks import Store
from mi_ray.threat_model import WORST_CASE


def facts(cells: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Rows of the table: classifier, defense, parameters, executions, then accuracies with bounds, by column.

    Raises ValueError for a study without attacked cells, and where two cells would have one entry.
    """
    table = frontier(cells)
    if table.empty:
        raise ValueError("the table needs finished cells with and without an attack; this study has none")
    table["column"] = names.threats(table)
    check_each_once(table, ["classifier", "defense", "defense_params", "executions", "column"])
    told = ["classifier", "defense", "parameters", "executions", "within_budget", "choosing_points"]
    chosen = picked(table)
    chosen["parameters"] = chosen["defense_params"].map(parameters)
    columns, chosen = _columns(chosen), _with_lone_attacks(chosen, cells)
    groups = chosen.groupby(FRONTIER_KEYS, sort=False)
    found = pd.DataFrame([{**group.iloc[0][told].to_dict(), **_accuracies(group)} for _, group in groups])
    return found[
        [*told, *_with_bounds("Clean"), *(name for each in columns for name in [*_with_bounds(each), f"{each} mark"])]
    ]


def _columns(chosen: pd.DataFrame) -> list[str]:
    """The columns of attacks: those of each ball together, in the order of the study, and the worst case of it after them."""
    balls = chosen[["norm", "epsilon"]].drop_duplicates().reset_index(drop=True).reset_index(names="ball")
    placed = chosen.merge(balls, on=["norm", "epsilon"]).assign(last=lambda rows: rows["attack"] == WORST_CASE)
    found: list[str] = placed.sort_values(["ball", "last"], kind="stable")["column"].unique().tolist()
    return found


def _with_bounds(column: str) -> list[str]:
    return [column, f"{column} low", f"{column} high"]


def _with_lone_attacks(chosen: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The rows with one more for each setting of which a single attack is the worst case of a ball (`may_stand_for_worst`).

    No defense may have PGD on F alone, where each setting has an adaptive attack besides.
    """
    ball = ["norm", "epsilon"]
    worst = chosen["attack"] == WORST_CASE
    columns = chosen[worst].drop_duplicates(ball)[[*ball, "column"]]
    found = [chosen]
    for _, setting in chosen[~worst].groupby(FRONTIER_KEYS, sort=False):
        lone = setting[~setting.duplicated(ball, keep=False)]
        lone = lone[may_stand_for_worst(lone, of_variant(cells))]
        found.append(lone.drop(columns="column").merge(columns, on=ball))
    return pd.concat(found, ignore_index=True)


def _accuracies(chosen: pd.DataFrame) -> dict[str, Any]:
    bounds = ["", "_low", "_high"]
    found: dict[str, Any] = dict(
        zip(_with_bounds("Clean"), chosen.iloc[0][[f"clean{end}" for end in bounds]], strict=True)
    )
    for _, row in chosen.iterrows():
        column = row["column"]
        found |= zip(_with_bounds(column), row[[f"adversarial{end}" for end in bounds]], strict=True)
        found[f"{column} mark"] = mark(row)
    return found


def shown(table: pd.DataFrame, names: Names) -> pd.DataFrame:
    """`facts` as text: per cent with the interval in brackets, and the mark of the checks' verdict."""
    columns = [name for name in table.columns if f"{name} low" in table.columns]
    text = pd.DataFrame(
        {
            "Classifier": table["classifier"],
            "Defense": [
                names.defense(d) + ("" if ok else " †")
                for d, ok in zip(table["defense"], table["within_budget"], strict=True)
            ],
            "Parameters": table["parameters"],
            "N": table["executions"].astype(str),
        }
    )
    for column in columns:
        values = map(percent, table[column], table[f"{column} low"], table[f"{column} high"])
        marks = table[f"{column} mark"].fillna("") if f"{column} mark" in table else [""] * len(table)
        text[column] = [f"{value} {sign}".strip() for value, sign in zip(values, marks, strict=True)]
    return text


def footnote(cells: pd.DataFrame, table: pd.DataFrame, names: Names) -> str:
    """How the table was made, in words."""
    row = cells[cells["state"] == "done"].iloc[0]
    outside = (
        ""
        if table["within_budget"].all()
        else f" (†: more than {100 * CLEAN_BUDGET:.0f} points of clean accuracy less)"
    )
    own = of_variant(cells)
    undone = own[own["state"] != "done"]
    lost = f"Not done, and shown as – or not at all: {len(undone)} of {len(own)} cells (cells.parquet says why). "
    return (
        f"{row['dataset']}, {int(row['points'])} points; accuracy in % with its 95 % interval over points. "
        f"{one_each(cells, int(table['choosing_points'].iloc[0]))}{outside}. {lost if len(undone) else ''}"
        + checks_footnote(own, names)
    )


def make(store: Store, study: str) -> list[str]:
    """Write the table of a study as Markdown, CSV and LaTeX."""
    cells, names = read_study(store, study)
    table = facts(cells, names)
    return save_table(store, study, "frontier_table", table, shown(table, names), footnote(cells, table, names))
