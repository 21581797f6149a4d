"""Plans of small sweeps, on facts of data and machine that are made up."""

from functools import cache
from typing import Any

from helpers.sweeps import classifier, sweep
from mi_ray.plan.keyed import Facts
from mi_ray.plan.planner import Planner
from mi_ray.plan.work import Plan
from mi_ray.study.prepare import REGISTRIES

FACTS = Facts(
    dataset="digits",
    digest="0" * 64,
    classes=10,
    side=(32, 32),
    train_count=1297,
    test_count=500,
    pools={"mi_pl": "pool", "mi_ol": "pool"},
    device="cpu",
    sources={},
)


EVERY_DEFENSE: list[Any] = [
    "none",
    {"gaussian_noise": {"sigma": [0.1, 0.2]}},
    {"random_rotation": {"degrees": 10}},
    {"random_resize": {"crop": [20, 28]}},
    {"mi_pl": {"lam": 0.5}},
    {"mi_ol": {"lam": 0.5}},
    {"mi_combined": {"lam_pl": 0.5, "lam_ol": 0.4, "threshold": [0.1, 0.2, 0.3]}},
]


TRAINED = classifier(objective={"adversarial": {"steps": 1}})


Keys = dict[str, set[str]]


def planner(facts: Facts = FACTS, **changes: Any) -> Planner:
    return Planner(sweep(**{"defenses": EVERY_DEFENSE, "classifiers": TRAINED, **changes}), REGISTRIES, facts)


def planned(facts: Facts = FACTS, **changes: Any) -> Plan:
    made = planner(facts, **changes)
    return made.plan(made.settings())


def keys(plan: Plan) -> Keys:
    """The keys of each kind of work, F's own outputs apart from the defenses', clean inputs apart from attacked."""
    found: Keys = {kind: {work.key for work in getattr(plan, kind)} for kind in ("classifiers", "attacks")}
    for place in ("clean", "attacked"):
        at = [work for work in plan.outputs if (work.inputs.attack is None) == (place == "clean")]
        found[f"own {place}"] = {work.key for work in at if work.component is None}
        found[f"outputs {place}"] = {work.key for work in at if work.component is not None}
        cells = [cell for cell in plan.cells if (cell.inputs.attack is None) == (place == "clean")]
        found[f"none {place}"] = {cell.key for cell in cells if cell.defense.name == "none"}
        found[f"cells {place}"] = {cell.key for cell in cells if cell.defense.name != "none"}
    return found


@cache
def baseline() -> Keys:
    """The keys of the sweep that the changes below change."""
    return keys(planned())


def changed(before: Keys, after: Keys) -> set[str]:
    """The kinds of which no key has stayed; the others must not have changed at all."""
    gone = {kind for kind in before if not before[kind] & after[kind]}
    assert {kind for kind in before if before[kind] != after[kind]} == gone
    return gone


BOTH: list[Any] = [  # an oblivious attack, and an adaptive one that a preset names
    {"pgd": {"steps": 2}, "epsilon": "8/255"},
    {"adaptive": {"steps": 2, "eot": 2}, "epsilon": "8/255", "knowledge": "adaptive", "defenses": ["mi_ol"]},
]


WORKED: dict[str, Any] = {
    "classifiers": [{"name": "a", "architecture": {"cnn_small": 4}}, {"name": "b", "architecture": {"cnn_small": 8}}],
    "attacks": [{"pgd": {"steps": [10, 50]}, "epsilon": [0.05, 0.1], "goal": ["untargeted", "targeted"]}],
    "defenses": [
        {"gaussian_noise": {"sigma": [0.1, 0.2, 0.3]}},
        {"mi_combined": {"lam_pl": [0.4, 0.5], "lam_ol": [0.3, 0.4], "threshold": [0.1, 0.2, 0.3]}},
    ],
    "executions": [1, 5],
}


ON_MI_OL: dict[str, Any] = {
    "attacks": [{"eot_pgd": {"steps": [2, 4], "eot": 5}, "epsilon": 0.1, "knowledge": "adaptive"}],
    "defenses": [{"mi_ol": {"lam": 0.5}}],
    "checks": "cheap",
}


AVERAGED = {"averaged": {"steps": 2, "eot": [1, 5]}, "epsilon": 0.1, "knowledge": "adaptive"}
