"""The engine of ONNX Runtime: an exported file, computed on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detrove.errors import InputError
from detrove.inference.engines.files import FileEngine


class OnnxRuntimeEngine(FileEngine):
    """A session over an ONNX file.

    It has as many threads as torch had when it was made. The file is read once and may go afterwards. `precision` is
    what is said of it; what it computes in stands in the file.
    """

    name = "onnxruntime"

    def __init__(self, path: str | Path, precision: str = "float32", num_slots: int | None = None) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError(
                'the engine onnxruntime needs its package: pip install onnxruntime (or "detrove[export]")'
            ) from error
        self.precision, self.num_slots = precision, num_slots
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3  # errors: a warning for every initialiser that it folds helps nobody
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        batch, _, height, width = self.session.get_inputs()[0].shape  # a free axis is a name
        self.shape = (batch, height, width) if isinstance(height, int) else None

    @property
    def input_names(self) -> Sequence[str]:
        """What the file takes."""
        return [value.name for value in self.session.get_inputs()]

    def compute(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """The file's outputs by name."""
        names = [value.name for value in self.session.get_outputs()]
        return {
            name: torch.from_numpy(value)
            for name, value in zip(names, self.session.run(names, dict(inputs)), strict=True)
        }
