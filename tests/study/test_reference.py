"""A sweep's rows equal those of a plain reference: one image at a time, the network as trained, nothing shared.

The reference below has only the keyed random numbers in common with the program: no batches, no folding, no
channels_last, no stored trajectory, no join of stored rows. It computes in float64, and so does a sweep that is held to
it to the last digit that is stored. In fp32 two ways to compute one network differ in the last bits, by how many depends
on the processor, and where a gradient is nearly zero this turns a step of an attack round; so there a few rows may
differ.
"""

import copy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mi_ray.study.results
from mi_ray.classifiers import Classifier, build_classifier, prepared, weights_bytes
from mi_ray.config import Sweep
from mi_ray.device import has_bf16
from mi_ray.randomness import Draws, Key
from mi_ray.store.blocks import Store
from mi_ray.study.precision import MOST
from mi_ray.study.prepare import Study, prepare
from mi_ray.study.rows import derive
from mi_ray.study.workbench import Workbench

CPU = torch.device("cpu")
POINTS, N, STEPS, STEP_SIZE, EPSILON, LAM_PL, LAM_OL, GAP, SIGMA = 6, 7, (1, 3), 0.015, 0.03, 0.6, 0.5, 0.05, 0.1
SWEEP: dict[str, Any] = {
    "name": "reference",
    "dataset": "digits",
    "points": {"count": POINTS},
    "batch": 4,
    "executions": [3, N],
    "draws": 1,
    "checks": "cheap",
    "classifiers": [{"name": "a", "architecture": {"resnet_small": {"width": 8}}}],
    "attacks": [
        {"pgd": {"steps": list(STEPS), "step_size": STEP_SIZE}, "epsilon": EPSILON},
        {
            "eot_pgd": {"steps": [2], "step_size": STEP_SIZE, "eot": N},
            "epsilon": EPSILON,
            "knowledge": "adaptive",
            "defenses": ["mi_ol"],
        },
    ],
    "defenses": [
        "none",
        {"gaussian_noise": {"sigma": SIGMA}},
        {"mi_pl": {"lam": LAM_PL}},
        {"mi_ol": {"lam": LAM_OL}},
        {"mi_combined": {"lam_pl": LAM_PL, "lam_ol": LAM_OL, "threshold": GAP}},
    ],
}


class Reference:
    """Every method of the sweep above, written out for one point."""

    def __init__(self, f: Classifier, data: Any) -> None:
        self.f, self.data = f, data
        self.train = torch.from_numpy(data.train_images).permute(0, 3, 1, 2).float() / 255
        self.by_class = [np.flatnonzero(data.train_labels == k) for k in range(10)]
        self.image, self.outputs = cache(self._image), cache(self._outputs)

    def clean(self, point: int) -> Tensor:
        """[1, 3, H, W]."""
        return torch.from_numpy(self.data.test_images[point]).permute(2, 0, 1)[None].float() / 255

    def probabilities(self, x: Tensor) -> Tensor:
        """F(x), [10]."""
        return F.softmax(self.f(x), dim=1)[0]

    def executions(self, name: str, x: Tensor, point: int, key: Key, n: int) -> Iterator[Tensor]:
        """F's output on each of the first n transformed copies, chunks of five random numbers at a time."""
        guess = int(self.f(x).argmax())
        for i in range(n):
            draws = Draws(key.at(family=name), [point], 5, i // 5, CPU)
            if name == "gaussian_noise":
                yield self.probabilities(x + SIGMA * draws.normal_images(x.shape[1:])[i % 5])
                continue
            which, place = draws.uniform(2)[i % 5, 0].double().tolist()
            others = [k for k in range(10) if k != guess]
            members = self.by_class[guess if name == "mi_pl" else others[int(which * 9)]]
            sample = self.train[members[int(place * len(members))]][None]
            lam = LAM_PL if name == "mi_pl" else LAM_OL
            yield self.probabilities(lam * x + (1 - lam) * sample)

    def answer(self, defense: str, at: tuple[str, int, int], n: int) -> Tensor:
        """Probabilities [10] of any defense of the sweep. at: the image, as `image` names it."""
        own = self.outputs("none", at)[0]
        if defense == "none":
            return own
        if defense != "mi_combined":
            return self.outputs(defense, at)[:n].mean(0)
        guess = int(own.argmax())
        if own[guess] - self.outputs("mi_pl", at)[:n].mean(0)[guess] >= GAP:
            return self.outputs("mi_ol", at)[:n].mean(0)
        return own

    def _outputs(self, name: str, at: tuple[str, int, int]) -> Tensor:
        """[N, 10]: F's output on each transformed copy of an image; on the image itself where there is no defense."""
        x, point = self.image(at), at[1]
        with torch.no_grad():
            if name == "none":
                return self.probabilities(x)[None]
            return torch.stack(list(self.executions(name, x, point, Key(0, "evaluate"), N)))

    def _image(self, at: tuple[str, int, int]) -> Tensor:
        """at: (attack or "clean", point, steps)."""
        return self.clean(at[1]) if at[0] == "clean" else self.attacked(*at)

    def attacked(self, method: str, point: int, steps: int) -> Tensor:
        """The point after so many sign steps: on F, or by EOT on MI-OL's own mean probability."""
        x, y = self.clean(point), int(self.data.test_labels[point])
        key = Key(0, "attack", method)
        unit = Draws(key, [point], 1, 0, CPU).uniform_images(x.shape[1:])[0]
        found = (x + EPSILON * (2 * unit - 1)).clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
        for step in range(steps):
            found = found.detach().requires_grad_(True)
            if method == "pgd":
                loss = F.cross_entropy(self.f(found), torch.tensor([y]))
            else:
                runs = self.executions("mi_ol", found, point, key.at(step=step + 1), N)
                loss = -torch.stack([run[y] for run in runs]).mean().log()
            moved = found + STEP_SIZE * torch.autograd.grad(loss, found)[0].sign()
            found = moved.clamp(x - EPSILON, x + EPSILON).clamp(0, 1)
        return found.detach()


def _trained(study: Study, digits: Any) -> Classifier:
    """A classifier that gets most digits right, so that attacks and defenses change some answers and not others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        f = build_classifier(study.planner.classifiers[0].description)
        optimizer = torch.optim.SGD(f.parameters(), lr=0.1, momentum=0.9)
        x = torch.from_numpy(digits.train_images).permute(0, 3, 1, 2).float() / 255
        y = torch.from_numpy(digits.train_labels)
        for _ in range(2):
            for chosen in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(f(x[chosen]), y[chosen]).backward()
                optimizer.step()
    return f.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def trained(digits: Any) -> Classifier:
    """One network for both tests."""
    return _trained(prepare(Sweep.model_validate(SWEEP)), digits)


def _rows(place: Path, f: Classifier, precision: str) -> dict[tuple[str, str, int, int], Any]:
    """(defense, attack, steps, N) -> the records of the fast path, in the order of their points."""
    study = prepare(Sweep.model_validate({**SWEEP, "precision": precision}))
    work = study.planner.classifiers[0]
    Store(place, create=True)
    bench = Workbench(study.data(str(place), {work.key: (work.description, weights_bytes(f))}))
    plan, found = study.plan(), {}
    outputs = sorted(plan.outputs, key=lambda output: output.component is not None)  # F's own first: ŷ is read there
    for piece in (*plan.attacks, *outputs):
        bench.compute(piece, 0, POINTS)
    for cell in plan.cells:
        if cell.members:
            continue  # the worst case of several attacks: rows of the others
        rows, n = derive(bench.results, cell, 0, POINTS).to_pandas(), cell.identity["executions"]
        attack = cell.inputs.attack
        found[cell.identity["defense"], attack.method if attack else "clean", cell.inputs.stop or 0, n] = rows
    return found


@pytest.fixture(scope="module")
def fast(trained: Classifier, tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """The rows in fp32."""
    return _rows(tmp_path_factory.mktemp("fp32") / "s", trained, "fp32")


@pytest.fixture(scope="module")
def told(trained: Classifier, fast: dict[Any, Any], digits: Any) -> dict[Any, Any]:
    """(defense, attack, steps, N) -> [points, 10]: the reference's probabilities, for the points of the rows."""
    reference = Reference(copy.deepcopy(trained).double(), digits)
    return {
        (defense, method, steps, n): np.stack(
            [reference.answer(defense, (method, point, steps), n).numpy() for point in rows["point"]]
        )
        for (defense, method, steps, n), rows in fast.items()
    }


def _probabilities(rows: dict[Any, Any]) -> Any:
    return {cell: np.stack(list(of["probabilities"])) for cell, of in rows.items()}


def test_in_float64_every_row_of_a_sweep_is_that_of_the_plain_reference(
    trained: Classifier, told: dict[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_float64(classifier: Classifier, *rest: Any) -> Classifier:
        return prepared(classifier.double(), *rest)

    monkeypatch.setattr(mi_ray.study.results, "prepared", in_float64)
    rows = _rows(tmp_path / "s", trained, "fp32")
    assert len(rows) == 3 * (1 + 2 * 4) + 2
    assert rows.keys() == told.keys()
    for cell, found in _probabilities(rows).items():
        assert found.shape == (POINTS, 10)
        np.testing.assert_allclose(found, told[cell], atol=1e-6, err_msg=str(cell))
        assert list(rows[cell]["predicted"]) == list(told[cell].argmax(1)), cell
    changed = {cell[:3] for cell, of in rows.items() if (of["predicted"] != of["label"]).any()}
    assert len(changed) > 10  # the comparison is not of answers that are all right,
    assert any((of["predicted"] == of["label"]).any() for of in rows.values())  # nor all wrong


def test_in_fp32_nearly_every_row_of_a_sweep_is_that_of_the_plain_reference(
    fast: dict[Any, Any], told: dict[Any, Any]
) -> None:
    found = _probabilities(fast)
    differ = {cell: np.abs(found[cell] - told[cell]).max(1) > 1e-3 for cell in fast}
    assert np.mean(list(differ.values())) < 0.05
    assert not any(differ[cell].any() for cell in fast if cell[1] == "clean")  # no step of an attack, nothing to turn


@pytest.mark.skipif(not has_bf16(CPU), reason="this processor has no bfloat16 arithmetic")
def test_in_bf16_no_accuracy_of_a_sweep_differs_by_more_than_auto_accepts(
    trained: Classifier, fast: dict[Any, Any], tmp_path: Path
) -> None:
    coarse, differences = _rows(tmp_path / "s", trained, "bf16"), []
    for name, rows in fast.items():
        right = [(found["predicted"] == found["label"]).mean() for found in (rows, coarse[name])]
        differences.append(right[1] - right[0])
    assert max(map(abs, differences)) <= max(MOST, 1 / POINTS) + 1e-9
    assert abs(np.mean(differences)) <= MOST
    assert any(
        not np.array_equal(list(rows["probabilities"]), list(coarse[name]["probabilities"]))
        for name, rows in fast.items()
    )
