from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import coco_content, write_coco, write_picture

from detrove.data import Augmentation, collate, open_dataset, training_loader
from detrove.data.batching import EpochBatches, canvas_of, evaluation_batch, explained_worker_deaths
from detrove.data.dataset import DetectionDataset, evenly_spaced
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


def test_a_batch_to_evaluate_on_has_the_single_objects_of_its_pictures(tmp_path: Path) -> None:
    dataset = many(tmp_path, 2)
    written = [dataset[index] for index in (1, 0)]
    images, targets = evaluation_batch(written, SMALL)
    for pixels, sample in zip(images.pixels, written, strict=True):
        expected = SMALL(sample.image)
        assert torch.equal(pixels[:, : expected.shape[1]], expected)
    assert [target.image_id for target in targets] == [2, 1]
    assert written[1].targets.is_crowd is not None
    assert written[1].targets.is_crowd.tolist() == [False, True]
    assert torch.equal(targets[1].boxes, written[1].targets.boxes[:1])


def test_sides_of_a_canvas() -> None:
    assert canvas_of(1, 32) == (32, 32)
    assert canvas_of(33, 64) == (64, 64)
    assert canvas_of(33, 65, canvas=1) == (33, 65)


def test_positions_are_spaced_evenly() -> None:
    assert evenly_spaced(12, 3) == [0, 6, 11]
    assert evenly_spaced(5, 1) == [0]
    assert evenly_spaced(0, 4) == []
    for length in range(1, 40):
        assert evenly_spaced(length, 99) == list(range(length))
        for number in range(2, length + 1):
            found = evenly_spaced(length, number)
            assert len(found) == number
            assert (found[0], found[-1]) == (0, length - 1)
            assert np.ptp(np.diff(found)) <= 1
            assert min(np.diff(found)) >= 1


@pytest.mark.parametrize(
    ("length", "batch_size", "sizes"),
    [(8, 4, [4, 4]), (9, 4, [4, 5]), (10, 4, [4, 4, 2]), (1, 4, [1]), (3, 4, [3]), (3, 1, [1, 1, 1])],
)
def test_every_picture_once_and_none_alone(length: int, batch_size: int, sizes: list[int]) -> None:
    batches = EpochBatches(length, batch_size, seed=0)
    listed = list(batches)
    assert [len(batch) for batch in listed] == sizes
    assert len(batches) == len(sizes)
    assert sorted(index for batch in listed for _, index, _ in batch) == list(range(length))


@pytest.mark.parametrize("aspects", [None, np.exp(np.random.default_rng(0).uniform(-1, 1, 23))])
def test_processes_share_every_batch(aspects: np.ndarray | None) -> None:
    whole = indices(EpochBatches(23, 5, seed=1, aspects=aspects, smallest=4))
    parts = [indices(EpochBatches(23, 5, 1, process, 3, aspects, smallest=4)) for process in range(3)]
    assert sorted(len(batch) for batch in whole) == [5, 5, 5, 8]  # the three left over join a batch
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [index for share in shares for index in share] == batch
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("length", "batch_size"), [(2, 8), (8, 2)])
def test_a_process_without_a_picture_is_refused(length: int, batch_size: int) -> None:
    with pytest.raises(InputError, match="is 2, less than the 3 processes"):
        EpochBatches(length, batch_size, 0, 0, 3)


@pytest.mark.parametrize("aspects", [None, np.exp(np.random.default_rng(0).uniform(-1, 1, 20))])
def test_an_epoch_can_begin_at_any_batch(aspects: np.ndarray | None) -> None:
    batches = EpochBatches(20, 3, seed=1, aspects=aspects, share_scale=True)
    batches.epoch = 2
    whole = list(batches)
    for first in range(len(whole) + 1):
        batches.first = first
        assert list(batches) == whole[first:]


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = EpochBatches(50, 8, seed)
        batches.epoch = epoch
        return [index for batch in batches for _, index, _ in batch]

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


def indices(batches: EpochBatches) -> list[list[int]]:
    return [[draw.index for draw in batch] for batch in batches]


def test_rectangular_batches_hold_similar_shapes_and_every_picture_once() -> None:
    aspects = np.exp(np.random.default_rng(0).uniform(-1, 1, 99))
    batches = EpochBatches(99, 8, seed=0, aspects=aspects)
    first = indices(batches)
    assert sorted(index for batch in first for index in batch) == list(range(99))
    assert [len(batch) for batch in first].count(8) == 12
    spreads = [aspects[batch].max() / aspects[batch].min() for batch in first]
    assert np.median(spreads) < 1.3  # of a ratio of 7.4 between all
    assert first == indices(batches)
    batches.epoch = 1
    again = indices(batches)
    assert {frozenset(batch) for batch in again} != {frozenset(batch) for batch in first}
    middles = [aspects[batch].mean() for batch in first]
    assert middles != sorted(middles)


def test_processes_share_the_scale_of_a_batch() -> None:
    places = [
        [batch[0].terms.scale_place for batch in EpochBatches(16, 8, 0, process, 2, share_scale=True)]
        for process in (0, 1)
    ]
    assert places[0] == places[1]
    assert len(set(places[0])) == 2


@pytest.mark.slow
def test_rectangular_batches_are_hardly_padded(tmp_path: Path) -> None:
    images = [
        {"id": i, "file_name": f"{i}.png", "width": 40 + i % 2 * 40, "height": 120 - i % 2 * 80} for i in range(16)
    ]
    write_coco(tmp_path, images=images, annotations=[])
    for image in images:
        write_picture(tmp_path / "train2017" / image["file_name"], image["width"], image["height"])
    dataset = open_dataset(tmp_path)
    varied = Augmentation(crop=0.5, scale=(0.5, 1.0))
    waste = [
        np.mean([images.padding_mask.float().mean().item() for images, _ in loader])
        for loader in (
            training_loader(dataset, SMALL, varied, batch_size=4, workers=0, rectangular=rectangular)
            for rectangular in (False, True)
        )
    ]
    assert waste[1] < 0.05


def test_batches_have_few_shapes(tmp_path: Path) -> None:
    loader = training_loader(many(tmp_path), Preprocessing(longer=80), VARIED, batch_size=3, workers=0)
    for images, _ in loader:
        needed = images.sizes.amax(dim=0)
        shape = torch.tensor(images.pixels.shape[-2:])
        assert (shape % 32 == 0).all()
        assert (shape - needed < 32).all()
        assert images.padding_mask.logical_not().sum() == images.sizes.prod(dim=1).sum()


def test_mixing_ends_with_its_part_of_the_training(tmp_path: Path) -> None:
    dataset = many(tmp_path)
    plain, strong = (
        training_loader(dataset, SMALL, Augmentation(mosaic=mosaic, mix_until=0.5), batch_size=7, workers=0)
        for mosaic in (0.0, 1.0)
    )
    expected = next(iter(plain))[0].pixels
    for done, same in ((0.0, False), (0.49, False), (0.5, True), (0.9, True)):
        strong.set_epoch(0, done)
        assert torch.equal(next(iter(strong))[0].pixels, expected) == same


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_changes_no_sample_whatever_it_holds(tmp_path: Path, workers: int) -> None:
    """The first epoch fills it, the second reads it, and a fresh one gives the second epoch alike."""
    dataset = many(tmp_path)
    epochs = []
    for start in (0, 1):
        loader = training_loader(dataset, SMALL, VARIED, batch_size=3, seed=5, workers=workers, cache=9_000)
        assert loader.cache is not None
        assert 0 < loader.cache.num_kept < 7
        for epoch in range(start, 2):
            loader.set_epoch(epoch)
            epochs.append(list(loader))
    for (cached, _), (fresh, _) in zip(epochs[1], epochs[2], strict=True):
        assert torch.equal(cached.pixels, fresh.pixels)


def test_a_lost_worker_is_one_clear_line() -> None:
    """The two messages of torch 2.15, from its signal handler and from its queue."""
    signal_handlers = "DataLoader worker (pid 7) is killed by signal: Killed. "
    for text in (signal_handlers, "DataLoader worker (pid(s) 7, 8) exited unexpectedly"):
        with pytest.raises(InputError, match="that loads pictures was lost") as caught, explained_worker_deaths():
            raise RuntimeError(text)
        assert "workers=0" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(RuntimeError, match="something else"), explained_worker_deaths():
        raise RuntimeError("something else")


def test_a_worker_that_is_really_killed(tmp_path: Path) -> None:
    loader = training_loader(many(tmp_path), SMALL, VARIED, batch_size=1, workers=1)

    def killed_midway() -> None:
        with explained_worker_deaths():
            for _ in loader:
                for child in multiprocessing.active_children():
                    os.kill(child.pid, signal.SIGKILL)
                time.sleep(30)  # until torch's signal handler interrupts, here and nowhere later

    with pytest.raises(InputError, match=r"lost \((killed by signal: Killed|exited unexpectedly)\)"):
        killed_midway()


def test_batch_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch size must be at least 1, got 0"):
        training_loader(many(tmp_path), SMALL, VARIED, batch_size=0)
