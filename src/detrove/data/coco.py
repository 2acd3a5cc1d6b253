"""COCO JSON: one annotation file per split, pictures in a folder that its name points to.

Found: `annotations/instances_train2017.json` beside `train2017/` (COCO's own layout), any `annotations/*.json`,
`train/_annotations.coco.json` among its pictures, `train.json` beside the pictures, or one JSON file named directly.
"""

from __future__ import annotations

import functools
import json
import math
import os
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from detrove.data.annotations import Annotations, AnnotationsBuilder
from detrove.data.faults import AnnotationError, Fault, Faults
from detrove.data.files import (
    LARGEST_SIDE,
    FolderListings,
    PictureFinder,
    canonical_split,
    choose_split,
    finite,
    in_place,
    is_absolute,
    not_finite,
    split_names,
    visible,
)
from detrove.data.json_entries import read_entries

DESCRIPTION = "COCO JSON (annotations/instances_SPLIT.json, or SPLIT/_annotations.coco.json)"

_BESIDE_PICTURES = "_annotations.coco.json"
_END_OF_FILE = 1 << 20
_LARGEST_ID = 2**53
_OTHER_TASKS = ("captions", "person_keypoints", "image_info", "stuff", "panoptic")


def find_splits(path: Path) -> dict[str, Path]:
    """Split name -> annotation file; empty where there is none."""
    if path.is_file():
        return {canonical_split(_split_in_name(path)): path} if path.suffix.lower() == ".json" else {}
    files = [file for file in sorted(visible(path, "annotations/*.json")) if not file.stem.startswith(_OTHER_TASKS)]
    named = {file: _split_in_name(file) for file in files}
    named |= {file: file.parent.name for file in sorted(visible(path, f"*/{_BESIDE_PICTURES}"))}
    if not named:
        named = {file: _split_in_name(file) for file in sorted(visible(path, "*.json")) if _may_hold_boxes(file)}
    names = list(named.values())
    # Of two files of one name the last has it, and the others are called as they are.
    own = [file.stem if name in names[place + 1 :] else name for place, (file, name) in enumerate(named.items())]
    return dict(zip(split_names(own), named, strict=True))


def read(path: Path, split: str, faults: Faults) -> Annotations:
    """One split, boxes exactly as written; `faults` hears of what is wrong with the file and where."""
    files = find_splits(path)
    file = files[choose_split(files, split, path)]
    content = _load(file)
    categories = _merged_categories(files.values(), file, content.categories, faults)
    builder = AnnotationsBuilder("annotation")
    pictures = _add_pictures(builder, file, content, faults)
    _add_boxes(builder, file, content.boxes, pictures, categories, faults)
    return builder.finish(categories)


def _split_in_name(file: Path) -> str:
    if file.name == _BESIDE_PICTURES:
        return "all"
    return file.stem.removeprefix("instances_")


def _may_hold_boxes(file: Path) -> bool:
    return (
        file.name == _BESIDE_PICTURES
        or file.stem.startswith("instances_")
        or canonical_split(file.stem) in ("train", "val", "test")
    )


class _Boxes:
    """The entries of `annotations` in columns, before anything is known of pictures and categories.

    What is written for a box, and is not four finite numbers, is kept in `odd`, by its position in the list.
    """

    def __init__(self) -> None:
        self.image_ids: list[Any] = []
        self.category_ids: list[Any] = []
        self.ids: list[int | str] = []
        self.xywh, self.area = array("d"), array("d")
        self.is_crowd = bytearray()
        self.lines = array("q")
        self.odd: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, entry: Any, line: int) -> None:
        """One entry, whatever it is, and the line on which it begins."""
        fields = entry if isinstance(entry, dict) else {}
        image_id, bbox = fields.get("image_id"), fields.get("bbox")
        id = fields.get("id", f"(without id, number {len(self) + 1} of the list)")
        numbers = finite(bbox) if isinstance(bbox, list) and len(bbox) == 4 else None
        if numbers is None:
            self.odd[len(self)] = bbox
            numbers = (math.nan,) * 4
        area = fields.get("area")
        if type(area) is not float:
            area = (finite((area,)) or (math.nan,))[0]
        self.image_ids.append(image_id if isinstance(image_id, int | float | str) else None)
        self.category_ids.append(fields.get("category_id"))
        self.xywh.extend(numbers)
        self.area.append(area)
        self.is_crowd.append(bool(fields.get("iscrowd", 0)))
        self.lines.append(line)
        self.ids.append(id if isinstance(id, int | str) else str(id))


@dataclass
class _Content:
    """What a COCO file holds; `image_lines` and `boxes.lines` say where, 0 where that is unknown."""

    images: list[Any] = field(default_factory=list)
    image_lines: list[int] = field(default_factory=list)
    categories: list[Any] = field(default_factory=list)
    boxes: _Boxes = field(default_factory=_Boxes)

    def add_image(self, entry: Any, line: int) -> None:
        """One entry of `images` and the line on which it begins."""
        self.images.append(entry)
        self.image_lines.append(line)


def _load(file: Path) -> _Content:
    content = _Content()
    take = {"images": content.add_image, "annotations": content.boxes.add}
    top = read_entries(file, take)
    for key in ("images", "annotations", "categories"):
        if not isinstance(top, dict) or not isinstance(top.get(key), list):
            message, remedy = f"not COCO JSON: it has no list {key!r}", "export the annotations again as COCO"
            raise AnnotationError(Fault("broken file", file, message, remedy))
    if not content.images:
        remedy = "export the annotations again, or name another split"
        raise AnnotationError(Fault("no pictures", file, "lists no pictures", remedy, num_boxes=len(content.boxes)))
    content.categories = top["categories"]
    return content


def _merged_categories(files: Iterable[Path], own_file: Path, own: list[Any], faults: Faults) -> dict[int, str]:
    """The categories of all splits, so that every split has the same label map."""
    merged: dict[int, str] = {}
    origin: dict[int, Path] = {}
    for file in files:
        for entry in own if file == own_file else _categories_of_another(file, faults):
            try:
                id, name = int(entry["id"]), str(entry["name"])
            except (KeyError, TypeError, ValueError, OverflowError):
                id, name = _LARGEST_ID + 1, ""
            if abs(id) > _LARGEST_ID:
                message = f"a category must have a number 'id' and a 'name', got {_shown(entry)}"
                faults.add(Fault("bad category", file, message, "correct or delete it"))
            elif merged.setdefault(id, name) != name:
                message = f"category {id} is {name!r} but {merged[id]!r} in {origin[id]}"
                faults.add(Fault("bad category", file, message, "make the files agree"))
            else:
                origin.setdefault(id, file)
    if not merged:
        message, remedy = "lists no categories", "export the annotations again with their class names"
        raise AnnotationError(Fault("bad category", own_file, message, remedy))
    return merged


def _categories_of_another(file: Path, faults: Faults) -> list[Any]:
    """The `categories` of a split that is not being read; where it is broken, the reading of its own says so."""
    try:
        return _categories_only(file)
    except AnnotationError as error:
        faults.add(error.fault)
        return []


def _categories_only(file: Path) -> list[Any]:
    """The `categories` of a file that is not otherwise needed, without reading the (large) rest where that is possible.

    They mostly stand at the end of the file, or at its beginning.
    """
    for text in _ends_of(file):
        position = text.rfind('"categories"')
        start = text.find("[", position)
        if position >= 0 and start >= 0:
            try:
                entries, _ = json.JSONDecoder().raw_decode(text, start)
            except (ValueError, RecursionError):
                entries = []
            if entries and all(isinstance(entry, dict) and "id" in entry and "name" in entry for entry in entries):
                return entries
    return _load(file).categories


def _ends_of(file: Path) -> list[str]:
    """The last and the first megabytes of a file; nothing where it cannot be read."""
    try:
        with file.open("rb") as content:
            first = content.read(_END_OF_FILE)
            content.seek(max(0, file.stat().st_size - _END_OF_FILE))
            last = content.read()
    except OSError:
        return []
    return [part.decode("utf-8", "ignore") for part in (last, first)]


def _add_pictures(builder: AnnotationsBuilder, file: Path, content: _Content, faults: Faults) -> dict[Any, int]:
    """Picture id -> index in the builder."""
    pictures: dict[Any, int] = {}
    place = _Places(file, content, faults)
    for image, line in zip(content.images, content.image_lines, strict=True):
        fault = functools.partial(Fault, "bad picture entry", file, line=line or None)
        try:
            image_id, name = image["id"], str(image["file_name"])
            width, height = int(image["width"]), int(image["height"])
        except (KeyError, TypeError, ValueError, OverflowError):
            message = f"a picture must have id, file_name, width and height, got {_shown(image)}"
            faults.add(fault(message, "correct or delete it"))
            continue
        if isinstance(image_id, float) and image_id.is_integer():
            image_id = int(image_id)
        if not isinstance(image_id, int | str):
            faults.add(fault(f"the id of picture {name} is no number or text", "export the annotations again"))
        elif image_id in pictures:
            faults.add(fault(f"two pictures have the id {image_id}", "export the annotations again"))
        elif not (1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
            faults.add(fault(f"picture {name} is said to be {width}x{height}", "write its true size"))
        else:
            pictures[image_id] = builder.add_picture(place(name), image_id, width, height, file)
    return pictures


def _picture_folders(file: Path) -> list[Path]:
    """Where people put the pictures that an annotation file names."""
    split = _split_in_name(file)
    short = canonical_split(split)
    candidates = [file.parent]
    for root in dict.fromkeys((file.parent.parent if file.parent.name == "annotations" else file.parent, file.parent)):
        for inner in (split, short, f"images/{split}", f"images/{short}", f"{short}/images", "images", ""):
            candidates.append(root / inner)
    return list(dict.fromkeys(candidates))


class _Places:
    """Where the pictures of an annotation file are: in the folder of the first one, as their names are written.

    Others are looked for in the other folders; by its last parts alone only what is written with a root, of another
    machine, or what lies no deeper than the first one's name said. Two names never come to one file: then the second
    picture is missing, as it was said to be elsewhere.
    """

    def __init__(self, file: Path, content: _Content, faults: Faults) -> None:
        self._listings, candidates = FolderListings(), _picture_folders(file)
        self._find = PictureFinder(candidates, self._listings)
        self._folder, self._left_out = str(file.parent), 0
        self._name_of: dict[str, str] = {}
        names = [str(image.get("file_name", "")) for image in content.images if isinstance(image, dict)]
        for name in filter(None, names if not faults.strict else names[:1]):
            folder = next((folder for folder in candidates if str(folder / name) in self._listings), None)
            place = (str(folder), 0) if folder is not None else self._find.place(name)
            if place is not None:
                self._folder, self._left_out = place
                return
        looked = ", ".join(str(folder) for folder in candidates[1:4])
        message = f"its picture {next(iter(names), '')!r} is not found; looked in {looked}, …"
        faults.add(Fault("missing picture", file, message, "put the pictures there"))

    def __call__(self, name: str) -> str:
        """The path of the picture that is called so, whether or not it is there."""
        written = os.path.join(self._folder, name)
        if written in self._listings:
            return written
        place = self._find.place(name, None if is_absolute(name) else self._left_out)
        if place is None:
            return written
        path = in_place(name, *place)
        return path if self._name_of.setdefault(path, name) == name else written


def _add_boxes(
    builder: AnnotationsBuilder,
    file: Path,
    boxes: _Boxes,
    indices: Mapping[Any, int],
    categories: Mapping[int, str],
    faults: Faults,
) -> None:
    pictures = np.array([indices.get(image_id, -1) for image_id in boxes.image_ids], dtype=np.int64)
    known = [type(id) is int and id in categories for id in boxes.category_ids]
    sound = (pictures >= 0) & np.array(known, dtype=bool)
    sound[list(boxes.odd)] = False
    for position in np.flatnonzero(~sound).tolist():
        faults.add(_box_fault(file, boxes, position, bool(pictures[position] >= 0), known[position]))
    chosen = sound.tolist()
    builder.add_boxes(
        pictures[sound],
        np.array(list(compress(boxes.category_ids, chosen)), dtype=np.int64),
        np.array(boxes.xywh).reshape(-1, 4)[sound],
        list(compress(boxes.ids, chosen)),
        np.array(boxes.lines)[sound],
        np.frombuffer(boxes.is_crowd, dtype=bool)[sound],
        np.array(boxes.area)[sound],
    )


def _box_fault(file: Path, boxes: _Boxes, position: int, known_picture: bool, known_category: bool) -> Fault:
    """Why an entry of `annotations` cannot be used."""
    where = f"annotation {boxes.ids[position]}"
    fault = functools.partial(Fault, file=file, line=boxes.lines[position] or None, entry=where, num_boxes=1)
    if not known_picture:
        message = f"{where} names an unknown picture (image_id {boxes.image_ids[position]})"
        return fault("unknown picture", message=message, remedy="add the picture to 'images' or delete the annotation")
    if not known_category:
        message = f"{where} names an unknown category ({_shown(boxes.category_ids[position])})"
        return fault("unknown category", message=message, remedy="add it to 'categories'")
    bbox = boxes.odd[position]
    if not isinstance(bbox, list) or len(bbox) != 4:
        message = f"{where} has no bbox [x, y, width, height]"
    else:
        message = f"bbox of {where}: {_shown(not_finite(bbox))}"
    return fault("bad box", message=message, remedy="correct or delete it")


def _shown(value: Any) -> str:
    """A value of the file for a message, of a bearable length."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
