"""Reference points and boxes: where queries and cells look from, and how a box moves from its reference."""

from __future__ import annotations

import torch
from torch import Tensor

from detrove.boxes import inverse_sigmoid


def valid_ratios(padding_masks: list[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """The unpadded share (x, y) of each level: S masks (B, h, w), True = padding, to (B, S, 2)."""
    ratios = []
    for mask in padding_masks:
        valid_height = (~mask[:, :, 0]).sum(dim=1, dtype=dtype) / mask.shape[1]
        valid_width = (~mask[:, 0, :]).sum(dim=1, dtype=dtype) / mask.shape[2]
        ratios.append(torch.stack((valid_width, valid_height), dim=-1))
    return torch.stack(ratios, dim=1)


def cell_centres(padding_masks: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Centres (x, y) of all levels' cells in [0, 1] of the **unpadded** picture, above 1 in padding: (B, T, 2)."""
    ratios = valid_ratios(padding_masks, dtype)
    centres = []
    for level, mask in enumerate(padding_masks):
        _, height, width = mask.shape
        y = (torch.arange(height, device=mask.device, dtype=dtype) + 0.5) / height
        x = (torch.arange(width, device=mask.device, dtype=dtype) + 0.5) / width
        centres.append(_row_by_row(x, y) / ratios[:, level, None, :])
    return torch.cat(centres, dim=1)


def _row_by_row(x: Tensor, y: Tensor) -> Tensor:
    """Every (x, y) of a map's columns (w,) and rows (h,): (h · w, 2)."""
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


def initial_proposals(masks: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A box on every cell, before the sigmoid, w = h = 0.05 · 2^level: (B, T, 4), +∞ where it does not count; and
    whether it counts, (B, T, 1): inside the picture and all four numbers in (0.01, 0.99)."""
    centres = cell_centres(masks, dtype)
    sides = [0.05 * 2.0**level for level in range(len(masks))]
    size = torch.cat([centres.new_full((m.shape[1] * m.shape[2],), side) for side, m in zip(sides, masks, strict=True)])
    boxes = torch.cat((centres, size[None, :, None].expand(centres.shape[0], -1, 2)), dim=-1)
    counted = [inner_cells(mask) & (0.01 < side < 0.99) for side, mask in zip(sides, masks, strict=True)]
    valid = torch.cat(counted, dim=1)[..., None]
    unactivated = torch.log(boxes / (1 - boxes)).masked_fill(~valid, float("inf"))
    return unactivated, valid


def inner_cells(mask: Tensor) -> Tensor:
    """Which cells of a level have their centre in (0.01, 0.99) of the unpadded picture: mask (B, h, w) to (B, h · w).

    In whole numbers: of 50 cells the first has its centre at 0.01 itself, and engines round that division otherwise.
    """

    def inner(padding: Tensor) -> Tensor:
        number = (~padding).sum(dim=1, keepdim=True)
        centre = 50 * (2 * torch.arange(padding.shape[1], device=padding.device) + 1)  # in hundredths of a cell
        return (centre > number) & (centre < 99 * number)

    return (inner(mask[:, :, 0])[:, :, None] & inner(mask[:, 0, :])[:, None]).flatten(1)


def move(reference: Tensor, delta: Tensor, epsilon: float = 1e-5) -> Tensor:
    """A box (…, 4) from what a head says about a reference: a point (…, 2) shifts the centre only, a box all of it.

    `epsilon` is the inverse sigmoid's (`boxes.inverse_sigmoid`).
    """
    unactivated = inverse_sigmoid(reference, epsilon)
    if reference.shape[-1] == 2:
        return torch.cat((delta[..., :2] + unactivated, delta[..., 2:]), dim=-1).sigmoid()
    return (delta + unactivated).sigmoid()


def shares_in_pixels(
    sizes: Tensor, shapes: list[tuple[int, int]], strides: list[int], dtype: torch.dtype = torch.float32
) -> Tensor:
    """What share (x, y) of each level's map is picture, to the pixel: sizes (B, 2) height and width, to (B, S, 2).

    `valid_ratios` counts whole cells, half a cell too many on average where pictures of all sizes share batches, and
    none where a picture fills its cells: learned from the one and asked of the other, boxes come out shifted.
    """
    picture_height, picture_width = sizes.to(dtype).unbind(dim=-1)
    shares = [
        torch.stack((picture_width / (stride * width), picture_height / (stride * height)), dim=-1)
        for stride, (height, width) in zip(strides, shapes, strict=True)
    ]
    return torch.stack(shares, dim=1)


def cell_boxes(sizes: Tensor, shapes: list[tuple[int, int]], strides: list[int], dtype: torch.dtype) -> Tensor:
    """A square box of two cells' side on every cell of all levels, in cxcywh of the unpadded picture: (B, T, 4).

    The same pixels of the picture, whatever its size; above 1 in the padding.
    """
    boxes = []
    for stride, (height, width) in zip(strides, shapes, strict=True):
        y = (torch.arange(height, device=sizes.device, dtype=dtype) + 0.5) * stride
        x = (torch.arange(width, device=sizes.device, dtype=dtype) + 0.5) * stride
        centres = _row_by_row(x, y)
        boxes.append(torch.cat((centres, torch.full_like(centres, 2 * stride)), dim=-1))
    return torch.cat(boxes) / sizes.flip(-1).to(dtype).repeat(1, 2)[:, None]


LARGEST_GROWTH = 5.0
"""Of a side in one step, as a logarithm: 148 times."""


def move_by_size(reference: Tensor, delta: Tensor) -> Tensor:
    """A box (…, 4) moved by shares of its own sides and grown by factors, given as logarithms (Girshick et al. 2014,
    appendix C), in [0, 1]: what a step means in pixels depends neither on the picture's size nor on the place in it.

    A number that is cut off learns as if it were not: it would stay where it is.
    """
    centre = reference[..., :2] + delta[..., :2] * reference[..., 2:]
    sides = reference[..., 2:] * delta[..., 2:].clamp(max=LARGEST_GROWTH).exp()
    moved = torch.cat((centre, sides), dim=-1)
    inside = moved.clamp(0, 1)
    return inside.detach() + (moved - moved.detach()) if moved.requires_grad else inside
