"""Certified accuracy as it is drawn: its numbers from rows by hand, and what L2 attacks leave beside it."""

import json
from typing import Any

import pandas as pd
import pytest
from helpers.frames import cell

from mi_ray.figures.certified_accuracy import draw, facts

VOTE = {"of": [{"gaussian_noise": {"sigma": 0.25}}]}


def _certificates(sigma: float = 0.25, selection: int = 1) -> pd.DataFrame:
    """Five points: one that chooses settings, two right, one wrong, one abstained."""
    said = {"classifier": "f", "sigma": sigma, "n0": 10, "n": 100, "alpha": 0.01, "dataset": "digits"}
    told = [(3, 3, 0.9), (1, 1, 0.4), (2, 2, 0.2), (4, 0, 0.3), (5, -1, 0.0)]
    rows = [
        {**said, "label": y, "predicted": p, "radius": r, "selection": i < selection}
        for i, (y, p, r) in enumerate(told)
    ]
    return pd.DataFrame(rows)


def _attacked(epsilon: float, accuracy: float, **changes: Any) -> dict[str, Any]:
    attack = changes.pop("attack", "pgd" if epsilon else "none")
    return cell(
        "f", "vote", VOTE, attack, accuracy, **{"epsilon": epsilon, "norm": "l2", "goal": str(changes), **changes}
    )


def test_a_curve_is_certified_accuracy_at_every_radius_of_the_reported_points() -> None:
    table = facts(_certificates(), pd.DataFrame([cell("f", "none", {}, "none", 0.9)]))
    assert set(table["source"]) == {"certified"}
    assert table["points"].eq(4).all()
    at = table.set_index("radius")["accuracy"]
    assert at.index[0] == 0.0
    assert at.index[-1] == pytest.approx(0.404)
    assert at.iloc[-1] == 0.0
    for radius, share in at.items():
        assert share == sum(held >= radius for held in (0.4, 0.2)) / 4
    assert (table["accuracy_low"] <= table["accuracy"]).all()
    assert (table["accuracy"] <= table["accuracy_high"]).all()


def test_beside_it_stands_the_least_that_l2_attacks_leave_of_the_same_vote_alone() -> None:
    other = json.loads(json.dumps(VOTE).replace("0.25", "0.5"))
    cells = [
        _attacked(0.0, 0.8, norm="linf"),
        _attacked(0.2, 0.6),
        _attacked(0.2, 0.5, attack="apgd"),
        _attacked(0.2, 0.1, norm="linf"),
        _attacked(0.3, 0.2, state="failed"),
        {**_attacked(0.2, 0.3), "defense_params": json.dumps(other)},
        {**_attacked(0.2, 0.3), "classifier": "g"},
    ]
    table = facts(_certificates(), pd.DataFrame(cells))
    found = table[table["source"] == "attack"]
    assert dict(zip(found["radius"], found["accuracy"], strict=True)) == {0.0: 0.8, 0.2: 0.5}
    none = facts(_certificates(sigma=0.5), pd.DataFrame(cells))
    assert set(none["source"]) == {"certified"}


def test_what_a_variant_leaves_is_not_taken_for_the_studys_own() -> None:
    cells = [
        {**_attacked(0.0, 0.8), "variants": ["", "as_published"]},
        {**_attacked(0.2, 0.6), "variants": [""]},
        {**_attacked(0.2, 0.1), "variants": ["as_published"]},
    ]
    table = facts(_certificates(), pd.DataFrame(cells))
    assert table[table["source"] == "attack"].set_index("radius")["accuracy"].to_dict() == {0.0: 0.8, 0.2: 0.6}


def test_a_study_without_reported_certificates_is_refused() -> None:
    with pytest.raises(ValueError, match="certified accuracy needs finished certificates; this study has none"):
        facts(_certificates(selection=5), pd.DataFrame([cell("f", "none", {}, "none", 0.9)]))


def test_a_panel_a_classifier_and_a_line_a_sigma() -> None:
    both = pd.concat([_certificates(), _certificates(0.5), _certificates().assign(classifier="g")])
    table = facts(both, pd.DataFrame([_attacked(0.0, 0.8), _attacked(0.2, 0.5)]))
    figure = draw(table, "title", "note")
    assert [axes.get_title() for axes in figure.axes] == ["f", "g"]
    assert [len([line for line in axes.get_lines() if len(line.get_xdata()) > 2]) for axes in figure.axes] == [2, 1]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "σ = 0.25, n = 100",
        "σ = 0.5, n = 100",
        "what L2 attacks leave",
    ]
