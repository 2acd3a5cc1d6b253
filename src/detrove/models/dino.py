"""DINO: DETR with Improved DeNoising Anchor Boxes (Zhang et al. 2023, arXiv:2203.03605).

Official code: IDEA-Research/DINO. With 4 levels, and with 5 (from stride 4).

Differs from DAB-Deformable-DETR in:
- mixed query selection: the encoder's tokens that look most like objects, by their best class, give the anchors;
  contents stay learned, and the same for every picture. The encoder has heads of its own, and its chosen proposals,
  no others, are taught as a decoder layer's boxes are;
- look forward twice, as in DAB-DETR: what is supervised comes from the normed content and the anchor before, **not**
  detached, so that a layer hears of its successor's loss; the anchor that the next layer gets is detached;
- contrastive denoising in training (`denoising`): noised objects stand before the queries, to be restored or, with more
  noise, to be told to be nothing;
- positions are not scaled by content; the decoder has a final norm, and all its layers share their heads;
- 900 queries, of which 300 detections are kept; picture encoding at temperature 20, without the half pixel.

The anchor is taken as it lies in the **padded** finest level, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrove.losses import Criterion, MatchCost
from detrove.models.denoising import Denoising, DenoisingPart
from detrove.models.preset import Preset, Recipe
from detrove.nn.attention import MultiHeadAttention
from detrove.nn.backbone import Backbone, LevelProjection
from detrove.nn.deformable_attention import DeformableAttention
from detrove.nn.heads import heads_of_layers, reference_box_head, sigmoid_class_head
from detrove.nn.linear import Linear
from detrove.nn.positions import level_encodings, sine_of_anchors
from detrove.nn.references import cell_centres, initial_proposals, move, valid_ratios
from detrove.nn.transformer import MLP, DecoderLayer, EncoderLayer, xavier_uniform_matrices
from detrove.structures import ImageBatch, Predictions, Preprocessing, Proposals, Targets

_CONTRASTIVE = Denoising(label_noise=0.25, contrastive=True, num_queries=100)


@dataclass(frozen=True)
class Config:
    """DINO's sizes and loss weights; the defaults are the published R50 with 4 levels."""

    num_classes: int = 91
    num_queries: int = 900
    backbone: str = "resnet50"
    backbone_frozen: bool = True
    strides: tuple[int, ...] = (8, 16, 32)
    num_levels: int = 4
    dim: int = 256
    num_heads: int = 8
    num_points: int = 4
    feedforward_dim: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float = 0.0
    temperature: float = 20.0
    anchor_temperature: float = 10000.0
    inverse_sigmoid_epsilon: float = 1e-3
    giou_epsilon: float = 1e-6
    denoising: Denoising | None = _CONTRASTIVE
    scores: str = "sigmoid"
    num_detections: int = 300
    class_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0


class QuerySelection(nn.Module):
    """Which tokens look most like objects, and the boxes that they propose (paper §3.4)."""

    def __init__(self, dim: int, num_queries: int, num_classes: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.token_projection = Linear(dim, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.class_head = sigmoid_class_head(dim, num_classes)
        self.box_head = reference_box_head(dim)
        xavier_uniform_matrices(self.token_projection)

    def forward(self, memory: Tensor, masks: list[Tensor]) -> tuple[Proposals, Tensor]:
        """Memory (B, T, D) and the levels' padding masks to the proposals of the best tokens, best first, and their
        boxes (B, Q, 4) before the sigmoid, detached: Q is `num_queries`, or T where there are fewer tokens."""
        start, valid = initial_proposals(masks, memory.dtype)
        tokens = self.token_norm(self.token_projection(memory.masked_fill(~valid, 0.0)))
        # by the best class, padded and border cells included, as the official code does
        scores = self.class_head(tokens.detach()).amax(dim=-1)
        chosen = scores.topk(min(self.num_queries, scores.shape[1]), dim=1).indices[..., None]
        tokens = tokens.gather(1, chosen.expand(-1, -1, tokens.shape[-1]))
        unactivated = self.box_head(tokens) + start.gather(1, chosen.expand(-1, -1, 4))
        return Proposals(self.class_head(tokens), unactivated.sigmoid()), unactivated.detach()


class DINO(nn.Module):
    """Trunk, levels, encoder, query selection, decoder, heads. Layers L, queries Q, tokens T, levels S, embedding D."""

    def __init__(
        self,
        backbone: Backbone,
        levels: LevelProjection,
        encoder: Sequence[EncoderLayer],
        selection: QuerySelection,
        decoder: Sequence[DecoderLayer],
        denoising: DenoisingPart | None,
        dim: int,
        num_levels: int,
        num_queries: int,
        num_classes: int,
        temperature: float,
        anchor_temperature: float,
        epsilon: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.levels = levels
        self.level_embedding = nn.Parameter(torch.randn(num_levels, dim))
        self.encoder = nn.ModuleList(encoder)
        self.selection = selection
        self.contents = nn.Parameter(torch.empty(num_queries, dim))
        self.position_head = MLP(2 * dim, dim, dim, num_layers=2)
        self.decoder = nn.ModuleList(decoder)
        self.decoder_norm = nn.LayerNorm(dim)
        self.denoising = denoising
        self.class_heads, self.box_heads = heads_of_layers(
            dim, num_classes, len(decoder), apart=False, small_boxes=False
        )
        self.temperature, self.anchor_temperature, self.epsilon = temperature, anchor_temperature, epsilon
        self._initialise()

    def _initialise(self) -> None:
        nn.init.xavier_uniform_(self.contents)
        for part in (self.encoder, self.decoder, self.position_head):
            xavier_uniform_matrices(part)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()
        # the encoder's heads start as copies of the decoder's
        self.selection.class_head.load_state_dict(self.class_heads[0].state_dict())
        self.selection.box_head.load_state_dict(self.box_heads[0].state_dict())

    def forward(self, images: ImageBatch, targets: Sequence[Targets] | None = None) -> Predictions:
        """A batch of pictures to classes and boxes of every decoder layer, the chosen proposals as `encoder`.

        In training, `targets` are also shown with noise: what became of them is in `denoising`.
        """
        # picture -> levels -> one sequence of tokens with their positions and padding
        levels = self.levels(self.backbone(images), images.padding_mask)
        masks = [level.padding_mask for level in levels]
        tokens = torch.cat([level.tokens() for level in levels], dim=1)
        position = level_encodings(masks, self.level_embedding, self.temperature, offset=0.0)
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

        # the tokens that look most like objects give the anchors; contents are learned
        proposals, anchor = self.selection(memory, masks)
        num_queries = anchor.shape[1]
        content = self.contents[:num_queries].expand(images.pixels.shape[0], -1, -1)

        # in training, noised objects stand before the queries
        noised = hidden = None
        if self.denoising is not None and self.training and targets is not None:
            noised = self.denoising(targets)
            anchor, content = noised.before(anchor, content)
            hidden = noised.hidden(num_queries)

        # queries look at each other and sample the memory inside their anchors, which every layer moves
        reference = anchor = anchor.sigmoid()
        outputs: list[Tensor] = []
        references: list[Tensor] = []
        for layer, box_head in zip(self.decoder, self.box_heads, strict=True):
            points = anchor[:, :, None] * ratios.repeat(1, 1, 2)[:, None]
            sines = sine_of_anchors(points[:, :, 0], memory.shape[-1] // 2, self.anchor_temperature)
            position = self.position_head(sines)
            content = layer(content, position, memory, hidden, reference_points=points, **geometry)
            outputs.append(self.decoder_norm(content))
            references.append(reference)
            reference = move(anchor, box_head(content), self.epsilon)
            anchor = reference.detach()
        output = torch.stack(outputs)  # (L, B, Q, D)

        # heads are shared by the layers
        boxes = move(torch.stack(references), self.box_heads[0](output), self.epsilon)
        predictions = Predictions(self.class_heads[0](output), boxes, encoder=proposals)
        return predictions if noised is None else noised.take_apart(predictions)


def build(config: Config) -> DINO:
    """A DINO of that config with random weights."""

    def dense() -> MultiHeadAttention:
        return MultiHeadAttention(config.dim, config.num_heads, config.dropout)

    def deformable() -> DeformableAttention:
        return DeformableAttention(config.dim, config.num_heads, config.num_levels, config.num_points)

    denoising = None
    if config.denoising is not None:
        epsilon = config.inverse_sigmoid_epsilon
        denoising = DenoisingPart(config.denoising, config.num_classes, config.dim, indicator=False, epsilon=epsilon)
    sizes = {"dim": config.dim, "feedforward_dim": config.feedforward_dim, "dropout": config.dropout}
    backbone = Backbone(config.backbone, config.strides, frozen=config.backbone_frozen)
    return DINO(
        backbone=backbone,
        levels=LevelProjection(backbone.channels, config.dim, config.num_levels),
        encoder=[EncoderLayer(deformable(), **sizes) for _ in range(config.num_encoder_layers)],
        selection=QuerySelection(config.dim, config.num_queries, config.num_classes),
        decoder=[DecoderLayer(dense(), deformable(), **sizes) for _ in range(config.num_decoder_layers)],
        denoising=denoising,
        dim=config.dim,
        num_levels=config.num_levels,
        num_queries=config.num_queries,
        num_classes=config.num_classes,
        temperature=config.temperature,
        anchor_temperature=config.anchor_temperature,
        epsilon=config.inverse_sigmoid_epsilon,
    )


def criterion(config: Config) -> Criterion:
    """Focal loss, L1 and generalised IoU, one-to-one matched in every layer and among the chosen proposals."""
    return Criterion(
        cost=MatchCost("sigmoid", config.class_cost, config.box_cost, config.giou_cost, config.giou_epsilon),
        class_loss="focal",
        weights={"class": config.class_weight, "box": config.box_weight, "giou": config.giou_weight},
        encoder_classes="true",
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
    num_detections=100,
)
_RECIPE = Recipe(epochs=12, drop_at=11 / 12)
_SOURCE = "at 12 epochs (DINO repository, COCO val2017)"

PRESETS = {
    "dino-r50": Preset(_R50, recipe=_RECIPE, published=f"AP 49.0 {_SOURCE}"),
    "dino-r50-5scale": Preset(
        replace(_R50, strides=(4, 8, 16, 32), num_levels=5), recipe=_RECIPE, published=f"AP 49.4 {_SOURCE}"
    ),
    "dino-nano": Preset(
        _NANO,
        Preprocessing(longer=320),
        replace(_RECIPE, learning_rate=4e-4, backbone_learning_rate=4e-5, epochs=50, drop_at=0.8),
    ),
}
