"""Transformer layers: the attention is passed in, dense or deformable; norms after (as published) or before."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from detrove.nn.linear import Linear, feed_forward, pays_in_feed_forward
from detrove.nn.recording import record_layer

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "prelu": nn.PReLU}


class MLP(nn.Sequential):
    """`num_layers` linear layers with ReLU between: `dim_in` → `dim` → … → `dim_out` (DETR's box head has 3)."""

    def __init__(self, dim_in: int, dim: int, dim_out: int, num_layers: int) -> None:
        dims = [dim_in, *[dim] * (num_layers - 1), dim_out]
        layers: list[nn.Module] = []
        for index in range(num_layers):
            layers += [Linear(dims[index], dims[index + 1]), nn.ReLU()]
        super().__init__(*layers[:-1])

    @property
    def last(self) -> nn.Linear:
        """The last linear layer, which initialisations single out."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer


class FeedForward(nn.Module):
    """Two linear layers with an activation and dropout between."""

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0, activation: str = "relu") -> None:
        super().__init__()
        self.linear1 = Linear(dim, hidden_dim)
        self.activation = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout)
        self.linear2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        if self._is_plain() and pays_in_feed_forward(x, self.linear1.weight):
            return feed_forward(x, self.linear1, self.linear2, self.dropout.p if self.training else 0.0)
        return self.linear2(self.dropout(self.activation(self.linear1(x))))

    def _is_plain(self) -> bool:
        """Whether the parts are still those made here, with nobody listening to any of them."""
        parts = (self.linear1, self.activation, self.dropout, self.linear2)
        return [type(part) for part in parts] == [Linear, nn.ReLU, nn.Dropout, Linear] and not any(
            part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
            for part in parts
        )


class EncoderLayer(nn.Module):
    """Self-attention over tokens, then a feed-forward, each with a residual.

    `self_attention(query, value, **context)` is any block that takes the tokens with their position as queries and
    without it as values: dense or deformable.
    """

    def __init__(
        self,
        self_attention: nn.Module,
        dim: int,
        feedforward_dim: int,
        dropout: float = 0.0,
        activation: str = "relu",
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, feedforward_dim, dropout, activation)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(self, tokens: Tensor, position: Tensor, **context: Any) -> Tensor:
        """Tokens (B, T, D) with their position (B, T, D) to tokens (B, T, D); `context` goes to the attention."""
        record_layer(self, tokens, position)
        if self.norm_first:
            normed = self.self_attention_norm(tokens)
            tokens = tokens + self.dropout(self.self_attention(normed + position, normed, **context))
            return tokens + self.dropout(self.feedforward(self.feedforward_norm(tokens)))
        attended = self.self_attention(tokens + position, tokens, **context)
        tokens = self.self_attention_norm(tokens + self.dropout(attended))
        return self.feedforward_norm(tokens + self.dropout(self.feedforward(tokens)))


class DecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention into memory, a feed-forward, each with a residual.

    `cross_attention(query, memory, **context)` may be dense or deformable; self-attention is dense in the whole family.
    """

    def __init__(
        self,
        self_attention: nn.Module,
        cross_attention: nn.Module,
        dim: int,
        feedforward_dim: int,
        dropout: float = 0.0,
        activation: str = "relu",
        norm_first: bool = False,
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.self_attention_norm = nn.LayerNorm(dim)
        self.cross_attention = cross_attention
        self.cross_attention_norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, feedforward_dim, dropout, activation)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.norm_first = norm_first

    def forward(
        self, content: Tensor, position: Tensor, memory: Tensor, attention_mask: Tensor | None = None, **context: Any
    ) -> Tensor:
        """Queries' content (B, Q, D) and position (B, Q, D), memory (B, T, D) to content (B, Q, D).

        The position is added to queries and keys of self-attention and to the queries of cross-attention, never to a
        value. `attention_mask` (Q, Q) bool, True = hidden, goes to the self-attention, `context` to the
        cross-attention.
        """
        record_layer(self, content, position)
        if self.norm_first:
            normed = self.self_attention_norm(content)
            content = content + self.dropout(
                self.self_attention(normed + position, normed, attention_mask=attention_mask)
            )
            normed = self.cross_attention_norm(content)
            content = content + self.dropout(self.cross_attention(normed + position, memory, **context))
            return content + self.dropout(self.feedforward(self.feedforward_norm(content)))
        attended = self.self_attention(content + position, content, attention_mask=attention_mask)
        content = self.self_attention_norm(content + self.dropout(attended))
        attended = self.cross_attention(content + position, memory, **context)
        content = self.cross_attention_norm(content + self.dropout(attended))
        return self.feedforward_norm(content + self.dropout(self.feedforward(content)))


def xavier_uniform_matrices(module: nn.Module) -> None:
    """Xavier-uniform on every parameter with more than one dimension, as every official transformer starts."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
