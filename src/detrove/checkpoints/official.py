"""The official codes' checkpoints: their key tables, as data, and a state dict of theirs as a checkpoint of ours.

Sources (the modules' `state_dict`, at the repositories' last commit): facebookresearch/detr,
fundamentalvision/Deformable-DETR, Atten4Vis/ConditionalDETR, IDEA-Research/DAB-DETR (DAB-DETR and
DAB-Deformable-DETR), IDEA-Research/DN-DETR (both with denoising), IDEA-Research/DINO, shengwenyuan/sdetr (Stacked
DETR). Their trunks are torchvision's ResNets, whose names timm shares.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detrove.checkpoints.coco_labels import labels_of_head
from detrove.checkpoints.conversion import Rule, Translation, to_ours, to_theirs
from detrove.checkpoints.native import Checkpoint
from detrove.checkpoints.recognition import facts_of, preset_for
from detrove.checkpoints.weights import load_weights, shorten
from detrove.errors import InputError
from detrove.models import catalogue

NUM_KEYS_SHOWN = 4


@dataclass(frozen=True)
class Layout:
    """One detector's key table.

    `second_names` are keys under which the official module holds a tensor again, by the setting of our config that
    makes it do so ("" for always): passed over when reading, written when exporting.
    """

    detector: str
    rules: tuple[Rule, ...]
    second_names: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)


def _mlp(theirs: str, ours: str, num_layers: int) -> list[Rule]:
    """Their MLP counts linear layers; ours counts the ReLUs between them too."""
    return [Rule(f"{theirs}.layers.{i}.{{p}}", f"{ours}.{2 * i}.{{p}}") for i in range(num_layers)]


def _layers(theirs: str, ours: str, parts: Mapping[str, str]) -> list[Rule]:
    """The parts of every layer of a stack."""
    return [
        Rule(f"{theirs}.layers.{{i}}.{their_part}.{{rest...}}", f"{ours}.{{i}}.{our_part}.{{rest...}}")
        for their_part, our_part in parts.items()
    ]


_FEEDFORWARD = {"linear1": "feedforward.linear1", "linear2": "feedforward.linear2"}
_ENCODER_LAYER = {
    **_FEEDFORWARD,
    "self_attn": "self_attention",
    "norm1": "self_attention_norm",
    "norm2": "feedforward_norm",
}
_DECODER_LAYER = {
    **_FEEDFORWARD,
    "self_attn": "self_attention",
    "multihead_attn": "cross_attention",
    "norm1": "self_attention_norm",
    "norm2": "cross_attention_norm",
    "norm3": "feedforward_norm",
}
_DEFORMABLE_DECODER_LAYER = {
    **_FEEDFORWARD,
    "self_attn": "self_attention",
    "cross_attn": "cross_attention",
    "norm1": "cross_attention_norm",  # numbered by age in their code, not by order
    "norm2": "self_attention_norm",
    "norm3": "feedforward_norm",
}
_CONDITIONAL_DECODER_LAYER = {
    **_FEEDFORWARD,
    "sa_qcontent_proj": "self_attention.query_content",
    "sa_qpos_proj": "self_attention.query_position",
    "sa_kcontent_proj": "self_attention.key_content",
    "sa_kpos_proj": "self_attention.key_position",
    "sa_v_proj": "self_attention.value",
    "self_attn.out_proj": "self_attention.out_proj",
    "ca_qcontent_proj": "cross_attention.query_content",
    "ca_qpos_proj": "cross_attention.query_position",
    "ca_qpos_sine_proj": "cross_attention.query_sine",
    "ca_kcontent_proj": "cross_attention.key_content",
    "ca_kpos_proj": "cross_attention.key_position",
    "ca_v_proj": "cross_attention.value",
    "cross_attn.out_proj": "cross_attention.out_proj",
    "norm1": "self_attention_norm",
    "norm2": "cross_attention_norm",
    "norm3": "feedforward_norm",
}
_PRELU = {"activation": "feedforward.activation"}

_TRUNK = [Rule("backbone.0.body.{rest...}", "backbone.body.{rest...}")]
_ENCODER = _layers("transformer.encoder", "encoder", _ENCODER_LAYER)
_DECODER_NORM = [Rule("transformer.decoder.norm.{p}", "decoder_norm.{p}")]
_ONE_LEVEL = [Rule("input_proj.{p}", "input_projection.{p}")]
_LEVELS = [
    Rule("input_proj.{i}.{j}.{p}", "levels.projections.{i}.{j}.{p}"),
    Rule("transformer.level_embed", "level_embedding"),
]
_HEADS = [Rule("class_embed.{p}", "class_head.{p}"), *_mlp("bbox_embed", "box_head", 3)]
_HEADS_OF_LAYERS = [Rule("class_embed.{i}.{p}", "class_heads.{i}.{p}"), *_mlp("bbox_embed.{i}", "box_heads.{i}", 3)]
_BOX_HEADS_AGAIN = tuple(_mlp("transformer.decoder.bbox_embed.{i}", "box_heads.{i}", 3))
_CLASS_HEADS_AGAIN = (Rule("transformer.decoder.class_embed.{i}.{p}", "class_heads.{i}.{p}"),)
_NOISED_CLASSES = Rule("label_enc.weight", "denoising.class_embedding.weight")
_POSITION_SCALE = _mlp("transformer.decoder.query_scale", "position_scale", 2)


def _stack(index: int) -> list[Rule]:
    """Stacked DETR counts its transformers from 1."""
    theirs, ours = f"mytransformer{index + 1}", f"stacks.{index}"
    return [
        Rule(f"input_proj{index + 1}.{{p}}", f"{ours}.input_projection.{{p}}"),
        Rule(f"query_embed{index + 1}.weight", f"{ours}.query_positions"),
        *_layers(f"{theirs}.encoder", f"{ours}.encoder", _ENCODER_LAYER),
        *_layers(f"{theirs}.decoder", f"{ours}.decoder", _DECODER_LAYER),
        Rule(f"{theirs}.decoder.norm.{{p}}", f"{ours}.decoder_norm.{{p}}"),
    ]


LAYOUTS: dict[str, Layout] = {
    layout.detector: layout
    for layout in (
        Layout(
            "detr",
            (
                *(_TRUNK + _ONE_LEVEL + _ENCODER),
                Rule("transformer.encoder.norm.{p}", "encoder_norm.{p}"),  # with pre-norm only
                *_layers("transformer.decoder", "decoder", _DECODER_LAYER),
                Rule("query_embed.weight", "query_positions"),
                *(_DECODER_NORM + _HEADS),
            ),
        ),
        Layout(
            "deformable",
            (
                *(_TRUNK + _LEVELS + _ENCODER),
                *_layers("transformer.decoder", "decoder", _DEFORMABLE_DECODER_LAYER),
                Rule("query_embed.weight", "queries"),
                Rule("transformer.reference_points.{p}", "reference_points.{p}"),
                Rule("transformer.enc_output.{p}", "proposals.token_projection.{p}"),
                Rule("transformer.enc_output_norm.{p}", "proposals.token_norm.{p}"),
                Rule("transformer.pos_trans.{p}", "proposals.query_projection.{p}"),
                Rule("transformer.pos_trans_norm.{p}", "proposals.query_norm.{p}"),
                *_HEADS_OF_LAYERS,
            ),
            {
                "refine": _BOX_HEADS_AGAIN,
                "two_stage": _CLASS_HEADS_AGAIN,
            },
        ),
        Layout(
            "conditional",
            (
                *(_TRUNK + _ONE_LEVEL + _ENCODER),
                *_layers("transformer.decoder", "decoder", _CONDITIONAL_DECODER_LAYER),
                Rule("query_embed.weight", "query_positions"),
                *_mlp("transformer.decoder.ref_point_head", "reference_head", 2),
                *(_POSITION_SCALE + _DECODER_NORM + _HEADS),
            ),
        ),
        Layout(
            "dab",
            (
                *(_TRUNK + _ONE_LEVEL + _ENCODER),
                *_layers("transformer.encoder", "encoder", _PRELU),
                *_mlp("transformer.encoder.query_scale", "encoder_position_scale", 2),
                *_layers("transformer.decoder", "decoder", {**_CONDITIONAL_DECODER_LAYER, **_PRELU}),
                Rule("refpoint_embed.weight", "anchors"),
                Rule("transformer.patterns.weight", "patterns"),
                *_mlp("transformer.decoder.ref_point_head", "position_head", 2),
                *_mlp("transformer.decoder.ref_anchor_head", "size_head", 2),
                _NOISED_CLASSES,  # in DN-DETR only
                *(_POSITION_SCALE + _DECODER_NORM + _HEADS),
            ),
            {"": tuple(_mlp("transformer.decoder.bbox_embed", "box_head", 3))},
        ),
        Layout(
            "dab_deformable",
            (
                *(_TRUNK + _LEVELS + _ENCODER),
                *_layers("transformer.decoder", "decoder", _DEFORMABLE_DECODER_LAYER),
                Rule("refpoint_embed.weight", "anchors"),
                Rule("tgt_embed.weight", "contents"),
                Rule("patterns_embed.weight", "patterns"),
                _NOISED_CLASSES,  # in DN-Deformable-DETR only
                *_mlp("transformer.decoder.ref_point_head", "position_head", 2),
                *(_POSITION_SCALE + _HEADS_OF_LAYERS),
            ),
            {"": _BOX_HEADS_AGAIN},
        ),
        Layout(
            "dino",
            (
                *(_TRUNK + _LEVELS + _ENCODER),
                Rule("transformer.enc_output.{p}", "selection.token_projection.{p}"),
                Rule("transformer.enc_output_norm.{p}", "selection.token_norm.{p}"),
                Rule("transformer.enc_out_class_embed.{p}", "selection.class_head.{p}"),
                *_mlp("transformer.enc_out_bbox_embed", "selection.box_head", 3),
                Rule("transformer.tgt_embed.weight", "contents"),
                _NOISED_CLASSES,
                *_layers("transformer.decoder", "decoder", _DEFORMABLE_DECODER_LAYER),
                *_mlp("transformer.decoder.ref_point_head", "position_head", 2),
                *(_DECODER_NORM + _HEADS_OF_LAYERS),
            ),
            {"": (*_BOX_HEADS_AGAIN, *_CLASS_HEADS_AGAIN)},
        ),
        Layout(
            "stacked",
            (
                *_TRUNK,
                *(rule for index in range(2) for rule in _stack(index)),
                Rule("class_embed.{p}", "class_heads.0.{p}"),
                *_mlp("bbox_embed", "box_heads.0", 3),
            ),
        ),
    )
}
"""The key tables by detector."""

SECOND_NAMES = "second names of the heads"
DROPPED: dict[str, tuple[str, ...]] = {
    "counters of BatchNorm": ("backbone.0.body.{rest...}.num_batches_tracked",),
    "mask head": ("bbox_attention.{rest...}", "mask_head.{rest...}"),
}
"""Keys of official files that no detector of ours has a use for, by kind: a fixed BatchNorm counts nothing, and the
panoptic files' segmentation stands beside the detector."""

PANOPTIC_PREFIX = "detr."
"""DETR's segmentation model holds the detector under this name."""

_FACEBOOK = "https://dl.fbaipublicfiles.com/detr/"
_CONDITIONAL = "https://github.com/DeppMeng/ConditionalDETR/releases/download/v1.0/"


@dataclass(frozen=True)
class PublishedFile:
    """Where a file of weights can be had by its name, and the preset that it belongs to."""

    url: str
    preset: str


PUBLISHED: dict[str, PublishedFile] = {
    name: PublishedFile(folder + name, preset)
    for folder, name, preset in (
        (_FACEBOOK, "detr-r50-e632da11.pth", "detr-r50"),
        (_FACEBOOK, "detr-r50-dc5-f0fb7ef5.pth", "detr-r50-dc5"),
        (_FACEBOOK, "detr-r101-2c7b67e5.pth", "detr-r101"),
        (_FACEBOOK, "detr-r101-dc5-a2e86def.pth", "detr-r101-dc5"),
        (_FACEBOOK, "detr-r50-panoptic-00ce5173.pth", "detr-r50"),
        (_FACEBOOK, "detr-r50-dc5-panoptic-da08f1b1.pth", "detr-r50-dc5"),
        (_FACEBOOK, "detr-r101-panoptic-40021d53.pth", "detr-r101"),
        (_CONDITIONAL, "ConditionalDETR_r50_epoch50.pth", "conditional-r50"),
        (_CONDITIONAL, "ConditionalDETR_r50dc5_epoch50.pth", "conditional-r50-dc5"),
        (_CONDITIONAL, "ConditionalDETR_r101_epoch50.pth", "conditional-r101"),
        (_CONDITIONAL, "ConditionalDETR_r101dc5_epoch50.pth", "conditional-r101-dc5"),
    )
}
"""The files that have a fixed address, by name (both repositories' README.md and hubconf.py). The others stand on cloud
drives and are named at will: Deformable DETR (Google Drive), DAB-DETR (Google Drive, Tsinghua Cloud), DN-DETR and
DINO (Google Drive, Baidu), Stacked DETR (Baidu)."""


@dataclass(frozen=True)
class ImportReport:
    """What became of a foreign file's keys: their `layout`, how many of our tensors were filled, and what was left out.

    `dropped` holds the official keys without a counterpart, by kind. An import with anything missing or unexpected
    fails, so those need no field.
    """

    layout: str
    matched: tuple[str, ...]
    dropped: dict[str, tuple[str, ...]]


_ARGUMENTS = {"nheads": "num_heads", "dilation": "dilation"}
"""Settings of the official trainings that shapes do not tell and the config needs, by their names and ours."""

_HINTS = {"random_refpoints_xy": "random_xy"}
"""The same for settings that only tell how a training began."""


def import_tensors(tensors: Mapping[str, Tensor], source: str, model: str | None = None) -> Checkpoint:
    """An official state dict as a checkpoint of ours: names, config, preprocessing, labels, preset.

    The detector is the one whose table knows every key; its config comes from the shapes and from a preset: `model`
    where given, else the only one that fits, where a published file name in `source` helps to choose. `source` names
    the weights in errors. Raises `InputError` for keys of no detector, shapes of no preset, and several candidates.
    """
    return import_with_report(tensors, source, model)[0]


def import_with_report(
    tensors: Mapping[str, Tensor],
    source: str,
    model: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> tuple[Checkpoint, ImportReport]:
    """`import_tensors`, and what became of every key.

    `arguments` are the settings of the official training where its file keeps them: they tell what shapes do not.
    """
    tensors = _without_prefix(tensors)
    layout, translation = _recognise(tensors, source)
    facts = _facts(layout, translation, source, arguments or {})
    hints = _hints(layout.detector, source, arguments or {})
    preset, config = preset_for(layout.detector, facts, source, model, hints)
    with torch.device("meta"):  # names and shapes alone
        network = catalogue.build(config)
    matched = load_weights(network, translation.tensors, source=f"{source} as {preset}").matched
    checkpoint = Checkpoint(
        tensors=translation.tensors,
        config=catalogue.config_to_json(config),
        label_map=labels_of_head(config.num_classes),
        preprocessing=catalogue.preset(preset).preprocessing,
        thresholds=None,
        preset=preset,
        training={"converted_from": Path(source).name},
        detrove_version=version("detrove"),
        source=Path(source),
    )
    return checkpoint, ImportReport(layout.detector, matched, _by_kind(layout, translation.dropped))


def export_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """A checkpoint's tensors under the official names, second names included: what the official model loads strictly.

    Raises `InputError` where the detector has no official code (`detrove`), or has parts that the code lacks.
    """
    detector = checkpoint.config["detector"]
    if detector not in LAYOUTS:
        raise InputError(f"{checkpoint.source}: {detector} has no official layout; choose from {', '.join(LAYOUTS)}")
    layout = LAYOUTS[detector]
    settings = {**checkpoint.config, "": True}
    if settings.get("two_stage"):
        settings["refine"] = True  # a two-stage detector always refines
    again = [rule for setting, rules in layout.second_names.items() if settings[setting] for rule in rules]
    tensors = {key: value for key, value in checkpoint.tensors.items() if not key.endswith(".num_batches_tracked")}
    translation = to_theirs(tensors, [*layout.rules, *again])
    if translation.unknown:
        unknown = shorten(translation.unknown, NUM_KEYS_SHOWN)
        raise InputError(f"{checkpoint.source}: the official {detector} has no counterpart of {unknown}")
    return translation.tensors


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(PANOPTIC_PREFIX): tensor for key, tensor in tensors.items()}


def _recognise(tensors: Mapping[str, Tensor], source: str) -> tuple[Layout, Translation]:
    """The layout whose table knows every key."""
    tried = [(layout, to_ours(tensors, layout.rules, _left_out(layout))) for layout in LAYOUTS.values()]
    layout, translation = min(tried, key=lambda each: len(each[1].unknown))
    if not tensors or len(translation.unknown) > len(tensors) / 2:
        raise InputError(
            f"{source}: holds no detector of the family: its {len(tensors)} keys "
            f"({shorten(list(tensors), NUM_KEYS_SHOWN)}) are in no "
            f"official layout of {', '.join(LAYOUTS)}"
        )
    if translation.unknown:
        raise InputError(
            f"{source}: looks like {layout.detector}, but {len(translation.unknown)} of its {len(tensors)} keys are "
            f"unknown there ({shorten(translation.unknown, NUM_KEYS_SHOWN)}); "
            "it is a variant that detrove does not have"
        )
    return layout, translation


def _facts(layout: Layout, translation: Translation, source: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What names, shapes and the training's settings tell."""
    try:
        facts = facts_of(layout.detector, translation.tensors)
    except KeyError as error:
        raise InputError(
            f"{source}: only a part of a detector: it lacks {error.args[0]}, by the names of detrove; take the whole "
            f"state dict of {layout.detector}"
        ) from None
    if layout.detector == "deformable" and SECOND_NAMES in _by_kind(layout, translation.dropped):
        facts["refine"] = True  # heads stand in the decoder where it uses them, equal or not
    settings = {each.name for each in fields(catalogue.DETECTORS[layout.detector].Config)}
    told = {ours: arguments[theirs] for theirs, ours in _ARGUMENTS.items() if theirs in arguments}
    # dilation is told even to a detector that has no such setting: its presets then disagree
    return facts | {key: value for key, value in told.items() if key in settings or value is True}


def _hints(detector: str, source: str, arguments: Mapping[str, Any]) -> list[str]:
    """The presets that a published file's name, or the training's settings, point at among several."""
    name = Path(source).name
    if name in PUBLISHED:
        return [PUBLISHED[name].preset]
    told = {ours: arguments[theirs] for theirs, ours in _HINTS.items() if theirs in arguments}
    presets = catalogue.DETECTORS[detector].PRESETS
    return [
        name
        for name, preset in presets.items()
        if told and all(getattr(preset.config, key, value) == value for key, value in told.items())
    ]


def _left_out(layout: Layout) -> list[str]:
    return [template for templates in _kinds(layout).values() for template in templates]


def _kinds(layout: Layout) -> dict[str, tuple[str, ...]]:
    """All templates that are passed over in a layout, by kind."""
    again = tuple(rule.theirs for rules in layout.second_names.values() for rule in rules)
    return {SECOND_NAMES: again, **DROPPED} if again else DROPPED


def _by_kind(layout: Layout, dropped: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The keys left out, by the kind whose template speaks of them; kinds without any are absent."""
    left = list(dropped)
    found: dict[str, tuple[str, ...]] = {}
    for kind, templates in _kinds(layout).items():
        rules = [Rule(template, template) for template in templates]
        keys = tuple(key for key in left if any(rule.ours_of(key) for rule in rules))
        if keys:
            found[kind] = keys
    return found
