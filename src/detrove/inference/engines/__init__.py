"""What computes a detector's answers: the model itself, or a faster form of it made by `detrove.optimize`."""

from __future__ import annotations

from typing import Protocol

from detrove.structures import ImageBatch, Predictions


class Engine(Protocol):
    """From a batch of pictures to the last decoder layer's classes and boxes.

    The batch may lie on any device, in float32; the engine moves and casts it to where and how it computes. It may be
    padded or not, and every call may have another batch and picture size. The answer may lie on any device, in any
    floating-point type.
    """

    @property
    def name(self) -> str:
        """As `optimize` calls it: "torch", "onnxruntime", …."""
        ...

    @property
    def precision(self) -> str:
        """What it computes in: "float32", "bfloat16", "float16", or for an exported file "int8"."""
        ...

    def __call__(self, images: ImageBatch) -> Predictions:
        """Logits (1, B, Q, C) and boxes (1, B, Q, 4) cxcywh in [0, 1]; nothing that holds a gradient."""
        ...
