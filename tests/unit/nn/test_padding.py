"""Padding counts for nothing: each picture of a padded batch gets what it gets alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrove.nn.backbone import Level, LevelProjection
from detrove.nn.padding import group_norm_in_picture, halve, zero_in_padding

SIZES = [(7, 4), (3, 9), (8, 9)]


def batch(channels: int, sizes: list[tuple[int, int]] = SIZES) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Maps alone, (1, C, h, w) each; the same in one batch beside noise, and its padding mask."""
    torch.manual_seed(0)
    alone = [torch.randn(1, channels, *size) for size in sizes]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    together = 50 * torch.randn(len(sizes), channels, height, width)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for index, (each, (rows, columns)) in enumerate(zip(alone, sizes, strict=True)):
        together[index, :, :rows, :columns] = each[0]
        mask[index, :rows, :columns] = False
    return alone, together, mask


def no_padding(x: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(x), *x.shape[-2:], dtype=torch.bool)


def test_the_padding_becomes_zero_and_nothing_else_changes() -> None:
    alone, together, mask = batch(3)
    zeroed = zero_in_padding(together, mask)
    assert not zeroed.movedim(1, -1)[mask].any()
    assert torch.equal(zeroed.movedim(1, -1)[~mask], together.movedim(1, -1)[~mask])
    assert zero_in_padding(alone[0], no_padding(alone[0])) is alone[0]


@pytest.mark.parametrize("groups", [1, 4])
def test_a_picture_is_normed_as_if_alone(groups: int) -> None:
    alone, together, mask = batch(8)
    norm = nn.GroupNorm(groups, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    normed = group_norm_in_picture(norm, together.requires_grad_(), mask)
    for index, (each, (rows, columns)) in enumerate(zip(alone, SIZES, strict=True)):
        torch.testing.assert_close(normed[index, :, :rows, :columns], norm(each)[0], rtol=1e-4, atol=1e-5)
        assert torch.equal(group_norm_in_picture(norm, each, no_padding(each)), norm(each))
    normed[0, :, :7, :4].square().sum().backward()
    assert together.grad is not None
    assert not together.grad.movedim(1, -1)[mask].any()


def test_gradients_are_those_of_a_norm_alone() -> None:
    norm = nn.GroupNorm(4, 8).double()
    nn.init.normal_(norm.weight)
    x = torch.randn(1, 8, 5, 6, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 5, 6, dtype=torch.bool)
    mask[:, :4, :3] = False
    weight = torch.randn(1, 8, 4, 3, dtype=torch.float64)
    (group_norm_in_picture(norm, x, mask)[..., :4, :3] * weight).sum().backward()
    given = [x.grad[..., :4, :3].clone(), norm.weight.grad.clone(), norm.bias.grad.clone()]
    x.grad, norm.weight.grad, norm.bias.grad = None, None, None
    (norm(x[..., :4, :3]) * weight).sum().backward()
    for one, other in zip(given, [x.grad[..., :4, :3], norm.weight.grad, norm.bias.grad], strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_half_precision_is_summed_in_full(own: torch.dtype) -> None:
    """Weights in float32, as in a training in mixed precision, or in bfloat16, as in an exported file."""
    torch.manual_seed(2)
    norm, x = nn.GroupNorm(1, 8), torch.randn(2, 8, 40, 40) + 30
    mask = torch.zeros(2, 40, 40, dtype=torch.bool)
    mask[1, 30:] = True
    x, exact = x.bfloat16(), nn.GroupNorm(1, 8).double()
    normed = group_norm_in_picture(norm.to(own), x, mask)
    assert normed.dtype == own
    expected = exact(x[1:, :, :30].double())[0].float()
    torch.testing.assert_close(normed[1, :, :30].float(), expected, rtol=1e-2, atol=1e-2)


def test_two_by_two_cells_become_one_and_a_border_stands_alone() -> None:
    alone, together, mask = batch(3)
    halved = halve(together, mask, (4, 5))
    for index, (each, (rows, columns)) in enumerate(zip(alone, SIZES, strict=True)):
        shape = -(-rows // 2), -(-columns // 2)
        own = halve(each, no_padding(each), shape)
        torch.testing.assert_close(halved[index, :, : shape[0], : shape[1]], own[0])
        for row in range(shape[0]):
            for column in range(shape[1]):
                window = each[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                torch.testing.assert_close(own[0, :, row, column], window.mean(dim=(1, 2)))


def test_a_trunk_that_drops_an_odd_border_is_halved_evenly() -> None:
    x = torch.randn(1, 3, 7, 9)
    assert halve(x, no_padding(x), (3, 4)).shape == (1, 3, 3, 4)


def test_levels_of_a_picture_do_not_depend_on_the_batch() -> None:
    sizes = [(12, 8), (8, 20), (16, 20)]  # in pixels 16 times as many
    alone, together, mask = batch(6, sizes)
    levels = LevelProjection([6], 32, 3, padding_counts=False)
    found = levels([Level(together, mask)], mask.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2))
    for index, each in enumerate(alone):
        own = levels([Level(each, no_padding(each))], torch.zeros(1, *(16 * side for side in sizes[index])).bool())
        for one, other in zip(found, own, strict=True):
            rows, columns = other.shape
            torch.testing.assert_close(one.features[index, :, :rows, :columns], other.features[0])
            assert not one.padding_mask[index, :rows, :columns].any()


def test_padding_counts_in_published_detectors() -> None:
    _, together, mask = batch(6, [(14, 8), (16, 18)])
    levels = LevelProjection([6], 32, 1)
    [level] = levels([Level(together, mask)], mask)
    assert torch.equal(level.features, levels.projections[0](together))
