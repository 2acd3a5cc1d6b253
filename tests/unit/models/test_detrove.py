from __future__ import annotations

import torch
from torchvision.ops import box_convert, box_iou

from detrove.losses import match
from detrove.models import catalogue
from detrove.models.detrove import BLANK, POOL, choose_distinct
from detrove.structures import ImageBatch, Targets


def test_distinct_cells_come_first_and_repeats_last() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(2, 8, 2, generator=generator) * 0.6 + 0.2
    near = centres.repeat_interleave(5, dim=1) + torch.randn(2, 40, 2, generator=generator) * 0.005
    boxes = torch.cat((near, torch.full_like(near, 0.2)), dim=-1)
    scores = torch.randn(2, 40, generator=generator)
    chosen, is_repeat = choose_distinct(scores, boxes, count=10, overlap=0.65)
    assert chosen.shape == is_repeat.shape == (2, 10)
    for picture in range(2):
        best_first = scores[picture].argsort(descending=True)[: 10 * POOL].tolist()
        overlaps = box_iou(*[box_convert(boxes[picture], "cxcywh", "xyxy")] * 2)
        distinct = [
            cell
            for place, cell in enumerate(best_first)
            if all(overlaps[cell, better] <= 0.65 for better in best_first[:place])
        ]
        assert 1 < len(distinct) < 10
        assert chosen[picture, : len(distinct)].tolist() == distinct
        assert is_repeat[picture].tolist() == [place >= len(distinct) for place in range(10)]
        repeats = [cell for cell in best_first if cell not in distinct]
        assert chosen[picture, len(distinct) :].tolist() == repeats[: 10 - len(distinct)]


def test_fewer_cells_than_queries_are_all_chosen() -> None:
    boxes = torch.rand(1, 6, 4, generator=torch.Generator().manual_seed(0))
    chosen, _ = choose_distinct(torch.randn(1, 6), boxes, count=20)
    assert sorted(chosen[0].tolist()) == list(range(6))


def test_repeats_say_nothing_and_answer_for_no_object() -> None:
    torch.manual_seed(0)
    model = catalogue.create("detrove-nano", num_classes=3, backbone="mobilenetv4_conv_small").eval()
    with torch.no_grad():  # boxes so large that neighbours overlap
        model.get_submodule("encoder_box_head").get_submodule("2").bias[2:] = 4.0
    images = ImageBatch.from_images([torch.randn(3, 160, 160)])
    with torch.no_grad():
        predictions = model(images)
    silent = (predictions.logits[-1, 0] == BLANK).all(dim=-1)
    assert 0 < silent.sum() < 100
    assert (predictions.logits[:, 0, silent] == BLANK).all()
    assert (predictions.logits[:, 0, ~silent] > BLANK / 2).all()
    # objects lie where the silent queries are, so that only the class cost speaks against them
    boxes = predictions.boxes[-1, 0, silent][:5]
    targets = [Targets(torch.zeros(len(boxes), dtype=torch.int64), boxes)]
    matches = match(predictions.logits, predictions.boxes, targets, catalogue.criterion_for(model).cost)
    assert not silent[matches.query[-1]].any()
