"""The cells of a study: classifier x attack x threat model x defense setting x N, and the worst case over their attacks."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, get_args

from mi_ray.parameters import Method
from mi_ray.plan.keyed import KeyedWork
from mi_ray.plan.work import Cell, ClassifierWork, Inputs
from mi_ray.store.keys import canonical, content_key
from mi_ray.store.schemas import RECORDS
from mi_ray.threat_model import WORST_CASE, Knowledge

KNOWLEDGE = get_args(Knowledge)  # From the least to the most.


class CellMaker:
    """Makes the cells of one sweep out of its keyed work."""

    def __init__(self, works: KeyedWork) -> None:
        self.works, self.sweep = works, works.sweep

    def cell(self, classifier: ClassifierWork, inputs: Inputs, defense: Any, n: int) -> Cell:
        """A defense setting on one classifier with N executions, on the clean points or on what an attack made of them."""
        components = defense.components()
        draws = self.sweep.requested_draws(self.works.options) if defense.is_random() else 1
        undefended = self.works.undefended(classifier, inputs)
        parts, counterparts, transferred = [], [], []
        for position, component in enumerate(components):
            own_n = defense.executions_of(position, n)
            parts.append((self.works.outputs(classifier, inputs, component, own_n, draws, None, defense.name), own_n))
            reads = inputs.attack is not None and inputs.within is None
            if self.sweep.counterparts and reads and component.needs_pool():
                clean = self.works.outputs(classifier, Inputs(), component, own_n, draws, inputs, defense.name)
                counterparts.append(clean)
                if self.sweep.counterparts == "mechanisms":
                    transferred.append(self.works.perturbed(clean))
        withheld = defense.abstains and inputs.attack is not None
        on_clean = self.cell(classifier, Inputs(), defense, n) if withheld else None
        ingredients = {
            "undefended": undefended.key,
            "parts": [[work.key, own_n] for work, own_n in parts],
            "draws": draws,
            "defense": defense.name,
            "version": defense.version,
            "values": defense.values(),
            "executions": n,
            **self._row_ingredients(classifier.key),
            "source": self.works.facts.sources.get(defense.name),
            **({} if on_clean is None else {"clean": on_clean.key}),
        }
        key = content_key("cell", ingredients)
        identity = {"cell": key, **self._identity(classifier, inputs, defense, n, draws)}
        return Cell(
            key=key,
            identity=identity,
            classifier=classifier.key,
            inputs=inputs,
            defense=Method(defense.name, defense.values()),
            undefended=undefended,
            components=tuple(parts),
            counterparts=tuple(counterparts),
            transferred=tuple(transferred),
            clean=on_clean,
        )

    def _row_ingredients(self, classifier: str) -> dict[str, Any]:
        points = self.sweep.points.model_dump(include={"count", "selection"})
        return {
            "points": points,
            "seed": self.sweep.seed,
            **self.works.arithmetic(classifier),
            "columns": RECORDS.names,
        }

    def worst_cases(self, cells: list[Cell]) -> Iterator[Cell]:
        """For each ball and N under which a setting is attacked in several ways: the worst of them, point by point."""
        groups: dict[tuple[str, float, int], dict[str, Cell]] = {}
        for cell in cells:
            if cell.inputs.attack is not None:
                ball = (cell.identity["norm"], cell.identity["epsilon"])
                group = groups.setdefault((*ball, cell.identity["executions"]), {})
                group[cell.key] = cell  # an attack that two entries ask for is one
        for group in groups.values():
            if len(group) > 1:
                # Sorted, so that of equally bad attacks the same one is taken, whatever their order in the file.
                keys = sorted(group)
                members = [group[key] for key in keys]
                ingredients = {"members": keys, **self._row_ingredients(members[0].classifier)}
                if members[0].identity["draws"] > 1:
                    # Version 1 let the reported draws choose the attack; version 2 took the first of equally strong attacks.
                    ingredients["version"] = 3
                key = content_key("worst", ingredients)
                knowledge = {cell.identity["knowledge"] for cell in members}
                identity = {
                    **members[0].identity,
                    "cell": key,
                    "attack": WORST_CASE,
                    "attack_params": "{}",
                    "goal": "any",
                    "knowledge": max(knowledge, key=KNOWLEDGE.index),
                }
                yield replace(
                    members[0],
                    key=key,
                    identity=identity,
                    components=(),
                    counterparts=(),
                    transferred=(),
                    members=tuple(keys),
                )

    def _images(self, given: Inputs, attacked: str) -> dict[str, Any]:
        """Images that an attack begins with, as a sweep file names them. attacked: the key of the classifier under attack."""
        assert given.attack is not None
        of = given.attack.classifier
        other = {} if of == attacked else {"classifier": self.works.called[of]}
        return {given.attack.method: given.attack.values, **other}

    def _identity(self, classifier: ClassifierWork, inputs: Inputs, defense: Any, n: int, draws: int) -> dict[str, Any]:
        """Every identity column of the records, but the cell's key."""
        attack, threat = inputs.attack, inputs.threat if inputs.attack else None
        params: dict[str, Any] = {}
        if attack is not None:
            params = {**attack.values, "labels": attack.labels}
            stop_parameter = self.works.registries.attacks[attack.method].stop_parameter
            if stop_parameter is not None:
                params[stop_parameter] = inputs.stop
            if attack.given:
                params["images"] = [self._images(each, attack.classifier) for each in attack.given]
        return {
            "dataset": self.works.facts.dataset,
            "classifier": classifier.entry.name,
            "classifier_key": classifier.key,
            "attack": attack.method if attack else "none",
            "attack_params": canonical(params),
            "goal": threat.goal if threat else "none",
            "norm": threat.norm if threat else "linf",
            "epsilon": threat.epsilon if threat else 0.0,
            "knowledge": threat.knowledge if threat else "none",
            "defense": defense.name,
            "defense_params": canonical(defense.values()),
            "executions": n,
            "draws": draws,
        }
