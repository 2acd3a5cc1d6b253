"""How far two answers are apart, query by query, whatever their order."""

import pytest
import torch

from detrove.export.agreement import answer_differences
from detrove.structures import Predictions


def answers(seed: int = 0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    return Predictions(torch.randn(2, 3, 7, 4, generator=generator), torch.rand(2, 3, 7, 4, generator=generator))


def test_only_the_last_layer_counts_and_each_query_is_told_apart() -> None:
    one, other = answers(), answers()
    other.logits[0] += 5
    other.logits[1, 2, 3, 1] += 0.25
    other.boxes[1, 0, 6, 2] -= 0.125
    logits, boxes = answer_differences(one, other)
    expected = torch.zeros(3, 7)
    expected[2, 3] = 0.25
    torch.testing.assert_close(logits, expected)
    expected = torch.zeros(3, 7)
    expected[0, 6] = 0.125
    torch.testing.assert_close(boxes, expected)


def test_another_order_is_no_difference() -> None:
    one = answers()
    order = torch.tensor([3, 1, 0, 2, 6, 5, 4])
    logits, boxes = answer_differences(one, Predictions(one.logits[:, :, order], one.boxes[:, :, order]))
    assert logits.max() == 0
    assert boxes.max() == 0


def test_another_query_is_a_difference() -> None:
    one, other = answers(), answers()
    other.logits[1, 1, 0] = other.logits[1, 1, 1]
    other.boxes[1, 1, 0] = other.boxes[1, 1, 1]
    logits, _ = answer_differences(one, other)
    assert (logits[1] > 0.1).sum() == 1
    assert logits[0].max() == 0


def test_not_a_number_is_infinitely_far() -> None:
    one, other = answers(), answers()
    other.logits[1, 0, 2, 0] = float("nan")
    logits, _ = answer_differences(one, other)
    assert logits[0].max() == float("inf")
    assert logits[1:].max() == 0


def test_other_shapes_are_refused() -> None:
    one = answers()
    with pytest.raises(ValueError, match="shapes"):
        answer_differences(one, Predictions(one.logits[:, :, :5], one.boxes[:, :, :5]))
