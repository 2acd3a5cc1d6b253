"""Toy detectors of the family, all of whose parameters count; small data sets and trainings of seconds."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.data.scenes import make_scenes
from detrove.inference import Detector
from detrove.models import catalogue
from detrove.structures import LabelMap, Preprocessing
from detrove.study import arm_process, arms

TOY = {"backbone": "test_resnet", "num_queries": 7, "dim": 32, "feedforward_dim": 24}


@pytest.fixture
def toy_detector() -> Callable[..., Detector]:
    """A random detector of two classes by its catalogue name, seeing pictures at 96 pixels; settings as keywords."""

    def make(name: str, **settings: Any) -> Detector:
        torch.manual_seed(0)
        if not name.startswith("stacked"):
            settings = {"num_encoder_layers": 2, "num_decoder_layers": 2, "num_heads": 4, **settings}
        model = catalogue.create(name, num_classes=2, **{**TOY, **settings})
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1 or not parameter.any():
                    parameter.add_(0.2 * torch.randn_like(parameter))
        labels = LabelMap.from_categories({3: "cell", 5: "debris"})
        return Detector(model.eval(), Preprocessing(longer=96), labels, torch.zeros(2), name)

    return make


@pytest.fixture
def picture() -> Image.Image:
    """Noise, 128 by 96 pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of generated scenes: 8 pictures to train on, 5 to validate on."""
    return make_scenes(tmp_path_factory.mktemp("data") / "scenes", {"train": 8, "val": 5, "test": 1})


TINY = {
    "model.backbone": "test_resnet",
    "model.num_queries": 8,
    "model.dim": 16,
    "model.num_heads": 2,
    "model.feedforward_dim": 16,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "workers": 0,
}


@pytest.fixture(scope="session")
def tiny() -> dict[str, Any]:
    """Options with which `compare` trains a toy in a moment."""
    return {
        "epochs": 1,
        "size": 64,
        "batch_size": 4,
        "backbone_weights": None,
        "settings": TINY,
        "seconds": 0.01,
        "progress": False,
    }


class OpenInput(io.StringIO):
    """A standard input that nobody writes to and nobody closes, or that `close_now` closes."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.writing = os.pipe()

    def fileno(self) -> int:
        return self.reading

    def close_now(self) -> None:
        os.close(self.writing)


@pytest.fixture
def open_input(monkeypatch: pytest.MonkeyPatch) -> OpenInput:
    """Stands in for this process's standard input."""
    stand_in = OpenInput()
    monkeypatch.setattr("sys.stdin", stand_in)
    return stand_in


@pytest.fixture
def arms_here(monkeypatch: pytest.MonkeyPatch, open_input: OpenInput) -> list[str]:
    """Arms run in this process, which is sooner; gives the keys of those that ran."""
    ran: list[str] = []

    def run_here(command: list[str]) -> int:
        ran.append(Path(command[3]).stem)
        return arm_process.main(command[3:])

    monkeypatch.setattr(arms, "run_process", run_here)
    return ran
