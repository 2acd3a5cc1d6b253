"""Where deformable attention looks: a few points by head and level, around a reference point or box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detrove.nn.recording import SampledAttention


@dataclass(frozen=True)
class SampledPoints:
    """The points of one query (or cell): heads M, levels S, points P.

    `locations` (M, S, P, 2) x, y in [0, 1] of the picture, also outside of it; `weights` (M, S, P), summing to 1 in
    every head; `reference` (2 or 4,) x y (w h); `shapes` the levels' (height, width), finest first.
    """

    locations: np.ndarray
    weights: np.ndarray
    reference: np.ndarray
    shapes: list[tuple[int, int]]


def sampled_points(entry: SampledAttention, query: int, picture: int = 0) -> SampledPoints:
    """The points of one query of a recorded block; an encoder's queries are the cells of all levels in their order."""
    return SampledPoints(
        entry.locations[picture, query].float().numpy(force=True),
        entry.weights[picture, query].float().numpy(force=True),
        entry.reference_points[picture, query, 0].float().numpy(force=True),
        list(entry.shapes),
    )


def heads_in_box(points: SampledPoints, box: np.ndarray) -> np.ndarray:
    """The share (M,) of every head's attention whose points lie inside a box cxcywh in [0, 1]."""
    inside = (np.abs(points.locations - box[:2]) <= box[2:] / 2).all(axis=-1)
    return (points.weights * inside).sum(axis=(1, 2)) / points.weights.sum(axis=(1, 2))


def cell_of_level(shapes: list[tuple[int, int]], level: int, x: float, y: float) -> int:
    """The number, among the cells of all levels, of a level's cell at x, y in [0, 1]."""
    height, width = shapes[level]
    start = sum(h * w for h, w in shapes[:level])
    return start + min(int(y * height), height - 1) * width + min(int(x * width), width - 1)


@dataclass(frozen=True)
class LevelNumbers:
    """How one level is looked at, over all heads and queries of a block; means are weighted by attention.

    `weight`: its share of the attention; `offset_cells` and `offset`: how far points lie from their reference, in cells
    of the level and in longer sides of the picture; `outside`: the share of attention outside the picture; `in_box`:
    the share inside the reference box, None where the reference is a point.
    """

    shape: tuple[int, int]
    weight: float
    offset_cells: float
    offset: float
    outside: float
    in_box: float | None


def level_numbers(
    entry: SampledAttention, queries: list[int] | slice = slice(None), picture: int = 0
) -> list[LevelNumbers]:
    """The numbers of every level of a recorded block, over these queries."""
    locations = entry.locations[picture, queries].double()  # (Q, M, S, P, 2)
    weights = entry.weights[picture, queries].double()
    reference = entry.reference_points[picture, queries].double()[:, None, :, None]  # (Q, 1, S, 1, 2 or 4)
    offsets = locations - reference[..., :2]
    outside = ((locations < 0) | (locations > 1)).any(dim=-1)
    inside = (offsets.abs() <= reference[..., 2:] / 2).all(dim=-1) if reference.shape[-1] == 4 else None
    finest = torch.tensor(entry.shapes[0], dtype=offsets.dtype).flip(0)
    sides = finest / finest.max()
    numbers = []
    for level, shape in enumerate(entry.shapes):
        weight, offset = weights[:, :, level], offsets[:, :, level]
        cells = torch.tensor(shape, dtype=offset.dtype).flip(0)
        numbers.append(
            LevelNumbers(
                shape=shape,
                weight=float(weight.sum() / weights.sum()),
                offset_cells=_mean((offset * cells).norm(dim=-1), weight),
                offset=_mean((offset * sides).norm(dim=-1), weight),
                outside=_mean(outside[:, :, level].double(), weight),
                in_box=None if inside is None else _mean(inside[:, :, level].double(), weight),
            )
        )
    return numbers


def _mean(values: Tensor, weights: Tensor) -> float:
    return float((values * weights).sum() / weights.sum().clamp(min=1e-30))
