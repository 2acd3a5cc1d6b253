"""What the published detectors start from, where it is not torch's default."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from detrove.models import catalogue, conditional, dab, dab_deformable, deformable, detr, detrove, dino, stacked
from detrove.nn.deformable_attention import DeformableAttention

SMALL = {"backbone": "resnet18", "dim": 64, "feedforward_dim": 96, "num_classes": 5}


def test_detr_matrices_are_xavier():
    model = detr.build(replace(detr.Config(), **SMALL))
    for name, parameter in [*model.encoder.named_parameters(), *model.decoder.named_parameters()]:
        if parameter.dim() > 1:
            limit = (6 / sum(parameter.shape)) ** 0.5  # the joint in-projection counts as one matrix
            assert 0.9 * limit < parameter.abs().max() <= limit, name
    assert model.query_positions.std().item() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("file", [conditional, dab, stacked])
def test_dense_transformers_are_xavier(file):
    model = file.build(replace(file.Config(), **SMALL))
    outside = ("backbone", "class_head", "box_head", "query_positions", "input_projection", "anchors")
    matrices = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and not any(part in name for part in outside)
    ]
    assert len(matrices) >= 60
    for name, parameter in matrices:
        limit = (6 / sum(parameter.shape)) ** 0.5
        assert 0.85 * limit < parameter.abs().max() <= limit, name


@pytest.mark.parametrize("file", [conditional, dab])
def test_heads_of_points_and_anchors(file):
    model = file.build(replace(file.Config(), **SMALL))
    torch.testing.assert_close(model.class_head.bias.sigmoid(), torch.full((5,), 0.01))
    assert not model.box_head.last.weight.any()
    assert not model.box_head.last.bias.any()


def test_dab_deformable_heads():
    model = dab_deformable.build(replace(dab_deformable.Config(), **SMALL))
    assert len({id(head) for head in model.class_heads}) == len({id(head) for head in model.box_heads}) == 6
    assert [head.last.bias.tolist() for head in model.box_heads] == [[0, 0, -2, -2], *[[0, 0, 0, 0]] * 5]


@pytest.mark.parametrize("two_stage", [False, True])
@pytest.mark.parametrize("refine", [False, True])
def test_deformable_heads(refine, two_stage):
    model = deformable.build(replace(deformable.Config(), **SMALL, refine=refine, two_stage=two_stage))
    heads = 6 + two_stage
    assert len(model.class_heads) == len(model.box_heads) == heads
    own = heads if refine or two_stage else 1
    assert len({id(head) for head in model.class_heads}) == len({id(head) for head in model.box_heads}) == own
    for index, (class_head, box_head) in enumerate(zip(model.class_heads, model.box_heads, strict=True)):
        torch.testing.assert_close(class_head.bias.sigmoid(), torch.full((5,), 0.01))
        assert not box_head.last.weight.any()
        small = not two_stage and (index == 0 or own == 1)
        assert box_head.last.bias.tolist() == [0.0, 0.0, *([-2.0, -2.0] if small else [0.0, 0.0])]


@pytest.mark.parametrize("file", [deformable, dab_deformable, detrove, dino])
def test_sampling_starts_on_the_ring_after_everything_else(file):
    model = file.build(replace(file.Config(), **SMALL))
    blocks = [module for module in model.modules() if isinstance(module, DeformableAttention)]
    fresh = DeformableAttention(64, blocks[0].num_heads, blocks[0].num_levels, blocks[0].num_points)
    assert blocks
    for block in blocks:
        torch.testing.assert_close(block.sampling_offsets.bias, fresh.sampling_offsets.bias)
        assert not block.sampling_offsets.weight.any()
        assert not block.attention_weights.weight.any()


def test_dino_contents_are_xavier_and_heads_start_alike():
    model = dino.build(replace(dino.Config(), **SMALL))
    limit = (6 / (900 + 64)) ** 0.5
    assert 0.9 * limit < model.contents.abs().max() <= limit
    assert len({id(head) for head in (*model.class_heads, *model.box_heads)}) == 2
    for own, first in (
        (model.selection.class_head, model.class_heads[0]),
        (model.selection.box_head, model.box_heads[0]),
    ):
        assert own is not first
        assert all(torch.equal(a, b) for a, b in zip(own.parameters(), first.parameters(), strict=True))
    torch.testing.assert_close(model.selection.class_head.bias.sigmoid(), torch.full((5,), 0.01))
    assert not model.box_heads[0].last.weight.any()
    assert not model.box_heads[0].last.bias.any()


def test_deformable_references_and_levels():
    model = deformable.build(replace(deformable.Config(), **SMALL))
    assert not model.reference_points.bias.any()
    assert model.level_embedding.shape == (4, 64)
    assert model.level_embedding.std().item() == pytest.approx(1, rel=0.15)
    for projection in model.levels.projections:
        convolution, norm = projection
        assert isinstance(norm, nn.GroupNorm)
        assert norm.num_groups == 32
        assert not convolution.bias.any()


@pytest.mark.parametrize("name", ["detrove-nano", "deformable-nano"])
def test_first_scores_are_low(name):
    model = catalogue.create(name, num_classes=5).eval()
    heads = model.class_heads if name == "deformable-nano" else [model.class_head, model.encoder_class_head]
    assert all(head.bias[0].item() == pytest.approx(-math.log(99)) for head in heads)
