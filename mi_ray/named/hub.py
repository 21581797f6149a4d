"""Image classifiers in the files of the Hugging Face hub: a folder, the hub's cache, or a download."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from safetensors.torch import load_file
from torch import nn

from mi_ray.named.base import NETWORKS, Blueprint, LoadedNetwork, NamedNetwork, existing, loading, package
from mi_ray.named.libraries import MODELS, of_timm, timm_network
from mi_ray.parameters import text

# Weights are read from safetensors alone: a repository may hold pickles too, which run code.
FILES = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]


SAME_SCALE = 1e-3  # 1 / 255 is written with as few as four digits.


@final
@NETWORKS.register
@dataclass(frozen=True)
class HuggingFace(NamedNetwork):
    """A network in the hub's format, of transformers or of timm; its own code, if it has any, is never run."""

    name: ClassVar[str] = "huggingface"
    model: str = text("a repository, org/name, or a folder with its files (config.json and safetensors)")
    revision: str = text("a branch, tag or commit; the main branch when left out", None)

    def _folder(self) -> Path:
        if Path(self.model).is_dir():
            return Path(self.model)
        hub = package("huggingface_hub", MODELS)
        remedy = "Name a repository org/name that is there or in the hub's cache ($HF_HOME), or a folder with its files"
        with loading(f"huggingface's {self.model}", remedy):
            return Path(hub.snapshot_download(self.model, revision=self.revision, allow_patterns=FILES))

    def load(self, classes: int, arguments: Mapping[str, Any], pretrained: bool) -> LoadedNetwork:
        """See `NamedNetwork.load`. The repository's config.json says whether transformers or timm builds the network."""
        folder = self._folder()
        said = json.loads(existing(folder / "config.json", f"the configuration of {self.model}").read_text("utf-8"))
        if "architecture" in said:
            return self._of_timm(folder, said, classes, arguments, pretrained)
        transformers = package("transformers", MODELS)
        remedy = "It must be an image classifier of transformers with safetensors"
        with loading(f"huggingface's {self.model}", remedy):
            changes = dict(arguments) if pretrained else {**arguments, "num_labels": classes}
            config = transformers.AutoConfig.from_pretrained(folder, **changes)
            blueprint = {"transformers": json.loads(config.to_json_string(use_diff=False))}
            if pretrained:
                make = transformers.AutoModelForImageClassification.from_pretrained
                network = make(folder, config=config, use_safetensors=True)
            else:
                network = self.build(blueprint, classes)
        mean, std, side = _preprocessing(folder, config)
        return LoadedNetwork(network, blueprint, mean, std, side if pretrained else _one_side(network, config))

    def _of_timm(
        self, folder: Path, said: Mapping[str, Any], classes: int, arguments: Mapping[str, Any], pretrained: bool
    ) -> LoadedNetwork:
        if pretrained and "num_classes" not in said:
            raise ValueError(f"{folder / 'config.json'} must say how many classes the weights are of (num_classes)")
        blueprint = {"model": said["architecture"], "arguments": {**said.get("model_args", {}), **arguments}}
        network = timm_network(
            blueprint["model"], said["num_classes"] if pretrained else classes, blueprint["arguments"]
        )
        if pretrained:
            file = existing(folder / "model.safetensors", f"the weights of {self.model}")
            with loading(f"the weights in {file}", "They must be of the architecture that config.json names"):
                network.load_state_dict(load_file(file))
        told: Any = network.pretrained_cfg
        return of_timm(network, blueprint, {**told, **said.get("pretrained_cfg", {})}, pretrained)

    @classmethod
    def build(cls, blueprint: Blueprint, classes: int) -> nn.Module:
        """See `NamedNetwork.build`."""
        if "transformers" not in blueprint:
            return timm_network(blueprint["model"], classes, blueprint["arguments"])
        transformers = package("transformers", MODELS)
        values = dict(blueprint["transformers"])
        with loading(f"transformers' {values['model_type']}", "It must be installed in a version that knows the type"):
            config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
            found: nn.Module = transformers.AutoModelForImageClassification.from_config(config)
        return found


def _preprocessing(folder: Path, config: Any) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, int | None]:
    """(mean, std, side in pixels) as preprocessor_config.json says, or the network's own configuration.

    mean and std are of pixels in [0, 1], whatever a preprocessor makes of pixels in 0 to 255 before it normalises. Raises
    ValueError for one that turns the channels' order round.
    """
    file = folder / "preprocessor_config.json"
    said = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if said.get("do_flip_channel_order"):
        raise ValueError(
            f"a network must take channels in the order red, green, blue; {file} says that it takes them the other way round "
            "(do_flip_channel_order): turn them in a `factory` of your own"
        )
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    if said.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if said.get("do_normalize", True) and "image_mean" in said:
        mean, std = _channels(said["image_mean"]), _channels(said["image_std"])
    rescales = said.get("do_rescale", True)
    scale = 255 * said.get("rescale_factor", 1 / 255) if rescales else 255
    less = (
        1.0 if rescales and said.get("rescale_offset") else 0.0
    )  # Pixels in 0 to 255 times 1/127.5, less 1, are in -1 to 1.
    if abs(scale - 1) > SAME_SCALE or less:
        mean = tuple((each + less) / scale for each in mean or (0.0,) * 3)
        std = tuple(each / scale for each in std or (1.0,) * 3)
    size = said.get("size", getattr(config, "image_size", None))
    if said.get("do_center_crop", True):
        size = said.get("crop_size", size)
    if isinstance(size, Mapping):
        size = size.get("height", size.get("shortest_edge"))
    return mean, std, size if isinstance(size, int) else None


def _channels(said: float | Sequence[float]) -> tuple[float, ...]:
    """A value for each of three channels, of which a preprocessor may say one for all."""
    return tuple(said) if isinstance(said, Sequence) else (said,) * 3


def _one_side(network: nn.Module, config: Any) -> int | None:
    """The side of images where a network takes one alone, which it knows by its table of positions; weights of a person's own
    are else of images of the dataset's size, whatever the configuration says of the published ones."""
    side = getattr(config, "image_size", None)
    sides = {*side} if isinstance(side, Sequence) else {side}
    fixed = any("position_embedding" in name for name, _ in network.named_parameters())
    return sides.pop() if fixed and len(sides) == 1 else None
