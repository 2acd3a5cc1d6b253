"""The loss terms, each for all decoder layers at once: an (L,) tensor, last layer last, unweighted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detrove.boxes import cxcywh_to_xyxy, giou_xyxy


def softmax_class_loss(logits: Tensor, classes: Tensor, no_object_weight: float) -> Tensor:
    """Cross-entropy as torch's weighted mean over a layer's queries (DETR): (L, B, Q, C + 1), (L, B, Q) to (L,).

    `classes` holds C for "no object", which weighs `no_object_weight`.
    """
    no_object = logits.shape[-1] - 1
    negative_log_likelihood = -logits.log_softmax(dim=-1).gather(-1, classes[..., None])[..., 0]
    weights = torch.where(classes == no_object, no_object_weight, 1.0).to(logits.dtype)
    return (weights * negative_log_likelihood).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))


def focal_class_loss(
    logits: Tensor, quality: Tensor, num_boxes: float, alpha: float = 0.25, gamma: float = 2.0
) -> Tensor:
    """Focal loss (Lin et al. 2017) summed over queries and classes, divided by `num_boxes`: (L, B, Q, C) to (L,).

    `quality` (L, B, Q, C) is 1 where a query answers for a class, else 0.
    """
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
    miss = probability * (1 - quality) + (1 - probability) * quality
    balance = alpha * quality + (1 - alpha) * (1 - quality)
    return (balance * cross_entropy * miss**gamma).sum(dim=(1, 2, 3)) / num_boxes


def quality_class_loss(logits: Tensor, quality: Tensor, num_boxes: float, gamma: float = 1.5) -> Tensor:
    """Cross-entropy whose goal is the matched box's IoU, summed and divided by `num_boxes`: (L, B, Q, C) to (L,).

    `quality` (L, B, Q, C) is a match's IoU at its class, 0 elsewhere. All classes of a matched query count fully, so
    that it learns which class it is; elsewhere a score p counts by p^γ. After varifocal loss (Zhang et al. 2021) and
    DEIM's matchability-aware loss (Huang et al. 2025, §3.3), which give a matched query's other classes little weight.
    """
    matched = (quality > 0).any(dim=-1, keepdim=True)
    weight = torch.where(matched, 1.0, logits.sigmoid().detach() ** gamma)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, quality, weight, reduction="none")
    return cross_entropy.sum(dim=(1, 2, 3)) / num_boxes


def box_losses(boxes: Tensor, targets: Tensor, num_boxes: float, giou_epsilon: float = 0.0) -> tuple[Tensor, Tensor]:
    """L1 and generalised-IoU losses of matched cxcywh boxes (L, n, 4), summed and divided by `num_boxes`: two (L,)."""
    l1 = (boxes - targets).abs().sum(dim=(1, 2)) / num_boxes
    giou = giou_xyxy(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(targets), giou_epsilon)
    return l1, (1 - giou).sum(dim=1) / num_boxes
