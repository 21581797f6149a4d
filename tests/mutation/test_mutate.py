"""Mutations are drawn repeatably and evenly, each changes one line of code, and trying them leaves the checkout as it is."""

import ast
import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import reached
from mutate import FIRST, Copy, Result, Results, Stage, imports_of_tests, likely, main, running, stages, try_one
from mutations import MUTATORS, Module, Mutation, draw, optional_parameters

# Of a tool that `make mutate` runs by hand: nothing of the program stands on it.
pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]


def mutants(text: str) -> dict[str, str]:
    """By its kind and its line after the change, every mutation of a text that works."""
    module = Module("mi_ray/module.py", text, optional_parameters([ast.parse(text)]))
    found = [mutation for mutation in module.mutations() if module.works(mutation)]
    return {mutation.applied(text).splitlines()[mutation.line - 1].strip(): mutation.kind for mutation in found}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = a < b", {"x = a <= b": "comparison swapped"}),
        ("x = a is not None", {"x = a is None": "comparison swapped"}),
        ("x = a not in b", {"x = a in b": "comparison swapped"}),
        ("x = 'é', a == b", {"x = 'é', a != b": "comparison swapped"}),
        ("x = 8", {"x = 9": "number changed", "x = 4": "number changed"}),
        ("x = 0.5", {"x = 1.5": "number changed", "x = 0.25": "number changed"}),
        ("x = a + b", {"x = a - b": "arithmetic changed"}),
        ("x = a * (b)", {"x = a / (b)": "arithmetic changed"}),
        ("x = a or b or c", {"x = a and b or c": "and/or exchanged", "x = a or b and c": "and/or exchanged"}),
        ("x = True", {"x = False": "True/False exchanged"}),
        ("x = min(a, key=f)", {"x = max(a, key=f)": "min/max exchanged", "x = min(a)": "argument left to its default"}),
        ("x = a['b']", {'x = a["b_"]': "key renamed"}),
        ("x = {'b': c}", {'x = {"b_": c}': "key renamed"}),
        ("x = a.get('b')", {'x = a.get("b_")': "key renamed"}),
        ("f(a, key=b)", {"f(a)": "argument left to its default", "pass": "statement removed"}),
        (
            "f(key=b, other=c)",
            {"f(other=c)": "argument left to its default", "f(key=b)": "argument left to its default"},
        ),
        ("if a: f()", {"if not (a): f()": "condition negated", "if a: pass": "statement removed"}),
        ("x = [a for a in b if c]", {"x = [a for a in b if not (c)]": "condition negated"}),
        ("for a in b:\n    continue", {"break": "continue/break exchanged"}),
        ("while True:\n    break", {"continue": "continue/break exchanged"}),
        ("raise ValueError(f(1 + 2))", {"pass": "statement removed"}),
    ],
)
def test_what_a_line_can_become(text: str, expected: dict[str, str]) -> None:
    found = mutants(text)
    assert expected.items() <= found.items()
    assert set(found.values()) - set(expected.values()) <= {
        "None assigned",
        "statement removed",
        "True/False exchanged",
    }


def test_a_result_is_negated_as_its_type_asks() -> None:
    assert mutants("def f(a) -> bool:\n    return a")["return not (a)"] == "result negated"
    assert mutants("def f(a) -> Tensor:\n    return a")["return -(a)"] == "result negated"
    assert "result negated" not in mutants("def f(a) -> str:\n    return a").values()


def test_an_argument_that_has_no_default_is_not_dropped() -> None:
    assert "argument left to its default" not in mutants("def f(*, a): ...\nf(a=b)").values()
    assert "argument left to its default" in mutants("def f(*, a=c): ...\nf(a=b)").values()


@pytest.mark.parametrize(
    "text",
    [
        '"""Text of 3 lines."""',
        "def f():\n    '''Text of 3 lines.'''",
        "a: Literal[3]",
        "def f(a: Literal[3]) -> Literal['b']: ...",
        "@f(3)\nclass A: ...",
        "if TYPE_CHECKING:\n    a = 3",
        "def f():\n    return f'{3}'",
        "assert a < 3",
        "logger.info('text', a < 3)",
        "console.print(a < 3)",
        "import a",
        "Names = dict[str, int]",
        "T = TypeVar('T', bound=int)",
    ],
)
def test_what_decides_nothing_is_left_alone(text: str) -> None:
    assert mutants(text) == {}


def test_the_looks_of_a_drawing_are_left_alone() -> None:
    assert mutants("x = axes.plot(a, linewidth=3)") == {"x = None": "None assigned"}


@pytest.fixture(scope="module")
def drawn() -> list[Mutation]:
    return draw(ROOT, 27, 0)


def test_a_draw_is_spread_evenly_over_all_folders(drawn: list[Mutation]) -> None:
    folders = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "mi_ray").rglob("*.py")}
    counted = Counter(mutation.folder for mutation in drawn)
    assert counted.keys() == folders
    assert max(counted.values()) - min(counted.values()) <= 1
    assert len({(mutation.path, mutation.line) for mutation in drawn}) == len(drawn) == 27
    assert len({mutation.kind for mutation in drawn}) > len(MUTATORS) / 2


def test_each_drawn_mutation_changes_one_line_compiles_and_means_something_else(drawn: list[Mutation]) -> None:
    for mutation in drawn:
        text = (ROOT / mutation.path).read_text(encoding="utf-8")
        changed = mutation.applied(text)
        differing = [
            n for n, pair in enumerate(zip(text.split("\n"), changed.split("\n"), strict=True), 1) if len({*pair}) == 2
        ]
        assert differing == [mutation.line]
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))


def test_a_seed_draws_the_same_again_and_another_one_differs() -> None:
    one = draw(ROOT, 12, 0, package="mi_ray/launch")
    assert draw(ROOT, 12, 0, package="mi_ray/launch") == one
    assert draw(ROOT, 20, 0, package="mi_ray/launch")[:12] == one
    assert draw(ROOT, 12, 1, package="mi_ray/launch") != one


def test_a_folder_alone_is_drawn_and_an_unknown_one_refused() -> None:
    assert {each.folder for each in draw(ROOT, 9, 0, package="mi_ray/launch", only="mi_ray/launch")} == {
        "mi_ray/launch"
    }
    with pytest.raises(ValueError, match=r"--only must be a folder with code; got 'launch'; known: mi_ray/launch"):
        draw(ROOT, 9, 0, package="mi_ray/launch", only="launch")


def test_the_likeliest_tests_come_first_and_nothing_is_left_out() -> None:
    mutation = Mutation("mi_ray/store/compact.py", 1, 0, 0, "", "number changed")
    first = likely(ROOT, mutation)
    assert first[0] == "tests/store/test_compact.py"
    assert {"tests/store/test_check.py"} < set(first)
    found = stages(ROOT, mutation, only_likely=False)
    assert {test for stage in found for test in stage.files} == imports_of_tests(ROOT).keys()
    names = [stage.name for stage in found]
    assert names.index("all other tests that are quick") == len(names) - 2
    # Together these are all tests of `make test`, each once.
    rest = [stage.options[1] for stage in found if stage.files == found[-1].files]
    assert rest == ["not long and not ray and not heavy", "not long and (ray or heavy)"]


PROGRAM = '''"""Sizes."""


def fits(size, limit):
    """Whether a size is allowed."""
    return size < limit


def unheld():
    """No test asks for this."""
    return 7
'''
TEST = "from mi_ray.sizes import fits\n\n\ndef test_a_size_fits():\n    assert not fits(2, 2)\n"


def git(project: Path, *arguments: str) -> str:
    told = subprocess.run(["git", *arguments], cwd=project, capture_output=True, text=True, check=True)
    return told.stdout


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed project with one function that is tested and one that is not."""
    if shutil.which("git") is None:
        pytest.skip("asks git for the last commit")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    # Of the plugins that are installed the runs of pytest below need one: loading the others takes longer than their tests.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p xdist.plugin")
    texts = {
        "mi_ray/__init__.py": "",
        "mi_ray/sizes.py": PROGRAM,
        "tests/test_sizes.py": TEST,
        ".gitignore": "build/\n",
    }
    for name, text in texts.items():
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "project/pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    git(tmp_path / "project", "init", "--quiet")
    git(tmp_path / "project", "add", ".")
    git(tmp_path / "project", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=all")
    return tmp_path / "project"


def files(project: Path) -> dict[str, bytes]:
    """What is in a project, without what git ignores."""
    inside = [path for path in project.rglob("*") if path.is_file()]
    return {str(path): path.read_bytes() for path in inside if not {".git", "build"} & set(path.parts)}


def test_a_run_tells_what_was_caught_leaves_the_checkout_alone_and_goes_on_where_it_was(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(project)
    assert main(["--number=5", "--likely"], project) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[1].split() == ["mi_ray", "1", "1"]
    assert "mi_ray/sizes.py:11 (number changed)\n- return 7\n+ return " in said
    assert files(project) == before
    assert git(project, "status", "--porcelain") == ""
    (told,) = (project / "build/mutation").glob("*.json")
    by_place = {each["place"]: each for each in json.loads(told.read_text(encoding="utf-8"))}
    assert by_place["mi_ray/sizes.py:6"]["by"] == ["tests/test_sizes.py::test_a_size_fits"]
    assert by_place["mi_ray/sizes.py:11"]["caught"] is False
    monkeypatch.setattr(Copy, "failing", lambda *_: pytest.fail("all is known already"))
    assert main(["--number=5", "--likely"], project) == 1
    assert capsys.readouterr().out == said


def test_the_tests_that_run_a_line_are_found_by_one_run_of_all_and_asked_first(project: Path) -> None:
    assert main(["--number=5", "--likely", "--reached"], project) == 1
    (folder,) = (project / "build/mutation").glob("*-reached")
    lines = reached.read(folder)
    test = "tests/test_sizes.py::test_a_size_fits"
    assert lines["mi_ray/sizes.py"][6] == [test]
    at = {line: Mutation("mi_ray/sizes.py", line, 0, 0, "", "number changed") for line in (5, 6, 11)}
    # Nothing runs the last line: the nearest above it that anything runs stands in for it.
    assert [[*reached.tests_of(lines, each)] for each in at.values()] == [[], [test], [test]]
    assert running(lines, at[6], ["tests/test_sizes.py"]) == (test,)
    assert reached.tests_of(reached.UNKNOWN, at[6]) == []
    (told,) = (project / "build/mutation").glob("*.json")
    passed = {each["place"]: each["passed"] for each in json.loads(told.read_text(encoding="utf-8"))}
    assert passed["mi_ray/sizes.py:6"] == []
    assert passed["mi_ray/sizes.py:11"][0] == "tests that run the line and are quick"


def test_of_many_tests_that_run_a_line_those_of_likely_files_come_first() -> None:
    many = [f"tests/test_a.py::test_{number}" for number in range(FIRST)]
    lines = {"mi_ray/sizes.py": {6: [*many, "tests/test_sizes.py::test_a_size_fits"]}}
    found = running(lines, Mutation("mi_ray/sizes.py", 6, 0, 0, "", "number changed"), ["tests/test_sizes.py"])
    assert found[0] == "tests/test_sizes.py::test_a_size_fits"
    assert len(found) == FIRST


def test_what_is_not_committed_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "mi_ray/sizes.py").write_text(PROGRAM + "\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["--number=1"], project)
    assert "must be committed" in capsys.readouterr().err


def copy_of(project: Path, folder: Path, seconds: float = 100.0) -> Copy:
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=project, capture_output=True, check=True).stdout
    return Copy(folder, archive, seconds)


def test_a_test_that_fails_without_the_mutation_too_decides_nothing(project: Path, tmp_path: Path) -> None:
    copy = copy_of(project, tmp_path / "copy")
    (copy.root / "tests/test_sizes.py").write_text("def test_a_size_fits():\n    assert False\n", encoding="utf-8")
    stage = Stage("all", ("tests/test_sizes.py",))
    with pytest.raises(RuntimeError, match="must pass without a mutation: tests/test_sizes"):
        try_one(copy, Result(draw(project, 1, 0)[0]), [stage])


def test_tests_without_end_catch_a_mutation(project: Path, tmp_path: Path) -> None:
    copy = copy_of(project, tmp_path / "copy", seconds=0.01)
    result = try_one(copy, Result(draw(project, 1, 0)[0]), [Stage("all", ("tests/test_sizes.py",))])
    assert (result.caught, result.by) == (True, ["no end within 0.01 s"])


def test_a_result_that_was_cut_off_while_it_was_written_is_not_known(project: Path, tmp_path: Path) -> None:
    one, other = draw(project, 2, 0)
    results = Results(tmp_path / "kept.jsonl")
    results.keep(Result(one, caught=True, by=["tests/test_sizes.py::test_a_size_fits"]))
    results.keep(Result(other, passed=["likely tests"]))
    kept = tmp_path / "kept.jsonl"
    kept.write_text(kept.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    assert Results(kept).of(one).caught
    assert Results(kept).of(other) == Result(other)
