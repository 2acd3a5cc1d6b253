"""Every detector learns four real pictures by heart: the proof that its parts pull in one direction.

The trunk has real ImageNet weights and stays fixed, so its maps are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detrove.boxes import cxcywh_to_xyxy, iou_xyxy
from detrove.data import open_dataset
from detrove.data.batching import collate
from detrove.data.transforms import evaluation_sample
from detrove.evaluation import coco_metrics
from detrove.inference.postprocess import postprocess
from detrove.losses import match
from detrove.models import catalogue, conditional, dab, dab_deformable, deformable, detr, detrove, dino, stacked
from detrove.models.denoising import Denoising
from detrove.nn.backbone import Backbone, Level
from detrove.structures import ImageBatch, LabelMap, Preprocessing, Targets

PICTURES = (86, 136, 599, 157206)
"""Of coco-mini: 3, 4, 5 and 6 objects of nine classes; two landscapes, two portraits."""

TOY = {
    "num_classes": 80,
    "num_queries": 25,
    "backbone": "mobilenetv2_100",
    "dim": 64,
    "num_heads": 4,
    "feedforward_dim": 128,
    "num_encoder_layers": 1,
    "num_decoder_layers": 2,
    "dropout": 0.0,
}
STACKS = {
    **{key: value for key, value in TOY.items() if not key.startswith(("num_heads", "num_encoder", "num_decoder"))},
    "num_encoder_layers": (1, 1),
    "num_encoder_heads": (4, 1),
    "num_decoder_layers": (1, 1),
    "num_decoder_heads": (4, 4),
}
FORMS = {
    "detr": replace(detr.Config(), **TOY),
    "detr-dc5": replace(detr.Config(), **TOY, dilation=True),
    "deformable": replace(deformable.Config(), **TOY),
    "deformable-single-scale": replace(deformable.Config(), **TOY, strides=(32,), num_levels=1),
    "deformable-refine": replace(deformable.Config(), **TOY, refine=True),
    "deformable-two-stage": replace(deformable.Config(), **TOY, refine=True, two_stage=True),
    "conditional": replace(conditional.Config(), **TOY),
    "dab": replace(dab.Config(), **TOY),
    "dab-patterns": replace(dab.Config(), **TOY, num_patterns=3, random_xy=True),
    "dab-two-coordinates": replace(dab.Config(), **TOY, num_coordinates=2, modulate=False),
    "dab-deformable": replace(dab_deformable.Config(), **TOY),
    "dn-dab": replace(dab.Config(), **TOY, denoising=Denoising()),
    "dn-dab-deformable": replace(dab_deformable.Config(), **TOY, denoising=Denoising()),
    "dino": replace(dino.Config(), **TOY),
    "stacked": replace(stacked.Config(), **STACKS),
    "detrove": replace(detrove.Config(), **TOY),
}
MAX_STEPS, CHECK_EVERY, LEARNING_RATE = 600, 25, 1e-3
GOAL_AP50, GOAL_IOU = 0.95, 0.8


class Remembered(nn.Module):
    """Stands for the trunk: the levels that it gave once."""

    def __init__(self, backbone: Backbone, images: ImageBatch) -> None:
        super().__init__()
        with torch.no_grad():
            self.levels = backbone.eval()(images)

    def forward(self, images: ImageBatch) -> list[Level]:
        """The levels, whatever the pictures."""
        return self.levels


@pytest.fixture(scope="module")
def lesson(shared) -> tuple[ImageBatch, list[Targets], dict[str, Any], LabelMap]:
    """The four pictures as a batch, their objects, their COCO ground truth and the label map."""
    dataset = open_dataset(shared / "data/coco-mini", "train")
    chosen = [index for index, record in enumerate(dataset.records) if record.image_id in PICTURES]
    images, targets = collate([evaluation_sample(dataset[index], Preprocessing(longer=192)) for index in chosen])
    truth = dataset.ground_truth()
    for part, key in (("images", "id"), ("annotations", "image_id")):
        truth[part] = [entry for entry in truth[part] if entry[key] in PICTURES]
    return images, targets, truth, dataset.label_map


@torch.no_grad()
def grade(
    model: nn.Module, images: ImageBatch, targets: Sequence[Targets], truth: dict[str, Any], label_map: LabelMap
) -> tuple[float, float]:
    """AP50 as users measure it, and the mean IoU of the boxes that the last layer's queries give their objects."""
    predictions = model.eval()(images)
    config = model.config
    sizes = [target.original_size for target in targets]
    found = postprocess(predictions, sizes, label_map, config.scores, config.num_detections)
    results = [entry for one, target in zip(found, targets, strict=True) for entry in one.to_coco(target.image_id)]
    matches = match(predictions.logits[-1:], predictions.boxes[-1:], targets, catalogue.criterion_for(model).cost)
    boxes = predictions.boxes[-1, matches.picture[0], matches.query[0]]
    goals = torch.cat([target.boxes for target in targets])[matches.position[0]]
    iou = iou_xyxy(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(goals)).mean().item()
    return coco_metrics(truth, results)["ap50"], iou


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_four_pictures_by_heart(form: str, lesson, shared: Path):
    images, targets, *_ = lesson
    ap50 = iou = 0.0
    torch.manual_seed(0)
    model = catalogue.build(FORMS[form])
    model.backbone.load(shared / "weights/mobilenetv2_100.imagenet.safetensors")
    model.backbone = Remembered(model.backbone, images)
    criterion = catalogue.criterion_for(model)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    for step in range(1, MAX_STEPS + 1):
        model.train()
        loss = criterion.total(criterion(model(images, targets), targets))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % CHECK_EVERY == 0:
            ap50, iou = grade(model, *lesson)
            if ap50 >= GOAL_AP50 and iou >= GOAL_IOU:
                return
    pytest.fail(f"not learned in {MAX_STEPS} steps: AP50 {ap50:.3f}, mean IoU {iou:.3f}")
