"""The engine of OpenVINO: an exported file, computed on the CPU."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrove.errors import InputError
from detrove.inference.engines.files import INPUTS, OUTPUTS, FileEngine

HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f32", "int8": "f32"}
"""What is computed in. Where a file's weights are float16, or parts of it int8, everything else is float32."""


class OpenVinoEngine(FileEngine):
    """A compiled file, ONNX or OpenVINO's own.

    `precision` "bfloat16" needs a CPU that computes in it: OpenVINO would choose by itself, and on such a CPU not
    float32. It has as many threads as torch had when it was made; callers take turns.
    """

    name = "openvino"

    def __init__(self, path: str | Path, precision: str = "float32", num_slots: int | None = None) -> None:
        core = _core()
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise InputError("this CPU does not compute in bfloat16: choose precision float32")
        self.precision, self.num_slots = precision, num_slots
        settings = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.compiled = core.compile_model(str(path), "CPU", settings)
        self.request = self.compiled.create_infer_request()
        self.turn = threading.Lock()
        pixels = self.compiled.input("pixels").partial_shape
        if pixels.is_static:
            batch, _, height, width = pixels.to_shape()
            self.shape = batch, height, width

    @property
    def input_names(self) -> Sequence[str]:
        """What the file takes."""
        return [_name(value, INPUTS) for value in self.compiled.inputs]

    def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The file's outputs by name."""
        with self.turn:
            self.request.infer(dict(inputs))
            # copies: the next call writes its answer to the same place
            names = [_name(value, OUTPUTS) for value in self.compiled.outputs]
            return {name: torch.tensor(self.request.get_tensor(name).data) for name in names}


def runtime_information(path: str | Path, key: str) -> str | None:
    """The text that a file carries under that key, or None. Raises `RuntimeError` where OpenVINO cannot read it."""
    model = _core().read_model(str(path))
    return model.get_rt_info(key).astype(str) if model.has_rt_info(key) else None


def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise InputError(
            'the engine openvino needs its package: pip install openvino (or "detrove[export]")'
        ) from error
    return openvino.Core()


def _name(value: Any, names: Sequence[str]) -> str:
    """Which of the names a value goes by: where OpenVINO joins steps, it has those of both."""
    return next(name for name in names if name in value.names)
