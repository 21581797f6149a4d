"""mi_ray: distributed sweeps of inference-time defenses against adversarial attacks.

This is the Python interface. Each name is imported when it is first used, so that reading records needs no torch.
"""

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mi_ray.attacks import Attack
    from mi_ray.defenses import Defense

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
    "Attack": "mi_ray.attacks",
    "train_denoiser": "mi_ray.denoising",
    "run_sweep": "mi_ray.run",
    "run_sweeps": "mi_ray.run",
    "plan_sweep": "mi_ray.run",
    "StudyResult": "mi_ray.run",
    "read_records": "mi_ray.store.read",
    "read_cells": "mi_ray.store.read",
    "read_certificates": "mi_ray.store.read",
    "read_certified": "mi_ray.store.read",
}
__all__ = list(_WHERE)
__all__ += ["make_attack", "make_defense"]


def make_defense(name: str, **parameters: object) -> "Defense":
    """A registered defense with these parameters.

    Raises ValueError for an unknown name, and for an unknown, missing or bad parameter.
    """
    from mi_ray.defenses import DEFENSES

    return DEFENSES.make(name, parameters)


def make_attack(name: str, **parameters: object) -> "Attack":
    """A registered attack with these parameters.

    Raises ValueError for an unknown name, and for an unknown, missing or bad parameter.
    """
    from mi_ray.attacks import ATTACKS

    return ATTACKS.make(name, parameters)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name == "__version__":
        from importlib import metadata  # It takes long to import for what most programs never ask for.

        with contextlib.suppress(metadata.PackageNotFoundError):  # Of sources that are not installed nothing says it.
            return metadata.version("mi-ray")
    raise AttributeError(f"mi_ray has no {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE])
