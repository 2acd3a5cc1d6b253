"""How a detector's queries behave: whether they differ, whether they keep their objects, whether they share one.

Pure functions on predictions, matches and detections. Training watches them (`training/watch`), the study draws them.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from detrove.evaluation.matching import BoxTable, match, overlapping_pairs
from detrove.losses import Matches


def of_all_pictures(batches: Sequence[Tensor], blank: float | None = None) -> Tensor:
    """(L, B, Q, …) of several batches as one.

    Where pictures have fewer cells than the detector has queries, those of a batch are as many as its cells: the last
    one is repeated for as many as the others have, or these are `blank`.
    """
    most = max(batch.shape[2] for batch in batches)
    joined = torch.cat([batch[:, :, torch.arange(most).clamp(max=batch.shape[2] - 1)] for batch in batches], dim=1)
    if blank is not None:
        counts = torch.tensor([batch.shape[2] for batch in batches for _ in range(batch.shape[1])])
        joined[:, torch.arange(most) >= counts[:, None]] = blank
    return joined


@dataclass(frozen=True)
class Spread:
    """How far a detector's answers differ, as root mean squares: boxes in parts of the picture, classes in nats.

    `..._within` a picture, from query to query; `..._between` pictures, from picture to picture at the same query, None
    for a single picture. Where queries are ranks of an encoder's proposals, as in DINO, the latter compares ranks.
    """

    boxes_within: float
    classes_within: float
    boxes_between: float | None
    classes_between: float | None


def spread(boxes: Tensor, logits: Tensor, scores: str) -> Spread:
    """How far the answers of one layer differ: `boxes` (B, Q, 4) cxcywh in [0, 1], `logits` (B, Q, C).

    `scores` is "softmax" or "sigmoid": classes are compared by log-probability, in which a number added to all logits
    of a softmax is nothing, or by logit.
    """
    classes = logits.float().log_softmax(dim=-1) if scores == "softmax" else logits.float()
    boxes = boxes.float()
    several = len(boxes) > 1
    return Spread(
        _deviation(boxes, 1),
        _deviation(classes, 1),
        _deviation(boxes, 0) if several else None,
        _deviation(classes, 0) if several else None,
    )


def _deviation(values: Tensor, dim: int) -> float:
    """The root of the mean variance along a dimension."""
    return values.var(dim=dim, correction=0).mean().sqrt().item()


def queries_of_objects(matches: Matches, num_objects: int) -> Tensor:
    """(L, N) which query of its picture answers for each object, in every layer; -1 for none.

    Objects count through the batch, picture after picture, as `Matches.position` does.
    """
    queries = torch.full((matches.query.shape[0], num_objects), -1, dtype=torch.int64, device=matches.query.device)
    return queries.scatter_(1, matches.position, matches.query)


def changed_share(before: Tensor, after: Tensor) -> float | None:
    """The share of objects that another query answers for, of those with a query in both; None where there is none.

    `before` and `after` (N,) are of the same objects: two layers of one forward pass, or one layer at two times. The
    instability of DN-DETR (Li et al. 2022, §3.2) is such a count between epochs.
    """
    both = (before >= 0) & (after >= 0)
    return (before != after)[both].float().mean().item() if both.any() else None


def layer_changes(queries: Tensor) -> list[float | None]:
    """For each decoder layer but the first, the share of objects that change their query on the way into it.

    `queries` (L, N) as `queries_of_objects` gives them.
    """
    return [changed_share(before, after) for before, after in itertools.pairwise(queries)]


def duplicates_per_object(truth: BoxTable, found: BoxTable, iou: float = 0.5) -> np.ndarray:
    """(G,) how many detections too many each true object has.

    One that matches no object, but overlaps one of its class by at least `iou`, counts for the one that it overlaps
    most. `found` are the detections that are shown; crowd regions have no duplicates.
    """
    spare = np.flatnonzero(match(truth, found, iou).is_false_alarm)
    pairs = overlapping_pairs(truth, found.select(spare), iou)
    pairs = pairs.select(pairs.same_class)
    order = np.lexsort((-pairs.iou, pairs.found))
    _, first = np.unique(pairs.found[order], return_index=True)
    return np.bincount(pairs.truth[order][first], minlength=len(truth))


def duplicate_rate(truth: BoxTable, found: BoxTable, iou: float = 0.5) -> float | None:
    """Duplicates for each object that is found: 0 where each is shown once, 1 where each is shown twice.

    None where no object is found.
    """
    hits = int(match(truth, found, iou).is_hit.sum())
    return float(duplicates_per_object(truth, found, iou).sum() / hits) if hits else None


def as_many_as_objects(truth: BoxTable, found: BoxTable) -> BoxTable:
    """Of each picture as many detections as it has objects, those with the highest scores.

    What a perfect detector shows, whatever its scores: a threshold that cannot be chosen wrongly while a detector is
    young. Crowd regions count as no object.
    """
    objects = np.bincount(truth.pictures[~truth.is_crowd], minlength=1 + max(found.pictures, default=0))
    order = np.lexsort((-found.scores, found.pictures))
    pictures = found.pictures[order]
    first_of_picture = np.searchsorted(pictures, pictures)
    rank = np.arange(len(found)) - first_of_picture
    return found.select(order[rank < objects[pictures]])
