"""Boxes through random changes, against a drawing: the rectangle is changed with the picture and found again there."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detrove.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detrove.data.dataset import Sample
from detrove.data.transforms import Augmentation, training_sample
from detrove.data.views import VISIBLE_AFTER_CROP
from detrove.structures import Preprocessing, Targets

TOLERANCE = 1.5


@st.composite
def drawings(draw: st.DrawFn) -> Sample:
    """A white rectangle on black, with its box."""
    width, height = draw(st.integers(20, 120)), draw(st.integers(20, 120))
    x1, y1 = draw(st.integers(0, width - 6)), draw(st.integers(0, height - 6))
    x2, y2 = draw(st.integers(x1 + 6, width)), draw(st.integers(y1 + 6, height))
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[y1:y2, x1:x2] = 255
    box = torch.tensor([[x1 / width, y1 / height, x2 / width, y2 / height]])
    return Sample(Image.fromarray(pixels), Targets(labels=torch.tensor([3]), boxes=xyxy_to_cxcywh(box)))


@settings(max_examples=200, deadline=None)
@given(
    sample=drawings(),
    seed=st.integers(0, 2**32 - 1),
    longer=st.integers(40, 200),
    crop=st.sampled_from([0.0, 1.0]),
    colour=st.sampled_from([0.0, 0.3]),
)
def test_the_box_is_where_the_rectangle_is(sample: Sample, seed: int, longer: int, crop: float, colour: float) -> None:
    preprocessing = Preprocessing(longer=longer, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    augmentation = Augmentation(0.5, 0.5, crop, (0.5, 1.0), colour)
    pixels, targets = training_sample(sample, preprocessing, augmentation, np.random.default_rng(seed))
    height, width = pixels.shape[1:]
    grey = pixels.mean(dim=0)
    bright = (grey > (grey.min() + grey.max()) / 2) if grey.max() - grey.min() > 0.2 else torch.ones_like(grey) > 0
    rows, columns = torch.where(bright.any(1))[0], torch.where(bright.any(0))[0]
    found = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
    assert pixels.shape[1:] <= (longer, longer)
    if not len(targets):
        seen = (found[2] - found[0]) * (found[3] - found[1])
        assert crop
        assert seen <= 1.3 * VISIBLE_AFTER_CROP * height * width
        return
    assert targets.labels.tolist() == [3]
    box = cxcywh_to_xyxy(targets.boxes)[0] * torch.tensor([width, height, width, height])
    # Enlarging or reducing moves an edge by half of the larger of the two pixels.
    scale = longer / max(sample.image.size) if not crop else longer / (max(sample.image.size) / 2)
    assert (box - found).abs().max() <= TOLERANCE * max(1.0, scale / 2)
