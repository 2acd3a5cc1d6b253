"""COCO metrics where the answer is known without computing."""

from __future__ import annotations

import json

import pytest

from detrove.errors import InputError
from detrove.evaluation.metrics import METRIC_NAMES, coco_metrics


def ground_truth(boxes, image_ids=("a", "b"), categories=((0, "cat"), (5, "dog"))) -> dict:
    """COCO ground truth; `boxes` as (image id, category id, bbox)."""
    return {
        "images": [{"id": image_id} for image_id in image_ids],
        "categories": [{"id": id, "name": name} for id, name in categories],
        "annotations": [
            {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(bbox)}
            for number, (image_id, category_id, bbox) in enumerate(boxes)
        ],
    }


def result(image_id, category_id, bbox, score=0.9) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": list(bbox), "score": score}


SMALL, MEDIUM, LARGE = (10, 10, 20, 20), (10, 10, 50, 50), (10, 10, 100, 100)


def test_perfect_detections():
    truth = ground_truth([("a", 0, SMALL), ("a", 5, LARGE), ("b", 0, MEDIUM)])
    metrics = coco_metrics(truth, [result("a", 0, SMALL), result("a", 5, LARGE), result("b", 0, MEDIUM)])
    assert {name: metrics[name] for name in METRIC_NAMES} == dict.fromkeys(METRIC_NAMES, pytest.approx(1.0))
    assert metrics.per_class["cat"] == {"ap": pytest.approx(1.0), "ap50": pytest.approx(1.0), "num_boxes": 2}


def test_no_detections_is_zero_and_no_such_objects_is_none():
    metrics = coco_metrics(ground_truth([("a", 0, SMALL)]), [])
    assert metrics.ap == 0.0
    assert metrics.ar_100 == 0.0
    assert metrics.ap_small == 0.0
    assert metrics.ap_large is None
    assert metrics.per_class["dog"] == {"ap": None, "ap50": None, "num_boxes": 0}


def test_nothing_to_measure_is_none_everywhere():
    metrics = coco_metrics(ground_truth([]), [result("a", 0, SMALL)])
    assert {metrics[name] for name in METRIC_NAMES} == {None}
    assert json.loads(json.dumps(metrics.to_json()))["ap"] is None


def test_a_duplicate_is_a_false_alarm():
    truth = ground_truth([("a", 0, MEDIUM), ("b", 0, MEDIUM)])
    once = [result("a", 0, MEDIUM, 0.9), result("b", 0, MEDIUM, 0.5)]
    # Precision is 2/3 from recall 0.51 on: (51 · 1 + 50 · 2/3) / 101.
    twice = [*once, result("a", 0, MEDIUM, 0.8)]
    assert coco_metrics(truth, once).ap50 == pytest.approx(1.0)
    assert coco_metrics(truth, twice).ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_overlap_decides_which_thresholds_are_met():
    # Half the width beside it: IoU 0.6 exactly counts at 0.50, 0.55 and 0.60 of ten thresholds.
    metrics = coco_metrics(ground_truth([("a", 0, (0, 0, 100, 100))]), [result("a", 0, (0, 0, 100, 61))])
    assert metrics.ap50 == pytest.approx(1.0)
    assert metrics.ap75 == 0.0
    assert metrics.ap == pytest.approx(0.3)


def test_annotation_number_zero_can_be_matched():
    """COCO's own code takes an annotation with id 0 for no match."""
    truth = ground_truth([("a", 0, MEDIUM)])
    assert truth["annotations"][0]["id"] == 0
    assert coco_metrics(truth, [result("a", 0, MEDIUM)]).ap == pytest.approx(1.0)


def test_classes_of_the_same_name_stay_apart():
    truth = ground_truth([("a", 0, MEDIUM)], categories=((0, "cell"), (1, "cell")))
    per_class = coco_metrics(truth, [result("a", 0, MEDIUM)]).per_class
    assert per_class["cell (id 0)"]["ap"] == pytest.approx(1.0)
    assert per_class["cell (id 1)"]["ap"] is None


def test_metrics_is_a_mapping():
    metrics = coco_metrics(ground_truth([("a", 0, SMALL)]), [])
    assert [*metrics] == [*METRIC_NAMES, "per_class"]
    assert len(dict(metrics)) == 13
    assert "to_json" not in metrics
    with pytest.raises(KeyError):
        metrics["to_json"]
    assert metrics == metrics.to_json()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (result("c", 0, SMALL), "picture 'c', which is not among the 2 pictures"),
        (result("a", 1, SMALL), "category id 1, which the ground truth does not list"),
        (result("a", 0, SMALL, float("nan")), "picture 'a' is not finite"),
        (result("b", 0, (0, 0, float("inf"), 1)), "picture 'b' is not finite"),
    ],
)
def test_wrong_results_are_named(wrong, message):
    with pytest.raises(InputError, match=message):
        coco_metrics(ground_truth([("a", 0, SMALL)]), [wrong])


def test_a_data_set_without_classes_is_refused():
    with pytest.raises(InputError, match="no class to measure"):
        coco_metrics(ground_truth([], categories=()), [])
