"""COCO JSON: one annotation file per split, pictures in a folder that its name points to.

Found: `annotations/instances_train2017.json` beside `train2017/` (COCO's own layout), any `annotations/*.json`,
`train/_annotations.coco.json` among its pictures, `train.json` beside the pictures, or one JSON file named directly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detrove.data.annotations import (
    AnnotatedBox,
    AnnotatedPicture,
    Annotations,
    canonical_split,
    choose_split,
    finite,
    read_text,
)
from detrove.errors import InputError

DESCRIPTION = "COCO JSON (annotations/instances_SPLIT.json, or SPLIT/_annotations.coco.json)"

_BESIDE_PICTURES = "_annotations.coco.json"
_OTHER_TASKS = ("captions", "person_keypoints", "image_info", "stuff", "panoptic")


def find_splits(path: Path) -> dict[str, Path]:
    """Split name -> annotation file; empty where there is none."""
    if path.is_file():
        return {canonical_split(_split_in_name(path)): path} if path.suffix.lower() == ".json" else {}
    files = [file for file in sorted(path.glob("annotations/*.json")) if not file.stem.startswith(_OTHER_TASKS)]
    named = {file: _split_in_name(file) for file in files}
    named |= {file: file.parent.name for file in sorted(path.glob(f"*/{_BESIDE_PICTURES}"))}
    if not named:
        named = {file: _split_in_name(file) for file in sorted(path.glob("*.json")) if _may_hold_boxes(file)}
    canonical = [canonical_split(name) for name in named.values()]
    # Two years of the same split keep their full names: neither is *the* training split.
    return {
        name if canonical.count(canonical_split(name)) > 1 else canonical_split(name): file
        for file, name in named.items()
    }


def read(path: Path, split: str) -> Annotations:
    """One split, boxes exactly as written; `InputError` names what is wrong with the file and where."""
    files = find_splits(path)
    file = files[choose_split(files, split, path)]
    content = _load(file)
    categories = _merged_categories(files.values(), file, content)
    pictures = _read_pictures(file, content["images"])
    for annotation in content["annotations"]:
        _add_box(annotation, pictures, categories, file)
    return Annotations(list(pictures.values()), categories)


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


def _parse(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file}:{error.lineno}: broken JSON ({error.msg}, column {error.colno}); export the annotations again"
        ) from None


def _load(file: Path) -> dict[str, Any]:
    content = _parse(file, read_text(file))
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise InputError(f"{file}: not COCO JSON: it has no list {key!r}; export the annotations again as COCO")
    if not content["images"]:
        raise InputError(f"{file}: lists no pictures; export the annotations again, or name another split")
    return content


def _merged_categories(files: Iterable[Path], own_file: Path, own: Mapping[str, Any]) -> dict[int, str]:
    """The categories of all splits, so that every split has the same label map."""
    merged: dict[int, str] = {}
    origin: dict[int, Path] = {}
    for file in files:
        entries = own["categories"] if file == own_file else _categories_only(file)
        for entry in entries:
            try:
                id, name = int(entry["id"]), str(entry["name"])
            except (KeyError, TypeError, ValueError):
                raise InputError(f"{file}: a category must have a number 'id' and a 'name', got {entry}") from None
            if merged.setdefault(id, name) != name:
                raise InputError(
                    f"{file}: category {id} is {name!r} but {merged[id]!r} in {origin[id]}; make the files agree"
                )
            origin.setdefault(id, file)
    if not merged:
        raise InputError(f"{own_file}: lists no categories; export the annotations again with their class names")
    return merged


def _categories_only(file: Path) -> list[Any]:
    """The `categories` of a file that is not otherwise needed, without parsing the (large) rest of it."""
    text = read_text(file)
    position = text.rfind('"categories"')
    start = text.find("[", position)
    if position >= 0 and start >= 0:
        try:
            entries, _ = json.JSONDecoder().raw_decode(text, start)
        except json.JSONDecodeError:
            entries = []
        if entries and all(isinstance(entry, dict) and "id" in entry and "name" in entry for entry in entries):
            return entries
    return _load(file)["categories"]


def _read_pictures(file: Path, images: list[dict[str, Any]]) -> dict[int | str, AnnotatedPicture]:
    pictures: dict[int | str, AnnotatedPicture] = {}
    folder = _picture_folder(file, images[0])
    for image in images:
        try:
            image_id, name = image["id"], str(image["file_name"])
            width, height = int(image["width"]), int(image["height"])
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{file}: a picture must have id, file_name, width and height, got {image}") from None
        if image_id in pictures:
            raise InputError(f"{file}: two pictures have the id {image_id}; export the annotations again")
        if width < 1 or height < 1:
            raise InputError(f"{file}: picture {name} is said to be {width}x{height}; write its true size")
        pictures[image_id] = AnnotatedPicture(folder / name, image_id, width, height, file)
    return pictures


def _picture_folder(file: Path, first: Mapping[str, Any]) -> Path:
    """The folder that holds the first picture, of those where people put them."""
    name = str(first.get("file_name", ""))
    split = _split_in_name(file)
    short = canonical_split(split)
    candidates = [file.parent]
    for root in dict.fromkeys((file.parent.parent if file.parent.name == "annotations" else file.parent, file.parent)):
        for inner in (split, short, f"images/{split}", f"images/{short}", f"{short}/images", "images", ""):
            candidates.append(root / inner)
    for folder in dict.fromkeys(candidates):
        if name and (folder / name).is_file():
            return folder
    looked = ", ".join(str(folder) for folder in dict.fromkeys(candidates[1:4]))
    raise InputError(f"{file}: its picture {name!r} is not found; looked in {looked}, …; put the pictures there")


def _add_box(
    annotation: Mapping[str, Any],
    pictures: Mapping[int | str, AnnotatedPicture],
    categories: Mapping[int, str],
    file: Path,
) -> None:
    where = f"annotation {annotation.get('id', '(without id)')}"
    picture = pictures.get(annotation.get("image_id", ""))
    if picture is None:
        raise InputError(
            f"{file}: {where} names an unknown picture (image_id {annotation.get('image_id')}); "
            "add the picture to 'images' or delete the annotation"
        )
    category_id = annotation.get("category_id")
    if not isinstance(category_id, int) or category_id not in categories:
        raise InputError(f"{file}: {where} names an unknown category ({category_id}); add it to 'categories'")
    bbox = annotation.get("bbox")
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise InputError(f"{file}: {where} has no bbox [x, y, width, height]; correct or delete it")
    x, y, width, height = finite(bbox, f"{file}: bbox of {where}")
    area = annotation.get("area")
    is_crowd = bool(annotation.get("iscrowd", 0))
    box = AnnotatedBox(category_id, (x, y, width, height), where, is_crowd, None if area is None else float(area))
    picture.boxes.append(box)
