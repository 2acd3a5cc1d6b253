"""Linear layers through oneDNN: torch's own results and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detrove.nn import linear as module
from detrove.nn.linear import Linear, linear

FORMS = {
    "tokens": lambda: torch.randn(2, 9, 6),
    "rows": lambda: torch.randn(18, 6),
    "transposed": lambda: torch.randn(2, 6, 9).transpose(1, 2),
    "expanded": lambda: torch.randn(1, 9, 6).expand(2, -1, -1),
    "a part": lambda: torch.randn(2, 9, 8)[..., 1:7],
}


@pytest.fixture
def by_onednn(monkeypatch):
    """Every layer of float32 goes through oneDNN, and the calls are counted."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    calls = []
    product = module._product
    monkeypatch.setattr(module, "SMALLEST_PRODUCT", 1)
    monkeypatch.setattr(module, "_product", lambda *tensors: calls.append(tensors) or product(*tensors))
    return calls


@pytest.mark.parametrize("width", [5, 7])  # of layers that narrow, the weight's gradient is oneDNN's too
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_outputs_and_gradients(form, bias, width, by_onednn):
    torch.manual_seed(0)
    x, layer = FORMS[form](), torch.nn.Linear(6, width, bias=bias)
    gradient = torch.randn(width, *x.shape[:-1]).movedim(0, -1)  # not contiguous
    found = []
    for function in (linear, F.linear):
        leaves = [x.detach().requires_grad_(), *(p.detach().clone().requires_grad_() for p in layer.parameters())]
        output = function(leaves[0], leaves[1], leaves[2] if bias else None)
        output.backward(gradient)
        found.append([output.detach(), *(leaf.grad for leaf in leaves)])
    assert len(by_onednn) == (3 if width < 6 else 2)
    for given, wanted in zip(*found, strict=True):
        torch.testing.assert_close(given, wanted)


def test_only_wanted_gradients(by_onednn):
    layer = Linear(6, 5).requires_grad_(False)
    x = torch.randn(3, 6, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    torch.testing.assert_close(x.grad, layer.weight.sum(dim=0).expand(3, -1))
    assert by_onednn


def test_leaves_the_rest_to_torch(by_onednn):
    weight = torch.randn(5, 6)
    linear(torch.randn(3, 6).double(), weight.double(), None)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(3, 6), weight, None).dtype == torch.bfloat16
    torch.func.vmap(lambda x: linear(x, weight, None))(torch.randn(3, 2, 6))
    torch.export.export(Linear(6, 5), (torch.randn(3, 6),))
    assert not by_onednn


def test_small_products_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(module, "_product", None)
    assert linear(torch.randn(8, 6), torch.randn(5, 6), None).shape == (8, 5)
