"""How a large picture is cut into tiles: for finding what is too small to be seen in the whole, and for training on it.

The idea of predicting on overlapping slices and on the whole picture is that of SAHI (Akyon et al. 2022,
https://arxiv.org/abs/2202.06934).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detrove.errors import InputError

Window = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the picture."""

SMALLEST_TILE = 16
LARGEST_OVERLAP = 0.8
"""Beyond it every part of a picture would be looked at more than 25 times."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of `size` x `size` pixels of the original picture, which share `overlap` of a side with their neighbours.

    All tiles of a picture have one size: the last row and column are shifted back inside, and a side on which the
    picture is shorter than `size` is taken whole. An object no longer than `overlap * size` is whole in some tile; for
    larger ones the `whole` picture is looked at as well.
    """

    size: int
    overlap: float = 0.2
    whole: bool = True

    def __post_init__(self) -> None:
        if self.size < SMALLEST_TILE:
            raise InputError(f"tiles must be at least {SMALLEST_TILE} pixels wide, got {self.size}")
        if not 0 <= self.overlap <= LARGEST_OVERLAP:
            raise InputError(f"tiles must overlap by 0 to {LARGEST_OVERLAP} of their side, got {self.overlap}")

    def tiles(self, width: int, height: int) -> list[Window]:
        """The tiles of a picture, row by row; the picture itself where it is no larger than a tile."""
        return [
            (left, top, min(left + self.size, width), min(top + self.size, height))
            for top in self._starts(height)
            for left in self._starts(width)
        ]

    def views(self, width: int, height: int) -> list[Window]:
        """All that is looked at: the tiles, and behind several tiles the whole picture where it is wanted."""
        tiles = self.tiles(width, height)
        return [*tiles, (0, 0, width, height)] if self.whole and len(tiles) > 1 else tiles

    def _starts(self, length: int) -> list[int]:
        # Rounded up, so that neighbours never share less than was promised.
        step = max(1, self.size - math.ceil(self.overlap * self.size))
        last = max(0, length - self.size)
        return [*range(0, last, step), last]

    def describe(self) -> str:
        """In words, for a line that is shown."""
        also = ", and the whole picture" if self.whole else ""
        return f"tiles of {self.size} pixels that overlap by {self.overlap:.0%}{also}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Tiling:
        """The inverse of `to_json`."""
        return cls(**values)


def asked_tiling(
    tiles: int | Tiling | None, overlap: float | None = None, default: Tiling | None = None
) -> Tiling | None:
    """What a user asks for: a tile's size in pixels (0: whole pictures), a `Tiling`, or by None the `default`."""
    if tiles is None:
        if overlap is not None:
            raise InputError("a tile's overlap needs its size: give --tiles N as well")
        return default
    if isinstance(tiles, Tiling):
        return tiles
    if tiles == 0:
        return None
    return Tiling(tiles) if overlap is None else Tiling(tiles, overlap)
