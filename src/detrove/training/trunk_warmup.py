"""A random trunk learns to tell crops apart before the detector learns to find.

A detector teaches its trunk slowly: what an object is must be learned through boxes that are still wrong. On crops of
the labelled objects the same trunk learns it as a classifier, many times cheaper a sample. It is what ImageNet weights
are for, in small, from the user's own pictures; a trunk that has weights does without.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from detrove.data import DetectionDataset
from detrove.data.crops import random_crops
from detrove.nn.backbone import Backbone
from detrove.structures import ImageBatch, Preprocessing

CROP_SIZE = 64
PICTURES, CROPS_PER_PICTURE = 8, 8
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-2
RISE = 30  # steps
FINAL_RATE = 0.1


def warm_up_trunk(
    backbone: Backbone,
    dataset: DetectionDataset,
    preprocessing: Preprocessing,
    seed: int,
    fraction: Callable[[int], float],
    told: Callable[[float, float], None],
) -> None:
    """Train the trunk, in place, to classify crops from each of its levels.

    Each level gets a linear head on its mean, which is thrown away afterwards; the loss is the sum of their
    cross-entropies over the data set's classes and "background". `fraction(step)` says how much of the warm-up is done
    after `step` steps; at 1 it ends. `told(fraction, accuracy)` hears the running accuracy of the coarsest level.
    """
    device = next(backbone.parameters()).device
    num_classes = len(dataset.label_map) + 1
    heads = nn.ModuleList(nn.Linear(channels, num_classes) for channels in backbone.channels).to(device)
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    generator = np.random.default_rng([seed, num_classes])
    backbone.train()
    step, accuracy = 0, 0.0
    while (done := fraction(step)) < 1:
        crops, classes = random_crops(dataset, preprocessing, PICTURES, CROPS_PER_PICTURE, CROP_SIZE, generator)
        classes = classes.to(device)
        levels = backbone(ImageBatch.from_images(list(crops)).to(device))
        logits = [head(level.features.mean(dim=(2, 3))) for head, level in zip(heads, levels, strict=True)]
        loss = torch.stack([F.cross_entropy(x, classes) for x in logits]).sum()
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate(done, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        right = (logits[-1].argmax(dim=1) == classes).float().mean().item()
        accuracy += (right - accuracy) / min(step, 50)
        told(done, accuracy)


def rate(done: float, step: int) -> float:
    """The learning rate's factor: a short rise, then half a cosine down to a tenth."""
    falling = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return min(1.0, (step + 1) / RISE) * falling
