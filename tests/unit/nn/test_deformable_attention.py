"""Deformable sampling against a loop over points with its own bilinear interpolation."""

from __future__ import annotations

import math

import pytest
import torch

from detrove.nn.deformable_attention import DeformableAttention, sample_levels
from detrove.nn.recording import recording

SHAPES = [(4, 6), (2, 3)]
TOKENS = 4 * 6 + 2 * 3


def plain_sample(plane, x, y):
    """Bilinear value of a (h, w, d) plane at x, y in [0, 1], pixel centres at halves, zero outside."""
    height, width, _ = plane.shape
    column, row = x * width - 0.5, y * height - 0.5
    total = torch.zeros_like(plane[0, 0])
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < height and 0 <= j < width:
                total = total + (1 - abs(row - i)) * (1 - abs(column - j)) * plane[i, j]
    return total


def plain_sample_levels(value, shapes, locations, weights):
    batch, _, heads, dim = value.shape
    output = torch.zeros(batch, locations.shape[1], heads, dim, dtype=value.dtype)
    for b in range(batch):
        for q in range(locations.shape[1]):
            for m in range(heads):
                start = 0
                for s, (height, width) in enumerate(shapes):
                    plane = value[b, start : start + height * width, m].view(height, width, dim)
                    start += height * width
                    for p in range(locations.shape[4]):
                        x, y = locations[b, q, m, s, p].tolist()
                        output[b, q, m] += weights[b, q, m, s, p] * plain_sample(plane, x, y)
    return output.flatten(2)


@pytest.fixture
def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, TOKENS, 3, 2, generator=generator, dtype=torch.float64)
    locations = 1.6 * torch.rand(2, 5, 3, 2, 2, 2, generator=generator, dtype=torch.float64) - 0.3
    weights = torch.rand(2, 5, 3, 2, 2, generator=generator, dtype=torch.float64)
    return value, locations, weights


def test_sampling_as_by_loops(parts):
    value, locations, weights = parts
    assert (locations < 0).any()
    assert (locations > 1).any()
    expected = plain_sample_levels(value, SHAPES, locations, weights)
    torch.testing.assert_close(sample_levels(value, SHAPES, locations, weights), expected, rtol=0, atol=1e-10)


def test_gradients(parts):
    value, locations, weights = (part[:1, :, :2].clone() for part in parts)
    value, locations, weights = value[:, :, :1], locations[:, :2, :1], weights[:, :2, :1]
    inputs = tuple(part.detach().requires_grad_() for part in (value, locations, weights))
    torch.autograd.gradcheck(lambda v, x, w: sample_levels(v, SHAPES, x, w), inputs)


@pytest.fixture
def block() -> DeformableAttention:
    torch.manual_seed(0)
    block = DeformableAttention(12, 3, 2, 2).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return block


@pytest.mark.parametrize("coordinates", [2, 4])
def test_whole_block_as_by_loops(block, coordinates):
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
