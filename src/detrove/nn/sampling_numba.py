"""Deformable sampling on the CPU: loops compiled by Numba when first called, and kept on disk.

Values are read where they are, query by query: the heads of one query look at the same places, so what one head brings
into the cache, its neighbours use. Threads are torch's own (`numba_loops`): they share out queries, and in the backward
pass heads and levels, so that no two write to the same place. The result does not depend on their number.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from detrove.nn.numba_loops import array_at, compiled, loop, next_share, run

SMALLEST_SHARE = 2048
"""Points that are worth a thread of their own."""
SHARES_A_THREAD = 4
"""Blocks of queries for each thread, so that one that is held up leaves some to the others."""


def forward(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """The kernel of `detrove::sample_levels`."""
    value, locations, weights = (tensor.detach().contiguous() for tensor in (value, locations, weights))
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    output = value.new_empty(batch, queries, heads, dim)
    threads = _num_threads(weights.numel())
    block = max(1, -(-queries // max(1, threads * SHARES_A_THREAD // max(1, batch))))
    levels = _levels(sizes)
    tensors = (value, locations, weights, output)
    run(_forward_loop(value.dtype), _numbers(tensors, levels, value, locations, block), threads)
    return output.flatten(2)


def backward(
    gradient: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of `detrove::sample_levels_backward`."""
    gradient, value, locations, weights = (
        tensor.detach().contiguous() for tensor in (gradient, value, locations, weights)
    )
    of_value = torch.zeros_like(value)
    of_locations, of_weights = torch.empty_like(locations), torch.empty_like(weights)
    batch, _, heads, _ = value.shape
    levels, threads = _levels(sizes), _num_threads(weights.numel())
    # as few groups of heads as give every thread the same number of shares
    groups = min(heads, threads // math.gcd(threads, batch * len(levels)))
    tensors = (value, locations, weights, gradient, of_value, of_locations, of_weights)
    run(_backward_loop(value.dtype), _numbers(tensors, levels, value, locations, groups), threads)
    return of_value, of_locations, of_weights


def _levels(sizes: list[int]) -> np.ndarray:
    """Height, width and first token of each level, (S, 3)."""
    shapes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    cells = shapes[:, 0] * shapes[:, 1]
    return np.column_stack((shapes, np.cumsum(cells) - cells))


def _numbers(
    tensors: tuple[Tensor, ...], levels: np.ndarray, value: Tensor, locations: Tensor, parts: int
) -> list[int]:
    """What a loop needs to know: sizes, in how many parts it is shared out, and where everything lies."""
    batch, tokens, heads, dim = value.shape
    sizes = [batch, tokens, heads, dim, locations.shape[1], len(levels), locations.shape[4], parts]
    return [*sizes, levels.ctypes.data, *(tensor.data_ptr() for tensor in tensors)]


def _num_threads(points: int) -> int:
    return max(1, min(torch.get_num_threads(), points // SMALLEST_SHARE))


@cache
def _forward_loop(dtype: torch.dtype) -> Any:
    """Shares are blocks of queries of one picture."""
    number = {torch.float32: numba.float32, torch.float64: numba.float64}[dtype]

    @loop
    def take(at):
        batch, tokens, heads, dim, queries, num_levels, points, block = (
            at[1],
            at[2],
            at[3],
            at[4],
            at[5],
            at[6],
            at[7],
            at[8],
        )
        levels = array_at(at[9], (num_levels, 3), numba.int64)
        value = array_at(at[10], (batch * tokens * heads, dim), number)
        locations = array_at(at[11], (batch, queries, heads, num_levels, points, 2), number)
        weights = array_at(at[12], (batch, queries, heads, num_levels, points), number)
        output = array_at(at[13], (batch, queries, heads, dim), number)
        blocks = (queries + block - 1) // block
        share = next_share(at)
        while share < batch * blocks:
            first = share % blocks * block
            _forward_queries(
                value, levels, locations, weights, output, share // blocks, first, min(first + block, queries)
            )
            share = next_share(at)

    return take


@cache
def _backward_loop(dtype: torch.dtype) -> Any:
    """Shares are a level and a group of heads of one picture."""
    number = {torch.float32: numba.float32, torch.float64: numba.float64}[dtype]

    @loop
    def take(at):
        batch, tokens, heads, dim, queries, num_levels, points, groups = (
            at[1],
            at[2],
            at[3],
            at[4],
            at[5],
            at[6],
            at[7],
            at[8],
        )
        levels = array_at(at[9], (num_levels, 3), numba.int64)
        value = array_at(at[10], (batch * tokens * heads, dim), number)
        locations = array_at(at[11], (batch, queries, heads, num_levels, points, 2), number)
        weights = array_at(at[12], (batch, queries, heads, num_levels, points), number)
        gradient = array_at(at[13], (batch, queries, heads, dim), number)
        of_value = array_at(at[14], (batch * tokens * heads, dim), number)
        of_locations = array_at(at[15], (batch, queries, heads, num_levels, points, 2), number)
        of_weights = array_at(at[16], (batch, queries, heads, num_levels, points), number)
        share = next_share(at)
        while share < batch * groups * num_levels:
            picture, group, level = share // (groups * num_levels), share // num_levels % groups, share % num_levels
            _backward_level(
                value,
                levels,
                locations,
                weights,
                gradient,
                of_value,
                of_locations,
                of_weights,
                picture,
                heads * group // groups,
                heads * (group + 1) // groups,
                level,
            )
            share = next_share(at)

    return take


@compiled
def _forward_queries(value, levels, locations, weights, output, batch, first, last):
    """Queries first to last. `value` (B · T · M, d), `output` (B, Q, M, d), the others as in the operator."""
    heads, dim = output.shape[2], output.shape[3]
    tokens = value.shape[0] // (output.shape[0] * heads)
    half = value.dtype.type(0.5)
    one = value.dtype.type(1)
    for query in range(first, last):
        for head in range(heads):
            out = output[batch, query, head]
            for c in range(dim):
                out[c] = 0
            for level in range(locations.shape[3]):
                height, width, start = levels[level, 0], levels[level, 1], levels[level, 2]
                across, down = value.dtype.type(width), value.dtype.type(height)
                origin = (batch * tokens + start) * heads + head
                for point in range(locations.shape[4]):
                    x = locations[batch, query, head, level, point, 0] * across - half
                    y = locations[batch, query, head, level, point, 1] * down - half
                    weight = weights[batch, query, head, level, point]
                    if not (x > -1 and y > -1 and x < across and y < down):
                        if weight != weight:  # not a number, and not to be lost
                            for c in range(dim):
                                out[c] = weight
                        continue
                    column, row = math.floor(x), math.floor(y)
                    right, below = x - column, y - row
                    left, above = one - right, one - below
                    i, j = int(row), int(column)
                    if i >= 0 and j >= 0 and i < height - 1 and j < width - 1:
                        cell = origin + (i * width + j) * heads
                        beneath = cell + width * heads
                        weight_00, weight_01 = weight * above * left, weight * above * right
                        weight_10, weight_11 = weight * below * left, weight * below * right
                        value_00, value_01 = value[cell], value[cell + heads]
                        value_10, value_11 = value[beneath], value[beneath + heads]
                        for c in range(dim):
                            out[c] += (
                                weight_00 * value_00[c]
                                + weight_01 * value_01[c]
                                + weight_10 * value_10[c]
                                + weight_11 * value_11[c]
                            )
                    else:
                        for corner in range(4):
                            row_of, column_of = i + corner // 2, j + corner % 2
                            if 0 <= row_of < height and 0 <= column_of < width:
                                share = weight * (below if corner // 2 else above) * (right if corner % 2 else left)
                                neighbour = value[origin + (row_of * width + column_of) * heads]
                                for c in range(dim):
                                    out[c] += share * neighbour[c]


@compiled
def _backward_level(
    value,
    levels,
    locations,
    weights,
    gradient,
    of_value,
    of_locations,
    of_weights,
    batch,
    first_head,
    last_head,
    level,
):
    """All queries of some heads on one level: the only writer of their rows of `of_value` (as `value`), zero before."""
    heads, dim = gradient.shape[2], gradient.shape[3]
    tokens = value.shape[0] // (gradient.shape[0] * heads)
    zero, half, one = value.dtype.type(0), value.dtype.type(0.5), value.dtype.type(1)
    height, width, start = levels[level, 0], levels[level, 1], levels[level, 2]
    across, down = value.dtype.type(width), value.dtype.type(height)
    dots = np.zeros(4, dtype=value.dtype)
    for query in range(locations.shape[1]):
        for head in range(first_head, last_head):
            origin = (batch * tokens + start) * heads + head
            out = gradient[batch, query, head]
            for point in range(locations.shape[4]):
                x = locations[batch, query, head, level, point, 0] * across - half
                y = locations[batch, query, head, level, point, 1] * down - half
                weight = weights[batch, query, head, level, point]
                if not (x > -1 and y > -1 and x < across and y < down):
                    of_locations[batch, query, head, level, point, 0] = zero
                    of_locations[batch, query, head, level, point, 1] = zero
                    of_weights[batch, query, head, level, point] = zero
                    continue
                column, row = math.floor(x), math.floor(y)
                right, below = x - column, y - row
                left, above = one - right, one - below
                i, j = int(row), int(column)
                if i >= 0 and j >= 0 and i < height - 1 and j < width - 1:
                    cell = origin + (i * width + j) * heads
                    beneath = cell + width * heads
                    value_00, value_01 = value[cell], value[cell + heads]
                    value_10, value_11 = value[beneath], value[beneath + heads]
                    dot_00, dot_01, dot_10, dot_11 = zero, zero, zero, zero
                    for c in range(dim):
                        dot_00 += out[c] * value_00[c]
                        dot_01 += out[c] * value_01[c]
                        dot_10 += out[c] * value_10[c]
                        dot_11 += out[c] * value_11[c]
                    weight_00, weight_01 = weight * above * left, weight * above * right
                    weight_10, weight_11 = weight * below * left, weight * below * right
                    # two rows in two loops: with all four in one, too many arrays might overlap for it to be vectorised
                    of_00, of_01 = of_value[cell], of_value[cell + heads]
                    for c in range(dim):
                        of_00[c] += weight_00 * out[c]
                        of_01[c] += weight_01 * out[c]
                    of_10, of_11 = of_value[beneath], of_value[beneath + heads]
                    for c in range(dim):
                        of_10[c] += weight_10 * out[c]
                        of_11[c] += weight_11 * out[c]
                else:
                    for corner in range(4):
                        row_of, column_of = i + corner // 2, j + corner % 2
                        dot = zero
                        if 0 <= row_of < height and 0 <= column_of < width:
                            share = weight * (below if corner // 2 else above) * (right if corner % 2 else left)
                            row_index = origin + (row_of * width + column_of) * heads
                            neighbour, of_neighbour = value[row_index], of_value[row_index]
                            for c in range(dim):
                                dot += out[c] * neighbour[c]
                            for c in range(dim):
                                of_neighbour[c] += share * out[c]
                        dots[corner] = dot
                    dot_00, dot_01, dot_10, dot_11 = dots[0], dots[1], dots[2], dots[3]
                of_weights[batch, query, head, level, point] = above * (left * dot_00 + right * dot_01) + below * (
                    left * dot_10 + right * dot_11
                )
                of_locations[batch, query, head, level, point, 0] = (
                    weight * across * (above * (dot_01 - dot_00) + below * (dot_11 - dot_10))
                )
                of_locations[batch, query, head, level, point, 1] = (
                    weight * down * (left * (dot_10 - dot_00) + right * (dot_11 - dot_01))
                )
