"""Box functions against torchvision's, on boxes of every kind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import ops

from detrove import boxes as box_functions

coordinate = st.floats(0, 1, width=32)
box = st.tuples(coordinate, coordinate, st.floats(0.015625, 1, width=32), st.floats(0.015625, 1, width=32))
box_lists = st.lists(box, min_size=1, max_size=6).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


@settings(deadline=None, max_examples=50)
@given(box_lists)
def test_forms_as_torchvision_and_back(cxcywh):
    xyxy = box_functions.cxcywh_to_xyxy(cxcywh)
    torch.testing.assert_close(xyxy, ops.box_convert(cxcywh, "cxcywh", "xyxy"))
    torch.testing.assert_close(box_functions.xyxy_to_cxcywh(xyxy), cxcywh)
    torch.testing.assert_close(box_functions.area_xyxy(xyxy), cxcywh[:, 2] * cxcywh[:, 3])


@settings(deadline=None, max_examples=50)
@given(box_lists, box_lists)
def test_pairwise_as_torchvision(a, b):
    a, b = box_functions.cxcywh_to_xyxy(a), box_functions.cxcywh_to_xyxy(b)
    torch.testing.assert_close(box_functions.pairwise_iou_xyxy(a, b), ops.box_iou(a, b))
    giou = box_functions.pairwise_giou_xyxy(a, b)
    torch.testing.assert_close(giou, ops.generalized_box_iou(a, b))
    assert giou.min() >= -1
    assert giou.max() <= 1 + 1e-12


@settings(deadline=None, max_examples=50)
@given(box_lists)
def test_generalised_iou_of_a_box_with_itself_is_one(cxcywh):
    xyxy = box_functions.cxcywh_to_xyxy(cxcywh)
    torch.testing.assert_close(box_functions.giou_xyxy(xyxy, xyxy), torch.ones(len(xyxy), dtype=torch.float64))


def test_any_leading_dimensions():
    a, b = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 5, 4)
    pairs = box_functions.pairwise_giou_xyxy(box_functions.cxcywh_to_xyxy(a), box_functions.cxcywh_to_xyxy(b))
    assert pairs.shape == (2, 3, 4, 5)
    one = box_functions.giou_xyxy(box_functions.cxcywh_to_xyxy(a[1, 2, 3]), box_functions.cxcywh_to_xyxy(b[1, 2, 4]))
    torch.testing.assert_close(pairs[1, 2, 3, 4], one)


def test_epsilon_joins_the_union_and_the_enclosing_area():
    a, b = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0.5, 0.5, 1.5, 1.5])
    intersection, union, hull, epsilon = 0.25, 1.75, 2.25, 0.5
    expected = intersection / (union + epsilon) - (hull - union) / (hull + epsilon)
    assert box_functions.giou_xyxy(a, b, epsilon).item() == pytest.approx(expected)


def test_touching_boxes_do_not_overlap():
    a, b = torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 2.0, 1.0])
    assert box_functions.iou_xyxy(a, b) == 0


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_inverse_sigmoid(epsilon):
    inside = torch.linspace(-6, 6, 25, dtype=torch.float64)
    torch.testing.assert_close(box_functions.inverse_sigmoid(inside.sigmoid(), epsilon), inside)
    edges = box_functions.inverse_sigmoid(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64), epsilon)
    largest = torch.log(torch.tensor(1 / epsilon, dtype=torch.float64))
    torch.testing.assert_close(edges, torch.stack((-largest, -largest, largest, largest)))
