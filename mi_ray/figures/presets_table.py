"""What each choice of options does to the numbers: a study's cells under every variant, against the study itself.

With `variants: each_option` the rows are the whole preset `as_published`, then each option that it changes, switched
alone. The points are the same in all, so a change has a paired interval and test (corrected over the table, Holm).
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mi_ray.figures.names import Names, Row, parameters
from mi_ray.figures.panels import Style, bars, cross_out, defense_handles, filled, framed, lines, save_figure, styled
from mi_ray.figures.reading import check_each_once, read_study, records_of
from mi_ray.figures.saving import save_texts
from mi_ray.figures.tables import markdown, percent, points
from mi_ray.figures.verdict_marks import checks_footnote, checks_note, mark
from mi_ray.statistics import holm, paired_test
from mi_ray.store.blocks import Store
from mi_ray.threat_model import WORST_CASE

Counts = npt.NDArray[np.int64]
ITSELF = "study itself"
SWITCHED = ("eot_pgd", "averaged")  # the attacks that the option `adaptive_attack` chooses between
# What a counterpart is found by, beside MATCHED, and what two worst cases are told apart by.
COMPARED = (
    "variant",
    "state",
    "place",
    "exact",
    "executions",
    "defense_params",
    "cell",
    "draws",
    "attack",
    "knowledge",
)
MATCHED = ["classifier", "defense", "setting", "family", "goal", "norm", "epsilon"]
SIGNIFICANT = 0.05
NEEDS = "a table of presets needs finished cells of the study itself and of a variant (`variants: each_option`)"


def by_variant(cells: pd.DataFrame) -> pd.DataFrame:
    """A row for each cell and variant that it belongs to, with the columns by which variants are matched.

    exact: the attack and its parameters without `labels`, which an option sets. family: the same, except that the attacks of
    `SWITCHED`, between which an option chooses, are one family with only those parameters that both have. place: the columns
    `MATCHED`, in which a variant's cell and its counterpart agree, as one text.
    """
    own = cells.explode("variants", ignore_index=True).rename(columns={"variants": "variant"})
    params = [{k: v for k, v in json.loads(text).items() if k != "labels"} for text in own["attack_params"]]
    sets = [set(found) for found, attack in zip(params, own["attack"], strict=True) if attack in SWITCHED]
    both = set.intersection(*sets) if sets else set()
    families = [
        ("adaptive", {k: v for k, v in found.items() if k in both}) if attack in SWITCHED else (attack, found)
        for attack, found in zip(own["attack"], params, strict=True)
    ]
    own = own.assign(
        # Options change words and flags of a defense, and how many executions the detector has: numbers say the rest.
        setting=[parameters(text, frozenset({"executions_pl"})) for text in own["defense_params"]],
        exact=[json.dumps(pair) for pair in zip(own["attack"], params, strict=True)],
        family=[json.dumps(pair) for pair in families],
    )
    # One text to compare in place of six columns: a row for each of a thousand cells is matched.
    return own.assign(place=[json.dumps(found) for found in own[MATCHED].astype(object).to_numpy().tolist()])


def counterpart(row: "pd.Series[Any]", table: pd.DataFrame) -> "pd.Series[Any] | None":
    """The finished cell of the study itself that a row of a variant is held against; None where there is none.

    A cell matches where its `place` is the same. Where the study itself has the row's attack (`exact`), only that one is taken;
    else an option has replaced the attack, and only attacks that the variant does not have are taken. Of these, cells of the
    same N and then of the same defense parameters are preferred. Raises ValueError where several are left.
    """
    itself = table["variant"] == ""
    found = table[itself & (table["state"] == "done") & (table["place"] == row["place"])]
    if (table.loc[itself, "exact"] == row["exact"]).any():
        found = found[found["exact"] == row["exact"]]
    else:
        found = found[~found["exact"].isin(table.loc[table["variant"] == row["variant"], "exact"])]
    for name in ("executions", "defense_params"):
        same = found[found[name] == row[name]]
        found = same if len(same) else found
    check_each_once(found, MATCHED)
    return found.iloc[0] if len(found) else None


def facts(cells: pd.DataFrame, counts: Mapping[str, Counts], names: Names) -> pd.DataFrame:
    """One row per (variant, classifier, threat, defense setting): accuracy, and its change against the study itself.

    counts: cell -> correct draws of its reported points, points in the same order. `same`: it is the very cell of the
    study itself, since the variant changes nothing there; changes are variant minus study, in [-1, 1]. Raises
    ValueError for a study without variants, and where two cells would have one entry.
    """
    table = by_variant(cells)
    itself = table[table["variant"] == ""]
    threats = dict(zip(itself["cell"], _threats(itself, names), strict=True))
    # Rows of all columns take several times as long to find.
    compared = table[[*dict.fromkeys((*MATCHED, *COMPARED))]]
    rows = []
    for _, row in table[table["state"] == "done"].iterrows():
        ours = counterpart(row, compared)
        if ours is None or _other_statistic(row, ours):
            continue
        told = {
            name: row[name]
            for name in ("classifier", "defense", "setting", "accuracy", "accuracy_low", "accuracy_high")
        }
        alike = itself.loc[(itself["place"] == ours["place"]) & (itself["exact"] == ours["exact"]), "executions"]
        if len(set(alike)) > 1:
            told["setting"] = f"{told['setting']} N={ours['executions']}".strip()
        told |= {
            "variant": row["variant"] or ITSELF,
            "threat": threats[ours["cell"]],
            "attack": row["attack"],
            "mark": mark(row),
            "verdict": row["verdict"],
        }
        found = paired_test(counts[row["cell"]], counts[ours["cell"]], int(row["draws"]), int(ours["draws"]))
        rows.append(
            {
                **told,
                "change": found.difference,
                "change_low": found.low,
                "change_high": found.high,
                "p_value": found.p_value,
                "same": row["cell"] == ours["cell"],
                "executions": row["executions"],
                "draws": row["draws"],
                "points": found.points,
                "dataset": row["dataset"],
            }
        )
    found = pd.DataFrame(rows)
    if found.empty or set(found["variant"]) == {ITSELF}:
        raise ValueError(f"{NEEDS}; this study has none")
    check_each_once(found, ["variant", "classifier", "threat", "defense", "setting"])
    compared = ~found["same"]
    found.loc[compared, "p_holm"] = holm(found.loc[compared, "p_value"])
    order = [ITSELF, *sorted(set(found["variant"]) - {ITSELF, "as_published"})]
    order[1:1] = ["as_published"] if "as_published" in set(found["variant"]) else []
    return found.sort_values("variant", key=lambda names: names.map(order.index), kind="stable", ignore_index=True)


def _other_statistic(row: "pd.Series[Any]", ours: "pd.Series[Any]") -> bool:
    """Whether two cells are worst cases that do not compare: of attacks that know less, where an option leaves out the
    adaptive ones, or a plain minimum, which is reported by the draw that chose it, and so biased downwards, where several draws
    are not."""
    minimum = (row["draws"] == 1) != (ours["draws"] == 1)
    return bool(row["attack"] == WORST_CASE and (minimum or row["knowledge"] != ours["knowledge"]))


def _threats(itself: pd.DataFrame, names: Names) -> list[str]:
    named = zip(itself["attack"], names.threats(itself), strict=True)
    return ["clean" if attack == "none" else _threat(attack, name) for attack, name in named]


def _threat(attack: str, name: str) -> str:
    return f"adaptive: {name.removeprefix('adaptive ')}" if attack in SWITCHED else name


def shown(table: pd.DataFrame, names: Names) -> dict[str, pd.DataFrame]:
    """`facts` as text: for each classifier and threat a table, a row a variant and a column a defense setting."""
    text = [_entry(row) for _, row in table.iterrows()]
    columns = [" ".join([names.defense(row["defense"]), row["setting"]]).strip() for _, row in table.iterrows()]
    table = table.assign(text=text, column=columns)
    found = {}
    for (classifier, threat), rows in table.groupby(["classifier", "threat"], sort=False):
        wide = rows.pivot_table("text", "variant", "column", aggfunc="first", sort=False)
        wide = wide.fillna("").rename_axis(None, axis=1).reset_index()
        found[f"{classifier}, {threat}"] = wide.rename(columns={"variant": "Options"})
    return found


def _entry(row: Row) -> str:
    if row["variant"] == ITSELF:
        return f"{percent(row['accuracy'], row['accuracy_low'], row['accuracy_high'])} {row['mark']}"
    if row["same"]:
        return "="
    change, interval = points(row["change"], row["change_low"], row["change_high"]).split(" ", 1)
    star = "*" if row["p_holm"] < SIGNIFICANT else ""
    return f"{100 * row['accuracy']:.1f} ({change}{star} {interval}) {row['mark']}"


def document(table: pd.DataFrame, cells: pd.DataFrame, names: Names) -> str:
    """All tables of `shown` as Markdown, and how to read them."""
    row = table.iloc[0]
    note = f"{row['dataset']}, {int(row['points'])} points, the same in every row. Accuracy in %; in round brackets its change "
    note += f"against the {ITSELF}, in points, with its paired 95 % interval. *: p < {SIGNIFICANT} after Holm's correction over "
    note += "all changes here. =: the variant changes nothing there. " + checks_footnote(cells, names)
    parts = [f"## {title}\n\n{markdown(text.astype(str), '')}".rstrip() for title, text in shown(table, names).items()]
    return "\n\n".join([*parts, note]) + "\n"


def _panel(axes: Axes, rows: pd.DataFrame, variants: list[str], defenses: list[str], names: Names) -> None:
    axes.axvline(0, color="#888888", lw=0.8)
    for at, defense in enumerate(defenses):
        mine = rows[(rows["defense"] == defense) & ~rows["same"]]
        y = np.array([variants.index(name) for name in mine["variant"]]) + 0.7 * ((at + 0.5) / len(defenses) - 0.5)
        look, error = names.look(defense), bars(mine, ("change", "change_low", "change_high"), 100)
        style: Style = {"color": look.colour, "marker": look.marker, "ls": "none", "ms": 4, "elinewidth": 0.8}
        axes.errorbar(100 * mine["change"], y, xerr=error, **style)
        cross_out(axes, 100 * mine["change"], y, mine, size=48)
    for place in range(len(variants) - 1):
        axes.axhline(place + 0.5, color="#DDDDDD", lw=0.6)
    axes.grid(visible=False, axis="y")
    axes.set(yticks=range(len(variants)), yticklabels=variants, ylim=(len(variants) - 0.5, -0.5))


def draw(table: pd.DataFrame, names: Names, title: str, note: str) -> Figure:
    """Changes of accuracy with their intervals: a row of panels for each classifier, a column for each threat."""
    changed = table[table["variant"] != ITSELF]
    # A variant that changes no cell has nothing to show, nor has a threat under which none does, unless none has at all.
    moved = changed[~changed["same"]]
    variants, threats = (
        list(dict.fromkeys((changed if moved.empty else moved)[name])) for name in ("variant", "threat")
    )
    classifiers = list(dict.fromkeys(table["classifier"]))
    defenses = list(dict.fromkeys(table["defense"]))
    size = (1.9 + 2.3 * len(threats), 1.3 + (0.5 + 0.34 * len(variants)) * len(classifiers))
    figure = Figure(figsize=size)
    panels = figure.subplots(len(classifiers), len(threats), squeeze=False, sharey=True, sharex="col")
    for line, classifier in zip(panels, classifiers, strict=True):
        for axes, threat in zip(line, threats, strict=True):
            rows = changed[(changed["classifier"] == classifier) & (changed["threat"] == threat)]
            _panel(axes, rows, variants, defenses, names)
            axes.set_title(f"{classifier}\n{filled(threat, 30)}", fontsize=7.5)
            axes.tick_params(labelsize=7.5)
    for axes in panels[-1]:
        axes.set_xlabel("change of accuracy (points)", fontsize=8)
    framed(figure, title, note, defense_handles(names, defenses), min(4, len(defenses)))
    return figure


def describe(table: pd.DataFrame, cells: pd.DataFrame) -> tuple[str, str]:
    """The title, and the note that says how many points there are and what the checks say."""
    note = f"{int(table['points'].iloc[0])} points, the same for all; bars: paired 95 % over points"
    title = f"{table['dataset'].iloc[0]}: each choice against the {ITSELF}"
    same = table[table["variant"] != ITSELF].groupby("variant", sort=False)["same"].all()
    unmoved = "" if same.all() else ", ".join(same.index[same])
    told = filled(f"not drawn, since they change no cell of the study: {unmoved}", 110) if unmoved else ""
    return title, lines(note, told, checks_note(cells[cells["state"] == "done"]))


def make(store: Store, study: str) -> list[str]:
    """Write the table of a study's variants as Markdown and CSV, and draw the changes as PNG and PDF."""
    cells, names = read_study(store, study)
    counts = {}
    for cell in cells.loc[cells["state"] == "done", "cell"]:
        rows = records_of(store, cell)
        counts[cell] = rows[~rows["selection"]].sort_values("point")["correct_draws"].to_numpy(np.int64)
    table = facts(cells, counts, names)
    with styled():
        paths = save_figure(store, study, "presets", draw(table, names, *describe(table, cells)))
    files = {"presets_table.md": document(table, cells, names), "presets_table.csv": table.to_csv(index=False)}
    return [*paths, *save_texts(store, study, files)]
