from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from detrove.data import find_splits, open_dataset
from detrove.data.scenes import CLASSES, LEAST_VISIBLE, VERSION, _Painter, make_scenes, scene
from detrove.data.shapes import Shape, fractal_noise
from detrove.errors import InputError

CHECKSUMS = {
    ("train", 0): "0dbd70995136aeb4",
    ("train", 7): "6aa4072e0b4116ac",
    ("val", 3): "e49dfc7ea79b8c36",
    ("test", 149): "1f5f38c48c3a2be2",
}


def checksum(split: str, number: int) -> str:
    painted = scene(split, number)
    text = f"{painted.boxes_xyxy.tolist()} {painted.names}".encode()
    return hashlib.sha256(painted.pixels.tobytes() + text).hexdigest()[:16]


@pytest.mark.parametrize("key", CHECKSUMS)
def test_the_generator_is_frozen(key: tuple[str, int]) -> None:
    """Results on the scenes are compared over time: a change of any pixel needs a new version."""
    assert VERSION == 2
    assert checksum(*key) == CHECKSUMS[key]


def test_what_the_pictures_hold() -> None:
    painted = [scene("train", number) for number in range(120)]
    names = [name for one in painted for name in one.names]
    sides = np.concatenate([(one.boxes_xyxy[:, 2:] - one.boxes_xyxy[:, :2]).max(axis=1) for one in painted])
    assert set(names) == set(CLASSES)
    assert min(names.count(name) for name in CLASSES) > 40
    assert max(len(one.names) for one in painted) == 8
    assert 0 < sum(not one.names for one in painted) < 12
    assert sides.min() < 16
    assert sides.max() > 75
    assert len({one.pixels.shape for one in painted}) > 20
    for one in painted:
        height, width = one.pixels.shape[:2]
        assert (one.boxes_xyxy[:, :2] >= 0).all()
        assert (one.boxes_xyxy[:, 2:] <= [width, height]).all()


def test_half_of_every_object_is_to_be_seen() -> None:
    for number in range(20):
        painter = _Painter(np.random.default_rng(number))
        painter.paint()
        for placed in painter.placed:
            assert placed.visible.sum() >= LEAST_VISIBLE * placed.area


@pytest.mark.parametrize(
    "shape", dict.fromkeys(kind.shape for kind in CLASSES.values()), ids=lambda shape: shape.__name__
)
def test_shapes_are_in_one_piece_within_their_radius(shape: Shape) -> None:
    steps = (np.arange(200) + 0.5) / 80 - 1.25
    y, x = np.meshgrid(steps, steps, indexing="ij")
    inside = shape(x, y) <= 0
    assert ndimage.label(inside)[1] == 1
    assert ndimage.label(~inside)[1] == 1
    assert np.hypot(x[inside], y[inside]).max() <= 1.01
    assert np.hypot(x[inside], y[inside]).max() > 0.95


@pytest.mark.parametrize("name", CLASSES)
def test_patterns_have_light_and_dark(name: str) -> None:
    steps = (np.arange(100) + 0.5) / 50 - 1
    y, x = np.meshgrid(steps, steps, indexing="ij")
    light = CLASSES[name].pattern(x, y, 0.4)[CLASSES[name].shape(x, y) <= 0]
    assert light.min() == pytest.approx(0, abs=0.05)
    assert light.max() == pytest.approx(1, abs=0.05)
    assert 0.15 < light.mean() < 0.85


def test_noise_keeps_its_range() -> None:
    noise = fractal_noise(50, 70, 20.0, np.random.default_rng(0))
    assert noise.shape == (50, 70)
    assert noise.min() >= 0
    assert noise.max() <= 1


def test_written_as_coco_and_made_once(tmp_path: Path) -> None:
    sizes = {"train": 3, "val": 2, "test": 2}
    calls: list[tuple[int, int]] = []
    folder = make_scenes(tmp_path / "scenes", sizes, progress=lambda made, of: calls.append((made, of)))
    assert calls[-1] == (7, 7)
    assert find_splits(folder) == ("train", "val", "test")
    dataset = open_dataset(folder, "train")
    assert len(dataset) == 3
    assert dataset.warnings == []
    assert dataset.label_map.names == list(CLASSES)
    painted = scene("train", 1)
    np.testing.assert_array_equal(dataset.records[1].boxes_xyxy, painted.boxes_xyxy)
    difference = np.abs(np.asarray(dataset[1].image).astype(int) - painted.pixels)
    assert difference.mean() < 8
    before = (folder / "train" / "000001.jpg").stat().st_mtime_ns
    assert make_scenes(folder, sizes) == folder
    assert (folder / "train" / "000001.jpg").stat().st_mtime_ns == before
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not this data set"):
        make_scenes(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_nothing_is_left_of_an_interrupted_making(tmp_path: Path) -> None:
    def interrupt(made: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_scenes(tmp_path / "scenes", {"train": 2}, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
