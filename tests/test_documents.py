"""Every block of Python in README and docs runs as it stands, and README's three lines give the accuracies of the cells."""

import ast
import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.studies import Tiny

import mi_ray
import mi_ray.parameters
from mi_ray.attacks import Attack, Batch, ImagesAttack
from mi_ray.data import Dataset, to_unit
from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.randomness import Draws
from mi_ray.run import why_sweep
from mi_ray.sweep_files import load_sweep

ROOT = Path(__file__).parent.parent
BLOCKS = [
    (file.name, number, block)
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL))
]
README = {number: block for name, number, block in BLOCKS if name == "README.md"}
# What other libraries' attacks need; tests/attacks/test_other_libraries.py runs the same calls against our own.
ELSEWHERE = {"other-attacks.md"}
WHOLE = {*(("README.md", number) for number in range(4)), ("methods.md", 0)}


@pytest.fixture
def store(original: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished study in the folder that the documents name, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(original.store.root, tmp_path / "results"))


def run_block(block: str, names: dict[str, Any]) -> Any:
    """Run a block; returns the value of its last line where that is an expression."""
    tree = ast.parse(block)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None  # type: ignore[attr-defined]
    exec(compile(tree, "block", "exec"), names)
    return None if last is None else eval(compile(last, "block", "eval"), names)


def test_every_block_is_python_and_is_run_by_a_test() -> None:
    for name, number, block in BLOCKS:
        ast.parse(block)
        assert name in ELSEWHERE or (name, number) in WHOLE, (name, number)


def test_what_a_plugin_may_say_is_there_to_be_said() -> None:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    batch = {*dir(Batch), *Batch.__dataclass_fields__}
    for heading, known in (
        ("Parameters", {*dir(mi_ray.parameters)}),
        ("A defense", {*dir(RandomTransform), *(f"draws.{name}" for name in dir(Draws))}),
        ("An attack", {*dir(ImagesAttack), *batch, "criterion.loss"}),
    ):
        section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
        names = [name for row in rows for name in re.findall(r"`([\w.]+)[`(]", row)]
        assert len(names) >= 8
        assert [name for name in names if name not in known] == []


def test_the_methods_that_a_plugin_may_write_are_shown_with_their_arguments() -> None:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8")
    for owner, name in ((RandomTransform, "check_images"), (Attack, "check")):
        arguments = ", ".join([*inspect.signature(getattr(owner, name)).parameters][1:])
        assert f"`{name}({arguments})`" in text


def test_the_sweep_in_readme_is_one_that_is_accepted_whole_and_small(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "s.yaml").write_text(block)
    assert load_sweep(tmp_path / "s.yaml").name == "my_study"
    small = load_sweep(tmp_path / "s.yaml", smoke=True)
    assert (small.dataset.name, small.points.count) == ("digits", 50)


def test_the_sweep_in_readme_asks_for_no_more_than_its_dataset_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Dataset
) -> None:
    from mi_ray.data.arrays import Cifar10
    from mi_ray.study.prepare import prepare

    # As many test images as CIFAR-10 has; those of digits are themselves.
    images, labels = (np.resize(each, (10_000, *each.shape[1:])) for each in (digits.test_images, digits.test_labels))
    monkeypatch.setattr(Cifar10, "load", lambda self: replace(digits, test_images=images, test_labels=labels))
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "s.yaml").write_text(block)
    one = {"name": "mixup", "architecture": {"cnn_small": {"width": 4}}, "training": {"epochs": 1}}
    study = prepare(load_sweep(tmp_path / "s.yaml", overrides={"classifiers": [one]}))
    assert study.planner.stored_points == study.sweep.points.count > len(digits.test_images)


def test_what_an_attack_of_ones_own_can_say_is_all_in_the_document() -> None:
    text = (ROOT / "docs/plugins.md").read_text(encoding="utf-8").split("\n## An attack\n")[1].split("\n## ")[0]
    said = {
        name
        for kind in (Attack, ImagesAttack)
        for name, value in vars(kind).items()
        if not name.startswith("_") and (isinstance(value, property) or not callable(value))
    }
    # These are for attacks with several stops, which are no `ImagesAttack`; `revision` follows from `version`.
    beside = {"stop_parameter", "goes_on", "revision"}
    assert said - beside == {name for name in said - beside if f"`{name}`" in text}


def test_readmes_lines_give_the_accuracy_of_each_cell(store: Path) -> None:
    found = run_block(README[0].replace("quickstart", "tiny"), {})
    cells = mi_ray.read_cells("results", study="tiny")
    wanted = cells.set_index(found.index.names)["accuracy"]
    assert len(found) == len(cells) > 4  # nothing was averaged that is two cells
    np.testing.assert_allclose(found.sort_index().to_numpy(), wanted.sort_index().to_numpy(), atol=1e-9)


@pytest.mark.ray
@pytest.mark.long
def test_the_block_that_plans_and_runs_a_study(store: Path) -> None:
    names: dict[str, Any] = {"mi_ray": mi_ray}
    run_block(README[1], names)
    assert names["result"].complete


def test_the_block_of_parts(store: Path, digits: Dataset) -> None:
    (key,) = (path.name for path in (store / "classifiers").iterdir())
    x, y = to_unit(digits.test_images[:4]), torch.from_numpy(digits.test_labels[:4])
    names: dict[str, Any] = {"mi_ray": mi_ray, "x": x, "y": y}
    names |= {"train_images": digits.train_images, "train_labels": digits.train_labels}
    run_block(README[2].replace("<key>", key), names)
    assert names["p"].shape == (4, 10)
    assert (names["x_adv"] - x).abs().max() <= 8 / 255 + 1e-6


def test_the_block_of_a_defense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DEFENSES, "_classes", dict(DEFENSES._classes))
    run_block(README[3], {"__name__": "my_defense"})
    assert DEFENSES.make("brightness", {"amplitude": 0.2}).values() == {"amplitude": 0.2}


def test_the_block_that_trains_a_denoiser_and_the_defense_that_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    from helpers.sweeps import sweep

    from mi_ray.data import Digits
    from mi_ray.study.prepare import prepare

    few = replace(digits, train_images=digits.train_images[:64], train_labels=digits.train_labels[:64])
    monkeypatch.setattr(Digits, "load", lambda self: few)
    monkeypatch.chdir(tmp_path)
    (block,) = (block for name, _, block in BLOCKS if name == "methods.md")
    names: dict[str, Any] = {}
    run_block(block, names)
    assert "noisy=" in capsys.readouterr().out
    assert names["errors"].denoised < names["errors"].noisy
    (told,) = re.findall(
        r"```yaml\n(defenses:.*?)```", (ROOT / "docs/methods.md").read_text(encoding="utf-8"), re.DOTALL
    )
    settings = prepare(sweep(**yaml.safe_load(told))).planner.settings()
    assert [(each.noise, each.steps) for each in settings[1:]] == [(0.0, 1), (0.1, 1), (0.1, 1), (0.1, 2)]


# compare, export, why

Run = Callable[..., tuple[int, str, str]]


def test_export_writes_each_form(store: Path, run: Run, tmp_path: Path) -> None:
    import json

    import pandas as pd

    source, cells = str(store), mi_ray.read_cells(store, "tiny", flat=True)
    assert run("export", source, str(tmp_path / "cells.csv"), "--study", "tiny")[0] == 0
    read = pd.read_csv(tmp_path / "cells.csv")
    assert list(read.columns) == list(cells.columns)
    np.testing.assert_allclose(read["accuracy"], cells["accuracy"])
    pytest.importorskip("openpyxl")
    assert run("export", source, str(tmp_path / "cells.xlsx"), "--study", "tiny")[0] == 0
    assert len(pd.read_excel(tmp_path / "cells.xlsx")) == len(cells)
    assert run("export", source, str(tmp_path / "robustbench.json"), "--study", "tiny")[0] == 0
    entries = json.loads((tmp_path / "robustbench.json").read_text())
    worst = cells[cells["attack"] == "worst_case"]
    assert sorted(entry["reported"] for entry in entries) == sorted(round(100 * each, 2) for each in worst["accuracy"])
    assert all(entry["autoattack_acc"] is None for entry in entries)
    code, _, err = run("export", source, str(tmp_path / "cells.txt"), "--study", "tiny")
    assert (code, "an export must be a file .csv, .xlsx or .json" in err) == (2, True)


def test_compare_pairs_the_cells_of_two_studies_by_point(original: Tiny, store: Path, run: Run, tmp_path: Path) -> None:
    import pandas as pd
    from helpers.studies import ONE_GRID, finish, tiny

    from mi_ray.statistics import paired_test
    from mi_ray.store.blocks import Store
    from mi_ray.store.manifest import read_manifest

    other = tiny(
        store, **{**ONE_GRID, "name": "other", "seed": 5, "points": {"count": 40, "selection": 0, "order": "first"}}
    )
    finish(other)
    assert run("compare", str(store), "tiny", "other", "--csv", str(tmp_path / "c.csv"))[0] == 0
    found = pd.read_csv(tmp_path / "c.csv")
    cells = [mi_ray.read_cells(store, study) for study in ("tiny", "other")]
    assert len(found) == len(cells[0])
    rows = [mi_ray.read_records(store, study) for study in ("tiny", "other")]
    at = [each[(each["attack"] == "none") & (each["defense"] == "none") & ~each["selection"]] for each in rows]
    pairs = at[0].merge(at[1], on="point")
    wanted = paired_test(pairs["correct_draws_y"].to_numpy(), pairs["correct_draws_x"].to_numpy(), 1, 1)
    bare = found[(found["attack"] == "none") & (found["defense"] == "none")].iloc[0]
    assert found["apart"].isna().all()
    assert (bare["points"], bare["difference"]) == (len(pairs), pytest.approx(wanted.difference))
    manifest = read_manifest(Store(store), "other")
    Store(store).write_json(
        "studies/other/manifest.json", {**manifest, "dataset": {"name": "digits", "digest": "f" * 64}}
    )
    code, _, err = run("compare", str(store), "tiny", "other")
    assert (code, "must be of the same images" in err, "other: digits, SHA-256 ffffffffffff" in err) == (2, True, True)
    code, _, err = run("compare", str(store), "tiny", "absent")
    assert (code, "study 'absent' must be in" in err) == (2, True)


def test_why_names_what_changed_against_the_nearest_that_is_stored(original: Tiny, store: Path) -> None:
    from helpers.studies import ONE_GRID, TINY
    from helpers.sweeps import document

    said = document(**TINY, **{key: value for key, value in ONE_GRID.items() if key not in TINY}) | ONE_GRID

    def told(**changes: Any) -> list[str]:
        return why_sweep({**said, **changes}, str(store))

    stored = ["nothing has another key: what is stored serves, and at most more points, draws or executions are added"]
    assert told() == stored
    assert told(draws=5, executions=[1, 3, 7]) == stored  # more draws add to the stored ones
    assert told(draws=1, executions=[1]) == stored
    # A certificate is read off outputs, and no result of its own: only the votes are new.
    votes = told(certify={"sigma": 0.2, "n0": 10, "n": 20})
    assert votes
    assert not any("certificate" in line for line in votes)
    (line,) = told(defenses=[{"gaussian_noise": {"sigma": 0.3}}])
    assert re.search(r"outputs of gaussian_noise on f: .*values\.sigma 0\.2 -> 0\.3", line)
    lines = told(seed=1, attacks=[{"pgd": {"steps": [1, 3], "step_size": 0.05, "restarts": 2}, "epsilon": 0.2}])
    assert any("classifier f: seed 0 -> 1" in line for line in lines)
    assert any("attack pgd on f: " in line and "epsilon 0.1 -> 0.2" in line for line in lines)


def test_why_takes_the_precision_that_auto_has_decided(
    original: Tiny, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from helpers.studies import ONE_GRID, TINY
    from helpers.sweeps import document

    def told(precision: str) -> list[str]:
        return why_sweep(document(**{**TINY, **ONE_GRID, "precision": precision}), str(store))

    decided = {work.key: "fp32" for work in original.study.planner.classifiers}  # not what a plan expects before
    monkeypatch.setattr("mi_ray.study.precision.decisions", lambda store, study: decided)
    assert told("auto") == told("fp32") != told("bf16")


def test_fewer_draws_and_executions_than_are_stored_compute_nothing(original: Tiny, store: Path) -> None:
    from helpers.studies import ONE_GRID, compute, tiny

    for less in ({"draws": 1}, {"executions": [1]}, {"executions": 3, "draws": 1}):
        assert compute(tiny(store, **{**ONE_GRID, **less})) == 0
    assert compute(tiny(store, **{**ONE_GRID, "draws": 3})) > 0


def test_a_comment_in_a_persons_module_is_no_change(tmp_path: Path) -> None:
    from mi_ray.study.sources import syntax_of

    def said(text: str) -> str:
        (tmp_path / "net.py").write_text(text)
        return syntax_of(tmp_path / "net.py")

    plain = said('"""Mine."""\ndef net(x):\n    return x + 1\n')
    assert said('"""Yours."""\n# why\ndef net(x):\n\n    "says"\n    return x+1  # so\n') == plain
    for other in ("return x + 2", "return x - 1", "return y + 1", "return x + '1'", "return x + 1.0"):
        assert said(f"def net(x):\n    {other}\n") != plain


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_notebook_goes_from_a_sweep_to_a_frontier(tmp_path: Path) -> None:
    document = json.loads((ROOT / "docs/frontier.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in document["cells"] if cell["cell_type"] == "code"]
    # What stands in the file came from running it: a cell without an output is the first, which only defines.
    assert all(cell["outputs"] for cell in cells[1:])
    told = "print(result.complete, len(axis.lines) == 2 * table['defense'].nunique())"
    (tmp_path / "notebook.py").write_text("\n".join(["".join(cell["source"]) for cell in cells] + [told]))
    done = subprocess.run(
        [sys.executable, "notebook.py"],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == "True True", done.stderr


def test_the_table_of_dependencies_is_pyprojects() -> None:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings the latter
    project = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: asked for name, asked in project["optional-dependencies"].items() if name != "test"}
    asked = [*project["dependencies"], *(each for every in extras.values() for each in every)]
    table = (ROOT / "docs/security.md").read_text(encoding="utf-8").split("\n## Dependencies\n")[1].split("\n## ")[0]
    said = re.findall(r"^\| ((?!package|---).*?)(?: \(extra `\w+`\))? \|", table, re.MULTILINE)
    # `ray[tune,train]` has a comma of its own.
    told = [name for each in said for name in re.findall(r"[\w-]+(?:\[[\w,]+\])?", each)]
    assert sorted(told) == sorted({re.split("[<>=]", each)[0] for each in asked})
