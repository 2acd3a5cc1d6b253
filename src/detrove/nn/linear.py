"""Large linear layers on a CPU: through oneDNN, which multiplies faster than torch's usual library.

Measured on two cores of a Zen 4, the usual library's time over oneDNN's: forward 1.1 to 1.3 at 100 to 3,000 tokens and
1.2 to 1.9 at 20,000; the gradient of the input 1.1 to 1.7 throughout, if the weight is handed over as a transposed view
(copied, it is slower). The gradient of the weight is a product of two tall matrices, at which the usual library is
mostly the faster one: oneDNN gains 1.2 to 1.3 only for layers that narrow, at fewer tokens than a few thousand.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SMALLEST_PRODUCT = 5e7
"""Multiplications below which what oneDNN prepares for every product is not worth its while."""
MOST_TOKENS_OF_ITS_GRADIENT = 4096
"""Tokens from which oneDNN no longer gains at the gradient of any weight."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`torch.nn.functional.linear`: (..., D), (D', D), (D',) to (..., D')."""
    if _pays(x, weight):
        return _OneDNNLinear.apply(x, weight, bias)  # pyright: ignore[reportReturnType]
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., D) to (..., D')."""
        return linear(input, self.weight, self.bias)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _product(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        return (
            _product(gradient, weight.t(), None) if for_x else None,
            _gradient_of_weight(rows, x.flatten(0, -2)) if for_weight else None,
            rows.sum(dim=0) if for_bias else None,
        )


def _gradient_of_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """(N, D'), (N, D) to (D', D)."""
    if gradient.shape[1] < x.shape[1] and len(x) < MOST_TOKENS_OF_ITS_GRADIENT:
        return _product(gradient.t(), x.t(), None)
    return gradient.t() @ x


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the layer is one that oneDNN takes and is faster at. What compilers and exporters see stays torch's."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * len(weight) >= SMALLEST_PRODUCT
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._functorch.maybe_current_level()  # pyright: ignore[reportAttributeAccessIssue]
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
