"""Fig. 3(b): adversarial against clean accuracy, a panel for each classifier, a curve for each defense."""

import json

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mi_ray.choice import chosen_on, curve, frontier
from mi_ray.figures.names import Names
from mi_ray.figures.panels import Estimated, Style, bars, cross_out, defense_handles, framed, lines, save_figure, styled
from mi_ray.figures.reading import read_study
from mi_ray.figures.verdict_marks import checks_note
from mi_ray.store.blocks import Store

SHOWN = 0.30  # settings that give up more clean accuracy than this against no defense are counted, not drawn
CLEAN: Estimated = ("clean", "clean_low", "clean_high")
ADVERSARIAL: Estimated = ("adversarial", "adversarial_low", "adversarial_high")


def facts(cells: pd.DataFrame) -> pd.DataFrame:
    """The frontier table of a study's first attack, each defense at its largest N, in the order of its curves.

    `curve`: whether the setting is on its defense's line: all settings of a defense with one axis, in the order of that
    axis; of one with several axes, those that `mi_ray.choice.curve` chooses. `shown`: whether it is drawn, which
    settings that give up more clean accuracy than `SHOWN` are not; all are in a study without an undefended cell.
    `others`: how many further attacks the study has. Raises ValueError for a study without attacked cells.
    """
    table = frontier(cells)
    if table.empty:
        raise ValueError("Fig. 3(b) needs finished cells with and without an attack; this study has none")
    threat = ["attack", "attack_params", "goal", "epsilon"]
    others = len(table.loc[table["attack"] != "worst_case", threat].drop_duplicates()) - 1
    table = table[(table[threat] == table.iloc[0][threat]).all(axis=1)]
    most = table.groupby("defense")["executions"].transform("max")
    table = table[table["executions"] == most]
    parts = [_curve(group) for _, group in table.groupby(["classifier", "defense"], sort=False)]
    ordered = pd.concat(parts, ignore_index=True)
    bare = ordered[ordered["defense"] == "none"].groupby("classifier")["clean"].max()
    least = ordered["classifier"].map(bare).astype(float).fillna(0.0) - SHOWN
    return ordered.assign(shown=ordered["clean"] >= least, others=others)


def _curve(group: pd.DataFrame) -> pd.DataFrame:
    settings = pd.DataFrame([json.loads(text) for text in group["defense_params"]], index=group.index)
    varied = [name for name in settings if len(set(settings[name].map(json.dumps))) > 1]
    if len(varied) == 1:
        by_axis = settings[varied[0]].map(json.dumps).map(json.loads).sort_values(key=lambda s: s.map(_order))
        return group.loc[by_axis.index].assign(curve=True)
    best = curve(group)
    others = group.drop(best).sort_values(["clean", "adversarial"], ascending=[True, False])
    return pd.concat([group.loc[best[::-1]].assign(curve=True), others.assign(curve=False)])


def _order(value: object) -> float:
    """A number by which an axis is sorted: of a pair, such as a range, its middle."""
    if isinstance(value, list):
        return float(sum(value) / len(value))
    return float(value) if isinstance(value, (int, float)) else 0.0


def _panel(axes: Axes, panel: pd.DataFrame, names: Names) -> None:
    for defense, rows in panel.groupby("defense", sort=False):
        look, on_line, bare = names.look(str(defense)), rows[rows["curve"]], defense == "none"
        x, y = 100 * rows["clean"], 100 * rows["adversarial"]
        axes.scatter(x, y, s=10, color=look.colour, marker=look.marker, alpha=0.4, lw=0)
        drawn = axes.errorbar(
            x[rows["curve"]],
            y[rows["curve"]],
            xerr=bars(on_line, CLEAN, 100),
            yerr=bars(on_line, ADVERSARIAL, 100),
            color=look.colour,
            marker=look.marker,
            ms=11 if bare else 5,
            lw=1.4,
            elinewidth=0.7,
            zorder=3 if bare else 4,  # a defense at the same place is seen within the large star
            clip_on=False,
        )
        for line in drawn[2]:
            line.set_alpha(0.4)
    best = panel[panel["undominated"]]
    ring: Style = {"s": 95, "facecolors": "none", "edgecolors": "black", "lw": 1.0, "zorder": 7, "clip_on": False}
    axes.scatter(100 * best["clean"], 100 * best["adversarial"], **ring)
    cross_out(axes, 100 * panel["clean"], 100 * panel["adversarial"], panel)


def draw(table: pd.DataFrame, names: Names, title: str, note: str) -> Figure:
    """The figure of `facts`."""
    shown = table[table["shown"]]
    classifiers, defenses = list(dict.fromkeys(shown["classifier"])), list(dict.fromkeys(shown["defense"]))
    figure = Figure(figsize=(1.2 + 3.9 * len(classifiers), 5.0))
    panels = figure.subplots(1, len(classifiers), squeeze=False)[0]
    for axes, classifier in zip(panels, classifiers, strict=True):
        _panel(axes, shown[shown["classifier"] == classifier], names)
        axes.set_title(classifier, fontsize=10)
        axes.set_xlabel("Clean accuracy (%)")
    panels[0].set_ylabel("Adversarial accuracy (%)")
    handles = defense_handles(names, defenses)
    handles.append(Line2D([], [], ls="", marker="o", ms=9, mfc="none", mec="black", label="Undominated"))
    columns = min(len(handles), 2 + 2 * len(classifiers)) if len(classifiers) > 1 else 2
    framed(figure, title, note, handles, min(columns, 5))
    return figure


def describe(table: pd.DataFrame, names: Names) -> tuple[str, str]:
    """The title, and the note that says on how many points, how the rings were chosen, and what is left out."""
    row = table.iloc[0]
    hidden = int((~table["shown"]).sum())
    note = [
        f"{int(row['points'])} points, 95 % intervals over points",
        f"rings: undominated, and curves over several axes, chosen on {chosen_on(int(row['choosing_points']))}",
    ]
    if row["others"]:
        note.append(f"further attacks of the study, not shown: {int(row['others'])}")
    if hidden:
        note.append(f"settings that give up over {100 * SHOWN:.0f} points of clean accuracy, not shown: {hidden}")
    return f"{row['dataset']}: {names.threat(row)}", lines("; ".join(note), checks_note(table[table["shown"]]))


def make(store: Store, study: str) -> list[str]:
    """Draw Fig. 3(b) of a study into its folder, as PNG and PDF."""
    cells, names = read_study(store, study)
    table = facts(cells)
    with styled():
        return save_figure(store, study, "fig3b", draw(table, names, *describe(table, names)))
