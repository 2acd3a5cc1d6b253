"""What limits trained detectors: their last decoder layers, or the labels that they are measured on?

    python benchmarks/what_limits.py DATA RUN [RUN ...] --split test

First each run (of `detrove-nano`, `-small` or `-medium`, whose layers share their heads) with its first decoder layer
alone, its first two, and so on. Then each run's boxes above a score as if they were the labels, and the other runs
measured on them: runs that agree with each other far more than with the labels have learned what the labels can teach.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import detrove
from detrove.data import open_dataset
from detrove.evaluation import coco_metrics, coco_results, detect
from detrove.inference.writers import as_annotations

SURE = 0.4
"""The score from which on a run's boxes are taken as labels."""


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    dataset = open_dataset(options.data, options.split)
    labels = dataset.ground_truth()

    print(f"{'run':24} layers  AP     AP50   AP75")
    found = {}
    for run in options.runs:
        detector = detrove.load(run)
        model: Any = detector.model
        layers = model.decoder
        for count in range(1, len(layers) + 1):
            model.decoder = layers[:count]
            results = coco_results(detect(detector, dataset), labels)
            print(f"{run!s:24} {count:6}  {_numbers(labels, results)}", flush=True)
        found[str(run)] = results

    print(f"\nthe labels have {len(labels['annotations'])} boxes; a run's as labels:")
    print(f"{'as labels':24} boxes  {'run':24}  AP     AP50   AP75")
    for truth, results in found.items():
        sure = [result for result in results if result["score"] > SURE]
        pretended = {**labels, "annotations": as_annotations(sure)}
        for name in (name for name in found if name != truth):
            numbers = _numbers(pretended, found[name])
            print(f"{truth:24} {len(sure):5}  {name:24}  {numbers}", flush=True)


def _numbers(labels: dict[str, Any], results: list[dict[str, Any]]) -> str:
    metrics = coco_metrics(labels, results)
    return "  ".join(f"{metrics[name] or 0.0:.3f}" for name in ("ap", "ap50", "ap75"))


if __name__ == "__main__":
    main()
