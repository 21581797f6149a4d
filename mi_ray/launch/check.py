"""TODO."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mi_ray.launch.kubernetes import RAY_KINDS, check_kubernetes
from mi_ray.launch.ray_up import check_ray_up
from mi_ray.launch.rules import Finding, scalars, secrets_in, unfilled
from mi_ray.launch.slurm import check_slurm


def check_cluster_file(path: Path, limit: float = 100.0) -> tuple[str, list[Finding]]:
    """(what kind of file it is, what is wrong with it). limit: megabytes of files that may be sent to each node.

    Reads a `ray up` file, a Kubernetes manifest with a Ray resource, or a Slurm script that starts Ray. Relative paths in
    it are taken from the current folder, as Ray takes them. Raises ValueError for a file that is none of the three.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"a cluster file must be readable text; {path}: {problem}") from problem
    common = [*secrets_in(text), *unfilled(text)]
    if re.search(r"^#SBATCH\b", text, re.MULTILINE):
        return "a Slurm script", _sorted([*common, *check_slurm(text)])
    documents = _documents(path, text)
    if any("apiVersion" in each and each.get("kind") in RAY_KINDS for each in documents):
        lacking = [each for each in documents if not each.get("kind")]
        if lacking:
            raise ValueError(
                f"{path}: every document of a manifest must have a kind; got one with {', '.join(lacking[0])}"
            )
        return "a Kubernetes manifest", _sorted([*common, *check_kubernetes(documents)])
    if len(documents) == 1 and {"provider", "cluster_name", "available_node_types"} & documents[0].keys():
        return "a `ray up` file", _sorted([*common, *check_ray_up(documents[0], limit)])
    raise ValueError(
        f"mi-ray cluster check reads `ray up` files (with provider and cluster_name), Kubernetes manifests with a "
        f"{', '.join(RAY_KINDS)}, and Slurm scripts (with #SBATCH lines); {path} is none of them"
    )


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.level != "error")


def _documents(path: Path, text: str) -> list[Mapping[str, Any]]:
    try:
        parts = [
            _without_loops(yaml.safe_load(part)) for part in re.split(r"^---(?:[ \t].*)?$", text, flags=re.MULTILINE)
        ]
    except (yaml.YAMLError, RecursionError) as problem:
        raise ValueError(f"{path} must be YAML that ends: {' '.join(str(problem).split())}") from problem
    found = [part for part in parts if part is not None]
    if not found or not all(isinstance(part, Mapping) for part in found):
        raise ValueError(
            f"{path} must hold YAML mappings, such as cluster_name: …; got {type((found or [None])[0]).__name__}"
        )
    return found


def _without_loops(document: Any) -> Any:
    """The document; raises RecursionError where an alias makes it hold itself."""
    for _ in scalars(document):
        pass
    return document
