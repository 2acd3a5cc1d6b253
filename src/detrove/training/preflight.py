"""Before a training: what the data doctor finds at fault in the pictures to train and to validate on."""

from __future__ import annotations

from detrove.data import DetectionDataset
from detrove.data.doctor import examine
from detrove.data.doctor.telling import in_short
from detrove.models.preset import count_queries
from detrove.training.config import TrainingConfig

MOST_PICTURES = 500
"""Pictures that are decoded, evenly spaced where there are more: a few seconds, whatever the data set."""


def preflight(config: TrainingConfig, training: DetectionDataset, validation: DetectionDataset) -> list[str]:
    """A line for each fault; nothing where there is none. Remarks are left to `detrove data check`."""
    diagnosis = examine(
        training.path,
        training.format,
        {"train": training.annotations, "val": validation.annotations},
        # A tile holds fewer objects than its picture.
        num_queries=count_queries(config.model_config) if config.tiling is None else None,
        most_pictures=MOST_PICTURES,
    )
    return in_short(diagnosis)
