"""What the readers of the three formats hand on: pictures with the boxes that somebody wrote down for them.

A reader is a module (`coco`, `voc`, `yolo`) with three functions: `find_splits(path)` names the splits that it finds in
a folder (none where the folder is not of its format), `read(path, split)` gives one of them as `Annotations`, and
`DESCRIPTION` says what the format looks like. Cleaning is not their business: `dataset` does it once for all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from detrove.errors import InputError, nearest
from detrove.pictures import PICTURE_SUFFIXES

EXIF_ORIENTATION = 0x0112
SIDEWAYS = frozenset({5, 6, 7, 8})
"""The EXIF orientations that exchange width and height."""

_SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_USUAL_ORDER = ("train", "val", "test")


@dataclass(slots=True)
class AnnotatedBox:
    """One box as written: `xywh` in pixels (left, top, width, height); `where` says which entry of the file it is.

    `area` in pixels² where the file gives one (COCO: of the object's outline), else None.
    """

    category_id: int
    xywh: tuple[float, float, float, float]
    where: str
    is_crowd: bool = False
    area: float | None = None


@dataclass(slots=True)
class AnnotatedPicture:
    """A picture, its size in pixels, and its boxes as the annotation file `source` has them."""

    path: Path
    image_id: int | str
    width: int
    height: int
    source: Path
    boxes: list[AnnotatedBox] = field(default_factory=list)


@dataclass
class Annotations:
    """One split of a data set as its files have it; `categories` (id -> name) are those of the whole data set."""

    pictures: list[AnnotatedPicture]
    categories: dict[int, str]
    warnings: list[str] = field(default_factory=list)


def canonical_split(name: str) -> str:
    """One name for what people call a split: valid and validation are val; a year at the end is dropped.

    >>> canonical_split("train2017"), canonical_split("valid"), canonical_split("trainval")
    ('train', 'val', 'trainval')
    """
    name = name.lower().rstrip("0123456789").rstrip("_-") or name.lower()
    return _SYNONYMS.get(name, name)


def in_usual_order(splits: Iterable[str]) -> tuple[str, ...]:
    """Split names with train, val, test first, then the others by name."""
    return tuple(
        sorted(splits, key=lambda name: (_USUAL_ORDER.index(name) if name in _USUAL_ORDER else len(_USUAL_ORDER), name))
    )


def list_pictures(folder: Path, recursive: bool = False) -> list[Path]:
    """The picture files of a folder, by suffix, sorted; hidden files are left out."""
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in PICTURE_SUFFIXES and not p.name.startswith("."))


def read_text(path: Path) -> str:
    """The text of an annotation file; an `InputError` where it is missing, empty, or no text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such annotation file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); export the annotations again") from None
    if not text.strip():
        raise InputError(f"{path}: the annotation file is empty; export the annotations again")
    return text


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture, from the file's header alone: nothing is decoded."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            sideways = picture.getexif().get(EXIF_ORIENTATION) in SIDEWAYS
    except FileNotFoundError:
        raise InputError(f"{path}: no such picture") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not a picture that can be read ({error}); remove it or save it again") from None
    return (height, width) if sideways else (width, height)


def finite(values: Iterable[float | str], what: str) -> tuple[float, ...]:
    """The values as finite numbers; an `InputError` that begins with `what` where one is not."""
    values = tuple(values)
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = (math.nan,)
    if not all(math.isfinite(number) for number in numbers):
        shown = ", ".join(str(value) for value in values)
        raise InputError(f"{what}: expected finite numbers, got {shown}; correct or delete it")
    return numbers


def choose_split(splits: dict[str, Path] | Iterable[str], split: str, path: Path) -> str:
    """The split's canonical name; an `InputError` that lists the splits where there is none of this name."""
    names = in_usual_order(splits)
    for candidate in (split, canonical_split(split)):
        if candidate in names:
            return candidate
    raise InputError(f"{path}: no split {split!r}: {nearest(split, names)}")
