"""The fast form of a person's own network: what torch can trace is folded, and what it would change stays as it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.plans import FACTS, changed, keys, planned, planner
from helpers.studies import tiny
from helpers.sweeps import classifier
from torch import Tensor, nn

from mi_ray.classifiers import Classifier, build_classifier, prepared, weights_bytes, why_not_folded, wrap_classifier
from mi_ray.folding import Affine, CannotTraceError

CPU, SIDE = torch.device("cpu"), (32, 32)


class Net(nn.Module):
    """Two convolutions with batch norms behind them, a batch norm that stands before one, and a view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.before, self.body, self.after = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8 * 16 * 16, 10)

    def features(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.stem(x)))
        return maps + torch.relu(self.before(maps))

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.relu(self.after(self.body(self.features(x))))
        return self.linear(maps.view(maps.size(0), -1))


class Branching(nn.Module):
    """A part that looks at the values that go through it, which no trace can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if float(x.detach().mean()) > 0 else x


class WithBranching(Net):
    """A network with such a part."""

    def __init__(self) -> None:
        super().__init__()
        self.branching = Branching()

    def features(self, x: Tensor) -> Tensor:
        return self.branching(super().features(x))


class Deciding(Net):
    """A network that itself looks at the values."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.detach().mean()) > -100 else -x)


class Noisy(Net):
    """A network that draws when it is asked; a trace would draw once and for all."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand(1))


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(8 * x) / 8

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Rounding(Net):
    """A network with a gradient of its own, which a trace drops: its fast form would have none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Rounded.apply(x))


class Twice(Net):
    """A network that calls one convolution from two places, so that one batch norm cannot go into it."""

    def features(self, x: Tensor) -> Tensor:
        return super().features(x) + self.stem(x)


def lively(kind: type[nn.Module]) -> Classifier:
    """A wrapped network whose batch norms do something."""
    torch.manual_seed(1)
    network = kind().eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return wrap_classifier(network, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def norms(network: nn.Module, kind: type[nn.Module] = nn.BatchNorm2d) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


@pytest.mark.parametrize(("kind", "left", "affine"), [(Net, 0, 1), (WithBranching, 0, 1), (Twice, 0, 2)])
def test_what_torch_can_trace_has_no_batch_norm_left_and_answers_as_before(kind: Any, left: int, affine: int) -> None:
    plain, x = lively(kind), torch.rand(6, 3, 32, 32)
    before = weights_bytes(plain)
    fast = prepared(plain, CPU, "fp32", folded=True)
    assert (fast.folded, norms(fast), norms(fast, Affine)) == (True, left, affine)
    leaves = [x.clone().requires_grad_(True) for _ in range(2)]
    answers = [model(leaf) for model, leaf in zip((plain, fast), leaves, strict=True)]
    gradients = [torch.autograd.grad(a[:, 0].sum(), leaf)[0] for a, leaf in zip(answers, leaves, strict=True)]
    torch.testing.assert_close(answers[1], answers[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-4)
    assert weights_bytes(plain) == before


def test_in_bf16_the_weights_of_a_traced_network_are_bf16_and_its_logits_float32() -> None:
    plain, x = lively(Net).requires_grad_(False), torch.rand(6, 3, 32, 32)
    fast = prepared(plain, CPU, "bf16")
    assert fast.autocast is None
    assert {each.dtype for each in fast.network.parameters()} == {torch.bfloat16}
    assert fast(x).dtype == torch.float32
    torch.testing.assert_close(fast(x), plain(x), rtol=0, atol=0.05 * float(plain(x).abs().max()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Net, None),
        (WithBranching, None),
        (Deciding, "torch.fx cannot trace it"),
        (Noisy, "answers differently"),
        (Rounding, "its gradient moves by"),
    ],
)
def test_a_network_stays_as_it_is_where_a_trace_would_change_it_and_the_reason_is_told(
    kind: Any, why: str | None, precision: Any
) -> None:
    found = why_not_folded(lively(kind), SIDE, precision)
    assert (found is None) if why is None else (why in str(found))


def test_one_that_is_to_be_folded_and_cannot_be_traced_is_refused_and_one_that_is_not_to_be_stays() -> None:
    with pytest.raises(CannotTraceError, match="cannot trace"):
        prepared(lively(Deciding), CPU, "fp32", folded=True)
    kept = [prepared(lively(Deciding), CPU, "bf16"), prepared(lively(Net), CPU, "bf16", folded=False)]
    assert [(fast.folded, fast.autocast) for fast in kept] == [(False, torch.bfloat16)] * 2
    assert norms(kept[1]) == 3


OWN: Any = {"name": "mine", "factory": f"{__name__}:Net", "weights": "net.safetensors"}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.safetensors").write_bytes(weights_bytes(lively(Net)))


def test_keys_of_a_folded_network_say_so_and_keys_of_all_others_are_what_they_were() -> None:
    before = keys(planned(classifiers=[OWN]))
    (own,) = planner(classifiers=[OWN]).classifiers
    after = {
        form: keys(planned(facts=replace(FACTS, folded={own.key: form}), classifiers=[OWN]))
        for form in ((), ("fp32",), ("bf16",))
    }
    assert after[()] == after[("bf16",)] == before  # In fp32 the form of another precision decides nothing.
    assert changed(before, after[("fp32",)]) == set(before) - {"classifiers"}
    ours = keys(planned(classifiers=classifier()))
    assert keys(planned(facts=replace(FACTS, folded={own.key: ("fp32",)}), classifiers=classifier())) == ours


@pytest.mark.parametrize(("kind", "folded"), [("Net", ["fp32", "bf16"]), ("Deciding", [])])
def test_a_study_finds_out_once_what_its_workers_then_do(
    tmp_path: Path, weights: None, kind: str, folded: list[str]
) -> None:
    mine = {**OWN, "factory": f"{__name__}:{kind}"}
    changes: dict[str, Any] = {"precision": "bf16", "classifiers": [mine], "defenses": ["none"]}
    one = tiny(tmp_path / "store", weights=Path("net.safetensors").read_bytes(), **changes)
    (work,) = one.study.planner.classifiers
    assert build_classifier(work.description).classes == 10
    assert one.bench.data.folded == {work.key: folded}
    assert [one.bench.classifier(work.key, name).folded for name in ("fp32", "bf16")] == [bool(folded)] * 2
    told = one.study.kept_as_they_are()
    assert told == [] if folded else "mine: its network stays as it is, not folded: torch.fx cannot trace it" in told[0]
