"""Pascal VOC XML: one file per picture, splits as lists of names.

Found: `Annotations/*.xml`, `JPEGImages/` (or `images/`) and `ImageSets/Main/{train,val,test}.txt`; without lists all
pictures are one split, "all"; or XML beside the pictures, in one folder per split or in one folder.

Corners are taken as they stand, as the edges of the box in pixels. (VOC's own tools count pixels from 1 and include
the last; what people's tools write mostly does not. The difference is one pixel.) `difficult` objects are ordinary
objects. Category ids are 1..K in the order of the names over the whole data set, so every split has the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

from detrove.data.annotations import Annotations, AnnotationsBuilder
from detrove.data.faults import AnnotationError, Fault, Faults
from detrove.data.files import (
    LARGEST_SIDE,
    choose_split,
    finite,
    lines_of,
    list_pictures,
    not_finite,
    picture_size,
    read_text,
    split_names,
    visible,
)

DESCRIPTION = "VOC XML (Annotations/*.xml, JPEGImages/, ImageSets/Main/SPLIT.txt)"

_PICTURE_FOLDERS = ("JPEGImages", "images", "Images")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_WITH_PRESENCE = re.compile(r"\S\s+(-1|0|1)$")
_OBJECT = re.compile(r"<object[\s>/]")


@dataclass
class _Split:
    """Where a split's annotations are, where its pictures, and the list that names them (None: all)."""

    annotations: Path
    pictures: Path
    names: Path | None = None


def find_splits(path: Path) -> tuple[str, ...]:
    """The names of the splits; empty where the folder is not VOC XML."""
    return tuple(_layout(path)) if path.is_dir() else ()


@dataclass
class _Object:
    """An `<object>` as written: its class, its corners, its number in the file, its line if that is known."""

    name: str
    corners: list[str]
    number: int
    line: int | None

    @property
    def entry(self) -> str:
        return f"object {self.number}"


@dataclass
class _Labels:
    """One annotation file as written."""

    filename: str
    size: list[str]
    objects: list[_Object]


def read(path: Path, split: str, faults: Faults) -> Annotations:
    """One split, boxes as written; `faults` hears of what is wrong with which file."""
    layout = _layout(path)
    chosen = layout[choose_split(layout, split, path)]
    labels = _read_all(layout, faults)
    category_ids = _number_names(labels, _annotation_folders(layout)[0], faults)
    by_stem = {picture.stem: picture for picture in list_pictures(chosen.pictures)}
    builder = AnnotationsBuilder("object")
    for file in _files_of(chosen, faults):
        if file not in labels:  # reported when it could not be parsed
            continue
        try:
            _add_picture(builder, file, labels[file], by_stem, chosen.pictures, category_ids, faults)
        except AnnotationError as error:
            num_named = sum(bool(item.name) for item in labels[file].objects)  # the others are reported already
            faults.add(replace(error.fault, num_boxes=num_named))
    return builder.finish({id: name for name, id in category_ids.items()})


def _layout(path: Path) -> dict[str, _Split]:
    for folder in (path / "Annotations", path / "annotations"):
        if next(visible(folder, "*.xml"), None) is not None:
            pictures = next((path / name for name in _PICTURE_FOLDERS if (path / name).is_dir()), folder)
            known = frozenset(os.listdir(folder))
            lists = [file for file in sorted(visible(path, "ImageSets/Main/*.txt")) if not _is_class_list(file, known)]
            if lists:
                names = split_names([file.stem for file in lists])
                return {name: _Split(folder, pictures, file) for name, file in zip(names, lists, strict=True)}
            return {"all": _Split(folder, pictures)}
    folders = sorted({file.parent for file in visible(path, "*/*.xml")})
    if folders:
        names = split_names([folder.name for folder in folders])
        return {name: _Split(folder, folder) for name, folder in zip(names, folders, strict=True)}
    if next(visible(path, "*.xml"), None) is not None:
        return {"all": _Split(path, path)}
    return {}


def _is_class_list(file: Path, annotations: Container[str]) -> bool:
    """VOC's per-class lists (`cat_train.txt`) have a second column, -1, 0 or 1, that says whether the class is present.

    A picture may be called so too, "IMG 1": then there are its annotations.
    """
    lines = lines_of(file.read_text(encoding="utf-8-sig", errors="replace"))
    if not lines or not all(_WITH_PRESENCE.search(line) for line in lines):
        return False
    return not any(f"{line}.xml" in annotations for line in lines)


def _annotation_folders(layout: dict[str, _Split]) -> list[Path]:
    return list(dict.fromkeys(split.annotations for split in layout.values()))


def _files_of(split: _Split, faults: Faults) -> list[Path]:
    """The annotation files of a split that are there; those that cannot be read among them."""
    there = sorted(visible(split.annotations, "*.xml"))
    if split.names is None:
        return there
    names = dict.fromkeys(lines_of(read_text(split.names)))
    files = {name: split.annotations / f"{name.removesuffix('.xml')}.xml" for name in names}
    known = frozenset(there)
    for name, file in files.items():
        if file not in known:
            message = f"names {file.stem!r}, but there is no {file}"
            faults.add(Fault("missing file", split.names, message, "add it or drop the name", entry=name))
    return [file for file in files.values() if file in known]


def _read_all(layout: dict[str, _Split], faults: Faults) -> dict[Path, _Labels]:
    """The annotation files of all splits: only together do they say which classes there are."""
    labels = {}
    for folder in _annotation_folders(layout):
        for file in sorted(visible(folder, "*.xml")):
            try:
                labels[file] = _parse(file)
            except AnnotationError as error:
                faults.add(error.fault)
    return labels


def _parse(file: Path) -> _Labels:
    text = read_text(file)
    try:
        # Encoded again, because the parser refuses text that declares an encoding of its own.
        tree = ElementTree.fromstring(text.encode(), ElementTree.XMLParser(encoding="utf-8"))
    except ElementTree.ParseError as error:
        line, column = error.position
        message = f"broken XML (column {column + 1})"
        raise AnnotationError(Fault("broken file", file, message, "export the annotation again", line=line)) from None
    items = list(tree.iter("object"))
    lines = [text.count("\n", 0, match.start()) + 1 for match in _OBJECT.finditer(text)]
    known_lines = len(lines) == len(items)  # not where a comment or a CDATA section spells an <object>
    objects = []
    for number, item in enumerate(items, start=1):
        corners = [(item.findtext(f"bndbox/{key}") or "").strip() for key in _CORNERS]
        line = lines[number - 1] if known_lines else None
        objects.append(_Object((item.findtext("name") or "").strip(), corners, number, line))
    size = [tree.findtext(f"size/{key}") or "0" for key in ("width", "height")]
    return _Labels((tree.findtext("filename") or "").strip(), size, objects)


def _number_names(labels: dict[Path, _Labels], folder: Path, faults: Faults) -> dict[str, int]:
    """Class name -> category id."""
    names = set()
    for file, content in labels.items():
        for item in content.objects:
            if item.name:
                names.add(item.name)
            else:
                message, remedy = f"{item.entry} has no <name>", "write its class or delete it"
                fault = Fault("unknown category", file, message, remedy, item.line, item.entry, num_boxes=1)
                faults.add(fault)
    if not names:
        message = "no annotation file has an <object>"
        raise AnnotationError(Fault("bad category", folder, message, "export the annotations again"))
    return {name: number for number, name in enumerate(sorted(names), start=1)}


def _add_picture(
    builder: AnnotationsBuilder,
    file: Path,
    labels: _Labels,
    by_stem: dict[str, Path],
    folder: Path,
    category_ids: dict[str, int],
    faults: Faults,
) -> None:
    path = by_stem.get(file.stem) or by_stem.get(Path(labels.filename).stem)
    if path is None:
        message = f"names an unknown picture ({labels.filename or file.stem})"
        raise AnnotationError(Fault("missing picture", file, message, f"put it into {folder}"))
    width, height = _size(labels, file) or picture_size(path)
    picture = builder.add_picture(path, len(builder) + 1, width, height, file)
    for item in labels.objects:
        if not item.name:  # reported when the names were numbered
            continue
        corners = finite(item.corners)
        if corners is None:
            message = f"<bndbox> of {item.entry}: {not_finite(item.corners)}"
            faults.add(Fault("bad box", file, message, "correct or delete it", item.line, item.entry, num_boxes=1))
        else:
            x1, y1, x2, y2 = corners
            builder.add_box(picture, category_ids[item.name], (x1, y1, x2 - x1, y2 - y1), item.number, item.line)


def _size(labels: _Labels, file: Path) -> tuple[int, int] | None:
    """Width and height as written; None where they are absent or 0, as some tools leave them."""
    size = finite(labels.size)
    if size is None or max(size) > LARGEST_SIDE:
        raise AnnotationError(Fault("bad picture entry", file, f"<size>: {not_finite(labels.size)}", "correct it"))
    width, height = size
    return (int(width), int(height)) if width >= 1 and height >= 1 else None
