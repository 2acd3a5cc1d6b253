"""Multi-scale deformable sampling (Zhu et al. 2021, eq. 3): the operator under deformable attention, and its ways.

The formula in plain torch, `sample_levels_torch`, runs anywhere and is the reference. Beside it stand kernels without
a build step: Numba's on the CPU (`sampling_numba`), Triton's on CUDA (`sampling_triton`). The first call on a kind of
device chooses, and says so in the log; `use_sampling("torch")`, or the environment variable DETROVE_SAMPLING, chooses
by hand. The kernels are operators of torch, so autocast, `torch.compile`, `torch.export` and autograd know them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from detrove.errors import InputError

logger = logging.getLogger(__name__)

Shapes = list[tuple[int, int]]

WAYS = ("auto", "torch", "numba", "triton")
ENVIRONMENT_VARIABLE = "DETROVE_SAMPLING"

_wanted = "auto"
_chosen: dict[str, str] = {}


def sample_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of bilinear samples over levels and points.

    `value` (B, T, M, d), levels concatenated; `shapes` their (height, width); `locations` (B, Q, M, S, P, 2) x, y in
    [0, 1] of the level, zero outside; `weights` (B, Q, M, S, P). Returns (B, Q, M · d). Half precisions are sampled in
    float32 by the kernels.
    """
    if _way(value.device.type) == "torch":
        return sample_levels_torch(value, shapes, locations, weights)
    operator = torch.ops.detrove.sample_levels
    sizes = [size for shape in shapes for size in shape]
    if value.dtype == locations.dtype == weights.dtype and value.dtype in (torch.float32, torch.float64):
        return operator(value, sizes, locations, weights)
    return operator(value.float(), sizes, locations.float(), weights.float()).to(value.dtype)


def sample_levels_torch(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`sample_levels` by torch's own bilinear sampling, level by level: the reference, and the way without a kernel."""
    batch, _, heads, dim = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (S, B·M, Q, P, 2) in [-1, 1]
    sampled = []
    for level, (height, width) in enumerate(shapes):
        start = sum(h * w for h, w in shapes[:level])
        plane = value[:, start : start + height * width]  # (B, h·w, M, d)
        plane = plane.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        sampled.append(F.grid_sample(plane, grids[level], mode="bilinear", padding_mode="zeros", align_corners=False))
    samples = torch.cat(sampled, dim=-1)  # (B·M, d, Q, S·P)
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(shapes) * points)
    summed = (samples * weights).sum(dim=-1)  # (B·M, d, Q)
    return summed.view(batch, heads * dim, queries).transpose(1, 2)


def use_sampling(way: str) -> None:
    """Choose how deformable attention samples from here on, in this process: "auto", "torch", "numba" or "triton"."""
    global _wanted
    if way not in WAYS:
        raise InputError(f"unknown way of sampling {way!r}: choose one of {', '.join(WAYS)}")
    if way in ("numba", "triton") and not _installed(way):
        raise InputError(f"sampling with {way} needs it installed: {_REMEDIES[way]}")
    _wanted = way
    _chosen.clear()


@contextmanager
def sampling_by(way: str) -> Iterator[None]:
    """`use_sampling` for as long as the block lasts."""
    before = _wanted
    use_sampling(way)
    try:
        yield
    finally:
        use_sampling(before)


def sampling_way(device: torch.device | str = "cpu") -> str:
    """The way that is, or would be, taken on a device: "torch", "numba" or "triton"."""
    return _way(torch.device(device).type)


@torch.compiler.assume_constant_result  # a compiled model keeps the way of its first call
def _way(device: str) -> str:
    return _chosen.get(device) or _choose(device)


_KERNELS = {"cpu": "numba", "cuda": "triton"}
_REMEDIES = {"numba": 'pip install "detrove[fast]"', "triton": "it comes with torch for CUDA on Linux"}


def _choose(device: str) -> str:
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, _wanted) if _wanted == "auto" else _wanted
    if wanted not in WAYS:
        raise InputError(f"{ENVIRONMENT_VARIABLE}={wanted}: choose one of {', '.join(WAYS)}")
    kernel = _KERNELS.get(device)
    way = "torch"
    if kernel is not None and wanted in ("auto", kernel):
        if _installed(kernel):
            way = kernel
        elif wanted == kernel:
            raise InputError(f"{ENVIRONMENT_VARIABLE}={wanted} needs it installed: {_REMEDIES[kernel]}")
    if way != "torch":
        from detrove.nn import sampling_operator

        sampling_operator.register(device)
    logger.info("deformable attention on %s samples with %s", device, way)
    _chosen[device] = way
    return way


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
