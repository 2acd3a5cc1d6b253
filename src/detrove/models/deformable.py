"""Deformable DETR: Deformable Transformers for End-to-End Object Detection (Zhu et al. 2021, arXiv:2010.04159).

Official code: fundamentalvision/Deformable-DETR. Plain, with iterative box refinement (`refine`), and two-stage; the
single-scale forms have one level, C5, also with dilation.

Differs from DETR in:
- four levels (strides 8 to 64) instead of one map; a learned level embedding joins the position;
- encoder self-attention and decoder cross-attention sample a few points around a reference instead of looking at all
  cells; decoder self-attention stays dense;
- each query has a position half and a content half; its reference point comes from the position;
- sigmoid scores and focal loss: no "no object" class, the best class-query pairs win;
- `refine`: each layer moves the box of the layer before; every layer has its own heads;
- `two_stage`: the encoder proposes boxes, the best become the queries' references and positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrove.losses import Criterion, MatchCost
from detrove.models.preset import Preset, Recipe
from detrove.nn.attention import MultiHeadAttention
from detrove.nn.backbone import Backbone, LevelProjection
from detrove.nn.deformable_attention import DeformableAttention
from detrove.nn.heads import heads_of_layers
from detrove.nn.linear import Linear
from detrove.nn.positions import level_encodings, sine_of_coordinates
from detrove.nn.references import cell_centres, initial_proposals, move, valid_ratios
from detrove.nn.transformer import DecoderLayer, EncoderLayer, xavier_uniform_matrices
from detrove.structures import ImageBatch, Predictions, Preprocessing, Proposals, Targets


@dataclass(frozen=True)
class Config:
    """Deformable DETR's sizes and loss weights; the defaults are the published R50, plain form."""

    num_classes: int = 91
    num_queries: int = 300
    backbone: str = "resnet50"
    backbone_frozen: bool = True
    dilation: bool = False
    strides: tuple[int, ...] = (8, 16, 32)
    num_levels: int = 4
    dim: int = 256
    num_heads: int = 8
    num_points: int = 4
    feedforward_dim: int = 1024
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float = 0.1
    temperature: float = 10000.0
    refine: bool = False
    two_stage: bool = False
    scores: str = "sigmoid"
    num_detections: int = 100
    class_weight: float = 2.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0


class ProposalStage(nn.Module):
    """Two-stage: which tokens look like objects, and the boxes they propose (paper §A.4)."""

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.token_projection = Linear(dim, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.query_projection = Linear(2 * dim, 2 * dim)
        self.query_norm = nn.LayerNorm(2 * dim)

    def forward(
        self, memory: Tensor, masks: list[Tensor], class_head: nn.Module, box_head: nn.Module
    ) -> tuple[Proposals, Tensor, Tensor]:
        """Memory (B, T, D) and the levels' padding masks to all proposals, the best (B, Q, 4), queries (B, Q, 2D)."""
        start, valid = initial_proposals(masks, memory.dtype)
        tokens = self.token_norm(self.token_projection(memory.masked_fill(~valid, 0.0)))
        logits = class_head(tokens)
        unactivated = box_head(tokens) + start
        # by the first class channel, padded and border cells included, as the official code does
        chosen = logits[..., 0].topk(min(self.num_queries, logits.shape[1]), dim=1).indices
        reference = unactivated.gather(1, chosen[..., None].expand(-1, -1, 4)).detach().sigmoid()
        sines = sine_of_coordinates(reference * 2 * math.pi, memory.shape[-1] // 2)
        queries = self.query_norm(self.query_projection(sines))
        return Proposals(logits, unactivated.sigmoid()), reference, queries


class DeformableDETR(nn.Module):
    """Trunk, levels, encoder, (proposals,) decoder, heads. Layers L, queries Q, tokens T, levels S, embedding D."""

    def __init__(
        self,
        backbone: Backbone,
        levels: LevelProjection,
        encoder: Sequence[EncoderLayer],
        decoder: Sequence[DecoderLayer],
        proposals: ProposalStage | None,
        dim: int,
        num_levels: int,
        num_queries: int,
        num_classes: int,
        temperature: float,
        refine: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = levels
        self.level_embedding = nn.Parameter(torch.randn(num_levels, dim))
        self.encoder = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList(decoder)
        self.proposals = proposals
        if proposals is None:
            self.queries = nn.Parameter(torch.randn(num_queries, 2 * dim))  # position half, content half
            self.reference_points = nn.Linear(dim, 2)
        num_heads = len(decoder) + (proposals is not None)
        self.class_heads, self.box_heads = heads_of_layers(
            dim, num_classes, num_heads, apart=refine, small_boxes=proposals is None
        )
        self.temperature, self.refine = temperature, refine
        self._initialise()

    def _initialise(self) -> None:
        for part in (self.encoder, self.decoder, self.proposals):
            if part is not None:
                xavier_uniform_matrices(part)
        if self.proposals is None:
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()

    def forward(self, images: ImageBatch, targets: Sequence[Targets] | None = None) -> Predictions:  # noqa: ARG002
        """A batch of pictures to classes and boxes of every decoder layer; `targets` are not used."""
        # picture -> levels -> one sequence of tokens with their positions and padding
        levels = self.levels(self.backbone(images), images.padding_mask)
        masks = [level.padding_mask for level in levels]
        tokens = torch.cat([level.tokens() for level in levels], dim=1)
        position = level_encodings(masks, self.level_embedding, self.temperature)
        ratios = valid_ratios(masks, tokens.dtype)
        geometry = {
            "shapes": [level.shape for level in levels],
            "padding_mask": torch.cat([mask.flatten(1) for mask in masks], dim=1),
        }

        # every cell samples a few points around itself on every level
        reference = cell_centres(masks, tokens.dtype)[:, :, None] * ratios[:, None]
        for layer in self.encoder:
            tokens = layer(tokens, position, reference_points=reference, **geometry)
        memory = tokens

        # queries and their references: learned, or proposed by the encoder
        encoder_proposals = None
        if self.proposals is not None:
            heads = self.class_heads[-1], self.box_heads[-1]
            encoder_proposals, reference, queries = self.proposals(memory, masks, *heads)
            query_position, content = queries.chunk(2, dim=-1)
        else:
            query_position, content = self.queries.expand(images.pixels.shape[0], -1, -1).chunk(2, dim=-1)
            reference = self.reference_points(query_position).sigmoid()

        # queries look at each other and sample the memory around their references
        logits, boxes = [], []
        for index, layer in enumerate(self.decoder):
            scale = ratios if reference.shape[-1] == 2 else ratios.repeat(1, 1, 2)
            points = reference[:, :, None] * scale[:, None]
            content = layer(content, query_position, memory, reference_points=points, **geometry)
            logits.append(self.class_heads[index](content))
            boxes.append(move(reference, self.box_heads[index](content)))
            if self.refine:
                reference = boxes[-1].detach()
        return Predictions(torch.stack(logits), torch.stack(boxes), encoder_proposals)


def build(config: Config) -> DeformableDETR:
    """A Deformable DETR of that config with random weights."""

    def dense() -> MultiHeadAttention:
        return MultiHeadAttention(config.dim, config.num_heads, config.dropout)

    def deformable() -> DeformableAttention:
        return DeformableAttention(config.dim, config.num_heads, config.num_levels, config.num_points)

    sizes = {"dim": config.dim, "feedforward_dim": config.feedforward_dim, "dropout": config.dropout}
    backbone = Backbone(config.backbone, config.strides, config.dilation, config.backbone_frozen)
    return DeformableDETR(
        backbone=backbone,
        levels=LevelProjection(backbone.channels, config.dim, config.num_levels),
        encoder=[EncoderLayer(deformable(), **sizes) for _ in range(config.num_encoder_layers)],
        decoder=[DecoderLayer(dense(), deformable(), **sizes) for _ in range(config.num_decoder_layers)],
        proposals=ProposalStage(config.dim, config.num_queries) if config.two_stage else None,
        dim=config.dim,
        num_levels=config.num_levels,
        num_queries=config.num_queries,
        num_classes=config.num_classes,
        temperature=config.temperature,
        refine=config.refine or config.two_stage,
    )


def criterion(config: Config) -> Criterion:
    """Focal loss, L1 and generalised IoU, matched in every layer; proposals learn only whether there is an object."""
    return Criterion(
        cost=MatchCost("sigmoid", config.class_cost, config.box_cost, config.giou_cost),
        class_loss="focal",
        weights={"class": config.class_weight, "box": config.box_weight, "giou": config.giou_weight},
        encoder_classes="objectness" if config.two_stage else "none",
    )


_R50 = Config()
_NANO = replace(
    _R50,
    backbone="mobilenetv2_100",
    num_queries=100,
    dim=128,
    feedforward_dim=256,
    num_encoder_layers=2,
    num_decoder_layers=3,
)
_RECIPE = Recipe(
    learning_rate=2e-4,
    backbone_learning_rate=2e-5,
    slow_parameters=("reference_points", "sampling_offsets"),
    epochs=50,
    drop_at=0.8,
)
_SINGLE = replace(_R50, strides=(32,), num_levels=1)
_SOURCE = "Deformable DETR repository, COCO val2017"

PRESETS = {
    "deformable-r50": Preset(_R50, recipe=_RECIPE, published=f"AP 44.5 at 50 epochs ({_SOURCE})"),
    "deformable-refine-r50": Preset(
        replace(_R50, refine=True), recipe=_RECIPE, published=f"AP 46.2 at 50 epochs ({_SOURCE})"
    ),
    "deformable-two-stage-r50": Preset(
        replace(_R50, refine=True, two_stage=True), recipe=_RECIPE, published=f"AP 46.9 at 50 epochs ({_SOURCE})"
    ),
    "deformable-c5-r50": Preset(_SINGLE, recipe=_RECIPE, published=f"AP 39.4 at 50 epochs ({_SOURCE})"),
    "deformable-dc5-r50": Preset(
        replace(_SINGLE, dilation=True), recipe=_RECIPE, published=f"AP 41.5 at 50 epochs ({_SOURCE})"
    ),
    "deformable-nano": Preset(
        _NANO, Preprocessing(longer=320), replace(_RECIPE, learning_rate=4e-4, backbone_learning_rate=4e-5)
    ),
}
