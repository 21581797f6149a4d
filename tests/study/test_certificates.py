"""Certificates of a study: the same rows whatever the blocks, votes that go on from stored ones, and what is written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers.studies import Tiny, problems_in, tiny

from mi_ray import make_defense, predict, read_certificates, read_certified
from mi_ray.data import to_unit
from mi_ray.defenses import DefendedClassifier
from mi_ray.randomness import Key
from mi_ray.store.read import write_cells, write_certificates
from mi_ray.study.certificates import certified_rows
from mi_ray.study.estimate import rows_of
from mi_ray.study.folder import keys_of, mark

ASKED: dict[str, Any] = {"sigma": [0.1, 0.3], "n0": 5, "n": 20, "alpha": 0.01}


def _study(folder: Path, **changes: Any) -> Tiny:
    return tiny(folder, certify={**ASKED, **changes}, defenses=["none"])


def _counted(one: Tiny, size: int = 20, *, backwards: bool = False) -> int:
    """Count all votes that are missing; returns the passes that this took."""
    own = [work for work in one.plan.outputs if work.component is None and work.inputs.attack is None]
    for work in own:
        for item in one.bench.results.missing(work, size):
            one.bench.compute(*item)
    todo = [item for work in one.plan.votes() for item in one.bench.results.missing(work, size)]
    return sum(one.bench.compute(*item).forward for item in (todo[::-1] if backwards else todo))


def _rows(one: Tiny) -> tuple[pd.DataFrame, pd.DataFrame]:
    points, rows = certified_rows(one.bench.results, one.plan.certificates, (20, 60), lambda certificate: None)
    return points.to_pandas(), pd.DataFrame(rows)


def test_rows_are_the_same_whatever_the_blocks_and_their_order(tmp_path: Path) -> None:
    found = []
    for at, (size, backwards) in enumerate([(20, False), (60, True), (40, False)]):
        one = _study(tmp_path / str(at))
        passes = _counted(one, size, backwards=backwards)
        assert passes == one.study.planner.cost(one.plan)["certification_forward"] == 2 * 60 * 25
        found.append(_rows(one))
    for points, rows in found[1:]:
        pd.testing.assert_frame_equal(points, found[0][0])
        pd.testing.assert_frame_equal(rows.drop(columns="seconds"), found[0][1].drop(columns="seconds"))


def test_more_executions_go_on_from_the_stored_ones_and_none_is_run_twice(tmp_path: Path) -> None:
    passes = [_counted(_study(tmp_path / "a", n=n), size) for n, size in ((20, 20), (45, 60), (60, 20))]
    assert passes == [2 * 60 * (5 + 20), 2 * 60 * 25, 2 * 60 * 15]
    assert _counted(_study(tmp_path / "a", n0=15, n=45)) == 2 * 60 * 10
    at_once = _study(tmp_path / "b", n=60)
    assert _counted(at_once) == sum(passes)
    pd.testing.assert_frame_equal(_rows(_study(tmp_path / "a", n=60))[0], _rows(at_once)[0])
    assert problems_in(at_once.store) == []


def test_a_plan_counts_the_votes_that_are_left(tmp_path: Path) -> None:
    one = _study(tmp_path)
    _counted(one)
    row = rows_of(_study(tmp_path, n=60).study, _study(tmp_path, n=60).plan, one.store)[-1]
    assert (row.name, row.pieces, row.stored) == ("certify", 4, 2)
    assert (row.planned, row.left) == ((2 * 60 * 65, 0), (2 * 60 * 40, 0))


def test_votes_are_those_of_the_voting_defense_with_draws_that_nothing_else_uses(tmp_path: Path) -> None:
    one = _study(tmp_path, sigma=0.3)
    _counted(one)
    (certificate,) = one.plan.certificates
    x = to_unit(one.study.dataset.test_images[one.study.points[:60]])
    classifier = one.bench.classifier(certificate.classifier, "fp32")
    defended = DefendedClassifier(
        classifier, make_defense("vote", of=[{"gaussian_noise": {"sigma": 0.3}}]), executions=20
    )
    with defended.bind(Key(one.study.sweep.seed, "bound"), one.study.points[:60]):
        expected = defended(x).exp().detach().numpy()
    found = one.bench.results.probabilities(certificate.bounds, 0, 60)[0, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    scored = predict(classifier, defended.defense, x, None, 20, one.study.sweep.seed, one.study.points[:60])
    assert (np.abs(found - scored.detach().numpy()).max(1) > 0).any()


def test_only_n_and_n0_are_no_part_of_the_key_of_votes(tmp_path: Path) -> None:
    def keys(**changes: Any) -> tuple[set[str], set[str]]:
        plan = _study(tmp_path, **changes).plan
        return {work.key for work in plan.votes()}, {str(each.identity["certificate"]) for each in plan.certificates}

    votes, certificates = keys()
    assert len(votes) == 4
    for changes in ({"n": 200}, {"n0": 50}, {"alpha": 0.1}):
        other, renamed = keys(**changes)
        assert other == votes
        assert not renamed & certificates
    assert not keys(sigma=[0.11, 0.31])[0] & votes


def test_what_is_written_has_a_row_a_point_and_a_row_a_radius(tmp_path: Path) -> None:
    one = _study(tmp_path, radii=[0.0, 0.05, 9.0])
    _counted(one)
    mark(one.store, one.study, one.plan, "running")
    write_cells(one.store, "s", [])
    points, rows = certified_rows(one.bench.results, one.plan.certificates, (20, 60), lambda certificate: None)
    write_certificates(one.store, "s", points, rows)
    found, certified = read_certificates(one.store, "s"), read_certified(one.store, "s")
    assert len(found) == 2 * 60
    assert found["selection"].sum() == 2 * 20
    assert ASKED["n0"] < found["votes"].max() <= ASKED["n"]  # the class is chosen by n0 others
    assert not found.duplicated(["certificate", "point"]).any()
    assert certified["radius"].tolist() == [0.0, 0.05, 9.0] * 2
    for name, group in found[~found["selection"]].groupby("certificate"):
        told = certified[certified["certificate"] == name]
        for _, row in told.iterrows():
            held = (group["predicted"] == group["label"]) & (group["radius"] >= row["radius"])
            assert row["accuracy"] == pytest.approx(held.mean())
            assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
            assert row["coverage"] == pytest.approx((group["predicted"] >= 0).mean())
        assert told["accuracy"].iloc[-1] == 0.0
        answered = group[group["predicted"] >= 0]
        assert told["accuracy_answered"].iloc[0] == pytest.approx((answered["predicted"] == answered["label"]).mean())
    assert {key for text in certified["work"] for key, _ in json.loads(text)["outputs"]} <= set(
        keys_of(one.plan)["outputs"]
    )
    write_certificates(one.store, "s", points, [])
    with pytest.raises(ValueError, match="must have `certify` in its sweep"):
        read_certified(one.store, "s")


def test_a_certificate_without_its_votes_is_missing_or_has_failed(tmp_path: Path) -> None:
    one = _study(tmp_path)
    for cause, state in ((None, "missing"), ("votes: out of memory", "failed")):
        causes: Any = {each.classifier: cause for each in one.plan.certificates}
        told = certified_rows(
            one.bench.results, one.plan.certificates, (20, 60), lambda each, of=causes: of[each.classifier]
        )
        points, rows = told
        assert len(points) == 0
        assert [row["state"] for row in rows] == [state] * 2
        assert all((cause or "must cover points 0 to 60") in row["cause"] for row in rows)
