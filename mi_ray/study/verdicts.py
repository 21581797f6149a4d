"""The findings of every check on every cell of a study, gathered from its store, and each cell's verdict.

What each check compares and when it fails is the table in `checks`. No Ray, and no passes but five of F on a few images.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from mi_ray.attacks import ATTACKS
from mi_ray.data import to_unit
from mi_ray.defenses import DEFENSES
from mi_ray.defenses.base import CHUNK
from mi_ray.plan.cost import Costs
from mi_ray.plan.work import AttackWork, Cell, Check, Inputs, OutputWork, Plan
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import canonical
from mi_ray.store.schemas import Array
from mi_ray.study import battery, checks
from mi_ray.study.checks import (
    CHECKS,
    NEED_PASSES,
    OPTIONAL,
    Evidence,
    Finding,
    compared,
    not_run,
    settled,
)
from mi_ray.study.results import Results, StudyData
from mi_ray.threat_model import NORMS, WORST_CASE, ThreatModel

REPEATED = 8  # Images on which a classifier is asked five times whether it is deterministic.
# The columns of cells.parquet in which rivals are alike.
SETTING = ("classifier_key", "defense", "defense_params", "executions", "draws", "norm", "epsilon", "goal")
NOT_YET = not_run("not run yet")
NO_COMPARISON = not_run("no such comparison in this study")
LEFT_OUT = not_run(
    "it is made of the first setting of each defense, and only as far as all checks cost no more than the study, unless "
    "`checks: {black_box: always}` asks for it"
)
NOT_IN_PIXELS = not_run("it is of changes of pixels; the attack turns and shifts the image")
NOT_IN_NORM = not_run("what it holds an attack against does not attack in this norm")
ITS_MEMBERS = not_run("its members say it")
QUERIES_ALONE = not_run("the attack follows no gradient; it is not held against one that does")
MORE_DRAWS = (10, 30)  # Behind a random defense a check whose p-value leaves it open is judged again by so many draws.
CLEAR, OPEN = 1e-4, 0.25  # A p-value between these two leaves a check open.
# In place of OPEN for the controls of `has_limit`: the small gain of a longer run is not worth more draws.
DOUBTFUL = 0.01
Row = dict[str, Any]  # A row of cells.parquet by the names of its columns.
Findings = dict[str, Finding]  # By the name of the check.


def is_deterministic(data: StudyData, classifier: str) -> bool:
    """Whether F gives the same output five times, bit for bit. It is asked on the CPU where this machine has no GPU."""
    device = torch.device(data.device if data.device == "cpu" or torch.cuda.is_available() else "cpu")
    network = data.prepared(classifier, device, "fp32")
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
        self._farthest: dict[str, float] = {}
        self._of_free: dict[tuple[str, str], Finding] = {}
        # What the checks of a cell share: each would read the same images and outputs again.
        self._moved: dict[tuple[str, int], tuple[Array, Array, Array]] = {}
        self._answered: dict[tuple[str, str, int, int], battery.Answers] = {}

    def take(self, cell: Cell, reported: pa.Table) -> None:
        """Note what a cell's reported records tell. Raises DamagedFileError when its images are not there."""
        found = {"in_ball": self._in_ball(cell, reported)}
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

    def _in_ball(self, cell: Cell, reported: pa.Table) -> Finding:
        """Whether a cell's images are in their ball. Of a worst case in another norm than linf its members say it."""
        threat = ThreatModel(cell.identity["epsilon"], norm=cell.identity["norm"])
        if cell.members and threat.norm != "linf":
            return ITS_MEMBERS
        if threat.norm == "linf":
            return checks.in_ball(float(reported["linf"].to_numpy().max()), threat)
        if cell.inputs.name not in self._farthest:
            count = len(self.results.data.points)
            self._farthest[cell.inputs.name] = float(self.results.distances(cell.inputs, count).max())
        return checks.in_ball(self._farthest[cell.inputs.name], threat)

    def _attack_findings(self, inputs: Inputs) -> Findings:
        """What the images of an attack tell, which all cells on them share."""
        if inputs.name not in self._of_attack:
            self._of_attack[inputs.name] = {"in_box": checks.in_box(*self.results.pixel_range(inputs))}
        return self._of_attack[inputs.name]

    def open_draws(self) -> dict[int, list[OutputWork]]:
        """The outputs of more draws that checks ask for before they say anything, by the points that they are needed on."""
        asked: dict[int, dict[str, OutputWork]] = {}
        for check in self.plan.checks:
            _, draws = self._finding(check)
            if draws is not None:
                for work in _asked_of(check, draws):
                    asked.setdefault(check.points, {})[f"{work.key} {work.executions}"] = work
        return {points: list(works.values()) for points, works in asked.items()}

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
            found = self._told(check, checked)
            for key in check.cells:
                if key in findings:
                    findings[key][check.name] = found
        for key, rivals in self._rivals(done).items():
            findings[key] |= rivals
        findings = {key: settled(found) for key, found in findings.items()}
        for key, row in done.items():
            mine, attacked = findings[key], row["attack"] != "none"
            if row["attack"] == WORST_CASE:
                mine = self._of_worst_case(row, findings, done)
            every = {**mine, **{name: self._absent(key, name) for name in CHECKS if attacked and name not in mine}}
            row["checks"] = canonical({name: found.plain() for name, found in every.items()})
            row["verdict"] = checks.verdict(mine, attacked)

    def _told(self, check: Check, checked: bool) -> Finding:
        """What a check says; of one without a control once and for all, since its images do not change."""
        if check.control is not None:
            return self._finding(check)[0] if checked else NOT_YET
        place = (check.name, check.judged.key)
        if place not in self._of_free:
            self._of_free[place] = self._finding(check)[0]
        return self._of_free[place]

    def _absent(self, cell: str, check: str) -> Finding:
        """Why a check says nothing of a cell that it was not planned for."""
        norm = self._cells[cell].identity["norm"]
        if not checks.is_made_in(norm, check):
            return NOT_IN_NORM if norm in NORMS else NOT_IN_PIXELS
        members = [self._cells[key] for key in self._cells[cell].members if key in self._cells]
        judged = [each.inputs for each in members or [self._cells[cell]] if each.inputs.attack is not None]
        following = [each for each in judged if each.attack and ATTACKS[each.attack.method].follows_gradients]
        if judged and not following:
            return QUERIES_ALONE
        able = any(each.threat.leaves_label for each in following)
        return LEFT_OUT if able and checks.is_dear(check) else NO_COMPARISON

    def _of_worst_case(self, row: Row, findings: Mapping[str, Findings], done: Mapping[str, Row]) -> Findings:
        """The checks of its strongest member that has passed: where there is a defense, one that was made on it, with gradients
        or without.

        A broken adaptive attack beside an oblivious one says nothing of the defense, and one that nothing judges does not make
        up for one that is refused, so where none has passed the strongest speaks, on which the number rests. Where none was
        run the strongest oblivious one that has passed does, and the controls count as not run.
        """
        members = [key for key in self._cells[row["cell"]].members if key in findings]
        if not members:
            return findings[row["cell"]]
        behind = row["defense"] != "none"
        able = [key for key in members if not behind or done[key]["knowledge"] != "oblivious"]
        asked = able or members
        passed = [key for key in asked if checks.verdict(findings[key], attacked=True) == "passed"]
        speaker = min(passed or asked, key=lambda key: float(done[key]["accuracy"]))
        mine = dict(findings[speaker])
        if not able:
            why = "no adaptive attack on this defense in the study: the worst case is of oblivious ones"
            mine |= {name: not_run(why) for name in (*NEED_PASSES, *OPTIONAL) if name in mine}
        for name in ("in_ball", "in_box"):  # An image outside its threat model may decide any point.
            broken = [findings[key][name] for key in members if name in findings[key]]
            mine[name] = next((each for each in broken if each.state == "failed"), mine[name])
        return mine

    def _finding(self, check: Check) -> tuple[Finding, int | None]:
        """(what a check says, the draws that it asks for before it says more, if it does).

        Which draws it is judged by depends on its p-value by fewer, and not on what happens to be stored.
        """
        try:
            draws = check.judged.identity["draws"]
            found = self._by_draws(check, draws)
        except DamagedFileError as error:
            return not_run(f"its control is not there: {error}"), None
        for more in further_draws(check):
            if found.p is None or not CLEAR < found.p < (DOUBTFUL if checks.has_limit(check.name) else OPEN):
                break
            try:
                found = self._by_draws(check, more)
            except DamagedFileError:
                return found, more
        return found, None

    def _by_draws(self, check: Check, draws: int) -> Finding:
        """What a check says by so many draws. Raises DamagedFileError when something that it needs is not stored."""
        judged, clean, control = (
            None if cell is None else self._answers(cell, draws, check.points)
            for cell in (check.judged, check.clean, check.control)
        )
        assert judged is not None
        assert clean is not None
        inputs = check.judged.inputs
        assert inputs.attack is not None
        moved, zero, gradients = self._images(inputs, check.points)
        rival = "" if check.control is None else _named(check.control)
        evidence = Evidence(
            judged=judged,
            clean=clean,
            control=control,
            moved=moved,
            zero=zero,
            gradients=gradients,
            epsilon=inputs.threat.epsilon,
            classes=self.results.data.classes,
            rival=rival,
            wider=0.0 if check.control is None else check.control.identity["epsilon"],
            success=None if check.control is None else self.results.success(check.control.inputs, check.points),
            left_alone=self._left_alone(inputs, moved) if ATTACKS[inputs.attack.method].stops_early else None,
            checked=self.plan.checked,
            random=DEFENSES.make(*check.judged.defense).is_random(),
            reach=self._reach(check),
        )
        return checks.judge(check.name, evidence)

    def _reach(self, check: Check) -> float | None:
        """How far the control in a large ball has got from the clean images at the most, where no parameter lengthens its steps.

        None of an attack that looks for the nearest image, or returns only what it has found: what it found may lie near, and
        how far it went where it found nothing cannot be seen.
        """
        attack = None if check.control is None else check.control.inputs.attack
        if check.name != checks.LARGE_BALL or check.control is None or attack is None:
            return None
        method = ATTACKS[attack.method]
        if "step_size" in attack.values or method.minimal or method.only_found:
            return None
        return float(self._images(check.control.inputs, check.points)[0].max())

    def _left_alone(self, inputs: Inputs, moved: Array) -> npt.NDArray[np.bool_]:
        """[P] Which points an attack has not moved because they failed in all draws of its own."""
        failed = self.results.success(inputs, len(moved)).min(0) == 1
        found: npt.NDArray[np.bool_] = failed & (moved == 0)
        return found

    def _images(self, inputs: Inputs, points: int) -> tuple[Array, Array, Array]:
        """How far an attack moved each of the first points; of its gradients there, how many were zero and how many taken."""
        place = inputs.name, points
        if place not in self._moved:
            moved = self.results.distances(inputs, points)
            self._moved[place] = (moved, *self.results.gradients(inputs, points))
        return self._moved[place]

    def _answers(self, cell: Cell, draws: int, points: int) -> battery.Answers:
        """What a cell's defense answers on the first points, by so many draws."""
        place = cell.key, cell.inputs.name, draws, points
        if place not in self._answered:
            drawn, labels = _drawn(cell, draws), np.asarray(self.results.data.labels[:points]).astype(np.int64)
            _, answered = self.results.answers(drawn.defense, drawn.undefended, drawn.components, 0, points)
            self._answered[place] = battery.answers(answered.numpy(), labels)
        return self._answered[place]

    def _rivals(self, done: Mapping[str, Row]) -> dict[str, Findings]:
        """The findings of `oblivious_not_stronger` and `peers`, by the key of the attacked cell.

        Attacks that follow gradients are held against the study's other attacks on the same setting, radius and goal: an adaptive
        one against the strongest oblivious one, and each against its peers, which have the same knowledge (see `_of_peers`).
        Oblivious attacks are compared on the undefended classifier; every cell on their images has that finding.
        """
        costs = Costs(ATTACKS, CHUNK)
        found: dict[str, Findings] = {}
        able = {key: row for key, row in done.items() if self._is_rival(key)}
        passes = {key: sum(costs.of(work, (stop,))) for key in able for work, stop in [self._attack_of(key)]}
        settings = defaultdict[tuple[object, ...], list[str]](list)
        on_images = defaultdict[object, list[str]](list)
        for key, row in able.items():
            settings[_setting(row)].append(key)
            on_images[self._cells[key].inputs.name].append(key)
        for key, row in able.items():
            adaptive = row["knowledge"] == "adaptive"
            if not ATTACKS[row["attack"]].follows_gradients or not (adaptive or row["defense"] == "none"):
                continue
            variants = set(row["variants"])
            same = [
                other for other in settings[_setting(row)] if other != key and variants & set(done[other]["variants"])
            ]
            oblivious = [other for other in same if done[other]["knowledge"] == "oblivious"]
            if adaptive and oblivious:
                found[key] = {"oblivious_not_stronger": self._strongest(row, oblivious, done)}
            peers = [other for other in same if done[other]["knowledge"] == row["knowledge"]]
            told = self._of_peers(row, peers, passes, done)
            for each in [key] if adaptive else on_images[self._cells[key].inputs.name]:
                found[each] = {**found.get(each, {}), "peers": told}
        return found

    def _is_rival(self, key: str) -> bool:
        """Whether a cell is of one attack, which is after accuracy."""
        attack = self._cells[key].inputs.attack
        return attack is not None and not self._cells[key].members and attack.by_accuracy

    def _attack_of(self, key: str) -> tuple[AttackWork, int]:
        inputs = self._cells[key].inputs
        assert inputs.attack is not None
        return inputs.attack, inputs.stop

    def _of_peers(self, row: Row, peers: Sequence[str], passes: Mapping[str, int], done: Mapping[str, Row]) -> Finding:
        """The strongest peer that costs no more passes; where none is stronger, a dearer one by which it is superseded."""
        no_dearer = [other for other in peers if passes[other] <= passes[row["cell"]]]
        dearer = [other for other in peers if passes[other] > passes[row["cell"]]]
        found = (
            self._strongest(row, no_dearer, done) if no_dearer else not_run("no attack of the study that costs no more")
        )
        if dearer:
            beyond = self._strongest(row, dearer, done)
            if beyond.p is not None and beyond.p < checks.SIGNIFICANT:
                found = replace(found, why=f"{found.why}; superseded, at more passes: {beyond.why}")
        return found

    def _strongest(self, row: Row, rivals: Sequence[str], done: Mapping[str, Row]) -> Finding:
        """The finding of two cells that the study has anyway, on all reported points, against the strongest of several."""
        rival = min(rivals, key=lambda other: float(done[other]["accuracy"]))
        own, other = self._counts[row["cell"]], self._counts[rival]
        return compared(own, other, row["draws"], _named(self._cells[rival]), len(rivals))


def further_draws(check: Check) -> tuple[int, ...]:
    """The draws by which a check may be judged again, where the study's own leave it open; none without a random defense."""
    if check.control is None or not check.judged.components:
        return ()
    return tuple(more for more in MORE_DRAWS if more > check.judged.identity["draws"])


def _asked_of(check: Check, draws: int) -> Iterable[OutputWork]:
    """The outputs of so many draws of a check's three cells."""
    for cell in (check.judged, check.clean, check.control):
        if cell is not None:
            yield from (stored for work, _ in _drawn(cell, draws).components for stored in work.stored)


def _drawn(cell: Cell, draws: int) -> Cell:
    """A cell with so many draws of its components; of the cell's own draws, the very works that the study has."""
    if draws == cell.identity["draws"]:
        return cell
    components = tuple((work.drawn(draws, n), n) for work, n in cell.components)
    return replace(cell, components=components)


def _named(cell: Cell) -> str:
    """A rival in words."""
    attack = cell.inputs.attack
    assert attack is not None
    if attack.method == "reference":
        return "the reference"
    turned = attack.threat.norm == "spatial"
    telling = ("method", "angles", "shifts", "k", "eot") if turned else ("loss", "restarts", "eot")
    values = ", ".join(
        f"{name} {value}" for name, value in attack.values.items() if name in telling and value is not None
    )
    counted = not turned and not {"steps", "queries"}.isdisjoint(attack.values)
    steps = f" at {cell.inputs.stop} steps" if counted else ""
    return f"{attack.threat.knowledge} {attack.method}{steps}" + (f" ({values})" if values else "")


def _setting(row: Row) -> tuple[object, ...]:
    """What cells must share whose attacks are held against each other: the setting, the radius and the goal."""
    return tuple(row[name] for name in SETTING)
