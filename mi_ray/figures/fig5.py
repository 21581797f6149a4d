"""Fig. 5: clean images beside adversarial ones that were crafted against a defense, with what is answered to them."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mi_ray.choice import SETTING
from mi_ray.figures.names import Names, parameters
from mi_ray.figures.panels import filled, save_figure, styled
from mi_ray.figures.reading import finished, read_study, records_of
from mi_ray.figures.verdict_marks import checks_note
from mi_ray.store.blocks import Store, once
from mi_ray.store.schemas import EXAMPLES
from mi_ray.threat_model import WORST_CASE

SHOWN = 9  # images in a row
MOST = 4  # cells in the figure
NEEDS = "Fig. 5 needs finished cells with and without an attack"
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Strip:
    """The images that one attack made: clean and adversarial [points, H, W, C], and what is answered to each.

    label: the true one of each point. clean_answers, answers: what F and the settings that met these images answer, a column
    each: "F", and the letters by which the title names the settings.
    """

    title: str
    clean: Array
    adversarial: Array
    label: "pd.Series[int]"
    clean_answers: pd.DataFrame
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
    """A strip for the images of each attack that is shown, with the settings that met them, and the cells of all.

    The cells are the first `MOST` adaptive ones, else defended, else any; an oblivious attack's images are the same for all
    settings on a classifier. A setting without a finished cell of clean images is left out. cells: rows of cells.parquet of the
    study. Raises ValueError for a study without attacked cells.
    """
    own = finished(cells, NEEDS)
    attacked = own[~own["attack"].isin(["none", WORST_CASE])]
    clean = own[own["attack"] == "none"].set_index(SETTING)["cell"]
    # What is answered to the clean images stands beside: a setting of which these failed is not shown.
    answered = [tuple(row) in clean.index for row in attacked[SETTING].itertuples(index=False)]
    attacked = attacked[np.array(answered, bool)]
    chosen = attacked[attacked["knowledge"] == "adaptive"]
    chosen = attacked[attacked["defense"] != "none"] if chosen.empty else chosen
    chosen = attacked if chosen.empty else chosen
    if chosen.empty:
        raise ValueError(f"{NEEDS}; this study has none")
    examples = store.read_table(f"studies/{study}/examples.parquet", EXAMPLES).to_pandas().head(SHOWN)
    shown = chosen.head(MOST)
    shown = shown.assign(
        threat=names.threats(shown),
        before=[clean[tuple(row[SETTING])] for _, row in shown.iterrows()],
        images=[_images_of(json.loads(work)) for work in shown["work"]],
    )
    return [_strip(store, rows, names, examples) for _, rows in shown.groupby("images", sort=False)], shown


def _images_of(work: dict[str, Any]) -> tuple[object, ...]:
    """What cells share that are on the very same adversarial images. work: as cells.parquet has it."""
    return work["adversarial"], work["stop"], work.get("within")


def _strip(store: Store, rows: pd.DataFrame, names: Names, examples: pd.DataFrame) -> Strip:
    """The strip of the attacked cells on the same images. rows: with `threat`, and in `before` the cell without an attack."""
    points, first = examples["point"].tolist(), rows.iloc[0]
    key, stop, within = first["images"]
    blocks = [store.read_block("adversarial", key, block)[0] for block in store.blocks("adversarial", key)]
    stored = once(pa.concat_tables(blocks)).to_pandas()
    letters, answers, called = "ABCDEFGH", {}, []
    several = len(set(rows["executions"])) > 1
    for letter, (_, row) in zip(letters, rows.iterrows(), strict=False):
        before, after = (records_of(store, row[name]).set_index("point").loc[points] for name in ("before", "cell"))
        answers["F"] = before["predicted_undefended"], after["predicted_undefended"]
        answers[letter] = before["predicted"], after["predicted"]
        told = [
            names.defense(row["defense"]),
            parameters(row["defense_params"]),
            f"N={row['executions']}" if several else "",
        ]
        setting = " ".join(filter(None, told))
        called.append(f"{letter}: {setting}")
    pictures = np.stack([image(flat) for flat in examples["image"]])
    found = best_images(stored, stop, points)
    if within is not None:  # An image that lies farther away is the clean one, which no pixel of it differs from.
        found = np.where((after["linf"] > 0).to_numpy()[:, None, None, None], found, pictures)
    title = f"{first['classifier']}, {first['threat']}; {', '.join(called)}"
    each = (pd.DataFrame({name: pair[at] for name, pair in answers.items()}) for at in (0, 1))
    return Strip(title, pictures, found, after["label"], *each)


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
    """What is written under an image, and whether it is right."""
    label = strip.label.iloc[at]
    answers = (strip.clean_answers if which == "clean" else strip.answers).iloc[at]
    told = [(f"{who}: {answer}", bool(answer == label)) for who, answer in answers.items()]
    return [(f"label {label}", True), *told] if which == "clean" else told


def draw(strips: list[Strip], note: str) -> Figure:
    """Three rows of images for each strip: clean, adversarial, and the difference amplified to the full grey range."""
    count = len(strips[0].clean)
    heights = [3.2 + 0.3 * len(strip.answers.columns) for strip in strips]
    size = (0.9 + 0.78 * count, 0.4 + sum(heights))
    figure = Figure(figsize=size)
    parts: Any = figure.subfigures(len(strips), 1, squeeze=False, height_ratios=heights)[:, 0]
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
        part.suptitle(filled(strip.title, int(14 * size[0])), fontsize=8)
    figure.suptitle(filled(note, int(17 * size[0])), fontsize=6.5, color="#444444")
    return figure


def make(store: Store, study: str) -> list[str]:
    """Draw Fig. 5 of a study into its folder, as PNG and PDF."""
    cells, names = read_study(store, study)
    strips, shown = facts(store, study, cells, names)
    note = "F: the classifier alone, A and so on: behind a defense; wrong answers are coloured"
    with styled():
        figure = draw(strips, "; ".join(part for part in (note, checks_note(shown)) if part))
        return save_figure(store, study, "fig5", figure)
