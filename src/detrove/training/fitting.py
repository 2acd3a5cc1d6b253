"""In how many parts a step must be computed for the memory to suffice: one step on the largest shape, measured.

`--batch-size auto` keeps the pictures of a step, for which the rates of a recipe are, and divides them into parts
(`accumulate`) where they do not fit at once. What is measured is a whole step on a copy of the model: forward, losses,
backward, AdamW. A GPU is asked by trying; on a CPU steps of one and of two pictures tell what a picture takes, and that
is held against what is free, since a system that has no memory left gives no answer but a killed process.
"""

from __future__ import annotations

import copy
import gc
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from detrove.data import DetectionDataset
from detrove.data.batching import canvas_of
from detrove.data.transforms import scaled
from detrove.data.windows import SMALLEST_CROP
from detrove.errors import InputError
from detrove.inference.bench.machine import PeakMemory, resident_memory
from detrove.losses.criterion import Criterion
from detrove.memory import available_memory, give_back
from detrove.models.preset import Recipe
from detrove.nn.recompute import recompute_layers
from detrove.structures import ImageBatch, Preprocessing, Targets
from detrove.training.config import TrainingConfig
from detrove.training.optimizer import build_optimizer
from detrove.training.trainer import losses_of

SHARE = 0.8
"""Of what is free on a CPU: the rest is for decoded pictures, validation and other programs."""
GPU_SHARE = 0.9
"""Of a GPU: freed pieces of other shapes lie between those in use."""
MOSAIC = 4  # pictures, hence objects, in one


@dataclass(frozen=True)
class Fit:
    """`num_parts` of a step, and why, in words."""

    num_parts: int
    reason: str


def parts_that_fit(
    model: nn.Module,
    criterion: Criterion,
    config: TrainingConfig,
    dataset: DetectionDataset,
    device: torch.device,
    num_pictures: int,
    processes_here: int = 1,
) -> Fit:
    """The fewest parts in which a step of `num_pictures` fits this process's memory, on the largest padded shape.

    On a CPU what is free is divided among `processes_here`. Raises `InputError` where there is no room for one picture.
    """
    height, width = largest_shape(dataset, config.preprocessing, config.recipe, config.rectangular)
    num_objects = most_objects(dataset, config.recipe)

    def step(number: int) -> None:
        steps_on_noise(model, criterion, config, device, (number, height, width), num_objects)

    where = f"at up to {width}x{height} pixels with {num_objects} objects"
    if device.type == "cuda":
        return _by_trying(step, device, num_pictures, where)
    return _by_measuring(step, device, num_pictures, where, processes_here)


def largest_shape(
    dataset: DetectionDataset, preprocessing: Preprocessing, recipe: Recipe, rectangular: bool
) -> tuple[int, int]:
    """(height, width) of the largest batch that training can come to, whatever is drawn.

    Batches are padded to the highest and to the widest of their pictures, which may be two; rectangular ones hold
    pictures of one aspect. A crop may have half a picture's height or width.
    """
    largest = scaled(preprocessing, recipe.scale[1])
    sizes = {(record.height, record.width) for record in dataset.records}
    if rectangular:
        return max((largest.target_size(*size) for size in sizes), key=lambda size: size[0] * size[1])
    cropped = (SMALLEST_CROP,) if recipe.crop else ()
    windows = {
        (max(1, round(height * tall)), max(1, round(width * wide)))
        for height, width in sizes
        for tall, wide in ((1.0, 1.0), *((part, 1.0) for part in cropped), *((1.0, part) for part in cropped))
    }
    shapes = [largest.target_size(*window) for window in windows]
    height, width = max(height for height, _ in shapes), max(width for _, width in shapes)
    return canvas_of(height, width)


def most_objects(dataset: DetectionDataset, recipe: Recipe) -> int:
    """The most objects that a training picture may hold: as many as the fullest, four times that in a mosaic."""
    most = max((len(record.labels) for record in dataset.records), default=0)
    return most * (MOSAIC if recipe.mosaic else 1)


def steps_on_noise(
    model: nn.Module,
    criterion: Criterion,
    config: TrainingConfig,
    device: torch.device,
    shape: tuple[int, int, int],
    num_objects: int,
    steps: int = 1,
) -> list[float]:
    """Whole steps of a copy of the model on pictures of noise: the seconds that each took.

    `shape` is (pictures, height, width); each picture has `num_objects`.
    """
    number, height, width = shape
    copied = copy.deepcopy(model).to(device).train()
    if config.recompute:
        recompute_layers(copied)
    optimizer = build_optimizer(copied, config.recipe)
    images = ImageBatch.from_images(list(torch.randn(number, 3, height, width))).to(device)
    boxes = torch.rand(num_objects, 4) * 0.3 + 0.3
    target = Targets(torch.zeros(num_objects, dtype=torch.int64), boxes).to(device)
    targets, num_boxes = [target] * number, max(1.0, float(num_objects * number))
    ends = [_now(device)]
    for _ in range(steps):
        optimizer.zero_grad()
        losses_of(copied, criterion, config.mixed_precision, images, targets, num_boxes)[0].backward()
        optimizer.step()
        ends.append(_now(device))
    return [end - begin for begin, end in itertools.pairwise(ends)]


def _now(device: torch.device) -> float:
    """The time when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic()


def _by_trying(step: Callable[[int], None], device: torch.device, num_pictures: int, where: str) -> Fit:
    total = torch.cuda.mem_get_info(device)[1]
    for num_parts in range(1, num_pictures + 1):
        at_once = -(-num_pictures // num_parts)
        if num_parts > 1 and at_once == -(-num_pictures // (num_parts - 1)):
            continue
        torch.cuda.reset_peak_memory_stats(device)
        try:
            step(at_once)
            taken = torch.cuda.max_memory_allocated(device)
        except torch.OutOfMemoryError:
            taken = total
        gc.collect()
        torch.cuda.empty_cache()
        if taken <= GPU_SHARE * total:
            return Fit(num_parts, f"{_parts(num_pictures, num_parts)} {where} takes {_gb(taken)} of {_gb(total)}")
    raise InputError(f"a step with one picture {where} takes more than this GPU's {_gb(total)}; {_REMEDY}")


_REMEDY = "train at a smaller --size, or with --set recompute=true or --set mixed_precision=bf16"


def _by_measuring(
    step: Callable[[int], None], device: torch.device, num_pictures: int, where: str, processes_here: int
) -> Fit:
    step(1)  # the first one of a process also brings what libraries keep for themselves
    free = available_memory()
    one, two = _memory_of(step, device, 1), _memory_of(step, device, 2)
    if free is None or one is None or two is None:
        return Fit(1, "this system does not tell how much memory is free, so a step is computed at once")
    usable = free / processes_here * SHARE
    each = max(two - one, 1)
    fixed = max(one - each, 0)
    at_once = int((usable - fixed) // each)
    told = f"{where} takes {_gb(fixed)} and {_gb(each)} a picture, {_gb(usable)} may be used of {_gb(free)} free"
    if at_once < 1:
        raise InputError(f"a step with one picture {told}; {_REMEDY}")
    num_parts = next(parts for parts in range(1, num_pictures + 1) if -(-num_pictures // parts) <= at_once)
    return Fit(num_parts, f"{_parts(num_pictures, num_parts)} {told}")


def _memory_of(step: Callable[[int], None], device: torch.device, number: int) -> int | None:
    """Bytes that a step adds to what the process holds already."""
    gc.collect()
    give_back()
    before, peak = resident_memory(), PeakMemory(device)
    if before is None or not peak.can_reset:
        return None
    step(number)
    highest, _ = peak.read()
    return None if highest is None else highest - before


def _parts(num_pictures: int, num_parts: int) -> str:
    if num_parts == 1:
        return f"{num_pictures} pictures a step, all at once: a step"
    return f"{num_pictures} pictures a step, {-(-num_pictures // num_parts)} at once (accumulate={num_parts}): a step"


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
