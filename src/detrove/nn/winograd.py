"""3×3 convolutions by a quarter of the multiplications: Winograd's F(4×4, 3×3) (Lavin & Gray 2016, arXiv:1509.09308).

A tile of 4×4 outputs is seen as coefficients of a product of polynomials: 6×6 inputs and the 3×3 filter are evaluated
at 6 points along each side, multiplied there, and the outputs interpolated from the 36 products. Summed over channels
these are 36 matrix products, which oneDNN computes as one convolution of 36 groups. Rounding is about five times that
of the plain sum in float32 (root mean square; oneDNN's own is two to three times it) at the points 0, ±√½, ±√2 and
infinity, half of what it is at the usual 0, ±1, ±2 and infinity.

Against oneDNN's convolution with the same bias and ReLU, two cores of a Zen 4 (`benchmarks/winograd.py`): 1.2 to 1.3
times as fast at 128 channels, 1.6 at 256, 1.2 to 2.2 at 512, slower at 64. The filters take four times the
memory of the weight.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from detrove.nn.numba_loops import array_at, compiled, loop, next_share, run

OUTPUTS, POINTS = 4, 6
"""Of a tile, along each side."""
CHANNELS = 16
"""Channels that are computed together: a vector register or two."""
TILES_AT_ONCE = 64
"""So many are evaluated, multiplied and interpolated while they are in the cache. The number is always the same: oneDNN
lays filters out by it, and finding them laid out otherwise takes it longer than the product."""
TILES_A_SHARE = 4
FEWEST_CHANNELS, FEWEST_TILES = 128, TILES_AT_ONCE // 2
"""Below, evaluation and interpolation, or tiles computed in vain, cost what multiplication saves."""

_A, _B = math.sqrt(0.5), math.sqrt(2.0)
_AA, _BB = 0.5, 2.0
_ROW = POINTS * CHANNELS


def pays(shape: tuple[int, ...], x: Tensor) -> bool:
    """Whether a 3×3 convolution of stride 1 and this shape (C', C, 3, 3) is faster so on this map (B, C, h, w)."""
    wide = all(n >= FEWEST_CHANNELS and n % CHANNELS == 0 for n in shape[:2])
    return wide and x.dtype == torch.float32 and count_tiles(x) >= FEWEST_TILES


def count_tiles(x: Tensor) -> int:
    """Of a map (B, C, h, w)."""
    return x.shape[0] * -(-x.shape[2] // OUTPUTS) * -(-x.shape[3] // OUTPUTS)


class WinogradConvolution:
    """A 3×3 convolution of stride 1 with one cell of zeros around the map, and its bias; float32, for answering only.

    `weight` (C', C, 3, 3), `bias` (C',); C and C' are multiples of `CHANNELS`.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.bias = bias.detach().contiguous()
        self.channels = weight.shape[1]
        self._geometry = ([0, 0], [1, 1], [1, 1], POINTS * POINTS)
        shape = [1, POINTS * POINTS * self.channels, TILES_AT_ONCE, 1]
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # pyright: ignore[reportAttributeAccessIssue]
        self._filters = reorder(filters_at_points(weight).to_mkldnn(), *self._geometry, shape)

    def __call__(self, x: Tensor, relu: bool = False) -> Tensor:
        """(B, C, h, w) to (B, C', h, w), channels last; negative values become zero if `relu`."""
        x = x.contiguous(memory_format=torch.channels_last)
        batch, _, height, width = x.shape
        output = x.new_empty(batch, height, width, len(self.bias)).permute(0, 3, 1, 2)
        across, tiles, threads = -(-width // OUTPUTS), count_tiles(x), torch.get_num_threads()
        values = x.new_zeros(TILES_AT_ONCE, POINTS * POINTS * self.channels)
        for first in range(0, tiles, TILES_AT_ONCE):
            number = min(tiles - first, TILES_AT_ONCE)
            where = [height, width, across, tiles // batch, first, number]
            run(_evaluate, [*where, self.channels, x.data_ptr(), values.data_ptr()], threads)
            products = self._multiply(values)
            places = [products.data_ptr(), output.data_ptr(), self.bias.data_ptr()]
            run(_interpolate, [*where, len(self.bias), *places, int(relu)], threads)
        return output

    def _multiply(self, values: Tensor) -> Tensor:
        """Values (N, 36 C) by the filters' at the same points, summed over channels: (1, N, 1, 36 C')."""
        pixels = values[None, :, None].permute(0, 3, 1, 2)  # every tile a pixel, channels last
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(pixels, self._filters, None, *self._geometry, "none", [], "").permute(0, 2, 3, 1)


def filters_at_points(weight: Tensor) -> Tensor:
    """Filters (C', C, 3, 3) at the points, computed in float64: (36 C', C, 1, 1)."""
    rows = torch.tensor(_FILTER, dtype=torch.float64, device=weight.device)
    out, channels = weight.shape[:2]
    values = weight.new_empty(POINTS, POINTS, out, channels)
    for row, across in zip(rows, values, strict=True):  # one at a time, as all of them in float64 are large
        across.copy_(torch.einsum("i,bj,ocij->boc", row, rows, weight.detach().double()))
    return values.view(-1, channels, 1, 1)


def _filter_rows() -> list[list[float]]:
    """What takes three coefficients to a polynomial's values at the points, over what interpolation divides by."""
    divisors = [_AA * _BB, *[2 * _AA * (_AA - _BB)] * 2, *[2 * _BB * (_BB - _AA)] * 2]
    rows = [[p**k / d for k in range(3)] for p, d in zip((0.0, _A, -_A, _B, -_B), divisors, strict=True)]
    return [*rows, [0.0, 0.0, 1.0]]


_FILTER = _filter_rows()

# as constants of the compiled loops
_a, _b, _aa, _bb = (np.float32(value) for value in (_A, _B, _AA, _BB))
_aabb, _aa_bb = np.float32(_AA * _BB), np.float32(_AA + _BB)
_aaa, _bbb, _abb, _aab = (np.float32(value) for value in (_A * _AA, _B * _BB, _A * _BB, _AA * _B))
_zero = np.float32(0)

inlined = partial(compiled, inline=True)


@inlined
def _copy(source, start, target, to):
    """`CHANNELS` numbers; unsigned indices, as signed ones might count from the end."""
    for c in range(CHANNELS):
        target[np.uintp(to) + np.uintp(c)] = source[np.uintp(start) + np.uintp(c)]


@inlined
def _clear(target, to):
    for c in range(CHANNELS):
        target[np.uintp(to) + np.uintp(c)] = _zero


@inlined
def _evaluate_six(tile, start, step):
    """Six vectors of `CHANNELS` inputs, `step` apart, to their values at the points, in place."""
    for c in range(start, start + CHANNELS):
        x1, x2, x3, x4 = tile[c + step], tile[c + 2 * step], tile[c + 3 * step], tile[c + 4 * step]
        tile[c] = _aabb * tile[c] - _aa_bb * x2 + x4
        even, odd = x4 - _bb * x2, _a * x3 - _abb * x1
        tile[c + step] = even + odd
        tile[c + 2 * step] = even - odd
        even, odd = x4 - _aa * x2, _b * x3 - _aab * x1
        tile[c + 3 * step] = even + odd
        tile[c + 4 * step] = even - odd
        tile[c + 5 * step] = tile[c + 5 * step] - _aa_bb * x3 + _aabb * x1


@compiled
def _evaluate_tile(pixels, height, width, channels, of_picture, across, place, tile, values, index):
    picture, in_picture = place // of_picture, place % of_picture
    top, left = in_picture // across * OUTPUTS - 1, in_picture % across * OUTPUTS - 1
    for channel in range(0, channels, CHANNELS):
        for i in range(POINTS):
            row = top + i
            for j in range(POINTS):
                column = left + j
                to = i * _ROW + j * CHANNELS
                if row >= 0 and row < height and column >= 0 and column < width:
                    _copy(pixels, ((picture * height + row) * width + column) * channels + channel, tile, to)
                else:
                    _clear(tile, to)
        for j in range(POINTS):
            _evaluate_six(tile, j * CHANNELS, _ROW)
        for i in range(POINTS):
            _evaluate_six(tile, i * _ROW, CHANNELS)
        for point in range(POINTS * POINTS):
            _copy(tile, point * CHANNELS, values, (index * POINTS * POINTS + point) * channels + channel)


@loop
def _evaluate(at):
    """Tiles of the map (B, h, w, C) to values (N, 36, C), `first` on."""
    height, width, across, of_picture, first, number, channels = at[1], at[2], at[3], at[4], at[5], at[6], at[7]
    batch = (first + number + of_picture - 1) // of_picture  # as far as is read
    pixels = array_at(at[8], (batch * height * width * channels,), numba.float32)
    values = array_at(at[9], (number * POINTS * POINTS * channels,), numba.float32)
    tile = np.empty(POINTS * POINTS * CHANNELS, np.float32)
    share = next_share(at) * TILES_A_SHARE
    while share < number:
        for index in range(share, min(share + TILES_A_SHARE, number)):
            _evaluate_tile(pixels, height, width, channels, of_picture, across, first + index, tile, values, index)
        share = next_share(at) * TILES_A_SHARE


@inlined
def _interpolate_four(tile, start, step):
    """Six vectors of products, `step` apart, to four outputs, in place of the first four."""
    for c in range(start, start + CHANNELS):
        m1, m2, m3, m4 = tile[c + step], tile[c + 2 * step], tile[c + 3 * step], tile[c + 4 * step]
        sum_a, difference_a, sum_b, difference_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
        last = tile[c + 5 * step]
        tile[c] = tile[c] + sum_a + sum_b
        tile[c + step] = _a * difference_a + _b * difference_b
        tile[c + 2 * step] = _aa * sum_a + _bb * sum_b
        tile[c + 3 * step] = _aaa * difference_a + _bbb * difference_b + last


@inlined
def _finish(tile, start, bias, channel, least, output, to):
    for c in range(CHANNELS):
        value = tile[np.uintp(start) + np.uintp(c)] + bias[np.uintp(channel) + np.uintp(c)]
        output[np.uintp(to) + np.uintp(c)] = value if value > least or value != value else least


@compiled
def _interpolate_tile(products, index, tile, bias, least, height, width, channels, of_picture, across, place, output):
    picture, in_picture = place // of_picture, place % of_picture
    top, left = in_picture // across * OUTPUTS, in_picture % across * OUTPUTS
    for channel in range(0, channels, CHANNELS):
        for point in range(POINTS * POINTS):
            _copy(products, (index * POINTS * POINTS + point) * channels + channel, tile, point * CHANNELS)
        for j in range(POINTS):
            _interpolate_four(tile, j * CHANNELS, _ROW)
        for i in range(min(OUTPUTS, height - top)):
            _interpolate_four(tile, i * _ROW, CHANNELS)
            for j in range(min(OUTPUTS, width - left)):
                cell = ((picture * height + top + i) * width + left + j) * channels + channel
                _finish(tile, i * _ROW + j * CHANNELS, bias, channel, least, output, cell)


@loop
def _interpolate(at):
    """Products (N, 36, C') to tiles of the map (B, h, w, C'), `first` on; with bias, negatives as zero if asked."""
    height, width, across, of_picture, first, number, channels = at[1], at[2], at[3], at[4], at[5], at[6], at[7]
    batch = (first + number + of_picture - 1) // of_picture
    products = array_at(at[8], (number * POINTS * POINTS * channels,), numba.float32)
    output = array_at(at[9], (batch * height * width * channels,), numba.float32)
    bias = array_at(at[10], (channels,), numba.float32)
    least = _zero if at[11] else np.float32(-np.inf)
    tile = np.empty(POINTS * POINTS * CHANNELS, np.float32)
    share = next_share(at) * TILES_A_SHARE
    while share < number:
        for index in range(share, min(share + TILES_A_SHARE, number)):
            place = first + index
            _interpolate_tile(
                products, index, tile, bias, least, height, width, channels, of_picture, across, place, output
            )
        share = next_share(at) * TILES_A_SHARE
