"""How heads start, and which layers share them."""

from __future__ import annotations

import pytest
import torch

from detrove.nn.heads import heads_of_layers, reference_box_head, sigmoid_class_head


def test_scores_start_near_one_in_a_hundred():
    assert torch.allclose(sigmoid_class_head(8, 3)(torch.zeros(8)).sigmoid(), torch.tensor(0.01))


@pytest.mark.parametrize("num_layers", [2, 3])
def test_boxes_start_at_their_reference(num_layers):
    head = reference_box_head(8, num_layers)
    assert not head(torch.randn(5, 8)).any()
    assert len([parameter for parameter in head.parameters() if parameter.dim() == 2]) == num_layers


def test_heads_apart_start_equal_but_for_the_first_size():
    class_heads, box_heads = heads_of_layers(8, 3, 4, apart=True, small_boxes=True)
    assert len({id(head) for head in class_heads}) == len({id(head) for head in box_heads}) == 4
    assert all(torch.equal(head.weight, class_heads[0].weight) for head in class_heads)
    assert box_heads[0].last.bias.tolist() == [0, 0, -2, -2]
    assert not any(head.last.bias.any() for head in list(box_heads)[1:])


def test_shared_heads_are_one():
    class_heads, box_heads = heads_of_layers(8, 3, 4, apart=False, small_boxes=False)
    assert len({id(head) for head in class_heads}) == len({id(head) for head in box_heads}) == 1
    assert not box_heads[0].last.bias.any()
