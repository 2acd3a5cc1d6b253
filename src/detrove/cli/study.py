"""`detrove study`: why a detector sees what it sees in one picture, or what its queries do in a data set."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from detrove.cli.predict import refuse_taken
from detrove.cli.progress import told
from detrove.errors import InputError


def study(
    weights: Path,
    image: Path | None = None,
    /,
    *,
    data: Path | None = None,
    split: str = "val",
    format: str | None = None,
    layer: int = -1,
    head: int | None = None,
    query: int | None = None,
    pixel: str | None = None,
    temperature: Annotated[list[float] | None, Parameter(negative=())] = None,
    model: str | None = None,
    output: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Show why a detector sees what it sees in a picture.

    The page follows one query through the decoder and one cell of the picture through the encoder: boxes layer by
    layer, where attention looks (or samples) and whether content or position leads it there, the QKVA grid of an
    encoder's layer, and what its heads add and cost. With --data instead of a picture: what each query does in all of
    them, where it lives, how often objects change their query from layer to layer, and duplicates.

    Parameters
    ----------
    weights
        A run folder, a .safetensors file that detrove saved, an official checkpoint, a Hugging Face folder, or the
        name of a published file or hub model (downloaded).
    image
        The picture.
    data
        A labelled data set, in place of a picture.
    split
        The part of the data set to look at.
    format
        The format of the data, where its folder holds several: coco, voc, yolo or csv.
    layer
        The layer of encoder and decoder to show, counted from 0; -1 is the last.
    head
        A head to show by itself, counted from 0, where a figure has room for one. By default the mean of all.
    query
        The query to follow, counted from 0. By default the one that is surest.
    pixel
        The place whose cell is followed through the encoder, as x,y in pixels of the picture. By default the middle of
        the query's box.
    temperature
        A temperature of the sine encoding to draw, for detectors with anchors; may be repeated. Default: 2, 20, 200,
        10000.
    model
        The catalogue's name of the detector, where its file alone cannot tell.
    output
        A new folder for report.html, its figures as PNG files (with --data its arrays), and study.json. Default:
        study/IMAGE or study/DATA, numbered.
    as_json
        Print the numbers as JSON.
    """
    if output is not None:
        refuse_taken(output)
    _refuse_temperatures(temperature)
    if image is None:
        if data is None:
            raise InputError("study what? name a picture, or a data set with --data: detrove study WEIGHTS IMAGE")
        _study_data(weights, data, split, format, model, output, as_json)
        return
    if data is not None:
        raise InputError(f"either the picture {image} or --data {data}: leave one out")
    from detrove.inference import load
    from detrove.study.picture import parse_pixel, study_picture
    from detrove.study.study_report import TEMPERATURES, write_study

    place = None if pixel is None else parse_pixel(pixel)
    detector = load(weights, model)
    folder = output or _free_folder(Path("study") / image.stem)
    found = study_picture(detector, image, layer=layer, head=head, query=query, pixel=place)
    numbers = write_study(
        found,
        folder,
        title=f"{image.name}: what {detector.name or 'the detector'} sees, and why",
        temperatures=temperature or TEMPERATURES,
        facts={"weights": str(weights), "picture": str(image), "model": detector.name or "a config of its own"},
    )
    print(json.dumps(numbers, indent=1, ensure_ascii=False) if as_json else _summary(numbers))
    print(f"report: {folder / 'report.html'}", file=sys.stderr)


def _study_data(
    weights: Path, data: Path, split: str, format: str | None, model: str | None, output: Path | None, as_json: bool
) -> None:
    """The page about what queries do in a data set."""
    from detrove.data import open_dataset
    from detrove.inference import load
    from detrove.study.queries import PICTURES, study_queries
    from detrove.study.query_page import about_queries, write_query_study

    dataset = open_dataset(data, split, format)
    detector = load(weights, model)
    folder = output or _free_folder(Path("study") / data.resolve().name)
    with told("looking", min(PICTURES, len(dataset))) as tell:
        found = study_queries(detector, dataset, progress=lambda done, _: tell(done))
    title = f"{data.resolve().name}, {dataset.split}: what the queries of {detector.name or 'the detector'} do"
    numbers = write_query_study(found, folder, title)
    print(json.dumps(numbers, indent=1, ensure_ascii=False) if as_json else about_queries(found))
    print(f"report: {folder / 'report.html'}", file=sys.stderr)


def _refuse_temperatures(temperatures: Sequence[float] | None) -> None:
    for value in temperatures or ():
        if not 0 < value < float("inf"):
            raise InputError(f"temperature {value:g} must be above 0")


def _free_folder(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, … that is not there."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _summary(numbers: dict[str, Any]) -> str:
    """The query's way through the decoder, for a terminal."""
    from detrove.cli.tables import format_table

    rows = [
        [str(index), layer["name"], layer["score"], layer["overlap_with_last"]]
        for index, layer in enumerate(numbers["layers"])
    ]
    lines = [f"query {numbers['query']}:", format_table(["layer", "class", "score", "overlap with the last box"], rows)]
    if "terms" in numbers:
        parts = ", ".join(f"{name} {share:z.0%}" for name, share in numbers["terms"].items())
        lines.append(f"where it looks is decided by {parts}")
    return "\n".join(lines)
