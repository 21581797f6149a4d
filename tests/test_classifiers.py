"""Classifiers: the paper's architecture, what is stored and read back, and the fast form for evaluation."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import mi_ray
from mi_ray.classifiers import (
    ARCHITECTURES,
    Architecture,
    Classifier,
    build_classifier,
    classifier_from_bytes,
    load_classifier,
    of_our_architecture,
    prepared,
    set_weights,
    weights_bytes,
    weights_digest,
    wrap_classifier,
)
from mi_ray.config import ClassifierEntry
from mi_ray.data import to_unit
from mi_ray.named import NETWORKS
from mi_ray.named.base import LoadedNetwork
from mi_ray.networks import fit_weights, read_weights, unwrapped
from mi_ray.study.given import given_classifier

SMALL = {"resnet_small": {"width": 4}, "cnn_small": {"width": 4}}


@pytest.fixture
def folder(classifier: Any, tmp_path: Path) -> Path:
    """A classifier's folder as training leaves it in a store."""
    pytest.importorskip("ray")
    from mi_ray.cluster.train_loop import write_classifier
    from mi_ray.store.blocks import Store

    write_classifier(Store(tmp_path / "store", create=True), "some-key", classifier, {}, [])
    return tmp_path / "store" / "classifiers" / "some-key"


@pytest.mark.parametrize(("classes", "parameters"), [(10, 4_752_586), (100, 4_775_716)])
def test_the_papers_resnet_has_exactly_its_parameters(classes: int, parameters: int) -> None:
    network = ARCHITECTURES.make("mi_resnet50").build(classes)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_papers_resnet_has_its_maps_and_multiply_adds() -> None:
    network, shapes, adds = ARCHITECTURES.make("mi_resnet50").build(10).eval(), [], []

    def count(module: Any, inputs: Any, output: Tensor) -> None:
        taps = module.weight[0].numel()
        adds.append(output[0].numel() * taps)

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    for layer in network[:-3]:
        layer.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert shapes == [(64, 32, 32)] * 6 + [(128, 16, 16)] * 5 + [(256, 8, 8)] * 5
    assert round(sum(adds) / 1e6, 1) == 709.6


def test_convolutions_are_kaiming_normal_by_fan_out() -> None:
    network = ARCHITECTURES.make("mi_resnet50").build(10)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight.shape[0] * module.weight.shape[2] * module.weight.shape[3]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture_turns_images_into_logits_and_depends_on_the_seed(name: str) -> None:
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(ARCHITECTURES.make(name, SMALL.get(name)).build(7).eval())
    with torch.no_grad():
        first, again, other = (network(torch.rand(2, 3, 32, 32).fill_(0.3)) for network in networks)
    assert first.shape == (2, 7)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_normalisation_is_inside(classifier: Any, batch: Any) -> None:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.25, 0.3, 0.2]))
    torch.testing.assert_close(classifier(batch[0]), classifier.network((batch[0] - mean) / std))


# The store


def test_a_stored_classifier_is_read_back_bit_for_bit(folder: Path, classifier: Any, batch: Any) -> None:
    loaded = mi_ray.load_classifier(folder)
    assert torch.equal(loaded(batch[0]), classifier(batch[0]))
    assert not loaded.training
    assert loaded.description == classifier.description
    assert weights_bytes(loaded) == weights_bytes(classifier)


def test_the_description_names_the_digest_of_the_weights(folder: Path) -> None:
    from mi_ray.cluster.train_loop import finished
    from mi_ray.store.blocks import Store

    store, weights = Store(folder.parent.parent), folder / "model.safetensors"
    written = json.loads((folder / "classifier.json").read_text())
    assert written["weights_sha256"] == weights_digest(weights.read_bytes())
    assert finished(store, "some-key")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert not finished(store, "some-key")


@pytest.mark.parametrize("lost", ["classifier.json", "model.safetensors"])
def test_a_folder_without_a_classifier_is_refused(folder: Path, lost: str) -> None:
    (folder / lost).unlink()
    with pytest.raises(ValueError, match=r"must hold classifier.json and model.safetensors"):
        load_classifier(folder)


@pytest.mark.parametrize("length", [0, 4, 100])
def test_truncated_weights_are_refused(folder: Path, length: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"model.safetensors must be a safetensors file"):
        load_classifier(folder)


@pytest.mark.parametrize(
    "changed",
    [{"width": 4}, {"architecture": "resnet_small", "width": 8}, {"classes": 7, "width": 8}],
    ids=["another width", "another network", "another number of classes"],
)
def test_weights_of_another_architecture_are_refused(changed: Any, classifier: Any, describe: Any) -> None:
    description = describe(**changed)
    said = f"theirs must hold the weights of {description['architecture']} with {description['classes']} classes, .* differ: "
    with pytest.raises(ValueError, match=said):
        classifier_from_bytes(description, weights_bytes(classifier), "theirs")


@pytest.mark.parametrize("spoil", ["absent", "extra"])
def test_absent_and_extra_tensors_are_refused(spoil: str, classifier: Any, describe: Any) -> None:
    state = dict(classifier.network.state_dict())
    if spoil == "absent":
        del state["0.0.weight"]
    else:
        state["more"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"net.pt must hold .*, \d+ tensors; 1 differ: \S+ \("):
        set_weights(build_classifier(describe(width=8)), state, "net.pt")


# Weights of a user's own


@pytest.mark.parametrize("how", ["safetensors", "torch", "state_dict", "model"])
def test_a_users_weights_are_read_from_safetensors_and_torch_files(how: str, classifier: Any, tmp_path: Path) -> None:
    state = {key: value.clone() for key, value in classifier.network.state_dict().items()}
    path = tmp_path / ("net.safetensors" if how == "safetensors" else "net.pt")
    if how == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if how == "torch" else {how: state, "epoch": 3, "optimizer": {"state": {}}}, path)
    found = read_weights(path)
    assert set(found) == set(state)
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize(
    ("own", "before", "taken"),
    [
        ("", "", ""),
        ("", "module.", "module."),
        ("", "module._orig_mod.", "module._orig_mod."),
        ("module.", "module.", ""),  # a network whose only part is called so
        ("module.", "module.module.", "module."),
    ],
)
def test_a_wrappers_names_are_taken_off_and_a_networks_own_are_not(own: str, before: str, taken: str) -> None:
    linear = nn.Linear(2, 2)
    network = nn.ModuleDict({own.removesuffix("."): linear}) if own else linear
    state = {before + name: value + 1 for name, value in linear.state_dict().items()}
    assert unwrapped(state, network.state_dict().keys())[1] == taken
    fit_weights(network, state, "must fit")
    assert torch.equal(linear.bias, state[f"{before}bias"])


def test_weights_of_another_kind_of_numbers_are_refused_and_of_another_precision_taken(tmp_path: Path) -> None:
    network = nn.Linear(2, 2)
    held = nn.BatchNorm2d(2)
    held.register_buffer("mask", torch.tensor([True, False]))
    taken = {
        **{name: value.half() for name, value in held.state_dict().items()},
        "num_batches_tracked": torch.tensor(1024.5),
    }
    fit_weights(held, taken, "must fit")  # as `.half()` over a whole state dict, or a mean over several, leaves it
    assert held.mask.dtype == torch.bool
    with pytest.raises(ValueError, match=r"mask \(float32, not bool\)"):
        fit_weights(held, {**taken, "mask": torch.tensor([0.5, 0.0])}, "must fit")
    for kind, told in ((torch.int8, "int8, not float32"), (torch.complex64, "complex64, not float32")):
        state = {"weight": torch.ones(2, 2, dtype=kind), "bias": torch.ones(2)}
        with pytest.raises(ValueError, match=rf"^must fit, 2 tensors; 1 differ: weight \({told}\)"):
            fit_weights(network, state, "must fit")
    save_file(
        {"weight": torch.ones(2, 2).to(torch.float8_e4m3fn), "bias": torch.ones(2).half()}, tmp_path / "f8.safetensors"
    )
    fit_weights(network, read_weights(tmp_path / "f8.safetensors"), "must fit")
    assert network.weight.dtype == torch.float32
    save_file(
        {"lowest": torch.full((2,), torch.finfo(torch.float64).min, dtype=torch.float64)}, tmp_path / "f64.safetensors"
    )
    assert read_weights(tmp_path / "f64.safetensors")["lowest"].isfinite().all()
    assert torch.equal(network.weight, torch.ones(2, 2))


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_a_network_of_half_precision_is_computed_in_float32(
    precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that is sure of itself has no gradient left in half precision, so that no attack would move anything."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).to(precision)
    x = torch.rand(3, 3, 32, 32)
    f = wrap_classifier(network)
    assert (f.classes, f(x).dtype, {p.dtype for p in f.network.parameters()}) == (4, torch.float32, {torch.float32})
    monkeypatch.setattr("mi_ray.classifiers.network_of", lambda factory, arguments: network.to(precision))
    about = {"factory": "mine:net", "arguments": {}, "mean": [0.0] * 3, "std": [1.0] * 3, "classes": 4}
    assert torch.equal(build_classifier(about)(x), f(x))


def test_a_checkpoint_of_several_networks_is_refused_with_their_names(classifier: Any, tmp_path: Path) -> None:
    state = classifier.network.state_dict()
    torch.save({"model": state, "ema": state, "epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"net\.pt holds state dicts under model, ema: save one of them alone"):
        read_weights(tmp_path / "net.pt")


class _Payload:
    """What a hostile file holds: unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("how", ["torch.save", "legacy torch.save", "plain pickle"])
def test_a_torch_file_with_a_pickle_payload_is_refused_and_runs_no_code(how: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "net.pt", tmp_path / "was_run"
    content = {"weight": torch.zeros(2), "extra": _Payload(mark)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(_Payload(mark)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "torch.save")
    with pytest.raises(ValueError, match=r"net.pt"):
        read_weights(path)
    assert not mark.exists()


def _torch_bytes(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def _empty_zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("nothing", "")
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("net.pt", b""),
        ("net.pt", b"no weights at all"),
        ("net.safetensors", b"no weights at all"),
        ("net.pt", _torch_bytes([torch.zeros(1)])),
        ("net.pt", _torch_bytes({"epoch": 3})),
        ("net.pt", _empty_zip()),
    ],
    ids=["empty", "text", "text as safetensors", "a list", "no tensors", "another zip"],
)
def test_files_that_hold_no_weights_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_weights(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights must be .*absent.pt: No such file"):
        read_weights(tmp_path / "absent.pt")


def test_a_users_own_network_is_wrapped_with_its_normalisation(batch: Any) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 7)).train()
    wrapped = wrap_classifier(network, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    assert (wrapped.classes, wrapped.training, network.training) == (7, False, False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
    torch.testing.assert_close(wrapped(batch[0]), network((batch[0] - mean) / std))
    assert wrap_classifier(network, classes=7)(batch[0]).shape == (8, 7)


@pytest.mark.parametrize(("mean", "std"), [((0, 0, 0), (1, 1)), ((0, 0, 0), (1, 1, 0)), ((0, 0, 0), (1, -1, 1))])
def test_a_normalisation_that_does_not_fit_is_refused(mean: Any, std: Any) -> None:
    with pytest.raises(ValueError, match="mean and std need one entry a channel, std > 0"):
        wrap_classifier(nn.Flatten(), mean, std)


def test_a_users_factory_is_built_from_its_description(tmp_path: Path, monkeypatch: Any, describe: Any) -> None:
    (tmp_path / "own_nets_for_test.py").write_text(
        "from torch import nn\n\ndef build(size):\n    return nn.Sequential(nn.Flatten(), nn.Linear(size, 4))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    description = describe(classes=4) | {
        "factory": "own_nets_for_test:build",
        "architecture": None,
        "arguments": {"size": 12},
    }
    made = build_classifier(description)
    again = classifier_from_bytes(description, weights_bytes(made))
    x = torch.rand(2, 3, 2, 2)
    assert torch.equal(made.eval()(x), again(x))


@pytest.mark.parametrize("factory", ["no_such_module_here:build", "torch.nn:no_such_class", "torch.nn"])
def test_a_factory_that_cannot_be_imported_is_refused(factory: str, describe: Any) -> None:
    with pytest.raises(ValueError, match=f"package.module:function; got '{factory}'"):
        build_classifier(describe() | {"factory": factory})


# The fast form


def _lively(name: str, describe: Any) -> Any:
    """A random classifier whose batch norms have statistics and scales of their own."""
    torch.manual_seed(3)
    made = build_classifier(describe(name, **SMALL.get(name, {}))).eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return made


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_fast_form_equals_the_plain_classifier_in_fp32(name: str, describe: Any, batch: Any) -> None:
    plain = _lively(name, describe)
    before = weights_bytes(plain)
    fast = prepared(plain, torch.device("cpu"), "fp32")
    with torch.no_grad():
        logits, expected = fast(batch[0][:2]), plain(batch[0][:2])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max().clamp(min=1)))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in plain.modules())
    assert weights_bytes(plain) == before


def test_the_fast_form_of_a_trained_classifier_agrees_within_1e_4(classifier: Any, batch: Any) -> None:
    fast = prepared(classifier, torch.device("cpu"), "fp32")
    torch.testing.assert_close(fast(batch[0]), classifier(batch[0]), rtol=0, atol=1e-4)
    assert fast(batch[0]).dtype == torch.float32


def test_the_fast_form_is_frozen_but_lets_the_gradient_through(classifier: Any, batch: Any) -> None:
    fast = prepared(classifier, torch.device("cpu"), "fp32")
    assert not fast.training
    assert not any(p.requires_grad for p in fast.parameters())
    gradients = []
    for model in (fast, classifier):
        leaf = batch[0].clone().requires_grad_(True)
        gradients.append(torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-4 * float(gradients[1].abs().max()))


def test_bf16_agrees_in_most_predictions_and_returns_fp32_logits(classifier: Any, digits: Any) -> None:
    x = to_unit(digits.test_images[:200])
    fast = prepared(classifier, torch.device("cpu"), "bf16")
    with torch.no_grad():
        logits, expected = fast(x), classifier(x)
    assert logits.dtype == torch.float32
    assert {p.dtype for p in fast.network.parameters()} == {torch.bfloat16}
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() > 0.95
    assert not torch.equal(logits, expected)


def test_the_test_classifier_is_a_classifier_worth_attacking(classifier: Any, digits: Any) -> None:
    with torch.no_grad():
        predicted = classifier(to_unit(digits.test_images)).argmax(1).numpy()
    assert 0.7 < np.mean(predicted == digits.test_labels) < 1


class _Flat(torch.nn.Module):
    """A network that is only right for contiguous maps, as many are."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4))
        self.linear = torch.nn.Linear(4 * 32 * 32, 10)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.convolution(x)
        return self.linear(maps.view(maps.size(0), -1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_of_ones_own_that_needs_contiguous_maps_is_prepared_too(precision: Any) -> None:
    classifier = wrap_classifier(_Flat())
    ready, x = prepared(classifier, torch.device("cpu"), precision), torch.rand(8, 3, 32, 32)
    assert ready(x).dtype == torch.float32
    assert torch.allclose(ready(x), classifier(x), atol=1e-6 if precision == "fp32" else 0.05)


@pytest.mark.parametrize(("height", "width", "averaged"), [(24, 48, False), (48, 24, False), (40, 48, True)])
def test_images_are_averaged_where_both_of_their_sides_shrink(height: int, width: int, averaged: bool) -> None:
    seen: list[Tensor] = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    taking = Classifier(network, (0.0,) * 3, (1.0,) * 3, 10, {"input_size": 32}).eval()
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    taking(x)
    expected = nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=averaged)
    assert torch.allclose(seen[0], expected, atol=1e-6)
    other = nn.functional.interpolate(x, (32, 32), mode="bilinear", antialias=not averaged)
    assert not torch.allclose(expected, other, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_images_of_another_side_are_answered_in_any_precision_as_in_single_precision(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    taking = Classifier(network, (0.0,) * 3, (1.0,) * 3, 10, {"input_size": 32}).eval()
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(taking(x), taking(x.float()))


class Twice(nn.Module):
    """A convolution whose answer is used before its batch norm too, so that the two cannot be one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images [B, 3, H, W]."""
        first = self.stem[0](x)
        logits: Tensor = self.head(torch.cat([first.mean((2, 3)), self.stem[1](first).amax((2, 3))], 1))
        return logits


@pytest.mark.parametrize("folded", [None, True])
def test_the_network_of_a_plugins_architecture_is_computed_as_it_is(
    folded: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Branched(Architecture):
        name: ClassVar[str] = "branched"

        def build(self, classes: int) -> nn.Module:
            """The network."""
            return Twice()

    monkeypatch.setitem(ARCHITECTURES._classes, "branched", Branched)
    torch.manual_seed(3)
    plain = wrap_classifier(Twice(), (0.5,) * 3, (0.25,) * 3).eval()
    plain.description = {"architecture": "branched", "arguments": {}}
    norm = plain.network.stem[1]
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.5, 2)
    x = torch.rand(8, 3, 32, 32)
    fast = prepared(plain, torch.device("cpu"), "fp32", folded=folded)
    assert not fast.folded
    assert torch.equal(fast(x), plain(x))
    assert not of_our_architecture(plain.description)


def test_a_network_by_name_whose_weights_are_of_half_precision_is_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).half()
    source = SimpleNamespace(name="hub", load=lambda *given: LoadedNetwork(network, {}, None, None, None))
    monkeypatch.setattr(type(NETWORKS), "make", lambda registry, name, values=None: source)
    entry = ClassifierEntry.model_validate({"name": "f", "timm": "resnet18"})
    assert {each.dtype for each in given_classifier(entry, 4, 0).network.parameters()} == {torch.float32}
