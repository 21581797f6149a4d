"""What a page holds of a study, read back from its HTML: numbers from the rows, and nothing that the rows do not say."""

import base64
import io
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.extreme import filled, write_extreme_study
from helpers.frames import cell, failed, frame
from helpers.studies import TINY
from helpers.sweeps import sweep
from PIL import Image

import mi_ray.page.write
from mi_ray.figures.names import Names
from mi_ray.page.answer import answers
from mi_ray.page.comparison import Side, comparisons
from mi_ray.page.counts import FIRST, Counts
from mi_ray.page.examples import _beside, _losses, _png, _undefended, read_examples
from mi_ray.page.facts import ReadStudy, _best, _listing, alone, load, number, study_facts, variant_names
from mi_ray.page.one_setting import RESTRICTED, attacks_part, sweep_parts
from mi_ray.page.write import library, page, write_pages
from mi_ray.statistics import paired_test
from mi_ray.store.blocks import Store
from mi_ray.store.files import DamagedFileError
from mi_ray.store.read import cells_table, read_cells, write_cells
from mi_ray.store.schemas import EXAMPLES, TRAINING
from mi_ray.study.checks import CHECKS, OPTIONAL, WORDS
from mi_ray.study.prepare import prepare
from mi_ray.sweep_files import load_sweep

PGD = {"goal": "untargeted", "epsilon": 8 / 255}


def data_of(html: str) -> dict[str, Any]:
    """The data of a page, as its own program reads them."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    assert found
    told: dict[str, Any] = json.loads(found.group(1))
    return told


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "results", create=True)
    write_extreme_study(store, clean=True, attacked=False)
    return store


def counted(cells: list[str], right: list[list[int]]) -> Counts:
    points = np.arange(len(right[0]))
    everywhere = np.ones(len(points), bool)
    return Counts({name: at for at, name in enumerate(cells)}, points, points % 10, everywhere, np.array(right), {})


def test_every_check_has_a_criterion_and_says_what_to_do_where_it_fails() -> None:
    assert set(WORDS) == {*CHECKS, *OPTIONAL}
    assert all(text.strip().endswith(".") for words in WORDS.values() for text in words)


def test_a_page_holds_every_cell_and_every_points_right_draws(store: Store) -> None:
    (study,) = data_of(page(store, ["s"]))["studies"]
    cells = read_cells(store, "s")
    assert [each["key"] for each in study["cells"]] == cells["cell"].tolist()
    assert [each["accuracy"] for each in study["cells"]] == cells["accuracy"].tolist()
    clean, attacked = chr(FIRST + 2) * 3, chr(FIRST) * 3
    assert [study["right"][at] for at in (2, 3)] == [clean, attacked]
    assert study["points"]["label"] == [0, 1, 2]
    assert study["examples"]["attacked"].keys() == {"adv 10"}
    f_says = study["examples"]["undefended"]["attacked"][0]
    assert f_says[0][0] == 1  # a wrong class comes first under attack
    assert f_says[0][1] == pytest.approx(0.7, abs=0.01)
    assert len(f_says) == 3  # of four classes


def test_a_page_shows_no_more_than_eight_examples_whatever_a_study_has_stored(store: Store) -> None:
    stored = filled(EXAMPLES, 9, point=range(9), label=[0] * 9, image=[[0.5] * 12] * 9)
    store.write_table("studies/s/examples.parquet", stored)
    assert list(read_examples(store, "s").points) == [*range(8)]


def test_a_page_names_no_address_and_no_text_of_a_study_ends_its_data(store: Store) -> None:
    told = store.read_json("studies/s/manifest.json")
    told["appearance"]["defenses"]["mi_ol"]["label"] = "</script><script>alert(1)</script><!--"
    store.write_json("studies/s/manifest.json", told)
    html = page(store, ["s"])
    assert "https:" not in html
    assert set(re.findall(r"http://[\w./]+", html)) <= {
        f"http://www.w3.org/{name}" for name in ("2000/svg", "2000/xmlns/", "1999/xlink", "1999/xhtml")
    }
    assert html.count("<script") == html.count("</script>") == 3
    assert data_of(html)["studies"][0]["looks"]["mi_ol"]["label"].startswith("</script>")


def test_a_study_without_variants_has_its_own_and_the_best_setting_of_it(store: Store) -> None:
    """As of a store from before there were variants; the page lets choose by their places, the study's own first."""
    loaded = load(store, "s")
    told = study_facts(replace(loaded, cells=loaded.cells.assign(variants=None)))
    assert told["variants"] == [""]
    assert told["best"].keys() == {"0"}


def test_a_number_that_json_does_not_know_is_refused_and_not_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page with NaN among its data could not be read by any browser."""
    monkeypatch.setattr(mi_ray.page.write, "training_curves", lambda *_: [{"loss": float("nan")}])
    with pytest.raises(ValueError, match="not JSON compliant"):
        page(store, ["s"])


def test_a_network_of_ones_own_has_no_training_to_draw(store: Store) -> None:
    store.write_table(
        f"classifiers/{read_cells(store, 's')['classifier_key'][0]}/training.parquet", TRAINING.empty_table()
    )
    (study,) = data_of(page(store, ["s"]))["studies"]
    assert study["training"] == []


@pytest.mark.parametrize("content", [b"no mapping", b"{", b"\xff\x00"])
def test_a_study_whose_sweep_is_damaged_is_refused_with_its_file(store: Store, content: bytes) -> None:
    store.write_bytes("studies/s/study.yaml", content)
    with pytest.raises(DamagedFileError, match=r"^studies/s/study\.yaml must be the sweep .*; it is damaged$"):
        page(store, ["s"])


def test_the_library_can_stand_in_a_page() -> None:
    assert not re.search(r"</script|<!--", library())
    assert "vegaEmbed" in library()


def test_the_answer_is_of_the_setting_that_the_selection_points_choose_and_of_its_rows() -> None:
    rows = [
        cell("m", "none", {}, "none", 0.9, cell="bare clean", executions=1, draws=1, selection_accuracy=0.9),
        cell("m", "none", {}, "pgd", 0.2, cell="bare", executions=1, draws=1, selection_accuracy=0.2, **PGD),
        cell("m", "mi_ol", {"lam": 0.5}, "none", 0.9, cell="a clean", selection_accuracy=0.88),
        cell("m", "mi_ol", {"lam": 0.5}, "pgd", 0.4, cell="a", selection_accuracy=0.6, **PGD),
        cell("m", "mi_ol", {"lam": 0.6}, "none", 0.9, cell="b clean", selection_accuracy=0.88),
        cell("m", "mi_ol", {"lam": 0.6}, "pgd", 0.8, cell="b", selection_accuracy=0.5, **PGD),
    ]
    store_rows = pd.DataFrame(rows)
    right = [[1] * 10, [1] * 2 + [0] * 8, [2] * 10, [2] * 4 + [0] * 6, [2] * 10, [2] * 8 + [0] * 2]
    counts = counted([row["cell"] for row in rows], right)
    (answer,) = answers(store_rows, counts, Names.of({}, store_rows["defense"]))
    assert answer["cell"] == 3  # chosen on the selection points, though the other one came out better
    first, second, third = answer["sentences"]
    assert "20.0 [15.0, 25.0] % of the attacked ones" in first
    test = paired_test(right[3], right[1], 2, 1)
    assert "mi_ol (lam=0.5): it keeps 40.0 [35.0, 45.0] % under attack" in second
    assert f"{100 * test.difference:+.1f} [" in second
    assert "no more than chance allows (paired, p = 0.5)" in second
    assert "saw the classifier alone" in third
    assert second.startswith("Of the settings that give up at most 10 points of clean accuracy the best")
    dear = store_rows.assign(
        selection_accuracy=store_rows["selection_accuracy"].where(store_rows["cell"] != "a clean", 0.5)
    )
    dear = dear[~dear["cell"].str.startswith("b ") & (dear["cell"] != "b")]
    (answer,) = answers(dear, counts, Names.of({}, dear["defense"]))
    assert answer["sentences"][1].startswith("No setting gives up at most 10 points of clean accuracy; the best")


def test_a_setting_that_fewer_attacks_were_made_on_is_no_answer() -> None:
    """Its worst case is of an attack that knows nothing of it, and looks no worse on the selection points."""
    worst = {**PGD, "attack_params": "{}", "goal": "any"}
    rows = [
        cell("m", "mi_ol", {"lam": 0.5}, "none", 0.9, cell="a clean", selection_accuracy=0.9),
        cell("m", "mi_ol", {"lam": 0.5}, "pgd", 0.5, cell="a pgd", selection_accuracy=0.5, **PGD),
        cell("m", "mi_ol", {"lam": 0.5}, "worst_case", 0.5, cell="a worst", selection_accuracy=0.5, **worst),
        cell("m", "mi_ol", {"lam": 0.6}, "none", 0.9, cell="b clean", selection_accuracy=0.9),
        cell("m", "mi_ol", {"lam": 0.6}, "pgd", 0.5, cell="b pgd", selection_accuracy=0.5, **PGD),
        cell("m", "mi_ol", {"lam": 0.6}, "eot_pgd", 0.5, cell="b eot", selection_accuracy=0.5, **PGD),
        cell("m", "mi_ol", {"lam": 0.6}, "worst_case", 0.4, cell="b worst", selection_accuracy=0.4, **worst),
    ]
    frame = pd.DataFrame(rows)
    counts = counted(frame["cell"].tolist(), [[2] * 10] * len(frame))
    told = {answer["threat"]: answer["cell"] for answer in answers(frame, counts, Names.of({}, frame["defense"]))}
    assert next(at for threat, at in told.items() if threat.startswith("Worst case")) == 6


def test_each_variant_of_a_studys_options_has_an_answer_of_its_own() -> None:
    def rows(tag: str, attacked: float, variants: list[str]) -> list[dict[str, Any]]:
        return [
            cell("m", "mi_ol", {"lam": 0.5}, "none", 0.9, cell=f"{tag} clean", draws=len(tag), variants=variants),
            cell("m", "mi_ol", {"lam": 0.5}, "pgd", attacked, cell=tag, draws=len(tag), variants=variants, **PGD),
        ]

    cells = frame(*rows("a", 0.4, [""]), *rows("bb", 0.7, ["v"]))
    counts = counted(cells["cell"].tolist(), [[1] * 10] * 4)
    own, other = answers(cells, counts, Names.of({}, cells["defense"]), variant_names(cells))
    assert [(each["variant"], each["cell"]) for each in (own, other)] == [(0, 1), (1, 3)]
    assert "it keeps 40.0 [" in own["sentences"][1]
    assert "it keeps 70.0 [" in other["sentences"][1]


WORST = {"attack_params": "{}", "goal": "any", "epsilon": 8 / 255}


def test_an_oblivious_attack_alone_is_no_worst_case_of_a_defense() -> None:
    def stands(*rows: dict[str, Any], variant: str = "") -> list[str]:
        cells = frame(cell("m", "mi_ol", {"lam": 0.5}, "none", 0.9), *rows)
        return [cells["cell"][at] for at in alone(cells, variant)]

    def attacked(defense: str, attack: str, name: str, **changes: Any) -> dict[str, Any]:
        return cell("m", defense, {}, attack, 0.5, **{**PGD, "cell": name, **changes})

    bare, blind = attacked("none", "pgd", "bare"), attacked("mi_ol", "pgd", "blind")
    knows = attacked("mi_ol", "eot_pgd", "knows", knowledge="adaptive")
    assert stands(bare, blind) == ["bare"]
    assert stands(bare, knows) == ["bare", "knows"]
    assert stands(blind, knows) == []  # Of two attacks neither is the worst at every point.
    assert stands(knows, {**blind, "state": "failed"}) == []
    assert stands({**knows, "state": "failed"}) == []
    assert stands(knows, attacked("mi_ol", "worst_case", "lost", **WORST, state="missing")) == []
    assert stands(knows, {**blind, "norm": "l2"}) == ["knows"]  # In a ball of its own.
    assert stands({**bare, "variants": ["", "v"]}, {**knows, "variants": ["v"]}) == ["bare"]
    assert stands({**bare, "variants": ["", "v"]}, {**knows, "variants": ["v"]}, variant="v") == ["bare", "knows"]


def test_no_defense_is_not_held_against_a_worst_case_of_which_an_attack_failed() -> None:
    rows = [
        cell("m", "none", {}, "none", 0.9, executions=1, draws=1),
        cell("m", "none", {}, "pgd", 0.2, executions=1, draws=1, **PGD),
        cell("m", "mi_ol", {}, "none", 0.9),
        cell("m", "mi_ol", {}, "worst_case", 0.5, **WORST, knowledge="adaptive"),
    ]
    lost = cell("m", "none", {}, "worst_case", 0.0, executions=1, draws=1, **WORST, state="failed")

    def said(*more: dict[str, Any]) -> str:
        cells = frame(*rows, *more)
        found = answers(cells, counted(cells["cell"].tolist(), [[1] * 4] * len(cells)), Names.of({}, cells["defense"]))
        return str(next(each["sentences"] for each in found if each["threat"] == "Worst case"))

    assert "Without a defense, m is right on 90.0 [85.0, 95.0] %" in said()
    assert "did not measure m without a defense under this attack" in said(lost)


def test_an_answer_of_a_broken_attack_says_that_it_is_not_to_be_quoted() -> None:
    rows = [
        cell("m", "none", {}, "none", 0.9, cell="clean", executions=1, draws=1),
        cell("m", "none", {}, "pgd", 0.2, cell="x", executions=1, draws=1, verdict="failed", **PGD)
        | {"checks": failed("more_steps", "it left less")},
    ]
    frame = pd.DataFrame(rows)
    (answer,) = answers(frame, counted(["clean", "x"], [[1] * 4, [0] * 4]), Names.of({}, frame["defense"]))
    assert "not to be quoted as it stands: the attack fails more_steps" in answer["sentences"][2]
    # Where there is no defense, an attack that saw the classifier alone has seen all.
    assert answer["sentences"][2].endswith("; it bounds what is left from above, for the attacks that were run.")


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("not run yet", "No control attack has judged this number yet; it bounds"),
        ("the points are few", "No control attack judges this number (the points are few); it bounds"),
    ],
)
def test_an_answer_that_nothing_judged_says_whether_something_still_will(why: str, told: str) -> None:
    checks = {"checks": json.dumps({"reference": {"state": "not run", "why": why}})}
    rows = [
        cell("m", "none", {}, "none", 0.9, cell="clean", executions=1, draws=1),
        cell("m", "none", {}, "pgd", 0.2, cell="x", executions=1, draws=1, verdict="not run", **PGD) | checks,
    ]
    frame = pd.DataFrame(rows)
    (answer,) = answers(frame, counted(["clean", "x"], [[1] * 4, [0] * 4]), Names.of({}, frame["defense"]))
    assert answer["sentences"][2].startswith(told)


def test_a_number_of_the_page_rounds_to_what_it_rounds_to_in_a_table() -> None:
    for value in (0.332495, 0.332505, 0.3125, 2 / 3, *(k / 999 for k in range(1000))):
        assert f"{100 * (number(value) or 0.0):.1f}" == f"{100 * value:.1f}"


def side(name: str, rows: list[dict[str, Any]], right: list[list[int]]) -> Side:
    frame = pd.DataFrame(rows)
    loaded = ReadStudy(name, frame, Names.of({}, frame["defense"]), {}, {})
    return Side(loaded, counted(frame["cell"].tolist(), right))


def test_studies_are_compared_on_the_settings_that_both_have_and_one_result_is_not_tested() -> None:
    def rows(tag: str) -> list[dict[str, Any]]:
        return [
            cell("m", "mi_ol", {"lam": 0.5}, "none", 0.9, cell="shared"),
            cell("m", "mi_ol", {"lam": 0.5}, "pgd", 0.5, cell=f"{tag} attacked", **PGD),
            cell("m", "mi_ol", {"lam": float(tag)}, "pgd", 0.5, cell=f"{tag} alone", **PGD),
        ]

    left = side("a", rows("1"), [[2] * 20, [2] * 15 + [0] * 5, [0] * 20])
    right = side("b", rows("2"), [[2] * 20, [0] * 20, [0] * 20])
    tested, same = comparisons([left, right])
    assert (same["same"], same["cells"]) == (True, [0, 0])
    assert (tested["same"], tested["cells"]) == (False, [1, 1])
    expected = paired_test([2] * 15 + [0] * 5, [0] * 20, 2)
    assert tested["difference"] == pytest.approx(expected.difference)
    assert tested["p"] == tested["p_holm"] == pytest.approx(expected.p_value, rel=0.01)


def test_a_page_holds_the_first_comparisons_corrected_over_all_and_says_of_how_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [{"studies": [0, 1], "cells": [0, 0], "same": False, "p": 0.1}] * 3
    monkeypatch.setattr(mi_ray.page.write, "comparisons", lambda _: pairs)
    monkeypatch.setattr(mi_ray.page.write, "MOST", 2)
    told = data_of(page(store, ["s"]))
    assert (told["comparisons"], told["pairs"]) == (pairs[:2], 3)


def test_worst_cases_of_other_attacks_or_of_one_draw_are_not_tested() -> None:
    def study(tag: str, attacks: list[str], draws: int = 2, loss: str = "dlr") -> Side:
        rows = [
            cell("m", "mi_ol", {}, "worst_case", 0.5, cell=f"{tag} worst", draws=draws, knowledge="adaptive", **WORST)
        ]
        rows += [
            cell("m", "mi_ol", {}, name, 0.5, cell=f"{tag} {name}", **PGD)
            | {"attack_params": json.dumps({"loss": loss})}
            for name in attacks
        ]
        return side(tag, rows, [[2] * 20] * len(rows))

    def said(right: Side) -> object:
        found = comparisons([study("a", ["pgd", "apgd"]), right])
        (told,) = (row for row in found if row["cells"] == [0, 0])
        assert ("p" in told) is ("apart" not in told)
        return told.get("apart")

    assert said(study("b", ["apgd", "pgd"])) is None
    assert said(study("b", ["pgd"])) == said(study("b", ["pgd", "apgd"], loss="cw")) == "worst of other attacks"
    assert said(study("b", ["pgd", "apgd"], draws=1)) == "worst by one draw"


def test_neither_variants_nor_studies_of_other_images_are_compared() -> None:
    def compared(variants: list[list[str]], digest: str) -> list[dict[str, object]]:
        rows = [
            cell("m", "mi_ol", {"lam": 0.5}, "pgd", 0.5, cell=f"c{at}", variants=names, **PGD)
            for at, names in enumerate(variants)
        ]
        other = side("b", [cell("m", "mi_ol", {"lam": 0.5}, "pgd", 0.5, cell="b", **PGD)], [[0] * 20])
        own = side("a", rows, [[2] * 20] * len(rows))
        manifests = [{"dataset": {"name": "d", "digest": each}} for each in (digest, "d0")]
        return comparisons(
            [
                replace(each, loaded=replace(each.loaded, manifest=m))
                for each, m in zip((own, other), manifests, strict=True)
            ]
        )

    assert [row["cells"] for row in compared([["v"], ["", "w"]], "d0")] == [[1, 0]]
    assert compared([["v"], ["", "w"]], "d1") == []


def test_a_study_without_a_finished_cell_has_a_page(tmp_path: Path) -> None:
    store = Store(tmp_path / "results", create=True)
    rows = [cell("m", "none", {}, name, 0.0) for name in ("none", "pgd")]
    missing = dict.fromkeys(("accuracy", "accuracy_low", "accuracy_high", "points", "selection_points", "verdict"))
    write_cells(store, "s", [{**row, **missing, "state": "missing", "cause": "not reached"} for row in rows])
    (study,) = data_of(page(store, ["s"]))["studies"]
    assert [each["state"] for each in study["cells"]] == ["missing", "missing"]
    assert study["answers"] == []


def test_a_report_names_what_it_cannot_show(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"study 'x' must be in .*known: s"):
        write_pages(store, ["x"])
    with pytest.raises(ValueError, match="must be different ones; got s, s"):
        write_pages(store, ["s", "s"])
    with pytest.raises(ValueError, match="has come as far as its cells"):
        write_pages(Store(tmp_path / "empty", create=True), ())


def test_a_page_that_fails_is_named_and_the_others_are_written(store: Store, run: Callable[..., Any]) -> None:
    for name in ("another", "t"):
        write_cells(store, name, cells_table(store, "s").to_pylist())
    store.write_bytes("studies/another/study.yaml", b"{")
    code, out, err = run("report", store.uri)
    assert code == 1
    assert out.split() == [f"{store.uri}/studies/{name}/report.html" for name in ("s", "t")]
    assert err.startswith("failed: the page of another: DamagedFileError: studies/another/study.yaml must be the sweep")
    assert run("report", store.uri, "--study", "another")[0] == 2
    assert run("report", store.uri, "--study", "t")[0] == 0


def test_a_store_that_keeps_no_images_has_no_losses_to_draw(store: Store) -> None:
    """As of a published study, whose attacks are stored at two steps and whose images are not published."""
    assert _losses(store, [("gone", 5), ("gone", 10)], counted(["a"], [[1]])) == {}


OPTIONS = {"pool": {"pool_augmented": True}, "labels": {"attack_labels": "predicted"}}


@pytest.mark.parametrize("variants", [{}, OPTIONS])
def test_the_sweep_of_a_setting_plans_the_very_cells_that_the_page_shows(tmp_path: Path, variants: Any) -> None:
    defenses = [{"mi_combined": {"lam_pl": 0.5, "lam_ol": [0.5, 0.6], "threshold": 0.2}}, {"mi_pl": {"lam": 0.5}}]
    adaptive = {"adaptive": {"steps": 2}, "knowledge": "adaptive", "epsilon": 0.1}
    changes = {"attacks": [*TINY["attacks"], adaptive], "variants": variants} if variants else {}
    study = prepare(sweep(**{**TINY, "defenses": defenses, **changes}))
    rows = [
        {**cell("f", "none", {}, "none", 0.5), **each.identity, "cell": each.key, "variants": each.variants}
        for each in study.plan().cells
    ]
    frame = pd.DataFrame(rows).assign(state="missing")
    whole = ReadStudy("tiny", frame, Names.of({}, frame["defense"]), {}, study.sweep.document())
    told = study_facts(whole)
    for (at, setting), variant in itertools.product(enumerate(told["settings"]), range(len(told["variants"]))):
        shown = {each["key"] for each in told["cells"] if each["setting"] == at and variant in each["variants"]}
        if not shown:
            continue
        parts = (told["yaml"][variant][setting[0]], told["attacks"][setting[7]], setting[4])
        text = "".join(parts) + f"executions: {setting[8]}\ndraws: {setting[6]}\n"
        (file := tmp_path / "one.yaml").write_text(text)
        cells = prepare(load_sweep(file)).plan().cells
        assert {name for each in cells for name in each.variants} == {""}
        assert shown <= {each.key for each in cells}
        if setting[1] != "none":
            own = [each for each in cells if each.defense.name != "none" and each.identity["executions"] == setting[5]]
            assert {each.key for each in own} == shown


@pytest.mark.parametrize("variants", [OPTIONS, "each_option"])
def test_the_sweep_of_a_setting_under_other_options_has_these_as_its_own(variants: Any) -> None:
    study = sweep(**TINY, variants=variants, options={"eight_bit": True, "draws": 7})
    for name, options in study.resolved_variants().items():
        (part,) = sweep_parts("s", study.document(), name).values()
        told = yaml.safe_load(part)
        assert told["options"] == options.model_dump()
        assert "variants" not in told


def test_the_sweep_of_a_setting_has_names_as_they_are_written() -> None:
    entry = {"transfer": {}, "images": [{"pgd": {"steps": [4]}, "classifier": "modèle"}]}
    assert "classifier: modèle\n" in attacks_part({"attacks": [entry]}, "m", "none", {})


def test_the_sweep_of_a_setting_leaves_nothing_out_that_decides_its_rows() -> None:
    written = {
        "name": "s",
        "options": {"pool_limit_mi_pl": None},
        "points": {"count": 9, "order": None},
        "plugins": [],
        "classifiers": [{"name": "m", "architecture": {"cnn_small": {}}, "factory": None}, {"name": "n"}],
        "defenses": ["none"],
    }
    frame = pd.DataFrame([cell("m", "mi_ol", {"lam": 0.5}, "none", 0.9)])
    loaded = ReadStudy("s", frame, Names.of({}, ["mi_ol"]), {}, written)
    told: Any = study_facts(loaded)
    found = yaml.safe_load(told["yaml"][0]["m"] + told["attacks"][told["settings"][0][7]] + told["settings"][0][4])
    assert found == {
        "name": "s_one",
        "options": {"pool_limit_mi_pl": None},
        "points": {"count": 9},
        "classifiers": [{"name": "m", "architecture": {"cnn_small": {}}}],
        "attacks": [],
        "defenses": [{"mi_ol": {"lam": 0.5}}],
    }


@pytest.mark.parametrize(
    ("entry", "defense", "values", "met"),
    [
        ({"pgd": {}}, "none", {}, True),
        ({"pgd": {}, "knowledge": "adaptive"}, "none", {}, False),
        ({"pgd": {}, "knowledge": "adaptive"}, "mi_ol", {"lam": 0.5}, True),
        ({"pgd": {}, "classifiers": ["n"]}, "none", {}, False),
        ({"pgd": {}, "classifiers": ["n", "m"]}, "none", {}, True),
        ({"pgd": {}, "defenses": ["mi_pl"]}, "mi_ol", {"lam": 0.5}, False),
        ({"pgd": {}, "defenses": ["mi_pl", "mi_ol"]}, "mi_ol", {"lam": 0.5}, True),
        ({"pgd": {}, "defenses": [{"mi_ol": {"lam": "1/2"}}]}, "mi_ol", {"lam": 0.5}, True),
        ({"pgd": {}, "defenses": [{"mi_ol": {"lam": 0.4}}]}, "mi_ol", {"lam": 0.5}, False),
        ({"pgd": {}, "defenses": [{"mi_ol": {"lam": [0.4, 0.5]}}]}, "mi_ol", {"lam": 0.5}, True),
        ({"pgd": {}, "defenses": [{"random_pad": {"crop": [[20, 28]]}}]}, "random_pad", {"crop": [20, 28]}, True),
        ({"pgd": {}, "defenses": [{"mi_ol": {"lam": {"uniform": [0, 1]}}}]}, "mi_ol", {"lam": 0.5}, True),
        ({"pgd": {}, "defenses": [{"mi_ol": {"lam": {"linspace": [0.4, 0.6, 3]}}}]}, "mi_ol", {"lam": 0.5}, True),
        ({"pgd": {}, "defenses": [{"mi_ol": {"lam": {"linspace": [0.4, 0.6, 3]}}}]}, "mi_ol", {"lam": 0.55}, False),
        ({"pgd": {}, "defenses": [{"mi_ol": {"lam": {"arange": [0.4, 0.9, 0.1]}}}]}, "mi_ol", {"lam": 0.9}, True),
        ({"pgd": {}, "defenses": [{"mi_ol": {"lam": {"arange": [0.4, 0.9, 0.1]}}}]}, "mi_ol", {"lam": 0.95}, False),
        ({"pgd": {}, "defenses": [{"mi_ol": {"lam": 0.5}}]}, "mi_ol", {"lam": {"uniform": [0, 1]}}, False),
    ],
)
def test_the_sweep_of_a_setting_has_the_attacks_that_it_meets(
    entry: dict[str, Any], defense: str, values: dict[str, Any], met: bool
) -> None:
    found = yaml.safe_load(attacks_part({"attacks": [entry]}, "m", defense, values))["attacks"]
    assert found == ([{name: part for name, part in entry.items() if name not in RESTRICTED}] if met else [])


@pytest.mark.parametrize("name", ["quickstart", "breadth", "cifar10/table2_worst"])
def test_a_packaged_sweep_of_one_setting_is_a_sweep(name: str) -> None:
    study = yaml.safe_load(yaml.safe_dump(load_sweep(name).document()))
    parts = sweep_parts("s", study)
    for classifier, defense in itertools.product(parts, study["defenses"]):
        ((method, values),) = [(m, v) for m, v in defense.items() if m != "classifiers"]
        one = attacks_part(study, classifier, method, values) + yaml.safe_dump({"defenses": [{method: values}]})
        assert load_sweep(yaml.safe_load(f"{parts[classifier]}{one}executions: 1\ndraws: 1\n")).name == "s_one"


def test_the_sweep_of_a_setting_has_the_classifiers_that_its_images_are_made_on() -> None:
    made = {"transfer": {}, "images": [{"pgd": {}, "classifier": "n"}]}
    study = {"attacks": [made], "classifiers": [{"name": name} for name in "mno"]}
    told = {name: yaml.safe_load(part)["classifiers"] for name, part in sweep_parts("s", study).items()}
    assert told["m"] == [{"name": "m"}, {"name": "n"}]
    assert told["n"] == [{"name": "n"}]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "no attack"),
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c", "d"], "a, b, c and d"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ],
)
def test_a_listing_names_four_at_most_and_counts_the_others(names: list[str], expected: str) -> None:
    assert _listing(names) == expected


def test_an_images_change_is_shown_around_grey_and_as_much_larger_as_there_is_room() -> None:
    clean = np.full((2, 2, 3), 0.4)
    attacked = clean.copy()
    attacked[0, 0] += 0.1
    attacked[1, 1] -= 0.1
    _, shown, gain = _beside(clean, attacked)
    levels = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))))
    assert gain == 5
    assert levels[:, :, 0].tolist() == [[255, 128], [128, 0]]


def test_the_line_of_a_defense_goes_through_its_settings_and_not_through_one_that_another_beats() -> None:
    rows = []
    for lam, clean, adversarial in ((0.4, 0.7, 0.5), (0.5, 0.8, 0.4), (0.6, 0.6, 0.3)):
        rows += [cell("f", "mi_ol", {"lam": lam}, "none", clean), cell("f", "mi_ol", {"lam": lam}, "pgd", adversarial)]
    cells = frame(cell("f", "none", {}, "none", 0.9), cell("f", "none", {}, "pgd", 0.1), *rows)
    places = {key: place for place, key in enumerate(cells["cell"])}
    found = _best(cells, "", places)
    named = {kind: sorted(cells["defense_params"][place] for place in found[kind]) for kind in found}
    assert named == {
        "undominated": ['{"lam": 0.4}', '{"lam": 0.5}', "{}"],
        "curve": ['{"lam": 0.4}', '{"lam": 0.5}', "{}"],
    }


def test_a_large_image_is_shown_small_whichever_side_is_the_longer() -> None:
    for shape in ((300, 40, 3), (40, 300, 3), (20, 30, 3)):
        shown = Image.open(io.BytesIO(base64.b64decode(_png(np.zeros(shape)))))
        assert max(shown.size) == min(max(shape[:2]), 96)


def test_a_damaged_block_of_answers_costs_a_page_these_alone() -> None:
    block = SimpleNamespace(start=0, stop=10)
    damaged = Mock(blocks=Mock(return_value=[block]), read_block=Mock(side_effect=DamagedFileError("damaged")))
    assert _undefended(damaged, [{"undefended": "key"}], [1, 2], 0) == {}
    damaged.read_block.assert_called_once()
