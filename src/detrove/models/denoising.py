"""Denoising: objects shown to the decoder with noise, for it to restore (DN-DETR, Li et al. 2022, arXiv:2203.01305).

Official codes: IDEA-Research/DN-DETR (`models/DN_DAB_DETR/dn_components.py`) and, for the contrastive kind,
IDEA-Research/DINO (`models/dino/dn_components.py`).

In training, noised copies of a picture's objects stand before the queries: a box as an anchor, a label as content.
Which object a copy must restore is known, so nothing is matched there, and a layer learns to move boxes before the
matching has settled. The copies form groups of every object once; groups do not see each other, queries see no copy,
copies see the queries. In evaluation there are none, and they cost nothing.

The contrastive kind (DINO, Zhang et al. 2022, arXiv:2203.03605) adds to each group a second copy of every object, with
more noise, that must be told to be nothing.

Slots: a picture's M places, M the most objects of a picture in the batch, times the copies of each; group by group, in
a group of the contrastive kind first the positive copies, then the negative ones. A picture with fewer objects leaves
places empty, with nothing for content and a box over the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrove.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from detrove.errors import InputError
from detrove.losses.matcher import pad_targets
from detrove.structures import Denoised, Predictions, Targets


@dataclass(frozen=True)
class Denoising:
    """How objects are noised in training; the defaults are DN-DETR's.

    `groups` copies of each object, or, with `num_queries`, as many as make about that many in the fullest picture, at
    least 1 (DINO: 100). `label_noise` is the share of labels that are drawn anew, `box_noise` how far an edge moves at
    most, in half sides. `contrastive` gives each copy a negative one besides, with `box_noise` to twice that.
    DINO's is `Denoising(label_noise=0.25, contrastive=True, num_queries=100)`; its code halves the 0.5 it is given.
    """

    groups: int = 5
    label_noise: float = 0.2
    box_noise: float = 0.4
    contrastive: bool = False
    num_queries: int = 0

    def __post_init__(self) -> None:
        if self.groups < 1:
            raise InputError(f"denoising.groups is {self.groups}: at least 1, or denoising off (null)")
        if not 0 <= self.label_noise <= 1:
            raise InputError(f"denoising.label_noise is {self.label_noise}: a share of the labels, from 0 to 1")
        if self.box_noise < 0:
            raise InputError(f"denoising.box_noise is {self.box_noise}: at least 0")
        if self.num_queries < 0:
            raise InputError(f"denoising.num_queries is {self.num_queries}: at least 0, which leaves it to groups")

    def num_groups(self, most_objects: int) -> int:
        """Groups for a batch whose fullest picture has that many objects."""
        return max(self.num_queries // max(most_objects, 1), 1) if self.num_queries else self.groups


@dataclass
class Noise:
    """The random numbers behind N slots of B pictures: `flip` (B, N) in [0, 1), a label is drawn anew where it is below
    the label noise; `label` (B, N) int64, the new one; `shift` (B, N, 4) in (-1, 1), of the largest move allowed."""

    flip: Tensor
    label: Tensor
    shift: Tensor


def draw_noise(batch: int, slots: int, num_classes: int, like: Tensor) -> Noise:
    """Noise from torch's default generator, on the device and in the precision of `like`."""
    return Noise(
        flip=torch.rand(batch, slots, device=like.device, dtype=like.dtype),
        label=torch.randint(num_classes, (batch, slots), device=like.device),
        shift=torch.rand(batch, slots, 4, device=like.device, dtype=like.dtype) * 2 - 1,
    )


@dataclass
class NoisedObjects:
    """N slots beside the queries of B pictures.

    `labels` (B, N) int64 and `boxes` (B, N, 4) cxcywh in [0, 1] as the decoder is shown them; `occupied` (B, N) bool:
    there is an object. `targets` (B, N) int64: which of the picture's objects is to be restored, -1 for none (empty
    slots and negatives). `num_groups` of N / num_groups slots each.
    """

    labels: Tensor
    boxes: Tensor
    occupied: Tensor
    targets: Tensor
    num_groups: int


def noise_objects(
    targets: Sequence[Targets], settings: Denoising, num_classes: int, like: Tensor, noise: Noise | None = None
) -> NoisedObjects:
    """The objects of a batch with noise: `noise` where given, else drawn; in the precision and on the device of `like`.

    A batch without any object has no slots.
    """
    labels, boxes = pad_targets(targets, like)
    batch, most = labels.shape
    num_groups = settings.num_groups(most)
    copies = num_groups * (2 if settings.contrastive else 1)
    counts = torch.tensor([len(target) for target in targets], device=like.device)
    place = torch.arange(most, device=like.device).repeat(copies)
    occupied = place < counts[:, None]
    labels, boxes = labels.repeat(1, copies), boxes.repeat(1, copies, 1)
    if noise is None:
        noise = draw_noise(batch, copies * most, num_classes, like)
    negative = torch.zeros_like(place, dtype=torch.bool)
    if settings.contrastive:
        negative = torch.arange(copies, device=like.device).repeat_interleave(most) % 2 == 1
        noised = _noised_corners(boxes, noise.shift, negative, settings.box_noise)
    else:
        noised = _noised_centres(boxes, noise.shift, settings.box_noise)
    return NoisedObjects(
        labels=torch.where(noise.flip < settings.label_noise, noise.label, labels),
        boxes=torch.where(occupied[..., None], noised, boxes),
        occupied=occupied,
        targets=place.expand(batch, -1).masked_fill(~occupied | negative, -1),
        num_groups=num_groups,
    )


def _noised_centres(boxes: Tensor, shift: Tensor, scale: float) -> Tensor:
    """DN-DETR: the centre moves by up to `scale` half sides, each side changes by up to `scale` of itself."""
    reach = torch.cat([boxes[..., 2:] / 2, boxes[..., 2:]], dim=-1)
    return (boxes + shift * reach * scale).clamp(0, 1)


def _noised_corners(boxes: Tensor, shift: Tensor, negative: Tensor, scale: float) -> Tensor:
    """DINO: each corner moves by up to `scale` half sides, a negative's by `scale` to twice as far."""
    shift = torch.where(negative[:, None], shift + torch.copysign(torch.ones_like(shift), shift), shift)
    reach = boxes[..., 2:].repeat(1, 1, 2) / 2
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + shift * reach * scale).clamp(0, 1))


def hidden_from(num_groups: int, slots_per_group: int, num_queries: int, device: torch.device | None = None) -> Tensor:
    """Who does not see whom, (N + Q, N + Q) bool, row looks at column, True = hidden; noised slots first.

    A slot sees its own group, empty places too, and all queries; a query sees the queries.
    """
    groups = torch.arange(num_groups, device=device).repeat_interleave(slots_per_group)
    group = torch.cat([groups, groups.new_full((num_queries,), -1)])
    return (group[:, None] != group) & (group != -1)


@dataclass
class NoisedQueries:
    """Noised objects as queries: `anchors` (B, N, 4) before the sigmoid, `contents` (B, N, D)."""

    anchors: Tensor
    contents: Tensor
    objects: NoisedObjects
    contrastive: bool

    @property
    def num_slots(self) -> int:
        """N."""
        return self.anchors.shape[1]

    def before(self, anchors: Tensor, contents: Tensor) -> tuple[Tensor, Tensor]:
        """The slots and, behind them, the queries' anchors (B, Q, 4) before the sigmoid and contents (B, Q, D)."""
        return torch.cat([self.anchors, anchors], dim=1), torch.cat([self.contents, contents], dim=1)

    def hidden(self, num_queries: int) -> Tensor:
        """The self-attention's mask, (N + Q, N + Q) bool, True = hidden."""
        num_groups = self.objects.num_groups
        return hidden_from(num_groups, self.num_slots // num_groups, num_queries, self.anchors.device)

    def take_apart(self, predictions: Predictions) -> Predictions:
        """Predictions for slots and queries as those for queries, with `denoising` beside them."""
        logits, boxes = predictions.logits.tensor_split([self.num_slots], dim=2), predictions.boxes
        boxes = boxes.tensor_split([self.num_slots], dim=2)
        objects = self.objects
        denoised = Denoised(
            logits=logits[0],
            boxes=boxes[0],
            targets=objects.targets,
            # what is empty or negative DN leaves out, and DINO teaches to be nothing
            supervised=torch.ones_like(objects.occupied) if self.contrastive else objects.occupied,
            num_groups=objects.num_groups,
            per_process=not self.contrastive,
        )
        return Predictions(logits[1], boxes[1], predictions.encoder, denoised)


class DenoisingPart(nn.Module):
    """What a noised object is shown as: its label's embedding (C + 1 of them, the last of no class).

    With `indicator` (DN-DETR, not DINO) the last number of a content tells noised objects, 1, from queries, 0, and the
    embedding is one number narrower.
    """

    def __init__(self, settings: Denoising, num_classes: int, dim: int, indicator: bool, epsilon: float) -> None:
        super().__init__()
        self.settings, self.num_classes, self.indicator, self.epsilon = settings, num_classes, indicator, epsilon
        self.class_embedding = nn.Embedding(num_classes + 1, dim - indicator)

    def forward(self, targets: Sequence[Targets]) -> NoisedQueries:
        """The batch's noised objects as queries."""
        weight = self.class_embedding.weight
        objects = noise_objects(targets, self.settings, self.num_classes, like=weight.detach())
        # looked up also where there is no object at all, so that every process has its gradient
        contents = self.class_embedding(objects.labels)
        if self.indicator:
            contents = F.pad(contents, (0, 1), value=1.0)
        contents = contents * objects.occupied[..., None]
        return NoisedQueries(inverse_sigmoid(objects.boxes, self.epsilon), contents, objects, self.settings.contrastive)

    def no_class(self) -> Tensor:
        """The content (D,) that DN-DETR's queries start from: the embedding of no class, indicator 0."""
        return F.pad(self.class_embedding.weight[-1], (0, 1))
