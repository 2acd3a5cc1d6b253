"""CSV of boxes: a line per box, a header that says which column is what; separated by commas, semicolons or tabs.

Found: `train/_annotations.csv` among its pictures, `train.csv` (also `train_labels.csv`), or any one CSV file whose
header names a picture, a class and the four numbers of a box; a column `split` (or `set`, `subset`) divides a file.

Corners (`xmin,ymin,xmax,ymax`, `x1,…`) or corner and size (`x,y,w,h`) in pixels; beside corners, `width` and `height`
are the picture's size, which is otherwise read from the picture's header. A line whose four numbers are empty names a
picture without boxes. Category ids are 1..K in the order of the names over the whole data set.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from detrove.data.annotations import Annotations, AnnotationsBuilder
from detrove.data.faults import AnnotationError, Fault, Faults
from detrove.data.files import (
    LARGEST_SIDE,
    PictureFinder,
    canonical_split,
    choose_split,
    finite,
    not_finite,
    picture_size,
    read_text,
    same_split,
    split_names,
    visible,
)

PICTURE_COLUMNS = ("filename", "file_name", "path", "image", "image_path", "image_name", "img", "file")
CLASS_COLUMNS = ("class", "label", "name", "class_name", "label_name", "category")
CORNER_COLUMNS = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
)
SIZE_COLUMNS = (
    ("x", "y", "w", "h"),
    ("x", "y", "width", "height"),
    ("xmin", "ymin", "width", "height"),
    ("left", "top", "width", "height"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
)
SPLIT_COLUMNS = ("split", "set", "subset")
PICTURE_SIZE_COLUMNS = (("image_width", "image_height"), ("img_width", "img_height"), ("width", "height"))

DESCRIPTION = "CSV of boxes (columns such as filename, class, xmin, ymin, xmax, ymax)"

_BESIDE_PICTURES = "_annotations.csv"
_PLACES = ("*.csv", "annotations/*.csv", "Annotations/*.csv", f"*/{_BESIDE_PICTURES}")
_PICTURE_FOLDERS = ("", "{split}", "images", "images/{split}", "{split}/images", "JPEGImages")


@dataclass(frozen=True)
class Columns:
    """Which column of a CSV file is what. `corners`: the box is two corners, not a corner and a size."""

    picture: int
    label: int
    box: tuple[int, int, int, int]
    corners: bool
    size: tuple[int, int] | None
    split: int | None


@dataclass(frozen=True)
class _Split:
    """Where a split is written: a file, and what its split column may say there (None: the whole file)."""

    file: Path
    values: frozenset[str] | None = None


@dataclass
class _Picture:
    """The lines of one picture: their number and cells."""

    name: str
    lines: list[tuple[int, list[str]]] = field(default_factory=list)


def find_splits(path: Path) -> tuple[str, ...]:
    """The names of the splits; empty where there is no CSV file with a header that is understood."""
    return tuple(_layout(path))


def why_not(path: Path) -> str | None:
    """What keeps the CSV files of a folder from being read: the headers found and those known; None without a file."""
    for file in _files(path):
        header = ", ".join(cell.strip() for cell in _header(file)[0])
        boxes = " or ".join(" ".join(names) for names in (CORNER_COLUMNS[0], CORNER_COLUMNS[2], SIZE_COLUMNS[0]))
        return (
            f"{file}: its header is {header[:200]!r}; known are, for the picture: {', '.join(PICTURE_COLUMNS)}; "
            f"for the class: {', '.join(CLASS_COLUMNS)}; for the box: {boxes}; rename its columns"
        )
    return None


def read(path: Path, split: str, faults: Faults) -> Annotations:
    """One split, boxes as written; `faults` hears of what is wrong with which line."""
    layout = _layout(path)
    wanted = choose_split(layout, split, path)
    chosen = layout[wanted]
    category_ids = _number_names(layout, chosen.file)
    columns, pictures = _pictures_of(chosen, faults)
    find = _finder(chosen.file, wanted)
    builder = AnnotationsBuilder("line")
    for picture in pictures:
        try:
            path = Path(find(picture.name) or chosen.file.parent / picture.name)
            _add_picture(builder, picture, columns, chosen.file, path, category_ids, faults)
        except AnnotationError as error:
            first, _ = picture.lines[0]
            num_boxes = sum(any(_box_cells(cells, columns)) for _, cells in picture.lines)
            faults.add(replace(error.fault, num_boxes=num_boxes, entry=f"line {first}"))
    return builder.finish({id: name for name, id in category_ids.items()})


def understand(header: list[str]) -> Columns | None:
    """Which column is what, by the names in the header; None where picture, class or box is missing.

    >>> understand(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]).size
    (1, 2)
    """
    place = {name.strip().lower(): number for number, name in reversed(list(enumerate(header)))}
    picture = next((place[name] for name in PICTURE_COLUMNS if name in place), None)
    label = next((place[name] for name in CLASS_COLUMNS if name in place), None)
    box = next((names for names in (*CORNER_COLUMNS, *SIZE_COLUMNS) if all(name in place for name in names)), None)
    if picture is None or label is None or box is None:
        return None
    size = next(
        ((place[w], place[h]) for w, h in PICTURE_SIZE_COLUMNS if w in place and h in place and w not in box), None
    )
    split = next((place[name] for name in SPLIT_COLUMNS if name in place), None)
    a, b, c, d = (place[name] for name in box)
    return Columns(picture, label, (a, b, c, d), box in CORNER_COLUMNS, size, split)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix.lower() == ".csv" else []
    return [file for place in _PLACES for file in sorted(visible(path, place))]


def _header(file: Path) -> tuple[list[str], str]:
    """The cells of the first line, and what separates them: whichever of the three does so most often."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            line = lines.readline(100_000)
    except OSError:
        line = ""
    delimiter = max(",;\t", key=line.count)
    return next(_reader(line, delimiter), []), delimiter


def _reader(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text.replace("\0", ""), newline=""), delimiter=delimiter)


def _layout(path: Path) -> dict[str, _Split]:
    files = {file: columns for file in _files(path) if (columns := understand(_header(file)[0]))}
    if len(files) == 1:
        [(file, columns)] = files.items()
        if columns.split is not None:
            written = {_cell(cells, columns.split) for _, cells in _rows(file, Faults(strict=False))}
            same: dict[str, set[str]] = {}
            for value in sorted(written):
                same.setdefault(same_split(value or "all"), set()).add(value)
            names = split_names(list(same))
            return {name: _Split(file, frozenset(values)) for name, values in zip(names, same.values(), strict=True)}
    named = {file: _split_in_name(file, path) for file in files}
    beside = [file for file in files if file.name == _BESIDE_PICTURES and named[file] != "all"]
    named |= dict(zip(beside, split_names([file.parent.name for file in beside]), strict=True))
    return {name if list(named.values()).count(name) == 1 else file.stem: _Split(file) for file, name in named.items()}


def _split_in_name(file: Path, path: Path) -> str:
    if file.name == _BESIDE_PICTURES:
        return file.parent.name if file.parent != path and path.is_dir() else "all"
    name = canonical_split(file.stem.lower().removesuffix("labels").removesuffix("annotations").rstrip("_-"))
    return name if name in ("train", "val", "test") else "all"


def _rows(file: Path, faults: Faults) -> Iterator[tuple[int, list[str]]]:
    """The lines behind the header that are not blank, with their numbers."""
    lines = _reader(read_text(file), _header(file)[1])
    next(lines, None)
    while True:
        try:
            cells = next(lines, None)
        except csv.Error as error:  # a cell of more than 128 KiB: an open quotation mark
            faults.add(Fault("broken file", file, f"broken CSV ({error})", "close its quotes", lines.line_num))
            return
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield lines.line_num, cells


def _cell(cells: list[str], column: int) -> str:
    return cells[column].strip() if column < len(cells) else ""


def _box_cells(cells: list[str], columns: Columns) -> list[str]:
    return [_cell(cells, column) for column in columns.box]


def _columns_of(file: Path) -> Columns:
    columns = understand(_header(file)[0])
    assert columns, "only files that are understood are split"
    return columns


def _number_names(layout: Mapping[str, _Split], own_file: Path) -> dict[str, int]:
    """Class name -> category id, over all files of the data set."""
    names = set()
    for file in dict.fromkeys(split.file for split in layout.values()):
        columns = _columns_of(file)
        # Faults of the lines themselves are reported where the lines are read.
        names |= {_cell(cells, columns.label) for _, cells in _rows(file, Faults(strict=False))}
    names.discard("")
    if not names:
        raise AnnotationError(Fault("bad category", own_file, "names no class", "export the annotations again"))
    return {name: number for number, name in enumerate(sorted(names), start=1)}


def _pictures_of(split: _Split, faults: Faults) -> tuple[Columns, list[_Picture]]:
    columns = _columns_of(split.file)
    pictures: dict[str, _Picture] = {}
    for number, cells in _rows(split.file, faults):
        if split.values is not None and columns.split is not None and _cell(cells, columns.split) not in split.values:
            continue
        name = _cell(cells, columns.picture)
        if name:
            pictures.setdefault(name, _Picture(name)).lines.append((number, cells))
        else:
            fault = partial(Fault, "unknown picture", split.file, line=number, entry=f"line {number}")
            num_boxes = int(any(_box_cells(cells, columns)))
            faults.add(fault("names no picture", "write its file name or delete the line", num_boxes=num_boxes))
    if not pictures:
        raise AnnotationError(Fault("no pictures", split.file, "lists no pictures", "export the annotations again"))
    return columns, list(pictures.values())


def _finder(file: Path, split: str) -> PictureFinder:
    roots = (file.parent, file.parent.parent)
    return PictureFinder(root / inner.format(split=split) for root in roots for inner in _PICTURE_FOLDERS)


def _add_picture(
    builder: AnnotationsBuilder,
    picture: _Picture,
    columns: Columns,
    file: Path,
    path: Path,
    category_ids: Mapping[str, int],
    faults: Faults,
) -> None:
    try:
        width, height = _written_size(picture, columns) or picture_size(path)
    except AnnotationError as error:
        if error.fault.kind != "missing picture":
            raise
        message = f"no such picture, named by {file}, line {picture.lines[0][0]}"
        raise AnnotationError(Fault("missing picture", path, message, "add it or drop its lines")) from None
    index = builder.add_picture(path, len(builder) + 1, width, height, file)
    for number, cells in picture.lines:
        written, label = _box_cells(cells, columns), _cell(cells, columns.label)
        if not any(written):
            continue
        fault = partial(Fault, file=file, line=number, entry=f"line {number}", num_boxes=1)
        box = finite(written)
        if box is None:
            faults.add(fault("bad box", message=not_finite(written), remedy="correct or delete the line"))
        elif not label:
            faults.add(fault("unknown category", message="names no class", remedy="write it or delete the line"))
        else:
            a, b, c, d = box
            builder.add_box(
                index, category_ids[label], (a, b, c - a, d - b) if columns.corners else box, number, number
            )


def _written_size(picture: _Picture, columns: Columns) -> tuple[int, int] | None:
    """Width and height as the first line has them; None where there are none."""
    if columns.size is None:
        return None
    size = finite(_cell(picture.lines[0][1], column) for column in columns.size)
    if size is None or not all(1 <= side <= LARGEST_SIDE for side in size):
        return None
    return int(size[0]), int(size[1])
