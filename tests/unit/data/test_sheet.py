from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from makers import write_coco
from PIL import Image

from detrove.data import Augmentation, open_dataset
from detrove.data.dataset import DetectionDataset
from detrove.data.sheet import GAP, SMALLEST_TILE, contact_sheet
from detrove.drawing import class_colour
from detrove.structures import Preprocessing

PLAIN = Preprocessing(longer=SMALLEST_TILE)


def one_picture(root: Path, num_boxes: int = 1) -> DetectionDataset:
    """A grey picture with boxes of one class, side by side."""
    images = [{"id": 1, "file_name": "a.jpg", "width": 320, "height": 240}]
    boxes = [[10 + 19 * n, 40, 15, 100] for n in range(num_boxes)]
    annotations = [
        {"id": n, "image_id": 1, "category_id": 30, "bbox": box, "area": 1500, "iscrowd": 0}
        for n, box in enumerate(boxes, start=1)
    ]
    write_coco(root, images=images, annotations=annotations)
    Image.new("RGB", (320, 240), (150, 150, 150)).save(root / "train2017" / "a.jpg")
    return open_dataset(root)


def test_pixels_come_back_and_the_box_is_drawn_around_its_object(tmp_path: Path) -> None:
    sheet = np.asarray(contact_sheet(one_picture(tmp_path), PLAIN, count=1)).astype(int)
    grey = (np.abs(sheet - 150).max(axis=2)[: 240 + GAP] <= 2).nonzero()  # not the caption's edges
    top, left = grey[0].min(), grey[1].min()
    assert (grey[0].max() - top + 1, grey[1].max() - left + 1) == (240, 320)
    coloured = (np.abs(sheet - class_colour(1)).max(axis=2) <= 2)[top + 40 : top + 141]
    columns = coloured.sum(axis=0).argsort()[-2:] - left
    assert sorted(columns.tolist()) == pytest.approx([10, 25], abs=1)


def test_only_the_largest_of_many_is_named(tmp_path: Path) -> None:
    """A tag fills its rectangle with the class's colour."""
    shares = []
    for num_boxes in (12, 13):
        dataset = one_picture(tmp_path / str(num_boxes), num_boxes)
        sheet = np.asarray(contact_sheet(dataset, PLAIN, count=1)).astype(int)
        shares.append((np.abs(sheet - class_colour(1)).max(axis=2) <= 2).sum())
    assert shares[1] < 0.8 * shares[0]


def test_the_same_seed_gives_the_same_sheet_and_another_another(tmp_path: Path) -> None:
    dataset = open_dataset(write_coco(tmp_path))
    varied = Augmentation(0.5, 0.5, 0.5, (0.5, 1.0), 0.5)
    first, again, other = (np.asarray(contact_sheet(dataset, PLAIN, varied, 4, seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
