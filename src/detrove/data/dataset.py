"""A split of a data set as pictures with clean boxes: `DetectionDataset`.

Cleaning, the same for every format: boxes that reach outside their picture are clipped to it; boxes without width or
height, as written or after clipping, are skipped. Both are counted and told in `warnings`. `ground_truth` is what
evaluation compares with: for COCO files exactly what is written, unclipped and complete, so that the numbers equal
those of pycocotools on the file itself; for the other formats, which have no such reference, the clean boxes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from detrove.boxes import xyxy_to_cxcywh
from detrove.data.annotations import Annotations
from detrove.data.faults import Fault, Faults
from detrove.data.files import FolderListings
from detrove.errors import InputError
from detrove.pictures import orientation_of, read_picture
from detrove.structures import LabelMap, Targets

FORMAT_NAMES = {"coco": "COCO JSON", "voc": "VOC XML", "yolo": "YOLO text", "csv": "CSV of boxes"}

# A box may pass the edge by this many pixels without being told of: rounding in the tools that wrote it.
_ROUNDING = 1.0

_UNDO_ORIENTATION = {
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(eq=False)
class Record:
    """What is known of a picture before it is read.

    `boxes_xyxy` (N, 4) float64 in pixels, inside the picture; `labels` (N,) int64 class slots; `is_crowd` (N,) bool;
    `area` (N,) float64 in pixels², the annotation's where it gives one, else the box's. Where the record is a part of
    its picture, `window` (left, top, right, bottom) says which, of a picture of `picture_size` (width, height).
    """

    path: Path
    image_id: int | str
    width: int
    height: int
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    area: np.ndarray
    window: tuple[int, int, int, int] | None = None
    picture_size: tuple[int, int] | None = None

    def __eq__(self, other: object) -> bool:
        """Equal in every value; records are made anew each time that they are asked for."""
        if not isinstance(other, Record):
            return NotImplemented
        return all(np.array_equal(value, vars(other)[name]) for name, value in vars(self).items())


@dataclass
class Sample:
    """A decoded picture (RGB) and its objects, crowd regions included."""

    image: Image.Image
    targets: Targets


class Records(Sequence[Record]):
    """The records of a split, made when they are asked for from the columns that hold them.

    `boxes_xyxy`, `labels`, `is_crowd` and `area` hold the clean boxes of all pictures, one picture's together.
    """

    def __init__(self, annotations: Annotations, boxes_xyxy: np.ndarray, labels: np.ndarray) -> None:
        """`annotations`: the boxes that are kept, with `boxes_xyxy` (N, 4) inside the picture, `labels` (N,) slots."""
        self._annotations = annotations
        self.boxes_xyxy = boxes_xyxy
        self.labels = labels
        self.is_crowd = annotations.is_crowd
        widths, heights = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).T
        self.area = np.where(np.isnan(annotations.area), widths * heights, annotations.area)

    def __len__(self) -> int:
        return len(self._annotations)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index = int(index) % len(self)
        boxes = self._annotations.boxes_of(index)
        width, height = self._annotations.sizes[index].tolist()
        return Record(
            self._annotations.path(index),
            self._annotations.image_id(index),
            width,
            height,
            self.boxes_xyxy[boxes].copy(),
            self.labels[boxes].copy(),
            self.is_crowd[boxes].copy(),
            self.area[boxes].copy(),
        )


class DetectionDataset:
    """One split of a labelled data set, read lazily: opening it decodes no picture.

    `records` hold the clean boxes, `annotations` the boxes as written, `label_map` the classes (the same for every
    split of a data set), `warnings` one line for each kind of flaw, `problems` their counts: "outside" (clipped, or
    skipped where nothing remained) and "zero size" (skipped).
    """

    def __init__(self, path: Path, split: str, format: str, annotations: Annotations) -> None:
        self.path = path
        self.split = split
        self.format = format
        self.annotations = without_missing_pictures(annotations, Faults())
        self.label_map = LabelMap.from_categories(annotations.categories)
        self.problems: Counter[str] = Counter()
        self._first_problem: dict[str, str] = {}
        self.records = self._clean()
        self.warnings = annotations.warnings + self._describe_problems()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """The picture and its targets; `InputError` where the picture cannot be read or has not its annotated size."""
        record = self.records[index]
        return Sample(read_as_annotated(record), targets_of(record))

    def subset(self, indices: Sequence[int]) -> DetectionDataset:
        """The data set of these pictures alone, in this order, with the same label map."""
        return self.with_annotations(self.annotations.take(indices))

    def with_annotations(self, annotations: Annotations) -> DetectionDataset:
        """The data set with other pictures and boxes, of the same path and split."""
        return DetectionDataset(self.path, self.split, self.format, annotations)

    def describe(self) -> str:
        """One line: where, what, how much."""
        names = self.label_map.names
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        return (
            f"{self.path}: {FORMAT_NAMES[self.format]}, split {self.split}: {len(self):,} pictures, "
            f"{len(self.records.labels):,} boxes, {len(names)} classes ({shown})"
        )

    def ground_truth(self) -> dict[str, Any]:
        """The split as a COCO annotation dict: images, annotations (ids from 1, boxes xywh in pixels), categories.

        Category and picture ids are the data set's own. Annotation ids are numbered anew, because COCO's evaluation
        takes an annotation with the id 0 for "no match".
        """
        entries = self._as_written() if self.format == "coco" else self._as_cleaned()
        categories = [{"id": entry.id, "name": entry.name} for entry in self.label_map.entries if entry]
        images = [
            {"id": image_id, "file_name": Path(path).name, "width": width, "height": height}
            for image_id, path, (width, height) in zip(
                self.annotations.image_ids.tolist(),
                self.annotations.paths,
                self.annotations.sizes.tolist(),
                strict=True,
            )
        ]
        annotations = [{"id": number, **entry} for number, entry in enumerate(entries, start=1)]
        return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}

    def _as_written(self) -> list[dict[str, Any]]:
        written = self.annotations
        area = np.where(np.isnan(written.area), written.xywh[:, 2] * written.xywh[:, 3], written.area)
        return _coco_entries(written, written.xywh, area)

    def _as_cleaned(self) -> list[dict[str, Any]]:
        boxes = self.records.boxes_xyxy
        xywh = np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)
        return _coco_entries(self._kept, xywh, self.records.area)

    def _clean(self) -> Records:
        written = self.annotations
        pictures = written.pictures_of_boxes()
        sizes = written.sizes[pictures].astype(np.float64)
        with np.errstate(over="ignore"):  # an absurd box may end beyond all numbers; it is clipped like any other
            corners = np.concatenate((written.xywh[:, :2], written.xywh[:, :2] + written.xywh[:, 2:]), axis=1)
        boxes_xyxy = np.clip(corners, 0.0, np.tile(sizes, 2))
        zero = np.any(written.xywh[:, 2:] <= 0, axis=1)
        passed = np.concatenate((-corners[:, :2], corners[:, 2:] - sizes), axis=1).max(axis=1, initial=-np.inf)
        self._note("zero size", zero)
        self._note("outside", ~zero & (passed > _ROUNDING))
        kept = ~zero & np.all(boxes_xyxy[:, 2:] > boxes_xyxy[:, :2], axis=1)
        self._kept = written.keep(kept)
        slots = {entry.id: slot for slot, entry in enumerate(self.label_map.entries) if entry}
        ids, inverse = np.unique(self._kept.category_ids, return_inverse=True)
        labels = np.array([slots[id] for id in ids.tolist()], dtype=np.int64)[inverse]
        return Records(self._kept, boxes_xyxy[kept], labels)

    def _note(self, kind: str, boxes: np.ndarray) -> None:
        if boxes.any():
            self.problems[kind] = int(boxes.sum())
            self._first_problem[kind] = self.annotations.place(int(boxes.argmax()))

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
        if not len(self.records.labels):
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


def evenly_spaced(length: int, number: int) -> list[int]:
    """At most `number` of the positions 0 … `length` - 1, in order, from first to last; always the same ones."""
    return np.linspace(0, length - 1, min(number, length)).round().astype(int).tolist()


def read_as_annotated(record: Record) -> Image.Image:
    """The picture as its annotator saw it: upright, unless the annotated size says that EXIF was disregarded.

    Raises `InputError` where the picture cannot be read, or has the annotated size neither way.
    """
    if record.window is not None and record.picture_size is not None:
        width, height = record.picture_size
        return read_as_annotated(replace(record, width=width, height=height, window=None)).crop(record.window)
    upright = read_picture(record.path)
    if upright.size == (record.width, record.height):
        return upright
    with Image.open(record.path) as picture:
        raw_size, orientation = picture.size, orientation_of(picture)
    if raw_size == (record.width, record.height) and orientation in _UNDO_ORIENTATION:
        return upright.transpose(_UNDO_ORIENTATION[orientation])
    raise InputError(
        f"{record.path}: is {upright.width}x{upright.height}, but its annotation says {record.width}x{record.height}; "
        "correct the annotation or put the original picture back"
    )


def without_missing_pictures(annotations: Annotations, faults: Faults) -> Annotations:
    """The annotations of the pictures that are there; `faults` hears of each that is not."""
    listings = FolderListings()
    missing = [index for index, path in enumerate(annotations.paths) if path not in listings]
    if not missing:
        return annotations
    counts = np.diff(annotations.starts)
    for index in missing:
        others = f" and {len(missing) - 1} others of the split" if faults.strict and len(missing) > 1 else ""
        message = f"no such picture{others}, named by {annotations.source(index)}"
        remedy = "add it or drop its entry"
        faults.add(Fault("missing picture", annotations.path(index), message, remedy, num_boxes=int(counts[index])))
    kept = np.setdiff1d(np.arange(len(annotations)), missing)
    return replace(annotations.take(kept), warnings=annotations.warnings)


def _coco_entries(annotations: Annotations, xywh: np.ndarray, area: np.ndarray) -> list[dict[str, Any]]:
    """A COCO annotation for each box, without its id."""
    image_ids = annotations.image_ids[annotations.pictures_of_boxes()].tolist()
    category_ids = annotations.category_ids
    columns = (image_ids, category_ids.tolist(), xywh.tolist(), area.tolist(), annotations.is_crowd.tolist())
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "area": box_area, "iscrowd": int(is_crowd)}
        for image_id, category_id, box, box_area, is_crowd in zip(*columns, strict=True)
    ]
