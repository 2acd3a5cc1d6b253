"""What the readers hand on: pictures with the boxes that somebody wrote down for them, as columns of numbers.

A reader is a module (`coco`, `voc`, `yolo`, `csv_boxes`) with three things: `find_splits(path)` names the splits that
it finds in a folder (none where the folder is not of its format), `read(path, split, faults)` gives one of them as
`Annotations` and reports to `faults` what cannot be read, and `DESCRIPTION` says what the format looks like. Cleaning
is not their business: `dataset` does it once for all.

Columns, because a set of 100,000 pictures has a million boxes: as Python objects they would fill gigabytes, and every
worker process would copy them by merely looking at them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import overload

import numpy as np

UNKNOWN_LINE = 0


class PackedTexts(Sequence[str]):
    """Texts in one block of memory: half a million names are two objects instead of half a million."""

    def __init__(self, texts: Iterable[str]) -> None:
        # Surrogates may stand in names that JSON spells \\ud800, and in file names that are no UTF-8.
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self._block = b"".join(encoded)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        return self._block[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")


@dataclass
class Annotations:
    """One split of a data set as its files have it: P pictures, N boxes; a picture's boxes stand together.

    `paths` and `sources` (P): the picture, and the file that annotates it; one source alone serves all. `image_ids`
    (P,) int64, or objects where they are no whole numbers; `sizes` (P, 2): width and height in pixels. `starts`
    (P + 1,): the boxes of picture p are `starts[p]:starts[p + 1]`.

    `xywh` (N, 4) float64 in pixels (left, top, width, height), `category_ids` (N,), `is_crowd` (N,) bool, `area` (N,)
    in pixels² where the file gives one (COCO: of the object's outline), else NaN. `entries` (N,) and `lines` (N,) say
    where the box is written: the number of its `entry_name` and the line, 0 where that is unknown.

    `categories` (id -> name) are those of the whole data set; `warnings` have a line each.
    """

    paths: PackedTexts
    sources: PackedTexts
    image_ids: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    xywh: np.ndarray
    category_ids: np.ndarray
    is_crowd: np.ndarray
    area: np.ndarray
    entries: np.ndarray
    lines: np.ndarray
    categories: dict[int, str]
    entry_name: str
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.paths)

    @property
    def num_boxes(self) -> int:
        """The number of boxes of all pictures."""
        return len(self.xywh)

    def path(self, picture: int) -> Path:
        """The file of a picture."""
        return Path(self.paths[picture])

    def source(self, picture: int) -> Path:
        """The file that annotates a picture."""
        return Path(self.sources[picture if len(self.sources) > 1 else 0])

    def image_id(self, picture: int) -> int | str:
        """The id of a picture, as a plain value."""
        return self.image_ids[picture : picture + 1].tolist()[0]

    def boxes_of(self, picture: int) -> slice:
        """Which boxes are those of a picture."""
        return slice(int(self.starts[picture]), int(self.starts[picture + 1]))

    def pictures_of_boxes(self) -> np.ndarray:
        """(N,) which picture each box is of."""
        return np.repeat(np.arange(len(self)), np.diff(self.starts))

    def picture_of(self, box: int) -> int:
        """Which picture a box is of."""
        return int(np.searchsorted(self.starts, box, side="right")) - 1

    def entry(self, box: int) -> str:
        """What the file calls a box: "annotation 50", "object 2", "line 7"."""
        return f"{self.entry_name} {self.entries[box]}"

    def line(self, box: int) -> int | None:
        """The line, from 1, on which a box is written, or None."""
        return int(self.lines[box]) or None

    def place(self, box: int) -> str:
        """Where a box is written, for a message."""
        return f"{self.source(self.picture_of(box))}, {self.entry(box)}"

    def take(self, pictures: Sequence[int] | np.ndarray) -> Annotations:
        """These pictures alone, in this order, with their boxes; without the warnings."""
        chosen = np.asarray(pictures, dtype=np.int64)
        counts = np.diff(self.starts)[chosen]
        starts = np.concatenate(([0], np.cumsum(counts)))
        boxes = np.repeat(self.starts[:-1][chosen] - starts[:-1], counts) + np.arange(starts[-1])
        return replace(
            self._boxes(boxes),
            paths=PackedTexts(self.paths[i] for i in chosen.tolist()),
            sources=PackedTexts(self.sources[i] for i in chosen.tolist()) if len(self.sources) > 1 else self.sources,
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            starts=starts,
            warnings=[],
        )

    def keep(self, boxes: np.ndarray) -> Annotations:
        """All pictures, with the boxes for which `boxes` (N,) bool is true."""
        kept_before = np.concatenate(([0], np.cumsum(boxes)))
        return replace(self._boxes(boxes), starts=kept_before[self.starts])

    def _boxes(self, chosen: np.ndarray) -> Annotations:
        columns = ("xywh", "category_ids", "is_crowd", "area", "entries", "lines")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})


def joined(parts: Sequence[Annotations]) -> Annotations:
    """The pictures of several splits of one data set, each picture once.

    Picture ids are kept where that leaves them unique, else numbered from 1.
    """
    builder = AnnotationsBuilder(parts[0].entry_name)
    seen: set[str] = set()
    unique_ids = {(part.image_id(i), part.paths[i]) for part in parts for i in range(len(part))}
    keep_ids = len({id for id, _ in unique_ids}) == len({path for _, path in unique_ids}) == len(unique_ids)
    for part in parts:
        for picture, path in enumerate(part.paths):
            if path in seen:
                continue
            seen.add(path)
            image_id = part.image_id(picture) if keep_ids else len(builder) + 1
            width, height = part.sizes[picture].tolist()
            index = builder.add_picture(path, image_id, width, height, part.source(picture))
            boxes = part.boxes_of(picture)
            builder.add_boxes(
                np.full(boxes.stop - boxes.start, index, dtype=np.int64),
                part.category_ids[boxes],
                part.xywh[boxes],
                part.entries[boxes].tolist(),
                part.lines[boxes],
                part.is_crowd[boxes],
                part.area[boxes],
            )
    return builder.finish(parts[0].categories)


class AnnotationsBuilder:
    """Collects pictures and boxes one at a time, in any order, and puts them into columns."""

    def __init__(self, entry_name: str) -> None:
        self._entry_name = entry_name
        self._paths: list[str] = []
        self._sources: list[str] = []
        self._image_ids: list[int | str] = []
        self._sizes = array("q")
        self._pictures, self._category_ids = array("q"), array("q")
        self._xywh, self._area = array("d"), array("d")
        self._is_crowd = bytearray()
        self._entries: list[int | str] = []
        self._lines = array("q")

    def __len__(self) -> int:
        """The number of pictures so far."""
        return len(self._paths)

    def add_picture(self, path: str | Path, image_id: int | str, width: int, height: int, source: str | Path) -> int:
        """A picture, its size in pixels, and the file that annotates it; gives its index."""
        self._paths.append(str(path))
        self._sources.append(str(source))
        self._image_ids.append(image_id)
        self._sizes.extend((width, height))
        return len(self._paths) - 1

    def add_box(
        self,
        picture: int,
        category_id: int,
        xywh: Iterable[float],
        entry: int | str,
        line: int | None = None,
        is_crowd: bool = False,
        area: float = float("nan"),
    ) -> None:
        """A box of the picture with this index, in pixels (see `Annotations` for the values)."""
        self._pictures.append(picture)
        self._category_ids.append(category_id)
        self._xywh.extend(xywh)
        self._entries.append(entry)
        self._lines.append(line or UNKNOWN_LINE)
        self._is_crowd.append(is_crowd)
        self._area.append(area)

    def add_boxes(
        self,
        pictures: np.ndarray,
        category_ids: np.ndarray,
        xywh: np.ndarray,
        entries: Sequence[int | str],
        lines: np.ndarray,
        is_crowd: np.ndarray,
        area: np.ndarray,
    ) -> None:
        """Many boxes at once, in columns as `Annotations` has them; 0 is an unknown line."""
        for column, values in (
            (self._pictures, pictures),
            (self._category_ids, category_ids),
            (self._xywh, xywh),
            (self._lines, lines),
            (self._area, area),
        ):
            column.frombytes(values.tobytes())
        self._is_crowd.extend(is_crowd.tobytes())
        self._entries.extend(entries)

    def finish(self, categories: dict[int, str], warnings: Sequence[str] = ()) -> Annotations:
        """Everything so far as `Annotations`, pictures in the order in which they were added."""
        pictures = np.array(self._pictures, dtype=np.int64)
        order = np.argsort(pictures, kind="stable")
        counts = np.bincount(pictures, minlength=len(self._paths))
        same_source = len(set(self._sources)) == 1
        return Annotations(
            paths=PackedTexts(self._paths),
            sources=PackedTexts(self._sources[:1] if same_source else self._sources),
            image_ids=_whole_numbers_or_objects(self._image_ids),
            sizes=np.array(self._sizes, dtype=np.int64).reshape(-1, 2),
            starts=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
            xywh=np.array(self._xywh, dtype=np.float64).reshape(-1, 4)[order],
            category_ids=np.array(self._category_ids, dtype=np.int64)[order],
            is_crowd=np.frombuffer(bytes(self._is_crowd), dtype=bool)[order],
            area=np.array(self._area, dtype=np.float64)[order],
            entries=_whole_numbers_or_objects(self._entries)[order],
            lines=np.array(self._lines, dtype=np.int64)[order],
            categories=categories,
            entry_name=self._entry_name,
            warnings=list(warnings),
        )


def _whole_numbers_or_objects(values: list[int | str]) -> np.ndarray:
    if all(type(value) is int and -(2**63) <= value < 2**63 for value in values):
        return np.array(values, dtype=np.int64)
    objects = np.empty(len(values), dtype=object)
    objects[:] = values
    return objects
