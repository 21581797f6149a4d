"""Adaptive attacks in a plan: their keys, their cells, and what they are kept to."""

from dataclasses import replace
from typing import Any

import pytest
from helpers.plans import AVERAGED, BOTH, EVERY_DEFENSE, FACTS, ON_MI_OL, planned, planner

from mi_ray.config import Sweep
from mi_ray.plan.keyed import Facts
from mi_ray.plan.work import Plan
from mi_ray.store.keys import canonical
from mi_ray.study.prepare import REGISTRIES

COMBINED: dict[str, Any] = {**ON_MI_OL, "defenses": [EVERY_DEFENSE[-1]]}


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
    ("named", "attacked"),
    [
        ([{"mi_ol": {"lam": 0.5}}], {("mi_ol", 0.5)}),
        ([{"mi_ol": 0.5}, "mi_pl"], {("mi_ol", 0.5), ("mi_pl", 0.4)}),
        ({"mi_ol": {"lam": {"arange": [0.6, 0.7, 0.1]}}}, {("mi_ol", 0.6), ("mi_ol", 0.7)}),
    ],
)
def test_an_adaptive_attack_may_be_kept_to_some_settings(named: Any, attacked: set[Any]) -> None:
    defenses: list[Any] = [{"mi_ol": {"lam": [0.5, 0.6, 0.7]}}, {"mi_pl": {"lam": 0.4}}]
    plan = planned(attacks=[{**AVERAGED, "defenses": named}], defenses=defenses, checks="cheap")
    found = {(work.defense.name, work.defense.values["lam"]) for work in plan.attacks if work.defense is not None}
    assert found == attacked
    every = planned(attacks=[AVERAGED], defenses=defenses, checks="cheap")
    assert {work.key for work in plan.attacks} < {work.key for work in every.attacks}  # the keys are those without


def test_a_setting_that_stands_before_no_attacked_classifier_is_refused() -> None:
    defenses = [{"mi_ol": {"lam": 0.5}, "classifiers": ["a"]}, {"mi_ol": {"lam": 0.6}, "classifiers": ["b"]}]
    two = {"classifiers": TWO["classifiers"], "defenses": defenses}
    attack = {**AVERAGED, "classifiers": ["b"]}
    with pytest.raises(ValueError, match=r"on what it attacks; got mi_ol with lam = 0\.5, and the study has 0\.6"):
        planned(attacks=[{**attack, "defenses": [{"mi_ol": 0.5}]}], **two)
    planned(attacks=[{**attack, "defenses": [{"mi_ol": 0.6}]}], **two)


def test_a_setting_of_a_defense_within_another_may_be_named() -> None:
    chains = [{"chain": [{"gaussian_noise": {"sigma": [0.1, 0.2]}}, {"bit_depth": {"bits": 3}}]}]
    one = {"chain": [{"gaussian_noise": 0.2}, {"bit_depth": 3}]}
    attack = {"eot_pgd": {"steps": 2}, "epsilon": 0.1, "knowledge": "adaptive", "defenses": one}
    behind = [work.defense.values for work in planned(attacks=[attack], defenses=chains).attacks if work.defense]
    assert [values["of"] for values in behind] == [[{"gaussian_noise": {"sigma": 0.2}}, {"bit_depth": {"bits": 3}}]]


def test_what_names_settings_is_written_out_as_it_was_read() -> None:
    names = ["mi_pl", {"mi_ol": {"lam": 0.5}}]
    asked = [{**AVERAGED, "defenses": names}]
    made = planner(attacks=asked, defenses=[{"mi_ol": 0.5}, {"mi_pl": 0.4}]).sweep
    assert made.document()["attacks"][0]["defenses"] == names
    assert Sweep.model_validate(made.document()).document() == made.document()


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ({"averaged": {"steps": 2}, "epsilon": 0.1}, "averaged attacks a defense: it needs `knowledge: adaptive`"),
        ({**AVERAGED, "defenses": ["mi_old"]}, r"unknown defense to attack 'mi_old' \(did you mean 'mi_ol'"),
        (
            {**AVERAGED, "defenses": [{"mi_ol": 0.11}]},
            r"got mi_ol with lam = 0.11, and the study has 0.5",
        ),
        (
            {**AVERAGED, "defenses": [{"mi_combined": {"threshold": [0.1, 0.7]}}]},
            "got mi_combined with threshold = 0.7,",
        ),
        ({**AVERAGED, "defenses": [{"mi_ol": {"lambda": 1}}]}, r"unknown parameter of mi_ol 'lambda'"),
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
