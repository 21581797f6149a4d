"""What every script shares: the names and colours of defenses, saving, and the command line."""

import argparse
import io
import json
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from mi_ray.records import Store

Make = Callable[[Store, str], list[str]]

LABELS = {
    "none": "No defense", "gaussian_noise": "Gaussian noise", "uniform_noise": "Uniform noise",
    "random_rotation": "Random rotation", "random_pad": "Crop and pad (Xie et al.)",
    "random_resize": "Crop and resize (Guo et al.)", "mi_pl": "MI-PL", "mi_ol": "MI-OL", "mi_combined": "MI-Combined",
}  # fmt: skip
# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {
    "none": "#000000", "gaussian_noise": "#56B4E9", "uniform_noise": "#999999", "random_rotation": "#009E73",
    "random_pad": "#A6A61B", "random_resize": "#0072B2", "mi_pl": "#CC79A7", "mi_ol": "#D55E00", "mi_combined": "#E69F00",
}  # fmt: skip
SPARE_COLOURS = ["#8C564B", "#17BECF", "#7F7F7F", "#BCBD22"]
MARKERS = dict(zip(LABELS, "*os^vDPXh", strict=True))

STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "legend.frameon": False, "savefig.dpi": 200, "pdf.fonttype": 42, "figure.constrained_layout.use": True,
}  # fmt: skip


def label(defense: str) -> str:
    """A defense's name as a legend writes it; a user's own defense keeps its own."""
    return LABELS.get(defense, defense)


def colour(defense: str, defenses: list[str]) -> str:
    """A defense's colour; one that is not ours takes the next spare one."""
    spare = [name for name in defenses if name not in COLOURS]
    return COLOURS.get(defense) or SPARE_COLOURS[spare.index(defense) % len(SPARE_COLOURS)]


def parameters(defense_params: str, without: frozenset[str] = frozenset()) -> str:
    """A defense's parameters as a table writes them; flags and words that are at their usual value are left out."""
    values = json.loads(defense_params)
    shown = [
        f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in values.items()
        if key not in without and not isinstance(value, bool) and value is not None and not isinstance(value, str)
    ]
    return ", ".join(item for item in shown if item != "fill=0")


def attack_label(row: "pd.Series[Any]") -> str:
    """An attack as a column or a title writes it: PGD-10, untargeted, ε = 0.05."""
    steps = json.loads(row["attack_params"]).get("steps")
    name = str(row["attack"]).upper() + (f"-{steps}" if steps is not None else "")
    return f"{name}, {row['goal']}, ε = {epsilon_text(row['epsilon'])}"


def epsilon_text(epsilon: float) -> str:
    """ε as the field writes it: 8/255 where it is one, else a decimal."""
    levels = epsilon * 255
    return f"{levels:.0f}/255" if abs(levels - round(levels)) < 1e-6 and levels >= 1 else f"{epsilon:g}"


def save_figure(store: Store, study: str, name: str, figure: Figure) -> list[str]:
    """Write a figure as PNG and PDF into the study's folder; returns the paths within the store."""
    paths = []
    for kind in ("png", "pdf"):
        buffer = io.BytesIO()
        # A date in the file would make equal figures differ.
        figure.savefig(buffer, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
        paths.append(f"studies/{study}/figures/{name}.{kind}")
        store.write_bytes(paths[-1], buffer.getvalue())
    return paths


def save_text(store: Store, study: str, name: str, text: str) -> str:
    """Write a text file into the study's figures folder; returns its path within the store."""
    path = f"studies/{study}/figures/{name}"
    store.write_bytes(path, text.encode())
    return path


def styled() -> Any:
    """The context in which figures are drawn: no display, one style."""
    mpl.use("Agg")
    return mpl.rc_context(STYLE)


def script(make: Make) -> None:
    """`python -m analysis.NAME STORE STUDY`: draw, and print the paths."""
    parser = argparse.ArgumentParser(description=make.__doc__)
    parser.add_argument("store", help="results folder or URI")
    parser.add_argument("study", help="name of the study")
    given = parser.parse_args()
    store = Store(given.store)
    for path in make(store, given.study):
        print(f"{given.store}/{path}")
