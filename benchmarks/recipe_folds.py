"""Is another value better? Trainings on one part of `train`, measured on the rest; `val` and `test` stay unseen.

    python benchmarks/recipe_folds.py DATA --backbone-weights FILE --epochs 12 --seeds 0,1 --output FOLDER \
        --arm "as it is" --arm "by box: model.class_cost=2" --arm "eight a step: batch_size=8 learning_rate=1e-3"

An arm is a name and, behind a colon, settings as of `--set`; `model`, `size` and `weights` (a trained detector to start
from, all classes anew) may be among them. One seed cuts the same part away for every arm. Printed
beside AP, AP50 and AP75: what they would be if every box that a better one of its class covers (IoU 0.7) were deleted,
so that duplicates are told from other faults. An arm whose result stands in the output folder is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchvision.ops import batched_nms

from detrove.data import DetectionDataset
from detrove.evaluation import Metrics, coco_metrics, coco_results, detect
from detrove.structures import Detections
from detrove.training import TrainingConfig, parse_setting, train
from detrove.training.held_out import open_splits

HELD_OUT = 0.27
COVERED = 0.7


def main() -> None:
    """Run the arms that have no result yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="detrove-nano")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--minutes", type=float, help="instead of epochs: the same time for every arm")
    parser.add_argument("--size", type=int)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--backbone-weights", default="none")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--arm", action="append", required=True)
    options = parser.parse_args()
    print(f"{'arm':28} {'seed':>4} {'seconds':>7}   AP    AP50  AP75    without duplicates")
    for arm in options.arm:
        name, _, settings = arm.partition(":")
        for seed in (int(text) for text in options.seeds.split(",")):
            print(_line(name, seed, _result(options, name, settings.split(), seed)), flush=True)


def _result(options: argparse.Namespace, name: str, settings: list[str], seed: int) -> dict[str, Any]:
    folder = options.output / f"{name.replace(' ', '-')}-{seed}"
    file = folder / "fold.json"
    if not file.exists():
        folds = {"val_split": None, "val_fraction": HELD_OUT, "preflight": False}
        own = dict(parse_setting(text) for text in settings)
        weights = own.pop("weights", None)
        started = time.monotonic()
        run = train(
            options.data,
            model=own.pop("model", options.model),
            output=folder,
            epochs=None if options.minutes else options.epochs,
            minutes=options.minutes,
            size=own.pop("size", options.size),
            weights=weights,
            ignore_heads=weights is not None,
            backbone_weights=None if weights else options.backbone_weights,
            seed=seed,
            settings=folds | own,
        )
        seconds = time.monotonic() - started
        _, held_out = open_splits(TrainingConfig.from_yaml(folder / "config.yaml"))
        found = detect(run.detector, held_out)
        measured = {"as found": found, "without duplicates": {key: _without(each) for key, each in found.items()}}
        numbers = {key: _metrics(held_out, boxes) for key, boxes in measured.items()}
        file.write_text(json.dumps({"seconds": seconds, **numbers}))
    return json.loads(file.read_text())


def _without(found: Detections) -> Detections:
    kept = batched_nms(found.boxes, found.scores, found.labels, COVERED)
    return dataclasses.replace(found, boxes=found.boxes[kept], scores=found.scores[kept], labels=found.labels[kept])


def _metrics(dataset: DetectionDataset, found: Mapping[Any, Detections]) -> list[float]:
    ground_truth = dataset.ground_truth()
    metrics: Metrics = coco_metrics(ground_truth, coco_results(found, ground_truth))
    return [metrics[name] or 0.0 for name in ("ap", "ap50", "ap75")]


def _line(name: str, seed: int, result: Mapping[str, Any]) -> str:
    numbers = ["  ".join(f"{value:.3f}" for value in result[key]) for key in ("as found", "without duplicates")]
    return f"{name:28} {seed:4} {result['seconds']:7.0f}  {numbers[0]}   {numbers[1]}"


if __name__ == "__main__":
    main()
