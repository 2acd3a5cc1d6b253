"""`detrove::sample_levels` and its backward as operators of torch, whose kernels are registered by device.

An operator of torch is opaque to `torch.compile` and `torch.export`, which know its shapes from the fake versions here,
and differentiable by the formula registered here.
"""

from __future__ import annotations

import torch
from torch import Tensor

_registered: set[str] = set()


@torch.library.custom_op("detrove::sample_levels", mutates_args=(), device_types=())
def sample_levels(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    """`sampling.sample_levels`; `sizes` are the levels' height and width in turn. All float32 or all float64."""
    raise NotImplementedError(f"no kernel for {value.device.type}")


@torch.library.custom_op("detrove::sample_levels_backward", mutates_args=(), device_types=())
def sample_levels_backward(
    gradient: Tensor, value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights from the output's (B, Q, M · d)."""
    raise NotImplementedError(f"no kernel for {value.device.type}")


@sample_levels.register_fake
def _(value: Tensor, sizes: list[int], locations: Tensor, weights: Tensor) -> Tensor:  # noqa: ARG001
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@sample_levels_backward.register_fake
def _(
    gradient: Tensor,  # noqa: ARG001
    value: Tensor,
    sizes: list[int],  # noqa: ARG001
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(value), torch.empty_like(locations), torch.empty_like(weights)


def _keep(ctx, inputs, output) -> None:  # noqa: ARG001
    value, sizes, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)
    ctx.sizes = sizes


def _differentiate(ctx, gradient: Tensor):
    value, locations, weights = ctx.saved_tensors
    of_value, of_locations, of_weights = sample_levels_backward(gradient, value, ctx.sizes, locations, weights)
    return of_value, None, of_locations, of_weights


sample_levels.register_autograd(_differentiate, setup_context=_keep)


def register(device: str) -> None:
    """Make the kernels of a kind of device known: "cpu" (Numba) or "cuda" (Triton)."""
    if device in _registered:
        return
    if device == "cpu":
        from detrove.nn import sampling_numba as kernels
    else:
        from detrove.nn import sampling_triton as kernels
    sample_levels.register_kernel(device, kernels.forward)
    sample_levels_backward.register_kernel(device, kernels.backward)
    _registered.add(device)
