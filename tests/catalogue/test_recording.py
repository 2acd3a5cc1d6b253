"""What is recorded is what every detector computed with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrove.models import catalogue
from detrove.nn.attention import merge_heads
from detrove.nn.deformable_attention import DeformableAttention
from detrove.nn.sampling import sample_levels_torch
from detrove.structures import ImageBatch
from detrove.study.record import Recording, place_of, record


@pytest.fixture
def outputs(model) -> dict[str, torch.Tensor]:
    """What every attention block answered last, by name."""
    answers: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if name.endswith("_attention"):
            module.register_forward_hook(lambda _, __, answer, name=name: answers.update({name: answer}))
    return answers


@pytest.fixture
def seen(model, images, targets, outputs) -> Recording:
    """A pass of three padded pictures and their objects."""
    model.eval()
    with torch.no_grad(), record(model) as recording:
        model(images, targets)
    return recording


def kind_of(config) -> str:
    return type(config).__module__.rpartition(".")[2]


def blocks(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name.endswith("_attention")]


def test_recorded_tensors_give_every_layers_output(model, seen, outputs):
    """Dense: A times V through the output projection. Deformable: the values at the points, by their weights."""
    assert {*seen.dense, *seen.sampled} == set(outputs) == set(blocks(model))
    with torch.no_grad():
        for name, entry in seen.dense.items():
            ours = model.get_submodule(name).out_proj(merge_heads(entry.attention @ entry.value))
            assert (ours - outputs[name]).abs().max() <= 1e-5, name
        for name, entry in seen.sampled.items():
            block = model.get_submodule(name)
            assert isinstance(block, DeformableAttention)
            ours = block.output_proj(sample_levels_torch(entry.value, entry.shapes, entry.locations, entry.weights))
            assert (ours - outputs[name]).abs().max() <= 1e-5, name


def test_content_and_position_add_up_to_what_was_asked(seen):
    """In every dense block: Q and K are the sums of their parts, or the parts side by side."""
    assert seen.dense
    for name, entry in seen.dense.items():
        parts = entry.parts
        assert parts is not None, name
        for whole, content, position in (
            (entry.query, parts.query_content, parts.query_position),
            (entry.key, parts.key_content, parts.key_position),
        ):
            ours = torch.cat((content, position), dim=-1) if parts.concatenated else content + position
            torch.testing.assert_close(ours, whole, rtol=0, atol=2e-5)
        assert parts.query_position.abs().max() > 0.01
        assert parts.key_position.abs().max() > 0.01


def test_layers_and_places(config, model, seen):
    layers = {place_of(name).layer_name for name in blocks(model)}
    assert set(seen.layers) == layers
    for name, entry in seen.layers.items():
        assert entry.content.shape == entry.position.shape, name
        assert (entry.sine is not None) == ("decoder" in name and kind_of(config) in ("conditional", "dab"))
    assert len(seen.names("decoder", "cross")) == len(seen.names("decoder", "self")) == len(seen.boxes())
    encoder = config.num_encoder_layers
    assert len(seen.names("encoder", "self")) == (encoder if isinstance(encoder, int) else sum(encoder))


def test_maps_have_the_levels_shapes(seen):
    for name in seen.names("encoder", "self"):
        if name in seen.dense:
            height, width = seen.shape_of(name)
            assert height * width == seen.dense[name].key.shape[2]


def test_anchors_are_where_the_layers_look_from(config, model):
    """A refined box of one layer is the next one's anchor; queries without a box have a point, or nothing."""
    kind = kind_of(config)
    with torch.no_grad(), record(model.eval()) as seen:
        model(ImageBatch.from_images([torch.randn(3, 64, 96, generator=torch.Generator().manual_seed(3))]))
    anchors = seen.decoder_anchors()
    if kind in ("detr", "stacked"):
        assert anchors == []
        return
    assert len(anchors) == len(seen.boxes())
    if kind == "conditional" or (kind == "deformable" and not config.refine):
        assert anchors[0].shape[-1] == 2
        assert torch.equal(anchors[1], anchors[0])
    elif kind in ("deformable", "dab_deformable", "detrove"):
        assert torch.equal(anchors[1], seen.boxes()[0])
    if kind == "dab":
        assert torch.equal(anchors[0][0], model.queries()[0].sigmoid())


def test_matches_are_the_criterions(model, images, targets, seen, monkeypatch):
    kept = []
    from detrove.losses import criterion

    plain = criterion.match
    monkeypatch.setattr(criterion, "match", lambda *a: kept.append(plain(*a)) or kept[-1])
    catalogue.criterion_for(model)(seen.predictions, targets)
    assert torch.equal(seen.matches.query, kept[0].query)
    assert torch.equal(seen.matches.target, kept[0].target)
    assert seen.matches.query.shape == (len(seen.boxes()), 3)


def test_predictions_are_the_same_as_without(model, images, seen):
    with torch.no_grad():
        plain = model(images)
    assert torch.equal(plain.logits, seen.predictions.logits)
    assert torch.equal(plain.boxes, seen.predictions.boxes)
