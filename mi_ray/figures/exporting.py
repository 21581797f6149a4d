"""A study's cells for other programs: CSV, an Excel sheet, or entries in the form of RobustBench's leaderboard."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from mi_ray.choice import SETTING
from mi_ray.figures.reading import may_stand_for_worst
from mi_ray.statistics import of_variant
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_cells
from mi_ray.threat_model import WORST_CASE

FORMS = ".csv, .xlsx or .json"


def export(store: Store, study: str, file: Path) -> int:
    """Write a study's cells to a file, in the form that its ending names; returns how many rows or entries it has.

    Raises ValueError for another ending, for an .xlsx without openpyxl, and where nothing can be written.
    """
    cells = read_cells(store, study, flat=True)
    if file.suffix not in (".csv", ".xlsx", ".json"):
        raise ValueError(f"an export must be a file {FORMS}; got {file}")
    try:
        return _written(cells, study, file)
    except ImportError as error:
        raise ValueError("openpyxl must be installed for .xlsx: pip install 'mi-ray[excel]'") from error
    except OSError as error:
        raise ValueError(f"{file} must be a place where a file can be written: {error.strerror or error}") from error


def _written(cells: pd.DataFrame, study: str, file: Path) -> int:
    if file.suffix == ".csv":
        cells.to_csv(file, index=False)
    elif file.suffix == ".xlsx":
        with pd.ExcelWriter(file, engine="openpyxl") as writer:
            cells.to_excel(writer, index=False, sheet_name=study[:31])
            for row in writer.sheets[study[:31]].iter_rows():
                for field in (each for each in row if each.data_type == "f"):
                    field.data_type = "s"  # A name that begins with = is text, and no formula to compute.
    else:
        entries = leaderboard(cells, study)
        if not entries:
            raise ValueError(
                f"entries need a finished setting whose worst case is known; {study} has none; its cells.parquet says why"
            )
        file.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        return len(entries)
    return len(cells)


def leaderboard(cells: pd.DataFrame, study: str) -> list[dict[str, Any]]:
    """Entries with the keys of RobustBench's model_info files, one for each classifier, setting, N and radius.

    clean_acc, reported: in %; reported is the worst case over all attacks of the study, with the verdict of its checks. Where
    a setting met one attack alone, that is its worst case, if it may be (`may_stand_for_worst`).
    autoattack_acc is null, since AutoAttack itself was not run: the field must not be filled with another attack.
    """
    done = of_variant(cells[cells["state"] == "done"])
    clean = {tuple(row[name] for name in SETTING): row for row in done[done["attack"] == "none"].to_dict("records")}
    ball, worst, entries = [*SETTING, "norm", "epsilon"], done["attack"] == WORST_CASE, []
    lone = done[(done["attack"] != "none") & ~done.duplicated(ball, keep=False)]
    lone = lone[~lone.index.isin(done.index[worst]) & may_stand_for_worst(lone, of_variant(cells))]
    for row in pd.concat([done[worst], lone]).to_dict("records"):
        bare = clean.get(tuple(row[name] for name in SETTING))
        if bare is None:
            continue
        defended = row["defense"] != "none"
        entries.append(
            {
                "name": f"{row['classifier']} + {row['defense']} {row['defense_params']}"
                if defended
                else row["classifier"],
                "dataset": row["dataset"],
                "eps": row["epsilon"],
                "threat": {"norm": row["norm"], "knowledge": row["knowledge"]},
                "number_forward_passes": int(row["executions"]) if defended else 1,
                "clean_acc": round(100 * bare["accuracy"], 2),
                "reported": round(100 * row["accuracy"], 2),
                "autoattack_acc": None,
                "footnote": f"mi_ray, study {study}: {int(row['points'])} points, worst case over the study's attacks; "
                f"checks: {row['verdict']}",
            }
        )
    return entries
