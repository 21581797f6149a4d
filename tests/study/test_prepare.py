"""What a study is told about its sweep before any work."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.sweeps import sweep

from mi_ray.classifiers import build_classifier
from mi_ray.plan.keyed import FOLDED_VERSION
from mi_ray.plan.planner import Planner
from mi_ray.study.prepare import REGISTRIES, prepare

PGD = {"pgd": {"steps": 2}, "epsilon": "8/255"}
AVERAGED = {"averaged": {"steps": 2}, "epsilon": "8/255", "knowledge": "adaptive"}
THROUGH = {**PGD, "knowledge": "adaptive"}


@pytest.mark.parametrize(
    ("attacks", "defenses", "note"),
    [
        (
            [PGD, AVERAGED],
            ["none", {"gaussian_noise": {"sigma": 0.1}}],
            "note: attacks[1] attacks nothing: averaged with `knowledge: adaptive` needs a defense that mixes (such as mi_ol) to "
            "go through; got `defenses: [none, gaussian_noise]`",
        ),
        (
            [PGD, THROUGH],
            ["none"],
            "note: attacks[1] attacks nothing: pgd with `knowledge: adaptive` needs a defense to go through; "
            "got `defenses: [none]`",
        ),
        (
            [PGD, THROUGH],
            [{"reject": {"of": [{"gaussian_noise": {"sigma": 0.1}}], "threshold": 0.2}}],
            "note: attacks[1] attacks nothing: pgd with `knowledge: adaptive` needs a defense that never abstains to go "
            "through; got `defenses: [none, reject]`",
        ),
        ([PGD, AVERAGED], [{"mi_ol": {"lam": 0.5}}], None),
        ([PGD, THROUGH], [{"gaussian_noise": {"sigma": 0.1}}], None),
    ],
)
def test_an_attack_with_nothing_to_go_through_is_told_of(
    attacks: list[dict[str, object]], defenses: list[object], note: str | None
) -> None:
    found = prepare(sweep(attacks=attacks, defenses=defenses)).notes
    assert [*found] == ([] if note is None else [note])


def test_an_attack_of_a_classifier_that_has_no_defense_of_its_own_is_told_of() -> None:
    two = [{"name": "f", "architecture": "cnn_small"}, {"name": "g", "architecture": "cnn_small", "seed": 1}]
    defenses = ["none", {"gaussian_noise": {"sigma": 0.1}, "classifiers": ["f"]}]
    on_g = {**THROUGH, "classifiers": ["g"]}
    (told,) = prepare(sweep(classifiers=two, attacks=[PGD, on_g], defenses=defenses)).notes
    assert "attacks[1] attacks nothing: pgd with `knowledge: adaptive` needs a defense on g to go through" in told


def test_an_attack_may_name_a_defense_that_holds_a_network() -> None:
    purify = {"purify": {"factory": "mi_ray.denoising:digits_denoiser", "noise": 0.1}}
    through = {"eot_pgd": {"steps": 2}, "epsilon": "8/255", "knowledge": "adaptive", "defenses": ["purify"]}
    plan = prepare(sweep(attacks=[PGD, through], defenses=["none", purify])).plan()
    assert {work.defense.name for work in plan.attacks if work.defense is not None} == {"purify"}


def test_a_search_over_what_nothing_attacks_is_refused() -> None:
    """It would be told that all of it is left."""
    optuna = {"optuna": {"trials": 2}}
    points = {"count": 40, "selection": 20}
    defenses = [{"gaussian_noise": {"sigma": {"linspace": [0.1, 0.2, 2]}}}, {"mi_ol": {"lam": [0.5, 0.6]}}]
    through = {**THROUGH, "defenses": ["mi_ol"]}
    with pytest.raises(
        ValueError, match=r"search: every setting must be attacked.*; nothing attacks gaussian_noise on f"
    ):
        prepare(sweep(attacks=[through], defenses=defenses, search=optuna, points=points))
    assert prepare(sweep(attacks=[PGD, through], defenses=defenses, search=optuna, points=points)).notes == ()


def test_a_search_asks_for_attacks_on_the_settings_of_each_classifier_alone() -> None:
    two = [{"name": "f", "architecture": "cnn_small"}, {"name": "g", "architecture": "cnn_small", "seed": 1}]
    defenses = [
        {"gaussian_noise": {"sigma": [0.1, 0.2]}, "classifiers": ["f"]},
        {"random_rotation": {"degrees": [5, 9]}, "classifiers": ["g"]},
    ]
    attacks = [{**THROUGH, "classifiers": ["f"]}, {**PGD, "classifiers": ["g"]}]
    optuna, points = {"optuna": {"trials": 2}}, {"count": 40, "selection": 20}
    assert prepare(sweep(classifiers=two, attacks=attacks, defenses=defenses, search=optuna, points=points)).notes == ()


@pytest.mark.parametrize("first", [True, False])
def test_weights_that_lie_beside_those_that_are_taken_are_told_of(first: bool, tmp_path: Path) -> None:
    """The mean of a training's weights answers otherwise than its last ones."""
    entry = {"name": "f", "architecture": "cnn_small"}
    scale = {"mean": [0.5] * 3, "std": [0.5] * 3}
    state = build_classifier(
        {"architecture": "cnn_small", "arguments": {}, "classes": 10, **scale}
    ).network.state_dict()
    others = {"state_dict_ema": {key: value * 0.9 for key, value in state.items()}}
    path = tmp_path / "net.pt"
    torch.save({"state_dict": state, **others} if first else {**others, "state_dict": state}, path)
    notes = prepare(sweep(classifiers=[{**entry, "weights": str(path)}], attacks=[PGD])).notes
    assert [each for each in notes if "state_dict_ema" in each] == [
        f"note: f: {path} holds state_dict_ema too; the weights under 'state_dict' are taken (save others alone)"
    ]
    torch.save({"state_dict": state, "epoch": 3}, path)
    assert prepare(sweep(classifiers=[{**entry, "weights": str(path)}], attacks=[PGD])).notes == ()


def test_what_is_made_with_an_architecture_of_a_plugins_says_in_its_key_that_it_is_computed_as_it_is() -> None:
    """Results of before, when it was folded as ours are, serve it no more; the training is the same."""
    study = prepare(sweep(attacks=[PGD]))
    told = {}
    for sources in ({}, {"cnn_small": "hash"}):
        made = Planner(study.sweep, REGISTRIES, replace(study.planner.facts, sources=sources))
        told[len(sources)] = made.works.ingredients[made.attacks[0].key][1].get("folded")
    assert told == {0: None, 1: [FOLDED_VERSION]}
