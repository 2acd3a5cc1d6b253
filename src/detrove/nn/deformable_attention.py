"""Multi-scale deformable attention (Zhu et al. 2021, §4.1); `sampling` is the operator under it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from detrove.nn.attention import without_padding
from detrove.nn.linear import Linear
from detrove.nn.recording import recorder_for
from detrove.nn.sampling import Shapes, sample_levels


class DeformableAttention(nn.Module):
    """Each query looks at a few sampled points of every level around its reference, per head.

    Official file: Deformable-DETR `models/ops/modules/ms_deform_attn.py`.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = Linear(dim, dim)
        self.output_proj = Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Heads start looking in evenly spread directions, point p at p + 1 cells away, all equally weighted."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        ring = directions[:, None, None, :] * steps[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.expand(-1, self.num_levels, -1, -1).flatten())
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        reference_points: Tensor,
        shapes: Shapes,
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Queries (B, Q, D) and memory (B, T, D) to (B, Q, D).

        `reference_points` (B, Q, S, 2): x, y in [0, 1] of each padded level, or (B, Q, S, 4) with width and height, by
        which offsets are then scaled. `padding_mask` (B, T), True = padding: its values are zeroed after their
        projection.
        """
        value = self.value_proj(memory)
        if padding_mask is not None and not without_padding(padding_mask):
            value = value.masked_fill(padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (self.num_heads, -1))
        offsets = self.sampling_offsets(query).unflatten(-1, (self.num_heads, -1))
        weights = self.attention_weights(query).unflatten(-1, (self.num_heads, -1)).softmax(dim=-1)
        weights = weights.unflatten(-1, (self.num_levels, self.num_points))
        locations = sampling_locations(reference_points, offsets, shapes)
        recorder = recorder_for(self)
        if recorder is not None:
            recorder.add_sampled(self, value, locations, weights, reference_points, shapes)
        return self.output_proj(sample_levels(value, shapes, locations, weights))


def sampling_locations(reference_points: Tensor, offsets: Tensor, shapes: Shapes) -> Tensor:
    """Where queries look: reference (B, Q, S, 2 or 4) and offsets (B, Q, M, S · P · 2) to (B, Q, M, S, P, 2).

    An offset counts in cells of its level, or, where references have extents, in halves of them divided by P. All is
    laid out as offsets are, which then need one pass of long rows.
    """
    points = offsets.shape[-1] // (2 * len(shapes))
    if reference_points.shape[-1] == 2:
        # number by number: a tensor of a list would turn sizes into constants in an exported graph
        sizes = [offsets.new_full((), size) for height, width in shapes for size in (width, height)]
        unit = torch.stack(sizes).reciprocal().view(-1, 1, 2).expand(-1, points, -1).flatten()  # (S · P · 2)
    else:
        unit = _for_each_point(reference_points[..., 2:] * (0.5 / points), points)
    locations = torch.addcmul(_for_each_point(reference_points[..., :2], points), offsets, unit)
    return locations.unflatten(-1, (len(shapes), points, 2))


def _for_each_point(x: Tensor, points: int) -> Tensor:
    """(B, Q, S, 2) to (B, Q, 1, S · P · 2)."""
    return x[:, :, None, :, None, :].expand(-1, -1, -1, -1, points, -1).flatten(-3)
