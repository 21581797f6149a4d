"""The cascade against all of its stages on all points, and against AutoAttack, on the same networks, defenses and points.

`make bench-cascade`. Every side's images are scored by the same draws of the defense, which no attack has seen, and every
pass of the classifier is counted where it happens. `--small --points 900 --seeds 4 --sides cascade all` has points enough to
tell half a point apart: images of 8 x 8 pixels, on which a pass costs a sixteenth, and several networks of each kind together.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

import mi_ray
from benchmarks.verdict.run import SHORT, digits_archive
from mi_ray.attacks import Batch
from mi_ray.attacks.base import Defended
from mi_ray.attacks.cascade import Cascade, Kept, of_stage, with_executions
from mi_ray.classifiers import classifier_from_bytes, prepared
from mi_ray.data import SOURCES, Dataset, to_unit
from mi_ray.defenses import DEFENSES, DefendedClassifier, predict
from mi_ray.device import PassCounter
from mi_ray.randomness import Key
from mi_ray.sample_pool import SamplePool
from mi_ray.statistics import paired_test
from mi_ray.store.blocks import Store
from mi_ray.store.manifest import read_manifest
from mi_ray.threat_model import Knowledge, ThreatModel

BATCH, DRAWS, UNSEEN = 50, 10, 1000  # Seeds from UNSEEN on are of the draws that score.
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "mi_ol": {"lam": 0.6},
    "random_rotation": {"degrees": 15},
    "mi_combined": {"lam_pl": 0.5, "lam_ol": 0.6, "threshold": 0.1},
}
Attack = Callable[[nn.Module, Tensor, Tensor, range], Tensor]


def digits(seeds: int, small: bool) -> list[dict[str, Any]]:
    """Classifiers of scikit-learn's digits: mixup and interpolated AT, as the quickstart trains them.

    small: of images of 8 x 8 pixels, which shifts of two pixels would ruin.
    """
    short = {**SHORT, "crop_padding": 1 if small else 2}
    kinds: dict[str, dict[str, Any]] = {
        "mixup": {"objective": {"mixup": {"alpha": 1.0}}, "training": {**short, "epochs": 20}},
        "interpolated_at": {
            "objective": {"interpolated_at": {"epsilon": 0.06, "step_size": 0.015, "steps": 7}},
            "training": {**short, "lr": 0.2, "warmup": 2},
        },
    }
    return [
        {"name": f"{name}_{seed}", "architecture": {"cnn_small": {"width": 8}}, "seed": seed, **kind}
        for seed in range(seeds)
        for name, kind in kinds.items()
    ]


def cascade(effort: Any, epsilon: float, draws: int) -> Attack:
    """mi_ray's cascade, which compares images by so many draws."""
    made = mi_ray.make_attack("cascade", effort=effort, scoring_draws=draws)

    def run(model: nn.Module, x: Tensor, y: Tensor, points: range) -> Tensor:
        knowledge: Knowledge = "adaptive" if isinstance(model, Defended) else "oblivious"
        return made.craft(model, x, y, ThreatModel(epsilon, knowledge=knowledge), 0, points).best(1)

    return run


def every_stage(effort: Any, epsilon: float, draws: int) -> Attack:
    """All of the cascade's stages on all points, the kept image chosen as the cascade chooses it."""

    def run(model: nn.Module, x: Tensor, y: Tensor, points: range) -> Tensor:
        batch = Batch(x, y, ThreatModel(epsilon), Key(0, "attack", "cascade"), points)
        kept, every = Kept(model, batch, draws), torch.arange(len(x))
        parts = len(model.defense.components()) if isinstance(model, Defended) else 0
        for number, stage in enumerate(Cascade(effort=effort).all_stages(batch.threat, kept.classes, parts)):
            if stage.trial:
                continue  # It only spares passes of the stage after it.
            found = stage.attack.run(with_executions(model, stage.executions), of_stage(batch, number))
            kept.offer(found.best(found.stops[-1]), every)
        return kept.image

    return run


def auto_attack(version: Any, epsilon: float) -> Attack:
    """AutoAttack as its own package runs it."""

    def run(model: nn.Module, x: Tensor, y: Tensor, points: range) -> Tensor:
        from pyautoattack import AutoAttack

        made = AutoAttack(model, eps=epsilon, norm="Linf", version=version, seed=0)
        found: Tensor = made.run_standard_evaluation(x, y, batch_size=len(x))[0]
        return found

    return run


def torchattacks(version: Any, epsilon: float) -> Attack:
    """AutoAttack as torchattacks runs it."""

    def run(model: nn.Module, x: Tensor, y: Tensor, points: range) -> Tensor:
        from torchattacks import AutoAttack

        made = AutoAttack(model, norm="Linf", eps=epsilon, version=version, n_classes=10, seed=0)
        found: Tensor = made(x, y)
        return found

    return run


def rows(
    network: nn.Module, passes: PassCounter, data: Dataset, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """What each side leaves on one network, and what it takes, behind each defense; `right`: correct draws of each point."""
    points = range(min(options.points, len(data.test_labels)))
    x, y = to_unit(data.test_images[: len(points)]), torch.from_numpy(data.test_labels[: len(points)]).long()
    pool = SamplePool(data.train_images, data.train_labels, "train", classes=10)
    for setting in options.settings:
        defense, epsilon = DEFENSES.make(setting, SETTINGS[setting]), options.epsilon
        bare = setting == "none"
        model = network if bare else DefendedClassifier(network, defense, pool, options.executions)
        version = "standard" if bare else "rand"
        sides = {
            "cascade": cascade(options.effort, epsilon, options.scoring_draws),
            "all stages on all points": every_stage(options.effort, epsilon, options.scoring_draws),
            f"AutoAttack {version}": auto_attack(version, epsilon),
            f"torchattacks {version}": torchattacks(version, epsilon),
        }
        for side, attack in [(name, sides[name]) for name in sides if name.split()[0] in options.sides]:
            passes.take()
            began = time.perf_counter()
            parts = [points[at : at + BATCH] for at in range(0, len(points), BATCH)]
            images = torch.cat([attack(model, x[list(part)], y[list(part)], part) for part in parts]).detach()
            forward, backward = passes.take()
            seconds = time.perf_counter() - began
            scored = (
                predict(network, defense, images, pool, options.executions, UNSEEN + draw, points).argmax(1) == y
                for draw in range(1 if bare else DRAWS)
            )
            right = np.sum([each.numpy() for each in scored], axis=0)
            yield {
                "setting": setting,
                "side": side,
                "right": right,
                "passes": forward + backward,
                "seconds": round(seconds),
            }


def compared(found: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """What each side leaves of all points of the networks of a kind together, and how much more the cascade does, paired."""
    table = []
    for (kind, setting), some in pd.DataFrame(found).groupby(["kind", "setting"], sort=False):
        draws = 1 if setting == "none" else DRAWS
        right = {side: np.concatenate(list(each["right"])) for side, each in some.groupby("side", sort=False)}
        passes = some.groupby("side", sort=False)["passes"].sum()
        for side, counts in right.items():
            against = paired_test(right["cascade"], counts, draws)
            table.append(
                {
                    "networks": kind,
                    "setting": setting,
                    "side": side,
                    "points": len(counts),
                    "accuracy": round(float(counts.mean()) / draws, 4),
                    "cascade leaves more by": round(against.difference, 4),
                    "low": round(against.low, 4),
                    "high": round(against.high, 4),
                    "passes a point": round(passes[side] / len(counts)),
                    "share": round(passes["cascade"] / passes[side], 2),
                }
            )
    return pd.DataFrame(table)


def main(arguments: list[str]) -> None:
    """Train the networks that are not there yet, run every side, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="results-verdict", help="folder of the networks and of the table")
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--epsilon", type=float, default=0.05)
    parser.add_argument("--executions", type=int, default=5)
    parser.add_argument("--effort", default="standard")
    parser.add_argument("--scoring-draws", type=int, default=5, help="by which both sides compare images")
    parser.add_argument("--seeds", type=int, default=1, help="networks of each kind")
    parser.add_argument("--small", action="store_true", help="digits as they are, 8 x 8 pixels, which are fast")
    parser.add_argument(
        "--sides",
        nargs="+",
        default=["cascade", "all", "AutoAttack"],
        choices=["cascade", "all", "AutoAttack", "torchattacks"],
        help="what is compared with the cascade; AutoAttack takes longest",
    )
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    options = parser.parse_args(arguments)
    options.sides = [*dict.fromkeys(("cascade", *options.sides))]  # the side that all others are compared with
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    dataset = digits_archive(out) if options.small else "digits"
    entries = digits(options.seeds, options.small)
    sweep = {"name": "networks", "dataset": dataset, "classifiers": entries, "defenses": ["none"]}
    sweep |= {"attacks": [{"pgd": {"steps": 10}, "epsilon": options.epsilon}], "points": {"count": 100}}
    mi_ray.run_sweep(sweep, out / "networks", until="train", progress=False)
    torch.set_num_threads(1)
    ((name, values),) = dataset.items() if isinstance(dataset, dict) else [(dataset, {})]
    data = SOURCES.make(name, values).load()
    found = []
    store = Store(out / "networks")  # Where earlier runs may have left networks of other seeds.
    for folder in (
        out / "networks/classifiers" / key for key in read_manifest(store, "networks")["keys"]["classifiers"]
    ):
        about = json.loads((folder / "classifier.json").read_text())
        content = (folder / "model.safetensors").read_bytes()
        network = prepared(classifier_from_bytes(about["description"], content), torch.device("cpu"), "fp32")
        network.passes = PassCounter()
        for row in rows(network, network.passes, data, options):
            found.append({"kind": about["objective"][0], **row})
            print({**found[-1], "right": int(row["right"].sum())}, flush=True)
        compared(found).to_csv(out / "cascade.csv", index=False)
    print(compared(found).to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])
