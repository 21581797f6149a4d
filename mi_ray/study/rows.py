"""Cells from stored outputs: the records, one row a point, and what cells.parquet says about them. No Ray, no passes."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mi_ray.plan.work import Cell, Plan
from mi_ray.statistics import cell_summary, detection_auc, frontier
from mi_ray.store.blocks import Store
from mi_ray.store.compact import drop_records, drop_stale
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import canonical
from mi_ray.store.schemas import RECORDS, Kind
from mi_ray.study.verdicts import Verdicts
from mi_ray.study.workbench import Workbench


def derive(bench: Workbench, cell: Cell, selection: int, count: int) -> pa.Table:
    """A cell's records from stored outputs: one row a point. Raises DamagedFileError when some are missing."""
    data = bench.data
    undefended, answered = bench.results.answers(cell.defense, cell.undefended, cell.components, 0, count)
    labels = np.asarray(data.labels[:count])
    right = (answered.argmax(-1).numpy() == labels).sum(0)
    own, first = undefended.argmax(1, keepdim=True), answered[0]
    attack_label, linf = labels, np.zeros(count, np.float32)
    if cell.inputs.attack is not None:
        _, attack_label, linf = bench.results.adversarial(cell.inputs, 0, count)
    rows: dict[str, Any] = {
        **{name: np.repeat(value, count) for name, value in cell.identity.items()},
        "correct_draws": right,
        "point": np.asarray(data.points[:count]),
        "selection": np.arange(count) < selection,
        "label": labels,
        "attack_label": attack_label,
        "predicted_undefended": own[:, 0].numpy(),
        "predicted": first.argmax(1).numpy(),
        "confidence_undefended": undefended.amax(1).numpy(),
        "confidence": first.amax(1).numpy(),
        "score": (undefended.gather(1, own) - first.gather(1, own))[:, 0].numpy(),
        "probabilities": list(first.numpy()),
        "linf": linf,
        "seed": np.repeat(data.seed, count),
        "device": np.repeat(data.device, count),
        "precision": np.repeat(data.precision[cell.classifier] if cell.components else "fp32", count),
    }
    return pa.table([pa.array(rows[name], RECORDS.field(name).type) for name in RECORDS.names], schema=RECORDS)


def worst_case(bench: Workbench, cell: Cell, count: int) -> pa.Table:
    """The rows of the members of a worst-case cell that are worst, point by point: fewest right draws, then the first.

    With random draws the least of several counts is a little lower than the least of their means: the count of the
    worst attack on a point is chosen by the very draws that it reports.
    """
    tables = []
    for key in cell.members:
        block = next(iter(bench.store.blocks("records", key)), None)
        if block is None or (block.start, block.stop) != (0, count):
            raise DamagedFileError(f"records/{key} must be there: the worst case is taken over it")
        tables.append(bench.store.read_block("records", key, block)[0])
    worst = np.argmin([table["correct_draws"].to_numpy() for table in tables], axis=0)
    rows = pa.concat_tables(tables).take(pa.array(worst * count + np.arange(count)))
    for name, value in cell.identity.items():
        column = pa.array([value] * count, RECORDS.field(name).type)
        rows = rows.set_column(rows.schema.get_field_index(name), RECORDS.field(name), column)
    return rows.cast(RECORDS)


def write_records(
    bench: Workbench,
    plan: Plan,
    points: tuple[int, int],
    causes: Callable[[Cell], str | None],
    advance: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Derive the records that are not stored and return the rows of cells.parquet. points: (selection, count)."""
    selection, count = points
    costs: dict[str, Any] = {}
    stands_on: dict[str, set[tuple[Kind, str]]] = {}
    scores: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    verdicts = Verdicts(bench, plan)
    drop_stale(bench.store, {cell.key: _weights(bench, cell) for cell in plan.cells}, count)
    for cell in plan.cells:
        row: dict[str, Any] = {**cell.identity, "selected": False, "state": "done", "variants": list(cell.variants)}
        row["work"] = canonical(_work(cell))
        try:
            weights = _weights(bench, cell)
            table = _stored_records(bench.store, cell.key, count, weights)
            if table is None:
                table = worst_case(bench, cell, count) if cell.members else derive(bench, cell, selection, count)
                bench.store.write_block("records", cell.key, 0, count, table, weights)
            row |= cell_summary(table["correct_draws"], table["selection"], cell.identity["draws"])
            reported = table.filter(pc.invert(table["selection"]))
            scores[cell.key] = reported["score"].to_numpy()
            verdicts.take(cell, reported)
            stands_on[cell.key] = (
                _stands_on(cell)
                if not cell.members
                else set[tuple[Kind, str]]().union(*(stands_on[key] for key in cell.members))
            )
            row |= _cost(bench, stands_on[cell.key], costs)
        except DamagedFileError as error:
            cause = causes(cell) or next(
                (other["cause"] for other in rows if other["state"] == "failed" and other["cell"] in cell.members), None
            )
            row |= {"state": "failed" if cause else "missing", "cause": cause or str(error)}
        rows.append(row)
        advance(1)
    _add_detection(rows, scores)
    verdicts.fill(rows)
    return rows


def _weights(bench: Workbench, cell: Cell) -> dict[str, str]:
    """What a cell's records say of the weights that they are of; nothing where the classifier is not there."""
    return {"weights": bench.results.weights(cell.classifier)} if cell.classifier in bench.data.classifiers else {}


def _work(cell: Cell) -> dict[str, Any]:
    """Where in the store the results are that a cell stands on."""
    attack = cell.inputs.attack
    if cell.members:
        return {"members": list(cell.members)}
    return {
        "adversarial": attack.key if attack else None,
        "stop": cell.inputs.stop,
        "undefended": cell.undefended.key,
        "outputs": [[work.key, n] for work, n in cell.components],
        "counterparts": [work.key for work in cell.counterparts],
    }


def _add_detection(rows: list[dict[str, Any]], scores: Mapping[str, Any]) -> None:
    """Fill `auc` of each attacked cell: the drop of F_ŷ on its points against that on the clean ones, in place."""
    setting = ("classifier_key", "defense", "defense_params", "executions", "draws")
    clean = {
        (variant, *(row[name] for name in setting)): row["cell"]
        for row in rows
        if row["attack"] == "none"
        for variant in row["variants"]
    }
    for row in rows:
        own = clean.get((row["variants"][0], *(row[name] for name in setting)), "")
        if row["attack"] != "none" and row["defense"] != "none" and row["cell"] in scores and own in scores:
            row["auc"] = detection_auc(scores[own], scores[row["cell"]])


def _stored_records(store: Store, key: str, count: int, weights: Mapping[str, str]) -> pa.Table | None:
    """A cell's stored rows, if they are whole and of these weights; what is not so is removed, to be derived again."""
    blocks = store.blocks("records", key)
    if [(block.start, block.stop) for block in blocks] == [(0, count)]:
        with contextlib.suppress(DamagedFileError):
            table, facts = store.read_block("records", key, blocks[0])
            if facts.get("weights") == weights.get("weights"):
                return table
    drop_records(store, key)
    return None


def _stands_on(cell: Cell) -> set[tuple[Kind, str]]:
    """The folders of results that a cell is derived from."""
    found: set[tuple[Kind, str]] = {("outputs", work.key) for work in cell.needs()}
    return found | ({("adversarial", cell.inputs.attack.key)} if cell.inputs.attack is not None else set())


def _cost(bench: Workbench, folders: Iterable[tuple[Kind, str]], known: dict[str, Any]) -> dict[str, Any]:
    """Passes and seconds of the blocks of these folders that hold points of the study (cells share them)."""
    names = ("forward_passes", "backward_passes", "seconds")
    total = dict.fromkeys(names, 0)
    for kind, key in sorted(folders):
        if key not in known:
            blocks = [block for block in bench.store.blocks(kind, key) if block.start < len(bench.data.points)]
            facts = [bench.store.block_facts(block) for block in blocks]
            known[key] = {name: sum(fact[name] for fact in facts) for name in names}
        total = {name: total[name] + known[key][name] for name in names}
    return total


def mark_selected(rows: list[dict[str, Any]]) -> None:
    """Fill `clean_accuracy` and `selected` (undominated, judged on selection points where there are some), in place.

    Settings compete within a variant; a cell of several is judged with the first.
    """
    import pandas as pd

    from mi_ray.store.schemas import CELLS

    frame = pa.Table.from_pylist(rows, schema=CELLS).to_pandas()
    found: dict[str, tuple[float, bool]] = {}
    for variant in dict.fromkeys(name for row in rows for name in row["variants"]):
        table: pd.DataFrame = frontier(frame, variant)
        own = zip(table["cell"], zip(table["clean"], table["undominated"], strict=True), strict=True)
        found = {**dict(own), **found}
    for row in rows:
        if row["cell"] in found:
            row["clean_accuracy"], row["selected"] = float(found[row["cell"]][0]), bool(found[row["cell"]][1])
        elif row["attack"] == "none" and row["state"] == "done":
            row["clean_accuracy"] = row["accuracy"]
