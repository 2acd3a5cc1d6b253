"""The pictures that a report shows: the best and the worst by F1, with hits, false alarms and missed objects drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from detrove.drawing import PURPLE, SKY, VERMILION, WHITE, YELLOW, Mark, draw_marks, to_rectangle
from detrove.evaluation.errors import ErrorAnalysis, PictureScore

SHOWN = 6
LONGER_SIDE = 560
"""Pixels of a drawn picture: enough to see small boxes, little enough for a page of a megabyte."""

LEGEND = [
    (SKY, False, "found, class and score"),
    (VERMILION, False, "false alarm"),
    (YELLOW, True, "missed"),
    (WHITE, True, "truth of a found object"),
]


def best_pictures(scores: Sequence[PictureScore]) -> list[PictureScore]:
    """At most six with the highest F1 above 0, those with more hits first."""
    hit = [score for score in scores if score.hits]
    return sorted(hit, key=lambda score: (-(score.f1 or 0), -score.hits))[: _share(scores)]


def worst_pictures(scores: Sequence[PictureScore]) -> list[PictureScore]:
    """At most six with the lowest F1 below 1, those with more mistakes first."""
    wrong = [score for score in scores if score.missed or score.false_alarms]
    return sorted(wrong, key=lambda score: (score.f1 or 0, -score.missed - score.false_alarms))[: _share(scores)]


def _share(scores: Sequence[PictureScore]) -> int:
    """No more than half of a small data set: best and worst should not be the same pictures."""
    return min(SHOWN, (len(scores) + 1) // 2)


def draw_example(picture: Image.Image, position: int, errors: ErrorAnalysis) -> Image.Image:
    """The picture at this position of the ground truth with truth and detections; see `LEGEND`."""
    truth, found, matching = errors.truth, errors.found, errors.matching
    explained = np.zeros(len(truth), dtype=bool)
    explained[matching.truth_of[matching.is_hit]] = True
    marks = []
    for index in np.flatnonzero(truth.pictures == position):
        name = errors.names[truth.classes[index]]
        box = to_rectangle(truth.boxes_xyxy[index].tolist())
        if truth.is_crowd[index]:
            marks.append(Mark(box, PURPLE, f"crowd of {name}, not counted", dashed=True))
        elif explained[index]:
            marks.append(Mark(box, WHITE, dashed=True))
        else:
            marks.append(Mark(box, YELLOW, f"missed {name}", dashed=True))
    in_picture = np.flatnonzero((found.pictures == position) & ~matching.ignored)
    for index in in_picture[np.argsort(found.scores[in_picture], kind="stable")]:
        colour = SKY if matching.is_hit[index] else VERMILION
        text = f"{errors.names[found.classes[index]]} {found.scores[index]:.2f}"
        marks.append(Mark(to_rectangle(found.boxes_xyxy[index].tolist()), colour, text))
    return draw_marks(picture, marks, LONGER_SIDE)
