"""What the verdict is worth: broken and sound attacks, each alone in a real study; how many are refused. `make verdict`.

Each attack has a study of its own on the same classifiers, since its peers would else help to judge it. A broken one
counts where it leaves more than 5 points more than PGD-50 (EOT-PGD-50 behind a defense) on the same points. By default
the networks are trained on digits; `--dataset` and `--weights` judge the verdict on any that somebody else has trained.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import yaml
from torch import nn

import mi_ray
from mi_ray.classifiers import ARCHITECTURES
from mi_ray.data import SOURCES

FIRST, LAST = "<!-- make verdict -->", "<!-- end of make verdict -->"
YARDSTICK, HIDES = "PGD-50", "a defense that hides its gradient"
POOL, TEST = 5000, 2000  # Images that are kept of another dataset: the sample pool, and what points are drawn from.
HARM = 0.05  # A broken attack that leaves less than this more has done no harm.
DEFENSES: list[Any] = [
    {"mi_ol": {"lam": 0.6}},
    {"random_rotation": {"degrees": 15}},
    {"mi_combined": {"lam_pl": 0.5, "lam_ol": 0.6, "threshold": 0.1}},
]
HIDDEN: list[Any] = [{"hidden": {"amplitude": 0.05}}]
OPENED: list[Any] = [
    {"opened": {"amplitude": 0.05}}
]  # The same defense to an adversary who knows what hides the gradient.


SETTINGS = {"alone": (False,), "defended": (True,), "both": (False, True)}


def digits(seeds: int, wanted: Sequence[str] = ("mixup", "interpolated_at")) -> list[dict[str, Any]]:
    """Classifiers of scikit-learn's digits: mixup and interpolated AT, as the quickstart trains them."""
    short = {"batch_size": 64, "flip": False, "crop_padding": 2}
    kinds: dict[str, dict[str, Any]] = {
        "mixup": {"objective": {"mixup": {"alpha": 1.0}}, "training": {**short, "epochs": 20, "lr": 0.1}},
        "interpolated_at": {
            "objective": {"interpolated_at": {"epsilon": 0.06, "step_size": 0.015, "steps": 7}},
            "training": {**short, "epochs": 10, "lr": 0.2, "warmup": 2},
        },
    }
    return [
        {"name": f"{name}_{seed}", "architecture": {"cnn_small": {"width": 8}}, "seed": seed, **kind}
        for seed in range(seeds)
        for name, kind in kinds.items()
        if name in wanted
    ]


def given(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Classifiers with weights of their own. Raises ValueError for what is not NAME=FILE."""
    shared = {"factory": "benchmarks.verdict.run:network", "mean": options.mean, "std": options.std}
    shared["arguments"] = {"architecture": yaml.safe_load(options.architecture), "classes": options.classes}
    found = []
    for written in options.weights:
        name, equals, file = written.partition("=")
        if not (name and equals and file):
            raise ValueError(f"--weights must be NAME=FILE; got {written!r}")
        found.append({"name": name, **shared, "weights": file})
    return found


def network(architecture: dict[str, dict[str, Any]], classes: int) -> nn.Module:
    """A freshly initialised network of one of the program's architectures: {name: its parameters}."""
    ((name, values),) = architecture.items()
    made: nn.Module = ARCHITECTURES.make(name, values).build(classes)
    return made


def reduced(written: str, out: Path) -> Any:
    """A dataset that is read once: an archive of some of its images, since every study of so many keeps a copy.

    written: as a sweep names a dataset. Returns the same. What is left out is drawn with a fixed seed.
    """
    source = yaml.safe_load(written)
    if isinstance(source, str):
        return source
    archive = out.with_name(f"{out.name}-images.npz")
    if not archive.exists():
        ((name, values),) = source.items()
        data, drawn = SOURCES.make(name, values).load(), np.random.default_rng(0)
        found = {}
        for split, count in (("train", POOL), ("test", TEST)):
            images, labels = getattr(data, f"{split}_images"), getattr(data, f"{split}_labels")
            some = drawn.permutation(len(labels))[:count]
            found |= {f"x_{split}": images[some], f"y_{split}": labels[some]}
        out.parent.mkdir(parents=True, exist_ok=True)
        np.savez(archive, **found)
    return {"npz": {"path": str(archive.resolve())}}


def steps(epsilon: float, count: int = 20) -> dict[str, Any]:
    """Steps of a sound attack: epsilon / 4 for 10 or 20 of them, less for more."""
    return {"steps": [count], "step_size": epsilon / 4 if count <= 20 else epsilon / 10}


def broken(epsilon: float) -> dict[str, Any]:
    """Label -> attack."""
    usual = steps(epsilon)
    return {
        "ball of 0.4 ε": {"small_ball": {**usual, "share": 0.4}},
        "ball of 0.8 ε": {"small_ball": {**usual, "share": 0.8}},
        "steps a tenth as long": {"short_steps": {**usual, "random_start": False}},
        "steps a tenth as long, random start": {"short_steps": usual},
        "the model's own label": {"own_label": usual},
        "a second softmax": {"second_softmax": usual},
        "a second softmax of 10 p": {"second_softmax": {**usual, "scale": 10.0}},
        "a second softmax of 100 p": {"second_softmax": {**usual, "scale": 100.0}},
        "lowers the confidence": {"confidence": usual},
        "loss underflows above 0.9": {"half_precision": usual},
        "loss underflows above 0.6": {"half_precision": {**usual, "sure": 0.6}},
        "gradient at 4 grey levels": {"rounded_gradient": usual},
        "gradient at 2 grey levels": {"rounded_gradient": {**usual, "levels": 2}},
        "90 % noise": {"noisy_gradient": usual},
        "98 % noise": {"noisy_gradient": {**usual, "noise": 0.98}},
        "descends": {"descends": usual},
        "one draw for ever": {"fixed_draw": {**usual, "eot": 1}},
        "one channel": {"one_channel": {**usual, "random_start": False}},
        "gradient transposed": {"transposed": usual},
        "normalised twice": {"normalised_twice": usual},
        "labels shifted": {"shifted_labels": usual},
        "ignores the defense": {"ignores_defense": usual},
        "two steps": {"stops_early": usual},
        "half way back": {"half_way": usual},
        "random target": {"random_target": usual},
        "every second point": {"half_the_points": usual},
        "noise alone": {"small_ball": {**usual, "steps": [1], "step_size": 0.0}},
    }


def sound(epsilon: float) -> dict[str, Any]:
    """Label -> attack."""
    return {
        "PGD-20": {"eot_pgd": steps(epsilon)},
        YARDSTICK: {"eot_pgd": steps(epsilon, 50)},
        "PGD-20, mean of losses": {"eot_pgd": {**steps(epsilon), "loss": "mean_cross_entropy"}},
        "PGD-20, long steps": {"eot_pgd": {"steps": [20], "step_size": epsilon / 2}},
        "PGD-40, short steps": {"eot_pgd": {"steps": [40], "step_size": epsilon / 8}},
        "PGD-20, no random start": {"eot_pgd": {**steps(epsilon), "random_start": False}},
        "APGD-CE": {"apgd": {"steps": 20}},
        "APGD-DLR": {"apgd": {"steps": 30, "loss": "dlr"}},
    }


def study(name: str, attack: Any, defenses: list[Any], options: argparse.Namespace, epsilon: float) -> dict[str, Any]:
    """A sweep of one attack on every classifier: on F alone, or through every defense."""
    behind = defenses != ["none"]
    entry = {**attack, "epsilon": epsilon, "knowledge": "adaptive" if behind else "oblivious"}
    return {
        "name": name,
        "seed": options.seed,
        "plugins": ["benchmarks.verdict.faults"],
        "dataset": options.dataset,
        "points": {"count": options.points},
        "batch": 50,
        "classifiers": options.classifiers,
        "attacks": [entry],
        "defenses": defenses,
        "executions": 5,
        "draws": 3,
        "checks": {"level": "subset", "black_box": "always"},
        "precision": "fp32",
        "resources": {"block": {"points": options.points // 2}},
        "figures": [],
    }


def studies(options: argparse.Namespace) -> Iterator[tuple[str, bool, bool, float, dict[str, Any]]]:
    """(attack, whether it is broken, whether it is behind a defense, epsilon, sweep) of every study."""
    for epsilon in options.epsilons:
        found = [(label, True, attack) for label, attack in broken(epsilon).items()]
        found = [*((label, False, attack) for label, attack in sound(epsilon).items()), *found]
        for number, (label, is_broken, attack) in enumerate(found):
            if options.attacks and label not in {*options.attacks, YARDSTICK}:
                continue
            for behind in SETTINGS[options.settings]:
                method = next(iter(attack))
                if not behind and method in ("fixed_draw", "ignores_defense"):
                    continue
                name = f"v{number}-{'defended' if behind else 'alone'}-{round(1000 * epsilon)}"
                sweep = study(name, attack, DEFENSES if behind else ["none"], options, epsilon)
                yield label, is_broken, behind, epsilon, sweep
        if options.settings != "alone" and (not options.attacks or HIDES in options.attacks):
            attack, at = sound(epsilon)[YARDSTICK], round(1000 * epsilon)
            yield HIDES, True, True, epsilon, study(f"hidden-{at}", attack, HIDDEN, options, epsilon)
            yield YARDSTICK, False, True, epsilon, study(f"opened-{at}", attack, OPENED, options, epsilon)


def cells(result: mi_ray.StudyResult) -> pd.DataFrame:
    """The attacked cells of a study, with the checks that failed."""
    found = result.cells
    found = found[(found["attack"] != "none") & (found["attack"] != "worst_case")].copy()
    if (found["knowledge"] == "adaptive").any():
        found = found[found["defense"] != "none"]
    said = [json.loads(text) for text in found["checks"]]
    found["failed"] = [sorted(name for name, each in row.items() if each["state"] == "failed") for row in said]
    return found


def table(options: argparse.Namespace) -> pd.DataFrame:
    """Run every study and gather what was refused."""
    wanted = list(studies(options))
    results = mi_ray.run_sweeps([sweep for *_, sweep in wanted], options.out, progress=options.progress)
    rows = []
    for (label, is_broken, _, epsilon, _), result in zip(wanted, results, strict=True):
        for _, cell in cells(result).iterrows():
            rows.append(
                {
                    "attack": label,
                    "broken": is_broken,
                    "classifier": cell["classifier"],
                    "setting": cell["defense"],
                    "epsilon": epsilon,
                    "points": f"{options.points} by seed {options.seed}",
                    "accuracy": cell["accuracy"],
                    "verdict": cell["verdict"],
                    "failed": ", ".join(cell["failed"]),
                }
            )
    frame = pd.DataFrame(rows)
    sound_50 = frame[frame["attack"] == YARDSTICK].set_index(["classifier", "setting", "epsilon"])["accuracy"]
    known = frame.replace({"setting": {"hidden": "opened"}})  # What hides its gradient is held against its opened twin.
    where = pd.MultiIndex.from_frame(known[["classifier", "setting", "epsilon"]])
    frame["harm"] = frame["accuracy"] - sound_50.reindex(where).to_numpy()
    return frame


def markdown(frame: pd.DataFrame) -> str:
    """The table of docs/checks.md: each attack, what it leaves more than PGD-50, in how many settings it is refused, by what."""
    rows = [
        "| attack | settings | leaves more, points | did harm | of these refused | refused in all | most often by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (_, label), some in frame.groupby(["broken", "attack"], sort=False):
        harmful, refused = some["harm"] > HARM, some["verdict"] == "failed"
        names = [name for text in some.loc[refused, "failed"] for name in text.split(", ")]
        often = ", ".join(f"`{name}`" for name, _ in Counter(names).most_common(3))
        is_broken = bool(some["broken"].iloc[0])
        rows.append(
            f"| {label} | {len(some)} | {100 * some['harm'].min():.0f} to {100 * some['harm'].max():.0f} | "
            f"{int(harmful.sum()) if is_broken else 'sound'} | {int((harmful & refused).sum()) if is_broken else '–'} | "
            f"{int(refused.sum())} | {often} |"
        )
    return "\n".join(rows)


def write(frame: pd.DataFrame, document: Path) -> None:
    """Put the table between the two marks of a document."""
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(FIRST)
    _, _, after = rest.partition(LAST)
    document.write_text(f"{before}{FIRST}\n\n{markdown(frame)}\n\n{LAST}{after}", encoding="utf-8")


def upper(alarms: pd.Series, clusters: pd.Series) -> float:
    """Upper end of the 95 % interval of a rate whose cells come in clusters (Korn and Graubard, 1998).

    Clopper and Pearson's interval for as many independent cells as have the variance between clusters. Without an alarm there
    is no variance to see: then each cluster counts as one cell, which is the most that their likeness can cost.
    """
    cells, found = len(alarms), float(alarms.mean())
    excess = (alarms - found).groupby(clusters).sum()
    many = len(excess)
    spread = many / max(many - 1, 1) * float((excess**2).sum()) / cells**2
    effective = min(cells, found * (1 - found) / spread) if spread > 0 else many
    return float(scipy.stats.beta.ppf(0.975, found * effective + 1, (1 - found) * effective)) if found < 1 else 1.0


def told(frame: pd.DataFrame) -> str:
    """Both figures, and what was missed and what was refused by mistake."""
    harmful = frame[frame["broken"] & ~(frame["harm"] <= HARM)]
    fine = frame[~frame["broken"]]
    refused, alarms = harmful["verdict"] == "failed", fine["verdict"] == "failed"
    clusters = fine["classifier"].astype(str) + ", " + fine["points"].astype(str)
    lines = [
        f"refused: {int(refused.sum())} of {len(harmful)} broken attacks that leave more than 5 points "
        f"({100 * refused.mean():.1f} %)",
        f"false alarms: {int(alarms.sum())} of {len(fine)} sound cells ({100 * alarms.mean():.1f} %); upper end of the 95 % "
        f"interval {100 * upper(alarms, pd.Series(range(len(fine)), fine.index)):.1f} % if all were independent, "
        f"{100 * upper(alarms, clusters):.1f} % with the {clusters.nunique()} pairs of a network and its points as clusters",
        "",
        "missed:",
        harmful[~refused].to_string(index=False),
        "",
        "refused by mistake:",
        fine[alarms].to_string(index=False),
    ]
    return "\n".join(lines)


def radius(written: str) -> float:
    """A radius in [0, 1] pixels, which may be written as a fraction."""
    return float(Fraction(written))


def main(arguments: list[str]) -> None:
    """Run everything, print both figures, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="results-verdict")
    parser.add_argument("--points", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=["mixup", "interpolated_at"])
    parser.add_argument("--seed", type=int, default=0, help="of the points and of everything that is drawn")
    parser.add_argument("--dataset", default="digits", help="as a sweep names it, such as 'parquet: {path: FOLDER}'")
    parser.add_argument("--weights", nargs="+", default=[], metavar="NAME=FILE", help="networks instead of digits' own")
    parser.add_argument("--architecture", default="resnet_small: {width: 32}", help="of the networks of --weights")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--mean", type=float, nargs=3, default=[0.4914, 0.4822, 0.4465])
    parser.add_argument("--std", type=float, nargs=3, default=[0.2470, 0.2435, 0.2616])
    parser.add_argument(
        "--attacks", nargs="+", metavar="LABEL", help="these rows of the table alone; PGD-50 is always run"
    )
    parser.add_argument("--settings", choices=["alone", "defended", "both"], default="both")
    parser.add_argument("--epsilons", type=radius, nargs="+", default=[0.05], help="such as 0.05 or 8/255")
    parser.add_argument("--tables", nargs="+", default=[], help="verdict.csv of earlier runs, which are counted in")
    parser.add_argument("--document", help="a Markdown file whose table is written anew, such as docs/checks.md")
    parser.add_argument("--progress", action="store_true")
    options = parser.parse_args(arguments)
    options.dataset = reduced(options.dataset, Path(options.out))
    options.classifiers = given(options) if options.weights else digits(options.seeds, options.networks)
    frame = table(options)
    frame.to_csv(Path(options.out) / "verdict.csv", index=False)
    frame = pd.concat([frame, *map(pd.read_csv, options.tables)], ignore_index=True)
    if options.document:
        write(frame, Path(options.document))
    print(told(frame))


if __name__ == "__main__":
    main(sys.argv[1:])
