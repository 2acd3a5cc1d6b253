"""Engines that compute from an exported file, handed out only when they answer as the model does."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from detrove.errors import InputError
from detrove.export.agreement import answer_differences
from detrove.export.onnx import export_onnx
from detrove.inference import Detector
from detrove.inference.engines import Engine
from detrove.structures import ImageBatch, Predictions

TOLERANCES = {"float32": (1e-4, 1e-4, 0.98), "bfloat16": (0.1, 0.05, 0.5)}
"""By precision: how far apart logits (relative to the largest, where that is above 1) and boxes may be, and for which
share of the queries that must hold. In float32 a few may differ, since a two-stage detector chooses otherwise among
cells that score alike; in bfloat16 that befalls many, so there the middle query speaks for all."""

TRIAL_SIZES = ((288, 352), (240, 300))
"""Two pictures in one batch, so that there is padding; small, since what could be wrong does not hang on the size."""


def exported_engine(
    detector: Detector, engine: str, precision: str = "float32", images: ImageBatch | None = None
) -> Engine:
    """The detector's model under "onnxruntime" or "openvino", compared with the model on `images` or on noise."""
    if engine == "onnxruntime" and precision != "float32":
        raise InputError(f"the engine onnxruntime computes in float32, not in {precision}: choose openvino or torch")
    if precision not in TOLERANCES:
        raise InputError(f"the engine openvino computes in {' or '.join(TOLERANCES)}, not in {precision}")
    with tempfile.TemporaryDirectory(prefix="detrove-") as folder:
        made = _open(engine, export_onnx(detector.model, Path(folder) / "model.onnx"), precision)
    _compare(detector, made, trial_images() if images is None else images)
    return made


def _open(engine: str, path: Path, precision: str) -> Engine:
    """The engine with the file in memory."""
    if engine == "onnxruntime":
        from detrove.inference.engines.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(path)
    from detrove.inference.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(path, precision)


def trial_images() -> ImageBatch:
    """Noise, as normalised pictures are spread."""
    generator = torch.Generator().manual_seed(0)
    return ImageBatch.from_images([torch.randn(3, *size, generator=generator) for size in TRIAL_SIZES])


def _compare(detector: Detector, engine: Engine, images: ImageBatch) -> None:
    wanted = _answer(detector, images)
    logits, boxes = answer_differences(wanted, engine(images))
    logit_tolerance, box_tolerance, share = TOLERANCES[engine.precision]
    logit_tolerance *= max(1.0, wanted.logits[-1].abs().max().item())
    apart_logits, apart_boxes = (torch.quantile(x.flatten(), share).item() for x in (logits, boxes))
    if not (apart_logits <= logit_tolerance and apart_boxes <= box_tolerance):
        raise InputError(
            f"the engine {engine.name} does not answer as the model does: logits {apart_logits:.2g} apart "
            f"({logit_tolerance:.2g} allowed), boxes {apart_boxes:.2g} ({box_tolerance:.2g} allowed)"
        )


def _answer(detector: Detector, images: ImageBatch) -> Predictions:
    """What the model itself says, as it is used: in evaluation mode, wherever and in whatever type it is."""
    model = detector.model
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            return model(images.to(device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
