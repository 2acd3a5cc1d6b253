"""Deformable sampling on the CPU: loops compiled by Numba when first called, and kept on disk.

Each head's values are laid out together first, so that the four neighbours of a point are four short runs of memory.
Threads are our own and as many as torch's: they share out heads, levels and queries so that no two write to the same
place. The result does not depend on their number, and nothing is shared that a forked process could wait for.
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
    by_head, levels = value.transpose(1, 2).contiguous(), _levels(sizes)
    output = value.new_empty(batch, queries, heads, dim)
    arrays = (_array(by_head), *levels, _array(locations), _array(weights), output.numpy())
    threads = _num_threads(weights.numel())
    # blocks of queries as well as heads, so that many threads find work in a batch of one
    blocks = max(1, min(queries, -(-threads // (batch * heads))))
    bounds = [queries * index // blocks for index in range(blocks + 1)]
    shares = [(b, m, bounds[i], bounds[i + 1]) for b in range(batch) for m in range(heads) for i in range(blocks)]
    _share_out(_forward_head, arrays, shares, threads)
    return output.flatten(2)


def backward(
    gradient: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel of `detrove::sample_levels_backward`."""
    batch, _, heads, dim = value.shape
    by_head, levels = value.transpose(1, 2).contiguous(), _levels(sizes)
    of_value = torch.zeros_like(by_head)
    of_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    of_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    arrays = (
        _array(by_head),
        *levels,
        _array(locations),
        _array(weights),
        _array(gradient.unflatten(2, (heads, dim))),
        of_value.numpy(),
        of_locations.numpy(),
        of_weights.numpy(),
    )
    num_levels = len(sizes) // 2
    shares = [(b, m, s) for b in range(batch) for m in range(heads) for s in range(num_levels)]
    _share_out(_backward_level, arrays, shares, _num_threads(weights.numel()))
    return of_value.transpose(1, 2).contiguous(), of_locations, of_weights


def _levels(sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths (S, 2), and where each level's tokens start (S,)."""
    shapes = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    return shapes, np.cumsum(shapes[:, 0] * shapes[:, 1]) - shapes[:, 0] * shapes[:, 1]


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


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
def _forward_head(value, shapes, starts, locations, weights, output, batch, head, first, last):
    """Queries first to last of one head. `value` (B, M, T, d), `output` (B, Q, M, d), the others as in the operator."""
    dim = value.shape[3]
    half = value.dtype.type(0.5)
    one = value.dtype.type(1)
    for query in range(first, last):
        out = output[batch, query, head]
        for c in range(dim):
            out[c] = 0
        for level in range(locations.shape[3]):
            height, width = shapes[level, 0], shapes[level, 1]
            across, down = value.dtype.type(width), value.dtype.type(height)
            plane = value[batch, head, starts[level] : starts[level] + height * width]
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
                cell = i * width + j
                if i >= 0 and j >= 0 and i < height - 1 and j < width - 1:
                    weight_00, weight_01 = weight * above * left, weight * above * right
                    weight_10, weight_11 = weight * below * left, weight * below * right
                    value_00, value_01 = plane[cell], plane[cell + 1]
                    value_10, value_11 = plane[cell + width], plane[cell + width + 1]
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
                            neighbour = plane[row_of * width + column_of]
                            for c in range(dim):
                                out[c] += share * neighbour[c]


@_compiled
def _backward_level(
    value, shapes, starts, locations, weights, gradient, of_value, of_locations, of_weights, batch, head, level
):
    """All queries on one level of one head: the only writer of that level's `of_value` (B, M, T, d), zero before."""
    dim = value.shape[3]
    zero, half, one = value.dtype.type(0), value.dtype.type(0.5), value.dtype.type(1)
    height, width = shapes[level, 0], shapes[level, 1]
    across, down = value.dtype.type(width), value.dtype.type(height)
    plane = value[batch, head, starts[level] : starts[level] + height * width]
    of_plane = of_value[batch, head, starts[level] : starts[level] + height * width]
    dots = np.zeros(4, dtype=value.dtype)
    for query in range(locations.shape[1]):
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
            cell = i * width + j
            if i >= 0 and j >= 0 and i < height - 1 and j < width - 1:
                value_00, value_01 = plane[cell], plane[cell + 1]
                value_10, value_11 = plane[cell + width], plane[cell + width + 1]
                dot_00, dot_01, dot_10, dot_11 = zero, zero, zero, zero
                for c in range(dim):
                    dot_00 += out[c] * value_00[c]
                    dot_01 += out[c] * value_01[c]
                    dot_10 += out[c] * value_10[c]
                    dot_11 += out[c] * value_11[c]
                weight_00, weight_01 = weight * above * left, weight * above * right
                weight_10, weight_11 = weight * below * left, weight * below * right
                # two rows in two loops: with all four in one, too many arrays might overlap for it to be vectorised
                of_00, of_01 = of_plane[cell], of_plane[cell + 1]
                for c in range(dim):
                    of_00[c] += weight_00 * out[c]
                    of_01[c] += weight_01 * out[c]
                of_10, of_11 = of_plane[cell + width], of_plane[cell + width + 1]
                for c in range(dim):
                    of_10[c] += weight_10 * out[c]
                    of_11[c] += weight_11 * out[c]
            else:
                for corner in range(4):
                    row_of, column_of = i + corner // 2, j + corner % 2
                    dot = zero
                    if 0 <= row_of < height and 0 <= column_of < width:
                        share = weight * (below if corner // 2 else above) * (right if corner % 2 else left)
                        neighbour = plane[row_of * width + column_of]
                        of_neighbour = of_plane[row_of * width + column_of]
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
