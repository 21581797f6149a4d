"""Two studies of a store side by side: the cells that both have, and their differences on the points that both report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from mi_ray.choice import SETTING, THREAT
from mi_ray.figures.names import Names, Row
from mi_ray.figures.reading import read_study
from mi_ray.statistics import COUNTED, of_variant, paired_test
from mi_ray.store.blocks import Store
from mi_ray.store.manifest import refuse_other_images
from mi_ray.store.read import read_cells, read_records
from mi_ray.threat_model import WORST_CASE

# What makes two cells the same question; their classifiers are matched by name, since their weights may be what differs.
SAME = ("dataset", *SETTING, *THREAT)
PLACE = [*SETTING, "norm", "epsilon"]  # of a worst case, and of the attacks that it is the worst of
OTHER_ATTACKS = "worst of other attacks"
OTHER_DRAWS = "worst by one draw"
Members = frozenset[tuple[str, ...]]


def members(cells: pd.DataFrame) -> dict[str, Members]:
    """Worst case -> what it is the worst of: each attack with its parameters, its goal and what it knew.

    cells: of one variant of a study's options.
    """
    attacked, names = cells[cells["attack"] != WORST_CASE], ["attack", "attack_params", "goal", "knowledge"]
    found: dict[tuple[object, ...], set[tuple[str, ...]]] = {}
    for place, attack in zip(*(attacked[part].itertuples(False, None) for part in (PLACE, names)), strict=True):
        found.setdefault(place, set()).add(attack)
    worst = cells[cells["attack"] == WORST_CASE]
    places = worst[PLACE].itertuples(False, None)
    return {cell: frozenset(found.get(place, ())) for cell, place in zip(worst["cell"], places, strict=True)}


def why_apart(left: Row, right: Row, sides: tuple[Mapping[str, Members], Mapping[str, Members]]) -> str:
    """Why two cells cannot be compared though they have one name; empty where they can.

    Worst cases cannot where they are of other attacks, and where one has one draw and the other several: a plain minimum is
    reported by the draw that chose it, and so biased downwards. sides: `members` of each study.
    """
    if (left["attack"], right["attack"]) != (WORST_CASE, WORST_CASE) or left["cell"] == right["cell"]:
        return ""
    if sides[0][left["cell"]] != sides[1][right["cell"]]:
        return OTHER_ATTACKS
    return OTHER_DRAWS if (left["draws"] == 1) != (right["draws"] == 1) else ""


def names_of_both(store: Store, left: str, right: str) -> Names:
    """How the methods of two studies are called; what both have as the first does. Raises ValueError for an unknown study."""
    first, second = (read_study(store, study)[1] for study in (left, right))
    return Names({**second.looks, **first.looks}, {**second.attack_labels, **first.attack_labels})


def compared(store: Store, left: str, right: str) -> pd.DataFrame:
    """A row for each cell that both studies have done: both accuracies, their difference with a 95 % interval, a p-value.

    Above zero: the right study is more accurate. The test is paired by point, on the points that both report. `apart` says why
    two worst cases have no difference and no p-value, where they are not of the same attacks, or by one draw and by several
    (`why_apart`). Raises ValueError for a study that is not there, where the studies are of other images, where no cell is in
    both, and where the cells have no point in common.
    """
    refuse_other_images(store, (left, right))
    sides = [of_variant(read_cells(store, study)) for study in (left, right)]
    done = [side[side["state"] == "done"] for side in sides]
    both = done[0].merge(done[1], on=list(SAME), suffixes=("_left", "_right"))
    if both.empty:
        raise ValueError(f"two studies must share cells to be compared; {left} and {right} have none in common")
    records = [read_records(store, study, columns=COUNTED) for study in (left, right)]
    counts = [{str(cell): rows for cell, rows in _reported(each).groupby("cell")} for each in records]
    worst_of = members(sides[0]), members(sides[1])
    rows = []
    for cells in both.to_dict("records"):
        own, other = (
            {**cells, **{name: cells[f"{name}_{end}"] for name in ("cell", "draws")}} for end in ("left", "right")
        )
        rows.append({**_row(cells, *counts), "apart": why_apart(own, other, worst_of)})
    found = pd.DataFrame(rows)
    found.loc[found["apart"] != "", ["difference", "low", "high", "p_value"]] = np.nan
    return found


def _reported(records: pd.DataFrame) -> pd.DataFrame:
    return records.loc[~records["selection"], ["cell", "point", "correct_draws"]]


def _row(cells: dict[Any, Any], left: dict[Any, pd.DataFrame], right: dict[Any, pd.DataFrame]) -> dict[str, object]:
    pairs = left[cells["cell_left"]].merge(right[cells["cell_right"]], on="point", suffixes=("_left", "_right"))
    if pairs.empty:
        raise ValueError(
            "two studies must report common points to be compared; give them the same dataset, order and seed"
        )
    draws = int(cells["draws_left"]), int(cells["draws_right"])
    right_counts, left_counts = (pairs[f"correct_draws_{side}"].to_numpy() for side in ("right", "left"))
    found = paired_test(right_counts, left_counts, draws[1], draws[0])
    accuracies = {
        side: float(np.mean(counts / number))
        for side, counts, number in (("left", left_counts, draws[0]), ("right", right_counts, draws[1]))
    }
    told = {name: getattr(found, name) for name in ("difference", "low", "high", "p_value", "points")}
    same = cells["cell_left"] == cells["cell_right"]
    reported = max(len(left[cells["cell_left"]]), len(right[cells["cell_right"]]))
    return {**{name: cells[name] for name in SAME}, **accuracies, **told, "same_cell": same, "reported": reported}
