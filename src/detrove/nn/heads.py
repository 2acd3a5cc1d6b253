"""Prediction heads of the detectors with sigmoid scores, started as the official codes start them."""

from __future__ import annotations

import copy
import math

from torch import nn

from detrove.nn.linear import Linear
from detrove.nn.transformer import MLP


def sigmoid_class_head(dim: int, num_classes: int) -> nn.Linear:
    """Content to one logit a class; every score starts near 0.01 (Lin et al. 2017, §4.1)."""
    head = Linear(dim, num_classes)
    nn.init.constant_(head.bias, -math.log(99))
    return head


def reference_box_head(dim: int, num_layers: int = 3) -> MLP:
    """Content to a change of its reference before the sigmoid: none at the start."""
    head = MLP(dim, dim, 4, num_layers)
    nn.init.zeros_(head.last.weight)
    nn.init.zeros_(head.last.bias)
    return head


def heads_of_layers(
    dim: int, num_classes: int, num_heads: int, apart: bool, small_boxes: bool
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Class and box heads by layer as in Deformable DETR: clones where `apart`, else one under many names.

    With `small_boxes` the first box head starts at −2 before the sigmoid in width and height.
    """
    class_head, box_head = sigmoid_class_head(dim, num_classes), reference_box_head(dim)
    if apart:
        class_heads = [copy.deepcopy(class_head) for _ in range(num_heads)]
        box_heads = [copy.deepcopy(box_head) for _ in range(num_heads)]
    else:
        class_heads, box_heads = [class_head] * num_heads, [box_head] * num_heads
    if small_boxes:
        nn.init.constant_(box_heads[0].last.bias[2:], -2.0)
    return nn.ModuleList(class_heads), nn.ModuleList(box_heads)
