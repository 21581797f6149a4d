"""Claims about defenses, each decided by a program from stored rows: it holds, it does not hold, or it is undecided.

A file of claims says of each what is compared with what and which way the difference has to go. The difference is
measured with its interval on the reported points; whether it is above, below or equal to what the claim says is tested,
and all tests of a file are corrected together after Holm. A claim that nothing stored speaks of is `not measured`.
"""

import json
import math
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.stats
import yaml

from mi_ray.choice import choosing, frontier, picked
from mi_ray.figures import fig2, fig3a
from mi_ray.figures.names import parameters, same_value
from mi_ray.figures.reading import finished, read_study, records_of
from mi_ray.figures.tables import markdown
from mi_ray.figures.verdict_marks import mark
from mi_ray.statistics import (
    COUNTED,
    Estimate,
    PairedTest,
    accuracy,
    auc_difference,
    auc_interval,
    counts_of,
    detection_auc,
    discordant_p,
    holm,
    mean_interval,
    of_variant,
    paired_test,
)
from mi_ray.store.blocks import Store
from mi_ray.store.manifest import refuse_other_images
from mi_ray.store.read import read_records

SURE = 0.05  # the chance, after Holm's correction, of one wrong verdict among all claims of a file
FAILED = mark({"verdict": "failed"})
RELEVANT = 0.01  # a gain below one point of accuracy, AUC or probability is no gain
HALF = 0.5  # the AUC of a guess, and every second image
OF_CELLS = ("difference", "gain")  # kinds that compare single cells, which may be of two studies
FLOOR = 0.05  # where both sides leave less under attack, their difference says little of the two defenses
KNOWN = (
    *("claim", "where", "study", "kind", "classifier", "variant", "left", "right", "attack", "is", "by", "at", "lam"),
    *("ours", "among"),
)
Filter = Mapping[str, object]
Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Claim:
    """One claim of a file, on one attack.

    left, right, attack: which cells are compared, as name -> value of a column or of a parameter of attack or defense; a side
    may be of another study (`study`), where both have the same reported points. is_: whether left minus right is said to be
    "above" `by`, "below" it, or "equal" to 0 but for less than `by`. at: the most clean accuracy that a setting may give up
    (kind "chosen"). lam: λ (kinds "condition" and "mechanism"). ours: whether this study makes the claim, and not the paper.
    among: the points (kind "detection"): all, or those of Eq. 2 alone ("eq2"), right when clean and wrong when attacked.
    """

    text: str
    where: str
    study: str
    kind: str
    classifier: str
    left: Filter
    right: Filter
    attack: Filter
    is_: Literal["above", "below", "equal"]
    by: float = 0.0
    at: float = 0.1
    variant: str = ""
    lam: float | None = None
    ours: bool = False
    among: Literal["all", "eq2"] = "all"


@dataclass(frozen=True)
class Measured:
    """What stored rows say of a claim: the number with its 95 % interval, and one-sided p-values.

    checks: marks of the attacked cells' verdicts. sides: the two numbers whose difference the estimate is; None where it is
    a mean over points (kind "mechanism"). clean: clean accuracy of both sides, where these are two defenses. settings: the
    parameters of both, where the points for it have chosen them. highest: the highest accuracy of the cells that are compared;
    None where these are the sides. test: the paired test of two cells, which gives the p-values at 0, and at other levels where
    it is McNemar's. met: on how many of the points a condition is met, whose share less one half the estimate is; its p-values
    are exact. Without either, and at other levels, they are those of a normal distribution; where its error is not known, as of
    one point or of points that are all alike, nothing is decided.
    """

    estimate: Estimate
    points: int
    checks: str
    sides: tuple[float, float] | None = None
    clean: tuple[float, float] | None = None
    settings: tuple[str, str] | None = None
    highest: float | None = None
    test: PairedTest | None = None
    met: int | None = None

    @property
    def floor(self) -> bool:
        """Whether these are attacked cells that all leave next to nothing."""
        if not self.checks or self.sides is None:
            return False
        return (max(self.sides) if self.highest is None else self.highest) < FLOOR

    def p_above(self, level: float) -> float:
        """The chance of a number this high or higher, were the true one at `level`."""
        return self._chances(level)[0]

    def p_below(self, level: float) -> float:
        """The chance of a number this low or lower, were the true one at `level`."""
        return self._chances(level)[1]

    def _chances(self, level: float) -> tuple[float, float]:
        test = self.test
        if test is not None and level == 0:
            return test.p_greater, test.p_less
        if test is not None and test.method == "mcnemar":
            higher, lower = (round(share * test.points) for share in (test.left_higher, test.left_lower))
            return discordant_p(test.points, higher, lower, level)
        if self.met is not None:
            share = min(1.0, max(0.0, HALF + level))
            return (
                float(scipy.stats.binom.sf(self.met - 1, self.points, share)),
                float(scipy.stats.binom.cdf(self.met, self.points, share)),
            )
        error = (self.estimate.high - self.estimate.low) / (2 * float(scipy.stats.norm.ppf(0.975)))
        if not error > 0:
            return 1.0, 1.0
        away = (self.estimate.value - level) / error
        return float(scipy.stats.norm.sf(away)), float(scipy.stats.norm.cdf(away))


def read_claims(path: str | Path) -> list[Claim]:
    """The claims of a YAML file, one for each attack that a claim of the file names.

    The file holds `attacks`, name -> filter, and a list of `claims`. Raises ValueError, which names the claim and the rule,
    where a claim is not as it must be.
    """
    document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(document, Mapping) or not isinstance(document.get("claims"), list):
        raise ValueError(f"{path} must be a mapping with `attacks` and a list of `claims`")
    attacks = {str(name): _filter(written) for name, written in document.get("attacks", {}).items()}
    return [claim for written in document["claims"] for claim in _claims(written, attacks)]


def _claims(written: Mapping[str, Any], attacks: Mapping[str, Filter]) -> list[Claim]:
    told = str(written.get("claim"))
    unknown = [key for key in written if key not in KNOWN]
    if unknown or written.get("kind") not in KINDS or written.get("is") not in ("above", "below", "equal"):
        raise ValueError(
            f"claim {told!r} must have a kind of {', '.join(KINDS)}, `is` of above, below, equal, and no other keys than "
            f"{', '.join(KNOWN)}; got {dict(written)}"
        )
    elsewhere = [side for side in ("left", "right") if "study" in written.get(side, {})]
    if elsewhere and written["kind"] not in OF_CELLS:
        raise ValueError(
            f"claim {told!r}: a side may be of another study in a kind of {', '.join(OF_CELLS)}; got {elsewhere} in kind "
            f"{written['kind']!r}"
        )
    if written.get("among", "all") not in (("all", "eq2") if written["kind"] == "detection" else ("all",)):
        raise ValueError(
            f"claim {told!r}: among must be all, or eq2 in kind detection; got {written['among']!r} in kind {written['kind']!r}"
        )
    found = []
    named = written.get("attack", "clean")
    for name in named if isinstance(named, list) else [named]:
        if name not in attacks:
            raise ValueError(f"claim {told!r}: attack must be one of {', '.join(attacks)}; got {name!r}")
        filters = {key: value for key, value in attacks[name].items() if key != "ours"}
        found.append(
            Claim(
                text=told,
                where=str(written.get("where", "")),
                study=written["study"],
                kind=written["kind"],
                classifier=written["classifier"],
                left=_filter(written.get("left", {})),
                right=_filter(written.get("right", {})),
                attack={**filters, "called": name},
                is_=written["is"],
                by=float(written.get("by", 0)),
                at=float(written.get("at", 0.1)),
                variant=str(written.get("variant", "")),
                lam=written.get("lam"),
                ours=bool(written.get("ours") or attacks[name].get("ours")),
                among=written.get("among", "all"),
            )
        )
    return found


def _filter(written: Mapping[str, Any]) -> Filter:
    """A filter with its fractions, such as 8/255, as numbers."""

    def number(value: object) -> object:
        parts = value.split("/") if isinstance(value, str) else []
        return float(parts[0]) / float(parts[1]) if len(parts) == 2 else value

    return {key: number(value) for key, value in written.items()}


class NotMeasuredError(ValueError):
    """Says why a claim is not measured: nothing in the store is what it is about, or several things are."""


@dataclass(frozen=True)
class _Rows:
    """What a store holds of the studies that a claim is about: their finished cells, and the rows of each by its key."""

    store: Store
    cells: pd.DataFrame
    records: Mapping[str, pd.DataFrame]
    read: "dict[tuple[str, str], Changes]" = field(default_factory=dict)
    variants: dict[str, pd.DataFrame] = field(default_factory=dict)

    def of_variant(self, name: str) -> pd.DataFrame:
        """The cells of one variant of the studies' options."""
        if name not in self.variants:
            self.variants[name] = of_variant(self.cells, name)
        return self.variants[name]

    def changes(self, claim: Claim) -> "Changes":
        """What mixing changes at each setting under a claim's attack, read once for all claims of it."""
        place = claim.variant, str(claim.attack["called"])
        if place not in self.read:
            own = self.of_variant(claim.variant)
            wanted = {key: value for key, value in claim.attack.items() if key != "called"}
            attacked = _fitting(own[own["attack"] != "none"], wanted)
            cells = pd.concat([own[own["attack"] == "none"], attacked])
            # The figure is of the study's own options, and so of these.
            cells = cells.assign(variants=[[""]] * len(cells))
            found, _, classes = fig2.settings_of(self.store, cells)
            self.read[place] = found, classes
        return self.read[place]

    def counts(self, *cells: "pd.Series[Any]") -> npt.NDArray[np.int64]:
        """Correct draws of these cells on the points that all of them have, see `counts_of`."""
        wanted = [cell["cell"] for cell in cells]
        none = next(iter(self.records.values())).iloc[:0]
        return counts_of(pd.concat([self.records.get(key, none) for key in dict.fromkeys(wanted)]), wanted)

    def cell(self, claim: Claim, side: Filter, attack: Filter) -> "pd.Series[Any]":
        """The one cell that a claim's side is about. Raises NotMeasuredError where there is none or several."""
        wanted = {**{k: v for k, v in attack.items() if k != "called"}, **side}
        wanted = {k: v for k, v in wanted.items() if k not in ("variant", "classifier")}
        known = {"classifier": side.get("classifier", claim.classifier), "state": "done", "study": claim.study}
        found = _fitting(self.of_variant(str(side.get("variant", claim.variant))), {**known, **wanted})
        if len(found) != 1:
            raise NotMeasuredError(f"{len(found)} cells of {side.get('study', claim.study)} fit {wanted}")
        return found.iloc[0]


Changes = tuple[dict[tuple[str, str, float], pd.DataFrame], int]  # as `fig2.settings_of` has them, and how many classes


def _fitting(table: pd.DataFrame, wanted: Filter) -> pd.DataFrame:
    """The rows whose columns, or parameters of their attack or defense, are what is wanted."""
    at = np.arange(len(table))  # To take rows of so many columns takes longer than to compare them.
    texts = [table[name].to_numpy() for name in ("attack_params", "defense_params")]
    for key, value in wanted.items():
        pairs = zip(*(text[at] for text in texts), strict=True)
        column = table[key].to_numpy()[at].tolist() if key in table else None
        known = [_parameters(*pair).get(key) for pair in pairs] if column is None else column
        at = at[np.array([same_value(stored, value) for stored in known], bool)]
    return table.iloc[at]


@cache
def _parameters(attack: str, defense: str) -> dict[str, object]:
    return {**json.loads(attack or "{}"), **json.loads(defense or "{}")}


def _difference(rows: _Rows, claim: Claim) -> Measured:
    """Accuracy of one cell less that of another, on the same points."""
    left, right = (rows.cell(claim, side, claim.attack) for side in (claim.left, claim.right))
    found = _compared(rows, left, right)
    defenses = {(cell["defense"], cell["defense_params"]) for cell in (left, right)}
    if "none" in (left["defense"], right["defense"], left["attack"]) or len(defenses) == 1:
        return found
    return replace(found, clean=(float(left["clean_accuracy"]), float(right["clean_accuracy"])))


def _compared(rows: _Rows, left: "pd.Series[Any]", right: "pd.Series[Any]", accuracy: str = "accuracy") -> Measured:
    """The accuracy of one cell less that of another, on the same points. accuracy: the column of both that holds it."""
    counts = rows.counts(left, right)
    found = paired_test(counts[0], counts[1], int(left["draws"]), int(right["draws"]))
    checks = " ".join(mark(row) for row in (left, right) if row["attack"] != "none")
    estimate = Estimate(found.difference, found.low, found.high)
    sides = float(left[accuracy]), float(right[accuracy])
    return Measured(estimate, found.points, checks, sides, test=found)


def _chosen(rows: _Rows, claim: Claim) -> Measured:
    """Adversarial accuracy of one defense less that of another, each at the setting that the points for it choose.

    It is the setting that leaves most, under this attack, among those that give up at most so much clean accuracy.
    """
    table = frontier(rows.cells, claim.variant)
    wanted = {k: v for k, v in claim.attack.items() if k != "called"}
    table = _fitting(table[table["classifier"] == claim.classifier], wanted)
    balls = table[["norm", "epsilon"]].drop_duplicates()
    if len(balls) > 1:
        raise NotMeasuredError(f"attacks in {len(balls)} balls fit; norm and epsilon say which")
    if "none" not in set(table["defense"]):
        raise NotMeasuredError(
            f"no cell of F alone in {claim.study} fits {wanted}, against which clean accuracy is given up"
        )
    picks = picked(table, claim.at)
    found = []
    for side in (claim.left, claim.right):
        own = picks[(picks["defense"] == side["defense"]) & picks["within_budget"]]
        if own.empty:
            raise NotMeasuredError(
                f"no setting of {side['defense']} in {claim.study} costs at most {100 * claim.at:g} points"
            )
        if len(own) > 1:
            raise NotMeasuredError(f"{len(own)} attacks of {claim.study} fit {wanted}")
        found.append(own.iloc[0])
    left, right = found
    clean = float(left["clean"]), float(right["clean"])
    settings = parameters(left["defense_params"]), parameters(right["defense_params"])
    return replace(_compared(rows, left, right, "adversarial"), clean=clean, settings=settings)


def _gain(rows: _Rows, claim: Claim) -> Measured:
    """What a defense adds to one classifier less what it adds to another, on the same points."""
    gains, checks, highest = [], [], 0.0
    for side in (claim.left, claim.right):
        bare = {"defense": "none", **{key: side[key] for key in ("classifier", "study") if key in side}}
        cells = [rows.cell(claim, each, claim.attack) for each in (side, bare)]
        counts = rows.counts(*cells)
        defended, undefended = (each / int(cell["draws"]) for each, cell in zip(counts, cells, strict=True))
        gains.append(defended - undefended)
        checks += [mark(cell) for cell in cells]
        highest = max(highest, *(float(cell["accuracy"]) for cell in cells))
    mean = mean_interval(gains[0] - gains[1])
    sides = float(gains[0].mean()), float(gains[1].mean())
    return Measured(Estimate(mean.value, mean.low, mean.high), len(gains[0]), " ".join(checks), sides, highest=highest)


def _detection(rows: _Rows, claim: Claim) -> Measured:
    """AUC of a detector less that of another; less one half (a guess) where there is no other. On the claim's points (`among`).

    A side's `lam: chosen` is the λ with the highest AUC on the selection points. Its `turned: true` reads the score the other
    way round, so that what is low for attacked images detects them.
    """
    left, attacked = _scores(rows, claim, claim.left)
    own, other = auc_interval(*left), HALF
    estimate = Estimate(own.value - other, own.low - other, own.high - other)
    if claim.right:
        right = _scores(rows, claim, claim.right)[0]
        estimate, other = auc_difference(left, right), auc_interval(*right).value
    return Measured(estimate, len(left[0]), mark(attacked), (own.value, other))


def _scores(rows: _Rows, claim: Claim, side: Filter) -> tuple[tuple[Scores, Scores], "pd.Series[Any]"]:
    """The clean and the adversarial scores of a side's detector on the reported points, and its attacked cell."""
    what = {key: value for key, value in side.items() if key not in ("score", "turned")}
    score = str(side.get("score", "score"))
    if what.get("lam") == "chosen":
        fits = _fitting(rows.cells[rows.cells["classifier"] == claim.classifier], {"defense": what["defense"]})
        settings = sorted({float(_parameters("", text)["lam"]) for text in fits["defense_params"]})  # type: ignore[arg-type]
        each = {lam: _pair(rows, claim, {**what, "lam": lam}, score)[0] for lam in settings}
        picked_on = {lam: found[choosing(found["selection"])] for lam, found in each.items()}
        what["lam"] = max(
            settings, key=lambda lam: detection_auc(picked_on[lam]["clean"], picked_on[lam]["adversarial"])
        )
    found, attacked = _pair(rows, claim, what, score)
    sign = -1.0 if side.get("turned") else 1.0
    reported = found[~found["selection"] & (found["eq2"] | (claim.among == "all"))]
    if reported.empty:
        raise NotMeasuredError("no point is right when clean and wrong when attacked (Eq. 2)")
    return (sign * reported["clean"].to_numpy(), sign * reported["adversarial"].to_numpy()), attacked


def _pair(rows: _Rows, claim: Claim, what: Filter, score: str) -> tuple[pd.DataFrame, "pd.Series[Any]"]:
    """The scores of all points of one detector (see `fig3a.pair`), and its attacked cell."""
    attacked = rows.cell(claim, what, claim.attack)
    clean = rows.cell(claim, what, {"attack": "none"})
    return fig3a.pair(records_of(rows.store, clean["cell"]), records_of(rows.store, attacked["cell"]), score), attacked


def _changes(rows: _Rows, claim: Claim, side: Filter) -> tuple[pd.DataFrame, int]:
    """What mixing changes at the setting of one side of a claim, and the number of classes."""
    settings, classes = rows.changes(claim)
    found = settings.get((claim.classifier, str(side["defense"]), float(claim.lam or 0)))
    if found is None:
        raise NotMeasuredError(f"no {side['defense']} with lam {claim.lam} and counterparts in {claim.study}")
    return found, classes


def _condition(rows: _Rows, claim: Claim) -> Measured:
    """How much more often the condition of ideal linearity is met by one defense than by the other (Eq. 12, 15).

    It is asked of the points of Eq. 2 alone, right when clean and wrong when attacked, for which it is derived. A claim without
    another defense holds the share against one half.
    """
    met = []
    for side in filter(None, (claim.left, claim.right)):
        (found, classes), name = _changes(rows, claim, side), str(side["defense"])
        found = found[found["eq2"]]
        limits = [fig2.condition(name, k, float(claim.lam or 0), classes) for k in ("y", "pred")]
        met.append(((found["G_y"] > limits[0]) & (found["G_pred"] < limits[1])).to_numpy().astype(int))
    if len(met) == 1:
        share = accuracy(met[0], 1)
        estimate = Estimate(share.value - HALF, share.low - HALF, share.high - HALF)
        return Measured(estimate, len(met[0]), "", (share.value, HALF), met=int(met[0].sum()))
    test = paired_test(met[0], met[1], 1)
    sides = float(met[0].mean()), float(met[1].mean())
    estimate = Estimate(test.difference, test.low, test.high)
    return Measured(estimate, test.points, "", sides, test=test)


def _mechanism(rows: _Rows, claim: Claim) -> Measured:
    """The mean of one curve of Fig. 2 over points, such as what input transfer gives the true label (Eq. 13)."""
    found, _ = _changes(rows, claim, claim.left)
    mean = mean_interval(found[str(claim.left["curve"])])
    return Measured(Estimate(mean.value, mean.low, mean.high), len(found), "")


KINDS: dict[str, Callable[[_Rows, Claim], Measured]] = {
    "difference": _difference,
    "chosen": _chosen,
    "gain": _gain,
    "detection": _detection,
    "condition": _condition,
    "mechanism": _mechanism,
}


def _chances(claim: Claim, found: Measured) -> tuple[float, float]:
    """(p for the claim, p against it): a small first one confirms the claim, a small second one refutes it.

    A claim without a bound of its own (`by` is 0) is refuted where a gain of a whole point (`RELEVANT`) can be excluded; a claim
    that names a bound, where the number is on the wrong side of that bound. Where all that is compared leaves next to nothing, a
    gain of a point is excluded too easily, and what refutes is a number on the wrong side of 0.
    """
    margin = RELEVANT if claim.by == 0 and not found.floor else 0.0
    if claim.is_ == "above":
        return found.p_above(claim.by), found.p_below(claim.by + margin)
    if claim.is_ == "below":
        return found.p_below(claim.by), found.p_above(claim.by - margin)
    within = max(found.p_above(-claim.by), found.p_below(claim.by))
    return within, min(1.0, 2 * min(found.p_above(claim.by), found.p_below(-claim.by)))


def facts(store: Store, claims: Sequence[Claim]) -> pd.DataFrame:
    """One row per claim and attack: the number, its interval, both corrected chances, and the verdict."""
    read: dict[tuple[str, ...], _Rows | str] = {}
    of_study: dict[str, _OfStudy] = {}
    rows = []
    for claim in claims:
        studies = tuple(dict.fromkeys([claim.study, *_studies(claim)]))
        if studies not in read:
            read[studies] = _read(store, studies, of_study)
        rows.append(_row(claim, read[studies]))
    return decided(pd.DataFrame(rows))


def decided(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of `facts` with both chances corrected together for all of them, and the verdicts that follow."""
    measured = table["value"].notna()
    both: npt.NDArray[np.float64] = table.loc[measured, ["p_for", "p_against"]].to_numpy().T.ravel()
    corrected = holm(both, at_once(table)).reshape(2, -1) if both.size else np.empty((2, 0))
    table = table.assign(p_for_holm=math.nan, p_against_holm=math.nan)
    table.loc[measured, "p_for_holm"], table.loc[measured, "p_against_holm"] = corrected
    return table.assign(verdict=[_verdict(row) for _, row in table.iterrows()])


def at_once(table: pd.DataFrame) -> int:
    """How many null hypotheses of a table of claims can be true together, which is what Holm's correction is for.

    Each claim that was measured has two. Both are true only exactly at a bound that the claim names, or at 0 where all
    that is compared leaves next to nothing; else they are a whole point (`RELEVANT`) apart, so that one at most is true.
    """
    measured = table[table["value"].notna()]
    return int(len(measured) + ((measured["by"] != 0) | measured["floor"].astype(bool)).sum())


def _studies(claim: Claim) -> list[str]:
    """The studies that the sides of a claim name themselves."""
    return [str(side["study"]) for side in (claim.left, claim.right) if "study" in side]


_OfStudy = tuple[pd.DataFrame, dict[str, pd.DataFrame]]  # a study's cells, and the rows of each by its key


def _read(store: Store, studies: Sequence[str], known: dict[str, _OfStudy]) -> "_Rows | str":
    """What is stored of some studies, or why none of it counts. known: of studies that were read before; the others join them."""
    try:
        refuse_other_images(store, studies)
        for study in studies:
            if study not in known:
                cells, _ = read_study(store, study)
                finished(cells, "a claim needs finished cells")
                rows = read_records(store, study, columns=COUNTED)
                known[study] = cells, {str(key): each for key, each in rows.groupby("cell", sort=False)}
        own = [known[study] for study in studies]
        return _Rows(
            store, pd.concat([cells for cells, _ in own], ignore_index=True), ChainMap(*(rows for _, rows in own))
        )
    except (ValueError, FileNotFoundError) as error:
        return str(error).replace(store.uri, "the store")


def _row(claim: Claim, rows: "_Rows | str") -> dict[str, Any]:
    told = {
        "claim": claim.text,
        "where": claim.where,
        "study": claim.study,
        "classifier": claim.classifier,
        "variant": claim.variant or "honest",
        "attack": claim.attack["called"],
        "is": claim.is_,
        "by": claim.by,
        "at": claim.at if claim.kind == "chosen" else math.nan,
        "said_by": "here" if claim.ours else "paper",
    }
    none: dict[str, Any] = dict.fromkeys(
        (
            *("value", "low", "high", "left", "right", "clean_left", "clean_right", "points"),
            *("p_for", "p_against", "p_for_holm", "p_against_holm"),
        ),
        math.nan,
    )
    none |= {"setting_left": "", "setting_right": "", "floor": False, "checks": ""}
    if isinstance(rows, str):
        return {**told, **none, "why": rows}
    try:
        found = KINDS[claim.kind](rows, claim)
    except ValueError as error:
        return {**told, **none, "why": str(error)}
    p_for, p_against = _chances(claim, found)
    numbers = {"value": found.estimate.value, "low": found.estimate.low, "high": found.estimate.high}
    numbers |= {"points": found.points, "p_for": p_for, "p_against": p_against}
    numbers |= dict(zip(("left", "right"), found.sides or (), strict=False))
    numbers |= dict(zip(("clean_left", "clean_right"), found.clean or (), strict=False))
    settings = dict(zip(("setting_left", "setting_right"), found.settings or (), strict=False))
    return {**told, **none, **numbers, **settings, "floor": found.floor, "checks": found.checks, "why": ""}


def _verdict(row: "pd.Series[Any]") -> str:
    """A row's verdict, from its two corrected chances."""
    if math.isnan(row["value"]):
        return "not measured"
    if row["p_for_holm"] < SURE:
        return "holds"
    return "does not hold" if row["p_against_holm"] < SURE else "undecided"


def told(row: "pd.Series[Any]") -> str:
    """A row's verdict as Markdown, with a word where its attack's own checks refuse it, or where both sides are at the floor."""
    refused = " (on an attack that its checks refuse)" if FAILED in str(row["checks"]) else ""
    floor = f" (all leave next to nothing, under {100 * FLOOR:.0f} %)" if row["floor"] else ""
    return f"**{row['verdict']}**{refused}{floor}"


def in_points(row: "pd.Series[Any]") -> str:
    """A row's number in points with its interval; a dash where nothing was measured.

    Before it stand the two numbers whose difference it is, and behind it the clean accuracy of both sides and the settings that
    were chosen, where the row has them.
    """
    if math.isnan(row["value"]):
        return "–"
    sides = "" if math.isnan(row["left"]) else f"{100 * row['left']:.1f} − {100 * row['right']:.1f} = "
    clean = row.get("clean_left", math.nan)
    costs = "" if math.isnan(clean) else f", clean {100 * clean:.1f} and {100 * row['clean_right']:.1f}"
    settings = f", at {row['setting_left']} and {row['setting_right']}" if row.get("setting_left") else ""
    return f"{sides}{100 * row['value']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]{costs}{settings}"


def _chance(row: "pd.Series[Any]") -> str:
    """The corrected chance of a row's verdict, as text; of an undecided one the smaller of both."""
    chance = min(row["p_for_holm"], row["p_against_holm"])
    return "–" if math.isnan(chance) else "< 0.001" if chance < 0.001 else f"{chance:.3f}"


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `facts` as texts for readers, with differences and their intervals in points (hundredths)."""
    said = {"above": "> {:+.0f}", "below": "< {:+.0f}", "equal": "within ±{:.0f}"}
    return pd.DataFrame(
        {
            "Claim": table["claim"],
            "Where": table["where"],
            "Said by": table["said_by"],
            "Classifier": table["classifier"],
            "Under": [
                f"{attack}, {variant}" for attack, variant in zip(table["attack"], table["variant"], strict=True)
            ],
            "Says": [
                said[how].format(100 * by) + ("" if math.isnan(at) else f", each for at most {100 * at:g} clean")
                for how, by, at in zip(table["is"], table["by"], table["at"], strict=True)
            ],
            "Measured": [in_points(row) for _, row in table.iterrows()],
            "Images": ["–" if math.isnan(points) else f"{points:.0f}" for points in table["points"]],
            "p": [_chance(row) for _, row in table.iterrows()],
            "Checks": table["checks"],
            "Verdict": [told(row) for _, row in table.iterrows()],
        }
    )


def literature(path: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """What others measured, from a file's `literature`, beside the claim of the same file that speaks of it.

    The direction is the same where our whole interval lies on that side of 0 on which their difference lies, opposite where
    it lies on the other side, and open otherwise. table: `facts` of the file.
    """
    document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    keys = ["claim", "classifier", "attack", "variant"]
    named = table.drop_duplicates(keys).set_index(keys)
    rows = []
    for entry in document.get("literature", []):
        row = named.loc[(entry["claim"], entry["classifier"], entry["attack"], entry.get("variant", "honest"))]
        theirs = entry["left"] - entry["right"]
        same, opposite = (row["low"] > 0, row["high"] < 0) if theirs > 0 else (row["high"] < 0, row["low"] > 0)
        rows.append(
            {
                "Source": entry["source"],
                "Of what": entry["says"],
                "There": f"{entry['left']:g} − {entry['right']:g} = {theirs:+.1f}",
                "Here": in_points(row) + ("" if row.name[3] == "honest" else f" ({row.name[3]})"),
                "Here / there": f"{100 * row['value'] / theirs:.2f}",
                "Checks": row["checks"],
                "Direction": "same" if same else "opposite" if opposite else "open",
            }
        )
    return pd.DataFrame(rows)


def _among_themselves(table: pd.DataFrame) -> str:
    """Which of the paper's claims would have another verdict, were they corrected without this study's own."""
    paper = table[table["said_by"] == "paper"]
    alone = decided(paper)
    others = paper[alone["verdict"] != paper["verdict"]]
    if others.empty:
        return "Were the paper's claims corrected among themselves alone, none would have another verdict."
    told = [
        f"{row['claim']!r} ({row['classifier']}, {row['attack']}) would be *{alone.loc[place, 'verdict']}*"
        for place, row in others.iterrows()
    ]
    return f"Were the paper's claims corrected among themselves alone, {'; '.join(told)}."


def document(table: pd.DataFrame) -> str:
    """The table of `facts` as Markdown, with a note that says how the claims were decided."""
    measured = int(table["value"].notna().sum())
    lines = (
        "**How to read it.**\n",
        "- *Measured*: left minus right in points (hundredths of accuracy, AUC or probability), with the 95 % interval over the "
        "reported images; each number is rounded by itself. Of two defenses the clean accuracy of both stands behind it, and the "
        "difference is to be read with it. Of how networks trained alike differ the interval says nothing.",
        "- *Said by*: the paper, or this study, which asks more of it (other radii, bounds and attacks).",
        "- *Holds*: the number is on the side that the claim says (within its bounds, for equality). *Does not hold*: a gain "
        f"of {100 * RELEVANT:.0f} point or more on that side can be excluded (so a true gain below that counts as none), or the "
        f"number is beyond the bound that the claim names; where all that is compared leaves less than {100 * FLOOR:.0f} %, it "
        "is on the wrong side of 0. *Undecided*: neither. That includes intervals without 0 in them that do not survive the "
        "correction.",
        f"- *p*: the chance of such a number were the verdict's opposite true, corrected for all claims together and held "
        f"against {100 * SURE:.0f} %; of an undecided claim the smaller of both. Each of {measured} claims is tested either way, "
        f"and at most {at_once(table)} of these {2 * measured} null hypotheses can be true at once: Holm's correction multiplies "
        f"the smallest p by as many. {_among_themselves(table)}",
        "- *For at most so much clean*: of each defense the setting is compared that leaves most on the selection points among "
        "those that cost at most so many points of clean accuracy.",
        "- *Checks*: the verdict on each of the attacks ([checks](checks.md)); of an oblivious attack it says nothing of what an "
        "adaptive one leaves. A claim on an attack that its checks refuse (✗) says what this attack leaves, and not what the "
        "defense withstands.",
    )
    return markdown(shown(table), "\n".join(lines))


def decide(store: str | Path, claims: str | Path, out: str | Path) -> list[Path]:
    """Decide the claims of a file from a store; writes claims.md and claims.csv into a folder and returns the two files."""
    table = facts(Store(store), read_claims(claims))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"claims.md": document(table), "claims.csv": table.to_csv(index=False)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in files]
