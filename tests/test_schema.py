"""The JSON Schema of sweep files takes every packaged sweep, and refuses what an editor should mark."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.sweeps import classifier, document

from mi_ray.plugins import NEW
from mi_ray.schema import sweep_schema
from mi_ray.sweep_files import CLAIMS, PACKAGED

FILES = [file for file in sorted(PACKAGED.rglob("*.yaml")) if file.stem != CLAIMS]
jsonschema = pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = sweep_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGED)) for file in FILES])
def test_every_packaged_sweep_is_valid_and_names_the_schema(file: Path, validator: Any) -> None:
    text = file.read_text(encoding="utf-8")
    assert [error.message for error in validator.iter_errors(yaml.safe_load(text))] == []
    # `mi-ray init` copies the schema beside its sweep, whose place is not that of the packaged ones.
    named = "../sweep.schema.json" if file.parent.name == "cifar10" else "sweep.schema.json"
    assert f"# yaml-language-server: $schema={named}" in text.splitlines()


def test_the_packaged_schema_is_what_the_command_prints() -> None:
    assert NEW.is_dir()
    written = json.loads((PACKAGED / "sweep.schema.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(sweep_schema())), "mi-ray schema > sweeps/sweep.schema.json writes it"


GOOD: list[dict[str, Any]] = [
    {"classifiers": [{"name": "f", "timm": "resnet18"}]},
    {"classifiers": [{"name": "f", "torchvision": {"model": "resnet18", "pretrained": "DEFAULT"}}]},
    {"dataset": {"imagefolder": {"path": "d", "size": 224}}},
    {"dataset": {"torchvision": {"name": "SVHN"}}},
    {"defenses": ["none", "my_own", {"my_own": {"a": [1, 2]}}, {"gaussian_noise": {"sigma": {"linspace": [0, 1, 3]}}}]},
    {"attacks": [{"pgd": {"steps": [1, 2]}, "epsilon": ["8/255", 0.1], "goal": ["targeted"]}]},
    {"search": {"optuna": {"trials": 3}}, "checks": "cheap"},
]
BAD: list[dict[str, Any]] = [
    {"classifers": []},
    {"points": {"count": 0}},
    {"classifiers": classifier(training={"epoch": 3})},
    {"attacks": [{"pgd": {"step": 2}, "epsilon": 0.1}]},
    {"attacks": [{"pgd": {}}]},
    {"attacks": [{"pgd": {}, "epsilon": 0.1, "goal": "sideways"}]},
    {"defenses": [{"gaussian_noise": {"sigma": {"linspace": [0, 1]}}}]},
    {"defenses": [7]},
    {"dataset": {"imagefolder": {"siz": 224}}},
    {"classifiers": [{"name": "f", "robustbench": {"model": "m", "threat": "L7"}}]},
]


@pytest.mark.parametrize(("changes", "valid"), [(each, True) for each in GOOD] + [(each, False) for each in BAD])
def test_what_an_editor_marks(changes: dict[str, Any], valid: bool, validator: Any) -> None:
    assert validator.is_valid(json.loads(json.dumps(document(**changes)))) is valid
