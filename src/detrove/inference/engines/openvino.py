"""The engine of OpenVINO: an exported file, computed on the CPU."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from detrove.errors import InputError
from detrove.nn.recording import active_recorder
from detrove.structures import ImageBatch, Predictions

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoEngine:
    """A compiled ONNX file with `pixels` and `padding_mask` in, `logits` and `boxes` out.

    `precision` is "float32", or "bfloat16" where the CPU computes in it: OpenVINO would choose by itself, and on such a
    CPU not float32. It has as many threads as torch had when it was made; callers take turns.
    """

    name = "openvino"

    def __init__(self, path: str | Path, precision: str = "float32") -> None:
        try:
            import openvino
        except ImportError as error:
            raise InputError(
                'the engine openvino needs its package: pip install openvino (or "detrove[export]")'
            ) from error
        core = openvino.Core()
        if precision not in _HINTS:
            raise InputError(f"the engine openvino computes in {' or '.join(_HINTS)}, not in {precision}")
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise InputError("this CPU does not compute in bfloat16: choose precision float32")
        self.precision = precision
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.request = core.compile_model(str(path), "CPU", settings).create_infer_request()
        self.turn = threading.Lock()

    def __call__(self, images: ImageBatch) -> Predictions:
        """The last layer's logits (1, B, Q, C) and boxes (1, B, Q, 4), on the CPU; refuses to be recorded."""
        if active_recorder() is not None:
            raise InputError("an optimised detector hands over no attention: record the detector that `load` gives")
        inputs = {
            "pixels": images.pixels.float().contiguous().numpy(force=True),
            "padding_mask": images.padding_mask.contiguous().numpy(force=True),
        }
        with self.turn:
            self.request.infer(inputs)
            # copies: the next call writes its answer to the same place
            logits, boxes = (torch.tensor(self.request.get_tensor(name).data) for name in ("logits", "boxes"))
        return Predictions(logits.float()[None], boxes.float()[None])
