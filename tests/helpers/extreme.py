"""A small stored study whose every cell is wholly right or wholly wrong, with all that any figure reads."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from helpers.frames import APPEARANCE, cell
from mi_ray.statistics import cell_summary
from mi_ray.store.blocks import Store
from mi_ray.store.read import write_cells
from mi_ray.store.schemas import ADVERSARIAL, EXAMPLES, OUTPUTS, RECORDS

CLASSES, SIDE, DRAWS, EXECUTIONS, STEPS = 4, 4, 2, 5, 10
PGD = {"attack_params": json.dumps({"steps": STEPS}), "goal": "untargeted", "epsilon": 8 / 255}
EOT = {"attack_params": json.dumps({"steps": STEPS, "eot": EXECUTIONS}), "knowledge": "adaptive"}
WORST = {"attack_params": "{}", "goal": "any", "epsilon": 8 / 255, "knowledge": "adaptive"}


def filled(schema: pa.Schema, rows: int, **columns: Any) -> pa.Table:
    """A table of a schema; columns left out are empty."""
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.table(arrays, schema=schema)


def _write_outputs(store: Store, key: str, labels: np.ndarray, right: bool, executions: int) -> None:
    """Probabilities of one draw that answer the label to every point, or another class."""
    answered = labels if right else (labels + 1) % CLASSES
    probabilities = 0.1 + 0.6 * np.eye(CLASSES)[answered]
    size = len(labels)
    told = {"point": range(size), "draw": [0] * size, "executions": [executions] * size}
    table = filled(OUTPUTS, size, **told, probabilities=list(probabilities))
    store.write_block("outputs", key, 0, size, table, {"stops": []})


def _write_records(store: Store, row: dict[str, Any], labels: np.ndarray, right: bool) -> None:
    size = len(labels)
    answered = labels if right else (labels + 1) % CLASSES
    table = filled(
        RECORDS,
        size,
        cell=[row["cell"]] * size,
        point=range(size),
        selection=[False] * size,
        label=labels,
        predicted_undefended=answered,
        predicted=answered,
        confidence_undefended=[0.7] * size,
        score=[0.0] * size,
        correct_draws=[row["draws"] * right] * size,
    )
    store.write_block("records", row["cell"], 0, size, table, {})


def _write_images(store: Store, labels: np.ndarray) -> None:
    size, pixels = len(labels), 3 * SIDE * SIDE
    grey = [np.full(pixels, 0.5, np.float32)] * size
    examples = filled(EXAMPLES, size, point=range(size), label=labels, image=grey)
    store.write_table("studies/s/examples.parquet", examples)
    told = {"restart": [0] * size, "steps": [STEPS] * size, "success": [1.0] * size, "loss": [1.0] * size}
    table = filled(ADVERSARIAL, size, point=range(size), label=labels, image=grey, **told)
    store.write_block("adversarial", "adv", 0, size, table, {"stops": [STEPS]})


def _rows() -> list[dict[str, Any]]:
    """The cells: no defense and one setting of MI-OL, clean, under PGD and EOT-PGD, and one choice of options more."""
    clean = {"undefended": "clean", "outputs": [["mixed-clean", EXECUTIONS]], "counterparts": []}
    attacked = {
        "undefended": "attacked",
        "outputs": [["mixed", EXECUTIONS]],
        "counterparts": ["mixed-clean"],
        "adversarial": "adv",
        "stop": STEPS,
    }
    ol: tuple[str, str, dict[str, Any]] = ("mixup", "mi_ol", {"lam": 0.5})
    bare: tuple[str, str, dict[str, Any]] = ("mixup", "none", {})
    one, many = {"executions": 1, "draws": 1}, {"executions": EXECUTIONS, "draws": DRAWS}
    both = {"variants": ["", "as_published"]}
    return [
        cell(*bare, "none", 0.0, work=clean, **one, **both),
        cell(*bare, "pgd", 0.0, work=attacked, **one, **PGD, **both),
        cell(*ol, "none", 0.0, work=clean, **many, **both),
        cell(*ol, "pgd", 0.0, work=attacked, **many, **PGD),
        cell(*ol, "pgd", 0.0, work=attacked, **{**many, "draws": 1}, **PGD, variants=["as_published"]),
        cell(*ol, "eot_pgd", 0.0, work=attacked, **many, **{**PGD, **EOT}),
        cell(*ol, "worst_case", 0.0, work=None, **many, **WORST),
    ]


def write_extreme_study(store: Store, *, clean: bool, attacked: bool, points: int = 3) -> None:
    """Write the study `s`: all clean inputs answered rightly or all wrongly, and so all attacked ones."""
    labels = np.arange(points) % CLASSES
    rows = _rows()
    for at, row in enumerate(rows):
        row["cell"] = f"cell{at}"
        right = clean if row["attack"] == "none" else attacked
        counts = np.full(points, row["draws"] * right)
        row |= cell_summary(counts, np.zeros(points, bool), row["draws"])
        row["work"] = None if row["work"] is None else json.dumps(row["work"])
        _write_records(store, row, labels, right)
    for key, right, executions in (
        ("clean", clean, 1),
        ("mixed-clean", clean, EXECUTIONS),
        ("attacked", attacked, 1),
        ("mixed", attacked, EXECUTIONS),
    ):
        _write_outputs(store, key, labels, right, executions)
    _write_images(store, labels)
    write_cells(store, "s", rows)
    store.write_json("studies/s/manifest.json", {"keys": {}, "appearance": APPEARANCE})
