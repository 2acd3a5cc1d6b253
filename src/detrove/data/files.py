"""What the readers share: names of splits, the text of annotation files, folders of pictures, sizes from headers."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from detrove.data.faults import AnnotationError, Fault
from detrove.errors import InputError, nearest
from detrove.pictures import PICTURE_SUFFIXES, SIDEWAYS, TOO_LARGE, orientation_of

LARGEST_SIDE = 10**7
"""No picture is wider or higher, in pixels: a size beyond it is a slip of the pen."""

_SYNONYMS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
_USUAL_ORDER = ("train", "val", "test")


def canonical_split(name: str) -> str:
    """One name for what people call a split: valid and validation are val; a year at the end is dropped.

    >>> canonical_split("train2017"), canonical_split("valid"), canonical_split("trainval")
    ('train', 'val', 'trainval')
    """
    name = name.lower().rstrip("0123456789").rstrip("_-") or name.lower()
    return _SYNONYMS.get(name, name)


def split_names(written: Sequence[str]) -> list[str]:
    """What splits are called that people wrote so: the usual name where only one has it, otherwise as it is written.

    None is lost so: two years, or days, of one name are splits of their own, and neither is *the* training split.

    >>> split_names(["train2017", "valid"]), split_names(["day1", "day2", "val"])
    (['train', 'val'], ['day1', 'day2', 'val'])
    """
    usual = [canonical_split(name) for name in written]
    names = [short if usual.count(short) == 1 else name for name, short in zip(written, usual, strict=True)]
    return names if len(set(names)) == len(set(written)) else list(written)


def same_split(name: str) -> str:
    """What is the same for all the ways to write one split in a column: lower case, val for valid and validation."""
    name = name.strip().lower()
    return _SYNONYMS.get(name, name)


def in_usual_order(splits: Iterable[str]) -> tuple[str, ...]:
    """Split names with train, val, test first, then the others by name."""
    return tuple(
        sorted(splits, key=lambda name: (_USUAL_ORDER.index(name) if name in _USUAL_ORDER else len(_USUAL_ORDER), name))
    )


def choose_split(splits: Iterable[str], split: str, path: Path) -> str:
    """The split's canonical name; an `InputError` that lists the splits where there is none of this name."""
    names = in_usual_order(splits)
    for candidate in (split, canonical_split(split)):
        if candidate in names:
            return candidate
    raise InputError(f"{path}: no split {split!r}: {nearest(split, names)}")


def list_pictures(folder: Path, recursive: bool = False) -> list[Path]:
    """The picture files of a folder, by suffix, sorted; hidden files are left out."""
    found = visible(folder, "**/*" if recursive else "*")
    return sorted(path for path in found if path.suffix.lower() in PICTURE_SUFFIXES)


def visible(folder: Path, pattern: str) -> Iterator[Path]:
    """What a pattern finds in a folder, without hidden files and folders: `._a.jpg` of macOS, `.idea/a.xml`."""
    above = len(folder.parts)
    return (path for path in folder.glob(pattern) if not any(part[0] == "." for part in path.parts[above:]))


def relative_names(paths: Sequence[Path]) -> list[Path]:
    """What to call each picture in a written folder: its path below the deepest folder that holds them all.

    >>> [name.as_posix() for name in relative_names([Path("a/day/1.jpg"), Path("a/night/1.jpg")])]
    ['day/1.jpg', 'night/1.jpg']
    >>> relative_names([Path("a/1.jpg")])[0].as_posix()
    '1.jpg'
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]  # `..` resolved, links not: a name stays below
    common = Path(os.path.commonpath([path.parent for path in absolute])) if absolute else Path()
    return [path.relative_to(common) for path in absolute]


def read_text(path: Path) -> str:
    """The text of an annotation file; an `AnnotationError` where it is missing, empty, or no text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise AnnotationError(Fault("missing file", path, "no such annotation file")) from None
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot be read as text ({error})"
        raise AnnotationError(Fault("broken file", path, message, "export the annotations again")) from None
    if not text.strip():
        message = "the annotation file is empty"
        raise AnnotationError(Fault("broken file", path, message, "export the annotations again"))
    return text


def lines_of(text: str) -> list[str]:
    """The lines of a list that are not blank, without the space around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of the upright picture, from the file's header alone: nothing is decoded.

    Raises `AnnotationError` where the file is missing or no picture.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            sideways = orientation_of(picture) in SIDEWAYS
    except FileNotFoundError:
        raise AnnotationError(Fault("missing picture", path, "no such picture")) from None
    except Image.DecompressionBombError:
        raise AnnotationError(Fault("unreadable picture", path, TOO_LARGE, "cut it into parts first")) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        message = f"not a picture that can be read ({error})"
        raise AnnotationError(Fault("unreadable picture", path, message, "remove it or save it again")) from None
    return (height, width) if sideways else (width, height)


def finite(values: Iterable[Any]) -> tuple[float, ...] | None:
    """The values as finite numbers; None where one is not.

    >>> finite(["1", "2.5"]), finite(["1", "inf"]), finite([1, None])
    ((1.0, 2.5), None, None)
    """
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError, OverflowError):
        return None
    return numbers if all(map(math.isfinite, numbers)) else None


def not_finite(values: Iterable[Any]) -> str:
    """What to say of values that `finite` refuses."""
    return f"expected finite numbers, got {', '.join(str(value) for value in values)}"


class PictureFinder:
    """Finds pictures in the folders where people put them; a path of another machine by its last parts."""

    def __init__(self, folders: Iterable[Path], listings: FolderListings | None = None) -> None:
        self._folders = list(dict.fromkeys(str(folder) for folder in folders))
        self._listings = listings or FolderListings()

    def __call__(self, name: str) -> str | None:
        """The path of the picture that is called so, None where there is none."""
        place = self.place(name)
        return None if place is None else in_place(name, *place)

    def place(self, name: str, most: int | None = None) -> tuple[str, int] | None:
        """The folder of that picture, and how many of the first parts of its name, `most` at most, are left out."""
        longest = len(_parts(name)) - 1
        parts = range(1 + (longest if most is None else min(most, longest)))
        places = ((folder, first) for first in parts for folder in self._folders)
        return next((place for place in places if in_place(name, *place) in self._listings), None)


def in_place(name: str, folder: str, first: int) -> str:
    """The path of a picture in a folder, without the `first` parts of its name."""
    return os.path.normpath(os.path.join(folder, *_parts(name)[first:]))


def is_absolute(name: str) -> bool:
    """Whether a name begins with a root, of this or of another system."""
    return name[:1] in ("/", "\\") or name[1:2] == ":"


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace("\\", "/")).parts


class FolderListings:
    """Whether files exist, asked of one listing per folder instead of once per file."""

    def __init__(self) -> None:
        self._names: dict[str, frozenset[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._names:
            try:
                self._names[folder] = frozenset(os.listdir(folder or "."))
            except (OSError, ValueError):
                self._names[folder] = frozenset()
        return name in self._names[folder]
