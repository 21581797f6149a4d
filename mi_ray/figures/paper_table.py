"""A table like the paper's Tables 2 and 3: a row for each setting of a study, a column for each attack.

`table2` and `table3` put the paper's values beside ours; by itself this is the same table of any study, without them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from mi_ray.figures.names import Names, Row, same_value, settings_apart, with_threat
from mi_ray.figures.panels import ACCURACY
from mi_ray.figures.reading import check_each_once, finished, read_study
from mi_ray.figures.saving import save_table
from mi_ray.figures.tables import percent
from mi_ray.figures.verdict_marks import checks_footnote, mark
from mi_ray.store.blocks import Store
from mi_ray.threat_model import MAX_NORM, WORST_CASE

NEEDS = "the table needs finished cells"
GOALS = ("none", "untargeted", "targeted", "any")
# The columns of the paper's Tables 2 and 3: clean, then (goal, steps) of oblivious PGD.
EPSILON = 8 / 255  # the radius of all of them
PUBLISHED = ("Clean", *((goal, steps) for goal in ("untargeted", "targeted") for steps in (10, 50, 200)))


@dataclass(frozen=True)
class Paper:
    """A table of the paper: its name in files and in words, and its values by (classifier, defense), as printed.

    settings: of the same the parameters that it is of, as far as the paper names them; values stand beside no other setting.
    """

    name: str
    source: str
    values: Mapping[tuple[str, str], Sequence[str]]
    settings: Mapping[tuple[str, str], Mapping[str, object]] = field(default_factory=dict)

    def value(self, row: Row) -> str:
        """What the paper reports of a cell; empty where it reports nothing."""
        column: object = "Clean"
        if row["attack"] != "none":
            steps = json.loads(row["attack_params"]).get("steps")
            alike = (row["attack"], row["knowledge"], row["norm"]) == ("pgd", "oblivious", MAX_NORM)
            alike &= abs(row["epsilon"] - EPSILON) < 1e-6
            column = (row["goal"], steps) if alike else None
        place = row["classifier"], row["defense"]
        known, own = self.values.get(place), json.loads(row["defense_params"] or "{}")
        if not all(same_value(own.get(name), value) for name, value in self.settings.get(place, {}).items()):
            return ""
        return known[PUBLISHED.index(column)] if known and column in PUBLISHED else ""


NO_PAPER = Paper("paper_table", "", {})


def published(text: str) -> dict[tuple[str, str], list[str]]:
    """A table as the paper prints it, a line a row: classifier, defense, then the seven columns of `PUBLISHED`."""
    rows = [line.split() for line in text.strip().splitlines()]
    assert all(len(row) == 2 + len(PUBLISHED) for row in rows)
    return {(row[0], row[1]): [value.replace("<=", "≤ ") for value in row[2:]] for row in rows}


def settings(text: str) -> dict[tuple[str, str], dict[str, object]]:
    """The hyperparameters of such a table, a line a row: classifier, defense, then the parameters as JSON."""
    rows = [line.split(maxsplit=2) for line in text.strip().splitlines()]
    return {(classifier, defense): json.loads(values) for classifier, defense, values in rows}


def facts(cells: pd.DataFrame, names: Names, paper: Paper = NO_PAPER) -> pd.DataFrame:
    """One row per (setting, column) in the order of the table: accuracy with its interval, verdict, the paper's value.

    Columns are the clean inputs, oblivious PGD untargeted and targeted by its number of steps, then the study's other
    attacks and the worst case of all. Rows are in the order of the study. Raises ValueError for a study without finished cells.
    """
    own = finished(cells, NEEDS).copy()
    one_radius = len(own.loc[own["attack"] != "none", ["norm", "epsilon"]].drop_duplicates()) == 1
    named = zip(names.attacks(own), own.iterrows(), strict=True)
    own["column"] = [_column(name, row, one_radius) for name, (_, row) in named]
    own["paper"] = [paper.value(row) for _, row in own.iterrows()]
    own["mark"] = [mark(row) for _, row in own.iterrows()]
    own["method"] = [_method(row, names) for _, row in own.iterrows()]
    own["parameters"] = settings_apart(own)
    own["column"] = pd.Categorical(own["column"], _columns(own), ordered=True)
    own["classifier_place"], own["defense_place"] = (_place(own[name]) for name in ("classifier", "defense"))
    setting = ["method", "classifier", "defense", "parameters", "executions"]
    kept = [*setting, "column", *ACCURACY, "verdict", "mark", "paper", "points", "dataset"]
    order = ["classifier_place", "defense_place", "defense_params", "executions", "column"]
    return own.sort_values(order)[kept].reset_index(drop=True)


def _columns(own: pd.DataFrame) -> list[str]:
    """The columns of the table, each once, in the order that `facts` describes."""
    order = pd.DataFrame(
        {
            "last": own["attack"] == WORST_CASE,
            "other": ~own["attack"].isin(["none", "pgd"]),
            "attack": _place(own["attack"]),
            "epsilon": own["epsilon"],
            "goal": own["goal"].map(GOALS.index),
            "steps": [json.loads(text).get("steps") or 0 for text in own["attack_params"]],
        }
    )
    return list(dict.fromkeys(own.loc[order.sort_values(list(order)).index, "column"]))


def _column(name: str, row: Row, one_radius: bool) -> str:
    if row["attack"] in ("none", WORST_CASE) and (one_radius or row["attack"] == "none"):
        return name
    return f"{name}, {row['goal']}" if one_radius else with_threat(name, row)


def _method(row: Row, names: Names) -> str:
    classifier = str(row["classifier"])
    return classifier if row["defense"] == "none" else f"{classifier} + {names.defense(row['defense'])}"


def _place(values: "pd.Series[str]") -> "pd.Series[int]":
    """Of each value its place in the order in which the values come first."""
    return values.map(list(dict.fromkeys(values)).index)


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """`facts` as text, a row a setting: per cent with its interval, the verdict's mark, the paper's value in brackets.

    Raises ValueError where two cells would have one entry.
    """
    text = [
        f"{percent(row['accuracy'], row['accuracy_low'], row['accuracy_high'])} {row['mark']}"
        + (f" ({row['paper']})" if row["paper"] else "")
        for _, row in table.iterrows()
    ]
    setting = ["method", "parameters", "executions"]
    told = table.assign(text=text, column=table["column"].astype(str))
    check_each_once(told, [*setting, "column"])
    wide = told.pivot_table("text", setting, "column", aggfunc="first", sort=False).fillna("").reset_index()
    wide = wide[[*setting, *(name for name in table["column"].cat.categories if name in wide)]].astype(str)
    return wide.rename(columns={"method": "Method", "parameters": "Parameters", "executions": "N"})


def footnote(cells: pd.DataFrame, table: pd.DataFrame, names: Names, paper: Paper) -> str:
    """How the table was made, in words."""
    said = f"{table['dataset'].iloc[0]}, {int(table['points'].iloc[0])} points; accuracy in % on the true label, with its 95 % "
    said += "interval over points. Worst case: each point under the attack of the study that does most harm to it"
    done = finished(cells, NEEDS)
    said += (
        ". " if (done["knowledge"] == "adaptive").any() else ", all of them oblivious: an adaptive one may leave less. "
    )
    if table["paper"].astype(bool).any():
        said += f"In brackets: {paper.source}, with its released code's choices; of another network or other data only "
        said += "the order and the gaps compare. "
    return said + checks_footnote(done, names)


def write(paper: Paper, store: Store, study: str) -> list[str]:
    """Write the table of a study beside the paper's as Markdown, CSV (a row an entry) and LaTeX."""
    cells, names = read_study(store, study)
    table = facts(cells, names, paper)
    return save_table(store, study, paper.name, table, shown(table), footnote(cells, table, names, paper))


def make(store: Store, study: str) -> list[str]:
    """Write the table of any study, all its settings under all its attacks, as Markdown, CSV and LaTeX."""
    return write(NO_PAPER, store, study)
