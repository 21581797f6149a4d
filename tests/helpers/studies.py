"""A small study made without Ray: its classifier is untrained, its blocks are computed in this very process."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn

import mi_ray.attacks.reference
import mi_ray.study.checks
from helpers.sweeps import classifier, sweep
from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import build_classifier, weights_bytes, weights_digest
from mi_ray.plan.work import Cell, OutputWork, Plan, Work
from mi_ray.sample_pool import SamplePool
from mi_ray.store.blocks import Store
from mi_ray.store.check import check_store
from mi_ray.store.manifest import seal
from mi_ray.store.read import read_cells
from mi_ray.store.schemas import TRAINING
from mi_ray.study.folder import mark, write_study
from mi_ray.study.prepare import Study, prepare
from mi_ray.study.rows import mark_selected, write_records
from mi_ray.study.workbench import Workbench

DEFENSE_GRID: list[Any] = [
    {"gaussian_noise": {"sigma": 0.2}},
    {"mi_combined": {"lam_pl": 0.6, "lam_ol": 0.5, "threshold": [0.0, 0.01]}},
]

TINY: dict[str, Any] = {
    "points": {"count": 60, "selection": 20},
    "classifiers": classifier(architecture={"cnn_small": 2}),
    "attacks": [{"pgd": {"steps": [1, 3], "step_size": 0.05, "restarts": 2}, "epsilon": 0.1}],
    "defenses": DEFENSE_GRID,
    "executions": [1, 3],
    "draws": 2,
    "checks": "cheap",
}

ONE_GRID: dict[str, Any] = {"defenses": DEFENSE_GRID[:1]}  # what the study of the fixture `original` has of them


@dataclass(frozen=True)
class Tiny:
    """A study whose untrained classifier is in a store, with one process's workbench."""

    study: Study
    plan: Plan
    store: Store
    bench: Workbench

    def work(self, component: str | None = "gaussian_noise", *, attacked: bool = False, stop: int = 3) -> OutputWork:
        """The planned outputs of a component (None: of F itself) on the clean points or on an attack's."""
        named = [w for w in self.plan.outputs if (w.component.name if w.component else None) == component]
        return next(w for w in named if bool(w.inputs.attack) == attacked and w.inputs.stop in (0, stop))

    def pool(self) -> SamplePool:
        """The sample pool of the study itself."""
        return self.bench.pool(self.study.planner.facts.pools["mi_ol"])

    def cell(self, defense: str, *, attacked: bool, executions: int = 3) -> Cell:
        """A planned cell; the last of its kind (stop 3, the highest threshold), and no worst case."""
        plain = [c for c in self.plan.cells if c.defense.name == defense and not c.members]
        named = [c for c in plain if bool(c.inputs.attack) == attacked]
        return next(c for c in reversed(named) if defense == "none" or c.identity["executions"] == executions)


def weights_of(description: Any, seed: int = 0) -> bytes:
    """Fresh weights with a spread of predictions: a plain initialisation answers one class to everything."""
    torch.manual_seed(seed)
    made = build_classifier(description)
    last = [module for module in made.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.nn.init.normal_(last.weight, std=3.0)
    return weights_bytes(made)


def put_classifier(store: Store, key: str, description: Any, weights: int | bytes = 0) -> bytes:
    """Weights, or untrained ones of a seed, in the place where training leaves them."""
    content = weights_of(description, weights) if isinstance(weights, int) else weights
    epoch = pa.Table.from_pylist([{"epoch": 0, "lr": 0.1, "loss": 1.0, "images": 100}], schema=TRAINING)
    store.write_table(f"classifiers/{key}/training.parquet", epoch)
    store.write_bytes(f"classifiers/{key}/model.safetensors", content)
    about = {"description": description, "weights_sha256": weights_digest(content)}
    store.write_json(f"classifiers/{key}/classifier.json", about)
    return content


def tiny(folder: Path | str, *, weights: int | bytes = 0, **changes: Any) -> Tiny:
    """A study in the store of a folder or URI; other studies may be there already."""
    study = prepare(sweep(**{**TINY, **changes}))
    store = Store(folder, create=True)
    made = {
        w.key: (w.description, put_classifier(store, w.key, w.description, weights)) for w in study.planner.classifiers
    }
    return Tiny(study, study.plan(), store, Workbench(study.data(store.address, made)))


def problems_in(store: Store) -> list[str]:
    """What `mi-ray check` says of a store."""
    return [problem.text for problem in check_store(store)[0]]


Stages = Iterator[tuple[Any, Iterable[Work]]]


def _evaluated(outputs: Iterable[OutputWork]) -> Stages:
    """F's own outputs, then what takes ŷ from them."""
    found = list(outputs)
    yield "outputs", [work for work in found if work.component is None]
    yield "outputs", [work for work in found if work.component is not None]


def stages(plan: Plan) -> Stages:
    """The work of a plan in the order in which it can be done."""
    yield "adversarial", plan.attacks
    yield from _evaluated(plan.outputs)


def _do(one: Tiny, works: Stages, size: int, limit: int | None = None, *, backwards: bool = False) -> int:
    done = 0
    for _, some in works:
        todo = [item for work in some for item in one.bench.results.missing(work, size, limit)]
        for work, start, stop in reversed(todo) if backwards else todo:
            assert one.bench.compute(work, start, stop).points == stop - start
            done += 1
    return done


def compute(one: Tiny, size: int = 20, *, backwards: bool = False) -> int:
    """Do all that is missing in the order of a run; returns the number of blocks."""
    plan = one.plan
    at_once = plan.attacks_at_once(lambda method: ATTACKS[method].goes_on)
    done = sum(_do(one, iter([("adversarial", some)]), size, points) for points, some in plan.by_points(at_once))
    done += _do(one, stages(plan), size, backwards=backwards)
    for points, attacks in plan.by_points(plan.check_attacks()):
        done += _do(one, iter([("adversarial", attacks)]), size, points)
    for of_f in (True, False):
        for points, outputs in plan.by_points(plan.check_outputs()):
            some = [work for work in outputs if (work.component is None) == of_f]
            done += _do(one, iter([("outputs", some)]), size, points)
    return done


def derived(
    one: Tiny,
    cause: Callable[[str], str | None] = lambda key: None,
    advance: Callable[[int], None] = lambda count: None,
) -> list[dict[str, Any]]:
    """The rows of cells.parquet of what has been computed. cause: cell key -> why it failed, if it has."""
    points = one.study.sweep.points
    reported = (points.selection, points.count)
    return write_records(one.bench.results, one.plan, reported, lambda cell: cause(cell.key), advance).judged()


def finish(one: Tiny, size: int = 20) -> list[dict[str, Any]]:
    """Compute, derive the records and write the study, as a run does; returns the rows of cells.parquet."""
    mark(one.store, one.study, one.plan, "running")
    compute(one, size)
    rows = derived(one)
    mark_selected(rows)
    write_study(one.store, one.study, one.plan, rows, {})
    seal(one.store, one.study.sweep)
    return rows


def short_controls(patch: pytest.MonkeyPatch, *, reference: int, large: int) -> None:
    """Controls of a few queries from here on; reference, large: the steps of those that are of gradients."""
    patch.setattr(mi_ray.attacks.reference, "STEPS", reference)
    for name, value in {"LARGE_STEPS": large, "QUERIES": 5, "TRIES": 2, "FIXED_STEPS": 3}.items():
        patch.setattr(mi_ray.study.checks, name, value)


def judged(folder: Path, network: nn.Module, study: dict[str, Any]) -> Iterator[Tiny]:
    """A fixture's finished study of a trained network with all checks, of controls of a few queries; read only."""
    with pytest.MonkeyPatch.context() as patch:
        short_controls(patch, reference=10, large=20)
        one = tiny(folder, weights=weights_bytes(network), **study)
        finish(one, 100)
        yield one


def checked_cells(one: Tiny) -> list[dict[str, Any]]:
    """The rows of cells.parquet with their checks."""
    rows: list[dict[str, Any]] = read_cells(one.store, "tiny").to_dict("records")
    return [{**row, "checks": json.loads(row["checks"])} for row in rows]
