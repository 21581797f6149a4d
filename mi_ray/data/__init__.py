"""Datasets, from the places where researchers keep them: two splits of images, uint8, with their labels.

Importing this folder fills its registry; a new file is found by itself.
"""

import importlib
import pkgutil

from mi_ray.data.arrays import Cifar10, Cifar100, Digits, Npz, ParquetFolder
from mi_ray.data.base import SOURCES, Dataset, Source, batches, flip_and_crop, to_unit

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "SOURCES",
    "Cifar10",
    "Cifar100",
    "Dataset",
    "Digits",
    "Npz",
    "ParquetFolder",
    "Source",
    "batches",
    "flip_and_crop",
    "to_unit",
]
