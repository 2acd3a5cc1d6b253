"""Convolutions by tiles against torch's own in float64, and where folding takes them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("numba")

from detrove.nn import folding, winograd
from detrove.nn.eager import onednn_computes
from detrove.nn.folding import FoldedConvolution
from detrove.nn.winograd import WinogradConvolution, filters_at_points

pytestmark = pytest.mark.skipif(not onednn_computes(torch.zeros(1)), reason="this torch has no oneDNN")


def random_parts(batch: int, channels: int, out: int, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(out, channels, 3, 3, generator=generator) / math.sqrt(9 * channels)
    return x, weight, torch.randn(out, generator=generator)


def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.double(), weight.double(), bias.double(), padding=1)


SHAPES = [
    (1, 16, 16, 1, 1),
    (1, 16, 32, 4, 4),
    (2, 32, 16, 5, 7),
    (3, 16, 48, 3, 18),
    (1, 48, 16, 26, 2),
    (2, 128, 160, 23, 31),
]


@pytest.mark.parametrize("at_once", [1, 7, 64])
@pytest.mark.parametrize("shape", SHAPES)
def test_as_the_plain_sum(shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", at_once)
    x, weight, bias = random_parts(*shape)
    wanted = exact(x, weight, bias)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        found = WinogradConvolution(weight, bias)(given)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, wanted.float(), rtol=0, atol=1e-5)
        assert torch.equal(WinogradConvolution(weight, bias)(given, relu=True), found.relu())


def test_rounding_is_near_that_of_the_plain_sum() -> None:
    x, weight, bias = random_parts(1, 256, 256, 40, 40)
    wanted = exact(x, weight, bias)
    ours = (WinogradConvolution(weight, bias)(x) - wanted).square().mean().sqrt()
    plain = (F.conv2d(x, weight, bias, padding=1) - wanted).square().mean().sqrt()
    assert ours < 8 * plain  # at the usual points, 0, ±1 and ±2, it is 12


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_bits_for_any_number_of_threads(threads: int) -> None:
    x, weight, bias = random_parts(2, 32, 32, 30, 30)
    before = torch.get_num_threads()
    wanted = WinogradConvolution(weight, bias)(x)
    torch.set_num_threads(threads)
    try:
        assert torch.equal(WinogradConvolution(weight, bias)(x), wanted)
    finally:
        torch.set_num_threads(before)


def test_what_is_not_a_number_stays_in_its_tiles() -> None:
    x, weight, bias = random_parts(1, 16, 16, 16, 16)
    x[0, 3, 6, 6] = math.nan
    for relu in (False, True):
        bad = WinogradConvolution(weight, bias)(x, relu).isnan()
        assert bad[0, :, 5:8, 5:8].all()
        assert not bad[0, :, 8:].any()
        assert not bad[0, :, :4].any()


def test_a_filter_of_one_cell_has_known_values() -> None:
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 0] = 1.0
    values = filters_at_points(weight).view(6, 6)
    side = torch.tensor([1.0, -2 / 3, -2 / 3, 1 / 6, 1 / 6, 0.0])
    torch.testing.assert_close(values, side[:, None] * side)


def folded(convolution: nn.Conv2d, activation: nn.Module | None = None) -> FoldedConvolution:
    made = FoldedConvolution(convolution, convolution.weight, torch.zeros(convolution.out_channels))
    made.activation = activation
    return made


@pytest.fixture
def by_tiles(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Every map that was computed so."""
    computed = []
    compute = WinogradConvolution.__call__
    monkeypatch.setattr(
        WinogradConvolution, "__call__", lambda *given, **named: computed.append(given[1]) or compute(*given, **named)
    )
    return computed


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU()])
@pytest.mark.parametrize("with_shortcut", [False, True])
@torch.inference_mode()
def test_folding_takes_it(activation: nn.Module | None, with_shortcut: bool, by_tiles: list[Tensor]) -> None:
    convolution = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    x = torch.randn(2, 128, 15, 14).contiguous(memory_format=torch.channels_last)
    shortcut = torch.randn(2, 128, 15, 14) if with_shortcut else None
    kept = None if shortcut is None else shortcut.clone()
    wanted = convolution(x) if shortcut is None else convolution(x) + shortcut
    wanted = wanted if activation is None else activation(wanted)
    torch.testing.assert_close(folded(convolution, activation)(x, shortcut), wanted, rtol=1e-5, atol=1e-5)
    assert shortcut is None or torch.equal(shortcut, kept)
    assert len(by_tiles) == 1


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"stride": 2}, 24),
        ({"dilation": 2, "padding": 2}, 24),
        ({"padding": 0}, 24),
        ({"groups": 2}, 24),
        ({"kernel_size": 1, "padding": 0}, 24),
        ({"in_channels": 64}, 24),
        ({"out_channels": 136}, 24),
        ({}, 20),
    ],
)
@torch.inference_mode()
def test_folding_leaves_the_rest_to_onednn(options: dict, size: int, by_tiles: list[Tensor]) -> None:
    geometry = {"in_channels": 128, "out_channels": 128, "kernel_size": 3, "padding": 1, "bias": False}
    convolution = nn.Conv2d(**(geometry | options))
    x = torch.randn(1, convolution.in_channels, size, size)
    torch.testing.assert_close(folded(convolution)(x), convolution(x), rtol=1e-5, atol=1e-5)
    assert not by_tiles


@torch.inference_mode()
def test_without_numba_onednn_computes(monkeypatch: pytest.MonkeyPatch, by_tiles: list[Tensor]) -> None:
    monkeypatch.setattr(folding, "_numba_is_installed", lambda: False)
    convolution = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    x = torch.randn(1, 128, 24, 24)
    torch.testing.assert_close(folded(convolution)(x), convolution(x), rtol=1e-5, atol=1e-5)
    assert not by_tiles
