"""Tiles cover the picture, have one size and share what was promised."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detrove.errors import InputError
from detrove.tiling import LARGEST_OVERLAP, Tiling, asked_tiling

lengths = st.integers(1, 700)
tilings = st.builds(Tiling, st.integers(16, 300), st.floats(0, LARGEST_OVERLAP))


def test_a_worked_example() -> None:
    assert Tiling(100, 0.2, whole=False).views(250, 90) == [(0, 0, 100, 90), (80, 0, 180, 90), (150, 0, 250, 90)]
    assert Tiling(100, 0.2).views(250, 90)[-1] == (0, 0, 250, 90)


def test_no_tile_more_than_needed() -> None:
    assert Tiling(100, 0.2).tiles(180, 100) == [(0, 0, 100, 100), (80, 0, 180, 100)]
    assert Tiling(100, 0).tiles(200, 200) == [
        (0, 0, 100, 100),
        (100, 0, 200, 100),
        (0, 100, 100, 200),
        (100, 100, 200, 200),
    ]


@given(tilings, lengths, lengths)
def test_tiles_have_one_size_and_reach_every_edge(tiling: Tiling, width: int, height: int) -> None:
    tiles = tiling.tiles(width, height)
    assert {(right - left, bottom - top) for left, top, right, bottom in tiles} == {
        (min(width, tiling.size), min(height, tiling.size))
    }
    assert len(set(tiles)) == len(tiles)
    lefts, rights = (sorted({tile[place] for tile in tiles}) for place in (0, 2))
    assert (lefts[0], rights[-1]) == (0, width)
    assert all(end - start >= tiling.overlap * tiling.size for start, end in zip(lefts[1:], rights, strict=False))


@given(tilings, lengths, lengths, st.data())
def test_an_object_as_long_as_the_overlap_is_whole_in_some_tile(
    tiling: Tiling, width: int, height: int, data: st.DataObject
) -> None:
    side = int(tiling.overlap * tiling.size)
    w, h = min(side, width), min(side, height)
    x, y = data.draw(st.integers(0, width - w)), data.draw(st.integers(0, height - h))
    assert any(
        left <= x and top <= y and x + w <= right and y + h <= bottom
        for left, top, right, bottom in tiling.tiles(width, height)
    )


@given(tilings, lengths, lengths)
def test_a_picture_no_larger_than_a_tile_is_one_view(tiling: Tiling, width: int, height: int) -> None:
    views = tiling.views(width, height)
    assert (len(views) == 1) == (max(width, height) <= tiling.size)
    assert all(second != first for first, second in pairwise(views))


@pytest.mark.parametrize(
    ("values", "words"),
    [({"size": 3}, "at least 16"), ({"size": 64, "overlap": 0.9}, "0 to 0.8"), ({"size": 64, "overlap": -0.1}, "-0.1")],
)
def test_what_cannot_be(values: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Tiling(**values)


def test_what_a_user_asks_for() -> None:
    own = Tiling(640)
    assert asked_tiling(None, default=own) is own
    assert asked_tiling(0, default=own) is None
    assert asked_tiling(320, 0.1, own) == Tiling(320, 0.1)
    assert asked_tiling(own) is own
    with pytest.raises(InputError, match="--tiles N"):
        asked_tiling(None, 0.1)


def test_json_round_trip() -> None:
    tiling = Tiling(300, 0.25, whole=False)
    assert Tiling.from_json(tiling.to_json()) == tiling
