"""Intervals, survival of several attempts and undominated settings, against known values and brute force."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mi_ray.statistics import FRONTIER_KEYS, accuracy, cell_summary, frontier, survival_of_attempts, undominated


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_newcombe_1998(right: int, total: int, low: float, high: float) -> None:
    found = accuracy([1] * right + [0] * (total - right), draws=1)
    assert found.interval == "wilson"
    assert found.value == pytest.approx(right / total)
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == pytest.approx(high, abs=1e-4)


def test_a_thousand_points_at_one_half_give_plus_minus_three_points() -> None:
    found = accuracy([3] * 500 + [0] * 500, draws=3)
    assert found.interval == "wilson"
    assert found.high - found.value == pytest.approx(0.031, abs=5e-4)


def test_points_that_are_sometimes_right_get_a_bootstrap_that_repeats() -> None:
    counts = np.random.default_rng(1).integers(0, 4, 100)
    found = accuracy(counts, 3)
    assert found.interval == "bootstrap"
    assert found.value == pytest.approx(counts.mean() / 3)
    assert found.low < found.value < found.high
    assert found == accuracy(counts[::-1], 3)


def test_the_bootstrap_interval_covers_the_mean_about_95_times_in_100() -> None:
    rng, covered, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        chance = rng.beta(0.5, 0.5, 120)
        found = accuracy(rng.binomial(3, chance), 3)
        assert found.interval == "bootstrap"
        covered += found.low <= 0.5 <= found.high
    assert 0.91 <= covered / trials <= 0.985


def test_the_bootstrap_is_about_as_wide_as_the_normal_interval() -> None:
    counts = np.random.default_rng(2).integers(0, 4, 400)
    found = accuracy(counts, 3)
    assert found.high - found.low == pytest.approx(2 * 1.96 * (counts / 3).std() / 20, rel=0.1)


def test_an_accuracy_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one point"):
        accuracy([], 1)


@pytest.mark.parametrize("draws", [1, 3, 6])
def test_survival_of_attempts_is_the_share_of_subsets_that_are_all_right(draws: int) -> None:
    counts = np.random.default_rng(draws).integers(0, draws + 1, 20)
    for attempts in range(1, draws + 1):
        subsets = list(combinations(range(draws), attempts))
        shares = [np.mean([max(subset) < count for subset in subsets]) for count in counts]
        assert survival_of_attempts(counts, draws, attempts) == pytest.approx(np.mean(shares))


def test_survival_of_one_attempt_is_the_mean_survival_and_of_all_the_share_always_right() -> None:
    counts = np.array([0, 1, 2, 3, 3])
    assert survival_of_attempts(counts, 3, 1) == pytest.approx(accuracy(counts, 3).value)
    assert survival_of_attempts(counts, 3, 3) == pytest.approx(2 / 5)


@pytest.mark.parametrize("attempts", [0, 4])
def test_more_attempts_than_draws_or_none_are_refused(attempts: int) -> None:
    with pytest.raises(ValueError, match=f"from 1 to draws=3; got {attempts}"):
        survival_of_attempts([1], 3, attempts)


def _beaten(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return b[0] >= a[0] and b[1] >= a[1] and (b[0] > a[0] or b[1] > a[1])


def test_undominated_is_what_brute_force_finds_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        size, levels = rng.integers(1, 12), rng.integers(1, 6)
        clean, adversarial = rng.integers(0, levels, (2, size)) / levels
        settings = list(zip(clean, adversarial, strict=True))
        expected = [not any(_beaten(a, b) for b in settings) for a in settings]
        assert undominated(clean, adversarial).tolist() == expected


def _cell(defense: str, attack: str, accuracy_: float, selection: float | None, **other: Any) -> dict[str, Any]:
    return {
        "classifier": "f", "classifier_key": "k", "defense": defense, "defense_params": "{}", "executions": 30,
        "draws": 3, "attack": attack, "attack_params": "{}", "goal": "untargeted", "epsilon": 0.03,
        "knowledge": "oblivious", "state": "done", "accuracy": accuracy_, "accuracy_low": accuracy_ - 0.1,
        "accuracy_high": accuracy_ + 0.1, "selection_accuracy": selection, **other,
    }  # fmt: skip


def _cells(selection: bool, **other: Any) -> pd.DataFrame:
    # a is the best of both on the reported points, b on the selection points
    accuracies = {"a": (0.9, 0.6, 0.7, 0.2), "b": (0.8, 0.5, 0.8, 0.3), "c": (0.7, 0.1, 0.6, 0.1)}
    rows = []
    for name, (clean, attacked, clean_chosen, attacked_chosen) in accuracies.items():
        rows.append(_cell(name, "none", clean, clean_chosen if selection else None))
        rows.append(_cell(name, "pgd", attacked, attacked_chosen if selection else None, **other))
    return pd.DataFrame(rows).astype({"selection_accuracy": float})


@pytest.mark.parametrize(("selection", "winner"), [(True, "b"), (False, "a")])
def test_a_frontier_is_picked_on_selection_points_where_there_are_some(selection: bool, winner: str) -> None:
    table = frontier(_cells(selection)).set_index("defense")
    assert table.index[table["undominated"]].tolist() == [winner]


def test_a_frontier_reports_other_points_than_it_picks_on() -> None:
    row = frontier(_cells(True)).set_index("defense").loc["b"]
    assert (row["clean"], row["adversarial"]) == (0.8, 0.5)
    assert (row["clean_low"], row["adversarial_high"]) == pytest.approx((0.7, 0.6))
    assert (row["clean_selection"], row["adversarial_selection"]) == (0.8, 0.3)


def test_a_frontier_compares_within_one_attack_and_threat_only() -> None:
    cells = pd.concat([_cells(False), _cells(False, goal="targeted").query("attack != 'none'")])
    cells.loc[(cells["defense"] == "a") & (cells["goal"] == "targeted"), "accuracy"] = 0.0
    table = frontier(cells)
    best = {goal: set(part.loc[part["undominated"], "defense"]) for goal, part in table.groupby("goal")}
    assert best == {"untargeted": {"a"}, "targeted": {"a", "b"}}


def test_a_frontier_leaves_out_cells_that_are_not_done() -> None:
    cells = _cells(False)
    cells.loc[(cells["defense"] == "a") & (cells["attack"] == "pgd"), "state"] = "failed"
    table = frontier(cells)
    assert set(table["defense"]) == {"b", "c"}
    assert set(FRONTIER_KEYS) <= set(table.columns)


def test_a_cells_summary_keeps_selection_points_out_of_what_is_reported() -> None:
    counts, chosen = np.array([3, 0, 1, 3]), np.array([False, False, True, True])
    summary = cell_summary(counts, chosen, 3)
    assert (summary["points"], summary["accuracy"], summary["survival"][-1]) == (2, 0.5, 0.5)
    assert (summary["selection_points"], summary["selection_accuracy"]) == (2, pytest.approx(4 / 6))
    assert cell_summary(counts, np.zeros(4, bool), 3)["selection_accuracy"] is None
