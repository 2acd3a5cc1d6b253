"""Detecting in a large picture piece by piece: cut it into views, detect in each, join what several have seen.

A view is a tile or the whole picture (`detrove.tiling`). What one view has found is left alone: a detection transformer
tells near objects apart by itself. Only detections of *different* views may stand for the same object, and of the same
class they do where

- they overlap by an IoU of more than `SAME`, or
- one of them touches an inner border of its view, so that it may be cut off, and lies with more than `PIECE` of its
  area in the other, larger one.

Of two such detections the one with the higher score stays; a cut-off one stays only where its score is more than ten
times as high.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrove.structures import Detections
from detrove.tiling import Tiling, Window

SAME = 0.5
"""The IoU above which two boxes of one class from different views are one object."""

PIECE = 0.7
"""The share of a cut-off box within another above which it is a piece of that object."""

CUT_FACTOR = 0.1
"""What the score of a cut-off box counts when it is chosen which box stays. A part is often the surer detection, and
yet no box of the object; measured in `benchmarks/results/2026-11-22-tiling.md`."""

BORDER = 0.01
"""Of a view's side, but a pixel at least: how near to its border a box counts as touching it."""


def detect_in_tiles(
    picture: Image.Image,
    tiling: Tiling,
    detect: Callable[[Sequence[Image.Image]], list[Detections]],
    batch_size: int,
    num_detections: int,
) -> Detections:
    """What is seen in a picture's tiles, in pixels of the picture, by descending score.

    `detect` sees pictures of one size, at most `batch_size` at a time. At most `num_detections` for each tile's area in
    the picture are kept (rounded up): as many as pictures of that size would give.
    """
    views = tiling.views(picture.width, picture.height)
    found: list[Detections] = []
    for batch in batches_of_one_size(views, batch_size):
        found.extend(detect([picture.crop(view) for view in batch]))
    left, top, right, bottom = views[0]
    num_tiles = math.ceil(picture.width * picture.height / ((right - left) * (bottom - top)))
    return merge(found, views, (picture.width, picture.height), num_detections * num_tiles)


def batches_of_one_size(views: Sequence[Window], batch_size: int) -> Iterator[list[Window]]:
    """The views in their order, at most so many at a time; only those of one size share a batch."""
    batch: list[Window] = []
    for view in views:
        if batch and (len(batch) == batch_size or _size(view) != _size(batch[0])):
            yield batch
            batch = []
        batch.append(view)
    if batch:
        yield batch


def merge(
    found: Sequence[Detections], views: Sequence[Window], picture_size: tuple[int, int], num_detections: int
) -> Detections:
    """The detections of each view, in its own pixels, as those of one picture of this size (width, height).

    Each object once (see the module's rules), by descending score, at most `num_detections`. Those of a single view
    come back as they are.
    """
    offsets = [torch.tensor([left, top, left, top], dtype=torch.float32) for left, top, _, _ in views]
    boxes = torch.cat([one.boxes + offset for one, offset in zip(found, offsets, strict=True)])
    scores, labels = torch.cat([one.scores for one in found]), torch.cat([one.labels for one in found])
    cut = torch.cat(
        [touches_inner_border(one.boxes, view, picture_size) for one, view in zip(found, views, strict=True)]
    ).numpy()
    stays = np.ones(len(scores), dtype=bool)
    worth = np.where(cut, CUT_FACTOR * scores.numpy(), scores.numpy())
    rank = np.argsort(np.argsort(-worth, kind="stable"))
    pairs = _same_objects(boxes.numpy(), labels.numpy(), cut, [len(one) for one in found], views)
    better, worse = np.where(rank[pairs[0]] < rank[pairs[1]], pairs, pairs[::-1])
    # By the time that a box is asked whether it still stays, all better ones have spoken.
    for index in np.argsort(rank[better]).tolist():
        if stays[better[index]]:
            stays[worse[index]] = False
    (kept,) = torch.where(torch.from_numpy(stays))
    order = kept[scores[kept].argsort(descending=True, stable=True)][:num_detections]
    return Detections(boxes[order], scores[order], labels[order], found[0].label_map)


def touches_inner_border(boxes: Tensor, view: Window, picture_size: tuple[int, int]) -> Tensor:
    """(N,) whether boxes (N, 4) xyxy in pixels of a view touch a border of it that is none of the picture."""
    left, top, right, bottom = view
    width, height = _size(view)
    near_x, near_y = max(1.0, BORDER * width), max(1.0, BORDER * height)
    return (
        ((boxes[:, 0] <= near_x) & (left > 0))
        | ((boxes[:, 1] <= near_y) & (top > 0))
        | ((boxes[:, 2] >= width - near_x) & (right < picture_size[0]))
        | ((boxes[:, 3] >= height - near_y) & (bottom < picture_size[1]))
    )


def _same_objects(
    boxes: np.ndarray, labels: np.ndarray, cut: np.ndarray, counts: Sequence[int], views: Sequence[Window]
) -> np.ndarray:
    """(2, P) pairs of detections, as indices, that different views have made of one object.

    Detections are in the order of their views, `counts` in each. Only what reaches into the other view is compared.
    """
    ends = np.cumsum(counts)
    ranges = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    found = [np.empty((2, 0), dtype=np.int64)]
    for (view, own), (other_view, others) in combinations(zip(views, ranges, strict=True), 2):
        if _overlap(view, other_view):
            a = own[_reaches_into(boxes[own], other_view)]
            b = others[_reaches_into(boxes[others], view)]
            i, j = np.nonzero(_is_same(boxes[a], boxes[b], cut[a], cut[b]) & (labels[a][:, None] == labels[b]))
            found.append(np.stack([a[i], b[j]]))
    return np.concatenate(found, axis=1)


def _is_same(boxes: np.ndarray, others: np.ndarray, cut: np.ndarray, others_cut: np.ndarray) -> np.ndarray:
    """(A, B) whether boxes (A, 4) and (B, 4) lie as one object's do; see the module's rules."""
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    shared = (np.minimum(boxes[:, None, 2:], others[:, 2:]) - low).clip(min=0).prod(axis=-1)
    areas, other_areas = ((each[:, 2:] - each[:, :2]).prod(axis=1) for each in (boxes, others))
    smaller = np.minimum(areas[:, None], other_areas)
    smaller_is_cut = np.where(areas[:, None] <= other_areas, cut[:, None], others_cut)
    same = shared > SAME * (areas[:, None] + other_areas - shared)
    return same | (smaller_is_cut & (shared > PIECE * smaller))


def _reaches_into(boxes: np.ndarray, view: Window) -> np.ndarray:
    left, top, right, bottom = view
    return (boxes[:, 0] < right) & (boxes[:, 2] > left) & (boxes[:, 1] < bottom) & (boxes[:, 3] > top)


def _overlap(view: Window, other: Window) -> bool:
    return view[0] < other[2] and other[0] < view[2] and view[1] < other[3] and other[1] < view[3]


def _size(view: Window) -> tuple[int, int]:
    return view[2] - view[0], view[3] - view[1]
