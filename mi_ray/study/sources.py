"""What a person's own code and weights say, as hashes: a change of them is another key, and one of layout or comments is none.

A module counts with those that it imports from its own folder. One that was changed since this process imported it is
refused, since its rows would be computed by the old code and stored under the key of the new.
"""

import ast
import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import ARCHITECTURES
from mi_ray.config import Sweep
from mi_ray.defenses import DEFENSES
from mi_ray.networks import OwnNetwork, load_factory
from mi_ray.objectives import OBJECTIVES
from mi_ray.own_code import imported_sources
from mi_ray.parameters import Registry

# How figures name and draw what is registered with each, and what a check is not asked of it: no image and no output hangs on it.
LOOKS = {"DEFENSES": ("label", "colour", "marker"), "ATTACKS": ("display_name", "only_found")}
# What each file of a person's own code said when this process first looked at it, which is when it was imported.
_IMPORTED: dict[Path, str] = {}


def source_hash(module: str) -> str:
    """A hash of what a person's own module says, and what the modules say that it imports from its own folder."""
    return _hash(module, _said(module))


def _hash(module: str, said: Mapping[Path, str]) -> str:
    return hashlib.sha256("|".join(said.values()).encode()).hexdigest() if said else module


def _said(module: str) -> dict[Path, str]:
    """What the file of a module and those that it imports from its own folder say; nothing of a module without a file."""
    file = getattr(importlib.import_module(module), "__file__", None)
    files = [] if file is None else [Path(file), *imported_sources(module, Path(file))]
    return {path: syntax_of(path) for path in files}


def as_imported(module: str) -> str:
    """`source_hash`. Raises ValueError where a file is not what this process imported: it would compute by the old code, and
    store that under the new code's key; nor may it be in no file that a worker could import."""
    if module == "__main__":
        raise ValueError(
            "code of your own must be in a module that other processes can import; got a method that is defined in the program "
            "itself or in a cell of a notebook: write it into a file, and name that in `plugins`"
        )
    try:
        files = _said(module)
    except OSError as error:
        raise ValueError(
            f"code of your own must stay where it was imported from; {error.filename}: {error.strerror}"
        ) from error
    for path, said in files.items():
        if _IMPORTED.setdefault(path, said) != said:
            raise ValueError(
                f"{path.name} was changed since this process imported it: begin a new one (in a notebook, restart the kernel)"
            )
    return _hash(module, files)  # Of what was looked at just now: read again, it might be something else.


def _look_at(module: str) -> None:
    """Note what the files of a module say now that it is imported, wherever the module is used later."""
    with suppress(OSError):  # One that nothing names may be gone.
        for path, said in _said(module).items():
            _IMPORTED.setdefault(path, said)


def syntax_of(file: Path) -> str:
    """What a Python file says, without its comments, docstrings, layout and what `LOOKS` names of its methods; the bytes as text
    where it is no Python.

    A tree is written out here, since `ast.dump` writes it differently from one version of Python to the next.
    """
    content = file.read_bytes()
    try:
        return _written(ast.parse(content))
    except (SyntaxError, ValueError):
        return content.hex()


def _written(node: object) -> str:
    """A part of a syntax tree as text: names and values, and no place in the file."""
    if isinstance(node, list):
        return f"[{','.join(map(_written, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    body = getattr(node, "body", None)
    if isinstance(node, ast.ClassDef) and (looks := _looks(node)):
        kept = [each for each in node.body if not _is_look(each, looks)]
        node = ast.ClassDef(**{**dict(ast.iter_fields(node)), "body": kept})
        body = node.body
    told = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
        node
    )
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, []) and name != "kind"}
    if told and isinstance(body, list):
        fields["body"] = body[1:]
    return f"{type(node).__name__}({','.join(f'{name}={_written(value)}' for name, value in sorted(fields.items()))})"


def _looks(node: ast.ClassDef) -> tuple[str, ...]:
    """The names of `LOOKS` that a class may give a value to, by the registry whose `register` decorates it."""
    registers = [
        each.value for each in node.decorator_list if isinstance(each, ast.Attribute) and each.attr == "register"
    ]
    names = [each.attr if isinstance(each, ast.Attribute) else getattr(each, "id", "") for each in registers]
    return tuple(look for name in names for look in LOOKS.get(name, ()))


def _is_look(statement: ast.stmt, looks: tuple[str, ...]) -> bool:
    """Whether a statement of a class gives one of these names a plain value."""
    value = getattr(statement, "value", None)
    if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or not isinstance(value, ast.Constant):
        return False
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return all(isinstance(target, ast.Name) and target.id in looks for target in targets)


class _Sources(Mapping[str, str]):
    """Hashes by name, each made when the plan asks for it: a method that no sweep names may be gone, or in no file."""

    def __init__(self, made: Mapping[str, Callable[[], str]]) -> None:
        self._made = made

    def __getitem__(self, name: str) -> str:
        return self._made[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __contains__(self, name: object) -> bool:
        return name in self._made

    def __len__(self) -> int:
        return len(self._made)

    def __reduce__(self) -> tuple[type[dict[str, str]], tuple[dict[str, str]]]:
        """Handed to another process, all that can be made: what a search proposes there has been planned here before."""
        found = {}
        for name in self:
            with suppress(ValueError):
                found[name] = self[name]
        return dict, (found,)


def sources_of(sweep: Sweep) -> Mapping[str, str]:
    """Hashes of a person's own code and weights, by the name that the plan looks them up with."""
    found: dict[str, Callable[[], str]] = {}
    look_at, hashed = (
        lru_cache(maxsize=None)(_look_at),
        lru_cache(maxsize=None)(as_imported),
    )  # A module may register many.
    registries: list[Registry[Any]] = [DEFENSES, ATTACKS, OBJECTIVES, ARCHITECTURES]
    for registry in registries:
        for name in registry:
            module = registry[name].__module__
            if not is_ours(module):
                look_at(module)
                if sum(name in each for each in registries) > 1:
                    raise ValueError(
                        f"a plugin's name must be of one thing alone, since keys name its code by it; {name!r} is also another "
                        f"attack, defense, objective or architecture than that of {module}: rename it"
                    )
                found[name] = partial(hashed, module)
    for entry in (written.written_out() for written in sweep.classifiers):
        if entry.factory is not None:
            load_factory(entry.factory)
            found[entry.factory] = partial(hashed, entry.factory.partition(":")[0])
        if entry.weights is not None and not entry.given_whole:
            try:
                digest = hashlib.sha256(Path(entry.weights).read_bytes()).hexdigest()
            except OSError as error:
                raise ValueError(
                    f"classifier {entry.name!r}: weights must be a file; {entry.weights}: {error.strerror}"
                ) from error
            found[entry.weights] = partial(str, digest)
    return _Sources(found)


def hashes_of(networks: Mapping[OwnNetwork, bytes]) -> dict[tuple[str, str | None], str]:
    """Of each network the hash of its factory's source and of its weights; of one of our own the defense has a version."""
    modules = {network: network.factory.partition(":")[0] for network in networks}
    sources = {network: "" if is_ours(module) else as_imported(module) for network, module in modules.items()}
    return {
        network: hashlib.sha256(sources[network].encode() + content).hexdigest()
        for network, content in networks.items()
    }


def is_ours(module: str) -> bool:
    """Whether a module is the program's own, whose methods have a `version` in place of a hash."""
    return module.startswith("mi_ray.")
