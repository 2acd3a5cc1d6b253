"""Denoising: the noise, the groups, who sees whom, the divisors, and that evaluation knows nothing of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from detrove.boxes import cxcywh_to_xyxy, giou_xyxy
from detrove.errors import InputError
from detrove.losses import criterion as criterion_module
from detrove.models import catalogue, dab, dab_deformable, denoising
from detrove.models.denoising import Denoising, DenoisingPart, Noise, draw_noise, hidden_from, noise_objects
from detrove.structures import Denoised, ImageBatch, Predictions, Targets

DN = Denoising(groups=2)
DINO = Denoising(label_noise=0.25, contrastive=True, num_queries=6)
BOXES = torch.tensor(
    [[0.3, 0.4, 0.2, 0.3], [0.9, 0.1, 0.3, 0.25], [0.5, 0.5, 1.0, 0.9], [0.02, 0.98, 0.04, 0.06]], dtype=torch.float64
)
SMALL = {
    "num_classes": 4,
    "num_queries": 7,
    "backbone": "resnet18",
    "dim": 32,
    "num_heads": 4,
    "feedforward_dim": 48,
    "num_encoder_layers": 1,
    "num_decoder_layers": 3,
}


def batch(*counts: int) -> list[Targets]:
    """Pictures with that many of the boxes, labels counted on from 0."""
    labels = torch.arange(4)
    return [Targets(labels[:count], BOXES[:count]) for count in counts]


def noise_for(count: int, slots: int) -> Noise:
    """Seeded noise in which neither labels nor shifts are anything simple."""
    torch.manual_seed(3)
    return draw_noise(count, slots, 4, BOXES)


# ---- the noise -------------------------------------------------------------------------------------------------------


def test_dn_noise_of_every_number_by_hand():
    targets, noise = batch(3, 0, 1), noise_for(3, 6)
    objects = noise_objects(targets, DN, 4, BOXES, noise)
    assert objects.num_groups == 2
    for picture, target in enumerate(targets):
        for slot in range(6):
            place = slot % 3
            if place >= len(target):
                assert not objects.occupied[picture, slot]
                assert objects.targets[picture, slot] == -1
                assert objects.boxes[picture, slot].tolist() == [0.5] * 4
                continue
            assert objects.occupied[picture, slot]
            assert objects.targets[picture, slot] == place
            flipped = noise.flip[picture, slot] < 0.2
            expected = noise.label[picture, slot] if flipped else target.labels[place]
            assert objects.labels[picture, slot] == expected
            x, y, w, h = target.boxes[place].tolist()
            dx, dy, dw, dh = (0.4 * noise.shift[picture, slot]).tolist()
            moved = [x + dx * w / 2, y + dy * h / 2, w + dw * w, h + dh * h]
            expected = torch.tensor([min(max(each, 0.0), 1.0) for each in moved], dtype=torch.float64)
            torch.testing.assert_close(objects.boxes[picture, slot], expected, rtol=0, atol=1e-15)


def test_contrastive_noise_of_every_number_by_hand():
    targets, noise = batch(2, 0, 1), noise_for(3, 12)
    objects = noise_objects(targets, DINO, 4, BOXES, noise)
    assert objects.num_groups == 3  # 6 queries, 2 objects in the fullest picture
    for picture, target in enumerate(targets):
        for slot in range(12):
            place, negative = slot % 2, slot // 2 % 2 == 1
            if place >= len(target):
                assert not objects.occupied[picture, slot]
                assert objects.targets[picture, slot] == -1
                continue
            assert objects.targets[picture, slot] == (-1 if negative else place)
            flipped = noise.flip[picture, slot] < 0.25
            assert objects.labels[picture, slot] == (noise.label[picture, slot] if flipped else target.labels[place])
            x, y, w, h = target.boxes[place].tolist()
            corners = []
            for corner, half, u in zip(
                (x - w / 2, y - h / 2, x + w / 2, y + h / 2),
                (w / 2, h / 2, w / 2, h / 2),
                noise.shift[picture, slot].tolist(),
                strict=True,
            ):
                far = u if not negative else u + 1 if u > 0 else u - 1
                corners.append(min(max(corner + 0.4 * half * far, 0.0), 1.0))
            torch.testing.assert_close(
                cxcywh_to_xyxy(objects.boxes[picture, slot]),
                torch.tensor(corners, dtype=torch.float64),
                rtol=0,
                atol=1e-15,
            )


def test_drawn_noise_reaches_its_bounds_and_no_further():
    settings = replace(DINO, label_noise=0.25, num_queries=0, groups=2000)
    box = torch.tensor([[0.5, 0.5, 0.2, 0.4]], dtype=torch.float64)
    target = [Targets(torch.tensor([1]), box)]
    torch.manual_seed(0)
    objects = noise_objects(target, settings, 4, box)
    moves = (cxcywh_to_xyxy(objects.boxes[0]) - cxcywh_to_xyxy(box)) / torch.tensor([0.1, 0.2, 0.1, 0.2])
    positive, negative = moves[0::2], moves[1::2]
    assert 0.39 < positive.abs().max() <= 0.4
    assert positive.abs().min() < 0.01
    assert 0.4 <= negative.abs().min() < 0.41
    assert 0.79 < negative.abs().max() <= 0.8
    for part in (positive, negative):  # 2000 coins: the mean is within 4 standard errors of a half
        assert ((part > 0).double().mean(dim=0) - 0.5).abs().max() < 4 * 0.5 / 2000**0.5

    objects = noise_objects(target, Denoising(groups=4000), 4, box)
    moves = (objects.boxes[0] - box) / torch.tensor([0.1, 0.2, 0.2, 0.4])
    assert 0.39 < moves.max() <= 0.4
    assert -0.4 <= moves.min() < -0.39


def test_share_of_new_labels():
    target = [Targets(torch.tensor([1]), BOXES[:1])]
    torch.manual_seed(0)
    labels = noise_objects(target, Denoising(groups=20_000, label_noise=0.2), 4, BOXES).labels[0]
    share = labels.bincount(minlength=5) / 20_000
    assert share[4] == 0  # never "no class"
    for label in (0, 2, 3):  # a fifth is drawn anew from four classes
        assert abs(share[label] - 0.05) < 4 * (0.05 * 0.95 / 20_000) ** 0.5
    unchanged = noise_objects(target, Denoising(groups=50, label_noise=0, box_noise=0), 4, BOXES)
    assert (unchanged.labels == 1).all()
    assert torch.equal(unchanged.boxes, BOXES[:1].expand(1, 50, 4))


def test_noise_follows_the_seed():
    torch.manual_seed(5)
    first = noise_objects(batch(3, 1), DN, 4, BOXES)
    second = noise_objects(batch(3, 1), DN, 4, BOXES)
    torch.manual_seed(5)
    again = noise_objects(batch(3, 1), DN, 4, BOXES)
    assert torch.equal(first.boxes, again.boxes)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.boxes, second.boxes)


@pytest.mark.parametrize(
    ("settings", "most", "groups"),
    [
        (Denoising(), 1, 5),
        (Denoising(), 300, 5),
        (Denoising(num_queries=100), 1, 100),
        (Denoising(num_queries=100), 7, 14),
        (Denoising(num_queries=100), 100, 1),
        (Denoising(num_queries=100), 250, 1),
    ],
)
def test_number_of_groups(settings: Denoising, most: int, groups: int):
    assert settings.num_groups(most) == groups


# ---- who sees whom ---------------------------------------------------------------------------------------------------


def test_who_sees_whom():
    """Two groups of two places, three queries: rows look at columns."""
    seen = ["xx..xxx", "xx..xxx", "..xxxxx", "..xxxxx", "....xxx", "....xxx", "....xxx"]
    expected = torch.tensor([[letter == "." for letter in row] for row in seen])
    assert torch.equal(hidden_from(2, 2, 3), expected)
    assert torch.equal(hidden_from(1, 0, 2), torch.zeros(2, 2, dtype=torch.bool))


def test_a_contrastive_group_is_one_of_positives_and_negatives():
    part = DenoisingPart(DINO, 4, 8, indicator=False, epsilon=1e-3)
    noised = part(batch(2, 1))
    assert noised.num_slots == 12
    assert torch.equal(noised.hidden(5), hidden_from(3, 4, 5))


# ---- the detector ----------------------------------------------------------------------------------------------------


@pytest.fixture
def images() -> ImageBatch:
    """Three pictures of different sizes."""
    torch.manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, *size) for size in [(64, 96), (90, 61), (32, 40)]])


@pytest.fixture(params=["dab", "dab_deformable"])
def denoised(request: pytest.FixtureRequest) -> Any:
    """A detector with denoising, every parameter moved, in training mode but for its trunk's statistics."""
    torch.manual_seed(0)
    file = catalogue.DETECTORS[request.param]
    model: Any = catalogue.build(replace(file.Config(), **SMALL, denoising=DN))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.double().train()
    model.backbone.eval()
    return model


def test_queries_predict_the_same_beside_noised_objects(denoised: Any, images: ImageBatch):
    images, objects = images.to(torch.float64), batch(3, 0, 1)
    plain, beside = denoised(images), denoised(images, objects)
    assert plain.denoising is None
    assert beside.denoising.logits.shape == (3, 3, 6, 4)
    assert beside.logits.shape == plain.logits.shape == (3, 3, 7, 4)
    torch.testing.assert_close(beside.logits, plain.logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(beside.boxes, plain.boxes, rtol=1e-10, atol=1e-10)


def test_groups_do_not_feel_each_other(denoised: Any, images: ImageBatch, monkeypatch: pytest.MonkeyPatch):
    objects, noise = batch(3, 0, 1), noise_for(3, 6)
    other = Noise(noise.flip, noise.label, noise.shift.clone())
    other.shift[:, 0] *= -1  # the first place of the first group
    answers = []
    for given in (noise, other):
        monkeypatch.setattr(denoising, "draw_noise", lambda *_, given=given: given)
        answers.append(denoised(images.to(torch.float64), objects).denoising.logits)
    first, second = answers
    torch.testing.assert_close(first[:, :, 3:], second[:, :, 3:], rtol=1e-10, atol=1e-10)
    for place in range(3):  # its own group does
        assert (first[:, 0, place] - second[:, 0, place]).abs().max() > 1e-3


def test_contents_and_anchors_of_slots_and_queries(images: ImageBatch):
    model = dab.build(replace(dab.Config(), **SMALL, denoising=replace(DN, label_noise=0)))
    assert model.denoising is not None
    noised = model.denoising(batch(3, 0, 1))
    table = model.denoising.class_embedding.weight
    assert table.shape == (5, 31)
    assert torch.equal(noised.contents[0, 1, :-1], table[1])
    assert noised.contents[0, :, -1].tolist() == [1] * 6
    assert not noised.contents[2, 1].any()  # empty: not even the bit
    assert not noised.anchors[2, 1].any()
    assert noised.anchors.abs().max() <= 6.91  # log(0.999 / 0.001), where a box ends at the border
    _, contents = model.queries()
    assert torch.equal(contents, torch.cat([table[4], torch.zeros(1)]).expand(7, -1))


class Operations(TorchDispatchMode):
    """Counts the operations that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        self.counts[str(function.overloadpacket)] += 1
        return function(*arguments, **(keywords or {}))


CONTENTS = {"aten.constant_pad_nd", "aten.new_zeros", "aten.select", "aten.expand", "aten.zeros", "aten.empty"}
"""What makes the queries' first content, from nothing or from the embedding."""


@pytest.mark.parametrize("file", [dab, dab_deformable])
@torch.no_grad()
def test_evaluation_computes_what_the_detector_without_denoising_does(file: Any, images: ImageBatch):
    counts = []
    for settings in (None, DN):
        torch.manual_seed(0)
        model = file.build(replace(file.Config(), **SMALL, denoising=settings)).eval()
        with Operations() as operations:
            predictions = model(images, batch(3, 0, 1))
        assert predictions.denoising is None
        counts.append(operations.counts)
    without, having = counts
    different = {name for name in {*without, *having} if without[name] != having[name]}
    assert different <= CONTENTS | {"aten.fill_", "aten.slice", "aten.copy_", "aten.fill", "aten.detach", "aten.alias"}
    assert sum(having.values()) - sum(without.values()) <= 6
    heavy = {"aten.addmm", "aten.mm", "aten.bmm", "aten.convolution"}
    assert heavy & set(having)


@torch.no_grad()
def test_with_an_empty_content_it_is_dab_detr(images: ImageBatch):
    torch.manual_seed(0)
    plain = dab.build(replace(dab.Config(), **SMALL)).eval()
    model = dab.build(replace(dab.Config(), **SMALL, denoising=DN)).eval()
    weights = {**model.state_dict(), **plain.state_dict()}
    weights["denoising.class_embedding.weight"] = torch.zeros(5, 31)
    model.load_state_dict(weights)
    assert torch.equal(model(images).logits, plain(images).logits)
    assert torch.equal(model(images).boxes, plain(images).boxes)


# ---- the losses ------------------------------------------------------------------------------------------------------


def predictions_for(part: DenoisingPart, targets: list[Targets]) -> Predictions:
    """Noise in the place of a decoder's answers, for 2 layers, the slots and 5 queries."""
    noised = part(targets)
    torch.manual_seed(2)
    slots = noised.num_slots + 5
    answers = Predictions(
        torch.randn(2, len(targets), slots, 4, dtype=torch.float64),
        torch.rand(2, len(targets), slots, 4, dtype=torch.float64) * 0.4 + 0.2,
    )
    return noised.take_apart(answers)


def focal(logit: Tensor, positive: bool) -> Tensor:
    """One number of the focal loss, α 0.25, γ 2."""
    p = logit.sigmoid()
    return -0.25 * (1 - p) ** 2 * p.log() if positive else -0.75 * p**2 * (1 - p).log()


@pytest.mark.parametrize(("settings", "groups"), [(DN, 2), (replace(DINO, num_queries=6), 2)])
def test_losses_of_noised_objects_by_hand(settings: Denoising, groups: int):
    targets = batch(3, 0, 1)
    part = DenoisingPart(settings, 4, 8, indicator=True, epsilon=1e-3)
    predictions = predictions_for(part, targets)
    losses = dab.criterion(dab.Config())(predictions, targets)
    answers = predictions.denoising
    assert answers is not None
    per_group = 6 if settings.contrastive else 3
    for layer in range(2):
        expected = dict.fromkeys(("class", "box", "giou"), torch.zeros((), dtype=torch.float64))
        for picture, target in enumerate(targets):
            for slot in range(groups * per_group):
                place, negative = slot % 3, slot % per_group >= 3
                there = place < len(target) and not negative
                if not there and not settings.contrastive:
                    continue  # an empty slot counts in nothing
                for label in range(4):
                    positive = there and label == int(target.labels[place])
                    expected["class"] = expected["class"] + focal(answers.logits[layer, picture, slot, label], positive)
                if there:
                    box = answers.boxes[layer, picture, slot]
                    expected["box"] = expected["box"] + (box - target.boxes[place]).abs().sum()
                    overlap = giou_xyxy(cxcywh_to_xyxy(box), cxcywh_to_xyxy(target.boxes[place]), 1e-6)
                    expected["giou"] = expected["giou"] + 1 - overlap
        for name, value in expected.items():
            torch.testing.assert_close(losses[f"denoising_{name}"][layer], value / (4 * groups), rtol=1e-12, atol=0)


def test_divisors_in_several_processes(monkeypatch: pytest.MonkeyPatch):
    """DN-DETR divides by its own process's objects, DINO by the mean over all processes, here 10."""
    targets, one = batch(3, 1), {}
    for told in (False, True):
        if told:
            monkeypatch.setattr(criterion_module, "count_boxes", lambda _: 10.0)
        for settings in (DN, DINO):
            torch.manual_seed(0)
            part = DenoisingPart(settings, 4, 8, indicator=True, epsilon=1e-3)
            losses = dab.criterion(dab.Config())(predictions_for(part, targets), targets)
            if told:
                divisor = 4.0 if settings is DN else 10.0
                torch.testing.assert_close(losses["denoising_box"], one[settings] * 4 / divisor)
            else:
                one[settings] = losses["denoising_box"]


def test_a_batch_without_any_object_has_no_slots_and_losses_of_zero():
    targets = batch(0, 0)
    part = DenoisingPart(DN, 4, 8, indicator=True, epsilon=1e-3)
    predictions = predictions_for(part, targets)
    assert isinstance(predictions.denoising, Denoised)
    assert predictions.denoising.logits.shape == (2, 2, 0, 4)
    assert predictions.logits.shape == (2, 2, 5, 4)
    losses = dab.criterion(dab.Config())(predictions, targets)
    for name in ("class", "box", "giou"):
        assert losses[f"denoising_{name}"].tolist() == [0.0, 0.0]


def test_terms_weigh_as_the_terms_they_are_named_after():
    criterion = dab.criterion(dab.Config())
    values = {"class": 1.0, "box": 2.0, "giou": 3.0, "denoising_class": 4.0, "denoising_box": 5.0}
    total = criterion.total({name: torch.tensor([value]) for name, value in values.items()})
    assert total == 1 * 1 + 5 * 2 + 2 * 3 + 1 * 4 + 5 * 5


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 0}, "denoising.groups is 0: at least 1"),
        ({"label_noise": 1.5}, "denoising.label_noise is 1.5: a share"),
        ({"box_noise": -0.1}, "denoising.box_noise is -0.1: at least 0"),
        ({"num_queries": -3}, "denoising.num_queries is -3: at least 0"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        Denoising(**settings)


def test_settings_as_plain_values():
    model: Any = catalogue.create("dn-dab-nano", num_classes=3, denoising={"groups": 2}, num_queries=9)
    assert model.config.denoising == Denoising(groups=2)
    stored = catalogue.config_to_json(model.config)
    assert stored["denoising"]["groups"] == 2
    assert catalogue.config_from_json(stored) == model.config
    with pytest.raises(InputError, match=r"no setting 'denoising.group'.*groups"):
        catalogue.create("dn-dab-nano", denoising={"group": 2})
    assert catalogue.create("dn-dab-nano", denoising=None).get_submodule("decoder")


def test_detectors_that_cannot_denoise():
    with pytest.raises(InputError, match="denoising needs an anchor's width and height"):
        dab.build(replace(dab.Config(), **SMALL, num_coordinates=2, modulate=False, denoising=DN))
    with pytest.raises(InputError, match="denoising and patterns do not go together"):
        dab_deformable.build(replace(dab_deformable.Config(), **SMALL, num_patterns=2, denoising=DN))


def test_the_embedding_of_no_class_survives_other_classes():
    """The row behind the classes is what all queries start from: it is kept where classes change."""
    from detrove.checkpoints import fit_heads
    from detrove.structures import Category, LabelMap

    def labels(names: str) -> LabelMap:
        return LabelMap(tuple(Category(index, name) for index, name in enumerate(names.split())))

    def own(num_classes: int) -> nn.Module:
        return dab.build(replace(dab.Config(), **SMALL | {"num_classes": num_classes}, denoising=DN))

    key = "denoising.class_embedding.weight"
    source, target = own(4).state_dict(), own(3).state_dict()
    tensors, _ = fit_heads(source, target, labels("a b c d"), labels("c new a"))
    assert torch.equal(tensors[key][[0, 2, 3]], source[key][[2, 0, 4]])
    assert torch.equal(tensors[key][1], target[key][1])
