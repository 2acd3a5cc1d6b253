"""A rehearsal before a training: a copy of the detector learns a few pictures by heart, at the recipe's own rates.

What cannot learn four pictures that it sees again and again will not learn from many. It finds rates that are too high,
losses that are no numbers, weights and classes that do not fit. Whether labels are true it cannot find: wrong boxes
are learned by heart as well as right ones.
"""

from __future__ import annotations

import copy
import itertools
import math
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from detrove.boxes import cxcywh_to_xyxy, iou_xyxy
from detrove.data import DetectionDataset
from detrove.data.batching import evaluation_batch
from detrove.errors import InputError, NotFiniteError
from detrove.losses import Criterion, match
from detrove.losses.criterion import count_boxes
from detrove.nn.recompute import recompute_layers
from detrove.structures import ImageBatch, Targets
from detrove.training.config import TrainingConfig
from detrove.training.optimizer import build_optimizer, set_rates
from detrove.training.parts import parts_of
from detrove.training.trainer import losses_of
from detrove.training.watch import some_pictures

NUM_PICTURES = 4
MOST_STEPS, FEWEST_STEPS = 60, 10
"""Steps of a rehearsal, and those below which nothing can be concluded from it."""
MOST_SECONDS = 45.0
SHARE = 0.05
"""Of the training that follows: a rehearsal takes no more steps, or time of a budget."""
RISE = 10
"""Steps over which the rate rises: AdamW's first steps are its wildest."""
FOUND = 0.5
"""IoU from which on a box is found."""


@dataclass(frozen=True)
class Rehearsal:
    """What a copy of the detector learned of `num_pictures` pictures in `steps` steps, `step_seconds` each.

    `before` and `after` are the losses in evaluation mode; `found` of the `num_objects` objects have a box of IoU 0.5
    from the query that answers for them. An `after` of nan: the numbers were lost.
    """

    num_pictures: int
    steps: int
    seconds: float
    step_seconds: float
    before: float
    after: float
    found: int
    num_objects: int

    @property
    def learned(self) -> bool:
        """Whether the loss fell, or the objects are found as it is."""
        return self.after < self.before or self.found > 0.5 * self.num_objects

    def describe(self) -> str:
        """One line."""
        return (
            f"{self.num_pictures} pictures by heart: loss {self.before:.3f} to {self.after:.3f} in {self.steps} steps "
            f"({self.seconds:.0f} s), {self.found} of {self.num_objects} objects found"
        )


def allowed_steps(config: TrainingConfig, num_pictures: int) -> int:
    """How many steps a rehearsal may take before a training on so many pictures; 0 where it is not worth it."""
    if config.epochs is None:
        return MOST_STEPS
    steps = config.epochs * max(1, num_pictures // config.recipe.batch_size)
    allowed = min(MOST_STEPS, int(SHARE * steps))
    return allowed if allowed >= FEWEST_STEPS else 0


def allowed_seconds(config: TrainingConfig) -> float:
    """How long a rehearsal may take."""
    return MOST_SECONDS if config.minutes is None else min(MOST_SECONDS, SHARE * 60 * config.minutes)


def rehearse(
    model: nn.Module,
    criterion: Criterion,
    config: TrainingConfig,
    data: DetectionDataset,
    device: torch.device,
    steps: int,
    seconds: float,
) -> Rehearsal | None:
    """Let a copy of `model` learn a few pictures of `data` for so many steps or seconds, whichever is less.

    The model and the random state are left as they are. None where there is too little time to conclude anything.
    Raises `InputError` where the device has no room for it.
    """
    chosen = some_pictures(data, NUM_PICTURES)
    if not chosen or steps < FEWEST_STEPS:
        return None
    started = time.monotonic()
    images, targets = evaluation_batch((data[index] for index in chosen), config.preprocessing)
    images, targets = images.to(device), [target.to(device) for target in targets]
    with random_state_kept(device):
        torch.manual_seed(config.seed)
        copied = copy.deepcopy(model).to(device)
        if config.recompute:
            recompute_layers(copied)
        try:
            before, _ = _examine(copied, criterion, images, targets)
            done, step_seconds = _learn(copied, criterion, config, images, targets, steps, started + seconds)
            after, found = _examine(copied, criterion, images, targets)
        except torch.OutOfMemoryError:
            height, width = images.pixels.shape[2:]
            raise InputError(
                f"no room in the device's memory for {len(chosen)} pictures of {width}x{height}, "
                f"{_at_once(config, len(chosen))} at once: choose a smaller --size or --model, or --set recompute=true"
            ) from None
    if done < FEWEST_STEPS and math.isfinite(after):
        return None
    num_objects = sum(len(target) for target in targets)
    seconds = time.monotonic() - started
    return Rehearsal(len(chosen), done, seconds, step_seconds, before, after, found, num_objects)


def _learn(
    model: nn.Module,
    criterion: Criterion,
    config: TrainingConfig,
    images: ImageBatch,
    targets: list[Targets],
    steps: int,
    deadline: float,
) -> tuple[int, float]:
    """Train in place until the steps or the time are used up, or the numbers lost: the steps, and the median's time."""
    optimizer = build_optimizer(model, config.recipe)
    model.train()
    ends = [time.monotonic()]
    while len(ends) <= steps and ends[-1] <= deadline:
        if not _step(model, criterion, config, optimizer, images, targets, min(1.0, len(ends) / RISE)):
            break
        ends.append(time.monotonic())
    taken = [end - begin for begin, end in itertools.pairwise(ends)]
    return len(taken), statistics.median(taken) if taken else 0.0


def _step(
    model: nn.Module,
    criterion: Criterion,
    config: TrainingConfig,
    optimizer: torch.optim.Optimizer,
    images: ImageBatch,
    targets: list[Targets],
    factor: float,
) -> bool:
    """One step at so much of the recipe's rates, in parts and in the precision of the training's own.

    False, and no weight changed, where the numbers are lost.
    """
    set_rates(optimizer, factor)
    optimizer.zero_grad()
    num_parts = -(-len(targets) // _at_once(config, len(targets)))
    num_boxes = count_boxes(targets) / num_parts
    for pictures, objects in parts_of(images, targets, num_parts):
        try:
            loss = losses_of(model, criterion, config.mixed_precision, pictures, objects, num_boxes)[0] / num_parts
        except NotFiniteError:
            return False
        if not loss.isfinite():
            return False
        loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.recipe.clip_norm)
    optimizer.step()
    return True


def _at_once(config: TrainingConfig, num_pictures: int) -> int:
    """Pictures that a step of the training computes at once, of so many."""
    return min(num_pictures, -(-config.recipe.batch_size // config.accumulate))


@torch.no_grad()
def _examine(model: nn.Module, criterion: Criterion, images: ImageBatch, targets: list[Targets]) -> tuple[float, int]:
    """The loss in evaluation mode, and how many objects are found; nan and 0 where the numbers are lost."""
    model.eval()
    try:
        predictions = model(images)
        loss = criterion.total(criterion(predictions, targets)).item()
    except NotFiniteError:
        return math.nan, 0
    matches = match(predictions.logits[-1:], predictions.boxes[-1:], targets, criterion.cost)
    boxes = predictions.boxes[-1, matches.picture[0], matches.query[0]]
    goals = torch.cat([target.boxes for target in targets])[matches.position[0]]
    found = iou_xyxy(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(goals)) >= FOUND
    return loss, int(found.sum())


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """What draws at random in this block changes nothing after it."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)
