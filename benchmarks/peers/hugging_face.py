"""DAB-DETR and Deformable DETR of Hugging Face's transformers, as their configurations have them by default.

They differ from the default in the trunk, in that every decoder layer is supervised (`auxiliary_loss`), as in the
papers, and "deformable-two-stage" in `with_box_refine` and `two_stage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import (
    DabDetrConfig,
    DabDetrForObjectDetection,
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
)

from detrove.inference.postprocess import postprocess
from detrove.structures import Detections, ImageBatch, LabelMap, Predictions, Preprocessing, Targets
from peers.training import TRUNK, Trunk

NUM_DETECTIONS = 100
REFINED = {"with_box_refine": True, "two_stage": True}
DETECTORS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "dab": (DabDetrConfig, DabDetrForObjectDetection, {}),
    "deformable": (DeformableDetrConfig, DeformableDetrForObjectDetection, {}),
    "deformable-two-stage": (DeformableDetrConfig, DeformableDetrForObjectDetection, REFINED),
}
"""Config, model, and what is set otherwise than by default."""


class HuggingFacePeer:
    """One of `DETECTORS` with random weights behind a trunk with weights."""

    clip_norm = 0.1  # as in the papers

    def __init__(self, name: str, label_map: LabelMap, preprocessing: Preprocessing, weights: Path) -> None:
        configuration, detector, options = DETECTORS[name]
        self.preprocessing, self.label_map = preprocessing, label_map
        self.module = detector(
            configuration(
                backbone=TRUNK, use_timm_backbone=True, num_labels=len(label_map), auxiliary_loss=True, **options
            )
        )
        self.trunk = put_trunk(self.module, weights)

    def loss(self, images: ImageBatch, targets: list[Targets]) -> Tensor:
        """The model's own weighted sum."""
        labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
        return self._ask(images, labels=labels).loss

    def detect(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        """Every query and class is a candidate, as in both official codes."""
        images = ImageBatch.from_images([self.preprocessing(picture) for picture in pictures])
        answer = self._ask(images)
        predictions = Predictions(answer.logits[None], answer.pred_boxes[None])
        sizes = [(picture.height, picture.width) for picture in pictures]
        return postprocess(predictions, sizes, self.label_map, "sigmoid", NUM_DETECTIONS)

    def _ask(self, images: ImageBatch, **labels: Any) -> Any:
        return self.module(pixel_values=images.pixels, pixel_mask=(~images.padding_mask).long(), **labels)


def put_trunk(module: Any, weights: Path) -> Trunk:
    """Put a trunk with its weights, and its activations, in the place of the detector's own; the new trunk."""
    backbone = module.model.backbone
    encoder = getattr(backbone, "conv_encoder", backbone)
    wrapped = hasattr(encoder.model, "_backbone")
    own = encoder.model._backbone if wrapped else encoder.model
    trunk = Trunk(weights, tuple(own.feature_info.reduction()))
    if wrapped:
        encoder.model._backbone = trunk
    else:
        encoder.model = trunk
    return trunk
