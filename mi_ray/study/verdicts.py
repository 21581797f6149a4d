"""What the checks need, gathered from a store: each cell's findings and its verdict. No Ray, a few passes of F."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from mi_ray.plan.work import WORST_CASE, Cell, Check, Inputs, Plan
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import canonical
from mi_ray.study import checks
from mi_ray.study.checks import CHECKS, NEED_PASSES, Compared, Finding
from mi_ray.study.workbench import Workbench, is_deterministic


class Verdicts:
    """The findings of a plan's cells, taken as their rows are derived and judged when all of them are there."""

    def __init__(self, bench: Workbench, plan: Plan) -> None:
        self.bench, self.plan = bench, plan
        self._cells = {cell.key: cell for cell in plan.cells}
        self._counts: dict[str, Any] = {}
        self._findings: dict[str, dict[str, Finding]] = {}
        self._of_attack: dict[str, dict[str, Finding]] = {}
        self._of_classifier: dict[str, dict[str, Finding]] = {}

    def take(self, cell: Cell, rows: pa.Table) -> None:
        """Note what a cell's own reported rows tell. Raises DamagedFileError when its images are not there."""
        self._counts[cell.key] = rows["correct_draws"].to_numpy()
        linf = float(rows["linf"].to_numpy().max())
        found = {"in_ball": checks.in_ball(linf, float(cell.identity["epsilon"]))}
        if cell.inputs.attack is not None and not cell.members:
            found |= self._attack_findings(cell.inputs)
        if cell.inputs.attack is None and cell.defense.name == "none":
            outputs = np.array(rows["probabilities"].to_pylist())
            self._of_classifier[cell.classifier] = {
                "logits_not_probabilities": checks.logits_not_probabilities(outputs),
                "randomness_declared": checks.randomness_declared(is_deterministic(self.bench.data, cell.classifier)),
            }
        self._findings[cell.key] = found

    def _attack_findings(self, inputs: Inputs) -> dict[str, Finding]:
        if inputs.name not in self._of_attack:
            low, high, zero, gradients = self.bench.results.attack_figures(inputs)
            found = {"in_box": checks.in_box(low, high)}
            if gradients:
                found["gradients_not_zero"] = checks.gradients_not_zero(zero, gradients)
            self._of_attack[inputs.name] = found
        return self._of_attack[inputs.name]

    def fill(self, rows: list[dict[str, Any]]) -> None:
        """Fill `checks` and `verdict` of every finished row, in place."""
        for check in self.plan.checks:
            found = self._control(check)
            for key in check.cells:
                if key in self._findings:
                    self._findings[key][check.name] = found
        self._compare_with_oblivious(rows)
        for row in rows:
            if row["cell"] in self._findings:
                mine = {**self._of_classifier.get(row["classifier_key"], {}), **self._findings[row["cell"]]}
                self._findings[row["cell"]] = mine
        accuracy = {row["cell"]: row["accuracy"] for row in rows if row["state"] == "done"}
        members = {cell.key: cell.members for cell in self.plan.cells if cell.members}
        for row in rows:
            if row["cell"] not in self._findings:
                continue
            mine = self._findings[row["cell"]]
            if row["attack"] == WORST_CASE:
                mine = self._of_worst_case(
                    row, [key for key in members[row["cell"]] if key in self._findings], accuracy
                )
            attacked = row["attack"] != "none"
            not_run = {
                name: Finding("not run", "no such comparison in this study") for name in CHECKS if name not in mine
            }
            row["checks"] = canonical(
                {name: found.plain() for name, found in ({**mine, **not_run} if attacked else mine).items()}
            )
            row["verdict"] = checks.verdict(mine, attacked)

    def _of_worst_case(
        self, row: Mapping[str, Any], members: list[str], accuracy: Mapping[str, float]
    ) -> dict[str, Finding]:
        """The checks of its strongest sound member: an adaptive one where there is a defense to adapt to.

        A broken adaptive attack beside an oblivious one says nothing of the defense, so where none is sound the
        strongest broken one speaks, and where none was run the controls count as not run.
        """
        behind = row["defense"] != "none"
        able = [key for key in members if not behind or self._cells[key].identity["knowledge"] == "adaptive"]
        sound = [key for key in able if all(found.state != "failed" for found in self._findings[key].values())]
        speaker = min(sound or able or members, key=lambda key: accuracy.get(key, 1.0))
        found = dict(self._findings[speaker])
        if not able:
            why = "no adaptive attack on this defense in the study: the worst case is of oblivious ones"
            found |= {name: Finding("not run", why) for name in NEED_PASSES if name in found}
        for name in ("in_ball", "in_box"):  # an image outside its threat model may decide any point
            broken = [self._findings[key][name] for key in members if name in self._findings[key]]
            found[name] = next((each for each in broken if each.state == "failed"), found[name])
        return found

    def _answers(self, cell: Cell) -> Tensor:
        """[draws, points, classes]: what the cell's defense answers on the points that checks are made on."""
        given = (cell.defense, cell.undefended, cell.components)
        return self.bench.results.answers(*given, 0, self.plan.checked)[1]

    def _control(self, check: Check) -> Finding:
        """A check that has passes of its own, on the points that they were made for."""
        labels = np.asarray(self.bench.data.labels[: self.plan.checked])
        try:
            judged, control = (
                (self._answers(cell).argmax(-1).numpy() == labels).sum(0) for cell in (check.judged, check.control)
            )
        except DamagedFileError as error:
            return Finding("not run", f"its control is not there: {error}")
        found = Compared(judged, control, check.judged.identity["draws"], random=bool(check.judged.components))
        return checks.against_control(check.name, found, self.bench.data.classes)

    def _compare_with_oblivious(self, rows: list[dict[str, Any]]) -> None:
        """Hold each adaptive cell against the strongest oblivious one of the same setting, radius and goal."""
        setting = ("classifier_key", "defense", "defense_params", "executions", "draws", "epsilon", "goal")
        done = [row for row in rows if row["state"] == "done" and row["attack"] not in ("none", WORST_CASE)]
        for row in done:
            attack = self._cells[row["cell"]].inputs.attack
            if attack is None or row["knowledge"] != "adaptive":
                continue
            name = "oblivious_not_stronger"
            if not attack.by_accuracy:
                self._findings[row["cell"]][name] = Finding("not run", "it evades a detector, and is judged by its AUC")
                continue
            rivals = [other for other in done if other["knowledge"] == "oblivious" and _same(row, other, setting)]
            if rivals:
                strongest = min(rivals, key=lambda other: other["accuracy"])
                found = Compared(self._counts[row["cell"]], self._counts[strongest["cell"]], row["draws"])
                other = self._cells[strongest["cell"]].inputs
                rival = f"oblivious {strongest['attack']} at {other.stop} steps"
                verdict = checks.against_control(name, found, self.bench.data.classes, rival)
                self._findings[row["cell"]][name] = verdict


def _same(left: Mapping[str, Any], right: Mapping[str, Any], names: tuple[str, ...]) -> bool:
    shared = set(left["variants"]) & set(right["variants"])
    return bool(shared) and all(left[name] == right[name] for name in names)
