"""mi_ray: distributed sweeps of inference-time defenses against adversarial attacks.

The Python interface; each name is imported when it is first used, so that reading records needs no torch.
"""

import importlib
from typing import Any

_WHERE = {
    "Classifier": "mi_ray.classifiers",
    "load_classifier": "mi_ray.classifiers",
    "wrap_classifier": "mi_ray.classifiers",
    "SamplePool": "mi_ray.sample_pool",
    "ThreatModel": "mi_ray.threat_model",
    "Defense": "mi_ray.defenses",
    "RandomTransform": "mi_ray.defenses",
    "DefendedClassifier": "mi_ray.defenses",
    "predict": "mi_ray.defenses",
    "make_defense": "mi_ray.make",
    "make_attack": "mi_ray.make",
    "Attack": "mi_ray.attacks",
    "read_records": "mi_ray.records",
    "read_cells": "mi_ray.records",
}
__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"mi_ray has no {name!r}; it has {', '.join(_WHERE)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
