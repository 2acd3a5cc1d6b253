"""Pure functions on boxes. The format is in the name: `cxcywh` (centre, width, height) or `xyxy` (two corners).

All of them take and return tensors whose last dimension is 4 and work on any leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre form to corner form."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corner form to centre form."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def area_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) to (...): areas; negative sides are not clipped."""
    size = boxes[..., 2:] - boxes[..., :2]
    return size[..., 0] * size[..., 1]


def _iou_and_hull(a: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """IoU, union and the area of the smallest enclosing box of broadcastable corner boxes."""
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    intersection = overlap[..., 0] * overlap[..., 1]
    union = area_xyxy(a) + area_xyxy(b) - intersection
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)
    return intersection / (union + epsilon), union, hull[..., 0] * hull[..., 1]


def iou_xyxy(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of broadcastable corner boxes: (..., 4), (..., 4) to (...). 0/0 is nan."""
    return _iou_and_hull(a, b, 0.0)[0]


def giou_xyxy(a: Tensor, b: Tensor, epsilon: float = 0.0) -> Tensor:
    """Generalised IoU of broadcastable corner boxes (Rezatofighi et al. 2019), in [-1, 1].

    `epsilon` is added to the union and to the enclosing area, as DAB-DETR's and DINO's code does with 1e-6;
    DETR's and Deformable DETR's add nothing.
    """
    iou, union, hull = _iou_and_hull(a, b, epsilon)
    return iou - (hull - union) / (hull + epsilon)


def pairwise_giou_xyxy(a: Tensor, b: Tensor, epsilon: float = 0.0) -> Tensor:
    """(..., N, 4) and (..., M, 4) to the (..., N, M) matrix of generalised IoUs."""
    return giou_xyxy(a[..., :, None, :], b[..., None, :, :], epsilon)


def pairwise_iou_xyxy(a: Tensor, b: Tensor) -> Tensor:
    """(..., N, 4) and (..., M, 4) to the (..., N, M) matrix of IoUs."""
    return iou_xyxy(a[..., :, None, :], b[..., None, :, :])


def inverse_sigmoid(x: Tensor, epsilon: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) with x clamped to [0, 1] and both parts to at least `epsilon`, as the official codes do.

    `epsilon` is 1e-5 in Deformable and Conditional DETR, 1e-3 in DAB-DETR and DINO.
    """
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=epsilon) / (1 - x).clamp(min=epsilon))
