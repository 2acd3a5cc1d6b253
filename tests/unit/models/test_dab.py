"""DAB-DETR's anchors: how they start, how layers move them, who hears of which loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from detrove.errors import InputError
from detrove.models import catalogue, dab, dab_deformable
from detrove.structures import ImageBatch

SMALL = {
    "backbone": "resnet18",
    "dim": 32,
    "num_heads": 4,
    "feedforward_dim": 48,
    "num_classes": 3,
    "num_queries": 5,
    "num_encoder_layers": 1,
    "num_decoder_layers": 3,
}


def build(**settings):
    torch.manual_seed(0)
    model = catalogue.build(replace(dab.Config(), **SMALL, **settings)).double().eval()
    nn.init.normal_(model.box_head.last.weight, std=0.1)
    return model


@pytest.fixture
def images():
    return ImageBatch.from_images([torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(1))]).to(
        torch.float64
    )


def test_broad_boxes_look_broadly():
    sine = torch.ones(1, 1, 8)
    given = dab.modulate(sine, torch.tensor([[[2.0, 3.0]]]))
    assert given.flatten().tolist() == [3, 3, 3, 3, 2, 2, 2, 2]  # y half by height, x half by width


def test_references_are_told_undetached_but_moved_detached(images):
    """With the way through content cut, the first layer's content reaches the next layer's box, and none beyond."""
    model = build()
    for layer in model.decoder[1:]:
        layer.register_forward_hook(lambda *_: torch.zeros(1, 5, 32, dtype=torch.float64))
    seen: list[torch.Tensor] = []

    def keep(_, __, output):
        output.retain_grad()
        seen.append(output)

    model.decoder[0].register_forward_hook(keep)
    boxes = model(images).boxes
    boxes[2].sum().backward(retain_graph=True)
    assert seen[0].grad is None or not seen[0].grad.any(), "two layers on, the anchor is detached"
    boxes[1].sum().backward()
    assert seen[0].grad is not None
    assert seen[0].grad.any(), "one layer on, the reference is not detached"


def test_patterns_are_repeated_pattern_by_pattern():
    model = build(num_patterns=2)
    anchors, contents = model.queries()
    assert anchors.shape == (10, 4)
    assert torch.equal(anchors[:5], anchors[5:])
    for query in range(10):
        assert torch.equal(contents[query], model.patterns[query // 5])


def test_patterns_are_added_to_learned_contents_in_the_deformable_form():
    model = catalogue.build(replace(dab_deformable.Config(), **SMALL, num_patterns=2))
    anchors, contents = model.queries()
    assert torch.equal(anchors[:5], anchors[5:])
    for query in range(10):
        assert torch.equal(contents[query], model.patterns[query // 5] + model.contents[query % 5])


def test_random_centres_are_spread_evenly_and_learned():
    torch.manual_seed(0)
    anchors = dab.initial_anchors(4000, 4, random_xy=True, epsilon=1e-3)
    centres = anchors[:, :2].sigmoid()
    counts = torch.histc(centres, bins=4, min=0, max=1)
    assert (counts / counts.sum() - 0.25).abs().max() < 0.02
    assert anchors[:, 2:].std().item() == pytest.approx(1, rel=0.05)
    assert build(random_xy=True).anchors.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_coordinates": 3}, "num_coordinates is 3: an anchor has 2"),
        ({"num_coordinates": 2}, "modulate needs an anchor's width and height: set modulate=False"),
    ],
)
def test_impossible_anchors_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build(**settings)
