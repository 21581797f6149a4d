"""An excerpt of a store, small enough to be published: studies' cells, and of single points what tables and figures need.

An excerpt is a store that this program reads and draws from. Nothing can be computed from it, as it has no images, no
weights and no probabilities of single points; `mi-ray check` says so of every cell.
"""

import itertools
import json
from collections.abc import Collection, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from mi_ray.store.blocks import COST, Block, Store
from mi_ray.store.compact import OWN, compact
from mi_ray.store.read import cells_table, write_cells
from mi_ray.store.schemas import IDENTITY, RECORDS

FILES = ("manifest.json", "study.yaml", "cells.parquet")
OF_POINTS = {*IDENTITY, "correct_draws", "point", "selection", "label", "seed", "device", "precision"}
GROUP_ROWS = 100_000  # five times what a store has: an excerpt is to be small, and is read as a whole
STEP = 2.0**-11  # of probabilities and scores: finer than any interval of theirs by a factor of ten
OF_DETECTION = {"score", "confidence_undefended", "predicted_undefended"}
# The columns of cells.parquet that are made of a cell's rows, and of those of its clean counterpart.
OF_ROWS = (
    *("points", "accuracy", "accuracy_low", "accuracy_high", "interval", "survival", "coverage", "accuracy_answered"),
    *("auc", "detection_gap", "detection_gap_low", "detection_gap_high", "tpr_at_5_fpr"),
    *("clean_accuracy", "selection_points", "selection_accuracy"),
)


class Compared(NamedTuple):
    """A cell of a study whose rows were taken from another store, on how many points both have it and how many differ."""

    study: str
    cell: str
    points: int
    different: int


def excerpt(
    studies: Mapping[str, Store],
    out: Store,
    *,
    detection: Collection[str] = (),
    outputs: Collection[str] = (),
    join: bool = False,
) -> list[Compared]:
    """Copy an excerpt of studies into another store, which is compacted then.

    studies: each with the store that has it; one of these may itself be an excerpt. out: a store without these studies.
    detection: of these studies the scores of Fig. 3(a) are kept; outputs: of these the mean outputs that Fig. 2 is drawn
    from, both in steps of `STEP`. Columns that an excerpt leaves out are null. A cell of several studies is taken once,
    from where it has the most points, of as many from where it has scores, else from the first.

    join: what becomes of a cell of which two stores have different rows, as where they come from two kinds of processor.
    Its rows are those of one store, and the studies' cells.parquet say what these rows say. Without `join` such a cell
    raises ValueError. So does a store that does not have its study. Returns how the cells compare of which two stores have
    rows.
    """
    of_study = {study: _finished(store, study) for study, store in studies.items()}
    for study, store in studies.items():
        for name in FILES:
            out.write_bytes(f"studies/{study}/{name}", store.read_bytes(f"studies/{study}/{name}"))
        if study in outputs:
            _copy_outputs(store, out, study, {key for work in of_study[study].values() for key in _outputs_of(work)})
    scored = {cell for study in detection if study in studies for cell in of_study[study]}
    taken: dict[str, tuple[str, Store, list[Block], bool]] = {}
    for study, cell in [(study, cell) for study, cells in of_study.items() for cell in cells]:
        store, held = studies[study], taken.get(cell)
        if held is not None and not join and _different(cell, held[1], store)[1]:
            raise ValueError(
                f"studies must have the same rows of a cell that they share; {study} has others of {cell}, as where it "
                "was computed on another kind of processor"
            )
        # Of as many points those of a study with detection, since an excerpt has no scores elsewhere.
        blocks, scores = store.blocks("records", cell), study in detection
        if held is None or (blocks[-1].stop, scores) > (held[2][-1].stop, held[3]):
            taken[cell] = (study, store, blocks, scores)
    for cell, (_, store, blocks, _) in taken.items():
        for block in blocks:
            table, facts = store.read_block("records", cell, block)
            kept = OF_POINTS | (OF_DETECTION if cell in scored else set())
            out.write_block("records", cell, block.start, block.stop, _thinned(table, kept), _own(facts))
    found = [
        each
        for study, store in studies.items()
        for cell in of_study[study]
        if (each := Compared(study, cell, *_different(cell, store, taken[cell][1]))).points
    ]
    for study in {each.study: None for each in found if each.different}:
        others = [each.cell for each in found if each.study == study and each.different]
        _follow(out, study, {cell: taken[cell][0] for cell in others})
    compact(out, group_rows=GROUP_ROWS)
    out.refresh()
    return found


def _finished(store: Store, study: str) -> dict[str, dict[str, object]]:
    """The cells of a study that are done, each with the work that it is derived from."""
    cells = cells_table(store, study).select(["cell", "state", "work"]).to_pylist()
    return {row["cell"]: json.loads(row["work"]) for row in cells if row["state"] == "done"}


def _different(cell: str, one: Store, other: Store) -> tuple[int, int]:
    """(how many points of a cell two stores both have, on how many of these they disagree); (0, 0) of one store."""
    if one is other:
        return 0, 0
    left, right = (
        {
            row["point"]: row["correct_draws"]
            for block in store.blocks("records", cell)
            for row in store.read_block("records", cell, block)[0].select(["point", "correct_draws"]).to_pylist()
        }
        for store in (one, other)
    )
    both = left.keys() & right.keys()
    return len(both), sum(left[point] != right[point] for point in both)


def _follow(out: Store, study: str, cells: Mapping[str, str]) -> None:
    """Let a study's cells.parquet say of some cells what their rows say. cells: to the study that the rows are from."""
    said = {
        other: {row["cell"]: row for row in cells_table(out, other).to_pylist()}
        for other in dict.fromkeys(cells.values())
    }
    rows = cells_table(out, study).to_pylist()
    for row in rows:
        if row["cell"] in cells:
            row |= {name: said[cells[row["cell"]]][row["cell"]][name] for name in OF_ROWS}
    write_cells(out, study, rows)


def _copy_outputs(store: Store, out: Store, study: str, keys: Collection[str]) -> None:
    """Copy the outputs on a study's points, the blocks of a key as one: a file's own facts take more room than fifty points."""
    count = yaml.safe_load(store.read_bytes(f"studies/{study}/study.yaml"))["points"]["count"]
    for key in sorted(keys):
        # Another study may have passed more points through the same setting.
        blocks = [block for block in store.blocks("outputs", key) if block.start < count]
        read = [store.read_block("outputs", key, block) for block in blocks]
        if any(left.stop > right.start for left, right in itertools.pairwise(blocks)):
            # Two studies that ran at once have cut these points otherwise, each with what it asked for.
            for block, (rows, facts) in zip(blocks, read, strict=True):
                out.write_block("outputs", key, block.start, block.stop, _rounded(rows, "probabilities"), _own(facts))
            continue
        table = _rounded(pa.concat_tables([rows for rows, _ in read]).combine_chunks(), "probabilities")
        cost = {name: sum(facts[name] for _, facts in read) for name in COST}
        out.write_block("outputs", key, blocks[0].start, blocks[-1].stop, table, _own(read[0][1]) | cost)


def _rounded(table: pa.Table, *names: str) -> pa.Table:
    """The rows with these columns in steps of `STEP`, which halves the room that they take."""
    for name in names:
        column = table[name].combine_chunks()
        values = pc.multiply(
            pc.round(pc.divide(column.values if pa.types.is_list(column.type) else column, STEP)), STEP
        )
        values = values.cast(pa.float32())
        if pa.types.is_list(column.type):
            values = pa.ListArray.from_arrays(column.offsets, values)
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    return table


def _thinned(table: pa.Table, kept: set[str]) -> pa.Table:
    """The rows with every column that is not kept made null, and scores in steps of `STEP`."""
    columns = [table[field.name] if field.name in kept else pa.nulls(len(table), field.type) for field in RECORDS]
    return _rounded(pa.Table.from_arrays(columns, schema=RECORDS), "score", "confidence_undefended")


def _own(facts: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in facts.items() if name not in OWN}


def _outputs_of(work: dict[str, object]) -> list[str]:
    """The keys of the mean outputs that a cell is derived from, its counterparts' among them."""
    named = [work.get("undefended"), *(work.get("counterparts") or []), *(work.get("transferred") or [])]  # type: ignore[misc]
    pairs = work.get("outputs") or []
    return [str(key) for key in (*named, *(pair[0] for pair in pairs)) if key]  # type: ignore[attr-defined]
