"""Fig. 3(a): telling adversarial inputs from clean ones by how far mixup inference lowers F's own prediction.

The score is F_ŷ(x) - F_MI,ŷ(x), ŷ = argmax F(x), higher = adversarial (Eq. 14); the baseline is 1 - max F(x). Clean points
against their own adversarial versions; also on the points of Eq. 2 alone, where F is right on the clean image and wrong
on the adversarial one. λ is chosen by its AUC on the selection points, where the study has some. Beside the AUC stand the
detection gap DG (Eq. 14, 16), by how much the score is higher on adversarial inputs, and the rate of detections at 5 % false
positives: a detector that flags more clean inputs than that is of little use, whatever its area.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mi_ray.choice import SETTING, choosing, chosen_on
from mi_ray.figures.names import Look, Names, parameters
from mi_ray.figures.panels import (
    Estimated,
    Style,
    cross_out,
    curve,
    defense_handles,
    filled,
    framed,
    lines,
    save_drawing,
    styled,
)
from mi_ray.figures.reading import at_largest_n, finished, read_study, records_of
from mi_ray.figures.verdict_marks import checks_note
from mi_ray.statistics import (
    FALSE_POSITIVES,
    Estimate,
    auc_interval,
    detection_auc,
    detection_gap,
    detection_rate_interval,
    roc,
)
from mi_ray.store.blocks import Store
from mi_ray.threat_model import WORST_CASE

DEFENSES = ("mi_pl", "mi_ol")
BASELINE = "confidence"
NEEDS = "Fig. 3(a) needs finished cells of mi_pl or mi_ol on clean and on attacked inputs"
AUC: Estimated = ("auc", "auc_low", "auc_high")
TPR: Estimated = ("tpr", "tpr_low", "tpr_high")
GAP: Estimated = ("gap", "gap_low", "gap_high")
RATE = f"At {100 * FALSE_POSITIVES:g} % false positives"
DRAWN = [*SETTING, "draws"]  # a setting and how often it was scored


@dataclass(frozen=True)
class Detector:
    """One detector against one attack: a score of every clean point and of its adversarial version.

    scores: columns clean, adversarial, eq2 (clean right, adversarial wrong) and selection, a row a point.
    """

    classifier: str
    attack: str
    defense: str
    parameters: str
    lam: float | None
    verdict: str
    scores: pd.DataFrame


def pair(clean: pd.DataFrame, adversarial: pd.DataFrame, score: str) -> pd.DataFrame:
    """The scores of the same points, from the records of a clean cell and of an attacked one.

    score: "score", the drop of F's own prediction, or `BASELINE`. Returns the columns of `Detector.scores`.
    """
    both = clean.merge(adversarial, on="point", suffixes=("_clean", "_adversarial"), validate="one_to_one")
    found = {
        side: both[f"score_{side}"] if score == "score" else 1 - both[f"confidence_undefended_{side}"]
        for side in ("clean", "adversarial")
    }
    right, wrong = (both[f"predicted_undefended_{side}"] == both["label_clean"] for side in ("clean", "adversarial"))
    return pd.DataFrame({**found, "eq2": right & ~wrong, "selection": both["selection_clean"]})


def facts(detectors: list[Detector]) -> pd.DataFrame:
    """One row per (detector, subset of points): what the reported points say, and whether the detector is `chosen`.

    They say the AUC and `tpr`, the true-positive rate at `FALSE_POSITIVES`, each with the ends of its interval.

    `gap`, with its ends, is the detection gap DG (Eq. 14, 16), which the baseline has none of. Chosen is the setting of
    each defense with the highest AUC on the selection points (`auc_selection`), where there are some, else on the
    reported ones. subset: "all", or "eq2", which is left out where it has no points.
    """
    rows = []
    for found in detectors:
        reported, selection = (found.scores[found.scores["selection"] == flag] for flag in (False, True))
        picked_on = found.scores[choosing(found.scores["selection"])]
        told = {
            "classifier": found.classifier,
            "attack": found.attack,
            "defense": found.defense,
            "parameters": found.parameters,
            "lam": found.lam,
            "verdict": found.verdict,
            "auc_selection": detection_auc(picked_on["clean"], picked_on["adversarial"]),
            "selection_points": len(selection),
        }
        for subset, rows_of in (("all", reported), ("eq2", reported[reported["eq2"]])):
            if len(rows_of):
                numbers = _numbers(rows_of, gap=found.defense != BASELINE)
                rows.append({**told, "subset": subset, "points": len(rows_of), **numbers})
    table = pd.DataFrame(rows)
    best = table.groupby(["classifier", "attack", "defense"])["auc_selection"].transform("max")
    first = ~table[table["auc_selection"] == best].duplicated(["classifier", "attack", "defense", "subset"])
    return table.assign(chosen=first.reindex(table.index, fill_value=False))


def _numbers(scores: pd.DataFrame, *, gap: bool) -> dict[str, float]:
    """The AUC and the detection rate of scores, and their gap where that is asked for (else NaN), each with its interval."""
    sides = scores["clean"], scores["adversarial"]
    none = Estimate(float("nan"), float("nan"), float("nan"))
    found = {"auc": auc_interval(*sides), "tpr": detection_rate_interval(*sides)}
    found["gap"] = detection_gap(*sides) if gap else none
    return {
        f"{name}{end}": value
        for name, estimate in found.items()
        for end, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high))
    }


def detectors_of(store: Store, cells: pd.DataFrame, names: Names) -> tuple[list[Detector], pd.DataFrame]:
    """Every detector of a study against each of its attacks, and the attacked cells. Raises ValueError without any."""
    own = finished(cells, NEEDS)
    own = own[own["defense"].isin(DEFENSES) & (own["attack"] != WORST_CASE)]
    if len(own):
        own = at_largest_n(own)
    clean = {tuple(row[DRAWN]): row["cell"] for _, row in own[own["attack"] == "none"].iterrows()}
    attacked = own[own["attack"] != "none"]
    found, based = [], set()
    for name, (_, row) in zip(names.threats(attacked), attacked.iterrows(), strict=True):
        if tuple(row[DRAWN]) not in clean:
            continue
        pairs = records_of(store, clean[tuple(row[DRAWN])]), records_of(store, row["cell"])
        lam = json.loads(row["defense_params"])["lam"]
        told = row["classifier"], name
        number = lam if isinstance(lam, float) else None
        shown = parameters(row["defense_params"])
        found.append(Detector(*told, row["defense"], shown, number, str(row["verdict"]), pair(*pairs, "score")))
        # Images of an attack through each setting differ from setting to setting, and with them the baseline's scores.
        based_on = (*told, shown if row["knowledge"] != "oblivious" else "")
        if based_on not in based:
            based.add(based_on)
            found.append(Detector(*told, BASELINE, based_on[2], None, str(row["verdict"]), pair(*pairs, BASELINE)))
    if not found:
        raise ValueError(f"{NEEDS}; this study has none")
    return found, attacked


def _look(names: Names, defense: str) -> Look:
    return Look("1 - max F(x)", "#000000", "o") if defense == BASELINE else names.look(defense)


def _roc_panel(axes: Axes, table: pd.DataFrame, scores: Mapping[tuple[str, str], pd.DataFrame], names: Names) -> None:
    axes.plot([0, 1], [0, 1], color="#888888", lw=0.8)
    axes.axvline(FALSE_POSITIVES, color="#888888", lw=0.8, ls=":")
    for defense, rows in table[table["chosen"]].groupby("defense", sort=False):
        look = _look(names, str(defense))
        for _, row in rows.iterrows():
            points = scores[str(defense), row["parameters"]]
            points = points[~points["selection"] & (points["eq2"] | (row["subset"] == "all"))]
            rates = roc(points["clean"], points["adversarial"])
            whole = row["subset"] == "all"
            said = _said(look, row) if whole else None
            width, dashes = (1.5, "-") if whole else (1.0, ":")
            axes.plot(rates.fpr, rates.tpr, color=look.colour, lw=width, ls=dashes, label=said)
    axes.set(xlabel="False positive rate", ylabel="True positive rate", aspect="equal")
    # Curves may run anywhere inside, so that the legend stands below.
    where: Style = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.22)}
    axes.legend(**where, fontsize=7)


def _said(look: Look, row: "pd.Series[Any]") -> str:
    """A detector's entry in a legend: its AUC, and its gap where it has one. Intervals are in the other panels and the CSV."""
    gap = f", gap {row['gap']:.3f}" if row["gap"] == row["gap"] else ""
    return f"{look.label} {row['parameters']}".strip() + f": AUC {row['auc']:.3f}{gap}"


def _against_lambda(axes: Axes, table: pd.DataFrame, names: Names, columns: Estimated, chance: float) -> None:
    """A number of the detectors against λ. chance: its value where a score tells nothing."""
    axes.axhline(chance, color="#888888", lw=0.8)
    for defense, rows in table[table["lam"].notna()].groupby("defense", sort=False):
        for subset, line in rows.sort_values("lam").groupby("subset"):
            whole = subset == "all"
            style: Style = {"ls": "-"} if whole else {"ls": ":", "mfc": "white"}
            look = names.look(str(defense))
            style |= {"color": look.colour, "marker": look.marker, "ms": 5, "lw": 1.3}
            curve(axes, line["lam"], line, columns, style)
            cross_out(axes, line["lam"], line[columns[0]], line)
    base = table[(table["defense"] == BASELINE) & (table["subset"] == "all") & table["chosen"]]
    for _, row in base.iterrows():
        axes.axhline(row[columns[0]], color="#000000", ls="--", lw=1.1)
    axes.set_xlabel("λ")


def draw(table: pd.DataFrame, detectors: list[Detector], names: Names, title: str, note: str) -> Figure:
    """A row for each classifier and attack: ROC curves of the chosen settings, and AUC and detection rate against λ.

    A study of a single λ has nothing to show against it, and its ROC curves stand side by side.
    """
    groups = list(table[["classifier", "attack"]].drop_duplicates().itertuples(index=False, name=None))
    several = len(set(table["lam"].dropna())) > 1
    across = 3 if several else min(3, len(groups))
    down = len(groups) if several else -(-len(groups) // across)
    figure = Figure(figsize=(8.6 if several else 1 + 2.9 * across, 0.6 + 3.0 * down))
    panels = figure.subplots(down, across, squeeze=False)
    for axes in panels.ravel()[len(groups) :] if not several else ():
        axes.set_visible(False)
    for line, (classifier, attack) in zip(panels if several else panels.reshape(-1, 1), groups, strict=False):
        rows = table[(table["classifier"] == classifier) & (table["attack"] == attack)]
        mine = [found for found in detectors if (found.classifier, found.attack) == (classifier, attack)]
        _roc_panel(line[0], rows, {(found.defense, found.parameters): found.scores for found in mine}, names)
        line[0].set_title(filled(f"{classifier}, {attack}", 34), fontsize=9)
        if several:
            _against_lambda(line[1], rows, names, AUC, 0.5)
            line[1].set(ylabel="AUC", ylim=(-0.02, 1.02))
            line[1].set_title("AUC", fontsize=9)
            _against_lambda(line[2], rows, names, TPR, FALSE_POSITIVES)
            line[2].set(ylabel="True positive rate", ylim=(-0.02, 1.02))
            line[2].set_title(RATE, fontsize=9)
    shown = [name for name in dict.fromkeys(table["defense"]) if name != BASELINE]
    handles = [
        *defense_handles(names, shown),
        Line2D([], [], color="black", marker="o", ms=4, lw=1.3, label="all points"),
        Line2D([], [], color="black", marker="o", ms=4, lw=1.3, ls=":", mfc="white", label="points of Eq. 2"),
        *([Line2D([], [], color="black", ls="--", lw=1.1, label="1 - max F(x), all points")] if several else []),
    ]
    framed(figure, title, note, handles, 5)
    return figure


def describe(table: pd.DataFrame, cells: pd.DataFrame) -> tuple[str, str]:
    """The title, and the note that says how λ was chosen and what the checks say."""
    first = table[table["subset"] == "all"].iloc[0]
    by = chosen_on(int(first["selection_points"]))
    note = f"λ of the ROC curves chosen on {by}; gap: Eq. 14, 16; Eq. 2: clean image right, adversarial one wrong; bands: 95 %"
    title = f"{cells['dataset'].iloc[0]}: detection, {int(first['points'])} clean points and as many adversarial"
    return title, lines(note, checks_note(cells))


def make(store: Store, study: str) -> list[str]:
    """Draw Fig. 3(a) of a study into its folder, as PNG and PDF, with its numbers as CSV."""
    cells, names = read_study(store, study)
    detectors, attacked = detectors_of(store, cells, names)
    table = facts(detectors)
    with styled():
        figure = draw(table, detectors, names, *describe(table, attacked))
        return save_drawing(store, study, "fig3a", figure, table)
