"""Dense multi-head attention through torch's fused kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrove.nn.eager import is_eager
from detrove.nn.linear import Linear, linear
from detrove.nn.recording import Parts, active_recorder, recorder_for


def attend(
    block: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    parts: Parts | None = None,
) -> Tensor:
    """softmax(Q Kᵀ / √d) V per head: (B, M, Q, d), (B, M, T, d), (B, M, T, d') to (B, M, Q, d').

    `mask` is boolean, broadcastable to (B, M, Q, T), **True = may be looked at**. `block` is the module that asks: an
    active recorder gets Q, K, V and A under its name, and the `parts` of Q and K.
    """
    recorder = recorder_for(block)
    if recorder is not None:
        recorder.add_dense(block, query, key, value, explicit_attention(query, key, mask), parts)
    width, missing = value.shape[-1], query.shape[-1] - value.shape[-1]
    if missing > 0 and query.device.type == "cpu":
        # torch's kernel for the CPU that does not write A down wants values as wide as queries
        padded = F.pad(value, (0, missing))
        return F.scaled_dot_product_attention(query, key, padded, attn_mask=mask, dropout_p=dropout)[..., :width]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def explicit_attention(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """The attention matrix A (B, M, Q, T) that the fused kernel never writes down."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1)


def without_padding(padding_mask: Tensor | None) -> bool:
    """Whether no token is padding. Asked on the CPU only: elsewhere the answer would have to be waited for."""
    if padding_mask is None:
        return True
    return padding_mask.device.type == "cpu" and is_eager() and not bool(padding_mask.any())


def seen_mask(padding_mask: Tensor | None) -> Tensor | None:
    """(B, T) True = padding to (B, 1, 1, T) True = may be looked at; None where nothing is padded."""
    return None if without_padding(padding_mask) else ~padding_mask[:, None, None, :]  # pyright: ignore


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, D) to (B, M, N, D / M)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def parts_of_heads(
    num_heads: int,
    query_content: Tensor,
    query_position: Tensor,
    key_content: Tensor,
    key_position: Tensor,
    concatenated: bool = False,
) -> Parts | None:
    """Projected parts (B, N, D) per head for a recorder; None where nobody records."""
    if active_recorder() is None:
        return None
    apart = (query_content, query_position, key_content, key_position)
    return Parts(*(split_heads(x, num_heads) for x in apart), concatenated=concatenated)


def merge_heads(x: Tensor) -> Tensor:
    """(B, M, N, d) to (B, N, M d)."""
    return x.transpose(1, 2).flatten(2)


class MultiHeadAttention(nn.Module):
    """Multi-head attention with one joint in-projection (3D × D), as in Vaswani et al. 2017.

    `forward(query, value, key=None)`: in DETR a position is added to queries and keys but not to values; in
    self-attention the keys are the queries, so `key` may be left out.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key: Tensor | None = None,
        padding_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, Q, D), (B, T, D), (B, T, D) to (B, Q, D).

        `padding_mask` (B, T) bool, True = padding; `attention_mask` (Q, T) or (B, 1, Q, T) bool, True = hidden.
        """
        dim = query.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if key is None:
            q, k = linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
        else:
            q = linear(query, weight[:dim], bias[:dim])
            k = linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim])
        v = linear(value, weight[2 * dim :], bias[2 * dim :])
        q, k, v = (split_heads(x, self.num_heads) for x in (q, k, v))
        mask = seen_mask(padding_mask)
        if attention_mask is not None:
            mask = ~attention_mask if mask is None else mask & ~attention_mask
        parts = self._parts(query, value, key)
        attended = attend(self, q, k, v, mask, self.dropout if self.training else 0.0, parts)
        return self.out_proj(merge_heads(attended))

    def _parts(self, query: Tensor, value: Tensor, key: Tensor | None) -> Parts | None:
        """Content and position apart, for a recorder: inside a layer, whose position went into the queries."""
        recorder = recorder_for(self)
        position = None if recorder is None else recorder.position_in(self)
        if position is None:
            return None
        dim = query.shape[-1]
        query_weight, key_weight = self.in_proj_weight[:dim], self.in_proj_weight[dim : 2 * dim]
        key_position = position if key is None else key - value
        return parts_of_heads(
            self.num_heads,
            F.linear(query - position, query_weight, self.in_proj_bias[:dim]),
            F.linear(position, query_weight),
            F.linear(value, key_weight, self.in_proj_bias[dim : 2 * dim]),
            F.linear(key_position, key_weight),
        )
