"""mi_ray as a wheel in an environment of its own, used from a folder that holds nothing: no checkout is in reach."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.commands import hostile_modules

ROOT = Path(__file__).parent.parent
PYTHON_RUN = """
import mi_ray
quickstart, mine = mi_ray.run_sweeps(["quickstart", "mine/sweep.yaml"], smoke=True, progress=False)
assert (quickstart.name, quickstart.did, mine.did) == ("quickstart-smoke", "computed", "computed")
for result in (quickstart, mine):
    assert result.complete, dict(result.failures)
    assert set(result.cells["state"]) == {"done"}
    assert any(path.endswith("fig3b.png") for path in result.figures)
assert "brightness" in set(mine.cells["defense"])
assert len(quickstart.records()) == 50 * len(quickstart.cells)
"""


@dataclass(frozen=True)
class Installed:
    """An environment that holds the wheel, beside the packages of the environment that runs the tests."""

    wheel: Path
    folder: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment in an empty folder, as a person does who never saw the checkout."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
        program = [str(self.folder / "bin" / command[0]), *command[1:]]
        here = self.folder / "elsewhere"
        here.mkdir(exist_ok=True)
        return subprocess.run(program, cwd=here, env=own, capture_output=True, text=True, check=False)


def done(found: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that worked."""
    assert (found.returncode, found.stderr) == (0, ""), found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel of this checkout, built without a network and installed alone; building leaves nothing in the checkout."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    for name in ("mi_ray", "sweeps", "analysis", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = folder.glob("mi_ray-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    (own,) = folder.glob("lib/python3*/site-packages")
    # A plain path: the editable installation of this checkout, a .pth file in that folder, is not followed.
    (own / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    return Installed(wheel, folder)


def test_the_wheel_holds_one_package_with_every_module_and_every_packaged_sweep(installed: Installed) -> None:
    names = set(zipfile.ZipFile(installed.wheel).namelist())
    assert {name.split("/")[0].removesuffix(".dist-info").split("-")[0] for name in names} == {"mi_ray"}
    ours = [path.relative_to(ROOT) for path in (ROOT / "mi_ray").rglob("*.py")]
    data = (".html", ".css", ".js", ".json", ".safetensors")  # of digits, of the page and of the zoo
    files = [*(ROOT / "mi_ray").glob("*.*"), *(ROOT / "mi_ray").glob("*/*")]
    ours += [path.relative_to(ROOT) for path in files if path.suffix in data]
    ours += [Path("mi_ray") / path.relative_to(ROOT) for path in (ROOT / "sweeps").rglob("*.*")]
    wanted = {str(path) for path in ours if "__pycache__" not in path.parts}
    assert wanted == {name for name in names if name.startswith("mi_ray/")}


@pytest.mark.long  # From the wheel once more; the checkout's commands are held by test_command_line.py.
def test_the_commands_work_from_any_folder(installed: Installed) -> None:
    where = done(installed.run("python", "-c", "import mi_ray; print(mi_ray.__file__)"))
    assert Path(where.strip()).is_relative_to(installed.folder)
    here = installed.folder / "elsewhere"
    with hostile_modules(here):
        assert "quickstart" in done(installed.run("mi-ray", "sweeps"))
        done(installed.run("mi-ray", "init", "planned"))
        # Both in one process, since each would import torch.
        planned = done(installed.run("mi-ray", "plan", "quickstart", "planned/sweep.yaml", "--smoke"))
        assert planned.startswith("quickstart-smoke (results)")
        assert "\nmine-smoke (results)" in planned
    assert not (here / "hostile").exists(), "a module that lies in the folder was run"
    refused = installed.run("mi-ray", "plan", "quikstart")
    assert (refused.returncode, "did you mean 'quickstart'?" in refused.stderr) == (2, True)


@pytest.mark.ray
@pytest.mark.timeout(900)
@pytest.mark.long  # It is the smoke quickstart on Ray once more, from the wheel; `.ci/run` runs the quickstart itself.
def test_the_quickstart_and_a_study_of_ones_own_run_from_python_and_are_found_by_the_command(
    installed: Installed,
) -> None:
    done(installed.run("mi-ray", "init", "mine"))
    assert done(installed.run("python", "-c", PYTHON_RUN)) == ""
    said = done(installed.run("mi-ray", "sweep", "quickstart", "mine/sweep.yaml", "--smoke"))
    assert "quickstart-smoke: finished already, nothing to compute" in said
    assert "mine-smoke: finished already, nothing to compute" in said
