"""The command line as a person meets it: every mistake is one message and exit code 2, before any work; the verbs
that need no Ray do what they say."""

import errno
import importlib.metadata
import inspect
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers.studies import DEFENSE_GRID, TINY, Tiny
from helpers.sweeps import classifier, document
from PIL import Image

import mi_ray.cli
import mi_ray.study.duration
import mi_ray.study.estimate
import mi_ray.study.precision
import mi_ray.study.prepare
from mi_ray.store.blocks import MARKER, Store
from mi_ray.store.manifest import PACKAGES, provenance, seal
from mi_ray.store.read import write_cells
from mi_ray.store.schemas import CELLS
from mi_ray.sweep_files import load_sweep

QUICKSTART = Path(__file__).parent.parent / "sweeps" / "quickstart.yaml"
Run = Callable[..., tuple[int, str, str]]


def save(folder: Path, **changes: Any) -> str:
    """A sweep file in a folder, as the argument that names it."""
    (folder / "sweep.yaml").write_text(yaml.safe_dump(document(**changes)))
    return "sweep.yaml"


def saved(folder: Path) -> str:
    """The sweep file of the finished study below."""
    return save(folder, **{**TINY, "defenses": DEFENSE_GRID[:1]})


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, and one message with these words and no traceback."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.strip().splitlines()) == 1, err
    assert [word for word in words if word not in err] == [], err


def pgd(**changes: Any) -> list[dict[str, Any]]:
    return [{"pgd": {"steps": 2}, "epsilon": 0.1, **changes}]


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown key": ({"classifierz": []}, ["unknown key 'classifierz' (did you mean 'classifiers'?)", "known: name"]),
    "unknown defense": ({"defenses": ["mi_old"]}, ["unknown defense 'mi_old'", "did you mean 'mi_ol'", "mi_combined"]),
    "unknown parameter": (
        {"defenses": [{"mi_ol": {"lambda": 0.5}}]},
        ["unknown parameter of mi_ol 'lambda'", "known: lam"],
    ),
    "unknown attack": ({"attacks": [{"fgsm_x": {}, "epsilon": 0.1}]}, ["unknown attack 'fgsm_x'", "known: ", "pgd"]),
    "unknown objective": ({"classifiers": classifier(objective="mixupp")}, ["objective 'mixupp'", "'mixup'", "erm"]),
    "unknown architecture": ({"classifiers": classifier(architecture="vgg")}, ["architecture 'vgg'", "resnet18"]),
    "unknown dataset": ({"dataset": "digit"}, ["unknown dataset 'digit' (did you mean 'digits'?)", "cifar10", "npz"]),
    "unknown figure": ({"figures": ["fig99"]}, ["figures must be", "'fig99'", "fig3b"]),
    "unknown figure module": ({"figures": ["no.such_module"]}, ["figures must be", "'no.such_module'"]),
    "unknown plugin": ({"plugins": ["no_such_plugin"]}, ["plugins must be importable", "'no_such_plugin'"]),
    "sigma below 0": ({"defenses": [{"gaussian_noise": -0.1}]}, ["gaussian_noise.sigma", "in [0, ∞]", "got -0.1"]),
    "crop larger than the image": ({"defenses": [{"random_pad": {"crop": [20, 40]}}]}, ["32 pixels", "[20, 40]"]),
    "crop reversed": ({"defenses": [{"random_resize": {"crop": [30, 20]}}]}, ["lo <= hi", "[30, 20]"]),
    "crop of zero": ({"defenses": [{"random_resize": {"crop": [0, 20]}}]}, ["in [1, ∞]", "[0, 20]"]),
    "lam above 1": ({"defenses": [{"mi_ol": 1.2}]}, ["mi_ol.lam must be a number in [0, 1]", "got 1.2"]),
    "lam below 0": ({"defenses": [{"mi_pl": [0.5, -0.1]}]}, ["mi_pl.lam must be a number in [0, 1]", "got -0.1"]),
    "epsilon over zero": ({"attacks": pgd(epsilon="8/0")}, ["epsilon must be a finite number or a fraction", "'8/0'"]),
    "epsilon below 0": ({"attacks": pgd(epsilon=-0.1)}, ["epsilon must be in [0, 1]", "got -0.1"]),
    "steps of zero": ({"attacks": [{"pgd": {"steps": 0}, "epsilon": 0.1}]}, ["pgd.steps", "in [1, 100000]", "got 0"]),
    "more points than the split": ({"points": {"count": 501}}, ["must not exceed the test split", "500; got 501"]),
    "no room to report": ({"points": {"count": 5, "selection": 5}}, ["points.selection must be less", "5 of 5"]),
    "alpha of zero": ({"classifiers": classifier(objective={"mixup": 0})}, ["mixup.alpha must be a number in [1e-06"]),
    "cifar10 absent": ({"dataset": "cifar10"}, ["cifar10 must be in", "download: true", "npz"]),
    "parquet absent": ({"dataset": {"parquet": "nowhere"}}, ["must hold train*.parquet", "is not a folder"]),
    "npz absent": ({"dataset": {"npz": "nowhere.npz"}}, ["nowhere.npz must be a readable .npz archive"]),
    "an oblivious attack on a defense": (
        {"attacks": pgd(defenses=["mi_ol"])},
        ["an oblivious attack knows no defense"],
    ),
    "averaged without a defense": (
        {"attacks": [{"averaged": {}, "epsilon": 0.1}]},
        ["averaged attacks a defense: it needs `knowledge: adaptive`"],
    ),
    "attack on an unknown defense": (
        {"attacks": pgd(knowledge="adaptive", defenses=["mi_old"])},
        ["unknown defense to attack 'mi_old'", "known: "],
    ),
    "attack on an unknown classifier": ({"attacks": pgd(classifiers=["g"])}, ["unknown classifier 'g'", "known: f"]),
    "variant of nothing": ({"variants": {"v": {}}}, ["variants must change an option", "v"]),
    "pool of an unknown dataset": ({"pool": "cifar1000"}, ["unknown dataset 'cifar1000'", "'cifar100'"]),
    "cuda without a GPU asked for": ({"device": "cuda"}, ["device: cuda needs resources.block.gpus above 0", "got 0"]),
}


def test_an_option_has_the_same_default_in_every_verb() -> None:
    defaults: dict[str, set[object]] = {}
    for verb in mi_ray.cli.app.registered_commands:
        for name, option in inspect.signature(
            verb.callback or pytest.fail("a verb without a function")
        ).parameters.items():
            if option.default is not inspect.Parameter.empty:
                defaults.setdefault(name, set()).add(option.default)
    assert defaults["verbose"] == defaults["smoke"] == {False}
    assert {name: found for name, found in defaults.items() if len(found) > 1} == {}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_in_the_file_is_refused_before_any_work(run: Run, tmp_path: Path, mistake: str) -> None:
    changes, words = MISTAKES[mistake]
    assert_refused(run("sweep", save(tmp_path, **changes)), *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.yaml"]


@pytest.mark.parametrize("verb", ["plan", "train", "attack", "sweep"])
def test_every_verb_that_reads_a_file_refuses_the_same_mistake(run: Run, tmp_path: Path, verb: str) -> None:
    assert_refused(run(verb, save(tmp_path, defenses=["mi_old"])), "unknown defense 'mi_old'")
    assert_refused(run(verb, "nowhere.yaml"), "a sweep file must be readable", "nowhere.yaml: No such file")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("name: [", "must be YAML"),
        ("", "must hold a mapping"),
        ("just text", "must hold a mapping"),
        ("a: 1", "unknown"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(run: Run, tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "bad.yaml").write_text(content)
    assert_refused(run("sweep", "bad.yaml"), "bad.yaml", words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "points.count"], "--set must be key=value"),
        (["--set", "points.cuont=3"], "unknown key 'cuont'"),
        (["--set", "points.count=[3"], "the value must be YAML"),
        (["--set", "classifiers.9.seed=3"], "must be an index from 0 to 0"),
        (["--smoke"], "--smoke needs a `smoke:` mapping"),
        (["--seed", "-1"], "seed must be at least 0; got -1"),
        (["--address", "127.0.0.1:1"], "--address must be of a Ray head that answers; 127.0.0.1:1"),
        (["--address", "somewhere"], "--address must be `auto` or host:port of a Ray head; got 'somewhere'"),
        (["--address", "host:port"], "--address must be `auto` or host:port of a Ray head; got 'host:port'"),
        (["--out", "occupied"], "holds something else: thesis.tex"),
        (["--out", "occupied/thesis.tex"], "is a file"),
        (["--out", "/proc/mi-ray-results"], "a store must be readable and writable; /proc/mi-ray-results"),
        (["--out", "nonsense://bucket/x"], "a URI that pyarrow or fsspec knows; got nonsense://bucket/x"),
    ],
)
def test_a_bad_option_is_refused(run: Run, tmp_path: Path, options: list[str], words: str) -> None:
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").write_text("x")
    assert_refused(run("sweep", save(tmp_path), *options), words)
    assert not (tmp_path / "results" / "studies").exists()
    assert [path.name for path in (tmp_path / "occupied").iterdir()] == ["thesis.tex"]


def test_a_store_that_cannot_be_written_is_refused(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(tmp_path / "results", create=True)

    def denied(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "fsync", denied)
    assert_refused(run("sweep", save(tmp_path)), "a store must be readable and writable; results", "Permission denied")


def picture(side: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_broken_picture_in_an_image_folder_is_named_with_its_row(run: Run, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for split, second in (("train", picture(8)), ("test", picture(8)[:40])):
        images = [{"bytes": picture(8), "path": "a.png"}, {"bytes": second, "path": "b.png"}]
        pq.write_table(pa.table({"img": images, "label": [0, 1]}), tmp_path / "images" / f"{split}-0.parquet")
    words = ["test-0.parquet, row 1 must hold a picture that PIL can decode"]
    assert_refused(run("sweep", save(tmp_path, dataset={"parquet": "images"}, points={"count": 1})), *words)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x_train": np.zeros((4, 8, 8), np.uint8)}, "it lacks y_train, x_test, y_test"),
        (
            {"x_train": np.zeros((4, 8, 8)), "y_train": [0, 1, 0, 1], "x_test": np.zeros((2, 8, 8)), "y_test": [0, 1]},
            "must be uint8",
        ),
    ],
)
def test_an_archive_of_the_wrong_arrays_is_refused(run: Run, tmp_path: Path, arrays: Any, words: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    assert_refused(run("sweep", save(tmp_path, dataset={"npz": "data.npz"}, points={"count": 1})), words)


NETS = """
from torch import nn

def build(width=2):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, width), nn.Linear(width, 10))

def grey():
    return nn.Sequential(nn.Flatten(2), nn.Linear(3 * 32 * 32, 2), nn.Linear(2, 10))

def few():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2), nn.Linear(2, 10), nn.AdaptiveAvgPool1d(7))
"""


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        (
            "wide",
            {"arguments": {"width": 3}},
            ["net.pt must hold the weights of nets_wide:build with 10 classes", "1.w"],
        ),
        ("gone", {"weights": "other.pt"}, ["weights must be a file", "other.pt"]),
        ("text", {"weights": "sweep.yaml"}, ["sweep.yaml"]),
        ("argued", {"arguments": {"depth": 3}}, ["must accept its arguments", "depth"]),
        ("grey", {"factory": "nets_grey:grey"}, ["must answer images [B, 3, 32, 32]"]),
        ("few", {"factory": "nets_few:few"}, ["must return logits [B, 10]", "[4, 7]"]),
        ("absent", {"factory": "nets_absent:built"}, ["importable package.module:function", "nets_absent:built"]),
        ("module", {"factory": "no_such_nets:build"}, ["importable package.module:function", "no_such_nets:build"]),
    ],
)
def test_a_classifier_of_ones_own_that_does_not_fit_is_refused(
    run: Run, tmp_path: Path, name: str, changes: dict[str, Any], words: list[str]
) -> None:
    (tmp_path / f"nets_{name}.py").write_text(NETS)
    torch.save(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 2), torch.nn.Linear(2, 10)).state_dict(),
        tmp_path / "net.pt",
    )
    entry = {"name": "mine", "factory": f"nets_{name}:build", "weights": "net.pt", **changes}
    assert_refused(run("sweep", save(tmp_path, classifiers=[entry])), *words)
    assert not (tmp_path / "results").exists()


@pytest.fixture
def results(original: Tiny, tmp_path: Path) -> Store:
    """A copy of the finished study's store under the default name."""
    return Store(shutil.copytree(original.store.root, tmp_path / "results"))


def test_check_passes_a_sound_store_and_names_what_is_damaged(run: Run, results: Store) -> None:
    code, out, err = run("check", "results")
    assert (code, err) == (0, "")
    assert out.strip().endswith("files checked, 0 problems")
    path = next(iter(results.files("outputs")))
    results.write_bytes(path, b"PAR1")
    code, out, err = run("check")
    assert code == 1
    assert path in err
    assert out.strip().endswith("files checked, 1 problems")


def test_status_shows_each_study(run: Run, results: Store, original: Tiny) -> None:
    code, out, _ = run("status", "results")
    heads, row = (line.split() for line in out.strip().splitlines())
    assert (code, heads[:3], row[:4]) == (
        0,
        ["Study", "State", "Cells"],
        ["tiny", "complete", *[str(len(original.plan.cells))] * 2],
    )


def test_gc_lists_and_with_yes_removes_only_what_no_study_refers_to(run: Run, results: Store) -> None:
    kept = results.files("")
    results.write_bytes("outputs/orphan/points-00000-00020.parquet", b"12345")
    code, out, _ = run("gc", "results")
    assert (code, out.splitlines()) == (
        0,
        ["outputs/orphan  5 bytes", "1 folders, 5 bytes could go: --yes removes them"],
    )
    assert results.exists("outputs/orphan")
    code, out, _ = run("gc", "results", "--yes")
    assert "1 folders, 5 bytes removed" in out
    assert results.files("") == kept
    assert not results.exists("outputs/orphan")


def test_gc_removes_nothing_when_a_manifest_is_unreadable(run: Run, results: Store) -> None:
    results.write_bytes("studies/tiny/manifest.json", b"{")
    before = results.files("")
    assert_refused(run("gc", "results", "--yes"), "studies/tiny/manifest.json must be JSON")
    assert results.files("") == before


@pytest.mark.parametrize("verb", ["status", "check", "gc"])
def test_a_place_that_is_no_store_is_refused_and_not_made_one(run: Run, tmp_path: Path, verb: str) -> None:
    assert_refused(run(verb, "nowhere"), "nowhere is not there (a sweep makes one, where its --out says)")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    assert_refused(run(verb, "empty"), f"empty holds no {MARKER}")


def test_a_finished_study_is_shown_again_without_computing(run: Run, tmp_path: Path, results: Store) -> None:
    before = results.files("")
    code, out, err = run("sweep", saved(tmp_path))
    assert (code, err) == (0, "")
    assert "tiny: finished already, nothing to compute" in out
    assert "Frontier of f: PGD-1, untargeted" in out
    assert "checks of 9 attacked cells: 9 not run (docs/checks.md)" in out
    assert results.files("") == before


def test_failed_checks_are_counted_at_the_end_of_a_sweep(run: Run, tmp_path: Path, results: Store) -> None:
    rows = results.read_table("studies/tiny/cells.parquet", CELLS).to_pylist()
    attacked = [row for row in rows if row["attack"] != "none"]
    for row, verdict in zip(attacked, ("failed", "failed", "passed"), strict=False):
        found = json.loads(row["checks"])
        for name in ("in_box", "more_steps")[: 2 if row is attacked[0] else 1]:
            found[name] = {"state": "failed" if verdict == "failed" else "passed", "why": "so"}
        row |= {"checks": json.dumps(found), "verdict": verdict}
    write_cells(results, "tiny", rows)
    seal(results, load_sweep(tmp_path / saved(tmp_path)))
    code, out, _ = run("sweep", "sweep.yaml")
    assert code == 0
    assert "checks of 9 attacked cells: 1 passed, 2 failed, 6 not run" in out
    assert "failed: in_box in 2, more_steps in 1" in out


def stored(out: str) -> dict[str, list[str]]:
    """Work -> (pieces, pieces stored), from the table that `plan` prints."""
    rows = [line.split() for line in out.splitlines()]
    works = ("train", "attack", "evaluate", "checks")
    return {row[0]: row[1:3] for row in rows if row and row[0] in works and len(row) == 7}


def test_plan_counts_what_is_stored_and_what_is_left(
    run: Run, tmp_path: Path, results: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mi_ray.study.duration, "MEASURE_SECONDS", 0.02)
    code, out, _ = run("plan", saved(tmp_path))
    assert code == 0
    everything = {"train": ["1", "1"], "attack": ["1", "1"], "evaluate": ["6", "6"]}
    assert stored(out) == {**everything, "checks": ["0", "0"]}
    _, out, _ = run("plan", saved(tmp_path), "--set", "checks=subset")
    assert stored(out) == {**everything, "checks": ["14", "0"]}  # six controls, and F on them and on two more stops
    _, out, _ = run("plan", saved(tmp_path), "--out", "elsewhere", "--seed", "5")
    nothing = {"train": ["1", "0"], "attack": ["1", "0"], "evaluate": ["6", "0"], "checks": ["0", "0"]}
    assert stored(out) == nothing
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("options", [[], ["--smoke"], ["--set", "points.count=150", "--set", "executions=[1, 10]"]])
def test_plan_of_the_quickstart_says_what_it_costs_against_cell_by_cell(
    run: Run, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(mi_ray.study.duration, "MEASURE_SECONDS", 0.02)
    code, out, err = run("plan", str(QUICKSTART), *options)
    assert (code, err) == (0, "")
    assert out.startswith("quickstart-smoke" if "--smoke" in options else "quickstart (results)")
    assert "times fewer" in out
    assert "of passes on one core" in out


def test_plan_for_a_store_to_be_made_and_for_a_place_that_cannot_be_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, out, _ = run("plan", save(tmp_path), "--out", "empty")
    assert (code, stored(out)["attack"]) == (0, ["1", "0"])
    assert list((tmp_path / "empty").iterdir()) == []
    assert_refused(run("plan", save(tmp_path), "--out", "sweep.yaml"), "sweep.yaml is a file")
    assert_refused(run("plan", save(tmp_path), "--out", "."), f"holds no {MARKER}")


def test_studies_of_one_name_in_one_command_are_refused(run: Run, tmp_path: Path) -> None:
    shutil.copy(tmp_path / save(tmp_path), tmp_path / "second.yaml")
    assert_refused(run("sweep", "sweep.yaml", "second.yaml"), "must have different names; got tiny, tiny")


def test_plan_of_a_search_counts_its_trials(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mi_ray.study.duration, "MEASURE_SECONDS", 0.02)
    file = save(tmp_path, search={"optuna": {"trials": 7}}, points={"count": 40, "selection": 20})
    code, out, _ = run("plan", file)
    assert code == 0
    assert "search: 7 settings on each classifier" in out
    (row,) = [line.split() for line in out.splitlines() if line.split()[:1] == ["search"]]
    assert row[:3] == ["search", "7", "0"]
    assert row[3] == row[5] != "0"


@pytest.mark.parametrize("arithmetic", [True, False])
def test_plan_tells_of_bf16_on_a_processor_that_emulates_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arithmetic: bool
) -> None:
    monkeypatch.setattr(mi_ray.study.duration, "MEASURE_SECONDS", 0.02)
    monkeypatch.setattr(mi_ray.study.estimate, "has_bf16", lambda device: arithmetic)
    told = mi_ray.study.estimate.EMULATED.split(".")[0]
    outs = {
        asked: " ".join(run("plan", save(tmp_path), "--set", asked)[1].split())
        for asked in ("precision=fp32", "precision=auto", "precision=bf16", "classifiers.0.training.precision=bf16")
    }
    emulated = {asked for asked, out in outs.items() if told in out}
    assert emulated == (set() if arithmetic else {asked for asked in outs if "bf16" in asked})
    assert "auto means fp32 here: its check would take" in outs["precision=auto"]
    monkeypatch.setattr(mi_ray.study.precision, "LARGEST_SHARE", float("inf"))
    checked = " ".join(run("plan", save(tmp_path), "--set", "precision=auto")[1].split())
    assert f"planned as {'bf16' if arithmetic else 'fp32'}" in checked


def test_networks_that_differ_in_weights_alone_are_timed_once(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []
    monkeypatch.setattr(
        mi_ray.study.duration,
        "rates",
        lambda study, work: timed.append(work.entry.name) or {"forward": 10.0, "gradient": 10.0, "train": 10.0},
    )
    one = {"architecture": {"cnn_small": {"width": 4}}, "training": {"epochs": 1}}
    other = {**one, "architecture": {"cnn_small": {"width": 5}}}
    file = save(tmp_path, classifiers=[{"name": "a", **one}, {"name": "b", "seed": 1, **one}, {"name": "c", **other}])
    assert run("plan", file)[0] == 0
    assert timed == ["a", "c"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is about a machine without a GPU")
def test_a_study_for_gpus_is_timed_in_fp32_on_a_processor_that_emulates_bf16(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[str] = []
    prepared = mi_ray.study.duration.prepared

    def seen(plain: Any, device: Any, precision: Any) -> Any:
        timed.append(precision)
        return prepared(plain, device, precision)

    monkeypatch.setattr(mi_ray.study.duration, "MEASURE_SECONDS", 0.02)
    monkeypatch.setattr(mi_ray.study.duration, "prepared", seen)
    file = save(tmp_path, precision="bf16", resources={"block": {"gpus": 1}})
    for arithmetic in (True, False):
        monkeypatch.setattr(mi_ray.study.duration, "has_bf16", lambda device, has=arithmetic: has)
        assert run("plan", file)[0] == 0
    assert timed == ["bf16", "fp32"]


def test_list_names_every_registered_method_with_its_parameters(run: Run) -> None:
    from mi_ray.data import SOURCES
    from mi_ray.figures.draw import known_figures
    from mi_ray.study.prepare import REGISTRIES

    code, out, _ = run("list")
    assert code == 0
    for registry in (SOURCES, REGISTRIES.architectures, REGISTRIES.objectives, REGISTRIES.attacks, REGISTRIES.defenses):
        for name in registry:
            assert f"\n  {name}  " in out
            assert all(f"\n      {key}: {p.help}" in out for key, p in registry[name].parameters().items())
    assert "sigma: " in out
    assert "; required" in out
    assert "; default [10]" in out
    assert "mi_ray.defenses.noise" in out
    assert "\n  mixup_1  resnet_small trained with mixup on CIFAR-10's 50,000 training images" in out
    assert all(f"\n  {name}  " in out for name in known_figures())


def test_list_shows_a_plugins_methods_and_refuses_one_that_is_not_there(run: Run, tmp_path: Path) -> None:
    from mi_ray.data import SOURCES

    (tmp_path / "plugin_of_the_list.py").write_text(
        "from mi_ray.data import SOURCES, Source\n\n"
        "@SOURCES.register\nclass Mine(Source):\n    '''A source of one's own.'''\n    name = 'mine_xyz'\n"
        "    def load(self):\n        return None\n"
    )
    try:
        assert "mine_xyz  A source of one's own." in run("list", "--plugin", "plugin_of_the_list")[1]
    finally:
        SOURCES._classes.pop("mine_xyz", None)
    assert_refused(run("list", "--plugin", "no_such_plugin"), "plugins must be importable modules; 'no_such_plugin'")


def test_figures_of_a_study_that_is_not_there_are_refused(run: Run, tmp_path: Path, results: Store) -> None:
    assert_refused(run("figures", save(tmp_path, name="other")), "study 'other' must be in results; known: tiny")
    assert_refused(run("figures", save(tmp_path, name="tiny", figures=["fig99"])), "figures must be", "'fig99'")


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mi_ray.study.prepare, "prepare", interrupted)
    code, _, err = run("sweep", save(tmp_path))
    assert code == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err


def test_a_full_disk_is_one_message_and_exit_code_1(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mi_ray.study.prepare, "prepare", full)
    code, _, err = run("sweep", save(tmp_path))
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert "No space left on device" in err


def test_verbose_shows_where_an_error_came_from(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mi-ray", "sweep", save(tmp_path, seed=-1), "-v"])
    with pytest.raises(ValueError, match="seed"):
        mi_ray.cli.main()


@pytest.fixture(scope="module")
def script() -> str:
    """The installed console script."""
    found = shutil.which("mi-ray", path=str(Path(sys.executable).parent)) or shutil.which("mi-ray")
    assert found, "the console script mi-ray is not installed beside this Python"
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, ["sweep", "train", "attack", "figures", "plan", "status", "check", "gc", "list"]),
        (["sweep", "nowhere.yaml"], 2, ["error: a sweep file must be readable; nowhere.yaml"]),
        (["sweep", "sweep.yaml", "--no-such-option"], 2, ["--no-such-option"]),
        (["plan", "sweep.yaml"], 2, ["error: sweep.yaml: unknown key 'sed' (did you mean 'seed'?)"]),
    ],
)
def test_the_installed_script_behaves_the_same(
    script: str, tmp_path: Path, arguments: list[str], code: int, words: list[str]
) -> None:
    save(tmp_path, sed=1)
    done = subprocess.run([script, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == code
    assert [word for word in words if word not in said] == [], said
    assert "Traceback" not in said


def test_the_version_is_told_with_those_that_a_manifest_names(run: Run) -> None:
    code, said, _ = run("--version")
    assert code == 0
    assert said.splitlines()[0] == f"mi-ray {mi_ray.__version__}"
    assert [line.split()[0] for line in said.splitlines()] == list(PACKAGES)
    assert f"torch {importlib.metadata.version('torch')}" in said


def test_sources_that_are_not_installed_have_no_version_and_a_study_of_theirs_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert not hasattr(mi_ray, "__version__")
    assert run("--version")[:2] == (0, "".join(f"{name} not installed\n" for name in PACKAGES))
    assert set(provenance()["versions"].values()) == {"not installed"}  # type: ignore[attr-defined]


def test_a_plugin_is_found_beside_its_sweep_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere", plugins=["plugin_beside"])
    (tmp_path / "elsewhere/plugin_beside.py").write_text("")
    code, out, _ = run("plan", "elsewhere/sweep.yaml")
    assert (code, " distinct: " in out) == (0, True)


def test_sweeps_lists_the_packaged_ones_and_plan_takes_their_names(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mi_ray.study.duration, "MEASURE_SECONDS", 0.02)
    code, out, _ = run("sweeps")
    assert (code, "quickstart" in out, "The main job, small and real" in out) == (0, True, True)
    code, out, _ = run("plan", "quickstart", "--smoke")
    assert (code, out.startswith("quickstart-smoke (results)")) == (0, True)
    assert_refused(run("plan", "quikstart"), "unknown packaged sweep 'quikstart' (did you mean 'quickstart'?)")


def test_init_says_what_it_copied_and_how_to_go_on_and_overwrites_nothing(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("init", "mine")
    assert (code, out.splitlines()) == (
        0,
        [
            "mine/my_defense.py",
            "mine/sweep.yaml",
            "mine/sweep.schema.json",
            "now: mi-ray sweep mine/sweep.yaml --smoke",
        ],
    )
    (tmp_path / "mine/my_defense.py").unlink()
    assert_refused(run("init", "mine"), "nothing is overwritten", "mine/sweep.yaml")
    assert not (tmp_path / "mine/my_defense.py").exists()


@pytest.mark.parametrize(
    "verb",
    ["status", pytest.param("sweep", marks=pytest.mark.long)],  # Both wait by one function.
)
def test_an_object_store_that_never_answers_is_told_of_and_then_given_up(verb: str, tmp_path: Path) -> None:
    """In a process of its own, which ends although the request that nobody answers does not."""
    program = (
        "import mi_ray.store.files as files; files.TOLD_AFTER, files.GIVEN_UP_AFTER = 0.2, 0.6\n"
        "from mi_ray.cli import main; main()"
    )
    keys = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anything"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"s3://bucket/store?endpoint_override=http://127.0.0.1:{silent.getsockname()[1]}&region=us-east-1"
        arguments = ["sweep", save(tmp_path), "--out", uri] if verb == "sweep" else [verb, uri]
        command, environment = [sys.executable, "-c", program, *arguments], {**os.environ, **keys}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    *_, waiting, given_up = done.stderr.strip().splitlines()
    assert waiting == f"waiting for {uri}, which has not answered for 0.2 s; given up after 0.6 s"
    assert given_up.startswith(f"error: a store must answer; {uri} has not for 0.6 s")


def test_a_terminal_that_lacks_a_character_shows_another(script: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([script, "list"], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mi_ol" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_stopped_exits_as_the_signal_has_it(
    number: signal.Signals, code: int, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mi_ray.run.run_sweeps", lambda *files, **options: os.kill(os.getpid(), number))
    found, _, errors = run("sweep", "quickstart")
    assert (found, "what is finished is stored" in errors) == (code, True)
