"""Networks by name: real libraries with random weights that lie in files, in a hub's cache or in a folder."""

import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.sweeps import document, sweep
from safetensors.torch import save_file
from torch import Tensor, nn

from mi_ray.classifiers import classifier_from_bytes, prepared, weights_bytes, wrap_classifier
from mi_ray.config import NETWORKS as NAMES
from mi_ray.config import ClassifierEntry, Sweep
from mi_ray.data import Dataset
from mi_ray.named import NETWORKS, RobustBench
from mi_ray.study.batches import activation_bytes
from mi_ray.study.duration import rates
from mi_ray.study.given import given_classifier, refuse_other
from mi_ray.study.prepare import prepare

IMAGES = torch.from_numpy(np.random.default_rng(0).random((3, 3, 32, 32), np.float32))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub is asked, and the caches of this machine are not looked at."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True, raising=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of the hub."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def entry(**said: Any) -> ClassifierEntry:
    return ClassifierEntry.model_validate({"name": "mine", **said})


def cached(hub: Path, repository: str, commit: str = "0" * 40) -> Path:
    """The folder of a repository in the hub's cache, as a download leaves it."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


def rebuilt(found: Any) -> Any:
    """The classifier as a worker makes it of what a store keeps: JSON and safetensors."""
    return classifier_from_bytes(json.loads(json.dumps(found.description)), weights_bytes(found))


def normalised(images: Tensor, mean: Any, std: Any) -> Tensor:
    return (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def same_as(found: Any, network: nn.Module, images: Tensor = IMAGES) -> None:
    """Hold a classifier, and the one that a worker makes of it, against a network on normalised images."""
    with torch.no_grad():
        wanted = network.eval()(normalised(images, found.description["mean"], found.description["std"]))
        torch.testing.assert_close(found(images), wanted)
        torch.testing.assert_close(rebuilt(found)(images), wanted)
    x = images.clone().requires_grad_()
    prepared(found, torch.device("cpu"), "fp32")(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_the_names_in_a_sweep_file_are_those_that_are_registered() -> None:
    assert set(NAMES) == set(NETWORKS)


def _needs(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")


# timm


def _timm() -> Any:
    return pytest.importorskip("timm")


def test_timm_takes_weights_of_yours_with_its_own_normalisation(tmp_path: Path) -> None:
    timm = _timm()
    torch.manual_seed(3)
    network = timm.create_model("resnet10t", num_classes=7)
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    found = given_classifier(entry(timm="resnet10t", weights=str(tmp_path / "mine.safetensors")), 7, 0)
    assert found.description["mean"] == [0.485, 0.456, 0.406]
    assert "input_size" not in found.description  # a convolutional network of the dataset's own images
    same_as(found, network)


def test_a_file_overrides_what_timm_says_of_normalisation_and_size(tmp_path: Path) -> None:
    timm = _timm()
    network = timm.create_model("resnet10t", num_classes=7)
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    said = entry(timm="resnet10t", weights=str(tmp_path / "mine.safetensors"), mean=[0, 0, 0], input_size=64)
    found = given_classifier(said, 7, 0)
    assert (found.description["mean"], found.description["std"]) == ([0, 0, 0], [0.229, 0.224, 0.225])
    larger = nn.functional.interpolate(IMAGES, (64, 64), mode="bilinear", align_corners=False)
    with torch.no_grad():
        wanted = network.eval()(normalised(larger, [0, 0, 0], [0.229, 0.224, 0.225]))
        torch.testing.assert_close(found(IMAGES), wanted)


def test_a_transformer_of_timm_takes_the_size_that_it_is_built_for(tmp_path: Path) -> None:
    timm = _timm()
    network = timm.create_model("test_vit", num_classes=7, img_size=64)
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    said = {"timm": "test_vit", "arguments": {"img_size": 64}, "weights": str(tmp_path / "mine.safetensors")}
    found = given_classifier(entry(**said), 7, 0)
    assert found.description["input_size"] == 64
    same_as(found, network, torch.rand(2, 3, 64, 64))
    assert found(IMAGES).shape == (3, 7)


@pytest.mark.parametrize(("written", "side"), [([64, 64], 64), ([64, 32], None)])
def test_a_size_of_timm_may_be_a_pair_of_a_square(written: list[int], side: int | None, tmp_path: Path) -> None:
    timm = _timm()
    network = timm.create_model("test_vit", num_classes=7, img_size=written)
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    said = {"timm": "test_vit", "arguments": {"img_size": written}, "weights": str(tmp_path / "mine.safetensors")}
    if side is None:
        with pytest.raises(ValueError, match=r"img_size must be of a square; got \[64, 32\]"):
            given_classifier(entry(**said), 7, 0)
    else:
        assert given_classifier(entry(**said), 7, 0).description["input_size"] == side


def test_timms_pretrained_weights_come_out_of_the_hubs_cache(hub: Path) -> None:
    timm = _timm()
    torch.manual_seed(5)
    network = timm.create_model("test_resnet.r160_in1k", pretrained=False)
    save_file(network.state_dict(), cached(hub, "timm/test_resnet.r160_in1k") / "model.safetensors")
    found = given_classifier(entry(timm="test_resnet.r160_in1k"), 1000, 0)
    assert found.description["input_size"] == 160
    same_as(found, network, torch.rand(2, 3, 160, 160))


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            {"timm": "resnet10t"},
            r"the weights of timm's resnet10t must be loadable: .* Where there is no network, name a",
        ),
        ({"timm": "resnet10"}, r"the weights of timm's resnet10 must be loadable: Unknown model"),
        (
            {"timm": "hf_hub:a/b"},
            r"timm.model must be a name of timm.list_models\(\); got 'hf_hub:a/b': see `huggingface`",
        ),
        (
            {"torchvision": "resnet10"},
            r"torchvision's resnet10 must be loadable: Unknown model resnet10. .*list_models",
        ),
        (
            {"torchvision": {"model": "resnet18", "pretrained": "V9"}},
            r"pretrained must be of the weights of torchvision's resnet18, IMAGENET1K_V1, DEFAULT; got 'V9'",
        ),
        (
            {"huggingface": "org/absent"},
            r"huggingface's org/absent must be loadable: .* in the hub's cache \(\$HF_HOME\)",
        ),
        ({"huggingface": {"model": "a", "size": 1}}, r"unknown parameter of huggingface 'size'"),
        (
            {"robustbench": "Nobody2020"},
            r"robustbench.model must be on the leaderboard cifar10, Linf; got 'Nobody2020'",
        ),
        ({"torchscript": "absent.pt"}, r"torchscript's network must be in the file /.*absent.pt; there is none"),
        ({"exported": "absent.pt2"}, r"exported's network must be in the file /.*absent.pt2; there is none"),
    ],
)
def test_what_cannot_be_had_is_one_line_with_a_remedy(hub: Path, said: Any, line: str) -> None:
    for needed in ("timm", "robustbench"):
        if needed in said:
            _needs(needed)
    with pytest.raises(ValueError, match=f"^classifier 'mine': {line}") as error:
        given_classifier(entry(**said), 10, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("module", "said", "install"),
    [
        ("timm", {"timm": "resnet18"}, r"pip install 'mi-ray\[models\]'"),
        ("huggingface_hub", {"huggingface": "org/name"}, r"pip install 'mi-ray\[models\]'"),
        ("robustbench.model_zoo.models", {"robustbench": "Carmon2019Unlabeled"}, "pip install --no-deps robustbench"),
    ],
)
def test_an_absent_package_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, said: Any, install: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"^classifier 'mine': {module} must be installed: {install}"):
        given_classifier(entry(**said), 10, 0)


# torchvision


def test_torchvision_takes_weights_of_yours(tmp_path: Path) -> None:
    from torchvision.models import get_model

    network = get_model("squeezenet1_1", weights=None, num_classes=7)
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    found = given_classifier(entry(torchvision="squeezenet1_1", weights=str(tmp_path / "mine.safetensors")), 7, 0)
    assert found.description["mean"] == [0.485, 0.456, 0.406]
    same_as(found, network)


@pytest.mark.long  # Its smallest transformer has 86 million weights.
def test_a_transformer_of_torchvision_with_weights_of_yours_has_the_size_that_it_is_built_for(tmp_path: Path) -> None:
    from torchvision.models import get_model

    network = get_model("vit_b_32", weights=None, num_classes=7, image_size=64)
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    said = {"torchvision": "vit_b_32", "arguments": {"image_size": 64}, "weights": str(tmp_path / "mine.safetensors")}
    assert given_classifier(entry(**said), 7, 0).description["input_size"] == 64


def test_torchvisions_published_weights_come_out_of_torchs_cache(tmp_path: Path) -> None:
    from torchvision.models import SqueezeNet1_1_Weights, get_model

    torch.manual_seed(4)
    network = get_model("squeezenet1_1", weights=None)
    place = tmp_path / "torch" / "hub" / "checkpoints" / SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[1]
    place.parent.mkdir(parents=True)
    torch.save(network.state_dict(), place)
    found = given_classifier(entry(torchvision={"model": "squeezenet1_1", "pretrained": "IMAGENET1K_V1"}), 1000, 0)
    assert found.description["input_size"] == 224
    same_as(found, network, torch.rand(2, 3, 224, 224))


@pytest.mark.parametrize(
    ("model", "pretrained", "built", "implied"),
    [
        pytest.param(
            *("googlenet", "DEFAULT", {"init_weights": False}, {"transform_input": True, "aux_logits": False}),
            marks=pytest.mark.long,  # It draws its weights by scipy, for seconds.
        ),
        ("squeezenet1_1", "IMAGENET1K_V1", {}, {}),
    ],
)
def test_what_torchvision_sets_beside_its_weights_is_built_again(
    model: str, pretrained: str, built: dict[str, Any], implied: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.models import get_model
    from torchvision.models._api import WeightsEnum

    torch.manual_seed(4)
    published = get_model(model, weights=None, **built).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, *args, **kwargs: published)
    asked = entry(torchvision={"model": model, "pretrained": pretrained})
    found = given_classifier(asked, 1000, 0)
    assert found.description["blueprint"]["arguments"] == implied
    refuse_other(asked, found, (64, 64))
    if "transform_input" in implied:
        found.description["blueprint"]["arguments"]["transform_input"] = False
        with pytest.raises(ValueError, match="must answer as the network that its name builds with these weights"):
            refuse_other(asked, found, (64, 64))
    found.description["blueprint"]["arguments"] = {"dropout": "none"}
    with pytest.raises(ValueError, match=f"torchvision's {model} must be loadable"):
        refuse_other(asked, found, (64, 64))


# The hub


def _tiny_transformer() -> tuple[Any, Any]:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(image_size=32, patch_size=16, num_labels=7, **sizes)
    torch.manual_seed(6)
    return transformers.ViTForImageClassification(config).eval(), config


@pytest.mark.parametrize("where", ["folder", "cache"])
def test_an_image_classifier_of_transformers(where: str, hub: Path, tmp_path: Path) -> None:
    network, _ = _tiny_transformer()
    folder = tmp_path / "net" if where == "folder" else cached(hub, "org/net")
    network.save_pretrained(folder)
    said = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    found = given_classifier(entry(huggingface=str(folder) if where == "folder" else "org/net"), 7, 0)
    assert (found.description["mean"], found.description["input_size"]) == ([0.4, 0.5, 0.6], 32)
    with torch.no_grad():
        wanted = network(normalised(IMAGES, said["image_mean"], said["image_std"])).logits
        torch.testing.assert_close(found(IMAGES), wanted)
        torch.testing.assert_close(rebuilt(found)(IMAGES), wanted)
    written = found.description["blueprint"]["transformers"]
    assert written["hidden_size"] == 12
    assert written["chunk_size_feed_forward"] == 0  # what is a default today, and may not be in another version


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ({"image_mean": [0.4] * 3, "image_std": [0.2] * 3}, [0.4] * 3, [0.2] * 3),
        ({"do_normalize": False, "image_mean": [0.4] * 3, "image_std": [0.2] * 3}, [0.0] * 3, [1.0] * 3),
        ({"image_mean": 0.4, "image_std": 0.2}, [0.4] * 3, [0.2] * 3),
        ({"do_rescale": False, "image_mean": [102] * 3, "image_std": [51] * 3}, [0.4] * 3, [0.2] * 3),
        ({"rescale_factor": 1 / 127.5, "image_mean": 1, "image_std": 1}, [0.5] * 3, [0.5] * 3),
        ({"rescale_factor": 0.00392, "image_mean": 0.4, "image_std": 0.2}, [0.4] * 3, [0.2] * 3),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}, [0.5] * 3, [0.5] * 3),
        (
            {"rescale_factor": 1 / 127.5, "rescale_offset": True, "image_mean": 0.2, "image_std": 0.4},
            [0.6] * 3,
            [0.2] * 3,
        ),
        ({"rescale_offset": True, "image_mean": 0.4, "image_std": 0.2}, [1.4] * 3, [0.2] * 3),
        ({"do_rescale": False, "rescale_offset": True, "do_normalize": False}, [0.0] * 3, [1 / 255] * 3),
        ({"do_rescale": False, "do_normalize": False}, [0.0] * 3, [1 / 255] * 3),
        ({"do_normalize": True}, [0.5] * 3, [0.5] * 3),  # as a sweep file has it that says nothing
        ({}, [0.5] * 3, [0.5] * 3),
    ],
)
def test_a_transformer_is_normalised_as_its_preprocessor_says(
    said: Any, mean: list[float], std: list[float], tmp_path: Path
) -> None:
    _tiny_transformer()[0].save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = given_classifier(entry(huggingface=str(tmp_path)), 7, 0)
    assert found.description["mean"] == pytest.approx(mean)
    assert found.description["std"] == pytest.approx(std)


def test_a_transformer_that_takes_its_channels_the_other_way_round_is_refused(tmp_path: Path) -> None:
    _tiny_transformer()[0].save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_flip_channel_order": True}))
    with pytest.raises(ValueError, match="must take channels in the order red, green, blue"):
        given_classifier(entry(huggingface=str(tmp_path)), 7, 0)


@pytest.mark.parametrize(
    ("said", "side"),
    [
        ({"size": {"height": 256, "width": 256}, "crop_size": {"height": 224, "width": 224}}, 224),
        ({"size": {"height": 256, "width": 256}, "crop_size": 224, "do_center_crop": False}, 256),
        ({"size": {"shortest_edge": 240}}, 240),
        ({}, 32),
    ],
)
def test_the_side_of_a_transformer_is_what_its_preprocessor_makes(said: Any, side: int, tmp_path: Path) -> None:
    _tiny_transformer()[0].save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    assert given_classifier(entry(huggingface=str(tmp_path)), 7, 0).description["input_size"] == side


def test_weights_of_yours_are_of_the_datasets_size_whatever_a_preprocessor_makes_of_the_published_ones(
    tmp_path: Path,
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 4], depths=[1, 1], layer_type="basic", num_labels=7
    )
    network = transformers.ResNetForImageClassification(config).eval()
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 224, "width": 224}}))
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    mine = {"huggingface": str(tmp_path), "weights": str(tmp_path / "mine.safetensors")}
    assert given_classifier(entry(huggingface=str(tmp_path)), 7, 0).description["input_size"] == 224
    assert "input_size" not in given_classifier(entry(**mine), 7, 0).description


@pytest.mark.parametrize(("written", "side"), [(32, 32), ([32, 32], 32)])
def test_weights_of_yours_for_a_transformer_are_of_the_one_size_that_it_takes(
    written: Any, side: int, tmp_path: Path
) -> None:
    network, _ = _tiny_transformer()
    network.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**said, "image_size": written}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 224, "width": 224}}))
    save_file(network.state_dict(), tmp_path / "mine.safetensors")
    mine = {"huggingface": str(tmp_path), "weights": str(tmp_path / "mine.safetensors")}
    assert given_classifier(entry(**mine), 7, 0).description["input_size"] == side


def test_a_repository_of_timm_and_one_without_safetensors(tmp_path: Path) -> None:
    timm = _timm()
    network = timm.create_model("test_resnet", num_classes=7)
    said = {
        "architecture": "test_resnet",
        "num_classes": 7,
        "pretrained_cfg": {"mean": [0, 0, 0], "input_size": [3, 32, 32]},
    }
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"the weights of .* must be in the file .*model.safetensors; there is none"):
        given_classifier(entry(huggingface=str(tmp_path)), 7, 0)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    found = given_classifier(entry(huggingface=str(tmp_path)), 7, 0)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet"}))
    with pytest.raises(ValueError, match=r"config\.json must say how many classes the weights are of"):
        given_classifier(entry(huggingface=str(tmp_path)), 7, 0)
    assert (found.description["mean"], found.description["input_size"]) == ([0, 0, 0], 32)
    same_as(found, network)


# RobustBench


def test_a_network_of_robustbench_normalises_for_itself(tmp_path: Path) -> None:
    _needs("robustbench")
    blueprint = {"model": "Wong2020Fast", "threat": "Linf", "dataset": "cifar10"}
    torch.manual_seed(8)
    network = RobustBench.build(blueprint, 10)
    said = {"robustbench": {"model": "Wong2020Fast", "threat": "Linf", "root": str(tmp_path)}}
    with pytest.raises(ValueError, match=r"must be in the file .*cifar10/Linf/Wong2020Fast.pt; there is none"):
        given_classifier(entry(**said), 10, 0)
    (tmp_path / "cifar10" / "Linf").mkdir(parents=True)
    state = {f"module.{name}": value for name, value in network.state_dict().items()}  # as the published files have it
    torch.save(state, tmp_path / "cifar10" / "Linf" / "Wong2020Fast.pt")
    found = given_classifier(entry(**said), 10, 0)
    assert (found.description["mean"], found.description["std"]) == ([0, 0, 0], [1, 1, 1])
    same_as(found, network)


def test_an_ensemble_of_robustbench_is_refused() -> None:
    _needs("robustbench")
    said = {"robustbench": {"model": "Chen2020Adversarial"}}
    with pytest.raises(ValueError, match=r"must have one file of weights; Chen2020Adversarial .* has none, or several"):
        given_classifier(entry(**said), 10, 0)


# Programs


def _program(kind: str, path: Path, network: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if kind == "torchscript":
            torch.jit.script(network).save(path)
        else:
            batch = torch.export.Dim("batch", min=1, max=4096)
            torch.export.save(torch.export.export(network, (IMAGES,), dynamic_shapes=({0: batch},)), path)


@pytest.mark.parametrize("kind", ["torchscript", "exported"])
def test_a_saved_program_is_stored_whole(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(7)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(900, 7)).eval()
    path = tmp_path / "program.pt2"
    _program(kind, path, network)
    found = given_classifier(entry(**{kind: str(path)}, mean=[0, 0, 0]), 7, 0)
    path.unlink()
    same_as(found, network)
    path.write_bytes(b"no program")
    with pytest.raises(
        ValueError, match=rf"{kind} must name a file of torch.*save; .*program.pt2 is none, or is cut short"
    ):
        given_classifier(entry(**{kind: str(path)}), 7, 0)
    with pytest.raises(ValueError, match=rf"{kind} has its network and weights in one file"):
        given_classifier(entry(**{kind: str(path)}, weights="w.pt"), 7, 0)


@pytest.mark.parametrize("kind", ["torchscript", "exported"])
def test_a_saved_program_is_planned_and_its_memory_known(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mi_ray.study.duration.MEASURE_SECONDS", 0.01)
    torch.manual_seed(7)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(900, 10)).eval()
    path = tmp_path / "program.pt2"
    _program(kind, path, network)
    study = prepare(sweep(classifiers=[{"name": "f", kind: str(path)}]))
    assert set(rates(study, study.planner.classifiers[0])) == {"forward", "gradient", "train"}
    assert any("mean 0.5 and std 0.5 of each channel normalise its images" in note for note in study.notes)
    cpu = torch.device("cpu")
    own, whole = (
        activation_bytes(prepared(found, cpu, "fp32", folded=False), (3, 32, 32), cpu)
        for found in (
            given_classifier(entry(**{kind: str(path)}), 10, 0),
            wrap_classifier(network, (0.5,) * 3, (0.5,) * 3),
        )
    )
    assert whole / 3 < own < 3 * whole


# Factories without a weights file, and sweeps

FACTORY = """import torch

def net(classes=10):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, classes))
"""


def test_a_factory_gives_its_weights_itself_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    said = entry(factory="own_factory:net", arguments={"classes": 7})
    state = torch.get_rng_state()
    found = [weights_bytes(given_classifier(said, 7, seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1] != found[2]


@pytest.mark.long  # What makes it the same network again is held above, and by tests/plan/test_keys.py.
def test_a_study_with_a_network_by_name_runs_and_finds_its_results_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Dataset
) -> None:
    timm = _timm()
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "a.safetensors")
    named = {"name": "f", "timm": "test_resnet", "weights": str(tmp_path / "a.safetensors")}
    planned = prepare(sweep(classifiers=[named]))
    (work,) = planned.planner.classifiers
    assert work.description["blueprint"] == {"model": "test_resnet", "arguments": {}}
    again = prepare(Sweep.model_validate(sweep(classifiers=[named]).document()))
    assert again.planner.classifiers[0].key == work.key
    other = prepare(sweep(classifiers=[{**named, "mean": [0, 0, 0]}]))
    assert other.planner.classifiers[0].key != work.key
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "a.safetensors")
    assert prepare(sweep(classifiers=[named])).planner.classifiers[0].key != work.key


def test_pretrained_weights_with_other_classes_say_what_to_do(hub: Path) -> None:
    timm = _timm()
    network = timm.create_model("test_resnet.r160_in1k")
    save_file(network.state_dict(), cached(hub, "timm/test_resnet.r160_in1k") / "model.safetensors")
    said = r"logits \[B, 10\], .*it returned \[4, 1000\]; `weights:` of yours give it a head for them"
    with pytest.raises(ValueError, match=said):
        prepare(sweep(classifiers=[{"name": "f", "timm": "test_resnet.r160_in1k"}]))


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            {"timm": "a", "torchvision": "b"},
            "a classifier by name must have one of timm, torchvision, .*; got name, timm",
        ),
        ({"source": {"timm": "a"}}, "a classifier by name must have one of timm"),
        (
            {"timm": "a", "architecture": "cnn_small"},
            "classifier 'f' must have one of `architecture`, `factory` and `zoo`, or .*; got architecture and timm ",
        ),
        (
            {},
            "classifier 'f' must have one of `architecture`, `factory` and `zoo`, or one of timm.*; got none of them ",
        ),
    ],
)
def test_a_classifier_is_of_one_kind(said: Any, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Sweep.model_validate(document(classifiers=[{"name": "f", **said}]))


def test_each_classifier_that_is_not_trained_is_held_against_what_workers_build(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = list[tuple[str, tuple[int, int]]]()
    monkeypatch.setattr("mi_ray.study.prepare.refuse_other", lambda entry, found, side: held.append((entry.name, side)))
    prepare(sweep(classifiers=[{"name": "f", "zoo": "erm"}]))
    assert held == [("f", (32, 32))]
