"""What plans, reads and waits imports nothing heavy."""

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest

STATISTICS = ("scipy.stats", "scipy.signal", "scipy.special", "sklearn", "matplotlib", "optuna")


def loaded(*steps: tuple[str, Sequence[str]]) -> dict[str, list[str]]:
    """Run steps one after another in one fresh process: which of the modules beside it are imported after each of them.

    Starting Python for each would take most of the time; what an early step imports is still there after a later one.
    """
    code = ["import json, sys", "found = {}"]
    for step, unneeded in steps:
        code += [step, f"found[{step!r}] = sorted({set(unneeded)} & set(sys.modules))"]
    code += ["print(json.dumps(found))"]
    told = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = json.loads(told.stdout)
    assert len(found) == len(steps)
    return found


def test_what_a_reader_needs_imports_neither_torch_nor_ray() -> None:
    readers = ("plan.planner", "config", "store.read", "store.manifest", "statistics", "store.check", "cli")
    found = loaded(*((f"import mi_ray.{module}", ("torch", "ray")) for module in readers))
    assert not any(found.values()), found


def test_what_trials_wait_for_starts_without_torch_and_ray_tune() -> None:
    found = loaded(("import mi_ray.cluster.actors", ("torch", "ray.tune", "pandas")))
    assert not any(found.values()), found


def test_a_worker_starts_without_what_only_statistics_and_figures_need() -> None:
    found = loaded(
        ("import mi_ray.cluster.worker", ("pandas", *STATISTICS)), ("import mi_ray.cluster.search", STATISTICS)
    )
    assert not any(found.values()), found


@pytest.mark.long  # It keeps a plan quick; it can break no result.
def test_a_plan_of_digits_needs_neither_scikit_learn_nor_pandas_nor_what_scipy_has_of_statistics() -> None:
    plan = (
        "import mi_ray.study.estimate; from mi_ray.data import Digits; from mi_ray.statistics import detectable_difference; "
        "Digits().load(), detectable_difference(100)"
    )
    unneeded = ("pandas", "sklearn", "scipy.stats", "matplotlib", "ray")
    found = loaded((plan, unneeded), ("import mi_ray.figures.terminal", ("pandas",)))
    assert not any(found.values()), found
