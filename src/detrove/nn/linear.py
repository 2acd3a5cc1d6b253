"""Large linear layers on a CPU: through oneDNN, which multiplies faster than torch's usual library.

The usual library's time over oneDNN's, on two cores: forward 1.1 to 1.9 on a Zen 4 and about 2 on a Zen 5 from 10⁷
multiplications on; the gradient of the input 1.1 to 1.7 and about 2, if the weight is handed over as a transposed view
(copied, it is slower). The gradient of the weight is a product over all tokens. As a product of transposed matrices
oneDNN gains 1.2 to 1.9 at it up to some thousand tokens, above all for layers that narrow; from there on it gains 1.5
to 1.9 on a Zen 5 as the gradient of a 1×1 convolution, whose kernels are made for long sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from detrove.nn.eager import onednn_computes_in_float32

SMALLEST_PRODUCT = 1e7
"""Multiplications below which what oneDNN prepares for every product is not worth its while."""
FEWEST_TOKENS_OF_A_CONVOLUTION = {"narrowing": 4096, "other": 1024}
"""Tokens from which the gradient of a weight is found as a convolution's."""
MOST_TOKENS_OF_A_PIECE = 4096
"""Tokens up to which a feed-forward is computed at once, and what lies between its layers is stored. In pieces it is
computed again in backward: of what Deformable DETR's encoder stores a third less, for a twentieth of a step's time."""


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


def pays_in_feed_forward(x: Tensor, weight: Tensor) -> bool:
    """Whether `feed_forward` is for a pass that begins with this product: a large one, of which something learns."""
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad) and _pays(x, weight)


def feed_forward(x: Tensor, first: nn.Linear, second: nn.Linear, dropout: float) -> Tensor:
    """`second(dropout(relu(first(x))))`, (..., D) to (..., D'), where `pays_in_feed_forward` holds.

    Of what lies between, only what `second` multiplies is ever written down: ReLU is the last step of the product, what
    is dropped is dropped in place, and the gradient becomes zero in place wherever that is. Of many tokens even that is
    computed again in backward. Random numbers are those that `torch.nn.Dropout` draws.
    """
    return _FeedForward.apply(  # pyright: ignore[reportReturnType]
        x, first.weight, first.bias, second.weight, second.bias, dropout
    )


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


class _FeedForward(torch.autograd.Function):
    """Of few tokens in one piece, which is stored; of many piece by piece, each computed again in backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight1: Tensor, bias1: Tensor, weight2: Tensor, bias2: Tensor, p: float
    ) -> Tensor:
        rows = x.flatten(0, -2)
        kept = rows.new_empty(len(rows), len(weight1), dtype=torch.bool).bernoulli_(1 - p) if p else None
        ctx.scale = 1 / (1 - p)
        if len(rows) <= MOST_TOKENS_OF_A_PIECE:
            hidden = _hidden(rows, weight1, bias1, kept, ctx.scale)
            ctx.save_for_backward(x, weight1, bias1, weight2, kept, hidden)
            return _product(hidden, weight2, bias2).unflatten(0, x.shape[:-1])
        ctx.save_for_backward(x, weight1, bias1, weight2, kept, None)
        output = x.new_empty(len(rows), len(weight2))
        for piece, kept_piece, out in zip(_pieces(rows), _pieces(kept), _pieces(output), strict=False):
            out.copy_(_product(_hidden(piece, weight1, bias1, kept_piece, ctx.scale), weight2, bias2))
        return output.unflatten(0, x.shape[:-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight1, bias1, weight2, kept, stored = ctx.saved_tensors
        for_x = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        totals: list[Tensor | None] = [None] * 4
        pieces = [_pieces(None if rows is None else rows.flatten(0, -2)) for rows in (x, gradient, for_x, kept)]
        for piece, gradient_piece, for_piece, kept_piece in zip(*pieces, strict=False):
            hidden = _hidden(piece, weight1, bias1, kept_piece, ctx.scale) if stored is None else stored
            of_hidden = _product(gradient_piece, weight2.t(), None)
            torch.ops.aten.threshold_backward.grad_input(of_hidden, hidden, 0, grad_input=of_hidden)
            if kept is not None:
                of_hidden.mul_(ctx.scale)
            if for_piece is not None:
                for_piece.copy_(_product(of_hidden, weight1.t(), None))
            sums = ((of_hidden, piece), (of_hidden, None), (gradient_piece, hidden), (gradient_piece, None))
            for index, (of_output, of_input) in enumerate(sums):
                if ctx.needs_input_grad[1 + index]:
                    found = of_output.sum(dim=0) if of_input is None else _gradient_of_weight(of_output, of_input)
                    totals[index] = found if totals[index] is None else totals[index].add_(found)  # pyright: ignore
        return for_x, *totals, None


def _hidden(rows: Tensor, weight: Tensor, bias: Tensor, kept: Tensor | None, scale: float) -> Tensor:
    """(N, D) to (N, D'), and what is not kept dropped."""
    hidden = _product(rows, weight, bias, "relu")
    return hidden if kept is None else hidden.mul_(kept).mul_(scale)


def _pieces(rows: Tensor | None) -> Iterable[Any]:
    return itertools.repeat(None) if rows is None else rows.split(MOST_TOKENS_OF_A_PIECE)


def _gradient_of_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """(N, D'), (N, D) to (D', D)."""
    # one row for all tokens, an expanded tensor's, takes oneDNN a thousand times as long
    gradient, x = gradient.contiguous(), x.contiguous()
    kind = "narrowing" if gradient.shape[1] < x.shape[1] else "other"
    if len(x) < FEWEST_TOKENS_OF_A_CONVOLUTION[kind] or torch.get_num_threads() == 1:  # oneDNN gets none of one thread
        return _product(gradient.t(), x.t(), None)
    shape = gradient.shape[1], x.shape[1]
    maps = (rows[None, :, None, :].permute(0, 3, 1, 2) for rows in (gradient, x))  # (1, D, N, 1)
    weight = x.new_empty(*shape, 1, 1)
    return torch.ops.aten.convolution_backward(
        *maps, weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [False, True, False]
    )[1].view(shape)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, last_step: str = "none") -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, last_step, [], "")


def _pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the layer is one that oneDNN takes and is faster at. What compilers and exporters see stays torch's."""
    return (
        x.numel() * len(weight) >= SMALLEST_PRODUCT and weight.dtype == torch.float32 and onednn_computes_in_float32(x)
    )
