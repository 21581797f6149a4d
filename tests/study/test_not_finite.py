"""A NaN or an infinity is found at the first block that shows it, whoever makes it, and nothing of it is stored."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from helpers.studies import Tiny, tiny
from torch import Tensor, nn

from mi_ray.attacks import ATTACKS, Adversarial, Attack
from mi_ray.attacks.pgd import NOT_FINITE, Pgd, all_zero
from mi_ray.classifiers import Classifier
from mi_ray.defenses import DEFENSES, RandomTransform
from mi_ray.device import NotFiniteError
from mi_ray.threat_model import ThreatModel

BAD = 7  # which of the study's points shows it


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Methods that a test registers are gone after it."""
    for registry in (ATTACKS, DEFENSES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    yield


class Broken(nn.Module):
    """A classifier that does something else on images whose first pixel is one that the tests put there."""

    def __init__(self, classifier: Classifier, image: Tensor, value: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier, self.image, self.value = classifier, image, value

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x)
        hit = (x - self.image).abs().flatten(1).amax(1) < 0.2
        return torch.where(hit[:, None], self.value(logits), logits)


def broken(monkeypatch: pytest.MonkeyPatch, one: Tiny, value: Callable[[Tensor], Tensor]) -> None:
    """Let the study's classifier answer otherwise near one of its points."""
    image = one.bench.clean(BAD, BAD + 1)
    inner = one.bench.classifier
    monkeypatch.setattr(one.bench, "classifier", lambda key, precision: Broken(inner(key, precision), image, value))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_classifier_that_answers_nan_at_one_point_is_found_where_it_does(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    one = tiny(tmp_path / "results")
    broken(monkeypatch, one, lambda logits: logits * 0 + value)
    work = one.work(None)
    with pytest.raises(
        NotFiniteError,
        match=rf"the classifier's outputs .* 1 of 20 images, first at test image {one.study.points[BAD]}$",
    ):
        one.bench.compute(work, 0, 20)
    assert one.store.blocks("outputs", work.key) == []
    assert one.bench.compute(work, 20, 40).points == 20


def test_a_gradient_that_is_nan_is_no_gradient_of_zero(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sign of NaN is 0, so that the image would stay where it is and look robust."""
    one = tiny(tmp_path / "results")
    broken(monkeypatch, one, lambda logits: logits + torch.sqrt(logits - logits))  # 0, whose slope is infinite
    attack = one.plan.attacks[0]
    with pytest.raises(NotFiniteError, match=rf"pgd must follow finite gradients; .*test image {one.study.points[0]}$"):
        one.bench.compute(attack, 0, 20)
    assert one.store.blocks("adversarial", attack.key) == []


def test_gradients_are_told_apart() -> None:
    gradient = torch.zeros(4, 3)
    gradient[1, 2], gradient[2, 0], gradient[3, 1] = 1.0, torch.nan, torch.inf
    assert all_zero(gradient).tolist() == [1, 0, NOT_FINITE, NOT_FINITE]


def test_a_defense_that_makes_nan_is_named_with_whose_fault_it_is(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, added: None
) -> None:
    @DEFENSES.register
    @dataclass(frozen=True)
    class Sometimes(RandomTransform):
        """NaN in one of many draws."""

        name: ClassVar[str] = "sometimes"

        def transform(self, x: Tensor, draws: Any, predicted: Tensor, pool: Any) -> Tensor:
            u = draws.uniform(1)[..., None, None]
            return torch.where(u > 0.99, torch.nan, x + 0 * u)

        @classmethod
        def identity(cls) -> dict[str, Any]:
            return {}

    one = tiny(tmp_path / "results", defenses=["sometimes", {"gaussian_noise": 0.1}])
    one.bench.compute(one.work(None), 0, 60)
    with pytest.raises(
        NotFiniteError, match=r"the outputs behind sometimes must be .*: its transform makes such copies$"
    ):
        one.bench.compute(one.work("sometimes"), 0, 60)
    assert one.bench.compute(one.work("gaussian_noise"), 0, 60).points == 60


def test_a_classifier_that_fails_on_noisy_images_alone_is_told_from_the_defense(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tiny(tmp_path / "results")
    one.bench.compute(one.work(None), 0, 60)
    inner = one.bench.classifier

    class Fragile(nn.Module):
        def __init__(self, classifier: nn.Module) -> None:
            super().__init__()
            self.classifier = classifier

        def forward(self, x: Tensor) -> Tensor:
            return torch.where((x < -0.5).flatten(1).any(1)[:, None], torch.nan, self.classifier(x))

    monkeypatch.setattr(one.bench, "classifier", lambda key, precision: Fragile(inner(key, precision)))
    with pytest.raises(
        NotFiniteError, match=r"behind gaussian_noise .*: the classifier answers so to copies that are finite$"
    ):
        one.bench.compute(one.work("gaussian_noise"), 0, 60)


def test_an_attack_that_makes_nan_is_named(batch: Any, linear: Any, unchecked: None) -> None:
    @dataclass(frozen=True)
    class Bad(Attack):
        """NaN in its third image."""

        name: ClassVar[str] = "bad"

        def stops(self) -> tuple[int, ...]:
            return (1,)

        def cost(self, parts: tuple[int, ...] = ()) -> tuple[int, int]:
            return 1, 0

        def run(self, model: nn.Module, batch: Any) -> Adversarial:
            images = batch.x.clone()
            images[2, 0, 0, 0] = torch.nan
            none = torch.full((1, 1, len(batch)), torch.nan)
            return Adversarial(images[None, None], none, none, (1,), torch.full((1, 1, len(batch)), -1))

    x, y = batch
    model = linear(10, (3, 32, 32))
    with pytest.raises(
        NotFiniteError, match=r"the images of bad must be finite numbers; .* 1 of 8 images, first at test image 12$"
    ):
        Bad().craft(model, x, y, ThreatModel(0.1), points=range(10, 18))
    found = Pgd(steps=(1,)).craft(model, x, y, ThreatModel(0.1))  # what is not scored is NaN, and no mistake
    assert found.loss.isnan().all()
