"""`detrove predict`: what a detector sees in pictures, as drawings, tables and labels."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from detrove.cli.progress import told
from detrove.cli.tables import format_table
from detrove.errors import InputError, nearest
from detrove.tiling import asked_tiling

if TYPE_CHECKING:
    from PIL import Image

    from detrove.inference import Detector
    from detrove.inference.video import VideoFound
    from detrove.inference.writers import PictureFound
    from detrove.structures import LabelMap

KINDS = ("pictures", "coco", "csv", "coco-labels", "yolo")
UNREADABLE_SHOWN = 3


def predict(
    weights: Path,
    source: Annotated[list[str], Parameter(negative=())],
    /,
    *,
    model: str | None = None,
    output: Path | None = None,
    threshold: float | None = None,
    save: str = "pictures,coco,csv",
    batch_size: int = 8,
    tiles: int | None = None,
    tile_overlap: float | None = None,
    engine: str | None = None,
    precision: str = "float32",
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Find objects in pictures.

    A table of counts, and with --output drawings and labels. A picture that cannot be read is named at the end; all
    others are done.

    Parameters
    ----------
    weights
        A run folder, a .safetensors file that detrove saved, an official checkpoint, a Hugging Face folder, or the
        name of a published file or hub model (downloaded).
    source
        Pictures, folders of pictures, patterns such as "photos/*.jpg", or videos. Of a video, --output gets one with
        its boxes drawn and what was found in each frame as JSON.
    model
        The catalogue's name of the detector, where its file alone cannot tell.
    output
        A new folder to write to.
    threshold
        Show detections with at least this score, 0 to 1. By default each class has the threshold stored with the
        weights, or 0.5.
    save
        What to write, separated by commas: pictures (drawn), coco (results), csv (counts), and data sets for annotation
        tools: coco-labels, yolo.
    batch_size
        Pictures, or tiles of them, computed at once.
    tiles
        Cut large pictures into tiles of this many pixels and look at each, and at the whole; 0: whole pictures only. By
        default as the detector was trained.
    tile_overlap
        What neighbouring tiles share, 0 to 0.8 of their side; objects up to that size are whole in a tile. Default 0.2.
    engine
        Compute faster by: torch, onnxruntime or openvino. By default the model runs as it was trained.
    precision
        What the engine computes in: float32, or bfloat16 or float16 where the machine has it.
    as_json
        Print everything as JSON.
    """
    kinds = _kinds(save)
    if output is not None:
        refuse_taken(output)
    from detrove.inference import load, writers

    asked_tiling(tiles, tile_overlap)  # refuses what cannot be before anything is read
    paths, videos = _files(source)
    if output is not None and "yolo" in kinds:
        writers.refuse_ambiguous_labels(paths)
    detector = with_engine(load(weights, model), engine, precision)
    set_tiling(detector, tiles, tile_overlap)
    drawings = output / "pictures" if output is not None and "pictures" in kinds else None
    found, unreadable = _detect(detector, paths, threshold, batch_size, drawings)
    if output is not None and paths:
        _write(output, kinds, found, detector.label_map)
    filmed = _watch(detector, videos, threshold, batch_size, output, "pictures" in kinds)
    if as_json:
        print(json.dumps({**_as_json(found, unreadable), "videos": _videos_json(filmed)}, indent=1, ensure_ascii=False))
    else:
        tables = [_table(found, detector.label_map)] * bool(paths) + [_video_table(filmed)] * bool(videos)
        print("\n\n".join(tables))
        if output is not None and (found or filmed):
            print(f"\nwritten to {output}")
    if unreadable:
        raise InputError(_unreadable_line(unreadable, len(paths)))


def refuse_taken(output: Path) -> None:
    """Raise `InputError` where the output is there already and holds something."""
    if output.is_dir() and not any(output.iterdir()):
        return
    if output.exists():
        raise InputError(f"{output}: exists already; name another --output, or remove it")


def set_tiling(detector: Detector, tiles: int | None, overlap: float | None) -> None:
    """Let the detector look as the options say, and tell where that is not at whole pictures."""
    asked = asked_tiling(tiles, overlap, detector.tiling)
    if asked is not None:
        why = "" if tiles is not None else ", as it was trained (--tiles 0: whole pictures only)"
        print(f"looking at {asked.describe()}{why}", file=sys.stderr)
    detector.tiling = asked


def with_engine(detector: Detector, engine: str | None, precision: str) -> Detector:
    """The detector under the engine that was asked for, if one was; a precision alone asks for torch's."""
    if engine is None and precision == "float32":
        return detector
    from detrove.export import optimize

    return optimize(detector, engine or "torch", precision)


def _kinds(save: str) -> list[str]:
    kinds = [kind.strip() for kind in save.split(",") if kind.strip()]
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--save {kind}: unknown; {nearest(kind, KINDS)}")
    return kinds


def _files(sources: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The pictures and the videos that the sources stand for, each once."""
    from detrove.inference.sources import expand
    from detrove.inference.video import is_video

    files: dict[Path, Path] = {}
    for source in sources:
        for path in expand(source) or [Path(source)]:
            files.setdefault(Path(os.path.abspath(path)), path)
    pictures = [path for path in files.values() if not is_video(path)]
    return pictures, [path for path in files.values() if is_video(path)]


def _watch(
    detector: Detector,
    videos: Sequence[Path],
    threshold: float | None,
    batch_size: int,
    output: Path | None,
    drawn: bool,
) -> list[VideoFound]:
    """What was found in each video; written as it is found."""
    from detrove.inference import writers
    from detrove.inference.video import expected_frames, predict_video

    found = []
    names = writers.relative_names(videos)
    stems = Counter(name.with_suffix("") for name in names)
    for path, name in zip(videos, names, strict=True):
        # clip.mp4 is drawn into clip.mp4, and beside a clip.avi into clip.mp4.mp4
        base = name.name if stems[name.with_suffix("")] > 1 else name.stem
        place = None if output is None else output / "videos" / name.parent
        with told(path.name, expected_frames(path) or 0, "frames") as tell:
            found.append(
                predict_video(
                    detector,
                    path,
                    place / f"{base}.mp4" if place is not None and drawn else None,
                    place / f"{base}.json" if place is not None else None,
                    threshold,
                    batch_size,
                    tell,
                )
            )
    return found


def _video_table(found: Sequence[VideoFound]) -> str:
    """Of each video its length, and how many of each class there are in a frame on average."""
    names = sorted({name for one in found for name in one.counts})
    rows = [
        [str(one.path), one.frames, f"{one.rate:.4g}", *(f"{one.counts[name] / one.frames:.2f}" for name in names)]
        for one in found
    ]
    return format_table(["video", "frames", "fps", *(f"{name}, a frame" for name in names)], rows)


def _videos_json(found: Sequence[VideoFound]) -> list[dict[str, Any]]:
    return [
        {
            "path": str(one.path),
            "width": one.width,
            "height": one.height,
            "fps": one.rate,
            "frames": one.frames,
            "counts": dict(one.counts),
        }
        for one in found
    ]


def _detect(
    detector: Detector, paths: Sequence[Path], threshold: float | None, batch_size: int, drawings: Path | None
) -> tuple[list[PictureFound], dict[Path, str]]:
    """What was found in each readable picture, and why the others could not be read. Drawn at once, if at all."""
    from itertools import islice

    from detrove.inference import writers
    from detrove.inference.ahead import ahead

    names = dict(zip(paths, writers.relative_names(paths), strict=True))
    found: list[writers.PictureFound] = []
    unreadable: dict[Path, str] = {}
    at_once = max(batch_size, 1)
    read = ahead(paths, _read, depth=at_once)
    with told("predicting", len(paths)) as tell:
        for start in range(0, len(paths), at_once):
            pictures = {}
            for path, picture in zip(paths[start : start + at_once], islice(read, at_once), strict=True):
                if isinstance(picture, InputError):
                    unreadable[path] = str(picture)
                else:
                    pictures[path] = picture
            seen = detector.predict(list(pictures.values()), threshold, batch_size)
            for (path, picture), detections in zip(pictures.items(), seen, strict=True):
                found.append(writers.PictureFound(path, picture.height, picture.width, detections))
                if drawings is not None:
                    writers.write_drawing(drawings / names[path], picture, detections)
            tell(min(start + batch_size, len(paths)))
    return found, unreadable


def _read(path: Path) -> Image.Image | InputError:
    """The picture, or why it cannot be read."""
    from detrove.pictures import read_picture

    try:
        return read_picture(path)
    except InputError as error:
        return error


def _write(output: Path, kinds: Sequence[str], found: Sequence[PictureFound], label_map: LabelMap) -> None:
    """Everything but the drawings."""
    from detrove.checkpoints.files import write_atomically
    from detrove.inference import writers

    if "coco" in kinds:
        writers.write_json(output / "coco-results.json", writers.coco_results(found))
    if "csv" in kinds:
        write_atomically(output / "counts.csv", writers.counts_csv(found, label_map).encode(errors=writers.ESCAPED))
    if "coco-labels" in kinds:
        writers.write_coco_set(output / "coco-labels", found, label_map)
    if "yolo" in kinds:
        writers.write_yolo_set(output / "yolo", found, label_map)


def _table(found: Sequence[PictureFound], label_map: LabelMap) -> str:
    """Counts per picture; only classes that were seen have a column."""
    counts = [one.counts for one in found]
    seen = [name for name in label_map.names if any(count[name] for count in counts)]
    rows = [[str(one.path), *(count[name] for name in seen)] for one, count in zip(found, counts, strict=True)]
    if not seen:
        rows = [[*row, "nothing found"] for row in rows]
        return format_table(["picture", ""], rows)
    if len(rows) > 1:
        rows.append(["total", *(sum(count[name] for count in counts) for name in seen)])
    return format_table(["picture", *seen], rows)


def _as_json(found: Sequence[PictureFound], unreadable: dict[Path, str]) -> dict[str, Any]:
    return {
        "pictures": [
            {
                "path": str(one.path),
                "width": one.width,
                "height": one.height,
                "counts": dict(one.counts),
                "detections": [
                    {"name": name, "score": score, "box_xyxy": box}
                    for name, score, box in zip(
                        one.detections.names,
                        one.detections.scores.tolist(),
                        one.detections.boxes.tolist(),
                        strict=True,
                    )
                ],
            }
            for one in found
        ],
        "unreadable": [{"path": str(path), "error": error} for path, error in unreadable.items()],
    }


def _unreadable_line(unreadable: dict[Path, str], num_pictures: int) -> str:
    """One line that names what could not be read, and why."""
    messages = list(unreadable.values())
    if num_pictures == 1:
        return messages[0]
    shown = "; ".join(messages[:UNREADABLE_SHOWN])
    more = f"; and {len(messages) - UNREADABLE_SHOWN} more" if len(messages) > UNREADABLE_SHOWN else ""
    return f"{len(messages)} of {num_pictures} pictures could not be read, the others are done: {shown}{more}"
