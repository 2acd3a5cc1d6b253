"""A toy detector and its catalogue: enough model to save, with prediction heads that share their weights."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from detrove.checkpoints import native
from detrove.models.preset import Preset
from detrove.structures import Preprocessing


@dataclass(frozen=True)
class ToyConfig:
    num_classes: int = 3
    width: int = 4
    tied: bool = True


class Toy(nn.Module):
    """A body, three class heads (the same one three times where tied) and a buffer."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.body = nn.Linear(2, config.width)
        heads = [nn.Linear(config.width, config.num_classes) for _ in range(3)]
        self.class_heads = nn.ModuleList([heads[0]] * 3 if config.tied else heads)
        self.register_buffer("steps", torch.arange(5))


PRESETS = {
    "toy": Preset(ToyConfig(num_classes=91), Preprocessing(longer=64)),
    "toy-wide": Preset(ToyConfig(num_classes=91, width=6), Preprocessing(longer=96)),
}


@pytest.fixture
def toy_catalogue(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    catalogue = SimpleNamespace(
        build=Toy,
        preset=PRESETS.__getitem__,
        preset_names=lambda: list(PRESETS),
        config_to_json=lambda config: {"detector": "toy", **dataclasses.asdict(config)},
        config_from_json=lambda values: ToyConfig(**{k: v for k, v in values.items() if k != "detector"}),
        Toy=Toy,
        ToyConfig=ToyConfig,
    )
    monkeypatch.setattr(native, "catalogue", catalogue)
    return catalogue
