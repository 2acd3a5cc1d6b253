"""Training on tiles: the tiles are cut-outs of the pictures, their boxes are where they were, and no object is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from detrove.boxes import cxcywh_to_xyxy
from detrove.data import DetectionDataset, open_dataset, training_loader
from detrove.data.annotations import AnnotationsBuilder
from detrove.data.dataset import targets_of
from detrove.data.originals import DatasetOriginals
from detrove.data.tiles import EMPTY_SHARE, cut
from detrove.data.transforms import Augmentation
from detrove.data.views import targets_in
from detrove.errors import InputError
from detrove.structures import Preprocessing
from detrove.tiling import Tiling

WIDTH, HEIGHT = 300, 200
TILES = Tiling(100, 0.2)


def write_set(root: Path, pictures: list[list[list[float]]], suffix: str = "png") -> DetectionDataset:
    """A picture for each list of boxes (xywh), noise of 300x200."""
    (root / "train").mkdir(parents=True)
    (root / "annotations").mkdir()
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 4, "name": "thing"}]}
    generator = np.random.default_rng(0)
    for number, boxes in enumerate(pictures, start=1):
        noise = generator.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "train" / f"{number}.{suffix}")
        image = {"id": number, "file_name": f"{number}.{suffix}", "width": WIDTH, "height": HEIGHT}
        content["images"].append(image)
        for box in boxes:
            entry = {"id": len(content["annotations"]) + 1, "image_id": number, "category_id": 4, "bbox": box}
            content["annotations"].append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return open_dataset(root, "train")


@pytest.fixture
def dataset(tmp_path: Path) -> DetectionDataset:
    return write_set(tmp_path / "set", [[[70, 30, 40, 20], [5, 5, 8, 9]], [], [[0, 0, 300, 200]]])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_tiles_are_cut_out_of_their_pictures(tmp_path: Path, suffix: str) -> None:
    dataset = write_set(tmp_path / "set", [[[70, 30, 40, 20], [5, 5, 8, 9]], []], suffix)
    tiled = cut(dataset, TILES, empty_share=0.9)
    pictures = {record.path: np.asarray(dataset[i].image) for i, record in enumerate(dataset.records)}
    originals = DatasetOriginals(tiled)
    assert len(tiled) == 2 * 13
    for index, record in enumerate(tiled.records):
        left, top, right, bottom = tiled.windows[index].tolist()
        expected = pictures[record.path][top:bottom, left:right]
        assert (record.height, record.width) == expected.shape[:2]
        assert np.array_equal(np.asarray(tiled[index].image), expected)
        # torchvision's JPEG decoder is Pillow's to the bit.
        assert np.array_equal(originals[index].read(1.0).pixels.permute(1, 2, 0).numpy(), expected)


def test_boxes_are_where_they_were(dataset: DetectionDataset) -> None:
    tiled = cut(dataset, TILES)
    seen = {}
    for record, window in zip(tiled.records, tiled.windows.tolist(), strict=True):
        if record.path.stem == "1":
            seen[tuple(window)] = [[round(value, 6) for value in box] for box in record.boxes_xyxy.tolist()]
    # Of 40 pixels from x = 70 the first tile shows 30, the second, from 80, shows 30.
    assert seen[(0, 0, 100, 100)] == [[70, 30, 100, 50], [5, 5, 13, 14]]
    assert seen[(80, 0, 180, 100)] == [[0, 30, 30, 50]]
    assert seen[(0, 0, 300, 200)] == [[70, 30, 110, 50], [5, 5, 13, 14]]
    assert set(tiled.label_map.names) == {"thing"}
    assert set(tiled.records.labels.tolist()) == {0}


def test_ids_say_where_a_tile_lies(dataset: DetectionDataset) -> None:
    ids = [record.image_id for record in cut(dataset, TILES).records]
    assert {"1@0,0", "1@80,0", 1} <= set(ids)
    assert len(set(ids)) == len(ids)


boxes_of_a_picture = st.lists(
    st.tuples(st.floats(0, 290), st.floats(0, 190), st.floats(0.2, 300), st.floats(0.2, 200)), max_size=6
)


def in_memory(boxes: list[tuple[float, float, float, float]]) -> DetectionDataset:
    """A set of one picture that is never read; its path must exist."""
    builder = AnnotationsBuilder("object")
    builder.add_picture(__file__, 1, WIDTH, HEIGHT, __file__)
    for number, box in enumerate(boxes, start=1):
        builder.add_box(0, 4, box, number)
    return DetectionDataset(Path("set"), "train", "coco", builder.finish({4: "thing"}))


@given(boxes_of_a_picture, st.floats(0, 0.8), st.booleans())
def test_no_object_is_lost(boxes: list, overlap: float, whole: bool) -> None:
    dataset = in_memory(boxes)
    tiled = cut(dataset, Tiling(100, overlap, whole), empty_share=0.99)
    clean = dataset.records[0].boxes_xyxy
    found = np.zeros(len(clean), dtype=bool)
    for record in tiled.records:
        left, top, right, bottom = record.window or (0, 0, WIDTH, HEIGHT)
        if record.window is None:
            assert len(record.boxes_xyxy) == len(clean)
            continue
        back = record.boxes_xyxy + np.array([left, top, left, top])
        cut_boxes = clean.clip([left, top, left, top], [right, bottom, right, bottom])
        distance = np.abs(back[:, None] - cut_boxes).max(axis=-1)
        assert (distance.min(axis=1, initial=np.inf) < 1e-6).all()
        found |= distance.min(axis=0, initial=np.inf) < 1e-6
    assert found.all()


@given(boxes_of_a_picture)
def test_a_box_is_kept_by_the_rule_of_random_crops(boxes: list) -> None:
    """With whole pixels, so that no rounding decides; more may be kept only of what all tiles would lose."""
    dataset = in_memory([(round(x), round(y), round(w) + 1, round(h) + 1) for x, y, w, h in boxes])
    original = targets_of(dataset.records[0])
    for record in cut(dataset, TILES, empty_share=0.99).records:
        if record.window is not None:
            expected = cxcywh_to_xyxy(targets_in(original, (WIDTH, HEIGHT), record.window).boxes) * 100
            got = torch.from_numpy(record.boxes_xyxy).float()
            assert all(((got - box).abs().amax(dim=1) < 1e-2).any() for box in expected)


def test_an_object_that_no_tile_shows_enough_of_stays_in_the_one_that_shows_most() -> None:
    dataset = in_memory([(10, 95, 290, 2)])
    tiled = cut(dataset, Tiling(40, 0.0, whole=False), empty_share=0)
    [record] = tiled.records
    assert record.window == (40, 80, 80, 120)
    assert record.boxes_xyxy.tolist() == [[0, 15, 40, 17]]


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5])
def test_tiles_without_objects_are_kept_at_the_stated_share(tmp_path: Path, share: float) -> None:
    pictures = [[[10 * i, 5, 4, 4]] for i in range(20)]
    tiled = cut(write_set(tmp_path / "set", pictures), TILES, empty_share=share)
    counts = np.array([len(record.labels) for record in tiled.records])
    assert (counts == 0).mean() == pytest.approx(share, abs=0.01)
    assert f"{(counts == 0).sum()} of them without" in tiled.describe()


def test_the_choice_is_the_seeds(dataset: DetectionDataset) -> None:
    def choice(seed: int) -> list:
        return cut(dataset, TILES, EMPTY_SHARE, seed).windows.tolist()

    assert choice(3) == choice(3)
    assert any(choice(3) != choice(seed) for seed in range(4, 9))


def test_a_set_without_objects_keeps_all_tiles() -> None:
    assert len(cut(in_memory([]), TILES)) == 13


def test_a_picture_no_larger_than_a_tile_stays_as_it_is(dataset: DetectionDataset) -> None:
    tiled = cut(dataset, Tiling(300), empty_share=0.5)
    assert list(tiled.records) == list(dataset.records)


def test_a_share_that_cannot_be(dataset: DetectionDataset) -> None:
    with pytest.raises(InputError, match="empty_tiles"):
        cut(dataset, TILES, empty_share=1)


def test_a_subset_keeps_its_windows(dataset: DetectionDataset) -> None:
    tiled = cut(dataset, TILES)
    part = tiled.subset([4, 1])
    assert [part.records[0], part.records[1]] == [tiled.records[4], tiled.records[1]]
    assert np.array_equal(np.asarray(part[0].image), np.asarray(tiled[4].image))


@pytest.mark.parametrize("cache", [None, 10**7])
def test_tiles_are_loaded_like_pictures(dataset: DetectionDataset, cache: int | None) -> None:
    tiled = cut(dataset, TILES)
    preprocessing = Preprocessing(longer=50)

    def epoch(workers: int) -> list:
        augmentation = Augmentation(horizontal_flip=0.5)
        loader = training_loader(tiled, preprocessing, augmentation, 4, workers=workers, cache=cache, rectangular=True)
        loader.set_epoch(0)
        return list(loader)

    first, second = epoch(0), epoch(2)
    assert sum(len(targets) for _, targets in first) == len(tiled)
    for (images, _), (others, _) in zip(first, second, strict=True):
        assert torch.equal(images.pixels, others.pixels)
