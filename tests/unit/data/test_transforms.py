from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.data.dataset import Sample
from detrove.data.transforms import (
    Augmentation,
    Terms,
    colour_jitter,
    evaluation_sample,
    training_sample,
)
from detrove.data.views import Original, targets_in
from detrove.data.windows import random_window, widened
from detrove.errors import InputError
from detrove.structures import Preprocessing, Targets


def sample(width: int = 60, height: int = 40) -> Sample:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    targets = Targets(
        labels=torch.tensor([2, 0]),
        boxes=torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 1.0, 1.0]]),
        is_crowd=torch.tensor([False, True]),
        area=torch.tensor([96.0, 2400.0]),
        image_id=4,
        original_size=(height, width),
    )
    return Sample(Image.fromarray(pixels), targets)


def test_evaluation_changes_nothing_but_the_size() -> None:
    preprocessing = Preprocessing(longer=30)
    pixels, targets = evaluation_sample(sample(), preprocessing)
    assert torch.equal(pixels, preprocessing(sample().image))
    assert len(targets) == 2


def test_training_without_augmentation_is_evaluation_without_crowd() -> None:
    pixels, targets = training_sample(sample(), Preprocessing(longer=30), Augmentation(), np.random.default_rng(0))
    plain = Preprocessing(longer=30)(sample().image)
    assert (pixels - plain).abs().max() <= 1.01 / 255 / 0.224  # torch's rounding in the resize, and Pillow's
    assert targets.labels.tolist() == [2]
    assert targets.is_crowd is None


@pytest.mark.parametrize(("flag", "dim"), [("horizontal_flip", 2), ("vertical_flip", 1)])
def test_flips(flag: str, dim: int) -> None:
    plain = Preprocessing(longer=60)
    pixels, _ = training_sample(sample(), plain, Augmentation(**{flag: 1.0}), np.random.default_rng(0))
    assert torch.equal(pixels, plain(sample().image).flip(dim))


def test_scale_covers_its_range_and_no_more() -> None:
    augmentation = Augmentation(scale=(0.5, 1.0))
    generator = np.random.default_rng(0)
    widths = [
        training_sample(sample(), Preprocessing(longer=100), augmentation, generator)[0].shape[2] for _ in range(80)
    ]
    assert 50 <= min(widths) < 56
    assert 94 < max(widths) <= 100


def test_same_seed_same_sample() -> None:
    augmentation = Augmentation(0.5, 0.5, 0.5, (0.5, 1.0), 1.0)
    first, again, other = (
        training_sample(sample(), Preprocessing(longer=50), augmentation, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1].boxes, again[1].boxes)
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


def test_crop_drops_what_is_hardly_visible() -> None:
    """Of boxes 10 wide, the window shows 2, 4 and 10 pixels: 20% goes, 40% stays clipped."""
    boxes = torch.tensor([[0.17, 0.5, 0.1, 0.2], [0.19, 0.5, 0.1, 0.2], [0.5, 0.5, 0.1, 0.2]])
    targets = Targets(labels=torch.tensor([0, 1, 2]), boxes=boxes)
    kept = targets_in(targets, (100, 50), (20, 0, 70, 50))
    assert kept.labels.tolist() == [1, 2]
    torch.testing.assert_close(kept.boxes[0], torch.tensor([0.04, 0.5, 0.08, 0.2]))


def test_crop_keeps_an_object_that_fills_the_window() -> None:
    targets = Targets(labels=torch.tensor([0]), boxes=torch.tensor([[0.5, 0.5, 1.0, 1.0]]))
    kept = targets_in(targets, (100, 50), (10, 10, 60, 35))
    torch.testing.assert_close(kept.boxes, torch.tensor([[0.5, 0.5, 1.0, 1.0]]))


def test_windows_hold_a_centre_and_stay_inside() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        width, height = (int(n) for n in generator.integers(1, 80, 2))
        boxes = torch.from_numpy(generator.random((int(generator.integers(0, 4)), 4))).float()
        left, top, right, bottom = random_window((width, height), boxes, generator)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        centres = boxes[:, :2] * torch.tensor([width, height])
        inside = (centres >= torch.tensor([left, top])) & (centres <= torch.tensor([right, bottom]))
        assert len(boxes) == 0 or inside.all(dim=1).any()


def test_colour_jitter_leaves_grey_grey_and_changes_colours() -> None:
    grey = Image.new("RGB", (8, 8), (128, 128, 128))
    red = Image.new("RGB", (8, 8), (200, 60, 60))
    changed = 0
    for seed in range(20):
        r, g, b = np.asarray(colour_jitter(grey, 1.0, np.random.default_rng(seed)))[0, 0].astype(int)
        assert max(r, g, b) - min(r, g, b) <= 1
        changed += np.asarray(colour_jitter(red, 1.0, np.random.default_rng(seed)))[0, 0].tolist() != [200, 60, 60]
    assert changed == 20
    assert np.array_equal(np.asarray(colour_jitter(red, 0.0, np.random.default_rng(0))), np.asarray(red))


def test_windows_that_keep_small_objects_cut_none_and_hold_one() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        width, height = (int(n) for n in generator.integers(60, 200, 2))
        centres = generator.uniform(0.05, 0.95, (5, 2))
        boxes = torch.from_numpy(np.concatenate([centres, np.full((5, 2), 0.03)], axis=1)).float()
        for keep_aspect in (False, True):
            window = random_window((width, height), boxes, generator, keep_small=True, keep_aspect=keep_aspect)
            assert 0 <= window[0] < window[2] <= width
            assert 0 <= window[1] < window[3] <= height
            kept = targets_in(Targets(torch.arange(5), boxes), (width, height), window)
            assert len(kept)
            sides = kept.boxes[:, 2:] * torch.tensor([window[2] - window[0], window[3] - window[1]])
            torch.testing.assert_close(sides, boxes[kept.labels, 2:] * torch.tensor([width, height]), rtol=0, atol=1e-3)
            if keep_aspect:
                assert (window[2] - window[0]) / width == pytest.approx((window[3] - window[1]) / height, abs=0.02)


def test_widening_goes_on_while_it_meets_others() -> None:
    """The first box is cut; taking it in cuts the second."""
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.55, 0.54, 0.04, 0.06], [0.9, 0.9, 0.1, 0.1]])
    assert widened((0, 0, 50, 50), (100, 100), boxes, keep_aspect=False) == (0, 0, 57, 57)


def test_blur_smooths_and_moves_nothing() -> None:
    plain, blurred = (
        training_sample(sample(), Preprocessing(longer=60), Augmentation(blur=blur), np.random.default_rng(0))
        for blur in (0.0, 1.0)
    )
    assert blurred[0].std() < 0.9 * plain[0].std()
    assert torch.equal(plain[1].boxes, blurred[1].boxes)


def test_a_batch_shares_one_scale() -> None:
    augmentation = Augmentation(scale=(0.5, 1.0), scale_per_batch=True)
    widths = {
        training_sample(
            sample(), Preprocessing(longer=100), augmentation, np.random.default_rng(seed), (), Terms(scale_place=0.5)
        )[0].shape[2]
        for seed in range(5)
    }
    assert widths == {75}


def test_pictures_are_mixed_only_while_told() -> None:
    others = [Original.of_sample(sample())]
    strong = Augmentation(mosaic=1.0)
    mixed, plain = (
        training_sample(sample(), Preprocessing(longer=60), strong, np.random.default_rng(0), others, Terms(mixing))[1]
        for mixing in (True, False)
    )
    assert len(mixed) > len(plain) == 1


@pytest.mark.parametrize(
    "values",
    [{"crop": 1.5}, {"colour": -0.1}, {"mosaic": 2.0}, {"mix_until": -1.0}, {"scale": (0.9, 0.5)}, {"scale": (0.0, 1)}],
)
def test_values_out_of_range(values: dict) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        Augmentation(**values)
