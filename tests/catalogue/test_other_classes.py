"""Every detector started from weights trained on other classes: what it knew of the shared ones it still knows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrove.checkpoints import HeadReport, fit_heads, load_weights, objectness_keys
from detrove.checkpoints.weights import head_keys
from detrove.models import catalogue, deformable, detrove, dino
from detrove.structures import Category, ImageBatch, LabelMap, Predictions


def labels(names: str) -> LabelMap:
    return LabelMap(tuple(Category(index, name) for index, name in enumerate(names.split())))


@pytest.fixture
def source(model: nn.Module) -> nn.Module:
    """A detector of the classes a b c d whose class heads differ from layer to layer, but where they are shared."""
    state = model.state_dict()
    for key in head_keys(state):
        state[key].add_(torch.randn_like(state[key]))
    return model.eval()


def started(source: nn.Module, config: Any, names: str) -> tuple[nn.Module, HeadReport]:
    """A fresh detector of the classes `names`, started from `source`."""
    torch.manual_seed(1)
    target = labels(names)
    model = catalogue.build(replace(config, num_classes=len(target))).eval()
    tensors, report = fit_heads(
        source.state_dict(), model.state_dict(), labels("a b c d"), target, objectness_keys(model)
    )
    load_weights(model, tensors)
    return model, report


@torch.no_grad()
def predicted(model: nn.Module, images: ImageBatch) -> Predictions:
    return model(images)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_classes_in_another_order_give_the_same_predictions_in_that_order(
    source: nn.Module, config: Any, images: ImageBatch
) -> None:
    model, report = started(source, config, "c a d b")
    before, after = predicted(source, images), predicted(model, images)
    rows = [2, 0, 3, 1, *range(4, before.logits.shape[-1])]  # "no object" stays last
    assert_equal(after.boxes, before.boxes)
    assert_equal(after.logits, before.logits[..., rows])
    if before.encoder is not None and after.encoder is not None:
        objectness = isinstance(config, deformable.Config)
        assert_equal(after.encoder.logits, before.encoder.logits if objectness else before.encoder.logits[..., rows])
    assert report == HeadReport(("c", "a", "d", "b"), (), ())
    two_stage = isinstance(config, deformable.Config) and config.two_stage
    assert objectness_keys(model) == ({"class_heads.2.weight", "class_heads.2.bias"} if two_stage else set())


def test_among_others_shared_classes_are_kept_and_new_ones_start_as_the_models_own(
    source: nn.Module, config: Any, images: ImageBatch
) -> None:
    model, report = started(source, config, "new d other b more")
    assert report == HeadReport(("d", "b"), ("new", "other", "more"), ("a", "c"))
    torch.manual_seed(1)
    fresh = catalogue.build(replace(config, num_classes=5)).state_dict()
    known, state = source.state_dict(), model.state_dict()
    named = head_keys(state) - objectness_keys(model)
    assert named
    for key in named:
        assert_equal(state[key][[0, 2, 4]], fresh[key][[0, 2, 4]])
        assert_equal(state[key][[1, 3]], known[key][[3, 1]])
        assert_equal(state[key][5:], known[key][4:])  # "no object" of a softmax

    before, after = predicted(source, images), predicted(model, images)
    if isinstance(config, dino.Config):  # its queries are the tokens of the best class, and it tells of no others
        return
    if isinstance(config, detrove.Config):  # its queries are the cells of the best class, whichever that is
        assert before.encoder is not None
        assert after.encoder is not None
        before, after = before.encoder, after.encoder
    assert_equal(after.boxes, before.boxes)
    assert_equal(after.logits[..., [1, 3]], before.logits[..., [3, 1]])
    assert_equal(after.logits[..., 5:], before.logits[..., 4:])
