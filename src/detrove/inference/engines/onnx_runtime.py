"""The engine of ONNX Runtime: an exported file, computed on the CPU."""

from __future__ import annotations

from pathlib import Path

import torch

from detrove.errors import InputError
from detrove.nn.recording import active_recorder
from detrove.structures import ImageBatch, Predictions


class OnnxRuntimeEngine:
    """A session over an ONNX file with `pixels` and `padding_mask` in, `logits` and `boxes` out, in float32.

    It has as many threads as torch had when it was made. The file is read once and may go afterwards.
    """

    name = "onnxruntime"
    precision = "float32"

    def __init__(self, path: str | Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                'the engine onnxruntime needs its package: pip install onnxruntime (or "detrove[export]")'
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors: a warning for every initialiser that it folds helps nobody
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: ImageBatch) -> Predictions:
        """The last layer's logits (1, B, Q, C) and boxes (1, B, Q, 4), on the CPU; refuses to be recorded."""
        if active_recorder() is not None:
            raise InputError("an optimised detector hands over no attention: record the detector that `load` gives")
        inputs = {
            "pixels": images.pixels.float().numpy(force=True),
            "padding_mask": images.padding_mask.numpy(force=True),
        }
        logits, boxes = self.session.run(["logits", "boxes"], inputs)
        return Predictions(torch.from_numpy(logits)[None], torch.from_numpy(boxes)[None])
