"""The zoo: its weights are the ones that its cards name, a sweep attacks them by name, and a changed file is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.plans import FACTS
from helpers.sweeps import sweep

import mi_ray
from mi_ray import zoo
from mi_ray.classifiers import weights_digest
from mi_ray.config import Sweep
from mi_ray.plan.planner import Planner
from mi_ray.study.prepare import REGISTRIES


@pytest.mark.parametrize("name", zoo.zoo_names())
def test_a_classifier_of_the_zoo_is_the_one_that_its_card_describes(name: str) -> None:
    card = zoo.zoo_card(name)
    assert weights_digest(zoo.zoo_weights(name).read_bytes()) == card["weights_sha256"]
    classifier = mi_ray.load_classifier(f"zoo:{name}")
    noise = np.random.default_rng(0).random((len(card["logits_on_noise"]), 3, *card["side"]), dtype=np.float32)
    with torch.no_grad():
        found = classifier(torch.from_numpy(noise))
    assert np.allclose(found, card["logits_on_noise"], atol=5e-3)
    assert not classifier.training


def test_the_zoo_fits_into_twelve_megabytes() -> None:
    assert len(zoo.zoo_names()) >= 7
    assert sum(zoo.zoo_weights(name).stat().st_size for name in zoo.zoo_names()) < 12e6


def test_another_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown classifier of the zoo 'mixip'.*did you mean 'mixup'"):
        mi_ray.load_classifier("zoo:mixip")


def test_weights_that_were_changed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(zoo.zoo_weights("erm").read_bytes())
    content[-1] ^= 1
    (tmp_path / "erm.safetensors").write_bytes(content)
    (tmp_path / "erm.json").write_text(json.dumps(zoo.zoo_card("erm")))
    monkeypatch.setattr(zoo, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match="SHA-256 that its card names"):
        mi_ray.load_classifier("zoo:erm")


def test_a_sweep_names_a_classifier_of_the_zoo_and_its_key_is_that_of_its_content() -> None:
    by_name = sweep(classifiers=[{"name": "f", "zoo": "mixup"}])
    facts = replace(FACTS, sources={str(zoo.zoo_weights("mixup")): "digest", "elsewhere.safetensors": "digest"})
    card = zoo.zoo_card("mixup")
    same = {"architecture": dict([card["architecture"]]), "mean": card["mean"], "std": card["std"]}
    elsewhere = sweep(classifiers=[{"name": "f", "weights": "elsewhere.safetensors", **same}])
    works = [Planner(made, REGISTRIES, facts).classifiers[0] for made in (by_name, elsewhere)]
    assert works[0].key == works[1].key
    assert works[0].objective is None
    assert works[0].cost == (0, 0)
    assert by_name.document()["classifiers"] == [{"name": "f", "zoo": "mixup"}]
    assert Sweep.model_validate(by_name.document()).document() == by_name.document()


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ({"zoo": "mixip"}, "unknown classifier of the zoo 'mixip'"),
        ({"zoo": "mixup", "architecture": "cnn_small"}, "must have one of `architecture`, `factory` and `zoo`"),
        ({"zoo": "mixup", "mean": [0, 0, 0]}, "says all of it but its name; it has mean too"),
        ({"zoo": "mixup", "training": {"epochs": 3}}, "says all of it but its name; it has training too"),
    ],
)
def test_what_stands_beside_a_name_of_the_zoo_is_refused(beside: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        sweep(classifiers=[{"name": "f", **beside}])
