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
yet no box of the object: 0.1 is better than 0.5 on both sets of `benchmarks/tiling.py`."""

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
    of_view = np.repeat(np.arange(len(found)), [len(one) for one in found])
    cut = torch.cat(
        [touches_inner_border(one.boxes, view, picture_size) for one, view in zip(found, views, strict=True)]
    )
    kept = torch.zeros(len(scores), dtype=torch.bool)
    for label in labels.unique():
        (chosen,) = torch.where(labels == label)
        indices = chosen.numpy()
        stays = _one_of_each(boxes[chosen].numpy(), scores[chosen].numpy(), cut[chosen].numpy(), of_view[indices])
        kept[chosen[torch.from_numpy(stays)]] = True
    (indices,) = torch.where(kept)
    order = indices[scores[indices].argsort(descending=True, stable=True)][:num_detections]
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


def _one_of_each(boxes: np.ndarray, scores: np.ndarray, cut: np.ndarray, of_view: np.ndarray) -> np.ndarray:
    """Indices of the boxes of one class that stay: greedily, those that count most first."""
    order = np.argsort(-np.where(cut, CUT_FACTOR * scores, scores), kind="stable")
    boxes, cut, of_view = boxes[order], cut[order], of_view[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stays = np.ones(len(order), dtype=bool)
    for i in range(len(order) - 1):
        if not stays[i]:
            continue
        (behind,) = np.nonzero(stays[i + 1 :])
        behind += i + 1
        sides = np.minimum(boxes[i, 2:], boxes[behind, 2:]) - np.maximum(boxes[i, :2], boxes[behind, :2])
        shared = sides.clip(min=0).prod(axis=1)
        smaller = np.minimum(areas[i], areas[behind])
        smaller_is_cut = np.where(areas[behind] <= areas[i], cut[behind], cut[i])
        same = shared > SAME * (areas[i] + areas[behind] - shared)
        piece = smaller_is_cut & (shared > PIECE * smaller)
        stays[behind[(same | piece) & (of_view[behind] != of_view[i])]] = False
    return order[stays]


def _size(view: Window) -> tuple[int, int]:
    return view[2] - view[0], view[3] - view[1]
