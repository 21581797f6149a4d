"""The cluster files that ship, changed copies of them, and what `mi-ray cluster check` says of a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from mi_ray.launch.check import check_cluster_file

ROOT = Path(__file__).parents[2]
RAY_UP = ["cluster.yaml", "cluster/on_premise.yaml"]
SHIPPED = [*RAY_UP, "cluster/kuberay.yaml", "cluster/slurm.sh"]


def text_of(name: str) -> str:
    """A shipped file's text."""
    return (ROOT / name).read_text(encoding="utf-8")


def errors_of(path: Path, limit: float = 100.0) -> list[str]:
    """The errors of a file, without its warnings."""
    return [str(complaint) for complaint in check_cluster_file(path, limit)[1] if complaint.level == "error"]


def warnings_of(path: Path) -> list[str]:
    """The warnings of a file, without its errors."""
    return [str(complaint) for complaint in check_cluster_file(path)[1] if complaint.level == "warning"]


def changed(tmp_path: Path, change: Callable[[dict[str, Any]], object], name: str = "cluster.yaml") -> Path:
    """A copy of a shipped `ray up` file after a change."""
    document = yaml.safe_load(text_of(name))
    change(document)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return path


def replaced(tmp_path: Path, name: str, old: str, new: str) -> Path:
    """A copy of a shipped file with one text in place of another, everywhere."""
    text = text_of(name)
    assert old in text
    path = tmp_path / Path(name).name
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path
