"""A trunk without gradients is computed folded in training: the same maps, whatever becomes of its weights."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from detrove.nn.backbone import Backbone
from detrove.nn.fixed_trunk import FixedTrunk
from detrove.nn.recording import recording
from detrove.structures import ImageBatch

IMAGES = ImageBatch.from_images(list(torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))))


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    made = Backbone("resnet18", (16, 32))
    for norm in made.body.modules():
        if hasattr(norm, "running_var"):
            norm.running_mean.normal_(0, 0.3)  # pyright: ignore
            norm.running_var.uniform_(0.5, 2.0)  # pyright: ignore
            norm.weight.data.uniform_(0.5, 1.5)  # pyright: ignore
    return made.requires_grad_(False).train()


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Every trunk that a pass was computed folded for."""
    used = []
    compute = FixedTrunk.__call__
    monkeypatch.setattr(FixedTrunk, "__call__", lambda *given: used.append(given[1]) or compute(*given))
    return used


def maps(backbone: Backbone) -> list[Tensor]:
    return [level.features for level in backbone(IMAGES)]


def plain(backbone: Backbone) -> list[Tensor]:
    features = backbone.body(IMAGES.pixels)
    return [features[index] for index in backbone.indices]


def assert_same(given: list[Tensor], wanted: list[Tensor]) -> None:
    for one, other in zip(given, wanted, strict=True):
        assert one.std() > 0
        assert ((one - other).abs().max() / other.abs().max()).item() < 2e-5


def test_the_same_maps(backbone: Backbone, folded: list[nn.Module]) -> None:
    assert_same(maps(backbone), plain(backbone))
    assert folded == [backbone.body]


def test_what_is_loaded_later_counts(backbone: Backbone, folded: list[nn.Module]) -> None:
    before = maps(backbone)
    backbone.body.load_state_dict({key: 0.9 * value for key, value in backbone.body.state_dict().items()})
    after = maps(backbone)
    assert_same(after, plain(backbone))
    assert not torch.allclose(before[-1], after[-1], rtol=0.01)
    assert len(folded) == 2


def test_it_is_folded_once(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    maps(backbone)
    monkeypatch.setattr("detrove.nn.fixed_trunk.fold_trunk", None)
    assert_same(maps(backbone), plain(backbone))


def test_a_trunk_that_learns_gets_its_gradients(backbone: Backbone, folded: list[nn.Module]) -> None:
    last = list(backbone.body.parameters())[-1].requires_grad_()
    maps(backbone)[-1].sum().backward()
    assert last.grad is not None
    assert last.grad.abs().max() > 0
    assert not folded


def test_pixels_that_want_a_gradient_get_one(backbone: Backbone, folded: list[nn.Module]) -> None:
    pixels = IMAGES.pixels.clone().requires_grad_()
    levels = backbone(ImageBatch(pixels, IMAGES.padding_mask, IMAGES.sizes))
    levels[-1].features.sum().backward()
    assert pixels.grad is not None
    assert not folded


def test_what_answers_or_is_recorded_stays_as_it_is(backbone: Backbone, folded: list[nn.Module]) -> None:
    with recording(backbone):
        maps(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        maps(backbone)
    assert torch.equal(maps(backbone.eval())[-1], plain(backbone)[-1])
    assert not folded


def test_copies_and_states_know_nothing_of_it(backbone: Backbone) -> None:
    names = list(backbone.state_dict())
    wanted = maps(backbone)
    assert list(backbone.state_dict()) == names
    for copied in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        copied.body.load_state_dict({key: 0.9 * value for key, value in copied.body.state_dict().items()})
        assert_same(maps(copied), plain(copied))
    assert_same(maps(backbone), wanted)
