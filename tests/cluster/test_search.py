"""Searches without Ray: a trial's work and its score, and Optuna in rounds that do not depend on who comes first."""

from pathlib import Path
from typing import Any

import pytest
from helpers.studies import compute, tiny

from mi_ray.cluster.search import ResolveSearch, RoundsSearch, Space, optuna_search, search_space
from mi_ray.cluster.trials import OBJECTIVES, accuracies
from mi_ray.config import OptunaSearch
from mi_ray.parameters import Axis

SPACE = Space((("gaussian_noise", {"sigma": Axis((), (0.0, 1.0))}), ("mi_ol", {"lam": Axis((), (0.1, 0.9))})))


def settings(sampler: str, trials: int = 9, size: int = 3) -> OptunaSearch:
    return OptunaSearch.model_validate({"sampler": sampler, "trials": trials, "round": size})


def searched(search: RoundsSearch, *, backwards: bool) -> list[Any]:
    """What a search proposes; the results of a round come in order or in the opposite one."""
    found: list[Any] = []
    while (first := search.suggest(str(len(found)))) != RoundsSearch.FINISHED:
        round_, proposed = {}, first
        while proposed not in (None, RoundsSearch.FINISHED):
            round_[str(len(found))] = proposed
            found.append(proposed)
            proposed = search.suggest(str(len(found)))
        for trial in reversed(round_) if backwards else round_:
            value = float(round_[trial]["defense"][0]) + 0.1 * int(trial)
            search.on_trial_complete(trial, dict(zip(OBJECTIVES, (value, 1 - value), strict=True)))
    return found


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_a_search_proposes_the_same_whatever_the_order_in_which_a_round_ends(sampler: str) -> None:
    first, second = (
        searched(optuna_search(SPACE, settings(sampler), 0), backwards=backwards) for backwards in (False, True)
    )
    assert first == second
    assert len(first) == 9
    assert first != searched(optuna_search(SPACE, settings(sampler), 1), backwards=False)


def test_a_round_waits_for_all_of_its_results() -> None:
    search = optuna_search(SPACE, settings("tpe", trials=4, size=2), 0)
    assert [search.suggest(name) is None for name in "abc"] == [False, False, True]
    result = dict.fromkeys(OBJECTIVES, 0.5)
    search.on_trial_complete("b", result)
    assert search.suggest("c") is None
    search.on_trial_complete("a", error=True)
    assert search.suggest("c") is not None


def test_a_trial_of_a_search_is_scored_on_its_inputs_and_not_on_their_counterparts(tmp_path: Path) -> None:
    combined = {"lam_pl": 0.6, "lam_ol": [0.5, 0.6], "threshold": 0.0}
    found = {}
    for counterparts in (False, True):
        one = tiny(
            tmp_path / str(counterparts),
            attacks=[{"pgd": {"steps": 1}, "epsilon": 0.1}],
            executions=3,
            defenses=[{"mi_combined": combined}],
            search={"optuna": {"trials": 1}},
            counterparts=counterparts,
        )
        planner = one.study.planner
        (work,) = planner.classifiers
        trial = ResolveSearch(planner, search_space(planner, work), work.key)({"defense": "0:mi_combined"})
        compute(one)
        for output in trial.works:
            for block in one.bench.results.missing(output, 60):
                one.bench.compute(*block)
        found[counterparts] = accuracies(one.bench, trial, (0, 60))
    assert found[True] == found[False]
