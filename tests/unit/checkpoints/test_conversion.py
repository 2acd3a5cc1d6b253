"""Key tables read in both directions, join and split parts, and say what they do not know."""

from __future__ import annotations

import pytest
import torch

from detrove.checkpoints.conversion import Rule, to_ours, to_theirs

RULES = [
    Rule("enc.layers.{i}.q.{p}", "encoder.{i}.in_proj_{p}", part=(0, 3)),
    Rule("enc.layers.{i}.k.{p}", "encoder.{i}.in_proj_{p}", part=(1, 3)),
    Rule("enc.layers.{i}.v.{p}", "encoder.{i}.in_proj_{p}", part=(2, 3)),
    Rule("body.{rest...}", "backbone.body.{rest...}"),
]


def joint(layer: int = 0) -> dict[str, torch.Tensor]:
    return {f"enc.layers.{layer}.{part}.weight": torch.full((2, 4), float(i)) for i, part in enumerate("qkv")}


def test_a_placeholder_stands_for_one_part_and_rest_for_all_that_follows() -> None:
    rule = Rule("a.{i}.{rest...}", "b.{i}.c.{rest...}")
    assert rule.ours_of("a.3.conv.weight") == "b.3.c.conv.weight"
    assert rule.theirs_of("b.3.c.conv.weight") == "a.3.conv.weight"
    assert rule.ours_of("a.3") is None
    assert Rule("a.{i}", "b.{i}").ours_of("a.3.conv") is None
    assert Rule("a.b", "c").ours_of("a-b") is None


def test_parts_are_joined_in_their_order_and_split_again() -> None:
    theirs = dict(reversed(joint().items()))
    ours = to_ours(theirs, RULES).tensors
    assert list(ours) == ["encoder.0.in_proj_weight"]
    assert ours["encoder.0.in_proj_weight"][:, 0].tolist() == [0, 0, 1, 1, 2, 2]
    back = to_theirs(ours, RULES).tensors
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)
    assert all(tensor.is_contiguous() for tensor in back.values())


def test_what_is_left_out_and_what_is_unknown() -> None:
    tensors = {"body.a.weight": torch.zeros(1), "mask.b.weight": torch.zeros(1), "else": torch.zeros(1)}
    translation = to_ours(tensors, RULES, dropped=["mask.{rest...}"])
    assert list(translation.tensors) == ["backbone.body.a.weight"]
    assert translation.dropped == ("mask.b.weight",)
    assert translation.unknown == ("else",)
    assert to_theirs({"head": torch.zeros(1)}, RULES).unknown == ("head",)


def test_every_name_of_a_tensor_is_written() -> None:
    rules = [Rule("head.{p}", "box_head.{p}"), Rule("decoder.head.{p}", "box_head.{p}")]
    assert list(to_theirs({"box_head.bias": torch.zeros(1)}, rules).tensors) == ["head.bias", "decoder.head.bias"]


def test_two_keys_for_one_tensor() -> None:
    rules = [Rule("head.{p}", "box_head.{p}"), Rule("decoder.head.{p}", "box_head.{p}")]
    with pytest.raises(ValueError, match=r"two keys claim box_head\.bias; the second is decoder\.head\.bias"):
        to_ours({"head.bias": torch.zeros(1), "decoder.head.bias": torch.zeros(1)}, rules)


def test_a_part_is_absent() -> None:
    tensors = joint()
    del tensors["enc.layers.0.k.weight"]
    with pytest.raises(ValueError, match=r"only a part of encoder\.0\.in_proj_weight"):
        to_ours(tensors, RULES)
