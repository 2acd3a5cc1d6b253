"""Training on tiles: a data set whose samples are the views in which large pictures are looked at (`detrove.tiling`).

An object is cut at a tile's border, and left out of a tile where hardly anything of it is to be seen, by the same rule
as in a random crop (`views.targets_in`). But none is lost: one that every tile would leave out stays in the tile that
shows most of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np

from detrove.data.annotations import Annotations, AnnotationsBuilder
from detrove.data.dataset import DetectionDataset, Record, Records
from detrove.data.views import VISIBLE_AFTER_CROP
from detrove.errors import InputError
from detrove.tiling import Tiling, Window

EMPTY_SHARE = 0.2
"""The part of all tiles that may be without objects. Large pictures are mostly empty: of all of them little is learned,
of none the detector never learns what the background looks like."""


class TileRecords(Records):
    """Records of tiles: `width`, `height` and the boxes are those of the window."""

    def __init__(
        self,
        annotations: Annotations,
        boxes_xyxy: np.ndarray,
        labels: np.ndarray,
        windows: np.ndarray,
        picture_sizes: np.ndarray,
    ) -> None:
        super().__init__(annotations, boxes_xyxy, labels)
        self._windows = windows
        self._picture_sizes = picture_sizes

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        record = super().__getitem__(index)
        if not isinstance(index, int) or not isinstance(record, Record):
            return record
        left, top, right, bottom = self._windows[index].tolist()
        width, height = self._picture_sizes[index].tolist()
        if (left, top, right, bottom) == (0, 0, width, height):
            return record
        return replace(record, window=(left, top, right, bottom), picture_size=(width, height))


class TiledDataset(DetectionDataset):
    """Tiles T of pictures, as a data set; `cut` makes it.

    `annotations` are those of the tiles; `windows` (T, 4) int64 say where each lies in its picture of `picture_sizes`
    (T, 2), width and height. A tile's image id is its picture's and its place, "7@640,0"; that of a whole picture is
    the picture's own.
    """

    def __init__(
        self,
        path: Path,
        split: str,
        format: str,
        annotations: Annotations,
        windows: np.ndarray,
        picture_sizes: np.ndarray,
    ) -> None:
        self.windows = windows
        self.picture_sizes = picture_sizes
        super().__init__(path, split, format, annotations)

    def subset(self, indices: Sequence[int]) -> TiledDataset:
        """The data set of these tiles alone, in this order, with the same label map."""
        chosen = np.asarray(indices, dtype=np.int64)
        return TiledDataset(
            self.path,
            self.split,
            self.format,
            self.annotations.take(chosen),
            self.windows[chosen],
            self.picture_sizes[chosen],
        )

    def describe(self) -> str:
        """One line: how many tiles, with how many boxes."""
        counts = np.diff(self.annotations.starts)
        return (
            f"{self.path}: split {self.split} in tiles: {len(self):,}, {int((counts == 0).sum()):,} of them without "
            f"objects; {len(self.records.labels):,} boxes, an object once for each tile that shows it"
        )

    def _clean(self) -> Records:
        records = super()._clean()
        return TileRecords(self._kept, records.boxes_xyxy, records.labels, self.windows, self.picture_sizes)


def cut(dataset: DetectionDataset, tiling: Tiling, empty_share: float = EMPTY_SHARE, seed: int = 0) -> TiledDataset:
    """The data set's pictures in the views of `tiling`: what prediction looks at is what is trained on.

    Every object is in at least one tile, and uncut where the whole picture is a view. Of the views without objects as
    many are kept as make up `empty_share` of all that remain, chosen by `seed`; where there are no objects at all, all.
    """
    if not 0 <= empty_share < 1:
        raise InputError(f"empty_tiles must be from 0 to below 1, got {empty_share}")
    views = [
        (index, view, boxes) for index, record in enumerate(dataset.records) for view, boxes in _seen(record, tiling)
    ]
    is_empty = np.array([bool(boxes.is_crowd.all()) for _, _, boxes in views], dtype=bool)
    chosen = _thinned(is_empty, empty_share, seed)
    builder = AnnotationsBuilder("object")
    for number in chosen.tolist():
        _add(builder, dataset, *views[number])
    return TiledDataset(
        dataset.path,
        dataset.split,
        dataset.format,
        builder.finish(dataset.annotations.categories),
        np.array([views[number][1] for number in chosen.tolist()], dtype=np.int64).reshape(-1, 4),
        dataset.annotations.sizes[[views[number][0] for number in chosen.tolist()]],
    )


class _Boxes(NamedTuple):
    """The objects of a view, in its pixels, as `Record` has them."""

    boxes_xyxy: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray


def _seen(record: Record, tiling: Tiling) -> Iterator[tuple[Window, _Boxes]]:
    """The views of a picture, each with the objects that are kept in it."""
    views = tiling.views(record.width, record.height)
    num_tiles = len(tiling.tiles(record.width, record.height))
    boxes, windows = record.boxes_xyxy, np.array(views, dtype=np.float64)
    visible = boxes.clip(windows[:, None, [0, 1, 0, 1]], windows[:, None, [2, 3, 2, 3]])
    kept = _is_visible(boxes, visible, windows)
    lost = ~kept[:num_tiles].any(axis=0)
    kept[_areas(visible[:num_tiles]).argmax(axis=0)[lost], np.flatnonzero(lost)] = True
    kept[num_tiles:] = True
    for view, seen, keep in zip(views, visible, kept, strict=True):
        low = np.array([*view[:2], *view[:2]])
        yield view, _Boxes(seen[keep] - low, record.labels[keep], record.is_crowd[keep])


def _is_visible(boxes: np.ndarray, visible: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """(V, N) whether enough of each box (N, 4) is `visible` (V, N, 4) in the windows (V, 4), as in a random crop."""
    sides, visible_sides = boxes[:, 2:] - boxes[:, :2], visible[..., 2:] - visible[..., :2]
    most = np.minimum(_areas(boxes), _areas(windows)[:, None])
    enough = _areas(visible) >= VISIBLE_AFTER_CROP * most
    return enough & (visible_sides >= np.minimum(sides, 1.0) * 0.999).all(axis=-1) & (visible_sides > 0).all(axis=-1)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)


def _thinned(is_empty: np.ndarray, empty_share: float, seed: int) -> np.ndarray:
    """Indices, in order: all that are not empty, and of the others a random part that makes up `empty_share`."""
    full, empty = np.flatnonzero(~is_empty), np.flatnonzero(is_empty)
    if len(full):
        num_kept = min(len(empty), round(empty_share / (1 - empty_share) * len(full)))
        empty = np.random.default_rng(seed).permutation(empty)[:num_kept]
    return np.sort(np.concatenate([full, empty]))


def _add(builder: AnnotationsBuilder, dataset: DetectionDataset, picture: int, view: Window, boxes: _Boxes) -> None:
    """A view as a picture of its own."""
    written = dataset.annotations
    image_id, (left, top, right, bottom) = written.image_id(picture), view
    width, height = right - left, bottom - top
    if (width, height) != tuple(written.sizes[picture].tolist()):
        image_id = f"{image_id}@{left},{top}"
    index = builder.add_picture(written.path(picture), image_id, width, height, written.source(picture))
    entries = dataset.label_map.entries
    for number, (box, label, is_crowd) in enumerate(zip(*boxes, strict=True), start=1):
        category = entries[label]
        assert category is not None
        x1, y1, x2, y2 = box.tolist()
        builder.add_box(index, category.id, (x1, y1, x2 - x1, y2 - y1), number, is_crowd=bool(is_crowd))
