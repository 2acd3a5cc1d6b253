"""The criterion: which term gets what, divisors, totals, the encoder's part, several processes."""

from __future__ import annotations

import pytest
import torch

from detrove.boxes import cxcywh_to_xyxy, iou_xyxy
from detrove.losses import Criterion, MatchCost
from detrove.losses.criterion import count_boxes
from detrove.losses.matcher import match, match_several
from detrove.losses.terms import box_losses, focal_class_loss, quality_class_loss, softmax_class_loss
from detrove.structures import Predictions, Proposals, Targets

WEIGHTS = {"class": 2.0, "box": 5.0, "giou": 3.0}
LAYERS, QUERIES, CLASSES = 2, 6, 3


def criterion(class_loss: str, **options) -> Criterion:
    scores = "softmax" if class_loss == "softmax" else "sigmoid"
    return Criterion(MatchCost(scores, 2.0, 5.0, 2.0), class_loss, WEIGHTS, **options)


def random_boxes(*shape, generator):
    centre = 0.2 + 0.6 * torch.rand(*shape, 2, generator=generator)
    return torch.cat((centre, 0.05 + 0.3 * torch.rand(*shape, 2, generator=generator)), dim=-1)


def scene(counts, num_logits, encoder=False):
    generator = torch.Generator().manual_seed(0)
    targets = [
        Targets(torch.randint(1, CLASSES, (count,), generator=generator), random_boxes(count, generator=generator))
        for count in counts
    ]
    logits = torch.randn(LAYERS, len(counts), QUERIES, num_logits, generator=generator, requires_grad=True)
    boxes = random_boxes(LAYERS, len(counts), QUERIES, generator=generator).requires_grad_()
    proposals = None
    if encoder:
        cells = torch.randn(len(counts), 20, num_logits, generator=generator, requires_grad=True)
        proposals = Proposals(cells, random_boxes(len(counts), 20, generator=generator).requires_grad_())
    return Predictions(logits, boxes, proposals), targets


@pytest.mark.parametrize("class_loss", ["softmax", "focal", "quality"])
def test_every_layer_is_compared_with_its_own_match(class_loss):
    predictions, targets = scene((3, 0, 2), CLASSES + (class_loss == "softmax"))
    subject = criterion(class_loss)
    losses = subject(predictions, targets)
    assert list(losses) == ["class", "box", "giou"]
    for layer in range(LAYERS):
        logits, boxes = predictions.logits[layer : layer + 1], predictions.boxes[layer : layer + 1]
        matches = match(logits, boxes, targets, subject.cost)
        classes = torch.full((1, 3, QUERIES), CLASSES)
        quality = torch.zeros(1, 3, QUERIES, CLASSES)
        pairs = []
        for picture, query, target, _ in zip(*(part[0].tolist() for part in vars(matches).values()), strict=True):
            label, goal = targets[picture].labels[target], targets[picture].boxes[target]
            classes[0, picture, query] = label
            overlap = iou_xyxy(cxcywh_to_xyxy(boxes[0, picture, query]), cxcywh_to_xyxy(goal)).detach()
            quality[0, picture, query, label] = 1.0 if class_loss == "focal" else overlap.clamp(min=1e-4)
            pairs.append((boxes[0, picture, query], goal))
        given, goals = (torch.stack(column)[None] for column in zip(*pairs, strict=True))
        box, giou = box_losses(given, goals, 5.0)
        expected = {
            "softmax": lambda c=classes, x=logits: softmax_class_loss(x, c, 0.1),
            "focal": lambda q=quality, x=logits: focal_class_loss(x, q, 5.0),
            "quality": lambda q=quality, x=logits: quality_class_loss(x, q, 5.0),
        }[class_loss]()
        torch.testing.assert_close(losses["class"][layer], expected[0])
        torch.testing.assert_close(losses["box"][layer], box[0])
        torch.testing.assert_close(losses["giou"][layer], giou[0])


def test_quality_of_a_match_sends_no_gradient_into_its_box():
    predictions, targets = scene((3,), CLASSES)
    criterion("quality")(predictions, targets)["class"].sum().backward()
    assert predictions.boxes.grad is None


def test_total_weighs_terms_and_parts_alike():
    losses = {
        "class": torch.tensor([1.0, 10.0]),
        "box": torch.tensor([0.5, 0.25]),
        "giou": torch.tensor([2.0, 4.0]),
        "encoder_class": torch.tensor([100.0]),
        "encoder_box": torch.tensor([7.0]),
    }
    expected = 2 * 11 + 5 * 0.75 + 3 * 6 + 2 * 100 + 5 * 7
    total = criterion("focal").total(losses)
    assert total.shape == ()
    assert total.item() == expected


def test_encoder_learns_objectness():
    predictions, targets = scene((3, 0), CLASSES, encoder=True)
    losses = criterion("focal", encoder_classes="objectness")(predictions, targets)
    assert [name for name in losses if name.startswith("encoder_")] == ["encoder_class", "encoder_box", "encoder_giou"]
    assert all(losses[f"encoder_{name}"].shape == (1,) for name in WEIGHTS)
    nameless = [Targets(torch.zeros_like(target.labels), target.boxes) for target in targets]
    alone = Predictions(predictions.encoder.logits[None], predictions.encoder.boxes[None])
    for name, value in criterion("focal")(alone, nameless).items():
        torch.testing.assert_close(losses[f"encoder_{name}"], value)
    assert targets[0].labels.any(), "the decoder's labels were overwritten"


def test_encoder_learns_nothing_unless_told():
    predictions, targets = scene((3, 0), CLASSES, encoder=True)
    assert list(criterion("focal")(predictions, targets)) == ["class", "box", "giou"]


def test_several_cells_to_one_object_divide_by_the_cells():
    predictions, targets = scene((3, 0, 2), CLASSES, encoder=True)
    subject = criterion("focal", encoder_classes="true", cells_per_object=4)
    losses = subject(predictions, targets)
    logits, boxes = predictions.encoder.logits[None], predictions.encoder.boxes[None]
    matches = match_several(logits, boxes, targets, subject.cost, 4)
    cells = matches.query.shape[1]
    assert cells > 5
    goals = torch.stack([targets[p].boxes[t] for p, t in zip(matches.picture[0], matches.target[0], strict=True)])
    box, giou = box_losses(boxes[0, matches.picture[0], matches.query[0]][None], goals[None], cells)
    torch.testing.assert_close(losses["encoder_box"], box)
    torch.testing.assert_close(losses["encoder_giou"], giou)


def backward_in_parts(subject, predictions, targets, num_parts):
    each = len(targets) // num_parts
    for first in range(0, len(targets), each):
        part = slice(first, first + each)
        encoder = Proposals(predictions.encoder.logits[part], predictions.encoder.boxes[part])
        shown = Predictions(predictions.logits[:, part], predictions.boxes[:, part], encoder=encoder)
        losses = subject(shown, targets[part], num_boxes=count_boxes(targets) / num_parts)
        (subject.total(losses) / num_parts).backward()


@pytest.mark.parametrize("num_parts", [2, 4])
def test_pictures_without_objects_weigh_no_more_in_a_part_of_their_own(num_parts):
    """Divided by their own objects, of which there are none, two such pictures would outweigh two with many."""
    subject = criterion("quality", encoder_classes="true", cells_per_object=4)
    whole, targets = scene((0, 0, 6, 4), CLASSES, encoder=True)
    subject.total(subject(whole, targets)).backward()
    predictions, targets = scene((0, 0, 6, 4), CLASSES, encoder=True)
    backward_in_parts(subject, predictions, targets, num_parts)
    empty = slice(0, 2)
    share = predictions.encoder.logits.grad[empty].abs().sum() / whole.encoder.logits.grad[empty].abs().sum()
    assert 0.3 < share <= 1
    torch.testing.assert_close(predictions.logits.grad, whole.logits.grad)


def test_parts_of_alike_pictures_learn_as_the_whole():
    subject = criterion("quality", encoder_classes="true", cells_per_object=4)
    one, [target] = scene((5,), CLASSES, encoder=True)

    def twice() -> Predictions:
        logits, boxes = (x.detach().repeat(1, 2, 1, 1).requires_grad_() for x in (one.logits, one.boxes))
        cells = (x.detach().repeat(2, 1, 1).requires_grad_() for x in (one.encoder.logits, one.encoder.boxes))
        return Predictions(logits, boxes, encoder=Proposals(*cells))

    whole, parts = twice(), twice()
    subject.total(subject(whole, [target] * 2)).backward()
    backward_in_parts(subject, parts, [target] * 2, num_parts=2)
    torch.testing.assert_close(parts.encoder.logits.grad, whole.encoder.logits.grad)
    torch.testing.assert_close(parts.encoder.boxes.grad, whole.encoder.boxes.grad)


@pytest.mark.parametrize("class_loss", ["softmax", "focal", "quality"])
@pytest.mark.parametrize("cells_per_object", [1, 4])
def test_pictures_without_objects(class_loss, cells_per_object):
    predictions, targets = scene((0, 0), CLASSES + (class_loss == "softmax"), encoder=True)
    subject = criterion(class_loss, encoder_classes="true", cells_per_object=cells_per_object)
    losses = subject(predictions, targets)
    assert all(value.isfinite().all() for value in losses.values())
    assert losses["box"].tolist() == [0.0, 0.0]
    assert (losses["class"] > 0).all()
    subject.total(losses).backward()
    assert predictions.logits.grad.isfinite().all()
    assert predictions.encoder.logits.grad.isfinite().all()


def test_more_objects_than_queries_still_divides_by_objects():
    predictions, targets = scene((10,), CLASSES)
    losses = criterion("focal")(predictions, targets)
    assert all(value.isfinite().all() for value in losses.values())
    assert count_boxes(targets) == 10


def test_refuses_an_unknown_class_loss():
    with pytest.raises(ValueError, match="'hinge' is none of softmax, focal"):
        criterion("hinge")


@pytest.mark.parametrize(("counts", "divisor"), [((0, 0), 1.0), ((1,), 1.0), ((3, 4), 7.0)])
def test_divisor_alone(counts, divisor):
    assert count_boxes(scene(counts, CLASSES)[1]) == divisor


@pytest.mark.parametrize(("own", "others", "divisor"), [(3, 5, 4.0), (0, 3, 1.5), (0, 0, 1.0), (1, 0, 1.0)])
def test_divisor_is_the_mean_over_processes(monkeypatch, own, others, divisor):
    def all_reduce(tensor):
        tensor += others

    distributed = "detrove.losses.criterion.torch.distributed"
    monkeypatch.setattr(f"{distributed}.is_initialized", lambda: True)
    monkeypatch.setattr(f"{distributed}.get_backend", lambda: "gloo")
    monkeypatch.setattr(f"{distributed}.get_world_size", lambda: 2)
    monkeypatch.setattr(f"{distributed}.all_reduce", all_reduce)
    assert count_boxes([Targets(torch.zeros(own, dtype=torch.int64), torch.zeros(own, 4))]) == divisor
