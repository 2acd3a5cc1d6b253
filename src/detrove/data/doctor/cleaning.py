"""A cleaned copy of a data set: what the doctor found at fault is mended where that is certain, else left out.

Mended: boxes that leave their picture are clipped, sideways labels turned upright, boxes in a doubted format read in
the other way. Left out: pictures that cannot be used and their boxes, boxes without extent, absurd ones, copies, and
pictures that another split has too (training gives way to validation, validation to test). The original is never
touched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from detrove.data.annotations import Annotations
from detrove.data.doctor.boxes import absurd, copies, corners, outside, without_extent
from detrove.data.doctor.check import Diagnosis
from detrove.data.doctor.classes import repeated
from detrove.data.doctor.files import Look, judge
from detrove.data.files import in_usual_order
from detrove.data.writers import write_coco
from detrove.errors import InputError

_NEVER_GUESSED = ("shifted class numbers",)


@dataclass
class Cleaned:
    """What is sound of each split, and how many boxes were kept, `mended`, and left out, by the kind of fault.

    `pictures` counts the pictures that were left out.
    """

    splits: dict[str, Annotations] = field(default_factory=dict)
    kept: int = 0
    mended: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    pictures: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "boxes_kept": self.kept,
            "boxes_mended": dict(self.mended),
            "boxes_left_out": dict(self.left_out),
            "pictures_left_out": dict(self.pictures),
        }


def write_cleaned(diagnosis: Diagnosis, output: Path) -> Cleaned:
    """Write the sound part of a data set as a COCO folder; `InputError` where that exists, or nothing is sound."""
    cleaned = clean(diagnosis)
    if not cleaned.splits:
        raise InputError(f"{diagnosis.path}: nothing sound is left of it; correct what detrove data check lists")
    write_coco(output, cleaned.splits)
    return cleaned


def clean(diagnosis: Diagnosis) -> Cleaned:
    """The sound part of a data set.

    Boxes kept and left out are all that could be told apart in the files. Raises `InputError` where cleaning would be
    guessing: class numbers that seem to be shifted, a doubted format with several other readings.
    """
    _refuse_guessing(diagnosis)
    cleaned = Cleaned()
    for fault in diagnosis.faults:
        if fault.num_boxes:
            cleaned.left_out[fault.kind] += fault.num_boxes
    leaked = _leaked(diagnosis)
    for split, written in diagnosis.splits.items():
        annotations = _read_otherwise(diagnosis, split, written, cleaned)
        annotations = _without_bad_pictures(diagnosis, annotations, leaked.get(split, set()), cleaned)
        annotations = _with_sound_boxes(annotations, cleaned)
        if len(annotations):
            cleaned.splits[split] = annotations
            cleaned.kept += annotations.num_boxes
    return cleaned


def _refuse_guessing(diagnosis: Diagnosis) -> None:
    for finding in diagnosis.findings:
        if finding.kind in _NEVER_GUESSED:
            raise InputError(f"{finding.places[0]}; correct that first: a cleaned copy would be a guess")
    for split, readings in diagnosis.readings.items():
        if len(readings) > 1:
            meant = " or ".join(reading.name for reading in readings)
            raise InputError(f"{diagnosis.path}: the boxes of {split} may be {meant}; export them again")


def _read_otherwise(diagnosis: Diagnosis, split: str, written: Annotations, cleaned: Cleaned) -> Annotations:
    if split not in diagnosis.readings:
        return written
    [reading] = diagnosis.readings[split]
    cleaned.mended["wrong box format"] += written.num_boxes
    return replace(written, xywh=reading.xywh, area=np.full(written.num_boxes, np.nan))


def _leaked(diagnosis: Diagnosis) -> dict[str, set[int]]:
    """Split -> the pictures that a split with more say has too; the last in the usual order has most."""
    order = in_usual_order(diagnosis.splits)
    found: dict[str, set[int]] = {}
    for leak in diagnosis.leaks:
        if leak.same:
            split, picture = min(leak.first, leak.second, key=lambda place: order.index(place[0]))
            found.setdefault(split, set()).add(picture)
    return found


def _without_bad_pictures(
    diagnosis: Diagnosis, annotations: Annotations, leaked: set[int], cleaned: Cleaned
) -> Annotations:
    """Without the pictures that cannot be used; sideways labels are turned."""
    again = set(repeated(annotations))
    turned: dict[int, Look] = {}
    kept = []
    counts = np.diff(annotations.starts).tolist()
    for picture, path in enumerate(annotations.paths):
        look = diagnosis.looks.by_path.get(path)
        kind = judge(look, tuple(annotations.sizes[picture].tolist()), diagnosis.format)[0] if look else ""
        if kind == "rotated labels" and look:
            turned[picture] = look
        bad = kind if kind in ("unreadable picture", "truncated picture", "size mismatch") else ""
        bad = bad or ("repeated picture" if picture in again else "leaked picture" if picture in leaked else "")
        if bad:
            cleaned.pictures[bad] += 1
            cleaned.left_out[bad] += counts[picture]
        else:
            kept.append(picture)
    return _turned(annotations, turned, cleaned).take(kept)


def _turned(annotations: Annotations, turned: Mapping[int, Look], cleaned: Cleaned) -> Annotations:
    """The labels of these pictures turned upright with them."""
    xywh, sizes = annotations.xywh.copy(), annotations.sizes.copy()
    for picture, look in turned.items():
        boxes = annotations.boxes_of(picture)
        xywh[boxes] = turn_boxes(xywh[boxes], look.size, look.orientation)
        sizes[picture] = look.upright_size
        cleaned.mended["rotated labels"] += boxes.stop - boxes.start
    return replace(annotations, xywh=xywh, sizes=sizes)


def turn_boxes(xywh: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Boxes (N, 4) of a picture as the file has it, of this (width, height), in the upright one.

    `orientation` is EXIF's, one of the four that exchange width and height (Exif 2.3, tag 274).
    """
    x, y, w, h = xywh.T
    from_right, from_bottom = size[0] - x - w, size[1] - y - h
    left, top = {5: (y, x), 6: (from_bottom, x), 7: (from_bottom, from_right), 8: (y, from_right)}[orientation]
    return np.stack((left, top, h, w), axis=1)


def _with_sound_boxes(annotations: Annotations, cleaned: Cleaned) -> Annotations:
    annotations = _without(annotations, without_extent(annotations), "zero-size box", cleaned)
    annotations = _without(annotations, absurd(annotations), "absurd box", cleaned)
    annotations = _clipped(annotations, cleaned)
    is_copy = np.zeros(annotations.num_boxes, dtype=bool)
    is_copy[copies(annotations)[:, 1]] = True
    return _without(annotations, is_copy, "duplicate box", cleaned)


def _clipped(annotations: Annotations, cleaned: Cleaned) -> Annotations:
    """Boxes inside their pictures; those of which less than a pixel remains are left out."""
    written = corners(annotations)
    sizes = annotations.sizes[annotations.pictures_of_boxes()].astype(np.float64)
    inside = np.clip(written, 0, np.tile(sizes, 2))
    moved = np.any(inside != written, axis=1)
    sides = inside[:, 2:] - inside[:, :2]
    nothing = moved & (sides < 1).any(axis=1)
    xywh = np.where(moved[:, None], np.concatenate((inside[:, :2], sides), axis=1), annotations.xywh)
    if mended := int((outside(annotations) & ~nothing).sum()):
        cleaned.mended["box outside"] += mended
    annotations = replace(annotations, xywh=xywh, area=np.where(moved, np.nan, annotations.area))
    return _without(annotations, nothing, "box outside", cleaned)


def _without(annotations: Annotations, chosen: np.ndarray, kind: str, cleaned: Cleaned) -> Annotations:
    if not chosen.any():
        return annotations
    cleaned.left_out[kind] += int(chosen.sum())
    return annotations.keep(~chosen)
