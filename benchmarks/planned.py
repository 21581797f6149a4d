"""What a run takes against what `mi-ray plan` tells and against its passes alone: `python -m benchmarks.planned quickstart`.

Each study is planned, and then run by the real command into an empty store, both in processes of their own as a person would
have them. The machine must have nothing else to do, since a plan tells of an idle one.
"""

import argparse
import subprocess
import sys
import tempfile
import time

PLAN = """
import os, sys, mi_ray
time = mi_ray.plan_sweep(sys.argv[1], "results", smoke=len(sys.argv) > 2).time
print(time.whole, time.core / os.cpu_count())
"""


def main() -> None:
    """A line for each study: planned seconds, those of its passes alone, those of the command, and its ratios to both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", help="sweep files, or packaged sweeps by their names")
    parser.add_argument("--smoke", action="store_true", help="the `smoke` part of each")
    given = parser.parse_args()
    smoke = ["--smoke"] if given.smoke else []
    print("| study | planned | passes alone, on all cores | the run | run / planned | run / passes |")
    print("| --- | --- | --- | --- | --- | --- |")
    for study in given.studies:
        with tempfile.TemporaryDirectory() as folder:
            planned, passes = map(float, _ran(folder, [sys.executable, "-c", PLAN, study, *smoke])[1].split())
            seconds, _ = _ran(folder, [sys.executable, "-m", "mi_ray.cli", "sweep", study, *smoke])
        name = f"{study}{' --smoke' * given.smoke}"
        ratios = f"{seconds / planned:.2f} | {seconds / passes:.2f}"
        print(f"| {name} | {planned:.0f} s | {passes:.0f} s | {seconds:.0f} s | {ratios} |", flush=True)


def _ran(folder: str, command: list[str]) -> tuple[float, str]:
    """(how long a command took, the last line that it printed). Raises CalledProcessError where it failed."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, done.stdout.strip().rpartition("\n")[2]


if __name__ == "__main__":
    main()
