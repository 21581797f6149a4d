"""Every comparison of speed: `python -m benchmarks.run [--quick] [--only NAME]` prints tables and writes benchmarks/latest.json.

Every side runs in processes of its own, and the sides of a comparison take turns, so that whatever else the machine does
slows both. A ratio divides their time in one turn by ours: it says how many times faster we are.
"""

import argparse
import datetime
import json
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import cluster, limit, plans
from benchmarks.measure import CORES, Row, Runner, measure
from benchmarks.sides import FAST, median

EPSILONS = (2 / 255, 4 / 255, 8 / 255)
PROCESSOR = torch.backends.cpu.get_cpu_capability()  # the widest instructions that torch uses here, as AVX512
KEPT = Path("build/benchmarks")  # where the trained networks stay for later runs


def pgd(classifier: str, label: str, counts: dict[int, int], peers: list[str]) -> list[Row]:
    """PGD from the clean image against the bare loop, and against that peer which is the fastest in a short run.

    counts: how many points are attacked with each number of steps; peers: other libraries, as their sides are named.
    """
    workers = {"workers": CORES, "threads": 1}
    sides = {"ours": Runner("OurPgd", classifier, **workers), "bare": Runner("BarePgd", classifier, **workers)}
    sides |= {peer: Runner(f"{peer}Pgd", classifier) for peer in peers}
    score, rows = Runner("Score", classifier), []
    for side in sides.values():
        side(50 * CORES, 1, EPSILONS[0])
    tried = measure({peer: sides[peer] for peer in peers}, [(50 * CORES, 3, EPSILONS[0])] * 3)
    fastest = min(peers, key=lambda peer: min(seconds for seconds, _ in tried[peer]))
    for peer in set(peers) - {fastest}:
        sides.pop(peer).close()
    for steps, count in counts.items():
        found = measure(sides, [(count, steps, epsilon) for epsilon in EPSILONS])
        seconds = {name: [s for s, _ in turns] for name, turns in found.items()}
        kept = {name: [score(images, False)[1].mean() for _, images in turns] for name, turns in found.items()}
        for against, target in ((fastest, 3.0), ("bare", 0.95)):
            ratios = [theirs / ours for theirs, ours in zip(seconds[against], seconds["ours"], strict=True)]
            gaps = [100 * abs(a - b) for a, b in zip(kept["ours"], kept[against], strict=True)]
            check = "robust accuracy " + ", ".join(
                f"{100 * a:.1f}/{100 * b:.1f}" for a, b in zip(kept["ours"], kept[against], strict=True)
            )
            rows.append(
                Row(
                    f"PGD-{steps}, {label}",
                    against,
                    target,
                    ratios,
                    count / median(seconds["ours"]),
                    count / median(seconds[against]),
                    "points/s",
                    check,
                    bool(max(gaps) <= 0.501),
                    notes={
                        "points": count,
                        "seconds": seconds,
                        "epsilons": EPSILONS,
                        "tried": {peer: [s for s, _ in turns] for peer, turns in tried.items()},
                    },
                )
            )
    for side in (*sides.values(), score):
        side.close()
    return rows


def _pair(
    name: str,
    against: str,
    target: float,
    ours: Runner,
    theirs: Runner,
    turns: list[tuple[Any, ...]],
    amount: int,
    unit: str,
    check: Callable[[np.ndarray, np.ndarray], tuple[str, bool]],
) -> Row:
    for side in (ours, theirs):
        side(*turns[0])
    found = measure({"ours": ours, "theirs": theirs}, turns)
    mine, other = ([seconds for seconds, _ in found[side]] for side in ("ours", "theirs"))
    told, equal = check(found["ours"][-1][1], found["theirs"][-1][1])
    ratios = [b / a for a, b in zip(mine, other, strict=True)]
    return Row(name, against, target, ratios, amount / median(mine), amount / median(other), unit, told, equal)


def _same_answers(ours: np.ndarray, theirs: np.ndarray) -> tuple[str, bool]:
    same = int((ours.argmax(1) == theirs.argmax(1)).sum())
    return f"{same} of {len(ours)} predictions equal, probabilities within {abs(ours - theirs).max():.1e}", (
        same >= 0.995 * len(ours)
    )


def executions(classifier: str, count: int, turns: int) -> list[Row]:
    """MI-OL with N = 30 against a loop over points and executions, in both precisions."""
    rows = []
    loop = Runner("LoopMiOl", classifier)
    for precision, target in {"fp32": 1.6, FAST: 3.0}.items():
        ours = Runner("OurMiOl", classifier, workers=CORES, threads=1, precision=precision)
        name = f"MI-OL, N = 30, {precision}"
        rows.append(
            _pair(
                name, "loop, batch 1", target, ours, loop, [(count, 30)] * turns, 30 * count, "passes/s", _same_answers
            )
        )
        ours.close()
    loop.close()
    return rows


def _share(name: str, target: float, spent: list[float], passes: list[float]) -> Row:
    """The time that something takes, as a share of the time of the forward passes that it feeds."""
    shares = [a / b for a, b in zip(spent, passes, strict=True)]
    return Row(name, "forward passes fed", target, shares, median(spent), median(passes), "s", "", True, True)


def transforms(classifier: str, count: int, turns: int) -> list[Row]:
    """Our batched transforms against torchvision's on PIL images, and as a share of the forward passes that they feed."""
    ours, theirs = (Runner(kind, classifier, threads=1) for kind in ("OurTransforms", "PilTransforms"))
    forward, draws = (Runner(kind, classifier, threads=1) for kind in ("OurForward", "OurDraws"))
    passes = [forward(count, 30)[0] for _ in range(turns + 1)][1:]
    rows = []

    def close_means(a: np.ndarray, b: np.ndarray) -> tuple[str, bool]:
        return f"mean pixel {a[0]:.4f}/{b[0]:.4f}", bool(abs(a - b).max() < 0.01)

    for name in ("random_rotation", "random_pad", "random_resize"):
        arguments = [(name, count, 30)] * turns
        rows.append(
            _pair(
                f"{name}, N = 30", "PIL, one by one", 4.0, ours, theirs, arguments, 30 * count, "images/s", close_means
            )
        )
        spent = [ours(name, count, 30)[0] for _ in range(turns)]
        rows.append(_share(f"{name}: time", 0.10, spent, passes))
    rows.append(_share("keyed normals: time", 0.05, [draws(count, 30)[0] for _ in range(turns)], passes))
    for side in (ours, theirs, forward, draws):
        side.close()
    return rows


def eot(classifier: str, count: int, steps: int, turns: int) -> list[Row]:
    """EOT-PGD with N_A = 30 against foolbox's wrapper: time and memory."""
    ours, theirs = Runner("OurEot", classifier, workers=CORES, threads=1), Runner("FoolboxEot", classifier)
    score = Runner("Score", classifier)
    arguments = (count, steps, EPSILONS[1])
    found = measure({"ours": ours, "theirs": theirs}, [arguments] * turns)
    seconds = {name: [s for s, _ in each] for name, each in found.items()}
    kept = {name: score(each[-1][1], True)[1].mean() for name, each in found.items()}
    told = f"left behind MI-OL {100 * kept['ours']:.1f}/{100 * kept['theirs']:.1f}"
    equal = abs(kept["ours"] - kept["theirs"]) <= 0.05
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["theirs"], strict=True)]
    own, other = ours.memory, theirs.memory
    rows = [
        Row(
            f"EOT-PGD-{steps}, N_A = 30",
            "foolbox EOT",
            3.0,
            ratios,
            count / median(seconds["ours"]),
            count / median(seconds["theirs"]),
            "points/s",
            told,
            bool(equal),
        ),
        Row(
            "EOT-PGD: peak memory",
            "foolbox EOT",
            5.0,
            [other / max(own, 1)],
            own / 2**20,
            other / 2**20,
            "MiB beyond idle, all processes",
            told,
            bool(equal),
        ),
    ]
    for side in (ours, theirs, score):
        side.close()
    return rows


def show(rows: list[Row]) -> None:
    """Print the rows of a group as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{CORES} cores, {PROCESSOR}, {FAST}, {datetime.date.today()}", title_justify="left")
    for head in (
        "What",
        "Against",
        "Ratio",
        "Least",
        "Greatest",
        "Target",
        "Reached",
        "Ours",
        "Theirs",
        "Unit",
        "Equality",
    ):
        table.add_column(head)
    said = {True: "yes", False: "NO", None: ""}
    for row in rows:
        sign, middle = ("≤" if row.most else "≥"), median(row.ratios)
        table.add_row(
            row.name,
            row.against,
            f"{middle:.2f}",
            f"{min(row.ratios):.2f}",
            f"{max(row.ratios):.2f}",
            "" if row.target is None else f"{sign} {row.target:g}",
            said[row.reached],
            f"{row.ours:,.4g}",
            f"{row.theirs:,.4g}",
            row.unit,
            row.check if row.equal else f"NOT EQUAL: {row.check}",
        )
    Console(width=220).print(table)


def small() -> str:
    """The folder of the network with 0.7 M parameters, which is trained when a group first asks for it."""
    return cluster.classifiers(KEPT)[0]


def large() -> str:
    """The folder of the paper's ResNet-50, trained together with the small network."""
    return cluster.classifiers(KEPT)[1]


def _limit(part: tuple[str, str], *, quick: bool) -> list[Row]:
    return limit.rows(part, small(), 2 if quick else 5)


def main() -> None:
    """Run the chosen groups, print their tables and write latest.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer points, without the large network and Ray Tune")
    parser.add_argument(
        "--only", default="", help="groups whose name holds this text; latest.json keeps the others' rows"
    )
    options = parser.parse_args()
    quick = options.quick
    peers = ["Torchattacks", "Foolbox", "AdvLib"]
    with tempfile.TemporaryDirectory() as folder:
        groups: dict[str, Callable[[], list[Row]]] = {
            "plan": lambda: plans.rows(quick=quick),
            "pgd small": lambda: pgd(small(), "0.7 M ResNet", {10: 200} if quick else {10: 200, 50: 100}, peers),
            "pgd large": lambda: pgd(large(), "paper's ResNet-50", {4: 200}, peers[::2]),
            **{f"limit, {' in '.join(part)}": partial(_limit, part, quick=quick) for part in limit.PARTS},
            "executions": lambda: executions(small(), 100, 1 if quick else 2),
            "transforms": lambda: transforms(small(), 100, 2 if quick else 3),
            "eot": lambda: eot(small(), 100, 1 if quick else 2, 1 if quick else 2),
            "training": lambda: cluster.training(Path(folder), small(), quick=quick),
            "tune": lambda: cluster.tune(Path(folder), small(), quick=quick),
            "study": lambda: cluster.study(Path(folder), small(), quick=quick),
            "workers": lambda: cluster.workers(Path(folder), small(), quick=quick),
        }
        for name, group in groups.items():
            if options.only in name and not (quick and not options.only and name in ("pgd large", "tune")):
                at = time.perf_counter()
                found = group()
                show(found)
                print(f"{name}: {time.perf_counter() - at:.0f} s", flush=True)
                _keep(
                    name, found, quick=quick, seconds=round(time.perf_counter() - at)
                )  # Whatever the next group meets.


def _keep(group: str, rows: list[Row], **how: object) -> None:
    """Write the rows of a group into latest.json, beside those of the other groups and of other machines."""
    about = {
        "date": str(datetime.date.today()),
        "machine": platform.platform(),
        "cores": CORES,
        "processor": PROCESSOR,
        "precision": FAST,
        **how,
    }
    told = [
        {"group": group, **vars(row), **about, "median": median(row.ratios), "reached": row.reached} for row in rows
    ]
    place = Path(__file__).parent / "latest.json"
    before = json.loads(place.read_text()) if place.exists() else []
    told = [row for row in before if (row["group"], row.get("processor")) != (group, PROCESSOR)] + told
    place.write_text(json.dumps(told, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
