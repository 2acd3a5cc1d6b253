"""Choosing windows of pictures at random: crops, and the parts that a mosaic shows."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from detrove.boxes import cxcywh_to_xyxy
from detrove.data.views import Window

SMALLEST_CROP = 0.5
"""A random crop keeps at least this fraction of each side."""

SMALL_OBJECT = 0.05
"""An object is small where the root of its area is below this part of the picture's longer side: about 32 pixels of
640, COCO's own border."""


def random_window(
    size: tuple[int, int],
    boxes_cxcywh: Tensor,
    generator: np.random.Generator,
    keep_small: bool = False,
    keep_aspect: bool = False,
) -> Window:
    """A crop window of a picture of this size (width, height); where there are boxes, it holds the centre of one.

    With `keep_small` that one is a small object where there is any, and the window is widened until its edges cut no
    small object. With `keep_aspect` it has the picture's aspect.
    """
    small = _is_small(size, boxes_cxcywh)
    candidates = boxes_cxcywh[small] if keep_small and small.any() else boxes_cxcywh
    centre = None
    if len(candidates):
        centre = candidates[int(generator.integers(len(candidates))), :2].tolist()
    extents = [int(generator.integers(math.ceil(length * SMALLEST_CROP), length + 1)) for length in size]
    if keep_aspect:
        extents = _at_least(extents, size)
    window = _placed(extents, size, centre, generator)
    return widened(window, size, boxes_cxcywh[small], keep_aspect) if keep_small else window


def covering_window(
    size: tuple[int, int], boxes_cxcywh: Tensor, aspect: float, generator: np.random.Generator
) -> Window:
    """A window of width / height = `aspect`, as large as fits the picture or down to 70% of that, around an object."""
    width, height = size
    largest = min(width, height * aspect) * generator.uniform(0.7, 1.0)
    extents = [min(max(1, round(largest)), width), min(max(1, round(largest / aspect)), height)]
    centre = boxes_cxcywh[int(generator.integers(len(boxes_cxcywh))), :2].tolist() if len(boxes_cxcywh) else None
    return _placed(extents, size, centre, generator)


def widened(window: Window, size: tuple[int, int], boxes_cxcywh: Tensor, keep_aspect: bool) -> Window:
    """The least window around this one whose edges cut no box; with `keep_aspect` it has the picture's aspect."""
    boxes = cxcywh_to_xyxy(boxes_cxcywh).double() * torch.tensor([*size, *size])
    low, high = boxes[:, :2].floor().long().clamp(min=0), boxes[:, 2:].ceil().long().minimum(torch.tensor(size))
    while True:
        first, last = torch.tensor(window[:2]), torch.tensor(window[2:])
        touched = ((low < last) & (high > first)).all(dim=1)
        first = torch.cat([low[touched], first[None]]).amin(dim=0).tolist()
        last = torch.cat([high[touched], last[None]]).amax(dim=0).tolist()
        if keep_aspect:
            extents = _at_least([end - start for start, end in zip(first, last, strict=True)], size)
            # Around what is held so far, moved back inside the picture.
            first = [
                min(max(0, (start + end - extent) // 2), length - extent)
                for start, end, extent, length in zip(first, last, extents, size, strict=True)
            ]
            last = [start + extent for start, extent in zip(first, extents, strict=True)]
        wider = (first[0], first[1], last[0], last[1])
        if wider == window:
            return window
        window = wider


def _is_small(size: tuple[int, int], boxes_cxcywh: Tensor) -> Tensor:
    areas = boxes_cxcywh[:, 2] * boxes_cxcywh[:, 3] * (size[0] * size[1])
    return areas < (SMALL_OBJECT * max(size)) ** 2


def _at_least(extents: list[int], size: tuple[int, int]) -> list[int]:
    """The least extents of the picture's aspect, as near as whole pixels come, that are no smaller than these."""
    part = max(extent / length for extent, length in zip(extents, size, strict=True))
    return [max(extent, round(part * length)) for extent, length in zip(extents, size, strict=True)]


def _placed(
    extents: list[int], size: tuple[int, int], centre: list[float] | None, generator: np.random.Generator
) -> Window:
    """A window of these extents at random, with `centre` (relative x, y) inside where it is given."""
    low = []
    for axis, (extent, length) in enumerate(zip(extents, size, strict=True)):
        first, last = 0, length - extent
        if centre is not None:
            position = centre[axis] * length
            first = min(max(first, math.ceil(position - extent)), length - extent)
            last = max(first, min(last, math.floor(position)))
        low.append(int(generator.integers(first, last + 1)))
    return low[0], low[1], low[0] + extents[0], low[1] + extents[1]
