"""Classifiers that are not trained here: a person's own, and networks by name, with their weights."""

import inspect
from pathlib import Path
from typing import Any

import torch

from mi_ray.classifiers import (
    Classifier,
    build_classifier,
    classifier_from_bytes,
    in_float32,
    set_weights,
    weights_bytes,
)
from mi_ray.config import ClassifierEntry
from mi_ray.named import NETWORKS
from mi_ray.networks import load_factory, read_weights
from mi_ray.own_code import own_code
from mi_ray.store.keys import Values

NORMALISATION = ("mean", "std")
ALIKE = 1e-4  # of the largest logit: so far may two copies of one network differ


def given_classifier(entry: ClassifierEntry, classes: int, seed: int, description: Values | None = None) -> Classifier:
    """The classifier of an entry that is not trained, with its weights, in eval mode on the CPU.

    classes: of the dataset. seed: of what a factory without a weights file draws. description: what the plan says of it,
    where its weights file gives it no more than weights. Raises ValueError where it cannot be had.
    """
    if entry.source is not None:
        found = _named(entry, classes)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed if entry.seed is None else entry.seed)
            found = _made(entry, description or _described(entry, classes))
        if entry.factory is not None:
            found.unsaid = [key for key in NORMALISATION if key not in entry.model_fields_set]
    return (
        found.eval() if entry.weights is None else set_weights(found, read_weights(Path(entry.weights)), entry.weights)
    )


def _described(entry: ClassifierEntry, classes: int, **more: object) -> dict[str, Any]:
    return {**entry.answers_of(classes), **_factory(entry), **more}


def _factory(entry: ClassifierEntry) -> dict[str, Any]:
    return {} if entry.factory is None else {"factory": entry.factory, "arguments": entry.arguments}


def _made(entry: ClassifierEntry, description: Values) -> Classifier:
    if entry.factory is not None:
        _refuse_arguments(entry)
    with own_code(f"classifier {entry.name!r} must have a factory that returns a network"):
        return build_classifier(description)


def _refuse_arguments(entry: ClassifierEntry) -> None:
    """Raise ValueError where a factory does not take the arguments that the sweep has for it."""
    takes = inspect.signature(load_factory(str(entry.factory)))
    try:
        takes.bind(**entry.arguments)
    except TypeError as error:
        names, given = ", ".join(takes.parameters) or "none", ", ".join(entry.arguments) or "none"
        raise ValueError(
            f"classifier {entry.name!r}: factory {entry.factory} must accept its arguments; it takes {names}, and "
            f"`arguments` has {given}"
        ) from error


def refuse_other(entry: ClassifierEntry, found: Classifier, side: tuple[int, int]) -> None:
    """Raise ValueError where what workers build from its name and its published weights is another network than this one.

    A library may set more than weights when it loads them, such as how the first layer reads its input. side: of the images.
    """
    if entry.source is None or entry.weights is not None:
        return
    name = f"classifier {entry.name!r}: what its library loads"
    try:
        again = classifier_from_bytes(found.description, weights_bytes(found), name)
    except ValueError as error:
        raise ValueError(f"{name} must be built again by its name; {error}") from error
    x = torch.rand(2, len(found.description["mean"]), *side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, others = found(x), again(x)
    differ, largest = float((logits - others).abs().max()), float(logits.abs().max())
    if not differ <= ALIKE * largest:
        raise ValueError(
            f"{name} must answer as the network that its name builds with these weights; logits of random images differ by "
            f"{differ:.3g}, and the largest is {largest:.3g}"
        )


def _named(entry: ClassifierEntry, classes: int) -> Classifier:
    """A network by name, with its source's weights unless a file's are to follow."""
    assert entry.source is not None
    try:
        source = NETWORKS.make(*entry.source)
        loaded = source.load(classes, entry.arguments, entry.weights is None)
    except ValueError as error:
        raise ValueError(f"classifier {entry.name!r}: {error}") from error
    description = _described(entry, classes, named=source.name, blueprint=loaded.blueprint)
    open_ = [key for key in NORMALISATION if key not in entry.model_fields_set]
    said = {key: list(getattr(loaded, key)) for key in open_ if getattr(loaded, key) is not None}
    description |= said
    if entry.input_size is None and loaded.side is not None:
        description["input_size"] = loaded.side
    found = Classifier(in_float32(loaded.network), description["mean"], description["std"], classes, description)
    found.unsaid = [key for key in open_ if key not in said]
    return found
