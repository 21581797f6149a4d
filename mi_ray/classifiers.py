"""Classifiers F that normalise their own input: their architectures, how they are stored, and a fast form for evaluation."""

import copy
import hashlib
import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mi_ray.device import PassCounter
from mi_ray.folding import TRIED, CannotTraceError, arranged, traced_and_folded, why_not
from mi_ray.graphs import Graphs
from mi_ray.named import NETWORKS
from mi_ray.networks import fit_weights, network_of, state_bytes
from mi_ray.parameters import Parameterized, Registry, integer, kind_of, unknown
from mi_ray.resampling import resized
from mi_ray.store.files import Files
from mi_ray.zoo import zoo_card, zoo_names, zoo_weights

Precision = Literal["fp32", "bf16"]
TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
COARSE = (torch.float16, torch.bfloat16)
# Modes of torch.compile: the first fuses kernels, and the second also replays them as CUDA graphs.
CompileMode = Literal["default", "reduce-overhead"]


class Classifier(nn.Module):
    """A network from images in [0, 1], [B, C, H, W], to logits [B, classes]; normalisation (x - mean) / std is inside.

    network: takes normalised images. mean, std: one entry for each channel. classes: the number of labels L.
    description: what `build_classifier` builds the network from; a store keeps it beside the weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        classes: int,
        description: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.classes = network, classes
        self.description: dict[str, Any] = dict(description or {})
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.autocast: torch.dtype | None = None  # The type to which `prepared` has each pass cast.
        self.folded = False  # Whether `prepared` has brought the network into its fast form.
        self.passes = PassCounter()
        # This classifier in fp32, where it computes in less. It is in a sequence so that torch does not take it for a part.
        self.exact: Sequence[Classifier] = ()
        self.compiled = False
        self.graphs: Graphs | None = None  # Compiled graphs that stand for `answer`.
        self.side: int | None = self.description.get("input_size")
        self.unsaid: Sequence[str] = ()  # Which of `mean` and `std` neither a sweep nor the network's source has named.

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """Logits of images in [0, 1]."""
        counted = self.passes.watch(x)
        if self.side is not None and (self.side, self.side) != tuple(x.shape[-2:]):
            # In half precision the places between pixels would be rounded.
            x = resized(x.float() if x.dtype in COARSE else x, self.side)
        logits = self.answer(x) if self.graphs is None else self.graphs(x)
        # A compiled network may write its next answer over this one, so the answer is copied.
        return counted(logits.clone() if self.compiled else logits)

    def answer(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B L"]:
        """Logits of images in [0, 1] of the side that the network takes; no pass is counted."""
        return self._logits((x - self.mean).div_(self.std)).float()

    def _logits(self, normalised: Tensor) -> Tensor:
        cast: AbstractContextManager[object] = nullcontext()
        if self.autocast is not None:
            cast = torch.autocast(normalised.device.type, self.autocast)
        else:
            own = next((p.dtype for p in self.network.parameters()), normalised.dtype)
            normalised = normalised.to(own)
        with cast:
            return logits_in(self.network(normalised))


def logits_in(answer: object) -> Tensor:
    """The logits in what a network answers: the tensor itself, what it calls `logits`, or the first of several answers.

    Raises ValueError where there are none.
    """
    found = answer
    if not isinstance(found, Tensor):
        named = answer if isinstance(answer, Mapping) else getattr(answer, "__dict__", {})
        several = answer[0] if isinstance(answer, (tuple, list)) and answer else None
        found = named.get("logits", several)
    if isinstance(found, Tensor) and found.is_complex():
        raise ValueError("a network must return logits that are real; it returned complex numbers")
    if isinstance(found, Tensor):
        return found
    keys = f" with {', '.join(map(str, answer)) or 'nothing in it'}" if isinstance(answer, Mapping) else ""
    raise ValueError(
        "a network must return one tensor of logits, something with `logits`, or a tuple whose first entry they are; it "
        f"returned {kind_of(answer)}{keys}"
    )


def in_float32(network: nn.Module) -> nn.Module:
    """The network, which is put into float32 where it has weights of half precision.

    In half precision the gradients of a network that is sure of itself are zero, so that attacks leave what they would not; the
    precision of a study decides what is computed in less.
    """
    values = itertools.chain(network.parameters(), network.buffers())
    return network.float() if any(value.dtype in COARSE for value in values) else network


def wrap_classifier(
    network: nn.Module,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    classes: int | None = None,
) -> Classifier:
    """A network of one's own as a Classifier, in eval mode on the device that it is on.

    network: takes normalised images and returns logits. mean, std: one entry for each channel. classes: the number of
    labels; when it is left out, the network is asked with one grey 32x32 image. A network of half precision is put into float32
    (`in_float32`).
    Raises ValueError when mean and std do not fit each other.
    """
    if len(mean) != len(std) or any(s <= 0 for s in std):
        raise ValueError(f"mean and std need one entry a channel, std > 0; got {tuple(mean)} and {tuple(std)}")
    network = in_float32(network).eval()
    first = next(iter(network.parameters()), torch.empty(0))
    if classes is None:
        with torch.no_grad():
            classes = logits_in(network(torch.full((1, len(mean), 32, 32), 0.5, device=first.device))).shape[1]
    return Classifier(network, mean, std, classes).to(first.device).eval()


@dataclass(frozen=True)
class Architecture(Parameterized):
    """A network family; a subclass writes `build`."""

    @abstractmethod
    def build(self, classes: int) -> nn.Module:
        """A network for images of 3 channels, with initial weights that torch's global generator draws."""


ARCHITECTURES: Registry[Architecture] = Registry("architecture")


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, *, relu: bool = True) -> nn.Sequential:
    """Convolution (Kaiming normal, fan-out), batch norm and, if asked, ReLU; adjacent, so that they can be folded."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.ReLU(inplace=True)] if relu else []))


class _Residual(nn.Module):
    """relu(body(x) + shortcut(x)), post-activation; a 1x1 projection with batch norm where the shape changes."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _head(features: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, classes)]


@final
@ARCHITECTURES.register
@dataclass(frozen=True)
class MiResNet50(Architecture):
    """The paper's "ResNet-50": 3 stages of 5 bottlenecks, widths 64/128/256, expansion 1, strides 1/2/2.

    5x5 stem without max-pool; exactly 4,752,586 parameters for 10 classes and 4,775,716 for 100.
    """

    name: ClassVar[str] = "mi_resnet50"

    def build(self, classes: int) -> nn.Module:
        """A freshly initialised network."""
        layers: list[nn.Module] = [_conv(3, 64, 5)]
        inputs = 64
        for width, first_stride in ((64, 1), (128, 2), (256, 2)):
            for block in range(5):
                stride = first_stride if block == 0 else 1
                body = nn.Sequential(
                    _conv(inputs, width, 1),
                    _conv(width, width, 3, stride),
                    _conv(width, width, 1, relu=False),
                )
                layers.append(_Residual(body, inputs, width, stride))
                inputs = width
        return nn.Sequential(*layers, *_head(256, classes))


def _basic_resnet(classes: int, widths: Sequence[int], blocks: int) -> nn.Module:
    layers: list[nn.Module] = [_conv(3, widths[0], 3)]
    inputs = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            body = nn.Sequential(_conv(inputs, width, 3, stride), _conv(width, width, 3, relu=False))
            layers.append(_Residual(body, inputs, width, stride))
            inputs = width
    return nn.Sequential(*layers, *_head(inputs, classes))


@final
@ARCHITECTURES.register
@dataclass(frozen=True)
class ResNet18(Architecture):
    """CIFAR ResNet-18: 3x3 stem, 4 stages of 2 basic blocks, widths 64/128/256/512 (He et al., 2016)."""

    name: ClassVar[str] = "resnet18"

    def build(self, classes: int) -> nn.Module:
        """A freshly initialised network."""
        return _basic_resnet(classes, (64, 128, 256, 512), 2)


@final
@ARCHITECTURES.register
@dataclass(frozen=True)
class ResNetSmall(Architecture):
    """A residual network that a CPU can train on CIFAR: 3 stages of basic blocks, widths w/2w/4w.

    308,650 parameters for 10 classes; 691,834 with width 48.
    """

    name: ClassVar[str] = "resnet_small"
    width: int = integer("channels of the first stage", 32, low=1, high=1024)
    blocks: int = integer("basic blocks a stage", 1, low=1, high=100)

    def build(self, classes: int) -> nn.Module:
        """A freshly initialised network."""
        return _basic_resnet(classes, (self.width, 2 * self.width, 4 * self.width), self.blocks)


@final
@ARCHITECTURES.register
@dataclass(frozen=True)
class CnnSmall(Architecture):
    """Three strided convolutions with batch norm, for digits on a CPU: widths w/2w/4w."""

    name: ClassVar[str] = "cnn_small"
    width: int = integer("channels of the first layer", 16, low=1, high=1024)

    def build(self, classes: int) -> nn.Module:
        """A freshly initialised network."""
        w = self.width
        return nn.Sequential(
            _conv(3, w, 5, 2), _conv(w, 2 * w, 3, 2), _conv(2 * w, 4 * w, 3, 2), *_head(4 * w, classes)
        )


def build_classifier(description: Mapping[str, Any]) -> Classifier:
    """A classifier with initial weights, built from the description that classifier.json holds.

    description: architecture or factory with its arguments, or the source and the blueprint of a network by name; classes,
    mean and std, and perhaps input_size. Raises ValueError when a factory
    returns something else than a network.
    """
    d = description
    if d.get("factory"):
        network = network_of(d["factory"], d["arguments"])
    elif d.get("named"):
        network = NETWORKS[d["named"]].build(d["blueprint"], d["classes"])
    else:
        network = ARCHITECTURES.make(d["architecture"], d["arguments"]).build(d["classes"])
    return Classifier(in_float32(network), d["mean"], d["std"], d["classes"], d)


def weights_bytes(classifier: Classifier) -> bytes:
    """The weights as safetensors: the same weights give the same bytes."""
    return state_bytes(classifier.network)


def weights_digest(content: bytes) -> str:
    """SHA-256 of a safetensors file: a classifier's part of the provenance of every row."""
    return hashlib.sha256(content).hexdigest()


def set_weights(classifier: Classifier, state: Mapping[str, Tensor], origin: str) -> Classifier:
    """Put weights into a classifier, strictly. Raises ValueError when they are of another architecture."""
    about = classifier.description
    made = about.get("factory") or about.get("architecture") or about.get("named")
    fit_weights(
        classifier.network, state, f"{origin} must hold the weights of {made} with {classifier.classes} classes"
    )
    return classifier.eval()


def classifier_from_bytes(
    description: Mapping[str, Any], content: bytes, origin: str = "the stored weights"
) -> Classifier:
    """The classifier with that description and those safetensors, in eval mode on the CPU."""
    try:
        state = load_tensors(content)
    except SafetensorError as error:
        raise ValueError(f"{origin} must be a safetensors file: {error}") from error
    return set_weights(build_classifier(description), state, origin)


ZOO = "zoo:"


def load_classifier(path: str | Path) -> Classifier:
    """The classifier in a store's folder `classifiers/<key>`, or one of the zoo, in eval mode on the CPU.

    path: the folder, also behind a URI, or "zoo:" and a name, such as "zoo:mixup". Raises ValueError when there is none or
    a damaged one, or when its weights are of another architecture.
    """
    if str(path).startswith(ZOO):
        return _of_the_zoo(str(path).removeprefix(ZOO))
    folder = Files(path)
    try:
        about = folder.read_json("classifier.json")
        description, content = about["description"], folder.read_bytes("model.safetensors")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold classifier.json and model.safetensors: {error}") from error
    found = classifier_from_bytes(description, content, f"{path}/model.safetensors")
    if about.get("weights_sha256", weights_digest(content)) != weights_digest(content):
        raise ValueError(f"{path}/model.safetensors must have the SHA-256 that classifier.json names; it was changed")
    return found


def _of_the_zoo(name: str) -> Classifier:
    if name not in zoo_names():
        raise unknown("classifier of the zoo", name, zoo_names())
    card = zoo_card(name)
    description = {key: card[key] for key in ("mean", "std", "classes")}
    description |= dict(zip(("architecture", "arguments"), card["architecture"], strict=True))
    content = zoo_weights(name).read_bytes()
    if weights_digest(content) != card["weights_sha256"]:
        raise ValueError(f"{zoo_weights(name)} must have the SHA-256 that its card names; it was changed")
    return classifier_from_bytes(description, content, str(zoo_weights(name)))


def prepared(
    classifier: Classifier,
    device: torch.device,
    precision: Precision,
    compile_mode: CompileMode | None = None,
    folded: bool | None = None,
) -> Classifier:
    """A copy of a classifier for evaluation: frozen, in eval mode, on the device; its logits are float32 always.

    Networks of our own architectures get their batch norms folded into the convolutions, the channels_last layout, and
    bfloat16 weights at "bf16". So does a network of a person's own that torch can trace; whether the form answers as the
    network does is not asked here (`why_not_folded` tells, and `folded=False` keeps the network). One that torch cannot trace
    stays as it is, and so does that of an architecture of a plugin, which nobody has seen trained when its key is made; "bf16"
    is autocast then.

    compile_mode: compile the network for each shape that it meets, which takes half a minute for each and, on a CPU, a C++
    compiler; forward passes are then up to 1.3 times as fast there (benchmarks/README.md).
    folded: whether a network of a person's own gets that form; left out, where it can be traced. Raises ValueError where it
    is to have it and cannot be traced.
    """
    fast = copy.deepcopy(classifier).eval().requires_grad_(False)
    fast.passes = PassCounter()
    if of_our_architecture(classifier.description):
        _fold_adjacent(fast)
    elif "architecture" not in classifier.description and folded is not False:
        _trace(fast, required=folded is True)
    if fast.folded:
        fast.network = arranged(fast.network.to(device), TYPES[precision])
    else:
        fast.autocast = torch.bfloat16 if precision == "bf16" else None
    fast.to(device)
    if compile_mode is not None:
        _compile(fast, compile_mode)
    return fast


def of_our_architecture(description: Mapping[str, Any]) -> bool:
    """Whether a classifier's network is of an architecture of this program, and of no plugin's."""
    name = description.get("architecture")
    return name is not None and ARCHITECTURES[name].__module__ == __name__


def why_not_folded(classifier: Classifier, side: tuple[int, int], precision: Precision) -> str | None:
    """Why a classifier of a person's own stays as it is in a precision; None where its fast form does the same.

    side: height and width of its images, of which it is asked a few on the CPU.
    """
    x = torch.rand(TRIED, len(classifier.mean.flatten()), *side, generator=torch.Generator().manual_seed(0))
    return why_not(classifier.network, (x - classifier.mean) / classifier.std, TYPES[precision])


def _trace(fast: Classifier, *, required: bool) -> None:
    """Bring a classifier of a person's own into its fast form, in place, where torch can trace its network."""
    try:
        fast.network, fast.folded = traced_and_folded(fast.network), True
    except CannotTraceError:
        if required:
            raise


def _compile(fast: Classifier, mode: CompileMode) -> None:
    """Compile a classifier in place, anew for each shape of its input.

    Past its limits torch.compile goes back to eager mode without a word, which would change rows, so the limits are raised.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 4096
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    fast.network.compile(mode=mode, dynamic=False)
    fast.compiled = True


def _fold_adjacent(fast: Classifier) -> None:
    """Fold the batch norms of one of our own architectures, whose pairs stand one behind the other, in place."""
    for module in list(fast.modules()):
        if type(module) is nn.Sequential:
            _fold(module)
    fast.folded = True


def _fold(sequence: nn.Sequential) -> None:
    """Replace each convolution with a batch norm right behind it by one convolution, in place."""
    names = list(sequence._modules)
    for first, second in itertools.pairwise(names):
        conv, norm = sequence._modules[first], sequence._modules[second]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            sequence._modules[first] = fuse_conv_bn_eval(conv, norm)
            sequence._modules[second] = nn.Identity()
