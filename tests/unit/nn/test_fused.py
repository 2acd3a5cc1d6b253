"""Each fused block against the block that it stands in for, in float64 where no oneDNN is asked and in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from detrove.nn.attention import MultiHeadAttention
from detrove.nn.conditional_attention import (
    ConditionalCrossAttention,
    ConditionalDecoderLayer,
    ConditionalSelfAttention,
)
from detrove.nn.deformable_attention import DeformableAttention
from detrove.nn.fused import SWAPS, FusedEncoderLayer, PackedLinear, Remembered, fuse
from detrove.nn.linear import Linear
from detrove.nn.transformer import MLP, DecoderLayer, EncoderLayer, FeedForward

DIM, HEADS, BATCH, QUERIES, TOKENS = 16, 4, 2, 5, 12
SHAPES = [(2, 4), (2, 2)]


def tensors(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def disturbed(module: nn.Module) -> nn.Module:
    """No bias stays zero, no weight of sampling points alike."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def in_type(x: object, dtype: torch.dtype) -> object:
    return x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x


def stand_in(block: nn.Module, precision: torch.dtype) -> nn.Module:
    return fuse(nn.ModuleDict({"block": block}), precision).get_submodule("block")


@torch.no_grad()
def assert_same(block: nn.Module, *inputs: object, **context: object) -> None:
    """The block and what stands in for it, in float64 and in float32."""
    block = disturbed(block)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        block = block.to(dtype)
        cast = [in_type(x, dtype) for x in inputs]
        named = {key: in_type(x, dtype) for key, x in context.items()}
        fused = stand_in(block, dtype)
        assert type(fused) is not type(block)
        for _ in range(2):
            given = fused(*cast, **named)
            assert given.dtype == dtype
            torch.testing.assert_close(given, block(*cast, **named), rtol=tolerance, atol=tolerance)


MASK = torch.zeros(BATCH, TOKENS, dtype=torch.bool)
MASK[1, 9:] = True


@pytest.mark.parametrize("padding_mask", [None, MASK, torch.zeros_like(MASK)], ids=["none", "padded", "empty"])
def test_dense_attention(padding_mask: torch.Tensor | None) -> None:
    tokens, position, query = tensors((BATCH, TOKENS, DIM), (BATCH, TOKENS, DIM), (BATCH, QUERIES, DIM))
    assert_same(MultiHeadAttention(DIM, HEADS), tokens + position, tokens, padding_mask=padding_mask)
    cross = {"key": tokens + position, "padding_mask": padding_mask}
    assert_same(MultiHeadAttention(DIM, HEADS), query, tokens, **cross)
    hidden = torch.ones(QUERIES, TOKENS).tril().bool().logical_not()
    assert_same(MultiHeadAttention(DIM, HEADS), query, tokens, **cross, attention_mask=hidden)


def test_conditional_self_attention() -> None:
    content, position = tensors((BATCH, QUERIES, DIM), (BATCH, QUERIES, DIM))
    hidden = torch.eye(QUERIES).bool().logical_not().tril()
    for attention_mask in (None, hidden):
        assert_same(ConditionalSelfAttention(DIM, HEADS), content, position, attention_mask=attention_mask)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("padding_mask", [None, MASK], ids=["none", "padded"])
def test_conditional_cross_attention(first: bool, padding_mask: torch.Tensor | None) -> None:
    shapes = [(BATCH, QUERIES, DIM)] * 3 + [(BATCH, TOKENS, DIM)] * 2
    block = ConditionalCrossAttention(DIM, HEADS, first=first)
    assert_same(block, *tensors(*shapes), padding_mask=padding_mask)


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("padding_mask", [None, MASK], ids=["none", "padded"])
def test_deformable_attention(coordinates: int, padding_mask: torch.Tensor | None) -> None:
    query, memory = tensors((BATCH, QUERIES, DIM), (BATCH, TOKENS, DIM))
    reference = torch.rand(BATCH, QUERIES, len(SHAPES), coordinates, dtype=torch.float64)
    block = DeformableAttention(DIM, HEADS, len(SHAPES), 3)
    assert_same(block, query, memory, reference, SHAPES, padding_mask=padding_mask)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "prelu"])
def test_feed_forward(activation: str) -> None:
    [x] = tensors((BATCH, QUERIES, DIM))
    assert_same(FeedForward(DIM, 24, activation=activation), x)


def test_convolution() -> None:
    [x] = tensors((BATCH, DIM, 6, 5))
    assert_same(nn.Conv2d(DIM, 8, 1), x)
    assert_same(nn.Conv2d(DIM, 8, 3, stride=2, padding=1, bias=False), x)


def test_mlp_and_linear() -> None:
    [x] = tensors((3, BATCH, QUERIES, DIM))
    assert_same(MLP(DIM, 20, 4, 3), x)
    assert_same(nn.Linear(DIM, 7), x)
    assert_same(Linear(DIM, 7), x)
    assert_same(nn.Linear(DIM, 7, bias=False), x[..., ::2].repeat_interleave(2, dim=-1))


@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layer(norm_first: bool) -> None:
    """A layer with its norms before keeps its type; what is in it is swapped. Its input is not written to."""
    tokens, position = tensors((BATCH, TOKENS, DIM), (BATCH, TOKENS, DIM))
    block = disturbed(EncoderLayer(MultiHeadAttention(DIM, HEADS), DIM, 24, norm_first=norm_first)).double()
    wanted, before = block(tokens, position, padding_mask=MASK), tokens.clone()
    fused = stand_in(block, torch.float64)
    assert isinstance(fused, EncoderLayer if norm_first else FusedEncoderLayer)
    assert not [module for module in fused.modules() if type(module) in (MultiHeadAttention, FeedForward, nn.Linear)]
    torch.testing.assert_close(fused(tokens, position, padding_mask=MASK), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(tokens, before)


@torch.no_grad()
def test_products_in_bfloat16_give_back_the_type_that_came() -> None:
    [x] = tensors((BATCH, QUERIES, DIM))
    linear = disturbed(nn.Linear(DIM, 7))
    fused = stand_in(linear, torch.bfloat16)
    assert isinstance(fused, PackedLinear)
    given = fused(x.float())
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, linear(x.float()), rtol=0.03, atol=0.05)


def test_every_swapped_block_is_tested_here() -> None:
    """A block that joins the table needs its line above; trunks are held by the tests of folding and the catalogue."""
    assert {kind.__name__ for kind in SWAPS} == {
        "Backbone",
        "EncoderLayer",
        "MultiHeadAttention",
        "ConditionalSelfAttention",
        "ConditionalCrossAttention",
        "DeformableAttention",
        "FeedForward",
        "MLP",
        "Conv2d",
        "Linear",
    }


class Counted(nn.Module):
    """Twice the sum of what comes in, and how often it was asked."""

    calls = 0

    def forward(self, *inputs: torch.Tensor, hidden: torch.Tensor | None = None) -> torch.Tensor:
        self.calls += 1
        return sum(inputs, start=torch.zeros(())) * 2 + (0 if hidden is None else hidden)


def test_what_does_not_change_is_computed_once() -> None:
    block = Counted()
    remembered, (one, other) = Remembered(block), tensors((3, 4), (3, 4))
    for _ in range(3):
        torch.testing.assert_close(remembered(one, other), 2 * (one + other))
    assert block.calls == 1
    for given in ((other, other), (one[:2], other[:2]), (one.float(), other.float())):
        torch.testing.assert_close(remembered(*given), 2 * (given[0] + given[1]))
        assert remembered(*given).dtype == given[0].dtype
    assert block.calls == 4
    torch.testing.assert_close(remembered(one, other, hidden=one), 3 * one + 2 * other)
    assert block.calls == 5


def test_what_always_changes_is_no_longer_compared() -> None:
    block = Counted()
    remembered = Remembered(block)
    for number in range(6):
        assert remembered(torch.tensor(float(number))) == 2 * number
    remembered(torch.tensor(5.0))
    assert (block.calls, remembered._last) == (7, None)


@torch.no_grad()
def test_the_first_self_attention_of_a_decoder_is_computed_once() -> None:
    dense = DecoderLayer(MultiHeadAttention(DIM, HEADS), MultiHeadAttention(DIM, HEADS), DIM, 8)
    conditional = ConditionalDecoderLayer(
        ConditionalSelfAttention(DIM, HEADS), ConditionalCrossAttention(DIM, HEADS, first=True), DIM, 8
    )
    position, *memories = tensors((1, QUERIES, DIM), (1, TOKENS, DIM), (1, TOKENS, DIM))
    content, calls = torch.zeros_like(position), []
    for layer, sine in ((dense, ()), (conditional, (2 * position,))):
        layer = disturbed(layer.double())
        fused = stand_in(copy.deepcopy(layer), torch.float64)
        fused.get_submodule("self_attention.block").register_forward_hook(lambda *_: calls.append(1))
        for memory in memories:
            where = {"key" if layer is dense else "memory_position": memory.flip(1)}
            given, wanted = (each(content, position, *sine, memory, **where) for each in (fused, layer))
            torch.testing.assert_close(given, wanted)
    assert len(calls) == 2
