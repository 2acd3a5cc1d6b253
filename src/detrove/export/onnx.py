"""A detector as an ONNX file: pixels and padding mask in, the last layer's logits and boxes out, of any size."""

from __future__ import annotations

import copy
import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detrove.errors import InputError
from detrove.nn.sampling import sampling_by
from detrove.structures import ImageBatch

OPSET = 18
"""The set that torch's translations are written in: a later one would only be converted to, and 18 has every operator
that the family needs (GridSample came with 16) and is read by ONNX Runtime and OpenVINO alike."""

INPUTS, OUTPUTS = ("pixels", "padding_mask"), ("logits", "boxes")
AXES = {"pixels": {0: "batch", 2: "height", 3: "width"}, "padding_mask": {0: "batch", 1: "height", 2: "width"}}
# Two pictures, since a batch of one would be taken for a constant; two sizes, so that height is not taken for width.
EXAMPLE_SHAPE = (2, 160, 224)


class LastLayer(nn.Module):
    """A detector as a function of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) and padding mask (B, H, W), True = padding, to logits (B, Q, C), boxes (B, Q, 4)."""
        sizes = torch.stack([(~padding_mask).any(dim=2).sum(dim=1), (~padding_mask).any(dim=1).sum(dim=1)], dim=-1)
        predictions = self.model(ImageBatch(pixels, padding_mask, sizes))
        return predictions.logits[-1], predictions.boxes[-1]


def export_onnx(model: nn.Module, path: str | Path, shape: tuple[int, int, int] | None = None) -> Path:
    """Write a detector as one ONNX file, in float32; the model stays as it is.

    Inputs: `pixels` (B, 3, H, W) float32, normalised, zero in the padding; `padding_mask` (B, H, W) bool, True =
    padding. Outputs: `logits` (B, Q, C) and `boxes` (B, Q, 4) cxcywh in [0, 1]. B, H and W are free, unless `shape`
    fixes them. Deformable attention is written in standard operators (GridSample), so nothing needs to be added to the
    program that reads the file.
    """
    path = Path(path)
    if shape is not None and min(shape) < 1:
        raise InputError(f"a fixed shape is batch, height, width, each at least 1, got {shape}")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder to write {path.name} to")
    require_exporter()
    program = trace(model, shape)
    translated = torch.onnx.export(
        program,
        dynamo=True,
        input_names=INPUTS,
        output_names=OUTPUTS,
        opset_version=OPSET,
        # The readers' own optimisers do more, and this one loses inputs of a clamp between two bounds (onnxscript 0.7).
        optimize=False,
        verbose=False,
    )
    assert translated is not None
    graph = translated.model_proto
    _name_axes(graph.graph)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(graph.SerializeToString())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def trace(model: nn.Module, shape: tuple[int, int, int] | None = None) -> torch.export.ExportedProgram:
    """The detector's last layer as a graph of torch operators, with free batch, height and width, or a fixed shape."""
    module = LastLayer(copy.deepcopy(model).cpu().float().eval().requires_grad_(False))
    batch, height, width = shape or EXAMPLE_SHAPE
    pixels = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    padding_mask = torch.zeros(batch, height, width, dtype=torch.bool)
    axes: Any = None
    if shape is None:
        axes = {name: dict.fromkeys(dimensions, torch.export.Dim.DYNAMIC) for name, dimensions in AXES.items()}
    with torch.no_grad(), sampling_by("torch"):
        program = torch.export.export(module, (pixels, padding_mask), dynamic_shapes=axes, strict=False)
    pooling = torch.ops.aten.adaptive_avg_pool2d.default
    if any(node.target is pooling for node in program.graph.nodes):
        # torch translates it only where one size divides the other
        program = program.run_decompositions({pooling: adaptive_average})
    return program


def adaptive_average(x: Tensor, shape: list[int]) -> Tensor:
    """`adaptive_avg_pool2d` as two products, for maps whose sizes are not known yet: (B, C, h, w) to (B, C, *shape)."""
    rows, columns = (_averages(x, x.shape[axis], size) for axis, size in zip((-2, -1), shape, strict=True))
    return rows @ x @ columns.transpose(0, 1)


def _averages(like: Tensor, size_in: int, size_out: int) -> Tensor:
    """(out, in): row i averages the cells from ⌊i · in / out⌋ up to before ⌈(i + 1) · in / out⌉."""
    cell = torch.arange(size_in, device=like.device)
    window = torch.arange(size_out, device=like.device)[:, None]
    first, end = window * size_in // size_out, ((window + 1) * size_in + size_out - 1) // size_out
    inside = ((cell >= first) & (cell < end)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)


def require_exporter() -> None:
    """Say what is missing before minutes are spent."""
    missing = [package for package in ("onnx", "onnxscript") if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(f'export to ONNX needs {" and ".join(missing)}: pip install "detrove[export]"')


def _name_axes(graph: Any) -> None:
    """Free axes by name, for whoever looks at the file; sizes in between are left to its reader to infer."""
    del graph.value_info[:]
    for value in graph.input:
        for axis, name in AXES[value.name].items():
            dimension = value.type.tensor_type.shape.dim[axis]
            if dimension.HasField("dim_param"):
                dimension.dim_param = name
    for value in graph.output:
        dimension = value.type.tensor_type.shape.dim[0]
        if dimension.HasField("dim_param"):
            dimension.dim_param = "batch"
        for other in value.type.tensor_type.shape.dim[1:]:
            if other.HasField("dim_param"):  # queries of a two-stage detector are at most as many as its cells
                other.dim_param = "queries"
