"""Trained classifiers that come with the program: the weights of each as safetensors, beside a card that says what it is.

A card is a JSON object: architecture ([name, parameters]), mean and std of the normalisation, classes, side of the images,
weights_sha256, how it was trained, and the training's curve.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def zoo_names() -> list[str]:
    """The names of all classifiers of the zoo."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def classifiers_told() -> dict[str, str]:
    """What each classifier of the zoo is, in a line, by its name."""
    cards = {name: zoo_card(name) for name in zoo_names()}
    return {
        name: f"{card['architecture'][0]} trained with {next(iter(card['training']['objective']))} on {card['training']['data']}"
        for name, card in cards.items()
    }


@cache
def zoo_card(name: str) -> dict[str, Any]:
    """What the zoo says of a classifier. Raises FileNotFoundError for a name that it does not have."""
    card: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return card


def zoo_weights(name: str) -> Path:
    """The safetensors file of a classifier of the zoo."""
    return FOLDER / f"{name}.safetensors"
