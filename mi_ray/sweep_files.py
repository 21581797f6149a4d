"""Sweep files: found by their path or by the name of a packaged one, read, overlaid, and validated as a `Sweep`."""

import copy
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mi_ray.config import Sweep
from mi_ray.parameters import unknown
from mi_ray.refusals import first_problem, shown

SweepSource = str | Path | Mapping[str, object]  # a path, the name of a packaged sweep, or what a file would hold

# In a checkout this is a link to the folder `sweeps` at its top; an installation holds the files themselves.
PACKAGED = Path(__file__).parent / "sweeps"
CLAIMS = "claims"  # a file of claims about the sweeps beside it (`mi_ray.figures.claims`), and no sweep
START = PACKAGED / "init"  # what `mi-ray init` copies
MOST_VALUES = 1_000_000  # of a YAML text, with what its aliases repeat
MERGED = ("points", "options", "resources", "checks")  # what an overlay changes key by key; all else it replaces


def packaged_sweeps() -> dict[str, str]:
    """The name of each sweep that comes with the program, and the first line of its file, which says what it makes."""
    found = [file for pattern in ("*.yaml", "*/*.yaml") for file in sorted(PACKAGED.glob(pattern))]
    files = [file for file in found if file.parent != START and file.stem != CLAIMS]
    lines = [file.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ") for file in files]
    return {str(file.relative_to(PACKAGED).with_suffix("")): line for file, line in zip(files, lines, strict=True)}


def find_sweep(source: str | Path) -> Path:
    """The file that a person means by a path or by the name of a packaged sweep, such as fig3b or cifar10/fig3b.

    A file comes first, and is named with its ending: `quickstart` is the packaged sweep even where a quickstart.yaml
    lies in the current folder, so that the name means one thing everywhere.
    Raises ValueError for a bare name that is neither a file nor a packaged sweep.
    """
    path, name = Path(source), str(source)
    if path.is_file() or path.suffix:
        return path
    known = packaged_sweeps()
    if name not in known:
        if len(path.parts) != 1:
            return path
        here = path.with_name(f"{name}.yaml")
        problem = unknown("packaged sweep", name, list(known))
        raise ValueError(f"{problem}. A file is named with its ending{f': {here}' if here.is_file() else ''}")
    return PACKAGED / f"{name}.yaml"


def start_folder(folder: str | Path) -> list[Path]:
    """Copy a commented sweep, a module with a defense of one's own beside it, and a schema for editors into a folder.

    Returns the files.

    Raises ValueError, before anything is written, when one of them is there already.
    """
    sources = [*sorted(file for file in START.iterdir() if file.is_file()), PACKAGED / "sweep.schema.json"]
    copies = [Path(folder) / file.name for file in sources]
    there = [str(file) for file in copies if file.exists() or file.is_symlink()]
    if there:
        raise ValueError(f"nothing is overwritten: {folder} must not hold {', '.join(there)}; name another folder")
    make_folder(folder)
    for file, target in zip(sources, copies, strict=True):
        shutil.copyfile(file, target)
    return copies


def make_folder(folder: str | Path) -> None:
    """Make a folder where it is not there. Raises ValueError where there can be none."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} must be a folder, or a place for a new one: {error.strerror}") from error


def parse_overrides(written: Iterable[str]) -> dict[str, object]:
    """`key=value` texts as dotted keys with their YAML values. Raises ValueError for text of another form."""
    found: dict[str, object] = {}
    for override in written:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ValueError(f"--set must be key=value, as in --set points.count=100; got {override!r}")
        found[key] = parse_yaml(f"--set {key}: the value", text)
    return found


def load_sweep(
    source: SweepSource, *, smoke: bool = False, overrides: Mapping[str, object] | None = None, seed: int | None = None
) -> Sweep:
    """Read, overlay and validate a sweep.

    source: see `SweepSource`. smoke: lay the sweep's own `smoke` mapping over it, and name the study `<name>-smoke`.
    overrides: values by dotted key, such as {"points.count": 100}. seed: replaces the sweep's.
    Raises ValueError with the file, the place, the rule and the value.
    """
    changes = dict(overrides or {})
    if isinstance(source, Mapping):
        origin, document = "the sweep", _as_written(source)
    else:
        file = find_sweep(source)
        # A copy: where an alias names one part in several places, each place gets its own.
        origin, document = str(file), _as_written(read_document(file))
    _overlay(origin, document, smoke)
    for key, value in changes.items():
        _set_path(document, key, _as_written(value))
    if seed is not None:
        document["seed"] = seed
    if not isinstance(source, Mapping):
        _refuse_far_downloads(origin, document, changes)
    try:
        return Sweep.model_validate(document)
    except ValidationError as error:
        raise ValueError(f"{origin}: {first_problem(error)}") from error


def _as_written(value: object) -> Any:
    """A value from Python as YAML would have it: also NumPy's numbers and arrays, ranges and paths."""
    if isinstance(value, Mapping):
        return {key: _as_written(inner) for key, inner in value.items()}
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, range)) or type(value) is tuple:
        return [_as_written(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def read_document(path: Path) -> dict[str, object]:
    """The YAML mapping in a sweep file. Raises ValueError when there is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"a sweep file must be readable; {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be YAML in UTF-8; byte {error.start} is not") from error
    document = parse_yaml(str(path), text)
    if not isinstance(document, dict):
        raise ValueError(f"{path} must hold a mapping with keys such as name, classifiers; got {shown(document)}")
    return document


def parse_yaml(what: str, text: str) -> object:
    """The value of a YAML text. Raises ValueError, naming what it is, for another text and for a key that stands twice."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _values_in(what, node, {})
        return None if node is None else _made(what, loader, node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        told = " ".join(str(error.problem).split())
        told = "plain values alone are read here, and no tags with ! such as this one" if "the tag" in told else told
        raise ValueError(f"{what} must be YAML; {where}{told}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{what} must be YAML; it holds a character that YAML does not allow") from error
    except RecursionError as error:
        raise ValueError(f"{what} must be YAML; it is nested too deeply") from error


def _made(what: str, loader: yaml.SafeLoader, node: yaml.Node) -> object:
    """The value of a node. Raises ValueError where what looks like a number or a date is none."""
    try:
        return loader.construct_document(node)
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{what} must be YAML; a value in it looks like a number or a date and is none: if it is text, put it in quotes"
        ) from error


def _values_in(what: str, node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values a node of a YAML text stands for, with what its aliases repeat. known: of nodes, by their identity.

    Raises ValueError for a key that stands twice in a mapping, of which the second one would win and nobody would know, for
    a key that is no plain word, and for aliases that go in a circle or stand for more values than any sweep has.
    """
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if known[id(node)] == 0:
            raise ValueError(
                f"{what} must not hold itself; the alias in line {node.start_mark.line + 1} goes in a circle"
            )
        return known[id(node)]
    known[id(node)] = 0
    parts = node.value if isinstance(node, yaml.SequenceNode) else [value for _, value in node.value]
    if isinstance(node, yaml.MappingNode):
        _refuse_twice(what, [key for key, _ in node.value])
    known[id(node)] = 1 + sum(_values_in(what, part, known) for part in parts)
    if known[id(node)] > MOST_VALUES:
        raise ValueError(f"{what} must hold at most {MOST_VALUES:,} values; its aliases stand for more")
    return known[id(node)]


def _refuse_twice(what: str, keys: Iterable[yaml.Node]) -> None:
    """Raise ValueError for a key of one mapping that stands twice, or that is no plain text or number."""
    lines: dict[str, int] = {}
    for key in keys:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"{what} must have plain words as keys; in line {line} a key is a list or a mapping")
        if key.value in lines:
            where = f"twice in line {line}" if lines[key.value] == line else f"in lines {lines[key.value]} and {line}"
            raise ValueError(f"{what} must not have a key twice in one mapping; {shown(key.value)} is {where}")
        lines[key.value] = line


def _overlay(origin: str, document: dict[str, object], smoke: bool) -> None:
    """Take the `smoke` mapping out of a document, and lay it over the document where that is asked for."""
    overlay = document.pop("smoke", None)
    if overlay is not None and not isinstance(overlay, Mapping):
        raise ValueError(f"{origin}: smoke must be a mapping of keys to values; got {shown(overlay)}")
    if not smoke:
        return
    if not isinstance(overlay, Mapping):
        raise ValueError(f"{origin}: --smoke needs a `smoke:` mapping in the file; there is none")
    for key, value in overlay.items():
        below = document.get(key)
        if key == "checks" and isinstance(below, str):  # One word is the level.
            below = {"level": below}
        if key in MERGED and isinstance(below, Mapping) and isinstance(value, Mapping):
            document[key] = {**below, **value}
        else:
            document[key] = copy.deepcopy(value)
    document["name"] = f"{document.get('name')}-smoke"


def _set_path(document: dict[str, object], path: str, value: object) -> None:
    """Set the value at a dotted path such as `classifiers.0.training.epochs`, in place.

    Raises ValueError when a step of the path leads nowhere.
    """
    *parents, last = path.split(".")
    node: object = document
    for depth, part in enumerate(parents):
        where = ".".join(parents[: depth + 1])
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ValueError(f"--set {path}: {where} must be an index from 0 to {len(node) - 1}; got {part!r}")
            node = node[int(part)]
        elif isinstance(node, dict):
            node = node.setdefault(part, {})
        else:
            raise ValueError(f"--set {path}: {where} is not a mapping or a list in the file; it is {node!r}")
    if isinstance(node, list) and last.isdigit() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise ValueError(f"--set {path}: there is nothing at {path} to set; found {node!r}")


def _refuse_far_downloads(origin: str, document: Mapping[str, object], overridden: Collection[str]) -> None:
    """Raise ValueError where a file (no option of a person's) wants a download written outside the current folder."""
    for key in ("dataset", "pool"):
        named = document.get(key)
        for name, values in named.items() if isinstance(named, Mapping) else ():
            if {key, f"{key}.{name}", f"{key}.{name}.root"} & {*overridden}:
                continue
            root = values.get("root", "") if isinstance(values, Mapping) and values.get("download") else ""
            if Path(str(root)).is_absolute() or str(root).startswith("~") or ".." in Path(str(root)).parts:
                raise ValueError(
                    f"{origin}: where a file asks for a download, {key}.{name}.root must be a folder below the current "
                    f"one; got {root!r}. Another place is yours to name: --set {key}.{name}.root={root}"
                )
