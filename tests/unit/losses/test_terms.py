"""Loss terms against torch, torchvision and loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

from detrove.losses.terms import box_losses, focal_class_loss, quality_class_loss, softmax_class_loss

LAYERS, PICTURES, QUERIES, CLASSES = 3, 2, 5, 4


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(LAYERS, PICTURES, QUERIES, CLASSES, generator=torch.Generator().manual_seed(0))


def test_softmax_is_the_weighted_mean_of_each_layer(logits):
    classes = torch.randint(CLASSES, logits.shape[:3], generator=torch.Generator().manual_seed(1))
    weight = torch.ones(CLASSES)
    weight[-1] = 0.1
    expected = [
        F.cross_entropy(layer.flatten(0, 1), labels.flatten(), weight)
        for layer, labels in zip(logits, classes, strict=True)
    ]
    torch.testing.assert_close(softmax_class_loss(logits, classes, 0.1), torch.stack(expected))


def test_focal_is_torchvisions_summed_and_divided(logits):
    goal = (torch.rand(logits.shape, generator=torch.Generator().manual_seed(1)) < 0.2).float()
    expected = [
        sigmoid_focal_loss(layer, targets, alpha=0.25, gamma=2, reduction="sum") / 7
        for layer, targets in zip(logits, goal, strict=True)
    ]
    torch.testing.assert_close(focal_class_loss(logits, goal, 7), torch.stack(expected))


def test_quality_as_by_loops(logits):
    quality = torch.zeros_like(logits)
    quality[0, 0, 1, 2], quality[1, 1, 3, 0], quality[2, 0, 0, 3] = 0.8, 0.3, 1e-4
    expected = []
    for layer in range(LAYERS):
        total = 0.0
        for query, goals in zip(
            logits[layer].flatten(0, 1).tolist(), quality[layer].flatten(0, 1).tolist(), strict=True
        ):
            for logit, goal in zip(query, goals, strict=True):
                p = 1 / (1 + math.exp(-logit))
                weight = 1.0 if max(goals) > 0 else p**1.5
                total -= weight * (goal * math.log(p) + (1 - goal) * math.log(1 - p))
        expected.append(total / 4)
    torch.testing.assert_close(quality_class_loss(logits, quality, 4), torch.tensor(expected))


def test_boxes_are_torchvisions_giou_and_l1():
    generator = torch.Generator().manual_seed(0)
    boxes, targets = (torch.rand(LAYERS, 6, 4, generator=generator) * 0.5 + 0.1 for _ in range(2))
    l1, giou = box_losses(boxes, targets, 3.0)
    for layer in range(LAYERS):
        corners = [box_convert(x[layer], "cxcywh", "xyxy") for x in (boxes, targets)]
        torch.testing.assert_close(giou[layer], generalized_box_iou_loss(*corners, reduction="sum") / 3)
        torch.testing.assert_close(l1[layer], F.l1_loss(boxes[layer], targets[layer], reduction="sum") / 3)


def test_no_matched_boxes_cost_nothing():
    empty = torch.zeros(LAYERS, 0, 4)
    assert all(term.tolist() == [0.0] * LAYERS for term in box_losses(empty, empty, 1.0))
