"""Fig. 3(b): adversarial against clean accuracy, a panel for each classifier, a curve for each defense."""

import json
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mi_ray.figures.common import (
    MARKERS,
    attack_label,
    checks_note,
    colour,
    cross_out,
    defense_handle,
    framed,
    save_figure,
    styled,
)
from mi_ray.statistics import frontier, undominated
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_cells

SHOWN = 0.30  # settings that give up more clean accuracy than this against no defense are counted, not drawn


def facts(cells: pd.DataFrame) -> pd.DataFrame:
    """The frontier table of a study's first attack, each defense at its largest N, in the order of its curves.

    `curve`: whether the setting is on its defense's line: all settings of a defense with one axis, in the order of that
    axis; of one with several axes, the settings that no other of them dominates. `shown`: see `SHOWN`.
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
    bare = ordered[ordered["defense"] == "none"].set_index("classifier")["clean"]
    ordered["shown"] = ordered["clean"] >= ordered["classifier"].map(bare) - SHOWN
    return ordered.assign(others=others)


def _curve(group: pd.DataFrame) -> pd.DataFrame:
    settings = pd.DataFrame([json.loads(text) for text in group["defense_params"]], index=group.index)
    varied = [name for name in settings if len(set(settings[name].map(json.dumps))) > 1]
    if len(varied) == 1:
        by_axis = settings[varied[0]].map(json.dumps).map(json.loads).sort_values(key=lambda s: s.map(_order))
        return group.loc[by_axis.index].assign(curve=True)
    best = undominated(group["clean"], group["adversarial"])
    return group.assign(curve=best).sort_values(["clean", "adversarial"], ascending=[True, False])


def _order(value: Any) -> float:
    """A number that sorts an axis: a number itself, a pair by its middle."""
    return (
        sum(value) / len(value) if isinstance(value, list) else float(value) if isinstance(value, (int, float)) else 0.0
    )


def _panel(axes: Axes, panel: pd.DataFrame, defenses: list[str]) -> None:
    for defense in defenses:
        rows = panel[panel["defense"] == defense]
        tint, marker = colour(defense, defenses), MARKERS.get(defense, "s")
        axes.scatter(100 * rows["clean"], 100 * rows["adversarial"], s=10, color=tint, marker=marker, alpha=0.4, lw=0)
        curve, bare = rows[rows["curve"]], defense == "none"
        order = 6 if bare else 4 if defense.startswith("mi_") else 3
        bars = axes.errorbar(
            100 * curve["clean"],
            100 * curve["adversarial"],
            xerr=_error(curve, "clean"),
            yerr=_error(curve, "adversarial"),
            color=tint,
            marker=marker,
            ms=11 if bare else 5,
            lw=1.4,
            elinewidth=0.7,
            capsize=0,
            zorder=order,
        )
        for line in bars[2]:
            line.set_alpha(0.4)
    best = panel[panel["undominated"]]
    axes.scatter(
        100 * best["clean"], 100 * best["adversarial"], s=95, facecolors="none", edgecolors="black", lw=1.0, zorder=7
    )
    cross_out(axes, 100 * panel["clean"], 100 * panel["adversarial"], panel)


def _error(rows: pd.DataFrame, name: str) -> list[Any]:
    return [100 * (rows[name] - rows[f"{name}_low"]), 100 * (rows[f"{name}_high"] - rows[name])]


def draw(table: pd.DataFrame, title: str, note: str) -> Figure:
    """The figure of `facts`."""
    shown = table[table["shown"]]
    classifiers, defenses = list(dict.fromkeys(shown["classifier"])), list(dict.fromkeys(shown["defense"]))
    figure, panels = plt.subplots(1, len(classifiers), figsize=(1.2 + 3.9 * len(classifiers), 5.0), squeeze=False)
    for axes, classifier in zip(panels[0], classifiers, strict=True):
        _panel(axes, shown[shown["classifier"] == classifier], defenses)
        axes.set_title(classifier, fontsize=10)
        axes.set_xlabel("Clean accuracy (%)")
    panels[0][0].set_ylabel("Adversarial accuracy (%)")
    handles = [defense_handle(name, defenses) for name in defenses]
    handles.append(Line2D([], [], ls="", marker="o", ms=9, mfc="none", mec="black", label="Undominated"))
    columns = min(len(handles), 2 + 2 * len(classifiers)) if len(classifiers) > 1 else 2
    framed(figure, title, note, handles, min(columns, 5))
    return figure


def describe(table: pd.DataFrame) -> tuple[str, str]:
    """(title, note): what is drawn, on how many points, how the rings were chosen, and what is left out."""
    row = table.iloc[0]
    chosen, hidden = int(row["selection_points"]), int((~table["shown"]).sum())
    note = f"{int(row['points'])} points, 95 % intervals over points; rings: undominated on "
    note += f"{chosen} other points" if chosen else "the points shown, so optimistic"
    if row["others"]:
        note += f"; {int(row['others'])} further attacks of the study are not shown"
    if hidden:
        note += f"; {hidden} settings that give up over {100 * SHOWN:.0f} points of clean accuracy are not shown"
    note = "\n".join(part for part in (note, checks_note(table[table["shown"]])) if part)
    return f"{row['dataset']}: {attack_label(row)}", note


def make(store: Store, study: str) -> list[str]:
    """Draw Fig. 3(b) of a study into its folder, as PNG and PDF."""
    table = facts(read_cells(store, study))
    with styled():
        figure = draw(table, *describe(table))
        paths = save_figure(store, study, "fig3b", figure)
        plt.close(figure)
    return paths
