"""Encoder and decoder layers against torch's own; the MLP."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrove.nn.attention import MultiHeadAttention
from detrove.nn.transformer import MLP, DecoderLayer, EncoderLayer, FeedForward, xavier_uniform_matrices


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def copy_attention(source, target):
    target.load_state_dict(source.state_dict())


def copy_rest(ours, torchs, norms):
    torchs.linear1.load_state_dict(ours.feedforward.linear1.state_dict())
    torchs.linear2.load_state_dict(ours.feedforward.linear2.state_dict())
    for index, name in enumerate(norms, start=1):
        norm = getattr(ours, name)
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        getattr(torchs, f"norm{index}").load_state_dict(norm.state_dict())


@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layer_without_position_is_torchs(norm_first):
    ours = EncoderLayer(MultiHeadAttention(16, 2), 16, 32, norm_first=norm_first)
    torchs = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    copy_attention(ours.self_attention, torchs.self_attn)
    copy_rest(ours, torchs, ["self_attention_norm", "feedforward_norm"])
    tokens, padding_mask = torch.randn(2, 6, 16), torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
    expected = torchs(tokens, src_key_padding_mask=padding_mask)
    given = ours(tokens, torch.zeros_like(tokens), padding_mask=padding_mask)
    torch.testing.assert_close(given, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoder_layer_without_position_is_torchs(norm_first):
    ours = DecoderLayer(MultiHeadAttention(16, 2), MultiHeadAttention(16, 2), 16, 32, norm_first=norm_first)
    torchs = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    copy_attention(ours.self_attention, torchs.self_attn)
    copy_attention(ours.cross_attention, torchs.multihead_attn)
    copy_rest(ours, torchs, ["self_attention_norm", "cross_attention_norm", "feedforward_norm"])
    content, memory = torch.randn(2, 3, 16), torch.randn(2, 6, 16)
    given = ours(content, torch.zeros_like(content), memory, key=memory)
    torch.testing.assert_close(given, torchs(content, memory), rtol=0, atol=1e-5)


class Witness(nn.Module):
    """An attention that says what it is given."""

    def forward(self, query, value, **context):
        self.given = (query, value, context)
        return torch.zeros_like(query)


@pytest.mark.parametrize("norm_first", [False, True])
def test_position_joins_queries_never_values(norm_first):
    first, second = Witness(), Witness()
    layer = DecoderLayer(first, second, 8, 16, norm_first=norm_first)
    content, position, memory = torch.randn(1, 3, 8), torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    layer(content, position, memory, key="key")
    start = layer.self_attention_norm(content) if norm_first else content
    assert torch.equal(first.given[0], start + position)
    assert torch.equal(first.given[1], start)
    assert torch.equal(second.given[1], memory)
    assert second.given[2] == {"key": "key"}
    norm = layer.cross_attention_norm if norm_first else layer.self_attention_norm
    torch.testing.assert_close(second.given[0], norm(content) + position)


def test_feedforward_activations():
    x = torch.randn(2, 8)
    for name, function in (("relu", torch.relu), ("gelu", nn.functional.gelu), ("silu", nn.functional.silu)):
        block = FeedForward(8, 16, activation=name)
        torch.testing.assert_close(block(x), block.linear2(function(block.linear1(x))))


def test_mlp():
    mlp = MLP(4, 8, 2, num_layers=3)
    linear = [layer for layer in mlp if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(4, 8), (8, 8), (8, 2)]
    assert mlp.last is linear[-1]
    x = torch.randn(3, 4)
    torch.testing.assert_close(mlp(x), linear[2](linear[1](linear[0](x).relu()).relu()))


def test_xavier_on_matrices_only():
    module = nn.Linear(300, 400)
    nn.init.ones_(module.bias)
    xavier_uniform_matrices(module)
    limit = (6 / 700) ** 0.5
    assert module.weight.abs().max() <= limit
    assert module.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02)
    assert (module.bias == 1).all()
