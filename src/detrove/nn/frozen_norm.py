"""Fixed BatchNorms computed by the convolutions before them: the weight is scaled instead of the map.

A fixed norm is a scale and a shift for each channel. On the map they cost two passes over memory and, on a CPU, as
much as a fifth of a trunk's forward pass; on the weight of the convolution before it they cost next to nothing, and
the weight's gradient comes out the same. Weights and statistics stay where they are and under their names: the scaled
weight is made anew in every pass, so training goes on and other weights may be loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops import FrozenBatchNorm2d

FixedNorm = FrozenBatchNorm2d | FrozenBatchNormAct2d


class NormedConv2d(nn.Conv2d):
    """A convolution that also computes the fixed norm behind it: `norm[0]`, in a tuple as it is not a part of this."""

    norm: tuple[FixedNorm]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C', h', w'), normed."""
        weight, bias = self.scaled()
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def scaled(self) -> tuple[Tensor, Tensor]:
        """Weight and bias with the norm in them."""
        norm: Any = self.norm[0]
        weight, bias, mean, variance = (
            tensor.to(self.weight.device)  # replicas of `nn.DataParallel` know the norm on the first device
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        )
        scale = weight * (variance + norm.eps).rsqrt()
        shift = mean if self.bias is None else mean - self.bias
        return self.weight * scale[:, None, None, None], bias - shift * scale


class ComputedNorm(FrozenBatchNorm2d):
    """A fixed norm that the convolution before it computes."""

    def forward(self, x: Tensor) -> Tensor:
        """The map as it comes."""
        return x


class ComputedNormAct(FrozenBatchNormAct2d):
    """A fixed norm with an activation, of which the convolution before it computes the norm."""

    drop: Callable[[Tensor], Tensor]
    act: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """The map, activated."""
        return self.act(self.drop(x))


def compute_norms_in_convolutions(body: nn.Module) -> nn.Module:
    """Let every convolution of a trunk whose map goes into a fixed norm and nowhere else compute that norm, in place.

    Which ones these are is seen in a pass over a small picture; names and tensors of the trunk do not change.
    """
    for convolution, norm in _pairs(body):
        vars(convolution)["norm"] = (norm,)
        _become(convolution, NormedConv2d)
        _become(norm, ComputedNorm if isinstance(norm, FrozenBatchNorm2d) else ComputedNormAct)
    return body


def compute_norms_apart(body: nn.Module) -> nn.Module:
    """The inverse of `compute_norms_in_convolutions`, in place."""
    for module in body.modules():
        if isinstance(module, NormedConv2d):
            norm = vars(module).pop("norm")[0]
            _become(module, nn.Conv2d)
            _become(norm, FrozenBatchNorm2d if isinstance(norm, FrozenBatchNorm2d) else FrozenBatchNormAct2d)
    return body


def put_norms_into_convolutions(model: nn.Module) -> nn.Module:
    """Make the scaled weights of `compute_norms_in_convolutions` the convolutions' own, for good and in place.

    What is exported then holds plain convolutions; the norms that they computed stay behind as activations.
    """
    for module in model.modules():
        if isinstance(module, NormedConv2d):
            weight, bias = module.scaled()
            vars(module).pop("norm")
            _become(module, nn.Conv2d)
            module.weight, module.bias = (nn.Parameter(x.detach(), requires_grad=False) for x in (weight, bias))
    return model


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another forward, in place: whoever holds it, its name and its tensors need not know."""
    object.__setattr__(module, "__class__", kind)


class _Uses(TorchDispatchMode):
    """Counts how many operations take each tensor; keeps them all, so that no two have the same id."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.kept: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        self.counts.update(map(id, taken))
        self.kept += taken
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _pairs(body: nn.Module) -> list[tuple[nn.Conv2d, FixedNorm]]:
    """Each convolution with the fixed norm that alone takes its map."""
    norms = [module for module in body.modules() if isinstance(module, FixedNorm)]
    if not norms:
        return []
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    taken: dict[int, FixedNorm] = {}
    calls: Counter[nn.Module] = Counter()

    def after(module: nn.Module, inputs: Any, output: Tensor) -> None:  # noqa: ARG001
        assert isinstance(module, nn.Conv2d)
        made[id(output)] = module, output
        calls[module] += 1

    def before(module: nn.Module, inputs: Any) -> None:
        assert isinstance(module, FixedNorm)
        taken[id(inputs[0])] = module
        calls[module] += 1

    hooks = [module.register_forward_hook(after) for module in body.modules() if type(module) is nn.Conv2d]
    hooks += [norm.register_forward_pre_hook(before) for norm in norms]
    training = {module: module.training for module in body.modules()}
    weight = next(body.parameters())
    with _Uses() as uses:
        outputs = body.eval()(torch.zeros(1, 3, 64, 64, device=weight.device, dtype=weight.dtype))
    for module, mode in training.items():
        module.training = mode
    for hook in hooks:
        hook.remove()
    given_out = {id(output) for output in outputs}
    return [
        (made[key][0], norm)
        for key, norm in taken.items()
        if key in made
        and key not in given_out
        and uses.counts[key] == 1
        and calls[made[key][0]] == calls[norm] == 1
        and made[key][0].padding_mode == "zeros"
    ]
