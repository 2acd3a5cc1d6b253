"""`detrove data split`: a labelled data set divided anew."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from detrove.cli.data_convert import read_splits, refuse_taken, refuse_unknown_writer, report
from detrove.errors import InputError

NAMES = {2: ("train", "val"), 3: ("train", "val", "test")}


def split_data(
    data: Path,
    /,
    *,
    output: Path,
    ratio: str = "0.8,0.1,0.1",
    seed: int = 0,
    to: str | None = None,
    format: str | None = None,
    classes: str | None = None,
    rename: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    link: Annotated[bool, Parameter(negative=())] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Divide a data set into train, val and test: every class in its share, look-alikes together.

    All splits that DATA has are put together first. Near-duplicates and neighbouring frames of a video, by the running
    numbers in their names, never come to lie in different splits.

    Parameters
    ----------
    data
        A data set in COCO, VOC, YOLO or CSV format.
    output
        A new folder.
    ratio
        The shares of train and val, or of train, val and test.
    seed
        Another seed, other splits; the same, the same.
    to
        The format to write: coco or yolo. By default YOLO for YOLO, else COCO.
    format
        The format of DATA where it holds several: coco, voc, yolo or csv.
    classes
        Keep these classes alone, separated by commas.
    rename
        old=new, as often as needed; two classes renamed to one become one.
    link
        Make hard links to the pictures instead of copies.
    as_json
        Print what was written as JSON.
    """
    shares = parse_ratio(ratio)
    if to is not None:
        refuse_unknown_writer(to)
    refuse_taken(output)
    from detrove.data import find_format
    from detrove.data.annotations import joined
    from detrove.data.splits import look_alikes, make_splits
    from detrove.data.writers import WRITERS

    everything = joined(list(read_splits(data, format, classes, rename).values()))
    print(f"looking for look-alikes among {len(everything):,} pictures", file=sys.stderr)
    groups = look_alikes(list(everything.paths))
    parts = make_splits(everything, shares, seed, groups)
    splits = {name: everything.take(part) for name, part in zip(NAMES[len(shares)], parts, strict=True)}
    writer = to or ("yolo" if (format or find_format(data)) == "yolo" else "coco")
    written = WRITERS[writer](output, splits, link)
    if num_kept_together := len(groups) - len(set(groups.tolist())):
        written.notes.append(f"{num_kept_together} pictures look like another one and stayed with it")
    report(written, as_json)


def parse_ratio(text: str) -> list[float]:
    """The shares of a text such as 0.8,0.1,0.1; `InputError` where they are not two or three positive numbers."""
    try:
        shares = [float(share) for share in text.replace(":", ",").split(",")]
    except ValueError:
        shares = []
    if len(shares) not in NAMES or not all(0 < share < float("inf") for share in shares):
        raise InputError(f"--ratio {text}: give two or three positive shares, such as 0.8,0.1,0.1")
    return shares
