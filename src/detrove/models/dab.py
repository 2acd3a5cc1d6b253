"""DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR (Liu et al. 2022, arXiv:2201.12329).

Official code: IDEA-Research/DAB-DETR.

Differs from DETR in what Conditional DETR does, and from Conditional DETR in:
- a query's position *is* an anchor (x, y, w, h), learned, and moved by every layer; its position embedding is computed
  from the anchor's sines anew in each layer;
- width and height modulate the attention: a broad box looks broadly;
- the encoder, too, scales positions by content;
- a box is told twice: the anchor that the next layer gets comes from the un-normed content and is detached; what is
  supervised comes from the normed content and the anchor before, **not** detached, so that a layer hears of its
  successor's loss (DINO later names this "look forward twice");
- picture encoding at temperature 20; PReLU in the feed-forward; no dropout; inverse sigmoid with epsilon 1e-3 and
  generalised IoU with 1e-6.

The paper's variants: anchors of 2 coordinates (`num_coordinates`, without `modulate`), several contents for each anchor
(`num_patterns`, after Anchor DETR), and random centres (`random_xy`), which officially are meant to be frozen as well:
that has no effect in the released code, so they are learned here as there.

With `denoising` it is DN-DETR (Li et al. 2022, arXiv:2203.01305; official code: IDEA-Research/DN-DETR), which differs
from DAB-DETR in:
- training also shows the decoder objects with noise, to be restored without matching (`denoising.py`);
- queries start from a learned content, the embedding of no class, not from nothing; a bit tells them from noised
  objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from detrove.boxes import inverse_sigmoid
from detrove.errors import InputError
from detrove.losses import Criterion, MatchCost
from detrove.models.denoising import Denoising, DenoisingPart
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
    """DAB-DETR's sizes and loss weights; the defaults are the published R50."""

    num_classes: int = 91
    num_queries: int = 300
    num_coordinates: int = 4
    num_patterns: int = 0
    modulate: bool = True
    random_xy: bool = False
    backbone: str = "resnet50"
    backbone_frozen: bool = True
    dilation: bool = False
    dim: int = 256
    num_heads: int = 8
    feedforward_dim: int = 2048
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    dropout: float = 0.0
    activation: str = "prelu"
    temperature: float = 20.0
    anchor_temperature: float = 10000.0
    inverse_sigmoid_epsilon: float = 1e-3
    giou_epsilon: float = 1e-6
    scores: str = "sigmoid"
    num_detections: int = 300
    class_weight: float = 1.0
    box_weight: float = 5.0
    giou_weight: float = 2.0
    class_cost: float = 2.0
    box_cost: float = 5.0
    giou_cost: float = 2.0
    denoising: Denoising | None = None


class DABDETR(nn.Module):
    """Trunk, encoder, decoder, heads. Layers L, queries Q, tokens T, embedding D, coordinates N of an anchor."""

    def __init__(
        self,
        backbone: Backbone,
        encoder: Sequence[EncoderLayer],
        decoder: Sequence[ConditionalDecoderLayer],
        anchors: Tensor,
        dim: int,
        num_patterns: int,
        num_classes: int,
        modulate: bool,
        temperature: float,
        anchor_temperature: float,
        epsilon: float,
        denoising: DenoisingPart | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_projection = nn.Conv2d(backbone.channels[-1], dim, kernel_size=1)
        self.encoder_position_scale = MLP(dim, dim, dim, num_layers=2)
        self.encoder = nn.ModuleList(encoder)
        self.anchors = nn.Parameter(anchors)  # (Q, N) before the sigmoid
        self.patterns = nn.Parameter(torch.randn(num_patterns, dim)) if num_patterns else None
        self.denoising = denoising
        self.position_head = MLP(anchors.shape[-1] * dim // 2, dim, dim, num_layers=2)
        self.position_scale = MLP(dim, dim, dim, num_layers=2)
        self.size_head = MLP(dim, dim, 2, num_layers=2) if modulate else None
        self.decoder = nn.ModuleList(decoder)
        self.decoder_norm = nn.LayerNorm(dim)
        self.class_head = sigmoid_class_head(dim, num_classes)
        self.box_head = reference_box_head(dim)
        self.temperature, self.anchor_temperature, self.epsilon = temperature, anchor_temperature, epsilon
        scales = (self.encoder_position_scale, self.position_head, self.position_scale, self.size_head)
        for part in (self.encoder, self.decoder, *scales):
            if part is not None:
                xavier_uniform_matrices(part)

    def forward(self, images: ImageBatch, targets: Sequence[Targets] | None = None) -> Predictions:
        """A batch of pictures to classes and boxes of every decoder layer.

        In training with denoising, `targets` are also shown with noise: what became of them is in `denoising`.
        """
        # picture -> one coarse map -> tokens with their positions and padding
        level = self.backbone(images)[-1]
        tokens = self.input_projection(level.features).flatten(2).transpose(1, 2)
        dim = tokens.shape[-1]
        position = sine_encoding(level.padding_mask, dim, self.temperature, dtype=tokens.dtype).flatten(1, 2)
        padding_mask = level.padding_mask.flatten(1)

        # every cell looks at every cell
        for layer in self.encoder:
            tokens = layer(tokens, position * self.encoder_position_scale(tokens), padding_mask=padding_mask)
        memory = tokens

        # queries look at each other, and at the memory around their anchor, which every layer moves
        anchor, content = (x.expand(images.pixels.shape[0], -1, -1) for x in self.queries())
        noised = hidden = None
        if self.denoising is not None and self.training and targets is not None:
            noised = self.denoising(targets)
            hidden = noised.hidden(anchor.shape[1])
            anchor, content = noised.before(anchor, content)
        reference = anchor = anchor.sigmoid()
        outputs: list[Tensor] = []
        references: list[Tensor] = []
        for index, layer in enumerate(self.decoder):
            sines = sine_of_anchors(anchor, dim // 2, self.anchor_temperature)
            where = sines[..., :dim] * self.position_scale(content) if index else sines[..., :dim]
            record_anchors(layer, anchor, where)
            if self.size_head is not None:
                where = modulate(where, self.size_head(content).sigmoid() / anchor[..., 2:])
            content = layer(
                content,
                self.position_head(sines),
                where,
                memory,
                memory_position=position,
                attention_mask=hidden,
                padding_mask=padding_mask,
            )
            outputs.append(self.decoder_norm(content))
            references.append(reference)
            reference = move(anchor, self.box_head(content), self.epsilon)[..., : anchor.shape[-1]]
            anchor = reference.detach()
        output = torch.stack(outputs)  # (L, B, Q, D)

        boxes = move(torch.stack(references), self.box_head(output), self.epsilon)
        predictions = Predictions(logits=self.class_head(output), boxes=boxes)
        return predictions if noised is None else noised.take_apart(predictions)

    def queries(self) -> tuple[Tensor, Tensor]:
        """Anchors (Q, N) before the sigmoid and contents (Q, D): nothing, or every anchor with every pattern.

        With denoising, the content of no class is added.
        """
        dim = self.decoder_norm.weight.shape[0]
        content = self.anchors.new_zeros(dim) if self.denoising is None else self.denoising.no_class()
        if self.patterns is None:
            return self.anchors, content.expand(len(self.anchors), -1)
        contents = content + self.patterns.repeat_interleave(len(self.anchors), dim=0)
        return self.anchors.repeat(len(self.patterns), 1), contents


def modulate(sine: Tensor, size_ratio: Tensor) -> Tensor:
    """Attention as broad as the box (paper §4.4): sine (B, Q, D), y half first, and wanted / own (w, h) (B, Q, 2)."""
    return sine * size_ratio.flip(-1).repeat_interleave(sine.shape[-1] // 2, dim=-1)


def initial_anchors(num_queries: int, num_coordinates: int, random_xy: bool, epsilon: float) -> Tensor:
    """Anchors (Q, N) before the sigmoid: normal, so around the picture's middle; `random_xy` spreads the centres."""
    anchors = torch.randn(num_queries, num_coordinates)
    if random_xy:
        anchors[:, :2] = inverse_sigmoid(torch.rand(num_queries, 2), epsilon)
    return anchors


def build(config: Config) -> DABDETR:
    """A DAB-DETR of that config with random weights."""
    if config.num_coordinates not in (2, 4):
        raise InputError(f"num_coordinates is {config.num_coordinates}: an anchor has 2 (x, y) or 4 (x, y, w, h)")
    if config.modulate and config.num_coordinates == 2:
        raise InputError("modulate needs an anchor's width and height: set modulate=False or num_coordinates=4")
    if config.denoising and config.num_coordinates == 2:
        raise InputError("denoising needs an anchor's width and height: set denoising=None or num_coordinates=4")
    attention = (config.dim, config.num_heads, config.dropout)
    sizes = {
        "dim": config.dim,
        "feedforward_dim": config.feedforward_dim,
        "dropout": config.dropout,
        "activation": config.activation,
    }
    epsilon = config.inverse_sigmoid_epsilon
    denoising = None
    if config.denoising is not None:
        denoising = DenoisingPart(config.denoising, config.num_classes, config.dim, indicator=True, epsilon=epsilon)
    return DABDETR(
        backbone=Backbone(config.backbone, (32,), config.dilation, config.backbone_frozen),
        encoder=[EncoderLayer(MultiHeadAttention(*attention), **sizes) for _ in range(config.num_encoder_layers)],
        decoder=[
            ConditionalDecoderLayer(
                ConditionalSelfAttention(*attention), ConditionalCrossAttention(*attention, first=index == 0), **sizes
            )
            for index in range(config.num_decoder_layers)
        ],
        anchors=initial_anchors(config.num_queries, config.num_coordinates, config.random_xy, epsilon),
        dim=config.dim,
        num_patterns=config.num_patterns,
        num_classes=config.num_classes,
        modulate=config.modulate,
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
_DC5 = replace(_R50, dilation=True)
_NANO = replace(
    _R50,
    backbone="mobilenetv2_100",
    num_queries=100,
    dim=128,
    feedforward_dim=512,
    num_encoder_layers=3,
    num_decoder_layers=3,
    num_detections=100,
)
_RECIPE = Recipe(epochs=50, drop_at=0.8)
_SHORT = replace(_RECIPE, epochs=12, drop_at=11 / 12)
_NANO_RECIPE = replace(_RECIPE, learning_rate=4e-4, backbone_learning_rate=4e-5)
_SOURCE = "at 50 epochs (DAB-DETR repository, COCO val2017)"
_DN_SOURCE = "(DN-DETR repository, COCO val2017)"


def _denoised(config: Config) -> Config:
    return replace(config, denoising=Denoising())


PRESETS = {
    "dab-r50": Preset(_R50, recipe=_RECIPE, published=f"AP 42.2 {_SOURCE}"),
    "dab-r50-3patterns": Preset(replace(_R50, num_patterns=3), recipe=_RECIPE, published=f"AP 42.6 {_SOURCE}"),
    "dab-r50-dc5": Preset(_DC5, recipe=_RECIPE, published=f"AP 44.5 {_SOURCE}"),
    "dab-r50-dc5-fixxy": Preset(replace(_DC5, random_xy=True), recipe=_RECIPE, published=f"AP 44.7 {_SOURCE}"),
    "dab-r50-dc5-3patterns": Preset(replace(_DC5, num_patterns=3), recipe=_RECIPE, published=f"AP 45.7 {_SOURCE}"),
    "dab-nano": Preset(_NANO, Preprocessing(longer=320), _NANO_RECIPE),
    "dn-dab-r50": Preset(_denoised(_R50), recipe=_RECIPE, published=f"AP 44.4 at 50 epochs {_DN_SOURCE}"),
    "dn-dab-r50-dc5": Preset(_denoised(_DC5), recipe=_RECIPE, published=f"AP 46.3 at 50 epochs {_DN_SOURCE}"),
    "dn-dab-r50-dc5-3patterns": Preset(
        replace(_denoised(_DC5), num_patterns=3), recipe=_SHORT, published=f"AP 41.7 at 12 epochs {_DN_SOURCE}"
    ),
    "dn-dab-r101-dc5-3patterns": Preset(
        replace(_denoised(_DC5), backbone="resnet101", num_patterns=3),
        recipe=_SHORT,
        published=f"AP 42.8 at 12 epochs {_DN_SOURCE}",
    ),
    "dn-dab-nano": Preset(_denoised(_NANO), Preprocessing(longer=320), _NANO_RECIPE),
}
