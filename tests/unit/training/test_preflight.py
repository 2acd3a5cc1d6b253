"""Before a training: faults told in short, misread boxes refused, a few pictures learned by heart."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detrove.data import DetectionDataset, open_dataset
from detrove.errors import InputError
from detrove.models import catalogue
from detrove.models.preset import Recipe
from detrove.structures import Preprocessing
from detrove.training import TrainingConfig
from detrove.training import preflight as preflight_file
from detrove.training.fitting import Fit
from detrove.training.label_signal import Signal
from detrove.training.preflight import preflight, preflight_model
from detrove.training.rehearsal import allowed_seconds, allowed_steps, rehearse


def write_set(root: Path, boxes: list[list[float]]) -> Path:
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        generator = np.random.default_rng(len(split))
        Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(root / split / "a.png")
        entries = [{"id": n, "image_id": 1, "category_id": 1, "bbox": box} for n, box in enumerate(boxes)]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
            "annotations": entries,
            "categories": [{"id": 1, "name": "nut"}],
        }
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def lines(root: Path, num_queries: int, **model_config: int) -> list[str]:
    options = {"num_queries": num_queries, **model_config}
    config = TrainingConfig(str(root), "out", "detr-nano", epochs=1, model_config=options)
    return preflight(config, open_dataset(root, "train"), open_dataset(root, "val"))


def test_a_sound_set_passes_in_silence(tmp_path: Path) -> None:
    assert lines(write_set(tmp_path, [[2, 3, 10, 12], [20, 10, 10, 12]]), 2) == []


def test_pictures_without_any_label_are_refused(tmp_path: Path) -> None:
    """A folder of labels with another name: to YOLO's format, all is background."""
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "label" / split).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(tmp_path / "images" / split / "a.png")
        (tmp_path / "label" / split / "a.txt").write_text("0 0.5 0.5 0.2 0.2")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [nut]\n")
    with pytest.raises(InputError, match=r"no object in the 1 pictures of train") as caught:
        lines(tmp_path, 2)
    assert str(tmp_path / "labels" / "train" / "a.txt") in str(caught.value)
    config = TrainingConfig(str(tmp_path), "out", "detr-nano", epochs=1, preflight=False)
    config = dataclasses.replace(config, model_config={"num_queries": 2})
    assert "no box" in preflight(config, open_dataset(tmp_path, "train"), open_dataset(tmp_path, "val"))[0]


def test_faults_are_told_in_a_line_each(tmp_path: Path) -> None:
    root = write_set(tmp_path, [[2, 3, 10, 12], [20, 10, 0, 12]])
    (root / "val" / "a.png").write_bytes((root / "train" / "a.png").read_bytes())
    zero, leaked, queries, where = lines(root, 1)
    assert zero.startswith("2 boxes: zero-size box: train/_annotations.coco.json: annotation 1 is 0 x 12 pixels")
    assert zero.endswith("(and 1 more)")
    assert leaked.startswith("1 pair: leaked picture: ")
    assert "2 objects for 1 queries" in queries
    assert where.endswith(f"detrove data check {root}")


def test_every_pattern_of_an_anchor_answers_for_an_object(tmp_path: Path) -> None:
    root = write_set(tmp_path, [[2, 3, 10, 12], [20, 10, 10, 12]])
    assert lines(root, 1, num_patterns=2) == []
    assert any("2 objects for 1 queries" in line for line in lines(root, 1, num_patterns=0))


def with_boxes(data: DetectionDataset, xywh: np.ndarray) -> DetectionDataset:
    """The same pictures with other boxes."""
    return data.with_annotations(dataclasses.replace(data.annotations, xywh=xywh))


@pytest.fixture(scope="module")
def many_squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 pictures to train on, each of five squares; three to validate on."""
    root, generator = tmp_path_factory.mktemp("many"), np.random.default_rng(3)
    for split, count in (("train", 60), ("val", 3)):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(1, count + 1):
            pixels = generator.integers(90, 130, (64, 64, 3), dtype=np.uint8)
            for column in range(5):
                side, left = int(generator.integers(7, 12)), 12 * column
                top = int(generator.integers(0, 64 - side))
                pixels[top : top + side, left : left + side] = (220, 20, 20)
                box = [left, top, side, side]
                entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box}
                annotations.append(entry)
            Image.fromarray(pixels).save(root / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "nut"}]}
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def config_of(data: Path, **changes: Any) -> TrainingConfig:
    recipe = Recipe(learning_rate=1e-3, backbone_learning_rate=1e-3, clip_norm=1.0, batch_size=4)
    values: dict[str, Any] = {"epochs": 1000, "preprocessing": Preprocessing(longer=64), "recipe": recipe}
    return TrainingConfig(str(data), "out", "detr-nano", **{**values, **changes})


def test_corners_read_as_sizes_are_refused(many_squares: Path):
    data, validation = open_dataset(many_squares, "train"), open_dataset(many_squares, "val")
    xywh = data.annotations.xywh
    corners = with_boxes(data, np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1))
    assert preflight(config_of(many_squares), data, validation) == []
    with pytest.raises(InputError, match=r"annotation \d+ looks like corners.*detrove data check"):
        preflight(config_of(many_squares), corners, validation)
    assert preflight(config_of(many_squares, preflight=False), corners, validation)


def toy(**changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"backbone": "test_resnet", "dim": 32, "num_heads": 4, "feedforward_dim": 64, "num_queries": 10}
    return catalogue.create("detr-nano", num_classes=2, num_encoder_layers=1, num_decoder_layers=2, **sizes, **changes)


@pytest.mark.slow
def test_a_rehearsal_learns_and_leaves_no_trace(squares: Path):
    data, model = open_dataset(squares, "train"), toy(dropout=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    learned = rehearse(
        model, catalogue.criterion_for(model), config_of(squares), data, torch.device("cpu"), steps=30, seconds=60
    )
    assert learned is not None
    assert (learned.num_pictures, learned.steps) == (4, 30)
    assert learned.after < 0.9 * learned.before
    assert learned.learned
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


@pytest.mark.slow
def test_a_rehearsal_computes_as_many_at_once_as_its_training(squares: Path, monkeypatch: pytest.MonkeyPatch):
    model = toy(dropout=0.0)
    seen: list[tuple[int, torch.dtype]] = []

    def heard(module: torch.nn.Module, inputs: Any, answer: Any) -> None:
        if module.training:
            seen.append((len(inputs[0].sizes), answer.logits.dtype))

    handle = model.register_forward_hook(heard)
    arguments = (model, catalogue.criterion_for(model))
    data, cpu = open_dataset(squares, "train"), torch.device("cpu")
    config = dataclasses.replace(config_of(squares, accumulate=2), mixed_precision="bf16", recompute=True)
    in_parts = rehearse(*arguments, config, data, cpu, steps=10, seconds=60)
    assert seen[:2] == [(2, torch.bfloat16)] * 2
    seen.clear()
    at_once = rehearse(*arguments, config_of(squares), data, cpu, steps=10, seconds=60)
    handle.remove()
    assert seen[0] == (4, torch.float32)
    assert in_parts is not None
    assert at_once is not None
    assert in_parts.after == pytest.approx(at_once.after, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [3.0, 1e30])
def test_a_rate_that_learns_nothing_is_refused(squares: Path, rate: float):
    config = config_of(squares)
    config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, learning_rate=rate, clip_norm=1e9))
    model = toy()
    arguments = (model, catalogue.criterion_for(model), open_dataset(squares, "train"), torch.device("cpu"))
    with pytest.raises(InputError, match=r"preflight: not learned: 4 pictures by heart: .* lower the rate"):
        preflight_model(config, *arguments)
    assert preflight_model(dataclasses.replace(config, preflight=False), *arguments) == []


@pytest.mark.parametrize(("share", "refused"), [(0.59, True), (0.6, False)])
def test_boxes_that_are_like_any_others_are_refused(
    squares: Path, monkeypatch: pytest.MonkeyPatch, share: float, refused: bool
):
    monkeypatch.setattr(preflight_file, "label_signal", lambda *_: Signal(share, 120, 40))
    monkeypatch.setattr(preflight_file, "refuse_unlearnable", lambda *_: [])
    model = toy()
    data, criterion, device = open_dataset(squares, "train"), catalogue.criterion_for(model), torch.device("cpu")
    assert model.get_submodule("backbone").frozen is False
    assert preflight_model(config_of(squares), model, criterion, data, device) == []  # it sees too little to be asked
    model.get_submodule("backbone").frozen = True
    if refused:
        with pytest.raises(InputError, match=r"the boxes do not belong to .* 120 in 40 pictures .* 59% of pairs"):
            preflight_model(config_of(squares), model, criterion, data, device)
    else:
        [told] = preflight_model(config_of(squares), model, criterion, data, device)
        assert told.startswith("preflight: 120 boxes in 40 pictures: told from boxes of other pictures in 60% of pairs")


def test_a_step_that_does_not_fit_is_refused_with_the_remedy(squares: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def too_much(*arguments: Any) -> Fit:
        asked.append(arguments[-1])
        torch.rand(1)
        return Fit(2, "4 pictures a step, 2 at once: a step takes 3.0 GB of 2.0 GB")

    monkeypatch.setattr(preflight_file, "parts_that_fit", too_much)
    monkeypatch.setattr(preflight_file, "refuse_unlearnable", lambda *_: [])
    model, state = toy(), torch.get_rng_state()
    arguments = (model, catalogue.criterion_for(model), open_dataset(squares, "train"), torch.device("cpu"))
    with pytest.raises(InputError, match=r"no room in the memory for 4 pictures at once: .* --batch-size auto"):
        preflight_model(config_of(squares), *arguments)
    assert torch.equal(torch.get_rng_state(), state)
    assert preflight_model(config_of(squares), *arguments, fits=True) == []
    with pytest.raises(InputError, match="for 2 pictures at once"):
        preflight_model(config_of(squares, accumulate=2), *arguments)
    assert asked == [4, 2]


def test_a_rehearsal_is_small_beside_its_training(squares: Path):
    assert allowed_steps(config_of(squares, epochs=1000), 12) == 60
    assert allowed_steps(config_of(squares, epochs=100), 12) == 15
    assert allowed_steps(config_of(squares, epochs=60), 12) == 0  # nine steps tell nothing
    assert allowed_seconds(config_of(squares, epochs=100)) == 45
    assert allowed_seconds(config_of(squares, epochs=None, minutes=10.0)) == 30
    assert allowed_seconds(config_of(squares, epochs=None, minutes=60.0)) == 45


def test_without_time_nothing_is_concluded(squares: Path):
    model = toy()
    arguments = (model, catalogue.criterion_for(model), config_of(squares), open_dataset(squares, "train"))
    assert rehearse(*arguments, torch.device("cpu"), steps=60, seconds=0.0) is None
