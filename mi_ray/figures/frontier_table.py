"""A table like the paper's Table 2: a row for each classifier and defense, a column for each attack.

Of each defense it shows the setting with the highest adversarial accuracy among those that give up at most
`CLEAN_BUDGET` of clean accuracy (the paper compares at similar clean accuracy too). The setting is picked on the
selection points, where the study has some, and its accuracies are of the other points.
"""

from typing import Any

import pandas as pd

from mi_ray.figures.names import Names, parameters
from mi_ray.figures.reading import check_each_once, read_study
from mi_ray.figures.saving import save_table
from mi_ray.figures.tables import percent
from mi_ray.figures.verdict_marks import checks_footnote, mark
from mi_ray.statistics import frontier, of_variant
from mi_ray.store.blocks import Store

CLEAN_BUDGET = 0.10  # the most clean accuracy a shown setting may give up against no defense


def facts(cells: pd.DataFrame, names: Names) -> pd.DataFrame:
    """Rows of the table: classifier, defense, parameters, executions, then accuracies with bounds, by column.

    Raises ValueError for a study without attacked cells, and where two cells would have one entry.
    """
    table = frontier(cells)
    if table.empty:
        raise ValueError("the table needs finished cells with and without an attack; this study has none")
    table["column"] = names.threats(table)
    check_each_once(table, ["classifier", "defense", "defense_params", "executions", "column"])
    on = "_selection" if table["clean_selection"].notna().all() else ""
    rows = []
    for (classifier, defense), group in table.groupby(["classifier", "defense"], sort=False):
        bare = table[(table["classifier"] == classifier) & (table["defense"] == "none")][f"clean{on}"].max()
        # The worst attack decides, as it would for a user.
        worst = group.groupby(["defense_params", "executions"], sort=False).agg(
            clean=(f"clean{on}", "first"), adversarial=(f"adversarial{on}", "min")
        )
        affordable = worst[worst["clean"] >= bare - CLEAN_BUDGET]
        pick = (affordable if len(affordable) else worst.nlargest(1, "clean"))["adversarial"].idxmax()
        chosen = group[(group["defense_params"] == pick[0]) & (group["executions"] == pick[1])]
        rows.append(
            {
                "classifier": classifier,
                "defense": defense,
                "parameters": parameters(pick[0]),
                "executions": pick[1],
                "within_budget": bool(len(affordable)),
                **_accuracies(chosen),
            }
        )
    return pd.DataFrame(rows)


def _accuracies(chosen: pd.DataFrame) -> dict[str, Any]:
    first = chosen.iloc[0]
    found = {"Clean": first["clean"], "Clean low": first["clean_low"], "Clean high": first["clean_high"]}
    for _, row in chosen.iterrows():
        column = row["column"]
        found |= {
            column: row["adversarial"],
            f"{column} low": row["adversarial_low"],
            f"{column} high": row["adversarial_high"],
            f"{column} mark": mark(row),
        }
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


def footnote(cells: pd.DataFrame, names: Names) -> str:
    """How the table was made, in words."""
    row = cells[cells["state"] == "done"].iloc[0]
    picked = (
        f"{int(row['selection_points'])} selection points"
        if row["selection_points"]
        else "the same points (optimistic)"
    )
    return (
        f"{row['dataset']}, {int(row['points'])} points; accuracy in % with its 95 % interval over points. Of each defense: the "
        f"setting with the highest adversarial accuracy among those within {100 * CLEAN_BUDGET:.0f} points of the undefended "
        f"clean accuracy, picked on {picked}. †: none is within, the one with the highest clean accuracy is shown. "
        + checks_footnote(of_variant(cells), names)
    )


def make(store: Store, study: str) -> list[str]:
    """Write the table of a study as Markdown, CSV and LaTeX."""
    cells, names = read_study(store, study)
    table = facts(cells, names)
    return save_table(store, study, "frontier_table", table, shown(table, names), footnote(cells, names))
