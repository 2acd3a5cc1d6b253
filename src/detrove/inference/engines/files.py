"""What the engines of exported files have in common: batches in, and a `Predictions` out, whatever the file gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from detrove.boxes import xyxy_to_cxcywh
from detrove.errors import InputError
from detrove.nn.recording import active_recorder
from detrove.structures import ImageBatch, Predictions

PIXELS, PADDING_MASK, ORIGINAL_SIZES = INPUTS = ("pixels", "padding_mask", "original_sizes")
"""What a file may take: `pixels` (B, 3, H, W) float32, normalised, zero in the padding; `padding_mask` (B, H, W) bool,
True = padding; and where post-processing is in it, `original_sizes` (B, 2) int64, height and width in pixels."""

OUTPUTS = ("logits", "boxes", "scores", "labels")
"""What a file may give, see `FileEngine`."""

Shape = tuple[int, int, int]
"""Batch, height and width that a file is fixed to."""


class FileEngine(ABC):
    """An exported file, computed on the CPU; a runtime says how.

    The file gives `logits` (B, Q, C) and `boxes` (B, Q, 4) cxcywh in [0, 1]; or, where post-processing is in it,
    `boxes` (B, N, 4) xyxy in pixels of the original pictures, `scores` (B, N) and `labels` (B, N). `shape` is what its
    inputs are fixed to: batches are cut and padded to it. `num_slots` is how many class slots the model has, which a
    file with post-processing does not tell.
    """

    name: str
    precision: str
    shape: Shape | None = None
    num_slots: int | None = None

    @abstractmethod
    def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The file's outputs by name, as tensors that nobody writes to afterwards."""

    @property
    @abstractmethod
    def input_names(self) -> Sequence[str]:
        """Those of `INPUTS` that the file takes."""

    def __call__(self, images: ImageBatch) -> Predictions:
        """The last layer's logits (1, B, Q, C) and boxes (1, B, Q, 4), on the CPU; refuses to be recorded.

        A file with post-processing gives its N detections in the place of queries: logits (1, B, N, C + 1) whose
        softmax gives the score to the detection's class and the rest to "no object".
        """
        if active_recorder() is not None:
            raise InputError("an optimised detector hands over no attention: record the detector that `load` gives")
        if self.shape is None:
            return self._answer(images)
        answers = [self._answer(part) for part in fitted(images, self.shape)]
        logits = torch.cat([answer.logits for answer in answers], dim=1)
        boxes = torch.cat([answer.boxes for answer in answers], dim=1)
        return Predictions(logits[:, : len(images)], boxes[:, : len(images)])

    def _answer(self, images: ImageBatch) -> Predictions:
        outputs = self.compute({name: value for name, value in file_inputs(images).items() if name in self.input_names})
        if "scores" in outputs:
            assert self.num_slots is not None
            return _as_predictions(outputs["boxes"], outputs["scores"], outputs["labels"], self.num_slots)
        return Predictions(outputs["logits"].float()[None], outputs["boxes"].float()[None])


def file_inputs(images: ImageBatch) -> dict[str, np.ndarray]:
    """A batch as a file takes it. Every original picture is said to be one pixel, so that boxes come as parts of it."""
    return {
        PIXELS: images.pixels.float().contiguous().numpy(force=True),
        PADDING_MASK: images.padding_mask.contiguous().numpy(force=True),
        ORIGINAL_SIZES: np.ones((len(images), 2), dtype=np.int64),
    }


def fitted(images: ImageBatch, shape: Shape) -> list[ImageBatch]:
    """The batch in parts of exactly that batch, height and width; the last picture fills up the last part.

    Raises `InputError` where a picture is larger.
    """
    batch, height, width = shape
    count, _, given_height, given_width = images.pixels.shape
    if given_height > height or given_width > width:
        raise InputError(
            f"pictures come at {given_width}×{given_height} pixels, but the file is fixed to {width}×{height}: leave "
            "its size as it was exported, or export it with free sizes"
        )
    pixels = images.pixels.new_zeros(count, 3, height, width)
    pixels[:, :, :given_height, :given_width] = images.pixels
    padding_mask = images.padding_mask.new_ones(count, height, width)
    padding_mask[:, :given_height, :given_width] = images.padding_mask
    parts = torch.arange(count).split(batch)
    indices = [torch.cat([part, part[-1:].expand(batch - len(part))]) for part in parts]
    return [ImageBatch(pixels[i], padding_mask[i], images.sizes[i]) for i in indices]


def _as_predictions(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, num_slots: int) -> Predictions:
    """Detections (B, N) with boxes in [0, 1] as a detector with "no object" would have said them."""
    logits = scores.new_full((*scores.shape, num_slots + 1), float("-inf"))
    logits.scatter_(2, labels.long()[..., None], scores.log()[..., None])
    logits[..., -1] = torch.log1p(-scores)
    return Predictions(logits[None], xyxy_to_cxcywh(boxes_xyxy)[None])
