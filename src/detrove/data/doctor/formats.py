"""Suspicion that boxes are written in another way than their format says, and class numbers from another first number.

Evidence must be strong: as read most boxes misfit their pictures, and in another reading hardly one does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detrove.data.annotations import Annotations
from detrove.data.doctor.boxes import place_of_box
from detrove.data.doctor.findings import Finding, Place, make_finding
from detrove.data.faults import Fault

FEWEST = 5
"""Boxes below which nothing is suspected."""
MOST_MISFIT = 0.5
MANY_MISFIT = 0.25
"""Enough for corners: that every second corner lies beyond the first is evidence of its own."""
FEW_MISFIT = 0.02
_EXAMPLES = 20
_UNKNOWN_NUMBER = re.compile(r"unknown category \((-?\d+)\)|\bclass (-?\d+) has no name")


@dataclass(frozen=True)
class Reading:
    """Another way to read what is written: its name, the boxes then, (N, 4) xywh in pixels; whether as corners."""

    name: str
    xywh: np.ndarray
    corners: bool = False


def suspect(annotations: Annotations, format: str) -> list[Reading]:
    """The ways in which the boxes of a split were rather meant than as its format says; mostly none, several where
    the numbers fit several."""
    if annotations.num_boxes < FEWEST:
        return []
    sizes = annotations.sizes[annotations.pictures_of_boxes()].astype(np.float64)
    misfit = _misfit(annotations.xywh, sizes)
    if misfit < MANY_MISFIT:
        return []
    with np.errstate(over="ignore", invalid="ignore"):
        return [
            reading
            for reading in _readings(format, annotations.xywh, sizes)
            if misfit >= (MANY_MISFIT if reading.corners else MOST_MISFIT)
            and _misfit(reading.xywh, sizes) <= FEW_MISFIT
        ]


def wrong_format(annotations: Annotations, split: str, readings: Sequence[Reading]) -> Finding:
    """The finding for what `suspect` gave."""
    meant = " or ".join(reading.name for reading in readings)
    sizes = annotations.sizes[annotations.pictures_of_boxes()].astype(np.float64)
    bad = np.flatnonzero(~_fits(annotations.xywh, sizes))
    places = [
        place_of_box(annotations, box, split, f"{annotations.entry(box)} looks like {meant}")
        for box in bad[:_EXAMPLES].tolist()
    ]
    return make_finding("wrong box format", places, annotations.num_boxes)


def shifted_numbers(
    faults: Sequence[Fault], categories: Mapping[int, str], used: Collection[int], split: str = ""
) -> Finding | None:
    """Whether labels count classes from 1 where the list counts from 0, or the other way round.

    `faults` are those of the reading; `used` the category ids of the boxes that could be read.
    """
    unknown = [(fault, number) for fault in faults if (number := _unknown_number(fault)) is not None]
    if not unknown or not categories:
        return None
    numbers = {number for _, number in unknown}
    lowest, highest = min(categories), max(categories)
    for stray, never, says in (
        (highest + 1, lowest, "labels seem to count from 1 more than the list of classes does"),
        (lowest - 1, highest, "labels seem to count from 1 less than the list of classes does"),
    ):
        if numbers == {stray} and never not in used:
            note = f"{{entry}}: class {stray} is not in {lowest}..{highest}, and no box has {never}: {says}"
            places = [
                Place(fault.file, note.format(entry=fault.entry), split, fault.line, fault.entry)
                for fault, _ in unknown
            ]
            return make_finding("shifted class numbers", places)
    return None


def _unknown_number(fault: Fault) -> int | None:
    match = _UNKNOWN_NUMBER.search(fault.message) if fault.kind == "unknown category" else None
    number = next((text for text in match.groups() if text), "") if match else ""
    return int(number) if number and len(number) < 19 else None


def _fits(xywh: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(N,) whether a box of at least a pixel lies in its picture."""
    slack = 1 + 0.005 * sizes
    inside = (xywh[:, :2] >= -slack) & (xywh[:, :2] + xywh[:, 2:] <= sizes + slack)
    return np.all(inside & (xywh[:, 2:] >= 1), axis=1)


def _misfit(xywh: np.ndarray, sizes: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        return 1 - float(_fits(xywh, sizes).mean())


def _readings(format: str, xywh: np.ndarray, sizes: np.ndarray) -> Iterator[Reading]:
    """What else the numbers of a format may mean; `xywh` are the boxes as the format was read."""
    first, last = xywh[:, :2], xywh[:, 2:]
    if format == "yolo":
        first, last = (first + last / 2) / sizes, last / sizes
        yield from _of_four_numbers("fractions of the picture", first, last, sizes)
        yield from _of_four_numbers("pixels", first, last, 1.0, centred=True)
        return
    # Corners that are no corners were read as an extent too small by the first one; the other way round, too large.
    if format in ("coco", "csv"):
        yield Reading("corners (x1, y1, x2, y2) in pixels", np.concatenate((first, last - first), axis=1), corners=True)
    if format in ("voc", "csv"):
        yield Reading("corner and size (x, y, width, height) in pixels", np.concatenate((first, last + first), axis=1))
    written = last if format == "coco" else last + first
    yield from _of_four_numbers("fractions of the picture", first, written, sizes, centred=True)
    if format == "csv":
        yield from _of_four_numbers("fractions of the picture", first, last, sizes, centred=True)


def _of_four_numbers(
    unit: str, first: np.ndarray, last: np.ndarray, scale: np.ndarray | float, centred: bool = False
) -> Iterator[Reading]:
    """Two and two numbers in a unit as corners, as corner and size, and (`centred`) as centre and size."""
    first, last = first * scale, last * scale
    yield Reading(f"corners (x1, y1, x2, y2) in {unit}", np.concatenate((first, last - first), axis=1), corners=True)
    yield Reading(f"corner and size (x, y, width, height) in {unit}", np.concatenate((first, last), axis=1))
    if centred:
        centre = np.concatenate((first - last / 2, last), axis=1)
        yield Reading(f"centre and size (cx, cy, width, height) in {unit}", centre)
