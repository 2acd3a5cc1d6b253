"""Drawing in plain numpy for the generated scenes: shapes as signed distances, and textures.

A shape is a function of coordinates x, y (arrays, in units of the shape's radius) to the signed distance from its edge,
negative inside, in the same unit. Nothing here depends on a drawing library, so the same numbers give the same picture
everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Shape = Callable[[Array, Array], Array]


def disc(x: Array, y: Array) -> Array:
    """A filled circle."""
    return np.hypot(x, y) - 1


def ring(x: Array, y: Array) -> Array:
    """A circle with a round hole of not quite half its width."""
    return np.abs(np.hypot(x, y) - 0.73) - 0.27


def triangle(x: Array, y: Array) -> Array:
    """An equilateral triangle with its corners on the unit circle."""
    sides = [x * math.cos(angle) + y * math.sin(angle) for angle in (math.pi / 2, math.pi * 7 / 6, math.pi * 11 / 6)]
    return np.maximum.reduce(sides) - 0.5


def cross(x: Array, y: Array) -> Array:
    """Two bars at a right angle."""
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 0.95, short - 0.28)


def star(x: Array, y: Array) -> Array:
    """A star of five points."""
    # Fold the plane onto one half of one point: there the edge is a single line.
    tenth = math.pi / 5
    angle = np.abs((np.arctan2(y, x) + tenth) % (2 * tenth) - tenth)
    radius = np.hypot(x, y)
    px, py = radius * np.cos(angle), radius * np.sin(angle)
    inner = 0.42
    ex, ey = inner * math.cos(tenth) - 1, inner * math.sin(tenth)
    return ((px - 1) * ey - py * ex) / math.hypot(ex, ey)


def square(x: Array, y: Array) -> Array:
    """A square with its corners on the unit circle."""
    return np.maximum(np.abs(x), np.abs(y)) - math.sqrt(0.5)


def bar(x: Array, y: Array) -> Array:
    """A long rectangle."""
    return np.maximum(np.abs(x) - 0.97, np.abs(y) - 0.22)


def angle_iron(x: Array, y: Array) -> Array:
    """Two bars that meet at their ends, as an L."""
    foot = np.maximum(np.abs(x) - 0.7, np.abs(y + 0.5) - 0.2)
    stem = np.maximum(np.abs(x + 0.5) - 0.2, np.abs(y) - 0.7)
    return np.minimum(foot, stem)


def crescent(x: Array, y: Array) -> Array:
    """A disc from which another has bitten."""
    return np.maximum(disc(x, y), 0.8 - np.hypot(x - 0.55, y))


def arc(x: Array, y: Array) -> Array:
    """A thin half circle."""
    return np.maximum(np.abs(np.hypot(x, y) - 0.94) - 0.06, -y)


def line(x: Array, y: Array) -> Array:
    """A thin stroke."""
    return np.maximum(np.abs(x) - 1, np.abs(y) - 0.03)


def value_noise(height: int, width: int, cell: float, generator: np.random.Generator) -> Array:
    """(height, width) smooth random values in [0, 1]: random numbers on a grid of `cell` pixels, smoothly joined."""
    grid = generator.random((math.ceil(height / cell) + 2, math.ceil(width / cell) + 2))
    row, row_part = _grid_positions(height, cell)
    column, column_part = _grid_positions(width, cell)
    top = grid[row] + (grid[row + 1] - grid[row]) * row_part[:, None]
    return top[:, column] + (top[:, column + 1] - top[:, column]) * column_part


def _grid_positions(length: int, cell: float) -> tuple[NDArray[np.int64], Array]:
    position = np.arange(length) / cell
    index = position.astype(np.int64)
    part = position - index
    return index, part * part * (3 - 2 * part)


def fractal_noise(height: int, width: int, coarsest: float, generator: np.random.Generator) -> Array:
    """(height, width) values in [0, 1]: octaves of value noise, each half as wide and 0.6 times as strong."""
    total, weight, strength, cell = np.zeros((height, width)), 0.0, 1.0, coarsest
    while cell >= 2:
        total += strength * value_noise(height, width, cell, generator)
        weight += strength
        strength, cell = strength * 0.6, cell / 2
    return total / weight if weight else np.full((height, width), 0.5)


def highlight(x: Array, y: Array, period: float) -> Array:  # noqa: ARG001
    """A pattern in [0, 1]: bright near the upper left, dark at the rim; the period does not matter."""
    return np.clip(1.15 - 0.85 * np.hypot(x + 0.35, y + 0.35), 0, 1)


def rings(x: Array, y: Array, period: float) -> Array:
    """A pattern in [0, 1]: circles around the middle."""
    return wave(np.hypot(x, y) / period)


def bands(x: Array, y: Array, period: float) -> Array:  # noqa: ARG001
    """A pattern in [0, 1]: stripes across x."""
    return wave(x / period)


def dots(x: Array, y: Array, period: float) -> Array:
    """A pattern in [0, 1]: light dots on a grid."""
    return np.clip(wave(x / period) + wave(y / period) - 1, 0, 1)


def outlined_star(x: Array, y: Array, period: float) -> Array:
    """A pattern in [0, 1]: light within a star, dark along its edge."""
    return np.clip(-star(x, y) / (0.35 * period), 0, 1)


def wave(position: Array) -> Array:
    """Values in [0, 1] with period 1, light and dark for about equally long, joined by steep slopes."""
    return np.clip(0.5 + 2 * (np.abs(2 * (position - np.floor(position)) - 1) - 0.5), 0, 1)
