"""`detrove data split`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrove.data import find_splits, open_dataset


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty pictures in YOLO format, the first two the same."""
    folder = tmp_path / "data"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(20):
        noise = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((64, 48), Image.Resampling.NEAREST)
        picture.save(folder / "images" / f"{index}.png")
        (folder / "labels" / f"{index}.txt").write_text(f"{index % 2} 0.5 0.5 0.5 0.5\n")
    Image.open(folder / "images" / "0.png").save(folder / "images" / "1.png")
    (folder / "classes.txt").write_text("nut\nbolt\n")
    return folder


def test_three_splits_in_the_format_of_the_set(detrove_command: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    answer = detrove_command("data", "split", data, "--ratio", "0.6,0.2,0.2", "--output", tmp_path / "out", "--json")
    assert answer.status == 0, answer.err
    written = json.loads(answer.out)
    assert [part["pictures"] for part in written["splits"].values()] == pytest.approx([12, 4, 4], abs=1)
    assert written["notes"] == ["1 pictures look like another one and stayed with it"]
    assert find_splits(tmp_path / "out") == ("train", "val", "test")
    homes = [
        {Path(path).name for path in open_dataset(tmp_path / "out", split).annotations.paths}
        for split in ("train", "val", "test")
    ]
    assert open_dataset(tmp_path / "out", "train").format == "yolo"
    assert any({"0.png", "1.png"} <= home for home in homes)
    assert sum(map(len, homes)) == 20


def test_two_splits_as_coco_and_seeds(detrove_command: Callable[..., Any], data: Path, tmp_path: Path) -> None:
    names = []
    for output, seed in (("a", 1), ("b", 1), ("c", 2)):
        answer = detrove_command(
            *("data", "split", data, "--ratio", "3:1", "--seed", seed, "--to", "coco", "--output", tmp_path / output)
        )
        assert answer.status == 0, answer.err
        names.append([Path(path).name for path in open_dataset(tmp_path / output, "val").annotations.paths])
    assert names[0] == names[1] != names[2]
    assert find_splits(tmp_path / "a") == ("train", "val")


@pytest.mark.parametrize("ratio", ["1", "0.5,x", "0.5,0", "1,1,1,1", "0.5,inf"])
def test_bad_ratios(detrove_command: Callable[..., Any], data: Path, tmp_path: Path, ratio: str) -> None:
    answer = detrove_command("data", "split", data, "--ratio", ratio, "--output", tmp_path / "out")
    assert answer.status == 2
    assert f"--ratio {ratio}: give two or three positive shares" in answer.err
