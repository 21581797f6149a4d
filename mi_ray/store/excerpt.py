"""An excerpt of a store, small enough to be published: studies' cells, and of single points what tables and figures need.

An excerpt is a store that this program reads and draws from. Nothing can be computed from it, as it has no images, no
weights and no probabilities of single points; `mi-ray check` says so of every cell.
"""

import json

import pyarrow as pa
import yaml

from mi_ray.store.blocks import Store
from mi_ray.store.compact import compact
from mi_ray.store.read import cells_table
from mi_ray.store.schemas import IDENTITY, RECORDS

FILES = ("manifest.json", "study.yaml", "cells.parquet")
OF_POINTS = {*IDENTITY, "correct_draws", "point", "selection", "label", "seed", "device", "precision"}
OF_DETECTION = {"score", "confidence_undefended", "predicted_undefended"}


def excerpt(store: Store, out: Store, study: str, *, detection: bool = False, outputs: bool = False) -> None:
    """Copy a study's excerpt into another store, which is compacted then.

    detection: whether the scores of Fig. 3(a) are in it; outputs: whether the mean outputs are that Fig. 2 is drawn from.
    Columns that an excerpt leaves out are null. A cell that is in the other store already stays as it is there, so the
    studies with detection come first. Raises ValueError when the store has no such study.
    """
    cells = cells_table(store, study)
    for name in FILES:
        out.write_bytes(f"studies/{study}/{name}", store.read_bytes(f"studies/{study}/{name}"))
    kept = OF_POINTS | (OF_DETECTION if detection else set())
    done = [row for row in cells.select(["cell", "state", "work"]).to_pylist() if row["state"] == "done"]
    for row in done:
        for block in () if out.blocks("records", row["cell"]) else store.blocks("records", row["cell"]):
            table, facts = store.read_block("records", row["cell"], block)
            out.write_block("records", row["cell"], block.start, block.stop, _thinned(table, kept), _own(facts))
    if outputs:
        count = yaml.safe_load(store.read_bytes(f"studies/{study}/study.yaml"))["points"]["count"]
        for key in sorted({key for row in done for key in _outputs_of(json.loads(row["work"]))}):
            # Another study may have passed more points through the same setting.
            for block in (block for block in store.blocks("outputs", key) if block.start < count):
                table, facts = store.read_block("outputs", key, block)
                out.write_block("outputs", key, block.start, block.stop, table, _own(facts))
    compact(out)
    out.refresh()


def _thinned(table: pa.Table, kept: set[str]) -> pa.Table:
    """The rows with every column that is not kept made null."""
    columns = [table[field.name] if field.name in kept else pa.nulls(len(table), field.type) for field in RECORDS]
    return pa.Table.from_arrays(columns, schema=RECORDS)


def _own(facts: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in facts.items() if name not in ("kind", "key", "start", "stop")}


def _outputs_of(work: dict[str, object]) -> list[str]:
    """The keys of the mean outputs that a cell is derived from, its counterparts' among them."""
    named = [work.get("undefended"), *(work.get("counterparts") or []), *(work.get("transferred") or [])]  # type: ignore[misc]
    pairs = work.get("outputs") or []
    return [str(key) for key in (*named, *(pair[0] for pair in pairs)) if key]  # type: ignore[attr-defined]
