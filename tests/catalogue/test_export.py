"""Every detector as an ONNX file: the same answers at any batch and picture size, with and without padding.

Its detections, twenty at the least, are those that the model's own post-processing gives.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from detrove.export.agreement import agreement_of_sets, answer_differences
from detrove.export.gate import TOLERANCES
from detrove.inference import postprocess
from detrove.inference.engines.onnx_runtime import OnnxRuntimeEngine
from detrove.inference.engines.openvino import OpenVinoEngine
from detrove.models import dino
from detrove.structures import ImageBatch, LabelMap

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from detrove.export.onnx import export_onnx

SIZES = [
    [(64, 96)],  # alone, not padded
    [(64, 96), (90, 61), (32, 40)],  # padded, none a multiple of a stride
    [(200, 133), (200, 133)],  # not padded, levels that do not halve, 50 cells high: centres at 0.01 itself
    [(30, 40)],  # less than a cell of the coarsest level
]
"""None of them is the example that the export is traced with."""


SAME_GRAPH = {"dino-without-denoising": "dino", "dn-dab-contrastive": "dn-dab"}
"""Forms that differ in training alone."""


@pytest.fixture(autouse=True)
def form(request: pytest.FixtureRequest) -> str:
    """The form's name; one whose graph is another's needs no file of its own."""
    form = request.node.callspec.params["config"]
    if form in SAME_GRAPH:
        pytest.skip(f"{form} answers by the graph of {SAME_GRAPH[form]}")
    return form


@pytest.fixture(scope="module")
def config(config: Any) -> Any:
    """The form with few layers: what takes long in an export is the number of its operators and of free sizes.

    Two-stage forms, whose graphs are the largest, keep two of the trunk's levels and the one more; the others have all.
    """
    changes: dict[str, Any] = {"backbone": "test_resnet"}
    if isinstance(config.num_encoder_layers, int):  # not a stack of stages
        changes["num_encoder_layers"] = 1
    if getattr(config, "num_levels", 0) == 4 and (
        isinstance(config, dino.Config) or getattr(config, "two_stage", False)
    ):
        changes |= {"strides": (16, 32), "num_levels": 3}
    return replace(config, **changes)


@pytest.fixture
def model(model):
    """The toy detector with class heads that see something nearly everywhere."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "class_head" in name and parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.mark.slow
def test_the_file_answers_as_the_model(model, form, tmp_path):
    model.eval()
    file = export_onnx(model, tmp_path / "model.onnx")
    engines = (OnnxRuntimeEngine(file), OpenVinoEngine(file))
    generator = torch.Generator().manual_seed(2)
    compared = dict.fromkeys((engine.name for engine in engines), 0)
    batches = [
        ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in sizes]) for sizes in SIZES
    ]
    with torch.no_grad():
        answers = [model(images) for images in batches]
    for engine, (sizes, images, wanted) in product(engines, zip(SIZES, batches, answers, strict=True)):
        answer = engine(images)
        logits, boxes = answer_differences(wanted, answer)
        assert logits.max() < 1e-4, (engine.name, sizes)
        assert boxes.max() < 1e-4, (engine.name, sizes)
        found, given = detections(model, wanted, sizes), detections(model, answer, sizes)
        for one, other, size in zip(found, given, sizes, strict=True):
            agreement = agreement_of_sets(one, other, max(size), TOLERANCES["float32"], model.config.num_detections)
            assert agreement.alike == agreement.compared, (engine.name, sizes)
            compared[engine.name] += agreement.compared // 2
    assert min(compared.values()) >= 20


def detections(model, answer, sizes):
    """As `predict` makes them, pictures not resized."""
    label_map = LabelMap.numbered(model.config.num_classes)
    return postprocess(answer, sizes, label_map, model.config.scores, model.config.num_detections)
