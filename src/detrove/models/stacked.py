"""Stacked DETR: two small transformers, one after the other, from the coarse map to the finer one (2022).

Official code: shengwenyuan/sdetr.

Differs from DETR in:
- two stacks of 3 + 3 layers instead of one of 6 + 6: the first on C5 (stride 32), the second on C4 (stride 16), each
  with its own projection, encoder, query positions, decoder and final norm; class and box heads are shared;
- the encoder on C4 has a **single head**: over pixels, several heads were found to add little;
- the second stack's content starts from the first one's last output, after its norm and not detached.

Head counts do not show in the shapes of the weights. Beyond the paper, plain settings: the stacks' strides and their
order, layers and heads of each, whether heads are shared, and where the later stacks' content starts (`content`:
"normed" as published, "unnormed", "detached", or "zero").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrove.errors import InputError, nearest
from detrove.losses import Criterion, MatchCost
from detrove.models.preset import Preset, Recipe
from detrove.nn.attention import MultiHeadAttention
from detrove.nn.backbone import Backbone, Level
from detrove.nn.linear import Linear
from detrove.nn.positions import sine_encoding
from detrove.nn.transformer import MLP, DecoderLayer, EncoderLayer, xavier_uniform_matrices
from detrove.structures import ImageBatch, Predictions, Preprocessing, Targets

CONTENTS = ("normed", "unnormed", "detached", "zero")


@dataclass(frozen=True)
class Config:
    """Stacked DETR's sizes and loss weights, one entry per stack in tuples; the defaults are the published R50."""

    num_classes: int = 91
    num_queries: int = 100
    backbone: str = "resnet50"
    backbone_frozen: bool = True
    strides: tuple[int, ...] = (32, 16)
    dim: int = 256
    feedforward_dim: int = 2048
    num_encoder_layers: tuple[int, ...] = (3, 3)
    num_encoder_heads: tuple[int, ...] = (8, 1)
    num_decoder_layers: tuple[int, ...] = (3, 3)
    num_decoder_heads: tuple[int, ...] = (8, 8)
    content: str = "normed"
    share_heads: bool = True
    dropout: float = 0.1
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


class Stack(nn.Module):
    """One of the transformers: DETR's, over one level, from any content."""

    def __init__(
        self,
        channels: int,
        encoder: Sequence[EncoderLayer],
        decoder: Sequence[DecoderLayer],
        dim: int,
        num_queries: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.input_projection = nn.Conv2d(channels, dim, kernel_size=1)
        self.encoder = nn.ModuleList(encoder)
        self.query_positions = nn.Parameter(torch.randn(num_queries, dim))
        self.decoder = nn.ModuleList(decoder)
        self.decoder_norm = nn.LayerNorm(dim)
        self.temperature = temperature
        xavier_uniform_matrices(self.encoder)
        xavier_uniform_matrices(self.decoder)

    def forward(self, level: Level, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """A level, and content (B, Q, D) or none, to the normed outputs (L, B, Q, D) and the last un-normed content."""
        # one map -> tokens with their positions and padding
        tokens = self.input_projection(level.features).flatten(2).transpose(1, 2)
        dim = tokens.shape[-1]
        position = sine_encoding(level.padding_mask, dim, self.temperature, dtype=tokens.dtype).flatten(1, 2)
        padding_mask = level.padding_mask.flatten(1)

        # every cell looks at every cell
        for layer in self.encoder:
            tokens = layer(tokens, position, padding_mask=padding_mask)
        memory = tokens

        # queries look at each other and at the memory
        query_position = self.query_positions.expand(tokens.shape[0], -1, -1)
        content = torch.zeros_like(query_position) if start is None else start
        outputs: list[Tensor] = []
        for layer in self.decoder:
            content = layer(content, query_position, memory, key=memory + position, padding_mask=padding_mask)
            outputs.append(self.decoder_norm(content))
        return torch.stack(outputs), content


class StackedDETR(nn.Module):
    """Trunk, stacks, heads. Layers L of all stacks, queries Q, tokens T, embedding D."""

    def __init__(
        self,
        backbone: Backbone,
        stacks: Sequence[Stack],
        dim: int,
        num_classes: int,
        content: str,
        share_heads: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stacks = nn.ModuleList(stacks)
        num_heads = 1 if share_heads else len(stacks)
        self.class_heads = nn.ModuleList(Linear(dim, num_classes + 1) for _ in range(num_heads))
        self.box_heads = nn.ModuleList(MLP(dim, dim, 4, num_layers=3) for _ in range(num_heads))
        self.content = content

    def forward(self, images: ImageBatch, targets: Sequence[Targets] | None = None) -> Predictions:  # noqa: ARG002
        """A batch of pictures to classes and boxes of every stack's every layer; `targets` are not used."""
        levels = self.backbone(images)

        # each stack goes on from the content of the one before, on its own level
        content: Tensor | None = None
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        for index, (stack, level) in enumerate(zip(self.stacks, levels, strict=True)):
            output, unnormed = stack(level, content)
            content = self.handed_on(output[-1], unnormed)
            head = min(index, len(self.class_heads) - 1)
            logits.append(self.class_heads[head](output))
            boxes.append(self.box_heads[head](output).sigmoid())
        return Predictions(torch.cat(logits), torch.cat(boxes))

    def handed_on(self, normed: Tensor, unnormed: Tensor) -> Tensor | None:
        """What the next stack's content starts from: (B, Q, D), or None for nothing."""
        if self.content == "zero":
            return None
        if self.content == "unnormed":
            return unnormed
        return normed.detach() if self.content == "detached" else normed


def build(config: Config) -> StackedDETR:
    """A Stacked DETR of that config with random weights."""
    _check(config)

    def layers(kind: type, num_layers: int, *heads: int) -> list:
        return [
            kind(
                *(MultiHeadAttention(config.dim, num_heads, config.dropout) for num_heads in heads),
                dim=config.dim,
                feedforward_dim=config.feedforward_dim,
                dropout=config.dropout,
            )
            for _ in range(num_layers)
        ]

    backbone = Backbone(config.backbone, config.strides, frozen=config.backbone_frozen)
    stacks = [
        Stack(
            channels,
            layers(EncoderLayer, config.num_encoder_layers[index], config.num_encoder_heads[index]),
            layers(DecoderLayer, config.num_decoder_layers[index], *2 * [config.num_decoder_heads[index]]),
            dim=config.dim,
            num_queries=config.num_queries,
            temperature=config.temperature,
        )
        for index, channels in enumerate(backbone.channels)
    ]
    return StackedDETR(backbone, stacks, config.dim, config.num_classes, config.content, config.share_heads)


def _check(config: Config) -> None:
    for name in ("num_encoder_layers", "num_encoder_heads", "num_decoder_layers", "num_decoder_heads"):
        values = getattr(config, name)
        if len(values) != len(config.strides):
            raise InputError(
                f"{name} is {values}, but there are {len(config.strides)} stacks (strides {config.strides}): "
                "give one entry for each"
            )
    if config.content not in CONTENTS:
        raise InputError(f"content {config.content!r}: {nearest(config.content, CONTENTS)}")


def criterion(config: Config) -> Criterion:
    """Cross-entropy with a light "no object", L1 and generalised IoU, one-to-one matched in every layer."""
    return Criterion(
        cost=MatchCost("softmax", config.class_cost, config.box_cost, config.giou_cost),
        class_loss="softmax",
        weights={"class": config.class_weight, "box": config.box_weight, "giou": config.giou_weight},
        no_object_weight=config.no_object_weight,
    )


_R50 = Config()
_NANO = replace(
    _R50,
    backbone="mobilenetv2_100",
    dim=128,
    feedforward_dim=512,
    num_encoder_layers=(2, 1),
    num_decoder_layers=(2, 1),
)

PRESETS = {
    "stacked-r50": Preset(
        _R50,
        recipe=Recipe(epochs=150, drop_at=2 / 3),
        published="AP 40.5, AP small 20.2 at 150 epochs (Stacked DETR, COCO val2017)",
    ),
    "stacked-nano": Preset(
        _NANO, Preprocessing(longer=320), Recipe(learning_rate=4e-4, backbone_learning_rate=4e-5, epochs=300)
    ),
}
