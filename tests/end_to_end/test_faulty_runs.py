"""Trainings in which something goes wrong: what is at fault is named, and what was good is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.data import dataset as dataset_file
from detrove.errors import InputError
from detrove.inference import load
from detrove.losses import Criterion
from detrove.structures import Targets
from detrove.training import train

SETTINGS = {
    "model.backbone": "test_resnet",
    "model.dim": 32,
    "model.num_heads": 4,
    "model.feedforward_dim": 64,
    "model.num_encoder_layers": 1,
    "model.num_decoder_layers": 2,
    "model.num_queries": 10,
    "learning_rate": 1e-3,
    "clip_norm": 1.0,
    "crop": 0.0,
    "workers": 0,
}


def options(output: Path, **settings: Any) -> dict[str, Any]:
    """Keywords for `train`: a toy DETR on 64-pixel pictures."""
    return {
        "model": "detr-nano",
        "output": output,
        "size": 64,
        "batch_size": 4,
        "backbone_weights": None,
        "settings": SETTINGS | settings,
    }


def write_squares(
    folder: Path,
    num_pictures: int = 12,
    boxes_of: Callable[[list[int], np.random.Generator], list[float]] | None = None,
) -> Path:
    """Pictures 64 pixels wide with two squares each, as COCO JSON; `boxes_of` may write other boxes."""
    generator = np.random.default_rng(5)
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(1, num_pictures + 1):
            pixels = generator.integers(90, 130, size=(64, 64, 3), dtype=np.uint8)
            for category in (1, 2):
                side = int(generator.integers(12, 20))
                x, y = (int(value) for value in generator.integers(0, 64 - side, size=2))
                pixels[y : y + side, x : x + side] = (220, 20, 20) if category == 1 else (20, 20, 220)
                box = [x, y, side, side]
                written = box if boxes_of is None else boxes_of(box, generator)
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": category, "bbox": written}
                annotations.append(entry)
            Image.fromarray(pixels).save(folder / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "blue"}]
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (folder / split / "_annotations.coco.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, squares: Path) -> None:
    """The second box of the training picture 7 becomes nan on its way to the trainer."""
    targets_of = dataset_file.targets_of

    def with_nan(record: Any) -> Targets:
        targets = targets_of(record)
        if record.path.parts[-2:] == ("train", "7.png"):
            targets.boxes[1, 2] = math.nan
        return targets

    monkeypatch.setattr("detrove.data.originals.targets_of", with_nan)


@pytest.mark.usefixtures("planted")
def test_the_picture_and_the_box_that_yield_nan_are_named(squares: Path, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        train(squares, epochs=2, progress=False, **options(tmp_path / "run", horizontal_flip=0.0))
    told = str(caught.value)
    assert "\n" not in told
    assert f"{squares / 'train' / '7.png'} (id 7): box 2 of 2 (blue; " in told
    assert told.count(".png") == 1
    assert "the loss became nan in step " in told
    assert "on_nonfinite=skip" in told


@pytest.mark.usefixtures("planted")
def test_a_step_that_yields_nan_may_be_skipped(squares: Path, tmp_path: Path, capsys):
    run = train(squares, epochs=3, **options(tmp_path / "run", on_nonfinite="skip"))
    told = [line for line in capsys.readouterr().err.splitlines() if "skipped" in line]
    assert told
    assert all("7.png (id 7): box 2 of 2 (blue" in line for line in told)
    lines = [json.loads(line) for line in (run.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6, 9]  # a skipped step is one of the epoch's
    assert [line["pictures"] for line in lines] == [8, 16, 24]  # of which four pictures were left out
    assert [line["skipped"] for line in lines] == [1, 1, 1]
    weights = load(run.output).model.state_dict()
    assert all(value.isfinite().all() for value in weights.values())


def test_a_gradient_that_is_no_number_names_its_picture(squares: Path, tmp_path: Path, monkeypatch):
    """The loss of picture 3 is finite and its gradient is not: the root of zero."""
    whole = Criterion.__call__

    def with_bad_slope(self: Criterion, predictions: Any, targets: Any) -> dict[str, torch.Tensor]:
        losses = whole(self, predictions, targets)
        if any(target.image_id == 3 for target in targets):
            losses["class"] = losses["class"] + (predictions.logits.sum() * 0).sqrt()
        return losses

    monkeypatch.setattr(Criterion, "__call__", with_bad_slope)
    with pytest.raises(InputError, match=r"the gradient became nan in step \d, on \S+3\.png \(id 3\): lower the rate"):
        train(squares, epochs=1, progress=False, **options(tmp_path / "run"))


def test_a_rate_that_breaks_the_weights_is_told_as_such(squares: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"(no numbers any more|each of them|together).*lower the rate"):
        train(squares, epochs=20, progress=False, **options(tmp_path / "run", learning_rate=1e30, clip_norm=1e30))


def test_skipping_does_not_go_on_for_ever(squares: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Criterion, "total", lambda self, losses: sum(v.sum() for v in losses.values()) * math.nan)
    with pytest.raises(InputError, match="10 steps in a row were skipped: it is not a single picture"):
        train(squares, epochs=9, progress=False, **options(tmp_path / "run", on_nonfinite="skip"))
