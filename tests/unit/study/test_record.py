"""`record` over a detector: what is kept, by which names, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import detrove
from detrove.errors import InputError
from detrove.nn.recording import active_recorder
from detrove.structures import ImageBatch, Targets
from detrove.study.record import Place, place_of


def test_predicting_inside_the_block_is_recorded(toy_detector, picture):
    detector = toy_detector("conditional-nano")
    plain = detector.predict(picture)
    with detrove.record(detector) as seen:
        found = detector.predict(picture)
    assert torch.equal(found.boxes, plain.boxes)
    assert torch.equal(found.scores, plain.scores)
    assert seen.shape_of("encoder.0.self_attention") == (3, 3)
    assert seen.dense["encoder.0.self_attention"].attention.shape == (1, 4, 9, 9)
    assert seen.dense["decoder.1.cross_attention"].attention.shape == (1, 4, 7, 9)
    assert seen.boxes().shape == (2, 1, 7, 4)
    assert seen.matches is None
    with pytest.raises(ValueError, match="at queries"):
        seen.shape_of("decoder.1.self_attention")


def test_it_leaves_the_detector_as_it_was(toy_detector, picture):
    detector = toy_detector("detr-nano")
    with detrove.record(detector):
        pass
    assert active_recorder() is None
    assert not detector.model._forward_hooks
    assert not detector.model._forward_pre_hooks
    assert not detector.model.get_submodule("backbone")._forward_hooks


def test_the_last_pass_is_kept(toy_detector, picture):
    detector = toy_detector("detr-nano")
    with detrove.record(detector) as seen:
        detector.predict(picture.resize((64, 128)))
        detector.predict(picture)
    assert len(seen.dense) == 2 + 2 * 2
    assert seen.shape_of("encoder.1.self_attention") == (3, 3)


def test_only_what_is_asked_for(toy_detector, picture):
    detector = toy_detector("dab-nano")
    with detrove.record(detector, only=["decoder.1"]) as seen:
        detector.predict(picture)
    assert list(seen.dense) == ["decoder.1.self_attention", "decoder.1.cross_attention"]
    assert list(seen.layers) == list(seen.anchors) == ["decoder.1"]
    assert all(entry.parts is not None for entry in seen.dense.values())
    with detrove.record(detector, only=["encoder.0.self_attention"]) as seen:
        detector.predict(picture)
    assert list(seen.dense) == ["encoder.0.self_attention"]
    assert seen.dense["encoder.0.self_attention"].parts is not None


def test_matches_with_targets(toy_detector):
    model = toy_detector("deformable-nano").model
    images = ImageBatch.from_images([torch.randn(3, 64, 96)] * 2)
    targets = [
        Targets(torch.tensor([1, 0]), torch.rand(2, 4) / 3 + 0.3),
        Targets(torch.zeros(0).long(), torch.zeros(0, 4)),
    ]
    with torch.no_grad(), detrove.record(model, targets) as seen:
        model(images)
    assert seen.matches is not None
    assert seen.matches.query.shape == (2, 2)
    assert (seen.matches.picture == 0).all()
    refused = pytest.raises(InputError, match="2 pictures were looked at, targets given for 1")
    with torch.no_grad(), refused, detrove.record(model, targets[:1]):
        model(images)


def test_nothing_inside_and_nothing_to_record(toy_detector):
    detector = toy_detector("detr-nano")
    with detrove.record(detector) as seen:
        pass
    with pytest.raises(InputError, match="nothing was recorded: call"):
        seen.boxes()
    detector.engine = lambda images: images
    with (
        pytest.raises(InputError, match="study the weights that it came from, as `load` gives them"),
        detrove.record(detector),
    ):
        pass


def test_names_tell_the_place():
    assert place_of("encoder.3.self_attention") == Place("encoder", 3, "self")
    place = place_of("stacks.1.decoder.2.cross_attention")
    assert place == replace(Place("decoder", 2, "cross"), stack=1)
    assert place.layer_name == "stacks.1.decoder.2"
    with pytest.raises(ValueError, match="no attention block"):
        place_of("backbone.body")
