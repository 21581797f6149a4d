"""A study's cells in the form of RobustBench's leaderboard: one entry for each setting and radius whose worst case is known."""

from pathlib import Path

import pandas as pd
import pytest
from helpers.frames import cell, frame

from mi_ray.figures.exporting import export, leaderboard
from mi_ray.store.blocks import Store
from mi_ray.store.read import write_cells

MI_OL = {"lam": 0.5}


def test_of_one_attack_alone_the_entry_is_that_attack_where_it_may_stand_for_the_worst_case() -> None:
    rows = [cell("f", defense, params, "none", 0.9) for defense, params in (("none", {}), ("mi_ol", MI_OL))]
    oblivious = [cell("f", "none", {}, "pgd", 0.3), cell("f", "mi_ol", MI_OL, "pgd", 0.5)]
    adaptive = cell("f", "mi_ol", MI_OL, "eot_pgd", 0.4, knowledge="adaptive")
    alone = leaderboard(frame(*rows, *oblivious), "s")
    assert [(entry["name"], entry["clean_acc"], entry["reported"]) for entry in alone] == [("f", 90.0, 30.0)]
    both = leaderboard(frame(*rows, oblivious[0], adaptive), "s")
    assert [entry["reported"] for entry in both] == [30.0, 40.0]
    worst = cell("f", "mi_ol", MI_OL, "worst_case", 0.35, goal="any", attack_params="{}")
    of_all = leaderboard(frame(*rows, *oblivious, adaptive, worst), "s")
    assert sorted(entry["reported"] for entry in of_all) == [30.0, 35.0]


def test_a_study_without_an_entry_is_told_and_no_empty_file_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", create=True)
    write_cells(store, "s", [cell("f", "none", {}, "none", 0.9)])
    with pytest.raises(ValueError, match="entries need a finished setting whose worst case is known; s has none"):
        export(store, "s", tmp_path / "cells.json")
    assert not (tmp_path / "cells.json").exists()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "results", create=True)
    write_cells(store, "s", [cell("m", "none", {}, "none", 0.9)])
    with pytest.raises(ValueError, match=r"must be a place where a file can be written: .*nowhere"):
        export(store, "s", tmp_path / "nowhere" / "c.csv")


def test_a_name_that_looks_like_a_formula_is_text_in_a_workbook(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    store = Store(tmp_path / "store", create=True)
    write_cells(store, "s", [cell("=1+1", "none", {}, "none", 0.9)])
    assert export(store, "s", tmp_path / "cells.xlsx") == 1
    assert pd.read_excel(tmp_path / "cells.xlsx")["classifier"].tolist() == ["=1+1"]
