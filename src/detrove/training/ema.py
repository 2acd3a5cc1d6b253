"""The moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

WARMUP_POWER = 2 / 3


class MovingAverage:
    """An exponential moving average of all weights and floating-point buffers, held in `model`, a copy.

    The decay warms up as 1 - step^(-2/3) until it reaches `decay` (Crowson's rule, as in timm's `ModelEmaV3`), so
    that a short training does not average in its random start. Unlike timm's class it moves a tensor that two modules
    share once a step, not once for each of its names.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights of `model` after `step` training steps; up to the first, take them over."""
        decay = min(self.decay, 1 - max(step, 1) ** -WARMUP_POWER)
        averaged, current = _tensors(self.model), _tensors(model)
        floating = [index for index, tensor in enumerate(averaged) if tensor.is_floating_point()]
        torch._foreach_lerp_([averaged[i] for i in floating], [current[i] for i in floating], 1 - decay)
        for old, new in zip(averaged, current, strict=True):
            if not old.is_floating_point():
                old.copy_(new)


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, each once, in the model's order."""
    return [*model.parameters(), *model.buffers()]
