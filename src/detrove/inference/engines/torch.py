"""The torch engine: a copy of the model, made for nothing but answering."""

from __future__ import annotations

import copy

import torch
from torch import nn

from detrove.errors import InputError
from detrove.nn.recording import active_recorder
from detrove.structures import ImageBatch, Predictions


class TorchEngine:
    """A model's copy in evaluation mode; the model itself is left alone and may be trained on."""

    name = "torch"

    def __init__(self, model: nn.Module, precision: str = "float32") -> None:
        self.precision = precision
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, images: ImageBatch) -> Predictions:
        """The last layer's logits (1, B, Q, C) and boxes (1, B, Q, 4); refuses to be recorded."""
        if active_recorder() is not None:
            raise InputError("an optimised detector hands over no attention: record the detector that `load` gives")
        parameter = next(self.model.parameters())
        predictions = self.model(images.to(device=parameter.device, dtype=parameter.dtype))
        return Predictions(predictions.logits[-1:], predictions.boxes[-1:])
