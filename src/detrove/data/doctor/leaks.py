"""Pictures that stand in two splits, as the same file or as another that shows the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detrove.data import similar
from detrove.data.annotations import Annotations
from detrove.data.doctor.files import Looks
from detrove.data.doctor.findings import Finding, Place, make_finding

SAME = 0.997
"""Correlation of thumbnails from which two pictures are called the same. Pictures saved again, at a third of their size
or at JPEG quality 30, reach 0.998; two printed circuit boards of one layout correlate by 0.995."""


@dataclass(frozen=True)
class Leak:
    """Two pictures, (split, index) each, that are the same, or nearly (`same` false)."""

    first: tuple[str, int]
    second: tuple[str, int]
    same: bool


def find_leaks(splits: Mapping[str, Annotations], looks: Looks) -> list[Leak]:
    """Pairs of pictures of different splits that are alike; a file that both list is one, too."""
    where: dict[str, list[tuple[str, int]]] = {}
    for split, labelled in splits.items():
        for picture, path in enumerate(labelled.paths):
            where.setdefault(path, []).append((split, picture))
    leaks = [
        Leak(places[0], other, same=True)
        for places in where.values()
        for other in places[1:]
        if other[0] != places[0][0]
    ]
    paths = list(looks.by_path)
    pairs = similar.near_duplicates(looks.thumbs)
    for (a, b), alike in zip(pairs, _correlations(looks.thumbs, pairs), strict=True):
        for first in where.get(paths[a], []):
            leaks += [Leak(first, second, alike >= SAME) for second in where.get(paths[b], []) if first[0] != second[0]]
    return leaks


def _correlations(thumbs: np.ndarray, pairs: list[tuple[int, int]]) -> list[float]:
    """How alike the thumbnails of each pair are, whatever their brightness."""
    found = []
    for a, b in pairs:
        first, second = thumbs[a].astype(np.float64).ravel(), thumbs[b].astype(np.float64).ravel()
        found.append(float(np.corrcoef(first, second)[0, 1]))
    return found


def examine_leaks(splits: Mapping[str, Annotations], leaks: list[Leak]) -> list[Finding]:
    """The findings of what `find_leaks` gave."""
    places: dict[bool, list[Place]] = {True: [], False: []}
    for leak in leaks:
        (first_split, first), (second_split, second) = leak.first, leak.second
        a, b = splits[first_split].path(first), splits[second_split].path(second)
        note = f"{_called(a, b)} ({first_split}) and {_called(b, a)} ({second_split})"
        places[leak.same].append(Place(b, note, second_split, picture=b, other=a))
    return [make_finding("leaked picture", places[True]), make_finding("alike across splits", places[False])]


def _called(path: Path, other: Path) -> str:
    return path.name if path.name != other.name else f"{path.parent.name}/{path.name}"
