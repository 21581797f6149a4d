"""Certified accuracy against the L2 radius, a panel for each classifier, a curve with its band for each σ and n.

Beside it, where the study attacks the same vote within L2 balls, what the attacks leave: certified accuracy is a lower bound
of the accuracy at a radius, an attack's an upper one, so that the truth lies between them.
"""

import json

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mi_ray.figures.panels import ACCURACY, bars, curve, framed, lines, save_drawing, show_percent, styled
from mi_ray.figures.reading import read_study
from mi_ray.smoothing import certified_accuracy
from mi_ray.statistics import of_variant
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_certificates

SETTING = ["classifier", "sigma", "n0", "n", "alpha"]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#000000")
STEPS = 100  # radii of a curve, from 0 to where it ends
SOURCES = ("certified", "attack")


def facts(certificates: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """One row per (certificate, radius) with certified accuracy, and one per L2 attack on the same vote with what it leaves.

    certificates: the rows of certificates.parquet. cells: those of cells.parquet. Raises ValueError where no point is
    certified or reported.
    """
    own = certificates[~certificates["selection"]]
    if own.empty:
        raise ValueError("certified accuracy needs finished certificates; this study has none")
    rows = []
    for values, group in own.groupby(SETTING, sort=False):
        said = dict(zip(SETTING, values, strict=True))
        right = (group["predicted"] == group["label"]).to_numpy()
        # They go on to where nothing is certified.
        radii = np.linspace(0, 1.01 * max(float(group["radius"].max()), 1e-9), STEPS + 1)
        for radius in radii:
            found = certified_accuracy(right, group["radius"], float(radius))
            ends = dict(zip(ACCURACY, (found.value, found.low, found.high), strict=True))
            rows.append({**said, "source": SOURCES[0], "radius": radius, **ends, "points": len(group)})
        rows += [{**said, **row} for row in _attacked(cells, said["classifier"], said["sigma"])]
    return pd.DataFrame(rows)


def _attacked(cells: pd.DataFrame, classifier: object, sigma: object) -> list[dict[str, object]]:
    """What L2 attacks leave of the vote that a certificate is of: the least at each radius."""
    vote = json.dumps({"of": [{"gaussian_noise": {"sigma": sigma}}]}, sort_keys=True)
    cells = of_variant(cells)
    same = cells["defense_params"].map(lambda text: json.dumps(json.loads(text), sort_keys=True)) == vote
    on = (cells["classifier"] == classifier) & (cells["state"] == "done") & (cells["defense"] == "vote") & same
    found = cells[on & ((cells["norm"] == "l2") | (cells["attack"] == "none"))]
    least = found.sort_values("accuracy", kind="stable").drop_duplicates("epsilon")
    told = [
        {"source": SOURCES[1], "radius": row["epsilon"], **row[[*ACCURACY, "points"]]} for _, row in least.iterrows()
    ]
    return told if len(told) > 1 else []  # The clean cell alone is no attack.


def _panel(axes: Axes, table: pd.DataFrame, colours: dict[object, str]) -> None:
    for values, group in table.groupby(["sigma", "n0", "n", "alpha"], sort=False):
        colour = colours[values]
        certified, attacked = (group[group["source"] == source] for source in SOURCES)
        steps = {"color": colour, "lw": 1.5, "drawstyle": "steps-post"}  # It falls at the radii of single points.
        curve(axes, certified["radius"], certified, ACCURACY, steps, 100)
        if len(attacked):
            error = bars(attacked, ACCURACY, 100)
            axes.errorbar(attacked["radius"], 100 * attacked["accuracy"], error, color=colour, fmt="v", ms=5, lw=0.9)


def draw(table: pd.DataFrame, title: str, note: str) -> Figure:
    """The figure of `facts`."""
    classifiers = list(dict.fromkeys(table["classifier"]))
    settings = list(dict.fromkeys(table[["sigma", "n0", "n", "alpha"]].itertuples(index=False, name=None)))
    colours = {setting: COLOURS[at % len(COLOURS)] for at, setting in enumerate(settings)}
    figure = Figure(figsize=(1.0 + 3.4 * len(classifiers), 3.8))
    (panels,) = figure.subplots(1, len(classifiers), squeeze=False, sharey=True)
    for axes, classifier in zip(panels, classifiers, strict=True):
        _panel(axes, table[table["classifier"] == classifier], dict(colours))
        axes.set_title(str(classifier), fontsize=9)
        axes.set_xlabel("L2 radius, pixels in [0, 1]")
    panels[0].set_ylabel("Certified accuracy (%)")
    show_percent(panels[0])
    handles = [
        Line2D([], [], color=colours[each], lw=1.5, label=f"σ = {each[0]:g}, n = {each[2]:,}") for each in settings
    ]
    if (table["source"] == SOURCES[1]).any():
        handles.append(Line2D([], [], color="#444444", marker="v", lw=0, label="what L2 attacks leave"))
    framed(figure, title, note, handles, 4)
    return figure


def make(store: Store, study: str) -> list[str]:
    """Draw certified accuracy of a study into its folder, as PNG and PDF, with its numbers as CSV."""
    cells, _ = read_study(store, study)
    certificates = read_certificates(store, study)
    table = facts(certificates, cells)
    alphas = ", ".join(f"{value:g}" for value in dict.fromkeys(certificates["alpha"]))
    note = lines(
        f"{int(table['points'].iloc[0])} points; bands: 95 % over points",
        f"each point's radius holds with probability 1 − α, α = {alphas} (Cohen et al. 2019)",
    )
    with styled():
        figure = draw(table, f"{certificates['dataset'].iloc[0]}: certified accuracy", note)
        return save_drawing(store, study, "certified_accuracy", figure, table)
