"""What checks the shapes in signatures while the tests run. It is imported before the package, so it imports none of it."""

from functools import wraps
from typing import Any

from beartype import BeartypeConf, beartype

_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as in PEP 484


def checked(function: Any) -> Any:
    """What the hook in conftest.py checks every function with; a dataclass that parses its own fields is left to it."""
    strict = _beartype(function)
    if function.__name__ != "__init__":
        return strict

    @wraps(function)
    def unless_it_parses(self: Any, *args: Any, **kwargs: Any) -> Any:
        return None if hasattr(self, "__post_init__") else strict(self, *args, **kwargs)

    return unless_it_parses
