from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detrove.data import open_dataset
from detrove.data.scenes import make_scenes
from detrove.nn.backbone import Backbone
from detrove.structures import Preprocessing
from detrove.training.trunk_warmup import FINAL_RATE, RISE, rate, warm_up_trunk

pytestmark = pytest.mark.slow


def test_the_rate_rises_and_falls_to_a_tenth() -> None:
    assert rate(0.0, 0) == pytest.approx(1 / RISE)
    assert rate(0.0, RISE) == 1.0
    assert rate(1.0, 1000) == pytest.approx(FINAL_RATE)
    assert rate(0.3, 1000) > rate(0.6, 1000)


def test_the_trunk_learns_and_the_same_seed_learns_the_same(tmp_path: Path) -> None:
    dataset = open_dataset(make_scenes(tmp_path / "scenes", {"train": 12, "val": 1}), "train")
    weights, accuracies = [], []
    for _ in range(2):
        torch.manual_seed(0)
        backbone = Backbone("mobilenetv4_conv_small_035", (8, 16, 32), frozen=False)
        before = {name: value.clone() for name, value in backbone.state_dict().items()}
        heard: list[float] = []
        warm_up_trunk(
            backbone,
            dataset,
            Preprocessing(),
            3,
            lambda step: step / 24,
            lambda _, accuracy, heard=heard: heard.append(accuracy),
        )
        assert len(heard) == 24
        assert any(not torch.equal(before[name], value) for name, value in backbone.state_dict().items())
        weights.append(backbone.state_dict())
        accuracies.append(heard[-1])
    assert accuracies[0] == accuracies[1] > 1 / 6
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
