"""A study in the L2 norm beside the max norm, from its plan to its verdicts, without Ray."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.plans import planned
from helpers.studies import Tiny, checked_cells, judged, problems_in
from helpers.sweeps import classifier as entry
from torch import nn

from mi_ray.data import to_unit
from mi_ray.plan.work import Inputs
from mi_ray.store.read import read_records
from mi_ray.study.verdicts import SETTING

RADIUS = 0.6
POINTS = 40
PGD = {"steps": 10, "step_size": 0.15}
BALLS = {("linf", 0.05), ("l2", RADIUS)}
STUDY: dict[str, Any] = {
    "points": {"count": POINTS, "selection": 10},
    "classifiers": entry(architecture={"cnn_small": 8}, mean=[0.5, 0.4, 0.3], std=[0.25, 0.3, 0.2]),
    "attacks": [
        {"pgd": {"steps": 4, "step_size": 0.02}, "epsilon": 0.05},
        {"apgd": {"steps": 4}, "epsilon": 0.05},
        {"pgd": PGD, "norm": "l2", "epsilon": RADIUS},
        {"pgd": {"steps": 1, "step_size": 0.01, "random_start": False}, "norm": "l2", "epsilon": RADIUS},
        {"eot_pgd": {"steps": 4, "step_size": 0.3, "eot": 2}, "norm": "l2", "epsilon": RADIUS, "knowledge": "adaptive"},
    ],
    "defenses": [{"gaussian_noise": 0.05}],
    "executions": 2,
    "draws": 2,
    "checks": {"points": 20, "black_box": "always"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, classifier: nn.Module) -> Iterator[Tiny]:
    """A finished study with all checks, of controls of a few queries; read only."""
    yield from judged(tmp_path_factory.mktemp("l2"), classifier, STUDY)


@pytest.fixture(scope="module")
def cells(finished: Tiny) -> list[dict[str, Any]]:
    """The rows of cells.parquet with their checks."""
    return checked_cells(finished)


def _of(cells: list[dict[str, Any]], attack: str, defense: str = "none", norm: str = "l2", **params: Any) -> Any:
    named = [row for row in cells if (row["attack"], row["defense"], row["norm"]) == (attack, defense, norm)]
    (found,) = [row for row in named if params.items() <= json.loads(row["attack_params"]).items()]
    return found


def test_the_images_of_a_cell_are_in_its_own_ball_and_use_it(finished: Tiny, cells: list[dict[str, Any]]) -> None:
    clean = to_unit(finished.bench.data.images[:POINTS]).numpy()
    for work in finished.plan.attacks:
        images, _, linf = finished.bench.results.adversarial(Inputs(work, work.stops[-1]), 0, POINTS)
        moved = finished.bench.results.distances(Inputs(work, work.stops[-1]), POINTS)
        difference = (images.astype(float) - clean).reshape(POINTS, -1)
        order = {"linf": np.inf, "l2": 2}[work.threat.norm]
        np.testing.assert_allclose(moved, np.linalg.norm(difference, order, axis=1), atol=1e-5)
        np.testing.assert_allclose(linf, np.abs(difference).max(1), atol=1e-6)
        assert moved.max() <= work.threat.epsilon + 1e-6
    found = _of(cells, "pgd", steps=10)["checks"]["in_ball"]
    assert found["state"] == "passed"
    assert 0.99 * RADIUS < found["l2"] <= RADIUS + 1e-6


def test_a_sound_l2_attack_passes_and_one_short_step_fails(cells: list[dict[str, Any]]) -> None:
    sound, weak = _of(cells, "pgd", steps=10), _of(cells, "pgd", steps=1)
    assert (sound["verdict"], weak["verdict"]) == ("passed", "failed")
    assert sound["accuracy"] < weak["accuracy"]
    assert {weak["checks"][name]["state"] for name in ("reference", "budget")} == {"failed"}
    controls = {"reference", "headway", "more_steps", "monotone_in_epsilon", "large_epsilon", "epsilon_zero"}
    assert {sound["checks"][name]["state"] for name in controls} == {"passed"}
    assert "at epsilon 27.71 " in sound["checks"]["large_epsilon"]["why"]
    adaptive = _of(cells, "eot_pgd", "gaussian_noise")
    assert adaptive["checks"]["oblivious_not_stronger"]["state"] == "passed"


def test_each_ball_has_a_worst_case_of_its_own(cells: list[dict[str, Any]]) -> None:
    worst = [row for row in cells if row["attack"] == "worst_case"]
    assert {(row["norm"], row["epsilon"]) for row in worst} == BALLS
    for row in worst:
        same = [each for each in cells if (each["norm"], each["defense"]) == (row["norm"], row["defense"])]
        attacked = [each["accuracy"] for each in same if each["attack"] not in ("none", "worst_case")]
        assert row["accuracy"] <= min(attacked) + 0.05  # behind a defense its draws are cross-fitted


def test_rivals_are_of_the_same_norm(cells: list[dict[str, Any]]) -> None:
    """Also where the radii are the same number: what a rival shares with the judged attack has the norm in it."""
    assert "norm" in SETTING
    rivals = {norm: {row["attack"] for row in cells if row["norm"] == norm} for norm in ("linf", "l2")}
    told = _of(cells, "pgd", norm="linf")["checks"]["peers"]["why"]
    assert told == "no attack of the study that costs no more"  # In L2 there is one of a single step.
    assert ("apgd" in rivals["linf"], "apgd" in rivals["l2"]) == (True, False)
    assert "apgd" not in _of(cells, "pgd", steps=10)["checks"]["peers"]["why"].lower()


def test_rows_say_their_norm_and_a_store_of_them_is_sound_until_a_block_says_that_it_left_its_ball(
    finished: Tiny, tmp_path: Path
) -> None:
    rows = read_records(finished.store, study="tiny")
    assert set(zip(rows["norm"], rows["epsilon"], strict=True)) == {*BALLS, ("linf", 0.0)}
    assert problems_in(finished.store) == []
    work = next(work for work in finished.plan.attacks if work.threat.norm == "l2")
    block = next(iter(finished.store.blocks("adversarial", work.key)))
    table, facts = finished.store.read_block("adversarial", work.key, block)
    assert 0.99 * RADIUS < facts["l2"] <= RADIUS + 1e-6
    finished.store.write_block("adversarial", work.key, block.start, block.stop, table, {**facts, "l2": 1.1})
    (told,) = problems_in(finished.store)
    assert "must be at most epsilon = 0.6; it is 1.1" in told
    finished.store.write_block("adversarial", work.key, block.start, block.stop, table, facts)
    assert problems_in(finished.store) == []


# The plan


def test_attacks_of_another_norm_change_no_key_of_the_max_norm() -> None:
    both = planned(attacks=[*STUDY["attacks"][:2], {"pgd": PGD, "norm": "l2", "epsilon": RADIUS}], defenses=["none"])
    alone = planned(attacks=STUDY["attacks"][:2], defenses=["none"])
    keys = {cell.key for cell in alone.cells}
    assert keys < {cell.key for cell in both.cells}
    assert {work.key for work in alone.attacks} < {work.key for work in both.attacks}
    same_number = [{"pgd": PGD, "epsilon": RADIUS}, {"pgd": PGD, "norm": "l2", "epsilon": RADIUS}]
    twins = planned(attacks=same_number, defenses=["none"]).cells
    assert len({cell.key for cell in twins}) == 3  # and no worst case of two balls


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (
            {"pgd": PGD, "norm": "l2", "epsilon": 60},
            "epsilon must be at most 55.43 in the norm l2, .* 3072 numbers.*; got 60",
        ),
        (
            {"averaged": {}, "norm": "l2", "epsilon": 1, "knowledge": "adaptive"},
            "norm must be one in which averaged attacks, linf; got l2",
        ),
    ],
)
def test_what_cannot_be_run_in_a_norm_is_refused_by_the_plan_in_one_line(attack: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        planned(attacks=[attack], defenses=[{"mi_ol": 0.5}])
