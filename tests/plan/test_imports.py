"""What plans, reads and waits imports nothing heavy."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["plan.planner", "config", "store.read", "store.manifest", "statistics", "store.check", "cli"]
)
def test_what_a_reader_needs_imports_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, mi_ray.{module}; print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_worker_starts_without_what_only_statistics_and_figures_need() -> None:
    unneeded = {"scipy.stats", "scipy.signal", "scipy.special", "sklearn", "matplotlib", "optuna"}
    code = f"import sys, mi_ray.cluster.worker, mi_ray.cluster.search; print(sorted({unneeded} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["cluster.worker", "figures.terminal"])
def test_pandas_is_imported_by_neither_a_worker_of_blocks_nor_the_tables_of_a_plan(module: str) -> None:
    code = f"import sys, mi_ray.{module}; print('pandas' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("module", ["actors"])
def test_what_trials_wait_for_starts_without_torch_and_ray_tune(module: str) -> None:
    code = f"import sys, mi_ray.cluster.{module}; print(sorted({{'torch', 'ray.tune', 'pandas'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_plan_of_digits_needs_neither_scikit_learn_nor_pandas_nor_what_scipy_has_of_statistics() -> None:
    code = (
        "import sys, mi_ray.study.estimate; from mi_ray.data import Digits; from mi_ray.statistics import detectable_difference\n"
        "Digits().load(), detectable_difference(100)\n"
        "print(sorted({'pandas', 'sklearn', 'scipy.stats', 'matplotlib', 'ray'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
