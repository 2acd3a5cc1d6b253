"""`detrove eval`: how good a detector is on labelled pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from detrove.cli.predict import refuse_taken
from detrove.cli.progress import told
from detrove.cli.tables import format_table

if TYPE_CHECKING:
    from detrove.evaluation import Metrics

MEANINGS = {
    "ap": "average precision over IoU 0.50 to 0.95: the number that papers quote",
    "ap50": "at IoU 0.50: found, roughly placed",
    "ap75": "at IoU 0.75: found, well placed",
    "ap_small": "objects below 32² pixels",
    "ap_medium": "objects of 32² to 96² pixels",
    "ap_large": "objects above 96² pixels",
    "ar_1": "recall with 1 detection a picture and class",
    "ar_10": "recall with 10",
    "ar_100": "recall with 100",
    "ar_small": "recall, objects below 32² pixels",
    "ar_medium": "recall, objects of 32² to 96² pixels",
    "ar_large": "recall, objects above 96² pixels",
}


def evaluate_weights(
    weights: Path,
    data: Path,
    /,
    *,
    split: str = "val",
    output: Path | None = None,
    batch_size: int = 8,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Measure a detector on labelled pictures: the twelve COCO numbers, and each class.

    No score threshold is applied: average precision looks at all of them.

    Parameters
    ----------
    weights
        A run folder, or a .safetensors file that detrove saved.
    data
        A data set in COCO, VOC or YOLO format.
    split
        The part of the data set to measure on.
    output
        A new folder for metrics.json and report.html.
    batch_size
        Pictures computed at once.
    as_json
        Print the numbers as JSON.
    """
    if output is not None:
        refuse_taken(output)
    from detrove.data import open_dataset
    from detrove.evaluation import evaluate
    from detrove.inference import load, writers

    detector = load(weights)
    dataset = open_dataset(data, split=split)
    print(dataset.describe(), file=sys.stderr)
    for warning in dataset.warnings:
        print(f"detrove: warning: {warning}", file=sys.stderr)
    with told("measuring", len(dataset)) as tell:
        metrics = evaluate(detector, dataset, batch_size=batch_size, progress=lambda done, _: tell(done))
    if output is not None:
        writers.write_json(output / "metrics.json", metrics.to_json())
    print(json.dumps(metrics.to_json(), indent=1, ensure_ascii=False) if as_json else _tables(metrics))


def _tables(metrics: Metrics) -> str:
    """The twelve numbers with what they mean, and the classes."""
    numbers = format_table(["metric", "value", ""], [[name, metrics[name], text] for name, text in MEANINGS.items()])
    rows = [[name, each["ap"], each["ap50"], each["num_boxes"]] for name, each in metrics.per_class.items()]
    return f"{numbers}\n\n{format_table(['class', 'AP', 'AP50', 'boxes'], rows)}"
