"""Streams of pictures: the order, the memory, the failures, and that nothing is found otherwise than by `predict`."""

from __future__ import annotations

import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrove.errors import InputError
from detrove.inference import Detector
from detrove.inference.ahead import ahead

SHAPES = [(32, 64), (64, 32), (128, 128), (16, 16), (32, 64), (48, 64), (64, 32)]


def picture(index: int) -> np.ndarray:
    """A bright square whose place tells which picture it is."""
    array = np.zeros((*SHAPES[index % len(SHAPES)], 3), dtype=np.uint8)
    array[index % 8 : index % 8 + 4, 2:8] = 255
    return array


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, dtype=np.uint8)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_it_gives_what_predict_gives_picture_by_picture(detector: Detector, batch_size: int) -> None:
    pictures = [picture(index) for index in range(23)]
    alone = [detector.predict(one) for one in pictures]
    for found in (detector.stream(iter(pictures), batch_size=batch_size), detector.predict(pictures, None, batch_size)):
        seen = list(found)
        assert [one.boxes.tolist() for one in seen] == [one.boxes.tolist() for one in alone]
        assert [one.names for one in seen] == [one.names for one in alone]


def test_pictures_of_one_size_share_batches(detector: Detector) -> None:
    detector.predict([white(32, 64), white(64, 32)] * 4, batch_size=4)
    assert detector.model.batch_shapes == [(4, 3, 32, 64), (4, 3, 64, 32)]


def test_tiled_and_whole_pictures_keep_their_order(detector: Detector) -> None:
    pictures = [white(200, 200), picture(0), white(200, 150), picture(1)]
    tiled = detector.predict(pictures, threshold=0, batch_size=3, tiles=64)
    assert [one.boxes.tolist() for one in tiled] == [
        detector.predict(one, threshold=0, tiles=64).boxes.tolist() for one in pictures
    ]


def test_an_endless_source_is_read_only_a_little_ahead(detector: Detector) -> None:
    read = []

    def frames():
        for index in count():
            read.append(index)
            yield picture(index)

    stream = detector.stream(frames(), batch_size=2)
    for _ in range(40):
        next(stream)
    assert len(read) <= 40 + 3 * 8
    stream.close()


def test_with_a_batch_of_one_each_picture_is_answered_at_once(detector: Detector) -> None:
    stream = detector.stream((picture(index) for index in count()), batch_size=1)
    for done in range(1, 4):
        next(stream)
        shapes: Any = detector.model.batch_shapes
        assert len(shapes) == done
    stream.close()


def test_folders_and_files_among_the_sources(detector: Detector, tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(picture(index)).save(tmp_path / f"{index}.png")
    wanted = [detector.predict(picture(index)).boxes.tolist() for index in range(3)]
    assert [one.boxes.tolist() for one in detector.stream(tmp_path)] == wanted
    assert [one.boxes.tolist() for one in detector.stream([tmp_path / "0.png", picture(1), tmp_path])][2:] == wanted


def test_what_comes_before_a_bad_file_is_answered_and_the_file_is_named(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    sources = [picture(0), picture(1), tmp_path / "bad.jpg", picture(3)]
    stream = detector.stream(sources, batch_size=2)
    assert len([next(stream), next(stream)]) == 2
    with pytest.raises(InputError, match=r"bad\.jpg"):
        next(stream)
    with pytest.raises(InputError, match=r"bad\.jpg"):
        detector.predict(sources)


def test_it_refuses_at_once(detector: Detector) -> None:
    with pytest.raises(InputError, match="batch_size"):
        detector.stream([], batch_size=0)
    with pytest.raises(InputError, match="between 0 and 1"):
        detector.stream([], threshold=2)


def test_ahead_keeps_the_order_and_the_bound() -> None:
    made, lock = [], threading.Lock()

    def make(item: int) -> int:
        time.sleep(0.001 * (item % 3))
        with lock:
            made.append(item)
        return -item

    results = ahead(count(), make, depth=5)
    for wanted in range(30):
        assert next(results) == -wanted
        assert len(made) <= wanted + 6
    results.close()


def test_ahead_works_while_the_caller_does_not_ask() -> None:
    started = threading.Event()

    def make(item: int) -> int:
        if item == 1:
            started.set()
        return item

    results = ahead(range(3), make, depth=2)
    assert next(results) == 0
    assert started.wait(10)
    assert list(results) == [1, 2]


def test_ahead_raises_in_its_place() -> None:
    def make(item: int) -> float:
        return 1 / (item - 2)

    results = ahead(range(5), make, depth=4)
    assert [next(results), next(results)] == [-0.5, -1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
