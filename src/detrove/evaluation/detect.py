"""Running a detector over a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from PIL import Image

from detrove.errors import InputError
from detrove.structures import Detections, LabelMap, Preprocessing


class DetectsPictures(Protocol):
    """What evaluation asks of a detector; `detrove.inference.Detector` is one."""

    @property
    def label_map(self) -> LabelMap:
        """What its class slots stand for."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """How it resizes pictures."""
        ...

    def detect(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        """All detections in upright RGB pictures, whatever their score, computed as one batch."""
        ...


def detect(
    detector: DetectsPictures,
    dataset: Any,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Any, Detections]:
    """All detections, whatever their score, in every picture of a data set, by its image id and in its order.

    `dataset` is a `detrove.data` data set. Pictures that come out of preprocessing at the same size share a batch as
    far as possible, so that little padding is computed. `progress` is called after each batch with the number of
    pictures done and their total.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    records = dataset.records
    by_size = sorted(
        range(len(records)),
        key=lambda index: detector.preprocessing.target_size(records[index].height, records[index].width),
    )
    found: dict[Any, Detections] = {}
    for start in range(0, len(by_size), batch_size):
        batch = by_size[start : start + batch_size]
        pictures = [dataset[index].image for index in batch]
        found.update(zip((records[index].image_id for index in batch), detector.detect(pictures), strict=True))
        if progress is not None:
            progress(len(found), len(records))
    return {record.image_id: found[record.image_id] for record in records}
