"""Fig. 2: how mixup inference changes predictions on adversarial inputs, against λ, and what ideal linearity asks for.

ΔF_k = E F_k(x̃) - F_k(x) (Eq. 9) and ΔG_k = [E F_k(x̃) - E F_k(x̃_0)] - [F_k(x) - F_k(x_0)], the change of the adversarial
part (the left side of Eq. 12 and 15, negated), for the true label k = y and the predicted one k = ŷ = argmax F(x). x̃ and
x̃_0 are the adversarial and the clean image mixed with the same samples. Were F linear between clean images, Eq. 10 would
hold where ΔG_y is above its line and ΔG_ŷ below its own.

With `counterparts: mechanisms`, ΔG_k is told apart into what input transfer and what perturbation shrinkage change (Eq. 13,
negated like ΔG_k): G_k(δ; u) = F_k(u + δ) - F_k(u) goes from G_k(δ; x_0) by the transfer of the clean image to E G_k(δ; x̃_0),
and from there by the shrinkage of δ to E G_k(λδ; x̃_0).
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mi_ray.figures.names import Names
from mi_ray.figures.panels import Estimated, Style, curve, framed, lines, save_drawing, styled
from mi_ray.figures.reading import at_largest_n, finished, read_study, records_of
from mi_ray.figures.verdict_marks import checks_note
from mi_ray.statistics import mean_interval
from mi_ray.store.blocks import Store, once
from mi_ray.store.schemas import OUTPUTS
from mi_ray.threat_model import WORST_CASE

Array = npt.NDArray[np.float64]
DEFENSES = ("mi_pl", "mi_ol")
CURVES = {"F_y": ("y", "F"), "F_pred": ("pred", "F"), "G_y": ("y", "G"), "G_pred": ("pred", "G")}
MECHANISMS = {
    "transfer_y": ("y", "transfer"),
    "transfer_pred": ("pred", "transfer"),
    "shrinkage_y": ("y", "shrinkage"),
    "shrinkage_pred": ("pred", "shrinkage"),
}
SUBSETS = {"all": "points", "eq2": "points of Eq. 2"}
VALUE: Estimated = ("value", "low", "high")
TINTS = {"y": "#0072B2", "pred": "#D55E00"}
NEEDS = "Fig. 2 needs finished attacked cells of mi_pl or mi_ol with one λ, from a sweep with `counterparts: true`"


def condition(defense: str, k: str, lam: float, classes: int) -> float:
    """The value that ΔG_k has to pass for Eq. 10 under ideal linearity (Eq. 12, 15).

    It has to be above it for k = "y", the true label, and below it for k = "pred", the predicted one.
    """
    if defense == "mi_pl":
        return (1 - lam) if k == "y" else -(1 - lam)
    return (1 - lam) * (classes - 2) / (classes - 1) if k == "y" else 0.0


def changes(
    adversarial: Array,
    mixed: Array,
    clean: Array,
    mixed_clean: Array,
    labels: npt.ArrayLike,
    mixed_whole: Array | None = None,
) -> pd.DataFrame:
    """ΔF and ΔG of each point, with columns as in `CURVES`, and whether the point is one of Eq. 2 (`eq2`).

    adversarial, clean: F on x and x_0, [points, classes]. mixed, mixed_clean: the mean of F over executions on x̃ and
    x̃_0, [points, classes]. labels: [points]. mixed_whole: the mean of F over executions on x̃_0 + δ, [points, classes];
    with it come the columns of `MECHANISMS`, of which those of one k add up to ΔG_k (Eq. 13).
    """
    y, at = np.asarray(labels), np.arange(len(adversarial))
    predicted = adversarial.argmax(1)
    found: dict[str, Any] = {}
    for name, k in (("y", y), ("pred", predicted)):
        found[f"F_{name}"] = mixed[at, k] - adversarial[at, k]
        alone = adversarial[at, k] - clean[at, k]
        found[f"G_{name}"] = (mixed[at, k] - mixed_clean[at, k]) - alone
        if mixed_whole is not None:
            found[f"transfer_{name}"] = (mixed_whole[at, k] - mixed_clean[at, k]) - alone
            found[f"shrinkage_{name}"] = mixed[at, k] - mixed_whole[at, k]
    return pd.DataFrame({**found, "eq2": (clean.argmax(1) == y) & (predicted != y)})


def facts(settings: Mapping[tuple[str, str, float], pd.DataFrame], classes: int) -> pd.DataFrame:
    """One row per (classifier, defense, λ, subset of points, curve): the mean change, its interval, and its condition.

    settings: (classifier, defense, λ) -> `changes` of its points. A subset without points has no rows. The parts of Eq. 13
    have no condition of their own (NaN).
    """
    rows = []
    for (classifier, defense, lam), found in settings.items():
        for subset in SUBSETS:
            chosen = found if subset == "all" else found[found["eq2"]]
            for name, (k, _) in {**CURVES, **MECHANISMS}.items() if len(chosen) else ():
                if name not in chosen:
                    continue
                mean = mean_interval(chosen[name])
                rows.append(
                    {
                        "classifier": classifier,
                        "defense": defense,
                        "lam": lam,
                        "subset": subset,
                        "points": len(chosen),
                        "curve": name,
                        "value": mean.value,
                        "low": mean.low,
                        "high": mean.high,
                        "condition": condition(defense, k, lam, classes) if name in CURVES else float("nan"),
                    }
                )
    return pd.DataFrame(rows).sort_values(["classifier", "subset", "defense", "curve", "lam"], ignore_index=True)


def outputs(store: Store, key: str, points: npt.ArrayLike, executions: int, draws: int) -> Array:
    """Stored outputs [points, classes] at N executions, averaged over the first draws, in the order of the points.

    A block that studies share may hold more draws and points than this one's. Raises ValueError where a point has none.
    """
    tables = [store.read_block("outputs", key, block)[0] for block in store.blocks("outputs", key)]
    rows = once(pa.concat_tables([OUTPUTS.empty_table(), *tables])).to_pandas()
    rows = rows[(rows["executions"] == executions) & (rows["draw"] < draws) & rows["point"].isin(np.asarray(points))]
    missing = set(np.asarray(points).tolist()) - set(rows["point"])
    if missing:
        raise ValueError(f"outputs/{key} must hold every point of the study; it lacks {len(missing)}")
    stacked = np.stack(rows["probabilities"].to_list()).astype(np.float64)
    return (
        pd.DataFrame(stacked, index=rows["point"].to_numpy()).groupby(level=0).mean().loc[np.asarray(points)].to_numpy()
    )


def settings_of(
    store: Store, cells: pd.DataFrame
) -> tuple[dict[tuple[str, str, float], pd.DataFrame], pd.DataFrame, int]:
    """What `facts` takes, the cells that it came from and the number of classes, under a study's first attack.

    cells: rows of cells.parquet of the study, whose reported points are read. Raises ValueError when the study has no
    such cells, or no counterparts.
    """
    own = finished(cells, NEEDS)
    clean = own[(own["attack"] == "none") & (own["defense"] == "none")].set_index("classifier")
    attacked = own[own["defense"].isin(DEFENSES) & own["knowledge"].eq("oblivious") & own["attack"].ne(WORST_CASE)]
    attacked = at_largest_n(attacked)  # as_published has another N for each
    found, classes = {}, 0
    threat = ["attack", "attack_params", "goal", "norm", "epsilon"]
    first = attacked[(attacked[threat] == attacked[threat].head(1).squeeze()).all(axis=1)]
    for _, row in first.iterrows():
        lam, work = json.loads(row["defense_params"])["lam"], json.loads(row["work"])
        if not isinstance(lam, float) or not work["counterparts"] or row["classifier"] not in clean.index:
            continue
        records = records_of(store, row["cell"])
        points = records[~records["selection"]].set_index("point")["label"]
        bare = json.loads(clean.loc[row["classifier"], "work"])["undefended"]
        (mixed, n), counterpart = work["outputs"][0], work["counterparts"][0]
        keys = [(work["undefended"], 1), (mixed, n), (bare, 1), (counterpart, n)]
        keys += [(whole, n) for whole in work.get("transferred", [])[:1]]
        read = [outputs(store, key, points.index, executions, row["draws"]) for key, executions in keys]
        found[row["classifier"], row["defense"], lam] = changes(
            read[0], read[1], read[2], read[3], points.to_numpy(), read[4] if len(read) > 4 else None
        )
        classes = read[0].shape[1]
    if not found:
        raise ValueError(f"{NEEDS}; this study has none")
    return found, first, classes


def _panel(axes: Axes, rows: pd.DataFrame) -> None:
    """ΔF and ΔG against λ, and what ΔG has to pass."""
    axes.axhline(0, color="#888888", lw=0.8)
    for name, (k, what) in CURVES.items():
        line = rows[rows["curve"] == name]
        curve(axes, line["lam"], line, VALUE, _style(k, what))
        if what == "G":
            alone: Style = {"marker": "_", "ms": 14} if len(line) == 1 else {}  # a line needs two points
            axes.plot(line["lam"], line["condition"], color=TINTS[k], ls="--", lw=1.1, **alone)


def _mechanisms_panel(axes: Axes, rows: pd.DataFrame) -> None:
    """The two parts of ΔG against λ (Eq. 13), and ΔG, their sum."""
    axes.axhline(0, color="#888888", lw=0.8)
    for name, (k, what) in MECHANISMS.items():
        line = rows[rows["curve"] == name]
        curve(axes, line["lam"], line, VALUE, _style(k, what))
        whole = rows[rows["curve"] == f"G_{k}"]
        axes.plot(whole["lam"], whole["value"], **_style(k, "G"))


def _style(k: str, what: str) -> Style:
    marker, dashes = {"F": ("o", "-"), "G": ("^", "-"), "transfer": ("s", ":"), "shrinkage": ("v", "-.")}[what]
    return {
        "color": TINTS[k],
        "marker": marker,
        "ls": dashes,
        "mfc": "white" if what == "G" else TINTS[k],
        "ms": 4,
        "lw": 1.3,
    }


def _handles(*, mechanisms: bool) -> list[Line2D]:
    labels = {"y": "y", "pred": r"\hat{y}"}
    handles = [
        Line2D([], [], label=rf"$\Delta {what}_{{{labels[k]}}}$", **_style(k, what)) for k, what in CURVES.values()
    ]
    handles += [
        Line2D([], [], color=TINTS["y"], ls="--", lw=1.1, label=r"$\Delta G_y$ must be above"),
        Line2D([], [], color=TINTS["pred"], ls="--", lw=1.1, label=r"$\Delta G_{\hat{y}}$ must be below"),
    ]
    names = {"transfer": "input transfer", "shrinkage": "shrinkage"}
    parts = MECHANISMS.values() if mechanisms else ()
    return handles + [Line2D([], [], label=rf"{names[what]}, ${labels[k]}$", **_style(k, what)) for k, what in parts]


def draw(table: pd.DataFrame, names: Names, title: str, note: str) -> Figure:
    """The figure of `facts`: rows of panels for each classifier and subset of points, a column for each defense.

    A second row has the parts of Eq. 13, where there are some.
    """
    defenses = [name for name in DEFENSES if name in set(table["defense"])]
    subsets = table.assign(parts=table["curve"].isin(MECHANISMS))[["classifier", "subset", "parts"]].drop_duplicates()
    rows = list(subsets.sort_values(["classifier", "subset", "parts"]).itertuples(index=False, name=None))
    figure = Figure(figsize=(1.0 + 2.9 * len(defenses), 1.3 + 2.3 * len(rows)))
    panels = figure.subplots(len(rows), len(defenses), squeeze=False, sharex=True, sharey=True)
    for line, (classifier, subset, parts) in zip(panels, rows, strict=True):
        group = table[(table["classifier"] == classifier) & (table["subset"] == subset)]
        for axes, defense in zip(line, defenses, strict=True):
            (_mechanisms_panel if parts else _panel)(axes, group[group["defense"] == defense])
            axes.set_title(
                f"{classifier} + {names.defense(defense)}, {group['points'].iloc[0]} {SUBSETS[subset]}", fontsize=8.5
            )
        line[0].set_ylabel("ΔG told apart (Eq. 13)" if parts else "change of probability")
    for axes in panels[-1]:
        axes.set_xlabel("λ")
    framed(figure, title, note, _handles(mechanisms=bool(subsets["parts"].any())), 4, math=True)
    return figure


def describe(cells: pd.DataFrame, names: Names) -> tuple[str, str]:
    """The title, which names the threat, and the note on how the bands are made and what the checks say."""
    note = "bands: 95 % over points; Eq. 2: clean image classified right, adversarial one wrong"
    return f"{cells['dataset'].iloc[0]}: {names.threat(cells.iloc[0])}", lines(note, checks_note(cells))


def make(store: Store, study: str) -> list[str]:
    """Draw Fig. 2 of a study into its folder, as PNG and PDF, with its numbers as CSV."""
    cells, names = read_study(store, study)
    found, shown, classes = settings_of(store, cells)
    table = facts(found, classes)
    with styled():
        figure = draw(table, names, *describe(shown, names))
        return save_drawing(store, study, "fig2", figure, table)
