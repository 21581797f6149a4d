"""The paper's tables and figures: what they say is computed from rows, and agrees with the paper's own formulas."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers.frames import NAMES, adaptive, cell, eot_pgd, failed, frame, pgd
from matplotlib.collections import PolyCollection

from mi_ray.figures import claims, epsilon_curve, fig2, fig3a, fig4, fig5, paper_table, presets_table, table2, table3
from mi_ray.figures.reading import read_study
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_cells, write_cells
from mi_ray.store.schemas import ADVERSARIAL, EXAMPLES, OUTPUTS, RECORDS

# Every table and figure


def test_a_study_without_finished_cells_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"finished cells; this study has none"):
        paper_table.facts(frame(cell("a", "none", {}, "none", 0.0, state="failed")), NAMES)


def test_two_cells_of_one_entry_are_refused_everywhere() -> None:
    clean, twice = cell("mixup", "mi_ol", {"lam": 0.5}, "none", 0.9), [eot_pgd(0.3), eot_pgd(0.3)]
    with pytest.raises(ValueError, match=r"a place each .* column EOT-PGD-50"):
        paper_table.shown(paper_table.facts(frame(clean, *twice), NAMES))
    for facts in (fig4.facts, epsilon_curve.facts):
        with pytest.raises(ValueError, match="a place each"):
            facts(frame(clean, *twice), NAMES)


def test_two_branches_of_one_attack_are_both_in_table_and_curves() -> None:
    clean = cell("mixup", "mi_ol", {"lam": 0.5}, "none", 0.9)
    cells = frame(clean, eot_pgd(0.3), eot_pgd(0.2, branch="fallback"))
    text = paper_table.shown(paper_table.facts(cells, NAMES)).iloc[0]
    assert text["EOT-PGD-50 (EOT 30, branch whole), untargeted"].startswith("30.0")
    assert text["EOT-PGD-50 (EOT 30, branch fallback), untargeted"].startswith("20.0")
    assert set(epsilon_curve.facts(cells, NAMES)["curve"]) == {
        f"EOT-PGD-50 (EOT 30, branch {branch}), untargeted" for branch in ("whole", "fallback")
    }


# Tables 2 and 3


@pytest.mark.parametrize("paper", [table2.PAPER, table3.PAPER])
def test_the_papers_rows_have_seven_values_that_fall_with_steps(paper: paper_table.Paper) -> None:
    for values in paper.values.values():
        assert len(values) == 7
        clean, *attacked = (float(value.replace("≤", "")) for value in values)
        assert clean > max(attacked)
        for mode in (attacked[:3], attacked[3:]):
            assert mode == sorted(mode, reverse=True)


def a_table() -> pd.DataFrame:
    rows = []
    for defense, params, n in (("mi_ol", {"lam": 0.5}, 30), ("none", {}, 1)):
        rows += [cell("mixup", defense, params, "none", 0.84, executions=n)]
        rows += [
            cell("mixup", defense, params, "pgd", 0.3, **pgd(steps, goal=goal), executions=n)
            for goal in ("targeted", "untargeted")
            for steps in (200, 10)
        ]
        rows.append(cell("mixup", defense, params, "worst_case", 0.2, goal="any", attack_params="{}", executions=n))
    rows.append(cell("mixup", "mi_ol", {"lam": 0.5}, "eot_pgd", 0.25, **adaptive(50), executions=30, verdict="failed"))
    return frame(*rows)


def test_the_table_has_the_papers_columns_in_order_then_other_attacks_and_the_worst_case() -> None:
    text = paper_table.shown(paper_table.facts(a_table(), NAMES, table2.PAPER))
    assert list(text.columns) == [
        "Method",
        "Parameters",
        "N",
        "Clean",
        "PGD-10, untargeted",
        "PGD-200, untargeted",
        "PGD-10, targeted",
        "PGD-200, targeted",
        "adaptive EOT-PGD-50, untargeted",
        "Worst case",
    ]
    assert list(text["Method"]) == ["mixup + MI-OL", "mixup"]


def test_an_entry_shows_our_interval_the_mark_and_the_papers_value() -> None:
    text = paper_table.shown(paper_table.facts(a_table(), NAMES, table2.PAPER)).set_index("Method")
    assert text.loc["mixup + MI-OL", "PGD-200, targeted"] == "30.0 [25.0, 35.0] ✓ (50.8)"
    assert text.loc["mixup", "PGD-10, targeted"] == "30.0 [25.0, 35.0] ✓ (≤ 1)"
    assert text.loc["mixup + MI-OL", "Clean"] == "84.0 [79.0, 89.0] ✓ (83.9)"
    assert text.loc["mixup + MI-OL", "adaptive EOT-PGD-50, untargeted"] == "25.0 [20.0, 30.0] ✗"
    assert text.loc["mixup", "adaptive EOT-PGD-50, untargeted"] == ""


def test_the_papers_values_are_labelled_as_the_papers_and_of_its_own_data() -> None:
    cells = a_table()
    note = paper_table.footnote(cells, paper_table.facts(cells, NAMES, table3.PAPER), NAMES, table3.PAPER)
    assert "In brackets: the paper's Table 3 (CIFAR-100, ResNet-50)" in note
    assert note.startswith("digits, 200 points")
    for named, paper in ((cells, paper_table.NO_PAPER), (cells.assign(classifier="mine"), table3.PAPER)):
        assert "paper" not in paper_table.footnote(named, paper_table.facts(named, NAMES, paper), NAMES, paper)


def test_another_radius_is_not_put_beside_the_papers() -> None:
    attacks = [
        cell("mixup", "none", {}, "pgd", 0.1, **{**pgd(10), "epsilon": epsilon}) for epsilon in (8 / 255, 2 / 255)
    ]
    table = paper_table.facts(frame(*attacks), NAMES, table2.PAPER)
    assert [bool(value) for value in table["paper"]].count(True) == 1


@pytest.mark.parametrize(
    ("defense", "values", "said"),
    [
        ("random_pad", {"crop": [20, 28], "eight_bit": False}, "59.7"),
        ("random_pad", {"crop": [22, 30], "eight_bit": False}, ""),
        ("gaussian_noise", {"sigma": 0.0375}, "55.6"),
        ("gaussian_noise", {"sigma": 0.075}, ""),
        ("mi_ol", {"lam": 0.6}, "64.5"),
        ("mi_ol", {"lam": 0.5}, ""),
        ("mi_ol", {"lam": {"uniform": [0.5, 0.7]}}, ""),
        ("mi_combined", {"lam_pl": 0.5, "lam_ol": 0.4, "threshold": 0.2}, ""),  # It has none before interpolated AT.
    ],
)
def test_values_of_the_paper_stand_beside_its_own_settings_alone(defense: str, values: Any, said: str) -> None:
    row = pd.Series(cell("interpolated_at", defense, values, "pgd", 0.3, **pgd(10)))
    assert table2.PAPER.value(row) == said
    assert paper_table.NO_PAPER.value(row) == ""


def test_an_adaptive_pgd_is_not_put_beside_the_papers_oblivious_one() -> None:
    row = cell("mixup", "mi_ol", {"lam": 0.5}, "pgd", 0.3, **pgd(10), knowledge="adaptive")
    assert table2.PAPER.value(pd.Series(row)) == ""
    assert table2.PAPER.value(pd.Series({**row, "knowledge": "oblivious"})) == "26.1"


# Fig. 2


def test_conditions_are_those_of_equations_12_and_15() -> None:
    assert fig2.condition("mi_pl", "y", 0.3, 10) == pytest.approx(0.7)
    assert fig2.condition("mi_pl", "pred", 0.3, 10) == pytest.approx(-0.7)
    assert fig2.condition("mi_ol", "y", 0.4, 10) == pytest.approx(0.6 * 8 / 9)
    assert fig2.condition("mi_ol", "pred", 0.4, 10) == 0


@pytest.mark.parametrize(("defense", "mixed_in"), [("mi_pl", "predicted"), ("mi_ol", "others")])
def test_a_linear_classifier_meets_the_condition_exactly_where_its_change_is_zero(defense: str, mixed_in: str) -> None:
    # F is linear in the image but for an adversarial part G, so ΔF - ΔG is minus the condition (Table 1).
    rng, classes, lam = np.random.default_rng(0), 5, 0.35
    y = rng.integers(0, classes, 40)
    predicted = (y + rng.integers(1, classes, 40)) % classes
    clean, one = np.eye(classes)[y], np.eye(classes)
    push, kept = 1.4 * (one[predicted] - one[y]), 0.3 * (one[predicted] - one[y])
    other = one[predicted] if mixed_in == "predicted" else (1 - one[predicted]) / (classes - 1)
    ideal = lam * clean + (1 - lam) * other
    found = fig2.changes(clean + push, ideal + kept, clean, ideal, y)
    assert found["eq2"].all()
    for k in ("y", "pred"):
        gap = found[f"G_{k}"] - found[f"F_{k}"]
        assert gap.to_numpy() == pytest.approx(fig2.condition(defense, k, lam, classes))


@pytest.mark.parametrize("lam", [0.2, 0.7])
def test_the_mechanisms_add_up_and_are_told_apart_where_each_acts_alone(lam: float) -> None:
    rng, y = np.random.default_rng(0), np.array([0, 1, 2])
    clean, mixed_clean, push, turned = (rng.random((3, 4)) for _ in range(4))
    adversarial = clean + push
    # G is linear in δ and the same everywhere: nothing comes of the transfer, and the shrinkage takes its 1 - λ.
    found = fig2.changes(adversarial, mixed_clean + lam * push, clean, mixed_clean, y, mixed_clean + push)
    for name, k in (("y", y), ("pred", adversarial.argmax(1))):
        assert found[f"transfer_{name}"].to_numpy() == pytest.approx(0)
        assert found[f"shrinkage_{name}"].to_numpy() == pytest.approx((lam - 1) * push[np.arange(3), k])
    # G does not depend on the length of δ but on where it acts: nothing comes of the shrinkage.
    found = fig2.changes(adversarial, mixed_clean + turned, clean, mixed_clean, y, mixed_clean + turned)
    assert found["shrinkage_y"].to_numpy() == pytest.approx(0)
    assert found["transfer_y"].to_numpy() == pytest.approx((turned - push)[np.arange(3), y])
    found = fig2.changes(adversarial, *(rng.random((3, 4)) for _ in range(3)), y, rng.random((3, 4)))
    for name in ("y", "pred"):
        parts = found[f"transfer_{name}"] + found[f"shrinkage_{name}"]
        assert parts.to_numpy() == pytest.approx(found[f"G_{name}"].to_numpy())


def test_curves_are_means_over_points_on_all_of_them_and_on_those_of_equation_2() -> None:
    points = pd.DataFrame({name: [0.0, 1.0, 2.0, 3.0] for name in fig2.CURVES} | {"eq2": [False, True, True, False]})
    table = fig2.facts({("a", "mi_pl", 0.5): points}, 10)
    found = table[table["curve"] == "F_y"].set_index("subset")
    assert found.loc["all", "value"] == 1.5
    assert found.loc["eq2", "value"] == 1.5
    assert list(found["points"]) == [4, 2]
    assert found.loc["all", "low"] < 1.5 < found.loc["all", "high"]
    none = fig2.facts({("a", "mi_pl", 0.5): points.assign(eq2=False)}, 10)
    assert set(none["subset"]) == {"all"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results", create=True)


def write_outputs(store: Store, key: str, values: np.ndarray, executions: int = 1, draws: int = 1) -> None:
    """values: [points, classes], the mean over the draws, which lie symmetrically around it."""
    rows = [
        {
            "point": 10 + p,
            "draw": d,
            "executions": n,
            "probabilities": values[p] + (d - (draws - 1) / 2) + (n != executions),
        }
        for d in range(draws)
        for n in {executions, 1}
        for p in range(len(values))
    ]
    table = pa.Table.from_pylist(rows, schema=OUTPUTS)
    store.write_block("outputs", key, 0, len(values), table, {"stops": []})


def write_records(store: Store, key: str, **columns: Any) -> None:
    """Records of a cell, a row a point; columns left out are filled."""
    points = columns.get("point", list(range(10, 10 + len(columns["label"]))))
    filled = {name: [None] * len(points) for name in RECORDS.names}
    filled |= {"cell": [key] * len(points), "selection": [False] * len(points), "point": points, **columns}
    table = pa.table([pa.array(filled[name], RECORDS.field(name).type) for name in RECORDS.names], schema=RECORDS)
    store.write_block("records", key, 0, len(points), table, {})


def stored_cell(store: Store, rows: list[dict[str, Any]]) -> None:
    write_cells(store, "s", [{**row, "work": json.dumps(row["work"]) if row["work"] else None} for row in rows])


def test_fig2_reads_outputs_of_the_right_n_and_averages_the_draws(store: Store) -> None:
    values = np.random.default_rng(0).random((3, 4)).round(3)
    write_outputs(store, "k", values, executions=5, draws=2)
    assert fig2.outputs(store, "k", [12, 10], 5, 2) == pytest.approx(values[[2, 0]], abs=1e-6)
    with pytest.raises(ValueError, match="lacks 1"):
        fig2.outputs(store, "k", [10, 99], 5, 2)


def test_fig2_leaves_out_draws_that_another_study_added_to_a_shared_block(store: Store) -> None:
    values = np.random.default_rng(0).random((3, 4)).round(3)
    write_outputs(store, "k", values, executions=5, draws=4)
    assert fig2.outputs(store, "k", [10, 11, 12], 5, 1) == pytest.approx(values - 1.5, abs=1e-6)
    assert fig2.outputs(store, "k", [10, 11, 12], 5, 2) == pytest.approx(values - 1.0, abs=1e-6)


def test_each_defense_is_read_at_its_own_n_and_a_claim_at_the_attack_and_variant_that_it_names(store: Store) -> None:
    """As under the released code's choices, where MI-PL takes 10 executions and MI-OL 30."""
    rng = np.random.default_rng(2)
    write_outputs(store, "bare", np.eye(4))
    rows = [cell("f", "none", {}, "none", 0.9, executions=1, work={"undefended": "bare"})]
    truth = {}
    for attack, variant in (("pgd", ""), ("mim", ""), ("pgd", "as_published")):
        write_outputs(store, f"adv{attack}{variant}", np.eye(4)[[1, 2, 3, 3]])  # the last one stands
        for defense, n in (("mi_pl", 10), ("mi_ol", 30)):
            name = f"{attack}{variant}{defense}"
            mixed, pair = rng.random((4, 4)), rng.random((4, 4))
            write_outputs(store, f"mix{name}", mixed, executions=n)
            write_outputs(store, f"pair{name}", pair, executions=n)
            work = {
                "undefended": f"adv{attack}{variant}",
                "outputs": [[f"mix{name}", n]],
                "counterparts": [f"pair{name}"],
            }
            told = {"executions": n, "work": work, "variants": [variant], "points": 4, "selection_points": 0}
            rows.append(cell("f", defense, {"lam": 0.5}, attack, 0.4, **told))
            write_records(store, rows[-1]["cell"], label=[0, 1, 2, 3])
            truth[attack, variant, defense] = mixed[np.arange(4), np.arange(4)].mean() - 1 / 4
    rows[0] |= {"variants": ["", "as_published"], "points": 4, "selection_points": 0}
    write_records(store, rows[0]["cell"], label=[0, 1, 2, 3])
    stored_cell(store, rows)
    found, _, classes = fig2.settings_of(store, read_cells(store, "s"))
    assert (sorted(found), classes) == ([("f", "mi_ol", 0.5), ("f", "mi_pl", 0.5)], 4)
    asked = [
        claims.Claim(
            text="",
            where="",
            study="s",
            kind="mechanism",
            classifier="f",
            left={"defense": defense, "curve": "F_y"},
            right={},
            attack={"attack": attack, "called": attack},
            is_="above",
            variant=variant,
            lam=0.5,
        )
        for attack, variant, defense in truth
    ]
    table = claims.facts(store, asked)
    assert table["value"].to_numpy() == pytest.approx(np.array([*truth.values()]), abs=1e-6)
    met = [
        replace(each, kind="condition", left={"defense": "mi_pl"}, right=right)
        for each in asked[:1]
        for right in ({}, each.left)
    ]
    alone, against_itself = claims.facts(store, met)["value"]
    changes = found["f", "mi_pl", 0.5]
    changes = changes[changes["eq2"]]  # for which alone the condition is derived
    assert len(changes) == 3
    share = ((changes["G_y"] > 0.5) & (changes["G_pred"] < -0.5)).mean()
    assert (alone, against_itself) == (pytest.approx(share - 0.5), 0.0)


@pytest.mark.parametrize("mechanisms", [False, True])
def test_fig2_is_drawn_from_a_store(store: Store, mechanisms: bool) -> None:
    rng, labels = np.random.default_rng(1), [0, 1, 2, 3]
    for key in ("bare", "adv"):
        write_outputs(store, key, rng.random((4, 4)))
    rows = [cell("mixup", "none", {}, "none", 0.9, executions=1, work={"undefended": "bare"})]
    for lam in (0.4, 0.6):
        work = {"undefended": "adv", "outputs": [[f"mix{lam}", 5]], "counterparts": [f"pair{lam}"]}
        work |= {"transferred": [f"whole{lam}"]} if mechanisms else {}
        for key in (f"mix{lam}", f"pair{lam}", f"whole{lam}"):
            write_outputs(store, key, rng.random((4, 4)), executions=5)
        rows.append(cell("mixup", "mi_pl", {"lam": lam}, "pgd", 0.4, executions=5, work=work))
        write_records(store, rows[-1]["cell"], label=labels)
    stored_cell(store, rows)
    assert fig2.make(store, "s") == [f"studies/s/figures/fig2.{kind}" for kind in ("png", "pdf", "csv")]
    written = store.read_bytes("studies/s/figures/fig2.csv").decode().splitlines()
    parts = len(fig2.MECHANISMS) if mechanisms else 0
    assert len([line for line in written if ",all," in line]) == 2 * (len(fig2.CURVES) + parts)
    table = fig2.facts(*fig2.settings_of(store, read_cells(store, "s"))[::2])
    figure = fig2.draw(table[table["subset"] == "all"], NAMES, "title", "note")
    assert [axes.get_ylabel() for axes in figure.axes] == ["change of probability", "ΔG told apart (Eq. 13)"][
        : 1 + mechanisms
    ]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert ("input transfer, $y$" in said) == ("shrinkage, $y$" in said) == mechanisms


def test_fig2_without_counterparts_is_refused(store: Store) -> None:
    work = {"undefended": "adv", "outputs": [["mix", 5]], "counterparts": []}
    clean = cell("mixup", "none", {}, "none", 0.9, work={"undefended": "bare"})
    stored_cell(store, [clean, cell("mixup", "mi_pl", {"lam": 0.5}, "pgd", 0.4, executions=5, work=work)])
    with pytest.raises(ValueError, match="counterparts: true"):
        fig2.make(store, "s")


# Fig. 3(a)


def scored(lam: float, shift: float, defense: str = "mi_pl") -> fig3a.Detector:
    """A detector whose adversarial scores are higher by `shift`, 40 selection points and 160 reported ones."""
    noise = np.random.default_rng(0).normal(size=200)
    scores = pd.DataFrame(
        {
            "clean": noise,
            "adversarial": np.roll(noise, 7) + shift,
            "eq2": np.arange(200) % 2 == 0,
            "selection": np.arange(200) < 40,
        }
    )
    return fig3a.Detector("mixup", "PGD-10", defense, f"lam={lam}", lam, "passed", scores)


def test_the_detectors_lambda_is_chosen_on_selection_points_and_reported_on_the_others() -> None:
    good, better = scored(0.5, 1.0), scored(0.7, 2.0)
    better.scores.loc[better.scores["selection"], "adversarial"] -= 5
    table = fig3a.facts([good, better])
    assert set(table[table["chosen"]]["lam"]) == {0.5}
    assert set(table[table["subset"] == "all"]["points"]) == {160}
    assert set(table[table["subset"] == "eq2"]["points"]) == {80}
    for number in ("auc", "tpr"):
        assert table.loc[table["lam"] == 0.7, number].min() > table.loc[table["lam"] == 0.5, number].max()
        assert (table[f"{number}_low"] <= table[number]).all()
        assert (table[number] <= table[f"{number}_high"]).all()
    shown = good.scores[~good.scores["selection"]]
    limit = shown["clean"].sort_values(ascending=False).iloc[8]  # 8 of 160 clean points are 5 %
    rate = table.loc[(table["lam"] == 0.5) & (table["subset"] == "all"), "tpr"].item()
    assert rate == (shown["adversarial"] > limit).mean()


def test_the_detection_gap_stands_beside_the_auc_and_the_baseline_has_none() -> None:
    score = scored(0.5, 1.0)
    table = fig3a.facts([score, replace(score, defense=fig3a.BASELINE, lam=None)])
    own = table[(table["defense"] == "mi_pl") & (table["subset"] == "all")].iloc[0]
    reported = score.scores[~score.scores["selection"]]
    assert own["gap"] == pytest.approx((reported["adversarial"] - reported["clean"]).mean())
    assert own["gap_low"] < own["gap"] < own["gap_high"]
    assert table.loc[table["defense"] == fig3a.BASELINE, ["gap", "gap_low", "gap_high"]].isna().all(axis=None)


def test_scores_are_paired_by_point_and_equation_2_is_clean_right_adversarial_wrong() -> None:
    clean = pd.DataFrame(
        {
            "point": [3, 1, 2],
            "score": [0.3, 0.1, 0.2],
            "confidence_undefended": [0.9, 0.7, 0.8],
            "label": [3, 1, 2],
            "predicted_undefended": [3, 1, 0],
            "selection": [False, True, False],
        }
    )
    adversarial = clean.iloc[::-1].assign(score=[0.6, 0.5, 0.7], predicted_undefended=[0, 1, 0])
    found = fig3a.pair(clean, adversarial, "score")
    assert list(found["clean"]) == [0.3, 0.1, 0.2]
    assert list(found["adversarial"]) == [0.7, 0.5, 0.6]
    assert list(found["eq2"]) == [True, False, False]
    assert list(found["selection"]) == [False, True, False]
    assert list(fig3a.pair(clean, adversarial, fig3a.BASELINE)["clean"]) == pytest.approx([0.1, 0.3, 0.2])


@pytest.mark.parametrize(("knowledge", "baselines"), [("oblivious", 1), ("adaptive", 2), ("black_box", 2)])
def test_images_that_were_made_through_each_setting_have_a_baseline_each(
    knowledge: str, baselines: int, store: Store
) -> None:
    rng, rows = np.random.default_rng(0), []
    for lam, attack in itertools.product((0.5, 0.6), ("none", "pgd")):
        known = {} if attack == "none" else {"knowledge": knowledge}
        rows.append(cell("mixup", "mi_pl", {"lam": lam}, attack, 0.5, work=None, **known))
        label = rng.integers(0, 3, 30)
        found = {"label": label, "predicted_undefended": label if attack == "none" else (label + 1) % 3}
        write_records(store, rows[-1]["cell"], **found, score=rng.random(30), confidence_undefended=rng.random(30))
    stored_cell(store, rows)
    detectors, _ = fig3a.detectors_of(store, read_cells(store, "s"), NAMES)
    assert [each.defense for each in detectors].count(fig3a.BASELINE) == baselines


def test_fig3a_is_drawn_from_a_store_with_one_baseline_for_an_oblivious_attack(store: Store) -> None:
    rng, rows = np.random.default_rng(0), []
    for defense, lam in (("mi_pl", 0.5), ("mi_ol", 0.6)):
        for attack in ("none", "pgd"):
            rows.append(cell("mixup", defense, {"lam": lam}, attack, 0.5, work=None))
            label = rng.integers(0, 3, 30)
            write_records(
                store,
                rows[-1]["cell"],
                label=label,
                predicted_undefended=label if attack == "none" else (label + 1) % 3,
                score=rng.random(30),
                confidence_undefended=rng.random(30),
            )
    stored_cell(store, rows)
    detectors, cells = fig3a.detectors_of(store, read_cells(store, "s"), NAMES)
    assert [found.defense for found in detectors] == ["mi_pl", fig3a.BASELINE, "mi_ol"]
    assert len(cells) == 2
    table = fig3a.facts(detectors)
    figure = fig3a.draw(table, detectors, NAMES, "title", "note")
    left, middle, right = figure.axes
    assert left.get_xlabel() == "False positive rate"
    assert left.get_title().split() == ["mixup,", "PGD-10,", "untargeted,", "ε", "=", "8/255"]
    assert (middle.get_xlabel(), middle.get_title()) == ("λ", "AUC")
    assert (middle.get_ylabel(), right.get_ylabel()) == ("AUC", "True positive rate")
    assert right.get_title() == "At 5 % false positives"
    for axes, number in ((middle, "auc"), (right, "tpr")):
        marked = {NAMES.look(name).marker for name in ("mi_pl", "mi_ol")}
        drawn = {line.get_ydata()[0] for line in axes.get_lines() if line.get_marker() in marked}  # type: ignore[index]
        assert drawn == set(table.loc[table["lam"].notna(), number])
    told = table[table["chosen"] & (table["subset"] == "all")].iloc[0]
    assert f"AUC {told['auc']:.3f}, gap {told['gap']:.3f}" in left.get_legend().get_texts()[0].get_text()
    curves = [text.get_text().split(":")[0] for text in left.get_legend().get_texts()]
    assert curves == ["MI-PL lam=0.5", "1 - max F(x)", "MI-OL lam=0.6"]
    assert [("gap" in text.get_text()) for text in left.get_legend().get_texts()] == [True, False, True]
    assert len(fig3a.make(store, "s")) == 3
    single = table.assign(lam=table["lam"].where(table["lam"].isna(), 0.5))
    (alone,) = fig3a.draw(single, detectors, NAMES, "title", "note").axes  # Nothing stands against a single λ.
    assert alone.get_xlabel() == "False positive rate"


# Fig. 4


def some_adaptive() -> pd.DataFrame:
    rows = []
    for steps in (10, 50):
        rows.append(cell("mixup", "none", {}, "pgd", 0.1, **pgd(steps), executions=1))
        rows.append(cell("mixup", "mi_ol", {"lam": 0.5}, "pgd", 0.5, **pgd(steps)))
        for eot in (30, 1, 5):
            rows += [
                cell("mixup", "mi_ol", {"lam": 0.5}, "averaged", 0.6, **adaptive(steps, eot), verdict="failed"),
                cell("mixup", "mi_ol", {"lam": 0.5}, "eot_pgd", 0.4 - eot / 100, **adaptive(steps, eot)),
            ]
    return frame(*rows, cell("mixup", "none", {}, "none", 0.9, executions=1))


def test_fig4_orders_samples_and_sets_both_oblivious_lines_beside_them() -> None:
    table = fig4.facts(some_adaptive(), NAMES)
    curve = table[(table["what"] == "eot_pgd") & (table["steps"] == 10)]
    assert list(curve["samples"]) == [1, 5, 30]
    lines = table[table["steps"] == 50].set_index("what")["accuracy"]
    assert lines["undefended"] == 0.1
    assert lines["oblivious"] == 0.5
    figure = fig4.draw(table, NAMES, "title", "note")
    assert len(figure.axes) == 2
    assert figure.axes[0].get_title() == "mixup + MI-OL (lam=0.5), 10 steps"
    for axes, steps in zip(figure.axes, (10, 50), strict=True):
        drawn = {tuple(line.get_ydata()) for line in axes.get_lines()}  # type: ignore[arg-type]
        own = table[table["steps"] == steps].groupby("what")["accuracy"]
        levels = {(100 * own.get_group(what).iloc[0],) * 2 for what in ("undefended", "oblivious")}
        curves = {tuple(100 * own.get_group(what)) for what in ("averaged", "eot_pgd")}
        assert levels | curves <= drawn


def test_fig4_draws_two_branches_and_two_oblivious_steps_as_lines_of_their_own() -> None:
    oblivious = [
        cell(
            "mixup", "mi_ol", {"lam": 0.5}, "pgd", 0.5, attack_params=json.dumps({"steps": 50, "step_size": step / 255})
        )
        for step in (1, 2)
    ]
    curves = [eot_pgd(0.3 - eot / 100, branch=branch, eot=eot) for branch in ("whole", "fallback") for eot in (1, 5)]
    table = fig4.facts(frame(*curves, *oblivious), NAMES)
    figure = fig4.draw(table, NAMES, "title", "note")
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "EOT-PGD (branch fallback)",
        "EOT-PGD (branch whole)",
        "oblivious PGD (step size 1/255) on the defended one",
        "oblivious PGD (step size 2/255) on the defended one",
    ]
    assert len({line.get_color() for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2}) >= 2


def test_fig4_without_an_adaptive_attack_is_refused() -> None:
    cells = some_adaptive()
    with pytest.raises(ValueError, match="adaptive attack with `eot`"):
        fig4.facts(cells[cells["knowledge"] != "adaptive"], NAMES)


# Fig. 5


def test_the_image_shown_is_of_the_restart_that_is_scored() -> None:
    rows = pd.DataFrame(
        [
            {"point": 4, "steps": 10, "restart": restart, "success": success, "loss": loss, "image": np.full(12, value)}
            for restart, success, loss, value in (
                (0, 0.2, 9.0, 0.0),
                (1, 0.6, 1.0, 0.1),
                (2, 0.6, 3.0, 0.2),
                (3, 0.6, 3.0, 0.3),
            )
        ]
        + [{"point": 4, "steps": 50, "restart": 0, "success": 1.0, "loss": 9.0, "image": np.full(12, 0.9)}]
    )
    found = fig5.best_images(rows, 10, [4])
    assert found.shape == (1, 2, 2, 3)
    assert found == pytest.approx(0.2)
    with pytest.raises(ValueError, match="5"):
        fig5.best_images(rows, 10, [4, 5])


def test_a_stored_image_is_turned_from_chw() -> None:
    stored = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    assert (fig5.image(stored.ravel())[0, 1] == stored[:, 0, 1]).all()
    with pytest.raises(ValueError, match="13 values"):
        fig5.image(np.zeros(13))


MOVED = {"adversarial": "adv", "stop": 5}
Cells = list[dict[str, Any]]


def attacked_images(store: Store) -> tuple[dict[str, Any], dict[str, Any], Cells]:
    """Two images with what an attack on MI-OL made of them: the clean cell, the attacked one, and the rows of the attack."""
    points, size = [10, 11], 3 * 4 * 4
    clean, moved = np.full((2, size), 0.5), np.full((2, size), 0.6)
    examples = {"point": points, "label": [1, 2], "image": list(clean)}
    store.write_table("studies/s/examples.parquet", pa.table(examples).cast(EXAMPLES))
    rows = [
        {
            "point": p,
            "label": p - 9,
            "attack_label": p - 9,
            "restart": 0,
            "steps": 5,
            "image": moved[p - 10],
            "linf": 0.1,
            "loss": 1.0,
            "success": 1.0,
            "zero_gradients": 0,
        }
        for p in points
    ]
    store.write_block("adversarial", "adv", 0, 2, pa.Table.from_pylist(rows, schema=ADVERSARIAL), {"stops": [5]})
    before = cell("iat", "mi_ol", {"lam": 0.6}, "none", 0.9, work=None)
    after = cell("iat", "mi_ol", {"lam": 0.6}, "eot_pgd", 0.4, **adaptive(5), work=MOVED)
    for row, wrong in ((before, 0), (after, 1)):
        write_records(store, row["cell"], label=[1, 2], predicted=[1, 2 + wrong], predicted_undefended=[1 + wrong, 2])
    return before, after, rows


def at_another(store: Store, lam: float, **changes: Any) -> Cells:
    """A further setting, clean and attacked, with what it answers under attack."""
    pair = [
        cell("iat", "mi_ol", {"lam": lam}, "none", 0.9, work=None),
        cell("iat", "mi_ol", {"lam": lam}, "eot_pgd", 0.4, **adaptive(5), work={**MOVED, **changes}),
    ]
    for row in pair:
        write_records(store, row["cell"], label=[1, 2], predicted=[1, 9], predicted_undefended=[1, 2])
    return pair


def test_fig5_is_drawn_from_a_store_with_the_answers_to_each_image(store: Store) -> None:
    before, after, _ = attacked_images(store)
    stored_cell(store, [before, after])
    (strip,), _ = fig5.facts(store, "s", *read_study(store, "s"))
    assert strip.adversarial == pytest.approx(0.6)
    told = strip.label.iloc[0], strip.clean_answers.iloc[0].to_dict(), strip.answers.iloc[0].to_dict()
    assert told == (1, {"F": 1, "A": 1}, {"F": 2, "A": 1})
    assert strip.title.endswith("; A: mi_ol lam=0.6")
    drawn = fig5.draw([strip], "").axes  # two clean images, the two that were moved, and the differences amplified
    assert [float(np.mean(axes.images[0].get_array())) for axes in drawn] == pytest.approx(
        [0.5, 0.5, 0.6, 0.6, 1.0, 1.0]
    )
    assert [text.get_color() for text in drawn[2].texts] == ["#D55E00", "black"]  # F is wrong, the defense is not
    assert fig5.make(store, "s") == ["studies/s/figures/fig5.png", "studies/s/figures/fig5.pdf"]


def test_fig5_shows_the_settings_that_met_the_same_images_side_by_side(store: Store) -> None:
    before, after, rows = attacked_images(store)
    same, apart = at_another(store, 0.7), at_another(store, 0.8, adversarial="other")
    store.write_block("adversarial", "other", 0, 2, pa.Table.from_pylist(rows, schema=ADVERSARIAL), {"stops": [5]})
    stored_cell(store, [before, after, *same, *apart])
    both, alone = fig5.facts(store, "s", *read_study(store, "s"))[0]
    assert (list(both.answers), list(alone.answers)) == (["F", "A", "B"], ["F", "A"])
    assert both.answers.iloc[1].to_dict() == {"F": 2, "A": 3, "B": 9}
    assert len(fig5.draw([both, alone], "").axes) == 12


def test_a_clean_cell_that_failed_costs_fig5_its_own_setting_alone(store: Store) -> None:
    before, after, _ = attacked_images(store)
    same = at_another(store, 0.7)
    lost = {**before, "state": "failed"}
    stored_cell(store, [lost, after, *same])
    (strip,), shown = fig5.facts(store, "s", *read_study(store, "s"))
    assert (strip.title.endswith("; A: mi_ol lam=0.7"), len(shown)) == (True, 1)
    stored_cell(store, [lost, after])
    with pytest.raises(
        ValueError, match=r"^Fig\. 5 needs finished cells with and without an attack; this study has none"
    ):
        fig5.facts(store, "s", *read_study(store, "s"))


# Presets


def variants() -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Cells of the study itself and of two variants on ten points: a defense's own words change with the options."""
    clean = cell("mixup", "random_rotation", {"degrees": 20.0, "interpolation": "bilinear"}, "none", 0.9)
    clean |= {"cell": "clean", "variants": ["", "adaptive_attack"]}
    nearest = cell("mixup", "random_rotation", {"degrees": 20.0, "interpolation": "nearest"}, "none", 0.6)
    nearest |= {"cell": "nearest", "variants": ["as_published"], "draws": 1}
    eot = cell(
        "mixup", "random_rotation", {"degrees": 20.0, "interpolation": "bilinear"}, "eot_pgd", 0.2, **adaptive(50)
    )
    eot |= {"cell": "eot", "variants": [""]}
    averaged = {**eot, "cell": "averaged", "attack": "averaged", "variants": ["adaptive_attack"], "accuracy": 0.6}
    counts = {
        "clean": [2] * 9 + [0],
        "nearest": [1] * 6 + [0] * 4,
        "eot": [2] * 2 + [0] * 8,
        "averaged": [2] * 6 + [0] * 4,
    }
    return frame(clean, nearest, eot, averaged), {name: np.array(found) for name, found in counts.items()}


def test_a_variant_is_held_against_the_same_setting_of_the_study_whatever_its_options_are_called() -> None:
    table = presets_table.facts(*variants(), NAMES).set_index(["variant", "attack"])
    assert table.loc[("as_published", "none"), "change"] == pytest.approx(-0.3)
    assert table.loc[("adaptive_attack", "averaged"), "change"] == pytest.approx(0.4)
    assert table.loc[("adaptive_attack", "averaged"), "threat"] == "adaptive: EOT-PGD-50, untargeted, ε = 8/255"
    assert bool(table.loc[("adaptive_attack", "none"), "same"])
    assert list(dict.fromkeys(table.index.get_level_values(0))) == ["study itself", "as_published", "adaptive_attack"]


def test_the_table_of_presets_shows_changes_and_where_nothing_changes() -> None:
    table = presets_table.facts(*variants(), NAMES)
    texts = presets_table.shown(table, NAMES)
    text = texts["mixup, clean"].set_index("Options")["Random rotation degrees=20"]
    assert text["adaptive_attack"] == "="
    assert text["study itself"] == "90.0 [85.0, 95.0] ✓"
    assert text["as_published"].startswith("60.0 (-30.0 [")
    (adaptive_text,) = [value for name, value in texts.items() if "adaptive" in name]
    assert list(adaptive_text["Options"]) == ["study itself", "adaptive_attack"]
    assert "Holm" in presets_table.document(table, variants()[0], NAMES)
    assert len(presets_table.draw(table, NAMES, "title", "note").axes) == 2


@pytest.mark.parametrize("still", [[], ["adaptive_attack"], ["adaptive_attack", "as_published"]])
def test_variants_that_change_nothing_are_named_and_not_drawn_unless_none_changes_anything(still: list[str]) -> None:
    table, cells = presets_table.facts(*variants(), NAMES), variants()[0]
    table.loc[table["variant"].isin(still), "same"] = True
    _, note = presets_table.describe(table, cells)
    axes = presets_table.draw(table, NAMES, "title", note).axes[0]
    drawn = [label.get_text() for label in axes.get_yticklabels()]
    every = ["as_published", "adaptive_attack"]
    assert drawn == (every if len(still) == 2 else [name for name in every if name not in still])
    assert ("not drawn, since they change no cell of the study: adaptive_attack" in note) == (len(still) == 1)


def test_a_variant_more_takes_a_line_of_legible_height_and_not_a_page() -> None:
    whole = presets_table.facts(*variants(), NAMES)
    fewer = whole.assign(same=whole["same"] | (whole["variant"] == "adaptive_attack"))
    high, low = (presets_table.draw(table, NAMES, "title", "").get_size_inches()[1] for table in (whole, fewer))
    assert 0.2 < (high - low) / whole["classifier"].nunique() < 0.5


def test_a_worst_case_by_one_draw_is_not_held_against_one_by_several() -> None:
    cells, counts = variants()
    attacked = cells["attack"] != "none"
    itself = cells["variants"].map(lambda names: "" in names)
    cells.loc[attacked, ["attack", "attack_params"]] = ["worst_case", "{}"]
    shown = set(presets_table.facts(cells, counts, NAMES)["attack"])
    cells.loc[attacked & ~itself, "draws"] = 1
    cells.loc[attacked & itself, "draws"] = 3
    table = presets_table.facts(cells, counts, NAMES)
    assert shown == {"none", "worst_case"}
    assert set(table.loc[table["attack"] == "worst_case", "variant"]) == {"study itself"}


def test_a_worst_case_without_the_adaptive_attack_is_not_held_against_one_with_it() -> None:
    cells, counts = variants()
    attacked = cells["attack"] != "none"
    itself = cells["variants"].map(lambda names: "" in names)
    cells.loc[attacked, ["attack", "attack_params"]] = ["worst_case", "{}"]
    cells.loc[attacked & itself, "knowledge"] = "adaptive"
    cells.loc[attacked & ~itself, "knowledge"] = "oblivious"
    table = presets_table.facts(cells, counts, NAMES)
    assert set(table.loc[table["attack"] == "worst_case", "variant"]) == {"study itself"}


def test_settings_that_differ_by_a_word_alone_are_told_apart() -> None:
    turned = [{"degrees": 20, "fill": 0, "interpolation": kind} for kind in ("bilinear", "nearest")]
    other = {"degrees": 30, "fill": 0, "interpolation": "nearest"}
    cells = frame(
        *(
            cell("f", "random_rotation", params, attack, 0.5)
            for params in (*turned, other)
            for attack in ("none", "pgd")
        ),
        *(cell("f", "mi_ol", {"lam": 0.5, "kind": "a"}, attack, 0.5) for attack in ("none", "pgd")),
    )
    table = paper_table.facts(cells, NAMES)
    assert set(table["parameters"]) == {
        "degrees=20, interpolation=bilinear",
        "degrees=20, interpolation=nearest",
        "degrees=30, interpolation=nearest",
        "lam=0.5",
    }


def test_a_curve_without_a_clean_cell_has_no_start() -> None:
    rows = [cell("f", "none", {}, "none", 0.9), cell("f", "mi_ol", {"lam": 0.5}, "pgd", 0.4, **pgd(10))]
    assert epsilon_curve.facts(frame(*rows), NAMES)["defense"].tolist() == ["mi_ol"]


def test_a_curve_with_a_cell_of_its_own_at_0_begins_there() -> None:
    rows = [cell("f", "mi_ol", {"lam": 0.5}, "none", 0.9)]
    rows += [cell("f", "mi_ol", {"lam": 0.5}, "pgd", 0.9 - 4 * at, **{**pgd(10), "epsilon": at}) for at in (0.0, 0.1)]
    table = epsilon_curve.facts(frame(*rows), NAMES)
    assert table["epsilon"].tolist() == [0.0, 0.1]
    assert table["attack"].tolist() == ["pgd", "pgd"]


def test_a_cell_of_several_variants_has_a_row_for_each_with_a_label_of_its_own() -> None:
    cells = variants()[0]
    table = presets_table.by_variant(cells)
    assert len(table) == sum(map(len, cells["variants"])) > len(cells)
    assert table.index.is_unique


def adaptive_variants(**states: str) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """EOT-PGD at two lengths and on a branch; in a variant averaged PGD stands for the first two. states: of cells."""
    shared = {"eot": 30, "labels": "true", "step_size": 1 / 255}
    rows = []
    for steps in (10, 50):
        averaged = cell(
            "mixup",
            "mi_ol",
            {"lam": 0.5},
            "averaged",
            0.6,
            knowledge="adaptive",
            variants=["adaptive_attack"],
            attack_params=json.dumps({**shared, "steps": steps, "clip": False}),
        )
        rows += [{**eot_pgd(0.3, steps=steps), "cell": f"eot{steps}"}, {**averaged, "cell": f"averaged{steps}"}]
    both = {"cell": "branch", "variants": ["", "adaptive_attack"]}
    rows.append({**eot_pgd(0.2, branch="fallback"), **both})
    cells = frame(*({**row, "state": states.get(row["cell"], "done")} for row in rows))
    return cells, {name: np.array([at % 3, 1, 0, 1]) for at, name in enumerate(cells["cell"])}


def pairs(cells: pd.DataFrame) -> set[tuple[str, str]]:
    table = presets_table.by_variant(cells)
    rows = [row for _, row in table[(table["variant"] != "") & (table["state"] == "done")].iterrows()]
    found = [(row["cell"], presets_table.counterpart(row, table)) for row in rows]
    return {(name, ours["cell"]) for name, ours in found if ours is not None}


def test_variants_are_paired_by_what_the_attacks_share_also_where_a_cell_is_missing() -> None:
    whole = {("averaged10", "eot10"), ("averaged50", "eot50"), ("branch", "branch")}
    assert pairs(adaptive_variants()[0]) == whole
    assert pairs(adaptive_variants(eot10="failed")[0]) == whole - {("averaged10", "eot10")}
    assert pairs(adaptive_variants(averaged10="missing")[0]) == whole - {("averaged10", "eot10")}
    assert pairs(adaptive_variants(eot50="failed")[0]) == whole - {("averaged50", "eot50")}
    assert pairs(adaptive_variants(branch="failed")[0]) == whole - {("branch", "branch")}


def test_threats_of_presets_are_named_apart() -> None:
    table = presets_table.facts(*adaptive_variants(), NAMES)
    assert {threat.split(",")[0] + threat.split(",")[1] for threat in table["threat"]} == {
        "adaptive: EOT-PGD-10 (EOT 30) untargeted",
        "adaptive: EOT-PGD-50 (EOT 30 branch whole)",
        "adaptive: EOT-PGD-50 (EOT 30 branch fallback)",
    }
    assert len(presets_table.shown(table, NAMES)) == 3


def test_two_settings_that_a_preset_table_cannot_tell_apart_are_refused() -> None:
    cells, counts = variants()
    other = cells.iloc[[0]].assign(cell="other", defense_params=json.dumps({"degrees": 20.0, "interpolation": "cubic"}))
    with pytest.raises(ValueError, match="a place each"):
        presets_table.facts(pd.concat([cells, other], ignore_index=True), {**counts, "other": counts["clean"]}, NAMES)


def test_presets_without_variants_are_refused() -> None:
    cells, counts = variants()
    cells["variants"] = [[""]] * len(cells)
    with pytest.raises(ValueError, match="variants: each_option"):
        presets_table.facts(cells, counts, NAMES)


def test_fig2_passes_over_a_ratio_that_is_drawn_and_goes_on_with_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = {"undefended": "u", "outputs": [["o", 30]], "counterparts": ["c"]}
    rows = [cell("mixup", "none", {}, "none", 0.9) | {"work": json.dumps(work)}]
    for lam in ({"beta": [1, 1]}, 0.4, 0.5):
        rows.append(cell("mixup", "mi_ol", {"lam": lam}, "pgd", 0.3) | {"work": json.dumps(work)})
    reported = pd.DataFrame({"selection": [False] * 3, "point": [1, 2, 3], "label": [0, 1, 0]})
    monkeypatch.setattr(fig2, "records_of", lambda store, key: reported)
    monkeypatch.setattr(fig2, "outputs", lambda *asked: np.full((3, 2), 0.5))
    found, _, classes = fig2.settings_of(store, frame(*rows))
    assert list(found) == [("mixup", "mi_ol", 0.4), ("mixup", "mi_ol", 0.5)]
    assert classes == 2


# Accuracy against epsilon


def radii() -> pd.DataFrame:
    rows = []
    for defense, params in (("none", {}), ("mi_ol", {"lam": 0.5})):
        rows.append(cell("mixup", defense, params, "none", 0.9))
        for epsilon, step in ((2 / 255, 1 / 1020), (8 / 255, 2 / 255)):
            name = json.dumps({"steps": 50, "step_size": step})
            rows.append(cell("mixup", defense, params, "pgd", 0.9 - 20 * epsilon, attack_params=name, epsilon=epsilon))
            if defense == "mi_ol":
                rows.append(cell("mixup", defense, params, "eot_pgd", 0.1, **{**adaptive(50), "epsilon": epsilon}))
                worst = {"goal": "any", "attack_params": "{}", "epsilon": epsilon, "knowledge": "adaptive"}
                rows.append(cell("mixup", defense, params, "worst_case", 0.05, **worst))
    return frame(*rows)


def test_a_curve_starts_at_the_clean_cell_and_joins_radii_whatever_their_step() -> None:
    table = epsilon_curve.facts(radii(), NAMES)
    curve = table[(table["curve"] == "PGD-50, untargeted") & (table["defense"] == "none")]
    assert list((255 * curve["epsilon"]).round(6)) == [0, 2, 8]
    assert list(curve["accuracy"]) == pytest.approx([0.9, 0.9 - 40 / 255, 0.9 - 160 / 255])


def test_a_curve_of_one_radius_is_thin_and_says_why() -> None:
    for cells, thin in ((radii(), False), (radii().query("epsilon < 0.02"), True)):
        table = epsilon_curve.facts(cells, NAMES)
        figure = epsilon_curve.draw(table, NAMES, *epsilon_curve.describe(table))
        widths = {
            line.get_linewidth() for axes in figure.axes for line in axes.get_lines() if len(line.get_xdata()) == 2
        }  # type: ignore[arg-type]
        assert (0.4 in widths) == thin
        assert ("nothing between it and the clean inputs" in epsilon_curve.describe(table)[1]) == thin


def test_the_only_attack_on_a_setting_is_its_worst_case() -> None:
    table = epsilon_curve.facts(radii(), NAMES)
    worst = table[table["curve"] == epsilon_curve.WORST].set_index(["defense", "attack"])["accuracy"]
    assert worst["none", "pgd"].tolist() == pytest.approx([0.9 - 40 / 255, 0.9 - 160 / 255])
    assert worst["mi_ol", "worst_case"].tolist() == [0.05, 0.05]
    assert ("mi_ol", "pgd") not in worst.index
    assert list(dict.fromkeys(table["curve"]))[-1] == epsilon_curve.WORST


def test_a_worst_case_of_fewer_attacks_is_not_joined_with_one_of_more() -> None:
    cells = radii()
    fewer = cells[~((cells["attack"] == "eot_pgd") & (cells["epsilon"] < 8 / 255))]
    table = epsilon_curve.facts(fewer, NAMES)
    worst = table[(table["curve"] == epsilon_curve.WORST) & (table["epsilon"] > 0)]
    assert (255 * worst[worst["defense"] == "mi_ol"]["epsilon"]).round(6).tolist() == [8]
    assert (255 * worst[worst["defense"] == "none"]["epsilon"]).round(6).tolist() == [2, 8]
    single = table[(table["curve"] == "PGD-50, untargeted") & (table["defense"] == "mi_ol")]
    assert (255 * single["epsilon"]).round(6).tolist() == [0, 2, 8]


@pytest.mark.parametrize(("settings", "banded"), [(6, True), (7, False)])
def test_bands_are_drawn_where_curves_are_few_enough_to_be_told_apart(settings: int, banded: bool) -> None:
    rows = []
    for number in range(settings):
        rows.append(cell("mixup", "mi_ol", {"lam": number / 10}, "none", 0.9))
        for epsilon in (2 / 255, 8 / 255):
            rows.append(cell("mixup", "mi_ol", {"lam": number / 10}, "pgd", 0.5, epsilon=epsilon))
    table = epsilon_curve.facts(frame(*rows), NAMES)
    title, note = epsilon_curve.describe(table)
    panel = epsilon_curve.draw(table, NAMES, title, note).axes[0]
    bands = [drawn for drawn in panel.collections if isinstance(drawn, PolyCollection)]
    assert len(bands) == (settings if banded else 0)
    assert [list(line.get_ydata()) for line in panel.lines[:settings]] == [pytest.approx([90, 50, 50])] * settings
    assert ("bands: 95 %" in note) == banded


def test_each_norm_has_curves_of_its_own_with_radii_in_its_own_unit() -> None:
    cells = radii()
    l2 = cells[cells["attack"] != "none"].assign(norm="l2", epsilon=lambda rows: 20 * rows["epsilon"])
    l2["cell"] += " in L2"
    table = epsilon_curve.facts(pd.concat([cells, l2], ignore_index=True), NAMES)
    plain = [name for name in dict.fromkeys(table["curve"]) if not name.endswith(", L2")]
    assert {f"{name}, L2" for name in plain} == {*dict.fromkeys(table["curve"])} - {*plain}
    for name in plain:
        here, there = (table[table["curve"] == each].reset_index(drop=True) for each in (name, f"{name}, L2"))
        assert set(there["norm"]) == {"l2"}
        assert there["epsilon"].tolist() == pytest.approx((20 * here["epsilon"]).tolist())
        assert there["accuracy"].tolist() == here["accuracy"].tolist()
    figure = epsilon_curve.draw(table, NAMES, *epsilon_curve.describe(table))
    for axes in (axes for axes in figure.axes if axes.get_visible()):
        levels = "L2" not in axes.get_title()
        assert axes.get_xlabel() == ("ε · 255" if levels else "ε")
        drawn = {float(x) for line in axes.lines for x in line.get_xdata()}
        assert max(drawn) == pytest.approx(8 if levels else 160 / 255)


@pytest.mark.parametrize("classifiers", [["mixup"], ["mixup", "at"]])
def test_many_attacks_on_one_classifier_stand_side_by_side(classifiers: list[str]) -> None:
    rows = [cell(name, "none", {}, "none", 0.9) for name in classifiers]
    for number, name in itertools.product(range(6), classifiers):
        for epsilon in (2 / 255, 8 / 255):
            rows.append(cell(name, "none", {}, "pgd", 0.8 - number / 10, **pgd(10 + number, epsilon=epsilon)))
    table = epsilon_curve.facts(frame(*rows), NAMES)
    curves = list(dict.fromkeys(table["curve"]))
    assert len(curves) == 6
    figure = epsilon_curve.draw(table, NAMES, *epsilon_curve.describe(table))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    across = 4 if len(classifiers) == 1 else 2
    assert [axes.get_title() for axes in shown] == [f"{c}: {curve}" for curve in curves for c in classifiers]
    assert [axes.get_subplotspec().get_geometry()[:2] for axes in figure.axes] == [  # type: ignore[union-attr]
        (2 if len(classifiers) == 1 else 6, across)
    ] * len(figure.axes)
    assert [axes.get_xlabel() != "" for axes in shown] == [False] * (len(shown) - across) + [True] * across
    assert [axes.get_ylabel() != "" for axes in shown] == [place % across == 0 for place in range(len(shown))]


def crosses(axes: Any) -> int:
    """How many points of a panel are crossed out."""
    return sum(len(found.get_offsets()) for found in axes.collections if found.get_zorder() == 9)


def test_failed_cells_are_crossed_in_the_figure_and_named_under_it() -> None:
    cells = radii()
    cells.loc[cells["attack"] == "eot_pgd", ["verdict", "checks"]] = ["failed", failed("more_eot", "doubled")]
    table = epsilon_curve.facts(cells, NAMES)
    title, note = epsilon_curve.describe(table)
    assert title == "digits: accuracy against ε"
    assert "attacked cells: more_eot (2)" in note
    figure = epsilon_curve.draw(table, NAMES, title, note)
    assert [crosses(axes) for axes in figure.axes] == [0, 2, 0]


@pytest.mark.parametrize(
    ("make", "files"), [(table2.make, "table2"), (table3.make, "table3"), (paper_table.make, "paper_table")]
)
def test_tables_are_written_under_their_names(
    make: Callable[[Store, str], list[str]], files: str, store: Store
) -> None:
    write_cells(store, "s", a_table().to_dict("records"))
    assert make(store, "s") == [f"studies/s/figures/{files}.{kind}" for kind in ("md", "csv", "tex")]


def test_a_study_without_what_a_manifest_says_of_methods_is_drawn_with_names_and_spare_colours(store: Store) -> None:
    rows = [cell("mixup", name, {}, attack, 0.5) for name in ("none", "mine", "other") for attack in ("none", "pgd")]
    write_cells(store, "s", rows)
    _, names = read_study(store, "s")
    assert [names.defense(name) for name in ("none", "mine")] == ["none", "mine"]
    assert len({names.look(name).colour for name in ("none", "mine", "other")}) == 3
    assert names.threat(rows[1]) == "pgd-10, untargeted, ε = 8/255"
    assert names.threat(rows[0]) == "Clean, ε = 0"
    assert len(epsilon_curve.make(store, "s")) == 3


def test_curves_over_epsilon_are_of_the_largest_n_and_settings_of_one_defense_differ_by_dashes() -> None:
    rows = [
        cell("m", defense, params, attack, 0.5, executions=n, knowledge="oblivious" if attack == "pgd" else "none")
        for defense, params in (("none", {}), ("mi_ol", {"lam": 0.5}), ("mi_ol", {"lam": 0.6}), ("mi_pl", {"lam": 0.5}))
        for n in ((1,) if defense == "none" else (1, 10))
        for attack in ("none", "pgd")
    ]
    table = epsilon_curve.facts(frame(*rows), NAMES)
    assert set(table.loc[table["defense"] == "mi_ol", "executions"]) == {10}
    figure = epsilon_curve.draw(table, NAMES, "title", "note")
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said[1:3] == [f"{NAMES.look('mi_ol').label} lam={lam}" for lam in (0.5, 0.6)]
    assert NAMES.look("mi_pl").label in said
    dashes = [
        str(vars(line)["_dash_pattern"])
        for line in figure.axes[0].get_lines()
        if line.get_marker() == NAMES.look("mi_ol").marker
    ]
    assert len(dashes) == len({*dashes}) == 2
    # In the legend a line is so long that its marker, in the middle, leaves a gap of the dashes to be seen.
    assert figure.legends[0].handlelength == 4


def test_an_attack_that_is_kept_to_a_classifier_leaves_no_bare_axes_for_the_other() -> None:
    made = [("m", "none"), ("m", "pgd"), ("m", "apgd"), ("other", "none"), ("other", "pgd")]
    rows = [
        cell(classifier, "none", {}, attack, 0.5, knowledge="none" if attack == "none" else "oblivious")
        for classifier, attack in made
    ]
    figure = epsilon_curve.draw(epsilon_curve.facts(frame(*rows), NAMES), NAMES, "title", "note")
    told = {axes.get_title(): [text.get_text() for text in axes.texts] for axes in figure.axes}
    assert [title.split(":")[0] for title, texts in told.items() if "not measured" in texts] == ["other"]
