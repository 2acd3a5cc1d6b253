"""From a detector's raw predictions to detections in pixels of the original pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from detrove.boxes import cxcywh_to_xyxy
from detrove.structures import Detections, LabelMap, Predictions


def postprocess(
    predictions: Predictions,
    original_sizes: Sequence[tuple[int, int]],
    label_map: LabelMap,
    scores: str,
    num_detections: int,
    clip: bool = True,
) -> list[Detections]:
    """The last decoder layer as one `Detections` per picture, by descending score, on the CPU, in float32.

    `scores` is how logits become scores. "softmax" (DETR's `PostProcess`): the last slot means "no object" and is left
    out, each query gives its best class. "sigmoid" (Deformable DETR's `PostProcess`): every query and class is a
    candidate of its own, so a query may give several detections. At most `num_detections` are kept per picture.

    Boxes are scaled by `original_sizes`, (height, width) in pixels as they were before preprocessing, and clipped to
    the picture. The official codes do not clip; `clip=False` gives their boxes.
    """
    logits, boxes = predictions.logits[-1].detach().float(), predictions.boxes[-1].detach().float()
    if scores not in ("softmax", "sigmoid"):
        raise ValueError(f"scores must be softmax or sigmoid, got {scores!r}")
    num_slots = logits.shape[-1] - (scores == "softmax")
    if num_slots != len(label_map):
        raise ValueError(f"the model has {num_slots} class slots, its label map {len(label_map)}")
    if len(original_sizes) != len(logits):
        raise ValueError(f"{len(logits)} pictures were predicted, {len(original_sizes)} original sizes given")
    choose = _best_class_per_query if scores == "softmax" else _best_pairs
    values, queries, labels = choose(logits, num_detections)
    chosen = cxcywh_to_xyxy(boxes.gather(1, queries[..., None].expand(-1, -1, 4)))
    return [
        Detections(_to_pixels(chosen[i], size, clip), values[i].cpu(), labels[i].cpu(), label_map)
        for i, size in enumerate(original_sizes)
    ]


def _best_class_per_query(logits: Tensor, num_detections: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, Q, C + 1) logits to scores, query indices and labels, each (B, N) with N <= num_detections."""
    best, labels = logits.softmax(-1)[..., :-1].max(-1)
    values, queries = best.sort(dim=-1, descending=True, stable=True)
    values, queries = values[:, :num_detections], queries[:, :num_detections]
    return values, queries, labels.gather(1, queries)


def _best_pairs(logits: Tensor, num_detections: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, Q, C) logits to scores, query indices and labels, each (B, N) with N <= num_detections."""
    num_classes = logits.shape[-1]
    flat = logits.sigmoid().flatten(1)
    values, index = flat.topk(min(num_detections, flat.shape[1]), dim=1)
    return values, index // num_classes, index % num_classes


def _to_pixels(boxes: Tensor, size: tuple[int, int], clip: bool) -> Tensor:
    """(N, 4) xyxy in [0, 1] to pixels of a picture of (height, width)."""
    height, width = size
    scale = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    boxes = boxes * scale
    return (boxes.clamp(min=0).minimum(scale) if clip else boxes).cpu()
