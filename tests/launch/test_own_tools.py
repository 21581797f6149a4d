"""Files that start clusters, read by the very tools that they are for, where those are here: `make launch-tools` fetches them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.cluster_files import ROOT, text_of

BUILD = ROOT / "build"
SCHEMA = BUILD / "ray.io_rayjobs.yaml"
SKY = os.environ.get("MI_RAY_SKY", str(BUILD / "sky/bin/python"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """KubeRay's own schema of a RayJob."""
    if not SCHEMA.exists():
        pytest.skip(f"KubeRay's schema is not in {SCHEMA.relative_to(ROOT)}: `make launch-tools` fetches it")
    crd = yaml.safe_load(SCHEMA.read_text())
    found: dict[str, Any] = next(v["schema"]["openAPIV3Schema"] for v in crd["spec"]["versions"] if v["name"] == "v1")
    return found


def job() -> dict[str, Any]:
    """The RayJob of the manifest."""
    documents = yaml.safe_load_all(text_of("cluster/kuberay.yaml"))
    return next(document for document in documents if document["kind"] == "RayJob")


def unknown(value: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Keys that the schema does not have, which Kubernetes would drop without a word."""
    if isinstance(value, list):
        for item in value:
            yield from unknown(item, schema.get("items", {}), where)
    elif isinstance(value, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        named, others = schema.get("properties", {}), schema.get("additionalProperties")
        for key, inner in value.items():
            if key in named or isinstance(others, dict):
                yield from unknown(inner, named.get(key, others), f"{where}.{key}")
            elif where != ".metadata" and (named or not schema.get("type")):
                yield f"{where}.{key}"


def test_the_manifest_is_one_by_kuberays_own_schema(schema: dict[str, Any]) -> None:
    import jsonschema

    jsonschema.Draft7Validator(schema).validate(job())
    assert list(unknown(job(), schema)) == []


def test_that_schema_sees_a_wrong_type_and_an_unknown_key(schema: dict[str, Any]) -> None:
    import jsonschema

    wrong = job()
    wrong["spec"]["backoffLimit"] = "none"
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'integer'"):
        jsonschema.Draft7Validator(schema).validate(wrong)
    wrong = job()
    wrong["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceTyp"] = "ClusterIP"
    assert list(unknown(wrong, schema)) == [".spec.rayClusterSpec.headGroupSpec.serviceTyp"]


READ = """
import json, sys
import sky
from sky.utils import accelerator_registry
# Its catalog of accelerators is fetched from the network; what it is asked for here are their names alone.
accelerator_registry.canonicalize_accelerator_name = lambda name, cloud=None: name
task = sky.Task.from_yaml(sys.argv[1])
print(json.dumps({"name": task.name, "nodes": task.num_nodes, "spot": all(r.use_spot for r in task.resources)}))
"""


def read_by_sky(file: Path) -> subprocess.CompletedProcess[str]:
    """SkyPilot's own reading of a task, in the environment that has it."""
    if shutil.which(SKY) is None:
        pytest.skip(f"SkyPilot is not in {SKY}: `make launch-tools` installs it there")
    return subprocess.run([SKY, "-c", READ, str(file)], capture_output=True, text=True, timeout=120)


@pytest.mark.timeout(200)
def test_skypilot_reads_its_recipe() -> None:
    done = read_by_sky(ROOT / "cluster/skypilot.yaml")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"name": "mi-ray", "nodes": 8, "spot": True}


@pytest.mark.timeout(200)
def test_skypilot_refuses_a_recipe_with_an_unknown_key(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text_of("cluster/skypilot.yaml").replace("num_nodes:", "nodes:"))
    done = read_by_sky(file)
    assert done.returncode != 0
    assert "nodes" in done.stderr
