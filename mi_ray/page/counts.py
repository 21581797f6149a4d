"""Right draws of every point in every cell: what points are broken by which attack, and what paired tests compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mi_ray.store.blocks import Store
from mi_ray.store.read import record_tables

FIRST = 35  # the character of no right draw, the next one that of one right draw, and so on; a space is an absent point
ABSENT = -1
NEEDED = ("cell", "point", "selection", "label", "correct_draws")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counts:
    """How many draws of each point are right in each cell of a study.

    right: [cells, points], ABSENT where a cell has no row of a point. cells: a cell's key -> its position in `right`. points,
    labels: [points], the indices in the test split and the true labels. reported: [points], whether a point is reported.
    answers: a cell's key -> its rows of the example points with their probabilities, where it has any.
    """

    cells: Mapping[str, int]
    points: Ints
    labels: Ints
    reported: npt.NDArray[np.bool_]
    right: Ints
    answers: Mapping[str, pd.DataFrame]

    def paired(self, left: str, right: str) -> tuple[Ints, Ints] | None:
        """Right draws of two cells on the reported points that both have; None where they share none."""
        if left not in self.cells or right not in self.cells:
            return None
        rows = self.right[self.cells[left]], self.right[self.cells[right]]
        both = self.reported & (rows[0] != ABSENT) & (rows[1] != ABSENT)
        return (rows[0][both], rows[1][both]) if both.any() else None

    def texts(self) -> list[str]:
        """A character a point for each cell, which is its number of right draws and `FIRST`."""
        return ["".join(chr(FIRST + n) if n != ABSENT else " " for n in row) for row in self.right.tolist()]

    def facts(self) -> dict[str, object]:
        """The points and the counts as the page holds them."""
        told = {
            "index": self.points.tolist(),
            "label": self.labels.tolist(),
            "reported": self.reported.astype(int).tolist(),
        }
        return {"points": told, "right": self.texts()}


def read_counts(store: Store, study: str, cells: Sequence[str], examples: Sequence[int]) -> Counts:
    """Read the records of a study's cells. examples: points of which probabilities are kept too."""
    tables, answers = [], []
    wanted = pa.array(list(examples), pa.int32())
    for table in record_tables(store, study):
        tables.append(table.select(NEEDED))
        kept = pc.and_(pc.is_in(table["point"], wanted), pc.is_valid(table["probabilities"]))
        shown = table.filter(kept).select(["cell", "point", "probabilities"])
        answers.append(shown)
    places = {cell: at for at, cell in enumerate(cells)}
    frame = pa.concat_tables(tables).to_pandas() if tables else pd.DataFrame(columns=list(NEEDED))
    frame = frame[frame["cell"].isin(list(places))]
    known = frame.drop_duplicates("point").sort_values("point")
    points = known["point"].to_numpy(np.int64)
    right = np.full((len(cells), len(points)), ABSENT, np.int64)
    at_cell = frame["cell"].map(places).to_numpy(np.int64)
    at_point = np.searchsorted(points, frame["point"].to_numpy(np.int64))
    right[at_cell, at_point] = frame["correct_draws"].to_numpy(np.int64)
    told = (
        pa.concat_tables(answers).to_pandas() if answers else pd.DataFrame(columns=["cell", "point", "probabilities"])
    )
    own = {str(cell): rows for cell, rows in told.groupby("cell")}
    labels, reported = known["label"].to_numpy(np.int64), ~known["selection"].to_numpy(bool)
    return Counts(places, points, labels, reported, right, own)
