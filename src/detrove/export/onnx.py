"""A detector as an ONNX file: pixels and padding mask in, logits and boxes or detections out, of any size."""

from __future__ import annotations

import copy
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detrove.boxes import cxcywh_to_xyxy
from detrove.errors import InputError
from detrove.export.stages import BOXES, LOGITS, watched
from detrove.inference.engines.files import ORIGINAL_SIZES, PADDING_MASK, PIXELS, Shape
from detrove.nn.frozen_norm import put_norms_into_convolutions
from detrove.nn.sampling import sampling_by
from detrove.structures import ImageBatch

OPSET = 18
"""The set that torch's translations are written in: a later one would only be converted to, and 18 has every operator
that the family needs (GridSample came with 16) and is read by ONNX Runtime and OpenVINO alike."""

AXES = {
    PIXELS: {0: "batch", 2: "height", 3: "width"},
    PADDING_MASK: {0: "batch", 1: "height", 2: "width"},
    ORIGINAL_SIZES: {0: "batch"},
}
RAW, DETECTIONS = ("logits", "boxes"), ("boxes", "scores", "labels")
"""What a file gives, without and with post-processing."""
# Two pictures, since a batch of one would be taken for a constant; two sizes, so that height is not taken for width.
EXAMPLE_SHAPE = (2, 160, 224)


class Answering(nn.Module):
    """A detector as a function of tensors: its last layer's answer, then the values between its stages.

    With `detections` the answer is what `postprocess` makes of it, so many for each picture, and the last layer's
    logits and boxes stand among the other values.
    """

    def __init__(
        self, model: nn.Module, detections: int | None = None, tell: Callable[[list[str]], object] = len
    ) -> None:
        super().__init__()
        self.model, self.detections = model, detections
        self.tell = tell  # tracing puts lists that a module holds back to what they were

    def forward(self, pixels: Tensor, padding_mask: Tensor, original_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Pixels (B, 3, H, W), padding mask (B, H, W), True = padding, and where detections are wanted the pictures'
        original heights and widths (B, 2): the answer, see `RAW` and `DETECTIONS`, and the values.

        `tell` hears the names of all.
        """
        sizes = torch.stack([(~padding_mask).any(dim=2).sum(dim=1), (~padding_mask).any(dim=1).sum(dim=1)], dim=-1)
        with watched(self.model) as values:
            predictions = self.model(ImageBatch(pixels, padding_mask, sizes))
        answer = dict(zip(RAW, (predictions.logits[-1], predictions.boxes[-1]), strict=True))
        if self.detections is not None:
            assert original_sizes is not None
            values |= {LOGITS: answer["logits"], BOXES: answer["boxes"]}
            answer = detections_of(answer["logits"], answer["boxes"], original_sizes, self.scores, self.detections)
        self.tell([*answer, *values])
        return *answer.values(), *values.values()

    @property
    def scores(self) -> str:
        """How the model's logits become scores."""
        config: Any = self.model.config
        return config.scores


def detections_of(
    logits: Tensor, boxes: Tensor, original_sizes: Tensor, scores: str, num_detections: int
) -> dict[str, Tensor]:
    """`inference.postprocess` on whole batches: `boxes` (B, N, 4) xyxy in pixels, `scores` (B, N), `labels` (B, N)."""
    if scores == "softmax":
        values, labels = logits.softmax(-1)[..., :-1].max(-1)
        values, queries = values.topk(min(num_detections, values.shape[1]), dim=1)
        labels = labels.gather(1, queries)
    else:
        flat = logits.sigmoid().flatten(1)
        values, index = flat.topk(min(num_detections, flat.shape[1]), dim=1)
        num_classes = logits.shape[-1]
        queries, labels = index // num_classes, index % num_classes
    corners = cxcywh_to_xyxy(boxes.gather(1, queries[..., None].expand(-1, -1, 4))).clamp(0.0, 1.0)
    in_pixels = corners * original_sizes.flip(1).repeat(1, 2)[:, None].to(corners.dtype)
    return {"boxes": in_pixels, "scores": values, "labels": labels}


def export_onnx(model: nn.Module, path: str | Path, shape: Shape | None = None) -> Path:
    """Write a detector as one ONNX file, in float32; the model stays as it is.

    Inputs: `pixels` (B, 3, H, W) float32, normalised, zero in the padding; `padding_mask` (B, H, W) bool, True =
    padding. Outputs: `logits` (B, Q, C) and `boxes` (B, Q, 4) cxcywh in [0, 1]. B, H and W are free, unless `shape`
    fixes them. Deformable attention is written in standard operators (GridSample), so nothing needs to be added to the
    program that reads the file.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder to write {path.name} to")
    write_onnx(make_onnx(model, shape), path)
    return path


def write_onnx(graph: Any, path: Path) -> None:
    """Write an ONNX model beside its place and rename it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(graph.SerializeToString())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def make_onnx(model: nn.Module, shape: Shape | None = None, postprocess: bool = False) -> Any:
    """A detector as an `onnx.ModelProto` in float32, as `export_onnx` writes it.

    With `postprocess` there is a third input, `original_sizes` (B, 2) int64, height and width of each picture before it
    was resized, and the outputs are `boxes` (B, N, 4) xyxy in pixels of the original pictures, `scores` (B, N) and
    `labels` (B, N) int64, class slots, by descending score. The values between the stages keep the names of
    `export.stages`.
    """
    if shape is not None and min(shape) < 1:
        raise InputError(f"a fixed shape is batch, height, width, each at least 1, got {shape}")
    require_exporter()
    program, names = trace(model, shape, postprocess)
    translated = torch.onnx.export(
        program,
        dynamo=True,
        input_names=list(AXES)[: 2 + postprocess],
        output_names=names,
        opset_version=OPSET,
        # The readers' own optimisers do more, and this one loses inputs of a clamp between two bounds (onnxscript 0.7).
        optimize=False,
        verbose=False,
    )
    assert translated is not None
    made = translated.model_proto
    del made.graph.output[len(DETECTIONS if postprocess else RAW) :]
    for node in made.graph.node:  # where in which file of this machine it comes from
        del node.metadata_props[:]
    _name_axes(made.graph)
    return made


def trace(
    model: nn.Module, shape: Shape | None = None, postprocess: bool = False
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The detector as a graph of torch operators, with free batch, height and width or a fixed shape.

    It gives the answer and, behind that, the values between the stages; all their names are told beside it.
    """
    copied = put_norms_into_convolutions(copy.deepcopy(model).cpu().float().eval().requires_grad_(False))
    config: Any = model.config
    told: list[list[str]] = []
    module = Answering(copied, config.num_detections if postprocess else None, told.append)
    batch, height, width = shape or EXAMPLE_SHAPE
    inputs = (
        torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0)),
        torch.zeros(batch, height, width, dtype=torch.bool),
        torch.tensor([[height, width]] * batch),
    )[: 2 + postprocess]
    axes: Any = None
    if shape is None:
        free = [dict.fromkeys(dimensions, torch.export.Dim.DYNAMIC) for dimensions in AXES.values()]
        axes = {"pixels": free[0], "padding_mask": free[1], **({"original_sizes": free[2]} if postprocess else {})}
    with torch.no_grad(), sampling_by("torch"):
        program = torch.export.export(module, inputs, dynamic_shapes=axes, strict=False)
    pooling = torch.ops.aten.adaptive_avg_pool2d.default
    if any(node.target is pooling for node in program.graph.nodes):
        # torch translates it only where one size divides the other
        program = program.run_decompositions({pooling: adaptive_average})
    return program, told[-1]


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
