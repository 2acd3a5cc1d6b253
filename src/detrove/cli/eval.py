"""`detrove eval`: how good a detector is on labelled pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from detrove.cli.predict import refuse_taken, set_tiling
from detrove.cli.progress import told
from detrove.cli.tables import format_table
from detrove.tiling import asked_tiling

if TYPE_CHECKING:
    from detrove.data import DetectionDataset
    from detrove.evaluation import Metrics
    from detrove.inference import Detector
    from detrove.structures import Detections


def evaluate_weights(
    weights: Path,
    data: Path,
    /,
    *,
    split: str = "val",
    format: str | None = None,
    model: str | None = None,
    output: Path | None = None,
    batch_size: int = 8,
    tiles: int | None = None,
    tile_overlap: float | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Measure a detector on labelled pictures.

    The twelve COCO numbers, and each class. No score threshold is applied: average precision looks at all of them.

    Parameters
    ----------
    weights
        A run folder, a .safetensors file that detrove saved, an official checkpoint, a Hugging Face folder, or the
        name of a published file or hub model (downloaded).
    data
        A data set in COCO, VOC, YOLO or CSV format.
    split
        The part of the data set to measure on.
    format
        The format of the data, where its folder holds several: coco, voc, yolo or csv.
    model
        The catalogue's name of the detector, where its file alone cannot tell.
    output
        A new folder for metrics.json and report.html.
    batch_size
        Pictures, or tiles of them, computed at once.
    tiles
        Cut large pictures into tiles of this many pixels, as predict does; 0: whole pictures only. By default as the
        detector was trained.
    tile_overlap
        What neighbouring tiles share, 0 to 0.8 of their side. Default 0.2.
    as_json
        Print the numbers as JSON.
    """
    if output is not None:
        refuse_taken(output)
    from detrove.data import open_dataset
    from detrove.evaluation import categories_of_slots, coco_metrics, coco_results, detect
    from detrove.inference import load, writers

    asked_tiling(tiles, tile_overlap)  # refuses what cannot be before anything is read
    detector = load(weights, model)
    set_tiling(detector, tiles, tile_overlap)
    dataset = open_dataset(data, split, format)
    print(dataset.describe(), file=sys.stderr)
    for warning in dataset.warnings:
        print(f"detrove: warning: {warning}", file=sys.stderr)
    ground_truth = dataset.ground_truth()
    categories_of_slots(detector.label_map, ground_truth["categories"])  # refuses other classes before the long work
    with told("measuring", len(dataset)) as tell:
        detections = detect(detector, dataset, batch_size, progress=lambda done, _: tell(done))
    metrics = coco_metrics(ground_truth, coco_results(detections, ground_truth))
    if output is not None:
        writers.write_json(output / "metrics.json", metrics.to_json())
        _write_report(output / "report.html", weights, detector, dataset, metrics, detections)
    print(json.dumps(metrics.to_json(), indent=1, ensure_ascii=False) if as_json else _tables(metrics))
    if output is not None:
        print(f"report: {output / 'report.html'}", file=sys.stderr)


def _write_report(
    path: Path,
    weights: Path,
    detector: Detector,
    dataset: DetectionDataset,
    metrics: Metrics,
    detections: dict[Any, Detections],
) -> None:
    from detrove.evaluation import write_report

    write_report(
        path,
        title=f"{weights} on {dataset.path.name}, {dataset.split}",
        metrics=metrics,
        ground_truth=dataset.ground_truth(),
        detections=detections,
        dataset=dataset,
        label_map=detector.label_map,
        thresholds=None if detector.thresholds is None else detector.thresholds.tolist(),
        facts={"weights": str(weights), "model": detector.name or "a config of its own", "data": dataset.describe()},
    )


def _tables(metrics: Metrics) -> str:
    """The twelve numbers with what they mean, and the classes."""
    from detrove.evaluation.report import MEANINGS

    numbers = format_table(["metric", "value", ""], [[name, metrics[name], text] for name, text in MEANINGS.items()])
    rows = [[name, each["ap"], each["ap50"], each["num_boxes"]] for name, each in metrics.per_class.items()]
    return f"{numbers}\n\n{format_table(['class', 'AP', 'AP50', 'boxes'], rows)}"
