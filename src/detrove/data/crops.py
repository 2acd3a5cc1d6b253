"""Crops of single objects, for a trunk that has to learn to see before it can learn to detect."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrove.boxes import cxcywh_to_xyxy
from detrove.data.dataset import DetectionDataset, Sample
from detrove.data.views import without_crowd
from detrove.errors import InputError
from detrove.structures import Preprocessing

CONTEXT = (1.05, 1.8)  # a crop's side, in longer sides of its object
SHIFT = 0.1  # of the object's longer side, by which a crop may miss its middle
BACKGROUND_SHARE = 0.2
BACKGROUND_SIDES = (0.08, 0.6)  # in shorter sides of the picture
MIDDLE = 0.35  # of a background crop's side: no object's centre may lie closer to its middle
_ATTEMPTS = 10


def random_crops(
    dataset: DetectionDataset,
    preprocessing: Preprocessing,
    num_pictures: int,
    per_picture: int,
    size: int,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Square crops (N, 3, size, size), normalised, and their classes (N,): the object's slot, or K for background.

    `per_picture` crops from each of `num_pictures` random pictures, flipped at random. Pictures that cannot be read are
    passed over, so N may be smaller; where none can, the last one's `InputError` is raised.
    """
    crops, classes, failure = [], [], None
    for index in generator.integers(len(dataset), size=num_pictures).tolist():
        try:
            sample = dataset[index]
        except InputError as error:
            failure = error
            continue
        for _ in range(per_picture):
            window, label = _random_window(sample, len(dataset.label_map), generator)
            crops.append(preprocessing.normalise(_cut(sample.image, window, size, generator)))
            classes.append(label)
    if not crops and failure is not None:
        raise failure
    return torch.stack(crops), torch.tensor(classes)


def _random_window(sample: Sample, background: int, generator: np.random.Generator) -> tuple[np.ndarray, int]:
    """A square window (x1, y1, x2, y2) in pixels around an object, or around nothing, and its class."""
    targets = without_crowd(sample.targets)
    scale = np.array([sample.image.width, sample.image.height] * 2, dtype=np.float64)
    boxes = cxcywh_to_xyxy(targets.boxes).numpy() * scale
    if len(boxes) and generator.random() >= BACKGROUND_SHARE:
        chosen = int(generator.integers(len(boxes)))
        corners = boxes[chosen]
        longer = max(corners[2] - corners[0], corners[3] - corners[1])
        centre = (corners[:2] + corners[2:]) / 2 + generator.uniform(-SHIFT, SHIFT, 2) * longer
        return _square(centre, longer * generator.uniform(*CONTEXT)), int(targets.labels[chosen])
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = (math.log(share * scale.min()) for share in BACKGROUND_SIDES)
    for _ in range(_ATTEMPTS):
        side, centre = math.exp(generator.uniform(low, high)), generator.uniform(0, scale[:2])
        if not (np.abs(centres - centre) < MIDDLE * side).all(axis=1).any():
            break
    return _square(centre, side), background


def _square(centre: np.ndarray, side: float) -> np.ndarray:
    return np.concatenate([centre - side / 2, centre + side / 2])


def _cut(image: Image.Image, window: np.ndarray, size: int, generator: np.random.Generator) -> Image.Image:
    """The window at `size` pixels, black where it leaves the picture, flipped at random."""
    left, top = np.floor(window[:2]).astype(int).tolist()
    right, bottom = np.ceil(window[2:]).astype(int).tolist()
    cut = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    cut = cut.resize((size, size), Image.Resampling.BILINEAR)
    for flip in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        if generator.random() < 0.5:
            cut = cut.transpose(flip)
    return cut
