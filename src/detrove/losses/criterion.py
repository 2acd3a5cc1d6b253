"""What training minimises: every decoder layer matched to the objects and compared with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from detrove.boxes import cxcywh_to_xyxy, iou_xyxy
from detrove.losses.matcher import MatchCost, Matches, match, match_several
from detrove.losses.terms import box_losses, focal_class_loss, quality_class_loss, softmax_class_loss
from detrove.structures import Denoised, Predictions, Proposals, Targets

CLASS_LOSSES = ("softmax", "focal", "quality")


@dataclass(frozen=True)
class Criterion:
    """Named, unweighted loss terms of all decoder layers, and their weighted sum.

    `class_loss` is "softmax" (DETR), "focal" (the rest of the family) or "quality" (detrove's own).
    `encoder_classes` says what a two-stage encoder's proposals are taught: "none", "objectness" (every label set to 0,
    Deformable DETR) or "true"; `cells_per_object` above 1 gives each object that many of them instead of one.
    """

    cost: MatchCost
    class_loss: str
    weights: Mapping[str, float]
    no_object_weight: float = 0.1
    encoder_classes: str = "none"
    cells_per_object: int = 1

    def __post_init__(self) -> None:
        if self.class_loss not in CLASS_LOSSES:
            raise ValueError(f"class_loss {self.class_loss!r} is none of {', '.join(CLASS_LOSSES)}")

    def __call__(
        self, predictions: Predictions, targets: Sequence[Targets], num_boxes: float | None = None
    ) -> dict[str, Tensor]:
        """`class`, `box`, `giou`, each (L,); with an encoder's proposals also `encoder_class`, … each (1,).

        With noised objects, as in training with denoising, also `denoising_class`, … each (L,). `num_boxes` is what
        box and focal terms are divided by, where these pictures are only a part of a step's; by default `count_boxes`.
        What is a mean over queries (softmax) or over a process's own noised objects (DN-DETR) is so over these pictures
        alone; so is how many cells an object has got, where it may take several.
        """
        num_boxes = count_boxes(targets) if num_boxes is None else num_boxes
        matches = match(predictions.logits, predictions.boxes, targets, self.cost)
        losses = self._compare(predictions.logits, predictions.boxes, targets, matches, num_boxes)
        if predictions.denoising is not None:
            restored = self._compare_denoised(predictions.denoising, targets, num_boxes)
            losses |= {f"denoising_{name}": value for name, value in restored.items()}
        if predictions.encoder is not None and self.encoder_classes != "none":
            if self.encoder_classes == "objectness":
                targets = [dataclasses.replace(t, labels=torch.zeros_like(t.labels)) for t in targets]
            encoder = self._compare_proposals(predictions.encoder, targets, num_boxes)
            losses |= {f"encoder_{name}": value for name, value in encoder.items()}
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum over terms and layers: a scalar. A part's terms weigh as the term they are named after."""
        weighted = [self.weights[name.rpartition("_")[2]] * value.sum() for name, value in losses.items()]
        return torch.stack(weighted).sum()

    def _compare_proposals(
        self, proposals: Proposals, targets: Sequence[Targets], num_boxes: float
    ) -> dict[str, Tensor]:
        logits, boxes = proposals.logits[None], proposals.boxes[None]
        if self.cells_per_object == 1:
            matches = match(logits, boxes, targets, self.cost)
            return self._compare(logits, boxes, targets, matches, num_boxes)
        matches = match_several(logits, boxes, targets, self.cost, self.cells_per_object)
        # As many cells as an object of these pictures has got, since neighbours compete; times the objects of the step.
        num_objects = sum(len(target) for target in targets)
        each = matches.query.shape[1] / num_objects if num_objects else self.cells_per_object
        return self._compare(logits, boxes, targets, matches, num_boxes * each)

    def _compare_denoised(self, denoised: Denoised, targets: Sequence[Targets], num_boxes: float) -> dict[str, Tensor]:
        """The slots that count, as those of one picture: which object each restores is known."""
        counts = torch.tensor([len(target) for target in targets], device=denoised.targets.device)
        first = counts.cumsum(0) - counts
        counted = denoised.supervised
        logits, boxes = denoised.logits[:, counted][:, None], denoised.boxes[:, counted][:, None]
        target = denoised.targets[counted]
        slot = (target >= 0).nonzero()[:, 0]
        position = (denoised.targets + first[:, None])[counted][slot]
        pairs = (torch.zeros_like(slot), slot, target[slot], position)
        matches = Matches(*(x.expand(len(logits), -1) for x in pairs))
        if denoised.per_process:
            num_boxes = max(float(counts.sum()), 1.0)
        return self._compare(logits, boxes, targets, matches, num_boxes * denoised.num_groups)

    def _compare(
        self, logits: Tensor, boxes: Tensor, targets: Sequence[Targets], matches: Matches, divisor: float
    ) -> dict[str, Tensor]:
        true_boxes = torch.cat([target.boxes for target in targets]).to(boxes)[matches.position]
        true_labels = torch.cat([target.labels for target in targets]).to(logits.device)[matches.position]
        matched_boxes = boxes[matches.layer, matches.picture, matches.query]
        box, giou = box_losses(matched_boxes, true_boxes, divisor, self.cost.giou_epsilon)
        class_term = self._class_term(logits, matches, true_labels, matched_boxes, true_boxes, divisor)
        return {"class": class_term, "box": box, "giou": giou}

    def _class_term(
        self,
        logits: Tensor,
        matches: Matches,
        true_labels: Tensor,
        matched_boxes: Tensor,
        true_boxes: Tensor,
        divisor: float,
    ) -> Tensor:
        if self.class_loss == "softmax":
            classes = torch.full(logits.shape[:3], logits.shape[-1] - 1, device=logits.device)
            classes[matches.layer, matches.picture, matches.query] = true_labels
            return softmax_class_loss(logits, classes, self.no_object_weight)
        quality = torch.zeros_like(logits)
        index = (matches.layer, matches.picture, matches.query, true_labels)
        if self.class_loss == "focal":
            quality[index] = 1.0
            return focal_class_loss(logits, quality, divisor)
        iou = iou_xyxy(cxcywh_to_xyxy(matched_boxes.detach()), cxcywh_to_xyxy(true_boxes))
        quality[index] = iou.clamp(min=1e-4).to(quality.dtype)
        return quality_class_loss(logits, quality, divisor)


def count_boxes(targets: Sequence[Targets]) -> float:
    """max(objects in all processes / number of processes, 1), the divisor of the box and focal terms."""
    count = sum(len(target) for target in targets)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
        total = torch.tensor(float(count), device=device)
        torch.distributed.all_reduce(total)
        return max(total.item() / torch.distributed.get_world_size(), 1.0)
    return max(float(count), 1.0)
