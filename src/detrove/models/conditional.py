"""Conditional DETR: Conditional DETR for Fast Training Convergence (Meng et al. 2021, arXiv:2108.06152).

Official code: Atten4Vis/ConditionalDETR.

Differs from DETR in:
- each query has a reference point, read from its position and the same in every layer; boxes are offsets from it;
- content and position are kept apart: projected apart in self-attention, concatenated in cross-attention, where the
  query's position is the sine encoding of its reference, scaled by what its content has found so far;
- sigmoid scores and focal loss: no "no object" class, the best class-query pairs win; 300 queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrove.losses import Criterion, MatchCost
from detrove.models.preset import Preset, Recipe
from detrove.nn.attention import MultiHeadAttention
from detrove.nn.backbone import Backbone
from detrove.nn.conditional_attention import (
    ConditionalCrossAttention,
    ConditionalDecoderLayer,
    ConditionalSelfAttention,
)
from detrove.nn.heads import reference_box_head, sigmoid_class_head
from detrove.nn.positions import sine_encoding, sine_of_anchors
from detrove.nn.recording import record_anchors
from detrove.nn.references import move
from detrove.nn.transformer import MLP, EncoderLayer, xavier_uniform_matrices
from detrove.structures import ImageBatch, Predictions, Preprocessing, Targets


@dataclass(frozen=True)
class Config:
    """Conditional DETR's sizes and loss weights; the defaults are the published R50."""

    num_classes: int = 91
    num_queries: int = 300
    backbone: str = "resnet50"
    backbone_frozen: bool = True
    dilation: bool = False
    dim: int = 256
    num_heads: int = 8
    feedforward_dim: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float = 0.1
    temperature: float = 10000.0
    scores: str = "sigmoid"
    num_detections: int = 100
    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0


class ConditionalDETR(nn.Module):
    """Trunk, encoder, decoder, heads. Layers L, queries Q, tokens T, embedding D."""

    def __init__(
        self,
        backbone: Backbone,
        encoder: Sequence[EncoderLayer],
        decoder: Sequence[ConditionalDecoderLayer],
        dim: int,
        num_queries: int,
        num_classes: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_projection = nn.Conv2d(backbone.channels[-1], dim, kernel_size=1)
        self.encoder = nn.ModuleList(encoder)
        self.query_positions = nn.Parameter(torch.randn(num_queries, dim))
        self.reference_head = MLP(dim, dim, 2, num_layers=2)
        self.position_scale = MLP(dim, dim, dim, num_layers=2)
        self.decoder = nn.ModuleList(decoder)
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_head = sigmoid_class_head(dim, num_classes)
        self.box_head = reference_box_head(dim)
        self.temperature = temperature
        for part in (self.encoder, self.reference_head, self.position_scale, self.decoder):
            xavier_uniform_matrices(part)

    def forward(self, images: ImageBatch, targets: Sequence[Targets] | None = None) -> Predictions:  # noqa: ARG002
        """A batch of pictures to classes and boxes of every decoder layer; `targets` are not used."""
        # picture -> one coarse map -> tokens with their positions and padding
        level = self.backbone(images)[-1]
        tokens = self.input_projection(level.features).flatten(2).transpose(1, 2)
        dim = tokens.shape[-1]
        position = sine_encoding(level.padding_mask, dim, self.temperature, dtype=tokens.dtype).flatten(1, 2)
        padding_mask = level.padding_mask.flatten(1)

        # every cell looks at every cell
        for layer in self.encoder:
            tokens = layer(tokens, position, padding_mask=padding_mask)
        memory = tokens

        # queries look at each other, and at the memory around their reference; their content starts from nothing
        query_position = self.query_positions.expand(images.pixels.shape[0], -1, -1)
        reference = self.reference_head(query_position).sigmoid()  # (B, Q, 2): x, y
        sine = sine_of_anchors(reference, dim // 2)
        content = torch.zeros_like(query_position)
        outputs: list[Tensor] = []
        for index, layer in enumerate(self.decoder):
            where = sine * self.position_scale(content) if index else sine
            record_anchors(layer, reference, where)
            content = layer(content, query_position, where, memory, memory_position=position, padding_mask=padding_mask)
            outputs.append(self.decoder_norm(content))
        output = torch.stack(outputs)  # (L, B, Q, D)

        return Predictions(logits=self.class_head(output), boxes=move(reference, self.box_head(output)))


def build(config: Config) -> ConditionalDETR:
    """A Conditional DETR of that config with random weights."""
    attention = (config.dim, config.num_heads, config.dropout)
    sizes = {
        "dim": config.dim,
        "feedforward_dim": config.feedforward_dim,
        "dropout": config.dropout,
    }
    return ConditionalDETR(
        backbone=Backbone(config.backbone, (32,), config.dilation, config.backbone_frozen),
        encoder=[EncoderLayer(MultiHeadAttention(*attention), **sizes) for _ in range(config.num_encoder_layers)],
        decoder=[
            ConditionalDecoderLayer(
                ConditionalSelfAttention(*attention), ConditionalCrossAttention(*attention, first=index == 0), **sizes
            )
            for index in range(config.num_decoder_layers)
        ],
        dim=config.dim,
        num_queries=config.num_queries,
        num_classes=config.num_classes,
        temperature=config.temperature,
    )


def criterion(config: Config) -> Criterion:
    """Focal loss, L1 and generalised IoU, one-to-one matched in every layer."""
    return Criterion(
        cost=MatchCost("sigmoid", config.class_cost, config.box_cost, config.giou_cost),
        class_loss="focal",
        weights={"class": config.class_weight, "box": config.box_weight, "giou": config.giou_weight},
    )


_R50 = Config()
_R101 = replace(_R50, backbone="resnet101")
_NANO = replace(
    _R50,
    backbone="mobilenetv2_100",
    num_queries=100,
    dim=128,
    feedforward_dim=512,
    num_encoder_layers=3,
    num_decoder_layers=3,
)
_RECIPE = Recipe(epochs=50, drop_at=0.8)
_SOURCE = "at 50 epochs (Conditional DETR repository, COCO val2017)"

PRESETS = {
    "conditional-r50": Preset(_R50, recipe=_RECIPE, published=f"AP 41.0 {_SOURCE}"),
    "conditional-r50-dc5": Preset(replace(_R50, dilation=True), recipe=_RECIPE, published=f"AP 43.7 {_SOURCE}"),
    "conditional-r101": Preset(_R101, recipe=_RECIPE, published=f"AP 42.8 {_SOURCE}"),
    "conditional-r101-dc5": Preset(replace(_R101, dilation=True), recipe=_RECIPE, published=f"AP 45.0 {_SOURCE}"),
    "conditional-nano": Preset(
        _NANO, Preprocessing(longer=320), replace(_RECIPE, learning_rate=4e-4, backbone_learning_rate=4e-5)
    ),
}
