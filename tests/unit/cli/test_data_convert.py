"""`detrove data convert`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrove.data import open_dataset


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixteen COCO pictures, the first two the same, with two classes."""
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train").mkdir()
    generator = np.random.default_rng(0)
    for index in range(16):
        noise = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((64, 48), Image.Resampling.NEAREST)
        picture.save(folder / "train" / f"{index}.png")
    Image.open(folder / "train" / "0.png").save(folder / "train" / "1.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(16)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1 + i % 2, "bbox": [16, 12, 32, 24]} for i in range(16)
        ],
        "categories": [{"id": 1, "name": "lorry"}, {"id": 2, "name": "truck"}],
    }
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return folder


def test_to_yolo_with_classes_merged(detrove_command: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    answer = detrove_command(
        *("data", "convert", data, "--to", "yolo", "--output", tmp_path / "out"),
        *("--rename", "lorry=vehicle", "--rename", "truck=vehicle", "--json"),
    )
    assert answer.status == 0, answer.err
    assert json.loads(answer.out)["splits"] == {"train": {"pictures": 16, "boxes": 16}}
    dataset = open_dataset(tmp_path / "out")
    assert (dataset.format, dataset.label_map.names) == ("yolo", ["vehicle"])


def test_a_table_and_a_selection(detrove_command: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    answer = detrove_command(
        "data", "convert", data, "--to", "coco", "--classes", "truck", "--output", tmp_path / "out", "--link"
    )
    assert answer.out.splitlines()[-1].split() == ["train", "16", "8"]
    assert "COCO JSON, split train" in answer.err
    assert (tmp_path / "out" / "train" / "3.png").samefile(data / "train" / "3.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "yolo5"], "--to yolo5: did you mean yolo?"),
        (["--to", "yolo", "--rename", "lorry"], "--rename lorry: expected old=new"),
        (["--to", "yolo", "--classes", "lory"], "no class 'lory' in the data set: did you mean lorry?"),
        (["--to", "yolo", "--format", "voc"], "no annotations of format voc found"),
    ],
)
def test_bad_input(
    detrove_command: Callable[..., Any], data: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    answer = detrove_command("data", "convert", data, "--output", tmp_path / "out", *options)
    assert answer.status == 2
    assert message in answer.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists(detrove_command: Callable[..., Any], data: Path) -> None:
    answer = detrove_command("data", "convert", data, "--to", "yolo", "--output", data)
    assert answer.status == 2
    assert "exists already" in answer.err
