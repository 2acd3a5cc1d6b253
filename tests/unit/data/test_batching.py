from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import coco_content, write_coco, write_picture

from detrove.data import Augmentation, collate, evaluation_loader, open_dataset, training_loader
from detrove.data.batching import EpochBatches
from detrove.data.dataset import DetectionDataset
from detrove.errors import InputError
from detrove.structures import Preprocessing, Targets

VARIED = Augmentation(0.5, 0.5, 0.5, (0.5, 1.0), 0.5)
SMALL = Preprocessing(longer=24)


def many(root: Path, num_pictures: int = 7) -> DetectionDataset:
    images = [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 20 + i} for i in range(1, num_pictures + 1)]
    write_coco(root, images=images, annotations=[{**a, "image_id": 1} for a in coco_content()["annotations"]])
    for image in images:
        write_picture(root / "train2017" / image["file_name"], 40, image["height"])
    return open_dataset(root)


def test_collate_pads_no_further_than_the_largest() -> None:
    targets = Targets(labels=torch.zeros(0, dtype=torch.int64), boxes=torch.zeros(0, 4))
    images, kept = collate([(torch.ones(3, 4, 9), targets), (torch.ones(3, 6, 5), targets)])
    assert images.pixels.shape == (2, 3, 6, 9)
    assert images.sizes.tolist() == [[4, 9], [6, 5]]
    assert len(kept) == 2


@pytest.mark.parametrize(
    ("length", "batch_size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 4, [3]), (3, 1, [1, 1, 1])],
)
def test_every_picture_once_and_none_alone(length: int, batch_size: int, sizes: list[int]) -> None:
    batches = EpochBatches(length, batch_size, seed=0)
    listed = list(batches)
    assert [len(batch) for batch in listed] == sizes
    assert len(batches) == len(sizes)
    assert sorted(index for batch in listed for _, index in batch) == list(range(length))


def test_processes_share_an_epoch() -> None:
    parts = [list(EpochBatches(23, 4, seed=1, process=process, num_processes=2)) for process in (0, 1)]
    whole = list(EpochBatches(23, 4, seed=1))
    assert parts[0] == whole[0::2]
    assert parts[1] == whole[1::2]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = EpochBatches(50, 8, seed)
        batches.epoch = epoch
        return [index for batch in batches for _, index in batch]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)


def test_workers_change_nothing(tmp_path: Path) -> None:
    dataset = many(tmp_path)
    epochs = []
    for workers in (0, 2):
        loader = training_loader(dataset, SMALL, VARIED, batch_size=3, seed=5, workers=workers)
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            epochs.append(list(loader))
    for (alone, alone_targets), (helped, helped_targets) in zip(
        epochs[0] + epochs[1], epochs[2] + epochs[3], strict=True
    ):
        assert torch.equal(alone.pixels, helped.pixels)
        for one, other in zip(alone_targets, helped_targets, strict=True):
            assert one.image_id == other.image_id
            assert torch.equal(one.boxes, other.boxes)
    first, second = (sorted(t.image_id for _, targets in epoch for t in targets) for epoch in epochs[:2])
    assert first == second == list(range(1, 8))
    assert not torch.equal(epochs[0][0][0].pixels, epochs[1][0][0].pixels)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_goes_on_without_a_broken_picture(
    tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = many(tmp_path)
    (tmp_path / "train2017" / "3.png").write_bytes(b"broken")
    loader = training_loader(dataset, SMALL, VARIED, batch_size=3, workers=workers)
    with caplog.at_level(logging.WARNING):
        for epoch in range(3):
            loader.set_epoch(epoch)
            ids = [t.image_id for _, targets in loader for t in targets]
            assert len(ids) == 7
            assert 3 not in ids
    assert [record.getMessage() for record in caplog.records] == [f"{loader.skipped[0]} (left out of training)"]
    assert "3.png" in loader.skipped[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_training_ends_where_nothing_can_be_read(tmp_path: Path, workers: int) -> None:
    dataset = many(tmp_path, 2)
    for file in (tmp_path / "train2017").glob("*.png"):
        file.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"\.png: not a picture.*in a row cannot be used") as caught:
        list(training_loader(dataset, SMALL, VARIED, batch_size=2, workers=workers))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_in_order_and_complete(tmp_path: Path, workers: int) -> None:
    dataset = many(tmp_path)
    batches = list(evaluation_loader(dataset, SMALL, batch_size=3, workers=workers))
    assert [t.image_id for _, targets in batches for t in targets] == list(range(1, 8))
    first = batches[0][1][0]
    assert first.is_crowd is not None
    assert first.is_crowd.tolist() == [False, True]
    np.testing.assert_array_equal(batches[0][0].sizes[0], SMALL.target_size(21, 40))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_stops_at_a_broken_picture(tmp_path: Path, workers: int) -> None:
    dataset = many(tmp_path)
    (tmp_path / "train2017" / "3.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"3\.png: not a picture") as caught:
        list(evaluation_loader(dataset, SMALL, batch_size=2, workers=workers))
    assert "\n" not in str(caught.value)


def test_batch_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch size must be at least 1, got 0"):
        training_loader(many(tmp_path), SMALL, VARIED, batch_size=0)
