"""A data set of coloured squares and a detector so small that it trains in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TINY = {
    "model.backbone": "test_resnet",
    "model.dim": 32,
    "model.num_heads": 4,
    "model.feedforward_dim": 64,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "model.num_queries": 10,
    "learning_rate": 1e-3,
    "backbone_learning_rate": 1e-3,
    "clip_norm": 1.0,
    "workers": 0,
    "schedule": "cosine",
}


def make_options(output: Path, **options: Any) -> dict[str, Any]:
    """Keywords for `train`: a toy DETR on 64-pixel pictures."""
    settings = {**TINY, **options.pop("settings", {})}
    return {
        "model": "detr-nano",
        "output": output,
        "size": 64,
        "batch_size": 4,
        "backbone_weights": None,
        "progress": False,
        "settings": settings,
        **options,
    }


def write_squares(folder: Path, split: str, num_pictures: int, seed: int) -> None:
    """Pictures with one or two squares, red or blue, as COCO JSON."""
    generator = np.random.default_rng(seed)
    images, annotations = [], []
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for number in range(1, num_pictures + 1):
        pixels = generator.integers(90, 130, size=(64, 64, 3), dtype=np.uint8)
        for _ in range(int(generator.integers(1, 3))):
            category, side = int(generator.integers(1, 3)), int(generator.integers(16, 28))
            x, y = (int(value) for value in generator.integers(0, 64 - side, size=2))
            pixels[y : y + side, x : x + side] = (220, 20, 20) if category == 1 else (20, 20, 220)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(folder / split / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "annotations" / f"instances_{split}.json").write_text(text)


@pytest.fixture(scope="session")
def tiny_options() -> Callable[..., dict[str, Any]]:
    """`make_options`: test modules cannot import from here."""
    return make_options


@pytest.fixture(scope="session")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures to train on and 6 to validate on."""
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, "train", 12, seed=1)
    write_squares(folder, "val", 6, seed=2)
    return folder


@pytest.fixture(scope="session")
def squares_unsplit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures to train on, none to validate on."""
    folder = tmp_path_factory.mktemp("unsplit")
    write_squares(folder, "train", 12, seed=1)
    return folder
