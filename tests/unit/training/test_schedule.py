import math

import pytest

from detrove.errors import InputError
from detrove.models.preset import Recipe
from detrove.training.schedule import rate_factor


def test_step_schedule_drops_tenfold_at_its_fraction():
    recipe = Recipe(schedule="step", drop_at=0.8)
    assert rate_factor(recipe, 0.79, 1000) == 1.0
    assert rate_factor(recipe, 0.8, 1000) == pytest.approx(0.1)


def test_cosine_falls_from_one_to_the_final_rate():
    recipe = Recipe(schedule="cosine", final_rate=0.05)
    assert rate_factor(recipe, 0.0, 5) == pytest.approx(1.0)
    assert rate_factor(recipe, 0.5, 5) == pytest.approx(0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert rate_factor(recipe, 1.0, 5) == pytest.approx(0.05)


def test_warmup_rises_linearly_with_the_steps():
    recipe = Recipe(schedule="step", warmup=9)
    assert [rate_factor(recipe, 0.0, step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])


def test_warmup_never_takes_more_than_a_tenth_of_the_training():
    recipe = Recipe(schedule="step", warmup=1000)
    assert rate_factor(recipe, 0.05, 3) == pytest.approx(0.5)
    assert rate_factor(recipe, 0.1, 6) == pytest.approx(1.0)


def test_unknown_schedule_is_named():
    with pytest.raises(InputError, match="linear"):
        rate_factor(Recipe(schedule="linear"), 0.5, 1)
