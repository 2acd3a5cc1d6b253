"""A score threshold for each class, chosen on validation pictures, so that a first prediction shows something sensible.

COCO metrics need no threshold; people do. The score at which a detector is right as often as wrong differs between
classes and between detectors (a small model that is never surer than 0.3 can still be useful), hence one number for
each class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detrove.evaluation.classes import categories_of_slots
from detrove.evaluation.matching import BoxTable, match
from detrove.evaluation.metrics import numbering
from detrove.structures import LabelMap

DEFAULT_THRESHOLD = 0.5
FEW_BOXES = 10
"""With fewer true boxes the best threshold of a class is luck: one hard object can pull it down to where hundreds of
false alarms are."""


def best_thresholds(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], label_map: LabelMap
) -> list[float]:
    """For each class slot of the detector, the threshold with the highest F1 at IoU 0.5.

    Arguments as `coco_metrics`; `label_map` is the detector's, joined with the categories by name. A class with fewer
    than `FEW_BOXES` true boxes, or without a single right detection, gets the threshold that is best for all
    classes taken together; 0.5 where no detection is right at all.
    """
    truth = BoxTable.of(ground_truth, ground_truth["annotations"])
    found = BoxTable.of(ground_truth, results)
    matching = match(truth, found)
    objects = truth.classes[~truth.is_crowd]
    scores, classes = found.scores[~matching.ignored], found.classes[~matching.ignored]
    is_hit = matching.is_hit[~matching.ignored]
    common = best_threshold(scores, is_hit, len(objects)) or DEFAULT_THRESHOLD
    positions = numbering(ground_truth)[1]
    chosen = []
    for category_id in categories_of_slots(label_map, ground_truth["categories"]):
        position = -1 if category_id is None else positions[category_id]
        num_boxes = int((objects == position).sum())
        of_class = classes == position
        own = best_threshold(scores[of_class], is_hit[of_class], num_boxes) if num_boxes >= FEW_BOXES else None
        chosen.append(own or common)
    return chosen


def best_threshold(scores: np.ndarray, is_hit: np.ndarray, num_boxes: int) -> float | None:
    """The threshold with the highest F1, of one class; None where no detection is right.

    F1 = 2·hits / (detections kept + true boxes). It changes only at the scores themselves, so every distinct score
    is tried. Where several have the same F1 the highest of them wins: fewer boxes to look at. The answer lies half-way
    to the next lower score (or to 0), so that it does not sit on a detection that rounding could push either way.
    """
    if num_boxes == 0 or not is_hit.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(is_hit[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + num_boxes)
    # Detections with equal scores are kept or dropped together: only the last of them is a choice.
    is_choice = np.append(scores[1:] < scores[:-1], True)
    best = int(np.argmax(np.where(is_choice, f1, -1.0)))
    below = scores[best + 1] if best + 1 < len(scores) else 0.0
    return float((scores[best] + below) / 2)
