"""Shape checks while tests run, one torch thread, and small shared fixtures."""

import atexit
import gc
import importlib
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jaxtyping
import pytest
import torch
from helpers import shapes
from jaxtyping import install_import_hook
from torch import Tensor, nn

if TYPE_CHECKING:
    from helpers.buckets import S3
    from helpers.studies import Tiny


def _checked_modules() -> list[str]:
    """The modules that have shapes in their signatures: checking every call of the others made planning five times slower."""
    package = Path(__file__).parent.parent / "mi_ray"
    having = [file.relative_to(package) for file in package.rglob("*.py") if "jaxtyping" in file.read_text()]
    return sorted(f"mi_ray.{'.'.join(file.with_suffix('').parts)}".removesuffix(".__init__") for file in having)


# Before the first import of the package: the tests import it only after this file. What checks is in a module of its own,
# since a folder's own conftest.py takes the name `conftest` over from this one.
install_import_hook(_checked_modules(), f"{shapes.__name__}.checked")
torch.set_num_threads(1)


def _temporary_files_in_memory(room: int = 4 * 2**30) -> None:
    """Have pytest's temporary folders in memory where there is room: a fifth of the time of studies went to a disk that syncs.

    The process that begins the tests removes them at its end, and where a test has failed, the next one does; its workers
    find the folder set.
    """
    memory = Path("/dev/shm")
    if "PYTEST_DEBUG_TEMPROOT" in os.environ or not os.access(memory, os.W_OK):
        return
    for left in memory.glob("mi-ray-tests-*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            _remove(left)
    if shutil.disk_usage(memory).free > room:
        folder = memory / f"mi-ray-tests-{os.getpid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(folder)
        atexit.register(_remove, folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def pytest_sessionfinish(exitstatus: int) -> None:
    """Keep the temporary folders of tests of which one has failed."""
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        atexit.unregister(_remove)


_temporary_files_in_memory()


# Files whose tests compute studies or attacks at length, or start other programs again and again. The longest come first, and
# are run first: a long file that one process begins last would keep the others waiting.
HEAVY = (
    "cluster/test_studies.py",
    "store/test_object_stores.py",
    "study/test_verdicts.py",
    "study/test_workbench.py",
    "test_golden.py",
    "attacks/test_adaptive_attacks.py",
    "attacks/test_other_libraries.py",
    "test_device.py",
    "figures/test_extreme_studies.py",
    "store/test_compact.py",
    "store/test_damage.py",
    "figures/test_paper_figures.py",
    "figures/test_statistics_tables.py",
    "test_command_line.py",
    "test_coverage.py",
    "test_installation.py",
    "page/test_browser.py",
    "launch/test_ray_up.py",
    "plan/test_imports.py",
    "store/test_check.py",
    "study/test_reference.py",
    "test_run.py",
    "cluster/test_faults.py",
    "test_cifar10.py",
    "study/test_certificates.py",
    "store/test_leases.py",
    "attacks/test_binarization.py",
    "study/test_sandwich.py",
    "defenses/test_purification.py",
    "study/test_abstention.py",
    "test_named.py",
    "data/test_pictures.py",
    "page/test_facts.py",
    "store/test_gone.py",
    "cluster/test_search.py",
    "test_plugins.py",
    "test_security.py",
    "plan/test_cost.py",
    "attacks/test_balls.py",
    "test_progress.py",
    "study/test_two_studies.py",
    "figures/test_claims.py",
    "study/test_verdict_benchmark.py",
)


def _place(path: Path) -> str:
    return str(path.relative_to(Path(__file__).parent))


def _is_heavy(path: Path) -> bool:
    return _place(path) in HEAVY if path.suffix == ".py" else False


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Where `-m` leaves heavy tests out, leave whole files of them unread: importing what they import takes seconds."""
    return True if "not heavy" in config.option.markexpr and _is_heavy(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark heavy tests, also those on the trained network or on a computed study, and those of Ray's own study; sort them."""
    for item in items:
        used = getattr(item, "fixturenames", ())
        if {"classifier", "original"} & {*used} or _is_heavy(item.path):
            item.add_marker("heavy")
        if "undisturbed" in used:
            item.add_marker("ray")
    first = {name: position for position, name in enumerate(HEAVY)}
    items.sort(key=lambda item: first.get(_place(item.path), len(first)))


def pytest_collection_finish() -> None:
    """Save figures small, and collect no garbage in what is imported by now: that took a twentieth of the time."""
    panels = sys.modules.get("mi_ray.figures.panels")
    if panels is not None:
        # Quicker, and nobody looks at a test's figures: cutting TrueType for PDFs took a third of the time of writing them.
        panels.STYLE |= {"savefig.dpi": 30, "pdf.fonttype": 3}
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def pytest_runtest_setup() -> None:
    """Every test has the first calls of each function checked."""
    shapes.begin()


@pytest.fixture(autouse=True)
def own_folders() -> Iterator[None]:
    """The folders of a person's own code are afterwards what they were: a module of the same name in another test is no twin."""
    from mi_ray import own_code

    before = list(own_code._OWN_FOLDERS)
    yield
    own_code._OWN_FOLDERS[:] = before


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No shape checks: what a user of the installed package meets when an argument is of another form."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def digits() -> Any:
    """scikit-learn's digits as a Dataset."""
    from mi_ray.data import Digits

    return Digits().load()


@pytest.fixture(scope="session")
def describe() -> Callable[..., dict[str, Any]]:
    """A classifier's description, as a sweep would write it."""

    def make(architecture: str = "cnn_small", classes: int = 10, **arguments: Any) -> dict[str, Any]:
        return {
            "architecture": architecture,
            "arguments": arguments,
            "classes": classes,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.25, 0.3, 0.2],
        }

    return make


@pytest.fixture(scope="session")
def classifier() -> Any:
    """A tiny trained CnnSmall, right on nearly all test images, never changed by a test."""
    from helpers.trained import trained

    return trained()


@pytest.fixture(scope="session")
def pool(digits: Any) -> Any:
    """The train split of digits as a sample pool."""
    from mi_ray.sample_pool import SamplePool

    return SamplePool(digits.train_images, digits.train_labels)


@pytest.fixture(scope="session")
def batch(digits: Any) -> tuple[Tensor, Tensor]:
    """The first eight test images, [8, 3, 32, 32] in [0, 1], and their labels."""
    from mi_ray.data import to_unit

    return to_unit(digits.test_images[:8]), torch.from_numpy(digits.test_labels[:8])


class Linear(nn.Module):
    """logits = W x + b on flattened images: what an attack must find on it is known in closed form."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@pytest.fixture(scope="session")
def linear() -> Callable[..., nn.Module]:
    """Linear classifiers with seeded random weights, for images of a given shape."""

    def make(classes: int, shape: tuple[int, int, int] = (3, 8, 8), scale: float = 0.2) -> nn.Module:
        generator = torch.Generator().manual_seed(classes)
        size = shape[0] * shape[1] * shape[2]
        weight = torch.randn(classes, size, generator=generator) * scale
        return Linear(weight, torch.randn(classes, generator=generator) * scale)

    return make


@pytest.fixture(scope="module")
def adv_lib() -> Any:
    """adv-lib's attacks; what draws their plots is not needed for them."""
    pytest.importorskip("adv_lib")
    with pytest.MonkeyPatch.context() as patch:
        plots: Any = ModuleType("visdom")
        plots.Visdom = object
        patch.setitem(sys.modules, "visdom", plots)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield importlib.import_module("adv_lib.attacks")


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of an S3 server for all tests of a file."""
    from helpers.buckets import serve

    yield from serve()


@pytest.fixture
def s3(port: int, monkeypatch: pytest.MonkeyPatch) -> "Iterator[S3]":
    """An S3 server without faults."""
    from helpers.buckets import s3_of

    yield from s3_of(port, monkeypatch)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study that Ray computed with nothing in its way; tests that change it work on a copy.

    Modules named as packages that are imported late lay in the folder meanwhile.
    """
    from helpers.commands import TINY, command, console, hostile_modules

    folder = tmp_path_factory.mktemp("undisturbed")
    with hostile_modules(folder):
        done = console(folder, *command(folder, TINY)[3:])
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> "Tiny":
    """A finished study of one defense, made once without Ray; tests that change its store work on a copy."""
    from helpers.studies import ONE_GRID, finish, tiny

    one = tiny(tmp_path_factory.mktemp("original"), **ONE_GRID)
    finish(one)
    return one


@pytest.fixture(scope="session")
def built() -> Any:
    """The console script's commands, which Typer would build anew at each call: half the time of a test of one line."""
    from typer.main import get_command

    from mi_ray.cli import app

    return get_command(app)


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], built: Any
) -> Callable[..., tuple[int, str, str]]:
    """Runs the console script's function in an empty folder; returns (exit code, standard output, standard error)."""
    from mi_ray.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("typer.main.get_command", lambda app: built)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mi-ray", *arguments])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as stopped:
            main()
        found = capsys.readouterr()
        return int(stopped.value.code or 0), found.out, found.err

    return call
