"""Searches without Ray: a trial's work and its score, and Optuna in rounds that do not depend on who comes first."""

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from helpers.studies import compute, derived, tiny
from ray import cloudpickle
from ray.tune.search.optuna import optuna_search as optuna_search_of_ray
from sqlalchemy.exc import OperationalError

from mi_ray.cluster import optuna_study
from mi_ray.cluster.optuna_study import open_storage, study_name, try_storage
from mi_ray.cluster.search import ResolveSearch, RoundsSearch, Space, optuna_search, search_cells, search_space
from mi_ray.cluster.trials import ACCURACIES, accuracies, grid_trials
from mi_ray.config import OptunaSearch
from mi_ray.parameters import Axis
from mi_ray.run import run_sweep
from mi_ray.study.rows import write_records

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
            search.on_trial_complete(trial, dict(zip(ACCURACIES, (value, 1 - value), strict=True)))
    return found


@pytest.mark.parametrize("sampler", ["tpe", "nsgaii"])
def test_a_search_proposes_the_same_whatever_the_order_in_which_a_round_ends(sampler: str) -> None:
    first, second = (
        searched(optuna_search(SPACE, settings(sampler), 0), backwards=backwards) for backwards in (False, True)
    )
    assert first == second
    assert len(first) == 9
    assert first != searched(optuna_search(SPACE, settings(sampler), 1), backwards=False)


def axes_of(defenses: int, axes: int) -> Space:
    """A space of so many defenses, each with so many ranges from 0 to 1."""
    ranges = {f"p{index}": Axis((), (0.0, 1.0)) for index in range(axes)}
    return Space(tuple((f"d{index}", ranges) for index in range(defenses)))


def proposals(space: Space, seed: int, best: float) -> list[tuple[str, tuple[float, ...]]]:
    """What NSGA-II proposes where the last defense is best, and on each of its axes the value `best`."""
    search = optuna_search(space, settings("nsgaii", trials=64, size=8), seed)
    found: list[tuple[str, tuple[float, ...]]] = []
    for first in range(0, 64, 8):
        for trial in range(first, first + 8):
            proposed = search.suggest(str(trial))
            assert isinstance(proposed, dict)
            name, values = space.setting(proposed)
            found.append((name, tuple(values.values())))  # type: ignore[arg-type]
        for trial in range(first, first + 8):
            name, at = found[trial]
            missed = sum(abs(value - best) for value in at) + (name != space.axes[-1][0])
            search.on_trial_complete(str(trial), dict(zip(ACCURACIES, (1 - missed, 0.5 - missed), strict=True)))
    return found


@pytest.mark.parametrize(("defenses", "axes"), [(1, 1), (3, 1), (3, 2)])
def test_nsgaii_learns_from_the_results_that_it_is_told(defenses: int, axes: int) -> None:
    space = axes_of(defenses, axes)

    def share(found: list[tuple[str, tuple[float, ...]]]) -> float:
        """How many of the proposals are close to the best one."""
        near = [name == space.axes[-1][0] and all(abs(value - 0.7) < 0.1 for value in at) for name, at in found]
        return sum(near) / len(near)

    runs = [proposals(space, seed, 0.7) for seed in range(6)]
    early, late = (sum(share(run[part]) for run in runs) / 6 for part in (slice(0, 8), slice(32, 64)))
    assert late > early + 0.25, (early, late)
    # Nothing is gained by a setting that was tried before.
    assert sum(len({*run}) for run in runs) > 0.85 * 6 * 64
    other = proposals(space, 0, 0.2)
    assert other[:8] == runs[0][:8]
    assert other[8:] != runs[0][8:]
    assert proposals(space, 0, 0.7) == runs[0]


def test_nsgaii_inherits_a_choice_of_listed_values_and_a_single_one_is_none() -> None:
    listed = {"a": Axis((0.1, 0.2, 0.4)), "b": Axis((0.3,)), "c": Axis((0.5,), (0.5, 0.5))}
    space = Space((("d0", listed),))
    assert (space.choices, SPACE.choices, axes_of(3, 2).choices) == (1, 3, 7)
    proposed = searched(optuna_search(space, settings("nsgaii"), 0), backwards=False)
    assert {tuple(space.setting(each).values) for each in proposed} == {("a", "b", "c")}


@pytest.mark.parametrize(
    ("proposed", "taken"),
    [
        (2 / 255, 0.00784314),
        (1.23456789e-7, 1.23457e-7),
        (0.123456789, 0.123457),
        (12345.678, 12345.7),
        (1 / 255, round(1 / 255, 12)),  # ends of the range, which a grid rounds to twelve digits
        (1e5 / 3, round(1e5 / 3, 12)),
        (round(1e5 / 3, 12) - 1e-3, round(1e5 / 3, 12)),  # rounded up it would lie beyond the end
    ],
)
def test_a_proposed_value_has_six_significant_digits_or_is_an_end_of_its_range(proposed: float, taken: float) -> None:
    low = round(1 / 255, 12) if proposed >= 1 / 256 else 1e-8
    space = Space((("gaussian_noise", {"sigma": Axis((), (low, round(1e5 / 3, 12)))}),))
    setting = space.setting({"defense": "0:gaussian_noise", "0:gaussian_noise.sigma": proposed})
    assert setting.values == {"sigma": taken}


def test_a_proposal_that_takes_long_is_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_search_of_ray, "DEFINE_BY_RUN_WARN_THRESHOLD_S", -1)
    assert optuna_search(SPACE, settings("nsgaii"), 0).suggest("0") is not None


def test_a_round_waits_for_all_of_its_results() -> None:
    search = optuna_search(SPACE, settings("tpe", trials=4, size=2), 0)
    assert [search.suggest(name) is None for name in "abc"] == [False, False, True]
    result = dict.fromkeys(ACCURACIES, 0.5)
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


def test_a_search_is_told_what_an_attack_for_the_nearest_image_leaves_at_the_radius_that_is_asked_for(
    tmp_path: Path,
) -> None:
    one = tiny(
        tmp_path,
        attacks=[{"minimum_norm": {"steps": 5}, "epsilon": [0.001, 0.01]}],
        defenses=[{"gaussian_noise": {"sigma": 0.01}}],
        search={"optuna": {"trials": 1}},
    )
    planner = one.study.planner
    (work,) = planner.classifiers
    trial = ResolveSearch(planner, search_space(planner, work), work.key)({"defense": "0:gaussian_noise"})
    cells = search_cells(planner, work.key, trial.defense)
    whole = replace(one, plan=planner.plan_of([*one.plan.cells, *cells]))
    compute(whole)
    rows = write_records(one.bench.results, whole.plan, (20, 60), lambda cell: None, lambda count: None).judged()
    own = [row for row in rows if row["defense"] == "gaussian_noise" and row["attack"] == "minimum_norm"]
    assert len({row["selection_accuracy"] for row in own}) == 2
    assert accuracies(one.bench, trial, (0, 20))[ACCURACIES[1]] == min(row["selection_accuracy"] for row in own)


STORAGES = ["sqlite:///{}/search.db", "{}/search.journal"]


def kept_in(storage: str, sampler: str = "nsgaii") -> OptunaSearch:
    """Settings of a search of which a storage gets a copy."""
    return settings(sampler).model_copy(update={"storage": storage})


def copy_of(storage: str, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(kept_in(storage)))


def undisturbed(seed: int = 0) -> list[Any]:
    return searched(optuna_search(SPACE, settings("nsgaii"), seed), backwards=False)


@pytest.mark.parametrize("where", STORAGES)
def test_a_storage_gets_a_copy_of_a_search_anew_in_each_run(tmp_path: Path, where: str) -> None:
    storage, told = where.format(tmp_path), list[str]()
    for _ in range(2):
        found = optuna_search(SPACE, kept_in(storage), 0, "study on f", told.append)
        assert searched(found, backwards=False) == undisturbed()
    study = copy_of(storage, "study on f")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 9
    assert [trial.params for trial in study.trials] == undisturbed()
    assert study.metric_names == list(ACCURACIES)
    assert told == []


def test_tune_can_write_a_search_down_whatever_tells_of_its_storage(tmp_path: Path) -> None:
    lock = threading.Lock()  # as a session has them

    def tell(line: str) -> None:
        with lock:
            raise AssertionError(line)

    found = optuna_search(SPACE, kept_in(f"sqlite:///{tmp_path}/search.db"), 0, "study on f", tell)
    again = cloudpickle.loads(cloudpickle.dumps(found))
    assert searched(again, backwards=False) == searched(found, backwards=False)


@pytest.mark.parametrize("where", STORAGES)
def test_searches_that_share_a_storage_leave_each_other_alone(tmp_path: Path, where: str) -> None:
    storage, told = where.format(tmp_path), list[str]()
    names = [study_name("study", "f", store, seed) for store, seed in (("/a", 0), ("/b", 0), ("/a", 1))]
    assert len({*names}) == 3
    first = optuna_search(SPACE, kept_in(storage), 0, names[0], told.append)
    begun = [first.suggest(str(trial)) for trial in range(3)]
    for name, seed in zip(names[1:], (0, 1), strict=True):
        assert searched(
            optuna_search(SPACE, kept_in(storage), seed, name, told.append), backwards=False
        ) == undisturbed(seed)
    for trial in range(3):
        first.on_trial_complete(str(trial), dict.fromkeys(ACCURACIES, 0.5))
    assert begun == undisturbed()[:3]
    assert [len(copy_of(storage, name).trials) for name in names] == [3, 9, 9]
    assert [trial.params for trial in copy_of(storage, names[0]).trials] == begun
    assert told == []


def test_a_journal_whose_last_line_is_cut_is_told_of_with_the_remedy_and_left_as_it_is(tmp_path: Path) -> None:
    journal, told = tmp_path / "search.journal", list[str]()
    searched(optuna_search(SPACE, kept_in(str(journal)), 0, "study on f", told.append), backwards=False)
    journal.write_bytes(cut := journal.read_bytes()[:-20])
    try_storage(kept_in(str(journal)))
    found = optuna_search(SPACE, kept_in(str(journal)), 0, "study on f", told.append)
    assert searched(found, backwards=False) == undisturbed()
    (line,) = told
    assert all(part in line for part in (str(journal), "its last line is cut off", "Remedy: move the file away"))
    assert journal.read_bytes() == cut
    journal.write_bytes(cut + b"\n{}\n")
    optuna_search(SPACE, kept_in(str(journal)), 0, "study on f", told.append)
    assert "the journal is damaged (" in told[1]


def test_a_storage_that_fails_while_a_search_runs_is_told_of_once_and_changes_nothing(tmp_path: Path) -> None:
    storage, told = f"sqlite:///{tmp_path}/search.db", list[str]()
    found = optuna_search(SPACE, kept_in(storage), 0, "study on f", told.append)
    optuna.delete_study(study_name="study on f", storage=storage)  # by a person, in the dashboard
    other = optuna.create_study(study_name="another", storage=storage)
    assert searched(found, backwards=False) == undisturbed()
    assert len(told) == 1
    assert storage in told[0]
    assert other.trials == []


def test_a_storage_that_does_not_answer_holds_no_search_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered, told = threading.Event(), list[str]()
    monkeypatch.setattr(optuna_study, "ANSWERED_IN", 0.1)
    monkeypatch.setattr(optuna_study, "begin_anew", lambda *given: answered.wait())
    found = optuna_search(SPACE, kept_in(str(tmp_path / "a.log")), 0, "study on f", told.append)
    assert searched(found, backwards=False) == undisturbed()
    answered.set()
    assert [line.rpartition("The cause: ")[2] for line in told] == ["it has not answered for 0.1 s"]


def test_somebody_elses_study_in_the_storage_is_left_alone(tmp_path: Path) -> None:
    storage, told = f"sqlite:///{tmp_path}/search.db", list[str]()
    optuna.create_study(study_name="study on f", storage=storage).add_trial(optuna.create_trial(value=1.0))
    searched(optuna_search(SPACE, kept_in(storage, "tpe"), 0, "study on f", told.append), backwards=False)
    assert len(told) == 1
    assert "'study on f' already that is not of mi_ray; name another storage" in told[0]
    assert len(optuna.load_study(study_name="study on f", storage=storage).trials) == 1


def test_a_database_that_is_locked_or_does_not_answer_stops_no_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(cause: str) -> None:
        def opened(storage: str) -> None:
            raise OperationalError("select", {}, Exception(cause))

        monkeypatch.setattr(optuna_study, "_opened", opened)

    failing("database is locked")
    try_storage(kept_in("sqlite:///search.db"))
    failing("connection refused")
    try_storage(kept_in("postgresql://host/search"))
    with pytest.raises(ValueError, match=r"the storage sqlite:///search\.db cannot be opened: connection refused"):
        try_storage(kept_in("sqlite:///search.db"))


@pytest.mark.parametrize(
    ("storage", "told"),
    [
        ("sqlite:////nowhere/at/all/search.db", "cannot be opened: .*unable to open database file"),
        ("/nowhere/at/all/search.log", "cannot be opened: .*No such file or directory"),
        ("odd://host/search", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_told_before_any_work(tmp_path: Path, storage: str, told: str) -> None:
    sweep = {**tiny(tmp_path).study.sweep.document(), "search": {"optuna": {"trials": 1, "storage": storage}}}
    with pytest.raises(ValueError, match=told):
        run_sweep(sweep, tmp_path / "results", progress=False)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("storage", "told"),
    [("search", "must be a database's URL"), ("postgresql://me:secret@host/db", "must be a URL without a password")],
)
def test_a_storage_is_a_url_without_a_password_or_a_journal(storage: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refused:
        OptunaSearch.model_validate({"storage": storage})
    assert told.startswith("must be a database's") or "secret" not in str(refused.value.errors()[0]["msg"])  # type: ignore[attr-defined]


def test_a_trial_makes_the_images_that_its_adaptive_attack_chooses_among(tmp_path: Path) -> None:
    one = tiny(
        tmp_path,
        points={"count": 20, "selection": 10},
        attacks=[{"transfer": {}, "epsilon": 0.1, "knowledge": "black_box", "images": [{"pgd": {"steps": 3}}]}],
        executions=1,
        draws=1,
        defenses=[{"gaussian_noise": {"sigma": [0.1, 0.2]}}],
        search={"optuna": {"trials": 2}},
    )
    compute(one)
    planner = one.study.planner
    (work,) = planner.classifiers
    config = {"defense": "0:gaussian_noise", "0:gaussian_noise.sigma": 0}
    trial = ResolveSearch(planner, search_space(planner, work), work.key)(config)
    for found in trial.works:
        for block in one.bench.results.missing(found, 20):
            one.bench.compute(*block)
    assert all(0 <= value <= 1 for value in accuracies(one.bench, trial, (0, 20)).values())


def test_a_grid_is_told_what_an_attack_for_the_nearest_image_leaves_at_its_radii_and_nothing_where_none_is(
    tmp_path: Path,
) -> None:
    noise = {"gaussian_noise": {"sigma": 0.01}}
    attacked = tiny(
        tmp_path / "a", attacks=[{"minimum_norm": {"steps": 5}, "epsilon": [0.001, 0.01]}], defenses=[noise]
    )
    compute(attacked)
    rows = derived(attacked)
    most = [row for row in rows if row["executions"] == max(each["executions"] for each in rows)]
    own = [row["accuracy"] for row in most if row["defense"] == "gaussian_noise" and row["attack"] == "minimum_norm"]
    assert len(own) == 2
    (trial,) = grid_trials(attacked.plan.outputs, attacked.plan.cells)
    first, last = attacked.study.sweep.points.selection, attacked.study.sweep.points.count
    assert accuracies(attacked.bench, trial, (first, last))[ACCURACIES[1]] == min(own)
    clean = replace(trial, works=[work for work in trial.works if work.inputs.attack is None], reads={})  # type: ignore[union-attr]
    assert math.isnan(accuracies(attacked.bench, clean, (first, last))[ACCURACIES[1]])
