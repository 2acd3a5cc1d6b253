"""The official layouts: every key of every one is used or named as left out, and everything goes back the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detrove.checkpoints import official
from detrove.models import catalogue

LAYOUTS = {
    "detr": "detr-r50",
    "conditional": "conditional-r50",
    "dab": "dab-r50",
    "dab-deformable": "dab-deformable-r50",
    "deformable": "deformable-r50",
    "deformable-refine": "deformable-refine-r50",
    "deformable-two-stage": "deformable-two-stage-r50",
    "sdetr": "stacked-r50",
}
SECOND_NAMES = {"dab": 6, "dab-deformable": 36, "deformable-refine": 36, "deformable-two-stage": 56}


def shapes_of(shared: Path, layout: str) -> dict[str, list[int]]:
    return json.loads((shared / "checkpoint-layouts" / f"{layout}.json").read_text(encoding="utf-8"))


def random_file(shared: Path, layout: str) -> dict[str, Tensor]:
    """An official state dict: noise everywhere, equal wherever the official module holds one tensor twice."""
    torch.manual_seed(0)
    tensors = {key: torch.randn(shape) for key, shape in shapes_of(shared, layout).items()}
    for key in tensors:
        first = key.replace("transformer.decoder.bbox_embed", "bbox_embed")
        first = first.replace("transformer.decoder.class_embed", "class_embed")
        if layout == "deformable":
            first = re.sub(r"(class|bbox)_embed\.\d", r"\1_embed.0", first)
        tensors[key] = tensors[first]
    return tensors


@pytest.mark.parametrize(("layout", "preset"), LAYOUTS.items())
def test_every_key_of_the_official_files(shared: Path, layout: str, preset: str) -> None:
    tensors = random_file(shared, layout)
    checkpoint, report = official.import_with_report(tensors, "checkpoint.pth", preset)

    assert checkpoint.config == catalogue.config_to_json(catalogue.preset(preset).config)
    assert checkpoint.preprocessing == catalogue.preset(preset).preprocessing
    assert checkpoint.preset == preset
    with torch.device("meta"):
        model = catalogue.build(catalogue.preset(preset).config)
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in checkpoint.tensors.items()} == wanted
    assert len(report.matched) == len(wanted)
    assert {kind: len(keys) for kind, keys in report.dropped.items()} == (
        {official.SECOND_NAMES: SECOND_NAMES[layout]} if layout in SECOND_NAMES else {}
    )
    assert len(wanted) + SECOND_NAMES.get(layout, 0) == len(tensors)

    back = official.export_tensors(checkpoint)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)
