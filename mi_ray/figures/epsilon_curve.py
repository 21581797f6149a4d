"""Accuracy against ε: a column of panels for each classifier, a row for each attack, a curve with its band for each defense.

The point at ε = 0 is the clean cell. Curves join cells of one attack whatever its step size, which has to fit ε.
"""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mi_ray.figures.common import (
    MARKERS,
    attack_names,
    checks_note,
    colour,
    cross_out,
    defense_handle,
    each_once,
    finished,
    framed,
    save_drawing,
    styled,
)
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_cells

NEEDS = "accuracy against ε needs finished cells with and without an attack"
SETTING = ["classifier", "defense", "defense_params", "executions", "draws"]
WORST = "Worst case of the study's attacks"


def facts(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per (classifier, defense setting, attack, ε), ε = 0 the clean cell: accuracy, interval, verdict.

    A setting that a study attacks in one way alone at an ε has no cell of the worst case there: it is that attack's.
    Raises ValueError for a study without clean or without attacked cells, and where two cells would be one point.
    """
    own = finished(cells, NEEDS).copy()
    clean, attacked = own[own["attack"] == "none"], own[own["attack"] != "none"]
    if clean.empty or attacked.empty:
        raise ValueError(f"{NEEDS}; this study has none")
    worst = attacked["attack"] == "worst_case"
    names = [f"{name}, {goal}" for name, goal in zip(attack_names(attacked), attacked["goal"], strict=True)]
    attacked = attacked.assign(curve=pd.Series(names, attacked.index).mask(worst, WORST))
    if worst.any():
        alone = attacked.groupby([*SETTING, "epsilon"])["cell"].transform("size") == 1
        attacked = pd.concat([attacked, attacked[alone & ~worst].assign(curve=WORST)])
    starts = clean.merge(attacked[[*SETTING, "curve"]].drop_duplicates(), on=SETTING).assign(epsilon=0.0)
    kept = [
        *SETTING,
        "curve",
        "epsilon",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "verdict",
        "checks",
        "points",
        "attack",
        "attack_params",
        "knowledge",
        "dataset",
    ]
    table = pd.concat([starts[kept], attacked[kept]], ignore_index=True)
    each_once(table, [*SETTING, "curve", "epsilon"])
    order = [name for name in dict.fromkeys(attacked["curve"]) if name != WORST] + [WORST]
    table["place"] = table["curve"].map(order.index)
    return table.sort_values(["place", "epsilon"], kind="stable", ignore_index=True).drop(columns="place")


def _panel(axes: Axes, panel: pd.DataFrame, defenses: list[str]) -> None:
    for (defense, _, _), line in panel.groupby(["defense", "defense_params", "executions"], sort=False):
        tint, x, y = colour(str(defense), defenses), 255 * line["epsilon"], 100 * line["accuracy"]
        axes.fill_between(x, 100 * line["accuracy_low"], 100 * line["accuracy_high"], color=tint, alpha=0.12, lw=0)
        axes.plot(x, y, color=tint, marker=MARKERS.get(str(defense), "s"), ms=7 if defense == "none" else 4, lw=1.3)
        cross_out(axes, x, y, line)


def draw(table: pd.DataFrame, title: str, note: str) -> Figure:
    """The figure of `facts`."""
    classifiers, curves = list(dict.fromkeys(table["classifier"])), list(dict.fromkeys(table["curve"]))
    defenses = sorted(dict.fromkeys(table["defense"]), key=lambda name: [*MARKERS, name].index(name))
    size = (1.0 + 3.1 * len(classifiers), 1.2 + 2.2 * len(curves))
    figure, panels = plt.subplots(len(curves), len(classifiers), figsize=size, squeeze=False, sharex=True, sharey=True)
    for line, curve in zip(panels, curves, strict=True):
        for axes, classifier in zip(line, classifiers, strict=True):
            _panel(axes, table[(table["curve"] == curve) & (table["classifier"] == classifier)], defenses)
            axes.set_title(textwrap.fill(f"{classifier}: {curve}", 44), fontsize=8.5)
        line[0].set_ylabel("Accuracy (%)")
    panels[0][0].set_ylim(0, 100)
    for axes in panels[-1]:
        axes.set_xlabel("ε · 255")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    framed(figure, title, note, [defense_handle(name, defenses) for name in defenses], min(len(defenses), 4))
    return figure


def describe(table: pd.DataFrame) -> tuple[str, str]:
    """(title, note): the data, the number of points, and what the checks say."""
    note = f"{int(table['points'].iloc[0])} points; bands: 95 % over points; ε = 0: clean inputs"
    shown = table[(table["curve"] != WORST) | (table["attack"] == "worst_case")]
    return f"{table['dataset'].iloc[0]}: accuracy against ε", "\n".join(t for t in (note, checks_note(shown)) if t)


def make(store: Store, study: str) -> list[str]:
    """Draw accuracy against ε of a study into its folder, as PNG and PDF, with its numbers as CSV."""
    table = facts(read_cells(store, study))
    with styled():
        figure = draw(table, *describe(table))
        return save_drawing(store, study, "epsilon_curve", figure, table.drop(columns="checks"))
