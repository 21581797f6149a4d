"""The fast form of any network that torch can trace: batch norms folded, channels_last, weights of one precision.

A trace says which module's output goes where, which the modules themselves do not. It also drops what is no operation on
tensors, such as a gradient of a person's own or a choice that depends on the image, so that `why_not` holds a fast form
against the network that it was made from before anything relies on it.
"""

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mi_ray.own_code import first_line

TRIED = 8  # Images on which a fast form is held against its network.
CLOSE = 1e-3  # In fp32 logits may move by this share of the largest one: rounding moves them by a hundredth of that.
# In fp32 a gradient may move by this share of its length; near a ReLU's kink rounding moves single entries.
STEEP = 0.05
# In bf16 both may move so many times as far as by autocast, and logits by COARSE_SHARE of the largest one.
COARSE = 4.0
COARSE_SHARE = 0.02


class CannotTraceError(ValueError):
    """Says why torch cannot trace a network."""


class _Tracer(fx.Tracer):
    """Goes into the modules of a network, except into those that are known not to be traceable.

    path: the modules that it is in, the outermost first.
    """

    def __init__(self, closed: set[str]) -> None:
        super().__init__()
        self.closed, self.path = closed, list[str]()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called as a whole, rather than traced from within."""
        return module_qualified_name in self.closed or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Keep a module's name in `path` while it is traced; it stays there when an error ends the trace."""
        self.path.append(self.path_of_module(m))
        found = super().call_module(m, forward, args, kwargs)
        self.path.pop()
        return found


def traced(network: nn.Module) -> fx.GraphModule:
    """The network as a graph that shares its modules; a part that cannot be traced is called as a whole.

    Raises CannotTraceError where the network's own `forward` is what cannot be traced.
    """
    closed = set[str]()
    while True:
        tracer = _Tracer(closed)
        try:
            return fx.GraphModule(network, tracer.trace(network))
        except Exception as error:  # A person's own code runs, which may raise anything.
            if not tracer.path:
                raise CannotTraceError(f"torch.fx cannot trace it: {first_line(error)}") from error
            closed.add(tracer.path[-1])


class Affine(nn.Module):
    """γ (x - μ) / σ + β of a batch norm in eval mode as one multiplication and one addition."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt() * (1.0 if norm.weight is None else norm.weight)
        shift = (0.0 if norm.bias is None else norm.bias) - norm.running_mean * scale
        self.scale, self.shift = (
            nn.Parameter(each.detach().clone().view(1, -1, 1, 1), requires_grad=False) for each in (scale, shift)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The norm's answer to feature maps [B, C, H, W]: each channel scaled and shifted."""
        return torch.addcmul(self.shift, x, self.scale)


def fold(graph: fx.GraphModule) -> fx.GraphModule:
    """Merge each batch norm of a graph, in place, into the convolution whose output it alone reads, else make it an `Affine`.

    Modules that are called from several places, those with hooks, and norms in training mode or without running statistics
    stay as they are.
    """
    called = [node for node in graph.graph.nodes if node.op == "call_module"]
    uses = Counter(id(graph.get_submodule(node.target)) for node in called)

    def plain(node: fx.Node, kind: type[nn.Module]) -> bool:
        """Whether the node calls a module of exactly that class, from here alone, and without hooks."""
        if node.op != "call_module":
            return False
        module = graph.get_submodule(str(node.target))
        hooked = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
        return type(module) is kind and uses[id(module)] == 1 and not hooked

    for node in [node for node in called if plain(node, nn.BatchNorm2d)]:
        norm, before = graph.get_submodule(node.target), node.all_input_nodes[0]
        assert isinstance(norm, nn.BatchNorm2d)
        if norm.running_var is None or norm.training:
            continue
        conv = graph.get_submodule(str(before.target)) if plain(before, nn.Conv2d) else None
        if isinstance(conv, nn.Conv2d) and len(before.users) == 1:
            graph.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
        else:
            graph.set_submodule(str(node.target), Affine(norm))
    _without_views(graph)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _without_views(graph: fx.GraphModule) -> None:
    """Make each `view` a `reshape`, in place, which copies where the memory's order allows no view, as in channels_last."""
    for node in graph.graph.nodes:
        if node.op == "call_method" and node.target == "view" and not isinstance(node.args[1], torch.dtype):
            node.target = "reshape"


def traced_and_folded(network: nn.Module) -> nn.Module:
    """A network in eval mode as a graph with its batch norms folded; the graph shares the network's other modules.

    Raises CannotTraceError where torch cannot trace the network.
    """
    return fold(traced(network))


def arranged(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The same network with its weights in channels_last and in a type; float32 keeps the type that they have."""
    network.to(memory_format=torch.channels_last)
    return network.to(dtype) if dtype != torch.float32 else network


def _answered(network: nn.Module, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(logits, the gradient at the images of a sum in which each logit has another weight), both in float32."""
    leaf = x.clone().requires_grad_(True)
    logits = network(leaf.to(dtype)).float()
    weights = torch.linspace(-1, 1, logits.shape[1]).expand_as(logits)
    return logits.detach(), torch.autograd.grad((weights * logits).sum(), leaf)[0]


def why_not(network: nn.Module, x: Tensor, dtype: torch.dtype) -> str | None:
    """Why a network stays as it is in float32 or bfloat16; None where its fast form does the same.

    network: in eval mode on the CPU, in float32. x: normalised images [B, C, H, W], on which both are asked.
    """
    try:
        return _difference(network, x, dtype)
    except CannotTraceError as error:
        return str(error)
    except Exception as error:  # A person's own network may meet another memory order or type with any error.
        return f"its folded form does not run in {dtype}: {first_line(error)}"


def _difference(network: nn.Module, x: Tensor, dtype: torch.dtype) -> str | None:
    """How a fast form differs from its network by more than rounding explains."""
    plain = copy.deepcopy(network).requires_grad_(False)
    form = arranged(traced_and_folded(copy.deepcopy(plain)), dtype)
    logits, gradient = _answered(plain, x, torch.float32)
    again, _ = _answered(plain, x, torch.float32)
    if not torch.equal(logits, again):
        return "it answers differently when it is asked twice"
    own, slope = _answered(form, x, dtype)
    scale = float(logits.abs().max().clamp(min=1e-6))
    moved, allowed, steep = float((own - logits).abs().max()), CLOSE * scale, STEEP
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", torch.bfloat16):
            cast, turned = _answered(plain, x, torch.float32)
        allowed = max(COARSE * float((cast - logits).abs().max()), COARSE_SHARE * scale)
        steep = max(STEEP, COARSE * _apart(turned, gradient))
    if not moved <= allowed:
        return f"in its folded form in {dtype} its logits move by {moved:.2g}, more than {allowed:.2g}"
    if not _apart(slope, gradient) <= steep:
        return f"in its folded form in {dtype} its gradient moves by {_apart(slope, gradient):.2g} of its length"
    return None


def _apart(found: Tensor, expected: Tensor) -> float:
    """How far a gradient is from the one that is expected, as a share of the expected one's length."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))
