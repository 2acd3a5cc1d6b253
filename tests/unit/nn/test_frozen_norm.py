"""Fixed norms computed by the convolutions before them: the same maps and gradients, the same names and tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from detrove.nn.backbone import create_body, freeze
from detrove.nn.frozen_norm import FixedNorm, NormedConv2d, compute_norms_apart, compute_norms_in_convolutions

TRUNKS = ["resnet18", "mobilenetv2_100", "mobilenetv4_conv_small", "efficientnet_b0", "resnetv2_50"]
"""The last one norms before it convolves, and uses some maps a second time."""


@torch.no_grad()
def settled(name: str) -> nn.Module:
    """A frozen trunk in float64 with statistics and weights as of a trained one: none is 0 or 1."""
    torch.manual_seed(0)
    body = create_body(name)
    for key, tensor in body.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif tensor.dim() == 1:
            tensor.add_(0.1 * torch.randn_like(tensor))
    return freeze(body).double()


def maps_and_gradients(body: nn.Module) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    torch.manual_seed(1)
    maps = body.eval()(torch.randn(2, 3, 96, 64, dtype=torch.float64))
    sum((x * torch.randn_like(x)).sum() for x in maps).backward()
    return maps, {name: p.grad for name, p in body.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", TRUNKS)
def test_the_same_maps_and_gradients(name):
    plain = settled(name)
    quick = compute_norms_in_convolutions(copy.deepcopy(plain))
    wanted, given = maps_and_gradients(plain), maps_and_gradients(quick)
    torch.testing.assert_close(given[0], wanted[0], rtol=1e-9, atol=1e-9)
    assert len(wanted[1]) > 10
    assert given[1].keys() == wanted[1].keys()
    for key, gradient in wanted[1].items():
        assert (given[1][key] - gradient).norm() <= 1e-9 * gradient.norm(), key


@pytest.mark.parametrize("name", TRUNKS[:-1])
def test_every_norm_is_computed(name):
    body = compute_norms_in_convolutions(settled(name))
    norms = [module for module in body.modules() if isinstance(module, FixedNorm)]
    convolutions = [module for module in body.modules() if isinstance(module, NormedConv2d)]
    assert {id(convolution.norm[0]) for convolution in convolutions} == {id(norm) for norm in norms}


def test_names_modes_and_the_random_state_stay():
    body = settled("mobilenetv2_100").train()
    keys, state = list(body.state_dict()), torch.get_rng_state()
    compute_norms_in_convolutions(body)
    assert list(body.state_dict()) == keys
    assert all(module.training for module in body.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_and_back():
    plain = settled("mobilenetv2_100")
    back = compute_norms_apart(compute_norms_in_convolutions(copy.deepcopy(plain)))
    assert [type(module) for module in back.modules()] == [type(module) for module in plain.modules()]
    pixels = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert all(torch.equal(a, b) for a, b in zip(back.eval()(pixels), plain.eval()(pixels), strict=True))


def test_a_copy_has_norms_of_its_own():
    body = compute_norms_in_convolutions(settled("resnet18"))
    other = copy.deepcopy(body)
    pixels = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    before = other(pixels)[-1]
    with torch.no_grad():
        for key, tensor in body.state_dict().items():
            if key.endswith("running_mean"):
                tensor.add_(1.0)
    assert torch.equal(other(pixels)[-1], before)
    assert not torch.allclose(body(pixels)[-1], before)


class Shared(nn.Module):
    """Two convolutions with norms; the map of the first goes on past its norm as well."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, bias=True)
        self.norm1, self.norm2 = FrozenBatchNorm2d(4), FrozenBatchNorm2d(4)

    def forward(self, x):
        x = self.first(x)
        return [x + self.norm2(self.second(self.norm1(x)))]


def test_a_map_that_is_used_elsewhere_is_left_alone():
    body = Shared()
    with torch.no_grad():
        for norm in (body.norm1, body.norm2):
            norm.running_mean.fill_(0.7)
            norm.running_var.fill_(3.0)
    x = torch.randn(2, 3, 5, 5)
    before = body(x)[0]
    compute_norms_in_convolutions(body)
    assert type(body.first) is nn.Conv2d
    assert isinstance(body.second, NormedConv2d)  # which has a bias of its own
    torch.testing.assert_close(body(x)[0], before)
