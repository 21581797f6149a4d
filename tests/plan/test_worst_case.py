"""The worst case over the attacks of a setting, as a cell of its own."""

from helpers.plans import planned

from mi_ray.plan.work import Cell, Plan


def worst(plan: Plan) -> list[Cell]:
    return [cell for cell in plan.cells if cell.identity["attack"] == "worst_case"]


def test_the_worst_case_is_over_all_attacks_of_one_epsilon_setting_and_number_of_executions() -> None:
    attacks = [
        {"pgd": {"steps": 2}, "epsilon": [0.05, 0.1], "goal": ["untargeted", "targeted"]},
        {"eot_pgd": {"steps": [2, 4]}, "epsilon": 0.1, "knowledge": "adaptive"},
    ]
    few = {"defenses": [{"mi_ol": 0.5}], "executions": [3, 5], "checks": "cheap", "counterparts": "mechanisms"}
    plan = planned(attacks=attacks, **few)
    by_key = {cell.key: cell for cell in plan.cells}
    found = {(c.defense.name, c.identity["epsilon"], c.identity["executions"]): c for c in worst(plan)}
    assert found.keys() == {
        ("none", 0.05, 1),
        ("none", 0.1, 1),
        *(("mi_ol", e, n) for e in (0.05, 0.1) for n in (3, 5)),
    }
    assert len(found) == len(worst(plan))
    assert {place: len(cell.members) for place, cell in found.items() if len(cell.members) != 2} == {
        ("mi_ol", 0.1, 3): 4,
        ("mi_ol", 0.1, 5): 4,
    }
    for (defense, epsilon, n), cell in found.items():
        members = [by_key[key] for key in cell.members]
        assert {(m.defense.name, m.identity["epsilon"], m.identity["executions"]) for m in members} == {
            (defense, epsilon, n)
        }
        assert cell.identity["goal"] == "any"
        adaptive = "adaptive" in {m.identity["knowledge"] for m in members}
        assert cell.identity["knowledge"] == ("adaptive" if adaptive else "oblivious")
        assert list(cell.needs()) == []


def test_one_attack_alone_has_no_worst_case_however_often_it_is_named() -> None:
    once = [{"pgd": {"steps": 2}, "epsilon": [0.05, 0.1]}]
    assert worst(planned(attacks=once)) == []
    assert worst(planned(attacks=once * 2)) == []


def test_a_worst_case_is_another_when_its_members_are() -> None:
    plans = [planned(attacks=[{"pgd": {"steps": steps}, "epsilon": 0.1}]) for steps in ([2, 4], [2, 6], [2, 4, 6])]
    assert len({cell.key for plan in plans for cell in worst(plan)}) == sum(len(worst(plan)) for plan in plans)
