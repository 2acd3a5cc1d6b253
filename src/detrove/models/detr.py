"""DETR: End-to-End Object Detection with Transformers (Carion et al. 2020, arXiv:2005.12872).

Official code: facebookresearch/detr. Everything in the family differs from this file.

A trunk turns the picture into one coarse map; an encoder lets every cell of it look at every other; a decoder lets 100
learned queries look at the map and at each other, and each answers with a class (or "no object") and a box.
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
from detrove.nn.linear import Linear
from detrove.nn.positions import sine_encoding
from detrove.nn.transformer import MLP, DecoderLayer, EncoderLayer, xavier_uniform_matrices
from detrove.structures import ImageBatch, Predictions, Preprocessing, Targets


@dataclass(frozen=True)
class Config:
    """DETR's sizes and loss weights; the defaults are the published R50."""

    num_classes: int = 91
    num_queries: int = 100
    backbone: str = "resnet50"
    backbone_frozen: bool = True
    dilation: bool = False
    dim: int = 256
    num_heads: int = 8
    feedforward_dim: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float = 0.1
    norm_first: bool = False
    temperature: float = 10000.0
    scores: str = "softmax"
    num_detections: int = 100
    no_object_weight: float = 0.1
    class_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 1.0
    box_cost: float = 5.0
    giou_cost: float = 2.0


class DETR(nn.Module):
    """Trunk, encoder, decoder, heads. Layers L, queries Q, tokens T, embedding D."""

    def __init__(
        self,
        backbone: Backbone,
        encoder: Sequence[EncoderLayer],
        decoder: Sequence[DecoderLayer],
        dim: int,
        num_queries: int,
        num_classes: int,
        temperature: float,
        norm_first: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_projection = nn.Conv2d(backbone.channels[-1], dim, kernel_size=1)
        self.encoder = nn.ModuleList(encoder)
        self.encoder_norm = nn.LayerNorm(dim) if norm_first else nn.Identity()
        self.query_positions = nn.Parameter(torch.randn(num_queries, dim))
        self.decoder = nn.ModuleList(decoder)
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_head = Linear(dim, num_classes + 1)
        self.box_head = MLP(dim, dim, 4, num_layers=3)
        self.temperature = temperature
        xavier_uniform_matrices(self.encoder)
        xavier_uniform_matrices(self.decoder)

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
        memory = self.encoder_norm(tokens)

        # queries look at each other and at the memory; their content starts from nothing
        query_position = self.query_positions.expand(images.pixels.shape[0], -1, -1)
        content = torch.zeros_like(query_position)
        outputs: list[Tensor] = []
        for layer in self.decoder:
            content = layer(content, query_position, memory, key=memory + position, padding_mask=padding_mask)
            outputs.append(self.decoder_norm(content))
        output = torch.stack(outputs)  # (L, B, Q, D)

        return Predictions(logits=self.class_head(output), boxes=self.box_head(output).sigmoid())


def build(config: Config) -> DETR:
    """A DETR of that config with random weights."""
    attention = (config.dim, config.num_heads, config.dropout)
    sizes = {
        "dim": config.dim,
        "feedforward_dim": config.feedforward_dim,
        "dropout": config.dropout,
        "norm_first": config.norm_first,
    }
    return DETR(
        backbone=Backbone(config.backbone, (32,), config.dilation, config.backbone_frozen),
        encoder=[EncoderLayer(MultiHeadAttention(*attention), **sizes) for _ in range(config.num_encoder_layers)],
        decoder=[
            DecoderLayer(MultiHeadAttention(*attention), MultiHeadAttention(*attention), **sizes)
            for _ in range(config.num_decoder_layers)
        ],
        dim=config.dim,
        num_queries=config.num_queries,
        num_classes=config.num_classes,
        temperature=config.temperature,
        norm_first=config.norm_first,
    )


def criterion(config: Config) -> Criterion:
    """Cross-entropy with a light "no object", L1 and generalised IoU, one-to-one matched in every layer."""
    return Criterion(
        cost=MatchCost("softmax", config.class_cost, config.box_cost, config.giou_cost),
        class_loss="softmax",
        weights={"class": config.class_weight, "box": config.box_weight, "giou": config.giou_weight},
        no_object_weight=config.no_object_weight,
    )


_R50 = Config()
_R101 = replace(_R50, backbone="resnet101")
_NANO = replace(
    _R50,
    backbone="mobilenetv2_100",
    dim=128,
    feedforward_dim=512,
    num_encoder_layers=3,
    num_decoder_layers=3,
)
_RECIPE = Recipe(epochs=500, drop_at=0.8)
_SOURCE = "at 500 epochs (DETR repository, COCO val2017)"

PRESETS = {
    "detr-r50": Preset(_R50, recipe=_RECIPE, published=f"AP 42.0 {_SOURCE}"),
    "detr-r50-dc5": Preset(replace(_R50, dilation=True), recipe=_RECIPE, published=f"AP 43.3 {_SOURCE}"),
    "detr-r101": Preset(_R101, recipe=_RECIPE, published=f"AP 43.5 {_SOURCE}"),
    "detr-r101-dc5": Preset(replace(_R101, dilation=True), recipe=_RECIPE, published=f"AP 44.9 {_SOURCE}"),
    "detr-nano": Preset(
        _NANO, Preprocessing(longer=320), Recipe(learning_rate=4e-4, backbone_learning_rate=4e-5, epochs=300)
    ),
}
