"""Toy data sets on disk, written by the tests themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_picture(path: Path, width: int = 40, height: int = 30, orientation: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def coco_content(**changes: Any) -> dict[str, Any]:
    """Two pictures; sparse category ids out of order; a crowd region; an area of its own."""
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 9, "file_name": "b.jpg", "width": 20, "height": 50},
        ],
        "annotations": [
            {"id": 0, "image_id": 7, "category_id": 30, "bbox": [4, 6, 10, 12], "area": 77.5, "iscrowd": 0},
            {"id": 1, "image_id": 7, "category_id": 5, "bbox": [0, 0, 40, 15], "area": 600, "iscrowd": 1},
        ],
        "categories": [{"id": 30, "name": "cat"}, {"id": 5, "name": "ant"}],
        **changes,
    }


def write_coco(root: Path, split: str = "train2017", **changes: Any) -> Path:
    content = coco_content(**changes)
    write_picture(root / split / "a.jpg", 40, 30)
    write_picture(root / split / "b.jpg", 20, 50)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def voc_xml(objects: list[tuple[str, tuple[float, float, float, float]]], size: str = "", filename: str = "") -> str:
    items = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        "</bndbox></object>"
        for name, (x1, y1, x2, y2) in objects
    )
    return f"<annotation><filename>{filename}</filename>{size}{items}</annotation>"


def write_voc(root: Path) -> Path:
    """Pictures a (train) and b (val); class names in neither split's own order."""
    write_picture(root / "JPEGImages" / "a.jpg", 40, 30)
    write_picture(root / "JPEGImages" / "b.jpg", 20, 50)
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    size = "<size><width>40</width><height>30</height></size>"
    (root / "Annotations" / "a.xml").write_text(voc_xml([("dog", (4, 6, 14, 18)), ("bee", (1, 2, 3, 4))], size))
    (root / "Annotations" / "b.xml").write_text(voc_xml([("cat", (0, 0, 20, 50))]))
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\n")
    (root / "ImageSets" / "Main" / "val.txt").write_text("b\n")
    (root / "ImageSets" / "Main" / "dog_train.txt").write_text("a  1\n")
    return root


def write_yolo(root: Path, names: str = "names: [nut, bolt]\n") -> Path:
    """Picture a with two objects, one of them an outline; picture b is background."""
    write_picture(root / "images" / "train" / "a.jpg", 40, 30)
    write_picture(root / "images" / "train" / "b.jpg", 20, 50)
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.25 0.2\n0 0.1 0.2 0.4 0.2 0.4 0.6\n")
    (root / "data.yaml").write_text(f"train: images/train\n{names}")
    return root
