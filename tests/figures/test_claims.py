"""Claims: what decides them, and that nothing stored means no verdict."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import mi_ray.figures.claims
from mi_ray.figures.claims import Claim, Measured, at_once, decided, facts, literature, read_claims, shown, told
from mi_ray.figures.claims import _among_themselves as among_themselves
from mi_ray.figures.claims import _chance as chance
from mi_ray.figures.claims import _chances as chances
from mi_ray.figures.claims import _verdict as verdict
from mi_ray.figures.reading import records_of
from mi_ray.figures.table2 import PAPER
from mi_ray.statistics import (
    Estimate,
    accuracy,
    auc_difference,
    auc_interval,
    detection_auc,
    mean_interval,
    paired_test,
)
from mi_ray.store.blocks import Store

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "sweeps/cifar10/claims.yaml"
PUBLISHED = ROOT / "docs/cifar10"


def claim(**changes: Any) -> Claim:
    base: dict[str, Any] = {"text": "", "where": "", "study": "s", "kind": "difference", "classifier": "f"}
    return Claim(**{**base, "left": {}, "right": {}, "attack": {"called": "a"}, "is_": "above", **changes})


def measured(value: float, half: float) -> Measured:
    return Measured(Estimate(value, value - half, value + half), 100, "")


@pytest.mark.parametrize(
    ("is_", "by", "value", "half", "holds", "refuted"),
    [
        ("above", 0.0, 0.05, 0.02, True, False),
        ("above", 0.0, -0.05, 0.02, False, True),
        ("above", 0.0, 0.0, 0.005, False, True),  # a gain of a point can be excluded
        ("above", 0.0, 0.0, 0.05, False, False),
        ("above", -0.1, -0.05, 0.02, True, False),
        ("above", -0.1, -0.095, 0.001, True, False),  # a bound of its own has no margin
        ("below", 0.05, 0.045, 0.001, True, False),
        ("below", 0.05, 0.055, 0.001, False, True),
        ("below", 0.0, -0.05, 0.02, True, False),
        ("below", 0.0, 0.05, 0.02, False, True),
        ("equal", 0.02, 0.0, 0.005, True, False),
        ("equal", 0.02, 0.05, 0.005, False, True),
        ("equal", 0.02, 0.02, 0.005, False, False),
    ],
)
def test_a_claim_holds_fails_or_is_left_open(
    is_: Any, by: float, value: float, half: float, holds: bool, refuted: bool
) -> None:
    p_for, p_against = chances(claim(is_=is_, by=by), measured(value, half))
    assert (p_for < 0.01, p_against < 0.01) == (holds, refuted)


def test_few_discordant_points_are_not_sure_of_a_bound() -> None:
    alike = paired_test([1] * 3 + [0] * 97, [1] * 3 + [0] * 97, 1)
    found = Measured(Estimate(alike.difference, alike.low, alike.high), 100, "", test=alike)
    at_most, _ = chances(claim(is_="below", by=0.05), found)
    assert (
        0.95**100 < at_most < 0.01
    )  # the exact chance of no discordant point where 5 % are, and not the normal one, 1e-4
    assert at_most > 10 * chances(claim(is_="below", by=0.05), replace(found, test=None))[0]
    assert found.p_above(0) == found.p_below(0) == 1.0


@pytest.mark.parametrize("values", [[0.5], [0.0], [0.0] * 5, [0.5] * 5])
def test_points_that_are_all_alike_decide_nothing(values: list[float]) -> None:
    mean = mean_interval(values)
    found = Measured(Estimate(mean.value, mean.low, mean.high), len(values), "")
    for is_ in ("above", "below", "equal"):
        assert chances(claim(is_=is_, by=0.0 if is_ != "equal" else 0.02), found) == (1.0, 1.0)


def test_a_share_is_held_against_one_half_exactly() -> None:
    for points, met in ((1, 1), (5, 5), (100, 70), (100, 50)):
        share = accuracy([1] * met + [0] * (points - met), 1)
        found = Measured(Estimate(share.value - 0.5, share.low - 0.5, share.high - 0.5), points, "", met=met)
        tail = sum(math.comb(points, k) for k in range(met, points + 1)) / 2**points
        assert found.p_above(0) == pytest.approx(tail)
        assert found.p_below(0) == pytest.approx(1 - tail + math.comb(points, met) / 2**points)
    assert Measured(Estimate(0.5, -0.3, 0.5), 1, "", met=1).p_above(0.01) == pytest.approx(0.51)


def test_a_verdict_on_a_refused_attack_says_so() -> None:
    told_of = {
        checks: told(pd.Series({"verdict": "holds", "checks": checks, "floor": False})) for checks in ("✓ –", "✗ ✓")
    }
    assert told_of == {"✓ –": "**holds**", "✗ ✓": "**holds** (on an attack that its checks refuse)"}


@pytest.mark.parametrize(("left", "right", "floor"), [(0.04, 0.01, True), (0.06, 0.01, False), (0.01, 0.3, False)])
def test_two_sides_that_leave_next_to_nothing_are_told_from_two_that_are_alike(
    left: float, right: float, floor: bool
) -> None:
    assert Measured(Estimate(left - right, -0.01, 0.02), 100, "✓", (left, right)).floor == floor
    told_of = told(pd.Series({"verdict": "undecided", "checks": "✓", "floor": floor}))
    assert ("next to nothing" in told_of) == floor


def test_between_two_sides_that_leave_next_to_nothing_only_the_wrong_side_of_0_refutes() -> None:
    def refuted(left: float, right: float) -> bool:
        found = Measured(Estimate(left - right, left - right - 0.004, left - right + 0.004), 1000, "✓", (left, right))
        return chances(claim(), found)[1] < 0.01

    assert refuted(0.01, 0.025)
    assert not refuted(0.01, 0.01)  # a gain of a point can be excluded, and there is no loss
    assert refuted(0.51, 0.51)


@pytest.mark.parametrize(
    ("value", "p_for", "p_against", "said"),
    [
        (0.1, 0.049, 1.0, "holds"),
        (0.1, 0.05, 1.0, "undecided"),
        (-0.1, 1.0, 0.049, "does not hold"),
        (-0.1, 1.0, 0.05, "undecided"),
        (math.nan, 0.0, 0.0, "not measured"),
    ],
)
def test_a_corrected_chance_below_one_in_twenty_decides(
    value: float, p_for: float, p_against: float, said: str
) -> None:
    assert verdict(pd.Series({"value": value, "p_for_holm": p_for, "p_against_holm": p_against})) == said


def test_of_hypotheses_that_touch_both_can_be_true_and_holm_counts_them() -> None:
    rows = [(0.1, 0.0, False), (0.1, -0.02, False), (0.0, 0.0, True), (math.nan, 0.0, False)]
    assert at_once(pd.DataFrame(rows, columns=["value", "by", "floor"])) == 3 + 2


def test_a_gain_is_at_the_floor_where_all_four_cells_are() -> None:
    found = Measured(Estimate(0.02, 0.01, 0.03), 100, "✓ ✓ ✓ ✓", (0.03, 0.01), highest=0.04)
    assert [found.floor, replace(found, highest=0.06).floor, replace(found, checks="").floor] == [True, False, False]


def test_a_claim_is_never_both_for_and_against_by_chance_alone() -> None:
    rng = np.random.default_rng(0)
    both = [chances(claim(), measured(value, 0.02)) for value in rng.normal(0, 0.0102, 2000)]
    for_, _ = np.mean(np.array(both) < 0.05, axis=0)
    assert 0.03 < for_ < 0.07  # the true difference is 0: one in twenty


def test_a_study_that_is_not_there_is_not_measured(tmp_path: Path) -> None:
    table = facts(Store(tmp_path, create=True), [claim()])
    assert table["verdict"].tolist() == ["not measured"]
    assert "–" in shown(table)["Measured"].tolist()


def test_two_studies_compare_where_they_are_of_the_same_images() -> None:
    clean = {"attack": "none", "called": "clean"}
    here = {"defense": "mi_ol", "lam": 0.6}
    claims = [
        claim(
            study="cifar10_table2",
            classifier="interpolated_at",
            left=here,
            right={**here, "study": study},
            attack=clean,
        )
        for study in ("cifar10_presets", "cifar10_mi_ol_worst")
    ]
    same, other = facts(Store(PUBLISHED), claims).to_dict("records")
    assert (same["value"], same["points"]) == (0.0, 1000)
    assert math.isnan(other["value"])
    assert "rows of the same points" in other["why"]


def test_a_claim_about_a_cell_that_failed_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    one = claim(
        study="cifar10_mi_ol_worst",
        classifier="interpolated_at",
        left={"defense": "mi_ol", "lam": 0.6},
        right={"defense": "none"},
        attack={"attack": "none", "called": "clean"},
    )
    read = mi_ray.figures.claims.read_study

    def failed(store: Store, study: str) -> Any:
        cells, names = read(store, study)
        of_claim = (cells["defense"] == "mi_ol") & (cells["attack"] == "none")
        return cells.assign(state=cells["state"].mask(of_claim, "failed")), names

    (before,) = facts(Store(PUBLISHED), [one]).to_dict("records")
    monkeypatch.setattr(mi_ray.figures.claims, "read_study", failed)
    (after,) = facts(Store(PUBLISHED), [one]).to_dict("records")
    assert before["verdict"] != after["verdict"] == "not measured"
    assert after["why"].startswith("0 cells of cifar10_mi_ol_worst fit")


def test_a_gain_in_another_study_is_over_no_defense_in_that_study() -> None:
    here, there = "cifar10_mi_ol_worst", "cifar10_others_worst"  # the first has no mixup at 8/255
    left = {"classifier": "interpolated_at", "defense": "mi_ol", "lam": 0.6}
    right = {"classifier": "mixup", "defense": "mi_ol", "lam": 0.5, "study": there}
    attack = {"called": "worst case", "attack": "worst_case", "epsilon": 8 / 255}
    (row,) = facts(Store(PUBLISHED), [claim(study=here, kind="gain", left=left, right=right, attack=attack)]).to_dict(
        "records"
    )
    wanted = []
    for study, classifier in ((here, "interpolated_at"), (there, "mixup")):
        cells = pd.read_parquet(PUBLISHED / "studies" / study / "cells.parquet")
        met = (cells["attack"] == "worst_case") & ((cells["epsilon"] - 8 / 255).abs() < 1e-6)
        left_of = cells[met & (cells["classifier"] == classifier)].set_index("defense")["accuracy"]
        wanted.append(left_of["mi_ol"] - left_of["none"])
    assert (row["points"], row["value"]) == (400, pytest.approx(wanted[0] - wanted[1]))


def test_the_claims_about_cifar10_are_read_with_their_fractions() -> None:
    claims = read_claims(FILE)
    assert len(claims) >= 30
    assert {found.kind for found in claims} == {"difference", "chosen", "gain", "detection", "condition", "mechanism"}
    assert claims[0].attack["epsilon"] == 8 / 255


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"kind": "guess"}, "must have a kind of difference"),
        ({"is": "higher"}, "`is` of above"),
        ({"odd": 1}, "no other keys"),
        ({"kind": "chosen", "left": {"study": "t"}}, "a side may be of another study in a kind of difference, gain"),
    ],
)
def test_a_bad_claim_is_refused_by_name(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    written = {"claim": "this one", "study": "s", "kind": "difference", "classifier": "f", "is": "above", **changes}
    (tmp_path / "claims.yaml").write_text(json.dumps({"attacks": {"clean": {"attack": "none"}}, "claims": [written]}))
    with pytest.raises(ValueError, match=f"'this one'.*{told}"):
        read_claims(tmp_path / "claims.yaml")


def test_the_difference_of_two_detectors_is_that_of_their_areas_and_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(200):
        base = rng.normal(size=200)
        left = base + rng.normal(size=200), base + 1 + rng.normal(size=200)
        right = base + 2 * rng.normal(size=200), base + 1 + 2 * rng.normal(size=200)
        found = auc_difference(left, right)
        assert np.isclose(found.value, auc_interval(*left).value - auc_interval(*right).value)
        # The areas are Φ(1 / sqrt(2 v)), v the variance of a score: 2 and 5.
        inside += found.low <= 0.6914625 - 0.6240852 <= found.high
    assert 180 <= inside <= 199


def test_what_others_measured_stands_beside_the_claim_that_speaks_of_it() -> None:
    claims = read_claims(FILE)
    table = pd.DataFrame(
        {
            "claim": [found.text for found in claims],
            "classifier": [found.classifier for found in claims],
            "attack": [str(found.attack["called"]) for found in claims],
            "variant": [found.variant or "honest" for found in claims],
            **{"left": 0.4, "right": 0.3, "value": 0.1, "low": 0.05, "high": 0.15, "checks": "✗ ✓"},
        }
    )
    for low, high, expected in ((0.05, 0.15, "same"), (-0.15, -0.05, "opposite"), (-0.1, 0.1, "open")):
        found = literature(FILE, table.assign(low=low, high=high))
        adds = found[~found["Of what"].str.startswith("clean")]
        assert set(adds["Direction"]) == {expected}
    assert found["Here"].iloc[0].startswith("40.0 − 30.0 = +10.0")
    assert (found["Here / there"].iloc[0], found["Checks"].iloc[0]) == ("0.56", "✗ ✓")  # 10 points of the 17.8 there


def test_what_the_paper_measured_is_what_its_table_says() -> None:
    written = yaml.safe_load(FILE.read_text(encoding="utf-8"))["literature"]
    own = [entry for entry in written if entry["source"].endswith("Table 2")]
    printed = {float(value) for row in PAPER.values.values() for value in row if not value.startswith("≤")}
    assert own
    assert all({entry["left"], entry["right"]} <= printed for entry in own)


@pytest.mark.parametrize(
    ("p_for", "p_against", "said"), [(0.0004, 1.0, "< 0.001"), (1.0, 0.0512, "0.051"), (math.nan, math.nan, "–")]
)
def test_the_chance_that_is_shown_is_the_smaller_of_both(p_for: float, p_against: float, said: str) -> None:
    assert chance(pd.Series({"p_for_holm": p_for, "p_against_holm": p_against})) == said


def test_a_claim_about_studies_of_other_images_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(store: Store, studies: Any) -> None:
        raise ValueError("studies must be of the same images")

    monkeypatch.setattr("mi_ray.figures.claims.refuse_other_images", refused)
    (row,) = facts(Store(PUBLISHED), [claim(study="cifar10_table2")]).to_dict("records")
    assert (row["verdict"], row["why"]) == ("not measured", "studies must be of the same images")


def test_detection_is_asked_of_all_images_or_of_those_of_eq_2_alone() -> None:
    sides = {"left": {"defense": "mi_pl", "lam": 0.5}, "right": {"defense": "mi_ol", "lam": 0.5}}
    attack = {"called": "PGD-10 8/255", "attack": "pgd", "steps": 10, "epsilon": 8 / 255, "goal": "untargeted"}
    same: dict[str, Any] = {
        "study": "cifar10_fig3a",
        "kind": "detection",
        "classifier": "interpolated_at",
        "attack": attack,
    }
    every, fooled = (facts(Store(PUBLISHED), [claim(**same, **sides, among=among)]).iloc[0] for among in ("all", "eq2"))
    left, right = (
        records_of(Store(PUBLISHED), rows["cell"].iloc[0])
        for rows in (
            _cells("cifar10_fig3a", classifier="interpolated_at", attack=name, defense="mi_pl", lam=0.5)
            for name in ("none", "pgd")
        )
    )
    both = left.merge(right, on="point", suffixes=("", "_attacked"))
    eq2 = (both["predicted_undefended"] == both["label"]) & (both["predicted_undefended_attacked"] != both["label"])
    reported = ~both["selection"]
    assert (every["points"], fooled["points"]) == (reported.sum(), (reported & eq2).sum())
    own = both[reported & eq2]
    assert fooled["left"] == pytest.approx(detection_auc(own["score"], own["score_attacked"]))


def _cells(study: str, *, lam: float, **columns: object) -> pd.DataFrame:
    """The cells of a published study with these values, and λ."""
    cells = pd.read_parquet(PUBLISHED / "studies" / study / "cells.parquet")
    fits = cells["defense_params"].map(lambda text: json.loads(text).get("lam") == lam)
    for column, value in columns.items():
        fits &= cells[column] == value
    return cells[fits]


def test_a_verdict_that_the_studys_own_claims_decide_is_told() -> None:
    """p = 0.02 survives the paper's one claim, and not the correction for nine others."""
    rows = [{"claim": str(n), "classifier": "f", "attack": "a", "said_by": "here", "p_for": 0.5} for n in range(9)]
    rows.append({"claim": "it gains", "classifier": "f", "attack": "a", "said_by": "paper", "p_for": 0.02})
    table = decided(pd.DataFrame(rows).assign(value=0.1, p_against=0.9, by=0.0, floor=False))
    assert set(table["verdict"]) == {"undecided"}
    assert "'it gains' (f, a) would be *holds*" in among_themselves(table)
    table.loc[9, "p_for"] = 0.2
    assert "none would have another verdict" in among_themselves(decided(table))


def test_a_claim_on_some_images_alone_is_one_of_detection(tmp_path: Path) -> None:
    said: dict[str, Any] = {"claim": "c", "study": "s", "classifier": "f", "attack": "a", "is": "above", "among": "eq2"}
    for kind, among, taken in (
        ("detection", "eq2", True),
        ("difference", "eq2", False),
        ("detection", "fooled", False),
    ):
        written = {"attacks": {"a": {}}, "claims": [{**said, "kind": kind, "among": among}]}
        (tmp_path / "claims.yaml").write_text(yaml.safe_dump(written))
        if taken:
            assert read_claims(tmp_path / "claims.yaml")[0].among == "eq2"
        else:
            with pytest.raises(
                ValueError, match=rf"among must be all, or eq2 in kind detection; got '{among}' in kind '{kind}'"
            ):
                read_claims(tmp_path / "claims.yaml")
