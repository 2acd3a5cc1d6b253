"""Videos, frame by frame: decoded as the detector asks for them, drawn and written as it answers. Memory stays the same
however long they are."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from detrove.checkpoints.files import whole_or_not_at_all
from detrove.drawing import draw_detections
from detrove.errors import InputError
from detrove.inference.detector import Detector
from detrove.structures import Detections

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
CODECS = ("libx264", "mpeg4")
"""Encoders to write with, the first that this build of FFmpeg has."""


@dataclass(frozen=True)
class VideoFound:
    """What a video is, upright, and what was found in all its frames: `counts` by class."""

    path: Path
    width: int
    height: int
    rate: float
    frames: int
    counts: Counter[str]


def is_video(path: Path) -> bool:
    """Whether the name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def expected_frames(path: Path) -> int | None:
    """How many frames the video says it has, or its length comes to; None where it does not tell."""
    with _opened(path) as (container, stream):
        if stream.frames:
            return stream.frames
        if container.duration and stream.average_rate:
            return round(container.duration / 1e6 * float(stream.average_rate))
        return None


def read_frames(path: Path) -> Iterator[Image.Image]:
    """The upright frames of a video as RGB, one after the other. Raises `InputError` where it cannot be decoded."""
    with _opened(path) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            turn = getattr(frame, "rotation", 0)  # degrees counterclockwise; unknown to PyAV before 14
            picture = frame.to_image()
            yield picture.rotate(turn, expand=True) if turn else picture


def predict_video(
    detector: Detector,
    path: Path,
    drawn: Path | None = None,
    labels: Path | None = None,
    threshold: float | None = None,
    batch_size: int = 8,
    tell: Callable[[int], None] | None = None,
) -> VideoFound:
    """Detect in every frame; write the video with boxes to `drawn` (.mp4) and the detections to `labels` (.json).

    `labels` holds `width`, `height`, `fps` and `frames`: for each, in order, its `time` in seconds and `detections`
    (`name`, `score`, `box_xyxy` in pixels). Both files get their names when they are whole. `tell` is called with the
    frames done.
    """
    frames: deque[Image.Image] = deque()  # decoded, not yet answered: a few batches at most

    def kept() -> Iterator[Image.Image]:
        for frame in read_frames(path):
            frames.append(frame)
            yield frame

    rate, counts, done = _rate(path), Counter[str](), 0
    size: tuple[int, int] = (0, 0)
    with _drawing(drawn, rate) as draw, _labelling(labels) as label:
        for detections in detector.stream(kept(), threshold, batch_size):
            frame = frames.popleft()
            if not done:
                size = frame.size
                label({"video": path.name, "width": size[0], "height": size[1], "fps": float(rate)})
            draw(frame, detections)
            label({"time": round(done / float(rate), 4), "detections": _entries(detections)})
            counts.update(detections.names)
            done += 1
            if tell is not None:
                tell(done)
        if not done:
            raise InputError(f"{path}: no frame could be decoded; is it a video?")
    return VideoFound(path, size[0], size[1], float(rate), done, counts)


def _entries(detections: Detections) -> list[dict[str, Any]]:
    columns = (detections.names, detections.scores.tolist(), detections.boxes.tolist())
    return [
        {"name": name, "score": round(score, 4), "box_xyxy": [round(value, 2) for value in box]}
        for name, score, box in zip(*columns, strict=True)
    ]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its first stream of pictures."""
    av = _av()
    if not path.exists():
        raise InputError(f"{path}: no such file")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path}: holds no pictures, only {', '.join(s.type for s in container.streams)}")
            yield container, container.streams.video[0]
    except av.FFmpegError as error:
        raise InputError(f"{path}: cannot be decoded as a video ({error.strerror})") from error


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise InputError('videos need PyAV: pip install "detrove[video]"') from error
    return av


def _rate(path: Path) -> Fraction:
    with _opened(path) as (_, stream):
        return Fraction(stream.average_rate or stream.base_rate or 25)


@contextmanager
def _drawing(path: Path | None, rate: Fraction) -> Iterator[Callable[[Image.Image, Detections], None]]:
    """A function that draws a frame and appends it to the video; the file gets its name at the end."""
    if path is None:
        yield lambda *_: None
        return
    av = _av()
    codec = next((name for name in CODECS if name in av.codecs_available), CODECS[-1])
    with whole_or_not_at_all(path) as beside, av.open(str(beside), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.pix_fmt = "yuv420p"  # what every player takes; it wants even sides
        sides: list[int] = []

        def draw(frame: Image.Image, detections: Detections) -> None:
            if not sides:
                sides.extend(max(2, side - side % 2) for side in frame.size)
                stream.width, stream.height = sides
            picture = draw_detections(frame, detections).crop((0, 0, sides[0], sides[1]))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))

        yield draw
        if sides:
            container.mux(stream.encode())


@contextmanager
def _labelling(path: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that takes the facts of the video first, and then each frame; the file gets its name at the end."""
    if path is None:
        yield lambda *_: None
        return
    with whole_or_not_at_all(path) as beside, beside.open("w", encoding="utf-8") as file:
        number = 0

        def write(values: dict[str, Any]) -> None:
            nonlocal number
            text = json.dumps(values, ensure_ascii=False)
            # the facts stay open for the frames, a line each
            file.write(f'{text[:-1]}, "frames": [' if number == 0 else f"{',' * (number > 1)}\n{text}")
            number += 1

        yield write
        file.write("\n]}\n")
