"""What `make verdict` runs for hours can be made: a rule that became stricter would else end it in the middle."""

from argparse import Namespace
from collections.abc import Iterator

import pytest

from benchmarks.verdict import run
from mi_ray.attacks import ATTACKS
from mi_ray.defenses import DEFENSES
from mi_ray.parameters import load_plugins


@pytest.fixture(scope="module", autouse=True)
def _faults() -> Iterator[None]:
    """The broken attacks and the defense that hides its gradient, which no other test should find among the program's own."""
    registries = ATTACKS, DEFENSES
    before = [dict(registry._classes) for registry in registries]
    load_plugins(["benchmarks.verdict.faults"])
    yield
    for registry, classes in zip(registries, before, strict=True):
        registry._classes.clear()
        registry._classes.update(classes)


@pytest.mark.parametrize("epsilon", [0.03, 8 / 255, 0.15])
def test_every_attack_of_make_verdict_is_allowed_at_each_radius(epsilon: float) -> None:
    attacks = {**run.sound(epsilon), **run.broken(epsilon)}
    assert len(attacks) > 40
    for ((name, values),) in (attack.items() for attack in attacks.values()):
        plain = {key: value[0] if isinstance(value, list) else value for key, value in values.items()}
        ATTACKS.make(name, plain)


def test_every_setting_of_make_verdict_is_allowed() -> None:
    for setting in (*run.SETTINGS.values(), run.HIDDEN, run.OPENED):
        ((name, values),) = setting.items() if isinstance(setting, dict) else ((setting, {}),)
        DEFENSES.make(name, values)


def test_broken_attacks_that_are_asked_for_are_judged_alone_beside_what_they_are_held_against() -> None:
    wanted = "the paper's averaged attack"
    options = Namespace(out="", points=20, sound=1, broken=60, attacks=[wanted])
    mixing, undefended = (next(n for n, turn in enumerate(run.TURNS) if turn == name) for name in ("mi_ol", "none"))
    for number, broken in ((mixing, {wanted}), (undefended, set())):  # It needs a defense that mixes.
        jobs = [job for _, job in run._of_network(number, "digits", options)]
        assert {job.label for job in jobs if job.broken} == broken
        assert len(jobs) == 1 + (2 if broken else 0)
