"""`optimize`: the same detector, answering faster."""

from __future__ import annotations

from detrove.errors import InputError, nearest
from detrove.export.engines import exported_engine
from detrove.inference import Detector
from detrove.inference.engines import Engine
from detrove.inference.engines.torch import TorchEngine
from detrove.inference.exported import ExportedModel

ENGINES = ("torch", "onnxruntime", "openvino")
PRECISIONS = ("float32", "bfloat16", "float16")


def optimize(detector: Detector, engine: str = "torch", precision: str = "float32", compiled: bool = False) -> Detector:
    """A detector that gives the same answers faster; the one handed in stays as it is.

    `engine` computes in the model's place: "torch" on the device of the model, or "onnxruntime" or "openvino" from an
    exported file, on the CPU. `precision` is what it computes in: "float32"; "bfloat16" where the engine and the
    machine have it; "float16" for torch on CUDA. `compiled` runs torch's engine through `torch.compile`: minutes for
    the first picture of a size, and it needs a compiler. An engine from a file is compared with the model first, and
    refused with the difference where they are apart.

    What the model learns afterwards, the engine does not know: optimise again. Saving, evaluating and drawing work as
    before; recording attention needs the detector as loaded.
    """
    if isinstance(detector.model, ExportedModel):
        raise InputError(f"{detector.model.path}: an exported file computes as it was exported; leave the engine out")
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}: {nearest(engine, ENGINES)}")
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: {nearest(precision, PRECISIONS)}")
    if compiled and engine != "torch":
        raise InputError(f"compiled is for the engine torch, not for {engine}: leave it out")
    if engine == "torch":
        made: Engine = TorchEngine(detector.model, precision, compiled)
    else:
        made = exported_engine(detector, engine, precision)
    return detector.with_engine(made)
