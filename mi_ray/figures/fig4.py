"""Fig. 4: accuracy left by adaptive attacks, against the samples that they average over at each step (N_A).

`averaged` is the paper's own attack (Sec. 4.4, App. B.2), `eot_pgd` the gradient through the defense. Lines beside them:
oblivious PGD with as many steps on the undefended classifier (dashed, as in the paper) and on the defended one (dotted).
"""

import json

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from mi_ray.figures.names import Names, epsilon_text, parameters, radii_text
from mi_ray.figures.panels import ACCURACY, BAND, Style, bars, cross_out, framed, lines, save_drawing, styled
from mi_ray.figures.reading import at_largest_n, check_each_once, finished, read_study
from mi_ray.figures.verdict_marks import checks_note
from mi_ray.store.blocks import Store

NEEDS = "Fig. 4 needs finished cells of an adaptive attack with `eot`"
# Curves take these in their order, of Okabe and Ito's palette, which can be told apart with any colour vision.
TINTS = ("#0072B2", "#D55E00", "#CC79A7", "#009E73", "#56B4E9", "#E69F00")
MARKERS = "soDv^P"
LINE_TINTS = ("black", "#8C564B", "#17BECF", "#7F7F7F")
LINES = {
    "undefended": ("--", "{} on the undefended classifier"),
    "oblivious": (":", "oblivious {} on the defended one"),
}
AXES = ("steps", "queries", "eot")  # panels and samples tell these apart
PANEL = ["classifier", "goal", "norm", "epsilon"]


def facts(cells: pd.DataFrame, names: Names) -> pd.DataFrame:
    """One row per adaptive cell, in the order of `samples` (N_A), and one per line beside it, at the study's largest N.

    what: the attack's name, or a key of `LINES`; name: what the legend calls it, with what tells it from another attack
    of the same name. A line is there for each number of steps that has an adaptive attack. Raises ValueError for a
    study without adaptive cells, and where two cells would be one point or line.
    """
    own = finished(cells, NEEDS)
    params = own["attack_params"].map(json.loads)
    own = own.assign(
        steps=[found.get("steps") or found.get("queries") for found in params],
        samples=[found.get("eot") for found in params],
        name=names.attacks(own, AXES),
    )
    adaptive = own[(own["knowledge"] == "adaptive") & own["samples"].notna()]
    if adaptive.empty:
        raise ValueError(f"{NEEDS}; this study has none")
    adaptive = at_largest_n(adaptive)
    rows = [adaptive.assign(what=adaptive["attack"])]
    setting = [*PANEL, "defense", "defense_params", "executions", "steps"]
    pgd = own[(own["attack"] == "pgd") & (own["knowledge"] == "oblivious")]
    wanted = adaptive[setting].drop_duplicates()
    rows.append(pgd.merge(wanted, on=setting).assign(what="oblivious"))
    bare = pgd[pgd["defense"] == "none"].drop(columns=["defense", "defense_params", "executions"])
    rows.append(bare.merge(wanted, on=[*PANEL, "steps"]).assign(what="undefended"))
    told = ["what", "name", "samples", *ACCURACY, "verdict", "checks", "points"]
    kept = [*setting, *told, "attack", "attack_params", "knowledge", "state", "dataset"]
    order = ["defense", "defense_params", "goal", "norm", "epsilon", "steps", "what", "name", "samples"]
    table = pd.concat([part[kept] for part in rows]).sort_values(order, kind="stable")
    said = {what: text for what, (_, text) in LINES.items()}
    table["name"] = [said.get(what, "{}").format(name) for what, name in zip(table["what"], table["name"], strict=True)]
    check_each_once(table, [*setting, "what", "name", "samples"])
    known = list(dict.fromkeys(adaptive["classifier"]))
    return table.sort_values("classifier", key=lambda column: column.map(known.index), kind="stable", ignore_index=True)


def _styles(table: pd.DataFrame) -> dict[str, Style]:
    """How each name is drawn, the curves first."""
    pairs = table[["what", "name"]].drop_duplicates()
    curves = pairs.loc[~pairs["what"].isin(LINES), "name"]
    styles: dict[str, Style] = {}
    for at, name in enumerate(curves):
        styles[name] = {
            "color": TINTS[at % len(TINTS)],
            "marker": MARKERS[at % len(MARKERS)],
            "ms": 4.5,
            "lw": 1.3,
        }
    for what, (dashes, _) in LINES.items():
        for at, name in enumerate(pairs.loc[pairs["what"] == what, "name"]):
            styles[name] = {"color": LINE_TINTS[at % len(LINE_TINTS)], "ls": dashes, "lw": 1.1}
    return styles


def _panel(axes: Axes, rows: pd.DataFrame, styles: dict[str, Style]) -> None:
    for name, group in rows.groupby("name", sort=False):
        style = styles[str(name)]
        if group["what"].iloc[0] in LINES:
            for _, row in group.iterrows():
                axes.axhline(100 * row["accuracy"], **style)
                low, high = 100 * row["accuracy_low"], 100 * row["accuracy_high"]
                axes.axhspan(low, high, color=str(style["color"]), alpha=BAND / 2, lw=0)
            continue
        x, y = group["samples"], 100 * group["accuracy"]
        axes.errorbar(x, y, bars(group, ACCURACY, 100), color=str(style["color"]), lw=0.9, capsize=2, fmt="none")
        axes.plot(x, y, **style)
        cross_out(axes, x, y, group, size=70)


def draw(table: pd.DataFrame, names: Names, title: str, note: str) -> Figure:
    """The figure of `facts`: a column for each defended classifier, a row for each number of steps."""
    columns = table[[*PANEL, "defense", "defense_params"]].drop_duplicates()
    several = len(table[["norm", "epsilon"]].drop_duplicates()) > 1
    lengths = sorted(table["steps"].unique())
    figure = Figure(figsize=(1.0 + 3.0 * len(columns), 1.5 + 2.0 * len(lengths)))
    panels = figure.subplots(len(lengths), len(columns), squeeze=False, sharex=True, sharey="col")
    styles = _styles(table)
    for line, steps in zip(panels, lengths, strict=True):
        for axes, (_, column) in zip(line, columns.iterrows(), strict=True):
            own = (table[list(column.index)] == column).all(axis=1) & (table["steps"] == steps)
            _panel(axes, table[own], styles)
            defended = f"{column['classifier']} + {names.defense(column['defense'])}"
            ball = f", ε = {epsilon_text(column['epsilon'], column['norm'])}" if several else ""
            told = f"{defended} ({parameters(column['defense_params'])}){ball}, {steps:.0f} steps"
            axes.set_title(told, fontsize=8)
            axes.set_ylim(bottom=0)
        line[0].set_ylabel("Accuracy (%)")
    for axes in panels[-1]:
        axes.set_xlabel("samples in each step, $N_A$", parse_math=True)
        axes.set_xscale("log")  # Few samples lie close together, and there the curves bend.
        samples = sorted({int(found) for found in table["samples"].dropna()})
        axes.set_xticks(samples, [str(found) for found in samples])
        axes.xaxis.set_minor_locator(NullLocator())
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    framed(figure, title, note, handles, 2)
    return figure


def describe(table: pd.DataFrame) -> tuple[str, str]:
    """The title, which names ε, and the note that says how many points there are and what the checks say."""
    row = table.iloc[0]
    radii = radii_text(table)
    note = f"{int(row['points'])} images; bars and grey bands: 95 % intervals over images"
    note = lines(note, checks_note(table[~table["what"].isin(LINES)]))
    return f"{row['dataset']}: adaptive attacks, ε = {radii}", note


def make(store: Store, study: str) -> list[str]:
    """Draw Fig. 4 of a study into its folder, as PNG and PDF, with its numbers as CSV."""
    cells, names = read_study(store, study)
    table = facts(cells, names)
    with styled():
        figure = draw(table, names, *describe(table))
        return save_drawing(store, study, "fig4", figure, table.drop(columns="checks"))
