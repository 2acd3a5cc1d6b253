"""A folded trunk gives the maps of the trunk that it was made from."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import nn

from detrove.nn import folding
from detrove.nn.eager import onednn_computes
from detrove.nn.folding import NORMS, FoldedConvolution, fold_trunk, folded_weights
from detrove.nn.frozen_norm import NormedConv2d, compute_norms_in_convolutions


def trunk(name: str, frozen: bool) -> nn.Module:
    """With norms that do something: statistics and weights of a trained trunk are nowhere near 0 and 1."""
    torch.manual_seed(0)
    body = timm.create_model(name, features_only=True).eval()
    with torch.no_grad():
        for module in body.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
    return (freeze_batch_norm_2d(body) if frozen else body).to(memory_format=torch.channels_last)  # pyright: ignore


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max()).item()


PICTURES = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv2_100", "mobilenetv4_conv_small", "regnetx_002"])
@torch.inference_mode()
def test_folding_changes_no_map(name: str, frozen: bool) -> None:
    body = trunk(name, frozen)
    folded = fold_trunk(body)
    kinds = [type(module) for module in folded.modules()]
    assert kinds.count(FoldedConvolution) > 15
    assert not [kind for kind in kinds if "BatchNorm" in kind.__name__]
    pixels = PICTURES.contiguous(memory_format=torch.channels_last)
    for given, wanted in zip(folded(pixels), body(pixels), strict=True):
        assert given.std() > 0
        assert relative_difference(given, wanted) < 2e-5


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "regnetx_002"])
@torch.inference_mode()
def test_norms_that_convolutions_compute_already_fold_as_well(name: str) -> None:
    """Frozen trunks come so from `Backbone`."""
    wanted = trunk(name, frozen=True)(PICTURES)
    folded = fold_trunk(compute_norms_in_convolutions(trunk(name, frozen=True)))
    assert not [module for module in folded.modules() if isinstance(module, (NormedConv2d, *NORMS))]
    for one, other in zip(folded(PICTURES), wanted, strict=True):
        assert relative_difference(one, other) < 2e-5


@torch.inference_mode()
def test_without_onednn_it_gives_the_same() -> None:
    body = trunk("mobilenetv2_100", frozen=True)
    with torch.backends.mkldnn.flags(enabled=False):
        given = fold_trunk(body)(PICTURES)
    for one, other in zip(given, body(PICTURES), strict=True):
        assert relative_difference(one, other) < 2e-5


@torch.inference_mode()
def test_a_second_picture_of_another_size() -> None:
    """Weights are packed for the first one; sums in place must not have touched anything that is used again."""
    body = trunk("resnet50", frozen=True)
    folded = fold_trunk(body)
    for pixels in (PICTURES, torch.flip(PICTURES, [0])[:1, :, :70], PICTURES):
        for given, wanted in zip(folded(pixels), body(pixels), strict=True):
            assert relative_difference(given, wanted) < 2e-5


@torch.inference_mode()
def test_a_weight_lies_as_each_size_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "MOST_SHAPES", 2)
    convolution = nn.Conv2d(512, 2048, 1, bias=False)
    folded = FoldedConvolution(convolution, convolution.weight, torch.zeros(2048))
    sizes = [(15, 20), (30, 40), (3, 4), (15, 20)]
    if not onednn_computes(torch.zeros(1)):
        pytest.skip("this torch has no oneDNN")
    for size in sizes:
        x = torch.randn(1, 512, *size).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(folded(x), convolution(x), rtol=1e-5, atol=1e-5)
        wanted = folding._reorder(convolution.weight.contiguous().to_mkldnn(), [0, 0], [1, 1], [1, 1], 1, list(x.shape))
        assert folding._layout_of(folded._packed_for(x)) == folding._layout_of(wanted)
    assert 1 <= len(folded._layouts) <= 3
    assert len(folded._for_shapes) <= 2
    assert folded.weight is None


def test_folding_leaves_the_trunk_alone() -> None:
    body = trunk("resnet18", frozen=True)
    before = {key: value.clone() for key, value in body.state_dict().items()}
    fold_trunk(body)
    after = body.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_weights_fold_in_float64() -> None:
    """Against the formula in float64, to float32's last digit."""
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm2d(4, eps=1e-3).eval()
    norm.running_mean = torch.randn(4, generator=generator)
    norm.running_var = 1e-4 + torch.rand(4, generator=generator)
    weight, bias = torch.randn(4, 2, 3, 3, generator=generator), torch.randn(4, generator=generator)
    folded, shifted = folded_weights(weight, bias, norm)
    scale = 1 / (norm.running_var.double() + norm.eps).sqrt()
    assert torch.equal(folded, (weight.double() * scale.view(4, 1, 1, 1)).float())
    torch.testing.assert_close(shifted, ((bias - norm.running_mean).double() * scale).float(), rtol=1e-6, atol=1e-6)


class Broadcasting(nn.Module):
    """Adds one value a channel to a map: a sum that no convolution can do as its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.context = nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.convolution(x)
        return [x + self.context(x.mean((2, 3), keepdim=True))]


class Shared(nn.Module):
    """One convolution called twice, with a norm behind only one of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.convolution = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.convolution(self.stem(x))
        return [self.norm(self.convolution(x)), x]


class KeepsShortcut(nn.Module):
    """Gives out the shortcut of a sum as well, so that the sum must not be written over it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.convolution = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.stem(x)
        return [x, (self.convolution(x) + x).relu()]


@pytest.mark.parametrize("kind", [Broadcasting, Shared, KeepsShortcut])
@torch.inference_mode()
def test_traps(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    body = kind().eval()
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(8)
    for given, wanted in zip(fold_trunk(body)(PICTURES), body(PICTURES), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [self.convolution(x)] if x.sum() < 0 else [self.convolution(-x)]


@torch.inference_mode()
def test_a_trunk_that_cannot_be_traced_stays_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    body = Untraceable()
    with caplog.at_level(logging.WARNING):
        folded = fold_trunk(body)
    assert "Untraceable cannot be traced" in caplog.text
    assert torch.equal(folded(PICTURES)[0], body(PICTURES)[0])
