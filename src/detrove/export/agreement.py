"""How far the answers of two computations of the same detector are apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrove.structures import Detections, Predictions

IN_ORDER = 1e-4
"""Answers closer than this query by query need no pairing."""

FLOOR = 0.05
"""Detections of lower scores are not compared."""


def answer_differences(one: Predictions, other: Predictions) -> tuple[Tensor, Tensor]:
    """Each query's largest difference in the last layer's logits and in its boxes: two of (B, Q), float32.

    A picture's queries are a set: a two-stage detector whose cells score almost alike may put them in another order.
    Where they differ in order, each is paired with its counterpart so that the sum of differences is smallest.
    Not-a-numbers count as infinitely far.
    """
    logits, boxes = ([each.detach().float().cpu()[-1] for each in (a, b)] for a, b in _fields(one, other))
    if logits[0].shape != logits[1].shape:
        raise ValueError(f"logits of shapes {tuple(logits[0].shape)} and {tuple(logits[1].shape)}")
    of_logits, of_boxes = [], []
    for picture in range(len(logits[0])):
        pairs = [(values[0][picture], values[1][picture]) for values in (logits, boxes)]
        order = torch.arange(len(pairs[0][0]))
        if max(_largest(*pair).max() for pair in pairs) > IN_ORDER:
            order = _counterparts(pairs)
        for (a, b), found in zip(pairs, (of_logits, of_boxes), strict=True):
            found.append(_largest(a, b[order]))
    return torch.stack(of_logits), torch.stack(of_boxes)


def _fields(one: Predictions, other: Predictions) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (one.logits, other.logits), (one.boxes, other.boxes)


def _largest(a: Tensor, b: Tensor) -> Tensor:
    """The largest difference of each row."""
    return (a - b).abs().amax(dim=-1).nan_to_num(nan=float("inf"))


def _counterparts(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """For each row of the first, the row of the second that stands for it."""
    cost = sum(torch.cdist(a, b, p=float("inf")) for a, b in pairs)
    assert isinstance(cost, Tensor)
    return torch.from_numpy(linear_sum_assignment(cost.nan_to_num(nan=1e9, posinf=1e9).numpy())[1])


# ---- detections as sets ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tolerance:
    """How far apart two detections may be to count as one: `boxes` in parts of the picture's longer side, `scores`.

    `share` is the part of the detections that must have such a counterpart.
    """

    boxes: float
    scores: float
    share: float


@dataclass(frozen=True)
class SetAgreement:
    """How two sets of detections of one picture agree.

    Of the `compared` detections of both sides, those that score above the floor, `alike` have a counterpart. `box`, in
    parts of the longer side, and `score` are the largest differences: among counterparts where all have one, else of
    the others to what comes nearest to them.
    """

    compared: int
    alike: int
    box: float
    score: float


def agreement_of_sets(
    one: Detections, other: Detections, longer_side: int, tolerance: Tolerance, limit: int, floor: float = FLOOR
) -> SetAgreement:
    """Compare all that two computations of a detector found in one picture, whatever the order.

    Detections above the `floor` on one side need a counterpart of their class within the tolerance on the other, whose
    score may be on the other side of the floor. Each stands for one only. A side that holds `limit` detections was cut
    off: what it lacks may have come after its last.
    """
    boxes = (one.boxes[:, None] - other.boxes[None]).abs().amax(dim=-1) / longer_side
    scores = (one.scores[:, None] - other.scores[None]).abs()
    apart = torch.maximum(boxes / tolerance.boxes, scores / tolerance.scores)
    apart = apart.masked_fill(one.labels[:, None] != other.labels[None], float("inf"))
    apart = apart.nan_to_num(nan=float("inf"), posinf=float("inf"))
    rows, columns = linear_sum_assignment(apart.clamp(max=1e6).masked_fill(apart > 1, 1e6).numpy())
    fit = apart[rows, columns] <= 1
    rows, columns = torch.as_tensor(rows)[fit], torch.as_tensor(columns)[fit]
    lonely_one = _lonely(one, other, rows, tolerance, limit, floor)
    lonely_other = _lonely(other, one, columns, tolerance, limit, floor)
    compared = int((one.scores > floor).sum() + (other.scores > floor).sum())
    differences = [(boxes[r, c].item(), scores[r, c].item()) for r, c in zip(rows, columns, strict=True)]
    if len(lonely_one) or len(lonely_other):
        differences = [_nearest(i, apart, boxes, scores) for i in lonely_one]
        differences += [_nearest(i, apart.T, boxes.T, scores.T) for i in lonely_other]
    return SetAgreement(
        compared,
        compared - len(lonely_one) - len(lonely_other),
        max((box for box, _ in differences), default=0.0),
        max((score for _, score in differences), default=0.0),
    )


def _lonely(
    own: Detections, other: Detections, paired: Tensor, tolerance: Tolerance, limit: int, floor: float
) -> list[int]:
    """Those above the floor without a counterpart, but for what may have come after the other side's last."""
    alone = own.scores > floor
    alone[paired] = False
    if len(other) >= limit:
        alone &= own.scores > other.scores.min() + tolerance.scores
    return alone.nonzero().flatten().tolist()


def _nearest(index: int, apart: Tensor, boxes: Tensor, scores: Tensor) -> tuple[float, float]:
    """Differences of a row to the column that comes nearest; as far as can be where none is of its class."""
    if not apart.shape[1] or apart[index].min().isinf():
        return 1.0, 1.0
    nearest = apart[index].argmin()
    return boxes[index, nearest].item(), scores[index, nearest].item()
