from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.data import open_dataset
from detrove.data.crops import random_crops
from detrove.data.scenes import make_scenes
from detrove.errors import InputError
from detrove.structures import Preprocessing

PLAIN = Preprocessing(longer=64, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """YOLO: on black, a white square of 20 pixels in the middle of one picture, a red one in that of the other."""
    for folder in ("images/train", "labels/train"):
        (tmp_path / folder).mkdir(parents=True)
    for name, colour, label in (("a", (255, 255, 255), 0), ("b", (255, 0, 0), 1)):
        picture = Image.new("RGB", (100, 80))
        picture.paste(colour, (40, 30, 60, 50))
        picture.save(tmp_path / "images/train" / f"{name}.png")
        (tmp_path / "labels/train" / f"{name}.txt").write_text(f"{label} 0.5 0.5 0.2 0.25\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/train\nnames: [white, red]\n")
    return tmp_path


def test_a_crop_shows_its_object_and_background_shows_none(squares: Path) -> None:
    dataset = open_dataset(squares, "train")
    crops, classes = random_crops(dataset, PLAIN, 20, 8, 32, np.random.default_rng(0))
    assert crops.shape == (160, 3, 32, 32)
    for crop, label in zip(crops, classes.tolist(), strict=True):
        middle = crop[:, 14:18, 14:18].mean(dim=(1, 2))
        if label == 2:
            continue
        expected = torch.tensor([1.0, 1.0, 1.0] if label == 0 else [1.0, 0.0, 0.0])
        torch.testing.assert_close(middle, expected, atol=0.02, rtol=0)
        covered = (crop[0] > 0.5).float().mean().item()
        assert 1 / 1.8**2 * 0.75 < covered < 1.0
    counts = Counter(classes.tolist())
    assert 15 < counts[2] < 55
    assert min(counts[0], counts[1]) > 30


def test_the_same_chance_gives_the_same_crops(tmp_path: Path) -> None:
    dataset = open_dataset(make_scenes(tmp_path / "scenes", {"train": 3, "val": 1}), "train")
    first, second = (random_crops(dataset, PLAIN, 4, 3, 16, np.random.default_rng(5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_unreadable_pictures_are_passed_over_unless_all_are(squares: Path) -> None:
    dataset = open_dataset(squares, "train")
    (squares / "images/train/a.png").write_bytes(b"no picture")
    crops, classes = random_crops(dataset, PLAIN, 12, 2, 16, np.random.default_rng(0))
    assert 0 < len(crops) < 24
    assert 0 not in classes.tolist()
    (squares / "images/train/b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"\.png"):
        random_crops(dataset, PLAIN, 4, 2, 16, np.random.default_rng(0))
