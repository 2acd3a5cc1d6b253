"""Hugging Face's names for the four detectors that its transformers library and detrove both have, as data.

The rules speak of the names that stand in files; `Layout.renamed` brings the names of the library's present modules
(transformers 5) back to them. Sources: `conversion_mapping.py` and `models/{detr,deformable_detr,conditional_detr,
dab_detr}/` of transformers 5.23, and the files that its `save_pretrained` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from detrove.checkpoints.conversion import Rule
from detrove.errors import InputError
from detrove.models import catalogue, conditional, dab, deformable, detr


@dataclass(frozen=True)
class Layout:
    """What Hugging Face calls a detector, its settings and its tensors.

    `rules` pair the keys in files with ours; `renamed` the keys of the library's modules with those in files;
    `second_names` the keys of tied tensors with the first name, either of which may be absent; `dropped` what has no
    counterpart here. `settings` is our config's field -> theirs; `theirs_fixed` the values of theirs that our detector
    cannot change, `ours_fixed` those of ours that theirs cannot.
    """

    model_type: str
    architecture: str
    image_processor: str
    config_type: type
    rules: Sequence[Rule]
    settings: Mapping[str, str]
    renamed: Sequence[Rule] = ()
    second_names: Sequence[Rule] = ()
    dropped: Sequence[str] = ()
    theirs_fixed: Mapping[str, Any] = field(default_factory=dict)
    ours_fixed: Mapping[str, Any] = field(default_factory=dict)

    def file_key(self, key: str) -> str:
        """The name in files of a tensor that the library's present modules, or its own trunk, call otherwise."""
        for rule in (*OWN_TRUNK, *self.renamed):
            key = rule.ours_of(key) or key
        return key

    def first_name(self, key: str) -> str | None:
        """The first name of a tied tensor, or None where `key` is no second name."""
        names = (rule.ours_of(key) for rule in self.second_names)
        return next((name for name in names if name is not None), None)


def _mlp(theirs: str, ours: str, num_layers: int) -> list[Rule]:
    """Linear layers, which we number together with the activations between them."""
    return [Rule(f"{theirs}.layers.{index}.{{p}}", f"{ours}.{2 * index}.{{p}}") for index in range(num_layers)]


def _attention(theirs: str, ours: str) -> list[Rule]:
    """Dense attention: three projections there, their joint matrix here."""
    joint = [Rule(f"{theirs}.{q}_proj.{{p}}", f"{ours}.in_proj_{{p}}", (part, 3)) for part, q in enumerate("qkv")]
    return [*joint, Rule(f"{theirs}.out_proj.{{p}}", f"{ours}.out_proj.{{p}}")]


def _projections(theirs: str, ours: str, names: Mapping[str, str]) -> list[Rule]:
    return [Rule(f"{theirs}{name}.{{p}}", f"{ours}.{names[name]}.{{p}}") for name in names]


ENCODER, DECODER = "model.encoder.layers.{i}", "model.decoder.layers.{i}"
TRUNK = Rule("model.backbone.conv_encoder.model.{rest...}", "backbone.body.{rest...}")
OWN_TRUNK = [
    Rule(f"{{start...}}.model.{theirs}.{{p}}", f"{{start...}}.model.{timm}.{{p}}")
    for theirs, timm in [
        ("embedder.embedder.convolution", "conv1"),
        ("embedder.embedder.normalization", "bn1"),
        *(
            (f"encoder.stages.{stage}.layers.{{block}}.{theirs}", f"layer{stage + 1}.{{block}}.{timm}")
            for stage in range(4)
            for theirs, timm in [
                ("shortcut.convolution", "downsample.0"),
                ("shortcut.normalization", "downsample.1"),
                *((f"layer.{index}.convolution", f"conv{index + 1}") for index in range(3)),
                *((f"layer.{index}.normalization", f"bn{index + 1}") for index in range(3)),
            ]
        ),
    ]
]
"""The library's own ResNet, in timm's names."""

ENCODER_LAYER = [
    Rule(f"{ENCODER}.self_attn_layer_norm.{{p}}", "encoder.{i}.self_attention_norm.{p}"),
    Rule(f"{ENCODER}.fc1.{{p}}", "encoder.{i}.feedforward.linear1.{p}"),
    Rule(f"{ENCODER}.fc2.{{p}}", "encoder.{i}.feedforward.linear2.{p}"),
    Rule(f"{ENCODER}.final_layer_norm.{{p}}", "encoder.{i}.feedforward_norm.{p}"),
]
DECODER_LAYER = [
    Rule(f"{DECODER}.self_attn_layer_norm.{{p}}", "decoder.{i}.self_attention_norm.{p}"),
    Rule(f"{DECODER}.encoder_attn_layer_norm.{{p}}", "decoder.{i}.cross_attention_norm.{p}"),
    Rule(f"{DECODER}.fc1.{{p}}", "decoder.{i}.feedforward.linear1.{p}"),
    Rule(f"{DECODER}.fc2.{{p}}", "decoder.{i}.feedforward.linear2.{p}"),
    Rule(f"{DECODER}.final_layer_norm.{{p}}", "decoder.{i}.feedforward_norm.{p}"),
]
ENDS = [
    TRUNK,
    Rule("model.input_projection.{p}", "input_projection.{p}"),
    Rule("model.query_position_embeddings.weight", "query_positions"),
    Rule("model.decoder.layernorm.{p}", "decoder_norm.{p}"),
    Rule("class_labels_classifier.{p}", "class_head.{p}"),
    *_mlp("bbox_predictor", "box_head", 3),
]
SAMPLING = {name: name for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")}
DETR_RULES = [
    *ENDS,
    *_attention(f"{ENCODER}.self_attn", "encoder.{i}.self_attention"),
    *ENCODER_LAYER,
    *_attention(f"{DECODER}.self_attn", "decoder.{i}.self_attention"),
    *_attention(f"{DECODER}.encoder_attn", "decoder.{i}.cross_attention"),
    *DECODER_LAYER,
]
DEFORMABLE_RULES = [
    TRUNK,
    Rule("model.input_proj.{rest...}", "levels.projections.{rest...}"),
    Rule("model.level_embed", "level_embedding"),
    Rule("model.query_position_embeddings.weight", "queries"),
    Rule("model.reference_points.{p}", "reference_points.{p}"),
    *_projections(f"{ENCODER}.self_attn.", "encoder.{i}.self_attention", SAMPLING),
    *ENCODER_LAYER,
    *_attention(f"{DECODER}.self_attn", "decoder.{i}.self_attention"),
    *_projections(f"{DECODER}.encoder_attn.", "decoder.{i}.cross_attention", SAMPLING),
    *DECODER_LAYER,
    Rule("model.enc_output.{p}", "proposals.token_projection.{p}"),
    Rule("model.enc_output_norm.{p}", "proposals.token_norm.{p}"),
    Rule("model.pos_trans.{p}", "proposals.query_projection.{p}"),
    Rule("model.pos_trans_norm.{p}", "proposals.query_norm.{p}"),
    Rule("class_embed.{i}.{p}", "class_heads.{i}.{p}"),
    *_mlp("bbox_embed.{i}", "box_heads.{i}", 3),
]
CONDITIONAL_SELF = {
    "sa_qcontent_proj": "query_content",
    "sa_qpos_proj": "query_position",
    "sa_kcontent_proj": "key_content",
    "sa_kpos_proj": "key_position",
    "sa_v_proj": "value",
    "self_attn.out_proj": "out_proj",
}
CONDITIONAL_CROSS = {
    "ca_qcontent_proj": "query_content",
    "ca_qpos_proj": "query_position",
    "ca_qpos_sine_proj": "query_sine",
    "ca_kcontent_proj": "key_content",
    "ca_kpos_proj": "key_position",
    "ca_v_proj": "value",
    "encoder_attn.out_proj": "out_proj",
}
CONDITIONAL_RULES = [
    *ENDS,
    *_attention(f"{ENCODER}.self_attn", "encoder.{i}.self_attention"),
    *ENCODER_LAYER,
    *_projections(f"{DECODER}.", "decoder.{i}.self_attention", CONDITIONAL_SELF),
    *_projections(f"{DECODER}.", "decoder.{i}.cross_attention", CONDITIONAL_CROSS),
    *DECODER_LAYER,
    *_mlp("model.decoder.ref_point_head", "reference_head", 2),
    *_mlp("model.decoder.query_scale", "position_scale", 2),
]
DAB_SELF = {
    "self_attn_query_content_proj": "query_content",
    "self_attn_query_pos_proj": "query_position",
    "self_attn_key_content_proj": "key_content",
    "self_attn_key_pos_proj": "key_position",
    "self_attn_value_proj": "value",
    "self_attn.output_proj": "out_proj",
}
DAB_CROSS = {
    "cross_attn_query_content_proj": "query_content",
    "cross_attn_query_pos_proj": "query_position",
    "cross_attn_query_pos_sine_proj": "query_sine",
    "cross_attn_key_content_proj": "key_content",
    "cross_attn_key_pos_proj": "key_position",
    "cross_attn_value_proj": "value",
    "cross_attn.output_proj": "out_proj",
}
DAB_RULES = [
    Rule("model.backbone.conv_encoder.model._backbone.{rest...}", "backbone.body.{rest...}"),
    Rule("model.input_projection.{p}", "input_projection.{p}"),
    Rule("model.query_refpoint_embeddings.weight", "anchors"),
    Rule("model.patterns.weight", "patterns"),
    *_mlp("model.encoder.query_scale", "encoder_position_scale", 2),
    *_attention(f"{ENCODER}.self_attn", "encoder.{i}.self_attention"),
    *ENCODER_LAYER,
    Rule(f"{ENCODER}.activation_fn.{{p}}", "encoder.{i}.feedforward.activation.{p}"),
    *_projections(f"{DECODER}.self_attn.", "decoder.{i}.self_attention", DAB_SELF),
    Rule(f"{DECODER}.self_attn.self_attn_layer_norm.{{p}}", "decoder.{i}.self_attention_norm.{p}"),
    *_projections(f"{DECODER}.cross_attn.", "decoder.{i}.cross_attention", DAB_CROSS),
    Rule(f"{DECODER}.cross_attn.cross_attn_layer_norm.{{p}}", "decoder.{i}.cross_attention_norm.{p}"),
    Rule(f"{DECODER}.mlp.fc1.{{p}}", "decoder.{i}.feedforward.linear1.{p}"),
    Rule(f"{DECODER}.mlp.fc2.{{p}}", "decoder.{i}.feedforward.linear2.{p}"),
    Rule(f"{DECODER}.mlp.activation_fn.{{p}}", "decoder.{i}.feedforward.activation.{p}"),
    Rule(f"{DECODER}.mlp.final_layer_norm.{{p}}", "decoder.{i}.feedforward_norm.{p}"),
    *_mlp("model.decoder.ref_point_head", "position_head", 2),
    *_mlp("model.decoder.query_scale", "position_scale", 2),
    *_mlp("model.decoder.ref_anchor_head", "size_head", 2),
    Rule("model.decoder.layernorm.{p}", "decoder_norm.{p}"),
    Rule("class_embed.{p}", "class_head.{p}"),
    *_mlp("bbox_predictor", "box_head", 3),
]

RENAMED = [
    Rule("model.backbone.model.{rest...}", "model.backbone.conv_encoder.model.{rest...}"),
    Rule("{start...}.o_proj.{p}", "{start...}.out_proj.{p}"),
    Rule("{start...}.mlp.fc1.{p}", "{start...}.fc1.{p}"),
    Rule("{start...}.mlp.fc2.{p}", "{start...}.fc2.{p}"),
]
CONDITIONAL_RENAMED = [
    Rule(f"{DECODER}.{attention}.{present}.{{p}}", f"{DECODER}.{in_files}.{{p}}")
    for attention, names in {
        "self_attn": {
            "q_content_proj": "sa_qcontent_proj",
            "q_pos_proj": "sa_qpos_proj",
            "k_content_proj": "sa_kcontent_proj",
            "k_pos_proj": "sa_kpos_proj",
            "v_proj": "sa_v_proj",
        },
        "encoder_attn": {
            "q_content_proj": "ca_qcontent_proj",
            "q_pos_proj": "ca_qpos_proj",
            "q_pos_sine_proj": "ca_qpos_sine_proj",
            "k_content_proj": "ca_kcontent_proj",
            "k_pos_proj": "ca_kpos_proj",
            "v_proj": "ca_v_proj",
        },
    }.items()
    for present, in_files in names.items()
]
DAB_RENAMED = [
    Rule(f"model.backbone.conv_encoder.model.{part}", f"model.backbone.conv_encoder.model._backbone.{part}")
    for part in ("conv1.{p}", "bn1.{p}", "layer{stage}.{rest...}")
]

SETTINGS = {
    "num_queries": "num_queries",
    "dilation": "dilation",
    "dim": "d_model",
    "num_heads": "encoder_attention_heads",
    "feedforward_dim": "encoder_ffn_dim",
    "num_encoder_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
    "dropout": "dropout",
}
SAME = {"decoder_attention_heads": "encoder_attention_heads", "decoder_ffn_dim": "encoder_ffn_dim"}
"""Their settings that we have once for encoder and decoder."""
FIXED = {"position_embedding_type": "sine", "activation_function": "relu"}
WHOLE = {
    "temperature_height": "temperature",
    "temperature_width": "temperature",
    "class_cost": "class_cost",
    "bbox_cost": "box_cost",
    "giou_cost": "giou_cost",
    "bbox_loss_coefficient": "box_weight",
    "giou_loss_coefficient": "giou_weight",
}
"""Their settings that must be whole numbers, with ours; written, but for the temperature not read."""

LAYOUTS = {
    "detr": Layout(
        "detr",
        "DetrForObjectDetection",
        "DetrImageProcessor",
        detr.Config,
        DETR_RULES,
        {**SETTINGS, "no_object_weight": "eos_coefficient"},
        renamed=[Rule("detr.{rest...}", "{rest...}"), *RENAMED],  # the panoptic files' detector stands under detr.
        dropped=("mask_head.{rest...}", "bbox_attention.{rest...}"),
        theirs_fixed=FIXED,
        ours_fixed={"norm_first": False, "temperature": 10000.0},
    ),
    "deformable": Layout(
        "deformable_detr",
        "DeformableDetrForObjectDetection",
        "DeformableDetrImageProcessor",
        deformable.Config,
        DEFORMABLE_RULES,
        {
            **{ours: theirs for ours, theirs in SETTINGS.items() if ours != "dilation"},
            "num_levels": "num_feature_levels",
            "num_points": "encoder_n_points",
            "refine": "with_box_refine",
            "two_stage": "two_stage",
        },
        renamed=RENAMED,
        second_names=[Rule("model.decoder.{head}_embed.{rest...}", "{head}_embed.{rest...}")],
        theirs_fixed={**FIXED, "dilation": False},
        ours_fixed={"temperature": 10000.0},
    ),
    "conditional": Layout(
        "conditional_detr",
        "ConditionalDetrForObjectDetection",
        "ConditionalDetrImageProcessor",
        conditional.Config,
        CONDITIONAL_RULES,
        SETTINGS,
        renamed=[*RENAMED, *CONDITIONAL_RENAMED],
        theirs_fixed=FIXED,
        ours_fixed={"temperature": 10000.0},
    ),
    "dab": Layout(
        "dab-detr",
        "DabDetrForObjectDetection",
        "ConditionalDetrImageProcessor",
        dab.Config,
        DAB_RULES,
        {
            **SETTINGS,
            "dim": "hidden_size",
            "num_coordinates": "query_dim",
            "num_patterns": "num_patterns",
            "random_xy": "random_refpoints_xy",
            "activation": "activation_function",
        },
        renamed=DAB_RENAMED,
        second_names=[Rule("model.decoder.bbox_embed.{rest...}", "bbox_predictor.{rest...}")],
        theirs_fixed={
            "query_dim": 4,
            "keep_query_pos": False,
            "normalize_before": False,
            "sine_position_embedding_scale": None,
        },
        ours_fixed={"num_coordinates": 4, "modulate": True, "anchor_temperature": 10000.0, "denoising": None},
    ),
}
"""By the name of our detector's file."""


def layout_of(config: Any) -> Layout:
    """The layout of a config's detector; an `InputError` says where Hugging Face has none."""
    for layout in LAYOUTS.values():
        if type(config) is layout.config_type:
            return layout
    raise InputError(
        f"Hugging Face has no {catalogue.config_to_json(config)['detector']}: only {', '.join(LAYOUTS)} can be exported"
    )


def their_settings(config: Any) -> dict[str, Any]:
    """What their config class calls the settings of a detector; an `InputError` names what it cannot express."""
    layout = layout_of(config)
    for name, value in layout.ours_fixed.items():
        if getattr(config, name) != value:
            raise InputError(f"{name} is {getattr(config, name)}: Hugging Face's {layout.model_type} has only {value}")
    if not config.backbone.startswith("resnet"):
        raise InputError(
            f"backbone {config.backbone}: Hugging Face replaces BatchNorm and loses the activations that this trunk "
            "keeps in it; only ResNets can be exported"
        )
    if getattr(config, "num_levels", 3) < 3:
        raise InputError(
            f"num_levels is {config.num_levels}: Hugging Face takes other levels where there are fewer than 3"
        )
    settings = {theirs: getattr(config, ours) for ours, theirs in layout.settings.items()}
    settings |= {second: settings[first] for second, first in SAME.items()}
    for theirs, ours in WHOLE.items():
        if not (theirs.startswith("temperature") and layout.model_type != "dab-detr"):
            settings[theirs] = _whole(theirs, getattr(config, ours))
    if isinstance(config, deformable.Config):
        settings |= {
            "decoder_n_points": config.num_points,
            "two_stage_num_proposals": config.num_queries,
            "with_box_refine": config.refine or config.two_stage,
            "tie_word_embeddings": not (config.refine or config.two_stage),
        }
    return settings


def _whole(name: str, value: float) -> int:
    if value != int(value):
        raise InputError(f"{name} is {value}: Hugging Face takes whole numbers only")
    return int(value)
