"""Maps whose padding counts for nothing: what a picture's cells become does not depend on who shares its batch.

The padding of a batch is zero in the pixels, but no longer behind a convolution with a bias or a norm. Here it is put
back to zero before cells are mixed, and left out of means and variances.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrove.nn.attention import without_padding


def zero_in_padding(x: Tensor, padding_mask: Tensor) -> Tensor:
    """(B, C, h, w) with zeros where the mask (B, h, w), True = padding, says so."""
    return x if without_padding(padding_mask) else x.masked_fill(padding_mask[:, None], 0.0)


def group_norm_in_picture(norm: nn.GroupNorm, x: Tensor, padding_mask: Tensor) -> Tensor:
    """`norm` of (B, C, h, w) by mean and variance of each picture's own cells; in the padding its bias.

    A map without padding is normed by torch. Sums are in float32 at least.
    """
    if without_padding(padding_mask):
        return norm(x)
    groups = x.unflatten(1, (norm.num_groups, -1)).to(torch.promote_types(x.dtype, torch.float32))
    valid = _valid(groups, padding_mask)[:, None]
    number = groups.shape[2] * valid.sum(dim=(2, 3, 4), keepdim=True).clamp(min=1)
    mean = (groups * valid).sum(dim=(2, 3, 4), keepdim=True) / number
    centred = (groups - mean) * valid
    variance = centred.square().sum(dim=(2, 3, 4), keepdim=True) / number
    normed = (centred * torch.rsqrt(variance + norm.eps)).flatten(1, 2)
    normed = normed.to(torch.promote_types(x.dtype, norm.weight.dtype))
    return normed * norm.weight[:, None, None] + norm.bias[:, None, None]


def halve(x: Tensor, padding_mask: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, C, h, w) to the next coarser level's (height, width): the mean of two by two cells, of those in the picture.

    Cells at an odd border stand alone, as they do beside padding. A trunk that drops them instead has coarser levels of
    another shape: there the windows are as even as they can be.
    """
    if shape != (-(-x.shape[-2] // 2), -(-x.shape[-1] // 2)):
        return F.adaptive_avg_pool2d(x, shape)
    if without_padding(padding_mask):
        return F.avg_pool2d(x, 2, ceil_mode=True)
    share = F.avg_pool2d(_valid(x, padding_mask), 2, ceil_mode=True)
    return F.avg_pool2d(zero_in_padding(x, padding_mask), 2, ceil_mode=True) / share.clamp(min=0.25)


def _valid(x: Tensor, padding_mask: Tensor) -> Tensor:
    """(B, 1, h, w), 1 in the picture."""
    return (~padding_mask)[:, None].to(x.dtype)
