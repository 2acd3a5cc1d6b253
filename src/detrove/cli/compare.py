"""`detrove compare`: several detectors on the same data under one budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from detrove.cli.tables import format_table
from detrove.errors import InputError

if TYPE_CHECKING:
    from detrove.study import Comparison
    from detrove.study.comparison import Summary


def compare(
    data: Path,
    /,
    *,
    models: str,
    epochs: int | None = None,
    minutes: float | None = None,
    seeds: str = "0",
    size: int | None = None,
    batch_size: int | None = None,
    backbone_weights: str = "pretrained",
    format: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set", negative=())] = None,
    output: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Train several detectors under one budget: who learns?

    Each detector and seed is an ordinary training in a process of its own, one after the other. One page shows AP
    against minutes and epochs, by size of objects, memory, speed, and what the queries do. Give --output and call it
    again to go on after an interruption; models and seeds may be added then.

    Parameters
    ----------
    data
        The data set, as for detrove train.
    models
        Detectors of the catalogue, separated by commas: see detrove models.
    epochs
        The budget of each: times through the data.
    minutes
        The budget of each: minutes of training.
    seeds
        Seeds, separated by commas; several tell what is luck.
    size
        The longer side, in pixels, that pictures are resized to. Default: each model's own.
    batch_size
        Pictures in a step. Default: each recipe's own.
    backbone_weights
        Weights of the trunk, as for detrove train.
    format
        The format of the data, where its folder holds several: coco, voc, yolo or csv.
    settings
        Override one value for all, as KEY=VALUE; may be repeated. See detrove train.
    output
        The folder for report.html, comparison.json and the runs; one that a comparison was begun in is gone on with.
        Default: runs/compare-DATA, numbered.
    as_json
        Print comparison.json.
    """
    from detrove.study import compare as run_compare
    from detrove.training import parse_setting
    from detrove.training.run_folder import free_folder

    found = run_compare(
        data,
        models=split_list(models),
        output=output or free_folder(Path("runs"), f"compare-{data.resolve().name}"),
        epochs=epochs,
        minutes=minutes,
        seeds=parse_seeds(seeds),
        size=size,
        batch_size=batch_size,
        backbone_weights=backbone_weights,
        format=format,
        settings=dict(parse_setting(text) for text in settings or []),
    )
    print_comparison(found, as_json)


def split_list(text: str) -> list[str]:
    """ "a, b" as its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_seeds(text: str) -> list[int]:
    """ "0,1,2" as numbers."""
    try:
        seeds = [int(part) for part in split_list(text)]
    except ValueError:
        seeds = [-1]
    if any(seed < 0 for seed in seeds):
        raise InputError(f"--seeds {text}: whole numbers from 0 on, separated by commas, such as 0,1,2")
    return seeds


def print_comparison(found: Comparison, as_json: bool) -> None:
    """The table, or JSON; then what failed, as an `InputError`."""
    if found.summaries:
        if as_json:
            print(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
        else:
            from detrove.study.compare_page import verdict
            from detrove.study.comparison import REPORT

            print(f"{comparison_table(found)}\n\n{verdict(found)}\n\nreport: {found.output / REPORT}")
    found.refuse_failures()


def comparison_table(found: Comparison) -> str:
    """The arms by their AP, the best first, in about 100 columns."""
    header = ["", "AP", "AP50", "small", "medium", "large", "minutes", "epochs", "memory", "ms", "params", "seeds"]
    return format_table(header, [_row(summary) for summary in found.ranked()])


def _row(summary: Summary) -> list[Any]:
    from detrove.study.comparison import SHOWN

    memory = "-" if summary.memory is None else f"{summary.memory / 2**20:.0f} MiB"
    return [
        summary.name,
        *(summary.mean(metric) for metric in SHOWN),
        f"{summary.minutes:.1f}".rjust(7),
        f"{summary.epochs:g}".rjust(6),
        memory.rjust(8),
        f"{1e3 * summary.measured('latency'):.1f}".rjust(6),
        f"{summary.measured('parameters') / 1e6:.2f} M",
        len(summary.records),
    ]
