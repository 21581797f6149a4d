"""Studies side by side: paired tests of the cells that two studies have of the same setting, on the points of both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mi_ray.choice import SETTING, THREAT
from mi_ray.figures.comparing import members, why_apart
from mi_ray.page.counts import Counts, Ints
from mi_ray.page.facts import ReadStudy, number
from mi_ray.statistics import PairedTest, holm, of_variant, paired_test
from mi_ray.store.manifest import of_same_images

ATTACK = ["attack", "attack_params", "knowledge"]
QUESTION = ["dataset", *SETTING, *(name for name in THREAT if name not in ATTACK)]  # of two cells that are compared
MOST = 2000  # comparisons that a page holds; it says of how many


@dataclass(frozen=True, eq=False)
class Side:
    """A study that is compared: how it was read, and the right draws of its cells."""

    loaded: ReadStudy
    counts: Counts


def comparisons(sides: Sequence[Side]) -> list[dict[str, object]]:
    """Every comparison of two studies: their positions, their cells' positions, and the paired test.

    Cells of the same classifier (by name), defense, N, goal, ε and attack are compared; where the other study has no such
    attack, all of its attacks on that setting are. A pair that is one result, by its key, has no test, nor have worst cases of
    other attacks, of which `apart` says so (`mi_ray.figures.comparing.why_apart`). P-values are corrected over all pairs of
    these studies (Holm). Variants of a study's options are left out, as `mi-ray compare` leaves them out, and so are studies of
    other images. Those that are tested come first and those of one result last: a page holds the first `MOST`.
    """
    rows: list[dict[str, object]] = []
    tests: list[PairedTest] = []
    worst_of = [members(of_variant(side.loaded.cells)) for side in sides]
    for left in range(len(sides)):
        for right in range(left + 1, len(sides)):
            for first, second in _pairs(sides[left].loaded, sides[right].loaded):
                own, other = sides[left].loaded.cells.iloc[first], sides[right].loaded.cells.iloc[second]
                told: dict[str, object] = {"studies": [left, right], "cells": [first, second]}
                if own["cell"] == other["cell"]:
                    rows.append({**told, "same": True})
                    continue
                if apart := why_apart(own, other, (worst_of[left], worst_of[right])):
                    rows.append({**told, "same": False, "apart": apart})
                    continue
                counts = _both(sides[left].counts, own["cell"], sides[right].counts, other["cell"])
                if counts is not None:
                    tests.append(paired_test(*counts, int(own["draws"]), int(other["draws"])))
                    rows.append({**told, "same": False, **_told(tests[-1])})
    corrected = iter(holm([test.p_value for test in tests]).tolist())
    found = [{**row, "p_holm": _p(next(corrected))} if "p" in row else row for row in rows]
    return sorted(found, key=lambda row: (row["same"], "apart" in row))


def _pairs(left: ReadStudy, right: ReadStudy) -> Iterator[tuple[int, int]]:
    """The positions of cells to compare: none of studies of other images, which may have the same name."""
    if not of_same_images(left.manifest, right.manifest):
        return
    known: dict[tuple[object, ...], list[int]] = {}
    for at, row in _done(right.cells):
        known.setdefault(tuple(row[QUESTION]), []).append(at)
    for at, row in _done(left.cells):
        rivals = known.get(tuple(row[QUESTION]), [])
        alike = [other for other in rivals if tuple(right.cells.iloc[other][ATTACK]) == tuple(row[ATTACK])]
        yield from ((at, other) for other in alike or rivals)


def _done(cells: pd.DataFrame) -> Iterator[tuple[int, "pd.Series[Any]"]]:
    """The finished cells of a study itself, and of none of its variants, which are of other options, by their positions."""
    own = set(of_variant(cells).index)
    for at, (label, row) in enumerate(cells.iterrows()):
        if row["state"] == "done" and label in own:
            yield at, row


def _both(left: Counts, own: str, right: Counts, other: str) -> tuple[Ints, Ints] | None:
    """Right draws of the two cells on the reported points of both studies; None where they share none."""
    places = {int(point): at for at, point in enumerate(right.points) if right.reported[at]}
    shared = [
        (at, places[int(point)]) for at, point in enumerate(left.points) if left.reported[at] and int(point) in places
    ]
    if not shared or own not in left.cells or other not in right.cells:
        return None
    here, there = ([pair[side] for pair in shared] for side in (0, 1))
    rows = left.right[left.cells[own]][here], right.right[right.cells[other]][there]
    both = (rows[0] >= 0) & (rows[1] >= 0)
    return (rows[0][both], rows[1][both]) if both.any() else None


def _told(test: PairedTest) -> dict[str, object]:
    numbers = {name: number(getattr(test, name)) for name in ("difference", "low", "high", "left_higher", "left_lower")}
    return {**numbers, "p": _p(test.p_value), "points": test.points, "method": test.method}


def _p(value: float) -> float:
    """A p-value rounded to three significant digits."""
    return float(f"{value:.3g}")
