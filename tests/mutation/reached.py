"""Which tests run which lines of the program: a plugin of pytest, whose table `mutate.py` asks for the tests to try first.

    PYTHONPATH=tests/mutation python -m pytest -p reached --reached build/mutation/reached

Each process of pytest writes one table of its own into the folder. Of what Ray's workers and other programs run nothing is known,
and the lines of a fixture that several tests share are those of the first one.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import coverage
import pytest
from mutations import Mutation

PACKAGE = "mi_ray"
Lines = Mapping[str, Mapping[int, list[str]]]  # path, relative to the project -> line -> the tests that run it
UNKNOWN: Lines = MappingProxyType({})


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the folder from the command line."""
    parser.addoption("--reached", required=True, help="the folder that the table is written into")


class Reached:
    """Has each test be one context of `coverage`."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._coverage = coverage.Coverage(data_file=None, source=[str(root / PACKAGE)], config_file=False)
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Name the test whose lines are counted from here on."""
        self._coverage.switch_context(item.nodeid)
        return (yield)

    def pytest_sessionfinish(self) -> None:
        """Write the table."""
        self._coverage.stop()
        data, lines = self._coverage.get_data(), dict[str, dict[int, list[str]]]()
        for path in data.measured_files():
            tests = data.contexts_by_lineno(path)
            named = {line: sorted(filter(None, found)) for line, found in tests.items()}
            lines[str(Path(path).relative_to(self._root))] = {line: found for line, found in named.items() if found}
        self._folder.mkdir(parents=True, exist_ok=True)
        worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
        (self._folder / f"{worker}.json").write_text(json.dumps(lines), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Count in every process that runs tests, which of several is not the one that hands them out."""
    if not config.getoption("numprocesses", None):
        config.pluginmanager.register(Reached(config.rootpath, Path(config.getoption("--reached"))))


def read(folder: Path) -> Lines:
    """The tables of all processes in one; nothing where there are none."""
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("*.json")):
        for path, lines in json.loads(file.read_text(encoding="utf-8")).items():
            for line, tests in lines.items():
                found[path][int(line)] += tests
    return found


def tests_of(lines: Lines, mutation: Mutation) -> Sequence[str]:
    """The tests that run a mutation's line, or where none is known to, the nearest line above it in the same file."""
    of_file = lines.get(mutation.path, {})
    near = max((line for line in of_file if line <= mutation.line), default=None)
    return [] if near is None else of_file[near]
