"""A defense that may give no answer: what it withholds, what its rows and cells say, and how it is attacked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.studies import Tiny, compute, derived, finish, problems_in, tiny
from torch import Tensor

from mi_ray import make_defense, predict, read_records
from mi_ray.defenses import DefendedClassifier
from mi_ray.statistics import coverage

THRESHOLDS = [-0.1, 0.0, 0.05, 1.0]
GRID: list[Any] = ["none", {"mi_pl": {"lam": 0.6}}, {"reject": {"of": {"mi_pl": 0.6}, "threshold": THRESHOLDS}}]
EVASION: dict[str, Any] = {"evasion": {"steps": [4], "step_size": 0.02}, "epsilon": 0.1, "knowledge": "adaptive"}


def test_there_is_no_answer_where_the_drop_reaches_the_threshold() -> None:
    undefended = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.25, 0.75]])
    averages = [torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.5, 0.5]])]  # drops of 0.25, 0 and 0.25
    for threshold, expected in ((0.25, [True, False, True]), (0.2501, [False] * 3), (0.0, [True] * 3)):
        defense = make_defense("reject", of={"mi_pl": 0.5}, threshold=threshold)
        assert defense.abstained(undefended, averages).tolist() == expected
        answer = defense.join(undefended, averages)
        equal = torch.tensor(expected)[:, None]
        torch.testing.assert_close(answer, torch.where(equal, torch.full_like(undefended, 0.5), undefended))


def test_a_smooth_rejection_weighs_both_answers_by_the_drop_and_rewards_evading() -> None:
    undefended, detector = torch.tensor([[0.8, 0.2]]), torch.tensor([[0.5, 0.5]], requires_grad=True)
    defense = make_defense("reject", of={"mi_pl": 0.5}, threshold=0.2)
    weight = torch.sigmoid(torch.tensor(0.1 / 0.05))
    soft = defense.soft_join(undefended, [detector], 0.05)
    torch.testing.assert_close(soft.detach(), (weight * 0.5 + (1 - weight) * undefended))
    (gradient,) = torch.autograd.grad(soft[0, 0], detector)
    assert gradient[0, 0] > 0  # the nearer the detector is to F, the more is answered


@pytest.mark.parametrize(
    "of", [["mi_pl", "mi_ol"], "none", {"mi_combined": {"lam_pl": 0.5, "lam_ol": 0.5, "threshold": 0}}]
)
def test_it_judges_by_one_random_transformation(of: Any) -> None:
    written = [{name: 0.5} if name.startswith("mi_") else name for name in of] if isinstance(of, list) else of
    with pytest.raises(ValueError, match="reject judges by one random transformation; got"):
        make_defense("reject", of=written, threshold=0.1)


def test_an_attack_on_the_whole_goes_through_what_it_answers(classifier: Any, pool: Any, batch: Any) -> None:
    """Its one component is no average: the executions of `eot_pgd` are the answer, and not the detector's."""
    from mi_ray.attacks.eot_pgd import averages, executions, joins_several

    model = DefendedClassifier(
        classifier, make_defense("reject", of={"mi_pl": 0.5}, threshold=0.9), pool, 5, temperature=0.1
    )
    assert joins_several(model)
    assert not averages(model)
    (answer,) = (found for found in executions(model, batch[0]))
    torch.testing.assert_close(answer[0].exp(), classifier(batch[0]).softmax(1), rtol=0, atol=2e-2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tiny, list[dict[str, Any]]]:
    """A finished study and the rows of its cells; read only."""
    one = tiny(tmp_path_factory.mktemp("abstention"), defenses=GRID, executions=3, draws=2)
    return one, finish(one, 60)


def _stands(one: Tiny, cell: Any) -> tuple[Tensor, Tensor]:
    """(right, abstained) [draws, points] of a cell, from stored outputs by hand."""
    own = torch.from_numpy(one.bench.results.probabilities(cell.undefended, 0, 60)[0, 0])
    ((work, n),) = cell.components
    average = torch.from_numpy(one.bench.results.probabilities(work, 0, 60)[:, work.executions.index(n)])
    label = own.argmax(1)
    drop = own.gather(1, label[:, None])[:, 0] - average[..., torch.arange(60), label]
    return (label == torch.as_tensor(np.array(one.bench.data.labels[:60]))).expand(2, -1), drop >= cell.defense.values[
        "threshold"
    ]


def test_rows_and_cells_count_what_is_answered_and_what_stands(finished: Any) -> None:
    one, found = finished
    rows = {row["cell"]: row for row in found}
    records = read_records(one.store, "tiny")
    assert problems_in(one.store) == []
    seen = set()
    for cell in (cell for cell in one.plan.cells if cell.defense.name == "reject" and not cell.members):
        right, abstained = _stands(one, cell)
        clean = cell.inputs.attack is None
        stands = right & ~abstained
        if not clean:
            assert cell.clean is not None
            before, withheld = _stands(one, cell.clean)
            stands = (right | abstained) & before & ~withheld
        own = records[records["cell"] == cell.key]
        assert own["correct_draws"].tolist() == stands.sum(0).tolist()
        assert ((own["predicted"] == -1) == abstained[0].numpy()).all()
        reported = slice(20, 60)
        row = rows[cell.key]
        assert row["accuracy"] == pytest.approx(stands[:, reported].float().mean().item())
        assert row["coverage"] == pytest.approx((~abstained[0, reported]).float().mean().item())
        answered = right[0, reported][~abstained[0, reported]]
        expected = answered.float().mean().item() if len(answered) else None
        assert row["accuracy_answered"] == (expected if expected is None else pytest.approx(expected))
        seen.add((clean, 0 < row["coverage"] < 1))
    assert {(True, True), (False, True)} <= seen
    for row in rows.values():
        assert (row.get("coverage") is None) == (row["defense"] != "reject")
    ends = [row for row in rows.values() if row["defense"] == "reject" and '"threshold":-0.1' in row["defense_params"]]
    assert {row["attack"] for row in ends} >= {"none", "pgd"}
    refusing = [row for row in ends if row["coverage"] == 0]
    assert len(refusing) >= 2
    assert {row["accuracy"] for row in refusing} == {0.0}  # What refuses everything keeps nothing, clean or attacked.


def test_no_attack_leaves_more_of_a_rejecter_than_it_answers_rightly_when_clean(finished: Any) -> None:
    own = [row for row in finished[1] if row["defense"] == "reject"]
    clean = {row["defense_params"]: row["accuracy"] for row in own if row["attack"] == "none"}
    assert len(clean) == len(THRESHOLDS)
    for row in own:
        assert row["accuracy"] <= clean[row["defense_params"]]


def test_thresholds_are_read_off_the_executions_of_the_detector_alone(finished: Any) -> None:
    one, _ = finished
    assert {work.component.name for work in one.plan.outputs if work.component is not None} == {"mi_pl"}
    keys = {cell.components[0][0].key for cell in one.plan.cells if cell.defense.name == "reject" and not cell.members}
    assert keys == {
        cell.components[0][0].key for cell in one.plan.cells if cell.defense.name == "mi_pl" and not cell.members
    }


def test_an_adaptive_attack_that_does_not_evade_is_not_made_and_one_that_does_costs_what_is_planned(
    tmp_path: Path,
) -> None:
    pgd = {"eot_pgd": {"steps": 2, "step_size": 0.02}, "epsilon": 0.1, "knowledge": "adaptive"}
    evade = {"eot_pgd": {"steps": 2, "step_size": 0.02, "loss": "evade"}, "epsilon": 0.1, "knowledge": "adaptive"}
    grid = ["none", {"reject": {"of": {"mi_pl": 0.6}, "threshold": 0.0}}]
    one = tiny(tmp_path, defenses=grid, executions=3, draws=1, attacks=[pgd, evade, EVASION])
    assert [(work.method, work.by_accuracy) for work in one.plan.attacks] == [("eot_pgd", False), ("evasion", False)]
    one.bench.passes.take()
    forward = [
        one.bench.attack(work, start, stop)
        for work in one.plan.attacks
        for _, start, stop in one.bench.results.missing(work, 60)
    ]
    assert [(done.forward, done.backward) for done in forward] == [
        (60 * work.cost[0], 60 * work.cost[1]) for work in one.plan.attacks
    ]


def test_evading_gets_more_past_the_detector_than_an_attack_on_f_alone(tmp_path: Path) -> None:
    grid = ["none", {"reject": {"of": {"mi_pl": 0.6}, "threshold": 0.02}}]
    pgd = {"pgd": {"steps": [4], "step_size": 0.02}, "epsilon": 0.1}
    one = tiny(tmp_path, defenses=grid, executions=5, draws=2, attacks=[pgd, EVASION])
    compute(one, 60)
    rows = [row for row in derived(one) if row["defense"] == "reject" and row["attack"] in ("pgd", "evasion")]
    left = {row["attack"]: row["coverage"] - row["coverage"] * (row["accuracy_answered"] or 0) for row in rows}
    assert left["evasion"] > left["pgd"]  # the share that is answered wrongly


def test_what_is_answered_is_counted_by_hand() -> None:
    assert coverage([1, -1, 2, -1], [1, 1, 0, 0]) == {"coverage": 0.5, "accuracy_answered": 0.5}
    assert coverage([-1, -1], [0, 1]) == {"coverage": 0.0, "accuracy_answered": None}


def test_predict_shows_a_withheld_answer_as_equal_probabilities(classifier: Any, pool: Any, batch: Any) -> None:
    found = predict(classifier, make_defense("reject", of={"mi_pl": 0.5}, threshold=-1.0), batch[0], pool)
    torch.testing.assert_close(found, torch.full((8, 10), 0.1))
