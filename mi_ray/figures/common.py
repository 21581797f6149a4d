"""What every script shares: names, colours and marks, the cells that it draws, saving, and the command line."""

import argparse
import io
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mi_ray.statistics import of_variant
from mi_ray.store.blocks import Store

Make = Callable[[Store, str], list[str]]
Row: TypeAlias = "Mapping[str, Any] | pd.Series[Any]"

LABELS = {
    "none": "No defense",
    "gaussian_noise": "Gaussian noise",
    "uniform_noise": "Uniform noise",
    "random_rotation": "Random rotation",
    "random_pad": "Crop and pad (Xie et al.)",
    "random_resize": "Crop and resize (Guo et al.)",
    "mi_pl": "MI-PL",
    "mi_ol": "MI-OL",
    "mi_combined": "MI-Combined",
}
# Okabe and Ito's palette: told apart with any colour vision.
COLOURS = {
    "none": "#000000",
    "gaussian_noise": "#56B4E9",
    "uniform_noise": "#999999",
    "random_rotation": "#009E73",
    "random_pad": "#A6A61B",
    "random_resize": "#0072B2",
    "mi_pl": "#CC79A7",
    "mi_ol": "#D55E00",
    "mi_combined": "#E69F00",
}
SPARE_COLOURS = ["#8C564B", "#17BECF", "#7F7F7F", "#BCBD22"]
MARKERS = dict(zip(LABELS, "*os^vDPXh", strict=True))
ATTACKS = {
    "none": "Clean",
    "pgd": "PGD",
    "eot_pgd": "EOT-PGD",
    "averaged": "Averaged PGD",
    "apgd": "APGD",
    "square": "Square",
    "random_noise": "Random noise",
    "worst_case": "Worst case",
}
THROUGH_THE_DEFENSE = ("eot_pgd", "averaged", "worst_case")  # what their names say already
USUAL_LOSSES = (None, "cross_entropy_of_mean")  # not worth a word in a name
OBLIVIOUS = "attacks without a defense in them (PGD) are oblivious: they saw F alone, and so did their controls"
MARKS = {"passed": "✓", "failed": "✗", "not run": "–"}

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}


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


def attack_name(row: Row, extra: Sequence[str] = (), without: Sequence[str] = ()) -> str:
    """An attack without its threat model: PGD-10, EOT-PGD-50 (EOT 30), APGD-100 (dlr), Worst case.

    extra: parameters to name too, with their values. without: parameters not to name.
    """
    params = {key: value for key, value in json.loads(row["attack_params"]).items() if key not in without}
    name = ATTACKS.get(row["attack"], str(row["attack"]).upper())
    if row["knowledge"] == "adaptive" and row["attack"] not in THROUGH_THE_DEFENSE:
        name = f"adaptive {name}"
    length = next((params[key] for key in ("steps", "queries", "tries") if params.get(key) is not None), None)
    name += "" if length is None else f"-{length}"
    notes = [] if params.get("eot") is None else [f"{'N_A' if row['attack'] == 'averaged' else 'EOT'} {params['eot']}"]
    if params.get("loss") not in USUAL_LOSSES:
        notes.append(str(params["loss"]).replace("_", " "))
    notes += [f"{key} {_value(params[key])}".replace("_", " ") for key in extra if key in params]
    return name + (f" ({', '.join(notes)})" if notes else "")


def _value(value: Any) -> str:
    return epsilon_text(value) if isinstance(value, float) else str(value)


def attack_names(cells: pd.DataFrame, axes: Sequence[str] = ()) -> list[str]:
    """`attack_name` of each row, and with it every parameter that tells attacks of one name and goal apart.

    Only attacks at the same ε and at the same values of the axes, which are not named, are told apart: a step may fit
    ε, say, and still be of one attack.
    """
    rows, params = [row for _, row in cells.iterrows()], cells["attack_params"].map(json.loads)
    names = [attack_name(row, without=axes) for row in rows]
    keys = [(name, row["goal"]) for name, row in zip(names, rows, strict=True)]
    alike: dict[Any, list[dict[str, Any]]] = {}
    for key, row, found in zip(keys, rows, params, strict=True):
        alike.setdefault((key, attack_name(row), row["epsilon"]), []).append(found)
    telling: dict[Any, dict[str, None]] = {}
    for (key, *_), group in alike.items():
        known = dict.fromkeys(name for found in group for name in found)
        differ = (name for name in known if len({json.dumps(found.get(name)) for found in group}) > 1)
        telling.setdefault(key, {}).update(dict.fromkeys(differ))
    return [attack_name(row, tuple(telling[key]), axes) for key, row in zip(keys, rows, strict=True)]


def with_threat(name: str, row: Row) -> str:
    """An attack's name with its threat model: PGD-10, untargeted, ε = 0.05."""
    goal = "" if row["goal"] in ("any", "none") else f", {row['goal']}"
    return f"{name}{goal}, ε = {epsilon_text(row['epsilon'])}"


def attack_label(row: Row) -> str:
    """One attack as a title writes it: PGD-10, untargeted, ε = 0.05. Of several, see `attack_labels`."""
    return with_threat(attack_name(row), row)


def attack_labels(cells: pd.DataFrame) -> list[str]:
    """The attack of each row as columns write it: `attack_names` with their threat models."""
    return [with_threat(name, row) for name, (_, row) in zip(attack_names(cells), cells.iterrows(), strict=True)]


def each_once(table: pd.DataFrame, keys: Sequence[str]) -> None:
    """Raises ValueError where rows share all keys: a table or figure would show but one of them."""
    twice = table.loc[table.duplicated(list(keys)), list(keys)]
    if len(twice):
        said = ", ".join(f"{key} {value}" for key, value in twice.iloc[0].items())
        raise ValueError(f"cells must have a place each in the table or figure; several have this one: {said}")


def percent(value: float, low: float, high: float) -> str:
    """An accuracy in [0, 1] as tables write it: per cent, its interval in brackets; a dash where there is none."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]" if value == value else MARKS["not run"]


def finished(cells: pd.DataFrame, needs: str) -> pd.DataFrame:
    """The cells of the study itself (of no variant of its options) that are done. Raises ValueError without any."""
    found = of_variant(cells)
    found = found[found["state"] == "done"]
    if found.empty:
        raise ValueError(f"{needs}; this study has none")
    return found


def records_of(store: Store, cell: str) -> pd.DataFrame:
    """The rows of one cell, a row a point, selection points too. Raises ValueError when the store has none."""
    tables = [store.read_block("records", cell, block)[0].to_pandas() for block in store.blocks("records", cell)]
    if not tables:
        raise ValueError(f"records/{cell} must be in the store, to draw what single points say")
    return pd.concat(tables, ignore_index=True)


def mark(row: Row) -> str:
    """A cell's verdict: ✓ its checks passed, ✗ one failed, – no control was run (docs/checks.md)."""
    return MARKS.get(str(row.get("verdict")), MARKS["not run"])


def failed_checks(row: Row) -> dict[str, str]:
    """The checks that a cell failed: name -> why."""
    text = row.get("checks")
    found = json.loads(text) if isinstance(text, str) else {}
    return {name: said["why"] for name, said in found.items() if said["state"] == "failed"}


def checks_footnote(cells: pd.DataFrame) -> str:
    """What the marks mean, and which checks these cells failed: how many of the cells, and what the first of them says."""
    attacked = cells[(cells["state"] == "done") & (cells["attack"] != "none")]
    told: dict[str, list[str]] = {}
    for attack, (_, row) in zip(attack_labels(attacked), attacked.iterrows(), strict=True):
        for name, why in failed_checks(row).items():
            told.setdefault(name, []).append(f"{row['classifier']}, {label(row['defense'])}, {attack}: {why}")
    said = "✓ the checks of the cell's attack passed, ✗ one failed (its number is not to be quoted as it stands), – no control "
    said += "was run."
    if _some_oblivious(attacked):
        said += f" {OBLIVIOUS[0].upper()}{OBLIVIOUS[1:]}; there ✓ says nothing of the defense."
    failed = [f"{name} in {len(which)} (first {which[0]})" for name, which in told.items()]
    if failed:
        said += f" Failed checks of {len(attacked)} attacked cells: {'; '.join(failed)}."
    return said + " docs/checks.md says what each check means."


def epsilon_text(epsilon: float) -> str:
    """ε as the field writes it: 8/255 where it is one, else a decimal."""
    levels = epsilon * 255
    return f"{levels:.0f}/255" if abs(levels - round(levels)) < 1e-6 and levels >= 1 else f"{epsilon:g}"


def _some_oblivious(attacked: pd.DataFrame) -> bool:
    """Whether some defended cells are under an attack that knew no defense."""
    alone = (attacked["knowledge"] == "oblivious") & (attacked["defense"] != "none")
    return bool((alone & (attacked["attack"] != "worst_case")).any())


def checks_note(cells: pd.DataFrame) -> str:
    """What a figure says of crossed cells and of oblivious attacks, in a few words; nothing where there are none."""
    attacked = cells[cells["attack"] != "none"]
    names = [name for _, row in attacked.iterrows() for name in failed_checks(row)]
    counted = ", ".join(f"{name} ({names.count(name)})" for name in dict.fromkeys(names))
    crossed = f"checks failed (✗) by some of these {len(attacked)} attacked cells: {counted}" if counted else ""
    return "; ".join(text for text in (OBLIVIOUS if _some_oblivious(attacked) else "", crossed) if text)


def cross_out(axes: Axes, x: Any, y: Any, rows: pd.DataFrame) -> None:
    """Cross the points at x, y whose cells failed a check."""
    failed = (rows["verdict"] == "failed").to_numpy()
    axes.scatter(np.asarray(x)[failed], np.asarray(y)[failed], s=26, marker="x", color="black", lw=0.9, zorder=9)


def defense_handle(defense: str, defenses: list[str]) -> Line2D:
    """A defense's entry in a legend."""
    size = 9 if defense == "none" else 5
    tint, marker = colour(defense, defenses), MARKERS.get(defense, "s")
    return Line2D([], [], color=tint, marker=marker, ms=size, lw=1.4, label=label(defense))


def framed(figure: Figure, title: str, note: str, handles: Sequence[Line2D], columns: int) -> None:
    """A title above the panels; below them the legend and, in small print, what one must know to read the figure."""
    figure.suptitle(title, fontsize=9.5)
    wide = int(18 * figure.get_figwidth())
    small = "\n".join(textwrap.fill(line, wide) for line in note.splitlines())
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, title=small)
    legend.get_title().set(fontsize=6.5, color="#444444", multialignment="center")


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


def save_drawing(store: Store, study: str, name: str, figure: Figure, facts: pd.DataFrame) -> list[str]:
    """Write a figure and, as CSV, what it shows; the figure is closed. Returns the paths within the store."""
    import matplotlib.pyplot as plt

    paths = save_figure(store, study, name, figure)
    plt.close(figure)
    return [*paths, save_text(store, study, f"{name}.csv", facts.to_csv(index=False))]


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
