"""AdamW with the DETR family's parameter groups."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from detrove.models.preset import Recipe

BACKBONE_PREFIX = "backbone."
FUSED = frozenset({"cpu", "cuda"})
"""Devices with a fused AdamW in every torch that detrove runs on."""


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The trainable parameters of a detector, each in exactly one group that shares a rate and a decay.

    The trunk has its own rate, unless it began at random (it is not `frozen`): then it learns as fast as the rest.
    Parameters whose name holds one of `recipe.slow_parameters` learn `slow_factor` times
    slower (Deformable DETR's `reference_points` and `sampling_offsets`). Norms and biases, which have one dimension,
    are left out of weight decay where the recipe says so; DETR decays them too. Frozen parameters are in no group.

    Each group carries `name`, and `initial_lr`, the rate that the schedule multiplies.
    """
    random_trunk = not getattr(getattr(model, "backbone", None), "frozen", True)
    members: dict[str, list[Tensor]] = defaultdict(list)
    options: dict[str, dict[str, float]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group, rate = _rate(name, recipe, random_trunk)
        decay = recipe.weight_decay
        if parameter.ndim < 2 and not recipe.decay_norms_and_biases:
            group, decay = f"{group}, no decay", 0.0
        members[group].append(parameter)
        options[group] = {"lr": rate, "initial_lr": rate, "weight_decay": decay}
    return [{"name": group, "params": members[group], **options[group]} for group in members]


def _rate(name: str, recipe: Recipe, random_trunk: bool) -> tuple[str, float]:
    if name.startswith(BACKBONE_PREFIX):
        return "backbone", recipe.learning_rate if random_trunk else recipe.backbone_learning_rate
    if any(fragment in name for fragment in recipe.slow_parameters):
        return "slow", recipe.learning_rate * recipe.slow_factor
    return "rest", recipe.learning_rate


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`, in torch's fused form: one kernel for all parameters instead of one each."""
    device = next(model.parameters()).device
    return torch.optim.AdamW(parameter_groups(model, recipe), fused=device.type in FUSED)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its initial rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """AdamW's moments as a flat dict for safetensors: "parameter name|exp_avg" and so on."""
    return {
        f"{name}|{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`: fill the moments of each parameter of `model`.

    Moments are laid out in memory as their parameter is (channels last, say): torch's fused step pairs elements by
    their place in memory, and would mix them up without a word.
    """
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, moment = key.rsplit("|", 1)
        parameter = parameters[name]
        if moment == "step":
            restored = value.to(parameter.device) if parameter.device.type in FUSED else value
        else:
            restored = torch.empty_like(parameter, requires_grad=False).copy_(value)
        optimizer.state[parameter][moment] = restored
