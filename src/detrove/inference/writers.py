"""Writing down what was found: COCO results, counts, and labels that annotation tools and training read."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from detrove.checkpoints.files import write_atomically
from detrove.data.files import relative_names
from detrove.drawing import draw_detections
from detrove.errors import InputError
from detrove.structures import Detections, LabelMap

ESCAPED = "backslashreplace"
"""What becomes of the bytes of a file's name that are no text: escapes, which JSON reads back."""


@dataclass(frozen=True)
class PictureFound:
    """A picture file, its upright size in pixels, and what was found in it."""

    path: Path
    height: int
    width: int
    detections: Detections

    @property
    def counts(self) -> Counter[str]:
        """How many of each class, by name."""
        return Counter(self.detections.names)


def image_ids(paths: Sequence[Path]) -> list[int]:
    """One id per picture: the number that its name is where all are numbers, as COCO's are, else 1, 2, ….

    >>> image_ids([Path("000000000139.jpg"), Path("000000000285.jpg")]), image_ids([Path("a.jpg"), Path("7.jpg")])
    ([139, 285], [1, 2])
    """
    stems = [path.stem for path in paths]
    numbers = [int(stem) for stem in stems if stem.isascii() and stem.isdigit()]
    return numbers if len(set(numbers)) == len(stems) else list(range(1, len(stems) + 1))


def coco_results(found: Sequence[PictureFound]) -> list[dict[str, Any]]:
    """COCO result entries of all pictures, each with its `file_name` besides; ids as of `image_ids`."""
    paths = [one.path for one in found]
    return [
        {**entry, "file_name": name.as_posix()}
        for one, image_id, name in zip(found, image_ids(paths), relative_names(paths), strict=True)
        for entry in one.detections.to_coco(image_id)
    ]


def coco_labels(found: Sequence[PictureFound], label_map: LabelMap) -> dict[str, Any]:
    """What was found as if annotated: a COCO dict of images, annotations (with `score`) and categories."""
    paths = [one.path for one in found]
    ids, names = image_ids(paths), relative_names(paths)
    images = [
        {"id": image_id, "file_name": name.as_posix(), "width": one.width, "height": one.height}
        for one, image_id, name in zip(found, ids, names, strict=True)
    ]
    entries = [entry for one, image_id in zip(found, ids, strict=True) for entry in one.detections.to_coco(image_id)]
    categories = [{"id": entry.id, "name": entry.name} for entry in label_map.entries if entry]
    return {"images": images, "annotations": as_annotations(entries), "categories": categories}


def as_annotations(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """COCO result entries as COCO annotations, with their `score`."""
    return [
        {"id": number, **entry, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
        for number, entry in enumerate(results, start=1)
    ]


def yolo_lines(one: PictureFound) -> str:
    """A YOLO label file: "class cx cy w h" a line, in [0, 1] of the picture; classes numbered without empty slots."""
    numbers = _numbers_of_slots(one.detections.label_map)
    lines = []
    for (x1, y1, x2, y2), slot in zip(one.detections.boxes.tolist(), one.detections.labels.tolist(), strict=True):
        if slot in numbers:
            centre = (x1 + x2) / 2 / one.width, (y1 + y2) / 2 / one.height
            size = (x2 - x1) / one.width, (y2 - y1) / one.height
            lines.append(" ".join([str(numbers[slot]), *(f"{value:.6f}" for value in (*centre, *size))]))
    return "".join(f"{line}\n" for line in lines)


def counts_csv(found: Sequence[PictureFound], label_map: LabelMap) -> str:
    """A table of counts: a line a picture, a column a class, and the total."""
    names = [entry.name for entry in label_map.entries if entry]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["picture", *names, "total"])
    for one, name in zip(found, relative_names([one.path for one in found]), strict=True):
        counts = one.counts
        table.writerow([name.as_posix(), *(counts[each] for each in names), len(one.detections)])
    return text.getvalue()


def write_json(path: Path, values: Any) -> None:
    """Plain values as indented JSON."""
    write_atomically(path, f"{json.dumps(values, indent=1, ensure_ascii=False)}\n".encode(errors=ESCAPED))


def write_drawing(path: Path, picture: Image.Image, detections: Detections) -> None:
    """The picture with its detections drawn, in the format that the suffix names; .png is added to other suffixes."""
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
        path = path.with_name(f"{path.name}.png")
    content = io.BytesIO()
    suffix = path.suffix.lower()
    options = {"quality": 92} if suffix != ".png" else {}
    draw_detections(picture, detections).save(content, Image.registered_extensions()[suffix], **options)
    write_atomically(path, content.getvalue())


def write_coco_set(folder: Path, found: Sequence[PictureFound], label_map: LabelMap) -> None:
    """A COCO data set of what was found: `annotations/instances_train.json`, and the pictures copied to `images/`."""
    _copy_pictures(folder / "images", found)
    write_json(folder / "annotations" / "instances_train.json", coco_labels(found, label_map))


def write_yolo_set(folder: Path, found: Sequence[PictureFound], label_map: LabelMap) -> None:
    """A YOLO data set of what was found: `data.yaml`, `classes.txt`, `labels/`, copies of the pictures in `images/`."""
    _copy_pictures(folder / "images", found)
    for one, name in zip(found, relative_names([one.path for one in found]), strict=True):
        write_atomically(folder / "labels" / name.with_suffix(".txt"), yolo_lines(one).encode())
    names = [entry.name for entry in label_map.entries if entry]
    write_atomically(folder / "classes.txt", "".join(f"{name}\n" for name in names).encode())
    description = {"train": "images", "names": dict(enumerate(names))}
    write_atomically(folder / "data.yaml", yaml.safe_dump(description, sort_keys=False, allow_unicode=True).encode())


def refuse_ambiguous_labels(paths: Sequence[Path]) -> None:
    """Raise `InputError` where two pictures would share a YOLO label file, which is named without the suffix."""
    owners: dict[Path, Path] = {}
    for path, name in zip(paths, relative_names(paths), strict=True):
        other = owners.setdefault(name.with_suffix(".txt"), path)
        if other != path:
            raise InputError(f"{path}: would share its YOLO label file with {other}; rename one, or save coco-labels")


def _numbers_of_slots(label_map: LabelMap) -> dict[int, int]:
    """Slot -> 0, 1, … over the slots that mean something."""
    return {slot: number for number, slot in enumerate(s for s, entry in enumerate(label_map.entries) if entry)}


def _copy_pictures(folder: Path, found: Sequence[PictureFound]) -> None:
    """Copies of the picture files, under their relative names."""
    for one, name in zip(found, relative_names([one.path for one in found]), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(one.path, folder / name)
