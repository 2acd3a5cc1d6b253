"""What kinds of mistakes a detector makes at its thresholds: confusion between classes, error kinds, pictures by F1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detrove.evaluation.matching import BoxTable, Matching, match, overlapping_pairs
from detrove.evaluation.metrics import class_names

POOR_OVERLAP = 0.1
"""From this IoU on, a box of the right class around an unmatched object counts as badly placed."""


@dataclass(frozen=True)
class PictureScore:
    """How one picture went: counts of hits, false alarms and missed objects, and F1 = 2·hits / (2·hits + both)."""

    position: int
    hits: int
    false_alarms: int
    missed: int

    @property
    def f1(self) -> float | None:
        """In [0, 1]; None for a picture without objects and without detections."""
        total = 2 * self.hits + self.false_alarms + self.missed
        return 2 * self.hits / total if total else None


@dataclass(frozen=True)
class ErrorAnalysis:
    """Detections above their thresholds against the truth, at IoU 0.5.

    `matching` is by class. `confusion` (K+1, K+1) counts objects by true class (row) and detected class
    (column); the last column holds missed objects, the last row detections around nothing (duplicates among them).
    `kinds` counts hits and each kind of mistake.
    """

    names: list[str]
    truth: BoxTable
    found: BoxTable
    matching: Matching
    confusion: np.ndarray
    kinds: dict[str, int]

    def pictures(self, num_pictures: int) -> list[PictureScore]:
        """One score for each picture, in the order of the ground truth."""
        hits = np.bincount(self.found.pictures[self.matching.is_hit], minlength=num_pictures)
        false_alarms = np.bincount(self.found.pictures[self.matching.is_false_alarm], minlength=num_pictures)
        objects = np.bincount(self.truth.pictures[~self.truth.is_crowd], minlength=num_pictures)
        return [
            PictureScore(position, int(hits[position]), int(false_alarms[position]), int(missed))
            for position, missed in enumerate(objects - hits)
        ]

    def precision_and_recall(self) -> list[tuple[float | None, float | None]]:
        """For each class, the share of detections that are right and of objects that are found, or None for 0/0."""
        count = len(self.names)
        hits = np.bincount(self.found.classes[self.matching.is_hit], minlength=count)
        false_alarms = np.bincount(self.found.classes[self.matching.is_false_alarm], minlength=count)
        objects = np.bincount(self.truth.classes[~self.truth.is_crowd], minlength=count)
        return [
            (hit / (hit + wrong) if hit + wrong else None, hit / total if total else None)
            for hit, wrong, total in zip(hits.tolist(), false_alarms.tolist(), objects.tolist(), strict=True)
        ]


def analyse_errors(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], thresholds: Sequence[float]
) -> ErrorAnalysis:
    """Analyse the detections that reach their class's threshold.

    Arguments as `coco_metrics`; `thresholds` has one entry per category, in the order of the category ids.
    """
    names = class_names(ground_truth)
    truth = BoxTable.of(ground_truth, ground_truth["annotations"])
    found = BoxTable.of(ground_truth, results)
    found = found.select(found.scores >= np.asarray(thresholds, dtype=np.float64)[found.classes])
    matching = match(truth, found)
    across = match(truth, found, across_classes=True)
    return ErrorAnalysis(
        names,
        truth,
        found,
        matching,
        _confusion(truth, found, across, len(names)),
        _count_kinds(truth, found, across),
    )


def _confusion(truth: BoxTable, found: BoxTable, matching: Matching, num_classes: int) -> np.ndarray:
    is_hit, missed = matching.is_hit, _missed(truth, matching)
    nothing = np.full(len(found), num_classes)
    rows = [truth.classes[matching.truth_of[is_hit]], nothing[matching.is_false_alarm], truth.classes[missed]]
    columns = [found.classes[is_hit], found.classes[matching.is_false_alarm], np.full(missed.sum(), num_classes)]
    cells = np.concatenate(rows) * (num_classes + 1) + np.concatenate(columns)
    return np.bincount(cells, minlength=(num_classes + 1) ** 2).reshape(num_classes + 1, num_classes + 1)


def _missed(truth: BoxTable, matching: Matching) -> np.ndarray:
    """(G,) bool: true boxes, crowd regions aside, that no detection explains."""
    missed = ~truth.is_crowd
    missed[matching.truth_of[matching.is_hit]] = False
    return missed


def _count_kinds(truth: BoxTable, found: BoxTable, across: Matching) -> dict[str, int]:
    """Counts by kind; each detection and each missed object falls under exactly one.

    In the spirit of TIDE (Bolya et al. 2020), by the first that applies: a hit, a wrong class, a duplicate of an object
    already found, a box badly placed on an object of its class, a box around nothing.
    """
    is_hit = across.is_hit
    wrong_class = np.zeros(len(found), dtype=bool)
    wrong_class[is_hit] = truth.classes[across.truth_of[is_hit]] != found.classes[is_hit]
    remaining = np.flatnonzero(across.is_false_alarm)
    duplicates = _overlaps_own_class(truth, found, remaining, 0.5)
    poorly_placed = _overlaps_own_class(truth, found, remaining, POOR_OVERLAP) & ~duplicates
    return {
        "hits": int((is_hit & ~wrong_class).sum()),
        "wrong class": int(wrong_class.sum()),
        "duplicates": int(duplicates.sum()),
        "badly placed": int(poorly_placed.sum()),
        "around nothing": int(len(remaining) - duplicates.sum() - poorly_placed.sum()),
        "missed objects": int(_missed(truth, across).sum()),
    }


def _overlaps_own_class(truth: BoxTable, found: BoxTable, positions: np.ndarray, least: float) -> np.ndarray:
    """(len(positions),) bool: this detection overlaps some true box of its class by at least this IoU, taken or not."""
    overlaps = np.zeros(len(positions), dtype=bool)
    pairs = overlapping_pairs(truth, found.select(positions), least)
    overlaps[pairs.found[pairs.same_class]] = True
    return overlaps
