"""Deformable sampling on CUDA in Triton, which compiles when first called and needs no build step.

One program for each query of each head: it holds the head's channels and walks over levels and points. Gradients of
values are added atomically, so their last bits may differ from run to run, as with the official CUDA kernel.
"""

# Kernels are written in Triton's language, which looks like Python and has other types.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def forward(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """The kernel of `detrove::sample_levels`."""
    batch, tokens, heads, dim = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    output = value.new_empty(batch, queries, heads, dim)
    if output.numel():
        _forward_kernel[(batch * queries * heads,)](
            value.contiguous(),
            _levels(sizes, value.device),
            locations.contiguous(),
            weights.contiguous(),
            output,
            tokens,
            queries,
            heads,
            dim,
            levels,
            points,
            triton.next_power_of_2(dim),
        )
    return output.flatten(2)


def backward(
    gradient: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of `detrove::sample_levels_backward`."""
    batch, tokens, heads, dim = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    of_value = torch.zeros_like(value, memory_format=torch.contiguous_format)
    of_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    of_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    if gradient.numel():
        _backward_kernel[(batch * queries * heads,)](
            value.contiguous(),
            _levels(sizes, value.device),
            locations.contiguous(),
            weights.contiguous(),
            gradient.contiguous(),
            of_value,
            of_locations,
            of_weights,
            tokens,
            queries,
            heads,
            dim,
            levels,
            points,
            triton.next_power_of_2(dim),
        )
    return of_value, of_locations, of_weights


def _levels(sizes: list[int], device: torch.device) -> Tensor:
    """Height, width and first token of every level, (S, 3) int64."""
    rows, start = [], 0
    for height, width in zip(sizes[::2], sizes[1::2], strict=True):
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int64).to(device, non_blocking=True)


@triton.jit
def _forward_kernel(
    value,
    levels,
    locations,
    weights,
    output,
    tokens,
    queries,
    heads,
    dim,
    num_levels: tl.constexpr,
    num_points: tl.constexpr,
    block: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)  # (batch, query, head)
    head, batch = program % heads, program // (queries * heads)
    channel = tl.arange(0, block)
    inside = channel < dim
    total = tl.zeros((block,), dtype=value.dtype.element_ty)
    for level in range(num_levels):
        height = tl.load(levels + 3 * level)
        width = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        plane = value + ((batch * tokens + start) * heads + head) * dim
        for point in range(num_points):
            place = (program * num_levels + level) * num_points + point
            x = tl.load(locations + 2 * place) * width - 0.5
            y = tl.load(locations + 2 * place + 1) * height - 0.5
            weight = tl.load(weights + place)
            column, row = tl.floor(x), tl.floor(y)
            right, below = x - column, y - row
            for corner in tl.static_range(4):
                i = row.to(tl.int64) + corner // 2
                j = column.to(tl.int64) + corner % 2
                share = (below if corner // 2 else 1 - below) * (right if corner % 2 else 1 - right)
                known = channel < tl.where((i >= 0) & (i < height) & (j >= 0) & (j < width), dim, 0)
                neighbour = tl.load(plane + (i * width + j) * heads * dim + channel, mask=known, other=0.0)
                total += (weight * share).to(total.dtype) * neighbour
    tl.store(output + program * dim + channel, total, mask=inside)


@triton.jit
def _backward_kernel(
    value,
    levels,
    locations,
    weights,
    gradient,
    of_value,
    of_locations,
    of_weights,
    tokens,
    queries,
    heads,
    dim,
    num_levels: tl.constexpr,
    num_points: tl.constexpr,
    block: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)  # (batch, query, head)
    head, batch = program % heads, program // (queries * heads)
    channel = tl.arange(0, block)
    inside = channel < dim
    out = tl.load(gradient + program * dim + channel, mask=inside, other=0.0)
    for level in range(num_levels):
        height = tl.load(levels + 3 * level)
        width = tl.load(levels + 3 * level + 1)
        start = tl.load(levels + 3 * level + 2)
        first = ((batch * tokens + start) * heads + head) * dim
        for point in range(num_points):
            place = (program * num_levels + level) * num_points + point
            x = tl.load(locations + 2 * place) * width - 0.5
            y = tl.load(locations + 2 * place + 1) * height - 0.5
            weight = tl.load(weights + place)
            column, row = tl.floor(x), tl.floor(y)
            right, below = x - column, y - row
            of_weight, of_x, of_y = weight * 0, weight * 0, weight * 0
            for corner in tl.static_range(4):
                i = row.to(tl.int64) + corner // 2
                j = column.to(tl.int64) + corner % 2
                down = below if corner // 2 else 1 - below
                across = right if corner % 2 else 1 - right
                known = channel < tl.where((i >= 0) & (i < height) & (j >= 0) & (j < width), dim, 0)
                cell = first + (i * width + j) * heads * dim + channel
                neighbour = tl.load(value + cell, mask=known, other=0.0)
                dot = tl.sum(out * neighbour)
                of_weight += down * across * dot
                of_x += (down if corner % 2 else -down) * dot
                of_y += (across if corner // 2 else -across) * dot
                tl.atomic_add(of_value + cell, (weight * down * across).to(out.dtype) * out, mask=known)
            tl.store(of_weights + place, of_weight)
            tl.store(of_locations + 2 * place, weight * width * of_x)
            tl.store(of_locations + 2 * place + 1, weight * height * of_y)
