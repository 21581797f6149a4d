"""What a study will cost before it runs: pieces of work, what is stored, passes against cell by cell, and time."""

import os
import time
from dataclasses import dataclass
from typing import Any

import torch

from mi_ray.classifiers import build_classifier, prepared
from mi_ray.records import Store
from mi_ray.study import Study
from mi_ray.work import Plan

MEASURE_SECONDS = 0.5
BACKWARD = 2.0  # a backward pass costs about two forward passes


@dataclass(frozen=True)
class Estimate:
    """rows: (kind of work, pieces, pieces stored, forward passes, backward passes). lines: what follows from them."""

    rows: list[tuple[str, int, int, int, int]]
    lines: list[str]


def forward_rate(study: Study, key: str) -> float:
    """Forward passes a second of a classifier on one thread of this machine, measured on a canonical batch."""
    work = next(work for work in study.planner.classifiers if work.key == key)
    device = torch.device(study.planner.facts.device if torch.cuda.is_available() else "cpu")
    classifier = prepared(build_classifier(work.description), device, study.sweep.precision)
    height, width = study.planner.facts.side
    x = torch.rand(study.sweep.batch * study.planner.methods.chunk, 3, height, width, device=device)
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(study.sweep.resources.block.cpus)))
    try:
        with torch.no_grad():
            classifier(x)
            began, passes = time.perf_counter(), 0
            while time.perf_counter() - began < MEASURE_SECONDS:
                classifier(x)
                passes += len(x)
            return passes / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)


def _stored(store: Store | None, kind: Any, keys: list[str], points: int) -> int:
    """How many of these keys are whole in the store, judged by the ranges of their files' names."""
    if store is None:
        return 0
    if kind == "classifiers":
        return sum(1 for key in keys if store.exists(f"classifiers/{key}/classifier.json"))
    have = 0
    for key in keys:
        covered = sum(block.stop - block.start for block in store.blocks(kind, key))
        have += covered >= points
    return have


def estimate(study: Study, store: Store | None) -> Estimate:
    """The cost of a study. A search's trials are counted as its number of trials times the mean grid-free setting."""
    planner = study.planner
    searching = study.sweep.search is not None
    plan = study.plan()
    cost, points = planner.cost(plan), planner.stored_points
    parts = [
        (
            "train",
            "classifiers",
            [w.key for w in plan.classifiers],
            cost["training_forward"],
            cost["training_backward"],
        ),
        (
            "attack",
            "adversarial",
            [w.key for w in plan.attacks],
            cost["attack_forward"],
            cost["attack_backward"],
        ),
        ("evaluate", "outputs", [w.key for w in plan.outputs], cost["evaluation_forward"], 0),
        (
            "checks",
            "outputs",
            sorted({w.key for w in plan.check_outputs()} - {w.key for w in plan.outputs}),
            cost["checks_forward"],
            cost["checks_backward"],
        ),
    ]
    rows = [
        (name, len(keys), _stored(store, kind, keys, plan.checked if name == "checks" else points), forward, backward)
        for name, kind, keys, forward, backward in parts
    ]
    lines = [f"{len(plan.cells):,} cells x {study.sweep.points.count:,} points = "
             f"{len(plan.cells) * study.sweep.points.count:,} rows"]  # fmt: skip
    distinct = cost["attack_forward"] + cost["evaluation_forward"]
    lines.append(
        f"attack and evaluation: {distinct:,} distinct forward passes; cell by cell it would be "
        f"{cost['naive_forward']:,}: {cost['naive_forward'] / max(distinct, 1):.1f} times as many"
    )
    if searching and study.sweep.search is not None:
        lines.append(f"and a search of {study.sweep.search.trials} settings on each classifier, chosen as it goes")
    lines.append(_time_line(study, plan, cost))
    return Estimate(rows, lines)


def _time_line(study: Study, plan: Plan, cost: dict[str, int]) -> str:
    rates = [forward_rate(study, work.key) for work in plan.classifiers]
    rate = len(rates) / sum(1 / rate for rate in rates)
    passes: float = sum(v for k, v in cost.items() if k.endswith("_forward") and not k.startswith("naive"))
    passes += BACKWARD * sum(v for k, v in cost.items() if k.endswith("_backward") and not k.startswith("naive"))
    seconds = passes / rate
    cores = os.cpu_count() or 1
    return (
        f"at {rate:,.0f} forward passes a second on one thread here (measured; transforms not counted): "
        f"{_duration(seconds)} of one core, {_duration(seconds / cores)} on the {cores} of this machine, if nothing is stored"
    )


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
