"""Inference-time defenses, one family a file: N random transformations of an input, whose softmax outputs are
averaged.

Importing this folder fills its registry; a new file is found by itself.
"""

import importlib
import pkgutil

from mi_ray.defenses.base import DEFENSES, DefendedClassifier, Defense, RandomTransform, predict

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["DEFENSES", "DefendedClassifier", "Defense", "RandomTransform", "predict"]
