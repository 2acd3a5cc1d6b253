"""A query on its way through the decoder: what it answers after each layer, and where each layer starts from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detrove.boxes import cxcywh_to_xyxy, iou_xyxy
from detrove.structures import Predictions
from detrove.study.record import Recording


@dataclass(frozen=True)
class QueryPath:
    """One query through the L layers of a decoder.

    `boxes` (L, 4) cxcywh in [0, 1] of the picture; `scores` (L,) of its best class and `labels` (L,); `overlaps` (L,):
    IoU of each box with the last; `anchors`: what each layer looked from, (2 or 4,) each, none in DETR.
    """

    query: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    overlaps: np.ndarray
    anchors: list[np.ndarray]


def query_scores(predictions: Predictions, scores: str) -> tuple[Tensor, Tensor]:
    """The score and the class slot that every query is surest of, in every layer: two of (L, B, Q).

    `scores` is how logits become scores, "softmax" or "sigmoid", as in the detector's config.
    """
    logits = predictions.logits.detach().float()
    probabilities = logits.softmax(dim=-1)[..., :-1] if scores == "softmax" else logits.sigmoid()
    best, labels = probabilities.max(dim=-1)
    return best, labels


def query_path(seen: Recording, query: int, scores: str, picture: int = 0) -> QueryPath:
    """What became of one query, from a recording of a forward pass."""
    best, labels = query_scores(seen.finished(), scores)
    boxes = seen.boxes()[:, picture, query].float()
    corners = cxcywh_to_xyxy(boxes)
    overlaps = iou_xyxy(corners, corners[-1:].expand_as(corners))
    return QueryPath(
        query,
        boxes.numpy(force=True),
        best[:, picture, query].numpy(force=True),
        labels[:, picture, query].numpy(force=True),
        overlaps.numpy(force=True),
        [anchors[picture, query].float().numpy(force=True) for anchors in seen.decoder_anchors()],
    )


def queries_by_score(seen: Recording, scores: str, picture: int = 0) -> list[int]:
    """All queries of the last layer, the surest first."""
    best, _ = query_scores(seen.finished(), scores)
    return torch.argsort(best[-1, picture], descending=True, stable=True).tolist()
