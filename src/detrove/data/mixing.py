"""Several pictures in one, for small data sets: mosaic and copy-paste.

Mosaic: Bochkovskiy, Wang, Liao 2020, "YOLOv4". Here every tile is filled: each picture is cut to its tile's aspect, so
nothing is padded. Copy-paste: Ghiasi et al. 2021, "Simple Copy-Paste", which cuts along masks; with boxes alone a patch
is cut around the object and its rim blended, as in Dwibedi, Misra, Hebert 2017, "Cut, Paste and Learn".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detrove.boxes import area_xyxy, cxcywh_to_xyxy, xyxy_to_cxcywh
from detrove.data.views import Original, Window, look
from detrove.data.windows import covering_window
from detrove.structures import Targets

MIDDLE = (0.35, 0.65)
"""Where a mosaic's tiles meet, in parts of its sides."""
MOST_PASTED = 3
PASTED_SCALE = (0.8, 1.25)
"""The size of a pasted object, relative to its size in its own picture brought to the same longer side."""
RIM = 0.1
"""Of the object's side: what is blended around it."""
LARGEST_PATCH = 0.6
SMALLEST_PATCH = 4  # pixels
MOST_COVERED = 0.3
"""No object that is there already may be covered further than this."""
_ATTEMPTS = 10


def mosaic(
    originals: Sequence[Original], size: tuple[int, int], resize_filter: str, generator: np.random.Generator
) -> tuple[Tensor, Targets]:
    """Four pictures as the quarters of one, (3, h, w) uint8 of this size (height, width), with the first one's ids."""
    height, width = size
    column, row = (round(length * generator.uniform(*MIDDLE)) for length in (width, height))
    corners = [(0, 0, column, row), (column, 0, width, row), (0, row, column, height), (column, row, width, height)]
    canvas = torch.empty(3, height, width, dtype=torch.uint8)
    parts = []
    for original, (left, top, right, bottom) in zip(originals, corners, strict=True):
        extent = (bottom - top, right - left)
        window = covering_window(original.size, original.targets.boxes, extent[1] / extent[0], generator)
        tile, targets = look(original, window, extent, resize_filter)
        canvas[:, top:bottom, left:right] = tile
        parts.append(_moved(targets, (left, top), (right - left, bottom - top), (width, height)))
    return canvas, _joined(parts)


def copy_paste(
    pixels: Tensor, targets: Targets, donor: Original, resize_filter: str, generator: np.random.Generator
) -> tuple[Tensor, Targets]:
    """A copy of the pixels (3, h, w) uint8 with up to `MOST_PASTED` objects of the donor, wherever they cover little.

    What else of the donor's objects is seen in a patch keeps its box.
    """
    pixels, size = pixels.clone(), (pixels.shape[2], pixels.shape[1])
    for chosen in generator.permutation(len(donor.targets))[:MOST_PASTED].tolist():
        box = cxcywh_to_xyxy(donor.targets.boxes[chosen]) * torch.tensor([*donor.size, *donor.size])
        window = _with_rim(box.tolist(), donor.size)
        scale = max(size) / max(donor.size) * generator.uniform(*PASTED_SCALE)
        width, height = (round((window[axis + 2] - window[axis]) * scale) for axis in (0, 1))
        if min(width, height) < SMALLEST_PATCH or not _fits((width, height), size):
            continue
        corner = _free_corner((width, height), size, targets.boxes, generator)
        if corner is None:
            continue
        patch, seen = look(donor, window, (height, width), resize_filter)
        margins = [abs(edge - rim) * scale for edge, rim in zip(box.tolist(), window, strict=True)]
        ground = pixels[:, corner[1] : corner[1] + height, corner[0] : corner[0] + width]
        ground.copy_(torch.lerp(ground.float(), patch.float(), _opacity((width, height), margins)).round_())
        targets = _joined([targets, _moved(seen, corner, (width, height), size)])
    return pixels, targets


def _with_rim(box_xyxy: list[float], size: tuple[int, int]) -> Window:
    left, top, right, bottom = box_xyxy
    across, down = RIM * (right - left), RIM * (bottom - top)
    return (
        max(0, math.floor(left - across)),
        max(0, math.floor(top - down)),
        min(size[0], math.ceil(right + across)),
        min(size[1], math.ceil(bottom + down)),
    )


def _fits(patch: tuple[int, int], size: tuple[int, int]) -> bool:
    return all(side <= LARGEST_PATCH * length for side, length in zip(patch, size, strict=True))


def _free_corner(
    patch: tuple[int, int], size: tuple[int, int], boxes_cxcywh: Tensor, generator: np.random.Generator
) -> tuple[int, int] | None:
    """Where the patch's left top corner may lie; None where nothing is found in a few attempts."""
    boxes = cxcywh_to_xyxy(boxes_cxcywh) * torch.tensor([*size, *size])
    for _ in range(_ATTEMPTS):
        left, top = (int(generator.integers(size[axis] - patch[axis] + 1)) for axis in (0, 1))
        covered = boxes.clamp(torch.tensor([left, top] * 2), torch.tensor([left + patch[0], top + patch[1]] * 2))
        if (area_xyxy(covered) <= MOST_COVERED * area_xyxy(boxes)).all():
            return left, top
    return None


def _opacity(size: tuple[int, int], margins: list[float]) -> Tensor:
    """(h, w): 1 inside, falling towards 0 over the margins (left, top, right, bottom) in pixels."""
    ramps = []
    for length, before, after in ((size[0], margins[0], margins[2]), (size[1], margins[1], margins[3])):
        position = np.arange(length) + 0.5
        ramps.append(np.minimum(position / max(before, 0.5), 1) * np.minimum((length - position) / max(after, 0.5), 1))
    return torch.from_numpy(ramps[1][:, None] * ramps[0][None]).float()


def _moved(targets: Targets, corner: tuple[int, int], extent: tuple[int, int], size: tuple[int, int]) -> Targets:
    """A picture's objects after it was laid, `extent` large, with its left top corner at `corner` of one of `size`."""
    boxes = cxcywh_to_xyxy(targets.boxes) * torch.tensor([*extent, *extent]) + torch.tensor([*corner, *corner])
    return dataclasses.replace(targets, boxes=xyxy_to_cxcywh(boxes / torch.tensor([*size, *size])))


def _joined(parts: Sequence[Targets]) -> Targets:
    """All the objects, with the ids of the first."""
    return dataclasses.replace(
        parts[0], labels=torch.cat([part.labels for part in parts]), boxes=torch.cat([part.boxes for part in parts])
    )
