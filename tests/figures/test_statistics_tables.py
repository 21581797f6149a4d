"""Paired tests and frontier statistics of a study, from a synthetic store whose truth is known."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from helpers.frames import APPEARANCE, NAMES

from mi_ray.choice import curve, frontier
from mi_ray.figures import frontier_statistics, paired_tests
from mi_ray.statistics import (
    cell_summary,
    counts_of,
    holm,
    paired_test,
    spread,
    undominated_share,
)
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_cells, read_records, write_cells
from mi_ray.store.schemas import CELLS, IDENTITY, RECORDS

POINTS, SELECTION, DRAWS = 120, 40, 3
# (defense, parameters): (clean, adversarial) chance of a right draw
SETTINGS: dict[tuple[str, str], tuple[float, float]] = {
    ("none", "{}"): (0.95, 0.05),
    ("gaussian_noise", '{"sigma": 0.01}'): (0.94, 0.10),
    ("gaussian_noise", '{"sigma": 0.02}'): (0.92, 0.20),
    ("gaussian_noise", '{"sigma": 0.05}'): (0.60, 0.22),
    ("mi_ol", '{"lam": 0.9}'): (0.94, 0.25),
    ("mi_ol", '{"lam": 0.7}'): (0.90, 0.45),
    ("mi_ol", '{"lam": 0.5}'): (0.84, 0.60),
}
PGD = {
    "attack": "pgd",
    "attack_params": '{"steps": 10}',
    "goal": "untargeted",
    "epsilon": 8 / 255,
    "knowledge": "oblivious",
}
CLEAN = {"attack": "none", "attack_params": "{}", "goal": "none", "epsilon": 0.0, "knowledge": "none"}


def identity(classifier: str, defense: str, params: str, threat: dict[str, Any]) -> dict[str, Any]:
    return {
        "cell": f"{classifier}-{defense}-{params}-{json.dumps(threat)}",
        "dataset": "digits",
        "classifier": classifier,
        "classifier_key": classifier,
        "norm": "linf",
        "defense": defense,
        "defense_params": params,
        "executions": 1 if defense == "none" else 10,
        "draws": DRAWS,
        **threat,
    }


def records_of(cell: dict[str, Any], counts: np.ndarray) -> pa.Table:
    size = len(counts)
    given = {
        **{name: [cell[name]] * size for name in IDENTITY},
        "correct_draws": counts,
        "point": np.arange(size)[::-1] * 7,
        "selection": np.arange(size) < SELECTION,
    }
    empty = {field.name: pa.nulls(size, field.type) for field in RECORDS}
    return pa.table(
        [pa.array(given[f.name], f.type) if f.name in given else empty[f.name] for f in RECORDS], schema=RECORDS
    )


def add_study(store: Store, name: str, cells: Iterable[dict[str, Any]], counts: Iterable[np.ndarray]) -> None:
    rows = []
    for cell, right in zip(cells, counts, strict=True):
        store.write_block("records", cell["cell"], 0, len(right), records_of(cell, right), {})
        summary = cell_summary(right, np.arange(len(right)) < SELECTION, DRAWS)
        rows.append({**dict.fromkeys(CELLS.names), **cell, **summary, "state": "done", "selected": False})
    write_cells(store, name, rows)
    store.write_json(f"studies/{name}/manifest.json", {"keys": {}, "appearance": APPEARANCE})


def drawn(seed: int, chance: float, deterministic: bool) -> np.ndarray:
    """Correct draws of every point. Each point has its own random numbers, shared by all settings."""
    each = np.random.default_rng(seed).random((DRAWS, POINTS + SELECTION))
    return DRAWS * (each[0] < chance) if deterministic else (each < chance).sum(axis=0)


def study_of(classifiers: list[str], threats: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    cells, counts = [], []
    for seed, classifier in enumerate(classifiers):
        for (defense, params), chances in SETTINGS.items():
            for threat in [CLEAN, *threats]:
                if threat["knowledge"] == "adaptive" and threat["attack"] != "worst_case" and defense == "none":
                    continue
                cells.append(identity(classifier, defense, params, threat))
                attacked = threat is not CLEAN
                counts.append(drawn(2 * seed + attacked, chances[attacked], defense == "none"))
    return cells, counts


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    made = Store(tmp_path_factory.mktemp("store") / "results", create=True)
    add_study(made, "one", *study_of(["mixup"], [PGD]))
    add_study(made, "seeds", *study_of(["mixup", "mixup@1", "mixup@2"], [PGD]))
    return made


@pytest.fixture(scope="module")
def rows(store: Store) -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_cells(store, "one"), read_records(store, "one")


def cell_id(frame: pd.DataFrame, params: str, attack: str = "pgd") -> str:
    found = frame[(frame["defense_params"] == params) & (frame["attack"] == attack)]["cell"]
    assert len(found) == 1
    return str(found.iloc[0])


def test_one_setting_a_defense_is_held_against_none_and_mi_ols_against_each_baselines(rows: Any) -> None:
    table = paired_tests.facts(*rows)
    compared = list(zip(table["left_defense_params"], table["right_defense_params"], strict=True))
    noise, mixup = '{"sigma": 0.02}', '{"lam": 0.7}'
    assert compared == [(noise, "{}"), (mixup, "{}"), (mixup, noise)]
    assert table["within_budget"].all()


def test_one_setting_is_compared_under_every_attack_though_another_is_better_under_one(tmp_path: Path) -> None:
    cells, counts = study_of(["mixup"], [PGD, {**PGD, "attack": "apgd"}])
    for at, cell in enumerate(cells):
        if cell["defense_params"] == '{"lam": 0.9}' and cell["attack"] == "apgd":
            counts[at] = np.full(POINTS + SELECTION, DRAWS)  # the best of all under this attack alone
    store = Store(tmp_path / "results", create=True)
    add_study(store, "one", cells, counts)
    table = paired_tests.facts(read_cells(store, "one"), read_records(store, "one"))
    assert set(table["attack"]) == {"pgd", "apgd"}
    assert set(table.loc[table["left_defense"] == "mi_ol", "left_defense_params"]) == {'{"lam": 0.7}'}


def test_a_row_is_the_paired_test_of_its_reported_points(rows: Any) -> None:
    cells, records = rows
    row = paired_tests.facts(cells, records).query("left_defense_params == '{\"lam\": 0.7}'").iloc[0]
    left, right = counts_of(records, [cell_id(cells, '{"lam": 0.7}'), cell_id(cells, "{}")])
    found = paired_test(left, right, DRAWS)
    assert len(left) == POINTS
    assert row["points"] == POINTS
    assert row[["difference", "low", "high", "p_value"]].tolist() == [
        found.difference,
        found.low,
        found.high,
        found.p_value,
    ]
    assert row["difference"] == pytest.approx(row["left_adversarial"] - row["right_adversarial"])
    assert row["difference"] > 0
    assert row["clean_difference"] == pytest.approx(-0.05, abs=0.05)
    assert row["method"] == "sign_flip"


def test_a_cell_that_failed_a_check_is_marked(rows: Any) -> None:
    cells, records = rows
    failed = (cells["defense_params"] == '{"lam": 0.7}') & (cells["attack"] == "pgd")
    judged = cells.assign(verdict=np.where(failed, "failed", "passed"))
    table = paired_tests.facts(judged, records)
    marks = dict(zip(table["left_defense_params"], paired_tests.shown(table, NAMES)["Checks"], strict=True))
    assert marks['{"lam": 0.7}'] == "✗ ✓"
    assert marks['{"sigma": 0.02}'] == "✓ ✓"
    curves = frontier_statistics.facts(judged, records)
    assert dict(zip(curves["defense"], frontier_statistics.shown(curves, NAMES)["Checks"], strict=True)) == {
        "none": "✓",
        "gaussian_noise": "✓",
        "mi_ol": "✗",
    }


def test_without_an_undefended_cell_defenses_are_compared_with_each_other_alone(rows: Any) -> None:
    cells, records = rows
    table = paired_tests.facts(cells[cells["defense"] != "none"], records)
    assert table[["left_defense", "right_defense"]].to_numpy().tolist() == [["mi_ol", "gaussian_noise"]]


def test_p_values_are_corrected_over_the_whole_table(rows: Any) -> None:
    table = paired_tests.facts(*rows)
    assert table["p_holm"].tolist() == holm(table["p_value"]).tolist()
    assert (table["p_holm"] >= table["p_value"]).all()
    assert (table["p_holm"] > table["p_value"]).any()


def test_settings_are_picked_on_selection_points(rows: Any) -> None:
    cells, records = rows
    better = (cells["defense_params"] == '{"lam": 0.9}') & (cells["attack"] == "pgd")
    changed = cells.assign(selection_accuracy=cells["selection_accuracy"].mask(better, 0.99))
    table = paired_tests.facts(changed, records)
    assert table.iloc[-1]["left_defense_params"] == '{"lam": 0.9}'
    assert table.iloc[-1]["left_adversarial"] < 0.5
    without = paired_tests.facts(changed.assign(selection_accuracy=np.nan), records)
    assert without.iloc[-1]["left_defense_params"] == '{"lam": 0.7}'


def test_where_no_setting_is_affordable_the_least_costly_is_picked(rows: Any) -> None:
    cells, records = rows
    mine = (cells["defense"] == "mi_ol") & (cells["attack"] == "none")
    table = paired_tests.facts(cells.assign(selection_accuracy=cells["selection_accuracy"].mask(mine, 0.4)), records)
    assert table.iloc[-1]["left_defense"] == "mi_ol"
    assert table["within_budget"].tolist() == [True, False, False]


def test_a_worst_case_is_compared_with_none_though_the_adversary_knew_more(tmp_path: Path) -> None:
    worst = {**PGD, "attack": "worst_case", "attack_params": "{}", "goal": "any"}
    adaptive = {**PGD, "attack": "eot_pgd", "knowledge": "adaptive"}
    cells, counts = study_of(["mixup"], [adaptive, worst])
    for cell in cells:
        if cell["attack"] == "worst_case" and cell["defense"] != "none":
            cell["knowledge"] = "adaptive"
    store = Store(tmp_path / "results", create=True)
    add_study(store, "one", cells, counts)
    table = paired_tests.facts(read_cells(store, "one"), read_records(store, "one"))
    found = {attack: part["right_defense"].tolist() for attack, part in table.groupby("attack")}
    assert found == {"worst_case": ["none", "none", "gaussian_noise"], "eot_pgd": ["gaussian_noise"]}
    statistics = frontier_statistics.facts(read_cells(store, "one"), read_records(store, "one"))
    assert statistics.groupby("attack")["defense"].apply(list).to_dict() == {
        "eot_pgd": ["gaussian_noise", "mi_ol"],
        "worst_case": ["none", "gaussian_noise", "mi_ol"],
    }
    assert statistics["at_0.05"].notna().any()  # the undefended clean accuracy is known under adaptive attacks too


def test_equal_cells_have_p_one_in_the_table(tmp_path: Path) -> None:
    cells = [identity("mixup", d, p, t) for d, p in [("none", "{}"), ("mi_ol", '{"lam": 1.0}')] for t in (CLEAN, PGD)]
    store = Store(tmp_path / "results", create=True)
    add_study(store, "one", cells, [drawn(0, 0.5, True)] * 4)
    row = paired_tests.facts(read_cells(store, "one"), read_records(store, "one")).iloc[0]
    assert (row["difference"], row["p_value"], row["p_holm"], row["method"]) == (0, 1, 1, "mcnemar")


def test_cells_of_other_points_are_refused(rows: Any) -> None:
    cells, records = rows
    moved = records.assign(point=records["point"] + (records["cell"] == cell_id(cells, '{"lam": 0.7}')))
    for script in (paired_tests, frontier_statistics):
        with pytest.raises(ValueError, match="rows of the same points"):
            script.facts(cells, moved)


@pytest.mark.parametrize("kept", ["attack == 'none'", "state == 'failed'"])
def test_a_study_without_anything_to_compare_is_refused(rows: Any, kept: str) -> None:
    cells, records = rows
    with pytest.raises(ValueError, match="this study has none"):
        paired_tests.facts(cells.query(kept), records)
    with pytest.raises(ValueError, match="this study has none"):
        frontier_statistics.facts(cells.query(kept), records)


def test_paired_tests_are_written_as_text_and_numbers(store: Store) -> None:
    paths = paired_tests.make(store, "one")
    assert paths == [f"studies/one/figures/paired_tests.{kind}" for kind in ("md", "csv")]
    text = store.read_bytes(paths[0]).decode()
    assert "| mixup | PGD-10, untargeted, ε = 8/255 | MI-OL (lam=0.7, N=10) | No defense |" in text
    assert "| sign flip | – – |" in text
    assert "corrected over the 3 rows" in text
    assert "chosen on 40 selection points" in text
    assert "120 reported points" in text


def test_a_curve_is_what_is_undominated_on_selection_points_and_its_numbers_are_of_the_others(rows: Any) -> None:
    cells, records = rows
    table = frontier_statistics.facts(cells, records).set_index("defense")
    settings = frontier(cells)
    mine = settings.loc[curve(settings[settings["defense"] == "mi_ol"])]
    assert table.loc["mi_ol", "on_curve"] == len(mine)
    area = -np.diff(mine["clean"], append=0) @ mine["adversarial"]
    assert table.loc["mi_ol", "hypervolume"] == pytest.approx(area)
    bare = settings.loc[settings["defense"] == "none", "clean"].iloc[0]
    for loss in frontier_statistics.LOSSES:
        expected = np.interp(bare - loss, mine["clean"][::-1], mine["adversarial"][::-1], left=np.nan, right=np.nan)
        assert table.loc["mi_ol", f"at_{loss:g}"] == pytest.approx(expected, nan_ok=True)
    assert table.loc["mi_ol", "at_0.05"] > table.loc["gaussian_noise", "at_0.05"]
    assert table.loc["mi_ol", "hypervolume_low"] > table.loc["gaussian_noise", "hypervolume_high"]


def test_settings_that_are_worse_on_selection_points_leave_the_curve(rows: Any) -> None:
    cells, records = rows
    bad = cells["defense_params"] == '{"lam": 0.7}'
    changed = cells.assign(selection_accuracy=cells["selection_accuracy"].mask(bad, 0.0))
    table = frontier_statistics.facts(changed, records).set_index("defense")
    assert table.loc["mi_ol", ["settings", "on_curve"]].tolist() == [3, 2]
    assert set(table["choosing_points"]) == {SELECTION}
    without = frontier_statistics.facts(cells.assign(selection_accuracy=np.nan), records)
    assert set(without["choosing_points"]) == {0}
    assert "no others, so optimistic" in frontier_statistics.footnote(cells, without, NAMES)


def test_the_undominated_of_all_defenses_are_counted_by_defense(rows: Any) -> None:
    cells, records = rows
    table = frontier_statistics.facts(cells, records).set_index("defense")
    settings = frontier(cells)
    counts = [counts_of(records, settings[name].tolist()) for name in ("clean_cell", "cell")]
    share = pd.Series(undominated_share(counts[0], DRAWS, counts[1], DRAWS), settings.index)[settings["undominated"]]
    by_defense = share.groupby(settings["defense"])
    assert table["undominated"].to_dict() == by_defense.size().reindex(table.index, fill_value=0).to_dict()
    expected = by_defense.sum().reindex(table.index, fill_value=0.0)
    assert table["undominated_expected"].to_dict() == pytest.approx(expected.to_dict())
    assert table.loc["mi_ol", "undominated_expected"] > 2


def test_without_an_undefended_cell_there_is_no_matched_accuracy(rows: Any) -> None:
    cells, records = rows
    table = frontier_statistics.facts(cells[cells["defense"] != "none"], records)
    assert "at_0.02" not in table
    assert list(frontier_statistics.shown(table, NAMES).columns) == [
        "Classifier",
        "Attack",
        "Defense",
        "Undominated",
        "Hypervolume (%)",
        "Checks",
    ]


def test_numbers_that_many_resamples_do_not_have_are_marked(rows: Any) -> None:
    table = frontier_statistics.facts(*rows)
    text = frontier_statistics.shown(table, NAMES)
    for loss in frontier_statistics.LOSSES:
        marked = text[f"At -{100 * loss:g} clean"].str.endswith("†")
        exists = table[f"at_{loss:g}"].notna()
        assert (marked == (exists & (table[f"at_{loss:g}_defined"] < 0.95))).all()
    assert text["At -1 clean"].str.endswith("†").any()
    assert not text["Hypervolume (%)"].str.endswith("†").any()


def test_only_the_study_itself_is_read_where_there_are_variants(rows: Any) -> None:
    cells, records = rows
    doubled = pd.concat(
        [
            cells.assign(variants=[[""]] * len(cells)),
            cells.assign(variants=[["other"]] * len(cells), cell=cells["cell"] + "-other"),
        ],
        ignore_index=True,
    )
    for script in (paired_tests, frontier_statistics):
        pd.testing.assert_frame_equal(script.facts(doubled, records), script.facts(cells, records))


def test_spread_is_over_classifiers_that_differ_in_their_seed(store: Store) -> None:
    cells = read_cells(store, "seeds")
    table = frontier_statistics.facts(cells, read_records(store, "seeds"))
    seeds = frontier_statistics.over_seeds(cells, table)
    one = seeds[(seeds["defense_params"] == '{"lam": 0.7}') & (seeds["quantity"] == "adversarial")].iloc[0]
    settings = frontier(cells)
    values = settings.loc[settings["defense_params"] == '{"lam": 0.7}', "adversarial"]
    assert len(values) == 3
    assert {name: one[name] for name in vars(spread(values))} == vars(spread(values))
    area = seeds[(seeds["defense"] == "mi_ol") & (seeds["quantity"] == "hypervolume")].iloc[0]
    assert area["mean"] == pytest.approx(table.loc[table["defense"] == "mi_ol", "hypervolume"].mean())
    assert set(seeds["classifier"]) == {"mixup"}


def test_one_training_has_no_spread(rows: Any) -> None:
    cells, records = rows
    assert frontier_statistics.over_seeds(cells, frontier_statistics.facts(cells, records)).empty


def test_frontier_statistics_are_written_with_seeds_only_where_there_are_some(store: Store) -> None:
    names = ["frontier_statistics.md", "frontier_statistics.csv", "frontier_statistics_seeds.csv"]
    assert frontier_statistics.make(store, "one") == [f"studies/one/figures/{name}" for name in names[:2]]
    paths = frontier_statistics.make(store, "seeds")
    assert paths == [f"studies/seeds/figures/{name}" for name in names]
    text = store.read_bytes(paths[0]).decode()
    assert "| mixup@2 | PGD-10, untargeted, ε = 8/255 | MI-OL |" in text
    assert "| lam=0.7, N=10 | adversarial | 3 |" in text
    assert "chosen on 40 selection points" in text
    assert "| – |" in text  # no curve of no defense reaches below its own clean accuracy
    for path in paths[1:]:  # Kinds of processor differ in the digits after these.
        numbers = re.findall(r"\d+\.\d+", store.read_bytes(path).decode())
        assert max(len(number.replace(".", "").lstrip("0")) for number in numbers) == 12
