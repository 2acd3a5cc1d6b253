"""A toy detector, pictures it sees something in, and its exported files, made once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from detrove.export import exporting
from detrove.export.exporting import Form, export
from detrove.export.gate import Pictures
from detrove.export.onnx import export_onnx, make_onnx
from detrove.inference import Detector
from detrove.models import catalogue, deformable
from detrove.structures import LabelMap, Preprocessing


@pytest.fixture(scope="session")
def detector() -> Detector:
    """One layer each, deformable attention on one level; it shows about half of what it guesses."""
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
    model = catalogue.build(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("class_heads"):
                parameter.copy_(torch.randn_like(parameter))
            elif name.startswith("box_heads"):
                parameter.add_(0.4 * torch.randn_like(parameter))
    labels = LabelMap.from_categories({2: "cell", 3: "Zelle »a«", 5: "debris", 7: "x"})
    return Detector(model, Preprocessing(longer=96), labels, torch.tensor([0.2, 0.3, 0.4, 0.5]), name="toy")


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Smooth colours, of three sizes, so that it matters how they are resized and in which order channels come."""
    generator = torch.Generator().manual_seed(5)
    return [
        Image.fromarray(torch.randint(256, (6, 8, 3), dtype=torch.uint8, generator=generator).numpy()).resize(
            size, Image.Resampling.BICUBIC
        )
        for size in [(120, 80), (64, 100), (40, 40)]
    ]


@pytest.fixture(scope="session")
def pictures(images: list[Image.Image]) -> Pictures:
    """The same, to be compared on."""
    return Pictures(["a.jpg", "b.jpg", "c.jpg"], images.__getitem__)


@pytest.fixture(scope="session")
def file(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy detector with free axes."""
    pytest.importorskip("onnxscript")
    return export_onnx(detector.model, tmp_path_factory.mktemp("export") / "toy.onnx")


@pytest.fixture(scope="session")
def exported(detector: Detector, pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A proven file of the toy detector in a form, written at the first call for it; its graph is traced once."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    graphs: dict[bool, object] = {}
    files: dict[Form, Path] = {}

    def traced_once(model, shape=None, postprocess=False):
        if model is not detector.model or shape is not None:
            return make_onnx(model, shape, postprocess)
        if postprocess not in graphs:
            graphs[postprocess] = make_onnx(model, shape, postprocess)
        return copy.deepcopy(graphs[postprocess])

    def write(**form) -> Path:
        wanted = Form(**form)
        if wanted not in files:
            suffix = ".onnx" if wanted.format == "onnx" else ".xml"
            path = folder / f"toy{len(files)}{suffix}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(exporting, "make_onnx", traced_once)
                calibration = [pictures.read(index) for index in range(3)]
                files[wanted] = export(detector, path, wanted, pictures, calibration).path
        return files[wanted]

    return write
