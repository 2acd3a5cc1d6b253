"""A fake model that sees one object in every picture: the bounding box of its bright pixels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detrove.inference import Detector
from detrove.structures import ImageBatch, LabelMap, Predictions, Preprocessing


class Spotter(nn.Module):
    """Query 0 boxes the bright pixels, class 0 by logit 2; query 1 boxes the whole picture, class 1 by logit 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(scores="sigmoid", num_detections=3, num_queries=2, num_classes=2)
        self.batch_shapes: list[tuple[int, ...]] = []
        self.was_training: list[bool] = []

    def forward(self, images: ImageBatch) -> Predictions:
        assert not torch.is_grad_enabled()
        self.batch_shapes.append(tuple(images.pixels.shape))
        self.was_training.append(self.training)
        logits = torch.tensor([[2.0, -9.0], [-9.0, 0.5]]).expand(2, len(images), 2, 2)
        boxes = torch.stack([self._box(images, i) for i in range(len(images))])
        return Predictions(logits, boxes.expand(2, -1, -1, -1))

    def _box(self, images: ImageBatch, index: int) -> torch.Tensor:
        height, width = images.sizes[index].tolist()
        bright = (images.pixels[index].amin(0) > 0) & ~images.padding_mask[index]
        rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
        top, bottom = rows.min() / height, (rows.max() + 1) / height
        left, right = columns.min() / width, (columns.max() + 1) / width
        spot = torch.tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
        return torch.stack([spot, torch.tensor([0.5, 0.5, 1.0, 1.0])])


@pytest.fixture
def detector() -> Detector:
    labels = LabelMap.from_categories({3: "spot", 8: "picture"})
    plain = Preprocessing(longer=64, resize_filter="nearest", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return Detector(Spotter(), plain, labels, name="spotter")
