"""The same assignments, loss terms and gradients as Hugging Face's detectors, from the same weights, in float64."""

from __future__ import annotations

import copy
import math
import re

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from transformers.loss import loss_deformable_detr, loss_for_object_detection

from detrove.losses import match
from detrove.models import catalogue, conditional, dab, detr

pytestmark = pytest.mark.usefixtures("double_precision")

TERMS = {"class": "loss_ce", "box": "loss_bbox", "giou": "loss_giou"}


def their_losses(pair, predictions, targets):
    """Their criterion on predictions of all layers: our names, each (L,)."""
    config = copy.copy(pair.theirs.config)
    config.auxiliary_loss = True
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    logits, boxes = predictions.logits, predictions.boxes
    _, terms, _ = pair.theirs.loss_function(logits[-1], labels, torch.device("cpu"), boxes[-1], config, logits, boxes)
    suffixes = [*(f"_{layer}" for layer in range(len(logits) - 1)), ""]
    return {name: torch.stack([terms[their + suffix] for suffix in suffixes]) for name, their in TERMS.items()}


def their_assignments(pair, predictions, targets):
    """Their matcher, layer by layer: the (picture, query, object) of all pairs."""
    weights = {"class_cost": pair.config.class_cost, "bbox_cost": 5, "giou_cost": 2}
    if isinstance(pair.config, detr.Config):
        matcher = loss_for_object_detection.HungarianMatcher(**weights)
    else:
        matcher = loss_deformable_detr.DeformableDetrHungarianMatcher(**weights)
    labels = [{"class_labels": target.labels, "boxes": target.boxes} for target in targets]
    layers = zip(predictions.logits, predictions.boxes, strict=True)
    assigned = [matcher({"logits": logits, "pred_boxes": boxes}, labels) for logits, boxes in layers]
    return [
        [(picture, *both) for picture, pairs in enumerate(layer) for both in torch.stack(pairs, dim=1).tolist()]
        for layer in assigned
    ]


def test_assignments(pair_of, config, batch):
    images, targets = batch
    pair = pair_of(config)
    predictions = pair.their_predictions(images)
    cost = catalogue.criterion_for(pair.ours).cost
    matches = match(predictions.logits, predictions.boxes, targets, cost)
    columns = (matches.picture.tolist(), matches.query.tolist(), matches.target.tolist())
    ours = [list(zip(*layer, strict=True)) for layer in zip(*columns, strict=True)]
    assert ours == their_assignments(pair, predictions, targets)
    assert all(len(layer) == sum(len(target) for target in targets) for layer in ours)


def test_terms_and_gradients(pair_of, config, batch):
    images, targets = batch
    pair = pair_of(config)
    pair.theirs.train()
    pair.ours.train()
    predictions = pair.their_predictions(images)
    theirs = their_losses(pair, predictions, targets)
    if predictions.encoder is not None:
        theirs |= plain_encoder_losses(predictions.encoder, targets)
    criterion = catalogue.criterion_for(pair.ours)
    ours = criterion(pair.ours(images), targets)
    assert set(ours) == set(theirs)
    for name, values in theirs.items():
        assert (values > 0).all()
        torch.testing.assert_close(ours[name], values, rtol=1e-4, atol=0, msg=lambda text, name=name: f"{name}: {text}")

    criterion.total(ours).backward()
    criterion.total(theirs).backward()
    assert_equal_gradients(pair)


def without_effect(config):
    """Patterns of our keys (with `/part` of a joint one) whose gradient is 0 by the mathematics."""
    patterns = [r".*\.in_proj_bias/1", r".*\.key_(content|position)\.bias"]  # shift a query's scores all alike
    if getattr(config, "num_patterns", 0):
        # each pattern stands at every anchor, so which anchors the first layer's self-attention looks at is all one
        patterns += [r"decoder\.0\.self_attention\.key_position\.weight"]
    elif isinstance(config, detr.Config | conditional.Config | dab.Config):
        # the content of the first layer is 0, so its self-attention looks at equal values, wherever it looks
        patterns += [r"decoder\.0\.self_attention\.(in_proj_weight/.|in_proj_bias/0|(query|key)_.+|value\.weight)"]
    return "|".join(patterns)


def assert_equal_gradients(pair, tolerance=1e-3):
    """Every parameter that ours trains: the same gradient, and one that is not zero."""
    theirs, ours = pair.theirs.state_dict(keep_vars=True), pair.ours.state_dict(keep_vars=True)
    idle = without_effect(pair.config)
    compared = 0
    for their_key, our_key, part in pair.table:
        if not ours[our_key].requires_grad:
            assert our_key.startswith("backbone."), f"{our_key} is not trained"
            continue
        wanted = theirs[their_key].grad
        given = ours[our_key].grad if part is None else ours[our_key].grad.chunk(3)[part]
        if re.fullmatch(idle, our_key if part is None else f"{our_key}/{part}"):
            assert max(given.norm(), wanted.norm()) < 1e-12, f"{our_key} gets a gradient"
            continue
        assert wanted.norm() > 1e-7, f"{their_key} gets no gradient"
        assert (given - wanted).norm() / wanted.norm() <= tolerance, f"gradient of {our_key} differs from {their_key}"
        compared += 1
    assert compared > 50


def plain_encoder_losses(proposals, targets):
    """The encoder's terms by plain loops over all tokens and objects, every object of class 0."""
    count = max(sum(len(target) for target in targets), 1)
    class_loss = box_loss = giou_loss = 0.0
    for logits, boxes, target in zip(proposals.logits, proposals.boxes, targets, strict=True):
        costs = [
            [plain_cost(logit[0].item(), box.tolist(), goal.tolist()) for goal in target.boxes]
            for logit, box in zip(logits, boxes, strict=True)
        ]
        queries, objects = linear_sum_assignment(costs) if len(target) else ([], [])
        answers = dict(zip(map(int, queries), map(int, objects), strict=True))
        for token, index in answers.items():
            box_loss = box_loss + (boxes[token] - target.boxes[index]).abs().sum()
            giou_loss = giou_loss + 1 - plain_giou(boxes[token], target.boxes[index])
        for token, row in enumerate(logits):
            for slot, logit in enumerate(row):
                p = logit.sigmoid()
                if slot == 0 and token in answers:
                    class_loss = class_loss - 0.25 * (1 - p) ** 2 * p.log()
                else:
                    class_loss = class_loss - 0.75 * p**2 * (1 - p).log()
    terms = {"class": class_loss, "box": box_loss, "giou": giou_loss}
    return {f"encoder_{name}": term.reshape(1) / count for name, term in terms.items()}


def plain_cost(logit, box, goal):
    p = 1 / (1 + math.exp(-logit))
    positive, negative = -0.25 * (1 - p) ** 2 * math.log(p + 1e-8), -0.75 * p**2 * math.log(1 - p + 1e-8)
    l1 = sum(abs(a - b) for a, b in zip(box, goal, strict=True))
    return 2 * (positive - negative) + 5 * l1 - 2 * plain_giou(box, goal)


def plain_giou(a, b):
    def corners(box):
        x, y, w, h = box
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2

    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = corners(a), corners(b)
    overlap = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return overlap / union - (hull - union) / hull
