"""What rows say: accuracies with intervals, and undominated settings. Pure functions of counts and frames."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 2000


@dataclass(frozen=True)
class Accuracy:
    """An accuracy in [0, 1] with its 95 % interval, and how that was made: "wilson" or "bootstrap"."""

    value: float
    low: float
    high: float
    interval: str


def accuracy(correct_draws: npt.ArrayLike, draws: int) -> Accuracy:
    """Mean survival of points under one attempt, with an interval over points, the sampling unit.

    correct_draws: for each point, how many of `draws` independent draws were right. Wilson where every point is
    either always or never right (a deterministic cell among them), else a percentile bootstrap over points with a
    fixed seed. Raises ValueError without points.
    """
    counts = np.asarray(correct_draws)
    if counts.size == 0:
        raise ValueError("an accuracy needs at least one point; got none")
    mean = float(counts.mean() / draws)
    if np.isin(counts, (0, draws)).all():
        right = int((counts == draws).sum())
        found = stats.binomtest(right, len(counts)).proportion_ci(CONFIDENCE, method="wilson")
        return Accuracy(mean, float(found.low), float(found.high), "wilson")
    # Resampled points only matter through how often each count occurs: one multinomial a resample.
    values, times = np.unique(counts, return_counts=True)
    resampled = np.random.default_rng(0).multinomial(len(counts), times / len(counts), RESAMPLES)
    means = resampled @ values / (len(counts) * draws)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Accuracy(mean, float(low), float(high), "bootstrap")


def survival_of_attempts(correct_draws: npt.ArrayLike, draws: int, attempts: int) -> float:
    """The share of points that survive `attempts` attempts, from c right of R draws: the mean of C(c, k) / C(R, k).

    Raises ValueError unless 1 <= attempts <= draws.
    """
    if not 1 <= attempts <= draws:
        raise ValueError(f"attempts must be from 1 to draws={draws}; got {attempts}")
    from scipy.special import comb

    return float(np.mean(comb(np.asarray(correct_draws), attempts) / comb(draws, attempts)))


def detection_auc(clean: npt.ArrayLike, adversarial: npt.ArrayLike) -> float:
    """Area under the ROC curve of a score that is higher on adversarial inputs (paper, Fig. 3a): 0.5 tells nothing."""
    from sklearn.metrics import roc_auc_score

    low, high = np.asarray(clean, float), np.asarray(adversarial, float)
    return float(roc_auc_score(np.repeat([0, 1], [len(low), len(high)]), np.concatenate([low, high])))


def undominated(clean: npt.ArrayLike, adversarial: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which settings no other beats: none is at least as good in both accuracies and better in one."""
    points = np.column_stack([np.asarray(clean, float), np.asarray(adversarial, float)])
    at_least = (points[None] >= points[:, None]).all(-1)
    better = np.any(points[None] > points[:, None], axis=-1)
    return ~np.any(at_least & better, axis=1)


FRONTIER_KEYS = ["classifier", "classifier_key", "defense", "defense_params", "executions", "draws"]


def frontier(cells: pd.DataFrame) -> pd.DataFrame:
    """One row per (setting, attack): its clean and its adversarial cell side by side, and whether it is undominated.

    cells: rows of cells.parquet of one study. Columns `clean`, `clean_low`, `clean_high`, `adversarial`, … are of the
    reported points. `undominated` compares within (classifier, attack, threat model), on the selection points where
    the study has some, so that what is picked by its result is reported on other points.
    """
    done = cells[cells["state"] == "done"]
    clean = done[done["attack"] == "none"].set_index(FRONTIER_KEYS)
    attacked = done[done["attack"] != "none"]
    names = {
        "accuracy": "",
        "accuracy_low": "_low",
        "accuracy_high": "_high",
        "selection_accuracy": "_selection",
    }
    left = clean[[*names]].rename(columns={k: f"clean{v}" for k, v in names.items()})
    right = attacked.rename(columns={k: f"adversarial{v}" for k, v in names.items()})
    table = right.merge(left, left_on=FRONTIER_KEYS, right_index=True, how="inner").reset_index(drop=True)
    table["undominated"] = False
    threat = ["classifier_key", "attack", "attack_params", "goal", "epsilon", "knowledge"]
    for _, group in table.groupby(threat, sort=False):
        on = "_selection" if group["adversarial_selection"].notna().all() else ""
        keep = undominated(group[f"clean{on}"].to_numpy(), group[f"adversarial{on}"].to_numpy())
        table.loc[group.index, "undominated"] = keep
    return table


def cell_summary(counts: npt.ArrayLike, selection: npt.ArrayLike, draws: int) -> dict[str, Any]:
    """The columns of cells.parquet that come from a cell's rows. counts: correct draws; selection: a flag a row."""
    right, chosen = np.asarray(counts), np.asarray(selection, bool)
    reported = accuracy(right[~chosen], draws)
    return {
        "points": int((~chosen).sum()), "accuracy": reported.value, "accuracy_low": reported.low,
        "accuracy_high": reported.high, "interval": reported.interval,
        "survival": [survival_of_attempts(right[~chosen], draws, k) for k in range(1, draws + 1)],
        "selection_points": int(chosen.sum()),
        "selection_accuracy": float(right[chosen].mean() / draws) if chosen.any() else None,
    }  # fmt: skip
