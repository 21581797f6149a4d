"""Which settings a study chooses by their result, and on which points: every figure, table and `selected` asks here.

What is chosen by its result is chosen on the selection points and reported on the others, so that luck on the points
that choose is no part of what is reported. A study without selection points chooses on the points that it reports,
which flatters most the defense with the most settings; whatever shows such a choice says so, in the words of
`chosen_on`.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mi_ray.statistics import by_threat, of_variant, undominated
from mi_ray.threat_model import WORST_CASE

if TYPE_CHECKING:  # Reading frames imports it; a plan and a worker need not.
    import pandas as pd

# The columns of cells.parquet that say what a setting of a defense is, and what it is attacked by.
SETTING = ["classifier", "defense", "defense_params", "executions"]
THREAT = ["attack", "attack_params", "goal", "norm", "epsilon", "knowledge"]
FRONTIER_KEYS = ["classifier", "classifier_key", *SETTING[1:], "draws"]
CLEAN_BUDGET = 0.10  # the most clean accuracy that a picked setting may give up against no defense
ROUNDING = 1e-9  # an accuracy of 0.9 - 0.1 is within a budget that ends at 0.8


def frontier(cells: "pd.DataFrame", variant: str = "") -> "pd.DataFrame":
    """One row per (setting, attack): its clean and its adversarial cell side by side, and whether it is undominated.

    cells: rows of cells.parquet of one study, of which those of one variant are compared. Columns `clean`,
    `clean_low`, `clean_high`, `adversarial`, … are of the reported points; `cell` and `clean_cell` name the two cells.
    `clean_to_choose` and `adversarial_to_choose` are the accuracies that settings are chosen by, and `choosing_points`
    is the number of selection points that they are of: 0 where the study has none and they are of the reported points.
    `undominated` compares them within (classifier, attack, threat model).
    """
    own = of_variant(cells, variant)
    done = own[own["state"] == "done"]
    names = {"accuracy": "", "accuracy_low": "_low", "accuracy_high": "_high", "selection_accuracy": "_to_choose"}
    clean, attacked = done[done["attack"] == "none"].set_index(FRONTIER_KEYS), done[done["attack"] != "none"]
    left = clean[["cell", *names]].rename(columns={k: f"clean{v}" for k, v in [("cell", "_cell"), *names.items()]})
    right = attacked.rename(columns={k: f"adversarial{v}" for k, v in names.items()})
    table = right.merge(left, left_on=FRONTIER_KEYS, right_index=True, how="inner").reset_index(drop=True)
    chosen = table["selection_points"]
    if table[["clean_to_choose", "adversarial_to_choose"]].isna().any(axis=None):
        chosen = 0
        table[["clean_to_choose", "adversarial_to_choose"]] = table[["clean", "adversarial"]]
    table = table.assign(choosing_points=chosen, undominated=False)
    for group in by_threat(table):
        best = undominated(group["clean_to_choose"], group["adversarial_to_choose"])
        table.loc[group.index, "undominated"] = best
    return table


def chosen_on(points: int) -> str:
    """In words, for the note of a figure or table, where settings were chosen. points: `choosing_points` of `frontier`."""
    return f"{points} selection points" if points else "the reported points, as there are no others, so optimistic"


def one_each(cells: "pd.DataFrame", points: int) -> str:
    """In words, which setting of each defense a table shows. cells: those of the study; points: `choosing_points`."""
    settings = cells[SETTING].drop_duplicates()
    if not settings.duplicated(["classifier", "defense"]).any():
        return "Of each defense its one setting"
    attacked = cells[~cells["attack"].isin(["none", WORST_CASE])].groupby(SETTING).size()
    uneven = attacked.groupby(["classifier", "defense"]).nunique().gt(1).any()
    return (
        "Of each defense the setting with the highest adversarial accuracy under the attack that leaves it least, among those "
        f"{'that most attacks were made on and that are ' if uneven else ''}within {100 * CLEAN_BUDGET:.0f} points of the "
        f"undefended clean accuracy, chosen on {chosen_on(points)}; where none is within, the one with the highest clean accuracy"
    )


def choosing(selection: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points choose: the selection points, or all of them where none is one. selection: [points], whether it is."""
    flags = np.asarray(selection, bool)
    return flags if flags.any() else ~flags


def curve(settings: "pd.DataFrame") -> "pd.Index[int]":
    """The rows that make the curve of one defense under one attack, from the highest clean accuracy to the lowest.

    settings: rows of `frontier`. Those are on it that no other of them dominates, by the accuracies that choose; these
    decide their order too, so that no number that is read off the curve is the best of several on its own points.
    """
    keep = undominated(settings["clean_to_choose"], settings["adversarial_to_choose"])
    return settings[keep].sort_values("clean_to_choose", ascending=False, kind="stable").index


def picked(table: "pd.DataFrame", budget: float = CLEAN_BUDGET) -> "pd.DataFrame":
    """The rows of the one setting of each defense on each classifier that tables show and tests compare.

    table: `frontier` of a study with all its attacks. The setting is chosen once for all of them: it has the highest
    worst-case adversarial accuracy, the lowest over the attacks, among those that give up at most `budget` of clean
    accuracy against no defense (all of them where a study has no bare classifier). Of equals it is the one with
    the higher mean over the attacks, then with the higher clean accuracy. Where none is within the budget it is the
    one with the highest clean accuracy; `within_budget` says which. A setting of which an attack failed does not
    compete with those of its defense that withstood more.
    """
    settings = table.groupby(FRONTIER_KEYS, sort=False, as_index=False).agg(
        clean=("clean_to_choose", "first"),
        worst=("adversarial_to_choose", "min"),
        mean=("adversarial_to_choose", "mean"),
        attacks=("adversarial_to_choose", "size"),
    )
    bare = settings[settings["defense"] == "none"].groupby("classifier_key")["clean"].max()
    least = settings["classifier_key"].map(bare).astype(float).fillna(-np.inf) - budget
    settings["within_budget"] = settings["clean"] >= least - ROUNDING
    picks = [_pick(group) for _, group in settings.groupby(["classifier", "classifier_key", "defense"], sort=False)]
    return table.merge(settings.loc[picks, [*FRONTIER_KEYS, "within_budget"]], on=FRONTIER_KEYS)


def _pick(settings: "pd.DataFrame") -> int:
    """The label of the setting that `picked` describes, of those of one defense on one classifier."""
    whole = settings[settings["attacks"] == settings["attacks"].max()]
    within = whole[whole["within_budget"]]
    order = ["worst", "mean", "clean"] if len(within) else ["clean", "worst", "mean"]
    competing = within if len(within) else whole
    return int(competing.sort_values(order, ascending=False, kind="stable").index[0])
