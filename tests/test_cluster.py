"""Studies under real Ray, through the real command line: killed, resumed, extended, searched, failing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

import mi_ray
from mi_ray.records import Store

pytestmark = [pytest.mark.ray, pytest.mark.timeout(280)]

TINY: dict[str, Any] = {
    "name": "tiny",
    "dataset": "digits",
    "points": {"count": 120, "selection": 40},
    "classifiers": [
        {
            "name": "mixup", "architecture": {"cnn_small": {"width": 4}}, "objective": "mixup",
            "training": {"epochs": 3, "lr": 0.1, "flip": False},
        },
        {
            "name": "at", "architecture": {"cnn_small": {"width": 4}}, "objective": {"adversarial": {"steps": 2}},
            "training": {"epochs": 3, "lr": 0.1, "flip": False, "precision": "bf16"},
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
}  # fmt: skip


def command(folder: Path, sweep: dict[str, Any], *options: str) -> list[str]:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep))
    return [sys.executable, "-m", "mi_ray.cli", "sweep", str(file), "--out", str(folder / "results"), *options]


def run(folder: Path, sweep: dict[str, Any], *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, sweep, *options), capture_output=True, text=True, cwd=folder)


def rows(folder: Path, study: str = "tiny") -> pd.DataFrame:
    frame = mi_ray.read_records(folder / "results", study=study)
    return frame.sort_values(["cell", "point"]).reset_index(drop=True)


def assert_same_rows(left: pd.DataFrame, right: pd.DataFrame) -> None:
    """Equal bit for bit: pandas' own comparison would let floats differ by a part in 100,000."""
    plain = [name for name in right if name != "probabilities"]
    pd.testing.assert_frame_equal(left[plain], right[plain], check_exact=True)
    pairs = zip(left["probabilities"], right["probabilities"], strict=True)
    assert all(one.tobytes() == other.tobytes() for one, other in pairs)


def counted(folder: Path, study: str = "tiny") -> dict[str, int]:
    manifest = Store(folder / "results").read_json(f"studies/{study}/manifest.json")
    passes: dict[str, int] = manifest["last_run"]["counted_forward_passes"]
    return passes


def stopped_at(folder: Path, sweep: dict[str, Any], pattern: str, sent: signal.Signals) -> int:
    """Start a sweep, send its process group a signal once a file of that pattern is there; returns the exit code."""
    process = subprocess.Popen(
        command(folder, sweep), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while not any(folder.glob(pattern)):
        assert process.poll() is None, f"the sweep ended before {pattern} was there"
        assert time.monotonic() < deadline, f"{pattern} did not appear"
        time.sleep(0.01)
    if sent == signal.SIGKILL:
        os.killpg(process.pid, sent)
    else:
        process.send_signal(sent)
    return process.wait()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny study; tests that change it work on a copy."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = run(folder, TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> Path:
    shutil.copytree(undisturbed / "results", tmp_path / "results")
    return tmp_path


def test_a_study_leaves_every_cell_of_its_grid_with_a_row_for_each_point(undisturbed: Path) -> None:
    cells, records = mi_ray.read_cells(undisturbed / "results", study="tiny"), rows(undisturbed)
    settings = 1 + (2 + 1 + 2 * 2) * 2  # none, and each setting at both N
    inputs = 1 + 2 * 2  # clean, and both goals at both stops
    assert len(cells) == 2 * settings * inputs
    assert (cells["state"] == "done").all()
    assert len(records) == len(cells) * 120
    assert not records.duplicated(["cell", "point"]).any()
    assert set(cells["points"]) == {80}
    reported = records[~records["selection"]].groupby("cell")
    mean = reported["correct_draws"].sum() / reported["draws"].sum()
    assert mean.loc[cells["cell"]].to_numpy() == pytest.approx(cells["accuracy"].to_numpy())


def test_a_study_leaves_its_figures_tables_and_provenance(undisturbed: Path) -> None:
    study = undisturbed / "results/studies/tiny"
    assert (study / "figures/fig3b.png").read_bytes().startswith(b"\x89PNG")
    assert (study / "figures/fig3b.pdf").read_bytes().startswith(b"%PDF")
    assert {p.name for p in (study / "figures").glob("frontier_table.*")} == {
        "frontier_table.md", "frontier_table.csv", "frontier_table.tex",
    }  # fmt: skip
    manifest = json.loads((study / "manifest.json").read_text())
    assert manifest["state"] == "complete"
    assert manifest["provenance"]["versions"]["torch"]
    assert len(manifest["points"]["indices"]) == 120
    assert yaml.safe_load((study / "study.yaml").read_text())["options"]["pool_split"] == "train"
    assert not list((undisturbed / "results").rglob(".*")), "temporary files are left"
    assert not (undisturbed / "results-scratch").exists()


def test_counted_passes_are_the_planned_ones(undisturbed: Path) -> None:
    manifest = Store(undisturbed / "results").read_json("studies/tiny/manifest.json")
    for what, passes in counted(undisturbed).items():
        assert passes == manifest["planned"][what], what


def test_a_finished_study_is_recognised_without_importing_torch_or_ray(undisturbed: Path) -> None:
    program = (
        "import sys; from mi_ray.cli import main\n"
        "try: main()\n"
        "finally: print('heavy:', [m for m in ('torch', 'ray') if m in sys.modules])"
    )
    arguments = command(undisturbed, TINY)[3:]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=undisturbed)
    assert "finished already, nothing to compute" in done.stdout
    assert "heavy: []" in done.stdout, done.stdout + done.stderr


def test_a_sweep_stopped_in_its_attacks_and_killed_in_its_trials_ends_with_the_rows_of_an_undisturbed_one(
    undisturbed: Path, copied: Path
) -> None:
    for kind in ("adversarial", "outputs", "records", "studies"):
        shutil.rmtree(copied / "results" / kind)
    assert stopped_at(copied, TINY, "results/adversarial/*/*.parquet", signal.SIGINT) == 130
    assert not list((copied / "results/records").glob("*/*.parquet"))
    assert stopped_at(copied, TINY, "results/outputs/*/*.parquet", signal.SIGKILL) == -signal.SIGKILL
    done = run(copied, TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_rows(rows(copied), rows(undisturbed))
    assert subprocess.run([sys.executable, "-m", "mi_ray.cli", "check", str(copied / "results")]).returncode == 0


def test_training_killed_between_epochs_goes_on_to_the_same_rows(undisturbed: Path, tmp_path: Path) -> None:
    assert stopped_at(tmp_path, TINY, "results-scratch/*/checkpoint*", signal.SIGKILL) == -signal.SIGKILL
    # Which of the two trainings is how far is a matter of time; one at least is between a checkpoint and its end.
    assert len(list((tmp_path / "results/classifiers").glob("*/classifier.json"))) < 2
    assert list((tmp_path / "results-scratch").glob("*/checkpoint*"))
    done = run(tmp_path, TINY)
    assert done.returncode == 0, done.stdout + done.stderr
    pd.testing.assert_frame_equal(rows(tmp_path), rows(undisturbed))


def test_one_more_value_computes_only_its_own_cells_and_changes_no_row(undisturbed: Path, copied: Path) -> None:
    extended = {**TINY, "defenses": [{"gaussian_noise": {"sigma": [0.1, 0.15, 0.2]}}, *TINY["defenses"][1:]]}
    done = run(copied, extended)
    assert done.returncode == 0, done.stdout + done.stderr
    # one new setting: 2 classifiers x 5 inputs x 150 stored points (whole batches) x 2 draws x 10 executions
    assert counted(copied) == {"evaluation_forward": 2 * 5 * 150 * 2 * 10}
    new = rows(copied)
    old = new[~new["defense_params"].str.contains("0.15")].reset_index(drop=True)
    assert_same_rows(old, rows(undisturbed))


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_a_search_finishes_and_repeats_its_settings(copied: Path, sampler: str) -> None:
    defenses = [{"gaussian_noise": {"sigma": {"linspace": [0.05, 0.3, 6]}}}, *TINY["defenses"][1:]]
    search = {"optuna": {"sampler": sampler, "trials": 5, "round": 3}}
    sweep = {**TINY, "name": "search", "defenses": defenses, "search": search, "executions": 5, "draws": 1}
    sweep["classifiers"] = TINY["classifiers"][:1]
    first = run(copied, sweep)
    assert first.returncode == 0, first.stdout + first.stderr
    cells = mi_ray.read_cells(copied / "results", study="search")
    assert 2 < cells["defense_params"].nunique() <= 5 + 1
    if sampler == "nsgaii":
        return  # both samplers go through the same rounds; one repetition shows that they repeat
    shutil.rmtree(copied / "results/studies/search")
    again = run(copied, sweep)
    assert again.returncode == 0, again.stdout + again.stderr
    assert counted(copied, "search")["evaluation_forward"] == 0
    repeated = mi_ray.read_cells(copied / "results", study="search")
    assert sorted(cells["cell"]) == sorted(repeated["cell"])


def test_a_defense_that_always_fails_leaves_the_others_done_and_its_cause_in_the_cells(copied: Path) -> None:
    (copied / "poison.py").write_text(
        "from dataclasses import dataclass\n"
        "from mi_ray.defenses import DEFENSES, RandomTransform\n"
        "@DEFENSES.register\n"
        "@dataclass(frozen=True)\n"
        "class Poison(RandomTransform):\n"
        "    '''Always fails.'''\n"
        "    name = 'poison'\n"
        "    def transform(self, x, draws, predicted, pool):\n"
        "        raise RuntimeError('the poison works')\n"
        "    @classmethod\n"
        "    def identity(cls):\n"
        "        return {}\n"
    )
    sweep = {**TINY, "name": "poisoned", "plugins": ["poison"], "defenses": [*TINY["defenses"], "poison"]}
    done = run(copied, sweep)
    assert done.returncode == 1
    assert "the poison works" in done.stderr
    cells = mi_ray.read_cells(copied / "results", study="poisoned")
    bad = cells[cells["defense"] == "poison"]
    assert set(bad["state"]) == {"failed"}
    assert bad["cause"].str.contains("the poison works").all()
    assert set(cells[cells["defense"] != "poison"]["state"]) == {"done"}


def test_two_training_workers_reach_nearly_the_loss_of_one_with_the_same_global_batch(tmp_path: Path) -> None:
    base = {**TINY["classifiers"][0], "objective": "erm"}
    pair = [{**base, "name": "one"}, {**base, "name": "two", "workers": 2}]
    sweep = {**TINY, "classifiers": pair}
    arguments = command(tmp_path, sweep)
    arguments[3] = "train"
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for about in (tmp_path / "results/classifiers").glob("*/classifier.json"):
        training = pd.read_parquet(about.parent / "training.parquet")
        found[json.loads(about.read_text())["name"]] = training["loss"].to_numpy()
    assert set(found) == {"one", "two"}  # the world size is part of the key
    assert found["two"][0] == pytest.approx(found["one"][0], rel=0.15)
    assert found["two"][-1] == pytest.approx(found["one"][-1], rel=0.25)


@pytest.mark.timeout(560)
def test_the_smoke_variant_of_every_sweep_file_runs(tmp_path: Path) -> None:
    files = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))
    program = [sys.executable, "-m", "mi_ray.cli", "sweep", "--smoke", *map(str, files), "--out", "results"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for file in files:
        cells = mi_ray.read_cells(tmp_path / "results", study=f"{yaml.safe_load(file.read_text())['name']}-smoke")
        assert len(cells) > 1
        assert (cells["state"] == "done").all()
