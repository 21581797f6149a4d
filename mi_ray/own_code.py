"""A person's own code, as opposed to this program's and to what is installed.

Where it lies and what it imports, how it is imported and run, and what is told of its errors.
"""

import ast
import importlib
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, TypeVar

from mi_ray.refusals import MODULE, PATTERNS

P = ParamSpec("P")
T = TypeVar("T")
LONGEST = 300  # characters of another program's message that are shown
PROGRAM = Path(__file__).parent
_OWN_FOLDERS: list[Path] = []  # Where modules of a person's own may lie; see `look_in`.
_APPENDED: set[str] = set()  # What of sys.path `look_in` added.
# Where Python and packages are installed. A folder is told from these by itself, and not by the prefix that they lie under: a
# person's work may lie under it too, as /usr/src/app lies under /usr.
INSTALLED = {
    *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
    *site.getsitepackages(),
    site.getusersitepackages(),
}


def is_own(file: str) -> bool:
    """Whether a file is a person's own code: none of this program, of a package or of Python."""
    path = Path(file)
    return path.is_file() and not path.is_relative_to(PROGRAM) and not is_installed(path)


def is_installed(path: str | Path) -> bool:
    """Whether a file or folder is of Python or of an installed package."""
    return any(Path(path).is_relative_to(place) for place in INSTALLED if place)


def own_place(error: BaseException) -> str:
    """Where in a person's own code an error came from, in brackets after a space; nothing where it did not."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_own(frame.filename)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def imported_sources(module: str, file: Path) -> list[Path]:
    """The files that a person's own module imports and those that they import in turn, in a fixed order; none is run.

    file: the module's own. What lies in the folder that the module is imported from is found, or in its package, where it is
    installed; neither this program nor other packages are among them.
    """
    root = file.parents[module.count(".") + (file.name == "__init__.py")]
    package = None if is_own(str(file)) else module.partition(".")[0]
    found, todo = {file}, [(module, file)]
    while todo:
        for name in _imports(*todo.pop()):
            place = root.joinpath(*name.split("."))
            for path in (place.with_suffix(".py"), place / "__init__.py"):
                theirs = is_own(str(path)) if package is None else name.partition(".")[0] == package and path.is_file()
                if theirs and path not in found:
                    found.add(path)
                    todo.append((name, path))
    return sorted(found - {file})


def _imports(module: str, file: Path) -> Iterator[str]:
    """The absolute names that a module's file imports, with the packages that they are in; nothing where it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    around = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = around[: len(around) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*base, alias.name] for alias in node.names if alias.name != "*"] or [base]
        for parts in names:
            yield from (".".join(parts[: at + 1]) for at in range(len(parts)))


def look_in(*folders: Path) -> None:
    """Let modules in these folders be imported, after all that is installed.

    This is for what names a person's own code, and for nothing else: a file called torch.py that happens to lie in a
    folder must not run because somebody sweeps there.
    """
    for folder in folders:
        if folder not in _OWN_FOLDERS:
            _OWN_FOLDERS.append(folder)
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
            _APPENDED.add(str(folder))


def imported_first() -> list[str]:
    """Where this process looks for modules, without the folders that `look_in` added behind what is installed."""
    return [path for path in sys.path if path not in _APPENDED]


@dataclass(frozen=True)
class OwnModules:
    """A person's own modules that a piece of work needs, wherever it is done.

    plugins: modules that register what the work names. folders: where these, factories of networks and what they import may lie.
    """

    plugins: tuple[str, ...]
    folders: tuple[Path, ...]

    def load(self) -> None:
        """Let the modules be found, as they are where the study was planned, and import the plugins (their code runs)."""
        look_in(*self.folders)
        load_plugins(self.plugins)


def own_modules(plugins: Iterable[str]) -> OwnModules:
    """These plugins, with all folders that this process has been told to look in."""
    return OwnModules(tuple(plugins), tuple(_OWN_FOLDERS))


def load_plugins(plugins: Iterable[str]) -> None:
    """Import a person's own modules (their code runs). Raises ValueError for one that cannot be imported."""
    for plugin in plugins:
        if re.fullmatch(MODULE, plugin) is None:
            raise ValueError(f"plugins must be importable modules, each {PATTERNS[MODULE]}; got {plugin!r}")
        import_own("plugins must be importable modules", plugin)


def import_own(rule: str, module: str) -> ModuleType:
    """A person's own module, whose code runs. Raises ValueError with the rule and what happened, whatever it raises."""
    try:
        found = importlib.import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # A module may raise anything, and may exit.
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        written = f" (without .py: {module[:-3]})" if module.endswith(".py") else ""
        why = f"there is no such module beside the file, in the current folder or installed{written}"
        raise ValueError(f"{rule}; {module!r}: {why if absent else in_a_line(error)}") from error
    _refuse_twin(found)
    return found


def _refuse_twin(module: ModuleType) -> None:
    """Raise ValueError where a folder of a person's own has another module of this name: Python imports one of them alone."""
    file = Path(module.__file__ or "")
    for folder in _OWN_FOLDERS if file.is_file() else ():
        twin = folder.joinpath(*module.__name__.split(".")).with_suffix(".py")
        if twin.is_file() and not twin.samefile(file) and twin.read_bytes() != file.read_bytes():
            raise ValueError(
                f"one process imports one module of a name; there are two called {module.__name__}, {file} and {twin}: rename "
                "one of them, or run each sweep by a command (in a process) of its own"
            )


def in_a_line(error: BaseException) -> str:
    """What an error of a person's own code says, in one line, with the place in that code."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({Path(error.filename or '').name}, line {error.lineno})"
    text = f"{error.strerror}: {error.filename!r}" if isinstance(error, OSError) and error.strerror else str(error)
    told = shortened(re.sub(r" \(/[^)]*\)", "", text.replace("'NoneType' object", "None")))
    said = told if isinstance(error, ValueError) and told else f"{type(error).__name__}{told and ': '}{told}"
    if isinstance(error, SystemExit):
        said = f"it exits, with {'nothing' if error.code is None else repr(error.code)}"
    return f"{said}{own_place(error)}"


@contextmanager
def own_code(rule: str) -> Iterator[None]:
    """Raise ValueError with the rule and what happened in a line, whatever a person's own code raises or exits with."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(f"{rule}; {in_a_line(error)}") from error


def places_told(function: Callable[P, T]) -> Callable[P, T]:
    """Write on each error that comes from a person's own code what it says and where it arose, for `told_of`.

    An error that a worker process hands to another has lost its traceback, and with it the place; it stays of its type, by
    which it is decided whether another try can help.
    """

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        """The function, whose errors are told where they arose."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if own_place(error):
                error.told = in_a_line(error)  # type: ignore[attr-defined]
            raise

    return called


def told_of(error: BaseException) -> str:
    """What an error says in one line, with its place where a person's own code raised it in another process."""
    return str(getattr(error, "told", last_line(error)))


def first_line(error: BaseException) -> str:
    """What an error of code that is not ours says first, or its kind where it says nothing."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def last_line(error: BaseException) -> str:
    """What an error of code that is not ours says last, as Python's own do, or its kind where it says nothing."""
    return next(filter(None, map(str.strip, reversed(str(error).splitlines()))), type(error).__name__)


def shortened(text: str) -> str:
    """A text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"
