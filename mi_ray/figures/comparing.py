"""Two studies of a store side by side: the cells that both have, and their differences on the points that both report."""

from typing import Any

import numpy as np
import pandas as pd

from mi_ray.choice import SETTING, THREAT
from mi_ray.statistics import COUNTED, of_variant, paired_test
from mi_ray.store.blocks import Store
from mi_ray.store.manifest import refuse_other_images
from mi_ray.store.read import read_cells, read_records

# What makes two cells the same question; their classifiers are matched by name, since their weights may be what differs.
SAME = ("dataset", *SETTING, *THREAT)


def compared(store: Store, left: str, right: str) -> pd.DataFrame:
    """A row for each cell that both studies have done: both accuracies, their difference with a 95 % interval, a p-value.

    Above zero: the right study is more accurate. The test is paired by point, on the points that both report. Raises
    ValueError for a study that is not there, where the studies are of other images, where no cell is in both, and where the cells
    have no point in common.
    """
    refuse_other_images(store, (left, right))
    sides = [of_variant(read_cells(store, study)) for study in (left, right)]
    done = [side[side["state"] == "done"] for side in sides]
    both = done[0].merge(done[1], on=list(SAME), suffixes=("_left", "_right"))
    if both.empty:
        raise ValueError(f"two studies must share cells to be compared; {left} and {right} have none in common")
    records = [read_records(store, study, columns=COUNTED) for study in (left, right)]
    counts = [{str(cell): rows for cell, rows in _reported(each).groupby("cell")} for each in records]
    rows = [_row(cells, *counts) for cells in both.to_dict("records")]
    return pd.DataFrame(rows)


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
