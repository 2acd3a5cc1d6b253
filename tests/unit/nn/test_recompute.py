"""Layers that are computed again in backward: the same gradients from less that is kept."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from detrove.models import catalogue, conditional, deformable, detr
from detrove.nn.recompute import recompute_layers
from detrove.structures import ImageBatch

TOY = {
    "num_classes": 3,
    "num_queries": 7,
    "backbone": "resnet18",
    "dim": 32,
    "num_heads": 4,
    "feedforward_dim": 64,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "dropout": 0.2,
}
FORMS = {
    "detr": replace(detr.Config(), **TOY),
    "deformable": replace(deformable.Config(), **TOY, refine=True),
    "conditional": replace(conditional.Config(), **TOY),
}


def gradients(model):
    images = ImageBatch.from_images([torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(1)).double()])
    torch.manual_seed(2)  # the dropout
    predictions = model(images)
    (predictions.logits.square().mean() + predictions.boxes.square().sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_gradients_with_dropout(form):
    torch.manual_seed(0)
    plain = catalogue.build(FORMS[form]).double().train()
    other = recompute_layers(copy.deepcopy(plain))
    assert list(other.state_dict()) == list(plain.state_dict())
    wanted, given = gradients(plain), gradients(other)
    assert given.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def kept_bytes(model):
    """What the graph of one forward holds, the same tensor once."""
    held = {}

    def pack(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(ImageBatch.from_images([torch.randn(3, 256, 256)]))
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in held.items() if key not in own)


def test_keeps_less():
    model = catalogue.build(FORMS["deformable"]).train()
    model.get_submodule("backbone").requires_grad_(False)
    before = kept_bytes(model)
    assert kept_bytes(recompute_layers(model)) < before / 2


def test_a_copy_is_its_own():
    model = recompute_layers(catalogue.build(FORMS["detr"]).eval())
    other = copy.deepcopy(model)
    images = ImageBatch.from_images([torch.randn(3, 64, 64)])
    before = other(images).logits
    torch.nn.init.normal_(model.get_parameter("encoder.0.feedforward.linear1.weight"))
    assert torch.equal(other(images).logits, before)
