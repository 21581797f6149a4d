"""What the verdict is worth: broken and sound attacks, each alone in a real study; how many are refused. `make verdict`.

Each attack has a study of its own, since its peers would else help to judge it. A broken one counts where it leaves more
than 5 points more than PGD-50 (EOT-PGD-50 behind a defense) on the same points. By default many small networks are trained
on digits, each with points, a radius and a setting of its own, so that cells of different networks are independent;
`--dataset` and `--weights` judge the verdict on any networks that somebody else has trained. What is judged stands in
cells.jsonl as soon as it is, and is not computed again: whoever changes the program begins with an empty folder.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
import torch
import yaml
from torch import nn

from benchmarks.verdict.alone import Judge
from mi_ray.classifiers import ARCHITECTURES
from mi_ray.data import SOURCES
from mi_ray.store.keys import canonical
from mi_ray.study.checks import compared
from mi_ray.study.rows import Row

TABLE = "<!-- make verdict -->", "<!-- end of make verdict -->"
FIGURES = "<!-- figures of make verdict -->", "<!-- end of figures of make verdict -->"
YARDSTICK, HIDES = "PGD-50", "a defense that hides its gradient"
RIVALS = (YARDSTICK, "APGD-CE", "APGD-DLR")  # What a refused sound attack is held against elsewhere, beside Square.
POOL, TEST = 5000, 2000  # Images that are kept of another dataset: the sample pool, and what points are drawn from.
DIGITS = 900  # Digits of which points are drawn.
RIGHTLY = 0.025  # The chance of calling a refusal right by an attack that leaves a point more than each of its rivals.
HARM = 0.05  # A broken attack that leaves less than this more has done no harm.
SETTINGS: dict[str, Any] = {
    "none": "none",
    "mi_ol": {"mi_ol": {"lam": 0.6}},
    "random_rotation": {"random_rotation": {"degrees": 15}},
    "mi_combined": {"mi_combined": {"lam_pl": 0.5, "lam_ol": 0.6, "threshold": 0.1}},
}
HIDDEN = {"hidden": {"amplitude": 0.05}}
OPENED = {"opened": {"amplitude": 0.05}}  # The same defense to an adversary who knows what hides the gradient.
SHORT = {"batch_size": 64, "flip": False, "crop_padding": 1, "epochs": 10, "lr": 0.1}
INNER = {"epsilon": 0.1, "step_size": 0.08, "steps": 2}
KINDS: dict[str, tuple[Any, tuple[float, ...]]] = {  # an objective, and the radii of attacks on networks of it
    "erm": ("erm", (0.03, 0.05, 0.08)),
    "mixup": ({"mixup": {"alpha": 1.0}}, (0.03, 0.05, 0.08)),
    "at": ({"adversarial": INNER}, (0.06, 0.1, 0.15)),
    "interpolated_at": ({"interpolated_at": INNER}, (0.06, 0.1, 0.15)),
    "trades": ({"trades": INNER}, (0.06, 0.1, 0.15)),
}
WIDTHS = (6, 8, 12)
PLACE = ["classifier", "setting", "epsilon", "points"]  # What the yardstick is of that a cell is held against.
# A setting of each network in turn: passes behind a defense cost several times those before F.
BEHIND = {1: "mi_ol", 5: "random_rotation", 11: "mi_ol", 15: "random_rotation", 19: "mi_combined"}
TURNS = [BEHIND.get(number, "none") for number in range(20)]
EARLY = 2  # So many sound attacks of each network come first, so that networks are many before cells of one are.
HIDING = 4  # Networks of this number in turn also stand behind a defense that hides its gradient.


@dataclass(frozen=True)
class Job:
    """One attack on one network in one setting: a study of its own.

    network: the classifier as a sweep names it. dataset: likewise. seed: of the points, and of all that is drawn. precision: of
    gradients and executions.
    """

    network: Mapping[str, Any]
    dataset: Any
    setting: Any
    epsilon: float
    label: str
    attack: Mapping[str, Any]
    broken: bool
    points: int
    seed: int
    batch: int = 50
    precision: str = "fp32"

    def elsewhere(self, label: str, attack: Mapping[str, Any]) -> dict[str, Any]:
        """The study of another attack in the same place, or of this one, on the points that this one is not judged on."""
        other = replace(self, label=label, attack=attack).sweep()
        return {**other, "points": {"count": 2 * self.points, "selection": self.points}, "checks": "cheap"}

    def sweep(self) -> dict[str, Any]:
        """The study: on F alone, or through the defense."""
        knowledge = "oblivious" if self.setting == "none" else "adaptive"
        return {
            "name": "verdict",
            "seed": self.seed,
            "plugins": ["benchmarks.verdict.faults"],
            "dataset": self.dataset,
            "points": {"count": self.points},
            "batch": self.batch,
            "classifiers": [self.network],
            "attacks": [{**self.attack, "epsilon": self.epsilon, "knowledge": knowledge}],
            "defenses": [self.setting],
            "executions": 5,
            "draws": 3,
            "checks": {"level": "subset", "black_box": "always"},
            "precision": self.precision,
            "resources": {"block": {"points": self.points}},
            "figures": [],
        }

    @property
    def name(self) -> str:
        """What tells it from every other job."""
        return canonical(self.sweep())


def digits_archive(out: Path) -> Any:
    """scikit-learn's 1,797 digits as they are, 8 x 8 pixels: 897 to train on, and 900 of which points are drawn."""
    archive = out / "digits.npz"
    if not archive.exists():
        from sklearn.datasets import load_digits

        raw, order = load_digits(), np.random.default_rng(0).permutation(1797)
        images, labels = np.round(raw.images / 16 * 255).astype(np.uint8)[order], raw.target[order]
        train, test = slice(-DIGITS), slice(-DIGITS, None)
        np.savez(archive, x_train=images[train], y_train=labels[train], x_test=images[test], y_test=labels[test])
    return {"npz": {"path": str(archive.resolve())}}


def digits_network(number: int) -> tuple[dict[str, Any], float]:
    """(a small network, the radius of attacks on it); objective, width, seed and radius change with its number."""
    kind = list(KINDS)[(number + number // len(TURNS)) % len(KINDS)]
    objective, radii = KINDS[kind]
    network = {
        "name": f"{kind}_{number}",
        "architecture": {"cnn_small": {"width": WIDTHS[number % len(WIDTHS)]}},
        "seed": number,
        "objective": objective,
        "training": SHORT,
    }
    return network, radii[number // len(KINDS) % len(radii)]


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
        found: dict[str, Any] = {}
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
        "fooled points given back": {"gives_back": usual},
        "the gradient, not its sign": {"unsigned": usual},
        "steps of Euclidean length": {"euclidean_step": usual},
        "steps halved each time": {"decays": usual},
        "upper half alone": {"upper_half": usual},
        "brighter pixels alone": {"one_sided": usual},
        "gradient at the clean image": {"clean_gradient": usual},
        "gradient of a turned image": {"wrong_network": usual},
        "perturbation of another image": {"swaps_images": usual},
        "the paper's averaged attack": {"averaged": {**usual, "clip": True}},
        "noise alone": {"small_ball": {**usual, "steps": [1], "step_size": 1e-6}},  # the shortest that is allowed
    }


def sound(epsilon: float) -> dict[str, Any]:
    """Label -> attack."""
    usual = steps(epsilon)
    return {
        "PGD-20": {"eot_pgd": usual},
        "APGD-CE": {"apgd": {"steps": 20}},
        "PGD-20, no random start": {"eot_pgd": {**usual, "random_start": False}},
        "MI-FGSM": {"momentum": {"steps": [30], "step_size": epsilon / 10}},
        "APGD-DLR": {"apgd": {"steps": 50, "loss": "dlr"}},
        "PGD-20, mean of losses": {"eot_pgd": {**usual, "loss": "mean_cross_entropy"}},
        YARDSTICK: {"eot_pgd": steps(epsilon, 50)},
        "PGD-20, long steps": {"eot_pgd": {"steps": [20], "step_size": epsilon / 2}},
        "PGD-40, short steps": {"eot_pgd": {"steps": [40], "step_size": epsilon / 8}},
        "PGD-20, two restarts": {"eot_pgd": {**usual, "restarts": 2}},
    }


def digits_jobs(options: argparse.Namespace) -> list[Job]:
    """Of each network some sound attacks in its setting, and some broken ones; what costs least comes first.

    First two sound attacks where nothing stands before F, then what is behind one defense in turn with broken ones, and last
    MI-Combined, whose passes are many.
    """
    dataset = digits_archive(Path(options.out))
    found = [each for number in range(options.networks) for each in _of_network(number, dataset, options)]
    wanted = [SETTINGS[name] for name in options.settings] + ([HIDDEN, OPENED] if "none" in options.settings else [])
    return [job for _, job in sorted(found, key=lambda each: each[0]) if job.setting in wanted]


def _of_network(number: int, dataset: Any, options: argparse.Namespace) -> Iterator[tuple[int, Job]]:
    """(when its turn is, job) for each of one network: sound ones first, then broken ones with what they are held against."""
    network, epsilon = digits_network(number)
    turn = TURNS[number % len(TURNS)]
    fine, setting = sound(epsilon), SETTINGS[turn]
    wrong = {
        label: attack
        for label, attack in broken(epsilon).items()
        if suits(attack, turn) and label in (options.attacks or [label])
    }
    late = 2 if turn == "mi_combined" else 1
    chosen = _in_turn(list(fine), number, options.sound)
    found: list[tuple[int, Any, str, Any]] = [
        (late if turn != "none" or place >= EARLY else 0, setting, each, fine[each])
        for place, each in enumerate(chosen)
    ]
    if options.broken and wrong:
        found += [(late, setting, YARDSTICK, fine[YARDSTICK])]
        found += [(late, setting, each, wrong[each]) for each in _in_turn(list(wrong), number, options.broken)]
    if options.broken and number % len(TURNS) == HIDING and HIDES in (options.attacks or [HIDES]):
        found += [(late, OPENED, YARDSTICK, fine[YARDSTICK]), (late, HIDDEN, HIDES, fine[YARDSTICK])]
    batch = 50 if number < len(TURNS) else 100  # Both are judged; larger ones cost half as much.
    for place, where, label, attack in found:
        is_broken = label not in fine
        yield place, Job(network, dataset, where, epsilon, label, attack, is_broken, options.points, number, batch)


def _in_turn(labels: Sequence[str], number: int, count: int) -> list[str]:
    """So many of the labels, other ones for each network until all have had their turn."""
    return [labels[(count * number + place) % len(labels)] for place in range(min(count, len(labels)))]


def suits(attack: Mapping[str, Any], setting: str) -> bool:
    """Whether a broken attack can be one in that setting: some are broken behind a defense alone, or one that mixes."""
    ((method, _),) = attack.items()
    if method == "averaged":
        return setting in ("mi_ol", "mi_combined")
    return setting != "none" or method not in ("fixed_draw", "ignores_defense")


def weights_jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Every attack that is asked for on every network of a person's own, at every radius, in every setting."""
    for job in _of_weights(options):
        yield replace(job, precision=options.precision)


def _of_weights(options: argparse.Namespace) -> Iterator[Job]:
    dataset, networks = reduced(options.dataset, Path(options.out)), given(options)
    settings = {name: SETTINGS[name] for name in SETTINGS if name in options.settings}
    for epsilon, network in ((epsilon, network) for epsilon in options.epsilons for network in networks):
        fine, wrong = sound(epsilon), broken(epsilon)
        labels = [YARDSTICK, *(label for label in (*fine, *wrong) if label != YARDSTICK)]
        for label in (label for label in labels if label in (YARDSTICK, *(options.attacks or labels))):
            for name, setting in settings.items():
                attack = fine[label] if label in fine else wrong[label]
                if label in fine or suits(attack, name):
                    is_broken = label not in fine
                    yield Job(
                        network, dataset, setting, epsilon, label, attack, is_broken, options.points, options.seed
                    )
        if HIDES in (options.attacks or [HIDES]) and any(name != "none" for name in settings):
            for setting, label in ((OPENED, YARDSTICK), (HIDDEN, HIDES)):
                attack, is_broken = fine[YARDSTICK], label == HIDES
                yield Job(network, dataset, setting, epsilon, label, attack, is_broken, options.points, options.seed)


def judged(jobs: Sequence[Job], out: Path, minutes: float, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """What was said of each job, of as many as are stored or can be judged in so many minutes."""
    written, began = out / "cells.jsonl", time.monotonic()
    rows = {row["job"]: row for row in map(json.loads, written.read_text().splitlines())} if written.exists() else {}
    for place, job in enumerate(jobs, start=1):
        if job.name in rows:
            continue
        if time.monotonic() - began > 60 * minutes:
            break
        row = {"job": job.name, **_row(job, Judge(out / "stores" / job.network["name"]))}
        with written.open("a") as file:
            file.write(json.dumps(row) + "\n")
        rows[job.name] = row
        said = f"{row['verdict']} {row['failed']}".strip()
        where = f"{row['classifier']}, {row['setting']}, {job.epsilon:.3g}"
        tell(f"{place} of {len(jobs)}: {job.label} on {where}: {100 * row['accuracy']:.1f} % left, {said}")
    return [rows[job.name] for job in jobs if job.name in rows]


def appealed(jobs: Sequence[Job], rows: Iterable[Mapping[str, Any]], out: Path) -> dict[str, dict[str, Any]]:
    """What the points that a refused sound attack was not judged on say of it, by the name of its job.

    An attack without a fault may be a weak one all the same, as where gradients are masked: then it is refused rightly.
    """
    written = out / "appeals.jsonl"
    rows_of_it = map(json.loads, written.read_text().splitlines() if written.exists() else [])
    found = {row["job"]: row for row in rows_of_it if "p" in row}
    refused = {row["job"] for row in rows if row["verdict"] == "failed" and not row["broken"]}
    for job in (job for job in jobs if job.name in refused - found.keys()):
        found[job.name] = {"job": job.name, **_appeal(job, Judge(out / "stores" / job.network["name"]))}
        with written.open("a") as file:
            file.write(json.dumps(found[job.name]) + "\n")
    return found


def _appeal(job: Job, judge: Judge) -> dict[str, Any]:
    """The attack against the strongest of a few others: how much more it leaves, with its 95 % interval, and the p-value that
    it is no more than a point, multiplied by how many there were to choose from."""
    rivals = {label: each for label, each in sound(job.epsilon).items() if label in RIVALS and label != job.label}
    if job.setting == "none":
        rivals["Square"] = {"square": {"queries": 1000, "schedule": 1000}}
    own = judge.right(_attacked(job, judge.judged(job.elsewhere(job.label, job.attack))))
    right = {
        label: judge.right(_attacked(job, judge.judged(job.elsewhere(label, attack))))
        for label, attack in rivals.items()
    }
    strongest = min(right, key=lambda label: int(right[label].sum()))
    draws = 3 if job.setting != "none" else 1
    found = compared(own, right[strongest], draws, strongest, among=len(right))
    more = found.figures["accuracy"] - found.figures["control"]
    return {
        "rival": strongest,
        "more": more,
        "p": found.p,
        **{end: found.figures[end] for end in ("low", "high", "points")},
    }


def _attacked(job: Job, rows: Iterable[Row]) -> Row:
    """The one row of a study that is of its attack where the job is."""
    (found,) = (
        row
        for row in rows
        if row["attack"] not in ("none", "worst_case") and (row["defense"] != "none") == (job.setting != "none")
    )
    return found


def _row(job: Job, judge: Judge) -> dict[str, Any]:
    """One row of the table: the judged cell, with the checks that failed and what they say."""
    cell = _attacked(job, judge.judged(job.sweep()))
    checks = {name: each for name, each in json.loads(cell["checks"]).items() if each["state"] == "failed"}
    return {
        "attack": job.label,
        "broken": job.broken,
        "classifier": cell["classifier"],
        "setting": cell["defense"],
        "epsilon": job.epsilon,
        "points": f"{job.points} by seed {job.seed}" + (f", {job.precision}" if job.precision != "fp32" else ""),
        "accuracy": cell["accuracy"],
        "verdict": cell["verdict"],
        "failed": ", ".join(sorted(checks)),
        "why": {name: each["why"] for name, each in sorted(checks.items())},
    }


def table(rows: Iterable[Mapping[str, Any]], appeals: Mapping[str, Any], tables: Sequence[str]) -> pd.DataFrame:
    """The rows with what each leaves more than the yardstick on the same points; NaN where that is not judged yet.

    `rightly`: of a sound attack that was refused, whether it leaves significantly more than a point more than a stronger one
    on points that it was not judged on. tables: of other runs, added at the end.
    """
    own = [_held(pd.DataFrame(some), appeals)] if (some := list(rows)) else []
    frame = pd.concat([*own, *map(pd.read_csv, tables)], ignore_index=True)
    frame = frame.drop_duplicates(["attack", *PLACE], ignore_index=True)
    return frame.astype({"broken": bool}).fillna({"rightly": False, "failed": ""})


def _held(frame: pd.DataFrame, appeals: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of this run, each held against the yardstick in its place."""
    frame = frame.drop_duplicates(["attack", *PLACE])
    known = frame.replace({"setting": {"hidden": "opened"}})  # What hides its gradient is held against its opened twin.
    sound_50 = frame[frame["attack"] == YARDSTICK].set_index(PLACE)["accuracy"]
    where = pd.MultiIndex.from_frame(known[PLACE])
    # Rounded, as five points more must not be above five points by a bit of a float.
    frame["harm"] = (frame["accuracy"] - sound_50.reindex(where).to_numpy()).round(9)
    frame["rightly"] = [name in appeals and appeals[name]["p"] < RIGHTLY for name in frame["job"]]
    return frame.drop(columns=["job", "why"])


def markdown(frame: pd.DataFrame) -> str:
    """The table of docs/checks.md: each attack, what it leaves more than PGD-50, in how many settings it is refused, by what."""
    rows = [
        "| attack | settings | leaves more, points | did harm | of these refused | refused in all | most often by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (_, label), some in frame.sort_values("broken", kind="stable").groupby(["broken", "attack"], sort=False):
        harmful, refused = some["harm"] > HARM, some["verdict"] == "failed"
        names = [name for text in some.loc[refused, "failed"] for name in text.split(", ")]
        often = ", ".join(f"`{name}`" for name, _ in Counter(names).most_common(3))
        is_broken = bool(some["broken"].iloc[0])
        rows.append(
            f"| {label} | {len(some)} | {_range(some['harm'])} | "
            f"{int(harmful.sum()) if is_broken else 'sound'} | {int((harmful & refused).sum()) if is_broken else '–'} | "
            f"{int(refused.sum())} | {often} |"
        )
    return "\n".join(rows)


def _range(harm: "pd.Series[float]") -> str:
    """From the least to the most, in points; empty where none was held against PGD-50."""
    return f"{100 * harm.min():.0f} to {100 * harm.max():.0f}" if harm.notna().any() else ""


def write(text: str, document: Path, marks: tuple[str, str]) -> None:
    """Put a text between two marks of a document. Raises ValueError where they are not there."""
    before, first, rest = document.read_text(encoding="utf-8").partition(marks[0])
    _, last, after = rest.partition(marks[1])
    if not (first and last):
        raise ValueError(f"{document} must have the marks {marks[0]} and {marks[1]}")
    document.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}", encoding="utf-8")


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


def figures(frame: pd.DataFrame) -> str:
    """Both figures in a sentence each, as README and docs/checks.md have them."""
    harmful, fine = _harmful(frame), frame[~frame["broken"]]
    refused, stopped = harmful["verdict"] == "failed", fine["verdict"] == "failed"
    alarms = stopped & ~fine["rightly"].astype(bool)
    clusters = fine["classifier"].astype(str) + ", " + fine["points"].astype(str)
    ends = [100 * upper(each, clusters) for each in (alarms, stopped)]
    rightly = int(stopped.sum() - alarms.sum())
    appeals = (
        f" {rightly} more were refused rightly: on points that they were not judged on they leave significantly more than a "
        f"point more than a stronger attack. With those as alarms too it is {100 * stopped.mean():.1f} %, upper end "
        f"{ends[1]:.1f} %."
    )
    caught = (
        f"Of {len(harmful)} broken (attack, setting) pairs that leave more than five points too much, {int(refused.sum())} are "
        f"refused ({100 * refused.mean():.1f} %)."
        if len(harmful)
        else "No broken (attack, setting) pair was judged that leaves more than five points too much."
    )
    return (
        f"{caught} Of {len(fine)} sound cells {int(alarms.sum())} raised a false alarm "
        f"({100 * alarms.mean():.1f} %; upper end of the 95 % interval {ends[0]:.1f} %, with the {clusters.nunique()} pairs of a "
        f"network and its points as clusters)." + (appeals if rightly else "")
    )


def told(frame: pd.DataFrame) -> str:
    """Both figures, and what was missed and what was refused although it is sound."""
    harmful, fine = _harmful(frame), frame[~frame["broken"]]
    missed, refused = harmful[harmful["verdict"] != "failed"], fine[fine["verdict"] == "failed"]
    lists = [("missed", missed), ("sound and refused", refused)]
    return "\n\n".join([figures(frame), *(f"{what}:\n{some.to_string(index=False)}" for what, some in lists)])


def _harmful(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["broken"] & ~(frame["harm"] <= HARM)]


def radius(written: str) -> float:
    """A radius in [0, 1] pixels, which may be written as a fraction."""
    return float(Fraction(written))


def _options(arguments: list[str]) -> argparse.Namespace:
    """What the command line asks for; ends the program with one line for what cannot be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="results-verdict")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which nothing new is begun; 0 only counts")
    parser.add_argument("--points", type=int, default=400)
    parser.add_argument("--networks", type=int, default=100, help="how many are trained on digits")
    parser.add_argument("--sound", type=int, default=3, help="sound attacks on each of them")
    parser.add_argument("--broken", type=int, default=4, help="broken attacks on each of them")
    parser.add_argument("--dataset", help="as a sweep names it, such as 'parquet: {path: FOLDER}', with --weights")
    parser.add_argument("--weights", nargs="+", metavar="NAME=FILE", help="networks instead of digits' own")
    parser.add_argument("--architecture", default="resnet_small: {width: 32}", help="of the networks of --weights")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--mean", type=float, nargs=3, default=[0.4914, 0.4822, 0.4465])
    parser.add_argument("--std", type=float, nargs=3, default=[0.2470, 0.2435, 0.2616])
    parser.add_argument(
        "--attacks",
        nargs="+",
        metavar="LABEL",
        help="on networks of --weights, or the broken ones on digits; all when left out, and PGD-50 always",
    )
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS), help="in front of F")
    parser.add_argument("--epsilons", type=radius, nargs="+", default=[8 / 255], help="on them, such as 0.05 or 8/255")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="of their gradients and executions"
    )
    parser.add_argument("--seed", type=int, default=0, help="of their points and of everything that is drawn")
    parser.add_argument("--tables", nargs="+", default=[], help="verdict.csv of other runs, which are counted in")
    parser.add_argument("--table", type=Path, help="a file whose table is written anew, docs/checks.md")
    parser.add_argument(
        "--called", default="", help="which of that file's tables: it is between the marks of this name"
    )
    parser.add_argument(
        "--keep", type=Path, help="a file that verdict.csv is written to as well, for --tables of later runs"
    )
    parser.add_argument(
        "--figures", type=Path, nargs="+", default=[], help="files whose sentences are, such as README.md"
    )
    options = parser.parse_args(arguments)
    if (options.weights is None) != (options.dataset is None):
        parser.error("--weights and --dataset must be given together")
    most = (TEST if options.weights else DIGITS) // 2  # A refused sound attack is run on as many other points.
    known = {*sound(HARM), *broken(HARM), HIDES}
    if unknown := [label for label in options.attacks or () if label not in known]:
        parser.error(f"--attacks must be of {', '.join(sorted(known))}; got {', '.join(unknown)}")
    if options.points > most:
        parser.error(f"--points must be at most {most}; got {options.points}")
    return options


def main(arguments: list[str]) -> None:
    """Judge what is not judged yet, print both figures, and keep the table."""
    options = _options(arguments)
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    jobs = list(weights_jobs(options) if options.weights else digits_jobs(options))
    rows = judged(jobs, out, options.minutes, lambda line: print(line, flush=True))
    if not rows and not options.tables:
        raise SystemExit("nothing is judged yet: give it more --minutes")
    frame = table(rows, appealed(jobs, rows, out), options.tables)
    if options.table:
        first, last = (mark.replace(" -->", f" {options.called} -->") if options.called else mark for mark in TABLE)
        write(f"\n{markdown(frame)}\n", options.table, (first, last))
    for document in options.figures:
        write(figures(frame), document, FIGURES)
    for file in (out / "verdict.csv", options.keep):
        if file is not None:
            frame.to_csv(file, index=False)
    print(told(frame))


if __name__ == "__main__":
    main(sys.argv[1:])
