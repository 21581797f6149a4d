"""What dies under real Ray, on several nodes, through the real command: the rows are those of an undisturbed run.

Rules without Ray: tests/cluster/test_scheduling.py. Kills by the thousand: tests/cluster/chaos.py, `make chaos`.
"""

import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from helpers.clusters import Nodes, nodes, wait_until
from helpers.commands import TINY, assert_same_rows, command, rows
from helpers.studies import put_classifier
from safetensors.torch import load_file

import mi_ray
from mi_ray.store.blocks import Store
from mi_ray.store.check import check_store

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

PLUGIN = '''
"""Defenses, an attack, an objective and a network that die, each in its way."""

import os, signal, time
from dataclasses import dataclass
from pathlib import Path
import torch
from torch import nn
from mi_ray.attacks import ATTACKS
from mi_ray.attacks.pgd import Pgd
from mi_ray.classifiers import ARCHITECTURES, Architecture
from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.objectives import OBJECTIVES, Erm


def calls(name):
    """How often something was called in Ray's workers; the command tries code of a person's before it gives it to them."""
    if "RAY_RAYLET_PID" not in os.environ:
        return 0
    with Path(__file__).with_name(name).open("a") as file:
        file.write("x")
        return file.tell()


def dies(name):
    if "RAY_RAYLET_PID" not in os.environ:
        return
    if name == "killed_once" and calls(name) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hangs_once" and calls(name) == 1:
        time.sleep(1000)
    if name == "hangs":
        time.sleep(1000)
    if name == "starves_once" and calls(name) == 1:
        raise MemoryError
    if name == "starves":
        raise MemoryError
    if name == "poison":
        raise RuntimeError("the poison works")


def defense(title):
    @DEFENSES.register
    @dataclass(frozen=True)
    class Dying(RandomTransform):
        "Dies in its way."
        name = title
        def transform(self, x, draws, predicted, pool):
            dies(title)
            return x + 0.01 * draws.uniform(1)[..., None, None]
        @classmethod
        def identity(cls):
            return {}
    return Dying


MADE = [defense(name) for name in ("killed_once", "hangs_once", "hangs", "starves_once", "starves", "poison")]


@ATTACKS.register
@dataclass(frozen=True)
class KilledPgd(Pgd):
    "PGD whose first block kills its worker."
    name = "killed_pgd"
    def run(self, *args, **kwargs):
        if calls("attack") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(*args, **kwargs)


steps = 0


@OBJECTIVES.register
@dataclass(frozen=True)
class Killed(Erm):
    "Kills its worker in the middle of the second epoch, three times in all."
    name = "killed"
    def loss(self, model, plain, x, y, rng):
        global steps
        steps += 1
        if steps == 30 and calls("training") <= 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, plain, x, y, rng)


@OBJECTIVES.register
@dataclass(frozen=True)
class Diverging(Erm):
    "A loss that is NaN from the 26th step on."
    name = "diverging"
    def loss(self, model, plain, x, y, rng):
        global steps
        steps += 1
        return super().loss(model, plain, x, y, rng) * (float("nan") if steps > 25 else 1.0)


@ARCHITECTURES.register
@dataclass(frozen=True)
class Plain(Architecture):
    "No batch norm: a batch's loss does not depend on how workers share it."
    name = "plain"
    def build(self, classes):
        return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, classes))
'''
WATCHING = """
from pathlib import Path
from ray import tune


class Counting(tune.Callback):
    def on_trial_complete(self, iteration, trials, trial, **info):
        with Path(__file__).with_name("completed").open("a") as file:
            file.write(f"{trial}\\n")


def counting():
    return Counting()
"""
TRAINING = {"epochs": 12, "lr": 0.1, "flip": False, "crop_padding": 0, "channels_last": False}
WORKERS: dict[str, Any] = {
    **TINY,
    "name": "workers",
    "plugins": ["dying"],
    "classifiers": [
        {
            "name": f"{count} workers",
            "architecture": "plain",
            "objective": "killed",
            "training": TRAINING,
            "workers": count,
        }
        for count in (1, 2, 4)
    ],
}
KILLED = {
    **WORKERS,
    "name": "killed",
    "classifiers": [
        *WORKERS["classifiers"][:2],
        {**WORKERS["classifiers"][0], "name": "nan", "objective": "diverging"},
    ],
}
DYING = {
    **TINY,
    "name": "dying",
    "plugins": ["dying"],
    "classifiers": TINY["classifiers"][:1],
    "executions": 1,
    "draws": 1,
    "points": {"count": 50},
    "attacks": [{"killed_pgd": {"steps": 1}, "epsilon": 0.05}],
    "figures": [],
    "defenses": [
        "none",
        {"gaussian_noise": {"sigma": 0.1}},
        "killed_once",
        "hangs_once",
        "hangs",
        "starves_once",
        "starves",
        "poison",
    ],
    "resources": {"block": {"points": 50, "time_limit": 8}},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    """A head that computes nothing and two nodes with two CPUs each."""
    with nodes(2, cpus=2) as found:
        yield found


def start(folder: Path, sweep: dict[str, Any], cluster: Nodes, verb: str = "sweep") -> "subprocess.Popen[str]":
    """The command on the cluster; what it says and its events go to files in the folder."""
    (folder / "dying.py").write_text(PLUGIN)
    (folder / "watching.py").write_text(WATCHING)
    watched = ["--log", "log.jsonl", "--tensorboard", "curves", "--callback", "watching:counting"]
    with (folder / "output.txt").open("a") as said:
        return subprocess.Popen(
            [*command(folder, sweep, verb=verb), "--address", cluster.address, *watched],
            cwd=folder,
            stdout=said,
            stderr=said,
            text=True,
            start_new_session=True,
            # A shell's background job, as a whole test run may be, ignores Ctrl-C, and would hand that down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def finish(process: "subprocess.Popen[str]", folder: Path) -> tuple[int, str]:
    """The exit code, and all that was said."""
    code = process.wait(timeout=600)
    return code, (folder / "output.txt").read_text()


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def kill(pids: list[int], chooser: random.Random) -> None:
    os.kill(chooser.choice(pids), signal.SIGKILL)


def until(process: "subprocess.Popen[str]", folder: Path, true: Any, what: str) -> None:
    """Wait for something that is to happen before the command ends."""

    def happened() -> bool:
        assert process.poll() is None, f"the command ended before {what}\n{(folder / 'output.txt').read_text()}"
        return bool(true())

    wait_until(happened, 400, what)


def by_name(folder: Path) -> dict[str, Path]:
    """The classifiers of a store."""
    found = (folder / "results/classifiers").glob("*/classifier.json")
    return {json.loads(about.read_text())["name"]: about.parent for about in found}


@pytest.fixture(scope="module")
def trained(cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training with 1, 2 and 4 workers, undisturbed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "training").write_text("x" * 100)  # nothing is killed any more
    code, said = finish(start(folder, WORKERS, cluster, "train"), folder)
    assert code == 0, said
    return folder


def test_one_two_and_four_workers_with_the_same_global_batch_agree_in_loss(trained: Path) -> None:
    """Without batch norm and augmentation the gradient of a batch is the same but for the order of its sums.

    Float32 rounding grew to 7e-7 in the weights over these twelve epochs; the tolerances leave it a hundred times that.
    """
    losses = {name: pd.read_parquet(folder / "training.parquet")["loss"] for name, folder in by_name(trained).items()}
    weights = {name: load_file(folder / "model.safetensors") for name, folder in by_name(trained).items()}
    assert set(losses) == {"1 workers", "2 workers", "4 workers"}
    one = losses.pop("1 workers")
    assert one.iloc[-1] < 0.1 * one.iloc[0]
    for name, loss in losses.items():
        assert loss.to_numpy() == pytest.approx(one.to_numpy(), rel=1e-4)
        for key, value in weights["1 workers"].items():
            assert (weights[name][key] - value).abs().max() < 1e-4


@pytest.fixture(scope="module")
def killed(trained: Path, cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """Trainings of one and of two workers that are killed in mid-epoch, beside one that diverges: (folder, exit code, output)."""
    folder, key = tmp_path_factory.mktemp("killed"), by_name(trained)["2 workers"].name
    (folder / "results-scratch" / key).mkdir(parents=True)
    (folder / "results-scratch" / key / "checkpoint.safetensors").write_bytes(
        b"a checkpoint that a bucket has cut short"
    )
    return folder, *finish(start(folder, KILLED, cluster, "train"), folder)


@pytest.mark.parametrize("name", ["1 workers", "2 workers"])
def test_a_training_killed_in_mid_epoch_goes_on_to_the_weights_of_an_undisturbed_run(
    trained: Path, killed: tuple[Path, int, str], name: str
) -> None:
    """The second one found a damaged checkpoint at first, and began anew."""
    folder, _, said = killed
    assert name in by_name(folder), said
    left, right = ((by_name(place)[name] / "model.safetensors").read_bytes() for place in (folder, trained))
    assert left == right
    epochs = [event["epoch"] for event in events(folder) if event["event"] == "epoch" and event["name"] == name]
    assert sorted(set(epochs)) == list(range(1, 13))
    assert len((folder / "training").read_text()) >= 3, "not each of them was killed"


def test_a_single_worker_goes_on_from_its_checkpoint(killed: tuple[Path, int, str]) -> None:
    of_it = [event for event in events(killed[0]) if event.get("name") == "1 workers"]
    told = [event["event"] for event in of_it if "training" in event["event"]]
    kills = told.count("training lost")
    assert kills >= 1
    assert told == ["training begun", "training lost"] * kills + ["training begun", "training done"]
    epochs = [event["epoch"] for event in of_it if event["event"] == "epoch"]
    assert epochs == list(range(1, 13)), "an epoch that was finished was trained again"


def test_a_loss_that_is_not_finite_ends_its_training_at_once_and_says_where_and_what_to_do(
    killed: tuple[Path, int, str],
) -> None:
    folder, code, said = killed
    assert code == 1
    line = next(line for line in said.splitlines() if line.startswith("failed:"))
    assert "training nan: the training loss must be finite; in epoch 2 of 12, by step 10, it is not" in line
    assert "lower training.lr (0.1)" in line
    assert "the checkpoint after epoch 1 is kept" in line
    assert "Traceback" not in said
    attempts = [event for event in events(folder) if event["event"] == "training begun" and event["name"] == "nan"]
    assert len(attempts) == 1
    assert list((folder / "results-scratch").glob("*/checkpoint*"))
    assert "nan" not in by_name(folder)


@pytest.fixture(scope="module")
def dying(cluster: Nodes, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A study whose defenses and attack die in all ways, on an untrained classifier: (folder, exit code, output)."""
    from mi_ray.config import Sweep
    from mi_ray.study.prepare import prepare

    folder = tmp_path_factory.mktemp("dying")
    plain = Sweep.model_validate({**DYING, "plugins": [], "defenses": ["none"], "attacks": TINY["attacks"]})
    (work,) = prepare(plain).planner.classifiers
    put_classifier(Store(folder / "results", create=True), work.key, work.description)
    return folder, *finish(start(folder, DYING, cluster), folder)


def cells_of(dying: tuple[Path, int, str], defense: str) -> pd.DataFrame:
    cells = mi_ray.read_cells(dying[0] / "results", study="dying")
    return cells[cells["defense"] == defense]


@pytest.mark.parametrize("defense", ["none", "gaussian_noise", "killed_once", "hangs_once", "starves_once"])
def test_a_setting_that_died_once_is_done(dying: tuple[Path, int, str], defense: str) -> None:
    assert set(cells_of(dying, defense)["state"]) == {"done"}, dying[2]


@pytest.mark.parametrize(
    ("defense", "cause"),
    [
        ("hangs", "ran longer than resources.block.time_limit (8 s) 3 times; raise it"),
        ("starves", "out of memory, also with a node for itself; use nodes with more memory"),
        ("poison", "the poison works"),
    ],
)
def test_a_setting_that_always_dies_fails_with_its_cause_in_the_cells_and_the_last_lines(
    dying: tuple[Path, int, str], defense: str, cause: str
) -> None:
    _, code, said = dying
    cells = cells_of(dying, defense)
    assert code == 1
    assert set(cells["state"]) == {"failed"}
    assert cells["cause"].str.contains(cause, regex=False).all()
    assert any(line.startswith(f"failed: at none {defense}") and cause in line for line in said.splitlines()[-9:])
    assert len([line for line in said.splitlines() if line.startswith(f"failed: {defense} {{}}")]) == 1, "said once"
    assert "Traceback" not in said
    assert "(raylet)" not in said


def test_a_block_out_of_memory_ran_again_with_a_node_for_itself(dying: tuple[Path, int, str]) -> None:
    begun = [
        event
        for event in events(dying[0])
        if event["event"] == "block begun" and event["name"] == "outputs of starves_once"
    ]
    assert begun
    assert all(event["alone"] for event in begun)


def test_a_block_whose_worker_was_killed_ran_again(dying: tuple[Path, int, str]) -> None:
    of_attack = [event for event in events(dying[0]) if event.get("name") == "attack killed_pgd"]
    assert [event["event"] for event in of_attack] == ["block begun", "block lost", "block begun", "block done"]
    assert [event["attempt"] for event in of_attack] == [1, 1, 2, 2]


def test_curves_of_settings_and_trainings_are_there(
    dying: tuple[Path, int, str], killed: tuple[Path, int, str]
) -> None:
    assert list((dying[0] / "curves/dying/settings/at_killed_once").glob("events.out.tfevents.*"))
    assert list((killed[0] / "curves/killed/training/2 workers").glob("events.out.tfevents.*"))


def test_a_callback_by_its_name_is_told_of_the_trials_by_readable_names(dying: tuple[Path, int, str]) -> None:
    names = (dying[0] / "completed").read_text().splitlines()
    assert [name.rpartition("_")[0].rpartition("_")[0] for name in names] == ["at_gaussian_noise_sigma=0.1"]


def test_ctrl_c_twice_ends_at_once(cluster: Nodes, tmp_path: Path) -> None:
    process = start(tmp_path, WORKERS, cluster, "train")
    until(process, tmp_path, lambda: cluster.of_kind("training"), "a training")
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    code, said = finish(process, tmp_path)
    assert code == 130, said
    assert "the same command goes on" in said
    wait_until(lambda: not cluster.of_kind("training"), 60, "the end of its processes")


def test_a_study_whose_command_workers_and_nodes_die_ends_with_the_rows_of_an_undisturbed_run(
    cluster: Nodes, undisturbed: Path, tmp_path: Path
) -> None:
    chooser, results = random.Random(0), tmp_path / "results"
    process = start(tmp_path, TINY, cluster, "train")
    until(process, tmp_path, lambda: any(tmp_path.glob("results-scratch/*/checkpoint*")), "a checkpoint")
    os.killpg(process.pid, signal.SIGKILL)
    assert finish(process, tmp_path)[0] == -signal.SIGKILL
    assert list(tmp_path.glob("results-scratch/*/checkpoint*"))

    process = start(tmp_path, TINY, cluster, "attack")
    until(process, tmp_path, lambda: any(results.glob("adversarial/*/*.parquet")), "an attacked block")
    process.send_signal(signal.SIGINT)
    code, said = finish(process, tmp_path)
    assert code == 130
    assert "the same command goes on" in said
    assert not list(results.glob("records/*/*.parquet"))

    process = start(tmp_path, TINY, cluster)
    until(process, tmp_path, lambda: cluster.of_kind("trial"), "a trial")
    kill(cluster.of_kind("trial"), chooser)
    cluster.lose(chooser)
    cluster.join()
    # Where every setting that was left has lost its actor, what is missing runs as blocks.
    until(process, tmp_path, lambda: cluster.of_kind("trial") or cluster.of_kind("block"), "work on what is left")
    process.kill()
    assert finish(process, tmp_path)[0] == -signal.SIGKILL

    process = start(tmp_path, TINY, cluster)
    cluster.leave()
    code, said = finish(process, tmp_path)
    assert code == 0, said
    assert_same_rows(rows(tmp_path), rows(undisturbed))
    assert check_store(Store(results))[0] == []
    assert not list(tmp_path.rglob(".*.tmp")), "temporary files are left"
    assert not (tmp_path / "results-scratch").exists()
