"""A toy detector, and its ONNX file, written once."""

from pathlib import Path

import pytest
import torch

from detrove.export.onnx import export_onnx
from detrove.inference import Detector
from detrove.models import catalogue, deformable
from detrove.structures import LabelMap, Preprocessing


@pytest.fixture(scope="session")
def detector() -> Detector:
    """One layer each, deformable attention on one level."""
    config = deformable.Config(
        num_classes=4,
        num_queries=7,
        backbone="test_resnet",
        strides=(32,),
        num_levels=1,
        dim=32,
        num_heads=2,
        feedforward_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    torch.manual_seed(0)
    return Detector(catalogue.build(config), Preprocessing(longer=96), LabelMap.numbered(4), name="toy")


@pytest.fixture(scope="session")
def file(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy detector with free axes."""
    pytest.importorskip("onnxscript")
    return export_onnx(detector.model, tmp_path_factory.mktemp("export") / "toy.onnx")
