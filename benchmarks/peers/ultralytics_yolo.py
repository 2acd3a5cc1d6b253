"""YOLO11n of Ultralytics from random weights, in a process and an environment of its own (AGPL-3.0).

Run by `little_data.py` with the interpreter of that environment; nothing of detrove is imported here, and nothing of
Ultralytics there. Its own training is called as its users call it; what it spends on validation is given back to its
clock. The best epoch's COCO results in each split are left as Ultralytics writes them.

    YOLO_PYTHON ultralytics_yolo.py '{"data": "data.yaml", "size": 320, "minutes": 10, "seed": 0, "threads": 2,
        "output": "FOLDER", "splits": ["val"]}'
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

LOWEST_SCORE, OVERLAP, NUM_DETECTIONS = 0.001, 0.7, 100


class Clock:
    """Callbacks that take validation out of the training's minutes, and count these and the batches.

    They also set torch's `threads`, None for Ultralytics' own number: one less than there are cores, whatever
    OMP_NUM_THREADS says.
    """

    def __init__(self, threads: int | None) -> None:
        self.threads = threads
        self.trainer: Any = None
        self.validation_began = 0.0
        self.minutes, self.steps = 0.0, 0

    def on_train_start(self, trainer: Any) -> None:
        """Remember whose clock it is, and give it its threads."""
        self.trainer = trainer
        if self.threads is not None:
            torch.set_num_threads(self.threads)

    def on_train_batch_end(self, trainer: Any) -> None:
        """Count."""
        self.steps += 1
        self.minutes = (time.time() - trainer.train_time_start) / 60

    def on_val_start(self, validator: Any) -> None:  # noqa: ARG002
        """A validation begins."""
        self.validation_began = time.time()

    def on_val_end(self, validator: Any) -> None:  # noqa: ARG002
        """Its time is given back."""
        if self.trainer is not None:
            self.trainer.train_time_start += time.time() - self.validation_began


def main() -> None:
    from ultralytics import YOLO  # pyright: ignore[reportMissingImports]

    job = json.loads(sys.argv[1])
    output = Path(job["output"]).resolve()
    shutil.rmtree(output, ignore_errors=True)
    clock = Clock(job["threads"])
    model = YOLO("yolo11n.yaml")
    for event in ("on_train_start", "on_train_batch_end", "on_val_start", "on_val_end"):
        model.add_callback(event, getattr(clock, event))
    shared = {"data": job["data"], "imgsz": job["size"], "device": "cpu", "plots": False, "project": str(output)}
    model.train(**shared, time=job["minutes"] / 60, seed=job["seed"], pretrained=False, name="train", exist_ok=True)
    clock.trainer = None
    best = YOLO(output / "train" / "weights" / "best.pt")
    for split in job["splits"]:
        best.val(
            **shared, split=split, save_json=True, conf=LOWEST_SCORE, iou=OVERLAP, max_det=NUM_DETECTIONS, name=split
        )
    (output / "facts.json").write_text(json.dumps({"minutes": clock.minutes, "steps": clock.steps}))


if __name__ == "__main__":
    main()
