"""The one entry to weights of any origin: what is it, who reads it, and where does it come from by name."""

from __future__ import annotations

import dataclasses
import re
from http.client import HTTPException
from pathlib import Path

import torch

from detrove.checkpoints import hugging_face, native, official
from detrove.checkpoints.native import Checkpoint
from detrove.checkpoints.official import PUBLISHED, ImportReport
from detrove.checkpoints.pickles import read_pickle
from detrove.checkpoints.weights import load_weights
from detrove.errors import InputError, nearest
from detrove.models import catalogue

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILE_SUFFIXES = native.PICKLE_SUFFIXES | {".safetensors"}

ON_DRIVES = {
    "deformable": "Google Drive, linked in the README of github.com/fundamentalvision/Deformable-DETR",
    "dab": "Google Drive and Tsinghua Cloud, linked in the README of github.com/IDEA-Research/DAB-DETR",
    "dab_deformable": "Google Drive and Tsinghua Cloud, linked in the README of github.com/IDEA-Research/DAB-DETR",
    "stacked": "Baidu Pan, linked in the README of github.com/shengwenyuan/sdetr",
}
"""Where the official weights stand that have no address of their own, by detector."""


def read(source: str | Path, model: str | None = None) -> Checkpoint:
    """Weights of any origin as a checkpoint of ours, on the CPU.

    `source` is a .safetensors file that detrove saved; a file of an official code (.pth, .pt, .bin, or its state dict
    as .safetensors); a folder in Hugging Face's layout; the name of an official file with a fixed address
    (`official.PUBLISHED`), which is downloaded once; or `owner/name` on the Hugging Face hub. `model` is a catalogue
    name: it stands in for a stored config, and it decides where the shapes of foreign weights fit several. Nothing is
    ever unpickled but tensors. Raises `InputError` with one line for whatever cannot be read.
    """
    return read_with_report(source, model)[0]


def read_with_report(source: str | Path, model: str | None = None) -> tuple[Checkpoint, ImportReport]:
    """`read`, and what became of the keys of the file."""
    path = Path(source)
    if not path.exists():
        path = fetch(path)
    if path.is_dir():
        return _read_folder(path, model)
    if native.is_pickled(path):
        weights = read_pickle(path)
        return official.import_with_report(weights.tensors, str(path), model, weights.arguments)
    tensors, metadata = native.read_safetensors(path)
    if not native.is_own(metadata):
        return official.import_with_report(tensors, str(path), model)
    return _own(native.from_file(path, tensors, metadata), model)


def fetch(source: Path) -> Path:
    """What a name that is no file stands for: a file or a folder on this machine, downloaded at the first use."""
    name = source.as_posix()
    if name in PUBLISHED:
        return _download(name)
    if HUB_NAME.fullmatch(name) and source.suffix.lower() not in FILE_SUFFIXES and not source.parent.exists():
        try:
            return hugging_face.download(name)
        except InputError as error:
            reason = str(error).removeprefix(f"{name}: ")
            raise InputError(f"{name}: no such file or folder here; on the Hugging Face hub: {reason}") from None
    raise InputError(_no_such(name))


def _download(name: str) -> Path:
    """An official file in torch.hub's cache, with its name's hash checked."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    url = PUBLISHED[name].url
    # the published names end in the first digits of the content's SHA-256, as torch.hub expects
    digits = re.search(r"-([0-9a-f]{8})\.", name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digits[1] if digits else None)
    except (OSError, RuntimeError, HTTPException) as error:
        raise InputError(
            f"{name}: no such file here, and it cannot be downloaded from {url} ({error}); download it where there is "
            "a network and name the file"
        ) from None
    return path


def _no_such(name: str) -> str:
    """The line for a name that stands for nothing, with the remedy that is nearest."""
    if name in catalogue.PRESETS:
        files = [file for file, published in PUBLISHED.items() if published.preset == name]
        detector = catalogue.config_to_json(catalogue.preset(name).config)["detector"]
        if files:
            remedy = f"its official weights are {files[0]}"
        elif detector in ON_DRIVES:
            remedy = f"its official weights stand on {ON_DRIVES[detector]}: download them and name the file"
        else:
            remedy = "train it first, or name a file"
        return f"{name}: no such checkpoint, but a model of the catalogue; {remedy}"
    hint = nearest(name, PUBLISHED) if name.endswith(".pth") else ""
    return f"{name}: no such checkpoint{f'; {hint}' if hint.startswith('did you mean') else ''}"


def _read_folder(path: Path, model: str | None) -> tuple[Checkpoint, ImportReport]:
    if not (path / hugging_face.CONFIG).is_file():
        raise InputError(f"{path}: no {hugging_face.CONFIG} in this folder, so it is no model in Hugging Face's layout")
    checkpoint, report = hugging_face.import_with_report(path)
    if model is not None:
        checkpoint = _as_model(checkpoint, model)
    return checkpoint, report


def _own(checkpoint: Checkpoint, model: str | None) -> tuple[Checkpoint, ImportReport]:
    if model is not None:
        checkpoint = _as_model(checkpoint, model)
    return checkpoint, ImportReport("detrove", tuple(checkpoint.tensors), {})


def _as_model(checkpoint: Checkpoint, model: str) -> Checkpoint:
    """The checkpoint with a preset's config instead of its own; `InputError` where its tensors do not fit that."""
    own = {key: checkpoint.config[key] for key in ("backbone_frozen",) if key in checkpoint.config}
    config = dataclasses.replace(catalogue.preset(model).config, num_classes=len(checkpoint.label_map), **own)
    with torch.device("meta"):  # names and shapes alone
        network = catalogue.build(config)
    load_weights(network, checkpoint.tensors, source=f"{checkpoint.source} as {model}")
    return dataclasses.replace(checkpoint, config=catalogue.config_to_json(config), preset=model)
