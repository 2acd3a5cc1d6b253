"""Deformable sampling on the CPU: loops compiled by Numba when first called, and kept on disk.

Values are read where they are, query by query: the heads of one query look at the same places, so what one head brings
into the cache, its neighbours use. Threads are our own and as many as torch's: they share out queries, and in the
backward pass heads and levels, so that no two write to the same place. The result does not depend on their number, and
nothing is shared that a forked process could wait for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

# Sums may be reordered, which lets them fill vector registers; not-a-numbers must still come through.
_compiled = numba.njit(
    nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz", "arcp"}, boundscheck=False
)
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
SMALLEST_SHARE = 2048
"""Points that are worth a thread of their own."""


def forward(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """The kernel of `detrove::sample_levels`."""
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    output = value.new_empty(batch, queries, heads, dim)
    arrays = (_array(value).reshape(-1, dim), *_levels(sizes), _array(locations), _array(weights), output.numpy())
    threads = _num_threads(weights.numel())
    shares = [(b, *block) for b in range(batch) for block in _blocks(queries, threads)]
    _share_out(_forward_queries, arrays, shares, threads)
    return output.flatten(2)


def backward(
    gradient: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of `detrove::sample_levels_backward`."""
    batch, _, heads, dim = value.shape
    of_value = torch.zeros_like(value, memory_format=torch.contiguous_format)
    of_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    of_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    arrays = (
        _array(value).reshape(-1, dim),
        *_levels(sizes),
        _array(locations),
        _array(weights),
        _array(gradient.unflatten(2, (heads, dim))),
        of_value.numpy().reshape(-1, dim),
        of_locations.numpy(),
        of_weights.numpy(),
    )
    levels, threads = len(sizes) // 2, _num_threads(weights.numel())
    # as few groups of heads as give every thread the same number of shares
    groups = _blocks(heads, threads // math.gcd(threads, batch * levels))
    shares = [(b, *group, level) for b in range(batch) for group in groups for level in range(levels)]
    _share_out(_backward_level, arrays, shares, threads)
    return of_value, of_locations, of_weights


def _levels(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths (S, 2), and where each level's tokens start (S,)."""
    shapes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    return shapes, np.cumsum(shapes[:, 0] * shapes[:, 1]) - shapes[:, 0] * shapes[:, 1]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _blocks(count: int, parts: int) -> list[tuple[int, int]]:
    """Where so many nearly equal parts begin and end; as many as there are at most, one at least."""
    parts = max(1, min(count, parts))
    return [(count * part // parts, count * (part + 1) // parts) for part in range(parts)]


def _num_threads(points: int) -> int:
    return max(1, min(torch.get_num_threads(), points // SMALLEST_SHARE))


def _share_out(kernel: Callable[..., None], arrays: tuple, shares: list[tuple], threads: int) -> None:
    """Run the kernel on every share, in this thread and in others."""
    threads = min(threads, len(shares))

    def work(first: int) -> None:
        for share in shares[first::threads]:
            kernel(*arrays, *share)

    others = [_pool(threads).submit(work, index) for index in range(1, threads)]
    work(0)
    for other in others:
        other.result()


def _pool(threads: int) -> ThreadPoolExecutor:
    """Waiting threads. After a fork the old ones are gone, so that each process has its own."""
    key = os.getpid(), threads
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(threads - 1, thread_name_prefix="detrove-sampling")
    return _pools[key]


@_compiled
def _forward_queries(value, shapes, starts, locations, weights, output, batch, first, last):
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
                height, width = shapes[level, 0], shapes[level, 1]
                across, down = value.dtype.type(width), value.dtype.type(height)
                origin = (batch * tokens + starts[level]) * heads + head
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


@_compiled
def _backward_level(
    value,
    shapes,
    starts,
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
    height, width = shapes[level, 0], shapes[level, 1]
    across, down = value.dtype.type(width), value.dtype.type(height)
    dots = np.zeros(4, dtype=value.dtype)
    for query in range(locations.shape[1]):
        for head in range(first_head, last_head):
            origin = (batch * tokens + starts[level]) * heads + head
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
