"""Linear layers through oneDNN: torch's own results and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detrove.nn import linear as module
from detrove.nn.linear import Linear, linear
from detrove.nn.transformer import FeedForward

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


@pytest.fixture(params=["product", "convolution"])
def of_weights(request, monkeypatch):
    """How many products a weight's gradient takes, in each of the ways to find it."""
    fewest = 10**9 if request.param == "product" else 1
    monkeypatch.setattr(module, "FEWEST_TOKENS_OF_A_CONVOLUTION", {"narrowing": fewest, "other": fewest})
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 1 if request.param == "product" else 0
    torch.set_num_threads(threads)


@pytest.mark.parametrize("width", [5, 7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_same_outputs_and_gradients(form, bias, width, by_onednn, of_weights):
    torch.manual_seed(0)
    x, layer = FORMS[form](), torch.nn.Linear(6, width, bias=bias)
    gradient = torch.randn(width, *x.shape[:-1]).movedim(0, -1)  # not contiguous
    found = []
    for function in (linear, F.linear):
        leaves = [x.detach().requires_grad_(), *(p.detach().clone().requires_grad_() for p in layer.parameters())]
        output = function(leaves[0], leaves[1], leaves[2] if bias else None)
        output.backward(gradient)
        found.append([output.detach(), *(leaf.grad for leaf in leaves)])
    assert len(by_onednn) == 2 + of_weights
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


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("form", FORMS)
def test_a_feed_forward_in_one_step(form, dropout, pieces, by_onednn, of_weights, monkeypatch):
    monkeypatch.setattr(module, "MOST_TOKENS_OF_A_PIECE", 7 if pieces > 1 else 18)
    torch.manual_seed(0)
    x, block = FORMS[form](), FeedForward(6, 8, dropout)
    gradient = torch.randn(6, *x.shape[:-1]).movedim(0, -1)
    found = []
    for smallest in (1, 10**9):
        monkeypatch.setattr(module, "SMALLEST_PRODUCT", smallest)
        torch.manual_seed(1)
        block.zero_grad()
        leaf = x.detach().requires_grad_()
        output = block(leaf)
        output.backward(gradient)
        found.append([output.detach(), leaf.grad, *(parameter.grad for parameter in block.parameters())])
    assert len(by_onednn) == pieces * (4 + 2 * of_weights + (pieces > 1))
    for given, wanted in zip(*found, strict=True):
        torch.testing.assert_close(given, wanted)


def test_a_feed_forward_in_one_step_computes_only_wanted_gradients(by_onednn):
    block = FeedForward(6, 8)
    block.linear1.requires_grad_(False)
    block.linear2.bias.requires_grad_(False)
    block(torch.randn(3, 6)).sum().backward()
    assert [name for name, parameter in block.named_parameters() if parameter.grad is not None] == ["linear2.weight"]


def test_a_feed_forward_that_somebody_listens_to_calls_its_parts(by_onednn):
    block, heard = FeedForward(6, 8), []
    block.activation.register_forward_hook(lambda *_: heard.append(1))
    block(torch.randn(3, 6))
    assert heard
