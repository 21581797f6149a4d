"""What is wrong with a value of a sweep file, in one line of this program's own words: the place, the rule, the value."""

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from pydantic import ValidationError

SEEDS = 2**63  # what a seed must be below
LONGEST = 100  # characters of a value that are shown
# Expressions that keys of a sweep file hold text to; PATTERNS says each in words.
NAME = r"^[A-Za-z0-9][\w.-]*$"
MODULE = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$"
FACTORY = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
PATTERNS: Mapping[str, str] = {
    NAME: "letters, digits, ., _ and -, the first a letter or a digit",
    MODULE: "the dotted name of a module, such as my_package.my_module",
    FACTORY: "package.module:function",
}
# What a value must be, by the beginning of what pydantic calls the problem; {…} are numbers that it names.
RULES: Mapping[str, str] = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "above {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "below {lt:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "string_too_short": "text that is not empty",
    "string_too_long": "text of at most {max_length} characters",
    "string_": "text",
    "tuple_": "a list",
    "list_": "a list",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "dict_": "a mapping of keys to values",
    "model_": "a mapping of keys to values",
    "mapping_": "a mapping of keys to values",
}


def shown(value: object) -> str:
    """A value as it is shown in a message: on one line, and cut where it is long."""
    if value is None or isinstance(value, bool):
        return "nothing" if value is None else str(value).lower()
    text = " ".join((str(value) if isinstance(value, date) else repr(value)).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def first_problem(error: ValidationError) -> str:
    """The first of pydantic's problems as one line: where, the rule, the value.

    Of a key that takes several kinds of values the problem is that of the kind that fits best, the one that is met deepest.
    A message may quote other names of the file, with whatever is in them.
    """
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in _first_problem(error))


def _first_problem(error: ValidationError) -> str:
    listed: list[Mapping[str, Any]] = [*error.errors(include_url=False)]
    at = place(listed[0]["loc"])
    same = [problem for problem in listed if place(problem["loc"]).startswith(at)]
    where = max((place(problem["loc"]) for problem in same), key=len)
    told = [problem for problem in same if place(problem["loc"]) == where]
    problem = told[0]
    if problem["type"] == "value_error":
        said = str(problem["msg"]).removeprefix("Value error, ")
        return f"{where}{' ' if said.startswith('must ') else ': '}{said}" if where else said
    if problem["type"] == "missing":
        return f"{where} must be given; it is left out"
    rules = " or ".join(dict.fromkeys(_rule(each) for each in told if each["type"] not in ("value_error", "missing")))
    return f"{where or 'it'} must be {rules}; got {shown(problem.get('input'))}"


def place(parts: tuple[int | str, ...]) -> str:
    """A place in a sweep file, such as classifiers[0].training; what pydantic adds of kinds of values is left out."""
    kinds = {"int", "float", "str", "none", "bool"}
    told = [
        f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts if _is_key(part) and part not in kinds
    ]
    return "".join(told).lstrip(".")


def _is_key(part: int | str) -> bool:
    return isinstance(part, int) or re.fullmatch(r"[A-Za-z_][\w -]*", part) is not None


def _rule(problem: Mapping[str, Any]) -> str:
    """What the value must be."""
    kind, context = str(problem["type"]), problem.get("ctx", {})
    if kind == "literal_error":
        words = str(context["expected"]).replace("'", "").replace(" or ", ", ")
        return f"one of {words}" if "," in words else words
    if kind == "string_pattern_mismatch":
        return PATTERNS[str(context["pattern"])]
    if context.get("lt") == SEEDS:
        return "a whole number below 2^63"
    return next((words.format(**context) for begin, words in RULES.items() if kind.startswith(begin)), "another value")
