"""Sine position encodings of pixels and of coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sine_of_coordinates(coordinates: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Each coordinate as `dim` interleaved sines and cosines: (..., N) to (..., N · dim), coordinate by coordinate.

    Coordinates are in radians: multiply values in [0, 1] by 2π first. Vaswani et al. 2017 §3.5 with DETR's interleaving
    and its temperature.
    """
    exponent = 2 * (torch.arange(dim, device=coordinates.device, dtype=coordinates.dtype) // 2) / dim
    angle = coordinates[..., None] / temperature**exponent
    return torch.stack((angle[..., 0::2].sin(), angle[..., 1::2].cos()), dim=-1).flatten(-3)


def sine_of_anchors(anchors: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """Anchors (..., 2 or 4), x y (w h) in [0, 1], to their sines (..., 2 or 4 · dim) in the order y, x (, w, h).

    y comes first as in the encoding of pixels, so that the first two meet it. Official file: DAB-DETR
    `models/DAB_DETR/transformer.py`.
    """
    ordered = torch.cat((anchors[..., :2].flip(-1), anchors[..., 2:]), dim=-1)
    return sine_of_coordinates(ordered * 2 * math.pi, dim, temperature)


def sine_encoding(
    padding_mask: Tensor,
    dim: int,
    temperature: float = 10000.0,
    offset: float = 0.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The position of every pixel of a level: (B, h, w) mask (True = padding) to (B, h, w, dim), y half first.

    Positions count the unpadded pixels and are divided by their number, so that they run to 2π in every picture.
    `offset` is 0 in DETR, -0.5 in Deformable DETR (the pixel's centre). Official file: DETR
    `models/position_encoding.py`.
    """
    inside = ~padding_mask
    y = inside.cumsum(dim=1, dtype=dtype)
    x = inside.cumsum(dim=2, dtype=dtype)
    y = (y + offset) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = (x + offset) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    return sine_of_coordinates(torch.stack((y, x), dim=-1), dim // 2, temperature)


def level_encodings(
    padding_masks: list[Tensor], level_embedding: Tensor, temperature: float = 10000.0, offset: float = -0.5
) -> Tensor:
    """Encodings of all levels' pixels, each with its level's embedding added: S masks (B, h, w) to (B, T, D).

    `level_embedding` (S, D) is learned. `offset` is 0 in DINO. Official file: Deformable-DETR
    `models/deformable_transformer.py`.
    """
    dim, dtype = level_embedding.shape[-1], level_embedding.dtype
    encodings = [
        sine_encoding(mask, dim, temperature, offset, dtype).flatten(1, 2) + embedding
        for mask, embedding in zip(padding_masks, level_embedding, strict=True)
    ]
    return torch.cat(encodings, dim=1)
