"""Score thresholds against trying every one of them."""

from __future__ import annotations

import numpy as np
import pytest

from detrove.evaluation.thresholds import DEFAULT_THRESHOLD, FEW_BOXES, best_threshold, best_thresholds
from detrove.structures import Category, LabelMap


def f1_at(threshold: float, scores: np.ndarray, is_hit: np.ndarray, num_boxes: int) -> float:
    kept = scores >= threshold
    return 2 * is_hit[kept].sum() / (kept.sum() + num_boxes)


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_is_better(seed: int):
    generator = np.random.default_rng(seed)
    scores = generator.random(40).round(1 + seed % 2)  # with ties
    is_hit = generator.random(40) < scores
    num_boxes = int(is_hit.sum()) + 5
    chosen = best_threshold(scores, is_hit, num_boxes)
    assert chosen is not None
    highest = max(f1_at(threshold, scores, is_hit, num_boxes) for threshold in np.linspace(0, 1, 1001))
    assert f1_at(chosen, scores, is_hit, num_boxes) == pytest.approx(highest)


def test_the_threshold_lies_between_two_scores():
    scores = np.array([0.3, 0.9, 0.8])
    assert best_threshold(scores, np.array([False, True, True]), 2) == pytest.approx(0.55)
    assert best_threshold(scores, np.array([True, True, True]), 3) == pytest.approx(0.15)


def test_of_equal_f1_the_higher_threshold_wins():
    # One of two objects found: F1 = 2/3; both with two false alarms between them: 4/6.
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    assert best_threshold(scores, np.array([True, False, False, True]), 2) == pytest.approx(0.85)


def test_nothing_to_choose_from():
    assert best_threshold(np.array([0.5]), np.array([False]), 3) is None
    assert best_threshold(np.array([]), np.array([], dtype=bool), 3) is None
    assert best_threshold(np.array([0.5]), np.array([False]), 0) is None


def data_set(counts: dict[int, int], scores: dict[int, float]) -> tuple[dict, list[dict]]:
    """`counts` objects of each category, all found with one score; with each, a false alarm of half that."""
    annotations, results = [], []
    for category_id, count in counts.items():
        for index in range(count):
            common = {"image_id": index, "category_id": category_id}
            annotations.append({**common, "bbox": [0, 0, 10, 10]})
            results.append({**common, "bbox": [0, 0, 10, 10], "score": scores[category_id]})
            results.append({**common, "bbox": [50, 50, 10, 10], "score": scores[category_id] / 2})
    categories = [{"id": 1, "name": "often"}, {"id": 2, "name": "seldom"}, {"id": 3, "name": "never"}]
    images = [{"id": index} for index in range(max(counts.values(), default=1))]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def test_rare_and_absent_classes_share_the_common_threshold():
    """Slots follow the detector's label map, joined by name: another order, an empty and a foreign slot."""
    truth, results = data_set({1: FEW_BOXES, 2: FEW_BOXES - 1}, {1: 0.8, 2: 0.2})
    slots = (Category(0, "never"), None, Category(1, "seldom"), Category(2, "often"), Category(3, "foreign"))
    thresholds = best_thresholds(truth, results, LabelMap(slots))
    # All together: hits at 0.8 and 0.2, false alarms at 0.4 and 0.1; 2·19/(29 + 19) at 0.2 beats 2·10/(10 + 19) at 0.8.
    assert thresholds == pytest.approx([0.15, 0.15, 0.15, 0.6, 0.15])


def test_without_a_right_detection_the_default():
    truth, _ = data_set({1: 20}, {1: 0.5})
    label_map = LabelMap.from_categories({1: "often", 2: "seldom"})
    assert best_thresholds(truth, [], label_map) == [DEFAULT_THRESHOLD] * 2
