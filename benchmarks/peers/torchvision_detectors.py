"""RetinaNet and Faster R-CNN of torchvision on a feature pyramid over the shared trunk, and its SSDLite on the trunk.

Pyramid, heads, anchors and losses are torchvision's; RetinaNet as its second version has it (GroupNorm in the heads,
GIoU), SSDLite with the trunk's stride 8 too and the box sizes of torchvision's SSD300, for the sake of small objects.
Pictures come resized and normalised, so that torchvision's own resizing is left out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead, _extra_block, _normal_init
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from detrove.boxes import cxcywh_to_xyxy
from detrove.structures import Detections, ImageBatch, LabelMap, Preprocessing, Targets
from peers.training import Trunk

DIM = 256
LOWEST_SCORE, NUM_DETECTIONS = 0.001, 100
RATIOS = (0.5, 1.0, 2.0)
SSD_SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
SSDLITE_NORM = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)


class AsGiven(GeneralizedRCNNTransform):
    """Pictures are neither normalised nor resized again; torchvision's own switch for that works in training alone."""

    def __init__(self) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=[0.0] * 3, image_std=[1.0] * 3)

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Both as they are."""
        return image, target


class Pyramid(nn.Module):
    """The trunk and torchvision's feature pyramid on its strides 8, 16, 32, and coarser levels on top."""

    out_channels = DIM

    def __init__(self, trunk: Trunk, coarser: ExtraFPNBlock) -> None:
        super().__init__()
        self.trunk = trunk
        self.pyramid = FeaturePyramidNetwork(trunk.channels, DIM, coarser)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to maps (B, 256, h, w), finest first."""
        maps = self.trunk(pixels)
        return self.pyramid(OrderedDict((str(index), features) for index, features in enumerate(maps)))


class Levels(nn.Module):
    """The trunk's strides 8, 16, 32, and SSDLite's blocks for 64, 128 and 256."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk, coarser = trunk, (512, 256, 128)
        self.channels = [*trunk.channels, *coarser]
        steps = zip(self.channels[2:-1], coarser, strict=True)
        self.blocks = nn.ModuleList(_extra_block(narrow, wide, SSDLITE_NORM) for narrow, wide in steps)
        _normal_init(self.blocks)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) to maps (B, C, h, w), finest first."""
        maps = self.trunk(pixels)
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return OrderedDict((str(index), features) for index, features in enumerate(maps))


def retinanet(trunk: Trunk, num_classes: int) -> nn.Module:
    """Three sizes and three shapes of anchors at each cell of five levels."""
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
    norm = partial(nn.GroupNorm, 32)
    head = RetinaNetHead(DIM, anchors.num_anchors_per_location()[0], num_classes, norm_layer=norm)
    head.regression_head._loss_type = "giou"
    pyramid = Pyramid(trunk, LastLevelP6P7(DIM, DIM))
    options = {"score_thresh": LOWEST_SCORE, "detections_per_img": NUM_DETECTIONS}
    return RetinaNet(pyramid, num_classes, anchor_generator=anchors, head=head, **options)


def ssdlite(trunk: Trunk, num_classes: int) -> nn.Module:
    """Six shapes of boxes at each cell of six levels; blocks and heads are separable convolutions."""
    levels = Levels(trunk)
    boxes = DefaultBoxGenerator([[2, 3]] * len(levels.channels), scales=list(SSD_SCALES))
    head = SSDLiteHead(levels.channels, boxes.num_anchors_per_location(), num_classes + 1, SSDLITE_NORM)
    options = {"score_thresh": LOWEST_SCORE, "detections_per_img": NUM_DETECTIONS}
    return SSD(levels, boxes, (1, 1), num_classes + 1, head=head, **options)


def faster_rcnn(trunk: Trunk, num_classes: int) -> nn.Module:
    """One size and three shapes of anchors at each cell of four levels, and the box head on what they propose."""
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,)), (RATIOS,) * 4)
    options = {"box_score_thresh": LOWEST_SCORE, "box_detections_per_img": NUM_DETECTIONS}
    pyramid = Pyramid(trunk, LastLevelMaxPool())
    return FasterRCNN(pyramid, num_classes + 1, rpn_anchor_generator=anchors, **options)


DETECTORS: dict[str, Callable[[Trunk, int], nn.Module]] = {
    "retinanet": retinanet,
    "ssdlite": ssdlite,
    "faster-rcnn": faster_rcnn,
}


class TorchvisionPeer:
    """One of `DETECTORS` with random weights behind a trunk with weights."""

    clip_norm = 10.0  # torchvision's recipes do not clip; AdamW's first steps in a new head may need it

    def __init__(self, name: str, label_map: LabelMap, preprocessing: Preprocessing, weights: Path) -> None:
        self.preprocessing, self.label_map = preprocessing, label_map
        self.trunk = Trunk(weights)
        self.module = DETECTORS[name](self.trunk, len(label_map))
        self.module.transform = AsGiven()
        self.first_label = 0 if name == "retinanet" else 1  # the others' slot 0 is the background

    def loss(self, images: ImageBatch, targets: list[Targets]) -> Tensor:
        """The sum of the detector's own losses."""
        pictures, wanted = [], []
        for pixels, (height, width), target in zip(images.pixels, images.sizes.tolist(), targets, strict=True):
            pictures.append(pixels[:, :height, :width])
            boxes = cxcywh_to_xyxy(target.boxes) * torch.tensor([width, height, width, height])
            whole = (boxes[:, 2:] - boxes[:, :2] > 0.1).all(dim=1)  # torchvision refuses boxes of no size
            wanted.append({"boxes": boxes[whole], "labels": target.labels[whole] + self.first_label})
        return torch.stack(list(self.module(pictures, wanted).values())).sum()

    def detect(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        """After the detector's own suppression of overlapping boxes."""
        given = [self.preprocessing(picture) for picture in pictures]
        found = []
        for picture, pixels, answer in zip(pictures, given, self.module(given), strict=True):
            height, width = pixels.shape[1:]
            back = torch.tensor([picture.width / width, picture.height / height] * 2)
            boxes, scores, labels = answer["boxes"] * back, answer["scores"], answer["labels"] - self.first_label
            order = scores.argsort(descending=True, stable=True)[:NUM_DETECTIONS]
            found.append(Detections(boxes[order], scores[order], labels[order], self.label_map))
        return found
