"""Where an exported file first computes something else than its model, and why."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from detrove.export.stages import BOXES, CONTENT, LOGITS, TRUNK, largest_values, model_stages, stage_of
from detrove.inference import Detector
from detrove.inference.engines.files import INPUTS, FileEngine, file_inputs, fitted
from detrove.inference.exported import SUFFIXES
from detrove.structures import ImageBatch, Preprocessing

STAGE_LIMITS = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.1, "int8": 0.4}
"""By precision, how far a stage's values may be from the model's, as a part of the model's own size (Euclidean)."""

FLOAT16_END = 65504.0


@dataclass(frozen=True)
class Difference:
    """The first stage, of `stages.STAGES`, that computes something else, and what is known of why."""

    stage: str
    reason: str


def first_difference(detector: Detector, loaded: Detector, path: Path, picture: Image.Image) -> Difference:
    """Follow a picture through the model and through the file, stage by stage, to where they part.

    `loaded` is the file as read back. Where all stages agree, what is left is the post-processing.
    """
    if detector.preprocessing != loaded.preprocessing:
        return Difference("preprocess", _preprocessing_differs(detector.preprocessing, loaded.preprocessing, picture))
    engine = loaded.engine
    assert isinstance(engine, FileEngine)
    images = ImageBatch.from_images([detector.preprocessing(picture)])
    if engine.shape is not None:
        images = fitted(images, engine.shape)[0]
    wanted, given = model_stages(detector.model, images), file_stages(path, images, engine.precision)
    given = _in_order_of(wanted, given)
    limit = STAGE_LIMITS[engine.precision]
    for name, value in wanted.items():
        apart = relative_difference(value, given[name]) if name in given else 0.0
        if not apart <= limit:
            reason = _reason(detector, path, engine.precision, images, name, value, given[name])
            return Difference(stage_of(name), reason or f"values {apart:.2g} of their size apart ({limit:g} allowed)")
    return Difference("postprocess", "up to the heads the file computes what the model does")


def relative_difference(wanted: Tensor, given: Tensor) -> float:
    """‖given − wanted‖ / ‖wanted‖; infinite for other shapes and for what is no number."""
    if wanted.shape != given.shape or not given.isfinite().all():
        return float("inf")
    return ((given - wanted).norm() / wanted.norm().clamp(min=torch.finfo(torch.float32).tiny)).item()


def overflow(detector: Detector, images: ImageBatch) -> Difference | None:
    """The first stage of the model whose values a batch drives beyond float16, if one does."""
    for stage, value in largest_values(detector.model, images).items():
        if not value <= FLOAT16_END:
            return Difference(stage, f"values reach {value:.3g}, and float16 ends at {FLOAT16_END:g}: it overflows")
    return None


def file_stages(path: Path, images: ImageBatch, precision: str) -> dict[str, Tensor]:
    """The values between the stages, as a file computes them for a batch: those that it still has under their names."""
    ask = _onnx_values if path.suffix.lower() == SUFFIXES["onnx"] else _openvino_values
    values = ask(path, images, precision)
    if BOXES not in values and "boxes" in values:
        values[BOXES] = values.pop("boxes")
    return {name: value.float() for name, value in values.items()}


def _is_value(name: str) -> bool:
    return name.partition(".")[0] in (TRUNK, "memory", CONTENT, LOGITS, BOXES)


def _onnx_values(path: Path, images: ImageBatch, precision: str) -> dict[str, Tensor]:  # noqa: ARG001
    import onnx
    import onnxruntime

    model = onnx.load(path)
    answers = {output.name for output in model.graph.output}
    made = [name for node in model.graph.node for name in node.output if _is_value(name)]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made if name not in answers)
    names = [*made, *(["boxes"] if BOXES not in made else [])]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    inputs = {name: value for name, value in file_inputs(images).items() if name in taken}
    return {name: torch.from_numpy(value) for name, value in zip(names, session.run(names, inputs), strict=True)}


def _openvino_values(path: Path, images: ImageBatch, precision: str) -> dict[str, Tensor]:
    import openvino

    from detrove.inference.engines.openvino import HINTS

    core = openvino.Core()
    model = core.read_model(str(path))
    answers = {name for output in model.outputs for name in output.get_names()}
    made = [
        name
        for operation in model.get_ordered_ops()
        for output in operation.outputs()
        for name in output.get_names()
        if _is_value(name)
    ]
    names: list[str] = sorted({*made, *(["boxes"] if BOXES not in made else [])})
    model.add_outputs([name for name in names if name not in answers])
    request = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": HINTS[precision]}).create_infer_request()
    taken = [name for name in INPUTS if any(name in value.get_names() for value in model.inputs)]
    inputs = file_inputs(images)
    request.infer({name: inputs[name] for name in taken})
    return {name: torch.tensor(request.get_tensor(name).data) for name in names}


def _in_order_of(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's queries in the model's order, where they can be told: a picture's queries are a set."""
    if any(name not in given or wanted[name].shape != given[name].shape for name in (LOGITS, BOXES)):
        return given
    order = []
    for picture in range(len(wanted[LOGITS])):
        cost = sum(torch.cdist(wanted[name][picture], given[name][picture]) for name in (LOGITS, BOXES))
        assert isinstance(cost, Tensor)
        order.append(torch.as_tensor(linear_sum_assignment(cost.nan_to_num(nan=1e9, posinf=1e9).numpy())[1]))
    index = torch.stack(order)[..., None]
    by_query = {name: value for name, value in given.items() if name in (CONTENT, LOGITS, BOXES)}
    return given | {
        name: value.gather(1, index.expand(-1, -1, value.shape[-1]))
        for name, value in by_query.items()
        if value.shape[:2] == index.shape[:2]
    }


def _preprocessing_differs(wanted: Preprocessing, given: Preprocessing, picture: Image.Image) -> str:
    """What a picture becomes where the sizes differ, and every other setting that is not the same."""
    sizes = [each.target_size(picture.height, picture.width) for each in (given, wanted)]
    told = []
    if sizes[0] != sizes[1]:
        (height, width), (model_height, model_width) = sizes
        told.append(f"pictures are resized to {width}×{height} pixels, for the model to {model_width}×{model_height}")
    for field in dataclasses.fields(wanted):
        ours, theirs = getattr(wanted, field.name), getattr(given, field.name)
        if ours == theirs or (field.name in ("longer", "shorter") and told):
            continue
        hint = " (channels in the reverse order)" if field.name in ("mean", "std") and ours == theirs[::-1] else ""
        told.append(f"its {field.name} is {theirs}, the model's {ours}{hint}")
    return "; ".join(told)


def _reason(
    detector: Detector, path: Path, precision: str, images: ImageBatch, name: str, wanted: Tensor, given: Tensor
) -> str | None:
    """What makes a stage's values another's, where that can be told."""
    if not given.isfinite().all():
        largest = f"; the model's values reach {wanted.abs().max():.3g} here"
        beyond = overflow(detector, images) if precision == "float16" else None
        return beyond.reason if beyond else f"it gives values that are no numbers{largest}"
    if wanted.shape != given.shape:
        return f"its values have shape {tuple(given.shape)}, the model's {tuple(wanted.shape)}"
    if name.startswith(TRUNK):
        turned = ImageBatch(images.pixels.flip(1), images.padding_mask, images.sizes)
        if relative_difference(wanted, file_stages(path, turned, precision)[name]) <= STAGE_LIMITS[precision]:
            return "it takes the picture's channels in the reverse order (blue, green, red)"
    return None
