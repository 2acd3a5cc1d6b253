from __future__ import annotations

import torch
from torchvision.ops import box_convert, box_iou

from detrove.models.detrove import choose_distinct


def test_distinct_cells_come_first_and_repeats_last() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.rand(2, 8, 2, generator=generator) * 0.6 + 0.2
    near = centres.repeat_interleave(5, dim=1) + torch.randn(2, 40, 2, generator=generator) * 0.01
    boxes = torch.cat((near, torch.full_like(near, 0.2)), dim=-1)
    scores = torch.randn(2, 40, generator=generator)
    chosen = choose_distinct(scores, boxes, count=10, overlap=0.65)
    assert chosen.shape == (2, 10)
    for picture in range(2):
        best_first = scores[picture].argsort(descending=True)[:30].tolist()
        overlaps = box_iou(*[box_convert(boxes[picture], "cxcywh", "xyxy")] * 2)
        distinct = [
            cell
            for place, cell in enumerate(best_first)
            if all(overlaps[cell, better] <= 0.65 for better in best_first[:place])
        ]
        assert 1 < len(distinct) < 10
        assert chosen[picture, : len(distinct)].tolist() == distinct
        repeats = [cell for cell in best_first if cell not in distinct]
        assert chosen[picture, len(distinct) :].tolist() == repeats[: 10 - len(distinct)]


def test_fewer_cells_than_queries_are_all_chosen() -> None:
    boxes = torch.rand(1, 6, 4, generator=torch.Generator().manual_seed(0))
    assert sorted(choose_distinct(torch.randn(1, 6), boxes, count=20)[0].tolist()) == list(range(6))
