"""Before a training: can anything be learned from these pictures, by this detector, on this machine?

Four looks. The data doctor names every fault in the labels. A trunk that has weights is asked whether boxes belong to
their pictures. A whole step is tried for its memory. A copy of the detector learns a few pictures by heart. What makes
a training pointless is an `InputError` in one line; `--set preflight=false` trains all the same.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from detrove.data import DetectionDataset
from detrove.data.doctor import Diagnosis, examine
from detrove.data.doctor.telling import in_short, place_in
from detrove.errors import InputError
from detrove.losses import Criterion
from detrove.models.preset import count_queries
from detrove.training.advice import length_here
from detrove.training.config import TrainingConfig
from detrove.training.fitting import parts_that_fit
from detrove.training.label_signal import label_signal
from detrove.training.rehearsal import allowed_seconds, allowed_steps, random_state_kept, rehearse

MOST_PICTURES = 500
"""Pictures that are decoded, evenly spaced where there are more: a few seconds, whatever the data set."""
MOST_FAULTY = 0.5
"""Of the training boxes that may be no boxes at all."""
NO_BOXES = ("bad box", "zero-size box", "absurd box")
LEAST_TOLD_APART = 0.6
"""Of pairs of a picture's own box and another picture's, under which boxes mean nothing: docs/watching.md."""
SIGNAL_SECONDS = 15.0
ANYWAY = "or --set preflight=false to train all the same"


def preflight(config: TrainingConfig, training: DetectionDataset, validation: DetectionDataset) -> list[str]:
    """A line for each fault of the data; nothing where there is none. Remarks are left to `detrove data check`.

    Raises `InputError` where nothing can be learned from the training boxes, unless the config's `preflight` is off.
    """
    if config.preflight:
        refuse_no_boxes(training)
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


def refuse_no_boxes(training: DetectionDataset) -> None:
    """Raise `InputError` where no training picture has an object, naming where the first one's labels would be."""
    annotations = training.annotations
    if annotations.is_crowd.all():  # also of none
        raise InputError(
            f"{training.path}: no object in the {len(training):,} pictures of {training.split}: the first one's labels "
            f"were looked for in {annotations.source(0)}; put them there, {ANYWAY}"
        )


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
    config: TrainingConfig,
    model: nn.Module,
    criterion: Criterion,
    training: DetectionDataset,
    device: torch.device,
    fits: bool = False,
) -> list[str]:
    """Ask the trunk about the boxes, try a whole step, and let a copy of the detector learn a few pictures by heart.

    What there is to tell of it, in lines. Raises `InputError` where boxes do not belong to their pictures, where a step
    does not fit the memory, or where the pictures cannot be learned. None of it is done before a training of fewer than
    200 steps. The first and the last take a twentieth of a budget at most, and 15 and 45 seconds. `fits`: the step is
    known to.
    """
    steps = allowed_steps(config, len(training))
    if not config.preflight or not steps:
        return []
    seconds = allowed_seconds(config)
    told = refuse_boxes_of_nothing(config, model, training, device, min(SIGNAL_SECONDS, seconds))
    if not fits:
        refuse_too_large(config, model, criterion, training, device)
    return told + refuse_unlearnable(config, model, criterion, training, device, steps, seconds)


def refuse_boxes_of_nothing(
    config: TrainingConfig, model: Any, training: DetectionDataset, device: torch.device, seconds: float
) -> list[str]:
    """Raise `InputError` where what is in the boxes looks as it does in boxes of other pictures.

    Without weights a trunk sees too little to say so, and is not asked.
    """
    if not model.backbone.frozen:
        return []
    backbone = model.backbone if device.type == "cpu" else copy.deepcopy(model.backbone).to(device)
    signal = label_signal(backbone, training, config.preprocessing, config.seed, seconds)
    if signal is None:
        return []
    told = f"told from boxes of other pictures in {signal.share:.0%} of pairs, 50% is chance"
    if signal.share >= LEAST_TOLD_APART:
        return [f"preflight: {signal.num_boxes} boxes in {signal.num_pictures} pictures: {told}: go"]
    raise InputError(
        f"preflight: the boxes do not belong to their pictures: {signal.num_boxes} in {signal.num_pictures} pictures "
        f"are {told}: detrove data show {training.path} draws them; correct them, {ANYWAY}"
    )


def refuse_unlearnable(
    config: TrainingConfig,
    model: nn.Module,
    criterion: Criterion,
    training: DetectionDataset,
    device: torch.device,
    steps: int,
    seconds: float,
) -> list[str]:
    """Raise `InputError` where a copy of the detector learns nothing from a few pictures."""
    rehearsal = rehearse(model, criterion, config, training, device, steps, seconds)
    if rehearsal is None:
        return []
    if rehearsal.learned:
        picture_seconds = rehearsal.step_seconds / rehearsal.num_pictures
        return [f"preflight: {rehearsal.describe()}: go", length_here(config, len(training), picture_seconds)]
    rate = config.recipe.learning_rate
    raise InputError(
        f"preflight: not learned: {rehearsal.describe()}: lower the rate (--set learning_rate={rate / 10:g}, now "
        f"{rate:g}), {ANYWAY}"
    )


def refuse_too_large(
    config: TrainingConfig, model: nn.Module, criterion: Criterion, training: DetectionDataset, device: torch.device
) -> None:
    """Raise `InputError` where a step on the largest shape that padding can come to needs more memory than there is."""
    at_once = -(-config.recipe.batch_size // config.accumulate)
    with random_state_kept(device):
        fit = parts_that_fit(model, criterion, config, training, device, at_once)
    if fit.num_parts > 1:
        raise InputError(
            f"preflight: no room in the memory for {at_once} pictures at once: {fit.reason}: add --batch-size auto, "
            f"which computes a step in parts, {ANYWAY}"
        )
