"""One-line mutations of the program: where each kind of them is possible, and a draw that is spread over all folders."""

import ast
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

COMPARISONS = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
ARITHMETIC = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*")}
EXTREMES = {"min": "max", "max": "min", "amin": "amax", "amax": "amin", "argmin": "argmax", "argmax": "argmin"}
EXTREMES |= {"minimum": "maximum", "maximum": "minimum", "clamp_min": "clamp_max", "clamp_max": "clamp_min"}
NUMBERS = {"int", "float", "Tensor", "torch.Tensor"}
# What is told to a person and decides nothing: a test that held every word of it would only repeat the program.
MESSAGES = re.compile(r"^(log|logger|logging|warnings|console|errors|events)\.|^(print|warn|error|warning|echo)$")
# How a drawing looks, which no test can call right or wrong.
LOOKS = {
    *("alpha", "bbox_to_anchor", "borderaxespad", "capsize", "color", "dpi", "edgecolor", "elinewidth", "figsize"),
    *("fontsize", "frameon", "height_ratios", "labelsize", "left", "linestyle", "linewidth", "loc", "lw", "marker"),
    *("markersize", "ms", "ncol", "ncols", "pad", "rotation", "s", "size", "width_ratios", "zorder"),
}
# What states an invariant, as an assertion does, what decides how fast a result comes and not which, and what is the
# default on every machine with UTF-8.
WITHOUT_RESULT = LOOKS | {"strict", "non_blocking", "use_threads", "pin_memory", "encoding"}
TYPES = {"TypeVar", "ParamSpec", "NewType", "Literal", "Annotated"}


@dataclass(frozen=True)
class Mutation:
    """One changed line: the columns from start to end of line `line` (from 1) of a file become the text `new`.

    path: relative to the project; start, end: in bytes of UTF-8, as `ast` counts; kind: which sort of mutation it is.
    """

    path: str
    line: int
    start: int
    end: int
    new: str
    kind: str

    @property
    def name(self) -> str:
        """What tells this mutation from all others of the same text."""
        return f"{self.path}:{self.line}:{self.start}-{self.end} {self.kind}: {self.new}"

    @property
    def folder(self) -> str:
        """The folder of the program in which it is, such as mi_ray/store."""
        return str(Path(self.path).parent)

    def applied(self, text: str) -> str:
        """The text of the file after the change."""
        lines = text.splitlines(keepends=True)
        line = lines[self.line - 1].encode()
        lines[self.line - 1] = (line[: self.start] + self.new.encode() + line[self.end :]).decode()
        return "".join(lines)

    def difference(self, text: str) -> str:
        """The line before and after the change, for a person; text: the file before it."""
        before, after = (each.splitlines()[self.line - 1].strip() for each in (text, self.applied(text)))
        return f"{self.path}:{self.line} ({self.kind})\n- {before}\n+ {after}"


@dataclass
class Module:
    """A parsed file of the program, in which mutations are looked for.

    optional: by the name of each function and class of the program, those of its parameters that may be left out.
    """

    path: str
    text: str
    optional: dict[str, set[str]]

    @cached_property
    def tree(self) -> ast.Module:
        """The file's syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def lines(self) -> list[bytes]:
        """The file's lines as bytes, in which `ast` counts columns."""
        return [line.encode() for line in self.text.splitlines()]

    def mutations(self) -> Iterator[Mutation]:
        """Every mutation that is possible in the file, and some that change nothing or do not compile."""
        for node in code(self.tree):
            for mutate in MUTATORS:
                yield from mutate(self, node)

    def works(self, mutation: Mutation) -> bool:
        """Whether the file compiles after the change and means something else."""
        try:
            changed = ast.parse(mutation.applied(self.text))
            compile(changed, self.path, "exec")
        except (SyntaxError, ValueError):
            return False
        return ast.dump(changed) != ast.dump(self.tree)

    def between(self, before: ast.expr, after: ast.expr, old: str, new: str, kind: str) -> Iterator[Mutation]:
        """An operator that stands between two expressions on one line becomes another one."""
        if before.end_lineno != after.lineno or before.end_col_offset is None:
            return
        found = re.search(rb"(?<![\w<>=!])" + re.escape(old.encode()) + rb"(?![\w<>=!])", self._part(before, after))
        if found:
            start = before.end_col_offset
            yield Mutation(self.path, after.lineno, start + found.start(), start + found.end(), new, kind)

    def _part(self, before: ast.expr, after: ast.expr) -> bytes:
        return self.lines[after.lineno - 1][before.end_col_offset : after.col_offset]

    def replaced(self, node: ast.expr | ast.stmt | ast.keyword, new: str, kind: str) -> Iterator[Mutation]:
        """A node that stands on one line becomes another text."""
        if node.lineno == node.end_lineno and node.end_col_offset is not None:
            yield Mutation(self.path, node.lineno, node.col_offset, node.end_col_offset, new, kind)

    def source(self, node: ast.expr) -> str:
        """The text of a node that stands on one line; of another one, what of it stands on its first."""
        return self.lines[node.lineno - 1][node.col_offset : node.end_col_offset].decode(errors="replace")


def code(tree: ast.Module) -> Iterator[ast.AST]:
    """The nodes that decide what the program does.

    Left out are docstrings, annotations, decorators, what is only for type checkers, texts told to a person (those of a
    `raise` too), f-strings, whose parts have no reliable place, invariants, and how a drawing looks.
    """
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns", "decorator_list", "type_params"):
                children = value if isinstance(value, list) else [value]
                todo += [child for child in children if isinstance(child, ast.AST) and not _is_left_out(child)]
        if isinstance(node, ast.Raise):
            todo = [each for each in todo if each not in (node.exc, node.cause)]


def _is_left_out(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or _is_left_out(node.value)
    if isinstance(node, ast.Call):
        return bool(MESSAGES.search(ast.unparse(node.func))) or called(node) in TYPES
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.value) in TYPES
    if isinstance(node, ast.keyword):
        return node.arg in WITHOUT_RESULT
    return isinstance(node, (ast.JoinedStr, ast.Assert, ast.Import, ast.ImportFrom))


def called(call: ast.Call) -> str:
    """The last name of what is called: `draw` of `random.draw(2)`."""
    return call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)


def swapped_comparison(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """`<` becomes `<=`, `==` becomes `!=`, `in` becomes `not in`, and so on."""
    if isinstance(node, ast.Compare):
        for before, operator, after in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            old, new = COMPARISONS[type(operator)]
            yield from module.between(before, after, old, new, "comparison swapped")


def changed_number(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """A number grows by one, or is halved."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        half = node.value // 2 if isinstance(node.value, int) else node.value / 2
        for value in {node.value + 1, half} - {node.value}:
            yield from module.replaced(node, repr(value), "number changed")


def other_arithmetic(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """`+` becomes `-`, `*` becomes `/`, and the other way round, where neither side is a text or a list."""
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        if any(
            isinstance(side, (ast.List, ast.Tuple, ast.JoinedStr)) or _is_text(side) for side in (node.left, node.right)
        ):
            return
        old, new = ARITHMETIC[type(node.op)]
        yield from module.between(node.left, node.right, old, new, "arithmetic changed")


def _is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def other_junction(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """`and` becomes `or`, and the other way round."""
    if isinstance(node, ast.BoolOp):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for before, after in zip(node.values, node.values[1:], strict=False):
            yield from module.between(before, after, old, new, "and/or exchanged")


def other_truth(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """`True` becomes `False`, and the other way round."""
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield from module.replaced(node, str(not node.value), "True/False exchanged")


def negated_result(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """A function that returns a truth value returns its opposite; one that returns a number or a tensor, its negative."""
    if isinstance(node, ast.FunctionDef) and node.returns is not None:
        told = ast.unparse(node.returns)
        sign = "not " if told == "bool" else "-" if told in NUMBERS or told.startswith(("Float[", "Int[")) else ""
        for each in ast.walk(node) if sign else ():
            if isinstance(each, ast.Return) and each.value is not None and not isinstance(each.value, ast.Constant):
                yield from module.replaced(each.value, f"{sign}({module.source(each.value)})", "result negated")


def negated_condition(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """The condition of an `if`, a `while`, a conditional expression or a comprehension becomes its opposite."""
    tests = [node.test] if isinstance(node, (ast.If, ast.While, ast.IfExp)) else []
    tests += node.ifs if isinstance(node, ast.comprehension) else []
    for test in tests:
        if not isinstance(test, ast.Constant):
            yield from module.replaced(test, f"not ({module.source(test)})", "condition negated")


def dropped_argument(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """An argument that is given by name is left to its default, if a function of that name in the program has one."""
    if not isinstance(node, ast.Call):
        return
    optional = module.optional.get(called(node))
    for keyword in node.keywords:
        known = keyword.arg is not None and (optional is None or keyword.arg in optional)
        if not known or keyword.arg in WITHOUT_RESULT or keyword.lineno != keyword.end_lineno:
            continue
        line, start, end = module.lines[keyword.lineno - 1], keyword.col_offset, keyword.end_col_offset or 0
        after, before = re.match(rb",\s*", line[end:]), re.search(rb",\s*$", line[:start])
        if after:
            end += after.end()
        elif before:
            start = before.start()
        yield Mutation(module.path, keyword.lineno, start, end, "", "argument left to its default")


def removed_statement(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """A call whose result nobody takes or a `raise` is left out, an assigned value is None, a loop goes on or ends."""
    if isinstance(node, (ast.Expr, ast.AugAssign, ast.Raise)):
        yield from module.replaced(node, "pass", "statement removed")
    elif isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value and not _names_a_type(node):
        if not isinstance(node.value, ast.Constant) or node.value.value is not None:
            yield from module.replaced(node.value, "None", "None assigned")
    elif isinstance(node, ast.Continue):
        yield from module.replaced(node, "break", "continue/break exchanged")
    elif isinstance(node, ast.Break):
        yield from module.replaced(node, "continue", "continue/break exchanged")


def _names_a_type(node: ast.Assign | ast.AnnAssign) -> bool:
    """Whether an assignment only names a type, as `Counts = …` does, which nothing but a type checker reads."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    made = isinstance(node.value, ast.Call) and called(node.value) in TYPES
    return made or any(name[:1].isupper() and not name.isupper() for name in names)


def other_extreme(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """`min` becomes `max`, and the other way round."""
    if isinstance(node, ast.Call) and called(node) in EXTREMES and node.func.end_col_offset is not None:
        end, name = node.func.end_col_offset, called(node)
        line = node.func.end_lineno or node.lineno
        yield Mutation(module.path, line, end - len(name), end, EXTREMES[name], "min/max exchanged")


def renamed_key(module: Module, node: ast.AST) -> Iterator[Mutation]:
    """The name of a key is another one, where it is looked up and where a mapping is made."""
    keys: list[ast.expr | None] = []
    if isinstance(node, ast.Subscript):
        keys = [node.slice]
    elif isinstance(node, ast.Dict):
        keys = node.keys
    elif isinstance(node, ast.Call) and called(node) in ("get", "pop", "setdefault"):
        keys = [*node.args[:1]]
    for key in keys:
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield from module.replaced(key, f'"{key.value}_"', "key renamed")


MUTATORS: list[Callable[[Module, ast.AST], Iterator[Mutation]]] = [
    swapped_comparison,
    changed_number,
    other_arithmetic,
    other_junction,
    other_truth,
    negated_result,
    negated_condition,
    dropped_argument,
    removed_statement,
    other_extreme,
    renamed_key,
]


def optional_parameters(trees: list[ast.Module]) -> dict[str, set[str]]:
    """By the name of each function and class, the parameters or fields that may be left out in every one of that name."""
    found: dict[str, set[str]] = {}
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            listed = node.args
            positional = [*listed.posonlyargs, *listed.args]
            names = {each.arg for each in positional[len(positional) - len(listed.defaults) :]}
            named = zip(listed.kwonlyargs, listed.kw_defaults, strict=True)
            names |= {each.arg for each, default in named if default is not None}
        elif isinstance(node, ast.ClassDef):
            fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and each.value is not None]
            names = {each.target.id for each in fields if isinstance(each.target, ast.Name)}
        else:
            continue
        found[node.name] = found[node.name] & names if node.name in found else names
    return found


def modules(root: Path, package: str) -> list[Module]:
    """Every file of a package, parsed; root: the folder of the project."""
    texts = {
        str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in sorted((root / package).rglob("*.py"))
    }
    optional = optional_parameters([ast.parse(text) for text in texts.values()])
    return [Module(path, text, optional) for path, text in texts.items()]


def draw(root: Path, number: int, seed: int, *, package: str = "mi_ray", only: str | None = None) -> list[Mutation]:
    """So many mutations, as evenly over the folders of a package as their number allows, one in a line at most.

    In a folder the kinds of mutation take turns, and among those of a kind each is equally likely. The same seed draws the
    same from the same files, and a larger number draws more and keeps what a smaller one drew.
    root: the folder of the project; only: a folder such as mi_ray/store, when nothing else is to be mutated.
    """
    kinds: dict[str, dict[str, list[Mutation]]] = defaultdict(lambda: defaultdict(list))
    by_path = {module.path: module for module in modules(root, package)}
    for module in by_path.values():
        for mutation in module.mutations():
            kinds[mutation.folder][mutation.kind].append(mutation)
    if only is not None and only not in kinds:
        raise ValueError(f"--only must be a folder with code; got {only!r}; known: {', '.join(sorted(kinds))}")
    of_folders = []
    for folder in sorted(kinds):
        chance = random.Random(f"{seed} {folder}")
        shuffled = [chance.sample(found, len(found)) for _, found in sorted(kinds[folder].items())]
        if only in (None, folder):
            of_folders.append(_one_a_line(in_turn(chance.sample(shuffled, len(shuffled))), by_path))
    return list(islice(in_turn(random.Random(seed).sample(of_folders, len(of_folders))), number))


def in_turn(rows: Iterable[Iterable[Mutation]]) -> Iterator[Mutation]:
    """One of each row, then the next of each, and so on; a row that has no more is left out."""
    left = [iter(row) for row in rows]
    while left:
        for row in list(left):
            found = next(row, None)
            if found is None:
                left.remove(row)
            else:
                yield found


def _one_a_line(mutations: Iterable[Mutation], by_path: dict[str, Module]) -> Iterator[Mutation]:
    """Those mutations that compile and change something, without a second one in the same line."""
    used: set[tuple[str, int]] = set()
    for mutation in mutations:
        place = mutation.path, mutation.line
        if place not in used and by_path[mutation.path].works(mutation):
            used.add(place)
            yield mutation
