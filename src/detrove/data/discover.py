"""Opening a data set: the format is found by looking at the folder, the split by its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from detrove.data import coco, csv_boxes, voc, yolo
from detrove.data.annotations import Annotations
from detrove.data.classes import change_classes
from detrove.data.dataset import DetectionDataset, without_missing_pictures
from detrove.data.faults import AnnotationError, Fault, Faults
from detrove.data.files import choose_split, in_usual_order
from detrove.errors import InputError, nearest

READERS: dict[str, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo, "csv": csv_boxes}


def find_format(path: str | Path) -> str:
    """The format of the data set in a folder, a key of `READERS`; `InputError` where none or several fit."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; pass the folder of a data set")
    found = [name for name, reader in READERS.items() if reader.find_splits(path)]
    if len(found) > 1:
        choices = " or ".join(f"--format {name}" for name in found)
        raise InputError(f"{path}: holds several annotation formats ({', '.join(found)}); choose with {choices}")
    if not found and (reason := csv_boxes.why_not(path)):
        raise InputError(reason)
    if not found:
        known = "; ".join(reader.DESCRIPTION for reader in READERS.values())
        raise InputError(f"{path}: no annotations found; expected {known}; or name the annotation file itself")
    return found[0]


def find_splits(path: str | Path, format: str | None = None) -> tuple[str, ...]:
    """The names of a data set's splits, train, val and test first.

    Names are unified: train2017 is train, valid and validation are val; "all" where nothing is split.
    """
    return in_usual_order(_reader(path, format)[1].find_splits(Path(path)))


def open_dataset(
    path: str | Path,
    split: str | None = None,
    format: str | None = None,
    classes: Iterable[str] | None = None,
    rename: Mapping[str, str] | None = None,
) -> DetectionDataset:
    """Open one split of a data set in COCO JSON, VOC XML, YOLO text or CSV.

    `path` is the data set's folder, its annotation file (COCO, CSV) or `data.yaml` (YOLO). `split` may be left out
    where there is only one. `format` ("coco", "voc", "yolo", "csv") settles a folder that holds
    several. `rename` (old -> new) renames classes, and merges those of one name; then only `classes` are kept, all by
    default. Raises `InputError`, one line, for whatever is wrong with the files.
    """
    path = Path(path)
    format, reader = _reader(path, format)
    splits = in_usual_order(reader.find_splits(path))
    if split is None:
        split, *others = splits
        if others:
            raise InputError(f"{path}: has several splits; name one of {', '.join(splits)}")
    split = choose_split(splits, split, path)
    annotations = change_classes(reader.read(path, split, Faults()), classes, rename)
    return DetectionDataset(path, split, format, annotations)


@dataclass
class LenientReading:
    """A data set as far as it can be read: what is left of each split, and everything that is wrong with the rest.

    A split is missing from `splits` where nothing of it can be read. Pictures that are not there are left out, with a
    fault each.
    """

    path: Path
    format: str
    splits: dict[str, Annotations]
    faults: list[Fault]


def read_leniently(path: str | Path, format: str | None = None) -> LenientReading:
    """Read all splits of a data set, past every fault; `open_dataset` stops at the first.

    Raises `InputError` only where there is no data set to read: no such folder, none or several formats.
    """
    path = Path(path)
    try:
        format, reader = _reader(path, format)
        names = in_usual_order(reader.find_splits(path))
    except AnnotationError as error:  # a data.yaml that cannot be read: nothing else can be, either
        return LenientReading(path, format or "yolo", {}, [error.fault])
    splits: dict[str, Annotations] = {}
    found: list[Fault] = []
    for split in names:
        faults = Faults(strict=False)
        try:
            splits[split] = without_missing_pictures(reader.read(path, split, faults), faults)
        except AnnotationError as error:
            faults.found.append(error.fault)
        # What several splits share is read for each of them, and reported once.
        earlier = frozenset(found)
        found += [fault for fault in faults.found if fault not in earlier]
    return LenientReading(path, format, splits, found)


def _reader(path: str | Path, format: str | None) -> tuple[str, ModuleType]:
    if format is None:
        format = find_format(path)
    if format not in READERS:
        raise InputError(f"unknown data set format {format!r}: {nearest(format, READERS)}")
    reader = READERS[format]
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or folder; pass the folder of a data set")
    if not reader.find_splits(Path(path)):
        if reader is csv_boxes and (reason := csv_boxes.why_not(Path(path))):
            raise InputError(reason)
        raise InputError(f"{path}: no annotations of format {format} found; expected {reader.DESCRIPTION}")
    return format, reader
