"""The twelve COCO numbers and the average precision of each class, computed by faster-coco-eval.

They equal those of pycocotools on the same detections. Where there is nothing to measure (no true box of that class or
size), pycocotools says -1; here it is None, which is `null` in JSON and cannot be averaged by accident.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detrove.errors import InputError

AREAS = ("all", "small", "medium", "large")
"""Ranges of object size: all, below 32², 32² to 96², above 96² pixels² of the original picture."""
DETECTION_LIMITS: tuple[int, ...] = (1, 10, 100)
"""How many detections a picture and class may have, the best ones by score."""
IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
"""The recalls at which precision is read off a curve."""


@dataclass(frozen=True, eq=False)
class Metrics(Mapping[str, Any]):
    """COCO metrics in [0, 1], readable as attributes and as a mapping; None where there is nothing to measure.

    `ap` averages over the IoU thresholds 0.50, 0.55, … 0.95 and all classes; `ap50` and `ap75` hold at one threshold;
    `ap_small` … `ar_large` count objects of one size only. `ar_N` is the recall with at most N detections a picture and
    class. `per_class` maps a class name to {"ap", "ap50", "num_boxes"}, crowd regions not counted.
    """

    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar_1: float | None
    ar_10: float | None
    ar_100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    per_class: dict[str, dict[str, Any]]

    def __getitem__(self, name: str) -> Any:
        if name not in METRIC_NAMES and name != "per_class":
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter((*METRIC_NAMES, "per_class"))

    def __len__(self) -> int:
        return len(METRIC_NAMES) + 1

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


METRIC_NAMES = tuple(field.name for field in dataclasses.fields(Metrics) if field.name != "per_class")
"""The twelve names, in COCO's order."""


@dataclass(frozen=True)
class Accumulated:
    """Precision and recall of every class at every threshold, size and limit; -1 where there is nothing to measure.

    `precision` (T, R, K, A, M) over IoU thresholds, recall levels, classes, areas and detection limits; `recall`
    (T, K, A, M); `names` and `num_boxes` have one entry per class K, in the order of the category ids.
    """

    names: list[str]
    num_boxes: list[int]
    precision: np.ndarray
    recall: np.ndarray

    def precision_curve(self, class_index: int | None = None, iou: float = 0.5) -> np.ndarray | None:
        """(101,) precision at `RECALL_LEVELS` of one class, or the mean of all classes; None without a true box."""
        curves = self.precision[IOU_THRESHOLDS.index(iou), :, :, 0, -1]
        curves = curves if class_index is None else curves[:, [class_index]]
        measured = curves[:, (curves > -1).all(axis=0)]
        return measured.mean(axis=1) if measured.size else None


def coco_metrics(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Metrics:
    """The COCO metrics of detections.

    `ground_truth` is a COCO annotation dictionary (`images`, `annotations` with `bbox` [x, y, w, h] in pixels,
    `categories`); `iscrowd` defaults to 0 and `area` to the box's. `results` are COCO result entries: `image_id`,
    `category_id` of the same categories, `bbox`, `score`. Neither is changed. Ids of pictures may be of any kind.

    Raises `InputError` where a result names an unknown picture or category, or is not finite.
    """
    return summarise(accumulate(ground_truth, results))


def accumulate(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Accumulated:
    """Match the detections with the ground truth at every threshold; arguments as `coco_metrics`."""
    from faster_coco_eval import COCO, COCOeval_faster

    images = [{"id": number} for number in range(1, len(ground_truth["images"]) + 1)]
    names = class_names(ground_truth)
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    if not categories:
        raise InputError("there is no class to measure: the data set's list of categories is empty")
    truth = _numbered(ground_truth, ground_truth["annotations"])
    found = _numbered(ground_truth, results)
    _check_finite(results)
    evaluation = COCOeval_faster(
        COCO({"images": images, "categories": categories, "annotations": truth}),
        COCO({"images": images, "categories": categories, "annotations": found}),
        iouType="bbox",
    )
    evaluation.params.maxDets = [*DETECTION_LIMITS]
    evaluation.evaluate()
    evaluation.accumulate()
    counts = Counter(box["category_id"] for box in truth if not box["iscrowd"])
    return Accumulated(
        names=names,
        num_boxes=[counts[category["id"]] for category in categories],
        precision=np.asarray(evaluation.eval["precision"]),
        recall=np.asarray(evaluation.eval["recall"]),
    )


def summarise(accumulated: Accumulated) -> Metrics:
    """The twelve numbers and the per-class ones."""
    precision, recall = accumulated.precision, accumulated.recall
    areas = {area: index for index, area in enumerate(AREAS)}
    at_75 = IOU_THRESHOLDS.index(0.75)
    return Metrics(
        ap=_mean(precision[..., 0, -1]),
        ap50=_mean(precision[0, ..., 0, -1]),
        ap75=_mean(precision[at_75, ..., 0, -1]),
        ap_small=_mean(precision[..., areas["small"], -1]),
        ap_medium=_mean(precision[..., areas["medium"], -1]),
        ap_large=_mean(precision[..., areas["large"], -1]),
        ar_1=_mean(recall[..., 0, 0]),
        ar_10=_mean(recall[..., 0, 1]),
        ar_100=_mean(recall[..., 0, 2]),
        ar_small=_mean(recall[..., areas["small"], -1]),
        ar_medium=_mean(recall[..., areas["medium"], -1]),
        ar_large=_mean(recall[..., areas["large"], -1]),
        per_class={
            name: {
                "ap": _mean(precision[:, :, index, 0, -1]),
                "ap50": _mean(precision[0, :, index, 0, -1]),
                "num_boxes": num_boxes,
            }
            for index, (name, num_boxes) in enumerate(zip(accumulated.names, accumulated.num_boxes, strict=True))
        },
    )


def class_names(ground_truth: Mapping[str, Any]) -> list[str]:
    """The names of the categories in the order of their ids; a name that occurs twice is told apart by its id."""
    names = {category["id"]: str(category["name"]) for category in ground_truth["categories"]}
    occurrences = Counter(names.values())
    return [names[id] if occurrences[names[id]] == 1 else f"{names[id]} (id {id})" for id in sorted(names)]


def numbering(ground_truth: Mapping[str, Any]) -> tuple[dict[Any, int], dict[int, int]]:
    """Positions of the picture ids in `images`, and of the category ids in ascending order; both from 0."""
    pictures = {image["id"]: position for position, image in enumerate(ground_truth["images"])}
    category_ids = sorted({category["id"] for category in ground_truth["categories"]})
    return pictures, {category_id: position for position, category_id in enumerate(category_ids)}


def _numbered(ground_truth: Mapping[str, Any], boxes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of annotations or results whose pictures, categories and own ids count from 1.

    Every id is replaced: COCO evaluation takes an annotation with id 0 for unmatched, and pictures of VOC and YOLO data
    sets have names in place of numbers. The order of the ids is kept, because it decides between equal scores.
    """
    pictures, categories = numbering(ground_truth)
    in_order = sorted(pictures, key=lambda id: (isinstance(id, str), id))
    pictures = {image_id: position for position, image_id in enumerate(in_order)}
    numbered = []
    for number, box in enumerate(boxes, start=1):
        try:
            picture, category = pictures[box["image_id"]], categories[box["category_id"]]
        except KeyError:
            raise InputError(_unknown_id(box, pictures)) from None
        x, y, width, height = box["bbox"]
        entry = {
            "id": number,
            "image_id": picture + 1,
            "category_id": category + 1,
            "bbox": [float(x), float(y), float(width), float(height)],
            "area": float(box.get("area", width * height)),
            "iscrowd": int(box.get("iscrowd", 0)),
        }
        if "score" in box:
            entry["score"] = float(box["score"])
            entry["area"] = entry["bbox"][2] * entry["bbox"][3]
        numbered.append(entry)
    return numbered


def _unknown_id(box: Mapping[str, Any], pictures: Mapping[Any, int]) -> str:
    if box["image_id"] not in pictures:
        return (
            f"a box belongs to picture {box['image_id']!r}, which is not among the {len(pictures)} pictures of the "
            "ground truth: evaluate detections on the split that they were made from"
        )
    return (
        f"a box of picture {box['image_id']!r} has category id {box['category_id']!r}, which the ground truth does not "
        "list: give detections the category ids of the data set"
    )


def _check_finite(results: Sequence[Mapping[str, Any]]) -> None:
    numbers = np.array([[*result["bbox"], result["score"]] for result in results], dtype=np.float64).reshape(-1, 5)
    broken = np.flatnonzero(~np.isfinite(numbers).all(axis=1))
    if broken.size:
        result = results[broken[0]]
        raise InputError(
            f"a detection in picture {result['image_id']!r} is not finite (box {list(result['bbox'])}, score "
            f"{result['score']}): the model has diverged; load an earlier checkpoint"
        )


def _mean(values: np.ndarray) -> float | None:
    """The mean of what could be measured."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None
