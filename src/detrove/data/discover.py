"""Opening a data set: the format is found by looking at the folder, the split by its name."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from detrove.data import coco, voc, yolo
from detrove.data.annotations import choose_split, in_usual_order
from detrove.data.dataset import DetectionDataset
from detrove.errors import InputError, nearest

READERS: dict[str, ModuleType] = {"coco": coco, "voc": voc, "yolo": yolo}


def find_format(path: str | Path) -> str:
    """The format of the data set in a folder: "coco", "voc" or "yolo"; `InputError` where none or several fit."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; pass the folder of a data set")
    found = [name for name, reader in READERS.items() if reader.find_splits(path)]
    if len(found) > 1:
        choices = " or ".join(f"format={name}" for name in found)
        raise InputError(f"{path}: holds several annotation formats ({', '.join(found)}); choose with {choices}")
    if not found:
        known = "; ".join(reader.DESCRIPTION for reader in READERS.values())
        raise InputError(f"{path}: no annotations found; expected {known}")
    return found[0]


def find_splits(path: str | Path, format: str | None = None) -> tuple[str, ...]:
    """The names of a data set's splits, train, val and test first.

    Names are unified: train2017 is train, valid and validation are val; "all" where nothing is split.
    """
    return in_usual_order(_reader(path, format)[1].find_splits(Path(path)))


def open_dataset(path: str | Path, split: str | None = None, format: str | None = None) -> DetectionDataset:
    """Open one split of a COCO JSON, VOC XML or YOLO data set.

    `path` is the data set's folder, or its annotation file (COCO) or `data.yaml` (YOLO). `split` may be left out where
    there is only one. `format` ("coco", "voc", "yolo") settles a folder that holds several. Raises `InputError`, one
    line, for whatever is wrong with the files.
    """
    path = Path(path)
    format, reader = _reader(path, format)
    splits = in_usual_order(reader.find_splits(path))
    if split is None:
        split, *others = splits
        if others:
            raise InputError(f"{path}: has several splits; name one of {', '.join(splits)}")
    split = choose_split(splits, split, path)
    return DetectionDataset(path, split, format, reader.read(path, split))


def _reader(path: str | Path, format: str | None) -> tuple[str, ModuleType]:
    if format is None:
        format = find_format(path)
    if format not in READERS:
        raise InputError(f"unknown data set format {format!r}: {nearest(format, READERS)}")
    reader = READERS[format]
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or folder; pass the folder of a data set")
    if not reader.find_splits(Path(path)):
        raise InputError(f"{path}: no annotations of format {format} found; expected {reader.DESCRIPTION}")
    return format, reader
