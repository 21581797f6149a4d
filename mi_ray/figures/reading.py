"""What figures read of a study: its cells, how its methods are called, and rows of single points."""

from collections.abc import Sequence

import pandas as pd

from mi_ray.choice import SETTING
from mi_ray.figures.names import Names
from mi_ray.statistics import of_variant
from mi_ray.store.blocks import Store
from mi_ray.store.files import DamagedFileError
from mi_ray.store.manifest import read_manifest
from mi_ray.store.read import read_cells
from mi_ray.threat_model import WORST_CASE


def read_study(store: Store, study: str) -> tuple[pd.DataFrame, Names]:
    """The rows of a study's cells.parquet, and how its methods are called and drawn. Raises ValueError for an unknown study."""
    cells = read_cells(store, study)
    try:
        appearance = read_manifest(store, study).get("appearance", {})
    except DamagedFileError:
        appearance = {}  # The numbers are all there: a study without a manifest is drawn with the names that it has.
    return cells, Names.of(appearance, cells["defense"])


def finished(cells: pd.DataFrame, needs: str) -> pd.DataFrame:
    """The cells of the study itself (of no variant of its options) that are done. Raises ValueError without any.

    needs: what the figure needs, which begins the message.
    """
    found = of_variant(cells)
    found = found[found["state"] == "done"]
    if found.empty:
        raise ValueError(f"{needs}; this study has none")
    return found


def at_largest_n(cells: pd.DataFrame) -> pd.DataFrame:
    """Of each defense on each classifier the cells of its largest N."""
    most = cells.groupby(["classifier", "defense"])["executions"].transform("max")
    return cells[cells["executions"] == most]


def records_of(store: Store, cell: str) -> pd.DataFrame:
    """The records of one cell, a row for each point, selection points too. Raises ValueError when the store has none."""
    tables = [store.read_block("records", cell, block)[0].to_pandas() for block in store.blocks("records", cell)]
    if not tables:
        raise ValueError(f"records/{cell} must be in the store, to draw what single points say")
    return pd.concat(tables, ignore_index=True)


def check_each_once(table: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raises ValueError where rows share all keys: a table or figure would show but one of them."""
    if len(table) < 2:
        return
    twice = table.loc[table.duplicated(list(keys)), list(keys)]
    if len(twice):
        said = ", ".join(f"{key} {value}" for key, value in twice.iloc[0].items())
        raise ValueError(f"cells must have a place each in the table or figure; several have this one: {said}")


def may_stand_for_worst(rows: pd.DataFrame, cells: pd.DataFrame) -> "pd.Series[bool]":
    """Whether the only attacked cell of a setting in a ball may be shown as the worst case there.

    It is one where nothing else was asked for: on F alone, or of an attack through the defense. Beside an oblivious attack on a
    defense no adaptive one may have been made, or it failed, and then the worst case is unknown. cells: all of one variant of
    the study's options.
    """
    place = [*SETTING, "norm", "epsilon"]
    undone = cells[(cells["attack"] == WORST_CASE) & (cells["state"] != "done")][place].drop_duplicates()
    lost = rows[place].merge(undone.assign(lost=True), on=place, how="left")["lost"].notna().to_numpy()
    return ((rows["defense"] == "none") | (rows["knowledge"] == "adaptive")) & ~lost
