"""How far the answers of two computations of the same detector are apart."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrove.structures import Predictions

IN_ORDER = 1e-4
"""Answers closer than this query by query need no pairing."""


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
