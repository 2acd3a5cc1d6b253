"""Toy presets, and files as the official codes write them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detrove.models import catalogue
from detrove.models.preset import Preset
from detrove.structures import Preprocessing


@pytest.fixture
def toy_presets(monkeypatch: pytest.MonkeyPatch) -> dict[str, Preset]:
    """Stands two toy DETRs in the catalogue in place of the published ones; their weights have the same shapes."""
    detr = catalogue.DETECTORS["detr"]
    config = detr.Config(
        backbone="test_resnet",
        num_queries=5,
        dim=32,
        num_heads=2,
        feedforward_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
    )
    presets = {
        "detr-toy": Preset(config, Preprocessing(longer=64)),
        "detr-toy-dc5": Preset(replace(config, dilation=True), Preprocessing(longer=96)),
    }
    monkeypatch.setattr(detr, "PRESETS", presets)
    monkeypatch.setattr(catalogue, "PRESETS", {**catalogue.PRESETS, **presets})
    return presets


@pytest.fixture
def official_file(toy_presets: dict[str, Preset]) -> Callable[..., Path]:
    """Writes a toy DETR as the official training does: its state dict beside what else it keeps."""
    from detrove.checkpoints import Checkpoint
    from detrove.checkpoints.official import export_tensors
    from detrove.structures import LabelMap

    def write(path: Path, num_classes: int = 91, seed: int = 0, **arguments: Any) -> Path:
        torch.manual_seed(seed)
        config = replace(toy_presets["detr-toy"].config, num_classes=num_classes)
        checkpoint = Checkpoint(
            tensors=dict(catalogue.build(config).state_dict()),
            config=catalogue.config_to_json(config),
            label_map=LabelMap.numbered(num_classes),
            preprocessing=Preprocessing(),
            thresholds=None,
            preset=None,
            training={},
            detrove_version="0",
            source=Path("toy"),
        )
        content: dict[str, Any] = {"model": export_tensors(checkpoint), "epoch": 3}
        if arguments:
            content["args"] = Namespace(**arguments)
        torch.save(content, path)
        return path

    return write
