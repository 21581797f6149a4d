"""`mi-ray cluster check`: which kind of cluster file it is given, and what is wrong with it."""

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from mi_ray.launch.kubernetes import RAY_KINDS, check_kubernetes, one_by_one
from mi_ray.launch.ray_up import check_ray_up
from mi_ray.launch.rules import Complaint, scalars, secrets_in, unfilled
from mi_ray.launch.slurm import check_slurm
from mi_ray.parameters import kind_of


def check_cluster_file(path: Path, limit: float = 100.0) -> tuple[str, list[Complaint]]:
    """Say which kind of cluster file this is, and what is wrong with it: errors first, then warnings.

    It reads `ray up` files, Kubernetes manifests with a Ray resource, and Slurm scripts that start Ray. Relative paths in
    them are taken from the current folder, as Ray takes them. limit: megabytes of files that may be sent to each node.
    Raises ValueError for a file that is none of the three.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        why = getattr(problem, "strerror", None) or "it is not in UTF-8"
        raise ValueError(f"a cluster file must be readable text; {path}: {why}") from problem
    common = [*secrets_in(text), *unfilled(text)]
    if re.search(r"^#SBATCH\b", text, re.MULTILINE):
        return "a Slurm script", _sorted([*common, *check_slurm(text)])
    documents = list(one_by_one(_documents(path, text)))
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


def _sorted(complaints: list[Complaint]) -> list[Complaint]:
    return sorted(dict.fromkeys(complaints), key=lambda complaint: complaint.level != "error")


def _documents(path: Path, text: str) -> list[Mapping[str, object]]:
    """The parsed documents of a YAML file; raises ValueError for one that is not YAML or holds anything but mappings."""
    try:
        found = [document for document in yaml.safe_load_all(text) if document is not None]
        for _ in scalars(found):  # This walks through all of it, and never ends in a document that holds itself.
            pass
    except (yaml.YAMLError, RecursionError) as problem:
        mark, told = getattr(problem, "problem_mark", None), getattr(problem, "problem", None) or "it holds itself"
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{path} must be YAML that ends; {where}{told}") from problem
    mappings = [document for document in found if isinstance(document, Mapping)]
    if not mappings or len(mappings) < len(found):
        got = kind_of(next((document for document in found if not isinstance(document, Mapping)), None))
        raise ValueError(f"{path} must hold YAML mappings, such as cluster_name: …; got {got}")
    return mappings
