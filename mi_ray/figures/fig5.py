"""Fig. 5: clean images beside adversarial ones that were crafted against a defense, with what is answered to them."""

import json
import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mi_ray.choice import SETTING
from mi_ray.figures.names import Names, Row, parameters
from mi_ray.figures.panels import save_figure, styled
from mi_ray.figures.reading import finished, read_study, records_of
from mi_ray.figures.verdict_marks import checks_note, mark
from mi_ray.store.blocks import Store, once
from mi_ray.store.schemas import EXAMPLES
from mi_ray.threat_model import WORST_CASE

SHOWN = 9  # images in a row
MOST = 4  # cells in the figure
NEEDS = "Fig. 5 needs finished attacked cells"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Strip:
    """The images of one cell: clean and adversarial [points, H, W, C], and the answers to each (columns of `answers`).

    answers: label, and of F and of the defense on clean and on adversarial inputs: clean_f, clean_defense, f, defense.
    """

    title: str
    clean: Array
    adversarial: Array
    answers: pd.DataFrame


def image(flat: npt.ArrayLike) -> Array:
    """A stored image (CHW, of a square with three channels) as [H, W, 3]. Raises ValueError for another size."""
    pixels = np.asarray(flat, np.float32)
    side = round((len(pixels) / 3) ** 0.5)
    if 3 * side * side != len(pixels):
        raise ValueError(f"an image must be square with three channels; got {len(pixels)} values")
    return np.moveaxis(pixels.reshape(3, side, side), 0, -1)


def best_images(rows: pd.DataFrame, stop: int, points: list[int]) -> Array:
    """Of each point the image of the restart that is scored at a stop, [points, H, W, C].

    That is the restart of the highest success; of equals that of the highest loss; of equals the first.

    rows: of adversarial blocks. Raises ValueError where a point has none.
    """
    at = rows[(rows["steps"] == stop) & rows["point"].isin(points)]
    order = at.sort_values(["success", "loss", "restart"], ascending=[False, False, True])
    best = order.drop_duplicates("point").set_index("point")["image"]
    if set(points) - set(best.index):
        raise ValueError(
            f"every point must have an adversarial image; {sorted(set(points) - set(best.index))} have none"
        )
    return np.stack([image(best[point]) for point in points])


def facts(store: Store, study: str, cells: pd.DataFrame, names: Names) -> tuple[list[Strip], pd.DataFrame]:
    """A strip for each cell that is shown, and those cells: the first `MOST` adaptive ones, else defended, else any.

    cells: rows of cells.parquet of the study. Raises ValueError for a study without attacked cells.
    """
    own = finished(cells, NEEDS)
    attacked = own[~own["attack"].isin(["none", WORST_CASE])]
    chosen = attacked[attacked["knowledge"] == "adaptive"]
    chosen = attacked[attacked["defense"] != "none"] if chosen.empty else chosen
    chosen = attacked if chosen.empty else chosen
    if chosen.empty:
        raise ValueError(f"{NEEDS}; this study has none")
    examples = store.read_table(f"studies/{study}/examples.parquet", EXAMPLES).to_pandas().head(SHOWN)
    clean = own[own["attack"] == "none"].set_index(SETTING)["cell"]
    shown = chosen.head(MOST)
    threats = zip(names.threats(shown), shown.iterrows(), strict=True)
    strips = []
    for threat, (_, row) in threats:
        defended = f"{row['classifier']} + {names.defense(row['defense'])} ({parameters(row['defense_params'])})"
        title = f"{defended}: {threat} {mark(row)}"
        strips.append(_strip(store, row, title, clean[tuple(row[SETTING])], examples))
    return strips, shown


def _strip(store: Store, row: Row, title: str, clean: str, examples: pd.DataFrame) -> Strip:
    """The strip of an attacked cell. clean: the cell of the same setting without an attack."""
    points, work = examples["point"].tolist(), json.loads(row["work"])
    key = work["adversarial"]
    blocks = [store.read_block("adversarial", key, block)[0] for block in store.blocks("adversarial", key)]
    rows = once(pa.concat_tables(blocks)).to_pandas()
    before, after = (records_of(store, cell).set_index("point").loc[points] for cell in (clean, row["cell"]))
    answers = {
        "label": after["label"],
        "clean_f": before["predicted_undefended"],
        "clean_defense": before["predicted"],
        "f": after["predicted_undefended"],
        "defense": after["predicted"],
    }
    pictures = np.stack([image(flat) for flat in examples["image"]])
    found = best_images(rows, work["stop"], points)
    if "within" in work:  # An image that lies farther away is the clean one, which no pixel of it differs from.
        found = np.where((after["linf"] > 0).to_numpy()[:, None, None, None], found, pictures)
    return Strip(title, pictures, found, pd.DataFrame(answers))


def _show(axes: Axes, picture: Array, said: list[tuple[str, bool]]) -> None:
    """Draw an image with the labels under it, the wrong ones coloured."""
    axes.imshow(np.clip(picture, 0, 1), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for place, (text, right) in enumerate(said):
        axes.text(
            0.5,
            -0.06 - 0.19 * place,
            text,
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=6.5,
            color="black" if right else "#D55E00",
        )


def _said(strip: Strip, at: int, which: str) -> list[tuple[str, bool]]:
    answers = strip.answers.iloc[at]
    names = ("clean_f", "clean_defense") if which == "clean" else ("f", "defense")
    told = [
        (f"{who}: {answers[name]}", bool(answers[name] == answers["label"]))
        for who, name in zip(("F", "D"), names, strict=True)
    ]
    return [(f"label {answers['label']}", True), *told] if which == "clean" else told


def draw(strips: list[Strip], note: str) -> Figure:
    """Three rows of images for each strip: clean, adversarial, and the difference amplified to the full grey range."""
    count = len(strips[0].clean)
    size = (0.9 + 0.78 * count, 0.4 + 3.5 * len(strips))
    figure = Figure(figsize=size)
    parts: Any = figure.subfigures(len(strips), 1, squeeze=False)[:, 0]
    for part, strip in zip(parts, strips, strict=True):
        delta = strip.adversarial - strip.clean
        largest = float(np.abs(delta).max())
        gain = 0.5 / largest if largest else 1.0
        rows = {"clean": strip.clean, "adversarial": strip.adversarial, f"difference\nx {gain:.0f}": 0.5 + gain * delta}
        panels = part.subplots(3, count, squeeze=False)
        for line, (name, pictures) in zip(panels, rows.items(), strict=True):
            for at, axes in enumerate(line):
                _show(axes, pictures[at], _said(strip, at, name) if name in ("clean", "adversarial") else [])
            line[0].set_ylabel(name, fontsize=7)
        part.suptitle(strip.title, fontsize=8)
    figure.suptitle(textwrap.fill(note, int(17 * size[0])), fontsize=6.5, color="#444444")
    return figure


def make(store: Store, study: str) -> list[str]:
    """Draw Fig. 5 of a study into its folder, as PNG and PDF."""
    cells, names = read_study(store, study)
    strips, shown = facts(store, study, cells, names)
    note = "F: the classifier alone, D: behind the defense; wrong answers are coloured"
    with styled():
        figure = draw(strips, "; ".join(part for part in (note, checks_note(shown)) if part))
        return save_figure(store, study, "fig5", figure)
