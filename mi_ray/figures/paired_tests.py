"""Which differences between defenses are more than chance: paired tests on the same reported points.

Of each defense one setting is compared, the same under every attack: the one that `mi_ray.choice.picked` chooses, with
the highest worst-case adversarial accuracy among those that give up at most `CLEAN_BUDGET` of clean accuracy. Under each
attack it is held against no defense, and MI-OL's against each baseline's. P-values are corrected over the whole table
(Holm), so that any row may be read by itself.
"""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from mi_ray.choice import frontier, one_each, picked
from mi_ray.figures.names import Names, Row, parameters
from mi_ray.figures.reading import finished, read_study
from mi_ray.figures.saving import save_texts
from mi_ray.figures.tables import markdown, points
from mi_ray.figures.verdict_marks import checks_footnote, mark
from mi_ray.statistics import COUNTED, by_threat, counts_of, holm, paired_test
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_records

NEEDS = "paired tests need finished cells of two settings under one attack"


def facts(cells: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """One row per comparison: both settings, the difference of their accuracies with its interval, and p-values.

    cells: rows of cells.parquet of one study; records: its rows, one a cell and point. Differences are left minus
    right: above zero, the left setting is more accurate. Raises ValueError for a study without two settings to compare,
    and for cells of different points.
    """
    rows = []
    for group in by_threat(picked(frontier(finished(cells, NEEDS)))):
        counts = dict(zip(group["cell"], counts_of(records, group["cell"].tolist()), strict=True))
        for left, right in _pairs(group):
            found = paired_test(counts[left["cell"]], counts[right["cell"]], int(left["draws"]), int(right["draws"]))
            rows.append({**_identity(left, right), **vars(found)})
    if not rows:
        raise ValueError(f"{NEEDS}; this study has none")
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p_value"]))


def _pairs(group: pd.DataFrame) -> "Iterator[tuple[pd.Series[Any], pd.Series[Any]]]":
    """The left and the right setting of each comparison on one classifier under one attack, one setting a defense."""
    settings = {str(row["defense"]): row for _, row in group.iterrows()}
    bare, ours = settings.pop("none", None), settings.get("mi_ol")
    if bare is not None:
        yield from ((row, bare) for row in settings.values())
    if ours is not None:
        yield from ((ours, row) for defense, row in settings.items() if not defense.startswith("mi_"))


def _identity(left: Row, right: Row) -> dict[str, object]:
    """What a row compares, and how far apart the two are in clean accuracy."""
    shared = ["classifier", "attack", "attack_params", "goal", "norm", "epsilon", "knowledge"]
    sides = {
        f"{side}_{name}": row.get(name)
        for side, row in (("left", left), ("right", right))
        for name in ("defense", "defense_params", "executions", "draws", "cell", "adversarial", "verdict")
    }
    alone = {
        "within_budget": left["within_budget"] and right["within_budget"],
        "choosing_points": left["choosing_points"],
    }
    difference = float(left["clean"] - right["clean"])
    return {**{name: left[name] for name in shared}, **sides, **alone, "clean_difference": difference}


def shown(table: pd.DataFrame, names: Names) -> pd.DataFrame:
    """`facts` as text: differences in points of accuracy."""
    return pd.DataFrame(
        {
            "Classifier": table["classifier"],
            "Attack": names.threats(table),
            "Setting": [_setting(row, "left", names) for _, row in table.iterrows()],
            "Against": [_setting(row, "right", names) for _, row in table.iterrows()],
            "Clean": [f"{100 * value:+.1f}" for value in table["clean_difference"]],
            "Difference": list(map(points, table["difference"], table["low"], table["high"])),
            "Better, worse on": [
                f"{100 * up:.1f} %, {100 * down:.1f} %"
                for up, down in zip(table["left_higher"], table["left_lower"], strict=True)
            ],
            "p": [f"{p:.2g}" for p in table["p_value"]],
            "p (Holm)": [f"{p:.2g}" for p in table["p_holm"]],
            "Test": table["method"].map({"mcnemar": "McNemar", "sign_flip": "sign flip"}),
            "Checks": [
                f"{mark({'verdict': left})} {mark({'verdict': right})}"
                for left, right in zip(table["left_verdict"], table["right_verdict"], strict=True)
            ],
        }
    )


def _setting(row: Row, side: str, names: Names) -> str:
    inside = [parameters(row[f"{side}_defense_params"]), f"N={row[f'{side}_executions']}"]
    name = names.defense(row[f"{side}_defense"])
    return name if row[f"{side}_defense"] == "none" else f"{name} ({', '.join(text for text in inside if text)})"


def footnote(cells: pd.DataFrame, table: pd.DataFrame, names: Names) -> str:
    """How the table was made, in words."""
    return (
        f"{int(table['points'].max())} reported points. Differences in accuracy, in points, with 95 % intervals over points; "
        "above zero: better than what it is held against. Clean: the difference in clean accuracy. p: two-sided, exact "
        "McNemar where both cells are deterministic, else a sign-flip test of the points' survival, exact where differences are "
        f"symmetric about 0; (Holm): corrected over the {len(table)} rows. "
        f"{one_each(cells, int(table['choosing_points'].iloc[0]))}, the same under every attack. "
        f"Checks, of the setting and of what it is held against: {checks_footnote(finished(cells, NEEDS), names)}"
    )


def make(store: Store, study: str) -> list[str]:
    """Write the paired tests of a study as Markdown and CSV."""
    cells, names = read_study(store, study)
    table = facts(cells, read_records(store, study, columns=COUNTED))
    text = markdown(shown(table, names), footnote(cells, table, names))
    return save_texts(store, study, {"paired_tests.md": text, "paired_tests.csv": table.to_csv(index=False)})
