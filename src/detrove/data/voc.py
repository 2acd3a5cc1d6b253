"""Pascal VOC XML: one file per picture, splits as lists of names.

Found: `Annotations/*.xml`, `JPEGImages/` (or `images/`) and `ImageSets/Main/{train,val,test}.txt`; without lists all
pictures are one split, "all"; or XML beside the pictures, in one folder per split or in one folder.

Corners are taken as they stand, as the edges of the box in pixels. (VOC's own tools count pixels from 1 and include
the last; what people's tools write mostly does not. The difference is one pixel.) `difficult` objects are ordinary
objects. Category ids are 1..K in the order of the names over the whole data set, so every split has the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from detrove.data.annotations import (
    AnnotatedBox,
    AnnotatedPicture,
    Annotations,
    canonical_split,
    choose_split,
    finite,
    list_pictures,
    picture_size,
    read_text,
)
from detrove.errors import InputError

DESCRIPTION = "VOC XML (Annotations/*.xml, JPEGImages/, ImageSets/Main/SPLIT.txt)"

_PICTURE_FOLDERS = ("JPEGImages", "images", "Images")


@dataclass
class _Split:
    """Where a split's annotations are, where its pictures, and the list that names them (None: all)."""

    annotations: Path
    pictures: Path
    names: Path | None = None


def find_splits(path: Path) -> tuple[str, ...]:
    """The names of the splits; empty where the folder is not VOC XML."""
    return tuple(_layout(path)) if path.is_dir() else ()


def read(path: Path, split: str) -> Annotations:
    """One split, boxes as written; `InputError` names what is wrong with which file."""
    layout = _layout(path)
    chosen = layout[choose_split(layout, split, path)]
    trees = {file: _parse(file) for folder in _annotation_folders(layout) for file in sorted(folder.glob("*.xml"))}
    category_ids = _number_names(trees)
    files = _files_of(chosen)
    for file in files:
        if file not in trees:
            raise InputError(f"{chosen.names}: names {file.stem!r}, but there is no {file}; add it or drop the name")
    by_stem = {picture.stem: picture for picture in list_pictures(chosen.pictures)}
    pictures = [
        _read_picture(file, trees[file], number, by_stem, chosen.pictures, category_ids)
        for number, file in enumerate(files, start=1)
    ]
    return Annotations(pictures, {id: name for name, id in category_ids.items()})


def _layout(path: Path) -> dict[str, _Split]:
    for folder in (path / "Annotations", path / "annotations"):
        if next(folder.glob("*.xml"), None) is not None:
            pictures = next((path / name for name in _PICTURE_FOLDERS if (path / name).is_dir()), folder)
            lists = [file for file in sorted(path.glob("ImageSets/Main/*.txt")) if not _is_class_list(file)]
            if lists:
                return {canonical_split(file.stem): _Split(folder, pictures, file) for file in lists}
            return {"all": _Split(folder, pictures)}
    folders = sorted({file.parent for file in path.glob("*/*.xml")})
    if folders:
        return {canonical_split(folder.name): _Split(folder, folder) for folder in folders}
    if next(path.glob("*.xml"), None) is not None:
        return {"all": _Split(path, path)}
    return {}


def _is_class_list(file: Path) -> bool:
    """VOC's per-class lists (`cat_train.txt`) have a second column that says whether the class is present."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        return len(next(lines, "").split()) > 1


def _annotation_folders(layout: dict[str, _Split]) -> list[Path]:
    return list(dict.fromkeys(split.annotations for split in layout.values()))


def _files_of(split: _Split) -> list[Path]:
    if split.names is None:
        return sorted(split.annotations.glob("*.xml"))
    names = read_text(split.names).split()
    return [split.annotations / f"{name.removesuffix('.xml')}.xml" for name in dict.fromkeys(names)]


def _parse(file: Path) -> ElementTree.Element:
    text = read_text(file)
    try:
        # Encoded again, because the parser refuses text that declares an encoding of its own.
        return ElementTree.fromstring(text.encode(), ElementTree.XMLParser(encoding="utf-8"))
    except ElementTree.ParseError as error:
        line, column = error.position
        raise InputError(f"{file}:{line}: broken XML (column {column + 1}); export the annotation again") from None


def _number_names(trees: dict[Path, ElementTree.Element]) -> dict[str, int]:
    names = set()
    for file, tree in trees.items():
        for number, item in enumerate(tree.iter("object"), start=1):
            name = (item.findtext("name") or "").strip()
            if not name:
                raise InputError(f"{file}: object {number} has no <name>; write its class or delete it")
            names.add(name)
    if not names:
        folder = next(iter(trees)).parent
        raise InputError(f"{folder}: no annotation file has an <object>; export the annotations again")
    return {name: number for number, name in enumerate(sorted(names), start=1)}


def _read_picture(
    file: Path,
    tree: ElementTree.Element,
    number: int,
    by_stem: dict[str, Path],
    folder: Path,
    category_ids: dict[str, int],
) -> AnnotatedPicture:
    filename = (tree.findtext("filename") or "").strip()
    path = by_stem.get(file.stem) or by_stem.get(Path(filename).stem)
    if path is None:
        raise InputError(f"{file}: names an unknown picture ({filename or file.stem}): put it into {folder}")
    width, height = _size(tree, file) or picture_size(path)
    picture = AnnotatedPicture(path, number, width, height, file)
    for position, item in enumerate(tree.iter("object"), start=1):
        where = f"object {position}"
        corners = item.find("bndbox")
        written = [
            corners.findtext(key) or "" if corners is not None else "" for key in ("xmin", "ymin", "xmax", "ymax")
        ]
        x1, y1, x2, y2 = finite(written, f"{file}: <bndbox> of {where}")
        category_id = category_ids[(item.findtext("name") or "").strip()]
        picture.boxes.append(AnnotatedBox(category_id, (x1, y1, x2 - x1, y2 - y1), where))
    return picture


def _size(tree: ElementTree.Element, file: Path) -> tuple[int, int] | None:
    """Width and height as written; None where they are absent or 0, as some tools leave them."""
    written = [tree.findtext(f"size/{key}") or "0" for key in ("width", "height")]
    width, height = finite(written, f"{file}: <size>")
    return (int(width), int(height)) if width >= 1 and height >= 1 else None
