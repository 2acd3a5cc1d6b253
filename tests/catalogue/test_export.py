"""Every detector as an ONNX file: the same answers at any batch and picture size, with and without padding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detrove.export.agreement import answer_differences
from detrove.inference.engines.onnx_runtime import OnnxRuntimeEngine
from detrove.inference.engines.openvino import OpenVinoEngine
from detrove.structures import ImageBatch

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from detrove.export.onnx import export_onnx

SIZES = [
    [(64, 96)],  # alone, not padded
    [(64, 96), (90, 61), (32, 40)],  # padded, none a multiple of a stride
    [(200, 133), (200, 133)],  # not padded, levels that do not halve
    [(30, 40)],  # less than a cell of the coarsest level
]
"""None of them is the example that the export is traced with."""


@pytest.fixture
def config(config):
    """The form with few layers: what takes long in an export is the number of its operators."""
    one_stack = isinstance(config.num_encoder_layers, int)
    return replace(config, backbone="test_resnet", **{"num_encoder_layers": 1} if one_stack else {})


@pytest.mark.slow
def test_the_file_answers_as_the_model(model, tmp_path):
    model.eval()
    file = export_onnx(model, tmp_path / "model.onnx")
    generator = torch.Generator().manual_seed(2)
    for sizes in SIZES:
        images = ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in sizes])
        with torch.no_grad():
            wanted = model(images)
        for engine in (OnnxRuntimeEngine(file), OpenVinoEngine(file)):
            logits, boxes = answer_differences(wanted, engine(images))
            assert logits.max() < 1e-4, (engine.name, sizes)
            assert boxes.max() < 1e-4, (engine.name, sizes)
