"""Before a training: can anything be learned from these pictures, by this detector, on this machine?

Two looks. The data doctor names every fault in the labels. A copy of the detector learns a few pictures by heart. What
makes a training pointless is an `InputError` in one line; `--set preflight=false` trains all the same.
"""

from __future__ import annotations

import torch
from torch import nn

from detrove.data import DetectionDataset
from detrove.data.doctor import Diagnosis, examine
from detrove.data.doctor.telling import in_short, place_in
from detrove.errors import InputError
from detrove.losses import Criterion
from detrove.models.preset import count_queries
from detrove.training.config import TrainingConfig
from detrove.training.rehearsal import allowed_seconds, allowed_steps, rehearse

MOST_PICTURES = 500
"""Pictures that are decoded, evenly spaced where there are more: a few seconds, whatever the data set."""
MOST_FAULTY = 0.5
"""Of the training boxes that may be no boxes at all."""
NO_BOXES = ("bad box", "zero-size box", "absurd box")
ANYWAY = "or --set preflight=false to train all the same"


def preflight(config: TrainingConfig, training: DetectionDataset, validation: DetectionDataset) -> list[str]:
    """A line for each fault of the data; nothing where there is none. Remarks are left to `detrove data check`.

    Raises `InputError` where nothing can be learned from the training boxes, unless the config's `preflight` is off.
    """
    diagnosis = examine(
        training.path,
        training.format,
        {"train": training.annotations, "val": validation.annotations},
        # A tile holds fewer objects than its picture.
        num_queries=count_queries(config.model_config) if config.tiling is None else None,
        most_pictures=MOST_PICTURES,
    )
    if config.preflight:
        refuse_wrong_boxes(diagnosis)
    return in_short(diagnosis)


def refuse_wrong_boxes(diagnosis: Diagnosis) -> None:
    """Raise `InputError` where the training boxes are read in a wrong way, or most are no boxes."""
    where = f"detrove data check {diagnosis.path} shows them"
    for finding in diagnosis.of("fault"):
        of_training = [place for place in finding.places if place.split == "train"]
        if finding.kind == "wrong box format" and of_training:
            raise InputError(f"{place_in(of_training[0], diagnosis.path)}: {finding.meaning} {finding.remedy} {where}")
    faulty = sum(finding.count for finding in diagnosis.of("fault") if finding.kind in NO_BOXES)
    if faulty > MOST_FAULTY * diagnosis.num_boxes:
        raise InputError(
            f"{diagnosis.path}: {faulty:,} of {diagnosis.num_boxes:,} boxes are no boxes: {where}; correct them, "
            f"{ANYWAY}"
        )


def preflight_model(
    config: TrainingConfig, model: nn.Module, criterion: Criterion, training: DetectionDataset, device: torch.device
) -> str | None:
    """Let a copy of the detector learn a few pictures by heart; a line about it, None where it was not worth the time.

    Raises `InputError` where it cannot learn them, or they do not fit the device's memory. Takes no more than a
    twentieth of the training's steps or budget, and 45 seconds at most.
    """
    steps = allowed_steps(config, len(training))
    if not config.preflight or not steps:
        return None
    rehearsal = rehearse(model, criterion, config, training, device, steps, allowed_seconds(config))
    if rehearsal is None:
        return None
    if rehearsal.learned:
        return f"preflight: {rehearsal.describe()}: go"
    rate = config.recipe.learning_rate
    raise InputError(
        f"preflight: not learned: {rehearsal.describe()}: lower the rate (--set learning_rate={rate / 10:g}, now "
        f"{rate:g}), {ANYWAY}"
    )
