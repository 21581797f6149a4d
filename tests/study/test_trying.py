"""What is asked of a person's own classifier before any work: how far an image's answer may depend on those beside it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mi_ray.classifiers import wrap_classifier
from mi_ray.config import ClassifierEntry
from mi_ray.study.given import given_classifier
from mi_ray.study.trying import BESIDE, doubts, look_problems, try_classifier, try_objective


class Beside(nn.Module):
    """Logits that all move by a share of their span where more than two images stand beside one another."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.linear = share, nn.Linear(3 * 32 * 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images [B, 3, 32, 32]."""
        logits: Tensor = self.linear(x.flatten(1))
        return logits + self.share * (logits.max() - logits.min()).detach() * (len(x) > 2)


@pytest.mark.parametrize(("share", "accepted"), [(0.0, True), (0.6 * BESIDE, True), (1.5 * BESIDE, False)])
def test_other_images_in_a_batch_may_move_logits_by_a_share_of_their_span(
    share: float, accepted: bool, digits: Any
) -> None:
    torch.manual_seed(0)
    classifier = wrap_classifier(Beside(share), (0.5,) * 3, (0.25,) * 3)
    entry = ClassifierEntry.model_validate({"name": "f", "factory": "mine:network"})
    if accepted:
        try_classifier(entry, classifier, digits, "fp32", gradients=True)
    else:
        with pytest.raises(ValueError, match="must answer each image by itself"):
            try_classifier(entry, classifier, digits, "fp32", gradients=True)


class Answers(nn.Module):
    """A network whose answer is made of its logits."""

    def __init__(self, made: Any) -> None:
        super().__init__()
        self.made, self.linear = made, nn.Linear(3 * 32 * 32, 10)

    def forward(self, x: Tensor) -> Any:
        """What is made of logits of normalised images [B, 3, 32, 32]."""
        return self.made(self.linear(x.flatten(1)))


@pytest.mark.parametrize(
    ("made", "weights", "told"),
    [
        (lambda logits: logits, "mine.safetensors", []),
        (lambda logits: logits, None, ["no `weights` are given"]),
        (torch.sigmoid, "mine.safetensors", ["lies in [0, 1], as behind a sigmoid"]),
        (lambda logits: (logits, logits), "mine.safetensors", ["returns 2 answers, of which the first is taken"]),
        (lambda logits: (logits,), "mine.safetensors", []),
    ],
)
def test_what_may_be_a_mistake_about_a_network_is_said_and_not_refused(
    made: Any, weights: str | None, told: list[str], digits: Any
) -> None:
    torch.manual_seed(0)
    classifier = wrap_classifier(Answers(made), (0.5,) * 3, (0.25,) * 3)
    said = {"mean": [0.5] * 3, "std": [0.25] * 3}
    entry = ClassifierEntry.model_validate({"name": "f", "factory": "mine:network", "weights": weights, **said})
    found = doubts(entry, classifier, digits)
    assert [words in said for words, said in zip(told, found, strict=True)] == [True] * len(told)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({}, "mean 0.5 and std 0.5 of each channel normalise its images"),
        ({"mean": [0.4] * 3}, "std 0.5 of each channel normalise"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, ""),
    ],
)
def test_a_normalisation_that_nobody_has_named_is_said(said: dict[str, Any], told: str, digits: Any) -> None:
    entry = ClassifierEntry.model_validate({"name": "f", "factory": f"{__name__}:linear", **said})
    found = doubts(entry, given_classifier(entry, 10, 0), digits)
    assert [sentence.startswith(told) for sentence in found if "weights" not in sentence] == ([True] if told else [])


def linear() -> nn.Module:
    """A network of a person's own."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))


class _Looks:
    colour, marker = "", ""


@pytest.mark.parametrize(
    ("colour", "marker", "told"),
    [
        ("teal", "o", ""),
        ("#1f77b4", r"$\alpha$", ""),
        ("", (5, 1), ""),
        ("bleu", "", "colour must be one that matplotlib knows"),
        ("", "ZZ", "marker must be one that matplotlib knows"),
    ],
)
def test_a_look_is_one_that_figures_can_draw(colour: str, marker: Any, told: str) -> None:
    look: Any = type("Look", (_Looks,), {"colour": colour, "marker": marker})()
    found = list(look_problems(look))
    assert [problem.partition(",")[0] for problem in found] == ([told] if told else [])


def test_an_objective_meets_the_network_that_it_trains_on_images_of_all_classes(digits: Any, describe: Any) -> None:
    met: list[Any] = []

    class Mine:
        name = "mine"

        def cost(self) -> list[int]:
            return [1, 1]

        def loss(self, model: Any, plain: Any, x: Any, y: Any, rng: Any) -> Any:
            met.append((model.description["architecture"], model.training, len(x), len(y.unique())))
            return torch.nn.functional.cross_entropy(model(x), y)[None]

    ordered = np.argsort(digits.train_labels, kind="stable")  # as folders of pictures have them
    data = replace(digits, train_images=digits.train_images[ordered], train_labels=digits.train_labels[ordered])
    mine: Any = Mine()
    try_objective(mine, describe("resnet_small", width=2), data, 32)
    assert met == [("resnet_small", True, 32, 10)] * 2
