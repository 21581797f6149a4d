"""What is published of CIFAR-10: the document and the verdicts are those of the published rows, and of nothing else."""

import json
import math
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import cifar10
from mi_ray.choice import frontier, picked
from mi_ray.figures import claims, fig3a
from mi_ray.figures.names import parameters
from mi_ray.figures.reading import read_study
from mi_ray.statistics import COUNTED, counts_of, paired_test
from mi_ray.store.blocks import Store
from mi_ray.store.excerpt import Compared
from mi_ray.store.read import read_cells, read_records
from mi_ray.sweep_files import load_sweep
from mi_ray.zoo import zoo_card, zoo_names

STORE = Store(cifar10.PUBLISHED)


@cache
def published(study: str) -> pd.DataFrame:
    """What each point of a published study counts; several tests read the same, which takes seconds."""
    return read_records(STORE, study, columns=COUNTED)


@cache
def published_cells() -> pd.DataFrame:
    """The cells of all published studies."""
    return read_cells(STORE)


@pytest.fixture(scope="module")
def decided() -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "read_records", lambda store, study, columns: published(study))
        return claims.facts(STORE, claims.read_claims(cifar10.CLAIMS))


def test_every_number_of_the_document_is_made_from_the_published_rows(decided: pd.DataFrame) -> None:
    assert (cifar10.DOCS / "cifar10.md").read_text(encoding="utf-8") == cifar10.document(STORE, decided)


@pytest.mark.parametrize("name", zoo_names())
def test_the_cards_of_the_zoo_say_what_the_published_rows_say(name: str) -> None:
    assert zoo_card(name)["measured"] == cifar10.measured(published_cells(), name)


def test_readme_begins_with_verdicts_of_the_published_rows(decided: pd.DataFrame) -> None:
    text = cifar10.README.read_text(encoding="utf-8")
    assert cifar10.readme(text, decided) == text


def test_the_committed_verdicts_are_those_that_the_rows_give(decided: pd.DataFrame) -> None:
    written = pd.read_csv(cifar10.PUBLISHED / "claims.csv")
    assert written["verdict"].tolist() == decided["verdict"].tolist()
    assert {"holds", "does not hold", "undecided"} <= set(decided["verdict"])


@pytest.mark.parametrize("study", STORE.folders("studies"))
def test_accuracies_are_the_shares_of_the_published_points(study: str) -> None:
    cells, rows = read_cells(STORE, study), published(study)
    rows = rows[~rows["selection"].astype(bool)]
    share = rows.groupby("cell")["correct_draws"].mean()
    done = cells[(cells["state"] == "done") & (cells["attack"] != "worst_case")].set_index("cell")
    assert ((share.loc[done.index] / done["draws"] - done["accuracy"]).abs() < 1e-9).all()


def test_defenses_are_compared_at_settings_that_the_selection_points_choose_within_what_they_may_cost(
    decided: pd.DataFrame,
) -> None:
    cells = read_cells(STORE, "cifar10_fig3b")
    cells = cells[cells["classifier"] == "interpolated_at"]
    clean = cells[cells["attack"] == "none"].set_index(["defense", "defense_params"])
    attacked = cells[(cells["attack"] == "pgd") & (cells["epsilon"] > 0.03) & (cells["goal"] == "untargeted")]
    attacked = attacked.set_index(["defense", "defense_params"]).sort_index()
    least = clean.loc[("none", "{}"), "selection_accuracy"] - 0.055
    best = {}
    for defense in ("mi_ol", "random_pad"):
        own = attacked.loc[defense]
        own = own[clean.loc[defense, "selection_accuracy"].reindex(own.index) >= least - 1e-9]
        best[defense] = own.sort_values("selection_accuracy").iloc[-1]["accuracy"]
    row = decided[(decided["at"] == 0.055) & decided["claim"].str.contains("Xie")].iloc[0]
    assert (row["left"], row["right"]) == pytest.approx((best["mi_ol"], best["random_pad"]))


def test_what_a_defense_gains_on_one_network_is_held_against_the_other_point_by_point(decided: pd.DataFrame) -> None:
    cells = read_cells(STORE, "cifar10_table2")
    cells = cells[(cells["attack"] == "pgd") & (cells["epsilon"] > 0.03) & (cells["goal"] == "untargeted")]
    cells = cells[[json.loads(text)["steps"] == 10 for text in cells["attack_params"]]]
    cells = cells.assign(lam=[json.loads(text).get("lam", 0) for text in cells["defense_params"]])
    rows = published("cifar10_table2").set_index(["cell", "point"])["correct_draws"]
    gains = []
    for classifier, at in (("interpolated_at", 0.6), ("at", 0.8)):
        own = cells[cells["classifier"] == classifier]
        (defended,) = own[(own["defense"] == "mi_ol") & (own["lam"] == at)].to_dict("records")
        (bare,) = own[own["defense"] == "none"].to_dict("records")
        gains.append(rows[defended["cell"]] / defended["draws"] - rows[bare["cell"]] / bare["draws"])
    row = decided[decided["claim"].str.contains("interpolated AT than with AT")].iloc[0]
    assert row["value"] == pytest.approx((gains[0] - gains[1]).mean())
    error = (gains[0] - gains[1]).std() / len(gains[0]) ** 0.5
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_detectors_are_compared_at_the_lambda_that_fig_3a_chooses_and_turned_ones_the_other_way(
    decided: pd.DataFrame,
) -> None:
    own = decided[(decided["study"] == "cifar10_fig3a") & (decided["classifier"] == "mixup")].set_index("claim")
    cells, names = read_study(STORE, "cifar10_fig3a")
    # Those that are compared: each detector takes the scores of all of its points.
    at_8 = cells["attack"].eq("none") | (255 * cells["epsilon"]).round().eq(8)
    detectors, _ = fig3a.detectors_of(STORE, cells[(cells["classifier"] == "mixup") & at_8], names)
    table = fig3a.facts(detectors)
    table = table[table["chosen"] & (table["subset"] == "all") & (table["classifier"] == "mixup")]
    table = table[table["attack"].str.endswith("8/255")].set_index("defense")
    compared = own.loc["MI-PL detects better than MI-OL, each at the λ that the selection points choose"]
    assert compared[["left", "right"]].tolist() == pytest.approx(table.loc[["mi_pl", "mi_ol"], "auc"].tolist())
    turned = own.loc["MI-PL detects better than the confidence read the other way round", "right"]
    assert turned == pytest.approx(1 - own.loc["MI-PL detects better than the confidence", "right"])


def test_nothing_that_is_published_says_where_it_was_made() -> None:
    texts = [
        path.read_text(encoding="utf-8")
        for path in Path(cifar10.PUBLISHED).rglob("*")
        if path.suffix in (".yaml", ".json", ".md", ".csv")
    ]
    assert texts
    assert not any(re.search(r"(?<![\w.])/(root|work|home|tmp)/", text) for text in texts)


def test_what_is_published_of_studies_that_a_store_does_not_have_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = Path(shutil.copytree(cifar10.PUBLISHED, tmp_path / "cifar10"))
    for study in (name for name in STORE.folders("studies") if name != "cifar10_fig5"):
        shutil.rmtree(published / f"studies/{study}")
    monkeypatch.setattr(cifar10, "PUBLISHED", published)
    before, rows = read_cells(Store(published)), read_records(Store(published), "cifar10_fig5", columns=COUNTED)
    cifar10.publish(Store(tmp_path / "empty", create=True))
    assert read_cells(Store(published)).equals(before)
    assert len(read_records(Store(published), "cifar10_fig5", columns=COUNTED)) == len(rows) > 0
    assert (published / "studies/cifar10_fig5/figures/fig5.png").exists()


def test_all_of_it_is_small() -> None:
    assert sum(path.stat().st_size for path in Path(cifar10.PUBLISHED).rglob("*") if path.is_file()) < 6e6
    written = [path.name for path in Path(cifar10.PUBLISHED).rglob("figures/*.csv")]
    assert written
    assert not {*written} & {"fig3b.csv", "epsilon_curve.csv", "paired_tests.csv", "presets_table.csv"}


def test_the_settings_under_the_cascade_are_those_that_the_selection_points_choose() -> None:
    sweep = load_sweep("cifar10/frontier")
    own = {
        (name, entry.method.name, parameters(json.dumps(dict(sorted(entry.method.values.items())))))
        for entry in sweep.defenses
        for name in entry.classifiers or ("mixup", "interpolated_at")
    }
    settings, told = frontier(read_study(STORE, "cifar10_fig3b")[0]), set()
    for name, epsilon in (("mixup", 2 / 255), ("interpolated_at", 8 / 255)):  # the radius that each is attacked at
        chosen = picked(settings[(settings["classifier"] == name) & ((settings["epsilon"] - epsilon).abs() < 1e-6)])
        rows = chosen[~chosen["defense"].isin(["none", "mi_pl"])]
        told |= {(name, row["defense"], parameters(row["defense_params"])) for _, row in rows.iterrows()}
    assert told == {entry for entry in own if entry[1] != "none"}


def test_a_publication_that_fails_leaves_what_was_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = Path(shutil.copytree(cifar10.PUBLISHED, tmp_path / "cifar10"))
    monkeypatch.setattr(cifar10, "PUBLISHED", published)
    before = {path: path.stat().st_mtime_ns for path in published.rglob("*")}

    def fails(*arguments: object, **more: object) -> None:
        raise ValueError("no excerpt")

    monkeypatch.setattr(cifar10, "excerpt", fails)
    with pytest.raises(ValueError, match="no excerpt"):
        cifar10.publish(Store(tmp_path / "empty", create=True))
    assert {path: path.stat().st_mtime_ns for path in published.rglob("*")} == before


def test_the_claims_of_a_store_are_written_as_a_document_and_as_numbers(
    decided: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "facts", lambda store, read: decided)
    document, numbers = claims.decide(cifar10.PUBLISHED, cifar10.CLAIMS, tmp_path / "mine/claims")
    assert document.read_text(encoding="utf-8") == claims.document(decided)
    assert numbers.read_bytes() == (cifar10.PUBLISHED / "claims.csv").read_bytes()
    assert [document.name, numbers.name] == ["claims.md", "claims.csv"]


def test_of_two_computations_the_published_one_comes_first_and_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def recorded(studies: dict[str, Store], out: Store, **more: object) -> None:
        asked.update(more, studies=[(study, store.uri == new.uri) for study, store in studies.items()])
        raise ValueError("recorded")

    new = Store(shutil.copytree(cifar10.PUBLISHED, tmp_path / "new"))
    for study in (name for name in new.folders("studies") if name != "cifar10_frontier"):
        shutil.rmtree(tmp_path / f"new/studies/{study}")
    monkeypatch.setattr(cifar10, "excerpt", recorded)
    with pytest.raises(ValueError, match="recorded"):
        cifar10.publish(new)
    assert asked["join"] is True
    assert asked["studies"][-1] == ("cifar10_frontier", True)  # the first of SECTIONS
    assert sorted(name for name, _ in asked["studies"]) == sorted(STORE.folders("studies"))
    assert sum(is_new for _, is_new in asked["studies"]) == 1


def test_at_a_smaller_limit_on_clean_accuracy_another_setting_is_compared(decided: pd.DataFrame) -> None:
    own = decided[(decided["classifier"] == "mixup") & (decided["attack"] == "PGD-10 2/255")].set_index("claim")
    words = "MI-OL leaves more than {} where each may give up {} clean accuracy"
    for other in ("Gaussian noise", "rotation", "Xie et al.", "Guo et al."):
        wide, narrow = (own.loc[words.format(other, limit)] for limit in ("as much", "3 points of"))
        assert [wide["setting_left"], narrow["setting_left"]] == ["lam=0.6", "lam=0.7"]
        assert wide["clean_left"] < narrow["clean_left"]
        assert wide["value"] > narrow["value"]


def test_at_a_glance_the_strongest_other_defense_stands_and_what_is_undecided_says_so() -> None:
    def claim(words: str, value: float, verdict: str = "holds", by: float = 0.0) -> dict[str, Any]:
        where = {"classifier": "interpolated_at", "attack": "PGD-10 8/255", "variant": "honest"}
        return {
            **where,
            "claim": words,
            "value": value,
            "low": value - 0.02,
            "high": value + 0.02,
            "verdict": verdict,
            "by": by,
            "points": 1000,
            "clean_left": 0.6 if "leaves more" in words else math.nan,
            "clean_right": 0.65 if "leaves more" in words else math.nan,
            "setting_left": "lam=0.7" if "noise" in words else "",
            "floor": "noise" in words,
        }

    table = pd.DataFrame(
        [
            claim("MI-OL raises accuracy over the undefended network", 0.12),
            claim("MI-OL leaves more than rotation where each may give up as much clean accuracy", 0.03),
            claim("MI-OL leaves more than noise where each may give up as much clean accuracy", -0.01, "undecided"),
            claim(
                "MI-OL leaves more than crops where each may give up as much clean accuracy", math.nan, "not measured"
            ),
            {**claim("MI-OL raises accuracy over the undefended network", 0.5), "variant": "as_published"},
            {
                **claim("MI-OL costs at most 10 points of clean accuracy at the paper's λ", -0.06, "undecided", -0.1),
                "attack": "clean",
            },
        ]
    )
    lines = [line for line in cifar10.glance(table).splitlines() if line.startswith("| ")][2:]
    told = [line.split(" | ")[1] for line in lines]
    assert told[:2] == ["-6.0 [-8.0, -4.0], 1,000 images", "+12.0 [+10.0, +14.0], 1,000 images"]
    assert told[5] == "-1.0 [-3.0, +1.0], noise, MI-OL at lam=0.7, clean -5.0, 1,000 images, both under 5 %, undecided"
    assert {told[2], told[3], told[4], *told[6:8], *(line.split(" | ")[2] for line in lines)} == {"–"}


def test_the_sentences_that_come_first_are_refused_where_a_verdict_that_they_rest_on_is_another(
    decided: pd.DataFrame,
) -> None:
    assert cifar10.short(decided) == cifar10.SHORT
    for key in cifar10.RESTS:
        row = (decided[["claim", "classifier", "attack", "variant"]] == list(key)).all(axis=1)
        assert row.sum() == 1
        with pytest.raises(ValueError, match=re.escape(key[0])):
            cifar10.short(decided.assign(verdict=decided["verdict"].mask(row, "not measured")))
        with pytest.raises(ValueError, match=re.escape(f"{key[0]} ({key[1]}, {key[2]}) is not in the table")):
            cifar10.short(decided[~row])
    cost = decided["claim"].str.removeprefix(cifar10.ANEW) == cifar10.COST
    with pytest.raises(ValueError, match=r"clean accuracy .* is at most \+0\.010"):
        cifar10.short(decided.assign(high=decided["high"].mask(cost, 0.01)))
    with pytest.raises(ValueError, match=r"clean accuracy .* is not in the table"):
        cifar10.short(decided[~cost])
    crops = decided["claim"].eq("MI-OL leaves more than Xie et al. at the paper's settings")
    with pytest.raises(ValueError, match=r"Xie et al\. at the paper's settings \(interpolated_at\) holds"):
        cifar10.short(decided.assign(verdict=decided["verdict"].mask(crops, "holds")))


def test_levels_are_told_of_the_network_whose_studies_lie_farthest_apart() -> None:
    def clean(study: str, classifier: str, accuracy: float, points: int = 400, defense: str = "none") -> dict[str, Any]:
        named = {
            "study": f"cifar10_{study}",
            "classifier": classifier,
            "defense": defense,
            "attack": "none",
            "state": "done",
            "attack_params": "{}",
            "goal": "none",
            "variants": ["", "as_published"],
        }
        return {**named, "accuracy": accuracy, "points": points}

    def attacked(study: str, accuracy: float, epsilon: float, steps: int = 10, **others: Any) -> dict[str, Any]:
        told = {"attack": "pgd", "attack_params": json.dumps({"steps": steps}), "epsilon": epsilon / 255}
        return {**clean(study, "at", accuracy), **told, "goal": "untargeted", **others}

    cells = pd.DataFrame(
        [
            clean("one", "erm", 0.85),
            clean("two", "erm", 0.86),
            clean("one", "at", 0.71),
            clean("two", "at", 0.74),
            clean("few", "at", 0.5, points=cifar10.FEW - 1),
            clean("never_attacked", "at", 0.6),
            clean("two", "at", 0.4, defense="mi_ol"),
            attacked("one", 0.29, 8),
            attacked("one", 0.27, 8, steps=50),
            attacked("one", 0.6, 2),
            attacked("two", 0.33, 8),
            attacked("two", 0.6, 8, goal="targeted"),
            attacked("two", 0.5, 8, variants=["as_published"]),
        ]
    )
    assert cifar10.levels(cells).endswith(
        "`at` is right for 71.0 % on the 400 images of `one` (29.0 % under PGD-10 at 8/255) and 74.0 % on the 400 images of "
        "`two` (33.0 % under PGD-10 at 8/255)."
    )
    for few in (cells.iloc[:0], cells[cells["attack"] == "none"], cells[cells["study"] == "cifar10_one"]):
        assert cifar10.levels(few) == ""


def test_than_how_many_other_defenses_more_is_left_is_counted_by_verdict() -> None:
    def claim(other: str, how: str, classifier: str, verdict: str) -> dict[str, str]:
        words = f"MI-OL leaves more than {other} {how}"
        return {"claim": words, "classifier": classifier, "attack": "worst case 2/255", "verdict": verdict}

    table = pd.DataFrame(
        [
            claim("noise", "under the cascade", "at", "holds"),
            claim("crops", "under the cascade", "at", "undecided"),
            claim("crops", "under the cascade", "mixup", "does not hold"),
            claim("crops", "under the longer cascade at the paper's settings", "at", "holds"),
            claim("crops", "at the paper's settings", "at", "holds"),
        ]
    )
    told = cifar10._against_others(table)
    assert "1 of 2 others on at (2/255) and 0 of 1 others on mixup (2/255) under the quick cascade" in told
    assert told.endswith(", and 1 of 1 others on at (2/255) under the longer cascade.")
    again = claim("rotation", "under the longer cascade at the paper's settings", "at", "undecided")
    again["claim"] = f"{cifar10.ANEW}{again['claim']}"
    told = cifar10._against_others(pd.concat([table, pd.DataFrame([again])], ignore_index=True))
    assert told.endswith("under the longer cascade (on images drawn anew 0 of 1 others on at (2/255)).")
    told = cifar10._against_others(table.iloc[3:])
    assert told.endswith("MI-OL is shown to beat 1 of 1 others on at (2/255) under the longer cascade.")
    assert cifar10._against_others(table.iloc[4:]) == ""


def test_sentences_that_hold_wherever_they_were_tried_say_how_often_that_was_and_what_fails_through_the_defense() -> (
    None
):
    def claim(words: str, verdict: str = "holds", said_by: str = "paper") -> dict[str, str]:
        return {"claim": words, "verdict": verdict, "said_by": said_by}

    table = pd.DataFrame(
        [
            claim("it leaves more than noise at the paper's settings"),
            claim(
                "it leaves more than noise under the longer cascade at the paper's settings", "does not hold", "here"
            ),
            claim("it leaves more than crops at the paper's settings"),
            claim(f"{cifar10.ANEW}it leaves more than crops at the paper's settings"),
            claim("it detects"),
            claim("it detects", "does not hold", "here"),
            claim("it is open", "undecided"),
        ]
    )
    assert cifar10._by_sentence(table) == (
        "2 of the paper's 4 sentences hold wherever they were tried under the attack that they are about, at other radii too (of "
        "these 1 were tried once, and 1 fail where the longer cascade goes through each defense); 1 of the 4 fail somewhere."
    )
    assert "through" not in cifar10._by_sentence(table.drop(1))
    with_checks = table.assign(checks="", floor=False, classifier="at", attack="clean")
    counted = [line.split(" | ")[1:4] for line in cifar10.counted(with_checks).splitlines()[2:4]]
    assert counted == [["5", "1", "4"], ["2", "0", "0"]]
    assert cifar10.counts(table) == "Of 5 claims of the paper 4 hold, 1 is undecided; of 2 further ones 2 do not hold."
    assert cifar10.counts(table[table["said_by"] == "here"]) == "Of 2 further ones 2 do not hold."
    none = with_checks.iloc[:0]
    assert cifar10.counts(none) == cifar10._by_sentence(none) == ""
    assert {count for line in cifar10.counted(none).splitlines()[2:4] for count in line.split(" | ")[1:-1]} == {"0"}


def test_a_cell_of_several_studies_that_was_computed_twice_is_counted_once() -> None:
    joined = [
        Compared("cifar10_a", "1", 400, 0),
        Compared("cifar10_b", "1", 400, 2),
        Compared("cifar10_b", "2", 100, 0),
    ]
    told = cifar10.processors(joined)
    assert (
        "2 cells of `a`, `b` were computed twice or more: 2 of 500 rows differ, in 1 cells, at most 2 images of one"
        in told
    )
    assert cifar10.processors([]) == ""


def test_of_the_images_drawn_anew_one_in_seven_is_among_those_that_chose_or_were_reported_before() -> None:
    points = {
        study: set(read_records(STORE, f"cifar10_{study}", columns=COUNTED)["point"])
        for study in ("fresh_table2", "table2", "fig3b")
    }
    seen = points["fresh_table2"] & (points["table2"] | points["fig3b"])
    assert len(seen) / len(points["fresh_table2"]) == pytest.approx(1 / 7, abs=0.02)


def test_mi_ol_adds_accuracy_at_the_radii_that_are_said_to_bound_its_gain() -> None:
    """The words that stand above the figure of accuracy against ε: of each network ε (in 255ths) -> which is ahead."""
    said = {"mixup": {1: 1, 2: 1, 4: 1, 8: 0, 12: 0, 16: 0}, "interpolated_at": {1: -1, 2: -1, 8: 1, 12: 1, 16: 1}}
    cells, records = read_cells(STORE, "cifar10_epsilon_curve"), published("cifar10_epsilon_curve")
    bare = cells[(cells["defense"] == "none") & (cells["attack"] == "pgd")]
    mixed = cells[(cells["defense"] == "mi_ol") & (cells["attack"] == "worst_case")]
    for name, signs in said.items():
        for epsilon, sign in signs.items():
            pair = [
                rows.loc[(rows["classifier"] == name) & np.isclose(rows["epsilon"], epsilon / 255), "cell"].item()
                for rows in (mixed, bare)
            ]
            found = paired_test(*counts_of(records, pair), 1, 1)
            assert np.sign(found.difference) == sign
            assert (found.low > 0) - (found.high < 0) == sign


def test_what_is_published_on_fewer_images_or_with_fewer_checks_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cifar10.reduced(STORE) == ""
    read = cifar10.read_document

    def of_more_images(path: Path) -> Any:
        sweep: Any = read(path)
        checks = {**sweep, "checks": "full"} if path.stem == "fig5" else sweep
        return {**checks, "points": {**sweep["points"], "count": 4 * sweep["points"]["count"]}}

    monkeypatch.setattr(cifar10, "read_document", of_more_images)
    told = cifar10.reduced(STORE)
    assert "`epsilon_curve` 200 of 800 images," in told
    assert "`fresh_table2` 5,000 of 20,000 images" in told
    assert re.search(r"`fig5` \d+ of \d+ images and with the checks alone that cost no passes", told)


def test_each_published_cell_that_can_be_computed_again_is_asked_for_by_the_attack_that_made_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of each attack of each study: the sweep of one cell has an entry of that radius, goal and knowledge."""
    monkeypatch.setattr(cifar10, "read_document", cache(cifar10.read_document))
    cells = published_cells()
    cells = cells[(cells["state"] == "done") & ~cells["attack"].isin(["worst_case", "cascade"])]
    for _, cell in cells.drop_duplicates(["study", "attack", "goal", "epsilon", "knowledge"]).iterrows():
        (entry,) = cifar10._alone(cell, "one", "data", 50)["attacks"]
        if cell["attack"] != "none":
            assert {cell["attack"], "adaptive"} & entry.keys()
            assert entry.get("knowledge", "oblivious") == cell["knowledge"]
            assert any(abs(epsilon - cell["epsilon"]) < 1e-9 for epsilon in entry["epsilon"])


def test_images_that_cells_name_today_do_not_part_them_from_those_that_were_published_before() -> None:
    told = '{"effort":"quick","images":[{"classifier":"f","pgd":{"steps":[4]}}],"rounds":1}'
    assert cifar10._without_images(told) == cifar10._without_images('{"rounds":1,"effort":"quick"}')
