"""Training losses, each against one computed by hand from the same random numbers."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mi_ray.objectives
from mi_ray.classifiers import build_classifier
from mi_ray.objectives import OBJECTIVES, Objective

PAIRINGS = ["one_permutation", "two_permutations"]
ATTACKED = {"epsilon": 0.1, "step_size": 0.03, "steps": 3}


@pytest.fixture
def model(classifier: Any, describe: Any) -> Any:
    """A trained classifier of the test's own, in train mode, whose loss may change it."""
    made = build_classifier(describe(width=8))
    made.load_state_dict(classifier.state_dict())
    return made.train()


def _objective(name: str, **more: Any) -> Objective:
    known, asked = OBJECTIVES[name].parameters(), dict.fromkeys(OBJECTIVES[name].required(), 0.1) | ATTACKED | more
    return OBJECTIVES.make(name, {key: value for key, value in asked.items() if key in known})


def _loss(name: str, model: Any, batch: Any, seed: int = 5, **more: Any) -> Tensor:
    return _objective(name, **more).loss(model, model, *batch, np.random.default_rng(seed))


def _soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def _mixed(x: Tensor, y: Tensor, alpha: float, pairing: str, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Mixed images and soft labels, an example at a time."""
    lam, second = rng.beta(alpha, alpha, len(x)), rng.permutation(len(x))
    first = rng.permutation(len(x)) if pairing == "two_permutations" else range(len(x))
    onehot = F.one_hot(y, 10).float()
    images = [
        float(lam[i]) * x[a] + (1 - float(lam[i])) * x[b] for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    labels = [
        float(lam[i]) * onehot[a] + (1 - float(lam[i])) * onehot[b]
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    return torch.stack(images), torch.stack(labels)


def _attacked(model: nn.Module, x: Tensor, labels: Tensor, rng: np.random.Generator) -> Tensor:
    """PGD written out, against the model itself in eval mode."""
    model = copy.deepcopy(model).eval()
    epsilon, step, steps = ATTACKED["epsilon"], ATTACKED["step_size"], ATTACKED["steps"]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    found = (x + epsilon * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    for _ in range(int(steps)):
        leaf = found.clone().requires_grad_(True)
        gradient = torch.autograd.grad(F.cross_entropy(model(leaf), labels), leaf)[0]
        found = torch.max(torch.min(found + step * gradient.sign(), x + epsilon), x - epsilon).clamp(0, 1)
    return found


def test_erm_is_the_cross_entropy(model: Any, batch: Any) -> None:
    found = _loss("erm", model, batch)
    assert found.item() == pytest.approx(_soft_cross_entropy(model(batch[0]), F.one_hot(batch[1], 10)).item(), abs=1e-5)


@pytest.mark.parametrize("sigma", [0.0, 0.25])
def test_gaussian_is_the_cross_entropy_of_noisy_images_that_are_not_clipped(
    sigma: float, model: Any, batch: Any
) -> None:
    generator = torch.Generator().manual_seed(int(np.random.default_rng(5).integers(2**62)))
    noisy = batch[0] + sigma * torch.randn(batch[0].shape, generator=generator)
    expected = _soft_cross_entropy(model(noisy), F.one_hot(batch[1], 10)).item()
    assert _loss("gaussian", model, batch, sigma=sigma).item() == pytest.approx(expected, abs=1e-5)
    assert _loss("gaussian", model, batch, seed=6, sigma=0.25).item() != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("pairing", PAIRINGS)
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_mixup_is_the_soft_label_cross_entropy_of_mixed_images(
    alpha: float, pairing: str, model: Any, batch: Any
) -> None:
    images, labels = _mixed(*batch, alpha, pairing, np.random.default_rng(5))
    expected = _soft_cross_entropy(model(images), labels)
    found = _loss("mixup", model, batch, alpha=alpha, pairing=pairing)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("name", ["mixup", "manifold_mixup", "interpolated_at"])
@pytest.mark.parametrize(
    ("lam", "inside"),
    [
        (0.6, (0.6, 0.6)),
        ({"uniform": [0.4, 0.7]}, (0.4, 0.7)),
        ({"beta": [40, 10]}, (0.5, 1)),
        ({"quantiles": [0.2, 0.3, 0.8]}, (0.2, 0.8)),
    ],
)
def test_the_ratio_of_training_can_be_that_of_the_inference(name: str, lam: Any, inside: tuple[float, float]) -> None:
    objective: Any = _objective(name, lam=lam)
    assert objective.values()["lam"] == lam
    found = objective.mix(torch.zeros(4000, 1), np.random.default_rng(0)).lam
    assert inside[0] - 1e-6 <= found.min() <= found.max() <= inside[1] + 1e-6
    mean = lam if isinstance(lam, float) else {"uniform": 0.55, "beta": 0.8, "quantiles": 0.4}[next(iter(lam))]
    assert found.mean().item() == pytest.approx(mean, abs=0.01)
    assert (found.std() > 0.04) == (not isinstance(lam, float))


def test_a_fixed_ratio_mixes_images_and_labels_by_it(model: Any, batch: Any) -> None:
    x, y = batch
    second = np.random.default_rng(5).permutation(len(x))  # no number is drawn for a ratio that is fixed
    onehot = F.one_hot(y, 10).float()
    expected = _soft_cross_entropy(copy.deepcopy(model)(0.7 * x + 0.3 * x[second]), 0.7 * onehot + 0.3 * onehot[second])
    found = _loss("mixup", model, batch, lam=0.7, pairing="one_permutation")
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_ratio_that_is_left_out_is_no_part_of_the_values_and_so_of_no_key() -> None:
    assert OBJECTIVES.make("mixup").values() == {"alpha": 1.0, "pairing": "two_permutations"}
    same = OBJECTIVES.make("mixup", {"lam": {"beta": [0.3, 0.3]}}), OBJECTIVES.make("mixup", {"alpha": 0.3})
    drawn = [made.mix(torch.zeros(50, 1), np.random.default_rng(1)).lam for made in same]  # type: ignore[attr-defined]
    assert torch.equal(*drawn)


def test_the_pairings_are_two_different_ones(model: Any, batch: Any) -> None:
    one, two = (_loss("mixup", copy.deepcopy(model), batch, pairing=pairing) for pairing in PAIRINGS)
    assert one.item() != two.item()


@pytest.mark.parametrize("inner_labels", ["true", "predicted"])
def test_the_inner_attack_is_pgd_on_the_model_in_eval_mode(inner_labels: str, model: Any, batch: Any) -> None:
    x, y = batch[0], (batch[1] + 1) % 10  # labels that the model does not predict
    labels = y if inner_labels == "true" else copy.deepcopy(model).eval()(x).argmax(1)
    expected = _attacked(model, x, labels, np.random.default_rng(5))
    objective: Any = _objective("adversarial", inner_labels=inner_labels)
    found = objective.attacked(model, x, y, np.random.default_rng(5))
    assert ((found - expected).abs() < 1e-5).float().mean() > 0.99
    assert (found - x).abs().max() <= ATTACKED["epsilon"] + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1


def test_the_inner_attack_of_a_bf16_training_is_of_bf16_and_finds_as_high_a_loss(
    model: Any, batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    own = mi_ray.objectives.prepared
    monkeypatch.setattr(mi_ray.objectives, "prepared", lambda *a: made.append(own(*a)) or made[-1])
    x, y = batch
    objective: Any = _objective("adversarial")
    plain = objective.attacked(model, x, y, np.random.default_rng(5))
    with torch.autocast("cpu", torch.bfloat16):
        coarse = objective.attacked(model, x, y, np.random.default_rng(5))
    weights = [next(frozen.network.parameters()).dtype for frozen in made]
    assert weights == [torch.float32, torch.bfloat16]  # not cast anew at each pass
    assert coarse.dtype == torch.float32
    assert not torch.equal(plain, coarse)
    clean, *lost = (F.cross_entropy(copy.deepcopy(model).eval()(images), y).item() for images in (x, plain, coarse))
    assert lost[0] > clean
    assert lost[1] - clean > 0.95 * (lost[0] - clean)


def test_an_inner_attack_on_predictions_does_not_look_at_the_labels(model: Any, batch: Any) -> None:
    images: dict[str, list[Tensor]] = {"true": [], "predicted": []}
    for which, found in images.items():
        objective: Any = _objective("adversarial", inner_labels=which)
        for shift in (0, 1):
            found.append(objective.attacked(model, batch[0], (batch[1] + shift) % 10, np.random.default_rng(0)))
    assert torch.equal(*images["predicted"])
    assert not torch.equal(*images["true"])


def test_adversarial_training_is_the_mean_of_the_clean_and_the_attacked_loss(model: Any, batch: Any) -> None:
    x, y = batch
    perturbed = _attacked(model, x, y, np.random.default_rng(5))
    clean, attacked = (F.cross_entropy(copy.deepcopy(model)(images), y).item() for images in (x, perturbed))
    assert _loss("adversarial", model, batch).item() == pytest.approx((clean + attacked) / 2, rel=1e-3)
    assert attacked > clean


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_interpolated_at_mixes_each_half_by_its_own_draws_in_one_forward(pairing: str, model: Any, batch: Any) -> None:
    (x, y), rng = batch, np.random.default_rng(5)
    perturbed = _attacked(model, x, y, rng)
    halves = [_mixed(images, y, 1.0, pairing, rng) for images in (perturbed, x)]
    logits = copy.deepcopy(model)(torch.cat([images for images, _ in halves]))
    losses = [_soft_cross_entropy(part, labels) for part, (_, labels) in zip(logits.chunk(2), halves, strict=True)]
    found = _loss("interpolated_at", model, batch, pairing=pairing)
    assert found.item() == pytest.approx(sum(loss.item() for loss in losses) / 2, rel=1e-3)


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_loss_repeats_with_its_rng_and_trains(name: str, model: Any, batch: Any) -> None:
    again = _loss(name, copy.deepcopy(model), batch)
    first = _loss(name, model, batch)
    assert first.item() == again.item()
    first.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "erm"])
def test_another_rng_gives_another_loss(name: str, model: Any, batch: Any) -> None:
    one, two = (_loss(name, copy.deepcopy(model), batch, seed=seed) for seed in (1, 2))
    assert one.item() != two.item()


FORWARDS = {"erm": 1, "mixup": 1, "manifold_mixup": 1, "adversarial": 2, "interpolated_at": 1, "trades": 2}


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_a_loss_leaves_train_mode_parameters_and_gradients_as_they_were(name: str, model: Any, batch: Any) -> None:
    before = {key: value.clone() for key, value in model.named_parameters()}
    _loss(name, model, batch)
    assert all(module.training for module in model.modules())
    for key, value in model.named_parameters():
        assert torch.equal(value, before[key])
        assert value.requires_grad
        assert value.grad is None


@pytest.mark.parametrize("name", list(FORWARDS))
def test_batch_statistics_see_the_training_forwards_and_not_the_inner_attack(name: str, model: Any, batch: Any) -> None:
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    seen = [int(norm.num_batches_tracked) for norm in norms]
    _loss(name, model, batch)
    assert [int(norm.num_batches_tracked) - n for norm, n in zip(norms, seen, strict=True)] == [FORWARDS[name]] * 3


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("mixup", {"alpha": 0}, r"mixup.alpha must be .*; got 0"),
        ("mixup", {"lam": 1.5}, r"mixup.lam must be a number in \[0, 1\], or \{beta: .*; got 1.5"),
        (
            "mixup",
            {"lam": 0.5, "alpha": 0.3},
            r"mixup takes λ from alpha or from lam, not from both; got alpha 0.3 and lam",
        ),
        ("mixup", {"pairing": "three"}, r"mixup.pairing must be one of two_permutations, one_permutation; got 'three'"),
        ("adversarial", {"epsilon": 8}, r"adversarial.epsilon must be a number in \[0, 1\]; got 8"),
        ("interpolated_at", {"steps": 0}, r"interpolated_at.steps must be .*; got 0"),
        ("nonsense", {}, r"unknown objective 'nonsense'; known: erm, mixup"),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_rule_and_the_value(name: str, values: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OBJECTIVES.make(name, values)


def test_trades_adds_the_divergence_of_the_worst_point_of_the_ball(model: Any, batch: Any) -> None:
    x, y = batch
    clean_only = _loss("trades", copy.deepcopy(model), batch, beta=0.0)
    assert torch.allclose(clean_only, F.cross_entropy(copy.deepcopy(model)(x), y), atol=1e-6)
    losses = [_loss("trades", copy.deepcopy(model), batch, beta=beta).item() for beta in (0.0, 1.0, 6.0)]
    assert losses[0] < losses[1] < losses[2]
    assert losses[2] - losses[0] == pytest.approx(6 * (losses[1] - losses[0]), rel=1e-4)
    weaker = _loss("trades", copy.deepcopy(model), batch, beta=1.0, epsilon=0.01, step_size=0.003).item()
    assert losses[0] < weaker < losses[1]


def test_manifold_mixup_at_the_input_alone_is_mixup(model: Any, batch: Any) -> None:
    at_input = _loss("manifold_mixup", copy.deepcopy(model), batch, layers=0)
    assert torch.equal(at_input, _loss("mixup", copy.deepcopy(model), batch))


def test_manifold_mixup_mixes_the_chosen_layers_output_and_leaves_no_hook(model: Any, batch: Any) -> None:
    x, y = batch
    chosen = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        _, labels = _mixed(x, y, 1.0, "two_permutations", rng)
        layer = int(rng.integers(3))
        chosen.add(layer)
        made = copy.deepcopy(model)
        hidden = (x - made.mean) / made.std
        for depth, part in enumerate(made.network):
            if depth == layer:
                hidden = _mixed(hidden, y, 1.0, "two_permutations", np.random.default_rng(seed))[0]
            hidden = part(hidden)
        found = _loss("manifold_mixup", model, batch, seed=seed, layers=2)
        assert torch.allclose(found, _soft_cross_entropy(hidden, labels), atol=1e-4)
    assert chosen == {0, 1, 2}
    assert not any(module._forward_hooks for module in model.modules())


def test_manifold_mixup_needs_as_many_layers_as_it_is_asked_for(model: Any, batch: Any) -> None:
    with pytest.raises(ValueError, match=r"layers must be below the network's \d+ layers; got 99"):
        _loss("manifold_mixup", model, batch, layers=99)
