"""Rules of the code itself, read from its source: who imports whom, what is never used, how long a function may be."""

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(".__init__"): path
    for folder in ("mi_ray", "analysis")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
OURS = [module for module in FILES if module.startswith("mi_ray")]
ANALYSIS = [module for module in FILES if module.startswith("analysis")]
NEVER_HEAVY = [
    "mi_ray.plan",
    "mi_ray.store",
    "mi_ray.figures",
    "mi_ray.page",
    "mi_ray.launch",
    "mi_ray.statistics",
    "mi_ray.choice",
    "mi_ray.cli",
    "mi_ray.run",
]


@cache
def tree_of(module: str) -> ast.Module:
    """A module as it is written. Parsed when a test asks: every process of a test run reads this file, and one runs it."""
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def trees() -> dict[str, ast.Module]:
    """Every module of the program and of analysis."""
    return {module: tree_of(module) for module in FILES}


def rooms() -> list[tuple[list[str], str, list[str]]]:
    """(modules of a room, its sentence, modules that it may import) for each row of the table in docs/code.md."""
    found = []
    for line in (ROOT / "docs/code.md").read_text(encoding="utf-8").splitlines():
        columns = [column.strip() for column in line.strip("|").split(" | ")]
        if line.startswith("| `") and len(columns) >= 2:
            names = [f"mi_ray.{name}" for name in re.findall(r"`([\w.]+)`", columns[0])]
            allowed = re.findall(r"`([\w.]+)`", columns[2]) if len(columns) > 2 else []
            every = len(columns) > 2 and "everything" in columns[2]
            found.append((names, columns[1], ["mi_ray"] if every else [f"mi_ray.{name}" for name in allowed]))
    return found


ROOMS = rooms()


@cache
def imports(module: str, *, at_import: bool = False) -> set[str]:
    """Every module that a module imports, with those that `from package import name` may mean.

    at_import: only what importing it imports, and not what its functions import when they are called, nor what is there
    for type checkers alone.
    """
    found: set[str] = set()
    inside = {
        node
        for function in ast.walk(tree_of(module))
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        for node in ast.walk(function)
    }
    inside |= {
        node
        for block in ast.walk(tree_of(module))
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree_of(module)):
        if at_import and node in inside:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            assert node.module
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names if f"{node.module}.{alias.name}" in FILES}
    return found


def within(module: str, packages: list[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def own(module: str) -> set[str]:
    """What a module imports of this project."""
    return {name for name in imports(module) if within(name, ["mi_ray", "analysis"])}


def under(package: str) -> list[str]:
    return [module for module in FILES if within(module, [package])]


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{module}:{node.lineno} {node.name}", node


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """(place, dotted name, call) of every call by name."""
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{module}:{node.lineno}", ast.unparse(node.func), node


def test_the_source_was_found() -> None:
    assert {"mi_ray.plan.planner", "mi_ray.cluster.runner", "mi_ray.attacks.pgd", "analysis.fig3b"} <= FILES.keys()
    assert "mi_ray.parameters" in own("mi_ray.config")
    assert "mi_ray.study.estimate" in imports("mi_ray.run") - imports("mi_ray.run", at_import=True)


@pytest.mark.parametrize("module", OURS)
def test_a_module_imports_what_the_table_lets_its_room_import(module: str) -> None:
    if module == "mi_ray":  # the Python interface, whose names are imported when they are used
        assert own(module) <= {"mi_ray.attacks", "mi_ray.defenses", "mi_ray.run"}
        return
    (room,) = [found for found in ROOMS if within(module, found[0])]
    assert [name for name in own(module) if not within(name, [*room[0], *room[2]])] == []


def test_no_room_may_import_one_that_stands_below_it_in_the_table() -> None:
    known: set[str] = set()
    for names, _, allowed in ROOMS:
        assert {".".join(name.split(".")[:2]) for name in allowed} <= {*known, "mi_ray"}
        known |= set(names)


@pytest.mark.parametrize(
    "folder", sorted({name for names, _, _ in ROOMS for name in names if (ROOT / name.replace(".", "/")).is_dir()})
)
def test_a_folder_says_of_itself_what_the_table_says(folder: str) -> None:
    (sentence,) = [sentence for names, sentence, _ in ROOMS if folder in names]
    told = ast.get_docstring(tree_of(folder)) or ""
    assert " ".join(told.split("\n\n")[0].split()) == sentence


@pytest.mark.parametrize("module", OURS)
def test_only_the_cluster_folder_imports_ray(module: str) -> None:
    assert within(module, ["mi_ray.cluster"]) or not any(within(name, ["ray"]) for name in imports(module))


@pytest.mark.parametrize("module", OURS)
def test_only_the_command_line_and_the_cluster_import_the_cluster(module: str) -> None:
    allowed = ["mi_ray.cluster", "mi_ray.cli", "mi_ray.run"]
    assert within(module, allowed) or not any(within(name, ["mi_ray.cluster"]) for name in imports(module))


@pytest.mark.parametrize("module", [module for module in OURS if within(module, NEVER_HEAVY)])
def test_what_reads_plans_and_draws_never_imports_torch_or_ray(module: str) -> None:
    reached, todo = set[str](), [module]
    while todo:  # and neither does anything that it imports
        reached.add(todo.pop())
        todo += [
            name for at in reached for name in imports(at, at_import=True) if name in FILES and name not in reached
        ]
    heavy = {name for at in reached for name in imports(at, at_import=True) if within(name, ["torch", "ray"])}
    assert heavy == set()


@pytest.mark.parametrize("module", ANALYSIS)
def test_a_script_calls_the_figure_of_its_name_and_holds_no_logic(module: str) -> None:
    assert own(module) - {"mi_ray.figures"} <= {"mi_ray.figures.script", f"mi_ray.figures.{module.split('.')[1]}"}
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) < 40


def test_no_import_goes_in_a_circle() -> None:
    graph = {module: {name for name in imports(module, at_import=True) if name in FILES} - {module} for module in FILES}
    while True:
        leaves = {module for module, needs in graph.items() if not needs & graph.keys()}
        if not leaves:
            break
        graph = {module: needs for module, needs in graph.items() if module not in leaves}
    assert graph == {}


def test_no_text_is_run_as_code() -> None:
    assert [place for place, name, _ in calls() if name in ("eval", "exec", "compile", "os.system", "os.popen")] == []
    shells = [place for place, _, call in calls() for keyword in call.keywords if keyword.arg == "shell"]
    assert shells == []


def test_no_pickle_is_read_or_written() -> None:
    banned = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    assert [(m, name) for m in FILES for name in imports(m) if name.split(".")[0] in banned] == []
    arguments = {place: [k for k in call.keywords if k.arg == "allow_pickle"] for place, _, call in calls()}
    assert all(ast.unparse(k.value) == "False" for found in arguments.values() for k in found)
    assert [place for place, name, _ in calls() if name == "torch.save"] == []


def test_torch_files_are_read_as_weights_only_and_yaml_safely() -> None:
    loads = {
        place: {k.arg: ast.unparse(k.value) for k in call.keywords}
        for place, name, call in calls()
        if name == "torch.load"
    }
    assert loads
    assert all(keywords.get("weights_only") == "True" for keywords in loads.values())
    used = {name for _, name, _ in calls() if name.startswith("yaml.")}
    assert used == {"yaml.safe_load", "yaml.safe_load_all", "yaml.safe_dump", "yaml.SafeLoader"}


def test_every_function_is_under_60_lines() -> None:
    long = [place for place, node in functions() if node.end_lineno and node.end_lineno - node.lineno + 1 >= 60]
    assert long == []


def public(body: list[ast.stmt], place: str) -> Iterator[tuple[str, ast.AST]]:
    """Classes, functions and methods whose name has no leading underscore, inside classes that have none either."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield f"{place}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{place}.{node.name}")


# A subclass's method that a framework calls says nothing beyond what the framework documents.
DOCUMENTED_BY_THEIR_BASE = {"setup", "step", "reset_config"}


def test_every_public_module_class_and_function_has_a_docstring() -> None:
    bare = [module for module, tree in trees().items() if not ast.get_docstring(tree)]
    for module in OURS:
        for place, node in public(tree_of(module).body, module):
            assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            if not ast.get_docstring(node) and place.split(".")[-1] not in DOCUMENTED_BY_THEIR_BASE:
                bare.append(place)
    assert bare == []


def signatures(text: str) -> set[int]:
    """The numbers of the lines of parameters: whoever keeps an interface writes its signature again."""
    defined = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return {number for node in defined for number in range(node.lineno + 1, node.body[0].lineno)}


def repeated(texts: dict[str, str]) -> list[tuple[str, str]]:
    """(first place, second place) of six lines in a row that stand twice.

    Short lines, imports and signatures do not count.
    """
    seen: dict[tuple[str, ...], str] = {}
    twice = []
    for name, text in texts.items():
        header = signatures(text)
        numbered = enumerate(text.splitlines(), 1)
        lines = [(number, line.strip()) for number, line in numbered if number not in header]
        told = [(n, line) for n, line in lines if len(line) > 1 and not line.startswith(("#", "import ", "from "))]
        for first in range(len(told) - 5):
            block = tuple(line for _, line in told[first : first + 6])
            place = f"{name}:{told[first][0]}"
            if block in seen and sum(map(len, block)) > 120:
                twice.append((seen[block], place))
            seen.setdefault(block, place)
    return twice


def test_no_block_of_six_lines_stands_twice() -> None:
    sample = "\n".join(f"line_number_{n} = compute(something, {n})" for n in range(6))
    assert repeated({"a": f"x = 1\n{sample}", "b": sample}) == [("a:2", "b:1")]
    interface = "def f(\n" + "".join(f"    parameter_number_{n}: dict[str, int],\n" for n in range(6)) + "):\n    pass"
    assert repeated({"a": interface, "b": interface}) == []
    assert repeated({module: path.read_text(encoding="utf-8") for module, path in FILES.items()}) == []


def test_few_arguments_are_of_any_type() -> None:
    arguments = [
        each
        for name, function in functions()
        if name.startswith("mi_ray")
        for each in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
        if each.annotation is not None
    ]
    loose = [each for each in arguments if re.search(r"\bAny\b", ast.unparse(each.annotation or each))]
    assert len(loose) < 0.05 * len(arguments), f"{len(loose)} of {len(arguments)}"


def test_every_module_and_folder_says_what_it_is_for() -> None:
    short = {module for module, tree in trees().items() if len(ast.get_docstring(tree) or "") < 20}
    assert short == set()


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py")))
def test_every_benchmark_can_be_imported(name: str) -> None:
    """They are run by hand and rarely: a name that was changed elsewhere would be found out after hours."""
    for library in ("torchattacks", "foolbox", "adv_lib", "pyautoattack"):
        if library in (ROOT / f"benchmarks/{name}.py").read_text(encoding="utf-8"):
            pytest.importorskip(library)
    importlib.import_module(f"benchmarks.{name}")
