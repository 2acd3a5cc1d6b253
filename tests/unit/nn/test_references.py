"""Reference points and boxes against loops over cells."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from detrove.nn.backbone import resize_mask
from detrove.nn.references import (
    cell_boxes,
    cell_centres,
    initial_proposals,
    inner_cells,
    move,
    move_by_size,
    shares_in_pixels,
    valid_ratios,
)
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


SHAPES, STRIDES = [(8, 8), (4, 4)], [8, 16]


def test_shares_are_of_pixels_and_not_of_whole_cells():
    shares = shares_in_pixels(torch.tensor(SIZES), SHAPES, STRIDES, torch.float64)
    assert shares.tolist() == [[[width / 64, height / 64]] * 2 for height, width in SIZES]
    # a lone picture of 33 columns: the third cell of 16 reaches beyond it
    [[share]] = shares_in_pixels(torch.tensor([(64, 33)]), [(4, 3)], [16], torch.float64).tolist()
    assert share == [33 / 48, 1.0]


def test_every_cell_has_a_box_of_two_cells_where_it_lies():
    boxes = cell_boxes(torch.tensor(SIZES), SHAPES, STRIDES, torch.float64)
    assert boxes.shape == (2, 64 + 16, 4)
    for picture, (height, width) in enumerate(SIZES):
        expected = [
            [(column + 0.5) * stride / width, (row + 0.5) * stride / height, 2 * stride / width, 2 * stride / height]
            for (rows, columns), stride in zip(SHAPES, STRIDES, strict=True)
            for row in range(rows)
            for column in range(columns)
        ]
        torch.testing.assert_close(boxes[picture], torch.tensor(expected, dtype=torch.float64))


def test_a_step_is_the_same_in_pixels_wherever_and_however_large_the_picture():
    delta = torch.tensor([0.3, -0.2, 0.5, -1.0], dtype=torch.float64)
    steps = []
    for width, height, x, y in ((320, 240, 40, 100), (224, 300, 200, 30)):
        scale = torch.tensor([width, height, width, height], dtype=torch.float64)
        box = torch.tensor([x, y, 16, 24], dtype=torch.float64)
        moved = move_by_size(box / scale, delta) * scale
        steps.append(torch.cat((moved[:2] - box[:2], moved[2:] / box[2:])))
    expected = torch.tensor([0.3 * 16, -0.2 * 24, math.exp(0.5), math.exp(-1)], dtype=torch.float64)
    for step in steps:
        torch.testing.assert_close(step, expected)


def test_a_moved_box_stays_inside_and_learns_there_too():
    reference = torch.tensor([0.9, 0.1, 0.4, 0.4])
    delta = torch.tensor([2.0, -2.0, 50.0, 0.1], requires_grad=True)
    box = move_by_size(reference, delta)
    assert box[:3].tolist() == [1.0, 0.0, 1.0]
    assert torch.equal(box, move_by_size(reference, delta.detach()))
    box.sum().backward()
    assert delta.grad is not None
    assert delta.grad.tolist()[:2] == pytest.approx([0.4, 0.4])  # as if they were not cut off
    assert delta.grad[2] == 0.0  # grown more than a step allows
    assert delta.grad[3] == pytest.approx(0.4 * math.exp(0.1))
