"""What the figures and tables say, computed from rows alone."""

import itertools
import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers.frames import NAMES, cell, failed
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mi_ray.figures import fig3b, frontier_table, tables
from mi_ray.figures.panels import cross_out, styled
from mi_ray.store.schemas import CELLS


def pair(
    defense: str, params: dict[str, Any], clean: float, adversarial: float, **changes: Any
) -> list[dict[str, Any]]:
    return [
        cell("mixup", defense, params, "none", clean, **changes),
        cell("mixup", defense, params, "pgd", adversarial, **changes),
    ]


@pytest.fixture
def cells() -> pd.DataFrame:
    failed = cell("other", "none", {}, "none", 0.0, state="failed", points=None, selection_points=None)
    rows = [
        failed,
        *pair("none", {}, 0.9, 0.1, executions=1),
        *pair("mi_ol", {"lam": 0.5}, 0.65, 0.5),
        *pair("mi_ol", {"lam": 0.7}, 0.85, 0.4),
        *pair("mi_ol", {"lam": 0.9}, 0.89, 0.2),
        *pair("mi_pl", {"lam": 0.5}, 0.3, 0.3),
    ]
    return pa.Table.from_pylist(rows, schema=CELLS).to_pandas()


def test_the_table_picks_the_most_robust_setting_within_the_clean_budget(cells: pd.DataFrame) -> None:
    table = frontier_table.facts(cells, NAMES).set_index("defense")
    assert table.loc["mi_ol", "parameters"] == "lam=0.7"
    assert table.loc["mi_ol", "PGD-10, untargeted, ε = 8/255"] == pytest.approx(0.4)
    assert bool(table.loc["mi_ol", "within_budget"])
    assert not table.loc["mi_pl", "within_budget"]


def test_the_setting_is_picked_on_selection_points_and_shown_on_the_others(cells: pd.DataFrame) -> None:
    better = (cells["defense_params"] == json.dumps({"lam": 0.9})) & (cells["attack"] == "pgd")
    cells.loc[better, "selection_accuracy"] = 0.99
    table = frontier_table.facts(cells, NAMES).set_index("defense")
    assert table.loc["mi_ol", "parameters"] == "lam=0.9"
    assert table.loc["mi_ol", "PGD-10, untargeted, ε = 8/255"] == pytest.approx(0.2)


def test_two_attacks_of_one_name_have_a_column_each(cells: pd.DataFrame) -> None:
    pgd = cells[cells["attack"] == "pgd"]
    steps = [
        pgd.assign(attack_params=json.dumps({"steps": 10, "step_size": step}), accuracy=step) for step in (0.01, 0.02)
    ]
    table = frontier_table.facts(pd.concat([cells[cells["attack"] == "none"], *steps], ignore_index=True), NAMES)
    for step in (0.01, 0.02):
        assert set(table[f"PGD-10 (step size {step}), untargeted, ε = 8/255"]) == {step}
    with pytest.raises(ValueError, match="a place each"):
        frontier_table.facts(pd.concat([cells, pgd], ignore_index=True), NAMES)


def test_the_worst_case_of_a_ball_stands_behind_its_attacks_whichever_of_them_the_study_has_first(
    cells: pd.DataFrame,
) -> None:
    mixed = cells[(cells["defense"] == "mi_ol") & (cells["attack"] == "pgd")]
    worst = mixed.assign(attack="worst_case", attack_params="{}", goal="any")
    adaptive = mixed.assign(attack="eot_pgd", knowledge="adaptive")
    small = [rows.assign(epsilon=2 / 255) for rows in (worst, adaptive)]
    table = frontier_table.facts(pd.concat([cells, worst, adaptive, *small], ignore_index=True), NAMES)
    columns = [name for name in table.columns if f"{name} low" in table.columns and name != "Clean"]
    first, other = ["PGD", "adaptive EOT", "Worst case"], ["adaptive EOT", "Worst case"]
    assert [name.split(",")[0].split("-")[0] for name in columns] == [*first, *other]


def test_one_attack_is_the_worst_case_on_f_alone_or_through_the_defense_and_not_where_another_failed_or_is_not_made(
    cells: pd.DataFrame,
) -> None:
    mixed = cells[(cells["defense"] == "mi_ol") & (cells["attack"] == "pgd")]
    adaptive = mixed.assign(attack="eot_pgd", knowledge="adaptive", accuracy=0.2)
    worst = mixed.assign(attack="worst_case", attack_params="{}", goal="any", knowledge="adaptive", accuracy=0.15)
    table = frontier_table.facts(pd.concat([cells, adaptive, worst], ignore_index=True), NAMES).set_index("defense")
    (column,) = (name for name in table.columns if name.startswith("Worst case") and name.endswith("8/255"))
    assert table[column].dropna().to_dict() == pytest.approx({"none": 0.1, "mi_ol": 0.15})
    through = cells[(cells["defense"] == "mi_pl") & (cells["attack"] == "pgd")].assign(
        attack="eot_pgd", knowledge="adaptive"
    )
    without = cells[~((cells["defense"] == "mi_pl") & (cells["attack"] == "pgd"))]
    for lost, expected in (
        (worst.head(0), 0.3),
        (through.assign(attack="worst_case", state="failed", accuracy=None), None),
    ):
        every = pd.concat([without, adaptive, worst, through, lost], ignore_index=True)
        found = frontier_table.facts(every, NAMES).set_index("defense")[column].dropna().to_dict()
        assert found.get("mi_pl") == expected
    said = frontier_table.footnote(every, table.reset_index(), NAMES)
    assert f"Not done, and shown as – or not at all: 2 of {len(every)} cells" in said
    assert not any(name.startswith("Worst case") for name in frontier_table.facts(cells, NAMES).columns)


def test_a_failed_first_cell_does_not_keep_the_table_from_being_written(cells: pd.DataFrame) -> None:
    text, note = (
        frontier_table.shown(frontier_table.facts(cells, NAMES), NAMES),
        frontier_table.footnote(cells, frontier_table.facts(cells, NAMES), NAMES),
    )
    assert "200 points" in note
    assert "| mixup | MI-OL | lam=0.7 | 10 | 85.0 [80.0, 90.0] | 40.0 [35.0, 45.0] ✓ |" in tables.markdown(text, note)
    assert r"PGD-10, untargeted, $\epsilon$ = 8/255 \\" in tables.latex(text, note)


def test_a_failed_check_is_marked_and_named_in_table_and_figure(cells: pd.DataFrame) -> None:
    bad = (cells["defense_params"] == json.dumps({"lam": 0.7})) & (cells["attack"] == "pgd")
    cells.loc[bad, ["verdict", "checks"]] = ["failed", failed("more_steps", "doubled: 40.0 % against 30.0 %")]
    text, note = (
        frontier_table.shown(frontier_table.facts(cells, NAMES), NAMES),
        frontier_table.footnote(cells, frontier_table.facts(cells, NAMES), NAMES),
    )
    column = "PGD-10, untargeted, ε = 8/255"
    assert list(text[column].str[-1]) == ["✓", "✗", "✓"]
    assert (
        "more_steps in 1 (first mixup, MI-OL lam=0.7, N = 10, PGD-10, untargeted, ε = 8/255: doubled: 40.0 % against 30.0 %)"
        in note
    )
    assert r"$\times$" in tables.latex(text, note)
    _, said = fig3b.describe(fig3b.facts(cells), NAMES)
    assert "attacked cells: more_steps (1)" in said


def test_a_curve_follows_its_axis_and_far_settings_are_counted_not_drawn(cells: pd.DataFrame) -> None:
    table = fig3b.facts(cells)
    curve = table[(table["defense"] == "mi_ol") & table["curve"]]
    assert [json.loads(text)["lam"] for text in curve["defense_params"]] == [0.5, 0.7, 0.9]
    assert list(table[~table["shown"]]["defense"]) == ["mi_pl"]
    title, note = fig3b.describe(table, NAMES)
    assert title == "digits: PGD-10, untargeted, ε = 8/255"
    assert "chosen on 100 selection points" in note
    assert "settings that give up over 30 points of clean accuracy, not shown: 1" in note


def test_the_figure_has_a_panel_for_each_classifier_and_rings_the_undominated(cells: pd.DataFrame) -> None:
    table = fig3b.facts(cells)
    assert set(table[table["undominated"]]["defense_params"]) == {
        json.dumps({}),
        json.dumps({"lam": 0.5}),
        json.dumps({"lam": 0.7}),
        json.dumps({"lam": 0.9}),
    }
    figure = fig3b.draw(table, NAMES, "title", "note")
    assert [axes.get_title() for axes in figure.axes] == ["mixup"]


WORST: dict[str, Any] = {"attack_params": "{}", "goal": "any", "knowledge": "adaptive"}


def with_worst(cells: pd.DataFrame, knowledge: str = "adaptive", **accuracies: float) -> pd.DataFrame:
    """The cells with worst cases at these accuracies: of no defense, and of each setting of MI-OL by its λ in per cent."""
    rows = [
        cell("mixup", "none", {}, "worst_case", accuracies["none"], executions=1, **WORST | {"knowledge": "oblivious"})
    ]
    for lam in (50, 70, 90):
        changes = WORST | {"knowledge": knowledge}
        rows.append(cell("mixup", "mi_ol", {"lam": lam / 100}, "worst_case", accuracies[f"lam{lam}"], **changes))
    return pd.concat([cells, pa.Table.from_pylist(rows, schema=CELLS).to_pandas()], ignore_index=True)


def drawn_lines(figure: Figure) -> dict[float, list[Any]]:
    """The lines of the first panel that join several settings, by their width."""
    found: dict[float, list[Any]] = {}
    for line in figure.axes[0].get_lines():
        if len(line.get_xdata()) > 2 and line.get_linestyle() != "None":  # the caps of bars are lines of marks alone
            found.setdefault(line.get_linewidth(), []).append(line)
    return found


def test_a_thin_line_is_of_the_first_attack_and_a_bold_one_of_the_worst_case_of_the_same_settings(
    cells: pd.DataFrame,
) -> None:
    table = fig3b.facts(with_worst(cells, none=0.05, lam50=0.04, lam70=0.08, lam90=0.06))
    figure = fig3b.draw(table, NAMES, *fig3b.describe(table, NAMES))
    thin, bold = (found for _, found in sorted(drawn_lines(figure).items()))
    assert max(drawn_lines(figure)) > 2 * min(drawn_lines(figure))
    assert [line.get_ydata().tolist() for line in thin] == [pytest.approx([50, 40, 20])]
    assert [line.get_ydata().tolist() for line in bold] == [pytest.approx([4, 8, 6])]
    assert thin[0].get_xdata().tolist() == bold[0].get_xdata().tolist()
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["No defense", "MI-OL", "PGD-10 (oblivious)", "Worst case", "Undominated on selection"]
    assert "worst case: the worst of 1 attacks, point by point" in fig3b.describe(table, NAMES)[1]
    assert "point by point (known of 3 of 4 settings of mixup, which alone" in fig3b.describe(table, NAMES)[1]
    every = fig3b.facts(with_worst(cells[cells["defense"] != "mi_pl"], none=0.05, lam50=0.04, lam70=0.08, lam90=0.06))
    assert "known of" not in fig3b.describe(every, NAMES)[1]


def test_the_note_says_of_how_many_attacks_worst_cases_are_where_settings_met_fewer_than_others(
    cells: pd.DataFrame,
) -> None:
    """Found in a study whose adaptive attacks were kept to one setting: all others were said to have met them too."""
    one = (cells["attack"] == "pgd") & (cells["defense_params"] == json.dumps({"lam": 0.5}))
    more = cells[one].assign(attack="eot_pgd", knowledge="adaptive")
    table = fig3b.facts(
        with_worst(pd.concat([cells, more], ignore_index=True), none=0.05, lam50=0.04, lam70=0.08, lam90=0.06)
    )
    assert "worst case: the worst of 1 to 2 attacks, point by point" in fig3b.describe(table, NAMES)[1]


def test_the_note_says_n_where_all_defenses_have_one(cells: pd.DataFrame) -> None:
    (n,) = set(cells.loc[cells["defense"] != "none", "executions"])
    assert f" images, N = {n}; bars" in fig3b.describe(fig3b.facts(cells), NAMES)[1]
    cells.loc[cells["defense"] == "mi_pl", "executions"] = n + 1
    assert " images; bars" in fig3b.describe(fig3b.facts(cells), NAMES)[1]


def test_on_a_line_with_few_adaptive_attacks_the_settings_that_met_one_are_edged(cells: pd.DataFrame) -> None:
    worst = with_worst(cells, none=0.05, lam50=0.04, lam70=0.08, lam90=0.06)
    real = (worst["attack"] == "worst_case") & (worst["defense"] != "none")
    for adaptive, kinds, edged in (
        (
            real & (worst["defense_params"] == json.dumps({"lam": 0.7})),
            ["Worst of oblivious ones", "Worst of adaptive ones too"],
            [[8]],
        ),
        (real, ["Worst case"], []),
    ):
        known = worst["knowledge"].mask(real, "oblivious").mask(adaptive, "adaptive")
        table = fig3b.facts(worst.assign(knowledge=known))
        figure = fig3b.draw(table, NAMES, *fig3b.describe(table, NAMES))
        said = [text.get_text() for text in figure.legends[0].get_texts()]
        assert [text for text in said if text.startswith("Worst")] == kinds
        lines = [line for line in figure.axes[0].get_lines() if line.get_markeredgecolor() == "black"]
        marked = [line.get_ydata().tolist() for line in lines if line.get_markersize() == fig3b.EDGED["ms"]]
        assert marked == [pytest.approx(each) for each in edged]


def test_a_line_is_dashed_for_the_settings_on_it_and_not_for_those_that_it_leaves_out(cells: pd.DataFrame) -> None:
    """A defense of several axes whose adaptive attacks were kept to its best settings, which alone are on its line."""
    rows = []
    for pool, lam, clean, left in ((4, 0.5, 0.7, 0.5), (4, 0.6, 0.75, 0.45), (4, 0.7, 0.8, 0.4), (8, 0.7, 0.7, 0.3)):
        values, known = {"lam": lam, "pool": pool}, {"knowledge": "adaptive" if pool == 4 else "oblivious"}
        rows += pair("mi_ol", values, clean, left)
        rows.append(cell("mixup", "mi_ol", values, "worst_case", left, **WORST | known))
    worst = pa.Table.from_pylist(rows, schema=CELLS).to_pandas()
    table = fig3b.facts(pd.concat([cells[cells["defense"] == "none"], worst], ignore_index=True))
    figure = fig3b.draw(table, NAMES, *fig3b.describe(table, NAMES))
    assert [line.is_dashed() for line in drawn_lines(figure)[fig3b.WIDTHS[1]]] == [False]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text for text in said if text.startswith("Worst")] == ["Worst case"]


def test_rings_are_of_the_worst_case_alone_and_judged_on_selection_points_where_there_are_some(
    cells: pd.DataFrame,
) -> None:
    worst = with_worst(cells, none=0.05, lam50=0.04, lam70=0.08, lam90=0.06)
    table = fig3b.facts(worst)
    ringed = table[table["ringed"]]
    assert set(ringed["line"]) == {"worst"}
    assert sorted(ringed["adversarial"]) == pytest.approx([0.05, 0.06, 0.08])  # lam 0.5 is below lam 0.7 in both
    better = (worst["attack"] == "worst_case") & (worst["defense_params"] == json.dumps({"lam": 0.5}))
    worst.loc[better, "selection_accuracy"] = 0.5
    assert 0.04 in set(fig3b.facts(worst).query("ringed")["adversarial"].round(6))
    alone = fig3b.facts(worst.assign(selection_accuracy=None, selection_points=0))
    assert sorted(alone.query("ringed")["adversarial"]) == pytest.approx([0.05, 0.06, 0.08])
    said = fig3b.draw(alone, NAMES, "title", "note").legends[0].get_texts()
    assert said[-1].get_text() == "Undominated"


def test_a_worst_case_without_an_adaptive_attack_is_told_from_one_with(cells: pd.DataFrame) -> None:
    table = fig3b.facts(with_worst(cells, "oblivious", none=0.05, lam50=0.04, lam70=0.08, lam90=0.06))
    figure = fig3b.draw(table, NAMES, "title", "note")
    (bold,) = drawn_lines(figure)[max(drawn_lines(figure))]
    assert bold.is_dashed()
    assert "Worst of oblivious ones" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_study_of_one_attack_has_thin_lines_and_says_that_it_has_no_worst_case(cells: pd.DataFrame) -> None:
    table = fig3b.facts(cells)
    note = fig3b.describe(table, NAMES)[1]
    assert "no worst case: the study has one attack at this ε" in note
    assert list(drawn_lines(fig3b.draw(table, NAMES, "title", note))) == [min(fig3b.WIDTHS)]


def test_a_worst_case_at_another_radius_is_not_drawn(cells: pd.DataFrame) -> None:
    worst = with_worst(cells, none=0.05, lam50=0.04, lam70=0.08, lam90=0.06)
    worst.loc[worst["attack"] == "worst_case", "epsilon"] = 16 / 255
    assert set(fig3b.facts(worst)["line"]) == {"first"}


def test_panels_have_axes_of_their_own_and_stand_in_at_most_threes(cells: pd.DataFrame) -> None:
    others = [cells.assign(classifier=name, classifier_key=name) for name in ("b", "c", "d")]
    weak = others[2]["attack"] == "pgd"
    others[2].loc[weak, "accuracy"] -= 0.1
    table = fig3b.facts(pd.concat([cells, *others], ignore_index=True))
    figure = fig3b.draw(table, NAMES, "title", "note")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["mixup", "b", "c", "d"]
    assert [axes.get_ylim() == panels[0].get_ylim() for axes in panels] == [True, True, True, False]
    assert len({axes.get_subplotspec().rowspan.start for axes in panels}) == 2


def test_long_names_of_classifiers_do_not_lie_over_each_other(cells: pd.DataFrame) -> None:
    names = [f"{letter}{'long_name_of_a_classifier_' * 4}"[:96] for letter in "abcd"]
    table = fig3b.facts(pd.concat([cells.assign(classifier=name, classifier_key=name) for name in names]))
    with styled(fig3b.PRINT):
        figure = fig3b.draw(table, NAMES, "title", "note")
        FigureCanvasAgg(figure).draw()
        drawn = [axes.title.get_window_extent() for axes in figure.axes if axes.get_visible()]
        short = fig3b.draw(table.assign(classifier=table["classifier"].str[0]), NAMES, "title", "note")
    assert not any(one.overlaps(other) for one, other in itertools.combinations(drawn, 2))
    assert all(0 <= box.x0 < box.x1 <= figure.bbox.width for box in drawn)
    assert figure.get_figheight() > short.get_figheight() + 0.2


def test_each_radius_of_the_first_attack_has_its_panels_and_is_judged_in_them_alone(cells: pd.DataFrame) -> None:
    pgd = cells["attack"] == "pgd"
    smaller = cells[pgd].assign(epsilon=4 / 255, accuracy=cells["accuracy"] + 0.1, attack_params='{"steps": 5}')
    apgd = cells[pgd].assign(attack="apgd", epsilon=4 / 255)
    table = fig3b.facts(pd.concat([cells, smaller, apgd], ignore_index=True))
    figure = fig3b.draw(table, NAMES, *fig3b.describe(table, NAMES))
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["mixup, ε = 8/255", "mixup, ε = 4/255"]
    assert [axes.get_xlabel() for axes in panels] == ["Clean accuracy (%)"] * 2
    assert len({axes.get_subplotspec().rowspan.start for axes in panels}) == 1  # one classifier each: side by side
    alone = fig3b.facts(cells)
    one = table[table["epsilon"] == 8 / 255].reset_index(drop=True)
    pd.testing.assert_frame_equal(one.drop(columns="others"), alone.drop(columns="others"))
    assert set(table["others"]) == {1}
    title, note = fig3b.describe(table, NAMES)
    assert title == "digits: PGD-10, untargeted"
    assert "no worst case: the study has one attack at each ε" in note
    assert "further attacks of the study, not shown: 1" in note


def test_of_one_setting_a_defense_there_are_markers_alone_hollow_first_and_filled_in_the_worst_case(
    cells: pd.DataFrame,
) -> None:
    of_all = with_worst(cells, none=0.02, lam50=0.02, lam70=0.02, lam90=0.02)
    table = fig3b.facts(of_all[of_all["defense_params"].isin(["{}", json.dumps({"lam": 0.5})])])
    title, note = fig3b.describe(table, NAMES)
    assert title.endswith(", and the worst case")
    assert "bars: 95 % intervals, where there is room; rings: undominated, chosen" in note
    axes = fig3b.draw(table, NAMES, title, note).axes[0]
    marked = [line for line in axes.get_lines() if line.get_marker() not in ("", "None", "*", "_", "|")]
    faces = {(float(line.get_ydata()[0]) == 2.0, line.get_markerfacecolor() == "white") for line in marked}  # type: ignore[index]
    assert faces == {(True, False), (False, True)}
    assert {line.get_linestyle() for line in marked} == {"None"}


def test_a_radius_with_fewer_classifiers_leaves_places_of_its_row_empty(cells: pd.DataFrame) -> None:
    other = cells.assign(classifier="b", classifier_key="b")
    smaller = cells[cells["attack"] == "pgd"].assign(epsilon=4 / 255)
    figure = fig3b.draw(fig3b.facts(pd.concat([cells, other, smaller], ignore_index=True)), NAMES, "title", "note")
    at = {axes.get_title(): axes.get_subplotspec() for axes in figure.axes if axes.get_visible()}
    places = {name: (found.rowspan.start, found.colspan.start) for name, found in at.items() if found is not None}
    assert places == {"mixup, ε = 8/255": (0, 0), "b, ε = 8/255": (0, 1), "mixup, ε = 4/255": (1, 0)}


def test_bars_are_of_ringed_settings_and_stand_apart(cells: pd.DataFrame) -> None:
    assert fig3b.apart([3.0, 3.2, 2.0, 1.4, 3.9], 0.5).tolist() == [True, False, True, True, True]
    near = cells["defense_params"] == json.dumps({"lam": 0.9})
    cells.loc[near & (cells["attack"] == "none"), ["accuracy", "selection_accuracy"]] = 0.851
    cells.loc[near & (cells["attack"] == "pgd"), ["accuracy", "selection_accuracy"]] = 0.3
    table = fig3b.facts(cells)
    assert sorted(table.query("ringed")["clean"]) == pytest.approx([0.65, 0.85, 0.851, 0.9])
    bars = [
        c.get_segments() for c in fig3b.draw(table, NAMES, "", "").axes[0].collections if hasattr(c, "get_segments")
    ]
    upright, level = ([segment for part in bars for segment in part if np.ptp(segment[:, at]) == 0] for at in (0, 1))
    assert sorted(segment[0, 0] for segment in upright) == pytest.approx([65, 85, 90])
    assert sorted(segment[0, 1] for segment in level) == pytest.approx([10, 30, 40, 50])


def test_bars_of_settings_at_one_place_do_not_cover_each_other(cells: pd.DataFrame) -> None:
    cells[["accuracy", "selection_accuracy"]] = 0.5
    table = fig3b.facts(cells)
    assert len(table.query("ringed")) == len(table) == 5
    parts = [
        c.get_segments() for c in fig3b.draw(table, NAMES, "", "").axes[0].collections if hasattr(c, "get_segments")
    ]
    assert [len(part) for part in parts] == [1, 1]


def test_no_defense_at_0_percent_is_drawn_whole_and_so_is_a_single_setting(cells: pd.DataFrame) -> None:
    bare = (cells["defense"] == "none") & (cells["attack"] == "pgd")
    cells.loc[bare, ["accuracy", "accuracy_low", "accuracy_high"]] = [0.0, 0.0, 0.04]
    only = cells[(cells["defense"] == "none") | (cells["defense_params"] == json.dumps({"lam": 0.7}))]
    axes = fig3b.draw(fig3b.facts(only), NAMES, "title", "note").axes[0]
    stars = [line for line in axes.get_lines() if line.get_marker() == "*"]
    assert [line.get_ydata().tolist() for line in stars] == [[0.0]]
    assert not stars[0].get_clip_on()
    assert [line.get_ydata().tolist() for line in axes.get_lines() if line.get_marker() == "X"] == [[pytest.approx(40)]]


def test_further_attacks_are_named_as_not_shown(cells: pd.DataFrame) -> None:
    more = cells[cells["attack"] == "pgd"].assign(goal="targeted", cell=lambda frame: frame["cell"] + "t")
    _, note = fig3b.describe(fig3b.facts(pd.concat([cells, more], ignore_index=True)), NAMES)
    assert "further attacks of the study, not shown: 1" in note


def test_a_point_whose_cell_failed_a_check_is_crossed_out_and_no_other() -> None:
    axes = Figure().subplots()
    cross_out(axes, [1.0, 2.0], [3.0, 4.0], pd.DataFrame({"verdict": ["passed", "failed"]}))
    (crosses,) = axes.collections
    assert crosses.get_offsets().tolist() == [[2.0, 4.0]]
