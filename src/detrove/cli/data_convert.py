"""`detrove data convert`: a labelled data set in another format, or with other classes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from detrove.cli.tables import format_table
from detrove.errors import InputError, nearest

if TYPE_CHECKING:
    from detrove.data.annotations import Annotations
    from detrove.data.writers import Written


def convert_data(
    data: Path,
    /,
    *,
    to: str,
    output: Path,
    format: str | None = None,
    classes: str | None = None,
    rename: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    link: Annotated[bool, Parameter(negative=())] = False,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Write a data set in another format: all its splits, boxes as they are, pictures copied.

    Parameters
    ----------
    data
        A data set in COCO, VOC, YOLO or CSV format.
    to
        The format to write: coco or yolo.
    output
        A new folder.
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
    refuse_unknown_writer(to)
    refuse_taken(output)
    splits = read_splits(data, format, classes, rename)
    from detrove.data.writers import WRITERS

    report(WRITERS[to](output, splits, link), as_json)


def read_splits(data: Path, format: str | None, classes: str | None, rename: tuple[str, ...]) -> dict[str, Annotations]:
    """The splits of a data set with their classes changed; what was found goes to standard error."""
    from detrove.data import find_splits, open_dataset

    chosen = None if classes is None else [name.strip() for name in classes.split(",") if name.strip()]
    splits = {}
    for split in find_splits(data, format):
        dataset = open_dataset(data, split, format, chosen, parse_renames(rename))
        print(dataset.describe(), file=sys.stderr)
        for warning in dataset.annotations.warnings:
            print(f"detrove: warning: {warning}", file=sys.stderr)
        splits[split] = dataset.annotations
    return splits


def parse_renames(pairs: tuple[str, ...]) -> dict[str, str]:
    """old -> new of texts old=new; `InputError` where one is not."""
    renames = {}
    for pair in pairs:
        old, equals, new = pair.partition("=")
        if not (old.strip() and equals and new.strip()):
            raise InputError(f"--rename {pair}: expected old=new, such as --rename lorry=truck")
        renames[old.strip()] = new.strip()
    return renames


def refuse_unknown_writer(name: str) -> None:
    """Raise `InputError` where there is no writer of this name."""
    from detrove.data.writers import WRITERS

    if name not in WRITERS:
        raise InputError(f"--to {name}: {nearest(name, WRITERS)}")


def refuse_taken(output: Path) -> None:
    """Raise `InputError` where the output exists: nothing is ever overwritten."""
    if output.exists():
        raise InputError(f"{output}: exists already; choose another name, or remove it")


def report(written: Written, as_json: bool) -> None:
    """Print what was written, as a table or as JSON; notes go to standard error."""
    for note in written.notes:
        print(f"detrove: note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(_as_plain_values(written), indent=1, ensure_ascii=False))
        return
    rows = [[split, written.num_pictures[split], written.num_boxes[split]] for split in written.num_pictures]
    print(f"{written.folder}\n{format_table(['split', 'pictures', 'boxes'], rows)}")


def _as_plain_values(written: Written) -> Mapping[str, object]:
    splits = {
        split: {"pictures": written.num_pictures[split], "boxes": written.num_boxes[split]}
        for split in written.num_pictures
    }
    return {"output": str(written.folder), "splits": splits, "notes": written.notes}
