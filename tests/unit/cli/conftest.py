"""Weights of a toy detector, pictures, and a way to run the command line within the process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.checkpoints import save
from detrove.cli.main import run
from detrove.inference import Detector
from detrove.models import catalogue
from detrove.structures import LabelMap, Preprocessing


@dataclass
class Answer:
    """What a command line answered."""

    status: int
    out: str
    err: str


@pytest.fixture
def detrove_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def command(*arguments: object) -> Answer:
        capsys.readouterr()
        status = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Answer(status, captured.out, captured.err)

    return command


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random detector of two classes that shows everything it guesses."""
    torch.manual_seed(0)
    model = catalogue.create(
        "detr-nano", num_classes=2, num_queries=6, dim=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1
    )
    labels = LabelMap.from_categories({3: "cell", 5: "debris"})
    detector = Detector(model, Preprocessing(longer=64), labels, torch.zeros(2), "detr-nano")
    return save(detector, tmp_path_factory.mktemp("weights") / "toy.safetensors")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, height, width in (("a.jpg", 40, 60), ("b.png", 64, 32), ("c.jpg", 50, 50)):
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def labelled(detrove_command: Callable, weights: Path, photos: Path, tmp_path: Path) -> Path:
    """What the detector itself finds, as the truth: measured on it, it is perfect."""
    detrove_command("predict", weights, photos, "--output", tmp_path / "found", "--save", "coco-labels")
    return tmp_path / "found" / "coco-labels"
