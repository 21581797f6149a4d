"""What the page shows of single images: clean, attacked and their difference, the answers to them, and losses by step."""

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from mi_ray.figures.fig5 import best_images, image
from mi_ray.figures.names import Row
from mi_ray.page.counts import Counts
from mi_ray.page.facts import number
from mi_ray.page.one_setting import Json
from mi_ray.store.blocks import Store, once
from mi_ray.store.files import DamagedFileError
from mi_ray.store.schemas import ADVERSARIAL, EXAMPLES

SHOWN = 8  # examples of a study
BUDGET = 600_000  # characters of images that a page keeps of one study
SIDE = 96  # pixels: larger images are shown at this size
CURVES = 40  # attacks whose losses are read
TOP = 3  # classes whose probabilities are shown
Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Examples:
    """The example points of a study: indices in the test split, true labels and clean images, each [H, W, C].

    There are no images where these are not square with three channels.
    """

    points: Sequence[int]
    labels: Sequence[int]
    images: Sequence[Array]


def read_examples(store: Store, study: str) -> Examples:
    """The first reported points, with their clean images as the study stored them; none where it stored none."""
    path = f"studies/{study}/examples.parquet"
    if not store.exists(path):
        return Examples((), (), ())
    rows = store.read_table(path, EXAMPLES).to_pandas().head(SHOWN)
    square = [len(flat) for flat in rows["image"]]
    drawn = [image(flat) for flat in rows["image"]] if all(_is_square(length) for length in square) else []
    return Examples([int(p) for p in rows["point"]], [int(y) for y in rows["label"]], drawn)


def _is_square(length: int) -> bool:
    side = round((length / 3) ** 0.5)
    return 3 * side * side == length


def example_facts(
    store: Store, cells: pd.DataFrame, counts: Counts, examples: Examples, first: int
) -> dict[str, object]:
    """Examples as the page holds them: images by attack, answers by cell, and losses by attack.

    first: the position of the first reported point in the study's list of points, before which no block is read.
    """
    work = {row["cell"]: _work(row) for _, row in cells[cells["state"] == "done"].iterrows()}
    order = _by_interest(cells, work)
    return {
        "points": list(examples.points),
        "labels": list(examples.labels),
        "clean": [_png(picture) for picture in examples.images],
        "attacked": _attacked(store, examples, order, first),
        "images_of": [_images_key(work.get(cell)) for cell in cells["cell"]],
        "undefended_of": [_text(work.get(cell, {}).get("undefended")) for cell in cells["cell"]],
        "answers": {str(counts.cells[cell]): _top(rows, examples.points) for cell, rows in counts.answers.items()},
        "undefended": _undefended(store, work.values(), examples.points, first),
        "losses": _losses(store, order, counts),
    }


def _work(row: Row) -> Json:
    text = row.get("work")
    found = json.loads(text) if isinstance(text, str) else {}
    return found if isinstance(found, Mapping) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _images_key(work: Json | None) -> str:
    """The key of the attack whose images a cell is of, and the stop at which they are read, as one text.

    Empty for clean cells and worst cases, and for an attack that is read within a radius: where its image lies farther away,
    the cell has the clean one in its place.
    """
    told = work or {}
    key = "" if "within" in told else _text(told.get("adversarial"))
    return f"{key} {told.get('stop')}" if key else ""


def _by_interest(cells: pd.DataFrame, work: Mapping[str, Json]) -> list[tuple[str, int]]:
    """Every (attack's key, stop) that cells are of: first those of most cells, and of equals first those of a selected cell."""
    found: dict[tuple[str, int], list[bool]] = {}
    for _, row in cells.iterrows():
        told = work.get(row["cell"], {})
        if _images_key(told):
            found.setdefault((_text(told["adversarial"]), int(str(told["stop"]))), []).append(bool(row["selected"]))
    return sorted(found, key=lambda key: (-len(found[key]), not any(found[key])))


def _attacked(
    store: Store, examples: Examples, order: Sequence[tuple[str, int]], first: int
) -> dict[str, list[tuple[str, str, int]]]:
    """By attack and stop, of each example the attacked image, its amplified difference, and by how much it is amplified.

    As many attacks as the budget allows; the page says where an attack's images are not among them.
    """
    found: dict[str, list[tuple[str, str, int]]] = {}
    spent = 0
    for key, stop in order if examples.images else ():
        rows = _rows_of(store, key, examples.points, first)
        if rows.empty or set(examples.points) - set(rows.loc[rows["steps"] == stop, "point"]):
            continue
        pictures = best_images(rows, stop, list(examples.points))
        told = [_beside(clean, attacked) for clean, attacked in zip(examples.images, pictures, strict=True)]
        spent += sum(len(one) + len(other) for one, other, _ in told)
        if spent > BUDGET:
            break
        found[f"{key} {stop}"] = told
    return found


def _rows_of(store: Store, key: str, points: Sequence[int], first: int) -> pd.DataFrame:
    """The rows of an attack that are of these points, from as few blocks as hold them; none where they are not stored.

    first: see `example_facts`.
    """
    parts: list[pa.Table] = []
    left, reached = set(points), 0
    for block in store.blocks("adversarial", key):
        # One that overlaps those before it may have what they lack: two studies ran at once.
        if block.stop <= first or (not left and block.start >= reached):
            continue
        try:
            rows = store.read_block("adversarial", key, block)[0]
        except DamagedFileError:
            break  # The numbers of the study stand without its images; `mi-ray check` names the file.
        parts.append(rows.filter(pc.is_in(rows["point"], pa.array(points, pa.int32()))))
        left -= set(parts[-1]["point"].to_pylist())
        reached = max(reached, block.stop)
    return once(pa.concat_tables([ADVERSARIAL.empty_table(), *parts])).to_pandas()


def _beside(clean: Array, attacked: Array) -> tuple[str, str, int]:
    delta = attacked - clean
    largest = float(np.abs(delta).max())
    gain = max(1, round(0.5 / largest)) if largest else 1
    return _png(attacked), _png(0.5 + gain * delta), gain


def _png(picture: Array) -> str:
    """An image, [H, W, 3] in [0, 1], as the base64 text of a PNG file with sides of at most SIDE pixels."""
    levels = (255 * np.clip(picture, 0, 1)).round().astype(np.uint8)
    drawn = Image.fromarray(levels)
    if max(drawn.size) > SIDE:
        drawn.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _top(rows: pd.DataFrame, points: Sequence[int]) -> list[list[tuple[int, float]]]:
    """Of each point the classes of the highest probabilities, each with its probability; empty where it has no row."""
    known = {int(point): np.asarray(p, float) for point, p in zip(rows["point"], rows["probabilities"], strict=True)}
    return [_highest(known[point]) if point in known else [] for point in points]


def _highest(probabilities: npt.NDArray[np.float64]) -> list[tuple[int, float]]:
    order = np.argsort(-probabilities, kind="stable")[:TOP]
    return [(int(at), round(float(probabilities[at]), 3)) for at in order]


def _undefended(
    store: Store, works: Iterable[Json], points: Sequence[int], first: int
) -> dict[str, list[list[tuple[int, float]]]]:
    """F's own answers to the examples, as `_top` gives them, by the key of the outputs. first: see `example_facts`."""
    keys = dict.fromkeys(_text(work.get("undefended")) for work in works)
    found = {}
    for key in (key for key in keys if key and points):
        parts: list[pd.DataFrame] = []
        for block in store.blocks("outputs", key):
            if block.stop > first and sum(len(rows) for rows in parts) < len(points):
                try:
                    rows = store.read_block("outputs", key, block)[0].to_pandas()
                except DamagedFileError:
                    break  # As of images: the numbers of the study stand without them.
                parts.append(rows[rows["point"].isin(points) & (rows["draw"] == 0)])
        if parts:
            found[key] = _top(pd.concat(parts).drop_duplicates("point"), points)
    return found


def _losses(store: Store, order: Sequence[tuple[str, int]], counts: Counts) -> dict[str, list[tuple[int, float]]]:
    """By attack, the mean of what it climbs over the reported points, by the steps at which it is stored.

    Of each point and step it is the highest over the restarts. Attacks that are stored at one step only are left out, and so
    are those whose images are not in the store, as of a published study that kept its rows alone.
    """
    reported = set(counts.points[counts.reported].tolist())
    keys = list(dict.fromkeys(key for key, _ in order))
    several = [key for key in keys if sum(known == key for known, _ in order) > 1][:CURVES]
    found = {}
    for key in several:
        parts = list(_loss_rows(store, key))
        if not parts:
            continue
        rows = pd.concat(parts)
        rows = rows[rows["point"].isin(reported) & rows["loss"].notna()]
        means = rows.groupby(["point", "steps"])["loss"].max().groupby("steps").mean()
        if len(means) > 1:
            found[key] = [(int(str(steps)), number(value) or 0.0) for steps, value in means.items()]
    return found


def _loss_rows(store: Store, key: str) -> Iterator[pd.DataFrame]:
    """The losses of an attack's blocks, without their images."""
    with suppress(DamagedFileError):  # A curve of the blocks before it is shown.
        for block in store.blocks("adversarial", key):
            yield pd.DataFrame(
                {name: store.read_column(block.path, name).to_numpy() for name in ("point", "steps", "loss")}
            )
