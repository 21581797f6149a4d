"""How attacks and defenses are named and drawn, and how tables say what checks found."""

import json
from typing import Any

import pytest
from helpers.frames import APPEARANCE, NAMES, adaptive, cell, eot_pgd, failed, frame

from mi_ray.figures import fig4
from mi_ray.figures.names import Appearance, Names, parameters
from mi_ray.figures.verdict_marks import OBLIVIOUS, ONE_DRAW, checks_footnote, checks_note, mark


def test_marks_follow_the_verdict() -> None:
    assert [mark({"verdict": state}) for state in ("passed", "failed", "not run", None)] == ["✓", "✗", "–", "–"]


def test_the_footnote_counts_each_failed_check_and_quotes_the_first() -> None:
    bad = [
        cell("a", "mi_ol", {"lam": lam}, "pgd", 0.3, verdict="failed", checks=failed("large_epsilon", f"left {lam}"))
        for lam in (0.5, 0.6)
    ]
    note = checks_footnote(frame(cell("a", "none", {}, "none", 0.9), *bad), NAMES)
    assert "Failed checks of 2 attacked cells: large_epsilon in 2 (first a, MI-OL lam=0.5, N = 10, PGD-10" in note
    assert "left 0.5" in note
    assert "left 0.6" not in note
    assert "in_ball" not in note


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (cell("a", "none", {}, "pgd", 0.1), "PGD-10, untargeted, ε = 8/255"),
        (cell("a", "none", {}, "pgd", 0.1, norm="l2", epsilon=1.0), "PGD-10, untargeted, ε = 1 in L2"),
        (cell("a", "mi_ol", {}, "pgd", 0.1, knowledge="adaptive"), "adaptive PGD-10, untargeted, ε = 8/255"),
        (cell("a", "mi_ol", {}, "eot_pgd", 0.1, **adaptive(50, 30)), "EOT-PGD-50 (EOT 30), untargeted, ε = 8/255"),
        (cell("a", "mi_ol", {}, "averaged", 0.1, **adaptive(10, 5)), "Averaged PGD-10 (EOT 5), untargeted, ε = 8/255"),
        (
            cell("a", "none", {}, "worst_case", 0.1, goal="any", attack_params="{}", epsilon=0.04),
            "Worst case, ε = 0.04",
        ),
        (
            cell("a", "none", {}, "square", 0.1, attack_params=json.dumps({"queries": 500})),
            "Square-500, untargeted, ε = 8/255",
        ),
        (
            cell("a", "none", {}, "apgd", 0.1, attack_params='{"steps": 9, "loss": "dlr"}'),
            "APGD-9 (dlr), untargeted, ε = 8/255",
        ),
    ],
)
def test_attacks_are_named_as_the_field_names_them(row: dict[str, Any], name: str) -> None:
    assert NAMES.threat(row) == name


def test_attacks_of_one_name_are_told_apart_by_the_parameters_that_differ() -> None:
    rows = [eot_pgd(0.3), eot_pgd(0.2, branch="fallback"), eot_pgd(0.2, branch="fallback", step_size=2 / 255)]
    assert NAMES.attacks(frame(*rows)) == [
        "EOT-PGD-50 (EOT 30, branch whole, step size 1/255)",
        "EOT-PGD-50 (EOT 30, branch fallback, step size 1/255)",
        "EOT-PGD-50 (EOT 30, branch fallback, step size 2/255)",
    ]
    assert NAMES.threats(frame(rows[0])) == ["EOT-PGD-50 (EOT 30), untargeted, ε = 8/255"]


def test_attacks_that_differ_at_one_epsilon_alone_are_told_apart_at_every_epsilon() -> None:
    rows = [eot_pgd(0.3, 2 / 255), eot_pgd(0.3), eot_pgd(0.3, step_size=2 / 255)]
    assert NAMES.attacks(frame(*rows)) == [
        "EOT-PGD-50 (EOT 30, step size 1/255)",
        "EOT-PGD-50 (EOT 30, step size 1/255)",
        "EOT-PGD-50 (EOT 30, step size 2/255)",
    ]


def test_one_attack_with_two_kinds_of_knowledge_is_two_and_a_worst_case_is_one() -> None:
    asked = [cell("a", "mi_ol", {}, "square", 0.1, knowledge=known) for known in ("oblivious", "black_box")]
    worst = [
        cell("a", "mi_ol", {}, "worst_case", 0.1, goal="any", attack_params="{}", knowledge=known)
        for known in ("oblivious", "adaptive")
    ]
    told = NAMES.attacks(frame(*asked, *worst))
    assert told == ["oblivious Square-10", "black-box Square-10", "Worst case", "Worst case"]
    assert NAMES.attacks(frame(*asked[1:], *worst)) == ["Square-10", "Worst case", "Worst case"]


def test_a_step_that_fits_epsilon_is_of_one_attack_and_what_is_named_is_named_at_every_epsilon() -> None:
    fits = [eot_pgd(0.3), eot_pgd(0.5, 2 / 255, step_size=1 / 1020)]
    assert set(NAMES.attacks(frame(*fits))) == {"EOT-PGD-50 (EOT 30)"}
    names = NAMES.attacks(frame(*fits, eot_pgd(0.2, branch="fallback")))
    assert names == [f"EOT-PGD-50 (EOT 30, branch {branch})" for branch in ("whole", "whole", "fallback")]


def test_lengths_and_samples_are_axes_of_fig4_and_not_named() -> None:
    rows = [eot_pgd(0.3), eot_pgd(0.4, steps=10, eot=1, step_size=2 / 255)]
    assert NAMES.attacks(frame(*rows), fig4.AXES) == ["EOT-PGD", "EOT-PGD"]


def test_the_loss_is_named_where_it_is_not_the_usual_one() -> None:
    assert NAMES.attack(eot_pgd(0.3)) == "EOT-PGD-50 (EOT 30)"
    assert NAMES.attack(eot_pgd(0.3, loss="mean_cross_entropy")) == "EOT-PGD-50 (EOT 30, mean cross entropy)"


def test_notes_say_that_an_oblivious_attack_did_not_see_the_defense() -> None:
    oblivious = frame(cell("a", "mi_ol", {}, "pgd", 0.3))
    said = checks_footnote(frame(cell("a", "mi_ol", {}, "pgd", 0.3), eot_pgd(0.3)), NAMES)
    told = f"Oblivious attacks ({NAMES.attack(oblivious.iloc[0])}) saw F alone, and so did their controls"
    assert f"{told}; there ✓ says nothing of the defense" in said
    assert checks_note(oblivious) == OBLIVIOUS
    for told in (frame(cell("a", "none", {}, "pgd", 0.3)), frame(eot_pgd(0.3))):
        assert "saw F alone" not in checks_footnote(told, NAMES)
        assert checks_note(told) == ""


def test_notes_say_where_a_worst_case_was_chosen_by_the_draw_that_reports_it() -> None:
    rows = [cell("a", "mi_ol", {}, "worst_case", 0.3), cell("a", "mi_ol", {}, "none", 0.9)]
    for draws, undefended, told in ((1, 1, True), (3, 1, False), (1, 3, True)):
        cells = frame(
            *({**row, "draws": draws} for row in rows), {**cell("a", "none", {}, "none", 0.9), "draws": undefended}
        )
        assert (checks_note(cells) == ONE_DRAW) == told
        assert ("behind a random defense it is too low" in checks_footnote(cells, NAMES)) == told


def test_names_and_looks_are_those_of_the_manifest_and_others_take_spare_colours_in_the_studys_order() -> None:
    partly: Appearance = {"defenses": {**APPEARANCE["defenses"], "other": {"label": "My other"}}}
    assert Names.of(partly, ["mine", "other"]).look("other").label == "My other"
    assert len({Names.of(partly, ["mine", "other"]).look(name).colour for name in ("mine", "other")}) == 2
    names = Names.of(APPEARANCE, ["mine", "mi_ol", "other"])
    assert names.look("mi_ol").label == "MI-OL"
    assert names.look("mi_ol").colour == APPEARANCE["defenses"]["mi_ol"]["colour"]
    many = [f"mine_{number}" for number in range(30)]
    looks = {(look.colour, look.marker) for look in Names.of({}, many).looks.values()}
    assert len(looks) == len(many)
    assert Names.of(APPEARANCE, ["other", "mine"]).look("other").colour == names.look("mine").colour


def test_a_defense_that_is_made_of_others_is_told_by_them_in_their_order() -> None:
    parts = [{"random_resize": {"crop": [24, 30], "eight_bit": False}}, {"mi_ol": {"lam": 0.6}}]
    assert parameters(json.dumps({"of": parts})) == "random_resize crop=[24, 30] + mi_ol lam=0.6"
    assert parameters(json.dumps({"crop": [24, 30], "fill": 0.0})) == "crop=[24, 30]"


def test_a_worst_case_above_one_of_its_attacks_is_explained_and_one_below_is_not() -> None:
    def note(worst: float) -> str:
        rows = [cell("a", "mi_ol", {"lam": 0.5}, attack, 0.3, draws=2) for attack in ("pgd", "eot_pgd")]
        return checks_footnote(frame(*rows, cell("a", "mi_ol", {"lam": 0.5}, "worst_case", worst, draws=2)), NAMES)

    assert "A worst case may lie above one of its attacks" in note(0.32)
    assert "may lie above" not in note(0.3)


@pytest.mark.parametrize(("judged", "told"), [(50, True), (200, False), (None, False)])
def test_a_reference_that_was_run_on_a_part_of_the_points_is_told(judged: int | None, told: bool) -> None:
    found = {} if judged is None else {"reference": {"state": "passed", "why": "", "points": judged}}
    row = cell("a", "none", {}, "pgd", 0.3, verdict="passed", checks=json.dumps(found))
    note = checks_footnote(frame(row), NAMES)
    assert ("The reference that a ✓ rests on was run on 50 of the 200 points" in note) == told
    assert ("reference" in note) == told


@pytest.mark.parametrize(("state", "told"), [("passed", False), ("not run", True), (None, True)])
def test_a_table_whose_marks_rest_on_no_black_box_says_so(state: str | None, told: bool) -> None:
    found = {} if state is None else {"black_box_not_stronger": {"state": state, "why": ""}}
    row = cell("a", "none", {}, "pgd", 0.3, verdict="passed", checks=json.dumps(found))
    assert ("No ✓ here was held against a black box" in checks_footnote(frame(row), NAMES)) == told
    for other in ({"verdict": "failed"}, {"norm": "spatial"}, {"norm": "l1"}, {"goal": "targeted"}):
        row = cell("a", "none", {}, "pgd", 0.3, **{"verdict": "passed", "checks": json.dumps(found), **other})
        assert "black box" not in checks_footnote(frame(row), NAMES)
