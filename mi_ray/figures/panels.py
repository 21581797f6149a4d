"""What drawn figures share: their style, curves with intervals, crosses over failed cells, the frame around
them, and their files."""

import io
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from mi_ray.figures.names import Names
from mi_ray.figures.saving import save_texts
from mi_ray.store.blocks import Store

STYLE: Any = {  # typed by matplotlib as a mapping of its own literals
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # A person's names may have dollar signs in them.
}
Style: TypeAlias = dict[str, Any]  # keyword arguments of matplotlib's `plot`
Estimated = tuple[str, str, str]  # the columns of a value, and of the lower and upper end of its interval
ACCURACY: Estimated = ("accuracy", "accuracy_low", "accuracy_high")
BAND = 0.13  # how opaque the bands of intervals are


@contextmanager
def styled(letters: float = 9) -> Iterator[None]:
    """The context in which figures are drawn: in one look whatever the settings of whoever calls are, which stay as they were.

    letters: their size, in points.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | {"font.size": letters})
        yield


def curve(
    axes: Axes,
    x: npt.ArrayLike,
    rows: pd.DataFrame,
    columns: Estimated,
    style: Style,
    scale: float = 1.0,
    *,
    banded: bool = True,
) -> None:
    """A line through values, in the order of the rows, with the band of their intervals where it is banded.

    A single point has a bar in place of the band, which would have no width.
    """
    at = np.asarray(x)
    values, low, high = (scale * rows[name].to_numpy(float) for name in columns)
    if len(at) == 1:
        axes.errorbar(at, values, bars(rows, columns, scale), color=str(style["color"]), lw=0.9, alpha=0.6, fmt="none")
    elif banded:
        step: Literal["post"] | None = "post" if style.get("drawstyle") == "steps-post" else None
        axes.fill_between(at, low, high, color=str(style["color"]), alpha=BAND, lw=0, step=step)
    axes.plot(at, values, **style)


def bars(rows: pd.DataFrame, columns: Estimated, scale: float = 1.0) -> npt.NDArray[np.float64]:
    """The lengths of error bars below and above values, [2, rows].

    A bar's length is at least 0: in a store of an older version an end may miss its value by a rounding error.
    """
    value, low, high = (rows[name].to_numpy(float) for name in columns)
    return scale * np.maximum([value - low, high - value], 0.0)


def show_percent(axes: Axes) -> None:
    """The whole range of accuracies on the y axis, with room for the marks of 0 % and 100 %."""
    axes.set_ylim(-3, 103)
    axes.set_yticks(range(0, 101, 20))


def cross_out(axes: Axes, x: npt.ArrayLike, y: npt.ArrayLike, rows: pd.DataFrame, size: float = 26) -> None:
    """Cross the points at x, y whose cells failed a check. size: the area of a cross, in square points."""
    failed = (rows["verdict"] == "failed").to_numpy()
    axes.scatter(np.asarray(x)[failed], np.asarray(y)[failed], s=size, marker="x", color="black", lw=0.9, zorder=9)


def defense_handles(names: Names, defenses: Sequence[str]) -> list[Line2D]:
    """The entries of defenses in a legend."""
    looks = {name: names.look(name) for name in defenses}
    return [
        Line2D([], [], color=look.colour, marker=look.marker, ms=9 if name == "none" else 5, lw=1.4, label=look.label)
        for name, look in looks.items()
    ]


def framed(
    figure: Figure,
    title: str,
    note: str,
    handles: Sequence[Line2D],
    columns: int,
    size: float = 8,
    *,
    math: bool = False,
    handle: float = 2.0,
) -> float:
    """A title above the panels; below them the legend and, in small print, what one must know to read the figure.

    columns: the most that the legend may have; it has fewer where they would be wider than the figure. size: of the
    legend's letters, in points. math: whether the labels in the legend are mathematics, which names never are. handle: how long
    the legend's lines are, in letters. Returns the height of it all, in inches.
    """
    small, large = 0.81 * size, size + 1.5

    def wrapped(text: str, letters: float) -> str:
        """The text in lines that are no wider than the figure. letters: their size, in points."""
        return filled(text, int(18 * figure.get_figwidth() * 6.5 / letters))

    figure.suptitle(wrapped(title, large), fontsize=large)
    told = "\n".join(wrapped(line, small) for line in note.splitlines())
    with mpl.rc_context({"text.parse_math": math}):
        columns = _fitting(
            [str(handle.get_label()) for handle in handles], columns, 72 * figure.get_figwidth(), size, handle
        )
        fit: Style = {"loc": "outside lower center", "ncols": columns, "handlelength": handle}
        legend = figure.legend(handles=handles, fontsize=size, title=told, **fit)
    legend.get_title().set(fontsize=small, color="#444444", multialignment="center", parse_math=False)
    rows, told_lines = -(-len(handles) // columns), len(told.splitlines())
    return (1.5 * (size + 1.5) + 1.55 * size * (rows + 0.5) + 1.3 * small * told_lines) / 72


def filled(text: str, width: int) -> str:
    """The text in lines of so many letters, none of which ends between a name and its value, as in ε = 2/255."""
    held = "\u00a0"  # a space at which no line ends
    return textwrap.fill(text.replace(" = ", f"{held}={held}"), width).replace(held, " ")


def _fitting(labels: Sequence[str], most: int, width: float, size: float, handle: float) -> int:
    """How many columns, at most so many and at least one, a legend with these labels may have. width, size: in points.

    handle: how long the line before each label is, in letters.
    """
    widths = [TextPath((0, 0), label, size=size).get_extents().width + (handle + 0.8) * size for label in labels]
    for columns in range(min(most, len(labels)), 1, -1):
        taken = sum(max(column) for column in np.array_split(widths, columns))  # matplotlib fills columns in this way
        if taken + 2 * size * columns <= width:
            return columns
    return 1


def lines(*texts: str) -> str:
    """Those of the texts that say something, a line each."""
    return "\n".join(text for text in texts if text)


FORMATS = ["png", "pdf"]  # those of every figure: the second is for papers


def save_figure(store: Store, study: str, name: str, figure: Figure) -> list[str]:
    """Write a figure in the `FORMATS`; returns the paths within the store."""
    paths = []
    for kind in FORMATS:
        buffer = io.BytesIO()
        # A date in the file would make equal figures differ.
        figure.savefig(buffer, format=kind, metadata={"CreationDate": None} if kind == "pdf" else None)
        paths.append(f"studies/{study}/figures/{name}.{kind}")
        store.write_bytes(paths[-1], buffer.getvalue())
    return paths


def save_drawing(store: Store, study: str, name: str, figure: Figure, facts: pd.DataFrame) -> list[str]:
    """Write a figure and, as CSV, what it shows; returns the paths within the store."""
    texts = save_texts(store, study, {f"{name}.csv": facts.to_csv(index=False)})
    return [*save_figure(store, study, name, figure), *texts]
