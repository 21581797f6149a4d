"""Defenses one after another, and votes: what they are made of, by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mi_ray import make_defense, predict
from mi_ray.defenses import DEFENSES, DefendedClassifier
from mi_ray.defenses.base import CHUNK, EVALUATE, Executions, log_mean, log_votes
from mi_ray.parameters import expand
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool

CPU = torch.device("cpu")
KEY, POINTS = Key(3, "attack", "some_attack", step=2), range(40, 48)
NOISE, TURN = {"gaussian_noise": {"sigma": 0.1}}, {"random_rotation": {"degrees": 30}}
PAD, MIX = {"random_pad": {"crop": [20, 28]}}, {"mi_ol": {"lam": 0.5}}


def _copies(
    of: list[Any], x: Tensor, pool: SamplePool | None = None, executions: int = 4, name: str = "chain"
) -> Tensor:
    made: Any = make_defense(name, of=of)
    predicted = torch.arange(len(x)) % 10
    return made.copies(x, lambda: Draws(KEY, POINTS, executions, 0, CPU), predicted, pool)


@pytest.mark.parametrize("part", [NOISE, TURN, PAD, MIX])
@pytest.mark.parametrize("executions", [1, 7])
def test_a_chain_of_one_is_that_one_bit_for_bit(
    part: dict[str, Any], executions: int, classifier: nn.Module, pool: SamplePool, batch: Any
) -> None:
    ((name, values),) = part.items()
    alone = predict(classifier, make_defense(name, **values), batch[0], pool, executions, seed=5, points=POINTS)
    found = predict(classifier, make_defense("chain", of=[part]), batch[0], pool, executions, seed=5, points=POINTS)
    assert torch.equal(found, alone)


def test_each_execution_goes_through_all_in_order_with_the_numbers_that_each_draws_alone(
    pool: SamplePool, batch: Any
) -> None:
    x, predicted = batch[0], torch.arange(8) % 10
    found = _copies([PAD, NOISE, MIX], x, pool)
    pad: Any = make_defense("random_pad", crop=[20, 28])
    padded = pad.transform(x, Draws(KEY.at(family="random_pad"), POINTS, 4, 0, CPU), predicted, None)
    noise = Draws(KEY.at(family="gaussian_noise"), POINTS, 4, 0, CPU).normal_images(x.shape[1:])
    samples = pool.draw(Draws(KEY.at(family="mi_ol"), POINTS, 4, 0, CPU), predicted, "other")
    torch.testing.assert_close(found, 0.5 * (padded + 0.1 * noise) + 0.5 * samples, rtol=0, atol=1e-6)
    assert not torch.allclose(found, _copies([NOISE, PAD, MIX], x, pool))


def test_a_defense_that_comes_again_draws_other_numbers(batch: Any) -> None:
    once, twice = (_copies([NOISE] * times, batch[0], executions=5) - batch[0] for times in (1, 2))
    second = twice - once
    assert second.std().item() == pytest.approx(0.1, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([once.flatten(), second.flatten()]))[0, 1]) < 0.02
    assert not torch.allclose(second[0], second[1])


@pytest.mark.parametrize("order", [[TURN, NOISE], [NOISE, TURN]])
def test_the_gradient_is_that_of_the_product(order: list[Any], batch: Any) -> None:
    """Noise adds nothing to the derivative, so that both orders have the rotation's."""
    weight = torch.randn(4, 8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    gradients = []
    for of in ([TURN], order):
        leaf = batch[0].clone().requires_grad_(True)
        gradients.append(torch.autograd.grad((_copies(of, leaf) * weight).sum(), leaf)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-5)


def test_only_a_chain_that_mixes_needs_a_pool(classifier: nn.Module, batch: Any) -> None:
    assert predict(classifier, make_defense("chain", of=[TURN, NOISE]), batch[0]).shape == (8, 10)
    with pytest.raises(ValueError, match="chain mixes inputs with a sample pool"):
        predict(classifier, make_defense("chain", of=[TURN, MIX]), batch[0])


def test_a_crop_within_a_chain_must_fit_the_image(classifier: nn.Module) -> None:
    with pytest.raises(ValueError, match="crop must not exceed the image's side, 16 pixels"):
        predict(classifier, make_defense("chain", of=[NOISE, PAD]), torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("of", "said"),
    [
        ([], r"chain.of must be one or several defenses.*; got \[\]: there is none"),
        (["mi_old"], r"got \['mi_old'\]: unknown defense 'mi_old' \(did you mean 'mi_ol'"),
        ([{"gaussian_noise": {"sigma": -1}}], r"gaussian_noise.sigma must be a number in \[0, ∞\]; got -1"),
        (["none"], "chain must be of defenses that transform the input and are none of others; got none"),
        ([{"chain": [NOISE]}], "must be of defenses that transform the input and are none of others; got chain"),
        ([{"mi_combined": {"lam_pl": 0.5, "lam_ol": 0.5, "threshold": 0}}], "none of others; got mi_combined"),
        (3, r"must be a name, or one name with its parameters"),
    ],
)
def test_what_cannot_be_in_a_chain_is_refused(of: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_defense("chain", of=of)


@pytest.mark.parametrize("written", [[NOISE, TURN], {"of": [NOISE, TURN]}])
def test_a_list_is_short_for_its_defenses(written: Any) -> None:
    assert DEFENSES.make("chain", written) == make_defense("chain", of=[NOISE, TURN])
    assert DEFENSES.make("vote", NOISE) == make_defense("vote", of=[NOISE])


def test_values_say_all_of_the_parts_and_make_the_same_chain_again() -> None:
    made = make_defense("chain", of=[NOISE, PAD])
    assert made.values() == {"of": [NOISE, {"random_pad": {"crop": [20, 28], "eight_bit": False}}]}
    assert DEFENSES.make("chain", made.values()) == made


def test_the_axes_of_its_defenses_are_axes_of_a_chain_and_options_reach_them() -> None:
    written = [{"gaussian_noise": {"sigma": [0.1, 0.2]}}, {"random_pad": {"crop": [[20, 28], [24, 30]]}}]
    (axis,) = expand(DEFENSES["chain"], written, lambda option: option == "eight_bit").values()
    assert [(a.sigma, b.crop, b.eight_bit) for a, b in axis.values] == [
        (sigma, crop, True) for sigma in (0.1, 0.2) for crop in ((20, 28), (24, 30))
    ]


# Votes


def test_votes_are_the_shares_of_labels_by_hand() -> None:
    log_p = torch.log(torch.tensor([[[0.5, 0.3, 0.2]], [[0.1, 0.8, 0.1]], [[0.4, 0.35, 0.25]], [[0.3, 0.2, 0.5]]]))
    torch.testing.assert_close(log_votes(log_p).exp(), torch.tensor([[0.5, 0.25, 0.25]]))
    torch.testing.assert_close(log_mean(log_p).exp(), torch.tensor([[0.325, 0.4125, 0.2625]]))


def test_votes_and_the_mean_may_name_different_classes(classifier: nn.Module, batch: Any) -> None:
    vote, mean = (
        DefendedClassifier(classifier, make_defense(name, of=[NOISE]), executions=9) for name in ("vote", "chain")
    )
    with vote.bind(KEY, POINTS), mean.bind(KEY, POINTS):
        answers = mean.each(batch[0])
        assert torch.equal(vote.each(batch[0]), answers)
        expected = F.one_hot(answers.argmax(-1), 10).float().mean(0)
        torch.testing.assert_close(vote(batch[0]).exp(), expected)
        assert not torch.allclose(mean(batch[0]).exp(), expected)


def test_the_gradient_of_votes_is_that_of_the_mean(classifier: nn.Module, batch: Any) -> None:
    gradients = []
    for name in ("vote", "chain"):
        model = DefendedClassifier(classifier, make_defense(name, of=[TURN]), executions=6)
        leaf = batch[0].clone().requires_grad_(True)
        with model.bind(KEY, POINTS):
            gradients.append(torch.autograd.grad(model(leaf)[:, 3].sum(), leaf)[0])
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_executions_that_were_run_before_are_left_out_and_the_others_are_the_same(
    classifier: nn.Module, batch: Any
) -> None:
    component: Any = make_defense("vote", of=[NOISE])
    predicted, key = torch.zeros(8, dtype=torch.int64), Key(1, EVALUATE)
    whole = Executions(component, None, key, POINTS, 13).log_probabilities(classifier, batch[0], predicted)
    for begin in (3, CHUNK, 11):
        rest = Executions(component, None, key, POINTS, 13, begin)
        assert torch.equal(rest.log_probabilities(classifier, batch[0], predicted), whole[begin:])
        assert sum(len(copies) for copies in rest.copies(batch[0], predicted)) == 15 - begin // CHUNK * CHUNK
