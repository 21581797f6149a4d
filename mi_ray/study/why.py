"""Why something would be computed again: which part of its key changed, against the nearest that is stored."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from mi_ray.plan.work import Plan
from mi_ray.store.blocks import Store
from mi_ray.store.keys import Values, canonical
from mi_ray.store.schemas import KEYS
from mi_ray.study.folder import ingredients
from mi_ray.study.prepare import Study

SHOWN = 6  # Changed parts of one key that are told.
Flat = Mapping[str, str]


def why(study: Study, store: Store | None) -> list[str]:
    """A line for each change that asks for new work, with how many results it asks for; one line where there is none.

    A result counts as stored where its folder is there, whatever points and executions it has: those that it lacks are
    added to it, and ask for no other key.
    """
    plan = study.plan()
    planned = ingredients(study, plan)
    there = _folders(store)
    known = {} if store is None else _known(store, there)
    lines: dict[str, int] = {}
    # A certificate is no folder of its own: it is read off outputs, whatever its alpha.
    missing = [(key, *made) for key, made in planned.items() if key not in there and made[0] != "certificate"]
    names = _names(plan)
    for key, kind, values in missing:
        told = f"{names.get(key, kind)}: {_change(kind, values, known)}"
        lines[told] = lines.get(told, 0) + 1
    if not missing:
        return [
            "nothing has another key: what is stored serves, and at most more points, draws or executions are added"
        ]
    return [f"{count} x {line}" if count > 1 else line for line, count in lines.items()]


def _folders(store: Store | None) -> set[str]:
    kinds = ("classifiers", "adversarial", "outputs")
    return set() if store is None else {key for kind in kinds for key in store.folders(kind)}


def _known(store: Store, there: set[str]) -> dict[tuple[str, str], list[Flat]]:
    """The parts of every stored key that a study of the store tells of, by its kind and method."""
    found: dict[tuple[str, str], list[Flat]] = {}
    seen = set[str]()
    for study in store.folders("studies"):
        path = f"studies/{study}/keys.parquet"
        for row in store.read_table(path, KEYS).to_pylist() if store.exists(path) else []:
            if row["key"] in there and row["key"] not in seen:
                seen.add(row["key"])
                values = json.loads(row["facts"])
                found.setdefault(_alike(row["kind"], values), []).append(dict(_parts(values)))
    return found


def _alike(kind: str, values: Values) -> tuple[str, str]:
    """What results are compared with each other: those of one kind and method."""
    return kind, str(values.get("method") or values.get("component") or "")


def _parts(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The parts of a key by dotted name, each as JSON text."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _parts(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, canonical(value)


def _change(kind: str, values: Values, known: Mapping[tuple[str, str], list[Flat]]) -> str:
    own = dict(_parts(json.loads(canonical(values))))
    candidates = known.get(_alike(kind, values), [])
    if not candidates:
        return "new, since nothing of its kind is stored"
    nearest = min(candidates, key=lambda other: len(_different(own, other)))
    parts = _different(own, nearest)
    told = [f"{part} {nearest.get(part, 'absent')} -> {own.get(part, 'absent')}" for part in parts[:SHOWN]]
    more = f" and {len(parts) - SHOWN} more" if len(parts) > SHOWN else ""
    return "; ".join(told) + more


def _different(own: Flat, other: Flat) -> list[str]:
    return [part for part in dict.fromkeys((*own, *other)) if own.get(part) != other.get(part)]


def _names(plan: Plan) -> dict[str, str]:
    """What a person calls the work of each key."""
    works = [*plan.attacks, *plan.outputs, *plan.check_attacks(), *plan.check_outputs()]
    classifiers = {work.key: work.entry.name for work in plan.classifiers}
    told = {work.key: f"{work.title} on {classifiers[work.classifier]}" for work in works}
    return {**told, **{key: f"classifier {name}" for key, name in classifiers.items()}}
