"""Stacked DETR: which stack sees what, and what is handed from one to the next."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detrove.errors import InputError
from detrove.models import catalogue, detr, stacked
from detrove.nn.recording import recording
from detrove.structures import ImageBatch

SMALL = {
    "backbone": "resnet18",
    "dim": 32,
    "feedforward_dim": 48,
    "num_classes": 3,
    "num_queries": 5,
    "dropout": 0.0,
    "num_encoder_layers": (1, 1),
    "num_encoder_heads": (4, 1),
    "num_decoder_layers": (1, 2),
    "num_decoder_heads": (4, 2),
}


def build(**settings):
    torch.manual_seed(0)
    return catalogue.build(replace(stacked.Config(), **SMALL | settings)).eval()


@pytest.fixture
def images():
    return ImageBatch.from_images([torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(1))])


def test_coarse_then_fine_with_their_heads(images):
    model = build()
    with recording(model) as recorder:
        model(images)
    seen = [(entry.name, entry.attention.shape[1], entry.attention.shape[3]) for entry in recorder.dense]
    assert seen == [
        ("stacks.0.encoder.0.self_attention", 4, 2 * 3),
        ("stacks.0.decoder.0.self_attention", 4, 5),
        ("stacks.0.decoder.0.cross_attention", 4, 2 * 3),
        ("stacks.1.encoder.0.self_attention", 1, 4 * 6),
        ("stacks.1.decoder.0.self_attention", 2, 5),
        ("stacks.1.decoder.0.cross_attention", 2, 4 * 6),
        ("stacks.1.decoder.1.self_attention", 2, 5),
        ("stacks.1.decoder.1.cross_attention", 2, 4 * 6),
    ]


def test_one_stack_is_detr(images):
    one = {name: value[:1] for name, value in SMALL.items() if isinstance(value, tuple)}
    ours = build(**one, strides=(32,))
    plain = {key: value for key, value in SMALL.items() if not isinstance(value, tuple)}
    reference = detr.build(
        replace(detr.Config(), **plain, num_heads=4, num_encoder_layers=1, num_decoder_layers=1)
    ).eval()
    renamed = {
        key.replace("stacks.0.", "")
        .replace("class_heads.0.", "class_head.")
        .replace("box_heads.0.", "box_head."): value
        for key, value in ours.state_dict().items()
    }
    reference.load_state_dict(renamed)
    given, expected = ours(images), reference(images)
    assert torch.equal(given.logits, expected.logits)
    assert torch.equal(given.boxes, expected.boxes)


def start_of_second(model, images):
    """What the second stack's content starts from, the first stack's normed and un-normed last outputs."""
    kept: dict[str, tuple] = {}
    model.stacks[0].register_forward_hook(lambda _, __, output: kept.update(first=output))
    model.stacks[1].register_forward_pre_hook(lambda _, inputs: kept.update(second=inputs))
    model(images)
    outputs, unnormed = kept["first"]
    return kept["second"][1], outputs[-1], unnormed


@pytest.mark.parametrize("content", stacked.CONTENTS)
def test_what_is_handed_on(images, content):
    start, normed, unnormed = start_of_second(build(content=content), images)
    if content == "zero":
        assert start is None
    else:
        assert torch.equal(start, unnormed if content == "unnormed" else normed)
        assert start.requires_grad == (content != "detached")


def test_heads_are_shared_or_not(images):
    shared, apart = build(), build(share_heads=False)
    assert len(shared.class_heads) == len(shared.box_heads) == 1
    assert len(apart.class_heads) == len(apart.box_heads) == 2
    apart.eval()(images)
    torch.nn.init.constant_(apart.class_heads[1].bias, 100.0)
    logits = apart(images).logits
    assert logits[0].max() < 50 < logits[1:].min()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_encoder_heads": (8,)}, r"num_encoder_heads is \(8,\), but there are 2 stacks"),
        ({"content": "norm"}, "content 'norm': did you mean normed"),
    ],
)
def test_impossible_stacks_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        build(**settings)
