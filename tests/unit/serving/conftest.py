"""Toy detectors in service, and pictures to send them."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from detrove.inference import Detector
from detrove.models import catalogue
from detrove.serving.application import make_app
from detrove.serving.limits import Limits
from detrove.structures import LabelMap, Preprocessing

SIZES = {"dim": 32, "num_heads": 2, "num_queries": 6, "num_encoder_layers": 1, "num_decoder_layers": 2}
STACKS = {
    "dim": 32,
    "num_queries": 6,
    "num_encoder_layers": (1, 1),
    "num_encoder_heads": (2, 2),
    "num_decoder_layers": (1, 1),
    "num_decoder_heads": (2, 2),
}


def toy_detector(name: str) -> Detector:
    """A random detector of two classes that shows everything it guesses; its heads do not start at zero."""
    torch.manual_seed(0)
    model = catalogue.create(name, num_classes=2, **(STACKS if name == "stacked-nano" else SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    labels = LabelMap.from_categories({3: "cell", 5: "debris"})
    return Detector(model, Preprocessing(longer=96), labels, torch.zeros(2), name)


def encoded(picture: Image.Image, form: str = "PNG", **options: object) -> bytes:
    """A picture as a file."""
    file = BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def detector() -> Detector:
    return toy_detector("dab-nano")


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (48, 64, 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def file(picture: Image.Image) -> bytes:
    return encoded(picture)


@pytest.fixture
def limits() -> Limits:
    return Limits(megabytes=0.5, megapixels=1.0, pictures=4, queue=8, requests=4, batch=3, seconds=20)


@pytest.fixture
def client(detector: Detector, limits: Limits) -> Iterator[TestClient]:
    with TestClient(make_app(detector, limits), raise_server_exceptions=False) as client:
        yield client
