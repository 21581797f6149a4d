"""Excerpts: tables and figures are drawn from them as from the whole store, and they hold nothing else of single points."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.studies import Tiny

from mi_ray.figures import frontier_statistics
from mi_ray.store.blocks import Store
from mi_ray.store.excerpt import excerpt
from mi_ray.store.read import read_cells, read_records


@pytest.mark.parametrize("detection", [False, True])
def test_an_excerpt_gives_the_same_tables_as_its_store(original: Tiny, tmp_path: Path, detection: bool) -> None:
    out = Store(tmp_path / "excerpt", create=True)
    excerpt(original.store, out, "tiny", detection=detection)
    assert read_cells(out, "tiny").equals(read_cells(original.store, "tiny"))
    whole, part = (
        read_records(store, "tiny").sort_values(["cell", "point"], ignore_index=True) for store in (original.store, out)
    )
    for name in ("cell", "point", "correct_draws", "label", "selection"):
        assert np.array_equal(whole[name], part[name])
    assert part["probabilities"].isna().all()
    assert part["score"].isna().all() == (not detection)
    tables = [
        frontier_statistics.facts(read_cells(store, "tiny"), rows)
        for store, rows in ((original.store, whole), (out, part))
    ]
    assert tables[0].equals(tables[1])


def test_a_cell_that_two_studies_share_keeps_the_scores_that_the_first_brought(
    original: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Store(tmp_path / "excerpt", create=True)
    excerpt(original.store, out, "tiny", detection=True)
    monkeypatch.setattr(Store, "write_block", lambda *_: pytest.fail("a cell that is there is written again"))
    excerpt(original.store, out, "tiny")
    rows = read_records(out, "tiny")
    assert len(rows) == len(read_records(original.store, "tiny"))
    assert not rows["score"].isna().any()


def test_the_mean_outputs_are_there_where_they_are_asked_for_and_nothing_is_left_to_attack(
    original: Tiny, tmp_path: Path
) -> None:
    out = Store(tmp_path / "excerpt", create=True)
    excerpt(original.store, out, "tiny", outputs=True)
    assert out.folders("outputs")
    assert not out.folders("adversarial")
    assert not out.folders("classifiers")
    with pytest.raises(ValueError, match="study 'other' must be in"):
        excerpt(original.store, out, "other")


def test_points_that_another_study_passed_through_a_setting_are_left_out(original: Tiny, tmp_path: Path) -> None:
    store = Store(shutil.copytree(original.store.root, tmp_path / "copy"))
    blocks = [block for key in store.folders("outputs") for block in store.blocks("outputs", key)]
    file = tmp_path / "copy/studies/tiny/study.yaml"
    written = yaml.safe_load(file.read_text())
    written["points"]["count"] = first = min(block.stop for block in blocks)
    file.write_text(yaml.safe_dump(written))
    out = Store(tmp_path / "excerpt", create=True)
    excerpt(store, out, "tiny", outputs=True)
    kept = {block.start for key in out.folders("outputs") for block in out.blocks("outputs", key)}
    assert kept == {0}
    assert any(block.start >= first for block in blocks)
