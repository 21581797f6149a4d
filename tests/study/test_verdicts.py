"""A small study from its blocks to its verdicts, without Ray: sound numbers pass, attacks weaker than others fail."""

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from helpers.studies import Tiny, compute, derived, finish, tiny
from helpers.sweeps import classifier as entry
from helpers.sweeps import sweep
from torch import nn

import mi_ray.attacks.reference
import mi_ray.study.checks
import mi_ray.study.results
import mi_ray.study.verdicts
from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import build_classifier, set_weights, weights_bytes
from mi_ray.data import to_unit
from mi_ray.networks import read_weights
from mi_ray.plan.work import Check, Inputs
from mi_ray.store.blocks import Store
from mi_ray.store.read import read_cells, read_records
from mi_ray.study.checks import CHECKS, NEED_PASSES, RULES, STORED, CheckState, Finding, verdict
from mi_ray.study.prepare import prepare
from mi_ray.study.rows import write_records
from mi_ray.study.verdicts import Verdicts
from mi_ray.study.workbench import Workbench

POINTS = 60
FEW: dict[str, Any] = {"points": {"count": 20, "selection": 5}}
NEVER_STRONG = {"steps": 1, "step_size": 0.001, "eot": 2, "random_start": False, "scoring_draws": 1}
STUDY: dict[str, Any] = {
    "points": {"count": POINTS, "selection": 20},
    "classifiers": entry(architecture={"cnn_small": 8}, mean=[0.5, 0.4, 0.3], std=[0.25, 0.3, 0.2]),
    "attacks": [
        {"pgd": {"steps": [4, 8], "step_size": 0.015}, "epsilon": 0.08},
        {"eot_pgd": NEVER_STRONG, "epsilon": 0.08, "knowledge": "adaptive"},
        {"averaged": {"steps": 2, "step_size": 0.02, "eot": 2}, "epsilon": 0.08, "knowledge": "adaptive"},
    ],
    "defenses": [{"mi_ol": 0.7}],
    "executions": 3,
    "draws": 2,
    "checks": {"points": 40, "black_box": "always"},
}


@pytest.fixture(scope="module")
def quick() -> Any:
    """Controls of a few queries; what they find is told by the real ones in the checks of a sweep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mi_ray.attacks.reference, "STEPS", 10)
        few = {"LARGE_STEPS": 20, "QUERIES": 5, "TRIES": 3, "FEW_EXECUTIONS": 2, "FIXED_STEPS": 3}
        for name, value in few.items():
            patch.setattr(mi_ray.study.checks, name, value)
        yield


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, classifier: nn.Module, quick: None) -> Tiny:
    """A finished study of a trained classifier with all checks; read only."""
    one = tiny(tmp_path_factory.mktemp("judged"), weights=weights_bytes(classifier), **STUDY)
    finish(one, POINTS)
    return one


@pytest.fixture(scope="module")
def cells(judged: Tiny) -> list[dict[str, Any]]:
    """The rows of cells.parquet, checks and work read as JSON."""
    rows: list[dict[str, Any]] = read_cells(judged.store, "tiny").to_dict("records")
    return [{**row, "checks": json.loads(row["checks"]), "work": json.loads(row["work"])} for row in rows]


def one_of(
    cells: list[dict[str, Any]], attack: str, defense: str = "mi_ol", steps: int | None = None
) -> dict[str, Any]:
    """The cell of an attack on a defense."""
    named = [row for row in cells if (row["attack"], row["defense"]) == (attack, defense)]
    (found,) = [row for row in named if steps is None or json.loads(row["attack_params"])["steps"] == steps]
    return found


def test_every_attacked_cell_says_of_every_check_what_it_found(cells: list[dict[str, Any]]) -> None:
    assert {row["state"] for row in cells} == {"done"}
    for row in cells:
        names = (
            set(CHECKS) if row["attack"] != "none" else {"in_ball", "logits_not_probabilities", "randomness_declared"}
        )
        assert row["checks"].keys() == names
        for found in row["checks"].values():
            assert found["state"] in ("passed", "failed", "not run")
            assert found["why"]
        failed = any(found["state"] == "failed" for found in row["checks"].values())
        assert (row["verdict"] == "failed") == failed


def test_clean_cells_of_a_sound_network_pass(cells: list[dict[str, Any]]) -> None:
    clean = [row for row in cells if row["attack"] == "none"]
    assert len(clean) == 2
    assert {row["verdict"] for row in clean} == {"passed"}


def test_checks_that_need_passes_were_run_where_they_apply(cells: list[dict[str, Any]]) -> None:
    pgd, eot = one_of(cells, "pgd", "none", 8), one_of(cells, "eot_pgd")
    silent = {name for name in NEED_PASSES if pgd["checks"][name]["state"] == "not run"}
    assert silent - {"headway"} == {"more_eot", "fixed_randomness"}  # there is no headway to make where no point stands
    assert pgd["checks"]["peers"]["state"] == "passed"  # against 4 steps, which cost no more
    assert {name for name in NEED_PASSES if eot["checks"][name]["state"] == "not run"} <= {"headway"}
    assert pgd["checks"]["oblivious_not_stronger"]["state"] == "not run"
    assert {name: pgd["checks"][name]["points"] for name in ("reference", "more_steps", "large_epsilon")} == {
        "reference": 40,
        "more_steps": 40,
        "large_epsilon": 20,
    }
    for row in (pgd, eot):
        assert row["checks"]["epsilon_zero"]["state"] == "passed"  # the clean rows, draw by draw
        rivals = ("oblivious_not_stronger", "peers")
        assert all(row["checks"][name]["state"] == "passed" for name in STORED if name not in rivals)


@pytest.mark.parametrize(
    ("black_box", "goal", "told"),
    [("auto", "untargeted", True), ("never", "untargeted", True), ("always", "targeted", False)],
)
def test_a_black_box_that_was_left_out_is_told_of_with_what_runs_it(
    black_box: str, goal: str, told: bool, tmp_path: Path
) -> None:
    attacks = [{"pgd": {"steps": 1}, "epsilon": 0.1, "goal": goal}]
    checked = {"points": 20, "black_box": black_box}
    made = tiny(tmp_path, attacks=attacks, defenses=["none"], draws=1, **FEW, checks=checked)
    assert not any(check.name == "black_box_not_stronger" for check in made.plan.checks)
    compute(made)
    rows = [row for row in derived(made) if row["attack"] == "pgd"]
    found = [json.loads(row["checks"])["black_box_not_stronger"] for row in rows]
    assert {(each["state"], "black_box: always" in each["why"]) for each in found} == {("not run", told)}


def test_a_sound_attack_meets_its_controls(cells: list[dict[str, Any]]) -> None:
    found = one_of(cells, "pgd", "none", 8)["checks"]
    names = ("reference", "monotone_in_epsilon", "large_epsilon", "black_box_not_stronger", "random_noise_not_stronger")
    assert {name: found[name]["state"] for name in names} == dict.fromkeys(names, "passed"), found


def test_points_that_fall_to_square_alone_are_counted_where_nothing_draws(cells: list[dict[str, Any]]) -> None:
    of_f, behind = (
        one_of(cells, *which)["checks"]["black_box_not_stronger"] for which in (("pgd", "none", 8), ("eot_pgd",))
    )
    assert "alone" in of_f
    assert behind["state"] != "not run"
    assert "alone" not in behind


def test_a_defense_under_an_oblivious_attack_shares_the_controls_of_f(cells: list[dict[str, Any]]) -> None:
    for steps in (4, 8):
        mine, of_f = (one_of(cells, "pgd", defense, steps)["checks"] for defense in ("mi_ol", "none"))
        assert [mine[name] for name in NEED_PASSES] == [of_f[name] for name in NEED_PASSES]
    first, last = (one_of(cells, "pgd", "none", steps)["checks"] for steps in (4, 8))
    whole = {rule.name for rule in RULES if rule.of_trajectory and not rule.by_option}
    assert {name: first[name] for name in whole} == {name: last[name] for name in whole}
    assert first["reference"]["control"] == last["reference"]["control"]
    assert first["more_steps"]["control"] == last["more_steps"]["accuracy"]  # twice four steps are eight


@pytest.mark.parametrize("attack", ["eot_pgd", "averaged"])
def test_an_adaptive_attack_weaker_than_the_oblivious_one_is_failed_with_the_share_of_points(
    attack: str, judged: Tiny, cells: list[dict[str, Any]]
) -> None:
    row = one_of(cells, attack)
    rivals = [one_of(cells, "pgd", steps=steps) for steps in (4, 8)]
    strongest = min(rivals, key=lambda rival: rival["accuracy"])
    found = row["checks"]["oblivious_not_stronger"]
    assert (row["verdict"], found["state"]) == ("failed", "failed")
    assert found["accuracy"] == pytest.approx(row["accuracy"], abs=1e-6)
    assert found["control"] == pytest.approx(strongest["accuracy"], abs=1e-6)
    assert found["control"] < found["accuracy"] - 0.002
    rows = read_records(judged.store, "tiny")
    mine, theirs = (
        rows[(rows["cell"] == key) & ~rows["selection"]].sort_values("point")["correct_draws"].to_numpy()
        for key in (row["cell"], strongest["cell"])
    )
    assert found["share_stronger"] == pytest.approx((theirs < mine).mean(), abs=1e-6)
    assert found["points"] == 40
    assert found["p"] < 0.01
    assert row["checks"]["reference"]["state"] == "failed"


def test_doubling_what_is_next_to_nothing_shows_nothing(cells: list[dict[str, Any]]) -> None:
    """Why an adaptive attack is also held against the oblivious one: its own versions cannot tell."""
    found = one_of(cells, "eot_pgd")["checks"]
    assert [found[name]["state"] for name in ("more_steps", "more_eot")] == ["passed", "passed"]


def test_images_of_adaptive_attacks_are_stored_where_the_cell_says(judged: Tiny, cells: list[dict[str, Any]]) -> None:
    clean = to_unit(judged.bench.data.images[:POINTS]).numpy()
    for name, largest in (("eot_pgd", 0.001), ("averaged", 0.08)):
        row = one_of(cells, name)
        work = next(w for w in judged.plan.attacks if w.key == row["work"]["adversarial"])
        assert work.defense == ("mi_ol", {"lam": 0.7})
        images, _, linf = judged.bench.results.adversarial(Inputs(work, row["work"]["stop"]), 0, POINTS)
        np.testing.assert_allclose(np.abs(images - clean).max((1, 2, 3)), linf, atol=1e-6)
        assert 0 < linf.max() <= largest + 1e-6
        for key, n in row["work"]["outputs"]:
            assert (n, judged.store.exists(f"outputs/{key}/points-00000-00060.parquet")) == (3, True)


def test_the_worst_case_has_each_point_at_its_worst(judged: Tiny, cells: list[dict[str, Any]]) -> None:
    """Without a defense the least of its members; behind one, each draw under the attack that the other draws choose."""
    rows = read_records(judged.store, "tiny")
    results, by_key = judged.bench.results, {cell.key: cell for cell in judged.plan.cells}
    for defense, attacks in (("none", 2), ("mi_ol", 4)):
        worst = one_of(cells, "worst_case", defense)
        members = [by_key[key] for key in worst["work"]["members"]]
        assert len(members) == attacks
        right = []
        for cell in members:
            _, answered = results.answers(cell.defense, cell.undefended, cell.components, 0, POINTS)
            right.append(answered.argmax(-1).numpy() == np.asarray(judged.bench.data.labels))
        own = rows[rows["cell"] == worst["cell"]].set_index("point").loc[list(judged.study.points[:POINTS])]
        for place, (_, row) in enumerate(own.iterrows()):
            of_point = np.array([found[:, place] for found in right])  # [attacks, draws]
            draws = of_point.shape[1]
            if draws == 1:
                chosen, expected = of_point.sum(1).argmin(), of_point.sum(1).min()
            else:
                picked = []
                for draw in range(draws):
                    others = [np.delete(found, draw, 0) for found in right]  # of each attack, [other draws, points]
                    picked.append(min(range(attacks), key=lambda a: (others[a][:, place].sum(), others[a].sum(), a)))
                chosen, expected = picked[0], sum(of_point[attack, draw] for draw, attack in enumerate(picked))
            assert row["correct_draws"] == expected
            source = rows[(rows["cell"] == members[chosen].key) & (rows["point"] == row.name)].iloc[0]
            assert np.array_equal(row["probabilities"], source["probabilities"])
        assert (worst["goal"], worst["epsilon"]) == ("any", 0.08)
        assert len(worst["survival"]) == 1


def test_the_worst_case_behind_a_defense_is_as_sound_as_its_strongest_adaptive_attack(
    cells: list[dict[str, Any]],
) -> None:
    worst = one_of(cells, "worst_case")
    members = [row for row in cells if row["cell"] in worst["work"]["members"]]
    strongest = min(members, key=lambda row: row["accuracy"])
    assert (strongest["attack"], strongest["knowledge"], strongest["verdict"]) == ("pgd", "oblivious", "passed")
    adaptive = [row for row in members if row["knowledge"] == "adaptive"]
    assert {row["verdict"] for row in adaptive} == {"failed"}
    assert worst["verdict"] == "failed"  # the sound attack is oblivious, and says nothing of the defense
    assert worst["checks"]["oblivious_not_stronger"]["state"] == "failed"
    assert worst["checks"]["in_box"]["state"] == "failed"  # a member's images may decide any point


def test_the_worst_case_without_a_defense_is_as_sound_as_its_strongest_attack(cells: list[dict[str, Any]]) -> None:
    worst = one_of(cells, "worst_case", "none")
    members = [row for row in cells if row["cell"] in worst["work"]["members"]]
    strongest = min(members, key=lambda row: row["accuracy"])
    assert (worst["checks"], worst["verdict"]) == (strongest["checks"], strongest["verdict"])


@pytest.mark.parametrize(
    ("accuracies", "states", "said"),
    [
        ((0.2, 0.4), ("failed", "not run"), "failed"),  # what nothing judges does not make up for what is refused
        ((0.4, 0.2), ("failed", "not run"), "not run"),  # but where it is the stronger one, the number rests on it
        ((0.2, 0.4), ("failed", "passed"), "passed"),
        ((0.4, 0.2), ("passed", "not run"), "passed"),
    ],
)
def test_a_worst_case_is_as_sound_as_the_strongest_attack_that_passed_else_as_the_strongest(
    accuracies: tuple[float, float], states: tuple[CheckState, CheckState], said: str
) -> None:
    names, sound = ("one", "other"), Finding("passed", "as it should")
    findings = {
        name: {"in_ball": sound, "in_box": sound, "reference": Finding(state, "so")}
        for name, state in zip(names, states, strict=True)
    }
    done = {name: {"knowledge": "adaptive", "accuracy": left} for name, left in zip(names, accuracies, strict=True)}
    asked = SimpleNamespace(_cells={"worst": SimpleNamespace(members=names)})
    told = Verdicts._of_worst_case(cast(Verdicts, asked), {"cell": "worst", "defense": "mi_ol"}, findings, done)
    assert verdict(told, attacked=True) == said


def test_a_point_was_left_alone_only_where_it_failed_in_all_draws_of_the_attacks_own() -> None:
    success = np.array([[1.0, 1.0, 0.8, np.nan]])
    asked = SimpleNamespace(results=SimpleNamespace(success=lambda inputs, count: success[:, :count]))
    left = Verdicts._left_alone(cast(Verdicts, asked), cast(Inputs, None), np.array([0.0, 0.1, 0.0, 0.0]))
    assert left.tolist() == [True, False, False, False]


def test_without_an_adaptive_attack_the_strongest_sound_oblivious_one_speaks() -> None:
    broken, sound = Finding("failed", "pushed back"), Finding("passed", "as it should")
    findings = {
        key: {"pushed_back": found, "reference": Finding("passed", "of F"), "in_ball": sound, "in_box": sound}
        for key, found in (("strong", broken), ("weak", sound))
    }
    done = {key: {"knowledge": "oblivious", "accuracy": left} for key, left in (("strong", 0.2), ("weak", 0.4))}
    asked = SimpleNamespace(_cells={"worst": SimpleNamespace(members=("strong", "weak"))})
    told = Verdicts._of_worst_case(cast(Verdicts, asked), {"cell": "worst", "defense": "mi_ol"}, findings, done)
    assert {name: found.state for name, found in told.items()} == {
        "pushed_back": "passed",
        "reference": "not run",
        "in_ball": "passed",
        "in_box": "passed",
    }


def test_a_check_whose_control_is_lost_is_not_run_and_says_why(judged: Tiny, tmp_path: Path) -> None:
    store = Store(shutil.copytree(judged.store.root, tmp_path / "store"))
    copy = Tiny(
        judged.study, judged.plan, store, Workbench(judged.study.data(store.root, judged.bench.data.classifiers))
    )
    lost = next(check for check in judged.plan.checks if check.name == "large_epsilon")
    assert lost.control is not None
    store.remove(f"outputs/{lost.control.undefended.key}")
    rows = {row["cell"]: json.loads(row["checks"]) for row in derived(copy) if row["attack"] != "none"}
    for key in lost.cells:
        found = rows[key]["large_epsilon"]
        assert (found["state"], "its control is not there" in found["why"]) == ("not run", True)
        assert rows[key]["monotone_in_epsilon"]["state"] != "not run"


SHORT = """
from dataclasses import dataclass
import torch
from mi_ray.attacks import ATTACKS, ImagesAttack

@ATTACKS.register
@dataclass(frozen=True)
class Short(ImagesAttack):
    name = "{name}"
    passes = (2, 2)
    only_found = {only_found}
    def images(self, model, batch):
        x = batch.x
        for step in range(2):
            x = x.detach().requires_grad_()
            with batch.bound(model, step=step):
                loss = batch.criterion.loss(model(x), batch.labels).sum()
            x = batch.stepped(x.detach(), 0.01, torch.autograd.grad(loss, x)[0])
        return x.detach()
"""


@pytest.mark.parametrize("only_found", [False, True])
def test_an_attack_whose_steps_stand_in_its_code_is_not_refused_for_a_ball_that_they_do_not_cross(
    only_found: bool, tmp_path: Path, classifier: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that returns only what it has found is judged by it: its images do not say how far it went where it found nothing."""
    name = f"my_short_steps_{only_found}".lower()
    (tmp_path / f"{name}.py").write_text(SHORT.format(name=name, only_found=only_found))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(ATTACKS, "_classes", dict(ATTACKS._classes))  # The methods of later tests are ours alone.
    changes = {"plugins": [name], "attacks": [{name: {}, "epsilon": 0.02}], "defenses": ["none"]}
    one = tiny(tmp_path / "store", weights=weights_bytes(classifier), **{**STUDY, **FEW, **changes})
    (row,) = [row for row in finish(one) if row["attack"] == name]
    told = json.loads(row["checks"])
    moved = [told[check]["why"] for check in ("budget", "headway")]
    assert [why == "no such comparison in this study" for why in moved] == [only_found, only_found]
    found = told["large_epsilon"]
    assert (found["state"] == "not run") != only_found
    assert ("gets no farther than 0.02 in a ball of 0.5" in found["why"]) != only_found
    assert ("at epsilon 0.5" in found["why"]) == only_found


@pytest.mark.parametrize(
    ("name", "method", "values", "expected"),
    [
        ("large_epsilon", "apgd", {}, 0.3),
        ("large_epsilon", "pgd", {"step_size": 0.01}, None),
        ("large_epsilon", "minimum_norm", {}, None),
        ("monotone_in_epsilon", "apgd", {}, None),
    ],
)
def test_how_far_the_large_ball_was_crossed_is_asked_where_no_parameter_and_no_nearest_image_says_it(
    name: str, method: str, values: dict[str, Any], expected: float | None
) -> None:
    control = SimpleNamespace(inputs=SimpleNamespace(attack=SimpleNamespace(method=method, values=values)))
    check = SimpleNamespace(name=name, control=control, points=3)
    asked = SimpleNamespace(_images=lambda inputs, points: (np.array([0.0, 0.3, 0.1])[:points],))
    assert Verdicts._reach(cast(Verdicts, asked), cast(Check, check)) == expected


def test_rows_are_there_before_the_checks_are_and_judged_again_without_being_derived_again(
    judged: Tiny, cells: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    points = judged.study.sweep.points
    records = write_records(
        judged.bench.results, judged.plan, (points.selection, points.count), lambda _: None, lambda _: None
    )
    read: list[tuple[str, str]] = []
    stored = Store.read_block

    def noted(store: Store, kind: Any, key: str, block: Any) -> Any:
        read.append((kind, block.path))
        return stored(store, kind, key, block)

    monkeypatch.setattr(Store, "read_block", noted)
    before = {row["cell"]: row for row in records.judged(checked=False)}
    assert not [path for kind, path in read if kind == "records"]
    of_plan = {(key, check.name) for check in judged.plan.checks if check.control for key in check.cells}
    for row in before.values():
        found = json.loads(row["checks"])
        told = {name for name, check in found.items() if check["why"] == "not run yet"}
        if row["attack"] != "worst_case":
            assert told == {name for key, name in of_plan if key == row["cell"]}
        failed = any(check["state"] == "failed" for check in found.values())
        assert row["verdict"] == ("failed" if failed else "not run" if row["attack"] != "none" else "passed")
    after = records.judged()
    assert not [path for kind, path in read if kind == "records"]
    assert max(Counter(read).values()) < 10, Counter(read).most_common(5)  # however many checks a cell has
    assert [(row["cell"], row["verdict"]) for row in after] == [(row["cell"], row["verdict"]) for row in cells]
    assert [json.loads(row["checks"]) for row in after] == [row["checks"] for row in cells]
    judgement = ("checks", "verdict")
    for row in after:
        first = before[row["cell"]]
        assert {k: v for k, v in row.items() if k not in judgement} == {
            k: v for k, v in first.items() if k not in judgement
        }


def test_without_checks_an_attacked_cell_is_not_judged(tmp_path: Path) -> None:
    attacks = [{"pgd": {"steps": 1}, "epsilon": 0.1}]
    one = tiny(tmp_path, **FEW, attacks=attacks, defenses=["none"], checks="cheap")
    verdicts = {row["attack"]: row["verdict"] for row in finish(one)}
    assert verdicts == {"none": "passed", "pgd": "not run"}


def test_rows_that_are_missing_are_not_judged(judged: Tiny, tmp_path: Path) -> None:
    attacks = [{"pgd": {"steps": 1}, "epsilon": 0.1}]
    one = tiny(tmp_path, **FEW, attacks=attacks, defenses=[{"gaussian_noise": 0.1}])
    compute(one)
    one.store.remove(f"outputs/{one.work(attacked=True, stop=1).key}")
    by_state = {row["state"]: row for row in derived(one)}
    assert by_state.keys() == {"done", "missing"}
    assert "verdict" not in by_state["missing"]
    assert by_state["done"]["verdict"]


def test_variants_are_compared_only_with_rivals_of_their_own_options(
    tmp_path: Path, classifier: nn.Module, quick: None
) -> None:
    """An oblivious attack that guesses labels is no rival of an adaptive one that knows them."""
    attacks = [
        {"pgd": {"steps": 4, "step_size": 0.02}, "epsilon": 0.08},
        {"eot_pgd": {**NEVER_STRONG, "steps": 2}, "epsilon": 0.08, "knowledge": "adaptive"},
    ]
    variants = {"guessed": {"attack_labels": "predicted"}, "one": {"executions": 1}}
    changes = {**STUDY, **FEW, "attacks": attacks, "checks": "cheap", "variants": variants, "executions": None}
    one = tiny(tmp_path, weights=weights_bytes(classifier), **changes, options={"executions": 2})
    rows = finish(one)
    own = {(row["attack"], *row["variants"]): row for row in rows if row["defense"] == "mi_ol"}
    assert {key for key in own if key[0] in ("pgd", "eot_pgd")} == {
        (attack, name) for attack in ("pgd", "eot_pgd") for name in ("", "guessed", "one")
    }
    for name in ("", "guessed", "one"):
        found = json.loads(own["eot_pgd", name]["checks"])["oblivious_not_stronger"]
        assert found["control"] == pytest.approx(own["pgd", name]["accuracy"], abs=1e-6)
        assert own["pgd", name]["auc"] is not None
        assert own["pgd", name]["detection_gap"] is not None
        assert own["pgd", name]["tpr_at_5_fpr"] is not None


NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.linear, self.last = nn.Linear(3 * 32 * 32, 10), last

    def forward(self, x):
        return self.last(self.linear(x.flatten(1)))

def logits():
    return Net(nn.Identity())

def probabilities():
    return Net(nn.Softmax(dim=1))

def dropping():
    return Net(lambda x: nn.functional.dropout(x, 0.5, training=True))
"""
Own = Callable[[str], list[dict[str, Any]]]


@pytest.fixture
def own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Own:
    """Runs a study of a network of one's own; returns its rows."""
    (tmp_path / "own_networks_of_verdicts.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_networks_of_verdicts", raising=False)  # of another test, whose folder is gone
    drawn = torch.randn(10, 3072, generator=torch.Generator().manual_seed(0))
    torch.save({"linear.weight": 0.05 * drawn, "linear.bias": torch.zeros(10)}, tmp_path / "net.pt")

    def study(factory: str) -> list[dict[str, Any]]:
        mine = {"name": "f", "factory": f"own_networks_of_verdicts:{factory}", "weights": str(tmp_path / "net.pt")}
        (work,) = prepare(sweep(classifiers=[mine])).planner.classifiers
        network = build_classifier(work.description)
        set_weights(network, read_weights(tmp_path / "net.pt"), "net.pt")
        changes = {**FEW, "attacks": [{"pgd": {"steps": 1}, "epsilon": 0.1}], "defenses": [{"gaussian_noise": 0.1}]}
        one = tiny(tmp_path / "store", weights=weights_bytes(network), classifiers=[mine], **changes)
        torch.manual_seed(0)  # A network that drops outputs may drop all that a gradient goes through.
        return finish(one)

    return study


@pytest.mark.parametrize(
    ("factory", "told"),
    [
        ("probabilities", "must return logits; each of its answers is at least 0 and sums to 1"),
        ("dropping", "must return the same answer to the same image; two passes differ"),
    ],
)
def test_a_network_that_an_attack_would_misread_is_refused_before_any_work(
    own_network: Own, factory: str, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        own_network(factory)


def test_a_network_that_answers_with_logits_fails_no_check(own_network: Own) -> None:
    for row in own_network("logits"):
        assert not [name for name, check in json.loads(row["checks"]).items() if check["state"] == "failed"]
        assert row["verdict"] != "failed"


def test_verdicts_read_the_store_and_nothing_else(judged: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for five passes of F on a few images."""
    monkeypatch.setattr(Workbench, "compute", lambda *_: pytest.fail("computed"))
    seen: list[int] = []
    network = mi_ray.study.results.prepared

    def counted(*arguments: Any) -> Any:
        return lambda x: (seen.append(len(x)), network(*arguments)(x))[1]

    monkeypatch.setattr(mi_ray.study.results, "prepared", counted)
    assert {row["state"] for row in derived(judged)} == {"done"}
    assert seen == [8] * 5


def test_a_worst_case_costs_what_its_members_cost_together(cells: list[dict[str, Any]]) -> None:
    worst = one_of(cells, "worst_case")
    members = [row for row in cells if row["cell"] in worst["work"]["members"]]
    for name in ("forward_passes", "backward_passes"):
        assert max(row[name] for row in members) < worst[name] <= sum(row[name] for row in members)


def test_a_check_that_few_draws_leave_open_asks_for_more_and_is_judged_by_them(
    judged: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a random defense alone, on its points, and whatever is stored."""
    store = Store(shutil.copytree(judged.store.root, tmp_path / "store"))
    bench = Workbench(judged.study.data(store.root, judged.bench.data.classifiers))
    for name, value in (("CLEAR", -1.0), ("OPEN", 1.1), ("DOUBTFUL", 1.1)):
        monkeypatch.setattr(mi_ray.study.verdicts, name, value)
    monkeypatch.setattr(mi_ray.study.verdicts, "MORE_DRAWS", (3, 4))
    # Of one check: the draws of the others would be asked for in the same way, and take several times as long.
    references = tuple(check for check in judged.plan.checks if check.name == "reference")
    told = Verdicts(bench.results, replace(judged.plan, checks=references))
    check = next(c for c in judged.plan.checks if c.name == "reference" and c.judged.defense.name == "mi_ol")
    before, draws = told._finding(check)
    assert draws == 3
    for expected in (3, 4):
        asked = told.open_draws()
        assert {work.draws for works in asked.values() for work in works} == {expected}
        assert {work.component.name for works in asked.values() for work in works if work.component} == {"mi_ol"}
        for points, works in asked.items():
            for work in works:
                for item in bench.results.missing(work, 20, points):
                    bench.compute(*item)
    assert told.open_draws() == {}
    after, draws = told._finding(check)
    assert draws is None
    assert after.figures != before.figures
    alone = next(c for c in judged.plan.checks if c.name == "reference" and c.judged.defense.name == "none")
    assert told._finding(alone)[1] is None


def test_known_solutions_are_found_by_a_sound_attack_and_not_by_one_that_hardly_moves(
    tmp_path: Path, classifier: nn.Module, quick: None
) -> None:
    asked = [{"steps": 8, "step_size": 0.02}, {"steps": 2, "step_size": 0.0005, "random_start": False}]
    changes = {
        "points": {"count": 4},
        "batch": 4,
        "attacks": [{"pgd": values, "epsilon": 0.08} for values in asked],
        "defenses": ["none"],
        "checks": {"points": 4, "black_box": "never", "binarization": 4},
    }
    one = tiny(tmp_path, weights=weights_bytes(classifier), **{**STUDY, **changes})
    compute(one)
    found = {
        json.loads(row["attack_params"])["steps"]: json.loads(row["checks"])["binarization"]
        for row in derived(one)
        if row["attack"] == "pgd"
    }
    assert (found[8]["state"], found[2]["state"]) == ("passed", "failed")
    assert found[8]["share"] > 0.9
    assert found[2]["share"] < 0.1
