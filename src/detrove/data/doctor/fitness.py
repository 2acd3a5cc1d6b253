"""How a data set suits a detector: objects against queries, and objects that are too small at the training size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from detrove.data.annotations import Annotations
from detrove.data.doctor.boxes import place_of_box
from detrove.data.doctor.findings import Finding, Place, make_finding
from detrove.structures import Preprocessing

SMALLEST = 8
"""Pixels at the training size (square root of the area) under which an object is hardly to be found."""
TOLD_SHARE = 0.005
_LARGER = (1.5, 2, 3)
_LISTED = 100


def too_many_objects(annotations: Annotations, split: str, num_queries: int) -> Finding:
    """Pictures with more objects than a detector of so many queries can answer."""
    objects = np.bincount(
        annotations.pictures_of_boxes(), weights=~annotations.is_crowd, minlength=len(annotations)
    ).astype(int)
    places = []
    for picture in np.flatnonzero(objects > num_queries).tolist():
        path = annotations.path(picture)
        note = f"{path.name} has {objects[picture]} objects for {num_queries} queries"
        places.append(Place(annotations.source(picture), note, split, picture=path))
    return make_finding("too few queries", places)


def too_small_objects(splits: Mapping[str, Annotations], preprocessing: Preprocessing) -> Finding:
    """Objects under 8 pixels at the training size, of all splits, with their share."""
    sides = {split: _sides(annotations, preprocessing) for split, annotations in splits.items()}
    total = sum(len(each) for each in sides.values())
    small = sum(int((each < SMALLEST).sum()) for each in sides.values())
    if small <= TOLD_SHARE * total:
        return make_finding("small objects", [])
    sized = [
        (float(each[box]), split, box) for split, each in sides.items() for box in np.argsort(each)[:_LISTED].tolist()
    ]
    places = []
    for side, split, box in sorted(sized)[: min(small, _LISTED)]:
        note = f"{splits[split].entry(box)} is {side:.1f} pixels at the training size"
        places.append(place_of_box(splits[split], box, split, note))
    return make_finding("small objects", places, small, _advice(splits, preprocessing, small, total))


def _advice(splits: Mapping[str, Annotations], preprocessing: Preprocessing, small: int, total: int) -> str:
    """What larger sizes would do."""
    shares = []
    for factor in _LARGER:
        larger = replace(
            preprocessing,
            longer=round(preprocessing.longer * factor),
            shorter=None if preprocessing.shorter is None else round(preprocessing.shorter * factor),
        )
        left = sum(int((_sides(each, larger) < SMALLEST).sum()) for each in splits.values())
        shares.append(f"{left / total:.1%} at {larger.longer}")
    return (
        f"{small / total:.1%} of all boxes at a longer side of {preprocessing.longer}; {', '.join(shares)}: "
        "choose a larger --size, or tiles."
    )


def _sides(annotations: Annotations, preprocessing: Preprocessing) -> np.ndarray:
    """(N,) square root of each object's area in pixels of the resized picture; infinite where it has none."""
    scales = np.array([_scale(width, height, preprocessing) for width, height in annotations.sizes.tolist()])
    width, height = np.clip(annotations.xywh[:, 2:], 0, None).T
    with np.errstate(over="ignore"):
        sides = np.sqrt(width * height) * scales.reshape(-1)[annotations.pictures_of_boxes()]
    return np.where(sides > 0, sides, np.inf)


def _scale(width: int, height: int, preprocessing: Preprocessing) -> float:
    return preprocessing.target_size(height, width)[0] / height
