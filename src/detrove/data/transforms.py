"""From a sample to what a model is given: random changes that keep boxes true, then the one `Preprocessing`.

Boxes are cxcywh in [0, 1] of the picture at every step, so resizing needs no change to them. All randomness comes
from the generator that is passed in.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageStat
from torch import Tensor

from detrove.boxes import area_xyxy, cxcywh_to_xyxy, xyxy_to_cxcywh
from detrove.data.dataset import Sample
from detrove.errors import InputError
from detrove.structures import Preprocessing, Targets

SMALLEST_CROP = 0.5
"""A random crop keeps at least this fraction of each side."""

VISIBLE_AFTER_CROP = 0.3
"""An object is kept if at least this part of it, or of the window where it is larger than that, is still to be seen."""


@dataclass(frozen=True)
class Augmentation:
    """How training samples are varied.

    `horizontal_flip`, `vertical_flip`, `crop` are probabilities; `scale` is the range of the size relative to the
    preprocessing's, uniform; `colour` in [0, 1] is the strength of colour jitter: at 1, brightness, contrast and
    saturation are multiplied by 0.5 to 1.5 and the hue is turned by up to 36 degrees, less in proportion below.
    """

    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    crop: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "vertical_flip", "crop", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"scale must be two positive numbers, the smaller first, got {self.scale}")


NO_AUGMENTATION = Augmentation()


def training_sample(
    sample: Sample, preprocessing: Preprocessing, augmentation: Augmentation, generator: np.random.Generator
) -> tuple[Tensor, Targets]:
    """Vary and preprocess a sample: pixels (3, h, w) float32, and targets without crowd regions."""
    image, targets = sample.image, without_crowd(sample.targets)
    if generator.random() < augmentation.crop:
        image, targets = crop(image, targets, random_window(image.size, targets.boxes, generator))
    # The cheap order: what follows the resize touches fewer pixels.
    image = scaled(preprocessing, generator.uniform(*augmentation.scale)).resize(image)
    if generator.random() < augmentation.horizontal_flip:
        image, targets = horizontal_flip(image, targets)
    if generator.random() < augmentation.vertical_flip:
        image, targets = vertical_flip(image, targets)
    if augmentation.colour:
        image = colour_jitter(image, augmentation.colour, generator)
    return preprocessing.normalise(image), targets


def evaluation_sample(sample: Sample, preprocessing: Preprocessing) -> tuple[Tensor, Targets]:
    """Preprocess a sample: pixels (3, h, w) float32 and all its targets."""
    return preprocessing(sample.image), sample.targets


def without_crowd(targets: Targets) -> Targets:
    """The single objects. Areas are dropped with the crowd regions: they are of the unvaried picture."""
    if targets.is_crowd is not None:
        targets = targets.select(~targets.is_crowd)
    return dataclasses.replace(targets, is_crowd=None, area=None)


def scaled(preprocessing: Preprocessing, factor: float) -> Preprocessing:
    """The same preprocessing to a size `factor` times as large."""
    if factor == 1:
        return preprocessing
    shorter = preprocessing.shorter
    return dataclasses.replace(
        preprocessing,
        longer=max(1, round(preprocessing.longer * factor)),
        shorter=None if shorter is None else max(1, round(shorter * factor)),
    )


def horizontal_flip(image: Image.Image, targets: Targets) -> tuple[Image.Image, Targets]:
    """Left for right."""
    boxes = targets.boxes.clone()
    boxes[:, 0] = 1 - boxes[:, 0]
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), dataclasses.replace(targets, boxes=boxes)


def vertical_flip(image: Image.Image, targets: Targets) -> tuple[Image.Image, Targets]:
    """Top for bottom."""
    boxes = targets.boxes.clone()
    boxes[:, 1] = 1 - boxes[:, 1]
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM), dataclasses.replace(targets, boxes=boxes)


def random_window(
    size: tuple[int, int], boxes_cxcywh: Tensor, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """A crop window (left, top, right, bottom) in pixels; where there are boxes, it holds the centre of one of them."""
    centre = None
    if len(boxes_cxcywh):
        centre = boxes_cxcywh[int(generator.integers(len(boxes_cxcywh))), :2].tolist()
    low, high = [], []
    for axis, length in enumerate(size):
        extent = int(generator.integers(math.ceil(length * SMALLEST_CROP), length + 1))
        first, last = 0, length - extent
        if centre is not None:
            position = centre[axis] * length
            first = max(first, math.ceil(position - extent))
            last = max(first, min(last, math.floor(position)))
        start = int(generator.integers(first, last + 1))
        low.append(start)
        high.append(start + extent)
    return low[0], low[1], high[0], high[1]


def crop(image: Image.Image, targets: Targets, window: tuple[int, int, int, int]) -> tuple[Image.Image, Targets]:
    """Cut the window (left, top, right, bottom) out; boxes are clipped to it, those hardly visible are dropped."""
    left, top, right, bottom = window
    whole = torch.tensor([image.width, image.height] * 2, dtype=torch.float32)
    boxes = cxcywh_to_xyxy(targets.boxes) * whole
    visible = torch.stack(
        [
            boxes[:, 0].clamp(left, right),
            boxes[:, 1].clamp(top, bottom),
            boxes[:, 2].clamp(left, right),
            boxes[:, 3].clamp(top, bottom),
        ],
        dim=1,
    )
    most = area_xyxy(boxes).clamp(max=(right - left) * (bottom - top))
    sides = visible[:, 2:] - visible[:, :2]
    # At least a pixel must remain, unless the object was smaller from the start.
    smallest = (boxes[:, 2:] - boxes[:, :2]).clamp(max=1.0)
    keep = (
        (area_xyxy(visible) >= VISIBLE_AFTER_CROP * most) & (sides >= smallest * 0.999).all(dim=1) & (sides > 0).all(1)
    )
    offset = torch.tensor([left, top] * 2, dtype=torch.float32)
    extent = torch.tensor([right - left, bottom - top] * 2, dtype=torch.float32)
    targets = targets.select(keep)
    moved = dataclasses.replace(targets, boxes=xyxy_to_cxcywh((visible[keep] - offset) / extent))
    return image.crop(window), moved


def colour_jitter(image: Image.Image, strength: float, generator: np.random.Generator) -> Image.Image:
    """Random brightness, contrast, saturation and hue (see `Augmentation.colour`).

    All four are linear in RGB (the hue as a rotation about the grey axis), so they are one matrix and one pass.
    """
    brightness, contrast, saturation = generator.uniform(1 - strength / 2, 1 + strength / 2, size=3)
    angle = generator.uniform(-1, 1) * strength * math.pi / 5
    matrix = _saturate_and_turn(saturation, angle)
    mean = np.array(ImageStat.Stat(image.resize((32, 32))).mean)
    # Contrast is about the picture's mean grey, so that it does not also change the brightness.
    grey = float(_LUMA @ mean)
    linear = brightness * contrast * matrix
    offset = brightness * (1 - contrast) * grey
    return image.convert("RGB", tuple(np.column_stack([linear, np.full(3, offset)]).ravel().tolist()))


# ITU-R BT.601, as PIL and torchvision use for grey.
_LUMA = np.array([0.299, 0.587, 0.114])


def _saturate_and_turn(saturation: float, angle: float) -> np.ndarray:
    """(3, 3): keep the grey part of a colour, stretch its chroma by `saturation` and turn it by `angle` (radians)."""
    grey = np.tile(_LUMA, (3, 1))
    # Rodrigues' rotation about the axis (1, 1, 1).
    cross = np.array([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    rotation = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) / 3
    return grey + saturation * rotation @ (np.eye(3) - grey)
