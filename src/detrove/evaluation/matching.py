"""Greedy matching of detections with the truth at one IoU, as COCO does it, over a whole data set at once.

All boxes of a data set stand in flat arrays; the pairs that overlap enough are found picture by picture with one IoU
matrix each, and then taken in one pass in the order of their priority. That is what COCO's loop over detections does,
because each detection takes the best free true box when its turn by score has come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detrove.evaluation.metrics import numbering


@dataclass(frozen=True)
class BoxTable:
    """N boxes of many pictures: `pictures` and `classes` (N,) int64 positions, `boxes_xyxy` (N, 4) float64 in pixels.

    Pictures count in the order of the ground truth, classes in the order of their category ids. `scores` (N,) are 1 for
    true boxes; `is_crowd` (N,) is False for detections.
    """

    pictures: np.ndarray
    classes: np.ndarray
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    is_crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    def select(self, keep: np.ndarray) -> BoxTable:
        """The boxes that the boolean mask or index `keep` names."""
        return BoxTable(
            self.pictures[keep], self.classes[keep], self.boxes_xyxy[keep], self.scores[keep], self.is_crowd[keep]
        )

    @classmethod
    def of(cls, ground_truth: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]]) -> BoxTable:
        """COCO annotations or results as a table; positions as `ground_truth` orders its pictures and categories."""
        pictures, categories = numbering(ground_truth)
        boxes_xywh = np.array([box["bbox"] for box in boxes], dtype=np.float64).reshape(-1, 4)
        return cls(
            pictures=np.array([pictures[box["image_id"]] for box in boxes], dtype=np.int64),
            classes=np.array([categories[box["category_id"]] for box in boxes], dtype=np.int64),
            boxes_xyxy=np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1),
            scores=np.array([box.get("score", 1.0) for box in boxes], dtype=np.float64),
            is_crowd=np.array([bool(box.get("iscrowd", 0)) for box in boxes], dtype=bool),
        )


@dataclass(frozen=True)
class Matching:
    """Which true box each detection explains: `truth_of` (D,) positions in the truth, -1 for none.

    `ignored` (D,) marks unmatched detections inside a crowd region of their class: neither right nor wrong.
    """

    truth_of: np.ndarray
    ignored: np.ndarray

    @property
    def is_hit(self) -> np.ndarray:
        """(D,) bool."""
        return self.truth_of >= 0

    @property
    def is_false_alarm(self) -> np.ndarray:
        """(D,) bool."""
        return (self.truth_of < 0) & ~self.ignored


def match(truth: BoxTable, found: BoxTable, iou: float = 0.5, across_classes: bool = False) -> Matching:
    """Match detections with true boxes that they overlap by at least `iou`, one to one.

    The detection with the highest score chooses first and takes the free box it overlaps most. With `across_classes`,
    what remains after that is matched once more without regard to the class, which tells a wrong name from a box around
    nothing.
    """
    pairs = overlapping_pairs(truth, found, iou)
    if not across_classes:
        pairs = pairs.select(pairs.same_class)
    order = np.argsort(-found.scores, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    # COCO lets the later of two equally good boxes win, hence the descending position.
    priority = np.lexsort((-pairs.truth, -pairs.iou, rank[pairs.found], ~pairs.same_class))
    truth_of: dict[int, int] = {}
    taken: set[int] = set()
    for found_position, truth_position in zip(
        pairs.found[priority].tolist(), pairs.truth[priority].tolist(), strict=True
    ):
        if found_position not in truth_of and truth_position not in taken:
            truth_of[found_position] = truth_position
            taken.add(truth_position)
    matched = np.full(len(found), -1, dtype=np.int64)
    matched[list(truth_of)] = list(truth_of.values())
    return Matching(matched, (matched < 0) & _in_crowd(truth, found, iou))


@dataclass(frozen=True)
class Pairs:
    """Overlapping boxes: positions in `found` and `truth`, their `iou`, and whether the class agrees; each (P,)."""

    found: np.ndarray
    truth: np.ndarray
    iou: np.ndarray
    same_class: np.ndarray

    def select(self, keep: np.ndarray) -> Pairs:
        """The pairs that the boolean mask names."""
        return Pairs(self.found[keep], self.truth[keep], self.iou[keep], self.same_class[keep])


def overlapping_pairs(truth: BoxTable, found: BoxTable, least: float) -> Pairs:
    """Every pair of a detection and a true box, no crowd region, in one picture with at least this IoU."""
    countable = np.flatnonzero(~truth.is_crowd)
    parts = []
    for found_positions, truth_positions in _by_picture(found, truth.select(countable)):
        truth_positions = countable[truth_positions]
        overlap, found_area, truth_area = _intersections(
            found.boxes_xyxy[found_positions], truth.boxes_xyxy[truth_positions]
        )
        ious = overlap / np.maximum(found_area[:, None] + truth_area[None, :] - overlap, np.finfo(float).tiny)
        row, column = np.nonzero(ious >= least)
        parts.append((found_positions[row], truth_positions[column], ious[row, column]))
    found_all = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, np.int64)
    truth_all = np.concatenate([part[1] for part in parts]) if parts else np.empty(0, np.int64)
    ious_all = np.concatenate([part[2] for part in parts]) if parts else np.empty(0)
    return Pairs(found_all, truth_all, ious_all, found.classes[found_all] == truth.classes[truth_all])


def _in_crowd(truth: BoxTable, found: BoxTable, least: float) -> np.ndarray:
    """(D,) bool: at least this share of the detection lies in one crowd region of its class."""
    inside = np.zeros(len(found), dtype=bool)
    crowds = truth.select(truth.is_crowd)
    for found_positions, crowd_positions in _by_picture(found, crowds):
        overlap, area, _ = _intersections(found.boxes_xyxy[found_positions], crowds.boxes_xyxy[crowd_positions])
        same_class = found.classes[found_positions][:, None] == crowds.classes[crowd_positions][None, :]
        share = overlap / np.maximum(area[:, None], np.finfo(float).tiny)
        inside[found_positions] = ((share >= least) & same_class).any(axis=1)
    return inside


def _by_picture(a: BoxTable, b: BoxTable) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions in `a` and in `b` of each picture that has boxes in both."""
    common = np.intersect1d(a.pictures, b.pictures)
    return list(zip(_positions_in(a, common), _positions_in(b, common), strict=True))


def _positions_in(table: BoxTable, pictures: np.ndarray) -> list[np.ndarray]:
    """For each of the pictures, the positions of its boxes in their order."""
    order = np.argsort(table.pictures, kind="stable")
    in_order = table.pictures[order]
    starts = np.searchsorted(in_order, pictures, "left").tolist()
    stops = np.searchsorted(in_order, pictures, "right").tolist()
    return [order[start:stop] for start, stop in zip(starts, stops, strict=True)]


def _intersections(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Corner boxes (N, 4) and (M, 4) to intersection areas (N, M), areas (N,) and areas (M,)."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    return sides[..., 0] * sides[..., 1], _areas(a), _areas(b)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
