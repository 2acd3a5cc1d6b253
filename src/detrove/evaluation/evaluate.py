"""`evaluate`: from weights and a data set to COCO metrics, in one call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from detrove.evaluation.classes import categories_of_slots, coco_results
from detrove.evaluation.detect import DetectsPictures, detect
from detrove.evaluation.metrics import Metrics, coco_metrics


def evaluate(
    weights: str | Path | DetectsPictures,
    data: Any,
    split: str = "val",
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
    format: str | None = None,
) -> Metrics:
    """The COCO metrics of a detector on one split of a data set.

    `weights` is what `detrove.load` takes, or a detector; `data` is the path of a data set, with its `format` ("coco",
    "voc", "yolo" or "csv") where the folder holds several, or an opened one (then `split` and `format` are not looked
    at). No score threshold is applied. Classes are joined by name; raises `InputError` where no name is shared.
    `progress` is called with the pictures done and their total.
    """
    if isinstance(weights, str | Path):
        from detrove.inference import load

        weights = load(weights)
    if isinstance(data, str | Path):
        from detrove.data import open_dataset

        data = open_dataset(data, split, format)
    ground_truth = data.ground_truth()
    # Before the detector has run for minutes, not after.
    categories_of_slots(weights.label_map, ground_truth["categories"])
    detections = detect(weights, data, batch_size, progress)
    return coco_metrics(ground_truth, coco_results(detections, ground_truth))
