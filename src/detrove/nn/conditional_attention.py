"""Attention that keeps content and position apart (Meng et al. 2021, §3.3), in Conditional DETR's decoder and after."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detrove.nn.attention import attend, merge_heads, parts_of_heads, seen_mask, split_heads
from detrove.nn.linear import Linear
from detrove.nn.recording import record_layer
from detrove.nn.transformer import FeedForward


class ConditionalSelfAttention(nn.Module):
    """Self-attention among queries; content and position have projections of their own and are added after them."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content = Linear(dim, dim)
        self.query_position = Linear(dim, dim)
        self.key_content = Linear(dim, dim)
        self.key_position = Linear(dim, dim)
        self.value = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, content: Tensor, position: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Queries' content (B, Q, D) and position (B, Q, D) to (B, Q, D).

        `attention_mask` (Q, Q) bool, row looks at column, True = hidden.
        """
        query_content, query_where = self.query_content(content), self.query_position(position)
        key_content, key_where = self.key_content(content), self.key_position(position)
        query, key = query_content + query_where, key_content + key_where
        q, k, v = (split_heads(x, self.num_heads) for x in (query, key, self.value(content)))
        mask = None if attention_mask is None else ~attention_mask
        parts = parts_of_heads(self.num_heads, query_content, query_where, key_content, key_where)
        attended = attend(self, q, k, v, mask, self.dropout if self.training else 0.0, parts)
        return self.out_proj(merge_heads(attended))


class ConditionalCrossAttention(nn.Module):
    """Queries look at the memory with [content ; position], **concatenated** in every head.

    A head's score is then content · content + position · position, without the mixed terms of a sum: one half of each
    head finds what, the other where. The first layer's content is still empty, so there (`first`) the queries' position
    is added to their content as well, and the memory's to its content.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, first: bool = False) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content = Linear(dim, dim)
        self.query_position = Linear(dim, dim) if first else None
        self.query_sine = Linear(dim, dim)
        self.key_content = Linear(dim, dim)
        self.key_position = Linear(dim, dim)
        self.value = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        sine: Tensor,
        memory: Tensor,
        memory_position: Tensor,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Content, position and sine of the reference, each (B, Q, D); memory and its position (B, T, D): to (B, Q, D).

        `padding_mask` (B, T) bool, True = padding.
        """
        query_content, key_content = self.query_content(content), self.key_content(memory)
        query_where, key_where = self.query_sine(sine), self.key_position(memory_position)
        if self.query_position is not None:
            query_content = query_content + self.query_position(position)
            key_content = key_content + key_where
        query, key = (
            torch.cat([split_heads(x, self.num_heads) for x in halves], dim=-1)
            for halves in ((query_content, query_where), (key_content, key_where))
        )
        value = split_heads(self.value(memory), self.num_heads)
        mask = seen_mask(padding_mask)
        parts = parts_of_heads(self.num_heads, query_content, query_where, key_content, key_where, concatenated=True)
        attended = attend(self, query, key, value, mask, self.dropout if self.training else 0.0, parts)
        return self.out_proj(merge_heads(attended))


class ConditionalDecoderLayer(nn.Module):
    """A decoder layer whose attentions are handed content and position apart."""

    def __init__(
        self,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        dim: int,
        feedforward_dim: int,
        dropout: float = 0.0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = nn.LayerNorm(dim)
        self.cross_attention = cross_attention
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, feedforward_dim, dropout, activation)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        sine: Tensor,
        memory: Tensor,
        attention_mask: Tensor | None = None,
        **context: Tensor,
    ) -> Tensor:
        """Content, position, sine of the reference (B, Q, D), memory (B, T, D) to content (B, Q, D).

        `attention_mask` (Q, Q) bool, True = hidden, goes to the self-attention; `context` goes to the cross-attention.
        """
        record_layer(self, content, position, sine)
        attended = self.self_attention(content, position, attention_mask=attention_mask)
        content = self.self_attention_norm(content + self.dropout(attended))
        attended = self.cross_attention(content, position, sine, memory, **context)
        content = self.cross_attention_norm(content + self.dropout(attended))
        return self.feedforward_norm(content + self.dropout(self.feedforward(content)))
