"""Hugging Face's detectors beside ours, with the same weights: the key table between the two layouts, and the pair."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detrove.models import catalogue, deformable, detr
from detrove.structures import ImageBatch, Predictions, Proposals, Targets

TOY = {
    "num_classes": 5,
    "num_queries": 9,
    "backbone": "resnet18",
    "dim": 64,
    "num_heads": 4,
    "feedforward_dim": 96,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "dropout": 0.0,
}
FORMS = {
    "detr": replace(detr.Config(), **TOY),
    "detr-dc5": replace(detr.Config(), **TOY, dilation=True),
    "deformable": replace(deformable.Config(), **TOY),
    "deformable-refine": replace(deformable.Config(), **TOY, refine=True),
    "deformable-two-stage": replace(deformable.Config(), **TOY, refine=True, two_stage=True),
}


@dataclass(frozen=True)
class Rule:
    """Hugging Face's keys that match `theirs` are our `ours`, or one third (`part` 0, 1, 2) of its rows."""

    theirs: str
    ours: str
    part: int | None = None


LAYERS = [
    Rule(r"model\.backbone\.model\.(.+)", r"backbone.body.\1"),
    *(
        Rule(
            rf"model\.(encoder|decoder)\.layers\.(\d+)\.self_attn\.{name}_proj\.(.+)",
            r"\1.\2.self_attention.in_proj_\3",
            part,
        )
        for part, name in enumerate("qkv")
    ),
    Rule(r"model\.(encoder|decoder)\.layers\.(\d+)\.self_attn\.o_proj\.(.+)", r"\1.\2.self_attention.out_proj.\3"),
    Rule(r"model\.(encoder|decoder)\.layers\.(\d+)\.self_attn_layer_norm\.(.+)", r"\1.\2.self_attention_norm.\3"),
    Rule(r"model\.decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.(.+)", r"decoder.\1.cross_attention_norm.\2"),
    Rule(r"model\.(encoder|decoder)\.layers\.(\d+)\.mlp\.fc([12])\.(.+)", r"\1.\2.feedforward.linear\3.\4"),
    Rule(r"model\.(encoder|decoder)\.layers\.(\d+)\.final_layer_norm\.(.+)", r"\1.\2.feedforward_norm.\3"),
]
DETR = [
    *LAYERS,
    *(
        Rule(
            rf"model\.decoder\.layers\.(\d+)\.encoder_attn\.{name}_proj\.(.+)",
            r"decoder.\1.cross_attention.in_proj_\2",
            part,
        )
        for part, name in enumerate("qkv")
    ),
    Rule(r"model\.decoder\.layers\.(\d+)\.encoder_attn\.o_proj\.(.+)", r"decoder.\1.cross_attention.out_proj.\2"),
    Rule(r"model\.query_position_embeddings\.weight", r"query_positions"),
    Rule(r"model\.input_projection\.(.+)", r"input_projection.\1"),
    Rule(r"model\.decoder\.layernorm\.(.+)", r"decoder_norm.\1"),
    Rule(r"class_labels_classifier\.(.+)", r"class_head.\1"),
    *(Rule(rf"bbox_predictor\.layers\.{index}\.(.+)", rf"box_head.{2 * index}.\1") for index in range(3)),
]
SAMPLING = "(sampling_offsets|attention_weights|value_proj|output_proj)"
DEFORMABLE = [
    *LAYERS,
    Rule(rf"model\.encoder\.layers\.(\d+)\.self_attn\.{SAMPLING}\.(.+)", r"encoder.\1.self_attention.\2.\3"),
    Rule(rf"model\.decoder\.layers\.(\d+)\.encoder_attn\.{SAMPLING}\.(.+)", r"decoder.\1.cross_attention.\2.\3"),
    Rule(r"model\.input_proj\.(.+)", r"levels.projections.\1"),
    Rule(r"model\.level_embed", r"level_embedding"),
    Rule(r"model\.query_position_embeddings\.weight", r"queries"),
    Rule(r"model\.reference_points\.(.+)", r"reference_points.\1"),
    Rule(r"model\.enc_output\.(.+)", r"proposals.token_projection.\1"),
    Rule(r"model\.enc_output_norm\.(.+)", r"proposals.token_norm.\1"),
    Rule(r"model\.pos_trans\.(.+)", r"proposals.query_projection.\1"),
    Rule(r"model\.pos_trans_norm\.(.+)", r"proposals.query_norm.\1"),
    Rule(r"class_embed\.(\d+)\.(.+)", r"class_heads.\1.\2"),
    *(Rule(rf"bbox_embed\.(\d+)\.layers\.{index}\.(.+)", rf"box_heads.\1.{2 * index}.\2") for index in range(3)),
]
DROPPED = re.compile(r"model\.decoder\.(class|bbox)_embed\.")
"""Keys without a counterpart: the decoder's second name for the heads."""


def correspondence(theirs: nn.Module, ours: nn.Module, rules: list[Rule]) -> list[tuple[str, str, int | None]]:
    """(their key, our key, part) for every tensor; anything left over on either side fails, and so does a double."""
    pairs, unknown = [], []
    for key in theirs.state_dict():
        if DROPPED.match(key):
            continue
        matching = [(rule, match) for rule in rules if (match := re.fullmatch(rule.theirs, key))]
        if len(matching) == 1:
            rule, match = matching[0]
            pairs.append((key, match.expand(rule.ours), rule.part))
        else:
            unknown.append(key)
    assert not unknown, f"no single rule for {unknown}"
    wanted = []
    for key in ours.state_dict():
        wanted += [(key, part) for part in range(3)] if "in_proj_" in key else [(key, None)]
    assert sorted((key, str(part)) for _, key, part in pairs) == sorted((key, str(part)) for key, part in wanted)
    return pairs


def part_of(tensor: Tensor, part: int | None) -> Tensor:
    """The whole tensor, or the third of its rows that holds the queries', keys' or values' projection."""
    return tensor if part is None else tensor.chunk(3)[part]


@torch.no_grad()
def disturb(model: nn.Module, seed: int = 0) -> None:
    """Random values in every tensor of the model, frozen statistics included: nothing compares as trivially 0."""
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
        if tensor.dim() > 1:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        elif key.endswith("running_var"):
            tensor.copy_(1 + 0.5 * noise.abs())
        else:
            tensor.add_(0.2 * noise)


def hugging_face(config: Any) -> nn.Module:
    """Hugging Face's detector of our config, its heads untied as in the official code, every tensor disturbed."""
    import transformers

    options = {
        "use_timm_backbone": True,
        "backbone": config.backbone,
        "use_pretrained_backbone": False,
        "num_labels": config.num_classes,
        "num_queries": config.num_queries,
        "d_model": config.dim,
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_decoder_layers,
        "encoder_ffn_dim": config.feedforward_dim,
        "decoder_ffn_dim": config.feedforward_dim,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "dropout": config.dropout,
        "class_cost": int(config.class_cost),
    }
    if isinstance(config, detr.Config):
        options |= {"dilation": config.dilation}
        model = transformers.DetrForObjectDetection(transformers.DetrConfig(**options))
    else:
        options |= {
            "auxiliary_loss": True,
            "two_stage": config.two_stage,
            "two_stage_num_proposals": config.num_queries,
            "with_box_refine": config.refine,
        }
        model = transformers.DeformableDetrForObjectDetection(transformers.DeformableDetrConfig(**options))
        if config.refine:
            untie_heads(model, config.two_stage)
    disturb(model)
    if getattr(config, "two_stage", False):
        keep_padding_unchosen(model)
    return model


def untie_heads(model: nn.Module, two_stage: bool) -> None:
    """One head for every layer, known to the decoder too: Hugging Face ties them, the official code does not."""
    model.class_embed = nn.ModuleList(copy.deepcopy(head) for head in model.class_embed)
    model.bbox_embed = nn.ModuleList(copy.deepcopy(head) for head in model.bbox_embed)
    model.model.decoder.bbox_embed = model.bbox_embed
    if two_stage:
        model.model.decoder.class_embed = model.class_embed


@torch.no_grad()
def keep_padding_unchosen(model: nn.Module) -> None:
    """Cells that do not count all look alike: let them score low, or they may be all that is chosen as queries."""
    alike = model.model.enc_output_norm(model.model.enc_output.bias)
    scores = model.class_embed[-1].weight[0]
    scores -= alike * (scores @ alike + 3) / (alike @ alike)


@dataclass
class Pair:
    """Their model and ours with equal weights, and the correspondence of their tensors."""

    config: Any
    theirs: nn.Module
    ours: nn.Module
    table: list[tuple[str, str, int | None]]

    def their_predictions(self, images: ImageBatch) -> Predictions:
        """Their predictions of all layers in our structure."""
        inputs = {"pixel_values": images.pixels, "pixel_mask": (~images.padding_mask).long()}
        if isinstance(self.config, detr.Config):
            predictions, output = self._their_detr(inputs)
        else:
            predictions, output = self._their_deformable(inputs)
        torch.testing.assert_close(predictions.logits[-1], output.logits)
        torch.testing.assert_close(predictions.boxes[-1], output.pred_boxes)
        return predictions

    def _their_detr(self, inputs: dict[str, Tensor]) -> tuple[Predictions, Any]:
        # Their auxiliary_loss feeds a layer's normed output to the next one, which the official code does not: so the
        # intermediate layers are taken by a hook, and normed for the heads only.
        decoder, states = self.theirs.model.decoder, []
        hooks = [layer.register_forward_hook(lambda *call: states.append(call[-1])) for layer in decoder.layers]
        output = self.theirs(**inputs)
        for hook in hooks:
            hook.remove()
        content = decoder.layernorm(torch.stack(states))
        boxes = self.theirs.bbox_predictor(content).sigmoid()
        return Predictions(self.theirs.class_labels_classifier(content), boxes), output

    def _their_deformable(self, inputs: dict[str, Tensor]) -> tuple[Predictions, Any]:
        # they hand out the intermediate layers only beside a loss
        object_ = {"class_labels": torch.zeros(1, dtype=torch.int64), "boxes": torch.full((1, 4), 0.5)}
        output = self.theirs(**inputs, labels=[object_] * len(inputs["pixel_values"]))
        layers = [*output.auxiliary_outputs, {"logits": output.logits, "pred_boxes": output.pred_boxes}]
        logits = torch.stack([layer["logits"] for layer in layers])
        boxes = torch.stack([layer["pred_boxes"] for layer in layers])
        proposals = None
        if self.config.two_stage:
            proposals = Proposals(output.enc_outputs_class, output.enc_outputs_coord_logits.sigmoid())
        return Predictions(logits, boxes, proposals), output


def make_pair(config: Any) -> Pair:
    """Their detector and ours of that config, ours filled from theirs through the table."""
    theirs, ours = hugging_face(config), catalogue.build(config)
    table = correspondence(theirs, ours, DETR if isinstance(config, detr.Config) else DEFORMABLE)
    given, tensors = theirs.state_dict(), ours.state_dict()
    for their_key, our_key, part in table:
        part_of(tensors[our_key], part).copy_(given[their_key])
    return Pair(config, theirs, ours, table)


@pytest.fixture(scope="session")
def pair_of() -> Callable[[Any], Pair]:
    """Makes a pair of any config."""
    return make_pair


@pytest.fixture(params=FORMS)
def config(request: pytest.FixtureRequest) -> Any:
    """The toy config of every form that both sides have."""
    return FORMS[request.param]


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Everything that the test makes is float64."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def batch() -> tuple[ImageBatch, list[Targets]]:
    """Three pictures of different sizes, the second without objects; in torch's default type."""
    generator = torch.Generator().manual_seed(3)
    images = [torch.randn(3, *size, generator=generator) for size in [(96, 128), (70, 90), (128, 101)]]
    targets = []
    for count in (4, 0, 2):
        centre = 0.2 + 0.6 * torch.rand(count, 2, generator=generator)
        size = 0.05 + 0.3 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(TOY["num_classes"], (count,), generator=generator)
        targets.append(Targets(labels, torch.cat((centre, size), dim=1)))
    return ImageBatch.from_images(images), targets
