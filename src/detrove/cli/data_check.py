"""`detrove data check`: what is wrong with a data set, what that means for training, and what to do."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from detrove.cli.data_convert import refuse_taken
from detrove.cli.progress import told
from detrove.errors import InputError

if TYPE_CHECKING:
    from detrove.data.doctor import Diagnosis
    from detrove.structures import Preprocessing


def check_data(
    data: Path,
    /,
    *,
    size: int | None = None,
    model: str = "detrove-nano",
    format: str | None = None,
    output: Path | None = None,
    fix: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Examine a data set: labels, picture files, splits, and how it suits a detector.

    Exit status: 0 where there are remarks at most, or --fix wrote a cleaned copy; 2 where there are faults.

    Parameters
    ----------
    data
        A data set in COCO, VOC, YOLO or CSV format.
    size
        The longer side, in pixels, to train at. Default: the model's own.
    model
        The detector to train: how many objects can it find in a picture, at which size?
    format
        The format of DATA where it holds several: coco, voc, yolo or csv.
    output
        A new HTML page with the pictures at fault drawn.
    fix
        A new folder for a cleaned copy, as COCO: what is certain is mended, the rest of the faults left out. DATA is
        not touched.
    as_json
        Print everything as JSON.
    """
    if output is not None:
        refuse_taken(output)
    if fix is not None:
        refuse_taken(fix)
    from detrove.data.doctor import write_cleaned
    from detrove.data.doctor.page import make_page
    from detrove.data.doctor.telling import in_full, verdict

    num_queries, preprocessing = _needs(model, size)
    diagnosis = _examine(data, format, preprocessing, num_queries)
    cleaned = None if fix is None else write_cleaned(diagnosis, fix)
    if as_json:
        values = diagnosis.to_json() | ({} if cleaned is None else {"fix": {"output": str(fix), **cleaned.to_json()}})
        print(json.dumps(values, indent=1, ensure_ascii=False))
    else:
        print(in_full(diagnosis, shutil.get_terminal_size().columns))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(make_page(diagnosis), encoding="utf-8", errors="backslashreplace")
        print(f"page: {output}", file=sys.stderr)
    if cleaned is not None:
        lost, mended = sum(cleaned.left_out.values()), sum(cleaned.mended.values())
        told_of = f"{cleaned.kept:,} boxes kept ({mended:,} of them mended), {lost:,} left out"
        print(f"cleaned copy: {fix}: {told_of}", file=sys.stderr)
    elif diagnosis.of("fault"):
        raise InputError(f"faults in {verdict(diagnosis)}; --fix OUT writes a cleaned copy")


def _needs(model: str, size: int | None) -> tuple[int | None, Preprocessing]:
    """How many queries a detector of the catalogue has, and how it wants its pictures."""
    from detrove.models import catalogue
    from detrove.models.preset import count_queries

    preset = catalogue.preset(model)
    preprocessing = preset.preprocessing
    if size is not None:
        preprocessing = replace(preprocessing, longer=size, shorter=None)
    return count_queries(vars(preset.config)), preprocessing


def _examine(data: Path, format: str | None, preprocessing: Preprocessing, num_queries: int | None) -> Diagnosis:
    from detrove.data.discover import read_leniently
    from detrove.data.doctor import examine
    from detrove.data.doctor.files import unique_paths

    reading = read_leniently(data, format)
    with told("examining", len(unique_paths(reading.splits.values()))) as tell:
        return examine(
            reading.path,
            reading.format,
            reading.splits,
            reading.faults,
            preprocessing,
            num_queries,
            progress=lambda done, _: tell(done),
        )
