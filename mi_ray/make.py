"""Methods by name, for the Python interface."""

from typing import Any

from mi_ray.attacks import ATTACKS, Attack
from mi_ray.defenses import DEFENSES, Defense


def make_defense(name: str, **parameters: Any) -> Defense:
    """A registered defense. Raises ValueError for an unknown name, or an unknown, missing or bad parameter."""
    return DEFENSES.make(name, parameters)


def make_attack(name: str, **parameters: Any) -> Attack:
    """A registered attack. Raises ValueError for an unknown name, or an unknown, missing or bad parameter."""
    return ATTACKS.make(name, parameters)
