"""Every sweep file that comes with the program is read, and plans wherever its data is at hand."""

import copy
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import yaml
from helpers.sweeps import classifier, document

from mi_ray.attacks import ATTACKS
from mi_ray.config import Sweep
from mi_ray.defenses import DEFENSES, predict
from mi_ray.defenses.base import CHUNK
from mi_ray.figures.draw import find_figure
from mi_ray.own_code import load_plugins
from mi_ray.plan.cost import Costs
from mi_ray.plan.keyed import Facts
from mi_ray.plan.planner import Planner
from mi_ray.plan.work import Plan
from mi_ray.study.prepare import REGISTRIES, prepare
from mi_ray.sweep_files import PACKAGED, find_sweep, load_sweep, packaged_sweeps, start_folder
from mi_ray.threat_model import Norm
from mi_ray.zoo import zoo_weights

FILES = sorted((Path(__file__).parent.parent / "sweeps").glob("*.yaml"))
OF_CIFAR10 = [
    path for path in sorted((Path(__file__).parent.parent / "sweeps/cifar10").glob("*.yaml")) if path.stem != "claims"
]
EMBEDDED = ("digits",)  # data that every installation has
CIFAR = Facts(
    dataset="cifar10",
    digest="0" * 64,
    classes=10,
    side=(32, 32),
    train_count=50_000,
    test_count=10_000,
    pools={"mi_pl": "pool", "mi_ol": "pool"},
    device="cpu",
    sources={},
)


@pytest.fixture(autouse=True)
def no_plugin_stays() -> Iterator[None]:
    """The plugin that `init` copies is registered by one test, and must not be among the methods of another file's."""
    yield
    DEFENSES._classes.pop("brightness", None)
    sys.modules.pop("my_defense", None)


def names(path: Path) -> str:
    return path.stem


@cache
def planned_whole(path: Path) -> Plan:
    """The plan of a sweep file; read only."""
    return planned(load_sweep(path))


def planned(sweep: Sweep) -> Plan:
    """The plan of a sweep: of its own data where that is embedded, else of CIFAR-10's sizes."""
    planner = prepare(sweep).planner if sweep.dataset.name in EMBEDDED else Planner(sweep, REGISTRIES, CIFAR)
    return planner.plan(planner.settings() if sweep.search is None else planner.settings()[:1])


def smoke_files() -> list[Path]:
    return [path for path in FILES if "smoke" in yaml.safe_load(path.read_text())]


def test_there_are_sweep_files_and_some_have_smoke_variants() -> None:
    assert "quickstart" in map(names, FILES)
    assert smoke_files()


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_sweep_file_is_read_and_named_after_itself(path: Path) -> None:
    assert load_sweep(path).name == path.stem


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_sweep_file_plans_cells_with_and_without_an_attack(path: Path) -> None:
    plan = planned_whole(path)
    assert {bool(cell.inputs.attack) for cell in plan.cells} == {True, False}
    assert plan.classifiers
    assert plan.attacks


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_packaged_study_spends_no_more_on_its_checks_than_on_itself(path: Path) -> None:
    cost = Costs(ATTACKS, CHUNK).of_plan(planned_whole(path), load_sweep(path).points.count)
    study = cost["attack_forward"] + cost["attack_backward"] + cost["evaluation_forward"]
    assert cost["checks_forward"] + cost["checks_backward"] <= study


@pytest.mark.parametrize("path", smoke_files(), ids=names)
def test_a_smoke_variant_plans_on_embedded_data_and_is_smaller(path: Path) -> None:
    whole, smoke = load_sweep(path), load_sweep(path, smoke=True)
    assert smoke.name == f"{path.stem}-smoke"
    assert smoke.dataset.name in EMBEDDED
    assert len(planned(smoke).cells) * smoke.points.count < len(planned_whole(path).cells) * whole.points.count


@pytest.mark.parametrize("path", FILES, ids=names)
def test_every_figure_that_a_sweep_file_names_is_there(path: Path) -> None:
    assert [find_figure(name) for name in load_sweep(path).figures]


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_sweep_file_opens_with_what_it_makes_and_the_command(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"mi-ray sweep sweeps/{path.name}" in line for line in head)


def test_the_packaged_sweeps_are_those_of_the_top_folder_with_their_first_lines() -> None:
    assert list(packaged_sweeps()) == [*(path.stem for path in FILES), *(f"cifar10/{path.stem}" for path in OF_CIFAR10)]
    for path in FILES:
        assert path.read_text().startswith(f"# {packaged_sweeps()[path.stem]}\n")


def test_what_a_smoke_variant_does_not_say_of_the_checks_is_the_files() -> None:
    for written, level in (("full", "full"), ("cheap", "cheap"), ({"level": "full"}, "full"), (None, "subset")):
        checks = {} if written is None else {"checks": written}
        found = load_sweep(document(**checks, smoke={"checks": {"points": 20}}), smoke=True).checks
        assert (found.level, found.points) == (level, 20)


@pytest.mark.parametrize("smoke", [False, True])
def test_breadth_has_every_defense_of_the_program_under_every_norm(smoke: bool) -> None:
    sweep = load_sweep("breadth", smoke=smoke)
    own = {name for name in DEFENSES if DEFENSES[name].__module__.startswith("mi_ray.")}
    assert {defense.method.name for defense in sweep.defenses} == own
    attacked = {attack.norm for attack in sweep.attacks}
    assert attacked == {*get_args(Norm)}


@pytest.mark.parametrize("path", OF_CIFAR10, ids=names)
def test_a_sweep_of_cifar10_is_found_by_its_name_and_can_be_planned(path: Path) -> None:
    name = f"cifar10/{path.stem}"
    sweep = load_sweep(name)
    assert sweep.name == f"cifar10_{path.stem}"
    assert f"mi-ray sweep {name} " in path.read_text()
    assert [find_figure(figure) for figure in sweep.figures]
    weights = {str(zoo_weights(str(entry.zoo))): str(entry.zoo) for entry in sweep.classifiers}
    planner = Planner(sweep, REGISTRIES, replace(CIFAR, sources=weights))
    assert planner.plan(planner.settings()).cells


def test_a_bare_name_means_the_packaged_sweep_and_a_file_is_named_with_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "quickstart.yaml"
    mine.write_text(yaml.safe_dump({**yaml.safe_load((PACKAGED / "fig4.yaml").read_text()), "name": "mine"}))
    assert load_sweep("quickstart").name == "quickstart"
    assert load_sweep("quickstart.yaml").name == "mine"
    mine.rename(tmp_path / "quickstart")
    assert load_sweep("quickstart").name == "mine"


def test_an_unknown_name_is_refused_with_the_likely_one_or_the_file_that_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"unknown packaged sweep 'quikstart' \(did you mean 'quickstart'\?\)"):
        find_sweep("quikstart")
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(ValueError, match=r"A file is named with its ending: mine\.yaml"):
        find_sweep("mine")
    with pytest.raises(ValueError, match=r"must be readable; nowhere\.yaml: No such file"):
        load_sweep("nowhere.yaml")


def test_no_packaged_sweep_names_code() -> None:
    assert not any(load_sweep(name).names_code for name in packaged_sweeps())


def test_a_sweep_is_read_from_a_mapping_which_stays_as_it_was() -> None:
    written = yaml.safe_load((PACKAGED / "quickstart.yaml").read_text())
    before = copy.deepcopy(written)
    found = load_sweep(written, smoke=True, overrides={"points.count": 30, "classifiers.0.name": "f"}, seed=3)
    assert (found.name, found.points.count, found.seed) == ("quickstart-smoke", 30, 3)
    assert [entry.name for entry in found.classifiers] == ["f"]
    assert written == before
    with pytest.raises(ValueError, match=r"the sweep: unknown key 'sed'"):
        load_sweep({**written, "sed": 1})


def test_what_init_copies_is_ready_to_plan_and_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = start_folder(tmp_path / "deep/mine")
    assert [file.name for file in copies] == ["my_defense.py", "sweep.yaml", "sweep.schema.json"]
    copies.pop().unlink()
    monkeypatch.syspath_prepend(tmp_path / "deep/mine")
    for smoke in (True, False):
        plan = planned(load_sweep(tmp_path / "deep/mine/sweep.yaml", smoke=smoke))
        assert "brightness" in {cell.defense.name for cell in plan.cells}
    copies[0].write_text("mine")
    copies[1].unlink()
    with pytest.raises(ValueError, match=r"nothing is overwritten: .* must not hold .*my_defense\.py"):
        start_folder(tmp_path / "deep/mine")
    assert [file.read_text() for file in copies if file.exists()] == ["mine"]
    assert len(list((tmp_path / "deep/mine").glob("*.yaml"))) == 0


def test_the_defense_that_init_copies_shifts_brightness_and_does_nothing_at_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linear: Any
) -> None:
    start_folder(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins(["my_defense"])
    x = torch.rand(4, 3, 8, 8)
    f = linear(5)
    plain = torch.softmax(f(x), 1)
    cls = DEFENSES["brightness"]
    torch.testing.assert_close(predict(f, cls.make(cls.identity()), x, executions=3), plain)
    assert not torch.allclose(predict(f, cls.make({"amplitude": 0.5}), x, executions=3), plain)


def test_a_sweep_from_python_may_hold_what_numpy_counts_ranges_and_paths(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    written = document(
        seed=np.int64(3),
        attacks=[{"pgd": {"steps": range(2, 5)}, "epsilon": np.float64(0.25)}],
        defenses=[{"gaussian_noise": {"sigma": np.array([0.125, 0.25])}}],
        classifiers=classifier(weights=weights),
    )
    plain = document(
        seed=3,
        attacks=[{"pgd": {"steps": [2, 3, 4]}, "epsilon": 0.25}],
        defenses=[{"gaussian_noise": {"sigma": [0.125, 0.25]}}],
        classifiers=classifier(weights=str(weights)),
    )
    assert load_sweep(written, overrides={"points.count": np.int32(60)}) == load_sweep(
        plain, overrides={"points.count": 60}
    )


def test_an_option_changes_the_place_that_it_names_and_no_other_that_an_alias_shares(tmp_path: Path) -> None:
    text = yaml.safe_dump({key: value for key, value in document().items() if key != "classifiers"})
    text += """classifiers:
- {name: a, architecture: cnn_small, training: &same {epochs: 5}}
- {name: b, architecture: cnn_small, seed: 1, training: *same}
"""
    (tmp_path / "s.yaml").write_text(text)
    found = load_sweep(tmp_path / "s.yaml", overrides={"classifiers.0.training.epochs": 1})
    assert [entry.training.epochs for entry in found.classifiers] == [1, 5]
