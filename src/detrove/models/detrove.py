"""detrove's own detector for few pictures and ordinary hardware: the family's blocks, put together for fast learning.

A two-stage deformable detector (Zhu et al. 2021) whose encoder is cheap and whose proposals are taught densely.

Differs from DETR in:
- three levels (strides 8 to 32); dense self-attention only on the coarsest, small convolutions carry it to the finer
  ones (the division of labour of RT-DETR, Zhao et al. 2024 §4.2);
- every cell proposes a box, and **several** cells are taught each object (one-to-many, so that the trunk hears of every
  object several times in each step); the best cells with distinct boxes become the queries, repeats stay silent;
- queries start from what their cell saw; the decoder samples around 4-d references and refines them layer by layer;
  heads are shared by its layers;
- boxes start as squares of two cells and move by shares of their own sides; places are those of the pixels, and padding
  counts for nothing behind the trunk;
- scores are sigmoids taught to foretell the box's IoU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrove.boxes import cxcywh_to_xyxy, pairwise_iou_xyxy
from detrove.losses import Criterion, MatchCost
from detrove.models.preset import Preset, Recipe
from detrove.nn.attention import MultiHeadAttention
from detrove.nn.backbone import Backbone, Level, LevelProjection
from detrove.nn.deformable_attention import DeformableAttention
from detrove.nn.heads import reference_box_head, sigmoid_class_head
from detrove.nn.padding import group_norm_in_picture, halve, zero_in_padding
from detrove.nn.positions import sine_encoding, sine_of_coordinates
from detrove.nn.references import cell_boxes, move_by_size, shares_in_pixels
from detrove.nn.transformer import MLP, DecoderLayer, EncoderLayer
from detrove.structures import ImageBatch, Predictions, Preprocessing, Proposals, Targets


@dataclass(frozen=True)
class Config:
    """Sizes and loss weights; the defaults are `detrove-nano`.

    `class_cost` is three times the family's. Several cells are taught each object, so near twins compete for it, and
    which twin's box fits a loosely drawn one better is chance: matched by boxes, both learn a half-sure score and the
    object is found twice. Matched by score, the surer one becomes surer.
    """

    num_classes: int = 80
    num_queries: int = 100
    backbone: str = "mobilenetv2_100"
    backbone_frozen: bool = True
    num_levels: int = 3
    dim: int = 128
    num_heads: int = 8
    num_points: int = 4
    feedforward_dim: int = 256
    num_encoder_layers: int = 1
    num_decoder_layers: int = 2
    dropout: float = 0.0
    temperature: float = 10000.0
    scores: str = "sigmoid"
    num_detections: int = 100
    cells_per_object: int = 3
    class_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 6.0
    box_cost: float = 5.0
    giou_cost: float = 2.0


class MixingBlock(nn.Module):
    """A 5×5 convolution per channel, then a 1×1 across channels, with a residual: cheap local context."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(dim, dim, 5, padding=2, groups=dim, bias=False)
        self.norm = nn.GroupNorm(1, dim)
        self.expand = nn.Conv2d(dim, 2 * dim, 1)
        self.contract = nn.Conv2d(2 * dim, dim, 1)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        """(B, D, h, w) to (B, D, h, w); padding (B, h, w) is not looked at."""
        # channels last: a convolution per channel learns three times as fast so on a CPU
        seen = self.spatial(zero_in_padding(x, padding_mask).contiguous(memory_format=torch.channels_last))
        normed = group_norm_in_picture(self.norm, seen, padding_mask)
        return x + self.contract(F.silu(self.expand(normed)))


class Pyramid(nn.Module):
    """Carries the coarsest level down to the finer ones and back up, a `MixingBlock` at each step."""

    def __init__(self, dim: int, num_levels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(MixingBlock(dim) for _ in range(num_levels - 1))
        self.up = nn.ModuleList(MixingBlock(dim) for _ in range(num_levels - 1))

    def forward(self, maps: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Maps (B, D, h, w), finest first, and their padding masks (B, h, w) to as many maps of the same shapes."""
        for index in reversed(range(len(maps) - 1)):
            coarse = F.interpolate(maps[index + 1], size=maps[index].shape[-2:], mode="nearest")
            maps[index] = self.down[index](maps[index] + coarse, masks[index])
        for index in range(len(maps) - 1):
            height, width = maps[index + 1].shape[-2:]
            fine = halve(maps[index], masks[index], (height, width))
            maps[index + 1] = self.up[index](maps[index + 1] + fine, masks[index + 1])
        return maps


FINEST = 8
"""The stride of the finest level; each further one has twice as much."""
POOL = 4
"""Cells that are compared for each query: an object fills several."""
BLANK = -20.0
"""The logits of a query that repeats another one: no score, and a matching cost above that of any box."""


@torch.no_grad()
def choose_distinct(scores: Tensor, boxes: Tensor, count: int, overlap: float = 0.6) -> tuple[Tensor, Tensor]:
    """The best cells whose boxes differ: (B, T) scores and (B, T, 4) cxcywh boxes to (B, count) indices, and which of
    them are no more than repeats, (B, count) bool.

    Several cells are taught each object, so the best cells alone would be the same few objects over and over, and the
    decoder would first have to learn to tell twins apart. Of the `POOL` · `count` best, a cell that overlaps a better
    one by more than `overlap` (IoU) is a repeat and goes behind all others; where others are wanting, repeats fill the
    places. After DDQ (Zhang et al. 2023, §3.2), in one pass instead of NMS.
    """
    num_cells, pool = scores.shape[1], POOL * count
    cell = scores.topk(min(pool, num_cells), dim=1).indices
    corners = cxcywh_to_xyxy(boxes.gather(1, cell[..., None].expand(-1, -1, 4)))
    repeats = torch.triu(pairwise_iou_xyxy(corners, corners) > overlap, diagonal=1).any(dim=-2)
    # By rank, which knows no ties: torch, ONNX Runtime and OpenVINO would each break them in a way of its own.
    rank = torch.arange(cell.shape[1], device=cell.device) + pool * repeats
    order = rank.topk(min(count, num_cells), dim=1, largest=False).indices
    return cell.gather(1, order), repeats.gather(1, order)


class Detrove(nn.Module):
    """Trunk, pyramid, dense proposals, decoder. Layers L, queries Q, tokens T, levels S, embedding D."""

    def __init__(
        self,
        backbone: Backbone,
        levels: LevelProjection,
        encoder: Sequence[EncoderLayer],
        pyramid: Pyramid,
        decoder: Sequence[DecoderLayer],
        dim: int,
        num_queries: int,
        num_classes: int,
        temperature: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = levels
        self.encoder = nn.ModuleList(encoder)
        self.pyramid = pyramid
        self.token_norm = nn.LayerNorm(dim)
        self.encoder_class_head = sigmoid_class_head(dim, num_classes)
        self.encoder_box_head = reference_box_head(dim, num_layers=2)
        self.position_head = MLP(2 * dim, dim, dim, num_layers=2)
        self.decoder = nn.ModuleList(decoder)
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_head = sigmoid_class_head(dim, num_classes)
        self.box_head = reference_box_head(dim, num_layers=2)
        self.num_queries, self.temperature = num_queries, temperature

    def forward(self, images: ImageBatch, targets: Sequence[Targets] | None = None) -> Predictions:  # noqa: ARG002
        """A batch of pictures to classes and boxes of every decoder layer; `targets` are not used."""
        # picture -> levels; the coarsest looks at all of itself, convolutions carry it to the others
        levels = self.levels(self.backbone(images), images.padding_mask)
        coarse = self.look_around(levels[-1])
        masks = [level.padding_mask for level in levels]
        maps = self.pyramid([*(level.features for level in levels[:-1]), coarse], masks)
        memory = self.token_norm(torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1))

        # every cell proposes; the best become queries: reference from the box, content from the cell
        shapes, strides = [level.shape for level in levels], [FINEST << index for index in range(len(levels))]
        padding_mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)
        encoder_logits = self.encoder_class_head(memory).masked_fill(padding_mask[..., None], -1e4)
        encoder_boxes = move_by_size(
            cell_boxes(images.sizes, shapes, strides, memory.dtype), self.encoder_box_head(memory)
        )
        scores = encoder_logits.detach().amax(dim=-1)
        best, repeats = choose_distinct(scores, encoder_boxes.detach(), self.num_queries)
        best, repeats = best[..., None], repeats[..., None]
        reference = encoder_boxes.detach().gather(1, best.expand(-1, -1, 4))
        content = memory.gather(1, best.expand(-1, -1, memory.shape[-1]))

        # queries look at each other and sample the memory around their boxes, which they refine
        ratios = shares_in_pixels(images.sizes, shapes, strides, memory.dtype).repeat(1, 1, 2)
        geometry = {"shapes": shapes, "padding_mask": padding_mask}
        logits, boxes = [], []
        for layer in self.decoder:
            position = self.position_head(sine_of_coordinates(reference * 2 * math.pi, memory.shape[-1] // 2))
            points = reference[:, :, None] * ratios[:, None]
            content = layer(content, position, memory, reference_points=points, **geometry)
            output = self.decoder_norm(content)
            logits.append(self.class_head(output).masked_fill(repeats, BLANK))
            boxes.append(move_by_size(reference, self.box_head(output)))
            reference = boxes[-1].detach()
        return Predictions(torch.stack(logits), torch.stack(boxes), Proposals(encoder_logits, encoder_boxes))

    def look_around(self, level: Level) -> Tensor:
        """Dense self-attention over the cells of one level: its map (B, D, h, w)."""
        tokens = level.tokens()
        position = sine_encoding(level.padding_mask, tokens.shape[-1], self.temperature, dtype=tokens.dtype).flatten(
            1, 2
        )
        for layer in self.encoder:
            tokens = layer(tokens, position, padding_mask=level.padding_mask.flatten(1))
        return tokens.transpose(1, 2).unflatten(2, level.shape)


def build(config: Config) -> Detrove:
    """detrove's detector of that config with random weights."""

    def dense() -> MultiHeadAttention:
        return MultiHeadAttention(config.dim, config.num_heads, config.dropout)

    def deformable() -> DeformableAttention:
        return DeformableAttention(config.dim, config.num_heads, config.num_levels, config.num_points)

    sizes = {
        "dim": config.dim,
        "feedforward_dim": config.feedforward_dim,
        "dropout": config.dropout,
        "norm_first": True,
    }
    backbone = Backbone(config.backbone, (FINEST, 2 * FINEST, 4 * FINEST), frozen=config.backbone_frozen)
    return Detrove(
        backbone=backbone,
        levels=LevelProjection(backbone.channels, config.dim, config.num_levels, padding_counts=False),
        encoder=[EncoderLayer(dense(), **sizes) for _ in range(config.num_encoder_layers)],
        pyramid=Pyramid(config.dim, config.num_levels),
        decoder=[DecoderLayer(dense(), deformable(), **sizes) for _ in range(config.num_decoder_layers)],
        dim=config.dim,
        num_queries=config.num_queries,
        num_classes=config.num_classes,
        temperature=config.temperature,
    )


def criterion(config: Config) -> Criterion:
    """One-to-one in every decoder layer, several cells to one object in the encoder."""
    return Criterion(
        cost=MatchCost("sigmoid", config.class_cost, config.box_cost, config.giou_cost),
        class_loss="quality",
        weights={"class": config.class_weight, "box": config.box_weight, "giou": config.giou_weight},
        encoder_classes="true",
        cells_per_object=config.cells_per_object,
    )


_NANO = Config()
_LARGER = replace(_NANO, cells_per_object=6)
_SMALL = replace(_LARGER, num_queries=200, num_detections=200, dim=192, feedforward_dim=512, num_decoder_layers=4)
_MEDIUM = replace(
    _LARGER,
    num_queries=300,
    num_detections=300,
    dim=256,
    feedforward_dim=1024,
    num_encoder_layers=2,
    num_decoder_layers=3,
)

# The rates are for four pictures a step: with few pictures it is steps that are wanting, and four cost half of eight.
_RECIPE = Recipe(
    learning_rate=7e-4,
    backbone_learning_rate=2e-4,
    decay_norms_and_biases=False,
    weight_decay=1e-2,
    clip_norm=1.0,
    batch_size=4,
    schedule="cosine",
    warmup=50,
    trunk_warmup=0.18,
    epochs=60,
    side_by_side=True,
    scale=(0.7, 1.1),
)

PRESETS = {
    "detrove-nano": Preset(_NANO, Preprocessing(longer=320), _RECIPE, advised=True),
    "detrove-small": Preset(_SMALL, Preprocessing(longer=480), _RECIPE, advised=True),
    "detrove-medium": Preset(_MEDIUM, Preprocessing(longer=640), _RECIPE, advised=True),
}
