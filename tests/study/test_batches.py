"""Work on blocks of points: the same numbers as the Python interface, whatever block they are computed in."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from mi_ray import ThreatModel, make_attack, make_defense, predict
from mi_ray.data import to_unit
from mi_ray.defenses import DefendedClassifier
from mi_ray.sample_pool import SamplePool
from mi_ray.study.batches import BlockInput, attack_outputs, batches, component_outputs, undefended_outputs

BATCH = 4
POINTS = [31, 7, 400, 12, 5, 77, 210, 3, 150, 499]
SETTINGS = {"mi_ol": {"lam": 0.5}, "mi_pl": {"lam": 0.5}, "random_resize": {"crop": [20, 28]}}


@pytest.fixture
def x(digits: Any) -> Tensor:
    """The images of the points."""
    return to_unit(digits.test_images[POINTS])


def _outputs(
    f: Any,
    name: str,
    x: Tensor,
    points: Sequence[int],
    pool: Any,
    executions: Any = (6,),
    draws: int = 1,
    seed: int = 9,
) -> Tensor:
    component: Any = make_defense(name, **SETTINGS[name])
    return component_outputs(f, component, BlockInput(x, points, seed, BATCH), f(x).argmax(1), pool, executions, draws)


@pytest.mark.parametrize("name", SETTINGS)
def test_component_outputs_are_what_predict_returns(name: str, classifier: Any, pool: SamplePool, x: Tensor) -> None:
    found = _outputs(classifier, name, x, POINTS, pool)
    expected = predict(classifier, make_defense(name, **SETTINGS[name]), x, pool, executions=6, seed=9, points=POINTS)
    assert found.shape == (1, 1, 10, 10)
    torch.testing.assert_close(found[0, 0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SETTINGS)
def test_blocks_of_whole_batches_give_the_same_bits(name: str, classifier: Any, pool: SamplePool, x: Tensor) -> None:
    whole = _outputs(classifier, name, x, POINTS, pool, (2, 6), 2)
    for cuts in ((0, 4, 10), (0, 8, 10), (0, 4, 8, 10)):
        parts = [slice(start, stop) for start, stop in pairwise(cuts)]
        blocks = [_outputs(classifier, name, x[part], POINTS[part], pool, (2, 6), 2) for part in parts]
        assert torch.equal(torch.cat(blocks, dim=2), whole)


def test_fewer_executions_and_draws_are_a_part_of_more(classifier: Any, pool: SamplePool, x: Tensor) -> None:
    more = _outputs(classifier, "mi_ol", x, POINTS, pool, (1, 5, 10, 30), draws=3)
    assert more.shape == (3, 4, 10, 10)
    for position, n in enumerate((1, 5, 10, 30)):
        alone = _outputs(classifier, "mi_ol", x, POINTS, pool, (n,), draws=2)
        assert torch.equal(alone[:, 0], more[:2, position])


def test_draws_are_independent_repetitions(classifier: Any, pool: SamplePool, x: Tensor) -> None:
    draws = _outputs(classifier, "mi_ol", x, POINTS, pool, (5,), draws=3)[:, 0]
    assert len(torch.unique(draws.flatten(1), dim=0)) == 3
    assert not torch.equal(draws[0], _outputs(classifier, "mi_ol", x, POINTS, pool, (5,), seed=10)[0, 0])


def test_the_mixed_class_is_the_prediction_that_is_handed_in(classifier: Any, pool: SamplePool, x: Tensor) -> None:
    component: Any = make_defense("mi_pl", lam=0.0)
    predicted = (classifier(x).argmax(1) + 1) % 10
    found = component_outputs(classifier, component, BlockInput(x, POINTS, 0, BATCH), predicted, pool, (20,), 1)[0, 0]
    assert (found.argmax(1) == predicted).float().mean() >= 0.8


def test_undefended_outputs_are_the_softmax_and_the_same_bits_in_any_block(classifier: Any, x: Tensor) -> None:
    whole = undefended_outputs(classifier, BlockInput(x, POINTS, 0, BATCH))
    torch.testing.assert_close(whole, classifier(x).softmax(1), rtol=0, atol=1e-6)
    blocks = [
        undefended_outputs(classifier, BlockInput(x[part], POINTS[part], 0, BATCH))
        for part in (slice(0, 8), slice(8, 10))
    ]
    assert torch.equal(torch.cat(blocks), whole)
    assert not whole.requires_grad


@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
def test_attack_blocks_of_whole_batches_give_the_same_bits(
    goal: Any, classifier: Any, digits: Any, pool: SamplePool, x: Tensor
) -> None:
    y = torch.from_numpy(digits.test_labels[POINTS])
    attack, threat = make_attack("pgd", steps=[1, 3], restarts=2), ThreatModel(8 / 255, goal)
    defended = DefendedClassifier(classifier, make_defense("mi_ol", lam=0.5), pool, executions=2)
    for model in (classifier, defended):
        whole, labels = attack_outputs(model, attack, BlockInput(x, POINTS, 0, BATCH), y, 10, threat)
        blocks = [
            attack_outputs(model, attack, BlockInput(x[part], POINTS[part], 0, BATCH), y[part], 10, threat)
            for part in (slice(0, 4), slice(4, 10))
        ]
        assert whole.images.shape == (2, 2, *x.shape)
        assert whole.stops == (1, 3)
        assert torch.equal(torch.cat([found.images for found, _ in blocks], dim=2), whole.images)
        assert torch.equal(torch.cat([found.loss for found, _ in blocks], dim=2), whole.loss)
        assert torch.equal(torch.cat([part for _, part in blocks]), labels)


@pytest.mark.parametrize(("total", "expected"), [(8, [4, 4]), (10, [4, 4, 2]), (3, [3]), (0, [])])
def test_batches_cover_a_block_once_and_in_order(total: int, expected: list[int]) -> None:
    parts = [list(range(total))[part] for part in batches(total, BATCH)]
    assert [len(part) for part in parts] == expected
    assert [i for part in parts for i in part] == list(range(total))


def test_shapes_are_checked_while_tests_run(x: Tensor) -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="BlockInput"):
        BlockInput(x[0], POINTS, 0, BATCH)
