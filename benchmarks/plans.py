"""How many times fewer passes a plan takes than cell by cell, and how fast a finished study is recognised."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Row
from mi_ray.config import Sweep
from mi_ray.study.estimate import distinct_and_requested
from mi_ray.study.prepare import prepare
from mi_ray.sweep_files import load_sweep, parse_overrides

SWEEPS = Path(__file__).parent.parent / "sweeps"
ON_DIGITS = ("dataset=digits", "points.count=500")  # the ratio does not depend on the images


def grid() -> Sweep:
    """The Fig. 3(b) grid of 8,560 cells: 2 classifiers, 46 settings, 9 x 9 ratio pairs x 10 thresholds, 5 values of N."""
    nine: Any = {"linspace": [0.1, 0.9, 9]}
    return Sweep.model_validate(
        {
            "name": "grid",
            "dataset": "digits",
            "points": {"count": 500},
            "executions": [1, 5, 10, 20, 30],
            "draws": 1,
            "checks": "cheap",
            "classifiers": [{"name": n, "architecture": "cnn_small", "seed": s} for s, n in enumerate(("a", "b"))],
            "attacks": [{"pgd": {"steps": [10]}, "epsilon": 8 / 255}],
            "defenses": [
                "none",
                {"gaussian_noise": {"sigma": {"linspace": [0.005, 0.05, 10]}}},
                {"random_rotation": {"degrees": [5, 10, 20, 30, 40]}},
                {"random_pad": {"crop": [[16, 24], [18, 26], [20, 28], [22, 30], [24, 32]]}},
                {"random_resize": {"crop": [[16, 24], [18, 26], [20, 28], [22, 30], [24, 32]]}},
                {"mi_pl": {"lam": nine}},
                {"mi_ol": {"lam": nine}},
                {"mi_combined": {"lam_pl": nine, "lam_ol": nine, "threshold": {"linspace": [0.05, 0.5, 10]}}},
            ],
        }
    )


def _planned(name: str, sweeps: list[Sweep], target: float | None) -> list[Row]:
    """One row for the forward passes, which have a target, and one for forward and backward passes together."""
    distinct, requested, cells = distinct_and_requested([prepare(sweep) for sweep in sweeps])
    told = f"{cells:,} cells; the plan's own count"
    ways = [
        ("forward passes", distinct[0], requested[0], target),
        ("passes of both ways", sum(distinct), sum(requested), None),
    ]
    return [
        Row(f"{name}: {unit}", "cell by cell", least, [naive / done], done, naive, "passes", told, True)
        for unit, done, naive, least in ways
    ]


def _recognised() -> Row:
    """How many seconds a fresh process takes to see that a study of 1,000 cells is finished, without importing torch."""
    code = (
        "import sys; from pathlib import Path; "
        "from mi_ray.sweep_files import load_sweep; from mi_ray.store.manifest import study_state;"
        "state = study_state(load_sweep(Path(sys.argv[1])), sys.argv[2]); print(state, 'torch' in sys.modules)"
    )
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "thousand.yaml"
        sweep.write_text(THOUSAND)
        command = [sys.executable, "-m", "mi_ray.cli", "sweep", str(sweep), "--out", f"{folder}/results"]
        subprocess.run(command, check=True, capture_output=True)
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            told = subprocess.run(
                [sys.executable, "-c", code, str(sweep), f"{folder}/results"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.strip()
            seconds.append(time.perf_counter() - began)
    found = sorted(seconds)[1]
    return Row(
        "finished study, 1,000 cells",
        "5 seconds",
        1.0,
        [s / 5 for s in seconds],
        found,
        5.0,
        "s",
        f"(state, torch imported) = {told}",
        told == "finished False",
        True,
    )


THOUSAND = """
name: thousand
dataset: digits
points: {count: 50}
classifiers: [{name: a, architecture: {cnn_small: {width: 4}}, training: {epochs: 1, lr: 0.05}}]
attacks: [{pgd: {steps: [1]}, epsilon: 0.02}]
executions: [1, 5]
draws: 1
checks: cheap
defenses:
  - none
  - mi_combined: {lam_pl: [0.4, 0.6], lam_ol: {linspace: [0.3, 0.7, 5]}, threshold: {linspace: [0.02, 0.5, 25]}}
figures: [frontier_table]
"""


def _oblivious(sweep: Sweep) -> Sweep | None:
    """The sweep without its adaptive attacks, each of which is made for one setting: nothing of it can be shared."""
    kept = tuple(entry for entry in sweep.attacks if entry.knowledge == "oblivious")
    return sweep.model_copy(update={"attacks": kept}) if kept else None


def rows(*, quick: bool) -> list[Row]:
    """The rows of every plan that is counted; quick: without the study that must be run first."""
    paper = {}
    for file in sorted(SWEEPS.glob("*.yaml")):
        if file.stem not in ("quickstart", "cifar10_small"):
            some = ["points.selection=100"] if "selection:" in file.read_text() else []
            paper[file.stem] = load_sweep(file, overrides=parse_overrides((*ON_DIGITS, *some)))
    table2 = {n: _oblivious(paper["table2"].model_copy(update={"draws": n})) for n in (1, 10)}
    oblivious = {name: kept for name, sweep in paper.items() if (kept := _oblivious(sweep)) is not None}
    compared: list[tuple[str, list[Sweep], float | None]] = [
        ("Fig. 3(b) grid", [grid()], 100),
        *(
            (f"Table 2, oblivious, draws: {n}", [sweep], 3.4 if n == 1 else None)
            for n, sweep in table2.items()
            if sweep
        ),
        ("all sweeps of the paper, oblivious", list(oblivious.values()), 20),
        ("all sweeps, adaptive attacks too", list(paper.values()), None),
    ]
    found = [row for name, sweeps, target in compared for row in _planned(name, sweeps, target)]
    return found if quick else [*found, _recognised()]
