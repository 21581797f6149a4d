"""What changes a content key, and what does not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from helpers.plans import BOTH, EVERY_DEFENSE, FACTS, baseline, changed, keys, planned, planner
from helpers.sweeps import classifier, sweep

from mi_ray.config import Options
from mi_ray.plan.planner import Planner
from mi_ray.plan.work import Plan
from mi_ray.store.keys import canonical, content_key
from mi_ray.study.prepare import REGISTRIES, prepare

ALL = set(baseline())


CELLS = {"none clean", "none attacked", "cells clean", "cells attacked"}


ATTACKED = {"attacks", "own attacked", "outputs attacked", "none attacked", "cells attacked"}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"resources": {"block": {"points": 20, "cpus": 2}, "train": {"cpus": 1.5}, "trials_at_once": 3}},
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
        ({"resources": {"train": {"cpus": 2}}}, ALL),
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


def test_the_code_of_a_persons_own_architecture_is_in_the_key_of_one_that_comes_with_its_weights_too() -> None:
    given = [{"name": "f", "architecture": {"cnn_small": 4}, "weights": "f.safetensors"}]
    sources = {"f.safetensors": "a hash"}
    before, after = (
        keys(planned(replace(FACTS, sources={**sources, **more}), classifiers=given))
        for more in ({}, {"cnn_small": "a plugin's source"})
    )
    assert changed(before, after) == ALL


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


OPTION_CHANGES: dict[str, Any] = {
    "attack_labels": "predicted",
    "pool_split": "test",
    "pool_augmented": True,
    "pool_augmentation": "frozen",
    "pool_limit_mi_pl": 300,
    "pool_limit_in_mi_combined": False,
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
    "pool_augmentation": {"mi_pl", "mi_ol", "mi_combined"},
    "pool_limit_in_mi_combined": {"mi_combined"},
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


# What an option says something about only together with.
WITH: dict[str, dict[str, Any]] = {
    "pool_augmentation": {"pool_augmented": True},
    "pool_limit_in_mi_combined": {"pool_limit_mi_pl": 300},
}


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
    before = real_cells(options=WITH[option]) if option in WITH else honest_cells
    after = real_cells(options={**WITH.get(option, {}), option: OPTION_CHANGES[option]})
    assert {name for name in before if before[name] != after[name]} == TOUCHED[option]


@pytest.mark.parametrize("option", list(WITH))
def test_an_option_about_what_a_study_does_not_do_changes_no_key(
    option: str, honest_cells: Mapping[str, set[str]]
) -> None:
    assert real_cells(options={option: OPTION_CHANGES[option]}) == honest_cells


def test_within_mi_combined_a_pool_without_the_limit_is_the_one_that_mi_ol_draws_from() -> None:
    changes = {"pool_limit_mi_pl": 300, "pool_limit_in_mi_combined": False}
    study = prepare(sweep(defenses=EVERY_DEFENSE, attacks=BOTH, options=changes))
    pools = {name: {} for name in ("mi_pl", "mi_ol", "mi_combined")}
    for cell in study.plan().cells:
        for work, _ in cell.components:
            if work.component is not None and work.pool is not None:
                found = pools[cell.defense.name].setdefault(work.component.name, work.pool)
                assert found == work.pool
    sizes = {
        defense: {part: len(study.pools[key].labels) for part, key in found.items()} for defense, found in pools.items()
    }
    whole = sizes["mi_ol"]["mi_ol"]
    assert sizes == {
        "mi_pl": {"mi_pl": 300},
        "mi_ol": {"mi_ol": whole},
        "mi_combined": {"mi_pl": whole, "mi_ol": whole},
    }
    assert whole > 300


def test_keys_are_hashes_of_canonical_content() -> None:
    assert canonical({"b": 1, "a": ["σ"]}) == '{"a":["σ"],"b":1}'
    assert content_key("x", {"a": 1, "b": 2}) == content_key("x", {"b": 2, "a": 1})
    assert len({content_key("x", {"a": 1}), content_key("y", {"a": 1}), content_key("x", {"a": 2})}) == 3


def test_threads_are_part_of_a_classifiers_key_where_it_trains_on_cpus_alone() -> None:
    """On CPUs they decide the order in which a step's sums are added up; on a GPU they add up nothing."""
    on_gpus = [keys(planned(resources={"train": {"gpus": 1, "cpus": cpus}})) for cpus in (1, 8)]
    assert on_gpus[0] == on_gpus[1]
