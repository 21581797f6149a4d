"""How good each defense's whole curve is, with intervals: a row for each classifier, attack and defense.

Hypervolume is the area below a defense's curve of adversarial against clean accuracy, from (0, 0). Adversarial accuracy
at matched clean accuracy is read off that curve (the comparison of the paper's Sec. 4). Which settings make a curve, in
which order, and which are undominated among those of all defenses, is chosen as `mi_ray.choice` says; every number is
of that choice, on the reported points. Classifiers named `name@1`, `name@2`, … are trainings of `name` with other
seeds: a second table says how far their numbers spread.
"""

from typing import Any

import pandas as pd

from mi_ray.choice import THREAT, chosen_on, curve, frontier
from mi_ray.figures.names import Names, parameters
from mi_ray.figures.reading import finished, read_study
from mi_ray.figures.saving import save_texts
from mi_ray.figures.tables import markdown, percent
from mi_ray.figures.verdict_marks import checks_footnote, mark
from mi_ray.statistics import (
    COUNTED,
    Estimate,
    at_matched_clean_interval,
    by_threat,
    counts_of,
    hypervolume_interval,
    spread,
    undominated_share,
)
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_records

LOSSES = (0.01, 0.02, 0.05, 0.10)  # clean accuracy given up against no defense, at which curves are compared
SURE = 0.95  # the share of resamples in which a number must exist not to be marked
UNSURE = " †"  # the mark of one that exists in fewer
DIGITS = "%.12g"  # Kinds of processor sum in another order, and differ in the last digits of an area.
NEEDS = "frontiers need finished cells with and without an attack"


def facts(cells: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """One row per (classifier, attack, defense): the numbers that the top of this file explains.

    cells: rows of cells.parquet of one study; records: its rows, one a cell and point. `settings`: how many the defense
    has; `on_curve`: how many its curve is made of; `undominated`: how many of its settings were chosen as undominated
    among those of all defenses, and `undominated_expected`: how many of these are so on resamples of the reported points,
    in the mean; `choosing_points`: as in `mi_ray.choice.frontier`;
    `at_0.02`: adversarial accuracy at two points of clean accuracy below no defense, NaN where the curve does not reach
    there; `…_defined`: the share of resamples in which it exists. Raises ValueError for a study without attacked settings.
    """
    own = finished(cells, NEEDS)
    clean = own[(own["attack"] == "none") & (own["defense"] == "none")]
    bare = {row["classifier_key"]: (row["cell"], int(row["draws"])) for _, row in clean.iterrows()}
    rows = []
    for group in by_threat(frontier(own)):
        rows += _defenses(group, records, bare.get(group["classifier_key"].iloc[0]))
    if not rows:
        raise ValueError(f"{NEEDS}; this study has none")
    return pd.DataFrame(rows)


def _defenses(group: pd.DataFrame, records: pd.DataFrame, bare: tuple[str, int] | None) -> list[dict[str, Any]]:
    """The rows of one classifier under one attack. bare: the clean cell without a defense, and its draws."""
    size, draws = len(group), group["draws"].to_numpy()
    extra = [bare[0]] if bare else []
    counts = counts_of(records, [*group["clean_cell"], *group["cell"], *extra])
    clean, adversarial = counts[:size], counts[size : 2 * size]
    share = undominated_share(clean, draws, adversarial, draws)
    rows = []
    for defense in group["defense"].unique():
        mine = (group["defense"] == defense).to_numpy()
        best = mine & group["undominated"].to_numpy()
        chosen = group.index.get_indexer(curve(group[mine]))
        on_curve = clean[chosen], draws[chosen], adversarial[chosen], draws[chosen]
        found = {"hypervolume": hypervolume_interval(*on_curve)}
        if bare:
            matched = at_matched_clean_interval(*on_curve, LOSSES, below=(counts[-1], bare[1]))
            found |= {f"at_{loss:g}": estimate for loss, estimate in zip(LOSSES, matched, strict=True)}
        first = group.iloc[0]
        rows.append(
            {
                **{name: first[name] for name in ("classifier", *THREAT)},
                "defense": defense,
                "points": counts.shape[1],
                "settings": int(mine.sum()),
                "on_curve": len(chosen),
                "choosing_points": int(first["choosing_points"]),
                "verdict": _verdict(group.iloc[chosen]),
                "undominated": int(best.sum()),
                "undominated_expected": float(share[best].sum()),
                **{key: value for name, estimate in found.items() for key, value in _columns(name, estimate).items()},
            }
        )
    return rows


def _verdict(curve: pd.DataFrame) -> str:
    """The verdict of the worst of a curve's cells."""
    found = set(curve["verdict"]) if "verdict" in curve else set()
    return "failed" if "failed" in found else "passed" if found == {"passed"} else "not run"


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {
        name: estimate.value,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
        f"{name}_defined": estimate.defined,
    }


def over_seeds(cells: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """How numbers spread over trainings that differ in their seed, a row for each; none where there is one training.

    cells: rows of cells.parquet; table: `facts` of them. Of each setting its clean and adversarial accuracy, of each
    defense its hypervolume and what it has at matched clean accuracy; a training without the number is left out.
    """
    settings = frontier(cells)
    of_curves = ["hypervolume", *(f"at_{loss:g}" for loss in LOSSES if f"at_{loss:g}" in table)]
    identity = ["classifier", *THREAT, "defense"]
    long = pd.concat(
        [
            settings.melt([*identity, "defense_params", "executions"], ["clean", "adversarial"], "quantity"),
            table.assign(defense_params="", executions=0).melt(
                [*identity, "defense_params", "executions"], of_curves, "quantity"
            ),
        ]
    ).dropna(subset=["value"])
    long["classifier"] = [name.split("@")[0] for name in long["classifier"]]
    keys = [*identity, "defense_params", "executions", "quantity"]
    return pd.DataFrame(
        [
            {**dict(zip(keys, key, strict=True)), **vars(spread(group["value"]))}
            for key, group in long.groupby(keys, sort=False)
            if len(group) > 1
        ]
    )


def _first_columns(table: pd.DataFrame, names: Names) -> dict[str, list[str]]:
    return {
        "Classifier": table["classifier"].tolist(),
        "Attack": names.threats(table),
        "Defense": [names.defense(name) for name in table["defense"]],
    }


def shown(table: pd.DataFrame, names: Names) -> pd.DataFrame:
    """`facts` as text: areas and accuracies in per cent with the interval in brackets."""
    columns = {"hypervolume": "Hypervolume (%)", **{f"at_{x:g}": f"At -{100 * x:g} clean" for x in LOSSES}}
    settings = zip(table["undominated"], table["undominated_expected"], table["settings"], strict=True)
    text = {
        **_first_columns(table, names),
        "Undominated": [f"{count} (expected {expected:.1f}) of {size}" for count, expected, size in settings],
    }
    for name, title in columns.items():
        if name in table:
            bounds = zip(*(table[f"{name}{end}"] for end in ("", "_low", "_high", "_defined")), strict=True)
            text[title] = [
                percent(*each) + (UNSURE if each[0] == each[0] and sure < SURE else "") for *each, sure in bounds
            ]
    text["Checks"] = [mark(row) for _, row in table.iterrows()]
    return pd.DataFrame(text)


def shown_seeds(seeds: pd.DataFrame, names: Names) -> pd.DataFrame:
    """`over_seeds` as text, in per cent."""
    settings = zip(seeds["defense_params"], seeds["executions"], strict=True)
    numbers = zip(seeds["mean"], seeds["low"], seeds["high"], strict=True)
    text = {
        **_first_columns(seeds, names),
        "Setting": [", ".join(filter(None, [parameters(p), f"N={n}"])) if p else "its curve" for p, n in settings],
        "Number": seeds["quantity"].tolist(),
        "Trainings": seeds["number"].astype(str).tolist(),
        "Mean": [percent(*each) for each in numbers],
        "SD": [f"{100 * value:.2f}" for value in seeds["deviation"]],
        "Least, most": [f"{100 * a:.1f}, {100 * b:.1f}" for a, b in zip(seeds["least"], seeds["most"], strict=True)],
    }
    return pd.DataFrame(text)


def footnote(cells: pd.DataFrame, table: pd.DataFrame, names: Names) -> str:
    """How the tables were made, in words."""
    return (
        f"{int(table['points'].max())} reported points; per cent with 95 % intervals over points, the same for all settings. "
        "Undominated: settings that none of any defense beats in both accuracies where settings are chosen, and how many of "
        "them are expected to be so over resamples of the reported points. At matched clean accuracy: adversarial accuracy so "
        "many points below the undefended clean accuracy, linear between settings of the defense's own curve; – where it does "
        f"not reach there, † where it does not in over {100 * (1 - SURE):.0f} % of resamples, which its interval leaves out. "
        f"The undominated settings and the curves are chosen on {chosen_on(int(table['choosing_points'].iloc[0]))}. "
        f"Checks, the worst of a curve's settings: {checks_footnote(finished(cells, NEEDS), names)}"
    )


def make(store: Store, study: str) -> list[str]:
    """Write the statistics of a study's frontiers as Markdown and CSV, and their spread over training seeds if any."""
    cells, names = read_study(store, study)
    table = facts(cells, read_records(store, study, columns=COUNTED))
    seeds = over_seeds(cells, table)
    text = markdown(shown(table, names), footnote(cells, table, names))
    files = {"frontier_statistics.csv": table.to_csv(index=False, float_format=DIGITS)}
    if len(seeds):
        note = "Over trainings that differ in their seed: mean with its 95 % t-interval, standard deviation (n - 1)."
        text += f"\n{markdown(shown_seeds(seeds, names), note)}"
        files["frontier_statistics_seeds.csv"] = seeds.to_csv(index=False, float_format=DIGITS)
    return save_texts(store, study, {"frontier_statistics.md": text, **files})
