"""Parameter counts: of the published detectors as in their checkpoints, of the small ones within their budget."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from detrove.models import catalogue

LAYOUTS = {
    "detr-r50": "detr",
    "detr-r50-dc5": "detr",
    "deformable-r50": "deformable",
    "deformable-refine-r50": "deformable-refine",
    "deformable-two-stage-r50": "deformable-two-stage",
    "conditional-r50": "conditional",
    "dab-r50": "dab",
    "dab-deformable-r50": "dab-deformable",
    "dino-r50": "dino",
    "stacked-r50": "sdetr",
}
BUFFERS = re.compile(r"backbone\.0\.body\..*(bn\d|downsample\.1)\.")
SECOND_NAMES = re.compile(r"transformer\.decoder\.(class|bbox)_embed\.")
SHARED_HEADS = re.compile(r"(class|bbox)_embed\.[1-9]\.")
NANO_BUDGET = 6_000_000


def count_parameters(name: str, trainable_only: bool = False) -> int:
    with torch.device("meta"):
        model = catalogue.build(catalogue.preset(name).config)
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


@pytest.mark.parametrize(("name", "layout"), LAYOUTS.items())
def test_published_presets_have_their_checkpoints_parameters(shared, name, layout):
    shapes = json.loads((shared / f"checkpoint-layouts/{layout}.json").read_text())
    shared_heads = name in ("deformable-r50", "dino-r50")
    expected = sum(
        math.prod(shape)
        for key, shape in shapes.items()
        if not BUFFERS.match(key) and not SECOND_NAMES.match(key) and not (shared_heads and SHARED_HEADS.match(key))
    )
    assert count_parameters(name) == expected


def test_trainable_parameters_of_detr_are_those_its_training_log_prints():
    assert count_parameters("detr-r50", trainable_only=True) == 41_302_368


def test_trainable_parameters_of_stacked_detr_are_the_published_ones():
    assert count_parameters("stacked-r50", trainable_only=True) == 41_590_880


@pytest.mark.parametrize("name", [name for name in catalogue.preset_names() if name.endswith("-nano")])
def test_nano_is_small(name):
    assert count_parameters(name) <= NANO_BUDGET
