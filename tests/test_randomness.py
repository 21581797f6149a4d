"""Randomness depends on who asks and on the point alone."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy import stats

from mi_ray.randomness import Draws, Key, draw_points

KEY = Key(0, "evaluate", "gaussian_noise")
CPU = torch.device("cpu")
OTHER = {"seed": 1, "purpose": "attack", "family": "mi_ol", "draw": 1, "restart": 1, "step": 1}
KINDS = {
    "uniform": lambda draws: draws.uniform(4),
    "uniform_images": lambda draws: draws.uniform_images((3, 2, 2)),
    "normal_images": lambda draws: draws.normal_images((3, 2, 2)),
}


def _draws(key: Key = KEY, points: object = range(6), executions: int = 5, chunk: int = 0) -> Draws:
    return Draws(key, points, executions, chunk, CPU)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_key_gives_the_same_numbers_and_a_second_call_gives_others(kind: str) -> None:
    first, again = _draws(), _draws()
    one, two = KINDS[kind](first), KINDS[kind](first)
    assert torch.equal(one, KINDS[kind](again))
    assert torch.equal(two, KINDS[kind](again))
    assert not torch.isin(one, two).any()


def test_every_part_of_a_key_is_covered_here() -> None:
    assert set(OTHER) == {field.name for field in fields(Key)}


@pytest.mark.parametrize("part", OTHER)
@pytest.mark.parametrize("kind", KINDS)
def test_another_part_of_the_key_gives_unrelated_numbers(kind: str, part: str) -> None:
    ours, theirs = KINDS[kind](_draws()), KINDS[kind](_draws(KEY.at(**{part: OTHER[part]})))
    assert not torch.isin(ours, theirs).any()


@pytest.mark.parametrize("kind", KINDS)
def test_another_chunk_gives_unrelated_numbers(kind: str) -> None:
    assert not torch.isin(KINDS[kind](_draws(chunk=0)), KINDS[kind](_draws(chunk=1))).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_points_numbers_do_not_depend_on_the_other_points(kind: str) -> None:
    points = [7, 3, 9000, 0, 41]
    together = KINDS[kind](_draws(points=points))
    alone = torch.cat([KINDS[kind](_draws(points=[point])) for point in points], dim=1)
    reverse = KINDS[kind](_draws(points=points[::-1])).flip(1)
    assert torch.equal(together, alone)
    assert torch.equal(together, reverse)


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_of_ten_thousand_points_share_a_stream(kind: str) -> None:
    numbers = KINDS[kind](_draws(points=range(10_000), executions=1))[0].flatten(1)
    assert len(torch.unique(numbers, dim=0)) == 10_000


def test_uniforms_are_uniform_over_points_and_over_executions() -> None:
    across_points = _draws(points=range(2000), executions=1).uniform(2)
    across_executions = _draws(points=[5], executions=2000).uniform(2)
    for numbers in (across_points.flatten(0, 1), across_executions.flatten(0, 1)):
        assert numbers.min() >= 0
        assert numbers.max() < 1
        assert stats.kstest(numbers[:, 0].numpy(), "uniform").pvalue > 1e-3
        assert abs(stats.pearsonr(numbers[:, 0], numbers[:, 1]).statistic) < 0.1
        assert abs(stats.pearsonr(numbers[:-1, 0], numbers[1:, 0]).statistic) < 0.1


def test_normals_are_standard_normal() -> None:
    numbers = _draws(points=range(50), executions=5).normal_images((1, 4, 4)).flatten()
    assert stats.kstest(numbers.numpy(), "norm").pvalue > 1e-3


def test_image_draws_have_executions_first() -> None:
    assert _draws(points=range(4), executions=3).normal_images((2, 5, 6)).shape == (3, 4, 2, 5, 6)


def test_points_are_a_seeded_permutation() -> None:
    first = draw_points(0, 500)
    assert first == draw_points(0, 500)
    assert sorted(first) == list(range(500))
    assert first != list(range(500))
    assert first != draw_points(1, 500)


def test_points_are_drawn_from_the_whole_split() -> None:
    chosen = torch.zeros(100)
    for seed in range(300):
        chosen[draw_points(seed, 100)[:20]] += 1
    assert stats.chisquare(chosen.numpy()).pvalue > 1e-3


def test_points_may_be_counted_by_numpy() -> None:
    """Point 7 is far enough along that its seed does not fit into what NumPy counts with."""
    key = Key(0, "evaluate", "x")
    plain, counted = (Draws(key, points, 2, 0, torch.device("cpu")) for points in ([1, 7], np.array([1, 7])))
    assert torch.equal(plain.uniform(3), counted.uniform(3))
