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

from analysis.common import (
    ATTACKS,
    checks_note,
    cross_out,
    epsilon_text,
    finished,
    framed,
    label,
    parameters,
    save_drawing,
    script,
    styled,
)
from mi_ray.records import Store, read_cells

NEEDS = "Fig. 4 needs finished cells of an adaptive attack with `eot`"
TINTS = {"averaged": "#0072B2", "eot_pgd": "#D55E00", "apgd": "#CC79A7", "square": "#009E73"}
MARKS = {"averaged": "s", "eot_pgd": "o", "apgd": "v", "square": "D"}
LINES = {
    "undefended": ("--", "PGD on the undefended classifier"),
    "oblivious": (":", "oblivious PGD on the defended one"),
}
THREAT = ["classifier", "goal", "epsilon"]


def facts(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per adaptive cell, by `samples` (N_A), and one per line beside it; the study's largest N alone.

    what: the attack's name, or a key of `LINES`. A line is there for each number of steps that has an adaptive attack.
    Raises ValueError for a study without adaptive cells.
    """
    own = finished(cells, NEEDS)
    params = own["attack_params"].map(json.loads)
    own = own.assign(
        steps=[found.get("steps") or found.get("queries") for found in params],
        samples=[found.get("eot") for found in params],
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
        *setting, "what", "samples", "accuracy", "accuracy_low", "accuracy_high", "verdict", "checks", "points", "attack",
        "attack_params", "knowledge", "state", "dataset",
    ]  # fmt: skip
    order = ["defense", "defense_params", "goal", "epsilon", "steps", "what", "samples"]
    table = pd.concat([part[names] for part in rows]).sort_values(order, kind="stable")
    known = list(dict.fromkeys(adaptive["classifier"]))
    return table.sort_values("classifier", key=lambda names: names.map(known.index), kind="stable", ignore_index=True)


def _panel(axes: Axes, rows: pd.DataFrame) -> None:
    for what, (style, _) in LINES.items():
        for _, row in rows[rows["what"] == what].iterrows():
            axes.axhline(100 * row["accuracy"], color="black", ls=style, lw=1.1)
            axes.axhspan(100 * row["accuracy_low"], 100 * row["accuracy_high"], color="black", alpha=0.06, lw=0)
    for attack, line in rows[~rows["what"].isin(LINES)].groupby("what"):
        tint, x, y = TINTS.get(str(attack), "#56B4E9"), line["samples"], 100 * line["accuracy"]
        axes.fill_between(x, 100 * line["accuracy_low"], 100 * line["accuracy_high"], color=tint, alpha=0.15, lw=0)
        axes.plot(x, y, color=tint, marker=MARKS.get(str(attack), "o"), ms=4.5, lw=1.3)
        cross_out(axes, x, y, line)


def _handles(table: pd.DataFrame) -> list[Line2D]:
    attacks = [name for name in dict.fromkeys(table["what"]) if name not in LINES]
    handles = [
        Line2D([], [], color=TINTS.get(name, "#56B4E9"), marker=MARKS.get(name, "o"), ms=4.5, lw=1.3,
               label=ATTACKS.get(name, name))
        for name in attacks
    ]  # fmt: skip
    known = set(table["what"])
    lines = [line for what, line in LINES.items() if what in known]
    return handles + [Line2D([], [], color="black", ls=style, lw=1.1, label=text) for style, text in lines]


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
    for line, steps in zip(panels, lengths, strict=True):
        for axes, (classifier, defense, params, goal, epsilon) in zip(line, columns, strict=True):
            own = (
                (table["classifier"] == classifier)
                & (table["defense"] == defense)
                & (table["defense_params"] == params)
            )
            own &= (table["goal"] == goal) & (table["epsilon"] == epsilon) & (table["steps"] == steps)
            _panel(axes, table[own])
            axes.set_title(f"{classifier} + {label(defense)} ({parameters(params)}), {steps:.0f} steps", fontsize=8)
        line[0].set_ylabel("Accuracy (%)")
    for axes in panels[-1]:
        axes.set_xlabel("samples in each step, $N_A$")
    framed(figure, title, note, _handles(table), 2)
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


if __name__ == "__main__":
    script(make)
