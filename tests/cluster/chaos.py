"""Kills processes of a study at seeded random moments, and compares its rows with an undisturbed run's, bit for bit.

    python tests/cluster/chaos.py --minutes 30 --seed 0

Each round computes the study `TINY` of tests/helpers/commands.py from nothing on a cluster of several nodes on this machine. At
random moments a block's worker, a trial's actor, a training worker, a training's driver, any worker, a node or the
command itself is killed with SIGKILL, the command is interrupted with SIGINT, or a node joins. A command that was
ended is started again, until it ends by itself with exit code 0. Prints what was killed and when; exits 1 at the first
difference.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from helpers.clusters import Nodes, nodes
from helpers.commands import TINY, assert_same_rows, command, rows, run

from mi_ray.store.blocks import Store
from mi_ray.store.check import check_store

VICTIMS = (
    "block",
    "block",
    "trial",
    "trial",
    "training worker",
    "training worker",
    "training",
    "any worker",
    "node",
    "driver",
    "ctrl-c",
    "node joins",
)
MOST_RESTARTS = 40  # of the command in one round


class Round:
    """One study, computed under fire."""

    def __init__(self, folder: Path, cluster: Nodes, chooser: random.Random, pause: tuple[float, float]) -> None:
        self.folder, self.cluster, self.chooser, self.pause = folder, cluster, chooser, pause
        self.kills = Counter[str]()
        self.began, self.starts, self.given_up = time.monotonic(), 0, 0
        self.driver: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """The command, again and again the same."""
        self.starts += 1
        assert self.starts < MOST_RESTARTS, "the study does not come to its end"
        with (self.folder / "output.txt").open("a") as log:
            self.driver = subprocess.Popen(
                [*command(self.folder, TINY), "--address", self.cluster.address, "--log", "log.jsonl"],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    def run(self, deadline: float) -> bool:
        """Until the study is complete; no kills any more after the deadline. Returns whether it was disturbed."""
        self.start()
        assert self.driver is not None
        strike = time.monotonic() + self.chooser.uniform(*self.pause)
        while True:
            code = self.driver.poll()
            if code == 0:
                return bool(self.kills)
            if code is not None:
                self.ended(code)
                self.start()
            if time.monotonic() > strike and time.monotonic() < deadline:
                self.strike()
                strike = time.monotonic() + self.chooser.uniform(*self.pause)
            time.sleep(0.05)

    def ended(self, code: int) -> None:
        """Whether a command may have ended so."""
        if code == 1:  # tried as often as it may be: what it says must be that, and the same command goes on
            self.given_up += 1
            assert "same command" in (self.folder / "output.txt").read_text(), self.tail()
        else:
            # -SIGINT: Ctrl-C while Python itself starts or ends, where no handler stands
            assert code in (-signal.SIGKILL, 130, -signal.SIGINT), f"exit code {code}\n{self.tail()}"
        self.say(f"the command ended with {code}, start {self.starts + 1}")

    def tail(self) -> str:
        """The end of what the command said."""
        return (self.folder / "output.txt").read_text()[-3000:]

    def strike(self) -> None:
        """Kill one of the things that are there."""
        there = {kind: found for kind in VICTIMS if (found := self.victims(kind))}
        kind = self.chooser.choice([kind for kind in VICTIMS if kind in there])
        if kind == "node":
            told = self.cluster.lose(self.chooser)
        elif kind == "node joins":
            told = 0
            self.cluster.join()
        else:
            told = self.chooser.choice(there[kind])
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(told, signal.SIGINT if kind == "ctrl-c" else signal.SIGKILL)
        self.kills[kind] += 1
        self.say(f"{kind}{f' (process {told})' if told else ''}")

    def victims(self, kind: str) -> list[int]:
        """Processes of a kind, in a fixed order; of nodes, their number."""
        assert self.driver is not None
        if kind in ("driver", "ctrl-c"):
            return [self.driver.pid]
        if kind in ("node", "node joins"):
            enough = len(self.cluster.workers) >= 2 if kind == "node" else len(self.cluster.workers) <= 2
            return [len(self.cluster.workers)] if enough else []
        return sorted(self.cluster.processes()) if kind == "any worker" else self.cluster.of_kind(kind)

    def say(self, what: str) -> None:
        """A line, with seconds since the round began."""
        print(f"  {time.monotonic() - self.began:7.1f} s  {what}", flush=True)

    def check(self, undisturbed: Any) -> None:
        """Equal rows, a sound store, nothing left over."""
        assert_same_rows(rows(self.folder), undisturbed)
        assert check_store(Store(self.folder / "results"))[0] == []
        assert [str(path) for path in self.folder.rglob(".*.tmp")] == [], "temporary files are left"
        assert not (self.folder / "results-scratch").exists(), "training checkpoints are left"


def main() -> None:
    """Rounds until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="at most 45")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--pause",
        type=float,
        nargs=2,
        default=(0.02, 0.25),
        help="time between faults, from and to, in units of an undisturbed run's",
    )
    given = parser.parse_args()
    if not 0 < given.minutes <= 45:
        parser.error(f"--minutes must be above 0 and at most 45; got {given.minutes:g}")
    deadline, chooser, total = time.monotonic() + 60 * given.minutes, random.Random(given.seed), Counter[str]()
    place = Path(tempfile.mkdtemp(prefix="mi-ray-chaos-"))
    try:
        (place / "undisturbed").mkdir()
        began = time.monotonic()
        done = run(place / "undisturbed", TINY)
        assert done.returncode == 0, done.stdout + done.stderr
        whole = time.monotonic() - began
        pause = (given.pause[0] * whole, given.pause[1] * whole)
        print(f"undisturbed in {whole:.0f} s; a fault every {pause[0]:.1f} to {pause[1]:.1f} s", flush=True)
        reference, number, starts, given_up = rows(place / "undisturbed"), 0, 0, 0
        while time.monotonic() < deadline:
            number += 1
            print(f"round {number}, seed {given.seed}", flush=True)
            folder = place / f"round-{number}"
            folder.mkdir()
            with nodes(chooser.choice((2, 3))) as cluster:
                one = Round(folder, cluster, chooser, pause)
                one.run(deadline)
            one.check(reference)
            one.say(f"the same {len(reference):,} rows after {sum(one.kills.values())} faults, {one.starts} starts")
            total += one.kills
            starts, given_up = starts + one.starts, given_up + one.given_up
            shutil.rmtree(folder)
        print(
            f"{number} rounds, {sum(total.values())} faults ({dict(total)}), {starts} starts, {given_up} times given up "
            f"and started again: every round ended with the rows of an undisturbed run"
        )
    except BaseException:
        print(f"what the failed round left is in {place}", file=sys.stderr)
        raise
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
