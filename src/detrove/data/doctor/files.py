"""What is wrong with picture files: one look at each, in a few threads, for all that needs the pixels.

Threads, because decoding leaves Python's lock: they begin at once, where processes would first import everything.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from detrove.data import similar
from detrove.data.annotations import Annotations
from detrove.data.doctor.findings import Finding, Place, make_finding
from detrove.pictures import SIDEWAYS, orientation_of

_AT_ONCE = 16
_MOST_THREADS = 8


@dataclass(frozen=True)
class Look:
    """What is seen of a picture file: its size in the file, before EXIF's orientation turns it; or why nothing is."""

    size: tuple[int, int] = (0, 0)
    orientation: int = 1
    trouble: str = ""
    error: str = ""

    @property
    def upright_size(self) -> tuple[int, int]:
        """Width and height as it is to be seen."""
        width, height = self.size
        return (height, width) if self.orientation in SIDEWAYS else (width, height)


@dataclass(frozen=True)
class Looks:
    """All pictures looked at, by path: what was seen, and their thumbnails (P, 32, 32) in the same order."""

    by_path: Mapping[str, Look]
    thumbs: np.ndarray


def look_at(paths: Sequence[str], progress: Callable[[int], None] | None = None) -> Looks:
    """Decode each picture once. `progress` hears how many are done."""
    groups = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    looks: list[Look] = []
    thumbs = [np.zeros((0, similar.SIDE, similar.SIDE), dtype=np.uint8)]
    with warnings.catch_warnings(), ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS)) as threads:
        warnings.simplefilter("ignore")  # of pictures that are large, or have odd metadata
        for group, small in threads.map(_look_at_some, groups):
            looks += group
            thumbs.append(small)
            if progress:
                progress(len(looks))
    return Looks(dict(zip(paths, looks, strict=True)), np.concatenate(thumbs))


def _look_at_some(paths: Sequence[str]) -> tuple[list[Look], np.ndarray]:
    looks = [_look(path) for path in paths]
    return looks, similar.thumbnails(paths)


def _look(path: str) -> Look:
    try:
        with Image.open(path) as picture:
            size = picture.size
            try:
                orientation = orientation_of(picture)
                picture.load()
            except Exception as error:  # a damaged file may raise anything in a decoder
                return Look(size, 1, "truncated picture", _reason(error))
            return Look(size, orientation)
    except Exception as error:  # likewise
        return Look(trouble="unreadable picture", error=_reason(error))


def _reason(error: Exception) -> str:
    return "not a picture" if "cannot identify image file" in str(error) else " ".join(str(error).split())


def examine_files(annotations: Annotations, split: str, format: str, looks: Looks) -> list[Finding]:
    """Pictures that cannot be decoded, and those whose size or orientation is not what their labels say."""
    found: dict[str, list[Place]] = {}
    for picture, path in enumerate(annotations.paths):
        look = looks.by_path.get(path)
        if look is None:
            continue
        kind, note = judge(look, tuple(annotations.sizes[picture].tolist()), format)
        if kind:
            found.setdefault(kind, []).append(_place(annotations, picture, split, format, look, note))
    return [make_finding(kind, places) for kind, places in found.items()]


def judge(look: Look, annotated: tuple[int, ...], format: str) -> tuple[str, str]:
    """The kind of finding, "" for none, and what to say, of a picture whose labels name this size.

    YOLO's labels name none: the size is the file's own, and says nothing of how they were drawn.
    """
    if look.trouble:
        return look.trouble, look.error
    upright, raw = look.upright_size, look.size
    says = f"is {_extent(upright)}, labelled as {_extent(annotated)}"
    if annotated not in (upright, raw):
        return "size mismatch", says
    if annotated != upright:
        return "rotated labels", f"{says} (EXIF orientation {look.orientation})"
    if look.orientation in range(2, 9) and (upright == raw or format == "yolo"):
        return "orientation note", f"has EXIF orientation {look.orientation}"
    return "", ""


def with_room(annotations: Annotations, looks: Looks) -> Annotations:
    """The annotations with pictures as large as file and label say together, where they differ.

    That they differ is a fault of its own; its boxes are not called outside for it.
    """
    sizes = annotations.sizes.copy()
    for picture, path in enumerate(annotations.paths):
        look = looks.by_path.get(path)
        if look and not look.trouble and tuple(sizes[picture].tolist()) != look.size:
            sizes[picture] = np.maximum(sizes[picture], look.upright_size)
    return replace(annotations, sizes=sizes)


def _extent(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _place(annotations: Annotations, picture: int, split: str, format: str, look: Look, note: str) -> Place:
    path, source = annotations.path(picture), annotations.source(picture)
    count = int(np.diff(annotations.starts)[picture])
    note = f"{note}; {count} boxes" if look.trouble else f"{path.name} {note}"
    if look.trouble:
        return Place(path, note, split, picture=path)
    return Place(source, note, split, _line(source, path.name, format), picture=path)


def _line(source: Path, name: str, format: str) -> int | None:
    """The line of an annotation file that tells of a picture; None where the file is a single line."""
    wanted = {"voc": "<size>", "coco": f'{name}"'}.get(format, name)
    lines = _lines(source)
    if len(lines) < 2:
        return None
    return next((number for number, line in enumerate(lines, start=1) if wanted in line), None)


@lru_cache(maxsize=2)
def _lines(file: Path) -> tuple[str, ...]:
    try:
        return tuple(file.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return ()


def unique_paths(splits: Iterable[Annotations]) -> list[str]:
    """The pictures of all splits, each once."""
    return list(dict.fromkeys(path for annotations in splits for path in annotations.paths))
