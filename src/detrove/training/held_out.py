"""Pictures to train on and pictures to validate on, whatever splits a data set has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from detrove.data import DetectionDataset, find_splits, open_dataset
from detrove.data.splits import look_alikes, make_splits
from detrove.errors import InputError
from detrove.training.config import TrainingConfig

LARGE = 5_000
"""Pictures above which near-duplicates are not looked for, unasked, before training."""


def choose_splits(data: Path, format: str | None = None) -> dict[str, Any]:
    """The names of the splits to train and to validate on; None for val where training pictures must be held out.

    Never the test split: what is looked at after every epoch cannot be what the detector is judged by in the end.
    """
    splits = find_splits(data, format)
    if "train" in splits:
        return {"train_split": "train", "val_split": "val" if "val" in splits else None}
    if len(splits) == 1:
        return {"train_split": splits[0], "val_split": None}
    raise InputError(f"{data}: no split called train among {', '.join(splits)}; rename the one to train on")


def open_splits(config: TrainingConfig) -> tuple[DetectionDataset, DetectionDataset]:
    """The pictures to train on and those to validate on."""
    training_data = open_dataset(config.data, config.train_split, config.data_format)
    if not len(training_data):
        raise InputError(f"{config.data}: split {config.train_split} has no pictures to train on")
    if config.val_split is not None:
        return training_data, open_dataset(config.data, config.val_split, config.data_format)
    return hold_out(training_data, config.val_fraction, config.seed)


def hold_out(data: DetectionDataset, fraction: float, seed: int) -> tuple[DetectionDataset, DetectionDataset]:
    """The data set without a `fraction` of its pictures, and these; the same for the same seed.

    Every class is held out in its share, and no picture apart from its near-duplicates (`make_splits`). In a large set
    these are not looked for, because every picture would have to be opened.
    """
    if len(data) < 2:
        raise InputError(f"{data.path}: one picture cannot be both trained on and held out; add pictures")
    groups = np.arange(len(data)) if len(data) > LARGE else look_alikes(list(data.annotations.paths))
    if len(np.unique(groups)) < 2:
        groups = np.arange(len(data))
    training, held_out = make_splits(data.annotations, (1 - fraction, fraction), seed, groups)
    return data.subset(training), data.subset(held_out)
