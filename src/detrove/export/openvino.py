"""An ONNX model as OpenVINO's two files: the graph, .xml, and beside it the weights, .bin."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from detrove.errors import InputError


def require_openvino() -> None:
    """Say what is missing before minutes are spent."""
    if importlib.util.find_spec("openvino") is None:
        raise InputError('export to OpenVINO needs its package: pip install "detrove[export]"')


def make_openvino(model: Any) -> Any:
    """The `openvino.Model` of an `onnx.ModelProto`; values keep their names."""
    import openvino

    with tempfile.TemporaryDirectory(prefix="detrove-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        return openvino.convert_model(path)


def write_openvino(model: Any, path: Path, facts: dict[str, str], half: bool) -> None:
    """Write an `openvino.Model` with texts in its runtime information, its weights in float16 where `half`."""
    import openvino

    for key, text in facts.items():
        model.set_rt_info(text, key)
    openvino.save_model(model, path, compress_to_fp16=half)
