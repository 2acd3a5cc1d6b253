"""Looking at a picture through a window: what is seen, at which size, and where its boxes are then.

A view is chosen before anything is decoded, so that no more is decoded than it needs. Windows are (left, top, right,
bottom) in whole pixels of the original picture; sizes of pixel grids are (height, width), those of pictures
(width, height), as in PIL.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from detrove.boxes import area_xyxy, cxcywh_to_xyxy, xyxy_to_cxcywh
from detrove.data.dataset import Sample
from detrove.structures import RESIZE_FILTERS, Targets

Window = tuple[int, int, int, int]

VISIBLE_AFTER_CROP = 0.3
"""An object is kept if at least this part of it, or of the window where it is larger than that, is still to be seen."""

# These two of torch's filters are Pillow's, antialiased, in a third of the time. They differ in the rounding of a few
# values in a thousand, by 1 of 255.
_TORCH_FILTERS = ("bilinear", "bicubic")


class Decoded(NamedTuple):
    """`pixels` (3, H, W) uint8 of a picture, and how many of them there are for one of its own, in x and y."""

    pixels: Tensor
    scale: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class Original:
    """A labelled picture that is decoded only when it is looked at.

    `size` is (width, height), `targets` are single objects (no crowd regions). `read(scale)` decodes it, at its own
    size or reduced to no less than `scale` times that; it may raise `InputError`.
    """

    size: tuple[int, int]
    targets: Targets
    read: Callable[[float], Decoded]

    @classmethod
    def of_sample(cls, sample: Sample) -> Original:
        """One that is decoded already."""
        return cls(sample.image.size, without_crowd(sample.targets), lambda _: Decoded(to_pixels(sample.image)))

    @property
    def whole(self) -> Window:
        """The window that shows all of it."""
        return (0, 0, *self.size)


def without_crowd(targets: Targets) -> Targets:
    """The single objects. Areas are dropped with the crowd regions: they are of the unvaried picture."""
    if targets.is_crowd is not None:
        targets = targets.select(~targets.is_crowd)
    return dataclasses.replace(targets, is_crowd=None, area=None)


def look(original: Original, window: Window, size: tuple[int, int], resize_filter: str) -> tuple[Tensor, Targets]:
    """What the window shows, (3, h, w) uint8 at this size (height, width), and the objects that are seen in it."""
    width, height = window[2] - window[0], window[3] - window[1]
    seen = original.read(min(1.0, max(size[0] / height, size[1] / width)))
    box = tuple(edge * scale for edge, scale in zip(window, seen.scale * 2, strict=True))
    return resample(seen.pixels, box, size, resize_filter), targets_in(original.targets, original.size, window)


def resample(pixels: Tensor, box: tuple[float, ...], size: tuple[int, int], resize_filter: str = "bilinear") -> Tensor:
    """The part `box` (left, top, right, bottom) of `pixels` (3, H, W) uint8, resized to this (height, width)."""
    left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    part = pixels[:, top:bottom, left:right]
    if (left, top, right, bottom) == tuple(box):
        if part.shape[1:] == size:
            return part
        if resize_filter in _TORCH_FILTERS:
            return F.interpolate(part[None], size=size, mode=resize_filter, align_corners=False, antialias=True)[0]
    inner = (box[0] - left, box[1] - top, min(box[2] - left, part.shape[2]), min(box[3] - top, part.shape[1]))
    return to_pixels(to_picture(part).resize((size[1], size[0]), RESIZE_FILTERS[resize_filter], box=inner))


def to_picture(pixels: Tensor) -> Image.Image:
    """Pixels (3, H, W) uint8 as a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def to_pixels(picture: Image.Image) -> Tensor:
    """An RGB picture as pixels (3, H, W) uint8, the channels last in memory."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1)


def targets_in(targets: Targets, size: tuple[int, int], window: Window) -> Targets:
    """The objects of a picture of this size (width, height) seen in the window: clipped to it, hardly visible ones left
    out."""
    left, top, right, bottom = window
    if window == (0, 0, *size):
        return targets
    boxes = cxcywh_to_xyxy(targets.boxes) * torch.tensor([*size, *size], dtype=torch.float32)
    lowest, highest = torch.tensor([left, top] * 2), torch.tensor([right, bottom] * 2)
    visible = boxes.clamp(lowest, highest)
    most = area_xyxy(boxes).clamp(max=(right - left) * (bottom - top))
    sides = visible[:, 2:] - visible[:, :2]
    # At least a pixel must remain, unless the object was smaller from the start.
    smallest = (boxes[:, 2:] - boxes[:, :2]).clamp(max=1.0)
    keep = (
        (area_xyxy(visible) >= VISIBLE_AFTER_CROP * most) & (sides >= smallest * 0.999).all(dim=1) & (sides > 0).all(1)
    )
    extent = torch.tensor([right - left, bottom - top] * 2, dtype=torch.float32)
    return dataclasses.replace(targets.select(keep), boxes=xyxy_to_cxcywh((visible[keep] - lowest) / extent))
