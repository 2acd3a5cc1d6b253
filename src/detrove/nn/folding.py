"""Trunks for answering only: norms folded into convolutions, and what follows a convolution computed with it.

A trunk is traced once into a graph (torch.fx). There a BatchNorm behind a convolution becomes part of its weights, and
an activation, or a sum with a shortcut and an activation, becomes its last step, which oneDNN computes while the result
is still in the cache; 3×3 convolutions of many channels need a quarter of the multiplications (`winograd`). Where
oneDNN is not (CUDA, another build of torch) the same modules run as plain torch.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import operator
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, FrozenBatchNormAct2d
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torchvision.ops import FrozenBatchNorm2d

from detrove.nn.eager import onednn_computes
from detrove.nn.frozen_norm import compute_norms_apart

logger = logging.getLogger(__name__)

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d, FrozenBatchNormAct2d)
"""What folds; `BatchNormAct2d` is a BatchNorm2d. timm's own carry an activation behind the norm."""

ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
    nn.SiLU: ("swish", []),
}
"""Activations that oneDNN computes with a convolution: its name for each, and their numbers."""

MOST_SHAPES = 500
"""Of maps, of which a convolution remembers which layout they want."""

SUMS = (operator.add, operator.iadd, torch.add)

_reorder: Callable[..., Any] = getattr(torch._C._nn, "mkldnn_reorder_conv2d_weight", None)  # pyright: ignore


class FoldedConvolution(nn.Module):
    """A convolution with bias, then, where asked, the sum with a shortcut and an activation.

    `in_place` lets the sum be written over the shortcut, which nothing else may read afterwards. `weight` is None once
    it lies as oneDNN wants it.
    """

    weight: Tensor | None
    bias: Tensor

    def __init__(self, convolution: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.detach())
        assert not isinstance(convolution.padding, str)
        self.shape = tuple(weight.shape)
        self.stride, self.padding = list(convolution.stride), list(convolution.padding)
        self.dilation, self.groups = list(convolution.dilation), convolution.groups
        self.activation: nn.Module | None = None
        self.in_place = False
        self._layouts: dict[bytes, Tensor] = {}
        self._for_shapes: dict[tuple[int, ...], Tensor] = {}
        self._by_tiles: Any = None

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        """(B, C, h, w), and a shortcut of the output's shape, to (B, C', h', w')."""
        if not onednn_computes(x) or torch.compiler.is_compiling():
            x = F.conv2d(x, self._plain_weight(), self.bias, self.stride, self.padding, self.dilation, self.groups)
            x = x if shortcut is None else x + shortcut
            return x if self.activation is None else self.activation(x)
        if self._pays_by_tiles(x):
            return self._computed_by_tiles(x, shortcut)
        operators, geometry = torch.ops.mkldnn, (self.padding, self.stride, self.dilation, self.groups)
        weight = self._packed_for(x)
        name, numbers = ("none", []) if self.activation is None else ACTIVATIONS[type(self.activation)]
        if shortcut is None:
            return operators._convolution_pointwise(x, weight, self.bias, *geometry, name, numbers, "")
        rest = ("add", 1.0, None if self.activation is None else name, numbers, "")
        if self.in_place:
            return operators._convolution_pointwise_.binary(shortcut, x, weight, self.bias, *geometry, *rest)
        return operators._convolution_pointwise.binary(x, shortcut, weight, self.bias, *geometry, *rest)

    def _pays_by_tiles(self, x: Tensor) -> bool:
        """Whether Winograd's way is known (it needs Numba) and the faster one."""
        plain = self.stride == self.padding == self.dilation == [1, 1] and self.groups == 1
        return plain and self.shape[2:] == (3, 3) and _numba_is_installed() and _winograd().pays(self.shape, x)

    def _computed_by_tiles(self, x: Tensor, shortcut: Tensor | None) -> Tensor:
        if self._by_tiles is None:
            self._by_tiles = _winograd().WinogradConvolution(self._plain_weight(), self.bias)
        if shortcut is None and isinstance(self.activation, nn.ReLU):
            return self._by_tiles(x, relu=True)
        x = self._by_tiles(x)
        x = x if shortcut is None else x.add_(shortcut)
        return x if self.activation is None else self.activation(x)

    def _plain_weight(self) -> Tensor:
        weight = self.weight
        return next(iter(self._layouts.values())).to_dense() if weight is None else weight

    def _packed_for(self, x: Tensor) -> Tensor:
        """The weight as oneDNN wants it for maps of this shape, kept once for each of the few layouts that it has.

        A weight that lies as another shape wants it is laid out anew in every call: a 1×1 convolution of 1024 to 2048
        channels took 37 ms so instead of 3.
        """
        shape = tuple(x.shape)
        packed = self._for_shapes.get(shape)
        if packed is None:  # several threads may come here at once
            geometry = (self.padding, self.stride, self.dilation, self.groups)
            packed = _reorder(self._plain_weight().contiguous().to_mkldnn(), *geometry, list(shape))
            packed = self._layouts.setdefault(_layout_of(packed), packed)
            if len(self._for_shapes) >= MOST_SHAPES:
                self._for_shapes = {}
            self._for_shapes[shape] = packed
            self.weight = None
        return packed


def _layout_of(packed: Tensor) -> bytes:
    """How oneDNN has laid a weight out; of a torch that does not say it all are taken for the same."""
    describe = getattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md", None)
    return b"" if describe is None else describe(packed).numpy().tobytes()


@cache
def _numba_is_installed() -> bool:
    return importlib.util.find_spec("numba") is not None


@cache
def _winograd() -> Any:
    """The module, which is compiled when it is imported."""
    from detrove.nn import winograd

    return winograd


def fold_trunk(body: nn.Module) -> nn.Module:
    """A copy of a trunk in evaluation mode that gives the same maps with fewer steps.

    A trunk that cannot be traced comes back as an unchanged copy, and the log says so.
    """
    body = compute_norms_apart(copy.deepcopy(body)).eval()
    weight = next(body.parameters())
    try:
        traced = fx.GraphModule(body, _Tracer().trace(body))
        _drop_identities(traced)
        ShapeProp(traced).propagate(torch.zeros(1, 3, 64, 96, device=weight.device, dtype=weight.dtype))
    except Exception as error:  # whatever a model's own code raises on tracing's stand-ins for tensors
        logger.warning("the trunk %s cannot be traced (%s): nothing in it is folded", type(body).__name__, error)
        return body
    del body  # so that what is folded makes room as it is replaced
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        if calls[node.target] == 1:
            _fold(traced, node)
    for step in (_fuse_sum, _fuse_activation):
        for node in list(traced.graph.nodes):
            step(traced, node)
    _allow_in_place(traced)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval().requires_grad_(False)


class _Tracer(fx.Tracer):
    """Looks into everything but torch's own layers, convolutions and norms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.Conv2d, *NORMS)) or super().is_leaf_module(m, module_qualified_name)


def _module(traced: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a node calls, or None."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return traced.get_submodule(str(node.target))
    return None


def _drop_identities(traced: fx.GraphModule) -> None:
    for node in list(traced.graph.nodes):
        if isinstance(_module(traced, node), (nn.Identity, nn.Dropout, nn.Dropout2d)):
            _remove(traced, node)


def _remove(traced: fx.GraphModule, node: Any) -> None:
    """Take a step out: what it read goes to those who read it."""
    node.replace_all_uses_with(node.args[0])
    traced.graph.erase_node(node)


def _fold(traced: fx.GraphModule, node: Any) -> None:
    """A convolution, and the norm behind it where nothing else reads the convolution, become one module."""
    convolution = _module(traced, node)
    if not isinstance(convolution, nn.Conv2d) or not is_plain(convolution):
        return
    users = list(node.users)
    norm = _module(traced, users[0]) if len(users) == 1 else None
    weight, bias = convolution.weight.detach(), convolution.bias
    bias = weight.new_zeros(len(weight)) if bias is None else bias.detach()
    if isinstance(norm, NORMS) and norm.running_mean is not None:
        weight, bias = folded_weights(weight, bias, norm)
        _put_activation_for_norm(traced, users[0], norm)
    traced.set_submodule(str(node.target), FoldedConvolution(convolution, weight, bias))


def is_plain(convolution: nn.Conv2d) -> bool:
    """Whether it is torch's own convolution with a number of zeros around the map."""
    is_own = type(convolution) is nn.Conv2d
    return is_own and convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)


def folded_weights(weight: Tensor, bias: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight (C', C, h, w) and bias (C',) of a convolution with a norm's fixed scale and shift, computed in float64."""
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -mean * scale if norm.bias is None else norm.bias.detach().double() - mean * scale
    folded = weight.double() * scale[:, None, None, None]
    return folded.to(weight.dtype), (bias.double() * scale + shift).to(weight.dtype)


def _put_activation_for_norm(traced: fx.GraphModule, node: fx.Node, norm: nn.Module) -> None:
    """What remains of a folded norm: its activation, if it has one."""
    activation: Any = norm.act if isinstance(norm, (BatchNormAct2d, FrozenBatchNormAct2d)) else nn.Identity()
    if isinstance(activation, nn.Identity):
        _remove(traced, node)
    else:
        traced.set_submodule(str(node.target), activation)


def _fuse_sum(traced: fx.GraphModule, node: Any) -> None:
    """A sum of which one side is a convolution that nothing else reads: the convolution adds the other side."""
    if node.op != "call_function" or node.target not in SUMS or len(node.args) != 2:
        return
    for own, shortcut in (node.args, node.args[::-1]):
        free = isinstance(own, fx.Node) and len(own.users) == 1 and len(own.args) == 1
        if free and isinstance(_module(traced, own), FoldedConvolution) and _shape(own) == _shape(shortcut):
            with traced.graph.inserting_before(node):
                joined = traced.graph.call_module(str(own.target), (own.args[0], shortcut))
            node.replace_all_uses_with(joined)
            traced.graph.erase_node(node)
            traced.graph.erase_node(own)
            return


def _fuse_activation(traced: fx.GraphModule, node: Any) -> None:
    """An activation that is the only reader of a convolution becomes its last step."""
    activation = _module(traced, node)
    if type(activation) not in ACTIVATIONS:
        return
    source = node.args[0]
    convolution = _module(traced, source)
    if isinstance(source, fx.Node) and isinstance(convolution, FoldedConvolution) and len(source.users) == 1:
        convolution.activation = activation
        node.replace_all_uses_with(source)
        traced.graph.erase_node(node)


def _shape(node: Any) -> torch.Size | None:
    """Of what a node gives on the small picture, where that is a tensor."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return getattr(meta, "shape", None)


def _allow_in_place(traced: fx.GraphModule) -> None:
    """Sums overwrite a shortcut that is a convolution's output and has no other readers than convolutions before."""
    order = {node: index for index, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        convolution = _module(traced, node)
        if isinstance(convolution, FoldedConvolution) and len(node.args) == 2:
            shortcut = node.args[1]
            convolution.in_place = isinstance(_module(traced, shortcut), FoldedConvolution) and all(
                order[user] <= order[node] and isinstance(_module(traced, user), FoldedConvolution)
                for user in shortcut.users
            )
