"""The sweep of one setting, which the page shows as YAML: all that decides its rows, and nothing of the others."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import yaml

from mi_ray.config import EACH_OPTION, each_option
from mi_ray.parameters import RANGES, spaced_values
from mi_ray.threat_model import parse_number

Json: TypeAlias = Mapping[str, object]
# Keys of a sweep that are not written into the sweep of one setting, and those that are written with all that they hold.
LEFT_OUT = ("defenses", "executions", "draws", "search", "figures", "classifiers", "smoke", "attacks", "variants")
WHOLE = ("options", "dataset", "pool")
RESTRICTED = ("classifiers", "defenses")  # what an attack may be made for alone


def sweep_parts(study: str, sweep: Json, variant: str = "") -> dict[str, str]:
    """By classifier, the YAML of a sweep of that one alone, to which a setting's attacks and its own lines are added.

    Other classifiers are in it where an attack's images are made on them. variant: the name of other options of the study, which
    then stand in place of its own.
    """
    sweep = _of_variant(sweep, variant) if variant else sweep
    # An option that is unset differs from one that is left out, which the preset decides.
    shared = {name: sweep[name] if name in WHOLE else _given(sweep[name]) for name in sweep if name not in LEFT_OUT}
    told = {**{name: part for name, part in shared.items() if part not in (None, {}, [])}, "name": f"{study}_one"}
    entries = {str(entry["name"]): _set_parts(entry) for entry in _entries(sweep, "classifiers")}
    parts = {}
    for classifier in entries:
        attacks = [entry for entry in _entries(sweep, "attacks") if _is_on(entry, classifier)]
        named = {text for entry in attacks for text in _named(entry.get("images"))} - {classifier}
        listed = [entries[name] for name in (classifier, *sorted(named & entries.keys()))]
        parts[classifier] = yaml.safe_dump({**told, "classifiers": listed}, sort_keys=False, allow_unicode=True)
    return parts


def _of_variant(sweep: Json, variant: str) -> Json:
    """A sweep with the options of one of its variants as its own."""
    every = each_option() if sweep.get("variants") == EACH_OPTION else sweep.get("variants")
    own, changes = sweep.get("options"), every.get(variant) if isinstance(every, Mapping) else None
    parts = [part for part in (own, changes) if isinstance(part, Mapping)]
    return {**sweep, "options": {name: value for part in parts for name, value in part.items()}}


def attacks_part(sweep: Json, classifier: str, defense: str, values: Json) -> str:
    """The YAML of the attacks that a setting meets. values: the parameters of its defense by name."""
    met = [
        {name: part for name, part in _set_parts(entry).items() if name not in RESTRICTED}
        for entry in _entries(sweep, "attacks")
        if _is_on(entry, classifier) and _is_through(entry, defense, values)
    ]
    if not met:
        return "attacks: []   # none of the study is made on this setting, and a sweep must have one: write yours\n"
    return yaml.safe_dump({"attacks": met}, sort_keys=False, allow_unicode=True)


def _is_on(entry: Json, classifier: str) -> bool:
    listed = entry.get("classifiers")
    return not isinstance(listed, Sequence) or classifier in listed


def _is_through(entry: Json, defense: str, values: Json) -> bool:
    """Whether an attack is made for a setting: no adaptive one is for F alone, which it would be the oblivious one for."""
    if defense == "none" and entry.get("knowledge", "oblivious") != "oblivious":
        return False
    listed = entry.get("defenses")
    return not isinstance(listed, Sequence) or any(_means(written, defense, values) for written in listed)


def _means(written: object, defense: str, values: Json) -> bool:
    """Whether a setting is among those that `mi_ol`, or `{mi_ol: {lam: [0.5, 0.6]}}`, means."""
    if not isinstance(written, dict):
        return written == defense
    wanted = written.get(defense)
    if not isinstance(wanted, dict):
        return defense in written
    return all(_holds(asked, values.get(name)) for name, asked in wanted.items() if asked is not None)


def _holds(asked: object, value: object) -> bool:
    """Whether a value is one of those that are asked for. A distribution is taken to hold every number."""
    if isinstance(asked, dict):
        ranges = [spaced_values("a range", how, asked[how]) for how in RANGES if how in asked]
        return asked == value or (not isinstance(value, dict) and all(_holds(each, value) for each in ranges))
    if isinstance(asked, list):
        return asked == value or any(_holds(each, value) for each in asked)
    try:
        return abs(parse_number("", asked) - parse_number("", value)) < 1e-9
    except ValueError:
        return asked == value


def _named(value: object) -> Iterator[str]:
    """The classifiers that are named somewhere in a part of a sweep."""
    if isinstance(value, dict):
        yield from [str(value["classifier"])] if value.get("classifier") else []
        value = list(value.values())
    for part in value if isinstance(value, list) else []:
        yield from _named(part)


def _entries(sweep: Json, name: str) -> list[dict[str, object]]:
    found = sweep.get(name)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _set_parts(value: dict[str, object]) -> dict[str, object]:
    """A part of a sweep without what it leaves unset, which means the same."""
    return {name: _given(part) for name, part in value.items() if part is not None}


def _given(value: object) -> object:
    if isinstance(value, dict):
        return _set_parts(value)
    return [_given(part) for part in value] if isinstance(value, list) else value
