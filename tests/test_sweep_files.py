"""Every sweep file that comes with the program is read, and plans wherever its data is at hand."""

from functools import cache
from pathlib import Path

import pytest
import yaml

from mi_ray.cli import _find_script
from mi_ray.config import Sweep, load_sweep
from mi_ray.plan.planner import Facts, Planner
from mi_ray.plan.work import Plan
from mi_ray.study.prepare import METHODS, prepare

FILES = sorted((Path(__file__).parent.parent / "sweeps").glob("*.yaml"))
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


def names(path: Path) -> str:
    return path.stem


@cache
def planned_whole(path: Path) -> Plan:
    """The plan of a sweep file; read only."""
    return planned(load_sweep(path))


def planned(sweep: Sweep) -> Plan:
    """The plan of a sweep: of its own data where that is embedded, else of CIFAR-10's sizes."""
    planner = prepare(sweep).planner if sweep.dataset[0] in EMBEDDED else Planner(sweep, METHODS, CIFAR)
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


@pytest.mark.parametrize("path", smoke_files(), ids=names)
def test_a_smoke_variant_plans_on_embedded_data_and_is_smaller(path: Path) -> None:
    whole, smoke = load_sweep(path), load_sweep(path, smoke=True)
    assert smoke.name == f"{path.stem}-smoke"
    assert smoke.dataset[0] in EMBEDDED
    assert len(planned(smoke).cells) * smoke.points.count < len(planned_whole(path).cells) * whole.points.count


@pytest.mark.parametrize("path", FILES, ids=names)
def test_every_figure_that_a_sweep_file_names_is_there(path: Path) -> None:
    assert [_find_script(name) for name in load_sweep(path).figures]


@pytest.mark.parametrize("path", FILES, ids=names)
def test_a_sweep_file_opens_with_what_it_makes_and_the_command(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"mi-ray sweep sweeps/{path.name}" in line for line in head)
