"""Every detector of the catalogue at toy size."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from detrove.models import catalogue, conditional, dab, dab_deformable, deformable, detr, detrove, dino, stacked
from detrove.models.denoising import Denoising
from detrove.structures import ImageBatch, Targets

TOY = {
    "num_classes": 4,
    "num_queries": 11,
    "backbone": "resnet18",
    "dim": 64,
    "num_heads": 4,
    "feedforward_dim": 96,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
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
    "detr-norm-first": replace(detr.Config(), **TOY, norm_first=True),
    "deformable": replace(deformable.Config(), **TOY),
    "deformable-single-scale": replace(deformable.Config(), **TOY, strides=(32,), num_levels=1),
    "deformable-refine": replace(deformable.Config(), **TOY, refine=True),
    "deformable-two-stage": replace(deformable.Config(), **TOY, refine=True, two_stage=True),
    "conditional": replace(conditional.Config(), **TOY),
    "dab": replace(dab.Config(), **TOY),
    "dab-two-coordinates": replace(dab.Config(), **TOY, num_coordinates=2, modulate=False),
    "dab-patterns": replace(dab.Config(), **TOY, num_patterns=2, random_xy=True),
    "dn-dab": replace(dab.Config(), **TOY, denoising=Denoising(groups=3)),
    "dn-dab-patterns": replace(dab.Config(), **TOY, num_patterns=2, denoising=Denoising(groups=1)),
    "dn-dab-contrastive": replace(dab.Config(), **TOY, denoising=Denoising(contrastive=True, num_queries=8)),
    "dab-deformable": replace(dab_deformable.Config(), **TOY),
    "dn-dab-deformable": replace(dab_deformable.Config(), **TOY, denoising=Denoising()),
    "dab-deformable-patterns": replace(dab_deformable.Config(), **TOY, num_patterns=2, random_xy=True),
    "dino": replace(dino.Config(), **TOY),
    "dino-stride-4": replace(dino.Config(), **TOY, strides=(4, 8, 16, 32), num_levels=5),
    "dino-without-denoising": replace(dino.Config(), **TOY, denoising=None),
    "stacked": replace(stacked.Config(), **STACKS),
    "stacked-otherwise": replace(stacked.Config(), **STACKS | {"strides": (16, 32)}, share_heads=False, content="zero"),
    "detrove": replace(detrove.Config(), **TOY),
}


@pytest.fixture(scope="module", params=FORMS)
def config(request: pytest.FixtureRequest) -> Any:
    """The toy config of every form of every detector."""
    return FORMS[request.param]


@pytest.fixture(scope="module")
def made(config: Any) -> tuple[nn.Module, torch.Tensor]:
    """The toy detector, all of whose parameters count: heads that start at zero are moved; and the random state."""
    torch.manual_seed(0)
    model = catalogue.build(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 or not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model, torch.get_rng_state()


@pytest.fixture
def model(made: tuple[nn.Module, torch.Tensor]) -> nn.Module:
    """A copy of the toy detector for each test, which draws at random as if it had made it."""
    torch.set_rng_state(made[1])
    return copy.deepcopy(made[0])


@pytest.fixture
def images() -> ImageBatch:
    """Three pictures of different sizes."""
    generator = torch.Generator().manual_seed(1)
    return ImageBatch.from_images(
        [torch.randn(3, *size, generator=generator) for size in [(64, 96), (90, 61), (32, 40)]]
    )


@pytest.fixture
def targets() -> list[Targets]:
    """Their objects: two, none, one."""
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.2], [0.5, 0.5, 0.9, 0.8]])
    labels = torch.tensor([1, 3, 0])
    return [Targets(labels[:2], boxes[:2]), Targets(labels[:0], boxes[:0]), Targets(labels[2:], boxes[2:])]
