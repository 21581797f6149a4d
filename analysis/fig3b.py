"""Fig. 3(b): adversarial against clean accuracy, a panel for each classifier, a curve for each defense."""

from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.common import MARKERS, attack_label, colour, label, save_figure, script, styled
from mi_ray.records import Store, read_cells
from mi_ray.statistics import frontier, undominated


def facts(cells: pd.DataFrame) -> pd.DataFrame:
    """The frontier table of the study's first attack at its largest N, with `envelope`: undominated in its defense."""
    table = frontier(cells)
    if table.empty:
        raise ValueError("Fig. 3(b) needs finished cells with and without an attack; this study has none")
    first = table.iloc[0]
    same = (
        table[["attack", "attack_params", "goal", "epsilon"]] == first[["attack", "attack_params", "goal", "epsilon"]]
    ).all(axis=1)
    table = table[same]
    most = table.groupby("defense")["executions"].transform("max")
    table = table[table["executions"] == most].copy()
    table["envelope"] = False
    for _, group in table.groupby(["classifier", "defense"], sort=False):
        table.loc[group.index, "envelope"] = undominated(group["clean"], group["adversarial"])
    return table.reset_index(drop=True)


def _panel(axes: Axes, panel: pd.DataFrame, defenses: list[str]) -> None:
    for defense in defenses:
        rows = panel[panel["defense"] == defense]
        tint, marker = colour(defense, defenses), MARKERS.get(defense, "s")
        axes.scatter(100 * rows["clean"], 100 * rows["adversarial"], s=9, color=tint, marker=marker, alpha=0.35, lw=0)
        curve = rows[rows["envelope"]].sort_values("clean")
        axes.errorbar(
            100 * curve["clean"], 100 * curve["adversarial"],
            xerr=_error(curve, "clean"), yerr=_error(curve, "adversarial"),
            color=tint, marker=marker, ms=9 if defense == "none" else 4.5, lw=1.3, elinewidth=0.5, capsize=0,
            zorder=4 if defense.startswith("mi") else 3,
        )  # fmt: skip
    best = panel[panel["undominated"]]
    axes.scatter(
        100 * best["clean"],
        100 * best["adversarial"],
        s=80,
        facecolors="none",
        edgecolors="black",
        lw=0.9,
        zorder=5,
    )


def _error(rows: pd.DataFrame, name: str) -> list[Any]:
    return [100 * (rows[name] - rows[f"{name}_low"]), 100 * (rows[f"{name}_high"] - rows[name])]


def draw(table: pd.DataFrame, title: str, note: str) -> Figure:
    """The figure of `facts`."""
    classifiers = list(dict.fromkeys(table["classifier"]))
    defenses = list(dict.fromkeys(table["defense"]))
    figure, panels = plt.subplots(1, len(classifiers), figsize=(4.3 * len(classifiers), 4.7), squeeze=False)
    for axes, classifier in zip(panels[0], classifiers, strict=True):
        _panel(axes, table[table["classifier"] == classifier], defenses)
        axes.set(title=classifier, xlabel="Clean accuracy (%)")
    panels[0][0].set_ylabel("Adversarial accuracy (%)")
    handles = [
        Line2D(
            [],
            [],
            color=colour(d, defenses),
            marker=MARKERS.get(d, "s"),
            ms=9 if d == "none" else 5,
            lw=1.3,
            label=label(d),
        )
        for d in defenses
    ]
    ring = Line2D([], [], ls="", marker="o", ms=9, mfc="none", mec="black", label="Undominated")
    figure.legend(handles=[*handles, ring], loc="outside lower center", ncols=min(5, len(handles) + 1), fontsize=8)
    figure.suptitle(f"{title}\n", fontsize=10)
    figure.text(0.5, 0.925, note, ha="center", fontsize=7, color="#444444")
    return figure


def describe(table: pd.DataFrame) -> tuple[str, str]:
    """(title, note): what is drawn, on how many points, and how the rings were chosen."""
    row = table.iloc[0]
    chosen = int(row["selection_points"])
    rings = f"rings: chosen on {chosen} other points" if chosen else "rings: chosen on the points shown, so optimistic"
    title = f"{row['dataset']}: {attack_label(row)}"
    return title, f"{int(row['points'])} points, 95 % intervals over points; {rings}"


def make(store: Store, study: str) -> list[str]:
    """Draw Fig. 3(b) of a study into its folder, as PNG and PDF."""
    table = facts(read_cells(store, study))
    with styled():
        figure = draw(table, *describe(table))
        paths = save_figure(store, study, "fig3b", figure)
        plt.close(figure)
    return paths


if __name__ == "__main__":
    script(make)
