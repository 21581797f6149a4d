"""The rows of a study: of each cell its records, one row a point, and its row of cells.parquet.

Records are derived from stored outputs, a summary and a cost from the records, a verdict from the checks. No Ray, no
passes.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mi_ray.choice import frontier
from mi_ray.defenses import DEFENSES
from mi_ray.defenses.base import drop
from mi_ray.plan.work import Cell, OutputWork, Plan
from mi_ray.statistics import (
    cell_summary,
    coverage,
    cross_fitted,
    detection_auc,
    detection_gap,
    detection_rate,
)
from mi_ray.store.blocks import COST, Store
from mi_ray.store.compact import drop_records, drop_stale
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import canonical
from mi_ray.store.schemas import CELLS, RECORDS, Array, Kind
from mi_ray.study.results import Results
from mi_ray.study.verdicts import Verdicts
from mi_ray.threat_model import ABSTAINS

Row = dict[str, Any]  # A row of cells.parquet by the names of its columns, or a part of one.
Folder = tuple[Kind, str]  # Where the blocks of a piece of work are: its kind and key.


def derive(results: Results, cell: Cell, selection: int, count: int) -> pa.Table:
    """A cell's records from stored outputs: one row a point. Raises DamagedFileError when some are missing."""
    data = results.data
    undefended, answered = results.answers(cell.defense, cell.undefended, cell.components, 0, count)
    labels = np.asarray(data.labels[:count])
    stands, abstained = results.stands(cell.defense, cell.read, 0, count, cell.clean.read if cell.clean else None)
    own, first = undefended.argmax(1, keepdim=True), answered[0]
    attack_label, linf = labels, np.zeros(count, np.float32)
    if cell.inputs.attack is not None:
        _, attack_label, linf = results.adversarial(cell.inputs, 0, count)
    rows: dict[str, Any] = {
        **{name: np.repeat(value, count) for name, value in cell.identity.items()},
        "correct_draws": stands.sum(0),
        "point": np.asarray(data.points[:count]),
        "selection": np.arange(count) < selection,
        "label": labels,
        "attack_label": attack_label,
        "predicted_undefended": own[:, 0].numpy(),
        "predicted": np.where(abstained[0], ABSTAINS, first.argmax(1).numpy()),
        "confidence_undefended": undefended.amax(1).numpy(),
        "confidence": first.amax(1).numpy(),
        "score": drop(undefended, first).numpy(),
        "probabilities": list(first.numpy()),
        "linf": linf,
        "seed": np.repeat(data.seed, count),
        "device": np.repeat(data.device, count),
        "precision": np.repeat(data.precision[cell.classifier] if cell.components else "fp32", count),
    }
    return pa.table([pa.array(rows[name], RECORDS.field(name).type) for name in RECORDS.names], schema=RECORDS)


def worst_case(results: Results, cell: Cell, members: Sequence[Cell], count: int) -> pa.Table:
    """The rows of the members of a worst-case cell that are worst, point by point.

    Where a defense draws, each draw is reported under the attack that the other draws choose (fewest of them right, of
    equals the strongest over all points), so that no draw chooses what it reports. The columns of one draw are those of the
    first. With a single draw, and without randomness, it is the attack that leaves the point right least often.
    """
    tables = []
    for member in members:
        block = next(iter(results.store.blocks("records", member.key)), None)
        if block is None or (block.start, block.stop) != (0, count):
            raise DamagedFileError(f"records/{member.key} must be there: the worst case is taken over it")
        tables.append(results.store.read_block("records", member.key, block)[0])
    if cell.cross_fitted:
        stands = [
            results.stands(each.defense, each.read, 0, count, each.clean.read if each.clean else None)[0]
            for each in members
        ]
        chosen, right = cross_fitted(np.stack(stands))
        worst, correct = chosen[0], right.sum(0)
    else:
        counts = np.stack([table["correct_draws"].to_numpy() for table in tables])
        worst, correct = counts.argmin(0), counts.min(0)
    rows = pa.concat_tables(tables).take(pa.array(worst * count + np.arange(count)))
    said = {**{name: [value] * count for name, value in cell.identity.items()}, "correct_draws": correct}
    for name, values in said.items():
        column = pa.array(values, RECORDS.field(name).type)
        rows = rows.set_column(rows.schema.get_field_index(name), RECORDS.field(name), column)
    return rows.cast(RECORDS)


class DerivedRows:
    """What the records of a plan's cells say, read once; `judged` makes the rows of cells.parquet of it, at any time."""

    def __init__(self, results: Results, plan: Plan, causes: Callable[[Cell], str | None]) -> None:
        self.results, self.plan, self._causes = results, plan, causes
        self._cells = {cell.key: cell for cell in plan.cells}
        self._summaries: dict[str, Row] = {}
        self._absent: dict[str, Row] = {}
        self._scores: dict[str, Array] = {}
        self._verdicts = Verdicts(results, plan)

    def take(self, cell: Cell, records: pa.Table) -> None:
        """Note what a cell's records say. Raises DamagedFileError when the images that they are of are not there."""
        reported = records.filter(pc.invert(records["selection"]))
        self._verdicts.take(cell, reported)
        self._scores[cell.key] = reported["score"].to_numpy()
        summary = cell_summary(records["correct_draws"], records["selection"], cell.identity["draws"])
        if DEFENSES[cell.defense.name].abstains:
            summary |= coverage(reported["predicted"], reported["label"])
        if cell.cross_fitted:  # Its draws are of different attacks, so that no two of them are attempts of one.
            summary["survival"] = summary["survival"][:1]
        self._summaries[cell.key] = summary

    def miss(self, cell: Cell, error: DamagedFileError) -> None:
        """Note that something which a cell stands on is not there.

        The cell has failed where the run knows a cause, or where a cell has failed whose worst case it is; else it is
        missing.
        """
        failed = [key for key, row in self._absent.items() if row["state"] == "failed" and key in cell.members]
        cause = self._causes(cell) or (self._absent[failed[0]]["cause"] if failed else None)
        self._absent[cell.key] = {"state": "failed" if cause else "missing", "cause": cause or str(error)}

    def judged(self, *, checked: bool = True) -> list[Row]:
        """The rows of cells.parquet, but for what `mark_selected` fills.

        checked: whether the checks that need passes have been run; before that, their findings are "not run yet".
        """
        known: dict[str, Row] = {}
        rows = [self._row(cell, known) for cell in self.plan.cells]
        _add_detection(rows, self._scores)
        self._verdicts.fill(rows, checked=checked)
        return rows

    def open_draws(self) -> dict[int, list[OutputWork]]:
        """The outputs of more draws that checks ask for, by the number of points that they are needed on."""
        return self._verdicts.open_draws()

    def _row(self, cell: Cell, known: dict[str, Row]) -> Row:
        """A cell's identity, where its results are, and what they say and cost. known: costs by key, as they are read."""
        row: Row = {**cell.identity, "selected": False, "state": "done", "variants": list(cell.variants)}
        row["work"] = canonical(_work(cell))
        if cell.key in self._summaries:
            try:
                cost = cost_of(self.results, self._stands_on(cell), known)
                return {**row, **self._summaries[cell.key], **cost}
            except DamagedFileError as error:
                self.miss(cell, error)
        return {**row, **self._absent[cell.key]}

    def _stands_on(self, cell: Cell) -> set[Folder]:
        """The folders of results that a cell is derived from; of a worst case, those of all its members."""
        if cell.members:
            return set[Folder]().union(*(self._stands_on(self._cells[key]) for key in cell.members))
        found: set[Folder] = {("outputs", work.key) for work in cell.needs()}
        return found | ({("adversarial", cell.inputs.attack.key)} if cell.inputs.attack is not None else set())


def write_records(
    results: Results,
    plan: Plan,
    points: tuple[int, int],
    causes: Callable[[Cell], str | None],
    advance: Callable[[int], None],
) -> DerivedRows:
    """Derive and store the records that are not stored, and read what all of them say.

    points: (selection points, all points). causes: why a cell has failed, where a run knows it. advance: is told of each
    cell that is done.
    """
    derived = DerivedRows(results, plan, causes)
    cells = {cell.key: cell for cell in plan.cells}
    # Of a classifier that is not there nothing is known to be stale.
    there = [cell for cell in plan.cells if cell.classifier in results.data.classifiers]
    drop_stale(results.store, {cell.key: _weights(results, cell) for cell in there}, points[1])
    for cell in plan.cells:
        try:
            members = [cells[key] for key in cell.members]
            derived.take(cell, _records(results, cell, members, points))
        except DamagedFileError as error:
            derived.miss(cell, error)
        advance(1)
    return derived


def _records(results: Results, cell: Cell, members: Sequence[Cell], points: tuple[int, int]) -> pa.Table:
    """A cell's records: the stored ones, or derived and stored now. Raises DamagedFileError when outputs are missing."""
    selection, count = points
    weights = _weights(results, cell)
    table = _stored_records(results.store, cell.key, count, weights)
    if table is None:
        table = worst_case(results, cell, members, count) if cell.members else derive(results, cell, selection, count)
        said = {"abstains": True} if DEFENSES[cell.defense.name].abstains else {}
        results.store.write_block("records", cell.key, 0, count, table, {**weights, **said})
    return table


def _weights(results: Results, cell: Cell) -> dict[str, str]:
    """{"weights": SHA-256}, as a cell's records carry it. Raises DamagedFileError where the classifier is not there."""
    return {"weights": results.weights(cell.classifier)}


def _work(cell: Cell) -> dict[str, object]:
    """Where in the store the results are that a cell stands on."""
    attack = cell.inputs.attack
    if cell.members:
        return {"members": list(cell.members)}
    return {
        "adversarial": attack.key if attack else None,
        "stop": cell.inputs.stop,
        "undefended": cell.undefended.stored[0].key,
        "outputs": [[work.stored[0].key, n] for work, n in cell.components],
        **({} if cell.inputs.within is None else {"within": cell.inputs.within}),
        "counterparts": [work.key for work in cell.counterparts],
        **({"transferred": [work.key for work in cell.transferred]} if cell.transferred else {}),
    }


def _add_detection(rows: list[Row], scores: Mapping[str, Array]) -> None:
    """Fill `auc`, `detection_gap` and `tpr_at_5_fpr` of each attacked cell, in place: the drop of F_ŷ on its points against
    that on the same points clean."""
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
            row.update(_detection(scores[own], scores[row["cell"]]))


def _detection(clean: Array, adversarial: Array) -> Row:
    """How well a score tells adversarial inputs from the clean ones of the same points, [points] each."""
    gap = detection_gap(clean, adversarial)
    several = len(clean) > 1
    return {
        "auc": detection_auc(clean, adversarial),
        "tpr_at_5_fpr": detection_rate(clean, adversarial),
        "detection_gap": gap.value,
        "detection_gap_low": gap.low if several else None,
        "detection_gap_high": gap.high if several else None,
    }


def _stored_records(store: Store, key: str, count: int, weights: Mapping[str, str]) -> pa.Table | None:
    """A cell's stored rows, if they are whole and of these weights; what is not so is removed, to be derived again."""
    blocks = store.blocks("records", key)
    if [(block.start, block.stop) for block in blocks] == [(0, count)]:
        with contextlib.suppress(DamagedFileError):
            table, facts = store.read_block("records", key, blocks[0])
            if facts.get("weights") == weights.get("weights"):
                return table
    if blocks:  # Else another study may be storing them now.
        drop_records(store, key)
    return None


def cost_of(results: Results, folders: Iterable[Folder], known: dict[str, Row] | None = None) -> Row:
    """Passes and seconds of the blocks of these folders that hold points of the study (cells share them).

    known: costs by key, as they are read.
    """
    total: Row = dict.fromkeys(COST, 0)
    known = {} if known is None else known
    for kind, key in sorted(folders):
        if key not in known:
            blocks = [block for block in results.store.blocks(kind, key) if block.start < len(results.data.points)]
            facts = [results.store.block_facts(block) for block in blocks]
            known[key] = {name: sum(fact[name] for fact in facts) for name in COST}
        total = {name: total[name] + known[key][name] for name in COST}
    return total


def mark_selected(rows: list[Row]) -> None:
    """Fill `clean_accuracy` and `selected` (undominated, judged on selection points where there are some), in place.

    Settings compete within a variant; a cell of several is judged with the first.
    """
    frame = pa.Table.from_pylist(rows, schema=CELLS).to_pandas()
    found: dict[str, tuple[float, bool]] = {}
    for variant in dict.fromkeys(name for row in rows for name in row["variants"]):
        table = frontier(frame, variant)
        own = zip(table["cell"], zip(table["clean"], table["undominated"], strict=True), strict=True)
        found = {**dict(own), **found}
    for row in rows:
        if row["cell"] in found:
            row["clean_accuracy"], row["selected"] = float(found[row["cell"]][0]), bool(found[row["cell"]][1])
        elif row["attack"] == "none" and row["state"] == "done":
            row["clean_accuracy"] = row["accuracy"]
