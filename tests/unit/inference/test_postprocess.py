"""Raw predictions to detections, against numbers worked out by hand and against the official formulas."""

from __future__ import annotations

import pytest
import torch

from detrove.inference import postprocess
from detrove.structures import LabelMap, Predictions

THREE = LabelMap.from_categories({1: "a", 2: "b", 5: "c"})


def predictions_of(logits: list, boxes: list) -> Predictions:
    last = torch.tensor(logits, dtype=torch.float32)
    return Predictions(
        torch.stack([torch.full_like(last, 99.0), last]),
        torch.stack([torch.zeros(*last.shape[:2], 4), torch.tensor(boxes, dtype=torch.float32)]),
    )


def test_softmax_drops_the_last_slot_and_sorts_queries_by_their_best_class() -> None:
    logits = torch.tensor([[[0.6, 0.1, 0.1, 0.2], [0.05, 0.05, 0.1, 0.8], [0.1, 0.7, 0.1, 0.1]]]).log()
    boxes = [[[0.5, 0.5, 1, 1], [0.1, 0.1, 0.1, 0.1], [0.25, 0.5, 0.5, 0.2]]]
    [found] = postprocess(predictions_of(logits.tolist(), boxes), [(50, 200)], THREE, "softmax", 100)
    torch.testing.assert_close(found.scores, torch.tensor([0.7, 0.6, 0.1]))
    assert found.names == ["b", "a", "c"]
    torch.testing.assert_close(found.boxes[0], torch.tensor([0.0, 20.0, 100.0, 30.0]))
    torch.testing.assert_close(found.boxes[1], torch.tensor([0.0, 0.0, 200.0, 50.0]))


def test_sigmoid_takes_the_best_pairs_of_query_and_class() -> None:
    logits = [[[2.0, 1.0, -3.0], [-1.0, 3.0, -4.0]]]
    boxes = [[[0.5, 0.5, 0.2, 0.2], [0.25, 0.25, 0.1, 0.1]]]
    [found] = postprocess(predictions_of(logits, boxes), [(100, 100)], THREE, "sigmoid", 3)
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    assert found.labels.tolist() == [1, 0, 1]
    torch.testing.assert_close(found.boxes[:, 0], torch.tensor([20.0, 40.0, 40.0]))


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_at_most_num_detections_are_kept(scores: str) -> None:
    torch.manual_seed(0)
    classes = 3 + (scores == "softmax")
    predictions = Predictions(torch.randn(2, 4, 10, classes), torch.rand(2, 4, 10, 4))
    few = postprocess(predictions, [(10, 20)] * 4, THREE, scores, 6)
    assert [len(found) for found in few] == [6] * 4
    most = postprocess(predictions, [(10, 20)] * 4, THREE, scores, 10**6)
    assert len(most[0]) == (10 if scores == "softmax" else 30)
    for found in few:
        assert (found.scores.diff() <= 0).all()


def test_boxes_are_clipped_to_their_own_picture_unless_asked_not_to() -> None:
    boxes = [[[0.0, 1.0, 0.4, 0.4]]]
    predictions = predictions_of([[[1.0, 0.0, 0.0]]], boxes)
    [clipped] = postprocess(predictions, [(100, 200)], THREE, "sigmoid", 1)
    [raw] = postprocess(predictions, [(100, 200)], THREE, "sigmoid", 1, clip=False)
    torch.testing.assert_close(clipped.boxes, torch.tensor([[0.0, 80.0, 40.0, 100.0]]))
    torch.testing.assert_close(raw.boxes, torch.tensor([[-40.0, 80.0, 40.0, 120.0]]))


def test_each_picture_has_its_own_size() -> None:
    predictions = Predictions(torch.zeros(1, 2, 1, 3), torch.tensor([0.5, 0.5, 1, 1]).expand(1, 2, 1, 4))
    one, two = postprocess(predictions, [(10, 20), (300, 400)], THREE, "sigmoid", 1)
    assert one.boxes.tolist() == [[0, 0, 20, 10]]
    assert two.boxes.tolist() == [[0, 0, 400, 300]]


def test_half_precision_predictions_give_float32_detections() -> None:
    predictions = Predictions(torch.zeros(1, 1, 2, 3).bfloat16(), torch.rand(1, 1, 2, 4).bfloat16())
    [found] = postprocess(predictions, [(10, 20)], THREE, "sigmoid", 2)
    assert found.boxes.dtype == found.scores.dtype == torch.float32


def test_our_own_mistakes_are_no_input_errors() -> None:
    predictions = Predictions(torch.zeros(1, 1, 2, 3), torch.rand(1, 1, 2, 4))
    with pytest.raises(ValueError, match="class slots"):
        postprocess(predictions, [(10, 20)], THREE, "softmax", 2)
    with pytest.raises(ValueError, match="softmax or sigmoid"):
        postprocess(predictions, [(10, 20)], THREE, "Softmax", 2)
    with pytest.raises(ValueError, match="original sizes"):
        postprocess(predictions, [(10, 20), (10, 20)], THREE, "sigmoid", 2)
