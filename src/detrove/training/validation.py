"""Measuring a model on the validation pictures during training, and how often that is affordable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from detrove.data import DetectionDataset
from detrove.evaluation import Metrics, best_thresholds, coco_metrics, coco_results, detect
from detrove.inference import Detector
from detrove.structures import Detections, LabelMap, Preprocessing
from detrove.tiling import Tiling
from detrove.training.clock import TrainingClock
from detrove.training.processes import Processes

AFFORDABLE = 0.1  # of the training time, spent on validation under a budget of minutes


@dataclass(frozen=True)
class Measured:
    """The metrics of one validation and the detections they come from, by image id."""

    metrics: Metrics
    detections: dict[Any, Detections]

    @property
    def ap(self) -> float:
        """The AP to compare by: 0 where no validation picture has a box."""
        return self.metrics.ap or 0.0


@dataclass(frozen=True)
class Validation:
    """The validation pictures and what it takes to detect in them. `name` is the preset's; with a `tiling` large
    pictures are looked at in tiles."""

    dataset: DetectionDataset
    preprocessing: Preprocessing
    label_map: LabelMap
    name: str
    batch_size: int
    tiling: Tiling | None = None

    @property
    def num_views(self) -> int:
        """How many times the model looks: at each picture, or at all its tiles."""
        if self.tiling is None:
            return len(self.dataset)
        return sum(len(self.tiling.views(width, height)) for width, height in self.dataset.annotations.sizes.tolist())

    def detector(self, model: nn.Module, measured: Measured | None = None) -> Detector:
        """The model as a detector, with the thresholds that suit what was measured."""
        thresholds = None
        if measured is not None:
            ground_truth = self.dataset.ground_truth()
            results = coco_results(measured.detections, ground_truth)
            chosen = best_thresholds(ground_truth, results, self.label_map)
            thresholds = torch.tensor(chosen, dtype=torch.float32)
        return Detector(model, self.preprocessing, self.label_map, thresholds, self.name, self.tiling)

    def measure(self, model: nn.Module, processes: Processes | None = None) -> Measured:
        """Detect in every validation picture and compute the COCO metrics.

        Several `processes`, all of which must come here with the same weights, share the pictures; the metrics are
        computed once, from all detections.
        """
        ground_truth, detector = self.dataset.ground_truth(), self.detector(model)
        if processes is None or processes.number == 1:
            detections = detect(detector, self.dataset, self.batch_size)
            return Measured(coco_metrics(ground_truth, coco_results(detections, ground_truth)), detections)
        share = self.dataset.subset(range(processes.index, len(self.dataset), processes.number))
        found: dict[Any, Detections] = {}
        for part in processes.gathered(detect(detector, share, self.batch_size)):
            found |= part
        detections = {record.image_id: found[record.image_id] for record in self.dataset.records}
        metrics = coco_metrics(ground_truth, coco_results(detections, ground_truth)) if processes.main else None
        return Measured(cast(Metrics, processes.same(metrics)), detections)


def affordable(clock: TrainingClock, spent: float, expected: float) -> bool:
    """Whether to validate at the end of an epoch.

    Always where the length is in epochs. Under a budget of minutes, what validation has `spent`, this one and the
    final one (`expected` seconds each) must stay within a tenth of the training time so far.
    """
    return clock.budget is None or spent + 2 * expected <= AFFORDABLE * clock.used
