"""A cluster of up to a thousand nodes of which some vanish, simulated for the paper's sweeps: how much of it is used.

    python -m benchmarks.simulation measure STORE     how long blocks of one work differ, from a store; what Ray and Tune cost
    python -m benchmarks.simulation run               the simulation, into benchmarks/simulation.json and benchmarks/README.md

Real: the plans, their blocks, the order of stages, and `mi_ray.cluster.blocks.Blocks`, which runs blocks and runs them
again. Measured: how much longer one block of a work takes than another (`seconds` of a store's blocks), what a task
costs Ray's driver and a step of a trial Ray Tune's. Assumed: how fast a GPU is, and the constants below. Simulated, in a
time of its own: placement, Ray Tune, and nodes that vanish, of which every running block begins anew on another.
"""

import argparse
import heapq
import itertools
import json
import math
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ray import exceptions
from rich.console import Console

from mi_ray.attacks import ATTACKS
from mi_ray.cluster.blocks import Blocks
from mi_ray.cluster.trials import grid_trials
from mi_ray.plan.cost import Costs
from mi_ray.plan.work import Plan, Work
from mi_ray.progress import Stage
from mi_ray.study.prepare import Study, prepare
from mi_ray.study.results import Item
from mi_ray.sweep_files import load_sweep, parse_overrides

HERE = Path(__file__).parent


def _cost(costs: Costs, work: Work) -> float:
    return float(sum(costs.of(work)))


KEPT = HERE / "simulation.json"
MARK = "<!-- figures of benchmarks.simulation -->"
PAPER = ("table2", "table3", "fig2", "fig3a", "fig3b", "fig4", "fig5", "presets", "epsilon_curve")
IMAGES = 50_000 / 1_297  # training images of CIFAR-10, for each one of digits, on which a training is counted
# What a point costs does not depend on the images.
ON_DIGITS = ("dataset=digits", "points={count: 500, selection: 100}")
FORWARD = 1.42e9  # operations of a forward pass of the paper's network; a backward pass to the image takes as many
RATE = 10e12  # operations a second of one GPU: about an A100 in fp32
PRICE = 0.50  # of a GPU for an hour
PER_NODE = 4  # blocks that share a GPU: `gpus: 0.25` in the sweeps
VANISH = 0.01 / 3600  # chance of a node to vanish, a second
NOTICED = 30.0  # seconds until Ray takes a silent node for lost
REPLACED = 300.0  # seconds until another one is there
START = 15.0  # seconds until a new worker computes: import of torch, its CUDA context, first kernels


@dataclass(eq=False)
class Task:
    """An attempt at a block."""

    item: Item
    turn: tuple[int, int]
    node: int = -1
    outcome: dict[str, Any] | Exception = field(default_factory=dict)


class Fleet:
    """Nodes of `PER_NODE` places each: what `Blocks` needs of a cluster (see `mi_ray.cluster.blocks.Cluster`), in simulated time.

    seconds: how long an item takes in one place. submitted: seconds of the driver for each task.
    """

    def __init__(self, gpus: int, seconds: Callable[[Item], float], submitted: float, seed: int) -> None:
        self.random, self.seconds, self.submitted = np.random.default_rng(seed), seconds, submitted
        self.time, self.busy, self.lost = 0.0, 0.0, 0
        self._number = itertools.count()
        self._events: list[tuple[float, int, str, Any]] = []
        self._queue, self._done, self._begun = deque[Task](), deque[Task](), list[dict[str, Any]]()
        self._running: dict[int, set[Task]] = {}
        self._warm, self._free = dict[int, int](), list[int]()
        for node in range(gpus):
            self._joined(node)
        self.gpus = gpus

    def _at(self, when: float, what: str, about: Any) -> None:
        heapq.heappush(self._events, (when, next(self._number), what, about))

    def _joined(self, node: int) -> None:
        self._running[node], self._warm[node] = set(), 0
        self._free += [node] * PER_NODE
        self._at(self.time + self.random.exponential(1 / VANISH), "vanished", node)

    def submit(self, item: Item, turn: tuple[int, int], alone: bool) -> Hashable:
        """See `Cluster`; the driver is busy with it for a moment."""
        self.time += self.submitted
        task = Task(item, turn)
        self._queue.append(task)
        return task

    def wait(self, tasks: Sequence[Hashable], seconds: float) -> Sequence[Hashable]:
        """See `Cluster`: time goes on to the next end of a task."""
        self._place()
        while not self._done and self._events:
            when, _, what, about = heapq.heappop(self._events)
            self.time = max(self.time, when)
            getattr(self, f"_{what}")(about)
            self._place()
        return [self._done.popleft() for _ in range(min(64, len(self._done)))]

    def result(self, task: Any) -> dict[str, Any]:
        """See `Cluster`."""
        if isinstance(task.outcome, Exception):
            raise task.outcome
        return dict(task.outcome)

    def cancel(self, task: Hashable) -> None:
        """See `Cluster`; nothing here runs into a limit of time."""
        raise NotImplementedError

    def passes(self) -> Sequence[dict[str, Any]]:
        """See `Cluster`; nothing here tells of a block that is under way."""
        return ()

    def begun(self) -> Sequence[dict[str, Any]]:
        """See `Cluster`."""
        found, self._begun = self._begun, []
        return found

    def now(self) -> float:
        """See `Cluster`."""
        return self.time

    def _place(self) -> None:
        while self._queue and self._free:
            node = self._free.pop()
            if node not in self._running:
                continue
            task = self._queue.popleft()
            task.node = node
            self._running[node].add(task)
            self._begun.append({"turn": task.turn, "node": str(node)})
            start = START if self._warm[node] < PER_NODE else 0.0
            self._warm[node] += 1
            seconds = self.seconds(task.item)
            self._at(self.time + start + seconds, "ended", (task, seconds))

    def _ended(self, about: tuple[Task, float]) -> None:
        task, seconds = about
        if task not in self._running.get(task.node, ()):
            return  # its node has gone
        self._running[task.node].remove(task)
        self._free.append(task.node)
        self.busy += seconds
        _, start, stop = task.item
        task.outcome = {"points": stop - start, "forward": 0, "backward": 0, "seconds": seconds}
        self._done.append(task)

    def _vanished(self, node: int) -> None:
        for task in self._running.pop(node):
            task.outcome = exceptions.NodeDiedError("the node died")
            self._at(self.time + NOTICED, "noticed", task)
        self.lost += 1
        self._at(self.time + REPLACED, "replaced", self.gpus + self.lost)

    def _noticed(self, task: Task) -> None:
        self._done.append(task)

    def _replaced(self, node: int) -> None:
        self._joined(node)


class Driver:
    """A study's stages, on a fleet. own: seconds of this process in `Blocks` itself, over all of its tasks."""

    def __init__(self, fleet: Fleet, tuned: float, points: int) -> None:
        self.fleet, self.tuned, self.points = fleet, tuned, points
        self.cost: Callable[[Work], float] = lambda work: 0.0
        self.own, self.tasks, self.trained = 0.0, 0, 0.0
        self.in_trials, self.busy_in_trials = 0.0, 0.0

    def blocks(self, works: Sequence[Work], count: int) -> None:
        """One stage of blocks."""
        longest_first = sorted(works, key=self.cost, reverse=True)  # as `compute_missing` has them
        self.run([item for work in longest_first for item in cut(work, count, self.points)])

    def run(self, items: Sequence[Item]) -> None:
        """Blocks, by the real code; the time that it takes for itself is measured on this processor."""
        if not items:
            return
        fleet, elsewhere = self.fleet, [0.0]

        class Timed:
            """The fleet, whose own time does not count."""

            def __getattr__(self, name: str) -> Callable[..., Any]:
                inner = getattr(fleet, name)

                def timed(*given: Any) -> Any:
                    began = time.perf_counter()
                    found = inner(*given)
                    elsewhere[0] += time.perf_counter() - began
                    return found

                return timed

        shown = Stage("simulated", sum(stop - start for _, start, stop in items), "points", Console(quiet=True))
        began = time.perf_counter()
        ran = Blocks(Timed(), items, None, shown, ()).run()
        self.own += time.perf_counter() - began - elsewhere[0]
        self.tasks += len(items)
        if ran.failures:
            raise RuntimeError(f"{len(ran.failures)} blocks were given up, which no fault here explains")

    def trials(self, plan: Plan, count: int) -> None:
        """Settings as trials, an actor in each place, all of which begin anew; Tune takes up one result after another.

        Fewer settings than places run as blocks first, as in `mi_ray.cluster.tuning`, and then each reports once.
        """
        settings = grid_trials(plan.outputs)
        fleet, lost = self.fleet, list[Item]()
        began, busy = fleet.time, fleet.busy
        few = len(settings) < fleet.gpus * PER_NODE
        if few:
            self.blocks([work for trial in settings for work in trial.works], count)
        waiting: deque[Any] = deque([[]] if few else steps(trial.works, count, self.points) for trial in settings)
        actors = min(len(waiting), fleet.gpus * PER_NODE)
        ends: list[tuple[float, int, list[list[Item]]]] = [(fleet.time + START, number, []) for number in range(actors)]
        number = itertools.count(actors)
        while ends:
            when, _, left = heapq.heappop(ends)
            fleet.time = max(fleet.time, when) + self.tuned  # Tune is one process, and busy with this
            if not left:
                if not waiting:
                    continue
                left = waiting.popleft()
                fleet.time += self.tuned
            seconds = sum(map(fleet.seconds, left[0]))
            if fleet.random.random() < 1 - math.exp(-VANISH * seconds):
                # What the trial lacks runs when the others are through; its place comes back with another node.
                fleet.lost += 1
                lost += [item for step in left for item in step]
                heapq.heappush(ends, (fleet.time + REPLACED + START, next(number), []))
                continue
            fleet.busy += seconds
            self.tasks += len(left[0])
            heapq.heappush(ends, (fleet.time + seconds, next(number), left[1:]))
        self.run(lost)
        self.in_trials += fleet.time - began
        self.busy_in_trials += fleet.busy - busy

    def train(self, plan: Plan, known: set[str]) -> None:
        """Trainings side by side, each on as many GPUs as it has workers, at the same rate."""
        free = [self.fleet.time] * self.fleet.gpus
        for work in plan.classifiers:
            if work.key in known:
                continue
            known.add(work.key)
            workers = min(work.entry.workers, self.fleet.gpus)
            chosen = sorted(free)[:workers]
            forward, backward = work.cost
            seconds = (forward + 2 * backward) * IMAGES * FORWARD / RATE / workers
            self.trained += seconds * workers
            free = sorted(free)[workers:] + [max(chosen) + START + seconds] * workers
        self.fleet.time = max(free)

    def study(self, study: Study, count: int) -> None:
        """The stages of mi_ray/cluster/runner.py in their order, without trainings and with every check."""
        plan = study.plan()
        of_f = [work for work in plan.outputs if work.component is None]
        self.blocks([work for work in of_f if work.inputs.attack is None], count)
        for points, some in plan.by_points(plan.attacks_at_once(lambda method: ATTACKS[method].goes_on)):
            self.blocks(some, points)
        for begins in (False, True):
            self.blocks([work for work in plan.attacks if bool(work.given) == begins], count)
        self.blocks([work for work in of_f if work.inputs.attack is not None], count)
        self.trials(plan, count)
        for points, attacks in plan.by_points(plan.check_attacks()):
            self.blocks(attacks, points)
        checked = plan.by_points(plan.check_outputs())
        for only_f in (True, False):
            for points, works in checked:
                self.blocks([work for work in works if (work.component is None) == only_f], points)


def cut(work: Work, count: int, points: int) -> list[Item]:
    """A work's blocks."""
    return [(work, start, min(start + points, count)) for start in range(0, count, points)]


def steps(works: Sequence[Work], count: int, points: int) -> list[list[Item]]:
    """A trial's steps: all of its works on one range of points, phase by phase."""
    found: dict[tuple[int, int], list[Item]] = {}
    for work in works:
        for item in cut(work, count, points):
            found.setdefault((work.phase, item[1]), []).append(item)
    return [found[key] for key in sorted(found)]


def spread_of(store: Path) -> tuple[list[float], int]:
    """How long a block takes against the median of its work, as 1,001 quantiles, over a store's blocks; and how many those are.

    Blocks of one size and one work do the same passes, so what is left is what the machine does to them.
    """
    from mi_ray.store.blocks import Store

    opened, ratios = Store(store), list[float]()
    for kind in ("adversarial", "outputs"):
        keys = opened.folders(kind)
        for key in np.random.default_rng(0).permutation(keys)[:300]:
            blocks = opened.blocks(kind, key)
            whole = [block for block in blocks if block.stop - block.start == blocks[0].stop - blocks[0].start]
            seconds = [opened.block_facts(block)["seconds"] for block in whole]
            median = float(np.median(seconds)) if len(seconds) >= 4 else 0.0
            ratios += [second / median for second in seconds] if median >= 0.5 else []
    return [round(float(value), 4) for value in np.quantile(ratios, np.linspace(0, 1, 1001))], len(ratios)


def seconds_by(kept: dict[str, Any], study: Study) -> Callable[[Item], float]:
    """How long an item takes in one of a GPU's places."""
    quantiles, costs, chooser = np.array(kept["spread"]), study.planner.costs, np.random.default_rng(0)
    quantiles = quantiles / quantiles.mean()

    def seconds(item: Item) -> float:
        work, start, stop = item
        operations = sum(costs.of(work)) * (stop - start) * FORWARD
        return float(operations / RATE * PER_NODE * chooser.choice(quantiles))

    return seconds


def simulate(
    kept: dict[str, Any], gpus: int, points: int, even: bool, names: Sequence[str], full: int | None
) -> dict[str, Any]:
    """One row of the table: sweeps one after another, as one command runs them."""
    kept = {**kept, **({"spread": [1.0]} if even else {})}
    known, first = (
        set[str](),
        prepare(load_sweep(HERE.parent / f"sweeps/{names[0]}.yaml", overrides=parse_overrides(ON_DIGITS))),
    )
    fleet = Fleet(gpus, seconds_by(kept, first), kept["task_seconds"], seed=gpus)
    driver = Driver(fleet, kept["step_seconds"], points)
    training = 0.0
    for name in names:
        count = full or load_sweep(HERE.parent / f"sweeps/{name}.yaml").points.count
        study = prepare(load_sweep(HERE.parent / f"sweeps/{name}.yaml", overrides=parse_overrides(ON_DIGITS)))
        fleet.seconds = seconds_by(kept, study)
        driver.cost = partial(_cost, study.planner.costs)
        began = fleet.time
        driver.train(study.plan(), known)
        training += fleet.time - began
        driver.study(study, count)
    rest = fleet.time - training
    what = "the paper's nine" if names == PAPER else f"{', '.join(names)} on {full:,} points"
    return {
        "sweeps": what,
        "gpus": gpus,
        "points": points,
        "even": even,
        "tasks": driver.tasks,
        "hours": fleet.time / 3600,
        "training_hours": training / 3600,
        "lost_nodes": fleet.lost,
        "trial_hours": driver.in_trials / 3600,
        "of_blocks": (fleet.busy - driver.busy_in_trials) / PER_NODE / (gpus * (rest - driver.in_trials)),
        "with_trials": fleet.busy / PER_NODE / (gpus * rest),
        "with_trainings": (fleet.busy / PER_NODE + driver.trained) / (gpus * fleet.time),
        "own_milliseconds": 1000 * driver.own / max(1, driver.tasks),
        "cost": gpus * fleet.time / 3600 * PRICE,
    }


FULL = 10_000  # images of CIFAR-10's test split
ROWS = (  # (GPUs, points of a block, whether blocks of one work take equally long, sweeps, points where not as in the files)
    (8, 250, False, PAPER, None),
    (64, 250, False, PAPER, None),
    (64, 10, False, PAPER, None),
    (64, 10, True, PAPER, None),
    (1000, 10, False, PAPER, None),
    (1000, 10, True, PAPER, None),
    (1000, 10, False, ("fig3b",), FULL),
    (1000, 10, True, ("fig3b",), FULL),
)
HEAD = (
    "sweeps|GPUs|points of a block|blocks of one work|blocks|hours|training|trials|nodes lost|"
    "efficiency of blocks|and trials|and trainings|own ms|cost"
)


def table(kept: dict[str, Any]) -> str:
    """The rows, for people."""
    lines = [f"| {HEAD.replace('|', ' | ')} |", "|" + " --- |" * (HEAD.count("|") + 1)]
    for row in kept["rows"]:
        spread = "take equally long" if row["even"] else "as measured"
        counts = [row["sweeps"], f"{row['gpus']:,}", row["points"], spread, f"{row['tasks']:,}"]
        hours = [f"{row[name]:.2f}" for name in ("hours", "training_hours", "trial_hours")]
        shares = [f"{row[name]:.2f}" for name in ("of_blocks", "with_trials", "with_trainings")]
        cells = [*counts, *hours, row["lost_nodes"], *shares, f"{row['own_milliseconds']:.3f}", f"{row['cost']:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    task, step = 1000 * kept["task_seconds"], 1000 * kept["step_seconds"]
    low, high, longest = (kept["spread"][share] for share in (50, 950, 1000))
    lines += [
        "",
        f"Measured: {kept['blocks']:,} blocks of a store took {low:.2f} to {high:.2f} times the median of their work",
        f"(5 % to 95 %; the longest {longest:.2f} times), on two cores with little other work. A task takes {task:.2f} ms of the",
        f"process that submits it to Ray, a step of a trial {step:.1f} ms of Ray Tune's.",
    ]
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "run"))
    parser.add_argument("store", nargs="?", type=Path, help="of measure: a store with many blocks")
    given = parser.parse_args()
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    if given.what == "measure":
        if given.store is None:
            parser.error("measure needs a store")
        kept["spread"], kept["blocks"] = spread_of(given.store)
        # Ray reads its environment when it is imported, which this module does.
        told = subprocess.run(
            [sys.executable, "-m", "benchmarks.ray_costs"], check=True, capture_output=True, text=True
        )
        kept |= json.loads(told.stdout.splitlines()[-1])
    else:
        kept["rows"] = []
        for row in ROWS:
            kept["rows"].append(simulate(kept, *row))
            print(json.dumps(kept["rows"][-1]), flush=True)
        page = HERE / "README.md"
        before, _, rest = page.read_text().partition(MARK)
        page.write_text(f"{before}{MARK}\n{table(kept)}\n{MARK}{rest.partition(MARK)[2]}")
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
