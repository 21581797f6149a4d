"""Finds figures by name and draws them, each apart from the others, so that one that fails takes none with it.

A figure is a module with `make(store, study)`, which writes files into the study's folder and returns their paths
within the store: one of this folder, or a person's own, named by its file or as `package.module`.
"""

import ast
import importlib
import importlib.util
import inspect
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from mi_ray.own_code import is_own, own_place
from mi_ray.store.blocks import Store

logger = logging.getLogger(__name__)

Make: TypeAlias = Callable[[Store, str], Iterable[str]]


@dataclass(frozen=True)
class Drawn:
    """What came of a study's figures: the files that were written, and why each figure failed that did."""

    paths: tuple[str, ...]
    failures: Mapping[str, str]


_ALONE = threading.RLock()  # The settings of matplotlib are those of the whole process, whatever thread draws.


def known_figures() -> list[str]:
    """The names of the figures and tables that mi_ray has itself."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [file.stem for file in files if re.search(r"^def make\(", file.read_text(encoding="utf-8"), re.MULTILINE)]


def figures_told() -> dict[str, str]:
    """What each of the figures and tables that mi_ray has itself shows: the first sentence of its module, by its name."""
    folder = Path(__file__).parent
    texts = {name: ast.parse((folder / f"{name}.py").read_text(encoding="utf-8")) for name in known_figures()}
    return {name: " ".join((ast.get_docstring(text) or "").split("\n\n")[0].split()) for name, text in texts.items()}


def find_figure(name: str) -> str:
    """The module of a figure: one of ours, or a person's own by its dotted name, which is imported to be sure of it.

    Raises ValueError where there is none, where it has no `make`, and where it cannot be imported.
    """
    if name in known_figures():
        return f"mi_ray.figures.{name}"
    try:
        spec = importlib.util.find_spec(name)
        # A name without a dot may be that of any module of Python, which is not to be run for a slip of the pen.
        theirs = spec is not None and ("." in name or is_own(str(spec.origin)))
        if theirs and hasattr(importlib.import_module(name), "make"):
            _refuse_arguments(importlib.import_module(name).make)
            return name
    except (Exception, SystemExit) as error:  # A module may exit, which would end the command as if all were drawn.
        raise ValueError(
            f"figures must be importable modules with make(store, study); {name!r} is not: {_cause(error)}"
        ) from error
    raise ValueError(
        f"figures must be figures of mi_ray ({', '.join(known_figures())}) or importable modules with "
        f"make(store, study), such as my_figure, a my_figure.py beside the sweep, or my_package.my_figure; got {name!r}"
    )


def _refuse_arguments(make: Callable[..., object]) -> None:
    """Raise TypeError where a function cannot be called with a store and a study, as far as its signature is known."""
    try:
        takes = inspect.signature(make, follow_wrapped=False)
    except ValueError:
        return
    takes.bind("store", "study")


def draw(store: Store, study: str, names: Iterable[str], others: Mapping[str, Make] | None = None) -> Drawn:
    """Draw figures of a study into its folder; whatever one of them raises, the others are drawn.

    names: as a sweep lists its figures. others: what else is made in the same way, by name. A Ctrl-C ends all of it.
    Raises ValueError for a study that is not in the store.
    """
    from mi_ray.store.read import read_cells

    read_cells(store, study)
    paths: list[str] = []
    failures: dict[str, str] = {}
    known = {} if others is None else others
    with _ALONE:
        for name in [*names, *known]:
            try:
                make = known[name] if name in known else importlib.import_module(find_figure(name)).make
                paths += _checked(store, make(store, study))
            except (Exception, SystemExit) as error:
                logger.debug("figure %s", name, exc_info=True)
                failures[name] = _cause(error)
    return Drawn(tuple(paths), failures)


def _checked(store: Store, paths: object) -> list[str]:
    """What a person's own `make` returned, if it is what it has to be: paths of files that are there."""
    found = list(paths) if isinstance(paths, Iterable) and not isinstance(paths, str) else [None]
    if not all(isinstance(path, str) for path in found):
        raise TypeError(
            "make(store, study) must return a list of the paths that it wrote, each a text within the store, such as "
            f"'studies/NAME/figures/mine.png'; got {paths!r}"
        )
    written = [str(path) for path in found]
    if lost := [path for path in written if not store.exists(path)]:
        raise FileNotFoundError(f"make(store, study) must return paths within the store; the store has no {lost[0]}")
    return written


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}{own_place(error)}"
