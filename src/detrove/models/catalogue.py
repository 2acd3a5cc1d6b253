"""Every detector by name: presets, building, and configs as plain JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from detrove.errors import InputError, nearest
from detrove.losses import Criterion
from detrove.models import conditional, dab, dab_deformable, deformable, detr, detrove, dino, stacked
from detrove.models.denoising import Denoising
from detrove.models.preset import Preset
from detrove.nn.backbone import PRETRAINED, Backbone, download_body, load_body

DETECTORS: dict[str, ModuleType] = {
    "detrove": detrove,
    "detr": detr,
    "deformable": deformable,
    "conditional": conditional,
    "dab": dab,
    "dab_deformable": dab_deformable,
    "dino": dino,
    "stacked": stacked,
}
"""The family by the name of its file, in the order in which a table shows it."""

PRESETS: dict[str, Preset] = {name: preset for file in DETECTORS.values() for name, preset in file.PRESETS.items()}


def preset_names() -> list[str]:
    """All names of the catalogue."""
    return list(PRESETS)


def preset(name: str) -> Preset:
    """The preset of that name; an unknown one offers the nearest."""
    if name not in PRESETS:
        raise InputError(f"unknown model {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]


def create(
    name: str, num_classes: int | None = None, backbone_weights: str | Path | None = None, **overrides: Any
) -> nn.Module:
    """A detector of the catalogue, ready to train; random unless weights are named, and then no network is asked.

    `num_classes` defaults to the preset's. `backbone_weights` is a safetensors file in timm's names, "pretrained" for
    timm's own download (offline: a notice, and random weights), or None. A trunk with weights is frozen as published
    (stem, first stage, every BatchNorm); a random one learns whole. Further keywords replace fields of the preset's
    config.
    """
    config = preset(name).config
    known = {field.name for field in dataclasses.fields(config)}
    for key in overrides:
        if key not in known:
            raise InputError(f"{name} has no setting {key!r}: {nearest(key, sorted(known))}")
    if num_classes is not None:
        overrides["num_classes"] = num_classes
    config = dataclasses.replace(config, **_with_denoising(overrides, name))
    tensors, file = None, None
    if backbone_weights == PRETRAINED:
        tensors = download_body(config.backbone, getattr(config, "dilation", False))
    else:
        file = backbone_weights
    if "backbone_frozen" not in overrides:
        config = dataclasses.replace(config, backbone_frozen=tensors is not None or file is not None)
    model = build(config)
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    if tensors is not None:
        load_body(backbone.body, tensors, f"downloaded weights do not fit {config.backbone}")
    elif file is not None:
        backbone.load(file)
    return model


def build(config: Any) -> nn.Module:
    """The detector of a config, with random weights; it keeps the config as `.config`."""
    model = file_of(config).build(config)
    model.config = config
    return model


def criterion_for(model: nn.Module) -> Criterion:
    """The losses that a detector of the catalogue is trained with."""
    return file_of(model.config).criterion(model.config)


def file_of(config: Any) -> ModuleType:
    """The file of the family whose `Config` this is."""
    for file in DETECTORS.values():
        if type(config) is file.Config:
            return file
    raise TypeError(f"{type(config).__name__} is no detector's config")


def config_to_json(config: Any) -> dict[str, Any]:
    """Plain values, with the detector's name under "detector"."""
    name = next(name for name, file in DETECTORS.items() if file is file_of(config))
    return {"detector": name, **dataclasses.asdict(config)}


def config_from_json(values: Mapping[str, Any]) -> Any:
    """The inverse of `config_to_json`; a detector or a setting that this version does not know is an `InputError`."""
    values = dict(values)
    name = values.pop("detector", None)
    if name not in DETECTORS:
        raise InputError(f"unknown detector {name!r} in the stored config: {nearest(str(name), DETECTORS)}")
    config_type = DETECTORS[name].Config
    unknown = set(values) - {field.name for field in dataclasses.fields(config_type)}
    if unknown:
        raise InputError(
            f"the stored config of {name} has settings unknown to this version: {', '.join(sorted(unknown))}; "
            "update detrove"
        )
    lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return config_type(**_with_denoising({**values, **lists}, name))


def _with_denoising(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Settings of a config with those of its `denoising`, plain values in a file, as one."""
    denoising = values.get("denoising")
    if not isinstance(denoising, Mapping):
        return dict(values)
    known = {field.name for field in dataclasses.fields(Denoising)}
    for key in denoising:
        if key not in known:
            raise InputError(f"{name} has no setting {f'denoising.{key}'!r}: {nearest(key, sorted(known))}")
    return {**values, "denoising": Denoising(**denoising)}
