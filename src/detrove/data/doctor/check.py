"""Examining a data set: `check` reads it past every fault, `examine` takes splits that are read already."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detrove.data.annotations import Annotations
from detrove.data.dataset import evenly_spaced
from detrove.data.discover import read_leniently
from detrove.data.doctor.boxes import examine_boxes
from detrove.data.doctor.classes import examine_classes, examine_pictures_listed
from detrove.data.doctor.files import Looks, examine_files, look_at, unique_paths, with_room
from detrove.data.doctor.findings import Finding, Place, make_finding, merged
from detrove.data.doctor.fitness import too_many_objects, too_small_objects
from detrove.data.doctor.formats import Reading, shifted_numbers, suspect, wrong_format
from detrove.data.doctor.leaks import Leak, examine_leaks, find_leaks
from detrove.data.faults import Fault
from detrove.structures import Preprocessing

COMPOSITE = frozenset({"trainval", "trainvaltest", "all"})
"""Names of splits that repeat others on purpose."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a data set, faults first, and what a cleaned copy is made from.

    `splits` are as they could be read; a split that repeats others (trainval) is left with what only it has.
    `readings`: how the boxes of a split were rather meant, where its format is doubted. `num_looked` of the
    `num_pictures` were decoded.
    """

    path: Path
    format: str
    splits: Mapping[str, Annotations]
    findings: tuple[Finding, ...]
    faults: tuple[Fault, ...]
    readings: Mapping[str, list[Reading]]
    looks: Looks
    leaks: tuple[Leak, ...]

    @property
    def num_pictures(self) -> int:
        """Picture files of all splits."""
        return len(unique_paths(self.splits.values()))

    @property
    def num_boxes(self) -> int:
        """Boxes of all splits that could be read."""
        return sum(annotations.num_boxes for annotations in self.splits.values())

    @property
    def num_looked(self) -> int:
        """Pictures that were decoded."""
        return len(self.looks.by_path)

    def of(self, severity: str) -> list[Finding]:
        """The findings of one severity, "fault" or "remark"."""
        return [finding for finding in self.findings if finding.severity == severity]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "data": str(self.path),
            "format": self.format,
            "splits": {
                split: {"pictures": len(annotations), "boxes": annotations.num_boxes}
                for split, annotations in self.splits.items()
            },
            "pictures_decoded": self.num_looked,
            "faults": [finding.to_json() for finding in self.of("fault")],
            "remarks": [finding.to_json() for finding in self.of("remark")],
        }


def check(
    path: str | Path,
    format: str | None = None,
    preprocessing: Preprocessing | None = None,
    num_queries: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Examine all splits of a data set, decoding every picture once.

    `preprocessing` and `num_queries` are those of the detector to be trained; without them, what depends on them is
    left out. `progress` hears how many pictures are done, and of how many. Raises `InputError` only where there is no
    data set to read: no such folder, none or several formats.
    """
    reading = read_leniently(path, format)
    return examine(
        reading.path, reading.format, reading.splits, reading.faults, preprocessing, num_queries, progress=progress
    )


def examine(
    path: Path,
    format: str,
    splits: Mapping[str, Annotations],
    faults: Sequence[Fault] = (),
    preprocessing: Preprocessing | None = None,
    num_queries: int | None = None,
    most_pictures: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Examine splits that are read already, with the `faults` of their reading; the rest as in `check`.

    Where there are more than `most_pictures`, so many, evenly spaced, are decoded.
    """
    splits = {split: annotations for split, annotations in _apart(splits).items() if len(annotations)}
    paths = _sample(unique_paths(splits.values()), most_pictures)
    looks = look_at(paths, (lambda done: progress(done, len(paths))) if progress else None)
    leaks = find_leaks(splits, looks)
    readings = {split: found for split, annotations in splits.items() if (found := suspect(annotations, format))}
    findings = [*_of_reading(faults, splits), *examine_leaks(splits, leaks)]
    for split, labelled in splits.items():
        findings += examine_pictures_listed(labelled, split)
        findings += examine_files(labelled, split, format, looks)
        if split in readings:
            findings.append(wrong_format(labelled, split, readings[split]))
        else:
            findings += examine_boxes(with_room(labelled, looks), split)
        if num_queries is not None:
            findings.append(too_many_objects(labelled, split, num_queries))
    if splits:
        findings += examine_classes(splits, format, "train" if "train" in splits else next(iter(splits)))
    sound = {split: annotations for split, annotations in splits.items() if split not in readings}
    if preprocessing is not None and sound:
        findings.append(too_small_objects(sound, preprocessing))
    return Diagnosis(Path(path), format, splits, tuple(merged(findings)), tuple(faults), readings, looks, tuple(leaks))


def _apart(splits: Mapping[str, Annotations]) -> dict[str, Annotations]:
    """The splits; those that repeat others without the pictures that these have."""
    names = [split for split in splits if split not in COMPOSITE]
    if len(names) in (0, len(splits)):
        return dict(splits)
    elsewhere = {path for split in names for path in splits[split].paths}
    found = {}
    for split, labelled in splits.items():
        own = [picture for picture, path in enumerate(labelled.paths) if path not in elsewhere]
        found[split] = labelled.take(own) if split in COMPOSITE else labelled
    return found


def _sample(paths: list[str], most: int | None) -> list[str]:
    return paths if most is None else [paths[index] for index in evenly_spaced(len(paths), most)]


def _of_reading(faults: Iterable[Fault], splits: Mapping[str, Annotations]) -> list[Finding]:
    """What the reader could not read; class numbers that are all off by one as what they are."""
    faults = list(faults)
    categories = next(iter(splits.values())).categories if splits else {}
    used = {id for annotations in splits.values() for id in np.unique(annotations.category_ids).tolist()}
    shifted = shifted_numbers(faults, categories, used)
    if shifted:
        faults = [fault for fault in faults if fault.kind != "unknown category"]
    found = [make_finding(fault.kind, [_place(fault)], max(1, _count(fault))) for fault in faults]
    return [*found, shifted] if shifted else found


def _place(fault: Fault) -> Place:
    note = f"{fault.message}; {fault.remedy}" if fault.remedy else fault.message
    picture = fault.file if fault.kind in ("missing picture", "unreadable picture") else None
    return Place(fault.file, note, line=fault.line, entry=fault.entry, picture=picture)


def _count(fault: Fault) -> int:
    """How many of what the kind counts: boxes where it counts boxes, else one."""
    return fault.num_boxes if fault.kind in ("unknown picture", "unknown category", "bad box") else 1
