"""What a study says of itself in its folder: sweep file, cells, examples, and how far it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mi_ray.plan.work import Plan
from mi_ray.store.blocks import Store
from mi_ray.store.keys import Values, canonical
from mi_ray.store.manifest import StudyState, write_manifest, write_sweep
from mi_ray.store.read import write_cells
from mi_ray.store.schemas import EXAMPLES, KEYS, images_column
from mi_ray.study.prepare import REGISTRIES, Study

SHOWN = 16  # A study keeps this many clean images for its figures.


def keys_of(plan: Plan) -> dict[str, list[str]]:
    """Every folder of the store that a plan refers to."""
    return {
        "classifiers": sorted(work.key for work in plan.classifiers),
        "adversarial": sorted({work.key for work in (*plan.attacks, *plan.check_attacks())}),
        "outputs": sorted({work.key for work in (*plan.outputs, *plan.check_outputs(), *plan.votes())}),
        "records": sorted(cell.key for cell in plan.cells),
    }


def appearance() -> dict[str, dict[str, object]]:
    """How figures, which import no torch, name and draw the registered methods: looks of defenses, labels of attacks."""
    looks: dict[str, object] = {name: REGISTRIES.defenses[name].look() for name in REGISTRIES.defenses}
    labels: dict[str, object] = {name: REGISTRIES.attacks[name].display_name or name for name in REGISTRIES.attacks}
    return {"defenses": looks, "attacks": labels}


def ingredients(study: Study, plan: Plan) -> dict[str, tuple[str, Values]]:
    """Key -> (its kind, the values that decide it), for every classifier, attack, output and certificate of a plan."""
    wanted = {key for keys in keys_of(plan).values() for key in keys}
    wanted |= {certificate.identity["certificate"] for certificate in plan.certificates}
    every = [planner.works.ingredients for planner in (study.planner, *study.variants.values())]
    return {key: made for found in every for key, made in found.items() if key in wanted}


def _keys_table(study: Study, plan: Plan) -> pa.Table:
    found = ingredients(study, plan)
    columns = [list(found), [kind for kind, _ in found.values()], [canonical(values) for _, values in found.values()]]
    return pa.table([pa.array(column, pa.string()) for column in columns], schema=KEYS)


def mark(store: Store, study: Study, plan: Plan, state: StudyState) -> None:
    """Say in the store how far a study is, and what it consists of, for `mi-ray status` and `gc`.

    A search finds its settings as it goes: `open` says that the keys are not all known yet.
    """
    about = {"cells": len(plan.cells), "open": study.sweep.search is not None, "appearance": appearance()}
    write_manifest(store, study.sweep.name, state, keys_of(plan), about)


def examples(study: Study) -> pa.Table:
    """The first reported points with their clean images, which a figure shows beside their adversarial versions."""
    first = study.sweep.points.selection
    points = study.points[first : min(first + SHOWN, study.sweep.points.count)]
    images = np.moveaxis(study.dataset.test_images[points], -1, 1).astype(np.float32) / 255
    columns = [pa.array(points, pa.int32()), pa.array(study.dataset.test_labels[points], pa.int32())]
    return pa.table([*columns, images_column(images)], schema=EXAMPLES)


def write_study(
    store: Store,
    study: Study,
    plan: Plan,
    rows: list[dict[str, Any]],
    about: Mapping[str, Any],
    *,
    checking: bool = False,
    certified: Sequence[Mapping[str, Any]] = (),
    failures: Mapping[str, str] | None = None,
) -> None:
    """Write study.yaml, cells.parquet and manifest.json; `manifest.seal` ends a study once its figures are there too.

    certified: the rows of certified.parquet. checking: whether the study's checks are still to be run, so that it counts as
    running. failures: causes by the key of what has failed, which may be a check or a search that no row is missing of: a study
    with any is incomplete, and the next run tries them again.
    """
    name = study.sweep.name
    write_sweep(store, study.sweep)
    write_cells(store, name, rows)
    store.write_table(f"studies/{name}/examples.parquet", examples(study))
    store.write_table(f"studies/{name}/keys.parquet", _keys_table(study, plan))
    failures = failures or {}
    whole = not failures and all(row["state"] == "done" for row in (*rows, *certified))
    state: StudyState = "complete" if whole else "incomplete"
    told = {
        "planned": study.planner.cost(plan),
        "checked_points": plan.checked,
        "cells": len(rows),
        "points": {"indices": study.points[: study.sweep.points.count], "selection": study.sweep.points.selection},
        "pool": {
            "digests": {variant: dict(planner.facts.pools) for variant, planner in study.variants.items()},
            "copies_of_test_images_left_out": study.left_out_of_pool,
        },
        "dataset": {"name": study.dataset.name, "digest": study.dataset.digest},
        "seed": study.sweep.seed,
        "device": study.planner.facts.device,
        "figures": list(study.sweep.figures),
        "appearance": appearance(),
        "failures": failures,
        **about,
    }
    write_manifest(store, name, "checking" if checking else state, keys_of(plan), told)
