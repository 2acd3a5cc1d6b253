"""What several tests of blocks compare with."""

from __future__ import annotations

import math

import pytest
import torch


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


def sample_by_loops(value, shapes, locations, weights):
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
def plain_sample_levels():
    """`sample_levels` as loops over batch, queries, heads, levels and points."""
    return sample_by_loops
