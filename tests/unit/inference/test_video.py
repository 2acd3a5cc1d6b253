"""Videos made by the test, with a bright square that moves: where it is found, what is written, what is refused."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from detrove.errors import InputError
from detrove.inference import Detector
from detrove.inference.video import expected_frames, predict_video, read_frames

av = pytest.importorskip("av")
WIDTH, HEIGHT, SIDE, RATE = 65, 48, 16, 10


def make_video(path: Path, frames: int, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """A white square on black, `frame` pixels from the left, around the same row."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 4_000_000
        for number in range(frames):
            pixels = np.zeros((height, width, 3), dtype=np.uint8)
            left = number % (width - SIDE)
            pixels[SIDE : 2 * SIDE, left : left + SIDE] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_video(tmp_path / "walk.avi", 12)


def test_frames_come_in_order_and_upright(video: Path) -> None:
    frames = list(read_frames(video))
    assert expected_frames(video) == len(frames) == 12
    assert {frame.size for frame in frames} == {(WIDTH, HEIGHT)}
    lefts = [int(np.flatnonzero((np.asarray(frame)[..., 1] > 128).any(axis=0))[0]) for frame in frames]
    assert np.abs(np.array(lefts) - np.arange(12)).max() <= 1


def test_every_frame_is_told_and_drawn(video: Path, detector: Detector, tmp_path: Path) -> None:
    told: list[int] = []
    drawn, labels = tmp_path / "out" / "walk.mp4", tmp_path / "out" / "walk.json"
    found = predict_video(detector, video, drawn, labels, batch_size=5, tell=told.append)
    assert (found.width, found.height, found.rate, found.frames) == (WIDTH, HEIGHT, RATE, 12)
    assert found.counts == {"spot": 12, "picture": 12}
    assert told == list(range(1, 13))
    written = json.loads(labels.read_text())
    assert (written["width"], written["height"], written["fps"]) == (WIDTH, HEIGHT, RATE)
    assert [frame["time"] for frame in written["frames"]] == [number / RATE for number in range(12)]
    frames = list(read_frames(video))
    for frame, alone in zip(written["frames"], detector.predict(frames), strict=True):
        assert [entry["name"] for entry in frame["detections"]] == alone.names
        boxes = [entry["box_xyxy"] for entry in frame["detections"]]
        np.testing.assert_allclose(boxes, alone.boxes.numpy(), atol=0.006)
    assert sorted(path.name for path in drawn.parent.iterdir()) == ["walk.json", "walk.mp4"]
    pictures = list(read_frames(drawn))
    assert len(pictures) == 12
    assert pictures[0].size == (WIDTH - 1, HEIGHT)  # even sides
    differences = [
        np.abs(np.asarray(a, dtype=int)[:, : WIDTH - 1] - np.asarray(b, dtype=int)).max()
        for a, b in zip(frames, pictures, strict=True)
    ]
    assert min(differences) > 60  # boxes are drawn


@pytest.mark.slow
def test_memory_does_not_grow_with_length(detector: Detector, tmp_path: Path) -> None:
    def highest(frames: int) -> int:
        path = make_video(tmp_path / f"{frames}.avi", frames, 320, 240)
        tracemalloc.start()
        predict_video(detector, path, labels=tmp_path / f"{frames}.json", batch_size=2)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    highest(10)  # what is imported and kept once
    assert highest(120) < 1.5 * highest(30)


def test_what_cannot_be_read_is_refused(detector: Detector, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    labels = tmp_path / "out.json"
    with pytest.raises(InputError, match=r"text.mp4: cannot be decoded as a video"):
        predict_video(detector, tmp_path / "text.mp4", labels=labels)
    with pytest.raises(InputError, match=r"none.mp4: no such file"):
        list(read_frames(tmp_path / "none.mp4"))
    assert not list(tmp_path.glob("out*"))


def test_nothing_half_written_is_left(
    video: Path, detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Detector, *_: object) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(Detector, "_detect_ready", fail)
    with pytest.raises(RuntimeError):
        predict_video(detector, video, tmp_path / "out" / "a.mp4", tmp_path / "out" / "a.json")
    assert not list((tmp_path / "out").iterdir())
