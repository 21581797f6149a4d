"""The golden studies: everything that the program computes, small, with what came out when they were last renewed.

`tests/golden.json` holds their keys and, for each kind of processor that computed them, digests of their rows. Keys must be the
same everywhere; rows on those kinds of processors, since others round differently. They are renewed
(`python tests/helpers/golden.py`) only together with a method's `version`, in a commit that says why.
"""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import mi_ray
from helpers.studies import Tiny, compute, derived, put_classifier
from mi_ray.cluster.search import optuna_search, search_cells, search_space
from mi_ray.config import Sweep
from mi_ray.plan.work import Plan
from mi_ray.store.blocks import Store
from mi_ray.study.folder import mark, write_study
from mi_ray.study.prepare import Study, prepare
from mi_ray.study.rows import mark_selected
from mi_ray.study.workbench import Workbench
from mi_ray.sweep_files import load_sweep

FILE = Path(__file__).parent.parent / "golden.json"
SWEEPS = Path(__file__).parents[2] / "sweeps"
ROWS = ("records", "summary")  # what differs from one kind of processor to another
LEFT_OUT = [
    "seconds",
    "checks",
    "coverage",
    "accuracy_answered",
]  # Columns of cells.parquet: a clock, reasons in words (what the checks say is `verdict`), and what no golden defense has.
CLASSIFIERS: list[Any] = [
    {"name": "mixup", "architecture": {"cnn_small": {"width": 2}}, "objective": "mixup", "training": {"epochs": 2}},
    {
        "name": "erm",
        "architecture": {"resnet_small": {"width": 2}},
        "objective": "erm",
        "training": {"epochs": 3, "warmup": 1},
    },
]
DEFENSES: list[Any] = [
    "none",
    {"gaussian_noise": {"sigma": [0.02, 0.2]}},
    {"uniform_noise": {"amplitude": 0.1}},
    {"random_rotation": {"degrees": 20}},
    {"random_pad": {"crop": [[20, 28]]}},
    {"random_resize": {"crop": [[22, 30]]}},
    {"mi_pl": {"lam": [0.5, {"beta": [1, 1]}]}},
    {"mi_ol": {"lam": {"uniform": [0.4, 0.6]}}},
    {"mi_combined": {"lam_pl": 0.6, "lam_ol": 0.5, "threshold": [0.0, 0.01]}},
]
BASE: dict[str, Any] = {
    "dataset": "digits",
    "seed": 3,
    "points": {"count": 40, "selection": 10},
    "batch": 20,
    "classifiers": CLASSIFIERS,
    "defenses": DEFENSES,
    "executions": [1, 3],
    "draws": 2,
    "checks": {"level": "subset", "points": 20},
}
SEARCH: dict[str, Any] = {
    **BASE,
    "checks": "cheap",
    "points": {"count": 40, "selection": 20},
    "attacks": [{"pgd": {"steps": [2], "step_size": 0.02}, "epsilon": 0.05}],
    "defenses": [
        {"gaussian_noise": {"sigma": {"linspace": [0.01, 0.2, 5]}}},
        {"mi_ol": {"lam": {"arange": [0.3, 0.9, 0.1]}}},
    ],
    "search": {"optuna": {"sampler": "nsgaii", "trials": 6, "round": 6}},
}
STUDIES: dict[str, dict[str, Any]] = {
    "golden-search": SEARCH,
    "golden": {
        **BASE,
        "classifiers": CLASSIFIERS[:1],
        "attacks": [
            {
                "pgd": {"steps": [1, 3], "step_size": 0.02, "restarts": 2},
                "epsilon": 0.05,
                "goal": ["untargeted", "targeted"],
            },
            {
                "eot_pgd": {"steps": 2, "step_size": 0.02, "eot": 3},
                "epsilon": 0.05,
                "knowledge": "adaptive",
                "defenses": ["mi_ol"],
                "classifiers": ["mixup"],
            },
        ],
    },
    "golden-attacks": {
        **BASE,
        "classifiers": CLASSIFIERS[:1],
        "checks": "cheap",
        "executions": 3,
        "defenses": [
            "none",
            {"mi_ol": {"lam": 0.6}},
            {"mi_combined": {"lam_pl": 0.6, "lam_ol": 0.5, "threshold": 0.0}},
        ],
        "attacks": [
            {"apgd": {"steps": 5, "loss": "ce"}, "epsilon": 0.05},
            {"apgd": {"steps": 5, "loss": "targeted_dlr", "targets": 2}, "epsilon": 0.05},
            {"square": {"queries": [5, 20]}, "epsilon": "8/255"},
            {"random_noise": {"tries": [2, 5]}, "epsilon": "8/255"},
            {
                "eot_pgd": {"steps": [1, 2], "loss": "mean_cross_entropy", "draws": "fixed"},
                "epsilon": 0.05,
                "knowledge": "adaptive",
            },
            {
                "eot_pgd": {"steps": 2, "loss": "evade"},
                "epsilon": 0.05,
                "knowledge": "adaptive",
                "defenses": ["mi_combined"],
            },
            {
                "eot_pgd": {"steps": 2, "branch": "detector"},
                "epsilon": 0.05,
                "knowledge": "adaptive",
                "defenses": ["mi_combined"],
            },
            {"apgd": {"steps": 4, "loss": "dlr"}, "epsilon": 0.05, "knowledge": "adaptive"},
            {"averaged": {"steps": [1, 2], "eot": 3}, "epsilon": 0.05, "knowledge": "adaptive"},
            {
                "averaged": {"steps": 2, "step": "summed", "label": "given", "clip": True},
                "epsilon": 0.05,
                "knowledge": "adaptive",
            },
            {"square": {"queries": 5}, "epsilon": 0.05, "knowledge": "adaptive", "defenses": ["mi_ol"]},
        ],
    },
    "golden-presets": {
        **BASE,
        "classifiers": CLASSIFIERS[:1],
        "checks": "cheap",
        "variants": "each_option",
        "executions": None,
        "draws": None,
        "counterparts": True,
        "points": {"count": 20},
        "defenses": [
            "none",
            {"random_rotation": {"degrees": 20}},
            {"mi_combined": {"lam_pl": 0.6, "lam_ol": 0.5, "threshold": 0.0}},
        ],
        "options": {"executions": 3},
        "attacks": [
            {"pgd": {"steps": [2], "step_size": 0.02}, "epsilon": 0.05},
            {"adaptive": {"steps": 1, "step_size": 0.02}, "epsilon": 0.05, "knowledge": "adaptive"},
        ],
    },
    "golden-bf16": {
        **BASE,
        "precision": "bf16",
        "checks": "cheap",
        "executions": 3,
        "defenses": DEFENSES[:2],
        "attacks": [{"pgd": {"steps": [2], "step_size": 0.02}, "epsilon": 0.05}],
    },
}
TRAININGS = [
    {"name": f"t{i}", "architecture": a, "objective": o}
    for i, (a, o) in enumerate(
        [
            ("mi_resnet50", "erm"),
            ("resnet18", "mixup"),
            ({"resnet_small": {"width": 48}}, "interpolated_at"),
            ({"cnn_small": 8}, {"adversarial": {"steps": 3}}),
            ("cnn_small", "manifold_mixup"),
            ("resnet_small", "trades"),
            ("cnn_small", {"gaussian": {"sigma": 0.25}}),
        ]
    )
]


def processor() -> str:
    """What decides how floats are rounded: the kind of processor, and the version of torch."""
    about = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    told = {key.strip(): value.strip() for key, value in about.items()}
    kind = " ".join(told.get(name, "") for name in ("vendor_id", "cpu family", "model"))
    return f"{kind}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def digest(frame: pd.DataFrame) -> str:
    """Of every value, bit for bit."""
    found = hashlib.sha256()
    for name in sorted(frame.columns):
        found.update(name.encode())
        for value in frame[name]:
            numbers = isinstance(value, np.ndarray) and value.dtype != object
            found.update(value.tobytes() if numbers else repr(value).encode())
    return found.hexdigest()[:16]


def _plan(study: Study) -> Plan:
    """The study's plan; of a search with the settings of its first round, which no result decides."""
    if study.sweep.search is None:
        return study.plan()
    cells = list(study.plan().cells)
    for work in study.planner.classifiers:
        space = search_space(study.planner, work)
        search = optuna_search(space, study.sweep.search, study.sweep.seed)
        for trial in range(study.sweep.search.trials):
            proposed: Any = search.suggest(str(trial))
            cells += search_cells(study.planner, work.key, space.setting(proposed))
    return study.planner.plan_of(cells)


def keys(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """The content keys of a study, and the passes that it is planned to cost."""
    return _keys(*_prepared(name, document))


def _prepared(name: str, document: dict[str, Any]) -> tuple[Study, Plan]:
    study = prepare(Sweep.model_validate({"name": name, **document}))
    return study, _plan(study)


def _keys(study: Study, plan: Plan) -> dict[str, Any]:
    return {
        "cells": sorted(cell.key for cell in plan.cells),
        "attacks": sorted(work.key for work in (*plan.attacks, *plan.check_attacks())),
        "outputs": sorted(work.key for work in (*plan.outputs, *plan.check_outputs())),
        "classifiers": [work.key for work in plan.classifiers],
        "planned": study.planner.cost(plan),
    }


def study(name: str, document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compute a study with fresh weights: its keys, digests of its records and of its cells, how many failed."""
    prepared, plan = _prepared(name, document)
    store = Store(folder, create=True)
    made = {
        work.key: (work.description, put_classifier(store, work.key, work.description, 1))
        for work in prepared.planner.classifiers
    }
    one = Tiny(prepared, plan, store, Workbench(prepared.data(store.address, made)))
    mark(store, prepared, plan, "running")
    compute(one)
    rows = derived(one)
    mark_selected(rows)
    write_study(store, prepared, plan, rows, {})
    records = mi_ray.read_records(store, study=name).drop(columns="study").sort_values(["cell", "point"])
    cells = mi_ray.read_cells(store, study=name).drop(columns=LEFT_OUT).sort_values("cell")
    failed = int((cells["state"] != "done").sum())
    told = {"records": digest(records), "summary": digest(cells), "failed": failed, "rows": len(records)}
    return {**_keys(prepared, plan), **told}


def trainings() -> list[str]:
    """The keys of classifiers of every architecture and objective."""
    attacks = [{"pgd": {}, "epsilon": 0.1}]
    return list(keys("trainings", {**BASE, "classifiers": TRAININGS, "attacks": attacks})["classifiers"])


def sweep(file: Path) -> str:
    """A digest of every key of a packaged sweep's small variant."""
    made = prepare(load_sweep(file, smoke=True))
    plan = made.plan()
    works = (*plan.attacks, *plan.outputs, *plan.check_attacks(), *plan.check_outputs())
    found = sorted([*(cell.key for cell in plan.cells), *(work.key for work in works)])
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def main() -> None:
    """Renew the file; of studies whose keys stay, the rows of other kinds of processors stay beside those of this one."""
    torch.set_num_threads(1)
    before: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = {name: study(name, document, Path(folder) / name) for name, document in STUDIES.items()}
    rows = {name: {key: told.pop(key) for key in ROWS} for name, told in found.items()}
    found |= {"trainings": trainings(), "sweeps": {file.stem: sweep(file) for file in sorted(SWEEPS.glob("*.yaml"))}}
    same = {name for name in STUDIES if before.get(name) == found[name]}
    others = {
        kind: {name: told[name] for name in told if name in same} for kind, told in before.get("rows", {}).items()
    }
    FILE.write_text(json.dumps({**found, "rows": {**others, processor(): rows}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
