"""Toy detectors of the family, all of whose parameters count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.inference import Detector
from detrove.models import catalogue
from detrove.structures import LabelMap, Preprocessing

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
