"""The time that `mi-ray plan` tells against the time that the run takes: `python -m benchmarks.planned quickstart --smoke`.

Each study is planned, and then run by the real command into an empty store, both in processes of their own as a person would
have them. The machine must have nothing else to do, since a plan tells of an idle one.
"""

import argparse
import subprocess
import sys
import tempfile
import time

PLAN = "import sys, mi_ray; print(mi_ray.plan_sweep(sys.argv[1], 'results', smoke=len(sys.argv) > 2).seconds)"


def main() -> None:
    """A line for each study: planned seconds, seconds of the command, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", help="sweep files, or packaged sweeps by their names")
    parser.add_argument("--smoke", action="store_true", help="the `smoke` part of each")
    given = parser.parse_args()
    smoke = ["--smoke"] if given.smoke else []
    print("| study | planned | the run | run / planned |\n| --- | --- | --- | --- |")
    for study in given.studies:
        with tempfile.TemporaryDirectory() as folder:
            planned = float(_ran(folder, [sys.executable, "-c", PLAN, study, *smoke])[1])
            seconds, _ = _ran(folder, [sys.executable, "-m", "mi_ray.cli", "sweep", study, *smoke])
        name = f"{study}{' --smoke' * given.smoke}"
        print(f"| {name} | {planned:.0f} s | {seconds:.0f} s | {seconds / planned:.2f} |", flush=True)


def _ran(folder: str, command: list[str]) -> tuple[float, str]:
    """(how long a command took, the last line that it printed). Raises CalledProcessError where it failed."""
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    return time.perf_counter() - began, done.stdout.strip().rpartition("\n")[2]


if __name__ == "__main__":
    main()
