"""A NaN in a real study on Ray costs what made it, and nothing else: the rest has its rows, its verdicts and its figures."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import command, console

import mi_ray
from mi_ray.store.blocks import Store
from mi_ray.store.check import check_store

# It takes a minute; `study/test_not_finite.py` holds in seconds what finds a NaN, and who is named for it.
pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

BRIGHT = 0.36  # the mean of an image, which one digit in twenty is above
MODULE = f"""
from dataclasses import dataclass
from typing import Any, ClassVar
import torch
from torch import nn
from mi_ray.attacks import ATTACKS
from mi_ray.attacks.pgd import Pgd
from mi_ray.defenses import DEFENSES, RandomTransform

class Net(nn.Module):
    def __init__(self, spoiled):
        super().__init__()
        self.layer, self.spoiled = nn.Linear(3072, 10), spoiled
    def forward(self, x):
        logits = self.layer(x.flatten(1))
        bright = (x.flatten(1).mean(1) > {2 * BRIGHT - 1})[:, None]  # normalized: 2 x - 1
        return logits.masked_fill(bright, torch.nan) if self.spoiled else logits

def good():
    return Net(False)

def bad():
    return Net(True)

@DEFENSES.register
@dataclass(frozen=True)
class NanDefense(RandomTransform):
    'Makes NaN of bright images.'
    name = 'nan_defense'
    def transform(self, x, draws, predicted, pool):
        bright = (x.flatten(1).mean(1) > {BRIGHT})[:, None, None, None]
        return torch.where(bright, torch.nan, x)[None].expand(draws.executions, *x.shape)
    @classmethod
    def identity(cls):
        return {{}}

@ATTACKS.register
@dataclass(frozen=True)
class NanAttack(Pgd):
    'Makes NaN of bright images.'
    name: ClassVar[str] = 'nan_attack'
    def run(self, model, batch):
        found = super().run(model, batch)
        found.images[:, :, batch.x.flatten(1).mean(1) > {BRIGHT}] = torch.nan
        return found
"""
LOOK = {"mean": [0.5] * 3, "std": [0.5] * 3}
PGD = {"steps": 2, "step_size": 0.02}
SWEEP: dict[str, Any] = {
    "name": "nan",
    "plugins": ["nans"],
    "dataset": "digits",
    "points": {"count": 100, "selection": 20},
    "classifiers": [{"name": name, "factory": f"nans:{name}", **LOOK} for name in ("good", "bad")],
    "attacks": [{"pgd": PGD, "epsilon": 0.05}, {"nan_attack": PGD, "epsilon": 0.05}],
    "defenses": [{"gaussian_noise": 0.1}, "nan_defense"],
    "executions": 3,
    "draws": 1,
    "resources": {"block": {"points": 20}},
    "figures": ["fig3b", "frontier_table"],
    "checks": "cheap",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of the study, and what its command said."""
    folder = tmp_path_factory.mktemp("nan")
    (folder / "nans.py").write_text(MODULE)
    return folder, console(folder, *command(folder, SWEEP)[3:])


def test_what_makes_a_nan_fails_alone_with_its_name_and_cause(
    study: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, done = study
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    cells = mi_ray.read_cells(folder / "results", study="nan")
    bad = (cells["classifier"] == "bad") | (cells["defense"] == "nan_defense") | (cells["attack"] == "nan_attack")
    assert set(cells[bad]["state"]) == {"failed"}
    assert cells[bad]["cause"].str.contains("finite").all()
    kept = cells[~bad & (cells["attack"] != "worst_case")]
    assert sorted(zip(kept["defense"], kept["attack"], strict=True)) == [
        ("gaussian_noise", "none"),
        ("gaussian_noise", "pgd"),
        ("none", "none"),
        ("none", "pgd"),
    ]
    assert set(kept["state"]) == {"done"}


def test_its_figures_are_drawn_its_store_is_sound_and_another_run_computes_only_what_failed(
    study: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = study
    figures = folder / "results/studies/nan/figures"
    assert {"fig3b.png", "frontier_table.md"} <= {path.name for path in figures.iterdir()}
    assert (folder / "results/studies/nan/report.html").exists()
    assert check_store(Store(folder / "results"))[0] == []
    before = mi_ray.read_cells(folder / "results", study="nan")
    again = console(folder, *command(folder, SWEEP)[3:])
    assert again.returncode == 1
    after = mi_ray.read_cells(folder / "results", study="nan")
    assert before["state"].tolist() == after["state"].tolist()
    assert before["accuracy"].equals(after["accuracy"])
