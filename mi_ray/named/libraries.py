"""Networks of installed libraries: timm, torchvision, and robustbench's model zoo."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from torch import nn

from mi_ray.named.base import NETWORKS, Blueprint, LoadedNetwork, NamedNetwork, existing, loading, package
from mi_ray.parameters import choice, text

MODELS = "pip install 'mi-ray[models]'"
IMPLIED = ("transform_input", "aux_logits", "image_size")  # what torchvision may set together with weights
OFFLINE = "Where there is no network, name a file of yours with `weights:`"


def timm_network(model: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """One of timm's networks with initial weights."""
    timm = package("timm", MODELS)
    with loading(f"timm's {model}", "timm.list_models() names all"):
        found: nn.Module = timm.create_model(model, pretrained=False, num_classes=classes, **arguments)
    return found


def of_timm(network: nn.Module, blueprint: Blueprint, said: Mapping[str, Any], pretrained: bool) -> LoadedNetwork:
    """A network with what timm's configuration, `said`, says of it.

    The side is given where the weights are timm's, or where the network takes no other; weights of a person's own are taken
    to have been trained on images of the dataset's size.
    """
    asked = blueprint["arguments"].get("img_size", said["input_size"][-1])
    sides = {*asked} if isinstance(asked, Sequence) else {asked}
    if len(sides) > 1:
        raise ValueError(f"img_size must be of a square; got {asked}")
    (side,) = sides
    fixed = pretrained or said.get("fixed_input_size", False)
    return LoadedNetwork(network, blueprint, tuple(said["mean"]), tuple(said["std"]), side if fixed else None)


@final
@NETWORKS.register
@dataclass(frozen=True)
class Timm(NamedNetwork):
    """A network of timm (PyTorch Image Models), with the weights that its name means, or with those in a file of yours."""

    name: ClassVar[str] = "timm"
    model: str = text("its name, with or without the tag of its weights, as in resnet18.a1_in1k")

    def load(self, classes: int, arguments: Mapping[str, Any], pretrained: bool) -> LoadedNetwork:
        """See `NamedNetwork.load`. timm takes the weights from the hub's cache, or downloads them."""
        timm = package("timm", MODELS)
        if ":" in self.model:
            raise ValueError(f"timm.model must be a name of timm.list_models(); got {self.model!r}: see `huggingface`")
        if pretrained:
            with loading(f"the weights of timm's {self.model}", f"timm.list_pretrained() names all. {OFFLINE}"):
                network = timm.create_model(self.model, pretrained=True, **arguments)
        else:
            network = timm_network(self.model, classes, arguments)
        blueprint = {"model": self.model.partition(".")[0], "arguments": dict(arguments)}
        return of_timm(network, blueprint, network.pretrained_cfg, pretrained)

    @classmethod
    def build(cls, blueprint: Blueprint, classes: int) -> nn.Module:
        """See `NamedNetwork.build`."""
        return timm_network(blueprint["model"], classes, blueprint["arguments"])


@final
@NETWORKS.register
@dataclass(frozen=True)
class Torchvision(NamedNetwork):
    """A network of torchvision.models, with its published weights, or with those in a file of yours."""

    name: ClassVar[str] = "torchvision"
    model: str = text("its name, as in resnet50")
    pretrained: str = text("which of its weights, as in IMAGENET1K_V2", "DEFAULT")

    def load(self, classes: int, arguments: Mapping[str, Any], pretrained: bool) -> LoadedNetwork:
        """See `NamedNetwork.load`. The weights come from torch's cache ($TORCH_HOME/hub/checkpoints), or are downloaded."""
        models = package("torchvision.models", "pip install torchvision")
        with loading(f"torchvision's {self.model}", "torchvision.models.list_models() names all"):
            every = models.get_model_weights(self.model)
        if self.pretrained not in every.__members__:
            names = ", ".join(every.__members__)
            raise ValueError(
                f"pretrained must be of the weights of torchvision's {self.model}, {names}; got {self.pretrained!r}"
            )
        known = every[self.pretrained]
        if pretrained:
            with loading(f"the weights of torchvision's {self.model}", f"Put {known.url} into {_cache()}. {OFFLINE}"):
                network = models.get_model(self.model, weights=known, **arguments)
            arguments = {**self._implied(network, classes, arguments), **arguments}
        else:
            network = self.build({"model": self.model, "arguments": arguments}, classes)
        said = known.transforms()
        # A transformer takes one size alone, and knows it; others take any, so that weights of a person's own say nothing of it.
        side = said.crop_size[0] if pretrained else getattr(network, "image_size", None)
        blueprint = {"model": self.model, "arguments": dict(arguments)}
        return LoadedNetwork(network, blueprint, tuple(said.mean), tuple(said.std), side)

    def _implied(self, network: nn.Module, classes: int, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments that published weights bring with them: without them another network would be built for them."""
        with torch.device("meta"):
            plain = self.build({"model": self.model, "arguments": arguments}, classes)
        both = [(name, getattr(network, name, None), getattr(plain, name, None)) for name in IMPLIED]
        return {name: said for name, said, else_ in both if said != else_}

    @classmethod
    def build(cls, blueprint: Blueprint, classes: int) -> nn.Module:
        """See `NamedNetwork.build`."""
        models = package("torchvision.models", "pip install torchvision")
        with loading(f"torchvision's {blueprint['model']}", "torchvision.models.list_models() names all"):
            found: nn.Module = models.get_model(
                blueprint["model"], weights=None, num_classes=classes, **blueprint["arguments"]
            )
        return found


def _cache() -> Path:
    from torch.hub import get_dir

    return Path(get_dir()) / "checkpoints"


@final
@NETWORKS.register
@dataclass(frozen=True)
class RobustBench(NamedNetwork):
    """A network of RobustBench's leaderboards (Croce et al., 2021). It takes images in [0, 1] and normalises them itself."""

    name: ClassVar[str] = "robustbench"
    model: str = text("its name on the leaderboard, as in Carmon2019Unlabeled")
    threat: Literal["Linf", "L2", "corruptions"] = choice(
        "the leaderboard's threat model", ("Linf", "L2", "corruptions"), "Linf"
    )
    dataset: Literal["cifar10", "cifar100", "imagenet"] = choice(
        "the leaderboard's dataset", ("cifar10", "cifar100", "imagenet"), "cifar10"
    )
    root: str = text("robustbench's folder of models: ROOT/DATASET/THREAT/MODEL.pt", "models")

    def load(self, classes: int, arguments: Mapping[str, Any], pretrained: bool) -> LoadedNetwork:
        """See `NamedNetwork.load`. Weights are read from their file, never downloaded: robustbench has them on Google Drive."""
        blueprint = {"model": self.model, "threat": self.threat, "dataset": self.dataset}
        if arguments:
            raise ValueError(f"robustbench takes no arguments; got {', '.join(arguments)}")
        network = self.build(blueprint, classes)
        if pretrained:
            file = Path(self.root) / self.dataset / self.threat / f"{self.model}.pt"
            existing(file, f"the weights of robustbench's {self.model}, which robustbench.utils.load_model downloads,")
            utils = _robustbench("utils")
            with loading(str(file), "It must be the file that robustbench downloads"):
                network = utils.load_model(self.model, self.root, self.dataset, self.threat)
        return LoadedNetwork(network, blueprint, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    @classmethod
    def build(cls, blueprint: Blueprint, classes: int) -> nn.Module:
        """See `NamedNetwork.build`. Raises ValueError for a name that no leaderboard has, and for an ensemble."""
        known = _robustbench("model_zoo.models").model_dicts
        enums = _robustbench("model_zoo.enums")
        board = known[enums.BenchmarkDataset(blueprint["dataset"])][enums.ThreatModel(blueprint["threat"])]
        name, where = blueprint["model"], f"{blueprint['dataset']}, {blueprint['threat']}"
        if name not in board:
            raise ValueError(f"robustbench.model must be on the leaderboard {where}; got {name!r}: {', '.join(board)}")
        if not isinstance(board[name]["gdrive_id"], str):
            raise ValueError(f"robustbench.model must have one file of weights; {name} ({where}) has none, or several")
        with loading(f"robustbench's {name}", "Its code must fit the versions of timm and torch that are installed"):
            found: nn.Module = board[name]["model"]()
        return found


def _robustbench(module: str) -> Any:
    """A module of robustbench, imported without the package's own first lines.

    These import the evaluation too, which needs packages that are not on PyPI or no longer part of setuptools.
    """
    whole = sys.modules.get("robustbench")
    spec = importlib.util.find_spec("robustbench") if whole is None else None
    if spec is not None:
        sys.modules["robustbench"] = importlib.util.module_from_spec(spec)
    try:
        return package(
            f"robustbench.{module}",
            "pip install --no-deps robustbench, then pip install timm gdown geotorch torchdiffeq (it pins old ones)",
        )
    finally:
        if spec is not None:
            del sys.modules["robustbench"]  # Whoever imports the package itself gets all of it.
