"""A study of rotations and shifts beside the max norm, from its plan to its figures, without Ray."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from helpers.plans import planned
from helpers.studies import Tiny, checked_cells, finish, judged, problems_in, tiny
from helpers.sweeps import classifier as entry
from torch import nn

from mi_ray.figures import epsilon_curve, exporting
from mi_ray.figures.claims import Claim, facts
from mi_ray.figures.names import radii_text
from mi_ray.plan.work import Inputs
from mi_ray.store.read import read_cells
from mi_ray.store.schemas import images_column
from mi_ray.study.verdicts import Verdicts

GRID = {"method": "grid", "angles": 3, "shifts": 3}
STUDY: dict[str, Any] = {
    "points": {"count": 40, "selection": 10},
    "classifiers": entry(architecture={"cnn_small": 8}, mean=[0.5, 0.4, 0.3], std=[0.25, 0.3, 0.2]),
    "attacks": [
        {"pgd": {"steps": 5, "step_size": 0.02}, "epsilon": 1},
        {"spatial": GRID, "norm": "spatial", "epsilon": [0.4, 1]},
        {"spatial": {"k": 4}, "norm": "spatial", "epsilon": 1},
        {"spatial": {**GRID, "shifts": 1, "eot": 2}, "norm": "spatial", "epsilon": 1, "knowledge": "adaptive"},
    ],
    "defenses": [{"gaussian_noise": 0.05}],
    "executions": 3,
    "draws": 2,
    "checks": {"points": 40, "black_box": "always"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, classifier: nn.Module) -> Iterator[Tiny]:
    """A finished study with all checks, of controls of a few queries; read only."""
    yield from judged(tmp_path_factory.mktemp("spatial"), classifier, STUDY)


@pytest.fixture(scope="module")
def cells(finished: Tiny) -> list[dict[str, Any]]:
    """The rows of cells.parquet with their checks."""
    return checked_cells(finished)


def _of(cells: list[dict[str, Any]], norm: str) -> list[dict[str, Any]]:
    return [row for row in cells if (row["norm"], row["attack"] != "none") == (norm, True)]


def test_what_a_check_of_pixels_cannot_say_is_said_and_no_such_control_is_planned(
    finished: Tiny, cells: list[dict[str, Any]]
) -> None:
    asked = planned(**{**STUDY, "checks": {**STUDY["checks"], "binarization": 20}}).checks
    theirs = {check.name for check in asked if check.judged.identity["norm"] == "spatial"}
    assert theirs == {"reference", "epsilon_zero", "monotone_in_epsilon", "more_eot", "elsewhere"}
    pixels = {check.name for check in asked if check.judged.identity["norm"] == "linf"}
    assert {"reference", "binarization", "large_epsilon", "black_box_not_stronger"} < pixels
    assert {check.name for check in finished.plan.checks} == {check.name for check in asked} - {"binarization"}
    for row in _of(cells, "spatial"):
        found = {name: check["state"] for name, check in row["checks"].items()}
        assert found["in_ball"] == found["in_box"] == found["epsilon_zero"] == found["monotone_in_epsilon"] == "passed"
        for name in ("headway", "budget", "large_epsilon", "random_noise_not_stronger"):
            assert row["checks"][name]["why"] == "it is of changes of pixels; the attack turns and shifts the image"
        assert 0.95 * row["epsilon"] < row["checks"]["in_ball"]["spatial"] <= row["epsilon"] + 1e-6
    assert "changes of pixels" not in json.dumps([row["checks"] for row in _of(cells, "linf")])


def test_too_few_transformations_are_refused_by_the_grid_that_nobody_tunes(cells: list[dict[str, Any]]) -> None:
    """Four at random leave six times what the grid leaves; nine in a grid leave as much as its 99."""
    few = [row for row in _of(cells, "spatial") if "worst_of" in row["attack_params"]]
    assert len(few) == 2
    for row in few:
        assert [name for name, check in row["checks"].items() if check["state"] == "failed"] == ["reference"]
        assert (
            "under oblivious spatial (method grid, angles 11, shifts 3) on 40 points"
            in row["checks"]["reference"]["why"]
        )
    others = [row for row in _of(cells, "spatial") if row not in few]
    assert {row["verdict"] for row in few} == {"failed"}
    assert {row["verdict"] for row in others} == {"passed"}


def test_a_worst_case_is_of_one_norm_even_where_the_number_is_the_same(cells: list[dict[str, Any]]) -> None:
    worst = [row for row in cells if row["attack"] == "worst_case"]
    by_key = {row["cell"]: row for row in cells}
    assert {(row["norm"], row["epsilon"], row["defense"]) for row in worst} == {
        ("spatial", 1.0, "none"),
        ("spatial", 1.0, "gaussian_noise"),
    }
    for row in worst:
        members = [by_key[key] for key in json.loads(row["work"])["members"]]
        assert {each["norm"] for each in members} == {"spatial"}
        assert len(members) == (2 if row["defense"] == "none" else 3)
        assert row["accuracy"] <= min(each["accuracy"] for each in members) + 0.05


def test_a_stored_image_is_what_its_stored_transformation_makes_or_the_check_fails(
    finished: Tiny, tmp_path: Path
) -> None:
    work = next(work for work in finished.plan.attacks if work.threat.norm == "spatial" and work.threat.epsilon == 0.4)
    inputs = Inputs(work, 1)
    cell = next(cell for cell in finished.plan.cells if cell.inputs == inputs and cell.defense.name == "none")
    assert problems_in(finished.store) == []
    moved = finished.bench.results.distances(inputs, 40)
    assert 0.39 < moved.max() <= 0.4 + 1e-6
    block = next(iter(finished.store.blocks("adversarial", work.key)))
    table, facts = finished.store.read_block("adversarial", work.key, block)
    assert facts["spatial"] == pytest.approx(0.4)

    def written(**columns: pa.Array) -> str:
        """What the check of the ball says with these columns in place of the stored ones."""
        changed = table
        for name, column in columns.items():
            changed = changed.set_column(changed.schema.names.index(name), changed.schema.field(name), column)
        finished.store.write_block("adversarial", work.key, block.start, block.stop, changed, facts)
        found = Verdicts(finished.bench.results, finished.plan)._in_ball(cell, pa.table({"linf": []}))
        return f"{found.state}: {found.why}"

    images = table["image"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    shares = table["shares"].combine_chunks().flatten().to_numpy().reshape(len(table), 3)
    other = images.copy()
    other[3, 500] += 0.05
    far = shares.copy()
    far[2, 0] = 0.75
    try:
        assert written().startswith("passed: max share of 30 degrees and of a tenth of the side is 0.4, epsilon 0.4")
        assert written(image=images_column(other)).startswith(
            "failed: max share of 30 degrees and of a tenth of the side is 1.05"
        )
        assert written(shares=images_column(far)).startswith("failed")
        (told,) = problems_in(finished.store)
        assert "the largest of the shares must be at most epsilon = 0.4; it is 0.75" in told
        lost = pa.nulls(len(table), table.schema.field("shares").type)
        finished.store.write_block(
            "adversarial",
            work.key,
            block.start,
            block.stop,
            table.set_column(table.schema.names.index("shares"), table.schema.field("shares"), lost),
            facts,
        )
        (told,) = problems_in(finished.store)
        assert "must be at most epsilon = 0.4; it is nan" in told
    finally:
        finished.store.write_block("adversarial", work.key, block.start, block.stop, table, facts)
    assert problems_in(finished.store) == []


def test_blocks_of_other_norms_have_no_transformation(finished: Tiny) -> None:
    work = next(work for work in finished.plan.attacks if work.threat.norm == "linf")
    block = next(iter(finished.store.blocks("adversarial", work.key)))
    table, facts = finished.store.read_block("adversarial", work.key, block)
    assert table["shares"].null_count == len(table)
    assert "spatial" not in facts


def test_figures_and_exports_say_the_norm(finished: Tiny, tmp_path: Path) -> None:
    frame = read_cells(finished.store, "tiny")
    assert radii_text(frame[frame["attack"] != "none"]) == "255/255, 0.4 (spatial), 1 (spatial)"
    epsilon_curve.make(finished.store, "tiny")
    table = finished.store.read_bytes("studies/tiny/figures/epsilon_curve.csv").decode()
    assert "Rotation and shift (angles 3, method grid, shifts 3), untargeted, spatial" in table
    assert exporting.export(finished.store, "tiny", tmp_path / "cells.json") == 4
    entries = json.loads((tmp_path / "cells.json").read_text())
    assert sorted((each["threat"]["norm"], each["eps"]) for each in entries) == [
        *[("linf", 1.0), ("spatial", 0.4), ("spatial", 1.0), ("spatial", 1.0)]
    ]


def test_a_claim_is_of_one_norm_and_epsilon_or_is_not_measured(finished: Tiny) -> None:
    grid = {"called": "the grid", "attack": "spatial", "method": "grid", "knowledge": "oblivious"}
    noise, none = {"defense": "gaussian_noise"}, {"defense": "none"}
    told = {"text": "", "where": "", "study": "tiny", "classifier": "f", "is_": "below", "by": 1.0, "at": 1.0}
    for kind, left, right in (("chosen", noise, noise), ("difference", noise, none)):
        open_, both = (
            Claim(**told, kind=kind, left=left, right=right, attack={**grid, **more})
            for more in ({}, {"norm": "spatial", "epsilon": 0.4})
        )
        table = facts(finished.store, [open_, both])
        assert (table["value"].notna()).tolist() == [False, True], table["why"].tolist()
        assert table["why"][0].startswith("attacks in 2 balls fit" if kind == "chosen" else "2 cells of tiny fit")


# The plan


def test_a_spatial_attack_changes_no_key_of_the_others() -> None:
    both, alone = (planned(attacks=STUDY["attacks"][:number], defenses=["none"]) for number in (2, 1))
    assert {cell.key for cell in alone.cells} < {cell.key for cell in both.cells}
    assert {work.key for work in alone.attacks} < {work.key for work in both.attacks}


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ({"spatial": "grid", "epsilon": 1}, "norm must be one in which spatial attacks, spatial; got linf"),
        (
            {"pgd": {}, "norm": "spatial", "epsilon": 1},
            "norm must be one in which pgd attacks, linf, l2, l1; got spatial",
        ),
        (
            {"spatial": "all", "norm": "spatial", "epsilon": 1},
            "spatial.method must be one of grid, worst_of; got 'all'",
        ),
    ],
)
def test_what_does_not_go_with_a_norm_is_refused_by_the_plan_in_one_line(attack: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        planned(attacks=[attack], defenses=["none"])


def test_a_black_box_attack_on_a_defense_speaks_for_its_worst_case(tmp_path: Path) -> None:
    one = tiny(
        tmp_path,
        points={"count": 10},
        batch=5,
        executions=1,
        draws=1,
        attacks=[{"spatial": {"k": [2, 3]}, "norm": "spatial", "epsilon": 0.5, "knowledge": "black_box"}],
        defenses=[{"gaussian_noise": {"sigma": 0.1}}],
    )
    (worst,) = [row for row in finish(one) if row["attack"] == "worst_case" and row["defense"] != "none"]
    assert "no adaptive attack on this defense" not in worst["checks"]
