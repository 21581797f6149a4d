"""Classifiers that are not trained here: a person's own, and networks by name, with their weights."""

from pathlib import Path
from typing import Any

import torch

from mi_ray.classifiers import Classifier, Precision, build_classifier, prepared, read_weights, set_weights
from mi_ray.config import ClassifierEntry
from mi_ray.named import NETWORKS
from mi_ray.store.keys import Values


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
    return (
        found.eval() if entry.weights is None else set_weights(found, read_weights(Path(entry.weights)), entry.weights)
    )


def _described(entry: ClassifierEntry, classes: int, **more: object) -> dict[str, Any]:
    size = {} if entry.input_size is None else {"input_size": entry.input_size}
    return {"classes": classes, "mean": list(entry.mean), "std": list(entry.std), **size, **_factory(entry), **more}


def _factory(entry: ClassifierEntry) -> dict[str, Any]:
    return {} if entry.factory is None else {"factory": entry.factory, "arguments": entry.arguments}


def _made(entry: ClassifierEntry, description: Values) -> Classifier:
    try:
        return build_classifier(description)
    except TypeError as error:
        raise ValueError(
            f"classifier {entry.name!r}: factory {entry.factory} must accept its arguments: {error}"
        ) from error


def _named(entry: ClassifierEntry, classes: int) -> Classifier:
    """A network by name, with its source's weights unless a file's are to follow."""
    assert entry.source is not None
    try:
        source = NETWORKS.make(*entry.source)
        loaded = source.load(classes, entry.arguments, entry.weights is None)
    except ValueError as error:
        raise ValueError(f"classifier {entry.name!r}: {error}") from error
    description = _described(entry, classes, named=source.name, blueprint=loaded.blueprint)
    for key in ("mean", "std"):
        said = getattr(loaded, key)
        if said is not None and key not in entry.model_fields_set:
            description[key] = list(said)
    if entry.input_size is None and loaded.side is not None:
        description["input_size"] = loaded.side
    return Classifier(loaded.network, description["mean"], description["std"], classes, description)


def try_classifier(
    entry: ClassifierEntry, classifier: Classifier, height: int, width: int, precision: Precision
) -> None:
    """Pass one image through a classifier. Raises ValueError when that does not work out, or gives another number of logits."""
    try:
        with torch.no_grad():
            ready = prepared(classifier, torch.device("cpu"), precision, folded=False)
            shape = list(ready(torch.full((1, 3, height, width), 0.5)).shape)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"classifier {entry.name!r} must take [B, 3, {height}, {width}] images; its network says: {error}"
        ) from error
    if shape != [1, classifier.classes]:
        remedy = "; `weights:` of yours give it a head for them" if entry.source and entry.weights is None else ""
        raise ValueError(
            f"classifier {entry.name!r} must return logits [B, {classifier.classes}], one for each class of the dataset; "
            f"for one image it returned {shape}{remedy}"
        )
