"""The four tensors of attention as images in the picture's own layout: Q, K, V per head, and A as a grid of grids.

After Stacked DETR's question: what do several heads add in an encoder over pixels? It is answered by looking, and by
numbers: how wide, how far and how differently the heads look, and what several of them cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detrove.nn.attention import explicit_attention
from detrove.study.record import Recording


@dataclass(frozen=True)
class QKVAGrid:
    """One dense attention block over the cells of a map, heads M, queries N (in an encoder: the cells themselves).

    `key`, `value` (M, h, w, d); `query` (M, h, w, d) in an encoder, (M, N, d) in a decoder; `attention` (M, N, h, w):
    where each query looks, every map summing to 1.
    """

    name: str
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    attention: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the map."""
        return self.key.shape[1], self.key.shape[2]

    @property
    def num_heads(self) -> int:
        """M."""
        return self.key.shape[0]

    def looks(self, index: int, head: int | None = None) -> np.ndarray:
        """Where one query (or the cell of that number, row by row) looks: (h, w), of a head, or the heads' mean."""
        maps = self.attention[:, index]
        return maps.mean(axis=0) if head is None else maps[head]

    def cell_at(self, x: float, y: float) -> int:
        """The number of the cell at x, y in [0, 1] of the picture."""
        height, width = self.shape
        return min(int(y * height), height - 1) * width + min(int(x * width), width - 1)


def qkva_grid(seen: Recording, name: str, picture: int = 0) -> QKVAGrid:
    """The grid of a recorded dense block that looks at a map: an encoder's self-, a decoder's cross-attention."""
    entry, (height, width) = seen.dense[name], seen.shape_of(name)

    def as_map(x: Tensor) -> np.ndarray:
        return x[picture].float().unflatten(1, (height, width)).numpy(force=True)

    query = entry.query[picture].float().numpy(force=True)
    if ".cross_attention" not in name:
        query = as_map(entry.query)
    attention = entry.attention[picture].float().unflatten(-1, (height, width)).numpy(force=True)
    return QKVAGrid(name, query, as_map(entry.key), as_map(entry.value), attention)


@dataclass(frozen=True)
class PrincipalColours:
    """`colours` (M, h, w, 3) RGB in [0, 1]; `explained` (M, 3): the share of the variance each component holds."""

    colours: np.ndarray
    explained: np.ndarray


def principal_colours(maps: np.ndarray) -> PrincipalColours:
    """The three leading principal components of every head's vectors (M, h, w, d) as one colour a cell.

    The first component is lightness, the second runs from blue to yellow, the third from green to red: so the first two
    can be told apart by people who do not see red and green apart, and the first one in grey. Cells of like colour have
    like vectors; which end of a component is light is arbitrary, and fixed by the side of its longer tail.
    """
    colours, explained = [], []
    for vectors in maps.reshape(len(maps), -1, maps.shape[-1]).astype(np.float64):
        centred = vectors - vectors.mean(axis=0)
        left, size, _ = np.linalg.svd(centred, full_matrices=False)
        components = _three(left * size)
        components *= np.where((components**3).sum(axis=0) < 0, -1.0, 1.0)
        spread = np.percentile(np.abs(components), 98, axis=0)
        relative = np.clip(components / np.maximum(spread, 1e-6 * spread[0] + 1e-12), -1, 1)
        lightness, yellow, red = relative.T
        lab = np.stack((0.6 + 0.32 * lightness, 0.10 * red, 0.14 * yellow), axis=-1)
        colours.append(_oklab_to_rgb(lab).reshape(*maps.shape[1:3], 3))
        explained.append(_three((size**2 / max(float((size**2).sum()), 1e-30))[None])[0])
    return PrincipalColours(np.stack(colours).astype(np.float32), np.stack(explained).astype(np.float32))


def _three(columns: np.ndarray) -> np.ndarray:
    """The first three columns, zeros where there are fewer."""
    return np.pad(columns[:, :3], ((0, 0), (0, max(0, 3 - columns.shape[1]))))


def _oklab_to_rgb(lab: np.ndarray) -> np.ndarray:
    """OKLab (..., 3) to sRGB in [0, 1] (Ottosson 2020, "A perceptual color space for image processing")."""
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(((lab @ to_lms.T) ** 3) @ to_rgb.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@dataclass(frozen=True)
class HeadNumbers:
    """How the heads of one block look, each averaged over its queries.

    `entropy` (M,) in [0, 1]: 0 looks at one cell, 1 at all alike; `distance` (M,): how far away, in longer sides of the
    picture, and `even_distance`, what looking at all alike would give; `overlap` (M, M): the share of two heads'
    attention that falls on the same cells; `disagreement` in [0, 1]: 0 where all heads look alike, 1 where no two look
    at the same cell (their Jensen-Shannon divergence by its largest value).
    """

    entropy: np.ndarray
    distance: np.ndarray
    even_distance: float
    overlap: np.ndarray
    disagreement: float


def head_numbers(grid: QKVAGrid, centres: np.ndarray | None = None) -> HeadNumbers:
    """The numbers of a block; `centres` (N, 2) are x, y in [0, 1] where its queries stand, by default the cells'."""
    height, width = grid.shape
    attention = torch.from_numpy(grid.attention).flatten(2)  # (M, N, T)
    cells = cell_centres(height, width)
    sides = np.array([width, height]) / max(height, width)
    start = cells if centres is None else centres
    apart = np.linalg.norm((start[:, None] - cells[None]) * sides, axis=-1)  # (N, T)
    distances = torch.from_numpy(apart).to(attention)
    entropy = _entropy(attention).mean(dim=1)
    overlap = torch.stack([torch.minimum(attention, head[None]).sum(dim=-1).mean(dim=-1) for head in attention])
    num_heads, num_cells = attention.shape[0], attention.shape[2]
    gain = _entropy(attention.mean(dim=0)).mean() - entropy.mean()
    return HeadNumbers(
        entropy=(entropy / max(math.log(num_cells), 1e-12)).numpy(),
        distance=(attention * distances).sum(dim=-1).mean(dim=-1).numpy(),
        even_distance=float(apart.mean()),
        overlap=overlap.numpy(),
        disagreement=float(gain) / math.log(num_heads) if num_heads > 1 else 0.0,
    )


def cell_centres(height: int, width: int) -> np.ndarray:
    """x, y in [0, 1] of a map's cells, row by row: (h · w, 2)."""
    y, x = np.mgrid[:height, :width]
    return np.stack(((x.ravel() + 0.5) / width, (y.ravel() + 0.5) / height), axis=-1)


def place_share(maps: np.ndarray) -> float:
    """How much of vectors (M, h, w, d) is where their cell lies and not what is there, in [0, 1].

    The share of their variance that a smooth ramp explains, x, y, x², y² and x · y by least squares, over all heads.
    Of a map with few cells a ramp explains much by chance: about 5 of (h · w − 1) parts of noise.
    """
    height, width = maps.shape[1:3]
    x, y = cell_centres(height, width).T - 0.5
    ramp = np.stack((np.ones_like(x), x, y, x * x, y * y, x * y), axis=-1)
    vectors = np.moveaxis(maps, 0, 2).reshape(height * width, -1).astype(np.float64)
    unexplained = vectors - ramp @ np.linalg.lstsq(ramp, vectors, rcond=None)[0]
    variance = float(np.square(vectors - vectors.mean(axis=0)).sum())
    if variance <= 1e-12 * float(np.square(vectors).sum()):  # the same vector everywhere: nothing to explain
        return 0.0
    return max(0.0, 1 - float(np.square(unexplained).sum()) / variance)


def sameness(grid: QKVAGrid, head: int | None = None) -> float:
    """How far one map stands for all, in [0, 1]: the part of a query's attention that it shares with the mean query's.

    Averaged over the queries, of a head or of the heads' mean. At 1, where a query looks does not depend on the query.
    """
    maps = grid.attention.mean(axis=0) if head is None else grid.attention[head]
    flat = maps.reshape(len(maps), -1)
    return float(np.minimum(flat, flat.mean(axis=0)).sum(axis=1).mean())


def _entropy(attention: Tensor) -> Tensor:
    """(..., T) to (...), natural logarithm; nothing where there is no attention."""
    return -torch.special.xlogy(attention, attention).sum(dim=-1)


@dataclass(frozen=True)
class AttentionCost:
    """What attention among T tokens of width D costs in its explicit form: `map_bytes` of A, `multiply_adds`."""

    num_heads: int
    map_bytes: int
    multiply_adds: int


def attention_cost(num_tokens: int, dim: int, num_heads: int, bytes_per_number: int = 4) -> AttentionCost:
    """By formula: M maps of T², against one; the two products are 2 · T² · D however many heads share D."""
    return AttentionCost(num_heads, num_heads * num_tokens**2 * bytes_per_number, 2 * num_tokens**2 * dim)


def measured_attention_cost(num_tokens: int, dim: int, num_heads: int) -> AttentionCost:
    """By measurement: what the explicit form keeps for backward beside Q, K and V, and what its products multiply."""
    from torch.utils.flop_counter import FlopCounterMode

    query, key, value = (torch.randn(1, num_heads, num_tokens, dim // num_heads, requires_grad=True) for _ in range(3))
    given = {x.untyped_storage().data_ptr() for x in (query, key, value)}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in given:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        _ = explicit_attention(query, key, None) @ value
    map_bytes = sum(x.untyped_storage().nbytes() for x in kept.values())
    return AttentionCost(num_heads, map_bytes, counter.get_total_flops() // 2)
