"""Joining a detector's class slots with a data set's categories, by name.

A detector trained on one data set is measured on another, or an official COCO head of 91 slots on a data set that
numbers its classes from 0: ids and slots mean nothing across that border, names do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detrove.errors import InputError
from detrove.structures import Detections, LabelMap


def categories_of_slots(label_map: LabelMap, categories: Sequence[Mapping[str, Any]]) -> list[int | None]:
    """For each class slot of the detector, the data set's category id of the same name, or None.

    `categories` are COCO's, with `id` and `name`; where two carry the same name, the one with the slot's own id is
    taken, else the first. Raises `InputError` where no name is shared: every number would be 0.
    """
    joined = [None if entry is None else _category_of(entry.id, entry.name, categories) for entry in label_map.entries]
    if label_map.entries and all(category is None for category in joined):
        raise InputError(
            f"the detector and the data set share no class name: {_some(n for n in label_map.names if n)} against "
            f"{_some(str(category['name']) for category in categories)}; "
            "rename the classes in the data set, or train on it"
        )
    return joined


def _category_of(own_id: int, name: str, categories: Sequence[Mapping[str, Any]]) -> int | None:
    ids = [int(category["id"]) for category in categories if str(category["name"]) == name]
    if own_id in ids:
        return own_id
    return ids[0] if ids else None


def _some(names: Any, limit: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "") if names else "none"


def coco_results(detections: Mapping[Any, Detections], ground_truth: Mapping[str, Any]) -> list[dict[str, Any]]:
    """COCO result entries with the data set's category ids, of the detections of each picture by its id.

    Detections of classes that the data set does not have are left out: nobody looked for them there.
    """
    joined: dict[LabelMap, list[int | None]] = {}
    results = []
    for image_id, found in detections.items():
        if found.label_map not in joined:
            joined[found.label_map] = categories_of_slots(found.label_map, ground_truth["categories"])
        categories = joined[found.label_map]
        boxes = found.boxes.double().numpy(force=True).reshape(-1, 4)
        boxes_xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        for box, score, slot in zip(boxes_xywh, found.scores.tolist(), found.labels.tolist(), strict=True):
            if categories[slot] is not None:
                results.append({"image_id": image_id, "category_id": categories[slot], "bbox": box, "score": score})
    return results
