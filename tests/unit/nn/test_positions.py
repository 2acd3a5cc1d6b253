"""Sine encodings against the formula written as loops."""

from __future__ import annotations

import math

import pytest
import torch

from detrove.nn.positions import level_encodings, sine_encoding, sine_of_anchors, sine_of_coordinates
from detrove.structures import ImageBatch


def plain_sines(angle, dim, temperature):
    values = []
    for index in range(dim):
        scaled = angle / temperature ** (2 * (index // 2) / dim)
        values.append(math.sin(scaled) if index % 2 == 0 else math.cos(scaled))
    return values


@pytest.mark.parametrize(("offset", "temperature"), [(0.0, 10000.0), (-0.5, 10000.0), (0.0, 20.0)])
def test_pixels_as_by_loops(offset, temperature):
    mask = ImageBatch.from_images([torch.zeros(3, 3, 5), torch.zeros(3, 4, 2)]).padding_mask
    encoding = sine_encoding(mask, 12, temperature, offset, torch.float64)
    assert encoding.shape == (2, 4, 5, 12)
    for picture, (height, width) in enumerate([(3, 5), (4, 2)]):
        for row in range(height):
            for column in range(width):
                y = (row + 1 + offset) / (height + 1e-6) * 2 * math.pi
                x = (column + 1 + offset) / (width + 1e-6) * 2 * math.pi
                expected = plain_sines(y, 6, temperature) + plain_sines(x, 6, temperature)
                torch.testing.assert_close(
                    encoding[picture, row, column], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12
                )


def test_coordinates_one_after_the_other():
    coordinates = torch.tensor([[0.1, 2.0, 3.0, 6.0]], dtype=torch.float64)
    expected = [value for angle in coordinates[0].tolist() for value in plain_sines(angle, 8, 10000.0)]
    torch.testing.assert_close(sine_of_coordinates(coordinates, 8)[0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("anchor", [[0.1, 0.7], [0.1, 0.7, 0.2, 0.4]])
def test_anchors_y_first(anchor):
    order = [1, 0, 2, 3][: len(anchor)]
    expected = [value for index in order for value in plain_sines(anchor[index] * 2 * math.pi, 8, 20.0)]
    given = sine_of_anchors(torch.tensor(anchor, dtype=torch.float64), 8, 20.0)
    torch.testing.assert_close(given, torch.tensor(expected, dtype=torch.float64))


def test_padding_does_not_change_the_picture():
    alone = sine_encoding(torch.zeros(1, 3, 5, dtype=torch.bool), 8)
    padded = torch.ones(1, 7, 9, dtype=torch.bool)
    padded[:, :3, :5] = False
    torch.testing.assert_close(sine_encoding(padded, 8)[:, :3, :5], alone)


def test_levels_one_after_the_other_with_their_embeddings():
    masks = [torch.zeros(2, 4, 5, dtype=torch.bool), torch.zeros(2, 2, 3, dtype=torch.bool)]
    masks[0][1, :, 3:] = True
    embedding = torch.randn(2, 8, dtype=torch.float64)
    given = level_encodings(masks, embedding, 20.0)
    assert given.shape == (2, 4 * 5 + 2 * 3, 8)
    for start, mask, row in ((0, masks[0], embedding[0]), (20, masks[1], embedding[1])):
        expected = sine_encoding(mask, 8, 20.0, -0.5, torch.float64).flatten(1, 2) + row
        torch.testing.assert_close(given[:, start : start + expected.shape[1]], expected)
