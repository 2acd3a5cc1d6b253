"""Do the boxes belong to the pictures? A linear look at the trunk's features tells them from those of other pictures.

Boxes at random places, or of other pictures, are read without a fault and learned by heart as well as right ones;
nothing else can be learned from them. What gives them away: a picture looks the same within them as within the boxes of
any other picture. Both are described by the means of the trunk's maps inside, and a linear regression tells them apart,
on pictures that it was not fitted to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import roi_align

from detrove.boxes import pairwise_iou_xyxy
from detrove.data import DetectionDataset
from detrove.data.batching import evaluation_batch
from detrove.nn.backbone import Backbone
from detrove.structures import ImageBatch, Preprocessing
from detrove.training.watch import some_pictures

MOST_PICTURES = 60
"""Evenly spaced among those with objects."""
PARTNERS = 3
"""Other pictures whose boxes are laid over one."""
MOST_BOXES = 4
"""Of each of the two, for a partner: a picture with hundreds shall not decide alone."""
FEWEST_BOXES = 100
"""Of each kind; with fewer, chance comes too far from one half (a standard error of 0.04)."""
APART = 0.1
"""IoU under which boxes are of different things."""
NUM_FOLDS = 5
RIDGE = 1.0
"""Of the regression, for each box that it is fitted to."""


@dataclass(frozen=True)
class Signal:
    """In what share of pairs a picture's own box scores higher than one of another picture: 0.5 is chance, 1 always.

    `num_boxes` of each kind, in `num_pictures`.
    """

    share: float
    num_boxes: int
    num_pictures: int


@dataclass(frozen=True)
class _Sample:
    """Of one picture: what boxes look like, (N, D), and which of them (N,) are its own."""

    features: Tensor
    own: Tensor


def label_signal(
    backbone: Backbone, data: DetectionDataset, preprocessing: Preprocessing, seed: int, seconds: float
) -> Signal | None:
    """What the trunk's features know of the boxes; None where these are too few, or `seconds` too short for enough."""
    chosen = some_pictures(data, MOST_PICTURES)
    boxes = [_boxes(data, index) for index in chosen]
    if sum(min(len(each), PARTNERS * MOST_BOXES) for each in boxes) < FEWEST_BOXES:
        return None
    deadline = time.monotonic() + seconds
    was_training = backbone.training
    backbone.eval()
    try:
        samples = list(_samples(backbone, data, preprocessing, chosen, boxes, np.random.default_rng(seed), deadline))
    finally:
        backbone.train(was_training)
    num_boxes = sum(int(sample.own.sum()) for sample in samples)
    return Signal(_told_apart(samples), num_boxes, len(samples)) if num_boxes >= FEWEST_BOXES else None


def _boxes(data: DetectionDataset, index: int) -> Tensor:
    """(N, 4) xyxy, parts of the picture."""
    record = data.records[index]
    return torch.from_numpy(record.boxes_xyxy / np.array([record.width, record.height] * 2)).float()


def _samples(
    backbone: Backbone,
    data: DetectionDataset,
    preprocessing: Preprocessing,
    chosen: list[int],
    boxes: list[Tensor],
    generator: np.random.Generator,
    deadline: float,
) -> Iterator[_Sample]:
    """A sample of each picture, in random order, until the time is used up."""
    device = next(backbone.parameters()).device
    for place in generator.permutation(len(chosen)).tolist():
        if time.monotonic() > deadline:
            return
        asked, own = [], []
        for _ in range(PARTNERS):
            partner = (place + int(generator.integers(1, max(2, len(chosen))))) % len(chosen)
            mine, others = apart(boxes[place], boxes[partner])
            number = min(MOST_BOXES, len(mine), len(others))
            asked += [_some(mine, number, generator), _some(others, number, generator)]
            own += [True] * number + [False] * number
        if own:
            images, _ = evaluation_batch([data[chosen[place]]], preprocessing)
            yield _Sample(_describe(backbone, images.to(device), torch.cat(asked)), torch.tensor(own))


def apart(mine: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Of two sets of boxes, xyxy, those that overlap none of the other set.

    Asked of both sides alike, so that boxes which mean nothing cannot be told apart by their size either.
    """
    free = pairwise_iou_xyxy(mine, others) < APART
    return mine[free.all(dim=1)], others[free.all(dim=0)]


def _some(boxes: Tensor, number: int, generator: np.random.Generator) -> Tensor:
    return boxes[torch.from_numpy(generator.permutation(len(boxes))[:number])]


@torch.no_grad()
def _describe(backbone: Backbone, images: ImageBatch, boxes: Tensor) -> Tensor:
    """(N, D) the means of all maps within N boxes, parts of a single picture."""
    height, width = images.sizes[0].tolist()
    regions = (boxes * torch.tensor([width, height] * 2)).to(images.pixels.device)
    pooled = [
        roi_align(level.features, [regions], 1, level.shape[1] / images.pixels.shape[-1], aligned=True)
        for level in backbone(images)
    ]
    return torch.cat(pooled, dim=1).flatten(1).cpu().double()  # not every device has double


def _told_apart(samples: list[_Sample]) -> float:
    """The share of pairs in which the own box scores higher, each fold scored by a regression on the others."""
    higher, pairs = 0.0, 0
    for fold in range(min(NUM_FOLDS, len(samples))):
        asked = samples[fold::NUM_FOLDS]
        weights, shift = _fit([sample for place, sample in enumerate(samples) if place % NUM_FOLDS != fold])
        scores = (torch.cat([sample.features for sample in asked]) - shift) @ weights
        own = torch.cat([sample.own for sample in asked])
        ahead = scores[own][:, None] - scores[~own][None]
        higher += (ahead > 0).double().sum().item() + 0.5 * (ahead == 0).double().sum().item()
        pairs += ahead.numel()
    return higher / pairs


def _fit(samples: list[_Sample]) -> tuple[Tensor, Tensor]:
    """Weights (D,) and shift (D,) of a ridge regression on standardised features, own boxes against others."""
    features = torch.cat([sample.features for sample in samples])
    shift, scale = features.mean(dim=0), features.std(dim=0).clamp_min(1e-6)
    x, y = (features - shift) / scale, torch.cat([sample.own for sample in samples]).double() - 0.5
    gram = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    return torch.linalg.solve(gram, x.T @ y) / scale, shift
