"""Studies for a page to show: two classifiers, three defenses, attacks at two radii and their worst case, one point a row."""

import json
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa

from helpers.extreme import CLASSES, SIDE, filled
from helpers.frames import APPEARANCE, cell
from mi_ray.statistics import cell_summary
from mi_ray.store.blocks import Store
from mi_ray.store.read import write_cells
from mi_ray.store.schemas import ADVERSARIAL, CERTIFIED, EXAMPLES, OUTPUTS, RECORDS, TRAINING

POINTS, SELECTION, DRAWS = 40, 10, 3
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("none", {}),
    *(("gaussian_noise", {"sigma": sigma}) for sigma in (0.1, 0.2, 0.3)),
    *(("mi_ol", {"lam": lam}) for lam in (0.5, 0.6, 0.7)),
]
STEPS = (10, 20)


def _attacks() -> list[dict[str, Any]]:
    attacked = {"goal": "untargeted", "knowledge": "oblivious", "attack": "pgd"}
    found: list[dict[str, Any]] = [
        {"attack": "none", "attack_params": "{}", "goal": "none", "epsilon": 0.0, "knowledge": "none"}
    ]
    for epsilon in (8 / 255, 16 / 255):
        found += [{**attacked, "attack_params": json.dumps({"steps": steps}), "epsilon": epsilon} for steps in STEPS]
        worst = {"attack": "worst_case", "attack_params": "{}", "goal": "any", "knowledge": "oblivious"}
        found.append({**worst, "epsilon": epsilon})
    return found


def _checks(params: dict[str, Any]) -> dict[str, Any]:
    """What the checks say: one setting's attack fails a check."""
    state = "failed" if params.get("lam") == 0.7 else "passed"
    told = {
        "more_steps": {"state": state, "why": "60.0 % against 40.0 % under more steps"},
        "reference": {"state": "passed", "why": "the reference leaves more"},
        "more_eot": {"state": "not run", "why": "no such comparison in this study"},
    }
    return {"checks": json.dumps(told), "verdict": state}


def _records(row: dict[str, Any], right: np.ndarray, labels: np.ndarray) -> pa.Table:
    probabilities = [list(0.1 + 0.6 * np.eye(CLASSES)[label]) for label in labels]
    told = {"cell": [row["cell"]] * POINTS, "point": range(POINTS), "selection": np.arange(POINTS) < SELECTION}
    return filled(RECORDS, POINTS, **told, label=labels, correct_draws=right, probabilities=probabilities)


def write_browsed_study(store: Store, name: str, seed: int) -> None:
    """Write a study of the settings of this file, whose rows come from a seed; studies of other seeds have other rows."""
    rng, labels, rows = np.random.default_rng(seed), np.arange(POINTS) % CLASSES, []
    for classifier, (defense, params), attack in product(("left", "right"), SETTINGS, _attacks()):
        if (classifier, defense, attack["epsilon"]) == ("right", "none", 16 / 255) and "20" not in attack[
            "attack_params"
        ]:
            continue  # It is attacked in one way alone there, and has no cell of the worst case.
        draws = 1 if defense == "none" else DRAWS
        told = {**attack, "draws": draws, "executions": 1 if defense == "none" else 5, **_checks(params)}
        row = cell(
            classifier, defense, params, attack["attack"], 0.0, **{k: v for k, v in told.items() if k != "attack"}
        )
        row["cell"] = f"{name}-{len(rows)}"
        right = rng.binomial(draws, 0.95 if attack["attack"] == "none" else 0.6 - 2 * attack["epsilon"], POINTS)
        row |= cell_summary(right, np.arange(POINTS) < SELECTION, draws)
        row |= {"forward_passes": 1000, "backward_passes": 10, "seconds": 1.5, "clean_accuracy": 0.95}
        if params.get("lam") == 0.6:  # As if it left some without an answer.
            row |= {"coverage": 0.75, "accuracy_answered": 0.9}
        steps = json.loads(attack["attack_params"]).get("steps")
        key = f"{name}-{classifier}-{round(attack['epsilon'] * 255)}" if steps else None
        row["work"] = json.dumps({"adversarial": key, "stop": steps or 0, "undefended": f"{name}-f", "outputs": []})
        store.write_block("records", row["cell"], 0, POINTS, _records(row, right, labels), {})
        rows.append(row)
    _write_images(store, name, labels, {json.loads(row["work"])["adversarial"] for row in rows} - {None}, rng)
    write_cells(store, name, rows)
    manifest = {"name": name, "state": "complete", "keys": {}, "appearance": APPEARANCE, "seed": seed}
    store.write_json(f"studies/{name}/manifest.json", manifest)
    certified = {"sigma": [0.25] * 3, "n0": [10] * 3, "n": [100] * 3, "alpha": [0.01] * 3, "radius": [0.0, 0.25, 0.5]}
    certified |= {"accuracy": [0.8, 0.5, 0.25], "accuracy_low": [0.7, 0.4, 0.2], "accuracy_high": [0.9, 0.6, 0.3]}
    named = {"classifier": ["left"] * 3, "state": ["done"] * 3, "coverage": [0.9] * 3, "accuracy_answered": [0.85] * 3}
    store.write_table(f"studies/{name}/certified.parquet", filled(CERTIFIED, 3, **certified, **named))
    epochs = {"epoch": [0, 1, 2], "lr": [0.1] * 3, "loss": [2.0, 1.0, 0.5], "train_accuracy": [0.5, 0.8, 0.9]}
    curve = filled(TRAINING, 3, **epochs, test_accuracy=[0.4, 0.7, 0.8], images=[9] * 3, seconds=[1.0] * 3)
    store.write_table("classifiers/left/training.parquet", curve)


def _write_images(store: Store, name: str, labels: np.ndarray, keys: set[str], rng: np.random.Generator) -> None:
    images = rng.random((POINTS, 3 * SIDE * SIDE)).astype(np.float32)
    shown = slice(SELECTION, SELECTION + 4)
    examples = filled(EXAMPLES, 4, point=range(POINTS)[shown], label=labels[shown], image=list(images[shown]))
    store.write_table(f"studies/{name}/examples.parquet", examples)
    for key in sorted(keys):
        rows = [(point, steps) for point in range(POINTS) for steps in STEPS]
        moved = [np.clip(images[point] + 0.03, 0, 1) for point, _ in rows]
        told = {
            "point": [p for p, _ in rows],
            "steps": [s for _, s in rows],
            "restart": [0] * len(rows),
            "image": moved,
        }
        losses = {"loss": [0.1 * steps for _, steps in rows], "success": [1.0] * len(rows)}
        table = filled(ADVERSARIAL, len(rows), **told, **losses)
        store.write_block("adversarial", key, 0, POINTS, table, {"stops": list(STEPS)})
    answers = [list(0.1 + 0.6 * np.eye(CLASSES)[label]) for label in labels]
    told = {"point": range(POINTS), "draw": [0] * POINTS, "executions": [1] * POINTS, "probabilities": answers}
    store.write_block("outputs", f"{name}-f", 0, POINTS, filled(OUTPUTS, POINTS, **told), {"stops": []})
