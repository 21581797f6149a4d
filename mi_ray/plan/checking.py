"""What judges each attack of a plan: its controls as attacks, outputs and cells of their own (docs/checks.md)."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mi_ray.parameters import Method
from mi_ray.plan.cells import CellMaker
from mi_ray.plan.controls import Attacked, Control, Held, PlannedRule, controls
from mi_ray.plan.cost import in_whole
from mi_ray.plan.work import AttackWork, Cell, Check, ClassifierWork, Inputs, Plan
from mi_ray.store.keys import canonical
from mi_ray.threat_model import ThreatModel, step_of


class CheckPlanner:
    """Makes the checks of the plans of one sweep. stored_points: how many points the study stores."""

    def __init__(self, maker: CellMaker, classifiers: Sequence[ClassifierWork], stored_points: int) -> None:
        self.maker, self.works, self.stored_points = maker, maker.works, stored_points
        self._by_key = {work.key: work for work in classifiers}
        self._beside: dict[tuple[str, str, int], tuple[Any, Cell]] = {}

    def checks(self, plan: Plan) -> tuple[Check, ...]:
        """The checks of every attack of a plan.

        Those with `one_setting` are dear: they are made on as many points as keep all checks no dearer than the study itself, on
        all of their points with `level: full` or `black_box: always`, and not at all with `black_box: never`.
        """
        found = list(self._all(plan))
        wanted = self.works.sweep.checks
        if wanted.level == "full" or wanted.black_box == "always":
            return tuple(check for check, _ in found)
        cheap = [check for check, dear in found if not dear]
        dear = [check for check, dear in found if dear]
        points = 0 if wanted.black_box == "never" else self._affordable(plan, cheap, dear)
        return (*cheap, *(replace(check, points=min(points, check.points)) for check in dear if points > 0))

    def _affordable(self, plan: Plan, cheap: Sequence[Check], dear: Sequence[Check]) -> int:
        """On how many points, in whole batches, the dear controls can be run before all checks cost more than the study."""
        costs, batch = self.works.costs, self.works.sweep.batch
        of_study = costs.of_plan(replace(plan, checks=()), self.stored_points)
        study = sum(of_study[name] for name in ("attack_forward", "attack_backward", "evaluation_forward"))
        others = sum(costs.of_checks(replace(plan, checks=tuple(cheap))))
        a_batch = sum(costs.of_checks(replace(plan, checks=tuple(replace(check, points=batch) for check in dear))))
        return max(0, study - others) // max(1, a_batch) * batch

    def _all(self, plan: Plan) -> Iterator[tuple[Check, bool]]:
        """(check, whether it is dear) of each attack, judged on the cell that the attack was made for, at the largest N.

        An oblivious attack was made for F, so it is judged on F's own cell, and every defense that is evaluated on its
        images shares the verdict.
        """
        by_inputs: dict[tuple[tuple[str, float | None], int], list[Cell]] = {}
        for cell in plan.cells:
            if cell.inputs.attack is not None and not cell.members:
                run = (cell.inputs.attack.key, cell.inputs.within)
                by_inputs.setdefault((run, cell.inputs.stop), []).append(cell)
        stops: dict[tuple[str, float | None], list[int]] = {}
        for run, stop in by_inputs:
            stops.setdefault(run, []).append(stop)
        settings: dict[tuple[object, ...], object] = {}
        for (run, stop), cells in by_inputs.items():
            judged = max(cells, key=lambda cell: (cell.defense.name == "none", cell.identity["executions"]))
            attack, threat = judged.inputs.attack, judged.inputs.threat
            assert attack is not None
            if not attack.by_accuracy:
                continue
            of_defense = (attack.classifier, judged.defense.name, replace(threat, knowledge="oblivious"))
            first = settings.setdefault(of_defense, judged.defense) == judged.defense
            last = stop == max(stops[run])
            for held in controls(self.works.registries.checks, self._attacked(attack, threat), stop, last):
                if self._wanted(held, first):
                    sharing = tuple(
                        cell.key
                        for at in stops[run]
                        if at == stop or held.rule.of_trajectory
                        for cell in by_inputs[run, at]
                    )
                    yield self._check(held, attack, judged, sharing), held.rule.one_setting

    def _wanted(self, held: Held[PlannedRule], first: bool) -> bool:
        """Whether a check is to be made. first: of the first setting of its defense."""
        wanted = self.works.sweep.checks
        paid_for = wanted.level != "cheap" or held.rule.free
        asked = not held.rule.by_option or wanted.binarization > 0
        asked &= not held.rule.of_drawn_points or self.works.sweep.points_order() == "drawn"
        return paid_for and asked and (first or not held.rule.one_setting)

    def _check(self, held: Held[PlannedRule], attack: AttackWork, judged: Cell, sharing: tuple[str, ...]) -> Check:
        classifier, n = self._by_key[attack.classifier], judged.identity["executions"]
        defense, clean = self._clean(classifier, judged.defense, n)
        control = None
        if held.control is not None:
            control = self.maker.cell(classifier, self._control(attack, classifier, held.control), defense, n)
        return Check(held.rule.name, judged, clean, control, sharing, self._points(held.rule))

    def _clean(self, classifier: ClassifierWork, setting: Method, n: int) -> tuple[Any, Cell]:
        """(defense, its cell on the clean points): all checks of all attacks on a setting share it."""
        asked = (classifier.key, canonical(setting), n)
        if asked not in self._beside:
            defense = self.works.registries.defenses.make(*setting)
            self._beside[asked] = (defense, self.maker.cell(classifier, Inputs(), defense, n))
        return self._beside[asked]

    def _points(self, rule: PlannedRule) -> int:
        """On how many points a check is made: in whole batches, so that all arithmetic is that of the study."""
        checks, batch = self.works.sweep.checks, self.works.sweep.batch
        if rule.by_option:
            wanted = checks.binarization
        elif checks.level == "full" or rule.free:
            return self.stored_points
        else:
            wanted = checks.points if rule.points is None else min(rule.points, checks.points)
        return min(in_whole(wanted, batch), self.stored_points)

    def _attacked(self, attack: AttackWork, threat: ThreatModel) -> Attacked:
        method = self.works.registries.attacks[attack.method]
        executions = attack.executions if attack.defense is not None else None
        return Attacked(
            method=attack.method,
            values=attack.values,
            threat=threat,
            stop_parameter=method.stop_parameter,
            executions=executions,
            follows_gradients=method.follows_gradients,
            diameter=threat.measure.diameter(self.works.facts.numbers),
            minimal=method.minimal,
            only_found=method.only_found,
            of_images=method.needs_images,
            lowest={name: said.low for name, said in method.parameters().items() if said.low is not None},
            highest={name: said.high for name, said in method.parameters().items() if said.high is not None},
        )

    def _control(self, attack: AttackWork, classifier: ClassifierWork, control: Control) -> Inputs:
        made = self.works.registries.attacks.make(control.method, control.values)
        behind = None if attack.defense is None else self.works.registries.defenses.make(*attack.defense)
        threat = replace(attack.threat, epsilon=control.epsilon)
        given = tuple(self._again(each, control.epsilon) for each in attack.given) if made.takes_images else ()
        return self.works.read(made, threat, classifier, behind, "true" if control.own else None, given)

    def _again(self, given: Inputs, epsilon: float) -> Inputs:
        """The images that a judged attack begins with, made again in the ball of its control, by steps as long in proportion."""
        assert given.attack is not None
        values, threat = dict(given.attack.values), given.threat
        if values.get("step_size") is not None and 0 < threat.epsilon != epsilon > 0:
            longer = {"step_size": step_of(values["step_size"] * epsilon / threat.epsilon, 1, threat.norm)}
            values |= self._attacked(given.attack, threat).within(longer)
        made = self.works.registries.attacks.make(given.attack.method, values)
        return self.works.read(made, replace(threat, epsilon=epsilon), self._by_key[given.attack.classifier], None)
