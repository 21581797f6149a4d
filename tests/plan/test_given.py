"""Attacks that begin with images of others, which their entry names; and attacks that may only ask."""

import json
from typing import Any

import pytest
from helpers.plans import planned
from helpers.sweeps import sweep

from mi_ray.plan.work import AttackWork, Plan

TWO: list[Any] = [{"name": name, "architecture": {"cnn_small": 4}, "seed": seed} for seed, name in enumerate("ab")]


def cascade(images: Any = (), **more: Any) -> dict[str, Any]:
    return {"cascade": {"effort": "quick"}, "epsilon": 0.1, "knowledge": "adaptive", "images": list(images), **more}


def through(plan: Plan) -> list[AttackWork]:
    return [work for work in plan.attacks if work.method == "cascade"]


def study(*attacks: Any) -> Plan:
    return planned(attacks=list(attacks), classifiers=TWO, defenses=[{"mi_ol": 0.5}], checks="cheap")


def test_images_that_an_entry_names_are_work_of_their_own_done_first_and_no_cell() -> None:
    plan = study(cascade([{"pgd": {"steps": 4}}, {"pgd": {"steps": 4}, "classifier": "b"}]))
    pgd = [work for work in plan.attacks if work.method == "pgd"]
    assert {work.classifier for work in pgd} == {work.key for work in plan.classifiers}
    assert len(pgd) == 2
    on_a, on_b = (next(w for w in through(plan) if w.classifier == c.key) for c in plan.classifiers)
    assert [inputs.stop for inputs in on_a.given] == [4, 4]
    assert [inputs.attack.classifier for inputs in on_a.given if inputs.attack] == [c.key for c in plan.classifiers]
    assert [inputs.attack.classifier for inputs in on_b.given if inputs.attack] == [on_b.classifier] * 2
    assert on_a.stands_on() >= {work.key for work in pgd}
    assert [work.phase for work in plan.attacks] == sorted(work.phase for work in plan.attacks)
    assert {cell.identity["attack"] for cell in plan.cells} == {"none", "cascade"}


def test_they_are_shared_with_the_study_and_are_part_of_the_key_as_nothing_else_is() -> None:
    entry, own = cascade([{"pgd": {"steps": 4}}]), {"pgd": {"steps": 4}, "epsilon": 0.1}
    alone, beside = study(entry), study(entry, own)
    assert {work.key for work in through(alone)} == {work.key for work in through(beside)}
    assert {work.key for work in alone.attacks} == {work.key for work in beside.attacks}
    others = [study(cascade()), study(cascade([{"pgd": {"steps": 5}}])), study(cascade([{"pgd": {"steps": 4}}] * 2))]
    keys = [frozenset(work.key for work in through(plan)) for plan in (alone, *others)]
    assert len(set(keys)) == 4


def test_a_cascade_with_images_costs_their_scoring_more() -> None:
    without, with_one = through(study(cascade()))[0], through(study(cascade([{"pgd": {"steps": 4}}])))[0]
    assert with_one.cost[0] - without.cost[0] == 5 * (1 + sum(with_one.parts))


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        ({"pgd": {"steps": 4}, "epsilon": 0.1, "images": [{"pgd": {"steps": 2}}]}, "`images` is for cascade, transfer"),
        ({"transfer": {}, "epsilon": 0.1, "knowledge": "black_box"}, "transfer needs images of other attacks"),
        (cascade([{"pgd": {"steps": 4}, "classifier": "c"}]), "unknown classifier 'c'"),
        (cascade([{"pgd": {"steps": 4}, "epsilon": 0.1}]), "images are one attack"),
        ({"pgd": {"steps": 4}, "epsilon": 0.1, "knowledge": "black_box"}, "does not see; got black_box"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(attack: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(attack)


def test_a_black_box_attack_goes_through_each_defense_and_is_named_so() -> None:
    asked = {"square": {"queries": 5}, "epsilon": 0.1, "knowledge": "black_box"}
    plan = study(asked, {"pgd": {"steps": 4}, "epsilon": 0.1})
    worst = [cell for cell in plan.cells if cell.members and cell.defense.name == "mi_ol"]
    assert {cell.identity["knowledge"] for cell in plan.cells if cell.identity["attack"] == "square"} == {"black_box"}
    assert {cell.identity["knowledge"] for cell in worst} == {"black_box"}
    assert {work.defense.name for work in plan.attacks if work.method == "square" and work.defense} == {"mi_ol"}


def test_images_of_another_classifier_are_asked_of_this_one_behind_each_defense() -> None:
    entry = {"images": [{"pgd": {"steps": 4}, "classifier": "b"}], "classifiers": ["a"]}
    plan = study({"transfer": {}, "epsilon": 0.1, "knowledge": "black_box", **entry})
    (transfer,) = [work for work in plan.attacks if work.method == "transfer"]
    a, b = (work.key for work in plan.classifiers)
    assert (transfer.classifier, [inputs.attack.classifier for inputs in transfer.given if inputs.attack]) == (a, [b])
    assert transfer.defense is not None
    assert transfer.cost == (
        2 * 5 * (1 + sum(transfer.parts)),
        0,
    )  # five draws of the clean image, and of the other one
    cells = [cell.identity for cell in plan.cells if cell.identity["attack"] == "transfer"]
    assert {(cell["classifier"], cell["defense"], cell["knowledge"]) for cell in cells} == {("a", "mi_ol", "black_box")}


def test_what_only_chooses_among_images_is_not_run_again_in_another_ball() -> None:
    entry = {"images": [{"pgd": {"steps": 4}, "classifier": "b"}], "classifiers": ["a"]}
    attacks = [{"transfer": {}, "epsilon": 0.1, **entry}, {"pgd": {"steps": 4}, "epsilon": 0.1}]
    plan = planned(
        attacks=attacks, classifiers=TWO, defenses=[{"mi_ol": 0.5}], checks={"level": "subset", "points": 20}
    )
    held = [
        c.control.inputs.attack for c in plan.checks if c.control is not None and c.control.inputs.attack is not None
    ]
    assert {attack.threat.epsilon for attack in held if attack.method == "transfer"} <= {0.1}
    assert {attack.threat.epsilon for attack in held if attack.method == "pgd"} >= {0.2, 0.5}


def test_a_sweep_with_images_is_written_and_read_back() -> None:
    made = sweep(classifiers=TWO, attacks=[cascade([{"pgd": {"steps": 4}, "classifier": "b"}])], defenses=["none"])
    assert made.document()["attacks"][0]["images"] == [{"classifier": "b", "pgd": {"steps": 4}}]
    assert type(made).model_validate(made.document()).document() == made.document()


def test_outputs_on_images_stand_on_what_those_images_stand_on() -> None:
    images = [{"pgd": {"steps": 2}, "classifier": "b"}]
    plan = planned(
        classifiers=[{"name": name, "architecture": {"cnn_small": 2}, "seed": at} for at, name in enumerate("ab")],
        attacks=[{"transfer": {}, "epsilon": 0.1, "classifiers": ["a"], "images": images}],
        defenses=["none"],
    )
    other = plan.classifiers[1].key
    (made,) = [work for work in plan.attacks if work.method == "transfer"]
    (outputs,) = [
        work for work in plan.outputs if work.inputs.attack is not None and work.inputs.attack.key == made.key
    ]
    assert other in made.stands_on()
    assert other in outputs.stands_on()


def test_a_control_of_another_radius_begins_with_images_of_that_radius() -> None:
    """Without them a cascade that owes what it leaves to its images was refused, since it leaves more in the larger ball."""
    images = [{"pgd": {"steps": 4, "step_size": 0.02}, "classifier": "b"}]
    plan = planned(
        attacks=[cascade(images, classifiers=["a"])],
        classifiers=TWO,
        defenses=[{"mi_ol": 0.5}],
        checks={"level": "subset", "points": 20},
    )
    controls = {work.threat.epsilon: work for work in plan.check_attacks() if work.method == "cascade"}
    assert controls.keys() == {0.0, 0.2, 0.5}
    for epsilon, step in ((0.2, 0.04), (0.5, 0.1), (0.0, 0.02)):
        (given,) = (inputs.attack for inputs in controls[epsilon].given)
        assert given is not None
        assert (given.threat.epsilon, given.classifier) == (epsilon, plan.classifiers[1].key)
        assert given.values["step_size"] == pytest.approx(step)
        assert given.key in {work.key for work in plan.check_attacks()}
        assert plan.checked_points()[given.key] >= plan.checked_points()[controls[epsilon].key]
    reference = [work for work in plan.check_attacks() if work.method == "reference"]
    assert reference
    assert not any(work.given for work in reference)


def test_cells_under_attacks_that_differ_in_their_images_alone_say_so() -> None:
    of_b = cascade([{"pgd": {"steps": 4}, "classifier": "b"}], classifiers=["a"])
    plan = study(of_b, cascade([{"pgd": {"steps": 4}}], classifiers=["a"]), cascade(classifiers=["a"]))
    cells = [cell for cell in plan.cells if cell.identity["attack"] == "cascade"]
    told = [json.loads(cell.identity["attack_params"]).get("images") for cell in cells]
    assert len({cell.identity["attack_params"] for cell in cells}) == len(cells) == 3
    others = [each and (each[0].get("classifier"), each[0]["pgd"]["steps"]) for each in told]
    assert others == [("b", [4]), (None, [4]), None]


def test_one_entry_is_one_attack_on_each_classifier_whatever_these_are_called() -> None:
    plan = study(cascade([{"pgd": {"steps": 4}}]))
    told = {cell.identity["attack_params"] for cell in plan.cells if cell.identity["attack"] == "cascade"}
    assert len(told) == 1
    assert "classifier" not in told.pop()
