"""Rows of cells.parquet made by hand, and what a manifest says of their methods, for tests of what is drawn of them."""

import json
from typing import Any

import pandas as pd

from mi_ray.figures.names import Appearance, Names
from mi_ray.store.schemas import CELLS

APPEARANCE: Appearance = {
    "defenses": {
        "none": {"label": "No defense", "colour": "#000000", "marker": "*"},
        "gaussian_noise": {"label": "Gaussian noise", "colour": "#56B4E9", "marker": "o"},
        "random_rotation": {"label": "Random rotation", "colour": "#009E73", "marker": "^"},
        "mi_pl": {"label": "MI-PL", "colour": "#CC79A7", "marker": "P"},
        "mi_ol": {"label": "MI-OL", "colour": "#D55E00", "marker": "X"},
    },
    "attacks": {
        "pgd": "PGD",
        "eot_pgd": "EOT-PGD",
        "averaged": "Averaged PGD",
        "apgd": "APGD",
        "square": "Square",
    },
}
NAMES = Names.of(APPEARANCE, [])


def cell(
    classifier: str, defense: str, params: dict[str, Any], attack: str, accuracy: float, **changes: Any
) -> dict[str, Any]:
    """A row of one finished cell. changes: columns that are to differ from the usual ones."""
    row: dict[str, Any] = dict.fromkeys(CELLS.names)
    attacked = attack != "none"
    row |= {
        "cell": f"{classifier}{defense}{params}{attack}{changes}",
        "dataset": "digits",
        "classifier": classifier,
        "classifier_key": classifier,
        "attack": attack,
        "attack_params": json.dumps({"steps": 10} if attacked else {}),
        "goal": "untargeted" if attacked else "none",
        "norm": "linf",
        "epsilon": 8 / 255 if attacked else 0.0,
        "knowledge": "oblivious" if attacked else "none",
        "defense": defense,
        "defense_params": json.dumps(params),
        "executions": 10,
        "draws": 2,
        "state": "done",
        "points": 200,
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.05,
        "accuracy_high": accuracy + 0.05,
        "selection_points": 100,
        "selection_accuracy": accuracy,
        "selected": False,
        "variants": [""],
        "verdict": "passed",
    }
    return {**row, **changes}


def failed(name: str, why: str) -> str:
    """The checks of a cell that failed one of two."""
    return json.dumps({name: {"state": "failed", "why": why}, "in_ball": {"state": "passed", "why": "it is"}})


ATTACKED: dict[str, Any] = {"goal": "untargeted", "epsilon": 8 / 255}


def pgd(steps: int, **changes: Any) -> dict[str, Any]:
    """The changes of a row that make it a PGD cell at so many steps."""
    return {"attack_params": json.dumps({"steps": steps}), **ATTACKED, **changes}


def adaptive(steps: int, eot: int | None = None) -> dict[str, Any]:
    """The same of an adaptive attack."""
    params = json.dumps({"steps": steps, "eot": eot})
    return {"attack_params": params, "knowledge": "adaptive", **ATTACKED}


def frame(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


def eot_pgd(accuracy: float, epsilon: float = 8 / 255, **params: Any) -> dict[str, Any]:
    """An EOT-PGD cell on MI-OL with these parameters beside the usual ones."""
    usual = {
        "branch": "whole",
        "eot": 30,
        "labels": "true",
        "loss": "cross_entropy_of_mean",
        "step_size": 1 / 255,
        "steps": 50,
    }
    told = {"attack_params": json.dumps({**usual, **params}), "knowledge": "adaptive", "epsilon": epsilon}
    return cell("mixup", "mi_ol", {"lam": 0.5}, "eot_pgd", accuracy, **told)
