"""`load`: whatever holds a trained detector, as a `Detector`."""

from __future__ import annotations

from pathlib import Path

from detrove.checkpoints import load_weights, read
from detrove.checkpoints.native import Checkpoint
from detrove.errors import InputError
from detrove.inference.detector import Detector
from detrove.models import catalogue

BEST_WEIGHTS = "best.safetensors"


def load(path: str | Path, model: str | None = None) -> Detector:
    """A detector from a run folder (its best.safetensors) or from a .safetensors file that detrove saved.

    `model` is a catalogue name that stands in for the stored config; weights of another model are then refused, with
    both sides' keys listed. The detector is on the CPU, in evaluation mode.
    """
    checkpoint = read(_weights_file(Path(path)))
    network = checkpoint.build() if model is None else _build_as(checkpoint, model)
    return Detector(
        network,
        checkpoint.preprocessing,
        checkpoint.label_map,
        checkpoint.thresholds,
        name=model or checkpoint.preset or "",
    )


def _build_as(checkpoint: Checkpoint, model: str):
    network = catalogue.create(model, num_classes=len(checkpoint.label_map))
    load_weights(network, checkpoint.tensors, source=f"{checkpoint.source} as {model}")
    return network.eval()


def _weights_file(path: Path) -> Path:
    """The file to read: itself, or the best weights of a run folder."""
    if path.is_dir():
        best = path / BEST_WEIGHTS
        if not best.is_file():
            raise InputError(f"{path}: no {BEST_WEIGHTS} in this folder, so it is no finished run; name a weights file")
        return best
    if path.suffix.lower() in (".onnx", ".xml"):
        raise InputError(f"{path}: exported files are not read in this version; load the run folder or .safetensors")
    return path
