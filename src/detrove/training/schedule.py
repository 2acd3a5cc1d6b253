"""The learning rate as a pure function of how far the training has come."""

from __future__ import annotations

import math

from detrove.errors import InputError
from detrove.models.preset import Recipe

SCHEDULES = ("step", "cosine")
STEP_FACTOR = 0.1
LONGEST_WARMUP = 0.1  # of the training: a short budget must not be spent warming up


def rate_factor(recipe: Recipe, progress: float, step: int) -> float:
    """What every learning rate is multiplied by at this point of the training.

    `progress` in [0, 1] is the fraction of the training that is done: of the clock's budget, or of all steps. `step`
    counts the steps taken. The rate rises linearly over `recipe.warmup` steps, or over the first tenth of the
    training where that is shorter, and then falls by the recipe's schedule.
    """
    return _warmup(recipe.warmup, progress, step) * _decay(recipe, min(max(progress, 0.0), 1.0))


def _warmup(warmup: int, progress: float, step: int) -> float:
    if step >= warmup:
        return 1.0
    return min(1.0, max((step + 1) / (warmup + 1), progress / LONGEST_WARMUP))


def _decay(recipe: Recipe, progress: float) -> float:
    if recipe.schedule == "step":
        return 1.0 if progress < recipe.drop_at else STEP_FACTOR
    if recipe.schedule == "cosine":
        return recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))
    raise InputError(f"unknown schedule {recipe.schedule!r}: choose from {', '.join(SCHEDULES)}")
