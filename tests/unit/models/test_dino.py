"""DINO: which tokens become anchors, who hears of which loss; noised objects change no answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from detrove.errors import InputError
from detrove.models import catalogue, dino
from detrove.models.facts import count_multiply_adds
from detrove.nn.references import initial_proposals
from detrove.structures import ImageBatch, Targets

SMALL = {
    "backbone": "resnet18",
    "dim": 32,
    "num_heads": 4,
    "feedforward_dim": 48,
    "num_classes": 3,
    "num_queries": 5,
    "num_encoder_layers": 1,
    "num_decoder_layers": 3,
}


def build(**settings):
    torch.manual_seed(0)
    model = catalogue.build(replace(dino.Config(), **{**SMALL, **settings})).double().eval()
    for head in (model.box_heads[0], model.selection.box_head):
        nn.init.normal_(head.last.weight, std=0.1)
    return model


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return ImageBatch.from_images(
        [torch.randn(3, *size, generator=generator, dtype=torch.float64) for size in [(64, 64), (64, 40)]]
    )


@pytest.fixture
def targets():
    """Two objects and none."""
    boxes = torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.2]], dtype=torch.float64)
    labels = torch.tensor([1, 2])
    return [Targets(labels, boxes), Targets(labels[:0], boxes[:0])]


def test_the_tokens_of_the_best_class_propose():
    """Token by token, picture by picture, against the definition."""
    selection = build().selection
    masks = [torch.zeros(2, 4, 4, dtype=torch.bool), torch.zeros(2, 2, 2, dtype=torch.bool)]
    masks[0][1, :, 2:] = masks[1][1, :, 1:] = True
    memory = torch.randn(2, 20, 32, dtype=torch.float64)
    proposals, anchors = selection(memory, masks)
    assert not anchors.requires_grad
    assert proposals.boxes.requires_grad
    start, valid = initial_proposals(masks, torch.float64)
    for picture in range(2):
        scored = []
        for token in range(20):
            seen = memory[picture, token] * valid[picture, token]
            seen = selection.token_norm(selection.token_projection(seen))
            logits = selection.class_head(seen)
            scored.append((logits.max().item(), token, logits, selection.box_head(seen) + start[picture, token]))
        scored.sort(key=lambda each: (-each[0], each[1]))
        for rank in range(3):  # beyond, cells that do not count may tie
            _, _, logits, box = scored[rank]
            torch.testing.assert_close(proposals.logits[picture, rank], logits)
            torch.testing.assert_close(anchors[picture, rank], box)
            torch.testing.assert_close(proposals.boxes[picture, rank], box.sigmoid())


def test_contents_belong_to_ranks(images):
    """The same contents for every picture, whatever was chosen."""
    model = build()
    seen = []
    model.decoder[0].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model(images)
    assert torch.equal(seen[0], model.contents.expand(2, -1, -1))


def test_fewer_tokens_than_queries(images, targets):
    """64 + 16 + 4 + 1 of them, with noised objects before them or not."""
    model = build(num_queries=100)
    assert model(images).logits.shape == (3, 2, 85, 3)
    predictions = model.train()(images, targets)
    assert predictions.logits.shape == (3, 2, 85, 3)
    assert catalogue.criterion_for(model)(predictions, targets)["class"].isfinite().all()


def test_references_are_told_undetached_but_moved_detached(images):
    """With the way through content cut, the first layer's content reaches the next layer's box, and none beyond."""
    model = build()
    for layer in model.decoder[1:]:
        layer.register_forward_hook(lambda *_: torch.zeros(2, 5, 32, dtype=torch.float64))
    seen: list[torch.Tensor] = []

    def keep(_, __, output):
        output.retain_grad()
        seen.append(output)

    model.decoder[0].register_forward_hook(keep)
    boxes = model(images).boxes
    boxes[2].sum().backward(retain_graph=True)
    assert seen[0].grad is None or not seen[0].grad.any(), "two layers on, the anchor is detached"
    boxes[1].sum().backward()
    assert seen[0].grad is not None
    assert seen[0].grad.any(), "one layer on, the reference is not detached"


def test_the_decoder_teaches_no_proposal(images):
    """Anchors are detached: the encoder's box head hears of its own loss alone."""
    model = build()
    predictions = model(images)
    predictions.boxes.sum().backward()
    assert all(parameter.grad is None for parameter in model.selection.box_head.parameters())


def test_noised_objects_change_no_answer(images, targets):
    """Queries see no noised object, so in training they answer as in evaluation."""
    model = build()
    plain = model(images, targets)
    assert plain.denoising is None
    noised = model.train()(images, targets)
    torch.testing.assert_close(noised.logits, plain.logits, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(noised.boxes, plain.boxes, rtol=1e-9, atol=1e-10)
    assert noised.encoder is not None
    assert torch.equal(noised.encoder.boxes, plain.encoder.boxes)
    # 50 groups of 2 positives and 2 negatives
    assert noised.denoising.logits.shape == (3, 2, 200, 3)
    assert (noised.denoising.targets >= 0).sum().item() == 100
    assert noised.denoising.supervised.all()


def test_without_targets_or_denoising_nothing_is_noised(images, targets):
    assert build().train()(images).denoising is None
    assert build(denoising=None).train()(images, targets).denoising is None


def test_inference_costs_the_same_with_denoising_and_without():
    operations = []
    for settings in ({}, {"denoising": None}):
        with torch.device("meta"):
            model = catalogue.build(replace(dino.Config(), **SMALL, **settings)).eval()
        operations.append(count_multiply_adds(model, 64, 96)[1])
    assert operations[0] == operations[1] > 0


def test_the_chosen_proposals_learn_true_labels(images, targets):
    model = build()
    criterion = catalogue.criterion_for(model)
    first = criterion(model(images), targets)
    targets[0].labels = torch.tensor([0, 0])
    second = criterion(model(images), targets)
    assert first["encoder_class"].item() != second["encoder_class"].item()


def test_a_step_on_empty_pictures_reaches_every_parameter(images, targets):
    model = build().train()
    criterion = catalogue.criterion_for(model)
    losses = criterion(model(images, [targets[1]] * 2), [targets[1]] * 2)
    assert losses["denoising_class"].tolist() == [0, 0, 0]
    criterion.total(losses).backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_a_box_that_is_no_number_is_named_by_its_picture(images, targets):
    model = build().train()
    targets[0].boxes[0, 0] = float("nan")
    targets[0].image_id = 17
    with pytest.raises(InputError, match=r"not finite for picture 17: .* check its annotation"):
        catalogue.criterion_for(model)(model(images, targets), targets)
