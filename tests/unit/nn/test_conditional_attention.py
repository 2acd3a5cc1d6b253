"""Conditional attention against its scores written out: content · content + position · position, per head."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detrove.nn.conditional_attention import (
    ConditionalCrossAttention,
    ConditionalDecoderLayer,
    ConditionalSelfAttention,
)
from detrove.nn.recording import recording

DIM, HEADS, QUERIES, TOKENS = 24, 4, 5, 7
WIDTH = DIM // HEADS
PADDING = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    lengths = {"content": QUERIES, "position": QUERIES, "sine": QUERIES, "memory": TOKENS, "memory_position": TOKENS}
    return {
        name: torch.randn(2, length, DIM, generator=generator, dtype=torch.float64) for name, length in lengths.items()
    }


def disturbed(block):
    for index, parameter in enumerate(block.parameters()):
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(index))
    return block.double()


def head(x, index):
    return x[..., index * WIDTH : (index + 1) * WIDTH]


def test_self_attention_adds_what_it_projected_apart(inputs):
    block = disturbed(ConditionalSelfAttention(DIM, HEADS))
    content, position = inputs["content"], inputs["position"]
    query = F.linear(content, block.query_content.weight, block.query_content.bias)
    query = query + F.linear(position, block.query_position.weight, block.query_position.bias)
    key = F.linear(content, block.key_content.weight, block.key_content.bias)
    key = key + F.linear(position, block.key_position.weight, block.key_position.bias)
    value = block.value(content)
    heads = []
    for index in range(HEADS):
        scores = torch.einsum("bqd,bkd->bqk", head(query, index), head(key, index)) / WIDTH**0.5
        heads.append(scores.softmax(dim=-1) @ head(value, index))
    expected = block.out_proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(block(content, position), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("padding_mask", [None, PADDING])
def test_cross_attention_concatenates_content_and_position(inputs, first, padding_mask):
    block = disturbed(ConditionalCrossAttention(DIM, HEADS, first=first))
    query, key = block.query_content(inputs["content"]), block.key_content(inputs["memory"])
    query_where, key_where = block.query_sine(inputs["sine"]), block.key_position(inputs["memory_position"])
    if first:
        query, key = query + block.query_position(inputs["position"]), key + key_where
    value = block.value(inputs["memory"])
    heads = []
    for index in range(HEADS):
        what = torch.einsum("bqd,bkd->bqk", head(query, index), head(key, index))
        where = torch.einsum("bqd,bkd->bqk", head(query_where, index), head(key_where, index))
        scores = (what + where) / (2 * WIDTH) ** 0.5
        if padding_mask is not None:
            scores = scores.masked_fill(padding_mask[:, None], float("-inf"))
        heads.append(scores.softmax(dim=-1) @ head(value, index))
    expected = block.out_proj(torch.cat(heads, dim=-1))
    torch.testing.assert_close(block(**inputs, padding_mask=padding_mask), expected, rtol=0, atol=1e-12)


def test_only_the_first_layer_adds_the_query_position(inputs):
    moved = inputs | {"position": inputs["position"] + 1}
    later, first = (disturbed(ConditionalCrossAttention(DIM, HEADS, first=first)) for first in (False, True))
    assert later.query_position is None
    assert torch.equal(later(**inputs), later(**moved))
    assert not torch.allclose(first(**inputs), first(**moved))


def test_a_recorder_gets_both_halves_of_every_head(inputs):
    block = disturbed(ConditionalCrossAttention(DIM, HEADS))
    with recording(block) as recorder:
        block(**inputs)
    [entry] = recorder.dense
    assert entry.query.shape == (2, HEADS, QUERIES, 2 * WIDTH)
    assert entry.key.shape == (2, HEADS, TOKENS, 2 * WIDTH)
    torch.testing.assert_close(entry.query[:, 1, :, WIDTH:], head(block.query_sine(inputs["sine"]), 1))


def test_dropout_acts_in_training_only(inputs):
    layer = ConditionalDecoderLayer(
        ConditionalSelfAttention(DIM, HEADS, 0.5), ConditionalCrossAttention(DIM, HEADS, 0.5), DIM, 2 * DIM
    ).double()
    assert not torch.equal(layer(**inputs), layer(**inputs))
    layer.eval()
    assert torch.equal(layer(**inputs), layer(**inputs))


def test_layer_norms_after_every_residual(inputs):
    layer = disturbed(
        ConditionalDecoderLayer(
            ConditionalSelfAttention(DIM, HEADS), ConditionalCrossAttention(DIM, HEADS), DIM, 2 * DIM, 0.3, "prelu"
        )
    ).eval()
    content, position = inputs["content"], inputs["position"]
    content = layer.self_attention_norm(content + layer.self_attention(content, position))
    content = layer.cross_attention_norm(content + layer.cross_attention(**inputs | {"content": content}))
    slope = layer.feedforward.activation.weight
    hidden = layer.feedforward.linear1(content)
    hidden = torch.where(hidden > 0, hidden, slope * hidden)
    expected = layer.feedforward_norm(content + layer.feedforward.linear2(hidden))
    torch.testing.assert_close(layer(**inputs), expected)
