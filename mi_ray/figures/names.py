"""How a study's methods are called and drawn, and how attacks, parameters and radii are written.

A defense carries its label, colour and marker, and an attack its label, in its own class. A study copies them into its
manifest, from where they are read here, so that no list of methods stands in this folder.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from mi_ray.threat_model import MAX_NORM, MEASURES, NORMS, WORST_CASE

if TYPE_CHECKING:  # Reading frames imports it; a plan and a worker need not.
    import pandas as pd


Row: TypeAlias = "Mapping[str, Any] | pd.Series[Any]"  # of cells.parquet or of a table that was made of it

# Of defenses that bring none: Tol's muted palette, told apart with any colour vision, and markers that repeat out of step
# with it, so that sixty-three defenses look different.
SPARE_COLOURS = (
    "#882255",
    "#44AA99",
    "#332288",
    "#999933",
    "#CC6677",
    "#117733",
    "#88CCEE",
    "#AA4499",
    "#DDCC77",
)
SPARE_MARKERS = "sovD^Pp"
NOT_ATTACKS = {"none": "Clean", WORST_CASE: "Worst case"}  # what stands in the column `attack` and is no method
LENGTHS = ("steps", "queries", "tries")  # how long an attack runs: the first of these that it has ends its name
# Norms as the field writes them.
WRITTEN: Mapping[str, str] = {norm: measure.written for norm, measure in MEASURES.items()}
# The columns of a cell that say which attack met it.
WHICH = ("attack", "attack_params", "knowledge", "goal", "norm", "epsilon")
USUAL_LOSSES = (None, "cross_entropy_of_mean")  # not worth a word in a name


class LookText(TypedDict, total=False):
    """How a manifest writes the look of a defense, whose class may leave some of it open."""

    label: str
    colour: str
    marker: str


class Appearance(TypedDict, total=False):
    """What a manifest says under `appearance`: the looks of defenses, and the labels of attacks, by name."""

    defenses: Mapping[str, LookText]
    attacks: Mapping[str, str]


@dataclass(frozen=True)
class Look:
    """A defense in a legend: its label, its colour (as matplotlib takes it) and its marker (the same)."""

    label: str
    colour: str
    marker: str


@dataclass(frozen=True)
class Names:
    """The looks of a study's defenses and the labels of its attacks, by name; what has none is called by its name."""

    looks: Mapping[str, Look] = field(default_factory=dict)
    attack_labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, appearance: Appearance, defenses: Iterable[str]) -> "Names":
        """What a manifest says, and where it says nothing of one of the study's defenses its name and a spare colour."""
        known = appearance.get("defenses", {})
        spare = zip(itertools.cycle(SPARE_COLOURS), itertools.cycle(SPARE_MARKERS), strict=False)
        looks = {}
        for name in dict.fromkeys([*defenses, *known]):
            told = known.get(name, {})
            colour, marker = (told.get("colour", ""), told.get("marker", ""))
            if not colour or not marker:
                unused = next(spare)
                colour, marker = colour or unused[0], marker or unused[1]
            looks[name] = Look(told.get("label", name), colour, marker)
        return cls(looks, appearance.get("attacks", {}))

    def look(self, defense: str) -> Look:
        """How a defense is drawn."""
        return self.looks.get(defense) or Look(defense, SPARE_COLOURS[0], SPARE_MARKERS[0])

    def defense(self, name: str) -> str:
        """A defense's name as a legend writes it."""
        return self.look(name).label

    def attack(self, row: Row, extra: Sequence[str] = (), without: Sequence[str] = ()) -> str:
        """An attack without its threat model: PGD-10, EOT-PGD-50 (EOT 30), APGD-100 (dlr), Worst case.

        extra: parameters to name too, with their values. without: parameters not to name.
        """
        params = {key: value for key, value in json.loads(row["attack_params"]).items() if key not in without}
        name = NOT_ATTACKS.get(row["attack"]) or self.attack_labels.get(row["attack"], str(row["attack"]))
        length = next((params[key] for key in LENGTHS if params.get(key) is not None), None)
        name += "" if length is None else f"-{length}"
        notes = [] if params.get("eot") is None else [f"EOT {params['eot']}"]
        if params.get("loss") not in USUAL_LOSSES:
            notes.append(str(params["loss"]).replace("_", " "))
        notes += [f"{key} {_value(params[key])}".replace("_", " ") for key in extra if key in params]
        # That an attack averages over executions (EOT) says already that it knew the defense.
        said = row["attack"] in NOT_ATTACKS or json.loads(row["attack_params"]).get("eot") is not None
        known = "adaptive " if row["knowledge"] == "adaptive" and not said else ""
        return known + name + (f" ({', '.join(notes)})" if notes else "")

    def attacks(self, cells: "pd.DataFrame", axes: Sequence[str] = ()) -> list[str]:
        """`attack` of each row, and with it every parameter that tells attacks of one name and goal apart, or what they know.

        Only attacks at the same ε and at the same values of the axes, which are not named, are told apart: a step may
        fit ε, say, and still be of one attack.
        """
        which = cells.groupby([*WHICH], sort=False, dropna=False).ngroup()
        told = self._attacks(cells[~which.duplicated()], axes)  # A study has few attacks and many cells.
        return [told[number] for number in which]

    def _attacks(self, cells: "pd.DataFrame", axes: Sequence[str]) -> list[str]:
        """`attacks` of rows with an attack each."""
        rows, params = [row for _, row in cells.iterrows()], cells["attack_params"].map(json.loads)
        names = [self.attack(row, without=axes) for row in rows]
        keys = [(name, str(row["goal"])) for name, row in zip(names, rows, strict=True)]
        alike: dict[tuple[tuple[str, str], str, str, float], list[dict[str, object]]] = {}
        for key, row, found in zip(keys, rows, params, strict=True):
            alike.setdefault((key, self.attack(row), row["norm"], row["epsilon"]), []).append(found)
        telling: dict[tuple[str, str], dict[str, None]] = {}
        for (key, *_), group in alike.items():
            known = dict.fromkeys(name for found in group for name in found)
            differ = (name for name in known if len({json.dumps(found.get(name)) for found in group}) > 1)
            telling.setdefault(key, {}).update(dict.fromkeys(differ))
        told = [self.attack(row, tuple(telling[key]), axes) for key, row in zip(keys, rows, strict=True)]
        return [word + text for word, text in zip(_knowledge(told, rows), told, strict=True)]

    def threat(self, row: Row) -> str:
        """One attack as a title writes it: PGD-10, untargeted, ε = 0.05. Of several, `threats` tells them apart."""
        return with_threat(self.attack(row), row)

    def threats(self, cells: "pd.DataFrame") -> list[str]:
        """The attack of each row as columns write it: `attacks` with their threat models."""
        return [with_threat(name, row) for name, (_, row) in zip(self.attacks(cells), cells.iterrows(), strict=True)]


def _knowledge(told: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """What stands before each attack's name: what it knew, where the same attack was made with other knowledge too."""
    places = [(text, row["goal"], row["norm"], row["epsilon"]) for text, row in zip(told, rows, strict=True)]
    known: dict[tuple[object, ...], set[str]] = {}
    for place, row in zip(places, rows, strict=True):
        if row["attack"] not in NOT_ATTACKS:  # A worst case is one number, whatever the attacks in it knew.
            known.setdefault(place, set()).add(row["knowledge"])
    return [
        f"{row['knowledge'].replace('_', '-')} " if len(known.get(place, ())) > 1 else ""
        for place, row in zip(places, rows, strict=True)
    ]


def with_threat(name: str, row: Row) -> str:
    """An attack's name with its threat model: PGD-10, untargeted, ε = 0.05."""
    goal = "" if row["goal"] in ("any", "none") else f", {row['goal']}"
    return f"{name}{goal}, ε = {epsilon_text(row['epsilon'], row['norm'])}"


def norm_text(norm: str) -> str:
    """A norm as the field writes it: L2, L1. Rotation and shift are bounded by none, and stay the word spatial."""
    return WRITTEN.get(norm, norm)


def in_norm(norm: str) -> str:
    """What stands behind an ε of that norm: nothing behind one of the max norm, which is usual and which no name says."""
    return "" if norm == MAX_NORM else f" in {norm_text(norm)}" if norm in NORMS else f" ({norm_text(norm)})"


def epsilon_text(epsilon: float, norm: str = MAX_NORM) -> str:
    """ε as the field writes it: 8/255 where it is a whole number of grey levels of the max norm, else a decimal; 0.5 in L2.

    Of rotations and shifts it is a share: 0.5 (spatial).
    """
    if norm != MAX_NORM:
        return f"{epsilon:g}{in_norm(norm)}"
    levels = epsilon * 255
    return f"{levels:.0f}/255" if abs(levels - round(levels)) < 1e-6 and levels >= 1 else f"{epsilon:g}"


def radii_text(cells: "pd.DataFrame") -> str:
    """Every ε of some attacked cells, in the order of their norms and sizes."""
    balls = sorted(
        set(zip(cells["norm"], cells["epsilon"], strict=True)), key=lambda ball: (ball[0] != MAX_NORM, *ball)
    )
    return ", ".join(epsilon_text(epsilon, norm) for norm, epsilon in balls)


def _value(value: object) -> str:
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return " and ".join(map(_images, value))
    return epsilon_text(value) if isinstance(value, float) else str(value)


def _images(given: Mapping[str, object]) -> str:
    """Images that an attack begins with, as `attack_params` has them: of which attack, and of which other classifier."""
    method, of = next(name for name in given if name != "classifier"), given.get("classifier")
    return f"of {method}" + ("" if of is None else f" on {of}")


def same_value(stored: object, written: object) -> bool:
    """Whether a stored parameter has the value that somebody wrote, such as 8/255; a distribution has no number's."""
    if isinstance(stored, int | float) and isinstance(written, int | float):
        return abs(stored - written) < 1e-6
    return stored == (list(written) if isinstance(written, tuple) else written)


def parameters(defense_params: str, without: frozenset[str] = frozenset(), words: frozenset[str] = frozenset()) -> str:
    """A defense's parameters as a table writes them: its numbers and ranges, which a sweep varies.

    defense_params: as cells.parquet holds them. Flags and words, which options choose, are left out, but for those named in
    `words`.
    """
    return _parameters(json.loads(defense_params), without, words)


def settings_apart(cells: "pd.DataFrame") -> list[str]:
    """`parameters` of each cell's defense, with the flags and words by which settings differ that have the same numbers."""
    pairs = list(zip(cells["defense"], cells["defense_params"], strict=True))
    alike: dict[tuple[str, str], list[dict[str, object]]] = {}
    for defense, text in dict.fromkeys(pairs):
        alike.setdefault((defense, parameters(text)), []).append(json.loads(text))
    words: dict[str, set[str]] = {}
    for (defense, _), every in alike.items():
        differ = {key for key in every[0] if len({json.dumps(values.get(key)) for values in every}) > 1}
        words.setdefault(defense, set()).update(differ)
    return [parameters(text, words=frozenset(words[defense])) for defense, text in pairs]


def _parameters(
    values: Mapping[str, object], without: frozenset[str] = frozenset(), words: frozenset[str] = frozenset()
) -> str:
    """The same of values: of a defense that is made of others these, in their order."""
    shown = [
        _one(key, value)
        for key, value in values.items()
        if key not in without and (key in words or not isinstance(value, (bool, str))) and value is not None
    ]
    # The rotation's usual fill, which no study varies.
    return ", ".join(item for item in shown if item != "fill=0")


def _one(key: str, value: object) -> str:
    parts = value if isinstance(value, list) and all(isinstance(part, dict) for part in value) else []
    told = [f"{name} {_parameters(own)}".strip() for part in parts for name, own in part.items()]
    return " + ".join(told) if told else f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}"
