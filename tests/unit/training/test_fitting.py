"""In how many parts a step must be computed for the memory to suffice."""

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from detrove.data import open_dataset
from detrove.data.batching import training_loader
from detrove.errors import InputError
from detrove.models import catalogue
from detrove.models.preset import Recipe
from detrove.structures import Preprocessing
from detrove.training import TrainingConfig, fitting, train
from detrove.training.fitting import largest_shape, most_objects
from detrove.training.trainer import augmentation_of


@pytest.mark.parametrize(
    ("fixed", "each", "free", "parts"),
    [(100, 10, 400, 1), (100, 10, 200, 2), (100, 10, 170, 3), (100, 10, 155, 4), (100, 10, 138, 8), (0, 1, 5, 2)],
)
def test_as_few_parts_as_fit(fixed: int, each: int, free: int, parts: int, monkeypatch: pytest.MonkeyPatch):
    """Eight pictures: what a step of one and of two takes tells what four or eight take, of 0.8 of what is free."""
    monkeypatch.setattr(fitting, "available_memory", lambda: free)
    monkeypatch.setattr(fitting, "_memory_of", lambda step, device, number: fixed + each * number)
    assert fixed + each * -(-8 // parts) <= 0.8 * free
    fit = fitting._by_measuring(lambda number: None, torch.device("cpu"), 8, "at 1x1", 1)
    assert fit.num_parts == parts


def test_no_room_for_one_picture(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fitting, "available_memory", lambda: 2e9)
    monkeypatch.setattr(fitting, "_memory_of", lambda step, device, number: 1_000_000_000 * (1 + number))
    with pytest.raises(InputError, match=r"takes 1\.0 GB and 1\.0 GB a picture, 1\.6 GB may be used.*--size"):
        fitting._by_measuring(lambda number: None, torch.device("cpu"), 8, "at 1x1", 1)


def pictures(*sizes: tuple[int, int, int]) -> Any:
    """What a data set tells of pictures of these heights, widths and numbers of objects."""
    return SimpleNamespace(records=[SimpleNamespace(height=h, width=w, labels=[0] * n) for h, w, n in sizes])


@pytest.mark.parametrize(
    ("recipe", "rectangular", "shape"),
    [
        (Recipe(crop=0.0), False, (160, 160)),  # 133 x 80 and 66 x 132, padded to each other and to a multiple of 32
        (Recipe(crop=0.0), True, (133, 80)),  # the larger one, by itself
        (Recipe(crop=0.0, scale=(0.5, 2.0)), False, (288, 288)),
    ],
)
def test_the_largest_shape_by_hand(recipe: Recipe, rectangular: bool, shape: tuple[int, int]):
    preprocessing = Preprocessing(longer=133, shorter=80)
    assert largest_shape(pictures((200, 120, 1), (100, 200, 1)), preprocessing, recipe, rectangular) == shape


def test_half_a_picture_may_be_higher_than_the_whole():
    data, preprocessing = pictures((100, 100, 1)), Preprocessing(longer=133, shorter=80)
    assert largest_shape(data, preprocessing, Recipe(crop=0.0), False) == (96, 96)
    assert largest_shape(data, preprocessing, Recipe(crop=0.5), False) == (160, 160)


def test_the_most_objects():
    data = pictures((1, 1, 3), (1, 1, 7), (1, 1, 0))
    assert most_objects(data, Recipe()) == 7
    assert most_objects(data, Recipe(mosaic=0.1)) == 28  # of four pictures


@pytest.mark.slow
def test_batches_of_many_epochs_stay_within_the_largest_shape(squares: Path):
    dataset = open_dataset(squares, "train")
    recipe, preprocessing = Recipe(crop=0.8, scale=(0.6, 1.2)), Preprocessing(longer=48, shorter=24)
    height, width = largest_shape(dataset, preprocessing, recipe, False)
    loader = training_loader(dataset, preprocessing, augmentation_of(recipe), 4, workers=0)
    shapes = []
    for epoch in range(20):
        loader.set_epoch(epoch)
        shapes += [tuple(images.pixels.shape[-2:]) for images, _ in loader]
    assert max(shape[0] for shape in shapes) <= height
    assert max(shape[1] for shape in shapes) <= width
    assert max(shape[0] for shape in shapes) == height


@pytest.mark.slow
def test_a_step_is_measured_and_a_continued_run_does_not_ask_again(
    squares: Path, tmp_path: Path, tiny_options, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = {**tiny_options(tmp_path / "run", epochs=1), "batch_size": "auto", "progress": True}
    train(squares, **options)
    assert "pictures a step, all at once: a step at up to 64x64 pixels with" in " ".join(
        capsys.readouterr().err.split()
    )
    config = TrainingConfig.from_yaml(tmp_path / "run" / "config.yaml")
    assert (config.fit_memory, config.accumulate) == (False, 1)
    assert config.recipe.batch_size == catalogue.preset("detr-nano").recipe.batch_size
    run = importlib.import_module("detrove.training.train")  # the package has a function of that name
    monkeypatch.setattr(run, "parts_that_fit", lambda *_: pytest.fail("asked again"))
    train(squares, **{**options, "epochs": 2, "resume": True})


@pytest.mark.slow
def test_the_measured_step_takes_memory(squares: Path, tmp_path: Path, tiny_options):
    if fitting._memory_of(lambda number: None, torch.device("cpu"), 1) is None:
        pytest.skip("this system does not tell")
    held = []

    def step(number: int) -> None:
        held.append(torch.ones(number * 25 * 2**20))  # 100 MB each

    one, two = (fitting._memory_of(step, torch.device("cpu"), number) for number in (1, 2))
    assert one == pytest.approx(100 * 2**20, rel=0.05)
    assert two == pytest.approx(200 * 2**20, rel=0.05)
