"""`precision: auto`: bfloat16 for a classifier where a block of points shows that nobody can tell the difference."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mi_ray.attacks import ATTACKS
from mi_ray.classifiers import Precision
from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.own_code import places_told
from mi_ray.statistics import paired_test
from mi_ray.store.blocks import Store
from mi_ray.store.files import DamagedFileError
from mi_ray.store.keys import content_key
from mi_ray.study.batches import BlockInput, attack_outputs, component_outputs, undefended_outputs
from mi_ray.study.prepare import Study
from mi_ray.study.workbench import Workbench
from mi_ray.threat_model import ThreatModel

VERSION = 1  # A check that compares otherwise has another number, and decides anew.
CHECKED = 200  # The check is made on so many of the study's points, the first ones.
# Whatever the classifier, one of these radii leaves neither all points nor none.
EPSILONS = (1 / 255, 4 / 255, 8 / 255)
MOST = 0.01  # A comparison fails where the two accuracies differ by more than this,
LEVEL = 0.05  # or where the p-value of the paired test is below this.
STEPS, EXECUTIONS, SIGMA = 10, 10, 0.05
PIECES = (*EPSILONS, 0.0)  # The comparisons at one epsilon are one task; different tasks may run on different workers.
GRADIENTS, ANSWERS = f"gradients of PGD-{STEPS}", f"{EXECUTIONS} executions behind Gaussian noise"
Comparison = dict[str, Any]  # What was compared, the accuracies, the paired test and its outcome, as JSON holds them.
BOTH: tuple[Precision, Precision] = ("fp32", "bf16")
LARGEST_SHARE = 0.1  # Where the check would take more than this share of a study's planned passes, `auto` means fp32.


def _right(probabilities: Tensor, labels: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """1 for each point whose largest probability is that of its label, else 0."""
    return (probabilities.argmax(-1).cpu().numpy() == labels).astype(np.int64)


def _compared(what: str, epsilon: float, right: Mapping[Precision, npt.NDArray[np.int64]]) -> Comparison:
    """One comparison of the check: accuracies, the points on which they differ, and whether it is passed."""
    test = paired_test(right["bf16"], right["fp32"], 1)
    passed = abs(test.difference) <= MOST and test.p_value >= LEVEL
    found = {f"accuracy_{name}": float(counts.mean()) for name, counts in right.items()}
    differ = int((right["bf16"] != right["fp32"]).sum())
    return {
        "what": what,
        "epsilon": epsilon,
        **found,
        "points_that_differ": differ,
        "p_value": test.p_value,
        "passed": passed,
    }


def checked_points(bench: Workbench) -> int:
    """How many of the study's points the comparisons are made on: the first ones."""
    return min(CHECKED, len(bench.data.points))


@places_told
def compare(bench: Workbench, key: str, epsilon: float) -> list[Comparison]:
    """Compare both precisions of a classifier at one of `PIECES`; all pieces together are what `decide` looks at.

    PGD follows gradients of either precision, and its images are scored in fp32; then the executions of a random
    defense are computed in either precision, on what fp32 has made. At epsilon 0 there is nothing to attack.
    """
    data, count = bench.data, checked_points(bench)
    labels = np.asarray(data.labels[:count])
    x, y = bench.clean(0, count), torch.from_numpy(labels).to(bench.device)
    noise = DEFENSES.make("gaussian_noise", {"sigma": SIGMA})
    assert isinstance(noise, RandomTransform)
    found, images = list[Comparison](), x
    if epsilon > 0:
        made = {precision: _attacked(bench, key, precision, epsilon, count) for precision in BOTH}
        exact = bench.classifier(key, "fp32")
        right = {name: _right(undefended_outputs(exact, _block(bench, each)), labels) for name, each in made.items()}
        found.append(_compared(GRADIENTS, epsilon, right))
        images = made["fp32"]
    right = {}
    for precision in BOTH:
        network = bench.classifier(key, precision)
        answered = component_outputs(network, noise, _block(bench, images), y, None, [EXECUTIONS], 1)
        right[precision] = _right(answered[0, 0], labels)
    return [*found, _compared(ANSWERS, epsilon, right)]


def _block(bench: Workbench, x: Tensor) -> BlockInput:
    """Images of the first points."""
    return BlockInput(x, bench.data.points[: len(x)], bench.data.seed, bench.data.batch)


def _attacked(bench: Workbench, key: str, precision: Precision, epsilon: float, count: int) -> Tensor:
    """float32 [count, C, H, W]: what PGD makes of the first points with gradients of that precision."""
    data, labels = bench.data, np.asarray(bench.data.labels[:count])
    attack = ATTACKS.make("pgd", {"steps": [STEPS], "step_size": EPSILONS[1] / 4})
    found, _ = attack_outputs(
        bench.classifier(key, precision),
        attack,
        _block(bench, bench.clean(0, count)),
        torch.from_numpy(labels).to(bench.device),
        data.classes,
        ThreatModel(epsilon),
    )
    return found.images[0, 0]


def decision(device: str, points: int, found: Iterable[Comparison] | None) -> dict[str, Any]:
    """The decision that follows from all comparisons of a classifier.

    device: the kind of device. points: how many the comparisons were made on. found: the comparisons; None where the device has
    no bfloat16.
    """
    about = {
        "version": VERSION,
        "device": device,
        "rule": f"bf16 where no accuracy differs by more than {MOST:g} "
        f"and no exact McNemar test has p < {LEVEL:g}; fp32 elsewhere",
    }
    if found is None:
        return {**about, "decision": "fp32", "reason": "this device has no bfloat16 arithmetic", "comparisons": []}
    # In this order they are stored, whatever the order in which they were made: gradients first, each kind by epsilon.
    listed = sorted(found, key=lambda each: (each["what"] != GRADIENTS, each["epsilon"]))
    bad = [each for each in listed if not each["passed"]]
    reason = f"{len(bad)} of {len(listed)} comparisons on {points} points failed"
    return {**about, "decision": "fp32" if bad else "bf16", "reason": reason, "comparisons": listed}


def decision_path(study: Study, key: str) -> str:
    """Where the store keeps a classifier's decision: one for each device, batch and order of points."""
    checked = min(CHECKED, study.planner.stored_points)  # Few points may decide otherwise than many.
    ingredients = {
        **study.planner.works.check_ingredients(),
        "version": VERSION,
        "checked": checked,
        "compile": study.planner.works.compiled(key),
        **study.planner.works.form(key, "bf16"),
    }
    return f"classifiers/{key}/precision-{content_key('precision', ingredients)[:12]}.json"


def check_passes(study: Study) -> int:
    """Passes that the check would take for all classifiers of a study, both ways together."""
    # Each step is a pass in both directions, and scoring is one more.
    gradients = len(BOTH) * len(EPSILONS) * (2 * STEPS + 1)
    answers = len(BOTH) * len(PIECES) * EXECUTIONS
    return len(study.planner.classifiers) * min(CHECKED, study.planner.stored_points) * (gradients + answers)


@lru_cache(maxsize=16)
def check_pays(study: Study) -> bool:
    """Whether the check behind `auto` takes at most a tenth of the passes that the study is planned to cost.

    A rule of planned passes and never of a clock, so that it is the same on every machine. The attacks on F alone are
    looked at first, which saves planning a large study once more.
    """
    planner, most = study.planner, check_passes(study) / LARGEST_SHARE
    if planner.stored_points * sum(sum(work.cost) for work in planner.attacks) >= most:
        return True
    return planner.planned_passes(study.plan()) >= most


def decisions(store: Store | None, study: Study) -> dict[str, Precision]:
    """What is decided already, by classifier; nothing where the sweep does not ask for `auto`.

    Where the check does not pay, fp32 is decided without it.
    """
    found: dict[str, Precision] = {}
    if study.sweep.precision != "auto":
        return found
    if not check_pays(study):
        return dict.fromkeys((work.key for work in study.planner.classifiers), "fp32")
    if store is None:
        return found
    for work in study.planner.classifiers:
        path = decision_path(study, work.key)
        try:
            known = store.read_json(path)["decision"] if store.exists(path) else None
        except (DamagedFileError, KeyError, TypeError):
            known = None  # What cannot be read is decided again, and comes out the same.
        if known in BOTH:
            found[work.key] = known
    return found
