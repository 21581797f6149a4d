"""The smallest whole sweep, with parts of it replaced."""

import copy
from typing import Any

from mi_ray.config import Sweep

ONE_CLASSIFIER = {"name": "f", "architecture": "cnn_small"}

SMALL: dict[str, Any] = {
    "name": "tiny",
    "dataset": "digits",
    "points": {"count": 40},
    "batch": 20,
    "classifiers": [ONE_CLASSIFIER],
    "attacks": [{"pgd": {"steps": 2}, "epsilon": "8/255"}],
    "defenses": ["none", {"gaussian_noise": {"sigma": 0.1}}],
}


def document(**changes: Any) -> dict[str, Any]:
    """The smallest whole sweep, with some keys replaced."""
    return {**copy.deepcopy(SMALL), **changes}


def sweep(**changes: Any) -> Sweep:
    return Sweep.model_validate(document(**changes))


def classifier(**changes: Any) -> list[dict[str, Any]]:
    return [{**ONE_CLASSIFIER, **changes}]
