"""How tables and figures show what the checks of a cell said: marks, and the notes that explain them."""

import json
from typing import TYPE_CHECKING

from mi_ray.choice import SETTING
from mi_ray.figures.names import Names, Row, parameters
from mi_ray.threat_model import WORST_CASE

if TYPE_CHECKING:  # Reading frames imports it; a plan need not.
    import pandas as pd


MARKS = {"passed": "✓", "failed": "✗"}
NOT_JUDGED = "–"
OBLIVIOUS = "oblivious attacks saw F alone, and so did their controls"
ONE_DRAW = "with one draw, the draw that reports a worst case has chosen it: behind a random defense it is too low"
ABOVE = (
    "a worst case may lie above one of its attacks, since each draw is reported under the attack that the other draws choose; "
    "the lower number is then the one to quote"
)
NO_BLACK_BOX = "No ✓ here was held against a black box, which tells masked gradients."
EXPLAINED = (
    "✓ the checks of the cell's attack passed, ✗ one failed (its number is not to be quoted as it stands), "
    f"{NOT_JUDGED} no control was run, or it could not tell."
)


def mark(row: Row) -> str:
    """A cell's verdict: ✓ its checks passed, ✗ one failed, – no control was run, or it could not tell (docs/checks.md)."""
    return MARKS.get(str(row.get("verdict")), NOT_JUDGED)


def failed_checks(row: Row) -> dict[str, str]:
    """The checks that a cell failed, by name, each with why."""
    text = row.get("checks")
    found = json.loads(text) if isinstance(text, str) else {}
    return {name: said["why"] for name, said in found.items() if said["state"] == "failed"}


def checks_footnote(cells: "pd.DataFrame", names: Names) -> str:
    """What the marks in a table mean, and which checks its cells failed: how many cells, and what the first one says."""
    attacked = cells[(cells["state"] == "done") & (cells["attack"] != "none")]
    told: dict[str, list[str]] = {}
    for threat, (_, row) in zip(names.threats(attacked), attacked.iterrows(), strict=True):
        for name, why in failed_checks(row).items():
            values = parameters(row["defense_params"])
            setting = f"{names.defense(row['defense'])}{f' {values}' if values else ''}"
            where = f"{row['classifier']}, {setting}, N = {row['executions']}, {threat}"
            told.setdefault(name, []).append(f"{where}: {why}")
    parts = [EXPLAINED]
    if few := _fewer_judged(attacked):
        parts.append(few)
    if _without_black_box(attacked):
        parts.append(NO_BLACK_BOX)
    if alone := list(dict.fromkeys(names.attack(row) for _, row in _oblivious(attacked).iterrows())):
        # By name: no column says of an attack that it is oblivious.
        saw = f"Oblivious attacks ({', '.join(alone)}) saw F alone, and so did their controls"
        parts.append(f"{saw}; there ✓ says nothing of the defense.")
    if _chosen_by_itself(attacked):
        parts.append(f"{ONE_DRAW[0].upper()}{ONE_DRAW[1:]} (docs/honest-evaluation.md).")
    if _above_a_member(attacked):
        parts.append(f"{ABOVE[0].upper()}{ABOVE[1:]} (docs/honest-evaluation.md).")
    failed = [f"{name} in {len(which)} (first {which[0]})" for name, which in told.items()]
    if failed:
        parts.append(f"Failed checks of {len(attacked)} attacked cells: {'; '.join(failed)}.")
    return " ".join([*parts, "docs/checks.md says what each check means."])


def _fewer_judged(attacked: "pd.DataFrame") -> str:
    """On how many points the reference was run that a ✓ rests on; nothing where these are all that are reported."""
    judged = set[tuple[int, int]]()
    for _, row in attacked[(attacked["verdict"] == "passed") & attacked["checks"].notna()].iterrows():
        points = int(json.loads(row["checks"]).get("reference", {}).get("points", 0))
        if 0 < points < row["points"]:
            judged.add((points, int(row["points"])))
    if not judged:
        return ""
    told = " or ".join(f"{points:,} of the {reported:,}" for points, reported in sorted(judged))
    return f"The reference that a ✓ rests on was run on {told} points: the fewer, the larger the faults that it tells."


def _without_black_box(attacked: "pd.DataFrame") -> bool:
    """Whether there are ✓ of attacks that a black box can be held against, and it was held against none of them."""
    able = attacked["norm"].isin(["linf", "l2"]) & (attacked["goal"] == "untargeted")
    passed = attacked[able & (attacked["verdict"] == "passed") & attacked["checks"].notna()]
    states = [json.loads(text).get("black_box_not_stronger", {}).get("state") for text in passed["checks"]]
    return bool(states) and "passed" not in states


def checks_note(cells: "pd.DataFrame") -> str:
    """What a figure says of crossed cells, of oblivious attacks and of worst cases by one draw, in a few words; nothing where
    there are none."""
    attacked = cells[cells["attack"] != "none"]
    failed = [name for _, row in attacked.iterrows() for name in failed_checks(row)]
    counted = ", ".join(f"{name} ({failed.count(name)})" for name in dict.fromkeys(failed))
    crossed = f"checks failed (✗) by some of these {len(attacked)} attacked cells: {counted}" if counted else ""
    judged = bool(attacked["verdict"].isin(MARKS).any())
    told = {
        OBLIVIOUS: len(_oblivious(attacked)) > 0 and judged,
        "no control of these attacks was run": not judged,
        ONE_DRAW: _chosen_by_itself(attacked),
        crossed: bool(crossed),
    }
    return "; ".join(text for text, there in told.items() if there)


def _chosen_by_itself(attacked: "pd.DataFrame") -> bool:
    """Whether there are worst cases behind defenses, all of one draw, as a deterministic defense's always are."""
    behind = attacked[attacked["defense"] != "none"]
    return bool((behind["attack"] == WORST_CASE).any() and (behind["draws"] == 1).all())


def _above_a_member(attacked: "pd.DataFrame") -> bool:
    """Whether a worst case of several draws leaves more than a single attack on the same setting in the same ball."""
    place = [*SETTING, "norm", "epsilon"]
    worst = attacked["attack"] == WORST_CASE
    lowest = attacked[~worst].groupby(place)["accuracy"].min()
    both = attacked[worst & (attacked["draws"] > 1)].set_index(place)["accuracy"]
    return bool((both > lowest.reindex(both.index)).any())


def _oblivious(attacked: "pd.DataFrame") -> "pd.DataFrame":
    """The defended cells under an attack that knew no defense."""
    alone = (attacked["knowledge"] == "oblivious") & (attacked["defense"] != "none")
    return attacked[alone & (attacked["attack"] != WORST_CASE)]
