"""YOLO text: one `.txt` per picture, a line per object, and a `data.yaml` that names splits and classes.

A line is `class cx cy width height`, fractions of the upright picture, or `class x1 y1 x2 y2 x3 y3 …`, an outline whose
extent is the box; where `data.yaml` has `kpt_shape`, keypoints stand behind the box and are left out. `images/…/a.jpg`
has its labels in `labels/…/a.txt`, or beside it; a picture without a label file is background. Category ids are the
class numbers, from 0. Sizes come from the pictures' headers.

In `data.yaml`, `names` is a list or number: name; a split is a folder, a text file with a picture a line, or several of
these. Paths that another machine wrote are followed by their last parts. Without `data.yaml`, the names are the lines
of `classes.txt`, and the splits are the folders: `images/SPLIT`, `SPLIT/images`, or one folder of pictures and labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from detrove.data.annotations import Annotations, AnnotationsBuilder
from detrove.data.faults import AnnotationError, Fault, Faults
from detrove.data.files import (
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
from detrove.errors import InputError

DESCRIPTION = "YOLO text (data.yaml with names and splits, images/SPLIT/, labels/SPLIT/)"

_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_LARGEST_NUMBER = 10**6
_SPLIT_NAMES = ("train", "val", "test", "all")


@dataclass
class _Description:
    """What names the classes and the splits: `file`, and the folder `base` that its paths start from.

    `keypoint_values` follow each box in labels of poses; None: the labels are boxes or outlines.
    """

    file: Path
    base: Path
    names: Any
    sources: dict[str, list[str]]
    keypoint_values: int | None = None


def is_split_name(key: str) -> bool:
    """Whether a key of `data.yaml` names a split: train, val, test, all, or what begins so (valid, trainval)."""
    return key.startswith(_SPLIT_NAMES)


def find_splits(path: Path) -> tuple[str, ...]:
    """The names of the splits; empty where nothing names the classes, or there are no pictures."""
    description = _describe(path)
    return tuple(description.sources) if description else ()


def read(path: Path, split: str, faults: Faults) -> Annotations:
    """One split, boxes as written, in pixels; `faults` hears of what is wrong with which file and line."""
    description = _describe(path)
    if description is None:
        raise InputError(f"{path}: no data.yaml; write one with 'train', 'val' and 'names'")
    names = _class_names(description)
    wanted = choose_split(description.sources, split, path)
    sources = description.sources[wanted]
    paths = _picture_paths(description, sources, faults)
    if not paths:
        message = f"no pictures in its split {wanted} ({', '.join(sources)})"
        raise AnnotationError(Fault("no pictures", description.file, message, "put them there or correct the path"))
    builder = AnnotationsBuilder("line")
    for picture in paths:
        _add_picture(builder, picture, names, description, faults)
    return builder.finish(names, _labels_without_picture(paths))


def _describe(path: Path) -> _Description | None:
    file = _description_file(path)
    if file is None:
        return _describe_by_folders(path) if path.is_dir() else None
    content = _load(file)
    written = {str(key): value for key, value in content.items() if is_split_name(str(key)) and value}
    sources = {
        name: [str(each) for each in (value if type(value) is list else [value])]
        for name, value in zip(split_names(list(written)), written.values(), strict=True)
    }
    if not sources:
        sources = _folders_of_splits(file.parent)
    base = file.parent / str(content.get("path") or ".")
    return _Description(file, base, content["names"], sources, _keypoint_values(content))


def _keypoint_values(content: Mapping[str, Any]) -> int | None:
    """How many numbers of keypoints follow a box, where the labels are those of poses; None where they are not."""
    shape = content.get("kpt_shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(number) is int for number in shape):
        return None
    return shape[0] * shape[1]


def _describe_by_folders(path: Path) -> _Description | None:
    """Splits by their folders and names by `classes.txt`, where there are both, and labels."""
    places = (path, path / "labels", *sorted(visible(path, "labels/*")), *sorted(visible(path, "*/")))
    file = next((place / name for place in places for name in _CLASS_FILES if (place / name).is_file()), None)
    sources = _folders_of_splits(path) if file else {}
    if file is None or not sources:
        return None
    return _Description(file, path, lines_of(read_text(file)), sources)


def _folders_of_splits(path: Path) -> dict[str, list[str]]:
    """Split -> its folder of pictures, in the layouts that tools write; only where labels are in reach of it."""
    for pattern, place in (("images/*/", 0), ("*/images/", 1), ("images/", None), ("*/", 0), ("", None)):
        folders = sorted(visible(path, pattern)) if pattern else [path]
        labelled = [folder for folder in folders if _has_labels(folder)]
        if labelled and place is None:
            return {"all": [str(labelled[0].relative_to(path))]}
        if labelled:
            names = split_names([folder.name if place == 0 else folder.parent.name for folder in labelled])
            return {name: [str(folder.relative_to(path))] for name, folder in zip(names, labelled, strict=True)}
    return {}


def _has_labels(folder: Path) -> bool:
    """Whether one of the folder's pictures has a label file."""
    return any(_label_file(picture).is_file() for picture in list_pictures(folder))


def _description_file(path: Path) -> Path | None:
    """`data.yaml`, or the only YAML file of the folder that names classes and splits."""
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    for name in ("data.yaml", "data.yml"):
        if (path / name).is_file():
            return path / name
    described = sorted(file for pattern in ("*.yaml", "*.yml") for file in visible(path, pattern))
    candidates = [file for file in described if _may_describe(file)]
    return candidates[0] if len(candidates) == 1 else None


def _may_describe(file: Path) -> bool:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.startswith("names") for line in lines) and any(line.startswith(_SPLIT_NAMES) for line in lines)


def _load(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(file))
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "no YAML"
        line = mark.line + 1 if mark else 1
        fault = Fault("broken file", file, f"broken YAML ({problem})", "correct the line", line)
        raise AnnotationError(fault) from None
    except (ValueError, TypeError, RecursionError) as error:  # a date that is none, a list as a key
        raise AnnotationError(Fault("broken file", file, f"broken YAML ({error})", "correct it")) from None
    if not isinstance(content, dict) or "names" not in content:
        remedy = "list the class names there, in the order of their numbers"
        raise AnnotationError(Fault("bad category", file, "has no 'names'", remedy))
    return content


def _class_names(description: _Description) -> dict[int, str]:
    names = description.names
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        numbered = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        numbered = {}
    if not numbered or min(numbered) < 0 or max(numbered) > _LARGEST_NUMBER:
        message = f"'names' must be a list of names or number: name, got {str(names)[:200]}"
        raise AnnotationError(Fault("bad category", description.file, message, "write the names of the classes"))
    return numbered


def _picture_paths(description: _Description, sources: list[str], faults: Faults) -> list[Path]:
    """The pictures of a split: each source is a folder, or a text file with a picture's path per line."""
    file, base = description.file, description.base
    paths: list[Path] = []
    for source in sources:
        found = _locate(source, (base, file.parent))
        if found is None:
            message = f"its {source!r} is not found"
            faults.add(Fault("missing file", file, message, "correct the path, it is relative to the file"))
        elif found.is_dir():
            paths += list_pictures(found, recursive=True)
        else:
            lines = [line.strip() for line in read_text(found).split("\n")]
            roots = (found.parent, base, file.parent)
            paths += [_locate(line, roots) or found.parent / line for line in lines if line]
    return list(dict.fromkeys(paths))


def _locate(written: str, roots: tuple[Path, ...]) -> Path | None:
    """The file or folder that a path means: from one of the roots, or by its last parts alone.

    Exports write ../train/images and mean the folder beside data.yaml; many keep the paths of another machine.
    """
    inside = [part for part in PurePosixPath(written.replace("\\", "/")).parts if part not in ("..", "/")]
    tails = (Path(*inside[first:]) for first in range(len(inside)))
    return next((root / tail for tail in (written, *tails) for root in roots if _exists(root / tail)), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long, or with a character that no file name may have
        return False


def mirrored_label_file(picture: Path) -> Path | None:
    """The label file in the folder `labels` that mirrors the picture's `images`; None where it is in none."""
    parts = list(picture.parts)
    if "images" not in parts:
        return None
    position = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:position], "labels", *parts[position + 1 :]).with_suffix(".txt")


def _label_file(picture: Path) -> Path:
    mirrored, beside = mirrored_label_file(picture), picture.with_suffix(".txt")
    return mirrored if mirrored and (mirrored.parent.is_dir() or not beside.is_file()) else beside


def _labels_without_picture(paths: list[Path]) -> list[str]:
    known = {_label_file(path) for path in paths}
    folders = {label.parent for label in known} - {path.parent for path in paths}
    strays = sorted(
        file
        for folder in folders
        if folder.is_dir()
        for file in visible(folder, "*.txt")
        if file.name not in _CLASS_FILES
    )
    strays = [file for file in strays if file not in known]
    if not strays:
        return []
    return [f"{len(strays)} label files without a picture were ignored (first: {strays[0]})"]


def _add_picture(
    builder: AnnotationsBuilder, path: Path, names: dict[int, str], description: _Description, faults: Faults
) -> None:
    label_file = _label_file(path)
    lines: list[tuple[int, str]] = []
    try:
        lines = _numbered_lines(label_file)
        width, height = picture_size(path)
    except AnnotationError as error:
        faults.add(replace(error.fault, num_boxes=len(lines)))
        return
    picture = builder.add_picture(path, len(builder) + 1, width, height, label_file)
    for number, line in lines:
        try:
            category, (left, top, w, h) = _read_line(line, number, label_file, names, description)
        except AnnotationError as error:
            faults.add(error.fault)
        else:
            xywh = (left * width, top * height, w * width, h * height)
            builder.add_box(picture, category, xywh, number, number)


def _numbered_lines(file: Path) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers; none where there is no file: the picture is background."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot be read as text ({error})"
        raise AnnotationError(Fault("broken file", file, message, "export the annotations again")) from None
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _read_line(
    line: str, number: int, file: Path, names: dict[int, str], description: _Description
) -> tuple[int, tuple[float, ...]]:
    """The class number and left, top, width, height as fractions of the picture."""
    fault = partial(Fault, file=file, line=number, entry=f"line {number}", num_boxes=1)
    values = finite(line.split())
    if values is None:
        raise AnnotationError(fault("bad box", message=not_finite(line.split()), remedy="correct or delete it"))
    category, numbers = values[0], values[1:]
    if category not in names:
        message = f"class {line.split()[0]} has no name in {description.file.name} (it names 0..{max(names)})"
        raise AnnotationError(fault("unknown category", message=message, remedy="add its name or correct the line"))
    behind, expected = description.keypoint_values, "'class cx cy width height'"
    if len(numbers) == 4 or (behind is not None and len(numbers) == 4 + behind):
        cx, cy, w, h = numbers[:4]
        return int(category), (cx - w / 2, cy - h / 2, w, h)
    if behind is None and len(numbers) >= 6 and len(numbers) % 2 == 0:
        left, top = min(numbers[::2]), min(numbers[1::2])
        return int(category), (left, top, max(numbers[::2]) - left, max(numbers[1::2]) - top)
    expected += f" and {behind} numbers of keypoints (kpt_shape)" if behind else ""
    message = f"expected {expected}, got {len(values)} values"
    raise AnnotationError(fault("bad box", message=message, remedy="correct the line"))
