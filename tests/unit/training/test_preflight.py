"""Before a training the doctor's faults are told in short."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from detrove.data import open_dataset
from detrove.training import TrainingConfig
from detrove.training.preflight import preflight


def write_set(root: Path, boxes: list[list[float]]) -> Path:
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        generator = np.random.default_rng(len(split))
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / split / "a.png")
        entries = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
            "annotations": entries,
            "categories": [{"id": 1, "name": "nut"}],
        }
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def lines(root: Path, num_queries: int, **model_config: int) -> list[str]:
    options = {"num_queries": num_queries, **model_config}
    config = TrainingConfig(str(root), "out", "detr-nano", epochs=1, model_config=options)
    return preflight(config, open_dataset(root, "train"), open_dataset(root, "val"))


def test_a_sound_set_passes_in_silence(tmp_path: Path) -> None:
    assert lines(write_set(tmp_path, [[2, 3, 10, 12], [20, 10, 10, 12]]), 2) == []


def test_faults_are_told_in_a_line_each(tmp_path: Path) -> None:
    root = write_set(tmp_path, [[2, 3, 10, 12], [20, 10, 0, 12]])
    (root / "val" / "a.png").write_bytes((root / "train" / "a.png").read_bytes())
    zero, leaked, queries, where = lines(root, 1)
    assert zero.startswith("2 boxes: zero-size box: train/_annotations.coco.json: annotation 1 is 0 x 12 pixels")
    assert zero.endswith("(and 1 more)")
    assert leaked.startswith("1 pair: leaked picture: ")
    assert "2 objects for 1 queries" in queries
    assert where.endswith(f"detrove data check {root}")


def test_every_pattern_of_an_anchor_answers_for_an_object(tmp_path: Path) -> None:
    root = write_set(tmp_path, [[2, 3, 10, 12], [20, 10, 10, 12]])
    assert lines(root, 1, num_patterns=2) == []
    assert any("2 objects for 1 queries" in line for line in lines(root, 1, num_patterns=0))
