"""What `make verdict` runs for hours can be made: a rule that became stricter would else end it in the middle."""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.verdict import run
from mi_ray.attacks import ATTACKS
from mi_ray.defenses import DEFENSES
from mi_ray.own_code import load_plugins
from mi_ray.run import load_sweeps
from mi_ray.study.prepare import prepare


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


@pytest.mark.parametrize("setting", ["none", "mi_ol"])
def test_every_attack_of_make_verdict_stands_the_trial_of_a_persons_own_attacks(setting: str) -> None:
    epsilon, knowledge = 0.1, "oblivious" if setting == "none" else "adaptive"
    attacks = [
        {**attack, "epsilon": epsilon, "knowledge": knowledge}
        for attack in run.broken(epsilon).values()
        if run.suits(attack, setting)
    ]
    network = {"name": "f", "architecture": {"cnn_small": {"width": 4}}, "training": {"epochs": 1}}
    job = run.Job(network, "digits", run.SETTINGS[setting], epsilon, "all", {}, True, 50, 0)
    made = prepare(load_sweeps([{**job.sweep(), "attacks": attacks, "executions": 2}])[0])
    assert len(made.plan().attacks) > 25


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


def test_an_attack_that_is_not_known_is_refused_and_not_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--attacks", "PGD-51"])
    assert "--attacks must be of" in capsys.readouterr().err


def test_one_of_several_tables_of_a_document_is_written_and_kept_for_later_runs(tmp_path: Path) -> None:
    (tmp_path / "doc.md").write_text(
        "<!-- make verdict -->\n<!-- make verdict mine -->\n<!-- end of make verdict mine -->\nend"
    )
    table = pd.DataFrame([{"attack": "x", "broken": True, "classifier": "f", "setting": "none", "epsilon": 0.1}])
    table = table.assign(
        points="20 by seed 0", accuracy=0.5, verdict="failed", failed="headway", harm=0.2, rightly=False
    )
    sound = table.assign(attack="y", broken=False, verdict="passed", failed="", harm=0.0)
    pd.concat([table, sound]).to_csv(tmp_path / "other.csv", index=False)
    given = {
        "--out": tmp_path / "out",
        "--table": tmp_path / "doc.md",
        "--keep": tmp_path / "kept.csv",
        "--networks": 0,
    }
    arguments = [str(each) for pair in given.items() for each in pair]
    run.main([*arguments, "--called", "mine", "--minutes", "0", "--tables", str(tmp_path / "other.csv")])
    before, _, after = (tmp_path / "doc.md").read_text().partition("<!-- make verdict mine -->")
    assert "| x | 1 | 20 to 20 | 1 | 1 | 1 | `headway` |" in after
    assert "|" not in before
    assert pd.read_csv(tmp_path / "kept.csv")["attack"].tolist() == ["x", "y"]


@pytest.mark.parametrize(("p", "rightly"), [(0.024, True), (0.026, False)])
def test_a_refusal_is_right_where_elsewhere_the_attack_leaves_a_point_more_than_the_best_of_its_rivals(
    p: float, rightly: bool
) -> None:
    place = {"classifier": "f", "setting": "none", "epsilon": 0.1, "points": "400 by seed 0", "why": {}}
    rows = [
        {**place, "job": "a", "attack": "APGD-DLR", "accuracy": 0.5},
        {**place, "job": "b", "attack": run.YARDSTICK, "accuracy": 0.4},
    ]
    held = run._held(pd.DataFrame(rows), {"a": {"p": p}})
    assert held["rightly"].tolist() == [rightly, False]
    assert held["harm"].tolist() == pytest.approx([0.1, 0.0])


def test_five_points_more_are_not_more_than_five_points() -> None:
    place = {"classifier": "f", "setting": "none", "epsilon": 0.1, "points": "400 by seed 0", "why": {}}
    rows = [
        {**place, "job": "a", "attack": "x", "broken": True, "accuracy": 0.2675, "verdict": "passed"},
        {**place, "job": "b", "attack": run.YARDSTICK, "broken": False, "accuracy": 0.2175, "verdict": "passed"},
    ]
    assert run.HARM < 0.2675 - 0.2175  # of floats
    assert run._harmful(run._held(pd.DataFrame(rows), {})).empty


def test_where_no_broken_attack_did_harm_that_is_said_in_words() -> None:
    sound = {"attack": "PGD-20", "broken": False, "classifier": "f", "points": "20 by seed 0", "verdict": "passed"}
    frame = pd.DataFrame([{**sound, "harm": 0.0, "rightly": False}])
    said = run.figures(frame)
    assert said.startswith("No broken (attack, setting) pair was judged")
    assert "nan" not in said
    harmful = {**sound, "attack": "x", "broken": True, "verdict": "failed", "harm": 0.2, "rightly": False}
    assert run.figures(pd.concat([frame, pd.DataFrame([harmful])])).startswith("Of 1 broken (attack, setting) pairs")
