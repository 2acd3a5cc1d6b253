"""Rectangular batches, the cache and the mixing of pictures, through whole toy trainings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detrove.errors import InputError
from detrove.training import TrainingConfig, train
from detrove.training.trainer import augmentation_of

pytestmark = pytest.mark.slow


def test_they_reach_the_loader_and_are_written_down(
    squares: Path, tmp_path: Path, tiny_options: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    options = tiny_options(
        tmp_path / "run", epochs=2, rectangular=True, cache="1MB", settings={"mosaic": 0.5, "copy_paste": 0.5}
    )
    run = train(squares, **{**options, "progress": True})
    config = TrainingConfig.from_yaml(run.output / "config.yaml")
    assert (config.rectangular, config.cache) == (True, "1MB")
    augmentation = augmentation_of(config.recipe)
    assert (augmentation.mosaic, augmentation.copy_paste, augmentation.mix_until) == (0.5, 0.5, 0.8)
    printed = capsys.readouterr()
    assert "cache: keeps" in printed.out + printed.err


def test_a_continued_run_must_keep_them(
    squares: Path, tmp_path: Path, tiny_options: Callable[..., dict[str, Any]]
) -> None:
    train(squares, **tiny_options(tmp_path / "run", epochs=1, rectangular=True, cache="40kB"))
    with pytest.raises(InputError, match="cache was 40kB, now None"):
        train(squares, **tiny_options(tmp_path / "run", epochs=2, resume=True, rectangular=True))


@pytest.mark.parametrize(("name", "value"), [("cache", "plenty"), ("settings", {"mosaic": 1.5})])
def test_bad_values(
    squares: Path, tmp_path: Path, tiny_options: Callable[..., dict[str, Any]], name: str, value: Any
) -> None:
    with pytest.raises(InputError, match=r"cache must be a size|mosaic must be from 0 to 1"):
        train(squares, **tiny_options(tmp_path / "run", epochs=1, **{name: value}))
