"""The torch engine answers as the model does: every detector, padded and not, and never changes the model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from detrove.inference.engines.torch import TorchEngine
from detrove.structures import ImageBatch, Predictions


@torch.inference_mode()
def answers(model: nn.Module, images: ImageBatch) -> Predictions:
    return model.eval()(images)


@pytest.mark.parametrize("padded", [True, False])
def test_it_gives_the_models_last_layer(model: nn.Module, images: ImageBatch, padded: bool) -> None:
    if not padded:
        images = ImageBatch.from_images(list(images.pixels[:2]))
    engine, wanted = TorchEngine(model), answers(model, images)
    for _ in range(2):
        given = engine(images)
        assert given.logits.shape == wanted.logits[-1:].shape
        torch.testing.assert_close(given.logits, wanted.logits[-1:], rtol=0, atol=1e-4)
        torch.testing.assert_close(given.boxes, wanted.boxes[-1:], rtol=0, atol=1e-4)


def test_it_leaves_the_model_alone(model: nn.Module, images: ImageBatch) -> None:
    model.train()
    before = copy.deepcopy(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    TorchEngine(model)(images)
    assert model.training
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_bfloat16_stays_near(model: nn.Module, config: object, images: ImageBatch, monkeypatch) -> None:
    """Two stages may choose other proposals, so their queries are not the same ones."""
    if getattr(config, "two_stage", False) or type(config).__module__.endswith((".dino", ".detrove")):
        pytest.skip("chooses its queries by their scores")
    monkeypatch.setattr("detrove.inference.engines.torch.cpu_computes_bfloat16", lambda: True)
    engine, wanted = TorchEngine(model, "bfloat16"), answers(model, images)
    given = engine(images)
    assert given.logits.dtype == given.boxes.dtype == torch.float32
    difference = (given.boxes - wanted.boxes[-1:]).abs()
    assert difference.median() < 0.01
    assert not torch.equal(given.boxes, wanted.boxes[-1:])
