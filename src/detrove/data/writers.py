"""Writing data sets: COCO and YOLO folders, boxes as they were written, pictures copied or linked.

A folder appears whole or not at all: it is written under another name beside its place, and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from detrove.data.annotations import Annotations
from detrove.data.files import picture_size, relative_names
from detrove.data.yolo import is_split_name, mirrored_label_file
from detrove.errors import InputError


@dataclass
class Written:
    """What was written: pictures and boxes of each split, and `notes` on what the format cannot say."""

    folder: Path
    num_pictures: dict[str, int] = field(default_factory=dict)
    num_boxes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def write_coco(folder: Path, splits: Mapping[str, Annotations], link: bool = False) -> Written:
    """A COCO data set: `annotations/instances_SPLIT.json`, pictures in `SPLIT/`.

    Boxes, areas, category and picture ids are kept as they are. `link`: pictures are hard links instead of copies.
    Raises `InputError` where the folder exists.
    """
    written = Written(folder)
    with _new_folder(folder) as place:
        (place / "annotations").mkdir()
        for split, annotations in splits.items():
            names = _names_of_pictures(annotations)
            _place_pictures(place / split, annotations, names, link)
            content = json.dumps(coco_content(annotations, names), ensure_ascii=False)
            (place / "annotations" / f"instances_{split}.json").write_text(
                content, encoding="utf-8", errors="backslashreplace"
            )
            written.num_pictures[split], written.num_boxes[split] = len(annotations), annotations.num_boxes
    return written


def write_yolo(folder: Path, splits: Mapping[str, Annotations], link: bool = False) -> Written:
    """A YOLO data set: `data.yaml`, pictures in `images/SPLIT/`, labels in `labels/SPLIT/`; classes from 0 by their id.

    Boxes are kept to twelve digits. `link`: pictures are hard links instead of copies. Raises `InputError` where the
    folder exists, two pictures would share a label file, or a picture has not the size that its annotation says.
    """
    written = Written(folder)
    with _new_folder(folder) as place:
        names: dict[int, str] = {}
        for split, annotations in splits.items():
            if not is_split_name(split):
                raise InputError(f"split {split!r}: a data.yaml names train, val and test; rename it, or write COCO")
            names |= annotations.categories
            _refuse_other_sizes(annotations)
            pictures = _names_of_pictures(annotations)
            _refuse_shared_labels(annotations, pictures)
            _place_pictures(place / "images" / split, annotations, pictures, link)
            _write_labels(place / "images" / split, annotations, pictures)
            written.num_pictures[split], written.num_boxes[split] = len(annotations), annotations.num_boxes
            if num_crowd := int(annotations.is_crowd.sum()):
                written.notes.append(f"{split}: {num_crowd} crowd regions became ordinary boxes: YOLO cannot mark them")
        description = {split: f"images/{split}" for split in splits} | {"names": [names[id] for id in sorted(names)]}
        text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
        (place / "data.yaml").write_text(text, encoding="utf-8")
    return written


WRITERS: dict[str, Callable[[Path, Mapping[str, Annotations], bool], Written]] = {
    "coco": write_coco,
    "yolo": write_yolo,
}
"""Format -> what writes it."""


def coco_content(annotations: Annotations, names: list[Path]) -> dict[str, Any]:
    """A COCO dict of a split; `names`: what to call each picture. Annotation ids are kept where they are unique."""
    image_ids = annotations.image_ids.tolist()
    images = [
        {"id": image_id, "file_name": name.as_posix(), "width": width, "height": height}
        for image_id, name, (width, height) in zip(image_ids, names, annotations.sizes.tolist(), strict=True)
    ]
    widths, heights = annotations.xywh[:, 2], annotations.xywh[:, 3]
    area = np.where(np.isnan(annotations.area), widths * heights, annotations.area)
    columns = (
        _annotation_ids(annotations),
        annotations.image_ids[annotations.pictures_of_boxes()].tolist(),
        annotations.category_ids.tolist(),
        annotations.xywh.tolist(),
        area.tolist(),
        annotations.is_crowd.astype(int).tolist(),
    )
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    boxes = [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]
    categories = [{"id": id, "name": name} for id, name in sorted(annotations.categories.items())]
    return {"images": images, "annotations": boxes, "categories": categories}


def _annotation_ids(annotations: Annotations) -> list[int]:
    entries = annotations.entries
    own = annotations.entry_name == "annotation" and entries.dtype == np.int64
    if own and len(np.unique(entries)) == len(entries):
        return entries.tolist()
    return list(range(1, len(entries) + 1))


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to that becomes `folder` when all went well, and is removed when not."""
    if folder.exists():
        raise InputError(f"{folder}: exists already; choose another name, or remove it")
    place = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    place.mkdir(parents=True)
    try:
        yield place
        place.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _names_of_pictures(annotations: Annotations) -> list[Path]:
    return relative_names([annotations.path(index) for index in range(len(annotations))])


def _place_pictures(folder: Path, annotations: Annotations, names: list[Path], link: bool) -> None:
    folder.mkdir(parents=True)
    for index, name in enumerate(names):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if link:
            _link(annotations.path(index), target)
        else:
            shutil.copyfile(annotations.path(index), target)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except FileExistsError:  # a picture that is listed twice
        if not target.samefile(source):
            raise
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            raise
        raise InputError(f"{source}: cannot be linked to {target} ({error.strerror}); leave out --link") from None


def _write_labels(folder: Path, annotations: Annotations, names: list[Path]) -> None:
    numbers = {id: number for number, id in enumerate(sorted(annotations.categories))}
    for index, name in enumerate(names):
        boxes = annotations.boxes_of(index)
        width, height = annotations.sizes[index].tolist()
        lines = []
        for id, (x, y, w, h) in zip(
            annotations.category_ids[boxes].tolist(), annotations.xywh[boxes].tolist(), strict=True
        ):
            values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(" ".join([str(numbers[id]), *(f"{value:.12g}" for value in values)]) + "\n")
        file = mirrored_label_file(folder / name)
        assert file, "the pictures are in a folder images/"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), encoding="utf-8")


def _refuse_shared_labels(annotations: Annotations, names: list[Path]) -> None:
    owners: dict[Path, int] = {}
    for index, name in enumerate(names):
        other = owners.setdefault(name.with_suffix(""), index)
        if other != index:
            first, second = annotations.path(other), annotations.path(index)
            raise InputError(f"{second}: would share its YOLO label file with {first}; rename one, or write COCO")


def _refuse_other_sizes(annotations: Annotations) -> None:
    """YOLO's fractions are of the upright picture itself: boxes annotated at another size would land elsewhere."""
    for index, (width, height) in enumerate(annotations.sizes.tolist()):
        path = annotations.path(index)
        upright = picture_size(path)
        if upright != (width, height):
            raise InputError(
                f"{path}: is {upright[0]}x{upright[1]} upright, but its annotation says {width}x{height}; correct it"
            )
