"""`load`: whatever holds a trained detector, as a `Detector`."""

from __future__ import annotations

from pathlib import Path

from detrove.checkpoints import read
from detrove.checkpoints.hugging_face import CONFIG
from detrove.errors import InputError
from detrove.inference.detector import Detector
from detrove.inference.exported import is_exported, load_exported

BEST_WEIGHTS = "best.safetensors"


def load(path: str | Path, model: str | None = None) -> Detector:
    """A detector from a run folder (its best.safetensors), an exported file, or whatever `checkpoints.read` takes.

    That last is a .safetensors file that detrove saved, an official checkpoint (a file, or its published name), and a
    folder or `owner/name` in Hugging Face's layout. `model` is a catalogue name that stands in for the stored config,
    and that decides where the shapes of foreign weights fit several; weights of another model are refused, with both
    sides listed. The detector is on the CPU, in evaluation mode. An exported file (.onnx, OpenVINO's .xml) is computed
    by the engine of its kind and answers alone: it cannot be trained, saved, or asked for its attention.
    """
    path = Path(path)
    if is_exported(path):
        if model is not None:
            raise InputError(f"{path}: an exported file tells by itself what it is; leave out the model {model!r}")
        return load_exported(path)
    checkpoint = read(weights_file(path), model)
    return Detector(
        checkpoint.build(),
        checkpoint.preprocessing,
        checkpoint.label_map,
        checkpoint.thresholds,
        name=checkpoint.preset or "",
        tiling=checkpoint.tiling,
    )


def weights_file(path: Path) -> Path:
    """What to read: the path itself, or the best weights of a run folder."""
    if path.is_dir() and not (path / CONFIG).is_file():
        best = path / BEST_WEIGHTS
        if not best.is_file():
            raise InputError(f"{path}: no {BEST_WEIGHTS} in this folder, so it is no finished run; name a weights file")
        return best
    if is_exported(path):
        raise InputError(f"{path}: an exported file holds no weights to go on with; name those that it came from")
    return path
