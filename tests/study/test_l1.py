"""A tiny study in the L1 norm beside the max norm: its images, its checks, its rows, and what the store says of it."""

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

from mi_ray.attacks import ATTACKS
from mi_ray.data import to_unit
from mi_ray.figures.names import epsilon_text
from mi_ray.plan.work import Inputs
from mi_ray.store.read import read_records
from mi_ray.study import checks
from mi_ray.threat_model import NORMS

RADIUS, POINTS = 4.0, 20
PGD = {"steps": 10, "step_size": 1.0}
STUDY: dict[str, Any] = {
    "points": {"count": POINTS, "selection": 5},
    "classifiers": entry(architecture={"cnn_small": 8}, mean=[0.5, 0.4, 0.3], std=[0.25, 0.3, 0.2]),
    "attacks": [
        {"pgd": {"steps": 5, "step_size": 0.0125}, "epsilon": 0.05, "goal": "targeted"},
        {"pgd": PGD, "norm": "l1", "epsilon": RADIUS},
        {"eot_pgd": {"steps": 4, "step_size": 2.0, "eot": 2}, "norm": "l1", "epsilon": RADIUS, "knowledge": "adaptive"},
    ],
    "defenses": [{"gaussian_noise": 0.05}],
    "executions": 2,
    "draws": 2,
    "checks": {"points": 20, "black_box": "always", "binarization": 5},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, classifier: nn.Module) -> Iterator[Tiny]:
    """A finished study with all checks, of controls of a few queries; read only."""
    yield from judged(tmp_path_factory.mktemp("l1"), classifier, STUDY)


def test_images_checks_and_rows_are_of_their_norm(finished: Tiny) -> None:
    clean = to_unit(finished.bench.data.images[:POINTS]).numpy()
    for work in finished.plan.attacks:
        images, _, _ = finished.bench.results.adversarial(Inputs(work, work.stops[-1]), 0, POINTS)
        difference = (images.astype(float) - clean).reshape(POINTS, -1)
        order = {"linf": np.inf, "l1": 1}[work.threat.norm]
        far = np.linalg.norm(difference, order, axis=1)
        assert far.max() <= work.threat.epsilon * (1 + 1e-6)
        assert far.max() > 0.99 * work.threat.epsilon
    rows = read_records(finished.store, study="tiny")
    assert {("l1", RADIUS), ("linf", 0.05)} < set(zip(rows["norm"], rows["epsilon"], strict=True))


def test_every_check_is_made_in_l1_or_says_why_not(finished: Tiny) -> None:
    (found,) = [
        row for row in checked_cells(finished) if (row["attack"], row["defense"], row["norm"]) == ("pgd", "none", "l1")
    ]
    absent = {name: said["why"] for name, said in found["checks"].items() if said["state"] == "not run"}
    assert absent["black_box_not_stronger"] == "what it holds an attack against does not attack in this norm"
    assert "binarization" not in found["checks"]
    made = {
        "reference",
        "headway",
        "in_ball",
        "in_box",
        "more_steps",
        "epsilon_zero",
        "monotone_in_epsilon",
        "large_epsilon",
    }
    assert {found["checks"][name]["state"] for name in made} == {"passed"}, found["checks"]
    assert "at epsilon 1536 " in found["checks"]["large_epsilon"]["why"]
    assert found["verdict"] == "passed"
    assert {json.loads(row["attack_params"]).get("queries") for row in checked_cells(finished)} == {None}


def test_a_block_that_says_it_left_its_ball_is_told_of(finished: Tiny, tmp_path: Path) -> None:
    assert problems_in(finished.store) == []
    work = next(work for work in finished.plan.attacks if work.threat.norm == "l1")
    block = next(iter(finished.store.blocks("adversarial", work.key)))
    table, facts = finished.store.read_block("adversarial", work.key, block)
    assert 0.99 * RADIUS < facts["l1"] <= RADIUS * (1 + 1e-6)
    finished.store.write_block("adversarial", work.key, block.start, block.stop, table, {**facts, "l1": 4.1})
    (told,) = problems_in(finished.store)
    assert "must be at most epsilon = 4.0; it is 4.1" in told
    finished.store.write_block("adversarial", work.key, block.start, block.stop, table, facts)


def test_a_check_is_made_in_the_norms_that_its_control_attacks_in() -> None:
    """Neither may be forgotten where the other changes: a control is planned without asking what its attack knows."""
    for name, method in {"black_box_not_stronger": "square", "binarization": "binarization"}.items():
        made = {norm for norm in NORMS if checks.is_made_in(norm, name)}
        assert made == {*ATTACKS[method].norms}, name
    for norm in NORMS:
        assert checks.is_made_in(norm, "reference") == (norm in ATTACKS["reference"].norms)


def test_attacks_in_l1_change_no_key_of_other_norms() -> None:
    alone = planned(attacks=STUDY["attacks"][:1], defenses=["none"])
    both = planned(attacks=STUDY["attacks"][:2], defenses=["none"])
    assert {cell.key for cell in alone.cells} < {cell.key for cell in both.cells}
    assert {work.key for work in alone.attacks} < {work.key for work in both.attacks}


def test_an_epsilon_is_written_with_its_norm() -> None:
    assert [epsilon_text(12.0, "l1"), epsilon_text(0.5, "l2")] == ["12 in L1", "0.5 in L2"]
