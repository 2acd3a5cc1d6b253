"""What is wrong with single boxes: without extent, outside their picture, absurd, twice the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from detrove.data.annotations import Annotations
from detrove.data.doctor.findings import Finding, Place, Rectangle, make_finding

ROUNDING = 1.0
"""A box may pass the edge by this many pixels: rounding in the tools that wrote it."""
BEYOND = 2.0
"""A box is absurd if it is this many times as wide or high as its picture."""
SLIVER = 50.0
"""A box is absurd if one side is this many times the other; the extreme of COCO's is about 30."""
WHOLE = 0.99
HALF = 0.5
SAME = 0.98
"""IoU from which two boxes of a class are one object labelled twice; cells that lie on each other reach 0.93."""


def corners(annotations: Annotations) -> np.ndarray:
    """(N, 4) left, top, right, bottom in pixels."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate((annotations.xywh[:, :2], annotations.xywh[:, :2] + annotations.xywh[:, 2:]), axis=1)


def without_extent(annotations: Annotations) -> np.ndarray:
    """(N,) whether a box has no width or no height."""
    return np.any(annotations.xywh[:, 2:] <= 0, axis=1)


def outside(annotations: Annotations) -> np.ndarray:
    """(N,) whether a box leaves its picture, by more than rounding."""
    found = corners(annotations)
    sizes = annotations.sizes[annotations.pictures_of_boxes()]
    passed = np.concatenate((-found[:, :2], found[:, 2:] - sizes), axis=1).max(axis=1, initial=-np.inf)
    return ~without_extent(annotations) & (passed > ROUNDING)


def absurd(annotations: Annotations) -> np.ndarray:
    """(N,) whether a box is far larger than its picture, thinner than a pixel, a sliver, or alone in covering all."""
    sides = annotations.xywh[:, 2:]
    sizes = annotations.sizes[annotations.pictures_of_boxes()].astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shape = sides.max(axis=1, initial=0) / sides.min(axis=1, initial=np.inf)
        cover = sides.prod(axis=1) / sizes.prod(axis=1)
    beyond = np.any(sides > BEYOND * sizes, axis=1)
    whole = cover >= WHOLE
    # Many sets have objects that fill the picture; then others fill most of it.
    alone = not np.any((cover >= HALF) & ~whole) and whole.sum() <= 0.01 * len(whole)
    strange = beyond | (sides < 1).any(axis=1) | (shape > SLIVER) | (whole & alone)
    return ~without_extent(annotations) & strange


def copies(annotations: Annotations) -> np.ndarray:
    """(M, 2) pairs (earlier, later) of boxes that are one: of the same class in the same picture."""
    pairs = [(a, b) for a, b, same in _overlapping(annotations, SAME) if same]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def examine_boxes(annotations: Annotations, split: str) -> list[Finding]:
    """What is wrong with the boxes of a split."""
    is_absurd = absurd(annotations)
    findings = [
        _of_boxes("zero-size box", annotations, split, without_extent(annotations), _extent),
        _of_boxes("box outside", annotations, split, outside(annotations) & ~is_absurd, _leaves),
        _of_boxes("absurd box", annotations, split, is_absurd, _extent),
    ]
    same_class, other_class = [], []
    for earlier, later, same in _overlapping(annotations, SAME):
        if same:
            note = f"{annotations.entry(later)} repeats {annotations.entry(earlier)}"
            same_class.append(place_of_box(annotations, later, split, note))
        elif _is_exact(annotations, earlier, later):
            names = [annotations.categories[int(annotations.category_ids[box])] for box in (earlier, later)]
            note = f"{annotations.entry(later)} is {names[1]}, {annotations.entry(earlier)} is {names[0]}"
            other_class.append(place_of_box(annotations, later, split, note))
    once = list({(place.file, place.line, place.entry, place.picture): place for place in same_class}.values())
    return [*findings, make_finding("duplicate box", once), make_finding("one box, two classes", other_class)]


def place_of_box(annotations: Annotations, box: int, split: str, note: str) -> Place:
    """Where a box is written."""
    picture = annotations.picture_of(box)
    return Place(
        annotations.source(picture),
        note,
        split,
        annotations.line(box),
        annotations.entry(box),
        annotations.path(picture),
        (_rectangle(annotations, box),),
    )


def _of_boxes(
    kind: str, annotations: Annotations, split: str, chosen: np.ndarray, describe: Callable[[Annotations, int], str]
) -> Finding:
    places = [
        place_of_box(annotations, box, split, f"{annotations.entry(box)} {describe(annotations, box)}")
        for box in np.flatnonzero(chosen).tolist()
    ]
    return make_finding(kind, places)


def _extent(annotations: Annotations, box: int) -> str:
    width, height = annotations.xywh[box, 2:].tolist()
    picture = annotations.sizes[annotations.picture_of(box)].tolist()
    return f"is {width:.6g} x {height:.6g} pixels in a picture of {picture[0]}x{picture[1]}"


def _leaves(annotations: Annotations, box: int) -> str:
    left, top, right, bottom = _rectangle(annotations, box)
    width, height = annotations.sizes[annotations.picture_of(box)].tolist()
    passed = {"left": -left, "top": -top, "right": right - width, "bottom": bottom - height}
    return "leaves its picture " + ", ".join(
        f"at the {side} by {by:.6g} pixels" for side, by in passed.items() if by > ROUNDING
    )


def _rectangle(annotations: Annotations, box: int) -> Rectangle:
    x, y, w, h = annotations.xywh[box].tolist()
    return x, y, x + w, y + h


def _is_exact(annotations: Annotations, a: int, b: int) -> bool:
    return bool(np.allclose(annotations.xywh[a], annotations.xywh[b], rtol=0, atol=0.01))


def _overlapping(annotations: Annotations, least: float) -> list[tuple[int, int, bool]]:
    """Pairs (earlier, later, of the same class) of boxes in one picture with at least this IoU, in their order.

    Such boxes have areas in that ratio: sorted by area, only a few neighbours are to be compared.
    """
    with np.errstate(over="ignore"):
        areas = annotations.xywh[:, 2:].prod(axis=1)
    pictures = annotations.pictures_of_boxes()
    sound = np.flatnonzero(~without_extent(annotations) & np.isfinite(corners(annotations)).all(axis=1))
    order = sound[np.lexsort((areas[sound], pictures[sound]))]
    pictures, areas = pictures[order], areas[order]
    found: list[tuple[int, int, bool]] = []
    smaller, distance = np.arange(len(order)), 0
    while len(smaller):
        distance += 1
        smaller = smaller[smaller + distance < len(order)]
        larger = smaller + distance
        smaller = smaller[(pictures[smaller] == pictures[larger]) & (areas[smaller] >= least * areas[larger])]
        pairs = np.sort(np.stack((order[smaller], order[smaller + distance]), axis=1), axis=1)
        pairs = pairs[_iou(annotations.xywh[pairs[:, 0]], annotations.xywh[pairs[:, 1]]) >= least]
        same_class = annotations.category_ids[pairs[:, 0]] == annotations.category_ids[pairs[:, 1]]
        found += [(a, b, same) for (a, b), same in zip(pairs.tolist(), same_class.tolist(), strict=True)]
    return sorted(found)


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) of pairs of boxes xywh (N, 4) with positive sides."""
    lowest = np.maximum(a[:, :2], b[:, :2])
    highest = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    with np.errstate(over="ignore", invalid="ignore"):
        shared = np.clip(highest - lowest, 0, None).prod(axis=1)
        return np.nan_to_num(shared / (a[:, 2:].prod(axis=1) + b[:, 2:].prod(axis=1) - shared))
