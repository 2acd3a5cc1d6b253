"""`export`: a detector as a file for other programs, proven on real pictures before it gets its name."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from detrove.errors import InputError, nearest
from detrove.export.gate import MARGINS, Pictures, Proof, prove
from detrove.export.onnx import make_onnx, require_exporter, write_onnx
from detrove.export.openvino import make_openvino, require_openvino, write_openvino
from detrove.export.precision import PRECISIONS, in_half, quantised_onnx, quantised_openvino, require_quantiser
from detrove.inference import Detector
from detrove.inference.engines import Engine
from detrove.inference.engines.files import Shape, file_inputs, fitted
from detrove.inference.exported import KEY, SUFFIXES, ExportedModel, FileFacts, load_exported
from detrove.structures import ImageBatch

FORMATS = tuple(SUFFIXES)
ROUNDS = 15
"""So many times a picture is answered by either file to tell what a fixed size gains."""


@dataclass(frozen=True)
class Form:
    """What kind of file is wanted.

    `format` is "onnx" or "openvino"; `precision` as `precision.PRECISIONS`. With `postprocess` it gives detections,
    else logits and boxes. `size` fixes its pictures to squares of so many pixels and `batch` of them at a time; None
    leaves both free.
    """

    format: str = "onnx"
    precision: str = "float32"
    postprocess: bool = True
    size: int | None = None
    batch: int = 1

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"unknown format {self.format!r}: {nearest(self.format, FORMATS)}")
        if self.precision not in PRECISIONS:
            raise InputError(f"unknown precision {self.precision!r}: {nearest(self.precision, PRECISIONS)}")
        if self.precision == "bfloat16" and self.format == "onnx":
            raise InputError(
                "ONNX Runtime computes next to nothing in bfloat16: choose float16, or the format openvino"
            )
        for name in ("size", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.size is None and self.batch != 1:
            raise InputError("a batch is fixed together with a size: name a size, or leave both free")

    @property
    def shape(self) -> Shape | None:
        """What the file's inputs are fixed to."""
        return None if self.size is None else (self.batch, self.size, self.size)


@dataclass(frozen=True)
class Exported:
    """A file that passed the gate: its `bytes` with all that belongs to it, the `proof`, the `margin` AP was held to.

    Where its size is fixed, `latency` are the seconds that a batch takes in it and in the same file of free size.
    """

    path: Path
    bytes: int
    proof: Proof
    margin: float
    latency: tuple[float, float] | None


def export(
    detector: Detector,
    path: str | Path,
    form: Form,
    pictures: Pictures,
    calibration: Sequence[Image.Image] = (),
    margin: float | None = None,
    progress: Callable[[int], object] = int,  # tells nobody
) -> Exported:
    """Write a detector as a file that `load` and other programs read, and prove it on pictures first (`gate.prove`).

    The file tells its classes, thresholds, preprocessing and the model's name in its metadata. With a fixed size, its
    pictures' longer side is that size. `calibration` are pictures to take int8's ranges from. The detector stays as it
    is. Until the file has passed, nothing stands at `path`; OpenVINO's weights stand beside it, .bin. Raises
    `InputError`, and where the file is not what the model is, `ExportRefused`.
    """
    path = Path(path)
    _check(detector, path, form, calibration)
    if form.size is not None:
        detector = _at_size(detector, form.size)
    margin = MARGINS[form.precision] if margin is None else margin
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}-", dir=path.parent) as folder:
        unproven = Path(folder) / path.name
        _write(detector, unproven, form, calibration)
        proof = prove(detector, unproven, pictures, margin, progress=progress)
        latency = None
        if form.shape is not None:
            free = Path(folder) / f"free{path.suffix}"
            _write(detector, free, dataclasses.replace(form, size=None, batch=1), calibration)
            latency = _latencies(detector, unproven, free, form.shape, pictures.read(0))
        parts = [unproven.with_suffix(".bin"), unproven] if form.format == "openvino" else [unproven]
        size = sum(part.stat().st_size for part in parts)
        for part in parts:
            part.replace(path.parent / part.name)
    return Exported(path, size, proof, margin, latency)


def _check(detector: Detector, path: Path, form: Form, calibration: Sequence[Image.Image]) -> None:
    """Raise `InputError` for whatever can be known before minutes are spent."""
    if isinstance(detector.model, ExportedModel):
        raise InputError(f"{detector.model.path}: is exported already; name the weights that it came from")
    if path.suffix.lower() != SUFFIXES[form.format]:
        raise InputError(f"{path}: the name of a file in the format {form.format} ends in {SUFFIXES[form.format]}")
    for taken in (path, path.with_suffix(".bin")) if form.format == "openvino" else (path,):
        if taken.exists():
            raise InputError(f"{taken}: exists already; choose another name, or remove it")
    if not path.parent.is_dir():
        raise InputError(f"{path.parent}: no such folder to write {path.name} to")
    require_exporter()
    if form.format == "openvino":
        require_openvino()
    if form.precision == "int8":
        require_quantiser()
        if not calibration:
            raise InputError("int8 takes its ranges from your own pictures: name a labelled data set with --data")


def _at_size(detector: Detector, size: int) -> Detector:
    preprocessing = dataclasses.replace(detector.preprocessing, longer=size, shorter=None)
    return Detector(
        detector.model, preprocessing, detector.label_map, detector.thresholds, detector.name, detector.tiling
    )


def _write(detector: Detector, path: Path, form: Form, calibration: Sequence[Image.Image]) -> None:
    """The file as it is wanted, unproven."""
    facts = {KEY: FileFacts.of(detector, form.precision, form.postprocess).to_text()}
    made = make_onnx(detector.model, form.shape, form.postprocess)
    batches = _calibration_batches(detector, form, calibration) if form.precision == "int8" else []
    if form.format == "onnx":
        if form.precision == "float16":
            made = in_half(made)
        elif form.precision == "int8":
            made = quantised_onnx(made, batches)
        _put_facts(made, facts)
        write_onnx(made, path)
        return
    converted = make_openvino(made)
    if form.precision == "int8":
        converted = quantised_openvino(converted, batches)
    write_openvino(converted, path, facts, half=form.precision == "float16")


def _put_facts(model: Any, facts: dict[str, str]) -> None:
    """Into an ONNX model's metadata, in place of what its writer put there."""
    import onnx

    del model.metadata_props[:]
    onnx.helper.set_model_props(model, facts)
    model.producer_name = KEY


def _calibration_batches(detector: Detector, form: Form, pictures: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """The pictures one by one as the file takes them, or as many times over as its batch is large.

    A detector that looks at tiles sees these mostly: of each picture it is a view, the whole or a tile, chosen evenly.
    """
    batches = []
    for number, picture in enumerate(pictures):
        if detector.tiling is not None:
            views = detector.tiling.views(*picture.size)
            picture = picture.crop(views[number * len(views) // len(pictures)])
        images = ImageBatch.from_images([detector.preprocessing(picture)])
        inputs = file_inputs(images if form.shape is None else fitted(images, form.shape)[0])
        names = [name for name in inputs if form.postprocess or name != "original_sizes"]
        batches.append({name: inputs[name] for name in names})
    return batches


def _latencies(detector: Detector, fixed: Path, free: Path, shape: Shape, picture: Image.Image) -> tuple[float, float]:
    """Median seconds of a batch of the picture in both files, taken in turns; the free one gets it unpadded."""
    images = ImageBatch.from_images([detector.preprocessing(picture)] * shape[0])
    engines = [load_exported(path).engine for path in (fixed, free)]
    seconds: tuple[list[float], list[float]] = [], []
    for round_ in range(ROUNDS + 2):
        for engine, taken in zip(engines, seconds, strict=True):
            assert engine is not None
            one = _seconds(engine, images)
            if round_ >= 2:  # the first two make plans
                taken.append(one)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _seconds(engine: Engine, images: ImageBatch) -> float:
    began = time.perf_counter()
    engine(images)
    return time.perf_counter() - began
