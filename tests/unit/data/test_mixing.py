"""Boxes after mixing, against a drawing: every object has its own colour, whose extent is found again afterwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detrove.data.dataset import Sample
from detrove.data.mixing import MOST_COVERED, copy_paste, mosaic
from detrove.data.transforms import Augmentation, training_sample
from detrove.data.views import Original
from detrove.structures import Preprocessing, Targets

COLOURS = torch.tensor([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)][1:], dtype=torch.float32)


def drawing(generator: np.random.Generator, classes: list[int]) -> Original:
    """Rectangles apart from each other on black, each in the colour of its class."""
    width, height = (int(n) for n in generator.integers(120, 260, 2))
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    boxes = []
    for place, number in enumerate(classes):
        low, high = place * width // len(classes), (place + 1) * width // len(classes)
        x1 = int(generator.integers(low + 4, low + (high - low) // 3 + 4))
        x2 = int(generator.integers(x1 + 12, high - 3))
        y1 = int(generator.integers(4, height // 2))
        y2 = int(generator.integers(y1 + 12, height - 3))
        pixels[y1:y2, x1:x2] = COLOURS[number].numpy()
        boxes.append([x1 / width, y1 / height, x2 / width, y2 / height])
    targets = Targets(torch.tensor(classes), xyxy_to_cxcywh(torch.tensor(boxes)), image_id=classes[0])
    return Original.of_sample(Sample(Image.fromarray(pixels), targets))


def found(pixels: torch.Tensor, number: int) -> torch.Tensor | None:
    """The extent (x1, y1, x2, y2) of a class's colour; of blended pixels, those that are more than half of it."""
    nearest = torch.cdist(
        pixels.float().flatten(1).T[None],
        torch.cat([COLOURS, torch.zeros(1, 3)])[None],
        compute_mode="donot_use_mm_for_euclid_dist",
    )[0].argmin(dim=1)
    mask = (nearest == number).view(pixels.shape[1:])
    # A blended edge between two colours may be nearest to a third: an object has more than such a line.
    rows, columns = mask.sum(dim=1) > 2, mask.sum(dim=0) > 2
    if not rows.any() or not columns.any():
        return None
    rows, columns = torch.where(rows)[0], torch.where(columns)[0]
    return torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()


def pixel_boxes(pixels: torch.Tensor, targets: Targets) -> torch.Tensor:
    height, width = pixels.shape[1:]
    return cxcywh_to_xyxy(targets.boxes) * torch.tensor([width, height, width, height])


@pytest.mark.parametrize("seed", range(30))
def test_mosaic_boxes_are_where_the_colours_are(seed: int) -> None:
    generator = np.random.default_rng(seed)
    originals = [drawing(generator, classes) for classes in ([0, 1], [2], [3, 4], [5])]
    pixels, targets = mosaic(originals, (180, 240), "bilinear", generator)
    assert pixels.shape == (3, 180, 240)
    assert targets.image_id == 0
    assert len(set(targets.labels.tolist())) == len(targets) >= 4
    for number, box in zip(targets.labels.tolist(), pixel_boxes(pixels, targets), strict=True):
        extent = found(pixels, number)
        assert extent is not None
        assert (box - extent).abs().max() <= 1.5
    for number in set(range(6)) - set(targets.labels.tolist()):
        extent = found(pixels, number)  # left out: little of it may be seen
        assert extent is None or (extent[2:] - extent[:2]).min() < 60


@pytest.mark.parametrize("seed", range(30))
def test_pasted_boxes_are_where_the_colours_are_and_cover_little(seed: int) -> None:
    generator = np.random.default_rng(seed)
    ground, donor = drawing(generator, [0, 1]), drawing(generator, [2, 3, 4])
    before, targets = ground.read(1.0).pixels, ground.targets
    pixels, mixed = copy_paste(before, targets, donor, "bilinear", generator)
    assert torch.equal(before, ground.read(1.0).pixels)
    for number, box in zip(mixed.labels.tolist()[2:], pixel_boxes(pixels, mixed)[2:], strict=True):
        extent = found(pixels, number)
        assert extent is not None
        # Later patches may cover a part of earlier ones.
        reach = 1.5 + (MOST_COVERED * (box[2:] - box[:2]).max() if mixed.labels.tolist()[-1] != number else 0)
        assert (box - extent).abs().max() <= reach
    for number in (0, 1):
        colour = COLOURS[number].view(3, 1, 1)
        shares = [((p - colour).abs().amax(dim=0) < 64).sum() for p in (pixels.float(), before.float())]
        assert shares[0] >= (1 - MOST_COVERED) ** 3 * 0.9 * shares[1]


def test_objects_are_pasted_at_all() -> None:
    counts = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        ground, donor = drawing(generator, [0]), drawing(generator, [2, 3, 4])
        counts.append(len(copy_paste(ground.read(1.0).pixels, ground.targets, donor, "bilinear", generator)[1]))
    assert np.mean(counts) > 1.5


@pytest.mark.parametrize("seed", range(20))
def test_everything_at_once_keeps_boxes_true(seed: int) -> None:
    """Mosaic, paste, crops around small objects, flips, scales, in one sample."""
    generator = np.random.default_rng(seed)
    originals = [drawing(generator, [number]) for number in range(6)]
    preprocessing = Preprocessing(longer=240, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
    strong = Augmentation(0.5, 0.5, 0.5, (0.7, 1.2), keep_small=True, mosaic=0.5, copy_paste=0.5)
    sample = training_sample(originals[0], preprocessing, strong, generator, originals)
    again = training_sample(originals[0], preprocessing, strong, np.random.default_rng(seed + 100), originals)
    once_more = training_sample(originals[0], preprocessing, strong, np.random.default_rng(seed + 100), originals)
    assert torch.equal(again[0], once_more[0])
    pixels, targets = sample
    labels = targets.labels.tolist()
    for number, box in zip(labels, pixel_boxes(pixels, targets), strict=True):
        if labels.count(number) == 1:
            extent = found(pixels, number)
            assert extent is not None
            covered = 0.0 if number == labels[-1] else MOST_COVERED * (box[2:] - box[:2]).max()
            assert (box - extent).abs().max() <= 2.5 + covered
