"""Every bad input of the table tests/bad_inputs: its line and nothing else, exit code 2, no traceback, no work begun."""

import re
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from helpers.bad_inputs import FOREIGN, Case, cases, lay_out

import mi_ray
import mi_ray.data
from mi_ray.parameters import Registry
from mi_ray.study.prepare import REGISTRIES

Run = Callable[..., tuple[int, str, str]]
QUICK, ALL_OTHERS = dict(cases(quick=True)), dict(cases(quick=False))
FEWEST, FEWEST_QUICK = 300, 60


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch, unchecked: None) -> Iterator[None]:
    """Modules and methods that a case has brought are gone after it; the digits are read once for all cases."""
    load = lru_cache(maxsize=1)(mi_ray.data.Digits.load)
    monkeypatch.setattr(mi_ray.data.Digits, "load", load)
    kinds: list[Registry[Any]] = [
        REGISTRIES.defenses,
        REGISTRIES.attacks,
        REGISTRIES.objectives,
        REGISTRIES.architectures,
        mi_ray.data.SOURCES,
    ]
    for registry in kinds:
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(Path.cwd()):
            del sys.modules[name]


def assert_refused(case: Case, run: Run, folder: Path) -> None:
    code, out, err = run(*lay_out(case, folder))
    said = err.replace(str(folder), "HERE").replace(str(Path(mi_ray.__file__).parent), "PROGRAM").strip()
    assert said == case["says"]
    assert (code, out) == (2, "")
    assert re.search(FOREIGN, said) is None
    assert not (folder / "results" / "studies").exists()


@pytest.mark.parametrize("name", list(QUICK))
def test_a_bad_input_gets_its_line(name: str, run: Run, tmp_path: Path) -> None:
    assert_refused(QUICK[name], run, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", list(ALL_OTHERS))
def test_all_other_bad_inputs_get_their_lines(name: str, run: Run, tmp_path: Path) -> None:
    assert_refused(ALL_OTHERS[name], run, tmp_path)


@pytest.mark.parametrize(
    "line", ["compare results", "swep sweep.yaml", "sweep", "sweep a.yaml --smok", "schema x", "new attack"]
)
def test_a_command_line_that_cannot_be_read_gets_one_line_with_its_usage(line: str, run: Run) -> None:
    code, out, err = run(*line.split())
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert "; usage: mi-ray" in err


def test_the_table_is_as_large_as_it_is_said_to_be_and_has_no_case_twice() -> None:
    every = [*QUICK.values(), *ALL_OTHERS.values()]
    assert len(QUICK) >= FEWEST_QUICK
    assert len(every) >= FEWEST
    inputs = [repr({key: value for key, value in case.items() if key not in ("says", "quick")}) for case in every]
    assert len(set(inputs)) == len(every)
