"""The grid of one block: what stands where, its numbers against plain loops, and what heads cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detrove.structures import ImageBatch
from detrove.study.qkva_grid import (
    QKVAGrid,
    attention_cost,
    head_numbers,
    measured_attention_cost,
    place_share,
    principal_colours,
    qkva_grid,
    sameness,
)
from detrove.study.record import record


@pytest.fixture
def seen(toy_detector, picture):
    detector = toy_detector("detr-nano")
    with record(detector) as recording:
        detector.predict(picture.crop((0, 0, 128, 64)))  # a map of 2 by 3 cells
    return recording


def grid_of(attention: np.ndarray) -> QKVAGrid:
    """A grid with this attention (M, N, h, w) and nothing else."""
    num_heads, _, height, width = attention.shape
    nothing = np.zeros((num_heads, height, width, 2), dtype=np.float32)
    return QKVAGrid("encoder.0.self_attention", nothing, nothing, nothing, attention.astype(np.float32))


def test_every_vector_stands_at_its_cell(seen):
    name = "encoder.1.self_attention"
    grid, entry = qkva_grid(seen, name), seen.dense[name]
    assert grid.shape == (2, 3)
    assert grid.num_heads == 4
    for row in range(2):
        for column in range(3):
            token = row * 3 + column
            np.testing.assert_array_equal(grid.query[:, row, column], entry.query[0, :, token].numpy())
            np.testing.assert_array_equal(grid.key[:, row, column], entry.key[0, :, token].numpy())
            np.testing.assert_array_equal(grid.value[:, row, column], entry.value[0, :, token].numpy())
            np.testing.assert_array_equal(grid.attention[:, 4, row, column], entry.attention[0, :, 4, token].numpy())
            assert grid.cell_at((column + 0.4) / 3, (row + 0.9) / 2) == token
    np.testing.assert_allclose(grid.looks(4), grid.attention[:, 4].mean(axis=0))
    assert grid.cell_at(1.0, 1.0) == 5


def test_a_decoders_queries_have_no_place(seen):
    grid = qkva_grid(seen, "decoder.0.cross_attention")
    assert grid.query.shape == (4, 7, 8)
    assert grid.key.shape == (4, 2, 3, 8)
    assert grid.attention.shape == (4, 7, 2, 3)


def test_colours_are_alike_where_vectors_are():
    generator = np.random.default_rng(0)
    kinds = generator.normal(size=(3, 5))
    place = generator.integers(0, 3, (1, 4, 6))
    colours = principal_colours(kinds[place])
    for kind in range(3):
        assert np.ptp(colours.colours[place == kind], axis=0).max() < 1e-5
    assert np.unique(colours.colours.reshape(-1, 3).round(3), axis=0).shape[0] == 3
    assert colours.colours.min() >= 0
    assert colours.colours.max() <= 1
    # three kinds lie in a plane
    np.testing.assert_allclose(colours.explained.sum(axis=1), 1, atol=1e-6)
    assert colours.explained[0, 2] == pytest.approx(0, abs=1e-6)


def test_the_first_component_is_lightness():
    ramp = np.linspace(0, 1, 12).reshape(1, 3, 4, 1) ** 2 * np.array([1.0, 2.0, -1.0])
    grey = principal_colours(ramp).colours[0].reshape(12, 3) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) > -1e-6).all()
    assert grey[-1] - grey[0] > 0.4


def test_what_a_place_explains_of_vectors():
    generator = np.random.default_rng(2)
    y, x = np.mgrid[:9, :12] / 10
    ramps = np.stack((x - 2 * y, x * y + 3, x**2 - y**2), axis=-1)[None]
    assert place_share(ramps) == pytest.approx(1)
    noise = generator.normal(size=(4, 9, 12, 20))
    assert place_share(noise) == pytest.approx(5 / 107, abs=0.015)
    # Noise and ramps in different channels: the share is that of their variances.
    scaled = np.concatenate((np.repeat(ramps, 4, axis=0) * 5, noise), axis=-1)
    ramp_variance, noise_variance = (scaled[..., part].var(axis=(1, 2)).sum() for part in (slice(3), slice(3, None)))
    by_chance = place_share(noise) * noise_variance
    assert place_share(scaled) == pytest.approx((ramp_variance + by_chance) / (ramp_variance + noise_variance))
    assert place_share(np.zeros((1, 2, 2, 3))) == 0


def test_how_far_one_map_stands_for_all():
    generator = np.random.default_rng(3)
    attention = generator.dirichlet(np.ones(6) / 2, (3, 6)).reshape(3, 6, 2, 3)
    grid = grid_of(attention)
    for head, maps in ((1, attention[1]), (None, attention.mean(axis=0))):
        average = sum(maps) / 6
        shared = [sum(min(a, b) for a, b in zip(one.ravel(), average.ravel(), strict=True)) for one in maps]
        assert sameness(grid, head) == pytest.approx(sum(shared) / 6, abs=1e-6)
    assert sameness(grid_of(np.full((2, 6, 2, 3), 1 / 6))) == pytest.approx(1)
    assert sameness(grid_of(np.eye(6).reshape(1, 6, 2, 3))) == pytest.approx(1 / 6)


def test_colours_of_hardly_any_vectors():
    assert principal_colours(np.zeros((2, 1, 1, 4))).colours.shape == (2, 1, 1, 3)
    assert np.isfinite(principal_colours(np.ones((1, 2, 2, 1))).colours).all()


def test_numbers_against_plain_loops():
    generator = np.random.default_rng(1)
    attention = generator.dirichlet(np.ones(6) / 2, (3, 6)).reshape(3, 6, 2, 3)
    numbers = head_numbers(grid_of(attention))
    flat = attention.reshape(3, 6, 6)
    centres = [((c + 0.5), (r + 0.5)) for r in range(2) for c in range(3)]
    for head in range(3):
        entropies = [-sum(a * math.log(a) for a in row if a > 0) / math.log(6) for row in flat[head]]
        assert numbers.entropy[head] == pytest.approx(np.mean(entropies), abs=1e-5)
        away = [
            sum(a * math.dist(centres[n], centres[t]) / 3 for t, a in enumerate(row))
            for n, row in enumerate(flat[head])
        ]
        assert numbers.distance[head] == pytest.approx(np.mean(away), abs=1e-5)
        for other in range(3):
            shared = np.mean([sum(map(min, flat[head, n], flat[other, n])) for n in range(6)])
            assert numbers.overlap[head, other] == pytest.approx(shared, abs=1e-5)
    assert numbers.even_distance == pytest.approx(np.mean([[math.dist(a, b) / 3 for a in centres] for b in centres]))


def test_numbers_of_the_extremes():
    even = np.full((2, 4, 2, 2), 0.25)
    numbers = head_numbers(grid_of(even))
    np.testing.assert_allclose(numbers.entropy, 1, atol=1e-6)
    np.testing.assert_allclose(numbers.distance, numbers.even_distance, atol=1e-6)
    assert numbers.disagreement == pytest.approx(0, abs=1e-6)
    itself = np.eye(4).reshape(1, 4, 2, 2)
    apart = np.concatenate((itself, itself[:, ::-1]))
    numbers = head_numbers(grid_of(apart))
    np.testing.assert_allclose(numbers.entropy, 0, atol=1e-6)
    assert numbers.distance[0] == 0
    np.testing.assert_allclose(numbers.overlap, np.eye(2))
    assert numbers.disagreement == pytest.approx(1, abs=1e-6)
    assert head_numbers(grid_of(itself)).disagreement == 0


def test_distance_from_where_queries_stand():
    looks_left = np.zeros((1, 1, 1, 4))
    looks_left[..., 0] = 1
    numbers = head_numbers(grid_of(looks_left), np.array([[0.625, 0.5]]))
    assert numbers.distance[0] == pytest.approx(0.5)


@pytest.mark.parametrize("num_heads", [1, 8])
def test_what_heads_cost_is_what_the_formula_says(num_heads):
    """Memory as the explicit form keeps it for backward, multiply-adds as torch counts them."""
    formula, measured = attention_cost(150, 64, num_heads), measured_attention_cost(150, 64, num_heads)
    assert measured.map_bytes == pytest.approx(formula.map_bytes, rel=0.02)
    assert measured.multiply_adds == pytest.approx(formula.multiply_adds, rel=0.02)
    assert formula.map_bytes == num_heads * 150 * 150 * 4
    assert formula.multiply_adds == 2 * 150 * 150 * 64


def test_an_encoder_of_one_head_against_eight(toy_detector, picture):
    """On whole layers of detectors at equal width: maps as recorded, the products as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    sizes, products = {}, {}
    for num_heads in (1, 8):
        detector = toy_detector("detr-nano", num_heads=num_heads, num_encoder_layers=1)
        images = ImageBatch.from_images([detector.preprocessing(picture)])
        with record(detector, only=["encoder"]) as seen, FlopCounterMode(display=False) as counter:
            detector.model(images)
        entry = seen.dense["encoder.0.self_attention"]
        sizes[num_heads], products[num_heads] = entry.attention.nbytes, counter.get_total_flops()
        assert entry.attention.nbytes == attention_cost(9, 32, num_heads).map_bytes
        torch.testing.assert_close(entry.attention.sum(dim=-1), torch.ones(1, num_heads, 9))
    assert sizes[8] == 8 * sizes[1]
    assert products[8] == pytest.approx(products[1], rel=0.02)
