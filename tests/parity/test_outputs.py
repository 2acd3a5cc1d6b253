"""The same numbers as Hugging Face's detectors, layer by layer, from the same weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from detrove.models import catalogue
from detrove.structures import ImageBatch

PUBLISHED = [
    "detr-r50",
    "detr-r50-dc5",
    "detr-r101",
    "deformable-r50",
    "deformable-refine-r50",
    "deformable-two-stage-r50",
    "conditional-r50",
    "conditional-r50-dc5",
    "dab-r50",
]


def in_order_of_cells(predictions):
    """Queries that the encoder proposed, by their cell: scores that differ by rounding only may change places."""
    if predictions.encoder is None:
        return predictions
    cells = predictions.encoder.logits[..., 0].topk(predictions.logits.shape[2], dim=1).indices
    order = cells.argsort(dim=1)[None, :, :, None].expand(len(predictions.logits), -1, -1, -1)
    return replace(
        predictions,
        logits=predictions.logits.take_along_dim(order, dim=2),
        boxes=predictions.boxes.take_along_dim(order, dim=2),
    )


@torch.no_grad()
def assert_equal_outputs(pair, images, tolerance=1e-4):
    pair.theirs.eval()
    pair.ours.eval()
    theirs, ours = in_order_of_cells(pair.their_predictions(images)), in_order_of_cells(pair.ours(images))
    assert ours.logits.shape == theirs.logits.shape
    assert ours.logits.std() > 0.1, "the comparison says nothing about constant logits"
    assert ours.boxes.std() > 0.01, "the comparison says nothing about constant boxes"
    torch.testing.assert_close(ours.logits, theirs.logits, rtol=0, atol=tolerance)
    torch.testing.assert_close(ours.boxes, theirs.boxes, rtol=0, atol=tolerance)
    assert (ours.encoder is None) == (theirs.encoder is None)
    if ours.encoder is not None:
        torch.testing.assert_close(ours.encoder.logits, theirs.encoder.logits, rtol=0, atol=tolerance)
        torch.testing.assert_close(ours.encoder.boxes, theirs.encoder.boxes, rtol=0, atol=tolerance)


def test_every_layer_on_a_padded_batch(pair_of, config, batch):
    pair = pair_of(config)
    assert_equal_outputs(pair, batch[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_preset_at_real_size(pair_of, with_their_epsilons, name):
    pair = pair_of(with_their_epsilons(catalogue.preset(name).config))
    picture = torch.randn(3, 800, 1066, generator=torch.Generator().manual_seed(0))
    images = ImageBatch.from_images([picture])
    assert_equal_outputs(pair, images)
