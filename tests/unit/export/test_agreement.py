"""How far two answers are apart, query by query, whatever their order."""

import pytest
import torch

from detrove.export.agreement import SetAgreement, Tolerance, agreement_of_sets, answer_differences
from detrove.structures import Detections, LabelMap, Predictions


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


# ---- sets ------------------------------------------------------------------------------------------------------------

TOLERANCE = Tolerance(boxes=0.01, scores=0.02, share=1.0)


def found(*rows: tuple[float, float, int]) -> Detections:
    """Detections by score, left edge and class; all 20 pixels wide and high."""
    rows = tuple(sorted(rows, reverse=True))
    boxes = torch.tensor([[left, 0.0, left + 20.0, 20.0] for _, left, _ in rows]).reshape(-1, 4)
    scores = torch.tensor([score for score, _, _ in rows])
    labels = torch.tensor([label for _, _, label in rows], dtype=torch.int64)
    return Detections(boxes, scores, labels, LabelMap.numbered(3))


def compared(one: Detections, other: Detections, limit: int = 100) -> SetAgreement:
    return agreement_of_sets(one, other, 100, TOLERANCE, limit)


def test_counterparts_in_any_order_and_the_largest_differences() -> None:
    one, other = found((0.5, 10, 0), (0.51, 40, 1)), found((0.515, 10.5, 0), (0.505, 40, 1))
    agreement = compared(one, other)
    assert (agreement.compared, agreement.alike) == (4, 4)
    assert agreement.box == pytest.approx(0.005)
    assert agreement.score == pytest.approx(0.015)


def test_a_counterpart_may_score_below_the_floor() -> None:
    agreement = compared(found((0.055, 10, 0)), found((0.045, 10, 0)))
    assert (agreement.compared, agreement.alike) == (1, 1)
    assert compared(found((0.04, 10, 0)), found((0.04, 90, 0))).compared == 0


@pytest.mark.parametrize(
    ("other", "box", "score"),
    [
        (found((0.5, 12, 0)), 0.02, 0.0),
        (found((0.47, 10, 0)), 0.0, 0.03),
        (found((0.5, 10, 1)), 1.0, 1.0),
        (found(), 1.0, 1.0),
        (found((float("nan"), 10, 0)), 1.0, 1.0),
    ],
    ids=["box", "score", "class", "nothing", "no number"],
)
def test_what_has_no_counterpart(other: Detections, box: float, score: float) -> None:
    agreement = compared(found((0.5, 10, 0)), other)
    assert agreement.alike == 0
    assert agreement.box == pytest.approx(box)
    assert agreement.score == pytest.approx(score)
    assert compared(other, found((0.5, 10, 0))).alike == 0


def test_each_stands_for_one_only() -> None:
    agreement = compared(found((0.5, 10, 0), (0.5, 10, 0)), found((0.5, 10, 0)))
    assert (agreement.compared, agreement.alike) == (3, 2)


def test_as_many_as_possible_are_paired() -> None:
    """The nearest for the first would leave the second alone."""
    agreement = compared(found((0.5, 10, 0), (0.5, 10.9, 0)), found((0.5, 10.6, 0), (0.5, 9.2, 0)))
    assert (agreement.compared, agreement.alike) == (4, 4)


def test_what_may_have_come_after_the_last_is_no_difference() -> None:
    one, other = found((0.9, 10, 0), (0.3, 40, 0)), found((0.9, 10, 0), (0.29, 70, 0))
    assert compared(one, other).alike == 2
    assert compared(one, other, limit=2).alike == 4
    louder = found((0.9, 10, 0), (0.35, 40, 0))
    assert compared(louder, other, limit=2).alike == 3
