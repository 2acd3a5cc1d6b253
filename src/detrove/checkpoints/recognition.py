"""Which config a set of weights belongs to: what their shapes tell, and the catalogue's presets for the rest.

Shapes tell classes, queries, widths, layers and the trunk. They do not tell head counts, dilation, temperatures or loss
weights: those come from the one preset that agrees with all the shapes, or from the one that the caller names.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from detrove.errors import InputError
from detrove.models import catalogue

OF_THE_DATA = frozenset({"num_classes", "num_queries"})
"""Settings in which weights may differ from their preset: the user's own classes, and how many queries they need."""

TRUNKS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
"""ResNets by their blocks and how many of them each stage has (He et al. 2016, table 1)."""


def facts_of(detector: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The settings of a detector's config that its tensors, by our names, tell for sure.

    `detector` is a name of `catalogue.DETECTORS`. Raises KeyError where a tensor that every such detector has is
    absent.
    """
    facts = _stacked(tensors) if detector == "stacked" else _single(tensors)
    head = "class_head.weight" if "class_head.weight" in tensors else "class_heads.0.weight"
    softmax = catalogue.DETECTORS[detector].Config().scores == "softmax"
    facts["num_classes"] = len(tensors[head]) - softmax  # there the last slot is "no object"
    trunk = _trunk(tensors)
    if trunk:
        facts["backbone"] = trunk
    if detector == "detr":
        facts["norm_first"] = "encoder_norm.weight" in tensors
    elif detector == "deformable":
        strides = _strides(_channels_of_levels(tensors), tensors)
        if strides is not None:
            facts["strides"] = strides
        facts["two_stage"] = "proposals.token_projection.weight" in tensors
        facts["refine"] = facts["two_stage"] or not _heads_are_one(tensors)
    elif detector == "dino":
        strides = _strides(_channels_of_levels(tensors), tensors)
        if strides is not None:
            facts["strides"] = strides
        if not _heads_are_one(tensors):
            facts["heads_apart"] = True  # a setting of the official code that no published file has, so none of ours
    elif detector == "dab":
        facts["num_coordinates"] = tensors["anchors"].shape[1]
        facts["modulate"] = "size_head.0.weight" in tensors
    if detector in ("dab", "dab_deformable"):
        facts["num_patterns"] = len(tensors["patterns"]) if "patterns" in tensors else 0
        facts["denoising"] = "denoising.class_embedding.weight" in tensors
    return facts


def preset_for(
    detector: str,
    facts: Mapping[str, Any],
    source: str,
    model: str | None = None,
    hints: Iterable[str] = (),
) -> tuple[str, Any]:
    """The catalogue name that weights belong to and their config: the preset's, with the classes and queries they have.

    Without `model` it is the only preset that agrees with the facts, or among several the one in `hints` (names that
    the file's own name or settings point at). Raises `InputError` where none or several are left, and where `model`
    disagrees; `source` names the weights in it.
    """
    if model is not None:
        _refuse_disagreement(detector, facts, source, model)
        return model, _config(model, facts)
    presets = _presets_of(detector)
    fitting = [name for name in presets if not _disagreements(name, facts)]
    if not fitting:
        raise InputError(_no_preset(detector, facts, source, presets))
    if len(fitting) > 1:
        fitting = [name for name in fitting if name in set(hints)] or fitting
    if len(fitting) > 1:
        raise InputError(
            f"{source}: the shapes of its weights fit {', '.join(fitting)}; say which: --model {fitting[0]}, or "
            f"model={fitting[0]!r} in Python"
        )
    return fitting[0], _config(fitting[0], facts)


def _single(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What one encoder and one decoder tell; `queries` are whatever holds one row for each."""
    facts: dict[str, Any] = {
        "feedforward_dim": len(tensors["decoder.0.feedforward.linear1.weight"]),
        "num_encoder_layers": _count("encoder", tensors),
        "num_decoder_layers": _count("decoder", tensors),
        "dim": len(tensors["decoder.0.feedforward_norm.weight"]),
    }
    if "level_embedding" in tensors:
        facts["num_levels"] = len(tensors["level_embedding"])
    for key in ("query_positions", "queries", "anchors", "contents"):
        if key in tensors:
            facts["num_queries"] = len(tensors[key])
    return facts


def _stacked(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stacks = range(_count("stacks", tensors))
    facts: dict[str, Any] = {
        "num_queries": len(tensors["stacks.0.query_positions"]),
        "dim": tensors["stacks.0.query_positions"].shape[1],
        "feedforward_dim": len(tensors["stacks.0.decoder.0.feedforward.linear1.weight"]),
        "num_encoder_layers": tuple(_count(f"stacks.{stack}.encoder", tensors) for stack in stacks),
        "num_decoder_layers": tuple(_count(f"stacks.{stack}.decoder", tensors) for stack in stacks),
        "share_heads": _count("class_heads", tensors) == 1,
    }
    strides = _strides([tensors[f"stacks.{stack}.input_projection.weight"].shape[1] for stack in stacks], tensors)
    return facts if strides is None else {**facts, "strides": strides}


def _channels_of_levels(tensors: Mapping[str, Tensor]) -> list[int]:
    """Channels of the trunk's maps that become levels as they are; coarser levels are made by 3×3 convolutions."""
    weights = [
        tensors[f"levels.projections.{index}.0.weight"] for index in range(_count("levels.projections", tensors))
    ]
    return [weight.shape[1] for weight in weights if weight.shape[-1] == 1]


def _strides(channels: list[int], tensors: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """The strides of a ResNet's maps with these channels; None for other trunks."""
    trunk = _trunk(tensors)
    if trunk is None:
        return None
    first = 64 if trunk in ("resnet18", "resnet34") else 256
    of_channels = {first * 2**stage: 4 * 2**stage for stage in range(4)}
    return tuple(of_channels.get(each, 0) for each in channels)


def _trunk(tensors: Mapping[str, Tensor]) -> str | None:
    """A ResNet by its blocks, or None for anything else."""
    blocks = tuple(_count(f"backbone.body.layer{stage}", tensors) for stage in (1, 2, 3, 4))
    kind = "bottleneck" if "backbone.body.layer1.0.conv3.weight" in tensors else "basic"
    return TRUNKS.get((kind, blocks))


def _count(prefix: str, tensors: Iterable[str]) -> int:
    """How many numbered parts stand under a prefix."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
    return len({match[1] for key in tensors if (match := pattern.match(key))})


def _heads_are_one(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the heads of all layers are equal: the plain Deformable DETR stores its only one under every name."""
    pattern = re.compile(r"(class_heads|box_heads)\.\d+\.(.+)")
    for key, tensor in tensors.items():
        match = pattern.fullmatch(key)
        if match and not torch.equal(tensor, tensors[f"{match[1]}.0.{match[2]}"]):
            return False
    return True


def _presets_of(detector: str) -> list[str]:
    """The published presets of a detector: the nano ones have a trunk of timm's, which no official file has."""
    return [name for name in catalogue.DETECTORS[detector].PRESETS if not name.endswith("-nano")]


def _disagreements(name: str, facts: Mapping[str, Any]) -> list[str]:
    """Every setting in which a preset and the weights differ, as a phrase; one that its config lacks is off."""
    config = catalogue.preset(name).config
    settings = {key: getattr(config, key, False) for key in facts if key not in OF_THE_DATA}
    if "denoising" in settings:
        settings["denoising"] = bool(settings["denoising"])  # how much noise there was, weights do not tell
    return [
        f"{key} is {facts[key]} in the weights and {value} in {name}"
        for key, value in settings.items()
        if value != facts[key]
    ]


def _config(name: str, facts: Mapping[str, Any]) -> Any:
    config = catalogue.preset(name).config
    return dataclasses.replace(config, **{key: value for key, value in facts.items() if key in OF_THE_DATA})


def _refuse_disagreement(detector: str, facts: Mapping[str, Any], source: str, model: str) -> None:
    wanted = catalogue.config_to_json(catalogue.preset(model).config)["detector"]
    if wanted != detector:
        raise InputError(
            f"{source}: holds the weights of detector {detector!r}, but {model} is {wanted!r}; "
            f"name one of {', '.join(_presets_of(detector))}, or leave the model out"
        )
    differences = _disagreements(model, facts)
    if differences:
        raise InputError(
            f"{source}: belongs to another model than {model}: {'; '.join(differences)}; "
            "name the model that these weights were trained as"
        )


def _no_preset(detector: str, facts: Mapping[str, Any], source: str, presets: list[str]) -> str:
    nearest = min(presets, key=lambda name: len(_disagreements(name, facts)))
    return (
        f"{source}: weights of detector {detector!r} as no model of the catalogue has them; the nearest is {nearest}, "
        f"but {'; '.join(_disagreements(nearest, facts))}; build it with detrove.create({nearest!r}, ...) and fill it "
        "with detrove.checkpoints.load_weights"
    )
