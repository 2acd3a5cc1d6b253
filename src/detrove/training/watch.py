"""Watching a training: at every validation a few fixed pictures are looked into, and what goes wrong is told once.

What is measured stands in `evaluation/queries`; here is decided which pictures, and what is alarming. How the bounds
were found: docs/watching.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detrove.data import DetectionDataset
from detrove.data.batching import evaluation_batch
from detrove.data.dataset import evenly_spaced
from detrove.evaluation import coco_results
from detrove.evaluation.matching import BoxTable, match
from detrove.evaluation.queries import (
    as_many_as_objects,
    changed_share,
    duplicate_rate,
    layer_changes,
    of_all_pictures,
    queries_of_objects,
    spread,
)
from detrove.inference.postprocess import postprocess
from detrove.losses import Criterion
from detrove.losses import match as match_queries
from detrove.structures import Detections, Predictions, Targets
from detrove.training.validation import Validation

NUM_PICTURES = 16
"""Validation pictures that are looked into, evenly spaced among those with objects."""
ALIKE = 3e-4
"""Spread of the class answers from query to query under which all queries answer alike: healthy trainings stay above
it from the first epoch on, collapsed ones below (docs/watching.md)."""
PATIENCE = 2
"""Looks in a row at queries that are alike, before it is told."""


class Watch:
    """Looks into a detector at every validation.

    `changed` compares with the look before, which `state` carries into a continued run.
    """

    def __init__(self, validation: Validation, criterion: Criterion) -> None:
        self._validation = validation
        self._cost = criterion.cost
        self._data = validation.dataset.subset(some_pictures(validation.dataset, NUM_PICTURES))
        self._truth = self._data.ground_truth()
        self._queries: list[int] | None = None
        self._alike_in_a_row, self._alarmed = 0, False

    def state(self) -> dict[str, Any]:
        """What `restore` needs, as plain values."""
        return {"queries": self._queries, "alike_in_a_row": self._alike_in_a_row, "alarmed": self._alarmed}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from the watch of an earlier part of the run."""
        self._queries = state["queries"]
        self._alike_in_a_row, self._alarmed = state["alike_in_a_row"], state["alarmed"]

    def look(self, model: nn.Module) -> dict[str, Any]:
        """What there is to see of a model now: `measure`, and under "alarm", once a run, what is wrong with it."""
        measured = self.measure(model)
        class_spread = measured.get("class_spread")
        alike = class_spread is not None and class_spread < ALIKE
        self._alike_in_a_row = self._alike_in_a_row + 1 if alike else 0
        if self._alarmed or self._alike_in_a_row < PATIENCE:
            return measured
        self._alarmed = True
        return measured | {
            "alarm": f"all queries answer alike (their classes differ by {class_spread:.1g}, their boxes by "
            f"{measured['box_spread']:.1g} of the picture): the detector has collapsed, and seldom recovers; lower the "
            "rate (--set learning_rate) and begin anew"
        }

    def measure(self, model: nn.Module) -> dict[str, float | None]:
        """The numbers of a look, under the names that metrics.jsonl has under "watch".

        `box_spread` and `class_spread` from query to query, `..._between` from picture to picture (`Spread`);
        `changed_since_last` and `changed_between_layers`, shares of objects; `duplicates` for each found object and
        `found`, the share of the objects, both among as many detections as there are objects. None: not to be told.
        """
        if not len(self._data):
            return {}
        predictions, targets, detections, num_queries = self._predict(model)
        matches = match_queries(predictions.logits, predictions.boxes, targets, self._cost)
        queries = queries_of_objects(matches, sum(len(target) for target in targets)).cpu()
        before, self._queries = self._queries, queries[-1].tolist()
        truth = BoxTable.of(self._truth, self._truth["annotations"])
        shown = as_many_as_objects(truth, BoxTable.of(self._truth, coco_results(detections, self._truth)))
        config: Any = model.config
        measured = spread(
            predictions.boxes[-1, :, :num_queries], predictions.logits[-1, :, :num_queries], config.scores
        )
        objects = int((~truth.is_crowd).sum())
        return rounded(
            {
                "box_spread": measured.boxes_within,
                "class_spread": measured.classes_within,
                "box_spread_between": measured.boxes_between,
                "class_spread_between": measured.classes_between,
                "changed_since_last": None if before is None else changed_share(torch.tensor(before), queries[-1]),
                "changed_between_layers": _mean(layer_changes(queries)),
                "duplicates": duplicate_rate(truth, shown),
                "found": int(match(truth, shown).is_hit.sum()) / objects if objects else None,
            }
        )

    def _predict(self, model: nn.Module) -> tuple[Predictions, list[Targets], dict[Any, Detections], int]:
        """The model's answers to all watched pictures, in evaluation mode; its mode stays as it was.

        The last is how many queries every picture has, see `of_all_pictures`.
        """
        config: Any = model.config
        parameter, was_training = next(model.parameters()), model.training
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        all_targets: list[Targets] = []
        detections: dict[Any, Detections] = {}
        model.eval()
        try:
            for start in range(0, len(self._data), self._validation.batch_size):
                indices = range(start, min(start + self._validation.batch_size, len(self._data)))
                samples = (self._data[index] for index in indices)
                images, targets = evaluation_batch(samples, self._validation.preprocessing)
                with torch.inference_mode():
                    predictions = model(images.to(device=parameter.device, dtype=parameter.dtype))
                found = postprocess(
                    predictions,
                    [target.original_size for target in targets if target.original_size],
                    self._validation.label_map,
                    config.scores,
                    config.num_detections,
                )
                detections.update(zip((target.image_id for target in targets), found, strict=True))
                logits.append(predictions.logits.float().cpu())
                boxes.append(predictions.boxes.float().cpu())
                all_targets += targets
        finally:
            model.train(was_training)
        predictions = Predictions(of_all_pictures(logits), of_all_pictures(boxes))
        return predictions, all_targets, detections, min(batch.shape[2] for batch in logits)


def some_pictures(data: DetectionDataset, number: int) -> list[int]:
    """At most so many pictures with objects, evenly spaced; the same ones for the same data."""
    annotations = data.annotations
    objects = np.bincount(annotations.pictures_of_boxes(), weights=~annotations.is_crowd, minlength=len(annotations))
    candidates = np.flatnonzero(objects)
    return candidates[evenly_spaced(len(candidates), number)].tolist()


def rounded(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """To four digits: a line is read by people too."""
    return {name: None if value is None else float(f"{value:.4g}") for name, value in values.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
