"""What checks the shapes in signatures while the tests run. It is imported before the package, so it imports none of it."""

import sys
from collections import Counter
from functools import cache, wraps
from inspect import getattr_static
from typing import Any

from beartype import BeartypeConf, beartype

# A check costs ten times what a short function does, and the thousandth call of a test has the shapes of the others.
CALLS = 4
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as in PEP 484
_calls: Counter[tuple[str, str]] = Counter()
_left_alone: list[Any] = []


def checked(function: Any) -> Any:
    """What the hook in conftest.py checks every function with; a dataclass that parses its own fields is left to it."""
    place, parses = (function.__module__, function.__qualname__), function.__name__ == "__init__"
    # What checks is written when it is first called: a process of the tests calls half of the functions.
    strict = cache(lambda: _beartype(function))

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        if parses and hasattr(args[0], "__post_init__"):
            # jaxtyping would bind the arguments of every further one of its kind, a tenth of the time of a plan.
            type(args[0]).__init__.__no_type_check__ = True
            return None
        _calls[place] += 1
        if _calls[place] == 2 * CALLS:  # jaxtyping checks what goes in, and that again with what comes out
            _leave_alone(*place)
        return strict()(*args, **kwargs)

    return counted


def begin() -> None:
    """Check the first calls of every function once more: another test begins."""
    _calls.clear()
    while _left_alone:
        _left_alone.pop().__no_type_check__ = False


def _leave_alone(module: str, qualname: str) -> None:
    """Have jaxtyping call a function as it is, which it asks of this attribute at every call, until another test begins."""
    found: Any = sys.modules[module]
    for name in qualname.split("."):
        if name == "<locals>":
            return
        found = getattr_static(found, name)
    function = getattr(found, "__func__", getattr(found, "fget", getattr(found, "func", found)))
    function.__no_type_check__ = True
    _left_alone.append(function)
