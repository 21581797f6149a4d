"""Fig. 4: accuracy left by adaptive attacks, against the samples that they average over at each step (N_A).

`averaged` is the paper's own attack (Sec. 4.4, App. B.2), `eot_pgd` the gradient through the defense. Lines beside them:
oblivious PGD with as many steps on the undefended classifier (dashed, as in the paper) and on the defended one (dotted).
"""

import json
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mi_ray.figures.common import (
    SPARE_COLOURS,
    attack_names,
    checks_note,
    cross_out,
    each_once,
    epsilon_text,
    finished,
    framed,
    label,
    parameters,
    save_drawing,
    styled,
)
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_cells

NEEDS = "Fig. 4 needs finished cells of an adaptive attack with `eot`"
TINTS = {"averaged": "#0072B2", "eot_pgd": "#D55E00", "apgd": "#CC79A7", "square": "#009E73"}
MARKS = {"averaged": "s", "eot_pgd": "o", "apgd": "v", "square": "D"}
LINES = {
    "undefended": ("--", "{} on the undefended classifier"),
    "oblivious": (":", "oblivious {} on the defended one"),
}
AXES = ("steps", "queries", "eot")  # panels and samples tell these apart
THREAT = ["classifier", "goal", "epsilon"]


def facts(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per adaptive cell, by `samples` (N_A), and one per line beside it; the study's largest N alone.

    what: the attack's name, or a key of `LINES`; name: what the legend calls it, with what tells it from another attack
    of the same name. A line is there for each number of steps that has an adaptive attack. Raises ValueError for a
    study without adaptive cells, and where two cells would be one point or line.
    """
    own = finished(cells, NEEDS)
    params = own["attack_params"].map(json.loads)
    own = own.assign(
        steps=[found.get("steps") or found.get("queries") for found in params],
        samples=[found.get("eot") for found in params],
        name=attack_names(own, AXES),
    )
    adaptive = own[(own["knowledge"] == "adaptive") & own["samples"].notna()]
    if adaptive.empty:
        raise ValueError(f"{NEEDS}; this study has none")
    adaptive = adaptive[
        adaptive["executions"] == adaptive.groupby(["classifier", "defense"])["executions"].transform("max")
    ]
    rows = [adaptive.assign(what=adaptive["attack"])]
    setting = [*THREAT, "defense", "defense_params", "executions", "steps"]
    pgd = own[(own["attack"] == "pgd") & (own["knowledge"] == "oblivious")]
    wanted = adaptive[setting].drop_duplicates()
    rows.append(pgd.merge(wanted, on=setting).assign(what="oblivious"))
    bare = pgd[pgd["defense"] == "none"].drop(columns=["defense", "defense_params", "executions"])
    rows.append(bare.merge(wanted, on=[*THREAT, "steps"]).assign(what="undefended"))
    names = [
        *setting,
        "what",
        "name",
        "samples",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "verdict",
        "checks",
        "points",
        "attack",
        "attack_params",
        "knowledge",
        "state",
        "dataset",
    ]
    order = ["defense", "defense_params", "goal", "epsilon", "steps", "what", "name", "samples"]
    table = pd.concat([part[names] for part in rows]).sort_values(order, kind="stable")
    said = {what: text for what, (_, text) in LINES.items()}
    table["name"] = [said.get(what, "{}").format(name) for what, name in zip(table["what"], table["name"], strict=True)]
    each_once(table, [*setting, "what", "name", "samples"])
    known = list(dict.fromkeys(adaptive["classifier"]))
    return table.sort_values("classifier", key=lambda names: names.map(known.index), kind="stable", ignore_index=True)


def _styles(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """How each name is drawn, curves first; a further one of the same attack takes a spare colour."""
    pairs = table[["what", "name"]].drop_duplicates()
    pairs = pairs.sort_values("what", key=lambda whats: whats.isin(LINES), kind="stable")
    found: dict[str, dict[str, Any]] = {}
    for what, names in pairs.groupby("what", sort=False)["name"]:
        first = "black" if what in LINES else TINTS.get(str(what), "#56B4E9")
        style = (
            {"ls": LINES[str(what)][0], "lw": 1.1}
            if what in LINES
            else {"marker": MARKS.get(str(what), "o"), "lw": 1.3}
        )
        tints = [first, *SPARE_COLOURS]
        found |= {name: {"color": tints[at % len(tints)], "ms": 4.5, **style} for at, name in enumerate(names)}
    return found


def _panel(axes: Axes, rows: pd.DataFrame, styles: dict[str, dict[str, Any]]) -> None:
    for name, line in rows.groupby("name", sort=False):
        style = styles[str(name)]
        if line["what"].iloc[0] in LINES:
            for _, row in line.iterrows():
                axes.axhline(100 * row["accuracy"], **style)
                axes.axhspan(
                    100 * row["accuracy_low"], 100 * row["accuracy_high"], color=style["color"], alpha=0.06, lw=0
                )
            continue
        x, y = line["samples"], 100 * line["accuracy"]
        axes.fill_between(
            x, 100 * line["accuracy_low"], 100 * line["accuracy_high"], color=style["color"], alpha=0.15, lw=0
        )
        axes.plot(x, y, **style)
        cross_out(axes, x, y, line)


def draw(table: pd.DataFrame, title: str, note: str) -> Figure:
    """The figure of `facts`: a column for each defended classifier, a row for each number of steps."""
    columns = list(
        table[["classifier", "defense", "defense_params", "goal", "epsilon"]]
        .drop_duplicates()
        .itertuples(index=False, name=None)
    )
    lengths = sorted(table["steps"].unique())
    size = (1.0 + 3.0 * len(columns), 1.5 + 2.0 * len(lengths))
    grid: dict[str, Any] = {"figsize": size, "squeeze": False, "sharex": True, "sharey": "col"}
    figure, panels = plt.subplots(len(lengths), len(columns), **grid)
    styles = _styles(table)
    for line, steps in zip(panels, lengths, strict=True):
        for axes, (classifier, defense, params, goal, epsilon) in zip(line, columns, strict=True):
            own = (
                (table["classifier"] == classifier)
                & (table["defense"] == defense)
                & (table["defense_params"] == params)
            )
            own &= (table["goal"] == goal) & (table["epsilon"] == epsilon) & (table["steps"] == steps)
            _panel(axes, table[own], styles)
            axes.set_title(f"{classifier} + {label(defense)} ({parameters(params)}), {steps:.0f} steps", fontsize=8)
        line[0].set_ylabel("Accuracy (%)")
    for axes in panels[-1]:
        axes.set_xlabel("samples in each step, $N_A$")
    framed(figure, title, note, [Line2D([], [], label=name, **style) for name, style in styles.items()], 2)
    return figure


def describe(table: pd.DataFrame) -> tuple[str, str]:
    """(title, note): the threat, the number of points, and what the checks say."""
    row = table.iloc[0]
    radii = ", ".join(epsilon_text(epsilon) for epsilon in sorted(set(table["epsilon"])))
    note = f"{int(row['points'])} points; bands: 95 % over points"
    note = "\n".join(part for part in (note, checks_note(table[~table["what"].isin(LINES)])) if part)
    return f"{row['dataset']}: adaptive attacks, ε = {radii}", note


def make(store: Store, study: str) -> list[str]:
    """Draw Fig. 4 of a study into its folder, as PNG and PDF, with its numbers as CSV."""
    table = facts(read_cells(store, study))
    with styled():
        return save_drawing(store, study, "fig4", draw(table, *describe(table)), table.drop(columns="checks"))
