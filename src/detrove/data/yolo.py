"""YOLO text: one `.txt` per picture, a line per object, and a `data.yaml` that names splits and classes.

A line is `class cx cy width height`, fractions of the upright picture, or `class x1 y1 x2 y2 x3 y3 …`, an outline whose
extent is the box. `images/…/a.jpg` has its labels in `labels/…/a.txt`, or beside it; a picture without a label file is
background. Category ids are the class numbers, from 0. Sizes come from the pictures' headers.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import yaml

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

DESCRIPTION = "YOLO text (data.yaml with names and splits, images/SPLIT/, labels/SPLIT/)"

_SPLIT_KEYS = ("train", "val", "valid", "validation", "test")


def find_splits(path: Path) -> tuple[str, ...]:
    """The names of the splits that `data.yaml` lists; empty where there is no such file."""
    file = _description_file(path)
    if file is None:
        return ()
    return tuple(dict.fromkeys(canonical_split(key) for key, value in _load(file).items() if _is_split(key, value)))


def read(path: Path, split: str) -> Annotations:
    """One split, boxes as written, in pixels; `InputError` names what is wrong with which file and line."""
    file = _description_file(path)
    if file is None:
        raise InputError(f"{path}: no data.yaml; write one with 'train', 'val' and 'names'")
    content = _load(file)
    names = _class_names(file, content)
    wanted = choose_split(find_splits(path), split, path)
    sources = next(value for key, value in content.items() if _is_split(key, value) and canonical_split(key) == wanted)
    paths = _picture_paths(file, content, sources if isinstance(sources, list) else [sources])
    if not paths:
        raise InputError(f"{file}: no pictures in its split {wanted} ({sources}); put them there or correct the path")
    pictures = [_read_picture(picture, number, names) for number, picture in enumerate(paths, start=1)]
    return Annotations(pictures, names, _labels_without_picture(paths))


def _description_file(path: Path) -> Path | None:
    """`data.yaml`, or the only YAML file of the folder that names classes and splits."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    for name in ("data.yaml", "data.yml"):
        if (path / name).is_file():
            return path / name
    candidates = [file for pattern in ("*.yaml", "*.yml") for file in sorted(path.glob(pattern)) if _may_describe(file)]
    return candidates[0] if len(candidates) == 1 else None


def _may_describe(file: Path) -> bool:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.startswith("names") for line in lines) and any(line.startswith(_SPLIT_KEYS) for line in lines)


def _is_split(key: str, value: Any) -> bool:
    return key in _SPLIT_KEYS and bool(value)


def _load(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{file}:{line}: broken YAML ({error.problem}); correct the line") from None
    if not isinstance(content, dict) or "names" not in content:
        raise InputError(f"{file}: has no 'names'; list the class names there, in the order of their numbers")
    return content


def _class_names(file: Path, content: dict[str, Any]) -> dict[int, str]:
    names = content["names"]
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        return {int(number): str(name) for number, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise InputError(f"{file}: 'names' must be a list of names or number: name, got {names}") from None


def _picture_paths(file: Path, content: dict[str, Any], sources: list[Any]) -> list[Path]:
    """The pictures of a split: each source is a folder, or a text file with a picture's path per line."""
    base = file.parent / str(content.get("path") or ".")
    paths: list[Path] = []
    for source in map(str, sources):
        # Exports often write ../train/images and mean the folder beside data.yaml; `path` often names another machine.
        inside = PurePosixPath(*[part for part in PurePosixPath(source).parts if part not in ("..", "/")])
        candidates = (base / source, file.parent / source, file.parent / inside)
        found = next((candidate for candidate in candidates if candidate.exists()), None)
        if found is None:
            raise InputError(f"{file}: its {source!r} is not found; correct the path, it is relative to the file")
        if found.is_dir():
            paths += list_pictures(found, recursive=True)
        else:
            listed = read_text(found).split("\n")
            paths += [found.parent / line.strip() for line in listed if line.strip()]
    return list(dict.fromkeys(paths))


def _label_file(picture: Path) -> Path:
    parts = list(picture.parts)
    if "images" in parts:
        position = len(parts) - 1 - parts[::-1].index("images")
        mirrored = Path(*parts[:position], "labels", *parts[position + 1 :]).with_suffix(".txt")
        if mirrored.parent.is_dir():
            return mirrored
    return picture.with_suffix(".txt")


def _labels_without_picture(paths: list[Path]) -> list[str]:
    known = {_label_file(path) for path in paths}
    folders = {label.parent for label in known} - {path.parent for path in paths}
    strays = sorted(
        file for folder in folders if folder.is_dir() for file in folder.glob("*.txt") if file.name != "classes.txt"
    )
    strays = [file for file in strays if file not in known]
    if not strays:
        return []
    return [f"{len(strays)} label files without a picture were ignored (first: {strays[0]})"]


def _read_picture(path: Path, number: int, names: dict[int, str]) -> AnnotatedPicture:
    width, height = picture_size(path)
    label_file = _label_file(path)
    picture = AnnotatedPicture(path, number, width, height, label_file)
    if label_file.is_file():
        for line_number, line in enumerate(label_file.read_text(encoding="utf-8-sig").splitlines(), start=1):
            if line.strip():
                picture.boxes.append(_read_line(line, f"{label_file}:{line_number}", line_number, picture, names))
    return picture


def _read_line(
    line: str, place: str, line_number: int, picture: AnnotatedPicture, names: dict[int, str]
) -> AnnotatedBox:
    values = finite(line.split(), place)
    category, numbers = values[0], values[1:]
    if category not in names:
        raise InputError(f"{place}: class {line.split()[0]} has no name in data.yaml (it names 0..{max(names)})")
    if len(numbers) == 4:
        cx, cy, w, h = numbers
        left, top = cx - w / 2, cy - h / 2
    elif len(numbers) >= 6 and len(numbers) % 2 == 0:
        left, top = min(numbers[::2]), min(numbers[1::2])
        w, h = max(numbers[::2]) - left, max(numbers[1::2]) - top
    else:
        raise InputError(f"{place}: expected 'class cx cy width height', got {len(values)} values; correct the line")
    xywh = (left * picture.width, top * picture.height, w * picture.width, h * picture.height)
    return AnnotatedBox(int(category), xywh, f"line {line_number}")
