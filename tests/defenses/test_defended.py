"""F behind a defense as an adversary meets it: chunks with graphs of their own, copies, parts, branches, soft joins."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mi_ray import make_defense, predict
from mi_ray.defenses import DefendedClassifier
from mi_ray.defenses.base import CHUNK, EVALUATE, log_mean
from mi_ray.randomness import Draws, Key
from mi_ray.sample_pool import SamplePool

KEY, POINTS = Key(3, "attack", "some_attack", step=2), range(40, 48)
COMBINED = {"lam_pl": 0.6, "lam_ol": 0.5, "threshold": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "gaussian_noise": {"sigma": 0.1},
    "random_rotation": {"degrees": 20},
    "mi_ol": {"lam": 0.5},
    "mi_combined": COMBINED,
    "mi_combined with executions_pl": {**COMBINED, "executions_pl": 4},
}
SEVERAL = [name for name in SETTINGS if name.startswith("mi_combined")]


@pytest.fixture
def defended(classifier: nn.Module, pool: SamplePool) -> Any:
    """Makes F behind one of the settings above."""

    def make(name: str, executions: int = 7, **more: Any) -> DefendedClassifier:
        defense = make_defense(name.split()[0], **SETTINGS[name])
        return DefendedClassifier(classifier, defense, more.pop("pool", pool), executions, **more)

    return make


def numbers(name: str, executions: int = 7) -> list[int]:
    """N of each component."""
    return {"none": [], "mi_combined": [executions] * 2, "mi_combined with executions_pl": [4, executions]}.get(
        name, [executions]
    )


@pytest.mark.parametrize("training", [True, False])
def test_it_begins_in_the_mode_of_f(training: bool, linear: Any) -> None:
    """A library that notes a module's mode and puts it back would else switch F's."""
    f = linear(4).train(training)
    assert DefendedClassifier(f, make_defense("none")).training is f.training is training


@pytest.mark.parametrize("name", SETTINGS)
def test_chunks_are_all_executions_a_few_at_a_time(name: str, defended: Any, batch: Any) -> None:
    model, sizes = defended(name), []
    with model.bind(KEY, POINTS):
        chunks = list(model.chunks(batch[0]))
        whole = model.each(batch[0])
    assert torch.equal(torch.cat(chunks), whole)
    for n in numbers(name) or [1]:
        sizes += [min(CHUNK, n - start) for start in range(0, n, CHUNK)]
    assert [len(chunk) for chunk in chunks] == sizes
    assert all(torch.allclose(chunk.exp().sum(-1), torch.ones(()), atol=1e-5) for chunk in chunks)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in SEVERAL])
def test_the_answer_is_the_log_of_the_mean_of_the_executions(name: str, defended: Any, batch: Any) -> None:
    model = defended(name)
    with model.bind(KEY, POINTS):
        answer, each = model(batch[0]), model.each(batch[0])
    torch.testing.assert_close(answer, each.exp().mean(0).log(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_bound_to_the_draws_of_an_evaluation_the_answer_is_that_of_predict(
    name: str, defended: Any, classifier: nn.Module, pool: SamplePool, batch: Any
) -> None:
    model = defended(name)
    with torch.no_grad(), model.bind(Key(5, EVALUATE), POINTS):
        answer = model(batch[0])
    expected = predict(classifier, model.defense, batch[0], pool, 7, seed=5, points=POINTS)
    torch.testing.assert_close(answer.exp(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gaussian_noise", "mi_ol", "mi_combined"])
def test_each_chunk_has_a_graph_of_its_own_whose_gradients_add_up(name: str, defended: Any, batch: Any) -> None:
    model, labels = defended(name), batch[1]
    with model.bind(KEY, POINTS):
        x = batch[0].clone().requires_grad_(True)
        for chunk in model.chunks(x):
            chunk.gather(-1, labels.expand(chunk.shape[:2])[..., None]).sum().backward()  # frees this graph alone
        by_chunk = x.grad
        x = batch[0].clone().requires_grad_(True)
        each = model.each(x)
        (whole,) = torch.autograd.grad(each.gather(-1, labels.expand(each.shape[:2])[..., None]).sum(), x)
    assert by_chunk is not None
    assert by_chunk.abs().flatten(1).amax(1).min() > 0
    torch.testing.assert_close(by_chunk, whole, rtol=1e-4, atol=1e-5)


def test_the_predicted_class_is_fs_own_and_has_no_gradient(defended: Any, classifier: nn.Module, batch: Any) -> None:
    found = defended("mi_ol").predicted(batch[0].clone().requires_grad_(True))
    assert torch.equal(found, classifier(batch[0]).argmax(1))
    assert not found.requires_grad


@pytest.mark.parametrize("name", ["gaussian_noise", "mi_ol", "mi_combined"])
def test_copies_are_what_the_last_component_classifies(
    name: str, defended: Any, classifier: nn.Module, batch: Any
) -> None:
    model = defended(name)
    with torch.no_grad(), model.bind(KEY, POINTS):
        copies, each = model.copies(batch[0]), model.each(batch[0])
    assert copies.shape == (7, 8, 3, 32, 32)
    classified = torch.stack([torch.log_softmax(classifier(copy), dim=1) for copy in copies])
    torch.testing.assert_close(classified, each[-7:], rtol=1e-4, atol=1e-4)


def test_copies_hold_lambda_of_the_image_and_are_fewer_of_the_same_where_fewer_are_asked(
    defended: Any, batch: Any
) -> None:
    found = []
    for n in (7, 3):
        model = defended("mi_ol", n)
        with model.bind(KEY, POINTS):
            x = batch[0].clone().requires_grad_(True)
            copies = model.copies(x)
        (gradient,) = torch.autograd.grad(copies.sum(), x)
        torch.testing.assert_close(gradient, torch.full_like(x, 0.5 * n))
        found.append(copies.detach())
    assert torch.equal(found[0][:3], found[1])


def test_a_defense_without_components_makes_no_copies(defended: Any, batch: Any) -> None:
    with pytest.raises(ValueError, match="none makes no copies of its input"):
        defended("none").copies(batch[0])


@pytest.mark.parametrize("name", SETTINGS)
def test_parts_are_f_and_the_executions_of_each_component_and_join_to_the_answer(
    name: str, defended: Any, classifier: nn.Module, batch: Any
) -> None:
    model = defended(name)
    with torch.no_grad(), model.bind(KEY, POINTS):
        undefended, runs = model.parts(batch[0])
        answer = model(batch[0]).exp()
        each = model.each(batch[0])
    torch.testing.assert_close(undefended, torch.log_softmax(classifier(batch[0]), dim=1))
    assert [len(run) for run in runs] == numbers(name)
    if runs:
        assert torch.equal(torch.cat(runs), each)
    joined = model.defense.join(undefended.exp(), [log_mean(run).exp() for run in runs])
    torch.testing.assert_close(joined, answer, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize(("which", "position", "part"), [("detector", 0, "mi_pl"), ("fallback", 1, "mi_ol")])
def test_a_branch_is_one_component_with_the_draws_that_it_has_in_the_whole(
    name: str, which: Any, position: int, part: str, defended: Any, batch: Any
) -> None:
    model = defended(name)
    branch = model.branch(which)
    assert branch.defense.name == part
    with torch.no_grad(), model.bind(KEY, POINTS), branch.bind(KEY, POINTS):
        run = model.parts(batch[0])[1][position]
        alone = branch.each(batch[0])
    assert torch.equal(alone[: len(run)], run)
    assert branch.classifier is model.classifier
    assert branch.executions == model.executions


@pytest.mark.parametrize("name", ["none", "gaussian_noise", "mi_ol"])
def test_every_branch_of_a_defense_of_one_component_is_the_whole(name: str, defended: Any, batch: Any) -> None:
    model = defended(name)
    for which in ("whole", "detector", "fallback"):
        branch = model.branch(which, 0.05)
        with torch.no_grad(), model.bind(KEY, POINTS), branch.bind(KEY, POINTS):
            assert torch.equal(branch(batch[0]), model(batch[0]))


def gaps(model: DefendedClassifier, x: Tensor) -> Tensor:
    defense: Any = model.defense
    with torch.no_grad(), model.bind(KEY, POINTS):
        undefended, runs = model.parts(x)
    return defense.gap(undefended.exp(), runs[0].exp().mean(0))


def test_a_smooth_decision_is_the_decision_at_a_low_temperature_and_half_of_each_at_a_high_one(
    defended: Any, batch: Any
) -> None:
    model = defended("mi_combined")
    gap = gaps(model, batch[0])
    assert gap.abs().min() > 1e-3  # no point is on the threshold
    cold, hot = model.branch("whole", 1e-5), model.branch("whole", 1e5)
    with torch.no_grad(), model.bind(KEY, POINTS), cold.bind(KEY, POINTS), hot.bind(KEY, POINTS):
        torch.testing.assert_close(cold(batch[0]).exp(), model(batch[0]).exp(), rtol=0, atol=1e-6)
        undefended, runs = model.parts(batch[0])
        half = (undefended.exp() + runs[1].exp().mean(0)) / 2
        torch.testing.assert_close(hot(batch[0]).exp(), half, rtol=0, atol=1e-5)


def test_a_smooth_decision_weighs_by_the_gap_over_the_temperature(defended: Any, batch: Any) -> None:
    model = defended("mi_combined")
    warm = model.branch("whole", 0.2)
    weight = torch.sigmoid((gaps(model, batch[0]) - COMBINED["threshold"]) / 0.2)[:, None]
    with torch.no_grad(), model.bind(KEY, POINTS), warm.bind(KEY, POINTS):
        undefended, runs = model.parts(batch[0])
        expected = weight * runs[1].exp().mean(0) + (1 - weight) * undefended.exp()
        torch.testing.assert_close(warm(batch[0]).exp(), expected, rtol=0, atol=1e-5)


def test_only_a_smooth_decision_has_a_gradient_through_the_detector() -> None:
    undefended = torch.tensor([[0.7, 0.3]])
    detector = torch.tensor([[0.4, 0.6]], requires_grad=True)
    fallback = torch.tensor([[0.1, 0.9]])
    defense = make_defense("mi_combined", **COMBINED)
    soft = defense.soft_join(undefended, [detector, fallback], 0.1)[0, 0]
    (gradient,) = torch.autograd.grad(soft, detector)
    assert gradient[0, 0] > 0  # the nearer the detector is to F, the less of the fallback's 0.1
    assert not defense.join(undefended, [detector, fallback]).requires_grad


@pytest.mark.parametrize("accept", ["undefended", "pl_average"])
def test_a_smooth_decision_keeps_what_the_defense_accepts(accept: str) -> None:
    defense = make_defense("mi_combined", **COMBINED, accept=accept)
    undefended, detector, fallback = (torch.tensor([[p, 1 - p]]) for p in (0.7, 0.9, 0.1))  # gap -0.2: accepted
    found = defense.soft_join(undefended, [detector, fallback], 1e-3)
    torch.testing.assert_close(found, undefended if accept == "undefended" else detector)


@pytest.mark.parametrize("name", ["none", "mi_ol"])
def test_a_defense_that_decides_nothing_joins_the_same_at_any_temperature(name: str) -> None:
    defense = make_defense(name, **SETTINGS[name])
    averages = [torch.tensor([[0.2, 0.8]])] * len(defense.components())
    undefended = torch.tensor([[0.6, 0.4]])
    assert torch.equal(defense.soft_join(undefended, averages, 0.1), defense.join(undefended, averages))


def test_each_component_draws_from_the_pool_of_its_name(
    defended: Any, classifier: nn.Module, pool: SamplePool, digits: Any, batch: Any
) -> None:
    dark = SamplePool(digits.train_images // 4, digits.train_labels)
    runs = {}
    for name, pools in (
        ("one", pool),
        ("same", {"mi_pl": pool, "mi_ol": pool}),
        ("own", {"mi_pl": dark, "mi_ol": pool}),
    ):
        model = defended("mi_combined", pool=pools)
        with torch.no_grad(), model.bind(KEY, POINTS):
            runs[name] = model.parts(batch[0])[1]
    assert all(torch.equal(one, same) for one, same in zip(runs["one"], runs["same"], strict=True))
    assert not torch.allclose(runs["own"][0], runs["one"][0])
    assert torch.equal(runs["own"][1], runs["one"][1])


def test_a_component_without_a_pool_of_its_name_is_refused(defended: Any, pool: SamplePool, batch: Any) -> None:
    with pytest.raises(ValueError, match="mi_ol mixes inputs with a sample pool"):
        defended("mi_combined", pool={"mi_pl": pool})(batch[0])


def test_draws_of_a_bound_call_belong_to_the_point_and_not_to_its_place_in_the_batch(defended: Any, batch: Any) -> None:
    model = defended("mi_ol")
    with torch.no_grad():
        with model.bind(KEY, POINTS):
            whole = model.copies(batch[0])
        with model.bind(KEY, list(POINTS)[5:6]):
            torch.testing.assert_close(model.copies(batch[0][5:6])[:, 0], whole[:, 5], rtol=0, atol=0)
        with model.bind(KEY.at(step=3), POINTS):
            assert not torch.equal(model.copies(batch[0]), whole)


def test_copies_are_transformed_with_the_draws_of_the_key(defended: Any, batch: Any) -> None:
    model = defended("gaussian_noise", executions=3)
    with model.bind(KEY, POINTS):
        copies = model.copies(batch[0])
    draws = Draws(KEY.at(family="gaussian_noise"), POINTS, CHUNK, 0, torch.device("cpu"))
    expected = model.defense.transform(batch[0], draws, model.predicted(batch[0]), None)
    assert torch.equal(copies, expected[:3])
