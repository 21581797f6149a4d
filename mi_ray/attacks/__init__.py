"""Attacks, one family a file: clean images, labels and a threat model become images inside the ball and the pixel
box.

Importing this folder fills its registry; a new file is found by itself.
"""

import importlib
import pkgutil

from mi_ray.attacks.base import ATTACKS, Adversarial, Attack, Batch, Begun, OutsideBallError, attack_labels
from mi_ray.attacks.images import ImagesAttack

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["ATTACKS", "Adversarial", "Attack", "Batch", "Begun", "ImagesAttack", "OutsideBallError", "attack_labels"]
