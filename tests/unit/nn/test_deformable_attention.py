"""The block around deformable sampling, whose own loop is `plain_sample_levels`."""

from __future__ import annotations

import pytest
import torch

from detrove.nn.deformable_attention import DeformableAttention
from detrove.nn.recording import recording

SHAPES = [(4, 6), (2, 3)]
TOKENS = 4 * 6 + 2 * 3


@pytest.fixture
def block() -> DeformableAttention:
    torch.manual_seed(0)
    block = DeformableAttention(12, 3, 2, 2).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return block


@pytest.mark.parametrize("coordinates", [2, 4])
def test_whole_block_as_by_loops(block, coordinates, plain_sample_levels):
    query = torch.randn(2, 5, 12, dtype=torch.float64)
    memory = torch.randn(2, TOKENS, 12, dtype=torch.float64)
    reference = torch.rand(2, 5, 2, coordinates, dtype=torch.float64)
    padding_mask = torch.zeros(2, TOKENS, dtype=torch.bool)
    padding_mask[1, 20:24] = True

    value = block.value_proj(memory)
    value[padding_mask] = 0
    offsets = block.sampling_offsets(query).view(2, 5, 3, 2, 2, 2)
    weights = block.attention_weights(query).view(2, 5, 3, 4).softmax(dim=-1).view(2, 5, 3, 2, 2)
    locations = torch.zeros_like(offsets)
    for s, (height, width) in enumerate(SHAPES):
        for m in range(3):
            for p in range(2):
                for axis, cells in enumerate((width, height)):
                    step = offsets[:, :, m, s, p, axis]
                    step = step / cells if coordinates == 2 else step / 2 * reference[:, :, s, 2 + axis] / 2
                    locations[:, :, m, s, p, axis] = reference[:, :, s, axis] + step
    expected = block.output_proj(plain_sample_levels(value.view(2, TOKENS, 3, 4), SHAPES, locations, weights))

    with recording(block) as recorder:
        output = block(query, memory, reference, SHAPES, padding_mask)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10)
    (seen,) = recorder.sampled
    torch.testing.assert_close(seen.locations, locations)
    torch.testing.assert_close(seen.weights.sum(dim=(-2, -1)), torch.ones(2, 5, 3, dtype=torch.float64))
    assert (seen.value[1, 20:24] == 0).all()


def test_starts_on_a_ring():
    block = DeformableAttention(32, 8, 3, 4)
    offsets = block.sampling_offsets.bias.detach().view(8, 3, 4, 2)
    # eight heads on the edge of a square, the p-th point p + 1 cells out
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(directions):
        for level in range(3):
            for point in range(4):
                expected = torch.tensor(direction, dtype=torch.float32) * (point + 1)
                torch.testing.assert_close(offsets[head, level, point], expected, rtol=0, atol=1e-5)
    assert not block.sampling_offsets.weight.any()
    assert not block.attention_weights.weight.any()
    assert not block.attention_weights.bias.any()
