"""DAB-Deformable-DETR: anchors as queries in Deformable DETR (Liu et al. 2022, arXiv:2201.12329, appendix C).

Official code: IDEA-Research/DAB-DETR, `models/dab_deformable_detr`.

Differs from Deformable DETR with `refine` in:
- a query is a learned content and a learned anchor (x, y, w, h), so that references have four coordinates from the
  first layer on;
- its position embedding is computed from the anchor's sines anew in each layer, scaled by content after the first; the
  anchor is taken as it lies in the **padded** finest level, so that answers shift a little with padding, as officially;
- no width-height modulation of attention: the box scales the sampling offsets already;
- feed-forward 2048 wide, no dropout; class loss at weight 1; inverse sigmoid with epsilon 1e-3 and generalised IoU with
  1e-6, as in DAB-DETR. Boxes are told once, and references detached, as in Deformable DETR.

With `denoising` it is DN-Deformable-DETR (Li et al. 2022, arXiv:2203.01305; official code: IDEA-Research/DN-DETR,
`models/dn_dab_deformable_detr`): training also shows the decoder objects with noise (`denoising.py`), and the last
number of a content is not learned: it tells queries, 0, from noised objects, 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrove.errors import InputError
from detrove.losses import Criterion, MatchCost
from detrove.models.dab import initial_anchors
from detrove.models.denoising import Denoising, DenoisingPart
from detrove.models.preset import Preset, Recipe
from detrove.nn.attention import MultiHeadAttention
from detrove.nn.backbone import Backbone, LevelProjection
from detrove.nn.deformable_attention import DeformableAttention
from detrove.nn.heads import heads_of_layers
from detrove.nn.positions import level_encodings, sine_of_anchors
from detrove.nn.references import cell_centres, move, valid_ratios
from detrove.nn.transformer import MLP, DecoderLayer, EncoderLayer, xavier_uniform_matrices
from detrove.structures import ImageBatch, Predictions, Targets


@dataclass(frozen=True)
class Config:
    """DAB-Deformable-DETR's sizes and loss weights; the defaults are the published R50 (v2)."""

    num_classes: int = 91
    num_queries: int = 300
    num_patterns: int = 0
    random_xy: bool = False
    backbone: str = "resnet50"
    backbone_frozen: bool = True
    num_levels: int = 4
    dim: int = 256
    num_heads: int = 8
    num_points: int = 4
    feedforward_dim: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float = 0.0
    temperature: float = 10000.0
    anchor_temperature: float = 10000.0
    inverse_sigmoid_epsilon: float = 1e-3
    giou_epsilon: float = 1e-6
    scores: str = "sigmoid"
    num_detections: int = 100
    class_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    denoising: Denoising | None = None


class DABDeformableDETR(nn.Module):
    """Trunk, levels, encoder, decoder, heads. Layers L, queries Q, tokens T, levels S, embedding D."""

    def __init__(
        self,
        backbone: Backbone,
        levels: LevelProjection,
        encoder: Sequence[EncoderLayer],
        decoder: Sequence[DecoderLayer],
        anchors: Tensor,
        dim: int,
        num_levels: int,
        num_patterns: int,
        num_classes: int,
        temperature: float,
        anchor_temperature: float,
        epsilon: float,
        denoising: DenoisingPart | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = levels
        self.level_embedding = nn.Parameter(torch.randn(num_levels, dim))
        self.encoder = nn.ModuleList(encoder)
        self.anchors = nn.Parameter(anchors)  # (Q, 4) before the sigmoid
        self.denoising = denoising
        self.contents = nn.Parameter(torch.randn(len(anchors), dim - (denoising is not None)))
        self.patterns = nn.Parameter(torch.randn(num_patterns, dim)) if num_patterns else None
        self.position_head = MLP(2 * dim, dim, dim, num_layers=2)
        self.position_scale = MLP(dim, dim, dim, num_layers=2)
        self.decoder = nn.ModuleList(decoder)
        self.class_heads, self.box_heads = heads_of_layers(dim, num_classes, len(decoder), apart=True, small_boxes=True)
        self.temperature, self.anchor_temperature, self.epsilon = temperature, anchor_temperature, epsilon
        self._initialise()

    def _initialise(self) -> None:
        for part in (self.encoder, self.decoder, self.position_head, self.position_scale):
            xavier_uniform_matrices(part)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()

    def forward(self, images: ImageBatch, targets: Sequence[Targets] | None = None) -> Predictions:
        """A batch of pictures to classes and boxes of every decoder layer.

        In training with denoising, `targets` are also shown with noise: what became of them is in `denoising`.
        """
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

        # queries look at each other and sample the memory inside their anchors, which every layer moves
        anchor, content = (x.expand(images.pixels.shape[0], -1, -1) for x in self.queries())
        noised = hidden = None
        if self.denoising is not None and self.training and targets is not None:
            noised = self.denoising(targets)
            hidden = noised.hidden(anchor.shape[1])
            anchor, content = noised.before(anchor, content)
        reference = anchor.sigmoid()
        logits, boxes = [], []
        for index, layer in enumerate(self.decoder):
            points = reference[:, :, None] * ratios.repeat(1, 1, 2)[:, None]
            sines = sine_of_anchors(points[:, :, 0], memory.shape[-1] // 2, self.anchor_temperature)
            query_position = self.position_head(sines)
            if index:
                query_position = query_position * self.position_scale(content)
            content = layer(content, query_position, memory, hidden, reference_points=points, **geometry)
            logits.append(self.class_heads[index](content))
            boxes.append(move(reference, self.box_heads[index](content), self.epsilon))
            reference = boxes[-1].detach()
        predictions = Predictions(torch.stack(logits), torch.stack(boxes))
        return predictions if noised is None else noised.take_apart(predictions)

    def queries(self) -> tuple[Tensor, Tensor]:
        """Anchors (Q, 4) before the sigmoid and contents (Q, D), or every anchor with every pattern added."""
        if self.denoising is not None:
            return self.anchors, F.pad(self.contents, (0, 1))
        if self.patterns is None:
            return self.anchors, self.contents
        contents = self.patterns[:, None] + self.contents
        return self.anchors.repeat(len(self.patterns), 1), contents.flatten(0, 1)


def build(config: Config) -> DABDeformableDETR:
    """A DAB-Deformable-DETR of that config with random weights."""

    def dense() -> MultiHeadAttention:
        return MultiHeadAttention(config.dim, config.num_heads, config.dropout)

    def deformable() -> DeformableAttention:
        return DeformableAttention(config.dim, config.num_heads, config.num_levels, config.num_points)

    sizes = {"dim": config.dim, "feedforward_dim": config.feedforward_dim, "dropout": config.dropout}
    epsilon = config.inverse_sigmoid_epsilon
    denoising = None
    if config.denoising is not None:
        if config.num_patterns:
            raise InputError("denoising and patterns do not go together here: set denoising=None or num_patterns=0")
        denoising = DenoisingPart(config.denoising, config.num_classes, config.dim, indicator=True, epsilon=epsilon)
    backbone = Backbone(config.backbone, (8, 16, 32), frozen=config.backbone_frozen)
    return DABDeformableDETR(
        backbone=backbone,
        levels=LevelProjection(backbone.channels, config.dim, config.num_levels),
        encoder=[EncoderLayer(deformable(), **sizes) for _ in range(config.num_encoder_layers)],
        decoder=[DecoderLayer(dense(), deformable(), **sizes) for _ in range(config.num_decoder_layers)],
        anchors=initial_anchors(config.num_queries, 4, config.random_xy, epsilon),
        dim=config.dim,
        num_levels=config.num_levels,
        num_patterns=config.num_patterns,
        num_classes=config.num_classes,
        temperature=config.temperature,
        anchor_temperature=config.anchor_temperature,
        epsilon=epsilon,
        denoising=denoising,
    )


def criterion(config: Config) -> Criterion:
    """Focal loss, L1 and generalised IoU, one-to-one matched in every layer; noised objects by the same terms."""
    return Criterion(
        cost=MatchCost("sigmoid", config.class_cost, config.box_cost, config.giou_cost, config.giou_epsilon),
        class_loss="focal",
        weights={"class": config.class_weight, "box": config.box_weight, "giou": config.giou_weight},
    )


_R50 = Config()
_RECIPE = Recipe(epochs=50, drop_at=0.8)

PRESETS = {
    "dab-deformable-r50": Preset(
        _R50, recipe=_RECIPE, published="AP 48.7 at 50 epochs (DAB-DETR repository, COCO val2017)"
    ),
    "dn-dab-deformable-r50": Preset(
        replace(_R50, denoising=Denoising()),
        recipe=_RECIPE,
        published="AP 49.5 at 50 epochs (DN-DETR repository, COCO val2017)",
    ),
}
