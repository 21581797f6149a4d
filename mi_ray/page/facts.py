"""The facts of one study as the page holds them: settings, attacks, cells with their checks, and where they came from.

Everything is plain values that become JSON. A list of texts that many cells share is kept once, and cells name its
entries by their positions, so that hundreds of cells make a page of a megabyte or two.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import yaml

from mi_ray.choice import FRONTIER_KEYS, curve, frontier
from mi_ray.figures.names import Names, Row, epsilon_text, parameters, radii_text
from mi_ray.figures.reading import may_stand_for_worst, read_study
from mi_ray.figures.verdict_marks import mark
from mi_ray.page.one_setting import Json, attacks_part, sweep_parts
from mi_ray.statistics import by_threat, of_variant
from mi_ray.store.blocks import Store
from mi_ray.store.files import DamagedFileError
from mi_ray.store.manifest import read_manifest
from mi_ray.store.schemas import CERTIFIED, TRAINING
from mi_ray.threat_model import WORST_CASE

NUMBERS = (
    *("accuracy", "accuracy_low", "accuracy_high", "clean_accuracy", "coverage", "accuracy_answered"),
    *("auc", "tpr_at_5_fpr", "seconds"),
)
COUNTS = ("points", "forward_passes", "backward_passes")
MET_BY = ["classifier", "defense", "defense_params"]  # what decides which attacks a setting meets
DIGITS = 8  # so many digits of an accuracy are kept: few would round it twice, 33.2495 % to 33.25 and that to 33.3


@dataclass
class Pool:
    """A list of values that holds each of them once, so that others can name a value by its position."""

    values: list[object] = field(default_factory=list)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, value: object) -> int:
        """The position of a value, which is added where it is new."""
        key = json.dumps(value)
        if key not in self.places:
            self.places[key] = len(self.values)
            self.values.append(value)
        return self.places[key]


@dataclass(frozen=True, eq=False)
class ReadStudy:
    """A study as it was read: its cells in the order of the page, the names of its methods, its manifest and its sweep."""

    name: str
    cells: pd.DataFrame
    names: Names
    manifest: Json
    sweep: Json


def _sweep(path: str, content: bytes) -> Json:
    """A sweep as its study keeps it. Raises DamagedFileError where it is none."""
    try:
        found = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise DamagedFileError(f"{path} must be the sweep as its study keeps it, in YAML; it is damaged")
    return found


def load(store: Store, study: str) -> ReadStudy:
    """Read what a study says of itself. Raises ValueError where the store has no such study."""
    cells, names = read_study(store, study)
    path = f"studies/{study}/study.yaml"
    sweep = _sweep(path, store.read_bytes(path)) if store.exists(path) else {}
    try:
        manifest = read_manifest(store, study)
    except DamagedFileError:
        manifest = {}  # The page then has no provenance, as a figure has no labels.
    return ReadStudy(study, cells, names, manifest, sweep)


def threat_of(cells: pd.DataFrame, names: Names) -> pd.Series:
    """How the attack of each cell is called, with its goal and without ε; empty for clean cells."""
    attacked = cells[cells["attack"] != "none"]
    told = [
        name if row["goal"] in ("any", "none") else f"{name}, {row['goal']}"
        for name, (_, row) in zip(names.attacks(attacked), attacked.iterrows(), strict=True)
    ]
    return pd.Series(told, attacked.index, dtype=object).reindex(cells.index, fill_value="")


def number(value: float | None) -> float | None:
    """A number as JSON has it: rounded; nothing where there is none, or none that is finite."""
    return None if value is None or not math.isfinite(value) else round(float(value), DIGITS)


def study_facts(loaded: ReadStudy) -> dict[str, object]:
    """Settings, attacks, cells and checks of a study, what it asked, and where it came from."""
    cells, names = loaded.cells, loaded.names
    settings, threats, findings, variants, attacks = Pool(), Pool(), Pool(), Pool(), Pool()
    for name in variant_names(cells):
        variants.place(name)
    entries = {pair: _entry(*pair) for pair in dict.fromkeys(zip(*(cells[name] for name in MET_BY[1:]), strict=True))}
    called = threat_of(cells, names)
    met = {
        (classifier, defense, values): attacks.place(
            attacks_part(loaded.sweep, classifier, defense, json.loads(values))
        )
        for classifier, defense, values in dict.fromkeys(zip(*(cells[name] for name in MET_BY), strict=True))
    }
    through = cells[cells["knowledge"].isin(["adaptive", "black_box"])]
    largest = through.groupby(MET_BY)["executions"].max().to_dict()
    rows = []
    for at, (_, row) in enumerate(cells.iterrows()):
        attacked = row["attack"] != "none"
        place = tuple(row[name] for name in MET_BY)
        threat = [called.iloc[at], number(row["epsilon"]), epsilon_text(row["epsilon"], row["norm"]), _knowledge(row)]
        rows.append(
            {
                "key": row["cell"],
                "setting": settings.place(
                    [*_setting(row, names, entries), met[place], _executions(row, largest.get(place))]
                ),
                "threat": threats.place(threat) if attacked else -1,
                **_result(row, findings),
                "variants": [variants.place(name) for name in _listed(row["variants"])],
            }
        )
    places = dict(zip(cells["cell"], range(len(cells)), strict=True))
    return {
        "name": loaded.name,
        "asked": asked(loaded),
        "settings": settings.values,
        "threats": threats.values,
        "findings": findings.values,
        "variants": variants.values,
        "cells": rows,
        "best": {
            str(at): {**_best(cells, str(name), places), "alone": alone(cells, str(name))}
            for at, name in enumerate(variants.values)
        },
        "looks": {name: vars(names.look(name)) for name in dict.fromkeys(cells["defense"])},
        "yaml": [sweep_parts(loaded.name, loaded.sweep, name) for name in variant_names(cells)],
        "attacks": attacks.values,
        "provenance": provenance(loaded.manifest),
        "state": loaded.manifest.get("state", "unknown"),
    }


def variant_names(cells: pd.DataFrame) -> list[str]:
    """The variants of a study's options in the order of the page: first "", which is the study itself."""
    return list(dict.fromkeys(["", *(str(name) for found in cells["variants"] for name in _listed(found))]))


def _knowledge(row: Row) -> str:
    return "" if row["attack"] == WORST_CASE else str(row["knowledge"]).replace("_", " ")


def _entry(defense: str, values: str) -> str:
    """A defense with its parameters as a sweep writes them, in YAML. values: as cells.parquet has them."""
    params = {name: value for name, value in json.loads(values).items() if value is not None}
    entry: object = {defense: params} if params else defense
    return yaml.safe_dump({"defenses": [entry]}, sort_keys=False, default_flow_style=None, width=1000)


def _executions(row: Row, largest: int | None) -> str:
    """N as the sweep of one setting writes it, with the largest that an attack goes through the defense with, if any does.

    An attack follows the largest N of its study, unless it says another, and would be another one with this N alone.
    """
    own = int(row["executions"])
    return f"[{own}, {int(largest)}]   # attacks follow the larger" if largest and largest > own else str(own)


def _setting(row: Row, names: Names, entries: Mapping[tuple[str, str], str]) -> list[object]:
    """A setting: classifier, defense, its label, its parameters as text and as YAML, N and draws. entries: of `_entry`."""
    whole = entries[row["defense"], row["defense_params"]]
    own = parameters(row["defense_params"])
    counts = [int(row["executions"]), int(row["draws"])]
    return [row["classifier"], row["defense"], names.defense(row["defense"]), own, whole, *counts]


def _result(row: Row, findings: Pool) -> dict[str, object]:
    """What a cell came to: its numbers, its verdict's mark and word, and the positions of what its checks said."""
    text = row.get("checks")
    said = json.loads(text) if isinstance(text, str) else {}
    checks = [findings.place([name, found["state"], found["why"]]) for name, found in said.items()]
    told: dict[str, object] = {name: number(row.get(name)) for name in NUMBERS}
    told |= {name: None if number(row.get(name)) is None else int(row[name]) for name in COUNTS}
    survival = [number(share) for share in np.atleast_1d(row["survival"])] if np.ndim(row["survival"]) else []
    state = {"state": row["state"], "cause": row["cause"] if isinstance(row["cause"], str) else ""}
    verdict = {
        "mark": mark(row) if row["attack"] != "none" else "",
        "verdict": row["verdict"] if isinstance(row["verdict"], str) else "",
    }
    return {**told, **state, **verdict, "survival": survival, "checks": checks}


def _listed(value: object) -> list[object]:
    """A list that a column may have or lack."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else []


def _best(cells: pd.DataFrame, variant: str, places: Mapping[str, int]) -> dict[str, list[int]]:
    """The attacked cells, by position, that are undominated, and those through which the line of a defense goes.

    Both are chosen by the accuracies that choose (`mi_ray.choice`), for one variant of the study's options.
    """
    found: dict[str, list[int]] = {"undominated": [], "curve": []}
    table = frontier(cells, variant)
    found["undominated"] = [places[cell] for cell in table.loc[table["undominated"], "cell"]]
    for group in by_threat(table):
        for _, rows in group.groupby(["defense", "executions", "draws"], sort=False):
            found["curve"] += [places[cell] for cell in rows.loc[curve(rows), "cell"]]
    return found


def alone(cells: pd.DataFrame, variant: str) -> list[int]:
    """The attacked cells, by position, that stand for a setting's worst case in a ball where it has no cell of one.

    Each is the only attack on its setting there that was asked for, in one variant of the study's options, and no attack that
    saw F alone in front of a defense (`may_stand_for_worst`).
    """
    own = of_variant(cells.reset_index(drop=True), variant)
    attacked = own[own["attack"] != "none"]
    only = attacked[~attacked.duplicated([*FRONTIER_KEYS, "norm", "epsilon"], keep=False)]
    only = only[(only["state"] == "done") & (only["attack"] != WORST_CASE)]
    return [int(str(at)) for at in only.index[may_stand_for_worst(only, own).to_numpy()]]


def asked(loaded: ReadStudy) -> str:
    """What the study asked, on what, in a few sentences."""
    cells, sweep, manifest = loaded.cells, loaded.sweep, loaded.manifest
    settings = len(cells.loc[cells["defense"] != "none", FRONTIER_KEYS].drop_duplicates())
    methods = [name for name in dict.fromkeys(cells["defense"]) if name != "none"]
    attacked = cells[~cells["attack"].isin(["none", WORST_CASE])]
    radii = radii_text(attacked)
    attacks = list(dict.fromkeys(threat_of(attacked, loaded.names)))
    done = int((cells["state"] == "done").sum())
    first = cells[cells["state"] == "done"].head(1)
    points = "".join(
        f"{row['points']:.0f} reported points, {row['selection_points']:.0f} others that choose settings"
        for _, row in first.iterrows()
    )
    seed = sweep.get("seed", manifest.get("seed"))
    return (
        f"How much accuracy {'does' if len(methods) == 1 else 'do'} {_counted(len(methods), 'defense')} keep "
        f"in {_counted(settings, 'setting')}, in front of "
        f"{_listing(dict.fromkeys(cells['classifier']))}, under {_listing(attacks)} at ε = {radii or '–'}? "
        f"On {', '.join(dict.fromkeys(cells['dataset']))}: {points or 'no finished cell'}. Preset "
        f"{sweep.get('preset', 'unknown')}, seed {seed}; {done} of {len(cells)} cells are done."
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listing(names: Iterable[object], most: int = 4) -> str:
    """A few names, and how many more there are."""
    known = [str(name) for name in names]
    shown = known if len(known) <= most else [*known[: most - 1], f"{len(known) - most + 1} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown) or "no attack"


def provenance(manifest: Json) -> list[tuple[str, str]]:
    """Where a study came from: what it ran on, what it read and what it cost, each as a name and a text."""
    about = _part(manifest, "provenance")
    points, dataset, last = (_part(manifest, name) for name in ("points", "dataset", "last_run"))
    commit = f"{about.get('commit') or 'not of a checkout'}{' with changes' if about.get('dirty') else ''}"
    rows: list[tuple[str, object]] = [
        ("written", about.get("written")),
        ("commit", commit),
        ("versions", _pairs(_part(about, "versions"))),
        ("Python", about.get("python")),
        ("machine, device", f"{about.get('machine')}, {manifest.get('device')}"),
        ("dataset", f"{dataset.get('name')}, SHA-256 {dataset.get('digest')}"),
        ("points", f"{len(_listed(points.get('indices')))}, of which {points.get('selection')} choose settings"),
        ("sample pools, SHA-256", json.dumps(_part(manifest, "pool").get("digests", {}))),
        ("seed", manifest.get("seed")),
        ("passes planned", _pairs(_part(manifest, "planned"))),
        ("passes counted in the last run", _pairs(_part(last, "counted_passes"))),
        ("seconds of the last run", _pairs(_part(last, "seconds"))),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "", "{}")]


def _part(whole: Json, name: str) -> Json:
    """A mapping within a mapping; an empty one where there is none."""
    found = whole.get(name)
    return found if isinstance(found, Mapping) else {}


def _pairs(values: Json) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:,.0f}" if isinstance(value, (int, float)) else f"{name} {value}"
        for name, value in values.items()
    )


CERTIFIED_NUMBERS = (
    "sigma",
    "radius",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "coverage",
    "accuracy_answered",
)


def certified_facts(store: Store, study: str) -> list[dict[str, object]]:
    """Certified accuracy by classifier, σ and radius; empty of a study that certifies nothing."""
    path = f"studies/{study}/certified.parquet"
    rows = store.read_table(path, CERTIFIED).to_pylist() if store.exists(path) else []
    said = ("classifier", "n0", "n", "alpha", "state", "cause")  # Rounded, a small alpha would be 0.
    return [
        {**{name: row[name] for name in said}, **{name: number(row[name]) for name in CERTIFIED_NUMBERS}}
        for row in rows
    ]


def training_curves(store: Store, cells: pd.DataFrame) -> list[dict[str, object]]:
    """The epochs of each classifier that was trained here: loss, accuracy on train and on test images."""
    curves = []
    for name, key in cells[["classifier", "classifier_key"]].drop_duplicates().itertuples(index=False):
        path = f"classifiers/{key}/training.parquet"
        rows = store.read_table(path, TRAINING).to_pandas() if store.exists(path) else pd.DataFrame()
        if len(rows):  # A person's own network has a table without epochs.
            columns = {column: [number(v) for v in rows[column]] for column in _curve_columns(rows)}
            curves.append({"classifier": name, "key": key, **columns})
    return curves


def _curve_columns(rows: pd.DataFrame) -> Sequence[str]:
    return [name for name in ("epoch", "lr", "loss", "train_accuracy", "test_accuracy", "seconds") if name in rows]
