"""A tiny study as the real command line runs it, and how rows of two runs are compared."""

import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml

import mi_ray
from mi_ray.device import has_bf16

# Where bfloat16 is emulated, two minutes of training would prove nothing more.
FAST = "bf16" if has_bf16(torch.device("cpu")) else "fp32"

LATE = ("torch", "torchvision", "optuna", "sklearn", "safetensors", "matplotlib", "scipy")

TINY: dict[str, Any] = {
    "name": "tiny",
    "dataset": "digits",
    "points": {"count": 120, "selection": 40},
    "classifiers": [
        {
            "name": "at",
            "architecture": {"cnn_small": {"width": 4}},
            "objective": {"adversarial": {"steps": 2}},
            "training": {"epochs": 3, "lr": 0.1, "flip": False, "precision": FAST},
            "workers": 2,
        },
    ],
    "attacks": [{"pgd": {"steps": [2, 4], "step_size": 0.02}, "epsilon": 0.05, "goal": ["untargeted", "targeted"]}],
    "defenses": [
        {"gaussian_noise": {"sigma": [0.1, 0.2]}},
        {"random_rotation": {"degrees": 10}},
        {"mi_combined": {"lam_pl": 0.5, "lam_ol": [0.5, 0.6], "threshold": [0.1, 0.2]}},
    ],
    "executions": [3, 10],
    "draws": 2,
    "resources": {"block": {"points": 50}},
    "figures": ["fig3b", "frontier_table"],
    "checks": "cheap",
}


def command(folder: Path, *sweeps: dict[str, Any], verb: str = "sweep") -> list[str]:
    files = [folder / f"{sweep['name']}.yaml" for sweep in sweeps]
    for file, sweep in zip(files, sweeps, strict=True):
        file.write_text(yaml.safe_dump(sweep))
    return [sys.executable, "-m", "mi_ray.cli", verb, *map(str, files), "--out", str(folder / "results")]


def console(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed console script run in a folder: `python -m` would look for modules in that folder itself."""
    script = Path(sysconfig.get_path("scripts")) / "mi-ray"
    return subprocess.run([script, *arguments], capture_output=True, text=True, cwd=folder)


@contextmanager
def hostile_modules(folder: Path) -> Iterator[None]:
    """Modules named as packages that are imported late lie in the folder while the block runs; imported, they leave a trace."""
    files = [folder / f"{name}.py" for name in LATE]
    for file in files:
        file.write_text(f"import os\nos.makedirs({str(folder / 'hostile')!r}, exist_ok=True)\n")
    yield
    for file in files:
        file.unlink()


def run(folder: Path, *sweeps: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *sweeps), capture_output=True, text=True, cwd=folder)


def rows(folder: Path, study: str = "tiny") -> pd.DataFrame:
    frame = mi_ray.read_records(folder / "results", study=study)
    return frame.sort_values(["cell", "point"]).reset_index(drop=True)


def assert_same_rows(left: pd.DataFrame, right: pd.DataFrame) -> None:
    """Equal bit for bit: pandas' own comparison would let floats differ by a part in 100,000."""
    plain = [name for name in right if name != "probabilities"]
    pd.testing.assert_frame_equal(left[plain], right[plain], check_exact=True)
    pairs = zip(left["probabilities"], right["probabilities"], strict=True)
    assert all(one.tobytes() == other.tobytes() for one, other in pairs)


def sorted_rows(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    """Rows as values that compare, in a fixed order; whose study they were read as is no part of them."""
    frame = frame.drop(columns="study", errors="ignore")
    frame = frame.assign(probabilities=[tuple(values) for values in frame["probabilities"]])
    return sorted(frame.itertuples(index=False, name=None))
