"""The findings of every check on every cell of a study, gathered from its store, and each cell's verdict.

What each check compares and when it fails is the table in `checks`. No Ray, and no passes but five of F on a few images.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mi_ray.classifiers import classifier_from_bytes, prepared
from mi_ray.data import to_unit
from mi_ray.plan.work import WORST_CASE, Cell, Check, Inputs, Plan
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import canonical
from mi_ray.store.schemas import Array
from mi_ray.study import checks
from mi_ray.study.checks import CHECKS, NEED_PASSES, OBLIVIOUS, Compared, Finding
from mi_ray.study.results import Results, StudyData

REPEATED = 8  # Images on which a classifier is asked five times whether it is deterministic.
SETTING = ("classifier_key", "defense", "defense_params", "executions", "draws", "epsilon", "goal")  # that rivals share
NOT_YET = Finding("not run", "not run yet")
NO_COMPARISON = Finding("not run", "no such comparison in this study")
Row = dict[str, Any]  # A row of cells.parquet by the names of its columns.
Findings = dict[str, Finding]  # By the name of the check.


def is_deterministic(data: StudyData, classifier: str) -> bool:
    """Whether F gives the same output five times, bit for bit. It is asked on the CPU where this machine has no GPU."""
    device = torch.device(data.device if data.device == "cpu" or torch.cuda.is_available() else "cpu")
    network = prepared(classifier_from_bytes(*data.classifiers[classifier]), device, "fp32")
    x = to_unit(data.images[:REPEATED]).to(device)
    with torch.no_grad():
        found = [network(x) for _ in range(5)]
    return all(torch.equal(found[0], other) for other in found[1:])


class Verdicts:
    """What is known of a plan's cells: noted as each is derived (`take`), and judged when all are there (`fill`)."""

    def __init__(self, results: Results, plan: Plan) -> None:
        self.results, self.plan = results, plan
        self._cells = {cell.key: cell for cell in plan.cells}
        self._counts: dict[str, Array] = {}
        self._of_cell: dict[str, Findings] = {}
        self._of_attack: dict[str, Findings] = {}
        self._of_classifier: dict[str, Findings] = {}

    def take(self, cell: Cell, reported: pa.Table) -> None:
        """Note what a cell's reported records tell. Raises DamagedFileError when its images are not there."""
        linf = float(reported["linf"].to_numpy().max())
        found = {"in_ball": checks.in_ball(linf, float(cell.identity["epsilon"]))}
        if cell.inputs.attack is not None and not cell.members:
            found |= self._attack_findings(cell.inputs)
        if cell.inputs.attack is None and cell.defense.name == "none":
            outputs = np.array(reported["probabilities"].to_pylist())
            self._of_classifier[cell.classifier] = {
                "logits_not_probabilities": checks.logits_not_probabilities(outputs),
                "randomness_declared": checks.randomness_declared(is_deterministic(self.results.data, cell.classifier)),
            }
        self._counts[cell.key] = reported["correct_draws"].to_numpy()
        self._of_cell[cell.key] = found

    def _attack_findings(self, inputs: Inputs) -> Findings:
        """What the images of an attack tell, which all cells on them share."""
        if inputs.name not in self._of_attack:
            low, high, zero, gradients = self.results.attack_figures(inputs)
            found = {"in_box": checks.in_box(low, high)}
            if gradients:
                found["gradients_not_zero"] = checks.gradients_not_zero(zero, gradients)
            self._of_attack[inputs.name] = found
        return self._of_attack[inputs.name]

    def fill(self, rows: Sequence[Row], *, checked: bool = True) -> None:
        """Fill `checks` and `verdict` of every finished row, in place.

        checked: whether the checks that need passes have been run; before that they are "not run yet".
        """
        done = {row["cell"]: row for row in rows if row["state"] == "done"}
        findings = {
            key: {**self._of_classifier.get(row["classifier_key"], {}), **self._of_cell[key]}
            for key, row in done.items()
        }
        for check in self.plan.checks:
            found = self._control(check) if checked else NOT_YET
            for key in check.cells:
                if key in findings:
                    findings[key][check.name] = found
        for key, rival in self._rivals(done).items():
            findings[key][OBLIVIOUS.name] = rival
        for key, row in done.items():
            mine, attacked = findings[key], row["attack"] != "none"
            if row["attack"] == WORST_CASE:
                mine = self._of_worst_case(row, findings, done)
            every = {**mine, **{name: NO_COMPARISON for name in CHECKS if attacked and name not in mine}}
            row["checks"] = canonical({name: found.plain() for name, found in every.items()})
            row["verdict"] = checks.verdict(mine, attacked)

    def _of_worst_case(self, row: Row, findings: Mapping[str, Findings], done: Mapping[str, Row]) -> Findings:
        """The checks of its strongest sound member: an adaptive one where there is a defense to adapt to.

        A broken adaptive attack beside an oblivious one says nothing of the defense, so where none is sound the
        strongest broken one speaks, and where none was run the controls count as not run.
        """
        members = [key for key in self._cells[row["cell"]].members if key in findings]
        if not members:
            return findings[row["cell"]]
        behind = row["defense"] != "none"
        able = [key for key in members if not behind or done[key]["knowledge"] == "adaptive"]
        sound = [key for key in able if all(found.state != "failed" for found in findings[key].values())]
        speaker = min(sound or able or members, key=lambda key: float(done[key]["accuracy"]))
        mine = dict(findings[speaker])
        if not able:
            why = "no adaptive attack on this defense in the study: the worst case is of oblivious ones"
            mine |= {name: Finding("not run", why) for name in NEED_PASSES if name in mine}
        for name in ("in_ball", "in_box"):  # An image outside its threat model may decide any point.
            broken = [findings[key][name] for key in members if name in findings[key]]
            mine[name] = next((each for each in broken if each.state == "failed"), mine[name])
        return mine

    def _control(self, check: Check) -> Finding:
        """A check that has passes of its own, on the points that they were made for."""
        try:
            judged, control = (self._right_draws(cell) for cell in (check.judged, check.control))
        except DamagedFileError as error:
            return Finding("not run", f"its control is not there: {error}")
        found = Compared(judged, control, check.judged.identity["draws"], random=bool(check.judged.components))
        return checks.against_control(check.name, found, self.results.data.classes)

    def _right_draws(self, cell: Cell) -> Array:
        """[points]: in how many draws the cell's defense is right, on the points that checks are made on."""
        labels = np.asarray(self.results.data.labels[: self.plan.checked])
        _, answered = self.results.answers(cell.defense, cell.undefended, cell.components, 0, self.plan.checked)
        right: Array = (answered.argmax(-1).numpy() == labels).sum(0)
        return right

    def _rivals(self, done: Mapping[str, Row]) -> Findings:
        """Each adaptive cell, by its key, against the strongest oblivious one of the same setting, radius and goal."""
        found: Findings = {}
        oblivious = [row for row in done.values() if row["knowledge"] == "oblivious" and row["attack"] != WORST_CASE]
        for key, row in done.items():
            attack = self._cells[key].inputs.attack
            if attack is None or row["knowledge"] != "adaptive" or row["attack"] == WORST_CASE:
                continue
            if not attack.by_accuracy:
                found[key] = Finding("not run", "it evades a detector, and is judged by its AUC")
                continue
            rivals = [other for other in oblivious if _same_setting(row, other)]
            if rivals:
                found[key] = self._against_rival(row, min(rivals, key=lambda other: float(other["accuracy"])))
        return found

    def _against_rival(self, row: Row, rival: Row) -> Finding:
        """The finding of two cells that the study has anyway, on all reported points."""
        compared = Compared(self._counts[row["cell"]], self._counts[rival["cell"]], row["draws"])
        name = f"oblivious {rival['attack']} at {self._cells[rival['cell']].inputs.stop} steps"
        return checks.against_control(OBLIVIOUS.name, compared, self.results.data.classes, name)


def _same_setting(left: Row, right: Row) -> bool:
    """Whether two cells are of the same setting, radius and goal, in a variant that asks for both."""
    shared = set(left["variants"]) & set(right["variants"])
    return bool(shared) and all(left[name] == right[name] for name in SETTING)
