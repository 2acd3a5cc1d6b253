"""Sampling points and a query's way through the layers, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.nn.recording import SampledAttention
from detrove.study.figures import around_points
from detrove.study.layers import queries_by_score, query_path, query_scores
from detrove.study.record import record
from detrove.study.sampling_points import SampledPoints, cell_of_level, heads_in_box, level_numbers, sampled_points

SHAPES = [(4, 8), (2, 4)]


@pytest.fixture(params=[2, 4])
def entry(request) -> SampledAttention:
    """Two queries, three heads, two levels, two points, around points or boxes."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1, 2, 3, 4, generator=generator).softmax(dim=-1).unflatten(-1, (2, 2))
    return SampledAttention(
        "decoder.0.cross_attention",
        torch.zeros(1, 40, 3, 4),
        torch.rand(1, 2, 3, 2, 2, 2, generator=generator) * 1.6 - 0.3,
        weights,
        torch.rand(1, 2, 1, request.param, generator=generator).expand(-1, -1, 2, -1),
        SHAPES,
    )


def test_level_numbers_against_plain_loops(entry):
    numbers = level_numbers(entry)
    for level, (height, width) in enumerate(SHAPES):
        total = offset_cells = offset = outside = in_box = 0.0
        for query in range(2):
            reference = entry.reference_points[0, query, level]
            for location, weight in zip(
                entry.locations[0, query, :, level].reshape(-1, 2),
                entry.weights[0, query, :, level].flatten(),
                strict=True,
            ):
                x, y = (location - reference[:2]).tolist()
                total += float(weight)
                offset_cells += float(weight) * np.hypot(x * width, y * height)
                offset += float(weight) * np.hypot(x, y * 0.5)
                outside += float(weight) * bool(((location < 0) | (location > 1)).any())
                if len(reference) == 4:
                    in_box += float(weight) * (abs(x) <= reference[2] / 2 and abs(y) <= reference[3] / 2)
        found = numbers[level]
        assert found.weight == pytest.approx(total / 6, rel=1e-5)
        assert found.offset_cells == pytest.approx(offset_cells / total, rel=1e-5)
        assert found.offset == pytest.approx(offset / total, rel=1e-5)
        assert found.outside == pytest.approx(outside / total, rel=1e-5)
        assert found.in_box is None if reference.shape[-1] == 2 else found.in_box == pytest.approx(in_box / total)
    assert sum(level.weight for level in numbers) == pytest.approx(1)
    alone = level_numbers(entry, [1])
    assert alone[0].weight == pytest.approx(float(entry.weights[0, 1, :, 0].sum() / 3))


def test_points_of_one_query(entry):
    points = sampled_points(entry, 1)
    np.testing.assert_array_equal(points.locations, entry.locations[0, 1].numpy())
    np.testing.assert_array_equal(points.reference, entry.reference_points[0, 1, 0].numpy())
    np.testing.assert_allclose(points.weights.sum(axis=(1, 2)), 1, rtol=1e-5)


def test_attention_inside_a_box_head_by_head(entry):
    points = sampled_points(entry, 1)
    box = np.array([0.45, 0.55, 0.6, 0.5])
    for head, share in enumerate(heads_in_box(points, box)):
        inside = total = 0.0
        for (x, y), weight in zip(points.locations[head].reshape(-1, 2), points.weights[head].ravel(), strict=True):
            total += weight
            if 0.15 <= x <= 0.75 and 0.3 <= y <= 0.8:
                inside += weight
        assert share == pytest.approx(inside / total)
    assert 0 < heads_in_box(points, box).mean() < 1
    np.testing.assert_allclose(heads_in_box(points, np.array([0.5, 0.5, 100.0, 100.0])), 1, rtol=1e-6)


def test_the_part_of_a_picture_that_points_reach():
    """A bright block lies under a point; on the part that is shown, it still does."""
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    pixels[9:15, 48:56] = 255
    block = np.array([52 / 80, 12 / 60])
    locations = np.broadcast_to(block, (1, 1, 2, 2)).copy()
    locations[0, 0, 1] = 0.9, 0.9  # nobody heeds it
    weights = np.array([[[0.995, 0.005]]])
    points = SampledPoints(locations, weights, np.array([0.6, 0.25, 0.2, 0.1]), [(6, 8)])
    part, shown = around_points(Image.fromarray(pixels), points)
    assert part.size == (80, 60)
    x, y = (shown.locations[0, 0, 0] * part.size).astype(int)
    assert np.asarray(part)[y, x].min() > 200
    assert np.asarray(part).mean() > 4 * pixels.mean()
    np.testing.assert_allclose(shown.reference[2:] / points.reference[2:], part.width / (0.22 * 80))
    weights[:] = 0.5
    whole, same = around_points(Image.fromarray(pixels), points)
    assert same is points
    assert whole.size == (80, 60)


def test_cells_of_levels():
    assert cell_of_level(SHAPES, 0, 0.0, 0.0) == 0
    assert cell_of_level(SHAPES, 0, 0.99, 0.99) == 31
    assert cell_of_level(SHAPES, 1, 0.3, 0.6) == 32 + 4 + 1
    assert cell_of_level(SHAPES, 1, 1.0, 1.0) == 39


@pytest.mark.parametrize("name", ["detr-nano", "dab-nano", "deformable-nano", "detrove-nano"])
def test_the_path_of_a_query(toy_detector, picture, name):
    detector = toy_detector(name)
    with record(detector) as seen:
        detector.predict(picture)
    scores = detector.model.config.scores
    order = queries_by_score(seen, scores)
    assert sorted(order) == list(range(7))
    path = query_path(seen, order[0], scores)
    probabilities = seen.predictions.logits[:, 0, order[0]]
    probabilities = probabilities.softmax(-1)[:, :-1] if scores == "softmax" else probabilities.sigmoid()
    np.testing.assert_allclose(path.scores, probabilities.amax(-1).numpy(), rtol=1e-5)
    assert path.scores[-1] == pytest.approx(float(query_scores(seen.predictions, scores)[0][-1, 0].max()))
    np.testing.assert_array_equal(path.boxes, seen.boxes()[:, 0, order[0]].numpy())
    assert path.overlaps[-1] == pytest.approx(1, abs=1e-5)
    assert len(path.anchors) == (0 if name == "detr-nano" else 2)
    if name == "detrove-nano":
        np.testing.assert_allclose(path.anchors[1], path.boxes[0], atol=1e-6)
