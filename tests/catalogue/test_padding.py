"""Padding beside a picture changes nothing of what a detector says about it: exactly so behind the convolutions.

The trunk's convolutions, and those that make or mix levels, cannot be told what is padding: next to the border they see
zeros of the batch where a lone picture ends, and after a norm with a bias those are no longer zeros. So the outermost
cells differ a little between a picture alone and in a padded batch, in every DETR. Group norms count padding too, in
all but ours, whose pyramid of convolutions is held to be exact as well (`nn/padding.py`). What comes after (masks,
positions, valid ratios, references, attention) is held to be exact: the levels are given here, with noise in the
padding.

Two detectors answer differently beside padding, officially and therefore here: DAB-Deformable-DETR and DINO compute a
query's position from its anchor **in the padded picture**. There, that one embedding is taken away and all else held.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrove.models.dab_deformable import DABDeformableDETR
from detrove.models.dino import DINO
from detrove.nn.backbone import Level, resize_mask
from detrove.structures import ImageBatch

SIZES = [(128, 64), (64, 192), (128, 192)]


class GivenLevels(nn.Module):
    """Stands for the trunk: the pictures' own features, noise in the padding."""

    def __init__(self, channels: list[int], strides: list[int], pictures: list[int]) -> None:
        super().__init__()
        self.channels, self.strides, self.pictures = channels, strides, pictures

    def forward(self, images: ImageBatch) -> list[Level]:
        levels = []
        height, width = images.pixels.shape[-2:]
        for channels, stride in zip(self.channels, self.strides, strict=True):
            features = torch.randn(len(images), channels, height // stride, width // stride)
            for index, picture in enumerate(self.pictures):
                rows, columns = (side // stride for side in SIZES[picture])
                generator = torch.Generator().manual_seed(100 * picture + stride)
                features[index, :, :rows, :columns] = torch.randn(channels, rows, columns, generator=generator)
            levels.append(Level(features, resize_mask(images.padding_mask, features.shape[-2:])))
        return levels


class Unchanged(nn.Module):
    """Stands for the parts that convolve levels."""

    def forward(self, levels, *_):
        return levels


class Nowhere(nn.Module):
    """Stands for the embedding of a query's position: the same for all."""

    def forward(self, sines):
        return torch.zeros_like(sines[..., : sines.shape[-1] // 2])


def with_given_levels(model, pictures):
    if isinstance(model, (DABDeformableDETR, DINO)):
        model.position_head = Nowhere()
    if hasattr(model, "levels"):
        strides = list(getattr(model.config, "strides", (8, 16, 32)))
        strides += [64] * (model.config.num_levels - len(strides))
        model.backbone = GivenLevels([model.config.dim] * len(strides), strides, pictures)
        model.levels = Unchanged()
    elif hasattr(model, "stacks"):
        strides = list(model.config.strides)
        model.backbone = GivenLevels([{16: 256, 32: 512}[stride] for stride in strides], strides, pictures)
    else:
        stride = 16 if model.config.dilation else 32
        model.backbone = GivenLevels([512], [stride], pictures)
    if getattr(model, "proposals", None) is not None:
        keep_padding_unchosen(model.proposals, model.class_heads[-1].weight[:1])
    if isinstance(model, DINO):
        keep_padding_unchosen(model.selection, model.selection.class_head.weight)
    return model.eval()


@torch.no_grad()
def keep_padding_unchosen(stage, scores):
    """Cells that do not count score alike and may be chosen, as in the official code: here they score low.

    `scores` (N, D) are the rows of the class head by which the stage chooses.
    """
    alike = stage.token_norm(stage.token_projection.bias)
    scores -= (scores @ alike + 3)[:, None] * alike / (alike @ alike)


@pytest.mark.parametrize("picture", range(len(SIZES)))
def test_alone_and_in_a_padded_batch(model, picture):
    model = with_given_levels(model, list(range(len(SIZES))))
    together = model(ImageBatch.from_images([torch.zeros(3, *size) for size in SIZES]))
    model.backbone.pictures = [picture]
    alone = model(ImageBatch.from_images([torch.zeros(3, *SIZES[picture])]))
    torch.testing.assert_close(together.logits[:, picture], alone.logits[:, 0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together.boxes[:, picture], alone.boxes[:, 0], rtol=1e-3, atol=1e-4)
