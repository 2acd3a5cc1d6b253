"""Which of detrove's own detectors to train where the user names none: what a budget is enough for, on this machine.

A larger detector on larger pictures finds more once it has seen enough of them; until then a smaller one does, which
sees more in the same minutes. So a few steps of the larger ones are timed, from the smallest on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from detrove.data import DetectionDataset, open_dataset
from detrove.data.batching import canvas_of
from detrove.data.tiles import cut
from detrove.memory import available_memory
from detrove.models import catalogue
from detrove.training.advice import advise, advised, facts_of, two_digits
from detrove.training.config import DEFAULT_MODEL, MODEL_PREFIX, PREPROCESSING_PREFIX, TrainingConfig
from detrove.training.fitting import steps_on_noise
from detrove.training.processes import Processes, is_launched
from detrove.training.rehearsal import random_state_kept
from detrove.training.run_folder import RunFolder

LARGER = (("detrove-small", 6e9), ("detrove-medium", 12e9))
"""Detectors for a machine with at least so many bytes of memory (a GPU's, where there is one), the smallest first: a
training of `detrove-medium` on a CPU held 10 GB."""
ENOUGH_VIEWS = 4_000
"""Of pictures, by the time of steps alone, from which on a larger detector finds more than the next smaller one does in
the same minutes: on blood cells `detrove-small` was even with `-nano` after 2,178 that it was really shown."""
FEWEST_MINUTES = 1.0
"""Of a budget: timing takes some seconds of it."""
OBJECTS = 10
"""In each picture of noise that is timed."""
STEPS = 3
"""That are timed: the first one prepares what the others find prepared."""


def default_model(
    output: Path | None,
    resume: bool,
    config_of: Callable[[str], TrainingConfig],
    devices: int | None,
) -> tuple[str, list[str]]:
    """The detector of a training that names none, and the reasons, in lines.

    `config_of` gives the training of a detector, by name, as the user asks for it. A continued run goes on with its
    own. The choice is made where there is a budget of minutes, the user decided nothing of the detector or its
    pictures, the trunk has weights, and one process trains; elsewhere it is always the same.
    """
    if resume and output is not None and RunFolder(output).config.exists():
        return TrainingConfig.from_yaml(RunFolder(output).config).model, []
    config = config_of(DEFAULT_MODEL)
    decided = not config.advise or any(key.startswith((MODEL_PREFIX, PREPROCESSING_PREFIX)) for key in config.given)
    alone = devices in (None, 1) and not is_launched()
    short = config.minutes is None or config.minutes < FEWEST_MINUTES
    if short or decided or not alone or not trunk_has_weights(config):
        return DEFAULT_MODEL, []
    device, facts = Processes().device, facts_of(_pictures(config))
    gpu_memory = gpu_memory_of(device)
    memory = available_memory() if gpu_memory is None else gpu_memory

    def seconds_of(name: str) -> float:
        asked = config_of(name)
        return picture_seconds(advised(asked, advise(facts, asked)), device)

    assert config.minutes is not None
    with random_state_kept(device):
        model, reason = choose_model(config.minutes, memory, seconds_of)
    return model, [reason]


def trunk_has_weights(config: TrainingConfig) -> bool:
    """Whether the trunk's weights can be had; why not, the building of the model that is trained will say."""
    if config.backbone_weights is None:
        return False
    with warnings.catch_warnings(), random_state_kept(Processes().device):
        warnings.simplefilter("ignore")
        model: Any = catalogue.create(config.model, backbone_weights=config.backbone_weights, **config.model_options())
    return model.backbone.frozen


def _pictures(config: TrainingConfig) -> DetectionDataset:
    """What would be trained on, or held out of it."""
    data = open_dataset(config.data, config.train_split, config.data_format)
    return data if config.tiling is None else cut(data, config.tiling, config.empty_tiles, config.seed)


def choose_model(minutes: float, memory: float | None, seconds_of: Callable[[str], float]) -> tuple[str, str]:
    """The largest of our detectors to which so many minutes show enough pictures, and why, in one line.

    `memory` in bytes, None where it is not known. `seconds_of` times a picture of a detector, by name; it is asked from
    the smallest of `LARGER` on, and no further than needed.
    """
    chosen, told = DEFAULT_MODEL, []
    for name, least in LARGER:
        if memory is not None and memory < least:
            told.append(f"{name} wants {least / 1e9:.0f} GB of memory, {memory / 1e9:.0f} GB are there")
            break
        try:
            views = 60 * minutes / seconds_of(name)
        except torch.OutOfMemoryError:
            told.append(f"{name} has no room in the memory here")
            break
        shown = f"{minutes:g} min here would show {name} at most {two_digits(views)} pictures"
        if views < ENOUGH_VIEWS:
            told.append(f"{shown}, and it wants {ENOUGH_VIEWS:,}")
            break
        chosen, told = name, [f"{shown}, {ENOUGH_VIEWS:,} are enough"]
    return chosen, f"{chosen}, as no --model is named: {'; '.join(told)}"


def picture_seconds(config: TrainingConfig, device: torch.device) -> float:
    """Seconds of a training step as the config says for each of its pictures, 4:3.

    On noise, so that neither data nor weights are needed; loading pictures comes on top.
    """
    model = catalogue.create(config.model, **{"backbone_frozen": True, **config.model_options()})
    number, (height, width) = config.recipe.batch_size, config.preprocessing.target_size(3, 4)
    shape = (number, *canvas_of(height, width))
    taken = steps_on_noise(model, catalogue.criterion_for(model), config, device, shape, OBJECTS, STEPS)
    return min(taken[1:]) / number


def gpu_memory_of(device: torch.device) -> int | None:
    """Bytes of a GPU; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def larger_detector(config: TrainingConfig, gpu_memory: float | None) -> list[str]:
    """A line on the detector that a GPU of so many bytes could train instead of the default; none without a GPU.

    It is told and not taken, so that so many epochs are the same training on every machine. A training that starts from
    weights has their detector.
    """
    if config.model != DEFAULT_MODEL or gpu_memory is None or config.epochs is None or config.weights is not None:
        return []
    name = next((name for name, least in reversed(LARGER) if gpu_memory >= least), None)
    if name is None:
        return []
    return [
        f"this machine has a GPU of {gpu_memory / 1e9:.0f} GB: --model {name} would find more in as many epochs "
        "(docs/detrove.md)"
    ]
