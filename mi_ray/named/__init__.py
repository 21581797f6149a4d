"""Networks by name: from timm, torchvision, the Hugging Face hub and robustbench, and programs that torch has saved."""

from mi_ray.named.base import NETWORKS, LoadedNetwork, NamedNetwork
from mi_ray.named.hub import HuggingFace
from mi_ray.named.libraries import RobustBench, Timm, Torchvision
from mi_ray.named.programs import Exported, TorchScript

__all__ = [
    "NETWORKS",
    "Exported",
    "HuggingFace",
    "LoadedNetwork",
    "NamedNetwork",
    "RobustBench",
    "Timm",
    "TorchScript",
    "Torchvision",
]
