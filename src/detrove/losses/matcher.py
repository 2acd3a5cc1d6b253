"""Which query answers for which object: the one-to-one assignment of least cost (Carion et al. 2020, §3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrove.boxes import cxcywh_to_xyxy, pairwise_giou_xyxy
from detrove.errors import NotFiniteError
from detrove.structures import Targets

FEWEST_COSTS_FOR_THREADS = 2_000_000
"""Of all layers and pictures. SciPy assigns without Python's lock: 7 layers of 8 pictures, 900 queries and 100 objects
took two threads 10 ms instead of 17, 16 pictures with 300 objects 64 instead of 185; small ones only wait for them."""


@dataclass(frozen=True)
class MatchCost:
    """Weights of the matching cost. `scores` is "softmax" (cost −p) or "sigmoid" (the focal cost, α 0.25, γ 2)."""

    scores: str
    class_weight: float
    box_weight: float
    giou_weight: float
    giou_epsilon: float = 0.0


@dataclass
class Matches:
    """Pairs of every layer: four (L, n) int64 tensors, n = Σ over pictures of min(Q, objects).

    `picture` indexes the batch, `query` the queries, `target` the picture's own objects, `position` the concatenated
    objects of all pictures.
    """

    picture: Tensor
    query: Tensor
    target: Tensor
    position: Tensor

    @property
    def layer(self) -> Tensor:
        """The layer of each pair, (L, 1), to index with beside the others."""
        return torch.arange(self.query.shape[0], device=self.query.device)[:, None]


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: Sequence[Targets], cost: MatchCost) -> Matches:
    """Assign the objects of each picture to queries, separately in every layer.

    `logits` (L, B, Q, C), `boxes` (L, B, Q, 4) cxcywh. The cost of all pairs of all layers and pictures is computed at
    once, in float32 or better; SciPy then assigns picture by picture, in threads where they are many and large, queries
    in rows, so that ties fall as in the official codes. Raises `NotFiniteError` naming the pictures whose cost is not
    finite.
    """
    counts = [len(target) for target in targets]
    layers, device = logits.shape[0], logits.device
    if sum(counts) == 0:
        empty = torch.zeros(layers, 0, dtype=torch.int64, device=device)
        return Matches(empty, empty, empty, empty)
    matrix = cost_matrix(logits, boxes, targets, cost).cpu()
    _require_finite(matrix, targets)
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    pairs: list[list[Tensor]] = [[], [], []]
    for assigned in _assignments(matrix.numpy(), counts):
        pairs[0].append(torch.cat([torch.full((len(q),), b) for b, (q, _) in enumerate(assigned)]))
        pairs[1].append(torch.cat([q for q, _ in assigned]))
        pairs[2].append(torch.cat([t for _, t in assigned]))
    picture, query, target = (torch.stack(part).to(torch.int64) for part in pairs)
    position = target + torch.tensor(starts[:-1])[picture]
    return Matches(*(x.to(device, non_blocking=True) for x in (picture, query, target, position)))


def _assignments(matrix: np.ndarray, counts: Sequence[int]) -> list[list[tuple[Tensor, Tensor]]]:
    """For each layer and picture of (L, B, Q, N) costs, of which the first `counts` columns count: queries, objects."""
    costs = [of_picture[:, :n] for of_layer in matrix for of_picture, n in zip(of_layer, counts, strict=True)]
    if matrix.size < FEWEST_COSTS_FOR_THREADS or torch.get_num_threads() == 1:
        found = map(linear_sum_assignment, costs)
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            found = threads.map(linear_sum_assignment, costs)
    pairs = [(torch.from_numpy(queries), torch.from_numpy(objects)) for queries, objects in found]
    return [pairs[start : start + len(counts)] for start in range(0, len(pairs), len(counts))]


@torch.no_grad()
def match_several(
    logits: Tensor, boxes: Tensor, targets: Sequence[Targets], cost: MatchCost, per_object: int
) -> Matches:
    """One-to-many: each object takes its `per_object` cheapest cells; a cell that several want goes to the cheapest.

    `logits` (1, B, T, C), `boxes` (1, B, T, 4) cxcywh. Returns `Matches` with L = 1; every object that is the cheapest
    somewhere keeps at least one cell. The dense counterpart of `match`, after SimOTA (Ge et al. 2021, §2.3)
    with the family's cost and a fixed number.
    """
    if not any(len(target) for target in targets):
        return match(logits, boxes, targets, cost)
    counts = torch.tensor([len(target) for target in targets], device=logits.device)
    matrix = cost_matrix(logits, boxes, targets, cost)
    _require_finite(matrix, targets)
    costs = matrix[0]  # (B, T, N)
    own = torch.arange(costs.shape[-1], device=costs.device) < counts[:, None]
    costs = costs.masked_fill(~own[:, None, :], float("inf"))
    cheapest = costs.topk(min(per_object, costs.shape[1]), dim=1, largest=False)
    wanted = torch.full_like(costs, float("inf")).scatter(1, cheapest.indices, cheapest.values)
    value, target = wanted.min(dim=-1)
    picture, query = value.isfinite().nonzero(as_tuple=True)
    target = target[picture, query]
    position = target + (counts.cumsum(0) - counts)[picture]
    return Matches(picture[None], query[None], target[None], position[None])


def cost_matrix(logits: Tensor, boxes: Tensor, targets: Sequence[Targets], cost: MatchCost) -> Tensor:
    """(L, B, Q, N) costs, N the most objects in a picture; columns beyond a picture's own are meaningless."""
    labels, target_boxes = pad_targets(targets, boxes)
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits, boxes, target_boxes = logits.float(), boxes.float(), target_boxes.float()
    index = labels[None, :, None, :].expand(*logits.shape[:3], -1)
    if cost.scores == "softmax":
        class_cost = -logits.softmax(dim=-1).gather(-1, index)
    else:
        class_cost = focal_cost(logits.sigmoid()).gather(-1, index)
    box_cost = torch.cdist(boxes, target_boxes.expand(logits.shape[0], -1, -1, -1), p=1)
    giou = pairwise_giou_xyxy(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(target_boxes)[None], cost.giou_epsilon)
    return cost.box_weight * box_cost + cost.class_weight * class_cost - cost.giou_weight * giou


def focal_cost(probability: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """What calling a query an object of a class changes in the focal loss; logarithms with 1e-8 as officially."""
    positive = alpha * (1 - probability) ** gamma * -(probability + 1e-8).log()
    negative = (1 - alpha) * probability**gamma * -(1 - probability + 1e-8).log()
    return positive - negative


def pad_targets(targets: Sequence[Targets], like: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (B, N) and boxes (B, N, 4) of all pictures, padded with class 0 and a box at the centre."""
    most = max(len(target) for target in targets)
    labels = torch.zeros(len(targets), most, dtype=torch.int64, device=like.device)
    boxes = like.new_full((len(targets), most, 4), 0.5)
    for index, target in enumerate(targets):
        labels[index, : len(target)] = target.labels
        boxes[index, : len(target)] = target.boxes
    return labels, boxes


def _require_finite(matrix: Tensor, targets: Sequence[Targets]) -> None:
    if matrix.isfinite().all():
        return
    bad = [
        str(target.image_id if target.image_id is not None else f"number {index} of the batch")
        for index, target in enumerate(targets)
        if not matrix[:, index, :, : len(target)].isfinite().all()
    ]
    if bad:
        raise NotFiniteError(
            f"matching cost is not finite for picture {', '.join(bad)}: the prediction or its boxes hold nan or inf; "
            "check its annotation, or lower the learning rate"
        )
