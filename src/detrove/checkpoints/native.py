"""detrove's own checkpoint: one safetensors file that tells by itself how to predict with it.

The tensors are the model's `state_dict`. The file's metadata holds one JSON string per key:

| key | value |
|---|---|
| `format`, `format_version` | `"detrove"` and a whole number; a reader refuses a newer number |
| `detrove_version` | the version that wrote the file |
| `preset` | the catalogue name that the model was made from, or null |
| `config` | the model's whole config (`catalogue.config_to_json`), so a preset can improve without breaking old files |
| `labels` | `LabelMap.to_json()` |
| `preprocessing` | `Preprocessing.to_json()` |
| `thresholds` | one score threshold per class slot, or null |
| `tiling` | `Tiling.to_json()` where it was trained on tiles, else null; files of before tiling lack it |
| `training` | facts about the training, for people |
| `shared` | second name -> first name of tensors that the model holds under several names |

The safetensors format refuses tensors that share memory, as tied prediction heads do. Each such tensor is stored once,
under its first name, and `shared` brings the other names back when reading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from detrove.checkpoints.files import write_atomically
from detrove.checkpoints.weights import load_weights
from detrove.errors import InputError
from detrove.models import catalogue
from detrove.structures import LabelMap, Preprocessing
from detrove.tiling import Tiling

FORMAT = "detrove"
FORMAT_VERSION = 2
REMADE = {"detrove": 2}
"""Detectors whose weights of before that version of the format mean something else than they did."""
PICKLE_SUFFIXES = frozenset({".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle"})
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class DetectorLike(Protocol):
    """What `save` needs of a detector; `inference.Detector` is one."""

    model: nn.Module
    preprocessing: Preprocessing
    label_map: LabelMap
    thresholds: Tensor | None
    name: str
    tiling: Tiling | None


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, read but not yet built.

    `tensors` by the model's names, on the CPU; `config` as `catalogue.config_to_json` wrote it; `thresholds` (C,) or
    None; `preset` the catalogue name or None; `training` free facts; `detrove_version` that wrote it; `source` the
    file; `tiling` how large pictures are looked at, where not as a whole.
    """

    tensors: dict[str, Tensor] = field(repr=False)
    config: dict[str, Any]
    label_map: LabelMap
    preprocessing: Preprocessing
    thresholds: Tensor | None
    preset: str | None
    training: dict[str, Any]
    detrove_version: str
    source: Path
    tiling: Tiling | None = None

    def build(self) -> nn.Module:
        """The model with these weights, in evaluation mode, on the CPU."""
        model = catalogue.build(catalogue.config_from_json(self.config))
        load_weights(model, self.tensors, source=str(self.source))
        return model.eval()


def save(
    detector: DetectorLike | Checkpoint | nn.Module, path: str | Path, training: Mapping[str, Any] | None = None
) -> Path:
    """Write a detector to one self-describing file, beside and then renamed, so that a crash keeps the last good one.

    A bare model is saved with its preset's preprocessing, classes named "0", "1", … and no thresholds; a checkpoint,
    read from anywhere, with all it knows. `training` are facts worth keeping, anything JSON can hold. Raises
    `InputError` where the path is no .safetensors or the disk is full.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: a checkpoint's name must end in .safetensors")
    model, preset, preprocessing, label_map, thresholds = _parts(detector)
    if isinstance(detector, Checkpoint):
        training = {**detector.training, **(training or {})}
    tiling = None if isinstance(detector, nn.Module) else detector.tiling
    tensors, shared = _store_once(model)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "detrove_version": version("detrove"),
        "preset": preset,
        "config": catalogue.config_to_json(model.config),
        "labels": label_map.to_json(),
        "preprocessing": preprocessing.to_json(),
        "thresholds": None if thresholds is None else thresholds.tolist(),
        "tiling": None if tiling is None else tiling.to_json(),
        "training": dict(training or {}),
        "shared": shared,
    }
    content = safetensors.torch.save(tensors, {key: json.dumps(value) for key, value in metadata.items()})
    write_atomically(path, content)
    return path


def _parts(
    detector: DetectorLike | Checkpoint | nn.Module,
) -> tuple[nn.Module, str | None, Preprocessing, LabelMap, Tensor | None]:
    """Model, catalogue name, preprocessing, labels and thresholds of whatever can be saved."""
    if isinstance(detector, nn.Module):
        preset = preset_name_of(detector)
        preprocessing = catalogue.preset(preset).preprocessing if preset else Preprocessing()
        config: Any = detector.config
        return detector, preset, preprocessing, LabelMap.numbered(config.num_classes), None
    if isinstance(detector, Checkpoint):  # built, so that a file is only ever written that loads
        model, preset = detector.build(), detector.preset
    else:
        model, preset = detector.model, detector.name or None
    return model, preset, detector.preprocessing, detector.label_map, detector.thresholds


def read(path: str | Path) -> Checkpoint:
    """Read a file that `save` wrote.

    Raises `InputError` with one line where the file is missing, pickled, truncated, not detrove's, or of a newer
    format.
    """
    path = Path(path)
    if is_pickled(path):
        raise InputError(
            f"{path}: a pickled file, not one of detrove's own; detrove.load and detrove convert read its weights "
            "without running anything"
        )
    return from_file(path, *read_safetensors(path))


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of any safetensors file; one that is cut off or something else: `InputError`."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); it may be cut off, so copy or download it again"
        ) from None


def is_own(metadata: Mapping[str, str]) -> bool:
    """Whether a safetensors file with this metadata was written by `save`."""
    return metadata.get("format") == json.dumps(FORMAT)


def from_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Checkpoint:
    """What `read_safetensors` found in a file, as a checkpoint."""
    values = _metadata(path, metadata)
    thresholds, tiling = values["thresholds"], values.get("tiling")
    return Checkpoint(
        tensors={**tensors, **{second: tensors[first] for second, first in values["shared"].items()}},
        config=values["config"],
        label_map=LabelMap.from_json(values["labels"]),
        preprocessing=Preprocessing.from_json(values["preprocessing"]),
        thresholds=None if thresholds is None else torch.tensor(thresholds),
        preset=values["preset"],
        training=values["training"],
        detrove_version=values["detrove_version"],
        source=path,
        tiling=None if tiling is None else Tiling.from_json(tiling),
    )


def preset_name_of(model: nn.Module) -> str | None:
    """The first catalogue name whose config is the model's, but for what `catalogue.create` sets, or None."""
    wanted = _lasting(model.config)
    return next((name for name in catalogue.preset_names() if _lasting(catalogue.preset(name).config) == wanted), None)


def _lasting(config: Any) -> dict[str, Any]:
    """The config without what depends on the data set and on the trunk's weights."""
    values = catalogue.config_to_json(config)
    return {key: value for key, value in values.items() if key not in ("num_classes", "backbone_frozen")}


def _store_once(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of the model once, under its first name, and second name -> first name for the others.

    Parameters that are parts of one larger storage are copied apart: they are not the same tensor.
    """
    first_name: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in first_name:
            shared[name] = first_name[id(value)]
            continue
        first_name[id(value)] = name
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    return tensors, shared


def is_pickled(path: Path) -> bool:
    """Whether a file's name or first bytes are those of a pickle. Raises `InputError` where it cannot be read."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a checkpoint file")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    # The first 8 bytes of a safetensors file are its header's length, any number; then the header's JSON opens.
    return path.suffix.lower() in PICKLE_SUFFIXES or (start.startswith(PICKLE_STARTS) and start[8:] not in (b"", b"{"))


def _metadata(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata, decoded and checked."""
    if not is_own(metadata):
        raise InputError(
            f"{path}: a safetensors file, but not one that detrove saved (it names no model and no classes); "
            "put its tensors into detrove.create(...) with detrove.checkpoints.load_weights and call detrove.save"
        )
    try:
        values = {key: json.loads(value) for key, value in metadata.items()}
        format_version = values["format_version"]
    except (KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: its metadata is damaged ({error}); save or download it again") from None
    if format_version > FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {format_version} is newer than this detrove reads ({FORMAT_VERSION}); "
            "update it: pip install --upgrade detrove"
        )
    needed = ("config", "labels", "preprocessing", "thresholds", "preset", "training", "shared", "detrove_version")
    absent = [key for key in needed if key not in values]
    if absent:
        raise InputError(f"{path}: its metadata lacks {', '.join(absent)}; save or download it again")
    detector = values["config"].get("detector")
    if format_version < REMADE.get(detector, 0):
        raise InputError(
            f"{path}: of an earlier version, in which the boxes of {values['preset'] or detector} were reckoned "
            "otherwise: train it again (export files of then go on working)"
        )
    return values
