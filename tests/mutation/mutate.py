"""Mutate the program line by line, in a copy of it, and say which mutations the tests catch.

    make mutate N=60 SEED=0                                  all tests of `make test` decide
    python tests/mutation/mutate.py --number 20 --likely     only those that are likely to catch a mutation decide

With --reached all tests run once before, so that each mutation meets first those that run its line (reached.py).

What is mutated is the last commit. Results are kept in build/mutation, in one file per commit and seed: a run that was ended
goes on where it was, and a larger number adds to what is known.
"""

import argparse
import ast
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from pathlib import Path

import reached
from mutations import Mutation, draw

ROOT = Path(__file__).parents[2]
SECONDS = 1200.0
# Tests that run a mutated line, asked first: of the others, which may be thousands, few would catch what all of these miss.
FIRST = 200
# Test files run on several processors at once, as in `make test`.
SIDE_BY_SIDE = ("--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile", "--no-loadscope-reorder")
# Where pytest leaves the names of the tests that failed.
LAST_FAILED = ".pytest_cache/v/cache/lastfailed"


@dataclass(frozen=True)
class Stage:
    """One run of pytest: the test files, or tests, in the order in which they run, and pytest's options for them."""

    name: str
    files: tuple[str, ...]
    options: tuple[str, ...] = ()


@dataclass
class Result:
    """What became of a mutation; passed: the stages of tests that did not catch it; by: the tests that did."""

    mutation: Mutation
    caught: bool = False
    by: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)


def imported(text: str) -> set[str]:
    """Every module that a file imports, with those that `from package import name` may mean."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@cache
def imports_of_tests(root: Path) -> dict[str, set[str]]:
    """What each test file imports, by its path relative to the project, without the tests of these mutations."""
    files = [path for path in sorted((root / "tests").rglob("test_*.py")) if path.parent.name != "mutation"]
    return {str(path.relative_to(root)): imported(path.read_text(encoding="utf-8")) for path in files}


def likely(root: Path, mutation: Mutation) -> tuple[str, ...]:
    """The test files that are likely to catch a mutation, the likeliest first.

    First the file that is named like the module, then the one that is named like its folder, then those that import the
    module, then all of the same folder, and where there are none of these, those that import the folder's package.
    """
    path = Path(mutation.path)
    dotted = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    tests = imports_of_tests(root)
    folder = str(Path("tests", *path.parts[1:-1]))
    named = [test for test in tests if Path(test).stem == f"test_{path.stem}"]
    named.sort(key=lambda test: str(Path(test).parent) != folder)
    of_folder = [test for test in tests if Path(test).stem == f"test_{path.parent.name}"]
    importing = [test for test, modules in tests.items() if dotted in modules]
    same = [test for test in tests if str(Path(test).parent) == folder and folder != "tests"]
    found = [*named, *of_folder, *importing, *same]
    of_package = [test for test, modules in tests.items() if ".".join(path.parts[:-1]) in modules]
    return tuple(dict.fromkeys(found or of_package))


def running(lines: reached.Lines, mutation: Mutation, first: Sequence[str]) -> tuple[str, ...]:
    """Some tests that run a mutation's line, those of the files that are likely to catch it before all others."""
    place = {name: position for position, name in enumerate(first)}
    found = sorted(reached.tests_of(lines, mutation), key=lambda test: place.get(test.split("::")[0], len(place)))
    return tuple(found[:FIRST])


def stages(root: Path, mutation: Mutation, *, only_likely: bool, lines: reached.Lines = reached.UNKNOWN) -> list[Stage]:
    """The runs of tests that a mutation must pass to survive, those first that are likely to catch it soon.

    No test file is in two of them: of those that are likely to catch it, first what neither trains nor computes studies.

    only_likely: leave out what takes long and rarely catches what the others miss, tests on Ray of modules without Ray too.
    lines: which tests run which lines, as far as it is known.
    """
    first = likely(root, mutation)
    rest = tuple(test for test in imports_of_tests(root) if test not in first)
    found = [
        *(
            Stage(
                f"tests that run the line{called}",
                running(lines, mutation, first),
                ("-m", f"not long and not ray and {kind}"),
            )
            for called, kind in ((" and are quick", "not heavy"), (" and compute", "heavy"))
        ),
        Stage("likely tests that are quick", first, ("-m", "not long and not ray and not heavy")),
        Stage("likely tests that compute", first, ("-m", "not long and not ray and heavy")),
    ]
    if not only_likely or mutation.folder == "mi_ray/cluster":
        found += [Stage("likely tests on Ray", first, ("-m", "not long and ray"))]
    if not only_likely:
        # The quick ones take a minute and catch most of what is left; the others take the longest and come first in a run of all.
        found += [
            Stage("all other tests that are quick", rest, ("-m", "not long and not ray and not heavy", *SIDE_BY_SIDE)),
            Stage("all other tests", rest, ("-m", "not long and (ray or heavy)", *SIDE_BY_SIDE)),
        ]
    return [stage for stage in found if stage.files]


class Copy:
    """A copy of the project in a temporary folder, in which one mutation at a time is made and undone.

    seconds: after which the tests of one stage are ended; what makes them hang counts as caught.
    """

    def __init__(self, root: Path, archive: bytes, seconds: float) -> None:
        self.root, self.seconds = root, seconds
        self._process: subprocess.Popen[str] | None = None
        self._ended = False
        with tarfile.open(fileobj=BytesIO(archive)) as packed:
            packed.extractall(root, filter="data")

    @contextmanager
    def mutated(self, mutation: Mutation) -> Iterator[None]:
        """The copy with the mutation, and without it afterwards."""
        path = self.root / mutation.path
        text = path.read_text(encoding="utf-8")
        try:
            self._write(path, mutation.applied(text))
            yield
        finally:
            self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        """Write a module, and leave nothing of what Python compiled of it before."""
        path.write_text(text, encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
            compiled.unlink()

    def failing(self, stage: Stage) -> list[str]:
        """The first test that fails in a stage, as pytest names it; empty when all pass."""
        return self._pytest("--exitfirst", *stage.options, *stage.files)

    def fails_anyway(self, tests: Sequence[str]) -> list[str]:
        """Those of some tests that fail in the copy as it is now."""
        return self._pytest(*tests)

    def reach(self, folder: Path) -> None:
        """Run all tests, and write into a folder which lines each of them runs; one that fails has run its lines too."""
        self._pytest("-p", "reached", "--reached", str(folder), "-m", "not long", *SIDE_BY_SIDE)

    def _pytest(self, *arguments: str) -> list[str]:
        """Run pytest in the copy on the copy's own program; the names of the tests that failed."""
        if self._ended:
            raise InterruptedError("no further tests: the run was ended")
        failed = self.root / LAST_FAILED
        failed.unlink(missing_ok=True)
        paths = (self.root, Path(__file__).parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONHASHSEED": "0"}
        command = [sys.executable, "-m", "pytest", "-q", "-W", "default::pytest.PytestCacheWarning", *arguments]
        process = self._process = subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(timeout=self.seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return [f"no end within {self.seconds:g} s"]
        if self._ended:
            raise InterruptedError("the tests were ended, so they say nothing")
        if process.returncode in (0, 5):  # 5: the stage has no test, as a folder without tests on Ray.
            return []
        if failed.exists():
            return list(json.loads(failed.read_text(encoding="utf-8")))
        return [f"pytest exits with {process.returncode}: {' '.join(said.split())[-300:]}"]

    def end(self) -> None:
        """End the tests that run now, whose result counts for nothing then."""
        self._ended = True
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)


class Results:
    """What is known of the mutations of a commit, in a file with one line of JSON for each that was decided."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        told = [json.loads(line) for line in lines if line.endswith("}")]
        self._known = {each["name"]: each for each in told}  # The last line that tells of a mutation counts.

    def of(self, mutation: Mutation) -> Result:
        """What is known of a mutation: nothing, that tests caught it, or which stages it passed."""
        known: Mapping[str, object] = self._known.get(mutation.name, {})
        return Result(mutation, **{key: known[key] for key in ("caught", "by", "passed") if key in known})

    def keep(self, result: Result) -> None:
        """Write what became of a mutation."""
        told = {"name": result.mutation.name, "caught": result.caught, "by": result.by, "passed": result.passed}
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")


def try_one(copy: Copy, result: Result, wanted: Sequence[Stage]) -> Result:
    """Run the stages that a mutation has not passed yet, until a test fails that passes without the mutation.

    Raises RuntimeError when a test fails without the mutation too, since it then says nothing.
    """
    for stage in wanted:
        if result.caught or stage.name in result.passed:
            continue
        with copy.mutated(result.mutation):
            failed = copy.failing(stage)
        tests = [each for each in failed if each.startswith("tests/")]
        anyway = copy.fails_anyway(tests) if tests else []
        if anyway:
            raise RuntimeError(f"must pass without a mutation: {', '.join(anyway)}")
        result.caught, result.by = bool(failed), failed
        if not failed:
            result.passed.append(stage.name)
    return result


def lines_of(root: Path, folder: Path) -> reached.Lines:
    """Which tests run which lines of the last commit, from one run of all tests, whose tables are kept in a folder."""
    if not folder.exists():
        with tempfile.TemporaryDirectory(prefix="reached-") as place:
            Copy(Path(place, "copy"), archive_of(root), SECONDS).reach(Path(place, "tables"))
            shutil.move(Path(place, "tables"), folder)
    return reached.read(folder)


def archive_of(root: Path) -> bytes:
    """The last commit of a project, packed."""
    return subprocess.run(["git", "archive", "HEAD"], cwd=root, capture_output=True, check=True).stdout


def run(
    root: Path,
    mutations: Sequence[Mutation],
    results: Results,
    *,
    only_likely: bool,
    seconds: float,
    jobs: int,
    lines: reached.Lines = reached.UNKNOWN,
) -> list[Result]:
    """Try every mutation on the last commit of a project, some at once, each in a copy of its own; keep each result."""
    archive = archive_of(root)
    with tempfile.TemporaryDirectory(prefix="mutation-", ignore_cleanup_errors=True) as folder:
        every = [Copy(Path(folder, str(number)), archive, seconds) for number in range(jobs)]
        idle: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in every:
            idle.put(copy)

        def decide(mutation: Mutation) -> Result:
            result = results.of(mutation)
            wanted = stages(root, mutation, only_likely=only_likely, lines=lines)
            if result.caught or all(stage.name in result.passed for stage in wanted):
                return result
            copy = idle.get()
            try:
                results.keep(try_one(copy, result, wanted))
            finally:
                idle.put(copy)
            print(f"{'caught' if result.caught else 'SURVIVED':8}  {mutation.name}", file=sys.stderr, flush=True)
            return result

        with ThreadPoolExecutor(jobs) as pool:
            try:
                return list(pool.map(decide, mutations))
            except BaseException:  # Ctrl-C too: nothing shall go on running.
                pool.shutdown(wait=False, cancel_futures=True)
                for copy in every:
                    copy.end()
                raise


def table(results: Sequence[Result], texts: Mapping[str, str]) -> str:
    """Caught and survived mutations of each folder, and every survivor's line before and after."""
    folders = sorted({result.mutation.folder for result in results})
    lines = [f"{'folder':24}{'caught':>8}{'survived':>10}"]
    for name, mine in [*((f, [r for r in results if r.mutation.folder == f]) for f in folders), ("all", results)]:
        caught = sum(result.caught for result in mine)
        lines.append(f"{name:24}{caught:8}{len(mine) - caught:10}")
    survivors = [result.mutation for result in results if not result.caught]
    return "\n".join([*lines, *(f"\n{each.difference(texts[each.path])}" for each in survivors)])


def report(results: Sequence[Result], texts: Mapping[str, str]) -> list[dict[str, object]]:
    """The same as JSON holds it: one entry for each mutation."""
    return [
        {
            "folder": result.mutation.folder,
            "place": f"{result.mutation.path}:{result.mutation.line}",
            "kind": result.mutation.kind,
            "difference": result.mutation.difference(texts[result.mutation.path]),
            "caught": result.caught,
            "by": result.by,
            "passed": result.passed,
        }
        for result in results
    ]


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Draw, try and tell; the exit code is 0 when at most one mutation in twenty survives, and 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=60, help="how many mutations (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="which ones are drawn (default 0)")
    parser.add_argument("--only", metavar="FOLDER", help="mutate this folder alone, such as mi_ray/store")
    parser.add_argument("--likely", action="store_true", help="run only the tests that are likely to catch a mutation")
    parser.add_argument(
        "--reached", action="store_true", help="ask first the tests that run a line (one run more of all)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"time limit of a stage (default {SECONDS:g})")
    parser.add_argument("--jobs", type=int, default=1, help="how many mutations are tried at once (default 1)")
    parser.add_argument("--show", action="store_true", help="only show which mutations are drawn")
    chosen = parser.parse_args(arguments)
    git = shutil.which("git") or "git"
    changed = subprocess.run(
        [git, "status", "--porcelain", "--", "mi_ray", "tests"], cwd=root, capture_output=True, check=True
    )
    if changed.stdout:
        parser.error("mi_ray and tests must be committed: what is mutated and tested is the last commit")
    commit = subprocess.run([git, "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout[
        :12
    ]
    mutations = draw(root, chosen.number, chosen.seed, only=chosen.only)
    texts = {each.path: (root / each.path).read_text(encoding="utf-8") for each in mutations}
    if chosen.show:
        print("\n\n".join(each.difference(texts[each.path]) for each in mutations))
        return 0
    kept = root / "build/mutation" / f"{commit}-{chosen.seed}"
    results = run(
        root,
        mutations,
        Results(kept.with_suffix(".jsonl")),
        only_likely=chosen.likely,
        seconds=chosen.seconds,
        jobs=chosen.jobs,
        lines=lines_of(root, root / "build/mutation" / f"{commit}-reached") if chosen.reached else reached.UNKNOWN,
    )
    told = json.dumps(report(results, texts), indent=1, ensure_ascii=False)
    kept.with_suffix(".json").write_text(told, encoding="utf-8")
    print(table(results, texts))
    print(f"\nalso in {kept.with_suffix('.json')}")
    return int(20 * sum(not result.caught for result in results) > len(results))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # So that what runs is ended and the copies are removed.
    sys.exit(main())
