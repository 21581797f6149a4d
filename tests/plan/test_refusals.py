"""What a plan refuses before any work."""

from typing import Any

import pytest
from helpers.plans import FACTS, planner
from helpers.sweeps import classifier, sweep

from mi_ray.plan.planner import Planner
from mi_ray.study.prepare import REGISTRIES


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


def test_two_names_for_one_classifier_are_refused() -> None:
    twins = [{**classifier()[0], "name": name} for name in ("a", "b")]
    with pytest.raises(ValueError, match="classifiers must differ; 'a' and 'b' are the same"):
        Planner(sweep(classifiers=twins), REGISTRIES, FACTS)


@pytest.mark.parametrize(
    ("name", "parameters"), [("eot_pgd", {"loss": "evade"}), ("eot_pgd", {"branch": "detector"}), ("evasion", {})]
)
def test_what_needs_a_defense_is_refused_of_an_oblivious_attack(name: str, parameters: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="needs `knowledge: adaptive`"):
        planner(attacks=[{name: {"steps": 2, **parameters}, "epsilon": 0.1}])
