"""Weights go in whole or not at all, and what did not fit is said on both sides."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrove.checkpoints import LoadReport, load_weights
from detrove.errors import InputError


class Small(nn.Module):
    def __init__(self, num_classes: int = 3, width: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.class_head = nn.Linear(width, num_classes)
        self.box_head = nn.Linear(width, 4)


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_all_keys_are_copied_and_reported() -> None:
    source, model = Small(), Small()
    report = load_weights(model, source.state_dict())
    assert report == LoadReport(tuple(source.state_dict()), (), ())
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_half_precision_weights_become_the_models_type() -> None:
    source, model = Small().half(), Small()
    load_weights(model, source.state_dict())
    assert model.box_head.weight.dtype == torch.float32
    assert torch.equal(model.box_head.weight, source.box_head.weight.float())


def test_other_classes_are_refused_with_the_remedy_and_nothing_is_changed() -> None:
    model = Small(num_classes=3)
    before = copied(model)
    with pytest.raises(InputError, match="--ignore-heads") as caught:
        load_weights(model, Small(num_classes=91).state_dict(), source="coco.safetensors")
    assert "class_head.weight (91, 4) for (3, 4)" in str(caught.value)
    assert str(caught.value).startswith("coco.safetensors: ")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_ignoring_heads_takes_the_rest() -> None:
    source, model = Small(num_classes=91), Small(num_classes=3)
    before = copied(model)
    report = load_weights(model, source.state_dict(), ignore_heads=True)
    assert report.missing == report.unexpected == ("class_head.weight", "class_head.bias")
    assert torch.equal(model.class_head.weight, before["class_head.weight"])
    assert torch.equal(model.box_head.weight, source.box_head.weight)
    assert torch.equal(model.layers[1].weight, source.layers[1].weight)


def test_heads_of_the_same_shape_are_left_out_too() -> None:
    """Three classes of blood cells say nothing about three classes of traffic signs."""
    source, model = Small(), Small()
    before = copied(model)
    load_weights(model, source.state_dict(), ignore_heads=True)
    assert torch.equal(model.class_head.weight, before["class_head.weight"])


def test_a_mismatch_lists_both_sides_in_one_line() -> None:
    tensors = {f"transformer.layers.{i}.weight": torch.zeros(1) for i in range(20)}
    with pytest.raises(InputError) as caught:
        load_weights(Small(), tensors)
    message = str(caught.value)
    assert "8 keys of the model are missing in the weights (layers.0.weight, layers.0.bias," in message
    assert "20 keys of the weights are unknown to the model (transformer.layers.0.weight," in message
    assert "transformer.layers.7.weight, and 12 more)" in message
    assert "transformer.layers.8.weight" not in message
    assert "--ignore-heads" not in message
    assert "\n" not in message


def test_ignoring_heads_still_refuses_another_model() -> None:
    with pytest.raises(InputError, match=r"layers\.2\.weight"):
        load_weights(Small(depth=2), Small(depth=3).state_dict(), ignore_heads=True)


def test_one_name_fills_a_shared_tensor() -> None:
    model = Small()
    model.layers[1] = model.layers[0]
    tensors = {key: value + 1 for key, value in model.state_dict().items() if not key.startswith("layers.1")}
    load_weights(model, tensors)
    assert torch.equal(model.layers[1].weight, tensors["layers.0.weight"])
