"""Reference points and boxes against loops over cells."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from detrove.nn.backbone import resize_mask
from detrove.nn.references import cell_centres, initial_proposals, inner_cells, move, valid_ratios
from detrove.structures import ImageBatch

SIZES = [(40, 64), (64, 33)]


@pytest.fixture
def masks() -> list[torch.Tensor]:
    padding_mask = ImageBatch.from_images([torch.zeros(3, *size) for size in SIZES]).padding_mask
    return [resize_mask(padding_mask, (64 // stride, 64 // stride)) for stride in (8, 16)]


def unpadded(mask):
    """Rows and columns of one picture's mask that are not padding."""
    rows = sum(1 for row in range(mask.shape[0]) if not mask[row, 0])
    columns = sum(1 for column in range(mask.shape[1]) if not mask[0, column])
    return rows, columns


def test_masks_are_resized_by_nearest_neighbour(masks):
    # 40 of 64 rows: 5 of 8; 33 of 64 columns: the cell that starts at 32 still begins inside
    assert [unpadded(masks[0][picture]) for picture in range(2)] == [(5, 8), (8, 5)]
    for level, stride in enumerate((8, 16)):
        for picture, (height, width) in enumerate(SIZES):
            for row in range(64 // stride):
                for column in range(64 // stride):
                    expected = row * stride >= height or column * stride >= width
                    assert masks[level][picture, row, column] == expected


def test_valid_ratios(masks):
    ratios = valid_ratios(masks, torch.float64)
    assert ratios.shape == (2, 2, 2)
    for picture in range(2):
        for level, mask in enumerate(masks):
            rows, columns = unpadded(mask[picture])
            assert ratios[picture, level].tolist() == [columns / mask.shape[2], rows / mask.shape[1]]


def test_cell_centres(masks):
    centres = cell_centres(masks, torch.float64)
    assert centres.shape == (2, 64 + 16, 2)
    for picture in range(2):
        expected = []
        for mask in masks:
            rows, columns = unpadded(mask[picture])
            for row in range(mask.shape[1]):
                expected += [[(column + 0.5) / columns, (row + 0.5) / rows] for column in range(mask.shape[2])]
        torch.testing.assert_close(centres[picture], torch.tensor(expected, dtype=torch.float64))


def test_proposals_only_where_there_is_picture(masks):
    unactivated, valid = initial_proposals(masks, torch.float64)
    centres = cell_centres(masks, torch.float64)
    padding = torch.cat([mask.flatten(1) for mask in masks], dim=1)
    for picture in range(2):
        for token in range(80):
            x, y = centres[picture, token].tolist()
            size = 0.05 if token < 64 else 0.1
            inside = all(0.01 < value < 0.99 for value in (x, y, size)) and not padding[picture, token]
            assert bool(valid[picture, token]) == inside
            if inside:
                expected = [math.log(value / (1 - value)) for value in (x, y, size, size)]
                expected = torch.tensor(expected, dtype=torch.float64)
                torch.testing.assert_close(unactivated[picture, token], expected, rtol=0, atol=1e-12)
            else:
                assert (unactivated[picture, token] == math.inf).all()


@pytest.mark.parametrize("cells", [1, 49, 50, 51, 150, 250])
def test_a_centre_at_the_bound_itself_is_outside_with_and_without_padding(cells):
    padding = torch.arange(cells + 14) >= cells
    expected = [Fraction(1, 100) < Fraction(2 * x + 1, 2 * cells) < Fraction(99, 100) for x in range(cells + 14)]
    wide = inner_cells(padding[None, None].expand(1, 3, -1)).reshape(3, cells + 14)
    high = inner_cells(padding[None, :, None].expand(1, -1, 3)).reshape(cells + 14, 3)
    assert wide[1].tolist() == high[:, 1].tolist() == expected
    assert expected[cells:] == [False] * 14


def test_a_point_moves_the_centre_only_and_a_box_all_of_it():
    delta = torch.tensor([0.3, -0.2, 0.5, -1.0])
    point, box = torch.tensor([0.2, 0.7]), torch.tensor([0.2, 0.7, 0.1, 0.4])

    def shifted(start, by):
        return 1 / (1 + math.exp(-(math.log(start / (1 - start)) + by)))

    expected = [shifted(start, by) for start, by in zip(box.tolist(), delta.tolist(), strict=True)]
    torch.testing.assert_close(move(box, delta), torch.tensor(expected))
    torch.testing.assert_close(move(point, delta)[:2], torch.tensor(expected[:2]))
    torch.testing.assert_close(move(point, delta)[2:], delta[2:].sigmoid())
    torch.testing.assert_close(move(box, torch.zeros(4)), box)


def test_epsilon_holds_a_reference_at_the_border():
    border = torch.tensor([0.0, 1.0, 0.5, 0.5])
    for epsilon in (1e-5, 1e-3):
        expected = torch.tensor([epsilon / (1 + epsilon), 1 / (1 + epsilon), 0.5, 0.5])
        torch.testing.assert_close(move(border, torch.zeros(4), epsilon), expected)
