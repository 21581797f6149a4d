"""The tables of docs/sweep-file.md and of the presets in docs/methods.md, made from the fields that they describe.

`PYTHONPATH=tests python -m helpers.documents` writes them into the documents again; a test holds the one to the other.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mi_ray import config
from mi_ray.config import PRESETS, Options, Points, Strict, TrainingOptions
from mi_ray.parameters import Method

DOCS = Path(__file__).parent.parent.parent / "docs"
# The key of a method is its own name.
KEYS = {
    (config.AttackEntry, "method"): "*the attack*",
    (config.DefenseEntry, "method"): "*the defense*",
    (config.ImagesEntry, "method"): "*the attack*",
    (config.ClassifierEntry, "source"): ", ".join(f"`{name}`" for name in config.NETWORKS),
}
SECTIONS: Mapping[str, type[BaseModel]] = {
    "A sweep": config.Sweep,
    "points": config.Points,
    "classifiers": config.ClassifierEntry,
    "classifiers: training": config.Training,
    "attacks": config.AttackEntry,
    "attacks: images": config.ImagesEntry,
    "defenses": config.DefenseEntry,
    "checks": config.Checks,
    "certify": config.Certify,
    "search: optuna": config.OptunaSearch,
    "resources": config.Resources,
    "resources: block": config.BlockResources,
    "resources: train": config.TrainResources,
}
KINDS_IN_WORDS: Mapping[object, str] = {
    str: "text",
    bool: "`true`, `false`",
    Method: "a name, or a name with its parameters",
}


def sections() -> str:
    """The sections of docs/sweep-file.md, one for each mapping of a sweep file."""
    told = []
    for title, model in SECTIONS.items():
        sentence = " ".join((model.__doc__ or "").split())
        told.append(f"## {title if title == 'A sweep' else f'`{title}`'}\n\n{sentence}\n\n{keys_table(model)}\n")
    return "\n".join(told)


def documents() -> Iterator[tuple[Path, str]]:
    """Each document with the text that it should have."""
    keys = DOCS / "sweep-file.md"
    yield keys, keys.read_text(encoding="utf-8").partition("## A sweep\n")[0] + sections()
    methods = DOCS / "methods.md"
    table = re.compile(r"\| option \|.*?(?=\n\n)", re.DOTALL)
    yield methods, table.sub(lambda _: presets_table(), methods.read_text(encoding="utf-8"), count=1)


def keys_table(model: type[BaseModel]) -> str:
    """Every key of a mapping of a sweep file as rows of a Markdown table: its values, its default, its meaning."""
    rows = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in model.model_fields.items():
        columns = (
            KEYS.get((model, name), f"`{name}`"),
            field.title or _values(field),
            _default(field),
            str(field.description),
        )
        rows.append("| " + " | ".join(column.replace("|", "\\|") for column in columns) + " |")
    return "\n".join(rows)


def presets_table() -> str:
    """Every option as rows of a Markdown table: what it means, and what each preset sets it to."""
    rows = ["| option | " + " | ".join(f"`{name}`" for name in PRESETS) + " | meaning |", "| --- | --- | --- | --- |"]
    for position, model in enumerate((Options, TrainingOptions)):
        for name, field in model.model_fields.items():
            values = [_code(getattr(preset[position], name)) for preset in PRESETS.values()]
            rows.append(f"| `{name}` | {' | '.join(values)} | {field.description} |")
    orders = [_code(order) for _, _, order in PRESETS.values()]
    rows.append(f"| `points.order` | {' | '.join(orders)} | {Points.model_fields['order'].description} |")
    return "\n".join(rows)


def _code(value: object) -> str:
    """A value as YAML writes it, in Markdown; nothing for what is left out."""
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _default(field: FieldInfo) -> str:
    """What a key means where a file leaves it out; nothing where the meaning says that, or where other keys do."""
    if field.is_required():
        return "required"
    if isinstance(field.default, Method):
        return _code(field.default.name)
    if isinstance(field.default, (Strict, dict)):
        return ""
    listed = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    return "" if listed == "" else _code(listed)


def _values(field: FieldInfo) -> str:
    """What a key takes, in words."""
    found = [_kind(kind, field) for kind in _without_none(field.annotation)]
    return " or ".join(dict.fromkeys(found))


def _without_none(annotation: object) -> list[object]:
    """The types of a union, or the one type that is none; what is only annotated counts as what it annotates."""
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    if get_origin(annotation) in (UnionType, Union):
        return [kind for part in get_args(annotation) if part is not NoneType for kind in _without_none(part)]
    return [annotation]


def _kind(kind: object, field: FieldInfo) -> str:
    """One type in words, with the bounds that a field sets to numbers."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(kind))
    if get_origin(kind) is tuple:
        return "a list"
    if kind in (int, float):
        bounds = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        limits = [
            f" {word} {getattr(rule, name):g}"
            for rule in field.metadata
            for name, word in bounds.items()
            if getattr(rule, name, None) is not None
        ]
        return ("a whole number" if kind is int else "a number") + " and".join(limits)
    return KINDS_IN_WORDS.get(kind, "a mapping")


if __name__ == "__main__":
    for path, text in documents():
        path.write_text(text, encoding="utf-8")
