"""Accuracy against ε: a column of panels for each classifier, a row for each attack, a curve with its band for each defense.

The many attacks on a single classifier stand side by side, row by row.

The point at ε = 0 is the clean cell. A curve joins the cells of one attack whatever its step size, which has to fit ε.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mi_ray.choice import SETTING
from mi_ray.figures.names import Names, norm_text, parameters
from mi_ray.figures.panels import (
    ACCURACY,
    Style,
    cross_out,
    curve,
    defense_handles,
    filled,
    framed,
    lines,
    save_drawing,
    show_percent,
    styled,
)
from mi_ray.figures.reading import at_largest_n, check_each_once, finished, may_stand_for_worst, read_study
from mi_ray.figures.verdict_marks import checks_note
from mi_ray.statistics import of_variant
from mi_ray.store.blocks import Store
from mi_ray.threat_model import MAX_NORM, WORST_CASE

NEEDS = "accuracy against ε needs finished cells with and without an attack"
DRAWN = [*SETTING, "draws"]  # a setting and how often it was scored
WORST = "Worst case of the study's attacks"
ACROSS = 4  # Panels side by side, where they run on from row to row.
SETTING_OF = ["classifier", "defense", "defense_params"]  # a curve in a panel
# Of the settings of one defense: whole, and with lines and gaps of so many line widths.
DASHES: Sequence[tuple[float, Sequence[float]]] = ((0, ()), (0, (5, 1.5)), (0, (2, 1)), (0, (5, 1, 1, 1)))
MOST_BANDS = 6  # Bands of more curves than this lie over each other, and none can be told from the others.
# What an axis is of, by the norm.
AXES: dict[str, str] = {MAX_NORM: "ε · 255", "spatial": "ε: share of 30° and of a tenth of the side"}


def facts(cells: pd.DataFrame, names: Names) -> pd.DataFrame:
    """One row per (classifier, defense setting at its largest N, attack, norm, ε), ε = 0 the clean cell.

    Where a setting was attacked by one attack alone at an ε, there is no cell of the worst case, and that attack's cell stands
    for it, if it may (`may_stand_for_worst`). The worst case of a setting is shown only at those ε of a norm at which the most
    attacks were run on it: the worst of fewer attacks lies higher for that reason alone, and a curve through both would rise and
    fall with the number of attacks.
    Raises ValueError for a study without clean or without attacked cells, and where two cells would be one point.
    """
    own = finished(cells, NEEDS)
    own = at_largest_n(own).copy()
    clean, attacked = own[own["attack"] == "none"], own[own["attack"] != "none"]
    if clean.empty or attacked.empty:
        raise ValueError(f"{NEEDS}; this study has none")
    worst = attacked["attack"] == WORST_CASE
    called = [f"{name}, {goal}" for name, goal in zip(names.attacks(attacked), attacked["goal"], strict=True)]
    norm = attacked["norm"].map(lambda name: "" if name == MAX_NORM else f", {norm_text(name)}")
    of_all = WORST + norm
    attacked = attacked.assign(curve=(pd.Series(called, attacked.index) + norm).mask(worst, of_all))
    if worst.any():
        alone = attacked.groupby([*DRAWN, "norm", "epsilon"])["cell"].transform("size") == 1
        stands = may_stand_for_worst(attacked, of_variant(cells))
        attacked = pd.concat([attacked, attacked[alone & ~worst & stands].assign(curve=of_all)])
        attacked = attacked[~attacked["curve"].str.startswith(WORST) | _by_most(attacked)]
    starts = (
        clean.drop(columns="norm")
        .merge(attacked[[*DRAWN, "curve", "norm"]].drop_duplicates(), on=DRAWN)
        .assign(epsilon=0.0)
    )
    # A curve that has a cell of its own at 0 begins there.
    place = [*DRAWN, "curve", "norm"]
    begun = set(attacked.loc[attacked["epsilon"] == 0, place].itertuples(index=False, name=None))
    starts = starts[np.array([each not in begun for each in starts[place].itertuples(index=False, name=None)], bool)]
    told = [*ACCURACY, "verdict", "checks", "points", "attack", "attack_params", "knowledge", "dataset"]
    kept = [*DRAWN, "curve", "norm", "epsilon", *told]
    table = pd.concat([starts[kept], attacked[kept]], ignore_index=True)
    check_each_once(table, [*DRAWN, "curve", "epsilon"])
    order = sorted(dict.fromkeys(attacked["curve"]), key=lambda name: name.startswith(WORST))
    table["place"] = table["curve"].map(order.index)
    return table.sort_values(["place", "epsilon"], kind="stable", ignore_index=True).drop(columns="place")


def _by_most(attacked: pd.DataFrame) -> "pd.Series[bool]":
    """Whether as many attacks were run on the row's setting at its ε as at any other ε of the same norm."""
    single = attacked["curve"].mask(attacked["curve"].str.startswith(WORST))
    number = single.groupby([attacked[name] for name in (*DRAWN, "norm", "epsilon")]).transform("nunique")
    most = number.groupby([attacked[name] for name in (*DRAWN, "norm")]).transform("max")
    return number == most


def _ranks(table: pd.DataFrame) -> dict[tuple[str, str, str], int]:
    """(classifier, defense, parameters) -> the place of a setting among those of its defense, by which its dashes differ."""
    settings = table[SETTING_OF].drop_duplicates()
    ranks = settings.groupby(["classifier", "defense"], sort=False).cumcount()
    keys = settings.itertuples(index=False, name=None)
    return {(str(c), str(d), str(p)): int(rank) for (c, d, p), rank in zip(keys, ranks, strict=True)}


def _handles(table: pd.DataFrame, names: Names) -> list[Line2D]:
    """The legend: an entry a defense, or one a setting where a classifier has several of a defense."""
    called = dict[tuple[str, int], list[str]]()
    for (_, defense, written), rank in _ranks(table).items():
        called.setdefault((defense, rank), []).append(parameters(written))
    found = []
    for (defense, rank), settings in called.items():
        (handle,) = defense_handles(names, [defense])
        if (defense, 1) in called:
            handle.set_label(f"{handle.get_label()} {' or '.join(dict.fromkeys(settings))}")
        handle.set_linestyle(DASHES[rank % len(DASHES)])
        found.append(handle)
    return found


def _panel(
    axes: Axes, panel: pd.DataFrame, names: Names, ranks: dict[tuple[str, str, str], int], *, banded: bool
) -> None:
    for (classifier, defense, written), line in panel.groupby(SETTING_OF, sort=False):
        look, rank = names.look(str(defense)), ranks[str(classifier), str(defense), str(written)]
        style: Style = {"color": look.colour, "marker": look.marker, "ms": 9 if defense == "none" else 4, "lw": 1.3}
        style |= {"ls": DASHES[rank % len(DASHES)], **({"lw": 0.4} if _is_single(line) else {})}
        radii = _unit(line) * line["epsilon"]
        curve(axes, radii, line, ACCURACY, style, 100, banded=banded)
        cross_out(axes, radii, 100 * line["accuracy"], line)


def _is_single(line: pd.DataFrame) -> bool:
    """Whether a curve has clean inputs and one ε alone, between which it says nothing."""
    return int((line["epsilon"] > 0).sum()) == 1


def _unit(line: pd.DataFrame) -> int:
    """What ε is multiplied by on an axis: the max norm's is in grey levels."""
    return 255 if line["norm"].iloc[0] == MAX_NORM else 1


def _banded(table: pd.DataFrame) -> bool:
    """Whether the curves of each panel are few enough for bands."""
    curves = table[["curve", *SETTING_OF]].drop_duplicates()
    return int(curves.groupby(["classifier", "curve"]).size().max()) <= MOST_BANDS


def draw(table: pd.DataFrame, names: Names, title: str, note: str) -> Figure:
    """The figure of `facts`. Where there is one classifier and many attacks, the panels run on from row to row."""
    classifiers, curves = list(dict.fromkeys(table["classifier"])), list(dict.fromkeys(table["curve"]))
    ranks, handles = _ranks(table), _handles(table, names)
    one_norm, runs_on = len(set(table["norm"])) == 1, len(classifiers) == 1 and len(curves) > ACROSS
    across = ACROSS if runs_on else len(classifiers)
    places = list(itertools.product(curves, classifiers))
    down = math.ceil(len(places) / across)
    figure = Figure(figsize=(1.0 + 3.1 * across, 1.2 + 2.2 * down))
    shared: Literal["all", "row", "none"] = "all" if one_norm else "none" if runs_on else "row"
    panels = figure.subplots(down, across, squeeze=False, sharex=shared, sharey=True)
    for axes in panels.flat[len(places) :]:
        axes.set_visible(False)
    for number, (axes, (name, classifier)) in enumerate(zip(panels.flat, places, strict=False)):
        shown = table[(table["curve"] == name) & (table["classifier"] == classifier)]
        _panel(axes, shown, names, ranks, banded=_banded(table))
        if shown.empty:  # An attack may be kept to some classifiers.
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", fontsize=8)
        axes.set_title(filled(f"{classifier}: {name}", 44), fontsize=8.5)
        if number % across == 0:
            axes.set_ylabel("Accuracy (%)")
        if one_norm and number < len(places) - across:
            continue
        norm = str(table.loc[table["curve"] == name, "norm"].iloc[0])
        axes.set_xlabel(AXES.get(norm, "ε"))
        axes.tick_params(labelbottom=True)  # also of the last panels above a place that stays empty
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=norm == MAX_NORM))
    show_percent(panels[0][0])
    dashed = max(ranks.values()) > 0  # A marker in the middle of a short line hides how it is dashed.
    framed(figure, title, note, handles, min(len(handles), 6 if runs_on else 4), handle=4.0 if dashed else 2.0)
    return figure


def describe(table: pd.DataFrame) -> tuple[str, str]:
    """The title, and the note that says how many points there are and what the checks say."""
    bands = "bands: 95 % over points" if _banded(table) else "95 % intervals: in the CSV file of this figure"
    note = f"{int(table['points'].iloc[0])} points; {bands}; ε = 0: clean inputs"
    each = table.groupby(["curve", *SETTING_OF], sort=False)
    if any(_is_single(line) for _, line in each):
        note += "; thin lines: of one ε alone, and nothing between it and the clean inputs was measured"
    shown = table[~table["curve"].str.startswith(WORST) | (table["attack"] == WORST_CASE)]
    return f"{table['dataset'].iloc[0]}: accuracy against ε", lines(note, checks_note(shown))


def make(store: Store, study: str) -> list[str]:
    """Draw accuracy against ε of a study into its folder, as PNG and PDF, with its numbers as CSV."""
    cells, names = read_study(store, study)
    table = facts(cells, names)
    with styled():
        figure = draw(table, names, *describe(table))
        return save_drawing(store, study, "epsilon_curve", figure, table.drop(columns="checks"))
