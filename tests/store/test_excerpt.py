"""Excerpts: tables and figures are drawn from them as from the whole store, and they hold nothing else of single points."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from helpers.studies import Tiny

from mi_ray.figures import frontier_statistics
from mi_ray.store.blocks import Store
from mi_ray.store.excerpt import STEP, excerpt
from mi_ray.store.read import cells_table, read_cells, read_records, write_cells


@pytest.mark.parametrize("detection", [False, True])
def test_an_excerpt_gives_the_same_tables_as_its_store(original: Tiny, tmp_path: Path, detection: bool) -> None:
    out = Store(tmp_path / "excerpt", create=True)
    excerpt({"tiny": original.store}, out, detection=["tiny"] if detection else [])
    assert read_cells(out, "tiny").equals(read_cells(original.store, "tiny"))
    whole, part = (
        read_records(store, "tiny").sort_values(["cell", "point"], ignore_index=True) for store in (original.store, out)
    )
    for name in ("cell", "point", "correct_draws", "label", "selection"):
        assert np.array_equal(whole[name], part[name])
    assert part["probabilities"].isna().all()
    assert part["score"].isna().all() == (not detection)
    assert not detection or np.abs(part["score"] - whole["score"]).max() <= STEP / 2
    tables = [
        frontier_statistics.facts(read_cells(store, "tiny"), rows)
        for store, rows in ((original.store, whole), (out, part))
    ]
    assert tables[0].equals(tables[1])


@pytest.mark.parametrize("order", [["tiny", "more"], ["more", "tiny"]])
def test_a_cell_of_two_studies_is_taken_once_with_the_most_points_and_the_scores_that_one_of_them_keeps(
    original: Tiny, tmp_path: Path, order: list[str]
) -> None:
    first, out = Store(tmp_path / "first", create=True), Store(tmp_path / "excerpt", create=True)
    more = Store(shutil.copytree(original.store.root, tmp_path / "more"))
    (tmp_path / "more/studies/tiny").rename(tmp_path / "more/studies/more")
    excerpt({"tiny": original.store}, first, detection=["tiny"])
    cell = read_records(original.store, "tiny")["cell"].iloc[0]
    (block,) = more.blocks("records", cell)
    table, facts = more.read_block("records", cell, block)
    more.write_block("records", cell, 0, 40, table.slice(0, 40), {**facts, "stop": 40})
    more.remove(block.path)
    of = {"tiny": first, "more": more}
    excerpt({name: of[name] for name in order}, out, detection=["tiny"])
    rows = read_records(out, "tiny")
    assert len(rows) == len(read_records(original.store, "tiny"))
    assert not rows["score"].isna().any()


@pytest.mark.parametrize("order", [["tiny", "more"], ["more", "tiny"]])
def test_of_as_many_points_those_are_taken_that_have_their_scores(
    original: Tiny, tmp_path: Path, order: list[str]
) -> None:
    plain, out = Store(tmp_path / "plain", create=True), Store(tmp_path / "excerpt", create=True)
    excerpt({"tiny": original.store}, plain)  # an excerpt without scores
    (tmp_path / "plain/studies/tiny").rename(tmp_path / "plain/studies/more")
    of = {"tiny": original.store, "more": plain}
    excerpt({name: of[name] for name in order}, out, detection=["tiny"])
    assert not read_records(out, "tiny")["score"].isna().any()


@pytest.fixture
def otherwise(original: Tiny, tmp_path: Path) -> tuple[Store, str, int]:
    """A store with the same study as "more", where the first cell has other rows; its key, and how many points differ."""
    more = Store(shutil.copytree(original.store.root, tmp_path / "more"))
    (tmp_path / "more/studies/tiny").rename(tmp_path / "more/studies/more")
    cell = read_records(original.store, "tiny")["cell"].iloc[0]
    (block,) = more.blocks("records", cell)
    table, facts = more.read_block("records", cell, block)
    counts = table["correct_draws"].to_pylist()
    changed = pa.array([2 - count for count in counts], pa.int32())
    place = table.schema.get_field_index("correct_draws")
    more.write_block("records", cell, block.start, block.stop, table.set_column(place, "correct_draws", changed), facts)
    return more, cell, sum(count != 1 for count in counts)


def test_two_stores_with_other_rows_of_one_cell_make_no_excerpt(
    original: Tiny, otherwise: tuple[Store, str, int], tmp_path: Path
) -> None:
    more, cell, _ = otherwise
    with pytest.raises(ValueError, match=f"same rows of a cell that they share; more has others of {cell}"):
        excerpt({"tiny": original.store, "more": more}, Store(tmp_path / "excerpt", create=True))


@pytest.mark.parametrize(("scored", "kept"), [([], "tiny"), (["more"], "more")])
def test_where_they_are_joined_both_studies_say_of_it_what_its_rows_say(
    original: Tiny, otherwise: tuple[Store, str, int], tmp_path: Path, scored: list[str], kept: str
) -> None:
    more, cell, different = otherwise
    rows = cells_table(more, "more").to_pylist()
    for row in rows:
        row["accuracy"] = 0.125  # as where other rows are summed up otherwise
    write_cells(more, "more", rows)
    out, of = Store(tmp_path / "excerpt", create=True), {"tiny": original.store, "more": more}
    found = excerpt(of, out, detection=scored, join=True)
    other = "more" if kept == "tiny" else "tiny"
    assert [each for each in found if each.different] == [(other, cell, found[0].points, different)]
    assert {each.study for each in found} == {other}
    (block,) = out.blocks("records", cell)
    (own,) = of[kept].blocks("records", cell)
    names = ["point", "correct_draws"]
    rows_of = out.read_block("records", cell, block)[0].select(names), of[kept].read_block("records", cell, own)[0]
    assert rows_of[0].equals(rows_of[1].select(names))
    told = {study: read_cells(out, study).set_index("cell")["accuracy"] for study in of}
    assert (
        told["tiny"][cell] == told["more"][cell] == read_cells(of[kept], kept).set_index("cell").loc[cell, "accuracy"]
    )
    apart = [name for name in told[other].index if name != cell]
    assert told[other][apart].equals(read_cells(of[other], other).set_index("cell")["accuracy"][apart])


def test_the_mean_outputs_are_there_where_they_are_asked_for_and_nothing_is_left_to_attack(
    original: Tiny, tmp_path: Path
) -> None:
    out = Store(tmp_path / "excerpt", create=True)
    excerpt({"tiny": original.store}, out, outputs=["tiny"])
    assert out.folders("outputs")
    for key in out.folders("outputs"):
        (block,), blocks = out.blocks("outputs", key), original.store.blocks("outputs", key)
        whole = pa.concat_tables([original.store.read_block("outputs", key, one)[0] for one in blocks])
        part, facts = out.read_block("outputs", key, block)
        found, wanted = (table["probabilities"].combine_chunks().values.to_numpy() for table in (part, whole))
        assert np.abs(found - wanted).max() <= STEP / 2
        assert part.drop_columns("probabilities").equals(whole.drop_columns("probabilities"))
        assert facts["forward_passes"] == sum(original.store.block_facts(one)["forward_passes"] for one in blocks)
    assert not out.folders("adversarial")
    assert not out.folders("classifiers")
    with pytest.raises(ValueError, match="study 'other' must be in"):
        excerpt({"other": original.store}, Store(tmp_path / "other", create=True))


def test_points_that_another_study_passed_through_a_setting_are_left_out(original: Tiny, tmp_path: Path) -> None:
    store = Store(shutil.copytree(original.store.root, tmp_path / "copy"))
    blocks = [block for key in store.folders("outputs") for block in store.blocks("outputs", key)]
    file = tmp_path / "copy/studies/tiny/study.yaml"
    written = yaml.safe_load(file.read_text())
    written["points"]["count"] = first = min(block.stop for block in blocks)
    file.write_text(yaml.safe_dump(written))
    out = Store(tmp_path / "excerpt", create=True)
    excerpt({"tiny": store}, out, outputs=["tiny"])
    kept = {block.start for key in out.folders("outputs") for block in out.blocks("outputs", key)}
    assert kept == {0}
    assert any(block.start >= first for block in blocks)
