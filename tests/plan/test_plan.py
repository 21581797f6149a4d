"""Content keys: what changes them and what must not; which work is shared; counts and costs."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from helpers.sweeps import classifier, sweep

from mi_ray.attacks import ATTACKS
from mi_ray.config import Options, TrainingOptions
from mi_ray.parameters import Axis
from mi_ray.plan.cost import Costs
from mi_ray.plan.planner import Facts, Planner, product
from mi_ray.plan.work import Cell, Check, Plan, united
from mi_ray.store.keys import canonical, content_key
from mi_ray.store.manifest import study_fingerprint
from mi_ray.study.prepare import REGISTRIES, device_of, prepare

FACTS = Facts(
    dataset="digits",
    digest="0" * 64,
    classes=10,
    side=(32, 32),
    train_count=1297,
    test_count=500,
    pools={"mi_pl": "pool", "mi_ol": "pool"},
    device="cpu",
    sources={},
)
EVERY_DEFENSE: list[Any] = [
    "none",
    {"gaussian_noise": {"sigma": [0.1, 0.2]}},
    {"random_rotation": {"degrees": 10}},
    {"random_resize": {"crop": [20, 28]}},
    {"mi_pl": {"lam": 0.5}},
    {"mi_ol": {"lam": 0.5}},
    {"mi_combined": {"lam_pl": 0.5, "lam_ol": 0.4, "threshold": [0.1, 0.2, 0.3]}},
]
TRAINED = classifier(objective={"adversarial": {"steps": 1}})
Keys = dict[str, set[str]]


def planner(facts: Facts = FACTS, **changes: Any) -> Planner:
    return Planner(sweep(**{"defenses": EVERY_DEFENSE, "classifiers": TRAINED, **changes}), REGISTRIES, facts)


def planned(facts: Facts = FACTS, **changes: Any) -> Plan:
    made = planner(facts, **changes)
    return made.plan(made.settings())


def keys(plan: Plan) -> Keys:
    """The keys of each kind of work, F's own outputs apart from the defenses', clean inputs apart from attacked."""
    found: Keys = {kind: {work.key for work in getattr(plan, kind)} for kind in ("classifiers", "attacks")}
    for place in ("clean", "attacked"):
        at = [work for work in plan.outputs if (work.inputs.attack is None) == (place == "clean")]
        found[f"own {place}"] = {work.key for work in at if work.component is None}
        found[f"outputs {place}"] = {work.key for work in at if work.component is not None}
        cells = [cell for cell in plan.cells if (cell.inputs.attack is None) == (place == "clean")]
        found[f"none {place}"] = {cell.key for cell in cells if cell.defense.name == "none"}
        found[f"cells {place}"] = {cell.key for cell in cells if cell.defense.name != "none"}
    return found


@cache
def baseline() -> Keys:
    """The keys of the sweep that the changes below change."""
    return keys(planned())


def changed(before: Keys, after: Keys) -> set[str]:
    """The kinds of which no key has stayed; the others must not have changed at all."""
    gone = {kind for kind in before if not before[kind] & after[kind]}
    assert {kind for kind in before if before[kind] != after[kind]} == gone
    return gone


ALL = set(baseline())
CELLS = {"none clean", "none attacked", "cells clean", "cells attacked"}
ATTACKED = {"attacks", "own attacked", "outputs attacked", "none attacked", "cells attacked"}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"resources": {"block": {"points": 20, "cpus": 2}, "train": {"cpus": 2}, "trials_at_once": 3}},
        {"classifiers": classifier(name="renamed", objective={"adversarial": {"steps": 1}})},
        {"figures": ["fig3b"]},
        {"plugins": ["json"]},
        {"search": "grid"},
        {"device": "cpu"},
        {"options": {"draws": 3, "eight_bit": False}},
        {"preset": "honest", "training_preset": "honest"},
        {"attacks": [{"pgd": {"steps": [2], "restarts": 1}, "epsilon": ["8/255"], "goal": ["untargeted"]}]},
    ],
)
def test_what_decides_no_result_changes_no_key(changes: dict[str, Any]) -> None:
    assert keys(planned(**changes)) == baseline()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 1}, ALL),
        ({"classifiers": classifier(objective={"adversarial": {"steps": 1}}, seed=5)}, ALL),
        ({"classifiers": classifier(objective={"adversarial": {"steps": 1}}, training={"lr": 0.02})}, ALL),
        ({"classifiers": classifier(objective={"adversarial": {"steps": 1}}, workers=2)}, ALL),
        ({"classifiers": classifier(objective={"adversarial": {"steps": 2}})}, ALL),
        ({"classifiers": classifier(objective={"adversarial": {"steps": 1}}, mean=[0, 0, 0])}, ALL),
        ({"classifiers": classifier(objective={"adversarial": {"steps": 1}}, architecture={"cnn_small": 8})}, ALL),
        ({"training_preset": "as_published"}, ALL),
        ({"resources": {"train": {"gpus": 0.5}}}, ALL),  # trained on another kind of device
        ({"attacks": [{"pgd": {"steps": 2}, "epsilon": "4/255"}]}, ATTACKED),
        ({"attacks": [{"pgd": {"steps": 2}, "epsilon": "8/255", "goal": "targeted"}]}, ATTACKED),
        ({"attacks": [{"pgd": {"steps": 2, "restarts": 2}, "epsilon": "8/255"}]}, ATTACKED),
        ({"attacks": [{"pgd": {"steps": 2, "step_size": 0.5}, "epsilon": "8/255"}]}, ATTACKED),
        ({"attacks": [{"pgd": {"steps": 3}, "epsilon": "8/255"}]}, ATTACKED - {"attacks"}),
        ({"options": {"attack_labels": "predicted"}}, ATTACKED),
        ({"points": {"count": 40, "order": "first"}}, ALL - {"classifiers"}),
        ({"batch": 10}, ALL - {"classifiers"}),
        ({"precision": "bf16"}, ALL - {"classifiers", "own clean"}),  # the rows carry it
        ({"compile": "default"}, ALL - {"classifiers"}),
        ({"draws": 2}, {"cells clean", "cells attacked"}),
        ({"executions": [7]}, {"cells clean", "cells attacked"}),
        ({"points": {"count": 30}}, CELLS),
        ({"points": {"count": 40, "selection": 10}}, CELLS),
    ],
)
def test_a_change_changes_the_keys_it_decides_and_only_those(changes: dict[str, Any], expected: set[str]) -> None:
    assert changed(baseline(), keys(planned(**changes))) == expected


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"digest": "1" * 64}, ALL),
        ({"device": "cuda"}, ALL - {"classifiers"}),
        ({"sources": {"adversarial": "a plugin's source"}}, ALL),
        ({"sources": {"cnn_small": "a plugin's source"}}, ALL),
        ({"sources": {"pgd": "a plugin's source"}}, ATTACKED),
        ({"sources": {"mi_ray_unused": "x"}}, set()),
        ({"dataset": "the same pixels under another name"}, set()),
    ],
)
def test_facts_of_data_machine_and_code_change_the_keys_they_decide(facts: Any, expected: set[str]) -> None:
    assert changed(baseline(), keys(planned(replace(FACTS, **facts)))) == expected


@pytest.mark.parametrize(
    ("registry", "name", "expected"),
    [
        ("architectures", "cnn_small", ALL),
        ("objectives", "adversarial", ALL),
        ("attacks", "pgd", ATTACKED),
    ],
)
def test_a_methods_version_changes_the_keys_of_what_it_makes(
    monkeypatch: pytest.MonkeyPatch, registry: str, name: str, expected: set[str]
) -> None:
    before = keys(planned())
    method = getattr(REGISTRIES, registry)[name]
    monkeypatch.setattr(method, "version", method.version + 1)
    assert changed(before, keys(planned())) == expected


@pytest.mark.parametrize(
    ("name", "touched"), [("mi_ol", {"mi_ol", "mi_combined"}), ("mi_combined", {"mi_combined"}), ("none", {"none"})]
)
def test_a_defenses_version_changes_its_own_cells_and_those_that_join_it(
    monkeypatch: pytest.MonkeyPatch, name: str, touched: set[str]
) -> None:
    before = by_defense(planned())
    monkeypatch.setattr(REGISTRIES.defenses[name], "version", 2)
    after = by_defense(planned())
    assert {defense for defense in before if before[defense] != after[defense]} == touched


def test_the_size_of_a_chunk_of_executions_is_part_of_the_outputs_keys() -> None:
    other = Planner(planner().sweep, replace(REGISTRIES, chunk=10), FACTS)
    expected = {"outputs clean", "outputs attacked", "cells clean", "cells attacked"}
    assert changed(keys(planned()), keys(other.plan(other.settings()))) == expected


def by_defense(plan: Plan) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for cell in plan.cells:
        found.setdefault(cell.defense.name, set()).add(cell.key)
    return found


@pytest.mark.parametrize(
    ("facts", "touched"),
    [
        ({"pools": {"mi_pl": "another", "mi_ol": "pool"}}, {"mi_pl", "mi_combined"}),
        ({"pools": {"mi_pl": "pool", "mi_ol": "another"}}, {"mi_ol", "mi_combined"}),
        ({"sources": {"gaussian_noise": "x"}}, {"gaussian_noise"}),
        ({"sources": {"mi_ol": "x"}}, {"mi_ol", "mi_combined"}),
        ({"sources": {"mi_combined": "x"}}, {"mi_combined"}),
    ],
)
def test_a_pool_or_a_source_touches_the_defenses_that_use_it(facts: Any, touched: set[str]) -> None:
    before, after = by_defense(planned()), by_defense(planned(replace(FACTS, **facts)))
    assert {name for name in before if before[name] != after[name]} == touched


def test_an_oblivious_attacks_key_does_not_depend_on_the_defenses() -> None:
    assert keys(planned(defenses=["none"]))["attacks"] == keys(planned())["attacks"]


def test_sigma_changes_the_keys_of_its_own_setting_alone() -> None:
    one = planned(defenses=[{"gaussian_noise": {"sigma": [0.1, 0.2]}}])
    other = planned(defenses=[{"gaussian_noise": {"sigma": [0.1, 0.3]}}])
    for kind in ("outputs clean", "cells clean", "outputs attacked", "cells attacked"):
        assert len(keys(one)[kind] & keys(other)[kind]) == len(keys(one)[kind]) / 2
    for kind in ("classifiers", "attacks", "own clean", "own attacked", "none clean"):
        assert keys(one)[kind] == keys(other)[kind]


def test_a_fixed_training_seed_keeps_the_classifier_when_the_studys_seed_changes() -> None:
    fixed = classifier(seed=3)
    first, second = (keys(planned(classifiers=fixed, seed=seed)) for seed in (0, 1))
    assert changed(first, second) == ALL - {"classifiers"}
    first, second = (
        keys(planned(classifiers=fixed, seed=seed, points={"count": 40, "order": "first"})) for seed in (0, 1)
    )
    assert changed(first, second) == ALL - {"classifiers", "own clean"}


def test_the_device_of_blocks_is_what_the_sweep_says_else_what_its_blocks_reserve() -> None:
    gpus = {"block": {"gpus": 0.25}}
    assert [device_of(sweep()), device_of(sweep(resources=gpus))] == ["cpu", "cuda"]
    assert [device_of(sweep(resources=gpus, device=device)) for device in ("cpu", "cuda")] == ["cpu", "cuda"]
    with pytest.raises(ValueError, match=r"device: cuda needs resources.block.gpus above 0"):
        device_of(sweep(device="cuda"))


OPTION_CHANGES: dict[str, Any] = {
    "attack_labels": "predicted",
    "pool_split": "test",
    "pool_augmented": True,
    "pool_limit_mi_pl": 300,
    "executions": 7,
    "executions_mi_pl": 7,
    "executions_mi_combined": 7,
    "combined_executions_pl": 7,
    "combined_accept": "pl_average",
    "combined_statistic": "maximum",
    "eight_bit": True,
    "rotation_interpolation": "nearest",
    "draws": 2,
    "adaptive_attack": "averaged",
}
TOUCHED = {
    "pool_split": {"mi_pl", "mi_ol", "mi_combined"},
    "pool_augmented": {"mi_pl", "mi_ol", "mi_combined"},
    "pool_limit_mi_pl": {"mi_pl", "mi_combined"},
    "executions_mi_pl": {"mi_pl"},
    "executions_mi_combined": {"mi_combined"},
    "combined_executions_pl": {"mi_combined"},
    "combined_accept": {"mi_combined"},
    "combined_statistic": {"mi_combined"},
    "adaptive_attack": {"mi_ol"},
    "eight_bit": {"random_rotation", "random_resize"},
    "rotation_interpolation": {"random_rotation"},
    "executions": {"gaussian_noise", "random_rotation", "random_resize", "mi_pl", "mi_ol", "mi_combined"},
    "draws": {"gaussian_noise", "random_rotation", "random_resize", "mi_pl", "mi_ol", "mi_combined"},
    "attack_labels": {"none", "gaussian_noise", "random_rotation", "random_resize", "mi_pl", "mi_ol", "mi_combined"},
}


BOTH: list[Any] = [  # an oblivious attack, and an adaptive one that a preset names
    {"pgd": {"steps": 2}, "epsilon": "8/255"},
    {"adaptive": {"steps": 2, "eot": 2}, "epsilon": "8/255", "knowledge": "adaptive", "defenses": ["mi_ol"]},
]


def real_cells(**changes: Any) -> Mapping[str, set[str]]:
    """Keys by defense, with the pools of the digits themselves."""
    study = prepare(sweep(**{"defenses": EVERY_DEFENSE, "attacks": BOTH, **changes}))
    return by_defense(study.planner.plan(study.planner.settings()))


@pytest.fixture(scope="module")
def honest_cells() -> Mapping[str, set[str]]:
    return real_cells()


def test_the_changes_below_are_of_every_option() -> None:
    assert OPTION_CHANGES.keys() == TOUCHED.keys() == Options.model_fields.keys()


@pytest.mark.parametrize("option", list(OPTION_CHANGES))
def test_every_option_changes_the_cells_of_the_defenses_it_is_about(
    option: str, honest_cells: Mapping[str, set[str]]
) -> None:
    after = real_cells(options={option: OPTION_CHANGES[option]})
    assert {name for name in honest_cells if honest_cells[name] != after[name]} == TOUCHED[option]


@pytest.mark.parametrize("option", list(TrainingOptions.model_fields))
def test_every_training_option_changes_what_a_classifier_is_trained_with(option: str) -> None:
    honest, published = planner(), planner(training_preset="as_published")
    settings = [
        {
            "inner_labels": made.classifiers[0].objective.values["inner_labels"],  # type: ignore[index]
            "first_epoch_at_lower_rate": made.training_of(made.classifiers[0])["lr_drops"],
        }
        for made in (honest, published)
    ]
    assert settings[0][option] != settings[1][option]


def test_learning_rate_drops_are_written_out_and_the_files_own_win() -> None:
    drops = [
        planner(**changes).training_of(planner(**changes).classifiers[0])["lr_drops"]
        for changes in (
            {},
            {"training_preset": "as_published"},
            {"classifiers": classifier(training={"lr_drops": [3], "epochs": 9})},
        )
    ]
    assert drops == [[100, 150], [99, 149], [3]]


def test_step_counts_are_one_attack_with_several_stops_and_cells_for_each() -> None:
    plan = planned(attacks=[{"pgd": {"steps": [10, 50]}, "epsilon": 0.1}])
    assert [(work.stops, work.cost) for work in plan.attacks] == [
        ((10, 50), (50, 50))
    ]  # not scored: F's output on the images says it
    steps = {cell.identity["attack_params"] for cell in plan.cells if cell.inputs.attack and not cell.members}
    assert len(steps) == 2
    assert {cell.inputs.name for cell in plan.cells} == {"clean", *(f"{plan.attacks[0].key}@{n}" for n in (10, 50))}


@pytest.mark.parametrize("order", [[[10], [50]], [[50], [10]], [[10, 50], [10]]])
def test_step_counts_asked_for_in_different_entries_are_still_one_trajectory(order: list[list[int]]) -> None:
    entries = [{"pgd": {"steps": steps}, "epsilon": 0.1} for steps in order]
    together = planned(attacks=[{"pgd": {"steps": [10, 50]}, "epsilon": 0.1}])
    apart = planned(attacks=entries)
    assert [(work.key, work.stops, work.cost) for work in apart.attacks] == [
        (work.key, work.stops, work.cost) for work in together.attacks
    ]
    assert keys(apart) == keys(together)


def test_mi_combined_adds_no_work_to_mi_pl_and_mi_ol_and_thresholds_share_outputs() -> None:
    alone = [{"mi_pl": {"lam": [0.4, 0.5]}}, {"mi_ol": {"lam": [0.3, 0.4]}}]
    combined = {"mi_combined": {"lam_pl": [0.4, 0.5], "lam_ol": [0.3, 0.4], "threshold": {"linspace": [0, 1, 6]}}}
    without, with_it = planned(defenses=alone), planned(defenses=[*alone, combined])
    assert with_it.outputs == without.outputs
    assert keys(planned(defenses=[combined]))["outputs clean"] == keys(without)["outputs clean"]
    assert keys(planned(defenses=[combined]))["outputs attacked"] == keys(without)["outputs attacked"]
    assert len(with_it.cells) == len(without.cells) + 2 * 2 * 2 * 6  # clean and attacked


def test_numbers_of_executions_and_draws_are_asked_of_one_piece_of_work() -> None:
    plan = planned(defenses=[{"mi_ol": 0.5}], executions=[1, 5, 30], draws=2)
    component = [work for work in plan.outputs if work.component]
    assert [(work.executions, work.draws) for work in component] == [((1, 5, 30), 2)] * 2
    assert [Costs(ATTACKS, 5).of(work) for work in component] == [(60, 0), (60, 0)]
    assert [Costs(ATTACKS, 5).of(work) for work in plan.outputs if not work.component] == [(1, 0), (1, 0)]


def test_the_detectors_own_number_of_executions_is_read_beside_the_fallbacks() -> None:
    plan = planned(defenses=[EVERY_DEFENSE[-1]], preset="as_published")
    assert {work.component.name: work.executions for work in plan.outputs if work.component} == {
        "mi_pl": (5,),
        "mi_ol": (15,),
    }
    assert {tuple(n for _, n in cell.components) for cell in plan.cells if cell.components} == {(5, 15)}


@pytest.mark.parametrize(
    "grown",
    [
        {"defenses": [*EVERY_DEFENSE, {"uniform_noise": {"amplitude": [0.1, 0.2]}}]},
        {"defenses": [{"gaussian_noise": {"sigma": {"linspace": [0.1, 0.5, 5]}}}, *EVERY_DEFENSE]},
        {"attacks": [{"pgd": {"steps": [2, 4]}, "epsilon": ["8/255", 0.1], "goal": ["untargeted", "targeted"]}]},
        {"executions": [10, 20, 30]},
        {"classifiers": [*TRAINED, {"name": "second", "architecture": {"cnn_small": 4}}]},
    ],
)
def test_extending_a_grid_keeps_every_old_key(grown: dict[str, Any]) -> None:
    old, new = baseline(), keys(planned(**grown))
    assert all(old[kind] <= new[kind] for kind in old)
    assert any(old[kind] < new[kind] for kind in old)


def test_none_is_always_there_first_and_settings_named_twice_are_dropped() -> None:
    twice = [{"gaussian_noise": 0.1}, {"gaussian_noise": {"sigma": [0.1, 0.2]}}, "none"]
    settings = planner(defenses=twice).settings()
    assert [(s.name, s.values()) for s in settings] == [
        ("none", {}),
        ("gaussian_noise", {"sigma": 0.1}),
        ("gaussian_noise", {"sigma": 0.2}),
    ]
    plan = planned(defenses=twice)
    assert len({cell.key for cell in plan.cells}) == len(plan.cells) == 2 * 3


WORKED: dict[str, Any] = {
    "classifiers": [{"name": "a", "architecture": {"cnn_small": 4}}, {"name": "b", "architecture": {"cnn_small": 8}}],
    "attacks": [{"pgd": {"steps": [10, 50]}, "epsilon": [0.05, 0.1], "goal": ["untargeted", "targeted"]}],
    "defenses": [
        {"gaussian_noise": {"sigma": [0.1, 0.2, 0.3]}},
        {"mi_combined": {"lam_pl": [0.4, 0.5], "lam_ol": [0.3, 0.4], "threshold": [0.1, 0.2, 0.3]}},
    ],
    "executions": [1, 5],
}


def test_counts_of_a_worked_example() -> None:
    plan = planned(**WORKED)
    inputs = 1 + 2 * 2 * 2  # clean, and each stop of each threat model
    settings = 1 + 2 * 3 + 2 * 2 * 2 * 3  # none has one N
    assert len(plan.attacks) == 2 * 2 * 2  # classifiers x epsilons x goals
    assert len(plan.cells) == 2 * (inputs + 2) * settings  # and the worst case at each epsilon
    assert len(plan.outputs) == 2 * inputs * (1 + 3 + 2 + 2)  # F, sigmas, lam_pl, lam_ol


def test_cost_of_a_worked_example_by_distinct_work_and_cell_by_cell() -> None:
    made = planner(**WORKED, points={"count": 30}, draws=1)
    cost = made.cost(made.plan(made.settings()))
    points = 40  # whole batches of 20
    assert cost["attack_forward"] == points * 8 * 50
    assert cost["attack_backward"] == points * 8 * 50
    assert cost["evaluation_forward"] == points * 2 * 9 * (1 + (3 + 2 + 2) * 5)
    evaluated = 1 + 3 * (2 + 1 + 5) + 12 * (2 + 2 * (1 + 5))  # an own pass a cell, and N of each component
    attacked = (1 + 3 * 2 + 12 * 2) * (10 + 50)
    assert cost["naive_forward"] == points * 2 * (9 * evaluated + 4 * attacked)
    assert cost["naive_backward"] == points * 2 * 4 * (1 + 6 + 24) * (10 + 50)


def test_a_grid_like_figure_3b_costs_over_fifty_times_less_than_cell_by_cell() -> None:
    lams = {"linspace": [0.1, 0.9, 9]}
    combined = {"lam_pl": lams, "lam_ol": lams, "threshold": {"linspace": [0.05, 0.5, 10]}}
    made = planner(
        defenses=[{"gaussian_noise": {"sigma": {"linspace": [0.005, 0.05, 10]}}}, {"mi_combined": combined}],
        attacks=[{"pgd": {"steps": [10]}, "epsilon": "8/255"}],
        executions=[1, 5, 10, 20, 30],
    )
    plan = made.plan(made.settings())
    cost = made.cost(plan)
    assert len(plan.cells) == 2 * (1 + 5 * (10 + 9 * 9 * 10))
    assert cost["naive_forward"] / (cost["attack_forward"] + cost["evaluation_forward"]) > 50


def test_training_is_counted_in_passes_over_whole_batches() -> None:
    work = planner(classifiers=classifier(training={"epochs": 3, "batch_size": 100})).classifiers[0]
    assert work.cost == (3 * 12 * 100, 3 * 12 * 100)
    attacked = planner(classifiers=classifier(objective={"adversarial": {"steps": 4}}, training={"epochs": 1}))
    assert attacked.classifiers[0].cost == (20 * 64 * 6, 20 * 64 * 6)


def test_cells_carry_every_identity_column_as_canonical_text() -> None:
    cell = next(c for c in planned().cells if c.defense.name == "mi_combined" and c.inputs.attack)
    assert cell.identity["cell"] == cell.key
    assert cell.identity["attack_params"] == (
        '{"labels":"true","random_start":true,"restarts":1,"step_size":0.00784313725490196,"steps":2}'
    )
    assert '"threshold":0.1' in cell.identity["defense_params"]
    clean = next(c for c in planned().cells if c.inputs.attack is None)
    assert (clean.identity["attack"], clean.identity["epsilon"], clean.identity["knowledge"]) == ("none", 0.0, "none")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": {"count": 501}}, "points.count must not exceed the test split of digits, 500; got 501"),
        ({"defenses": [{"gausian_noise": 0.1}]}, r"unknown defense 'gausian_noise' \(did you mean 'gaussian_noise'"),
        ({"defenses": [{"gaussian_noise": -1}]}, r"gaussian_noise.sigma must be a number in \[0, ∞\]; got -1"),
        ({"defenses": ["gaussian_noise"]}, "gaussian_noise needs sigma"),
        ({"defenses": [{"random_pad": {"crop": [30, 33]}}]}, r"must not exceed the image's side, 32 pixels; got \[30"),
        ({"attacks": [{"pdg": {}, "epsilon": 0.1}]}, r"unknown attack 'pdg' \(did you mean 'pgd'"),
        ({"attacks": [{"pgd": {"step": 1}, "epsilon": 0.1}]}, r"unknown parameter of pgd 'step' \(did you mean 'steps"),
        ({"classifiers": classifier(architecture="resnet19")}, r"unknown architecture 'resnet19' \(did you mean 'resn"),
        ({"classifiers": classifier(objective="mixpu")}, r"unknown objective 'mixpu' \(did you mean 'mixup'"),
        ({"classifiers": classifier(objective={"mixup": {"alpha": [1, 2]}})}, "an objective takes one value"),
        ({"classifiers": classifier(training={"batch_size": 1298})}, "must not exceed the 1297 training images"),
    ],
)
def test_what_cannot_be_is_refused_while_planning(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        planner(**changes).settings()


def test_points_are_stored_in_whole_batches_within_the_split() -> None:
    stored = [planner(points={"count": n}, batch=b).stored_points for n, b in ((40, 20), (41, 20), (1, 50), (490, 300))]
    assert stored == [40, 60, 50, 500]


def test_keys_are_hashes_of_canonical_content() -> None:
    assert canonical({"b": 1, "a": ["σ"]}) == '{"a":["σ"],"b":1}'
    assert content_key("x", {"a": 1, "b": 2}) == content_key("x", {"b": 2, "a": 1})
    assert len({content_key("x", {"a": 1}), content_key("y", {"a": 1}), content_key("x", {"a": 2})}) == 3


def test_product_is_every_combination_in_order() -> None:
    axes = {"a": Axis((1, 2)), "b": Axis(("x", "y"))}
    assert [tuple(values.values()) for values in product(axes)] == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]


def test_planning_twice_gives_the_same_plan() -> None:
    assert planned(**WORKED) == planned(**WORKED)


@pytest.mark.parametrize(
    "module", ["plan.planner", "config", "store.read", "store.manifest", "statistics", "store.check", "cli"]
)
def test_what_a_reader_needs_imports_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, mi_ray.{module}; print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_worker_starts_without_what_only_statistics_and_figures_need() -> None:
    unneeded = {"scipy.stats", "scipy.signal", "scipy.special", "sklearn", "matplotlib", "optuna"}
    code = f"import sys, mi_ray.cluster.worker, mi_ray.cluster.search; print(sorted({unneeded} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["actors"])
def test_what_trials_wait_for_starts_without_torch_and_ray_tune(module: str) -> None:
    code = f"import sys, mi_ray.cluster.{module}; print(sorted({{'torch', 'ray.tune', 'pandas'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_fingerprint_follows_sweep_code_and_data_files(tmp_path: Any) -> None:
    code, data = tmp_path / "code.py", tmp_path / "data.npz"
    code.write_text("a")
    data.write_bytes(b"1")
    npz = {"npz": str(data)}
    first = study_fingerprint(sweep(dataset=npz), [code])
    assert study_fingerprint(sweep(dataset=npz), [code]) == first
    assert study_fingerprint(sweep(dataset=npz, seed=1), [code]) != first
    data.write_bytes(b"12")
    second = study_fingerprint(sweep(dataset=npz), [code])
    code.write_text("b")
    third = study_fingerprint(sweep(dataset=npz), [code])
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    ("epochs", "preset", "drops"),
    [
        (200, "honest", [100, 150]),
        (200, "as_published", [99, 149]),
        (1, "honest", []),
        (2, "honest", [1]),
        (2, "as_published", []),
        (4, "as_published", [1, 2]),
    ],
)
def test_the_rate_drops_at_half_and_three_quarters_and_never_in_the_first_epoch(
    epochs: int, preset: str, drops: list[int]
) -> None:
    planner = Planner(
        sweep(classifiers=classifier(training={"epochs": epochs}), training_preset=preset), REGISTRIES, FACTS
    )
    assert planner.training_of(planner.classifiers[0])["lr_drops"] == drops


def test_two_names_for_one_classifier_are_refused() -> None:
    twins = [{**classifier()[0], "name": name} for name in ("a", "b")]
    with pytest.raises(ValueError, match="classifiers must differ; 'a' and 'b' are the same"):
        Planner(sweep(classifiers=twins), REGISTRIES, FACTS)


# Adaptive attacks

ON_MI_OL: dict[str, Any] = {
    "attacks": [{"eot_pgd": {"steps": [2, 4], "eot": 5}, "epsilon": 0.1, "knowledge": "adaptive"}],
    "defenses": [{"mi_ol": {"lam": 0.5}}],
    "checks": "cheap",
}
COMBINED: dict[str, Any] = {**ON_MI_OL, "defenses": [EVERY_DEFENSE[-1]]}
AVERAGED = {"averaged": {"steps": 2, "eot": [1, 5]}, "epsilon": 0.1, "knowledge": "adaptive"}


def attack_keys(facts: Facts = FACTS, **changes: Any) -> set[str]:
    return {work.key for work in planned(facts, **changes).attacks}


@pytest.mark.parametrize(
    "changes",
    [
        {"defenses": [{"mi_ol": {"lam": 0.6}}]},
        {"defenses": [{"gaussian_noise": 0.1}]},
        {"attacks": [{"eot_pgd": {"steps": [2, 4], "eot": 6}, "epsilon": 0.1, "knowledge": "adaptive"}]},
        {"attacks": [{"averaged": {"steps": [2, 4], "eot": 5}, "epsilon": 0.1, "knowledge": "adaptive"}]},
    ],
)
def test_an_adaptive_attacks_key_depends_on_the_defense_and_the_executions(changes: dict[str, Any]) -> None:
    assert not attack_keys(**ON_MI_OL) & attack_keys(**{**ON_MI_OL, **changes})


@pytest.mark.parametrize(
    "facts",
    [
        {"pools": {"mi_pl": "pool", "mi_ol": "another"}},
        {"sources": {"mi_ol": "a plugin's source"}},
    ],
)
def test_an_adaptive_attacks_key_depends_on_the_pool_and_the_code_of_the_defense(facts: Any) -> None:
    assert not attack_keys(**ON_MI_OL) & attack_keys(replace(FACTS, **facts), **ON_MI_OL)
    assert not attack_keys(**COMBINED) & attack_keys(replace(FACTS, **facts), **COMBINED)


def test_an_adaptive_attacks_key_does_not_depend_on_what_the_defense_does_not_use() -> None:
    other = replace(FACTS, pools={"mi_pl": "another", "mi_ol": "pool"}, sources={"mi_pl": "x", "pgd": "y"})
    assert attack_keys(**ON_MI_OL) == attack_keys(other, **ON_MI_OL)
    assert attack_keys(**ON_MI_OL) == attack_keys(**ON_MI_OL, executions=[7], draws=1)  # `eot` is its own


def test_an_adaptive_attack_without_executions_of_its_own_takes_the_studys_largest() -> None:
    left_out = [{"eot_pgd": {"steps": 2}, "epsilon": 0.1, "knowledge": "adaptive"}]
    found = {n: planned(**{**ON_MI_OL, "attacks": left_out}, executions=[1, n]).attacks[0] for n in (7, 9)}
    assert [work.executions for work in found.values()] == [7, 9]
    assert found[7].key != found[9].key


@pytest.mark.parametrize("version", ["mi_ol", "mi_combined"])
def test_a_defenses_version_changes_the_attacks_against_it(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    before = attack_keys(**COMBINED)
    monkeypatch.setattr(REGISTRIES.defenses[version], "version", 2)
    assert not before & attack_keys(**COMBINED)


def test_an_oblivious_attacks_key_depends_on_no_defense_pool_or_number_of_executions() -> None:
    others = [
        {"defenses": [{"mi_ol": {"lam": 0.6}}]},
        {"executions": [7]},
        {"attacks": [*BOTH]},
        {"facts": replace(FACTS, pools={"mi_pl": "a", "mi_ol": "b"})},
    ]
    oblivious = attack_keys(attacks=BOTH[:1])
    assert len(oblivious) == 1
    assert all(oblivious <= attack_keys(**{"attacks": BOTH[:1], **changes}) for changes in others)


def test_adaptive_cells_are_of_the_setting_that_was_attacked_and_never_of_none() -> None:
    plan = planned(attacks=[*BOTH[:1], ON_MI_OL["attacks"][0]], checks="cheap")
    adaptive = [cell for cell in plan.cells if cell.identity["knowledge"] == "adaptive" and not cell.members]
    settings = {(cell.defense.name, canonical(cell.defense.values)) for cell in plan.cells} - {("none", "{}")}
    assert {(cell.defense.name, canonical(cell.defense.values)) for cell in adaptive} == settings
    for cell in adaptive:
        assert cell.inputs.attack
        assert cell.inputs.attack.defense == cell.defense
    assert len(adaptive) == len({cell.key for cell in adaptive}) == 2 * len(settings)  # two stops
    own = [work for work in plan.attacks if work.defense is None]
    assert [work.method for work in own] == ["pgd"]


def test_an_adaptive_attack_may_be_kept_to_some_defenses() -> None:
    plan = planned(attacks=[{**AVERAGED, "defenses": ["mi_pl", "mi_combined"]}], checks="cheap")
    assert {work.defense.name for work in plan.attacks if work.defense} == {"mi_pl", "mi_combined"}
    assert len(plan.attacks) == 2 * (1 + 3)  # N_A 1 and 5, mi_pl and three thresholds


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ({"averaged": {"steps": 2}, "epsilon": 0.1}, "averaged attacks a defense: it needs `knowledge: adaptive`"),
        ({**AVERAGED, "defenses": ["mi_old"]}, r"unknown defense to attack 'mi_old' \(did you mean 'mi_ol'"),
    ],
)
def test_an_attack_on_a_defense_that_cannot_be_is_refused_while_planning(attack: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        planner(attacks=[attack]).settings()


TWO: dict[str, Any] = {
    "classifiers": [{"name": "a", "architecture": {"cnn_small": 4}}, {"name": "b", "architecture": {"cnn_small": 8}}],
    "checks": "cheap",
}


def asked(plan: Plan) -> set[tuple[str, str, str]]:
    """(classifier, attack, defense with its parameters) of every cell but worst cases."""
    return {
        (cell.identity["classifier"], cell.identity["attack"], cell.defense.name + canonical(cell.defense.values))
        for cell in plan.cells
        if not cell.members
    }


def test_attacks_and_defenses_are_kept_to_the_classifiers_that_they_name() -> None:
    plan = planned(
        **TWO,
        attacks=[
            {"pgd": {"steps": 2}, "epsilon": 0.1, "classifiers": ["a"]},
            {"eot_pgd": {"steps": 2}, "epsilon": 0.1, "classifiers": ["b"], "knowledge": "adaptive"},
        ],
        defenses=[{"mi_ol": {"lam": 0.5}, "classifiers": ["a"]}, {"mi_ol": {"lam": 0.6}, "classifiers": ["b"]}],
    )
    assert asked(plan) == {
        ("a", "none", "none{}"),
        ("a", "pgd", "none{}"),
        ("a", "none", 'mi_ol{"lam":0.5}'),
        ("a", "pgd", 'mi_ol{"lam":0.5}'),
        ("b", "none", "none{}"),
        ("b", "none", 'mi_ol{"lam":0.6}'),
        ("b", "eot_pgd", 'mi_ol{"lam":0.6}'),
    }
    assert sorted(work.method for work in plan.attacks) == ["eot_pgd", "pgd"]


def test_a_setting_that_two_entries_ask_for_is_there_once_on_the_classifiers_of_both() -> None:
    entries = [{"mi_ol": {"lam": 0.5}, "classifiers": [name]} for name in "ab"]
    together = planned(**TWO, defenses=[{"mi_ol": {"lam": 0.5}}])
    assert {cell.key for cell in planned(**TWO, defenses=entries).cells} == {cell.key for cell in together.cells}


# The worst case


def worst(plan: Plan) -> list[Cell]:
    return [cell for cell in plan.cells if cell.identity["attack"] == "worst_case"]


def test_the_worst_case_is_over_all_attacks_of_one_epsilon_setting_and_number_of_executions() -> None:
    attacks = [
        {"pgd": {"steps": 2}, "epsilon": [0.05, 0.1], "goal": ["untargeted", "targeted"]},
        {"eot_pgd": {"steps": [2, 4]}, "epsilon": 0.1, "knowledge": "adaptive"},
    ]
    plan = planned(attacks=attacks, defenses=[{"mi_ol": 0.5}], executions=[3, 5], checks="cheap")
    by_key = {cell.key: cell for cell in plan.cells}
    found = {(c.defense.name, c.identity["epsilon"], c.identity["executions"]): c for c in worst(plan)}
    assert found.keys() == {
        ("none", 0.05, 1),
        ("none", 0.1, 1),
        *(("mi_ol", e, n) for e in (0.05, 0.1) for n in (3, 5)),
    }
    assert len(found) == len(worst(plan))
    assert {place: len(cell.members) for place, cell in found.items() if len(cell.members) != 2} == {
        ("mi_ol", 0.1, 3): 4,
        ("mi_ol", 0.1, 5): 4,
    }
    for (defense, epsilon, n), cell in found.items():
        members = [by_key[key] for key in cell.members]
        assert {(m.defense.name, m.identity["epsilon"], m.identity["executions"]) for m in members} == {
            (defense, epsilon, n)
        }
        assert cell.identity["goal"] == "any"
        adaptive = "adaptive" in {m.identity["knowledge"] for m in members}
        assert cell.identity["knowledge"] == ("adaptive" if adaptive else "oblivious")
        assert list(cell.needs()) == []


def test_one_attack_alone_has_no_worst_case_however_often_it_is_named() -> None:
    once = [{"pgd": {"steps": 2}, "epsilon": [0.05, 0.1]}]
    assert worst(planned(attacks=once)) == []
    assert worst(planned(attacks=once * 2)) == []


def test_a_worst_case_is_another_when_its_members_are() -> None:
    plans = [planned(attacks=[{"pgd": {"steps": steps}, "epsilon": 0.1}]) for steps in ([2, 4], [2, 6], [2, 4, 6])]
    assert len({cell.key for plan in plans for cell in worst(plan)}) == sum(len(worst(plan)) for plan in plans)


# Counterparts


def test_counterparts_are_clean_mixtures_with_the_samples_of_the_adversarial_input() -> None:
    few = {"defenses": [{"mi_ol": 0.5}, {"gaussian_noise": 0.1}, EVERY_DEFENSE[-1]], "checks": "cheap"}
    plain, with_them = planned(**few), planned(**few, counterparts=True)
    assert [cell.key for cell in plain.cells] == [cell.key for cell in with_them.cells]
    for cell in with_them.cells:
        mixes = cell.inputs.attack is not None and cell.defense.name in ("mi_ol", "mi_combined")
        assert len(cell.counterparts) == (len(cell.components) if mixes else 0)
        for (work, n), counterpart in zip(cell.components, cell.counterparts, strict=False):
            assert (counterpart.component, counterpart.executions) == (work.component, (n,))
            assert counterpart.inputs.attack is None
            assert counterpart.undefended == cell.undefended  # its ŷ decides which samples are drawn
    clean = {work.key for cell in with_them.cells if not cell.inputs.attack for work, _ in cell.components}
    extra = {work.key for work in with_them.outputs} - {work.key for work in plain.outputs}
    assert extra == {work.key for cell in with_them.cells for work in cell.counterparts}
    assert not extra & clean


# Checks

EVERY_CONTROL = {
    "more_steps",
    "more_restarts",
    "more_eot",
    "epsilon_zero",
    "monotone_in_epsilon",
    "large_epsilon",
    "black_box_not_stronger",
    "random_noise_not_stronger",
}


def checks_of(plan: Plan, attack: str, goal: str = "untargeted") -> dict[str, Check]:
    """Check name -> the check of an attack's last stop."""
    found: dict[str, Check] = {}
    for check in plan.checks:
        made = check.judged.inputs.attack or check.control.inputs.attack
        judged = [cell for cell in plan.cells if cell.key in check.cells]
        assert made
        if judged and {(c.identity["attack"], c.identity["goal"]) for c in judged} == {(attack, goal)}:
            found[check.name] = check
    return found


@pytest.mark.parametrize(
    ("attack", "goal", "names"),
    [
        ({"pgd": {"steps": 2}, "epsilon": 0.1}, "untargeted", EVERY_CONTROL - {"more_eot"}),
        ({"pgd": {"steps": 2}, "epsilon": 0.1}, "targeted", {"more_steps", "more_restarts"}),
        (ON_MI_OL["attacks"][0], "untargeted", EVERY_CONTROL),
        (ON_MI_OL["attacks"][0], "targeted", {"more_steps", "more_restarts", "more_eot"}),
        (AVERAGED, "untargeted", EVERY_CONTROL),
        (
            {"square": {"queries": 10}, "epsilon": 0.1},
            "untargeted",
            {"more_steps", "epsilon_zero", "monotone_in_epsilon", "large_epsilon"},
        ),
        (
            {"random_noise": {"tries": 10}, "epsilon": 0.1},
            "untargeted",
            {"more_steps", "epsilon_zero", "monotone_in_epsilon", "large_epsilon"},
        ),
    ],
)
def test_an_attack_is_held_against_the_controls_that_fit_it(attack: Any, goal: str, names: set[str]) -> None:
    (method,) = attack.keys() - {"epsilon", "knowledge"}
    plan = planned(attacks=[{**attack, "goal": goal}], defenses=[{"mi_ol": 0.5}], checks="subset")
    found = checks_of(plan, method, goal)
    assert found.keys() - {"more_restarts"} == names - {"more_restarts"}
    assert ("more_restarts" in found) == ("restarts" in REGISTRIES.attacks[method].parameters())
    for name, check in found.items():
        control = check.control.inputs.attack
        assert control
        expected = {"epsilon_zero": 0.0, "monotone_in_epsilon": 0.2, "large_epsilon": 0.5}.get(name, 0.1)
        assert control.threat.epsilon == expected
        assert control.threat.goal == goal
        assert check.control.defense == check.judged.defense


def test_a_doubled_control_doubles_that_alone() -> None:
    attack = {"eot_pgd": {"steps": 6, "restarts": 2}, "epsilon": 0.1, "knowledge": "adaptive"}
    found = checks_of(planned(attacks=[attack], defenses=[{"mi_ol": 0.5}], executions=[4, 8]), "eot_pgd")
    judged = found["more_steps"].judged.inputs.attack
    assert judged
    for name, doubled in (
        ("more_steps", {"steps": [12]}),
        ("more_restarts", {"restarts": 4}),
        ("more_eot", {"eot": 16}),
    ):
        control = found[name].control.inputs.attack
        assert control
        assert dict(control.values) == {**judged.values, **doubled}
        assert found[name].judged.identity["executions"] == 8
    stepped = found["more_steps"].control.inputs.attack
    assert stepped
    assert stepped.key == judged.key  # one trajectory, read later


def test_defenses_under_an_oblivious_attack_share_the_verdict_of_f() -> None:
    plan = planned(defenses=[{"mi_ol": 0.5}, {"gaussian_noise": 0.1}], executions=[1, 5])
    attacked = {cell.key for cell in plan.cells if cell.inputs.attack}
    assert {check.judged.defense.name for check in plan.checks} == {"none"}
    assert all(set(check.cells) == attacked for check in plan.checks)
    assert len(attacked) == 1 + 2 * 2


def test_an_adaptive_attack_is_judged_on_its_own_defense_at_the_largest_number_of_executions() -> None:
    plan = planned(**{**ON_MI_OL, "checks": "subset", "defenses": [{"mi_ol": [0.5, 0.6]}]}, executions=[1, 5])
    for check in plan.checks:
        judged = [cell for cell in plan.cells if cell.key in check.cells]
        assert {canonical(cell.defense.values) for cell in judged} == {canonical(check.judged.defense.values)}
        assert {cell.identity["executions"] for cell in judged} == {1, 5}
        assert check.judged.identity["executions"] == check.control.identity["executions"] == 5
        assert all(not cell.members for cell in judged)


def test_stops_share_the_checks_of_their_trajectory_and_have_their_own_of_more_steps() -> None:
    plan = planned(attacks=[{"pgd": {"steps": [2, 4]}, "epsilon": 0.1}], defenses=["none"])
    cells = {cell.inputs.stop: cell.key for cell in plan.cells if cell.inputs.attack and not cell.members}
    shared = [check for check in plan.checks if check.name != "more_steps"]
    assert {check.name for check in shared} == EVERY_CONTROL - {"more_eot", "more_steps"}
    assert all(set(check.cells) == set(cells.values()) for check in shared)
    steps = {check.control.inputs.stop: check.cells for check in plan.checks if check.name == "more_steps"}
    assert steps == {4: (cells[2],), 8: (cells[4],)}


@pytest.mark.parametrize(
    ("checks", "checked"),
    [("cheap", 0), ("subset", 100), ("full", 120), ({"points": 30}, 40), ({"points": 500}, 120)],
)
def test_checks_run_on_whole_batches_of_the_first_points(checks: Any, checked: int) -> None:
    made = planner(attacks=BOTH, points={"count": 110}, checks=checks)
    plan = made.plan(made.settings())
    cost = made.cost(plan)
    assert (plan.checked, made.sweep.batch) == (checked, 20)
    assert bool(plan.checks) == bool(checked) == (cost["checks_forward"] > 0) == (cost["checks_backward"] > 0)


def test_checks_change_no_cell_and_no_work_of_the_study() -> None:
    plans = [planned(attacks=BOTH, checks=level) for level in ("cheap", "subset", "full")]
    for plan in plans[1:]:
        assert (plan.cells, plan.outputs, plan.attacks) == (plans[0].cells, plans[0].outputs, plans[0].attacks)
        study = {work.key for work in (*plan.attacks, *plan.outputs)}
        theirs = {work.key for work in (*plan.check_attacks(), *plan.check_outputs())}
        assert theirs - study
        assert theirs & study  # twice the steps are read off the study's own trajectory


def test_a_checks_attack_is_asked_for_with_the_stops_of_the_study() -> None:
    plan = planned(attacks=[{"pgd": {"steps": [2, 4]}, "epsilon": 0.1}], defenses=["none"])
    own = plan.attacks[0].key
    assert [work.stops for work in plan.check_attacks() if work.key == own] == [(2, 4, 8)]
    assert [work.stops for work in plan.attacks] == [(2, 4)]


def test_cost_of_checks_is_what_they_need_beyond_the_study() -> None:
    pgd = [{"pgd": {"steps": [2, 4]}, "epsilon": 0.1}]
    made = planner(attacks=pgd, defenses=["none"], checks={"points": 20}, points={"count": 40})
    plan = made.plan(made.settings())
    cost = made.cost(plan)
    controls = {check.name: check.control.inputs.attack for check in plan.checks}
    assert None not in controls.values()
    forward = 8 - 4  # the same trajectory on to 8 steps
    forward += 2 * (4 + 1)  # twice the restarts, scored at the last stop
    forward += 2 * 4  # epsilon 0 and twice epsilon
    forward += 100  # epsilon 0.5
    others = ("black_box_not_stronger", "random_noise_not_stronger")
    forward += sum(made.costs.of(controls[name])[0] for name in others)  # type: ignore[arg-type]
    outputs = 7  # F once on the images of each control: 8 steps is one, 4 are the study's own
    assert cost["checks_forward"] == 20 * (forward + outputs)
    assert cost["checks_backward"] == 20 * ((8 - 4) + 2 * 4 + 2 * 4 + 100)
    assert cost["attack_forward"] == 40 * 4
    assert set(cost) == {
        "training_forward",
        "training_backward",
        "attack_forward",
        "attack_backward",
        "evaluation_forward",
        "checks_forward",
        "checks_backward",
        "naive_forward",
        "naive_backward",
    }


def test_cost_of_an_adaptive_attack_counts_the_executions_of_each_step() -> None:
    made = planner(
        **{
            **ON_MI_OL,
            "attacks": [
                {"eot_pgd": {"steps": 3, "eot": 7, "scoring_draws": 2}, "epsilon": 0.1, "knowledge": "adaptive"}
            ],
        }
    )
    each = 1 + 10  # ŷ, and seven executions in two chunks of five
    cost = made.cost(made.plan(made.settings()))
    assert (cost["attack_forward"], cost["attack_backward"]) == (
        40 * (3 + 2) * each,
        40 * 3 * (each - 1),
    )  # ŷ has no gradient


# Variants

EACH: dict[str, Any] = {
    "attacks": [
        {"pgd": {"steps": 2}, "epsilon": "8/255"},
        {"adaptive": {"steps": 2, "eot": 2}, "epsilon": "8/255", "knowledge": "adaptive", "defenses": ["mi_ol"]},
    ],
    "defenses": [{"mi_ol": 0.5}, {"mi_pl": 0.5}, {"random_rotation": 10}, EVERY_DEFENSE[-1]],
    "variants": "each_option",
    "checks": "cheap",
}


@pytest.fixture(scope="module")
def each_option() -> Any:
    """A study that switches every option alone."""
    return prepare(sweep(**EACH))


def test_every_option_of_the_preset_switched_alone_changes_a_cell(each_option: Any) -> None:
    cells = {name: {c.key for c in made.plan(made.settings()).cells} for name, made in each_option.variants.items()}
    unused = [name for name in cells if name and cells[name] == cells[""]]
    assert len(cells) > 12
    assert unused == []


def test_a_cell_of_several_variants_is_there_once_and_names_them_all(each_option: Any) -> None:
    plan = each_option.plan()
    apart = {name: made.plan(made.settings()) for name, made in each_option.variants.items()}
    assert len({cell.key for cell in plan.cells}) == len(plan.cells)
    for cell in plan.cells:
        assert list(cell.variants) == [name for name, own in apart.items() if cell.key in {c.key for c in own.cells}]
    for kind in ("outputs", "attacks"):
        found = [work.key for work in getattr(plan, kind)]
        assert len(found) == len(set(found))
        assert set(found) == {work.key for own in apart.values() for work in getattr(own, kind)}
    bare = [cell for cell in plan.cells if cell.defense.name == "none" and cell.inputs.attack is None]
    assert [cell.variants for cell in bare] == [tuple(apart)]


def test_united_plans_ask_for_all_executions_and_draws_that_any_variant_needs() -> None:
    makers = {
        name: planner(defenses=[{"mi_ol": 0.5}], options=options, checks="cheap")
        for name, options in (("", {}), ("few", {"executions": 7}), ("many", {"draws": 5}))
    }
    plan = united({name: made.plan(made.settings()) for name, made in makers.items()})
    component = [work for work in plan.outputs if work.component]
    assert [(work.executions, work.draws) for work in component] == [((7, 30), 5)] * 2
    clean = [cell for cell in plan.cells if cell.components and cell.inputs.attack is None]
    assert [(cell.identity["executions"], cell.identity["draws"], cell.variants) for cell in clean] == [
        (30, 3, ("",)),
        (7, 3, ("few",)),
        (30, 5, ("many",)),
    ]


def test_variants_share_a_check_and_each_of_its_cells_once() -> None:
    makers = {
        name: planner(options=options, defenses=[{"mi_ol": 0.5}])
        for name, options in (("", {}), ("few", {"executions": 7}))
    }
    plans = {name: made.plan(made.settings()) for name, made in makers.items()}
    plan = united(plans)
    assert len(plan.checks) == len(plans[""].checks) == len(plans["few"].checks)
    for check in plan.checks:
        assert len(set(check.cells)) == len(check.cells)
        assert set(check.cells) == {cell.key for cell in plan.cells if cell.inputs.attack}


def test_a_study_without_variants_is_one_set_of_options() -> None:
    study = prepare(sweep(checks="cheap"))
    assert list(study.variants) == [""]
    assert {cell.variants for cell in study.plan().cells} == {("",)}


def test_the_fingerprint_follows_the_files_of_the_sample_pool(tmp_path: Any) -> None:
    data = tmp_path / "pool.npz"
    data.write_bytes(b"1")
    foreign = sweep(pool={"npz": str(data)})
    first = study_fingerprint(foreign, [])
    data.write_bytes(b"12")
    assert study_fingerprint(foreign, []) != first


def test_labels_decide_untargeted_attacks_alone() -> None:
    attack = [{"pgd": {"steps": 2}, "epsilon": 0.1, "goal": ["untargeted", "targeted"]}]
    own, guessing = (
        planner(attacks=attack, options={"attack_labels": labels}).attacks for labels in ("true", "predicted")
    )
    changed = [left.threat.goal for left, right in zip(own, guessing, strict=True) if left.key != right.key]
    assert set(changed) == {"untargeted"}
    assert {work.labels for work in guessing if work.threat.goal == "targeted"} == {"true"}


def test_executions_left_to_the_study_are_written_out() -> None:
    attacks = [
        [{"eot_pgd": {"steps": 2, **eot}, "epsilon": 0.1, "knowledge": "adaptive", "defenses": ["mi_ol"]}]
        for eot in ({}, {"eot": 10})
    ]
    left, written = (planned(attacks=attack, executions=10).attacks for attack in attacks)
    assert [work.key for work in left] == [work.key for work in written]


def test_the_papers_attack_is_made_on_mixtures_alone() -> None:
    attack = [{"averaged": {"steps": 2}, "epsilon": 0.1, "knowledge": "adaptive"}]
    defenses = [{"mi_ol": {"lam": 0.5}}, {"gaussian_noise": {"sigma": 0.1}}]
    attacked = {work.defense.name for work in planned(attacks=attack, defenses=defenses).attacks if work.defense}
    assert attacked == {"mi_ol"}


@pytest.mark.parametrize("parameters", [{"loss": "evade"}, {"branch": "detector"}])
def test_what_needs_a_defense_is_refused_of_an_oblivious_attack(parameters: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs `knowledge: adaptive`"):
        planner(attacks=[{"eot_pgd": {"steps": 2, **parameters}, "epsilon": 0.1}])


def test_what_evades_a_detector_is_held_against_no_accuracy() -> None:
    attacks = [
        {"eot_pgd": {"steps": 2, "loss": loss}, "epsilon": 0.1, "knowledge": "adaptive", "defenses": ["mi_pl"]}
        for loss in ("evade", "cross_entropy_of_mean")
    ]
    plan = planned(attacks=attacks, defenses=[{"mi_pl": {"lam": 0.5}}], checks={"points": 20})
    judged = {check.judged.inputs.attack.values["loss"] for check in plan.checks if check.judged.inputs.attack}
    assert judged == {"cross_entropy_of_mean"}
