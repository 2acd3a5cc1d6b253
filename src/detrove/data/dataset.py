"""A split of a data set as pictures with clean boxes: `DetectionDataset`.

Cleaning, the same for every format: boxes that reach outside their picture are clipped to it; boxes without width or
height, as written or after clipping, are skipped. Both are counted and told in `warnings`. `ground_truth` is what
evaluation compares with: for COCO files exactly what is written, unclipped and complete, so that the numbers equal
those of pycocotools on the file itself; for the other formats, which have no such reference, the clean boxes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from detrove.boxes import xyxy_to_cxcywh
from detrove.data.annotations import EXIF_ORIENTATION, AnnotatedBox, AnnotatedPicture, Annotations
from detrove.errors import InputError
from detrove.pictures import read_picture
from detrove.structures import LabelMap, Targets

FORMAT_NAMES = {"coco": "COCO JSON", "voc": "VOC XML", "yolo": "YOLO text"}

# A box may pass the edge by this many pixels without being told of: rounding in the tools that wrote it.
_ROUNDING = 1.0

_UNDO_ORIENTATION = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass
class Record:
    """What is known of a picture before it is read.

    `boxes_xyxy` (N, 4) float64 in pixels, inside the picture; `labels` (N,) int64 class slots; `is_crowd` (N,) bool;
    `area` (N,) float64 in pixels², the annotation's where it gives one, else the box's.
    """

    path: Path
    image_id: int | str
    width: int
    height: int
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    area: np.ndarray


@dataclass
class Sample:
    """A decoded picture (RGB) and its objects, crowd regions included."""

    image: Image.Image
    targets: Targets


class DetectionDataset:
    """One split of a labelled data set, read lazily: opening it decodes no picture.

    `records` hold the annotations, `label_map` the classes (the same for every split of a data set), `warnings` one
    line for each kind of flaw, `problems` their counts: "outside" (clipped, or skipped where nothing remained) and
    "zero size" (skipped).
    """

    def __init__(self, path: Path, split: str, format: str, annotations: Annotations) -> None:
        self.path = path
        self.split = split
        self.format = format
        self.label_map = LabelMap.from_categories(annotations.categories)
        self.problems: Counter[str] = Counter()
        self._first_problem: dict[str, str] = {}
        self._annotations = annotations
        _check_pictures_exist(annotations.pictures)
        slots = {entry.id: slot for slot, entry in enumerate(self.label_map.entries) if entry}
        self.records = [self._clean(picture, slots) for picture in annotations.pictures]
        self.warnings = annotations.warnings + self._describe_problems()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """The picture and its targets; `InputError` where the picture cannot be read or has not its annotated size."""
        record = self.records[index]
        return Sample(read_as_annotated(record), targets_of(record))

    def subset(self, indices: Sequence[int]) -> DetectionDataset:
        """The data set of these pictures alone, in this order, with the same label map."""
        pictures = [self._annotations.pictures[index] for index in indices]
        annotations = dataclasses.replace(self._annotations, pictures=pictures, warnings=[])
        return DetectionDataset(self.path, self.split, self.format, annotations)

    def describe(self) -> str:
        """One line: where, what, how much."""
        num_boxes = sum(len(record.labels) for record in self.records)
        names = self.label_map.names
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        return (
            f"{self.path}: {FORMAT_NAMES[self.format]}, split {self.split}: {len(self):,} pictures, "
            f"{num_boxes:,} boxes, {len(names)} classes ({shown})"
        )

    def ground_truth(self) -> dict[str, Any]:
        """The split as a COCO annotation dict: images, annotations (ids from 1, boxes xywh in pixels), categories.

        Category and picture ids are the data set's own. Annotation ids are numbered anew, because COCO's evaluation
        takes an annotation with the id 0 for "no match".
        """
        if self.format == "coco":
            entries = [
                _as_written(picture.image_id, box) for picture in self._annotations.pictures for box in picture.boxes
            ]
        else:
            entries = [entry for record in self.records for entry in self._as_cleaned(record)]
        categories = [{"id": entry.id, "name": entry.name} for entry in self.label_map.entries if entry]
        images = [
            {"id": record.image_id, "file_name": record.path.name, "width": record.width, "height": record.height}
            for record in self.records
        ]
        annotations = [{"id": number, **entry} for number, entry in enumerate(entries, start=1)]
        return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}

    def _as_cleaned(self, record: Record) -> list[dict[str, Any]]:
        entries = []
        for box, label, is_crowd, area in zip(
            record.boxes_xyxy.tolist(),
            record.labels.tolist(),
            record.is_crowd.tolist(),
            record.area.tolist(),
            strict=True,
        ):
            category = self.label_map.entries[label]
            assert category is not None
            x1, y1, x2, y2 = box
            entries.append(_coco_entry(record.image_id, category.id, [x1, y1, x2 - x1, y2 - y1], area, is_crowd))
        return entries

    def _clean(self, picture: AnnotatedPicture, slots: dict[int, int]) -> Record:
        kept: list[tuple[list[float], int, bool, float]] = []
        for box in picture.boxes:
            x, y, w, h = box.xywh
            if w <= 0 or h <= 0:
                self._note("zero size", picture, box)
                continue
            x1, y1 = min(max(x, 0.0), picture.width), min(max(y, 0.0), picture.height)
            x2, y2 = min(max(x + w, 0.0), picture.width), min(max(y + h, 0.0), picture.height)
            if min(x, y, picture.width - x - w, picture.height - y - h) < -_ROUNDING:
                self._note("outside", picture, box)
            if x2 <= x1 or y2 <= y1:
                continue
            area = (x2 - x1) * (y2 - y1) if box.area is None else box.area
            kept.append(([x1, y1, x2, y2], slots[box.category_id], box.is_crowd, area))
        boxes, labels, is_crowd, area = zip(*kept, strict=True) if kept else ((), (), (), ())
        return Record(
            picture.path,
            picture.image_id,
            picture.width,
            picture.height,
            np.array(boxes, dtype=np.float64).reshape(-1, 4),
            np.array(labels, dtype=np.int64),
            np.array(is_crowd, dtype=bool),
            np.array(area, dtype=np.float64),
        )

    def _note(self, kind: str, picture: AnnotatedPicture, box: AnnotatedBox) -> None:
        self.problems[kind] += 1
        self._first_problem.setdefault(kind, f"{picture.source}, {box.where}")

    def _describe_problems(self) -> list[str]:
        treatment = {
            "outside": ("boxes that reach outside their picture", "clipped to it, or skipped where nothing remained"),
            "zero size": ("boxes without width or height", "skipped"),
        }
        lines = [
            f"{self.path}: {what}: {self.problems[kind]} {done} (first: {self._first_problem[kind]})"
            for kind, (what, done) in treatment.items()
            if self.problems[kind]
        ]
        if not any(len(record.labels) for record in self.records):
            lines.append(f"{self.path}: split {self.split} has no boxes at all: nothing can be learned from it")
        return lines


def targets_of(record: Record) -> Targets:
    """A record's objects as `Targets`, crowd regions included."""
    scale = np.array([record.width, record.height, record.width, record.height], dtype=np.float64)
    boxes_xyxy = torch.from_numpy(record.boxes_xyxy / scale)
    return Targets(
        labels=torch.from_numpy(record.labels),
        boxes=xyxy_to_cxcywh(boxes_xyxy).float(),
        is_crowd=torch.from_numpy(record.is_crowd),
        area=torch.from_numpy(record.area).float(),
        image_id=record.image_id,
        original_size=(record.height, record.width),
    )


def read_as_annotated(record: Record) -> Image.Image:
    """The picture as its annotator saw it: upright, unless the annotated size says that EXIF was disregarded.

    Raises `InputError` where the picture cannot be read, or has the annotated size neither way.
    """
    upright = read_picture(record.path)
    if upright.size == (record.width, record.height):
        return upright
    with Image.open(record.path) as picture:
        raw_size, orientation = picture.size, picture.getexif().get(EXIF_ORIENTATION)
    if raw_size == (record.width, record.height) and orientation in _UNDO_ORIENTATION:
        return upright.transpose(_UNDO_ORIENTATION[orientation])
    raise InputError(
        f"{record.path}: is {upright.width}x{upright.height}, but its annotation says {record.width}x{record.height}; "
        "correct the annotation or put the original picture back"
    )


def _check_pictures_exist(pictures: list[AnnotatedPicture]) -> None:
    """One listing per folder, instead of one question per picture."""
    listed: dict[Path, set[str]] = {}
    missing: list[AnnotatedPicture] = []
    for picture in pictures:
        folder = picture.path.parent
        if folder not in listed:
            listed[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
        if picture.path.name not in listed[folder]:
            missing.append(picture)
    if missing:
        first = missing[0]
        others = f" and {len(missing) - 1} others of the split" if len(missing) > 1 else ""
        raise InputError(f"{first.path}: no such picture{others}, named by {first.source}; add it or drop its entry")


def _as_written(image_id: int | str, box: AnnotatedBox) -> dict[str, Any]:
    area = box.xywh[2] * box.xywh[3] if box.area is None else box.area
    return _coco_entry(image_id, box.category_id, list(box.xywh), area, box.is_crowd)


def _coco_entry(
    image_id: int | str, category_id: int, xywh: list[float], area: float, is_crowd: bool
) -> dict[str, Any]:
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": xywh,
        "area": area,
        "iscrowd": int(is_crowd),
    }
