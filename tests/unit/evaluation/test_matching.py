"""Matching against the loop that COCO's description spells out; confusion and error kinds on a picture done by hand."""

from __future__ import annotations

import numpy as np
import pytest

from detrove.evaluation.errors import PictureScore, analyse_errors
from detrove.evaluation.examples import best_pictures, worst_pictures
from detrove.evaluation.matching import BoxTable, match

CATEGORIES = [{"id": 10, "name": "cat"}, {"id": 20, "name": "dog"}]
CAT, DOG = 10, 20


def boxes(entries, score: bool = False) -> list[dict]:
    """(image id, category id, x, y, width, height) and then the score, or whether it is a crowd region."""
    return [
        {
            "image_id": image_id,
            "category_id": category_id,
            "bbox": [x, y, w, h],
            ("score" if score else "iscrowd"): last,
        }
        for image_id, category_id, x, y, w, h, last in entries
    ]


def one_by_one(truth: BoxTable, found: BoxTable) -> np.ndarray:
    """COCO's matching, as a loop over detections by descending score."""
    truth_of, taken = np.full(len(found), -1), set()
    for detection in np.argsort(-found.scores, kind="stable"):
        best, best_iou = -1, 0.5
        for position in range(len(truth)):
            same = truth.pictures[position] == found.pictures[detection]
            if not same or truth.classes[position] != found.classes[detection] or position in taken:
                continue
            a, b = truth.boxes_xyxy[position], found.boxes_xyxy[detection]
            sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
            overlap = sides.prod()
            iou = overlap / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - overlap)
            if iou >= best_iou:
                best, best_iou = position, iou
        if best >= 0:
            truth_of[detection] = best
            taken.add(best)
    return truth_of


@pytest.mark.parametrize("seed", range(5))
def test_matching_is_that_of_the_loop(seed: int):
    generator = np.random.default_rng(seed)

    def table(count: int) -> BoxTable:
        corner = generator.integers(0, 12, (count, 2))
        size = generator.integers(10, 16, (count, 2))
        return BoxTable(
            generator.integers(0, 3, count),
            generator.integers(0, 2, count),
            np.concatenate([corner, corner + size], axis=1).astype(float),
            generator.random(count).round(1),
            np.zeros(count, dtype=bool),
        )

    truth, found = table(30), table(80)
    expected = one_by_one(truth, found)
    assert (expected >= 0).sum() > 10
    np.testing.assert_array_equal(match(truth, found).truth_of, expected)


def test_no_boxes_at_all():
    ground_truth = {"images": [{"id": 1}], "categories": CATEGORIES, "annotations": []}
    empty = BoxTable.of(ground_truth, [])
    assert len(match(empty, empty).truth_of) == 0


@pytest.fixture
def analysis():
    truth = boxes(
        [
            (1, CAT, 0, 0, 100, 100, 0),  # found, and found again
            (1, DOG, 200, 0, 100, 100, 0),  # called a cat
            (1, DOG, 0, 200, 100, 100, 0),  # badly placed, hence also missed
            (2, CAT, 0, 0, 100, 100, 1),  # a crowd with a cat in it
            (3, CAT, 0, 0, 100, 100, 0),  # its detection is below the threshold
        ]
    )
    found = boxes(
        [
            (1, CAT, 0, 0, 100, 95, 0.9),
            (1, CAT, 0, 0, 100, 90, 0.8),
            (1, CAT, 200, 0, 100, 100, 0.7),
            (1, DOG, 0, 260, 100, 100, 0.7),
            (1, DOG, 400, 400, 50, 50, 0.6),
            (2, CAT, 10, 10, 20, 20, 0.9),
            (3, CAT, 0, 0, 100, 100, 0.3),
        ],
        score=True,
    )
    ground_truth = {"images": [{"id": id} for id in (1, 2, 3, 4)], "categories": CATEGORIES, "annotations": truth}
    return analyse_errors(ground_truth, found, [0.5, 0.6])


def test_error_kinds(analysis):
    assert analysis.kinds == {
        "hits": 1,
        "wrong class": 1,
        "duplicates": 1,
        "badly placed": 1,
        "around nothing": 1,
        "missed objects": 2,
    }


def test_confusion(analysis):
    np.testing.assert_array_equal(analysis.confusion, [[1, 0, 1], [1, 0, 1], [1, 2, 0]])


def test_precision_and_recall(analysis):
    assert analysis.precision_and_recall() == [(1 / 3, 1 / 2), (0.0, 0.0)]


def test_pictures(analysis):
    scores = analysis.pictures(4)
    assert scores == [
        PictureScore(0, hits=1, false_alarms=4, missed=2),
        PictureScore(1, hits=0, false_alarms=0, missed=0),
        PictureScore(2, hits=0, false_alarms=0, missed=1),
        PictureScore(3, hits=0, false_alarms=0, missed=0),
    ]
    assert scores[0].f1 == pytest.approx(2 / 8)
    assert scores[1].f1 is None
    assert [score.position for score in worst_pictures(scores)] == [2, 0]
    assert [score.position for score in best_pictures(scores)] == [0]
