"""From a sample to what a model is given: random changes that keep boxes true, then the one `Preprocessing`.

Boxes are cxcywh in [0, 1] of the picture at every step, so resizing needs no change to them. All randomness comes
from the generator that is passed in: the random transforms of torchvision draw from one state of the whole process,
which differs with the number of workers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image, ImageFilter, ImageStat
from torch import Tensor

from detrove.data.dataset import Sample
from detrove.data.mixing import copy_paste, mosaic
from detrove.data.views import Original, look, to_picture, to_pixels
from detrove.data.windows import random_window
from detrove.errors import InputError
from detrove.structures import Preprocessing, Targets

BLUR_RADIUS = (0.3, 1.5)
"""The standard deviation of a random blur, in pixels of what the model is given."""

SMALLEST_MOSAIC = 16
"""Pixels of the shorter side; below that, tiles could vanish."""


@dataclass(frozen=True)
class Augmentation:
    """How training samples are varied.

    `horizontal_flip`, `vertical_flip`, `crop`, `blur`, `mosaic`, `copy_paste` are probabilities; `scale` is the range
    of the size relative to the preprocessing's, uniform, drawn for each picture or, with `scale_per_batch`, once for a
    batch; `colour` in [0, 1] is the strength of colour jitter: at 1, brightness, contrast and saturation are multiplied
    by 0.5 to 1.5 and the hue is turned by up to 36 degrees, less in proportion below. `keep_small` chooses crops around
    small objects and never cuts one. Mosaic and copy-paste, which show what no picture will, end after the part
    `mix_until` of the training.
    """

    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    crop: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    colour: float = 0.0
    blur: float = 0.0
    keep_small: bool = False
    scale_per_batch: bool = False
    mosaic: float = 0.0
    copy_paste: float = 0.0
    mix_until: float = 0.8

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "vertical_flip", "crop", "colour", "blur", "mosaic", "copy_paste", "mix_until"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be between 0 and 1, got {getattr(self, name)}")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"scale must be two positive numbers, the smaller first, got {self.scale}")


NO_AUGMENTATION = Augmentation()


@dataclass(frozen=True)
class Terms:
    """What a sample shares with its batch: whether pictures may be mixed, whether crops keep the picture's aspect, and,
    where the batch has one scale, its place in [0, 1) of the range."""

    mixing: bool = True
    keep_aspect: bool = False
    scale_place: float | None = None


class Originals(Protocol):
    """The other pictures of a data set, for mosaic and copy-paste."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Original: ...


def training_sample(
    sample: Sample | Original,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    generator: np.random.Generator,
    others: Originals | Sequence[Original] = (),
    terms: Terms = Terms(),
) -> tuple[Tensor, Targets]:
    """Vary and preprocess a sample: pixels (3, h, w) float32, and targets without crowd regions; see `varied`."""
    original = Original.of_sample(sample) if isinstance(sample, Sample) else sample
    pixels, targets = varied(original, preprocessing, augmentation, generator, others, terms)
    return preprocessing.normalise(pixels), targets


def varied(
    original: Original,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    generator: np.random.Generator,
    others: Originals | Sequence[Original] = (),
    terms: Terms = Terms(),
) -> tuple[Tensor, Targets]:
    """A picture as the model will see it, but for the normalisation: pixels (3, h, w) uint8, and its targets.

    Mosaic and copy-paste draw from `others`, and are left out where there are none.
    """
    pixels, targets = _composed(original, preprocessing, augmentation, generator, others, terms)
    if generator.random() < augmentation.horizontal_flip:
        pixels, targets = horizontal_flip(pixels, targets)
    if generator.random() < augmentation.vertical_flip:
        pixels, targets = vertical_flip(pixels, targets)
    if augmentation.colour:
        pixels = to_pixels(colour_jitter(to_picture(pixels), augmentation.colour, generator))
    if augmentation.blur and generator.random() < augmentation.blur:
        blur = ImageFilter.GaussianBlur(generator.uniform(*BLUR_RADIUS))
        pixels = to_pixels(to_picture(pixels).filter(blur))
    return pixels, targets


def _composed(
    original: Original,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    generator: np.random.Generator,
    others: Originals | Sequence[Original],
    terms: Terms,
) -> tuple[Tensor, Targets]:
    """What is seen, (3, h, w) uint8 at the size that the model gets: the picture, a part of it, or several in one."""
    window, resize_filter = original.whole, preprocessing.resize_filter
    if generator.random() < augmentation.crop:
        window = random_window(
            original.size, original.targets.boxes, generator, augmentation.keep_small, terms.keep_aspect
        )
    low, high = augmentation.scale
    # As `Generator.uniform` has it.
    scale = low + (high - low) * (generator.random() if terms.scale_place is None else terms.scale_place)
    size = scaled(preprocessing, scale).target_size(window[3] - window[1], window[2] - window[0])
    mixing = terms.mixing and len(others) > 0
    if mixing and augmentation.mosaic and generator.random() < augmentation.mosaic and min(size) >= SMALLEST_MOSAIC:
        tiles = [original, *(_another(others, generator) for _ in range(3))]
        pixels, targets = mosaic(tiles, size, resize_filter, generator)
    else:
        pixels, targets = look(original, window, size, resize_filter)
    if mixing and augmentation.copy_paste and generator.random() < augmentation.copy_paste:
        pixels, targets = copy_paste(pixels, targets, _another(others, generator), resize_filter, generator)
    return pixels, targets


def _another(others: Originals | Sequence[Original], generator: np.random.Generator) -> Original:
    return others[int(generator.integers(len(others)))]


def evaluation_sample(sample: Sample, preprocessing: Preprocessing) -> tuple[Tensor, Targets]:
    """Preprocess a sample: pixels (3, h, w) float32 and all its targets."""
    return preprocessing(sample.image), sample.targets


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


def horizontal_flip(pixels: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
    """Pixels (3, h, w) and boxes, left for right."""
    boxes = targets.boxes.clone()
    boxes[:, 0] = 1 - boxes[:, 0]
    return pixels.flip(2), dataclasses.replace(targets, boxes=boxes)


def vertical_flip(pixels: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
    """Pixels (3, h, w) and boxes, top for bottom."""
    boxes = targets.boxes.clone()
    boxes[:, 1] = 1 - boxes[:, 1]
    return pixels.flip(1), dataclasses.replace(targets, boxes=boxes)


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
